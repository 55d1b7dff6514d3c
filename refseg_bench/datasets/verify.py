"""What is known of the public data sets, and checking one on disk against that and against itself.

One pass, no stop at the first problem: the readers' own checks tell into a list (see
:mod:`~refseg_bench.datasets.files`), and files the readers only open when they are wanted are
looked at here.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from refseg_bench.datasets.base import Dataset, damaged, no_sample
from refseg_bench.datasets.files import Damage, bad_name, file_names
from refseg_bench.env import resource
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.files.png import REORDERED
from refseg_bench.files.store_io import open_regular, read_yaml
from refseg_bench.types import Clip, extents, wrong_way_round

#: Where a JPEG's or PNG's own end mark must stand, counted from the end of the file. Some cameras
#: and servers append a few bytes.
_TAIL = 512


class SplitFacts(NamedTuple):
    """What a manifest says of one split."""

    #: ``videos``, ``images``, ``frames``, ``expressions``, ``objects``, ``refs`` → number.
    counts: Mapping[str, int]
    public: bool  #: whether the masks are public
    #: Counts that come from a paper and were never counted in the files.
    unchecked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Manifest:
    """The facts of one set, from ``datasets/NAME/manifest.yaml``."""

    name: str  #: name of the set
    title: str  #: as the field writes it
    kind: str  #: ``video`` or ``image``
    splits: Mapping[str, SplitFacts]  #: by name
    total: Mapping[str, int] = field(default_factory=dict)  #: counts of the whole release, for the reader
    printed_as: str = ""  #: what papers' tables call the set; by default its title
    #: Ids of those its papers use, where they use others than a run is scored under by default.
    protocols: Sequence[str] = ()
    unlike: str = ""  #: the set of the same layout and video ids that it must not be taken for
    #: What its expressions may have and those of ``unlike`` never do: fields, ``no target``.
    brought: tuple[str, ...] = ()

    def taken_for(self, split: str, expressions: Sequence[Mapping[str, Any]]) -> str:
        """Why these expressions of a split are those of ``unlike``; empty if nothing says so."""
        other = manifest(self.unlike) if self.unlike else None
        if other is None:
            return ""
        mine, its = (
            m.splits[split].counts.get("expressions") if split in m.splits else None for m in (self, other)
        )
        if mine is not None and len(expressions) == its != mine:
            return f"it has the {its:,} expressions of {other.title}, where {self.title} has {mine:,}"
        found = Counter(mark for raw in expressions for mark in _marks(raw) & {*other.brought})
        words = (
            f"{many} of its {len(expressions)} expressions have '{mark}'" for mark, many in found.items()
        )
        return next((f"{told}, which {other.title} brought" for told in words), "")


def _marks(raw: Mapping[str, Any]) -> set[str]:
    nobody = raw.get("anno_id") in ([], [-1], -1, ["-1"], "-1")
    return {*map(str, raw), *(["no target"] if nobody else [])}


@functools.cache
def manifest(name: str) -> Manifest | None:
    """The facts of a set; ``None`` if it has no card (a set of an outside package).

    Raises:
        ConfigError: an unknown or missing key, or a count that is no number.
    """
    path = resource("datasets") / name / "manifest.yaml"
    if bad_name(name) is not None or not path.is_file():
        return None
    plain = read_yaml(path)
    needed = {"title", "kind", "licence", "splits"}
    keys = needed | {"total", "printed_as", "protocols", "unlike", "brought"}
    if not needed <= set(plain) <= keys:
        raise ConfigError("The manifest lacks a key or has an unknown one.", where=path, allowed=sorted(keys))
    plain["brought"] = tuple(plain.get("brought", ()))
    plain["splits"] = {split: _facts(record) for split, record in plain["splits"].items()}
    return Manifest(name, **{key: value for key, value in plain.items() if key != "licence"})


def _facts(record: Mapping[str, Any]) -> SplitFacts:
    counts = {key: int(n) for key, n in record.items() if key not in ("masks", "unchecked")}
    return SplitFacts(counts, record["masks"] == "public", frozenset(record.get("unchecked", ())))


def lacking(dataset: Dataset, clips: int, expressions: int, refs: int = 0) -> str:
    """In words, where clips, refs or expressions are not as many as the release has; empty if they are.

    More of them, or as many as ``unlike`` has, are another set's: of RefCOCO, say, in the place of RefCOCO+.
    """
    facts = manifest(dataset.name)
    split = facts.splits.get(dataset.split) if facts is not None else None
    other = manifest(facts.unlike) if facts is not None and facts.unlike else None
    its = other.splits[dataset.split].counts if other and dataset.split in other.splits else {}
    told = {"videos": clips, "images": clips, "refs": refs, "expressions": expressions}
    for key, count in split.counts.items() if split else ():
        if (found := told.get(key)) and found != count and other and found == its.get(key):
            return f"{found} {key}, as {other.title} has"
        if split and key not in split.unchecked and found and found != count:
            more = f"{found} {key}, {found - count} more than the release has"
            return more if found > count else f"{found} of the {count} {key} that the release has"
    return ""


# ── checking ─────────────────────────────────────────────────────────────────


@dataclass
class Verdict:
    """What was found."""

    counts: dict[str, int] = field(default_factory=dict)  #: what the split holds
    problems: list[Damage] = field(default_factory=list)  #: everything that is wrong, in the order found
    notes: list[str] = field(default_factory=list)  #: differences that are no problem of the copy

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
    dataset: Dataset, facts: SplitFacts | None = None, *, decode: bool = False, masks: bool = True
) -> Verdict:
    """Check one split. ``decode``: decode every frame whole (slow) instead of its header and end mark."""
    verdict = Verdict()
    seen: set[tuple[str, str]] = set()
    known: set[str] = set()

    def tell(damage: Damage) -> None:
        # The same file may be met from several sides.
        key = (damage.what, damage.where or "")
        if key not in seen and damage.harmless:
            verdict.notes.append(f"{damage.where}: {damage.what}")
        elif key not in seen:
            verdict.problems.append(damage)
        seen.add(key)
        known.add(key[1])

    from concurrent.futures import ThreadPoolExecutor

    # One of its own: what was read with damages left out is kept by nobody.
    dataset = dataclasses.replace(dataset)  # type: ignore[type-var]
    dataset.tell = tell
    clips = frames = sentences = 0
    still = True
    objects: set[tuple[int, str]] = set()
    seen_extents: Counter[str] = Counter()
    refs: set[object] = set()
    with ThreadPoolExecutor(8) as pool:  # frame files wait for the disk
        for clip, expressions in dataset.survey():
            clips += 1
            sentences += len(expressions)
            objects |= {(clips, str(i)) for e in expressions for i in e.attrs.get("obj_ids", ())}
            refs |= {e.attrs["ref_id"] for e in expressions if "ref_id" in e.attrs}
            still &= clip is not None and len(clip) == 1
            if clip is None:
                continue
            frames += len(clip)
            paths = [p for p in clip.frame_paths if str(p) not in known]
            for damages in pool.map(
                lambda p, c=clip: list(frame_problems(p, c.size, decode, c.upright)), paths
            ):
                for damage in damages:
                    tell(damage)
            if dataset.every_frame_listed:
                for damage in extra_frames(clip):
                    tell(damage)
            for expression in [None, *expressions] if masks else ():
                try:
                    if expression is None:
                        dataset.foreground(clip)
                    elif (target := dataset.target(clip, expression)) is not None:
                        seen_extents += extents(target.objects)
                except DataError as error:
                    tell(damaged(clip, error))
    kind = {"images": clips} if still else {"videos": clips, "frames": frames}
    verdict.counts = {**kind, "expressions": sentences, "objects": len(objects), "refs": len(refs)}
    if told := wrong_way_round(seen_extents):
        verdict.notes.append(told)
    for name, number in dataset.encodings().items():
        if name.startswith("soft"):
            told = f"{number} masks have many levels between 0 and 255: all above 0 is the object."
            verdict.notes.append(told)
        elif name.endswith(REORDERED):
            verdict.notes.append(f"{number} maps are read as {name}.")
    if not clips and verdict.ok:
        tell(no_sample(dataset))
    for damage in _other_counts(verdict, facts) if facts is not None and clips else ():
        tell(damage)
    return verdict


def _other_counts(verdict: Verdict, facts: SplitFacts) -> Iterator[Damage]:
    for key, expected in facts.counts.items():
        found = verdict.counts.get(key)
        if found == expected:
            continue
        text = f"The split has {found} {key}, its manifest says {expected}."
        if key in facts.unchecked:
            verdict.notes.append(f"{text} That figure is from the paper and was never counted.")
            continue
        hint = "A part or another release? Compare with the card in datasets/NAME/README.md."
        yield Damage("count differs", text, "manifest.yaml", key, hint)


def frame_problems(
    path: Path, size: tuple[int, int], decode: bool = False, upright: bool = False
) -> Iterator[Damage]:
    """What is wrong with one frame file: missing, unreadable, cut off, or of another size."""
    from refseg_bench.files.images import image_size, read_rgb, turn_in_words

    if not os.path.isfile(path):
        yield Damage("missing frame", f"Frame '{path.stem}' is missing.", path)
        return
    try:
        found = image_size(path, upright=upright)
        if decode:
            read_rgb(path)
            if _has_hole(path):
                yield Damage("torn frame", "Bytes are missing in the middle of the frame's file.", path)
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


def _has_hole(path: Path) -> bool:
    """Whether the pixels of a JPEG hold bytes that were never written: decoders pass over them.

    A coder makes so many of a large plain area where the code of zeros alone means "as before" in all tables,
    and may in a progressive file: neither is judged.
    """
    with open_regular(path) as file:
        data = file.read()
    at, first = 2, set[int]()
    while data[at : at + 1] == b"\xff" and (kind := data[at + 1 : at + 2]) not in (b"\xda", b"\xc2"):
        table, at = at + 4, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        while kind == b"\xc4" and table < at:
            first.update(data[table + 17 : table + 18])
            table += 17 + sum(data[table + 1 : table + 17])
    judged = data.startswith(b"\xff\xd8") and data.startswith(b"\xff\xda", at) and first != {0}
    return judged and bytes(512) in data[at : data.find(b"\xff\xd9", at)]


def _ends(path: Path) -> bool:
    """Whether a picture's end is there; by its content, for names lie."""
    from refseg_bench.files.images import read_rgb

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
    listed = {path.name for path in clip.frame_paths}
    for name in file_names(folder):
        if name.lower().endswith((".jpg", ".jpeg", ".png")) and name not in listed:
            told = f"The frame '{name}' of video '{clip.id}' is not in the expression file."
            hint = "Use frames and expressions of one release, or take the file away."
            yield Damage("extra frame", told, folder / name, hint=hint)
