"""The loop: what is left of a run → predict → append. Depth lives elsewhere."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg_bench import env, schema
from refseg_bench.config import Limit, from_yaml, load
from refseg_bench.errors import ConfigError, DataError, RefsegError, StoreError
from refseg_bench.progress import Progress
from refseg_bench.store import RunStore, job_name
from refseg_bench.types import (
    Clip,
    Dataset,
    Expression,
    Grounding,
    Method,
    Prediction,
    SampleFailure,
    sample_id,
)

log = logging.getLogger(__name__)

Work = list[tuple[Clip, tuple[Expression, ...]]]


@dataclass
class Tally:
    """What one process did."""

    done: int = 0
    failed: int = 0


def work_on(store: RunStore, *, shard: int = 0, shards: int = 1, job: str | None = None) -> Tally:
    """Predict what is left of a frozen run, or one shard of it.

    Args:
        store: the run folder; its ``config.yaml`` is all that is read.
        shard: this process's part, from 0.
        shards: how many parts; may differ from one try to the next.
        job: name of this process's files.

    Raises:
        ConfigError: the run can't work at all (a package or a file of the model is missing).
        StoreError: predictions can't be written; what was finished is kept.
        RefsegError: more samples failed than ``max_failures`` allows.
    """
    values = frozen(store)
    config = load(values)
    dataset = schema.build(values["dataset"], "dataset")
    mine = share(plan(dataset, config.limit), shards)[shard]
    todo = left(mine, store.done())
    tally = Tally()
    if not todo:
        return tally
    job = job or job_name()
    store.write_env(job, env.record(config.seed))
    method = build_method(values, dataset)
    with store.writer(job) as out, Progress(sum(len(es) for _, es in todo), label=store.root.name) as bar:
        for clip, expressions in todo:
            env.seed_everything(config.seed, clip.id)
            for prediction, grounding in predict_clip(method, clip, expressions):
                if grounding is not None and config.keep_maps:
                    store.write_maps(grounding, prediction.sample)
                out.append(prediction)
                tally.done += prediction.ok
                tally.failed += not prediction.ok
                bar.advance(prediction)
                if config.max_failures is not None and tally.failed > config.max_failures:
                    raise RefsegError(
                        f"{tally.failed} samples failed, more than max_failures={config.max_failures}.",
                        where=store.root,
                        cure="`refseg status RUN` shows why; `refseg run` again retries only those.",
                    )
            out.sync()
    # Written again: by now the model's libraries are loaded and can be asked for their kernels.
    store.write_env(job, {**env.record(config.seed), **method_record(method)})
    return tally


def frozen(store: RunStore) -> dict[str, Any]:
    """The frozen config of a run."""
    return from_yaml(store.config_path)


def build_method(values: Mapping[str, Any], dataset: Dataset) -> Method:
    """The method of a config, with its backbone and segmenter."""
    parts = {
        part: schema.build(values[part], part) for part in schema.INJECTED if values.get(part) is not None
    }
    method: Method = schema.build(values["method"], "method", **parts)
    for part in (*parts.values(), method):
        # A component with a `cache_root` keeps what it can reuse in other runs there.
        if hasattr(part, "cache_root"):
            part.cache_root = Path(values["paths"]["cache"])
    if getattr(method, "sees_targets", False):
        # Only bounds (the oracle) ask for this; no grounding method may.
        method.targets = dataset.target  # type: ignore[attr-defined]
    return method


def method_record(method: Method) -> dict[str, Any]:
    """What a method wants remembered of this process: counters, kernels in effect."""
    report = getattr(method, "report", None)
    return {"method": report()} if callable(report) else {}


def plan(dataset: Dataset, limit: Limit) -> Work:
    """All clips with their expressions, less what ``limit`` leaves out."""
    chosen = set(limit.samples)
    work: Work = []
    known: set[str] = set()
    for clip in dataset.clips():
        expressions = tuple(dataset.expressions(clip))
        if chosen:
            known.update(sample_id(clip.id, e.id) for e in expressions)
            expressions = tuple(e for e in expressions if sample_id(clip.id, e.id) in chosen)
        expressions = expressions[: limit.expressions]
        if expressions:
            work.append((clip, expressions))
    if chosen - known:
        raise ConfigError(
            f"limit.samples names samples the split does not have: {', '.join(sorted(chosen - known)[:5])}",
            allowed=[*sorted(known)[:10], "…"],
        )
    return work[: limit.clips]


def share(work: Work, shards: int) -> list[Work]:
    """Split by clip into parts of about equal frames × expressions; the same split every time."""
    if shards == 1:
        return [work]
    parts: list[Work] = [[] for _ in range(shards)]
    loads = [0] * shards
    order = sorted(range(len(work)), key=lambda i: (-len(work[i][0]) * len(work[i][1]), work[i][0].id))
    mine: list[list[int]] = [[] for _ in range(shards)]
    for index in order:
        lightest = loads.index(min(loads))
        loads[lightest] += len(work[index][0]) * len(work[index][1])
        mine[lightest].append(index)
    for part, indices in zip(parts, mine, strict=True):
        part.extend(work[i] for i in sorted(indices))
    return parts


def left(work: Work, done: set[str]) -> Work:
    """The work less the samples that have a prediction."""
    open_work = ((clip, tuple(e for e in es if sample_id(clip.id, e.id) not in done)) for clip, es in work)
    return [(clip, es) for clip, es in open_work if es]


def predict_clip(
    method: Method, clip: Clip, expressions: Sequence[Expression]
) -> Iterator[tuple[Prediction, Grounding | None]]:
    """Predict all expressions of a clip; one that fails does not take the others with it."""
    open_ids = {e.id: e for e in expressions}
    try:
        for prediction, grounding in _timed(method, clip, expressions):
            open_ids.pop(grounding.expression.id)
            yield prediction, grounding
        failure: Exception = RefsegError("The method returned nothing for this expression.")
    except (ConfigError, StoreError):
        raise
    except Exception as error:
        failure = error
    if not open_ids:
        return
    # One by one: with a single expression left, or a clip that can't be read, the culprit is known.
    alone = len(expressions) == 1 or isinstance(failure, DataError)
    for expression in open_ids.values():
        if alone:
            yield _failed(clip, expression, failure), None
        else:
            yield from predict_clip(method, clip, [expression])


def _timed(
    method: Method, clip: Clip, expressions: Sequence[Expression]
) -> Iterator[tuple[Prediction, Grounding]]:
    memory = env.PeakMemory()
    memory.start()
    wanted = {e.id for e in expressions}
    began = time.perf_counter()
    for grounding in method.predict(clip, expressions):
        seconds = {**grounding.seconds, "total": time.perf_counter() - began}
        expression = grounding.expression
        if expression.id not in wanted:
            raise RefsegError(
                f"The method answered expression '{expression.id}' twice or unasked.", where=clip.id
            )
        wanted.remove(expression.id)
        track = grounding.track
        if len(track) != len(clip) or track.size != clip.size:
            raise RefsegError(
                f"The method returned {len(track)} masks of {track.size}; the clip has {len(clip)} frames "
                f"of {clip.size} (height, width).",
                where=sample_id(clip.id, expression.id),
            )
        yield (
            Prediction(
                sample=sample_id(clip.id, expression.id),
                clip=clip.id,
                expression=expression.id,
                track=track,
                point=grounding.point,
                no_target=grounding.no_target,
                details=grounding.details,
                seconds=seconds,
                peak_mb=memory.read(),
            ),
            grounding,
        )
        memory.start()
        began = time.perf_counter()


def _failed(clip: Clip, expression: Expression, error: Exception) -> Prediction:
    log.error("sample %s failed: %s", sample_id(clip.id, expression.id), error)
    return Prediction(
        sample=sample_id(clip.id, expression.id),
        clip=clip.id,
        expression=expression.id,
        failure=SampleFailure(
            type(error).__name__,
            str(error),
            "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        ),
    )
