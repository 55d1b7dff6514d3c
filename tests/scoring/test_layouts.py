"""Every layout of other people's predictions, on sets written in each dataset's exact format."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from refseg_bench import cli
from refseg_bench.config.components import open_dataset
from refseg_bench.datasets.reasonvos import ReasonVos
from refseg_bench.datasets.ref_davis17 import RefDavis17, convert
from refseg_bench.datasets.refcoco import RefCoco
from refseg_bench.datasets.revos import Revos
from refseg_bench.datasets.verify import verify
from refseg_bench.scoring.foreign import open_predictions
from refseg_bench.types import MaskTrack, encode_rle, extents, run_lengths
from tests.datasets.conftest import frames, video
from tests.fakes import unlisted
from tools.writers import (
    ImageRecord,
    write_davis_source,
    write_label_map,
    write_meta_expressions_set,
    write_reasonseg_image,
    write_reasonvos_set,
    write_refcoco_set,
    write_revos_set,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))


SQUARE = [4, 4, 20, 4, 20, 16, 4, 16]


def run(tmp_path, predictions, dataset, root, protocol, *more):
    out = tmp_path / "out.json"
    code = cli.main([str(w) for w in (
        "score", "--predictions", predictions, "--dataset", dataset, "--root", root, "--protocol", protocol,
        "--json", out, "-j", 1, *more,
    )])  # fmt: skip
    return code, json.loads(out.read_text()) if out.exists() else None


def save(path, mask, value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask * np.uint8(value)).save(path)


def mask_at(target, t):
    mask = target.union().mask(t)
    return np.zeros(target.size, bool) if mask is None else mask


def everything(data):
    for clip in data.clips():
        for e in data.expressions(clip):
            target = data.target(clip, e)
            for t, frame in enumerate(clip.frame_names):
                yield clip, e, frame, mask_at(target, t)


@pytest.mark.parametrize("side", ["predictions", "truth"])
def test_masks_the_wrong_way_round_are_told(tmp_path, capsys, side):
    write_meta_expressions_set(tmp_path / "set", "valid_u", [video("a")])
    data = open_dataset("mevis", root=tmp_path / "set")
    for clip, e, frame, mask in everything(data):
        save(tmp_path / "p" / clip.id / e.id / f"{frame}.png", mask ^ (side == "predictions"))
    n = 12 if side == "truth" else 8  # three tracks of objects are meant, two are predicted
    told = f"{n} of {n} masks cover most of their picture: are they the wrong way round?"
    if side == "truth":
        file = tmp_path / "set/valid_u/mask_dict.json"
        whole = json.loads(file.read_text())
        for track in whole.values():
            for rle in track:
                counts = run_lengths(rle["counts"].encode()).tolist()
                rle["counts"] = [0, *counts] if counts[0] else counts[1:]
        file.write_text(json.dumps(whole))
    _, found = run(tmp_path, tmp_path / "p", "mevis", tmp_path / "set", "rvos-expr")
    notes = found["rvos-expr"]["notes"]
    assert {key: notes.get(key) for key in ("extent", "truth_extent")} == {
        "extent": told if side == "predictions" else None, "truth_extent": told if side == "truth" else None,
    }  # fmt: skip
    assert capsys.readouterr().out.count(told) == 1


def test_large_objects_are_not_the_wrong_way_round():
    mask = np.ones((24, 32), bool)
    mask[:4, :6] = mask[:3, -8:] = False  # a close-up, cut by three sides of the picture
    for shown, kind in (
        (mask, "less"),
        (mask[::-1], "less"),
        (np.roll(mask, 8, 1), "most"),
        (mask.T, "less"),
    ):
        assert extents([MaskTrack.from_masks([shown] * 3, shown.shape)]) == {kind: 3}


# ── Ref-DAVIS17 ──────────────────────────────────────────────────────────────

WORDS = [(f"{who} {o}", [o], {}) for o in range(2) for who in "abcd"]


@pytest.fixture
def davis(tmp_path):
    clips = [video(n, expressions=WORDS) for n in ("car", "dogs")]
    write_davis_source(tmp_path / "src", {"train": [video("bear", expressions=WORDS)], "val": clips})
    convert(tmp_path / "src" / "DAVIS", tmp_path / "src" / "davis_text_annotations", tmp_path / "davis")
    return tmp_path / "davis"


def merged(davis, folder, sets=range(4)):
    data = RefDavis17(root=davis)
    for clip in data.clips():
        for t, frame in enumerate(clip.frame_names):
            labels = np.zeros(clip.size, np.uint8)
            for e in data.expressions(clip):
                labels[mask_at(data.target(clip, e), t)] = int(e.attrs["obj_ids"][0])
            for a in sets:
                write_label_map(folder / f"anno_{a}" / clip.id / f"{frame}.png", labels)
    return folder


def test_merged_per_annotator(davis, tmp_path, capsys):
    folder = merged(davis, tmp_path / "p")
    code, found = run(tmp_path, folder, "ref_davis17", davis, "refdavis-anno,decaf,refdavis-visa")
    assert code == 0
    assert found["refdavis-anno"]["metrics"]["J&F"] == 1
    assert found["refdavis-anno"]["n"] == 2 * 2 * 4
    assert found["decaf"]["metrics"]["J&F"] == 100
    assert found["decaf"]["n"] == 16
    assert "note:" not in capsys.readouterr().err


def test_resized_id_maps_are_told(davis, tmp_path, capsys):
    folder, smooth = merged(davis, tmp_path / "p"), Image.Resampling.BILINEAR
    for file in (folder / "anno_1" / "dogs").iterdir():
        grey = Image.fromarray(np.asarray(Image.open(file)))
        grey.resize((64, 48), smooth).resize((32, 24), smooth).save(file)
    code, found = run(tmp_path, folder, "ref_davis17", davis, "refdavis-anno,rvos-expr")
    assert code == 0
    told = "ids in steps, as in resized maps: some are blends"
    count = len(list((folder / "anno_1" / "dogs").iterdir()))
    assert [found[name]["notes"]["predictions_read"][told] for name in found] == [count] * 2
    assert f"{told} ({count} files)" in capsys.readouterr().out


def test_a_worse_annotator_and_a_missing_one(davis, tmp_path):
    folder = merged(davis, tmp_path / "p")
    for path in (folder / "anno_2").rglob("*.png"):
        write_label_map(path, np.zeros_like(np.array(Image.open(path))))
    _, found = run(tmp_path, folder, "ref_davis17", davis, "refdavis-anno")
    unit = [u["values"]["J"] for u in found["refdavis-anno"]["units"] if u["attrs"]["annotator"] == 2]
    assert found["refdavis-anno"]["metrics"]["J"] == pytest.approx((3 + np.mean(unit)) / 4, abs=1e-12)
    code, found = run(
        tmp_path, merged(davis, tmp_path / "q", range(3)), "ref_davis17", davis, "refdavis-anno"
    )
    assert code == 2
    assert found["refdavis-anno"]["missing"] == ["anno_3/car", "anno_3/dogs"]


def test_one_map_per_video(davis, tmp_path):
    merged(davis, tmp_path / "p", [0])
    code, found = run(
        tmp_path,
        tmp_path / "p" / "anno_0",
        "ref_davis17",
        davis,
        "davis-unsup,davis-semi,vosb,trackeval,decaf",
    )
    assert code == 0
    assert [found[p]["metrics"]["J"] for p in found] == [1, 1, 100, 1, 100]


def test_objects_without_an_expression_count_in_the_object_protocols(davis, tmp_path):
    merged(davis, tmp_path / "p", [0])
    for path in (davis / "valid" / "Annotations" / "car").glob("*.png"):
        labels = np.array(Image.open(path))
        labels[:3, -3:] = 3
        write_label_map(path, labels)
    code, found = run(tmp_path, tmp_path / "p" / "anno_0", "ref_davis17", davis, "davis-semi,decaf")
    assert code == 0
    assert {u["id"]: u["values"]["J"] for u in found["davis-semi"]["units"]}["car/3"] == 0
    assert found["decaf"]["n"] == 16


def test_masks_per_expression_are_merged_for_the_annotators(davis, tmp_path):
    for clip, e, frame, mask in everything(RefDavis17(root=davis)):
        save(tmp_path / "p" / "Annotations" / clip.id / e.id / f"{frame}.png", mask)
    code, found = run(tmp_path, tmp_path / "p", "ref_davis17", davis, "refdavis-anno,refdavis-visa")
    assert code == 0
    assert found["refdavis-anno"]["metrics"]["J&F"] == 1
    assert found["refdavis-visa"]["metrics"]["J&F"] == 100


def test_sets_of_other_objects_are_not_scored_as_if_they_had_missed(davis, tmp_path, capsys):
    data = RefDavis17(root=davis)
    for clip, e, frame, mask in everything(data):
        save(tmp_path / "p" / clip.id / e.id / f"{frame}.png", mask)
    file = davis / "meta_expressions/valid/meta_expressions.json"
    whole = json.loads(file.read_text())
    del whole["videos"]["car"]["expressions"]["2"]
    file.write_text(json.dumps(whole))
    code, found = run(tmp_path, tmp_path / "p", "ref_davis17", davis, "refdavis-anno")
    assert (code, found["refdavis-anno"]["metrics"]) == (2, None)
    assert "anno_2 has no expression of object 1 of 'car'" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "p", "ref_davis17", davis, "refdavis-visa")[0] == 0


# ── ReVOS ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("value", "encoding"), [(255, "0/255"), (1, "0/1"), (38, "grey 38")])
def test_revos_names_with_slashes_and_raw_grey(tmp_path, value, encoding):
    words = [("a", [0], {"type_id": 0}), ("b", [0, 1], {"type_id": 1}), ("c", [], {"type_id": 2})]
    write_revos_set(tmp_path / "ReVOS", "valid", [video("UVO/all/x_1", expressions=words)])
    data = Revos(root=tmp_path)
    for clip, e, frame, mask in everything(data):
        save(tmp_path / "p" / "Annotations" / clip.id / e.id / f"{frame}.png", mask, value)
    code, found = run(tmp_path, tmp_path / "p", "revos", tmp_path, "revos-visa,revos-binary")
    assert code == 0
    assert found["revos-binary"]["metrics"]["A"] == 100
    assert found["revos-binary"]["metrics"]["R"] == 100
    raw = found["revos-visa"]
    assert raw["metrics"]["J"] == 100
    assert raw["notes"]["foreground"] == "the dataset's"
    assert [u["attrs"]["encoding"] for u in raw["units"]][:2] == [encoding] * 2
    assert (raw["metrics"]["A"] == 100) == (value == 1)


def test_revos_lists_of_expressions_that_name_their_clip(tmp_path, capsys):
    words = [("a", [0], {"type_id": 0}), ("b", [0, 1], {"type_id": 1})]
    write_revos_set(tmp_path / "ReVOS", "valid", [video("UVO/all/x_1", expressions=words)])
    made: dict = {}
    for clip, e, _, mask in everything(Revos(root=tmp_path)):
        rle = {"size": list(mask.shape), "counts": encode_rle(mask).decode()}
        made.setdefault(clip.id, {}).setdefault(e.id, []).append(rle)
    rows = {c: [{"video": c, "exp_id": e, "masks": m} for e, m in es.items()] for c, es in made.items()}
    (tmp_path / "p.json").write_text(json.dumps(rows))
    code, found = run(tmp_path, tmp_path / "p.json", "revos", tmp_path, "expression")
    assert code == 0
    assert found["expression"]["metrics"]["J&F"] == 1
    assert "note:" not in capsys.readouterr().err


# ── ReasonVOS ────────────────────────────────────────────────────────────────


def test_reasonvos_folders_per_object(tmp_path, capsys):
    words = [("a", [0], {"exp_id": 0}), ("b", [1], {"exp_id": 0}), ("c", [1], {"exp_id": 1})]
    write_reasonvos_set(tmp_path / "ReasonVOS", [video("v1", expressions=words)])
    data = ReasonVos(root=tmp_path)
    for clip, e, frame, mask in everything(data):
        folder = tmp_path / "p" / e.attrs["anno_ids"][0] / str(e.attrs["exp_id"])
        save(folder / f"{frame}.png", mask)
        save(tmp_path / "q" / clip.id / e.id / f"{frame}.png", mask)
    for folder in ("p", "q"):
        code, found = run(tmp_path, tmp_path / folder, "reasonvos", tmp_path, "reasonvos,decaf")
        assert code == 0
        assert found["reasonvos"]["metrics"]["J&F"] == 1
        assert (found["reasonvos"]["n"], found["reasonvos"]["missing"]) == (3, [])
        keys = {unit["attrs"]["key"] for unit in found["reasonvos"]["units"]}
        assert keys == {"mose_v1_0_0", "mose_v1_1_0", "mose_v1_1_1"}
        told = capsys.readouterr()
        assert "note:" not in told.err
        assert "empty" not in told.out
    # Frames without a PNG were not annotated: its own tool leaves them out, DecAF's takes them for empty.
    (tmp_path / "ReasonVOS/Annotations/mose_v1_1/00002.png").unlink()
    _, found = run(tmp_path, tmp_path / "q", "reasonvos", tmp_path, "reasonvos,decaf")
    assert "counted_as_empty" not in found["reasonvos"]["notes"]
    assert found["decaf"]["notes"]["counted_as_empty"] == {"frame without annotation": 2}
    assert "counted_as_empty: frame without annotation (2)\n" in capsys.readouterr().out


# ── images ───────────────────────────────────────────────────────────────────


@pytest.fixture
def coco(tmp_path):
    record = ImageRecord(
        "COCO_train2014_000000000042.jpg",
        frames(1, (24, 32))[0],
        segmentations=[[SQUARE], [[12, 8, 30, 8, 30, 20, 12, 20]]],
        refs=[([0], ["one", "it"]), ([1], ["that"])],
    )
    write_refcoco_set(tmp_path / "refcoco", [record])
    return tmp_path / "refcoco"


@pytest.mark.parametrize(
    "name",
    [
        "{clip}/{exp}",
        "{clip}_{exp}",
        "{file}/{exp}",
        "{file}_{exp}",
        "{exp}",
        "{clip}/{exp}/{frame}",
        "{clip}/{exp}/0",
        "Annotations/{file}/{exp}/00000",
    ],
)
def test_images_in_every_layout(coco, tmp_path, capsys, name):
    for clip, e, frame, mask in everything(RefCoco(root=coco)):
        file = clip.attrs["file_name"].removesuffix(".jpg")
        save(tmp_path / "p" / f"{name.format(clip=clip.id, exp=e.id, file=file, frame=frame)}.png", mask)
    code, found = run(
        tmp_path, tmp_path / "p", "refcoco_unc", coco,
        "refcoco-oiou,refcoco-lisa,refcoco-lavt,refcoco-cris,refcoco-sa2va,refcoco-lavt:resolution=480",
    )  # fmt: skip
    assert code == 0
    assert found["refcoco-oiou"]["metrics"]["oIoU"] == 1
    assert found["refcoco-lavt:resolution=480"]["metrics"]["mIoU"] == 1
    assert found["refcoco-lisa"]["metrics"]["cIoU"] == pytest.approx(1, abs=1e-9)
    assert {u["id"] for u in found["refcoco-oiou"]["units"]} == {"1/0", "1/1", "1/2"}
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize("other", ["{clip}_{exp}", "{file}/{exp}", "{exp}"])
def test_masks_under_two_names_of_one_sample_are_refused(coco, tmp_path, capsys, other):
    for clip, e, _, mask in everything(RefCoco(root=coco)):
        file = clip.attrs["file_name"].removesuffix(".jpg")
        second = other.format(clip=clip.id, exp=e.id, file=file)
        save(tmp_path / "p" / clip.id / f"{e.id}.png", mask)
        save(tmp_path / "p" / f"{second}.png", ~mask)
    code, found = run(tmp_path, tmp_path / "p", "refcoco_unc", coco, "refcoco-oiou")
    assert (code, found) == (2, None)
    assert "The sample 1/0 (" in (told := capsys.readouterr().err)
    assert "stands twice" in told


@pytest.mark.parametrize("form", ["png", "json"])
def test_masks_at_the_square_of_a_protocol(coco, tmp_path, capsys, form):
    made = {}
    for clip, e, _, mask in everything(RefCoco(root=coco)):
        square = np.asarray(Image.fromarray(mask).resize((480, 480), Image.Resampling.NEAREST))
        save(tmp_path / "p" / clip.id / f"{e.id}.png", square)
        text = encode_rle(square).decode()
        made[f"{clip.id}/{e.id}"] = [{"size": [480, 480], "counts": text}]
    (tmp_path / "p.json").write_text(json.dumps(made))
    code, found = run(
        tmp_path, tmp_path / ("p" if form == "png" else "p.json"), "refcoco_unc", coco,
        "refcoco-lavt:resolution=480,refcoco-lavt",
    )  # fmt: skip
    assert code == 2
    assert found["refcoco-lavt:resolution=480"]["metrics"]["mIoU"] == 1
    assert found["refcoco-lavt"]["failed"] == ["1/0", "1/1", "1/2"]
    code, found = run(tmp_path, tmp_path / "p", "refcoco_unc", coco, "refcoco-lavt")
    assert code == 2
    assert found["refcoco-lavt"]["metrics"] is None


@pytest.mark.parametrize("form", ["by image", "by sample", "list"])
def test_images_in_json(coco, tmp_path, capsys, form):
    made: dict = {}
    rows = []
    for clip, e, _, mask in everything(RefCoco(root=coco)):
        rle = {"size": list(mask.shape), "counts": encode_rle(mask).decode()}
        made.setdefault(clip.id, {})[e.id] = rle if form == "by image" else {"mask": rle}
        rows.append({"image_id": int(clip.id), "sent_id": int(e.id), "segmentation": rle,
                     "point": {"y": 10 / 24, "x": 15 / 32}})  # fmt: skip
    if form == "by sample":
        made = {f"{c}/{e}": v for c, es in made.items() for e, v in es.items()}
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows if form == "list" else made))
    more = ",pointing" if form == "list" else ""
    code, found = run(tmp_path, path, "refcoco_unc", coco, f"refcoco-oiou{more}")
    assert code == 0
    assert "note:" not in capsys.readouterr().err
    assert found["refcoco-oiou"]["metrics"]["oIoU"] == 1
    if more:
        assert found["pointing"]["metrics"]["PA"] == 1


def test_a_sentence_is_not_taken_for_an_image_of_the_same_number(coco, tmp_path, capsys):
    data = RefCoco(root=coco)
    made = {
        e.id: {"size": list(mask.shape), "counts": encode_rle(mask).decode()}
        for _, e, _, mask in everything(data)
    }
    # Image 1 holds the sentences 0, 1 and 2; 1 means another object.
    path = tmp_path / "p.json"
    path.write_text(json.dumps(made))
    code, found = run(tmp_path, path, "refcoco_unc", coco, "refcoco-oiou")
    assert code == 0
    assert [u["values"]["IoU"] for u in found["refcoco-oiou"]["units"]] == [1, 1, 1]
    assert "note:" not in capsys.readouterr().err
    for _, e, _, mask in everything(data):
        if e.id != "0":
            save(tmp_path / "p" / f"{e.id}.png", mask)
    code, found = run(tmp_path, tmp_path / "p", "refcoco_unc", coco, "refcoco-oiou")
    assert code == 2
    assert found["refcoco-oiou"]["missing"] == ["1/0"]


@pytest.mark.parametrize("kind", ["png", "json", "flag"])
def test_a_sentence_of_two_images_needs_the_images_too(tmp_path, capsys, kind):
    pictures = [
        ImageRecord(f"COCO_train2014_{n:012}.jpg", frames(1, (24, 32))[0], [[SQUARE]], [([0], ["it"])])
        for n in (1, 2)
    ]
    root = tmp_path / "refcoco"
    write_refcoco_set(root, pictures)
    file = root / "refs(unc).p"
    refs = pickle.loads(file.read_bytes())
    refs[1]["sentences"][0]["sent_id"] = refs[0]["sentences"][0]["sent_id"]
    file.write_bytes(pickle.dumps(refs))
    made, predictions = {}, tmp_path / ("p.json" if kind == "json" else "p")
    for clip, e, _, mask in everything(RefCoco(root=root)):
        made[f"{clip.id}/{e.id}"] = {"size": list(mask.shape), "counts": encode_rle(mask).decode()}
        save(tmp_path / "p" / clip.id / f"{e.id}.png", mask)
    predictions.with_suffix(".json").write_text(json.dumps(made))
    assert run(tmp_path, predictions, "refcoco_unc", root, "refcoco-oiou")[0] == 0
    if kind == "flag":
        (predictions / "no_target.json").write_text('["0"]')
    elif kind == "png":
        (predictions / "1" / "0.png").rename(predictions / "0.png")
        (predictions / "2" / "0.png").unlink()
    else:
        predictions.write_text(json.dumps({"0": made["1/0"]}))
    capsys.readouterr()
    for more in ((), ("--save", tmp_path / "runs")):
        assert run(tmp_path, predictions, "refcoco_unc", root, "refcoco-oiou", *more)[0] == 2
        assert "0 may be meant for 1/0 or 2/0." in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_flags_of_no_sample_are_noted(coco, tmp_path, capsys):
    for clip, e, _, mask in everything(RefCoco(root=coco)):
        save(tmp_path / "p" / clip.id / f"{e.id}.png", mask)
    (tmp_path / "p" / "no_target.json").write_text('["1/1", "1/9"]')
    assert run(tmp_path, tmp_path / "p", "refcoco_unc", coco, "grefcoco-gres")[0] == 0
    assert "not read (1): 'no_target.json: 1/9'" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [{"1": True, "0": False}, {"1/1": True}, [1], ["1"]])
def test_flags_by_sentence(coco, tmp_path, flags):
    for clip, e, _, mask in everything(RefCoco(root=coco)):
        save(tmp_path / "p" / clip.id / f"{e.id}.png", mask)
    (tmp_path / "p" / "no_target.json").write_text(json.dumps(flags))
    code, found = run(tmp_path, tmp_path / "p", "refcoco_unc", coco, "grefcoco-gres")
    assert code == 0
    assert [u["values"]["flagged"] for u in found["grefcoco-gres"]["units"]] == [0, 1, 0]


def test_a_refusal_names_every_unreadable_mask(coco, tmp_path, capsys):
    for clip, e, _, mask in everything(RefCoco(root=coco)):
        save(tmp_path / "p" / clip.id / f"{e.id}.png", mask if e.id == "1" else np.zeros((24, 33), bool))
    code, found = run(tmp_path, tmp_path / "p", "refcoco_unc", coco, "refcoco-oiou,refcoco-sa2va")
    assert code == 2
    assert found["refcoco-oiou"]["failed"] == ["1/0", "1/2"]
    assert found["refcoco-oiou"]["metrics"] is None
    assert found["refcoco-sa2va"]["n"] == 3
    err = capsys.readouterr().err
    assert "failed  1/0" in err
    assert "failed  1/2" in err


def test_flags_and_points_beside_the_masks(coco, tmp_path):
    for clip, e, _, mask in everything(RefCoco(root=coco)):
        save(tmp_path / "p" / clip.id / f"{e.id}.png", mask)
    (tmp_path / "p" / "no_target.json").write_text(json.dumps(["1/1"]))
    spots = {f"1/{i}": {"y": 10 / 24, "x": x / 32} for i, x in enumerate((10, 25, 25))}
    (tmp_path / "p" / "points.json").write_text(json.dumps(spots))
    code, found = run(tmp_path, tmp_path / "p", "refcoco_unc", coco, "grefcoco-gres,pointing")
    assert code == 0
    assert found["grefcoco-gres"]["metrics"]["gIoU"] == pytest.approx(200 / 3)
    assert [u["values"]["PA"] for u in found["pointing"]["units"]] == [1, 0, 1]


def test_reasonseg_by_name(tmp_path):
    write_reasonseg_image(
        tmp_path / "ReasonSeg", "val", "soup", frames(1, (24, 32))[0], ("What?", "the bowl"),
        [("target", [[4, 4], [20, 4], [20, 16]])],
    )  # fmt: skip
    from refseg_bench.datasets.reasonseg import ReasonSeg

    for clip, _, _, mask in everything(ReasonSeg(root=tmp_path)):
        save(tmp_path / "p" / f"{clip.id}.png", mask)
    code, found = run(tmp_path, tmp_path / "p", "reasonseg", tmp_path, "reasonseg-lisa", "--split", "val")
    assert code == 0
    assert found["reasonseg-lisa"]["metrics"]["cIoU"] == pytest.approx(1, abs=1e-9)


def test_hidden_masks_are_told(tmp_path, capsys):
    write_meta_expressions_set(tmp_path / "mevis", "valid", [video("v1", expressions=[("a", [0], {})])])
    (tmp_path / "mevis" / "valid" / "mask_dict.json").unlink()
    save(tmp_path / "p" / "v1" / "0" / "00000.png", np.zeros((24, 32), bool))
    code, _ = run(tmp_path, tmp_path / "p", "mevis", tmp_path / "mevis", "rvos-expr", "--split", "valid")
    assert code == 2
    assert "submission" in capsys.readouterr().err


# ── a JSON as strangers write it ─────────────────────────────────────────────


@pytest.fixture
def told(tmp_path):
    """A MeViS set of one clip and two expressions, and its true masks as run lengths."""
    write_meta_expressions_set(tmp_path / "mevis", "valid_u", [video("v1")])
    data = open_dataset("mevis", root=tmp_path / "mevis")
    masks = {}
    for _, e, frame, mask in everything(data):
        rle = {"size": list(mask.shape), "counts": encode_rle(mask).decode()}
        masks.setdefault(e.id, {})[frame] = rle
    return tmp_path, masks


def scored(place, text, name="p.json"):
    path = place / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return run(place, path, "mevis", place / "mevis", "expression")


def rows(masks):
    return [{"video_id": "v1", "exp_id": e, "masks": list(by.values())} for e, by in masks.items()]


def plain(rle, make=int):
    runs = [make(n) for n in run_lengths(rle["counts"].encode())]
    return {"size": [make(n) for n in rle["size"]], "counts": runs}


FORMS = {
    "BOM": lambda m: "\ufeff" + json.dumps(rows(m)),
    "UTF-16 with BOM": lambda m: json.dumps(rows(m)).encode("utf-16"),
    "JSON lines": lambda m: "\n".join(json.dumps(row) for row in rows(m)) + "\n\n",
    "lines of one object": lambda m: "\n".join(
        json.dumps({f"v1/{e}": list(by.values())}) for e, by in m.items()
    ),
    "lines per frame": lambda m: "\r\n".join(
        json.dumps({"video": "v1", "expression_id": int(e), "frame": f, "rle": rle})
        for e, by in m.items()
        for f, rle in by.items()
    ),
    "the same twice": lambda m: json.dumps(rows(m) + rows(m)),
    "the same key twice": lambda m: (
        "{" + ", ".join(f'"v1/{e}": {json.dumps(list(by.values()))}' for e, by in [*m.items()] * 2) + "}"
    ),
    "a list that names its clip in another way": lambda m: json.dumps(
        {"v1": [{"video": "v1.mp4", "exp_id": e, "masks": [*by.values()]} for e, by in m.items()]}
    ),
    "a list of which one names its clip": lambda m: json.dumps(
        {
            "v1": [{"exp_id": e, "masks": [*by.values()]} for e, by in m.items() if e != "0"]
            + [{"video": "one", "exp_id": 0, "masks": [*m["0"].values()]}]
        }
    ),
    "frames beside a flag": lambda m: json.dumps({"v1": {e: {**f, "no_target": True} for e, f in m.items()}}),
    "uncompressed": lambda m: json.dumps({"v1": {e: [plain(r) for r in by.values()] for e, by in m.items()}}),
    "whole floats": lambda m: json.dumps(
        {"v1": {e: [plain(r, float) for r in by.values()] for e, by in m.items()}}
    ),
}


def test_a_flag_needs_no_mask_in_a_list_without_names_either(told):
    place, masks = told
    code, found = scored(place, json.dumps({"v1": [{"masks": [*masks["0"].values()]}, {"no_target": True}]}))
    assert code == 0
    assert [unit["attrs"]["answer"] for unit in found["expression"]["units"]] == ["masks", "absent"]


@pytest.mark.parametrize("form", FORMS)
def test_a_json_in_many_spellings(told, capsys, form):
    place, masks = told
    code, found = scored(place, FORMS[form](masks))
    assert code == 0
    assert found["expression"]["metrics"]["J&F"] == 1
    assert "note:" not in capsys.readouterr().err


def edited(masks, **changes):
    """The masks with fields of every run-length code replaced."""
    out = {e: [{**rle, **changes} for rle in by.values()] for e, by in masks.items()}
    return json.dumps({"v1": out})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: json.dumps([*rows(m), {**rows(m)[0], "masks": [None] * 4}]), "v1/0 stands twice"),
        (lambda m: json.dumps({"v1": {"0": [], "1": []}, "v1/0": [None]}), "v1/0 stands twice"),
        (lambda m: '{"v1": {"0": [], "0": [null]}}', "'0' stands twice"),
        (lambda m: json.dumps([{"video": "v1", "masks": [e]} for e in (1, 2)]), "taken for '0'"),
        (lambda m: json.dumps([{"video": "v1", "exp_id": 0, "frame": 5, "rle": None}]), "frame 5"),
        (lambda m: json.dumps(rows(m)) + "\n]", "Extra data"),
        (lambda m: '{"video_id": "v1"}\n{"video_id": ', "line 2 of JSON lines"),
        (lambda m: "[" * 200 + "]" * 200, "nested more than 100 deep"),
        (lambda m: "[" * 100_000, "nested without end"),
        (lambda m: b"\x80\x81[", "codec can't decode"),
        (lambda m: '"text"', "neither an object nor a list"),
        (lambda m: "[1]", r"[0] is no object"),
        (lambda m: '[{"a": 1}]', "names no clip"),
        (lambda m: '[{"video_id": "v1", "masks": [], "exp_id": "\\u001b[2J"}, '
                   '{"video_id": "v1", "masks": [1], "exp_id": "\\u001b[2J"}]', r"v1/\x1b[2J stands twice"),
        (lambda m: edited(m, size=[32, 24]), "[width, height]: write [height, width]"),
        (lambda m: edited(m, size="[24, 32]"), "The size is text"),
        (lambda m: edited(m, size=[24.5, 32]), "is no [height, width]"),
        (lambda m: edited(m, size=[1e9, 1e9]), "is no [height, width]"),
        (lambda m: edited(m, size=[10**9, 10**9], counts="11"), "is no [height, width]"),
        (lambda m: edited(m, counts="b'PPYo1'"), "write counts.decode('ascii')"),
        (lambda m: edited(m, counts="[700 68]"), "a list as text"),
        (lambda m: edited(m, counts="11"), "the size 24 x 32 has 768"),
        (lambda m: edited(m, counts=[1e400, 5]), "not whole numbers"),
        (lambda m: edited(m, counts=[700.5, 67.5]), "not whole numbers"),
        (lambda m: edited(m, counts=[800, -32]), "not whole numbers"),
        (lambda m: edited(m, counts={"a": 1}), "counts are dict"),
        (lambda m: json.dumps({"v1": {e: [[1.5, 2, 3, 4]] * 4 for e in m}}), "Polygons are not taken"),
        (lambda m: json.dumps([{**row, "no_target": "false"} for row in rows(m)]), "A flag is 'false'"),
        (lambda m: json.dumps([{**row, "no_target": False, "pred_nt": True} for row in rows(m)]),
         "different things under no_target, pred_nt"),
        (lambda m: json.dumps([{**row, "rles": row["masks"][::-1]} for row in rows(m)]),
         "different things under masks, rles"),
        (lambda m: json.dumps([{**row, "point": {"y": 1e400, "x": 0}} for row in rows(m)]), "'point' is"),
        (lambda m: json.dumps([{**row, "point": {"y": 0, "x": 0, "frame": 1e400}} for row in rows(m)]),
         "'point' is"),
    ],
)  # fmt: skip
def test_a_json_that_says_nothing_clear_is_refused_in_words(told, capsys, make, words):
    place, masks = told
    code, found = scored(place, make(masks))
    assert code == 2
    assert found is None or found["expression"]["metrics"] is None
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("no_target.json", '{"1/1": "false"}', "A flag is 'false'"),
        ("no_target.json", '{"1/1": true, "1_1": false}', "different things under 1/1, 1_1"),
        ("points.json", '{"1/1": {"x": 0, "y": 0}, "1": {"x": 1, "y": 0}}', "different things under 1/1, 1:"),
        ("no_target.json", '"1/1"', "neither an object nor a list"),
        ("no_target.json", "[", "Expecting value"),
        ("points.json", "[]", "no object"),
        ("points.json", '{"1/1": [1, 2]}', "'point' is [1, 2]"),
        ("points.json", None, "no regular file"),
    ],
)
def test_files_beside_the_masks_are_checked(coco, tmp_path, capsys, name, text, words):
    for clip, e, _, mask in everything(RefCoco(root=coco)):
        save(tmp_path / "p" / clip.id / f"{e.id}.png", mask)
    if text is None:
        os.mkfifo(tmp_path / "p" / name)
    else:
        (tmp_path / "p" / name).write_text(text)
    code, _ = run(tmp_path, tmp_path / "p", "refcoco_unc", coco, "grefcoco-gres,pointing")
    assert code == 2
    assert words in capsys.readouterr().err


# ── nearly right ─────────────────────────────────────────────────────────────

WORDS_OF_TWO = [("the red dog", [0], {}), ("both, of them!", [0, 1], {})]
ALMOST = {
    "{e}/{c}/{f}.png": "found '0/v1/' where 'v1/0/00000.png' is wanted",
    "my/out/{c}/{e}/{f}.png": "found below 'my/out': give that folder instead",
    "res/Annotations/{c}/{e}/{f}.png": "found below 'res/Annotations'",
    "{c}/{e}/{i1:05d}.png": "00000.png is missing, 00004.png is surplus: counted from 1?",
    "{c}/{e}/{i}.png": "'0.png' lies there for '00000.png'",
    "{c}/{e}/{f}.jpg": "'00000.jpg' lies there for '00000.png'",
    "{c}/{e}/{f}_mask.png": "'00000_mask.png' lies there for '00000.png'",
    "{c}/{e}/frame_{f}.png": "'frame_00000.png' lies there",
    "{c}/{e}/masks/{f}.png": "there is 'masks'",
    "{c}/{t}/{f}.png": "found 'v1/the red dog/' where 'v1/0/00000.png' is wanted",
    "{c}/the_red_dog{e}/{f}.png": "'v1' holds 'the_red_dog0', 'the_red_dog1', not 'v1/0/00000.png'",
    "{c}/{e:0>3}/{f}.png": "found 'v1/000/' where 'v1/0/00000.png' is wanted",
    "{c}/{e1}/{f}.png": "counted from 1: they are '0', '1'",
    "{c}_{e}/{f}.png": "found 'v1_0/' where",
    "{c}_{e}_{f}.png": "found 'v1_0_00000.png' where 'v1/0/00000.png' is wanted",
    "{c}/{e}_{f}.png": "found 'v1/0_00000.png' where",
    "{c}/{f}/{e}.png": "found 'v1/00000/' where 'v1/0/00000.png' is wanted",
    "{c}/{e}.png": "found 'v1/0.png' where 'v1/0/00000.png' is wanted",
    "V1/{e}/{f}.png": "found 'V1/0/' where",
}


@pytest.mark.parametrize("layout", ALMOST)
def test_a_layout_that_is_nearly_right_is_told_with_what_helps(tmp_path, layout):
    write_meta_expressions_set(tmp_path / "mevis", "valid_u", [video("v1", expressions=WORDS_OF_TWO)])
    data = open_dataset("mevis", root=tmp_path / "mevis")
    for clip, e, frame, mask in everything(data):
        i = clip.frame_names.index(frame)
        name = layout.format(c=clip.id, e=e.id, f=frame, t=e.text, i=i, i1=i + 1, e1=int(e.id) + 1)
        save(tmp_path / "p" / name, mask)
    (clip,) = data.clips()
    source = open_predictions(tmp_path / "p")
    states = source.survey(clip, data.expressions(clip)).samples
    assert {state.status for state in states.values()} == {"missing"}
    assert ALMOST[layout] in states["0"].why
    assert not source.predictions(clip, data.expressions(clip), labels=False, samples=True).samples
    code, _ = run(tmp_path, tmp_path / "p", "mevis", tmp_path / "mevis", "expression,mevis-visa,decaf")
    assert code == 2


ALMOST_IMAGES = {
    "{e}/{c}.png": "found '0/1.png' where '1/0.png' is wanted",
    "out/{c}/{e}.png": "found 'out/1/0.png' where '1/0.png' is wanted",
    "{c:0>6}_{e:0>3}.png": "found '000001_000.png' where '1/0.png' is wanted",
    "img{c}_sent{e}.png": "found 'img1_sent0.png'",
    "{c}/{t}.png": "found '1/one.png' where '1/0.png' is wanted",
    "{c}/{e}.jpg": "found '1/0.jpg' where '1/0.png' is wanted",
    "{c}/{e}/masks/m.png": "found '1/0/' where '1/0.png' is wanted",
}


@pytest.mark.parametrize("layout", ALMOST_IMAGES)
def test_the_same_for_images(coco, tmp_path, layout):
    data = RefCoco(root=coco)
    for clip, e, _, mask in everything(data):
        save(tmp_path / "p" / layout.format(c=clip.id, e=e.id, t=e.text), mask)
    (clip,) = data.clips()
    states = open_predictions(tmp_path / "p").survey(clip, data.expressions(clip)).samples
    assert ALMOST_IMAGES[layout] in states["0"].why


ALMOST_MAPS = {
    "x/y/{v}/{t:05d}.png": "found below 'x/y': give that folder instead",
    "{v}/{t1:05d}.png": "counted from 1?",
    "{v}/{t}.png": "'0.png' lies there for '00000.png'",
    "{v}_{t:05d}.png": "found 'car_00000.png' where 'car/00000.png' is wanted",
    "{v}/masks/{t:05d}.png": "'car' holds 'masks', not 'car/00000.png'",
    "{t:05d}/{v}.png": "found '00000/car.png' where 'car/00000.png' is wanted",
    "the {v}/{t:05d}.png": "",
}


@pytest.mark.parametrize("layout", ALMOST_MAPS)
def test_the_same_for_id_maps(tmp_path, layout):
    labels = np.zeros((24, 32), np.uint8)
    labels[4:9, 4:9] = 1
    for t in range(4):
        write_label_map(tmp_path / "gt" / "car" / f"{t:05d}.png", labels)
        write_label_map(tmp_path / "p" / layout.format(v="car", t=t, t1=t + 1), labels)
    (clip,) = open_dataset("id_maps", root=tmp_path / "gt").clips()
    found = open_predictions(tmp_path / "p").survey(clip, ()).labels
    assert found[""].status == "missing"
    assert ALMOST_MAPS[layout] in found[""].why
    code, _ = run(tmp_path, tmp_path / "p", "id_maps", tmp_path / "gt", "vosb,davis-semi")
    assert code == 2


@pytest.mark.parametrize("side", ["gt", "p"])
def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch, capsys, side):
    for folder in ("gt/car", "gt/cat", "p/car", "p/cat"):
        for t in range(3):
            write_label_map(tmp_path / folder / f"{t:05d}.png", np.eye(8, dtype=np.uint8))
    assert run(tmp_path, tmp_path / "p", "id_maps", tmp_path / "gt", "vosb")[0] == 0
    unlisted(monkeypatch, tmp_path / side / "cat")
    (tmp_path / "out.json").unlink()
    code, found = run(tmp_path, tmp_path / "p", "id_maps", tmp_path / "gt", "vosb")
    assert code
    assert found is None
    assert "can't be read (Permission denied)" in capsys.readouterr().err


ALMOST_JSON = {
    "found below 'results'": lambda m: {"results": {"v1": {e: [*by.values()] for e, by in m.items()}}},
    "below 'predictions'": lambda m: {"predictions": rows(m)},
    "found '0/v1/' where 'v1/0' is wanted": lambda m: {e: {"v1": [*by.values()]} for e, by in m.items()},
    "found 'v1/00/' where 'v1/0'": lambda m: {"v1": {f"0{e}": [*by.values()] for e, by in m.items()}},
    "found 'v1/the first/' where": lambda m: {"v1": {"the first": [*m["0"].values()], "x": []}},
    "counted from 1: they": lambda m: {"v1": {str(int(e) + 1): [*by.values()] for e, by in m.items()}},
    "surplus: counted from 1?": lambda m: {"v1": {
        e: {f"{i:05d}": rle for i, rle in enumerate(by.values(), 1)} for e, by in m.items()}},
    "'0' lies there for '00000'": lambda m: {"v1": {e: dict(enumerate(by.values())) for e, by in m.items()}},
    "'00000.jpg' lies there": lambda m: {"v1": {
        e: {f"{f}.jpg": rle for f, rle in by.items()} for e, by in m.items()}},
    "its entry holds 'output'": lambda m: {"v1": {e: {"output": [*by.values()]} for e, by in m.items()}},
    "is a list without names": lambda m: {"v1": [[*by.values()] for by in m.values()]},
    "found 'V1/0/' where": lambda m: {"V1": {e: [*by.values()] for e, by in m.items()}},
    "its entry is no list": lambda m: {"v1": {e: json.dumps([*by.values()]) for e, by in m.items()}},
    "found below '/data'": lambda m: {f"/data/v1/{e}": [*by.values()] for e, by in m.items()},
    "its entry is empty": lambda m: {"v1": {e: {"masks": {}} for e in m}},
    "found 'v1//0/' where 'v1/0' is wanted": lambda m: {f"v1//{e}": [*by.values()] for e, by in m.items()},
}  # fmt: skip


@pytest.mark.parametrize("words", ALMOST_JSON)
def test_the_same_for_a_json(told, words):
    place, masks = told
    data = open_dataset("mevis", root=place / "mevis")
    (place / "q.json").write_text(json.dumps(ALMOST_JSON[words](masks)))
    (clip,) = data.clips()
    states = open_predictions(place / "q.json").survey(clip, data.expressions(clip)).samples
    assert {state.status for state in states.values()} == {"missing"}
    assert words in states["0"].why
    code, _ = scored(place, json.dumps(ALMOST_JSON[words](masks)))
    assert code == 2


@pytest.mark.parametrize("name", ["", "/", "a/" * 50_000 + "b"])
def test_names_that_are_no_paths_cost_nothing(told, name):
    place, _ = told
    data = open_dataset("mevis", root=place / "mevis")
    (place / "q.json").write_text(json.dumps({name: {"0": []}}))
    (clip,) = data.clips()
    source = open_predictions(place / "q.json")
    assert source.survey(clip, data.expressions(clip)).samples["0"].status == "missing"
    assert len(source.notes(data)) == bool(name)


def test_masks_of_255_are_no_id_maps(davis, tmp_path, capsys):
    for clip, _, frame, mask in everything(RefDavis17(root=davis)):
        save(tmp_path / "p" / clip.id / f"{frame}.png", mask)
    code, _ = run(tmp_path, tmp_path / "p", "ref_davis17", davis, "expression")
    assert code == 2
    assert "masks, not id maps" in capsys.readouterr().err


def test_id_maps_stored_with_loss_are_told_what_helps_them(davis, tmp_path, capsys):
    data = RefDavis17(root=davis)
    for clip in data.clips():
        for frame in clip.frame_names:
            (tmp_path / "p" / clip.id).mkdir(parents=True, exist_ok=True)
            jpeg = Image.fromarray(np.zeros(clip.size, np.uint8))
            jpeg.save(tmp_path / "p" / clip.id / f"{frame}.png", format="JPEG")
    code, _ = run(tmp_path, tmp_path / "p", "ref_davis17", davis, "davis-unsup")
    said = capsys.readouterr().err
    assert code == 2
    assert "An id map must have one 8-bit channel, stored without loss; this JPEG" in said
    assert "threshold" not in said


def test_an_empty_folder_is_called_empty(told):
    place, _ = told
    (place / "p" / "v1").mkdir(parents=True)
    data = open_dataset("mevis", root=place / "mevis")
    (clip,) = data.clips()
    states = open_predictions(place / "p").survey(clip, data.expressions(clip)).samples
    assert states["0"].why == "nothing is in 'v1/'"


def test_what_no_sample_has_is_noted(told, capsys):
    place, masks = told
    for e, by in masks.items():
        for frame in by:
            save(place / "p" / "v1" / e / f"{frame}.png", np.zeros((24, 32), bool))
    for name in ("v1/0/99999", "v1/7/00000", "v\x1b2/0/00000", "Annotations/v1/1/00000"):
        save(place / "p" / f"{name}.png", np.ones((24, 32), bool))
    run(place, place / "p", "mevis", place / "mevis", "expression")
    told_words = capsys.readouterr().err
    assert r"not read (3): 'v\x1b2', 'v1/0/99999.png', 'v1/7'" in told_words
    assert "two places, the first is read (1): 'v1/1'" in told_words
    made = {"v1": {**{e: [*by.values()] for e, by in masks.items()}, "9": []}, "v2": {}}
    scored(place, json.dumps(made))
    assert "not read (2): 'v1/9', 'v2'" in capsys.readouterr().err


def test_a_run_is_no_folder_of_predictions(told, capsys):
    place, _ = told
    (place / "r" / "predictions").mkdir(parents=True)
    (place / "r" / "run.json").write_text("{}")
    assert run(place, place / "r", "mevis", place / "mevis", "expression")[0] == 2
    assert "a run of this harness" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("per", "words"),
    [
        (lambda e, frame: frame, {"the same for expressions of several objects": 8}),
        (lambda e, frame: e.id, {"the same in all frames of a clip": 8}),
        (lambda e, frame: (e.id, frame), {}),
    ],
    ids=["one for all expressions", "one for all frames", "each its own"],
)
def test_masks_written_more_than_once_are_told(told, capsys, per, words):
    place, first, runs = told[0], {}, {}
    for clip, e, frame, mask in everything(open_dataset("mevis", root=place / "mevis")):
        save(place / "p" / clip.id / e.id / f"{frame}.png", first.setdefault(per(e, frame), mask))
        rle = {"size": list(mask.shape), "counts": encode_rle(first[per(e, frame)]).decode()}
        runs.setdefault(f"{clip.id}/{e.id}", []).append(rle)
    _, found = run(place, place / "p", "mevis", place / "mevis", "rvos-expr")
    assert found["rvos-expr"]["notes"]["predictions_read"] == {"0/255 grey": 8, **words}
    assert "0/255 grey (8 files)" in capsys.readouterr().out
    (place / "p.json").write_text(json.dumps(runs))
    run(place, place / "p.json", "mevis", place / "mevis", "rvos-expr")
    line = next((line for line in capsys.readouterr().out.splitlines() if "predictions_read" in line), "")
    assert line.strip() == "".join(f"predictions_read: {name} ({n} masks)" for name, n in words.items())


def test_a_mask_beside_empty_ones_is_no_repetition(told):
    place = told[0]
    for clip, e, frame, mask in everything(open_dataset("mevis", root=place / "mevis")):
        save(place / "p" / clip.id / e.id / f"{frame}.png", mask & (e.id == "0"))
    _, found = run(place, place / "p", "mevis", place / "mevis", "rvos-expr")
    assert found["rvos-expr"]["notes"]["predictions_read"] == {"0/255 grey": 4, "empty grey": 4}


def test_an_archive_alone_in_a_folder_is_told(told, capsys):
    place = told[0]
    (place / "packed").mkdir()
    (place / "packed/masks.zip").write_bytes(b"PK")
    code, _ = run(place, place / "packed", "mevis", place / "mevis", "rvos-expr")
    assert code == 2
    assert "The predictions are packed." in capsys.readouterr().err


def test_run_lengths_that_go_row_by_row_are_told(told, capsys):
    place = told[0]
    data = open_dataset("mevis", root=place / "mevis")
    for rows in (True, False):
        masks = {}
        for clip, e, _, mask in everything(data):
            # What encode_rle makes of the columns of this is the rows of the mask.
            turned = mask.reshape(mask.shape[::-1]).T if rows else mask
            one = {"size": list(clip.size), "counts": encode_rle(turned).decode("ascii")}
            masks.setdefault(clip.id, {}).setdefault(e.id, []).append(one)
        (place / "rows.json").write_text(json.dumps(masks))
        assert run(place, place / "rows.json", "mevis", place / "mevis", "rvos-expr")[0] == 0
        note = "note: run lengths that seem to go row by row, COCO's go down the columns (1): "
        assert (note in capsys.readouterr().err) == rows


def test_an_empty_folder_beside_the_videos_of_a_truth_is_noted(tmp_path):
    write_label_map(tmp_path / "car/00000.png", np.eye(8, dtype=np.uint8))
    (tmp_path / "cat").mkdir()
    verdict = verify(open_dataset("id_maps", root=tmp_path))
    assert verdict.ok
    assert verdict.notes == [f"{tmp_path / 'cat'}: 'cat' is empty: it is no video here."]


def test_litter_of_other_systems_is_passed_over(told, capsys):
    place, masks = told
    (place / "r").mkdir()
    for name in (".DS_Store", "Thumbs.db", "._p.json"):
        (place / "r" / name).write_bytes(b"x")
    (place / "r" / "p.json").write_text(json.dumps(rows(masks)))
    assert run(place, place / "r", "mevis", place / "mevis", "expression")[0] == 0
    assert "note:" not in capsys.readouterr().err
