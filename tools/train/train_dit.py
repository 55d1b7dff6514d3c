"""Train ``tiny_dit``: ``python tools/train/train_dit.py --work runs/tiny_dit --out FOLDER``.

A Stable-Diffusion-3 transformer (diffusers' own class) of 2.4 M parameters with a T5 encoder and a VAE that
passes pixels through, learned by rectified flow on frames of the shapes world and captions of them.

A caption names some of the objects, never all of a kind of word: RefAM's expressions name one.
It is encoded as one string, or as several strings with their own end tokens, some of them bare
function words, because that is the form in which RefAM hands an expression and its magnets over.
A loss on the attention from image to words helps binding to appear early; it fades out over the first
part of training (``--binding-weight``, ``--binding-until``). A stopped run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.shapes_world import (
    COLOURS,
    GROUNDS,
    TEXTURES,
    Scene,
    describe,
)
from tools.train.common import (
    SEEDS_PER_RUN,
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
from tools.train.scenes import SMALL, Shots, random_shot

ROWS, COLS = SMALL[0] // 8, SMALL[1] // 8  # patches of 8 pixels make 12 x 16 tokens
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
_LOOKS = {*COLOURS, *TEXTURES, "stripes", "dots", "checks"}
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


class Coder:
    """Turns captions into arrays: strings are encoded once each, then joined per sample.

    Args:
        tokenizer: the text encoder's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.pieces: dict[str, list[int]] = {}

    def _ids(self, word: str) -> list[int]:
        if word not in self.pieces:
            self.pieces[word] = self.tokenizer(word, add_special_tokens=False).input_ids
        return self.pieces[word]

    def __call__(self, samples: list[list[Words]]) -> Batch:
        """Token ids of the strings ``(U, l)``, and per sample, padded at the end, where its tokens stand.

        ``place_BL`` counts tokens of all strings; -1 is padding. ``owner_BL`` is the object that a token
        names, -1 for none, -3 for padding.
        """
        end = self.tokenizer.eos_token_id
        strings: dict[tuple[str, ...], int] = {}
        coded: list[list[int]] = []
        places: list[list[tuple[int, int]]] = []
        owners: list[list[int]] = []
        for sample in samples:
            places.append([])
            owners.append([])
            for words in sample:
                key = tuple(w for w, _ in words)
                if key not in strings:
                    strings[key] = len(coded)
                    coded.append([*(i for w in key for i in self._ids(w)), end])
                number = strings[key]
                places[-1] += [(number, k) for k in range(len(coded[number]))]
                owners[-1] += [o for w, o in words for _ in self._ids(w)] + [-1]
        wide = -(-max(map(len, coded)) // 8) * 8
        longest = -(-max(map(len, owners)) // 8) * 8
        return {
            "ids_UL": np.array([c + [0] * (wide - len(c)) for c in coded]),
            "place_BL": np.array([[n * wide + k for n, k in p] + [-1] * (longest - len(p)) for p in places]),
            "owner_BL": np.array([o + [-3] * (longest - len(o)) for o in owners]),
        }


def encode_text(encoder: T5EncoderModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """``(B, L, d)`` states without inner padding, and which of them are real ``(B, L)``."""
    ids, place = batch["ids_UL"], batch["place_BL"]
    states = encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    return states.flatten(0, 1)[place.clamp_min(0)] * (place >= 0)[..., None], place >= 0


class Maker:
    """Makes the batch of a number: frames, captions, and whose each image token is.

    Args:
        tokenizer: the text encoder's.
        seed: of the run.
        batch: frames.
        uses: how often a drawn frame is shown on average.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, batch: int, uses: float) -> None:
        self.coder, self.seed, self.batch = Coder(tokenizer), seed, batch
        self.shots = Shots(1, uses, stock=1024)

    def __call__(self, number: int, share: float) -> Batch:
        """``owner_BN`` is an object's index, -1 for the ground, -2 where mixed."""
        rng = np.random.default_rng([train_seeds(self.seed), number, 99])
        drawn = 0

        def next_seed() -> int:
            nonlocal drawn
            drawn += 1
            return train_seeds(self.seed) + (number * self.batch + drawn - 1) % SEEDS_PER_RUN

        frames, captions, owners = [], [], []
        for _ in range(self.batch):
            shot = self.shots.draw(rng, next_seed)
            footage = shot.footage
            count = len(shot.scene.things)
            visible = [i for i in range(count) if footage.seen_TN[0, i] > 0.4 * footage.full_N[i]]
            frames.append(shot.small_TCHW[0])
            captions.append(strings(rng, shot.scene, visible or [count - 1]))
            owners.append(owner_of(shot.shares_TSRC[0].reshape(count + 1, -1)))
        return {"frames_BCHW": np.stack(frames), "owner_BN": np.stack(owners)} | self.coder(captions)


def owner_of(shares_SN: NDArray[np.float32]) -> NDArray[np.int64]:
    """Whose each image token is: an object's index, -1 for the ground, -2 where mixed."""
    owner = np.where(shares_SN.max(0) > 0.6, shares_SN.argmax(0) - 1, -2)
    return np.where((owner == -1) & (shares_SN[0] < 0.95), -2, owner)


class MaskedText(TorchFunctionMode):
    """Keeps padding text keys out of the joint attention, and keeps image queries' view of text if asked."""

    def __init__(self, text_mask: Tensor, image_tokens: int, keep: bool = False) -> None:
        super().__init__()
        batch = len(text_mask)
        seen = torch.cat([text_mask.new_ones(batch, image_tokens), text_mask], 1)
        self.bias = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -1e4)[:, None, None, :]
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
    naming = (text_owner_BT >= 0)[:, None, :]
    same = (image_owner_BN[:, :, None] == text_owner_BT[:, None, :]) & naming
    own = (heat * same).sum(-1).clamp(1e-4, 1)
    named = (heat * naming).sum(-1).clamp(0, 1 - 1e-4)
    told = same.any(-1)
    unnamed = ((image_owner_BN >= 0) & ~told) | (image_owner_BN == -1)
    weight = torch.where(image_owner_BN >= 0, 8.0, 1.0) * unnamed  # few tokens, but the ones that mislead
    away = ((1 - named).log() * weight).sum() / weight.sum().clamp_min(1)
    return -(own.log() * told).sum() / told.sum().clamp_min(1) - away


def forward(transformer: SD3Transformer2DModel, noisy: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """The velocity."""
    pooled = noisy.new_zeros(len(noisy), transformer.config.pooled_projection_dim)
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
    encoder: T5EncoderModel,
    coder: Coder,
    scenes: int,
    sigma: float = 0.1,
) -> dict[str, float]:
    """Share of appearance expressions whose hottest cell lies on the target, on the watched scenes.

    The map is RefAM's: image queries, softmax over expression and magnets, mean of heads and of the
    last half of the layers, mean over the expression's naming words.
    """
    device = transformer.device
    found: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, 3, *SMALL), generator=generator).to(device)
    for seed in range(WATCH_SEEDS, WATCH_SEEDS + scenes):
        shot = random_shot(seed, 1)
        asked = [u for u in describe(shot.scene, shot.footage) if u.kind == "appearance"][:3]
        if not asked:
            continue
        latents = torch.from_numpy(shot.small_TCHW).to(device).float() / 127.5 - 1
        noisy = (sigma * noise + (1 - sigma) * latents).repeat(len(asked), 1, 1, 1)
        for name, magnets in {"point": MAGNETS, "point_no_magnets": ()}.items():
            samples = [
                [[(w, 0 if w in _LOOKS else -1) for w in u.text.split()], *([(m, -1)] for m in magnets)]
                for u in asked
            ]
            coded = coder(samples)
            placed = {k: torch.from_numpy(v).to(device) for k, v in coded.items()}
            states, mask = encode_text(encoder, placed)
            with MaskedText(mask, ROWS * COLS, keep=True) as tap:
                forward(transformer, noisy, torch.full((len(asked),), sigma, device=device), states)
            maps = torch.stack(tap.maps[len(tap.maps) // 2 :]).mean(0)
            for heat, owner, utterance in zip(maps.cpu(), coded["owner_BL"], asked, strict=True):
                y, x = divmod(int(heat[:, owner == 0].mean(1).argmax()), COLS)
                target = shot.footage.masks_THW(utterance.targets[0])[0]
                found.setdefault(name, []).append(bool(target[int((y + 0.5) * 16), int((x + 0.5) * 16)]))
                found.setdefault("chance_object", []).append(1 / len(shot.scene.things))
    return {name: float(np.mean(values)) for name, values in found.items()}


def train(args: argparse.Namespace) -> None:
    """Rectified flow, with an exponential average of the weights."""
    device = torch.device(args.device)
    watch = Watch(
        args.work,
        ["share", "fresh", "lr", "loss", "flow", "binding", "point", "point_no_magnets", "chance_object"],
    )
    state = watch.resume()
    start = state["step"] if state else 0
    note_command(args.work, start)
    tokenizer = make_tokenizer()
    feed = Feed(Maker(tokenizer, args.seed, args.batch, args.uses), device, args.workers, start, args.replays)
    torch.manual_seed(train_seeds(args.seed) + start)
    transformer, encoder = make_models(len(tokenizer))
    both = nn.ModuleList([transformer, encoder]).to(device)
    average = copy_of(both)
    optimiser = optimiser_of(both, 0.02)
    if state:
        both.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
    clock, means, coder = Clock(watch, args.steps, args.seconds), Means(), Coder(tokenizer)

    share = clock.share(start)
    for step in itertools.count(start):
        if share >= 1:
            break
        batch = feed.next(share)
        lr = rate(share, args.lr, 0.04)
        latents = batch["frames_BCHW"].float() / 127.5 - 1  # what the VAE would return, to 1e-4
        noise = torch.randn_like(latents)
        sigma = torch.rand(len(latents), device=device) * 0.97 + 0.03
        s = sigma[:, None, None, None]
        with torch.autocast(device.type, torch.bfloat16):
            states, mask = encode_text(encoder, batch)
            with MaskedText(mask, ROWS * COLS, keep=True) as tap:
                velocity = forward(transformer, s * noise + (1 - s) * latents, sigma, states)
        flow = F.mse_loss(velocity.float(), noise - latents)
        binding = binding_loss(tap.maps[1:], batch["owner_BN"], batch["owner_BL"])
        fade = max(0.0, 1 - share / args.binding_until)
        loss = flow + args.binding_weight * fade * binding if fade > 0 else flow
        optimiser.zero_grad()
        loss.backward()
        update(optimiser, both, lr)
        follow(average, both, step, args.decay)
        means.add({"loss": loss, "flow": flow, "binding": binding})
        if (step + 1) % args.log_every == 0:
            watch.log(step + 1, share=share, fresh=feed.fresh, lr=lr, **means.take())
        before, share = share, clock.share(step + 1)
        if int(share * args.checks) > int(before * args.checks):
            figures = point_accuracy(*average, coder, args.check_scenes)
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


def export(
    average: nn.ModuleList,
    tokenizer: PreTrainedTokenizerFast,
    watch: Watch,
    step: int,
    args: argparse.Namespace,
) -> None:
    """Write the averaged weights as a model folder in diffusers' layout, fp16."""
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    transformer, encoder = copy_of(average).cpu()
    transformer.half().save_pretrained(out / "transformer")
    encoder.half().save_pretrained(out / "text_encoder")
    make_vae().half().save_pretrained(out / "vae")
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
        "arguments": {k: v for k, v in vars(args).items() if k not in ("work", "out")},
        "steps": step,
        "wall_s": round(watch.elapsed()),
        "data": f"shapes world, scene seeds {train_seeds(args.seed)} onwards, one frame each",
        "log": "docs/training/tiny_dit.csv",
        "licence": "Apache-2.0",
    }
    (out / "provenance.json").write_text(provenance(args.work, **facts))


def main() -> None:
    """Train what is left to train; export with every check, and so at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    training_arguments(parser, steps=1000, batch=24, lr=3e-3)
    parser.add_argument(
        "--binding-weight", type=float, default=1.5, help="of the loss on attention, at the start"
    )
    parser.add_argument(
        "--binding-until", type=float, default=0.9, help="share of the training at which it has faded out"
    )
    args = parser.parse_args()
    setup(args.seed)
    train(args)


if __name__ == "__main__":
    main()
