"""``refseg heads``: which attention heads of a language model localize, for ``method=loc_head``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any, get_args

from refseg_bench import env
from refseg_bench.config import compose as configs
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import add_json, count, put_json
from refseg_bench.methods.loc_head import LocHead, Rule, find_heads
from refseg_bench.run.build import build_method, dataset_of
from refseg_bench.segmenters.base import middles


def add(commands: Any) -> None:
    p = commands.add_parser(
        "heads",
        description="Rank the heads that look at few places, over pairs of picture and expression.",
        epilog="Example: refseg heads backbone=qwen2_5_vl_7b dataset=refcoco_unc dataset.split=train",
    )
    p.add_argument(
        "overrides", nargs="+", metavar="key=value", help="backbone=…, dataset=…, method.question=…"
    )
    p.add_argument(
        "--pairs", type=count(1), default=1000, metavar="N", help="spread over the split (default: 1000)"
    )
    p.add_argument("--best", type=count(1), default=10, metavar="N", help="how many to name (default: 10)")
    p.add_argument(
        "--rule", choices=get_args(Rule), default="sum",
        help="heads that look at the picture: by their sum, or by their number, as the released code has it",
    )  # fmt: skip
    add_json(p, "all that pass as JSON", "-o", "--output")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    chosen = [] if any(word.startswith("method=") for word in args.overrides) else ["method=loc_head"]
    (point, *more) = configs.compose([*chosen, *args.overrides])
    if more:
        raise ConfigError("Heads are those of one model on one data set.", where=" ".join(args.overrides))
    dataset = dataset_of(point.values)
    method = build_method(point.values, dataset)
    if not isinstance(method, LocHead):
        raise ConfigError(f"{type(method).__name__} reads no heads.", where="method", allowed=["loc_head"])
    pairs = [(clip, one) for clip in dataset.clips() for one in dataset.expressions(clip)]
    pairs = [pairs[place] for place in middles(len(pairs), args.pairs)]
    env.seed_everything(int(point.values["seed"]), "heads")
    found = find_heads(method, pairs, args.rule)
    print(f"{len(found)} heads pass by their {args.rule}, on {len(pairs)} pairs; the least entropy first")
    print(f"{'layer':>5} {'head':>4} {'sum':>7} {'entropy':>8} {'bottom row':>10}")
    for one in found[: args.best]:
        flag = "  most of it lies there" if one.flagged else ""
        print(f"{one.layer:5} {one.head:4} {one.sum:7.4f} {one.entropy:8.4f} {one.bottom:10.3f}{flag}")
    best = [[one.layer, one.head] for one in found[: args.best]]
    print(f"backbone.loc_heads={best}".replace(" ", ""))
    told = {"model": method.backbone.identity(), "rule": args.rule, "pairs": len(pairs)}
    put_json(args.json, {**told, "heads": [asdict(one) for one in found]})
    return 0
