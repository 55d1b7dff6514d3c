"""Predictions made by other people's code: folders of PNG files, or one JSON of run lengths.

Both are trees of names, in which the masks of a sample lie under one of a few names (docs/scoring.md lists
them): as one entry, or as one per frame. Nothing is copied or converted on disk. Names that come from
datasets or JSON never lead out of the folder.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import Place, bad_name, is_litter, unreadable
from refseg_bench.errors import ConfigError, DataError, RefsegError, ScoreError, printable
from refseg_bench.files import png
from refseg_bench.files.store_io import parse_json, read_bytes
from refseg_bench.scoring.labels import FolderLabels, GreyMasks, LabelMaps
from refseg_bench.scoring.misplaced import (
    Names,
    counted_from_1,
    few,
    frames_instead,
    names_below,
    numbers,
    surplus,
)
from refseg_bench.scoring.protocols.base import ANY_SIZE
from refseg_bench.scoring.sources import ClipPredictions, State, Survey
from refseg_bench.types import (
    Clip,
    Expression,
    HeatPoint,
    MaskTrack,
    Prediction,
    SampleFailure,
    decode_rle,
    encode_rle,
    extents,
    sample_id,
)

#: Ends of names of files with run lengths.
JSON = (".json", ".jsonl")
#: Ends of names of archives.
PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z")
#: Most bytes of such a file; the largest split of the field makes about 1 GB.
MOST_BYTES = 2 << 30
#: Folders that archives put above the videos.
MASK_FOLDERS = ("", "Annotations/", "480p/", "Annotations/480p/")
#: Most levels of names that one key of a JSON stands for.
MOST_LEVELS = 16
#: Names of merged sets, one per annotator (ReferFormer's layout).
SETS = ("anno_0", "anno_1", "anno_2", "anno_3")
#: Clips whose run lengths are looked at for their direction.
MOST_LOOKED_AT = 100
#: Files that may stand beside the masks of a folder.
BESIDE = ("no_target.json", "points.json")
#: Keys under which a JSON may hold the masks of an expression.
MASK_KEYS = (
    "prediction_masks", "pred_masks", "masks", "rles", "masks_rle", "segmentations", "mask", "rle",
    "segmentation",
)  # fmt: skip
CLIP_KEYS = ("video_id", "video", "video_name", "vid", "clip", "image_id", "image", "img_id", "name")
FLAG_KEYS = ("no_target", "empty", "pred_nt")
EXPRESSION_KEYS = ("exp_id", "expression_id", "expression", "sent_id", "exp", "id")


def open_predictions(
    path: Path, *, above: int | None = None, sides: Sequence[int] = ()
) -> ForeignPredictions:
    """The source a path means: a folder of PNG files, or a JSON file (also alone in a folder).

    Args:
        path: the folder or file.
        above: the highest grey level of a mask file that is background; ``None`` = 0, as in all tools.
        sides: squares that masks of images may have instead of the original size (a protocol's
            ``resolution``); ``ANY_SIZE`` among them = any size.

    Raises:
        DataError: there is nothing readable.
        ConfigError: ``above`` is out of its range, or run lengths are given, which have no grey levels.
    """
    if above is not None and not 0 <= above < 255:
        raise ConfigError(f"--threshold is {above}.", allowed=("0 to 254",))
    for known in (_parsed, _beside, _listed, names_below):
        known.cache_clear()  # of what a process has opened before another may have taken the place
    file = path if path.is_file() else None
    if path.is_dir():
        try:
            inside = [p for p in path.iterdir() if not (p.name.startswith(".") or is_litter(p.name))]
        except OSError as error:
            raise DataError(f"The folder can't be read ({error.strerror}).", where=path) from error
        if not inside:
            raise DataError("The folder of predictions is empty.", where=path)
        if {"run.json", "predictions"} <= {p.name for p in inside}:
            raise DataError(
                "This is a run of this harness, not a folder of mask files.",
                where=path,
                hint=f"Give it without --predictions and --dataset: {path}",
            )
        file = inside[0]
        alone = len(inside) == 1 and file.name not in BESIDE and file.is_file()
        if not (alone and file.suffix.lower() in (*JSON, *PACKED)):
            return FolderPredictions(path, above or 0, tuple(sides))
    if file is not None and file.suffix.lower() in JSON:
        if above is not None:
            raise ConfigError("--threshold is for mask files; run lengths have no grey values.")
        return _JsonPredictions(file, sides=tuple(sides))
    packed = file is not None and file.suffix.lower() in PACKED
    raise DataError(
        "The predictions are packed." if packed else "There are no predictions here.",
        where=file or path,
        allowed=("a folder of PNG files", "a .json or .jsonl file of run lengths"),
        hint="Unpack them and give the folder." if packed else "Check the path behind --predictions.",
    )


def inside_dataset(path: Path, dataset: Dataset) -> str:
    """What is to be said where predictions lie in the data set's own folder: they may be its truth."""
    home = dataset.base()
    if home is None or not path.resolve().is_relative_to(home.resolve()):
        return ""
    return f"they lie in the folder of the data set ({home}); its own annotations would score 1"


# ── names, whatever holds them ───────────────────────────────────────────────


@dataclass(frozen=True)
class _Found:
    """What a source holds of one sample, or of one set of id maps."""

    #: File or run lengths of every frame, ``None`` where there is none; no masks = of no frame.
    masks: tuple[Any, ...] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)  #: the JSON object they stand in
    surplus: tuple[str, ...] = ()  #: names beside them that no frame has
    why: str = ""  #: what is known of what lacks, in words
    absent: bool = False  #: True if there is no mask because the sample is flagged as absent


@dataclass(frozen=True)
class ForeignPredictions(ABC):
    """Masks in a tree of names, in any layout of docs/scoring.md."""

    root: Path  #: the folder or file
    #: above, sides: see :func:`open_predictions`.
    above: int = 0
    sides: tuple[int, ...] = ()

    #: What it is, what a frame's name ends in, and what may join a video's name to an expression's.
    what: ClassVar[str]
    end: ClassVar[str]
    signs: ClassVar[str]

    @property
    def name(self) -> str:
        """The folder or file as given."""
        return str(self.root)

    @abstractmethod
    def _entries(self, name: str) -> Mapping[str, Any] | None:
        """What stands directly below a name; ``None`` = it is no name of several things."""

    @abstractmethod
    def _at(self, top: str, name: str, clip: Clip) -> _Found | None:
        """What a name below a top folder holds of a clip; ``None`` = nothing."""

    @abstractmethod
    def _read(self, found: _Found, clip: Clip, unit: str, tally: Counter[str]) -> MaskTrack:
        """The masks of a sample; ``tally`` counts how files are stored."""

    @abstractmethod
    def _said(self, found: _Found, clip: Clip, e: Expression) -> dict[str, Any]:
        """Flag and point of a sample, as fields of its prediction."""

    @abstractmethod
    def _all_names(self) -> Names:
        """All names, for what is nearly right."""

    def _instead(self, clip: Clip, e: Expression | None) -> str:
        """What lies where a sample (or the clip's id maps) was expected; empty if nothing does."""
        frame, held = clip.frame_names[0], self._all_names()
        if e is None:
            wanted, names = f"{clip.id}/{frame}", [f"{clip.id}/{frame}", f"{frame}/{clip.id}"]
        elif len(clip) == 1:
            wanted = f"{clip.id}/{e.id}"
            names = [wanted, f"{clip.id}/{e.text}", f"{e.id}/{clip.id}", *self._names(clip, e)]
        else:
            wanted = f"{clip.id}/{e.id}/{frame}" if self.end else f"{clip.id}/{e.id}"
            levels = (e.id, f"{e.id}/{frame}", e.text, f"{frame}/{e.id}")
            names = [*(f"{clip.id}/{level}" for level in levels), f"{e.id}/{clip.id}"]
        wanted += self.end
        names = [f"{top}{name}" for name in names for top in self._tops()]
        if told := held.instead(wanted, names, image=len(clip) == 1):
            return told
        if inside := self._entries(clip.id):
            return f"'{clip.id}' holds {few(inside)}, not '{wanted}'"
        return held.instead(clip.id, [clip.id])

    def _check(self, found: _Found, clip: Clip, unit: str) -> None:
        """See that masks are those of a clip, as far as that costs little; raises what they lack."""
        self._read(found, clip, unit, Counter())

    def _tops(self) -> list[str]:
        return [""]

    def _maps(self, clip: Clip, expressions: Sequence[Expression]) -> dict[str, _Found]:
        """Merged id maps of a clip by set."""
        return {}

    def _strangers(self, samples: Collection[str], shared: Mapping[str, Any]) -> list[str]:
        """What is said of no sample; refuses what is said of a name that several share."""
        return []

    def _shared(self, name: str, several: Sequence[tuple[Clip, Expression]]) -> DataError:
        """What is said of a name that several samples have."""
        units = [sample_id(clip.id, e.id) for clip, e in several]
        told = f"{printable(name)} may be meant for {' or '.join(map(printable, units[:2]))}."
        return DataError(told, where=self.root, hint=f"Name each as one of them is: {printable(units[0])}")

    def survey(self, clip: Clip, expressions: Sequence[Expression]) -> Survey:
        """The state of every expression; mask files are not read for it, run lengths are measured."""
        found, maps = self._found(clip, expressions)
        labels = {name: self._state(each, clip, name) for name, each in maps.items()}
        if any(state.status == "ok" for state in labels.values()):
            missing = State("missing")
            return Survey({e.id: labels.get(_set_of(e, labels), missing) for e in expressions}, labels)
        states: dict[str, State] = {}
        for e in expressions:
            state = self._state(found.get(e.id, _Found()), clip, sample_id(clip.id, e.id))
            if state.status == "missing" and not state.why:
                # A folder without a map is looked at as what it probably is: masks in the wrong place.
                state = State("missing", why=self._instead(clip, e))
            states[e.id] = state
        return Survey(states, labels or None)

    def predictions(
        self, clip: Clip, expressions: Sequence[Expression], *, labels: bool, samples: bool
    ) -> ClipPredictions:
        """Read what is wanted of a clip."""
        found, maps = self._found(clip, expressions)
        if not any(each.masks for each in maps.values()):
            maps = {}
        if maps and self.above:
            raise ScoreError(
                "These are id maps, whose values are ids: there is no threshold.",
                where=self.root,
                hint="Leave out --threshold.",
            )
        held: dict[str, LabelMaps] = {
            name: FolderLabels(each.masks or (None,) * len(clip), clip.frame_names, clip.size, each.surplus)
            for name, each in maps.items()
        }
        tally: Counter[str] = Counter()
        read = {e.id: self._prediction(found[e.id], clip, e, tally) for e in expressions if found}
        there = {key: p for key, p in read.items() if p is not None}
        files = {key: each.masks if self.end else None for key, each in found.items()}
        tracks = {key: p.track for key, p in there.items() if p.track is not None}
        tally.update(_repeated([(tracks[e.id], e) for e in expressions if e.id in tracks]))
        greys = {key: GreyMasks(track, files[key], self.above) for key, track in tracks.items()}
        for each in maps.values():
            tally.update(_blended([file for file in each.masks or () if file is not None]))
        if held and samples:
            there = _split(held, clip, expressions)
        nothing = not (there or maps or self._has(clip, expressions))
        return ClipPredictions(there, greys, held if self.end and not found else None, nothing, tally)

    def notes(self, dataset: Dataset) -> list[str]:
        """What is there and belongs to no sample of a dataset, in a few lines.

        Raises:
            DataError: a mask, flag or point goes by a name that several samples have.
        """
        wanted: dict[str, set[str] | None] = {"": set(BESIDE) if self.end else set()}
        samples: dict[str, tuple[Clip, Expression]] = {}
        shared: dict[str, list[tuple[Clip, Expression]]] = {}
        for clip in dataset.clips():
            frames = {f"{name}{self.end}" for name in clip.frame_names}
            alone = len(clip) == 1 and bool(self.end)
            for folder in (clip.id, *(f"{name}/{clip.id}" for name in SETS)) if self.end else ():
                wanted.setdefault(folder, set(frames))
            for e in dataset.expressions(clip):
                names, each = self._names(clip, e), (clip, e)
                for name in dict.fromkeys([*names, *names_of(clip, e, "/_")]):
                    if (first := samples.setdefault(name, each)) is not each:
                        shared.setdefault(name, [first]).append(each)
                for name in names:
                    above, _, last = name.rpartition("/")
                    beside = wanted.setdefault(above, set()) if alone or not self.end else None
                    if beside is not None:
                        beside.add(f"{last}{self.end}")
                    if above and alone:
                        # The only file of an image's folder may have any name.
                        wanted[name] = None
                    elif not alone:
                        wanted[name] = frames.union(wanted[name] or ()) if name in wanted else frames
        for name, several in shared.items():
            several = [each for each in several if name in self._names(*each)]
            if any(self._at(top, name, clip) for clip, _ in several[:1] for top in self._tops()):
                held = [found for each in several if (found := self._of(*each))]
                read = [(found.masks, found.absent) for found in held if found.masks or found.absent]
                if any(one in read[:place] for place, one in enumerate(read)):
                    raise self._shared(name, several)
        told, twice = surplus(self._entries, self._tops(), wanted)
        told = [*(name for name in told if not is_litter(name)), *self._strangers(samples, shared)]
        notes = {f"names in the {self.what} that no sample has, not read": told}
        notes["samples that lie in two places, the first is read"] = twice
        return [printable(f"note: {what} ({len(n)}): {few(n)}") for what, n in notes.items() if n]

    def _names(self, clip: Clip, e: Expression) -> list[str]:
        return list(names_of(clip, e, self.signs))

    def _found(
        self, clip: Clip, expressions: Sequence[Expression]
    ) -> tuple[dict[str, _Found], dict[str, _Found]]:
        """What is there of every expression; if there is nothing of any, the clip's id maps by set."""
        found = {e.id: self._of(clip, e) for e in expressions}
        if None in found.values() and (why := self._counted_from_1(clip, list(found))):
            return dict.fromkeys(found, _Found(why=why)), {}
        maps = {} if any(found.values()) else self._maps(clip, expressions)
        if not any(each.masks for each in maps.values()):
            found = {e.id: self._or_flag(found[e.id], clip, e) for e in expressions}
        if not any(found.values()):
            return {}, maps
        return {key: each or _Found() for key, each in found.items()}, {}

    def _or_flag(self, found: _Found | None, clip: Clip, e: Expression) -> _Found | None:
        """The flag "absent" where it is all that is said of a sample."""
        lacks = found is None or (found.masks is None and not found.surplus)
        flagged = lacks and self._said(_Found(), clip, e).get("no_target")
        return _Found(absent=True) if flagged else found

    def _of(self, clip: Clip, e: Expression) -> _Found | None:
        first = None
        for top in self._tops():
            held = [
                (f, name) for name in self._names(clip, e) if (f := self._at(top, name, clip)) is not None
            ]
            there = [(f, name) for f, name in held if f.masks is not None or f.absent]
            said = [(f.masks, self._said(f, clip, e)) for f, _ in there] if len(there) > 1 else []
            if any(other != said[0] for other in said):
                raise _twice(self.root, f"{sample_id(clip.id, e.id)} ({few(name for _, name in there)})")
            if there:
                return there[0][0]
            first = first or next(iter(held), (None, ""))[0]
        return first

    def _frames(self, held: Mapping[str, Any], name: str, clip: Clip) -> _Found:
        """The masks that stand below a name, one per frame."""
        wanted = [f"{frame}{self.end}" for frame in clip.frame_names]
        rest = sorted(n.removesuffix(self.end) for n in held.keys() - set(wanted) if n.endswith(self.end))
        masks = tuple([held.get(frame) for frame in wanted])
        if all(frame in held for frame in wanted):
            return _Found(masks, {}, tuple(rest))
        why = f"{frames_instead(held, clip.frame_names, self.end)} (in '{self._place(name)}')"
        here = [n.removesuffix(self.end) for n in held if n.endswith(self.end)]
        nothing = held.keys().isdisjoint(wanted) or counted_from_1(here, clip.frame_names)
        return _Found(None if nothing else masks, {}, tuple(rest), why)

    def _place(self, name: str) -> str:
        return str(self.root / name) if self.end else name

    def _counted_from_1(self, clip: Clip, ids: Sequence[str]) -> str:
        """Why none of a clip's expressions is read where all of them are one off."""
        for top in self._tops() if len(clip) > 1 and bad_name(clip.id) is None else ():
            if counted_from_1(self._entries(f"{top}{clip.id}") or (), ids):
                place = self._place(f"{top}{clip.id}")
                return f"the expressions in '{place}' are counted from 1: they are {few(ids)}"
        return ""

    def _has(self, clip: Clip, expressions: Sequence[Expression]) -> bool:
        """True if there is anything of a clip."""
        names = [clip.id, *(str(a) for e in expressions for a in _list(e.attrs.get("anno_ids")))]
        return any(
            self._entries(f"{top}{name}") is not None or self._at(top, name, clip) is not None
            for top in self._tops()
            for name in names
            if bad_name(name) is None
        )

    def _state(self, found: _Found, clip: Clip, unit: str) -> State:
        if found.absent:
            return State("ok")
        if found.masks is None:
            return State("missing", why=found.why)
        try:
            self._check(found, clip, unit)
        except RefsegError as error:
            return State("failed", why=" ".join(_failure(error).message.split()))
        gaps = tuple(n for n, mask in zip(clip.frame_names, found.masks, strict=False) if mask is None)
        return State("ok", gaps, found.why)

    def _prediction(self, found: _Found, clip: Clip, e: Expression, tally: Counter[str]) -> Prediction | None:
        """The prediction of a sample; ``None`` where nothing is said of it."""
        if found.masks is None and not found.absent:
            return None
        unit = sample_id(clip.id, e.id)
        try:
            track = (
                MaskTrack.empty(clip.size, len(clip))
                if found.absent
                else self._read(found, clip, unit, tally)
            )
        except RefsegError as error:
            return Prediction(unit, clip.id, e.id, failure=_failure(error))
        return Prediction(unit, clip.id, e.id, track, **self._said(found, clip, e))


def clip_names(clip: Clip) -> list[str]:
    """What a clip may be called, likeliest first: an image also by its file or its number."""
    more = (Path(str(clip.attrs.get("file_name", ""))).stem, str(clip.attrs.get("image_id", "")))
    names = [clip.id] if len(clip) > 1 else [clip.id, clip.frame_names[0], *more]
    return [name for name in dict.fromkeys(names) if name]


def names_of(clip: Clip, e: Expression, signs: str = "/") -> Iterator[str]:
    """Names that may hold a sample's masks, likeliest first; ``signs`` join a video's to a text's."""
    image = len(clip) == 1
    signs = "/_" if image else signs
    for anno in map(str, _list(e.attrs.get("anno_ids"))):
        # ReasonVOS: <source>_<video>_<object>/<expression as its own file numbers it>.
        if clip.attrs.get("source") is not None or "_" in anno:
            keys = dict.fromkeys([str(e.attrs.get("exp_id", e.id)), e.id])
            yield from (f"{anno}{sign}{key}" for key in keys for sign in signs)
    yield from (f"{name}{sign}{e.id}" for name in clip_names(clip) for sign in signs)
    if image and "sent_id" in e.attrs:
        # Sentences with an id of their own (RefCOCO) are never meant by the image's: the two overlap.
        yield str(e.attrs["sent_id"])
    elif image and str(e.attrs.get("text_index", e.id)) == "0":
        yield from dict.fromkeys([clip.id, clip.frame_names[0]])


def _repeated(found: Sequence[tuple[MaskTrack, Expression]]) -> dict[str, int]:
    """How many masks of a clip stand for all expressions or all frames alike: a slip of what wrote them."""
    shown = {e.id: t for t, e in found if any(extents([MaskTrack(t.size, (rle,))]) for rle in t.rles)}
    still = sum(len(track) for track in shown.values() if len(track) > 2 and len({*track.rles}) == 1)
    told = {"the same in all frames of a clip": still}
    meant = {str(e.attrs.get("obj_ids")) for _, e in found if e.id in shown}
    if len(meant) > 1 and len({track.rles for track in shown.values()}) == 1:
        told["the same for expressions of several objects"] = sum(map(len, shown.values()))
    return {name: masks for name, masks in told.items() if masks}


def _blended(files: Sequence[Path]) -> dict[str, int]:
    """The number of a clip's id maps where the ids of some are blends."""
    with suppress(DataError):  # which is told where they are scored
        some = (png.read_labels(file)[0] for file in files[:: len(files) // 4 + 1])
        return {"ids in steps, as in resized maps: some are blends": len(files)} if png.blended(some) else {}
    return {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _failure(error: RefsegError) -> SampleFailure:
    place = "" if error.where is None else f" ({error.where})"
    return SampleFailure(type(error).__name__, f"{error.what}{place}", str(error))


# ── folders of PNG files ─────────────────────────────────────────────────────


class FolderPredictions(ForeignPredictions):
    """A folder of PNG files."""

    what: ClassVar[str] = "folder"
    end: ClassVar[str] = ".png"
    signs: ClassVar[str] = "/"

    def _names(self, clip: Clip, e: Expression) -> list[str]:
        return [name for name in super()._names(clip, e) if bad_name(name) is None]

    def _tops(self) -> list[str]:
        return [top for top in MASK_FOLDERS if (self.root / top).is_dir()]

    def _entries(self, name: str) -> Mapping[str, Path] | None:
        folder = str(self.root / name)
        try:
            return _listed(folder, os.stat(folder).st_mtime_ns)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
                return None
            raise unreadable(Path(folder), error) from error  # what can't be seen isn't missing

    def _at(self, top: str, name: str, clip: Clip) -> _Found | None:
        inside = self._entries(top + name)
        if len(clip) > 1:
            return None if inside is None else self._frames(inside, top + name, clip)
        above, _, last = (top + name).rpartition("/")
        if "/" in name and inside is not None:
            if found := self._frames(inside, top + name, clip).masks:
                return _Found(found)
            if len(inside) == 1 and next(iter(inside)).endswith(".png"):
                # <image>/<sentence>/<whatever its only frame is called>.png
                return _Found(tuple(inside.values()))
        file = (self._entries(above) or {}).get(f"{last}.png")
        return None if file is None else _Found((file,))

    def _maps(self, clip: Clip, expressions: Sequence[Expression]) -> dict[str, _Found]:
        if bad_name(clip.id) is not None:
            return {}
        out: dict[str, _Found] = {}
        for top, name in [(top, name) for top in self._tops() for name in SETS]:
            folder = f"{top}{name}/{clip.id}"
            if name not in out and (inside := self._entries(folder)) is not None:
                out[name] = self._frames(inside, folder, clip)
        for folder in [f"{top}{clip.id}" for top in self._tops() if not out]:
            inside = self._entries(folder) or {}
            if any(n.endswith(".png") for n in inside):
                return {"": self._frames(inside, folder, clip)}
        if not out and not expressions:
            return {"": _Found(why=self._instead(clip, None))}
        some = out or any((self.root / top / name).is_dir() for top in self._tops() for name in SETS)
        return out or dict.fromkeys(SETS if some else (), _Found())

    def _check(self, found: _Found, clip: Clip, unit: str) -> None:
        there = [file for file in found.masks or () if file is not None]
        for file in there:
            fitting(png.header(file), clip, self.sides, file)
            if file is not there[0] or png.is_png(file):
                continue
            if unit in ("", *SETS):  # of id maps, which know no threshold
                png.read_labels(file)
            else:
                lossless(png.read_mask(file, self.above)[1], self.above, file)

    def _read(self, found: _Found, clip: Clip, unit: str, tally: Counter[str]) -> MaskTrack:
        size, rles = clip.size, list[bytes | None]()
        first: tuple[int, int] | None = None
        for file in found.masks or ():
            if file is None:
                rles.append(None)
                continue
            mask, encoding = png.read_mask(file, self.above)
            lossless(encoding, self.above, file)
            tally[encoding] += 1
            size = fitting(mask.shape, clip, self.sides, file)
            first = first or size
            if size != first:
                told = f"The mask is {size}, the video's first {first} (height, width)."
                raise ScoreError(told, where=file, hint="Write all masks of a video at one size.")
            rles.append(encode_rle(mask))
        return MaskTrack(size, tuple(rles))

    def _said(self, found: _Found, clip: Clip, e: Expression) -> dict[str, Any]:
        """What stands in the files beside the masks."""
        flags, points = (_beside(self.root / name) for name in BESIDE)
        unit = sample_id(clip.id, e.id)
        # A bare number is a sentence: an image may have the same.
        names = [unit, *(n for n in names_of(clip, e, "/_") if n != clip.id or "sent_id" in e.attrs)]
        out: dict[str, Any] = {}
        places = [f"{self.root / name}: {unit}" for name in BESIDE]
        if isinstance(flags, Mapping):
            out["no_target"] = _flag(_agreed(flags, names, places[0], False), places[0])
        elif flags is not None:
            out["no_target"] = not {str(name) for name in flags}.isdisjoint(names)
        if points is not None:
            out["point"] = _point(_agreed(points, names, places[1]), clip, places[1])
        return out

    def _all_names(self) -> Names:
        return names_below(self.root)

    def _strangers(self, samples: Collection[str], shared: Mapping[str, Any]) -> list[str]:
        held = [(file, name) for file in BESIDE for name in map(str, _beside(self.root / file) or ())]
        for file, name in held:
            if name in shared:
                raise self._shared(f"{file}: {name}", shared[name])
        return [f"{file}: {name}" for file, name in held if name not in samples]


@lru_cache(maxsize=64)
def _listed(folder: str, changed: int) -> dict[str, Path]:
    # Names with a dot in front are what systems leave beside files (macOS: ._00000.png).
    return {name: Path(folder, name) for name in os.listdir(folder) if not name.startswith(".")}


@lru_cache(maxsize=8)
def _beside(path: Path) -> Any:
    """The JSON beside a folder's masks, or ``None`` if there is none."""
    if not os.path.lexists(path):
        return None
    value = _load(path)
    kinds = (Mapping,) if path.name == "points.json" else (Mapping, list)
    if not isinstance(value, kinds):
        raise DataError(
            f"'{path.name}' is neither an object nor a list." if len(kinds) > 1 else "It is no object.",
            where=path,
            hint="docs/scoring.md says what may stand in it.",
        )
    return value


def fitting(shape: tuple[int, ...], clip: Clip, sides: Sequence[int], file: str | Path) -> tuple[int, int]:
    """The size of a mask, if it is its clip's or, for an image, one of the squares allowed; or any may be.

    Raises:
        ScoreError: with both sizes.
    """
    squares = [(side, side) for side in sides if len(clip) == 1]
    if shape == clip.size or shape in squares or ANY_SIZE in sides:
        return shape[0], shape[1]
    turned = ", which is turned" if tuple(shape) == clip.size[::-1] else ""
    raise ScoreError(
        f"The mask is {tuple(shape)}{turned}, its frame {clip.size} (height, width); no evaluator resizes "
        "masks.",
        where=file,
        hint="Write masks at the original size. Masks at the square that a model "
        "works on are scored there by a protocol that has it: --protocol refcoco-lavt:resolution=480"
        if len(clip) == 1 and shape[0] == shape[1]
        else "Write masks at the original size.",
    )


def lossless(encoding: str, above: int, file: Path) -> None:
    """Refuse a JPEG, or what is stored like one, whose foreground nobody has set apart from its blur.

    Raises:
        ScoreError: with what helps.
    """
    if png.lossy(encoding) and not above:
        raise ScoreError(
            f"The mask is a {encoding.partition(',')[0].partition(' ')[2]}, no PNG: its blur around the "
            "outline would count as foreground (--threshold 127 leaves it out).",
            where=file,
            hint="Write masks as PNG, or give --threshold 127.",
        )


def _set_of(expression: Expression, sets: Mapping[str, object]) -> str:
    if "" in sets:
        return ""
    return f"anno_{expression.attrs.get('annotator', 0)}"


def _split(
    maps: Mapping[str, LabelMaps], clip: Clip, expressions: Sequence[Expression]
) -> dict[str, Prediction]:
    """Masks per expression out of merged id maps: the pixels that hold one of its objects' ids."""
    out: dict[str, Prediction] = {}
    for name, each in maps.items():
        ids: dict[str, list[int]] = {}
        failed: dict[str, RefsegError] = {}
        tracks: dict[str, MaskTrack] = {}
        there = expressions if len(each.missing()) < len(clip) else ()
        for e in (e for e in there if _set_of(e, maps) == name):
            try:
                ids[e.id] = _pixel_values(clip, e)
            except DataError as error:
                failed[e.id] = error
        try:
            tracks = _tracks_of(each, clip, ids) if ids else {}
        except RefsegError as error:
            failed.update(dict.fromkeys(ids, error))
        for key, track in tracks.items():
            out[key] = Prediction(sample_id(clip.id, key), clip.id, key, track)
        for key, why in failed.items():
            out[key] = Prediction(sample_id(clip.id, key), clip.id, key, failure=_failure(why))
    return out


def _pixel_values(clip: Clip, expression: Expression) -> list[int]:
    ids = [str(i) for i in _list(expression.attrs.get("obj_ids"))]
    pixels = {str(value) for value in range(1, 256)}
    if "obj_ids" not in expression.attrs or not pixels.issuperset(ids):
        raise DataError(
            f"'{sample_id(clip.id, expression.id)}' names no objects from 1 to 255, so id maps hold no mask "
            f"of it: its masks lie in '{clip.id}/{expression.id}/<frame>.png'."
        )
    return [int(i) for i in ids]


def _tracks_of(maps: LabelMaps, clip: Clip, ids: Mapping[str, Sequence[int]]) -> dict[str, MaskTrack]:
    """Masks per expression, ``None`` where there is no map."""
    rles: dict[str, list[bytes | None]] = {key: [] for key in ids}
    absent = set(maps.missing())
    values: set[int] = set()
    for t, frame in enumerate(clip.frame_names):
        labels = None if frame in absent else maps.frame(t)
        if labels is not None and values <= {0, 255}:
            values.update(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())
        for key, own in ids.items():
            mask = None if labels is None else labels == own[0] if len(own) == 1 else np.isin(labels, own)
            rles[key].append(None if mask is None else encode_rle(mask))
    if values - {0} == {255} and not any(255 in own for own in ids.values()):
        raise DataError(
            f"The maps of '{clip.id}' hold only 0 and 255, so they are masks, not id maps: the masks of one "
            f"expression lie in '{clip.id}/<expression>/<frame>.png'."
        )
    return {key: MaskTrack(clip.size, tuple(counts)) for key, counts in rles.items()}


# ── JSON of run lengths ──────────────────────────────────────────────────────


class _JsonPredictions(ForeignPredictions):
    """One JSON file of COCO run lengths, as Sa2VA writes it or in a near form."""

    what: ClassVar[str] = "file"
    end: ClassVar[str] = ""
    signs: ClassVar[str] = "/_"

    def _entries(self, name: str) -> Mapping[str, Any] | None:
        held = _parsed(self.root).get(name)
        return None if _is_end(held) else held

    def _at(self, top: str, name: str, clip: Clip) -> _Found | None:
        record: Mapping[str, Any] = {}
        entry = _parsed(self.root).get(name)
        if isinstance(entry, Mapping) and _first(entry, FLAG_KEYS) in (True, 1) and _no_mask(entry):
            return _Found(record=entry, absent=True)
        if isinstance(entry, Mapping) and "counts" not in entry and _mask_in(entry) is not None:
            record, entry = entry, _mask_in(entry)
        if entry is None or isinstance(entry, list):
            return None if entry is None else _Found(tuple(entry), record)
        if not isinstance(entry, Mapping):
            return _Found(why="its entry is no list of masks")
        if "counts" in entry:
            return _Found((entry,), record)
        found = self._frames(entry, name, clip)
        if found.masks is None and not record and name in clip_names(clip):
            # The sentences of an image, not its mask.
            return None
        if found.masks is None and (len(clip) == 1 or not all(map(numbers, entry))):
            return _Found(
                why=f"its entry holds {few(entry) or 'nothing'}, none of them masks ({', '.join(MASK_KEYS)})"
            )
        return dataclasses.replace(found, record=record)

    def _read(self, found: _Found, clip: Clip, unit: str, tally: Counter[str]) -> MaskTrack:
        masks = found.masks or ()
        if len(masks) != len(clip):
            raise DataError(f"{len(masks)} masks for {len(clip)} frames.", where=f"{self.root}: {unit}")
        self._told(found, clip, unit)
        said = masks[0].get("size") if len(clip) == 1 and isinstance(masks[0], Mapping) else None
        size = next(((side, side) for side in self.sides if said == [side, side]), clip.size)
        rles = [
            None if mask is None else _measured(mask, size, self.root, f"{unit}[{t}]")
            for t, mask in enumerate(masks)
        ]
        return MaskTrack(size, tuple(rles))

    def notes(self, dataset: Dataset) -> list[str]:
        """See :class:`ForeignPredictions`; and which of the first masks seem to be written row by row."""
        askew = [
            sample_id(clip.id, e.id)
            for clip in dataset.clips()[:MOST_LOOKED_AT]
            for e in dataset.expressions(clip)[:1]
            if self._goes_row_by_row(clip, e)
        ]
        told = f"note: run lengths that seem to go row by row, COCO's go down the columns ({len(askew)})"
        return super().notes(dataset) + [printable(f"{told}: {few(askew)}") for _ in askew[:1]]

    def _goes_row_by_row(self, clip: Clip, e: Expression) -> bool:
        try:
            track = self._read(self._of(clip, e) or _Found(), clip, sample_id(clip.id, e.id), Counter())
        except RefsegError:
            return False  # which is told where it is scored
        shown = next((rle for rle, area in zip(track.rles, track.area(), strict=True) if area), None)
        return shown is not None and goes_row_by_row(shown, track.size)

    def _said(self, found: _Found, clip: Clip, e: Expression) -> dict[str, Any]:
        return self._told(found, clip, sample_id(clip.id, e.id))

    def _told(self, found: _Found, clip: Clip, unit: str) -> dict[str, Any]:
        place = f"{self.root}: {unit}"
        said, _ = (_agreed(found.record, keys, place) for keys in (FLAG_KEYS, MASK_KEYS))
        flag = None if said is None else _flag(said, place)
        return {"no_target": flag, "point": _point(found.record.get("point"), clip, place)}

    def _all_names(self) -> Names:
        return _parsed(self.root).all_names

    def _instead(self, clip: Clip, e: Expression | None) -> str:
        held = _parsed(self.root)
        for name in clip_names(clip):
            if isinstance(held.get(name), list):
                return f"the entry '{name}' is a list without names: put each expression's masks under its id"
            if name in held.below:
                return f"found below '{held.below[name]}': {held.all_names.alone}"
        return super()._instead(clip, e)


def _twice(path: Path, name: str) -> DataError:
    """What is said of a sample with two meanings."""
    told = f"The sample {printable(name)} stands twice, not with the same masks."
    return DataError(told, where=path, hint="Keep one of the two: which one is meant can't be told.")


def _load(path: Path) -> Any:
    """The value of a JSON file, or the list of its lines, in UTF-8 or UTF-16; a ``DataError`` without one."""
    try:
        data = read_bytes(path, MOST_BYTES)
        text = data.decode(json.detect_encoding(data))
        try:
            return parse_json(text, _once)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data" or not text[: error.pos].strip().endswith("}"):
                raise
        return [_line(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"The predictions can't be read ({printable(str(told))}).",
            where=path,
            hint="Write the JSON again.",
        ) from error


def _line(line: str, number: int) -> Any:
    try:
        return parse_json(line, _once)
    except ValueError as error:
        raise ValueError(f"line {number} of JSON lines: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once, or twice with the same value."""
    out = dict(pairs)
    if len(out) != len(pairs):
        for key, value in pairs:
            if out[key] != value:
                raise ValueError(f"'{key}' stands twice in one object, with different values")
    return out


class _Held:
    """A parsed predictions file as a tree of names, at whose ends stand masks, lists of masks and records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: dict[str, Any] = {}
        #: Clip → the other name below which its records stand.
        self.below: dict[str, str] = {}
        loaded = _load(path)
        if isinstance(loaded, Mapping) and isinstance(loaded.get("videos"), (Mapping, list)):
            loaded = loaded["videos"]
        if isinstance(loaded, Mapping) and _first(loaded, CLIP_KEYS) is not None and _is_end(loaded):
            # JSON lines of one line.
            loaded = [loaded]
        if isinstance(loaded, list):
            for index, record in enumerate(loaded):
                self._enter(record, index)
        elif isinstance(loaded, Mapping):
            for key, value in loaded.items():
                self._put(self.names, key, value, key)
        else:
            raise DataError("The predictions are neither an object nor a list.", where=path)

    @cached_property
    def all_names(self) -> Names:
        """The names, to look for what is nearly right."""

        def paths() -> Iterator[str]:
            waiting = [("", self.names)]
            while waiting:
                above, node = waiting.pop()
                for name, value in node.items():
                    yield f"{above}{name}/"
                    if not _is_end(value):
                        waiting.append((f"{above}{name}/", value))

        return Names(paths(), "write what stands there alone")

    def get(self, name: str) -> Any:
        """What stands under a name; ``None`` if nothing does."""
        node: Any = self.names
        for part in name.split("/") if name else ():
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    def _enter(self, record: Any, index: int) -> None:
        """Enter a piece of a list."""
        if not isinstance(record, Mapping):
            raise DataError(f"Entry [{index}] is no object.", where=self.path)
        clip = _first(record, CLIP_KEYS)
        if clip is None:
            if not record or not all(isinstance(value, (Mapping, list)) for value in record.values()):
                raise DataError(f"Entry [{index}] names no clip.", where=self.path, allowed=CLIP_KEYS)
            # JSON lines, each with a piece of one object.
            for key, value in record.items():
                self._put(self.names, key, value, key)
            return
        if isinstance(record.get("expressions"), (Mapping, list)):
            self._put(self.names, str(clip), record, str(clip))
            return
        named = _first(record, EXPRESSION_KEYS)
        sample = sample_id(str(clip), "0" if named is None else str(named))
        if "frame" not in record:
            more = "" if named is not None else f" (without {', '.join(EXPRESSION_KEYS)} it is taken for '0')"
            self._put(self.names, sample, record, sample + more)
            return
        # One entry per frame.
        frame = record["frame"]
        if not isinstance(frame, str):
            raise DataError(
                f"Entry [{index}] has the frame {printable(repr(frame)[:40])}, which is no text.",
                where=self.path,
                hint="Write the frame's name as the data set's own list has it.",
            )
        self._put(self.names, f"{sample}/{frame}", _mask_in(record), f"{sample}, frame {frame}")

    def _put(self, node: dict[str, Any], key: str, value: Any, name: str) -> None:
        """Enter a value under a key, which may be a path; what is no end is entered piece by piece."""
        # What is no path is one name, and so is the end of one that is longer than any data set's.
        *above, key = key.split("/", MOST_LEVELS) if bad_name(key) is None else [key]
        for part in above:
            node = node.setdefault(part, {})
            if _is_end(node):
                raise _twice(self.path, name)
        if isinstance(value, Mapping) and isinstance(value.get("expressions"), (Mapping, list)):
            value = value["expressions"]
        if _are_records(value):
            # The expressions of a clip as a list; what they call it themselves tells apart those of several.
            clips = [str(_first(record, CLIP_KEYS[:-1], "")) for record in value]
            several = len({*clips} - {""}) > 1
            for index, (record, clip) in enumerate(zip(value, clips, strict=True)):
                own = str(_first(record, EXPRESSION_KEYS, index))
                if other := clip not in ("", key, name):
                    self.below[clip] = name
                named = f"{key}/{clip}" if several and other else key
                self._put(node, f"{named}/{own}", record, f"{name}/{own}")
        elif _is_end(value):
            if _meaning(node.setdefault(key, value)) != _meaning(value):
                raise _twice(self.path, name)
        elif _is_end(inner := node.setdefault(key, {})):
            raise _twice(self.path, name)
        else:
            for part, more in value.items():
                self._put(inner, part, more, f"{name}/{part}")


@lru_cache(maxsize=2)
def _parsed(path: Path) -> _Held:
    return _Held(path)


def _first(record: Mapping[str, Any], keys: Sequence[str], default: Any = None) -> Any:
    return next((record[key] for key in keys if key in record), default)


def _agreed(record: Mapping[str, Any], keys: Sequence[str], place: str, default: Any = None) -> Any:
    """What stands under one of the keys: a record may hold the truth beside what a model said."""
    found = {key: record[key] for key in keys if key in record}
    said = next(iter(found.values()), default)
    if any(other != said for other in list(found.values())[1:]):
        told = f"Its record says different things under {', '.join(found)}: keep what the model said."
        raise DataError(told, where=place)
    return said


def _mask_in(record: Mapping[str, Any]) -> Any:
    return _first(record, MASK_KEYS)


def _no_mask(record: Mapping[str, Any]) -> bool:
    """Whether a record has no mask: under a key, as the record itself, or by frame."""
    masks = _mask_in(record)
    if masks is None:
        return not any("counts" in one for one in (record, *record.values()) if isinstance(one, Mapping))
    each = masks.values() if isinstance(masks, Mapping) else masks
    return isinstance(masks, list | Mapping) and all(mask is None for mask in each)


def _is_end(value: Any) -> bool:
    """Whether a value is what stands for masks or for a flag, not a level of names."""
    return (
        not isinstance(value, Mapping)
        or "counts" in value
        or not value.keys().isdisjoint(MASK_KEYS)
        or isinstance(_first(value, FLAG_KEYS), bool | int)
    )


def _are_records(value: Any) -> bool:
    keys = {*MASK_KEYS, *EXPRESSION_KEYS, *FLAG_KEYS}
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(r, Mapping) and "counts" not in r and not keys.isdisjoint(r) for r in value)
    )


def _meaning(entry: Any) -> Any:
    """What an entry says of its sample, without what else stands there."""
    if not isinstance(entry, Mapping) or "counts" in entry or _mask_in(entry) is None:
        return entry
    return [_mask_in(entry), *(entry.get(k) for k in (*FLAG_KEYS, "point"))]


def _measured(mask: Any, size: tuple[int, int], file: Path, place: str) -> bytes | None:
    """The counts of a mask, whose numbers may be floats; a ``DataError`` if it is none of that size."""
    from refseg_bench.datasets.masks import checked_rle

    if isinstance(mask, Mapping):
        mask = {k: _whole(v) if k in ("size", "counts") else v for k, v in mask.items()}
    try:
        found = checked_rle(mask, size, Place(file, place))
    except DataError as error:
        raise DataError(
            f"{error.what}{_slip(mask, size)}", where=error.where, hint="Write the JSON again."
        ) from None
    return None if found is None else found[0]


def goes_row_by_row(counts: bytes, size: tuple[int, int]) -> bool:
    """Whether run lengths make a far plainer picture along its rows than down its columns, as COCO's go."""
    flat = decode_rle(counts, size).ravel(order="F")
    # Columns side by side, or rows: where they are none, neighbours differ nearly everywhere.
    lines = flat.reshape(size[::-1]), flat.reshape(size)
    columns, rows = (np.count_nonzero(each[1:] != each[:-1]) for each in lines)
    return bool(2 * rows < columns)


def _whole(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(n, float) for n in value):
        return [int(n) if isinstance(n, float) and n.is_integer() else n for n in value]
    return value


def _slip(mask: Any, size: tuple[int, int]) -> str:
    """What was probably meant by a mask that is none."""
    if isinstance(mask, list):
        return " Polygons are not taken." if mask and isinstance(mask[0], (int, float, list)) else ""
    if not isinstance(mask, Mapping):
        return ""
    own, counts = mask.get("size"), mask.get("counts")
    if own == [size[1], size[0]]:
        return " That is [width, height]: write [height, width], and counts that go column by column."
    if isinstance(own, str):
        return " The size is text: write a list of two numbers."
    if isinstance(counts, str) and counts[:2] in ("b'", 'b"'):
        return " The counts are Python's text of bytes: write counts.decode('ascii')."
    if isinstance(counts, str) and counts[:1] in "[(a" and " " in counts:
        return " The counts are a list as text: write a JSON list."
    return ""


def _flag(said: Any, where: str) -> bool:
    """A flag: true or false, or 1 or 0; else a ``DataError`` (the text "false" is true to Python)."""
    if isinstance(said, (bool, int, float)) and said in (0, 1):
        return bool(said)
    raise DataError(f"A flag is {printable(repr(said)[:40])}.", where=where, allowed=("true", "false"))


def _point(raw: Any, clip: Clip, where: str) -> HeatPoint | None:
    """The heat map's peak: ``{"y", "x", "frame"}`` in [0, 1] from the top left corner."""
    if raw is None:
        return None
    try:
        point = HeatPoint(int(raw.get("frame", 0)), float(raw["y"]), float(raw["x"]))
        _ = clip.frame_names[point.frame]
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        told, allowed = printable(repr(raw)[:60]), ('{"y": 0..1, "x": 0..1, "frame": 0}',)
        raise DataError(f"'point' is {told}.", where=where, allowed=allowed) from error
    return point
