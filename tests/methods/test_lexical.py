"""``lexical`` and what it measures, on scenes drawn here with known answers."""

import cv2
import numpy as np
import pytest
from PIL import Image

from refseg_bench.config import schema
from refseg_bench.methods.lexical import Lexical
from refseg_bench.methods.lexical.things import border_contrast, camera_path, colour_names, texture_of
from refseg_bench.methods.lexical.words import COLOURS, TEXTURES
from refseg_bench.methods.spatial import SpatialBias
from refseg_bench.run.loop import predict_clip
from refseg_bench.segmenters.grabcut import GrabCut
from refseg_bench.types import Clip, Expression

SIZE = (96, 128)
RGB = {"red": (205, 35, 40), "blue": (35, 85, 205), "green": (35, 155, 60), "yellow": (235, 215, 40)}


def pattern(kind, height, width):
    """1 = colour, 0 = white."""
    y, x = np.mgrid[:height, :width]
    if kind == "striped":
        return (x // 4) % 2 == 0
    if kind == "checked":
        return ((x // 5) + (y // 5)) % 2 == 0
    if kind == "dotted":
        return (x % 8 - 4) ** 2 + (y % 8 - 4) ** 2 > 6
    return np.ones((height, width), bool)


def scene(n_frames, things, seed=0, shift=None):
    """Frames and masks of boxes (colour, texture, top, left, size, (dy, dx) per frame or a function of t)."""
    rng = np.random.default_rng(seed)
    ground = cv2.GaussianBlur(rng.normal(140, 30, (*SIZE, 1)).astype(np.float32), (0, 0), 3.0)
    ground = np.clip(np.repeat(ground[..., None], 3, -1), 0, 255)
    frames, masks = np.empty((n_frames, *SIZE, 3), np.uint8), np.zeros((len(things), n_frames, *SIZE), bool)
    for t in range(n_frames):
        frame = ground.copy()
        for k, (colour, texture, top, left, size, motion) in enumerate(things):
            at = motion(t) if callable(motion) else (motion[0] * t, motion[1] * t)
            if at is None:
                continue
            row, column = round(top + at[0]), round(left + at[1])
            part = np.where(pattern(texture, size, size)[..., None], RGB[colour], (245, 245, 245))
            frame[row : row + size, column : column + size] = part
            masks[:, t, row : row + size, column : column + size] = False
            masks[k, t, row : row + size, column : column + size] = True
        frames[t] = frame if shift is None else np.roll(frame, (t * shift[0], t * shift[1]), (0, 1))
    return frames, masks


def save(folder, frames):
    folder.mkdir(parents=True)
    paths = []
    for t, frame in enumerate(frames):
        paths.append(folder / f"{t:05d}.png")
        Image.fromarray(frame).save(paths[-1])
    return Clip(folder.name, tuple(paths), tuple(p.stem for p in paths), frames.shape[1:3])


def iou(track, masks_THW):
    got = np.stack(list(track.masks()))
    union = (got | masks_THW).sum()
    return 1.0 if union == 0 else (got & masks_THW).sum() / union


def ask(clip, *texts, **options):
    method = Lexical(GrabCut(), **options)
    return list(method.predict(clip, [Expression(str(i), text) for i, text in enumerate(texts)]))


def test_a_long_clip_is_measured_on_some_frames_and_tracked_on_all(tmp_path):
    """What the measures keep is bound by ``frames``, however long the clip is."""
    things = [("red", "plain", 8, 60, 20, (0, -2)), ("blue", "plain", 60, 20, 24, (0, 2))]
    frames, masks = scene(21, things)
    clip = save(tmp_path / "long", frames)
    red, left = ask(clip, "the red one", "the one moving to the left", frames=6)
    assert red.map_frames["heat"] == (0, 4, 8, 12, 16, 20)
    assert red.maps["heat"].shape[0] == 6
    assert red.point.frame in red.map_frames["heat"]
    assert masks[0, red.point.frame][round(red.point.y * SIZE[0] - 0.5), round(red.point.x * SIZE[1] - 0.5)]
    assert iou(red.track, masks[0]) > 0.7
    assert left.details["chosen"] == red.details["chosen"]


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    things = [
        ("red", "plain", 8, 90, 20, (0, -6)),
        ("blue", "striped", 40, 20, 28, (0, 0)),
        ("red", "dotted", 68, 40, 20, (0, 5)),
    ]
    frames, masks = scene(8, things)
    return save(tmp_path_factory.mktemp("lexical") / "moving", frames), masks


QUESTIONS = {
    "the blue one": [1],
    "the striped thing": [1],
    "the red dotted one": [2],
    "the red thing that moves left": [0],
    "the one moving to the right": [2],
    "the object that does not move": [1],
    "the red ones": [0, 2],
    "the topmost shape": [0],
    "the lowest shape": [2],
    "the biggest thing": [1],
    "the one above the blue striped one": [0],
    "the red plain one and the blue one": [0, 1],
    "the green one": [],
    "the yellow striped one": [],
}


def test_each_kind_of_word_finds_its_thing(moving):
    clip, masks = moving
    answers = ask(clip, *QUESTIONS)
    for grounding, (text, meant) in zip(answers, QUESTIONS.items(), strict=True):
        truth = masks[meant].any(0) if meant else np.zeros(masks.shape[1:], bool)
        assert iou(grounding.track, truth) > 0.7, text
        assert grounding.no_target is (not meant), text
        if meant:
            point = grounding.point
            assert truth[point.frame, int(point.y * SIZE[0]), int(point.x * SIZE[1])], text
        else:
            assert grounding.point is None
        heat = grounding.maps["heat"]
        assert heat.shape[0] == len(clip) == len(grounding.map_frames["heat"])
        assert heat.min() >= 0
        assert heat.max() == pytest.approx(1)
        assert set(grounding.seconds) == {"things", "words"}


@pytest.mark.slow
def test_answers_depend_neither_on_order_nor_on_company(moving):
    clip, _ = moving
    texts = list(QUESTIONS)[:4]
    together = {g.expression.text: g.track for g in ask(clip, *texts)}
    backwards = {g.expression.text: g.track for g in ask(clip, *reversed(texts))}
    alone = {g.expression.text: g.track for text in texts for g in ask(clip, text)}
    assert together == backwards == alone


def test_leaving_and_coming_back(tmp_path):
    away = lambda t: (0, 0) if t < 3 or t > 6 else None  # noqa: E731
    frames, masks = scene(10, [("green", "plain", 0, 20, 24, away), ("red", "plain", 60, 80, 24, (0, 0))])
    (grounding,) = ask(save(tmp_path / "back", frames), "the one that leaves and comes back")
    assert iou(grounding.track, masks[0]) > 0.7
    assert grounding.track.area()[4] == 0


def test_an_image_is_a_clip_of_one_frame(tmp_path):
    frames, masks = scene(1, [("red", "plain", 10, 10, 24, (0, 0)), ("red", "plain", 50, 90, 24, (0, 0))])
    left, right = ask(save(tmp_path / "image", frames), "left red box", "right red box")
    assert iou(left.track, masks[0]) > 0.8
    assert iou(right.track, masks[1]) > 0.8


def test_a_thing_that_no_heat_falls_on_is_pointed_at_all_the_same(tmp_path):
    frames, masks = scene(1, [("red", "plain", 50, 90, 24, (0, 0))])
    (only,) = ask(save(tmp_path / "image", frames), "left red box", spatial=SpatialBias(half=True))
    assert masks[0, 0, int(only.point.y * SIZE[0]), int(only.point.x * SIZE[1])]


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (3, 3), (24, 24)])
def test_flat_and_tiny_pictures_have_nothing(tmp_path, size):
    clip = save(tmp_path / "flat", np.full((2, *size, 3), 90, np.uint8))
    (grounding,) = ask(clip, "the red one")
    assert grounding.track.area() == [0, 0]
    assert grounding.no_target is True


def test_words_it_cant_read_fail_instead_of_an_answer(tmp_path):
    clip = save(tmp_path / "flat", np.full((1, 24, 24, 3), 90, np.uint8))
    expressions = [Expression(str(i), text) for i, text in enumerate(("the dog", "左边的狗?", "42", "?"))]
    found = [p.failure for p, _ in predict_clip(Lexical(GrabCut()), clip, expressions)]
    # Numbers of shirts and lone marks stand in RefCOCO: they say no less than a word that isn't known.
    assert [failure and "no word" in failure.message for failure in found] == [None, True, None, None]


def test_pure_colours_get_their_own_name():
    swatches = {"red": (220, 20, 30), "green": (0, 140, 40), "blue": (30, 60, 220), "white": (255, 255, 255),
                "black": (0, 0, 0), "grey": (125, 125, 125), "yellow": (250, 230, 30)}  # fmt: skip
    frame = np.array([[list(swatches.values())]], np.uint8)[0][None]
    names = colour_names(frame, 22.0)
    assert names.sum(-1) == pytest.approx(np.ones(names.shape[:3]), abs=1e-5)
    assert [COLOURS[k] for k in names[0, 0].argmax(-1)] == list(swatches)


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("angle", [0, 25, 60])
def test_textures_are_told_apart_at_any_angle(texture, angle):
    surface = np.where(pattern(texture, 96, 96), 90, 240).astype(np.uint8)
    turn = cv2.getRotationMatrix2D((48, 48), angle, 1.0)
    surface = cv2.warpAffine(surface, turn, (96, 96), borderMode=cv2.BORDER_REFLECT)
    mask = np.zeros((96, 96), bool)
    mask[28:68, 28:68] = True
    kinds = texture_of(surface, mask, 0.1)
    assert kinds.sum() == pytest.approx(1)
    assert TEXTURES[int(kinds.argmax())] == texture


def test_what_fills_the_border_is_background():
    frame = np.full((1, 40, 60, 3), (140, 140, 140), np.uint8)
    frame[0, 15:25, 20:40] = (205, 35, 40)
    frame[0, :4, 50:54] = (30, 200, 40)  # touches the border, but hardly fills it
    contrast = border_contrast(frame)
    assert contrast[0, 20, 30] > 40
    assert contrast[0, 1, 52] > 40
    assert contrast[0, 35, 5] < 5


def test_the_cameras_path_is_measured_apart_from_the_things():
    frames, _ = scene(4, [("red", "plain", 30, 40, 20, (0, 4))], shift=(2, -3))
    # The ground is smooth and np.roll wraps it around, so the flow falls a little short.
    np.testing.assert_allclose(camera_path(frames)[-1], [6, -9], atol=1.2)


def test_options_are_checked():
    values = {"absent_below": 0.1, "spatial": {"floor": 0.2}}
    method = schema.construct(Lexical, values, "method", segmenter=GrabCut())
    assert method.absent_below == 0.1
    assert method.spatial.floor == 0.2
