"""Errors a stranger can act on, and texts from elsewhere as a terminal may show them.

Every error this package raises on bad input is a :class:`RefsegError`: it says what is wrong,
where, what is allowed, and what to do. The command line prints them without a traceback;
anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import copyreg
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class RefsegError(Exception):
    """Bad input, told in one message.

    Args:
        what: what is wrong, one sentence.
        where: the file, key or sample it is about.
        allowed: the values that would be accepted.
        hint: what the user can do about it.
    """

    details: Mapping[str, Any] = {}  #: JSON facts to keep with the sample that failed
    pictures: Mapping[str, bytes] = {}  #: JPEG files that they name, by digest
    code = 2  #: what a command that it ends exits with

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        allowed: Iterable[object] | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.allowed = None if allowed is None else [str(item) for item in allowed]
        self.hint = hint
        super().__init__(what, self.where, self.allowed, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process borders; the default would call __init__ with positional arguments.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def __str__(self) -> str:
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  where:   {self.where}")
        if self.allowed is not None:
            lines.append(f"  allowed: {', '.join(self.allowed) or '(nothing)'}")
        if self.hint is not None:
            lines.append(f"  hint:    {self.hint}")
        return "\n".join(lines)


class DataError(RefsegError):
    """A dataset's file is missing, torn or not what its format says."""


class ConfigError(RefsegError):
    """An option, group or config file is unknown or of the wrong type."""


class StoreError(RefsegError):
    """A run folder can't be read or written."""


class TakenOver(StoreError):
    """Another worker was told that this one is dead, and has its clip; there may be more to do."""

    code = os.EX_TEMPFAIL


class ScoreError(RefsegError):
    """A protocol refuses to score what it was given."""


class MissingExtra(ConfigError):
    """A capability needs a package of an optional extra that is not installed."""

    def __init__(self, capability: str, package: str, extra: str) -> None:
        super().__init__(
            f"{capability} needs the package '{package}', which is not installed.",
            hint=f"pip install 'refseg-bench[{extra}]'",
        )


# ── optional extras ──────────────────────────────────────────────────────────

#: top-level import name → extra of ``refseg-bench`` that installs it.
EXTRA_OF = {
    "torch": "mllm",
    "torchvision": "mllm",
    "transformers": "mllm",
    "diffusers": "dit",
    "accelerate": "mllm",
    "sentencepiece": "dit",
    "protobuf": "dit",
    "sam2": "sam2",
    "ray": "ray",
    "submitit": "slurm",
    "openai": "chat",
    "av": "report",
    "matplotlib": "report",
}


def missing_package(capability: str, package: str) -> RefsegError:
    """The error for a component whose import failed on a third-party package."""
    top = package.partition(".")[0]
    if top in EXTRA_OF:
        return MissingExtra(capability, top, EXTRA_OF[top])
    return ConfigError(
        f"{capability} needs the package '{top}', which is not installed.", hint=f"pip install {top}"
    )


def require(package: str, capability: str) -> None:
    """Raise the error with its hint unless the package can be found (it is not imported)."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise missing_package(capability, package)


# ── texts ────────────────────────────────────────────────────────────────────

#: Controls (also C1), marks that turn the direction of text, separators that break lines.
_UNPRINTABLE = "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"


def shown(text: str, colours: bool = False) -> str:
    """Text of any number of lines as a terminal may show it: each is :func:`printable`.

    ``colours``: let changes of colour pass, as this program's own tables make.
    """
    if text.replace("\n", "").isprintable():
        return text
    pieces = re.split("(\n|\x1b\\[[0-9;]*m)" if colours else "(\n)", text)
    return "".join(piece if place % 2 else printable(piece) for place, piece in enumerate(pieces))


def some(names: Iterable[object], most: int = 5) -> str:
    """The first of some names, and how many more there are.

    >>> some("abc"), some("abc", 2)
    ('a, b, c', 'a, b and 1 more')
    """
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + f" and {len(every) - most} more" * (len(every) > most)


def printable(text: str) -> str:
    r"""A text from elsewhere on one line, as a terminal or a table may show it.

    Control characters, turns of direction, line breaks and lone surrogates become visible escapes.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return re.sub(
        _UNPRINTABLE, lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text
    )
