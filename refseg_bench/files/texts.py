"""Texts from elsewhere, as a terminal may show them. Light: the command line loads it first."""

from __future__ import annotations

import re

#: Controls (also C1), marks that turn the direction of text, separators that break lines.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def shown(text: str, colours: bool = False) -> str:
    """Text of any number of lines as a terminal may show it: each is :func:`printable`.

    Args:
        text: what is to be printed.
        colours: let changes of colour pass, as this program's own tables make.
    """
    if _UNPRINTABLE.search(text.replace("\n", "")) is None:
        return text
    pieces = re.split("(\n|\x1b\\[[0-9;]*m)" if colours else "(\n)", text)
    return "".join(piece if place % 2 else printable(piece) for place, piece in enumerate(pieces))


def printable(text: str) -> str:
    r"""A text from elsewhere on one line, as a terminal or a table may show it.

    Control characters, turns of direction, line breaks and lone surrogates become visible escapes.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _UNPRINTABLE.sub(
        lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text
    )
