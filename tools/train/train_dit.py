"""Train ``tiny_dit``: ``python tools/train/train_dit.py --work runs/tiny_dit [--steps 1000]``.

A Stable-Diffusion-3 transformer (diffusers' own class) of 2.4 M parameters with a T5 encoder and a VAE that
passes pixels through, learned by rectified flow on frames of the shapes world and captions of them.

A caption names some of the objects, never all of a kind of word: RefAM's expressions name one.
It is encoded as one string, or as several strings with their own end tokens, some of them bare
function words, because that is the form in which RefAM hands an expression and its magnets over.
A loss on the attention from image to words helps binding to appear within an hour of one core; it
fades out over the first part of training. A stopped run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.shapes_world import (
    COLOURS,
    GROUNDS,
    TEXTURES,
    Scene,
    describe,
    render,
    sample_scene,
)
from tools.train.common import (
    WATCH_SEEDS,
    Watch,
    learning_rate,
    note_command,
    provenance,
    random_world,
    setup,
    shrink,
    train_seeds,
)

SIZE = (96, 128)  # pixels; patches of 8 make 12 x 16 tokens
MAGNETS = ("_", "with", "a", "the", "pink")
SPICE = ("_", "with", "a", "the", "pink", ".", ",", "to", "of", "and")
NOUNS = ("one", "object", "thing", "shape")
WORDS = (
    *COLOURS,
    *TEXTURES,
    *GROUNDS,
    *NOUNS,
    *[
        "ones",
        "objects",
        "things",
        "shapes",
        "big",
        "small",
        "pink",
        "with",
        "stripes",
        "dots",
        "checks",
        "and",
        "the",
        "on",
        "at",
        "in",
        "of",
        "to",
        "left",
        "right",
        "top",
        "bottom",
        "middle",
        "above",
        "below",
        "leftmost",
        "rightmost",
        "topmost",
        "lowest",
        "far",
        "two",
        "three",
        "all",
        "that",
        "which",
        "moves",
        "move",
        "moving",
        "going",
        "up",
        "down",
        "does",
        "not",
        "standing",
        "stand",
        "still",
        "stays",
        "place",
        "leaves",
        "enters",
        "picture",
        "goes",
        "out",
        "comes",
        "into",
        "view",
        "hides",
        "hidden",
        "behind",
        "another",
        "for",
        "while",
        "something",
        "else",
        "covers",
        "back",
        "away",
        "then",
        "returns",
        "only",
        "other",
        "pattern",
        "colour",
        "whose",
        "no",
        "has",
        "would",
        "need",
        "needs",
        "most",
        "least",
        "paint",
        "could",
        "cover",
        "any",
        "fit",
        "inside",
        "others",
        "is",
        "it",
        "an",
        "there",
        "photo",
        "scene",
    ],
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer of T5's form.

    Words of the world are one piece each; as in T5, one-letter words and punctuation fall into the
    word mark and the character; unknown words are spelled.
    """
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789_.,;:!?'\"()-")
    vocab: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocab += [(c, -9.0) for c in letters]
    vocab += [(f"▁{w}", -3.0) for w in dict.fromkeys(WORDS)]
    tok = Tokenizer(models.Unigram(vocab, unk_id=2))
    tok.normalizer = normalizers.Lowercase()
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=256
    )


def make_vae() -> AutoencoderKL:
    """An :class:`AutoencoderKL` that changes nothing: latents are the pixels in [-1, 1].

    A VAE learned in minutes mixes up colours, which are what objects are named by. So the weights are
    set by hand: each colour goes through as the pair (x, -x), since silu(x) - silu(-x) = x; residual
    branches are zero; and a constant pair that dwarfs the picture makes the group norm a fixed scale.
    """
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=3,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    big = 64.0
    with torch.no_grad():
        for part in (vae.encoder, vae.decoder):
            for parameter in part.parameters():
                parameter.zero_()
            for colour in range(3):
                part.conv_in.weight[2 * colour, colour, 1, 1] = 1.0
                part.conv_in.weight[2 * colour + 1, colour, 1, 1] = -1.0
                part.conv_out.weight[colour, 2 * colour, 1, 1] = 1.0
                part.conv_out.weight[colour, 2 * colour + 1, 1, 1] = -1.0
            part.conv_in.bias[6], part.conv_in.bias[7] = big, -big
            part.conv_norm_out.weight[:6] = big / 2  # the norm divides by the pair's deviation, big / 2
        vae.encoder.conv_out.bias[3:] = -20.0  # log variance
    return vae.eval().requires_grad_(False)


def make_models(vocab: int) -> tuple[SD3Transformer2DModel, T5EncoderModel]:
    """The transformer and the text encoder, untrained."""
    transformer = SD3Transformer2DModel(
        sample_size=128,
        patch_size=8,
        in_channels=3,
        out_channels=3,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=16,
        pos_embed_max_size=24,
    )
    text = T5EncoderModel(
        T5Config(
            vocab_size=vocab,
            d_model=128,
            d_kv=32,
            num_heads=4,
            d_ff=256,
            num_layers=2,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            pad_token_id=0,
            eos_token_id=1,
            is_encoder_decoder=False,
            use_cache=False,
            tie_word_embeddings=False,
        )
    )
    return transformer, text


# ── data ─────────────────────────────────────────────────────────────────────


def phrase(rng: np.random.Generator, scene: Scene, index: int) -> str:
    """One object's looks and perhaps its place, as an expression or a caption would say them."""
    thing = scene.things[index]
    words = [str(rng.choice(["a", "the", ""], p=[0.4, 0.4, 0.2]))]
    if rng.random() < 0.3:
        words.append("big" if thing.big else "small")
    with_colour, with_texture = [(True, True), (True, False), (False, True)][
        int(rng.choice(3, p=[0.6, 0.2, 0.2]))
    ]
    if with_colour:
        words.append(thing.colour)
    marks = {"striped": "stripes", "dotted": "dots", "checked": "checks"}.get(thing.texture)
    trailing = with_texture and marks is not None and rng.random() < 0.2
    if with_texture and not trailing:
        words.append(thing.texture)
    words.append(str(rng.choice(NOUNS)))
    if trailing:
        words += ["with", str(marks)]
    if rng.random() < 0.2:
        y, x = thing.centre_T2[0] / np.array(scene.world.size)
        places = [
            p
            for p, holds in (("left", x < 0.33), ("right", x > 0.67), ("top", y < 0.33), ("bottom", y > 0.67))
            if holds
        ]
        if places:
            place = str(rng.choice(places))
            words += ["on", "the", place] if place in ("left", "right") else ["at", "the", place]
    return " ".join(w for w in words if w)


#: A string as the text encoder sees it: its words, each with the object it names (-1: none).
Words = list[tuple[str, int]]
_NAMING = {*COLOURS, *TEXTURES, *NOUNS, "big", "small", "stripes", "dots", "checks"}


def strings(rng: np.random.Generator, scene: Scene, visible: list[int]) -> list[Words]:
    """A caption of a frame as the strings the text encoder sees one by one."""
    count = len(visible) if rng.random() < 0.5 else int(rng.integers(1, len(visible) + 1))
    chosen = [int(i) for i in rng.permutation(visible)[:count]]
    phrases = [[(w, i if w in _NAMING else -1) for w in phrase(rng, scene, i).split()] for i in chosen]
    if rng.random() < 0.5:
        joint = str(rng.choice(["and", "with", ","]))
        whole = phrases[0]
        for more in phrases[1:]:
            whole = [*whole, (joint, -1), *more]
        if rng.random() < 0.3:
            whole = [*whole, ("on", -1), (scene.ground, -1)]
        parts = [whole]
    else:
        parts = phrases
    if rng.random() < 0.6:
        parts = [*parts, *([(str(w), -1)] for w in rng.permutation(SPICE)[: int(rng.integers(1, 6))])]
    return parts


def batch_of(first_seed: int, size: int) -> tuple[Tensor, list[list[Words]], Tensor]:
    """Frames ``(B, 3, 96, 128)`` in [-1, 1], their captions, and whose each token is ``(B, 192)``.

    A token's owner is an object's index, -1 for the ground, -2 where mixed.
    """
    images, captions, owners = [], [], []
    for seed in range(first_seed, first_seed + size):
        rng = np.random.default_rng([seed, 99])
        scene = sample_scene(seed, random_world(rng, 1))
        footage = render(scene)
        visible = [i for i in range(len(scene.things)) if footage.seen_TN[0, i] > 0.4 * footage.full_N[i]]
        images.append(footage.frames_THWC[0])
        captions.append(strings(rng, scene, visible or [len(scene.things) - 1]))
        cells = footage.ids_THW[0].reshape(SIZE[0] // 8, 16, SIZE[1] // 8, 16)
        shares = np.stack([(cells == k).mean((1, 3)).ravel() for k in range(len(scene.things) + 1)])
        owner = np.where(shares.max(0) > 0.6, shares.argmax(0) - 1, -2)
        owners.append(np.where((owner == -1) & (shares[0] < 0.95), -2, owner))
    return shrink(np.stack(images), SIZE) * 2 - 1, captions, torch.from_numpy(np.stack(owners))


class TextBatch:
    """Encodes many strings in one padded pass and joins them per sample, padding at the end."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, encoder: T5EncoderModel) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder

    def owners(self, samples: list[list[Words]]) -> Tensor:
        """Which object each text token names ``(B, L)``: -1 none, -3 padding."""
        rows = []
        for sample in samples:
            row: list[int] = []
            for words in sample:
                for word, owner in words:
                    row += [owner] * len(self.tokenizer(word, add_special_tokens=False).input_ids)
                row.append(-1)  # the string's end token
            rows.append(row)
        longest = max(map(len, rows))
        return torch.tensor([r + [-3] * (longest - len(r)) for r in rows])

    def __call__(self, samples: list[list[str]]) -> tuple[Tensor, Tensor]:
        """``(B, L, d)`` states without inner padding, and which of them are real ``(B, L)``."""
        unique = list(dict.fromkeys(s for sample in samples for s in sample))
        coded = self.tokenizer(unique, padding=True, return_tensors="pt")
        states = self.encoder(
            input_ids=coded.input_ids, attention_mask=coded.attention_mask
        ).last_hidden_state
        lengths = coded.attention_mask.sum(1).tolist()
        found = {s: states[i, : lengths[i]] for i, s in enumerate(unique)}
        rows = [torch.cat([found[s] for s in sample]) for sample in samples]
        longest = max(len(r) for r in rows)
        mask = torch.tensor([[True] * len(r) + [False] * (longest - len(r)) for r in rows])
        return torch.stack([F.pad(r, (0, 0, 0, longest - len(r))) for r in rows]), mask


class MaskedText(TorchFunctionMode):
    """Keeps padding text keys out of the joint attention, and keeps image queries' view of text if asked."""

    def __init__(self, text_mask: Tensor, image_tokens: int, keep: bool = False) -> None:
        super().__init__()
        batch = len(text_mask)
        seen = torch.cat([torch.ones(batch, image_tokens, dtype=torch.bool), text_mask], 1)
        self.bias = torch.zeros(seen.shape).masked_fill(~seen, -1e4)[:, None, None, :]
        self.image_tokens, self.keep = image_tokens, keep
        self.maps: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        # plain products: on a CPU the fused kernel's backward pass takes four times as long
        scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + self.bias
        if self.keep:
            n = self.image_tokens
            self.maps.append(scores[:, :, :n, n:].softmax(-1).mean(1))  # (B, N, T)
        return scores.softmax(-1).to(v.dtype) @ v


def binding_loss(maps: list[Tensor], image_owner_BN: Tensor, text_owner_BT: Tensor) -> Tensor:
    """How far image tokens are from looking at the words of what they show.

    An object's tokens should look at the words that name it, those of the ground and of objects that the
    caption leaves out at anything but naming words.
    """
    heat = torch.stack(maps).mean(0)
    mine = heat * (image_owner_BN[:, :, None] == text_owner_BT[:, None, :]) * (text_owner_BT >= 0)[:, None, :]
    own = mine.sum(-1).clamp(1e-4, 1)
    named = (heat * (text_owner_BT >= 0)[:, None, :]).sum(-1).clamp(0, 1 - 1e-4)
    told = (image_owner_BN[:, :, None] == text_owner_BT[:, None, :]).any(-1) & (image_owner_BN >= 0)
    unnamed = ((image_owner_BN >= 0) & ~told) | (image_owner_BN == -1)
    weight = torch.where(image_owner_BN >= 0, 8.0, 1.0)[unnamed]  # few tokens, but the ones that mislead
    away = ((1 - named).log()[unnamed] * weight).sum() / weight.sum()
    return -own.log()[told].mean() - away


def forward(transformer: SD3Transformer2DModel, noisy: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """The velocity."""
    pooled = torch.zeros(len(noisy), transformer.config.pooled_projection_dim)
    out: Tensor = transformer(
        hidden_states=noisy,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=1000 * sigma,
        return_dict=False,
    )[0]
    return out


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Scaled latents."""
    with torch.no_grad():
        latents: Tensor = vae.encode(images).latent_dist.mode()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


# ── training ─────────────────────────────────────────────────────────────────


@torch.no_grad()
def point_accuracy(
    transformer: SD3Transformer2DModel,
    text: TextBatch,
    vae: AutoencoderKL,
    scenes: int = 30,
    sigma: float = 0.4,
) -> dict[str, float]:
    """Share of appearance expressions whose hottest cell lies on the target, on the watched scenes.

    The map is RefAM's: image queries, softmax over expression and magnets, mean of heads and of the
    last half of the layers, mean over the expression's naming words.
    """
    hits, plain, area, among = [], [], [], []
    rows, cols = SIZE[0] // 8, SIZE[1] // 8
    generator = torch.Generator().manual_seed(0)
    for seed in range(WATCH_SEEDS, WATCH_SEEDS + scenes):
        scene = sample_scene(seed, random_world(np.random.default_rng([seed, 99]), 1))
        footage = render(scene)
        asked = [u for u in describe(scene, footage) if u.kind == "appearance"][:3]
        if not asked:
            continue
        latents = encode(vae, shrink(footage.frames_THWC[:1], SIZE) * 2 - 1).repeat(len(asked), 1, 1, 1)
        noise = torch.randn(latents[:1].shape, generator=generator)
        for magnets in (MAGNETS, ()):
            states, mask = text([[u.text, *magnets] for u in asked])
            with MaskedText(mask, rows * cols, keep=True) as tap:
                forward(
                    transformer,
                    sigma * noise + (1 - sigma) * latents,
                    torch.full((len(asked),), sigma),
                    states,
                )
            maps = torch.stack(tap.maps[len(tap.maps) // 2 :]).mean(0)
            for row, utterance in enumerate(asked):
                pieces = text.tokenizer.convert_ids_to_tokens(text.tokenizer(utterance.text).input_ids)
                naming = [
                    i
                    for i, p in enumerate(pieces)
                    if p.lstrip("▁") in (*COLOURS, *TEXTURES, "stripes", "dots", "checks")
                ]
                heat = maps[row][:, naming].mean(1).reshape(rows, cols)
                y, x = divmod(int(heat.argmax()), cols)
                target = footage.masks_THW(utterance.targets[0])[0]
                inside = bool(target[int((y + 0.5) * 16), int((x + 0.5) * 16)])
                (hits if magnets else plain).append(inside)
                if magnets:
                    area.append(float(target.mean()))
                    among.append(1 / len(scene.things))
    return {
        "point": float(np.mean(hits)),
        "point_no_magnets": float(np.mean(plain)),
        "chance_object": float(np.mean(among)),
        "chance_area": float(np.mean(area)),
    }


def train(
    work: Path,
    steps: int,
    batch: int,
    peak: float,
    check_every: int,
    check_scenes: int,
    binding_weight: float,
    binding_until: float,
    sigma_shift: float,
    seed: int,
) -> None:
    """Rectified flow, with an exponential average of the weights."""
    tokenizer = make_tokenizer()
    vae = make_vae()
    transformer, encoder = make_models(len(tokenizer))
    both = torch.nn.ModuleList([transformer, encoder])
    optimiser = torch.optim.AdamW(both.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    average = {k: v.clone() for k, v in both.state_dict().items()}
    watch = Watch(
        work, ["loss", "binding", "lr", "point", "point_no_magnets", "chance_object", "chance_area"]
    )
    text = TextBatch(tokenizer, encoder)
    start = 0
    if state := watch.resume():
        start = state["step"]
        both.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average = state["average"]
    note_command(work, start)
    image_tokens = (SIZE[0] // 8) * (SIZE[1] // 8)
    total, bound, counted = 0.0, 0.0, 0
    for step in range(start, steps):
        torch.manual_seed(train_seeds(seed) + step)
        lr = learning_rate(step, steps, peak, 60)
        for group in optimiser.param_groups:
            group["lr"] = lr
        images, captions, owners = batch_of(train_seeds(seed) + step * batch, batch)
        latents = images  # which is what the VAE would return, to 1e-4
        noise = torch.randn_like(latents)
        sigma = torch.rand(batch) * 0.97 + 0.03
        sigma = sigma_shift * sigma / (1 + (sigma_shift - 1) * sigma)
        s = sigma[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            states, mask = text([[" ".join(w for w, _ in words) for words in c] for c in captions])
            with MaskedText(mask, image_tokens, keep=True) as tap:
                velocity = forward(transformer, s * noise + (1 - s) * latents, sigma, states)
        flow = F.mse_loss(velocity.float(), noise - latents)
        binding = binding_loss(tap.maps[1:], owners, text.owners(captions))
        fade = max(0.0, 1 - step / (binding_until * steps))
        optimiser.zero_grad()
        (flow + binding_weight * fade * binding).backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        decay = min(0.997, (step + 1) / (step + 10))
        for k, v in both.state_dict().items():
            average[k].lerp_(v, 1 - decay) if v.is_floating_point() else average[k].copy_(v)
        total, bound, counted = total + flow.item(), bound + binding.item(), counted + 1
        last = step == steps - 1
        if (step + 1) % check_every == 0 or last:
            now = {k: v.clone() for k, v in both.state_dict().items()}
            both.load_state_dict(average)
            figures = point_accuracy(transformer, text, vae, check_scenes)
            both.load_state_dict(now)
            watch.log(step + 1, loss=total / counted, binding=bound / counted, lr=lr, **figures)
            watch.save(step + 1, model=now, optimiser=optimiser.state_dict(), average=average)
            total, bound, counted = 0.0, 0.0, 0
        elif (step + 1) % 25 == 0:
            watch.log(step + 1, loss=total / counted, binding=bound / counted, lr=lr)
            total, bound, counted = 0.0, 0.0, 0


def export(work: Path, out: Path, seed: int) -> None:
    """Write the averaged weights as a model folder in diffusers' layout, fp16."""
    tokenizer = make_tokenizer()
    transformer, encoder = make_models(len(tokenizer))
    state = torch.load(work / "last.pt", weights_only=False)
    torch.nn.ModuleList([transformer, encoder]).load_state_dict(state["average"])
    vae = make_vae()
    out.mkdir(parents=True, exist_ok=True)
    transformer.half().save_pretrained(out / "transformer")
    encoder.half().save_pretrained(out / "text_encoder")
    vae.half().save_pretrained(out / "vae")
    tokenizer.save_pretrained(out / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.35.0",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
    facts = {
        "script": "tools/train/train_dit.py",
        "seed": seed,
        "steps": state["step"],
        "wall_s": round(state["clock"][0]),
        "cpu_s": round(state["clock"][1]),
        "data": f"shapes world, scene seeds {train_seeds(seed)} onwards, one frame each",
        "log": "docs/training/tiny_dit.csv",
        "licence": "Apache-2.0",
    }
    (out / "provenance.json").write_text(provenance(work, **facts))


def main() -> None:
    """Train what is left to train, then export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for log and checkpoints")
    parser.add_argument("--out", type=Path, help="folder of the finished model")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--check-every", type=int, default=100)
    parser.add_argument(
        "--sigma-shift", type=float, default=1.0, help="above 1: more of the high noise levels"
    )
    parser.add_argument("--check-scenes", type=int, default=30)
    parser.add_argument(
        "--binding-weight", type=float, default=3.0, help="of the loss on attention, at the start"
    )
    parser.add_argument(
        "--binding-until", type=float, default=1.0, help="share of the steps at which it has faded out"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and scenes, 0 to 5")
    args = parser.parse_args()
    setup(args.seed)
    train(
        args.work,
        args.steps,
        args.batch,
        args.lr,
        args.check_every,
        args.check_scenes,
        args.binding_weight,
        args.binding_until,
        args.sigma_shift,
        args.seed,
    )
    if args.out:
        export(args.work, args.out, args.seed)


if __name__ == "__main__":
    main()
