"""``refseg submission``: the zip an evaluation server expects, and a check of any such zip."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg_bench.errors import ConfigError

if TYPE_CHECKING:
    from refseg_bench.store import RunStore
    from refseg_bench.types import Dataset


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser(
        "submission",
        help="write or check the zip for an evaluation server",
        description="Write a run's zip for the Ref-YouTube-VOS or MeViS server and check it; or check one.",
    )
    p.add_argument("run", nargs="?", type=Path, help="run folder")
    p.add_argument("-o", "--output", type=Path, metavar="ZIP", help="default: RUN/submission.zip")
    p.add_argument("--check", type=Path, metavar="ZIP", help="check this zip and write nothing")
    p.add_argument("--dataset", metavar="NAME", help="what the zip of --check answers (without a run)")
    p.add_argument("--root", type=Path, metavar="DIR", help="where that dataset is")
    p.add_argument("--split", metavar="S", help="its split")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0 if the zip is fit to submit, 1 if not.
    """
    from refseg_bench import submission
    from refseg_bench.store import RunStore

    store = None if args.run is None else RunStore.open(args.run)
    if args.check is not None:
        return _tell(submission.check(args.check, _dataset(args, store)), args.check)
    if store is None:
        raise ConfigError("Give a run folder, or a zip with --check.", cure="`refseg status` lists the runs.")
    if args.dataset is not None:
        raise ConfigError("--dataset goes with --check; a run knows its dataset.")
    dataset = _of_run(store)
    path = args.output or store.root / "submission.zip"
    count = submission.write(path, dataset, store.predictions)
    print(f"{path}: {count} masks", file=sys.stderr)
    return _tell(submission.check(path, dataset), path)


def _dataset(args: argparse.Namespace, store: RunStore | None) -> Dataset | None:
    from refseg_bench.commands.score import named_dataset

    if args.dataset is not None:
        return named_dataset(args.dataset, args.root, args.split)
    if args.root is not None or args.split is not None:
        raise ConfigError("--root and --split need --dataset NAME.")
    return None if store is None else _of_run(store)


def _of_run(store: RunStore) -> Dataset:
    from refseg_bench import schema
    from refseg_bench.run import frozen

    # The whole split, whatever part of it the run was limited to.
    made: Dataset = schema.build(frozen(store)["dataset"], "dataset")
    return made


def _tell(report: Any, path: Path) -> int:
    print(f"{path}: " + "\n".join(report.lines()))
    return 0 if report.ok else 1
