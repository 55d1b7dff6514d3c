"""What lies where masks were expected: names that are nearly right, and the rename that helps.

Only names are looked at, and none is taken for another: a layout is one of docs/scoring.md, or its
owner is told how it becomes one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

#: Files and folders of a foreign folder that are looked through for a hint.
MOST_ENTRIES = 300_000


def plain(name: str) -> str:
    """A name without case, signs and levels.

    >>> plain("Videos/A_1")
    'videosa1'
    """
    return re.sub(r"[\W_]+", "", name.casefold())


def numbers(name: str) -> tuple[str, ...]:
    """The numbers in a name, without leading zeros.

    >>> numbers("img_042/s0.png")
    ('42', '0')
    """
    return tuple(n.lstrip("0") or "0" for n in re.findall(r"[0-9]+", name))


def few(names: Iterable[str]) -> str:
    """The first of some names, in quotes."""
    first = sorted(names)
    return ", ".join(f"'{name}'" for name in first[:3]) + (" …" if len(first) > 3 else "")


def meant(wanted: str, names: Collection[str], text: str = "") -> str | None:
    """The only one of some names that may stand for ``wanted``.

    It is padded, in other case, the expression's text, or has a word before or after it.
    """
    for found in (
        [n for n in names if n.isdecimal() and wanted.isdecimal() and numbers(n) == numbers(wanted)],
        [n for n in names if plain(n) == plain(wanted)],
        [n for n in names if text and plain(n) == plain(text)],
        [n for n in names if wanted.isdecimal() and numbers(n) == numbers(wanted)],
        [n for n in names if len(wanted) > 3 and plain(wanted) in plain(n)],
    ):
        if len(found) == 1:
            return found[0]
    return None


def counted_from_1(names: Iterable[str], wanted: Sequence[str]) -> bool:
    """Whether numbered names are those wanted, each one too high: masks of other frames or expressions."""
    numbered = {int(n) for n in names if n.isdecimal() and len(n) < 19}
    return all(n.isdecimal() and len(n) < 19 for n in wanted) and numbered == {int(n) + 1 for n in wanted}


def frames_instead(names: Collection[str], wanted: Sequence[str], end: str = ".png") -> str:
    """What stands in the place of a clip's frames.

    Args:
        names: what is there.
        wanted: the frames' names.
        end: what a name ends in after the frame's.

    Returns:
        A sentence, empty if no frame lacks.
    """
    known = set(wanted)
    lacking = [name for name in wanted if f"{name}{end}" not in names]
    if not lacking:
        return ""
    if not names:
        return "the folder is empty" if end else "its entry is empty"
    first = f"{lacking[0]}{end}"
    surplus = sorted(
        n.removesuffix(end) for n in names if n.endswith(end) and n.removesuffix(end) not in known
    )
    other = next((n for n in sorted(names) if end and n.rpartition(".")[0] == lacking[0]), None)
    if other is not None:
        hint = (
            "rename it" if other.lower() == first else "masks must be PNG files (JPEG changes their values)"
        )
        return f"'{other}' lies there for '{first}': {hint}"
    if not surplus:
        rest = [n for n in names if n.removesuffix(end) not in known]
        return f"{first} is missing" + (f", there is {few(rest)}" if rest else "")
    if all(n.isdecimal() for n in (*wanted, *surplus)):
        here = [*surplus, *(n for n in wanted if f"{n}{end}" in names)]
        if {numbers(n) for n in lacking} <= {numbers(n) for n in surplus}:
            like = next(n for n in surplus if numbers(n) == numbers(lacking[0]))
            return f"'{like}{end}' lies there for '{first}': pad the numbers as the data set does"
        told = f"{first} is missing, {max(surplus, key=lambda n: (len(n), n))}{end} is surplus"
        if counted_from_1(here, wanted):
            return f"{told}: counted from 1?"
        for start in (0, 1):
            if sorted(int(n) for n in here if len(n) < 19) == list(range(start, start + len(wanted))):
                return f"{told}: counted from {start}? Frames are named as the data set's list has them"
        return told
    holding = [n for n in surplus if lacking[0] in n]
    if len(holding) == 1:
        return f"'{holding[0]}{end}' lies there for '{first}': rename it"
    return f"{first} is missing, {surplus[0]}{end} is surplus"


@dataclass
class Tree:
    """The names below a folder (links not followed), or in a file.

    Attributes:
        folders: folder (``""`` is the top) → names of folders and of files in it.
        end: what the name of a frame's mask ends in.
    """

    folders: dict[str, tuple[list[str], list[str]]]
    end: str = ".png"
    _last: dict[str, list[str]] = field(default_factory=dict, init=False)
    _plain: dict[str, str] = field(default_factory=dict, init=False)
    _numbers: dict[tuple[str, ...], str] = field(default_factory=dict, init=False)

    @property
    def alone(self) -> str:
        """What to do about names that lie below others."""
        return "give that folder instead" if self.end else "write what stands there alone"

    def __post_init__(self) -> None:
        for folder, (_, files) in self.folders.items():
            paths = [folder, *(f"{folder}/{f}".lstrip("/") for f in files)]
            for path in paths:
                stem = path if path == folder else path.rpartition(".")[0] or path
                self._last.setdefault(stem.rpartition("/")[2], []).append(path)
                self._plain.setdefault(plain(stem), path)
                self._numbers.setdefault(numbers(stem), path)

    def ending_in(self, name: str) -> list[str]:
        """Folders and files (whatever they end in) of that name, in any folder."""
        found = self._last.get(name.rpartition("/")[2], [])
        return [p for p in found if f"/{self.stem(p)}".endswith(f"/{name}")]

    def alike(self, name: str) -> str | None:
        """A path that differs from a name in case, signs and levels only."""
        return self._plain.get(plain(name))

    def numbered(self, name: str) -> str | None:
        """A path with the same numbers as a name."""
        return self._numbers.get(numbers(name)) if numbers(name) else None

    def stem(self, path: str) -> str:
        """A folder's path, or a file's without what it ends in."""
        return path if path in self.folders else path.rpartition(".")[0] or path


@lru_cache(maxsize=2)
def tree(root: Path) -> Tree:
    """The names below a folder, as far as is sensible, looked up once."""
    folders: dict[str, tuple[list[str], list[str]]] = {}
    left = MOST_ENTRIES
    for place, below, files in os.walk(root):
        relative = os.path.relpath(place, root).replace(os.sep, "/")
        below.sort()
        folders["" if relative == "." else relative] = (list(below), sorted(files))
        left -= len(below) + len(files)
        if left < 0:
            break
    return Tree(folders)


def tree_of(below: Callable[[str], Iterable[str] | None]) -> Tree:
    """A tree of the names that stand below each name; what has none below it is an empty folder."""
    folders: dict[str, tuple[list[str], list[str]]] = {}
    waiting = [""]
    while waiting and len(folders) < MOST_ENTRIES:
        path = waiting.pop()
        names = sorted(below(path) or ())
        folders[path] = (names, [])
        for name in names:
            inside = f"{path}/{name}" if path else name
            if name and "/" not in name:
                waiting.append(inside)
            else:
                # It is no part of a path: what that would lead to is another's.
                folders.setdefault(inside, ([], []))
    return Tree(folders, "")


def video_instead(held: Tree, clip: str, expression: str, text: str, frame: str) -> str:
    """What lies in the place of ``<clip>/<expression>/<frame>.png``, and what to do; empty: nothing does."""
    wanted = f"{clip}/{expression}"
    for path in held.ending_in(wanted):
        if path in held.folders and path != wanted:
            return f"found below '{path[: -len(wanted) - 1]}': {held.alone}"
        if path not in held.folders:
            return f"found the file '{path}': '{wanted}' is a folder of one PNG per frame"
    for path in held.ending_in(f"{expression}/{clip}"):
        return f"found '{path}', which has the levels swapped: rename it to '{wanted}'"
    for path in held.ending_in(clip):
        if path not in held.folders:
            continue
        below, files = held.folders[path]
        inner = [n for names in held.folders.get(f"{path}/{frame}", ()) for n in names]
        if meant(expression, [n.removesuffix(held.end) for n in inner]):
            found = f"{path}/{frame}/{inner[0]}"
            return f"found '{found}', levels swapped: it belongs to '{wanted}/{frame}{held.end}'"
        name = meant(expression, below, text)
        if name is not None and name != expression:
            return f"found '{path}/{name}': rename it to '{wanted}'"
        flat = next((f for f in files if numbers(f) == numbers(f"{expression} {frame}")), None)
        if flat is not None:
            return f"found '{path}/{flat}': make it '{wanted}/{frame}{held.end}'"
        if below or files:
            return f"'{path}' holds {few(below or files)}, no '{expression}'"
    return _renamed(
        held,
        clip,
        [
            (wanted, f"rename it to '{wanted}'"),
            (f"{wanted}/{frame}", f"make it '{wanted}/{frame}{held.end}'"),
        ],
    )


def maps_instead(held: Tree, clip: str, frame: str) -> str:
    """What lies in the place of the id maps ``<clip>/<frame>.png``, and what to do; empty: nothing does."""
    for path in held.ending_in(clip):
        if path in held.folders and path != clip:
            return f"found below '{path[: -len(clip) - 1]}': {held.alone}"
        if any(names := held.folders.get(path, ([], []))):
            return f"'{path}' holds {few(names[0] + names[1])}, no '{frame}{held.end}'"
    for path in held.ending_in(f"{frame}/{clip}"):
        return f"found '{path}', which has the levels swapped: make it '{clip}/{frame}{held.end}'"
    return _renamed(held, clip, [(f"{clip}/{frame}", f"make it '{clip}/{frame}{held.end}'")])


def _renamed(held: Tree, clip: str, more: Sequence[tuple[str, str]]) -> str:
    """A path that looks like one of some names or like a clip's, and what to do."""
    hint = f"rename it to '{clip}'"
    for name, help_ in (*more, (clip, hint), (clip.rpartition("/")[2], hint)):
        near = held.alike(name)
        if near is not None:
            return f"found '{near}': {help_}"
    near = meant(clip, held.folders[""][0]) if "" in held.folders else None
    return "" if near is None else f"found '{near}': {hint}"


def image_instead(held: Tree, names: Sequence[str], clip: str, expression: str, text: str) -> str:
    """What lies in the place of an image sample's mask, which may have any of some names."""
    for name in names:
        for path in held.ending_in(name):
            if path in held.folders:
                if any(held.folders[path]) and "/" in name:
                    below, files = held.folders[path]
                    return f"the folder '{path}' holds {few(below + files)} instead of one PNG"
            elif not path.endswith(".png"):
                hint = "rename it" if path.lower().endswith(".png") else "write a PNG file"
                return f"found '{path}' for '{name}.png': {hint}"
            elif path != f"{name}.png":
                return f"found below '{path[: -len(name) - 5]}': {held.alone}"
    both = f"{clip}/{expression}"
    for near in (held.alike(both), held.alike(f"{clip}/{text}"), held.numbered(both)):
        if near is not None and near not in held.folders:
            return f"found '{near}': rename it to '{both}.png'"
    for near in (held.alike(f"{expression}/{clip}"), held.numbered(f"{expression}/{clip}")):
        if near is not None and near not in held.folders:
            return f"found '{near}', which has the levels swapped: rename it to '{both}.png'"
    return ""


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
