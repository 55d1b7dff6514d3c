"""Read one entry of a huge keyed JSON file without reading the file.

``mask_dict.json`` of MeViS and ReVOS is hundreds of MB, a clip needs a few kB of it. The file is
walked once (:class:`JsonStream`, in a few MB of memory) for the place of every entry; the places go
to a small index beside the run caches, made atomically, shared by all processes and dropped when the
file changes. Small files are walked each time, in memory.
"""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from refseg_bench.datasets.files import fingerprint, open_data, parse_json, unreadable
from refseg_bench.datasets.issues import Damage, Place
from refseg_bench.files.store_io import open_regular, replacing, sweep, tell_unwritten

#: Below this many bytes an index on disk costs more than it saves.
SMALL = 4 << 20
#: Part of every index's name: a new way of indexing never reads an old index.
VERSION = 1

# ── walking: strings, brackets, commas; values are handed out as bytes, to be parsed when wanted ──

_CHUNK = 4 << 20
_DEPTH = 8

# Possessive quantifiers throughout: a match runs once over the bytes, without a backtracking stack.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'


def _nested(depth: int) -> bytes:
    """A bracketed value up to a depth; that brackets pair up is checked by `json` on parsing."""
    inner = rb'[^\[\]{}"]++|' + _STRING
    if depth > 1:
        inner += rb"|" + _nested(depth - 1)
    return rb"[\[{](?:" + inner + rb")*+[\]}]"


_WHITE = re.compile(rb"[ \t\r\n]*+")
_KEY = re.compile(rb"(" + _STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)
_VALUE = re.compile(_STRING + rb"|" + _nested(_DEPTH) + rb"|[^\s,\[\]{}\":]++(?=[\s,\]}])", re.DOTALL)


class JsonStream:
    """A cursor in a JSON file.

    Use :meth:`members` on an object and :meth:`elements` on a list; for every item either take
    :meth:`value` or walk into it with one of the two.

    Raises (all methods):
        Damage: the file is missing, or what stands at the cursor is not what was asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_data(path)
        self._buffer = b""
        self._at = 0
        self._base = 0
        while len(self._buffer) < 3 and self._more():
            pass
        if self._buffer.startswith(b"\xef\xbb\xbf"):
            self._at = 3

    def __enter__(self) -> JsonStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    @property
    def position(self) -> int:
        """Byte offset of the cursor."""
        return self._base + self._at

    def torn(self, expected: str) -> Damage:
        """The error of text that is not what it should be here."""
        told = f"The JSON is torn or malformed: expected {expected}."
        return Damage("torn JSON", told, self.path, f"byte {self.position}")

    def _more(self) -> bool:
        # Doubling keeps a value longer than the buffer linear: each retry looks at twice as much.
        try:
            piece = self._file.read(max(_CHUNK, len(self._buffer) - self._at))
        except OSError as error:
            raise unreadable(self.path, error) from error
        if not piece:
            return False
        self._base += self._at
        self._buffer = self._buffer[self._at :] + piece
        self._at = 0
        return True

    def _match(self, pattern: re.Pattern[bytes], expected: str) -> re.Match[bytes]:
        while True:
            found = pattern.match(self._buffer, self._at)
            if found is not None:
                self._at = found.end()
                return found
            if not self._more():
                raise self.torn(expected)

    def peek(self) -> bytes:
        """The next byte that is not white space; empty at the end of the file."""
        while True:
            found = _WHITE.match(self._buffer, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._buffer):
                return self._buffer[self._at : self._at + 1]
            if not self._more():
                return b""

    def _take(self, allowed: tuple[bytes, ...]) -> bytes:
        found = self.peek()
        if found not in allowed:
            raise self.torn(" or ".join(f"'{mark.decode()}'" for mark in allowed))
        self._at += 1
        return found

    def value(self) -> tuple[int, bytes]:
        """Byte offset and text of the value at the cursor; the cursor moves behind it."""
        self.peek()
        found = self._match(_VALUE, "a value")
        return self._base + found.start(), found.group()

    def members(self) -> Iterator[str]:
        """Keys of the object at the cursor; take each value before asking for the next."""
        for _ in self._items(b"{", b"}"):
            self.peek()
            text = self._match(_KEY, "a key").group(1)
            try:
                key = str(json.loads(text))
            except ValueError as error:
                raise self.torn("a key in UTF-8") from error
            yield key

    def elements(self) -> Iterator[int]:
        """Numbers of the items of the list at the cursor; take each before asking for the next."""
        return self._items(b"[", b"]")

    def _items(self, opening: bytes, closing: bytes) -> Iterator[int]:
        self._take((opening,))
        if self.peek() == closing:
            self._at += 1
            return
        for number in itertools.count():
            yield number
            if self._take((b",", closing)) == closing:
                return

    def finish(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise self.torn("the end of the file")


# ── entries ──────────────────────────────────────────────────────────────────


@dataclass
class Entries:
    """Keyed JSON values inside one file, read one at a time.

    Attributes:
        path: the file the values are read from.
        file: the file to name in errors (the original, where ``path`` is made from it).
    """

    path: Path
    file: Path
    _places: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    _memory: bytes | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        """All keys, in the order of the file."""
        return iter(self._places)

    def raw(self, key: str) -> bytes:
        """The JSON text of one entry.

        Raises:
            Damage: no such entry, or the file is shorter than it was.
        """
        if key not in self._places:
            raise Damage("missing entry", f"There is no entry '{key}'.", self.file)
        start, length = self._places[key]
        if self._memory is not None:
            return self._memory[start : start + length]
        try:
            with open_regular(self.path) as file:
                file.seek(start)
                text = file.read(length)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if len(text) != length:
            raise Damage("torn JSON", "The file ends early.", self.file, f"byte {start + len(text)}")
        return text

    def get(self, key: str) -> Any:
        """One entry as plain values.

        Raises:
            Damage: no such entry, or it is malformed.
        """
        return parse_entry(self.raw(key), Place(self.file, f"entry '{key}'"))


def parse_entry(text: bytes, at: Place) -> Any:
    """An entry of a larger file as plain values.

    Raises:
        Damage: no UTF-8, or malformed.
    """
    try:
        return parse_json(text.decode("utf-8"), at)
    except UnicodeDecodeError as error:
        raise at.damage("text in another encoding", "The entry is not UTF-8.") from error


Places = tuple[list[str], NDArray[np.int64]]
Items = Iterable[tuple[str, bytes]]


def object_places(path: Path) -> Places:
    """Keys and (offset, length) of the members of a JSON file's outermost object.

    Raises:
        Damage: torn file or a repeated key.
    """
    places: dict[str, tuple[int, int]] = {}
    with JsonStream(path) as stream:
        for key in stream.members():
            if key in places:
                where = f"key '{key}', byte {stream.position}"
                raise Damage("duplicate id", f"The key '{key}' stands twice.", path, where)
            if "\n" in key:
                raise stream.torn("a key without line breaks")
            start, text = stream.value()
            places[key] = start, len(text)
        stream.finish()
    return list(places), np.array(list(places.values()), np.int64).reshape(-1, 2)


def open_entries(path: Path, cache: Path) -> Entries:
    """The members of a JSON file's outermost object, indexed.

    Args:
        path: the JSON file.
        cache: folder of the indices.

    Raises:
        Damage: the file is missing or torn, or repeats a key.
    """
    mark = fingerprint(path)
    if path.stat().st_size < SMALL:
        return _entries(path, path, object_places(path))
    index = cache / "index" / f"{path.name}.{mark}.v{VERSION}.npz"
    with contextlib.suppress(*_NO_INDEX):
        return _entries(path, path, _load_index(index))
    # Two processes may both make it: the results are the same.
    found = object_places(path)
    try:
        _write_index(index, found)
    except OSError as error:
        # The index only saves time; a full or read-only cache must not stop a run.
        tell_unwritten(index, error)
    return _entries(path, path, found)


def open_store(sources: Sequence[Path], label: str, cache: Path, make: Callable[[], Items]) -> Entries:
    """Keyed JSON values *derived* from files that can't be read piecewise (pickles, joined tables).

    Args:
        sources: the files they are derived from, the one to name in errors first; a change of any
            makes a new store.
        label: beginning of the store's file name.
        cache: folder of the stores.
        make: yields key and JSON text of every entry, in a fixed order.

    Raises:
        Damage: what ``make`` raises, or a source is missing.
    """
    mark = fingerprint(*sources)
    if sum(path.stat().st_size for path in sources) < SMALL:
        return _in_memory(sources[0], make())
    data = cache / "index" / f"{label}.{mark}.v{VERSION}.json"
    index = data.with_suffix(".npz")
    with contextlib.suppress(*_NO_INDEX):
        found = _load_index(index)
        # The index is written after its data, so it never stands alone unless someone deleted the data.
        if data.stat().st_size == int(found[1].sum(axis=1).max(initial=0)):
            return _entries(data, sources[0], found)
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        with replacing(data) as out:
            found = _pack(make(), out)
        _write_index(index, found)
    except OSError as error:
        tell_unwritten(data, error)
        return _in_memory(sources[0], make())
    return _entries(data, sources[0], found)


def _entries(path: Path, file: Path, found: Places, memory: bytes | None = None) -> Entries:
    keys, places = found
    pairs = {k: (a, b) for k, (a, b) in zip(keys, places.tolist(), strict=True)}
    if len(pairs) != len(keys):
        raise Damage("duplicate id", "A key stands twice.", file)
    return Entries(path, file, pairs, memory)


def _pack(items: Items, out: IO[bytes]) -> Places:
    keys: list[str] = []
    places: list[tuple[int, int]] = []
    at = 0
    for key, text in items:
        out.write(text)
        keys.append(key)
        places.append((at, len(text)))
        at += len(text)
    return keys, np.array(places, np.int64).reshape(-1, 2)


def _in_memory(file: Path, items: Items) -> Entries:
    out = io.BytesIO()
    found = _pack(items, out)
    return _entries(file, file, found, out.getvalue())


#: What an index raises that is not there, or not whole.
_NO_INDEX = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def _load_index(index: Path) -> Places:
    with open_regular(index) as file, np.load(file, allow_pickle=False) as stored:
        places: NDArray[np.int64] = stored["places"]
        text = stored["keys"].tobytes().decode("utf-8")
        keys = text.split("\n") if places.size else []
        if len(keys) != len(places):
            raise ValueError("index of unequal lengths")
        return keys, places


def _write_index(index: Path, found: Places) -> None:
    """Store keys and places in one step; remove the indices of earlier states of the same file."""
    keys, places = found
    index.parent.mkdir(parents=True, exist_ok=True)
    with replacing(index) as out:
        np.savez(out, keys=np.frombuffer("\n".join(keys).encode("utf-8"), np.uint8), places=places)
    sweep(index.parent)
    place = index.name.rpartition("-")[0]
    for old in index.parent.glob(f"{glob.escape(place)}-*"):
        if old.stem != index.stem:
            with contextlib.suppress(OSError):
                old.unlink()
