"""A run folder knows what its samples were predicted on."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_bench.config import Composed, digest
from refseg_bench.errors import StoreError
from refseg_bench.inputs import Present, stale
from refseg_bench.launch import Launched, launch
from refseg_bench.run import dataset_of, frozen, plan, work_on
from refseg_bench.store import RunStore
from refseg_bench.types import Clip, Expression
from tests.fakes import FakeDataset, fake_run, fake_values


@dataclass
class Written(FakeDataset):
    """The fake data set with words, names and a size that lie in a file."""

    def facts(self) -> dict[str, str]:
        path = self.root / "facts.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def clips(self) -> list[Clip]:
        facts = self.facts()
        names = facts.get("names", "00000 00001").split()
        size = tuple(int(n) for n in facts.get("size", "24 32").split())
        return [Clip(c.id, (c.frame_paths * 2)[: len(names)], tuple(names), size) for c in super().clips()]

    def expressions(self, clip: Clip) -> list[Expression]:
        text = self.facts().get("text") if clip.id == "clip1" else None
        return [Expression(e.id, text or e.text) for e in super().expressions(clip)]


WRITTEN = {"_target_": "tests.test_inputs.Written"}


def a_run(tmp_path: Path, root: str = "data") -> tuple[Launched, list[str]]:
    values = fake_values(tmp_path, dataset={**WRITTEN, "root": str(tmp_path / root)})
    said: list[str] = []
    (done,) = launch([Composed(values, "fake", digest(values), (), {})], said.append)
    return done, said


def change(data: Path, **facts: str) -> None:
    (data / "facts.json").write_text(json.dumps(facts))


def repaint(path: Path, **save: object) -> None:
    """Other pixels in a file of the same length and the same time of change."""
    before = path.stat()
    image = np.asarray(Image.open(path)).copy()
    image[0, 0] += 1
    Image.fromarray(image).save(path)
    path.write_bytes(path.read_bytes()[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "text": (
        lambda data: change(data, text="another"),
        3,
        "clip1/0: text was 'the square number 0', is 'another'",
    ),
    "fewer": (lambda data: change(data, names="00000"), 12, "names were 2 from '00000' to '00001', are 1"),
    "renamed": (lambda data: change(data, names="00000 00002"), 12, "are 2 from '00000' to '00002'"),
    "pixels": (lambda data: repaint(data / "clip2/00001.png"), 3, "clip2/0: pixels: "),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_samples_whose_data_changed_are_predicted_again(tmp_path: Path, kind: str) -> None:
    made, expected, words = CHANGES[kind]
    first, _ = a_run(tmp_path)
    assert first.tally is not None
    assert first.tally.done == 12
    made(tmp_path / "data")
    again, said = a_run(tmp_path)
    assert again.tally is not None
    assert (again.tally.done, again.tally.elsewhere) == (expected, 0)
    assert f"{expected} samples were predicted on other data" in "\n".join(said)
    assert words in "\n".join(said)
    store = RunStore(again.store.root)
    assert sum(line.turn == 1 for line in store.index().values()) == expected
    assert not stale(store, plan(dataset_of(frozen(store))), Present())
    _, said = a_run(tmp_path)
    assert "complete: nothing left to predict" in said[-1]


def test_the_same_data_elsewhere_are_the_same(tmp_path: Path) -> None:
    a_run(tmp_path)
    shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copyfile)
    for path in (tmp_path / "data").rglob("*.png"):
        os.utime(path)
    for root in ("data", "copy"):
        _, said = a_run(tmp_path, root)
        assert len(said) == 1
        assert "complete: nothing left to predict" in said[0]
    repaint(tmp_path / "copy/clip0/00000.png")
    again, _ = a_run(tmp_path, "copy")
    assert again.tally is not None
    assert again.tally.done == 3


def test_frames_that_are_not_here_and_records_of_older_versions_are_taken_to_be_the_same(
    tmp_path: Path,
) -> None:
    store = a_run(tmp_path)[0].store
    (file,) = (store.root / "predictions").glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records[:5]:
        del record["turn"], record["inputs"], record["text"], record["frames"]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    _, said = a_run(tmp_path)
    assert "5 samples don't tell what they were predicted on" in said[0]
    assert "complete: nothing left to predict" in said[1]
    work = plan(dataset_of(frozen(store)))
    shutil.rmtree(tmp_path / "data/clip3")
    assert not stale(RunStore(store.root), work, Present())


def test_a_failing_fsync_is_told_and_its_samples_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fake_run(tmp_path)
    works, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        if os.readlink(f"/proc/self/fd/{handle}").endswith(".jsonl"):
            calls += 1
            if calls > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
        works(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="The disk is full"):
        work_on(store)
    # The first clip was made durable before.
    assert len(RunStore(store.root).done()) == 3
    monkeypatch.setattr(os, "fsync", works)
    assert work_on(store).done == 9
