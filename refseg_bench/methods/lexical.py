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
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from refseg_bench.methods.spatial import SpatialBias, biased
from refseg_bench.methods.words import COLOURS, TEXTURES, Query, parse
from refseg_bench.segmenters import classic
from refseg_bench.segmenters.base import Prompt, Segmenter, SegmenterSession
from refseg_bench.types import BoolHW, Clip, Expression, Grounding, HeatPoint, MaskTrack

#: A typical RGB value of each colour name.
_RGB = {
    "red": (200, 30, 40), "orange": (240, 130, 20), "yellow": (235, 215, 40), "green": (40, 150, 60),
    "blue": (40, 90, 200), "purple": (130, 50, 160), "pink": (240, 150, 180), "brown": (110, 70, 40),
    "black": (20, 20, 20), "white": (240, 240, 240), "grey": (128, 128, 128),
}  # fmt: skip
_ACHROMATIC = tuple(COLOURS.index(name) for name in ("black", "white", "grey"))
_AHEAD = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0), "top": (-1, 0), "bottom": (1, 0)}
Float = NDArray[np.float32]


@dataclass
class Lexical:
    """Score tracked regions by the expression's words.

    Attributes:
        segmenter: tracks the regions.
        working_size: longest side of the frames that are measured, in pixels.
        seed_frames: evenly spaced frames on which things are looked for.
        max_things: most things tracked per clip.
        min_area: smallest thing, as a share of the frame.
        closing: gaps (stripes, dots) bridged, as a share of the longest side.
        salient: least Lab distance (8-bit units) from the border's colours.
        colour_spread: softness of colour names, in Lab units.
        plain_energy: gradient energy below which a surface is plain.
        still_path: a path shorter than this share of the frame's diagonal is no motion.
        absent_below: if the best score is lower, the answer is "absent".
        plural_share: with a plural, every thing that scores this share of the best is meant.
        alike: a superlative compares the things that score this share of the best without it.
        spatial: the direction rule applied to the heat map.
    """

    segmenter: Segmenter
    working_size: int = 256
    seed_frames: int = 5
    max_things: int = 10
    min_area: float = 0.004
    closing: float = 0.022
    salient: float = 30.0
    colour_spread: float = 22.0
    plain_energy: float = 0.1
    still_path: float = 0.08
    absent_below: float = 0.2
    plural_share: float = 0.5
    alike: float = 0.3
    spatial: SpatialBias = field(default_factory=SpatialBias)

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """Find and measure the things once, then answer each expression."""
        started = time.perf_counter()
        with self.segmenter.open(clip) as session:
            scene = self._look(clip, session)
            shared = (time.perf_counter() - started) / len(expressions)
            for expression in expressions:
                started = time.perf_counter()
                grounding = self._answer(scene, expression)
                spent = {"things": shared, "words": time.perf_counter() - started}
                yield Grounding(**{**vars(grounding), "seconds": spent})

    def _look(self, clip: Clip, session: SegmenterSession) -> Scene:
        shape = classic.working_shape(clip.size, self.working_size)
        frames = np.stack(
            [cv2.resize(clip.load([i])[0], shape[::-1], interpolation=cv2.INTER_AREA) for i in range(len(clip))]
        )
        names_THWK = colour_names(frames, self.colour_spread)
        saliency = border_contrast(frames)
        seeds = [
            (i, self._seeds(names_THWK[i], saliency[i]))
            for i in sorted({round(t) for t in np.linspace(0, len(clip) - 1, self.seed_frames).tolist()})
        ]
        tracks: list[MaskTrack] = []
        for frame, regions in sorted(seeds, key=lambda pair: -len(pair[1])):  # where they stand apart, first
            for region in regions:
                whole = classic.resize_mask(region, clip.size)
                known = [mask for mask in (track.mask(frame) for track in tracks) if mask is not None]
                if len(tracks) < self.max_things and not any(_shares(whole, mask) for mask in known):
                    masks: list[BoolHW | None] = [None] * len(clip)
                    for index, mask_NHW in session.propagate(frame, [Prompt(mask=whole)]):
                        masks[index] = mask_NHW[0]
                    tracks.append(MaskTrack.from_masks(masks, clip.size))
        camera_T2 = camera_path(frames)
        things = [measure(track, frames, names_THWK, camera_T2, self.plain_energy) for track in tracks]
        return Scene(clip, saliency, names_THWK, things)

    def _seeds(self, names_HWK: Float, saliency_HW: Float) -> list[BoolHW]:
        """Regions of one colour name that stand out; white stripes of a red thing are part of it."""
        smallest = max(round(self.min_area * saliency_HW.size), 4)
        reach = max(round(self.closing * max(saliency_HW.shape)), 1)
        out, name_HW = saliency_HW >= self.salient, names_HWK.argmax(-1)
        regions: list[BoolHW] = []
        order = [k for k in range(len(COLOURS)) if k not in _ACHROMATIC] + list(_ACHROMATIC)
        for group in (order[: -len(_ACHROMATIC)], order[-len(_ACHROMATIC) :]):
            found = [
                part
                for k in group
                for part in classic.components(classic.closed(np.asarray(out & (name_HW == k)), reach), smallest)
            ]
            for part in sorted(found, key=lambda part: -int(part.sum())):
                if not any(_shares(part, region) for region in regions):
                    regions.append(part)
        return regions

    def _answer(self, scene: Scene, expression: Expression) -> Grounding:
        clip, queries = scene.clip, parse(expression.text)
        scores_QN = np.array([self._scores(query, scene.things) for query in queries]).reshape(len(queries), -1)
        chosen = sorted({k for q, query in enumerate(queries) for k in self._choose(query, scores_QN[q])})
        best_N = scores_QN.max(0, initial=0.0)
        heat = self._heat(scene, queries, expression.text, best_N)
        union: list[BoolHW] = [np.zeros(clip.size, bool) for _ in range(len(clip))]
        for k in chosen:
            for t, mask in enumerate(scene.things[k].track.masks()):
                if mask is not None:
                    union[t] |= mask
        point = None
        if chosen:
            inside = heat * np.any([scene.things[k].masks_THW for k in chosen], axis=0)
            frame, row, column = np.unravel_index(int(inside.argmax()), inside.shape)
            y, x = (row + 0.5) / heat.shape[1], (column + 0.5) / heat.shape[2]
            point = HeatPoint(int(frame), float(y), float(x), float(inside.max()))
        return Grounding(
            expression,
            MaskTrack.from_masks(union, clip.size),
            point=point,
            no_target=not chosen,
            maps={"heat": heat},
            map_frames={"heat": tuple(range(len(clip)))},
            details={"scores": [round(float(score), 4) for score in best_N], "chosen": chosen},
        )

    def _heat(self, scene: Scene, queries: Sequence[Query], text: str, score_N: NDArray[np.floating]) -> Float:
        heat = np.tanh(scene.saliency_THW / (2 * self.salient))
        named = [COLOURS.index(name) for query in queries for name in query.colours]
        if named:
            heat = heat * scene.names_THWK[..., named].max(-1)
        heat = cv2.GaussianBlur(heat.transpose(1, 2, 0), (0, 0), 2.0).reshape(*heat.shape[1:], -1).transpose(2, 0, 1)
        belief = np.full(heat.shape, 0.05, np.float32)
        for thing, score in zip(scene.things, score_N, strict=True):
            np.maximum(belief, thing.masks_THW * np.float32(score), out=belief)
        heat = biased(heat * belief, text, self.spatial) if not any(q.heading for q in queries) else heat * belief
        return (heat / max(float(heat.max()), 1e-6)).astype(np.float32)

    def _scores(self, query: Query, things: Sequence[Thing]) -> NDArray[np.float64]:
        """How well each thing fits, in [0, 1]: looks first, then what compares it with its like."""
        score = np.array([_looks(query, thing) for thing in things])
        if not things:
            return score
        if query.odd:
            score *= [_oddness(query.odd, k, things) for k in range(len(things))]
        if query.heading:
            score *= [_heading(query.heading, thing.path, self.still_path) for thing in things]
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


# ── what is measured ─────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Thing:
    """A tracked region and what can be measured of it.

    Attributes:
        track: its masks at the clip's size; masks_THW: at working size.
        colours: share of each colour name among its pixels with a hue (grey tones: among all pixels).
        textures: how plain, striped, dotted, checked its surface is, each in [0, 1].
        area: its usual area as a share of the frame.
        seen_T: its area over its usual area, per frame.
        centre: mean (y, x) in [0, 1] over the frames where it is seen.
        path: (y, x) displacement from first to last sight, camera removed, in frame diagonals.
        at_border_T: whether it touches the frame's border.
    """

    track: MaskTrack
    masks_THW: NDArray[np.bool_]
    colours: dict[str, float]
    textures: dict[str, float]
    area: float
    seen_T: NDArray[np.float64]
    centre: tuple[float, float]
    path: tuple[float, float]
    at_border_T: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scene:
    """A clip's things and pixel cues: saliency in Lab units, share of each colour name."""

    clip: Clip
    saliency_THW: Float
    names_THWK: Float
    things: list[Thing]


def colour_names(frames_THWC: NDArray[np.uint8], spread: float) -> Float:
    """Share of each name of :data:`COLOURS` per pixel: a softmax of Lab distances, lightness at half weight."""
    weight = np.array([0.5, 1.0, 1.0], np.float32)
    swatches = np.array([[_RGB[name] for name in COLOURS]], np.uint8)
    anchors = cv2.cvtColor(swatches, cv2.COLOR_RGB2LAB)[0].astype(np.float32) * weight
    out = np.empty((*frames_THWC.shape[:3], len(COLOURS)), np.float32)
    for t, frame in enumerate(frames_THWC):
        lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.float32) * weight
        square = ((lab[:, :, None] - anchors) ** 2).sum(-1)
        likely = np.exp(-(square - square.min(-1, keepdims=True)) / (2 * spread**2))
        out[t] = likely / likely.sum(-1, keepdims=True)
    return out


def border_contrast(frames_THWC: NDArray[np.uint8]) -> Float:
    """Lab distance of every pixel to the nearest of the colours that fill the border of the clip's frames.

    The boundary prior of saliency: what runs along the border is background. Colours that make up
    less than a sixth of the border may be objects that touch it, and don't count.
    """
    lab = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2LAB) for frame in frames_THWC]).astype(np.float32)
    edge = np.concatenate([lab[:, [0, 1, -2, -1]].reshape(-1, 3), lab[:, :, [0, 1, -2, -1]].reshape(-1, 3)])
    cv2.setRNGSeed(0)  # k-means draws its starts
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    groups = min(4, len(edge))
    _, label, centres = cv2.kmeans(edge, groups, None, stop, 2, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    shares = np.bincount(label.ravel(), minlength=groups) / len(edge)
    kept = centres[shares >= min(1 / 6, float(shares.max()))]
    distance = [np.linalg.norm(lab - centre, axis=-1) for centre in kept]
    return np.asarray(np.min(distance, axis=0), np.float32)


def camera_path(frames_THWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Cumulative (y, x) shift of the scene by the camera, in pixels: the median flow between frames."""
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_THWC]
    steps = [np.zeros(2)]
    for one, two in zip(gray[:-1], gray[1:], strict=True):
        flow = classic.dense_flow(np.asarray(one, np.uint8), np.asarray(two, np.uint8))
        steps.append(np.median(flow.reshape(-1, 2), axis=0)[::-1].astype(np.float64))
    return np.cumsum(steps, axis=0)


def texture_of(gray_HW: NDArray[np.uint8], mask_HW: BoolHW, plain_energy: float) -> NDArray[np.float64]:
    """How plain, striped, dotted, checked a surface is, from the harmonics of its gradient orientation.

    Stripes have one gradient orientation (second harmonic near 1), checks two at right angles (second
    near 0, fourth near 1), dots all (both near 0); a plain surface has hardly any gradient.
    """
    inside = classic.erode(mask_HW, 3)
    if inside.sum() < 20:
        return np.full(len(TEXTURES), 1 / len(TEXTURES))
    soft = cv2.GaussianBlur(gray_HW, (0, 0), 1.0).astype(np.float32) / 255
    gradient = cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=0.25) + 1j * cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=0.25)
    g = gradient[inside]
    power = np.abs(g) ** 2
    energy = float(np.sqrt(power.mean()))
    total = float(power.sum()) + 1e-9
    second = float(np.abs((g**2).sum()) / total)
    fourth = float(np.abs((g**4 / (power + 1e-9)).sum()) / total)
    rough = 1 / (1 + math.exp(-8 * (energy / plain_energy - 1)))
    share = np.array([1 - rough, rough * second, rough * (1 - second) * (1 - fourth), rough * (1 - second) * fourth])
    return np.asarray(share)


def measure(
    track: MaskTrack, frames_THWC: NDArray[np.uint8], names_THWK: Float, camera_T2: NDArray[np.float64], plain: float
) -> Thing:
    """Read a tracked region's attributes off the frames."""
    shape = frames_THWC.shape[1:3]
    blank = np.zeros(shape, bool)
    masks = np.stack([blank if mask is None else classic.resize_mask(mask, shape) for mask in track.masks()])
    areas = masks.sum((1, 2)).astype(np.float64)
    usual = max(float(np.percentile(areas[areas > 0], 75)) if areas.any() else 0.0, 1.0)
    clear = np.flatnonzero(areas >= 0.7 * usual)  # partly hidden, a thing looks like something else
    share_K = names_THWK[clear][masks[clear]].mean(0) if len(clear) else np.zeros(len(COLOURS))
    hued = max(float(1 - share_K[list(_ACHROMATIC)].sum()), 0.15)
    colours = {
        name: min(float(share_K[k] / (1 if k in _ACHROMATIC else hued)), 1.0) for k, name in enumerate(COLOURS)
    }
    gray = [np.asarray(cv2.cvtColor(frames_THWC[t], cv2.COLOR_RGB2GRAY), np.uint8) for t in clear[:6]]
    kinds = np.mean([texture_of(g, masks[t], plain) for g, t in zip(gray, clear, strict=False)] or [[0.25] * 4], axis=0)
    centres = np.array([np.argwhere(masks[t]).mean(0) for t in clear] or [[0.0, 0.0]])
    steady = centres - camera_T2[clear] if len(clear) else centres
    path = (steady[-1] - steady[0]) / math.hypot(*shape)
    middle = (centres.mean(0) + 0.5) / shape
    edge = [bool(m[[0, 1, -2, -1]].any() or m[:, [0, 1, -2, -1]].any()) for m in masks]
    return Thing(
        track, masks, colours, dict(zip(TEXTURES, kinds.tolist(), strict=True)), usual / blank.size,
        areas / usual, (float(middle[0]), float(middle[1])), (float(path[0]), float(path[1])), np.array(edge),
    )  # fmt: skip


# ── how words score things ───────────────────────────────────────────────────


def _shares(one: BoolHW, other: BoolHW) -> bool:
    """Whether two regions are the same thing: half of the smaller lies in the larger."""
    return int((one & other).sum()) * 2 > min(int(one.sum()), int(other.sum()))


def _looks(query: Query, thing: Thing) -> float:
    """Geometric mean of what colour and texture words say, so that more words don't mean a lower score."""
    facts = [max(read[name] for name in names)
             for read, names in ((thing.colours, query.colours), (thing.textures, query.textures)) if names]
    facts += [1 - thing.colours[name] for name in query.not_colours]
    facts += [1 - thing.textures[name] for name in query.not_textures]
    return math.prod(facts) ** (1 / max(len(facts), 1))


def _oddness(kind: str, k: int, things: Sequence[Thing]) -> float:
    """How unlike its most similar other thing a thing is, in colours or texture."""
    read = [list((thing.colours if kind == "colour" else thing.textures).values()) for thing in things]
    return min((float(np.abs(np.subtract(read[k], o)).sum()) / 2 for j, o in enumerate(read) if j != k), default=0.0)


def _heading(word: str, path: tuple[float, float], still: float) -> float:
    length = math.hypot(*path)
    moves = min(length / (2 * still), 1.0)
    if word in ("still", "moving"):
        return 1 - moves if word == "still" else moves
    along = path[0] * _AHEAD[word][0] + path[1] * _AHEAD[word][1]
    return moves * max(along / max(length, 1e-9), 0.0)


def _along(side: str, thing: Thing) -> float:
    if side == "middle":
        return 1 - 2 * abs(thing.centre[1] - 0.5)
    return thing.centre[0] * _AHEAD[side][0] + thing.centre[1] * _AHEAD[side][1]


def _rank(value_N: NDArray[np.float64], alike_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values stretched to [0, 1] between the least and the most of the things that fit so far."""
    low, high = value_N[alike_N].min(), value_N[alike_N].max()
    return np.clip((value_N - low) / (high - low), 0, 1) if high > low else np.ones_like(value_N)


def _beyond(side: str, anchor: Thing, thing: Thing) -> float:
    """1 straight on that side of the anchor, falling to 0 at right angles to it."""
    dy, dx = thing.centre[0] - anchor.centre[0], thing.centre[1] - anchor.centre[1]
    ahead = dy * _AHEAD[side][0] + dx * _AHEAD[side][1]
    return max(ahead / max(math.hypot(dy, dx), 1e-9), 0.0)


def _event(word: str, k: int, things: Sequence[Thing]) -> float:
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


def _close_by(thing: Thing, hidden: Thing) -> float:
    """1 if the thing stands where the other was, at the frame where that is seen least."""
    gone = int(hidden.seen_T.argmin())
    last = max((t for t in range(gone) if hidden.seen_T[t] > 0.5), default=gone)
    if not hidden.masks_THW[last].any():
        return 0.0
    where = classic.dilate(hidden.masks_THW[last], 5)
    return min(float((thing.masks_THW[gone] & where).sum()) / (0.5 * float(where.sum())), 1.0)
