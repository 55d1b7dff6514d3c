"""Accidents at a chosen step of a command: killed there, or no disk from there on.

A step is a call that changes the disk below one folder: a file created, written, renamed, linked, removed
or synced, a folder made or removed. The command runs in a fork of the test's process, which imports
nothing anew, so that every step of it can be tried.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg_bench.cli import main

#: What fails when a disk is full or broken; renaming and removing go on.
FAILING = frozenset({"create", "write", "sync", "mkdir", "link"})


@dataclass(frozen=True)
class Fault:
    """An accident.

    Attributes:
        at: the step it happens at, from 1; 0 = never.
        number: ``errno`` of every failing call from then on; 0 = the process is killed instead.
    """

    at: int = 0
    number: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: exit code; -9 = killed.
        told: what it printed.
        steps: kinds of the steps it came to, in order.
        places: for each, the calls in the package that led to it; equal for equal ones.
    """

    code: int
    told: str
    steps: tuple[str, ...]
    places: tuple[str, ...]


def command(*words: object, below: Path, fault: Fault | None = None) -> Outcome:
    """Run ``refseg WORDS`` with an accident.

    Args:
        words: after ``refseg``.
        below: the folder it works in, whose changes are steps.
        fault: the accident.
    """
    with tempfile.TemporaryDirectory() as scratch:
        told, steps = Path(scratch, "told"), Path(scratch, "steps")
        child = os.fork()
        if child == 0:
            code = 99
            try:
                for number in (1, 2):
                    os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
                os.chdir(below)
                _Injector(below.resolve(), fault or Fault(), steps).install()
                out = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                    try:
                        code = main([str(word) for word in words])
                    except SystemExit as end:
                        code = int(end.code or 0)
                    except BaseException:
                        traceback.print_exc()
                out.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        taken = steps.read_text().split() if steps.exists() else []
        text = told.read_text(errors="replace") if told.exists() else ""
        return Outcome(os.waitstatus_to_exitcode(status), text, tuple(taken[::2]), tuple(taken[1::2]))


def _place() -> int:
    calls, frame = [], sys._getframe(2)
    while frame := frame.f_back:
        if "refseg_bench" in frame.f_code.co_filename:
            calls.append((frame.f_code, frame.f_lineno))
    return hash(tuple(calls))


class _Injector:
    """Counts the steps of this process, and lets the accident happen."""

    def __init__(self, below: Path, fault: Fault, log: Path) -> None:
        self.below, self.fault = str(below), fault
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.count = 0

    def step(self, kind: str, place: Any, half: Callable[[], Any] = lambda: None) -> None:
        if isinstance(place, int):
            with contextlib.suppress(OSError):
                place = os.readlink(f"/proc/self/fd/{place}")
        # A relative name is one below the folder, or below a folder that is open there.
        path = os.path.join(self.below, os.fsdecode(place) if not isinstance(place, int) else "?")
        if not path.startswith(self.below):
            return
        self.count += 1
        os.write(self.log, f"{kind} {_place()}\n".encode())
        if not self.fault.at or self.count < self.fault.at:
            return
        if not self.fault.number:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if kind in FAILING:
            if self.count == self.fault.at:
                half()
            raise OSError(self.fault.number, os.strerror(self.fault.number), os.fsdecode(place))

    def install(self) -> None:
        """Put the steps before the calls; for good, so only in a process of its own."""
        for kind, name in (
            ("rename", "replace"), ("rename", "rename"), ("link", "link"), ("remove", "unlink"),
            ("remove", "remove"), ("mkdir", "mkdir"), ("rmdir", "rmdir"), ("sync", "fsync"),
        ):  # fmt: skip
            setattr(os, name, self._before(kind, getattr(os, name)))
        opened = os.open

        def open_(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT:
                self.step("create", path)
            return opened(path, flags, *rest, **named)

        os.open = open_
        builtins.open = io.open = self._open(io.open)  # type: ignore[assignment]
        # Copies go through what is counted.
        shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]

    def _before(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(place: Any, *rest: Any, **named: Any) -> Any:
            # A folder that is there needs no room.
            if kind != "mkdir" or not os.path.isdir(place):
                self.step(kind, place)
            return real(place, *rest, **named)

        return call

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        injector = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                some = bytes(data)[: len(data) // 2]
                injector.step("write", self.fileno(), lambda: io.FileIO.write(self, some))
                return super().write(data)

        def open_(
            file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
            newline: Any = None, closefd: bool = True, opener: Any = None,
        ) -> Any:  # fmt: skip
            if not set(mode) & set("wax+"):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if not isinstance(file, int):
                injector.step("create", file)
            raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            buffer = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

        return open_
