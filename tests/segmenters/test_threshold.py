import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refseg_bench.errors import ConfigError, DataError
from refseg_bench.segmenters.base import Prompt
from refseg_bench.segmenters.threshold import Otsu, cut_heat, otsu_cut
from refseg_bench.types import Clip

SIZE = (40, 60)


@pytest.fixture
def clip(tmp_path):
    """A bright box that moves right and a bright bar that stays, on dark."""
    paths = []
    for t in range(4):
        frame = np.full((*SIZE, 3), 30, np.uint8)
        frame[10:20, 5 + 3 * t : 17 + 3 * t] = 220
        frame[30:36, 10:50] = 200
        paths.append(tmp_path / f"{t}.png")
        Image.fromarray(frame).save(paths[-1])
    return Clip("boxes", tuple(paths), tuple(p.stem for p in paths), SIZE)


def box(t):
    mask = np.zeros(SIZE, bool)
    mask[10:20, 5 + 3 * t : 17 + 3 * t] = True
    return mask


def brute_force(grey):
    """Otsu by definition: the threshold with the largest variance between the classes."""
    values = grey.ravel().astype(float)
    best, level = -1.0, 0
    for t in range(255):
        high = values > t
        if high.all() or not high.any():
            continue
        share = high.mean()
        between = share * (1 - share) * (values[high].mean() - values[~high].mean()) ** 2
        if between > best + 1e-9:
            best, level = between, t
    return values.reshape(grey.shape) > level, max(best, 0) / max(values.var(), 1e-12)


@settings(derandomize=True, max_examples=25)
@given(st.lists(st.sampled_from([0, 3, 40, 90, 91, 200, 255]), min_size=6, max_size=30))
def test_the_cut_is_otsus(values):
    grey = np.array([values], np.uint8)
    mask, separates = otsu_cut(grey)
    if len(set(values)) == 1:
        assert separates == 0
        return
    want, eta = brute_force(grey)
    np.testing.assert_array_equal(mask, want)
    assert separates == pytest.approx(eta, abs=1e-6)


def test_a_heat_map_is_upsampled_truncated_and_cut():
    heat = np.zeros((4, 6), np.float32)
    heat[1:3, 1:3] = 1.0
    mask, separates = cut_heat(heat, SIZE)
    full = (cv2.resize(heat, (60, 40), interpolation=cv2.INTER_LINEAR) * 255).astype(np.uint8)
    _, want = cv2.threshold(full, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    np.testing.assert_array_equal(mask, want > 0)
    assert 0.5 < separates <= 1


def test_every_kind_of_prompt(clip):
    rough = np.zeros(SIZE, bool)
    rough[8:18, 3:15] = True
    heat = np.zeros(SIZE, np.float32)
    heat[0:5, 0:5] = 1
    with Otsu(blur=0).open(clip) as session:
        point, dark, boxed, masked, heated = session.segment(
            0,
            [
                Prompt(points=((0.2, 0.4),), labels=(1,)),
                Prompt(points=((0.9, 0.1),), labels=(1,)),
                Prompt(box=(0.0, 0.1, 0.5, 0.6)),
                Prompt(mask=rough),
                Prompt(heat=heat),
            ],
        )
        assert session.counters.frame_encodings == 1
        assert session.counters.decoder_calls == 5
        (single,) = session.segment(0, [Prompt(points=((0.2, 0.4),), labels=(1,))], multimask=False)
    for candidates in (point, boxed, masked):
        np.testing.assert_array_equal(candidates.best()[0], box(0))
    assert point.masks_KHW[1].sum() == 120 + 240  # the whole bright class
    assert dark.best()[0].sum() == 2400 - 360
    assert heated.best()[0].sum() == 25
    assert len(single.ious_K) == 1


def test_parts_are_followed_by_overlap(clip):
    with Otsu(blur=0).open(clip) as session:
        found = dict(session.propagate(1, [Prompt(mask=box(1)), Prompt(points=((0.5, 0.8),), labels=(1,))]))
        order = [t for t, _ in session.propagate(1, [Prompt(mask=box(1))], direction="backward")]
        assert session.counters.frame_encodings == 4
    assert list(found) == [1, 2, 3, 0]
    assert order == [1, 0]
    for t, masks in found.items():
        np.testing.assert_array_equal(masks[0], box(t))
        assert masks[1].sum() == 240


def test_nothing_stays_nothing(clip):
    with Otsu().open(clip) as session:
        assert not any(m.any() for _, m in session.propagate(0, [Prompt(mask=np.zeros(SIZE, bool))]))


def test_bad_prompts_are_refused(clip):
    with Otsu().open(clip) as session:
        with pytest.raises(ConfigError, match="no text prompt"):
            session.segment(0, [Prompt(text="a cat")])
        with pytest.raises(DataError, match="outside"):
            session.segment(0, [Prompt(points=((1.2, 0.5),), labels=(1,))])
        with pytest.raises(DataError):
            list(session.propagate(9, [Prompt(mask=box(0))]))
