import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg_bench.methods.spatial import SpatialBias, bias_map, biased, directions, side_weight


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("the man on the left", ("left",)),
        ("top left microwave black", ("top", "left")),
        ("far right guy", ("right",)),
        ("Rightmost", ("right",)),
        ("the upper bunk", ("top",)),
        ("bowl above the plate", ("top",)),
        ("the lowest shelf, below the others", ("bottom",)),
        ("centre elephant", ("middle",)),
        ("middle center one", ("middle",)),
        ("left-hand side chair", ("left",)),
        ("a bright, topical leftover", ()),
        ("", ()),
    ],
)
def test_direction_words(text, sides):
    assert directions(text) == sides


def test_axes_keep_their_words():
    text = "bottom middle left"
    assert directions(text, axes="horizontal") == ("middle", "left")
    assert directions(text, axes="vertical") == ("bottom",)


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("the cat behind the left chair", ()),
        ("woman with the top hat", ()),
        ("man next to the far right car", ()),
        ("the cup on the left", ("left",)),
        ("the dog in the top right corner", ("top", "right")),
        ("on the left side of the bed", ("left",)),
        ("cup to the left of the plate", ("left",)),
        ("left cat behind the right chair", ("left",)),
    ],
)
def test_parse_skips_words_about_another_object(text, sides):
    assert directions(text, parse=True) == sides


def test_ramps_by_hand():
    # Cell centres of two rows and four columns: y = .25, .75; x = .125, .375, .625, .875.
    np.testing.assert_allclose(side_weight("left", (2, 4))[0], [0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(side_weight("right", (2, 4))[1], [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(side_weight("top", (2, 4))[:, 3], [0.75, 0.25])
    np.testing.assert_allclose(side_weight("bottom", (2, 4))[:, 0], [0.25, 0.75])
    np.testing.assert_allclose(side_weight("middle", (2, 4))[0], [0.25, 0.75, 0.75, 0.25])
    np.testing.assert_array_equal(side_weight("left", (2, 4), half=True)[0], [1, 1, 0, 0])


def test_words_multiply_and_the_floor_lifts():
    weight = bias_map("top left", (2, 4), SpatialBias())
    np.testing.assert_allclose(weight[0, 0], 0.75 * 0.875)
    lifted = bias_map("top left", (2, 4), SpatialBias(floor=0.5))
    np.testing.assert_allclose(lifted[0, 0], (0.5 + 0.5 * 0.75) * (0.5 + 0.5 * 0.875))
    np.testing.assert_array_equal(bias_map("the red one", (2, 4), SpatialBias()), np.ones((2, 4)))


@settings(derandomize=True, max_examples=30)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    floor=st.floats(0, 1),
    text=st.lists(st.sampled_from(["left", "right", "top", "bottom", "middle", "cat"]), max_size=4),
)
def test_weights_stay_between_floor_and_one_and_mirror(height, width, floor, text):
    options = SpatialBias(floor=floor)
    weight = bias_map(" ".join(text), (height, width), options)
    assert weight.shape == (height, width)
    assert (weight >= floor ** len(set(text)) - 1e-6).all()
    assert (weight <= 1 + 1e-6).all()
    swap = {"left": "right", "right": "left"}
    mirrored = bias_map(" ".join(swap.get(word, word) for word in text), (height, width), options)
    np.testing.assert_allclose(weight, mirrored[:, ::-1], atol=1e-6)


def test_a_volume_is_biased_frame_by_frame():
    heat = np.ones((3, 2, 4), np.float32)
    out = biased(heat, "the left one", SpatialBias())
    assert out.dtype == np.float32
    for frame in out:
        np.testing.assert_allclose(frame, side_weight("left", (2, 4)))
