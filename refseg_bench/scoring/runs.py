"""Score a run folder as its config says, and keep what could be scored."""

from __future__ import annotations

import errno
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from functools import partial as given
from pathlib import Path
from typing import Any

import refseg_bench
from refseg_bench import env
from refseg_bench.config import compose as configs
from refseg_bench.config.components import open_protocol
from refseg_bench.config.schema import TARGET
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import files_read
from refseg_bench.errors import RefsegError, ScoreError, StoreError
from refseg_bench.run import inputs
from refseg_bench.run.build import dataset_of, received
from refseg_bench.run.inputs import keep_record, seen_before, without
from refseg_bench.run.shards import Work, plan
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.score import HiddenTruthError, Options, Scored, under_each
from refseg_bench.scoring.sources import ClipPredictions, State, Survey, state_of
from refseg_bench.scoring.stats import Bootstrap
from refseg_bench.types import Clip, Expression, sample_id


@dataclass(frozen=True)
class StoreSource:
    """The predictions of a run folder; each process opens its own index."""

    root: Path  #: the folder
    #: Samples that were predicted on other data → in which field. They count as failed.
    stale: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    def survey(self, clip: Clip, expressions: Sequence[Expression]) -> Survey:
        """The state of every expression, from the index alone where that tells it.

        Masks of other code may lack frames, which their records tell.
        """
        store = _opened(self.root)
        statuses = store.statuses(clip.id)
        states = {e.id: State(statuses.get(e.id, "missing")) for e in expressions}
        received = bool(store.info().source)
        if received or "failed" in statuses.values():
            found = store.predictions(clip.id).items()
            states.update({k: state_of(p, clip) for k, p in found if k in states and (received or not p.ok)})
        for e in expressions if self.stale else ():
            if why := self.stale.get(sample_id(clip.id, e.id)):
                states[e.id] = State("failed", why=f"predicted on other data: {why}")
        return Survey(states)

    def predictions(
        self, clip: Clip, expressions: Sequence[Expression], *, labels: bool, samples: bool
    ) -> ClipPredictions:
        """The clip's predictions."""
        found = without(_opened(self.root).predictions(clip.id), clip, self.stale)
        return ClipPredictions({e.id: found[e.id] for e in expressions if e.id in found})


@cache
def _opened(root: Path) -> RunStore:
    return RunStore(root)


def refuse_damage(store: RunStore, work: Work) -> None:
    """See to it that no sample is missing because its line was damaged: such a sample is no zero.

    Raises:
        StoreError: samples are missing, and lines are damaged.
    """
    damage, done = store.damage(), store.done()
    if damage is not None and any(sample_id(c.id, e.id) not in done for c, es in work for e in es):
        raise damage


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
    again: bool = True,
) -> list[tuple[str, Scored | ScoreError]]:
    """Score one run, keep what could be scored, and return outcomes and refusals by protocol.

    ``values`` is the present command's config, whose protocols and score settings may differ from the frozen
    ones. Without ``again``, a protocol whose stored result was made from all the same is left out.
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
    if not words:
        hint = "Add protocols=[ID] (`refseg score`: --protocol ID), or give the data set its `protocols`."
        raise ScoreError(
            f"No protocol is chosen, and '{dataset.name}' names none.", where=store.root, hint=hint
        )
    # Before anything is read: what is appended meanwhile makes the result outdated.
    made_from = {**store.mark(), "cost": json.dumps(store.cost())}
    with files_read() as files:
        work, present = plan(dataset), inputs.Present(dataset, seen_before(store))
    # Before anything else opens the truth, whose files are told once.
    annotations = _annotations(dataset, work, files) if _ours(str(values["dataset"][TARGET])) else []
    made_from["annotations"] = "".join(map(present.files, annotations))
    differing = inputs.stale(store, work, present)
    ours = _written(store, given(keep_record, store, work, files, present, annotations))
    if not options.partial:
        refuse_damage(store, work)
    if differing and not options.partial:
        return [(word, inputs.refusal(differing, store.root)) for word in words]
    made_from |= present.marks(work)
    code = inputs.states(sorted(Path(refseg_bench.__path__[0]).rglob("*.[ps][yo]")))
    made_from["how"] = str([code, env.packages(), options.partial, options.strict, options.bootstrap])
    if not again:
        words = [word for word in words if not _stands(store, word, made_from)]
    outcomes = under_each(dataset, StoreSource(store.root, differing), words, options)
    for _, outcome in outcomes:
        if isinstance(outcome, Scored) and ours:
            write = given(store.write_result, outcome.result, outcome.table.write_parquet, made_from)
            ours = _written(store, write)
    return outcomes


def _written(store: RunStore, write: Callable[[], None]) -> bool:
    """Write to a run's folder; False, and told, where this user may not: the scores of others can be seen."""
    try:
        write()
    except StoreError as error:
        if getattr(error.__cause__, "errno", None) not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        print(f"{store.root}: scored, not kept. {error.what} (--json keeps it elsewhere)", file=sys.stderr)
        return False
    return True


def _annotations(dataset: Dataset, work: Work, read: Iterable[Path]) -> list[Clip]:
    """A clip of all files that scoring reads beside the frames, the truth's too; none = unknown."""
    with suppress(RefsegError), files_read() as opened:  # scoring tells of it
        for clip, expressions in work[:1]:
            dataset.target(clip, expressions[0])
            dataset.foreground(clip)
        found = [dataset.truth_files(clip) for clip, _ in work]
        if None not in found:
            paths = sorted({*read, *opened, *(path for paths in found for path in paths or () if path)})
            return [Clip("", tuple(paths), tuple(map(str, range(len(paths)))), (0, 0))]
    return []


def _ours(target: str) -> bool:
    """Whether a class is this package's: nobody knows what other code reads, or whether it has changed."""
    return target.startswith("refseg_bench.")


def _stands(store: RunStore, word: str, made_from: Mapping[str, str]) -> bool:
    """Whether a protocol's stored result is whole, and was made from what there is now, by the same code."""
    protocol = open_protocol(word)
    name = protocol.full_name
    try:
        made = store.made_from(name)
        same = (made.get(key) == value for key, value in made_from.items() if key != "seen")
        known = all(made_from.values()) and all(same)
        known = known and _ours(type(protocol).__module__)
        return known and name in store.results() and bool(store.samples(name))
    except RefsegError:
        return False


def score_runs(stores: Sequence[RunStore], values: Mapping[Path, Mapping[str, Any]]) -> int:
    """Score the runs that a command has finished, by its config of each; one that can't be scored is told.

    Returns:
        0, or 2 if a protocol refused; masks that are hidden on a server are no reason to.
    """
    code = 0
    hidden: dict[Path, str] = {}
    for store in stores:
        try:
            outcomes = score_store(store, values=values.get(store.root), again=False)
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
