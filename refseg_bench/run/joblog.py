"""A process's log file in the run folder: what goes wrong, with tracebacks, where `status` can point to."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path


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
    """Copy this package's log records to the process's file; no file where there are none."""
    handler = _Quiet(log_path(root, job), encoding="utf-8", delay=True)
    handler.setFormatter(_Traced("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("refseg_bench")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
