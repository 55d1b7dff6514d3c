"""PP@K: windows, exclusive bounds, divisors."""

import numpy as np

from refseg_bench.scoring.protocols.image import pointing_precision


def points(*rows):
    return np.array(rows, np.float64)


def test_windows_and_their_exclusive_end():
    mask = np.zeros((100, 100), bool)
    mask[50, 50] = True
    hit = points([0, 0.505, 0.505, 1.0])
    assert pointing_precision(hit, {0: mask}, (100, 100), (1,), 14) == {1: 1.0}
    # py = 36: rows 22 … 49; row 50 is the exclusive end
    assert pointing_precision(points([0, 0.365, 0.505, 1]), {0: mask}, (100, 100), (1,), 14) == {1: 0.0}
    assert pointing_precision(points([0, 0.375, 0.505, 1]), {0: mask}, (100, 100), (1,), 14) == {1: 1.0}
    # py = 64: rows 50 …
    assert pointing_precision(points([0, 0.645, 0.505, 1]), {0: mask}, (100, 100), (1,), 14) == {1: 1.0}
    assert pointing_precision(points([0, 0.655, 0.505, 1]), {0: mask}, (100, 100), (1,), 14) == {1: 0.0}


def test_the_last_row_and_column_never_count():
    mask = np.zeros((60, 60), bool)
    mask[59, :] = True
    mask[:, 59] = True
    assert pointing_precision(points([0, 0.999, 0.999, 1]), {0: mask}, (60, 60), (1,), 25) == {1: 0.0}
    mask[58, 58] = True
    assert pointing_precision(points([0, 1.0, 1.0, 1]), {0: mask}, (60, 60), (1,), 25) == {1: 1.0}


def test_ranking_is_by_value_and_the_divisor_is_k():
    mask = np.zeros((50, 50), bool)
    mask[10, 10] = True
    near, far = (0.21, 0.21), (0.9, 0.9)
    rows = points([3, *far, 0.5], [3, *near, 0.9], [4, *near, 0.8], [3, *near, 0.1])
    found = pointing_precision(rows, {3: mask, 4: None}, (50, 50), (1, 2, 5), 5)
    assert found == {1: 1.0, 2: 0.5, 5: 2 / 5}
