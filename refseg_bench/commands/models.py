"""``refseg models``: which weights a config needs, whether they are here, and fetching them."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import indent
from typing import Any

from refseg_bench.backbones import weights as models
from refseg_bench.backbones.weights import Need, Weights, find, needs_of
from refseg_bench.config.components import names, options
from refseg_bench.config.compose import compose, nodes
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import add_json, put_json, read_sealed_yaml

#: Config groups whose members may need weights.
_GROUPS = ("backbone", "segmenter")


def add(commands: Any) -> None:
    p = commands.add_parser("models")
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    asked = (
        "GROUP=NAME (segmenter=sam2), any override of `refseg run` (experiment=…), or a run folder; "
        "default: every backbone and segmenter"
    )
    shown = actions.add_parser("list", help="what is needed, and is it here")
    shown.add_argument("overrides", nargs="*", metavar="WHAT", help=asked)
    add_json(shown, "the same")
    shown.set_defaults(main=main)
    got = actions.add_parser("get", help="fetch what is missing")
    got.add_argument("overrides", nargs="*", metavar="WHAT", help=asked.partition("; default")[0])
    got.add_argument("--repo", help="any hub id instead of a config's")
    got.add_argument("--revision", help="its commit, tag or branch")
    got.add_argument("--file", help="one file of it instead of the whole snapshot")
    got.add_argument("--offline", action="store_true", help="look into the cache only")
    add_json(got, "where each lies")
    got.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or, if ``list`` was asked for something definite, 1 where it is not here and 2 where what is here
        can't be used.
    """
    return _list(args.overrides, args.json) if args.action == "list" else _get(args)


def _list(what: Sequence[str], out: Path | None) -> int:
    code = 0
    records: list[dict[str, Any]] = []
    where = models.cache_folder()
    offline = " (offline mode)" if models.offline_by_environment() else ""
    print(f"cache: {where}{offline}")
    for need in _needs(what):
        told = [*map(str, need.weights)]
        records.append({"node": need.node, "problem": need.problem, "weights": told, "here": []})
        print(need.node)
        if need.problem is not None:
            code = max(code, 1)
            print(f"  can't tell: {need.problem}")
        elif not need.weights:
            print("  no weights")
        for weights in need.weights:
            status = find(weights)
            records[-1]["here"].append(status.path)
            print(f"  {weights}")
            if status.problem is not None:
                code = 2
                print(indent(str(status.problem), "    "))
            elif status.path is None:
                code = max(code, 1)
                print(f"    missing; fetch it: refseg models get {shlex.join(what) or need.node}")
            else:
                commit = f", commit {status.commit}" if status.commit else ""
                print(f"    here, {status.megabytes:,.0f} MB{commit}: {status.path}")
    put_json(out, records)
    return code if what else 0


def _get(args: argparse.Namespace) -> int:
    if args.repo is not None and args.overrides:
        raise ConfigError("Give --repo or what a config needs, not both.", where=" ".join(args.overrides))
    if args.repo is not None:
        wanted = [Weights(args.repo, args.revision, args.file)]
    else:
        if not args.overrides:
            raise ConfigError(
                "`refseg models get` fetches what it is told to.",
                allowed=("GROUP=NAME", "an override of `refseg run`", "a run folder", "--repo ID"),
                hint="`refseg models list` shows what there is.",
            )
        if args.revision is not None or args.file is not None:
            raise ConfigError(
                "--revision and --file belong to --repo.",
                hint="Set a component's own with segmenter.revision=…",
            )
        wanted = []
        for need in _needs(args.overrides):
            if need.problem is not None:
                raise ConfigError(f"Can't tell which weights '{need.node}' needs: {need.problem}")
            wanted.extend(need.weights)
    found: dict[str, str] = {}
    for weights in dict.fromkeys(wanted):
        found[str(weights)] = str(models.fetch(weights, offline=args.offline))
        print(f"{weights}: {found[str(weights)]}")
    if not wanted:
        print("no weights needed")
    put_json(args.json, found)
    return 0


def _needs(what: Sequence[str]) -> Iterator[Need]:
    """The needs of every argument, told apart by its form."""
    if not what:
        for group in _GROUPS:
            for name in names(group):
                yield from _node_needs(group, name)
        return
    overrides: list[str] = []
    for item in what:
        if "=" not in item and os.path.isdir(item):
            yield from needs_of(read_sealed_yaml(Path(item) / "config.yaml"))
        elif "=" in item:
            overrides.append(item)
        else:
            raise ConfigError(
                f"'{item}' is neither GROUP=NAME, an override nor a run folder.",
                allowed=[f"{group}={name}" for group in _GROUPS for name in names(group)],
            )
    if any(item.partition("=")[0].partition(".")[0] not in _GROUPS for item in overrides):
        # The points of a sweep share most of theirs.
        yield from dict.fromkeys(need for point in compose(overrides) for need in needs_of(point.values))
        return
    # Components, and options of theirs (segmenter.size=tiny), without a method that would bring the rest.
    for told, group, name, given in nodes(overrides):
        yield from _node_needs(group, name, given, told)


def _node_needs(
    group: str, name: str, given: Mapping[str, Any] | None = None, told: str | None = None
) -> Iterator[Need]:
    for need in needs_of(options(group, name, given), group):
        yield replace(need, node=need.node.replace(group, told or f"{group}={name}", 1))
