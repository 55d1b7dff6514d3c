"""One answer as a stacked picture and as an overlay video: frames, maps of every stage, masks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refseg_bench.errors import DataError, require
from refseg_bench.files.store_io import output, replacing, write_error
from refseg_bench.report.media import coloured, encoded, spread
from refseg_bench.types import BoolHW, Clip, FloatTHW, Grounding

_COLOUR = (255, 140, 0)
_GAP, _LABEL = 6, 20


def stack(clip: Clip, grounding: Grounding, *, columns: int = 6, width: int = 1600) -> Image.Image:
    """Frames side by side; below each its maps, stage by stage, and its mask.

    Args:
        clip: the frames.
        grounding: the answer.
        columns: frames to show at most; those with a map come first.
        width: of the picture in pixels.
    """
    frames = _chosen(clip, grounding, columns)
    cell_w = (width - _GAP * (len(frames) + 1)) // len(frames)
    cell_h = max(1, round(cell_w * clip.size[0] / clip.size[1]))
    rows: list[tuple[str, list[NDArray[np.uint8]]]] = [("frames", list(clip.load(frames)))]
    for name, volume in grounding.maps.items():
        shown = grounding.map_frames.get(name) or tuple(range(len(volume)))
        rows.append((name, [_mapped(rows[0][1][i], volume, shown, t) for i, t in enumerate(frames)]))
    rows.append(("answer", [_answered(grounding, rows[0][1][i], t) for i, t in enumerate(frames)]))
    font = ImageFont.load_default(size=18)
    lines = textwrap.wrap(grounding.expression.text, max(20, width // 10))[:6] or [""]
    top = _GAP + 26 * len(lines)
    height = top + len(rows) * (cell_h + _LABEL + _GAP)
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        pen.text((_GAP, _GAP + 26 * number), line, (0, 0, 0), font)
    small = ImageFont.load_default(size=13)
    for r, (name, pictures) in enumerate(rows):
        y = top + r * (cell_h + _LABEL + _GAP)
        for c, picture in enumerate(pictures):
            x = _GAP + c * (cell_w + _GAP)
            canvas.paste(Image.fromarray(picture).resize((cell_w, cell_h)), (x, y))
            label = f"{name} · {clip.frame_names[frames[c]]}" if c == 0 or r == 0 else ""
            pen.text((x, y + cell_h + 2), label, (90, 90, 90), small)
    return canvas


def _chosen(clip: Clip, grounding: Grounding, columns: int) -> list[int]:
    wanted = sorted({t for shown in grounding.map_frames.values() for t in shown if 0 <= t < len(clip)})
    pool = wanted if len(wanted) >= columns else list(range(len(clip)))
    return [pool[i] for i in spread(len(pool), columns, ())]


def _mapped(
    frame_HWC: NDArray[np.uint8], volume: FloatTHW, shown: Sequence[int], frame: int
) -> NDArray[np.uint8]:
    """A frame under its map; the nearest one where the map has none of its own."""
    nearest = min(range(len(shown)), key=lambda i: abs(shown[i] - frame))
    grey = np.clip(np.asarray(volume[nearest], np.float32) * 255, 0, 255).astype(np.uint8)
    height, width = frame_HWC.shape[:2]
    grey_HW = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
    colour_HW3, alpha_HW = coloured(grey_HW)
    mixed = 0.4 * frame_HWC * (1 - alpha_HW[..., None]) + colour_HW3 * alpha_HW[..., None]
    return np.asarray(mixed.round(), np.uint8)


def tinted(frame_HWC: NDArray[np.uint8], mask: BoolHW) -> NDArray[np.uint8]:
    """A frame with a mask in colour and its rim drawn full."""
    out = frame_HWC.astype(np.float32)
    out[mask] = 0.55 * out[mask] + 0.45 * np.array(_COLOUR, np.float32)
    padded = np.pad(mask, 1)
    inside = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    out[mask & ~inside] = _COLOUR
    return out.astype(np.uint8)


def _answered(grounding: Grounding, frame_HWC: NDArray[np.uint8], frame: int) -> NDArray[np.uint8]:
    mask = grounding.track.mask(frame)
    out = frame_HWC if mask is None else tinted(frame_HWC, mask)
    point = grounding.point
    if point is None or point.frame != frame:
        return out
    picture = Image.fromarray(out)
    height, width = frame_HWC.shape[:2]
    x, y, r = point.x * width, point.y * height, max(4, width // 60)
    ImageDraw.Draw(picture).ellipse(
        (x - r, y - r, x + r, y + r), outline=(255, 225, 77), width=max(2, r // 3)
    )
    return np.asarray(picture)


def overlay_video(clip: Clip, grounding: Grounding, path: Path, *, fps: float = 12.0) -> None:
    """Write the whole clip with its masks drawn in as an mp4.

    Raises:
        StoreError: it can't be written.
        MissingExtra: PyAV is not installed.
    """
    write_video(path, _overlaid(clip, grounding), clip.size, fps)


def _overlaid(clip: Clip, grounding: Grounding) -> Iterator[NDArray[np.uint8]]:
    for t in range(len(clip)):
        yield _answered(grounding, clip.load([t])[0], t)


def write_video(path: Path, frames: Iterator[NDArray[np.uint8]], size: tuple[int, int], fps: float) -> None:
    """Encode RGB frames; odd sides lose a row or column, which the common pixel format asks for."""
    require("av", "Writing a video")
    import av

    height, width = (max(2, side - side % 2) for side in size)
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with output(path) as handle, av.open(handle, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame_HWC in frames:
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame_HWC[:height, :width]), format="rgb24"
            )
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def read_video(path: Path, folder: Path, *, most: int | None = None) -> tuple[list[Path], float]:
    """Decode a video into PNG files, turned as the video's header asks for.

    Args:
        path: the video.
        folder: where the frames go.
        most: frames to take, spread evenly; ``None`` = all.

    Returns:
        The frames' files and the frames per second they play at.

    Raises:
        DataError: no video, or one without frames.
        StoreError: a frame can't be written.
        MissingExtra: PyAV is not installed.
    """
    require("av", "Reading a video")
    import av

    # A playlist must not fetch from elsewhere, and a name with a colon is no address.
    source, only_files = f"file:{path.absolute()}", {"protocol_whitelist": "file"}
    try:
        with av.open(source, options=only_files) as container:
            if not container.streams.video:
                raise DataError("The file has no video in it.", where=path)
            rate = float(container.streams.video[0].average_rate or 12)
            count = sum(1 for _ in container.decode(video=0))
        wanted = set(range(count) if most is None else spread(count, most, ())) if count else set()
        files = []
        with av.open(source, options=only_files) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    files.append(folder / f"{index:05d}.png")
                    picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    _keep(files[-1], encoded(Image.fromarray(picture), "PNG", compress_level=1))
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"The video can't be decoded ({error}).", where=path, cure="Give a folder of its frames instead."
        ) from error
    if not files:
        raise DataError("The video holds no frame.", where=path)
    return files, rate * len(files) / count


def _keep(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as handle:
            handle.write(data)
    except OSError as error:
        raise write_error(error, path) from error
