"""Walk through a pickled dictionary of any size in the memory of one entry.

A pickle is a program for a stack machine; the usual reader keeps every object it makes. This one
runs the few instructions that plain data takes, hands out each entry of the outermost dictionary
as soon as it is complete, and forgets it. A first pass finds out which objects the program comes
back to; only those are kept. What a program may name is what
:mod:`~refseg_bench.datasets.pickles` admits.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refseg_bench.datasets.damage import Damage
from refseg_bench.datasets.files import missing_file
from refseg_bench.datasets.pickles import admitted, load_pickle, refused

#: After this many bytes the pages that were read are given back to the system.
_PAGES = 32 << 20

_U32 = struct.Struct("<I").unpack_from
_I32 = struct.Struct("<i").unpack_from
_U16 = struct.Struct("<H").unpack_from
_F64 = struct.Struct(">d").unpack_from

# Instructions that push a text (with its encoding) or bytes (None): width of the length before it.
_TEXTS: dict[int, tuple[int, str | None]] = {
    pickle.BINUNICODE[0]: (4, "utf-8"),
    pickle.SHORT_BINUNICODE[0]: (1, "utf-8"),
    pickle.BINUNICODE8[0]: (8, "utf-8"),
    pickle.BINSTRING[0]: (4, "latin1"),
    pickle.SHORT_BINSTRING[0]: (1, "latin1"),
    pickle.BINBYTES[0]: (4, None),
    pickle.SHORT_BINBYTES[0]: (1, None),
    pickle.BINBYTES8[0]: (8, None),
}
# All other instructions of plain data: length of the argument behind them.
_PLAIN = {
    code[0]: length
    for codes, length in (
        (b".}]()sueat\x85\x86\x87N\x88\x89R\x930b\x94", 0),
        (b"\x80qhK", 1),
        (b"M", 2),
        (b"rjJ", 4),
        (b"\x95G", 8),
    )
    for code in (bytes([c]) for c in codes)
}
_GLOBAL, _LONG1, _STOP = pickle.GLOBAL[0], pickle.LONG1[0], pickle.STOP[0]
_PUT, _LONG_PUT, _GET, _LONG_GET = (
    code[0] for code in (pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET)
)
_MARK = object()


def pickled_items(path: Path) -> Iterator[tuple[Any, Any]]:
    """Key and value of every entry of a pickled dictionary, in the order of the file.

    Raises:
        Damage: missing or torn file, no dictionary, or one that names more than plain data.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            recalled = _recalled(data)
            if recalled is not None:
                yield from _Machine(data, path, recalled).items()
                return
    except FileNotFoundError:
        raise missing_file(path) from None
    except Damage:
        raise
    except Exception as error:
        # As with the usual reader: a damaged program can make its own instructions raise anything.
        raise Damage(
            "torn pickle", f"The pickle is torn or damaged ({type(error).__name__}: {error}).", file=path
        ) from error
    # An instruction beyond the common ones: the usual reader knows them all, at the price of memory.
    whole = load_pickle(path)
    if not isinstance(whole, dict):
        raise _no_dictionary(path)
    yield from whole.items()


def _no_dictionary(path: Path) -> Damage:
    return Damage("wrong type", "The pickle holds no dictionary.", file=path, place="the file")


def _size(data: mmap.mmap, at: int, width: int) -> int:
    return data[at] if width == 1 else int.from_bytes(data[at : at + width], "little")


def _recalled(data: mmap.mmap) -> frozenset[int] | None:
    """Memo numbers that the program fetches; ``None`` if it uses an uncommon instruction."""
    found: set[int] = set()
    at, given_back, end = 0, 0, len(data)
    while at < end:
        code = data[at]
        at += 1
        length = _PLAIN.get(code)
        if length is not None:
            if code == _GET:
                found.add(data[at])
            elif code == _LONG_GET:
                found.add(_U32(data, at)[0])
            elif code == _STOP:
                return frozenset(found)
            at += length
        elif code in _TEXTS:
            width = _TEXTS[code][0]
            at += width + _size(data, at, width)
        elif code == _GLOBAL:
            at = _global_end(data, at) + 1
        elif code == _LONG1:
            at += 1 + data[at]
        else:
            return None
        given_back = _give_back(data, at, given_back)
    raise EOFError("it ends early")


def _global_end(data: mmap.mmap, at: int) -> int:
    """Where the second of two lines ends."""
    first = data.find(b"\n", at)
    second = data.find(b"\n", first + 1)
    if first < 0 or second < 0:
        raise EOFError("it ends early")
    return second


def _give_back(data: mmap.mmap, at: int, given_back: int) -> int:
    """Drop the pages behind the cursor from this process' memory."""
    if at - given_back < _PAGES or at >= len(data):
        return given_back
    page = at - at % mmap.PAGESIZE
    data.madvise(mmap.MADV_DONTNEED, given_back, page - given_back)
    return page


def _is_complete(value: Any) -> bool:
    return type(value) is list and bool(value) and not isinstance(value[-1], (str, bytes))


class _Machine:
    """The stack machine.

    Args:
        data: the program.
        path: the file to name in errors.
        recalled: memo numbers worth keeping.
    """

    def __init__(self, data: mmap.mmap, path: Path, recalled: frozenset[int]) -> None:
        self.data = data
        self.path = path
        self.recalled = recalled
        self.memo: dict[int, Any] = {}
        self.puts = 0
        self.stack: list[Any] = []

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Run to the end."""
        data, stack = self.data, self.stack
        at, given_back, marks = 0, 0, 0
        root: dict[Any, Any] | None = None
        while True:
            code = data[at]
            at += 1
            text = _TEXTS.get(code)
            if text is not None:
                width, encoding = text
                length = _size(data, at, width)
                raw = data[at + width : at + width + length]
                if len(raw) != length:
                    raise EOFError("it ends early")
                at += width + length
                # With [root, mark, key, list of masks] below, a text can only be the next key. (Not so for
                # a list of texts, or the second half of a tuple; no mask is either, and `_tuple` tells.)
                if marks == 1 and len(stack) == 4 and stack[0] is root and _is_complete(stack[3]):
                    yield stack[2], stack[3]
                    del stack[2:]
                stack.append(raw if encoding is None else str(raw, encoding))
            elif code == _STOP:
                break
            elif code == _GLOBAL:
                end = _global_end(data, at)
                module, _, name = data[at:end].decode("utf-8").partition("\n")
                stack.append(self._named(module, name))
                at = end + 1
            elif code == _LONG1:
                length = data[at]
                stack.append(int.from_bytes(data[at + 1 : at + 1 + length], "little", signed=True))
                at += 1 + length
            else:
                marks += self._plain(code, at)
                at += _PLAIN[code]
                if root is None and code == pickle.EMPTY_DICT[0] and len(stack) == 1:
                    root = stack[0]
                if root and marks == 0:
                    # SETITEM or SETITEMS has just filled the outermost dictionary.
                    yield from root.items()
                    root.clear()
            given_back = _give_back(data, at, given_back)
        if len(stack) != 1 or root is None or stack[0] is not root:
            raise _no_dictionary(self.path)

    def _named(self, module: str, name: str) -> Any:
        try:
            return admitted(module, name)
        except KeyError:
            raise refused(self.path, f"{module}.{name}") from None

    def _popped(self) -> list[Any]:
        """Everything above the topmost mark; the mark goes too."""
        stack = self.stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("an instruction without its mark")
        out = stack[at + 1 :]
        del stack[at:]
        return out

    def _tuple(self, length: int) -> None:
        items = tuple(self.stack[-length:])
        if any(item is _MARK for item in items):
            raise ValueError("its entries are no lists")
        self.stack[-length:] = [items]

    def _keep(self, number: int) -> None:
        if number in self.recalled:
            self.memo[number] = self.stack[-1]

    def _plain(self, code: int, at: int) -> int:
        """Run one instruction whose argument stands at ``at``; returns the change in open marks."""
        stack, data = self.stack, self.data
        if code == _GET:
            stack.append(self.memo[data[at]])
        elif code == _PUT:
            self._keep(data[at])
        elif code == 0x28:  # MARK
            stack.append(_MARK)
            return 1
        elif code == 0x7D:  # EMPTY_DICT
            stack.append({})
        elif code == 0x5D:  # EMPTY_LIST
            stack.append([])
        elif code == 0x4D:  # BININT2
            stack.append(_U16(data, at)[0])
        elif code == 0x75:  # SETITEMS
            items = self._popped()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
            return -1
        elif code == 0x65:  # APPENDS
            items = self._popped()
            stack[-1].extend(items)
            return -1
        elif code == _LONG_PUT:
            self._keep(_U32(data, at)[0])
        elif code == _LONG_GET:
            stack.append(self.memo[_U32(data, at)[0]])
        elif code == 0x94:  # MEMOIZE
            self._keep(self.puts)
            self.puts += 1
        elif code == 0x4E:  # NONE
            stack.append(None)
        elif code == 0x4B:  # BININT1
            stack.append(data[at])
        elif code == 0x4A:  # BININT
            stack.append(_I32(data, at)[0])
        elif code == 0x86:  # TUPLE2
            self._tuple(2)
        elif code == 0x52:  # REDUCE
            arguments = stack.pop()
            stack[-1] = stack[-1](*arguments)
        else:
            return self._rare(code, at)
        return 0

    def _rare(self, code: int, at: int) -> int:
        stack = self.stack
        if code == 0x73:  # SETITEM
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif code == 0x61:  # APPEND
            value = stack.pop()
            stack[-1].append(value)
        elif code == 0x74:  # TUPLE
            stack.append(tuple(self._popped()))
            return -1
        elif code == 0x29:  # EMPTY_TUPLE
            stack.append(())
        elif code == 0x85:  # TUPLE1
            stack[-1] = (stack[-1],)
        elif code == 0x87:  # TUPLE3
            self._tuple(3)
        elif code in (0x88, 0x89):  # NEWTRUE, NEWFALSE
            stack.append(code == 0x88)
        elif code == 0x47:  # BINFLOAT
            stack.append(_F64(self.data, at)[0])
        elif code == 0x93:  # STACK_GLOBAL
            name, module = stack.pop(), stack.pop()
            stack.append(self._named(module, name))
        elif code == 0x62:  # BUILD
            state = stack.pop()
            stack[-1].__setstate__(state)
        elif code == 0x30:  # POP
            stack.pop()
        return 0  # PROTO and FRAME say nothing that matters here.
