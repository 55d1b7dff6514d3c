"""Every quirk of the RefCOCO family."""

import contextlib
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_bench.config.components import open_dataset
from refseg_bench.datasets import index
from refseg_bench.datasets.files import Place
from refseg_bench.datasets.prepare import prepare
from refseg_bench.datasets.refcoco import RefCoco, layers_of
from refseg_bench.datasets.verify import verify
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.types import decode_rle
from tools.writers import ImageRecord, write_refcoco_set

from .conftest import frames

SQUARE = [4, 4, 20, 4, 20, 16, 4, 16]
OTHER = [12, 8, 30, 8, 30, 20, 12, 20]
SIZE = (24, 32)
HERE = Place(Path("instances.json"), "annotation 1")


def image(name="COCO_train2014_000000000042.jpg", **how):
    how = {"segmentations": [[SQUARE], [OTHER]], "refs": [([0], ["The Café", "it"]), ([1], ["that"])], **how}
    return ImageRecord(name, frames(1, SIZE)[0], **how)


def test_one_sample_is_one_sentence(tmp_path):
    write_refcoco_set(
        tmp_path / "refcoco",
        [image(), image("b.jpg", split="testA")],
        image_folder="../images/mscoco/images/train2014",
    )
    data = RefCoco(root=tmp_path)
    assert len(data.clips()) == 1
    clip = data.clips()[0]
    assert (clip.id, clip.size, len(clip)) == ("1", SIZE, 1)
    assert clip.load().shape == (1, *SIZE, 3)
    found = data.expressions(clip)
    assert [(e.id, e.text, e.attrs["ref_id"], e.attrs["anno_ids"]) for e in found] == [
        ("0", "the café", 0, ["1"]),
        ("1", "it", 0, ["1"]),
        ("2", "that", 1, ["2"]),
    ]
    assert data.target(clip, found[2]).union().area() == [
        int(coco_mask.area(coco_mask.frPyObjects([OTHER], *SIZE))[0])
    ]


def test_refs_are_a_python2_pickle_read_as_latin1(tmp_path):
    write_refcoco_set(tmp_path, [image()])
    raw = (tmp_path / "refs(unc).p").read_bytes()
    assert raw[:2] == b"\x80\x02"
    assert "café".encode("latin1") in raw
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(raw)
    data = RefCoco(root=tmp_path)
    assert data.expressions(data.clips()[0])[0].attrs["tokens"] == ["the", "café"]


@pytest.mark.parametrize(
    ("text", "expected"), [("sent", "the café"), ("sent_lower", "the café"), ("raw", "The Café")]
)
def test_text_field(tmp_path, text, expected):
    write_refcoco_set(tmp_path, [image()])
    data = RefCoco(root=tmp_path, text=text)
    assert data.expressions(data.clips()[0])[0].text == expected


def test_split_author_is_part_of_the_file_and_of_the_name(tmp_path):
    write_refcoco_set(tmp_path / "refcocog", [image()], split_by="umd")
    write_refcoco_set(tmp_path / "refcocog", [image(), image("b.jpg")], split_by="google")
    sizes = [
        len(RefCoco(name=f"refcocog_{by}", split_by=by, folders=["refcocog"], root=tmp_path).clips())
        for by in ("umd", "google")
    ]
    assert sizes == [1, 2]
    with pytest.raises(ConfigError, match="says 'unc'"):
        RefCoco(name="refcoco_unc", split_by="google")


def test_an_unknown_split_lists_what_the_author_has(tmp_path):
    write_refcoco_set(tmp_path, [image(split="testA"), image("b.jpg", split="val")])
    with pytest.raises(DataError, match="no split 'test'") as caught:
        RefCoco(root=tmp_path, split="test").clips()
    assert caught.value.allowed == ["testA", "val"]


@pytest.mark.parametrize("pickled", [False, True])
def test_grefcoco_has_lists_of_objects_and_no_target(tmp_path, pickled):
    refs = [([0, 1], ["both"]), ([], ["the unicorn"])]
    write_refcoco_set(
        tmp_path / "grefcoco", [image(refs=refs)], generalised=True, image_folder="../images/train2014"
    )
    if pickled:
        path = tmp_path / "grefcoco" / "grefs(unc).json"
        (path.with_suffix(".p")).write_bytes(pickle.dumps(json.loads(path.read_text()), protocol=2))
        path.unlink()
    data = RefCoco(
        name="grefcoco_unc",
        root=tmp_path,
        folders=["grefcoco"],
        refs=["grefs({split_by}).json", "grefs({split_by}).p"],
    )
    clip = data.clips()[0]
    both, nothing = data.expressions(clip)
    assert (both.attrs["no_target"], nothing.attrs["no_target"]) == (False, True)
    assert len(data.target(clip, both).objects) == 2
    assert data.target(clip, nothing).objects == ()
    assert data.target(clip, nothing).union().area() == [0]


def polygon_mask(polygon):
    return coco_mask.decode(coco_mask.frPyObjects([polygon], *SIZE)[0])


def test_doubly_covered_pixels_are_given_beside_the_union():
    union, double = layers_of([SQUARE, OTHER], SIZE, HERE)
    summed = polygon_mask(SQUARE).astype(int) + polygon_mask(OTHER)
    assert np.array_equal(decode_rle(union, SIZE), summed > 0)
    assert np.array_equal(decode_rle(double, SIZE), summed == 2)
    assert len(layers_of([SQUARE, [22, 18, 30, 18, 30, 22]], SIZE, HERE)) == 1


@given(
    st.lists(
        st.lists(st.integers(-5, 40), min_size=6, max_size=10).filter(lambda p: len(p) % 2 == 0),
        min_size=1,
        max_size=4,
    )
)
def test_union_and_overlap_equal_the_sum_of_the_parts(polygons):
    union, double, *_ = [*layers_of(polygons, SIZE, HERE), None]
    summed = sum(polygon_mask(p).astype(int) for p in polygons)
    assert np.array_equal(decode_rle(union, SIZE), summed > 0)
    assert double is None or np.array_equal(decode_rle(double, SIZE), summed > 1)
    assert (double is None) == (summed.max() < 2)
    layers = layers_of(polygons, SIZE, HERE)
    assert len(layers) == max(1, summed.max())
    for n, layer in enumerate(layers, start=1):
        assert np.array_equal(decode_rle(layer, SIZE), summed >= n)


def test_segmentation_may_be_one_rle_or_several(tmp_path):
    mask = polygon_mask(SQUARE)
    packed = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": list(SIZE), "counts": packed["counts"].decode()}
    runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0)))
    column = mask.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(column)) + 1
    plain = {"size": list(SIZE), "counts": np.diff([0, *changes, column.size]).tolist()}
    assert runs.size
    for segmentation in (text, [text], plain):
        union, *double = layers_of(segmentation, SIZE, HERE)
        assert np.array_equal(decode_rle(union, SIZE), mask == 1)
        assert not double


def test_image_size_and_file_name_come_from_instances(tmp_path):
    write_refcoco_set(tmp_path, [image()])
    refs = pickle.loads((tmp_path / "refs(unc).p").read_bytes(), encoding="latin1")
    refs[0]["file_name"] = "COCO_train2014_000000000042_7.jpg"  # the real refs carry the annotation's number
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    clip = RefCoco(root=tmp_path).clips()[0]
    assert clip.frame_paths[0].name == "COCO_train2014_000000000042.jpg"


def test_the_joined_store_on_disk_says_the_same_as_memory(tmp_path, monkeypatch):
    write_refcoco_set(tmp_path, [image(), image("b.jpg")])

    def all_of(data):
        return [
            (c, list(data.expressions(c)), [data.target(c, e) for e in data.expressions(c)])
            for c in data.clips()
        ]

    expected = all_of(RefCoco(root=tmp_path))
    monkeypatch.setattr(index, "SMALL", 0)
    assert all_of(RefCoco(root=tmp_path)) == expected
    stored = sorted(p.name for p in (tmp_path / "cache" / "index").iterdir())
    assert len(stored) == 2
    monkeypatch.setattr("refseg_bench.datasets.refcoco.join", lambda *_: pytest.fail("joined again"))
    assert all_of(RefCoco(root=tmp_path)) == expected


@pytest.mark.parametrize(
    ("listed", "stored"),
    [
        ("COCO_train2014_000000000009.jpg", "train2014/000000000009.jpg"),
        ("000000000009.jpg", "train2014/COCO_train2014_000000000009.jpg"),
        ("COCO_train2014_000000000009_3.jpg", "train2014/COCO_train2014_000000000009.jpg"),
        ("COCO_train2014_000000000009.jpg", "train2014/COCO_train2014_000000000009.JPG"),
        ("COCO_train2014_000000000009.jpg", "train2017/000000000009.jpg"),
        ("COCO_train2014_000000000009.jpg", "val2017/000000000009.jpg"),
        ("a picture.jpg", "train2014/A picture.JPEG"),
    ],
)
def test_a_picture_is_found_under_the_other_spelling_of_its_name(tmp_path, listed, stored):
    record = ImageRecord(listed, frames(1)[0], [[[1, 1, 9, 1, 9, 9]]], [([0], ["it"])])
    write_refcoco_set(tmp_path, [record], split_by="unc", image_folder="images/train2014")
    target = tmp_path / "images" / stored
    target.parent.mkdir(exist_ok=True)
    (tmp_path / "images/train2014" / listed).rename(target)
    with contextlib.suppress(OSError):
        (tmp_path / "images/train2014").rmdir()
    data = RefCoco(root=tmp_path, cache=tmp_path / "cache")
    assert data.clips()[0].frame_paths == (target,)
    assert data.clips()[0].frame_names == (Path(listed).stem,)
    assert verify(RefCoco(root=tmp_path)).ok


@pytest.mark.parametrize(
    ("segmentation", "area", "notes", "problem"),
    [
        ([], 0, 1, None),
        ([SQUARE, []], 192, 1, None),
        ([[], SQUARE, [1, 2, 3, 4]], 192, 2, None),
        ([SQUARE, {"size": [24, 32], "counts": [0, 24, 744]}], 216, 0, None),
        ({"size": [24, 32], "counts": [0, 768]}, 768, 0, None),
        ({"size": [24, 32], "counts": [768]}, 0, 1, None),
        ([[4, 4, 12, 4, 20, 4]], 0, 1, None),
        ([[]], None, 0, "three points"),
        ([[1, 2, 3, 4]], None, 0, "three points"),
        ([[1, 2, 3, 4, 5]], None, 0, "three points"),
        ([SQUARE, [float("nan"), 1]], None, 0, "three points"),
        ([SQUARE, "x"], None, 0, "three points"),
        ({}, None, 0, "'size' and 'counts'"),
        ("x", None, 0, "no list"),
    ],
)
def test_parts_without_area_are_left_out_and_noted(tmp_path, segmentation, area, notes, problem):
    record = image(segmentations=[[SQUARE]], refs=[([0], ["it"])])
    write_refcoco_set(tmp_path, [record], image_folder="images")
    file = tmp_path / "instances.json"
    whole = json.loads(file.read_text())
    whole["annotations"][0].update(segmentation=segmentation, bbox=None)
    file.write_text(json.dumps(whole))
    data = RefCoco(root=tmp_path)
    clip = data.clips()[0]
    verdict = verify(RefCoco(root=tmp_path))
    assert len(verdict.notes) == notes
    if problem is None:
        assert verdict.ok
        assert (
            decode_rle(data.target(clip, data.expressions(clip)[0]).objects[0].rles[0], clip.size).sum()
            == area
        )
    else:
        assert problem in verdict.problems[0].what
        with pytest.raises(DataError, match=problem):
            data.target(clip, data.expressions(clip)[0])


def test_a_set_of_a_family_is_taken_from_its_own_folder(tmp_path):
    for name, words in (("refcoco", "left man"), ("refcoco+", "man in red")):
        write_refcoco_set(tmp_path / "refer_seg" / name, [image(refs=[([0], [words])])])
    shutil.make_archive(str(tmp_path / "refer_seg"), "zip", tmp_path, "refer_seg")
    for name, words in (("refcoco_unc", "left man"), ("refcoco_plus_unc", "man in red")):
        prepare(name, [tmp_path / "refer_seg.zip"], tmp_path / name)
        data = open_dataset(name, root=tmp_path / name)
        assert [e.text for e in data.expressions(data.clips()[0])] == [words]


def test_a_file_under_another_name_is_told_with_the_rename(tmp_path):
    write_refcoco_set(tmp_path, [image()], image_folder="images")
    (tmp_path / "instances.json").rename(tmp_path / "instances_train2014.json")
    with pytest.raises(DataError, match="rename it to instances.json"):
        RefCoco(root=tmp_path).clips()


def test_the_error_of_a_turned_photo_names_the_turn(tmp_path):
    write_refcoco_set(tmp_path, [image()], image_folder="images")
    path = tmp_path / "images/COCO_train2014_000000000042.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    words = r"asks for a turn \(EXIF orientation 6\), which this data set doesn't follow"
    with pytest.raises(DataError, match=words):
        RefCoco(root=tmp_path).clips()[0].load()
    (problem,) = verify(RefCoco(root=tmp_path)).kinds()["frame of another size"]
    assert re.search(words, problem.what)
