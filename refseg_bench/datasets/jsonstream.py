"""Walk through a JSON file of any size in a few MB of memory.

Only as much of JSON is understood as walking takes: strings, brackets, commas. The values are
handed out as bytes with their place, to be parsed by ``json`` when they are wanted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from refseg_bench.datasets.damage import Damage
from refseg_bench.datasets.files import open_data, unreadable

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
        return Damage(
            "torn JSON",
            f"The JSON is torn or malformed: expected {expected}.",
            file=self.path,
            place=f"byte {self.position}",
        )

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

    def _take(self, byte: bytes, expected: str) -> None:
        if self.peek() != byte:
            raise self.torn(expected)
        self._at += 1

    def value(self) -> tuple[int, bytes]:
        """Byte offset and text of the value at the cursor; the cursor moves behind it."""
        self.peek()
        found = self._match(_VALUE, "a value")
        return self._base + found.start(), found.group()

    def members(self) -> Iterator[str]:
        """Keys of the object at the cursor; take each value before asking for the next."""
        self._take(b"{", "'{'")
        if self.peek() == b"}":
            self._at += 1
            return
        while True:
            self.peek()
            text = self._match(_KEY, "a key").group(1)
            try:
                key = str(json.loads(text))
            except ValueError as error:
                raise self.torn("a key in UTF-8") from error
            yield key
            mark = self.peek()
            if mark not in (b",", b"}"):
                raise self.torn("',' or '}'")
            self._at += 1
            if mark == b"}":
                return

    def elements(self) -> Iterator[int]:
        """Numbers of the items of the list at the cursor; take each before asking for the next."""
        self._take(b"[", "'['")
        if self.peek() == b"]":
            self._at += 1
            return
        number = 0
        while True:
            yield number
            number += 1
            mark = self.peek()
            if mark not in (b",", b"]"):
                raise self.torn("',' or ']'")
            self._at += 1
            if mark == b"]":
                return

    def finish(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise self.torn("the end of the file")
