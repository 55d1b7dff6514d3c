"""`refseg score --predictions`: other people's files, in every layout, through the command line."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from refseg_bench.errors import ConfigError
from refseg_bench.run.loop import work_on
from refseg_bench.types import encode_rle
from tests.fakes import fake_run
from tests.scoring.worlds import blobs, shaken

SIZE = (40, 56)
FRAMES = ["00000", "00005", "00010", "00015"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))


def refseg(*words):
    done = subprocess.run(
        [sys.executable, "-m", "refseg_bench", *map(str, words)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def main(*words):
    """The command in this process (quick), returning its exit code."""
    from refseg_bench import cli

    return cli.main([str(w) for w in words])


def rle(mask):
    return {"size": list(SIZE), "counts": encode_rle(mask).decode()}


@pytest.fixture(scope="module")
def mevis(tmp_path_factory):
    """(root of a MeViS split, truth by sample, answer by sample)."""
    root = tmp_path_factory.mktemp("mevis")
    videos, masks, truth, answer = {}, {}, {}, {}
    for v in range(2):
        rng = np.random.default_rng(v)
        objects = [blobs(rng, SIZE, len(FRAMES)) for _ in range(2)]
        folder = root / "valid_u" / "JPEGImages" / f"vid{v}"
        folder.mkdir(parents=True)
        for name in FRAMES:
            Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / f"{name}.jpg")
        for k, stack in enumerate(objects):
            masks[str(10 * v + k)] = [rle(m) for m in stack]
        expressions = {}
        for e, ids in enumerate(([0], [1], [0, 1])):
            expressions[str(e)] = {"exp": f"thing {e}", "obj_id": ids, "anno_id": [10 * v + i for i in ids]}
            truth[f"vid{v}", str(e)] = np.any([objects[i] for i in ids], axis=0)
            answer[f"vid{v}", str(e)] = shaken(rng, truth[f"vid{v}", str(e)])
        videos[f"vid{v}"] = {"vid_id": v, "frames": FRAMES, "expressions": expressions}
    (root / "valid_u" / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (root / "valid_u" / "mask_dict.json").write_text(json.dumps(masks))
    return root, truth, answer


def save(mask, path, mode):
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "1":
        image = Image.fromarray(mask)
    elif mode == "RGB":
        image = Image.fromarray(np.stack([mask * np.uint8(0), mask * np.uint8(200), mask * np.uint8(0)], -1))
    elif mode == "P":
        image = Image.fromarray(mask.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 128, 0, 0])
    else:
        image = Image.fromarray(mask * np.uint8(mode.removeprefix("L")))
    image.save(path)


def write(folder, answer, mode="L255", top=""):
    for (video, expression), stack in answer.items():
        for name, mask in zip(FRAMES, stack, strict=True):
            save(mask, folder / top / video / expression / f"{name}.png", mode)
    return folder


def scores(mevis, predictions, tmp_path, *more, protocol="rvos-expr"):
    out = tmp_path / "out.json"
    code = main(
        "score", "--predictions", predictions, "--dataset", "mevis", "--root", mevis[0], "--split", "valid_u",
        "--protocol", protocol, "--json", out, "-j", 1, *more,
    )  # fmt: skip
    return code, json.loads(out.read_text())


def test_masks_that_others_replaced_are_read_anew(mevis, tmp_path):
    """A notebook scores one path again and again, in one process."""
    _, truth, answer = mevis
    path, found = tmp_path / "p.json", []
    for masks in (truth, answer, truth):
        held = {f"{video}/{e}": [rle(mask) for mask in stack] for (video, e), stack in masks.items()}
        path.write_text(json.dumps(held))
        found.append(scores(mevis, path, tmp_path)[1]["rvos-expr"]["metrics"]["J"])
    assert found[0] == found[2] == 1 > found[1]


def iou(a, b):
    union = (a | b).sum((1, 2))
    return np.where(union, (a & b).sum((1, 2)) / np.maximum(union, 1), 1.0)


def test_the_contract(mevis, tmp_path):
    _, truth, answer = mevis
    folder = write(tmp_path / "p", answer)
    out = tmp_path / "o.json"
    code, shown, said = refseg(
        "score", "--predictions", folder, "--dataset", "mevis", "--root", mevis[0], "--split", "valid_u",
        "--protocol", "rvos-expr,decaf", "--json", out, "--per-frame", "-j", 2,
    )  # fmt: skip
    assert code == 0, said
    assert "6 of 6 samples predicted" in said
    assert "rvos-expr@1" in shown
    found = json.loads(out.read_text())
    assert list(found) == ["rvos-expr", "decaf"]
    one = found["rvos-expr"]
    assert (one["n"], one["failed"], one["missing"]) == (6, [], [])
    expected = {f"{v}/{e}": iou(truth[v, e], answer[v, e]) for v, e in truth}
    for unit in one["units"]:
        j = expected[unit["id"]]
        assert unit["values"]["J"] == pytest.approx(j.mean(), abs=1e-12)
        assert list(unit["frames"]) == FRAMES
        assert [f["J"] for f in unit["frames"].values()] == pytest.approx(j, abs=1e-12)
    assert one["metrics"]["J"] == pytest.approx(np.mean([j.mean() for j in expected.values()]), abs=1e-12)
    assert found["decaf"]["metrics"]["J"] == pytest.approx(
        np.mean([round(100 * j.mean(), 2) for j in expected.values()]), abs=1e-9
    )


@pytest.mark.parametrize("mode", ["1", "L1", "L255", "L100", "P", "RGB"])
@pytest.mark.parametrize("top", ["", "Annotations"])
def test_every_way_to_write_a_mask_scores_the_same(mevis, tmp_path, mode, top):
    code, found = scores(mevis, write(tmp_path / "p", mevis[2], mode, top), tmp_path)
    assert code == 0
    expected = np.mean([iou(mevis[1][k], mevis[2][k]).mean() for k in mevis[1]])
    assert found["rvos-expr"]["metrics"]["J"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("protocol", ["rvos-expr", "decaf", "mevis-visa", "expression"])
def test_the_encoding_found_is_told_once(mevis, tmp_path, capsys, protocol):
    folder = write(tmp_path / "p", mevis[2], "P")
    t = int(np.argmax(mevis[2]["vid0", "0"].sum((1, 2))))
    soft = cv2.GaussianBlur(mevis[2]["vid0", "0"][t] * np.uint8(255), (0, 0), 1.5)
    Image.fromarray(soft).save(folder / "vid0" / "0" / f"{FRAMES[t]}.png")
    _, found = scores(mevis, folder, tmp_path, protocol=f"{protocol},decaf-coarse")
    files = sum(int(mask.any()) for stack in mevis[2].values() for mask in stack)
    read = {"0/38 palette, luminance": files - 1, "soft grey, above 0": 1}
    assert {k: n for k, n in found[protocol]["notes"]["predictions_read"].items() if "empty" not in k} == read
    shown = capsys.readouterr().out
    assert shown.count("predictions_read: 0/38 palette, luminance") == 1
    assert "soft grey, above 0 (1 file)" in shown


def test_truth_given_as_predictions_is_told(mevis, tmp_path, capsys):
    root = mevis[0]
    _, found = scores(mevis, write(tmp_path / "p", mevis[2]), tmp_path)
    assert "predictions" not in found["rvos-expr"]["notes"]
    folder = write(root / "valid_u" / "Annotations", mevis[1])
    capsys.readouterr()
    code, found = scores(mevis, folder, tmp_path)
    shutil.rmtree(folder)
    assert (code, found["rvos-expr"]["metrics"]["J"]) == (0, 1)
    assert "they lie in the folder of the data set" in found["rvos-expr"]["notes"]["predictions"]
    assert "its own annotations would score 1" in capsys.readouterr().out


def test_a_threshold_is_taken_only_where_asked(mevis, tmp_path):
    _, truth, answer = mevis
    halo = {key: cv2_dilated(stack) for key, stack in answer.items()}
    for (clip, e), stack in halo.items():
        for name, wide, mask in zip(FRAMES, stack, answer[clip, e], strict=True):
            path = tmp_path / "p" / clip / e / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(mask, 200, wide * 90).astype(np.uint8)).save(path)
    for words, expected in (((), halo), (("--threshold", 89), halo), (("--threshold", 127), answer)):
        code, found = scores(mevis, tmp_path / "p", tmp_path, *words)
        assert code == 0
        mean = np.mean([iou(truth[k], expected[k]).mean() for k in truth])
        assert found["rvos-expr"]["metrics"]["J"] == pytest.approx(mean, abs=1e-12)
    assert any(", above 127" in name for name in found["rvos-expr"]["notes"]["predictions_read"])


def cv2_dilated(stack):
    return np.stack([cv2.dilate(m.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for m in stack])


def forms(answer):
    nested: dict = {}
    records, flat = [], {}
    for (video, expression), stack in answer.items():
        masks = [rle(m) for m in stack]
        nested.setdefault(video, {})[expression] = {"prediction_masks": masks}
        records.append({"video_id": video, "exp_id": expression, "masks": masks})
        flat[f"{video}/{expression}"] = dict(zip(FRAMES, masks, strict=True))
    bare = {v: {"expressions": {e: d["prediction_masks"] for e, d in es.items()}} for v, es in nested.items()}
    return {
        "sa2va": nested,
        "bare": bare,
        "videos": {"videos": nested},
        "records": records,
        "flat": flat,
        "by video": [{"video_id": video, **record} for video, record in bare.items()],
        "by frame": [
            {"video_id": r["video_id"], "exp_id": r["exp_id"], "frame": frame, "segmentation": mask}
            for r in records
            for frame, mask in zip(FRAMES, r["masks"], strict=True)
        ],
    }


@pytest.mark.parametrize("form", ["sa2va", "bare", "videos", "records", "flat", "by video", "by frame"])
def test_run_lengths_in_json(mevis, tmp_path, form):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(forms(mevis[2])[form]))
    code, found = scores(mevis, path, tmp_path, protocol="sa2va-mevis,rvos-expr")
    assert code == 0
    expected = np.mean([iou(mevis[1][k], mevis[2][k]).mean() for k in mevis[1]])
    assert found["rvos-expr"]["metrics"]["J"] == pytest.approx(expected, abs=1e-12)
    assert found["sa2va-mevis"]["metrics"]["J"] == pytest.approx(100 * expected, abs=1e-10)


def test_uncompressed_run_lengths(mevis, tmp_path):
    whole = {"size": list(SIZE), "counts": [0, SIZE[0] * SIZE[1]]}
    path = tmp_path / "p.json"
    path.write_text(json.dumps({v: {e: [whole] * len(FRAMES) for e in "012"} for v in ("vid0", "vid1")}))
    code, found = scores(mevis, path, tmp_path)
    assert code == 0
    expected = np.mean([t.mean() for t in mevis[1].values()])
    assert found["rvos-expr"]["metrics"]["J"] == pytest.approx(expected, abs=1e-12)


def test_missing_work_is_listed_and_refused(mevis, tmp_path, capsys):
    some = {k: v for k, v in mevis[2].items() if k != ("vid1", "2")}
    folder = write(tmp_path / "p", some)
    (folder / "vid0" / "1" / "00005.png").unlink()
    (folder / "vid0" / "0" / "00000.png").write_bytes(b"torn")
    code, found = scores(mevis, folder, tmp_path, protocol="expression,rvos-expr,decaf")
    said = capsys.readouterr().err
    assert code == 2
    assert "missing vid1/2" in said
    assert "missing vid0/1: frames 00005" in said
    assert found["expression"]["metrics"] is None
    assert found["expression"]["missing"] == ["vid1/2", "vid0/1"]
    assert (found["rvos-expr"]["n"], found["decaf"]["n"]) == (3, 6)
    assert found["rvos-expr"]["failed"] == ["vid0/0"]
    assert found["rvos-expr"]["missing"] == ["vid1/2", "vid0/1"]
    code, found = scores(mevis, folder, tmp_path, "--partial", protocol="expression")
    assert (code, found["expression"]["n"]) == (0, 3)


def test_a_folder_where_nothing_matches_is_no_score_of_zero(mevis, tmp_path, capsys):
    """Even under the tool that scores a missing video as 0: it is a wrong folder, or a wrong layout."""
    other = write(tmp_path / "p", {(f"x{v}", e): mask for (v, e), mask in mevis[2].items()})
    code, found = scores(mevis, other, tmp_path)
    said = capsys.readouterr().err
    assert code == 2
    assert found["rvos-expr"]["metrics"] is None
    assert "None of the 6 samples has a prediction, from vid0/0 on." in said
    assert "docs/scoring.md" in said
    code, found = scores(mevis, other, tmp_path, "--partial")
    assert (code, found["rvos-expr"]["n"]) == (2, 0)


def test_an_empty_folder_of_a_video_is_no_missing_video(mevis, tmp_path):
    """The tool asks whether the video's folder exists before it gives zeros."""
    folder = write(tmp_path / "p", {k: v for k, v in mevis[2].items() if k[0] == "vid0"})
    _, found = scores(mevis, folder, tmp_path)
    assert found["rvos-expr"]["n"] == 6
    (folder / "vid1").mkdir()
    _, found = scores(mevis, folder, tmp_path)
    assert (found["rvos-expr"]["n"], len(found["rvos-expr"]["missing"])) == (3, 3)


def test_explain_prints_the_rules_behind_a_number(mevis, tmp_path, capsys):
    folder = write(tmp_path / "p", mevis[2])
    code, _ = scores(mevis, folder, tmp_path, "--explain", "vid0/2", protocol="decaf")
    said = capsys.readouterr().out
    assert code == 0
    for piece in ("vid0/2 under decaf@1", "all frames of the list", "2 decimals before averaging", "00015"):
        assert piece in said

    def units(said: str) -> set[str]:
        return {line.strip() for line in said.splitlines() if line.startswith("  vid")}

    assert units(said) == {"vid0/2"}
    lines = said.splitlines()
    value = {
        name: float(line.split(" = ")[1])
        for line in lines
        for name in "JF"
        if line.startswith(f"    {name} = ")
    }
    frames = [dict(zip(words[1::2], map(float, words[2::2]), strict=True)) for line in lines
              if line.startswith("      0") and (words := line.split())]  # fmt: skip
    for name in "JF":
        assert value[name] == pytest.approx(100 * sum(f[name] for f in frames) / len(frames), abs=0.006)
    code, _ = scores(mevis, folder, tmp_path, "--explain", "vid1", protocol="rvos-expr")
    found = units(capsys.readouterr().out)
    assert "vid1/0" in found
    assert all(unit.startswith("vid1/") for unit in found)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--dataset", "nonsense"), "No dataset 'nonsense'"),
        (("--protocol", "nonsense"), "No protocol 'nonsense'"),
        (("--predictions", "/nowhere/at/all"), "no predictions here"),
        (("--split", "nonsense"), "nonsense"),
    ],
)
def test_wrong_words_are_told(mevis, tmp_path, capsys, words, told):
    folder = write(tmp_path / "p", mevis[2])
    options = {"--predictions": folder, "--dataset": "mevis", "--root": mevis[0], **dict([words])}
    assert main("score", *[part for pair in options.items() for part in pair]) == 2
    assert told in capsys.readouterr().err


def test_torn_json_is_told(mevis, tmp_path, capsys):
    path = tmp_path / "p.json"
    path.write_text("{")
    assert main("score", "--predictions", path, "--dataset", "mevis", "--root", mevis[0]) == 2
    assert str(path) in capsys.readouterr().err


def test_damaged_run_lengths_never_reach_the_decoder(mevis, tmp_path):
    bad = {"size": list(SIZE), "counts": encode_rle(np.ones((400, 500), bool)).decode()}
    made = forms(mevis[2])["sa2va"]
    made["vid0"]["1"]["prediction_masks"][2] = bad
    path = tmp_path / "p.json"
    path.write_text(json.dumps(made))
    _, found = scores(mevis, path, tmp_path)
    assert found["rvos-expr"]["failed"] == ["vid0/1"]


def test_names_never_leave_the_folder(tmp_path):
    """An expression id or anno id with `..` finds nothing, even where the file exists."""
    from pathlib import Path

    from refseg_bench.scoring.foreign import FolderPredictions
    from refseg_bench.types import Clip, Expression

    save(np.ones(SIZE, bool), tmp_path / "outside" / "0" / "00000.png", "L255")
    (tmp_path / "p").mkdir()
    source = FolderPredictions(tmp_path / "p")
    for name in ("../outside", str(tmp_path / "outside"), ".."):
        clip = Clip(name, (Path("x"),), ("00000",), SIZE)
        expression = Expression("0", "x", {"anno_ids": [name]})
        assert source.survey(clip, [expression]).samples["0"].status == "missing"
    clip = Clip("v", (Path("x"),), ("../../outside/0/00000",), SIZE)
    assert source.survey(clip, [Expression("../outside/0", "x")]).samples["../outside/0"].status == "missing"


def test_options_that_do_not_go_together(tmp_path):
    import argparse

    from refseg_bench.commands import score

    parser = argparse.ArgumentParser()
    score.add(parser.add_subparsers())
    for words in (["score", "runs/a", "--predictions", "x"], ["score", "--dataset", "mevis"],
                  ["score", "--predictions", "x"], ["score", "--threshold", "9"],
                  ["score", "--predictions", "x", "--dataset", "mevis", "--threshold", "255"]):  # fmt: skip
        args = parser.parse_args(words)
        with pytest.raises(ConfigError):
            args.main(args)


# ── no number without a reason ───────────────────────────────────────────────


def moved(folder, change):
    """A folder of predictions with every file changed."""
    for path in sorted(folder.rglob("*.png"), reverse=True):
        change(path)
    return folder


def from_one(path):
    path.rename(path.with_name(f"{int(path.stem) + 5:05d}.png"))


def as_jpeg(path):
    Image.open(path).convert("L").save(path, format="JPEG")


def as_webp(path):
    Image.open(path).convert("RGB").save(path, format="WEBP", quality=50)


def as_tiff(path):
    Image.open(path).convert("L").save(path, format="TIFF", compression="jpeg")


def half(path):
    Image.fromarray(np.asarray(Image.open(path))[::2, ::2]).save(path)


#: Protocols of every rule for what is missing.
ALL_RULES = "rvos-expr,mevis-visa,decaf,expression"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (from_one, "missing vid0/0: frames 00000"),
        (half, "(20, 28), its frame (40, 56)"),
        (lambda path: path.write_text("no picture"), "it is no"),
        (as_jpeg, "is a JPEG, no PNG"),
        (as_webp, "is a lossy WEBP, no PNG"),
        (as_tiff, "is a lossy TIFF, no PNG"),
        (lambda path: path.write_bytes(b""), "it is no"),
        (lambda path: path.unlink(), "missing vid0/0"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--partial",)])
def test_no_number_where_every_sample_is_unusable(mevis, tmp_path, capsys, change, told, more):
    folder, asked = moved(write(tmp_path / "p", mevis[2]), change), ALL_RULES.split(",")
    code, found = scores(mevis, folder, tmp_path, *more, protocol=ALL_RULES)
    said = capsys.readouterr().err
    assert code == 2
    assert "0 of 6 samples predicted" in said
    refusals = said.split("refseg score: ")[1:]
    assert [refusal.partition(":")[0] for refusal in refusals] == asked
    for name, refusal in zip(asked, refusals, strict=True):
        assert told in refusal
        one = found[name]
        assert one["metrics"] is None
        assert len(one["failed"]) + len(one["missing"]) == 6
        if one["failed"]:
            assert set(one["why"]) == {f"{v}/{e}" for v, e in mevis[2]}


def test_losses_are_told_before_the_scores_and_whole_in_the_json(mevis, tmp_path, capsys):
    folder = write(tmp_path / "p", mevis[2])
    moved(folder / "vid0", half)
    code, found = scores(mevis, folder, tmp_path, protocol="mevis-vlisa,decaf")
    shown, said = capsys.readouterr()
    assert code == 0
    assert "3 of 6 samples predicted, 3 failed" in said
    lines = shown.splitlines()
    assert "n=3 of 6  failed=3" in lines[0]
    assert "3 incomplete: 0 counted as 0, 3 left out" in lines[1]
    assert "failed  vid0/0: The mask is (20, 28)" in lines[2]
    assert "3 incomplete: 3 counted as 0, 0 left out" in shown
    for one in found.values():
        assert set(one["why"]) == {"vid0/0", "vid0/1", "vid0/2"} == set(one["failed"])
        assert "00000.png" in one["why"]["vid0/1"]


def test_a_screen_of_losses_is_bounded(mevis, tmp_path, capsys):
    folder = write(tmp_path / "p", {k: v for k, v in mevis[2].items() if k == ("vid0", "0")})
    code, found = scores(mevis, folder, tmp_path, protocol="decaf")
    assert (code, capsys.readouterr().out.count("missing vid")) == (0, 5)
    assert len(found["decaf"]["missing"]) == 5
    (tmp_path / "q").mkdir()
    code, found = scores(mevis, write(tmp_path / "q", {("vid9", "0"): mevis[2]["vid0", "0"]}), tmp_path)
    assert "and 1 more, all in --json" in capsys.readouterr().err
    assert len(found["rvos-expr"]["missing"]) == 6


@pytest.mark.parametrize(
    "protocol", ["rvos-expr", "mevis-vlisa", "expression", "reasonvos", "decaf", "sa2va-mevis"]
)
def test_partial_leaves_out_what_is_not_there_under_every_protocol(mevis, tmp_path, protocol):
    folder = write(tmp_path / "p", {k: v for k, v in mevis[2].items() if k != ("vid1", "2")})
    moved(folder / "vid0", half)
    code, found = scores(mevis, folder, tmp_path, "--partial", protocol=protocol)
    one = found[protocol]
    assert (code, one["n"], one["expected"]) == (0, 2, 6)
    assert [unit["id"] for unit in one["units"]] == ["vid1/0", "vid1/1"]
    assert set(one["failed"]) == {"vid0/0", "vid0/1", "vid0/2"} <= set(one["why"])


def test_swapped_sizes_of_run_lengths_are_named(mevis, tmp_path, capsys):
    made = forms(mevis[2])["sa2va"]
    for masks in made["vid0"].values():
        for mask in masks["prediction_masks"]:
            mask["size"] = mask["size"][::-1]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(made))
    code, found = scores(mevis, path, tmp_path)
    shown, said = capsys.readouterr()
    assert code == 0
    assert "3 of 6 samples predicted, 3 failed" in said
    assert "height and width are swapped" in shown
    assert "swapped" in found["rvos-expr"]["why"]["vid0/0"]


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        ("revos-binary", "type_id"),
        ("revos-visa", "type_id"),
        ("sa2va-revos", "type_id"),
        ("refcoco-oiou", "scores images"),
        ("grefcoco-gres", "scores images"),
        ("reasonseg-lisa", "scores images"),
    ],
)
def test_a_protocol_that_cannot_apply_says_so_in_one_line(mevis, tmp_path, capsys, protocol, told):
    folder = write(tmp_path / "p", mevis[2])
    code, found = scores(mevis, folder, tmp_path, protocol=f"{protocol},rvos-expr")
    said = capsys.readouterr().err
    assert code == 2
    assert f"{protocol}@" in said
    assert f"can't be applied to mevis: it {'averages by ' if 'type' in told else ''}{told}" in said
    assert found[protocol]["metrics"] is None
    assert found["rvos-expr"]["n"] == 6


def test_the_json_holds_options_and_breakdowns(mevis, tmp_path, capsys):
    folder = write(tmp_path / "p", mevis[2])
    code, found = scores(mevis, folder, tmp_path, "--by", "objects", protocol="rvos-expr")
    assert code == 0
    groups = found["rvos-expr"]["by"]["objects"]
    assert {name: group["n"] for name, group in groups.items()} == {"1": 4, "2": 2}
    assert set(groups["1"]["metrics"]) == set(groups["1"]["intervals"]) == {"J&F", "J", "F"}
    code, found = scores(mevis, folder, tmp_path, "--by", "colour", protocol="rvos-expr")
    shown, said = capsys.readouterr()
    assert (code, found["rvos-expr"]["n"]) == (2, 6)
    assert "no attribute 'colour'" in said
    assert "J&F" in shown


def test_a_flaw_of_the_peaks_is_no_miss(mevis, tmp_path, capsys):
    folder = write(tmp_path / "p", mevis[2])
    (folder / "points.json").write_text(json.dumps({"vid0/0": {"y": 0.5, "x": 0.5}}))
    code, found = scores(mevis, folder, tmp_path, protocol="pointing")
    assert code == 2
    assert "vid0/1: it has no heat-map peak" in capsys.readouterr().err
    code, found = scores(mevis, folder, tmp_path, "--partial", protocol="pointing")
    assert (code, found["pointing"]["n"], found["pointing"]["expected"]) == (0, 1, 6)
    (folder / "points.json").unlink()
    code, found = scores(mevis, folder, tmp_path, "--partial", protocol="pointing")
    assert (code, found["pointing"]["n"]) == (2, 0)


def test_what_a_subset_cannot_tell_is_named_with_its_reason(tmp_path, capsys):
    """A part of ReVOS with one type only: no overall, but its own column, also by attribute."""
    masks = blobs(np.random.default_rng(0), SIZE, len(FRAMES))
    expression = {"exp": "it", "obj_id": [0], "anno_id": [7], "type_id": 0}
    about = {
        "vid_id": 0,
        "height": SIZE[0],
        "width": SIZE[1],
        "frames": FRAMES,
        "expressions": {"0": expression},
    }
    root = tmp_path / "revos"
    for name in FRAMES:
        save(masks[0], root / "JPEGImages" / "v" / f"{name}.jpg", "L255")
    (root / "meta_expressions_valid_.json").write_text(json.dumps({"videos": {"v": about}}))
    (root / "mask_dict.json").write_text(json.dumps({"7": [rle(m) for m in masks]}))
    folder, out = write(tmp_path / "p", {("v", "0"): masks}), tmp_path / "o.json"
    words = ("--predictions", folder, "--dataset", "revos", "--root", root, "--json", out)
    assert main("score", *words, "--by", "type", "-j", 1) == 0
    shown = capsys.readouterr().out
    assert "no value for J&F, J, F" in shown
    assert "there is no unit of reasoning" in shown
    assert "nan" not in shown
    assert "referring              n=1      J&F/referring 100" in shown
    found = json.loads(out.read_text())["revos-binary"]
    assert found["metrics"]["J/referring"] == 100
    assert "reasoning" in found["no_value"]["J&F"]


def test_a_jpeg_is_read_above_a_threshold(mevis, tmp_path):
    folder = moved(write(tmp_path / "p", mevis[2]), as_jpeg)
    code, found = scores(mevis, folder, tmp_path, "--threshold", 127)
    expected = np.mean([iou(mevis[1][k], mevis[2][k]).mean() for k in mevis[1]])
    assert (code, found["rvos-expr"]["n"]) == (0, 6)
    assert found["rvos-expr"]["metrics"]["J"] == pytest.approx(expected, abs=0.01)


def test_runs_of_one_name_both_stand_in_the_json(tmp_path):
    runs = []
    for part, side in (("a", 4), ("b", 8)):
        method = {"_target_": "tests.fakes.FakeMethod", "side": side}
        store = fake_run(tmp_path / part, method=method, score={"bootstrap": 20, "jobs": 1})
        work_on(store)
        runs.append(store.root.rename(tmp_path / part / "same"))
    other = fake_run(tmp_path, score={"bootstrap": 20, "jobs": 1})
    work_on(other)
    runs.append(other.root)
    assert main("score", *runs, "--json", tmp_path / "out.json", "-j", 1) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == [str(runs[0]), str(runs[1]), other.root.name]
    assert main("score", other.root, other.root.parent, "--json", tmp_path / "out.json", "-j", 1) == 0
    assert list(json.loads((tmp_path / "out.json").read_text())) == ["rvos-expr"], "named twice, one run"
