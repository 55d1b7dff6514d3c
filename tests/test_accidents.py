"""Killed or without a disk at every step: the same command goes on, nothing is lost, nothing is left over."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.config.components import open_dataset
from tests.datasets.conftest import video
from tests.fakes import FakeDataset
from tests.faults import FAILING, Fault, Outcome, command
from tests.launch.runs import overrides
from tools.writers import write_meta_expressions_set

pytestmark = pytest.mark.slow

#: Words of the hint, or of what goes on without the disk.
TOLD = "disk is full|quota is used up|[Ii]nput/output error|No space left|[Qq]uota exceeded"

RUN = ["run", *overrides(Path(), clips=2), "method=fake", "keep_maps=true", "dataset.n_expressions=2"]
#: Name → what must have happened before, and the command.
COMMANDS: dict[str, tuple[list[list[str]], list[str]]] = {
    "run": ([], [*RUN, "--no-html"]),
    "run and pages": ([], RUN),
    "score": ([[*RUN, "--no-score"]], ["score", "runs", "--json", "out.json", "-j", "1"]),
    "pages": ([[*RUN, "--no-html"]], ["report", "runs", "--html"]),
    "pages again": ([RUN], ["report", "runs", "--html"]),
    "table": ([[*RUN, "--no-html"]], ["report", "runs", "--format", "md", "-o", "out.md"]),
    "coco": ([[*RUN, "--no-html"]], ["report", "runs", "--coco", "out.json"]),
    "compare": (
        [[*RUN, "--no-html"], [*RUN, "--no-html", "method.side=4"]],
        ["compare", "RUN", "OTHER", "--html"],
    ),
    "picture": ([], ["data", "show", "shapes", "CLIP", "--out", "pictures/x.png"]),
    "prepare": ([], ["data", "prepare", "mevis", "--from", "set.zip", "--to", "set"]),
    "submission": ([[*RUN, "--no-html", "dataset.name=mevis"]], ["submission", "RUN", "-o", "out.zip"]),
    "demo": (
        [],
        ["demo", "data/clip0", "the square", "method=fake", *overrides(Path(), clips=2)[:1], "-o", "demo"],
    ),
}
#: Those that are also looked at in the middle of their steps.
SOME = ("run and pages", "score", "pages", "prepare")
#: Those of which every step is tried; the steps of the longest are those of others.
EVERY = [name for name in COMMANDS if name != "run and pages"]


class World:
    """A folder in which a command is tried again and again from the same state."""

    def __init__(self, root: Path, name: str) -> None:
        before, self.words = COMMANDS[name]
        self.here, self.pristine = root / "here", root / "pristine"
        self.pristine.mkdir(parents=True)
        FakeDataset(root=self.pristine / "data", n_clips=2).clips()
        if name == "prepare":
            write_meta_expressions_set(root / "set", "valid_u", [video()])
            shutil.make_archive(str(self.pristine / "set"), "zip", root / "set")
        self.fresh()
        for words in before:
            done = command(*words, below=self.here)
            assert done.code == 0, done.told
        runs = [str(p.relative_to(self.here)) for p in sorted(self.here.glob("runs/*"))]
        named = dict(zip(("RUN", "OTHER"), runs, strict=False)) | {
            "CLIP": open_dataset("shapes").clips()[0].id
        }
        self.words = [named.get(word, word) for word in self.words]
        shutil.rmtree(self.pristine)
        shutil.copytree(self.here, self.pristine, symlinks=True)
        self.well = self.try_it()
        assert self.well.code == 0, self.well.told
        self.made = self.result()

    def fresh(self) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.pristine, self.here, symlinks=True)

    def try_it(self, fault: Fault | None = None) -> Outcome:
        return command(*self.words, below=self.here, fault=fault)

    def result(self) -> dict[str, object]:
        """What must come out, whatever happened before: scores, predictions and pages without their times."""
        out: dict[str, object] = {}
        for path in sorted(self.here.rglob("*")):
            name = str(path.relative_to(self.here))
            # Named by process: who worked on a run, and when.
            if path.is_dir() or re.search(r"/(jobs|env|launches|log)/|run\.json$", name):
                continue
            if "/predictions/" in name:
                lines = out.setdefault(name.partition("/predictions/")[0], {})
                assert isinstance(lines, dict)
                for line in path.read_text().splitlines():
                    # A torn line is no line.
                    if line.endswith("}"):
                        record = json.loads(line)
                        assert record["sample"] not in lines
                        lines[record["sample"]] = record.get("rles")
            elif name.endswith("result.json"):
                record = json.loads(path.read_text())
                out[name] = [
                    record[key] for key in ("protocol", "metrics", "n", "expected", "failed", "missing")
                ]
            elif name.endswith(("made_from.json", "data.json")):
                # They tell the times of files.
                out[name] = sorted(json.loads(path.read_text()))
            elif name.endswith((".js", ".csv")):
                out[name] = "" if "/data/" in name else path.read_text().count("\n")
            else:
                out[name] = path.read_bytes()
        return out

    def every(self, *kinds: str) -> list[int]:
        """The numbers of the steps of these kinds, of equal ones the first and the last."""
        steps = list(enumerate(zip(self.well.places, self.well.steps, strict=True), start=1))
        found = [(place, at) for at, (place, kind) in steps if kind in kinds]
        return sorted({*dict(found).values(), *dict(reversed(found)).values()})

    def litter(self) -> list[str]:
        return [str(p.relative_to(self.here)) for p in self.here.rglob(".*")]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """A world by its command's name; what commands import is imported here, once for all forks."""
    folder = tmp_path_factory.mktemp("warm")
    FakeDataset(root=folder / "data", n_clips=2).clips()
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        assert main(RUN) == 0
        assert main(["report", "runs", "--html"]) == 0
        assert main(["data", "list"]) == 0
    return functools.cache(lambda name: World(tmp_path_factory.mktemp("world"), name))


def killed(there: World, steps: Iterable[int]) -> None:
    for at in steps:
        there.fresh()
        assert there.try_it(Fault(at)).code == -9
        again = there.try_it()
        place = (at, there.well.steps[at - 1], again.told)
        assert again.code == 0, place
        assert "Traceback" not in again.told, place
        assert there.litter() == [], place
        assert there.result() == there.made, place


def failed(there: World, steps: Iterable[int], name: str) -> None:
    for at in steps:
        there.fresh()
        hit = there.try_it(Fault(at, getattr(errno, name)))
        place = (at, there.well.steps[at - 1], hit.told)
        # The last steps of a command (renaming, removing) need no room.
        enough = not set(there.well.steps[at - 1 :]) & FAILING
        assert hit.code in (0, 1, 2), place
        assert "Traceback" not in hit.told, place
        assert enough or re.search(TOLD, hit.told.replace("\n", " ")), place
        again = there.try_it()
        assert again.code == 0, (*place, again.told)
        assert there.litter() == [], place
        assert there.result() == there.made, place


@pytest.mark.parametrize("name", SOME)
def test_killed_anywhere(name: str, worlds: Callable[[str], World]) -> None:
    there = worlds(name)
    length = len(there.well.steps)
    killed(there, (length // 4, length // 2, length * 3 // 4, length - 1))


@pytest.mark.parametrize("name", SOME)
def test_a_full_disk_anywhere(name: str, worlds: Callable[[str], World]) -> None:
    there = worlds(name)
    failed(there, (1, len(there.well.steps) // 2), "ENOSPC")


@pytest.mark.parametrize("name", EVERY)
def test_killed_everywhere(name: str, worlds: Callable[[str], World]) -> None:
    there = worlds(name)
    killed(there, there.every("write", "rename", "link", "remove"))


@pytest.mark.parametrize("name", EVERY)
def test_a_full_disk_everywhere(name: str, worlds: Callable[[str], World]) -> None:
    there = worlds(name)
    failed(there, there.every("write", "sync"), "ENOSPC")


@pytest.mark.parametrize("number", ["EDQUOT", "EIO"])
@pytest.mark.parametrize("name", EVERY)
def test_no_quota_and_a_broken_disk(name: str, number: str, worlds: Callable[[str], World]) -> None:
    there = worlds(name)
    failed(there, there.every("create", "mkdir", "sync")[::5], number)
