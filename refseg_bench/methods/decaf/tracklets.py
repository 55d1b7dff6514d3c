"""Mask tracklets of attention-prompted segmentation: suppression, consistency score, selection, union.

Pure functions of masks and scores (DecAF, arXiv 2510.19592, Sec. 3.3 and its official code, which
decides wherever the two differ). Prompting and tracking live in the segmenters; the order of the
stages lives in the method.

Axes: ``N`` candidates, ``M`` earlier tracklets, ``T`` sampled frames, ``H W`` pixels of the clip,
``h w`` cells of the attention grid. Masks are boolean; nothing here stacks float masks of full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import DataError
from refseg_bench.types import MaskTrack, union_rle

FloatThw = NDArray[np.float32]
Consistency = Literal["none", "otsu", "otsu_penalty", "mean", "mean_penalty"]

#: Pixels per block of the overlap product: bounds its float32 copies, and keeps every partial count
#: far below 2**24, where float32 stops being exact on integers.
_BLOCK = 1 << 16
#: Guards both divisions of the consistency score in the official code.
_EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class Tracklet:
    """One object found by a click and followed through the sampled frames.

    Attributes:
        frame: sampled-frame index ``t`` of the click.
        score: ``s_obj`` = predicted IoU of the clicked mask + attention value at the click, 0 … 2.
        track: the followed masks, one per sampled frame, at the clip's size.
        coverage_Thw: share of each attention cell the mask covers, 0 … 1 (:func:`coverage`).
    """

    frame: int
    score: float
    track: MaskTrack
    coverage_Thw: FloatThw


@dataclass(frozen=True)
class Suppression:
    """Outcome of one frame's suppression.

    Attributes:
        keep: indices of the surviving candidates, in descending order of score.
        delete: indices of the earlier tracklets to drop, ascending.
    """

    keep: tuple[int, ...]
    delete: tuple[int, ...]


# ── overlap ──────────────────────────────────────────────────────────────────


def iou_matrix(a_NHW: NDArray[np.bool_], b_MHW: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of every pair of masks as one matrix product of 0/1 rows.

    The counts are exact integers whatever the number of pixels.

    Args:
        a_NHW: boolean masks.
        b_MHW: boolean masks of the same height and width.

    Returns:
        ``(N, M)`` values in [0, 1]; 0 where both masks are empty.

    Raises:
        DataError: the masks differ in size.

    >>> import numpy as np
    >>> iou_matrix(np.ones((1, 1, 4), bool), np.array([[[True, True, False, False]]])).tolist()
    [[0.5]]
    """
    if a_NHW.shape[1:] != b_MHW.shape[1:]:
        raise DataError(f"Masks of size {a_NHW.shape[1:]} are compared with masks of size {b_MHW.shape[1:]}.")
    a_NP = a_NHW.reshape(len(a_NHW), -1)
    b_MP = b_MHW.reshape(len(b_MHW), -1)
    shared_NM = np.zeros((len(a_NP), len(b_MP)), np.int64)
    for start in range(0, a_NP.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        part_NM = a_NP[:, block].astype(np.float32) @ b_MP[:, block].astype(np.float32).T
        shared_NM += part_NM.astype(np.int64)
    area_N = np.count_nonzero(a_NP, axis=1)
    area_M = np.count_nonzero(b_MP, axis=1)
    either_NM = area_N[:, None] + area_M[None, :] - shared_NM
    iou_NM = np.zeros(shared_NM.shape, np.float64)
    np.divide(shared_NM, either_NM, out=iou_NM, where=either_NM > 0)
    return iou_NM


# ── suppression ──────────────────────────────────────────────────────────────


def suppress_by_overlap(
    among_NN: NDArray[np.float64],
    against_NM: NDArray[np.float64],
    scores_N: Sequence[float] | NDArray[np.floating],
    earlier_scores_M: Sequence[float] | NDArray[np.floating],
    threshold: float = 0.7,
) -> Suppression | None:
    """Two-sided suppression of one frame's candidates, given their overlaps.

    Candidates are visited by descending score (stable). Every oddity of the official code is kept,
    because each moves numbers:

    * a candidate that an earlier tracklet beats has already suppressed its neighbours;
    * a tracklet marked for deletion is still compared with the later candidates;
    * a candidate that marked one tracklet and is then beaten by another leaves its mark behind;
    * on equal scores the earlier tracklet wins;
    * when no candidate survives, every mark is forgotten.

    Args:
        among_NN: IoU among the candidates.
        against_NM: IoU of candidates with the earlier tracklets' masks in this frame.
        scores_N: ``s_obj`` of the candidates.
        earlier_scores_M: ``s_obj`` of the earlier tracklets, in their list order.
        threshold: overlaps strictly above it are duplicates.

    Returns:
        What to keep and what to delete, or ``None`` if no candidate survives.
    """
    score_N = np.asarray(scores_N, np.float64)
    score_M = np.asarray(earlier_scores_M, np.float64)
    order = [int(i) for i in np.argsort(-score_N, kind="stable")]
    suppressed: set[int] = set()
    keep: list[int] = []
    delete: set[int] = set()
    for rank, i in enumerate(order):
        if i in suppressed:
            continue
        suppressed.update(j for j in order[rank + 1 :] if among_NN[i, j] > threshold)
        beaten = False
        for k in np.flatnonzero(against_NM[i] > threshold):
            if score_N[i] > score_M[k]:
                delete.add(int(k))
            else:
                beaten = True
                break
        if not beaten:
            keep.append(i)
    return Suppression(tuple(keep), tuple(sorted(delete))) if keep else None


def suppress(
    masks_NHW: NDArray[np.bool_],
    scores_N: Sequence[float] | NDArray[np.floating],
    earlier_MHW: NDArray[np.bool_],
    earlier_scores_M: Sequence[float] | NDArray[np.floating],
    threshold: float = 0.7,
) -> Suppression | None:
    """:func:`suppress_by_overlap` from the masks themselves.

    Args:
        masks_NHW: the clicked masks of this frame.
        scores_N: their ``s_obj``.
        earlier_MHW: this frame's masks of all earlier tracklets, in list order.
        earlier_scores_M: their ``s_obj``.
        threshold: overlaps strictly above it are duplicates.

    Returns:
        What to keep and what to delete, or ``None`` if no candidate survives.

    Raises:
        DataError: masks and scores differ in number, or masks in size.
    """
    if len(masks_NHW) != len(scores_N) or len(earlier_MHW) != len(earlier_scores_M):
        raise DataError(
            f"{len(masks_NHW)} masks with {len(scores_N)} scores, and {len(earlier_MHW)} earlier masks "
            f"with {len(earlier_scores_M)} scores."
        )
    against_NM = (
        iou_matrix(masks_NHW, earlier_MHW) if len(earlier_MHW) else np.zeros((len(masks_NHW), 0), np.float64)
    )
    return suppress_by_overlap(
        iou_matrix(masks_NHW, masks_NHW), against_NM, scores_N, earlier_scores_M, threshold
    )


def earlier_masks(tracklets: Sequence[Tracklet], frame: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The masks of all tracklets in one sampled frame, ``(M, H, W)``."""
    out_MHW = np.zeros((len(tracklets), *size), np.bool_)
    for row, tracklet in enumerate(tracklets):
        mask_HW = tracklet.track.mask(frame)
        if mask_HW is not None:
            out_MHW[row] = mask_HW
    return out_MHW


def replace_deleted(
    tracklets: Sequence[Tracklet], suppression: Suppression, new: Sequence[Tracklet]
) -> list[Tracklet]:
    """The tracklets after one frame: the marked ones removed, the new ones appended in keep order."""
    gone = set(suppression.delete)
    return [tracklet for k, tracklet in enumerate(tracklets) if k not in gone] + list(new)


# ── attention consistency ────────────────────────────────────────────────────


def coverage(mask_HW: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Share of each grid cell that a mask covers: adaptive average pooling to the grid.

    Cell ``i`` of ``h`` spans the rows ``floor(i·H/h)`` to ``ceil((i+1)·H/h)`` (cells may overlap), as
    ``torch.nn.functional.adaptive_avg_pool2d`` has it; equal to it bit for bit on 0/1 masks.

    Args:
        mask_HW: boolean mask.
        grid: (h, w) of the attention grid.

    Returns:
        float32 ``(h, w)`` in [0, 1].
    """
    height, width = mask_HW.shape
    integral = np.zeros((height + 1, width + 1), np.int64)
    np.cumsum(mask_HW, axis=0, dtype=np.int64, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])
    top, bottom = _cells(height, grid[0])
    left, right = _cells(width, grid[1])
    count_hw = (
        integral[bottom[:, None], right]
        - integral[top[:, None], right]
        - integral[bottom[:, None], left]
        + integral[top[:, None], left]
    )
    if grid == (1, 1):  # torch takes the plain mean here, one division
        return count_hw.astype(np.float32) / np.float32(height * width)
    # Two divisions in float32, like torch: one division by the area rounds differently.
    rows_h1 = (bottom - top).astype(np.float32)[:, None]
    columns_w = (right - left).astype(np.float32)
    pooled: NDArray[np.float32] = count_hw.astype(np.float32) / rows_h1 / columns_w
    return pooled


def _cells(length: int, cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    index = np.arange(cells, dtype=np.int64)
    return index * length // cells, -(-(index + 1) * length // cells)


def foreground(volume_Thw: FloatThw, rule: Literal["otsu", "mean"]) -> NDArray[np.bool_]:
    """Which cells of each frame count as attended.

    Args:
        volume_Thw: fused attention in [0, 1].
        rule: ``mean``: strictly above the frame's mean; ``otsu``: strictly above the frame's Otsu
            threshold of the 8-bit (truncated) map, as OpenCV computes it.

    Returns:
        Boolean ``(T, h, w)``. A constant frame has no foreground under ``mean``; under ``otsu`` it is
        all foreground unless it is 0, because OpenCV's threshold of one grey level is 0.
    """
    if rule == "mean":
        # float64: the mean of a constant frame is then exactly its value, so it has no foreground.
        mean_T11 = volume_Thw.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
        above: NDArray[np.bool_] = volume_Thw.astype(np.float64) > mean_T11
        return above
    import cv2

    out_Thw = np.zeros(volume_Thw.shape, np.bool_)
    for row, frame_hw in enumerate(volume_Thw):
        grey_hw = (frame_hw * np.float32(255)).astype(np.uint8)
        level, _ = cv2.threshold(grey_hw, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        out_Thw[row] = grey_hw > level
    return out_Thw


def signed_attention(
    volume_Thw: FloatThw, foreground_Thw: NDArray[np.bool_], *, penalty: bool = True
) -> NDArray[np.float64]:
    """Attention on the foreground; elsewhere minus the frame's largest foreground value, or 0.

    A frame without foreground is 0 everywhere.
    """
    value_Thw = volume_Thw.astype(np.float64)
    inside_Thw = np.where(foreground_Thw, value_Thw, 0.0)
    if not penalty:
        return inside_Thw
    # Foreground values are never negative, so the masked maximum may start at 0.
    peak_T11 = inside_Thw.max(axis=(1, 2), keepdims=True)
    return np.where(foreground_Thw, value_Thw, -peak_T11)


def consistency_scores(
    coverages: Sequence[FloatThw],
    volume_Thw: FloatThw,
    *,
    rule: Literal["otsu", "mean"] = "mean",
    penalty: bool = True,
    divide_by_max: bool = True,
) -> NDArray[np.float64]:
    """Attention-consistency score of each tracklet over all sampled frames (Sec. 3.3, Eq. 8).

    Args:
        coverages: per tracklet the fractional coverage ``(T, h, w)``.
        volume_Thw: fused attention in [0, 1].
        rule: how the attended cells are chosen (:func:`foreground`).
        penalty: charge covered cells outside the foreground.
        divide_by_max: divide the positive scores by the largest of them, as the official code does
            and the paper doesn't say.

    Returns:
        ``(N,)`` scores; with ``divide_by_max`` the best positive one is 1 (short of 1e-8).

    Raises:
        DataError: a coverage isn't on the attention's grid.
    """
    front_Thw = foreground(volume_Thw, rule)
    signed_Thw = signed_attention(volume_Thw, front_Thw, penalty=penalty)
    total = float(volume_Thw.astype(np.float64)[front_Thw].sum()) + _EPSILON
    scores_N = np.empty(len(coverages), np.float64)
    for n, coverage_Thw in enumerate(coverages):
        if coverage_Thw.shape != volume_Thw.shape:
            raise DataError(
                f"Coverage {n} has the grid {coverage_Thw.shape}, the attention {volume_Thw.shape}."
            )
        scores_N[n] = float((coverage_Thw.astype(np.float64) * signed_Thw).sum()) / total
    positive_N = scores_N > 0
    if divide_by_max and positive_N.any():
        scores_N[positive_N] /= scores_N[positive_N].max() + _EPSILON
    return scores_N


def tracklet_scores(
    object_scores_N: Sequence[float] | NDArray[np.floating],
    coverages: Sequence[FloatThw],
    volume_Thw: FloatThw,
    *,
    ac: Consistency = "mean_penalty",
    divide_by_max: bool = True,
) -> NDArray[np.float64]:
    """``s_trk``: mean of attention value, predicted IoU and consistency.

    Args:
        object_scores_N: ``s_obj``, the sum of the first two.
        coverages: per tracklet the fractional coverage ``(T, h, w)``.
        volume_Thw: fused attention in [0, 1].
        ac: the consistency variant of Table 7; ``none`` leaves it out and takes the mean of the
            two remaining terms (the paper doesn't give the divisor).
        divide_by_max: see :func:`consistency_scores`.

    Returns:
        ``(N,)`` scores, at most 1 for predicted IoUs up to 1.
    """
    object_N = np.asarray(object_scores_N, np.float64)
    if ac == "none":
        return object_N / 2.0
    consistency_N = consistency_scores(
        coverages,
        volume_Thw,
        rule="otsu" if ac.startswith("otsu") else "mean",
        penalty=ac.endswith("_penalty"),
        divide_by_max=divide_by_max,
    )
    return (object_N + consistency_N) / 3.0


# ── selection and union ──────────────────────────────────────────────────────


def select(
    scores_N: Sequence[float] | NDArray[np.floating], threshold: float = 0.8, *, fallback: bool = True
) -> list[int]:
    """Indices of the tracklets strictly above the threshold, in list order.

    Args:
        scores_N: ``s_trk``.
        threshold: ``tau_trk``.
        fallback: with none above it, take the single best (the first on ties), so that a sample with
            any tracklet is never empty.
    """
    score_N = np.asarray(scores_N, np.float64)
    chosen = [int(i) for i in np.flatnonzero(score_N > threshold)]
    if not chosen and fallback and len(score_N):
        return [int(np.argmax(score_N))]
    return chosen


def group_by_frame(frames: Sequence[int]) -> dict[int, list[int]]:
    """Positions of the selected tracklets by prompt frame, frames in first-seen order.

    Each group is one propagation: the prompts of one frame are added together after a reset.

    >>> group_by_frame([3, 0, 3])
    {3: [0, 2], 0: [1]}
    """
    groups: dict[int, list[int]] = {}
    for position, frame in enumerate(frames):
        groups.setdefault(frame, []).append(position)
    return groups


def union_of_tracks(tracks: Sequence[MaskTrack], size: tuple[int, int], length: int) -> MaskTrack:
    """All objects of an expression as one track, on run lengths; "absent" everywhere without objects.

    Args:
        tracks: tracks of equal size and length.
        size: (height, width).
        length: number of frames.

    Raises:
        DataError: a track of another size or length.
    """
    if not tracks:
        return MaskTrack.empty(size, length)
    for track in tracks:
        if track.size != size or len(track) != length:
            raise DataError(
                f"A track of {len(track)} frames of {track.size} can't join {length} frames of {size}."
            )
    rles: list[bytes | None] = []
    for frame in range(length):
        present = [counts for counts in (track.rles[frame] for track in tracks) if counts is not None]
        rles.append(union_rle(present, size) if present else None)
    return MaskTrack(size, tuple(rles))
