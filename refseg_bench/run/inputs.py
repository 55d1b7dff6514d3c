"""What samples were predicted on and with, and whether data and weights are still those.

A run folder outlives its data: a set is fixed and unpacked again, or the same command is given with
another root. Each stored sample tells the words, the frame names, the size and the frames' content it
was made from; :class:`Present` holds that against the data set as it is now. The truth is part of it only
where the method saw it: else other masks ask for scoring again, not for predicting again. The same goes for
the weights that a path names, and for code outside this package.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from refseg_bench.datasets.base import Dataset
from refseg_bench.errors import DataError, ScoreError, StoreError
from refseg_bench.files.store_io import (
    MOST_BYTES,
    PUT_BACK,
    checksum,
    content,
    parse_json,
    read_text,
    reading,
    sealed,
    unsealed,
    writing,
)
from refseg_bench.run.store import RunStore, StoredLine
from refseg_bench.types import Clip, Expression, Inputs, Prediction, SampleFailure, sample_id

#: What helps where samples were predicted on other data.
HINT = (
    "The same `refseg run` predicts them again (the same `refseg score --save` reads them again); or put "
    "back what was there."
)


class StaleError(ScoreError):
    """Samples of a run were predicted on other data than the data set holds now, or with other weights."""


@dataclass(eq=False)
class Present:
    """A data set's clips as they are now; each clip's files are looked at once.

    Files are known again by their sizes and times. Where those differ (a copy, a new download), their
    content is read and decides.
    """

    dataset: Dataset | None  #: only its targets are asked for here, where a method saw them
    #: Clip id → state and digest of its files as an earlier command found them: files of the same state are
    #: not read again.
    seen: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    weights: str | None = None  #: digest of the method's weights; ``None`` = not known, empty = it has none
    _facts: dict[str, bytes] = field(default_factory=dict, init=False)
    _told: dict[tuple[str, str], str] = field(default_factory=dict, init=False)
    _states: dict[str, str] = field(default_factory=dict, init=False)
    _files: dict[str, str] = field(default_factory=dict, init=False)
    _marked: list[tuple[Any, int, dict[str, str]]] = field(default_factory=list, init=False)

    def inputs(self, clip: Clip, expression: Expression, *, seen: bool = False) -> Inputs:
        """What a sample would be predicted on; ``seen``: by a method that sees the targets."""
        # The state first: files that change while they are read are found to differ afterwards.
        state = self.state(clip)
        return Inputs(
            expression.text,
            _spanned(clip),
            clip.size,
            self.facts(clip, expression),
            self.files(clip),
            state,
            self.truth(clip, expression) if seen else "",
            self.weights or "",
        )

    def facts(self, clip: Clip, expression: Expression) -> str:
        """Digest of an expression's words and its clip's frame names and size."""
        known = self._facts.get(clip.id)
        if known is None:
            known = _digest((*clip.frame_names, "", *map(str, clip.size))).encode()
            self._facts[clip.id] = known
        told = self._told.get((clip.id, expression.text))
        if told is None:
            told = checksum(known + expression.text.encode("utf-8", "surrogatepass"))
            self._told[clip.id, expression.text] = told
        return told

    def state(self, clip: Clip) -> str:
        """Digest of the sizes and times of a clip's files; empty where one is missing.

        The time of the last change of the inode is among them: no copying tool can set it.
        """
        known = self._states.get(clip.id)
        if known is None:
            known = ""
            with suppress(OSError):
                stats = [os.stat(path) for path in clip.frame_paths]
                known = _digest(f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}" for s in stats)
            self._states[clip.id] = known
        return known

    def files(self, clip: Clip) -> str:
        """Digest of the bytes of a clip's frames, wherever they lie; empty where one can't be read."""
        if not (known := self.known(clip)):
            with suppress(OSError):
                known = checksum(b"".join(map(content, clip.frame_paths)))
            self._files[clip.id] = known
        return known

    def known(self, clip: Clip) -> str:
        """The same, where it is known without reading them; else empty."""
        if clip.id not in self._files:
            state, files = self.seen.get(clip.id, ("", ""))
            if state and files and state == self.state(clip):
                self._files[clip.id] = files
        return self._files.get(clip.id, "")

    def truth(self, clip: Clip, expression: Expression) -> str:
        """Digest of a sample's target; empty where it is hidden or can't be read."""
        target = None
        with suppress(DataError):
            target = None if self.dataset is None else self.dataset.target(clip, expression)
        if target is None:
            return ""
        tracks = (*target.objects, *(track for track in (target.void,) if track is not None))
        frames = [counts for track in tracks for counts in (str(track.size).encode(), *track.rles)]
        return checksum(b"\n".join(b"-" if counts is None else counts for counts in frames))

    def same(self, line: StoredLine, clip: Clip, expression: Expression) -> bool:
        """Whether a stored sample was predicted on what the data set holds now.

        What isn't known (frames that are not on this machine) is taken to be the same.
        """
        return line.inputs is None or not self._unlike(clip, expression, *line.inputs)

    def _unlike(
        self, clip: Clip, expression: Expression, facts: str, files: str, state: str, truth: str, weights: str
    ) -> Literal["", "facts", "files", "truth", "weights"]:
        """Which part of a sample's inputs is not what there is now."""
        if weights and self.weights and weights != self.weights:
            return "weights"
        if facts != self.facts(clip, expression):
            return "facts"
        if not self._same_files(clip, files, state):
            return "files"
        return "truth" if truth and self.truth(clip, expression) not in ("", truth) else ""

    def _same_files(self, clip: Clip, files: str, state: str) -> bool:
        if not files or not self.state(clip):
            return True
        if state == self.state(clip):
            self._files.setdefault(clip.id, files)
            return True
        return self.files(clip) in ("", files)

    def open(
        self, index: Mapping[str, StoredLine], clip: Clip, expressions: Sequence[Expression]
    ) -> tuple[Expression, ...]:
        """Those expressions of a clip that have no prediction on what the data set holds now."""
        lines = ((e, index.get(sample_id(clip.id, e.id))) for e in expressions)
        return tuple(e for e, line in lines if line is None or not line.ok or not self.same(line, clip, e))

    def marks(self, work: Iterable[tuple[Clip, Sequence[Expression]]]) -> dict[str, str]:
        """Digests of all that :meth:`inputs` would tell of some work, without reading a file.

        They are ``facts``, ``state``, and ``files`` (empty where the content of a clip's frames isn't known).
        """
        for same, known, marks in self._marked:
            if same is work and known == len(self._files):
                return marks
        facts, states, files = [], [], []
        for clip, expressions in work:
            facts += [f"{sample_id(clip.id, e.id)} {self.facts(clip, e)}" for e in expressions]
            states.append(self.state(clip))
            files.append(self._files.get(clip.id, ""))
        found = {
            "facts": _digest(facts),
            "state": _digest(states) if all(states) else "",
            "files": _digest(files) if all(files) else "",
        }
        self._marked[:] = [(work, len(self._files), found)]
        return found

    def mark(self, work: Iterable[tuple[Clip, Sequence[Expression]]]) -> str:
        """A digest of all that :func:`stale` holds samples against, but for the targets and the weights."""
        return _digest((self.marks(work)["facts"], *(self.state(clip) for clip, _ in work)))

    def unlike(self, marks: Mapping[str, str], dataset: Recorded) -> str:
        """Which of the data differ from those that a result tells of in its ``marks``; empty if none do.

        Files are read only where their state differs.
        """
        now, told = self.marks(dataset.work), marks.get("annotations")
        if now["facts"] != marks.get("facts"):
            return "samples, texts, frame names or sizes"
        if told and dataset.truth:
            read = "".join(map(self.files, dataset.truth))
            # Nothing is known of a set that is not here; one that lacks a file is here.
            here = not read and any(_stat(path) for clip in dataset.truth for path in clip.frame_paths)
            if here or read not in ("", told):
                return "the annotations"
        elif changed := dataset.changed():
            return changed
        if marks.get("state") == now["state"] or not (marks.get("files") and now["state"]):
            return ""
        for clip, _ in dataset.work:
            self.files(clip)
        return "the pixels of frames" if self.marks(dataset.work)["files"] not in ("", marks["files"]) else ""

    def difference(self, prediction: Prediction, clip: Clip, expression: Expression) -> str:
        """In which field a stored sample's data differ from the present ones; empty if in none."""
        made = prediction.inputs
        if made is None:
            return ""
        unlike = self._unlike(clip, expression, made.facts, made.files, made.state, made.truth, made.weights)
        if unlike == "weights":
            return f"weights or code were {made.weights}, are {self.weights} (digests)"
        if unlike == "files":
            return f"pixels: the files of its frames were {made.files}, are {self.files(clip)} (digests)"
        if unlike == "truth":
            now = self.truth(clip, expression)
            return f"target, which the method saw, was {made.truth}, is {now} (digests)"
        if not unlike:
            return ""
        if made.text != expression.text:
            return f"text was {_quoted(made.text)}, is {_quoted(expression.text)}"
        if tuple(made.size) != tuple(clip.size):
            return f"size was {_by(made.size)}, is {_by(clip.size)} (height x width)"
        return f"frame names were {_names(made.frames)}, are {_names(_spanned(clip))}"


def stale(
    store: RunStore, work: Iterable[tuple[Clip, Sequence[Expression]]], present: Present
) -> dict[str, str]:
    """The samples of a run that were predicted on other data than the data set holds now.

    So are those of other weights than the present ones or, where a command doesn't know the weights, than
    those of the process that started last: one result never mixes two models. Each is told with the field,
    its former and its present value.
    """
    index = store.index()
    present.weights = present.weights or store.weights()
    found: dict[str, str] = {}
    for clip, expressions in work:
        for expression in expressions:
            line = index.get(sample_id(clip.id, expression.id))
            if line is not None and line.ok and not present.same(line, clip, expression):
                found[line.sample] = present.difference(store.read(line), clip, expression)
    return found


def without(
    found: Mapping[str, Prediction], clip: Clip, differing: Mapping[str, str]
) -> dict[str, Prediction]:
    """A clip's predictions by expression; one that is of other data (what :func:`stale` found), or of another
    size than the clip is now, is a failure that says so.
    """
    out = dict(found)
    for name, prediction in found.items():
        if prediction.track is None:
            continue
        why = differing.get(prediction.sample) or prediction.track.misfit(clip.size, len(clip))
        if why:
            failure = SampleFailure(
                "StaleError", f"Predicted on other data, weights or code: {why}. {HINT}", ""
            )
            out[name] = replace(prediction, track=None, point=None, no_target=None, failure=failure)
    return out


def refusal(differing: Mapping[str, str], where: Path) -> StaleError:
    """The error of a run that has samples of other data."""
    return StaleError(
        f"{len(differing)} samples were predicted on other data, weights or code than there are now: "
        f"{told(differing, first=20)}.",
        where=where,
        hint=HINT,
    )


def told(differences: Mapping[str, str], first: int = 3) -> str:
    """The first differences in words, each with the first sample that has it."""
    alike: dict[str, list[str]] = {}
    for sample, what in differences.items():
        alike.setdefault(what, []).append(sample)
    groups = list(alike.items())[:first]
    named = [f"{s}{f' and {len(more)} more' if more else ''}: {what}" for what, (s, *more) in groups]
    more = len(differences) - sum(len(samples) for _, samples in groups)
    return "; ".join([*named, *([f"and {more} more"] if more else [])])


def _digest(texts: Iterable[str]) -> str:
    return checksum("\0".join(texts).encode("utf-8", "surrogatepass"))


def _spanned(clip: Clip) -> tuple[int, str, str]:
    """How many frames, and the names of the first and the last."""
    names = clip.frame_names
    return (len(names), names[0], names[-1]) if names else (0, "", "")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:99]}…")


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _names(frames: tuple[int, str, str]) -> str:
    count, first, last = frames
    return f"{count} from {first!r} to {last!r}"


#: Name of the file in a run folder.
NAME = "data.json"


@dataclass
class Recorded:
    """A data set as a command found it last."""

    #: Its clips with their expressions; of both only what a record holds.
    work: list[tuple[Clip, tuple[Expression, ...]]]
    #: Each of its own files (expressions) that was read → size and time of change.
    files: Mapping[str, tuple[int, int]]
    #: Clip id → state and digest of its frames' files, as :class:`~refseg_bench.run.inputs.Present` takes
    #: them.
    seen: Mapping[str, tuple[str, str]]
    #: A clip whose frames are all files that scoring read of it last; none = unknown.
    truth: Sequence[Clip] = ()

    def present(self, shared: dict[int, Present]) -> Present:
        """Its state; ``shared`` is a command's own, whose runs of one set look at the files once."""
        found = copy(shared.setdefault(id(self), Present(None, self.seen)))
        found.weights = None
        return found

    def changed(self) -> str:
        """Which of the data set's own files has changed since; empty if none has, or none is here."""
        return next((path for path, state in self.files.items() if _state(path) not in (None, state)), "")


def keep_record(
    store: RunStore,
    work: Iterable[tuple[Clip, Sequence[Expression]]],
    files: Collection[Path],
    present: Present,
    truth: Sequence[Clip] = (),
) -> None:
    """Write what was seen of a run's data set; names that no JSON can hold leave no record.

    ``files``: the data set's own files that were read; ``truth``: a clip of the files that scoring reads,
    none = the former record's.

    Raises:
        StoreError: it can't be written.
    """
    states = {path: _state(path) for path in sorted({os.path.abspath(path) for path in files})}
    with suppress(StoreError):
        truth = truth or getattr(recorded(store), "truth", ())
    record = {
        "clips": [[*_told(clip, e), present.state(clip), present.known(clip)] for clip, e in work],
        "truth": [[*_told(clip, ()), present.state(clip), present.known(clip)] for clip in truth],
        "files": {path: state for path, state in states.items() if state is not None},
    }
    text = sealed(record)
    with suppress(ValueError):
        # The reader takes no half characters, as names in another encoding have them.
        parse_json(text if "\\ud" in text else "null")
        if len(text) <= MOST_BYTES:
            return store.keep(text, NAME)
    path = store.place(NAME)
    with writing(path):
        path.unlink(missing_ok=True)


def recorded(store: RunStore) -> Recorded | None:
    """What the last command saw of a run's data set; ``None`` where none has told.

    Raises:
        StoreError: the record is damaged.
    """
    path = store.root / NAME
    if not path.exists():
        return None
    text = read_text(path)
    # Runs of one command have the same record; it is large, and read for each of a hundred runs.
    key = checksum(text.encode("utf-8", "surrogatepass"))
    if key not in _recorded:
        _recorded[key] = _record_of(text, path)
        if len(_recorded) > 4:
            del _recorded[next(iter(_recorded))]
    return _recorded[key]


#: The last records that were read, by the digest of their text.
_recorded: dict[str, Recorded] = {}


def _record_of(text: str, path: Path) -> Recorded:
    with reading(path, ValueError):
        record = unsealed(parse_json(text), path)
    try:
        work = [_clip(entry[:6]) for entry in record["clips"]]
        truth = [_clip(entry[:6])[0] for entry in record.get("truth", ())]
        entries = [*record["clips"], *record.get("truth", ())]
        seen = {str(name): (str(state), str(digest)) for name, *_, state, digest in entries}
        files = {str(name): (int(size), int(time)) for name, (size, time) in record["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError("The record of the data set is malformed.", where=path, hint=PUT_BACK) from error
    return Recorded(work, files, seen, truth)


def seen_before(store: RunStore) -> Mapping[str, tuple[str, str]]:
    """What the last command found of the frames' files; nothing where there is no whole record."""
    with suppress(StoreError):
        if found := recorded(store):
            return found.seen
    return {}


def _told(clip: Clip, expressions: Sequence[Expression]) -> list[Any]:
    """Id, size, frame names, folder of the frames, their files there, and [id, text] of the expressions."""
    paths = [os.fspath(path) for path in clip.frame_paths]
    start = os.path.join(os.path.dirname(paths[0]), "") if paths else ""
    files = [path[len(start) :] if path.startswith(start) else os.path.abspath(path) for path in paths]
    size = [int(side) for side in clip.size]
    texts = [[e.id, e.text] for e in expressions]
    return [clip.id, size, list(clip.frame_names), os.path.abspath(start), files, texts]


def _clip(entry: Any) -> tuple[Clip, tuple[Expression, ...]]:
    """The way back; a malformed entry is a ``ValueError`` or ``TypeError``."""
    name, (height, width), names, folder, files, expressions = entry
    paths = [name, folder, *names, *files]
    texts = [*paths, *(word for pair in expressions for word in pair)]
    if not all(isinstance(text, str) for text in texts) or "\0" in "".join(paths) or len(names) != len(files):
        raise ValueError("no text")
    found = tuple(Path(folder, file) for file in files)
    made = tuple(Expression(number, text) for number, text in expressions)
    return Clip(name, found, tuple(names), (int(height), int(width))), made


def states(paths: Iterable[Path]) -> str:
    """Digest of the sizes and times of some files, in their order."""
    return _digest(str(s and (s.st_size, s.st_mtime_ns, s.st_ctime_ns)) for s in map(_stat, paths))


def _stat(path: str | Path) -> os.stat_result | None:
    with suppress(OSError, ValueError):
        return os.stat(path)
    return None


def _state(path: str | Path) -> tuple[int, int] | None:
    """Size and time of change; ``None`` where the file is not here."""
    found = _stat(path)
    return found and (found.st_size, found.st_mtime_ns)
