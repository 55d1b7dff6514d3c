"""The whole pipeline against its own published numbers: the two default runs, from weights to table."""

from __future__ import annotations

from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.env import resource
from refseg_bench.run.store import RunStore, runs_in
from tests.quick import needs
from tools.publish import read_published

pytestmark = needs("torch", "transformers", "diffusers")

GOLDEN = resource("results") / "reproduced" / "samples.csv"
#: Points of 100. The same machine gives the same digits; sums in another order (another CPU, another
#: torch) can move a peak to a neighbouring cell. Without a model nothing should move but rounding.
WITH_MODEL, WITHOUT = 0.5, 0.05
COMMANDS = {
    "decaf": (
        [],
        ["decaf_tiny", "decaf_tiny_raw", "refam_tiny", "lexical", "oracle_point", "oracle"],
    ),
    "refam": (["method=refam_tiny", "baselines=[raw]"], ["refam_tiny", "refam_tiny_raw"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_default_runs_print_the_published_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, expected = COMMANDS[name]
    assert main(["run", *command, "--no-html"]) == 0
    stores = {store.root.name.partition("-")[0]: store for store in runs_in(Path("runs"))}
    assert sorted(stores) == sorted(expected)
    table = capsys.readouterr().out
    for run, store in stores.items():
        assert run.replace("_raw", " · raw") in table
        held(store, WITHOUT if run == "oracle" else WITH_MODEL)


def held(store: RunStore, tolerance: float) -> None:
    """Every metric of a run equals the published one, and every published one is there."""
    digest = store.info().digest
    rows = {
        (row["protocol"], row["metric"]): row for row in read_published(GOLDEN) if row["digest"] == digest
    }
    found = {
        (result.protocol, metric): (result, estimate.value * 100 / result.scale)
        for result in store.results().values()
        for metric, estimate in result.metrics.items()
    }
    assert rows.keys() == found.keys(), f"{store.root.name} is not published: see results/README.md"
    for key, (result, value) in found.items():
        row = rows[key]
        assert (str(result.n), str(result.failed), str(result.missing)) == (
            row["n"], row["failed"], row["missing"],
        )  # fmt: skip
        assert value == pytest.approx(float(row["value"]), abs=tolerance), (store.root.name, *key)


def test_the_tolerance_tells_a_method_from_its_raw_attention() -> None:
    values = {
        (row["method"], bool(row["setting"])): float(row["value"])
        for row in read_published(GOLDEN)
        if row["dataset"] == "shapes" and row["metric"] == "J&F"
    }
    for method in ("decaf_tiny", "refam_tiny"):
        assert abs(values[method, False] - values[method, True]) > WITH_MODEL
