"""``refseg data``: what data sets exist and where, unpack and convert them, check them, look at them."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from refseg_bench.config.components import find, names, open_dataset
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import data_root
from refseg_bench.datasets.prepare import prepare
from refseg_bench.datasets.verify import Verdict, manifest, verify
from refseg_bench.env import resource
from refseg_bench.errors import ConfigError, DataError, printable, shown
from refseg_bench.files.images import encoded
from refseg_bench.files.store_io import add_json, count, output, put_json, safe_name, writing, written
from refseg_bench.report.pictures import find_sample, show_target


def add(commands: Any) -> None:
    top = commands.add_parser("data")
    actions = top.add_subparsers(dest="action", required=True, metavar="ACTION")

    p = actions.add_parser(
        "list", help="what exists, what is found where, which masks are public, which protocols papers use"
    )
    add_json(p, "the same")
    p.set_defaults(main=list_sets)

    p = actions.add_parser("prepare", help="unpack and convert the archives of a set")
    p.add_argument("name", metavar="NAME")
    p.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        type=Path,
        required=True,
        metavar="ARCHIVE",
        help="the archives as downloaded (Ref-DAVIS17: also folders that hold them unpacked)",
    )
    p.add_argument("--to", type=written(), metavar="DIR", help="default: $REFSEG_DATA/NAME or data/NAME")
    add_json(p, "the set's folder and the clips of each split")
    p.set_defaults(main=prepare_set)

    p = actions.add_parser(
        "verify", help="check files, sizes, masks and counts; exit code 1 if anything is wrong"
    )
    p.add_argument("name", metavar="NAME")
    p.add_argument("--root", type=Path, metavar="DIR", help="the set's folder")
    p.add_argument("--split", help="default: every split that is there")
    p.add_argument(
        "--first", type=count(0), default=5, metavar="N", help="problems to print of each kind (0 = all)"
    )
    p.add_argument(
        "--decode", action="store_true", help="decode every frame whole, not its header and end only"
    )
    p.add_argument("--no-masks", dest="masks", action="store_false", help="don't read the masks")
    add_json(p, "counts, notes and all problems by split")
    p.set_defaults(main=verify_set)

    p = actions.add_parser("show", help="a picture of one sample: frames, target, words")
    p.add_argument("name", metavar="NAME")
    p.add_argument("sample", metavar="SAMPLE", help="CLIP/EXPRESSION, or a clip's id")
    p.add_argument("--root", type=Path, metavar="DIR", help="the set's folder")
    p.add_argument("--split")
    p.add_argument("--frames", type=count(1), default=6, help="frames of a video to show")
    p.add_argument("--out", type=written(".png"), metavar="PNG", help="default: NAME-SAMPLE.png here")
    add_json(p, "the sample's words and attributes, its frames and the picture's path")
    p.set_defaults(main=show_sample)


def list_sets(args: argparse.Namespace) -> int:
    """``refseg data list``."""
    records: dict[str, dict[str, Any]] = {}
    for name in names("dataset"):
        facts = manifest(name)
        try:
            data = open_dataset(name)
        except ConfigError as error:
            # A set of another package may need an option that only its user knows.
            print(f"{name}\n  {shown(error.what)}")
            continue
        public = [s for s, f in facts.splits.items() if f.public] if facts else [data.split]
        hidden = [s for s, f in facts.splits.items() if not f.public] if facts else []
        protocols = [*((facts.protocols if facts else ()) or data.protocols)]
        found = _found(data, list(facts.splits) if facts else public)
        records[name] = {"kind": facts and facts.kind, "public": public, "hidden": hidden}
        records[name] |= {"protocols": protocols, "found": found}
        where = [f"{base} ({', '.join(s)})" if base else "(give dataset.root)" for base, s in found.items()]
        splits = ", ".join(public) + f"; masks hidden: {', '.join(hidden)}" * bool(hidden)
        print(f"{name}{f' ({facts.kind})' if facts else ''}: {splits}\n  protocols: {', '.join(protocols)}")
        print(f"  found: {printable('; '.join(where) or 'nowhere')}")
    put_json(args.json, records)
    own = "$REFSEG_DATA" if os.environ.get("REFSEG_DATA") else "the default: $REFSEG_DATA is not set"
    for place, why in ((data_root(), own), (resource("datasets"), "the shipped samples")):
        there = "" if place.is_dir() else ", no such folder"
        looked = printable(str(place.resolve()))
        print(f"Looked in {looked} ({why}{there}), in NAME and the folders of its archives.")
    return 0


def _found(data: Dataset, splits: list[str]) -> dict[str, list[str]]:
    """Where a set is, with the splits that are there; an empty place where only its user knows it."""
    present: dict[str, list[str]] = {}
    for data.split in splits:
        try:
            base = data.base()
        except DataError:
            continue
        present.setdefault("" if base is None else str(base), []).append(data.split)
    return present


def prepare_set(args: argparse.Namespace) -> int:
    """``refseg data prepare``."""
    name = find("dataset", args.name)
    console = Console()

    def say(line: str) -> None:
        console.print(escape(line), soft_wrap=True)

    root, ready = prepare(name, args.sources, args.to, say)
    for split, clips in ready.items():
        say(f"{name} {split}: {clips} clips")
    say(f"ready in {root}; check it with: refseg data verify {name} --root {shlex.quote(str(root))}")
    if not ready:
        say("but no split of it loads yet: more archives are needed")
    put_json(args.json, {"set": name, "root": str(root), "clips": ready})
    return 0 if ready else 1


def verify_set(args: argparse.Namespace) -> int:
    """``refseg data verify``."""
    name = find("dataset", args.name)
    facts = manifest(name)
    splits = [args.split]
    if not args.split:
        data = open_dataset(name, root=args.root)
        splits = data.splits(list(facts.splits) if facts else [data.split])
        if not splits:
            data.base()  # tells what is missing
            splits = [data.split]
    console = Console()
    found: dict[str, dict[str, Any]] = {}
    for split in splits:
        data = open_dataset(name, root=args.root, split=split)
        said = facts.splits.get(data.split) if facts else None
        verdict = verify(data, said, decode=args.decode, masks=args.masks)
        _report(console, name, data.split, verdict, args.first)
        problems = {kind: [[p.where, p.what] for p in all_of] for kind, all_of in verdict.kinds().items()}
        told = {"ok": verdict.ok, "counts": verdict.counts, "notes": verdict.notes, "problems": problems}
        found[data.split] = told
    put_json(args.json, found)
    return 0 if all(told["ok"] for told in found.values()) else 1


def _report(console: Console, name: str, split: str, verdict: Verdict, first: int) -> None:
    def say(text: str) -> None:
        console.print(escape(text), soft_wrap=True, highlight=False)

    counts = ", ".join(f"{n} {key}" for key, n in verdict.counts.items() if n)
    say(f"{name} {split}: {counts or 'nothing could be read'}")
    notes = verdict.notes if first <= 0 else verdict.notes[:first]
    for note in notes:
        say(f"  note: {note}")
    if len(verdict.notes) > len(notes):
        say(f"  … and {len(verdict.notes) - len(notes)} more notes (--first 0 prints all)")
    if verdict.ok:
        say("  all well")
        return
    kinds = verdict.kinds()
    say(f"  {len(verdict.problems)} problems of {len(kinds)} kinds")
    for kind, problems in kinds.items():
        say(f"  {kind}: {len(problems)}")
        shown = problems if first <= 0 else problems[:first]
        for problem in shown:
            say(f"    {problem.where}")
            say(f"      {problem.what}")
        if len(problems) > len(shown):
            say(f"    … and {len(problems) - len(shown)} more (--first 0 prints all)")
        say(f"    hint: {problems[0].hint}")


def show_sample(args: argparse.Namespace) -> int:
    """``refseg data show``."""
    name = find("dataset", args.name)
    data = open_dataset(name, root=args.root, split=args.split)
    clip, expression = find_sample(data, args.sample)
    image = show_target(clip, expression, data.target(clip, expression), frames=args.frames)
    out = args.out or Path(safe_name(f"{name}-{clip.id}-{expression.id}".replace("/", "_")) + ".png")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with output(out) as handle:
        handle.write(encoded(image, "PNG"))
    print(f"{clip.id}/{expression.id}: {expression.text}")
    print(out)
    told = {"clip": clip.id, "expression": expression.id, "text": expression.text, "attrs": expression.attrs}
    put_json(args.json, {**told, "frames": clip.frame_names, "size": clip.size, "file": str(out)})
    return 0
