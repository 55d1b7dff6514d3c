"""Where predictions come from, and what of them lacks: what scoring asks of a source; a run folder as one.

Predictions that other people's code wrote to files are read in :mod:`refseg_bench.scoring.foreign`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from refseg_bench.datasets.base import Dataset
from refseg_bench.errors import ScoreError, printable, some
from refseg_bench.scoring.labels import GreyMasks, LabelMaps
from refseg_bench.scoring.protocols.base import ScoringProtocol
from refseg_bench.types import Clip, Expression, Prediction, Status, sample_id


class State(NamedTuple):
    """What is known of one sample's prediction before it is read."""

    status: Status  #: ``ok``, ``failed`` or ``missing``
    gaps: tuple[str, ...] = ()  #: names of frames that have no prediction
    why: str = ""  #: the failure, or what is known of the gaps, in words


@dataclass(frozen=True)
class Survey:
    """What is known of one clip's predictions before they are read."""

    samples: Mapping[str, State] = field(default_factory=dict)  #: expression id → state
    #: Set of merged id maps → state; ``None`` where the predictions are not merged.
    labels: Mapping[str, State] | None = None


@dataclass(frozen=True)
class ClipPredictions:
    """What a source holds of one clip."""

    #: Expression id → prediction (a failed one has ``failure`` set); absent = missing.
    samples: Mapping[str, Prediction] = field(default_factory=dict)
    #: Expression id → raw grey values, for predictions that came as PNG files.
    greys: Mapping[str, GreyMasks] = field(default_factory=dict)
    #: Merged id maps by set, for predictions that came as such; ``None`` = put them together from ``samples``
    #: where a protocol wants them.
    labels: Mapping[str, LabelMaps] | None = None
    #: True if there is nothing at all for this clip; ``None`` = nothing if no sample is ok.
    clip_missing: bool | None = None
    #: How the mask files read are stored, in words → number of files.
    encodings: Mapping[str, int] = field(default_factory=dict)


class PredictionSource(Protocol):
    """Where predictions come from. Must be picklable: workers get a copy."""

    @property
    def name(self) -> str:
        """How messages and tables call it."""

    def survey(self, clip: Clip, expressions: Sequence[Expression]) -> Survey:
        """The state of every expression of a clip, without reading masks."""

    def predictions(
        self, clip: Clip, expressions: Sequence[Expression], *, labels: bool, samples: bool
    ) -> ClipPredictions:
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


# ── completeness ─────────────────────────────────────────────────────────────

#: Names and reasons shown on the screen; ``--json`` holds all of them.
SHOWN = 5


@dataclass
class Coverage:
    """What there is to score, and what of it is not there."""

    expected: int = 0  #: samples of the dataset (clips, where id maps are compared)
    #: failed, missing: names of samples without a prediction, by reason.
    failed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    #: Sample → names of frames without a prediction.
    gaps: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: Sample → reason, where more is known than that it lacks.
    why: dict[str, str] = field(default_factory=dict)
    units: int = 0  #: units that would be scored if nothing lacked
    #: Clip or sample in which the protocol counts nothing → why.
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
            *(("missing", name, f": frames {some(frames)}") for name, frames in self.gaps.items()),
        ]
        return [
            *(
                ": ".join(filter(None, (f"{word} {name}{more}", self.why.get(name))))
                for word, name, more in lacking
            ),
            *(f"left out {name}: {why}" for name, why in self.left_out.items()),
        ]

    def shown(self) -> list[str]:
        """The first of :meth:`lines`, as much as a screen takes, and how many more there are."""
        lines = [printable(line) for line in self.lines()]
        if len(lines) <= SHOWN:
            return lines
        return [*lines[:SHOWN], f"and {len(lines) - SHOWN} more, all in --json"]


class LackingError(ScoreError):
    """There is no number because of what lacks; ``coverage`` has the names and reasons."""

    coverage: Coverage


class IncompleteError(LackingError):
    """A protocol refuses to score because work is missing."""

    def __init__(self, protocols: Sequence[str], source: str, coverage: Coverage) -> None:
        super().__init__(
            f"{', '.join(protocols)} refuses incomplete work: {coverage.summary()}.\n  "
            + "\n  ".join(coverage.shown()),
            where=source,
            hint="Finish the run (the same `refseg run` resumes it) or write what is missing; or score what "
            "there is with --partial.",
        )
        self.coverage = coverage
        self.protocols = tuple(protocols)


class NothingScoredError(LackingError):
    """Not one unit comes from a prediction."""

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
            hint="Check the files named here, the dataset, its split and the file layout (docs/scoring.md).",
        )
        self.coverage = coverage


def survey(
    dataset: Dataset, source: PredictionSource, protocols: Sequence[ScoringProtocol] = ()
) -> tuple[Coverage, list[Coverage]]:
    """Completeness of a source against a dataset: what there is at all, and what each protocol lacks."""
    whole, each = Coverage(), [Coverage() for _ in protocols]
    for clip in dataset.clips():
        expressions = dataset.expressions(clip)
        found = source.survey(clip, expressions)
        for name, state in _all_states(clip, expressions, found):
            whole.enter(name, state)
        for coverage, protocol in zip(each, protocols, strict=True):
            for name, state in asked_states(protocol, clip, expressions, found):
                coverage.enter(name, state)
    return whole, each


def _all_states(clip: Clip, expressions: Sequence[Expression], found: Survey) -> Iterator[tuple[str, State]]:
    """Every sample of a clip; its id maps where it has no expression."""
    if found.labels is not None and not expressions:
        yield from ((_unit(name, clip), state) for name, state in found.labels.items())
    else:
        yield from ((sample_id(clip.id, e.id), found.samples[e.id]) for e in expressions)


def asked_states(
    protocol: ScoringProtocol, clip: Clip, expressions: Sequence[Expression], found: Survey
) -> Iterator[tuple[str, State]]:
    """What a protocol asks for of a clip: samples or sets of id maps, without gaps that don't count."""
    frames = protocol.needs(clip)
    counted = None if frames is None else {clip.frame_names[t] for t in frames}
    if protocol.compares == "labels" and not counted:
        return
    if protocol.compares == "labels" and found.labels is not None:
        for name in protocol.sets:
            yield _unit(name, clip), only(found.labels.get(name, State("missing")), counted)
        return
    for e in expressions:
        if protocol.wants(e):
            yield sample_id(clip.id, e.id), only(found.samples[e.id], counted)


def _unit(labels: str, clip: Clip) -> str:
    """The name of a set of id maps of a clip."""
    return f"{labels}/{clip.id}".lstrip("/")


def only(state: State, counted: set[str] | None) -> State:
    """A state without the gaps that don't count."""
    if counted is None or not state.gaps:
        return state
    return state._replace(gaps=tuple(name for name in state.gaps if name in counted))


def refuse(source: PredictionSource, pairs: Iterable[tuple[ScoringProtocol, Coverage]], strict: bool) -> None:
    """Refuse what some of the protocols have no rule for.

    Raises:
        IncompleteError: with all of them.
    """
    offended = [(p, c) for p, c in pairs if not c.complete and not _allowed(p, c, strict)]
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


def acceptable(protocol: ScoringProtocol, states: Sequence[tuple[str, State]], strict: bool) -> bool:
    """True if a clip's samples are whole, or the protocol has a rule for what is not there."""
    coverage = Coverage()
    for name, state in states:
        coverage.enter(name, state)
    return coverage.complete or _allowed(protocol, coverage, strict)
