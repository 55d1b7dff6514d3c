"""Pictures of a report: frames, thumbnails, attention maps. Small, and never made twice."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from refseg_bench.errors import DataError
from refseg_bench.files.images import read_rgb, stored_upright
from refseg_bench.files.store_io import is_temporary, read_bytes, replacing, sweep, within
from refseg_bench.types import Clip

#: What Pillow raises on a picture it can't read.
_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, DataError)

#: Longest sides of an attention map and of a thumbnail, in pixels.
_MAP_SIDE, _THUMB_SIDE = 128, 240
#: Colours of an attention map from nothing to all, dark to light with rising luminance.
_RAMP = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))


@dataclass(frozen=True)
class MediaFolder:
    """Where the pictures go.

    Attributes:
        root: the report's folder.
        side: longest side of a frame, in pixels.
        used: names of the pictures that the report shows, by kind.
    """

    root: Path
    side: int = 480
    used: dict[str, set[str]] = field(
        default_factory=lambda: {"frames": set(), "thumbs": set(), "maps": set(), "sent": set()}
    )

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
        name = f"{_digest(made_from)}.jpg"
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
            except _UNREADABLE:
                return None
            _keep(target, kept)
        self.used[kind].add(name)
        return name

    def map_sprite(self, volume_THW: NDArray[np.uint8]) -> tuple[str, int, int]:
        """Draw a map's frames below each other, in colours that are clear where the map is low.

        Returns:
            File name, and height and width of one frame in it.
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
            _keep(target, encoded(picture, "PNG", transparency=_alphas(), compress_level=4))
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
    if length <= count:
        return list(range(length))
    even = np.linspace(0, length - 1, count).round().astype(int).tolist()
    return sorted({*even, *(index for index in wanted if 0 <= index < length)})


def _whole(target: Path) -> bool:
    """Whether a picture is there. An empty one is what a machine that died left."""
    return target.is_file() and target.stat().st_size > 0


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of its file, in memory: Pillow tells nothing of why a file can't be written."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def _keep(target: Path, data: bytes) -> None:
    with replacing(target, durable=False) as handle:
        handle.write(data)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def coloured(grey_HW: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A map in the report's colours: RGB ``(H, W, 3)``, and how much it covers, in [0, 1]."""
    ramp = np.asarray(_palette(), np.uint8).reshape(256, 3)
    alpha = np.frombuffer(_alphas(), np.uint8).astype(np.float32) / np.float32(255)
    return ramp[grey_HW], np.asarray(alpha[grey_HW], np.float32)


def _palette() -> list[int]:
    at = np.linspace(0, len(_RAMP) - 1, 256)
    ramp = np.asarray(_RAMP, float)
    return (
        np.stack([np.interp(at, range(len(_RAMP)), ramp[:, c]) for c in range(3)], 1)
        .astype(int)
        .ravel()
        .tolist()
    )


def _alphas() -> bytes:
    return bytes(int(235 * (value / 255) ** 0.6) for value in range(256))
