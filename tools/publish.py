"""Write a run's numbers into ``results/reproduced``, with all that somebody needs to judge them.

    python tools/publish.py RUN… [--to DIR] [--note WHY]

A number outside the tolerance of its experiment is refused without a note.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refseg_bench.errors import RefsegError, ScoreError, StoreError
from refseg_bench.files.store_io import PUT_BACK, output, read_text, reading, write_error
from refseg_bench.report.paper import COLUMNS, Held, departures, held_against, printed_name
from refseg_bench.report.tables import csv_cells, csv_of, in_percent, leave_out_outdated
from refseg_bench.run.build import frozen
from refseg_bench.run.store import RunStore, find_runs
from refseg_bench.types import Estimate, Result

ROOT = Path(__file__).resolve().parent.parent
#: Columns after those of the published tables.
EXTRA = (
    "published", "low", "high", "level", "n", "expected", "failed", "missing", "protocol", "commit", "digest",
    "environment", "date", "command", "note",
)  # fmt: skip
HEADER = (*(c for c in COLUMNS if c != "source"), *EXTRA)
#: What makes a row: publishing again replaces it.
_KEY = (
    "paper", "table", "row", "method", "backbone", "segmenter", "dataset", "split", "setting", "metric",
    "protocol",
)  # fmt: skip


def publish(stores: Iterable[RunStore], folder: Path, note: str = "") -> dict[Path, int]:
    """Add the runs' rows to the CSV files of a folder, replacing older rows of the same thing.

    Runs of an experiment with a reference go into the file of that paper, others into ``samples.csv``.

    Args:
        stores: scored runs.
        folder: usually ``results/reproduced``.
        note: kept beside the rows; required where a number is outside its experiment's tolerance.

    Returns:
        File → rows written into it.

    Raises:
        ScoreError: a run is not scored, is outside the tolerance without a note, or would replace a row of
            more samples.
        StoreError: the folder can't be written.
    """
    new: dict[str, list[dict[str, str]]] = {}
    for store in stores:
        if not store.results():
            raise ScoreError("The run is not scored.", where=store.root, hint="refseg score RUN")
        held = held_against(store)
        off = [h for h in held if not h.within]
        if off and not note:
            worst = max(off, key=lambda h: abs(h.delta))
            raise ScoreError(
                f"{len(off)} numbers are outside the tolerance of {worst.tolerance:g} points; "
                f"{worst.row.dataset} {worst.row.metric}: {worst.estimate.value:.1f}, "
                f"published {worst.row.value}.",
                where=store.root,
                hint='Say why with --note "…": it is kept beside the rows.',
            )
        file = (frozen(store).get("reference") or {}).get("file", "samples.csv")
        rows = [_of_paper(h, store, note) for h in held] if held else _of_run(store, note)
        new.setdefault(str(file) if held else "samples.csv", []).extend(rows)
    written = {}
    for name, rows in new.items():
        path = folder / Path(name).name
        written[path] = len(rows)
        _merge(path, rows)
    return written


def _of_paper(held: Held, store: RunStore, note: str) -> dict[str, str]:
    row = {name: text for name, text in asdict(held.row).items() if name != "source"}
    told = [f"with {words}" if (words := departures(store)) else "", note]
    facts = _facts(store, held.result, held.estimate, "; ".join(filter(None, told)))
    return {**row, "value": _number(held.estimate.value), **facts, "published": held.row.value}


def _of_run(store: RunStore, note: str) -> list[dict[str, str]]:
    """Rows of a run that repeats no paper: its own name stands for the paper's."""
    values, info = frozen(store), store.info()
    choices = info.choices
    backbone, segmenter = values.get("backbone"), values.get("segmenter")
    dataset = str(values["dataset"].get("name", "?"))
    rows = []
    for result in store.results().values():
        for metric in result.metrics:
            ours = in_percent(result, metric)
            rows.append(
                {
                    "paper": "refseg_bench",
                    "table": dataset,
                    "row": "",
                    "method": choices.get("method", "?"),
                    "backbone": ""
                    if not backbone
                    else str(backbone.get("label") or choices.get("backbone", "")),
                    "segmenter": str(choices.get("segmenter", "")) if segmenter or info.source else "none",
                    # Of other people's code neither its kind nor its parts are known.
                    "kind": "bound" if info.bound else "" if info.source else "training-free",
                    "dataset": printed_name(dataset),
                    "split": str(values["dataset"].get("split", "")),
                    "setting": ";".join(_settings(store)),
                    "metric": metric,
                    "value": _number(ours.value),
                    **_facts(store, result, ours, note),
                    "published": "",
                }
            )
    return rows


def _settings(store: RunStore) -> list[str]:
    """What was typed beyond the choice of components."""
    return sorted(
        word
        for word in store.info().overrides
        if ("." in word.partition("=")[0] or word.startswith("seed="))
        and not word.startswith(("paths.", "cluster."))
    )


def _facts(store: RunStore, result: Result, ours: Estimate, note: str) -> dict[str, str]:
    info = store.info()
    records = list(store.environments().values())
    env: Mapping[str, Any] = records[-1] if records else {}
    commits = {str(r.get("commit") or "unknown") + ("+changes" if r.get("dirty") else "") for r in records}
    level = (result.details.get("interval") or {}).get("level")
    return {
        "low": _number(ours.low),
        "high": _number(ours.high),
        "level": "" if level is None else f"{level:g}",
        **{name: str(count) for name, count in result.coverage.items()},
        "protocol": result.protocol,
        "commit": " ".join(sorted(commits)),
        "digest": info.content or info.digest,
        "environment": "" if info.source else environment(env),
        "date": str(env.get("started") or info.created)[:10],
        "command": info.command,
        "note": "; ".join(filter(None, [f"only {part}" if (part := info.part or result.part) else "", note])),
    }


def environment(record: Mapping[str, Any]) -> str:
    """An environment record in a line: device, Python, the packages that move numbers."""
    device = record.get("device") or {}
    packages = record.get("packages") or {}
    names = ("numpy", "opencv-python-headless", "pycocotools", "torch", "transformers", "diffusers", "sam2")
    parts = [
        ", ".join(device.get("gpus") or ()) or f"CPU {device.get('cpu', '?')}",
        f"Python {record.get('python', '?')}",
        *(f"{name} {packages[name]}" for name in names if name in packages),
    ]
    return "; ".join(parts)


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""


def read_published(path: Path) -> list[dict[str, str]]:
    """The rows of a file that :func:`publish` wrote.

    Raises:
        StoreError: the file has other columns, or can't be read.
    """
    with reading(path, csv.Error):
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != HEADER:
        raise StoreError("The file has other columns than published rows.", where=path, allowed=HEADER)
    for number, row in enumerate(rows, start=1):
        # A row of more or fewer cells has None for what is missing or has no name.
        if row.keys() != set(HEADER) or None in row.values() or not row["expected"].isdecimal():
            raise StoreError(f"Row {number} is damaged.", where=path, hint=PUT_BACK)
    return rows


def _merge(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    def key(row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row[name] for name in _KEY)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {key(row): dict(row) for row in read_published(path)} if path.is_file() else {}
        for row in map(csv_cells, rows):
            there = known.get(key(row))
            if there is not None and int(row["expected"]) < int(there["expected"]):
                raise ScoreError(
                    f"A row of {there['expected']} samples stands there; this run is of {row['expected']}.",
                    where=path,
                    hint="Publish it into another folder (--to).",
                )
            known[key(row)] = dict(row)
        ordered = sorted(known.values(), key=lambda r: (r["paper"], r["table"], _row_number(r), r["method"]))
        with output(path) as handle:
            handle.write(csv_of(ordered, HEADER).encode())
    except OSError as error:
        raise write_error(error, path) from error


def _row_number(row: Mapping[str, str]) -> tuple[int, str]:
    return (int(row["row"]) if row["row"].isdecimal() else 0, row["row"])


def main(words: Sequence[str] | None = None) -> int:
    """Publish the runs that are named."""
    parser = argparse.ArgumentParser(description="Add runs' rows to results/reproduced/*.csv")
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, or a folder of them (default: runs)")
    parser.add_argument(
        "--to", type=Path, default=ROOT / "results" / "reproduced", help="folder of CSV files"
    )
    parser.add_argument("--note", default="", help="kept beside the rows; needed outside the tolerance")
    args = parser.parse_args(words)
    try:
        stores = find_runs(args.runs)
        leave_out_outdated(stores)
        for path, count in publish(stores, args.to, args.note).items():
            print(f"{path}: {count} rows")
    except RefsegError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
