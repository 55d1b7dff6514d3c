"""Where the predictions of a run folder come from, for scoring.

Predictions that other people's code wrote to files are read in :mod:`refseg_bench.scoring.foreign`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refseg_bench.run.inputs import without
from refseg_bench.run.shards import Work
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.score import Answers, State, Survey, state_of
from refseg_bench.types import Clip, Expression, sample_id


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
        found = without(_opened(self.root).predictions(clip.id), clip, self.stale)
        return Answers({e.id: found[e.id] for e in expressions if e.id in found})


_stores: dict[Path, RunStore] = {}


def _opened(root: Path) -> RunStore:
    if root not in _stores:
        _stores[root] = RunStore(root)
    return _stores[root]


def refuse_damage(store: RunStore, work: Work) -> None:
    """See to it that no sample is missing because its line was damaged: such a sample is no zero.

    Raises:
        StoreError: samples are missing, and lines are damaged.
    """
    damage, done = store.damage(), store.done()
    if damage is not None and any(sample_id(c.id, e.id) not in done for c, es in work for e in es):
        raise damage
