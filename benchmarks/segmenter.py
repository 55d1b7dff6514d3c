"""What sharing frame features within a clip is worth: 20 expressions in one session against 20 sessions.

    python benchmarks/segmenter.py                                   # small random SAM 2, any machine
    python benchmarks/segmenter.py --segmenter sam2 --frames 60 --size 480 854   # real weights, GPU

Each expression does what DecAF does with a clip: clicks on the key frames, tracks on the key frames
as their own video, then a track through all frames. Prints the time per clip of both ways, their
ratio, and the counters of the encoder; exits with 1 if an encoder pass was wasted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from refseg_bench.commands.doctor import moving_disc
from refseg_bench.config.components import options
from refseg_bench.config.schema import build
from refseg_bench.files.store_io import count
from refseg_bench.segmenters.base import Prompt, SegmenterCounters
from refseg_bench.types import Clip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for tools


def one_expression(session, clip: Clip, keys: tuple[int, ...], number: int) -> None:
    x = 0.1 + 0.8 * (number % 10) / 10
    for frame in keys[:: max(len(keys) // 2, 1)]:
        clicks = [Prompt.click(x, 0.3 + 0.1 * k) for k in range(4)]
        masks = [candidates.best()[0] for candidates in session.segment(frame, clicks)]
        for _ in session.propagate(frame, [Prompt(mask=masks[0])], frames=keys):
            pass
    for _ in session.propagate(keys[0], [Prompt(mask=masks[0])]):
        pass


def clip_seconds(segmenter, clip: Clip, expressions: int, *, shared: bool) -> tuple[float, SegmenterCounters]:
    keys = tuple(int(i) for i in np.linspace(0, len(clip) - 1, min(len(clip), 16)))
    total = SegmenterCounters()
    began = time.perf_counter()
    for sitting in [range(expressions)] if shared else [range(n, n + 1) for n in range(expressions)]:
        with segmenter.open(clip) as session:
            for number in sitting:
                one_expression(session, clip, keys, number)
            counters = session.counters
        total.frame_encodings += counters.frame_encodings
        total.recomputed_frames += counters.recomputed_frames
        total.decoder_calls += counters.decoder_calls
        total.propagated_frames += counters.propagated_frames
        for stage, seconds in counters.seconds.items():
            total.seconds[stage] = total.seconds.get(stage, 0.0) + seconds
    return time.perf_counter() - began, total


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--segmenter", help="a member of conf/segmenter; default: a small random SAM 2")
    parser.add_argument("--expressions", type=count(1), default=20)
    parser.add_argument("--frames", type=count(1), default=24)
    parser.add_argument("--size", type=count(1), nargs=2, default=(120, 214), metavar=("H", "W"))
    parser.add_argument("--threads", type=count(1), default=1)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:
        if args.segmenter is None:
            import torch

            from refseg_bench.segmenters.sam2_hf import Sam2Hf
            from tools.tiny_sam import write_sam2

            torch.set_num_threads(args.threads)
            name, segmenter = "small random SAM 2", Sam2Hf(model=str(write_sam2(Path(place) / "model")))
        else:
            name, segmenter = args.segmenter, build(options("segmenter", args.segmenter), "segmenter")
        clip = moving_disc(Path(place), args.frames, tuple(args.size))
        clip_seconds(segmenter, clip, 1, shared=True)  # loads the model, warms up
        _, one = clip_seconds(segmenter, clip, 1, shared=True)
        shared, once = clip_seconds(segmenter, clip, args.expressions, shared=True)
        apart, each = clip_seconds(segmenter, clip, args.expressions, shared=False)

    print(f"{name}: {args.frames} frames of {args.size[0]}x{args.size[1]}, {args.expressions} expressions")
    print(f"{'':22}{'seconds':>10}{'encoder':>10}{'decoder':>10}{'tracked':>10}")
    for title, seconds, counters in (
        ("one session", shared, once),
        (f"{args.expressions} sessions", apart, each),
    ):
        print(
            f"{title:22}{seconds:10.2f}{counters.frame_encodings:10d}{counters.decoder_calls:10d}"
            f"{counters.propagated_frames:10d}   "
            + ", ".join(f"{stage} {spent:.2f} s" for stage, spent in counters.seconds.items())
        )
    print(f"time of one session / time of {args.expressions} sessions = {shared / apart:.3f}")
    print(
        f"encoder passes: {one.frame_encodings} for 1 expression, {once.frame_encodings} for "
        f"{args.expressions}; frames in the clip: {args.frames}; recomputed: {once.recomputed_frames}"
    )
    wasted = once.frame_encodings != one.frame_encodings
    if wasted:
        print("an expression more costs encoder passes", file=sys.stderr)
    return int(wasted)


if __name__ == "__main__":
    sys.exit(main())
