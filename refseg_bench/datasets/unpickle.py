"""Reads a pickle from standard input and writes its entries as lines of JSON; a program of its own.

A pickle is a program for a stack machine. What plain data takes is run, anything it names beside
that is refused; but plain data too can be nested or shared so that reading, hashing or printing it
takes the whole stack, the whole memory, or for ever. So :mod:`~refseg_bench.datasets.pickles`
starts this file as a process with limits, which may die of it. Nothing but the standard library
is imported: it starts in 20 ms.

Exit status: 0 done, 3 the pickle names what it must not (which, on standard error), 4 it is torn
(how, there), 5 it holds neither a dictionary nor a list, as asked for.
"""

from __future__ import annotations

import gc
import json
import pickle
import re
import resource
import struct
import sys
from collections import OrderedDict
from typing import Any

REFUSED, TORN, OTHER_TYPE = 3, 4, 5

_SCALAR = re.compile(r"[<>=|]?([biufc?])(\d{1,2})?")
#: numpy's number types → struct's.
_FORMATS = {
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d", "b1": "?",
}  # fmt: skip


class _Dtype:
    """Stands for a numpy dtype while a pickle is read: only plain numbers and truth values."""

    __slots__ = ("format", "order")

    def __init__(self, code: object = None, *_: object) -> None:
        if isinstance(code, bytes):
            code = code.decode("ascii", "replace")
        found = _SCALAR.fullmatch(code) if isinstance(code, str) else None
        if found is None or f"{found[1]}{found[2] or 1}" not in _FORMATS:
            raise pickle.UnpicklingError(f"the numpy type {code!r}")
        self.format, self.order = _FORMATS[f"{found[1]}{found[2] or 1}"], "<"

    def __setstate__(self, state: object) -> None:
        # (version, byte order, …): the order is all that matters for a number.
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
        order = order.decode("ascii", "replace") if isinstance(order, bytes) else order
        if order in ("<", ">"):
            self.order = str(order)


# Callables of a pickle are instances without attributes, so that a pickle can't set any on them.
class _MakeDtype:
    __slots__ = ()

    def __call__(self, *args: object) -> _Dtype:
        return _Dtype(*args)


class _MakeScalar:
    __slots__ = ()

    def __call__(self, dtype: object, data: object = b"") -> Any:
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("a numpy scalar without a numeric type")
        raw = data.encode("latin1") if isinstance(data, str) else data
        form = dtype.order + dtype.format
        if not isinstance(raw, bytes) or len(raw) != struct.calcsize(form):
            raise pickle.UnpicklingError("a numpy scalar of another length than its type")
        return struct.unpack(form, raw)[0]


class _MakeBytes:
    """Python 3 writes ``bytes`` into protocol 2 as ``_codecs.encode(text, "latin1")`` or ``bytes()``."""

    __slots__ = ()

    def __call__(self, text: object = "", encoding: object = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
            raise pickle.UnpicklingError("bytes that are not spelled as Latin-1 text")
        return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _MakeBytes(),
    ("numpy", "dtype"): _MakeDtype(),
}
for _builtins in ("builtins", "__builtin__"):
    ADMITTED |= {
        (_builtins, "bytes"): _MakeBytes(),
        (_builtins, "set"): set,
        (_builtins, "frozenset"): frozenset,
    }
for _multiarray in ("numpy.core.multiarray", "numpy._core.multiarray"):
    ADMITTED[_multiarray, "scalar"] = _MakeScalar()


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


if __name__ == "__main__":
    import os

    status = main(sys.argv[1], int(sys.argv[2]))
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    # Without taking the data apart again: that recurses too.
    os._exit(status)
