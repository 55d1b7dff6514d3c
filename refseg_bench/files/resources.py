"""Where the files that ship with the package are: configs, sample datasets, published numbers.

In a checkout they stand at its top level (``conf/``, ``datasets/``, ``results/``); a wheel carries
them inside the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from refseg_bench.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def resource(name: Literal["conf", "datasets", "results"]) -> Path:
    """The folder of one kind of shipped file.

    Raises:
        ConfigError: a broken installation.
    """
    for place in (_PACKAGE.parent / name, _PACKAGE / "_shipped" / name):
        # A site-packages folder may hold an unrelated `datasets`; ours has a marker beside it.
        if place.is_dir() and (
            place.parent.name == "_shipped" or (_PACKAGE.parent / "pyproject.toml").is_file()
        ):
            return place
    raise ConfigError(
        f"The shipped folder '{name}' is missing.", where=_PACKAGE, hint="Install refseg-bench again."
    )


def weights(name: str) -> Path:
    """The folder of a model whose weights ship with the package.

    Raises:
        ConfigError: no such model.
    """
    place = _PACKAGE / "weights" / name
    if not place.is_dir():
        present = sorted(p.name for p in (_PACKAGE / "weights").glob("*") if p.is_dir())
        raise ConfigError(f"No shipped weights '{name}'.", allowed=present)
    return place
