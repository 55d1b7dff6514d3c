from __future__ import annotations

from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.runs import score_run
from tests.fakes import fake_run


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where `refseg run` made three runs on two clips of the embedded data set, and their report."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = ["limit.clips=2", "limit.expressions=3", "score.bootstrap=50", "score.jobs=1"]
        assert main(["run", "-m", "method=empty,full_frame,lexical", *settings]) == 0
    return folder


@pytest.fixture(scope="session")
def hostile_runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunStore]:
    """Two scored runs of the hostile data set; one sample of the second failed."""
    folder = tmp_path_factory.mktemp("hostile")
    dataset = {"_target_": "tests.report.worlds.HostileDataset", "root": str(folder / "data")}
    stores = []
    for side, fail_on in ((8, []), (12, ["clip1/1"])):
        method = {"_target_": "tests.fakes.FakeMethod", "side": side, "fail_on": fail_on}
        score = {"partial": True, "bootstrap": 50, "jobs": 1}
        store = fake_run(folder, dataset=dataset, method=method, keep_maps=True, score=score)
        work_on(store)
        score_run(store)
        stores.append(store)
    return stores
