"""What a process tells of its work: a bar or lines with an ETA, and a log file in the run folder."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from refseg_bench.files.store_io import printable
from refseg_bench.types import Clip

#: Seconds between two lines of a log.
_EVERY = 15.0


class Progress:
    """Counts samples.

    Args:
        total: samples to do.
        label: what is running.
    """

    def __init__(self, total: int, label: str) -> None:
        self.total, self.label = total, printable(label)
        self.done = self.failed = 0
        self._began = self._told = time.monotonic()
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._clip = ("", 0, 0, 0, 0)
        #: Frames that the segmenter has yielded so far.
        self.tracked: Callable[[], int] = lambda: 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                _Within(self),
                console=Console(file=sys.__stderr__),  # it moves the cursor
            )
            self._bar.start()
            self._task = self._bar.add_task(escape(self.label), total=self.total, note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.done:
            self._line()

    def expect(self, more: int) -> None:
        """The total changes: samples were taken over from another process, or left to it."""
        self.total += more
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)

    def begin(self, clip: Clip, expressions: int) -> None:
        """A clip begins: what the next lines say is of it."""
        self._clip = printable(clip.id), len(clip), expressions, self.done, self.tracked()

    def within(self) -> str:
        """How far the running clip is, in words; empty of an image."""
        clip, frames, expressions, done, tracked = self._clip
        moved = self.tracked() - tracked
        if frames < 2:
            return ""
        return f"{clip} ({frames} frames): {self.done - done}/{expressions} expressions" + (
            f", {moved} frames tracked" if moved else ""
        )

    def beat(self) -> str:
        """:meth:`within`, told in a log that nothing was told in for a while."""
        if self._bar is None and time.monotonic() - self._told >= _EVERY:
            self._line()
        return self.within()

    def advance(self, ok: bool) -> None:
        """One more sample is stored, as a prediction or as a failure."""
        self.done += 1
        self.failed += not ok
        if self._bar is not None:
            note = f"[red]{self.failed} failed" if self.failed else ""
            self._bar.update(self._task, advance=1, note=note)
        elif time.monotonic() - self._told >= _EVERY:
            self._line()

    def _line(self) -> None:
        self._told = time.monotonic()
        rate = self.done / max(self._told - self._began, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.done else ""
        within = f"; {self.within()}" if self.within() and self.done < self.total else ""
        failed = f", {self.failed} failed" if self.failed else ""
        print(
            f"{self.label}: {self.done}/{self.total} samples{failed}, {rate:.2f}/s{left}{within}",
            file=sys.stderr,
            flush=True,
        )


class _Within(ProgressColumn):
    """How far the running clip is."""

    max_refresh = 0.5

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        """The words."""
        return Text(self._progress.within(), style="dim")


class _Traced(logging.Formatter):
    """Adds the traceback that a record carries as ``trace`` (kept out of the terminal)."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, with its traceback."""
        trace = getattr(record, "trace", "")
        return super().format(record) + (f"\n{trace.rstrip()}" if trace else "")


class _Quiet(logging.FileHandler):
    """A log that can't be written must not take the run with it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""


def log_path(root: Path, job: str) -> Path:
    """The log of one process of a run."""
    return root / "log" / f"{job}.log"


@contextlib.contextmanager
def logged(root: Path, job: str) -> Iterator[None]:
    """Copy this package's log records, with tracebacks, to the process's file; no file without a record."""
    handler = _Quiet(log_path(root, job), encoding="utf-8", delay=True)
    handler.setFormatter(_Traced("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("refseg_bench")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
