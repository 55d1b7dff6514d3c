"""The scoring loop, `rvos-expr` and `refcoco-oiou` against hand calculation and other tools."""

import dataclasses
import multiprocessing

import numpy as np
import pytest
from trackeval.metrics.j_and_f import JAndF

from refseg_bench.datasets.base import LimitedDataset
from refseg_bench.env import cores
from refseg_bench.errors import DataError, ScoreError
from refseg_bench.scoring.protocols.image import Pointing, RefcocoOverall
from refseg_bench.scoring.protocols.rvos import RvosExpression
from refseg_bench.scoring.score import Options, score
from refseg_bench.scoring.sources import IncompleteError
from refseg_bench.scoring.stats import Bootstrap
from refseg_bench.types import HeatPoint, MaskTrack
from tests.scoring.worlds import Guesses, LookupSource, World

ONE = Options(jobs=1, bootstrap=Bootstrap(resamples=200))


def oracle_jf(truth, answer):
    """Per-frame J and F of a sample from TrackEval."""
    coded = [[[{"size": list(t.size), "counts": r}] for r in t.rles] for t in (truth, answer)]
    f = JAndF._compute_f(*coded, 0, 0, 0.008)
    j = JAndF._compute_j(*coded, 1, 1, len(f))[0, 0]
    return j, f


def test_rvos_expr_equals_trackeval_per_frame_and_in_the_mean():
    world = World()
    guesses = Guesses(world)
    (got,) = score(world, [LookupSource(guesses)], [RvosExpression()], Options(jobs=1, detail=True))
    js, fs = [], []
    row = 0
    for clip in world.clips():
        for expression in world.expressions(clip):
            j, f = oracle_jf(world.target(clip, expression).union(), guesses(clip.id)[expression.id].track)
            assert got.table.units[row] == f"{clip.id}/{expression.id}"
            frames = got.table.frames[row]
            assert [v["J"] for v in frames.values()] == pytest.approx(j, abs=1e-12)
            assert [v["F"] for v in frames.values()] == pytest.approx(f, abs=1e-12)
            js.append(np.mean(j))
            fs.append(np.mean(f))
            row += 1
    metrics = got.result.metrics
    assert metrics["J"].value == pytest.approx(np.mean(js), abs=1e-12)
    assert metrics["F"].value == pytest.approx(np.mean(fs), abs=1e-12)
    assert metrics["J&F"].value == pytest.approx((np.mean(js) + np.mean(fs)) / 2, abs=1e-12)
    assert metrics["J"].low < metrics["J"].value < metrics["J"].high
    assert (got.result.n, got.result.failed, got.result.missing) == (12, 0, 0)


def test_the_oracle_scores_exactly_one():
    world = World()
    (got,) = score(world, [LookupSource(Guesses(world, noise=0))], [RvosExpression()], ONE)
    assert {e.value for e in got.result.metrics.values()} == {1.0}


@dataclasses.dataclass
class OnlyHere(World):
    """A set that a second process can't read."""

    def clips(self):
        if multiprocessing.parent_process() is not None:
            raise DataError("not on this node")
        return super().clips()


@pytest.mark.slow
def test_what_a_process_meets_is_told():
    world = OnlyHere(clip_count=5)
    with pytest.raises(DataError, match="not on this node"):
        score(world, [LookupSource(Guesses(world))], [RvosExpression()], Options(jobs=2))


@pytest.mark.slow
@pytest.mark.parametrize("limits", [None, {"clips_limit": 4}])
def test_processes_change_nothing(limits):
    world = World(clip_count=5)
    source = LookupSource(Guesses(world))
    world = world if limits is None else LimitedDataset(world, **limits)
    alone = score(world, [source], [RvosExpression()], ONE)[0]
    many = score(world, [source], [RvosExpression()], Options(jobs=2, bootstrap=ONE.bootstrap))[0]
    assert many.table.units == alone.table.units
    assert many.result == alone.result
    assert all((many.table.values[k] == v).all() for k, v in alone.table.values.items())


def test_a_missing_expression_is_dropped_and_a_missing_clip_is_zero():
    world = World()
    drop = ("set/v0/1", "set/v1/0", "set/v1/1", "set/v1/2")
    source = LookupSource(Guesses(world, drop=drop, gap=("set/v2/0",)))
    lines = []
    (got,) = score(world, [source], [RvosExpression()], ONE, report=lines.append)
    assert lines == ["run: 7 of 12 samples predicted, 0 failed, 4 missing, 1 with missing frames"]
    assert "set/v0/1" not in got.table.units
    assert "set/v2/0" not in got.table.units
    rows = [got.table.units.index(f"set/v1/{e}") for e in range(3)]
    assert (got.table.values["J"][rows] == 0).all()
    assert got.result.details["missing"] == list(drop)
    assert got.result.details["missing_frames"] == {"set/v2/0": ["00002"]}


@pytest.mark.parametrize("protocol", [RvosExpression(), RefcocoOverall()])
def test_strict_scoring_refuses_and_names_what_is_missing(protocol):
    world = World(length=1)
    source = LookupSource(Guesses(world, drop=("set/v0/1",), fail=("set/v1/0",)), name="mine")
    with pytest.raises(IncompleteError) as caught:
        score(world, [source], [protocol], Options(jobs=1, strict=True))
    assert "set/v0/1" in str(caught.value)
    assert "set/v1/0" in str(caught.value)
    assert caught.value.coverage.failed == ["set/v1/0"]
    (got,) = score(world, [source], [protocol], Options(jobs=1, strict=True, partial=True))
    assert got.result.n == 10
    assert (got.result.failed, got.result.missing) == (1, 1)


def test_point_accuracy_needs_no_masks():
    world = World()
    guesses = Guesses(world)

    def points(clip_id):
        return {
            name: dataclasses.replace(
                p, track=MaskTrack(p.track.size, (None,) * len(p.track)), point=HeatPoint(0, 0.5, 0.5)
            )
            for name, p in guesses(clip_id).items()
        }

    (got,) = score(world, [LookupSource(points)], [Pointing()], Options(jobs=1, strict=True))
    assert (got.result.n, got.result.missing, got.coverage.lacking) == (12, 0, 0)
    with pytest.raises(IncompleteError):
        score(world, [LookupSource(points)], [RvosExpression()], Options(jobs=1, strict=True))


def test_hidden_masks_point_to_the_submission():
    world = World(hidden=True)
    with pytest.raises(ScoreError, match="refseg submission"):
        score(world, [LookupSource(Guesses(World()))], [RvosExpression()], ONE)


def test_overall_iou_by_hand():
    world = World(length=1)
    guesses = Guesses(world)
    (got,) = score(world, [LookupSource(guesses)], [RefcocoOverall()], ONE)
    inter, union = [], []
    for clip in world.clips():
        for expression in world.expressions(clip):
            a = world.target(clip, expression).union().mask(0)
            b = guesses(clip.id)[expression.id].track.mask(0)
            inter.append((a & b).sum())
            union.append((a | b).sum())
    iou = [i / u if u else 0.0 for i, u in zip(inter, union, strict=True)]
    metrics = got.result.metrics
    assert metrics["oIoU"].value == pytest.approx(sum(inter) / sum(union), abs=1e-12)
    assert metrics["mIoU"].value == pytest.approx(np.mean(iou), abs=1e-12)
    assert metrics["Pr@0.7"].value == np.mean([x >= 0.7 for x in iou])


def test_runs_and_protocols_are_scored_together():
    world = World(length=1)
    sources = [LookupSource(Guesses(world, noise=n), name=f"run{n}") for n in (0, 1)]
    got = score(world, sources, [RvosExpression(), RefcocoOverall()], ONE)
    assert [(g.source, g.protocol.name) for g in got] == [
        ("run0", "rvos-expr@1"),
        ("run0", "refcoco-oiou@1"),
        ("run1", "rvos-expr@1"),
        ("run1", "refcoco-oiou@1"),
    ]


def test_cores_respect_slurm(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert cores() == 1
