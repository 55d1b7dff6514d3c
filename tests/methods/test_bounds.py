from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from refseg_bench.errors import ConfigError, DataError
from refseg_bench.methods import bounds
from refseg_bench.methods.base import track_prompts
from refseg_bench.methods.bounds import CentrePoint, Empty, FullFrame, Oracle, OraclePoint, RandomPoint
from refseg_bench.segmenters.base import Candidates, Prompt, SegmenterCounters
from refseg_bench.types import Clip, Expression, MaskTrack, Target

SIZE = (20, 30)


def save_clip(folder, frames_THWC, clip_id="clip"):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:05d}" for i in range(len(frames_THWC))]
    for name, frame in zip(names, frames_THWC, strict=True):
        Image.fromarray(frame).save(folder / f"{name}.png")
    paths = tuple(folder / f"{name}.png" for name in names)
    return Clip(clip_id, paths, tuple(names), frames_THWC.shape[1:3])


@dataclass
class SquareSession:
    """Answers every point with a square around it, on every frame; remembers what it was asked."""

    clip: Clip
    log: list
    half: int = 2
    counters: SegmenterCounters = field(default_factory=SegmenterCounters)

    def _square(self, prompt):
        rows, columns = np.indices(self.clip.size)
        (x, y), (height, width) = prompt.points[0], self.clip.size
        near_row = abs(rows - int(y * height)) <= self.half
        return near_row & (abs(columns - int(x * width)) <= self.half)

    def segment(self, frame, prompts, *, multimask=True):
        self.log.append(("segment", frame, prompts))
        nothing = np.zeros(self.clip.size, bool)
        ious = np.array([0.1, 0.9], np.float32)
        return [Candidates(np.stack([nothing, self._square(prompt)]), ious) for prompt in prompts]

    def propagate(self, frame, prompts, *, frames=None, direction="both"):
        self.log.append(("propagate", frame, prompts))
        order = [*range(frame, len(self.clip)), *range(frame - 1, -1, -1)]
        for index in order:
            yield index, np.stack([self._square(p) for p in prompts])

    def close(self):
        self.log.append(("close",))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


@dataclass
class SquareSegmenter:
    log: list = field(default_factory=list)

    def open(self, clip):
        self.log.append(("open", clip.id))
        return SquareSession(clip, self.log)


@pytest.fixture
def squares():
    return SquareSegmenter()


@pytest.fixture
def make_clip(tmp_path):
    def make(length=3, size=(20, 30), clip_id="clip"):
        return save_clip(tmp_path / clip_id, np.zeros((length, *size, 3), np.uint8), clip_id)

    return make


def box(rows, columns):
    mask = np.zeros(SIZE, bool)
    mask[rows, columns] = True
    return mask


def track(*masks):
    return MaskTrack.from_masks(masks, SIZE)


def target(*objects, length=3):
    return Target(SIZE, length, tuple(objects))


NONE = np.zeros(SIZE, bool)
SMALL = box(slice(2, 5), slice(2, 5))
BIG = box(slice(5, 16), slice(10, 21))


def answer(method, clip, truth=None, text="the red one"):
    expression = Expression("0", text)
    if truth is not None:
        method.targets = lambda c, e: truth
    (grounding,) = method.predict(clip, [expression])
    assert grounding.expression is expression
    assert len(grounding.track) == len(clip)
    assert grounding.track.size == clip.size
    return grounding


def test_oracle_returns_the_union_of_all_objects(make_clip):
    truth = target(track(SMALL, SMALL, NONE), track(NONE, BIG, BIG))
    grounding = answer(Oracle(), make_clip(), truth)
    for got, want in zip(grounding.track.masks(), (SMALL, SMALL | BIG, BIG), strict=True):
        np.testing.assert_array_equal(got, want)
    assert grounding.no_target is False
    assert grounding.point.frame == 1
    assert (SMALL | BIG)[int(grounding.point.y * 20), int(grounding.point.x * 30)]


def test_oracle_answers_unannotated_frames_as_absent_and_keeps_empty_ones(make_clip):
    grounding = answer(Oracle(), make_clip(), target(track(None, SMALL, NONE)))
    assert grounding.track.area() == [0, 9, 0]


@pytest.mark.parametrize("truth", [target(), target(track(NONE, NONE, NONE))])
def test_oracle_flags_an_absent_target(make_clip, truth):
    grounding = answer(Oracle(), make_clip(), truth)
    assert grounding.track.area() == [0, 0, 0]
    assert grounding.no_target is True
    assert grounding.point is None


@pytest.mark.parametrize("method", [Oracle, OraclePoint])
def test_oracles_say_what_they_miss(make_clip, squares, method):
    made = method(squares) if method is OraclePoint else method()
    assert made.sees_targets
    with pytest.raises(ConfigError, match="no targets"):
        answer(made, make_clip())
    made.targets = lambda c, e: None
    with pytest.raises(DataError, match="hidden"):
        list(made.predict(make_clip(), [Expression("7", "x")]))


def test_only_oracles_see_targets():
    assert not any(cls.sees_targets for cls in (Empty, FullFrame, CentrePoint, RandomPoint))


def test_a_bound_says_so_by_its_class(tmp_path, monkeypatch):
    from refseg_bench.config.compose import compose
    from refseg_bench.run.launch import freeze

    monkeypatch.chdir(tmp_path)
    for method, bound in (("oracle", True), ("empty", True), ("random_point", True), ("lexical", False)):
        (point,) = compose([f"method={method}", "dataset=shapes"])
        assert freeze(point).info().bound is bound


def test_innermost_is_the_pixel_farthest_from_the_outside():
    # An 11 x 11 square with its middle at row 10, column 15.
    point = bounds.innermost(MaskTrack.from_masks([*[None] * 4, BIG, BIG], SIZE))
    assert (point.frame, point.y, point.x, point.value) == (4, 10.5 / 20, 15.5 / 30, 6.0)
    # The border counts as outside: a full mask is clicked in its middle rows, not at a corner.
    full = MaskTrack.from_masks([np.ones(SIZE, bool)], SIZE)
    assert 9 <= bounds.innermost(full).y * 20 <= 11
    assert bounds.innermost(MaskTrack.empty(SIZE, 3)) is None


def test_oracle_point_clicks_each_object_where_it_is_largest(make_clip, squares):
    truth = target(track(SMALL, NONE, NONE), track(NONE, SMALL, BIG), track(NONE, NONE, NONE))
    grounding = answer(OraclePoint(squares), make_clip(), truth)
    asked = [entry for entry in squares.log if entry[0] == "propagate"]
    assert [entry[1] for entry in asked] == [0, 2]
    assert asked[0][2][0].points == ((3.5 / 30, 3.5 / 20),)
    assert asked[1][2][0].points == ((15.5 / 30, 10.5 / 20),)
    want = box(slice(1, 6), slice(1, 6)) | box(slice(8, 13), slice(13, 18))
    for got in grounding.track.masks():
        np.testing.assert_array_equal(got, want)
    assert grounding.point.frame == 2
    assert squares.log[-1] == ("close",)


def test_oracle_point_answers_absence_without_a_click(make_clip, squares):
    grounding = answer(OraclePoint(squares), make_clip(), target())
    assert grounding.track.area() == [0, 0, 0]
    assert grounding.no_target is True
    assert not [entry for entry in squares.log if entry[0] == "propagate"]


def test_empty_and_full_frame(make_clip):
    assert answer(Empty(), make_clip()).track.area() == [0, 0, 0]
    assert answer(Empty(), make_clip()).no_target is True
    assert answer(FullFrame(), make_clip()).track.area() == [600, 600, 600]


@pytest.mark.parametrize(("where", "frame"), [("first", 0), ("middle", 2)])
def test_centre_point_clicks_the_middle_and_tracks_it_once(make_clip, squares, where, frame):
    clip = make_clip(length=5)
    groundings = list(CentrePoint(squares, where).predict(clip, [Expression("0", "a"), Expression("1", "b")]))
    assert [g.expression.id for g in groundings] == ["0", "1"]
    assert groundings[0].track == groundings[1].track
    assert groundings[0].track.area() == [25] * 5
    assert groundings[0].point.frame == frame
    assert [entry[:2] for entry in squares.log] == [("open", "clip"), ("propagate", frame), ("close",)]


def test_random_points_depend_on_seed_and_sample_alone(make_clip, squares):
    clip = make_clip()
    texts = [Expression(str(i), "x") for i in range(40)]
    method = RandomPoint(squares)
    forward = {g.expression.id: g.point for g in method.predict(clip, texts)}
    alone = {
        g.expression.id: g.point for e in reversed(texts) for g in RandomPoint(squares).predict(clip, [e])
    }
    assert forward == alone
    assert len({(p.x, p.y) for p in forward.values()}) == 40
    other = next(iter(RandomPoint(squares, seed=1).predict(clip, texts[:1]))).point
    assert other != forward["0"]


def test_random_points_cover_the_frame_evenly(make_clip, squares):
    method, clip = RandomPoint(squares), make_clip()
    places = np.array([method.place(clip, Expression(str(i), "")) for i in range(2000)])
    assert places.min() >= 0
    assert places.max() < 1
    counts, *_ = np.histogram2d(places[:, 0], places[:, 1], bins=4, range=[[0, 1], [0, 1]])
    assert np.sum((counts - 125) ** 2 / 125) < 37.7  # chi-square, 15 degrees of freedom, p = 0.001


def test_an_image_takes_the_candidate_with_the_highest_predicted_iou(make_clip, squares):
    clip = make_clip(length=1)
    with squares.open(clip) as session:
        found = track_prompts(session, 0, [Prompt(points=((0.5, 0.5),), labels=(1,))])
    assert found.area() == [25]
    assert [entry[0] for entry in squares.log] == ["open", "segment", "close"]


def test_no_prompts_mean_an_empty_track(make_clip, squares):
    with squares.open(make_clip()) as session:
        assert track_prompts(session, 0, []).area() == [0, 0, 0]
