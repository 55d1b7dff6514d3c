"""``refseg demo``: one clip, one expression, any method; a stacked picture and an overlay video."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from refseg_bench import env
from refseg_bench.config import compose as configs
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import check_output, output, writing
from refseg_bench.report.media import encoded
from refseg_bench.report.pictures import open_clip, overlay_video, show_stages
from refseg_bench.run.build import build_method, dataset_of
from refseg_bench.types import Expression


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser(
        "demo",
        description="Nothing is scored and no run folder is made.",
        epilog='Example: refseg demo clip.mp4 "the dog on the left" method=decaf backbone=qwen2_5_vl_7b',
    )
    p.add_argument("clip", type=Path, metavar="VIDEO_OR_FOLDER", help="a video, a folder of frames, an image")
    p.add_argument("expression", help="what to find")
    p.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="choices and overrides, as in refseg run; default: method=lexical",
    )
    p.add_argument("-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    p.add_argument("--frames", type=int, metavar="N", help="use N frames of the clip, spread evenly")
    p.add_argument("--fps", type=float, help="of the overlay video (default: the clip's, else 12)")
    p.add_argument("--columns", type=int, default=6, metavar="N", help="frames in the stacked picture")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    if not args.expression.strip():
        raise ConfigError("The expression is empty.", hint='refseg demo CLIP "the thing to find"')
    # The default of `refseg run` is trained on rendered shapes: on a clip of one's own words alone do better.
    chosen = any(word.partition("=")[0] in ("method", "experiment") for word in args.overrides)
    (point, *more) = configs.compose(args.overrides if chosen else ["method=lexical", *args.overrides])
    if more:
        raise ConfigError("A demo is one run, not a sweep.", where=" ".join(args.overrides))
    with writing(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    picture = args.output / "picture.png"
    check_output(picture)
    clip, rate = open_clip(args.clip, args.output / "frames", args.frames)
    parts = {**(point.values["backbone"] or {}), **(point.values["segmenter"] or {})}
    if any(str(value).startswith("shipped:") for value in parts.values()):
        real = "method=decaf backbone=qwen2_5_vl_7b segmenter=sam2_hf"
        print(f"The models that ship know rendered shapes only. Real ones: {real}", file=sys.stderr)
    method = build_method(point.values, dataset_of(point.values))
    if method.sees_targets:
        raise ConfigError("This method looks at the truth, which a clip of your own has none of.")
    env.seed_everything(int(point.values["seed"]), clip.id)
    began = time.perf_counter()
    (grounding,) = method.predict(clip, [Expression("0", args.expression)])
    seconds = time.perf_counter() - began
    with output(picture) as handle:
        handle.write(encoded(show_stages(clip, grounding, columns=max(1, args.columns)), "PNG"))
    print(picture)
    if len(clip) > 1:
        video = args.output / "overlay.mp4"
        overlay_video(clip, grounding, video, fps=args.fps or rate)
        print(video)
    areas = [area for area in grounding.track.area() if area is not None]
    share = sum(areas) / (len(areas) * clip.size[0] * clip.size[1]) if areas else 0.0
    print(f"{len(clip)} frames in {seconds:.1f} s; the prediction covers {100 * share:.1f} % of them")
    return 0
