"""Attention methods, agents and phrases in one table, with what a sample of each costs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.report.tables import _cost
from refseg_bench.run.store import RunStore, _took, runs_in
from tests.fakes import fake_run

TITLES = ["s", "calls", "replayed", "images", "tokens in", "tokens out", "reply s"]


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["report", *words]) == 0
    return capsys.readouterr().out


def by_method(folder: Path) -> dict[str, RunStore]:
    return {store.info().choices["method"]: store for store in runs_in(folder / "runs")}


@pytest.mark.slow
def test_one_table_holds_scores_and_costs(
    agent_runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(agent_runs)
    for form, sign, none in (("md", "|", "–"), ("latex", "&", "--")):
        lines = [[cell.strip(" \\") for cell in line.strip("|").split(sign)]
                 for line in told(capsys, "runs", "--format", form).splitlines()]  # fmt: skip
        (head,) = [cells for cells in lines if "replayed" in cells]
        assert head[-7:] == TITLES
        after = lines[lines.index(head) :]
        decaf, box = (next(cells for cells in after if name in cells[0]) for name in ("decaf", "box"))
        assert float(decaf[-7]) > 0
        assert decaf[-6:] == [none] * 6
        assert min(map(float, box[-7:])) >= 0
        assert float(box[-6]) > 1, "one of two was asked three times"
    terminal = told(capsys, "runs")
    assert "reply s" in terminal
    assert "per sample: s = seconds" in terminal


@pytest.mark.slow
def test_costs_are_the_means_of_what_each_sample_tells(
    agent_runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(agent_runs)
    stores = by_method(agent_runs)
    rows = {row["method"]: row for row in json.loads(told(capsys, "runs", "--format", "json"))}
    assert rows.keys() == stores.keys()
    for method, store in stores.items():
        answers = [store.read(line) for line in store.index().values()]
        cost = rows[method]["cost"]
        seconds = [p.seconds["total"] for p in answers if "total" in p.seconds]
        assert cost["seconds"] == pytest.approx(sum(seconds) / len(seconds), abs=1e-5)
        asked = [p.details["cost"] for p in answers if "cost" in p.details]
        assert bool(asked) == (method in ("tiny_box", "tiny_agent"))
        for name in ("calls", "replayed", "images", "prompt_tokens", "answer_tokens", "seconds"):
            want = sum(one[name] for one in asked) / len(asked) if asked else None
            assert cost["reply_seconds" if name == "seconds" else name] == (want and pytest.approx(want))
    lines = list(csv.DictReader(io.StringIO(told(capsys, "runs", "--format", "csv"))))
    for line in lines:
        known = rows[line["method"]]["cost"]["prompt_tokens"]
        assert line["cost_prompt_tokens"] == ("" if known is None else repr(known))


@pytest.mark.slow
def test_without_a_chat_model_no_table_tells_costs(
    agent_runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(agent_runs)
    stores = by_method(agent_runs)
    alone = [str(stores[name].root) for name in ("decaf_tiny", "tiny_phrase")]
    for form in ("term", "md", "latex", "csv", "json"):
        text = told(capsys, *alone, "--format", form)
        assert "reply s" not in text
        assert "cost" not in text


@pytest.mark.parametrize(
    "end",
    [
        b'"seconds": {"total": NaN}, "peak_mb": 1.0}',
        b'"seconds": {"total": 1e999}, "peak_mb": 1.0}',
        b'"seconds": {"total": "1"}, "peak_mb": 1.0}',
        b'"seconds": {"total": -1}, "peak_mb": 1.0}',
        b'"seconds": {"total": true}, "peak_mb": 1.0}',
        b'"cost": {"calls": -3, "images": [1]}}, "seconds": {}, "peak_mb": 1.0}',
        b'"cost": {"seconds": 4}}, "seconds": {}, "peak_mb": 1.0}',
        b"",
    ],
)
def test_what_is_no_cost_is_told_by_nobody(end: bytes) -> None:
    assert _took(b"x" * 50 + end) == {}


def test_a_cost_from_elsewhere_is_a_number_or_nothing(tmp_path: Path) -> None:
    assert _cost({"cost": '{"calls": 2, "images": "x", "seconds": -1, "other": 3}'}) == {"calls": 2.0}
    for text in ("[1]", "{", "7", "1" * 5000, '{"calls": ' + "9" * 400 + "}"):
        assert _cost({"cost": text}) == {}
    assert fake_run(tmp_path).cost() == {}
