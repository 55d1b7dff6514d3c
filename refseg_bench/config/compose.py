"""From an experiment's name and overrides to a frozen, checked, digested config.

Hydra composes (``conf/`` and any ``hydra.searchpath``), :mod:`refseg_bench.config.schema` checks every
component against its dataclass, :func:`digest` names the run by what can change a prediction.
After :func:`compose` nothing reads a YAML of ``conf/`` again: workers read the frozen file.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from refseg_bench.config import schema, searchpath
from refseg_bench.config.components import ABOUT, find, is_class, names, open_protocol
from refseg_bench.config.schema import TARGET, option
from refseg_bench.errors import ConfigError, printable
from refseg_bench.files.store_io import short_id

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: What to do about a run folder that can't be read.
_AGAIN = "Put the run's own file back, or move the folder away and run the command again."

COMPONENTS = ("dataset", "backbone", "segmenter", "method")


@dataclass
class Limit:
    """Run a part of the split only. Part of the run's identity: a part is not the whole."""

    clips: int | None = None  #: the first N clips
    expressions: int | None = None  #: the first N expressions of each clip
    samples: list[str] = field(default_factory=list)  #: only these sample ids (applied before the counts)


@dataclass
class ScoreSettings:
    """How scores are summarised."""

    partial: bool = False  #: leave out samples that failed or are missing, under every protocol
    bootstrap: int = 2000  #: resamples of the interval
    confidence: float = 0.95  #: its level, in (0, 1)
    seed: int = 0  #: of the resampling; not moved by the run's, so that every run draws the same clips
    jobs: int = 0  #: processes; 0 = the cores this process may use


@dataclass
class Paths:
    """Where things are written."""

    runs: Path = Path("runs")  #: parent of the run folders
    cache: Path = Path("cache")  #: content-addressed caches shared by runs


@dataclass
class Cluster:
    """Where and how a run is spread. Nothing here can change a prediction."""

    #: ``debug`` in this process, ``local`` in processes of this machine, ``ray``, ``slurm``.
    kind: Literal["debug", "local", "ray", "slurm"] = "debug"
    #: Parts the clips are split into; ``auto`` = as many as ``target_minutes`` needs by the measured seconds
    #: per sample; ``None`` = as many as work at once (``debug``: one, or with models that ship with the
    #: package one per core).
    shards: int | Literal["auto"] | None = None
    target_minutes: float = 60.0  #: wall time ``shards=auto`` aims at
    gpus: int = 0  #: ``ray``, ``slurm``: of each shard. ``local``: of this machine, one per process.
    #: Most shards at work at once (the array's throttle); ``None`` = no limit on Ray and SLURM, one per GPU
    #: or core here.
    parallel: int | None = None
    steal: bool = True  #: a shard that is through takes clips of others that nobody has started
    join: bool = False  #: work on a run although another submission of it is alive
    retry_failed: bool = False  #: take only samples that have failed, beside another submission, too
    allow_dirty: bool = False  #: submit although the code has changes that no commit holds
    snapshot: bool = False  #: run from a copy of the checkout's tracked files made at submission
    #: partition, account, qos, constraint, nodelist, exclude: handed to sbatch.
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    minutes: int = 240  #: time limit of a shard; it is re-queued when it hits it
    signal_seconds: int = 120  #: how long before the limit it is told
    requeues: int = 20  #: how often at most a time limit re-queues it, or Ray starts an actor again
    #: cpus, mem_gb: of each shard.
    cpus: int = 4
    mem_gb: float | None = None
    extra: dict[str, str] = field(default_factory=dict)  #: any other sbatch options, by long name
    setup: list[str] = field(default_factory=list)  #: shell lines before a job's program
    conda: str | None = None  #: environment to activate (name or path)
    #: Command that runs a program inside the container, e.g. ``apptainer exec --nv x.sif``.
    container: str | None = None
    #: Interpreter on the nodes; by default the one that submits (``python`` under ``conda`` and
    #: ``container``).
    python: str | None = None
    finish: bool = True  #: score and report in dependent jobs without a GPU
    cpu_partition: str | None = None  #: partition of those; by default ``partition``
    cpu_minutes: int = 60  #: their time limit
    #: Who serves the chat model of ``backbone=chat…`` to the workers: a command that starts it beside them,
    #: with ``{port}`` and ``{model}`` in it, or the address of one that runs.
    server: str | None = None
    #: One for each worker (``job``) or for all of a submission on a machine (``node``).
    server_per: Literal["job", "node"] = "job"
    server_port: int = 0  #: what it listens on; 0 = a free one
    server_health: str = "/v1/models"  #: path that answers 200 once it is ready
    server_minutes: float = 30.0  #: time it has for that


@dataclass
class Config:
    """The root of a composed config; components are mappings with ``_target_``."""

    #: dataset, method, backbone, segmenter: component nodes.
    dataset: dict[str, Any]
    method: dict[str, Any]
    backbone: dict[str, Any] | None = option(None)
    segmenter: dict[str, Any] | None = option(None)
    #: Ids to score under; empty = the dataset's own.
    protocols: list[str] = option(factory=list, transient=True)
    #: Leading part of the run folder's name; by default ``METHOD-DATASET``.
    name: str | None = option(None, transient=True)
    #: Moves every random draw of the prediction. A component with a draw of its own has an option ``seed``
    #: whose YAML says ``${seed}``.
    seed: int = 0
    limit: Limit = field(default_factory=Limit)  #: which part of the split
    #: Stop the run when more samples than this failed; ``None`` = never.
    max_failures: int | None = option(None, transient=True)
    keep_maps: bool = option(False, transient=True)  #: store the methods' maps for the report
    #: score, paths, cluster: see their classes.
    score: ScoreSettings = option(factory=ScoreSettings, transient=True)
    paths: Paths = option(factory=Paths, transient=True)
    cluster: Cluster = option(factory=Cluster, transient=True)
    #: Which published rows a run is held against.
    reference: dict[str, Any] | None = option(None, transient=True)
    #: Override key → values; expanded before anything else.
    sweep: dict[str, list[Any]] = option(factory=dict, transient=True)
    #: What is run beside a single run of an attention method; see :func:`baselines_of`.
    baselines: list[str] = option(factory=list, transient=True)


@dataclass(frozen=True)
class Composed:
    """One point of an experiment, ready to freeze."""

    values: dict[str, Any]  #: the whole config as plain values, every option filled in
    name: str  #: the run folder's name without its digest
    digest: str  #: 8 hex digits of what can change a prediction
    overrides: tuple[str, ...]  #: the command line that made it
    choices: dict[str, str]  #: the group members chosen

    @property
    def folder(self) -> str:
        """The run folder's name."""
        return f"{self.name}-{self.digest}"

    @property
    def path(self) -> Path:
        """The run folder."""
        return Path(self.values["paths"]["runs"]) / self.folder


def compose(overrides: Sequence[str], *, multirun: bool = False) -> list[Composed]:
    """Compose every point that the overrides (and an experiment's ``sweep``) describe.

    ``multirun`` expands comma and range sweeps of the command line (``-m``).

    Raises:
        ConfigError: unknown group member, unknown key, wrong type or broken YAML.
    """
    from omegaconf import OmegaConf

    points: list[Composed] = []
    overrides = [quoted(item, multirun) for item in overrides]
    _extend_searchpath(overrides)
    for typed in _expand(overrides) if multirun else [list(overrides)]:
        first, choices = _hydra(typed)
        grid = OmegaConf.to_container(first.sweep, resolve=True)
        if not isinstance(grid, dict):
            raise ConfigError("'sweep' must map override keys to lists.", where="experiment")
        fixed = {key.lstrip("+"): value for key, _, value in (item.partition("=") for item in typed)}
        axes = [_axis(str(key), values, fixed) for key, values in grid.items()]
        for combination in itertools.product(*axes):
            swept = [item for row in combination for item in row]
            node, choices = (first, choices) if not swept else _hydra([*typed, *swept])
            points.append(_finish(node, choices, (*typed, *swept)))
    return points


def nodes(words: Sequence[str]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Components as a command line tells them, without a run: ``segmenter.size=tiny segmenter=sam2``.

    A group may come again. An option belongs to the component of its group named last before it, else to the
    first; its value is read as one of a run.

    Yields:
        (all that was told of it, group, name, its options).

    Raises:
        ConfigError: a word is neither, an option's component isn't named, or its value can't be read.
    """
    found: list[tuple[list[str], str, str, dict[str, Any]]] = []
    for word in words:
        group, equals, name = word.partition("=")
        if equals and "." not in group:
            found.append(([word], group, name, {}))
    begun: dict[str, int] = {}
    for word in words:
        key, equals, name = word.partition("=")
        group, _, option = key.partition(".")
        named = [node for node in found if node[1] == group]
        if not equals or (option and not named):
            raise ConfigError(
                f"'{word}' sets an option, but no {group} is chosen." if equals and option
                else f"'{word}' is not GROUP=NAME.",
                allowed=[f"{group}={name}" for name in names(group)],
            )  # fmt: skip
        if not option:
            begun[group] = begun.get(group, -1) + 1
            continue
        told, _, _, given = named[begun.get(group, 0)]
        told.append(word)
        read = _parsed(quoted(word))
        if read.is_sweep_override():
            raise ConfigError(f"'{word}' gives several values.", hint="Name the component again for another.")
        given[option] = read.value()
    for told, group, name, given in found:
        yield " ".join(told), group, name, given


def baselines_of(point: Composed) -> list[Composed]:
    """What stands beside a run of an attention method: its raw attention, and methods without a model.

    What was typed about data, scoring and places holds for them, too, and so does the run's segmenter
    where they take one. A method's raw attention is the method at the options of its ``raw_options``; one
    without them has no such row, and a run without a backbone, of an experiment or on SLURM no baselines.

    Raises:
        ConfigError: ``baselines`` names no method.
    """
    experiment = point.choices.get("experiment", "None") not in ("None", "null")
    if point.values["backbone"] is None or experiment or point.values["cluster"]["kind"] == "slurm":
        return []
    method = schema.locate(str(point.values["method"][TARGET]), "method")
    raw: Mapping[str, Any] = method.raw_options
    own = ("method", "backbone", "segmenter", "name", "baselines")
    shared = [item for item in point.overrides if _part(item) not in own]
    options = [item for item in point.overrides if item.lstrip("+~").startswith("segmenter.")]
    # A method without one leaves it out.
    segmenter = [f"segmenter={point.choices['segmenter']}", *options] if point.values["segmenter"] else []
    # By digest: under another name they would be the same predictions again.
    found = {point.digest: point}
    for word in point.values["baselines"]:
        if word != "raw":
            (one,) = compose([*shared, f"method={word}", *segmenter])
            found.setdefault(one.digest, one)
        elif raw:
            typed = [item for item in point.overrides if _part(item) != "name"]
            options = [f"method.{key}={_literal(value)}" for key, value in raw.items()]
            name = f"{point.choices['method']}_raw-{point.choices['dataset']}"
            (one,) = compose([*typed, *options, f"name={name}"])
            found.setdefault(one.digest, one)
    return list(found.values())[1:]


def _part(override: str) -> str:
    """The root key or group an override is about."""
    return re.split(r"[.@/=]", override.lstrip("+~"), maxsplit=1)[0]


def _axis(key: str, values: Any, fixed: Mapping[str, str]) -> list[tuple[str, ...]]:
    """The overrides of each value of one axis of a ``sweep``.

    A key may name several options joined by commas; its values are then rows with one entry each.
    What the command line fixes is not swept: of rows, those that agree with it remain.
    """
    names = [name.strip() for name in key.split(",")]
    if not isinstance(values, list):
        raise ConfigError(f"'sweep.{key}' must be a list.", where="experiment")
    rows: dict[tuple[str, ...], None] = {}
    for value in values:
        row = value if len(names) > 1 else [value]
        if not isinstance(row, list) or len(row) != len(names):
            raise ConfigError(
                f"'sweep.{key}' has the value {value!r}.",
                where="experiment",
                allowed=[f"lists of {len(names)}"],
            )
        said = dict(zip(names, map(_literal, row), strict=True))
        if all(fixed.get(name, text) == text for name, text in said.items()):
            rows[tuple(f"{name}={text}" for name, text in said.items() if name not in fixed)] = None
    return list(rows) or [()]


def _text(value: str) -> str:
    return '"' + value.replace('"', '\\"') + '"'


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    return value if isinstance(value, str) else json.dumps(value)


def quoted(override: str, multirun: bool = False) -> str:
    """An override with its value quoted where Hydra's grammar lacks a character of it (``[``, ``#``, ``ü``).

    What the grammar reads is left as it is, but a path (it begins with ``/``, ``./``, ``../`` or ``~``) is
    taken to the letter, unless it escapes (a backslash) or refers (``${``) or, with ``multirun``, is a list.

    >>> quoted("dataset.root=/x/[a] b#=ü")
    "dataset.root='/x/[a] b#=ü'"
    """
    key, equals, value = override.partition("=")
    if re.fullmatch(r"[\w./:-]*", value, re.ASCII) or value.startswith(("[", "{", "=")) or "${" in value:
        return override
    with suppress(ConfigError):
        found = _parsed(override)
        plain = multirun if found.is_sweep_override() else found.value() == value
        if plain or not value.startswith(("/", "./", "../", "~")) or "\\" in value:
            return override
    from hydra.core.override_parser.types import Quote, QuotedString

    with suppress(ConfigError):
        again = f"{key}{equals}{QuotedString(value, Quote.single).with_quotes()}"
        return str(_parsed(again).input_line)
    return override


def _parsed(override: str) -> Any:
    """An override by Hydra's grammar, as its ``Override``."""
    # Hydra takes half of a short command's start, and only composing needs it.
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        return OverridesParser.create().parse_override(override)
    except _composing_errors() as error:
        raise ConfigError(
            f"Can't read the override: {error}", where=override, hint="Quote values that hold commas."
        ) from error


def _composing_errors() -> tuple[type[Exception], ...]:
    """What Hydra raises on a bad override, a missing member or a torn YAML."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError


def _expand(overrides: Sequence[str]) -> Iterator[list[str]]:
    """All combinations of the sweeps in a command line, in the order typed."""
    axes: list[list[str]] = []
    for found in map(_parsed, overrides):
        key = found.get_key_element()
        swept = found.is_sweep_override()
        axes.append([f"{key}={v}" for v in found.sweep_string_iterator()] if swept else [found.input_line])
    yield from map(list, itertools.product(*axes))


def _hydra(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """One Hydra composition, with every default filled in and Hydra's errors told as ours."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    said = [_said(item) for item in overrides if not _is_searchpath(item)]
    conf, *more = searchpath.folders()
    said.append(f"hydra.searchpath=[{','.join(_text(f'file://{folder}') for folder in more)}]")
    # A fifth of the time: how Hydra would start, log and help, were it to run anything.
    said += [f"~hydra/{group}" for group in ("output", "launcher", "sweeper", "help", "hydra_help",
                                             "hydra_logging", "job_logging")]  # fmt: skip
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf), version_base="1.3"):
            node = hydra_compose("config", overrides=said, return_hydra_config=True)
    except _composing_errors() as error:
        raise _told(error, overrides) from error
    finally:
        # Other users of Hydra (Meta's sam2 package composes at import) must find it untouched.
        GlobalHydra.instance().clear()
    choices = {str(k): str(v) for k, v in node.hydra.runtime.choices.items() if "hydra" not in str(k)}
    OmegaConf.set_struct(node, False)
    node.pop("hydra")
    # What is composed was typed, or is a file of this package or of the search path.
    schema.allow(*searchpath.targets(OmegaConf.to_container(node, resolve=False)))
    _fill(node, Config)
    return node, choices


def _fill(node: DictConfig, cls: type) -> None:
    """Give each option that the YAMLs leave out its default, so that others may refer to it."""
    from omegaconf import DictConfig, OmegaConf

    for name, value in schema.defaults(cls).items():
        if name not in node:
            node[name] = value
    parts = {str(name): node[name] for name in node if not OmegaConf.is_interpolation(node, str(name))}
    if cls is Config and TARGET in (parts.get("method") or ()):
        # A part that the method does not take is never imported.
        taken = schema.injected(schema.locate(str(parts["method"][TARGET]), "method"))
        parts = {name: part for name, part in parts.items() if name in taken or name not in schema.INJECTED}
    for name, part in parts.items():
        if not isinstance(part, DictConfig):
            continue
        inner = schema.locate(str(part[TARGET]), name) if TARGET in part else schema.group_of(cls, name)
        if inner is not None:
            _fill(part, inner)


def _is_searchpath(override: str) -> bool:
    return override.lstrip("+").startswith("hydra.searchpath=")


def _extend_searchpath(overrides: Sequence[str]) -> None:
    """Put what is typed as ``hydra.searchpath=[…]`` on the search path of this process."""
    for item in filter(_is_searchpath, overrides):
        value = _parsed(item).value()
        if not isinstance(value, list):
            raise ConfigError(
                "A search path is a list.", where=item, hint="hydra.searchpath=[pkg://my_package.conf]"
            )
        searchpath.extend(map(str, value))


def _said(override: str) -> str:
    """An override as Hydra takes it.

    A member of a group goes by any spelling; an option needs no place in a YAML, for the schema knows them
    all; a group can't be set to null, only be taken out.
    """
    key, equals, value = override.partition("=")
    if equals and not key:
        raise ConfigError("There is no option before the '='.", where=override)
    if not equals or key.startswith(("+", "~", "hydra.")) or re.search(r"[/@]", key):
        return override
    if not names(key):
        return f"++{override}"
    if value == "null":
        return f"~{key}" if key in schema.INJECTED else override
    if not re.fullmatch(r"[\w.+/ -]*", value):
        return override
    if (found := find(key, value)) in names(key):
        return f"{key}={found}"
    raise ConfigError(
        f"'{found}' is a class; a run takes a {key} by the name of its YAML.",
        where=override,
        hint=f"Write `_target_: {found}` into {key}/NAME.yaml of a folder, name that folder in "
        f"{searchpath.SEARCHPATH}, and give {key}=NAME.",
    )


def _told(error: Exception, overrides: Sequence[str]) -> ConfigError:
    chain: list[BaseException] = [error]
    # Under a debugger, or with OC_CAUSE=1, OmegaConf makes an error its own cause.
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    torn = next((each for each in chain if isinstance(each, yaml.MarkedYAMLError)), None)
    if torn is not None and torn.problem_mark is not None:
        where = f"{torn.problem_mark.name}, line {torn.problem_mark.line + 1}"
        told = f"A YAML file can't be read: {torn.problem}."
        return ConfigError(told, where=where, hint="Correct the file.")
    told = (str(error) or str(error.__cause__)).partition("Config search path:")[0]
    text, _, options = told.partition("Available options in")
    if text.startswith("Ambiguous value"):
        return ConfigError(
            "One run takes one value of each option; several values, by commas, are a sweep.",
            where=" ".join(overrides),
            hint="refseg run -m …; a value that holds commas itself is quoted: 'key=\"a, b\"'.",
        )
    return ConfigError(
        (text.strip() or type(error).__name__).splitlines()[0],
        where=" ".join(overrides),
        allowed=[line.strip() for line in options.splitlines()[1:] if line.strip()] or None,
        hint="Options are key=value, quoted for the shell where they hold brackets or commas; "
        "`refseg run --cfg job` prints them all.",
    )


#: Least and most of the numbers outside components.
_RANGES: Mapping[tuple[float, float], str] = {
    (1, math.inf): "limit.clips limit.expressions cluster.shards cluster.parallel cluster.cpus"
    " cluster.minutes cluster.cpu_minutes",
    (1e-3, math.inf): "cluster.target_minutes cluster.mem_gb",
    (0, math.inf): "max_failures cluster.gpus cluster.requeues cluster.signal_seconds",
    (1e-6, 1 - 1e-6): "score.confidence",
    (0, 1_000_000): "score.bootstrap score.jobs",
    (0, (1 << 63) - 1): "score.seed",
}


def _finish(composed: DictConfig, choices: dict[str, str], overrides: tuple[str, ...]) -> Composed:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise _told(error, overrides) from error
    assert isinstance(plain, dict)
    values = schema.conform(Config, {str(k): v for k, v in plain.items()}, "")
    values["sweep"] = {}
    _check_ranges(values)
    method_class = schema.locate(str(_node(values, "method")[TARGET]), "method")
    for part in schema.INJECTED:
        if values[part] is not None:
            _node(values, part)
        # A part the method does not take can't change its predictions, so it is not in the config.
        if part not in schema.injected(method_class):
            values[part] = None
        elif values[part] is None and schema.injected(method_class)[part]:
            raise ConfigError(
                f"Method '{choices.get('method', '?')}' needs a {part}.",
                allowed=names(part),
                hint=f"Add {part}=NAME",
            )
    for part in COMPONENTS:
        if values[part] is not None:
            node = {key: value for key, value in _node(values, part).items() if key not in ABOUT}
            values[part] = schema.complete(node, part)
    # Looked up before anything is predicted. What is typed may be a class of any package.
    schema.allow(*filter(is_class, (word.partition(":")[0] for word in values["protocols"])))
    for word in [*values["protocols"], *(values["dataset"].get("protocols") or ())]:
        open_protocol(word)
    experiment = choices.get("experiment", "None")
    of_one = experiment in ("None", "null")
    parts = (
        ("method", "dataset") if of_one or values["backbone"] is None else ("method", "backbone", "dataset")
    )
    stem = "-".join(str(choices.get(p, p)) for p in parts)
    if not of_one:
        stem = f"{experiment}-{stem}"
    name = values["name"] or stem.replace("/", "-")
    if "/" in name or printable(name) != name:
        raise ConfigError(f"'{name}' names no folder.", where="name", hint="paths.runs=DIR says in which.")
    return Composed(values, name, digest(values), overrides, choices)


def _check_ranges(values: Mapping[str, Any]) -> None:
    """See to it that samples are left, intervals can be made, and somebody can work."""
    for (least, most), options in _RANGES.items():
        for name in options.split():
            part, _, key = name.rpartition(".")
            value = (values[part] if part else values)[key]
            # Words (cluster.shards=auto) and null were looked at with the types.
            if isinstance(value, (int, float)) and not least <= value <= most:
                allowed = f"{least} and more" if most == math.inf else f"{least} to {most}"
                raise ConfigError(
                    f"{name} is {value}.", where=f"{name}={value}", allowed=[allowed], hint=f"Set {name}=N."
                )


def _node(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    node = values[part]
    if not isinstance(node, dict) or TARGET not in node:
        what = f"No {part} is chosen, or its YAML has no {TARGET}, which names the class."
        raise ConfigError(what, allowed=names(part), hint=f"Add {part}=NAME")
    return node


def lasting(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that can change a prediction."""
    return schema.lasting(Config, values)


def digest(values: Mapping[str, Any]) -> str:
    """8 hex digits of :func:`lasting`, stable across machines and key orders."""
    return digest_of(lasting(values))


def covers(values: Any, part: Any) -> bool:
    """Whether every option of ``part`` has the same value among ``values``."""
    if isinstance(part, Mapping):
        return isinstance(values, Mapping) and all(
            k in values and covers(values[k], v) for k, v in part.items()
        )
    return bool(values == part)


def digest_of(lasting: Mapping[str, Any]) -> str:
    """The digest of options that can change a prediction."""
    canonical = json.dumps(lasting, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return short_id(canonical)


def load(values: Mapping[str, Any]) -> Config:
    """A frozen config's values as the typed root (components stay mappings)."""
    return schema.construct(Config, values, "")


def checked(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A frozen config's values whose parts are what :class:`Config` says. Nothing is imported for it.

    Raises:
        ConfigError: an option is unknown or of the wrong type, or a component has no class.
    """
    try:
        plain = schema.conform(Config, values, "")
        _check_ranges(plain)
        for part in COMPONENTS:
            if plain[part] is not None and not isinstance(plain[part].get(TARGET), str):
                raise ConfigError(f"Config node '{part}' has no {TARGET}.")
    except ConfigError as error:
        raise ConfigError(error.what, where=path, allowed=error.allowed, hint=_AGAIN) from error
    return plain
