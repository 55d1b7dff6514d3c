"""Typed components from plain mappings: the one place where option names and types are checked.

A *component* (dataset, method, backbone, segmenter, protocol) is a ``@dataclass`` whose fields are
its options. Its YAML names it with ``_target_`` and sets the options. Nothing is registered anywhere:
an outside package adds a component with one class and one YAML. Each kind has a base class that lists
everything the harness asks for. What is abstract there must be written; the rest are *hooks*: attributes
and methods that answer for a component with nothing to say, also for one that inherits nothing.

An option that can't change a result (a path, a device, a batch size) is declared with
``option(default, transient=True)`` and stays out of the digest that names a run folder; one that came
after runs were made, with ``option(None, newer=True)``, stays out of it at its default.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import math
import operator
import types as pytypes
import typing
from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from refseg_bench.config import searchpath
from refseg_bench.config.searchpath import TARGET as TARGET
from refseg_bench.errors import ConfigError, RefsegError, missing_package, require
from refseg_bench.files.store_io import checksum

#: Kind → its base class. This package's own classes of a kind live beside it.
BASES = {
    "dataset": "refseg_bench.datasets.base.Dataset",
    "backbone": "refseg_bench.backbones.base.Backbone",
    "segmenter": "refseg_bench.segmenters.base.Segmenter",
    "method": "refseg_bench.methods.base.Method",
    "protocol": "refseg_bench.scoring.protocols.base.ScoringProtocol",
}


class Component(ABC):  # noqa: B024 (what is abstract differs by kind)
    """The hooks that all kinds share.

    A dataclass that declares one of the attributes again without a value has an option that must be given.
    """

    #: The group of ``conf/`` that its YAML files lie in.
    kind: ClassVar[str] = "component"
    #: How many items go through a model at once; ``None`` = it makes no batches. A transient option: results
    #: must not depend on it, since it is halved where the accelerator's memory runs out.
    batch_size: int | None = None
    #: Where it may keep what other runs can reuse; set before the first clip.
    cache_root: Path | None = None
    #: Packages it can't do without, none of which its module imports.
    packages: ClassVar[tuple[str, ...]] = ()
    #: Stands for the code of a class outside this package, in place of its source: samples of other code are
    #: predicted again, and a version that stays keeps them.
    code_version: ClassVar[str] = ""
    #: Whether it tells its weights without the parts that it is handed.
    weights_alone: ClassVar[bool] = False

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__(**words)
        for name, hint in inspect.get_annotations(cls).items():
            owner = next(one for one in cls.__mro__ if name in vars(one) or one is object)
            if owner not in (cls, object) and "ClassVar" not in str(hint) and not is_dataclass(owner):
                # Or `dataclass` would take the value of the hook for the option's default.
                setattr(cls, name, field())

    def weights(self) -> Sequence[Any] | None:
        """The :class:`~refseg_bench.backbones.weights.Weights` it loads at first use.

        ``None`` = it has none.
        """
        return None

    def check(self) -> None:
        """See to it that all that it needs before its first clip is on this machine.

        Raises:
            ConfigError: something is missing.
        """
        for package in self.packages:
            require(package, f"The {self.kind} {type(self).__name__}")

    def report(self) -> Mapping[str, Any]:
        """JSON facts for the run record (counters, kernels and precision in effect). Loads nothing."""
        return {}


def base_of(kind: str) -> type[Component]:
    """The base class of a kind; for anything else the one that all kinds share."""
    if kind not in BASES:
        return Component
    module, _, name = BASES[kind].rpartition(".")
    found: type[Component] = vars(importlib.import_module(module))[name]
    return found


def adopt(cls: type[Any], base: type[Component], where: str) -> None:
    """Make sure that a class answers all that the harness asks of a kind.

    One that doesn't inherit the base is given the base's hooks where it has none of that name.

    Raises:
        ConfigError: it lacks what every component of the kind must have.
    """
    named = f"{cls.__module__}.{cls.__qualname__}"
    methods = sorted(base.__abstractmethods__)
    values = [name for name in inspect.get_annotations(base) if not hasattr(base, name)]
    lacking = [
        *(f"{name}()" for name in methods if getattr(cls, name, None) in (None, getattr(base, name))),
        *(name for name in values if name not in cls.__dataclass_fields__ and not hasattr(cls, name)),
    ]
    if lacking:
        raise ConfigError(
            f"'{named}' is no {base.kind}: it has no {', '.join(lacking)}.",
            where=where,
            hint=f"Write what {base.__module__}.{base.__name__} describes.",
        )
    hooks = {
        name: hook for owner in (Component, base) for name, hook in vars(owner).items() if name[0] != "_"
    }
    if not _ours(cls):
        _check_hooks(cls, base, hooks, where)
    if issubclass(cls, base):
        return
    if not cls.__dictoffset__:
        raise ConfigError(
            f"'{named}' has slots, and no room for what a run hands to a {base.__name__}.",
            where=where,
            hint=f"Leave out slots=True, or inherit {base.__module__}.{base.__name__}.",
        )
    for name, hook in hooks.items():
        if not hasattr(cls, name):
            setattr(cls, name, hook)
    base.register(cls)


def _check_hooks(cls: type[Any], base: type[Component], hooks: Mapping[str, Any], where: str) -> None:
    """Refuse a class of other code that could not be called, or would be asked where it has an option."""
    named = f"{cls.__module__}.{cls.__qualname__}"
    for name in sorted(base.__abstractmethods__):
        asked = inspect.signature(getattr(base, name)).parameters
        try:
            inspect.signature(getattr(cls, name)).bind(*asked)
        except TypeError as error:
            told = f"'{named}.{name}' can't be called with ({', '.join(asked)}): {error}."
            raise ConfigError(told, where=where, hint=f"See {base.__module__}.{base.__name__}.") from error
    fields = {field.name for field in dataclasses.fields(cls)}
    for name in sorted(fields):
        if name == "cache_root" or isinstance(hooks.get(name), pytypes.FunctionType | property | classmethod):
            told = f"'{named}' has an option '{name}', which is a hook."
            raise ConfigError(told, where=where, hint="Give it another name.")
    for name in sorted(vars(cls).keys() - hooks.keys() - fields):
        if name[0] != "_" and (hint := did_you_mean(name, hooks, 0.8)):
            told = f"'{named}.{name}' is no hook: nobody asks for it."
            raise ConfigError(told, where=where, hint=f"{hint} If it is your own, begin its name with _.")


#: Fields of a method that are handed in ready-made, not read from its YAML.
INJECTED = ("backbone", "segmenter")

_OWN = "refseg_bench"

T = TypeVar("T")


def option(
    default: Any = dataclasses.MISSING, *, transient: bool = False, newer: bool = False, factory: Any = None
) -> Any:
    """A dataclass field with the mark of what it is worth for the run's identity.

    Args:
        default: the default value; each component gets its own copy of a list.
        transient: True if the value can't change a prediction.
        newer: True if runs were made before it was there: its default leaves their digests as they are.
        factory: zero-argument callable making the default, where that is another mutable value.
    """
    metadata = {"transient": transient, "newer": newer}
    if isinstance(default, list):
        factory = default.copy
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def allow(*targets: str) -> None:
    """Let components of the packages that these dotted paths begin with be built.

    To be called for what the present command line names, never for what a file of a run folder says.
    Processes that are started from here inherit it.
    """
    packages = sorted({target.partition(".")[0] for target in targets})
    searchpath.extend(f"pkg://{name}" for name in packages if not _trusted(name))


def _ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == _OWN


_DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


@functools.cache  # what a process has loaded stays as it was, whatever is edited meanwhile
def code(cls: type) -> str:
    """Digest of a class's source (without comments and docstrings) and of all it imports from beside it.

    Of what lies in a folder of installed packages only its own package counts. Empty for one of this package.
    """
    named = str(getattr(cls, "code_version", ""))
    if _ours(cls) or named:
        return named and checksum(named.encode())
    try:
        home = Path(inspect.getfile(cls))
    except (TypeError, OSError):
        return ""  # typed at a prompt
    top = home.parents[cls.__module__.count(".") + (home.name == "__init__.py")]
    own = f"{cls.__module__.partition('.')[0]}." if top.name.endswith("-packages") else ""
    names, found = [cls.__module__], dict[str, str]()
    while names:
        name = names.pop()
        place = top.joinpath(*name.split("."))
        file = next(filter(Path.is_file, (place / "__init__.py", Path(f"{place}.py"))), None)
        if file is None or {name, name.partition(".")[0]} & {*found, _OWN} or not f"{name}.".startswith(own):
            continue
        source = file.read_bytes()
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # nothing that runs has it imported, or it is of a later Python
            found[name] = checksum(source)
            continue
        package = name.split(".") if file.parent == place else name.split(".")[:-1]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names += [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = package[: 1 - node.level or None] if node.level else []
                base = ".".join([*start, *filter(None, [node.module])])
                names += [base, *(f"{base}.{one.name}" for one in node.names)]
            elif isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        found[name] = ast.dump(tree)
    return checksum("\n".join(f"{name} {found[name]}" for name in sorted(found)).encode())


def _trusted(package: str) -> bool:
    return package == _OWN or searchpath.trusts(package)


def did_you_mean(word: str, known: Iterable[str], alike: float = 0.6) -> str | None:
    """A hint at what was mistyped.

    >>> did_you_mean("refam_", ["decaf", "refam"])
    "Did you mean 'refam'?"
    """
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=alike)
    return f"Did you mean '{close[0]}'?" if close else None


def locate(target: str, where: str, kind: str | None = None) -> type[Any]:
    """Import the class a ``_target_`` names, if its package may be; it has every hook of its kind's base.

    ``kind``: of component, where it isn't the same word as ``where``, its place in the config.

    Raises:
        ConfigError: nobody has named the package, the module or class doesn't exist, is no dataclass, or
            is another kind of component.
    """

    def refused(what: str, **more: Any) -> ConfigError:
        return ConfigError(f"_target_ '{target}'{what}", where=where, **more)

    kind = kind or where
    module_name, _, class_name = target.rpartition(".")
    if not module_name or not all(word.isidentifier() for word in target.split(".")):
        raise refused(" is no dotted path to a class.")
    package = target.partition(".")[0]
    if not _trusted(package):
        raise refused(
            f" is code of the package '{package}', which is not on the search path.",
            hint=f"If you trust it: export {searchpath.SEARCHPATH}=pkg://{package}.",
        )
    home = BASES.get(kind, "").rpartition(".base.")[0] or _OWN
    if package == _OWN and not target.startswith(f"{home}."):
        raise refused(f" is no {where}.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not module_name.startswith(error.name):
            raise missing_package(target, error.name) from error
        raise refused(
            f": there is no module '{error.name}'.",
            hint="Correct the path, or install the package that holds it.",
        ) from error
    except RefsegError:
        raise
    except Exception as error:
        import traceback

        lines = [one for one in traceback.extract_tb(error.__traceback__) if one.name == "<module>"]
        raise ConfigError(
            f"The module of '{target}' can't be imported: {type(error).__name__}: {error}.",
            where=f"{lines[-1].filename}, line {lines[-1].lineno}" if lines else where,
            hint="Correct the code.",
        ) from error
    found, base = getattr(module, class_name, None), base_of(kind)
    if found is None:
        classes = [n for n, v in vars(module).items() if is_dataclass(v) and v.__module__ == module_name]
        raise refused(f": module '{module_name}' has no '{class_name}'.", allowed=sorted(classes))
    if not (isinstance(found, type) and is_dataclass(found)):
        raise refused(" is no dataclass.")
    if kind == "protocol" and not issubclass(found, base):
        raise refused(" is no protocol: it does not inherit ScoringProtocol.")
    adopt(found, base, where)
    return found


@functools.lru_cache(maxsize=1024)
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def options(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a component that its YAML may set, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init and not _is_injected(f)}


def defaults(cls: type) -> dict[str, Any]:
    """The options of a component that have a default, as plain values."""
    found: dict[str, Any] = {}
    for name, spec in options(cls).items():
        if spec.default is not dataclasses.MISSING:
            found[name] = _plain(spec.default)
        elif spec.default_factory is not dataclasses.MISSING:
            found[name] = _plain(spec.default_factory())
    return found


def group_of(cls: type, name: str) -> type | None:
    """The dataclass of an option that is a group of options."""
    return _dataclass_of(_hints(cls)[name]) if name in options(cls) else None


def injected(cls: type) -> dict[str, bool]:
    """Which ready-made components the class wants handed in, and whether it can't do without."""
    return {f.name: _needed(f) for f in dataclasses.fields(cls) if f.init and _is_injected(f)}


def parts(component: Any) -> dict[str, Any]:
    """The ready-made components that were handed in to one, by name."""
    found = {name: getattr(component, name) for name in injected(type(component))}
    return {name: part for name, part in found.items() if part is not None}


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _needed(spec: dataclasses.Field[Any]) -> bool:
    return spec.default is spec.default_factory is dataclasses.MISSING


def _is_injected(spec: dataclasses.Field[Any]) -> bool:
    # The root config has fields of these names too; there they are options, and declared as such.
    return spec.name in INJECTED and "transient" not in spec.metadata


def conform(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A component's options as plain values (JSON types), checked, with its defaults, in field order.

    ``where``: dotted config path, for the error.

    Raises:
        ConfigError: unknown key, missing value or wrong type.
    """
    found = {**defaults(cls), **_given(cls, values, where, made=False)}
    return {name: found[name] for name in options(cls)}


def construct(cls: type[T], values: Mapping[str, Any], where: str, **ready: Any) -> T:
    """Build a component from plain values; ``ready`` are its injected parts.

    Raises:
        ConfigError: as :func:`conform`; or a part of this package is of another kind than the class takes.
    """
    wanted = {name: part for name, part in ready.items() if name in injected(cls)}
    _refuse_unfit(cls, wanted, where)
    made = cls(**_given(cls, values, where, made=True), **wanted)
    if isinstance(made, Component):
        refuse_outside(made, 1, math.inf, "batch_size")
    return made


def refuse_outside(part: Component, least: float, most: float, *names: str) -> None:
    """See to it that options (dotted: of an option's own) are ``None`` or numbers of a range.

    Raises:
        ConfigError: one isn't.
    """
    for name in names:
        value = operator.attrgetter(name)(part)
        if value is not None and not least <= value <= most:
            span = f"{least:g} or more" if most == math.inf else f"{least:g} … {most:g}"
            raise ConfigError(f"Option '{part.kind}.{name}' is {value}.", allowed=[span])


def _refuse_unfit(cls: type, parts: Mapping[str, Any], where: str) -> None:
    for name, part in parts.items():
        hint = _hints(cls)[name]
        takes = [a for a in get_args(hint) or [hint] if isinstance(a, type) and issubclass(a, Component)]
        # One of other code need not inherit.
        if takes and _ours(type(part)) and not isinstance(part, tuple(takes)):
            raise ConfigError(
                f"{cls.__name__} can't use the {name} {type(part).__name__}.",
                where=where,
                allowed=[one.__name__ for one in takes],
                hint=f"Choose another with {name}=NAME.",
            )


def _given(cls: type, values: Mapping[str, Any], where: str, made: bool) -> dict[str, Any]:
    """The options that are given, checked; none that has no default may be missing."""
    fields, about = options(cls), f"{cls.__module__}.{cls.__name__}"
    given = {str(name): value for name, value in values.items() if name != TARGET}
    for name in sorted(given.keys() - fields.keys()):
        raise ConfigError(
            f"Unknown option '{_dotted(where, name)}'.",
            where=about,
            allowed=fields,
            hint=did_you_mean(name, fields),
        )
    for name in [name for name, spec in fields.items() if name not in given and _needed(spec)]:
        path = _dotted(where, name)
        raise ConfigError(
            f"Option '{path}' has no value.", where=about, hint=f"Give it on the command line: {path}=VALUE"
        )
    hints = _hints(cls)
    return {name: _checked(hints[name], given[name], _dotted(where, name), made) for name in given}


def build(node: Mapping[str, Any], where: str, kind: str | None = None, **ready: Any) -> Any:
    """Build the component a config node names with ``_target_``; ``kind`` as for :func:`locate`."""
    if TARGET not in node:
        raise ConfigError(f"Config node '{where}' has no _target_.", where=where)
    return construct(locate(str(node[TARGET]), where, kind), node, where, **ready)


def complete(node: Mapping[str, Any], where: str, kind: str | None = None) -> dict[str, Any]:
    """A node with every option filled in and checked; ``_target_`` stays first."""
    cls = locate(str(node[TARGET]), where, kind)
    return {TARGET: str(node[TARGET]), **conform(cls, node, where)}


def lasting(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that can change a prediction, nested components and option groups included."""
    hints = _hints(cls)
    out: dict[str, Any] = {}
    for name, spec in options(cls).items():
        if spec.metadata.get("transient", False) or name not in values:
            continue
        value = values[name]
        if spec.metadata.get("newer", False) and value == spec.default:
            continue
        inner = _dataclass_of(hints[name])
        if isinstance(value, Mapping) and TARGET in value:
            inner_cls = locate(str(value[TARGET]), name)
            value = {TARGET: value[TARGET], **lasting(inner_cls, value)}
        elif isinstance(value, Mapping) and inner is not None:
            value = lasting(inner, value)
        out[name] = value
    return out


def _dataclass_of(hint: Any) -> type | None:
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    if get_origin(hint) in (Union, pytypes.UnionType):
        for arm in get_args(hint):
            found = _dataclass_of(arm)
            if found is not None:
                return found
    return None


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _wrong(path: str, hint: Any, value: Any) -> ConfigError:
    parts = _dataclass_of(hint)
    if parts is not None:
        return ConfigError(
            f"Option '{path}' is {value!r} ({type(value).__name__}), but it has parts.",
            allowed=[f"{path}.{f.name}" for f in dataclasses.fields(parts) if f.init],
            hint=f"Set one of them: {path}.NAME=VALUE",
        )
    return ConfigError(
        f"Option '{path}' is {value!r} ({type(value).__name__}).",
        allowed=[getattr(hint, "__name__", None) or str(hint)],
        hint=f"Set it with {path}=VALUE",
    )


def _checked(hint: Any, value: Any, path: str, made: bool) -> Any:
    """A value that is what the annotation says.

    ``made``: give what the annotation names (paths, tuples, groups), not plain values in their place.
    """
    origin, arms = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return _plain(value)
    if origin in (Union, pytypes.UnionType):
        if value is None and type(None) in arms:
            return None
        problems: list[ConfigError] = []
        # An int literal must stay an int under `int | float`, so the arms are tried in their order.
        for arm in (a for a in arms if a is not type(None)):
            try:
                return _checked(arm, value, path, made)
            except ConfigError as problem:
                problems.append(problem)
        raise problems[0] if len(problems) == 1 else _wrong(path, hint, value)
    if origin is Literal:
        if value in arms:
            return value
        raise ConfigError(f"Option '{path}' is {value!r}.", allowed=arms, hint=f"Set it with {path}=VALUE")
    if origin in (list, tuple):
        if isinstance(value, Sequence) and not isinstance(value, str):
            fixed = origin is tuple and arms and arms[-1] is not Ellipsis
            each = arms if fixed else (arms or (Any,))[:1] * len(value)
            if len(each) == len(value):
                found = [_checked(each[i], item, f"{path}[{i}]", made) for i, item in enumerate(value)]
                return tuple(found) if made and origin is tuple else found
    elif isinstance(value, Mapping):
        if origin in (dict, Mapping):
            inner = arms[1] if arms else Any
            return {str(key): _checked(inner, item, f"{path}.{key}", made) for key, item in value.items()}
        if isinstance(hint, type) and is_dataclass(hint):
            return (construct if made else conform)(hint, value, path)
        if TARGET in value:
            is_kind = isinstance(hint, type) and issubclass(hint, Component)
            return complete(value, path, hint.kind if is_kind else None)
    elif hint is Path and isinstance(value, (str, Path)):
        return Path(value) if made else str(value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    elif hint in (bool, int, str) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise _wrong(path, hint, value)
