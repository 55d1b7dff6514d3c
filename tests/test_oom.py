from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refseg_bench import oom
from refseg_bench.run import predict_clip, work_on
from tests.fakes import FakeDataset, fake_run
from tests.launch.runs import SLOW, lines
from tests.launch.slow import SlowMethod


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes differ"), False),
        (MemoryError(), False),
    ],
)
def test_out_of_memory_is_told_from_other_failures(error: Exception, is_one: bool) -> None:
    assert oom.is_out_of_memory(error) is is_one


def test_half_the_batch_once_and_the_result_is_the_same(tmp_path: Path) -> None:
    whole = fake_run(tmp_path / "whole", method={"_target_": SLOW})
    work_on(whole)
    store = fake_run(tmp_path / "tight", method={"_target_": SLOW, "batch_size": 8, "fits": 4})
    assert work_on(store).failed == 0
    assert lines(store) == lines(whole)


def test_a_quarter_is_not_tried(tmp_path: Path) -> None:
    store = fake_run(tmp_path, method={"_target_": SLOW, "batch_size": 8, "fits": 2})
    assert work_on(store).failed == 12
    assert {p.failure.kind for p in store.failures() if p.failure} == {"OutOfMemoryError"}


def test_the_batch_is_whole_again_for_the_next_clip(tmp_path: Path) -> None:
    data = FakeDataset(root=tmp_path)
    method = SlowMethod(batch_size=8, fits=4)
    clip = data.clips()[0]
    assert all(p.ok for p, _ in predict_clip(method, clip, data.expressions(clip)))
    assert method.batch_size == 8


def test_parts_of_a_method_are_halved_too() -> None:
    class Part:
        batch_size = 6

    class Whole:
        backbone = Part()
        segmenter = None

    whole = Whole()
    with oom.half_batches(whole):
        assert whole.backbone.batch_size == 3
    assert whole.backbone.batch_size == 6
