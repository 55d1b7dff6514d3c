"""RefCOCO-M: Parquet rows, pictures inside of them, and the same predictions under both truths."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refseg_bench.cli import main
from refseg_bench.datasets import index
from refseg_bench.datasets.base import OtherTruth
from refseg_bench.datasets.files import Damage
from refseg_bench.datasets.pickles import parquet_rows
from refseg_bench.datasets.prepare import prepare
from refseg_bench.datasets.refcoco import RefCoco
from refseg_bench.datasets.refcoco_m import RefCocoM
from refseg_bench.datasets.verify import verify
from tests.quick import quick_first
from tools.writers import (
    ImageRecord,
    write_groundmore_set,
    write_long_rvos_set,
    write_refcoco_m_set,
    write_refcoco_set,
)

from .conftest import frames, video

WORDS = (["The man's dog", "it"], ["that"])


def square(low, high):
    return [[low, low, high, low, high, high, low, high]]


def images(grow=0):
    """Two images of two annotations each, whose squares are larger by ``grow`` on every side."""
    return [
        ImageRecord(
            f"COCO_train2014_{number:012d}.jpg",
            frames(1, seed=number)[0],
            [square(4 - grow, 10 + grow), square(14 - grow, 20 + grow)],
            [([k], words) for k, words in enumerate(WORDS)],
            image_id=number,
        )
        for number in (9, 12)
    ]


def test_rows_become_images_annotations_and_sentences(tmp_path):
    write_refcoco_m_set(tmp_path, images())
    data = RefCocoM(root=tmp_path)
    clip, other = data.clips()
    assert (clip.id, clip.size, other.id) == ("9", (24, 32), "12")
    assert [(e.id, e.text) for e in data.expressions(clip)] == [
        ("1_0", "The man's dog"), ("1_1", "it"), ("2_0", "that"),
    ]  # fmt: skip
    mask = data.target(clip, data.expressions(clip)[0]).union().mask(0)
    assert np.array_equal(np.argwhere(mask).min(0), [4, 4])
    assert mask.sum() == 36
    assert [e.id for e in data.expressions(other)] == ["3_0", "3_1", "4_0"]
    assert RefCocoM(root=tmp_path, text="sent_lower").expressions(clip)[0].text == "the man's dog"


@pytest.mark.slow
def test_prepare_unpacks_the_pictures_of_a_snapshot_or_of_its_files(tmp_path):
    write_refcoco_m_set(tmp_path / "snapshot", images())
    files = sorted((tmp_path / "snapshot/data").iterdir())
    for place, sources in (("a", [tmp_path / "snapshot"]), ("b", files)):
        home, ready = prepare("refcoco_m", sources, tmp_path / place, lambda line: None)
        assert ready == {"val": 2}
        data = RefCocoM(root=home)
        assert verify(data).ok
        assert data.clips()[0].load().shape == (1, 24, 32, 3)
    assert [p.name for p in files] == sorted(p.name for p in (tmp_path / "a").glob("*.parquet"))
    with pytest.raises(Damage, match=r"Nothing given is validation\*"):
        prepare("refcoco_m", [tmp_path / "a/images"], tmp_path / "c", lambda line: None)


def test_pictures_of_coco_do_as_well(tmp_path):
    write_refcoco_set(tmp_path / "refcoco", images(1), image_folder="../images/train2014")
    write_refcoco_m_set(tmp_path / "refcoco_m", images(), pictures=False)
    assert verify(RefCocoM(root=tmp_path / "refcoco_m")).ok


def test_samples_pair_by_image_annotation_and_words(tmp_path):
    write_refcoco_set(tmp_path / "loose", images(1))
    kept = images()
    kept[1].refs.pop()  # as where a mask could not be recovered
    write_refcoco_m_set(tmp_path / "tight", kept)
    pair = RefCoco(root=tmp_path / "loose"), RefCocoM(root=tmp_path / "tight")
    told = OtherTruth(*pair)
    found = {
        (c.id, e.id): told.target(c, e).union().area() for c in told.clips() for e in told.expressions(c)
    }
    # The numbers are RefCOCO's, the masks are not.
    assert found == {
        ("9", "0"): [36],
        ("9", "1"): [36],
        ("9", "2"): [36],
        ("12", "3"): [36],
        ("12", "4"): [36],
    }
    back = OtherTruth(*pair[::-1])
    assert len([e for c in back.clips() for e in back.expressions(c)]) == 5
    assert back.target(back.clips()[0], back.expressions(back.clips()[0])[0]).union().area() == [64]


@pytest.mark.slow
def test_few_bytes_that_stand_for_many_rows_are_refused_in_bounded_memory(tmp_path):
    path = tmp_path / "many.parquet"
    many = pa.ListArray.from_arrays(pa.array([0, 40_000_000], pa.int32()), pa.nulls(40_000_000, pa.int64()))
    pq.write_table(pa.table({"x": many}), path)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from refseg_bench.datasets.pickles import parquet_rows\n"
        "try: list(parquet_rows(Path(sys.argv[1]), ['x']))\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    )
    told = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    kind, megabytes = told.stdout.split()
    assert kind == "Damage"
    assert int(megabytes) < 1500
    assert list(parquet_rows(_plain(path), ["x"])) == [{"x": 1}, {"x": 2}]


def _plain(path):
    pq.write_table(pa.table({"x": [1, 2], "y": ["a", "b"]}), path)
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder of generated sets, and of what their first reader keeps of them; nothing else writes there."""
    folder = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFSEG_DATA", str(folder / "data"))
        write_refcoco_set(folder / "data/refcoco_unc", images(1))
        write_refcoco_m_set(folder / "snapshot", images())
        assert main(["data", "prepare", "refcoco_m", "--from", str(folder / "snapshot")]) == 0
    typed = [("the first", [0], {"type": "dynamic"}), ("the second", [1], {"type": "hybrid"})]
    write_long_rvos_set(
        folder / "data/long_rvos", "valid", [video("a", expressions=typed), video("b", seed=1)]
    )
    asked = [("who?", [0], {"action_start": "1:10", "action_end": "1:11"})]
    write_groundmore_set(folder / "data/groundmore", "test", [video("v_0110_0112", 12, asked)])
    return folder


@pytest.fixture
def home(sets, in_tmp, monkeypatch):
    """An empty folder of a user who has the generated sets, and stores of them as if they were large."""
    monkeypatch.setattr(index, "SMALL", 0)
    monkeypatch.setenv("REFSEG_DATA", str(sets / "data"))
    monkeypatch.setenv("REFSEG_CACHE", str(sets / "cache"))
    return in_tmp


def results(folder):
    found = {}
    for path in folder.glob("runs/*/scores/*/result.json"):
        row = json.loads(path.read_text())
        found[path.parts[-4].rpartition("-")[0], row["protocol"]] = {
            name: round(e["value"], 6) for name, e in row["metrics"].items() if e["value"] is not None
        }
    return found


@pytest.mark.slow
def test_one_command_runs_the_sets_of_today(home, capsys):
    words = ["dataset=long_rvos,groundmore,refcoco_m", "method=oracle,full_frame", "--no-html"]
    assert main(["run", "-m", *words]) == 0
    found = results(home)
    assert found["oracle-long_rvos", "long-rvos@1"] == dict.fromkeys(("J&F", "J", "F", "tIoU", "vIoU"), 1)
    assert found["oracle-groundmore", "groundmore@1"] == dict.fromkeys(("J&F", "J", "F"), 1)
    # 36 of 768 pixels in 6 of 12 frames; a full frame has no boundary.
    assert found["full_frame-groundmore", "groundmore@1"] == {"J": 0.023438, "F": 0.5, "J&F": 0.261719}
    # 64 and 36 … are what RefCOCO has: these are its tight masks.
    assert found["full_frame-refcoco_m", "refcoco-oiou@1"]["oIoU"] == round(36 / 768, 6)
    told = " ".join(capsys.readouterr().out.split())
    assert "long_rvos · long-rvos@1 · J&F by type" in told


@pytest.mark.slow
def test_the_same_predictions_under_both_truths(home, capsys):
    assert main(["run", "-m", "dataset=refcoco_unc,refcoco_m", "method=full_frame", "--no-html"]) == 0
    before = results(home)
    capsys.readouterr()
    (run,) = home.glob("runs/full_frame-refcoco_unc-*")
    assert main(["compare", str(run), "--truth", "refcoco_m"]) == 0
    told = capsys.readouterr().out
    assert f"A = full_frame against refcoco_unc (val) ({run.name})" in told
    assert f"B = full_frame against refcoco_m (val) ({run.name})" in told
    row = next(line.split() for line in told.splitlines() if "mIoU" in line)
    assert row[row.index("mIoU") + 1 :][:3] == ["8.33", "4.69", "-3.65"]  # 64 and 36 of 768
    (other,) = home.glob("runs/full_frame-refcoco_m-*")
    assert main(["compare", str(other), "--truth", "refcoco_unc"]) == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if "mIoU" in line)
    assert row[row.index("mIoU") + 1 :][:3] == ["4.69", "8.33", "+3.65"]
    assert results(home) == before  # a run's scores stay those of its own set


@pytest.mark.parametrize(
    ("more", "told"),
    quick_first(
        [
            (["OTHER", "--truth", "refcoco_m"], "one of the two"),
            ([], "one of the two"),
            (["--truth", "refcoco_m", "--html"], "--truth has none"),
            (["OTHER", "--split", "val"], "go with --truth"),
            (["--truth", "groundmore"], "has no sample of 'refcoco_m'"),
        ]
    ),
)
def test_what_compare_is_not_told_well(home, capsys, more, told):
    assert main(["run", "dataset=refcoco_m", "method=empty", "--no-html"]) == 0
    (run,) = home.glob("runs/*")
    words = [str(run) if word == "OTHER" else word for word in more]
    assert main(["compare", str(run), *words]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_part_of_the_samples_pairs_as_the_whole_does(home, capsys):
    assert main(["run", "dataset=refcoco_unc", "method=full_frame", "limit.clips=1", "--no-html"]) == 0
    (run,) = home.glob("runs/*")
    capsys.readouterr()
    assert main(["compare", str(run), "--truth", "refcoco_m"]) == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if "mIoU" in line)
    assert row[row.index("mIoU") + 1 :][:3] == ["8.33", "4.69", "-3.65"]


def test_text_where_a_picture_should_be_is_no_picture(tmp_path):
    row = {"image_id": [1], "file_name": ["a.jpg"], "samples": [[]], "image": [{"bytes": "not one"}]}
    pq.write_table(pa.table(row), tmp_path / "validation-0.parquet")
    with pytest.raises(Damage, match="holds text"):
        prepare("refcoco_m", [tmp_path / "validation-0.parquet"], tmp_path / "to", lambda line: None)
