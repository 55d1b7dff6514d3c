"""``refseg compare`` as it is printed: words, corrected p-values, and no interval where there is none."""

from pathlib import Path

import pytest

from refseg_bench.cli import main
from refseg_bench.report.html import home
from refseg_bench.run.store import RunStore, runs_in
from refseg_bench.scoring.stats import holm


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
    found = holm([0.01, nan, 0.02])
    assert found[0] == 0.02
    assert found[1] != found[1]
    assert found[2] == 0.02


def test_pages_of_other_runs_lie_in_another_folder(pair: dict[int, list[str]]) -> None:
    first, second = (RunStore.open(Path(root)) for root in pair[4])
    assert home([first]) == first.root / "report"
    both = home([first, second])
    assert both == home([second, first])
    assert both != home([first, first])
    assert both.parent == first.root.parent


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
