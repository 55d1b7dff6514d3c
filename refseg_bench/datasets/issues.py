"""What is wrong with a data set on disk, told one problem at a time.

Every check of every reader hands its finding to a ``Report``. A loader passes :func:`refuse`,
so the first problem ends the reading with its error; ``refseg data verify`` passes
``list.append``, so one pass finds them all. There is no second set of checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg_bench.errors import DataError

UNPACK_AGAIN = "Unpack the data set again; `refseg data verify NAME` lists everything that is wrong."
_RESTORE = "Restore the original file."
_LAYOUT = "Restore the original file: this is not the format's layout."
_ONE_RELEASE = "Use the masks and the expression file of one release."
_NOT_THIS = "Don't use this file; fetch it again from the data set's own page."

#: Kind of damage → what helps against it, where the place of damage knows nothing better; for all other
#: kinds it is :data:`UNPACK_AGAIN`.
HINTS = {
    "another file": _RESTORE,
    "bad expression id": _RESTORE,
    "bad object id": _RESTORE,
    "bad size": _RESTORE,
    "bad type": _RESTORE,
    "duplicate id": "Restore the original file: one of the two entries would be lost.",
    "empty expression": "Restore the original file, or take the entry out.",
    "malformed line": _RESTORE,
    "mask count differs": _ONE_RELEASE,
    "missing entry": _ONE_RELEASE,
    "missing field": _LAYOUT,
    "object without a pixel": _ONE_RELEASE,
    "pickle with a callable": _NOT_THIS,
    "text in another encoding": "Restore the original file, or convert it to UTF-8.",
    "torn archive": "Fetch it again and compare its size or hash with the page it comes from.",
    "torn pickle": _NOT_THIS,
    "unsafe archive": "Don't use this archive; fetch it again from the data set's own page.",
    "unsafe name": "Don't use this file: names in a data set are plain relative paths.",
    "video without frames": _RESTORE,
    "wrong type": _LAYOUT,
}


class Damage(DataError):
    """One problem of a data set's files.

    Attributes:
        kind: a short name shared by problems of one sort ("missing frame"); reports group by it.
        file: the file or folder.
        place: where in it (``videos.a1b2.expressions.3``), or ``None`` for the whole.
        harmless: there is one way to read it all the same, and the loader takes it.
    """

    def __init__(
        self,
        kind: str,
        what: str,
        file: str | Path,
        place: str | None = None,
        hint: str | None = None,
        *,
        allowed: Iterable[object] | None = None,
        harmless: bool = False,
    ) -> None:
        self.harmless = harmless
        self.kind = kind
        self.file = str(file)
        self.place = place
        where = self.file if place is None else f"{self.file}: {place}"
        super().__init__(what, where=where, allowed=allowed, hint=hint or HINTS.get(kind, UNPACK_AGAIN))


Report = Callable[[Damage], None]


def refuse(damage: Damage) -> None:
    """The report of a loader: the first problem is the last."""
    if not damage.harmless:
        raise damage


_NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a data file, with checks of what stands there.

    Attributes:
        file: the file.
        part: where in it; ``None`` = the whole.
        report: receives what is wrong.
    """

    file: Path
    part: str | None = None
    report: Report = refuse

    def at(self, part: str) -> Place:
        """A place within this one: a key, or an index in brackets.

        >>> Place(Path("meta.json"), "videos").at("a1b2").at("frames[3]").part
        'videos.a1b2.frames[3]'
        """
        joined = part if self.part is None else f"{self.part}{'' if part[0] == '[' else '.'}{part}"
        return Place(self.file, joined, self.report)

    def damage(
        self,
        kind: str,
        what: str,
        hint: str | None = None,
        *,
        allowed: Iterable[object] | None = None,
        harmless: bool = False,
    ) -> Damage:
        """A problem of this place, to be raised."""
        return Damage(kind, what, self.file, self.part, hint, allowed=allowed, harmless=harmless)

    def tell(
        self,
        kind: str,
        what: str,
        hint: str | None = None,
        *,
        allowed: Iterable[object] | None = None,
        harmless: bool = False,
    ) -> None:
        """Report a problem of this place."""
        self.report(self.damage(kind, what, hint, allowed=allowed, harmless=harmless))

    def holds(self, value: Any, kind: type) -> bool:
        """Whether the value that stands here is of a kind of JSON value; reports it if not."""
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return True
        shown = repr(value)
        shown = shown if len(shown) < 60 else f"{shown[:57]}..."
        told = f"Expected {_NAMES.get(kind, kind.__name__)}, found {shown}."
        self.report(Damage("wrong type", told, self.file, self.part or "the file"))
        return False

    def field(self, record: Mapping[str, Any], key: str, kind: type) -> Any:
        """A field of the object that stands here; ``None`` after reporting that it is missing or wrong."""
        if key not in record:
            told = f"The field '{key}' is missing."
            self.report(Damage("missing field", told, self.file, self.part or "the file"))
            return None
        return record[key] if self.at(key).holds(record[key], kind) else None

    def fields(self, record: Mapping[str, Any], **kinds: type) -> list[Any] | None:
        """Several fields of the object that stands here; ``None`` if one was reported."""
        found = [self.field(record, key, kind) for key, kind in kinds.items()]
        return None if any(value is None for value in found) else found
