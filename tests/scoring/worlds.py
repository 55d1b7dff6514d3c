"""Small made-up datasets and predictions for scoring tests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refseg_bench.datasets.base import Dataset
from refseg_bench.scoring.sources import ClipPredictions, State, Survey, state_of
from refseg_bench.types import Clip, Expression, MaskTrack, Prediction, SampleFailure, Target


def blobs(rng, size, length, *, late=0):
    """A moving ellipse as boolean masks ``(T, H, W)``; absent before frame ``late``."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.2, 0.8, 2) * size
    vy, vx = rng.uniform(-2, 2, 2)
    ry, rx = rng.uniform(0.1, 0.3, 2) * size
    out = np.zeros((length, height, width), bool)
    for t in range(late, length):
        out[t] = ((y - cy - vy * t) / ry) ** 2 + ((x - cx - vx * t) / rx) ** 2 <= 1
    return out


def shaken(rng, masks):
    """A wrong answer: the masks moved a little, sometimes dropped."""
    out = np.roll(masks, tuple(rng.integers(-3, 4, 2)), (1, 2))
    out[rng.random(len(out)) < 0.1] = False
    return out


def track(masks):
    return MaskTrack.from_masks(masks, masks.shape[1:])


def answer(clip, expression, masks, **more):
    made = track(masks) if isinstance(masks, np.ndarray) else masks
    return Prediction(f"{clip.id}/{expression.id}", clip.id, expression.id, made, **more)


def failed(clip, expression):
    failure = SampleFailure("ValueError", "no", "Traceback …")
    return Prediction(f"{clip.id}/{expression.id}", clip.id, expression.id, None, failure)


@dataclass
class World(Dataset):
    """A dataset in memory; everything follows from its options, so workers rebuild it."""

    clip_count: int = 4
    length: int = 6
    height: int = 40
    width: int = 56
    seed: int = 0
    hidden: bool = False
    name: str = field(default="world", init=False)
    split: str = field(default="test", init=False)

    def __post_init__(self):
        self._clips, self._samples = [], {}
        size = (self.height, self.width)
        for c in range(self.clip_count):
            rng = np.random.default_rng([self.seed, c])
            names = tuple(f"{t:05d}" for t in range(self.length))
            clip = Clip(f"set/v{c}", tuple(Path(f"/none/{n}.jpg") for n in names), names, size)
            self._clips.append(clip)
            self._samples[clip.id] = []
            for e in range(3):
                objects = [blobs(rng, size, self.length, late=e % 2) for _ in range(1 + e % 2)]
                if e == 2 and c % 2:
                    objects = []
                made = Target(
                    size,
                    self.length,
                    tuple(track(o) for o in objects),
                    tuple(str(i + 1) for i in range(len(objects))),
                )
                expression = Expression(str(e), f"thing {e}", {"type": e})
                self._samples[clip.id].append((expression, made))

    def clips(self):
        return self._clips

    def expressions(self, clip):
        return [e for e, _ in self._samples[clip.id]]

    def target(self, clip, expression):
        if self.hidden:
            return None
        return next(t for e, t in self._samples[clip.id] if e is expression or e.id == expression.id)


@dataclass(frozen=True)
class Guesses:
    """Predictions about a world: shaken truths; ``drop``/``fail`` name samples."""

    world: World
    noise: int = 1
    drop: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()
    gap: tuple[str, ...] = ()

    def __call__(self, clip_id):
        clip = next(c for c in self.world.clips() if c.id == clip_id)
        out = {}
        for index, expression in enumerate(self.world.expressions(clip)):
            name = f"{clip_id}/{expression.id}"
            rng = np.random.default_rng([self.noise, index, len(clip_id)])
            if name in self.drop:
                continue
            if name in self.fail:
                out[expression.id] = failed(clip, expression)
                continue
            truth = np.stack(list(self.world.target(clip, expression).union().masks()))
            made = track(truth if self.noise == 0 else shaken(rng, truth))
            if name in self.gap:
                made = MaskTrack(made.size, (*made.rles[:2], None, *made.rles[3:]))
            out[expression.id] = answer(clip, expression, made)
        return out


@dataclass(frozen=True)
class LookupSource:
    """Predictions by clip id from a function, with the statuses a store may know more cheaply."""

    lookup: Callable[[str], Mapping[str, Prediction]]
    name: str = "run"
    statuses: Callable[[str], Mapping[str, str]] | None = None

    def survey(self, clip, expressions):
        if self.statuses is not None:
            known = self.statuses(clip.id)
            return Survey({e.id: State(known.get(e.id, "missing")) for e in expressions})
        found = self.lookup(clip.id)
        return Survey({e.id: state_of(found.get(e.id), clip) for e in expressions})

    def predictions(self, clip, expressions, *, labels, samples):
        found = self.lookup(clip.id)
        return ClipPredictions({e.id: found[e.id] for e in expressions if e.id in found})
