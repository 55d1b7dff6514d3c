"""Every quirk of ReVOS' layout."""

import json

import numpy as np
import pytest

from refseg_bench.datasets.revos import Revos
from refseg_bench.types import sample_id
from tools.writers import write_revos_set

from .conftest import boxes, union, video

NAME = "UVO/all/2E4T5_NCywcE"
WORDS = [
    ("the first", [0], {"type_id": 0}),
    ("what would fall first", [0, 1], {"type_id": 1}),
    ("the zebra", [], {"type_id": 2}),
]


@pytest.mark.parametrize("frames", ["JPEGImages", "."])
def test_video_names_hold_slashes_with_and_without_jpegimages(tmp_path, frames):
    write_revos_set(tmp_path / "ReVOS", "valid", [video(NAME, expressions=WORDS)], frames=frames)
    data = Revos(root=tmp_path)  # the folder above is as good
    clip = data.clips()[0]
    assert clip.id == NAME
    assert clip.load([0]).shape == (1, 24, 32, 3)
    expression = data.expressions(clip)[1]
    assert sample_id(clip.id, expression.id).rpartition("/") == (NAME, "/", "1")
    assert np.array_equal(union(data.target(clip, expression)), boxes(4) | boxes(4, 14, 5))


def test_types_of_expressions(tmp_path):
    write_revos_set(tmp_path, "valid", [video(NAME, expressions=WORDS)])
    data = Revos(root=tmp_path)
    clip = data.clips()[0]
    found = data.expressions(clip)
    assert [(e.attrs["type_id"], e.attrs["type"]) for e in found] == [
        (0, "referring"),
        (1, "reasoning"),
        (2, "absent"),
    ]
    assert data.target(clip, found[2]).union().area() == [0, 0, 0, 0]


def test_overlapping_objects_stay_apart_so_that_their_sum_can_be_made(tmp_path):
    objects = [boxes(4), boxes(4, 4, 5)]
    write_revos_set(tmp_path, "valid", [video(NAME, expressions=WORDS, objects=objects)])
    data = Revos(root=tmp_path)
    clip = data.clips()[0]
    summed = sum(next(t.masks()).astype(int) for t in data.target(clip, data.expressions(clip)[1]).objects)
    assert summed.max() == 2
    assert np.array_equal(summed, objects[0][0].astype(int) + objects[1][0])


def test_size_comes_from_the_json(tmp_path):
    write_revos_set(tmp_path, "valid", [video(NAME)])
    assert Revos(root=tmp_path).clips()[0].size == (24, 32)


def test_foreground_is_the_union_of_all_instances(tmp_path):
    write_revos_set(tmp_path, "valid", [video(NAME, expressions=WORDS)])
    data = Revos(root=tmp_path)
    clip = data.clips()[0]
    assert np.array_equal(np.stack(list(data.foreground(clip).masks())), boxes(4) | boxes(4, 14, 5))
    (tmp_path / "mask_dict_foreground.json").unlink()
    assert Revos(root=tmp_path).foreground(clip) is None


def test_train_sub_and_the_llamavid_file_with_key_frame_positions(tmp_path):
    write_revos_set(tmp_path, "valid", [video(NAME, expressions=WORDS)])
    plain = tmp_path / "meta_expressions_valid_.json"
    (tmp_path / "meta_expressions_train_sub_.json").write_text(plain.read_text())
    assert len(Revos(root=tmp_path, split="train_sub").clips()) == 1
    meta = json.loads(plain.read_text())
    meta["videos"][NAME]["expressions"]["0"]["tp"] = 0.5
    plain.unlink()
    (tmp_path / "meta_expressions_valid__llamavid.json").write_text(json.dumps(meta))
    data = Revos(root=tmp_path)
    attrs = data.expressions(data.clips()[0])[0].attrs
    assert (attrs["tp"], attrs["type"]) == (0.5, "referring")  # tp is a place in time, not a type
