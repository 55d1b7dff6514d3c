"""The one opener of what ``conf/`` names: a dataset, method, segmenter, backbone, protocol or experiment.

A word means a YAML of the group on the search path (:mod:`refseg_bench.config.searchpath`), by its name in
any spelling or by one of its ``aliases``, or else a class by its dotted path. Runs are composed
(:mod:`refseg_bench.config.compose`); everything that needs one component alone comes here.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg_bench.config import schema, searchpath
from refseg_bench.config.schema import TARGET, did_you_mean
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import files_in, parse_yaml, read_yaml

if TYPE_CHECKING:
    from refseg_bench.types import Result

#: Keys of a component's YAML that are no options of its class. ``submission`` is a data set's: the folder
#: above the videos in the zip that its evaluation server takes, empty for none.
ABOUT = ("defaults", "aliases", "submission")
#: What a YAML takes from a run → what it has outside of one.
OUTSIDE = {"${seed}": 0, "${paths.cache}": None}


def names(group: str) -> list[str]:
    """The members of a config group on the search path, sorted."""
    return sorted(_files(group))


def _files(group: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in searchpath.folders():
        top = os.path.join(folder, group)
        for name in (name for name in files_in(Path(top)) if name.endswith(".yaml")):
            found.setdefault(name.removesuffix(".yaml"), os.path.join(top, name))
    return found


def find(group: str, word: str) -> str:
    """A member's own name from a spelling or alias of it; a dotted path of a class stays as it is.

    >>> find("dataset", "RefCOCO+"), find("protocol", "mevis"), find("backbone", "Qwen2.5-VL-7B")
    ('refcoco_plus_unc', 'rvos-expr', 'qwen2_5_vl_7b')

    Raises:
        ConfigError: there is no such member.
    """
    files = _files(group)
    if word in files:
        return word
    known = sorted(files)
    plain = _plain(word)
    for name in known:
        if plain in map(_plain, (name, *aliases(group, name, files))):
            return name
    if is_class(word):
        return word
    raise ConfigError(
        f"No {group} '{word}'.",
        where=f"conf/{group}",
        allowed=known,
        hint=did_you_mean(word, known)
        or f"One of your own is {group}/NAME.yaml in a folder on the search path ({searchpath.SEARCHPATH}).",
    )


def _plain(word: str) -> str:
    return re.sub(r"[-_. ]", "", word.lower().replace("+", "plus"))


def is_class(word: str) -> bool:
    """Whether a word is the dotted path of a class."""
    return "." in word and all(part.isidentifier() for part in word.split("."))


def aliases(group: str, name: str, files: Mapping[str, str] | None = None) -> list[str]:
    """What else a member is called."""
    return [str(word) for word in read(group, name, files).get("aliases", [])]


def read(group: str, name: str, files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A member's YAML as it stands, upon the members of its group that its ``defaults`` build on.

    ``files``: those of the group, where they are known.

    Raises:
        ConfigError: there is no such member.
    """
    files = _files(group) if files is None else files
    # The name is compared, never joined: it may come from a file.
    if name not in files:
        raise ConfigError(f"No {group} '{name}'.", allowed=sorted(files), hint=did_you_mean(name, files))
    own = read_yaml(Path(files[name]))
    bases = [base for base in own.get("defaults", []) if isinstance(base, str) and base != "_self_"]
    below = [{key: v for key, v in read(group, base, files).items() if key not in ABOUT} for base in bases]
    for entry in (entry for entry in own.get("defaults", []) if isinstance(entry, dict)):
        for key, base in entry.items():  # `/segmenter@masks: sam2` is a component within this one
            inner, _, place = str(key).partition("@")
            if inner.startswith("/") and place.isidentifier():
                node = {key: v for key, v in read(inner[1:], base).items() if key not in ABOUT}
                below.append({place: node})
    own = functools.reduce(upon, [*below, own])
    return {str(key): value for key, value in own.items()}


def upon(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one node laid upon those of another, group by group."""
    nested = {
        key: upon(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **nested}


def options(group: str, word: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A component's class and every option of it, checked, outside of any run.

    What a YAML takes from the run (``${seed}``, ``${paths.cache}``) has its default here. ``word``: a name,
    an alias or a class.

    Raises:
        ConfigError: no such component or option, or a wrong type.
    """
    name = find(group, word)
    configured = not is_class(name) or name in names(group)
    node = read(group, name) if configured else {TARGET: name}
    node = {k: OUTSIDE.get(v, v) if isinstance(v, str) else v for k, v in node.items() if k not in ABOUT}
    if "${" in str(node):
        node = _resolved(group, name, node)
    if TARGET not in node:
        raise ConfigError(f"A {group}'s YAML needs a {TARGET}.", where=f"{group}={name}")
    if configured:
        schema.allow(*searchpath.targets(node))
    return schema.complete({**node, **(values or {})}, group)


def _resolved(group: str, name: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A YAML with what it takes from a run as outside of one; few do, and the library is slow to load."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    run = {"seed": 0, "paths": {"cache": None}, group: node}
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.create(run), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0], where=f"{group}={name}") from error
    return dict(plain[group])


def _value(text: str, told: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{told} can't be read ({error}).") from error


def make(group: str, word: str, values: Mapping[str, Any] | None = None) -> Any:
    """Build a component by its name, an alias or its class; see :func:`options`."""
    return schema.build(options(group, word, values), group)


def open_dataset(word: str, **values: Any) -> Any:
    """Build the data set that a command line names, outside of a run.

    ``word``: a name, a spelling of it, or a class; a value of ``None`` leaves the set's own.

    Raises:
        ConfigError: no such set or option.
    """
    if is_class(word):
        schema.allow(word)
    return make("dataset", word, {key: v for key, v in values.items() if v is not None})


def open_protocol(word: str) -> Any:
    """The protocol that a word means: ``ID``, ``ID@VERSION``, an alias or a class, and ``ID:option=value``.

    Raises:
        ConfigError: there is no such protocol, version or option.
    """
    head, *pairs = word.strip().split(":")
    name, _, version = head.partition("@")
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"'{pair}' in protocol '{word}' is no option=value.")
        values[key.strip()] = _value(text, f"'{pair}' in protocol '{word}'")
    made = make("protocol", name, values)
    if version and version != str(made.version):
        raise ConfigError(
            f"Protocol '{name}' has no version {version}.",
            allowed=(made.version,),
            hint="Install the release of refseg-bench that had it.",
        )
    return made


def protocol_of(result: Result) -> Any:
    """The protocol that made a result, of whatever package, with the options it had.

    Raises:
        ConfigError: its package is not on the search path, or there is no such protocol.
    """
    node = result.details.get("rules")
    return schema.build(node, "protocol") if isinstance(node, dict) else open_protocol(result.protocol)
