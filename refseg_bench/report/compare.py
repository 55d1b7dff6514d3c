"""Two runs against each other: paired by unit, resampled by clip. And what tells runs apart, in words."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.config import schema
from refseg_bench.config.components import protocol_of
from refseg_bench.datasets.base import Dataset, OtherTruth
from refseg_bench.errors import ScoreError
from refseg_bench.run.build import dataset_of, frozen, lasting_of, received
from refseg_bench.run.store import RunInfo, RunStore
from refseg_bench.scoring.protocols.base import ScoringProtocol
from refseg_bench.scoring.runs import StoreSource
from refseg_bench.scoring.score import Options, score
from refseg_bench.scoring.stats import Bootstrap, Difference, difference
from refseg_bench.scoring.table import ScoreTable, groups_of, splitting


@dataclass(frozen=True)
class Moved:
    """One unit whose headline value differs; ``text``: its expression, empty where that isn't known."""

    unit: str
    first: float
    second: float
    text: str = ""


@dataclass(frozen=True)
class Group:
    """The paired difference on the units that share an attribute's value."""

    #: attribute, value: what they share; both empty for all units.
    attribute: str
    value: str
    differences: Mapping[str, Difference]  #: metric → difference (second − first), in the protocol's own unit


@dataclass(frozen=True)
class Comparison:
    """What changed between two runs under one protocol."""

    #: first, second: names of the runs.
    first: str
    second: str
    labels: tuple[str, str]  #: what the two are called beside each other
    protocol: str  #: ``id@version``
    scale: float  #: 1 where metrics are fractions, 100 where percent
    percents: Mapping[str, float]  #: metric → what it is multiplied with to be in percent
    level: float  #: of the intervals; 0 where there are none
    overall: Group  #: differences on all paired units
    groups: tuple[Group, ...]  #: differences per attribute value
    #: gained, lost: the units that moved most, best or worst first.
    gained: tuple[Moved, ...]
    lost: tuple[Moved, ...]
    #: Option, part of the data, code, package or device → (first, second), where they differ in what can
    #: change a prediction; of data and weights the digests.
    config: Mapping[str, tuple[Any, Any]]
    unpaired: int  #: units that only one of the runs has
    headline: str  #: what ``gained`` and ``lost`` are told in; empty where no unit has a number


def compare(
    first: RunStore,
    second: RunStore,
    protocol: str | None = None,
    *,
    attributes: Sequence[str] | None = None,
    most: int = 10,
    settings: Bootstrap | None = None,
) -> Comparison:
    """Compare two scored runs on the units both have.

    ``protocol``: by default the first both are scored under; ``attributes``: breakdowns, by default every one
    with 2 to 12 values in both runs; ``most``: how many of the units that moved most to list, either way;
    ``settings``: by default as those of the first run's result.

    Raises:
        ScoreError: the runs share no protocol or no unit, or are of different data or truth.
    """
    before, after = (", ".join(store.info().data) for store in (first, second))
    if before != after:
        raise ScoreError(
            f"The runs are of different data: {before}, and {after}.",
            where=f"{first.root.name}, {second.root.name}",
            hint="Compare runs of one dataset and split.",
        )
    name = shared_protocol((first, second), protocol)
    tables = [ScoreTable.read_parquet(*s.samples(name)) for s in (first, second)]
    called = titles([first.info(), second.info()])
    found = _compared((first, second), called, name, tables, attributes, most, settings)
    data = _data_difference(first, second, name, whole=not found.unpaired)
    known = [options_of(store.info().choices, lasting_of(store)) for store in (first, second)]
    options = {key: (known[0].get(key), known[1].get(key)) for key in differing(known)}
    return replace(found, config={**options, **data, **_made_difference(first, second)})


def _made_difference(first: RunStore, second: RunStore) -> dict[str, tuple[Any, Any]]:
    """What two runs were made with where it differs and both tell of it; a package or GPU one may lack."""
    mine, other = _made_with(first), _made_with(second)
    out = {}
    for key in mine | other if mine and other else ():
        pair = mine.get(key), other.get(key)
        if pair[0] != pair[1] and (None not in pair or key.startswith(("packages.", "device.gpus"))):
            out[key] = pair
    return out


def _made_with(store: RunStore) -> dict[str, str]:
    """What its processes tell of code, packages and device (but how many cores they had), and its weights."""
    told: dict[str, set[str]] = defaultdict(set)
    for record in store.environments().values():
        parts = {part: record[part] for part in ("commit", "dirty", "python", "packages", "device")}
        for key, value in flatten(parts):
            told[key].add(said(value))
    told.pop("device.cores", None)
    weights = {"weights": own} if (own := store.weights()) else {}
    return {key: " and ".join(sorted(values)) for key, values in told.items()} | weights


def _data_difference(
    first: RunStore, second: RunStore, protocol: str, *, whole: bool = True
) -> dict[str, tuple[str, str]]:
    """What of the data two results rest on differs, with the digests that tell so.

    Those of other samples differ anyway: not ``whole``, the first one counts of which both were predicted.
    """
    if whole:
        marks = (store.made_from(protocol) for store in (first, second))
        pairs = [tuple((mark.get("facts", ""), mark.get("files", "")) for mark in marks)]
    else:
        lines = ((line, second.index().get(sample)) for sample, line in first.index().items())
        pairs = [(a.inputs[:2], b.inputs[:2]) for a, b in lines if b and a.inputs and b.inputs]
    out = {}
    for place, what in enumerate(("samples, texts, frame names or sizes", "pixels of frames")):
        told = ((a[place], b[place]) for a, b in pairs)
        if (unlike := next(((a, b) for a, b in told if a and b and a != b), None)) is not None:
            out[what] = unlike
    return out


def compare_truths(
    run: RunStore,
    other: Dataset,
    protocol: str | None = None,
    *,
    attributes: Sequence[str] | None = None,
    most: int = 10,
) -> Comparison:
    """Hold a run's scores against those of the same predictions under another release's truth.

    Nothing of it is kept in the run folder: its scores stay those of its own data set. Samples pair by
    ``Dataset.pair_key``; the other arguments are those of :func:`compare`.

    Raises:
        ScoreError: the run isn't scored, the two have no sample in common, or the protocol refuses.
    """
    name = shared_protocol((run,), protocol)
    own = dataset_of(received(run))
    retold = OtherTruth(own, other)
    if not retold.clips():
        raise ScoreError(
            f"'{other.name}' ({other.split}) has no sample of '{own.name}' ({own.split}).",
            where=run.root,
            hint="RefCOCO-M pairs with RefCOCO's UNC val split, by image, annotation and words.",
        )
    before = ScoreTable.read_parquet(*run.samples(name))
    rules = protocol_of(run.results()[name])
    (scored,) = score(retold, [StoreSource(run.root)], [rules], Options(strict=True))
    called = [f"{run.info().label} against {data.name} ({data.split})" for data in (own, other)]
    return _compared((run, run), called, name, [before, scored.table], attributes, most, other_truth=True)


def _compared(
    runs: tuple[RunStore, RunStore],
    called: Sequence[str],
    name: str,
    tables: Sequence[ScoreTable],
    attributes: Sequence[str] | None,
    most: int,
    settings: Bootstrap | None = None,
    other_truth: bool = False,
) -> Comparison:
    """Two tables of units under one protocol, whose runs' options are the same."""
    first, second = runs
    result = first.results()[name]
    rules, settings = protocol_of(result), settings or Bootstrap.of(result)
    a, b = paired(tables[0], tables[1], ", ".join(called), other_truth=other_truth)

    def group(attribute: str, value: str, rows: NDArray[np.intp]) -> Group:
        return Group(attribute, value, differences(rules, a.select(rows), b.select(rows), settings))

    overall = group("", "", np.arange(len(a)))
    groups = [
        group(attribute, value, rows)
        for attribute in (splitting([a]) if attributes is None else attributes)
        for value, rows in groups_of(a, attribute).items()
    ]
    # A number of the whole alone (oIoU, Final) moves no unit.
    headline = next(filter(a.values.__contains__, (*rules.metrics, "iou", "IoU")), "")
    moved = _moved(a, b, headline)
    return Comparison(
        first.root.name,
        second.root.name,
        (called[0], called[1]),
        name,
        rules.policy.scale,
        {name: rules.policy.percent(name) for name in (*overall.differences, headline)},
        settings.level if settings.resamples else 0.0,
        overall,
        tuple(groups),
        tuple(_told(m, runs) for m in moved[::-1][:most] if m.second > m.first),
        tuple(_told(m, runs) for m in moved[:most] if m.second < m.first),
        {},
        len(tables[0]) + len(tables[1]) - 2 * len(a),
        headline,
    )


def verdicts(run: RunStore, others: Iterable[RunStore]) -> list[str]:
    """What a run's rows say beside those of others that don't see the truth: one line for each.

    A paired difference of the headline metric, in percent, and whether its interval leaves out 0. Last the
    option to try where no absent target was answered as absent and the method could.
    """
    out = []
    for other in others:
        if other.info().sees_targets or not run.results().keys() & other.results().keys():
            continue
        result = run.results()[shared_protocol((other, run), None)]
        found = compare(other, run, attributes=(), settings=Bootstrap.of(result))
        gaps = found.overall.differences
        metric = next((name for name, gap in gaps.items() if math.isfinite(gap.value)), next(iter(gaps)))
        gap = gaps[metric]
        low, value, high = (found.percents[metric] * x for x in (gap.low, gap.value, gap.high))
        decided = "ahead" if low > 0 else "behind" if high < 0 else "not decided"
        names = " over ".join(reversed(found.labels))
        told = f"[{low:+z.1f}, {high:+z.1f}], {decided}" if low == low else "without an interval"
        told += f", on the {gap.units} units of both" if found.unpaired else ""
        out.append(f"{names}: {value:+z.1f} {metric} {told}")
    rule = schema.locate(str(frozen(run)["method"][schema.TARGET]), "method").absence_rule
    for name in [*run.results()][:1] if rule else ():
        attrs = ScoreTable.read_parquet(*run.samples(name)).attrs
        pairs = zip(attrs.get("objects", ()), attrs.get("answer", ()), strict=False)
        answers = [answer for objects, answer in pairs if objects == 0]
        if answers and "absent" not in answers:
            out.append(f"none of {len(answers)} absent targets was answered as absent: try {rule}")
    return out


@dataclass(frozen=True)
class Policy:
    """What :func:`gate` allows."""

    #: Percent points that a run may be worse than its baseline: in the protocol's headline metric, or in each
    #: that is named.
    max_drop: float | dict[str, float] = 0.0
    protocol: str | None = None  #: ``id@version`` or id; by default the first both are scored under
    #: What becomes of a run whose interval holds the allowed drop.
    undecided: Literal["fail", "pass"] = "fail"


@dataclass(frozen=True)
class Gated:
    """What a gate found under one metric, in percent points."""

    metric: str  #: its name
    allowed: float  #: how far it may drop
    #: value, low, high: the paired difference, run − baseline, and its interval (NaN: there is none).
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["held", "not held", "not decided"]:
        """``held``: all of the interval is within what is allowed; ``not held``: none of it is.

        Without an interval nothing is held, and a greater drop than is allowed is not.
        """
        slack = self.allowed + 1e-9
        best = self.high if self.high == self.high else self.value
        return "held" if self.low >= -slack else "not held" if best < -slack else "not decided"


def gate(run: RunStore, baseline: RunStore, policy: Policy) -> tuple[Comparison, list[Gated]]:
    """Hold a run against a baseline on the samples both have.

    Raises:
        ScoreError: the runs can't be compared; or not on equal terms, for the run lacks units or has more
            failures; or a metric has no value.
    """
    found = compare(baseline, run, policy.protocol, attributes=())
    before, after = (store.results()[found.protocol] for store in (baseline, run))
    lacking = after.failed + after.missing - before.failed - before.missing
    if found.unpaired or lacking > 0:
        raise ScoreError(
            f"The run and its baseline are not of the same units: {found.unpaired} are in one of them only, "
            f"{max(0, lacking)} more failed or are missing in the run.",
            where=f"{run.root}, {baseline.root}",
            hint="Give both the same limit, and the run's own `refseg run` again for what failed.",
        )
    for what in _data_difference(baseline, run, found.protocol):
        raise ScoreError(
            f"The run and its baseline are of different data: {what} differ.",
            where=f"{run.root}, {baseline.root}",
            hint="Run the baseline's own `refseg run` again on the present data.",
        )
    # What may drop says nothing of what is better so.
    gaps = {name: gap for name, gap in found.overall.differences.items() if not less_is_better(name)}
    drops = policy.max_drop
    if not isinstance(drops, dict):
        drops = {
            next((name for name, gap in gaps.items() if math.isfinite(gap.first)), next(iter(gaps))): drops
        }
    has = [name for name, gap in gaps.items() if math.isfinite(gap.value)]
    if not drops:
        raise ScoreError("max_drop names no metric.", where=found.protocol, allowed=has)
    out = []
    for metric, allowed in drops.items():
        if metric not in has:
            raise ScoreError(
                f"'{metric}' has no value in both runs, or less of it is better.",
                where=found.protocol,
                allowed=has,
            )
        if not 0 <= allowed <= 100:
            raise ScoreError(f"max_drop of {metric} is {allowed}.", allowed=["0 to 100 percent points"])
        gap, scale = gaps[metric], found.percents[metric]
        # Where no unit differs no interval is needed.
        bare = gap.low != gap.low and not (found.gained or found.lost or gap.value)
        ends = (0.0, 0.0) if bare else (gap.low, gap.high)
        out.append(Gated(metric, allowed, gap.value * scale, *(end * scale for end in ends)))
    return found, out


def less_is_better(metric: str) -> bool:
    """Whether the lower value of a metric is the better one."""
    return metric.endswith("Decay")


def paired(
    first: ScoreTable, second: ScoreTable, where: str = "", *, other_truth: bool = False
) -> tuple[ScoreTable, ScoreTable]:
    """The units that both tables have, in the first one's order.

    Raises:
        ScoreError: there is none; or, but for ``other_truth``, one was scored against different masks, as far
            as the facts of its targets tell.
    """
    places = {unit: row for row, unit in enumerate(second.units)}
    mine = [row for row, unit in enumerate(first.units) if unit in places]
    if not mine:
        raise ScoreError(
            "The runs have no unit in common.",
            where=where or None,
            hint="Compare runs of one dataset and split.",
        )
    a, b = first.select(mine), second.select([places[first.units[row]] for row in mine])
    for fact in ("objects", "clip_length", "size", "motion") if not other_truth else ():
        columns = (table.attrs.get(fact, [None] * len(table)) for table in (a, b))
        for unit, one, two in zip(a.units, *columns, strict=True):
            if {type(one), type(two)} <= {int, float} and not math.isclose(one, two, rel_tol=1e-9):
                told = f"the {fact.replace('_', ' ')} of the target of '{unit}' is {one:g} and {two:g}"
                raise ScoreError(
                    f"The runs were scored against different masks: {told}.",
                    where=where or None,
                    hint="Score both on one release, with the same options of the data set.",
                )
    return a, b


def differences(
    rules: ScoringProtocol, first: ScoreTable, second: ScoreTable, options: Bootstrap
) -> dict[str, Difference]:
    """The second table's metrics minus the first's, on the same units in the same order."""
    before, after = (rules.terms(table.values, table.attrs) for table in (first, second))
    return difference(before, after, first.clusters, rules.combine, options)


def shared_protocol(stores: Sequence[RunStore], asked: str | None) -> str:
    """The first protocol that all runs are scored under; of the id or ``id@version`` that is asked for.

    Raises:
        ScoreError: there is none.
    """
    have = [list(store.results()) for store in stores]
    shared = [p for p in (have[0] if have else ()) if all(p in known for known in have)]
    shared = [p for p in shared if asked is None or means(asked, p)]
    if not shared:
        told = zip(stores[:5], have, strict=False)
        raise ScoreError(
            f"The runs are not all scored under {asked or 'a common protocol'}.",
            where="; ".join(f"{store.root.name}: {', '.join(known)}" for store, known in told),
            hint="refseg score RUNS --protocol ID",
        )
    return shared[0]


def _told(moved: Moved, runs: Iterable[RunStore]) -> Moved:
    """With its expression, as the record of one of the runs has it."""
    lines = (line for run in runs if (line := run.index().get(moved.unit)))
    made = next(filter(None, (RunStore.read(line).inputs for line in lines)), None)
    return moved if made is None else replace(moved, text=made.text)


def means(asked: str, protocol: str) -> bool:
    """Whether a word means the protocol of a result: by ``id@version`` with its options, or the id alone."""
    if asked == protocol:
        return True
    head, mark, options = protocol.partition(":")
    word, _, wanted = asked.partition(":")
    return word in (head, head.partition("@")[0]) and wanted in ("", options if mark else "")


def only_protocol(stores: Sequence[RunStore], asked: str) -> None:
    """Take all results but those under one protocol out of sight.

    Raises:
        ScoreError: no run has one.
    """
    have = {store.root: list(store.results()) for store in stores}
    known = sorted({name for names in have.values() for name in names})
    if not any(means(asked, name) for name in known):
        raise ScoreError(
            f"No run is scored under {asked}.", allowed=known, hint="refseg score RUNS --protocol ID"
        )
    for store in stores:
        store.outdated.update(name for name in have[store.root] if not means(asked, name))


def _moved(a: ScoreTable, b: ScoreTable, headline: str) -> list[Moved]:
    """Units by how far the headline moved, losses first."""
    if headline not in a.values or headline not in b.values:
        return []
    before, after = a.values[headline], b.values[headline]
    order = np.argsort(after - before, kind="stable")
    # What has no value in one of the runs moved neither way.
    moved = (i for i in order if abs(after[i] - before[i]) > 0)
    return [Moved(a.units[i], float(before[i]), float(after[i])) for i in moved]


# ── what tells runs apart ────────────────────────────────────────────────────

#: What is chosen by a name.
PARTS = ("dataset", "method", "backbone", "segmenter")
#: Most options that a label names.
_MOST = 3


def flatten(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested mappings, by dotted key."""
    if isinstance(value, Mapping) and value:
        return [pair for k, v in value.items() for pair in flatten(v, f"{path}.{k}" if path else str(k))]
    return [(path, value)]


def options_of(choices: Mapping[str, str], lasting: Mapping[str, Any]) -> dict[str, Any]:
    """The options that can change a prediction; a component chosen by name goes by that name first."""
    named = {part: choices.get(part) for part in PARTS}
    return {**{k: v for k, v in named.items() if v not in (None, "None")}, **dict(flatten(lasting))}


def differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options that are not the same everywhere.

    What differs because another component was chosen is told by the component's name.
    """
    keys = list(dict.fromkeys(key for known in options for key in known))
    found = [k for k in keys if len({said(known.get(k)) for known in options}) > 1]
    parts = {k for k in found if "." not in k}
    if "seed" in parts:  # a component's follows it
        found = [k for k in found if not k.endswith(".seed") or any(o.get(k) != o["seed"] for o in options)]
    return [k for k in found if "." not in k or k.partition(".")[0] not in parts]


def said(value: Any) -> str:
    """An option's value as a table shows it."""
    return value if isinstance(value, str) else json.dumps(value)


def titles(runs: Sequence[RunInfo]) -> list[str]:
    """What each of some runs is called: its label, with what tells it from others of that label.

    A run given twice has the same title twice.
    """
    labels = [run.label for run in runs]
    # Masks of other code are told apart by themselves: the same options say nothing of where they come from.
    digests = [run.content or run.digest for run in runs]
    same: dict[str, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        same[label].append(place)
    for places in same.values():
        if len({digests[place] for place in places}) < 2:
            continue
        options = [
            options_of(runs[place].choices | runs[place].printed, runs[place].lasting) for place in places
        ]
        keys = differing(options)[:_MOST]
        short = [key.rpartition(".")[2] for key in keys]
        names = [key if short.count(end) > 1 else end for key, end in zip(keys, short, strict=True)]
        words_of = [
            ", ".join(
                said(known.get(key)) if key in PARTS else f"{name}={said(known.get(key))}"
                for key, name in zip(keys, names, strict=True)
            )
            for known in options
        ]
        for place, words in zip(places, words_of, strict=True):
            more = [words] if words else []
            if len({digests[p] for p, other in zip(places, words_of, strict=True) if other == words}) > 1:
                more.append(digests[place])
            labels[place] = " · ".join([labels[place], *more])
    return labels
