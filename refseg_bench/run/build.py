"""From a run's frozen values to its data set and method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg_bench import env
from refseg_bench.config import schema
from refseg_bench.config.compose import Limit, checked, covers, digest_of, lasting, load
from refseg_bench.datasets.base import Dataset, LimitedDataset
from refseg_bench.datasets.files import cache_root
from refseg_bench.errors import ConfigError, StoreError
from refseg_bench.files.store_io import checksum, read_sealed_yaml
from refseg_bench.run.store import RunStore

if TYPE_CHECKING:
    from refseg_bench.methods.base import Method
    from refseg_bench.segmenters.base import Segmenter


def frozen(store: RunStore, launch: str | None = None) -> dict[str, Any]:
    """The frozen config of a run, or of one submission of it: alike but for what can't change predictions.

    Raises:
        StoreError: the file is torn, or was changed since.
        ConfigError: it is no config, or not the one that the run's digest is of.
    """
    path = store.config_path if launch is None else store.root / "launches" / launch / "config.yaml"
    values = checked(read_sealed_yaml(path), path)
    info = store.info()
    if info.lasting and not (covers(values, info.lasting) and digest_of(info.lasting) == info.digest):
        raise StoreError(
            f"The config is not the one that the run's digest {info.digest} is of.",
            where=path,
            hint="Put the file back. Options are changed by `refseg run` with the same words and KEY=VALUE.",
        )
    return values


def received(store: RunStore, launch: str | None = None) -> dict[str, Any]:
    """:func:`frozen` for a command that only reads a run: the data set's indices go where they go here.

    A run folder may come from anywhere, so no file is written where its config says.

    Raises:
        StoreError, ConfigError: as :func:`frozen`.
    """
    values = frozen(store, launch)
    cache = str(cache_root())
    if "cache" in values["dataset"]:
        values["dataset"] = {**values["dataset"], "cache": cache}
    return {**values, "paths": {**values["paths"], "cache": cache}}


def lasting_of(store: RunStore) -> dict[str, Any]:
    """The options of a run that can change a prediction, as data: nothing is imported to know them."""
    values = frozen(store)
    return store.info().lasting or lasting(values)


def assemble(values: Mapping[str, Any]) -> Method:
    """The method of a config with its backbone and segmenter, for whoever asks what they are.

    Raises:
        ConfigError: an option of one of them is refused.
    """
    parts = {
        part: schema.build(values[part], part) for part in schema.INJECTED if values.get(part) is not None
    }
    method: Method = schema.build(values["method"], "method", **parts)
    return method


def build_method(values: Mapping[str, Any], dataset: Dataset) -> Method:
    """The same, ready for work on a data set."""
    from refseg_bench.segmenters.base import count_sessions

    method = assemble(values)
    parts = schema.parts(method)
    if "segmenter" in parts:
        count_sessions(parts["segmenter"])
    for part in (*parts.values(), method):
        object.__setattr__(part, "cache_root", Path(values["paths"]["cache"]))  # a component may be frozen
    if method.sees_targets:
        # Only bounds (the oracle) ask for this; no grounding method may.
        object.__setattr__(method, "targets", dataset.target)
    return method


def check_parts(method: Method) -> None:
    """See to it that all packages, and all of the segmenter, are here before the first model pass.

    A backbone's weights need not be here: it is the first to be used, unless all it would say is in the
    cache. What is here of them must be whole.

    Raises:
        ConfigError: a package, device or weights are missing; weights that the hub has are fetched.
    """
    parts: list[schema.Component] = [method, *schema.parts(method).values()]
    parts = [part for part in parts if part.kind != "segmenter" or method.uses_segmenter]
    for part in parts:
        check_part(part)
    if any("torch" in part.packages for part in parts):
        import_module("torch")  # its seed and its threads are set before the first clip


def check_part(part: schema.Component) -> None:
    """The same for one component.

    Raises:
        ConfigError: as for all.
    """
    from refseg_bench.backbones.weights import find

    part.check()
    for one in part.weights() or ():
        if (problem := find(one).problem) is not None:
            raise problem


def weights_of(values: Mapping[str, Any], dataset: Dataset) -> str | None:
    """Digest of all weights that a config's method and its parts use, and of their code outside this package.

    Empty where there are none; ``None`` where they are not all on this machine, or can't be asked for.
    """
    from refseg_bench.backbones.weights import content

    try:
        method = build_method(values, dataset)
        parts: list[schema.Component] = [method, *schema.parts(method).values()]
        found = [content(one, part.cache_root) for part in parts for one in part.weights() or ()]
        found += filter(None, (schema.code(type(part)) for part in parts))
    except ConfigError:
        return None  # who needs them tells of it
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return None
    return checksum("\n".join(known).encode()) if known else ""


def method_record(method: Method) -> dict[str, Any]:
    """What is remembered of a method and its parts: their weights, counters, kernels in effect."""
    from refseg_bench.backbones.weights import identity

    parts: dict[str, schema.Component] = {"method": method, **schema.parts(method)}
    record: dict[str, dict[str, Any]] = {name: dict(part.report()) for name, part in parts.items()}
    for name, part in parts.items():
        if weights := part.weights():
            record[name]["weights"] = [identity(one, part.cache_root) for one in weights]
    segmenter: Segmenter | None = schema.parts(method).get("segmenter")
    if segmenter is not None and segmenter.counted is not None:
        record["segmenter"]["counters"] = asdict(segmenter.counted())
    record["peak_mib"] = {stage: round(peak, 1) for stage, peak in env.stage_peaks.items()}
    return {name: facts for name, facts in record.items() if facts}


def dataset_of(values: Mapping[str, Any]) -> Dataset:
    """The dataset of a config, or the part of it that ``limit`` leaves."""
    whole: Dataset = schema.build(values["dataset"], "dataset")
    limit = load(values).limit
    if limit == Limit():
        return whole
    return LimitedDataset(whole, limit.clips, limit.expressions, tuple(limit.samples))
