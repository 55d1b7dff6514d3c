"""The loop: what is left of a run → predict → append. Depth lives elsewhere."""

from __future__ import annotations

import logging
from dataclasses import replace

from refseg_bench import env
from refseg_bench.config.compose import Config, load
from refseg_bench.errors import ConfigError, DataError, RefsegError, StoreError
from refseg_bench.methods.base import Method
from refseg_bench.run.build import (
    build_method,
    check_segmenter,
    dataset_of,
    frozen,
    method_record,
)
from refseg_bench.run.claims import Desk, forget
from refseg_bench.run.data_record import seen_before
from refseg_bench.run.inputs import Present
from refseg_bench.run.predict import predict_clip
from refseg_bench.run.predictions import job_name
from refseg_bench.run.progress import Progress, logged
from refseg_bench.run.shards import Tally, Work, left, plan, queue, share
from refseg_bench.run.store import RunStore
from refseg_bench.run.workers import Owner

log = logging.getLogger(__name__)


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
    config, dataset = load(values), dataset_of(values)
    work, present = plan(dataset), Present(dataset, seen_before(store))
    parts = share(work, shards)
    todo = left(queue(parts, shard) if steal else parts[shard], store.index(), present)
    tally = Tally()
    if not todo:
        return tally
    job = job or job_name()
    owner = Owner.here(job, launch or job, shard=shard, shards=shards)
    own = {clip.id: len(expressions) for clip, expressions in left(parts[shard], store.index(), present)}
    method: Method | None = None
    with (
        logged(store.root, job),
        Desk(store.root, owner) as desk,
        store.writer(job) as out,
        Progress(sum(own.values()), label=store.root.name) as bar,
    ):
        for clip, expressions in todo:
            if desk.stopped:
                raise _too_many(store, config)
            if not desk.take(clip.id):
                tally.elsewhere += len(expressions)
                bar.expect(-own.get(clip.id, 0))
                continue
            # A former owner may have stored some of them since.
            index = store.index()
            fresh = present.open(index, clip, expressions)
            bar.expect(len(fresh) - own.get(clip.id, 0))
            if not fresh:
                continue
            if method is None:
                store.write_env(job, env.record(config.seed))
                method = build_method(values, dataset)
                check_segmenter(method)
            env.seed_everything(config.seed, clip.id)
            before = {e.id: present.inputs(clip, e, seen=method.sees_targets) for e in fresh}
            for prediction, grounding in predict_clip(method, clip, fresh):
                if desk.lost:
                    raise StoreError("Another process has taken over.", where=f"{store.root}, clip {clip.id}")
                if grounding is not None and config.keep_maps:
                    store.write_maps(grounding, prediction.sample)
                known = index.get(prediction.sample)
                turn = 0 if known is None else known.turn + known.ok
                out.append(replace(prediction, inputs=before[prediction.expression], turn=turn))
                tally.add(prediction.ok)
                bar.advance(prediction.ok)
                if not prediction.ok:
                    _mind_failure(prediction.sample, todo, tally, desk, store, config)
            out.sync()
        if method is not None:
            # Written again: by now the model's libraries are loaded and can be asked for their kernels.
            store.write_env(job, {**env.record(config.seed), **method_record(method)})
        desk.finish(done=tally.done, failed=tally.failed, gpus=env.gpus())
    if not left(work, store.index(), present):
        forget(store.root)
    return tally


def _mind_failure(sample: str, todo: Work, tally: Tally, desk: Desk, store: RunStore, config: Config) -> None:
    """End the work if no sample can do well, or if too many of the submission's have failed."""
    if not tally.done:
        _refuse_without_frames(todo)
    failures = desk.fail(sample)
    if config.max_failures is not None and failures > config.max_failures:
        desk.stop()
        raise _too_many(store, config)


def _refuse_without_frames(work: Work) -> None:
    """One error in place of one per sample where no frame is on this disk; some methods look at none."""
    if any(path.is_file() for clip, _ in work for path in clip.frame_paths[:1]):
        return
    first = work[0][0].frame_paths[0]
    raise DataError(
        f"None of the frames is there: {len(work)} of {len(work)} clips lack theirs.",
        where=first,
        hint="Put the frames where the first is looked for, or set dataset.root "
        "(dataset.images or dataset.frames for a folder of another name).",
    )


def _too_many(store: RunStore, config: Config) -> RefsegError:
    return RefsegError(
        f"More samples failed than max_failures={config.max_failures} allows.",
        where=store.root,
        hint="`refseg status RUN` shows why; `refseg run` again retries only those.",
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
    config, dataset = load(values), dataset_of(values)
    todo = left(share(plan(dataset), shards)[shard], store.index(), Present(dataset, seen_before(store)))
    tally = Tally()
    job = job_name()
    owner = Owner.here(job, launch, shard=shard, shards=shards)
    with logged(store.root, job), Desk(store.root, owner) as desk:
        method = build_method(values, dataset)
        check_segmenter(method)
        capture = method.capture
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
