"""``refseg score``: predictions and targets to per-sample scores and a result row. No GPU, no method.

Scores run folders of this harness, or (``--predictions``) files made by other people's code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refseg_bench.config import schema
from refseg_bench.config.components import find, is_class, open_dataset, open_protocol, options
from refseg_bench.errors import ConfigError, RefsegError, ScoreError, StoreError, some
from refseg_bench.files.store_io import add_json, count, put_json, written
from refseg_bench.scoring import results
from refseg_bench.scoring.foreign import inside_dataset, open_predictions
from refseg_bench.scoring.results import Splits
from refseg_bench.scoring.score import HiddenTruthError, Options, Scored, under_each


def add(commands: Any) -> None:
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
    p.add_argument("--name", metavar="NAME", help="what tables call them (default: the folder's or file's)")
    p.add_argument(
        "--save",
        nargs="?",
        type=written(),
        const=Path("runs"),
        metavar="DIR",
        help="keep --predictions as a run folder of DIR (default: runs), which report, compare, submission "
        "and pages take like any other",
    )
    add_json(p, "metrics, units and what is missing")
    p.add_argument("--per-frame", action="store_true", help="values of every frame in --json")
    p.add_argument("--explain", metavar="SAMPLE", help="print which rule made which number of a sample")
    p.add_argument("--by", metavar="ATTR[,ATTR]", help="metrics by attribute: type, objects, size, motion …")
    p.add_argument(
        "--partial", action="store_true", help="leave out what failed or is missing, under every protocol"
    )
    p.add_argument("-j", "--jobs", type=count(0), default=0, help="processes (default: the cores given)")
    p.add_argument("--after-run", action="store_true", help=argparse.SUPPRESS)  # as a job of `refseg run`
    p.add_argument("--launch", help=argparse.SUPPRESS)  # the `refseg run` whose protocols and settings hold
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command: 0 scored, 2 if a protocol refused."""
    ids = [word.strip() for word in args.protocol.split(",") if word.strip()] if args.protocol else None
    schema.allow(*filter(is_class, (word.partition(":")[0] for word in ids or ())))
    for word in ids or ():
        open_protocol(word)  # one that isn't there is told once, not by every run
    if args.predictions is not None:
        if args.runs:
            raise ConfigError("Give run folders or --predictions, not both.")
        if args.dataset is None:
            raise ConfigError(
                "--predictions needs --dataset NAME.", hint="`refseg data list` shows the names."
            )
        if args.name is not None and args.save is None:
            raise ConfigError("--name goes with --save.")
        if args.save is not None:
            args.runs = [_save(args)]
            return _score_runs(args, ids)
        return _score_files(args, ids)
    for name in ("dataset", "root", "split", "threshold", "name", "save"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} goes with --predictions; a run knows its dataset.")
    return _score_runs(args, ids)


# ── files made by other code ─────────────────────────────────────────────────


def _score_files(args: argparse.Namespace, ids: Sequence[str] | None) -> int:
    dataset = open_dataset(args.dataset, root=args.root, split=args.split)
    words = list(ids or dataset.protocols)
    sides = sorted({side for word in words if (side := open_protocol(word).side) is not None})
    source = open_predictions(args.predictions, above=args.threshold, sides=sides)
    for note in source.notes(dataset):
        _say(note)
    how = Options(jobs=args.jobs or None, detail=args.per_frame or bool(args.explain), partial=args.partial)
    outcomes = under_each(dataset, source, words, how)
    if inside := inside_dataset(args.predictions, dataset):
        for _, outcome in outcomes:
            if isinstance(outcome, Scored):
                outcome.notes["predictions"] = inside
    split = results.splits(outcomes, args.by)
    put_json(args.json, results.document(outcomes, per_frame=args.per_frame, by=split))
    _tell(outcomes, args.explain, split)
    return 2 if _refused(outcomes, split) else 0


def _save(args: argparse.Namespace) -> Path:
    """Keep the predictions as a run; its folder."""
    from refseg_bench.scoring.saving import save

    schema.allow(*filter(is_class, [args.dataset]))
    given = {"root": args.root and str(args.root.resolve()), "split": args.split}
    node = options("dataset", args.dataset, {key: value for key, value in given.items() if value is not None})
    source = open_predictions(args.predictions, above=args.threshold)
    name = args.predictions.resolve().stem if args.name is None else args.name
    store, told = save(source, find("dataset", args.dataset), node, name, args.save, args.jobs or None)
    for line in told:
        _say(line)
    return store.root


# ── run folders ──────────────────────────────────────────────────────────────


def _score_runs(args: argparse.Namespace, ids: Sequence[str] | None) -> int:
    from refseg_bench.run.build import received
    from refseg_bench.run.store import find_runs
    from refseg_bench.scoring.runs import score_store

    refused = False
    documents: dict[str, Any] = {}
    stores = find_runs(args.runs)
    folders = [store.root.name for store in stores]
    names = {
        store.root: store.root.name if folders.count(store.root.name) == 1 else str(store.root)
        for store in stores
    }
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
                values=args.launch and received(store, args.launch),
            )
        except RefsegError as error:
            if len(stores) == 1:
                raise
            print(f"{store.root}\n  not scored: {error}", file=sys.stderr)
            documents[names[store.root]] = {"error": str(error)}
            refused = True
            continue
        split = results.splits(outcomes, args.by)
        documents[names[store.root]] = results.document(outcomes, per_frame=args.per_frame, by=split)
        print(store.root)
        _tell(outcomes, args.explain, split)
        if args.after_run or args.save is not None:
            # Hidden masks are no fault of a run, which ends well with them here, too.
            outcomes = [pair for pair in outcomes if not isinstance(pair[1], HiddenTruthError)]
        refused = refused or _refused(outcomes, split)
    if not documents:
        raise StoreError(
            "Nothing was predicted in any of the runs.",
            where=some(store.root for store in stores),
            hint="`refseg run` again: it tells what kept it from predicting.",
        )
    put_json(args.json, next(iter(documents.values())) if len(stores) == 1 else documents)
    return 2 if refused else 0


# ── telling ──────────────────────────────────────────────────────────────────


def _refused(outcomes: Sequence[tuple[str, Scored | ScoreError]], by: Splits) -> bool:
    """True if a protocol refused, or an attribute of ``--by``."""
    answers = [outcome for _, outcome in outcomes] + [g for found in by.values() for g in found.values()]
    return any(isinstance(answer, ScoreError) for answer in answers)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr)


def _tell(
    outcomes: Sequence[tuple[str, Scored | ScoreError]], explain: str | None, by: Splits | None = None
) -> None:
    seen: set[str] = set()
    for word, outcome in outcomes:
        if isinstance(outcome, ScoreError):
            print(f"refseg score: {word}: {outcome}", file=sys.stderr)
            continue
        print("\n".join(results.lines_of(outcome, seen)))
        for attribute, groups in (by or {}).get(word, {}).items():
            if isinstance(groups, ScoreError):
                print(f"refseg score: {word}: {groups}", file=sys.stderr)
            else:
                print(results.grouped(outcome.protocol, attribute, groups))
        if explain:
            print(results.explained(outcome, explain))
