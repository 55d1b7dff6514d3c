"""Grounding from the words alone: no model, no training; the honest floor of every table.

1. *Things*: regions that stand out from the colours along the border, split by colour name, are
   found on a few frames and tracked by the segmenter; all expressions of a clip share them.
2. Each thing is measured: colours, surface texture, size, place, path with the camera's removed, when
   it is seen.
3. The words (:mod:`words`) score the things; a heat map shows saliency x colour likelihood x
   direction ramp, weighted by the score of the thing a pixel belongs to.
4. The best thing - or every good one, or none - is the answer.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from refseg_bench.config.schema import refuse_outside
from refseg_bench.errors import RefsegError
from refseg_bench.methods.base import Method, evenly
from refseg_bench.methods.lexical.things import (
    ACHROMATIC,
    Float,
    MeasuredClip,
    Region,
    border_contrast,
    camera_path,
    colour_names,
    measure,
)
from refseg_bench.methods.lexical.words import COLOURS, Query, parse
from refseg_bench.methods.spatial import SpatialBias, biased
from refseg_bench.segmenters import classic
from refseg_bench.segmenters.base import Prompt, Segmenter, SegmenterSession
from refseg_bench.types import BoolHW, Clip, Expression, Grounding, HeatPoint, MaskTrack

_AHEAD = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0), "top": (-1, 0), "bottom": (1, 0)}


@dataclass
class Lexical(Method):
    """Score tracked regions by the expression's words."""

    knows: ClassVar[str] = "colours, sizes, places and motion that the words name; no model"
    segmenter: Segmenter  #: tracks the regions
    working_size: int = 256  #: longest side of the frames that are measured, in pixels
    frames: int = 128  #: evenly spaced frames that are measured, at most; things are tracked through all
    seed_frames: int = 5  #: evenly spaced ones of these, on which things are looked for
    max_things: int = 10  #: most things tracked per clip
    min_area: float = 0.004  #: smallest thing, as a share of the frame
    closing: float = 0.022  #: gaps (stripes, dots) bridged, as a share of the longest side
    salient: float = 30.0  #: least Lab distance (8-bit units) from the border's colours
    colour_spread: float = 22.0  #: softness of colour names, in Lab units
    plain_energy: float = 0.1  #: gradient energy below which a surface is plain
    still_path: float = 0.08  #: a path shorter than this share of the frame's diagonal is no motion
    absent_below: float = 0.25  #: if the best score is lower, the answer is "absent"
    plural_share: float = 0.5  #: with a plural, every thing that scores this share of the best is meant
    alike: float = 0.3  #: a superlative compares the things that score this share of the best without it
    spatial: SpatialBias = field(default_factory=SpatialBias)  #: the direction rule applied to the heat map

    def __post_init__(self) -> None:
        refuse_outside(self, 16, math.inf, "working_size")
        refuse_outside(self, 1, math.inf, "frames", "seed_frames", "max_things")

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """Find and measure the things once, then answer each expression."""
        started = time.perf_counter()
        with self.segmenter.open(clip) as session:
            scene = self._look(clip, session)
            shared = (time.perf_counter() - started) / len(expressions)
            for expression in expressions:
                started = time.perf_counter()
                found = self._ground(scene, expression)
                spent = {"things": shared, "words": time.perf_counter() - started}
                yield replace(found, seconds=spent)

    def _look(self, clip: Clip, session: SegmenterSession) -> MeasuredClip:
        shape = classic.working_shape(clip.size, self.working_size)
        measured = tuple(evenly(len(clip), self.frames))
        whole = (clip.load([index])[0] for index in measured)
        frames = np.stack([cv2.resize(frame, shape[::-1], interpolation=cv2.INTER_AREA) for frame in whole])
        names_THWK = colour_names(frames, self.colour_spread)
        saliency = border_contrast(frames)
        seeds = [
            (measured[i], self._seeds(names_THWK[i], saliency[i]))
            for i in evenly(len(measured), self.seed_frames)
        ]
        tracks: list[MaskTrack] = []
        for frame, regions in sorted(seeds, key=lambda pair: -len(pair[1])):  # where they stand apart, first
            for region in regions:
                seed = classic.resize_mask(region, clip.size)
                known = [mask for mask in (track.mask(frame) for track in tracks) if mask is not None]
                if len(tracks) < self.max_things and not any(_shares(seed, mask) for mask in known):
                    moved = ((t, found[0]) for t, found in session.propagate(frame, [Prompt(mask=seed)]))
                    tracks.append(MaskTrack.gather(moved, clip.size, [None] * len(clip)))
        camera_T2 = camera_path(frames)
        things = [
            measure(track, measured, frames, names_THWK, camera_T2, self.plain_energy) for track in tracks
        ]
        return MeasuredClip(clip, measured, saliency, names_THWK, things)

    def _seeds(self, names_HWK: Float, saliency_HW: Float) -> list[BoolHW]:
        """Regions of one colour name that stand out; white stripes of a red thing are part of it."""
        smallest = max(round(self.min_area * saliency_HW.size), 4)
        reach = max(round(self.closing * max(saliency_HW.shape)), 1)
        out, name_HW = saliency_HW >= self.salient, names_HWK.argmax(-1)
        regions: list[BoolHW] = []
        order = [k for k in range(len(COLOURS)) if k not in ACHROMATIC] + list(ACHROMATIC)
        for group in (order[: -len(ACHROMATIC)], order[-len(ACHROMATIC) :]):
            filled = (classic.closed(np.asarray(out & (name_HW == k)), reach) for k in group)
            found = [part for region in filled for part in classic.components(region, smallest)]
            for part in sorted(found, key=lambda part: -int(part.sum())):
                if not any(_shares(part, region) for region in regions):
                    regions.append(part)
        return regions

    def _ground(self, scene: MeasuredClip, expression: Expression) -> Grounding:
        clip, text = scene.clip, expression.text
        # A number or a mark is ignored as any word that isn't known; another script is no expression to it.
        queries = parse(text) or (Query(),)
        if not re.search("[a-zA-Z]", text) and re.search(r"[^\W\d_]", text):
            raise RefsegError("The expression has no word.", hint="This method reads words of Latin letters.")
        scores_QN = np.array([self._scores(query, scene.things) for query in queries]).reshape(
            len(queries), -1
        )
        chosen = sorted({k for q, query in enumerate(queries) for k in self._choose(query, scores_QN[q])})
        best_N = scores_QN.max(0, initial=0.0)
        heat = self._heat(scene, queries, text, best_N)
        point = None
        if chosen:
            inside = np.where(np.any([scene.things[k].masks_THW for k in chosen], axis=0), heat, -1)
            frame, row, column = np.unravel_index(int(inside.argmax()), inside.shape)
            y, x = (row + 0.5) / heat.shape[1], (column + 0.5) / heat.shape[2]
            point = HeatPoint(scene.frames[int(frame)], float(y), float(x), float(inside.max()))
        return Grounding(
            expression,
            MaskTrack.union([scene.things[k].track for k in chosen], clip.size, len(clip)),
            point=point,
            no_target=not chosen,
            maps={"heat": heat},
            map_frames={"heat": scene.frames},
            details={"scores": [round(float(score), 4) for score in best_N], "chosen": chosen},
        )

    def _heat(
        self, scene: MeasuredClip, queries: Sequence[Query], text: str, score_N: NDArray[np.floating]
    ) -> Float:
        heat = np.tanh(scene.saliency_THW / (2 * self.salient))
        named = [COLOURS.index(name) for query in queries for name in query.colours]
        if named:
            heat = heat * scene.names_THWK[..., named].max(-1)
        heat = (
            cv2.GaussianBlur(heat.transpose(1, 2, 0), (0, 0), 2.0)
            .reshape(*heat.shape[1:], -1)
            .transpose(2, 0, 1)
        )
        belief = np.full(heat.shape, 0.05, np.float32)
        for thing, score in zip(scene.things, score_N, strict=True):
            np.maximum(belief, thing.masks_THW * np.float32(score), out=belief)
        heat = heat * belief
        if not any(query.heading for query in queries):
            heat = biased(heat, text, self.spatial)
        return np.asarray(heat / max(float(heat.max()), 1e-6), np.float32)

    def _scores(self, query: Query, things: Sequence[Region]) -> NDArray[np.float64]:
        """How well each thing fits, in [0, 1]: looks first, then what compares it with its like."""
        score = np.array([_looks(query, thing) for thing in things])
        if not things:
            return score
        if query.odd:
            score *= [_oddness(query.odd, k, things) for k in range(len(things))]
        if query.heading:
            score *= [_heading(query.heading, thing, self.still_path) for thing in things]
        if query.event:
            score *= [_event(query.event, k, things) for k in range(len(things))]
        if query.relation is not None:
            side, other = query.relation
            others = self._scores(other, things)
            anchor = int(others.argmax())
            score *= np.array([_beyond(side, things[anchor], thing) for thing in things])
            score[anchor] = 0.0
            if others[anchor] < self.absent_below:
                score[:] = 0.0
        alike = score >= self.alike * score.max()  # "the big red one": big among the red ones
        for side in query.sides:
            score *= _rank(np.array([_along(side, thing) for thing in things]), alike)
        if query.size:
            area = np.array([thing.area for thing in things])
            score *= area / area[alike].max() if query.size > 0 else np.minimum(area[alike].min() / area, 1.0)
        return score

    def _choose(self, query: Query, score_N: NDArray[np.float64]) -> list[int]:
        best = score_N.max(initial=0.0)
        if best < self.absent_below:
            return []
        order = [int(k) for k in np.argsort(-score_N, kind="stable")]
        if query.number is not None:
            return [k for k in order[: query.number] if score_N[k] > 0]
        return [k for k in order if score_N[k] >= self.plural_share * best] if query.plural else order[:1]


# ── how words score things ───────────────────────────────────────────────────


def _shares(one: BoolHW, other: BoolHW) -> bool:
    """Whether two regions are the same thing: half of the smaller lies in the larger."""
    return int((one & other).sum()) * 2 > min(int(one.sum()), int(other.sum()))


def _looks(query: Query, thing: Region) -> float:
    """Geometric mean of what colour and texture words say, so that more words don't mean a lower score."""
    facts = [
        max(read[name] for name in names)
        for read, names in ((thing.colours, query.colours), (thing.textures, query.textures))
        if names
    ]
    facts += [1 - thing.colours[name] for name in query.not_colours]
    facts += [1 - thing.textures[name] for name in query.not_textures]
    return math.prod(facts) ** (1 / max(len(facts), 1))


def _oddness(kind: str, k: int, things: Sequence[Region]) -> float:
    """How unlike its most similar other thing a thing is, in colours or texture."""
    read = [list((thing.colours if kind == "colour" else thing.textures).values()) for thing in things]
    return min(
        (float(np.abs(np.subtract(read[k], o)).sum()) / 2 for j, o in enumerate(read) if j != k), default=0.0
    )


def _heading(word: str, thing: Region, still: float) -> float:
    """How clearly a thing moves that way; a glimpse of it (under a third of the clip) proves little."""
    path, known = thing.path, min(3 * float((thing.seen_T > 0.5).mean()), 1.0)
    length = math.hypot(*path)
    moves = min(length / (2 * still), 1.0)
    if word in ("still", "moving"):
        return known * (1 - moves if word == "still" else moves)
    along = path[0] * _AHEAD[word][0] + path[1] * _AHEAD[word][1]
    return known * moves * max(along / max(length, 1e-9), 0.0)


def _along(side: str, thing: Region) -> float:
    if side == "middle":
        return 1 - 2 * abs(thing.centre[1] - 0.5)
    return thing.centre[0] * _AHEAD[side][0] + thing.centre[1] * _AHEAD[side][1]


def _rank(value_N: NDArray[np.float64], alike_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values stretched to [0, 1] between the least and the most of the things that fit so far."""
    low, high = value_N[alike_N].min(), value_N[alike_N].max()
    return np.clip((value_N - low) / (high - low), 0, 1) if high > low else np.ones_like(value_N)


def _beyond(side: str, anchor: Region, thing: Region) -> float:
    """1 straight on that side of the anchor, falling to 0 at right angles to it."""
    dy, dx = thing.centre[0] - anchor.centre[0], thing.centre[1] - anchor.centre[1]
    ahead = dy * _AHEAD[side][0] + dx * _AHEAD[side][1]
    return max(ahead / max(math.hypot(dy, dx), 1e-9), 0.0)


def _event(word: str, k: int, things: Sequence[Region]) -> float:
    """How clearly a thing comes, goes, returns, hides or covers, from the share of it that is seen."""
    seen = np.minimum(things[k].seen_T, 1.0)
    gone = int(seen.argmin())
    dip = float(min(seen[: gone + 1].max(), seen[gone:].max()) - seen[gone])  # seen before and after
    near = bool(things[k].at_border_T[max(gone - 2, 0) : gone + 3].any())
    if word == "returns":
        return dip * (1.0 if near else 0.3)
    if word == "hidden":
        return dip * (0.3 if near else 1.0)
    if word in ("leaves", "enters"):
        change = float(seen[:2].mean() - seen[-2:].mean())
        return max(change if word == "leaves" else -change, 0.0)
    # covers: how much another thing hides while this one is at its place
    hides = [
        _event("hidden", j, things) * _close_by(things[k], other) for j, other in enumerate(things) if j != k
    ]
    return max(hides, default=0.0)


def _close_by(thing: Region, hidden: Region) -> float:
    """1 if the thing stands where the other was, at the frame where that is seen least."""
    gone = int(hidden.seen_T.argmin())
    last = max((t for t in range(gone) if hidden.seen_T[t] > 0.5), default=gone)
    if not hidden.masks_THW[last].any():
        return 0.0
    where = classic.dilate(hidden.masks_THW[last], 5)
    return min(float((thing.masks_THW[gone] & where).sum()) / (0.5 * float(where.sum())), 1.0)
