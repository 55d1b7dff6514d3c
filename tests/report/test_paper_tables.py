"""Published numbers, our runs beside them, and what is published of ours."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from refseg_bench.cli import main
from refseg_bench.commands.compare import show
from refseg_bench.config import compose as configs
from refseg_bench.config.components import names, open_protocol, options
from refseg_bench.config.schema import TARGET, locate
from refseg_bench.datasets import verify
from refseg_bench.env import resource
from refseg_bench.errors import ConfigError, ScoreError, StoreError
from refseg_bench.files.store_io import sealed, sealed_text, to_yaml
from refseg_bench.report import paper, tables
from refseg_bench.report.compare import Comparison, Group, compare, means, only_protocol, titles
from refseg_bench.report.paper import COLUMNS, Reference, held_against, paper_rows, printed_name
from refseg_bench.run.build import frozen
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunInfo, RunStore
from refseg_bench.scoring.runs import score_run
from refseg_bench.scoring.score import conclude
from refseg_bench.scoring.sources import Coverage
from refseg_bench.scoring.stats import Bootstrap
from refseg_bench.scoring.table import ScoreTable
from refseg_bench.types import Estimate, Result, Score
from tests.fakes import FakeDataset, fake_run
from tools.publish import HEADER, publish, read_published

EXPERIMENTS = names("experiment")


def references(experiment: str) -> list[tuple[dict[str, str], dict[str, Any], list[str]]]:
    """The `reference` and the protocols of every point of an experiment, its swept options replaced."""
    node, _ = configs._hydra([f"experiment={experiment}"])
    grid = OmegaConf.to_container(node.sweep) if node.get("sweep") else {}
    assert isinstance(grid, dict)
    out = []
    for combination in itertools.product(*grid.values()):
        point, said = copy.deepcopy(node), {}
        OmegaConf.set_struct(point, False)
        for key, values in zip(grid, combination, strict=True):
            keys = str(key).split(",")
            row = values if len(keys) > 1 else [values]
            for name, value in zip(keys, row, strict=True):
                said[name] = str(value)
                if name in ("dataset", "backbone", "method", "segmenter"):
                    point[name] = options(name, value)
                else:
                    OmegaConf.update(point, name, value)
        if point.get("reference") is not None:
            chosen = [list(where.get("protocols") or ()) for where in (point, point.dataset)]
            default = locate(str(point.dataset[TARGET]), "dataset").protocols
            reference = OmegaConf.to_container(point.reference, resolve=True)
            out.append((said, reference, chosen[0] or chosen[1] or list(default)))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_reference_resolves_to_rows(experiment: str) -> None:
    for said, node, protocols in references(experiment):
        rows = Reference.of(node).rows()
        results = [
            Result(word, dict.fromkeys(open_protocol(word).metrics, Estimate(0)), 1, 1, 0, 0)
            for word in protocols
        ]
        lost = [row for row in rows if not any(paper.counterpart(result, row) for result in results)]
        assert not lost, f"{experiment} at {said} is scored under {protocols}, none of which gives {lost}"
        assert rows, f"{experiment} at {said} is held against no row: {node}"
        # One row of the table for each number: nothing is compared with two settings at once.
        numbers = [(r.dataset, r.split, r.metric) for r in rows]
        assert len(numbers) == len(set(numbers)), (experiment, said, rows)


@pytest.mark.parametrize("mask", ["sam2", "attention"])
def test_masks_of_some_frames_are_scored_on_these(mask: str) -> None:
    """`decaf` counts an expression that lacks a frame as 0, which masks straight from attention all do."""
    node, _ = configs._hydra(["experiment=decaf/table4a", "dataset=reasonvos", f"method.mask={mask}"])
    assert list(node.protocols) == ["decaf" if mask == "sam2" else "decaf-coarse"]


def test_published_numbers_are_complete() -> None:
    counts = {"decaf.csv": 754, "refam.csv": 94, "third_party.csv": 233, "agents.csv": 83}
    for file, count in counts.items():
        rows = paper_rows(file)
        assert len(rows) == count
        assert all(0 <= row.number <= 100 for row in rows)
    with pytest.raises(ConfigError, match=r"decaf\.csv"):
        paper_rows("../paper/decaf.csv")


def test_the_published_final_of_mevis_v2_is_the_mean_of_three() -> None:
    """As ``mevis-v2@1`` computes it; to the last digit that is printed of its parts."""
    rows = [row for row in paper_rows("agents.csv") if row.dataset == printed_name("mevis_v2")]
    finals = 0
    for number in {row.row for row in rows}:
        printed = {row.metric: row.number for row in rows if row.row == number}
        mean = (printed["J&F"] + printed["N-acc"] + printed["T-acc"]) / 3
        assert printed["Final"] == pytest.approx(mean, abs=0.005)
        finals += 1
    assert finals == 3


def scored_run(
    folder: Path,
    value: float,
    *,
    name: str = "run",
    tau: float = 0.8,
    protocol: str = "decaf@1",
    **changes: Any,
) -> RunStore:
    """A run that says it repeats Table 6 of DecAF on Ref-DAVIS17, with a score made up for it."""
    reference = {
        "file": "decaf.csv",
        "table": "6",
        "method": "DecAF",
        "backbone": "Qwen2.5-VL-7B",
        "dataset": "ref_davis17",
        "setting": f"mask=sam2;tau_trk={tau};tau_pq=0.8",
    }
    store = fake_run(folder / name, reference=reference, **changes)
    details = {"interval": {"level": 0.9, "resamples": 10, "seed": 0}}
    metrics = {"J&F": Estimate(value, value - 2, value + 2), "J": Estimate(value), "F": Estimate(value)}
    result = Result(protocol, metrics, 240, 244, 3, 1, 100.0, details)
    store.write_result(result, ScoreTable().write_parquet)
    store.write_env(
        "job", {"commit": "c" * 40, "dirty": False, "python": "3.11", "started": "2026-01-02T03:04"}
    )
    return store


def test_a_run_stands_below_the_row_it_repeats(tmp_path: Path) -> None:
    store = scored_run(tmp_path, 74.9)
    (held,) = held_against(store)
    printed = [r for r in paper_rows("decaf.csv") if r.table == "6" and r.dataset == "Ref-DAVIS17"]
    wanted = next(r for r in printed if r.pairs["tau_trk"] == "0.8" and r.pairs["tau_pq"] == "0.8")
    assert held.row == wanted
    assert held.delta == pytest.approx(74.9 - wanted.number)
    laid = paper.layout(paper.paper_table("decaf.csv", "6", "DecAF", [store]))
    ours = [i for i, row in enumerate(laid.rows) if row[0].text.strip() == "ours"]
    assert len(ours) == 1
    assert laid.rows[ours[0] - 1][2].text == "tau_trk=0.8, tau_pq=0.8"
    cell = laid.rows[ours[0]][3]
    assert (cell.text, cell.interval) == ("74.9", "72.9–76.9")
    assert cell.delta == f"({74.9 - wanted.number:+.1f})"
    assert "90 %" in laid.caption
    assert any("decaf@1, n=240 of 244, failed=3, missing=1" in note for note in laid.notes)


def test_a_run_of_other_options_says_so_beside_the_row_it_repeats(tmp_path: Path) -> None:
    """They may be anything that the table doesn't vary; what it does vary, and the data, chose the row."""
    plain, other = scored_run(tmp_path, 74.9, name="plain"), scored_run(tmp_path, 75.0, name="other", seed=1)
    for store, more in ((plain, []), (other, ["segmenter=grabcut", "+seed=1", "method@method.of=x"])):
        typed = ["experiment=decaf/table6", "dataset=ref_davis17", "method.tau_trk=0.8", *more]
        typed += ["score.bootstrap=5", "limit.clips=2", "paths.runs=there"]
        info = {**vars(store.info()), "overrides": typed}
        store.info_path.write_text(
            sealed({**info, "choices": {**info["choices"], "experiment": "decaf/table6"}})
        )
    laid = paper.layout(paper.paper_table("decaf.csv", "6", "DecAF", [plain, other]))
    ours = [row[0].text.strip() for row in laid.rows if "ours" in row[0].text]
    assert ours == ["ours", "ours, segmenter=grabcut, +seed=1, method@method.of=x"]
    records = paper.to_records(paper.paper_table("decaf.csv", "6", "DecAF", [plain, other]))
    assert [r["departures"] for r in records if r["by"] == "ours"] == ["", ours[1].removeprefix("ours, ")]
    publish([other], tmp_path / "out", note="a try")
    (row,) = read_published(tmp_path / "out" / "decaf.csv")
    assert row["note"] == "with segmenter=grabcut, +seed=1, method@method.of=x; a try"


def test_what_sees_the_truth_is_not_the_best_of_a_papers_table(tmp_path: Path) -> None:
    store = scored_run(tmp_path, 99.0)
    (result,) = store.results().values()
    store.write_result(replace(result, n=244, failed=0, missing=0), ScoreTable().write_parquet)
    for sees in (False, True):
        store.info_path.write_text(sealed({**vars(store.info()), "sees_targets": sees}))
        laid = paper.layout(paper.paper_table("decaf.csv", "6", "DecAF", [store]))
        best = {row[3].text for row in laid.rows if row[3].best}
        assert (best == {"99.0"}) is not sees, best
        assert best


def test_seeds_and_segmenters_are_rows_of_their_own(tmp_path: Path) -> None:
    for place, (seed, segmenter) in enumerate([(0, "grabcut"), (1, "grabcut"), (1, "sam2")]):
        store = scored_run(tmp_path, 70.0 + place, name=str(place), seed=seed)
        choices = {**store.info().choices, "segmenter": segmenter}
        typed = {"choices": choices, "overrides": [f"seed={seed}"], "source": "elsewhere"}
        store.info_path.write_text(sealed({**vars(store.info()), **typed}))
        store.config_path.write_text(sealed_text(to_yaml({**frozen(store), "reference": None})))
        publish([store], tmp_path / "out")
    rows = read_published(tmp_path / "out" / "samples.csv")
    assert {row["value"] for row in rows if row["metric"] == "J"} == {"70.0000", "71.0000", "72.0000"}


def test_printed_numbers_stand_as_printed() -> None:
    """All digits: of 21.60 and 21.6 one says more; the best is that of what is seen."""
    shown = 0
    for file in ("refam.csv", "third_party.csv"):
        for table in dict.fromkeys(row.table for row in paper_rows(file)):
            laid = paper.paper_table(file, table, "", [])
            seen = [cell.text for row in paper.layout(laid).rows for cell in row]
            texts = [row.value for row in paper_rows(file) if row.table == table]
            assert set(texts) <= set(seen), table
            shown += len(texts)
    assert shown == 327
    line = paper.TableLine(
        "trained", ("a", "b", "–"), {("d", "s", "m"): Estimate(46.88)}, {}, {("d", "s", "m"): "46.88"}
    )
    best = replace(line, cells={("d", "s", "m"): Estimate(46.91)}, printed={("d", "s", "m"): "46.91"})
    laid = paper.layout(paper.PaperTable("p", "1", "", [("d", "s", "m")], [line, best], []))
    assert [row[2].best for row in laid.rows] == [False, True]


@pytest.mark.parametrize("split", ["valid", "val", "train"])
def test_a_run_of_another_split_stands_beside_no_printed_number(tmp_path: Path, split: str) -> None:
    """MeViS' valid_u is public, its valid is on a server: a run of one says nothing of the other's number."""
    dataset = {"_target_": "tests.fakes.FakeDataset", "root": str(tmp_path / "data"), "split": split}
    store = scored_run(tmp_path, 74.9, dataset=dataset)
    assert bool(held_against(store)) is (split != "train")
    laid = paper.layout(paper.paper_table("decaf.csv", "6", "DecAF", [store]))
    assert any(row[0].text.strip() == "ours" for row in laid.rows) is (split != "train")
    assert any("none is of its split (train)" in note for note in laid.notes) is (split == "train")


def test_the_parts_of_a_split_are_held_against_their_own_columns(tmp_path: Path) -> None:
    """ReVOS prints referring, reasoning, and the mean of the two, which no mean over all expressions is."""
    reference = {"file": "decaf.csv", "table": "2", "method": "DecAF", "backbone": "Qwen2.5-VL-7B"}
    store = fake_run(tmp_path / "run", reference={**reference, "dataset": "revos"})
    parts = {"J&F": 3.0, "J&F/referring": 1.0, "J&F/reasoning": 5.0}
    result = Result("revos-visa@1", {n: Estimate(v) for n, v in parts.items()}, 4, 4, 0, 0, 100.0)
    pooled = Result("decaf@1", {"J&F": Estimate(2.0)}, 4, 4, 0, 0, 100.0)
    store.write_result(pooled, ScoreTable().write_parquet)
    assert held_against(store) == []
    store.write_result(result, ScoreTable().write_parquet)
    assert {held.row.split: held.estimate.value for held in held_against(store)} == {
        "valid/overall": 3.0, "valid/referring": 1.0, "valid/reasoning": 5.0,
    }  # fmt: skip


def test_the_runs_own_protocol_is_held_against_print_with_its_options(tmp_path: Path) -> None:
    store = scored_run(tmp_path, 70.0, protocol="aaa@1", protocols=["decaf:x=1", "aaa"])
    result = replace(store.results()["aaa@1"], protocol="decaf@1:x=1")
    store.write_result(result, ScoreTable().write_parquet)
    store.write_result(replace(result, protocol="decaf@1"), ScoreTable().write_parquet)
    assert [held.protocol for held in held_against(store)] == ["decaf@1:x=1"]
    assert [r.protocol for r in paper._in_order(store)] == ["decaf@1:x=1", "aaa@1", "decaf@1"]


def test_protocols_that_differ_are_marked(tmp_path: Path) -> None:
    one = scored_run(tmp_path, 74.9, name="one")
    two = scored_run(tmp_path, 71.0, name="two", tau=0.7, protocol="refdavis-anno@1")
    laid = paper.layout(paper.paper_table("decaf.csv", "6", "DecAF", [one, two]))
    marks = {row[3].mark.strip("*") for row in laid.rows if row[0].text.strip() == "ours"}
    assert marks == {"a", "b"}
    assert {note for note in laid.notes if note[1] == ":" and note[0] != "*"} == {
        "a: refdavis-anno@1", "b: decaf@1",
    }  # fmt: skip


def test_groups_and_bold_best() -> None:
    laid = paper.layout(paper.paper_table("decaf.csv", "2", "DecAF", []))
    assert list(laid.sections.values()) == ["Training-free", "Trained"]
    cut = list(laid.sections)[1]
    best = [row[0].text + " " + row[1].text for row in laid.rows[:cut] if row[2].best]
    assert best == ["DecAF Qwen2.5-VL-7B"]
    assert [row[0].text for row in laid.rows[cut:] if row[2].best] == ["VRS-HQ"]
    attention = paper.layout(paper.paper_table("decaf.csv", "1", "DecAF", []))
    assert list(attention.sections.values()) == ["Attention only"]
    video = paper.layout(paper.paper_table("third_party.csv", "12.3", "", []))
    order = [title for title in paper.KINDS.values() if title in video.sections.values()]
    assert list(video.sections.values()) == order
    assert "API agent" in order
    assert "Prompt-tuned" in order


@pytest.mark.parametrize("experiment", ["decaf/table1", "decaf/table6", "refam/refcoco", "refam/ref_davis17"])
@pytest.mark.parametrize("form", ["term", "md", "latex", "csv", "json"])
def test_report_experiment_in_every_form(experiment: str, form: str, in_tmp: Path) -> None:
    assert main(["report", f"experiment={experiment}", "--format", form, "-o", "out"]) == 0
    text = (in_tmp / "out").read_text()
    method = "DecAF" if "decaf" in experiment else "RefAM"
    assert method in text
    if form == "json":
        assert all(record["by"] == "paper" for record in json.loads(text))
    if form == "csv":
        file, table, _ = paper.experiment_table(experiment)
        printed = [row for row in paper_rows(file) if row.table == table]
        assert len(list(csv.DictReader(text.splitlines()))) == len(printed)
    if form == "latex":
        check_latex(text, in_tmp)


def check_latex(text: str, folder: Path) -> None:
    """Compile where a TeX is installed; else check that it is a rectangle of balanced cells."""
    for block in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        columns, body = block
        for line in body.splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line
        assert body.index(r"\toprule") < body.index(r"\midrule") < body.index(r"\bottomrule")
    opened = re.sub(r"\\[{}\\]", "", text)
    assert opened.count("{") == opened.count("}")
    assert not re.search(
        r"(?<!\\)[#_$](?!\w*\$)(?![^$\n]*\$)", re.sub(r"\$[^$\n]*\$", "", text).replace("\\", "\\")
    )
    tex = shutil.which("pdflatex") or shutil.which("tectonic")
    if tex is not None:
        page = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
        (folder / "page.tex").write_text(f"{page}\n{text}\\end{{document}}\n")
        options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in tex else []
        done = subprocess.run([tex, *options, "page.tex"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]


def test_words_are_escaped_in_every_form(tmp_path: Path) -> None:
    nasty = r"a|b <script> [red]x[/red] *y* \z {q} 50% #1 $m$ ~^& `c`"
    table = tables.ResultTable(
        nasty,
        (nasty, "J&F"),
        ((tables.Cell(nasty), tables.Cell("1.0", "0.5–1.5", True)),),
        notes=("a: no model", "b: the truth"),
    )
    latex = tables.to_latex(table)
    assert ". a: no model. b: the truth}" in latex
    assert r"\textbar{}" in latex
    check_latex(latex, tmp_path)
    (row,) = [line for line in tables.to_markdown(table).splitlines() if "**1.0**" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert "<script>" not in row.replace(r"\<", "")
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    tables.to_terminal(table, console)
    assert "[red]x[/red]" in console.export_text()


@pytest.mark.parametrize("name", ["[2 px]", "*wide"])
def test_no_name_is_an_argument_of_the_row_before(name: str, tmp_path: Path) -> None:
    rows = tuple((tables.Cell(text), tables.Cell("1.0")) for text in ("a", name))
    latex = tables.to_latex(tables.ResultTable("c", ("method", "J"), rows))
    assert re.search(r"\\\\\s*[\[*]", latex) is None
    check_latex(latex, tmp_path)


def test_types_that_are_columns_make_no_table(tmp_path: Path) -> None:
    """ReVOS' protocols have one column for each type: by type every metric lacks a value somewhere."""
    store = fake_run(tmp_path / "run")
    values = dict.fromkeys(("J&F", "J", "F", "A", "R"), 50.0)
    table = ScoreTable()
    kinds = enumerate(("referring", "reasoning"))
    table.extend(Score(f"v/{k}", "v", values, {"type_id": k, "type": kind}) for k, kind in kinds)
    rules = open_protocol("revos-visa")
    result = conclude(rules, FakeDataset(), table, Coverage(units=2), Bootstrap(0))
    store.write_result(result, table.write_parquet)
    assert ["by type" in found.caption for found in tables.tables_of([store])] == [False]


def test_a_number_that_rounds_to_nothing_has_no_sign() -> None:
    cell = tables.number_cell(Estimate(-0.0004, -0.0002, 0.0001), 100.0)
    assert (cell.text, cell.interval) == ("0.0", "0.0–0.0")
    assert tables.equal_in_print(-0.04, 0.04)


def test_nothing_of_a_table_steers_a_terminal(tmp_path: Path) -> None:
    """What a stranger's run is called and says of itself, also where colours are shown."""
    result = Result("p@1", {"J": Estimate(0.5)}, 1, 1, 0, 0, details={"part": "\x1b[31m1 of 2"})
    (table,) = tables.tabulate([tables.Row("a\x1b]0;x", "a", "set\x1b[2J", result)])
    with (tmp_path / "out").open("w+") as file:
        console = Console(width=200, file=file, force_terminal=True)
        tables.to_terminal(table, console)
        named = ("x", "y", ("b\x1b[2J", "c"), "p@1", 1.0, {"": 100}, 0.0)
        show(Comparison(*named, Group("", "", {}), (), (), (), {"k": ("d\x1b[2J", 1)}, 0, ""), console)
        file.seek(0)
        said = file.read()
    assert ": \\x1b[31m1 of 2" in said
    assert "set\\x1b[2J" in said
    assert all(name in said for name in ("a\\x1b]0;x", "b\\x1b[2J", "d\\x1b[2J"))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_off_in_a_narrow_terminal(width: int, tmp_path: Path) -> None:
    names = ["a_method_with_a_rather_long_name-on-a-dataset-0123abcd", "short"]
    result = Result(
        "p@1", {f"Pr@0.{k}": Estimate(0.1 * k, 0.05 * k, 0.15 * k) for k in range(1, 8)}, 9, 9, 0, 0
    )
    (table,) = tables.tabulate([tables.Row(n, n, "set", result) for n in names])
    console = Console(width=width, record=True, file=(tmp_path / "out").open("w"))
    tables.to_terminal(table, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for k in range(1, 8):
        assert f"{5 * k:.1f}–{15 * k:.1f}" in text
    assert names[0] in text.replace("\n", "").replace(" ", "") or names[0][:20] in text


def info(digest: str, method: str = "m", *, name: str = "", **lasting: Any) -> RunInfo:
    given = {"name": f"{name}-set", "overrides": [f"name={name}-set"]} if name else {"name": f"{method}-set"}
    choices = {"method": method, "dataset": "set", "backbone": lasting.pop("backbone", "None")}
    options = {"method": lasting.pop("options", {}), **lasting}
    return RunInfo(digest, choices=choices, lasting=options, **given)


def test_rows_go_by_what_differs_between_them() -> None:
    assert titles([info("1", "a"), info("2", "a", name="a_raw"), info("3", "b"), info("4", name="mine")]) == [
        "a", "a · raw", "b", "mine",
    ]  # fmt: skip
    swept = [info(str(tau), options={"tau": tau, "fusion": {"size": 3}}) for tau in (0.7, 0.8)]
    assert titles(swept) == ["m · tau=0.7", "m · tau=0.8"]
    assert titles([info("1", backbone="small"), info("2", backbone="large")]) == ["m · small", "m · large"]
    printed = [replace(run, printed={"backbone": run.choices["backbone"].title()}) for run in
               (info("1", backbone="small"), info("2", backbone="large"))]  # fmt: skip
    assert titles(printed) == ["m · Small", "m · Large"]
    twice = [info("01", options={"a": {"size": 1}, "b": {"size": 2}}), info("02", options={"a": {"size": 2}})]
    assert titles(twice) == [
        "m · method.a.size=1, method.b.size=2",
        "m · method.a.size=2, method.b.size=null",
    ]
    # Nothing tells these apart but their digests; the same run twice is one.
    assert titles([info("01"), info("02"), info("02")]) == ["m · 01", "m · 02", "m · 02"]
    assert titles([info("01"), info("01")]) == ["m", "m"]
    assert info("1", limit={"clips": 2, "expressions": None, "samples": ["a", "b"]}).label == (
        "m (limit.clips=2, limit.samples=2 named)"
    )
    assert info("1", dataset={"videos": ["a", "b"]}).label == "m (dataset.videos=2 named)"
    assert info("1", dataset={"videos": []}, limit=3).label == "m"


def test_floors_come_first_and_what_sees_the_truth_last(tmp_path: Path) -> None:
    truth = {"sees_targets": True, "bound": True}
    kinds = [("z", {**truth}), ("o", {**truth, "lasting": {"segmenter": {"_target_": "x"}}}),
             ("d", {"backbone": "x"}), ("l", {}), ("d", {"backbone": "x", "name": "d_raw"}),
             ("e", {"bound": True})]  # fmt: skip
    stores = []
    for place, (method, more) in enumerate(kinds):
        flags = {"lasting": {}}
        flags |= {key: more.pop(key) for key in ("sees_targets", "bound", "lasting") if key in more}
        store = scored_run(tmp_path, 50 + place, name=str(place))
        record = {**vars(info(store.info().digest, method, **more)), **flags}
        store.info_path.write_text(sealed(record))
        stores.append(store)
    assert [row.label for row in tables.rows_of(stores)] == ["e", "l", "d", "d · raw", "o", "z"]


def test_a_data_sets_own_protocol_leads_and_options_have_a_row_of_their_own(tmp_path: Path) -> None:
    store = scored_run(tmp_path, 50.0, protocol="aaa@1")
    for name in ("own@1:side=4", "own@1", "zzz@1"):
        store.write_result(Result(name, {"M": Estimate(1.0)}, 1, 1, 0, 0), ScoreTable().write_parquet)
    record = {**vars(store.info()), "protocols": ["own"]}
    store.info_path.write_text(sealed(record))
    assert list(store.results()) == ["own@1", "own@1:side=4", "aaa@1", "zzz@1"]
    lead, several = tables.tables_of([store])
    assert "own@1 ·" in lead.caption
    assert several.header == ("method", "own@1\nM", "own@1:side=4\nM", "aaa@1\nJ&F", "zzz@1\nM")
    assert several.rows[0][3].text == "50.0*"  # 240 of 244
    assert [means("own", p) for p in store.results()] == [True, True, False, False]
    only_protocol([store], "own:side=4")
    assert list(store.results()) == ["own@1:side=4"]
    with pytest.raises(ScoreError, match="nix"):
        only_protocol([store], "nix")


def test_a_part_of_the_samples_is_never_the_best() -> None:
    made = [
        Result("p@1", {"J": Estimate(value)}, n, 9, 0, 9 - n) for value, n in ((0.9, 9), (0.8, 8), (0.7, 9))
    ]
    rows = [tables.Row(n, n, "set", r) for n, r in zip("abc", made, strict=True)]
    (table,) = tables.tabulate([replace(rows[0], part="limit.clips=1"), *rows[1:]])
    assert [row[1].best for row in table.rows] == [False, False, True]
    assert next(tables.lines_of([replace(rows[0], part="limit.clips=1")]))["part"] == "limit.clips=1"
    failed = replace(rows[0], result=replace(made[0], failed=1))  # one that counts as 0, so that n is whole
    (table,) = tables.tabulate([failed, *rows[1:]])
    assert [row[1].best for row in table.rows] == [False, False, True]


def test_what_looks_the_same_is_the_best_together() -> None:
    made = [Result("p@1", {"J": Estimate(value)}, 9, 9, 0, 0) for value in (0.4504, 0.4496, 0.4494)]
    (table,) = tables.tabulate([tables.Row(n, n, "set", r) for n, r in zip("abc", made, strict=True)])
    assert [(row[1].text, row[1].best) for row in table.rows] == [("45.0", 1), ("45.0", 1), ("44.9", 0)]


@pytest.mark.parametrize("clips", [None, 2])
def test_a_part_of_the_samples_is_never_the_best_of_a_papers_table(tmp_path: Path, clips: int | None) -> None:
    store = scored_run(tmp_path, 99.0, limit={"clips": clips})
    if clips:
        whole = replace(store.results()["decaf@1"], n=244, failed=0, missing=0)
        store.write_result(whole, ScoreTable().write_parquet)
    laid = paper.layout(paper.paper_table("decaf.csv", "6", "DecAF", [store]))
    (ours,) = (row for row in laid.rows if row[0].text.strip() == "ours")
    assert (ours[3].text, ours[3].best, ours[3].mark) == ("99.0", False, "*")
    assert any(row[3].best for row in laid.rows)  # the best that was printed
    assert "*: not of all samples of the split" in laid.notes
    assert any("(limit.clips=2)" in note for note in laid.notes) is bool(clips)


# ── publishing ───────────────────────────────────────────────────────────────


def test_publish_keeps_the_columns_and_replaces_rows(tmp_path: Path) -> None:
    store = scored_run(tmp_path, 74.9)
    folder = tmp_path / "reproduced"
    assert publish([store], folder) == {folder / "decaf.csv": 1}
    (row,) = read_published(folder / "decaf.csv")
    assert HEADER[: len(COLUMNS) - 1] == COLUMNS[:-1]
    assert (row["value"], row["low"], row["high"]) == ("74.9000", "72.9000", "76.9000")
    assert (row["n"], row["failed"], row["missing"]) == ("240", "3", "1")
    assert row["commit"] == "c" * 40
    assert row["digest"] == store.info().digest
    assert row["date"] == "2026-01-02"
    assert publish([store], folder, "again") == {folder / "decaf.csv": 1}
    (again,) = read_published(folder / "decaf.csv")
    assert again["note"] == "again"


def test_a_published_name_that_looks_like_a_formula_is_replaced(tmp_path: Path) -> None:
    store = scored_run(tmp_path, 74.9)
    info = {**vars(store.info()), "choices": {"method": "=1+1", "dataset": "mevis"}}
    store.info_path.write_text(sealed(info))
    values = {**frozen(store), "reference": None}
    store.config_path.write_text(sealed_text(to_yaml(values)))
    for note in ("once", "again"):
        assert publish([store], tmp_path / "out", note) == {tmp_path / "out/samples.csv": 3}
    rows = read_published(tmp_path / "out/samples.csv")
    assert {(row["method"], row["note"]) for row in rows} == {("'=1+1", "again")}


def test_a_data_set_that_holds_less_than_its_release_is_a_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of an archive was unpacked, where the split is what its folder holds."""
    dataset = {"_target_": "tests.fakes.FakeDataset", "name": "photos", "root": str(tmp_path / "data")}
    told = "4 of the 6 images that the release has"
    for limit, part in (({}, told), ({"clips": 2}, "limit.clips=2")):
        store = fake_run(tmp_path, dataset=dataset, limit=limit)
        work_on(store)
        score_run(store)
        assert (told in capsys.readouterr().err) is not bool(limit)
        (row,) = tables.rows_of([store])
        assert (row.part, row.ranked) == (part, False)
        assert [told in note for note in tables.tabulate([row])[0].notes] == [True] * (not limit)
        publish([store], out := tmp_path / f"only {part}")
        assert read_published(out / "samples.csv")[-1]["note"] == out.name


def test_a_figure_that_nobody_counted_makes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FakeDataset(name="photos")
    assert verify.lacking(data, 4, 9) == "4 of the 6 images that the release has"
    assert verify.lacking(data, 7, 9) == "7 images, 1 more than the release has"
    plus = FakeDataset(name="refcoco_plus_unc", split="val")
    assert verify.lacking(plus, 1500, 10834, refs=3811) == "3811 refs, as RefCOCO (UNC splits) has"
    assert verify.lacking(plus, 1500, 10750, refs=3805) == ""
    plus.split = "testA"
    assert verify.lacking(plus, 750, 5657, refs=1975) == "5657 expressions, as RefCOCO (UNC splits) has"
    facts = verify.manifest("photos")
    assert facts is not None
    splits = {n: split._replace(unchecked=frozenset(split.counts)) for n, split in facts.splits.items()}
    monkeypatch.setattr(verify, "manifest", lambda name: replace(facts, splits=splits))
    assert verify.lacking(data, 4, 9) == ""


@pytest.mark.parametrize(
    ("old", "new"), [(b",", b""), (b",", b",,"), (b"DecAF", b"\xff"), (b"244", b"many"), (b"DecAF", b'"')]
)
def test_damaged_published_rows_are_told_and_stay(tmp_path: Path, old: bytes, new: bytes) -> None:
    store = scored_run(tmp_path, 74.9)
    ((path, _),) = publish([store], tmp_path / "out").items()
    header, rows = path.read_bytes().split(b"\n", 1)
    damaged = header + b"\n" + rows.replace(old, new, 1)
    path.write_bytes(damaged)
    with pytest.raises(StoreError):
        publish([store], tmp_path / "out")
    assert path.read_bytes() == damaged


def test_a_limited_run_is_published_as_such(tmp_path: Path) -> None:
    publish([scored_run(tmp_path, 74.9, limit={"clips": 2})], tmp_path / "out", note="a try")
    published = tmp_path / "out" / "decaf.csv"
    (row,) = read_published(published)
    assert row["note"] == "only limit.clips=2; a try"
    published.write_text(
        published.read_text().replace(f",{row['expected']},", f",{int(row['expected']) + 1},")
    )
    with pytest.raises(ScoreError, match=r"A row of \d+ samples stands there"):
        publish([scored_run(tmp_path, 74.9, limit={"clips": 2})], tmp_path / "out", note="a try")


def test_publish_refuses_numbers_outside_the_tolerance_without_a_note(tmp_path: Path) -> None:
    store = scored_run(tmp_path, 40.0)
    with pytest.raises(ScoreError, match="outside the tolerance"):
        publish([store], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    publish([store], tmp_path / "out", note="another segmenter")
    assert read_published(tmp_path / "out" / "decaf.csv")[0]["note"] == "another segmenter"


def test_what_is_published_here_is_in_tolerance_or_says_why() -> None:
    files = sorted((resource("results") / "reproduced").glob("*.csv"))
    assert files
    for path in files:
        for row in read_published(path):
            assert row["commit"], row
            assert row["digest"], row
            assert int(row["n"]) + int(row["failed"]) + int(row["missing"]) > 0
            assert not unexplained(row), row


def unexplained(row: Mapping[str, str]) -> bool:
    """True where a row is far from the printed number, and doesn't say why."""
    # Experiments may state a wider tolerance, never one beyond RefAM's 3 points.
    off = abs(float(row["value"]) - float(row["published"])) if row["published"] else 0.0
    return off > 3.0 and not row["note"]


@pytest.mark.parametrize(
    ("value", "note", "told"),
    [("74.0", "", False), ("79.0", "", True), ("71.0", "", True), ("71.0", "why", False)],
)
def test_a_row_outside_the_tolerance_is_found(tmp_path: Path, value: str, note: str, told: bool) -> None:
    publish([scored_run(tmp_path, float(value))], tmp_path / "out", note="why")
    (row,) = read_published(tmp_path / "out" / "decaf.csv")
    assert row["published"]
    assert unexplained({**row, "note": note}) is told


def test_who_sees_the_truth_is_never_the_best() -> None:
    made = [Result("p@1", {"J": Estimate(value)}, 9, 9, 0, 0) for value in (0.9, 0.5, 0.4)]
    rows = [tables.Row(n, n, "set", r) for n, r in zip("abc", made, strict=True)]
    (fair,) = tables.tabulate(rows)
    assert [row[1].best for row in fair.rows] == [True, False, False]
    (table,) = tables.tabulate([replace(rows[0], sees_targets=True), *rows[1:]])
    assert [row[1].best for row in table.rows] == [False, True, False]


@pytest.mark.parametrize(
    ("names", "title", "shown", "caption"),
    [
        (("m · a=1 · limit=2", "m · a=2 · limit=2"), "m", ("a=1", "a=2"), "set · limit=2"),
        (("m", "m · a=2"), "method", ("m", "m · a=2"), "set"),
        (("m · raw", "m · raw"), "m", ("raw", "raw"), "set"),
        (("m · a=1",), "method", ("m · a=1",), "set"),
    ],
)
def test_names_in_a_terminal_say_what_differs(
    names: tuple[str, ...], title: str, shown: tuple[str, ...], caption: str
) -> None:
    numbered = (tables.Cell("1.0"),)
    rows = ((tables.Cell("n"), tables.Cell("9")), *((tables.Cell(name), *numbered) for name in names))
    console = Console(width=40, record=True)
    tables.to_terminal(tables.ResultTable("set", ("method", "J"), rows), console)
    lines = [line.strip() for line in console.export_text().splitlines() if line.strip()]
    assert lines[0] == caption
    assert lines[1].removesuffix("J").strip() == title
    assert [line.removesuffix("1.0").strip() for line in lines[4:]] == [*shown]


def test_splits_and_sets_of_one_layout_have_tables_of_their_own(tmp_path: Path) -> None:
    """RefCOCO's val and testA, or a set of one's own in MeViS' layout, are not one column of numbers."""
    data = [("set", "val"), ("set", "testA"), ("mine", "val"), ("set", "val")]
    stores = []
    for number, (name, split) in enumerate(data):
        node = {"_target_": "tests.fakes.FakeDataset", "root": str(tmp_path / "data")}
        method = {"_target_": "tests.fakes.FakeMethod", "side": 3 + number}
        store = fake_run(tmp_path, dataset={**node, "name": name, "split": split}, method=method)
        store.write_result(
            Result("p@1", {"J": Estimate(0.1 + number)}, 9, 9, 0, 0), ScoreTable().write_parquet
        )
        stores.append(store)
    found = {table.caption.split(" · ")[0]: table for table in tables.tables_of(stores)}
    assert {name: len(table.rows) for name, table in found.items()} == {
        "set val": 2,
        "set testA": 1,
        "mine": 1,
    }
    assert [row[1].best for row in found["set val"].rows] == [False, True]
    csv_text = tables.FORMATS["csv"](stores)
    assert "set,testA" in csv_text
    frame = tables.to_frame(stores)
    assert frame["value"].tolist() == [0.1, 1.1, 2.1, 3.1]
    pd.testing.assert_frame_equal(
        frame, pd.read_csv(io.StringIO(csv_text), keep_default_na=False, na_values="nan")
    )
    with pytest.raises(ScoreError, match="different data: set, val, and mine, val"):
        compare(stores[0], stores[2])


def test_rows_scored_against_different_masks_are_told_and_none_is_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth was replaced, and only one of the runs was scored again."""
    stores = [fake_run(tmp_path, method={"_target_": "tests.fakes.FakeMethod", "side": n}) for n in (6, 8)]
    for store in stores:
        work_on(store)
        score_run(store)
    (alike,) = tables.tables_of(stores)
    assert (alike.notes, [row[1].best for row in alike.rows].count(True)) == ((), 1)
    square = FakeDataset.square
    monkeypatch.setattr(FakeDataset, "square", lambda *given: square(*given) | (np.arange(32) == 31))
    score_run(stores[1])
    (mixed,) = tables.tables_of(stores)
    assert "scored against other samples or masks" in mixed.notes[0]
    assert not any(cell.best for row in mixed.rows for cell in row)
    with pytest.raises(ScoreError, match="different masks: the size of the target of 'clip0/0'"):
        compare(*stores)


def test_rows_whose_open_rules_differ_are_told_apart_and_none_is_the_best() -> None:
    made = [
        Result("p@1", {"J": Estimate(value)}, 9, 9, 0, 0, details={"unsettled": {"clock": clock}})
        for value, clock in ((0.9, "clip"), (0.5, "source"), (0.4, "source"))
    ]
    rows = [tables.Row(n, n, "set", r, n) for n, r in zip("abc", made, strict=True)]
    (mixed,) = tables.tabulate(rows)
    assert "each row its own way" in mixed.caption
    assert mixed.notes == ("a: clock=clip", "b: clock=source", "c: clock=source")
    assert not any(cell.best for row in mixed.rows for cell in row)
    (alike,) = tables.tabulate(rows[1:])
    assert alike.caption.endswith("not settled by the publication: clock=source")
    assert (alike.rows[0][1].best, alike.notes) == (True, ())


def test_rows_of_other_samples_have_no_best() -> None:
    """Each is whole by itself: two copies of a set, of which one has more clips."""
    made = [
        Result("p@1", {"J": Estimate(value)}, n, n, 0, 0, details={"truth": [units, "facts"]})
        for value, n, units in ((0.9, 8, "a"), (0.5, 9, "b"), (0.4, 9, "b"))
    ]
    rows = [tables.Row(name, name, "set", r) for name, r in zip("abc", made, strict=True)]
    (mixed,) = tables.tabulate(rows)
    assert "other samples" in mixed.notes[0]
    assert not any(cell.best for row in mixed.rows for cell in row)
    (alike,) = tables.tabulate([replace(rows[0], part="limit.clips=8"), *rows[1:]])
    assert ([row[1].best for row in alike.rows], alike.notes) == ([False, True, False], ())


def test_the_least_decay_is_the_best() -> None:
    made = [Result("p@1", {"J": Estimate(v), "J-Decay": Estimate(v / 2)}, 9, 9, 0, 0) for v in (0.4, 0.6)]
    (table,) = tables.tabulate([tables.Row(n, n, "set", r) for n, r in zip("ab", made, strict=True)])
    assert [(row[1].best, row[2].best) for row in table.rows] == [(False, True), (True, False)]


def test_a_set_is_printed_as_papers_call_it() -> None:
    assert [printed_name(name) for name in ("refcoco_unc", "mevis", "nowhere")] == [
        "RefCOCO", "MeViS", "nowhere",
    ]  # fmt: skip
