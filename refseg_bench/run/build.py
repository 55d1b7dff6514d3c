"""From a run's frozen values to its data set and method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refseg_bench.backbones.weights import NeedsWeights, choose_device, fetch
from refseg_bench.config import schema
from refseg_bench.config.compose import Limit, checked, covers, digest_of, from_yaml, lasting, load
from refseg_bench.datasets.files import cache_root
from refseg_bench.datasets.limited import Limited
from refseg_bench.errors import StoreError, require
from refseg_bench.run.store import RunStore
from refseg_bench.segmenters.base import count_sessions
from refseg_bench.types import Dataset, Method


def frozen(store: RunStore, launch: str | None = None) -> dict[str, Any]:
    """The frozen config of a run, or of one submission of it.

    Raises:
        StoreError: the file is torn, or was changed since.
        ConfigError: it is no config, or not the one that the run's digest is of.
    """
    path = store.config_path if launch is None else store.launch_config(launch)
    values = checked(from_yaml(path), path)
    info = store.info()
    kept = info["lasting"]
    if kept and not (covers(values, kept) and digest_of(kept) == info["digest"]):
        raise StoreError(
            f"The config is not the one that the run's digest {info['digest']} is of.",
            where=path,
            hint="Put the file back. Options are changed by `refseg run` with the same words and KEY=VALUE.",
        )
    return values


def received(store: RunStore) -> dict[str, Any]:
    """The frozen config of a run for a command that reads it: its data set's indices go where they go here.

    A run folder may come from anywhere, so no file is written where its config says.

    Raises:
        StoreError, ConfigError: as :func:`frozen`.
    """
    values = frozen(store)
    cache = str(cache_root())
    if "cache" in values["dataset"]:
        values["dataset"] = {**values["dataset"], "cache": cache}
    return {**values, "paths": {**values["paths"], "cache": cache}}


def lasting_of(store: RunStore) -> dict[str, Any]:
    """The options of a run that can change a prediction, as data: nothing is imported to know them."""
    values = frozen(store)
    return store.info()["lasting"] or lasting(values)


def build_method(values: Mapping[str, Any], dataset: Dataset) -> Method:
    """The method of a config, with its backbone and segmenter."""
    parts = {
        part: schema.build(values[part], part) for part in schema.INJECTED if values.get(part) is not None
    }
    method: Method = schema.build(values["method"], "method", **parts)
    if "segmenter" in parts:
        object.__setattr__(parts["segmenter"], "counted", count_sessions(parts["segmenter"]))
    for part in (*parts.values(), method):
        # A component with a `cache_root` keeps what it can reuse in other runs there.
        if hasattr(part, "cache_root"):
            part.cache_root = Path(values["paths"]["cache"])
    if sees_targets(method):
        # Only bounds (the oracle) ask for this; no grounding method may.
        method.targets = dataset.target  # type: ignore[attr-defined]
    return method


def check_segmenter(method: Method) -> None:
    """See to it that the segmenter's package, device and weights are here before the first model pass.

    A backbone needs no such look: it is the first to be used, unless all it would say is in the cache.

    Raises:
        ConfigError: one is missing; weights that the hub has are fetched.
    """
    segmenter = getattr(method, "segmenter", None)
    if not isinstance(segmenter, NeedsWeights) or not getattr(method, "uses_segmenter", True):
        return
    for package in getattr(segmenter, "packages", ()):
        require(package, f"The segmenter {type(segmenter).__name__}")
    if isinstance(device := getattr(segmenter, "device", None), str):
        choose_device(device)
    for needed in segmenter.weights():
        fetch(needed, offline=bool(getattr(segmenter, "offline", False)))


def sees_targets(method: Method) -> bool:
    """Whether the method is given the truth, as bounds are."""
    return bool(getattr(method, "sees_targets", False))


def method_record(method: Method) -> dict[str, Any]:
    """What a method and its parts want remembered of this process: counters, kernels in effect."""
    report = getattr(method, "report", None)
    record = {"method": report()} if callable(report) else {}
    for name in schema.INJECTED:
        part = getattr(method, name, None)
        told = getattr(part, "environment", None)
        if callable(told):
            record[name] = dict(told())
        counted = getattr(part, "counted", None)
        if callable(counted):
            record[name] = {**record.get(name, {}), "counters": asdict(counted())}
    return record


def dataset_of(values: Mapping[str, Any]) -> Dataset:
    """The dataset of a config, or the part of it that ``limit`` leaves."""
    whole: Dataset = schema.build(values["dataset"], "dataset")
    limit = load(values).limit
    return Limited(whole, limit.clips, limit.expressions, tuple(limit.samples)) if limit != Limit() else whole
