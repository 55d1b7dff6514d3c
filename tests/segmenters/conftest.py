"""Small random models of the SAM family and a clip to run them on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from refseg_bench.types import Clip

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory):
    """A clip of a coloured disc that drifts over noise."""

    def make(length=6, size=(60, 90), seed=0, suffix=".png"):
        rng = np.random.default_rng(seed)
        folder = tmp_path_factory.mktemp("clip")
        ground = rng.integers(0, 120, (*size, 3))
        y, x = np.mgrid[: size[0], : size[1]]
        paths = []
        for t in range(length):
            frame = ground.copy()
            disc = (y - size[0] / 2) ** 2 + (x - 20 - 8 * t) ** 2 < 14**2
            frame[disc] = (230, 60 + 10 * t, 40)
            path = folder / f"{t:05d}{suffix}"
            Image.fromarray(frame.astype(np.uint8)).save(path, quality=95)
            paths.append(path)
        return Clip("disc", tuple(paths), tuple(p.stem for p in paths), size)

    return make


@pytest.fixture(scope="session")
def clip(make_clip):
    return make_clip()


@pytest.fixture(scope="session")
def sam2_folder(tmp_path_factory):
    """Release → folder of a small random model for transformers."""
    from tools import tiny_sam as tiny

    return {
        release: tiny.write_sam2(tmp_path_factory.mktemp(f"sam2_hf_{release}"), release=release, seed=seed)
        for release, seed in (("sam2", 3), ("sam2.1", 4))
    }


@pytest.fixture(scope="session")
def sam2_package_files(sam2_folder, tmp_path_factory):
    """Release → (architecture YAML, checkpoint) with the very weights of ``sam2_folder``."""
    from safetensors.torch import load_file

    from tools import sam2_layout

    out = {}
    for release, folder in sam2_folder.items():
        architecture, weights = sam2_layout.write(folder, tmp_path_factory.mktemp(f"sam2_{release}"))
        torch.save({"model": load_file(weights)}, weights.with_suffix(".pt"))
        out[release] = (architecture, weights.with_suffix(".pt"))
    return out
