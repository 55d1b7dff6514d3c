import numpy as np
import pytest

from refseg_bench.types import MaskTrack
from tools.writers import VideoRecord


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path / "data"))


SIZE = (24, 32)


def frames(length, size=SIZE, seed=0):
    """Flat colours, which survive JPEG nearly unchanged and differ from frame to frame."""
    colours = np.random.default_rng(seed).integers(0, 256, (length, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (length, *size, 3)).copy()


def boxes(length, top=2, left=3, size=SIZE, shift=1):
    """A square that moves right; the masks' exact pixels are known by hand."""
    out = np.zeros((length, *size), bool)
    for t in range(length):
        out[t, top : top + 6, left + shift * t : left + shift * t + 6] = True
    return out


def track(masks):
    return MaskTrack.from_masks(list(masks), masks.shape[1:])


def video(name="0123456789ab", length=4, expressions=None, objects=None, names=(), seed=0, size=SIZE):
    objects = objects if objects is not None else [boxes(length, size=size), boxes(length, 14, 5, size=size)]
    expressions = expressions or [("the first", [0], {}), ("both of them", [0, 1], {})]
    return VideoRecord(name, frames(length, size, seed), [track(o) for o in objects], expressions, names)


def union(target):
    return np.stack([m for m in target.union().masks()])
