"""Components small enough to see through: a dataset of made-up clips and methods that misbehave on demand."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from refseg_bench.config import schema
from refseg_bench.config.compose import Composed, Config, digest
from refseg_bench.config.schema import option
from refseg_bench.datasets.base import Dataset
from refseg_bench.files.images import encoded
from refseg_bench.methods.base import Method
from refseg_bench.run.launch import freeze
from refseg_bench.run.store import RunStore
from refseg_bench.types import Clip, Expression, Grounding, HeatPoint, MaskTrack, Target

if TYPE_CHECKING:
    import pytest

REPO = Path(__file__).resolve().parents[1]


def set_back(path: Path, before: os.stat_result) -> None:
    """Give a changed file the time of change that it had, as copying tools do: its status alone tells.

    The clock of many kernels and file systems moves every few milliseconds only.
    """
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@functools.cache
def grey_png(size: tuple[int, int], level: int) -> bytes:
    """A picture of one grey level; hundreds of tests have the same ones."""
    return encoded(Image.fromarray(np.full((*size, 3), level, np.uint8)), "PNG")


@dataclass
class FakeDataset(Dataset):
    """Clips of grey frames with one square each, written on first use; never into the repository."""

    root: Path = option(Path("fake"), transient=True)
    split: str = "val"
    n_clips: int = 4
    n_expressions: int = 3
    n_frames: int = 2
    protocols: list[str] = option(factory=lambda: ["rvos-expr"], transient=True)
    name: str = "fake"

    size = (24, 32)

    def clips(self) -> list[Clip]:
        out = []
        for c in range(self.n_clips):
            folder = self.root / f"clip{c}"
            paths = tuple(folder / f"{t:05d}.png" for t in range(self.n_frames))
            if not folder.is_dir():
                assert not folder.resolve().is_relative_to(REPO), f"{folder}: give a root below tmp_path"
                folder.mkdir(parents=True)
                for t, path in enumerate(paths):
                    path.write_bytes(grey_png(self.size, (10 * c + t) % 256))
            out.append(Clip(f"clip{c}", paths, tuple(p.stem for p in paths), self.size))
        return out

    def expressions(self, clip: Clip) -> list[Expression]:
        return [Expression(str(e), f"the square number {e}") for e in range(self.n_expressions)]

    def square(self, clip: Clip, expression: Expression, frame: int) -> np.ndarray:
        mask = np.zeros(self.size, bool)
        at = 2 + 3 * int(expression.id) + frame
        mask[at : at + 8, at : at + 8] = True
        return mask

    def target(self, clip: Clip, expression: Expression) -> Target:
        masks = [self.square(clip, expression, t) for t in range(len(clip))]
        return Target(self.size, len(clip), (MaskTrack.from_masks(masks, self.size),), ("1",))


@dataclass
class Options:
    """A nested group of options."""

    kernel: int = 3
    mode: Literal["mean", "max"] = "mean"


@dataclass
class FakeMethod(Method):
    """Predicts a fixed square; fails where told."""

    side: int = 8
    fail_on: list[str] = dataclasses.field(default_factory=list)
    options: Options = dataclasses.field(default_factory=Options)
    batch_size: int = option(4, transient=True)

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        for expression in expressions:
            if f"{clip.id}/{expression.id}" in self.fail_on:
                raise ValueError(f"told to fail on {clip.id}/{expression.id}")
            clip.load([0])
            mask = np.zeros(clip.size, bool)
            mask[2 : 2 + self.side, 2 : 2 + self.side] = True
            track = MaskTrack.from_masks([mask] * len(clip), clip.size)
            yield Grounding(
                expression,
                track,
                point=HeatPoint(0, 0.3, 0.3, 1.0),
                maps={"heat": np.full((1, 2, 2), 0.5, np.float32)},
                map_frames={"heat": (0,)},
            )


def fake_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """The values of a composed config around the fakes; ``changes`` replace top-level keys."""
    values = {
        "dataset": {"_target_": "tests.fakes.FakeDataset", "root": str(folder / "data")},
        "method": {"_target_": "tests.fakes.FakeMethod"},
        "paths": {"runs": str(folder / "runs"), "cache": str(folder / "cache")},
        **changes,
    }
    whole = schema.conform(Config, values, "")
    for part in ("dataset", "method"):
        whole[part] = schema.complete(whole[part], part)
    return whole


def fake_run(folder: Path, **changes: Any) -> RunStore:
    """A frozen run of the fakes."""
    values = fake_values(folder, **changes)
    return freeze(Composed(values, "fake", digest(values), (), {"method": "fake", "dataset": "fake"}))


def unlisted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let nobody list a folder, as without the right to, or on a disk that fails (root may list any)."""
    listdir = os.listdir

    def refuse(path: str | Path = ".") -> list[str]:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
