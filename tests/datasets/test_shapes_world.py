"""The shapes world: exact masks, true expressions, and the shipped set as its script writes it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_bench.errors import ConfigError, DataError
from refseg_bench.types import MaskTrack
from tools.shapes_world import COLOURS, KINDS, World, describe, render, sample_scene
from tools.writers import VideoRecord, write_meta_expressions_set

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "datasets" / "shapes" / "valid_u"


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_shapes", ROOT / "tools" / "make_shapes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def footages():
    scenes = [
        sample_scene(seed, World(difficulty=d)) for seed, d in ((3, 0.0), (5, 0.5), (8, 1.0), (21, 0.5))
    ]
    return [(scene, render(scene)) for scene in scenes]


def test_same_seed_same_pixels_and_any_subset_of_frames():
    a, b = render(sample_scene(11)), render(sample_scene(11))
    assert np.array_equal(a.frames_THWC, b.frames_THWC)
    assert np.array_equal(a.ids_THW, b.ids_THW)
    part = render(sample_scene(11), [4, 9])
    assert np.array_equal(part.frames_THWC, a.frames_THWC[[4, 9]])
    assert not np.array_equal(a.frames_THWC, render(sample_scene(12)).frames_THWC)


def test_counts_agree_with_the_ids(footages):
    for scene, footage in footages:
        missing = footage.whole_TN - footage.seen_TN
        for i in range(len(scene.things)):
            assert np.array_equal(footage.masks_THW(i).sum((1, 2)), footage.seen_TN[:, i])
        assert (missing >= 0).all()
        assert (footage.whole_TN <= footage.full_N).all()
        # whatever is missing is hidden by a later object, and the last object is never hidden
        assert (footage.covered_by_TNN.sum(2) == missing).all()
        assert (missing[:, -1] == 0).all()


def test_an_object_shows_the_colour_of_its_name(footages):
    """The mean of the saturated pixels under a mask is nearest to the named colour."""
    for scene, footage in footages:
        for i, thing in enumerate(scene.things):
            frame = int(footage.seen_TN[:, i].argmax())
            if footage.seen_TN[frame, i] < 200:
                continue
            pixels = footage.frames_THWC[frame][footage.masks_THW(i)[frame]].astype(float)
            mean = pixels[pixels.max(1) - pixels.min(1) > 60].mean(0)
            distance = {name: np.linalg.norm(mean - np.array(rgb)) for name, rgb in COLOURS.items()}
            assert min(distance, key=distance.__getitem__) == thing.colour


def test_looks_and_absences_are_true_by_an_independent_reading(footages):
    """The words are parsed again here and matched against every object of the scene."""
    checked = 0
    for scene, footage in footages:
        for utterance in describe(scene, footage):
            assert utterance.kind in KINDS
            assert (utterance.kind == "absent") == (not utterance.targets)
            if utterance.kind not in ("appearance", "absent") or utterance.dynamic:
                continue
            text = utterance.text
            for noun, adjective in (("stripes", "striped"), ("dots", "dotted"), ("checks", "checked")):
                text = text.replace(noun, adjective)
            words = set(text.split())
            hits = tuple(
                i
                for i, t in enumerate(scene.things)
                if (not words & set(COLOURS) or t.colour in words)
                and (not words & {"plain", "striped", "dotted", "checked"} or t.texture in words)
                and (not words & {"big", "small"} or ("big" if t.big else "small") in words)
            )
            assert hits == utterance.targets, utterance
            checked += 1
    assert checked > 30


@pytest.mark.slow
def test_a_clip_may_show_the_middle_of_its_paths():
    for seed in range(20):  # a second object would keep apart from the first, in the frames that are shown
        whole = sample_scene(seed, World(n_frames=16, objects=(1, 1)))
        middle = sample_scene(seed, World(n_frames=8, objects=(1, 1), path_frames=16))
        np.testing.assert_allclose(middle.things[0].centre_T2, whole.things[0].centre_T2[4:12])


def test_motion_expressions_follow_the_visible_masks():
    """The centre of the visible mask moves as the words say, over the frames that show all of it."""
    checked = 0
    for seed in range(40, 80):
        scene = sample_scene(seed)
        footage = render(scene)
        for utterance in describe(scene, footage):
            direction = utterance.text.split()[-1]
            if utterance.kind != "motion" or direction not in ("left", "right", "up", "down"):
                continue
            (target,) = utterance.targets
            whole = np.flatnonzero(footage.seen_TN[:, target] > 0.97 * footage.full_N[target])
            if len(whole) < 6:
                continue
            first, last = (np.argwhere(footage.masks_THW(target)[t]).mean(0) for t in (whole[0], whole[-1]))
            axis, sign = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}[direction]
            assert (last - first)[axis] * sign > 4, (seed, utterance)
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("bad", [{"difficulty": 1.5}, {"height": 10}, {"objects": (4, 2)}])
def test_bad_worlds_are_refused(bad):
    with pytest.raises(ConfigError):
        World(**bad)


@pytest.mark.slow
def test_shipped_set_is_what_the_script_writes(maker, tmp_path):
    records = maker.build()
    write_meta_expressions_set(tmp_path, maker.SPLIT, records)
    made = tmp_path / maker.SPLIT
    for name in ("meta_expressions.json", "mask_dict.json"):
        assert json.loads((made / name).read_text()) == json.loads((SHIPPED / name).read_text())
    names = sorted(p.relative_to(made) for p in made.rglob("*.jpg"))
    assert names == sorted(p.relative_to(SHIPPED) for p in SHIPPED.rglob("*.jpg"))
    for video in records:
        for index, frame in enumerate(video.frames_THWC):
            with Image.open(SHIPPED / "JPEGImages" / video.name / f"{index:05d}.jpg") as shipped:
                assert np.abs(np.asarray(shipped).astype(int) - frame).mean() < 6


def test_shipped_set_has_every_kind_and_empty_frames():
    meta = json.loads((SHIPPED / "meta_expressions.json").read_text())["videos"]
    masks = json.loads((SHIPPED / "mask_dict.json").read_text())
    expressions = [e for video in meta.values() for e in video["expressions"].values()]
    assert {e["type"] for e in expressions} == set(KINDS)
    assert len(expressions) == 54
    assert any(len(e["anno_id"]) > 2 for e in expressions)
    assert all((e["anno_id"] == []) == (e["type"] == "absent") for e in expressions)
    assert any(masks[str(a)].count(None) > 0 for e in expressions for a in e["anno_id"])


def test_writer_refuses_what_does_not_fit(tmp_path):
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    track = MaskTrack.empty((48, 64), 3)
    with pytest.raises(DataError, match="frames"):
        write_meta_expressions_set(tmp_path, "valid_u", [VideoRecord("a", frames[:2], [track], [])])
    with pytest.raises(DataError, match="means objects"):
        write_meta_expressions_set(
            tmp_path, "valid_u", [VideoRecord("a", frames, [track], [("it", [1], {})])]
        )
    write_meta_expressions_set(tmp_path, "valid_u", [VideoRecord("a", frames, [track], [("it", [0], {})])])
    assert json.loads((tmp_path / "valid_u" / "mask_dict.json").read_text()) == {"0": [None] * 3}
