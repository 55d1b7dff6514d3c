"""``refseg report``: the results of runs side by side, to the terminal, as text, or as pages to browse."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from refseg_bench.errors import ConfigError, RefsegError, StoreError, some
from refseg_bench.files.store_io import add_json, check_output, count, output, written
from refseg_bench.report import tables
from refseg_bench.report.compare import only_protocol
from refseg_bench.report.tables import leave_out_outdated
from refseg_bench.run.build import frozen
from refseg_bench.run.inputs import Present
from refseg_bench.run.store import RunStore, find_runs, runs_in

_EXPERIMENT = "experiment="
#: What a file's name ends in → the format it is written in.
_ENDS = {".txt": "term", ".md": "md", ".tex": "latex", ".csv": "csv", ".json": "json"}


def add(commands: Any) -> None:
    p = commands.add_parser(
        "report",
        epilog="Examples: refseg report · refseg report experiment=decaf/table2 --format latex · "
        "refseg report runs --html",
    )
    p.add_argument(
        "runs",
        nargs="*",
        metavar="RUN|experiment=NAME",
        help="run folders, or a folder of them (default: runs); with experiment=NAME the paper's table it "
        "repeats, with the runs beside it",
    )
    p.add_argument("--format", choices=[*_ENDS.values()], help="default: as -o FILE ends, else term")
    ends = (*_ENDS, ".svg", ".mp4")
    p.add_argument("-o", "--output", type=written(*ends), help="write to a file instead of standard output")
    add_json(p, "the rows: as --format json -o OUT")
    p.add_argument(
        "--html",
        nargs="?",
        type=written(),
        const=Path(),
        metavar="DIR",
        help="write pages to browse every sample (default: RUN/report of one run, "
        "report-N-runs-ID beside several)",
    )
    p.add_argument("--frames", type=count(1), default=32, metavar="N", help="--html: frames of each clip")
    p.add_argument(
        "--side", type=count(16), default=480, metavar="PX", help="--html: longest side of a frame"
    )
    p.add_argument(
        "--sweep",
        nargs="?",
        const="",
        metavar="KEY[,KEY]",
        help="rank the runs by a metric and draw it over the options that differ (or KEYs): one key a line, "
        "two a heat map, more parallel coordinates; -o PICTURE.svg keeps the picture",
    )
    p.add_argument("--metric", metavar="NAME", help="--sweep: default the protocol's first")
    p.add_argument("--protocol", metavar="ID", help="results under this protocol alone")
    p.add_argument(
        "--video",
        metavar="CLIP/EXPRESSION",
        help="write the sample's clip with one run's masks as an mp4 (-o FILE, default: sample.mp4)",
    )
    p.add_argument("--coco", type=written(".json"), metavar="FILE", help="write one run's masks as COCO JSON")
    p.add_argument(
        "--sink",
        action="append",
        default=[],
        metavar="NAME[:TARGET]",
        help="hand the results to wandb, mlflow or package.module.Class",
    )
    p.add_argument("--after-run", action="store_true", help=argparse.SUPPRESS)  # as a job of `refseg run`
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    if args.json is not None:
        # It says in one word what those say, or is about what they don't make.
        if args.output or args.format or args.html is not None or args.video or args.coco:
            raise ConfigError("--json is --format json -o OUT, and goes with no --html, --video or --coco.")
        args.format, args.output = "json", args.json
    if args.metric is not None and args.sweep is None:
        raise ConfigError("--metric goes with --sweep.")
    made = [name for name in ("html", "video", "coco", "sweep") if getattr(args, name) is not None]
    if args.html is not None and (args.output or args.format):
        made.append("output" if args.output else "format")
    if len(made) > 1:
        raise ConfigError(f"{' and '.join(f'--{name}' for name in made)} go in commands of their own.")
    end = args.output.suffix.lower() if args.output is not None else ""
    kinds = [end for end, name in _ENDS.items() if end == ".txt" or args.format in (None, name)]
    kinds = [".svg"] if args.sweep is not None else [".mp4"] if args.video is not None else kinds
    if end in (*_ENDS, ".svg", ".mp4") and end not in kinds:
        raise ConfigError(f"{args.output} would hold another thing than its name says.", allowed=kinds)
    args.format = args.format or _ENDS.get(end, "term")
    for path in filter(None, (args.output or (args.video and Path("sample.mp4")), args.coco)):
        check_output(path)
    paths = [Path(word) for word in args.runs if not word.startswith(_EXPERIMENT)]
    experiments = [word.removeprefix(_EXPERIMENT) for word in args.runs if word.startswith(_EXPERIMENT)]
    if experiments:
        # Without any run the published table is shown alone.
        known = find_runs(paths) if paths or runs_in(Path("runs")) else []
        whole = _whole(known, configs=True)
        if args.protocol is not None:
            only_protocol(whole, args.protocol)
        return _papers(experiments, whole, args)
    rows_alone = not args.sink and args.sweep is None and args.html is None
    stores = _whole(find_runs(paths), configs=not rows_alone)
    if args.protocol is not None:
        only_protocol(stores, args.protocol)
    if args.video is not None:
        from refseg_bench.report.pictures import sample_video

        path = args.output or Path("sample.mp4")
        sample_video(_one(stores, "--video"), args.video, path)
        print(path)
        return 0
    if args.coco is not None or args.sink:
        return _hand_over(stores, args)
    if args.sweep is not None:
        return _sweep(stores, args)
    if args.html is not None:
        from refseg_bench.report.html import home, write_report

        folder = home(stores) if args.html == Path() else args.html
        print(write_report(stores, folder, frames=args.frames, side=args.side))
        return 0
    scored = [store for store in stores if store.results()]
    if not scored and args.after_run:
        _say("nothing is scored: the masks are hidden, or `refseg score` tells why")
        return 0
    if not scored:
        where = some(store.root for store in stores)
        raise StoreError("None of the runs is scored yet.", where=where, hint="refseg score RUN")
    if lacking := ", ".join(store.root.name for store in stores if store not in scored):
        _say(f"without a score, and not shown (`refseg status` tells why): {lacking}")
    if args.format == "term":
        with _console(args.output) as console:
            for table in tables.tables_of(stores):
                tables.to_terminal(table, console)
        return 0
    _put(tables.FORMATS[args.format](stores), args.output)
    return 0


def _whole(stores: Sequence[RunStore], *, configs: bool) -> list[RunStore]:
    """The runs with the results that stand; of several runs a damaged one is told and left out."""
    whole: list[RunStore] = []
    shared: dict[int, Present] = {}
    for store in stores:
        try:
            store.info()
            if configs:
                frozen(store)
            leave_out_outdated([store], shared=shared)
        except RefsegError as error:
            if len(stores) == 1:
                raise
            _say(f"{store.root}: left out, for it can't be read: {error}")
        else:
            whole.append(store)
    if stores and not whole:
        raise StoreError("None of the runs can be read.", where=stores[0].root.parent)
    return whole


@contextlib.contextmanager
def _console(path: Path | None) -> Iterator[Console]:
    """A console that prints to the terminal, or into a file."""
    text = None if path is None else io.StringIO()
    yield Console(file=text)
    if text is not None:
        _put(text.getvalue(), path)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _put(text: str, path: Path | None) -> None:
    if path is None:
        sys.stdout.write(text)
        return
    with output(path) as handle:
        handle.write(text.encode("utf-8", "backslashreplace"))


def _one(stores: Sequence[RunStore], option: str) -> RunStore:
    if len(stores) != 1:
        raise ConfigError(f"{option} takes one run, not {len(stores)}.", allowed=[s.root for s in stores])
    return stores[0]


def _hand_over(stores: Sequence[RunStore], args: argparse.Namespace) -> int:
    """Give predictions or results to other tools."""
    if args.coco is not None:
        from refseg_bench.report.exports import write_coco

        write_coco(_one(stores, "--coco"), args.coco)
        print(args.coco)
    if args.sink:
        from refseg_bench.report.exports import record_of, sink_of

        for sink in map(sink_of, args.sink):
            for store in stores:
                sink.send(record_of(store))
    return 0


def _sweep(stores: Sequence[RunStore], args: argparse.Namespace) -> int:
    from refseg_bench.report import sweeps

    keys = [key.strip() for key in args.sweep.split(",") if key.strip()]
    found = sweeps.sweep_of(stores, metric=args.metric, keys=keys)
    table = sweeps.ranked(found)
    if args.format == "term":
        tables.to_terminal(table, Console())
    elif args.format in ("md", "latex"):
        sys.stdout.write((tables.to_markdown if args.format == "md" else tables.to_latex)(table))
    else:
        raise ConfigError("--sweep is printed as term, md or latex.", where=f"--format {args.format}")
    if args.output is not None:
        _put(sweeps.draw(found), args.output)
    return 0


def _papers(names: Sequence[str], stores: Sequence[RunStore], args: argparse.Namespace) -> int:
    """The published tables that experiments repeat, with the runs beside them."""
    from refseg_bench.report import paper

    laid = [paper.paper_table(*paper.experiment_table(name), stores) for name in names]
    if args.format == "term":
        with _console(args.output) as console:
            for table in laid:
                tables.to_terminal(paper.layout(table), console)
        return 0
    _put("\n".join(paper.FORMATS[args.format](table) for table in laid), args.output)
    return 0
