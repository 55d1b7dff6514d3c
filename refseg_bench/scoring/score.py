"""Score predictions under protocols: clip by clip, spread over processes, in a fixed order.

This is the program between a prediction store (or other people's files) and a result row. Where
predictions come from is told in :mod:`~refseg_bench.scoring.sources`, what of them lacks in
:mod:`~refseg_bench.scoring.sources` (before anything is scored), how numbers are made by a
:class:`~refseg_bench.scoring.protocols.base.ScoringProtocol`, how clips are spread in
:mod:`~refseg_bench.scoring.pool`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from refseg_bench.config import schema
from refseg_bench.config.components import open_protocol
from refseg_bench.datasets.base import Dataset, LimitedDataset, OtherTruth
from refseg_bench.datasets.verify import lacking
from refseg_bench.errors import DataError, ScoreError
from refseg_bench.files.store_io import checksum
from refseg_bench.scoring.counts import CountBook
from refseg_bench.scoring.labels import FolderLabels, LabelMaps, merged_labels, truth_labels
from refseg_bench.scoring.pool import over_clips
from refseg_bench.scoring.protocols.base import ANY_SIZE, Case, Item, ScoringProtocol
from refseg_bench.scoring.sources import (
    Coverage,
    NothingScoredError,
    PredictionSource,
    State,
    Survey,
    acceptable,
    asked_states,
    only,
    refuse,
    state_of,
    survey,
)
from refseg_bench.scoring.stats import Bootstrap, intervals
from refseg_bench.scoring.table import ScoreTable, target_facts
from refseg_bench.types import (
    Clip,
    Estimate,
    Expression,
    Prediction,
    Result,
    SampleFailure,
    Score,
    Target,
    extents,
    sample_id,
    wrong_way_round,
)


class HiddenTruthError(ScoreError):
    """The masks of the data set are not public: there is nothing to score against."""


@dataclass(frozen=True)
class Scored:
    """One run under one protocol, by unit too; ``notes``: facts found on the way (the PNG encoding …)."""

    source: str
    protocol: ScoringProtocol
    result: Result
    table: ScoreTable
    coverage: Coverage
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How to score; none of it changes a value."""

    jobs: int | None = None  #: processes; ``None`` = the cores given to this process
    detail: bool = False  #: keep per-frame values
    #: Leave out every sample without a whole prediction, whatever the protocol's own rule is (refuse, count
    #: as 0, or drop).
    partial: bool = False
    #: Refuse incomplete work also under protocols whose tool would drop it (for runs of this harness, whose
    #: failures are known).
    strict: bool = False
    bootstrap: Bootstrap = field(default_factory=Bootstrap)  #: how intervals are made


def score(
    dataset: Dataset,
    sources: Sequence[PredictionSource],
    protocols: Sequence[ScoringProtocol],
    options: Options | None = None,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> list[Scored]:
    """Score every source under every protocol; sources come first in what is returned.

    The ground-truth side of a clip is prepared once for all of them.

    Args:
        dataset: where the truth is. With more than one process it must be a dataclass (workers
            rebuild it from its fields) or picklable.
        sources: the predictions of one or several runs.
        protocols: the rules.
        options: processes, per-frame values, what to do about gaps.
        report: receives the completeness of each source, before anything is scored.

    Raises:
        IncompleteError: work is missing that a protocol does not allow.
        ScoreError: the masks are hidden on a server, a protocol can't be applied to the dataset, or it
            refuses the data.
    """
    options = options or Options()
    taken = dataset.taken()
    facts = {} if taken is None else {"truth": taken}
    for fact in facts.values():
        report(f"truth: {fact}")
    sheets: list[_Sheet] = []
    less = part_of_release(dataset)
    for source in sources:
        whole, each = survey(dataset, source, protocols)
        report(f"{source.name}: {whole.summary()}")
        if less:
            report(f"not as released: {less} (datasets/{dataset.name}/manifest.yaml)")
        if not options.partial:
            refuse(source, zip(protocols, each, strict=True), options.strict)
        sheets += [_Sheet(source, p, c, dict(facts)) for p, c in zip(protocols, each, strict=True)]
    for protocol in protocols:
        check_fit(protocol, dataset)
    work = partial(score_one_clip, sources=sources, protocols=protocols, options=options)
    for parts in over_clips(dataset, work, options.jobs):
        for sheet, part in zip(sheets, parts, strict=True):
            sheet.enter(part)
    for source in sources if not options.partial else ():
        # What turned out unreadable only now is refused as well.
        found = ((sheet.protocol, sheet.coverage) for sheet in sheets if sheet.source is source)
        refuse(source, found, options.strict)
    results: list[Scored] = []
    for sheet in sheets:
        for key in ("extent", "truth_extent"):
            if told := wrong_way_round(sheet.notes.pop(key, {})):
                sheet.notes[key] = told
        result = conclude(
            sheet.protocol, dataset, sheet.table, sheet.coverage, options.bootstrap, sheet.notes, less
        )
        results.append(
            Scored(sheet.source.name, sheet.protocol, result, sheet.table, sheet.coverage, sheet.notes)
        )
    return results


def under_each(
    dataset: Dataset, source: PredictionSource, words: Sequence[str], options: Options
) -> list[tuple[str, Scored | ScoreError]]:
    """Score under several protocols at once; one that refuses doesn't keep the others from scoring.

    A protocol that can't be applied to the dataset, or for which no prediction is usable, refuses.

    What is returned begins with the protocol as typed.
    """
    protocols = [open_protocol(word) for word in words]
    outcomes: dict[int, Scored | ScoreError] = {}
    for place, protocol in enumerate(protocols):
        try:
            check_fit(protocol, dataset)
        except ScoreError as refusal:
            outcomes[place] = refusal
    fit = [place for place in range(len(words)) if place not in outcomes]

    def attempt(places: Sequence[int], report: Callable[[str], None]) -> None:
        try:
            found = score(dataset, [source], [protocols[p] for p in places], options, report=report)
        except ScoreError as refusal:
            if len(places) == 1:
                outcomes[places[0]] = refusal
                return
            for place in places:
                attempt([place], lambda line: None)
        else:
            outcomes.update(zip(places, map(_founded, found), strict=True))

    if fit:
        attempt(fit, lambda line: print(f"  {line}", file=sys.stderr))
    return [(word, outcomes[place]) for place, word in enumerate(words)]


def _founded(outcome: Scored) -> Scored | ScoreError:
    """The outcome, unless it rests on no prediction at all, or none of its metrics has a value."""
    result, table, coverage = outcome.result, outcome.table, outcome.coverage
    zeros = table.attrs.get("counted_as", []).count("zero")
    if zeros == result.n:
        return NothingScoredError(result.protocol, outcome.source, coverage)
    if not any(e.value == e.value for e in result.metrics.values()):
        why = "; ".join(sorted(set(outcome.protocol.no_value(table.values, table.attrs).values())))
        return ScoreError(
            f"{result.protocol} has no number for these {result.n} units: {why}.", where=outcome.source
        )
    return outcome


def check_fit(protocol: ScoringProtocol, dataset: Dataset) -> None:
    """Refuse a protocol that has nothing to say about a dataset.

    Raises:
        ScoreError: in one line, what it lacks.
    """
    why = protocol.unfit(dataset)
    if why is not None:
        own = [word for word in dataset.protocols if open_protocol(word).unfit(dataset) is None]
        raise ScoreError(
            f"{protocol.name} can't be applied to {dataset.name}: {why}.",
            hint=f"The data set's own: --protocol {','.join(own)}" if own else None,
        )


def conclude(
    protocol: ScoringProtocol,
    dataset: Dataset,
    table: ScoreTable,
    coverage: Coverage,
    bootstrap: Bootstrap,
    notes: Mapping[str, Any] | None = None,
    part: str = "",
) -> Result:
    """The result row of a table of units; ``part``: see :attr:`refseg_bench.types.Result.part`."""
    values = table.values
    if len(table):
        terms = protocol.terms(values, table.attrs)
        estimates = intervals(terms, table.clusters, protocol.combine, bootstrap)
    else:
        estimates = {name: Estimate(float("nan")) for name in protocol.metrics}
    return Result(
        protocol=protocol.full_name,
        metrics=estimates,
        n=len(table),
        expected=coverage.units,
        failed=len(coverage.failed),
        missing=len(coverage.missing) + len(coverage.gaps),
        scale=protocol.policy.scale,
        details={
            "rules": _node(protocol),
            "policy": dataclasses.asdict(protocol.policy),
            "fractions": list(protocol.policy.fractions),
            "unsettled": {
                name: getattr(owner, name) for owner in (protocol, dataset) for name in owner.unsettled
            },
            "printed": protocol.printed({name: e.value for name, e in estimates.items()}),
            "interval": dataclasses.asdict(bootstrap),
            "failed": list(coverage.failed),
            "missing": list(coverage.missing),
            "missing_frames": {name: list(frames) for name, frames in coverage.gaps.items()},
            "why": dict(coverage.why),
            "left_out": dict(coverage.left_out),
            "part": part,
            "truth": truth_of(table),
            **(notes or {}),
        },
    )


def truth_of(table: ScoreTable) -> list[str]:
    """Digests of a table's units, and of how many objects they mean and how large those are."""
    facts = [table.attrs.get(name) for name in ("objects", "size")]
    return [checksum(json.dumps(told).encode()) for told in (table.units, facts)] if all(facts) else []


def part_of_release(dataset: Dataset) -> str:
    """What a data set holds more or less of than its release; empty where nothing, or where limited."""
    if isinstance(dataset, LimitedDataset | OtherTruth):
        return ""
    clips = dataset.clips()
    found = [e.attrs.get("ref_id") for clip in clips for e in dataset.expressions(clip)]
    return lacking(dataset, len(clips), len(found), len({*found} - {None}))


def _node(protocol: ScoringProtocol) -> dict[str, Any]:
    """The class and options of a protocol, from which it can be built again."""
    cls = type(protocol)
    values = {name: getattr(protocol, name) for name in schema.options(cls)}
    return {schema.TARGET: f"{cls.__module__}.{cls.__qualname__}", **values}


# ── one clip ─────────────────────────────────────────────────────────────────


class _Part(NamedTuple):
    """What a worker returns for one clip, one source and one protocol."""

    states: list[tuple[str, State]]
    scores: list[Score]
    notes: dict[str, Any]
    units: int
    left_out: Mapping[str, str]


@dataclass
class _Sheet:
    """What clip after clip adds up to, of one source under one protocol; ``before``: what its survey told."""

    source: PredictionSource
    protocol: ScoringProtocol
    before: Coverage
    notes: dict[str, Any]
    table: ScoreTable = field(default_factory=ScoreTable)
    coverage: Coverage = field(default_factory=Coverage)

    def enter(self, part: _Part) -> None:
        for name, state in part.states:
            if not state.why and state.status != "failed":
                # What the listing told of gaps, the masks themselves don't.
                state = state._replace(why=self.before.why.get(name, ""))
            self.coverage.enter(name, state)
        self.coverage.units += part.units
        self.coverage.left_out.update(part.left_out)
        self.table.extend(part.scores)
        for key, value in part.notes.items():
            if isinstance(value, Mapping):
                self.notes[key] = dict(Counter(self.notes.get(key, {})) + Counter(value))
            elif self.notes.setdefault(key, value) != value:
                self.notes[key] = "mixed"


def score_one_clip(
    dataset: Dataset,
    clip: Clip,
    sources: Sequence[PredictionSource],
    protocols: Sequence[ScoringProtocol],
    options: Options,
) -> list[_Part]:
    """All sources under all protocols on one clip; the truth is read once."""
    expressions = [e for e in dataset.expressions(clip) if any(p.wants(e) for p in protocols)]
    labels = any(p.compares == "labels" for p in protocols)
    samples = any(p.compares != "labels" for p in protocols)
    maps = dataset.annotation_files(clip) if labels else None
    targets = _targets(dataset, clip, expressions) if samples or (labels and maps is None) else []
    truth: LabelMaps | None = None
    if labels:
        truth = (
            truth_labels(clip, targets)
            if maps is None
            else FolderLabels(tuple(maps), clip.frame_names, clip.size)
        )
    truth_read = dataset.encodings()
    unions = [target.union() for target in targets]
    truth_extents = extents(track for target in targets for track in target.objects)
    instances = dataset.foreground(clip)
    book = CountBook(clip.size, len(clip))
    facts = {
        sample_id(clip.id, e.id): {**_short(e.attrs), **target_facts(clip, target, union)}
        for e, target, union in zip(expressions, targets, unions, strict=False)
    }
    parts: list[_Part] = []
    for source in sources:
        given = source.predictions(clip, expressions, labels=labels, samples=samples)
        covers: dict[int | None, Counter[str]] = {}
        views: dict[int | None, tuple[dict[str, Prediction | None], dict[str, State], list[Item]]] = {}
        for side in {None, *(protocol.side for protocol in protocols)}:
            found = {e.id: _checked(given.samples.get(e.id), clip, side) for e in expressions}
            states = {e.id: state_of(found[e.id], clip) for e in expressions}
            nothing = given.clip_missing
            if nothing is None:
                nothing = all(state.status != "ok" for state in states.values())
            items = [
                Item(e, target, found[e.id], states[e.id].status, union, nothing, given.greys.get(e.id))
                for e, target, union in zip(expressions, targets, unions, strict=False)
            ]
            views[side] = found, states, items
            covers[side] = extents(p.track for p in found.values() if p is not None and p.track is not None)
        label_states = None if given.labels is None else _label_states(clip, given.labels)
        merged = given.labels
        if labels and merged is None:
            merged = merged_labels(clip, expressions, views[None][0])
        for protocol in protocols:
            found, states, items = views[protocol.side]
            here = {
                e.id: _counted(protocol, clip, states[e.id], items, index)
                for index, e in enumerate(expressions)
            }
            known = list(asked_states(protocol, clip, expressions, Survey(here, label_states)))
            if not (options.partial or acceptable(protocol, known, options.strict)):
                # Refused once all clips are read, so that the refusal names everything.
                parts.append(_Part(known, [], {}, 0, {}))
                continue
            case = Case(clip, items, book, truth, merged or {}, instances, options.detail, options.partial)
            answers = {e.id: p.answer for e in expressions if (p := found[e.id]) is not None}
            told = {
                # The unit of an id map is an object, whose number may be another's expression.
                unit: {**fact, "answer": answers.get(unit.rpartition("/")[2])}
                for unit, fact in (facts.items() if protocol.compares != "labels" else ())
            }
            scores = [
                dataclasses.replace(s, attrs={**told.get(s.unit, {}), **s.attrs})
                for s in protocol.score_clip(case)
            ]
            read = _encodings(given.encodings, *(given.labels or {}).values())
            said = Counter(a for e in expressions if protocol.wants(e) and (a := answers.get(e.id)))
            notes = {"answers": said, "predictions_read": read, "truth_read": _encodings(truth_read, truth)}
            notes |= {"extent": covers[protocol.side], "truth_extent": truth_extents}
            notes = {**protocol.notes(case), **{k: v for k, v in notes.items() if v}}
            for name in case.failed:
                # Maps merged from samples are known by the clip: all its samples fail with them.
                known = [
                    (n, State("failed", why=case.failed[name]) if name in (n, clip.id) else state)
                    for n, state in known
                ]
            whole = all(state.status == "ok" and not state.gaps for _, state in known)
            units = len(scores) if whole else protocol.units(case)
            parts.append(_Part(known, scores, notes, units, case.left_out))
    return parts


def _targets(dataset: Dataset, clip: Clip, expressions: Sequence[Expression]) -> list[Target]:
    targets: list[Target] = []
    for expression in expressions:
        target = dataset.target(clip, expression)
        if target is None:
            what, hint = dataset.no_truth(clip, expression)
            raise HiddenTruthError(what, where=f"{dataset.name}, split {dataset.split}", hint=hint)
        for track in (*target.objects, *([] if target.void is None else [target.void])):
            if why := track.misfit(clip.size, len(clip)):
                raise DataError(
                    f"The truth of '{sample_id(clip.id, expression.id)}' doesn't fit its clip: {why}.",
                    where=f"{dataset.name}, split {dataset.split}",
                    hint="Use frames and masks of one release; `refseg data verify` tells what differs.",
                )
        targets.append(target)
    return targets


def _counted(protocol: ScoringProtocol, clip: Clip, state: State, items: Sequence[Item], index: int) -> State:
    if not items or state.status != "ok":
        return state
    fault = protocol.fault(items[index])
    if fault is not None:
        return State("failed", why=fault)
    if not state.gaps:
        return state
    return only(state, {clip.frame_names[t] for t in protocol.scored_frames(clip, items[index])})


def _label_states(clip: Clip, labels: Mapping[str, LabelMaps]) -> dict[str, State]:
    gaps = {name: tuple(maps.missing()) for name, maps in labels.items()}
    return {n: State("missing") if len(g) == len(clip) else State("ok", g) for n, g in gaps.items()}


def _encodings(read: Mapping[str, int], *maps: LabelMaps | None) -> dict[str, int]:
    """How mask files are stored, in words → number of files, id maps included."""
    found = Counter(read)
    for each in maps:
        if isinstance(each, FolderLabels):
            found.update(each.encodings.values())
    return dict(found)


def _checked(prediction: Prediction | None, clip: Clip, side: int | None = None) -> Prediction | None:
    """A prediction whose masks don't fit its clip (or, for an image, ``side``) is a failure, told as such."""
    if prediction is None or (track := prediction.track) is None:
        return prediction
    fits = side == ANY_SIZE or (len(clip) == 1 and track.size == (side, side))
    why = "" if fits and len(clip) == len(track) else track.misfit(clip.size, len(clip))
    if not why:
        return prediction
    failure = SampleFailure("DataError", f"The prediction doesn't fit its clip: {why}.", "")
    return dataclasses.replace(prediction, track=None, failure=failure)


def _short(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes worth a column of a million rows: no texts, no lists."""
    texts = ("sent", "raw", "exp", "exp_text", "file_name")
    return {n: v for n, v in attrs.items() if n not in texts and isinstance(v, (bool, int, float, str))}
