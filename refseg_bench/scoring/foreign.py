"""Predictions made by other people's code: folders of PNG files, or one JSON of run lengths.

The layout is recognised per clip (docs/scoring.md lists all of them); nothing is copied or
converted on disk. Names that come from datasets or JSON never lead out of the folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import Place, bad_name, is_litter
from refseg_bench.datasets.masks import checked_rle
from refseg_bench.errors import ConfigError, DataError, RefsegError, ScoreError
from refseg_bench.files import png
from refseg_bench.files.store_io import parse_json, printable, read_bytes
from refseg_bench.scoring.labels import FolderLabels
from refseg_bench.scoring.misplaced import (
    counted_from_1,
    few,
    frames_instead,
    image_instead,
    maps_instead,
    meant,
    numbers,
    surplus,
    tree,
    video_instead,
)
from refseg_bench.scoring.protocols.base import GreyTrack, LabelMaps
from refseg_bench.scoring.sources import Answers, State, Survey, state_of
from refseg_bench.types import (
    Clip,
    Expression,
    HeatPoint,
    MaskTrack,
    Prediction,
    SampleFailure,
    encode_rle,
    sample_id,
)

#: Ends of names of files with run lengths.
JSON = (".json", ".jsonl")
#: Most bytes of such a file; the largest split of the field makes about 1 GB.
MOST_BYTES = 2 << 30
#: Folders that archives put above the videos.
MASK_FOLDERS = ("", "Annotations", "480p", "Annotations/480p")
#: Names of merged sets, one per annotator (ReferFormer's layout).
SETS = ("anno_0", "anno_1", "anno_2", "anno_3")
#: Files that may stand beside the masks of a folder.
BESIDE = ("no_target.json", "points.json")
#: Keys under which a JSON may hold the masks of an expression.
MASK_KEYS = (
    "prediction_masks",
    "pred_masks",
    "masks",
    "rles",
    "masks_rle",
    "segmentations",
    "mask",
    "rle",
    "segmentation",
)
CLIP_KEYS = ("video_id", "video", "video_name", "vid", "clip", "image_id", "image", "img_id", "name")
FLAG_KEYS = ("no_target", "empty", "pred_nt")
EXPRESSION_KEYS = ("exp_id", "expression_id", "expression", "sent_id", "exp", "id")


def open_predictions(
    path: Path, *, above: int | None = None, sides: Sequence[int] = ()
) -> FolderPredictions | JsonPredictions:
    """The source a path means: a folder of PNG files, or a JSON file (also alone in a folder).

    Args:
        path: the folder or file.
        above: the highest grey level of a mask file that is background; ``None`` = 0, as in all tools.
        sides: squares that masks of images may have instead of the original size (a protocol's
            ``resolution``).

    Raises:
        DataError: there is nothing readable.
        ConfigError: ``above`` is out of its range, or run lengths are given, which have no grey levels.
    """
    if above is not None and not 0 <= above < 255:
        raise ConfigError(f"--threshold is {above}.", allowed=("0 to 254",))
    if path.is_file() and path.suffix.lower() in JSON:
        return _run_lengths(path, above, sides)
    if path.is_dir():
        _beside.cache_clear()
        tree.cache_clear()
        try:
            inside = [p for p in path.iterdir() if not (p.name.startswith(".") or is_litter(p.name))]
        except OSError as error:
            raise DataError(f"The folder can't be read ({error.strerror}).", where=path) from error
        if len(inside) == 1 and inside[0].is_file() and inside[0].suffix.lower() in JSON:
            return _run_lengths(inside[0], above, sides)
        if not inside:
            raise DataError("The folder of predictions is empty.", where=path)
        if {"run.json", "predictions"} <= {p.name for p in inside}:
            raise DataError(
                "This is a run of this harness, not a folder of mask files.",
                where=path,
                hint=f"Give it without --predictions and --dataset: {path}",
            )
        return FolderPredictions(path, above or 0, tuple(sides))
    packed = path.is_file() and path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z")
    raise DataError(
        "The predictions are packed." if packed else "There are no predictions here.",
        where=path,
        allowed=("a folder of PNG files", "a .json or .jsonl file of run lengths"),
        hint="Unpack them and give the folder." if packed else "Check the path behind --predictions.",
    )


def inside_dataset(path: Path, dataset: Dataset) -> str:
    """What is to be said where predictions lie in the data set's own folder: they may be its truth."""
    home = dataset.base()
    if home is None or not path.resolve().is_relative_to(home.resolve()):
        return ""
    return f"they lie in the folder of the data set ({home}); its own annotations would score 1"


def _run_lengths(path: Path, above: int | None, sides: Sequence[int]) -> JsonPredictions:
    if above is not None:
        raise ConfigError("--threshold is for mask files; run lengths have no grey values.")
    return JsonPredictions(path, tuple(sides))


# ── folders of PNG files ─────────────────────────────────────────────────────


@dataclass
class FolderGrey:
    """Grey values of one expression's files, as OpenCV reads them."""

    files: tuple[Path | None, ...]
    size: tuple[int, int]
    above: int = 0
    _seen: set[int] = field(default_factory=set, init=False, repr=False)

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Grey values of one frame; zeros where there is no file."""
        file = self.files[index]
        if file is None:
            return np.zeros(self.size, np.uint8)
        grey = png.read_grey(file)
        if self.above:
            grey = np.where(grey > self.above, grey, np.uint8(0))
        self._seen.update(np.flatnonzero(np.bincount(grey.ravel(), minlength=256)).tolist())
        return grey

    def encoding(self) -> str:
        """How foreground is written, as far as the frames read so far tell."""
        return encoding_of(self._seen)


def encoding_of(values: set[int]) -> str:
    """The name of an encoding by its nonzero grey values."""
    nonzero = sorted(values - {0})
    if nonzero in ([1], [255]):
        return f"0/{nonzero[0]}"
    return "empty" if not nonzero else "grey " + "/".join(str(v) for v in nonzero[:8])


@dataclass(frozen=True)
class ConstantGrey:
    """Grey values of masks that are 1 where set (run lengths)."""

    track: MaskTrack
    value: int = 1

    def frame(self, index: int) -> NDArray[np.uint8]:
        """The mask times its value."""
        mask = self.track.mask(index)
        return np.zeros(self.track.size, np.uint8) if mask is None else mask * np.uint8(self.value)

    def encoding(self) -> str:
        """How foreground is written."""
        return f"0/{self.value}"


@dataclass(frozen=True)
class _Found:
    """The files of one mask per frame (of one expression, or of one set of id maps)."""

    files: tuple[Path | None, ...]
    surplus: tuple[str, ...] = ()
    why: str = ""

    def gaps(self, clip: Clip) -> tuple[str, ...]:
        return tuple(n for n, f in zip(clip.frame_names, self.files, strict=True) if f is None)

    def state(self, clip: Clip, sides: Sequence[int] = (), above: int = 0) -> State:
        """What the names and the first bytes of the files tell."""
        gaps = self.gaps(clip)
        if len(gaps) == len(clip):
            return State("missing", why=self.why)
        there = [file for file in self.files if file is not None]
        for file in there:
            try:
                fitting(png.header(file), clip, sides, file)
                if file is there[0] and png.is_jpeg(file):
                    lossless("JPEG", above, file)
            except RefsegError as error:
                return State("failed", why=_failure(error).message)
        return State("ok", gaps, self.why)


@dataclass(frozen=True)
class FolderPredictions:
    """A folder of PNG files in any layout of docs/scoring.md.

    Attributes:
        root: the folder.
        above, sides: see :func:`open_predictions`.
    """

    root: Path
    above: int = 0
    sides: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The folder as given."""
        return str(self.root)

    def survey(self, clip: Clip, expressions: Sequence[Expression]) -> Survey:
        """States from the folder listings alone."""
        found = self._samples(clip, expressions)
        if found is not None:
            states = {e.id: found[e.id].state(clip, self.sides, self.above) for e in expressions}
            return Survey({e.id: self._explained(states[e.id], clip, e) for e in expressions})
        maps = self._maps(clip)
        labels = {name: each.state(clip) for name, each in maps.items()}
        if any(state.status == "ok" for state in labels.values()):
            return Survey({e.id: _via(labels, e) for e in expressions}, labels)
        # A folder without a map is looked at as what it probably is: masks in the wrong place.
        states = {e.id: self._explained(State("missing"), clip, e) for e in expressions}
        if not labels and any((top / name).is_dir() for top in self._tops() for name in SETS):
            labels = dict.fromkeys(SETS, State("missing"))
        if not any(state.why for state in labels.values()) and not expressions:
            labels = {"": State("missing", why=maps_instead(self.root, clip.id, clip.frame_names[0]))}
        return Survey(states, labels or None)

    def _explained(self, state: State, clip: Clip, expression: Expression) -> State:
        """A state that says what lies where the masks were expected."""
        if state.status != "missing":
            return state
        if len(clip) == 1:
            names = list(_images(clip, expression))
            why = image_instead(self.root, names, clip.id, expression.id, expression.text)
        else:
            first = clip.frame_names[0]
            why = state.why or video_instead(self.root, clip.id, expression.id, expression.text, first)
        return dataclasses.replace(state, why=why)

    def notes(self, dataset: Dataset) -> list[str]:
        """What lies in the folder and belongs to no sample of a dataset, in a few lines."""
        wanted: dict[str, set[str] | None] = {"": set(BESIDE)}
        samples: set[str] = set()
        for clip in dataset.clips():
            pngs = {f"{name}.png" for name in clip.frame_names}
            for folder in (clip.id, *(f"{name}/{clip.id}" for name in SETS)):
                if bad_name(folder) is None:
                    wanted[folder] = set(pngs)
            for e in dataset.expressions(clip):
                samples |= {sample_id(clip.id, e.id), str(e.attrs.get("sent_id"))}
                for folder in _folders(clip, e):
                    wanted[folder] = pngs
                if len(clip) == 1:
                    for name in _images(clip, e):
                        samples.add(name)
                        above, _, file = name.rpartition("/")
                        if (names := wanted.setdefault(above, set())) is not None:
                            names.add(f"{file}.png")
                        if above:
                            # Its only file may have any name.
                            wanted[name] = None
        told, twice = surplus(self.root, self._tops(), wanted)
        told = [name for name in told if not is_litter(name)]
        for file in BESIDE:
            beside = _beside(self.root / file)
            told += [f"{file}: {name}" for name in map(str, beside or ()) if name not in samples]
        out = []
        if told:
            out.append(f"note: names in the folder that no sample has, not read ({len(told)}): {few(told)}")
        if twice:
            out.append(
                f"note: samples that lie in two places, the first is read ({len(twice)}): {few(twice)}"
            )
        return [printable(line) for line in out]

    def answers(
        self, clip: Clip, expressions: Sequence[Expression], *, labels: bool, samples: bool
    ) -> Answers:
        """Read what is wanted of a clip."""
        found = self._samples(clip, expressions)
        if found is not None:
            tally: Counter[str] = Counter()
            read = {e.id: self._read(found[e.id], clip, e, tally) for e in expressions}
            predictions = {e.id: self._extended(read[e.id], clip, e) for e in expressions}
            greys: dict[str, GreyTrack] = {
                e.id: FolderGrey(found[e.id].files, clip.size, self.above) for e in expressions
            }
            present = {k: v for k, v in predictions.items() if v is not None}
            return Answers(present, greys, None, not self._clip_exists(clip, expressions), tally)
        maps: dict[str, LabelMaps] = {
            name: FolderLabels(each.files, clip.frame_names, clip.size, each.surplus)
            for name, each in self._maps(clip).items()
        }
        if maps and self.above:
            raise ScoreError(
                "These are id maps, whose values are ids: there is no threshold.",
                where=self.root,
                hint="Leave out --threshold.",
            )
        split = _split(maps, clip, expressions) if samples else {}
        return Answers(split, {}, maps, not maps and not self._clip_exists(clip, expressions))

    def _read(
        self, found: _Found, clip: Clip, expression: Expression, tally: Counter[str]
    ) -> Prediction | None:
        """The masks of an expression, their encodings counted; ``None`` where it has no file at all."""
        if all(file is None for file in found.files):
            return None
        unit = sample_id(clip.id, expression.id)
        size, rles = clip.size, list[bytes | None]()
        try:
            for file in found.files:
                if file is None:
                    rles.append(None)
                    continue
                mask, encoding = png.read_mask(file, self.above)
                lossless(encoding, self.above, file)
                tally[encoding] += 1
                size = fitting(mask.shape, clip, self.sides, file)
                rles.append(encode_rle(mask))
        except RefsegError as error:
            return Prediction(unit, clip.id, expression.id, failure=_failure(error))
        return Prediction(unit, clip.id, expression.id, MaskTrack(size, tuple(rles)))

    def _extended(
        self, prediction: Prediction | None, clip: Clip, expression: Expression
    ) -> Prediction | None:
        """A prediction with the flag and the point that stand in files beside the masks."""
        if prediction is None or prediction.track is None:
            return prediction
        flags, points = (_beside(self.root / name) for name in BESIDE)
        # A bare number is a sentence: an image may have the same.
        names = [prediction.sample, *(name for name in _images(clip, expression) if name != clip.id)]
        if "sent_id" in expression.attrs:
            names.append(str(expression.attrs["sent_id"]))
        changes: dict[str, Any] = {}
        if isinstance(flags, Mapping):
            said = next((flags[name] for name in names if name in flags), False)
            changes["no_target"] = _flag(said, f"{self.root / 'no_target.json'}: {prediction.sample}")
        elif flags is not None:
            flagged = {str(name) for name in flags}
            changes["no_target"] = not flagged.isdisjoint(names)
        if points is not None:
            raw = next((points[name] for name in names if name in points), None)
            place = f"{self.root / 'points.json'}: {prediction.sample}"
            changes["point"] = None if raw is None else _point({"point": raw}, clip, place)
        return dataclasses.replace(prediction, **changes)

    def _tops(self) -> list[Path]:
        return [self.root / top if top else self.root for top in MASK_FOLDERS if (self.root / top).is_dir()]

    def _clip_exists(self, clip: Clip, expressions: Sequence[Expression]) -> bool:
        names = [clip.id, *(str(a) for e in expressions for a in _list(e.attrs.get("anno_ids")))]
        return any((top / name).exists() for top in self._tops() for name in names if bad_name(name) is None)

    def _samples(self, clip: Clip, expressions: Sequence[Expression]) -> dict[str, _Found] | None:
        """Files per expression, or ``None`` if no expression of the clip has files of its own."""
        found = {e.id: self._of(clip, e) for e in expressions}
        if all(each is None for each in found.values()):
            return None
        nothing = _Found((None,) * len(clip))
        if None in found.values() and (folder := self._counted_from_1(clip, list(found))):
            return dict.fromkeys(found, dataclasses.replace(nothing, why=folder))
        return {key: each or nothing for key, each in found.items()}

    def _counted_from_1(self, clip: Clip, ids: Sequence[str]) -> str:
        """Why none of a clip's expressions is read where all of them are one off."""
        if len(clip) > 1 and bad_name(clip.id) is None:
            for top in self._tops():
                if counted_from_1(_listing(str(top / clip.id)) or (), ids):
                    return f"the expressions in '{top / clip.id}' are counted from 1: they are {few(ids)}"
        return ""

    def _of(self, clip: Clip, expression: Expression) -> _Found | None:
        empty: _Found | None = None
        for top in self._tops():
            for folder in _folders(clip, expression):
                names = _listing(str(top / folder))
                if names is None:
                    continue
                found = _frames(top / folder, names, clip)
                if any(file is not None for file in found.files):
                    return found
                if len(clip) > 1:
                    empty = empty or found
            if len(clip) == 1:
                for name in _images(clip, expression):
                    folder, _, file = name.rpartition("/")
                    names = _listing(str(top / folder))
                    if names is not None and f"{file}.png" in names:
                        return _Found((top / f"{name}.png",))
                    # <image>/<sentence>/<whatever its only frame is called>.png
                    inside = _listing(str(top / name)) if "/" in name else None
                    if inside is not None and len(inside) == 1 and next(iter(inside)).endswith(".png"):
                        return _Found((top / name / next(iter(inside)),))
        return empty

    def _maps(self, clip: Clip) -> dict[str, _Found]:
        """Merged id maps of a clip by set."""
        if bad_name(clip.id) is not None:
            return {}
        out: dict[str, _Found] = {}
        for top in self._tops():
            for name in SETS:
                names = _listing(str(top / name / clip.id))
                if names is not None and name not in out:
                    out[name] = _frames(top / name / clip.id, names, clip)
        if out:
            return out
        for top in self._tops():
            names = _listing(str(top / clip.id))
            if names is not None and any(n.endswith(".png") for n in names):
                return {"": _frames(top / clip.id, names, clip)}
        return {}


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


def _folders(clip: Clip, expression: Expression) -> Iterator[str]:
    """Folders that may hold an expression's frames, likeliest first."""
    ids = list(dict.fromkeys([expression.id, str(expression.attrs.get("exp_id", expression.id))]))
    for anno in _list(expression.attrs.get("anno_ids")):
        # ReasonVOS: <source>_<video>_<object>/<expression as its own file numbers it>.
        for exp in reversed(ids):
            if clip.attrs.get("source") is not None or "_" in str(anno):
                yield from _safe(f"{anno}/{exp}")
    yield from _safe(f"{clip.id}/{expression.id}")


def _images(clip: Clip, expression: Expression) -> Iterator[str]:
    """Files (without suffix) that may hold an image sample's mask, likeliest first."""
    frame = clip.frame_names[0]
    file = Path(str(clip.attrs.get("file_name", ""))).stem
    names = [f"{clip.id}/{expression.id}"]
    for stem in dict.fromkeys([clip.id, frame, file]):
        if stem:
            names += [f"{stem}/{expression.id}", f"{stem}_{expression.id}"]
    if "sent_id" in expression.attrs:
        names.append(str(expression.attrs["sent_id"]))
    if _is_first(expression):
        names += [clip.id, frame]
    for name in dict.fromkeys(names):
        yield from _safe(name)


def _safe(name: str) -> Iterator[str]:
    if bad_name(name) is None:
        yield name


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _listing(folder: str) -> frozenset[str] | None:
    """Names in a folder, ``None`` if there is none."""
    try:
        return _names_in(folder, os.stat(folder).st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=64)
def _names_in(folder: str, changed: int) -> frozenset[str]:
    # Names with a dot in front are what systems leave beside files (macOS: ._00000.png).
    return frozenset(name for name in os.listdir(folder) if not name.startswith("."))


def _frames(folder: Path, names: frozenset[str], clip: Clip) -> _Found:
    wanted = [f"{name}.png" for name in clip.frame_names]
    # What a listing holds is a plain name, whatever the clip says.
    files = tuple([folder / name if name in names else None for name in wanted])
    rest = sorted(name.removesuffix(".png") for name in names.difference(wanted) if name.endswith(".png"))
    why = ""
    if None in files:
        why = f"{frames_instead(names, clip.frame_names)} (in '{folder}')"
        if counted_from_1([n.removesuffix(".png") for n in names if n.endswith(".png")], clip.frame_names):
            files = (None,) * len(clip)
    return _Found(files, tuple(rest), why)


def fitting(shape: tuple[int, ...], clip: Clip, sides: Sequence[int], file: str | Path) -> tuple[int, int]:
    """The size of a mask, if it is its clip's or, for an image, one of the squares allowed.

    Raises:
        ScoreError: with both sizes.
    """
    if shape == clip.size or (len(clip) == 1 and shape in [(side, side) for side in sides]):
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
    """Refuse a JPEG whose foreground nobody has set apart from its blur.

    Raises:
        ScoreError: with what helps.
    """
    if "JPEG" in encoding and not above:
        raise ScoreError(
            "The mask is a JPEG, no PNG: its blur around the outline would count as foreground "
            "(--threshold 127 leaves it out).",
            where=file,
            hint="Write masks as PNG, or give --threshold 127.",
        )


def _failure(error: RefsegError) -> SampleFailure:
    place = "" if error.where is None else f" ({error.where})"
    return SampleFailure(type(error).__name__, f"{error.what}{place}", str(error))


def _via(labels: Mapping[str, State], expression: Expression) -> State:
    return labels.get(_set_of(expression, labels), State("missing"))


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
        if len(each.missing()) == len(clip):
            continue
        ids: dict[str, list[int]] = {}
        failures: dict[str, SampleFailure] = {}
        tracks: dict[str, MaskTrack] = {}
        for e in (e for e in expressions if _set_of(e, maps) == name):
            try:
                ids[e.id] = _pixel_values(clip, e)
            except DataError as error:
                failures[e.id] = _failure(error)
        try:
            found = _split_one(each, clip, ids) if ids else {}
            tracks = {key: MaskTrack(clip.size, rles) for key, rles in found.items()}
        except RefsegError as error:
            failures.update(dict.fromkeys(ids, _failure(error)))
        for key in (*tracks, *failures):
            unit = sample_id(clip.id, key)
            out[key] = Prediction(unit, clip.id, key, tracks.get(key), failures.get(key))
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


def _split_one(
    maps: LabelMaps, clip: Clip, ids: Mapping[str, Sequence[int]]
) -> dict[str, tuple[bytes | None, ...]]:
    """Counts per expression and frame, ``None`` where there is no map."""
    rles: dict[str, list[bytes | None]] = {key: [] for key in ids}
    absent = set(maps.missing())
    values: set[int] = set()
    for t, frame in enumerate(clip.frame_names):
        labels = None if frame in absent else maps.frame(t)
        if labels is not None and values <= {0, 255}:
            values.update(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())
        for key, own in ids.items():
            mask = None if labels is None else np.isin(labels, own) if len(own) != 1 else labels == own[0]
            rles[key].append(None if mask is None else encode_rle(mask))
    if values - {0} == {255} and not any(255 in own for own in ids.values()):
        raise DataError(
            f"The maps of '{clip.id}' hold only 0 and 255, so they are masks, not id maps: the masks of one "
            f"expression lie in '{clip.id}/<expression>/<frame>.png'."
        )
    return {key: tuple(counts) for key, counts in rles.items()}


# ── JSON of run lengths ──────────────────────────────────────────────────────


@dataclass(frozen=True)
class JsonPredictions:
    """One JSON file of COCO run lengths, as Sa2VA writes it or in a near form (docs/scoring.md).

    Attributes:
        path: the file.
        sides: see :func:`open_predictions`.
    """

    path: Path
    sides: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The file as given."""
        return str(self.path)

    def survey(self, clip: Clip, expressions: Sequence[Expression]) -> Survey:
        """States from the parsed file, every mask measured."""
        held = _parsed(self.path)
        shifted = held.counted_from_1(clip, expressions)
        states: dict[str, State] = {}
        for e in expressions:
            state = State("missing") if shifted else state_of(self._prediction(clip, e), clip)
            if state.status == "missing":
                state = State("missing", why=shifted or held.instead(clip, e))
            states[e.id] = state
        return Survey(states)

    def notes(self, dataset: Dataset) -> list[str]:
        """What the file holds of no sample of a dataset, in a line."""
        held = _parsed(self.path)
        known: dict[str, set[str]] = {}
        for clip in dataset.clips():
            keys = {key for e in dataset.expressions(clip) for key in _keys(e)}
            annos = {str(a) for e in dataset.expressions(clip) for a in _list(e.attrs.get("anno_ids"))}
            for name in (*_names(clip), *annos):
                known.setdefault(name, set()).update(keys)
            known.update({key: set() for key in keys if len(clip) == 1})
            known.update(
                {f"{n}{sign}{k}": set() for n in (*_names(clip), *annos) for k in keys for sign in "/_"}
            )
        rest = sorted(name for name in held.clips if name not in known)
        for name in held.clips.keys() & known.keys():
            within = held.expressions(name)
            if isinstance(within, Mapping) and "counts" not in within and _mask_in(within) is None:
                rest += sorted(f"{name}/{key}" for key in within if known[name] and key not in known[name])
        if not rest:
            return []
        told = f"note: names in the file that no sample has, not read ({len(rest)}): {few(rest)}"
        return [printable(told)]

    def answers(
        self, clip: Clip, expressions: Sequence[Expression], *, labels: bool, samples: bool
    ) -> Answers:
        """The clip's masks, checked."""
        held = _parsed(self.path)
        if held.counted_from_1(clip, expressions):
            expressions = ()
        found = {e.id: self._prediction(clip, e) for e in expressions}
        out = {key: p for key, p in found.items() if p is not None}
        greys: dict[str, GreyTrack] = {
            k: ConstantGrey(p.track) for k, p in out.items() if p.track is not None
        }
        return Answers(out, greys, None, not held.has_clip(clip))

    def _prediction(self, clip: Clip, e: Expression) -> Prediction | None:
        entry = _parsed(self.path).find(clip, e)
        masks = None if entry is None else _masks_of(entry, clip)
        if masks is None:
            return None
        unit = sample_id(clip.id, e.id)
        more = entry if isinstance(entry, Mapping) else {}
        try:
            track = self._track(masks, clip, unit)
            said = next((more[k] for k in FLAG_KEYS if k in more), None)
            place = f"{self.path}: {unit}"
            flag = None if said is None else _flag(said, place)
            return Prediction(unit, clip.id, e.id, track, point=_point(more, clip, place), no_target=flag)
        except RefsegError as error:
            return Prediction(unit, clip.id, e.id, failure=_failure(error))

    def _track(self, masks: Sequence[Any], clip: Clip, unit: str) -> MaskTrack:
        if len(masks) != len(clip):
            raise DataError(f"{len(masks)} masks for {len(clip)} frames.", where=f"{self.path}: {unit}")
        said = masks[0].get("size") if len(clip) == 1 and isinstance(masks[0], Mapping) else None
        squares = [(side, side) for side in self.sides if said == [side, side]]
        size = squares[0] if squares else clip.size
        rles: list[bytes | None] = []
        for t, mask in enumerate(masks):
            if mask is None:
                rles.append(None)
                continue
            rles.append(_measured(mask, size, self.path, f"{unit}[{t}]"))
        return MaskTrack(size, tuple(rles))


def _load(path: Path) -> Any:
    """The value of a JSON file, or the list of the lines of JSON lines; UTF-8 or UTF-16, with BOM or without.

    Raises:
        DataError: unreadable, torn, too deep, or an object that says two things of one key.
    """
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
    """A parsed predictions file, looked up by clip and expression."""

    def __init__(self, path: Path) -> None:
        self.path = path
        loaded = _load(path)
        if isinstance(loaded, Mapping) and isinstance(loaded.get("videos"), (Mapping, list)):
            loaded = loaded["videos"]
        if (
            isinstance(loaded, Mapping)
            and any(k in loaded for k in CLIP_KEYS)
            and _mask_in(loaded) is not None
        ):
            # JSON lines of one line.
            loaded = [loaded]
        self.clips: dict[str, Any] = {}
        if isinstance(loaded, Mapping):
            self.clips = dict(loaded)
        elif isinstance(loaded, list):
            for index, record in enumerate(loaded):
                self._enter(record, index)
        else:
            raise DataError("The predictions are neither an object nor a list.", where=path)
        self._joined = {key.rpartition("/")[0] for key in self.clips}

    def _enter(self, record: Any, index: int) -> None:
        if not isinstance(record, Mapping):
            raise DataError(f"Entry [{index}] is no object.", where=self.path)
        clip = next((record[k] for k in CLIP_KEYS if k in record), None)
        if clip is None:
            if not record or not all(isinstance(value, (Mapping, list)) for value in record.values()):
                raise DataError(f"Entry [{index}] names no clip.", where=self.path, allowed=CLIP_KEYS)
            # JSON lines, each with a piece of one object.
            for key, value in record.items():
                self._put(self.clips, key, value, key)
            return
        clip = str(clip)
        if isinstance(record.get("expressions"), (Mapping, list)):
            self._put(self.clips, clip, record, clip)
            return
        named = next((record[k] for k in EXPRESSION_KEYS if k in record), None)
        expression = "0" if named is None else str(named)
        held = self.clips.setdefault(clip, {})
        if not isinstance(held, dict) or "expressions" in held:
            raise self._twice(clip)
        if "frame" in record:
            # One entry per frame.
            frame = record["frame"]
            if not isinstance(frame, str):
                raise DataError(
                    f"Entry [{index}] has the frame {printable(repr(frame)[:40])}, which is no text.",
                    where=self.path,
                    hint="Write the frame's name as the data set's own list has it.",
                )
            frames = held.setdefault(expression, {})
            if not isinstance(frames, dict) or _mask_in(frames) is not None:
                raise self._twice(f"{clip}/{expression}")
            self._put(frames, frame, _mask_in(record), f"{clip}/{expression}, frame {frame}")
            return
        more = "" if named is not None else f" (without {', '.join(EXPRESSION_KEYS)} it is taken for '0')"
        self._put(held, expression, record, f"{clip}/{expression}{more}")

    def _put(self, into: dict[str, Any], key: str, value: Any, name: str) -> None:
        if _told(into.setdefault(key, value)) != _told(value):
            raise self._twice(name)

    def _twice(self, name: str) -> DataError:
        return DataError(
            f"The sample {printable(name)} stands twice, with different masks.",
            where=self.path,
            hint="Keep one of the two: which one is meant can't be told.",
        )

    def has_clip(self, clip: Clip) -> bool:
        """True if the file says anything about the clip."""
        return clip.id in self._joined or any(name in self.clips for name in _names(clip))

    def find(self, clip: Clip, expression: Expression) -> Any:
        """The entry of a sample, or ``None``.

        Raises:
            DataError: there are two, and they differ.
        """
        keys, names = _keys(expression), _names(clip)
        nested = next(
            (e for e in (self._within(n, keys, clip, expression) for n in names) if e is not None), None
        )
        joined = next(
            (
                self.clips[key]
                for key in (f"{n}{sign}{k}" for n in names for k in keys for sign in "/_")
                if key in self.clips
            ),
            None,
        )
        if nested is not None and joined is not None and _told(nested) != _told(joined):
            raise self._twice(sample_id(clip.id, expression.id))
        if nested is not None or joined is not None:
            return joined if nested is None else nested
        for anno in _list(expression.attrs.get("anno_ids")):
            for key in reversed(keys):
                for name in (f"{anno}_{key}", f"{anno}/{key}"):
                    if name in self.clips:
                        return self.clips[name]
                held = self.clips.get(str(anno))
                if isinstance(held, Mapping) and key in held:
                    return held[key]
        if len(clip) == 1 and "sent_id" in expression.attrs:
            return self.clips.get(str(expression.attrs["sent_id"]))
        return None

    def expressions(self, name: str) -> Any:
        """What stands under a clip's name, by expression if it is a list of them."""
        held = self.clips.get(name)
        if isinstance(held, Mapping) and isinstance(held.get("expressions"), (Mapping, list)):
            held = held["expressions"]
        if (
            isinstance(held, list)
            and held
            and all(isinstance(r, Mapping) and "counts" not in r for r in held)
        ):
            by_id: dict[str, Any] = {}
            for index, record in enumerate(held):
                key = str(next((record[k] for k in EXPRESSION_KEYS if k in record), index))
                self._put(by_id, key, record, f"{name}/{key}")
            held = by_id
        return held

    def counted_from_1(self, clip: Clip, expressions: Sequence[Expression]) -> str:
        """Why none of a clip's expressions is read where all of them are one off."""
        ids = [e.id for e in expressions]
        if len(clip) > 1 and ids and any(self.find(clip, e) is None for e in expressions):
            held = self.expressions(clip.id)
            joined = [key.removeprefix(f"{clip.id}/") for key in self.clips if key.startswith(f"{clip.id}/")]
            for names in (held if isinstance(held, Mapping) else (), joined):
                if counted_from_1(names, ids):
                    return f"the expressions of '{clip.id}' are counted from 1: they are {few(ids)}"
        return ""

    def instead(self, clip: Clip, expression: Expression) -> str:
        """What stands in the place of a sample that is missing, and what to do."""
        entry = self.find(clip, expression)
        if isinstance(entry, Mapping):
            if len(clip) > 1 and all(map(numbers, entry)):
                return frames_instead(entry, clip.frame_names, "")
            return f"its entry holds {few(entry)}, none of them masks ({', '.join(MASK_KEYS)})"
        if entry is not None:
            return "its entry is no list of masks"
        wanted = sample_id(clip.id, expression.id)
        for name in _names(clip):
            held = self.expressions(name)
            if isinstance(held, list):
                return f"the entry '{name}' is a list without names: put each expression's masks under its id"
            if isinstance(held, Mapping):
                near = meant(expression.id, held, expression.text)
                hint = f": rename it to '{expression.id}'"
                return (
                    f"'{name}' holds {few(held)}, no '{expression.id}'"
                    if near is None
                    else f"found '{name}', '{near}'{hint}"
                )
        swapped = self.clips.get(expression.id)
        if isinstance(swapped, Mapping) and clip.id in swapped:
            return f"found '{expression.id}', '{clip.id}': the levels are swapped, the clip comes first"
        for key, value in self.clips.items():
            if isinstance(value, (Mapping, list)) and len(self.clips) < 10:
                inside = (
                    value
                    if isinstance(value, Mapping)
                    else {str(r.get(k)) for r in value if isinstance(r, Mapping) for k in CLIP_KEYS}
                )
                if clip.id in inside:
                    return f"found below '{key}': write what stands there alone"
        for name, hint in ((wanted, wanted), (clip.id, clip.id)):
            near = meant(name, self.clips)
            if near is not None:
                return f"found '{near}': rename it to '{hint}'"
        return ""

    def _within(self, name: str, keys: Sequence[str], clip: Clip, expression: Expression) -> Any:
        """The entry of an expression within the entry of its clip."""
        held = self.expressions(name)
        if not isinstance(held, Mapping):
            return None
        for key in keys:
            if key in held and key not in MASK_KEYS:
                return held[key]
        if len(clip) == 1 and any(k in held for k in (*MASK_KEYS, "counts")) and _is_first(expression):
            return held
        return None


def _mask_in(record: Mapping[str, Any]) -> Any:
    return next((record[k] for k in MASK_KEYS if k in record), None)


def _told(entry: Any) -> Any:
    """What an entry says of its sample, without what else stands there."""
    if not isinstance(entry, Mapping) or "counts" in entry or _mask_in(entry) is None:
        return entry
    return [_mask_in(entry), *(entry.get(k) for k in (*FLAG_KEYS, "point"))]


def _keys(expression: Expression) -> list[str]:
    """What an expression may be called in a JSON, likeliest first."""
    own = (str(expression.attrs[attr]) for attr in ("exp_id", "sent_id") if attr in expression.attrs)
    return [expression.id, *own]


def _is_first(expression: Expression) -> bool:
    """True for an image's first text, for which the image's own name may stand.

    Sentences with an id of their own (RefCOCO) are never meant by it: image and sentence ids overlap.
    """
    return "sent_id" not in expression.attrs and str(expression.attrs.get("text_index", expression.id)) == "0"


def _names(clip: Clip) -> list[str]:
    names = [clip.id]
    if len(clip) == 1:
        names += [clip.frame_names[0], str(clip.attrs.get("image_id", clip.id))]
    return list(dict.fromkeys(names))


@lru_cache(maxsize=2)
def _parsed(path: Path) -> _Held:
    return _Held(path)


def _masks_of(entry: Any, clip: Clip) -> list[Any] | None:
    """The run lengths of an entry, one per frame; ``None`` if it has none."""
    if isinstance(entry, Mapping) and "counts" not in entry:
        found = _mask_in(entry)
        if found is None and any(name in entry for name in clip.frame_names):
            found = entry
        entry = found
    if entry is None:
        return None
    if isinstance(entry, Mapping):
        if "counts" in entry:
            return [entry]
        if any(name not in entry for name in clip.frame_names) and counted_from_1(entry, clip.frame_names):
            return None
        return [entry.get(name) for name in clip.frame_names]
    return list(entry) if isinstance(entry, list) else None


def _measured(mask: Any, size: tuple[int, int], file: Path, place: str) -> bytes | None:
    """The counts of a mask that may have whole numbers written as floats.

    Raises:
        DataError: it is no mask of that size.
    """
    if isinstance(mask, Mapping):
        mask = {k: _whole(v) if k in ("size", "counts") else v for k, v in mask.items()}
    try:
        found = checked_rle(mask, size, Place(file, place))
    except DataError as error:
        raise DataError(
            f"{error.what}{_slip(mask, size)}", where=error.where, hint="Write the JSON again."
        ) from None
    return None if found is None else found[0]


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
    """A flag that is true or false, or 1 or 0.

    Raises:
        DataError: it is anything else (the text "false" is true to Python).
    """
    if isinstance(said, (bool, int, float)) and said in (0, 1):
        return bool(said)
    raise DataError(f"A flag is {printable(repr(said)[:40])}.", where=where, allowed=("true", "false"))


def _point(entry: Mapping[str, Any], clip: Clip, where: str) -> HeatPoint | None:
    """The heat map's peak: ``{"point": {"y", "x", "frame"}}`` in [0, 1] from the top left corner."""
    raw = entry.get("point")
    if raw is None:
        return None
    try:
        point = HeatPoint(int(raw.get("frame", 0)), float(raw["y"]), float(raw["x"]))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"'point' is {printable(repr(raw)[:60])}.", allowed=('{"y": 0..1, "x": 0..1, "frame": 0}',)
        ) from error
    if not (0 <= point.y <= 1 and 0 <= point.x <= 1 and 0 <= point.frame < len(clip)):
        raise DataError(
            f"'point' {printable(repr(raw)[:60])} lies outside of the clip.", where=where, allowed=("0 to 1",)
        )
    return point
