"""Read the pickles of this field without running what is in them.

``refs(unc).p``, ``grefs(unc).p`` and ``mask_dict.pkl`` hold lists, dicts, texts, numbers, and at
times numpy scalars. Anything else a pickle can name (it can name any function) is refused by name.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from refseg_bench.datasets.damage import Damage
from refseg_bench.datasets.files import read_bytes

_SCALAR = re.compile(r"[<>=|]?([biufc?])(\d{1,2})?")


class _Dtype:
    """Stands for a numpy dtype while a pickle is read: only plain numbers and truth values."""

    __slots__ = ("code",)

    def __init__(self, code: object = None, *_: object) -> None:
        if isinstance(code, bytes):
            code = code.decode("ascii", "replace")
        if not isinstance(code, str) or _SCALAR.fullmatch(code) is None:
            raise pickle.UnpicklingError(f"the numpy type {code!r}")
        self.code = code.lstrip("<>=|")

    def __setstate__(self, state: object) -> None:
        # (version, byte order, …): the order is all that matters for a number.
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
        order = order.decode("ascii", "replace") if isinstance(order, bytes) else order
        if order in ("<", ">"):
            self.code = f"{order}{self.code}"


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
        kind = np.dtype(dtype.code)
        if not isinstance(raw, bytes) or len(raw) != kind.itemsize:
            raise pickle.UnpicklingError("a numpy scalar of another length than its type")
        return np.frombuffer(raw, kind)[0].item()


class _MakeBytes:
    """Python 3 writes ``bytes`` into protocol 2 as ``_codecs.encode(text, "latin1")`` or ``bytes()``."""

    __slots__ = ()

    def __call__(self, text: object = "", encoding: object = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
            raise pickle.UnpicklingError("bytes that are not spelled as Latin-1 text")
        return text.encode("latin1")


_CONTAINERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _MakeBytes(),
    ("numpy", "dtype"): _MakeDtype(),
}
for _builtins in ("builtins", "__builtin__"):
    _CONTAINERS |= {
        (_builtins, "bytes"): _MakeBytes(),
        (_builtins, "set"): set,
        (_builtins, "frozenset"): frozenset,
    }
for _multiarray in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _CONTAINERS[_multiarray, "scalar"] = _MakeScalar()


def admitted(module: str, name: str) -> Any:
    """What stands for a global that a pickle may name.

    Raises:
        KeyError: it may not.
    """
    return _CONTAINERS[module, name]


class _Refused(pickle.UnpicklingError):
    """The pickle names something that is not admitted."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return admitted(module, name)
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: object) -> Any:
        raise _Refused("a persistent id")


def load_pickle(path: Path) -> Any:
    """Read a pickle of plain containers, texts, numbers and numpy scalars.

    Texts written by Python 2 are read as Latin-1; numpy scalars come as plain numbers.

    Raises:
        Damage: missing or torn file, or one that names anything else.
    """
    data = read_bytes(path)
    try:
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except _Refused as error:
        raise refused(path, str(error)) from error
    except Exception as error:
        # A damaged pickle can make its own opcodes raise anything; it is one kind of damage.
        raise Damage(
            "torn pickle", f"The pickle is torn or damaged ({type(error).__name__}: {error}).", file=path
        ) from error


def refused(path: Path, name: str) -> Damage:
    """The error of a pickle that names something beyond plain data."""
    return Damage(
        "pickle with a callable",
        f"The pickle names '{name}', which plain data never does; it was not run.",
        file=path,
        place=f"global '{name}'",
        allowed=[".".join(pair) for pair in sorted(_CONTAINERS)],
        cure="Don't use this file; fetch it again from the data set's own page.",
    )
