"""``refseg score``: predictions and targets to per-sample scores and a result row. No GPU, no method."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg_bench import config as configs
from refseg_bench import schema, scoring
from refseg_bench.commands.status import find
from refseg_bench.metrics.protocols.base import ScoringProtocol
from refseg_bench.metrics.stats import Bootstrap
from refseg_bench.run import dataset_of, frozen
from refseg_bench.store import RunStore
from refseg_bench.types import Clip, Expression


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser("score", help="score runs under their protocols, or others")
    p.add_argument("runs", nargs="*", type=Path, help="run folders, or a folder of them (default: runs)")
    p.add_argument("--protocol", help="ids, comma-separated (default: the run's, else the dataset's)")
    p.add_argument("--partial", action="store_true", help="score although samples are failed or missing")
    p.add_argument("-j", "--jobs", type=int, default=0, help="processes (default: the cores given)")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    protocols = args.protocol.split(",") if args.protocol else None
    for store in find(args.runs):
        score_run(store, protocols, partial=args.partial, jobs=args.jobs)
    return 0


@dataclass(frozen=True)
class StoreSource:
    """The predictions of a run folder; each process opens its own index."""

    root: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    def survey(self, clip: Clip, expressions: Sequence[Expression]) -> scoring.Survey:
        """The state of every expression, from the index alone."""
        statuses = _opened(self.root).statuses(clip.id)
        return scoring.Survey({e.id: scoring.State(statuses.get(e.id, "missing")) for e in expressions})

    def answers(
        self, clip: Clip, expressions: Sequence[Expression], *, labels: bool, samples: bool
    ) -> scoring.Answers:
        """The clip's predictions."""
        found = _opened(self.root).predictions(clip.id)
        return scoring.Answers({e.id: found[e.id] for e in expressions if e.id in found})


_stores: dict[Path, RunStore] = {}


def _opened(root: Path) -> RunStore:
    if root not in _stores:
        _stores[root] = RunStore(root)
    return _stores[root]


def protocols_of(ids: Sequence[str]) -> list[ScoringProtocol]:
    """Protocols by id."""
    return [schema.build(configs.load_node("protocol", name), "protocol") for name in ids]


def score_run(
    store: RunStore, protocols: Sequence[str] | None = None, *, partial: bool = False, jobs: int = 0
) -> None:
    """Score one run and keep its tables and result rows.

    Args:
        store: the run.
        protocols: ids; by default the run's own, else the dataset's.
        partial: score although samples are failed or missing.
        jobs: processes; 0 = the config's.

    Raises:
        ScoreError: work is missing that a protocol does not allow, or the masks are hidden.
    """
    values = frozen(store)
    config = configs.load(values)
    dataset = dataset_of(values)
    ids = protocols or config.protocols or dataset.protocols
    options = scoring.Options(
        jobs=jobs or config.score.jobs or None,
        partial=partial or config.score.partial,
        strict=True,
        bootstrap=Bootstrap(config.score.bootstrap, config.score.confidence, config.score.seed),
    )
    source = StoreSource(store.root)
    for scored in scoring.score(
        dataset, [source], protocols_of(ids), options, report=lambda line: print(f"  {line}", file=sys.stderr)
    ):
        store.write_result(scored.result, scored.table.write_parquet)
