"""The shipped photographs: read by RefCOCO's loader, rebuilt from polygons and scikit-image's wheel."""

import importlib.util
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from refseg_bench.datasets.refcoco import RefCoco
from refseg_bench.env import resource
from refseg_bench.errors import DataError
from tools.writers import write_refcoco_set

SHIPPED = resource("datasets") / "photos"
TOOL = resource("datasets").parent / "tools" / "make_photos.py"

spec = importlib.util.spec_from_file_location("make_photos", TOOL)
make_photos = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_photos)


@pytest.fixture
def photos(tmp_path):
    return RefCoco(name="photos", root=SHIPPED, cache=tmp_path, folders=["photos"], images=["images"])


def raster(polygons, size):
    """Pixels half covered, by another rasteriser than the loader's, eight times as fine."""
    canvas = np.zeros((8 * size[0], 8 * size[1]), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [np.round(8 * np.array(polygon).reshape(-1, 2)).astype(np.int32)], 1)
    return cv2.resize(canvas.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA) >= 0.5


def test_the_shipped_set_is_what_its_card_says(photos):
    clips = photos.clips()
    sentences = [expression.text for clip in clips for expression in photos.expressions(clip)]
    card = (SHIPPED / "README.md").read_text()
    annotations = json.loads((SHIPPED / "instances.json").read_text())["annotations"]
    assert f"{len(clips)} photographs, {len(annotations)} objects, {len(sentences)} sentences" in card
    assert len(set(sentences)) == len(sentences)
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 1_200_000
    for drawing in make_photos.drawings(SHIPPED):
        height, width = drawing["size"]
        assert f"| `{drawing['image']}` | {width} x {height} |" in card
        assert drawing["licence"]


def test_masks_are_the_drawn_polygons(photos):
    drawn = {drawing["image"]: drawing for drawing in make_photos.drawings(SHIPPED)}
    for clip in photos.clips():
        drawing = drawn[clip.frame_paths[0].stem]
        assert list(clip.size) == drawing["size"]
        expressions = iter(photos.expressions(clip))
        for each in drawing["objects"]:
            want = raster(each["polygons"], clip.size)
            for sentence in each["sentences"]:
                expression = next(expressions)
                assert expression.text == sentence.lower()
                got = photos.target(clip, expression).union().mask(0)
                # COCO's rasteriser may be off by a pixel along the outline; the tripod is all outline.
                assert (got & want).sum() / (got | want).sum() > 0.94, sentence


def test_polygons_stay_inside_and_touching_objects_apart():
    for drawing in make_photos.drawings(SHIPPED):
        height, width = drawing["size"]
        for each in drawing["objects"]:
            for polygon in each["polygons"]:
                corners = np.array(polygon).reshape(-1, 2)
                assert len(corners) >= 4
                assert (corners >= 0).all()
                assert (corners <= [width, height]).all()
        parts = {each["name"]: raster(each["polygons"], (height, width)) for each in drawing["objects"]}
        for one, other in (("woman", "helmet"), ("cup", "spoon"), ("cup", "saucer"), ("man", "tripod")):
            if one in parts and other in parts:
                shared = (parts[one] & parts[other]).sum()
                assert shared < 0.05 * min(parts[one].sum(), parts[other].sum()), (one, other)


def test_rebuilding_gives_the_shipped_set(tmp_path):
    records = [make_photos.record(drawing) for drawing in make_photos.drawings(SHIPPED)]
    write_refcoco_set(tmp_path, records, jpeg_quality=make_photos.QUALITY)
    assert (tmp_path / "instances.json").read_bytes() == (SHIPPED / "instances.json").read_bytes()
    assert (tmp_path / "refs(unc).p").read_bytes() == (SHIPPED / "refs(unc).p").read_bytes()
    for path in (SHIPPED / "images").iterdir():
        # Encoders of different libjpeg builds round differently, so pixels are compared, not bytes.
        shipped, rebuilt = (
            np.asarray(Image.open(p), dtype=int) for p in (path, tmp_path / "images" / path.name)
        )
        assert np.abs(shipped - rebuilt).mean() < 1.0


def test_the_pickle_holds_python_2_strings():
    raw = (SHIPPED / "refs(unc).p").read_bytes()
    assert raw[:2] == b"\x80\x02"
    refs = pickle.loads(raw, encoding="bytes")
    assert isinstance(next(iter(refs[0])), bytes)
    assert {ref[b"split"] for ref in refs} == {b"val"}


def test_a_picture_of_another_size_is_refused():
    drawing = {**make_photos.drawings(SHIPPED)[0], "size": [10, 10]}
    with pytest.raises(DataError, match="drawn at"):
        make_photos.picture(drawing)


def test_the_overlay_shows_every_object(tmp_path):
    for drawing in make_photos.drawings(SHIPPED):
        picture = Image.fromarray(make_photos.picture(drawing))
        assert make_photos.overlay(drawing).size == (2 * picture.width, 2 * picture.height)
    assert Path(TOOL).is_file()
