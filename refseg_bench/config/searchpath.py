"""Where configs are looked for, and with that whose code may be built.

An entry is ``pkg://my_package.conf`` or a folder (``file:///x/conf`` or a path) with Hydra's groups below
it (``dataset/mine.yaml``). Entries come from ``hydra.searchpath=[…]`` on a command line, the environment
variable ``REFSEG_SEARCHPATH`` (by commas) and ``searchpath`` in the table ``[tool.refseg]`` of the current
folder's ``pyproject.toml``; what ships with this package comes first. Whoever puts a package on the search
path trusts its code: nothing else than this package and those is ever imported.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from refseg_bench.env import resource
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import read_yaml

#: The environment variable; processes that are started from here inherit it.
SEARCHPATH = "REFSEG_SEARCHPATH"
TARGET = "_target_"
_PACKAGE, _FILE = "pkg://", "file://"


def entries() -> list[str]:
    """The search path beyond what ships: the environment's, then the current folder's."""
    found = [entry.strip() for entry in os.environ.get(SEARCHPATH, "").split(",")]
    project = Path("pyproject.toml")
    if project.is_file():
        try:
            table = _toml(project.read_text(encoding="utf-8")).get("tool", {}).get("refseg", {})
        except (ValueError, OSError) as error:
            raise ConfigError(f"Can't read it: {error}", where=project.resolve()) from error
        own = table.get("searchpath", [])
        if not isinstance(own, list) or not all(isinstance(entry, str) for entry in own):
            raise ConfigError(
                "[tool.refseg] searchpath is no list of texts.",
                where=project.resolve(),
                hint='searchpath = ["pkg://my_package.conf", "conf"]',
            )
        found += own
    return list(dict.fromkeys(filter(None, found)))


@functools.cache  # composing asks for the search path dozens of times
def _toml(text: str) -> dict[str, Any]:
    if "searchpath" not in text:
        return {}
    import tomllib  # a tenth of a short command's start, and few folders' files speak of it

    return tomllib.loads(text)


def extend(more: Iterable[str]) -> None:
    """Put entries on the search path of this process and of those it starts.

    To be called for what the present command line names, never for what a file of a run folder says.
    """
    known = [entry for entry in os.environ.get(SEARCHPATH, "").split(",") if entry]
    # A process that is started elsewhere must find the same folder.
    full = [entry if entry.startswith(_PACKAGE) else str(_folder(entry)) for entry in more]
    if any("," in entry for entry in full):
        raise ConfigError("A search path can't hold a comma.", where=", ".join(full))
    os.environ[SEARCHPATH] = ",".join(dict.fromkeys([*known, *full]))


def _folder(entry: str) -> Path:
    return Path(entry.removeprefix(_FILE)).expanduser().resolve()


def folders() -> list[Path]:
    """The folders that hold config groups, what ships first.

    Raises:
        ConfigError: an entry is no folder, or its package is not installed.
    """
    found = [resource("conf").resolve()]
    for entry in entries():
        if entry.startswith(_PACKAGE):
            name = entry.removeprefix(_PACKAGE)
            try:
                spec = importlib.util.find_spec(name)
            except (ImportError, ValueError):
                spec = None
            if spec is None:
                raise ConfigError(
                    f"The search path names the package '{name}', which can't be imported.",
                    where=entry,
                    hint="Install it, or correct the name.",
                )
            found += [Path(place) for place in spec.submodule_search_locations or ()]
        elif _folder(entry).is_dir():
            found.append(_folder(entry))
        else:
            raise ConfigError(
                "The search path names a folder that is not there.",
                where=entry,
                allowed=["pkg://my_package.conf", "file:///a/folder", "a/folder"],
            )
    return list(dict.fromkeys(found))


def trusts(package: str) -> bool:
    """Whether a package's components may be imported: it, or a YAML that names it, is on the search path."""
    known = entries()
    if any(e.removeprefix(_PACKAGE).partition(".")[0] == package for e in known if e.startswith(_PACKAGE)):
        return True
    return any(
        target.partition(".")[0] == package
        for entry in known
        if not entry.startswith(_PACKAGE)
        for path in sorted(_folder(entry).rglob("*.yaml"))
        for target in targets(read_yaml(path))
    )


def targets(value: Any) -> Iterator[str]:
    """Every ``_target_`` in a nest of plain values."""
    if isinstance(value, Mapping):
        if isinstance(value.get(TARGET), str):
            yield value[TARGET]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from targets(item)
