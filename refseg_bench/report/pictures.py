"""Pictures: those that a report's pages show, of one sample, and videos.

A page shows frames, thumbnails and attention maps, small, and never made twice. A picture of one sample shows
frames with the target, or with the maps and masks of one prediction. A video of one's own is read as frames.
"""

from __future__ import annotations

import hashlib
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import frame_key
from refseg_bench.errors import DataError, require
from refseg_bench.files.images import encoded, image_size, read_rgb, stored_upright
from refseg_bench.files.store_io import is_temporary, output, read_bytes, replacing, sweep, within, writing
from refseg_bench.methods.base import evenly
from refseg_bench.run.build import dataset_of, received
from refseg_bench.run.inputs import Present, stale, without
from refseg_bench.run.store import RunStore
from refseg_bench.types import BoolHW, Clip, Expression, FloatTHW, Grounding, MaskTrack, Prediction, Target

#: Colours of the objects, in turn; far apart for red-green blind readers too.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (240, 228, 66))
VOID = (128, 128, 128)
_PREDICTED = (255, 140, 0)
_WIDTH, _GAP, _LABEL, _LINE = 1600, 6, 20, 26
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".gif")
#: A cell of a picture: what stands below it, and its pixels.
Cell = tuple[str, NDArray[np.uint8]]
#: Pictures of a report, a folder each: of clips, of attention, and what a chat model was sent.
_KINDS = ("frames", "thumbs", "maps", "sent")

#: Longest sides of an attention map and of a thumbnail, in pixels.
_MAP_SIDE, _THUMB_SIDE = 128, 240
#: Colours of an attention map from nothing to all, dark to light with rising luminance.
_RAMP = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))


# ── of a report ──────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class MediaFolder:
    """Where the pictures go."""

    root: Path  #: the report's folder
    side: int = 480  #: longest side of a frame, in pixels
    #: Names of the pictures that the report shows, by kind.
    used: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in _KINDS})

    def frame(self, clip: Clip, index: int) -> str | None:
        """Name of the picture of one frame, ``None`` where the frame can't be read."""
        path = clip.frame_paths[index]
        return self._shrunk(path, "frames", self.side, upright=clip.upright, copy=max(clip.size) <= self.side)

    def sent(self, path: Path) -> str | None:
        """Name of a picture that a chat model was shown, ``None`` where the file is none."""
        return self._shrunk(path, "sent", self.side, upright=False, copy=True)

    def thumb(self, clip: Clip, index: int) -> str:
        """Name (without its ending) of a clip's thumbnail, empty where the frame can't be read."""
        name = self._shrunk(clip.frame_paths[index], "thumbs", _THUMB_SIDE, upright=clip.upright, copy=False)
        return "" if name is None else name.removesuffix(".jpg")

    def _shrunk(self, path: Path, kind: str, side: int, *, upright: bool, copy: bool) -> str | None:
        try:
            stat = path.stat()
        except OSError:
            return None
        # A copy in the report is known by its source: the same frame of two runs is made once.
        made_from = "\0".join(map(str, (path.absolute(), stat.st_size, stat.st_mtime_ns, side, upright)))
        digest = hashlib.sha256(made_from.encode("utf-8", "surrogateescape")).hexdigest()
        name = f"{digest[:20]}.jpg"
        target = self.root / kind / name
        if name not in self.used[kind] and not _whole(target):
            try:
                # A browser turns pictures as their headers ask for, whatever the clip does.
                if copy and stored_upright(path):
                    kept = read_bytes(path)
                else:
                    picture = Image.fromarray(read_rgb(path, upright=upright))
                    picture.thumbnail((side, side))
                    kept = encoded(picture, "JPEG", quality=80)
            except (OSError, ValueError, DataError):
                return None
            _put(target, kept)
        self.used[kind].add(name)
        return name

    def map_sprite(self, volume_THW: NDArray[np.uint8]) -> tuple[str, int, int]:
        """Draw a map's frames below each other, in colours that are clear where the map is low; the file's
        name, and height and width of one frame in it.
        """
        height, width = volume_THW.shape[1:]
        shrink = min(1.0, _MAP_SIDE / max(height, width))
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        rows = [np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX)) for grey in volume_THW]
        stacked = np.concatenate(rows) if rows else np.zeros((size[1], size[0]), np.uint8)
        name = f"{hashlib.sha256(stacked.tobytes() + bytes(str(size), 'ascii')).hexdigest()[:20]}.png"
        target = self.root / "maps" / name
        if not _whole(target):
            picture = Image.fromarray(stacked, "L")
            picture.putpalette(_palette())
            _put(target, encoded(picture, "PNG", transparency=_alphas(), compress_level=4))
        self.used["maps"].add(name)
        return name, size[1], size[0]

    def prepare(self) -> None:
        """Make the folders, free of what killed reports left."""
        for kind in self.used:
            folder = within(self.root, self.root / kind)
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            for path in folder.iterdir():
                # A link in the place of a picture would be written through.
                if path.is_symlink():
                    path.unlink()

    def sweep(self) -> None:
        """Remove pictures that this report does not show."""
        for kind, names in self.used.items():
            for path in (self.root / kind).iterdir():
                # What another report is writing just now is its own.
                if path.name not in names and not is_temporary(path.name):
                    path.unlink(missing_ok=True)


def spread(length: int, count: int, wanted: Sequence[int]) -> list[int]:
    """Frames to show: all of a short clip, else ``count`` spread evenly, and those that are wanted."""
    return sorted({*evenly(length, count), *(index for index in wanted if 0 <= index < length)})


def _whole(target: Path) -> bool:
    """Whether a picture is there. An empty one is what a machine that died left."""
    return target.is_file() and target.stat().st_size > 0


def _put(target: Path, data: bytes) -> None:
    with replacing(target, durable=False) as handle:
        handle.write(data)


def coloured(grey_HW: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A map in the report's colours: RGB ``(H, W, 3)``, and how much it covers, in [0, 1]."""
    ramp = np.asarray(_palette(), np.uint8).reshape(256, 3)
    alpha = np.frombuffer(_alphas(), np.uint8).astype(np.float32) / np.float32(255)
    return ramp[grey_HW], np.asarray(alpha[grey_HW], np.float32)


def _palette() -> list[int]:
    at = np.linspace(0, len(_RAMP) - 1, 256)
    channels = [np.interp(at, range(len(_RAMP)), channel) for channel in zip(*_RAMP, strict=True)]
    return np.stack(channels, 1).astype(int).ravel().tolist()


def _alphas() -> bytes:
    return bytes(int(235 * (value / 255) ** 0.6) for value in range(256))


# ── of one sample ────────────────────────────────────────────────────────────


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
            hint="A sample's name is CLIP/EXPRESSION.",
        )
    for expression in dataset.expressions(clips[head]):
        if expression.id == tail:
            return clips[head], expression
    raise DataError(
        f"Clip '{head}' has no expression '{tail}'.",
        allowed=[e.id for e in dataset.expressions(clips[head])],
        hint="A sample's name is CLIP/EXPRESSION.",
    )


def show_target(clip: Clip, expression: Expression, target: Target | None, *, frames: int = 6) -> Image.Image:
    """Frames spread over the clip with the target's objects in their colours, under the words.

    Of a video so many ``frames`` are shown, the one with the largest target among them.
    """
    layers: list[tuple[MaskTrack, Sequence[int]]] = []
    wanted: list[int] = []
    truth = "the masks are not public"
    if target is not None:
        number = len(target.objects)
        truth = f"{number} object{'s' * (number > 1)}" if number else "nothing is meant"
        layers = [(track, COLOURS[i % len(COLOURS)]) for i, track in enumerate(target.objects)]
        layers += [] if target.void is None else [(target.void, VOID)]
        if len(clip) > frames:
            wanted = [int(np.argmax([area or 0 for area in target.union().area()]))]
    shown = spread(len(clip), frames - len(wanted), wanted)
    cells: list[Cell] = []
    for t in shown:
        masks = [(mask, colour) for track, colour in layers if (mask := track.mask(t)) is not None]
        cells.append((clip.frame_names[t], tinted(clip.load([t])[0], masks)))
    length = f"{len(clip)} frames" if len(clip) > 1 else "image"
    words = f"“{expression.text}”", f"{clip.id}/{expression.id} · {length} · {truth}"
    return _sheet([cells[start : start + 3] for start in range(0, len(cells), 3)], words, clip.size)


def show_stages(clip: Clip, grounding: Grounding, *, columns: int = 6) -> Image.Image:
    """Frames side by side, those with a map first; below each its maps, stage by stage, and its mask."""
    mapped = sorted({t for shown in grounding.map_frames.values() for t in shown if 0 <= t < len(clip)})
    pool = mapped if len(mapped) >= columns else list(range(len(clip)))
    frames = [pool[i] for i in evenly(len(pool), columns)]
    pictures = dict(zip(frames, clip.load(frames), strict=True))
    rows: list[list[Cell]] = [[(f"frames · {clip.frame_names[t]}", pictures[t]) for t in frames]]
    for name, volume in grounding.maps.items():
        shown = grounding.map_frames.get(name) or tuple(range(len(volume)))
        rows.append([(name, _mapped(pictures[t], volume, shown, t)) for t in frames])
    rows.append([("prediction", _predicted(grounding, pictures[t], t)) for t in frames])
    return _sheet(rows, (grounding.expression.text,), clip.size)


def _sheet(rows: Sequence[Sequence[Cell]], words: Sequence[str], size: tuple[int, int]) -> Image.Image:
    """Cells in rows under some words, each shrunk to its share of the width."""
    columns = max(map(len, rows))
    wide = (_WIDTH - _GAP * (columns + 1)) // columns
    high = max(1, round(wide * size[0] / size[1]))
    lines = [line for text in words for line in textwrap.wrap(text, _WIDTH // 10)[:6] or [""]]
    top = _GAP + _LINE * len(lines)
    step = high + _LABEL + _GAP
    sheet = Image.new("RGB", (_WIDTH, top + len(rows) * step), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((_GAP, _GAP + _LINE * number), line, (0, 0, 0), ImageFont.load_default(size=18))
    for r, row in enumerate(rows):
        for c, (label, picture) in enumerate(row):
            x, y = _GAP + c * (wide + _GAP), top + r * step
            sheet.paste(Image.fromarray(picture).resize((wide, high)), (x, y))
            pen.text((x, y + high + 2), label, (90, 90, 90), ImageFont.load_default(size=13))
    return sheet


def tinted(frame_HWC: NDArray[np.uint8], layers: Sequence[tuple[BoolHW, Sequence[int]]]) -> NDArray[np.uint8]:
    """A frame with masks in their colours, their rims drawn full."""
    out = frame_HWC.astype(np.float32)
    for mask, colour in layers:
        out[mask] = 0.55 * out[mask] + 0.45 * np.array(colour, np.float32)
        padded = np.pad(mask, 1)
        inside = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
        out[mask & ~inside] = colour
    return out.astype(np.uint8)


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


def _predicted(answer: Grounding | Prediction, frame_HWC: NDArray[np.uint8], frame: int) -> NDArray[np.uint8]:
    mask = None if answer.track is None else answer.track.mask(frame)
    out = frame_HWC if mask is None else tinted(frame_HWC, [(mask, _PREDICTED)])
    point = answer.point
    if point is None or point.frame != frame:
        return out
    picture = Image.fromarray(out)
    height, width = frame_HWC.shape[:2]
    x, y, r = point.x * width, point.y * height, max(4, width // 60)
    ImageDraw.Draw(picture).ellipse(
        (x - r, y - r, x + r, y + r), outline=(255, 225, 77), width=max(2, r // 3)
    )
    return np.asarray(picture)


def overlay_video(clip: Clip, answer: Grounding | Prediction, path: Path, *, fps: float = 12.0) -> None:
    """Write the whole clip with its masks drawn in as an mp4.

    Raises:
        StoreError: it can't be written.
        MissingExtra: PyAV is not installed.
    """
    frames: Iterator[NDArray[np.uint8]] = (_predicted(answer, clip.load([t])[0], t) for t in range(len(clip)))
    write_video(path, frames, clip.size, fps)


def sample_video(store: RunStore, sample: str, path: Path) -> None:
    """Write the clip of a sample, as :func:`find_sample` takes it, with the masks of a run as an mp4.

    Raises:
        DataError: the data set has no such sample, or the run no mask for it.
        StoreError: it can't be written.
        MissingExtra: PyAV is not installed.
    """
    dataset = dataset_of(received(store))
    clip, expression = find_sample(dataset, sample)
    differing = stale(store, [(clip, [expression])], Present(dataset))
    answer = without(store.predictions(clip.id), clip, differing).get(expression.id)
    if answer is None or answer.track is None:
        why = "" if answer is None or answer.failure is None else f": {answer.failure.message}"
        raise DataError(
            f"The run has no prediction of '{sample}'{why}.",
            where=store.root,
            hint="refseg status RUN names what failed or is missing.",
        )
    overlay_video(clip, answer, path)


# ── videos, with PyAV ────────────────────────────────────────────────────────


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
    """Decode a video into PNG files of a folder, turned as its header asks for: all, or so many at ``most``;
    and the frames per second they play at.

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
        wanted = set(evenly(count, count if most is None else most))
        files = []
        with av.open(source, options=only_files) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    files.append(folder / f"{index:05d}.png")
                    picture = Image.fromarray(_turned(frame, path))
                    with writing(files[-1]):
                        folder.mkdir(parents=True, exist_ok=True)
                        _put(files[-1], encoded(picture, "PNG", compress_level=1))
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"The video can't be decoded ({error}).", where=path, hint="Give a folder of its frames instead."
        ) from error
    if not files:
        raise DataError("The video holds no frame.", where=path)
    return files, rate * len(files) / count


def _turned(frame: Any, path: Path) -> NDArray[np.uint8]:
    """A video's frame as its header asks for it: turned by quarters, and mirrored."""
    from av.sidedata.sidedata import Type

    picture_HWC: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return picture_HWC
    # A pixel at (x, y) is shown at (a x + c y, b x + d y), counted from where both are positive.
    (a, b), (c, d) = np.frombuffer(bytes(matrix), np.int32).reshape(3, 3)[:2, :2].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture_HWC, a, b, c, d = picture_HWC.swapaxes(0, 1), c, d, a, b
    if abs(b) + abs(c) > 0.01 * (abs(a) + abs(d)) or not (a and d):
        raise DataError(
            "The video's header asks for a turn by other than quarters.",
            where=path,
            hint="Give a folder of its frames instead.",
        )
    return np.ascontiguousarray(picture_HWC[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1])


def open_clip(path: Path, scratch: Path, most: int | None = None) -> tuple[Clip, float]:
    """A clip of one's own (a folder of frames in the order of their numbers, a video, or an image), and the
    frames per second to play it at.

    Pictures are read upright, as their headers turn them; names that begin with a dot are left out. Frames of
    a video go to ``scratch``, which is emptied before; ``most`` are taken, spread evenly.

    Raises:
        DataError: nothing there, nothing readable, two frames of one number, or of different sizes.
    """
    rate = 12.0
    if path.is_dir():
        numbered = sorted(
            (frame_key(p.stem), p)
            for p in path.iterdir()
            if p.suffix.lower() in _IMAGES and p.is_file() and not p.name.startswith(".")
        )
        files = [p for _, p in numbered]
        twice = next((i for i in range(1, len(files)) if numbered[i - 1][0] == numbered[i][0]), None)
        if twice is not None:
            raise DataError(
                f"'{files[twice - 1].name}' and '{files[twice].name}' would be one frame.",
                where=path,
                hint="Give a folder that holds every frame once and nothing else.",
            )
        if not files:
            raise DataError(
                "The folder holds no picture.",
                where=path,
                allowed=_IMAGES,
                hint="Give the folder that holds the frames themselves.",
            )
        files = [files[i] for i in evenly(len(files), len(files) if most is None else most)]
    elif not path.exists():
        raise DataError(
            "There is no such file or folder.",
            where=path,
            allowed=["a folder of frames", *_VIDEOS, *_IMAGES],
            hint="Give the path of a clip or picture that exists.",
        )
    elif not path.is_file():
        raise DataError("This is no regular file.", where=path, allowed=[*_VIDEOS, *_IMAGES])
    elif path.suffix.lower() in _VIDEOS:
        shutil.rmtree(scratch, ignore_errors=True)
        files, rate = read_video(path, scratch, most=most)
    elif path.suffix.lower() in _IMAGES:
        files = [path]
    else:
        raise DataError(
            "The file is no video or picture by its name.",
            where=path,
            allowed=(*_VIDEOS, *_IMAGES),
            hint="Convert it to one of these, or give a folder of frames.",
        )
    size = image_size(files[0], upright=True)
    other = next((file for file in files if image_size(file, upright=True) != size), None)
    if other is not None:
        raise DataError(
            f"The frame is {image_size(other, upright=True)}, the first is {size} (height, width).",
            where=other,
            hint="Give frames of one clip, all of one size.",
        )
    return Clip(path.stem, tuple(files), tuple(file.stem for file in files), size, upright=True), rate
