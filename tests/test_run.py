from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg_bench import env
from refseg_bench.config.compose import compose
from refseg_bench.datasets.base import LimitedDataset
from refseg_bench.errors import ConfigError, DataError, RefsegError
from refseg_bench.methods.base import Method
from refseg_bench.methods.decaf import DecAF
from refseg_bench.run.build import build_method, check_parts, dataset_of, frozen
from refseg_bench.run.launch import freeze, launch
from refseg_bench.run.loop import predict_clip, work_on
from refseg_bench.run.shards import plan, share
from refseg_bench.run.store import RunStore
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack
from tests.fakes import FakeDataset, FakeMethod, fake_run, fake_values


def lines(store: RunStore) -> dict[str, dict]:
    """The stored samples without what differs between two runs of the same thing."""
    out = {}
    for path in (store.root / "predictions").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            assert record["sample"] not in out, "a sample was stored twice"
            del record["seconds"], record["peak_mb"], record["check"], record["inputs"][2]
            out[record["sample"]] = record
    return out


def test_a_run_predicts_every_sample_once(tmp_path: Path) -> None:
    store = fake_run(tmp_path)
    tally = work_on(store)
    assert (tally.done, tally.failed) == (12, 0)
    assert set(lines(store)) == {f"clip{c}/{e}" for c in range(4) for e in range(3)}
    assert store.read_maps("clip0/0") == {}
    (record,) = store.environments().values()
    assert {"commit", "dirty", "packages", "seed", "device"} <= set(record)


def test_the_same_command_again_is_a_no_op(tmp_path: Path) -> None:
    store = fake_run(tmp_path)
    work_on(store)
    before = sorted(p.name for p in store.root.rglob("*"))
    assert work_on(fake_run(tmp_path)).done == 0
    assert sorted(p.name for p in store.root.rglob("*")) == before


def test_shards_may_change_between_tries(tmp_path: Path) -> None:
    whole = fake_run(tmp_path / "a")
    work_on(whole)
    store = fake_run(tmp_path / "b")
    work_on(store, shard=1, shards=3)
    assert 0 < len(lines(store)) < 12
    for shard in range(2):
        work_on(store, shard=shard, shards=2)
    assert lines(store) == lines(whole)


def test_failures_are_recorded_and_only_they_are_retried(tmp_path: Path) -> None:
    store = fake_run(
        tmp_path, method={"_target_": "tests.fakes.FakeMethod", "fail_on": ["clip1/0", "clip2/2"]}
    )
    tally = work_on(store)
    assert (tally.done, tally.failed) == (10, 2)
    failed = {p.sample: p.failure for p in store.failures()}
    assert set(failed) == {"clip1/0", "clip2/2"}
    assert failed["clip1/0"].kind == "ValueError"
    assert "told to fail on clip1/0" in failed["clip1/0"].traceback
    (log, *_) = (path.read_text() for path in (store.root / "log").glob("*.log"))
    assert "clip clip1: together its expressions fail, each is tried alone: told to fail on clip1/0" in log
    assert work_on(store).failed == 2
    assert store.done() == {f"clip{c}/{e}" for c in range(4) for e in range(3)} - set(failed)


def test_what_is_wrong_with_one_expression_fails_no_other_of_its_clip(tmp_path: Path) -> None:
    class Reads(FakeMethod):
        def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
            assert all(map(str.strip, (e.text for e in expressions))), "a text that shows nothing"
            if any("the long one" in e.text for e in expressions):
                raise DataError("The expression is too long.")
            yield from super().predict(clip, expressions)

    (clip, *_) = FakeDataset(root=tmp_path).clips()
    texts = ("the dog", "", " \u200b", "?", "the long one")
    said = [Expression(str(place), text) for place, text in enumerate(texts)]
    found = {p.expression: p.failure for p, _ in predict_clip(Reads(), clip, said)}
    told = [found[e.id] and found[e.id].message.partition("\n")[0] for e in said]
    none = "The expression has no words."
    assert told == [None, none, none, None, "The expression is too long."]
    assert not any(p.ok for p, _ in predict_clip(Reads(), clip, said[1:3]))


def test_an_unreadable_frame_fails_its_clip_and_no_other(tmp_path: Path) -> None:
    store = fake_run(tmp_path)
    FakeDataset(root=tmp_path / "data").clips()
    (tmp_path / "data/clip2/00000.png").write_bytes(b"\x89PNG torn")
    tally = work_on(store)
    assert (tally.done, tally.failed) == (9, 3)
    assert {p.failure.kind for p in store.failures()} == {"DataError"}
    assert "00000.png" in next(store.failures()).failure.message


def test_max_failures_stops_a_broken_run(tmp_path: Path) -> None:
    every = [f"clip{c}/{e}" for c in range(4) for e in range(3)]
    store = fake_run(
        tmp_path, method={"_target_": "tests.fakes.FakeMethod", "fail_on": every}, max_failures=2
    )
    with pytest.raises(RefsegError, match="max_failures=2"):
        work_on(store)
    assert len(list(store.failures())) == 3


def test_maps_are_kept_when_asked(tmp_path: Path) -> None:
    store = fake_run(tmp_path, keep_maps=True)
    work_on(store)
    assert store.read_maps("clip3/2")["heat"].shape == (1, 2, 2)


def test_limits(tmp_path: Path) -> None:
    data = FakeDataset(root=tmp_path)
    assert [(c.id, len(es)) for c, es in plan(LimitedDataset(data, 2, 1))] == [("clip0", 1), ("clip1", 1)]
    (only,) = plan(LimitedDataset(data, samples=("clip2/1",)))
    assert (only[0].id, [e.id for e in only[1]]) == ("clip2", ["1"])
    with pytest.raises(ConfigError, match="clip9/9"):
        plan(LimitedDataset(data, samples=("clip9/9",)))
    assert isinstance(dataset_of(fake_values(tmp_path, limit={"clips": 1})), LimitedDataset)
    assert isinstance(dataset_of(fake_values(tmp_path)), FakeDataset)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 12)), max_size=30), st.integers(1, 9))
def test_shards_are_a_balanced_partition(sizes: list[tuple[int, int]], shards: int) -> None:
    work = [
        (Clip(f"c{i}", (Path("x"),) * t, ("x",) * t, (1, 1)), tuple(Expression(str(e), "") for e in range(n)))
        for i, (t, n) in enumerate(sizes)
    ]
    parts = share(work, shards)
    assert sorted(c.id for part in parts for c, _ in part) == sorted(c.id for c, _ in work)
    assert parts == share(list(work), shards)
    loads = [sum(len(c) * len(es) for c, es in part) for part in parts]
    biggest = max((t * n for t, n in sizes), default=0)
    assert max(loads) - min(loads) <= biggest


class Stubborn(FakeMethod):
    """Returns what no method may."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        for expression in expressions:
            if self.wrong == "nothing":
                continue
            size = (3, 3) if self.wrong == "size" else clip.size
            length = len(clip) + (self.wrong == "length")
            answer = Expression("x", "") if self.wrong == "unasked" else expression
            track = [] if self.wrong == "list" else MaskTrack.empty(size, length)
            os.chdir("/" if self.wrong == "folder" else ".")
            yield expression if self.wrong == "expression" else Grounding(answer, track)
            if self.wrong == "twice":
                yield Grounding(answer, track)


class Silent(FakeMethod):
    """Returns nothing at all."""

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> None:
        """Forget to yield."""


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (Silent(), "Silent.predict yields a NoneType in place of a Grounding"),
        (Stubborn("expression"), "yields a Expression in place of a Grounding"),
        (Stubborn("list"), "yields a list in place of a MaskTrack"),
        (Stubborn("folder"), "changes the working folder"),
        (Stubborn("unasked"), "answers expression 'x' of clip clip0 twice or unasked"),
        (Stubborn("twice"), "answers expression '0' of clip clip0 twice or unasked"),
    ],
)
def test_a_method_that_is_written_wrongly_ends_the_run(tmp_path: Path, method: Method, told: str) -> None:
    data, place = FakeDataset(root=tmp_path), Path.cwd()
    clip = data.clips()[0]
    with pytest.raises(ConfigError, match=told):
        list(predict_clip(method, clip, data.expressions(clip)))
    assert Path.cwd() == place


@pytest.mark.parametrize(
    ("wrong", "told"),
    [("nothing", "nothing"), ("size", "(3, 3)"), ("length", "3 masks")],
)
def test_a_method_that_breaks_the_contract_fails_its_samples(tmp_path: Path, wrong: str, told: str) -> None:
    data = FakeDataset(root=tmp_path)
    clip = data.clips()[0]
    results = list(predict_clip(Stubborn(wrong), clip, data.expressions(clip)))
    assert len(results) == 3
    for prediction, grounding in results:
        assert grounding is None
        assert told in prediction.failure.message


def test_a_clip_of_another_frame_size_is_refused(tmp_path: Path) -> None:
    clip = FakeDataset(root=tmp_path).clips()[0]
    with pytest.raises(DataError, match="24, 32"):
        Clip(clip.id, clip.frame_paths, clip.frame_names, (10, 10)).load([0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        (["method=random_point", "segmenter=grabcut", "segmenter.seed=0"], {5}),
        # Clusterings of other starts may end up alike.
        (["method=centre_point", "segmenter=grabcut"], {2, 3, 4, 5}),
        (["method=lexical", "segmenter=grabcut"], {2, 3, 4, 5}),
        (["method=centre_point", "segmenter=grabcut", "segmenter.seed=0"], {1}),
    ],
)
def test_the_seed_moves_what_is_drawn_and_nothing_else(
    overrides: list[str], kinds: set[int], tmp_path: Path
) -> None:
    """Whatever the shards, and whatever ran before in the process."""

    def predicted(seed: int, shards: int = 1, clips: int = 3) -> dict[str, dict]:
        paths = [f"paths.runs={tmp_path}/{clips}-{shards}", f"paths.cache={tmp_path}/cache"]
        limit = [f"limit.clips={clips}", "limit.expressions=2", f"cluster.shards={shards}"]
        (done,) = launch(compose([*overrides, *paths, *limit, f"seed={seed}"]), print, score=False)
        found = lines(done.store)
        return {sample: {key: found[sample].get(key) for key in ("rles", "point")} for sample in found}

    seeds = [predicted(seed) for seed in range(5)]
    assert len({json.dumps(found, sort_keys=True) for found in seeds}) in kinds
    assert predicted(2, shards=2) == seeds[2]
    first = predicted(2, clips=1)
    assert first.items() <= seeds[2].items()


@pytest.mark.slow
def test_the_segmenters_counters_reach_the_run_record(tmp_path: Path) -> None:
    typed = ["method=centre_point", "limit.clips=6", "limit.expressions=1"]
    paths = [f"paths.runs={tmp_path}", f"paths.cache={tmp_path}/cache"]
    (done,) = launch(compose([*typed, *paths]), print, score=False)
    (record,) = [json.loads(path.read_text()) for path in done.store.root.glob("env/*.json")]
    counters = record["segmenter"]["counters"]
    frames = sum(len(record["rles"]) for record in lines(done.store).values())
    clips = len(lines(done.store))
    assert counters["frame_encodings"] == frames
    assert counters["propagated_frames"] == frames - clips
    assert counters["decoder_calls"] == clips
    assert counters["seconds"]["encode"] > 0


def test_a_process_asks_once_what_code_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(env, "git", lambda *words: asked.append(words))
    env.commit.cache_clear()
    try:
        assert [env.record(seed)["commit"] for seed in (0, 1)] == [None, None]
        assert len(asked) == 1
    finally:
        env.commit.cache_clear()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("from_hub", "can't be reached"),
        ("missing_folder", "not there"),
        ("device", "not available here"),
        ("package", "needs the package 'nonsense'"),
        ("whole_package", "needs the package 'nonsense'"),
    ],
)
def test_what_this_machine_lacks_is_told_once_and_fails_no_sample(
    fault: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, devices and packages: nothing of the kind is tried again for every sample."""
    from refseg_bench.backbones import weights as models
    from refseg_bench.segmenters import sam2

    asked: list[str] = []
    monkeypatch.setattr(models, "reachable", lambda: asked.append(fault))
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    options = {
        "from_hub": ["segmenter.repo=nobody/nothing"],
        "missing_folder": ["segmenter.checkpoint=/nowhere/sam2.pt"],
        "device": ["segmenter.device=cuda:99"],
        "package": [],
        "whole_package": [],
    }[fault]
    if fault == "package":

        def lacking(self: object, clip: Clip) -> None:
            raise ModuleNotFoundError("No module named 'nonsense.part'", name="nonsense.part")

        monkeypatch.setattr(sam2.Sam2, "open", lacking)
        monkeypatch.setattr(sam2.Sam2, "weights", lambda self: ())
    if fault == "whole_package":
        monkeypatch.setattr(sam2.Sam2, "packages", ("nonsense",))
    typed = ["method=centre_point", "segmenter=sam2", *options, f"paths.runs={tmp_path}"]
    (done,) = launch(compose([*typed, f"paths.cache={tmp_path}/cache"]), print, score=False)
    assert isinstance(done.error, ConfigError)
    assert told in str(done.error)
    assert not lines(done.store)
    assert asked == ([fault] if fault == "from_hub" else [])


def test_a_missing_segmenter_is_told_before_any_attention_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecAF, "predict", lambda *args: pytest.fail("the model was asked first"))
    typed = ["method=decaf", "backbone=tiny_mllm", "segmenter=sam2", "segmenter.checkpoint=/nowhere/sam2.pt",
             f"paths.runs={tmp_path}", f"paths.cache={tmp_path}/cache"]  # fmt: skip
    (done,) = launch(compose(typed), print, score=False)
    assert "weights of segmenter=sam2 are not there" in str(done.error)
    assert not done.store.index()
    (coarse,) = compose([*typed, "method.mask=attention"])
    check_parts(build_method(coarse.values, dataset_of(coarse.values)))


def test_frozen_values_are_read_back(tmp_path: Path) -> None:
    store = fake_run(tmp_path, seed=7)
    assert frozen(store)["seed"] == 7
    assert np.isclose(frozen(store)["score"]["confidence"], 0.95)


def test_a_set_without_its_pictures_is_told_once(tmp_path: Path) -> None:
    from tools.writers import ImageRecord, write_refcoco_set

    picture = np.full((24, 32, 3), 90, np.uint8)
    square = [[4, 4, 20, 4, 20, 16, 4, 16]]
    write_refcoco_set(
        tmp_path / "set", [ImageRecord(f"{n}.jpg", picture, [square], [([0], ["it"])]) for n in "ab"]
    )
    for file in (tmp_path / "set").rglob("*.jpg"):
        file.unlink()
    words = ["dataset=refcoco_unc", f"dataset.root={tmp_path / 'set'}", f"paths.runs={tmp_path}"]
    words.append(f"paths.cache={tmp_path}")
    (point,) = compose([*words, "method=lexical", "segmenter=grabcut"])
    store = freeze(point)
    with pytest.raises(DataError, match="2 of 2 clips"):
        work_on(store)
    # What looks at no frame needs none.
    (point,) = compose([*words, "method=empty"])
    assert work_on(freeze(point)).done == 2
