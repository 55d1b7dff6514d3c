"""Localization heads and token activation maps: formulas against oracles, methods on planted maps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage, optimize

from refseg_bench.backbones.base import MLLMSession, TokenActivations
from refseg_bench.cli import main
from refseg_bench.config.components import options
from refseg_bench.errors import ConfigError
from refseg_bench.methods.heat import peak_box
from refseg_bench.methods.loc_head import LocHead, elbow, find_heads, passing, ranked, spatial_entropy
from refseg_bench.methods.tam import TokenActivationMaps, answer_map, rank_gaussian, token_map
from refseg_bench.types import Clip, Expression, MaskTrack
from tests.fakes import FakeDataset
from tests.methods.test_agents import LENGTH, SIZE, Planted

GRID, HEADS, LAYERS = (6, 8), 4, 3
#: Where the words lie on the grid: (row, column).
PLACES = {"dog": (1, 2), "cat": (4, 6)}


class Looking(MLLMSession):
    """A model whose head (1, 2) looks at the word's place, (2, 0) at two places, (0, 3) at the bottom row."""

    def __init__(self):
        self.opened, self.read_frames = [], []

    def identity(self):
        return {"fake": "looking"}

    def layers(self):
        return LAYERS

    def report(self):
        return {}

    def open(self, frames_THWC, visual, rollout):
        self.opened.append((len(frames_THWC), visual, rollout.start, rollout.end))
        return self

    def read(self, where, prompts, *, answer):
        raise AssertionError

    def ask(self, prompts):
        raise AssertionError

    def _map(self, layer, head, word, where):
        map_hw = np.full(GRID, 0.0002 if (layer, head) == (0, 0) else 0.0001, np.float32)
        row, column = PLACES[word]
        if (layer, head) == (1, 2):
            map_hw[row, column] = 0.5 + 0.01 * where
            map_hw[row, column + 1] = 0.3
        elif (layer, head) == (2, 0):
            map_hw[row, column] = map_hw[0, 0] = 0.3
        elif (layer, head) == (0, 3):
            map_hw[-1, 3] = 0.9
        return map_hw

    def heads(self, where, prompts, which=None):
        self.read_frames.append(where)
        pairs = which or [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
        words = [next(word for word in PLACES if word in prompt) for prompt in prompts]
        return [np.stack([self._map(*pair, word, where) for pair in pairs]) for word in words]

    def activations(self, where, prompts):
        self.read_frames.append(where)
        out = []
        for prompt in prompts:
            word = next(word for word in PLACES if word in prompt)
            maps = np.zeros((3, 1, *GRID), np.float32)
            maps[0, 0, 5, 0] = 4.0  # the prompt's token lights a corner, and so does the answer's
            row, column = PLACES[word]
            maps[2, 0, row, column] = maps[2, 0, row, column + 1] = 3.0 + where
            maps[2, 0, row + 1, column] = maps[2, 0, row + 1, column + 1] = 3.0 + where
            maps[2, 0, 5, 0] = 8.0
            scores = np.zeros((3, 3), np.float32)
            scores[0, 2] = 1.0
            answer = slice(2, 3) if "nothing" not in prompt else slice(3, 3)
            out.append(TokenActivations(maps, scores, (7, 8, 9), answer, word))
        return out


@pytest.fixture
def clip(tmp_path):
    return FakeDataset(root=tmp_path / "data", n_frames=LENGTH).clips()[0]


def answered(method, clip: Clip, *texts: str, root=None):
    method.cache_root = root
    return list(method.predict(clip, [Expression(str(n), text) for n, text in enumerate(texts)]))


def boxed(box) -> np.ndarray:
    x0, y0, x1, y1 = box
    mask = np.zeros(SIZE, bool)
    mask[round(y0 * SIZE[0]) : round(y1 * SIZE[0]), round(x0 * SIZE[1]) : round(x1 * SIZE[1])] = True
    return mask


# ── the finder's criteria ────────────────────────────────────────────────────


def test_the_elbow_lies_farthest_from_the_chord():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sums = rng.random(rng.integers(3, 60)) ** 3
        order = np.argsort(-sums, kind="stable")
        a, b = np.array([0, sums[order[0]]]), np.array([len(sums) - 1, sums[order[-1]]])
        along = (b - a) / np.linalg.norm(b - a)
        away = []
        for place, value in enumerate(sums[order]):
            off = np.array([place, value]) - a
            away.append(np.linalg.norm(off - (off @ along) * along))
        want = order[int(np.argmax(away))]
        assert sums[elbow(sums)] == pytest.approx(sums[want])
        by_sum = passing(sums.reshape(1, -1))
        assert set(np.flatnonzero(by_sum)) == {i for i in range(len(sums)) if sums[i] >= sums[want]}
        assert set(np.flatnonzero(passing(sums.reshape(1, -1), "flat_index"))) == set(range(want, len(sums)))


def test_the_entropy_is_that_of_the_components_shares():
    rng = np.random.default_rng(1)
    for _ in range(50):
        map_hw = (rng.random((7, 9)) ** 6).astype(np.float32)
        above = np.where(map_hw > map_hw.mean(dtype=np.float64), map_hw - map_hw.mean(dtype=np.float64), 0)
        labels, count = ndimage.label(above > 0.001, np.ones((3, 3)))
        mass = [above[labels == one].sum() for one in range(1, count + 1)]
        want = -sum(m / sum(mass) * np.log(m / sum(mass)) for m in mass)
        found, bottom = spatial_entropy(map_hw)
        assert found == pytest.approx(want)
        assert bottom == pytest.approx(above[-1][above[-1] > 0.001].sum() / sum(mass))


def test_a_flat_map_is_the_worst_there_is():
    assert spatial_entropy(np.full((4, 5), 0.05, np.float32)) == (pytest.approx(np.log(20)), 0.0)
    assert spatial_entropy(np.zeros((4, 5), np.float32))[0] == pytest.approx(np.log(20))


def test_heads_in_the_bottom_row_stand_back():
    sums = np.array([[0.9, 0.8, 0.7, 0.0]])
    found = ranked(sums, np.array([[0.1, 0.5, 0.3, 0.0]]), np.array([[0.9, 0.0, 0.2, 0.0]]))
    assert [(one.head, one.flagged) for one in found] == [(2, False), (1, False), (0, True)]


def test_the_finder_finds_what_was_planted_and_asks_nothing_twice(clip, tmp_path):
    model = Looking()
    method = LocHead(model, Planted())
    method.cache_root = tmp_path
    pairs = [(clip, Expression("0", "the dog")), (clip, Expression("1", "the cat"))]
    found = find_heads(method, pairs)
    assert [(one.layer, one.head) for one in found] == [(1, 2), (2, 0), (0, 0), (0, 3)]
    assert found[0].entropy == 0
    assert found[1].entropy == pytest.approx(np.log(2))
    assert found[2].entropy == pytest.approx(np.log(48))
    assert [one.flagged for one in found] == [False, False, False, True]
    assert found[0].sum == pytest.approx(0.8 + 46 * 0.0001)
    assert [one[:1] + one[2:] for one in model.opened] == [(1, 0, 0), (1, 0, 0)]
    assert find_heads(method, pairs) == found
    assert len(model.opened) == 2
    # The elbow is head (0, 0), whose number is the lowest: the quirk keeps them all.
    assert len(find_heads(method, pairs, "flat_index")) == LAYERS * HEADS
    with pytest.raises(ConfigError, match="no expression"):
        find_heads(method, [])


# ── the methods on planted maps ──────────────────────────────────────────────


@pytest.mark.parametrize("level", [0.3, 0.5])
def test_the_summed_heads_box_prompts_on_the_frame_that_peaks(clip, tmp_path, level):
    model = Looking()
    method = LocHead(
        model, Planted(), heads=[[1, 2], [2, 0], [0, 3]], n_heads=2, sigma=0, n_frames=3, level=level
    )
    dog, cat = answered(method, clip, "the dog", "the cat", root=tmp_path)
    assert dog.point.frame == cat.point.frame == 5
    for found, word in ((dog, "dog"), (cat, "cat")):
        row, column = PLACES[word]
        # Both heads light the place, one of them its neighbour at less: within 0.3 of the range, not 0.5.
        box = (column / 8, row / 6, (column + (2 if level == 0.3 else 1)) / 8, (row + 1) / 6)
        assert found.details["box"] == pytest.approx(box)
        assert all(np.array_equal(mask, boxed(box)) for mask in found.track.masks())
        assert (found.point.y, found.point.x) == ((row + 0.5) / 6, (column + 0.5) / 8)
        assert found.no_target is None
        assert found.maps["heat"].shape == (3, *GRID)
        assert found.map_frames["heat"] == (1, 3, 5)
    assert dog.details["heads"] == [[1, 2], [2, 0]]
    assert model.opened == [(3, method.visual_settings(), 1, 3)]
    again = answered(method, clip, "the dog", root=tmp_path)
    assert len(model.opened) == 1
    assert again[0].details == dog.details
    # What acts on finished maps changes no entry; which heads are read does.
    method.level = 0.1
    answered(method, clip, "the dog", root=tmp_path)
    assert len(model.opened) == 1
    method.n_heads = 1
    answered(method, clip, "the dog", root=tmp_path)
    assert len(model.opened) == 2


def test_a_click_takes_the_place_of_the_box(clip):
    class Clicked(Planted):
        def open(self, clip):
            session = super().open(clip)
            session.accepts = ("points",)
            session._propagate = lambda frame, prompts, video, direction: (
                seen.append((frame, prompts[0].points)) or (t, np.ones((1, *SIZE), bool)) for t in video
            )
            return session

    seen: list = []
    method = LocHead(Looking(), Clicked(), heads=[[1, 2]], prompt="click", n_heads=1, sigma=0)
    (found,) = answered(method, clip, "the cat")
    assert "box" not in found.details
    assert set(seen) == {(3, (((6 + 0.5) / 8, (4 + 0.5) / 6),))}


def test_smoothing_spreads_a_head_and_0_leaves_it(clip):
    sharp = LocHead(Looking(), Planted(), heads=[[1, 2]], n_heads=1, sigma=0)
    soft = LocHead(Looking(), Planted(), heads=[[1, 2]], n_heads=1, sigma=1.0)
    entry = sharp.read(clip, [0], ["dog"])[0]
    want = ndimage.gaussian_filter(entry["maps"][0, 0], 1.0, mode="reflect", truncate=4)
    assert np.array_equal(sharp.heat(entry)[0], entry["maps"][0, 0])
    np.testing.assert_allclose(soft.heat(entry)[0], want, atol=1e-4)


def test_heads_that_are_not_known_or_none_are_told(clip):
    with pytest.raises(ConfigError, match="refseg heads"):
        answered(LocHead(Looking(), Planted()), clip, "the dog")
    for wrong in ([[3, 0]], [[0, -1]], [[1]], [[0, 1, 2]]):
        with pytest.raises(ConfigError, match="no head of this model"):
            answered(LocHead(Looking(), Planted(), heads=wrong), clip, "the dog")
    with pytest.raises(ConfigError, match="no place for the expression"):
        LocHead(Looking(), Planted(), question="Where?")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("n_heads", 0),
        ("n_heads", -1),
        ("n_frames", 0),
        ("level", 1.5),
        ("level", -0.1),
        ("level", float("nan")),
    ],
)
def test_options_that_mean_nothing_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"method.{option}"):
        LocHead(Looking(), Planted(), **{option: value})


def test_the_box_is_the_peaks_own():
    heat = np.zeros((4, 6), np.float32)
    heat[0, 0], heat[2, 3], heat[3, 4], heat[0, 5] = 0.9, 1.0, 0.6, 0.9
    assert peak_box(heat, 0.5) == (3 / 6, 2 / 4, 5 / 6, 1.0)
    assert peak_box(heat, 0.95) == (3 / 6, 2 / 4, 4 / 6, 3 / 4)


# ── token activation maps ────────────────────────────────────────────────────


def slow_token_map(maps, scores, ids, token):
    """The paper's steps, one number at a time."""
    weights = [scores[j, token] if ids[j] != ids[token] else 0.0 for j in range(token)]
    context = np.zeros(maps.shape[1:])
    for j in range(token):
        context += maps[j] * weights[j] / max(sum(weights), 1e-12)
    if context.any():
        factor = optimize.minimize_scalar(lambda x: float(((maps[token] - x * context) ** 2).sum())).x
    else:
        factor = 0.0
    left = np.clip(maps[token] - factor * context, 0, None)
    together = [*left.ravel(), *(scores[j, token] for j in range(token))]
    left = (left - min(together)) / (max(together) - min(together))
    height, width = left.shape
    out = np.zeros_like(left)
    for y in range(height):
        for x in range(width):
            near = []
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    v, u = abs(y + dy), abs(x + dx)
                    near.append(
                        left[v if v < height else 2 * height - 2 - v, u if u < width else 2 * width - 2 - u]
                    )
            near = np.sort(near)
            if near.mean() > 0:
                sigma = near.std() / near.mean()
                kernel = [
                    np.exp(-((k - 4) ** 2) / (2 * sigma**2)) if sigma > 0 else float(k == 4) for k in range(9)
                ]
                out[y, x] = (near * kernel).sum() / sum(kernel)
    return out


def test_a_tokens_map_is_that_of_the_papers_steps():
    rng = np.random.default_rng(2)
    for case in range(20):
        count = 5
        maps = np.maximum(rng.normal(0, 1, (count, 5, 6)), 0).astype(np.float32)
        scores = np.maximum(rng.normal(0, 1, (count, count)), 0).astype(np.float32)
        ids = [3, 4, 3, 5, 3 if case % 2 else 6]
        for token in range(1, count):
            got = token_map(maps, scores, ids, token)
            np.testing.assert_allclose(got, slow_token_map(maps, scores, ids, token), atol=2e-5)


def test_a_token_takes_nothing_off_its_like_and_a_flat_map_is_0():
    maps = np.stack([np.eye(4, dtype=np.float32)] * 2)
    scores = np.array([[0, 1], [0, 0]], np.float32)
    assert not token_map(maps, scores, [1, 2], 1).any()
    assert token_map(maps, scores, [1, 1], 1).any()
    assert not token_map(np.zeros((2, 4, 4), np.float32), np.zeros((2, 2), np.float32), [1, 2], 1).any()


def test_the_rank_filter_leaves_plains_and_drops_specks():
    assert np.allclose(rank_gaussian(np.full((3, 1), 0.25)), 0.25)
    speck = np.full((5, 5), 0.1)
    speck[2, 2] = 0.11
    assert rank_gaussian(speck)[2, 2] == pytest.approx(0.1, abs=1e-6)
    assert not rank_gaussian(np.zeros((4, 4))).any()


def test_the_answer_alone_prompts_less_what_its_context_sees(clip, tmp_path):
    model = Looking()
    method = TokenActivationMaps(model, Planted(), n_frames=2)
    (dog,) = answered(method, clip, "the dog", root=tmp_path)
    row, column = PLACES["dog"]
    # The corner that the prompt lights as well is gone, though the answer lights it most.
    x0, y0, x1, y1 = dog.details["box"]
    assert x0 <= (column + 0.5) / 8 <= x1
    assert y0 <= (row + 0.5) / 6 <= y1
    assert dog.details["answers"] == ["dog", "dog"]
    assert "the dog" in dog.details["prompts"][0]
    assert model.read_frames == [0, 1]
    answered(method, clip, "the dog", root=tmp_path)
    assert len(model.opened) == 1


def test_an_answer_without_tokens_points_nowhere(clip):
    (found,) = answered(TokenActivationMaps(Looking(), Planted(), question="nothing {sent}"), clip, "the dog")
    assert found.point is None
    assert found.no_target is True
    assert found.track.rles == MaskTrack.empty(SIZE, LENGTH).rles
    one = Looking().activations(0, ["dog"])[0]
    assert answer_map(one).shape == GRID


# ── whole, on the models that ship ───────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loc_head_tiny", "tam_tiny"])
def test_a_run_on_the_models_that_ship(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert main(["run", f"method={name}", "limit.clips=1", "limit.expressions=2", "baselines=[]"]) == 0
    assert "J&F" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_prints_what_to_put_on_a_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "heads",
        "backbone=tiny_mllm",
        "dataset=shapes",
        "segmenter=tiny_sam2",
        "--pairs",
        "2",
        "-o",
        "h.json",
    ]
    assert main(words) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("backbone.loc_heads=[[")
    found = json.loads((tmp_path / "h.json").read_text())
    assert found["pairs"] == 2
    assert [[one["layer"], one["head"]] for one in found["heads"]][:10] == json.loads(last.partition("=")[2])
    small = ["limit.clips=1", "limit.expressions=1", "baselines=[]"]
    assert main(["run", "method=loc_head_tiny", last, *small]) == 0
    assert main([*words[:-2], "--best", "9" * 9]) == 0
    assert main(["heads", "method=lexical", "dataset=shapes"]) == 2
    capsys.readouterr()
    assert main(["heads", "backbone=tiny_dit", "dataset=shapes"]) == 2
    assert "can't use the backbone DiT" in capsys.readouterr().err
    assert main(["heads", "backbone=tiny_mllm", "dataset=shapes,photos"]) == 2


def test_a_models_heads_are_in_its_yaml():
    assert options("backbone", "tiny_mllm")["loc_heads"]
