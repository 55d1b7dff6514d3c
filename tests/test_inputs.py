"""A run folder knows what its samples were predicted on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from refseg_bench import cli
from refseg_bench.backbones.weights import Weights
from refseg_bench.config.compose import Composed, digest
from refseg_bench.config.schema import option
from refseg_bench.datasets.files import read_json
from refseg_bench.errors import DataError, ScoreError, StoreError
from refseg_bench.files.store_io import checksum, writing
from refseg_bench.report import tables
from refseg_bench.report.exports import to_coco
from refseg_bench.report.html import write_report
from refseg_bench.report.tables import leave_out_outdated
from refseg_bench.run import inputs
from refseg_bench.run.build import dataset_of, frozen
from refseg_bench.run.inputs import Present, StaleError, keep_record, recorded, stale
from refseg_bench.run.launch import freeze, launch
from refseg_bench.run.loop import work_on
from refseg_bench.run.shards import Planned, Tally, plan, planned, tally_of
from refseg_bench.run.store import RunStore, runs_in
from refseg_bench.scoring.runs import score_runs, score_store
from refseg_bench.scoring.score import Scored
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack, Target
from tests.datasets.conftest import video
from tests.fakes import FakeDataset, FakeMethod, fake_run, fake_values, set_back
from tools.writers import write_meta_expressions_set, write_reasonseg_image


@dataclass
class Written(FakeDataset):
    """The fake data set with words, names and a size that lie in a file."""

    def facts(self) -> dict[str, str]:
        path = self.root / "facts.json"
        return read_json(path) if path.is_file() else {}

    def clips(self) -> list[Clip]:
        facts = self.facts()
        names = facts.get("names", "00000 00001").split()
        size = tuple(int(n) for n in facts.get("size", "24 32").split())
        return [
            Clip(c.id, (c.frame_paths * 2)[: len(names)], tuple(names), size)
            for c in super().clips()[: int(facts.get("clips", "4"))]
        ]

    def expressions(self, clip: Clip) -> list[Expression]:
        text = self.facts().get("text") if clip.id == "clip1" else None
        return [Expression(e.id, text or e.text) for e in super().expressions(clip)]

    def target(self, clip: Clip, expression: Expression) -> Target:
        kind = self.facts().get("truth")
        size = (12, 16) if kind == "small" else clip.size
        masks = [np.ones(size, bool)] * len(clip)
        if kind == "other":
            masks[0] = ~masks[0]
        return Target(size, len(clip), (MaskTrack.from_masks(masks, size),), ("1",))


@dataclass
class Hidden(Written):
    """The same with its truth on a server."""

    def target(self, clip: Clip, expression: Expression) -> None:  # type: ignore[override]
        return None


WRITTEN = {"_target_": "tests.test_inputs.Written"}


def a_run(tmp_path: Path, root: str = "data") -> tuple[Planned, list[str]]:
    values = fake_values(tmp_path, dataset={**WRITTEN, "root": str(tmp_path / root)})
    (tmp_path / root).mkdir(exist_ok=True)
    if not (tmp_path / root / "facts.json").exists():
        change(tmp_path / root)
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
    set_back(path, before)


CHANGES: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "text": (
        lambda data: change(data, text="another"),
        3,
        "clip1/0: text was 'the square number 0', is 'another'",
    ),
    "fewer": (lambda data: change(data, names="00000"), 12, "names were 2 from '00000' to '00001', are 1"),
    "renamed": (lambda data: change(data, names="00000 00002"), 12, "are 2 from '00000' to '00002'"),
    "pixels": (lambda data: repaint(data / "clip2/00001.png"), 3, "clip2/0 and 2 more: pixels: "),
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
    dataset = dataset_of(frozen(store))
    assert not stale(store, plan(dataset), Present(dataset))
    _, said = a_run(tmp_path)
    assert "complete: nothing left to predict" in said[-1]


@dataclass
class Weighed(FakeMethod):
    """Reads weights."""

    path: Path = option(Path(), transient=True)

    def weights(self) -> tuple[Weights, ...]:
        return (Weights(str(self.path)),)


def a_weighed_run(tmp_path: Path, content: str | None, method: str = "Weighed") -> tuple[Planned, list[str]]:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    if content is not None:
        save_file({content: np.zeros(1)}, model / "model.safetensors")
    values = fake_values(tmp_path, method={"_target_": f"tests.test_inputs.{method}", "path": str(model)})
    said: list[str] = []
    (done,) = launch([Composed(values, "fake", digest(values), (), {})], said.append)
    return done, said


def test_samples_of_replaced_weights_are_predicted_again(tmp_path: Path) -> None:
    first, _ = a_weighed_run(tmp_path, "former")
    assert "complete" in a_weighed_run(tmp_path, None)[1][-1]
    again, said = a_weighed_run(tmp_path, "latter")
    assert again.store.root == first.store.root
    assert again.tally == Tally(done=12)
    assert "12 samples were predicted on other data, weights or code and are predicted again" in said[0]
    assert said[0].count("weights or code were ") == 1
    assert "clip0/0 and 11 more: weights or code were " in said[0]
    assert "complete" in a_weighed_run(tmp_path, None)[1][-1]
    # Put back: the former samples count no more, for they aren't of the last turn.
    assert a_weighed_run(tmp_path, "former")[0].tally == Tally(done=12)
    (record, *_) = again.store.environments().values()
    assert len(record["method"]["weights"][0]["sha256"]) == 64


@dataclass
class Overtaken(Weighed):
    """Somebody puts other weights in the place of those it has loaded."""

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        save_file({f"of {clip.id}": np.zeros(1)}, self.path / "new")
        os.replace(self.path / "new", self.path / "model.safetensors")
        return super().predict(clip, expressions)


def test_a_run_is_known_by_the_weights_it_began_with(tmp_path: Path) -> None:
    a_weighed_run(tmp_path, "former", "Overtaken")
    ended, said = a_weighed_run(tmp_path, "former")
    assert (ended.tally, "complete" in said[-1]) == (Tally(done=12), False), "another method, another run"
    (run,) = {store.root for store in runs_in(ended.store.root.parent)} - {ended.store.root}
    (theirs,), (ours,) = (RunStore(one).environments().values() for one in (run, ended.store.root))
    assert theirs["method"]["weights"] == ours["method"]["weights"]
    assert RunStore(run).weights() == ended.store.weights()


def test_a_run_without_a_protocol_is_told(tmp_path: Path) -> None:
    values = fake_values(tmp_path)
    values["dataset"]["protocols"] = []
    (run,) = launch([Composed(values, "fake", digest(values), (), {})])
    with pytest.raises(ScoreError, match="No protocol is chosen, and 'fake' names none"):
        score_store(run.store)


def test_two_models_are_never_one_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    former, _ = a_weighed_run(tmp_path, "former")
    (first,) = (former.store.root / "predictions").glob("*.jsonl")
    a_weighed_run(tmp_path, "latter")
    (second,) = {*first.parent.glob("*.jsonl")} - {first}
    # Killed after its first clip.
    second.write_bytes(b"".join(second.read_bytes().splitlines(keepends=True)[:3]))
    os.rename(second, second.with_name("9" + second.name))  # both began within one second
    store = RunStore(former.store.root)
    ((_, refusal),) = score_store(store)
    assert isinstance(refusal, StaleError)
    assert "9 samples were predicted on other data, weights or code" in str(refusal)
    assert "clip1/0 and 8 more: weights or code were " in str(refusal)
    assert cli.main(["status", str(store.root)]) == 0
    assert "9 samples were predicted on other data, weights or code and are left" in capsys.readouterr().out
    ((_, scored),) = score_store(store, partial=True)
    assert isinstance(scored, Scored)
    assert (scored.result.n, scored.result.failed) == (3, 9)


def test_samples_of_edited_code_are_predicted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("REFSEG_SEARCHPATH", "pkg://theirs,pkg://tests")
    mine = (
        "import dataclasses\nfrom theirs import helper\nfrom .helper import Fake\n"
        "@dataclasses.dataclass\nclass Mine(Fake):\n    "
    )
    helper = "from tests.fakes import FakeMethod as Fake\ntry:\n    from . import torn\n"
    helper += "except SyntaxError:\n    pass\n"
    texts = {"__init__": "", "mine": f"{mine}pass", "helper": helper, "other": "", "torn": "print 'old'\n"}

    def run(**changed: str) -> tuple[int, list[str]]:
        for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
            del sys.modules[name]
        for name, text in {**texts, **changed}.items():
            (folder / f"{name}.py").write_text(text)
        values = fake_values(tmp_path, method={"_target_": "theirs.mine.Mine"})
        said: list[str] = []
        (done,) = launch([Composed(values, "fake", digest(values), (), {})], said.append)
        return done.tally.done, said

    assert run()[0] == 12
    done, said = run(mine=f'{mine}"""Words."""\n    pass  # and more', other="x = 1\n")
    assert (done, "complete" in said[-1]) == (0, True)
    done, said = run(helper=f"{helper}x = 1")
    assert (done, "12 samples were predicted on other data, weights or code" in said[0]) == (12, True)
    named = f'{mine}code_version = "1"'
    assert run(mine=named)[0] == 12
    assert run(mine=named, helper=f"{helper}x = 1")[0] == 0


def rewritten(run: RunStore, *without: str) -> None:
    """Store the lines of a run again without some of their values."""
    (file,) = (run.root / "predictions").glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [{k: v for k, v in record.items() if k not in (*without, "check")} for record in records]
    texts = [json.dumps(line)[:-1] for line in lines]
    file.write_text("".join(f'{text}, "check": "{checksum(text.encode())}"}}\n' for text in texts))


def test_samples_that_tell_no_weights_are_taken_to_be_of_the_present_ones(tmp_path: Path) -> None:
    run, _ = a_weighed_run(tmp_path, "former")
    rewritten(run.store, "weights")
    _, said = a_weighed_run(tmp_path, "latter")
    assert "12 samples don't tell their weights or code: taken to be of the present" in said[0]
    assert "complete" in said[-1]


def test_other_truth_is_predicted_again_only_by_what_saw_it(tmp_path: Path) -> None:
    for method, expected in (("bounds.Empty", 0), ("bounds.Oracle", 12)):
        values = fake_values(
            tmp_path / method,
            dataset={**WRITTEN, "root": str(tmp_path / method / "data")},
            method={"_target_": f"refseg_bench.methods.{method}"},
        )
        point = Composed(values, "fake", digest(values), (), {})
        launch([point], lambda line: None)
        change(tmp_path / method / "data", truth="other")
        (again,) = launch([point], lambda line: None)
        assert again.tally is not None
        assert again.tally.done == expected
        if expected:
            ((_, outcome),) = score_store(again.store)
            assert isinstance(outcome, Scored)
            assert outcome.result.metrics["J"].value == 1.0


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


def test_frames_that_are_not_here_are_taken_to_be_the_same(tmp_path: Path) -> None:
    store = a_run(tmp_path)[0].store
    _, said = a_run(tmp_path)
    assert "complete: nothing left to predict" in said[0]
    dataset = dataset_of(frozen(store))
    work = plan(dataset)
    shutil.rmtree(tmp_path / "data/clip3")
    assert not stale(RunStore(store.root), work, Present(dataset))


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


@pytest.mark.parametrize("kind", CHANGES)
def test_what_was_predicted_on_other_data_is_not_scored(tmp_path: Path, kind: str) -> None:
    made, expected, words = CHANGES[kind]
    store = a_run(tmp_path)[0].store
    ((_, before),) = score_store(store)
    assert isinstance(before, Scored)
    made(tmp_path / "data")
    ((_, refused),) = score_store(RunStore(store.root))
    assert isinstance(refused, StaleError)
    assert f"{expected} samples were predicted on other data" in refused.what
    assert words in refused.what
    assert "refseg run" in str(refused.hint)
    found = to_coco(RunStore(store.root))
    assert len(found["info"]["without_prediction"]) == expected
    ((_, part),) = score_store(RunStore(store.root), partial=True)
    assert isinstance(part, ScoreError) or len(part.coverage.failed) == expected


@pytest.mark.parametrize("kind", CHANGES)
def test_a_result_of_other_data_is_not_shown(tmp_path: Path, kind: str) -> None:
    store = a_run(tmp_path)[0].store
    score_store(store)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(tmp_path / "copy", tmp_path / "data")
    said: list[str] = []
    leave_out_outdated([store], said.append)
    assert (said, list(store.results())) == ([], ["rvos-expr@1"])
    CHANGES[kind][0](tmp_path / "data")
    leave_out_outdated([store], said.append)
    assert "the result under rvos-expr@1 is not shown" in said[0]
    assert store.results() == {}
    # The pages come to an end, and say of each sample what differs.
    write_report([store], tmp_path / "report")
    texts = [path.read_text() for path in (tmp_path / "report/data").glob("clip-*.js")]
    assert sum(text.count("Predicted on other data, weights or code: ") for text in texts) == CHANGES[kind][1]


@pytest.mark.parametrize("dataset", ["mevis", "reasonseg"])
def test_a_result_of_other_masks_is_not_shown(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], dataset: str
) -> None:
    root, image = Path("data", dataset), np.zeros((40, 50, 3), np.uint8)
    if dataset == "mevis":
        write_meta_expressions_set(root, "valid_u", [video()])
        file, changes = root / "valid_u/mask_dict.json", {'"0":': '"x":', '"1":': '"0":', '"x":': '"1":'}
    else:
        write_reasonseg_image(root, "val", "a", image, ["why"], [("target", [[10, 20], [30, 20], [30, 35]])])
        file, changes = root / "val/a.json", {"35": "32"}
    held, command = file.read_text(), ["run", f"dataset={dataset}", "method=full_frame", "--no-html"]
    assert cli.main(command) == 0

    def shown() -> bool:
        capsys.readouterr()
        code = cli.main(["report", "--format", "csv"])
        out, err = capsys.readouterr()
        assert (code == 0) == ("full_frame" in out) == ("the annotations have changed" not in err)
        return code == 0

    # Written again as it is: the content decides.
    state = file.stat()
    file.unlink()
    file.write_text(held)
    assert shown()
    # Other masks in a file of the same size and time.
    other = held
    for old, new in changes.items():
        other = other.replace(old, new)
    file.write_text(other)
    set_back(file, state)
    assert (file.stat().st_size, other != held) == (state.st_size, True)
    assert not shown()
    assert cli.main([*command, "--no-score"]) == 0
    assert not shown()
    assert cli.main(["score", "runs"]) == 0
    assert shown()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_the_scores_of_a_run_of_somebody_else_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    store = a_run(tmp_path)[0].store
    for name in ("keep", "write_result"):

        def refused(*_: object) -> None:
            with writing(store.root):
                raise OSError(number, "no")

        monkeypatch.setattr(RunStore, name, refused)
        if number == errno.ENOSPC:
            with pytest.raises(StoreError):
                score_store(store)
            continue
        ((_, outcome),) = score_store(store)
        assert isinstance(outcome, Scored)
        assert outcome.result.n
        assert f"{store.root}: scored, not kept" in capsys.readouterr().err


def test_a_folder_that_no_config_can_name_is_refused(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "method=full_frame", "limit.clips=1", "paths.runs=r\udcff"]) == 2
    assert "no UTF-8" in capsys.readouterr().err
    assert not list(in_tmp.glob("r*"))


def test_a_result_of_fewer_predictions_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fake_run(tmp_path)
    work_on(store, shard=0, shards=2)
    score_store(store, partial=True)
    assert store.results()["rvos-expr@1"].n
    assert tables.to_frame([store])["value"].tolist()
    work_on(store, shard=1, shards=2)
    assert tables.to_frame([RunStore(store.root)]).empty
    tables.show_tables([RunStore(store.root)])
    out, err = capsys.readouterr()
    assert (out.strip(), err.count("for predictions have changed since")) == ("", 2)
    said: list[str] = []
    leave_out_outdated([store], said.append)
    assert "for predictions have changed since" in said[0]
    assert store.results() == {}
    score_store(store)
    again = RunStore(store.root)
    leave_out_outdated([again], said.append)
    assert again.results()["rvos-expr@1"].n == 12


def test_a_result_of_other_masks_of_the_same_length_is_not_shown(tmp_path: Path) -> None:
    store = fake_run(tmp_path)
    work_on(store)
    score_store(store)
    (path,) = (store.root / "predictions").iterdir()
    path.touch()
    said: list[str] = []
    leave_out_outdated([store], said.append)
    assert said == []
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    leave_out_outdated([store], said.append)
    assert "for predictions have changed since" in said[0]


def test_scoring_and_reports_look_where_the_last_command_found_the_data(tmp_path: Path) -> None:
    score_store(a_run(tmp_path)[0].store)
    shutil.copytree(tmp_path / "data", tmp_path / "other")
    change(tmp_path / "other", text="another")
    store = RunStore(a_run(tmp_path, "other")[0].store.root)
    ((_, outcome),) = score_store(store)
    assert isinstance(outcome, Scored)
    leave_out_outdated([store], pytest.fail)


def test_status_counts_what_the_data_set_asks_for_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = a_run(tmp_path)[0].store
    change(tmp_path / "data", text="another", clips="3")
    assert cli.main(["status", str(store.root)]) == 0
    assert "facts.json has changed since" in capsys.readouterr().out
    cli.main(["score", str(store.root)])  # refuses, and leaves a record of what there is now
    capsys.readouterr()
    assert cli.main(["status", str(store.root)]) == 0
    said = capsys.readouterr().out
    assert "facts.json" not in said
    assert "3 samples were predicted on other data, weights or code and are left: clip1/0: text was" in said
    assert "3 samples are not in the data set and don't count: clip3/0, clip3/1, clip3/2" in said
    cells = said.partition(store.root.name)[2].split()
    assert cells[:3] == ["6", "0", "3"]


def test_masks_of_another_size_never_meet(tmp_path: Path) -> None:
    """Where a record doesn't tell its data, its size is seen all the same."""
    store = a_run(tmp_path)[0].store
    rewritten(store, "turn", "inputs", "text", "frames")
    change(tmp_path / "data", size="26 32")
    ((_, refused),) = score_store(RunStore(store.root))
    assert isinstance(refused, ScoreError)
    assert "there are 2 masks of (24, 32), the clip has 2 frames of (26, 32)" in str(refused)
    write_report([RunStore(store.root)], tmp_path / "report")


def test_a_text_of_any_characters_leaves_a_record_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    change(tmp_path / "data", text="that \x00\x1b[31m one")
    store = a_run(tmp_path)[0].store
    kept = recorded(RunStore(store.root))
    assert kept is not None
    assert "that \x00\x1b[31m one" in {e.text for _, expressions in kept.work for e in expressions}


def test_a_data_set_that_cannot_be_read_leaves_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    change(tmp_path / "data", clips="0")
    with pytest.raises(DataError, match="holds no expression"):
        a_run(tmp_path)
    assert not (tmp_path / "runs").exists()


def test_the_last_of_two_commands_to_finish_sees_that_all_is_there(tmp_path: Path) -> None:
    """Both work on the same run; what the other one did is not counted as missing."""
    values = fake_values(tmp_path)
    point = Composed(values, "fake", digest(values), (), {})
    other = planned(freeze(point), point, lambda line: None)
    other.keep()
    before = dict(other.store.index())
    (answer,) = launch([point], lambda line: None)
    assert answer.tally == Tally(12, 0, 0)
    assert tally_of(other, before) == Tally(12, 0, 0)


def test_hidden_masks_end_a_run_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = a_run(tmp_path)[0].store
    score_store(store)
    values = dict(frozen(store))
    values["dataset"] = {**values["dataset"], "_target_": "tests.test_inputs.Hidden"}
    assert score_runs([store], {store.root: values}) == 0
    tables.show_tables([store])
    said = capsys.readouterr()
    assert f"`refseg submission {store.root}`" in said.err
    assert "rvos-expr" not in said.out, "an earlier result stands in for the one that can't be made"


def test_jobs_after_a_run_on_hidden_masks_end_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fake_run(tmp_path, dataset={"_target_": "tests.test_inputs.Hidden", "root": str(tmp_path / "d")})
    work_on(store)
    assert cli.main(["score", str(store.root)]) == 2
    capsys.readouterr()
    assert cli.main(["score", "--after-run", str(store.root)]) == 0
    assert "are not public" in capsys.readouterr().err
    assert cli.main(["report", str(store.root)]) == 2
    assert cli.main(["report", "--after-run", str(store.root)]) == 0


def test_a_damaged_run_keeps_no_other_from_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_store(a_run(tmp_path)[0].store)
    bad = fake_run(tmp_path, seed=3)
    bad.info_path.write_text("{")
    assert cli.main(["report", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr()
    assert f"{bad.root}: left out, for it can't be read" in said.err
    assert "rvos-expr@1" in said.out
    assert cli.main(["report", str(bad.root)]) == 2


def test_a_run_without_predictions_keeps_no_other_from_scoring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = a_run(tmp_path)[0].store
    ghost = fake_run(tmp_path, seed=3)
    assert cli.main(["score", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr()
    assert f"{ghost.root}: skipped, for nothing was predicted" in said.err
    assert store.results()["rvos-expr@1"].n == 12
    assert cli.main(["score", str(ghost.root)]) == 2
    shutil.rmtree(store.root)
    assert cli.main(["score", str(tmp_path / "runs")]) == 2


def test_truth_of_another_size_is_told_and_no_earlier_result_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = a_run(tmp_path)[0].store
    score_store(store)
    change(tmp_path / "data", truth="small")
    assert score_runs([store], {}) == 2
    tables.show_tables([store])
    said = capsys.readouterr()
    assert "The truth of 'clip0/0' doesn't fit its clip: there are 2 masks of (12, 16)" in said.err
    assert "rvos-expr" not in said.out
    write_report([store], tmp_path / "report")
    assert "Some targets don't fit their clips" in (tmp_path / "report/data/meta.js").read_text()


@pytest.mark.parametrize("facts", [{"names": "0 \udce9"}, {"text": "caf\udce9"}, {"text": 7}])
def test_names_and_words_that_no_record_can_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any]
) -> None:
    monkeypatch.setattr(Written, "facts", lambda self: facts)
    with pytest.raises(
        DataError, match="clip 'clip[01]' are in another encoding than UTF-8|text is no str: 7"
    ):
        a_run(tmp_path)
    assert not list((tmp_path / "runs").glob("*"))


def test_names_that_no_json_can_hold_leave_no_record(tmp_path: Path) -> None:
    store = fake_run(tmp_path)
    clip = Clip("c", (Path("a/\udcff.png"),), ("0",), (2, 3))
    expressions = (Expression("0", "a \U0001f600"),)
    keep_record(store, [(clip, expressions)], [], Present(FakeDataset()))
    assert recorded(store) is None
    whole = replace(clip, frame_paths=(Path("a/0.png"),))
    keep_record(store, [(whole, expressions)], [], Present(FakeDataset()))
    found = recorded(store)
    assert found is not None
    assert found.work == [(replace(whole, frame_paths=(Path("a/0.png").absolute(),)), expressions)]


def test_a_copied_data_set_is_read_once_to_be_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_run(tmp_path)[0].store
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "copy").rename(tmp_path / "data")
    read: list[Path] = []
    works = inputs.content
    monkeypatch.setattr(inputs, "content", lambda path: (read.append(path), works(path))[1])
    score_store(store)
    assert len(read) == 8
    for again in (
        lambda: score_store(store),
        lambda: a_run(tmp_path),
        lambda: cli.main(["status", str(store.root)]),
    ):
        again()
    assert len(read) == 8
    repaint(tmp_path / "data/clip2/00001.png")
    assert isinstance(score_store(store)[0][1], StaleError)
    assert len(read) == 10


def test_a_record_from_elsewhere_makes_no_command_read_without_end(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 1 << 40)
    endless = [path for path in (huge, Path("/proc/kcore"), Path("/proc/kmsg")) if path.exists()]
    for path in endless:
        present = Present(FakeDataset())
        assert len(present.files(Clip("c", (path,), ("0",), (2, 3)))) in (0, 16)


def test_a_refused_protocol_with_options_leaves_no_earlier_number(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "refcoco-lavt@1:resolution=480"
    protocols = "protocols=['refcoco-lavt:resolution=480']"
    assert cli.main(["run", "dataset=photos", "method=empty", "limit.clips=2", protocols, "--no-html"]) == 0
    (store,) = [RunStore(path) for path in Path("runs").iterdir()]
    assert name in store.results()
    (lines,) = (store.root / "predictions").iterdir()
    lines.write_bytes(b"".join(lines.read_bytes().splitlines(keepends=True)[1:]))
    again = RunStore(store.root)
    assert score_runs([again], {}) == 2
    assert again.results() == {}
    assert "refuses incomplete work" in capsys.readouterr().err
