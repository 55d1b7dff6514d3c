"""Hand the results of runs to an experiment tracker. Off unless asked; the store stays the truth.

A sink is any class whose objects have ``send(record)``; ``refseg report RUN --sink NAME`` makes one of
those below, or of a dotted path of another package (``my.module.MySink``), with ``NAME:TARGET`` handing
it a project's name or a folder.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from refseg_bench.errors import ConfigError, missing_package
from refseg_bench.report.compare import flatten
from refseg_bench.report.tables import in_percent
from refseg_bench.run.build import frozen
from refseg_bench.run.store import RunStore


@dataclass(frozen=True)
class RunRecord:
    """What a tracker gets of a run.

    Attributes:
        name: the run folder's name, unique by its digest.
        config: dotted option → plain value.
        metrics: ``PROTOCOL/METRIC`` → value in percent, with ``…_low`` and ``…_high``, and the coverage as
            ``PROTOCOL/n``, ``…/failed``, ``…/missing``.
    """

    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]


class Sink(Protocol):
    """Takes records of runs."""

    def send(self, record: RunRecord) -> None:
        """Hand one run over. Sending it again replaces or adds, as the tracker does."""


def record_of(store: RunStore) -> RunRecord:
    """What a tracker gets of a scored run."""
    metrics: dict[str, float] = {}
    for protocol, result in store.results().items():
        # Trackers build paths of names: '@' and '&' are not allowed everywhere, no name is another's folder.
        head = protocol.replace("@", "-v")
        for name, estimate in result.metrics.items():
            plain = name.replace("&", "and").replace("@", "_at_")
            shown = in_percent(result, estimate)
            for end, value in (("", shown.value), ("_low", shown.low), ("_high", shown.high)):
                if math.isfinite(value):
                    metrics[f"{head}/{plain}{end}"] = value
        metrics |= {f"{head}/n": result.n, f"{head}/failed": result.failed, f"{head}/missing": result.missing}
    return RunRecord(store.root.name, dict(flatten(frozen(store))), metrics)


def _load(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise missing_package(f"The sink '{package}'", package) from error


@dataclass
class Wandb:
    """Weights & Biases: one run per run folder, by its name."""

    target: str = "refseg_bench"

    def send(self, record: RunRecord) -> None:
        """Start or resume the run of that name and set its summary."""
        run = _load("wandb").init(
            project=self.target, name=record.name, id=record.name, resume="allow", config=dict(record.config)
        )
        run.summary.update(dict(record.metrics))
        run.finish()


@dataclass
class Mlflow:
    """MLflow: one run per call, in the experiment named by the target."""

    target: str = "refseg_bench"

    def send(self, record: RunRecord) -> None:
        """Log options as parameters and results as metrics."""
        mlflow = _load("mlflow")
        mlflow.set_experiment(self.target)
        with mlflow.start_run(run_name=record.name):
            # The tracker refuses longer values.
            mlflow.log_params({key: str(value)[:500] for key, value in record.config.items()})
            mlflow.log_metrics(dict(record.metrics))


SINKS: dict[str, type[Any]] = {"wandb": Wandb, "mlflow": Mlflow}


def sink_of(word: str) -> Sink:
    """The sink that ``NAME`` or ``NAME:TARGET`` means.

    Raises:
        ConfigError: no such sink.
    """
    name, _, target = word.partition(":")
    cls = SINKS.get(name)
    if cls is None and "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"The sink can't be loaded ({error}).", where=name) from error
    if cls is None:
        raise ConfigError(f"There is no sink '{name}'.", allowed=[*SINKS, "package.module.Class"])
    if not callable(getattr(cls, "send", None)):
        raise ConfigError("It is no sink: it has no method 'send'.", where=name)
    made: Sink = cls(target) if target else cls()
    return made
