"""Clips spread over processes that each have a data set of their own, results in a fixed order."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from refseg_bench.config.schema import adopt
from refseg_bench.datasets.base import Dataset
from refseg_bench.env import cores
from refseg_bench.errors import ScoreError
from refseg_bench.files import compiled
from refseg_bench.types import Clip

T = TypeVar("T")


@dataclass(frozen=True)
class _Portable:
    """A dataset as its class and options, so that a worker builds its own with its own open files."""

    made: Any
    cls: type | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Any) -> _Portable:
        if dataclasses.is_dataclass(dataset) and not isinstance(dataset, type):
            options = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset) if f.init}
            parts = {k: cls.of(v) if dataclasses.is_dataclass(v) else v for k, v in options.items()}
            return cls(None, type(dataset), parts)
        return cls(dataset)

    def build(self) -> Any:
        if self.cls is None:
            return self.made
        if hasattr(self.cls, "clips") and not issubclass(self.cls, Dataset):
            # A class that doesn't inherit has the kind's hooks in the parent only.
            adopt(self.cls, Dataset, "dataset")
        return self.cls(**{k: v.build() if isinstance(v, _Portable) else v for k, v in self.fields.items()})


#: What a worker process was given.
_worker: tuple[_Portable, Callable[[Any, Clip], Any]]


def _start_worker(portable: _Portable, work: Callable[[Any, Clip], Any]) -> None:
    import logging

    global _worker
    _end_with_parent()
    # The parent opens the same files, and says what there is to say about them.
    logging.disable()
    _quiet_threads()
    _worker = portable, work


def _end_with_parent() -> None:
    """A pool's process would wait for its next clip for ever once its parent has been killed."""
    import multiprocessing
    import threading

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started here don't hear Ctrl-C, which a terminal sends to all: their parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def _own() -> tuple[Any, Sequence[Clip]]:
    # Made with the first clip: an error at the start would be told as a process that was killed.
    dataset = _worker[0].build()
    return dataset, dataset.clips()


def _work(index: int) -> Any:
    dataset, clips = _own()
    return _worker[1](dataset, clips[index])


def _quiet_threads() -> None:
    """One thread per process: the clips are what is spread."""
    if compiled.KERNEL is not None:
        compiled.KERNEL.keep_pages()
    else:
        import cv2

        cv2.setNumThreads(1)


def over_clips(dataset: Dataset, work: Callable[[Any, Clip], T], jobs: int | None) -> Iterator[T]:
    """What ``work(dataset, clip)`` returns for all clips in their order, whichever process finishes first.

    Args:
        dataset: with more than one process a dataclass (workers rebuild it from its fields) or picklable.
        work: picklable.
        jobs: processes; ``None`` = as many as pay, of the cores given to this process.

    Raises:
        ScoreError: a process was killed.
    """
    clips = dataset.clips()
    # A process costs about as much CPU to start as scoring a few hundred frames.
    sensible = min(cores(), 1 + sum(map(len, clips)) // 400)
    jobs = min(jobs or sensible, len(clips))
    if jobs <= 1:
        _quiet_threads()
        yield from (work(dataset, clip) for clip in clips)
        return
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (_Portable.of(dataset), work))
    waiting: list[Future[T]] = []
    try:
        # A bounded window: results in flight stay few however many clips there are.
        for index in range(len(clips)):
            with _deaf_children():
                waiting.append(pool.submit(_work, index))
            if len(waiting) >= 4 * jobs:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    except BrokenProcessPool as error:
        raise ScoreError(
            "A scoring process was killed (out of memory?).", hint="Use fewer processes: -j 1"
        ) from error
    except BaseException:
        # Nobody waits for what they are at.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
