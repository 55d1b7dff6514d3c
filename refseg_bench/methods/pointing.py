"""From one point to a track: the same step for every attention source, so that sources compare.

A method that grounds by a heat map hands in its point and the map; the segmenter, the choice among
its candidates and the propagation are the same for all of them (`control` rows of a table).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refseg_bench.methods.base import click
from refseg_bench.methods.heatmap import FloatHW, Multimask, choose
from refseg_bench.segmenters.base import Prompt, SegmenterSession, TrackingDirection
from refseg_bench.types import BoolHW, HeatPoint, MaskTrack


@dataclass(frozen=True)
class PointOptions:
    """How a point becomes masks.

    Attributes:
        multimask: which candidate to take on the prompted frame. ``best_iou`` leaves it to the
            segmenter's own tracking in a video; the others prompt the video with the mask chosen.
        index: for ``multimask=index``.
        both_ways: propagate backwards from the prompted frame, too.
    """

    multimask: Multimask = "best_iou"
    index: int = 2
    both_ways: bool = False


def track_point(
    session: SegmenterSession, point: HeatPoint, heat_HW: FloatHW, options: PointOptions
) -> tuple[MaskTrack, int | None]:
    """Segment the object under a point and follow it.

    Args:
        session: the open clip.
        point: one positive click.
        heat_HW: the heat map at the clip's size (for ``multimask=heat``).
        options: see there.

    Returns:
        The track (frames that propagation does not reach are absent), and the candidate's index
        where one was chosen here.
    """
    clip = session.clip
    prompt, chosen = click(point), None
    masks: list[BoolHW] = [np.zeros(clip.size, bool) for _ in range(len(clip))]
    if len(clip) == 1 or options.multimask != "best_iou":
        candidates = session.segment(point.frame, [prompt])[0]
        chosen, mask_HW = choose(candidates, options.multimask, options.index, heat_HW)
        masks[point.frame] = np.asarray(mask_HW, bool)
        # An empty mask points at nothing; then the click still does.
        prompt = Prompt(mask=masks[point.frame]) if masks[point.frame].any() else prompt
    if len(clip) > 1:
        direction: TrackingDirection = "both" if options.both_ways else "forward"
        for frame, found_NHW in session.propagate(point.frame, [prompt], direction=direction):
            masks[frame] = np.asarray(found_NHW[0], bool)
    return MaskTrack.from_masks(masks, clip.size), chosen


def threshold(heat_HW: NDArray[np.float32], level: float) -> BoolHW:
    """Where a map, brought to [0, 1], is at least ``level``; nowhere for a constant map."""
    low, high = float(heat_HW.min()), float(heat_HW.max())
    if high <= low:
        return np.zeros(heat_HW.shape, bool)
    return np.asarray((heat_HW - low) / (high - low) >= level)
