"""``refseg gate``: a run held against a baseline, for continuous integration: the exit code decides."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from refseg_bench.config import schema
from refseg_bench.errors import ConfigError, StoreError, printable
from refseg_bench.files.store_io import add_json, put_json, read_yaml
from refseg_bench.report.compare import Gated, Policy, gate, options_of
from refseg_bench.report.tables import leave_out_outdated, records_of, rows_of
from refseg_bench.run.build import lasting_of
from refseg_bench.run.store import RunStore


def add(commands: Any) -> None:
    p = commands.add_parser(
        "gate",
        description="Hold a run against a baseline on the same samples: passed (0) when all of the interval "
        "of the paired difference is within the drop that is allowed, else not (1). 2: it can't be told.",
    )
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument(
        "--against", type=Path, required=True, metavar="BASELINE", help="the run to be held against"
    )
    p.add_argument(
        "--max-drop",
        type=float,
        metavar="N",
        help="percent points it may be worse in the headline metric (0)",
    )
    p.add_argument("--protocol", metavar="ID", help="default: the first both are scored under")
    p.add_argument(
        "--policy", type=Path, metavar="YAML", help="max_drop (a number, or one for each metric), protocol, "
        "and undecided: pass or fail, for an interval that holds the allowed drop",
    )  # fmt: skip
    add_json(p, "the run's result row with what was found")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    policy = _policy(args)
    run, baseline = RunStore.open(args.run), RunStore.open(args.against)
    leave_out_outdated([run, baseline])
    found, gated = gate(run, baseline, policy)
    well = {"held", "not decided"} if policy.undecided == "pass" else {"held"}
    passed = all(one.verdict in well for one in gated)
    print(printable(" against ".join(reversed(found.labels))), found.protocol, sep="\n")
    for one in gated:
        interval = f"[{one.low:+z.2f}, {one.high:+z.2f}]" if one.low == one.low else "without an interval"
        print(f"  {one.metric}: {one.value:+z.2f} {interval}, may drop {one.allowed:.2f}: {one.verdict}")
    print("passed" if passed else "not passed")
    put_json(args.json, _row(run, baseline, found.protocol, gated, passed))
    return int(not passed)


def _policy(args: argparse.Namespace) -> Policy:
    typed = {"max_drop": args.max_drop, "protocol": args.protocol}
    try:
        values = {} if args.policy is None else read_yaml(args.policy)
        values |= {name: value for name, value in typed.items() if value is not None}
        return schema.construct(Policy, values, "policy")
    except (ConfigError, StoreError) as error:
        known = error.allowed or [field.name for field in fields(Policy)]
        raise ConfigError(error.what, where=args.policy or "--max-drop", allowed=known) from error


def _row(run: RunStore, baseline: RunStore, protocol: str, gated: list[Gated], passed: bool) -> Any:
    """The run's result row, whose parts anybody can read without this package."""
    info = run.info()
    row = next(row for row in records_of(rows_of([run])) if row["protocol"] == protocol)
    found = [{**asdict(each), "verdict": each.verdict} for each in gated]
    return {
        **row,
        "split": lasting_of(run)["dataset"].get("split"),
        "choices": info.choices,
        "options": options_of(info.choices, lasting_of(run)),
        "digest": info.content or info.digest,
        "command": info.command,
        "gate": {"against": baseline.root.name, "digest": baseline.info().digest, "passed": passed,
                 "percent_points": found},
    }  # fmt: skip
