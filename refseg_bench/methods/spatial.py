"""The direction rule: a heat map weighted by where the words say the object is.

"Spatial bias" is published by name only (RefAM, HybridGL, Ref-Diff differ or don't say); this is the
linear ramp, with the variants as options. Orthogonal to every method: any heat map can take it.
Pure functions; ``H`` rows, ``W`` columns, relative positions measured at pixel centres.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["left", "right", "top", "bottom", "middle"]
Axes = Literal["both", "horizontal", "vertical"]


def word_set(text: str) -> frozenset[str]:
    """The words of a text, for word lists kept readable."""
    return frozenset(text.split())


SIDE_OF: dict[str, Side] = {
    **dict.fromkeys(("left", "leftmost", "lefthand"), "left"),
    **dict.fromkeys(("right", "rightmost", "righthand"), "right"),
    **dict.fromkeys(("top", "topmost", "upper", "uppermost", "highest", "above"), "top"),
    **dict.fromkeys(("bottom", "bottommost", "lower", "lowermost", "lowest", "below"), "bottom"),
    **dict.fromkeys(("middle", "center", "centre", "central"), "middle"),
}
#: Those that say nothing else about an object: neither prepositions nor heights, and no stop word.
DIRECTION_WORDS = frozenset(SIDE_OF) - word_set("above below highest lowest lefthand righthand")
_HORIZONTAL = ("left", "right", "middle")
_PREPOSITIONS = word_set(
    "of with behind beside near by at in on under over from to against beyond around next holding"
)
_DETERMINERS = word_set("the a an his her its their this that far very most")
#: Nouns that name a place of the picture, not another object ("in the top left corner").
_PLACES = word_set("side corner edge part half end area of and hand")


@dataclass
class SpatialBias:
    """Options of the rule."""

    floor: float = 0.0  #: least weight; w becomes floor + (1 - floor) * w
    axes: Axes = "both"  #: which words count: all, left/right/middle only, or top/bottom only
    parse: bool = False  #: skip a direction word that belongs to another object ("behind the left chair")
    half: bool = False  #: a half-plane instead of a ramp: 1 on the named half, 0 on the other


def directions(text: str, *, axes: Axes = "both", parse: bool = False) -> tuple[Side, ...]:
    """The sides an expression names, in reading order, each once.

    Args:
        text: the expression.
        axes: which of them to keep.
        parse: leave out words inside a prepositional phrase about another object.

    >>> directions("top left microwave")
    ('top', 'left')
    >>> directions("the cat behind the left chair", parse=True)
    ()
    """
    words = re.findall(
        r"[a-z]+", text.lower().replace("left-hand", "lefthand").replace("right-hand", "righthand")
    )
    found: dict[Side, None] = {}
    for index, word in enumerate(words):
        side = SIDE_OF.get(word)
        if side is None or (parse and _about_another(words, index)):
            continue
        if axes == "both" or (axes == "horizontal") == (side in _HORIZONTAL):
            found[side] = None
    return tuple(found)


def _about_another(words: list[str], index: int) -> bool:
    """Whether a direction word stands as "PREPOSITION the DIRECTION NOUN" with a real noun."""
    before = index - 1
    while before >= 0 and (words[before] in _DETERMINERS or words[before] in SIDE_OF):
        before -= 1
    if before < 0 or words[before] not in _PREPOSITIONS:
        return False
    after = index + 1
    while after < len(words) and words[after] in SIDE_OF:
        after += 1
    return after < len(words) and words[after] not in _PLACES and words[after] not in _PREPOSITIONS


def side_weight(side: Side, size: tuple[int, int], *, half: bool = False) -> NDArray[np.float32]:
    """The weight in [0, 1] of every cell of a map for one side.

    left 1 - x, right x, top 1 - y, bottom y, middle 1 - |2x - 1|. With ``half``: 1 where that is at
    least 0.5.

    >>> side_weight("left", (1, 4)).tolist()
    [[0.875, 0.625, 0.375, 0.125]]
    """
    y = ((np.arange(size[0]) + 0.5) / size[0])[:, None]
    x = ((np.arange(size[1]) + 0.5) / size[1])[None, :]
    line = {"left": 1 - x, "right": x, "top": 1 - y, "bottom": y, "middle": 1 - np.abs(2 * x - 1)}[side]
    weight = np.broadcast_to(line >= 0.5 if half else line, size)
    return np.ascontiguousarray(weight, dtype=np.float32)


def bias_map(text: str, size: tuple[int, int], options: SpatialBias) -> NDArray[np.float32]:
    """Product of the weights of all sides an expression names; ones if it names none."""
    weight = np.ones(size, np.float32)
    for side in directions(text, axes=options.axes, parse=options.parse):
        ramp = side_weight(side, size, half=options.half)
        weight *= options.floor + (1.0 - options.floor) * ramp
    return weight


def biased(heat_THW: NDArray[np.floating], text: str, options: SpatialBias) -> NDArray[np.float32]:
    """A map or volume (..., H, W) times the expression's weight."""
    return (heat_THW * bias_map(text, (heat_THW.shape[-2], heat_THW.shape[-1]), options)).astype(np.float32)
