"""Every quirk of Ref-YouTube-VOS' layout."""

import json

import numpy as np
import pytest

from refseg_bench.datasets.ref_youtube_vos import RefYoutubeVos, running_numbers
from refseg_bench.errors import DataError
from tools.writers import write_label_map, write_ref_youtube_vos_set

from .conftest import boxes, union, video


def train(tmp_path, **how):
    one = [(f"sentence {i}", [i % 2], {}) for i in range(12)]
    clips = [
        video("ffffffffff", expressions=one, names=["00005", "00010", "00020", "00025"]),
        video("0000000001", expressions=one, seed=1),
    ]
    write_ref_youtube_vos_set(tmp_path, "train", clips, **how)
    return RefYoutubeVos(root=tmp_path, split="train")


def test_frame_names_come_from_the_list_with_gaps_and_late_starts(tmp_path):
    clip = train(tmp_path).clips()[0]
    assert clip.id == "ffffffffff"  # file order, not sorted
    assert clip.frame_names == ("00005", "00010", "00020", "00025")


def test_obj_id_is_text_and_selects_a_palette_index(tmp_path):
    data = train(tmp_path)
    clip = data.clips()[0]
    first, second = data.expressions(clip)[:2]
    assert (first.attrs["obj_ids"], second.attrs["obj_ids"]) == (["1"], ["2"])
    assert np.array_equal(union(data.target(clip, first)), boxes(4))
    assert np.array_equal(union(data.target(clip, second)), boxes(4, 14, 5))


@pytest.mark.parametrize(("said", "objects"), [(["1", "2"], ("1", "2")), ("-1", ())])
def test_the_number_of_an_expression_is_no_object(tmp_path, said, objects):
    train(tmp_path)
    file = tmp_path / "meta_expressions/train/meta_expressions.json"
    whole = json.loads(file.read_text())
    # Expression "1" of the video sorted first has the number 1, which is an object's, too.
    whole["videos"]["0000000001"]["expressions"]["1"]["obj_id"] = said
    file.write_text(json.dumps(whole))
    data = RefYoutubeVos(root=tmp_path, split="train")
    clip = data.clips()[1]
    alone = [union(data.target(clip, e)) for e in data.expressions(clip)[2:4]]
    target = data.target(clip, data.expressions(clip)[1])
    assert target.object_ids == objects
    assert np.array_equal(union(target), alone[0] | alone[1] if objects else np.zeros_like(alone[0]))


def test_running_anno_ids_sort_videos_and_expression_ids_as_text():
    videos = {"b": {"expressions": {"0": 0, "2": 0, "10": 0}}, "a": {"expressions": {"0": 0}}}
    assert running_numbers(videos) == {("a", "0"): "0", ("b", "0"): "1", ("b", "10"): "2", ("b", "2"): "3"}


@pytest.mark.parametrize("masks", ["Annotations", "mask_dict.pkl"])
def test_mask_dict_pickle_gives_the_same_targets_as_the_pngs(tmp_path, masks):
    data = train(tmp_path, masks=masks)
    for clip in data.clips():
        for index, expression in enumerate(data.expressions(clip)):
            expected = boxes(4) if index % 2 == 0 else boxes(4, 14, 5)
            assert np.array_equal(union(data.target(clip, expression)), expected), (clip.id, expression.id)


def test_valid_holds_words_only_and_has_no_targets(tmp_path):
    write_ref_youtube_vos_set(tmp_path, "valid", [video("aaaaaaaaaa")])
    data = RefYoutubeVos(root=tmp_path)
    clip = data.clips()[0]
    expression = data.expressions(clip)[0]
    assert "obj_ids" not in expression.attrs
    assert data.target(clip, expression) is None


@pytest.fixture
def all_507(tmp_path):
    """A valid list as it was published: 202 valid and 305 test videos, one frame each."""
    clips = [video(f"{i:010x}", length=1, expressions=[("it", [0], {})], size=(24, 32)) for i in range(507)]
    write_ref_youtube_vos_set(tmp_path, "valid", clips)
    return tmp_path, [clip.name for clip in clips]


def test_202_rule_valid_minus_test(all_507):
    root, names = all_507
    folder = root / "meta_expressions" / "test"
    folder.mkdir()
    test = names[1:306]
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": {n: {} for n in test}}))
    assert [c.id for c in RefYoutubeVos(root=root).clips()] == [names[0], *names[306:]]
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": {n: {} for n in test[:-1]}}))
    with pytest.raises(DataError, match="leaves 203 of 507"):
        RefYoutubeVos(root=root).clips()
    (folder / "meta_expressions.json").unlink()
    with pytest.raises(DataError, match="lists 507 videos; only 202"):
        RefYoutubeVos(root=root).clips()
    (root / "valid_202.txt").write_text("\n".join(names[:202]) + "\n")
    assert [c.id for c in RefYoutubeVos(root=root).clips()] == names[:202]
    (root / "valid_202.txt").unlink()
    (root / "valid_202.json").write_text(json.dumps(names[5:207]))
    assert [c.id for c in RefYoutubeVos(root=root).clips()] == names[5:207]


def test_202_rule_takes_a_file_that_has_only_valid_videos(tmp_path):
    write_ref_youtube_vos_set(tmp_path, "valid", [video("aaaaaaaaaa"), video("bbbbbbbbbb")])
    assert len(RefYoutubeVos(root=tmp_path).clips()) == 2


@pytest.mark.parametrize("masks", [True, False])
def test_masks_of_valid_that_no_object_id_points_to_are_told(tmp_path, masks):
    write_ref_youtube_vos_set(tmp_path, "valid", [video("0123456789", expressions=[("it", [0], {})])])
    for frame in (tmp_path / "valid/JPEGImages/0123456789").iterdir() if masks else ():
        path = tmp_path / "valid/Annotations/0123456789" / f"{frame.stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_label_map(path, np.ones((24, 32), np.uint8))
    data = RefYoutubeVos(root=tmp_path)
    clip = data.clips()[0]
    expression = data.expressions(clip)[0]
    assert data.target(clip, expression) is None
    what, hint = data.no_truth(clip, expression)
    assert ("There are masks in" in what) == masks
    assert "obj_id" in what + hint
    assert "README.md" in hint
