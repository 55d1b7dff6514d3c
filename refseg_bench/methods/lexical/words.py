"""What the words of an expression ask for, as far as a word list goes.

A small closed vocabulary, no model: colours, surface textures, sizes, places, motion, coming and
going, number, negation, one relation to one other object. What it doesn't know it ignores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from refseg_bench.files.store_io import read_yaml
from refseg_bench.methods.spatial import Side, directions

_KNOWN = read_yaml(Path(__file__).with_suffix(".yaml"))
COLOURS, TEXTURES = tuple(_KNOWN["colours"]), tuple(_KNOWN["textures"])
#: A typical RGB value of each colour name.
RGB = {name: tuple(colour["rgb"]) for name, colour in _KNOWN["colours"].items()}
_COLOUR_OF = {word: name for name, colour in _KNOWN["colours"].items() for word in colour["words"]}
_TEXTURE_OF = {word: name for name, words in _KNOWN["textures"].items() for word in words}
_BIG, _SMALL, _PLURAL, _NEGATIONS = (
    frozenset(_KNOWN[kind]) for kind in ("big", "small", "plural", "negations")
)
_HEADING = _KNOWN["move"] + r"(?: (?:to|towards?|the|straight))* (left|right|up|down)(wards?)?\b"
_RELATION = re.compile(
    r"\b(?:(?:to|on) the )?(left|right|above|below|under|beneath|over|on top)(?: of)? (the|a|an) (.+)$"
)


@dataclass(frozen=True)
class Query:
    """One thing, or one kind of thing, asked for."""

    #: colours, textures: names of :data:`COLOURS`, :data:`TEXTURES` (any of them will do).
    colours: tuple[str, ...] = ()
    textures: tuple[str, ...] = ()
    #: not_colours, not_textures: names that a negation precedes.
    not_colours: tuple[str, ...] = ()
    not_textures: tuple[str, ...] = ()
    size: int = 0  #: +1 big, -1 small, 0 unsaid
    sides: tuple[Side, ...] = ()  #: places in the picture
    heading: str = ""  #: left, right, up, down, ``still``, ``moving`` or ""
    event: str = ""  #: returns, hidden, covers, leaves, enters or ""
    odd: str = ""  #: ``colour`` or ``texture`` if the thing is the one that differs in it
    plural: bool = False  #: several are meant
    number: int | None = None  #: how many, if a number word says so
    #: The side of another thing on which this one is, and that thing.
    relation: tuple[Side, Query] | None = None


def parse(text: str) -> tuple[Query, ...]:
    """The queries of an expression; several where "and" joins full noun phrases (their union is meant).

    >>> (query,) = parse("the red striped one on the left")
    >>> query.colours, query.textures, query.sides
    (('red',), ('striped',), ('left',))
    """
    clean = " ".join(re.findall(r"[a-z'-]+", text.lower()))
    return tuple(_phrase(part) for part in re.split(r" and (?=(?:the|a|an|all|both) )", clean) if part)


def _first(kind: str, text: str) -> str:
    """The first of the patterns of a kind that a text has."""
    return next((name for name, pattern in _KNOWN[kind].items() if re.search(pattern, text)), "")


def _phrase(text: str) -> Query:
    heading = re.search(_HEADING, text)
    still = re.search(_KNOWN["still"], text)
    motion, rest = "", text
    if still:
        motion, rest = "still", text.replace(still.group(0), " ")
    elif heading:
        motion = re.sub(r"wards?$", "", heading.group(0).split()[-1])
        rest = text.replace(heading.group(0), " ")
    elif re.search(r"\bmoving\b|\bmoves\b", text):
        motion = "moving"
    event = _first("events", text)
    relation = None
    found = None if motion else _RELATION.search(rest)
    if found:
        relation = (_KNOWN["sides"][found.group(1)], _phrase(f"{found.group(2)} {found.group(3)}"))
        rest = rest[: found.start()]
    words = rest.split()
    colours: dict[bool, list[str]] = {False: [], True: []}
    textures: dict[bool, list[str]] = {False: [], True: []}
    for index, word in enumerate(words):
        denied = bool(_NEGATIONS & set(words[max(index - 2, 0) : index]))
        if word in _COLOUR_OF:
            colours[denied].append(_COLOUR_OF[word])
        if word in _TEXTURE_OF:
            textures[denied].append(_TEXTURE_OF[word])
    numbers = [_KNOWN["numbers"][word] for word in words if word in _KNOWN["numbers"]]
    size = bool(_BIG & set(words) or "cover any" in rest) - bool(_SMALL & set(words))
    return Query(
        colours=tuple(colours[False]),
        textures=tuple(textures[False]),
        not_colours=tuple(colours[True]),
        not_textures=tuple(textures[True]),
        size=size,
        sides=directions(rest),
        heading=motion,
        event=event,
        odd=_first("odd", text),
        plural=bool(_PLURAL & set(words)) or bool(numbers),
        number=numbers[0] if numbers else None,
        relation=relation,
    )
