"""What a command saw of a run's data set, kept in the run folder as data (``data.json``).

``run``, ``score``, ``submission`` and ``report --html`` open the data set; ``status`` and the tables of
``report`` only read this record. It is itself a data set, without targets, so that
:mod:`refseg_bench.run.inputs` holds runs against it as against the data set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refseg_bench.datasets.base import Dataset
from refseg_bench.errors import StoreError
from refseg_bench.files.store_io import (
    MOST_BYTES,
    PUT_BACK,
    read_record,
    sealed,
    write_atomic,
    write_error,
)
from refseg_bench.run.inputs import Present
from refseg_bench.run.store import RunStore
from refseg_bench.types import Clip, Expression, Target

#: Name of the file in a run folder.
NAME = "data.json"

_HALF = re.compile("[\ud800-\udfff]")


@dataclass
class RecordedDataset(Dataset):
    """A data set as a command found it last.

    Attributes:
        work: its clips with their expressions; of both only what a record holds.
        files: each of its own files (expressions, annotations) that was read → size and time of change.
        seen: clip id → state and digest of its frames' files, as :class:`~refseg_bench.run.inputs.Present`
            takes them.
    """

    work: list[tuple[Clip, tuple[Expression, ...]]]
    files: Mapping[str, tuple[int, int]]
    seen: Mapping[str, tuple[str, str]]
    name: str = ""
    split: str = ""
    protocols: Sequence[str] = ()
    _expressions: dict[str, tuple[Expression, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._expressions = {clip.id: expressions for clip, expressions in self.work}

    def clips(self) -> Sequence[Clip]:
        """All recorded clips."""
        return [clip for clip, _ in self.work]

    def expressions(self, clip: Clip) -> Sequence[Expression]:
        """The recorded expressions of a clip."""
        return self._expressions.get(clip.id, ())

    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """Not known."""
        return None

    def changed(self) -> str:
        """Which of the data set's own files has changed since; empty if none has, or none is here."""
        return next((path for path, state in self.files.items() if _state(path) not in (None, state)), "")


def keep_record(
    store: RunStore,
    work: Iterable[tuple[Clip, Sequence[Expression]]],
    files: Collection[Path],
    present: Present,
) -> None:
    """Write what was seen of a run's data set; names that no JSON can hold leave no record.

    Args:
        store: the run.
        work: clips with their expressions.
        files: the data set's own files that were read.
        present: what was found of the frames' files; later commands need not read them again.

    Raises:
        StoreError: it can't be written.
    """
    states = {path: _state(path) for path in sorted({os.path.abspath(path) for path in files})}
    record = {
        "clips": [[*_told(clip, e), present.state(clip), present.known(clip)] for clip, e in work],
        "files": {path: state for path, state in states.items() if state is not None},
    }
    text = sealed(record)
    path = store.place(NAME)
    # The reader takes no half characters, as names in another encoding have them.
    halves = "\\ud" in text and _HALF.search("".join(_texts([record["clips"], list(states)])))
    if halves or len(text) > MOST_BYTES:
        text = ""
    try:
        if text:
            write_atomic(path, text)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(error, path) from error


def recorded(store: RunStore) -> RecordedDataset | None:
    """What the last command saw of a run's data set; ``None`` where none has told.

    Raises:
        StoreError: the record is damaged.
    """
    path = store.root / NAME
    if not path.exists():
        return None
    record = read_record(path)
    try:
        work = [_clip(entry[:6]) for entry in record["clips"]]
        seen = {str(name): (str(state), str(digest)) for name, *_, state, digest in record["clips"]}
        files = {str(name): (int(size), int(time)) for name, (size, time) in record["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError("The record of the data set is malformed.", where=path, hint=PUT_BACK) from error
    return RecordedDataset(work, files, seen)


def seen_before(store: RunStore) -> Mapping[str, tuple[str, str]]:
    """What the last command found of the frames' files; nothing where there is no whole record."""
    try:
        found = recorded(store)
    except StoreError:
        return {}
    return {} if found is None else found.seen


def _told(clip: Clip, expressions: Sequence[Expression]) -> list[Any]:
    """Id, size, frame names, folder of the frames, their files there, and [id, text] of the expressions."""
    paths = [os.fspath(path) for path in clip.frame_paths]
    folder = os.path.dirname(paths[0]) if paths else ""
    start = len(folder) + 1
    files = [path[start:] if path[:start] == f"{folder}/" else os.path.abspath(path) for path in paths]
    if not folder:
        files = paths
    folder = os.path.abspath(folder)
    return [
        clip.id,
        [int(side) for side in clip.size],
        list(clip.frame_names),
        folder,
        files,
        [[e.id, e.text] for e in expressions],
    ]


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _clip(entry: Any) -> tuple[Clip, tuple[Expression, ...]]:
    """The way back.

    Raises:
        ValueError, TypeError: the entry is malformed.
    """
    name, (height, width), names, folder, files, expressions = entry
    texts = [name, folder, *names, *files, *(word for pair in expressions for word in pair)]
    if not all(isinstance(text, str) and "\0" not in text for text in texts) or len(names) != len(files):
        raise ValueError("no text")
    paths = tuple(Path(folder, file) for file in files)
    made = tuple(Expression(number, text) for number, text in expressions)
    return Clip(name, paths, tuple(names), (int(height), int(width))), made


def _state(path: str | Path) -> tuple[int, int] | None:
    """Size and time of change; ``None`` where the file is not here."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns
