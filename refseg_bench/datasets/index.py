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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from refseg_bench.datasets.files import Damage, Place, fingerprint, open_data, parse_json, unreadable
from refseg_bench.files.store_io import open_regular, replacing, sweep, tell_unwritten

#: Below this many bytes an index on disk costs more than it saves.
SMALL = 4 << 20
#: Part of every index's name: a new way of indexing never reads an old index.
VERSION = 3

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

#: Key → byte offset, length and CRC-32 of its value.
Places = Mapping[str, tuple[int, int, int]]
Items = Iterable[tuple[str, bytes]]


@dataclass(frozen=True, eq=False)
class Entries(Mapping[str, Any]):
    """Keyed JSON values inside one file, in its order, read one at a time."""

    file: Path  #: the file to name in errors
    places: Places  #: where each value is
    path: Path | None = None  #: the file the values are read from, where another was made from ``file``
    memory: bytes | None = None  #: its bytes, where they are no file at all

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __contains__(self, key: object) -> bool:
        return key in self.places

    def __getitem__(self, key: str) -> Any:
        """One entry as plain values; a ``Damage`` where there is none, or it is malformed."""
        return parse_entry(self.raw(key), Place(self.file, f"entry '{key}'"))

    def raw(self, key: str) -> bytes:
        """The JSON text of one entry.

        Raises:
            Damage: no such entry, or the file is not what it was.
        """
        if key not in self.places:
            raise Damage("missing entry", f"There is no entry '{key}'.", self.file)
        start, length, check = self.places[key]
        if self.memory is not None:
            return self.memory[start : start + length]
        path = self.path or self.file
        try:
            with open_regular(path) as file:
                file.seek(start)
                text = file.read(length)
        except OSError as error:
            raise unreadable(path, error) from error
        if len(text) != length:
            raise Damage("torn JSON", "The file ends early.", self.file, f"byte {start + len(text)}")
        if crc32(text) != check:
            hint = "Delete it: it is made again." if self.path else "Try again, then fetch it again."
            raise Damage("changed file", "An entry is not what it was.", path, f"byte {start}", hint)
        return text


def parse_entry(text: bytes, at: Place) -> Any:
    """An entry of a larger file as plain values.

    Raises:
        Damage: no UTF-8, or malformed.
    """
    try:
        return parse_json(text.decode("utf-8"), at)
    except UnicodeDecodeError as error:
        raise at.damage("text in another encoding", "The entry is not UTF-8.") from error


def object_places(path: Path) -> Places:
    """Where the members of a JSON file's outermost object are.

    Raises:
        Damage: torn file or a repeated key.
    """
    places: dict[str, tuple[int, int, int]] = {}
    with JsonStream(path) as stream:
        for key in stream.members():
            if key in places:
                where = f"key '{key}', byte {stream.position}"
                raise Damage("duplicate id", f"The key '{key}' stands twice.", path, where)
            start, text = stream.value()
            places[key] = start, len(text), crc32(text)
        stream.finish()
    return places


def open_entries(path: Path, cache: Path) -> Entries:
    """The members of a JSON file's outermost object, with an index of a large one in the folder ``cache``.

    Raises:
        Damage: the file is missing or torn, or repeats a key.
    """
    mark = fingerprint(path)
    if path.stat().st_size < SMALL:
        return Entries(path, object_places(path))
    index = cache / "index" / f"{path.name}.{mark}.v{VERSION}.index"
    with contextlib.suppress(*_NO_INDEX):
        return Entries(path, _load_index(index))
    # Two processes may both make it: the results are the same.
    places = object_places(path)
    try:
        _write_index(index, places)
    except OSError as error:
        # The index only saves time; a full or read-only cache must not stop a run.
        tell_unwritten(index, error)
    return Entries(path, places)


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
        return in_memory(sources[0], make())
    data = cache / "index" / f"{label}.{mark}.v{VERSION}.json"
    index = data.with_suffix(".index")
    with contextlib.suppress(*_NO_INDEX):
        places = _load_index(index)
        # The index is written after its data, so it never stands alone unless someone deleted the data.
        if data.stat().st_size == max((sum(place[:2]) for place in places.values()), default=0):
            return Entries(sources[0], places, data)
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        with replacing(data) as out:
            places = _pack(sources[0], make(), out)
        _write_index(index, places)
    except OSError as error:
        tell_unwritten(data, error)
        return in_memory(sources[0], make())
    return Entries(sources[0], places, data)


def in_memory(file: Path, items: Items) -> Entries:
    """Keyed JSON values derived from a file, kept nowhere else."""
    out = io.BytesIO()
    return Entries(file, _pack(file, items, out), memory=out.getvalue())


def _pack(file: Path, items: Items, out: IO[bytes]) -> Places:
    places: dict[str, tuple[int, int, int]] = {}
    for key, text in items:
        if key in places:
            raise Damage("duplicate id", "A key stands twice.", file, f"key '{key}'")
        places[key] = out.tell(), out.write(text), crc32(text)
    return places


#: What an index raises that is not there, or not whole.
_NO_INDEX = (OSError, ValueError, TypeError, AttributeError)


def _load_index(index: Path) -> Places:
    with open_regular(index) as file:
        return {
            key: (int(start), int(length), int(check))
            for key, (start, length, check) in json.load(file).items()
        }


def _write_index(index: Path, places: Places) -> None:
    """Store places in one step; remove the indices of earlier states of the same file."""
    index.parent.mkdir(parents=True, exist_ok=True)
    with replacing(index) as out:
        out.write(json.dumps(places).encode())
    sweep(index.parent)
    place = index.name.rpartition("-")[0]
    for old in index.parent.glob(f"{glob.escape(place)}-*"):
        if old.stem != index.stem:
            with contextlib.suppress(OSError):
                old.unlink()
