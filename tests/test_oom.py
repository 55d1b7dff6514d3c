from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refseg_bench.backbones.base import Backbone, RolloutSettings, VisualSettings
from refseg_bench.config import schema
from refseg_bench.config.components import names, options
from refseg_bench.methods.base import Method, PerExpression
from refseg_bench.methods.refam import RefAM
from refseg_bench.run import loop
from refseg_bench.run.build import dataset_of, frozen
from refseg_bench.run.loop import predict_clip, work_on
from refseg_bench.run.shards import plan
from refseg_bench.segmenters.base import Prompt, Segmenter
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack
from tests import tiny_mllm
from tests.backbones.conftest import dit_folder, make_dit  # noqa: F401
from tests.fakes import FakeDataset, FakeMethod, fake_run
from tests.launch.runs import SLOW, lines
from tests.launch.slow import SlowMethod
from tests.quick import quick_first
from tests.segmenters.conftest import sam2_folder, sam2_package_files  # noqa: F401
from tools import tiny_sam as tiny

pytestmark = pytest.mark.usefixtures("shared_passes")


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
    assert loop.is_out_of_memory(error) is is_one


@pytest.mark.parametrize("fits", [4, 1])
def test_the_batch_is_halved_until_it_fits_and_the_result_is_the_same(tmp_path: Path, fits: int) -> None:
    whole = fake_run(tmp_path / "whole", method={"_target_": SLOW})
    work_on(whole)
    store = fake_run(tmp_path / "tight", method={"_target_": SLOW, "batch_size": 8, "fits": fits})
    assert work_on(store).failed == 0
    assert lines(store) == lines(whole)


def test_what_fits_in_no_batch_fails(tmp_path: Path) -> None:
    store = fake_run(tmp_path, method={"_target_": SLOW, "batch_size": 8, "fits": 0})
    assert work_on(store).failed == 12
    assert {p.failure.kind for p in store.failures() if p.failure} == {"OutOfMemoryError"}


def test_the_batch_is_whole_again_for_the_next_clip(tmp_path: Path) -> None:
    data = FakeDataset(root=tmp_path)
    method = SlowMethod(batch_size=8, fits=4)
    clip = data.clips()[0]
    assert all(p.ok for p, _ in predict_clip(method, clip, data.expressions(clip)))
    assert method.batch_size == 8


def test_parts_of_a_method_are_halved_too() -> None:
    @dataclass
    class Part(Backbone):
        batch_size: int = 6

    @dataclass
    class Whole(PerExpression):
        backbone: Backbone
        segmenter: Segmenter | None = None

        def ground(self, clip: Clip, expression: Expression) -> Grounding:
            raise AssertionError

    whole = Whole(Part())
    with loop.half_batches(whole):
        assert whole.backbone.batch_size == 3
    assert whole.backbone.batch_size == 6


# ── the shipped classes ──────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("group", "name"), [(g, name) for g in ("backbone", "segmenter") for name in names(g)]
)
def test_every_shipped_model_can_work_in_smaller_batches(group: str, name: str) -> None:
    node = options(group, name)
    if "device" not in node or "masks" in node:
        return  # no model: grabcut; or one frame at a time, before a segmenter of its own
    option = schema.options(schema.locate(str(node["_target_"]), group))["batch_size"]
    assert option.metadata["transient"]
    assert node["batch_size"] > 1


@dataclass
class Clicks(Method):
    """Eight clicks at once."""

    segmenter: Segmenter

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        with self.segmenter.open(clip) as session:
            found = session.segment(0, [Prompt.click(0.1 + x / 10, 0.5) for x in range(8)])
        for expression, candidates in zip(expressions, found, strict=True):
            yield Grounding(expression, MaskTrack.from_masks([candidates.best()[0]], clip.size))


@dataclass
class Reads(Method):
    """All expressions read from a language model at once."""

    backbone: Any

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        visual = VisualSettings(video_tokens=16)
        with self.backbone.open(clip.load([0]), visual, RolloutSettings()) as session:
            found = session.read(0, [expression.text for expression in expressions], answer=False)
        for expression, reading in zip(expressions, found, strict=True):
            strong = np.full(clip.size, bool(reading.map_Thw.max() > 0))
            yield Grounding(expression, MaskTrack.from_masks([strong], clip.size))


@pytest.fixture
def shipped(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[[str], tuple[Any, Any, str, Callable[..., int]]]:
    """Name → a method around a tiny model of a shipped class, and the call that holds a batch of it."""

    def make(name: str) -> tuple[Any, Any, str, Callable[..., int]]:
        if name == "mllm":
            from refseg_bench.backbones.mllm import Session

            method = Reads(tiny_mllm.backbone("qwen2_5_vl", batch_size=64))
            return method, Session, "_read", lambda self, prefixes, prompts, answer: len(prompts)
        if name == "dit":
            from refseg_bench.backbones.dit import DiT

            dit = request.getfixturevalue("make_dit")("sd3", batch_size=64)
            method = RefAM(dit, mask="threshold", prompt_mode="empty")
            return method, DiT, "_pass", lambda self, scene, queries, options: len(queries)
        if name == "sam1":
            from refseg_bench.segmenters.sam1 import Sam1, Sam1Session

            sam1 = Sam1(model=str(tiny.write_sam1(tmp_path / "sam1")), device="cpu")
            return Clicks(sam1), Sam1Session, "_decode", lambda self, features, prompts, several: len(prompts)
        if name == "sam2":
            from refseg_bench.segmenters.sam2 import Sam2, _PackageCore

            pytest.importorskip("sam2")
            yaml, checkpoint = request.getfixturevalue("sam2_package_files")["sam2"]
            sam2 = Sam2(checkpoint=checkpoint, architecture=yaml, device="cpu")
            return Clicks(sam2), _PackageCore, "decode", lambda self, top, *_, **__: len(top)
        from refseg_bench.segmenters.sam2_hf import HfTrackerCore, Sam2Hf
        from refseg_bench.segmenters.sam3 import Sam3

        segmenter: Segmenter
        if name == "sam2_hf":
            segmenter = Sam2Hf(model=str(request.getfixturevalue("sam2_folder")["sam2"]), device="cpu")
        else:
            folder = tiny.write_sam3(tmp_path / "sam3")
            segmenter = Sam3(model=str(folder / "tracker"), detector=str(folder / "detector"), device="cpu")
        return Clicks(segmenter), HfTrackerCore, "decode", lambda self, top, *_, **__: len(top)

    return make


@pytest.mark.parametrize("name", quick_first(["mllm", "sam1", "dit", "sam2", "sam2_hf", "sam3"], 2))
def test_what_ran_out_is_halved(
    name: str, shipped: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = FakeDataset(root=tmp_path / "data", n_clips=1, n_expressions=8, n_frames=1)
    clip = data.clips()[0]
    method, cls, attribute, size = shipped(name)
    whole = [prediction.track for prediction, _ in predict_clip(method, clip, data.expressions(clip))]
    assert len(whole) == 8
    real, passes = getattr(cls, attribute), []

    def tight(*args: Any, **options: Any) -> Any:
        passes.append(size(*args, **options))
        if passes[-1] > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(*args, **options)

    monkeypatch.setattr(cls, attribute, tight)
    found = [prediction for prediction, _ in predict_clip(method, clip, data.expressions(clip))]
    assert [prediction.failure for prediction in found] == [None] * 8
    assert [prediction.track for prediction in found] == whole
    # The bound of 64 is above the 8 there are: what is in a pass counts.
    assert set(passes) == {8, 4, 2}
    assert [size for _, size in loop.batched(method)] == [64]


def test_on_a_gpu_the_next_clips_frames_are_decoded_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, store, asked = fake_run(tmp_path / "whole"), fake_run(tmp_path / "ahead"), list[list[Path]]()
    monkeypatch.setattr(loop, "read_ahead", lambda paths, *, upright: asked.append(list(paths)))
    monkeypatch.setattr(FakeMethod, "reads", lambda method, clip: range(len(clip)), raising=False)
    work_on(whole)
    assert asked == []
    monkeypatch.setattr(loop.env, "gpus", lambda: 1)
    work_on(store)
    clips = [clip for clip, _ in plan(dataset_of(frozen(store)))]
    assert asked == [list(clip.frame_paths) for clip in clips[1:]]
    assert lines(store) == lines(whole)
