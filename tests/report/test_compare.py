"""``refseg compare`` and ``gate`` as they are printed: words, intervals, corrected p-values."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from refseg_bench.cli import main
from refseg_bench.errors import ScoreError
from refseg_bench.report.compare import Gated, Policy, compare, gate, verdicts
from refseg_bench.report.html import home
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunStore, runs_in
from refseg_bench.scoring.runs import score_run
from refseg_bench.scoring.stats import holm
from refseg_bench.scoring.table import ScoreTable
from tests.fakes import FakeDataset, fake_run


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """Two runs on one clip, and two on four clips."""
    folder = tmp_path_factory.mktemp("pair")
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for clips in (1, 4):
            more = [f"limit.clips={clips}", f"paths.runs={folder}/{clips}", "score.bootstrap=50"]
            assert main(["run", "-m", "method=empty,oracle", *more, "--no-html"]) == 0
            out[clips] = sorted(str(store.root) for store in runs_in(folder / str(clips)))
    return out


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "120")
    capsys.readouterr()
    assert main(["compare", *words]) == 0
    return capsys.readouterr().out


def test_one_clip_has_no_interval(
    pair: dict[int, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = told(capsys, monkeypatch, *pair[1])
    assert "one clip: no interval" in text
    assert "nan" not in text


def test_words_labels_and_corrected_p_values(
    pair: dict[int, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = told(capsys, monkeypatch, *pair[4], "--by", "type")
    assert "A = empty (limit.clips=4) (empty-shapes-" in text
    store = RunStore.open(Path(pair[4][1]))
    words = {store.read(line).inputs.text for line in store.index().values()}  # type: ignore[union-attr]
    assert sum(word in text for word in words) >= 8
    assert "Holm" in text
    assert "method   empty   oracle" in " ".join(text.split("option")[-1].split()).replace(" ", "   ")


def test_tests_are_corrected_together() -> None:
    nan = float("nan")
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.004, 0.001, 0.003]) == pytest.approx([0.006, 0.003, 0.006])
    found = holm([0.01, nan, 0.02])
    assert found[0] == 0.02
    assert found[1] != found[1]
    assert found[2] == 0.02


def test_pages_of_other_runs_lie_in_another_folder(pair: dict[int, list[str]], tmp_path: Path) -> None:
    first, second = (RunStore.open(Path(root)) for root in pair[4])
    assert home([first]) == first.root / "report"
    both = home([first, second])
    assert both == home([second, first])
    assert both != home([first, first])
    assert both.parent == first.root.parent
    # The same runs elsewhere: the name is that which the documentation shows.
    moved = [RunStore(tmp_path / store.root.relative_to(both.parent)) for store in (first, second)]
    assert home(moved) == tmp_path / both.name


def test_what_has_no_value_was_not_tested(
    pair: dict[int, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["score", *pair[4], "--protocol", "mevis-v2"]) == 0
    text = told(capsys, monkeypatch, *pair[4], "--protocol", "mevis-v2", "--by", "type")
    assert "nan" not in text
    row = next(line.split() for line in text.splitlines() if "N-acc" in line and "–" in line)
    assert row[-4:-2] == ["–", "–"]  # p and Holm
    # Final is a number of the whole: units are listed by the first that each of them has.
    assert "B is better" in text


def gated(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["gate", *map(str, words)])
    return code, "".join(capsys.readouterr())


def test_a_gate_by_the_paired_interval(
    pair: dict[int, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    empty, oracle = pair[4]
    out = tmp_path / "row.json"
    code, text = gated(capsys, oracle, "--against", empty, "--json", out)
    assert (code, "held" in text, "passed" in text) == (0, True, True)
    row = json.loads(out.read_text())
    assert (row["method"], row["split"], row["protocol"]) == ("oracle", "valid_u", "rvos-expr@1")
    assert row["metrics"]["J&F"]["value"] == 1.0
    assert row["n"] == row["expected"] > 0
    assert row["command"].startswith("refseg run ")
    assert row["gate"]["passed"] is True
    assert row["gate"]["percent_points"][0]["value"] > 50
    code, text = gated(capsys, empty, "--against", oracle, "--max-drop", "0.5", "--json", out)
    assert (code, "not held" in text) == (1, True)
    assert json.loads(out.read_text())["gate"]["percent_points"][0]["verdict"] == "not held"
    # The same run is no worse, whatever its intervals.
    for runs in (pair[4], pair[1]):
        code, text = gated(capsys, runs[0], "--against", runs[0], "--max-drop", "0")
        assert (code, "+0.00 [+0.00, +0.00], may drop 0.00: held" in text) == (0, True), text
    # One clip has no interval: nothing is decided.
    assert gated(capsys, pair[1][1], "--against", pair[1][0])[0] == 1
    assert "nan" not in gated(capsys, pair[1][1], "--against", pair[1][0], "--json", out)[1]
    assert json.loads(out.read_text())["gate"]["percent_points"][0]["low"] is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.4, 1.0, "held"), (-0.5, 0.5, "held"), (-0.6, 0.5, "not decided"), (-2.0, -0.6, "not held")],
)
def test_all_of_the_interval_has_to_be_within(low: float, high: float, verdict: str) -> None:
    assert Gated("J", 0.5, (low + high) / 2, low, high).verdict == verdict


def test_a_gate_by_a_policy(
    pair: dict[int, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    empty, oracle = pair[4]
    policy = tmp_path / "gate.yaml"

    def by(text: str, *words: object) -> tuple[int, str]:
        policy.write_text(text)
        return gated(capsys, empty, "--against", oracle, "--policy", policy, *words)

    assert by("max_drop: {J: 100, F: 100}\nprotocol: rvos-expr\n")[0] == 0
    assert by("max_drop: {J: 100, F: 1}\n")[0] == 1
    assert by("max_drop: 1\n", "--max-drop", "100")[0] == 0
    single = ["--against", pair[1][1], "--policy", policy]
    # Without an interval a smaller drop is not decided, a greater one is.
    policy.write_text("undecided: pass\nmax_drop: 100\n")
    assert gated(capsys, pair[1][0], *single)[0] == 0
    policy.write_text("undecided: pass\nmax_drop: 5\n")
    code, text = gated(capsys, pair[1][0], *single)
    assert (code, "without an interval, may drop 5.00: not held" in text) == (1, True), text
    for text, said in (
        ("max_drop: {oIoU: 1}\n", "no value in both"),
        ("max_drop: {}\n", "names no metric"),
        ("max_drop: -1\n", "0 to 100"),
        ("max_drop: .nan\n", "0 to 100"),
        ("max_drop: a lot\n", "max_drop"),
        ("undecided: maybe\n", "undecided"),
        ("most_drop: 1\n", "Unknown option"),
        ("- 1\n", "no mapping"),
        ("max_drop: {J: 1\n", "max_drop, protocol, undecided"),
        ("protocol: davis\n", "not all scored"),
    ):
        code, told = by(text)
        assert (code, said in told) == (2, True), told
        assert "Traceback" not in told
    # Other samples than the baseline's are no comparison.
    code, told = gated(capsys, oracle, "--against", pair[1][1])
    assert (code, "same units" in told) == (2, True)


def test_a_gate_is_of_the_same_data(
    pair: dict[int, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs may have been made on two machines, on two releases that name their samples alike."""
    empty, oracle = pair[4]
    made_from = RunStore.made_from
    for part in ("facts", "files"):
        with monkeypatch.context() as patch:
            patch.setattr(
                RunStore,
                "made_from",
                lambda store, name, part=part: {**made_from(store, name), part: store.root.name},
            )
            patch.setattr("refseg_bench.commands.gate.leave_out_outdated", lambda stores: None)
            code, text = gated(capsys, oracle, "--against", empty)
        assert (code, "of different data" in text) == (2, True), text


def test_a_gate_takes_the_headline_of_the_baseline_and_no_decay(
    pair: dict[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, oracle = (RunStore.open(Path(root)) for root in pair[4])
    whole = compare(empty, oracle)
    gap = whole.overall.differences["J&F"]
    gaps = {"J&F": replace(gap, second=float("nan")), "J": gap, "J-Decay": gap}
    found = replace(whole, overall=replace(whole.overall, differences=gaps))
    monkeypatch.setattr("refseg_bench.report.compare.compare", lambda *args, **more: found)
    for policy in (Policy(), Policy({"J-Decay": 1.0})):
        with pytest.raises(ScoreError, match="no value in both"):
            gate(oracle, empty, policy)
    assert [one.metric for one in gate(oracle, empty, Policy({"J": 1.0}))[1]] == ["J"]


def test_a_gate_keeps_the_interval_of_a_metric_that_no_headline_moved_with(
    pair: dict[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """T-acc of two samples that swap: neither J&F nor the mean differs, and nothing is decided."""
    empty, oracle = (RunStore.open(Path(root)) for root in pair[4])
    whole = compare(empty, oracle)
    gap = replace(whole.overall.differences["J&F"], first=0.5, second=0.5, low=-0.5, high=0.5)
    overall = replace(whole.overall, differences={"T-acc": gap})
    found = replace(whole, overall=overall, percents={"T-acc": 100}, gained=(), lost=())
    monkeypatch.setattr("refseg_bench.report.compare.compare", lambda *args, **more: found)
    (one,) = gate(oracle, empty, Policy({"T-acc": 1.0}))[1]
    assert (one.low, one.verdict) == (-50, "not decided")


def test_runs_scored_against_other_masks_are_not_compared(
    pair: dict[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth of a set was replaced between two scorings, or an option of the set says what it is."""
    empty, oracle = (RunStore.open(Path(root)) for root in pair[4])
    read = ScoreTable.read_parquet

    def reread(path: Path, data: bytes) -> ScoreTable:
        table = read(path, data)
        if oracle.root in path.parents:
            table.attrs["size"][3] *= 1.001
        return table

    monkeypatch.setattr(ScoreTable, "read_parquet", reread)
    with pytest.raises(ScoreError, match="scored against different masks: the size of the target"):
        compare(empty, oracle)


def test_a_comparison_says_that_the_data_differ(
    pair: dict[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, oracle = (RunStore.open(Path(root)) for root in pair[4])
    assert not any("pixels" in key for key in compare(empty, oracle).config)
    monkeypatch.setattr(RunStore, "made_from", lambda store, name: {"files": store.root.name})
    assert compare(empty, oracle).config["pixels of frames"] == (empty.root.name, oracle.root.name)


def test_a_comparison_says_what_the_runs_were_made_with(
    pair: dict[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same options on another machine, with other versions or other weights give other masks.

    Of one of two processes of the second run all is otherwise.
    """
    empty, oracle = (RunStore.open(Path(root)) for root in pair[4])
    assert compare(empty, oracle).config == {"method": ("empty", "oracle")}

    def environments(store: RunStore) -> dict[str, dict[str, Any]]:
        plain = {
            "commit": "c",
            "dirty": False,
            "python": "3",
            "packages": {"torch": "2.1"},
            "device": {"cores": 2},
        }
        if store is empty:
            return {"a": plain}
        other = {
            "packages": {"torch": "2.2", "spacy": "3"},
            "device": {"cores": 9, "gpus": ["H100"], "cuda": "12"},
        }
        return {"a": plain, "b": {**plain, **other}}

    monkeypatch.setattr(RunStore, "environments", environments)
    monkeypatch.setattr(RunStore, "weights", lambda store: store.root.name)
    made = compare(empty, oracle).config
    assert made["packages.torch"] == ("2.1", "2.1 and 2.2")
    assert made["weights"] == (empty.root.name, oracle.root.name)
    assert (made["packages.spacy"], made["device.gpus"]) == ((None, "3"), (None, '["H100"]'))
    assert made.keys() == {"method", "packages.torch", "packages.spacy", "device.gpus", "weights"}
    monkeypatch.setattr(RunStore, "environments", lambda store: {} if store is empty else environments(store))
    monkeypatch.setattr(RunStore, "weights", lambda store: "")
    assert compare(empty, oracle).config.keys() == {"method"}, "masks of other code tell of nothing"


def test_no_sample_is_listed_where_none_is_asked_for(pair: dict[int, list[str]]) -> None:
    found = compare(*(RunStore.open(Path(root)) for root in pair[4]), most=0)
    assert (found.gained, found.lost) == ((), ())


def test_what_one_run_lacks_is_told(pair: dict[int, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict on the part that both have says so; a sample's words are those of the run that has it."""
    part, whole, oracle = (RunStore.open(Path(root)) for root in (pair[1][0], *pair[4]))
    (units,) = {result.n for result in part.results().values()}
    (line,) = verdicts(whole, [part])
    assert line.endswith(f"on the {units} units of both")
    index = RunStore.index
    monkeypatch.setattr(RunStore, "index", lambda store: {} if store is oracle else index(store))
    assert all(moved.text for moved in compare(whole, oracle).gained)


@pytest.mark.parametrize("limit", [{}, {"clips": 2}])
def test_the_data_of_the_common_samples_are_held_against_each_other(
    tmp_path: Path, limit: dict[str, int]
) -> None:
    """A run on another machine, of a part of the samples, whose frames were stored anew."""
    stores = [
        fake_run(tmp_path / "here"), fake_run(tmp_path / "there", limit=limit),
    ]  # fmt: skip
    for store, colour in zip(stores, (10, 20), strict=True):
        data = FakeDataset(root=store.root.parents[1] / "data")
        for path in (path for clip in data.clips() for path in clip.frame_paths):
            Image.new("RGB", (32, 24), (colour, 0, 0)).save(path)
        work_on(store)
        score_run(store)
    found = compare(*stores)
    assert bool(found.unpaired) is bool(limit)
    assert "pixels of frames" in found.config
    assert not any("texts" in key for key in found.config)
