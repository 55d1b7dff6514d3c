"""A diffusion transformer as a source of attention: one noised forward pass, read by the tap.

The component holds everything that decides what attention is read (noise level, layers, heads,
softmax, how text enters). What becomes of the maps is a method's business. Models are loaded
through diffusers by folder or hub id and revision, unmodified; families differ in
:mod:`refseg_bench.backbones.dit.families`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench import env
from refseg_bench.backbones.attention_maps import (
    HIDDEN,
    PROMPT,
    MapObserver,
    MapOptions,
    SoftmaxTokens,
    TokenLayout,
    TokenMaps,
    one_way_mask,
)
from refseg_bench.backbones.base import Backbone, shared_pass
from refseg_bench.backbones.dit.families import DiTFamily, ForwardInputs, config, family
from refseg_bench.backbones.dit.text import TextSide, Tokenizer, TokenSet
from refseg_bench.backbones.lazy_torch import F, Tensor, nn, torch
from refseg_bench.backbones.weights import Weights, choose_device, content, fetch, load_module
from refseg_bench.config.schema import option, refuse_outside
from refseg_bench.errors import ConfigError, DataError, require
from refseg_bench.files.store_io import read_json

TextMode = Literal["concept_stream", "prompt"]
#: Bump when the same options come to mean other numbers: cached maps are then never found again.
STAGE = 4
_FILES = ("model_index.json", "transformer/*", "vae/*", "scheduler/*", "text_encoder*/*", "tokenizer*/*")


@dataclass(frozen=True, eq=False)
class LatentImage:
    """One image as the transformer sees it, before noise."""

    latents: Tensor  #: clean latents, float32, in the family's layout
    grid: tuple[int, int]  #: (rows, columns) of image tokens
    #: Share of the canvas the image covers, (height, width), from the top left corner; (1, 1) unless the
    #: image was padded.
    content: tuple[float, float]


@dataclass(frozen=True, eq=False)
class TokenRequest:
    """What is asked of one scene: a set of tokens, read in one or several ways."""

    tokens: TokenSet  #: the extraction tokens
    prompt: str  #: the text the transformer is prompted with (concept stream only)
    readings: Mapping[str, SoftmaxTokens]  #: name → which tokens share a softmax


@dataclass
class Counters:
    """What a backbone has done so far; goes into the run record."""

    dit_forwards: int = 0
    vae_encodings: int = 0
    text_encodings: int = 0


@dataclass
class DiT(Backbone):
    """A text-to-image or text-to-video transformer."""

    packages: ClassVar[tuple[str, ...]] = ("torch",)

    path: str  #: hub id, folder in diffusers' layout, or ``shipped:NAME``
    family: str  #: ``flux``, ``sd3``, ``mochi``, ``cogvideox``, ``wan``, or a class path
    revision: str | None = None  #: commit, branch or tag of the hub id
    #: height, width: of the input in pixels; ``None`` = the family's.
    height: int | None = None
    width: int | None = None
    #: ``squash`` to that size, or keep the aspect ratio and ``pad`` at right and bottom.
    resize: Literal["squash", "pad"] = "squash"
    sigma: float | list[float] = 0.5  #: noise level(s) in [0, 1]; maps are averaged over them
    n_noise: int = 1  #: noise samples per level, averaged
    seed: int = 0  #: of the noise; the same noise for every image
    #: ``none``: σ as given; ``model``: mapped by the model's schedule shift.
    shift: Literal["none", "model"] = "none"
    guidance: float | None = None  #: guidance embedding; ``None`` = the family's (1.0 for FLUX dev)
    #: Layer numbers, or ``all``, ``late_half``, and for FLUX ``all_double``, ``single``.
    layers: list[int] | str = "late_half"
    heads: list[int] | Literal["all"] = "all"  #: ``all`` or head numbers; always averaged
    #: head_agg, direction, softmax_axis: see ``attention_maps.MapOptions``.
    head_agg: Literal["softmax_then_mean", "mean_logits_then_softmax", "joint_renorm"] = "softmax_then_mean"
    direction: Literal["img2txt", "txt2img"] = "img2txt"
    softmax_axis: Literal["tokens", "image", "joint"] = "tokens"
    #: ``concept_stream``: prompt for the model, extraction tokens as silent watchers; ``prompt``: the
    #: extraction tokens are the prompt.
    text_mode: TextMode = "concept_stream"
    #: In a concept stream, whether the strings of an expression (the expression, each magnet) see each other.
    concept_self_attention: bool = True
    #: Text of the pooled CLIP vector (``prompt``: in prompt mode the expression; zeros if empty), or
    #: ``zeros``.
    pooled: Literal["prompt", "expression", "zeros"] = "prompt"
    clip_tokens: Literal["omit", "zeros"] = "omit"  #: SD3's 77 CLIP positions: left out or zeros
    #: Extraction strings encoded alone, or behind padding to the full length and then stripped.
    t5_padding: Literal["none", "max_length_strip"] = "none"
    #: Pad the prompt as the family's pipeline does, or not.
    prompt_padding: Literal["pipeline", "none"] = "pipeline"
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"  #: of the weights; softmax is float32 always
    device: str = option("auto", transient=True)  #: ``auto`` = the GPU if there is one
    #: ``keep`` on the device, wait on the ``cpu``, ``free`` after each clip.
    text_encoders: Literal["keep", "cpu", "free"] = option("keep", transient=True)
    #: ``blocks`` streams the transformer's blocks through the device one by one.
    offload: Literal["none", "blocks"] = option("none", transient=True)
    #: How many expressions share a pass in a concept stream, on an accelerator.
    batch_size: int = option(8, transient=True)
    offline: bool = option(False, transient=True)  #: never fetch weights from the hub
    counters: Counters = field(default_factory=Counters, init=False, repr=False, compare=False)
    _loaded: _Loaded | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if any(not 0 <= sigma <= 1 for sigma in self.sigmas):
            raise ConfigError(
                f"Noise level {self.sigma} is outside [0, 1].", where="backbone.sigma", allowed=["0…1"]
            )
        refuse_outside(self, 1, math.inf, "n_noise")

    # ── what is asked of it ──

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels."""
        return tuple(self.sigma) if isinstance(self.sigma, list) else (self.sigma,)

    @property
    def tokenizer(self) -> Tokenizer:
        """T5's tokenizer; needs no weights."""
        return self._load().text.tokenizer

    @property
    def adapter(self) -> DiTFamily:
        """The family's adapter; needs no weights."""
        return family(self.family)

    @property
    def max_text(self) -> int:
        """Most extraction tokens of one expression with its magnets."""
        return self.adapter.max_text

    @property
    def magnets_independent(self) -> bool:
        """True if an expression's tokens don't change with its magnets."""
        if self.text_mode == "prompt":
            return False
        return self.adapter.cross or not self.concept_self_attention

    def options(self, space: Literal["attention", "output"] = "attention") -> MapOptions:
        """How logits become maps, from the options."""
        heads = None if self.heads == "all" else tuple(int(h) for h in self.heads)
        return MapOptions(self.head_agg, self.direction, self.softmax_axis, heads, space)

    def identity(self) -> dict[str, Any]:
        """Everything of this backbone that a cached map depends on."""
        lasting = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.init and not f.metadata.get("transient", False)
        }
        return {"stage": STAGE, "kernel": "sdpa", "weights": self._load().fingerprint, **lasting}

    def open(self, image_HWC: NDArray[np.uint8]) -> LatentImage:
        """Encode an image (uint8 RGB of any size) once for all its expressions."""
        loaded = self._load()
        pixels, content = self._canvas(image_HWC)
        with torch.inference_mode():
            latents = loaded.family.encode(loaded.vae, pixels.to(loaded.device))
        self.counters.vae_encodings += 1
        return LatentImage(latents, loaded.family.grid(latents, loaded.transformer), content)

    def attend(
        self, scene: LatentImage, queries: Sequence[TokenRequest], options: MapOptions | None = None
    ) -> list[dict[str, TokenMaps]]:
        """Read attention between an image, as :meth:`open` gives it, and sets of tokens, one per expression.

        Expressions of a concept stream share forward passes, since none is seen by image, prompt or another
        expression. In prompt mode each has its own. Of each query there are maps by reading.

        Raises:
            AttentionError: attention can't be read, or is NaN.
        """
        options = options or self.options()
        answers: list[dict[str, TokenMaps]] = [{} for _ in queries]
        for batch in self._batches(queries):
            found = self._pass(scene, [queries[i] for i in batch], options)
            for index, answer in zip(batch, found, strict=True):
                answers[index] = answer
        self._load().text.rest()
        return answers

    def variant(self, **options: Any) -> DiT:
        """The same model, loaded once, read with other options (none that loading depends on)."""
        other = replace(self, **options)
        other._loaded, other.counters = self._load(), self.counters
        return other

    def wanted(self) -> tuple[int, ...]:
        """The layers read, as numbers."""
        loaded = self._load()
        return resolve_layers(self.layers, loaded.family.layer_groups(loaded.transformer))

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        kinds, who = (self.adapter.transformer_class,), f"backbone ({self.path})"
        return (Weights(self.path, self.revision, patterns=_FILES, component=who, kinds=kinds),)

    def report(self) -> dict[str, Any]:
        """What this process did, for the run record."""
        return asdict(self.counters)

    # ── one forward pass ──

    def _batches(self, queries: Sequence[TokenRequest]) -> Iterator[list[int]]:
        if self.text_mode == "prompt":
            yield from ([i] for i in range(len(queries)))
            return
        size = shared_pass(self._load().device.type, self.batch_size)
        alike: dict[tuple[str, str], list[int]] = {}
        for index, query in enumerate(queries):
            alike.setdefault((query.prompt, self.pooled_text(query.tokens, query.prompt)), []).append(index)
        for members in alike.values():
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def pooled_text(self, tokens: TokenSet, prompt: str) -> str:
        """The text whose CLIP vector conditions a pass; empty = a vector of zeros."""
        if self.adapter.pooled_output is None or self.pooled == "zeros":
            return ""
        return tokens.expression if self.text_mode == "prompt" or self.pooled == "expression" else prompt

    @env.stage("attention")
    def _pass(
        self, scene: LatentImage, queries: Sequence[TokenRequest], options: MapOptions
    ) -> list[dict[str, TokenMaps]]:
        from diffusers import attention_backend

        from refseg_bench.backbones.sdpa_tap import SdpaTap

        loaded = self._load()
        family, transformer = loaded.family, loaded.transformer
        text = assemble(self, loaded, queries)
        image = scene.grid[0] * scene.grid[1]
        mask, layout = text.mask(image, family), text.layout(image, family)
        recorder = MapObserver(layout, options, [query.readings for query in queries])
        tap = SdpaTap(
            family.schedule(transformer),
            self.wanted(),
            recorder,
            mask=None if mask is None else mask.to(loaded.device),
            like=layout.image.start,
        )
        pooled = self._pooled(loaded, queries[0])
        guidance = family.guidance_default(transformer) if self.guidance is None else self.guidance
        silent = self.text_mode == "concept_stream"
        watched = (
            family.prompt_only_conditioning(transformer, text.prompt_tokens) if silent else nullcontext()
        )
        # Whatever DIFFUSERS_ATTN_BACKEND says: other kernels than the native one would pass the tap by.
        with torch.inference_mode(), watched, attention_backend("native"):
            embedded = text.embeddings.to(loaded.device, loaded.dtype)[None]
            for sigma, noise in self._noises(scene, loaded):
                latents = family.noised(scene.latents, noise, sigma, loaded.scheduler)
                inputs = ForwardInputs(
                    latents.to(loaded.dtype), embedded, pooled, sigma, guidance, text.prompt_tokens
                )
                tap.run(lambda inputs=inputs: family.forward(transformer, inputs))  # type: ignore[misc]
                self.counters.dit_forwards += 1
        self.counters.text_encodings = loaded.text.encodings
        return recorder.results(scene.grid)

    def _noises(self, scene: LatentImage, loaded: _Loaded) -> Iterator[tuple[float, Tensor]]:
        """(noise level, noise) of each pass; the draws depend on the seed alone."""
        tokens = scene.grid[0] * scene.grid[1]
        for sample in range(self.n_noise):
            # Apart for every seed and sample (seed + sample would share draws between seeds); the
            # generator takes 32 bits, hence the largest prime below.
            draw = (self.seed * 1_000_003 + sample) % (2**32 - 5)
            generator = torch.Generator("cpu").manual_seed(draw)
            noise = torch.randn(scene.latents.shape, generator=generator).to(scene.latents.device)
            for sigma in self.sigmas:
                if self.shift == "model":
                    sigma = loaded.family.shifted(sigma, tokens, loaded.scheduler)
                yield sigma, noise

    def _pooled(self, loaded: _Loaded, query: TokenRequest) -> Tensor | None:
        if loaded.family.pooled_output is None:
            return None
        text = self.pooled_text(query.tokens, query.prompt)
        if not text:
            width = int(config(loaded.transformer, "pooled_projection_dim"))
            return torch.zeros(1, width, device=loaded.device, dtype=loaded.dtype)
        vector = loaded.text.pooled(text, loaded.family.pooled_output)
        return vector.to(loaded.device, loaded.dtype)[None]

    # ── input ──

    def _canvas(self, image_HWC: NDArray[np.uint8]) -> tuple[Tensor, tuple[float, float]]:
        """The image on the model's canvas, ``(1, 3, H, W)`` in [−1, 1], and the share it covers."""
        height, width = self.input_size()
        if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or 0 in image_HWC.shape:
            raise DataError(
                f"An image must be height × width × 3, not {image_HWC.shape}.",
                hint="Read it with refseg_bench.files.images.read_rgb, which brings every mode to RGB.",
            )
        rows, columns = self._inner(image_HWC.shape[:2])
        pixels = torch.tensor(image_HWC).permute(2, 0, 1)[None].float() / 127.5 - 1
        pixels = F.interpolate(pixels, (rows, columns), mode="bicubic", align_corners=False, antialias=True)
        pixels = F.pad(pixels.clamp(-1, 1), (0, width - columns, 0, height - rows))
        return pixels, (rows / height, columns / width)

    def _inner(self, size: tuple[int, ...]) -> tuple[int, int]:
        """(height, width) of the image on the canvas."""
        height, width = self.input_size()
        if self.resize == "squash":
            return height, width
        factor = min(height / size[0], width / size[1])
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))

    def content_share(self, size: tuple[int, int]) -> tuple[float, float]:
        """The share of the canvas, (height, width), that an image of this size covers."""
        height, width = self.input_size()
        rows, columns = self._inner(size)
        return rows / height, columns / width

    def input_size(self) -> tuple[int, int]:
        """(height, width) of the model's input in pixels."""
        height, width = self.adapter.size
        return self.height or height, self.width or width

    # ── loading ──

    def _load(self) -> _Loaded:
        if self._loaded is None:
            self._loaded = _Loaded(self)
        return self._loaded


def resolve_layers(layers: Sequence[int] | str, groups: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Layer numbers of a list or a group's name.

    Raises:
        ConfigError: unknown group, or a number the model does not have.
    """
    if isinstance(layers, str):
        if layers not in groups:
            raise ConfigError(
                f"No layer group '{layers}'.", where="backbone.layers", allowed=[*groups, "[list]"]
            )
        return groups[layers]
    unknown = sorted(set(layers) - set(groups["all"]))
    if unknown or not layers:
        raise ConfigError(
            f"The model has no layer {unknown[0]}." if unknown else "No layer is chosen.",
            where="backbone.layers",
            allowed=[f"{groups['all'][0]}…{groups['all'][-1]}", *groups],
        )
    return tuple(sorted(set(layers)))


@dataclass(frozen=True, eq=False)
class _AssembledText:
    """The text of one forward pass and who its tokens are."""

    embeddings: Tensor  #: ``(tokens, channels)``
    roles: tuple[int, ...]  #: per token, as ``attention_maps.one_way_mask`` has them
    sets: tuple[tuple[int, ...], ...]  #: positions of each set's tokens
    prompt_tokens: int  #: prompt tokens; they come first
    masked: bool  #: whether the roles must be enforced by a mask

    def mask(self, image: int, family: DiTFamily) -> Tensor | None:
        """The attention mask, or ``None`` if the plain attention already does it."""
        if not self.masked:
            return None
        return one_way_mask(self.roles, image, text_first=family.text_first, cross=family.cross)

    def layout(self, image: int, family: DiTFamily) -> Any:
        """Where everything stands in the joint attention."""
        offset = 0 if family.text_first or family.cross else image
        start = len(self.roles) if family.text_first and not family.cross else 0
        return TokenLayout(
            slice(start, start + image),
            tuple(offset + i for i in range(self.prompt_tokens)),
            tuple(tuple(offset + i for i in positions) for positions in self.sets),
            family.cross,
        )


def assemble(dit: DiT, loaded: _Loaded, queries: Sequence[TokenRequest]) -> _AssembledText:
    """Prompt, extraction sets and whatever padding the model insists on, in this order."""
    family, text = loaded.family, loaded.text
    strip = family.pad_to(loaded.transformer) if dit.t5_padding == "max_length_strip" else None
    parts: list[Tensor] = []
    roles: list[int] = []
    width = int(loaded.text_width)
    if family.name == "sd3" and dit.clip_tokens == "zeros":
        parts.append(torch.zeros(77, width))
        roles += [PROMPT] * 77
    silent = dit.text_mode == "concept_stream"
    if silent:
        prompt = loaded.prompt_states(queries[0].prompt, padded=dit.prompt_padding == "pipeline")
        parts.append(prompt)
        roles += [PROMPT] * len(prompt)
    prompt_tokens = len(roles)
    sets: list[tuple[int, ...]] = []
    group = 0
    for query in queries:
        begin = len(roles)
        for ids in query.tokens.strings:
            states = text.states(ids, None if strip is None else max(strip, len(ids)))[: len(ids)]
            states = states[:1] if query.tokens.first_only else states
            parts.append(states)
            # In prompt mode the extraction tokens are the prompt and are seen by everybody.
            roles += [group if silent else PROMPT] * len(states)
            group += not dit.concept_self_attention
        group += dit.concept_self_attention
        sets.append(tuple(range(begin, len(roles))))
    exact = family.text_length(loaded.transformer)
    if exact is not None:
        if len(roles) > exact:
            raise DataError(
                f"Prompt and extraction tokens are {len(roles)}, the model takes {exact}.",
                hint="Lower backbone.batch_size, or use a shorter prompt.",
            )
        parts.append(torch.zeros(exact - len(roles), width))
        roles += [HIDDEN] * (exact - len(roles))
    return _AssembledText(
        torch.cat([part.float() for part in parts]),
        tuple(roles),
        tuple(sets),
        prompt_tokens,
        silent or HIDDEN in roles,
    )


class _Loaded:
    """The model's parts, each loaded at its first use."""

    def __init__(self, dit: DiT) -> None:
        require("diffusers", "A diffusion transformer")
        self._dit = dit
        self.family = dit.adapter
        self.folder = fetch(dit.weights()[0], offline=dit.offline)
        self.index = read_json(self.folder / "model_index.json")
        self.dtype: torch.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[
            dit.dtype
        ]
        self.device = choose_device(dit.device)
        self.scheduler = read_json(self.folder / "scheduler" / "scheduler_config.json")
        self.text: TextSide = TextSide(self.folder, self.index, self.dtype, self.device, dit.text_encoders)

    @cached_property
    def transformer(self) -> nn.Module:
        """The transformer; blocks after the last wanted layer stay on the CPU, for none of them runs."""
        from refseg_bench.backbones.sdpa_tap import refuse_bypass

        model = self._part("transformer", self.family.transformer_class)
        refuse_bypass(model)
        wanted = resolve_layers(self._dit.layers, self.family.layer_groups(model))
        if self._dit.offload == "blocks":
            model.enable_group_offload(  # type: ignore[operator]
                onload_device=self.device, offload_type="block_level", num_blocks_per_group=1
            )
        else:
            place(model, self.family, self.device, max(wanted))
        return model

    @cached_property
    def vae(self) -> nn.Module:
        """The image encoder."""
        return self._part("vae", self.family.vae_class)

    @property
    def text_width(self) -> int:
        """Channels of a text embedding."""
        config = read_json(self.folder / str(self.text.t5_part) / "config.json")
        return int(config["d_model"])

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights' content; a snapshot of the hub is named by its commit."""
        return content(self._dit.weights()[0], self._dit.cache_root) or self.folder.name

    def prompt_states(self, prompt: str, *, padded: bool) -> Tensor:
        """T5 states of the prompt as the family's pipeline makes them."""
        ids = tuple(int(i) for i in self.text.tokenizer(prompt).input_ids)
        limit = self.family.pad_to(self.transformer)
        ids = ids if len(ids) <= limit else (*ids[: limit - 1], ids[-1])
        if padded and self.family.padding_attends:
            return self.text.states(ids, limit)
        return self.text.states(ids)

    def _part(self, name: str, expected: str) -> nn.Module:
        entry = self.index.get(name)
        if not isinstance(entry, list) or entry[1] != expected:
            raise ConfigError(
                f"The model's {name} is {entry[1] if isinstance(entry, list) else 'missing'}; "
                f"family '{self.family.name}' works with {expected}.",
                where=self.folder / "model_index.json",
                hint="Set backbone.family to the model's own.",
            )
        cls = getattr(import_module("diffusers"), expected)
        by_host = name == "transformer"  # not all of it leaves the host
        module = load_module(cls, self.folder / name, self.dtype, self.device, by_host=by_host)
        ready: nn.Module = module.eval().requires_grad_(False)
        return ready


def place(model: nn.Module, family: DiTFamily, device: torch.device, last: int) -> None:
    """Move what an early exit after layer ``last`` needs to the device; later blocks stay behind."""
    unused = {id(block) for block in family.blocks(model)[last + 1 :]}
    for child in model.children():
        members = list(child.children()) if any(id(m) in unused for m in child.children()) else [child]
        for member in members:
            if id(member) not in unused:
                member.to(device)
    for parameter in model.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    for name, buffer in list(model.named_buffers(recurse=False)):
        setattr(model, name, buffer.to(device))
