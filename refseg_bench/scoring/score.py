"""Score predictions under protocols: clip by clip, spread over processes, in a fixed order.

This is the program between a prediction store (or other people's files) and a result row. It
knows neither where predictions come from (a :class:`PredictionSource` says) nor how numbers are
made (a :class:`~refseg_bench.scoring.protocols.base.ScoringProtocol` does). Completeness is
established before anything is scored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Protocol

from refseg_bench.config import schema
from refseg_bench.env import cores
from refseg_bench.errors import DataError, ScoreError
from refseg_bench.files.store_io import printable
from refseg_bench.scoring import kernel
from refseg_bench.scoring.breakdown import target_facts
from refseg_bench.scoring.counts import CountBook
from refseg_bench.scoring.labels import FolderLabels, merged_labels, truth_labels
from refseg_bench.scoring.protocols.base import Case, GreyTrack, Item, LabelMaps, ScoringProtocol
from refseg_bench.scoring.stats import Bootstrap, intervals
from refseg_bench.scoring.table import ScoreTable
from refseg_bench.types import (
    Clip,
    Dataset,
    Estimate,
    Expression,
    MaskTrack,
    Prediction,
    Result,
    SampleFailure,
    Score,
    Status,
    Target,
    sample_id,
)


@dataclass(frozen=True)
class State:
    """What is known of one sample's prediction before it is read.

    Attributes:
        status: ``ok``, ``failed`` or ``missing``.
        gaps: names of frames that have no prediction.
        why: the failure, or what is known of the gaps, in words.
    """

    status: Status
    gaps: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Survey:
    """What is known of one clip's predictions before they are read.

    Attributes:
        samples: expression id → state.
        labels: set of merged id maps → state; ``None`` where the predictions are not merged.
    """

    samples: Mapping[str, State] = field(default_factory=dict)
    labels: Mapping[str, State] | None = None


@dataclass(frozen=True)
class Answers:
    """The predictions of one clip.

    Attributes:
        samples: expression id → prediction (a failed one has ``failure`` set); absent = missing.
        greys: expression id → raw grey values, for predictions that came as PNG files.
        labels: merged id maps by set, for predictions that came as such; ``None`` = put them
            together from ``samples`` where a protocol wants them.
        encodings: how the mask files read are stored, in words → number of files.
        clip_missing: True if there is nothing at all for this clip; ``None`` = nothing if no
            sample is ok.
    """

    samples: Mapping[str, Prediction] = field(default_factory=dict)
    greys: Mapping[str, GreyTrack] = field(default_factory=dict)
    labels: Mapping[str, LabelMaps] | None = None
    clip_missing: bool | None = None
    encodings: Mapping[str, int] = field(default_factory=dict)


class PredictionSource(Protocol):
    """Where predictions come from. Must be picklable: workers get a copy."""

    @property
    def name(self) -> str:
        """How messages and tables call it."""

    def survey(self, clip: Clip, expressions: Sequence[Expression]) -> Survey:
        """The state of every expression of a clip, without reading masks."""

    def answers(
        self, clip: Clip, expressions: Sequence[Expression], *, labels: bool, samples: bool
    ) -> Answers:
        """The predictions of a clip; the flags say which kind is wanted."""


def state_of(prediction: Prediction | None, clip: Clip) -> State:
    """The state of a prediction already read."""
    if prediction is None:
        return State("missing")
    if prediction.failure is not None or prediction.track is None:
        why = "" if prediction.failure is None else prediction.failure.message
        return State("failed", why=" ".join(why.split()))
    rles = prediction.track.rles
    return State("ok", tuple(n for n, r in zip(clip.frame_names, rles, strict=False) if r is None))


#: Names and reasons shown on the screen; ``--json`` holds all of them.
SHOWN = 5


@dataclass
class Coverage:
    """What there is to score, and what of it is not there.

    Attributes:
        expected: samples of the dataset (clips, where id maps are compared).
        failed, missing: names of samples without a prediction, by reason.
        gaps: sample → names of frames without a prediction.
        why: sample → reason, where more is known than that it lacks.
        units: units that would be scored if nothing lacked.
        left_out: clip or sample in which the protocol counts nothing → why.
    """

    expected: int = 0
    failed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    gaps: dict[str, tuple[str, ...]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    units: int = 0
    left_out: dict[str, str] = field(default_factory=dict)

    def enter(self, name: str, state: State) -> None:
        """Count one sample."""
        self.expected += 1
        if state.status == "failed":
            self.failed.append(name)
        elif state.status == "missing":
            self.missing.append(name)
        elif state.gaps:
            self.gaps[name] = state.gaps
        else:
            return
        if state.why:
            self.why[name] = state.why

    @property
    def lacking(self) -> int:
        """Samples without a whole prediction."""
        return len(self.failed) + len(self.missing) + len(self.gaps)

    @property
    def complete(self) -> bool:
        """True if every sample has a whole prediction."""
        return self.lacking == 0

    def summary(self) -> str:
        """One line: how much is there."""
        return (
            f"{self.expected - self.lacking} of {self.expected} samples predicted, "
            f"{len(self.failed)} failed, {len(self.missing)} missing, {len(self.gaps)} with missing frames"
        )

    def lines(self) -> list[str]:
        """The list behind :meth:`summary`, one line per incomplete sample, then what is left out."""
        lacking = [
            *(("failed ", name, "") for name in self.failed),
            *(("missing", name, "") for name in self.missing),
            *(("missing", name, f": frames {_few(frames)}") for name, frames in self.gaps.items()),
        ]
        return [
            *(f"{word} {name}{more}{self._reason(name)}" for word, name, more in lacking),
            *(f"left out {name}: {why}" for name, why in self.left_out.items()),
        ]

    def _reason(self, name: str) -> str:
        return f": {self.why[name]}" if self.why.get(name) else ""

    def shown(self) -> list[str]:
        """The first of :meth:`lines`, as much as a screen takes, and how many more there are."""
        lines = [printable(line) for line in self.lines()]
        if len(lines) <= SHOWN:
            return lines
        return [*lines[:SHOWN], f"and {len(lines) - SHOWN} more, all in --json"]


def _few(names: Sequence[str]) -> str:
    """The first of many names."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class IncompleteError(ScoreError):
    """A protocol refuses to score because work is missing; ``coverage`` has the names."""

    def __init__(self, protocols: Sequence[str], source: str, coverage: Coverage) -> None:
        super().__init__(
            f"{', '.join(protocols)} refuses incomplete work: {coverage.summary()}.\n  "
            + "\n  ".join(coverage.shown()),
            where=source,
            cure="Finish the run (the same `refseg run` resumes it) or write what is missing; or score what "
            "there is with --partial.",
        )
        self.coverage = coverage
        self.protocols = tuple(protocols)


class HiddenTruthError(ScoreError):
    """The masks of the data set are not public: there is nothing to score against."""


class NothingScoredError(ScoreError):
    """Not one unit comes from a prediction, so there is no number; ``coverage`` has the reasons."""

    def __init__(self, protocol: str, source: str, coverage: Coverage) -> None:
        if coverage.expected and len(coverage.missing) == coverage.expected:
            what = f"None of the {coverage.expected} samples has a prediction, from {coverage.missing[0]} on."
        elif coverage.complete:
            what = f"{protocol} counts nothing in these data."
        else:
            usable = coverage.expected - coverage.lacking
            what = f"{protocol} could score nothing: {usable} of {coverage.expected} samples are usable."
        super().__init__(
            "\n  ".join([what, *coverage.shown()]),
            where=source,
            cure="Check the files named here, the dataset, its split and the file layout (docs/scoring.md).",
        )
        self.coverage = coverage


@dataclass(frozen=True)
class Scored:
    """One run under one protocol.

    Attributes:
        source: name of the predictions.
        protocol: the rules.
        result: the result row.
        table: one row per unit.
        coverage: what was there.
        notes: facts found on the way (the PNG encoding …).
    """

    source: str
    protocol: ScoringProtocol
    result: Result
    table: ScoreTable
    coverage: Coverage
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How to score; none of it changes a value.

    Attributes:
        jobs: processes; ``None`` = the cores given to this process.
        detail: keep per-frame values.
        partial: leave out every sample without a whole prediction, whatever the protocol's own rule is
            (refuse, count as 0, or drop).
        strict: refuse incomplete work also under protocols whose tool would drop it (for runs of
            this harness, whose failures are known).
        bootstrap: how intervals are made.
    """

    jobs: int | None = None
    detail: bool = False
    partial: bool = False
    strict: bool = False
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


def survey(
    dataset: Dataset, source: PredictionSource, protocols: Sequence[ScoringProtocol] = ()
) -> tuple[Coverage, list[Coverage]]:
    """Completeness of a source against a dataset, before anything is scored.

    Returns:
        What there is at all, and what each protocol lacks.
    """
    whole, each = Coverage(), [Coverage() for _ in protocols]
    for clip in dataset.clips():
        expressions = dataset.expressions(clip)
        found = source.survey(clip, expressions)
        for name, state in _all_states(clip, expressions, found):
            whole.enter(name, state)
        for coverage, protocol in zip(each, protocols, strict=True):
            for name, state in _asked_states(protocol, clip, expressions, found):
                coverage.enter(name, state)
    return whole, each


def _all_states(clip: Clip, expressions: Sequence[Expression], found: Survey) -> Iterator[tuple[str, State]]:
    """Every sample of a clip; its id maps where it has no expression."""
    if found.labels is not None and not expressions:
        yield from ((_unit(name, clip), state) for name, state in found.labels.items())
    else:
        yield from ((sample_id(clip.id, e.id), found.samples[e.id]) for e in expressions)


def _asked_states(
    protocol: ScoringProtocol, clip: Clip, expressions: Sequence[Expression], found: Survey
) -> Iterator[tuple[str, State]]:
    """What a protocol asks for of a clip: samples or sets of id maps, without gaps that don't count."""
    frames = protocol.needs(clip)
    counted = None if frames is None else {clip.frame_names[t] for t in frames}
    if protocol.compares == "labels" and not counted:
        return
    if protocol.compares == "labels" and found.labels is not None:
        for name in protocol.sets:
            yield _unit(name, clip), _only(found.labels.get(name, State("missing")), counted)
        return
    for e in expressions:
        if protocol.wants(e):
            yield sample_id(clip.id, e.id), _only(found.samples[e.id], counted)


def _unit(labels: str, clip: Clip) -> str:
    """The name of a set of id maps of a clip."""
    return f"{labels}/{clip.id}".lstrip("/")


def _only(state: State, counted: set[str] | None) -> State:
    """A state without the gaps that don't count."""
    if counted is None or not state.gaps:
        return state
    return dataclasses.replace(state, gaps=tuple(name for name in state.gaps if name in counted))


def score(
    dataset: Dataset,
    sources: Sequence[PredictionSource],
    protocols: Sequence[ScoringProtocol],
    options: Options | None = None,
    *,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scored]:
    """Score every source under every protocol.

    The ground-truth side of a clip is prepared once for all of them.

    Args:
        dataset: where the truth is. With more than one process it must be a dataclass (workers
            rebuild it from its fields) or picklable.
        sources: the predictions of one or several runs.
        protocols: the rules.
        options: processes, per-frame values, what to do about gaps.
        report: receives the completeness of each source, before anything is scored.
        progress: receives (clips done, clips).

    Returns:
        One entry per source and protocol, sources first.

    Raises:
        IncompleteError: work is missing that a protocol does not allow.
        ScoreError: the masks are hidden on a server, a protocol can't be applied to the dataset, or it
            refuses the data.
    """
    options = options or Options()
    taken = hook(dataset, "taken")
    facts = {} if taken is None else {"truth": taken()}
    for fact in facts.values():
        report(f"truth: {fact}")
    surveyed: list[list[Coverage]] = []
    for source in sources:
        whole, each = survey(dataset, source, protocols)
        report(f"{source.name}: {whole.summary()}")
        _refuse(source, list(zip(protocols, each, strict=True)), options)
        surveyed.append(each)
    for protocol in protocols:
        check_fit(protocol, dataset)
    tables = [[ScoreTable() for _ in protocols] for _ in sources]
    coverages = [[Coverage() for _ in protocols] for _ in sources]
    notes: list[list[dict[str, Any]]] = [[dict(facts) for _ in protocols] for _ in sources]
    total = len(dataset.clips())
    for done, outcome in enumerate(_outcomes(dataset, sources, protocols, options), start=1):
        for s, parts in enumerate(outcome):
            for p, part in enumerate(parts):
                coverage = coverages[s][p]
                for name, state in part.states:
                    coverage.enter(name, state)
                coverage.units += part.units
                coverage.left_out.update(part.left_out)
                tables[s][p].extend(part.scores)
                _merge_notes(notes[s][p], part.notes)
        progress(done, total)
    results: list[Scored] = []
    for s, source in enumerate(sources):
        for coverage, before in zip(coverages[s], surveyed[s], strict=True):
            # What the listing told of gaps, the masks themselves don't.
            absent = {*coverage.missing, *coverage.gaps} - coverage.why.keys()
            coverage.why.update({name: why for name, why in before.why.items() if name in absent})
        # What turned out unreadable only now is refused as well.
        _refuse(source, list(zip(protocols, coverages[s], strict=True)), options)
        for p, protocol in enumerate(protocols):
            table, coverage = tables[s][p], coverages[s][p]
            row = conclude(protocol, table, coverage, options.bootstrap, notes[s][p])
            results.append(Scored(source.name, protocol, row, table, coverage, notes[s][p]))
    return results


def check_fit(protocol: ScoringProtocol, dataset: Dataset) -> None:
    """Refuse a protocol that has nothing to say about a dataset.

    Raises:
        ScoreError: in one line, what it lacks.
    """
    why = protocol.unfit(dataset)
    if why is not None:
        own = getattr(dataset, "protocols", ())
        raise ScoreError(
            f"{protocol.name} can't be applied to {dataset.name}: {why}.",
            cure=f"The data set's own: --protocol {','.join(own)}" if own else None,
        )


def conclude(
    protocol: ScoringProtocol,
    table: ScoreTable,
    coverage: Coverage,
    bootstrap: Bootstrap,
    notes: Mapping[str, Any] | None = None,
) -> Result:
    """The result row of a table of units."""
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
            "printed": protocol.printed({name: e.value for name, e in estimates.items()}),
            "interval": dataclasses.asdict(bootstrap),
            "failed": list(coverage.failed),
            "missing": list(coverage.missing),
            "missing_frames": {name: list(frames) for name, frames in coverage.gaps.items()},
            "why": dict(coverage.why),
            "left_out": dict(coverage.left_out),
            **(notes or {}),
        },
    )


def _node(protocol: ScoringProtocol) -> dict[str, Any]:
    """The class and knobs of a protocol, from which it can be built again."""
    cls = type(protocol)
    values = {name: getattr(protocol, name) for name in schema.knobs(cls)}
    return {schema.TARGET: f"{cls.__module__}.{cls.__qualname__}", **values}


# ── completeness ─────────────────────────────────────────────────────────────


def _refuse(
    source: PredictionSource, pairs: Sequence[tuple[ScoringProtocol, Coverage]], options: Options
) -> None:
    if options.partial:
        return
    offended = [(p, c) for p, c in pairs if not c.complete and not _allowed(p, c, options.strict)]
    if offended:
        raise IncompleteError([p.name for p, _ in offended], source.name, offended[0][1])


def _allowed(protocol: ScoringProtocol, coverage: Coverage, strict: bool) -> bool:
    """True if the protocol has a rule for everything that is not there."""
    rules = {protocol.policy.missing, protocol.policy.missing_clip}
    if strict:
        return rules == {"zero"}
    if "error" not in rules:
        return True
    # Only whole clips may be left out under such a rule (the scoring of a clip checks its parts).
    return protocol.policy.missing_clip != "error" and not (coverage.gaps or coverage.failed)


def _acceptable(protocol: ScoringProtocol, states: Sequence[tuple[str, State]], strict: bool) -> bool:
    """True if a clip's samples are whole, or the protocol has a rule for what is not there."""
    coverage = Coverage()
    for name, state in states:
        coverage.enter(name, state)
    return coverage.complete or _allowed(protocol, coverage, strict)


# ── one clip ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Part:
    """What a worker returns for one clip, one source and one protocol."""

    states: list[tuple[str, State]]
    scores: list[Score]
    notes: dict[str, Any]
    units: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)


def score_one_clip(
    dataset: Dataset,
    clip: Clip,
    sources: Sequence[PredictionSource],
    protocols: Sequence[ScoringProtocol],
    options: Options,
) -> list[list[_Part]]:
    """All sources under all protocols on one clip; the truth is read once."""
    expressions = [e for e in dataset.expressions(clip) if any(p.wants(e) for p in protocols)]
    labels = any(p.compares == "labels" for p in protocols)
    samples = any(p.compares != "labels" for p in protocols)
    files = hook(dataset, "annotation_files")
    maps = files(clip) if labels and files is not None else None
    truth: LabelMaps | None = None
    if maps is not None:
        truth = FolderLabels(tuple(maps), clip.frame_names, clip.size)
    targets = _targets(dataset, clip, expressions) if samples or (labels and truth is None) else []
    if labels and truth is None:
        truth = truth_labels(clip, targets)
    encodings = hook(dataset, "encodings")
    truth_read: Mapping[str, int] = {} if encodings is None else encodings()
    unions = [target.union() for target in targets]
    foreground = hook(dataset, "foreground")
    instances: MaskTrack | None = None if foreground is None else foreground(clip)
    book = CountBook(clip.size, len(clip))
    facts = {
        sample_id(clip.id, e.id): {**_short(e.attrs), **target_facts(clip, target, union)}
        for e, target, union in zip(expressions, targets, unions, strict=False)
    }
    out: list[list[_Part]] = []
    for source in sources:
        answers = source.answers(clip, expressions, labels=labels, samples=samples)
        views: dict[int | None, tuple[dict[str, Prediction | None], dict[str, State], list[Item]]] = {}
        for side in {None, *(protocol.side for protocol in protocols)}:
            found = {e.id: _checked(answers.samples.get(e.id), clip, side) for e in expressions}
            states = {e.id: state_of(found[e.id], clip) for e in expressions}
            nothing = answers.clip_missing
            if nothing is None:
                nothing = all(state.status != "ok" for state in states.values())
            items = [
                Item(e, target, found[e.id], states[e.id].status, nothing, answers.greys.get(e.id), union)
                for e, target, union in zip(expressions, targets, unions, strict=False)
            ]
            views[side] = found, states, items
        label_states = None if answers.labels is None else _label_states(clip, answers.labels)
        merged = answers.labels
        if labels and merged is None:
            merged = merged_labels(clip, expressions, views[None][0])
        parts: list[_Part] = []
        for protocol in protocols:
            _, states, items = views[protocol.side]
            here = {
                e.id: _counted(protocol, clip, states[e.id], items, index)
                for index, e in enumerate(expressions)
            }
            known = list(_asked_states(protocol, clip, expressions, Survey(here, label_states)))
            if not (options.partial or _acceptable(protocol, known, options.strict)):
                # Refused once all clips are read, so that the refusal names everything.
                parts.append(_Part(known, [], {}))
                continue
            case = Case(clip, items, book, truth, merged or {}, instances, options.detail, options.partial)
            scores = _described(protocol.score_clip(case), facts)
            read = _encodings(answers.encodings, *(answers.labels or {}).values())
            notes = {"predictions_read": read, "truth_read": _encodings(truth_read, truth)}
            notes = {**protocol.notes(case), **{k: v for k, v in notes.items() if v}}
            # Maps merged from samples are known by the clip: all its samples fail with them.
            known = [(name, _found_out(state, case.failed, name, clip.id)) for name, state in known]
            whole = all(state.status == "ok" and not state.gaps for _, state in known)
            units = len(scores) if whole else protocol.units(case)
            parts.append(_Part(known, scores, notes, units, case.left_out))
        out.append(parts)
    return out


def hook(dataset: Any, name: str) -> Callable[..., Any] | None:
    """An optional method of a dataset, also of the one a part was taken from.

    ``annotation_files(clip)`` gives one id-map PNG (or ``None``) per frame, ``foreground(clip)`` the
    union of all annotated instances, ``encodings()`` how the mask files read since its last call are
    stored, ``taken()`` where the truth was found if that was a choice.
    """
    found = getattr(dataset, name, None)
    if found is None and hasattr(dataset, "inner"):
        return hook(dataset.inner, name)
    return found if callable(found) else None


def _targets(dataset: Dataset, clip: Clip, expressions: Sequence[Expression]) -> list[Target]:
    targets: list[Target] = []
    for expression in expressions:
        target = dataset.target(clip, expression)
        if target is None:
            told = hook(dataset, "no_truth")
            what, cure = (
                told(clip, expression)
                if told is not None
                else (
                    f"The masks of '{sample_id(clip.id, expression.id)}' are not public.",
                    "`refseg submission RUN` (or --predictions) makes the zip for the evaluation server.",
                )
            )
            raise HiddenTruthError(what, where=f"{dataset.name}, split {dataset.split}", cure=cure)
        for track in (*target.objects, *([] if target.void is None else [target.void])):
            if why := track.misfit(clip.size, len(clip)):
                raise DataError(
                    f"The truth of '{sample_id(clip.id, expression.id)}' doesn't fit its clip: {why}.",
                    where=f"{dataset.name}, split {dataset.split}",
                    cure="Use frames and masks of one release; `refseg data verify` tells what differs.",
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
    return _only(state, {clip.frame_names[t] for t in protocol.scored_frames(clip, items[index])})


def _found_out(state: State, failed: Mapping[str, str], *names: str) -> State:
    """A state after its masks were looked at."""
    why = next((failed[name] for name in names if name in failed), None)
    return state if why is None else State("failed", why=why)


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
    if prediction is None or prediction.track is None:
        return prediction
    if len(clip) == len(prediction.track) == 1 and prediction.track.size == (side, side):
        return prediction
    why = prediction.track.misfit(clip.size, len(clip))
    if not why:
        return prediction
    failure = SampleFailure("DataError", f"The prediction doesn't fit its clip: {why}.", "")
    return dataclasses.replace(prediction, track=None, failure=failure)


def _short(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes worth a column of a million rows: no texts, no lists."""
    texts = ("sent", "raw", "exp", "exp_text", "file_name")
    return {
        name: value
        for name, value in attrs.items()
        if name not in texts and isinstance(value, (bool, int, float, str))
    }


def _described(scores: Sequence[Score], facts: Mapping[str, Mapping[str, Any]]) -> list[Score]:
    """Scores of samples with the facts of their expression and target beside them."""
    return [dataclasses.replace(s, attrs={**facts.get(s.unit, {}), **s.attrs}) for s in scores]


def _merge_notes(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping):
            into[key] = dict(Counter(into.get(key, {})) + Counter(value))
            continue
        known = into.setdefault(key, value)
        if known != value:
            into[key] = "mixed"


# ── processes ────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Portable:
    """A dataset as its class and knobs, so that a worker builds its own with its own open files."""

    made: Any
    cls: type | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Any) -> _Portable:
        if dataclasses.is_dataclass(dataset) and not isinstance(dataset, type):
            knobs = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset) if f.init}
            parts = {k: cls.of(v) if dataclasses.is_dataclass(v) else v for k, v in knobs.items()}
            return cls(None, type(dataset), parts)
        return cls(dataset)

    def build(self) -> Any:
        if self.cls is None:
            return self.made
        return self.cls(**{k: v.build() if isinstance(v, _Portable) else v for k, v in self.fields.items()})


@dataclass
class _Worker:
    """What a worker process keeps."""

    dataset: Any
    clips: Sequence[Clip]
    sources: Sequence[PredictionSource]
    protocols: Sequence[ScoringProtocol]
    options: Options


_worker: _Worker | None = None


def _start_worker(
    portable: _Portable,
    sources: Sequence[PredictionSource],
    protocols: Sequence[ScoringProtocol],
    options: Options,
) -> None:
    global _worker
    _end_with_parent()
    # The parent opens the same files, and says what there is to say about them.
    logging.disable()
    _quiet_threads()
    dataset = portable.build()
    _worker = _Worker(dataset, dataset.clips(), sources, protocols, options)


def _end_with_parent() -> None:
    """A pool's process would wait for its next clip for ever once its parent has been killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started here don't hear Ctrl-C, which a terminal sends to all: their parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(index: int) -> list[list[_Part]]:
    if _worker is None:
        raise RuntimeError("scoring worker was not started")
    w = _worker
    return score_one_clip(w.dataset, w.clips[index], w.sources, w.protocols, w.options)


def _quiet_threads() -> None:
    """One thread per process: the clips are what is spread."""
    kernel.keep_pages()
    if kernel.name() == "plain":
        import cv2

        cv2.setNumThreads(1)


def _outcomes(
    dataset: Dataset,
    sources: Sequence[PredictionSource],
    protocols: Sequence[ScoringProtocol],
    options: Options,
) -> Iterator[list[list[_Part]]]:
    """Outcomes of all clips in the dataset's order, whichever process finishes first."""
    clips = dataset.clips()
    # A process costs about as much CPU to start as scoring a few hundred frames.
    sensible = min(cores(), 1 + sum(map(len, clips)) // 400)
    jobs = min(options.jobs or sensible, len(clips))
    if jobs <= 1:
        _quiet_threads()
        for clip in clips:
            yield score_one_clip(dataset, clip, sources, protocols, options)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        jobs, context, _start_worker, (_Portable.of(dataset), list(sources), list(protocols), options)
    )
    waiting: list[Future[list[list[_Part]]]] = []
    try:
        # A bounded window: results in flight stay few however many clips there are.
        for index in range(len(clips)):
            with _deaf_children():
                waiting.append(pool.submit(_work, index))
            if len(waiting) >= 4 * jobs:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    except BrokenProcessPool as error:
        raise ScoreError(
            "A scoring process was killed (out of memory?).", cure="Use fewer processes: -j 1"
        ) from error
    except BaseException:
        # Nobody waits for what they are at.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
