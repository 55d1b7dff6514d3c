"""``refseg score``: predictions and targets to per-sample scores and a result row. No GPU, no method.

Scores run folders of this harness, or (``--predictions``) files made by other people's code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg_bench.config import schema
from refseg_bench.errors import ConfigError, RefsegError, ScoreError, StoreError
from refseg_bench.files.store_io import check_output, output
from refseg_bench.types import sample_id

if TYPE_CHECKING:
    from refseg_bench.run.loop import Work
    from refseg_bench.run.store import RunStore
    from refseg_bench.scoring.protocols.base import ScoringProtocol
    from refseg_bench.scoring.score import Answers, Options, PredictionSource, Scored, Survey
    from refseg_bench.types import Clip, Dataset, Estimate, Expression


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser(
        "score",
        description="Score run folders under their own protocols or others; with --predictions, score "
        "a folder of PNG files or a JSON of run lengths. docs/scoring.md lists the layouts, "
        "docs/protocols.md the rules.",
    )
    p.add_argument("runs", nargs="*", type=Path, help="run folders, or a folder of them (default: runs)")
    p.add_argument("--protocol", metavar="ID[,ID]", help="default: the run's, else the dataset's")
    p.add_argument("--predictions", type=Path, metavar="DIR_OR_JSON", help="predictions of other code")
    p.add_argument("--dataset", metavar="NAME", help="what --predictions are about")
    p.add_argument("--root", type=Path, metavar="DIR", help="where that dataset is")
    p.add_argument("--split", metavar="S", help="its split (default: the dataset's own)")
    p.add_argument(
        "--threshold",
        type=int,
        metavar="N",
        help="grey values of mask files above N are foreground (default: 0, as in all tools; 127 = half)",
    )
    p.add_argument("--json", type=Path, metavar="OUT", help="write metrics, units and what is missing")
    p.add_argument("--per-frame", action="store_true", help="values of every frame in --json")
    p.add_argument("--explain", metavar="SAMPLE", help="print which rule made which number of a sample")
    p.add_argument("--by", metavar="ATTR[,ATTR]", help="metrics by attribute: type, objects, size, motion …")
    p.add_argument(
        "--partial", action="store_true", help="leave out what failed or is missing, under every protocol"
    )
    p.add_argument("-j", "--jobs", type=int, default=0, help="processes (default: the cores given)")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0 scored, 2 if a protocol refused.
    """
    if args.json is not None:
        check_output(args.json)
    ids = [word.strip() for word in args.protocol.split(",") if word.strip()] if args.protocol else None
    schema.allow(*(word for word in ids or () if "." in word.partition(":")[0]))
    if args.predictions is not None:
        if args.runs:
            raise ConfigError("Give run folders or --predictions, not both.")
        if args.dataset is None:
            raise ConfigError(
                "--predictions needs --dataset NAME.", cure="`refseg data list` shows the names."
            )
        return _score_files(args, ids)
    for name in ("dataset", "root", "split", "threshold"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} goes with --predictions; a run knows its dataset.")
    return _score_runs(args, ids)


# ── files made by other code ─────────────────────────────────────────────────


def _score_files(args: argparse.Namespace, ids: Sequence[str] | None) -> int:
    from refseg_bench.scoring.foreign import open_predictions
    from refseg_bench.scoring.protocols.catalogue import find
    from refseg_bench.scoring.score import Options

    dataset = named_dataset(args.dataset, args.root, args.split)
    words = list(ids or dataset.protocols)
    if args.threshold is not None and not 0 <= args.threshold < 255:
        raise ConfigError(f"--threshold is {args.threshold}.", allowed=("0 to 254",))
    sides = sorted({side for word in words if (side := find(word).side) is not None})
    source = open_predictions(args.predictions, above=args.threshold or 0, sides=sides)
    if args.threshold is not None and args.predictions.is_file():
        raise ConfigError("--threshold is for mask files; run lengths have no grey values.")
    for note in source.notes(dataset):
        _say(note)
    options = Options(
        jobs=args.jobs or None, detail=args.per_frame or bool(args.explain), partial=args.partial
    )
    outcomes = under_each(dataset, source, words, options)
    split = splits(outcomes, args.by)
    if args.json is not None:
        _put_json(args.json, document(outcomes, per_frame=args.per_frame, by=split))
    _tell(outcomes, args.explain, split)
    return 2 if _refused(outcomes, split) else 0


def _founded(outcome: Scored) -> Scored | ScoreError:
    """The outcome, unless it rests on no prediction at all, or none of its metrics has a value."""
    from refseg_bench.scoring.score import NothingScoredError

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


def named_dataset(name: str, root: Path | None, split: str | None) -> Dataset:
    """A dataset by its name or a common spelling of it, without composing a run.

    Raises:
        ConfigError: there is no such dataset or split option.
    """
    from refseg_bench.datasets.catalogue import open_dataset

    made: Dataset = open_dataset(name, root=root, split=split)
    return made


def under_each(
    dataset: Dataset, source: PredictionSource, words: Sequence[str], options: Options
) -> list[tuple[str, Scored | ScoreError]]:
    """Score under several protocols at once; one that refuses doesn't keep the others from scoring.

    A protocol that can't be applied to the dataset, or for which no prediction is usable, refuses.

    Args:
        dataset: the truth.
        source: the predictions.
        words: protocols as typed.
        options: see :class:`refseg_bench.scoring.score.Options`.

    Returns:
        (protocol as typed, its outcome or its refusal).
    """
    from refseg_bench.scoring.protocols.catalogue import find
    from refseg_bench.scoring.score import check_fit, score

    protocols = [find(word) for word in words]
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
        attempt(fit, _say)
    return [(word, outcomes[place]) for place, word in enumerate(words)]


# ── run folders ──────────────────────────────────────────────────────────────


def _score_runs(args: argparse.Namespace, ids: Sequence[str] | None) -> int:
    from refseg_bench.commands.status import find as find_runs

    refused = False
    documents: dict[str, Any] = {}
    stores = find_runs(args.runs)
    for store in stores:
        if store.root not in args.runs and not store.index():
            # A run that ended before its first prediction doesn't keep the others in its folder from scoring.
            print(f"{store.root}: skipped, for nothing was predicted", file=sys.stderr)
            continue
        try:
            outcomes = score_store(
                store,
                ids,
                partial=args.partial,
                jobs=args.jobs,
                detail=args.per_frame or bool(args.explain),
            )
        except RefsegError as error:
            if len(stores) == 1:
                raise
            print(f"{store.root}\n  not scored: {error}", file=sys.stderr)
            documents[store.root.name] = {"error": str(error)}
            refused = True
            continue
        split = splits(outcomes, args.by)
        documents[store.root.name] = document(outcomes, per_frame=args.per_frame, by=split)
        print(store.root)
        _tell(outcomes, args.explain, split)
        refused = refused or _refused(outcomes, split)
    if not documents:
        raise StoreError(
            "Nothing was predicted in any of the runs.",
            where=", ".join(str(store.root) for store in stores[:5]),
            cure="`refseg run` again: it tells what kept it from predicting.",
        )
    if args.json is not None:
        whole = next(iter(documents.values())) if len(stores) == 1 else documents
        _put_json(args.json, whole)
    return 2 if refused else 0


@dataclass(frozen=True)
class StoreSource:
    """The predictions of a run folder; each process opens its own index.

    Attributes:
        root: the folder.
        stale: samples that were predicted on other data → in which field. They count as failed.
    """

    root: Path
    stale: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    def survey(self, clip: Clip, expressions: Sequence[Expression]) -> Survey:
        """The state of every expression, from the index alone."""
        from refseg_bench.scoring.score import State, Survey, state_of

        store = _opened(self.root)
        statuses = store.statuses(clip.id)
        states = {e.id: State(statuses.get(e.id, "missing")) for e in expressions}
        if "failed" in statuses.values():
            found = store.predictions(clip.id)
            states.update({key: state_of(p, clip) for key, p in found.items() if key in states and not p.ok})
        for e in expressions if self.stale else ():
            if why := self.stale.get(sample_id(clip.id, e.id)):
                states[e.id] = State("failed", why=f"predicted on other data: {why}")
        return Survey(states)

    def answers(
        self, clip: Clip, expressions: Sequence[Expression], *, labels: bool, samples: bool
    ) -> Answers:
        """The clip's predictions."""
        from refseg_bench.run.inputs import without
        from refseg_bench.scoring.score import Answers

        found = without(_opened(self.root).predictions(clip.id), clip, self.stale)
        return Answers({e.id: found[e.id] for e in expressions if e.id in found})


_stores: dict[Path, RunStore] = {}


def _opened(root: Path) -> RunStore:
    from refseg_bench.run.store import RunStore

    if root not in _stores:
        _stores[root] = RunStore(root)
    return _stores[root]


def score_run(store: RunStore, values: Mapping[str, Any] | None = None) -> None:
    """Score one run as its config says, and keep its tables and result rows.

    Args:
        store: the run.
        values: the config of the present command, whose protocols and score settings may differ from
            those first frozen; by default the frozen ones.

    Raises:
        ScoreError: work is missing that a protocol does not allow, or the masks are hidden.
    """
    outcomes = score_store(store, values=values)
    refusals = [outcome for _, outcome in outcomes if isinstance(outcome, ScoreError)]
    if refusals:
        raise refusals[0]


def score_store(
    store: RunStore,
    protocols: Sequence[str] | None = None,
    *,
    partial: bool = False,
    jobs: int = 0,
    detail: bool = False,
    values: Mapping[str, Any] | None = None,
) -> list[tuple[str, Scored | ScoreError]]:
    """Score one run, keep what could be scored, and return outcomes and refusals by protocol."""
    from refseg_bench.config import compose as configs
    from refseg_bench.run import inputs
    from refseg_bench.run.loop import dataset_of, frozen, plan
    from refseg_bench.scoring import score as scoring
    from refseg_bench.scoring.stats import Bootstrap

    values = frozen(store) if values is None else values
    config = configs.load(values)
    dataset = dataset_of(values)
    options = scoring.Options(
        jobs=jobs or config.score.jobs or None,
        detail=detail,
        partial=partial or config.score.partial,
        strict=True,
        bootstrap=Bootstrap(config.score.bootstrap, config.score.confidence, config.score.seed),
    )
    store.sweep()
    words = list(protocols or config.protocols or dataset.protocols)
    # Before anything is read: what is appended meanwhile makes the result outdated.
    made_from = {"predictions": store.mark()}
    work, present = plan(dataset), inputs.Present(dataset)
    if not options.partial:
        refuse_damage(store, work)
    differing = inputs.stale(store, work, present)
    if differing and not options.partial:
        return [(word, inputs.refusal(differing, store.root)) for word in words]
    made_from |= present.marks(work)
    outcomes = under_each(dataset, StoreSource(store.root, differing), words, options)
    for _, outcome in outcomes:
        if isinstance(outcome, scoring.Scored):
            store.write_result(outcome.result, outcome.table.write_parquet, made_from)
    return outcomes


def refuse_damage(store: RunStore, work: Work) -> None:
    """See to it that no sample is missing because its line was damaged: such a sample is no zero.

    Raises:
        StoreError: samples are missing, and lines are damaged.
    """
    damage, done = store.damage(), store.done()
    if damage is not None and any(sample_id(c.id, e.id) not in done for c, es in work for e in es):
        raise damage


# ── telling ──────────────────────────────────────────────────────────────────


#: Protocol as typed → attribute → group → (units, metrics), or why there are no groups.
Splits = Mapping[str, Mapping[str, "Groups | ScoreError"]]
Groups = Mapping[str, "tuple[int, Mapping[str, Estimate]]"]


def splits(outcomes: Sequence[tuple[str, Scored | ScoreError]], by: str | None) -> Splits:
    """The metrics of every protocol by attribute (``--by``)."""
    attributes = [word.strip() for word in (by or "").split(",") if word.strip()]
    return {
        word: {attribute: _split(outcome, attribute) for attribute in attributes}
        for word, outcome in outcomes
        if not isinstance(outcome, ScoreError)
    }


def _split(scored: Scored, attribute: str) -> Groups | ScoreError:
    from refseg_bench.scoring.breakdown import breakdown
    from refseg_bench.scoring.stats import Bootstrap

    try:
        return breakdown(scored.protocol, scored.table, attribute, Bootstrap())
    except ScoreError as refusal:
        return refusal


def _refused(outcomes: Sequence[tuple[str, Scored | ScoreError]], by: Splits) -> bool:
    """True if a protocol refused, or an attribute of ``--by``."""
    answers = [outcome for _, outcome in outcomes] + [g for found in by.values() for g in found.values()]
    return any(isinstance(answer, ScoreError) for answer in answers)


def document(
    outcomes: Sequence[tuple[str, Scored | ScoreError]], *, per_frame: bool, by: Splits | None = None
) -> dict[str, Any]:
    """What ``--json`` holds: protocol as typed → metrics, units, n, failed, missing and more."""
    out: dict[str, Any] = {}
    for word, outcome in outcomes:
        if isinstance(outcome, ScoreError):
            coverage = getattr(outcome, "coverage", None)
            out[word] = {
                "error": str(outcome),
                "metrics": None,
                "units": [],
                "n": 0,
                "failed": [] if coverage is None else list(coverage.failed),
                "missing": [] if coverage is None else [*coverage.missing, *coverage.gaps],
                "why": {} if coverage is None else dict(coverage.why),
                "left_out": {} if coverage is None else dict(coverage.left_out),
            }
            continue
        result, table, coverage = outcome.result, outcome.table, outcome.coverage
        columns = table.values
        out[word] = {
            "protocol": result.protocol,
            **_metrics(result.metrics),
            "no_value": outcome.protocol.no_value(columns, table.attrs),
            "printed": {name: _finite(v) for name, v in result.details["printed"].items()},
            "scale": result.scale,
            "n": result.n,
            "expected": result.expected,
            "failed": list(coverage.failed),
            "missing": [*coverage.missing, *coverage.gaps],
            "missing_frames": {name: list(frames) for name, frames in coverage.gaps.items()},
            "why": dict(coverage.why),
            "left_out": dict(coverage.left_out),
            "by": {
                attribute: {group: {"n": n, **_metrics(found)} for group, (n, found) in groups.items()}
                for attribute, groups in (by or {}).get(word, {}).items()
                if not isinstance(groups, ScoreError)
            },
            "notes": dict(outcome.notes),
            "units": [
                {
                    "id": unit,
                    "clip": table.clusters[row],
                    "values": {name: _finite(float(column[row])) for name, column in columns.items()},
                    "attrs": {k: c[row] for k, c in table.attrs.items() if c[row] is not None},
                    **({"frames": dict(table.frames[row] or {})} if per_frame else {}),
                }
                for row, unit in enumerate(table.units)
            ],
        }
    return out


def _metrics(found: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "metrics": {name: _finite(e.value) for name, e in found.items()},
        "intervals": {name: [_finite(e.low), _finite(e.high)] for name, e in found.items()},
    }


def _put_json(path: Path, value: Any) -> None:
    with output(path) as handle:
        handle.write((json.dumps(value, indent=1) + "\n").encode())


def _finite(value: float) -> float | None:
    """NaN has no place in JSON."""
    return value if value == value else None


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr)


def _tell(
    outcomes: Sequence[tuple[str, Scored | ScoreError]], explain: str | None, by: Splits | None = None
) -> None:
    from refseg_bench.scoring.explain import explained

    told: set[str] = set()
    for word, outcome in outcomes:
        if isinstance(outcome, ScoreError):
            print(f"refseg score: {word}: {outcome}", file=sys.stderr)
            continue
        result = outcome.result
        printed = result.details["printed"]
        counts = f"n={result.n} of {result.expected}  failed={result.failed}  missing={result.missing}"
        print(f"{result.protocol}  {counts}")
        for line in losses(outcome):
            print(f"  {line}")
        absent = outcome.protocol.no_value(outcome.table.values, outcome.table.attrs)
        for name, estimate in result.metrics.items():
            if name not in absent:
                print(f"  {name:<16} {printed[name]:.10g}{_interval(estimate)}")
        for why in dict.fromkeys(absent.values()):
            names = ", ".join(name for name, reason in absent.items() if reason == why)
            print(f"  no value for {names}: {why}")
        for name, value in outcome.notes.items():
            line = f"  {name}: {counted(value) if isinstance(value, Mapping) else value}"
            # What was read is the same under every protocol.
            if line not in told or not isinstance(value, Mapping):
                print(line)
                if isinstance(value, Mapping) and any(name.startswith("soft") for name in value):
                    print("    soft: many levels between; --threshold N takes those above N as foreground")
            told.add(line)
        for attribute, groups in (by or {}).get(word, {}).items():
            if isinstance(groups, ScoreError):
                print(f"refseg score: {word}: {groups}", file=sys.stderr)
            else:
                print(_by(outcome.protocol, attribute, groups))
        if explain:
            print(explained(outcome, explain))


def counted(files: Mapping[str, int]) -> str:
    """Encodings, the most frequent first, in the words of a line."""
    ranked = sorted(files.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{len(ranked) - 6} other encodings"] if len(ranked) > 6 else []
    return "; ".join([f"{name} ({n} file{'s' * (n > 1)})" for name, n in ranked[:6]] + more)


def losses(outcome: Scored) -> list[str]:
    """What lacks, what it counts as, and what the protocol leaves out: the lines a screen takes."""
    coverage = outcome.coverage
    told = coverage.shown()
    if coverage.lacking:
        zeros = outcome.table.attrs.get("counted_as", []).count("zero")
        rest = coverage.lacking - zeros
        told.insert(0, f"{coverage.lacking} incomplete: {zeros} counted as 0, {rest} left out")
    return told


def _interval(estimate: Estimate) -> str:
    return f" [{estimate.low:.4f}, {estimate.high:.4f}]" if estimate.low == estimate.low else ""


def _by(protocol: ScoringProtocol, attribute: str, groups: Groups) -> str:
    lines = [f"  by {attribute}"]
    for group, (n, metrics) in groups.items():
        valued = [name for name in protocol.metrics if metrics[name].value == metrics[name].value]
        cells = "  ".join(f"{x} {metrics[x].value:.4f}{_interval(metrics[x])}" for x in valued[:3])
        lines.append(f"    {group:<22} n={n:<6} {cells}")
    return "\n".join(lines)
