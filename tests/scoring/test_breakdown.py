"""Facts of targets, scores by attribute, and two runs compared."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from refseg_bench.config.components import open_protocol
from refseg_bench.errors import ScoreError, StoreError
from refseg_bench.report.compare import differences, paired
from refseg_bench.scoring.score import Options, score
from refseg_bench.scoring.stats import Bootstrap
from refseg_bench.scoring.table import ScoreTable, _arrow, breakdown, group_of, target_facts
from refseg_bench.types import Clip, Score, Target
from tests.scoring.worlds import Guesses, LookupSource, World, track

FAST = Bootstrap(200)


def facts(masks, objects=1):
    masks = np.asarray(masks, bool)
    clip = Clip("c", ("x",) * len(masks), tuple(map(str, range(len(masks)))), masks.shape[1:])
    union = track(masks)
    return target_facts(clip, Target(clip.size, len(masks), (union,) * objects), union)


def test_facts_by_hand():
    masks = np.zeros((4, 30, 40), bool)
    masks[0, 5:15, 5:15] = True
    masks[1, 8:18, 9:19] = True  # moves by (3, 4) = 5 pixels, the diagonal is 50
    masks[3, 0:10, 0:20] = True
    got = facts(masks, objects=2)
    assert got == {"objects": 2, "size": (100 + 100 + 200) / 3 / 1200, "clip_length": 4, "motion": 0.1}
    assert facts(np.zeros((2, 5, 5))) == {"objects": 1, "size": 0.0, "clip_length": 2, "motion": None}
    assert facts(np.ones((1, 5, 5)))["size"] == 1


@pytest.mark.parametrize(
    ("attribute", "value", "group"),
    [("objects", 0, "0"), ("objects", 7, "3 or more"), ("size", 0.0, "absent"),
     ("size", 0.01, "small, up to 1 %"),
     ("size", 0.5, "large, above 10 %"), ("clip_length", 1, "image"), ("clip_length", 81, "above 80 frames"),
     ("motion", None, "unknown"), ("motion", 0.5, "fast, above 1 %"), ("type", "referring", "referring"),
     ("level", 1, "1"), ("level", 1.0, "1"), ("level", np.float64(2), "2"), ("level", 1.5, "1.5"),
     ("level", float("inf"), "inf"), ("level", True, "True")],
)  # fmt: skip
def test_groups(attribute, value, group):
    assert group_of(attribute, value) == group


def scored(noise=1):
    world = World()
    return score(world, [LookupSource(Guesses(world, noise))], [open_protocol("rvos-expr")], Options(jobs=1))[
        0
    ]


def test_groups_make_up_the_whole():
    got = scored()
    for attribute in ("objects", "size", "clip_length", "motion", "type"):
        parts = breakdown(got.protocol, got.table, attribute, FAST)
        assert sum(n for n, _ in parts.values()) == got.result.n
        mean = sum(n * m["J"].value for n, m in parts.values()) / got.result.n
        assert mean == pytest.approx(got.result.metrics["J"].value, abs=1e-12)
    assert list(breakdown(got.protocol, got.table, "objects", FAST)) == ["0", "1", "2"]
    with pytest.raises(ScoreError, match="no attribute 'colour'"):
        breakdown(got.protocol, got.table, "colour", FAST)


def test_runs_are_paired_by_unit():
    first, second = scored(1), scored(0)
    got = differences(first.protocol, *paired(first.table, second.table), FAST)["J"]
    assert got.value == pytest.approx(1 - first.result.metrics["J"].value, abs=1e-12)
    assert got.units == 12
    part = second.table.select(range(6))
    assert differences(first.protocol, *paired(first.table, part), FAST)["J"].units == 6
    with pytest.raises(ScoreError, match="no unit in common"):
        paired(first.table, ScoreTable())


def test_columns_are_written_as_pyarrow_would_make_them_of_lists():
    columns = ["a", None], [1, None, 2], [1, None, 2.5], [True, None, False], [None, None], [1, 2.0], []
    for cells in map(list, columns):
        expected = pa.array(cells)
        assert _arrow(cells).equals(expected), cells
    assert _arrow([1 << 63, None, -1]).to_pylist() == ["9223372036854775808", None, "-1"]
    assert _arrow([[1], None, "b"]).to_pylist() == ["[1]", None, "b"]


def test_tables_survive_parquet(tmp_path):
    got = scored()
    got.table.write_parquet(tmp_path / "t.parquet")
    back = ScoreTable.read_parquet(tmp_path / "t.parquet")
    assert back.units == got.table.units
    assert back.clusters == got.table.clusters
    assert all((back.values[k] == v).all() for k, v in got.table.values.items())
    assert back.attrs == got.table.attrs
    again = breakdown(got.protocol, back, "size", FAST)
    assert again == breakdown(got.protocol, got.table, "size", FAST)
    got.table.select([0, 0]).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(StoreError, match="stands twice"):
        ScoreTable.read_parquet(tmp_path / "t.parquet")


def test_a_value_some_units_lack_is_nan():
    table = ScoreTable()
    table.extend([Score("a", "c", {"J": 1.0}, {"x": 1}), Score("b", "c", {"F": 2.0}, {"y": "z"})])
    assert np.isnan(table.values["F"][0])
    assert np.isnan(table.values["J"][1])
    assert table.attrs == {"x": [1, None], "y": [None, "z"]}


MILLION = """
import sys, time
import numpy as np
from refseg_bench.config.components import open_dataset, open_protocol
from refseg_bench.scoring.stats import Bootstrap
from refseg_bench.scoring.table import ScoreTable
from refseg_bench.scoring.sources import Coverage
from refseg_bench.scoring.score import conclude
from refseg_bench.types import Score
n, start = int(sys.argv[1]), time.process_time()
rng = np.random.default_rng(0)
table = ScoreTable()
for clip in range(n // 20):
    j = rng.random(20)
    table.extend(Score(f"clip{clip:06d}/{e}", f"clip{clip:06d}", {"J&F": v, "J": v, "F": v},
                       {"type_id": e % 3, "objects": e % 4, "size": v, "frames_counted": 60})
                 for e, v in enumerate(j.tolist()))
made = time.process_time()
rules, truth = open_protocol("rvos-expr"), open_dataset("shapes")
result = conclude(rules, truth, table, Coverage(expected=n), Bootstrap(1000))
assert abs(result.metrics["J"].value - table.values["J"].mean()) < 1e-12
# ru_maxrss of a child starts at its parent's peak; this mark starts at its own.
peak = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")) / 1024
print(time.process_time() - start, peak)
"""


@pytest.mark.slow
def test_many_units_stay_small():
    """100,000 units: memory per unit bounds what a million would take (2 GB)."""
    done = subprocess.run(
        [sys.executable, "-c", MILLION, "100000"], capture_output=True, text=True, check=True
    )
    _, peak = map(float, done.stdout.split())
    assert peak < 100 + 0.1 * (2000 - 100)
