"""``refseg doctor``: whether models run here as they should, how fast, and in how much memory.

A backbone reads attention from a rendered clip as its method does; a multimodal model's captured maps are
held against those of the plain model in float32. Segmenters track a disc, and two of them are compared.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from refseg_bench import env
from refseg_bench.backbones import weights
from refseg_bench.backbones.base import RolloutSettings, VisualSettings, Where, layer_range
from refseg_bench.backbones.dit import DiT, TokenRequest
from refseg_bench.backbones.dit.text import tokenise
from refseg_bench.backbones.lazy_torch import torch
from refseg_bench.config.components import make
from refseg_bench.config.compose import nodes
from refseg_bench.errors import ConfigError, RefsegError, require
from refseg_bench.files.store_io import add_json, count, put_json
from refseg_bench.methods.decaf.prompts import background_prompt, object_prompt, template
from refseg_bench.run.build import check_part
from refseg_bench.segmenters.base import Prompt, Segmenter
from refseg_bench.types import Clip, Uint8THWC

if TYPE_CHECKING:
    from refseg_bench.backbones.mllm import MLLM

_TEXTS = (
    "the dog on the left that runs after the ball",
    "which animal is most likely to win the race?",
    "a person in a red jacket standing behind the car",
    "the object that the child is holding in her hand",
)
#: What was measured: its name with its unit → the value.
Rows = dict[str, Any]


def add(commands: Any) -> None:
    p = commands.add_parser(
        "doctor",
        description="Measure components on a rendered clip. Exit code 1: one failed; 2: one can't work here.",
        epilog="Example: refseg doctor backbone=qwen2_5_vl_7b backbone.path=FOLDER -o doctor.json",
    )
    p.add_argument(
        "overrides",
        nargs="+",
        metavar="GROUP=NAME",
        help="backbone=… or segmenter=…, and options of theirs (backbone.path=FOLDER); may repeat",
    )
    p.add_argument(
        "--random", action="store_true", help="backbone.path holds configs alone: measure untrained weights"
    )
    p.add_argument("--frames", type=count(1), default=16, metavar="N", help="of the clip (default: 16)")
    p.add_argument("--size", type=count(1), nargs=2, default=(480, 854), metavar=("H", "W"), help="of them")
    p.add_argument(
        "--expressions", type=count(1), nargs="+", default=(1, 4, 16), metavar="N", help="on the clip at once"
    )
    p.add_argument("--table", type=count(1), default=1000, metavar="N", help="expressions to tell hours of")
    add_json(p, "what was found as JSON", "-o", "--output")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    require("torch", "Measuring models")
    components = list(nodes(args.overrides))
    measures: dict[str, Callable[..., Iterator[Rows]]] = {"backbone": _backbone, "segmenter": _segmenter}
    for told, group, _, _ in components:
        if group not in measures:
            raise ConfigError(f"There is nothing to measure in '{told}'.", allowed=sorted(measures))
    weights.untrained = args.random
    found: dict[str, Rows] = {}
    tracks: list[Any] = []
    code = 0
    with TemporaryDirectory() as folder:
        clip = moving_disc(Path(folder), args.frames, tuple(args.size))
        for told, group, name, given in components:
            found[told] = {}
            print(told)
            try:
                made = make(group, name, given)
                check_part(made)
                for rows in measures[group](made, clip, args, tracks):
                    found[told] |= rows
                    print(*(f"  {name:64} {value}" for name, value in rows.items()), sep="\n", flush=True)
            except (RefsegError, RuntimeError, ImportError) as error:  # torch tells of memory and devices so
                refused = isinstance(error, RefsegError)
                found[told]["error"] = str(error) if refused else f"{type(error).__name__}: {error}"
                code = max(code, 2 if refused else 1)
                print(f"  {found[told]['error']}", flush=True)
            gc.collect()  # the next model needs this one's memory
            torch.cuda.empty_cache()
            put_json(args.json, {"environment": env.record(0), **found})
    return code


def moving_disc(folder: Path, frames: int, size: tuple[int, int]) -> Clip:
    """A clip of (height, width) frames in which an orange disc moves over noise from left to right."""
    height, width = size
    ground = np.random.default_rng(0).integers(0, 120, (height, width, 3), np.uint8)
    paths = [folder / f"{t:05d}.png" for t in range(frames)]
    for path, x in zip(paths, np.linspace(0.2 * width, 0.8 * width, frames), strict=True):
        frame, radius = Image.fromarray(ground), 0.2 * height
        ImageDraw.Draw(frame).ellipse((x - radius, 1.5 * radius, x + radius, 3.5 * radius), (230, 80, 40))
        frame.save(path)
    return Clip("disc", tuple(paths), tuple(path.stem for path in paths), size)


def _measured(name: str, call: Callable[[], Any], per: int = 1) -> tuple[Any, Rows]:
    """What a call returns, its time and its peak memory."""
    peak = env.PeakMemory()
    peak.start()
    began = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, {
        f"{name}, seconds": round((time.perf_counter() - began) / per, 4),
        f"{name}, peak memory in GiB": round(peak.read() / 1024, 2),
    }


def _backbone(made: Any, clip: Clip, args: argparse.Namespace, tracks: list[Any]) -> Iterator[Rows]:
    from refseg_bench.backbones.mllm import MLLM

    mllm = isinstance(made, MLLM)
    if not (mllm or isinstance(made, DiT)):
        raise ConfigError(f"{type(made).__name__} can't be measured.", allowed=["MLLM", "DiT"])
    frames_THWC = clip.load(range(len(clip)))
    ask = _ask_mllm if mllm else _ask_dit
    yield _measured("load and first pass", partial(ask, made, frames_THWC[:1], 1))[1]
    if mllm:
        yield _against_plain(made, frames_THWC[:1])
    for number in args.expressions:
        made.counters = type(made.counters)()
        each = f"{number} expressions"
        did, rows = _measured(f"{each}: each", partial(ask, made, frames_THWC, number), number)
        did[f"hours for {args.table}"] = round(rows[f"{each}: each, seconds"] * args.table / 3600, 2)
        yield rows | {f"{each}: {name}": value for name, value in did.items()}


# ── a multimodal language model ──────────────────────────────────────────────


def _ask_mllm(made: MLLM, frames_THWC: Uint8THWC, number: int) -> Rows:
    """What DecAF asks of a clip: an object and a background prompt per expression on video and frames."""
    texts = [f"{_TEXTS[index % len(_TEXTS)]} {index}" for index in range(number)]
    objects = [object_prompt(template("object", "default"), text) for text in texts]
    grounds = [background_prompt(template("background", "default"), text, "dog") for text in texts]
    places: list[Where] = ["video", *range(len(frames_THWC))]
    with made.open(frames_THWC, VisualSettings(), RolloutSettings()) as session:
        session.read_places(places, objects, answer=True)
        tokens = sum(found[0].map_Thw.size for found in session.read_places(places, grounds, answer=False))
    did = made.counters
    seen = round(tokens * did.visual_prefixes / len(places))
    return {
        **{f"{stage}, seconds": round(spent, 3) for stage, spent in did.seconds.items()},
        "visual tokens/s": round(seen / did.seconds["prefix"], 1),
        "prompt tokens/s": round(did.prompt_tokens / did.seconds["prompts"], 1),
        "decoded tokens/s": round(did.generated_tokens / did.seconds["decode"], 1),
        "visual tokens": tokens,
        "prefixes run": did.visual_prefixes,
        "passes run": did.passes,
    }


def _against_plain(made: MLLM, frames_THWC: Uint8THWC) -> Rows:
    """One map as the harness reads it, against the paper's formula on the plain model's own attention."""
    from refseg_bench.backbones.rollout import rolled_out

    visual = VisualSettings(multiscale=False, frame_tokens=256)
    loaded = made.loaded()
    quantised, copied = getattr(loaded.model, "is_quantized", False), copy.deepcopy(loaded.model)
    exact = replace(made, dtype=made.dtype if quantised else "float32")  # the former is not to be cast
    exact.use(copied if quantised else copied.float(), loaded.tokenizer, copy.copy(loaded.family))
    maps = {}
    for name, backbone in {made.dtype: made, exact.dtype: exact}.items():
        with backbone.open(frames_THWC, visual, RolloutSettings()) as session:
            maps[name] = session.read(0, [_TEXTS[0]], answer=False)[0].map_Thw
    model, family = exact.loaded().model, loaded.family
    model.set_attn_implementation("eager")
    block = family.frame(frames_THWC[0], visual)
    head = torch.tensor([loaded.pieces(block.head)])
    tail = torch.tensor([loaded.tokens(block.tail[0] + _TEXTS[0] + block.tail[1])])
    positions, first = family.head_positions(model, head, block)
    positions = torch.cat([positions, family.text_positions(torch.tensor([first]), tail.shape[1])], dim=-1)
    ids = torch.cat([head, tail], dim=1).to(loaded.device)
    block = replace(block, inputs={name: tensor.to(loaded.device) for name, tensor in block.inputs.items()})
    with torch.inference_mode():
        inputs = family.forward_inputs(model, ids, block) | {"position_ids": positions.to(loaded.device)}
        out = model(**inputs, output_attentions=True, use_cache=False)
        seen = ids[0] == block.token
        span = layer_range(-1, -1, len(out.attentions))
        row = rolled_out((out.attentions[layer][0] for layer in span), seen)
    plain = family.unpack(row[seen].cpu().numpy(), block)
    apart = {name: np.abs(found - plain).max() / plain.max() for name, found in maps.items()}
    told = f"from the plain {exact.dtype} one, of its peak"
    return {f"map in {name} {told}": f"{difference:.1e}" for name, difference in apart.items()}


# ── a diffusion transformer ──────────────────────────────────────────────────


def _ask_dit(made: DiT, frames_THWC: Uint8THWC, number: int) -> Rows:
    """What RefAM asks of a clip's first frame: the maps of every expression's tokens with its magnets."""
    from refseg_bench.backbones.attention_maps import SoftmaxTokens

    requests = []
    for index in range(number):
        text = f"{_TEXTS[index % len(_TEXTS)]} {index}"
        tokens = tokenise(made.tokenizer, text, (".", "a", "to", "with"))
        requests.append(TokenRequest(tokens, _TEXTS[0], {"all": SoftmaxTokens(tuple(range(len(tokens))))}))
    for answer in made.attend(made.open(frames_THWC[0]), requests):
        if not np.isfinite(answer["all"].maps_TN).all():
            raise RefsegError("An attention map holds NaN or infinity.")
    return {"transformer passes": made.counters.dit_forwards}


# ── a segmenter ──────────────────────────────────────────────────────────────


def _segmenter(made: Segmenter, clip: Clip, args: argparse.Namespace, tracks: list[Any]) -> Iterator[Rows]:
    def track() -> tuple[Any, Any, Any]:
        with made.open(clip) as session:
            (candidates,) = session.segment(0, [Prompt.click(0.2, 0.5)])
            moved = [masks[0] for _, masks in session.propagate(0, [Prompt(mask=candidates.masks_KHW[0])])]
            return candidates, np.stack(moved), session.counters

    yield _measured("load and first clip", track)[1]
    found, rows = _measured(f"{len(clip)} frames, click and track", track)
    rows |= {f"{stage}, seconds": round(seconds, 3) for stage, seconds in found[2].seconds.items()}
    tracks.append(found)
    if len(tracks) > 1:
        (one, first, _), (other, second, _) = tracks[-2:]
        union, common = int((first | second).sum()), int((first & second).sum())
        rows["IoU of the track with the segmenter's before"] = common / union if union else 1.0
        if len(one) == len(other):
            rows |= {
                "candidates' pixels that differ": int((one.masks_KHW ^ other.masks_KHW).sum()),
                "candidates' scores, largest difference": f"{np.abs(one.ious_K - other.ious_K).max():.1e}",
            }
    yield rows
