"""Intervals and comparisons that respect how samples hang together.

Expressions of one clip share its pixels, so clips are what is resampled (standard errors that
ignore this are too small by up to a factor of three). Two runs are compared on paired units only.
Metrics that are ratios of sums are resampled as such. Everything is seeded and vectorised: the
units are summed per clip once, and each resample is a row of a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from refseg_bench.types import Estimate, Result

Column = NDArray[np.float64]
Combine = Callable[[Mapping[str, Column]], dict[str, Column]]
#: Resamples are drawn in blocks of about this many weights, so that memory stays flat.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    resamples: int = 2000  #: how many times the clips are drawn with replacement; 0 = no intervals
    level: float = 0.95  #: coverage of the percentile interval
    seed: int = 0  #: of the generator

    @classmethod
    def of(cls, result: Result) -> Self:
        """How a result's intervals were made; the default where an older version didn't tell."""
        made = result.details.get("interval") or {}
        return cls(**{name: type(getattr(cls, name))(value) for name, value in made.items()})


@dataclass(frozen=True)
class Difference:
    """How a run differs from another under one metric, on the units both have."""

    #: first, second: metric of either run.
    first: float
    second: float
    #: low, high: percentile interval of the cluster bootstrap.
    low: float
    high: float
    p: float  #: two-sided p-value of a randomisation test that swaps the runs clip by clip
    #: units, clusters: how many units and clips were paired.
    units: int
    clusters: int

    @property
    def value(self) -> float:
        """The second run's minus the first's."""
        return self.second - self.first


def codes_of(clusters: Sequence[str] | NDArray[np.intp]) -> NDArray[np.intp]:
    """Cluster names as numbers, in order of first appearance.

    >>> codes_of(["a", "b", "a"]).tolist()
    [0, 1, 0]
    """
    if isinstance(clusters, np.ndarray):
        return clusters
    seen: dict[str, int] = {}
    return np.fromiter((seen.setdefault(name, len(seen)) for name in clusters), np.intp, len(clusters))


def cluster_sums(terms: Mapping[str, Column], codes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sums of every term per cluster: array ``(clusters, terms)``."""
    count = int(codes.max()) + 1 if len(codes) else 0
    return np.stack([np.bincount(codes, column, count) for column in terms.values()], axis=1)


def intervals(
    terms: Mapping[str, Column],
    clusters: Sequence[str] | NDArray[np.intp],
    combine: Combine,
    options: Bootstrap,
) -> dict[str, Estimate]:
    """Metrics with percentile intervals from resampling clusters with replacement.

    Args:
        terms: per-unit summands.
        clusters: the cluster (clip) of every unit.
        combine: metrics from sums of the terms, vectorised over rows.
        options: resamples, level and seed.

    Returns:
        One estimate per metric; its bounds are NaN with fewer than two clusters.
    """
    point = {k: float(v) for k, v in combine({k: np.asarray(c.sum()) for k, c in terms.items()}).items()}
    codes = codes_of(clusters)
    sums = cluster_sums(terms, codes)
    if options.resamples < 1 or len(sums) < 2:
        return {name: Estimate(value) for name, value in point.items()}
    drawn: dict[str, list[Column]] = {name: [] for name in point}
    for weights in _weights(len(sums), options.resamples, np.random.default_rng(options.seed)):
        for name, values in combine(_split(weights @ sums, terms)).items():
            drawn[name].append(values)
    return {
        name: Estimate(point[name], *_bounds(np.concatenate(values), options.level))
        for name, values in drawn.items()
    }


def difference(
    first: Mapping[str, Column],
    second: Mapping[str, Column],
    clusters: Sequence[str] | NDArray[np.intp],
    combine: Combine,
    options: Bootstrap,
) -> dict[str, Difference]:
    """Paired difference ``second - first`` of every metric, with interval and p-value.

    Args:
        first: per-unit summands of one run.
        second: those of the other, same units in the same order.
        clusters: the cluster of every unit.
        combine: metrics from sums of the terms, vectorised over rows.
        options: resamples, level and seed.

    Returns:
        One difference per metric. The p-value is that of a randomisation test: under the null the
        two runs may be swapped within any clip; ``p = (1 + #{|d*| >= |d|}) / (1 + resamples)``. A metric
        without a value in one of the runs has no p-value: it was not tested.
    """
    codes = codes_of(clusters)
    a, b = cluster_sums(first, codes), cluster_sums(second, codes)
    total_a = combine(_split(a.sum(axis=0, keepdims=True), first))
    total_b = combine(_split(b.sum(axis=0, keepdims=True), second))
    ends = {name: (float(total_a[name][0]), float(total_b[name][0])) for name in total_a}
    value = {name: b - a for name, (a, b) in ends.items()}
    nan = float("nan")
    if options.resamples < 1 or len(a) < 2:
        return {name: Difference(*pair, nan, nan, nan, len(codes), len(a)) for name, pair in ends.items()}
    drawn: dict[str, list[Column]] = {name: [] for name in value}
    extreme = dict.fromkeys(value, 0)
    rng = np.random.default_rng(options.seed)
    for weights in _weights(len(a), options.resamples, rng):
        got_a, got_b = combine(_split(weights @ a, first)), combine(_split(weights @ b, second))
        for name in value:
            drawn[name].append(got_b[name] - got_a[name])
    gap, sum_a, sum_b = b - a, a.sum(axis=0), b.sum(axis=0)
    for rows in _blocks(len(a), options.resamples):
        moved = (rng.random((rows, len(a))) < 0.5) @ gap
        got_a, got_b = combine(_split(sum_a + moved, first)), combine(_split(sum_b - moved, second))
        for name, seen in value.items():
            # A swap that changes nothing is equal in spite of rounding; one that leaves no value no evidence.
            far = ~(np.abs(got_b[name] - got_a[name]) < abs(seen) - 1e-12 * max(1.0, abs(seen)))
            extreme[name] += int(np.count_nonzero(far))
    return {
        name: Difference(
            *ends[name],
            *_bounds(np.concatenate(drawn[name]), options.level),
            (1 + extreme[name]) / (1 + options.resamples) if np.isfinite(value[name]) else nan,
            len(codes),
            len(a),
        )
        for name in value
    }


def holm(ps: Sequence[float]) -> list[float]:
    """P-values of several tests, corrected so that all together err no more often than one (Holm 1979).

    NaN (nothing was tested) stays, and counts as no test.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((p, place) for place, p in enumerate(ps) if not np.isnan(p))
    out, least = list(map(float, ps)), 0.0
    for rank, (p, place) in enumerate(order):
        out[place] = least = max(least, min(1.0, (len(order) - rank) * p))
    return out


def _blocks(clusters: int, resamples: int) -> Iterator[int]:
    step = max(1, _BLOCK // max(clusters, 1))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def _weights(clusters: int, resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """How often each cluster is drawn, ``(block, clusters)``, block after block."""
    for rows in _blocks(clusters, resamples):
        picks = rng.integers(0, clusters, (rows, clusters))
        picks += np.arange(rows)[:, None] * clusters
        yield np.bincount(picks.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def _split(sums_BK: NDArray[np.float64], terms: Mapping[str, Column]) -> dict[str, Column]:
    return {name: sums_BK[:, k] for k, name in enumerate(terms)}


def _bounds(values: Column, level: float) -> tuple[float, float]:
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    return _quantile(values, tail), _quantile(values, 1 - tail)


def _quantile(sorted_N: Column, share: float) -> float:
    """``np.quantile`` to the last bit, without the tenth of a short command that its imports take."""
    place = (len(sorted_N) - 1) * share
    below = math.floor(place)
    low, high = float(sorted_N[below]), float(sorted_N[min(below + 1, len(sorted_N) - 1)])
    part = place - below
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)
