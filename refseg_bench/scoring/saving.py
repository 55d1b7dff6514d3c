"""Predictions of other code kept as a run folder, so that all that reads runs reads them.

Such a run has no method: its records are masks that were read from files, its ``config.yaml`` names the
files in the method's place, and ``run.json`` their source. What is kept are masks (foreground or not).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from refseg_bench.config import schema
from refseg_bench.config.compose import Config, digest_of
from refseg_bench.datasets.base import Dataset
from refseg_bench.errors import ConfigError, printable
from refseg_bench.files.store_io import (
    replacing,
    safe_name,
    sealed,
    sealed_text,
    sweep,
    to_plain,
    to_yaml,
    writing,
)
from refseg_bench.run.inputs import Present, seen_before
from refseg_bench.run.store import RunInfo, RunStore, line_of
from refseg_bench.scoring.foreign import ForeignPredictions, inside_dataset
from refseg_bench.scoring.pool import over_clips
from refseg_bench.scoring.results import counted
from refseg_bench.scoring.sources import Coverage, NothingScoredError, State, state_of
from refseg_bench.types import Clip, Prediction, sample_id

#: Stands where a config names the class of its method; nothing builds it.
_NO_METHOD = f"{ForeignPredictions.__module__}.{ForeignPredictions.__qualname__}"


def save(
    source: ForeignPredictions,
    member: str,
    node: Mapping[str, Any],
    name: str,
    runs: Path,
    jobs: int | None = None,
) -> tuple[RunStore, list[str]]:
    """Keep predictions of other code as a run; the same command again brings it up to date. With the run come
    lines for the user: what was kept, or differs from what was there, and what lacks.

    ``member`` and ``node``: the name of their data set, its class and every option; ``name``: what tables
    call them; ``jobs``: processes, ``None`` = as many as pay.

    Raises:
        ConfigError: the name can't be shown, or stands for masks of another folder or file already.
        ScoreError: there is no prediction of any sample.
        StoreError: the folder can't be written.
    """
    if not name.strip() or not name.isprintable():
        allowed = ["one line of characters that a table can show"]
        raise ConfigError(f"--name is '{printable(name)}'.", allowed=allowed)
    dataset: Dataset = schema.build(node, "dataset")
    path = str(source.root.resolve())
    kind = {schema.TARGET: _NO_METHOD, "name": name, "threshold": source.above}
    values = schema.conform(Config, {"dataset": node, "method": {**kind, "path": path}}, "")
    lasting = {**schema.lasting(Config, {**values, "method": None}), "method": kind}
    info = RunInfo(
        digest=digest_of(lasting),
        name=f"{safe_name(name)}-{safe_name(member)}",
        choices={"dataset": member, "method": name},
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        lasting=lasting,
        protocols=list(dataset.protocols),
        source=path,
    )
    frozen = sealed_text(to_yaml(values))
    notes = source.notes(dataset)
    store = RunStore(runs / f"{info.name}-{info.digest}")
    known = store.info() if store.info_path.is_file() else None
    store.sweep()
    folder = store.place("predictions")
    reading = _Reading(source, dataset, store)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        try:
            with replacing(folder / "masks.jsonl") as handle:
                handle.writelines(reading.lines(jobs))
                info.content = reading.content.hexdigest()
                told = _told(reading, info, known, store)
                if known is not None and known.content != info.content:
                    shutil.rmtree(store.place("scores"), ignore_errors=True)
        finally:
            # Of a first try that was refused nothing is left.
            with suppress(OSError):
                folder.rmdir()
                store.root.rmdir()
    store.keep(frozen, "config.yaml")
    # Written last, as for any run: a folder without it is none.
    store.keep(sealed(to_plain(dataclasses.asdict(info)), 2), "run.json")
    notes += reading.coverage.shown()
    if reading.encodings:
        notes.insert(0, f"predictions_read: {counted(reading.encodings)}")
    if inside := inside_dataset(source.root, dataset):
        notes.insert(0, f"predictions: {inside}")
    return store, [told, *notes]


def _told(reading: _Reading, info: RunInfo, known: RunInfo | None, store: RunStore) -> str:
    """What was kept, in a line; refuses what must not be."""
    coverage = reading.coverage
    if len(coverage.missing) == coverage.expected:
        raise NothingScoredError("--save", info.source, coverage)
    told = f"{coverage.expected - coverage.lacking} of {coverage.expected} samples kept, from {info.source}"
    if known is None:
        return told
    if known.content == info.content:
        return f"{told}: the same masks as were kept on {known.created}"
    if known.source != info.source:
        raise ConfigError(
            f"'{info.choices['method']}' is the name of other masks, which were read from {known.source}.",
            where=store.root,
            hint="Give another --name, or remove that folder.",
        )
    return f"{told}: {reading.changed} samples differ from those kept on {known.created}, which they replace"


@dataclass
class _Reading:
    """Reads a source sample by sample and tells how it differs from what a run folder holds."""

    source: ForeignPredictions
    dataset: Dataset
    store: RunStore
    coverage: Coverage = field(default_factory=Coverage)
    content: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=8))
    encodings: Counter[str] = field(default_factory=Counter)
    changed: int = 0

    def lines(self, jobs: int | None) -> Iterator[bytes]:
        """The lines of all predictions, in the data set's order."""
        present = Present(self.dataset, seen_before(self.store))
        work = partial(_read, source=self.source)
        read = over_clips(self.dataset, work, jobs)
        for clip, (samples, encodings) in zip(self.dataset.clips(), read, strict=True):
            self.encodings.update(encodings)
            before = self.store.predictions(clip.id)
            for e in self.dataset.expressions(clip):
                prediction, state = samples[e.id]
                self.coverage.enter(sample_id(clip.id, e.id), state)
                core, former = _core(prediction), _core(before.get(e.id))
                self.changed += core != former
                self.content.update(f"{sample_id(clip.id, e.id)} {core}\n".encode())
                if prediction is not None:
                    yield line_of(dataclasses.replace(prediction, inputs=present.inputs(clip, e)))


def _read(
    dataset: Dataset, clip: Clip, source: ForeignPredictions
) -> tuple[dict[str, tuple[Prediction | None, State]], Mapping[str, int]]:
    """Expression of a clip → its prediction, if there is one, and state; and how the files are stored."""
    expressions = dataset.expressions(clip)
    given = source.predictions(clip, expressions, labels=False, samples=True)
    known = source.survey(clip, expressions).samples
    samples: dict[str, tuple[Prediction | None, State]] = {}
    for e in expressions:
        prediction, state = given.samples.get(e.id), known[e.id]
        if prediction is not None:
            found = state_of(prediction, clip)
            state = found._replace(why=found.why or state.why)
        samples[e.id] = prediction, state
    return samples, given.encodings


def _core(prediction: Prediction | None) -> str:
    """What a prediction says, as text."""
    if prediction is None:
        return ""
    track, failure = prediction.track, prediction.failure
    masks = None if track is None else [track.size, [c and c.decode("ascii") for c in track.rles]]
    point = None if prediction.point is None else dataclasses.astuple(prediction.point)
    return json.dumps([masks, failure and failure.message, prediction.no_target, point])
