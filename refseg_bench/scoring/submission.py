"""The zip files that evaluation servers take, written and checked.

Ref-YouTube-VOS and MeViS want the same files in different places: ``<video>/<expression>/
<frame>.png``, one 8-bit channel, 0 background and 255 target, every frame of the list at the
original size; Ref-YouTube-VOS below a folder ``Annotations/``, MeViS at the top.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray

from refseg_bench.config import components
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import bad_name, is_litter
from refseg_bench.errors import ConfigError, DataError, ScoreError, printable, some
from refseg_bench.files import png
from refseg_bench.files.store_io import MOST_PIXELS, check_output, open_regular, replacing, sweep, write_error
from refseg_bench.types import Clip, MaskTrack, Prediction, extents, rle_fault, sample_id, wrong_way_round

_EPOCH = (1980, 1, 1, 0, 0, 0)
# The zip's comment ends in the SHA-256 of all bytes before it: no flipped byte goes unseen.
_SEAL = b"refseg-bench sha256 "
_DIGITS = 64


def top_of(dataset: str) -> str:
    """The folder above the videos that a dataset's server wants; empty = none.

    Raises:
        ConfigError: there is no server for it.
    """
    known = components.names("dataset")
    tops = {name: components.read("dataset", name).get("submission") for name in known}
    tops = {name: top for name, top in tops.items() if top is not None}
    if dataset not in tops:
        raise ConfigError(
            f"No evaluation server takes predictions on '{dataset}'.",
            allowed=tops,
            hint="Its masks are public: use `refseg score`.",
        )
    return str(tops[dataset])


def encode_png(mask_HW: NDArray[np.bool_]) -> bytes:
    """A mask as 8-bit grey PNG of 0 and 255."""
    small = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT, cv2.IMWRITE_PNG_COMPRESSION, 6]
    return cv2.imencode(".png", mask_HW.astype(np.uint8) * 255, small)[1].tobytes()


def write(
    path: Path,
    dataset: Dataset,
    lookup: Callable[[str], Mapping[str, Prediction]],
    *,
    hint: str = "Finish the run (the same `refseg run` resumes it).",
) -> int:
    """Write the zip of a run, which appears under its name only when it is whole; returns the masks written.

    ``lookup``: clip id → expression id → prediction; ``hint``: what to do about samples without a complete
    one.

    Raises:
        ScoreError: a sample has no complete prediction (servers refuse incomplete zips).
        ConfigError: no server takes this dataset, or the zip's path is no place for a file.
        StoreError: the file can't be written.
    """
    top = top_of(dataset.name)
    check_output(path)
    if path.exists() and not path.is_file():
        raise ConfigError(
            "A zip can't be written to a device or a pipe.", where=path, hint="Give -o FILE.zip"
        )
    clips = dataset.clips()
    lacking = [line for clip in clips for line in _lacking(dataset, clip, lookup(clip.id))]
    if lacking:
        more = f"\n  … and {len(lacking) - 20} more" if len(lacking) > 20 else ""
        raise ScoreError(
            f"{len(lacking)} samples have no complete prediction:\n  " + "\n  ".join(lacking[:20]) + more,
            hint=hint,
        )
    # A server that knows "absent" by empty masks gets what is flagged as such.
    flags = any(components.open_protocol(name).knows_absent for name in dataset.protocols)
    written = 0
    try:
        # What a link leads to is replaced, not the link.
        sweep(path.resolve().parent)
        with replacing(path.resolve()) as handle:
            # PNG files are compressed already.
            with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
                archive.comment = _SEAL + b"0" * _DIGITS
                for clip in clips:
                    found = lookup(clip.id)
                    for expression in dataset.expressions(clip):
                        track = found[expression.id].track
                        if track is None:
                            continue
                        if flags and found[expression.id].no_target:
                            track = MaskTrack.empty(track.size, len(track))
                        for name, mask in zip(clip.frame_names, track.masks(), strict=True):
                            if mask is not None:
                                place = "/".join(p for p in (top, clip.id, expression.id, f"{name}.png") if p)
                                archive.writestr(zipfile.ZipInfo(place, _EPOCH), encode_png(mask))
                                written += 1
            digest = _digest(handle)
            handle.seek(-_DIGITS, os.SEEK_END)
            handle.write(digest)
    except OSError as error:
        raise write_error(error, path) from error
    return written


def _digest(handle: IO[bytes]) -> bytes:
    """SHA-256 of all but the last 64 bytes of an open file, in hex."""
    left = handle.seek(0, os.SEEK_END) - _DIGITS
    handle.seek(0)
    made = hashlib.sha256()
    while left > 0 and (piece := handle.read(min(left, 1 << 20))):
        left -= len(piece)
        made.update(piece)
    return made.hexdigest().encode()


def _lacking(dataset: Dataset, clip: Clip, found: Mapping[str, Prediction]) -> Iterator[str]:
    for expression in dataset.expressions(clip):
        prediction = found.get(expression.id)
        name = sample_id(clip.id, expression.id)
        if prediction is None:
            yield f"missing {name}"
        elif prediction.track is None:
            why = "" if prediction.failure is None else printable(prediction.failure.message)
            yield f"failed  {name}{why and ': '}{why}"
        else:
            track = prediction.track
            if why := track.misfit(clip.size, len(clip)):
                yield f"failed  {name}: {why}"
                continue
            named = list(zip(clip.frame_names, track.rles, strict=True))
            if gaps := [n for n, c in named if c is None]:
                yield f"missing {name}: frames {', '.join(gaps)}"
            faults = ((n, rle_fault(c, track.size)) for n, c in named if c is not None)
            fault = next((f"frame {n}: {why}" for n, why in faults if why is not None), None)
            if fault is not None:
                yield f"failed  {name}: the mask of {fault}"


# ── checking ─────────────────────────────────────────────────────────────────


@dataclass
class ZipCheck:
    """What is wrong with a zip, by kind of problem."""

    #: Kind → what is affected.
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    masks: int = 0  #: PNG files looked at
    videos: int = 0  #: videos found
    against: str = ""  #: what the zip was held against
    #: How many masks are foreground in most of their picture and in less.
    foreground: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    def lines(self) -> list[str]:
        """The problems as text, the first few of each kind."""
        out = [f"{self.masks} masks of {self.videos} videos, held against {self.against}"]
        for kind, names in self.problems.items():
            out.append(f"{kind}: {len(names)}")
            out += [f"  {printable(name)}" for name in names[:5]]
            if len(names) > 5:
                out.append(f"  … and {len(names) - 5} more")
        plain = "each mask is all background or all foreground" if self.masks and not self.foreground else ""
        if told := wrong_way_round(self.foreground) or plain:
            out.append(f"note: {told}")
        return [*out, "fit to submit" if self.ok else "NOT fit to submit"]


def check(path: Path, dataset: Dataset | None = None) -> ZipCheck:
    """Hold a zip against the rules of its server, without unpacking it.

    A zip that :func:`write` made is also held against its own checksum.

    Args:
        path: the zip.
        dataset: the split it answers. Without it, the layout is recognised and videos are held
            against themselves: all expressions of a video must have the same frames and size, but
            a video that is missing or one too many can't be told.

    Raises:
        DataError: the file is no zip.
    """
    found = ZipCheck()
    try:
        with open_regular(path) as handle:
            _hold_seal(handle, found)
            with zipfile.ZipFile(handle) as archive:
                _check(archive, dataset, found)
    except _UNREADABLE as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            "There is no such file." if not path.exists() else f"This is no readable zip ({told}).",
            where=path,
            hint="`refseg submission RUN` writes a zip and says where.",
        ) from error
    return found


#: What ``zipfile`` raises on damaged archives: unknown methods are a RuntimeError, bad names and
#: places a ValueError.
_UNREADABLE = (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError, struct.error, zlib.error)


def _hold_seal(handle: IO[bytes], found: ZipCheck) -> None:
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - _DIGITS - len(_SEAL)))
    tag, digest = (tail := handle.read())[:-_DIGITS], tail[-_DIGITS:]
    # Either of the two may be what was damaged.
    if (tag == _SEAL or re.fullmatch(rb"[0-9a-f]{64}", digest)) and digest != _digest(handle):
        found.problems["changed since it was written"].append("its checksum differs: write or fetch it again")


def _check(archive: zipfile.ZipFile, dataset: Dataset | None, found: ZipCheck) -> None:
    names = _plain_names(archive, found)
    expected: dict[str, Clip] = {}
    if dataset is not None:
        top = top_of(dataset.name)
        expected = {
            f"{clip.id}/{e.id}/{frame}.png": clip
            for clip in dataset.clips()
            for e in dataset.expressions(clip)
            for frame in clip.frame_names
        }
        videos = {clip.id for clip in expected.values()}
        above = _above(names, lambda rest: _video(rest, top) in videos)
        found.against = f"{dataset.name}, split {dataset.split}"
    else:
        above = _above(names, lambda rest: len(rest) == 3 or (len(rest) == 4 and rest[0] == "Annotations"))
        top = "Annotations" if any(n.removeprefix(above).startswith("Annotations/") for n in names) else ""
        found.against = (
            f"itself ({'Ref-YouTube-VOS' if top else 'MeViS'} layout); give --dataset to find videos that "
            "are missing or too many"
        )
    if above:
        found.problems[f"all videos lie below {printable(above)}: zip the content"].append(names[0])
    inside: dict[str, str] = {}
    for name in names:
        rest = name.removeprefix(above)
        if not top or rest.startswith(f"{top}/"):
            inside[rest.removeprefix(f"{top}/" if top else "")] = name
        else:
            found.problems[f"wrong top folder (must be {top}/)"].append(name)
    if dataset is not None:
        _hold_against(inside, expected, found)
    else:
        own = _of_itself(inside, found)
        _hold_against(inside.keys() & own.keys(), own, found)
    sizes = {name: clip.size for name, clip in expected.items() if name in inside}
    _check_files(archive, inside, sizes, found)
    if not found.masks:
        found.problems["no mask"].append("<video>/<expression>/<frame>.png is wanted")


def _plain_names(archive: zipfile.ZipFile, found: ZipCheck) -> list[str]:
    """The names of the files worth a look, after telling of the others."""
    out: list[str] = []
    for name, times in Counter(info.orig_filename for info in archive.infolist()).items():
        # zipfile has already cut the names at a NUL; the name in the archive is what counts.
        if times > 1:
            found.problems["file stored twice"].append(name)
        reason = bad_name(name.removesuffix("/"))
        if reason is not None:
            made = "was made by an old packer of Windows: use another" if "\\" in name else reason
            found.problems[f"unsafe name: it {made}"].append(name)
        elif is_litter(name):
            found.problems["litter of macOS or Windows: leave it out of the zip"].append(name)
        elif not name.endswith("/"):
            out.append(name)
    return out


def _above(names: Sequence[str], fits: Callable[[list[str]], bool]) -> str:
    """The folders (with their ``/``) that lie above all videos without belonging there, or nothing."""
    masks = [name.split("/") for name in names if name.endswith(".png")]
    common = os.path.commonprefix(masks)  # noqa: RUF071 (parts, not characters)
    for depth in range(len(common) + 1):
        if any(depth < len(parts) and fits(parts[depth:]) for parts in masks):
            return "".join(f"{part}/" for part in common[:depth])
    return ""


def _video(parts: list[str], top: str) -> str | None:
    """The video of a mask, by the parts of its name."""
    if top and parts[0] != top:
        return None
    return "/".join(parts[1 if top else 0 : -2])


def _hold_against(inside: Collection[str], expected: Collection[str], found: ZipCheck) -> None:
    samples = {name.rpartition("/")[0] for name in expected}
    videos = {sample.rpartition("/")[0] for sample in samples}
    here = {name.rpartition("/")[0] for name in inside}
    extra_videos, extra_samples = set(), set()
    for name in inside:
        if name in expected:
            continue
        sample = name.rpartition("/")[0]
        video = sample.rpartition("/")[0]
        if video not in videos:
            extra_videos.add(video or name)
        elif sample not in samples:
            extra_samples.add(sample)
        else:
            found.problems["extra file"].append(name)
    gone = {video for video in videos if not any(s.startswith(f"{video}/") for s in here)}
    kinds = {
        "extra video": sorted(extra_videos),
        "extra expression": sorted(extra_samples),
        "missing video": sorted(gone),
        "missing expression": sorted(s for s in samples - here if s.rpartition("/")[0] not in gone),
        "missing frame": [n for n in expected if n not in inside and n.rpartition("/")[0] in here],
    }
    found.problems.update({kind: names for kind, names in kinds.items() if names})
    found.videos = len(videos - gone) + len(extra_videos)


def _of_itself(inside: Collection[str], found: ZipCheck) -> dict[str, None]:
    """What a zip should hold by what it holds: every frame of a video for each of its expressions."""
    frames: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in inside:
        video, *rest = name.split("/")
        if not name.endswith(".png"):
            found.problems["extra file"].append(name)
        elif len(rest) != 2:
            found.problems["not <video>/<expression>/<frame>.png"].append(name)
        else:
            frames[video][rest[0]].add(rest[1])
    return {
        f"{video}/{expression}/{frame}": None
        for video, own in frames.items()
        for expression in own
        for frame in sorted(set().union(*own.values()))
    }


def _check_files(
    archive: zipfile.ZipFile, inside: Mapping[str, str], sizes: Mapping[str, tuple[int, int]], found: ZipCheck
) -> None:
    seen: dict[str, tuple[int, int]] = {}
    for short, name in ((short, name) for short, name in inside.items() if short.endswith(".png")):
        found.masks += 1

        def wanted(size: tuple[int, int], short: str = short) -> tuple[int, int]:
            # Without a data set the first mask of a video tells the size of the others.
            return sizes.get(short) or seen.setdefault("/".join(short.split("/")[:-2]), size)

        try:
            problem = _problem(archive, name, wanted, found)
        except (*_UNREADABLE, DataError) as error:
            problem = "unreadable file", (str(error).splitlines() or [type(error).__name__])[0]
        if problem is not None:
            found.problems[problem[0]].append(f"{name}: {problem[1]}" if problem[1] else name)


def _problem(
    archive: zipfile.ZipFile,
    name: str,
    wanted: Callable[[tuple[int, int]], tuple[int, int]],
    found: ZipCheck,
) -> tuple[str, str] | None:
    """What is wrong with a mask, its kind first; ``wanted``: the size that is wanted of one of its own."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
        return "packed by a method that not every server can unpack (stored, deflated)", method
    if info.flag_bits & 0x1 or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "encrypted, a link or a device", ""
    with archive.open(info) as handle:
        start = handle.read(33)
        height, width, depth, colour = png.parse_header(start, name)
        if (size := wanted((height, width))) != (height, width):
            return "wrong size", f"{height} x {width} instead of {size[0]} x {size[1]} (height x width)"
        if not 0 < height * width <= MOST_PIXELS:
            return "no sensible size", f"{height} x {width} (height x width)"
        if colour != 0 or depth != 8:
            return "not one 8-bit grey channel", str(_COLOURS.get(colour, colour))
        # The header bounds what a whole file can hold, so a bomb is never inflated. Read to the end, because
        # only there zipfile compares the checksum.
        data = start + handle.read(2 * height * width + 65536)
        fault = "it is longer than its pixels need" if handle.read(1) else _fault(data, height, width)
    if fault is not None:
        return "unreadable file", fault
    pixels = png.values_of(data, name)
    found.foreground += extents([MaskTrack.from_masks([pixels > 0], (height, width))])
    others = set(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()) - {0, 255}
    return ("values other than 0 and 255", some(sorted(others))) if others else None


def _fault(data: bytes, height: int, width: int) -> str | None:
    """Why an 8-bit grey PNG isn't whole: every part is held against its checksum, its pixels counted."""
    at, kind, packed = 8, b"", b""
    while kind != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if end > len(data):
            return "it ends early"
        if zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, "big") != data[end - 4 : end]:
            return "a checksum is wrong"
        if kind == b"IDAT":
            packed += data[at + 8 : end - 4]
        at = end
    if at != len(data):
        return "something follows its end"
    # An interlaced file has up to two rows for each of the picture.
    most = 2 * height * (width + 1)
    held = len(zlib.decompressobj().decompress(packed, most + 1))
    return "it holds more pixels than it says" if held > most else None


_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 95: "xz"}
_COLOURS = {
    0: "grey of another depth",
    2: "colours",
    3: "palette",
    4: "grey with alpha",
    6: "colours with alpha",
}
