"""``refseg submission``: the zip an evaluation server expects, and a check of any such zip."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refseg_bench.config import schema
from refseg_bench.config.components import open_dataset
from refseg_bench.datasets.base import Dataset
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import add_json, put_json, within, written
from refseg_bench.run.build import received
from refseg_bench.run.inputs import Present, refusal, stale
from refseg_bench.run.shards import plan
from refseg_bench.run.store import RunStore
from refseg_bench.scoring import submission
from refseg_bench.scoring.foreign import inside_dataset, open_predictions
from refseg_bench.scoring.results import counted
from refseg_bench.scoring.runs import refuse_damage
from refseg_bench.types import Prediction, SampleFailure, sample_id

#: What helps where masks of other code are missing.
_WRITE = "Write what is missing; docs/scoring.md lists the layouts."


def add(commands: Any) -> None:
    p = commands.add_parser(
        "submission",
        description="Write the zip of a run, or of other people's predictions, for the Ref-YouTube-VOS or "
        "MeViS server and check it; or check one.",
    )
    p.add_argument("run", nargs="?", type=Path, help="run folder")
    p.add_argument("--predictions", type=Path, metavar="DIR_OR_JSON", help="predictions of other code")
    p.add_argument(
        "-o",
        "--output",
        type=written(".zip"),
        metavar="ZIP",
        help="default: RUN/submission.zip, or DIR_OR_JSON-submission.zip beside the predictions",
    )
    p.add_argument("--check", type=Path, metavar="ZIP", help="check this zip and write nothing")
    p.add_argument("--dataset", metavar="NAME", help="what --check or --predictions is about (without a run)")
    p.add_argument("--root", type=Path, metavar="DIR", help="where that dataset is")
    p.add_argument("--split", metavar="S", help="its split")
    p.add_argument(
        "--threshold",
        type=int,
        metavar="N",
        help="--predictions: grey values of mask files above N are foreground (default: 0; 127 = half)",
    )
    add_json(p, "what the check found")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command: 0 if the zip is fit to submit, 1 if not."""
    if args.run is not None and args.predictions is not None:
        raise ConfigError("Give a run folder or --predictions, not both.")
    if args.threshold is not None and args.predictions is None:
        raise ConfigError("--threshold goes with --predictions; a run's masks have no grey values.")
    store = None if args.run is None else RunStore.open(args.run)
    if args.check is not None:
        if args.predictions is not None or args.output is not None:
            raise ConfigError("--check writes nothing: leave out --predictions and -o.")
        return _tell(submission.check(args.check, _dataset(args, store)), args.check, args.json)
    if args.predictions is not None:
        return _pack_files(args)
    if store is None:
        raise ConfigError(
            "Give a run folder, --predictions, or a zip with --check.", hint="`refseg status` lists the runs."
        )
    if args.dataset is not None:
        raise ConfigError("--dataset goes with --check and --predictions; a run knows its dataset.")
    dataset = _of_run(store)
    work = plan(dataset)
    if differing := stale(store, work, Present(dataset)):
        raise refusal(differing, store.root)
    refuse_damage(store, work)
    path = args.output or within(store.root, store.root / "submission.zip")
    hint = "Finish the run (the same `refseg run` resumes it)."
    return _pack(path, dataset, store.predictions, _WRITE if store.info().source else hint, args.json)


def _pack_files(args: argparse.Namespace) -> int:
    dataset = _dataset(args, None)
    if dataset is None:
        raise ConfigError("--predictions needs --dataset NAME.", hint="`refseg data list` shows the names.")
    source = open_predictions(args.predictions, above=args.threshold)
    if inside := inside_dataset(args.predictions, dataset):
        print(f"  predictions: {inside}", file=sys.stderr)
    for note in source.notes(dataset):
        print(f"  {note}", file=sys.stderr)
    clips = {clip.id: clip for clip in dataset.clips()}
    read: dict[str, Mapping[str, int]] = {}

    def lookup(clip_id: str) -> Mapping[str, Prediction]:
        clip = clips[clip_id]
        expressions = dataset.expressions(clip)
        given = source.predictions(clip, expressions, labels=False, samples=True)
        found, read[clip_id] = dict(given.samples), given.encodings
        for key, state in source.survey(clip, expressions).samples.items():
            if key not in found and state.why:
                failure = SampleFailure("missing", state.why, "")
                found[key] = Prediction(sample_id(clip.id, key), clip.id, key, failure=failure)
        return found

    given = args.predictions.resolve()
    path = args.output or given.with_name(f"{given.name.removesuffix('.json')}-submission.zip")
    code = _pack(path, dataset, lookup, _WRITE, args.json)
    if encodings := sum(map(Counter, read.values()), Counter()):
        print(f"  predictions_read: {counted(encodings)}", file=sys.stderr)
    return code


def _pack(
    path: Path,
    dataset: Dataset,
    lookup: Callable[[str], Mapping[str, Prediction]],
    hint: str,
    out: Path | None,
) -> int:
    count = submission.write(path, dataset, lookup, hint=hint)
    print(f"{path}: {count} masks", file=sys.stderr)
    return _tell(submission.check(path, dataset), path, out)


def _dataset(args: argparse.Namespace, store: RunStore | None) -> Dataset | None:
    if args.dataset is not None:
        made: Dataset = open_dataset(args.dataset, root=args.root, split=args.split)
        return made
    if args.root is not None or args.split is not None:
        raise ConfigError("--root and --split need --dataset NAME.")
    return None if store is None else _of_run(store)


def _of_run(store: RunStore) -> Dataset:
    # The whole split, whatever part of it the run was limited to.
    made: Dataset = schema.build(received(store)["dataset"], "dataset")
    return made


def _tell(report: submission.ZipCheck, path: Path, out: Path | None) -> int:
    put_json(out, {"zip": path, "ok": report.ok, **vars(report)})
    print(f"{path}: " + "\n".join(report.lines()))
    return 0 if report.ok else 1
