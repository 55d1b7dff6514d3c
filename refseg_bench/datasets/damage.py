"""What is wrong with a data set on disk, told one problem at a time.

Every check of every reader hands its finding to a ``Report``. A loader passes :func:`refuse`,
so the first problem ends the reading with its error; ``refseg data verify`` passes
``list.append``, so one pass finds them all. There is no second set of checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from refseg_bench.errors import DataError

UNPACK_AGAIN = "Unpack the data set again; `refseg data verify NAME` lists everything that is wrong."


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
        *,
        file: str | Path,
        place: str | None = None,
        cure: str = UNPACK_AGAIN,
        allowed: Iterable[object] | None = None,
        harmless: bool = False,
    ) -> None:
        self.harmless = harmless
        self.kind = kind
        self.file = str(file)
        self.place = place
        where = self.file if place is None else f"{self.file}: {place}"
        super().__init__(what, where=where, allowed=allowed, cure=cure)


Report = Callable[[Damage], None]


def refuse(damage: Damage) -> None:
    """The report of a loader: the first problem is the last."""
    if not damage.harmless:
        raise damage
