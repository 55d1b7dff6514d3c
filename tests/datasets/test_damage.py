# ruff: noqa: E501 (one line per case reads as a table)
"""Forty-odd kinds of damaged input: each ends in one error that names file, place, reason and hint."""

import io
import json
import os
import pickle
import shutil
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refseg_bench.config.components import open_dataset
from refseg_bench.datasets.files import HINTS, Damage
from refseg_bench.datasets.groundmore import GroundMore
from refseg_bench.datasets.long_rvos import LongRvos
from refseg_bench.datasets.meta_expressions import MetaExpressions
from refseg_bench.datasets.prepare import prepare, unpack
from refseg_bench.datasets.reasonseg import ReasonSeg
from refseg_bench.datasets.reasonvos import ReasonVos
from refseg_bench.datasets.ref_davis17 import RefDavis17, convert
from refseg_bench.datasets.ref_youtube_vos import RefYoutubeVos
from refseg_bench.datasets.refcoco import RefCoco
from refseg_bench.datasets.refcoco_m import RefCocoM
from refseg_bench.datasets.revos import Revos
from refseg_bench.datasets.verify import frame_problems, verify
from refseg_bench.errors import DataError
from refseg_bench.scoring.misplaced import Names
from refseg_bench.types import Expression
from tests.fakes import FakeDataset
from tests.quick import quick_first
from tools.writers import (
    ImageRecord,
    write_davis_source,
    write_groundmore_set,
    write_long_rvos_set,
    write_meta_expressions_set,
    write_mevis_v2_set,
    write_reasonseg_image,
    write_reasonvos_set,
    write_ref_youtube_vos_set,
    write_refcoco_m_set,
    write_refcoco_set,
    write_revos_set,
)

from .conftest import frames, video

A, B = "0123456789ab", "ba9876543210"
PARQUET = "validation-00000-of-00002.parquet"
SQUARE = [4, 4, 20, 4, 20, 16, 4, 16]


# ── sound sets ───────────────────────────────────────────────────────────────


def mevis(root):
    write_meta_expressions_set(root, "valid_u", [video(A), video(B, seed=1)])
    return lambda root=root: MetaExpressions(root=root)


def mevis_v2(root):
    words = [("it", [0], {}), ("the unicorn that flies", [], {}), ("both", [0, 1], {})]
    write_mevis_v2_set(root, "valid_u", [video(A, expressions=words), video(B, seed=1)])
    return lambda root=root: open_dataset("mevis_v2", root=root)


def ytvos(root):
    write_ref_youtube_vos_set(root, "train", [video(A, expressions=[("it", [0], {}), ("that", [1], {})])])
    return lambda root=root: RefYoutubeVos(root=root, split="train")


def ytvos_pickle(root):
    words = [("it", [0], {}), ("that", [1], {})]
    write_ref_youtube_vos_set(root, "train", [video(A, expressions=words)], masks="mask_dict.pkl")
    return lambda root=root: RefYoutubeVos(root=root, split="train")


def davis(root):
    words = [(f"sentence {i}", [i // 4], {}) for i in range(8)]
    write_davis_source(root / "src", {"train": [], "val": [video("bear", expressions=words)]})
    convert(root / "src/DAVIS", root / "src/davis_text_annotations", root)
    return lambda root=root: RefDavis17(root=root)


def revos(root):
    write_revos_set(root, "valid", [video("UVO/a", expressions=[("it", [0], {"type_id": 1})])])
    return lambda root=root: Revos(root=root)


def reasonvos(root):
    write_reasonvos_set(root, [video("v1", expressions=[("it", [0], {"exp_id": 0})])])
    return lambda root=root: ReasonVos(root=root)


def long_rvos(root):
    words = [("it", [0], {"type": "dynamic"}), ("that", [1], {"type": "hybrid"})]
    write_long_rvos_set(root, "valid", [video(A, expressions=words), video(B, seed=1)])
    return lambda root=root: LongRvos(root=root)


def groundmore(root):
    words = [("who?", [0], {"action_start": "0:00", "action_end": "0:01"})]
    write_groundmore_set(root, "test", [video(A, 6, words), video(B, 6, words, seed=1)])
    return lambda root=root: GroundMore(root=root)


def refcoco_m(root):
    one = ImageRecord("a.jpg", frames(1)[0], [[SQUARE]], [([0], ["the thing", "it"])])
    images = [one, ImageRecord("b.jpg", frames(1)[0], [[SQUARE]], [([0], ["that"])])]
    write_refcoco_m_set(root / "snapshot", images)
    prepare("refcoco_m", [root / "snapshot"], root)
    return lambda root=root: RefCocoM(root=root)


def refcoco(root):
    one = ImageRecord("a.jpg", frames(1)[0], [[SQUARE]], [([0], ["the thing", "it"])])
    write_refcoco_set(root, [one, ImageRecord("b.jpg", frames(1)[0], [[SQUARE]], [([0], ["that"])])])
    return lambda root=root: RefCoco(root=root)


def reasonseg(root):
    for name in "ab":
        write_reasonseg_image(
            root, "val", name, frames(1)[0], ["why?"], [("target", [[1, 1], [9, 1], [9, 9]])]
        )
    return lambda root=root: ReasonSeg(root=root)


# ── ways to damage them ──────────────────────────────────────────────────────


def edit(path, change):
    """Load a JSON file, change it in place (or return another value), write it back."""

    def damage(root):
        file = root / path
        value = json.loads(file.read_text())
        changed = change(value)
        file.write_text(json.dumps(value if changed is None else changed))

    return damage


def repickle(path, change):
    def damage(root):
        value = pickle.loads((root / path).read_bytes(), encoding="latin1")
        change(value)
        (root / path).write_bytes(pickle.dumps(value, protocol=2))

    return damage


def reparquet(change, path=PARQUET, **columns):
    """Change the rows of a Parquet file as plain values, or give columns another type."""

    def damage(root):
        table = pq.read_table(root / path)
        rows = table.to_pylist()
        changed = change(rows)
        table = pa.Table.from_pylist(rows if changed is None else changed)
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        pq.write_table(table, root / path)

    return damage


def bomb(root):
    """Few bytes that stand for 320 MB."""
    many = pa.ListArray.from_arrays(pa.array([0, 40_000_000], pa.int32()), pa.nulls(40_000_000, pa.int64()))
    table = pa.table({"image_id": [1], "file_name": ["a.jpg"], "samples": many})
    pq.write_table(table, root / PARQUET)
    assert (root / PARQUET).stat().st_size < 2000


def sample(**fields):
    return reparquet(lambda rows: rows[0]["samples"][0].update(fields))


def mask(**fields):
    return reparquet(lambda rows: rows[0]["samples"][0]["mask"].update(fields))


def remove(path):
    def damage(root):
        place = root / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return damage


def cut(path, keep=0.5):
    def damage(root):
        data = (root / path).read_bytes()
        (root / path).write_bytes(data[: int(len(data) * keep)])

    return damage


def replace(path, old, new):
    def damage(root):
        data = (root / path).read_bytes()
        assert old in data
        (root / path).write_bytes(data.replace(old, new, 1))

    return damage


def fifo(path):
    def apply(root):
        (root / path).unlink()
        os.mkfifo(root / path)

    return apply


def overwrite(path, content):
    return lambda root: (root / path).write_bytes(content)


def image(path, size, mode="L", value=0):
    return lambda root: Image.new(mode, size, value).save(root / path)


def renamed(path, name):
    """Give every file of a folder another name."""
    return lambda root: [file.rename(name(file)) for file in sorted((root / path).iterdir())]


def black_and_white(path):
    def damage(root):
        for file in (root / path).iterdir():
            labels = np.asarray(Image.open(file))
            Image.fromarray(np.where(labels, 255, 0).astype(np.uint8)).save(file)

    return damage


def brightened(path):
    return lambda root: [
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(50)).save(file)
        for file in (root / path).iterdir()
    ]


def smoothed(path):
    def damage(root):
        for file in (root / path).iterdir():
            grey, smooth = Image.fromarray(np.asarray(Image.open(file))), Image.Resampling.BILINEAR
            grey.resize((64, 48), smooth).resize((32, 24), smooth).save(file)

    return damage


def repainted(path):
    """Swap the first two objects' indices and colours: viewers show the same."""

    def damage(root):
        for file in (root / path).iterdir():
            image = Image.open(file)
            swapped = Image.fromarray(np.array([0, 2, 1], np.uint8)[np.asarray(image)], "P")
            swapped.putpalette([0, 0, 0, 0, 128, 0, 128, 0, 0])
            swapped.save(file)

    return damage


def link(path, target="/etc/hostname"):
    def damage(root):
        (root / path).unlink()
        (root / path).symlink_to(target)

    return damage


def link_folder(root):
    outside = root.parent / "outside"
    shutil.move(root / "valid_u/JPEGImages" / A, outside)
    (root / "valid_u/JPEGImages" / A).symlink_to(outside)


class Evil:
    def __reduce__(self):
        return print, ("run!",)


LONG, GROUND = "valid/meta_expressions.json", "groundmore_test.json"
META = "valid_u/meta_expressions.json"
MASKS = "valid_u/mask_dict.json"
FRAMES = f"valid_u/JPEGImages/{A}"


def exp(video_id, key, **fields):
    return edit(META, lambda m: m["videos"][video_id]["expressions"][key].update(fields))


def rename_expression(video_id, old, new):
    def change(meta):
        expressions = meta["videos"][video_id]["expressions"]
        expressions[new] = expressions.pop(old)

    return edit(META, change)


def rename(old, new):
    return edit(META, lambda m: {"videos": {(new if k == old else k): v for k, v in m["videos"].items()}})


@dataclass
class Case:
    """One kind of damage.

    ``kind`` is what a report groups by; ``file`` and ``place`` must be in the error's `where`.
    """

    name: str
    make: Callable
    damage: Callable
    kind: str
    file: str
    place: str = ""
    verify_only: bool = False


CASES = [
    # the set as a whole
    Case("expression file missing", mevis, remove(META), "not here", ""),
    Case("torn JSON", mevis, cut(META), "torn JSON", "meta_expressions.json", "line"),
    Case("not JSON at all", mevis, overwrite(META, b"<html>quota exceeded</html>"), "another file", "meta_expressions.json", ""),
    Case("text is not UTF-8", mevis, replace(META, b"the first", b"caf\xe9 one"), "text in another encoding", "meta_expressions.json", "byte"),
    Case("no videos object", mevis, edit(META, lambda m: {"clips": {}}), "missing field", "meta_expressions.json", "the file"),
    Case("videos is a list", mevis, edit(META, lambda m: {"videos": []}), "wrong type", "meta_expressions.json", "videos"),
    Case("duplicate video", mevis, replace(META, f'"{B}"'.encode(), f'"{A}"'.encode()), "duplicate id", "meta_expressions.json", A),
    Case("duplicate expression id", mevis, replace(META, b'"1": {', b'"0": {'), "duplicate id", "meta_expressions.json", "'0'"),
    # videos and frames
    Case("video name climbs out", mevis, rename(A, "../../etc"), "unsafe name", "meta_expressions.json", "videos.../../etc"),
    Case("video name is absolute", mevis, rename(A, "/etc"), "unsafe name", "meta_expressions.json", "videos./etc"),
    Case("video record is no object", mevis, edit(META, lambda m: m["videos"].update({A: 3})), "wrong type", "meta_expressions.json", A),
    Case("frame list missing", mevis, edit(META, lambda m: m["videos"][A].pop("frames") and None), "missing field", "meta_expressions.json", A),
    Case("frame name climbs out", mevis, edit(META, lambda m: m["videos"][A]["frames"].append("../x")), "unsafe name", "meta_expressions.json", "frames[4]"),
    Case("frame name is a number", mevis, edit(META, lambda m: m["videos"][A]["frames"].append(4)), "unsafe name", "meta_expressions.json", "frames[4]"),
    Case("frame listed twice", mevis, edit(META, lambda m: m["videos"][A]["frames"].append("00001")), "duplicate id", "meta_expressions.json", f"{A}.frames"),
    Case("no frames", mevis, edit(META, lambda m: m["videos"][A].update(frames=[])), "video without frames", "meta_expressions.json", f"{A}.frames"),
    Case("video folder missing", mevis, remove(FRAMES), "missing video", A),
    Case("frame missing", mevis, remove(f"{FRAMES}/00002.jpg"), "missing frame", "00002.jpg"),
    Case("extra frame", mevis, lambda r: shutil.copy(r / FRAMES / "00001.jpg", r / FRAMES / "00009.jpg"), "extra frame", "00009.jpg", verify_only=True),
    Case("extra frame of another ending", mevis, lambda r: shutil.copy(r / FRAMES / "00001.jpg", r / FRAMES / "00001.JPG"), "extra frame", "00001.JPG", verify_only=True),
    Case("first frame is no image", mevis, overwrite(f"{FRAMES}/00000.jpg", b"nothing"), "unreadable frame", "00000.jpg"),
    Case("first frame is a FIFO", mevis, fifo(f"{FRAMES}/00000.jpg"), "unreadable frame", "00000.jpg"),
    Case("later frame cut off", mevis, cut(f"{FRAMES}/00002.jpg", 0.99), "torn frame", "00002.jpg"),
    Case("frame of another size", mevis, image(f"{FRAMES}/00003.jpg", (30, 30), "RGB"), "frame of another size", "00003.jpg"),
    Case("frame is a link to elsewhere", mevis, link(f"{FRAMES}/00001.jpg"), "link out of the data set", "00001.jpg"),
    Case("video is a link to elsewhere", mevis, link_folder, "link out of the data set", A),
    # expressions
    Case("expressions missing", mevis, edit(META, lambda m: m["videos"][A].pop("expressions") and None), "missing field", "meta_expressions.json", A),
    Case("no expression", mevis, edit(META, lambda m: m["videos"][A].update(expressions={})), "video without expressions", "meta_expressions.json", A),
    Case("empty expression", mevis, exp(A, "1", exp="  "), "empty expression", "meta_expressions.json", "expressions.1.exp"),
    Case("expression shows nothing", mevis, exp(A, "1", exp="\u200b \ufeff"), "empty expression", "meta_expressions.json", "expressions.1.exp"),
    Case("no video at all", mevis, edit(META, lambda m: {"videos": {}}), "empty split", "set", verify_only=True),
    Case("expression is a number", mevis, exp(A, "1", exp=7), "wrong type", "meta_expressions.json", "expressions.1.exp"),
    Case("expression id holds a slash", mevis, replace(META, b'"1": {', b'"a/1": {'), "unsafe name", "meta_expressions.json", "expressions.a/1"),
    Case("object id is an object", mevis, exp(A, "0", anno_id={"x": 1}), "bad object id", "meta_expressions.json", "expressions.0.anno_id"),
    Case("somebody and nobody", mevis, exp(A, "0", anno_id=[0, -1]), "bad object id", "meta_expressions.json", "expressions.0.anno_id"),
    Case("annotation id missing", mevis, edit(META, lambda m: m["videos"][A]["expressions"]["0"].pop("anno_id") and None), "missing field", "meta_expressions.json", "expressions.0"),
    Case("unknown type", revos, edit("meta_expressions_valid_.json", lambda m: m["videos"]["UVO/a"]["expressions"]["0"].update(type_id=9)), "bad type", "meta_expressions_valid_.json", "type_id"),
    Case("annotator can't be told", davis, replace("meta_expressions/valid/meta_expressions.json", b'"3": {', b'"x": {'), "bad expression id", "meta_expressions.json", "expressions.x"),
    Case("exp_id is a word", reasonvos, edit("meta_expressions.json", lambda m: m["videos"]["v1"]["expressions"][0].update(exp_id="first")), "bad expression id", "meta_expressions.json", "exp_id"),
    Case("object name climbs out", reasonvos, edit("meta_expressions.json", lambda m: m["videos"]["v1"]["expressions"][0].update(obj_id="../x")), "bad object id", "meta_expressions.json", "obj_id"),
    Case("video without a size", revos, edit("meta_expressions_valid_.json", lambda m: m["videos"]["UVO/a"].update(height=0)), "bad size", "meta_expressions_valid_.json", "UVO/a"),
    Case("no foreground of a video", revos, edit("mask_dict_foreground.json", lambda m: m.pop("UVO/a") and None), "missing entry", "mask_dict_foreground.json", verify_only=True),
    # masks in run lengths
    Case("mask file missing", mevis, remove(MASKS), "missing file", "mask_dict.json"),
    Case("a folder of the mask file's name", mevis, lambda root: [remove(MASKS)(root), (root / MASKS).mkdir()], "missing file", "mask_dict.json"),
    Case("mask file torn", mevis, cut(MASKS), "torn JSON", "mask_dict.json", "byte"),
    Case("duplicate annotation", mevis, replace(MASKS, b'"1":', b'"0":'), "duplicate id", "mask_dict.json", "'0'"),
    Case("annotation missing", mevis, edit(MASKS, lambda m: m.pop("1") and None), "missing entry", "mask_dict.json"),
    Case("fewer masks than frames", mevis, edit(MASKS, lambda m: m["0"].pop() and None), "mask count differs", "mask_dict.json", "anno_id 0"),
    Case("RLE of another size", mevis, edit(MASKS, lambda m: m["0"][2].update(size=[32, 24])), "mask of another size", "mask_dict.json", "anno_id 0[2]"),
    Case("RLE cut off", mevis, edit(MASKS, lambda m: m["0"][2].update(counts=m["0"][2]["counts"][:-3])), "torn mask", "mask_dict.json", "anno_id 0[2]"),
    Case("RLE too long for its size", mevis, edit(MASKS, lambda m: m["0"][1].update(counts=m["0"][1]["counts"] + "o7")), "torn mask", "mask_dict.json", "anno_id 0[1]"),
    Case("RLE with a letter beyond the alphabet", mevis, edit(MASKS, lambda m: m["0"][1].update(counts="é")), "torn mask", "mask_dict.json", "anno_id 0[1]"),
    Case("mask is a text", mevis, edit(MASKS, lambda m: m["0"].__setitem__(1, "mask")), "malformed mask", "mask_dict.json", "anno_id 0[1]"),
    # MeViS v2
    Case("v2: expression file missing", mevis_v2, remove(META), "not here", ""),
    Case("v2: torn JSON", mevis_v2, cut(META), "torn JSON", "meta_expressions.json", "line"),
    Case("v2: MeViS' own expression file", mevis_v2, edit(META, lambda m: m["videos"][A].update(expressions={str(i): {"exp": "x", "obj_id": [0], "anno_id": [0]} for i in range(791)})), "another release", "meta_expressions.json"),
    Case("v2: video without a sentence", mevis_v2, edit(META, lambda m: m["videos"][A].update(expressions={})), "video without expressions", "meta_expressions.json", A),
    Case("v2: absent target that isn't said", mevis_v2, edit(META, lambda m: (m["videos"][A]["expressions"]["1"].pop("anno_id") and None) or m["videos"][A]["expressions"]["1"].update(obj_id=None)), "bad object id", "meta_expressions.json", "expressions.1"),
    Case("v2: annotation id is a text list", mevis_v2, exp(A, "2", anno_id=["0", {}]), "bad object id", "meta_expressions.json", "expressions.2.anno_id"),
    Case("v2: mask file missing", mevis_v2, remove(MASKS), "missing file", "mask_dict.json"),
    Case("v2: annotation missing", mevis_v2, edit(MASKS, lambda m: m.pop("1") and None), "missing entry", "mask_dict.json"),
    Case("v2: fewer masks than frames", mevis_v2, edit(MASKS, lambda m: m["0"].pop() and None), "mask count differs", "mask_dict.json", "anno_id 0"),
    Case("v2: RLE of another size", mevis_v2, edit(MASKS, lambda m: m["0"][2].update(size=[32, 24])), "mask of another size", "mask_dict.json", "anno_id 0[2]"),
    Case("v2: frame missing", mevis_v2, remove(f"{FRAMES}/00002.jpg"), "missing frame", "00002.jpg"),
    Case("v2: frame listed twice", mevis_v2, edit(META, lambda m: m["videos"][A]["frames"].append("00001")), "duplicate id", "meta_expressions.json", f"{A}.frames"),
    Case("pickled mask with a callable", ytvos_pickle, overwrite("train/mask_dict.pkl", pickle.dumps({"0": Evil()}, protocol=2)), "pickle with a callable", "mask_dict.pkl", "print"),
    Case("fewer expressions than masks", ytvos_pickle, edit("meta_expressions/train/meta_expressions.json", lambda m: m["videos"][A]["expressions"].pop("0") and None), "mask count differs", "mask_dict.pkl"),
    Case("pickled masks torn", ytvos_pickle, cut("train/mask_dict.pkl"), "torn pickle", "mask_dict.pkl"),
    Case("pickled mask is a number", ytvos_pickle, repickle("train/mask_dict.pkl", lambda m: m["1"].__setitem__(2, 7)), "malformed mask", "mask_dict.pkl", "anno_id 1[2]"),
    # masks in PNGs
    Case("mask PNG missing", ytvos, remove(f"train/Annotations/{A}/00001.png"), "missing mask", "00001.png"),
    Case("mask PNG torn", ytvos, cut(f"train/Annotations/{A}/00001.png"), "torn mask", "00001.png"),
    Case("mask PNG is a FIFO", ytvos, fifo(f"train/Annotations/{A}/00001.png"), "torn mask", "00001.png"),
    Case("label map in colours", ytvos, image(f"train/Annotations/{A}/00001.png", (32, 24), "RGB"), "mask of another mode", "00001.png"),
    Case("mask PNG of another size", ytvos, image(f"train/Annotations/{A}/00001.png", (24, 32)), "mask of another size", "00001.png"),
    Case("object in no map", ytvos, replace("meta_expressions/train/meta_expressions.json", b'"obj_id": "2"', b'"obj_id": "7"'), "object without a pixel", A, "object 7"),
    Case("object folder missing", reasonvos, remove("Annotations/mose_v1_0"), "missing mask", "mose_v1_0"),
    Case("mask with a capital ending", reasonvos, lambda r: (r / "Annotations/mose_v1_0/00001.png").rename(r / "Annotations/mose_v1_0/00001.PNG"), "extra mask", "00001.PNG"),
    Case("mask not all there", long_rvos, lambda r: (r / f"valid/Annotations/{A}/1/00002.png").rename(r / f"valid/Annotations/{A}/1/00002.png.part"), "extra mask", "00002.png.part"),
    Case("mask is a JPEG", reasonvos, lambda r: Image.open(r / "Annotations/mose_v1_0/00001.png").convert("L").save(r / "Annotations/mose_v1_0/00001.png", "JPEG"), "mask of another mode", "00001.png"),
    Case("extra mask", reasonvos, lambda r: shutil.copy(r / "Annotations/mose_v1_0/00001.png", r / "Annotations/mose_v1_0/00044.png"), "extra mask", "00044.png"),
    # RefCOCO
    Case("pickle with a callable", refcoco, overwrite("refs(unc).p", pickle.dumps([Evil()], protocol=2)), "pickle with a callable", "refs(unc).p", "print"),
    Case("pickle torn", refcoco, cut("refs(unc).p"), "torn pickle", "refs(unc).p"),
    Case("instances.json missing", refcoco, remove("instances.json"), "missing file", "instances.json"),
    Case("instances.json torn", refcoco, cut("instances.json", 0.8), "torn JSON", "instances.json", "byte"),
    Case("annotation not in instances.json", refcoco, edit("instances.json", lambda m: m["annotations"].pop() and None), "missing entry", "refs(unc).p", "ref 1"),
    Case("annotation of another image", refcoco, edit("instances.json", lambda m: m["annotations"][1].update(image_id=1)), "missing entry", "refs(unc).p", "ref 1"),
    Case("image not in instances.json", refcoco, edit("instances.json", lambda m: m["images"].pop() and None), "missing entry", "refs(unc).p", "ref 1"),
    Case("image twice, of two sizes", refcoco, edit("instances.json", lambda m: m["images"].append({**m["images"][0], "height": 9})), "duplicate id", "instances.json", "images["),
    Case("image name climbs out", refcoco, edit("instances.json", lambda m: m["images"][0].update(file_name="../../a.jpg")), "unsafe name", "instances.json", "images[0]"),
    Case("polygon of two points", refcoco, edit("instances.json", lambda m: m["annotations"][0].update(segmentation=[[1, 2, 3, 4]])), "malformed mask", "instances.json", "annotation 1"),
    Case("polygon beside the picture", refcoco, edit("instances.json", lambda m: m["annotations"][0].update(segmentation=[SQUARE, [40, 4, 60, 4, 60, 16]])), "malformed mask", "instances.json", "annotation 1.segmentation[1]"),
    Case("somebody and nobody in a ref", refcoco, repickle("refs(unc).p", lambda refs: refs[0].update(ann_id=[1, -1])), "bad object id", "refs(unc).p", "[0].ann_id"),
    Case("image file missing", refcoco, remove("images/b.jpg"), "missing frame", "b.jpg"),
    Case("sentence without words", refcoco, repickle("refs(unc).p", lambda refs: refs[0]["sentences"][1].update(sent="", raw="")), "empty expression", "refs(unc).p", "[0].sentences[1].sent"),
    Case("ref without a sentence", refcoco, repickle("refs(unc).p", lambda refs: refs[0].update(sentences=[])), "empty expression", "refs(unc).p", "[0].sentences"),
    Case("duplicate ref", refcoco, repickle("refs(unc).p", lambda refs: refs[1].update(ref_id=0)), "duplicate id", "refs(unc).p", "[1]"),
    Case("duplicate sentence", refcoco, repickle("refs(unc).p", lambda refs: refs[0]["sentences"][1].update(sent_id=0)), "duplicate id", "refs(unc).p", "ref 0"),
    # Long-RVOS
    Case("expression without a type", long_rvos, edit(LONG, lambda m: m["videos"][A]["expressions"]["0"].pop("type") and None), "missing field", "meta_expressions.json", f"{A}.expressions.0"),
    Case("type unknown", long_rvos, edit(LONG, lambda m: m["videos"][A]["expressions"]["0"].update(type="quick")), "bad type", "meta_expressions.json", "expressions.0.type"),
    Case("type is a number", long_rvos, edit(LONG, lambda m: m["videos"][A]["expressions"]["0"].update(type=1)), "wrong type", "meta_expressions.json", "expressions.0.type"),
    Case("object missing", long_rvos, edit(LONG, lambda m: m["videos"][A]["expressions"]["0"].pop("obj_id") and None), "missing field", "meta_expressions.json", f"{A}.expressions.0"),
    Case("object climbs out", long_rvos, edit(LONG, lambda m: m["videos"][A]["expressions"]["0"].update(obj_id="../../x")), "unsafe name", "Annotations", "../../x"),
    Case("object is an object", long_rvos, edit(LONG, lambda m: m["videos"][A]["expressions"]["0"].update(obj_id={})), "bad object id", "meta_expressions.json", "expressions.0.obj_id"),
    Case("object's folder missing", long_rvos, remove(f"valid/Annotations/{A}/2"), "missing mask", f"{A}/2"),
    Case("no masks at all", long_rvos, remove("valid/Annotations"), "missing file", "Annotations"),
    Case("mask torn", long_rvos, cut(f"valid/Annotations/{A}/1/00001.png"), "torn mask", "1/00001.png"),
    Case("mask of another size", long_rvos, image(f"valid/Annotations/{A}/1/00001.png", (24, 32)), "mask of another size", "1/00001.png"),
    Case("mask of no frame", long_rvos, lambda r: shutil.copy(r / f"valid/Annotations/{A}/1/00001.png", r / f"valid/Annotations/{A}/1/7.png"), "extra mask", "7.png"),
    Case("masks named without zeros", long_rvos, renamed(f"valid/Annotations/{A}/1", lambda p: p.with_name(f"{int(p.stem)}.png")), "extra mask", f"{A}/1"),
    Case("masks with capital endings", long_rvos, renamed(f"valid/Annotations/{A}/1", lambda p: p.with_suffix(".PNG")), "extra mask", f"{A}/1"),
    Case("masks one frame late", long_rvos, lambda r: [p.rename(p.with_name(f"{int(p.stem) + 1:05d}.png")) for p in sorted((r / f"valid/Annotations/{A}/1").iterdir(), reverse=True)], "extra mask", "1/00004.png"),
    Case("mask is a link to elsewhere", long_rvos, link(f"valid/Annotations/{A}/1/00001.png"), "link out of the data set", "1/00001.png"),
    # GroundMoRe
    Case("no questions", groundmore, edit(GROUND, lambda m: m["videos"][A].pop("questions") and None), "missing field", GROUND, A),
    Case("questions are a list", groundmore, edit(GROUND, lambda m: m["videos"][A].update(questions=[])), "wrong type", GROUND, f"{A}.questions"),
    Case("question without words", groundmore, edit(GROUND, lambda m: m["videos"][A]["questions"]["0"].update(question=" ")), "empty expression", GROUND, "questions.0.question"),
    Case("question is missing", groundmore, edit(GROUND, lambda m: m["videos"][A]["questions"]["0"].pop("question") and None), "missing field", GROUND, "questions.0"),
    Case("kind of question unknown", groundmore, edit(GROUND, lambda m: m["videos"][A]["questions"]["0"].update(q_type="Quick")), "bad type", GROUND, "questions.0.q_type"),
    Case("time is a word", groundmore, edit(GROUND, lambda m: m["videos"][A]["questions"]["0"].update(action_start="soon")), "bad time", GROUND, "questions.0.action_start"),
    Case("seconds past the minute", groundmore, edit(GROUND, lambda m: m["videos"][A]["questions"]["0"].update(action_start="0:60")), "bad time", GROUND, "questions.0.action_start"),
    Case("time is missing", groundmore, edit(GROUND, lambda m: m["videos"][A]["questions"]["0"].pop("action_end") and None), "bad time", GROUND, "questions.0.action_end"),
    Case("time without end", groundmore, edit(GROUND, lambda m: m["videos"][A]["questions"]["0"].update(action_end=float("inf"))), "bad time", GROUND, "questions.0.action_end"),
    Case("object is no pixel value", groundmore, edit(GROUND, lambda m: m["videos"][A]["questions"]["0"].update(obj_id="300")), "bad object id", f"{A}", "object 300"),
    Case("frames missing", groundmore, remove(f"{A}/images"), "missing video", f"{A}/images"),
    Case("frame missing in the middle", groundmore, remove(f"{A}/images/frame_000003.jpg"), "missing frame", f"{A}/images"),
    Case("first frame missing", groundmore, remove(f"{A}/images/frame_000000.jpg"), "extra mask", f"{A}/masks/frame_000005.png"),
    Case("second copies of the frames", groundmore, lambda r: shutil.copy(r / A / "images/frame_000001.jpg", r / A / "images/frame_000001 (1).jpg"), "extra frame", f"{A}/images"),
    Case("maps with capital endings", groundmore, renamed(f"{A}/masks", lambda p: p.with_suffix(".PNG")), "extra mask", f"{A}/masks"),
    Case("maps made black and white", groundmore, black_and_white(f"{A}/masks"), "object without a pixel", A, "object 1"),
    Case("maps made bright for looking at", groundmore, brightened(f"{A}/masks"), "object without a pixel", A, "object 1"),
    Case("map torn", groundmore, cut(f"{A}/masks/frame_000002.png"), "torn mask", "frame_000002.png"),
    Case("map of another size", groundmore, image(f"{A}/masks/frame_000002.png", (24, 32)), "mask of another size", "frame_000002.png"),
    Case("map in colours", groundmore, image(f"{A}/masks/frame_000002.png", (32, 24), "RGB"), "mask of another mode", "frame_000002.png"),
    Case("clip climbs out", groundmore, replace(GROUND, f'"{A}"'.encode(), b'"../../etc"'), "unsafe name", GROUND, "videos.../../etc"),
    # RefCOCO-M
    Case("Parquet cut off", refcoco_m, cut(PARQUET), "torn Parquet", PARQUET),
    Case("Parquet is a web page", refcoco_m, overwrite(PARQUET, b"<html>"), "another file", PARQUET),
    Case("Parquet is a bomb", refcoco_m, bomb, "torn Parquet", PARQUET),
    Case("column missing", refcoco_m, reparquet(lambda rows: [{k: v for k, v in row.items() if k != "samples"} for row in rows]), "missing field", PARQUET, "the schema"),
    Case("image id is text", refcoco_m, reparquet(lambda rows: None, image_id=["one"]), "wrong type", PARQUET, "row 0.image_id"),
    Case("no name", refcoco_m, reparquet(lambda rows: rows[0].update(file_name=None)), "wrong type", PARQUET, "row 0.file_name"),
    Case("name climbs out", refcoco_m, reparquet(lambda rows: rows[0].update(file_name="../../a.jpg")), "unsafe name", PARQUET, "image 1"),
    Case("image twice", refcoco_m, reparquet(lambda rows: [*rows, *rows]), "duplicate id", PARQUET, "row 1"),
    Case("annotation twice", refcoco_m, reparquet(lambda rows: rows[0].update(samples=2 * rows[0]["samples"])), "duplicate id", PARQUET, "row 0.samples[1]"),
    Case("no sample", refcoco_m, reparquet(lambda rows: rows[0].update(samples=[]), samples=pa.array([[]], pa.list_(pa.int64()))), "missing field", PARQUET, "row 0"),
    Case("samples are numbers", refcoco_m, reparquet(lambda rows: None, samples=[[1, 2]]), "wrong type", PARQUET, "row 0.samples[0]"),
    Case("mask missing", refcoco_m, sample(mask=None), "malformed mask", PARQUET, "row 0.samples[0].mask"),
    Case("mask's size is turned into three", refcoco_m, mask(size=[24, 32, 1]), "malformed mask", PARQUET, "row 0.samples[0].mask"),
    Case("mask's size is huge", refcoco_m, mask(size=[60000, 60000]), "torn mask", PARQUET, "row 0.samples[0].mask"),
    Case("mask's runs don't fit", refcoco_m, mask(counts="04"), "torn mask", PARQUET, "row 0.samples[0].mask"),
    Case("mask's counts are no code", refcoco_m, mask(counts="\x00é"), "torn mask", PARQUET, "row 0.samples[0].mask"),
    Case("empty sentence", refcoco_m, sample(sentences=["the thing", " "]), "empty expression", PARQUET, "row 0.samples[0].sentences[1]"),
    Case("picture missing", refcoco_m, remove("images/b.jpg"), "missing frame", "b.jpg"),
    # ReasonSeg
    Case("image without JSON", reasonseg, remove("val/b.json"), "missing file", "b.json"),
    Case("JSON without image", reasonseg, remove("val/b.jpg"), "missing frame", "b.jpg"),
    Case("polygon without points", reasonseg, edit("val/a.json", lambda m: m["shapes"][0].update(points=[])), "malformed mask", "a.json", "shapes[0].points"),
    Case("polygon above the picture", reasonseg, edit("val/a.json", lambda m: m["shapes"][0].update(points=[[1, -9], [9, -9], [9, -1]])), "malformed mask", "a.json", "shapes[0]"),
    Case("polygon of not-a-number", reasonseg, replace("val/a.json", b"[[1, 1]", b"[[NaN, 1]"), "malformed mask", "a.json", "shapes[0].points"),
    Case("JSON of neither encoding", reasonseg, replace("val/a.json", b"why?", b"why\x81\xff"), "text in another encoding", "a.json", "byte"),
]  # fmt: skip


def read_all(data):
    """What a run and its scoring read."""
    for clip in data.clips():
        for expression in data.expressions(clip):
            data.target(clip, expression)
        clip.load()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Writes a maker's set to a folder; the set itself was made once, read whole, and found sound."""
    made = {}

    def copy(make, root):
        if make not in made:
            first = tmp_path_factory.mktemp("sound") / "set"
            build = make(first)
            read_all(build())
            assert verify(build()).ok
            made[make] = first, build
        first, build = made[make]
        shutil.copytree(first, root)
        return lambda: build(root)

    return copy


#: Parquet is read in a process of its own, twice a case: the whole suite has them.
CASES.sort(key=lambda case: case.make is refcoco_m)


@pytest.mark.parametrize(
    "case",
    quick_first(CASES, sum(case.make is not refcoco_m for case in CASES)),
    ids=lambda case: case.name,
)
def test_damage_ends_in_one_error_that_names_everything(case, sound, tmp_path):
    build = sound(case.make, tmp_path / "set")
    case.damage(tmp_path / "set")
    if not case.verify_only:
        with pytest.raises(DataError) as caught:
            read_all(build())
        error = caught.value
        assert case.file in error.where
        assert case.place in error.where
        assert error.what.endswith(".")
        assert error.hint
    if case.kind == "not here":
        return
    verdict = verify(build())
    assert case.kind in verdict.kinds(), [str(p) for p in verdict.problems]
    told = next(p for p in verdict.kinds()[case.kind] if case.file in p.where and case.place in p.where)
    assert told.hint


def test_a_set_of_another_package_that_says_nothing_is_told(tmp_path):
    class Mute(FakeDataset):
        def expressions(self, clip):
            return [Expression("0", "the square"), Expression("1", " \u200b")]

    (told,) = verify(Mute(root=tmp_path, n_clips=1)).problems
    assert (told.kind, told.where, told.hint) == ("empty expression", "clip0", HINTS["empty expression"])


NOTED = {
    "frames out of order": (mevis, edit(META, lambda m: m["videos"][A]["frames"].reverse()), "in another order than their names'"),
    "fewer annotations than objects": (mevis, exp(A, "1", anno_id=[0]), "'obj_id' names 2 objects, 'anno_id' 1"),
    "palette reordered": (ytvos, repainted(f"train/Annotations/{A}"), "4 maps are read as ids, palette index, though the colours of DAVIS are in another order"),
    "maps resized with smoothing": (ytvos, smoothed(f"train/Annotations/{A}"), "change in steps, as in resized maps"),
    "x and y swapped": (refcoco, edit("instances.json", lambda m: m["annotations"][0].update(segmentation=[[4, 4, 4, 20, 16, 20, 16, 4]])), "'bbox' is [4.0, 4.0, 16.0, 12.0], its mask lies in [4.0, 4.0, 12.0, 16.0]"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTED)
def test_what_may_be_right_is_noted(tmp_path, case):
    make, damage, told = NOTED[case]
    build = make(tmp_path)
    damage(tmp_path)
    verdict = verify(build())
    assert verdict.ok
    assert [told in note for note in verdict.notes] == [True]
    read_all(build())


def test_a_damage_is_told_once_with_what_helps(tmp_path):
    build = mevis(tmp_path)
    meta = json.loads((tmp_path / META).read_text())
    meta["videos"][A]["frames"] = [f"{i:05d}.jpg" for i in range(4)]
    (tmp_path / META).write_text(json.dumps(meta))
    told = verify(build()).kinds()["missing frame"]
    assert told[0].hint == "'00000.jpg' is there: take the ending off the names."
    cut(MASKS)(tmp_path)
    assert "missing file" not in verify(build()).kinds()


def test_a_name_in_another_unicode_form_is_told(tmp_path):
    composed, split = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_meta_expressions_set(tmp_path, "valid_u", [video(composed)])
    (tmp_path / "valid_u/JPEGImages" / composed).rename(tmp_path / "valid_u/JPEGImages" / split)
    (told,) = verify(MetaExpressions(root=tmp_path)).kinds()["missing video"]
    assert "is there in another Unicode form" in told.hint
    told = Names([f"{split}/0/00000.png"], "").instead(f"{composed}/0/00000.png", [f"{composed}/0/00000"])
    assert "in another Unicode form where" in told


def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    (tmp_path / "valid_u").mkdir()
    monkeypatch.setattr(
        "refseg_bench.datasets.base.os.access", lambda path, mode: path != tmp_path / "valid_u"
    )
    with pytest.raises(DataError, match="is not here") as caught:
        MetaExpressions(root=tmp_path).clips()
    assert f"Check the permissions of {tmp_path / 'valid_u'}" in caught.value.hint


def test_what_may_not_be_read_is_no_damage(tmp_path, monkeypatch):
    def denied(path, *rest, **more):
        raise PermissionError(13, "Permission denied", str(path))

    build = mevis(tmp_path / "mevis")
    with monkeypatch.context() as patch:
        patch.setattr("refseg_bench.datasets.meta_expressions.os.scandir", denied)
        (told,) = verify(build(), masks=False).kinds()["unreadable file"][:1]
        assert "permissions" in told.hint
    build = reasonvos(tmp_path / "reasonvos")
    monkeypatch.setattr("refseg_bench.files.png.read_bytes", denied)
    with pytest.raises(Damage, match="may not be read") as caught:
        read_all(build())
    assert (caught.value.kind, "permissions" in caught.value.hint) == ("unreadable file", True)


def test_there_are_forty_kinds_and_more():
    assert len({case.name for case in CASES}) >= 60
    assert len({case.kind for case in CASES}) >= 25


def test_verify_lists_everything_in_one_pass(tmp_path):
    """Damages that leave each other readable, all in one set: every one of them is told."""
    root = tmp_path / "set"
    c, d = "c" * 12, "d" * 12
    write_meta_expressions_set(root, "valid_u", [video(A), video(B, seed=1), video(c, seed=2), video(d)])
    damages = {
        "unsafe name": [rename(d, "../../etc"), rename_expression(A, "1", "a/1")],
        "missing frame": [remove(f"{FRAMES}/00000.jpg"), remove(f"{FRAMES}/00002.jpg")],
        "torn frame": [cut(f"{FRAMES}/00001.jpg", 0.99)],
        "frame of another size": [image(f"{FRAMES}/00003.jpg", (30, 30), "RGB")],
        "extra frame": [lambda r: shutil.copy(r / FRAMES / "00001.jpg", r / FRAMES / "00009.jpg")],
        "empty expression": [exp(B, "0", exp=""), exp(c, "1", exp=" ")],
        "wrong type": [exp(c, "0", exp=7)],
        "missing entry": [edit(MASKS, lambda m: m.pop("3") and None)],
        "mask count differs": [edit(MASKS, lambda m: m["2"].pop() and None)],
        "mask of another size": [edit(MASKS, lambda m: m["0"][2].update(size=[32, 24]))],
        "torn mask": [edit(MASKS, lambda m, i=i: m["0"][i].update(counts="0")) for i in (1, 3)],
        "malformed mask": [edit(MASKS, lambda m: m["2"].__setitem__(1, "mask"))],
    }
    for group in damages.values():
        for damage in group:
            damage(root)
    found = {kind: len(problems) for kind, problems in verify(MetaExpressions(root=root)).kinds().items()}
    assert found == {kind: len(group) for kind, group in damages.items()}


@pytest.mark.parametrize(
    "kind", ["climbs", "absolute", "link", "backslash", "twice", "bomb", "torn", "html", "through a link"]
)
def test_unsafe_archives_write_nothing_outside(tmp_path, kind):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("mevis/ok.txt", "fine")
        if kind == "climbs":
            out.writestr("../escaped.txt", "x")
        elif kind == "absolute":
            out.writestr("/tmp/escaped.txt", "x")
        elif kind == "backslash":
            out.writestr("mevis\\..\\..\\escaped.txt", "x")
        elif kind == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                out.writestr("mevis/ok.txt", "again")
        elif kind in ("link", "through a link"):
            entry = zipfile.ZipInfo("mevis/door")
            entry.external_attr = 0o120777 << 16
            out.writestr(entry, str(tmp_path))
            if kind == "through a link":
                out.writestr("mevis/door/escaped.txt", "x")
        elif kind == "bomb":
            out.writestr("mevis/zeros", b"\0" * (80 << 20))
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:-30])
    if kind == "html":
        path.write_text("<html>quota exceeded</html>")
    with pytest.raises(Damage) as caught:
        unpack(path, tmp_path / "into")
    assert caught.value.kind in ("unsafe archive", "torn archive")
    assert "set.zip" in caught.value.where
    assert caught.value.hint
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["set.zip"]


@pytest.mark.parametrize("kind", ["climbs", "link", "hard link", "device", "through a link"])
def test_unsafe_tars_write_nothing_outside(tmp_path, kind):
    import tarfile

    path = tmp_path / "set.tar.gz"
    with tarfile.open(path, "w:gz") as out:

        def member(name, data=b"x", **fields):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            out.addfile(info, io.BytesIO(data))

        member("./mevis/ok.txt")
        if kind == "climbs":
            member("mevis/../../escaped.txt")
        elif kind == "hard link":
            member("mevis/door", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        elif kind == "device":
            member("mevis/null", b"", type=tarfile.CHRTYPE)
        else:
            member("mevis/door", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path))
            if kind == "through a link":
                member("mevis/door/escaped.txt")
    with pytest.raises(Damage) as caught:
        unpack(path, tmp_path / "into")
    assert caught.value.kind == "unsafe archive"
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["set.tar.gz"]


def test_links_may_be_followed_on_request_and_within_the_set(tmp_path):
    build = mevis(tmp_path / "set")
    link_folder(tmp_path / "set")
    with pytest.raises(DataError, match="symbolic link"):
        build().clips()
    assert len(MetaExpressions(root=tmp_path / "set", follow_links=True).clips()) == 2
    # A whole frames folder on another disk is the user's layout, not a name from the data.
    other = mevis(tmp_path / "other")
    shutil.move(tmp_path / "other/valid_u/JPEGImages", tmp_path / "disk")
    (tmp_path / "other/valid_u/JPEGImages").symlink_to(tmp_path / "disk")
    assert len(other().clips()) == 2


def test_masks_behind_links_are_refused_too(tmp_path):
    build = ytvos(tmp_path / "set")
    folder = tmp_path / "set/train/Annotations" / A
    shutil.move(folder / "00001.png", tmp_path / "outside.png")
    (folder / "00001.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="symbolic link"):
        read_all(build())


def test_run_length_check_agrees_with_pycocotools():
    from hypothesis import given
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp
    from pycocotools import mask as coco_mask

    from refseg_bench.types import rle_fault, run_lengths

    @given(
        hnp.arrays(
            np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)
        )
    )
    def check(mask):
        counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
        assert rle_fault(counts, mask.shape) is None
        column = mask.T.ravel()
        ends = np.flatnonzero(np.diff(column)) + 1
        runs = np.diff(np.concatenate(([0], ends, [column.size])))
        expected = runs if column[0] == 0 else np.concatenate(([0], runs))
        assert run_lengths(counts).tolist() == expected.tolist()
        assert rle_fault(counts, (mask.shape[0] + 1, mask.shape[1])) is not None

    check()


def test_a_pickle_that_names_one_mask_without_end_is_refused(tmp_path, monkeypatch):
    from refseg_bench.datasets import pickles

    monkeypatch.setattr(pickles, "GROWTH_FROM", 1 << 20)
    build = ytvos_pickle(tmp_path)
    mask = {"size": [24, 32], "counts": b"0" * 10_000}
    (tmp_path / "train/mask_dict.pkl").write_bytes(pickle.dumps({"0": [mask] * 2000}, protocol=2))
    with pytest.raises(DataError, match="beyond all measure"):
        read_all(build())


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "TIFF"])
def test_a_frame_of_another_format_is_whole_or_not(tmp_path, form):
    path = tmp_path / "00000.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(noise).save(path, form)
    assert list(frame_problems(path, (20, 30))) == []
    path.write_bytes(path.read_bytes()[:-900])
    assert [p.kind for p in frame_problems(path, (20, 30))] in (["torn frame"], ["unreadable frame"])


def test_a_hole_in_a_jpeg_is_told_where_it_is_decoded(tmp_path):
    file = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    barred = cv2.GaussianBlur(np.tile(noise, (5, 5, 1)), (0, 0), 5)
    barred[:250] = barred[-250:] = 0  # as a film's black bars
    for picture, how, cut, kinds in (
        (np.tile(noise, (5, 5, 1)), {"optimize": True}, True, ["torn frame"]),
        (np.tile(noise, (5, 5, 1)), {"optimize": True}, False, []),
        (np.zeros_like(barred), {"optimize": True}, False, []),
        (barred, {}, True, ["torn frame"]),
        (barred, {"optimize": True}, False, []),
        (barred, {"progressive": True}, False, []),
    ):
        # Cameras and editors leave such zeros in the header, and behind the end.
        exif = Image.Exif()
        exif[0x010E] = "\0" * 2000 + "."
        Image.fromarray(picture).save(file, exif=exif, **how)
        data = bytearray(file.read_bytes())
        assert (bytes(512) in data[2500:]) == (not cut and picture[0, 0, 0] == 0)
        if cut:
            data[-2000:-1000] = bytes(1000)
        file.write_bytes(data + bytes(400))
        assert [d.kind for d in frame_problems(file, (1000, 1000), decode=True)] == kinds
        assert not list(frame_problems(file, (1000, 1000)))


def test_images_damaged_anywhere_are_told(tmp_path):
    import random

    from refseg_bench.datasets.masks import read_binary, read_labels
    from refseg_bench.files.images import image_size, read_rgb
    from tools.writers import write_label_map

    rng = random.Random(0)
    write_label_map(tmp_path / "a.png", np.random.default_rng(0).integers(0, 3, (20, 30), dtype=np.uint8))
    Image.fromarray(frames(1)[0]).save(tmp_path / "a.jpg")
    for sound in (tmp_path / "a.png", tmp_path / "a.jpg"):
        data = sound.read_bytes()
        torn = tmp_path / f"torn{sound.suffix}"
        told = dict.fromkeys((read_labels, read_binary, image_size, read_rgb), 0)
        for _ in range(250):
            changed = bytearray(data)
            changed[rng.randrange(60)] = rng.randrange(256)
            length = rng.choice([len(data), rng.randrange(len(data))])
            torn.write_bytes(changed[:length])
            for read in told:
                try:
                    read(torn)  # an error of another kind is a bug
                except DataError:
                    told[read] += 1
                else:
                    assert length == len(data) or read is image_size or sound.suffix == ".jpg", (read, length)
        assert min(told.values()) > 50
