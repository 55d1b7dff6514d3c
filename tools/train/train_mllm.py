"""Train ``tiny_mllm``: ``python tools/train/train_mllm.py --work runs/tiny_mllm --out FOLDER``.

A Qwen2-VL model (transformers' own class) of 3.2 M parameters learns to answer DecAF's prompts about
scenes of the shapes world: the object prompt with the target's name (``red-striped``, or ``nothing``),
the background prompt with the kind of ground, the choice prompt with one of the candidates. It sees clips
(8 or 16 frames, 6 x 8 tokens for two frames) and single frames at twice that grid, as DecAF does.

The vision tower learns first, alone, to name what each token shows: which way a thing moves is seen only
after some hundred steps, and without the language model a step costs a sixth. Then training begins with
pairs of frames and goes on to clips (``mllm_data.STAGES``).

Two auxiliary losses help binding to appear early; their layers are dropped from the exported model:

* *dense*: each visual token (behind the vision tower) names colour, texture, motion and ground of what it
  shows, and (in the middle of the language model) its place;
* *match*: in the middle of the language model, a product between the last prompt token and each visual
  token tells whether the token lies on the target.

A third one, on the attention of the last prompt token itself, fades out over the first part of training
(``--attention-weight``, ``--attention-until``); see docs/tiny-models.md. A stopped run goes on from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.shapes_world import World, describe, render, sample_scene
from tools.train.common import (
    WATCH_SEEDS,
    Clock,
    Means,
    Watch,
    copy_of,
    follow,
    note_command,
    optimiser_of,
    provenance,
    rate,
    setup,
    train_seeds,
    training_arguments,
    update,
)
from tools.train.feed import Batch, Feed
from tools.train.mllm_data import (
    ASKED,
    FRAMES,
    VISION,
    Example,
    Maker,
    Packer,
    Question,
    token_labels,
    tokens,
)
from tools.train.mllm_model import (
    BACKGROUND,
    MERGE,
    OBJECT,
    PATCH,
    START_LAYER,
    make_model,
    make_processor,
    make_tokenizer,
)
from tools.train.scenes import film

# ── the model's own weights, without its general bookkeeping ─────────────────
# One pass over a batch of equal shapes: no lists of lengths, no masks made anew, nothing the device is waited
# for. tests/tools/test_training.py holds it to the stock forward pass.


@dataclass
class Pass:
    """What a pass over a batch leaves.

    Attributes:
        last_BLD: hidden states behind the last norm.
        middle_BLD: those at the rollout's start.
        visual_ND: the vision tower's tokens, in order.
        rows: attention of the upper layers, one tensor each: of the asked rows ``(B, H, K, L)`` or whole.
    """

    last_BLD: Tensor
    middle_BLD: Tensor
    visual_ND: Tensor | None
    rows: list[Tensor]


def patches(frames_BTCHW: Tensor) -> Tensor:
    """uint8 pixels as the Qwen2-VL processors order them: ``(B, T', patches, 3 * 2 * 8 * 8)``, in [-1, 1]."""
    x = frames_BTCHW.float() / 127.5 - 1
    if x.shape[1] == 1:
        x = x.repeat(1, 2, 1, 1, 1)
    b, t, h, w = len(x), x.shape[1] // 2, x.shape[3] // PATCH, x.shape[4] // PATCH
    x = x.reshape(b, t, 2, 3, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    return x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(b, t, h * w, -1)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions."""
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


def frequencies(count: int, base: float, device: torch.device) -> Tensor:
    """Rotary frequencies."""
    return base ** -(torch.arange(count, device=device).float() / count)


def see(model: Qwen2VLForConditionalGeneration, frames_BTCHW: Tensor) -> Tensor:
    """The vision tower: ``(B * T' * tokens, D)``; two frames never see other frames."""
    tower = model.model.visual
    heads = tower.config.num_heads
    pixels = patches(frames_BTCHW)
    rows, cols = frames_BTCHW.shape[3] // PATCH, frames_BTCHW.shape[4] // PATCH
    x = F.linear(pixels, tower.patch_embed.proj.weight.flatten(1)).flatten(0, 1)
    n, length, width = x.shape
    depth = width // heads
    places = torch.stack(
        torch.meshgrid(
            torch.arange(rows, device=x.device), torch.arange(cols, device=x.device), indexing="ij"
        )
    )
    places = places.reshape(2, rows // MERGE, MERGE, cols // MERGE, MERGE).transpose(2, 3).reshape(2, -1, 1)
    angles = (places * frequencies(depth // 4, 10000.0, x.device)).transpose(0, 1).flatten(1)
    angles = torch.cat([angles, angles], -1)
    cos, sin = angles.cos(), angles.sin()
    for block in tower.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).view(n, length, 3, heads, depth).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(turn(q, cos, sin), turn(k, cos, sin), v)
        x = x + block.attn.proj(mixed.transpose(1, 2).reshape(n, length, width))
        x = x + block.mlp(block.norm2(x))
    seen: Tensor = tower.merger(x.flatten(0, 1))
    return seen


def run(model: Qwen2VLForConditionalGeneration, batch: Batch, *, whole: bool = False) -> Pass:
    """The language model behind the vision tower. Attention is kept of the asked rows, or ``whole``."""
    text, config = model.model.language_model, model.config.text_config
    x, visual = text.embed_tokens(batch["ids_BL"]), None
    if "frames_BTCHW" in batch:
        visual = see(model, batch["frames_BTCHW"])
        span = batch["visual"]
        placed = visual.view(len(x), -1, x.shape[-1]).to(x.dtype)
        x = torch.cat([x[:, : span.start], placed, x[:, span.stop :]], 1)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    b, length, width = x.shape
    depth = width // heads
    axis = [a for a, n in enumerate(config.rope_parameters["mrope_section"]) for _ in range(n)]
    places = batch["positions_3BL"][axis].permute(1, 2, 0)
    angles = places * frequencies(depth // 2, config.rope_parameters["rope_theta"], x.device)
    angles = torch.cat([angles, angles], -1)[:, None]
    cos, sin = angles.cos(), angles.sin()
    segment, order = batch["segment_BL"], torch.arange(length, device=x.device)
    allowed = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    allowed &= order[:, None] >= order[None, :]
    bias = torch.zeros(allowed.shape, device=x.device).masked_fill_(~allowed, -1e4)
    asked = batch["last_BK"]
    bias_rows = bias if whole else bias.gather(1, asked[..., None].expand(-1, -1, length))
    middle, rows = x, []
    for number, layer in enumerate(text.layers):
        if number == START_LAYER:
            middle = x
        own = layer.self_attn
        h = layer.input_layernorm(x)
        q = turn(own.q_proj(h).view(b, length, heads, depth).transpose(1, 2), cos, sin)
        k = turn(own.k_proj(h).view(b, length, groups, depth).transpose(1, 2), cos, sin)
        v = own.v_proj(h).view(b, length, groups, depth).transpose(1, 2)
        k, v = (part.repeat_interleave(heads // groups, 1) for part in (k, v))
        if number >= START_LAYER:
            index = asked[:, None, :, None].expand(-1, heads, -1, depth)
            scores = (q if whole else q.gather(2, index)) @ k.transpose(-1, -2)
            rows.append((scores.float() * depth**-0.5 + bias_rows[:, None]).softmax(-1))
        if x.device.type == "cpu":  # plain products: the fused kernel's backward pass takes longer
            scores = (q @ k.transpose(-1, -2)).float() * depth**-0.5 + bias[:, None]
            mixed = scores.softmax(-1).to(v.dtype) @ v
        else:
            mask = bias[:, None].to(q.dtype).expand(-1, heads, -1, -1)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + own.o_proj(mixed.transpose(1, 2).reshape(b, length, width))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return Pass(text.norm(x), middle, visual, rows)


# ── losses ───────────────────────────────────────────────────────────────────


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean over some; NaN over none."""
    where = where.to(values.dtype)
    return (values * where).sum() / where.sum()


class Heads(nn.Module):
    """The auxiliary layers. They are not part of the exported model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 7 + 5 + 6 + 5)
        self.place = nn.Linear(width, 2)
        self.query, self.key = nn.Linear(width, 64), nn.Linear(width, 64)
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def dense_loss(self, visual_ND: Tensor, labels_CN: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over colour, texture, motion and ground; and how much is told rightly on objects.

        ``texture`` is the share of right textures, ``motion`` the mean over the five ways of moving.
        """
        parts = self.dense(visual_ND).float().split([7, 5, 6, 5], -1)
        losses, told = [], []
        for logits, labels, none in zip(parts, labels_CN, (6, 4, 5, 5), strict=True):
            weight = torch.where(labels == none, 0.15, 1.0) * (labels >= 0)  # most tokens show the ground
            each = F.cross_entropy(logits, labels.clamp_min(0), reduction="none")
            losses.append((each * weight).sum() / weight.sum().clamp_min(1e-6))
            told.append(logits.argmax(-1) == labels)
        ways = torch.stack([mean_where(told[2].float(), labels_CN[2] == way) for way in range(5)])
        return torch.stack(losses).mean(), {
            "texture": mean_where(told[1].float(), (labels_CN[1] >= 0) & (labels_CN[1] < 4)),
            "motion": ways.nanmean(),
        }

    def match(self, asked_BKD: Tensor, visual_BVD: Tensor) -> Tensor:
        """Logits ``(B, K, V)`` of a visual token lying on a question's target."""
        q, k = self.query(asked_BKD), self.key(visual_BVD)
        logits: Tensor = (q @ k.transpose(-1, -2)).float() * 64**-0.5 + self.bias
        return logits


def places_of(grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Row and column of each visual token, -1 to 1."""
    t, h, w = grid
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, h, device=device), torch.linspace(-1, 1, w, device=device), indexing="ij"
    )
    return torch.stack([y.ravel(), x.ravel()], 1).repeat(t, 1)


def losses(
    model: Qwen2VLForConditionalGeneration, heads: Heads, batch: Batch, attention_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all losses of a batch, and its parts."""
    if batch["form"] == "look":
        dense, told = heads.dense_loss(see(model, batch["frames_BTCHW"]), batch["labels_CN"])
        return dense, told | {"dense": dense}
    done = run(model, batch)
    logits = model.lm_head(done.last_BLD.flatten(0, 1)[batch["answer_M"]]).float()
    each = F.cross_entropy(logits, batch["token_M"], reduction="none")
    answer = (each * batch["weight_M"]).sum() / batch["weight_M"].sum()
    right = (logits.argmax(-1) == batch["token_M"])[batch["first_BK"]].float()
    if batch["form"] == "choice":
        return 0.5 * answer, {"choice": right.mean()}
    assert done.visual_ND is not None
    dense, told = heads.dense_loss(done.visual_ND, batch["labels_CN"])
    states = done.middle_BLD[:, batch["visual"]]
    wanted = places_of(batch["grid"], states.device)
    place = F.mse_loss(heads.place(states).float(), wanted.expand(len(states), -1, -1))
    last = batch["last_BK"][..., None].expand(-1, -1, states.shape[-1])
    match = heads.match(done.middle_BLD.gather(1, last), states)
    cover = batch["cover_BKV"].float()
    bce = F.binary_cross_entropy_with_logits(match, cover, weight=1 + 4 * cover, reduction="none").mean(-1)
    match_loss = (bce * batch["asked_BK"]).sum() / batch["asked_BK"].sum()
    rows = torch.stack([row.mean(1) for row in done.rows]).mean(0)[..., batch["visual"]]
    there = (cover > 0.3).float()
    some = (there.sum(-1) > 0).float()
    inside = (rows * there).sum(-1) / rows.sum(-1).clamp_min(1e-6)
    attention = -(inside.clamp_min(1e-4).log() * some).sum() / some.sum().clamp_min(1)
    total = answer + dense + 0.2 * place + 4.0 * match_loss
    if attention_weight > 0:
        total = total + attention_weight * attention
    parts = told | {"answer": answer, "dense": dense, "place": place, "match": match_loss}
    parts |= {"attention": attention, "right": right.mean()}
    if batch["form"] == "long":  # new scenes: what a check would say, on many more of them
        hit = there.gather(-1, rows.argmax(-1, keepdim=True))[..., 0]
        for kind in ("appearance", "motion", "multi"):
            asked = batch["kinds_BK"] == ASKED.index(kind)
            parts[f"right_{kind}"] = mean_where(right, asked)
            parts[f"point_{kind}"] = mean_where(hit, asked & (some > 0))
    return total, parts


# ── checks while training ────────────────────────────────────────────────────


def rollout_row(attention: list[Tensor], visual: slice, last: int) -> Tensor:
    """DecAF's V-Max rollout (section 3.2 of its paper's method) as one row, backwards through the layers."""
    row = torch.zeros(attention[0].shape[-1], device=attention[0].device)
    row[last] = 1.0
    for a in reversed(attention):
        w = a[:, :, visual].amax(-1).mean(-1)
        row = 0.5 * row + 0.5 * torch.einsum("h,i,hij->j", w / w.max(), row, a) / len(w)
    return row[visual]


def smooth(map_THW: Tensor, kernel: int) -> Tensor:
    """Gaussian of sigma 1 with zero padding, per time slice."""
    reach = torch.arange(kernel, device=map_THW.device) - kernel // 2
    g = torch.exp(-(reach**2) / 2.0)
    g2 = g[:, None] * g[None, :]
    return F.conv2d(map_THW[:, None], (g2 / g2.sum())[None, None], padding=kernel // 2)[:, 0]


@torch.no_grad()
def check(model: Qwen2VLForConditionalGeneration, packer: Packer, scenes: int) -> dict[str, float]:
    """Answers and pointing on watched scenes, on clips of 16 frames and on one of their frames."""
    device = model.device
    hits: dict[str, list[bool]] = {}

    def ask(one: Example, text: str) -> tuple[str, list[Tensor], slice, int]:
        one.questions = [Question(text, "", None)]
        packed = packer.pack([one], answer=False)
        placed = {
            k: torch.from_numpy(v).to(device) if isinstance(v, np.ndarray) else v for k, v in packed.items()
        }
        done = run(model, placed, whole=True)
        last = int(packed["last_BK"][0, 0])
        word = packer.tokenizer.decode([int(model.lm_head(done.last_BLD[0, last]).argmax())]).strip()
        return word, [a[0] for a in done.rows], packed["visual"], last

    for seed in range(WATCH_SEEDS, WATCH_SEEDS + scenes):
        rng = np.random.default_rng([seed, 97])
        scene = sample_scene(seed, World(n_frames=FRAMES, difficulty=float(rng.integers(2, 9)) / 10))
        clip = film(scene, FRAMES)
        utterances = describe(scene, clip.footage)
        by_kind = {
            kind: next((u for u in utterances if u.kind == kind), None)
            for kind in ("appearance", "motion", "absent")
        }
        for video in (True, False):
            shot = clip if video else clip.rows(slice(8, 9))
            frames = shot.small_TCHW if video else shot.footage.frames_THWC.transpose(0, 3, 1, 2)
            labels = token_labels(shot, tokens(shot, video=video), video=video)
            one = Example(frames, video, labels)
            for kind, utterance in by_kind.items():
                if utterance is None or (kind == "motion" and not video):
                    continue
                target = np.isin(shot.footage.ids_THW, [i + 1 for i in utterance.targets])
                if kind != "absent" and target.sum() < 150:
                    continue
                word, attention, visual, last = ask(one, OBJECT[0].format(sent=utterance.text + "."))
                name = "video" if video else "image"
                hits.setdefault(f"say_{name}_{kind}", []).append(word == utterance.word)
                if kind == "absent":
                    continue
                rollout = rollout_row(attention, visual, last).view(one.grid)
                _, other, visual, last = ask(one, BACKGROUND[0].format(obj_name=word.lower()))
                ground = rollout_row(other, visual, last).view(one.grid)
                kernel = 3 if video else 7
                contrast = (smooth(rollout, kernel) - smooth(ground, kernel)).clamp(0, 1)
                for key, values in {"rollout": rollout, "contrast": contrast}.items():
                    t, y, x = np.unravel_index(int(values.argmax()), one.grid)
                    at = int((y + 0.5) * 192 / one.grid[1]), int((x + 0.5) * 256 / one.grid[2])
                    span = target[2 * t : 2 * t + 2] if video else target
                    kind_name = "motion" if kind == "motion" else name
                    hits.setdefault(f"{kind_name}_{key}", []).append(bool(span[:, at[0], at[1]].any()))
    return {name: float(np.mean(found)) for name, found in hits.items()}


COLUMNS = [
    "share",
    "fresh",
    "lr",
    "loss",
    "answer",
    "right",
    "dense",
    "texture",
    "motion",
    "place",
    "match",
    "attention",
    "choice",
    *[f"{what}_{kind}" for what in ("right", "point") for kind in ("appearance", "motion", "multi")],
    *[f"say_image_{k}" for k in ("appearance", "absent")],
    *[f"say_video_{k}" for k in ("appearance", "motion", "absent")],
    *[f"{n}_{k}" for n in ("image", "video", "motion") for k in ("rollout", "contrast")],
]


# ── training ─────────────────────────────────────────────────────────────────


def corpus(scenes: int) -> list[str]:
    """Texts the tokenizer's merges are learned from: expressions of scenes that nothing else uses."""
    lines: list[str] = []
    for seed in range(500_000, 500_000 + scenes):
        scene = sample_scene(seed)
        lines += [u.text + "." for u in describe(scene, render(scene))]
    return lines


def train(args: argparse.Namespace) -> None:
    """The loop. Settings that change the data are arguments; the rest stands here."""
    device = torch.device(args.device)
    watch = Watch(args.work, COLUMNS)
    state = watch.resume()
    start = state["step"] if state else 0
    note_command(args.work, start)
    tokenizer = make_tokenizer(corpus(args.corpus_scenes))
    feed = Feed(Maker(tokenizer, args.seed, args.batch, args.uses), device, args.workers, start, args.replays)
    torch.manual_seed(args.seed)
    model = make_model(tokenizer)
    heads = Heads(model.config.text_config.hidden_size)
    both = nn.ModuleList([model, heads]).to(device)
    average = copy_of(model)
    optimiser = optimiser_of(both, 0.05)
    if state:
        both.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
    clock, means, packer = Clock(watch, args.steps, args.seconds), Means(), Packer(tokenizer)
    share = clock.share(start)
    for step in itertools.count(start):
        if share >= 1:
            break
        batch = feed.next(share)
        if share < VISION:  # the vision tower's own schedule, then that of all
            lr = rate(share / VISION, args.lr, 0.03)
        else:
            lr = rate((share - VISION) / (1 - VISION), args.lr, 0.04)
        attention = args.attention_weight * max(0.0, 1 - share / args.attention_until)
        with torch.autocast(device.type, torch.bfloat16):
            loss, parts = losses(model, heads, batch, attention)
        optimiser.zero_grad()
        loss.backward()
        update(optimiser, both, lr)
        follow(average, model, step, args.decay)
        means.add({"loss": loss, **parts})
        if (step + 1) % args.log_every == 0:
            watch.log(step + 1, share=share, fresh=feed.fresh, lr=lr, **means.take())
        before, share = share, clock.share(step + 1)
        if int(share * args.checks) > int(before * args.checks):
            figures = check(average, packer, args.check_scenes)
            watch.log(step + 1, share=share, fresh=feed.fresh, lr=lr, **means.take(), **figures)
            watch.save(
                step + 1,
                model=both.state_dict(),
                optimiser=optimiser.state_dict(),
                average=average.state_dict(),
            )
            if args.out:
                export(average, tokenizer, watch, step + 1, args)
    feed.close()


def export(average: nn.Module, tokenizer: Any, watch: Watch, step: int, args: argparse.Namespace) -> None:
    """Write the averaged weights as an ordinary model folder, fp16."""
    copy_of(average).cpu().half().save_pretrained(args.out)
    if importlib.util.find_spec("torchvision"):
        make_processor(tokenizer).save_pretrained(args.out)
    else:
        tokenizer.save_pretrained(args.out)
        print("No torchvision here: add the processor with tools/train/mllm_model.py.", flush=True)
    facts = {
        "script": "tools/train/train_mllm.py",
        "arguments": {k: v for k, v in vars(args).items() if k not in ("work", "out")},
        "steps": step,
        "wall_s": round(watch.elapsed()),
        "data": f"shapes world, scene seeds {train_seeds(args.seed)} to {train_seeds(args.seed + 1) - 1}",
        "log": "docs/training/tiny_mllm.csv",
        "licence": "Apache-2.0",
    }
    (args.out / "provenance.json").write_text(provenance(args.work, **facts))


def main() -> None:
    """Train what is left to train; export with every check, and so at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    training_arguments(parser, steps=4000, batch=16, lr=2e-3)
    parser.add_argument("--corpus-scenes", type=int, default=160)
    parser.add_argument(
        "--attention-weight", type=float, default=0.3, help="of the loss on attention, at the start"
    )
    parser.add_argument(
        "--attention-until", type=float, default=0.85, help="share of the training at which it has faded out"
    )
    args = parser.parse_args()
    setup(args.seed)
    train(args)


if __name__ == "__main__":
    main()
