"""Every quirk of ReasonSeg."""

import json
import os

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from refseg_bench.datasets.reasonseg import ReasonSeg, label_map
from refseg_bench.datasets.verify import verify
from refseg_bench.errors import DataError
from tools.writers import write_reasonseg_image

from .conftest import frames

SIZE = (40, 60)
TRIANGLE = [[5.9, 4.2], [30.7, 8.8], [12.1, 33.6]]


def write(tmp_path, shapes, name="a", texts=("What holds the soup?", "the bowl"), **how):
    write_reasonseg_image(tmp_path / "ReasonSeg", "val", name, frames(1, SIZE)[0], texts, shapes, **how)


def mask_of(tmp_path, **options):
    data = ReasonSeg(root=tmp_path, **options)
    clip = data.clips()[0]
    return data.target(clip, data.expressions(clip)[0])


def painted(points, value=1, canvas=None):
    """OpenCV called directly: the closed outline, then the filling, on cut coordinates."""
    canvas = np.zeros(SIZE, np.uint8) if canvas is None else canvas
    corners = np.array([points], dtype=np.int32)
    cv2.polylines(canvas, corners, True, value, 1)
    cv2.fillPoly(canvas, corners, value)
    return canvas


def test_polygon_is_opencvs_raster_of_coordinates_cut_to_int(tmp_path):
    write(tmp_path, [("target", TRIANGLE)])
    target = mask_of(tmp_path)
    assert np.array_equal(target.union().mask(0), painted(TRIANGLE) == 1)
    assert target.void is None


polygons = st.lists(st.lists(st.floats(-20, 80, width=32), min_size=2, max_size=2), min_size=1, max_size=7)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["target", "IGNORE", "my ignored part", "flag", "Flag", "flagpole"]), polygons
        ),
        max_size=5,
    )
)
def test_raster_equals_a_direct_restatement(shapes):
    kept = [(label, points) for label, points in shapes if label.lower() != "flag"]
    order = sorted(range(len(kept)), key=lambda i: (int((painted(kept[i][1]) > 0).sum()), i), reverse=True)
    expected = np.zeros(SIZE, np.uint8)
    for i in order:
        label, points = kept[i]
        painted(points, 255 if "ignore" in label.lower() else 1, expected)
    found = label_map([{"label": label, "points": points} for label, points in shapes], SIZE)
    assert np.array_equal(found, expected)


def test_small_polygons_are_painted_over_large_ones(tmp_path):
    big, small = [[2, 2], [50, 2], [50, 35], [2, 35]], [[10, 10], [20, 10], [20, 20], [10, 20]]
    write(tmp_path, [("target", small), ("ignore", big)])
    target = mask_of(tmp_path)
    assert target.union().area() == [121]
    assert target.void.area() == [49 * 34 - 121]
    write(tmp_path, [("ignore this", small), ("target", big)])
    target = mask_of(tmp_path)
    assert target.void.area() == [121]


def test_flag_is_skipped_but_a_label_that_contains_it_is_not(tmp_path):
    write(tmp_path, [("FLAG", TRIANGLE)])
    assert mask_of(tmp_path).objects == ()
    write(tmp_path, [("flagpole", TRIANGLE)])
    assert mask_of(tmp_path).union().area() == [int((painted(TRIANGLE) > 0).sum())]


def test_an_image_without_polygons_has_an_empty_target(tmp_path):
    write(tmp_path, [])
    target = mask_of(tmp_path)
    assert target.objects == ()
    assert target.union().area() == [0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shape_type": "rectangle", "points": [[1, 1], [9, 9]]}, "A rectangle of 2 points is taken for"),
        ({"points": [[0.1, 0.1], [0.3, 0.1], [0.3, 0.4]]}, "x, y 0.3, 0.4 in a picture of 60 x 40"),
        ({"points": [[1, 1], [90, 1], [90, 20]]}, "x, y 90, 20 in a picture of 60 x 40"),
        ({"points": [[1, 1], [62, 1], [62, 41]]}, ""),
        (None, "drawn on (400, 600) pixels, the picture is (40, 60) (height, width)"),
    ],
)
def test_what_seems_to_be_drawn_on_another_picture_is_noted(tmp_path, change, told):
    write(tmp_path, [("target", [[1, 1], [9, 1], [9, 9]])])
    file = tmp_path / "ReasonSeg/val/a.json"
    record = json.loads(file.read_text())
    record["shapes"][0].update(change or {})
    file.write_text(json.dumps(record if change else {**record, "imageHeight": 400, "imageWidth": 600}))
    verdict = verify(ReasonSeg(root=tmp_path))
    assert verdict.ok
    assert [told in note for note in verdict.notes] == ([True] if told else [])


def test_only_the_first_text_unless_asked(tmp_path):
    write(tmp_path, [("target", TRIANGLE)])
    first = ReasonSeg(root=tmp_path)
    assert [e.text for e in first.expressions(first.clips()[0])] == ["What holds the soup?"]
    every = ReasonSeg(root=tmp_path, texts="all")
    assert [(e.id, e.attrs["text_index"]) for e in every.expressions(every.clips()[0])] == [
        ("0", 0),
        ("1", 1),
    ]


def test_short_and_long(tmp_path):
    write(tmp_path, [], name="a", is_sentence=True)
    write(tmp_path, [], name="b", is_sentence=False)
    data = ReasonSeg(root=tmp_path)
    kinds = {c.id: data.expressions(c)[0].attrs for c in data.clips()}
    assert (kinds["a"]["type"], kinds["b"]["type"]) == ("long", "short")
    assert kinds["a"]["is_sentence"] is True


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_files_are_utf8_or_cp1252(tmp_path, encoding):
    write(tmp_path, [("target", TRIANGLE)], texts=("the “café”",), encoding=encoding)
    data = ReasonSeg(root=tmp_path)
    assert data.expressions(data.clips()[0])[0].text == "the “café”"


@pytest.mark.parametrize("root", ["", "ReasonSeg"])
def test_found_from_above(tmp_path, root):
    write(tmp_path / "reason_seg", [])
    assert len(ReasonSeg(root=tmp_path / "reason_seg" / root).clips()) == 1
    assert len(ReasonSeg(root=tmp_path).clips()) == 1


@pytest.mark.parametrize("root", ["", "ReasonSeg"])
def test_an_absent_split_is_told_with_those_that_are_there(tmp_path, root):
    write(tmp_path, [])
    (tmp_path / "ReasonSeg/test").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="has no split 'train' here") as caught:
        ReasonSeg(root=tmp_path / root, split="train").clips()
    assert caught.value.allowed == ["val"]


@pytest.mark.parametrize(("orientation", "size"), [(3, (40, 60)), (6, (60, 40)), (8, (60, 40))])
def test_pictures_are_read_as_their_header_turns_them(tmp_path, orientation, size):
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path, [("target", [[0, 0], [9, 0], [9, 9]])])
    path = tmp_path / "ReasonSeg" / "val" / "a.jpg"
    Image.fromarray(picture).save(path, exif=exif, quality=95)
    data = ReasonSeg(root=tmp_path)
    (clip,) = data.clips()
    assert clip.size == size == data.target(clip, data.expressions(clip)[0]).size
    # OpenCV turns it too; LISA's tool reads with it.
    assert np.array_equal(clip.load()[0] > 128, cv2.imread(str(path)) > 128)
    assert verify(data).problems == []


def test_two_pictures_of_one_stem_are_refused_by_name(tmp_path):
    write(tmp_path, [("target", TRIANGLE)])
    folder = tmp_path / "ReasonSeg/val"
    (folder / "a.jpeg").write_bytes((folder / "a.jpg").read_bytes())
    with pytest.raises(DataError, match=r"'a\.jpeg' and 'a\.jpg' share one JSON"):
        ReasonSeg(root=tmp_path).clips()
    assert list(verify(ReasonSeg(root=tmp_path)).kinds()) == ["duplicate id"]


def test_a_picture_whose_name_is_in_another_encoding_is_told(tmp_path):
    write(tmp_path, [("target", TRIANGLE)])
    folder = os.fsencode(tmp_path / "ReasonSeg/val")
    for end in (b"jpg", b"json"):
        os.rename(folder + b"/a." + end, folder + b"/\xe9." + end)
    with pytest.raises(DataError, match="name holds .* bytes that are no UTF-8"):
        ReasonSeg(root=tmp_path).clips()
    assert list(verify(ReasonSeg(root=tmp_path)).kinds()) == ["unsafe name"]
