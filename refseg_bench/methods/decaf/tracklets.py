"""Mask tracklets of attention-prompted segmentation: suppression, consistency score, selection.

Pure functions of masks and scores (DecAF, arXiv 2510.19592, Sec. 3.3 and its official code, which
decides wherever the two differ). Prompting and tracking live in the segmenters; the order of the
stages lives in the method.

Axes: ``N`` candidates, ``M`` earlier tracklets, ``T`` sampled frames, ``H W`` pixels of the clip,
``h w`` cells of the attention grid. Masks are boolean; nothing here stacks float masks of full size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.lazy_torch import torch
from refseg_bench.errors import DataError
from refseg_bench.methods.decaf.fusion import otsu
from refseg_bench.segmenters.base import TrackedMasks
from refseg_bench.types import BoolHW, FloatTHW, decode_rle, encode_rle

Scores = Sequence[float] | NDArray[np.floating]
Consistency = Literal["none", "otsu", "otsu_penalty", "mean", "mean_penalty"]

#: Pixels per block of the overlap product: bounds its float32 copies, and keeps every partial count
#: far below 2**24, where float32 stops being exact on integers.
_BLOCK = 1 << 16
#: Guards both divisions of the consistency score in the official code.
_EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class Tracklet:
    """One object found by a click; tracked as far as someone looks, for most are suppressed soon."""

    frame: int  #: clip frame index of the click
    score: float  #: ``s_obj`` = predicted IoU of the clicked mask + attention value at the click, 0 … 2
    row: int  #: its place among the objects of ``steps``
    steps: TrackedMasks  #: the tracking of all objects kept on the frame, as the segmenter gives it
    seen: dict[int, list[bytes]]  #: their masks on the frames tracked so far, run-length encoded

    def mask(self, frame: int, size: tuple[int, int]) -> BoolHW:
        """Its mask on a sampled frame, at the clip's size."""
        while frame not in self.seen:
            index, masks_NHW = next(self.steps)
            self.seen[index] = [encode_rle(mask_HW) for mask_HW in masks_NHW]
        return decode_rle(self.seen[frame][self.row], size)


class Suppression(NamedTuple):
    """Surviving candidates in descending order of score, and earlier tracklets to drop, ascending."""

    keep: tuple[int, ...]
    delete: tuple[int, ...]


# ── overlap ──────────────────────────────────────────────────────────────────


def iou_matrix(a_NHW: NDArray[np.bool_], b_MHW: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of every pair of masks as one matrix product of 0/1 rows.

    The counts are exact integers whatever the number of pixels.

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
    a_NP, b_MP = (masks.reshape(len(masks), math.prod(masks.shape[1:])) for masks in (a_NHW, b_MHW))
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


def suppress_duplicates(
    masks_NHW: NDArray[np.bool_],
    scores_N: Scores,
    earlier_MHW: NDArray[np.bool_],
    earlier_scores_M: Scores,
    threshold: float = 0.7,
) -> Suppression | None:
    """Two-sided suppression of one frame's candidates.

    Candidates are visited by descending score (stable). Every oddity of the official code is kept,
    because each moves numbers:

    * a candidate that an earlier tracklet beats has already suppressed its neighbours;
    * a tracklet marked for deletion is still compared with the later candidates;
    * a candidate that marked one tracklet and is then beaten by another leaves its mark behind;
    * on equal scores the earlier tracklet wins;
    * when no candidate survives, every mark is forgotten.

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
    among_NN, against_NM = iou_matrix(masks_NHW, masks_NHW), iou_matrix(masks_NHW, earlier_MHW)
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


# ── attention consistency ────────────────────────────────────────────────────


def coverage(mask_HW: BoolHW, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Share of each cell of an attention grid (h, w) that a mask covers, in [0, 1].

    Cell ``i`` of ``h`` spans the rows ``floor(i·H/h)`` to ``ceil((i+1)·H/h)``: cells may overlap.
    """
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(mask_HW)[None].float(), grid)
    return np.asarray(pooled[0].numpy())


def foreground(volume_Thw: FloatTHW, rule: Literal["otsu", "mean"]) -> NDArray[np.bool_]:
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
        return np.asarray(volume_Thw > mean_T11)
    return np.stack([otsu(frame_hw) for frame_hw in volume_Thw])


def consistency_scores(
    coverages: Sequence[FloatTHW],
    volume_Thw: FloatTHW,
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
    value_Thw = volume_Thw.astype(np.float64)
    inside_Thw = np.where(front_Thw, value_Thw, 0.0)
    # Elsewhere minus the frame's peak. Attention is never negative, so that the peak may start at 0.
    peak_T11 = inside_Thw.max(axis=(1, 2), keepdims=True)
    signed_Thw = np.where(front_Thw, value_Thw, -peak_T11) if penalty else inside_Thw
    total = float(value_Thw[front_Thw].sum()) + _EPSILON
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
    object_scores_N: Scores,
    coverages: Sequence[FloatTHW],
    volume_Thw: FloatTHW,
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


# ── selection ──────────────────────────────────────────────────────


def select(scores_N: Scores, threshold: float = 0.8, *, fallback: bool = True) -> list[int]:
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
