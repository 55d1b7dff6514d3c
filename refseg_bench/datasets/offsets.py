"""Read one entry of a huge keyed file without reading the file.

``mask_dict.json`` of MeViS and ReVOS is hundreds of MB, a clip needs a few kB of it. The file is
walked once for the place of every entry; the places go to a small index beside the run caches,
made atomically, shared by all processes and dropped when the file changes. Small files are
walked each time, in memory.
"""

from __future__ import annotations

import contextlib
import glob
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from refseg_bench.datasets.damage import Damage
from refseg_bench.datasets.files import fingerprint, parse_json, unreadable
from refseg_bench.datasets.jsonstream import JsonStream
from refseg_bench.files.store_io import open_regular, replacing, sweep, tell_unwritten

#: Below this many bytes an index on disk costs more than it saves.
SMALL = 4 << 20
#: Part of every index's name: a new way of indexing never reads an old index.
VERSION = 1


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
            raise Damage(
                "missing entry",
                f"There is no entry '{key}'.",
                file=self.file,
                cure="Use the mask file and the expression file of one release.",
            )
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
            raise Damage(
                "torn JSON", "The file ends early.", file=self.file, place=f"byte {start + len(text)}"
            )
        return text

    def get(self, key: str) -> Any:
        """One entry as plain values.

        Raises:
            Damage: no such entry, or it is malformed.
        """
        try:
            text = self.raw(key).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damage(
                "text in another encoding", "The entry is not UTF-8.", file=self.file, place=f"entry '{key}'"
            ) from error
        return parse_json(text, self.file, f"entry '{key}'")


Places = tuple[list[str], NDArray[np.int64]]


def object_places(path: Path) -> Places:
    """Keys and (offset, length) of the members of a JSON file's outermost object.

    Raises:
        Damage: torn file or a repeated key.
    """
    keys: list[str] = []
    places: list[tuple[int, int]] = []
    seen: set[str] = set()
    with JsonStream(path) as stream:
        for key in stream.members():
            if key in seen:
                raise Damage(
                    "duplicate id",
                    f"The key '{key}' stands twice.",
                    file=path,
                    place=f"key '{key}', byte {stream.position}",
                    cure="Restore the original file: one of the two entries would be lost.",
                )
            seen.add(key)
            if "\n" in key:
                raise stream.torn("a key without line breaks")
            start, text = stream.value()
            keys.append(key)
            places.append((start, len(text)))
        stream.finish()
    return keys, np.array(places, np.int64).reshape(-1, 2)


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
        keys, places = object_places(path)
    else:
        keys, places = _indexed(path, cache / "index" / f"{path.name}.{mark}.v{VERSION}.npz", object_places)
    return _entries(path, path, keys, places)


def _entries(path: Path, file: Path, keys: list[str], places: NDArray[np.int64]) -> Entries:
    found = {k: (a, b) for k, (a, b) in zip(keys, places.tolist(), strict=True)}
    if len(found) != len(keys):
        raise Damage("duplicate id", "A key stands twice.", file=file, cure="Restore the original file.")
    return Entries(path, file, found)


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
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        keys, places = _load_index(index)
        # The index is written after its data, so it never stands alone unless someone deleted the data.
        if data.stat().st_size == int(places.sum(axis=1).max(initial=0)):
            return _entries(data, sources[0], keys, places)
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        with replacing(data) as out:
            keys, places = _pack(make(), out)
        write_index(index, keys, places)
        _forget(index)
    except OSError as error:
        tell_unwritten(data, error)
        return _in_memory(sources[0], make())
    return _entries(data, sources[0], keys, places)


Items = Iterable[tuple[str, bytes]]


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
    keys, places = _pack(items, out)
    entries = _entries(file, file, keys, places)
    entries._memory = out.getvalue()
    return entries


def _indexed(path: Path, index: Path, scan: Callable[[Path], Places]) -> Places:
    """Read an index, or make it. Two processes may both make it: the results are the same."""
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return _load_index(index)
    keys, places = scan(path)
    try:
        write_index(index, keys, places)
    except OSError as error:
        # The index only saves time; a full or read-only cache must not stop a run.
        tell_unwritten(index, error)
    else:
        _forget(index)
    return keys, places


def _forget(kept: Path) -> None:
    """Remove the indices of earlier states of the same file, and what killed processes left."""
    sweep(kept.parent)
    place = kept.name.rpartition("-")[0]
    for old in kept.parent.glob(f"{glob.escape(place)}-*"):
        if old.stem != kept.stem:
            with contextlib.suppress(OSError):
                old.unlink()


def _load_index(index: Path) -> Places:
    with open_regular(index) as file, np.load(file, allow_pickle=False) as stored:
        places: NDArray[np.int64] = stored["places"]
        text = stored["keys"].tobytes().decode("utf-8")
        keys = text.split("\n") if places.size else []
        if len(keys) != len(places):
            raise ValueError("index of unequal lengths")
        return keys, places


def write_index(index: Path, keys: list[str], places: NDArray[np.int64]) -> None:
    """Store keys and places in one step."""
    index.parent.mkdir(parents=True, exist_ok=True)
    with replacing(index) as out:
        np.savez(out, keys=np.frombuffer("\n".join(keys).encode("utf-8"), np.uint8), places=places)
