"""``refseg doctor``: whether models run here as they should, how fast, and in how much memory.

A backbone reads attention from a rendered clip as its method does; a multimodal model's captured maps are
held against those of the plain model in float32. Segmenters track a disc, and two of them are compared.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from refseg_bench.errors import ConfigError, RefsegError

if TYPE_CHECKING:
    import torch

    from refseg_bench.backbones.dit.model import DiT
    from refseg_bench.backbones.mllm.model import MLLM
    from refseg_bench.segmenters.base import Segmenter
    from refseg_bench.types import Clip, Uint8THWC

_TEXTS = (
    "the dog on the left that runs after the ball",
    "which animal is most likely to win the race?",
    "a person in a red jacket standing behind the car",
    "the object that the child is holding in her hand",
)
#: What was measured: its name with its unit → the value.
Rows = dict[str, Any]


def add(commands: Any) -> None:
    """Declare the options."""
    p = commands.add_parser(
        "doctor",
        description="Measure components on a rendered clip; the exit code is 1 if one fails.",
        epilog="Example: refseg doctor backbone=qwen2_5_vl_7b backbone.path=FOLDER -o doctor.json",
    )
    p.add_argument(
        "components",
        nargs="+",
        metavar="GROUP=NAME",
        help="backbone=… or segmenter=…, each followed by its options (backbone.path=FOLDER); may repeat",
    )
    p.add_argument(
        "--random", action="store_true", help="backbone.path holds configs alone: measure untrained weights"
    )
    p.add_argument("--frames", type=int, default=16, metavar="N", help="of the clip (default: 16)")
    p.add_argument("--size", type=int, nargs=2, default=(480, 854), metavar=("H", "W"), help="of its frames")
    p.add_argument(
        "--expressions", type=int, nargs="+", default=(1, 4, 16), metavar="N", help="on the clip at once"
    )
    p.add_argument("--table", type=int, default=1000, metavar="N", help="expressions to tell the hours for")
    p.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write what was found as JSON")
    p.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    from refseg_bench import env
    from refseg_bench.backbones import weights
    from refseg_bench.config.components import make, nodes
    from refseg_bench.files.store_io import output

    components = list(nodes(args.components))
    measures: dict[str, Callable[..., Iterator[Rows]]] = {"backbone": _backbone, "segmenter": _segmenter}
    for told, group, _, _ in components:
        if group not in measures:
            raise ConfigError(f"There is nothing to measure in '{told}'.", allowed=sorted(measures))
    weights.untrained = args.random
    found: dict[str, Rows] = {}
    tracks: list[Any] = []
    failed = False
    with TemporaryDirectory() as folder:
        clip = _moving_disc(Path(folder), args.frames, tuple(args.size))
        for told, group, name, given in components:
            found[told] = {}
            print(told)
            try:
                for rows in measures[group](make(group, name, given), clip, args, tracks):
                    found[told].update(rows)
                    print(*(f"  {name:64} {value}" for name, value in rows.items()), sep="\n", flush=True)
            except (RefsegError, RuntimeError, ImportError) as error:  # torch tells of memory and devices so
                failed = True
                found[told]["error"] = f"{type(error).__name__}: {error}"
                print(f"  {found[told]['error']}", flush=True)
            _forget()
            if args.output is not None:
                with output(args.output) as handle:
                    handle.write(json.dumps({"environment": env.record(0), **found}, indent=1).encode())
    return int(failed)


def _forget() -> None:
    """Give a measured model's memory to the next."""
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _moving_disc(folder: Path, frames: int, size: tuple[int, int]) -> Clip:
    from PIL import Image

    from refseg_bench.types import Clip

    ground = np.random.default_rng(0).integers(0, 120, (*size, 3))
    y, x = np.mgrid[: size[0], : size[1]]
    paths = [folder / f"{t:05d}.png" for t in range(frames)]
    for t, path in enumerate(paths):
        frame = ground.copy()
        centre = size[1] * (0.2 + 0.6 * t / max(frames - 1, 1))
        frame[(y - size[0] / 2) ** 2 + (x - centre) ** 2 < (size[0] / 5) ** 2] = (230, 80, 40)
        Image.fromarray(frame.astype(np.uint8)).save(path)
    return Clip("disc", tuple(paths), tuple(path.stem for path in paths), size)


@contextmanager
def _measured(rows: Rows, name: str = "", per: int = 1) -> Iterator[None]:
    """Add the block's time and peak memory to the rows."""
    import torch

    from refseg_bench.env import PeakMemory

    peak = PeakMemory()
    peak.start()
    began = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    rows[f"{name}, seconds"] = round((time.perf_counter() - began) / per, 4)
    rows[f"{name}, peak memory in GiB"] = round(peak.read() / 1024, 2)


def _backbone(made: Any, clip: Clip, args: argparse.Namespace, tracks: list[Any]) -> Iterator[Rows]:
    from refseg_bench.backbones.base import GroundingMLLM

    frames_THWC = clip.load(range(len(clip)))
    return (_mllm if isinstance(made, GroundingMLLM) else _dit)(made, frames_THWC, args)


# ── a multimodal language model ──────────────────────────────────────────────


def _mllm(made: MLLM, frames_THWC: Uint8THWC, args: argparse.Namespace) -> Iterator[Rows]:
    from refseg_bench.backbones.base import MLLMCounters, VisualSettings

    rows: Rows = {}
    with _measured(rows, "load"):
        loaded = made.loaded()
    yield {**rows, **_size_of(loaded.model)}
    yield _against_plain(made, frames_THWC[:1])
    visual = VisualSettings()
    size, count = frames_THWC.shape[1:3], len(frames_THWC)
    video, frame = loaded.family.video_grid(size, count, visual), loaded.family.frame_grid(size, visual)
    tokens = int(np.prod(video)) + count * int(np.prod(frame))
    yield {"visual tokens of the video": int(np.prod(video)), "visual tokens of a frame": int(np.prod(frame))}
    _ask(made, frames_THWC[:1], 1)  # libraries load, kernels are chosen
    for number in args.expressions:
        made.counters = MLLMCounters()
        rows = {}
        with _measured(rows, f"{number} expressions: each", number):
            _ask(made, frames_THWC, number)
        did, each = made.counters, f"{number} expressions"
        rows |= {f"{each}: {stage}, seconds": round(spent, 3) for stage, spent in did.seconds.items()}
        rates = {
            "visual tokens/s": tokens * did.visual_prefixes / (count + 1) / did.seconds["prefix"],
            "prompt tokens/s": did.prompt_tokens / did.seconds["prompts"],
            "decoded tokens/s": did.generated_tokens / did.seconds["decode"],
        }
        rows |= {f"{each}: {name}": round(rate, 1) for name, rate in rates.items()}
        rows[f"{each}: prefixes run"] = did.visual_prefixes
        rows[f"{each}: hours for {args.table}"] = round(rows[f"{each}: each, seconds"] * args.table / 3600, 2)
        yield rows
    yield _rollout(made, int(np.prod(frame)), max(args.expressions))


def _ask(made: MLLM, frames_THWC: Uint8THWC, number: int) -> None:
    """What DecAF asks of a clip: an object and a background prompt per expression on video and frames."""
    from refseg_bench.backbones.base import RolloutSettings, VisualSettings, Where
    from refseg_bench.methods.decaf.prompts import background_prompt, object_prompt, template

    texts = [f"{_TEXTS[index % len(_TEXTS)]} {index}" for index in range(number)]
    objects = [object_prompt(template("object", "default"), text) for text in texts]
    grounds = [background_prompt(template("background", "default"), text, "dog") for text in texts]
    places: list[Where] = ["video", *range(len(frames_THWC))]
    with made.open(frames_THWC, VisualSettings(), RolloutSettings()) as session:
        for prompts, answer in ((objects, True), (grounds, False)):
            for where in places:
                session.read(where, prompts, answer=answer)


def _against_plain(made: MLLM, frames_THWC: Uint8THWC) -> Rows:
    """One map as the harness reads it, against the paper's formula on the plain model's own attention."""
    import torch

    from refseg_bench.backbones.base import RolloutSettings, VisualSettings, layer_range
    from refseg_bench.backbones.rollout import rolled_out

    visual = VisualSettings(multiscale=False, frame_tokens=256)

    def captured(model: MLLM) -> Any:
        with model.open(frames_THWC, visual, RolloutSettings()) as session:
            return session.read(0, [_TEXTS[0]], answer=False)[0].map_Thw

    loaded = made.loaded()
    exact = replace(made, dtype="float32")
    exact.use(copy.deepcopy(loaded.model).float(), loaded.tokenizer, copy.copy(loaded.family))
    as_run, wide, model, family = captured(made), captured(exact), exact.loaded().model, loaded.family
    model.set_attn_implementation("eager")
    block = family.frame(frames_THWC[0], visual)
    head = torch.tensor([loaded.pieces(block.head)])
    tail = torch.tensor([loaded.tokens(block.tail[0] + _TEXTS[0] + block.tail[1])])
    positions, first = family.head_positions(model, head, block)
    positions = torch.cat([positions, family.text_positions(torch.tensor([first]), tail.shape[1])], dim=-1)
    ids = torch.cat([head, tail], dim=1).to(loaded.device)
    block = replace(block, inputs={name: tensor.to(loaded.device) for name, tensor in block.inputs.items()})
    with torch.inference_mode():
        out = model(
            **family.forward_inputs(model, ids, block),
            position_ids=positions.to(loaded.device),
            output_attentions=True,
            use_cache=False,
        )
        seen = ids[0] == block.token
        span = layer_range(-1, -1, len(out.attentions))
        row = rolled_out((out.attentions[layer][0] for layer in span), seen)
        plain = family.unpack(row[seen].cpu().numpy(), block)
    return {
        f"map in {made.dtype} from the plain float32 one, of its peak": _apart(as_run, plain),
        "map in float32 from the plain float32 one, of its peak": _apart(wide, plain),
    }


def _apart(found: Any, expected: Any) -> str:
    return f"{float(np.abs(found - expected).max() / np.abs(expected).max()):.1e}"


def _rollout(made: MLLM, size_P: int, number: int) -> Rows:
    """Both forms of the rollout on queries and keys of the model's shape: time, launches, syncs a layer."""
    import torch

    from refseg_bench.backbones.rollout import LayerQK, shared_rollout

    loaded, layers, size_T = made.loaded(), 2, 60
    config = loaded.family.text_config
    heads, groups = int(config.num_attention_heads), int(config.num_key_value_heads)
    depth = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> LayerQK:
        q, k = (torch.randn(*shape[:-1], n, shape[-1], depth, generator=generator) for n in (heads, groups))
        return LayerQK(q.to(loaded.model.dtype), k.to(loaded.model.dtype), depth**-0.5)

    prefix, tails = [drawn(size_P) for _ in range(layers)], [drawn(number, size_T) for _ in range(layers)]

    def form(device: torch.device, together: bool) -> Callable[[], Any]:
        def there(part: list[LayerQK]) -> list[LayerQK]:
            return [LayerQK(one.q_HND.to(device), one.k_GND.to(device), one.scale) for one in part]

        ours, theirs = there(prefix), there(tails)
        lengths = [size_T - index % 20 for index in range(number)]
        visual = torch.ones(size_P, dtype=torch.bool)
        return lambda: shared_rollout(ours, theirs, lengths, visual, together=together)

    rows: Rows = {}
    for name, together in (("one prompt after the other", False), ("all prompts together", True)):
        call = form(loaded.device, together)
        call()
        began = time.perf_counter()
        result = call().cpu()
        rows[f"rollout, {name}: ms a layer"] = round(1e3 * (time.perf_counter() - began) / layers, 2)
        launches, syncs = _launches(call, loaded.device)
        rows[f"rollout, {name}: launches a layer"] = launches / layers
        rows[f"rollout, {name}: syncs a layer"] = syncs / layers
    alone = form(torch.device("cpu"), False)().numpy()
    return rows | {"rollout from the CPU's form, of its peak": _apart(result.numpy(), alone)}


def _launches(call: Callable[[], Any], device: torch.device) -> tuple[int, int]:
    """Kernels that a call starts (operations on a CPU), and how often it waits for the device."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if device.type == "cuda":
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            call()
        events = [(str(event.device_type), event.name) for event in seen.events()]
        kernels = sum(kind.endswith("CUDA") for kind, _ in events)
        return kernels, sum("StreamSynchronize" in name for _, name in events)
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not func.is_view:
                names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Count():  # type: ignore[no-untyped-call]
        call()
    return len(names), sum("_local_scalar_dense" in name or "nonzero" in name for name in names)


def _size_of(model: Any) -> Rows:
    parameters = list(model.parameters())
    return {
        "parameters in 1e9": round(sum(p.numel() for p in parameters) / 1e9, 3),
        "weights in GiB": round(sum(p.numel() * p.element_size() for p in parameters) / 2**30, 2),
    }


# ── a diffusion transformer ──────────────────────────────────────────────────


def _dit(dit: DiT, frames_THWC: Uint8THWC, args: argparse.Namespace) -> Iterator[Rows]:
    from refseg_bench.backbones.attention_maps import SoftmaxTokens
    from refseg_bench.backbones.dit.model import TokenRequest
    from refseg_bench.backbones.dit.text_tokens import tokenise

    def ask(number: int) -> None:
        scene = dit.open(frames_THWC[0])
        requests = []
        for index in range(number):
            tokens = tokenise(
                dit.tokenizer, f"{_TEXTS[index % len(_TEXTS)]} {index}", (".", "a", "to", "with")
            )
            requests.append(
                TokenRequest(tokens, _TEXTS[0], {"all": SoftmaxTokens(tuple(range(len(tokens))))})
            )
        for answer in dit.attend(scene, requests):
            if not np.isfinite(answer.maps["all"].maps_TN).all():
                raise RefsegError("An attention map holds NaN or infinity.")

    rows: Rows = {}
    with _measured(rows, "load and first pass"):
        ask(1)
    yield rows
    for number in args.expressions:
        rows = {}
        before = copy.copy(dit.counters)
        with _measured(rows, f"{number} expressions: each", number):
            ask(number)
        seconds = rows[f"{number} expressions: each, seconds"]
        yield rows | {
            f"{number} expressions: transformer passes": dit.counters.dit_forwards - before.dit_forwards,
            f"{number} expressions: hours for {args.table}": round(seconds * args.table / 3600, 2),
        }


# ── a segmenter ──────────────────────────────────────────────────────────────


def _segmenter(made: Segmenter, clip: Clip, args: argparse.Namespace, tracks: list[Any]) -> Iterator[Rows]:
    from refseg_bench.segmenters.base import Prompt

    def track(clip: Clip) -> tuple[Any, Any]:
        with made.open(clip) as session:
            (candidates,) = session.segment(0, [Prompt.click(0.2, 0.5)])
            moved = [masks[0] for _, masks in session.propagate(0, [Prompt(mask=candidates.masks_KHW[0])])]
            return candidates, (np.stack(moved), session.counters)

    rows: Rows = {}
    with _measured(rows, "load and first clip"):
        track(clip)
    yield rows
    rows = {}
    with _measured(rows, f"{len(clip)} frames, click and track"):
        candidates, (masks_THW, counters) = track(clip)
    rows |= {f"{stage}, seconds": round(seconds, 3) for stage, seconds in counters.seconds.items()}
    tracks.append((candidates, masks_THW))
    if len(tracks) > 1:
        (one, first), (other, second) = tracks[-2:]
        union = int((first | second).sum())
        rows |= {
            "IoU of the track with the segmenter's before": (
                int((first & second).sum()) / union if union else 1.0
            ),
            "candidates' pixels that differ": int((one.masks_KHW ^ other.masks_KHW).sum()),
            "candidates' scores, largest difference": f"{float(np.abs(one.ious_K - other.ious_K).max()):.1e}",
        }
    yield rows
