"""`refseg status` believes what is kept of a run only while everything it comes from is the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from refseg_bench import cli
from refseg_bench.files.store_io import read_record, sealed
from refseg_bench.run import summary
from refseg_bench.run.inputs import recorded
from refseg_bench.run.launch import launch
from refseg_bench.run.store import RunStore
from refseg_bench.run.summary import NAME, Summary, summarize
from tests.fakes import set_back
from tests.launch.runs import point, quiet, undisturbed
from tests.quick import quick_first


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """A finished run that is large enough to have a summary, and old enough to be believed."""
    monkeypatch.setattr(summary, "_SMALL", 0)
    monkeypatch.setattr(summary, "_TICK", -(10**12))
    return undisturbed(tmp_path)


def look(root: Path) -> Summary:
    """As `refseg status` does."""
    fresh = RunStore(root)
    dataset = recorded(fresh)
    assert dataset is not None
    return summarize(fresh, dataset.work, dataset.present({}))


def unread(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Whoever reads the predictions now is caught."""
    monkeypatch.setattr(summary, "_look", lambda *words: pytest.fail("the predictions were read"))
    return monkeypatch


def test_a_worker_leaves_what_status_then_says(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (store.root / NAME).read_bytes()
    with monkeypatch.context() as caught:
        unread(caught)
        assert cli.main(["status", str(store.root)]) == 0
    said = capsys.readouterr().out
    (store.root / NAME).unlink()
    assert cli.main(["status", str(store.root)]) == 0
    assert capsys.readouterr().out == said
    assert (store.root / NAME).read_bytes() == kept, "the worker's and the reader's are one"
    launch([point(store.root.parent.parent)], quiet)
    with monkeypatch.context() as caught:
        assert (look(store.root).done, look(store.root).left) == (18, 0), "another look at it changed nothing"


def rewrite(path: Path) -> None:
    """Other bytes of the same length and time."""
    state, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-40] + b"?" + data[-39:])
    set_back(path, state)


def cut(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))


def again(path: Path) -> None:
    """The same file anew, as copying and unpacking leave it: equal in size and time."""
    shutil.copy2(path, path.with_name("x"))
    path.with_name("x").rename(path)


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a line rewritten": ("predictions/*.jsonl", rewrite),
    "lines cut off": ("predictions/*.jsonl", cut),
    "the same file anew": ("predictions/*.jsonl", again),
    "a file gone": ("predictions/*.jsonl", Path.unlink),
    "a file more": ("predictions", lambda path: (path / "z.jsonl").write_text("{}\n")),
    "an environment": ("env/*.json", rewrite),
    "the config": ("config.yaml", rewrite),
    "the run": ("run.json", rewrite),
    "the record of the data": ("data.json", rewrite),
    "a frame": ("../../data/clip1/00000.png", rewrite),
    "a frame gone": ("../../data/clip1/00000.png", Path.unlink),
}


@pytest.mark.parametrize("name", quick_first([*CHANGES], 3))
def test_any_change_has_it_read_again(
    store: RunStore, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, change = CHANGES[name]
    (path,) = store.root.parent.joinpath(store.root.name).glob(pattern)
    with monkeypatch.context() as caught:
        unread(caught)
        look(store.root)
    change(path)
    answers = []
    for _ in range(2):
        code = cli.main(["status", str(store.root)])
        answers.append((code, capsys.readouterr().out))
    (store.root / NAME).unlink(missing_ok=True)
    code = cli.main(["status", str(store.root)])
    assert answers == [(code, capsys.readouterr().out)] * 2


def test_frames_that_are_gone_keep_no_later_change_from_being_seen(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = store.root.parent.parent / "data"
    (data / "clip0/00000.png").unlink()
    assert look(store.root).done == 18
    rewrite(data / "clip1/00000.png")
    found = look(store.root)
    assert (found.done, found.left) == (15, 3)
    assert "3 samples were predicted on other data" in found.notes[0]


def test_other_code_and_other_questions_are_answered_anew(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(summary, "_code", lambda: "other")
        look(store.root)
    unread(monkeypatch)
    with pytest.raises(pytest.fail.Exception):
        look(store.root)


def test_what_is_as_young_as_its_files_is_not_believed(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "_TICK", 10**12)
    unread(monkeypatch)
    with pytest.raises(pytest.fail.Exception):
        look(store.root)


def test_faults_and_what_changes_meanwhile_are_not_kept(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / NAME).unlink()
    (path,) = store.root.glob("predictions/*.jsonl")
    with monkeypatch.context() as grown:
        whole = summary._look

        def slow(*words):
            path.with_name("z.jsonl").touch()
            return whole(*words)

        grown.setattr(summary, "_look", slow)
        look(store.root)
    assert not (store.root / NAME).exists()
    look(store.root)
    assert (store.root / NAME).exists()
    (store.root / NAME).unlink()
    rewrite(path)
    assert "don't fit their checksum" in look(store.root).notes[0]
    assert not (store.root / NAME).exists(), "it tells paths, and a folder can be moved"


def test_nonsense_that_fits_is_left_and_no_link_is_followed(store: RunStore, tmp_path: Path) -> None:
    path = store.root / NAME
    key = read_record(path)["key"]
    for wrong in ({"done": "many"}, {"failures": [["one"]]}, {"stages": []}, {"done": None}):
        path.write_text(sealed({"done": 1, "failed": 0, "key": key, **wrong}))
        assert look(store.root).done == 18, wrong
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    assert look(store.root).done == 18
    assert not (tmp_path / "outside").exists()


def test_of_few_predictions_none_is_kept(tmp_path: Path) -> None:
    assert not (undisturbed(tmp_path).root / NAME).exists()


def test_a_record_that_leads_nowhere_hides_no_count(store: RunStore) -> None:
    (store.root / "env/z.json").symlink_to("nowhere")
    assert (look(store.root).done, look(store.root).left) == (18, 0)
