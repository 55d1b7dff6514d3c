"""What the words of an expression ask for, as far as a word list goes.

A small closed vocabulary, no model: colours, surface textures, sizes, places, motion, coming and
going, number, negation, one relation to one other object. What it doesn't know it ignores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from refseg_bench.methods.spatial import Side, directions

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
_COLOUR_OF = {
    **{name: name for name in COLOURS},
    **{
        "gray": "grey",
        "silver": "grey",
        "violet": "purple",
        "golden": "yellow",
        "dark": "black",
        "blond": "yellow",
    },
}
TEXTURES = ("plain", "striped", "dotted", "checked")
_TEXTURE_OF = {
    **dict.fromkeys(("plain", "solid", "unpatterned", "uniform"), "plain"),
    **dict.fromkeys(("striped", "stripes", "stripy", "stripe"), "striped"),
    **dict.fromkeys(("dotted", "dots", "spotted", "spots"), "dotted"),
    **dict.fromkeys(("checked", "checks", "checkered", "chequered", "checkerboard"), "checked"),
}
_BIG = frozenset({"big", "bigger", "biggest", "large", "larger", "largest", "huge", "most"})
_SMALL = frozenset({"small", "smaller", "smallest", "little", "tiny", "least", "fit"})
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "both": 2, "pair": 2}
_PLURAL = frozenset(
    {"all", "both", "ones", "objects", "things", "shapes", "people", "cats", "cups", "coins", "several"}
)
_NEGATIONS = frozenset({"not", "no", "without", "never", "isn't", "doesn't", "don't"})
_STILL = (
    r"\b(stand(s|ing)? still|stays?( in place)?|(does|do|is|are) ?(not|n't) mov\w+"
    r"|motionless|static|at rest|still)\b"
)
_MOVE = r"\b(mov\w+|go(es|ing)?|driv\w+|walk\w*|runn?\w*|fly\w*|fall\w*|ris\w+|head\w*|travel\w*)\b"
_HEADING = _MOVE + r"(?: (?:to|towards?|the|straight))* (left|right|up|down)(wards?)?\b"
#: Events in the order they are looked for: the first match is taken.
_EVENTS = (
    ("returns", r"\b(comes? back|returns?|reappears?|re-enters?)\b"),
    ("hidden", r"\b(hides? behind|is hidden|gets? hidden|occluded|hidden)\b"),
    ("covers", r"\b(hides another|covers|passes in front|occludes)\b"),
    ("leaves", r"\b(leaves|goes (out|away)|disappears|exits)\b"),
    ("enters", r"\b(enters|comes in(to)?|appears)\b"),
)
_ODD = (
    ("colour", r"\b(another colou?r|whose colou?r no other|different colou?r)\b"),
    (
        "texture",
        r"\b(another (pattern|texture)|whose (pattern|texture) no other|different (pattern|texture))\b",
    ),
)
_RELATION = re.compile(
    r"\b(?:(?:to|on) the )?(left|right|above|below|under|beneath|over|on top)(?: of)? (the|a|an) (.+)$"
)
_SIDE_OF_RELATION: dict[str, Side] = {
    "left": "left", "right": "right", "above": "top", "over": "top", "on top": "top",
    "below": "bottom", "under": "bottom", "beneath": "bottom",
}  # fmt: skip


@dataclass(frozen=True)
class Query:
    """One thing, or one kind of thing, asked for.

    Attributes:
        colours, textures: names of :data:`COLOURS`, :data:`TEXTURES` (any of them will do).
        not_colours, not_textures: names that a negation precedes.
        size: +1 big, -1 small, 0 unsaid.
        sides: places in the picture.
        heading: left, right, up, down, ``still``, ``moving`` or "".
        event: returns, hidden, covers, leaves, enters or "".
        odd: ``colour`` or ``texture`` if the thing is the one that differs in it.
        plural: several are meant.
        number: how many, if a number word says so.
        relation: the side of another thing on which this one is, and that thing.
    """

    colours: tuple[str, ...] = ()
    textures: tuple[str, ...] = ()
    not_colours: tuple[str, ...] = ()
    not_textures: tuple[str, ...] = ()
    size: int = 0
    sides: tuple[Side, ...] = ()
    heading: str = ""
    event: str = ""
    odd: str = ""
    plural: bool = False
    number: int | None = None
    relation: tuple[Side, Query] | None = None


def parse(text: str) -> tuple[Query, ...]:
    """The queries of an expression; several where "and" joins full noun phrases (their union is meant).

    >>> (query,) = parse("the red striped one on the left")
    >>> query.colours, query.textures, query.sides
    (('red',), ('striped',), ('left',))
    """
    clean = " ".join(re.findall(r"[a-z'-]+", text.lower()))
    return tuple(_phrase(part) for part in re.split(r" and (?=(?:the|a|an|all|both) )", clean) if part)


def _phrase(text: str) -> Query:
    heading = re.search(_HEADING, text)
    still = re.search(_STILL, text)
    motion, rest = "", text
    if still:
        motion, rest = "still", text.replace(still.group(0), " ")
    elif heading:
        motion = re.sub(r"wards?$", "", heading.group(0).split()[-1])
        rest = text.replace(heading.group(0), " ")
    elif re.search(r"\bmoving\b|\bmoves\b", text):
        motion = "moving"
    event = next((name for name, pattern in _EVENTS if re.search(pattern, text)), "")
    relation = None
    found = None if motion else _RELATION.search(rest)
    if found:
        relation = (_SIDE_OF_RELATION[found.group(1)], _phrase(f"{found.group(2)} {found.group(3)}"))
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
    numbers = [_NUMBERS[word] for word in words if word in _NUMBERS]
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
        odd=next((name for name, pattern in _ODD if re.search(pattern, text)), ""),
        plural=bool(_PLURAL & set(words)) or bool(numbers),
        number=numbers[0] if numbers else None,
        relation=relation,
    )
