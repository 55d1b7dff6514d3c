"""The zip files that evaluation servers take, written and checked.

Ref-YouTube-VOS and MeViS want the same files in different places: ``<video>/<expression>/
<frame>.png``, one 8-bit channel, 0 background and 255 target, every frame of the list at the
original size; Ref-YouTube-VOS below a folder ``Annotations/``, MeViS at the top.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import ConfigError, DataError, ScoreError
from refseg_bench.metrics import png
from refseg_bench.types import Clip, Dataset, Prediction, sample_id

#: Name of a dataset → folder above its videos in the zip.
TOPS = {"ref_youtube_vos": "Annotations", "mevis": "", "mevis_v2": ""}
_EPOCH = (1980, 1, 1, 0, 0, 0)


def top_of(dataset: str) -> str:
    """The folder above the videos that a dataset's server wants; empty = none.

    Raises:
        ConfigError: there is no server for it.
    """
    if dataset not in TOPS:
        raise ConfigError(
            f"No evaluation server takes predictions on '{dataset}'.",
            allowed=TOPS,
            cure="Its masks are public: use `refseg score`.",
        )
    return TOPS[dataset]


def encode_png(mask_HW: NDArray[np.bool_]) -> bytes:
    """A mask as 8-bit grey PNG of 0 and 255."""
    height, width = mask_HW.shape
    rows = np.zeros((height, width + 1), np.uint8)
    rows[:, 1:] = mask_HW * np.uint8(255)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(rows.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write(
    path: Path,
    dataset: Dataset,
    lookup: Callable[[str], Mapping[str, Prediction]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the zip of a run; it appears under its name only when it is whole.

    Args:
        path: the zip.
        dataset: what was predicted; its name decides the layout.
        lookup: clip id → expression id → prediction.
        progress: receives (clips done, clips).

    Returns:
        Masks written.

    Raises:
        ScoreError: a sample has no complete prediction (servers refuse incomplete zips).
        ConfigError: no server takes this dataset.
        DataError: the file can't be written.
    """
    top = top_of(dataset.name)
    clips = dataset.clips()
    lacking = [line for clip in clips for line in _lacking(dataset, clip, lookup(clip.id))]
    if lacking:
        more = f"\n  … and {len(lacking) - 20} more" if len(lacking) > 20 else ""
        raise ScoreError(
            f"{len(lacking)} samples have no complete prediction:\n  " + "\n  ".join(lacking[:20]) + more,
            cure="Finish the run (the same `refseg run` resumes it).",
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    written = 0
    try:
        # PNG files are compressed already.
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for done, clip in enumerate(clips, start=1):
                found = lookup(clip.id)
                for expression in dataset.expressions(clip):
                    track = found[expression.id].track
                    if track is None:
                        continue
                    for name, mask in zip(clip.frame_names, track.masks(), strict=True):
                        if mask is not None:
                            place = "/".join(p for p in (top, clip.id, expression.id, f"{name}.png") if p)
                            archive.writestr(zipfile.ZipInfo(place, _EPOCH), encode_png(mask))
                            written += 1
                progress(done, len(clips))
        partial.replace(path)
    except OSError as error:
        raise DataError(f"The zip can't be written ({error.strerror}).", where=path) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return written


def _lacking(dataset: Dataset, clip: Clip, found: Mapping[str, Prediction]) -> Iterator[str]:
    for expression in dataset.expressions(clip):
        prediction = found.get(expression.id)
        name = sample_id(clip.id, expression.id)
        if prediction is None:
            yield f"missing {name}"
        elif prediction.track is None:
            yield f"failed  {name}"
        else:
            gaps = [n for n, c in zip(clip.frame_names, prediction.track.rles, strict=False) if c is None]
            if gaps:
                yield f"missing {name}: frames {', '.join(gaps)}"


# ── checking ─────────────────────────────────────────────────────────────────


@dataclass
class Report:
    """What is wrong with a zip, by kind of problem.

    Attributes:
        problems: kind → what is affected.
        masks: PNG files looked at.
        videos: videos found.
        against: what the zip was held against.
    """

    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    masks: int = 0
    videos: int = 0
    against: str = ""

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    def lines(self, first: int = 5) -> list[str]:
        """The report as text, the first few of each kind."""
        out = [f"{self.masks} masks of {self.videos} videos, held against {self.against}"]
        for kind, names in self.problems.items():
            out.append(f"{kind}: {len(names)}")
            out += [f"  {name}" for name in names[:first]]
            if len(names) > first:
                out.append(f"  … and {len(names) - first} more")
        return [*out, "fit to submit" if self.ok else "NOT fit to submit"]


def check(path: Path, dataset: Dataset | None = None) -> Report:
    """Hold a zip against the rules of its server, without unpacking it.

    Args:
        path: the zip.
        dataset: the split it answers. Without it, the layout is recognised and videos are held
            against themselves: all expressions of a video must have the same frames and size, but
            a video that is missing or one too many can't be told.

    Raises:
        DataError: the file is no zip.
    """
    report = Report()
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive, dataset, report)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            "There is no such file." if not path.exists() else f"This is no readable zip ({error}).",
            where=path,
            cure="`refseg submission RUN` writes a zip and says where.",
        ) from error
    return report


def _check(archive: zipfile.ZipFile, dataset: Dataset | None, report: Report) -> None:
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    if dataset is not None:
        top = top_of(dataset.name)
        expected = {
            f"{clip.id}/{e.id}/{frame}.png": clip
            for clip in dataset.clips()
            for e in dataset.expressions(clip)
            for frame in clip.frame_names
        }
        report.against = f"{dataset.name}, split {dataset.split}"
    else:
        top = "Annotations" if any(n.startswith("Annotations/") for n in names) else ""
        expected = None
        report.against = (
            f"itself ({'Ref-YouTube-VOS' if top else 'MeViS'} layout); give --dataset to find videos that "
            "are missing or too many"
        )
    inside: dict[str, str] = {}
    for name, times in _counted(names).items():
        if times > 1:
            report.problems["file stored twice"].append(name)
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            report.problems["unsafe name"].append(name)
            continue
        short = _below(name, top, report)
        if short is not None:
            inside[short] = name
    sizes = _held_against_dataset(inside, expected, report) if expected is not None else {}
    if expected is None:
        _held_against_itself(inside, report)
    _check_files(archive, inside, sizes, report)


def _counted(names: Sequence[str]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name in names:
        out[name] = out.get(name, 0) + 1
    return out


def _below(name: str, top: str, report: Report) -> str | None:
    """The part below the top folder, or ``None`` after reporting a wrong one."""
    if top and name.startswith(f"{top}/"):
        return name[len(top) + 1 :]
    if top:
        report.problems[f"wrong top folder (must be {top}/)"].append(name)
        return None
    for other in ("Annotations", "valid", "mevis"):
        if name.startswith(f"{other}/"):
            report.problems["wrong top folder (videos must be at the top)"].append(name)
            return None
    return name


def _held_against_dataset(
    inside: Mapping[str, str], expected: Mapping[str, Clip], report: Report
) -> dict[str, tuple[int, int]]:
    videos = {clip.id for clip in expected.values()}
    samples = {name.rpartition("/")[0] for name in expected}
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
            report.problems["extra file"].append(name)
    missing_samples = sorted(samples - here)
    report.problems.update({k: sorted(v) for k, v in (("extra video", extra_videos),
                                                      ("extra expression", extra_samples)) if v})  # fmt: skip
    gone = {video for video in videos if not any(s.startswith(f"{video}/") for s in here)}
    if gone:
        report.problems["missing video"] = sorted(gone)
    lacking = [s for s in missing_samples if s.rpartition("/")[0] not in gone]
    if lacking:
        report.problems["missing expression"] = lacking
    frames = [name for name in expected if name not in inside and name.rpartition("/")[0] in here]
    if frames:
        report.problems["missing frame"] = frames
    report.videos = len(videos - gone) + len(extra_videos)
    return {name: clip.size for name, clip in expected.items() if name in inside}


def _held_against_itself(inside: Mapping[str, str], report: Report) -> None:
    frames: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in inside:
        parts = name.split("/")
        if len(parts) < 3 or not name.endswith(".png"):
            report.problems["extra file"].append(name)
            continue
        frames["/".join(parts[:-2])][parts[-2]].add(parts[-1])
    report.videos = len(frames)
    for video, expressions in frames.items():
        every = set().union(*expressions.values())
        for expression, own in expressions.items():
            for frame in sorted(every - own):
                report.problems["missing frame"].append(f"{video}/{expression}/{frame}")


def _check_files(
    archive: zipfile.ZipFile,
    inside: Mapping[str, str],
    sizes: Mapping[str, tuple[int, int]],
    report: Report,
) -> None:
    seen: dict[str, tuple[int, int]] = {}
    for short, name in inside.items():
        if not short.endswith(".png"):
            continue
        report.masks += 1
        try:
            with archive.open(name) as handle:
                start = handle.read(33)
                height, width, depth, colour = png.parse_header(start, name)
                wanted = sizes.get(short) or seen.setdefault("/".join(short.split("/")[:-2]), (height, width))
                if (height, width) != wanted:
                    report.problems["wrong size"].append(
                        f"{name}: {height} x {width} instead of {wanted[0]} x {wanted[1]} (height x width)"
                    )
                    continue
                if colour != 0 or depth != 8:
                    report.problems["not one 8-bit grey channel"].append(
                        f"{name}: {_COLOURS.get(colour, colour)}"
                    )
                    continue
                # The header bounds what a whole file can hold, so a bomb is never inflated.
                data = start + handle.read(2 * height * width + 65536)
            values = png.values_of(data, name)
        except (DataError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            report.problems["unreadable file"].append(f"{name}: {str(error).splitlines()[0]}")
            continue
        if not set(values) <= {0, 255}:
            report.problems["values other than 0 and 255"].append(
                f"{name}: {', '.join(map(str, sorted(set(values) - {0, 255})[:5]))}"
            )


_COLOURS = {
    0: "grey of another depth",
    2: "colours",
    3: "palette",
    4: "grey with alpha",
    6: "colours with alpha",
}
