"""Tracklet functions against a literal transcription of the published rules, and hand-made quirks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg_bench.errors import DataError
from refseg_bench.methods.decaf import tracklets as tk


def iou(a, b):
    union = np.logical_or(a, b).sum()
    return 0.0 if union == 0 else np.logical_and(a, b).sum() / union


def literal_suppression(masks, scores, earlier, earlier_scores, threshold=0.7):
    """The rule word for word: sets, a list with ``remove``, pairwise IoUs."""
    order = sorted(range(len(masks)), key=lambda i: -scores[i])  # sorted is stable
    suppressed, keep, delete = set(), [], set()
    for position, i in enumerate(order):
        if i in suppressed:
            continue
        keep.append(i)
        for j in order[position + 1 :]:
            if j not in suppressed and iou(masks[i], masks[j]) > threshold:
                suppressed.add(j)
        for k in range(len(earlier)):
            if iou(masks[i], earlier[k]) > threshold:
                if scores[i] > earlier_scores[k]:
                    delete.add(k)
                else:
                    keep.remove(i)
                    break
    if not keep:
        return None
    return keep, sorted(delete)


def boxes_to_masks(boxes, size=(12, 12)):
    out = np.zeros((len(boxes), *size), bool)
    for n, (y, x, h, w) in enumerate(boxes):
        out[n, y : y + h, x : x + w] = True
    return out


# Few distinct boxes and scores, so that duplicates, ties and chains are common.
BOX = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 9), st.integers(7, 9))
SCORE = st.sampled_from([0.4, 0.8, 0.9, 1.0, 1.3, 1.7])


@given(
    st.lists(st.tuples(BOX, SCORE), min_size=1, max_size=9),
    st.lists(st.tuples(BOX, SCORE), max_size=6),
)
def test_suppression_follows_the_literal_rule(candidates, earlier):
    masks, scores = boxes_to_masks([b for b, _ in candidates]), [s for _, s in candidates]
    old, old_scores = boxes_to_masks([b for b, _ in earlier]), [s for _, s in earlier]
    want = literal_suppression(masks, scores, old, old_scores)
    got = tk.suppress_duplicates(masks, scores, old, old_scores)
    if want is None:
        assert got is None
    else:
        assert got is not None
        assert (list(got.keep), list(got.delete)) == want


def bar(start, stop, length=100):
    """A one-row mask; IoUs are then ratios of interval lengths."""
    mask = np.zeros((1, length), bool)
    mask[0, start:stop] = True
    return mask


def test_threshold_is_strict():
    at_limit = np.stack([bar(0, 10), bar(0, 7)])  # IoU exactly 0.7
    assert tk.suppress_duplicates(at_limit, [1.0, 0.9], np.zeros((0, 1, 100), bool), []).keep == (0, 1)
    above = np.stack([bar(0, 10), bar(0, 8)])
    assert tk.suppress_duplicates(above, [1.0, 0.9], np.zeros((0, 1, 100), bool), []).keep == (0,)


def test_dropped_candidate_has_already_suppressed_its_neighbour():
    # 0 suppresses 1; then the earlier tracklet beats 0. 1 doesn't overlap the tracklet enough, yet is gone.
    masks = np.stack([bar(0, 20), bar(2, 22), bar(60, 80)])
    earlier = np.stack([bar(-0, 17)])
    assert iou(masks[1], earlier[0]) < 0.7 < iou(masks[0], earlier[0])
    got = tk.suppress_duplicates(masks, [1.5, 1.4, 1.0], earlier, [1.6])
    assert got.keep == (2,)
    assert got.delete == ()


def test_marked_tracklet_still_beats_later_candidates():
    # 0 marks tracklet 0 for deletion; 1 overlaps that tracklet but not 0, scores lower and is dropped.
    earlier = np.stack([bar(10, 30)])
    masks = np.stack([bar(6, 28), bar(13, 34)])
    assert iou(masks[0], masks[1]) < 0.7
    got = tk.suppress_duplicates(masks, [1.5, 1.1], earlier, [1.2])
    assert got.keep == (0,)
    assert got.delete == (0,)


def test_mark_survives_its_author():
    # 0 marks tracklet 0, then loses to tracklet 1: tracklet 0 is deleted all the same (2 survives).
    earlier = np.stack([bar(0, 20), bar(1, 21)])
    masks = np.stack([bar(0, 21), bar(50, 70)])
    got = tk.suppress_duplicates(masks, [1.2, 1.0], earlier, [1.1, 1.3])
    assert got.keep == (1,)
    assert got.delete == (0,)


def test_no_survivor_forgets_the_marks():
    earlier = np.stack([bar(0, 20), bar(1, 21)])
    assert tk.suppress_duplicates(np.stack([bar(0, 21)]), [1.2], earlier, [1.1, 1.3]) is None


def test_order_of_tracklets_matters():
    # The stronger tracklet first: the candidate breaks before it can mark the weaker one.
    earlier = np.stack([bar(1, 21), bar(0, 20)])
    masks = np.stack([bar(0, 21), bar(50, 70)])
    got = tk.suppress_duplicates(masks, [1.2, 1.0], earlier, [1.3, 1.1])
    assert got.keep == (1,)
    assert got.delete == ()


def test_tie_with_a_tracklet_drops_the_candidate_and_equal_scores_keep_list_order():
    assert tk.suppress_duplicates(np.stack([bar(0, 20)]), [1.2], np.stack([bar(0, 20)]), [1.2]) is None
    twins = np.stack([bar(0, 20), bar(0, 20), bar(0, 19)])
    assert tk.suppress_duplicates(twins, [1.0, 1.0, 1.0], np.zeros((0, 1, 100), bool), []).keep == (0,)


def test_empty_masks_never_overlap():
    empty = np.zeros((2, 1, 100), bool)
    assert tk.suppress_duplicates(empty, [1.0, 0.5], empty[:1], [2.0]).keep == (0, 1)


def test_numbers_of_masks_and_scores_must_agree():
    with pytest.raises(DataError, match="2 masks with 1 scores"):
        tk.suppress_duplicates(np.zeros((2, 1, 4), bool), [1.0], np.zeros((0, 1, 4), bool), [])
    with pytest.raises(DataError, match="compared with masks of size"):
        tk.iou_matrix(np.zeros((1, 2, 4), bool), np.zeros((1, 4, 2), bool))


def test_iou_matrix_equals_pairs_across_blocks():
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 700, 900)) > 0.4, rng.random((3, 700, 900)) > 0.6
    a[4] = b[2] = False
    got = tk.iou_matrix(a, b)
    want = [[iou(x, y) for y in b] for x in a]
    assert np.array_equal(got, np.array(want))  # same integers, same division: no tolerance


@pytest.mark.parametrize("size", [(480, 854), (37, 23), (7, 9), (14, 26)])
@pytest.mark.parametrize("grid", [(28, 52), (5, 7), (1, 1)])
def test_coverage_is_torch_adaptive_pooling_bit_for_bit(size, grid):
    torch = pytest.importorskip("torch")
    mask = np.random.default_rng(1).random(size) > 0.5
    want = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), grid)[0].numpy()
    got = tk.coverage(mask, grid)
    assert got.dtype == np.float32
    assert np.array_equal(got, want)


def literal_consistency(coverages, volume, divide=True):
    numerators = []
    foreground_total = 0.0
    for t in range(len(volume)):
        mean = float(np.mean(volume[t], dtype=np.float64))
        front = [v for v in volume[t].ravel().tolist() if v > mean]
        foreground_total += sum(front)
    for cover in coverages:
        total = 0.0
        for t in range(len(volume)):
            mean = float(np.mean(volume[t], dtype=np.float64))
            front = [v for v in volume[t].ravel().tolist() if v > mean]
            worst = -max(front) if front else 0.0
            for v, c in zip(volume[t].ravel().tolist(), cover[t].ravel().tolist(), strict=True):
                total += c * (v if v > mean else worst)
        numerators.append(total)
    scores = [n / (foreground_total + 1e-8) for n in numerators]
    best = max((s for s in scores if s > 0), default=None)
    if divide and best is not None:
        scores = [s / (best + 1e-8) if s > 0 else s for s in scores]
    return scores


@pytest.mark.parametrize("divide", [True, False])
def test_consistency_follows_the_literal_rule(divide):
    rng = np.random.default_rng(2)
    volume = rng.random((4, 5, 6)).astype(np.float32)
    volume[2] = 0.3  # a constant frame has no foreground and no penalty
    coverages = [rng.random(volume.shape).astype(np.float32) for _ in range(3)]
    coverages.append((volume > 0.6).astype(np.float32))
    got = tk.consistency_scores(coverages, volume, divide_by_max=divide)
    assert got == pytest.approx(literal_consistency(coverages, volume, divide), rel=1e-9)
    assert (got > 0).any()
    assert (got < 0).any()


def test_constant_frame_is_neutral_under_mean_and_foreground_under_otsu():
    for value in (0.1, 0.3, 1.0):
        volume = np.full((2, 3, 3), value, np.float32)
        assert not tk.foreground(volume, "mean").any()
        assert tk.foreground(volume, "otsu").all()
        assert tk.consistency_scores([np.ones_like(volume)], volume).tolist() == [0.0]
    assert not tk.foreground(np.zeros((1, 3, 3), np.float32), "otsu").any()


def test_positive_tracklets_ignore_the_scale_of_the_attention():
    rng = np.random.default_rng(3)
    volume = rng.random((3, 6, 6)).astype(np.float32)
    coverages = [(volume > level).astype(np.float32) for level in (0.5, 0.7, 0.9)]
    base = tk.tracklet_scores([1.2, 1.3, 1.4], coverages, volume)
    half = tk.tracklet_scores([1.2, 1.3, 1.4], coverages, volume * np.float32(0.5))
    assert half == pytest.approx(base, abs=1e-6)
    assert tk.consistency_scores(coverages, volume).max() == pytest.approx(1.0, abs=1e-6)


def test_variants_of_the_consistency_ablation():
    volume = np.zeros((1, 2, 4), np.float32)
    volume[0, 0] = [1.0, 0.5, 0.2, 0.1]
    cover = np.zeros_like(volume)
    cover[0, :, :2] = 1.0  # both foreground cells of row 0, two background cells of row 1
    s_obj = [1.5]
    assert tk.tracklet_scores(s_obj, [cover], volume, ac="none") == pytest.approx([0.75])
    # mean 0.225: foreground 1.0 and 0.5; Otsu separates the same two cells.
    for ac in ("mean", "otsu"):
        free = tk.tracklet_scores(s_obj, [cover], volume, ac=ac, divide_by_max=False)
        assert free == pytest.approx([(1.5 + 1.0) / 3])
        charged = tk.tracklet_scores(s_obj, [cover], volume, ac=f"{ac}_penalty", divide_by_max=False)
        assert charged == pytest.approx([(1.5 + (1.5 - 2.0) / 1.5) / 3])


def test_selection_is_strict_with_first_best_fallback():
    assert tk.select([0.81, 0.8, 0.9], 0.8) == [0, 2]
    assert tk.select([0.5, 0.7, 0.7], 0.8) == [1]
    assert tk.select([-0.5, -0.2], 0.8) == [1]
    assert tk.select([0.5], 0.8, fallback=False) == []
    assert tk.select([], 0.8) == []
