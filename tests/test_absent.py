"""The answer "absent" from a method's flag to tables, files and the server's zip, on a generated MeViS v2."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_bench.cli import main
from refseg_bench.report.exports import to_coco
from refseg_bench.report.html import write_report
from refseg_bench.run.store import runs_in
from refseg_bench.types import Answer, MaskTrack, Prediction, encode_rle
from tests.datasets.conftest import video
from tests.report.test_html import part as data_file
from tools.writers import (
    write_groundmore_set,
    write_long_rvos_set,
    write_meta_expressions_set,
    write_mevis_v2_set,
)

WORDS = [("it", [0], {}), ("the unicorn", [], {"type": "absent"}), ("both", [0, 1], {})]


@pytest.fixture
def v2(in_tmp: Path) -> Path:
    """A MeViS v2 of two clips: four sentences with a target, two without."""
    for split, hidden in (("valid_u", False), ("valid", True)):
        videos = [video(expressions=WORDS), video("ba9876543210", seed=1, expressions=WORDS)]
        write_mevis_v2_set(in_tmp / "data" / "mevis_v2", split, videos, hidden=hidden)
    return in_tmp / "data" / "mevis_v2"


def report(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["report", "runs", *words]) == 0
    return capsys.readouterr().out


def test_from_the_run_to_tables_files_and_pages(v2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "-m", "dataset=mevis_v2", "method=oracle,empty,full_frame", "score.bootstrap=20"]
    assert main([*command, "score.jobs=1", "--no-html"]) == 0
    told = capsys.readouterr().out
    assert "mevis_v2 · mevis-v2@1 · percent" in told
    assert "not settled by the publication: jf_over=all" in told
    rows = list(csv.DictReader(io.StringIO(report("--format", "csv", capsys=capsys))))
    found = {(row["method"], row["metric"]): float(row["value"]) for row in rows}
    assert {m: found["oracle", m] for m in ("Final", "J&F", "N-acc", "T-acc")} == {
        "Final": 1, "J&F": 1, "N-acc": 1, "T-acc": 1,
    }  # fmt: skip
    assert (found["empty", "N-acc"], found["empty", "T-acc"]) == (1, 0)
    assert (found["full_frame", "N-acc"], found["full_frame", "T-acc"]) == (0, 1)
    answers = {row["method"]: (row["n"], row["absent"], row["empty"]) for row in rows}
    assert answers == {"oracle": ("6", "2", "0"), "empty": ("6", "6", "0"), "full_frame": ("6", "0", "0")}
    records = json.loads(report("--format", "json", capsys=capsys))
    assert {r["method"]: r["answers"]["absent"] for r in records} == {
        "oracle": 2,
        "empty": 6,
        "full_frame": 0,
    }
    assert "absent |" in report("--format", "md", capsys=capsys)

    stores = {store.root.name.partition("-")[0]: store for store in runs_in(Path("runs"))}
    assert main(["score", str(stores["oracle"].root), "--json", "out.json", "--by", "answer"]) == 0
    assert "  answers: 4 masks, 2 absent" in capsys.readouterr().out
    (scored,) = json.loads(Path("out.json").read_text("utf-8")).values()
    assert scored["notes"]["answers"] == {"masks": 4, "absent": 2}
    assert {group: found["n"] for group, found in scored["by"]["answer"].items()} == {"absent": 2, "masks": 4}
    coco = to_coco(stores["oracle"])
    assert coco["info"]["answered_absent"] == ["0123456789ab/1", "ba9876543210/1"]
    assert coco["info"]["without_prediction"] == []
    write_report(list(stores.values()), Path("pages"))
    (shown,) = data_file(Path("pages"), "meta")["groups"]
    (table,) = shown["scores"]
    assert table["open"] == "jf_over=all"
    breakdowns = {t["attribute"]: t for t in data_file(Path("pages"), "meta")["breakdowns"]}
    assert "J&F by type" in breakdowns["type"]["caption"], "Final has no value where nothing is absent"
    assert not [c for t in breakdowns.values() for row in t["rows"] for c in row if c["text"] == "–"]
    absent = {"oracle": 2, "empty": 6, "full_frame": 0}
    assert {[*stores][row["run"]]: row["absent"] for row in table["rows"]} == absent
    listed = data_file(Path("pages"), "index-0-0")["status"]
    assert {name: status.count(3) for name, status in zip(stores, listed, strict=True)} == absent


def test_the_zip_holds_empty_masks_for_what_is_flagged(v2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks of files whose author flags a sentence: the server sees nothing but the masks."""
    names = ["00000", "00001", "00002", "00003"]
    for clip in ("0123456789ab", "ba9876543210"):
        for expression in "012":
            folder = Path("answers", clip, expression)
            folder.mkdir(parents=True)
            for name in names:
                Image.fromarray(np.full((24, 32), 255, np.uint8)).save(folder / f"{name}.png")
    Path("answers/no_target.json").write_text(json.dumps(["0123456789ab/1"]), "utf-8")
    command = ["submission", "--predictions", "answers", "--dataset", "mevis_v2", "--split", "valid"]
    assert main([*command, "-o", "v2.zip"]) == 0
    assert "fit" in capsys.readouterr().out
    with zipfile.ZipFile("v2.zip") as archive:
        assert len(archive.namelist()) == 2 * 3 * 4
        lit = {name: np.asarray(Image.open(archive.open(name))).any() for name in archive.namelist()}
    assert {name for name, some in lit.items() if not some} == {f"0123456789ab/1/{n}.png" for n in names}
    # A server of the first version knows nothing of flags.
    for split in ("valid_u", "valid"):
        plain = [video(expressions=[("it", [0], {})])]
        write_meta_expressions_set(Path("data/mevis"), split, plain)
    Path("answers/no_target.json").write_text(json.dumps(["0123456789ab/0"]), "utf-8")
    assert main([*command[:4], "mevis", "--split", "valid", "-o", "v1.zip"]) == 0
    with zipfile.ZipFile("v1.zip") as archive:
        assert all(np.asarray(Image.open(archive.open(name))).all() for name in archive.namelist())


@pytest.mark.parametrize("form", ["no folder", "empty folder", "alone", "record", "null", "nulls"])
def test_a_flag_alone_is_an_answer(v2: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    """A sample that is flagged and has no mask reads as empty masks with the flag; without it, as missing."""
    flagged = ["0123456789ab/1", "ba9876543210/1"]
    seen = np.ones((24, 32), bool)
    answers = Path("answers" if "folder" in form or form == "alone" else "answers.json")
    if form == "alone":
        flagged = [f"{clip}/{e}" for clip in ("0123456789ab", "ba9876543210") for e in "012"]
    if answers.suffix:
        whole = [{"size": [24, 32], "counts": encode_rle(seen).decode()}] * 4
        flag = {"record": {}, "null": {"masks": None}, "nulls": {"masks": [None] * 4}}[form]
        records = [
            {"video_id": clip, "exp_id": e, **({"no_target": True, **flag} if e == "1" else {"masks": whole})}
            for clip in ("0123456789ab", "ba9876543210")
            for e in "012"
        ]
        answers.write_text(json.dumps(records), "utf-8")
    else:
        answers.mkdir()
        for sample in {f"{clip}/{e}" for clip in ("0123456789ab", "ba9876543210") for e in "012"} - {
            *flagged
        }:
            (answers / sample).mkdir(parents=True)
            for t in range(4):
                Image.fromarray(seen.astype(np.uint8) * 255).save(answers / sample / f"{t:05d}.png")
        for sample in flagged if form == "empty folder" else ():
            (answers / sample).mkdir(parents=True)
        (answers / "no_target.json").write_text(json.dumps(flagged), "utf-8")
    command = [
        "score",
        "--dataset",
        "mevis_v2",
        "--predictions",
        str(answers),
        "-j",
        "1",
        "--json",
        "out.json",
    ]
    assert main(command) == 0
    found = json.loads(Path("out.json").read_text("utf-8"))["mevis-v2"]
    assert (found["n"], found["notes"]["answers"]["absent"]) == (6, len(flagged))
    assert (found["metrics"]["N-acc"], found["metrics"]["T-acc"]) == (1, 0 if form == "alone" else 1)
    zipped = ["submission", *command[1:5], "--split", "valid", "-o", "v2.zip"]
    assert main(zipped) == 0
    with zipfile.ZipFile("v2.zip") as archive:
        lit = {
            n.rpartition("/")[0] for n in archive.namelist() if np.asarray(Image.open(archive.open(n))).any()
        }
    assert lit.isdisjoint(flagged)
    assert len(lit) == 6 - len(flagged)
    # The same without the flags has no answer there.
    if answers.suffix:
        command[4] = "unflagged.json"
        Path(command[4]).write_text(json.dumps([{**r, "no_target": False} for r in records]), "utf-8")
    else:
        (answers / "no_target.json").write_text("[]", "utf-8")
    capsys.readouterr()
    assert main(command) == 2
    told = capsys.readouterr().err
    assert form == "alone" or "missing 0123456789ab/1" in told or "4 of 6" in told


@pytest.mark.slow
def test_the_two_releases_share_no_column_and_the_report_says_why(
    v2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where one is read as a set of one's own, and where runs of one set are of several splits."""
    for split in ("valid_u", "train"):
        write_meta_expressions_set(Path("data/mevis"), split, [video(expressions=[("another", [1], {})])])
    for words in (
        ["dataset=mevis"],
        ["dataset=mevis", "dataset.split=train"],
        ["dataset=mevis_v2"],
        ["dataset=mevis", "dataset.name=mine", f"dataset.root={v2}"],
    ):
        command = ["run", *words, "method=full_frame", "protocols=[rvos-expr]", "score.bootstrap=0"]
        assert main([*command, "score.jobs=1", "--no-html"]) == 0
    capsys.readouterr()
    told = report("--format", "md", capsys=capsys)
    captions = [line.strip("*").partition(" · percent")[0] for line in told.splitlines() if "percent" in line]
    assert sorted(c for c in captions if " by type" not in c) == [
        "mevis train · rvos-expr@1",
        "mevis valid\\_u · rvos-expr@1",
        "mevis\\_v2 · rvos-expr@1",
        "mine · rvos-expr@1",
    ]
    assert told.count("Not comparable with mevis\\_v2: the same clips, other sentences.") == 2
    assert told.count("Not comparable with mevis: the same clips, other sentences.") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("in_tmp")
def test_pages_pair_no_runs_whose_truth_is_read_in_two_ways() -> None:
    timed = [("who leaves?", [0], {"action_start": "0:00", "action_end": "0:00.5"})]
    write_groundmore_set(Path("data/groundmore"), "test", [video("ab_0000_0001", 6, timed)])
    command = ["run", "-m", "dataset=groundmore", "dataset.action_end=exclusive,inclusive"]
    assert main([*command, "method=oracle,empty", "score.bootstrap=0", "score.jobs=1", "--no-html"]) == 0
    stores = list(runs_in(Path("runs")))
    write_report(stores, Path("pages"))
    (group,) = data_file(Path("pages"), "meta")["groups"]
    (table,) = group["scores"]
    assert table["open"] == "each run its own way"
    ways = [store.info().lasting["dataset"]["action_end"] for store in stores]
    assert len(table["pairs"]) == 2
    assert all(ways[first] == ways[second] for first, second, *_ in table["pairs"])


def test_the_two_releases_are_not_compared(v2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_meta_expressions_set(Path("data/mevis"), "valid_u", [video(expressions=[("another one", [1], {})])])
    for dataset in ("mevis", "mevis_v2"):
        command = [
            "run",
            f"dataset={dataset}",
            "method=full_frame",
            "protocols=[rvos-expr]",
            "score.bootstrap=0",
        ]
        assert main([*command, "score.jobs=1", "--no-html"]) == 0
    runs = sorted(str(store.root) for store in runs_in(Path("runs")))
    assert len(runs) == 2
    capsys.readouterr()
    assert main(["compare", *runs]) == 2
    assert "different data: mevis, valid_u, and mevis_v2, valid_u" in capsys.readouterr().err


@pytest.mark.slow
def test_one_command_over_the_new_sets(v2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each stands in a table of its own, by its own rules; a truth given as the answer gets full marks."""
    timed = [("who leaves?", [0], {"q_type": "Causal", "action_start": "0:00", "action_end": "0:01"})]
    typed = [("it", [0], {"type": "static"}), ("what moves", [1], {"type": "dynamic"})]
    write_long_rvos_set(Path("data/long_rvos"), "valid", [video(expressions=typed)])
    write_groundmore_set(Path("data/groundmore"), "test", [video("ab_0000_0001", 6, timed)])
    command = ["run", "-m", "dataset=mevis_v2,long_rvos,groundmore", "method=oracle,lexical,empty"]
    assert main([*command, "score.bootstrap=0", "score.jobs=1", "--no-html"]) == 0
    told = capsys.readouterr().out
    for title in ("mevis_v2 · mevis-v2@1", "long_rvos · long-rvos@1", "groundmore · groundmore@1"):
        assert f"{title} · percent" in told
    assert "not settled by the publication: sampled=0, clock=source, action_end=exclusive, fps=6.0" in told
    rows = list(csv.DictReader(io.StringIO(report("--format", "csv", capsys=capsys))))
    found = {(row["dataset"], row["method"], row["metric"]): float(row["value"]) for row in rows}
    for dataset in ("mevis_v2", "long_rvos", "groundmore"):
        assert found[dataset, "oracle", "J&F"] == 1
        assert 0 <= found[dataset, "empty", "J&F"] < 1


@pytest.mark.parametrize(
    ("masks", "flag", "said"),
    [
        ([[0], [0]], None, "empty"),
        ([[0], [0]], False, "empty"),
        ([[0], [0]], True, "absent"),
        ([[0], [1]], True, "absent"),
        ([[0], [1]], None, "masks"),
        ([[0], None], None, "empty"),
        ([None, None], None, None),
        ([None, None], True, "absent"),
        (None, None, None),
    ],
)
def test_absent_empty_and_not_predicted_are_three_things(
    masks: list[list[int] | None] | None, flag: bool | None, said: Answer | None
) -> None:
    arrays = [None if m is None else np.array([m], bool) for m in masks or ()]
    track = None if masks is None else MaskTrack.from_masks(arrays, (1, 1))
    assert Prediction("v/0", "v", "0", track, no_target=flag).answer == said
