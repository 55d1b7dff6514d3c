"""Shared fixtures: one thread everywhere, hypothesis without a clock."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("REFSEG_SEARCHPATH", "pkg://tests")
# Or every process that a test starts would compile torch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Jobs in the background of a shell ignore Ctrl-C, which tests send to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["COLUMNS"] = "80"  # or tables would be as wide as the terminal that pytest was started in

# Most of the heap are models' libraries, which every full round of the collector would walk through.
gc.set_threshold(100_000, 50, 100)

# Whether the disk has a file, or only the machine, shows when the power goes: no test can see it.
os.fsync = lambda handle: None

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=60,
)
settings.load_profile("repeatable")


#: Files that take minutes, the longest first: what the others take fills up the processes' time.
LONGEST = ["test_golden.py", "test_slurm.py", "test_training.py", "test_accidents.py", "test_docs.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, or one process would end minutes after the others with the longest."""

    def rank(item: pytest.Item) -> tuple[bool, int]:
        name = item.path.name
        quick = item.get_closest_marker("slow") is None
        return quick, LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def _own_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test puts on the search path is not there in the next."""
    monkeypatch.setenv("REFSEG_SEARCHPATH", "pkg://tests")


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    """Hydra takes a tenth of a second, and tests run the same few configs: a process asks it once for each.

    Search paths below a test's own folder are left out, for there YAMLs change.
    """
    import yaml
    from omegaconf import OmegaConf

    from refseg_bench.config import components, compose, schema, searchpath

    made, listed, kept, members = compose._hydra, components._files, {}, {}
    here = Path(__file__).parents[1]

    def files(group: str) -> dict[str, str]:
        folders = tuple(searchpath.folders())
        if not all(folder.is_relative_to(here) for folder in folders):
            return listed(group)
        if (group, folders) not in members:
            members[group, folders] = listed(group)
        return dict(members[group, folders])

    @functools.wraps(made)
    def once(overrides: Sequence[str]) -> Any:
        folders = searchpath.folders()
        if not all(folder.is_relative_to(here) for folder in folders):
            return made(overrides)
        key = tuple(overrides), tuple(folders)
        if key not in kept:
            with pytest.MonkeyPatch.context() as quicker:
                quicker.setattr(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
                kept[key] = made(overrides)
        node, choices = kept[key]
        schema.allow(*searchpath.targets(OmegaConf.to_container(node)))
        return node, choices

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_hydra", once)
        patch.setattr(components, "_files", files)
        yield


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shared_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts share forward passes on the CPU, too, as they do on an accelerator."""
    for module in ("mllm", "dit"):
        monkeypatch.setattr(f"refseg_bench.backbones.{module}.shared_pass", lambda device, size: size)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; the tests that need one are skipped aloud where there is none.

    It keeps an event loop at work: in its process no chat model can be asked before it has ended.
    """
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
