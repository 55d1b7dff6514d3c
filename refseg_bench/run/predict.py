"""Predict the expressions of one clip: timed, failures apart, with smaller batches where memory runs out.

A component (method, backbone, segmenter) whose work comes in batches has an attribute ``batch_size``:
a transient option, so results must not depend on it. It is a bound: a pass may hold less, and then
halving it once changes nothing.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

from refseg_bench import env
from refseg_bench.config import schema
from refseg_bench.config.component import Component
from refseg_bench.errors import ConfigError, DataError, RefsegError, StoreError, missing_package
from refseg_bench.methods.base import Method
from refseg_bench.types import Clip, Expression, Grounding, Prediction, SampleFailure, sample_id

log = logging.getLogger(__name__)


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
    if is_out_of_memory(failure) and batched(method):
        log.warning("clip %s: out of memory, again with half the batch", clip.id)
        # The tensors that filled the memory hang on the frames of the failure.
        traceback.clear_frames(failure.__traceback__)
        del failure
        with half_batches(method):
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


def is_out_of_memory(error: BaseException) -> bool:
    """True if an accelerator's memory ran out; needs no torch."""
    if any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def batched(method: Method) -> list[tuple[Component, int]]:
    """The method and its parts that could work with a smaller batch, and their batch sizes."""
    parts: list[Component] = [method, *schema.parts(method).values()]
    return [(part, part.batch_size) for part in parts if part.batch_size is not None and part.batch_size > 1]


@contextlib.contextmanager
def half_batches(method: Method) -> Iterator[None]:
    """Within the block every batch is half as large; the memory that failed is given back first."""
    parts = batched(method)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        for part, size in parts:
            object.__setattr__(part, "batch_size", size // 2)  # a component may be frozen
        yield
    finally:
        for part, size in parts:
            object.__setattr__(part, "batch_size", size)
