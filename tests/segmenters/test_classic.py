import subprocess
import sys

import numpy as np
import pytest

from refseg_bench.segmenters import classic


def box(size, rows, columns):
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


def test_working_shape_shrinks_only():
    assert classic.working_shape((480, 960), 320) == (160, 320)
    assert classic.working_shape((48, 60), 320) == (48, 60)
    assert classic.working_shape((1, 4000), 320) == (1, 320)


def test_masks_survive_a_round_trip():
    mask = box((40, 60), slice(10, 30), slice(12, 40))
    np.testing.assert_array_equal(classic.resize_mask(classic.resize_mask(mask, (20, 30)), (40, 60)), mask)
    assert classic.resize_mask(mask, (40, 60)) is not mask


def test_half_covered_pixels_count():
    mask = box((4, 4), slice(0, 1), slice(0, 4))
    np.testing.assert_array_equal(classic.resize_mask(mask, (2, 2)), [[True, True], [False, False]])


def test_flow_points_where_the_picture_moves():
    # In a process of its own: of low pictures OpenCV's own scales end the process, or give no number.
    code = """
import cv2, numpy as np
from refseg_bench.segmenters import classic
for size in (80, 100), (31, 100), (16, 320), (20, 320), (12, 640), (100, 24):
    print(size, flush=True)
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, size, np.uint8), (0, 0), 2)
    flow = classic.dense_flow(picture, np.roll(picture, (0, -2), (0, 1)))
    assert flow.shape == (*size, 2), flow.shape
    np.testing.assert_allclose(np.median(flow.reshape(-1, 2), 0), [-2, 0], atol=0.3)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_mask_follows_the_backward_flow():
    mask = box((20, 20), slice(5, 10), slice(5, 10))
    back = np.zeros((20, 20, 2))
    back[..., 0], back[..., 1] = -4, -2  # everything came from 4 to the left and 2 above
    np.testing.assert_array_equal(classic.warp_mask(mask, back), box((20, 20), slice(7, 12), slice(9, 14)))


def test_holes_and_gaps_close_but_open_bays_stay():
    ring = box((20, 20), slice(4, 16), slice(4, 16)) & ~box((20, 20), slice(7, 12), slice(7, 12))
    np.testing.assert_array_equal(classic.fill_holes(ring), box((20, 20), slice(4, 16), slice(4, 16)))
    bars = box((20, 20), slice(4, 16), slice(4, 8)) | box((20, 20), slice(4, 16), slice(11, 15))
    assert len(classic.components(bars)) == 2
    assert len(classic.components(classic.closed(bars, 2))) == 1
    assert classic.components(classic.closed(bars, 0))[0].sum() == 48


def test_components_come_by_size_without_crumbs():
    mask = box((20, 20), slice(0, 2), slice(0, 2)) | box((20, 20), slice(8, 14), slice(8, 14))
    mask[19, 19] = True
    assert [int(part.sum()) for part in classic.components(mask, 2)] == [36, 4]
    assert classic.components(np.zeros((4, 4), bool)) == []


def test_iou_and_box_by_hand():
    one, other = box((10, 10), slice(0, 4), slice(0, 4)), box((10, 10), slice(2, 6), slice(0, 4))
    assert classic.mask_iou(one, other) == pytest.approx(8 / 24)
    assert classic.mask_iou(one & False, other & False) == 1.0
    assert classic.bounding_box(other) == (2, 0, 6, 4)


def test_colour_models_overlap_from_nothing_to_all():
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[:, 10:] = (30, 60, 220)
    codes = classic.lab_codes(picture)
    left = classic.colour_model(codes, box((10, 20), slice(0, 10), slice(0, 10)))
    right = classic.colour_model(codes, box((10, 20), slice(0, 10), slice(10, 20)))
    assert left.sum() == pytest.approx(1)
    assert classic.overlap(left, left) == pytest.approx(1)
    assert classic.overlap(left, right) == 0
    assert classic.colour_model(codes, np.zeros((10, 20), bool)).sum() == 0
