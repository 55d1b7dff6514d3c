"""Numbers as they are shown: unit, order, precision, and what is called the best."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refseg_bench.cli import main
from refseg_bench.config.components import names, open_protocol
from refseg_bench.report.compare import compare, shared_protocol
from refseg_bench.report.html import write_report
from refseg_bench.report.tables import Row, in_percent, lines_of, tables_of, tabulate
from refseg_bench.run.store import RunStore, runs_in
from refseg_bench.scoring import results
from refseg_bench.scoring.table import ScoreTable
from tests.report.test_html import part
from tests.scoring.test_rules import Hand, gres_rows


class _Everything(defaultdict[str, np.ndarray]):
    """Sums of all terms that a protocol may ask for."""

    def __contains__(self, name: object) -> bool:
        return True


@pytest.mark.parametrize("name", names("protocol"))
def test_the_headline_leads_wherever_metrics_are_told(name: str) -> None:
    """Tables, pages, sweeps and gates take the first one, each from another place."""
    protocol = open_protocol(name)
    assert tuple(protocol.combine(_Everything(lambda: np.ones(1)))) == protocol.metrics


def test_a_fraction_among_percents_is_percent_in_print() -> None:
    """GRES' tool prints accuracies as fractions: 0.5 under the word percent would be a hundredth of it."""
    scored = Hand(gres_rows()).scored("grefcoco-gres")
    assert scored.result.metrics["N-acc"].value == 0.5
    row = Row("run", "method", "set", scored.result)
    (table,) = tabulate([row])
    shown = dict(zip(table.header, (cell.text for cell in table.rows[0]), strict=True))
    assert (shown["N-acc"], shown["T-acc"], shown["Pr@0.7"]) == ("50.0", "75.0", "50.0")
    assert [line["value"] * 100 / line["scale"] for line in lines_of([row]) if line["metric"] == "N-acc"] == [
        50
    ]
    before = replace(scored.result, details={**scored.result.details, "fractions": None})
    for metric in scored.result.metrics:
        assert in_percent(before, metric).value == in_percent(scored.result, metric).value
    assert any(line.split()[:2] == ["N-acc", "50.00"] for line in results.lines_of(scored, set()))
    assert "percent (N-acc, T-acc, IoU: fractions), none" in results.explained(scored, scored.table.units[0])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunStore]:
    """Two runs on images that were scored by GRES' rules."""
    folder = tmp_path_factory.mktemp("photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command = ["run", "-m", "method=full_frame,oracle", "dataset=photos", "limit.clips=3", "score.jobs=1"]
        assert (
            main([*command, "protocols=['grefcoco-gres:flag=empty']", "score.bootstrap=50", "--no-html"]) == 0
        )
    return {store.info().choices["method"]: store for store in runs_in(folder / "runs")}


def test_a_fraction_of_a_unit_is_percent_in_print(
    photos: dict[str, RunStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = photos["full_frame"], photos["oracle"]
    found = compare(before, after)
    assert found.headline == "IoU"
    assert found.percents["IoU"] == found.percents["T-acc"] == 100
    assert found.percents["gIoU"] == 1
    capsys.readouterr()
    assert main(["compare", str(before.root), str(after.root), "--most", "1"]) == 0
    best = found.gained[0]
    assert f"{best.first * 100:.1f}  100.0" in capsys.readouterr().out
    write_report([before, after], tmp_path / "pages")
    (scores,) = part(tmp_path / "pages", "index-0-0")["score"]
    assert set(scores[1]) == {100}


def test_of_two_versions_of_a_protocol_the_newer_leads(photos: dict[str, RunStore], tmp_path: Path) -> None:
    """Results of an older version stay in a run folder beside those it was scored to since."""
    stores = [RunStore(Path(shutil.copytree(store.root, tmp_path / name))) for name, store in photos.items()]
    (result,) = stores[0].results().values()
    for store, versions in zip(stores, ([1, 2, 10], [1, 10]), strict=True):
        for version in versions:
            old = replace(result, protocol=f"refcoco-cris@{version}")
            store.write_result(old, ScoreTable().write_parquet)
    assert [name for name in stores[0].results() if "cris" in name] == [
        "refcoco-cris@10", "refcoco-cris@2", "refcoco-cris@1",
    ]  # fmt: skip
    for store in stores:
        store.outdated.add("grefcoco-gres@1:flag=empty")
    first = next(table for table in tables_of(stores) if " by type" not in table.caption)
    assert "refcoco-cris@10" in first.caption
    assert shared_protocol(stores, "refcoco-cris") == "refcoco-cris@10"
