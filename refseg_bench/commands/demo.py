"""``refseg demo``: one clip, one expression, any method; a stacked picture and an overlay video."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from refseg_bench import env
from refseg_bench.backbones.base import GroundingMLLM
from refseg_bench.backbones.chat import ChatModel
from refseg_bench.config import components, schema
from refseg_bench.config import compose as configs
from refseg_bench.datasets.files import wordless
from refseg_bench.errors import ConfigError, printable
from refseg_bench.files.images import encoded
from refseg_bench.files.store_io import add_json, check_output, count, output, put_json, writing, written
from refseg_bench.report.pictures import open_clip, overlay_video, show_stages
from refseg_bench.run.build import build_method, check_parts, dataset_of
from refseg_bench.types import Expression


def add(commands: Any) -> None:
    p = commands.add_parser(
        "demo",
        description="Nothing is scored and no run folder is made.",
        epilog='Example: refseg demo clip.mp4 "the dog on the left" backbone=qwen2_5_vl_7b',
    )
    p.add_argument("clip", type=Path, metavar="VIDEO_OR_FOLDER", help="a video, a folder of frames, an image")
    p.add_argument("expression", help="what to find")
    p.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="choices and overrides, as in refseg run; a backbone alone is read by DecAF or RefAM; "
        "default: method=lexical",
    )
    p.add_argument(
        "-o", "--output", type=written(), default=Path("demo"), metavar="DIR", help="default: demo"
    )
    p.add_argument("--frames", type=count(1), metavar="N", help="use N frames of the clip, spread evenly")
    p.add_argument("--fps", type=float, help="of the overlay video (default: the clip's, else 12)")
    p.add_argument("--columns", type=count(1), default=6, metavar="N", help="frames in the stacked picture")
    add_json(p, "the answer's share of the frames, the seconds and the files")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    text = args.expression
    if wordless(text) or text != text.encode("utf-8", "replace").decode():
        raise ConfigError("The expression is empty or no UTF-8.", hint='refseg demo CLIP "the thing to find"')
    if args.fps is not None and not 0 < args.fps < 1000:
        raise ConfigError(f"--fps is {args.fps:g}.", allowed=["more than 0, less than 1000"])
    with _telling() as tell:
        tell("composing the options")
        (point, *more) = configs.compose([*_method_for(args.overrides), *args.overrides])
        if more:
            raise ConfigError("A demo is one run, not a sweep.", where=" ".join(args.overrides))
        tell(f"reading {printable(str(args.clip))}")
        with writing(args.output):
            args.output.mkdir(parents=True, exist_ok=True)
        made = [args.output / "picture.png"]
        check_output(made[0])
        clip, rate = open_clip(args.clip, args.output / "frames", args.frames)
        parts = {**(point.values["backbone"] or {}), **(point.values["segmenter"] or {})}
        if any(str(value).startswith("shipped:") for value in parts.values()):
            print(
                "The models that ship have seen rendered shapes only: of any other clip they know nothing. "
                "A real one: backbone=qwen2_5_vl_7b",
                file=sys.stderr,
            )
        method = build_method(point.values, dataset_of(point.values))
        if method.sees_targets:
            raise ConfigError("This method looks at the truth, which a clip of your own has none of.")
        chosen = (point.choices.get(part) for part in ("method", "backbone", "segmenter"))
        words = " · ".join(name for name in chosen if name not in (None, "None"))
        tell(f"{words}: loading, and finding it in {len(clip)} frame{'s' * (len(clip) > 1)}")
        check_parts(method)
        env.seed_everything(int(point.values["seed"]), clip.id)
        began = time.perf_counter()
        (grounding,) = method.predict(clip, [Expression("0", args.expression)])
        seconds = time.perf_counter() - began
        tell("drawing")
        with output(made[0]) as handle:
            handle.write(encoded(show_stages(clip, grounding, columns=args.columns), "PNG"))
        if len(clip) > 1:
            made.append(args.output / "overlay.mp4")
            overlay_video(clip, grounding, made[-1], fps=args.fps or rate)
    areas = [area for area in grounding.track.area() if area is not None]
    share = sum(areas) / (len(areas) * clip.size[0] * clip.size[1]) if areas else 0.0
    print(f"{len(clip)} frames in {seconds:.1f} s; the prediction covers {100 * share:.1f} % of them")
    print(*made, sep="\n")
    told = {"clip": clip.id, "expression": args.expression, "frames": len(clip), "seconds": round(seconds, 3)}
    put_json(
        args.json, {**told, "share": share, "no_target": grounding.no_target, "files": [*map(str, made)]}
    )
    return 0


def _method_for(overrides: Sequence[str]) -> list[str]:
    """What is chosen where no method is: what reads the backbone that is named, or words alone.

    The default of `refseg run` is trained on rendered shapes: on a clip of one's own words alone do better.
    """
    typed = dict(word.partition("=")[::2] for word in overrides)
    if typed.keys() & {"method", "experiment"}:
        return []
    if typed.get("backbone", "null").lower() == "null":
        return ["method=lexical"]
    values = components.options("backbone", components.find("backbone", typed["backbone"]))
    kind = schema.locate(values[schema.TARGET], "backbone")
    name = (
        "mllm_box" if issubclass(kind, ChatModel) else "decaf" if issubclass(kind, GroundingMLLM) else "refam"
    )
    if str(values.get("path", "")).startswith("shipped:"):
        return [f"method={name}_tiny"]
    # The segmenter that the models' own packages bring.
    return [f"method={name}", *([] if "segmenter" in typed else ["segmenter=sam2_hf"])]


@contextlib.contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """Say what is done: a line with the time it has taken on a terminal, else a line for each stage."""
    if not sys.stderr.isatty():
        yield lambda text: print(f"{text} …", file=sys.stderr, flush=True)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda text: bar.update(task, description=text)
