from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg_bench.errors import DataError, StoreError
from refseg_bench.files import store_io
from refseg_bench.files.store_io import checksum, read_sealed_yaml, safe_name, to_plain, write_atomic
from refseg_bench.run import store as store_module
from refseg_bench.run.store import RunInfo, RunStore, find_runs, line_of
from refseg_bench.types import (
    Estimate,
    Expression,
    Grounding,
    HeatPoint,
    MaskTrack,
    Prediction,
    Result,
    SampleFailure,
)
from tests.fakes import unlisted

INFO = RunInfo("0123abcd", "x")


def test_the_command_that_makes_a_run_again_can_be_pasted():
    overrides = ["method=empty", "cluster.server='serve --port {port}'", "name=a;touch b"]
    assert shlex.split(RunInfo("0123abcd", "x", overrides).command) == ["refseg", "run", *overrides]


def a_store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run", "a: 1\n", INFO)


def good(clip: str, expression: str, value: int = 1) -> Prediction:
    mask = np.zeros((4, 5), bool)
    mask[:value] = True
    return Prediction(
        f"{clip}/{expression}", clip, expression,
        track=MaskTrack.from_masks([mask, None], (4, 5)),
        point=HeatPoint(1, 0.25, 0.75, 2.0), no_target=False, details={"word": "dög"},
        seconds={"total": 0.5}, peak_mb=3.0,
    )  # fmt: skip


def bad(clip: str, expression: str) -> Prediction:
    failure = SampleFailure("ValueError", "no\nluck", "Traceback …")
    return Prediction(f"{clip}/{expression}", clip, expression, failure=failure)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    with store.writer("j") as out:
        out.append(good("UVO/all/x_1", "0"))
        out.append(bad("UVO/all/x_1", "1"))
    read = store.predictions("UVO/all/x_1")
    assert read["0"] == good("UVO/all/x_1", "0")
    assert read["1"] == bad("UVO/all/x_1", "1")
    assert store.done() == {"UVO/all/x_1/0"}
    assert [p.sample for p in store.failures()] == ["UVO/all/x_1/1"]


def test_torn_and_foreign_lines_are_not_samples(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    with store.writer("a") as out:
        out.append(good("c", "0"))
        out.append(good("c", "1"))
    path = tmp_path / "run/predictions/a.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(lines[0]) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert RunStore(store.root).done() == {"c/0"}
    path.write_bytes(b"rubbish\n\n" + whole)
    store = RunStore(store.root)
    assert store.done() == {"c/0", "c/1"}
    assert store.predictions("c")["1"] == good("c", "1")


def test_a_reader_sees_what_another_process_appends(tmp_path: Path) -> None:
    store, reader = a_store(tmp_path), RunStore(tmp_path / "run")
    assert reader.done() == set()
    with store.writer("b") as out:
        out.append(good("c", "1"))
        assert reader.done() == {"c/1"}
        out.append(good("c", "2"))
        assert reader.done() == {"c/1", "c/2"}
    with store.writer("a") as out:
        out.append(good("d", "0"))
    assert set(reader.predictions("c")) == {"1", "2"}
    assert set(reader.predictions("d")) == {"0"}


def test_a_good_line_beats_a_failure_and_the_first_good_one_stays(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for job, prediction in [("a", bad("c", "0")), ("b", good("c", "0", 1)), ("c", good("c", "0", 2))]:
        with store.writer(job) as out:
            out.append(prediction)
    assert store.predictions("c") == {"0": good("c", "0", 1)}


def test_a_run_folder_of_another_config_is_refused(tmp_path: Path) -> None:
    a_store(tmp_path)
    assert read_sealed_yaml(RunStore.create(tmp_path / "run", "b: 2\n", INFO).config_path) == {"a": 1}
    with pytest.raises(StoreError, match="another config"):
        RunStore.create(tmp_path / "run", "a: 1\n", RunInfo("ffffffff"))


def test_a_folder_that_is_no_run_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="no run folder"):
        a_store(tmp_path)


def test_maps_survive_quantised(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    volume = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    grounding = Grounding(
        Expression("0", "x"), MaskTrack.empty((4, 5), 1), maps={"v": volume}, map_frames={"v": (3, 9)}
    )
    store.write_maps(grounding, "a/b/0")
    read = store.read_maps("a/b/0")
    np.testing.assert_allclose(read["v"] / 255, volume, atol=0.5 / 255 + 1e-7)
    assert read["v.frames"].tolist() == [3, 9]
    assert store.read_maps("a/b/1") == {}


@given(st.text(min_size=1, max_size=400))
def test_safe_names_stay_in_their_folder(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    name = safe_name(text)
    assert "/" not in name
    assert name not in (".", "..")
    assert len(name) <= 200


def test_plain_values_are_json() -> None:
    value = {"a": np.float32(1.5), "b": np.arange(3), "c": (1, {"d": Path("x")}), "e": b"\x00"}
    assert json.loads(json.dumps(to_plain(value))) == {
        "a": 1.5,
        "b": [0, 1, 2],
        "c": [1, {"d": "x"}],
        "e": "AA==",
    }


def test_no_flipped_byte_changes_a_prediction(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    with store.writer("a") as out:
        out.append(good("c", "0"))
        out.append(bad("c", "1"))
    (path,) = (store.root / "predictions").glob("*")
    whole, right = path.read_bytes(), store.predictions("c")
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x04]) + whole[at + 1 :])
        damaged = RunStore(store.root)
        with contextlib.suppress(StoreError):
            found = damaged.predictions("c")
            assert all(found[name] == right[name] for name in found)
            assert len(found) == 2 or damaged.damage() is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rles", ["11", None]), ("rles", ["\u00e9", None]), ("rles", [1, None]), ("rles", "04"),
        ("size", [5, 4, 1]), ("size", [10**9, 10**9]), ("size", [4.0, 5]), ("size", None),
        ("expression", "1"), ("point", [0, "a", 0, 0]), ("point", [1, 0.5, 0.5, 10**400]),
        ("point", [7, 0.5, 0.5, 0]), ("point", [0, -0.5, 0.5, 0]), ("point", [0, 0.5, 12.0, 0]),
        ("details", []), ("seconds", {"total": "soon"}), ("peak_mb", None),
        ("failure", {}), ("no_target", "yes"), ("clip", ["c"]), ("sample", None),
    ],
)  # fmt: skip
def test_a_line_of_other_values_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    store = a_store(tmp_path)
    with store.writer("a") as out:
        out.append(good("c", "0"))
    (path,) = (store.root / "predictions").glob("*")
    record = {**json.loads(path.read_text()), key: value}
    del record["check"]
    path.write_text(sealed_line(record))
    store = RunStore(store.root)
    if store.damage() is None:
        with pytest.raises(StoreError, match="a.jsonl"):
            store.predictions("c")


def sealed_line(record: dict[str, object]) -> str:
    text = json.dumps(record)[:-1]
    return f'{text}, "check": "{checksum(text.encode())}"}}\n'


def test_lines_without_a_checksum_are_no_samples(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    with store.writer("a") as out:
        out.append(good("c", "0"))
    (path,) = (store.root / "predictions").glob("*")
    record = json.loads(path.read_text())
    del record["check"]
    path.write_text(json.dumps(record) + "\n")
    again = RunStore(store.root)
    assert again.predictions("c") == {}
    assert "1 stored lines don't fit their checksum" in str(again.damage())


def test_lines_of_another_run_are_no_samples_of_this_one(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    other = RunStore.create(tmp_path / "other", "a: 2\n", RunInfo("4567cdef", "x"))
    for each, name in ((store, "0"), (other, "1")):
        with each.writer("b" if each is store else "a") as out:
            out.append(good("c", name))
    for path in (other.root / "predictions").iterdir():
        shutil.copy(path, store.root / "predictions")
    assert set(RunStore(store.root).index()) == {"c/0"}
    assert "another run's" in str(RunStore(store.root).damage())


def test_a_file_that_another_replaced_is_read_anew(tmp_path: Path) -> None:
    """`score --save` gives the file of masks a new content under its name, often of the same size."""
    store = a_store(tmp_path)
    both = [line_of(good("c", name, rows)).decode() for name, rows in (("0", 1), ("10", 2))]
    path = store.root / "predictions" / "masks.jsonl"
    for lines in (both, both[::-1]):
        write_atomic(path, "".join(lines))
        assert {name: p.track.area()[0] for name, p in store.predictions("c").items()} == {"0": 5, "10": 10}
    path.write_text(both[0])
    assert set(store.predictions("c")) == {"0"}
    path.unlink()
    assert store.predictions("c") == {}


def test_a_run_that_another_replaced_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = a_store(Path())
    for folder, digest in (("run", "0123abcd"), ("next", "4567cdef")):
        with RunStore.create(Path(folder), "a: 1\n", RunInfo(digest, "x")).writer("j") as out:
            out.append(good("c", folder))
    assert set(known.predictions("c")) == {"run"}
    shutil.rmtree("run")
    Path("next").rename("run")
    assert set(known.predictions("c")) == {"next"}
    assert known.damage() is None


def test_predictions_that_cannot_be_listed_are_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(tmp_path)
    unlisted(monkeypatch, store.root / "predictions")
    with pytest.raises(StoreError, match="Permission denied"):
        store.index()


def test_a_row_of_another_run_is_no_result(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    other = RunStore.create(tmp_path / "other", "a: 2\n", RunInfo("4567cdef", "x"))
    other.write_result(Result("p@1", {"M": Estimate(0.5)}, 1, 1, 0, 0), lambda handle: None)
    assert list(other.results()) == ["p@1"]
    shutil.copytree(other.root / "scores", store.root / "scores")
    with pytest.raises(StoreError, match="row is of another run"):
        store.results()


def test_a_row_never_stands_beside_the_table_of_another_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commands score one run: the second writes all of its own between the first one's files."""
    run, usual = a_store(tmp_path), store_io.replacing

    def write(value: float) -> None:
        row = Result("p@1", {"M": Estimate(value)}, 1, 1, 0, 0)
        run.write_result(row, lambda handle: handle.write(f"of {value}".encode()))

    @contextlib.contextmanager
    def replacing(path: Path, **options: bool) -> Iterator[IO[bytes]]:
        with usual(path, **options) as handle:
            yield handle
        monkeypatch.undo()
        write(0.5)

    monkeypatch.setattr(store_module, "replacing", replacing)
    write(0.25)
    assert run.results()["p@1"].metrics["M"].value == 0.25
    with pytest.raises(StoreError, match="don't belong to their result row"):
        run.samples("p@1")
    write(0.25)
    assert run.samples("p@1")[1] == b"of 0.25"


@pytest.mark.parametrize(
    "interval", [{"level": 2}, {"resamples": 1e30}, {"seed": -1}, {"level": float("nan")}, {"other": 1}]
)
def test_intervals_that_nobody_makes_are_refused(tmp_path: Path, interval: dict[str, float]) -> None:
    store = a_store(tmp_path)
    made = Result("p@1", {"J": Estimate(0.5)}, 1, 1, 0, 0, details={"interval": interval})
    store.write_result(made, lambda handle: None)
    with pytest.raises(StoreError):
        store.results()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 10**5,
        '{"digest": 1}',
        '{"digest": "a", "choices": [1]}',
        "\xff",
        '{"digest": "a"}',
    ],
)
def test_a_damaged_record_of_the_run_is_told(tmp_path: Path, text: str) -> None:
    store = a_store(tmp_path)
    text = text.replace("}", ', "check": "0"}') if text == '{"digest": "a"}' else text
    store.info_path.write_text(text, encoding="latin-1")
    with pytest.raises(StoreError, match=r"run\.json"):
        store.info()


def test_damaged_maps_are_told(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    maps = {"v": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)}
    store.write_maps(Grounding(Expression("0", "x"), MaskTrack.empty((4, 5), 1), maps=maps), "a/0")
    path = store.maps_path("a/0")
    whole, right = path.read_bytes(), store.read_maps("a/0")
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with contextlib.suppress(StoreError):
            found = store.read_maps("a/0")
            assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in right.items()}


@pytest.mark.parametrize("part", ["predictions", "maps", "env", "scores", "scores/p@1"])
def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path: Path, part: str) -> None:
    store = a_store(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    place = store.root / part
    if place.is_dir():
        place.rmdir()
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "elsewhere")
    maps = {"v": np.zeros((1, 2, 2), np.float32)}
    grounding = Grounding(Expression("0", "x"), MaskTrack.empty((4, 5), 1), maps=maps)
    refused = 0
    for write in (
        lambda: store.write_maps(grounding, "a/0"),
        lambda: store.write_env("j", {}),
        lambda: store.write_result(Result("p@1", {}, 0, 0, 0, 0), lambda handle: None),
        lambda: store.writer("j"),
    ):
        try:
            write()
        except StoreError:
            refused += 1
    assert refused == 1
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("value", [0.3, -3.0, np.nan])
def test_a_mask_of_fractions_is_refused(value: float) -> None:
    """Each of them would be foreground."""
    with pytest.raises(DataError, match="frame 1 holds float32 values"):
        MaskTrack.from_masks([np.ones((2, 3), np.uint8), np.full((2, 3), value, np.float32)], (2, 3))


def test_a_run_and_a_link_to_it_are_one_run(tmp_path: Path) -> None:
    """It is told by the name that was given first."""
    store, other = a_store(tmp_path / "runs"), a_store(tmp_path / "others")
    (tmp_path / "runs" / "zz-last").symlink_to(store.root)
    asked = [tmp_path / "runs", other.root, tmp_path / "runs" / "zz-last"]
    assert [found.root for found in find_runs(asked)] == [store.root, other.root]


def test_a_run_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = a_store(tmp_path / "runs")
    (tmp_path / "runs" / "others").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "others")  # root may read all
    assert [found.root for found in find_runs([tmp_path / "runs"])] == [store.root]
    assert "others: left out, for this user may not read it" in capsys.readouterr().err
