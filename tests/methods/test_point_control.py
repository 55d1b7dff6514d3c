"""The control row: another method's point, everybody's segmenter."""

import numpy as np
import pytest

from refseg_bench.config import schema
from refseg_bench.errors import ConfigError, RefsegError
from refseg_bench.methods.point_control import PointControl
from refseg_bench.types import Expression
from tests.methods.test_refam import SquareSegmenter, a_clip

SAID = [Expression("0", "the cat")]


def control(target, **options):
    return schema.construct(
        PointControl,
        {"source": {"_target_": f"refseg_bench.methods.bounds.{target}", **options}},
        "method",
        segmenter=SquareSegmenter(),
    )


def test_the_sources_point_becomes_one_click(tmp_path):
    clip = a_clip(tmp_path / "clip", frames=3)
    method = control("CentrePoint", prompt_frame="middle")
    (found,) = method.predict(clip, SAID)
    assert (found.point.frame, found.point.y, found.point.x) == (1, 0.5, 0.5)
    kind, frame, prompt = method.segmenter.prompts[-1]
    assert (kind, frame, prompt.points, prompt.labels) == ("both", 1, ((0.5, 0.5),), (1,))
    assert all(mask[20, 29:32].any() for mask in found.track.masks())
    assert method.report() == {}


def test_a_source_without_a_point_is_told(tmp_path):
    with pytest.raises(RefsegError, match="FullFrame gives no point for 'the cat'"):
        list(control("FullFrame").predict(a_clip(tmp_path / "clip"), SAID))
    (found,) = control("Empty").predict(a_clip(tmp_path / "clip"), SAID)
    assert (found.point, found.no_target, found.track.area()) == (None, True, [0])


def test_a_wrong_source_is_told():
    with pytest.raises(ConfigError, match="Unknown option"):
        control("CentrePoint", prompt_frames="middle")


def test_image_takes_the_best_candidate(tmp_path):
    (found,) = control("CentrePoint").predict(a_clip(tmp_path / "clip"), SAID)
    assert np.count_nonzero(found.track.mask(0)) == 25, "the square with the highest predicted IoU"
