"""What lies where masks were expected: names that are nearly right, told beside those that are wanted.

Only names are looked at, and none is taken for another: a layout is one of docs/scoring.md, or its
owner is shown where it differs from one.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

from refseg_bench.errors import some

#: Files and folders of a foreign folder that are looked through.
MOST_ENTRIES = 300_000


def words(name: str) -> tuple[str, ...]:
    """The words and numbers of a name without case, signs, levels and leading zeros.

    >>> words("IMG-042/s0")
    ('img', '42', 's', '0')
    """
    found = re.findall(r"[0-9]+|[^\W\d_]+", unicodedata.normalize("NFKC", name).casefold())
    return tuple(word.lstrip("0") or "0" if word.isdecimal() else word for word in found)


def numbers(name: str) -> tuple[str, ...]:
    """The numbers among the words of a name."""
    return tuple(filter(str.isdecimal, words(name)))


def few(names: Iterable[str]) -> str:
    """The first of some names, in quotes."""
    return some((f"'{name}'" for name in sorted(names)), 3)


def counted_from_1(names: Iterable[str], wanted: Sequence[str]) -> bool:
    """Whether numbered names are those wanted, each one too high: masks of other frames or expressions."""
    numbered = {int(n) for n in names if n.isdecimal() and len(n) < 19}
    return all(n.isdecimal() and len(n) < 19 for n in wanted) and numbered == {int(n) + 1 for n in wanted}


def frames_instead(names: Collection[str], wanted: Sequence[str], end: str = ".png") -> str:
    """What stands in the place of a clip's frames, in a sentence; empty if no frame lacks."""
    lacking = next((name for name in wanted if f"{name}{end}" not in names), None)
    if lacking is None:
        return ""
    if not names:
        return "the folder is empty" if end else "its entry is empty"
    others = sorted(set(names) - {f"{name}{end}" for name in wanted})
    alike = numbers if numbers(lacking) else words
    like = [name for name in others if alike(_stem(name)) == alike(lacking)]
    if len(like) == 1:
        return f"'{like[0]}' lies there for '{lacking}{end}'"
    surplus = [name for name in others if name.endswith(end)]
    if not surplus:
        return f"{lacking}{end} is missing" + (f", there is {few(others)}" if others else "")
    told = f"{lacking}{end} is missing, {max(surplus, key=lambda name: (len(name), name))} is surplus"
    here = [name.removesuffix(end) for name in names if name.endswith(end)]
    return f"{told}: counted from 1?" if counted_from_1(here, wanted) else told


def _stem(path: str) -> str:
    """A file's path without what it ends in; a folder's, which ends in ``/``, without that."""
    return path[:-1] if path.endswith("/") else path.rpartition(".")[0] or path


class Names:
    """The names below a folder (links not followed), or in a file, to look for what is nearly right.

    Paths of folders end in ``/``; ``alone``: what to do about names that lie below others.
    """

    def __init__(self, paths: Iterable[str], alone: str) -> None:
        self.alone = alone
        self._last: dict[str, list[str]] = {}
        self._like: dict[tuple[str, ...], str] = {}
        self._numbered: dict[tuple[str, ...], str] = {}
        for path in islice(paths, MOST_ENTRIES):
            stem = _stem(path)
            self._last.setdefault(stem.rpartition("/")[2], []).append(stem)
            self._like.setdefault(words(stem), path)
            self._numbered.setdefault(numbers(stem), path)

    def instead(self, wanted: str, names: Sequence[str], image: bool = False) -> str:
        """What lies where something was expected; empty if nothing does.

        Args:
            wanted: the place it was expected at.
            names: what it may be called, likeliest first; the same words in another spelling count.
            image: the numbers of a name count, too.
        """
        for name in names:
            near = self._like.get(words(name))
            if near is None and image and len(numbers(name)) > 1:
                near = self._numbered.get(numbers(name))
            if near == f"{wanted}/":
                return f"nothing is in '{near}'"
            if near is not None:
                composed = [unicodedata.is_normalized("NFC", each) for each in (near, wanted)]
                form = " in another Unicode form" * (len({*composed}) > 1)
                return f"found '{near}'{form} where '{wanted}' is wanted"
        for name in names:
            for path in self._last.get(name.rpartition("/")[2], []):
                if path.endswith(f"/{name}"):
                    return f"found below '{path[: -len(name) - 1]}': {self.alone}"
        return ""


@lru_cache(maxsize=2)
def names_below(root: Path) -> Names:
    """The names below a folder, as far as is sensible, looked up once."""

    def paths() -> Iterator[str]:
        for place, below, files in os.walk(root):
            below.sort()
            above = os.path.relpath(place, root).replace(os.sep, "/")
            above = "" if above == "." else f"{above}/"
            yield from (f"{above}{name}/" for name in below)
            yield from (f"{above}{name}" for name in sorted(files))

    return Names(paths(), "give that folder instead")


def surplus(
    entries: Callable[[str], Mapping[str, object] | None],
    tops: Sequence[str],
    wanted: Mapping[str, set[str] | None],
) -> tuple[list[str], list[str]]:
    """Names that no sample has, and samples that lie in two places.

    Args:
        entries: what stands directly below a name; ``None`` where nothing can.
        tops: names, ending in ``/``, below which layouts are looked for, the whole (``""``) among them.
        wanted: name below a top → names of what may stand below it; ``None``: one thing of any name.
    """
    inner: dict[str, set[str]] = {}
    for name in wanted:
        parts = name.split("/") if name else []
        for depth, part in enumerate(parts):
            inner.setdefault("/".join(parts[:depth]), set()).add(part)
    rest: list[str] = []
    twice: list[str] = []
    seen: dict[str, str] = {}
    for top in tops:
        waiting = [""]
        while waiting:
            above = waiting.pop()
            held = entries(f"{top}{above}".rstrip("/"))
            if held is None:
                parent, _, last = above.rpartition("/")
                rest += [top + above] if last and last not in (wanted.get(parent) or ()) else []
                continue
            names = wanted.get(above, set())
            if names is None:
                names = set(held) if len(held) == 1 else set()
            if not names.isdisjoint(held) and seen.setdefault(above, top) != top:
                twice.append(above or ".")
            for name in sorted(held):
                path = f"{above}/{name}" if above else name
                if name in inner.get(above, ()):
                    waiting.append(path)
                elif name not in names and f"{top}{path}/" not in tops:
                    rest.append(top + path)
    return rest, twice
