"""`long-rvos` and `groundmore` by hand: never present, present once, missing files, another size."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from refseg_bench.cli import main
from refseg_bench.config.components import open_protocol
from refseg_bench.datasets.groundmore import GroundMore
from refseg_bench.datasets.long_rvos import LongRvos
from refseg_bench.errors import ConfigError, ScoreError
from refseg_bench.scoring.foreign import open_predictions
from refseg_bench.scoring.score import Options, score
from refseg_bench.scoring.sources import IncompleteError
from refseg_bench.scoring.stats import Bootstrap
from tests.datasets.conftest import boxes, video
from tools.writers import write_groundmore_set, write_long_rvos_set

ONE = Options(jobs=1, detail=True, bootstrap=Bootstrap(resamples=0))
SIZE = (24, 32)


def shown(*frames, length=4):
    """A square that shows in these frames only."""
    masks = boxes(length)
    masks[[t for t in range(length) if t not in frames]] = False
    return masks


def write(folder, masks, *frames, size=SIZE):
    """A PNG per frame, or of these frames only."""
    folder.mkdir(parents=True, exist_ok=True)
    for t in frames or range(len(masks)):
        picture = Image.fromarray(masks[t].astype(np.uint8) * 255)
        picture.resize(size[::-1], Image.Resampling.NEAREST).save(folder / f"{t:05d}.png")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Clip a: shown in frames 0 and 1, never shown, shown in frame 2 only. Clip b: shown in all."""
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    words = [("both", [0], {}), ("never", [1], {"type": "dynamic"}), ("once", [2], {"type": "hybrid"})]
    clips = [
        video("a", 4, words, [shown(0, 1), shown(), shown(2)]),
        video("b", 4, [("it", [0], {})], [boxes(4)]),
    ]
    write_long_rvos_set(tmp_path / "set", "valid", clips)
    answers = tmp_path / "answers"
    write(answers / "a/0", shown(1, 2))
    write(answers / "a/1", shown())
    write(answers / "a/2", shown(0, 1, 2, 3))
    write(answers / "b/0", boxes(4))
    return LongRvos(root=tmp_path / "set"), answers


def scored(world, word="long-rvos"):
    data, answers = world
    protocol = open_protocol(word)
    sides = [] if protocol.side is None else [protocol.side]
    (got,) = score(data, [open_predictions(answers, sides=sides)], [protocol], ONE)
    rows = zip(*(got.table.values[name] for name in protocol.metrics[1:]), strict=True)
    return got, dict(zip(got.table.units, rows, strict=True))


def test_long_rvos_by_hand(world):
    got, units = scored(world)
    # J, F, tIoU, vIoU. Right in frames 1 (both show it) and 3 (neither), of 0, 1, 2 where either does.
    assert units["a/0"] == pytest.approx((2 / 4, 2 / 4, 1 / 3, 1 / 3))
    assert units["a/1"] == (1, 1, 1, 1)
    assert units["a/2"] == pytest.approx((1 / 4, 1 / 4, 1 / 4, 1 / 4))
    assert units["b/0"] == (1, 1, 1, 1)
    metrics = {name: e.value for name, e in got.result.metrics.items()}
    assert metrics["tIoU"] == pytest.approx((1 / 3 + 1 + 1 / 4 + 1) / 4)
    assert metrics["J&F"] == pytest.approx((1 / 2 + 1 + 1 / 4 + 1) / 4)


def test_viou_weighs_the_frames_by_their_j(world):
    _, answers = world
    half = boxes(4)
    half[:, :5] = False  # 3 of the square's 6 rows
    write(answers / "b/0", half)
    _, units = scored(world)
    assert units["b/0"][0] == pytest.approx(1 / 2)
    assert units["b/0"][2:] == pytest.approx((1, 1 / 2))
    write(answers / "a/0", np.roll(shown(0), 12, axis=2))
    _, units = scored(world)
    # Frame 0 shows both, in other places; frame 1 the truth alone.
    assert units["a/0"] == pytest.approx((2 / 4, 2 / 4, 1 / 2, 0))
    write(answers / "a/1", shown(3))
    _, units = scored(world)
    assert units["a/1"] == pytest.approx((3 / 4, 3 / 4, 0, 0))


def test_a_missing_png_is_empty_and_a_missing_video_is_zero(world):
    _, answers = world
    for t in (0, 2, 3):
        (answers / f"a/0/{t:05d}.png").unlink()
    (answers / "b/0").rename(answers.parent / "away")
    (answers / "b").rmdir()
    got, units = scored(world)
    assert units["a/0"] == pytest.approx((3 / 4, 3 / 4, 1 / 2, 1 / 2))
    assert units["b/0"] == (0, 0, 0, 0)
    assert got.notes["counted_as_empty"] == {"frame without a prediction": 3}
    assert (got.result.n, got.result.missing) == (4, 1)


def test_a_missing_expression_is_refused_by_name(world):
    _, answers = world
    (answers / "a/1").rename(answers.parent / "away")
    with pytest.raises(ScoreError, match="a/1"):
        scored(world)


def test_another_size_is_refused_with_names_or_brings_the_truth_to_it(world):
    _, answers = world
    write(answers / "b/0", boxes(4), size=(48, 64))
    with pytest.raises(IncompleteError, match=r"b/0.*\(48, 64\).*\(24, 32\)"):
        scored(world)
    got, units = scored(world, "long-rvos:size=prediction")
    assert sum(got.notes["answers"].values()) == got.result.n == 4
    assert units["b/0"] == (1, 1, 1, 1)
    assert units["a/0"] == pytest.approx((2 / 4, 2 / 4, 1 / 3, 1 / 3))
    write(answers / "b/0", boxes(4), 2)
    with pytest.raises(IncompleteError, match=r"b/0.*\(24, 32\).*\(48, 64\)"):
        scored(world, "long-rvos:size=prediction")


def test_types_have_a_table_of_their_own(world, tmp_path, capsys):
    data, answers = world
    out = tmp_path / "scores.json"
    words = ["score", "--dataset", "long_rvos", "--root", str(data.root), "--predictions", str(answers)]
    assert main([*words, "--by", "type", "--json", str(out)]) == 0
    by = json.loads(out.read_text())["long-rvos"]["by"]["type"]
    assert {kind: (row["n"], round(row["metrics"]["vIoU"], 4)) for kind, row in by.items()} == {
        "static": (2, 0.6667), "dynamic": (1, 1), "hybrid": (1, 0.25),
    }  # fmt: skip


def test_groundmore_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    words = [
        ("who?", [0], {"action_start": "0:01", "action_end": "0:02"}),
        ("why?", [0], {"action_start": "0:00", "action_end": "0:03", "q_type": "Descriptive"}),
    ]
    write_groundmore_set(tmp_path / "set", "test", [video("v_0000_0003", 18, words, [boxes(18)])])
    for number in (0, 1):
        folder = tmp_path / "answers/v_0000_0003" / str(number)
        folder.mkdir(parents=True)
        for t in range(18):
            mask = boxes(18)[t] if 6 <= t < 15 else np.zeros(SIZE, bool)
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"frame_{t:06d}.png")
    data = GroundMore(root=tmp_path / "set")
    protocols = [open_protocol("groundmore"), open_protocol("groundmore:sampled=4")]
    whole, four = score(data, [open_predictions(tmp_path / "answers")], protocols, ONE)
    # The action is frames 6 to 11; 12 to 14 are wrong. Frames of the second: 6 to 14 are right.
    assert whole.table.values["J"].tolist() == pytest.approx([15 / 18, 9 / 18])
    assert whole.table.values["F"].tolist() == pytest.approx([15 / 18, 9 / 18])
    assert whole.result.metrics["J&F"].value == pytest.approx(12 / 18)
    assert "clock=source, action_end=exclusive, fps=6" in whole.notes["truth"]
    # 0, 5, 11 and 17 of 0 to 17.
    assert list(four.table.frames[0]) == [f"frame_{t:06d}" for t in (0, 5, 11, 17)]
    assert four.table.values["J"].tolist() == pytest.approx([1, 1 / 4])
    assert four.result.protocol == "groundmore@1:sampled=4"
    assert whole.table.attrs["type"] == ["Causal", "Descriptive"]


def test_groundmore_refuses_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    words = [("who?", [0], {"action_start": "0", "action_end": "1"})]
    write_groundmore_set(tmp_path / "set", "test", [video("v", 6, words, [boxes(6)])])
    folder = tmp_path / "answers/v/0"
    folder.mkdir(parents=True)
    Image.fromarray(boxes(6)[0].astype(np.uint8)).save(folder / "frame_000000.png")
    data, source = GroundMore(root=tmp_path / "set"), open_predictions(tmp_path / "answers")
    with pytest.raises(IncompleteError, match="frame_000001"):
        score(data, [source], [open_protocol("groundmore")], ONE)
    with pytest.raises(ConfigError, match="-3 frames"):
        open_protocol("groundmore:sampled=-3")
    short = dataclasses.replace(open_protocol("groundmore"), sampled=1)
    (got,) = score(data, [source], [short], ONE)
    assert got.table.values["J"].tolist() == [1]


def test_a_clip_of_more_than_255_frames_is_scored(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    masks = np.zeros((300, 8, 8), bool)
    masks[10:, 2:6, 2:6] = True
    write_long_rvos_set(tmp_path / "set", "valid", [video("a", 300, [("it", [0], {})], [masks], size=(8, 8))])
    write(tmp_path / "answers/a/0", masks, *range(260), size=(8, 8))
    data = LongRvos(root=tmp_path / "set")
    (got,) = score(data, [open_predictions(tmp_path / "answers")], [open_protocol("long-rvos")], ONE)
    assert got.table.values["J"].tolist() == pytest.approx([260 / 300])
    assert got.table.values["tIoU"].tolist() == pytest.approx([250 / 290])
    assert got.table.attrs["size"] == pytest.approx([16 / 64])
