"""Cluster bootstrap and paired comparison."""

import numpy as np
import pytest

from refseg_bench.scoring.protocols.base import ratio
from refseg_bench.scoring.protocols.image import RefcocoOverall
from refseg_bench.scoring.protocols.rvos import RvosExpression
from refseg_bench.scoring.stats import Bootstrap, _quantile, cluster_sums, codes_of, difference, intervals

PROTOCOL = RvosExpression()


def table(rng, clusters, per, spread=0.0):
    names = [f"c{c}" for c in range(clusters) for _ in range(per)]
    level = np.repeat(rng.normal(0.6, spread, clusters), per)
    j = level + rng.normal(0, 0.05, len(names))
    values = {"J": j, "F": j + 0.01, "J&F": j + 0.005}
    return PROTOCOL.terms(values, {}), names


def test_the_point_is_the_plain_mean():
    terms, names = table(np.random.default_rng(0), 20, 5)
    got = intervals(terms, names, PROTOCOL.combine, Bootstrap(100))
    assert got["J"].value == terms["J"].mean()


def test_the_interval_matches_resampling_written_as_loops():
    rng = np.random.default_rng(1)
    terms, names = table(rng, 30, 3, spread=0.1)
    got = intervals(terms, names, PROTOCOL.combine, Bootstrap(4000, seed=5))["J"]
    groups = terms["J"].reshape(30, 3)
    means = [groups[rng.integers(0, 30, 30)].mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert got.low == pytest.approx(low, abs=0.004)
    assert got.high == pytest.approx(high, abs=0.004)


def test_quantiles_are_those_of_numpy_to_the_last_bit():
    rng = np.random.default_rng(5)
    for n in (1, 2, 3, 40, 1999, 2000):
        values = np.sort(
            np.concatenate([rng.normal(size=n), rng.integers(0, 3, n)]) * 10.0 ** rng.integers(-9, 9)
        )
        for share in (0.0, 0.005, 0.025, 0.25, 0.5, 0.975, 1.0, *rng.random(20)):
            assert _quantile(values, share) == np.quantile(values, share)


def test_clusters_widen_the_interval():
    terms, names = table(np.random.default_rng(2), 40, 25, spread=0.1)
    clustered = intervals(terms, names, PROTOCOL.combine, Bootstrap(1000))["J"]
    alone = intervals(terms, [str(i) for i in range(len(names))], PROTOCOL.combine, Bootstrap(1000))["J"]
    assert clustered.high - clustered.low > 2.5 * (alone.high - alone.low)


def test_coverage_of_the_interval():
    """About 95 % of intervals hold the true mean (0.6)."""
    held = 0
    for seed in range(120):
        terms, names = table(np.random.default_rng(1000 + seed), 40, 3, spread=0.1)
        got = intervals(terms, names, PROTOCOL.combine, Bootstrap(400, seed=seed))["J"]
        held += got.low <= 0.6 <= got.high
    assert 104 <= held <= 120


def test_the_seed_decides_everything():
    terms, names = table(np.random.default_rng(3), 12, 2)
    first, again, other = (
        intervals(terms, names, PROTOCOL.combine, Bootstrap(300, seed=s))["F"] for s in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_ratios_are_resampled_as_ratios():
    rng = np.random.default_rng(4)
    inter = rng.integers(1, 100, 60).astype(float)
    union = inter + rng.integers(1, 100, 60)
    protocol = RefcocoOverall()
    terms = protocol.terms({"I": inter, "U": union, "IoU": inter / union}, {})
    names = [str(i // 3) for i in range(60)]
    got = intervals(terms, names, protocol.combine, Bootstrap(3000))["oIoU"]
    assert got.value == inter.sum() / union.sum()
    groups_i, groups_u = inter.reshape(20, 3), union.reshape(20, 3)
    picks = rng.integers(0, 20, (3000, 20))
    ratios = groups_i[picks].sum((1, 2)) / groups_u[picks].sum((1, 2))
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert got.low == pytest.approx(low, abs=0.01)
    assert got.high == pytest.approx(high, abs=0.01)


def test_one_cluster_has_no_interval():
    terms, _ = table(np.random.default_rng(0), 1, 5)
    got = intervals(terms, ["a"] * 5, PROTOCOL.combine, Bootstrap(100))["J"]
    assert np.isnan(got.low)
    assert np.isnan(got.high)


def test_equal_runs_differ_by_nothing():
    terms, names = table(np.random.default_rng(5), 20, 4)
    got = difference(terms, terms, names, PROTOCOL.combine, Bootstrap(200))["J"]
    assert (got.value, got.low, got.high, got.p) == (0, 0, 0, 1)


def test_a_clear_gain_is_significant_and_p_is_a_sign_flip_test():
    rng = np.random.default_rng(6)
    first, names = table(rng, 12, 4)
    gain = np.repeat(rng.normal(0.02, 0.02, 12), 4)
    second = {**first, "J": first["J"] + gain}
    got = difference(first, second, names, PROTOCOL.combine, Bootstrap(4000, seed=1))["J"]
    assert got.value == pytest.approx(gain.mean(), abs=1e-12)
    per_clip = gain.reshape(12, 4).mean(1)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 12)).reshape(12, -1)
    exact = (abs(per_clip @ signs / 12) >= abs(per_clip.mean()) - 1e-12).mean()
    assert got.p == pytest.approx(exact, abs=0.02)
    assert (got.units, got.clusters) == (48, 12)
    assert got.low < got.value < got.high


def test_null_p_values_are_uniform():
    ps = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        first, names = table(rng, 15, 2)
        second = {k: v + rng.normal(0, 0.02, len(v)) if k == "J" else v for k, v in first.items()}
        ps.append(difference(first, second, names, PROTOCOL.combine, Bootstrap(200, seed=seed))["J"].p)
    assert np.mean(np.array(ps) <= 0.05) < 0.11
    assert 0.4 < np.mean(ps) < 0.6


def test_sums_per_cluster_keep_the_order_of_appearance():
    codes = codes_of(["b", "a", "b"])
    assert codes.tolist() == [0, 1, 0]
    assert cluster_sums({"x": np.array([1.0, 2.0, 4.0])}, codes).tolist() == [[5.0], [2.0]]


def test_a_swap_without_a_value_is_no_evidence():
    """Of a ratio whose bottom the answers make, a swap may leave nothing to divide by."""
    first = {"I": np.array([0.0, 3.0]), "U": np.array([0.0, 4.0])}
    second = {"I": np.array([9.0, 0.0]), "U": np.array([9.0, 0.0])}

    def combine(sums):
        return {"R": ratio(sums["I"], sums["U"])}

    found = difference(first, second, ["a", "b"], combine, Bootstrap(400))["R"]
    # Half of all swaps change nothing or everything; the others leave one run without a value.
    assert found.p == 1
