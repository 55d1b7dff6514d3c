"""Clips of the shapes world to train on: drawn once, then shown several times, turned each time.

A clip that is mirrored, turned upside down or played backwards is as true a clip of the world as any other,
once its objects' paths are turned with it: what is said about it is made from the turned paths.

Axes beyond those of ``tools.shapes_world``: ``S`` what may show (0 = ground, k = object k - 1), ``R C`` rows
and columns of cells of 16 x 16 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from refseg_bench.methods.decaf.fusion import sample_frames
from tools.shapes_world import Footage, Scene, World, render, sample_scene

CELL = 16  # pixels of a frame at full size
SMALL = (96, 128)  # pixels of a frame at half size
_MIRRORED = {"left": "right", "right": "left"}
_TUMBLED = {"up": "down", "down": "up"}
_BACKWARDS = _MIRRORED | _TUMBLED


@dataclass(frozen=True)
class Shot:
    """A drawn clip.

    Attributes:
        scene: what is in it.
        footage: its drawn frames.
        small_TCHW: uint8 RGB at half size, ``(T, 3, 96, 128)``.
        shares_TSRC: share of each cell that shows the ground or an object.
    """

    scene: Scene
    footage: Footage
    small_TCHW: NDArray[np.uint8]
    shares_TSRC: NDArray[np.float32]

    def rows(self, chosen: slice) -> Shot:
        """The clip that only these of the drawn frames make."""
        f = self.footage
        footage = Footage(
            f.indices[chosen],
            f.frames_THWC[chosen],
            f.ids_THW[chosen],
            f.whole_TN[chosen],
            f.seen_TN[chosen],
            f.covered_by_TNN[chosen],
            f.full_N,
        )
        return replace(
            self, footage=footage, small_TCHW=self.small_TCHW[chosen], shares_TSRC=self.shares_TSRC[chosen]
        )

    def turned(self, mirrored: bool, tumbled: bool, backwards: bool) -> Shot:
        """The clip left for right, upside down, last frame first."""
        world, f = self.scene.world, self.footage
        y, x, t = (slice(None, None, -1 if turn else None) for turn in (tumbled, mirrored, backwards))
        things = []
        for thing in self.scene.things:
            centre, motion = thing.centre_T2[t].copy(), thing.motion
            if mirrored:
                centre[:, 1] = world.width - 1 - centre[:, 1]
                motion = _MIRRORED.get(motion, motion)
            if tumbled:
                centre[:, 0] = world.height - 1 - centre[:, 0]
                motion = _TUMBLED.get(motion, motion)
            if backwards:
                motion = _BACKWARDS.get(motion, motion)
            things.append(replace(thing, centre_T2=centre, motion=motion))
        last = world.n_frames - 1
        indices = tuple(last - i for i in f.indices[::-1]) if backwards else f.indices
        footage = Footage(
            indices,
            f.frames_THWC[t, y, x],
            f.ids_THW[t, y, x],
            f.whole_TN[t],
            f.seen_TN[t],
            f.covered_by_TNN[t],
            f.full_N,
        )
        return Shot(
            replace(self.scene, things=tuple(things)),
            footage,
            self.small_TCHW[t, :, y, x],
            self.shares_TSRC[t, :, y, x],
        )


def halve(frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames ``(T, 3, 96, 128)`` at half size, resized as the processors do."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
    small = F.interpolate(pixels, SMALL, mode="bicubic", antialias=True, align_corners=False)
    return np.asarray(small.contiguous().numpy())


def shares(ids_THW: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    """Share of each cell that shows the ground (0) or one of ``count`` objects, of every second pixel."""
    thin = ids_THW[:, ::2, ::2].astype(np.int64)
    t, h, w = thin.shape
    side = CELL // 2
    rows, cols = h // side, w // side
    cells = np.arange(t * rows * cols).reshape(t, rows, 1, cols, 1) * (count + 1)
    found = np.bincount(
        (thin.reshape(t, rows, side, cols, side) + cells).ravel(), minlength=t * rows * cols * (count + 1)
    )
    return (found.reshape(t, rows, cols, count + 1).transpose(0, 3, 1, 2) / side**2).astype(np.float32)


def film(scene: Scene, frames: int) -> Shot:
    """Draw a scene's clip, at most so many of its frames, sampled as DecAF does."""
    footage = render(scene, sample_frames(scene.world.n_frames, frames))
    return Shot(scene, footage, halve(footage.frames_THWC), shares(footage.ids_THW, len(scene.things)))


def random_shot(seed: int, frames: int) -> Shot:
    """A clip as varied as the shipped ones: 3 to 5 objects, any difficulty, up to two frames left out."""
    rng = np.random.default_rng([seed, 98])
    length = frames + int(rng.integers(3)) if frames > 1 else 1
    world = World(n_frames=length, difficulty=float(rng.integers(2, 9)) / 10)
    return film(sample_scene(seed, world), frames)


class Shots:
    """A small stock of clips that changes all the time.

    Args:
        frames: of a clip.
        uses: how often a clip is shown on average; 1 draws one whenever one is asked for.
        stock: clips kept.
    """

    def __init__(self, frames: int, uses: float, stock: int = 96) -> None:
        self.frames, self.uses, self.stock = frames, uses, stock
        self.kept: list[Shot] = []

    def draw(self, rng: np.random.Generator, next_seed: Callable[[], int]) -> Shot:
        """One of them, turned at random; often a new one, whose scene's seed is then asked for."""
        if not self.kept or rng.random() < 1 / self.uses:
            if len(self.kept) == self.stock:
                self.kept.pop(int(rng.integers(self.stock)))
            self.kept.append(random_shot(next_seed(), self.frames))
            shot = self.kept[-1]
        else:
            shot = self.kept[int(rng.integers(len(self.kept)))]
        mirrored, tumbled, backwards = (bool(turn) for turn in rng.integers(2, size=3))
        return shot.turned(mirrored, tumbled, backwards)
