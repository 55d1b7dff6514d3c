"""Read the pickles of this field without running what is in them, and its Parquet files with limits.

``refs(unc).p``, ``grefs(unc).p`` and ``mask_dict.pkl`` hold lists, dicts, texts, numbers, and at
times numpy scalars. A pickle is a program for a stack machine: what plain data takes is run,
anything it names beside that (it can name any function) is refused by name. But plain data too can
be nested or shared so that reading, hashing or printing it takes the whole stack, the whole memory,
or for ever. So this file is also a program of its own: a process with limits, which may die of a
pickle, and which writes its entries as lines of JSON. That part imports nothing but the standard
library, and starts in 20 ms. A few bytes of Parquet can stand for any number of rows, and its
reader is a large program in C++: it runs there too.

Exit status: 0 done, 3 the pickle names what it must not (which, on standard error), 4 the file is
torn (how, there), 5 it holds neither a dictionary nor a list, as asked for, or lacks a column (there).
"""

from __future__ import annotations

import base64
import gc
import json
import os
import pickle
import resource
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

if __name__ != "__main__":
    import signal
    import subprocess
    import tempfile
    from importlib.util import find_spec
    from pathlib import Path
    from typing import Any, Literal

    from refseg_bench.datasets.files import GROWTH_FROM, MAX_GROWTH, Damage, Place, open_data, parse_json

REFUSED, TORN, OTHER_TYPE = 3, 4, 5

#: numpy's number types → struct's.
_FORMATS = {
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d", "b1": "?",
}  # fmt: skip


class _Dtype:
    """Stands for a numpy dtype while a pickle is read: only plain numbers and truth values."""

    __slots__ = ("format", "order")

    def __init__(self, code: object) -> None:
        if code not in _FORMATS:
            raise pickle.UnpicklingError(f"the numpy type {code!r}")
        self.format, self.order = _FORMATS[str(code)], "<"

    def __setstate__(self, state: object) -> None:
        # (version, byte order, …): the order is all that matters for a number.
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = str(state[1])


class _Makers:
    """Callables of a pickle, as calls of methods: a method shows its function's attributes to be set."""

    __slots__ = ()

    def dtype(self, code: object = None, *_: object) -> _Dtype:
        return _Dtype(code)

    def scalar(self, dtype: object, data: object = b"") -> Any:
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("a numpy scalar without a numeric type")
        raw = data.encode("latin1") if isinstance(data, str) else data
        form = dtype.order + dtype.format
        if not isinstance(raw, bytes) or len(raw) != struct.calcsize(form):
            raise pickle.UnpicklingError("a numpy scalar of another length than its type")
        return struct.unpack(form, raw)[0]

    def bytes(self, text: object = "", encoding: object = "latin1") -> object:
        """Python 3 writes ``bytes`` into protocol 2 as ``_codecs.encode(text, "latin1")`` or ``bytes()``."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("bytes that are not spelled as Latin-1 text")
        return text.encode("latin1")


_bytes, _dtype, _scalar = (getattr(_Makers(), name).__call__ for name in ("bytes", "dtype", "scalar"))
ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes,
    ("numpy", "dtype"): _dtype,
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}
for _name, _made in (("bytes", _bytes), ("set", set), ("frozenset", frozenset)):
    ADMITTED |= {("builtins", _name): _made, ("__builtin__", _name): _made}


class _Refused(pickle.UnpicklingError):
    """The pickle names something that is not admitted."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: object) -> Any:
        raise _Refused("a persistent id")


def _spelled(value: object) -> object:
    """What JSON lacks."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, (set, frozenset)):
        return list(value)
    raise TypeError(f"a {type(value).__name__} in it")


def _limit(size: int) -> None:
    """Bound this process's memory and time by the length of a file: real ones take a tenth of that."""
    seconds = 10 + size // 1_000_000
    for what, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, (1 << 30) + 24 * size),
    ):
        try:
            resource.setrlimit(what, (bound, bound))
        except (ValueError, OSError):
            # A lower bound is set already, or this system knows none.
            continue


def write_rows(columns: Sequence[str], place: str) -> int:
    """Write columns of a Parquet file, bytes in base64, by the pyarrow at ``place``; returns the status."""
    sys.path.append(place)
    import pyarrow as pa
    import pyarrow.parquet as pq

    def spelled(value: object) -> str:
        if isinstance(value, bytes):
            return base64.b64encode(value).decode("ascii")
        raise TypeError(f"a {type(value).__name__} in it")

    pa.set_cpu_count(1)
    try:
        stored = pq.ParquetFile(sys.stdin.buffer, pre_buffer=False)
        names = stored.schema_arrow.names
        for name in columns:
            if names.count(name) != 1:
                sys.stderr.write(f"The file has {names.count(name)} columns '{name}'; it has {names}."[:500])
                return OTHER_TYPE
        for batch in stored.iter_batches(8, columns=list(columns), use_threads=False):
            for row in batch.to_pylist():
                sys.stdout.write(json.dumps(row, default=spelled, separators=(",", ":")) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        return TORN
    except Exception as error:
        # A damaged file can make its reader raise anything; it is one kind of damage.
        sys.stderr.write(f"{type(error).__name__}: {error}".replace("\n", " ")[:500])
        return TORN
    return 0


def main(kind: str, size: int, *more: str) -> int:
    """Read, check, write; returns the exit status."""
    _limit(size)
    if kind == "parquet":
        return write_rows(more[1:], more[0])
    # Nothing is thrown away before the end.
    gc.disable()
    dumps = json.JSONEncoder(separators=(",", ":"), default=_spelled).encode
    try:
        # Texts of Python 2 are bytes of no known encoding; Latin-1 keeps all of them.
        whole = _Unpickler(sys.stdin.buffer, encoding="latin1").load()
        if not isinstance(whole, dict if kind == "dict" else list):
            return OTHER_TYPE
        write = sys.stdout.write
        for entry in whole.items() if isinstance(whole, dict) else whole:
            if kind == "dict":
                key, value = entry
                entry = [key.decode("latin1") if isinstance(key, bytes) else str(key), value]
            write(dumps(entry) + "\n")
        sys.stdout.flush()
    except _Refused as error:
        sys.stderr.write(str(error)[:500])
        return REFUSED
    except BrokenPipeError:
        return TORN
    except Exception as error:
        # A damaged pickle can make its own instructions raise anything; it is one kind of damage.
        sys.stderr.write(f"{type(error).__name__}: {error}"[:500])
        return TORN
    return 0


# ── the process that asks ────────────────────────────────────────────────────


def pickled_items(path: Path) -> Iterator[tuple[str, Any]]:
    """Key (as text) and value of every entry of a pickled dictionary, in the order of the file.

    Values are what JSON knows: bytes come as Latin-1 text, tuples as lists, numpy scalars as numbers.

    Raises:
        Damage: missing or torn file, no dictionary, or one that names more than plain data.
    """
    return ((key, value) for key, value in _entries(path, "dict"))


def pickled_list(path: Path) -> Iterator[Any]:
    """The items of a pickled list, in its order; else as :func:`pickled_items`.

    Raises:
        Damage: missing or torn file, no list, or one that names more than plain data.
    """
    return _entries(path, "list")


def _entries(path: Path, kind: Literal["dict", "list"]) -> Iterator[Any]:
    def damage(status: int, words: str) -> Damage:
        if status == REFUSED:
            return Damage(
                "pickle with a callable",
                f"The pickle names '{words}', which plain data never does; it was not run.",
                path,
                f"global '{words}'",
                allowed=[".".join(pair) for pair in sorted(ADMITTED)],
            )
        if status == OTHER_TYPE:
            holds = "dictionary" if kind == "dict" else "list"
            return Damage("wrong type", f"The pickle holds no {holds}.", path, "the file")
        return Damage("torn pickle", f"The pickle is torn or damaged ({words}).", path)

    return _read_apart(path, kind, (), damage)


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, as objects of the wanted columns; bytes come in base64.

    Raises:
        Damage: the file is missing or torn, or lacks a column.
    """

    def damage(status: int, words: str) -> Damage:
        if status == OTHER_TYPE:
            return Damage("missing field", words, path, "the schema")
        return Damage("torn Parquet", f"The Parquet file is torn or damaged ({words}).", path)

    place = find_spec("pyarrow")
    assert place is not None, "pyarrow is a dependency of this package"
    return _read_apart(path, "parquet", (str(Path(str(place.origin)).parents[1]), *columns), damage)


def _read_apart(
    path: Path, kind: str, more: Sequence[str], damage: Callable[[int, str], Damage]
) -> Iterator[Any]:
    """What :func:`main` makes of a file in a process of its own: a JSON value per line.

    ``damage`` makes the error of an exit status, with the words that the process, or how it died, says of it.

    Raises:
        Damage: what ``damage`` makes; the file is missing; an entry is no JSON of the allowed depth.
    """
    with open_data(path) as file, tempfile.TemporaryFile() as told:
        size = os.fstat(file.fileno()).st_size
        # The other process begins where this one's buffer ended.
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        # A pickle may name one object many times, JSON spells it out each time.
        left = max(GROWTH_FROM, MAX_GROWTH * size)
        command = [sys.executable, "-I", "-S", __file__, kind, str(size), *more]
        with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=told) as child:
            assert child.stdout is not None
            try:
                number = 0
                while (line := child.stdout.readline(left + 1)).endswith(b"\n"):
                    yield parse_json(line.decode("ascii"), Place(path, f"entry {number}"))
                    left -= len(line)
                    number += 1
                if len(line) > left:
                    raise damage(TORN, "it would grow beyond all measure")
            except BaseException:
                # Nobody wants the rest.
                child.kill()
                raise
        told.seek(0)
        words = told.read(1000).decode("utf-8", "replace")
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        words = "reading it takes more time or memory than any real one"
    elif child.returncode < 0:
        words = "it is nested without end"
    if child.returncode:
        raise damage(child.returncode, words or f"its reader ended with status {child.returncode}")


if __name__ == "__main__":
    status = main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    # Without taking the data apart again: that recurses too.
    os._exit(status)
