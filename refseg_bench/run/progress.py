"""What a process tells of its work: a bar or lines with an ETA, and a log file in the run folder."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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

from refseg_bench.errors import printable
from refseg_bench.types import Clip

#: Seconds between two lines of a log.
_EVERY = 15.0


@dataclass
class _Row:
    total: int
    title: str
    done: int = 0
    failed: int = 0
    bar: TaskID | None = None


class Progress:
    """Counts the samples of one or more runs: a bar each on a terminal, a line now and then in a log.

    ``totals``: folder of each run → samples to do.
    """

    def __init__(self, totals: Mapping[str, int]) -> None:
        short = Counter(Path(run).name for run in totals)
        titles = {run: run if short[Path(run).name] > 1 else Path(run).name for run in totals}
        self._rows = {run: _Row(total, printable(titles[run])) for run, total in totals.items()}
        self._began = self._told = time.monotonic()
        self._bars: RichProgress | None = None
        #: The run at work, its clip, that clip's frames and expressions, and what was done before it.
        self._clip: tuple[str, str, int, int, int, int]
        #: Frames that the segmenter has yielded so far.
        self.tracked: Callable[[], int]
        self.end()

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and self._rows:
            self._bars = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                _Within(self),
                console=Console(file=sys.__stderr__),  # it moves the cursor
            )
            for name, row in self._rows.items():
                row.bar = self._bars.add_task(
                    escape(row.title), start=False, total=row.total, note="", run=name
                )
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()
        elif any(row.done for row in self._rows.values()):
            self._line()

    def expect(self, name: str, more: int) -> None:
        """A run's total changes: samples were taken over from another process, or left to it."""
        self._rows[name].total += more
        self._show(name)

    def begin(self, name: str, clip: Clip, expressions: int) -> None:
        """A clip of a run begins: what the next lines say is of it."""
        done = self._rows[name].done
        self._clip = name, printable(clip.id), len(clip), expressions, done, self.tracked()
        self._show(name)

    def end(self) -> None:
        """No clip is at work any more; the method that counted frames is let go."""
        self._clip, self.tracked = ("", "", 0, 0, 0, 0), lambda: 0

    def within(self, name: str | None = None) -> str:
        """How far the clip at work is, in words; empty of an image, and of another run than is named."""
        run, clip, frames, expressions, done, tracked = self._clip
        if frames < 2 or name not in (None, run):
            return ""
        moved = self.tracked() - tracked
        return f"{clip} ({frames} frames): {self._rows[run].done - done}/{expressions} expressions" + (
            f", {moved} frames tracked" if moved else ""
        )

    def beat(self) -> str:
        """:meth:`within`, told in a log that nothing was told in for a while."""
        if self._bars is None and time.monotonic() - self._told >= _EVERY:
            self._line()
        return self.within()

    def advance(self, name: str, ok: bool) -> None:
        """One more sample of a run is stored, as a prediction or as a failure."""
        row = self._rows[name]
        self.count(name, row.done + 1, row.failed + (not ok))

    def count(self, name: str, done: int, failed: int) -> None:
        """So many samples of a run are stored, so many of them as failures."""
        row = self._rows[name]
        if (done, failed) != (row.done, row.failed):
            row.done, row.failed = done, failed
            self._show(name)
            self.beat()

    def _show(self, name: str) -> None:
        row = self._rows[name]
        if self._bars is not None and row.bar is not None:
            self._bars.start_task(row.bar)
            note = f"[red]{row.failed} failed" if row.failed else ""
            self._bars.update(row.bar, completed=row.done, total=row.total, note=note)

    def _line(self) -> None:
        self._told = time.monotonic()
        rows = self._rows.values()
        done, total = sum(row.done for row in rows), sum(row.total for row in rows)
        told = [
            f"{row.title}: {row.done}/{row.total} samples{f', {row.failed} failed' * bool(row.failed)}"
            for row in rows
            if len(rows) == 1 or 0 < row.done < row.total
        ]
        if len(rows) > 1:
            told.append(f"all {len(rows)} runs: {done}/{total} samples")
        rate = done / max(self._told - self._began, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if done else ""
        within = f"; {self.within()}" if self.within() and done < total else ""
        print(f"{'; '.join(told)}, {rate:.2f}/s{left}{within}", file=sys.stderr, flush=True)


class _Within(ProgressColumn):
    """How far the running clip is."""

    max_refresh = 0.5

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        """The words."""
        return Text(self._progress.within(task.fields["run"]), style="dim")


class _Traced(logging.Formatter):
    """Adds the traceback that a record carries as ``trace`` (kept out of the terminal)."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, with its traceback."""
        trace = getattr(record, "trace", "")
        return super().format(record) + (f"\n{trace.rstrip()}" if trace else "")


def log_path(root: Path, job: str) -> Path:
    """The log of one process of a run."""
    return root / "log" / f"{job}.log"


@contextlib.contextmanager
def logged(root: Path, job: str) -> Iterator[None]:
    """Copy this package's log records, with tracebacks, to the process's file; no file without a record."""
    handler = logging.FileHandler(log_path(root, job), encoding="utf-8", delay=True)
    # A log that can't be written must not take the run with it.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    handler.setFormatter(_Traced("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("refseg_bench")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
