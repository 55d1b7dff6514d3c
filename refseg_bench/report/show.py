"""One sample as a picture: frames with the target drawn in, the words below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refseg_bench.errors import DataError
from refseg_bench.types import BoolHW, Clip, Dataset, Expression, MaskTrack, Target

#: Colours of the objects, in turn; far apart for red-green blind readers too.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (240, 228, 66))
VOID = (128, 128, 128)
_MARGIN = 8
#: Width of an outline in pixels of the picture.
_LINE = 3


def find_sample(dataset: Dataset, sample: str) -> tuple[Clip, Expression]:
    """The clip and expression of a sample id; a clip's id alone means its first expression.

    Raises:
        DataError: no such clip or expression.
    """
    clips = {clip.id: clip for clip in dataset.clips()}
    head, _, tail = sample.rpartition("/")
    if sample in clips:
        return clips[sample], dataset.expressions(clips[sample])[0]
    if head not in clips:
        some = [f"{c}/…" for c in list(clips)[:8]]
        raise DataError(
            f"Split '{dataset.split}' of '{dataset.name}' has no sample '{sample}'.",
            allowed=[*some, f"({len(clips)} clips)"],
            cure="A sample's name is CLIP/EXPRESSION.",
        )
    for expression in dataset.expressions(clips[head]):
        if expression.id == tail:
            return clips[head], expression
    raise DataError(
        f"Clip '{head}' has no expression '{tail}'.",
        allowed=[e.id for e in dataset.expressions(clips[head])],
        cure="A sample's name is CLIP/EXPRESSION.",
    )


def chosen_frames(track: MaskTrack | None, length: int, count: int) -> list[int]:
    """Which frames to show: spread over the clip, the one with the largest target among them."""
    count = min(count, length)
    chosen = sorted(set(np.linspace(0, length - 1, count).round().astype(int).tolist()))
    if track is not None:
        areas = [area or 0 for area in track.area()]
        best = int(np.argmax(areas))
        if areas[best] and best not in chosen:
            chosen[int(np.argmin([abs(c - best) for c in chosen]))] = best
    return sorted(set(chosen))


def overlay(
    frame_HWC: NDArray[np.uint8], layers: Sequence[tuple[BoolHW, Sequence[int]]]
) -> NDArray[np.uint8]:
    """Dim what isn't meant and draw a coloured outline around each mask."""
    out = (0.4 * frame_HWC.astype(np.float32) + 0.1 * 255).astype(np.uint8)
    for mask, _ in layers:
        out[mask] = frame_HWC[mask]
    for mask, colour in layers:
        inner = mask
        for _ in range(_LINE):
            padded = np.pad(inner, 1)
            inner = inner & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
        out[mask & ~inner] = colour
    return out


def picture(
    clip: Clip, expression: Expression, target: Target | None, *, frames: int = 6, width: int = 1600
) -> Image.Image:
    """Frames in a grid with the target's objects in their colours, and the words.

    Args:
        clip: the clip.
        expression: what is asked for.
        target: the truth; ``None`` where a server keeps it.
        frames: how many frames of a video are shown.
        width: of the picture, in pixels.
    """
    union = target.union() if target is not None else None
    chosen = chosen_frames(union, len(clip), frames)
    columns = min(3, len(chosen))
    cell = (width - _MARGIN * (columns + 1)) // columns
    height = max(1, round(cell * clip.size[0] / clip.size[1]))
    font = ImageFont.load_default(size=18)
    lines = _caption(clip, expression, target, width)
    rows = -(-len(chosen) // columns)
    top = rows * (height + 24 + _MARGIN) + _MARGIN
    canvas = Image.new("RGB", (width, top + 26 * len(lines) + _MARGIN), (255, 255, 255))
    pen = ImageDraw.Draw(canvas)
    for place, index in enumerate(chosen):
        x = _MARGIN + (place % columns) * (cell + _MARGIN)
        y = _MARGIN + (place // columns) * (height + 24 + _MARGIN)
        canvas.paste(_drawn(clip, target, index, (cell, height)), (x, y))
        pen.text((x, y + height), clip.frame_names[index], (90, 90, 90), ImageFont.load_default(size=14))
    for number, line in enumerate(lines):
        pen.text((_MARGIN, top + 26 * number), line, (0, 0, 0), font)
    return canvas


def _drawn(clip: Clip, target: Target | None, index: int, size: tuple[int, int]) -> Image.Image:
    """One frame at its size in the picture (width, height); outlines are drawn at that size."""
    frame = Image.fromarray(clip.load([index])[0]).resize(size)
    if target is None:
        return frame
    tracks = [(track, COLOURS[i % len(COLOURS)]) for i, track in enumerate(target.objects)]
    if target.void is not None:
        tracks.append((target.void, VOID))
    layers = [
        (np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)), colour)
        for track, colour in tracks
        if (mask := track.mask(index)) is not None
    ]
    return Image.fromarray(overlay(np.asarray(frame), layers))


def _caption(clip: Clip, expression: Expression, target: Target | None, width: int) -> list[str]:
    if target is None:
        truth = "the masks are not public"
    elif not target.objects:
        truth = "nothing is meant"
    else:
        truth = f"{len(target.objects)} object{'s' if len(target.objects) > 1 else ''}"
    frames = f"{len(clip)} frames" if len(clip) > 1 else "image"
    wrapped = textwrap.wrap(f"“{expression.text}”", max(20, width // 10)) or [""]
    return [*wrapped, f"{clip.id}/{expression.id} · {frames} · {truth}"]
