"""Progress of a run: a bar with an ETA on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from refseg_bench.files.store_io import printable

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

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=sys.__stderr__),  # it moves the cursor
            )
            self._bar.start()
            self._task = self._bar.add_task(escape(self.label), total=self.total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.done:
            self._line()

    def expect(self, more: int) -> None:
        """The total changes: samples were taken over from another process, or left to it."""
        self.total += more
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)

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
        left = (self.total - self.done) / rate
        failed = f", {self.failed} failed" if self.failed else ""
        print(
            f"{self.label}: {self.done}/{self.total} samples{failed}, {rate:.2f}/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
