"""What can be measured of a clip and of a tracked region without a model: colours, texture, place, path.

Axes: ``T`` measured frames, ``H`` rows, ``W`` columns, ``C`` RGB, ``K`` colour names. Nothing here knows
words beyond the names of colours and textures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refseg_bench import env
from refseg_bench.methods.lexical.words import COLOURS, RGB, TEXTURES
from refseg_bench.segmenters import classic
from refseg_bench.types import BoolHW, Clip, MaskTrack

Float = NDArray[np.float32]
ACHROMATIC = tuple(COLOURS.index(name) for name in ("black", "white", "grey"))


@dataclass(frozen=True, eq=False)
class Region:
    """A tracked region and what can be measured of it."""

    track: MaskTrack  #: its masks at the clip's size, on all frames
    masks_THW: NDArray[np.bool_]  #: the same at working size
    #: Share of each colour name among its pixels with a hue (grey tones: among all pixels).
    colours: dict[str, float]
    textures: dict[str, float]  #: how plain, striped, dotted, checked its surface is, each in [0, 1]
    area: float  #: its usual area as a share of the frame
    seen_T: NDArray[np.float64]  #: its area over its usual area, per frame
    centre: tuple[float, float]  #: mean (y, x) in [0, 1] over the frames where it is seen
    #: (y, x) displacement from first to last sight, camera removed, in frame diagonals.
    path: tuple[float, float]
    at_border_T: NDArray[np.bool_]  #: whether it touches the frame's border


@dataclass(frozen=True, eq=False)
class MeasuredClip:
    """A clip's measured frames, things and pixel cues: saliency in Lab units, share of each colour name."""

    clip: Clip
    frames: tuple[int, ...]
    saliency_THW: Float
    names_THWK: Float
    things: list[Region]


def colour_names(frames_THWC: NDArray[np.uint8], spread: float) -> Float:
    """Share of each name of :data:`COLOURS` per pixel: softmax of Lab distances, lightness at half weight."""
    weight = np.array([0.5, 1.0, 1.0], np.float32)
    swatches = np.array([[RGB[name] for name in COLOURS]], np.uint8)
    anchors = cv2.cvtColor(swatches, cv2.COLOR_RGB2LAB)[0].astype(np.float32) * weight
    out = np.empty((*frames_THWC.shape[:3], len(COLOURS)), np.float32)
    for t, frame in enumerate(frames_THWC):
        lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.float32) * weight
        # Channel by channel: numpy is slow at sums over an axis of three.
        square = sum((lab[:, :, None, k] - anchors[:, k]) ** 2 for k in range(3))
        likely = np.exp(-(square - square.min(-1, keepdims=True)) / (2 * spread**2))
        out[t] = likely / likely.sum(-1, keepdims=True)
    return out


def border_contrast(frames_THWC: NDArray[np.uint8]) -> Float:
    """Lab distance of every pixel to the nearest of the colours that fill the border of the clip's frames.

    The boundary prior of saliency: what runs along the border is background. Colours that make up
    less than a sixth of the border may be objects that touch it, and don't count.
    """
    lab = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2LAB) for frame in frames_THWC]).astype(np.float32)
    sides = (lab[:, :2], lab[:, -2:], lab[:, :, :2], lab[:, :, -2:])
    edge = np.concatenate([side.reshape(-1, 3) for side in sides])
    env.opencv_seed()  # k-means draws its starts
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    groups = min(4, len(edge))
    _, label, centres = cv2.kmeans(edge, groups, None, stop, 2, cv2.KMEANS_PP_CENTERS)
    shares = np.bincount(label.ravel(), minlength=groups) / len(edge)
    kept = centres[shares >= min(1 / 6, float(shares.max()))]
    distance = [np.linalg.norm(lab - centre, axis=-1) for centre in kept]
    return np.asarray(np.min(distance, axis=0), np.float32)


def camera_path(frames_THWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Cumulative (y, x) shift of the scene by the camera, in pixels: the median flow between frames."""
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_THWC]
    steps = [np.zeros(2)]
    for one, two in itertools.pairwise(gray):
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
    gradient = cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=0.25) + 1j * cv2.Sobel(
        soft, cv2.CV_32F, 0, 1, scale=0.25
    )
    g = gradient[inside]
    power = np.abs(g) ** 2
    energy = float(np.sqrt(power.mean()))
    total = float(power.sum()) + 1e-9
    second = float(np.abs((g**2).sum()) / total)
    fourth = float(np.abs((g**4 / (power + 1e-9)).sum()) / total)
    rough = 1 / (1 + math.exp(-8 * (energy / plain_energy - 1)))
    share = np.array(
        [1 - rough, rough * second, rough * (1 - second) * (1 - fourth), rough * (1 - second) * fourth]
    )
    return np.asarray(share)


def measure(
    track: MaskTrack,
    measured: Sequence[int],
    frames_THWC: NDArray[np.uint8],
    names_THWK: Float,
    camera_T2: NDArray[np.float64],
    plain: float,
) -> Region:
    """Read a tracked region's attributes off the frames."""
    shape = frames_THWC.shape[1:3]
    blank = np.zeros(shape, bool)
    seen = (track.mask(frame) for frame in measured)
    masks = np.stack([blank if mask is None else classic.resize_mask(mask, shape) for mask in seen])
    areas = masks.sum((1, 2)).astype(np.float64)
    usual = max(float(np.percentile(areas[areas > 0], 75)) if areas.any() else 0.0, 1.0)
    clear = np.flatnonzero(areas >= 0.7 * usual)  # partly hidden, a thing looks like something else
    share_K = names_THWK[clear][masks[clear]].mean(0) if len(clear) else np.zeros(len(COLOURS))
    hued = max(float(1 - share_K[list(ACHROMATIC)].sum()), 0.15)
    colours = {
        name: min(float(share_K[k] / (1 if k in ACHROMATIC else hued)), 1.0) for k, name in enumerate(COLOURS)
    }
    gray = [np.asarray(cv2.cvtColor(frames_THWC[t], cv2.COLOR_RGB2GRAY), np.uint8) for t in clear[:6]]
    kinds = np.full(len(TEXTURES), 1 / len(TEXTURES))
    if gray:
        kinds = np.mean([texture_of(g, masks[t], plain) for g, t in zip(gray, clear, strict=False)], axis=0)
    centres = np.array([np.argwhere(masks[t]).mean(0) for t in clear] or [[0.0, 0.0]])
    steady = centres - camera_T2[clear] if len(clear) else centres
    path = (steady[-1] - steady[0]) / math.hypot(*shape)
    middle = (centres.mean(0) + 0.5) / shape
    edge = [bool(m[:2].any() or m[-2:].any() or m[:, :2].any() or m[:, -2:].any()) for m in masks]
    return Region(
        track, masks, colours, dict(zip(TEXTURES, kinds.tolist(), strict=True)), usual / blank.size,
        areas / usual, (float(middle[0]), float(middle[1])), (float(path[0]), float(path[1])), np.array(edge),
    )  # fmt: skip
