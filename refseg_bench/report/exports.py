"""What other tools take of runs: predictions as one COCO file, results for an experiment tracker.

A sink is any class whose objects have ``send(record)``, which replaces or adds as its tracker does;
``refseg report RUN --sink NAME`` makes one of those below, or of a dotted path of another package
(``my.module.MySink``), with ``NAME:TARGET`` handing it a project's name or a folder. The store stays the
truth.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg_bench.errors import ConfigError, missing_package
from refseg_bench.files.store_io import output
from refseg_bench.report.compare import flatten
from refseg_bench.report.tables import in_percent
from refseg_bench.run.build import dataset_of, frozen, received
from refseg_bench.run.inputs import Present, stale, without
from refseg_bench.run.shards import plan
from refseg_bench.run.store import RunStore
from refseg_bench.types import sample_id


def to_coco(store: RunStore) -> dict[str, Any]:
    """The predictions of a run as COCO: a frame is an image, a mask an annotation with its ``expression``.

    A frame where the object is absent has no annotation. COCO has no word for a sample without a
    prediction: those are left out and named in ``info``, as are samples that were predicted on other data
    than the data set holds now, and (``answered_absent``) those whose answer is that nothing is meant.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    left_out: list[str] = []
    absent: list[str] = []
    dataset = dataset_of(received(store))
    work = plan(dataset)
    differing = stale(store, work, Present(dataset))
    for clip, expressions in work:
        found = without(store.predictions(clip.id), clip, differing)
        first = len(images) + 1
        height, width = clip.size
        same = {"width": width, "height": height, "clip": clip.id}
        images += [
            {"id": number, "file_name": str(path.absolute()), **same, "frame": name}
            for number, (path, name) in enumerate(zip(clip.frame_paths, clip.frame_names, strict=True), first)
        ]
        for e in expressions:
            sample, prediction = sample_id(clip.id, e.id), found.get(e.id)
            absent += [sample] if prediction is not None and prediction.no_target else []
            if prediction is None or prediction.track is None:
                left_out.append(sample)
                continue
            more = {"iscrowd": 0, "score": 1.0, "sample": sample, "expression": e.text}
            for number, counts in enumerate(prediction.track.rles, first):
                rle: Any = {"size": [height, width], "counts": counts or b""}
                area = int(coco_mask.area(rle))
                if counts is not None and area:
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": number,
                            "category_id": 1,
                            "segmentation": {"size": [height, width], "counts": counts.decode("ascii")},
                            "bbox": np.asarray(coco_mask.toBbox(rle)).tolist(),
                            "area": area,
                            **more,
                        }
                    )
    return {
        "info": {
            "description": f"predictions of {store.root.name}",
            "without_prediction": left_out,
            "answered_absent": absent,
        },
        "licenses": [],
        "categories": [{"id": 1, "name": "referred", "supercategory": ""}],
        "images": images,
        "annotations": annotations,
    }


def write_coco(store: RunStore, path: Path) -> None:
    """Write :func:`to_coco` to a file.

    Raises:
        StoreError: it can't be written.
    """
    text = json.dumps(to_coco(store), separators=(",", ":")) + "\n"
    with output(path) as handle:
        handle.write(text.encode())


@dataclass(frozen=True)
class RunRecord:
    """What a tracker gets of a run."""

    name: str  #: the run folder's name, unique by its digest
    config: Mapping[str, Any]  #: dotted option → plain value
    #: ``PROTOCOL/METRIC`` → value in percent, with ``…_low`` and ``…_high``, and the coverage as
    #: ``PROTOCOL/n``, ``…/failed``, ``…/missing``.
    metrics: Mapping[str, float]


def record_of(store: RunStore) -> RunRecord:
    """What a tracker gets of a scored run."""
    metrics: dict[str, float] = {}
    for protocol, result in store.results().items():
        # Trackers build paths of names: few signs are allowed everywhere, no name is another's folder.
        head = _plainly(protocol.replace("@", "-v"))
        for name in result.metrics:
            plain = _plainly(name.replace("&", "and").replace("@", "_at_"))
            shown = in_percent(result, name)
            for end, value in (("", shown.value), ("_low", shown.low), ("_high", shown.high)):
                if math.isfinite(value):
                    metrics[f"{head}/{plain}{end}"] = value
        metrics |= {f"{head}/n": result.n, f"{head}/failed": result.failed, f"{head}/missing": result.missing}
    return RunRecord(store.root.name, dict(flatten(frozen(store))), metrics)


def _plainly(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


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


def sink_of(word: str) -> Any:
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
    return cls(target) if target else cls()
