"""Video protocols whose unit is the object: id maps of whole clips are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from refseg_bench.datasets.base import Dataset, LimitedDataset
from refseg_bench.errors import RefsegError, ScoreError, some
from refseg_bench.scoring.boundary import JF, boundary_f, boundary_radius, jaccard, jf_values, mean_of
from refseg_bench.scoring.counts import Region, compare, label_regions, region, stack
from refseg_bench.scoring.labels import VOID, LabelMaps
from refseg_bench.scoring.protocols.base import Case, Column, Policy, ScoringProtocol, grouped_terms, ratio
from refseg_bench.types import Clip, Score

Decay = Literal["exact", "uint8"]
STATISTICS = (*JF, "J-Recall", "J-Decay", "F-Recall", "F-Decay")
Regions = dict[int, Region]
#: Object id → counts of its frames.
Rows = dict[int, list[tuple[int, ...]]]
T = TypeVar("T")


def decay(values_T: NDArray[np.float64], rule: Decay = "exact") -> float:
    """How much a per-frame value falls: mean of its first quarter minus mean of its last.

    The four bins share their border frames. ``uint8`` computes the borders in 8 bits as the DAVIS
    and TrackEval code does, which is wrong or NaN above 256 frames.
    """
    n = len(values_T)
    if n == 0:
        return float("nan")
    borders = np.round(np.linspace(1, n, 5) + 1e-10) - 1
    at = borders.astype(np.uint8 if rule == "uint8" else np.int64).astype(np.int64)
    return mean_of(values_T[at[0] : at[1] + 1]) - mean_of(values_T[at[3] : at[4] + 1])


def statistics(
    j_T: NDArray[np.float64], f_T: NDArray[np.float64], rule: Decay, epsilon: float = 0.0
) -> dict[str, float]:
    """Mean, recall (share of frames above 0.5) and decay of one object's J and F."""
    j, f = mean_of(j_T), mean_of(f_T)
    return {
        **jf_values(j, f),
        "J-Recall": mean_of((j_T > 0.5 + epsilon).astype(np.float64)),
        "J-Decay": decay(j_T, rule),
        "F-Recall": mean_of((f_T > 0.5 + epsilon).astype(np.float64)),
        "F-Decay": decay(f_T, rule),
    }


class _UnusableError(ScoreError):
    """Predicted id maps of one clip can't be scored under a protocol."""


class _Pair(NamedTuple):
    """Annotated id maps of one clip and a named set of predicted ones, with the frames that count."""

    case: Case
    name: str
    truth: LabelMaps
    predicted: LabelMaps
    frames: range

    @property
    def unit(self) -> str:
        """The set and the clip as one name."""
        return f"{self.name}/{self.case.clip.id}".lstrip("/")

    def each(self, read: Callable[[LabelMaps, int], T]) -> Iterator[tuple[int, T, T]]:
        """Index, truth and prediction of each frame, as ``read`` takes them from the maps."""
        for t in self.frames:
            try:
                predicted = read(self.predicted, t)
            except RefsegError as error:
                raise _UnusableError(error.what, where=error.where, hint=error.hint) from error
            yield t, read(self.truth, t), predicted

    def count_by_id(
        self, ids: Sequence[int] = (), check: Callable[[int, Regions], None] = lambda t, guesses: None
    ) -> Rows:
        """Counts of each id's object and the prediction of that id, from the frame on where it is first seen.

        Args:
            ids: counted from the first frame on, seen or not.
            check: is shown the predictions of each frame before they are counted.
        """
        size = self.case.clip.size
        radius, empty = boundary_radius(size), region(np.zeros(size, np.bool_))
        rows: Rows = {k: [] for k in ids}
        for t, objects, guesses in self.each(lambda maps, t: maps.regions(t)):
            check(t, guesses)
            for k in {*rows, *objects, *guesses}:
                counts = compare(objects.get(k, empty), guesses.get(k, empty), radius)
                rows.setdefault(k, []).append(counts)
        return rows

    def score(
        self, number: int, counts_TC: NDArray[np.int64], values: Mapping[str, float], **attrs: Any
    ) -> Score:
        """The score of an object from the counts of the last frames that count."""
        attrs |= {"object": number, "frames_counted": len(counts_TC)}
        if self.case.detail:
            names = [self.case.clip.frame_names[t] for t in self.frames[-len(counts_TC) :]]
            columns = zip(names, jaccard(counts_TC).tolist(), boundary_f(counts_TC).tolist(), strict=True)
            attrs["frames"] = {name: {"J": j, "F": f} for name, j, f in columns}
        return Score(f"{self.unit}/{number}", self.case.clip.id, values, attrs)


@dataclass
class LabelProtocol(ScoringProtocol):
    """Base of the protocols that compare id maps. Not a protocol by itself."""

    compares: ClassVar[Literal["expressions", "labels", "points"]] = "labels"

    def unfit(self, dataset: Dataset) -> str | None:
        """Some expressions of a clip: the objects of the others would count as not found."""
        if isinstance(dataset, LimitedDataset) and any(map(dataset.cuts, dataset.clips())):
            return (
                "it counts all objects of a clip, and the run is limited to some of their expressions "
                "(rvos-expr scores each alone)"
            )
        return super().unfit(dataset)

    def score_clip(self, case: Case) -> list[Score]:
        """Scores of all objects in all sets of id maps."""
        clip = case.clip
        if case.truth is None:
            raise ScoreError(
                f"{self.name} needs id maps of all annotated objects, which this dataset doesn't have.",
                where=clip.id,
                hint="Use a protocol whose unit is the expression, such as rvos-expr.",
            )
        frames = self.needs(clip)
        if not frames:
            case.left_out[clip.id] = f"it has {len(clip)} frames, of which the first and the last don't count"
            return []
        scores: list[Score] = []
        for name in self.sets:
            maps = case.predicted.get(name)
            if maps is None and case.predicted:
                raise ScoreError(
                    f"{self.name} scores {f'the set {name}' if name else 'one set of id maps'} per clip, "
                    f"the predictions hold {', '.join(repr(n) for n in case.predicted)}.",
                    where=clip.id,
                    hint="Use refdavis-anno for four annotators, davis-unsup for one set of maps.",
                )
            absent = set(clip.frame_names if maps is None else maps.missing())
            gaps = [clip.frame_names[t] for t in frames if clip.frame_names[t] in absent]
            if maps is None or gaps:
                nothing = len(absent) == len(clip)
                rule = self.policy.missing_clip if nothing else self.policy.missing
                if rule == "error" and not case.partial:
                    why = "no id map" if nothing else f"no id map for frames {', '.join(gaps)}"
                    raise ScoreError(
                        f"{self.name} refuses incomplete work: {why}.",
                        where=f"{name}/{clip.id}".lstrip("/"),
                        hint="Add the missing maps, or score what there is with --partial.",
                    )
                continue
            pair = _Pair(case, name, case.truth, maps, frames)
            try:
                found = self.score_maps(pair)
            except _UnusableError as error:
                if not case.partial:
                    raise
                case.failed[pair.unit] = f"{error.what} ({error.where})"
                continue
            if not found:
                case.left_out[clip.id] = self.no_object(case.truth, frames)
            scores.extend(found)
        return scores

    def needs(self, clip: Clip) -> range:
        """All frames that count must be predicted."""
        return range(1, len(clip) - 1) if self.policy.frames == "inner" else range(len(clip))

    def score_maps(self, pair: _Pair) -> list[Score]:
        """Scores of the objects of one complete set of id maps."""
        raise NotImplementedError

    def objects(self, truth: LabelMaps, frames: range) -> Sequence[int]:
        """The ids that count in a clip: 1 … the largest one of the truth's first frame."""
        first = truth.frame(0)
        return range(1, int(first[first != VOID].max(initial=0)) + 1)

    def no_object(self, truth: LabelMaps, frames: range) -> str:
        """Why no object of a clip counts."""
        first = ids_in(truth, range(1))
        if VOID in first:
            return "the truth's first frame has no id but 255, which is void here (a 0/255 mask?)"
        later = ids_in(truth, range(1, frames.stop)) - {VOID}
        if later:
            told = some(sorted(later), 8)
            return f"only objects of the truth's first frame count, and it has none ({told} come later)"
        return "its truth has no object"

    def units(self, case: Case) -> int:
        """Every object in every set of id maps."""
        frames = self.needs(case.clip)
        if case.truth is None or not frames:
            return 0
        return len(self.sets) * len(self.objects(case.truth, frames))


def ids_in(truth: LabelMaps, frames: range) -> set[int]:
    """The ids that occur in some frames, 255 too."""
    return {int(k) for t in frames for k in np.flatnonzero(np.bincount(truth.frame(t).ravel()))} - {0}


@dataclass
class DavisSemi(LabelProtocol):
    """DAVIS 2017 semi-supervised: ids are given, the first and last frame don't count.

    Objects are 1 … the largest id of the truth's first frame (255 becomes background), so an
    object that appears later scores 1 on the frames where it is absent and not predicted. Each
    object's J and F are averaged over frames, then over all objects of all clips. A predicted id
    above the number of objects aborts, a missing one counts as empty. Recall is the share of
    frames above 0.5; decay is first quarter minus last quarter.

    Attributes:
        decay: ``exact``, or ``uint8`` as the tool computes it (wrong above 256 frames).
    """

    decay: Decay = "exact"

    id: ClassVar[str] = "davis-semi"
    imitates: ClassVar[str] = "DAVIS 2017 semi-supervised"
    citation: ClassVar[str] = "Pont-Tuset et al., 2017; davis2017-evaluation @ ac7c43f"
    policy: ClassVar[Policy] = Policy(
        unit="object",
        frames="inner",
        match="id",
        void="background",
        missing_why="any missing frame: abort; predicted id above the number of objects: abort",
        rounding="final",
        digits=3,
    )
    metrics: ClassVar[tuple[str, ...]] = STATISTICS

    def score_maps(self, pair: _Pair) -> list[Score]:
        """See the class."""
        clip = pair.case.clip
        ids = self.objects(pair.truth, pair.frames)

        def check(t: int, guesses: Regions) -> None:
            if guesses and max(guesses) > len(ids):
                raise _UnusableError(
                    f"{self.name} aborts: id {max(guesses)} is predicted, '{clip.id}' has {len(ids)} "
                    "objects in its first frame.",
                    where=f"{clip.id}/{clip.frame_names[t]}",
                    hint="Write object ids 1, 2, … as pixel values (a 0/255 mask holds the id 255).",
                )

        rows = pair.count_by_id(ids, check) if ids else {}
        scores = []
        for k in ids:
            counts = stack(rows[k])
            scores.append(pair.score(k, counts, statistics(jaccard(counts), boundary_f(counts), self.decay)))
        return scores


@dataclass
class DavisUnsupervised(LabelProtocol):
    """DAVIS 2017 unsupervised: proposals are matched to objects per clip, all frames count.

    Objects are 1 … the largest id of the truth's first frame. Void pixels (255 in the truth) are
    taken out of both masks before anything is computed. Proposals are 1 … the largest predicted
    id, more than 20 abort. The assignment maximises the sum of mean (J + F) / 2 (rows proposals,
    columns objects, which fixes ties); fewer proposals than objects are padded with empty masks,
    so that an unmatched object scores 1 where it is absent; extra proposals cost nothing.

    Attributes:
        decay: ``exact``, or ``uint8`` as the tool computes it (wrong above 256 frames).
    """

    decay: Decay = "exact"

    id: ClassVar[str] = "davis-unsup"
    imitates: ClassVar[str] = "DAVIS 2017 unsupervised"
    citation: ClassVar[str] = "Caelles et al., 2019; davis2017-evaluation @ ac7c43f"
    policy: ClassVar[Policy] = Policy(
        unit="object",
        match="hungarian_jf",
        void="ignore",
        missing_why="any missing frame: abort; more than 20 proposals: abort",
        rounding="final",
        digits=3,
    )
    metrics: ClassVar[tuple[str, ...]] = STATISTICS
    #: proposals above this number abort.
    most: ClassVar[int] = 20
    #: how far above 0.5 a frame must be for the recall.
    epsilon: ClassVar[float] = 0.0

    def score_maps(self, pair: _Pair) -> list[Score]:
        """See the class."""
        clip = pair.case.clip
        counted = _Counts(len(pair.frames), clip.size)
        for index, (t, g_HW, p_HW) in enumerate(pair.each(lambda maps, t: maps.frame(t))):
            seen = label_regions(p_HW)
            if seen and max(seen) > self.most:
                raise _UnusableError(
                    f"{self.name} aborts: {max(seen)} proposals, at most {self.most} are allowed.",
                    where=f"{pair.unit}/{clip.frame_names[t]}",
                    hint="Number the proposals 1, 2, … in pixel values.",
                )
            counted.enter(index, g_HW, p_HW, seen)
        objects, proposals = self.matchable(pair, counted)
        if not objects:
            return []
        counts_PGTC = counted.counts(objects, proposals)
        flat = counts_PGTC.reshape(-1, counts_PGTC.shape[-1])
        j_PGT, f_PGT = (measure(flat).reshape(counts_PGTC.shape[:-1]) for measure in (jaccard, boundary_f))
        scores = []
        for k, (p, g) in enumerate(zip(*assign(self.merit(j_PGT, f_PGT)), strict=True)):
            values = statistics(j_PGT[p, g], f_PGT[p, g], self.decay, self.epsilon)
            scores.append(pair.score(objects[g], counts_PGTC[p, g], values, proposal=p + 1, row=k + 1))
        return scores

    def matchable(self, pair: _Pair, counted: _Counts) -> tuple[Sequence[int], Sequence[int]]:
        """The ids of objects and of proposals that are matched."""
        proposals = range(1, max(counted.proposals, default=0) + 1)
        return self.objects(pair.truth, pair.frames), proposals

    def merit(self, j_PGT: NDArray[np.float64], f_PGT: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the assignment maximises, by proposal and object."""
        return (j_PGT.mean(axis=2) + f_PGT.mean(axis=2)) / 2  # type: ignore[no-any-return]


class RefDavisAnnotators(DavisUnsupervised):
    """Ref-DAVIS17 as ReferFormer and VideoLISA score it: four annotator runs, mean of the four.

    Every set ``anno_0`` … ``anno_3`` is scored by the rules of ``davis-unsup``; the metrics are the
    mean of the four sets' means over objects. Where predictions are masks per expression, each
    set's id map is merged from them: the lowest object index wins a contested pixel.
    """

    id: ClassVar[str] = "refdavis-anno"
    imitates: ClassVar[str] = "ReferFormer, VideoLISA"
    citation: ClassVar[str] = "Wu et al., CVPR 2022; ReferFormer @ 06fc218"
    policy: ClassVar[Policy] = replace(DavisUnsupervised.policy, digits=5)
    sets: ClassVar[tuple[str, ...]] = ("anno_0", "anno_1", "anno_2", "anno_3")

    def score_maps(self, pair: _Pair) -> list[Score]:
        """As ``davis-unsup``, with the annotator noted."""
        noted = {"annotator": self.sets.index(pair.name)}
        return [replace(s, attrs={**s.attrs, **noted}) for s in super().score_maps(pair)]

    def terms(self, values: Mapping[str, Column], attrs: Mapping[str, Sequence[Any]]) -> dict[str, Column]:
        """Every metric's column split by annotator."""
        groups = {number: str(number) for number in range(len(self.sets))}
        return grouped_terms(values, self.metrics, np.asarray(attrs["annotator"], np.int64), groups)

    def combine(self, sums: Mapping[str, Column]) -> dict[str, Column]:
        """Mean over the annotators of each one's mean over objects."""
        return {
            metric: np.mean(
                [ratio(sums[f"{metric}/{a}"], sums[f"n/{a}"]) for a in range(len(self.sets))], axis=0
            )
            for metric in self.metrics
        }


@dataclass
class VosBenchmark(LabelProtocol):
    """vos-benchmark 0.1.0: ids are given, the first and last frame don't count, results in percent.

    Objects are the ids seen in the truth of the *scored* frames; 255 is an ordinary id. An
    object's frames start when its id is first seen in truth or prediction. Predicted ids without
    truth are ignored. Mean over frames, then over all objects of all clips.

    Attributes:
        all_frames: count the first and last frame too (the tool's flag for unsupervised sets).
    """

    all_frames: bool = False

    id: ClassVar[str] = "vosb"
    imitates: ClassVar[str] = "vos-benchmark"
    citation: ClassVar[str] = "hkchengrex/vos-benchmark @ acb4733"
    policy: ClassVar[Policy] = Policy(
        unit="object",
        frames="inner",
        match="id",
        void="object",
        missing="error",
        missing_clip="drop",
        missing_why="frame missing: abort; video missing: skipped",
        rounding="final",
        digits=1,
        scale=100.0,
    )
    metrics: ClassVar[tuple[str, ...]] = JF

    def notes(self, case: Case) -> dict[str, Any]:
        """Predicted ids that the truth lacks (255 where masks are 0/255)."""
        return {"ignored_ids": f"{some(sorted(case.ignored), 8)} (not in the truth)"} if case.ignored else {}

    def needs(self, clip: Clip) -> range:
        """Inner frames, or all of them."""
        return range(len(clip)) if self.all_frames else super().needs(clip)

    def objects(self, truth: LabelMaps, frames: range) -> Sequence[int]:
        """The ids seen in the scored frames."""
        return sorted(ids_in(truth, frames))

    def no_object(self, truth: LabelMaps, frames: range) -> str:
        """Why no object of a clip counts."""
        return "the truth has no object in the scored frames"

    def score_maps(self, pair: _Pair) -> list[Score]:
        """See the class."""
        rows = pair.count_by_id()
        real = {k for k, counts in rows.items() if any(area_truth for _, area_truth, *_ in counts)}
        pair.case.ignored.update(rows.keys() - real)
        scores: list[Score] = []
        for k in sorted(real):
            counts = stack(rows[k])
            j, f = (mean_of(v) * self.policy.scale for v in (jaccard(counts), boundary_f(counts)))
            scores.append(pair.score(k, counts, jf_values(j, f)))
        return scores


@dataclass
class TrackEval(DavisUnsupervised):
    """TrackEval 1.3.0 on DAVIS: objects are matched on mean J, all frames count.

    Objects are the ids seen in any frame of the truth except 255; predicted pixels where the truth
    is 255 become 0. The number of maps must equal the number of frames. Fewer predicted ids than
    objects are padded with empty masks, so that an unmatched object scores 1 where it is absent.
    Recall counts values above 0.5 + 2.2e-16. Mean over objects of a clip, then over clips weighted
    by their number of objects (= over all objects); clips without objects are left out.

    Attributes:
        match: ``hungarian_j``, or ``hungarian_jf`` (the tool's ``optim_type``).
    """

    match: Literal["hungarian_j", "hungarian_jf"] = "hungarian_j"

    id: ClassVar[str] = "trackeval"
    imitates: ClassVar[str] = "TrackEval"
    citation: ClassVar[str] = "Luiten and Hoffhues, 2020; TrackEval @ 12c8791"
    policy: ClassVar[Policy] = Policy(
        unit="object", match="hungarian_j", void="ignore", missing_why="frame counts must match, else abort"
    )
    most: ClassVar[int] = 255
    epsilon: ClassVar[float] = float(np.finfo(np.float64).eps)

    def objects(self, truth: LabelMaps, frames: range) -> Sequence[int]:
        """The ids seen in any frame, without 255."""
        return sorted(ids_in(truth, frames) - {VOID})

    def no_object(self, truth: LabelMaps, frames: range) -> str:
        """Why no object of a clip counts."""
        if VOID in ids_in(truth, frames):
            return "its truth has no id but 255, which is void here (a 0/255 mask?)"
        return "its truth has no object"

    def score_maps(self, pair: _Pair) -> list[Score]:
        """See the class."""
        if extra := pair.predicted.extra():
            clip = pair.case.clip
            raise _UnusableError(
                f"{self.name} aborts: '{clip.id}' has {len(clip)} frames, but also maps for "
                f"{', '.join(extra)}.",
                where=clip.id,
                hint="Take the surplus maps away.",
            )
        return super().score_maps(pair)

    def matchable(self, pair: _Pair, counted: _Counts) -> tuple[Sequence[int], Sequence[int]]:
        """The ids that occur."""
        return sorted(counted.truths), sorted(counted.proposals)

    @property
    def matching(self) -> str:
        """See ``match``."""
        return self.match

    def merit(self, j_PGT: NDArray[np.float64], f_PGT: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean J, or mean J and F."""
        return j_PGT.mean(axis=2) if self.match == "hungarian_j" else super().merit(j_PGT, f_PGT)


def assign(merit_PG: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Proposals and objects that belong together; rows ascending, ties as scipy resolves them.

    Where every object has one clearly best proposal and no two share it, no other assignment is as
    good, and scipy (a second to import) isn't asked.
    """
    best = merit_PG.argmax(axis=0)
    if len(set(best.tolist())) == len(best):
        lead = np.partition(merit_PG, -2, axis=0)[-2:] if len(merit_PG) > 1 else None
        if lead is None or (lead[1] - lead[0] > 1e-9).all():
            order = np.argsort(best)
            return best[order].tolist(), order.tolist()
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-merit_PG)
    return rows.tolist(), columns.tolist()


class _Counts:
    """Counts of all proposal/object pairs of one clip, kept only where one of the two is present."""

    def __init__(self, length: int, size: tuple[int, int]) -> None:
        self._length = length
        self._radius = boundary_radius(size)
        self._empty = region(np.zeros(size, np.bool_))
        #: Proposal and object (0 = none of them), frame, counts.
        self._rows: list[tuple[int, int, int, tuple[int, ...]]] = []
        self.truths: set[int] = set()
        self.proposals: set[int] = set()

    def enter(self, frame: int, g_HW: NDArray[np.uint8], p_HW: NDArray[np.uint8], seen: Regions) -> None:
        """Count one frame without the pixels that are 255 in the truth; ``seen``: all regions of ``p_HW``."""
        objects, guesses = label_regions(g_HW), seen
        if VOID in objects:
            del objects[VOID]
            guesses = label_regions(np.where(g_HW == VOID, np.uint8(0), p_HW))
        self.truths.update(objects)
        self.proposals.update(seen)
        # Each alone first, which is what stands where it meets one that is not there.
        pairs = [*((0, g) for g in objects), *((p, 0) for p in guesses), *product(guesses, objects)]
        for p, g in pairs:
            row = compare(objects.get(g, self._empty), guesses.get(p, self._empty), self._radius)
            self._rows.append((p, g, frame, row))

    def counts(self, objects: Sequence[int], proposals: Sequence[int]) -> NDArray[np.int64]:
        """Counts ``(P, G, T, 7)`` with at least as many proposals as objects; those added are empty."""
        rows = max(len(proposals), len(objects))
        out = np.zeros((rows, len(objects), self._length, 7), np.int64)
        every: dict[int, int | slice] = {0: slice(None)}
        p_at, g_at = (every | {n: i for i, n in enumerate(numbers)} for numbers in (proposals, objects))
        for p, g, frame, row in self._rows:
            if p in p_at and g in g_at:
                # Area and edge of the truth, of the proposal, or all.
                columns = slice(1, 4, 2) if p == 0 else slice(2, 5, 2) if g == 0 else slice(None)
                out[p_at[p], g_at[g], frame, columns] = row[columns]
        return out
