"""A multimodal language model of transformers as a grounding backbone: open a clip, read attention.

The prompt of every call begins with a system message and a visual block, and attention is causal, so
that part is run once per clip (and once per frame) and serves all prompts: its keys and values are
the cache the prompts run on, its queries and keys of the wanted layers enter every rollout. What is
kept at a time is bounded by ``memory_budget_gb``; what isn't kept is run again.

Family differences live in ``families``, the algebra in ``rollout``, the hook in ``capture``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from refseg_bench import env
from refseg_bench.backbones import capture
from refseg_bench.backbones.base import (
    GroundingMLLM,
    MLLMCounters,
    MLLMSession,
    PromptAttention,
    RolloutSettings,
    TokenActivations,
    VisualSettings,
    Where,
    layer_range,
    shared_pass,
)
from refseg_bench.backbones.lazy_torch import Tensor, torch
from refseg_bench.backbones.mllm.families import FAMILIES, MLLMFamily, Piece, Visual, family_of
from refseg_bench.backbones.rollout import BLOCK_BYTES, LayerQK, dense_rollout, last_row, shared_rollout
from refseg_bench.backbones.weights import (
    Weights,
    choose_device,
    content,
    fetch,
    folder_of,
    load_module,
    load_processor,
    load_tokenizer,
)
from refseg_bench.config.schema import locate, option
from refseg_bench.errors import ConfigError, RefsegError
from refseg_bench.types import FloatTHW, Uint8THWC

#: Files of a hub repository that a model is loaded from.
_NEEDED = ("*.json", "*.safetensors", "*.txt", "*.jinja")
#: What a prompt's copies of its frames' prefixes may take in a pass on a CPU, in bytes. Which frames go
#: together there is up to the clip and the model: no option of one run alone, no free memory has a say.
_FRAMES_BYTES = 2**30


@dataclass
class MLLM(GroundingMLLM):
    """A chat model with vision from the Hugging Face hub, a local folder or this package."""

    packages: ClassVar[tuple[str, ...]] = ("torch",)

    path: str = "Qwen/Qwen2.5-VL-7B-Instruct"  #: hub id, folder, or ``shipped:NAME``
    #: Commit, tag or branch of the hub repository; pin a commit for a result that lasts.
    revision: str = "main"
    #: Adapter by the checkpoint's type (``auto``), or the dotted path of an `MLLMFamily`.
    family: str = "auto"
    #: Of weights and activations; ``auto`` = the checkpoint's own.
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    #: Kernel of the language model. Greedy answers may differ between kernels.
    attention: Literal["sdpa", "flash_attention_2", "flash_attention_3"] = "sdpa"
    max_new_tokens: int = 128  #: longest answer
    #: Rule of the Qwen families' token positions: ``fixed`` as in transformers 4.52.1, on which the papers'
    #: code ran, or ``transformers`` = that of the installed version.
    positions: Literal["fixed", "transformers"] = "fixed"
    #: Run the visual part once for all prompts; False runs every prompt whole.
    share_prefix: bool = option(True, transient=True)
    device: str = option("auto", transient=True)  #: ``auto`` = the first GPU, else the CPU
    #: Most prompts in one forward pass on an accelerator; one prompt counts at each frame.
    batch_size: int = option(16, transient=True)
    #: What visual prefixes, and the prompts' copies of them, may take on the device; by default what is free
    #: of a GPU, 8 elsewhere.
    memory_budget_gb: float | None = option(None, transient=True)
    offline: bool = option(False, transient=True)  #: never ask the hub
    label: str = option("", transient=True)  #: what published tables call the model, to find its rows
    #: (layer, head) of its localization heads, best first, as ``refseg heads`` finds them.
    loc_heads: list[list[int]] = option([], transient=True)

    counters: MLLMCounters = field(default_factory=MLLMCounters, init=False, repr=False, compare=False)
    _loaded: _Loaded | None = field(default=None, init=False, repr=False, compare=False)
    _config: Any = field(default=None, init=False, repr=False, compare=False)
    _identity: dict[str, Any] | None = field(default=None, init=False, repr=False, compare=False)
    _given: bool = field(default=False, init=False, repr=False, compare=False)

    def open(self, frames_THWC: Uint8THWC, visual: VisualSettings, rollout: RolloutSettings) -> Session:
        """Start a session on the sampled frames of a clip: uint8 RGB of one size."""
        return Session(self, self.loaded(), frames_THWC, visual, rollout)

    def identity(self) -> dict[str, Any]:
        """What of the model its outputs depend on: for cache keys. Reads the config, not the weights."""
        if self._identity is None:
            if self._given and self._loaded is not None:
                # Not what `path` names: it must not share cache entries with that.
                source: dict[str, Any] = {"memory": memory_fingerprint(self._loaded.model)}
            elif folder_of(self.path) is not None:
                source = {"files": content(self.weights()[0], self.cache_root)}
            else:
                self.config()  # now the commit is known, if the hub can be asked
                commit = content(self.weights()[0], self.cache_root)
                source = {"id": self.path, "revision": commit or self.revision}
            chosen = ("family", "dtype", "attention", "max_new_tokens", "positions")
            self._identity = source | {name: getattr(self, name) for name in chosen}
        return self._identity

    def weights(self) -> tuple[Weights, ...]:
        """What ``refseg models`` lists and fetches."""
        known = tuple(kind for family in FAMILIES for kind in family.model_types)
        patterns = _NEEDED if folder_of(self.path) is None else (*_NEEDED, "*.bin", "*.model")
        revision = self.revision if folder_of(self.path) is None else None
        kinds = known if self.family == "auto" else ()
        return (Weights(self.path, revision, patterns=patterns, component="backbone", kinds=kinds),)

    def layers(self) -> int:
        """Number of language-model layers, from the config."""
        return int(self.config().get_text_config().num_hidden_layers)

    def config(self) -> Any:
        """The checkpoint's config (no weights are read).

        Raises:
            ConfigError: the model can't be found.
        """
        if self._config is None:
            from transformers import AutoConfig

            needed = replace(self.weights()[0], file="config.json")
            self._config = load_processor(AutoConfig, fetch(needed, offline=self.offline).parent)
        return self._config

    def adapter(self, place: Path) -> MLLMFamily:
        """The family adapter of the checkpoint in a folder."""
        from transformers.image_processing_base import ImageProcessingMixin

        preprocessing: dict[str, Any] = {}  # without one a checkpoint runs on its family's mean and deviation
        with suppress(OSError):
            preprocessing, _ = ImageProcessingMixin.get_image_processor_dict(place, local_files_only=True)
        if self.family == "auto":
            return family_of(self.config(), preprocessing)
        cls = locate(self.family, "backbone.family")
        if not issubclass(cls, MLLMFamily):
            raise ConfigError(f"'{self.family}' is no MLLMFamily.", where="backbone.family")
        return cls(self.config(), preprocessing)

    def loaded(self) -> _Loaded:
        """Weights, tokenizer and adapter; loaded once, at first use."""
        if self._loaded is None:
            from transformers import AutoModelForImageTextToText

            with self.timed("load"):
                place = fetch(self.weights()[0], offline=self.offline)
                adapter = self.adapter(place)
                tokenizer = load_tokenizer(place, "tiny_mllm")
                model = load_module(
                    AutoModelForImageTextToText,
                    place,
                    self.dtype if self.dtype == "auto" else getattr(torch, self.dtype),
                    choose_device(self.device),
                    attn_implementation=self.attention,
                )
            self._take(model, tokenizer, adapter)
        assert self._loaded is not None
        return self._loaded

    def use(self, model: Any, tokenizer: Any, adapter: MLLMFamily | None = None) -> None:
        """Take a model that is in memory already instead of loading one.

        Its family is told by its config by default.
        """
        self._take(model, tokenizer, adapter if adapter is not None else family_of(model.config, {}))
        self._given, self._identity = True, None

    def _take(self, model: Any, tokenizer: Any, adapter: MLLMFamily) -> None:
        self._config = model.config
        adapter.positions, adapter.device = self.positions, choose_device(self.device)
        model.to(adapter.device).eval()
        capture.install(model, self.attention)
        self._loaded = _Loaded(model, tokenizer, adapter, answer_rules(model.generation_config))

    def report(self) -> dict[str, Any]:
        """For the run record: what ran, on what, how often."""
        loaded = self._loaded
        return {
            **(self.identity() if loaded or self._identity else {}),
            "path": self.path,
            "device": str(loaded.device) if loaded else None,
            "calls": self.counters.calls,
            **{k: v for k, v in vars(self.counters).items() if k != "seconds"},
            "seconds": {k: round(v, 3) for k, v in self.counters.seconds.items()},
        }

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's wall time to a stage, until the device has done its work."""
        began = time.perf_counter()
        try:
            with env.stage(stage):
                yield
        finally:
            if self._loaded is not None and self._loaded.device.type == "cuda":
                torch.cuda.synchronize(self._loaded.device)
            spent = self.counters.seconds.get(stage, 0.0) + time.perf_counter() - began
            self.counters.seconds[stage] = spent

    def _budget(self) -> float:
        """Bytes that prefixes and their copies may take now."""
        device = choose_device(self.device)
        if self.memory_budget_gb is not None or device.type != "cuda":
            return (8.0 if self.memory_budget_gb is None else self.memory_budget_gb) * 2**30
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        # A pass over a prefix and a rollout need room of their own.
        return max(0.0, torch.cuda.mem_get_info(device)[0] + unused - 3 * BLOCK_BYTES["cuda"])


@dataclass
class _Loaded:
    model: Any
    tokenizer: Any
    family: MLLMFamily
    rules: Any

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def on(self, cache: Any) -> dict[str, Any]:
        """Arguments of a pass that goes on from a cache: transformers 5.24 gave the argument a new name."""
        names = inspect.signature(self.model.forward).parameters
        return {"cache" if "cache" in names else "past_key_values": cache, "use_cache": True}

    def tokens(self, text: str) -> list[int]:
        """Token ids of literal text, special tokens written out included, none added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def prompt(self, text: str, around: tuple[str, str]) -> list[int]:
        """Token ids of a prompt with what stands before and after it.

        Raises:
            RefsegError: it holds what the model takes for a control token: it would end the message, or
                stand for a picture.
        """
        if control := next((token for token in self.control if token in text), None):
            raise RefsegError(
                f"The words hold '{control}', which is a control token of the model.",
                hint="Correct the expression, or leave the sample out.",
            )
        return self.tokens(around[0] + text + around[1])

    @cached_property
    def control(self) -> list[str]:
        """What the tokenizer takes for one token wherever it stands, other than words."""
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted({token.content for token in added if token.special or token.content[:1] == "<"})

    def pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of a prompt's head."""
        out: list[int] = []
        for piece in pieces:
            out += self.tokens(piece) if isinstance(piece, str) else [piece[0]] * piece[1]
        return out

    def text(self, ids: Sequence[int]) -> str:
        """Decoded answer, special tokens left out, stripped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


@dataclass(eq=False)
class _Prefix:
    """A visual block after its forward pass."""

    ids: list[int]  #: its token ids
    visual_P: Tensor  #: True at visual tokens, on the CPU
    visual: Visual | None  #: the block
    keys_values: list[tuple[Tensor, Tensor]]  #: per layer of the whole model, ``(1, G, P, D)`` each
    layers: list[LayerQK]  #: queries and keys of the layers that are rolled out
    top: int  #: the largest position used in the block
    first: int  #: position of the first token after it

    @property
    def copy_bytes(self) -> int:
        """Bytes of the keys and values, of which every prompt has its own copy while it runs."""
        return sum(tensor.nbytes for pair in self.keys_values for tensor in pair)

    @property
    def nbytes(self) -> int:
        """Bytes on the device; keys of rolled-out layers are the cache's own."""
        return self.copy_bytes + sum(layer.q_HND.nbytes for layer in self.layers)


@dataclass(eq=False)
class Session(MLLMSession):
    """Sampled frames of one clip, opened. See :class:`~refseg_bench.backbones.base.MLLMSession`."""

    owner: MLLM
    loaded: _Loaded
    frames_THWC: Uint8THWC
    visual: VisualSettings
    rollout: RolloutSettings
    _kept: dict[Where, _Prefix] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.frames_THWC.ndim != 4 or len(self.frames_THWC) == 0:
            raise RefsegError("There is no frame to look at.", hint="Check the clip's frame list.")
        total = int(self.loaded.family.text_config.num_hidden_layers)
        self.range = layer_range(self.rollout.start, self.rollout.end, total)
        self.dtype: torch.dtype = getattr(torch, self.rollout.precision)
        self.budget = self.owner._budget()
        self._batch = shared_pass(self.loaded.device.type, self.owner.batch_size)
        # Whether no two prompts share a pass, whatever was asked for; one prompt's frames do.
        self._alone = shared_pass(self.loaded.device.type, 2) == 1

    def close(self) -> None:
        """Free the kept prefixes."""
        self._kept.clear()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the prefixes kept now."""
        return sum(prefix.nbytes for prefix in self._kept.values())

    def read(self, where: Where, prompts: Sequence[str], *, answer: bool) -> list[PromptAttention]:
        """See the interface: :meth:`read_places` of one place."""
        return self.read_places([where], prompts, answer=answer)[0]

    def read_places(
        self, places: Sequence[Where], prompts: Sequence[str], *, answer: bool
    ) -> list[list[PromptAttention]]:
        """See the interface. Prompts, then frames, run together as ``batch_size`` and the budget allow.

        On a CPU the frames of one prompt run together, whatever these allow, and no two prompts.

        Raises:
            RefsegError: no visual tokens, a prompt longer than the model's context, or attention
                that isn't causal.
        """
        found: list[list[PromptAttention]] = []
        if not prompts:
            return [[] for _ in places]
        if not self.owner.share_prefix and len(prompts) > 1:
            alone = [self.read_places(places, [prompt], answer=answer) for prompt in prompts]
            return [[reading for (reading,) in place] for place in zip(*alone, strict=True)]
        while len(found) < len(places):
            prefixes, size = self._prefixes(places[len(found) :], len(prompts))
            cuts = (slice(first, first + size) for first in range(0, len(prompts), size))
            parts = [self._read(prefixes, prompts[cut], answer) for cut in cuts]
            del prefixes  # before the next are run
            found += [[reading for part in place for reading in part] for place in zip(*parts, strict=True)]
        return found

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """See the interface."""
        around = self.loaded.family.text_only()
        empty = _Prefix([], torch.zeros(0, dtype=torch.bool), None, [], [], -1, 0)
        size = self._batch
        answers: list[str] = []
        for first in range(0, len(prompts), size):
            tails = [self.loaded.prompt(text, around) for text in prompts[first : first + size]]
            with torch.inference_mode(), self.owner.timed("ask"):
                said = self._decode(empty, tails, *self._tails([empty], tails))
                answers += [self.loaded.text(one) for one in said]
        return answers

    def heads(
        self, where: Where, prompts: Sequence[str], which: Sequence[tuple[int, int]] | None = None
    ) -> list[FloatTHW]:
        """See the interface. Each prompt goes through the model alone."""
        heads = int(self.loaded.family.text_config.num_attention_heads)
        for layer, head in which or ():
            if layer not in self.range or not 0 <= head < heads:
                raise ConfigError(
                    f"[{layer}, {head}] is no head that is read.",
                    where=self.owner.path,
                    allowed=[f"layer {self.range.start} … {self.range[-1]}, head 0 … {heads - 1}"],
                )
        (prefix,), _ = self._prefixes([where], 1)
        assert prefix.visual is not None
        out: list[FloatTHW] = []
        for prompt in prompts:
            own = self.loaded.prompt(prompt, prefix.visual.tail)
            with torch.inference_mode(), self.owner.timed("prompts"):
                with capture.recording(self.range, self.range[-1]) as seen:
                    self._tails([prefix], [own])
                layers = zip(prefix.layers, seen.found(), strict=True)
                rows_LHN = torch.stack([last_row(head, tail[0], self.dtype) for head, tail in layers])
            if which is None:
                rows_KN = rows_LHN.flatten(0, 1)
            else:
                rows_KN = torch.stack([rows_LHN[layer - self.range.start, head] for layer, head in which])
            out.append(np.concatenate(self._maps(prefix, rows_KN)))
        return out

    def activations(self, where: Where, prompts: Sequence[str]) -> list[TokenActivations]:
        """See the interface. Each prompt goes alone; its answer is decoded, then read as it stands."""
        loaded = self.loaded
        with torch.inference_mode():
            with self._hidden() as seen:
                prefix = self._run_head(where, whole=True)
            assert prefix.visual is not None
            tail = prefix.visual.tail
            return [self._activated(prefix, seen[0], loaded.prompt(text, tail)) for text in prompts]

    def _activated(self, prefix: _Prefix, hidden_PD: Tensor, own: list[int]) -> TokenActivations:
        loaded = self.loaded
        with self.owner.timed("decode"):
            (said,) = self._decode(prefix, [own], *self._tails([prefix], [own]))
        said = [token for token in said if token not in stop_tokens(loaded.model.generation_config)]
        ids = torch.tensor([*own, *said], device=loaded.device)
        with self._hidden() as seen:
            self._tails([prefix], [ids.tolist()])
        output = loaded.model.get_output_embeddings()
        rows_ND = output.weight[ids].float()
        bias_N1 = 0.0 if output.bias is None else output.bias[ids].float()[:, None]
        maps_NP, scores_NN = (
            (rows_ND @ hidden_LD.float().T + bias_N1).clamp_min(0) for hidden_LD in (hidden_PD, seen[0])
        )
        return TokenActivations(
            np.stack(self._maps(prefix, maps_NP)),
            scores_NN.T.cpu().numpy(),
            tuple(ids.tolist()),
            slice(len(own), len(ids)),
            loaded.text(said),
        )

    @contextmanager
    def _hidden(self) -> Iterator[list[Tensor]]:
        """The last hidden states ``(tokens, D)`` of the one pass in the block."""
        seen: list[Tensor] = []

        def keep(module: Any, given: Any, output: Any) -> None:
            seen.append(output.last_hidden_state[0])

        handle = self.loaded.model.model.register_forward_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()

    # ── visual prefix ────────────────────────────────────────────────────────

    def _prefixes(self, places: Sequence[Where], count: int) -> tuple[list[_Prefix], int]:
        """Prefixes of the first places, which go together, and how many of ``count`` prompts fit on each.

        Prefixes are kept from before or run now. What is kept makes room for a whole batch of prompts at
        one place: to run a prefix again costs less than to run a batch in parts, each of which pulls the
        prefix' rollout anew. Places come in turns, so what was read last goes first.
        """
        one = self._kept.pop(places[0], None) or self._run_head(places[0])
        rows = min(self._batch, count)
        each = one.nbytes + rows * one.copy_bytes
        # Frames have one size, so their prefixes are alike; the video's isn't.
        fit = min(self._batch // rows, int(self.budget // each))
        alike = places[: max(1, _FRAMES_BYTES // one.copy_bytes if self._alone else fit)]
        alike = alike[:1] if "video" in alike else alike
        held = {where: self._kept.pop(where) for where in alike if where in self._kept}
        while self._kept and self.kept_bytes + len(alike) * each > self.budget:
            self._kept.popitem()
        rows = max(1, min(rows, int((self.budget - one.nbytes) // one.copy_bytes)))
        found = [one, *(held.get(where) or self._run_head(where) for where in alike[1:])]
        if (
            self.owner.share_prefix
            and self.kept_bytes + len(found) * (one.nbytes + rows * one.copy_bytes) <= self.budget
        ):
            self._kept.update(zip(alike, found, strict=True))
        return found, self.owner.batch_size if self._alone else rows

    def _run_head(self, where: Where, *, whole: bool = False) -> _Prefix:
        """Vision tower and language model over system message and visual block; ``whole`` = to its end."""
        loaded, family = self.loaded, self.loaded.family
        with torch.inference_mode(), self.owner.timed("prefix"):
            if where == "video":
                visual = family.video(self.frames_THWC, self.visual)
            else:
                visual = family.frame(self.frames_THWC[where], self.visual)
            ids = loaded.pieces(visual.head)
            self._check_length(len(ids), "the visual part of the prompt")
            head = torch.tensor([ids])
            mask = head[0] == visual.token
            if int(mask.sum()) != int(np.prod(visual.grid)) or not bool(mask.any()):
                raise RefsegError(
                    f"The prompt holds {int(mask.sum())} visual tokens where the grid {visual.grid} needs "
                    f"{int(np.prod(visual.grid))}.",
                    where=self.owner.path,
                    hint="Check that tokenizer, config and family belong together.",
                )
            positions, first = family.head_positions(loaded.model, head, visual)
            on_device = {name: tensor.to(loaded.device) for name, tensor in visual.inputs.items()}
            inputs = family.forward_inputs(
                loaded.model, head.to(loaded.device), replace(visual, inputs=on_device)
            )
            cache = self._cache()
            last = int(family.text_config.num_hidden_layers) - 1
            with capture.recording(self.range, stop_at=None if whole else last) as seen:
                self._forward(cache, **inputs, position_ids=positions.to(loaded.device), logits_to_keep=1)
            self.owner.counters.visual_prefixes += 1
            return _Prefix(
                ids,
                mask,
                replace(visual, inputs={}),  # the pixels have done their work
                [(layer.keys, layer.values) for layer in cache.layers],
                [layer[0] for layer in seen.found()],
                int(positions.max()),
                first,
            )

    def _cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.loaded.family.text_config)

    # ── prompts on a prefix ──────────────────────────────────────────────────

    def _read(
        self, prefixes: Sequence[_Prefix], prompts: Sequence[str], answer: bool
    ) -> list[list[PromptAttention]]:
        """Every prompt on every prefix (which are alike): in one pass, or on a CPU in one for each prompt."""
        first, many = prefixes[0], shared_pass(self.loaded.device.type, len(prompts))
        assert first.visual is not None
        own = [self.loaded.prompt(prompt, first.visual.tail) for prompt in prompts]
        parts = [own[row : row + many] for row in range(0, len(own), many)]
        layers: list[list[LayerQK]] = []
        said: list[list[str | None]] = [[] for _ in prefixes]
        with torch.inference_mode():
            stop_at = None if answer else self.range[-1]
            for part in parts:
                tails = part * len(prefixes)
                with self.owner.timed("prompts"), capture.recording(self.range, stop_at) as seen:
                    logits = cache = None
                    logits, cache = self._tails(prefixes, tails)
                # Keys as they are seen are a view of the whole cache.
                layers.append([LayerQK(one.q_HND, one.k_GND.clone(), one.scale) for one in seen.found()])
                del seen
                texts: list[str] | list[None] = [None] * len(tails)
                if answer:
                    with self.owner.timed("decode"):
                        texts = [self.loaded.text(ids) for ids in self._decode(first, tails, logits, cache)]
                for row, place in enumerate(said):
                    place += texts[row * len(part) : (row + 1) * len(part)]
            with self.owner.timed("rollout"):
                rows_BKN = self._roll(prefixes, layers, [[len(tail) for tail in part] for part in parts])
                maps = iter(self._maps(first, rows_BKN.flatten(0, 1)))
        return [[PromptAttention(next(maps), text) for text in place] for place in said]

    def _forward(self, cache: Any, **inputs: Any) -> Any:
        self.owner.counters.passes += 1
        return self.loaded.model(**inputs, **self.loaded.on(cache))

    def _tails(self, prefixes: Sequence[_Prefix], tails: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
        """One pass over several prompts' own tokens, as many on each prefix: last logits, and the cache.

        They are padded at their ends. No mask is needed: attention is causal, so no token sees what follows.
        """
        loaded, first = self.loaded, prefixes[0]
        for tail in tails:
            self._check_length(len(first.ids) + len(tail), "a prompt")
        longest = max(len(tail) for tail in tails)
        pad = loaded.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*tail, *[pad] * (longest - len(tail))] for tail in tails])
        cache = self._cache()
        shape = (len(tails) // len(prefixes), -1, -1, -1)
        for index in range(len(first.keys_values)):
            keys, values = (
                torch.cat([prefix.keys_values[index][which].expand(shape) for prefix in prefixes])
                for which in (0, 1)
            )
            cache.update(keys, values, index)
        starts = torch.full((len(tails),), first.first, device=loaded.device)
        ends = sorted({len(tail) - 1 for tail in tails})
        self.owner.counters.prompts += len(tails)
        self.owner.counters.prompt_tokens += sum(len(tail) for tail in tails)
        out = self._forward(
            cache,
            input_ids=ids.to(loaded.device),
            position_ids=loaded.family.text_positions(starts, longest),
            logits_to_keep=torch.tensor(ends, device=loaded.device),
        )
        rows = torch.tensor([ends.index(len(tail) - 1) for tail in tails], device=loaded.device)
        return out.logits[torch.arange(len(tails), device=loaded.device), rows], cache

    def _roll(
        self, prefixes: Sequence[_Prefix], tails: Sequence[list[LayerQK]], lengths: Sequence[list[int]]
    ) -> Tensor:
        """Rollout rows of prompts on prefixes: at least the ``(B, K, P)`` of the prefixes' own tokens."""
        settings = (self.rollout.mode, self.rollout.residual, self.dtype)
        visual_P, size = prefixes[0].visual_P, len(prefixes[0].ids)
        if not self.rollout.dense:
            return shared_rollout([one.layers for one in prefixes], tails, lengths, visual_P, *settings)
        rows = []
        for place, prefix in enumerate(prefixes):
            for part, ends in zip(tails, lengths, strict=True):
                for row, length in enumerate(ends, place * len(ends)):
                    whole = [
                        LayerQK(
                            torch.cat([head.q_HND, tail.q_HND[row, :, :length]], 1),
                            torch.cat([head.k_GND, tail.k_GND[row, :, :length]], 1),
                            head.scale,
                        )
                        for head, tail in zip(prefix.layers, part, strict=True)
                    ]
                    visual_N = torch.nn.functional.pad(visual_P, (0, length))
                    rows.append(dense_rollout(whole, visual_N, *settings)[:size])
        return torch.stack(rows).view(len(prefixes), -1, size)

    def _maps(self, prefix: _Prefix, rows_KN: Tensor) -> list[FloatTHW]:
        """The maps of rollout rows, fetched from the device in one go."""
        assert prefix.visual is not None
        values_KV = rows_KN.to("cpu", torch.float32)[:, : len(prefix.ids)][:, prefix.visual_P].numpy()
        if not np.isfinite(values_KV).all():
            # Every comparison with NaN is false: the sample would come out as an empty mask.
            raise _not_finite("The attention map holds", self.owner.path)
        return [self.loaded.family.unpack(values_V, prefix.visual) for values_V in values_KV]

    # ── answers ──────────────────────────────────────────────────────────────

    def _decode(
        self, prefix: _Prefix, tails: Sequence[Sequence[int]], logits: Tensor, cache: Any
    ) -> list[list[int]]:
        """Token ids of greedy answers to prompts that were just run together, on one prefix or on like ones.

        The checkpoint's own generation settings hold (repetition penalty included, which counts the
        prompt's tokens too). Rows of other lengths leave a gap of padding that the mask hides.
        """
        loaded = self.loaded
        device = loaded.device
        longest = max(len(tail) for tail in tails)
        answers: list[list[int]] = [[] for _ in tails]
        open_rows = set(range(len(tails)))
        ends = stop_tokens(loaded.model.generation_config)
        # What the rules look back on. The gap stands before, filled with the row's own first token: a
        # penalty counts a token once however often it stands there, and the last tokens stay the last.
        rows = [[*prefix.ids, *tail] for tail in tails]
        gaps = (longest - len(tail) for tail in tails)
        known = torch.tensor([[row[0]] * gap + row for row, gap in zip(rows, gaps, strict=True)]).to(device)
        lengths = torch.tensor([len(tail) for tail in tails])
        mask: Tensor | None = None
        if len(set(lengths.tolist())) > 1:
            place = torch.arange(len(prefix.ids) + longest)
            mask = (place < len(prefix.ids) + lengths[:, None]).long().to(device)
        # A model's own decoding goes on from the largest position so far, the prefix' included.
        position = torch.clamp(prefix.first + lengths.to(device) - 1, min=prefix.top) + 1
        for step in range(self.owner.max_new_tokens):
            scores = loaded.rules(known, logits.float())
            chosen = scores.argmax(-1)
            best = scores.gather(-1, chosen[:, None])[:, 0]
            # The one thing that is fetched from the device in a step.
            words = torch.where(torch.isfinite(best), chosen, -1).tolist()
            if -1 in words:
                # The first of a row of NaN is its largest: an answer of one word, again and again.
                raise _not_finite("The model's scores of the next word hold", self.owner.path)
            for row, token in enumerate(words):
                if row in open_rows:
                    answers[row].append(token)
                    self.owner.counters.generated_tokens += 1
                    if token in ends:
                        open_rows.remove(row)
            if not open_rows or step + 1 == self.owner.max_new_tokens:
                break
            known = torch.cat([known, chosen[:, None]], dim=1)
            if mask is not None:
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            out = self._forward(
                cache,
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=loaded.family.text_positions(position, 1),
            )
            logits = out.logits[:, -1]
            position = position + 1
        return answers

    def _check_length(self, tokens: int, what: str) -> None:
        most = getattr(self.loaded.family.text_config, "max_position_embeddings", None)
        if most is not None and tokens > int(most):
            raise RefsegError(
                f"{what[0].upper()}{what[1:]} takes {tokens} tokens; the model's context is {most}.",
                where=self.owner.path,
                hint="Use fewer frames, a smaller token budget or a shorter expression.",
            )


# ── helpers ──────────────────────────────────────────────────────────────────


def _not_finite(what: str, where: str) -> RefsegError:
    return RefsegError(
        f"{what} NaN or infinity.",
        where=where,
        hint="Half precision overflows in some models: set backbone.dtype=bfloat16 or float32.",
    )


def stop_tokens(generation: Any) -> set[int]:
    """Ids that end an answer, from a generation config."""
    ids = generation.eos_token_id
    if ids is None:
        return set()
    return {int(i) for i in ids} if isinstance(ids, (list, tuple)) else {int(ids)}


def answer_rules(generation: Any) -> Any:
    """The generation config's changes to greedy scores, as transformers' own processors.

    Raises:
        ConfigError: a setting that changes greedy answers and isn't known here.
    """
    from transformers import (
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SuppressTokensLogitsProcessor,
    )

    unknown = [
        name
        for name in ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "sequence_bias")
        if getattr(generation, name, None)
    ] + [
        name
        for name in ("min_length", "min_new_tokens", "encoder_no_repeat_ngram_size")
        if (getattr(generation, name, None) or 0) > 0
    ]
    if unknown:
        raise ConfigError(
            f"The checkpoint's generation config sets '{unknown[0]}', which isn't supported.",
            allowed=["repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "eos_token_id"],
        )
    rules = LogitsProcessorList()
    penalty = generation.repetition_penalty
    if penalty is not None and float(penalty) != 1.0:
        rules.append(RepetitionPenaltyLogitsProcessor(float(penalty)))
    if generation.no_repeat_ngram_size:
        rules.append(NoRepeatNGramLogitsProcessor(int(generation.no_repeat_ngram_size)))
    if generation.suppress_tokens:
        rules.append(SuppressTokensLogitsProcessor(generation.suppress_tokens))
    return rules


def memory_fingerprint(model: Any) -> str:
    """32 hexadecimal digits of a model in memory: its config and every byte of its weights."""
    whole = hashlib.blake2b(digest_size=16)
    whole.update(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
