"""A method for tests of the launcher: takes its time, and misbehaves where told."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refseg_bench.config.schema import option
from refseg_bench.run.workers import LEAVING
from refseg_bench.types import Clip, Expression, Grounding, HeatPoint, MaskTrack


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@dataclass
class SlowMethod:
    """A box that hangs on the sample's name and the variant.

    Attributes:
        seconds: time per sample.
        hold: a folder; after its first sample a process leaves its id there, and is at the second one until
            `go` lies there, as many processes are as `meet` says, or it is told to end. So no machine is too
            fast, or too slow, for what happens meanwhile.
        variant: another one, other boxes.
        batch_size, fits: runs out of memory while the first is larger than the second.
        fail_on: samples that fail.
        cache: folder of the capture stage; a line per captured clip goes to its `captured` file.
    """

    seconds: float = option(0.0, transient=True)
    hold: str = option("", transient=True)
    meet: int = option(10**6, transient=True)
    variant: int = 0
    batch_size: int = option(8, transient=True)
    fits: int = option(8, transient=True)
    fail_on: list[str] = dataclasses.field(default_factory=list)
    cache: str = option("", transient=True)

    _first = True

    @staticmethod
    def capture_digest(values: Mapping[str, Any]) -> str:
        return "the same for all variants"

    def capture(self, clip: Clip, expressions: Sequence[Expression]) -> None:
        if self.cache:
            with (Path(self.cache) / "captured").open("a") as out:
                out.write(f"{clip.id} {os.environ.get('SLURM_JOB_ID')}\n")

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        for expression in expressions:
            sample = f"{clip.id}/{expression.id}"
            if sample in self.fail_on:
                raise ValueError(f"told to fail on {sample}")
            if self.batch_size > self.fits:
                raise OutOfMemoryError("CUDA out of memory")
            clip.load([0])
            time.sleep(self.seconds)
            if self.hold and not self._first:
                Path(self.hold).mkdir(exist_ok=True)
                (Path(self.hold) / str(os.getpid())).touch()
                for _ in range(60_000):  # what a failed test leaves behind ends some time
                    there = os.listdir(self.hold)
                    if "go" in there or len(there) >= self.meet or LEAVING.is_set():
                        break
                    time.sleep(0.01)
            self._first = False
            y, x, h, w = hashlib.sha256(f"{self.variant} {sample}".encode()).digest()[:4]
            mask = np.zeros(clip.size, bool)
            mask[y % 12 : y % 12 + 2 + h % 8, x % 16 : x % 16 + 2 + w % 10] = True
            yield Grounding(
                expression,
                MaskTrack.from_masks([np.roll(mask, t) for t in range(len(clip))], clip.size),
                point=HeatPoint(0, y / 255, x / 255, 1.0),
                seconds={"sleep": self.seconds},
            )


@dataclass(frozen=True)
class SlowAnswers:
    """Nothing predicted, never found out; each process that looks leaves its id in a folder."""

    folder: str

    def __call__(self, clip_id: str) -> dict[str, Any]:
        (Path(self.folder) / str(os.getpid())).touch()
        time.sleep(36_000)
        return {}

    def statuses(self, clip_id: str) -> dict[str, Any]:
        return {}
