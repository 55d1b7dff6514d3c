"""Masks of other people's code as a run: a row, a paired test, pages and a zip, without a method."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_bench.cli import main
from refseg_bench.config.components import open_dataset, open_protocol
from refseg_bench.datasets.meta_expressions import MetaExpressions
from refseg_bench.files.store_io import read_sealed_yaml
from refseg_bench.report.html import write_report
from refseg_bench.run.store import RunStore, runs_in
from refseg_bench.scoring import runs
from tests.datasets.conftest import video
from tests.scoring.test_layouts import WORDS, coco, everything, merged  # noqa: F401
from tools.publish import publish, read_published
from tools.writers import (
    write_davis_source,
    write_groundmore_set,
    write_long_rvos_set,
    write_meta_expressions_set,
    write_reasonseg_image,
)

pytestmark = pytest.mark.usefixtures("in_tmp")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))


def write_masks(folder, data, shift=0, level=255):
    """The truth, moved to the right, as a folder of PNG files."""
    for clip in data.clips():
        for e in data.expressions(clip):
            union = data.target(clip, e).union()
            for t, frame in enumerate(clip.frame_names):
                path = Path(folder, clip.id, e.id, f"{frame}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.roll(union.mask(t), shift, 1) * np.uint8(level)).save(path)


def mevis_like(split="valid_u", name="mevis", clips=("v1", "v2")):
    write_meta_expressions_set(Path("data", name), split, [video(clip) for clip in clips])
    return open_dataset(name, root=Path("data", name), split=split)


def save(masks, *more, dataset="mevis"):
    root = ("--root", f"data/{dataset}") if Path("data", dataset).is_dir() else ()
    return main(
        ["score", "--predictions", str(masks), "--dataset", dataset, *root, "--save", *map(str, more)]
    )


def only_run() -> RunStore:
    (store,) = runs_in(Path("runs"))
    return store


@pytest.mark.slow
def test_a_student_with_a_folder_of_masks(capsys, monkeypatch):
    """Her row in every format, her paired test against DecAF's row, her pages and her zip."""
    limits = ["limit.clips=1", "limit.expressions=2", "score.bootstrap=50", "baselines=[]"]
    assert main(["run", *limits, "--no-html"]) == 0
    (decaf,) = runs_in(Path("runs"))
    write_masks("masks", open_dataset("shapes"), shift=4)
    assert (
        main(["score", "--predictions", "masks", "--dataset", "shapes", "--name", "MyModel", "--save"]) == 0
    )
    (mine,) = (store for store in runs_in(Path("runs")) if store.root != decaf.root)
    capsys.readouterr()

    for form in ("term", "md", "latex", "csv", "json"):
        assert main(["report", "--format", form]) == 0
        told = capsys.readouterr().out
        assert all(word in told for word in ("MyModel", "decaf", "54"))

    assert main(["compare", str(decaf.root), str(mine.root)]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("MyModel", "interval"))
    assert main(["report", str(mine.root), "--html"]) == 0
    data = mine.root / "report" / "data"
    assert '"name":"MyModel' in (data / "meta.js").read_text().replace("%20", " ")
    clips = "".join(path.read_text() for path in data.glob("clip-*.js"))
    assert clips.count('"rles":[') == 54
    assert '"source":"' in clips
    assert publish([mine], Path("published"))
    row = read_published(Path("published/samples.csv"))[0]
    assert row["method"] == "MyModel"
    assert row["digest"] == mine.info().content
    assert row["command"].split()[:4] == ["refseg", "score", "--predictions", str(Path("masks").resolve())]

    # A server's split: predicted, not scored here, packed and checked.
    data = mevis_like("valid", clips=("v1",))
    write_masks("answers", data)
    Path("data/mevis/valid/mask_dict.json").unlink()
    assert save("answers", "--split", "valid") == 0
    hidden = next(Path("runs").glob("answers-mevis-*"))
    assert main(["submission", str(hidden)]) == 0
    assert main(["submission", "--predictions", "answers", "--dataset", "mevis", "--root", "data/mevis",
                 "--split", "valid", "-o", "direct.zip"]) == 0  # fmt: skip
    assert (hidden / "submission.zip").read_bytes() == Path("direct.zip").read_bytes()


@pytest.mark.parametrize("protocol", ["rvos-expr", "mevis-visa", "decaf", "expression"])
def test_a_saved_row_has_the_numbers_of_the_files(protocol):
    write_masks("masks", mevis_like(), shift=3)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save("masks/v1/0/00000.png")  # damaged: a failure
    shutil.rmtree("masks/v2/1")  # missing
    where = ["score", "--predictions", "masks", "--dataset", "mevis", "--root", "data/mevis", "--partial"]
    assert main([*where, "--protocol", protocol, "--json", "a.json"]) == 0
    assert main([*where, "--protocol", protocol, "--json", "b.json", "--save"]) == 0
    direct, saved = (json.loads(Path(name).read_text())[protocol] for name in ("a.json", "b.json"))
    for key in ("metrics", "intervals", "n", "expected", "failed", "missing"):
        assert direct[key] == saved[key], key
    assert direct["failed"] == ["v1/0"]
    assert direct["missing"] == ["v2/1"]


def test_without_partial_a_saved_run_follows_the_protocols_own_rule(capsys):
    write_masks("masks", mevis_like())
    shutil.rmtree("masks/v2/1")
    where = ["--protocol", "decaf,rvos-expr,reasonvos"]
    code = save("masks", *where, "--json", "a.json")
    assert re.search(r"missing v2/1: found '.*' where 'v2/1/00000.png' is wanted", capsys.readouterr().err)
    masks = ["score", "--predictions", "masks", "--dataset", "mevis", "--root", "data/mevis"]
    assert main([*masks, *where, "--json", "b.json"]) == code
    saved, direct = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert [saved[p]["metrics"] for p in saved] == [direct[p]["metrics"] for p in direct]


def test_the_same_again_other_masks_and_another_source_are_told(capsys):
    write_masks("masks", mevis_like())
    assert save("masks", "--name", "A") == 0
    first = only_run().info()
    assert save("masks", "--name", "A") == 0
    assert "the same masks" in capsys.readouterr().err
    (value,) = {r.metrics["J&F"].value for r in only_run().results().values()}
    assert value == 1

    shutil.rmtree("masks/v1/0")
    write_masks("other", open_dataset("mevis", root=Path("data/mevis")), shift=5)
    shutil.copytree("other/v1/0", "masks/v1/0")
    assert save("masks", "--name", "A") == 0
    told = capsys.readouterr().err
    assert "1 samples differ" in told
    assert "replace" in told
    store = only_run()
    assert store.info().content != first.content
    assert next(iter(store.results().values())).metrics["J&F"].value < 1

    assert save("other", "--name", "A") == 2
    assert "other masks" in capsys.readouterr().err
    assert only_run().info().content == store.info().content
    # The same folder at another place is the same masks.
    Path("masks").rename("moved")
    assert save("moved", "--name", "A") == 0


def test_a_file_of_run_lengths_and_a_threshold(capsys):
    data = mevis_like()
    write_masks("grey", data, level=100)
    assert save("grey", "--threshold", "127") == 0
    assert save("grey") == 0
    values = [next(iter(s.results().values())).metrics["J&F"].value for s in runs_in(Path("runs"))]
    assert len(values) == 2
    assert 1 in values
    assert min(values) < 1
    masks = {}
    for clip in data.clips():
        for e in data.expressions(clip):
            union = data.target(clip, e).union()
            rles = [{"size": list(clip.size), "counts": counts.decode()} for counts in union.rles]
            masks[f"{clip.id}/{e.id}"] = rles
    Path("p.json").write_text(json.dumps(masks))
    capsys.readouterr()
    assert save("p.json") == 0
    assert "predictions_read" not in capsys.readouterr().err  # There is no file of pixels.
    store = RunStore.open(next(Path("runs").glob("p-mevis-*")))
    assert next(iter(store.results().values())).metrics["J&F"].value == 1


def test_id_maps_are_kept_by_expression():
    words = [video(n, expressions=WORDS) for n in ("car", "dogs")]
    write_davis_source(Path("src"), {"train": [video("bear", expressions=WORDS)], "val": words})
    from refseg_bench.datasets.ref_davis17 import convert

    convert(Path("src/DAVIS"), Path("src/davis_text_annotations"), Path("data/ref_davis17"))
    merged(Path("data/ref_davis17"), Path("maps"))
    assert save("maps", "--protocol", "refdavis-anno,decaf,refdavis-visa", dataset="ref_davis17") == 0
    assert {r.metrics["J&F"].value * 100 / r.scale for r in only_run().results().values()} == {100}


def test_her_row_beside_the_papers(capsys):
    test_id_maps_are_kept_by_expression()
    capsys.readouterr()
    for form in ("term", "md", "latex", "csv", "json"):
        assert main(["report", "experiment=decaf/table2", "--format", form]) == 0
        told = capsys.readouterr().out
        assert "maps" in told
        assert "100.0" in told
        assert "NaN" not in told
        assert "(+nan)" not in told
        assert form in ("csv", "json") or "Predictions of other code" in told


def test_masks_at_a_models_own_square_are_refused_by_name(request, capsys):
    root = request.getfixturevalue("coco")
    Path("sq").mkdir()
    for clip, e, _, _ in everything(open_dataset("refcoco_unc", root=root)):
        Image.fromarray(np.zeros((480, 480), np.uint8)).save(f"sq/{clip.id}_{e.id}.png")
    where = ["score", "--predictions", "sq", "--dataset", "refcoco_unc", "--root", str(root), "--save"]
    assert main([*where, "--protocol", "refcoco-lavt:resolution=480"]) == 2
    assert "(480, 480)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["=1+1", "1e5", "../../out", "<script>x</script>", "${y} [red]|&%_#\\ \"'", "é🦆", "a" * 300]
)
def test_hostile_names_are_shown_as_text(name, capsys):
    write_masks("masks", mevis_like())
    assert save("masks", "--name", name) == 0
    store = only_run()
    assert store.root.parent == Path("runs")
    assert store.info().choices["method"] == name
    capsys.readouterr()
    for form in ("term", "md", "latex", "csv", "json"):
        assert main(["report", "--format", form]) == 0
        told = capsys.readouterr().out
        assert form != "csv" or ",=1+1" not in told
        assert form in ("term", "json", "csv") or "<script>" not in told
    page = write_report([store], Path("pages"))
    assert "<script>x" not in page.read_text()
    assert main(["status"]) == 0
    assert publish([store], Path("pub"))


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[31m", "\u202eabc", "a\udcff"])
def test_names_that_no_table_can_show_are_refused(name, capsys):
    write_masks("masks", mevis_like())
    assert save("masks", "--name", name) == 2
    assert "--name" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_nothing_is_left_of_what_was_refused(capsys):
    mevis_like()
    Path("masks").mkdir()
    Path("masks/x.png").write_bytes(b"")
    assert save("masks") == 2
    assert "None of the" in capsys.readouterr().err
    assert not list(Path("runs").iterdir())
    assert main(["score", "--predictions", "masks", "--dataset", "mevis", "--name", "x"]) == 2
    assert main(["score", "--save"]) == 2
    assert "--save goes with --predictions" in capsys.readouterr().err


def test_data_that_changed_since_are_told(capsys):
    write_masks("masks", mevis_like())
    assert save("masks") == 0
    shutil.rmtree("data/mevis")
    write_meta_expressions_set(Path("data/mevis"), "valid_u", [video("v1", seed=1), video("v2", seed=2)])
    capsys.readouterr()
    assert main(["score", str(only_run().root)]) == 2
    assert "other data" in capsys.readouterr().err
    assert save("masks") == 0


@pytest.mark.slow
def test_two_folders_of_runs_hold_other_masks_under_one_name(capsys):
    data = open_dataset("shapes")
    for shift in (0, 9):
        write_masks(f"{shift}/masks", data, shift=shift)
        assert save(f"{shift}/masks", f"{shift}/runs", "--protocol", "rvos-expr,decaf", dataset="shapes") == 0
    capsys.readouterr()
    assert main(["report", "0/runs", "9/runs", "--format", "md"]) == 0
    by_type, whole, protocols = capsys.readouterr().out.split("\n\n**")
    for told in (by_type, whole, protocols):
        exact, moved = [line for line in told.splitlines() if line.startswith("| masks")]
        assert "100.0" in exact
        assert exact.split("|")[1] != moved.split("|")[1]
        assert exact.split("|")[2:] != moved.split("|")[2:]


def test_a_saved_row_tells_its_gaps_and_names_no_log(capsys):
    write_masks("masks", mevis_like())
    Path("masks/v1/0/00001.png").unlink()
    Image.fromarray(np.zeros((5, 5), np.uint8)).save("masks/v2/0/00000.png")
    assert save("masks", "--name", "Gaps", "--partial") == 0
    assert "1 failed, 0 missing, 1 with missing frames" in capsys.readouterr().err
    assert main(["status"]) == 0
    told = capsys.readouterr().out
    assert "v2/0: " in told
    assert "log:" not in told


class Mine(MetaExpressions):
    """A set of somebody else: its truth may lie anywhere."""


@pytest.mark.slow
def test_a_result_stands_only_while_all_it_was_made_from_does(capsys, monkeypatch):
    """A finished run is scored again by other code or another truth, and not for nothing."""
    mevis_like()
    words = [
        "dataset=mevis",
        "dataset.root=data/mevis",
        "dataset.split=valid_u",
        "method=oracle",
        "--no-html",
    ]
    asked: list[list[str]] = []
    under_each = runs.under_each
    monkeypatch.setattr(
        runs, "under_each", lambda d, s, names, o: asked.append(list(names)) or under_each(d, s, names, o)
    )

    def again() -> bool:
        assert main(["run", *words, "--no-html"]) == 0
        return bool(asked[-1])

    assert [again(), again()] == [True, False]
    with monkeypatch.context() as patch:
        patch.setattr(type(open_protocol("rvos-expr")), "__module__", "mine.protocols")
        assert [again(), again()] == [True, True]
    assert not again()
    store = only_run()
    values = read_sealed_yaml(store.config_path)
    values["dataset"]["_target_"] = f"{__name__}.Mine"
    for _ in range(2):
        runs.score_store(store, values=values, again=False)
        assert asked[-1]
    assert [again(), again()] == [True, False]
    with monkeypatch.context() as patch:
        patch.setattr("refseg_bench.__path__", [str(Path("data"))])
        Path("data/code.py").touch()
        assert [again(), again()] == [True, False]
    (masks,) = Path("data").rglob("mask_dict.*")
    again()
    os.utime(masks)
    assert not again()
    masks.write_bytes(masks.read_bytes() + b" ")
    assert [again(), again()] == [True, False]


def reasonseg_like() -> Path:
    shape = [("target", [[1, 1], [9, 1], [9, 9]])]
    write_reasonseg_image(
        Path("data/reasonseg"), "val", "a", np.zeros((16, 24, 3), np.uint8), ["why?"], shape
    )
    return Path("data/reasonseg/val/a.json")


def groundmore_like() -> Path:
    timed = [("who?", [0], {"q_type": "Causal", "action_start": "0:00", "action_end": "0:01"})]
    one = replace(video("ab_0000_0001"), expressions=timed)
    write_groundmore_set(Path("data/groundmore"), "test", [one])
    return next(Path("data/groundmore").rglob("masks/*.png"))


def long_rvos_like() -> Path:
    one = replace(video("0123456789ab"), expressions=[("it", [0], {"type": "dynamic"})])
    write_long_rvos_set(Path("data/long_rvos"), "valid", [one])
    return next(Path("data/long_rvos").rglob("Annotations/*/1/*.png"))


@pytest.mark.parametrize(
    ("dataset", "write"),
    [("reasonseg", reasonseg_like), ("groundmore", groundmore_like), ("long_rvos", long_rvos_like)],
)
def test_truth_of_every_kind_of_set_is_known(monkeypatch, capsys, dataset, write):
    """A complete run is scored again only after its truth was written anew with another content."""
    truth = write()
    asked: list[list[str]] = []
    under_each = runs.under_each
    monkeypatch.setattr(
        runs, "under_each", lambda d, s, names, o: asked.append(list(names)) or under_each(d, s, names, o)
    )

    def again() -> bool:
        assert main(["run", f"dataset={dataset}", "method=oracle", "--no-html", "score.bootstrap=0"]) == 0
        return bool(asked[-1])

    assert [again(), again()] == [True, False]
    os.utime(truth)
    assert not again()
    if truth.suffix == ".png":
        Image.open(truth).save(truth, compress_level=0)
    else:
        truth.write_text(truth.read_text() + " ")
    assert [again(), again()] == [True, False]
    # A set that lacks a file is no set that isn't here.
    truth.unlink()
    assert main(["report"]) == (2 if truth.suffix == ".png" else 0)
    assert ("the annotations have changed" in capsys.readouterr().err) == (truth.suffix == ".png")


def test_a_source_that_no_config_can_name_is_refused(capsys):
    write_masks("a\udcff", mevis_like())
    assert save("a\udcff", "--name", "mine") == 2
    assert "no UTF-8" in capsys.readouterr().err
    assert not Path("runs").exists()
