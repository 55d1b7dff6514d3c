"""MeViS' layout, which the `shapes` sample shares."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from refseg_bench.config.components import open_dataset
from refseg_bench.datasets.meta_expressions import MetaExpressions
from refseg_bench.datasets.verify import verify
from refseg_bench.errors import ConfigError, DataError
from tools.writers import write_meta_expressions_set, write_mevis_v2_set

from .conftest import boxes, union, video


def test_frames_expressions_and_masks_come_back_as_written(tmp_path):
    record = video(names=["00003", "00007", "00009", "00010"])
    counts = write_meta_expressions_set(
        tmp_path / "mevis", "valid_u", [record, video("ba9876543210", seed=1)]
    )
    assert counts == {"videos": 2, "frames": 8, "objects": 4, "expressions": 4}
    data = MetaExpressions(root=tmp_path / "mevis")
    first, second = data.clips()
    assert (first.id, first.size, first.frame_names) == (
        "0123456789ab",
        (24, 32),
        ("00003", "00007", "00009", "00010"),
    )
    assert np.abs(first.load([2])[0].astype(int) - record.frames_THWC[2]).max() < 8
    one, both = data.expressions(first)
    assert (both.id, both.text, both.attrs["obj_ids"]) == ("1", "both of them", ["0", "1"])
    assert data.expressions(second)[1].attrs["anno_ids"] == ["2", "3"]
    assert np.array_equal(union(data.target(first, one)), boxes(4))


def test_target_is_the_union_over_anno_id_and_keeps_its_objects_apart(tmp_path):
    overlapping = [boxes(4), boxes(4, 4, 5)]
    write_meta_expressions_set(tmp_path, "valid_u", [video(objects=overlapping)])
    data = MetaExpressions(root=tmp_path)
    clip = data.clips()[0]
    target = data.target(clip, data.expressions(clip)[1])
    assert len(target.objects) == 2
    assert np.array_equal(union(target), overlapping[0] | overlapping[1])


def test_null_in_mask_dict_means_absent_not_unannotated(tmp_path):
    masks = boxes(4)
    masks[1:3] = False
    write_meta_expressions_set(tmp_path, "valid_u", [video(objects=[masks], expressions=[("it", [0], {})])])
    data = MetaExpressions(root=tmp_path)
    clip = data.clips()[0]
    assert data.target(clip, data.expressions(clip)[0]).objects[0].area() == [36, 0, 0, 36]


def test_annotations_without_frames_are_enough_for_scoring(tmp_path):
    write_meta_expressions_set(tmp_path, "valid_u", [video()])
    shutil.rmtree(tmp_path / "valid_u" / "JPEGImages")
    data = MetaExpressions(root=tmp_path)
    clip = data.clips()[0]
    assert clip.size == (24, 32)
    assert np.array_equal(union(data.target(clip, data.expressions(clip)[0])), boxes(4))
    with pytest.raises(DataError, match="frame is missing"):
        clip.load()
    assert len(verify(data).kinds()["missing frame"]) == 4
    (tmp_path / "valid_u" / "mask_dict.json").unlink()
    with pytest.raises(DataError, match="folder of video '0123456789ab' is missing"):
        MetaExpressions(root=tmp_path).clips()


def test_a_split_with_hidden_masks_has_words_only(tmp_path):
    write_meta_expressions_set(tmp_path, "valid", [video()])
    (tmp_path / "valid" / "mask_dict.json").unlink()
    data = MetaExpressions(root=tmp_path, split="val")
    clip = data.clips()[0]
    assert data.split == "valid"
    assert data.target(clip, data.expressions(clip)[0]) is None


def in_layout(root, count, extra=None, objects=(0,)):
    """A valid_u in MeViS' layout with that many sentences."""
    words = [(f"sentence {i}", list(objects), extra or {}) for i in range(count)]
    write_meta_expressions_set(root, "valid_u", [video(expressions=words)])
    return root


@pytest.mark.parametrize(
    ("name", "count", "extra", "objects", "why"),
    [
        ("mevis", 907, {}, [0], "it has the 907 expressions of MeViS v2, where MeViS has 793"),
        ("mevis_v2", 793, {}, [0], "it has the 793 expressions of MeViS, where MeViS v2 has 907"),
        ("mevis", 2, {"audio": "a.wav"}, [0], "2 of its 2 expressions have 'audio', which MeViS v2 brought"),
        ("mevis", 2, {}, [], "2 of its 2 expressions have 'no target', which MeViS v2 brought"),
        ("mevis", 793, {}, [0], ""),
        ("mevis_v2", 907, {"audio": "a.wav"}, [], ""),
        ("mevis", 2, {"type": "motion"}, [0], ""),
        ("mevis_v2", 2, {}, [0], ""),
    ],
)
def test_the_two_releases_are_not_taken_for_each_other(tmp_path, name, count, extra, objects, why):
    data = open_dataset(name, root=in_layout(tmp_path, count, extra, objects))
    if not why:
        assert len(data.expressions(data.clips()[0])) == count
        return
    with pytest.raises(DataError) as error:
        data.clips()
    assert why in error.value.what
    assert error.value.where.endswith("meta_expressions.json")
    assert f"dataset={'mevis' if name == 'mevis_v2' else 'mevis_v2'}." in error.value.hint
    assert "another release" in verify(open_dataset(name, root=tmp_path)).kinds()
    # A set of one's own in that layout goes by its own name.
    assert len(open_dataset(name, root=tmp_path, name="mine").clips()) == 1


@pytest.mark.parametrize("nobody", [-1, "-1", [-1], ["-1"]])
def test_a_sentence_without_a_target_is_v2s_however_nobody_is_spelled(tmp_path, nobody):
    path = in_layout(tmp_path, 2) / "valid_u" / "meta_expressions.json"
    meta = json.loads(path.read_text("utf-8"))
    meta["videos"]["0123456789ab"]["expressions"]["0"] |= {"obj_id": nobody, "anno_id": nobody}
    path.write_text(json.dumps(meta), "utf-8")
    with pytest.raises(DataError, match="1 of its 2 expressions have 'no target'"):
        open_dataset("mevis", root=tmp_path).clips()
    data = open_dataset("mevis_v2", root=tmp_path)
    clip = data.clips()[0]
    assert data.target(clip, data.expressions(clip)[0]).objects == ()


def test_v2_keeps_audio_and_absent_targets_and_hides_masks(tmp_path):
    words = [("it", [0], {}), ("the unicorn", [], {})]
    for split, hidden in (("valid_u", False), ("valid", True), ("test", True)):
        write_mevis_v2_set(tmp_path, split, [video(expressions=words)], hidden=hidden)
        data = open_dataset("mevis_v2", root=tmp_path, split=split)
        clip = data.clips()[0]
        first, second = data.expressions(clip)
        assert first.attrs["audio"] == f"{clip.id}_0.wav"
        if hidden:
            assert data.target(clip, first) is None
        else:
            assert np.array_equal(union(data.target(clip, first)), boxes(4))
            assert data.target(clip, second).objects == ()


def test_v2_is_the_same_layout_with_more_fields(tmp_path):
    write_meta_expressions_set(tmp_path, "valid_u", [video(expressions=[("it", [0], {"audio": "a.wav"})])])
    folder = tmp_path / "valid_u"
    (folder / "meta_expressions.json").rename(folder / "meta_expressions_v2.json")
    data = open_dataset("mevis_v2", root=tmp_path)
    clip = data.clips()[0]
    assert data.expressions(clip)[0].attrs["audio"] == "a.wav"
    assert np.array_equal(union(data.target(clip, data.expressions(clip)[0])), boxes(4))


def test_only_some_videos(tmp_path):
    write_meta_expressions_set(tmp_path, "valid_u", [video(), video("ba9876543210", seed=1)])
    assert [c.id for c in MetaExpressions(root=tmp_path, videos=["ba9876543210"]).clips()] == ["ba9876543210"]
    with pytest.raises(ConfigError, match="'x'"):
        MetaExpressions(root=tmp_path, videos=["x"]).clips()


def test_expression_without_objects_has_a_target_that_is_absent(tmp_path):
    write_meta_expressions_set(
        tmp_path, "valid_u", [video(expressions=[("the unicorn", [], {"type": "absent"})])]
    )
    data = MetaExpressions(name="mine", root=tmp_path)
    clip = data.clips()[0]
    expression = data.expressions(clip)[0]
    target = data.target(clip, expression)
    assert expression.attrs["type"] == "absent"
    assert target.objects == ()
    assert target.union().area() == [0, 0, 0, 0]


def test_an_unknown_split_is_told_with_those_on_disk(tmp_path):
    for split in ("valid", "valid_u"):
        write_meta_expressions_set(tmp_path, split, [video()])
    with pytest.raises(DataError, match="has no split 'train' here") as error:
        list(open_dataset("mevis", root=tmp_path, split="train").clips())
    assert "allowed: valid, valid_u" in str(error.value)


@pytest.mark.parametrize(
    ("place", "root", "words"),
    [
        ("data/mevis", None, None),
        ("data/MeViS_release", None, None),
        ("data/mevis/MeViS_release", None, None),
        ("data/MEVIS", None, None),
        ("here", "here", None),
        ("here/MeViS_release", "here", None),
        ("here/mevis release", "here", None),
        ("here/something", "here", "here/something: set dataset.root="),
        ("here", "here/valid_u", "here: set dataset.root="),
        ("there", "here", "no such folder"),
    ],
)
def test_the_set_is_found_where_its_archive_laid_it_or_told_where_it_is(
    tmp_path, monkeypatch, place, root, words
):
    monkeypatch.chdir(tmp_path)
    write_meta_expressions_set(tmp_path / place, "valid_u", [video()])
    data = MetaExpressions(root=None if root is None else Path(root))
    if words is None:
        assert data.base().resolve() == (tmp_path / place)
    else:
        with pytest.raises(DataError, match=words):
            data.base()


def test_another_spelling_of_the_expression_file_is_told(tmp_path):
    write_meta_expressions_set(tmp_path, "valid_u", [video()])
    (tmp_path / "valid_u/meta_expressions.json").rename(tmp_path / "valid_u/meta_expression.json")
    with pytest.raises(DataError, match="rename it to meta_expressions.json"):
        MetaExpressions(root=tmp_path).base()


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ('{"videos": {}}\n{"videos": {}}', "JSON lines"),
        ('{"videos": {}}'.encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        ("version https://git-lfs.github.com/spec/v1", "LFS"),
        ("[" * 200_000, "nested|torn"),
        ("[" * 200 + "]" * 200, "nested"),
        ('{"videos": ' + "9" * 5000 + "}", "malformed"),
        ('{"videos": {"a": "\\ud800"}}', "half character"),
        ("", "malformed"),
    ],
)
def test_what_stands_in_the_expression_file_instead_is_told(tmp_path, stored, words):
    write_meta_expressions_set(tmp_path, "valid_u", [video()])
    file = tmp_path / "valid_u/meta_expressions.json"
    file.write_bytes(stored if isinstance(stored, bytes) else stored.encode())
    with pytest.raises(DataError, match=words) as caught:
        MetaExpressions(root=tmp_path).clips()
    assert "meta_expressions.json" in caught.value.where


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    write_meta_expressions_set(tmp_path, "valid_u", [video()])
    for file in (tmp_path / "valid_u").glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    data = MetaExpressions(root=tmp_path)
    clip = data.clips()[0]
    assert data.target(clip, data.expressions(clip)[0]) is not None


def test_a_mask_file_under_another_name_is_told_with_the_rename(tmp_path):
    write_meta_expressions_set(tmp_path, "valid_u", [video()])
    (tmp_path / "valid_u/mask_dict.json").rename(tmp_path / "valid_u/mask_dict(1).json")
    data = MetaExpressions(root=tmp_path)
    clip = data.clips()[0]
    with pytest.raises(DataError, match="rename it to mask_dict.json"):
        data.target(clip, data.expressions(clip)[0])
