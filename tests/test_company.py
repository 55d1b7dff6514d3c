"""A prediction depends on its sample alone: not on its company, its turn, or the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from refseg_bench import env
from refseg_bench.backbones.mllm import MLLM, Session
from refseg_bench.config.compose import compose
from refseg_bench.errors import ConfigError
from refseg_bench.methods.base import Method
from refseg_bench.methods.bounds import RandomPoint
from refseg_bench.methods.decaf import DecAF
from refseg_bench.methods.lexical import Lexical
from refseg_bench.methods.refam import RefAM
from refseg_bench.run.build import dataset_of
from refseg_bench.run.loop import predict_clip
from refseg_bench.segmenters.base import Segmenter
from refseg_bench.segmenters.grabcut import GrabCut
from refseg_bench.types import Clip, Expression, Grounding
from tests import tiny_mllm
from tests.backbones.conftest import dit_folder, make_dit  # noqa: F401
from tests.quick import quick_first
from tests.segmenters.conftest import make_clip, sam2_folder, sam2_package_files  # noqa: F401
from tools import tiny_sam as tiny

FOUR = [
    Expression(str(index), text)
    for index, text in enumerate(
        (
            "the left dog",
            "what is it that jumps over the big red thing on the right?",
            "a cat",
            "the pink cow",
        )
    )
]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def predicted(
    make: Callable[[], Method], clip: Clip, groups: Sequence[Sequence[Expression]], threads: int = 1
) -> dict[str, Grounding]:
    """What a run's loop gets of a clip, group by group, in a process that begins with so many threads."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    found: dict[str, Grounding] = {}
    method = make()
    for group in groups:
        env.seed_everything(0, clip.id)
        for prediction, grounding in predict_clip(method, clip, group):
            assert grounding is not None, prediction.failure
            found[prediction.expression] = grounding
    return found


def check(make: Callable[[], Method], clip: Clip, asked: Sequence[Expression]) -> None:
    """Hold every way to ask for the same expressions against all of them at once."""
    whole = predicted(make, clip, [asked])
    ways: dict[str, tuple[list[Sequence[Expression]], int]] = {
        "one by one": ([[expression] for expression in asked], 1),
        "in two halves": ([asked[: len(asked) // 2], asked[len(asked) // 2 :]], 1),
        "in another order": ([asked[::-1]], 1),
        "on three threads": ([asked], 3),
    }
    for way, (groups, threads) in ways.items():
        other = predicted(make, clip, groups, threads)
        assert list(other) == [expression.id for group in groups for expression in group]
        hold(whole, other, way)


def hold(whole: dict[str, Grounding], other: dict[str, Grounding], way: str) -> None:
    """Hold two predictions of the same expressions against each other, bit by bit."""
    for name, one in whole.items():
        two = other[name]
        assert one.track == two.track, way
        assert (one.point, one.no_target) == (two.point, two.no_target), way
        assert one.details == two.details, way
        assert one.maps.keys() == two.maps.keys()
        for kind, volume in one.maps.items():
            np.testing.assert_array_equal(volume, two.maps[kind], err_msg=f"{kind} map, {way}")


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny_mllm.FAMILIES)
def test_every_mllm(
    name: str,
    make_clip: Callable[..., Clip],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[int] = []
    run = Session._tails
    monkeypatch.setattr(Session, "_tails", lambda *asked: (rows.append(len(asked[2])), run(*asked))[1])

    def make(**other: Any) -> Method:
        options: dict[str, Any] = {"video_tokens": 12, "n_frames": 3, "keypoints": 9}
        return DecAF(tiny_mllm.backbone(name, max_new_tokens=3, **other), mask="attention", **options)

    clip = make_clip(4)
    check(make, clip, FOUR)
    assert set(rows) == {1, 3}  # a prompt on the video, or words alone; a prompt on all its frames
    whole = predicted(make, clip, [FOUR])
    # What an option allows, or memory that others have left, has no say.
    for other in ({"batch_size": 1}, {"batch_size": 3}, {"memory_budget_gb": 0.0}, {"share_prefix": False}):
        hold(whole, predicted(partial(make, **other), clip, [FOUR]), str(other))


@pytest.mark.slow
def test_what_others_left_in_the_cache(make_clip: Callable[..., Clip], tmp_path: Path) -> None:  # noqa: F811
    """Expressions that are read beside others known from before, at the same words' frames and video."""

    def make(*, known: bool) -> Method:
        method = DecAF(
            tiny_mllm.backbone("qwen2_5_vl", max_new_tokens=3), mask="attention", video_tokens=12, n_frames=3
        )
        object.__setattr__(method, "cache_root", tmp_path if known else None)
        return method

    clip = make_clip(4)
    whole = predicted(partial(make, known=False), clip, [FOUR])
    hold(whole, predicted(partial(make, known=True), clip, [FOUR[1:2], FOUR[3:], FOUR]), "beside known ones")
    method = make(known=True)
    assert isinstance(method, DecAF)
    assert method.cached(clip, [expression.text for expression in FOUR]) == 4


@pytest.mark.slow
def test_the_shipped_mllm_on_its_world() -> None:
    """Its layers are wide enough to be split among threads, its answers long enough to differ."""
    (point, *_) = compose(["method=decaf_tiny", "dataset=shapes"])
    data = dataset_of(point.values)
    clip = data.clips()[0]

    def make() -> Method:
        backbone = MLLM(path="shipped:tiny_mllm", dtype="float32", max_new_tokens=8, device="cpu")
        return DecAF(backbone, GrabCut(), video_tokens=48, n_frames=3)

    check(make, clip, data.expressions(clip)[:4])


@pytest.mark.parametrize("mode", quick_first(["concept_stream", "prompt"]))
@pytest.mark.parametrize("family", quick_first(["sd3", "flux", "mochi", "cogvideox", "wan"]))
def test_every_dit(
    family: str,
    mode: str,
    make_dit: Callable[..., Any],  # noqa: F811
    make_clip: Callable[..., Clip],  # noqa: F811
) -> None:
    check(
        lambda: RefAM(make_dit(family, text_mode=mode), mask="threshold", prompt_mode="empty"),
        make_clip(1),
        FOUR,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam2_hf", "grabcut", "sam1", "sam2", "sam3"])
def test_every_segmenter(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_clip: Callable[..., Clip],  # noqa: F811
) -> None:
    segmenter: Segmenter
    if name == "sam1":
        from refseg_bench.segmenters.sam1 import Sam1

        segmenter = Sam1(model=str(tiny.write_sam1(tmp_path / "sam1")), device="cpu")
    elif name == "sam2":
        from refseg_bench.segmenters.sam2 import Sam2

        pytest.importorskip("sam2")
        yaml, checkpoint = request.getfixturevalue("sam2_package_files")["sam2"]
        segmenter = Sam2(checkpoint=checkpoint, architecture=yaml, device="cpu")
    elif name == "sam2_hf":
        from refseg_bench.segmenters.sam2_hf import Sam2Hf

        segmenter = Sam2Hf(model=str(request.getfixturevalue("sam2_folder")["sam2.1"]), device="cpu")
    elif name == "sam3":
        from refseg_bench.segmenters.sam3 import Sam3

        folder = tiny.write_sam3(tmp_path / "sam3")
        segmenter = Sam3(model=str(folder / "tracker"), detector=str(folder / "detector"), device="cpu")
    else:
        segmenter = GrabCut()
    length = 1 if name == "sam1" else 4
    check(lambda: RandomPoint(segmenter, "middle"), make_clip(length), FOUR)


def test_words_alone(make_clip: Callable[..., Clip]) -> None:  # noqa: F811
    check(lambda: Lexical(GrabCut()), make_clip(4), FOUR)


def test_another_number_of_threads_is_another_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fixes them, and how to have more."""
    torch.set_num_threads(3)
    env.seed_everything(0, "clip")
    assert torch.get_num_threads() == 1
    monkeypatch.setenv("REFSEG_THREADS", "2")
    env.seed_everything(0, "clip")
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("REFSEG_THREADS", "many")
    with pytest.raises(ConfigError, match=r"(?s)'many' is no number.*REFSEG_THREADS"):
        env.seed_everything(0, "clip")
