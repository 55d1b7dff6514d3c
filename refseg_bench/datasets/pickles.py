"""Read the pickles of this field without running what is in them.

``refs(unc).p``, ``grefs(unc).p`` and ``mask_dict.pkl`` hold lists, dicts, texts, numbers, and at
times numpy scalars. A pickle is a program for a stack machine: what plain data takes is run,
anything it names beside that (it can name any function) is refused by name. But plain data too can
be nested or shared so that reading, hashing or printing it takes the whole stack, the whole memory,
or for ever. So this file is also a program of its own: a process with limits, which may die of a
pickle, and which writes its entries as lines of JSON. That part imports nothing but the standard
library, and starts in 20 ms.

Exit status: 0 done, 3 the pickle names what it must not (which, on standard error), 4 it is torn
(how, there), 5 it holds neither a dictionary nor a list, as asked for.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import resource
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal

if __name__ != "__main__":
    import signal
    import subprocess
    import tempfile
    from pathlib import Path

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
    """Bound memory and time by the length of the pickle: real ones take a tenth of that."""
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


def main(kind: str, size: int) -> int:
    """Read, check, write; returns the exit status."""
    _limit(size)
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
    with open_data(path) as file, tempfile.TemporaryFile() as told:
        size = os.fstat(file.fileno()).st_size
        # The other process begins where this one's buffer ended.
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        # A pickle may name one object many times, JSON spells it out each time.
        left = max(GROWTH_FROM, MAX_GROWTH * size)
        command = [sys.executable, "-I", "-S", __file__, kind, str(size)]
        with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=told) as child:
            assert child.stdout is not None
            try:
                number = 0
                while (line := child.stdout.readline(left + 1)).endswith(b"\n"):
                    yield parse_json(line.decode("ascii"), Place(path, f"entry {number}"))
                    left -= len(line)
                    number += 1
                if len(line) > left:
                    raise _torn(path, "it would grow beyond all measure")
            except BaseException:
                # Nobody wants the rest.
                child.kill()
                raise
        told.seek(0)
        words = told.read(1000).decode("utf-8", "replace")
    if child.returncode == REFUSED:
        raise Damage(
            "pickle with a callable",
            f"The pickle names '{words}', which plain data never does; it was not run.",
            path,
            f"global '{words}'",
            allowed=[".".join(pair) for pair in sorted(ADMITTED)],
        )
    if child.returncode == OTHER_TYPE:
        holds = "dictionary" if kind == "dict" else "list"
        raise Damage("wrong type", f"The pickle holds no {holds}.", path, "the file")
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        words = "reading it takes more time or memory than any real one"
    elif child.returncode < 0:
        words = "it is nested without end"
    if child.returncode:
        raise _torn(path, words or f"its reader ended with status {child.returncode}")


def _torn(path: Path, how: str) -> Damage:
    return Damage("torn pickle", f"The pickle is torn or damaged ({how}).", path)


if __name__ == "__main__":
    status = main(sys.argv[1], int(sys.argv[2]))
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    # Without taking the data apart again: that recurses too.
    os._exit(status)
