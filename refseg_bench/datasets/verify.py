"""Check a data set on disk against itself and its manifest, and list everything that is wrong.

One pass, no stop at the first problem: the readers' own checks report into a list (see
:mod:`~refseg_bench.datasets.issues`), and files the readers only open when they are wanted are
looked at here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.catalogue import SplitFacts
from refseg_bench.datasets.files import missing_file, read_text
from refseg_bench.datasets.issues import Damage, Report
from refseg_bench.errors import DataError
from refseg_bench.files.images import image_size, read_rgb, turn_in_words
from refseg_bench.files.store_io import open_regular
from refseg_bench.types import Clip, Expression

#: Where a JPEG's or PNG's own end mark must stand, counted from the end of the file. Some cameras
#: and servers append a few bytes.
_TAIL = 512


@dataclass
class Verdict:
    """What was found.

    Attributes:
        counts: what the split holds.
        problems: everything that is wrong, in the order found.
        notes: differences that are no problem of the copy.
    """

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    def kinds(self) -> dict[str, list[Damage]]:
        """Problems by kind, the most frequent kind first."""
        out: dict[str, list[Damage]] = {}
        for problem in self.problems:
            out.setdefault(problem.kind, []).append(problem)
        return dict(sorted(out.items(), key=lambda item: -len(item[1])))


def verify(
    dataset: Dataset,
    facts: SplitFacts | None = None,
    *,
    decode: bool = False,
    sums: Path | None = None,
    masks: bool = True,
    threads: int = 8,
) -> Verdict:
    """Check one split.

    Args:
        dataset: the set, with its split.
        facts: what its manifest says of the split.
        decode: decode every frame whole (slow) instead of its header and end mark.
        sums: a ``sha256sum`` file of paths relative to itself, all of which are hashed.
        masks: read the masks too.
        threads: how many frame files are looked at at once (they wait for the disk).
    """
    verdict = Verdict()
    seen: set[tuple[str, str]] = set()
    known: set[str] = set()

    def report(damage: Damage) -> None:
        # The same file may be met from several sides.
        key = (damage.what, damage.where or "")
        if key in seen:
            return
        seen.add(key)
        known.add(key[1])
        if damage.harmless:
            verdict.notes.append(f"{damage.where}: {damage.what}")
        else:
            verdict.problems.append(damage)

    tally = _Tally()
    with ThreadPoolExecutor(threads) as pool:
        for clip, expressions in dataset.survey(report):
            tally.add(clip, expressions)
            if clip is None:
                continue
            paths = [p for p in clip.frame_paths if str(p) not in known]
            for damages in pool.map(
                lambda p, c=clip: list(frame_problems(p, c.size, decode, c.upright)), paths
            ):
                for damage in damages:
                    report(damage)
            if dataset.every_frame_listed:
                for damage in extra_frames(clip):
                    report(damage)
            if masks:
                try:
                    dataset.check_targets(clip, expressions, report)
                except Damage as problem:
                    report(problem)
    verdict.counts = tally.counts()
    if facts is not None:
        _compare(verdict, facts, report)
    if sums is not None:
        for damage in wrong_sums(sums):
            report(damage)
    return verdict


class _Tally:
    """Counts of a split, in the manifest's words."""

    def __init__(self) -> None:
        self.clips = self.frames = self.expressions = 0
        self.still = True
        self.objects: set[tuple[str, str]] = set()
        self.refs: set[object] = set()

    def add(self, clip: Clip | None, expressions: Sequence[Expression]) -> None:
        self.clips += 1
        self.frames += len(clip) if clip is not None else 0
        self.still &= clip is not None and len(clip) == 1
        self.expressions += len(expressions)
        name = clip.id if clip is not None else str(self.clips)
        for expression in expressions:
            self.objects.update((name, str(i)) for i in expression.attrs.get("obj_ids", ()))
            if "ref_id" in expression.attrs:
                self.refs.add(expression.attrs["ref_id"])

    def counts(self) -> dict[str, int]:
        kind = {"images": self.clips} if self.still else {"videos": self.clips, "frames": self.frames}
        return {**kind, "expressions": self.expressions, "objects": len(self.objects), "refs": len(self.refs)}


def _compare(verdict: Verdict, facts: SplitFacts, report: Report) -> None:
    for key, expected in facts.counts.items():
        found = verdict.counts.get(key)
        if found == expected:
            continue
        text = f"The split has {found} {key}, its manifest says {expected}."
        if key in facts.unchecked:
            verdict.notes.append(f"{text} That figure is from the paper and was never counted.")
            continue
        hint = "A part or another release? Compare with the card in datasets/NAME/README.md."
        report(Damage("count differs", text, "manifest.yaml", key, hint))


def frame_problems(
    path: Path, size: tuple[int, int], decode: bool = False, upright: bool = False
) -> Iterator[Damage]:
    """What is wrong with one frame file: missing, unreadable, cut off, or of another size."""
    if not os.path.isfile(path):
        yield Damage("missing frame", f"Frame '{path.stem}' is missing.", path)
        return
    try:
        found = image_size(path, upright=upright)
        if decode:
            read_rgb(path)
        elif not _ends(path):
            yield Damage("torn frame", "The frame's file is cut off.", path)
            return
    except DataError as error:
        yield Damage("unreadable frame", error.what, path)
        return
    if found != size:
        told = f"The frame is {found[0]} x {found[1]}, its clip {size[0]} x {size[1]} (height x width)."
        told += turn_in_words(path, upright=upright)
        yield Damage("frame of another size", told, path)


def _ends(path: Path) -> bool:
    """Whether a picture's end is there; by its content, for names lie."""
    with open_regular(path) as file:
        start = file.read(4)
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL))
        tail = file.read()
    if start.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if start == b"\x89PNG":
        return b"IEND" in tail
    read_rgb(path)
    return True


def extra_frames(clip: Clip) -> Iterator[Damage]:
    """Frame files beside a clip's that it doesn't list."""
    folder = clip.frame_paths[0].parent
    if not folder.is_dir():
        return
    listed = {path.name for path in clip.frame_paths}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".jpg", ".jpeg", ".png") and path.name not in listed and path.name[0] != ".":
            told = f"The frame '{path.name}' of video '{clip.id}' is not in the expression file."
            hint = "Use frames and expressions of one release, or take the file away."
            yield Damage("extra frame", told, path, hint=hint)


def wrong_sums(listing: Path) -> Iterator[Damage]:
    """Files that differ from a ``sha256sum`` listing, whose paths are relative to its folder."""
    for number, line in enumerate(read_text(listing).splitlines(), start=1):
        expected, _, name = line.strip().partition(" ")
        path = listing.parent / name.strip().lstrip("*")
        if len(expected) != 64 or not name:
            if line.strip():
                yield Damage("malformed line", "Not a line of sha256sum.", listing, f"line {number}")
            continue
        if not os.path.isfile(path):
            yield missing_file(path)
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected.lower():
            yield Damage("hash differs", f"SHA-256 is {found}, not {expected}.", path)
