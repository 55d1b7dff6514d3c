"""Hole filling against SciPy's components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from refseg_bench.segmenters.sam2_hf import Sam2Hf
from refseg_bench.segmenters.sam_base import fill_holes


def reference(logits, max_area):
    out = logits.copy()
    for index in np.ndindex(*logits.shape[:2]):
        labels, count = label(logits[index] <= 0, structure=np.ones((3, 3)))
        for region in range(1, count + 1):
            if (labels == region).sum() <= max_area:
                out[index][labels == region] = np.float32(0.1)
    return out


@pytest.mark.parametrize("density", [0.1, 0.4, 0.7])
def test_small_background_components_are_filled(density):
    rng = np.random.default_rng(int(10 * density))
    logits = np.where(rng.random((3, 2, 40, 50)) < density, -1.5, 2.0).astype(np.float32)
    got = fill_holes(torch.from_numpy(logits), 8).numpy()
    assert np.array_equal(got, reference(logits, 8))
    assert (got != logits).any()


def test_no_hole_no_change():
    solid = torch.ones(1, 1, 8, 8)
    assert fill_holes(solid, 8) is solid
    nothing = -torch.ones(2, 1, 8, 8)
    assert fill_holes(nothing, 8) is nothing
    # An exact zero is background, and a component of nine pixels is too large for eight.
    logits = torch.ones(1, 1, 9, 9)
    logits[0, 0, 1, 1:9] = 0.0
    assert fill_holes(logits, 8).min() == pytest.approx(0.1)
    logits[0, 0, 2, 1] = 0.0
    assert fill_holes(logits, 8) is logits


def test_run_record_says_which_filling_was_in_effect(monkeypatch):
    from refseg_bench import env
    from refseg_bench.methods.bounds import CentrePoint, Empty
    from refseg_bench.run.build import method_record

    monkeypatch.setattr(env, "stage_peaks", {})  # what tests before this one measured
    record = method_record(CentrePoint(segmenter=Sam2Hf(fill_holes="off")))
    assert (record["segmenter"]["fill_holes"], record["segmenter"]["hole_area"]) == ("off", 8)
    assert method_record(Empty()) == {}
