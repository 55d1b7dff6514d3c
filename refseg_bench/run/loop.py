"""The loop: what is left of a run → predict → append, clip by clip, failures apart."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import sys
import time
import traceback
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from refseg_bench import env
from refseg_bench.config import schema
from refseg_bench.config.compose import Config, load
from refseg_bench.datasets.files import HINTS, wordless
from refseg_bench.errors import ConfigError, DataError, RefsegError, StoreError, TakenOver, missing_package
from refseg_bench.files.images import read_ahead
from refseg_bench.methods.base import Method
from refseg_bench.run.build import build_method, check_parts, dataset_of, frozen, method_record, weights_of
from refseg_bench.run.inputs import Present, seen_before
from refseg_bench.run.progress import Progress, logged
from refseg_bench.run.shards import Tally, Work, failed_by, left, plan, queue, share, wanted, without_outcome
from refseg_bench.run.store import RunStore, job_name
from refseg_bench.run.summary import summarize
from refseg_bench.run.workers import Desk, Owner, forget, leave
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack, Prediction, SampleFailure, sample_id

log = logging.getLogger(__name__)
#: Seconds between two looks at what other processes have stored; each asks about every file of predictions.
_LOOK = 5.0
#: Most bytes of the next clip's frames that are decoded meanwhile.
_AHEAD_BYTES = 256 << 20


def work_on(
    store: RunStore,
    *,
    shard: int | None = 0,
    shards: int = 1,
    launch: str | None = None,
    steal: bool = False,
    progress: Progress | None = None,
) -> Tally:
    """Predict what is left of a frozen run, or one shard of it.

    Args:
        store: the run folder; nothing but its frozen config is read.
        shard: this process's part, from 0; ``None`` = all, begun at a place of its own.
        shards: how many parts; may differ from one try to the next.
        launch: the submission this process belongs to; its frozen values hold what can't change
            predictions (batch sizes, devices). By default one of its own.
        steal: when its part is through, go on with clips of other parts that nobody has started.
        progress: of all of the run, and of others; by default of this part alone.

    Raises:
        ConfigError: the run can't work at all (a package or a file of the model is missing).
        StoreError: predictions can't be written; what was finished is kept.
        RefsegError: more samples failed than ``max_failures`` allows.
    """
    values = frozen(store, launch)
    config, dataset = load(values), dataset_of(values)
    work, present = plan(dataset), Present(dataset, seen_before(store), weights_of(values, dataset))
    parts, part, index = share(work, shards), shard or 0, store.index()
    todo = left(queue(parts, part) if steal else parts[part], index, present)
    todo = wanted(todo, index, config.cluster)
    tally, job = Tally(), job_name()
    if not todo:
        return tally
    if shard is None:
        # Workers without parts would all ask for the same clip at the same time.
        begin = zlib.crc32(job.encode()) % len(todo)
        todo = todo[begin:] + todo[:begin]
    owner = Owner.here(job, launch or job, shard=part, shards=shards)
    mine = wanted(left(parts[part], index, present), index, config.cluster)
    own = {clip.id: len(expressions) for clip, expressions in mine}
    whole = {clip.id: expressions for clip, expressions in work}
    method: Method | None = None
    looked = -math.inf  # who ended before this process left its record may have dropped the claims
    name = str(store.root)
    with (
        logged(store.root, job),
        Desk(store.root, owner) as desk,
        store.writer(job) as out,
        contextlib.nullcontext(progress) if progress else Progress({name: sum(own.values())}) as bar,
    ):
        for (clip, expressions), after in zip(todo, [*todo[1:], None], strict=True):
            leave()
            if desk.stopped:
                raise _too_many(store, config)
            if time.monotonic() - looked > _LOOK:
                index, looked = store.index(), time.monotonic()
            fresh = present.open(index, clip, expressions)
            # Of all that is open: a process that failed at what is wanted here may be at the clip's others.
            failed = failed_by(clip, present.open(index, clip, whole[clip.id]), index)
            if not fresh or not desk.take(clip.id, failed, lost=bool(without_outcome(clip, fresh, index))):
                if progress is None:
                    bar.expect(name, -own.get(clip.id, 0))
                continue
            if not desk.first:
                # A former owner may have stored some of them since.
                index, looked = store.index(), time.monotonic()
                fresh = present.open(index, clip, expressions)
                if desk.again:
                    fresh = without_outcome(clip, fresh, index)  # what failed was tried
            if progress is None:
                bar.expect(name, len(fresh) - own.get(clip.id, 0))
            if not fresh:
                continue
            if method is None:
                store.write_env(job, env.record(config.seed))
                env.stage_peaks.clear()
                method = build_method(values, dataset)
                check_parts(method)
                bar.tracked, desk.now = partial(_tracked, method), bar.beat
            if env.gpus() and after is not None:
                first = method.reads(after[0])[: _AHEAD_BYTES // (3 * math.prod(after[0].size))]
                read_ahead((after[0].frame_paths[index] for index in first), upright=after[0].upright)
            bar.begin(name, clip, len(fresh))
            env.seed_everything(config.seed, clip.id)
            before = {e.id: present.inputs(clip, e, seen=method.sees_targets) for e in fresh}
            for prediction, grounding in predict_clip(method, clip, fresh):
                if desk.lost:
                    raise TakenOver("Another process has taken over.", where=f"{store.root}, clip {clip.id}")
                if config.keep_maps:
                    store.write_pictures(prediction.pictures)
                    if grounding is not None:
                        store.write_maps(grounding, prediction.sample)
                if present.weights is None:
                    present.weights = weights_of(values, dataset)  # fetched by now
                inputs = replace(before[prediction.expression], weights=present.weights or "")
                out.append(replace(prediction, inputs=inputs, turn=store.turn(prediction.sample)))
                tally.add(prediction.ok)
                bar.advance(name, prediction.ok)
                if not prediction.ok:
                    _mind_failure(prediction.sample, todo, tally, desk, store, config)
                leave()
            out.sync()
        if method is not None:
            # Written again: by now the model's libraries are loaded and can be asked for their kernels.
            store.write_env(job, {**env.record(config.seed), **method_record(method)})
        desk.finish(done=tally.done, failed=tally.failed, gpus=env.gpus())
    if not left(work, store.index(), present):
        forget(store.root, desk.census)
    if method is not None and not method.sees_targets and len(store.index()) == sum(map(len, whole.values())):
        with contextlib.suppress(StoreError):
            summarize(store, work, present)  # all have an outcome: who asks for the status finds it
    tally.settle(left(mine, store.index(), present), store.index())
    return tally


def _tracked(method: Method) -> int:
    """Frames that the method's segmenter has yielded so far."""
    counted = getattr(getattr(method, "segmenter", None), "counted", None)
    return counted().propagated_frames if counted else 0


def _mind_failure(sample: str, todo: Work, tally: Tally, desk: Desk, store: RunStore, config: Config) -> None:
    """End the work if no sample can do well, or if too many of the submission's have failed."""
    if not tally.done:
        _refuse_without_frames(todo)
    if config.max_failures is not None and desk.fail(sample) > config.max_failures:
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


def capture_on(store: RunStore, *, shard: int, shards: int, launch: str | None) -> Tally:
    """Fill the attention cache for one shard of a run, and predict nothing.

    A clip that fails is left to the run itself, which meets the same failure and records it. ``launch``: the
    submission this process belongs to; ``None`` = one of its own.
    """
    values = frozen(store, launch)
    config, dataset = load(values), dataset_of(values)
    present = Present(dataset, seen_before(store), weights_of(values, dataset))
    todo = left(share(plan(dataset), shards)[shard], store.index(), present)
    tally = Tally()
    job = job_name()
    owner = Owner.here(job, launch or job, shard=shard, shards=shards)
    with logged(store.root, job), Desk(store.root, owner) as desk:
        method = build_method(values, dataset)
        check_parts(method)
        for clip, expressions in todo:
            env.seed_everything(config.seed, clip.id)
            try:
                method.capture(clip, expressions)
                tally.done += len(expressions)
            except (ConfigError, ImportError):
                raise
            except Exception as error:
                log.warning("capture of clip %s failed: %s", clip.id, error)
                tally.failed += len(expressions)
        desk.finish(done=0, failed=0, gpus=env.gpus())
    return tally


def predict_clip(
    method: Method, clip: Clip, expressions: Sequence[Expression]
) -> Iterator[tuple[Prediction, Grounding | None]]:
    """Predict all expressions of a clip; one that fails, or shows nothing, does not take the others with it.

    Where the accelerator's memory runs out, what is left of the clip is tried again with half the
    batch, down to batches of one.
    """
    failure: Exception = DataError("The expression has no words.", hint=HINTS["empty expression"])
    yield from ((_failed(clip, e, failure), None) for e in expressions if wordless(e.text))
    if not (expressions := [e for e in expressions if not wordless(e.text)]):
        return
    open_ids = {e.id: e for e in expressions}
    try:
        for prediction, grounding in _timed(method, clip, expressions):
            open_ids.pop(grounding.expression.id)
            yield prediction, grounding
        failure = RefsegError("The method returned nothing for this expression.")
    except (ConfigError, StoreError):
        raise
    except ImportError as error:
        # As missing weights and devices are: of this machine, not of the sample.
        raise missing_package(type(method).__name__, error.name or str(error)) from error
    except Exception as error:
        failure = error
    if not open_ids:
        return
    if is_out_of_memory(failure) and batched(method):
        log.warning("clip %s: out of memory, again with half the batch", clip.id)
        # The tensors that filled the memory hang on the frames of the failure.
        traceback.clear_frames(failure.__traceback__)
        del failure
        with half_batches(method):
            yield from predict_clip(method, clip, list(open_ids.values()))
        return
    # One by one: with a single expression left, or a frame that can't be read, the culprit is known.
    unread = isinstance(failure, DataError) and str(failure.where) in map(str, clip.frame_paths)
    alone = len(expressions) == 1 or unread
    if not alone:
        log.warning("clip %s: together its expressions fail, each is tried alone: %s", clip.id, failure)
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
    place, found = os.getcwd(), method.predict(clip, expressions)
    for grounding in found if isinstance(found, Iterable) else [found]:
        for part, kind in ((grounding, Grounding), (getattr(grounding, "track", None), MaskTrack)):
            if not isinstance(part, kind):
                raise _misbehaved(method, f"yields a {type(part).__name__} in place of a {kind.__name__}")
        if os.getcwd() != place:
            os.chdir(place)
            raise _misbehaved(method, "changes the working folder, from which the run's paths are taken")
        seconds = {**grounding.seconds, "total": time.perf_counter() - began}
        expression = grounding.expression
        if expression.id not in wanted:
            raise _misbehaved(
                method, f"answers expression '{expression.id}' of clip {clip.id} twice or unasked"
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
                pictures=grounding.pictures,
            ),
            grounding,
        )
        memory.start()
        began = time.perf_counter()


def _misbehaved(method: Method, what: str) -> ConfigError:
    """The error of a method that is written in another way than :class:`Method` says."""
    hint = "Yield one Grounding(expression, MaskTrack.from_masks(masks, clip.size)) for each expression."
    return ConfigError(f"{type(method).__name__}.predict {what}.", hint=hint)


def _failed(clip: Clip, expression: Expression, error: Exception) -> Prediction:
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    log.error("sample %s failed: %s", sample_id(clip.id, expression.id), error, extra={"trace": trace})
    # An error of another library may have something of that name, too.
    details, pictures = getattr(error, "details", {}), getattr(error, "pictures", {})
    return Prediction(
        sample=sample_id(clip.id, expression.id),
        clip=clip.id,
        expression=expression.id,
        failure=SampleFailure(type(error).__name__, str(error), trace),
        details=details if isinstance(details, Mapping) else {},
        pictures=pictures if isinstance(pictures, Mapping) else {},
    )


def is_out_of_memory(error: BaseException) -> bool:
    """True if an accelerator's memory ran out; needs no torch."""
    if any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def batched(method: Method) -> list[tuple[schema.Component, int]]:
    """The method and its parts that could work with a smaller batch, and their batch sizes."""
    parts: list[schema.Component] = [method, *schema.parts(method).values()]
    return [(part, part.batch_size) for part in parts if part.batch_size is not None and part.batch_size > 1]


@contextlib.contextmanager
def half_batches(method: Method) -> Iterator[None]:
    """Within the block every batch is half as large; the memory that failed is given back first."""
    parts = batched(method)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    try:
        for part, size in parts:
            object.__setattr__(part, "batch_size", size // 2)  # a component may be frozen
        yield
    finally:
        for part, size in parts:
            object.__setattr__(part, "batch_size", size)
