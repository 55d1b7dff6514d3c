"""``refseg demo``: one clip, one expression, any method; a stacked picture and an overlay video."""

from __future__ import annotations

import argparse
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg_bench.errors import ConfigError, DataError

if TYPE_CHECKING:
    from refseg_bench.types import Clip

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".gif")


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
    from refseg_bench import env
    from refseg_bench.config import compose as configs
    from refseg_bench.files.store_io import output, writing
    from refseg_bench.report.media import encoded
    from refseg_bench.report.pictures import overlay_video, show_stages
    from refseg_bench.run.build import build_method, dataset_of
    from refseg_bench.types import Expression

    if not args.expression.strip():
        raise ConfigError("The expression is empty.", hint='refseg demo CLIP "the thing to find"')
    # The default of `refseg run` is trained on rendered shapes: on a clip of one's own words alone do better.
    chosen = any(word.partition("=")[0] in ("method", "experiment") for word in args.overrides)
    (point, *more) = configs.compose(args.overrides if chosen else ["method=lexical", *args.overrides])
    if more:
        raise ConfigError("A demo is one run, not a sweep.", where=" ".join(args.overrides))
    with writing(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    clip, rate = open_clip(args.clip, args.output / "frames", args.frames)
    method = build_method(point.values, dataset_of(point.values))
    if method.sees_targets:
        raise ConfigError("This method looks at the truth, which a clip of your own has none of.")
    env.seed_everything(int(point.values["seed"]), clip.id)
    began = time.perf_counter()
    (grounding,) = method.predict(clip, [Expression("0", args.expression)])
    seconds = time.perf_counter() - began
    picture = args.output / "picture.png"
    with output(picture) as handle:
        handle.write(encoded(show_stages(clip, grounding, columns=max(1, args.columns)), "PNG"))
    print(picture)
    if len(clip) > 1:
        video = args.output / "overlay.mp4"
        overlay_video(clip, grounding, video, fps=args.fps or rate)
        print(video)
    areas = [area for area in grounding.track.area() if area is not None]
    share = sum(areas) / (len(areas) * clip.size[0] * clip.size[1]) if areas else 0.0
    print(f"{len(clip)} frames in {seconds:.1f} s; the answer covers {100 * share:.1f} % of them")
    return 0


def open_clip(path: Path, scratch: Path, most: int | None = None) -> tuple[Clip, float]:
    """A clip of one's own: a folder of frames in the order of their numbers, a video, or an image.

    Pictures are read upright, as their headers turn them; names that begin with a dot are left out.

    Args:
        path: the video, folder or image.
        scratch: where the frames of a video go; emptied before.
        most: frames to take, spread evenly.

    Returns:
        The clip and the frames per second to play it at.

    Raises:
        DataError: nothing there, nothing readable, two frames of one number, or of different sizes.
    """
    from refseg_bench.files.images import image_size
    from refseg_bench.report.media import spread
    from refseg_bench.report.pictures import read_video
    from refseg_bench.types import Clip

    if most is not None and most < 1:
        raise ConfigError("--frames must be at least 1.")
    rate = 12.0
    if path.is_dir():
        numbered = sorted(
            (_number(p.stem), p)
            for p in path.iterdir()
            if p.suffix.lower() in _IMAGES and p.is_file() and not p.name.startswith(".")
        )
        files = [p for _, p in numbered]
        twice = next((i for i in range(1, len(files)) if numbered[i - 1][0] == numbered[i][0]), None)
        if twice is not None:
            raise DataError(
                f"'{files[twice - 1].name}' and '{files[twice].name}' would be one frame.",
                where=path,
                hint="Give a folder that holds every frame once and nothing else.",
            )
        if not files:
            raise DataError(
                "The folder holds no picture.",
                where=path,
                allowed=_IMAGES,
                hint="Give the folder that holds the frames themselves.",
            )
        files = [files[i] for i in (range(len(files)) if most is None else spread(len(files), most, ()))]
    elif not path.exists():
        raise DataError(
            "There is no such file or folder.",
            where=path,
            allowed=["a folder of frames", *_VIDEOS, *_IMAGES],
            hint="Give the path of a clip or picture that exists.",
        )
    elif not path.is_file():
        raise DataError("This is no regular file.", where=path, allowed=[*_VIDEOS, *_IMAGES])
    elif path.suffix.lower() in _VIDEOS:
        shutil.rmtree(scratch, ignore_errors=True)
        files, rate = read_video(path, scratch, most=most)
    elif path.suffix.lower() in _IMAGES:
        files = [path]
    else:
        raise DataError(
            "The file is no video or picture by its name.",
            where=path,
            allowed=(*_VIDEOS, *_IMAGES),
            hint="Convert it to one of these, or give a folder of frames.",
        )
    size = image_size(files[0], upright=True)
    other = next((file for file in files if image_size(file, upright=True) != size), None)
    if other is not None:
        raise DataError(
            f"The frame is {image_size(other, upright=True)}, the first is {size} (height, width).",
            where=other,
            hint="Give frames of one clip, all of one size.",
        )
    return Clip(path.stem, tuple(files), tuple(file.stem for file in files), size, upright=True), rate


def _number(name: str) -> tuple[tuple[str, int], ...]:
    """A name's parts, to sort by: ``frame_2`` before ``frame_10``, ``9999`` before ``10000``."""
    return tuple((text, int(digits or -1)) for text, digits in re.findall(r"([^0-9]*)([0-9]*)", name)[:-1])
