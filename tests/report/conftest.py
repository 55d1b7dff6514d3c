from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refseg_bench.cli import main
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.runs import score_run
from tests.fakes import fake_run


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; the tests that need one are skipped aloud where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path is not None), None)
    if found is None:
        pytest.skip("NO BROWSER: the pages are not tested. apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: the pages are not tested")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


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
