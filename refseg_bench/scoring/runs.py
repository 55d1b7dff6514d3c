"""Score a run folder as its config says, and keep what could be scored."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refseg_bench.config import compose as configs
from refseg_bench.config.components import open_protocol
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import files_read
from refseg_bench.errors import RefsegError, ScoreError
from refseg_bench.run import inputs
from refseg_bench.run.build import dataset_of, received
from refseg_bench.run.inputs import keep_record, seen_before
from refseg_bench.run.shards import plan
from refseg_bench.run.store import RunStore
from refseg_bench.scoring import score as scoring
from refseg_bench.scoring.score import HiddenTruthError, Options, Scored
from refseg_bench.scoring.sources import NothingScoredError, PredictionSource, StoreSource, refuse_damage
from refseg_bench.scoring.stats import Bootstrap


def score_run(store: RunStore) -> None:
    """Score one run as its frozen config says, and keep its tables and result rows.

    Raises:
        ScoreError: work is missing that a protocol does not allow, or the masks are hidden.
    """
    refusals = [outcome for _, outcome in score_store(store) if isinstance(outcome, ScoreError)]
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
    """Score one run, keep what could be scored, and return outcomes and refusals by protocol.

    ``values`` is the present command's config, whose protocols and score settings may differ from the frozen
    ones.
    """
    values = received(store) if values is None else values
    config = configs.load(values)
    dataset = dataset_of(values)
    options = Options(
        jobs=jobs or config.score.jobs or None,
        detail=detail,
        partial=partial or config.score.partial,
        strict=not store.info().source,
        bootstrap=Bootstrap(config.score.bootstrap, config.score.confidence, config.score.seed),
    )
    store.sweep()
    words = list(protocols or config.protocols or dataset.protocols)
    # Before anything is read: what is appended meanwhile makes the result outdated.
    made_from = {"predictions": store.mark()}
    with files_read() as files:
        work, present = plan(dataset), inputs.Present(dataset, seen_before(store))
    differing = inputs.stale(store, work, present)
    keep_record(store, work, files, present)
    if not options.partial:
        refuse_damage(store, work)
    if differing and not options.partial:
        return [(word, inputs.refusal(differing, store.root)) for word in words]
    made_from |= present.marks(work)
    outcomes = under_each(dataset, StoreSource(store.root, differing), words, options)
    for _, outcome in outcomes:
        if isinstance(outcome, Scored):
            store.write_result(outcome.result, outcome.table.write_parquet, made_from)
    return outcomes


def score_runs(stores: Sequence[RunStore], values: Mapping[Path, Mapping[str, Any]]) -> int:
    """Score the runs that a command has finished; one that can't be scored is told.

    Args:
        stores: the runs.
        values: run folder → the config of the present command.

    Returns:
        0, or 2 if a protocol refused; masks that are hidden on a server are no reason to.
    """
    code = 0
    hidden: dict[Path, str] = {}
    for store in stores:
        try:
            outcomes = score_store(store, values=values.get(store.root))
        except RefsegError as error:
            print(f"{store.root}\n  not scored: {error}", file=sys.stderr)
            store.outdated.update(store.results())
            code = 2
            continue
        for word, outcome in outcomes:
            if not isinstance(outcome, ScoreError):
                continue
            # No earlier result stands in for the one that was refused.
            store.outdated.add(open_protocol(word).full_name)
            if isinstance(outcome, HiddenTruthError):
                hint = (outcome.hint or "").replace("RUN", shlex.quote(str(store.root)))
                hidden[store.root] = f"{outcome.what}\n  {hint}"
            else:
                print(f"{store.root}\n  not scored: {outcome}", file=sys.stderr)
                code = 2
    for root, what in hidden.items():
        print(f"{root}\n  predicted. {what}", file=sys.stderr)
    return code


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
    protocols = [open_protocol(word) for word in words]
    outcomes: dict[int, Scored | ScoreError] = {}
    for place, protocol in enumerate(protocols):
        try:
            scoring.check_fit(protocol, dataset)
        except ScoreError as refusal:
            outcomes[place] = refusal
    fit = [place for place in range(len(words)) if place not in outcomes]

    def attempt(places: Sequence[int], report: Callable[[str], None]) -> None:
        try:
            found = scoring.score(dataset, [source], [protocols[p] for p in places], options, report=report)
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
