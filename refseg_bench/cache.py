"""A content-addressed cache of small tensors, shared by any number of processes on one file system.

An entry's address is the digest of everything that made it (its *key*); nothing is ever
invalidated, an entry whose key nobody asks for is only dead weight. Files are written beside their
place and renamed into it, so that a reader sees a whole entry or none, and two writers of one key
both succeed. Not for masks (the run store keeps those) and not for model weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import RefsegError
from refseg_bench.files.store_io import content, open_regular, replacing, sweep, tell_unwritten

Value: TypeAlias = NDArray[Any] | str
Entry: TypeAlias = dict[str, Value]

#: Bump when the file layout changes: old files are then never found again.
FORMAT = 1


def canonical(key: Mapping[str, Any]) -> str:
    """A key as the one JSON text that stands for it.

    Mappings are sorted, tuples are lists, paths are strings and numpy scalars are numbers, so that
    equal keys have equal texts whoever built them. ``1`` and ``1.0`` stay different.

    Raises:
        TypeError: the key holds something JSON can't name.
        ValueError: the key holds NaN or infinity, which equal nothing.
    """
    return json.dumps(
        key, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_jsonable
    )


def digest(key: Mapping[str, Any]) -> str:
    """40 hexadecimal digits that name a key (BLAKE2b of :func:`canonical`)."""
    return hashlib.blake2b(canonical(key).encode(), digest_size=20).hexdigest()


def fingerprint(paths: Iterable[Path], *, upright: bool = False) -> str:
    """32 hexadecimal digits of the files' bytes, in order: what a key says of a clip's frames.

    The content counts, not name, place or time stamp: a dataset that moves keeps its entries, a
    frame that changes loses them. ``upright``: they are read as their headers turn them.

    Raises:
        RefsegError: a file can't be read.
    """
    whole = hashlib.blake2b(b"upright" if upright else b"", digest_size=16)
    for path in paths:
        try:
            whole.update(content(path))
        except OSError as error:
            raise RefsegError(
                f"A frame can't be read ({type(error).__name__}).",
                where=path,
                hint="`refseg data verify NAME` lists every missing frame.",
            ) from error
    return whole.hexdigest()


@dataclass
class Cache:
    """Get and put entries under a folder; ``root=None`` remembers nothing."""

    root: Path | None  #: the folder, made on the first write
    #: hits, misses: lookups so far that found, or didn't find, an entry. A damaged file is a miss.
    hits: int = field(default=0, init=False, compare=False)
    misses: int = field(default=0, init=False, compare=False)
    _swept: bool = field(default=False, init=False, compare=False, repr=False)

    def path(self, key: Mapping[str, Any]) -> Path | None:
        """Where the entry of a key is or would be."""
        if self.root is None:
            return None
        name = digest(key)
        return Path(self.root) / f"v{FORMAT}" / name[:2] / f"{name[2:]}.safetensors"

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        """True if there is a file for the key (it is not read, and nothing is counted)."""
        path = self.path(key)
        return path is not None and path.is_file()

    def get(self, key: Mapping[str, Any]) -> Entry | None:
        """The entry of a key, or ``None``.

        Args:
            key: everything that made the entry: stage and its version, model id and revision,
                attention kernel, dtype, prompts, clip fingerprint … JSON values.

        Returns:
            Arrays and strings by name, equal in dtype, shape and bits to what was put.
        """
        entry = self._read(key)
        if entry is None:
            self.misses += 1
        else:
            self.hits += 1
        return entry

    def through(
        self, common: Mapping[str, Any], prompts: Iterable[str], run: Callable[[list[str]], Iterable[Entry]]
    ) -> dict[str, Entry]:
        """The entries of prompts: those kept, and the others as ``run`` makes them, which are kept then.

        Args:
            common: what the keys share; each has its own ``prompt``.
            prompts: texts.
            run: makes the entries of the prompts it is given, in their order.
        """
        kept = {text: self.get({**common, "prompt": text}) for text in dict.fromkeys(prompts)}
        found = {text: entry for text, entry in kept.items() if entry is not None}
        missing = [text for text in kept if text not in found]
        for text, entry in zip(missing, run(missing) if missing else (), strict=True):
            self.put({**common, "prompt": text}, entry)
            found[text] = entry
        return found

    def put(self, key: Mapping[str, Any], entry: Mapping[str, Value]) -> None:
        """Store an entry, if it can be. Safe against other writers and against being killed half-way.

        A cache that can't be written (a full disk) only costs time: it is logged once per process, and
        what an expensive model pass made is not lost for it.
        """
        from safetensors.numpy import save

        path = self.path(key)
        if path is None:
            return
        arrays = {
            name: np.ascontiguousarray(value).reshape(np.shape(value))
            for name, value in entry.items()
            if not isinstance(value, str)
        }
        texts = json.dumps({name: value for name, value in entry.items() if isinstance(value, str)})
        told = {"key": canonical(key), "texts": texts, "said": digest({"texts": texts})}
        blob = save(arrays, metadata={**told, "check": _checksum(arrays)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._swept:
                self._swept = True
                sweep(*path.parent.parent.iterdir())
            with replacing(path) as handle:
                handle.write(blob)
        except OSError as error:
            tell_unwritten(path, error)

    def _read(self, key: Mapping[str, Any]) -> Entry | None:
        from safetensors import SafetensorError, safe_open

        path = self.path(key)
        if path is None:
            return None
        try:
            open_regular(path).close()  # a FIFO would hang its reader
            with safe_open(path, framework="numpy") as file:
                meta = file.metadata() or {}
                if meta.get("key") != canonical(key):
                    return None
                arrays: dict[str, NDArray[Any]] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # Entries of old have no digest of their texts.
            if meta.get("said") not in (None, digest({"texts": meta["texts"]})):
                return None
            return {**arrays, **json.loads(meta["texts"])} if meta.get("check") == _checksum(arrays) else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        whole.update(f"{name}|{arrays[name].dtype}|{arrays[name].shape}|".encode())
        whole.update(np.ascontiguousarray(arrays[name]).tobytes())
    return whole.hexdigest()


def _jsonable(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"A cache key can't hold {type(value).__name__}: {value!r}")
