"""Object protocols against vos-benchmark, TrackEval and DAVIS' rules written down once more."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment
from trackeval import Evaluator as TrackEvaluator
from trackeval.datasets import DAVIS
from trackeval.metrics import JAndF
from vos_benchmark.benchmark import benchmark

from refseg_bench.config.components import open_protocol
from refseg_bench.datasets.id_maps import IdMaps
from refseg_bench.errors import DataError, ScoreError
from refseg_bench.scoring.foreign import FolderPredictions
from refseg_bench.scoring.protocols.objects import assign, decay
from refseg_bench.scoring.score import Options, score
from refseg_bench.scoring.sources import IncompleteError
from tests.scoring.worlds import blobs

SIZE = (48, 64)


def id_maps(seed, *, length=8, objects=3, void=False, late=True, ids=None):
    rng = np.random.default_rng(seed)
    maps = np.zeros((length, *SIZE), np.uint8)
    for k in range(objects):
        masks = blobs(rng, SIZE, length, late=2 if late and k == objects - 1 else 0)
        maps[masks] = (ids or range(1, objects + 1))[k]
    if void:
        maps[:, :6, :20] = 255
    return maps


def guessed(seed, maps, *, swap=True, extra=False, fewer=False):
    """A prediction: shifted maps, ids permuted, perhaps an extra or a missing object."""
    rng = np.random.default_rng(seed)
    moved = np.roll(np.where(maps == 255, 0, maps), tuple(rng.integers(-3, 4, 2)), (1, 2))
    out = moved.copy()
    ids = [i for i in np.unique(moved) if i]
    if swap and len(ids) > 1:
        for old, new in zip(ids, np.roll(ids, 1), strict=True):
            out[moved == old] = new
    if fewer and ids:
        out[out == max(ids)] = 0
    if extra:
        out[3:, 30:36, 40:50] = max(ids, default=0) + 1
    return out


def write(root, videos):
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [7] * 756
    for name, maps in videos.items():
        folder = Path(root) / name
        folder.mkdir(parents=True)
        for t, labels in enumerate(maps):
            image = Image.fromarray(labels, "P")
            image.putpalette(palette)
            image.save(folder / f"{t:05d}.png")


@pytest.fixture
def tree(tmp_path):
    """(truth folder, prediction folder) with clips of several kinds."""
    truth = {
        "plain": id_maps(1),
        "void": id_maps(2, void=True),
        "long": id_maps(3, length=11, objects=2),
        "gap": id_maps(4, objects=2, ids=[1, 3], late=False),
    }
    answer = {
        "plain": guessed(1, truth["plain"], extra=True),
        "void": guessed(2, truth["void"]),
        "long": guessed(3, truth["long"], swap=False),
        "gap": guessed(4, truth["gap"], fewer=True),
    }
    write(tmp_path / "gt", truth)
    write(tmp_path / "pred", answer)
    return tmp_path / "gt", tmp_path / "pred"


def scored(tree, protocol, **options):
    dataset, source = IdMaps(tree[0]), FolderPredictions(tree[1])
    return score(dataset, [source], [open_protocol(protocol)], Options(jobs=1, **options))[0]


@pytest.mark.parametrize("every", [False, True])
def test_vosb_equals_vos_benchmark(tree, every):
    with contextlib.redirect_stdout(io.StringIO()):
        jf, j, f, per_object = benchmark(
            [str(tree[0])], [str(tree[1])], num_processes=1, verbose=False, skip_first_and_last=not every
        )
    got = scored(tree, f"vosb:all_frames={str(every).lower()}")
    metrics = {k: v.value for k, v in got.result.metrics.items()}
    assert metrics["J&F"] == pytest.approx(jf[0], abs=1e-11)
    assert metrics["J"] == pytest.approx(j[0], abs=1e-11)
    assert metrics["F"] == pytest.approx(f[0], abs=1e-11)
    assert got.result.details["printed"]["J"] == round(metrics["J"], 1)
    oracle = {f"{video}/{k}": (js[k], fs[k]) for video, (js, fs) in per_object[0].items() for k in js}
    units = dict(
        zip(got.table.units, zip(got.table.values["J"], got.table.values["F"], strict=True), strict=True)
    )
    assert units.keys() == oracle.keys()
    for unit, pair in oracle.items():
        assert units[unit] == pytest.approx(pair, abs=1e-11)


@pytest.mark.parametrize("match", ["J", "J&F"])
def test_trackeval_equals_trackeval(tree, tmp_path, match):
    home = tmp_path / "trackers" / "mine"
    home.mkdir(parents=True)
    (home / "data").symlink_to(tree[1])
    config = {
        "GT_FOLDER": str(tree[0]), "TRACKERS_FOLDER": str(tmp_path / "trackers"), "PRINT_CONFIG": False,
    }  # fmt: skip
    quiet = {"PRINT_RESULTS": False, "PRINT_CONFIG": False, "TIME_PROGRESS": False, "PLOT_CURVES": False,
             "OUTPUT_SUMMARY": False, "OUTPUT_DETAILED": False, "OUTPUT_EMPTY_CLASSES": False}  # fmt: skip
    metric = JAndF()
    metric.optim_type = match
    with contextlib.redirect_stdout(io.StringIO()):
        found, _ = TrackEvaluator(quiet).evaluate([DAVIS(config)], [metric])
    oracle = found["DAVIS"]["mine"]["COMBINED_SEQ"]["general"]["JAndF"]
    rule = {"J": "hungarian_j", "J&F": "hungarian_jf"}[match]
    metrics = {k: v.value for k, v in scored(tree, f"trackeval:match={rule}").result.metrics.items()}
    names = {"J-Mean": "J", "F-Mean": "F", "J&F": "J&F", "J-Recall": "J-Recall", "F-Recall": "F-Recall",
             "J-Decay": "J-Decay", "F-Decay": "F-Decay"}  # fmt: skip
    for theirs, ours in names.items():
        assert metrics[ours] == pytest.approx(oracle[theirs], abs=1e-12), theirs


def frame_jf(truth, answer):
    """J and F of one frame from TrackEval's functions."""
    from refseg_bench.types import encode_rle

    coded = [[[{"size": list(SIZE), "counts": encode_rle(m)}]] for m in (truth, answer)]
    return JAndF._compute_j(*coded, 1, 1, 1)[0, 0, 0], JAndF._compute_f(*coded, 0, 0, 0.008)[0]


def read(folder):
    return np.stack([np.array(Image.open(p)) for p in sorted(folder.glob("*.png"))])


def davis_unsupervised(gt, res):
    """DAVIS' rules once more: rows of (J, F) per frame in the order of the matched proposals."""
    void = gt == 255
    gt = np.where(void, 0, gt)
    objects = [(gt == k + 1) & ~void for k in range(int(gt[0].max()))]
    proposals = [(res == k + 1) & ~void for k in range(int(res.max()))]
    while len(proposals) < len(objects):
        proposals.append(np.zeros_like(void))
    values = np.array(
        [[[frame_jf(g, p) for g, p in zip(o, q, strict=True)] for o in objects] for q in proposals]
    )
    rows, columns = linear_sum_assignment(-values.mean(axis=2).mean(axis=2))
    return [(c + 1, values[r, c]) for r, c in zip(rows, columns, strict=True)]


@pytest.mark.parametrize("seed", range(60))
def test_assignment_equals_scipys(seed):
    rng = np.random.default_rng(seed)
    objects = int(rng.integers(1, 5))
    merit = rng.random((objects + int(rng.integers(0, 4)), objects))
    if seed % 3 == 0:
        merit = merit.round(1)
    rows, columns = linear_sum_assignment(-merit)
    assert assign(merit) == (rows.tolist(), columns.tolist())


def test_davis_unsup_equals_its_rules(tree):
    got = scored(tree, "davis-unsup", detail=True)
    units = dict(zip(got.table.units, got.table.frames, strict=True))
    means = []
    for video in ("gap", "long", "plain", "void"):
        for number, rows in davis_unsupervised(read(tree[0] / video), read(tree[1] / video)):
            frames = units[f"{video}/{number}"]
            assert [[v["J"], v["F"]] for v in frames.values()] == pytest.approx(rows, abs=1e-12)
            means.append(rows.mean(axis=0))
    assert len(means) == len(units)
    j, f = np.mean(means, axis=0)
    assert got.result.metrics["J"].value == pytest.approx(j, abs=1e-12)
    assert got.result.metrics["J&F"].value == pytest.approx((j + f) / 2, abs=1e-12)


def test_davis_semi_equals_its_rules(tree, tmp_path):
    truth = {"a": id_maps(5), "b": id_maps(6, void=True, late=False)}
    answer = {"a": np.where(guessed(5, truth["a"], swap=False) > 2, 0, guessed(5, truth["a"], swap=False)),
              "b": guessed(6, truth["b"], fewer=True)}  # fmt: skip
    write(tmp_path / "g", truth)
    write(tmp_path / "p", answer)
    got = scored((tmp_path / "g", tmp_path / "p"), "davis-semi")
    expected = {}
    for video, maps in truth.items():
        count = int(np.where(maps[0] == 255, 0, maps[0]).max())
        for k in range(1, count + 1):
            rows = [frame_jf(g == k, p == k) for g, p in zip(maps[1:-1], answer[video][1:-1], strict=True)]
            expected[f"{video}/{k}"] = np.array(rows)
    assert got.table.units == list(expected)
    values = got.table.values
    for row, frames in enumerate(expected.values()):
        assert values["J"][row] == pytest.approx(frames[:, 0].mean(), abs=1e-12)
        assert values["F"][row] == pytest.approx(frames[:, 1].mean(), abs=1e-12)
        assert values["J-Recall"][row] == (frames[:, 0] > 0.5).mean()
        n = len(frames)
        ids = (np.round(np.linspace(1, n, 5) + 1e-10) - 1).astype(int)
        first, last = frames[ids[0] : ids[1] + 1], frames[ids[3] : ids[4] + 1]
        assert values["F-Decay"][row] == pytest.approx(first[:, 1].mean() - last[:, 1].mean(), abs=1e-12)
    # The object that appears in frame 2 is the third id of clip a and unknown in frame 0: not an object.
    assert "a/3" not in expected


def test_a_davis_tree_says_what_it_takes_and_refuses_what_is_not_there(tmp_path):
    for top, videos in (("Annotations/480p", "ab"), ("Annotations_unsupervised/480p", "abc")):
        write(tmp_path / top, {name: id_maps(1) for name in videos})
    (tmp_path / top / "a" / "._00000.png").write_bytes(b"litter of a Mac")
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    lists = {"val": "b\n", "test-dev": "a\nz\n", "none": "\n"}
    for name, text in lists.items():
        (tmp_path / "ImageSets" / "2017" / f"{name}.txt").write_text(text)
    found = IdMaps(tmp_path)
    assert [c.id for c in found.clips()] == ["a", "b"]
    for told in ("Annotations/480p, 2 videos", "none, test-dev, val", "Annotations_unsupervised/480p"):
        assert told in found.taken()
    assert [c.id for c in IdMaps(tmp_path, "val").clips()] == ["b"]
    assert "1 video of" in IdMaps(tmp_path, "val").taken()
    other = IdMaps(tmp_path / "Annotations_unsupervised" / "480p", "val")
    assert [c.id for c in other.clips()] == ["b"]
    assert len(IdMaps(tmp_path / "Annotations_unsupervised").clips()[0]) == 8
    for split, told in (
        ("vla", "no list of the split 'vla'"),
        ("test-dev", "no id maps: z"),
        ("none", "no video"),
    ):
        with pytest.raises(DataError, match=told):
            IdMaps(tmp_path, split).clips()


def test_a_video_whose_name_is_in_another_encoding_is_not_left_out(tmp_path):
    write(tmp_path, {"a": id_maps(7), "caf\udce9": id_maps(7)})
    with pytest.raises(DataError, match="name holds .* bytes that are no UTF-8"):
        IdMaps(tmp_path).clips()


def test_davis_semi_aborts_on_an_id_too_many(tmp_path):
    write(tmp_path / "g", {"a": id_maps(7, objects=1, late=False)})
    write(tmp_path / "p", {"a": id_maps(7, objects=1, late=False) * 255})
    with pytest.raises(ScoreError, match="id 255 is predicted"):
        scored((tmp_path / "g", tmp_path / "p"), "davis-semi")


def test_vosb_tells_the_predicted_ids_it_ignores(tmp_path):
    write(tmp_path / "g", {"a": id_maps(7, objects=1, late=False)})
    write(tmp_path / "p", {"a": id_maps(7, objects=1, late=False) * 255})
    got = scored((tmp_path / "g", tmp_path / "p"), "vosb")
    assert got.result.metrics["J"].value == 0
    assert got.notes["ignored_ids"] == "255 (not in the truth)"


def test_davis_unsup_aborts_above_20_proposals(tmp_path):
    write(tmp_path / "g", {"a": id_maps(7, objects=1, late=False)})
    write(tmp_path / "p", {"a": id_maps(7, objects=1, late=False) * 21})
    with pytest.raises(ScoreError, match="21 proposals"):
        scored((tmp_path / "g", tmp_path / "p"), "davis-unsup")


def test_an_unmatched_object_earns_one_where_it_is_absent(tmp_path):
    maps = np.zeros((4, *SIZE), np.uint8)
    maps[:, 5:20, 5:20] = 1
    maps[0, 30:40, 30:40] = 2
    write(tmp_path / "g", {"a": maps})
    write(tmp_path / "p", {"a": np.where(maps == 1, 1, 0).astype(np.uint8)})
    for protocol in ("davis-unsup", "trackeval"):
        got = scored((tmp_path / "g", tmp_path / "p"), protocol)
        assert got.table.values["J"].tolist() == [1.0, 0.75]


def test_void_makes_no_boundary_of_its_own(tmp_path):
    """Both masks are zeroed on void before the boundary: a prediction there costs nothing."""
    maps = np.zeros((3, *SIZE), np.uint8)
    maps[:, 10:30, 10:40] = 1
    maps[:, 10:30, 30:50] = 255
    answer = np.zeros_like(maps)
    answer[:, 10:30, 10:50] = 1
    write(tmp_path / "g", {"a": maps})
    write(tmp_path / "p", {"a": answer})
    got = scored((tmp_path / "g", tmp_path / "p"), "davis-unsup")
    assert got.result.metrics["J&F"].value == 1
    assert scored((tmp_path / "g", tmp_path / "p"), "davis-semi").result.metrics["J"].value < 0.6


def test_late_objects_part_the_tools(tmp_path):
    """DAVIS counts the frames before an object appears as 1, vos-benchmark starts when it is seen."""
    maps = np.zeros((10, *SIZE), np.uint8)
    maps[:, 2:9, 2:9] = 2
    maps[6:, 20:40, 20:40] = 1
    answer = maps.copy()
    answer[6:, 20:40, 20:30] = 0
    write(tmp_path / "g", {"a": maps})
    write(tmp_path / "p", {"a": answer})
    pair = (tmp_path / "g", tmp_path / "p")
    semi, vosb = scored(pair, "davis-semi"), scored(pair, "vosb")
    assert semi.table.values["J"].tolist() == [(5 + 3 * 0.5) / 8, 1]
    assert vosb.table.values["J"].tolist() == [50, 100]


def test_first_and_last_frame(tmp_path):
    maps = np.zeros((5, *SIZE), np.uint8)
    maps[:, 10:20, 10:20] = 1
    answer = maps.copy()
    answer[[0, -1]] = 0
    write(tmp_path / "g", {"a": maps})
    write(tmp_path / "p", {"a": answer})
    pair = (tmp_path / "g", tmp_path / "p")
    assert scored(pair, "davis-semi").result.metrics["J"].value == 1
    assert scored(pair, "davis-unsup").result.metrics["J"].value == 0.6


@pytest.mark.parametrize("protocol", ["davis-semi", "davis-unsup", "trackeval"])
def test_missing_clip_or_frame_aborts(tree, protocol):
    for path in (tree[1] / "long").glob("00004.png"):
        path.unlink()
    with pytest.raises(IncompleteError, match="long: frames 00004"):
        scored(tree, protocol)
    assert not any(u.startswith("long") for u in scored(tree, "trackeval", partial=True).table.units)


def test_vosb_skips_a_missing_clip_but_not_a_missing_frame(tree):
    for path in (tree[1] / "long").iterdir():
        path.unlink()
    got = scored(tree, "vosb")
    assert got.coverage.missing == ["long"]
    (tree[1] / "plain" / "00003.png").unlink()
    with pytest.raises(IncompleteError, match="plain: frames 00003"):
        scored(tree, "vosb")


def test_vosb_does_not_need_the_first_and_last_frame(tree):
    whole = scored(tree, "vosb")
    for name in ("00000.png", "00007.png"):
        (tree[1] / "plain" / name).unlink()
    less = scored(tree, "vosb")
    assert less.coverage.missing == []
    assert less.table.units == whole.table.units
    assert less.table.values["J"].tolist() == whole.table.values["J"].tolist()
    with pytest.raises(IncompleteError, match="plain: frames 00000, 00007"):
        scored(tree, "vosb:all_frames=true")


def test_trackeval_wants_equal_frame_counts(tree):
    (tree[1] / "plain" / "00000.png").rename(tree[1] / "plain" / "00099.png")
    (tree[1] / "plain" / "00000.png").write_bytes((tree[1] / "plain" / "00001.png").read_bytes())
    with pytest.raises(ScoreError, match="00099"):
        scored(tree, "trackeval")


def test_another_size_aborts(tree):
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(tree[1] / "plain" / "00003.png")
    with pytest.raises(ScoreError, match="no evaluator resizes"):
        scored(tree, "vosb")


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 100, 256])
def test_decay_rules_agree_up_to_256_frames(length):
    values = np.random.default_rng(length).random(length)
    assert decay(values, "exact") == decay(values, "uint8")


def test_decay_breaks_in_uint8_above_256_frames():
    values = np.linspace(1, 0, 300)
    assert decay(values, "exact") == pytest.approx(values[:76].mean() - values[224:].mean())
    assert np.isnan(decay(values, "uint8"))


@pytest.mark.slow
def test_processes_change_nothing(tree):
    alone, many = scored(tree, "davis-unsup"), None
    dataset, source = IdMaps(tree[0]), FolderPredictions(tree[1])
    many = score(dataset, [source], [open_protocol("davis-unsup")], Options(jobs=2))[0]
    assert many.table.units == alone.table.units
    assert all((many.table.values[k] == v).all() for k, v in alone.table.values.items())


# ── clips in which a protocol counts nothing ─────────────────────────────────


def binary(length=5, first=0):
    maps = np.zeros((length, *SIZE), np.uint8)
    maps[first:, 5:20, 5:20] = 255
    return maps


def late(length=5):
    return binary(length, first=2) // np.uint8(255)


def void(length=5):
    return np.full((length, *SIZE), 255, np.uint8)


def nothing(length=5):
    return np.zeros((length, *SIZE), np.uint8)


@pytest.mark.parametrize(
    ("protocol", "clip", "why"),
    [
        ("davis-semi", binary(2) // 255, "2 frames, of which the first and the last don't count"),
        ("davis-semi", binary(1) // 255, "1 frames, of which the first and the last don't count"),
        ("vosb", binary(2) // 255, "2 frames, of which the first and the last don't count"),
        ("davis-semi", binary(), "255, which is void"),
        ("davis-unsup", binary(), "255, which is void"),
        ("trackeval", binary(), "255, which is void"),
        ("davis-unsup", void(), "255, which is void"),
        (
            "davis-semi",
            late(),
            "only objects of the truth's first frame count, and it has none (1 come later)",
        ),
        ("davis-unsup", late(), "only objects of the truth's first frame count, and it has none"),
        ("davis-unsup", nothing(), "its truth has no object"),
        ("trackeval", nothing(), "its truth has no object"),
        ("vosb", nothing(), "the truth has no object in the scored frames"),
    ],
)
def test_a_clip_that_counts_nothing_is_named_or_refused(tmp_path, capsys, protocol, clip, why):
    from refseg_bench import cli

    for name, videos in (("two", {"a": clip, "b": id_maps(4, late=False)}), ("alone", {"a": clip})):
        write(tmp_path / name / "gt", videos)
        write(tmp_path / name / "p", {k: np.where(v == 255, 0, v) for k, v in videos.items()})
        out = tmp_path / "o.json"
        words = ("--predictions", tmp_path / name / "p", "--root", tmp_path / name / "gt", "--json", out)
        code = cli.main(
            ["score", "--dataset", "id_maps", "--protocol", protocol, "-j", "1", *map(str, words)]
        )
        shown, said = capsys.readouterr()
        found = json.loads(out.read_text())[protocol]
        assert why in found["left_out"]["a"]
        assert "left out a: " in shown + said
        if name == "two":
            assert (code, found["n"], found["expected"]) == (0, 3, 3)
            assert found["metrics"]["J"] in (1, 100)
        else:
            assert (code, found["n"], found["metrics"]) == (2, 0, None)


def test_what_is_expected_are_objects_too(tree):
    """Three objects lack with the clip, not one."""
    ids = ("davis-unsup", "trackeval", "vosb")
    whole = [scored(tree, protocol).result.n for protocol in ids]
    for name in ("plain", "gap"):
        for path in (tree[1] / name).glob("*.png"):
            path.unlink()
    (tree[1] / "void" / "00003.png").write_bytes(b"")
    for protocol, objects in zip(ids, whole, strict=True):
        got = scored(tree, protocol, partial=True)
        assert set(got.table.clusters) == {"long"}
        assert (got.result.n < 3, got.result.expected) == (True, objects)
        assert got.coverage.missing == ["gap", "plain"]
        assert "00003.png" in got.coverage.why["void"]


def test_what_aborts_the_tool_is_left_out_by_name_with_partial(tree):
    Image.fromarray(np.full(SIZE, 30, np.uint8)).save(tree[1] / "plain" / "00003.png")
    torn = tree[1] / "gap" / "00002.png"
    torn.write_bytes(torn.read_bytes()[:-30])
    with pytest.raises(ScoreError, match="30 proposals|checksum"):
        scored(tree, "davis-unsup")
    got = scored(tree, "davis-unsup", partial=True)
    assert set(got.table.clusters) == {"void", "long"}
    assert "30 proposals" in got.coverage.why["plain"]
    assert "00002.png" in got.coverage.why["gap"]
    assert got.result.failed == 2
