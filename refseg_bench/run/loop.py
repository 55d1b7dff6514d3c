"""The loop: what is left of a run → predict → append. Depth lives elsewhere."""

from __future__ import annotations

import itertools
import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from refseg_bench import env
from refseg_bench.backbones.weights import NeedsWeights, choose_device, fetch
from refseg_bench.config import schema
from refseg_bench.config.compose import Config, Limit, checked, covers, digest_of, from_yaml, lasting, load
from refseg_bench.datasets.files import cache_root
from refseg_bench.datasets.limited import Limited
from refseg_bench.errors import ConfigError, DataError, RefsegError, StoreError, missing_package, require
from refseg_bench.run import oom
from refseg_bench.run.claims import Desk, forget
from refseg_bench.run.inputs import Present
from refseg_bench.run.joblog import logged
from refseg_bench.run.owners import Owner
from refseg_bench.run.progress import Progress
from refseg_bench.run.store import Line, RunStore, job_name
from refseg_bench.segmenters.base import count_sessions
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
    """What one process did.

    Attributes:
        done, failed: samples.
        elsewhere: samples it left to other living processes.
    """

    done: int = 0
    failed: int = 0
    elsewhere: int = 0


def work_on(
    store: RunStore,
    *,
    shard: int = 0,
    shards: int = 1,
    job: str | None = None,
    launch: str | None = None,
    steal: bool = False,
) -> Tally:
    """Predict what is left of a frozen run, or one shard of it.

    Args:
        store: the run folder; nothing but its frozen config is read.
        shard: this process's part, from 0.
        shards: how many parts; may differ from one try to the next.
        job: name of this process's files.
        launch: the submission this process belongs to; its frozen values hold what can't change
            predictions (batch sizes, devices). By default one of its own.
        steal: when its part is through, go on with clips of other parts that nobody has started.

    Raises:
        ConfigError: the run can't work at all (a package or a file of the model is missing).
        StoreError: predictions can't be written; what was finished is kept.
        RefsegError: more samples failed than ``max_failures`` allows.
    """
    values = frozen(store, launch)
    config = load(values)
    dataset = dataset_of(values)
    work = plan(dataset)
    parts = share(work, shards)
    order = queue(parts, shard) if steal else parts[shard]
    tally = Tally()
    present = Present(dataset)
    todo = left(order, store.index(), present)
    if not todo:
        return tally
    job = job or job_name()
    owner = Owner.here(job, launch or job, shard=shard, shards=shards)
    own = {clip.id for clip, _ in parts[shard]}
    total = sum(len(es) for clip, es in todo if clip.id in own)
    method: Method | None = None
    with (
        logged(store.root, job),
        Desk(store.root, owner) as desk,
        store.writer(job) as out,
        Progress(total, label=store.root.name) as bar,
    ):
        for clip, expressions in todo:
            if desk.stopped:
                raise _too_many(store, config)
            mine = clip.id in own
            if not desk.take(clip.id):
                tally.elsewhere += len(expressions)
                bar.expect(-len(expressions) if mine else 0)
                continue
            # A former owner may have stored some of them since.
            index = store.index()
            fresh = present.open(index, clip, expressions)
            bar.expect(len(fresh) - (len(expressions) if mine else 0))
            if not fresh:
                continue
            if method is None:
                store.write_env(job, env.record(config.seed))
                method = build_method(values, dataset)
                check_segmenter(method)
            env.seed_everything(config.seed, clip.id)
            before = {e.id: present.inputs(clip, e, seen=sees_targets(method)) for e in fresh}
            for prediction, grounding in predict_clip(method, clip, fresh):
                if desk.lost:
                    raise StoreError("Another process has taken over.", where=f"{store.root}, clip {clip.id}")
                if grounding is not None and config.keep_maps:
                    store.write_maps(grounding, prediction.sample)
                known = index.get(prediction.sample)
                turn = 0 if known is None else known.turn + known.ok
                out.append(replace(prediction, inputs=before[prediction.expression], turn=turn))
                tally.done += prediction.ok
                tally.failed += not prediction.ok
                bar.advance(prediction.ok)
                if prediction.ok:
                    continue
                if not tally.done:
                    _refuse_without_frames(todo)
                failures = desk.fail(prediction.sample)
                if config.max_failures is not None and failures > config.max_failures:
                    desk.stop()
                    raise _too_many(store, config)
            out.sync()
        if method is not None:
            # Written again: by now the model's libraries are loaded and can be asked for their kernels.
            store.write_env(job, {**env.record(config.seed), **method_record(method)})
        desk.finish(done=tally.done, failed=tally.failed, gpus=env.gpus())
    if not left(work, store.index(), present):
        forget(store.root)
    return tally


def _refuse_without_frames(work: Work) -> None:
    """One error in place of one per sample where no frame is on this disk; some methods look at none."""
    if any(path.is_file() for clip, _ in work for path in clip.frame_paths[:1]):
        return
    first = work[0][0].frame_paths[0]
    raise DataError(
        f"None of the frames is there: {len(work)} of {len(work)} clips lack theirs.",
        where=first,
        cure="Put the frames where the first is looked for, or set dataset.root "
        "(dataset.images or dataset.frames for a folder of another name).",
    )


def _too_many(store: RunStore, config: Config) -> RefsegError:
    return RefsegError(
        f"More samples failed than max_failures={config.max_failures} allows.",
        where=store.root,
        cure="`refseg status RUN` shows why; `refseg run` again retries only those.",
    )


def capture_on(store: RunStore, *, shard: int, shards: int, launch: str) -> Tally:
    """Fill the attention cache for one shard of a run, and predict nothing.

    A clip that fails is left to the run itself, which meets the same failure and records it.

    Args:
        store: the run folder.
        shard: this process's part, from 0.
        shards: how many parts.
        launch: the submission this process belongs to.
    """
    values = frozen(store, launch)
    config = load(values)
    dataset = dataset_of(values)
    work = plan(dataset)
    todo = left(share(work, shards)[shard], store.index(), Present(dataset))
    tally = Tally()
    job = job_name()
    owner = Owner.here(job, launch, shard=shard, shards=shards)
    with logged(store.root, job), Desk(store.root, owner) as desk:
        method = build_method(values, dataset)
        check_segmenter(method)
        capture = method.capture  # type: ignore[attr-defined]
        for clip, expressions in todo:
            env.seed_everything(config.seed, clip.id)
            try:
                capture(clip, expressions)
                tally.done += len(expressions)
            except (ConfigError, ImportError):
                raise
            except Exception as error:
                log.warning("capture of clip %s failed: %s", clip.id, error)
                tally.failed += len(expressions)
        desk.finish(done=0, failed=0, gpus=env.gpus())
    return tally


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
            cure="Put the file back. Options are changed by `refseg run` with the same words and KEY=VALUE.",
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


def plan(dataset: Dataset) -> Work:
    """All clips with their expressions."""
    work = ((clip, tuple(dataset.expressions(clip))) for clip in dataset.clips())
    return [(clip, expressions) for clip, expressions in work if expressions]


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


def queue(parts: Sequence[Work], shard: int) -> Work:
    """A part and then, from their ends on, the others: what their owners will come to last."""
    others = [reversed(parts[(shard + step) % len(parts)]) for step in range(1, len(parts))]
    rounds = itertools.zip_longest(*others)
    return [*parts[shard], *(item for items in rounds for item in items if item is not None)]


def left(work: Work, index: Mapping[str, Line], present: Present) -> Work:
    """The work less the samples that have a prediction on what the data set holds now."""
    open_work = ((clip, present.open(index, clip, expressions)) for clip, expressions in work)
    return [(clip, expressions) for clip, expressions in open_work if expressions]


def predict_clip(
    method: Method, clip: Clip, expressions: Sequence[Expression]
) -> Iterator[tuple[Prediction, Grounding | None]]:
    """Predict all expressions of a clip; one that fails does not take the others with it.

    Where the accelerator's memory runs out, what is left of the clip is tried again with half the
    batch, down to batches of one.
    """
    open_ids = {e.id: e for e in expressions}
    try:
        for prediction, grounding in _timed(method, clip, expressions):
            open_ids.pop(grounding.expression.id)
            yield prediction, grounding
        failure: Exception = RefsegError("The method returned nothing for this expression.")
    except (ConfigError, StoreError):
        raise
    except ImportError as error:
        # As missing weights and devices are: of this machine, not of the sample.
        raise missing_package(type(method).__name__, error.name or str(error)) from error
    except Exception as error:
        failure = error
    if not open_ids:
        return
    if oom.is_out_of_memory(failure) and oom.batched(method):
        log.warning("clip %s: out of memory, again with half the batch", clip.id)
        # The tensors that filled the memory hang on the frames of the failure.
        traceback.clear_frames(failure.__traceback__)
        del failure
        with oom.half_batches(method):
            yield from predict_clip(method, clip, list(open_ids.values()))
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
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    log.error("sample %s failed: %s", sample_id(clip.id, expression.id), error, extra={"trace": trace})
    return Prediction(
        sample=sample_id(clip.id, expression.id),
        clip=clip.id,
        expression=expression.id,
        failure=SampleFailure(type(error).__name__, str(error), trace),
    )
