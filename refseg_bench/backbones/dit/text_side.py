"""The text encoders beside a diffusion transformer: T5 states, CLIP vectors, and where they live.

A T5-XXL weighs as much as half the transformer it serves, so it may stay on the device, wait on
the CPU between uses, or be freed after use and loaded again when a new text comes. What it
returned is remembered per process: the magnets of a whole run are encoded once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from refseg_bench.backbones.dit.text_tokens import Tokenizer
from refseg_bench.backbones.lazy_torch import Tensor, torch
from refseg_bench.backbones.weights import load_module, load_tokenizer
from refseg_bench.errors import ConfigError

Residence = Literal["keep", "cpu", "free"]
_T5 = ("T5EncoderModel", "UMT5EncoderModel")
_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_REMEMBERED = 4096


class TextSide:
    """Text encoders and tokenizers of a model folder in diffusers' layout.

    Args:
        folder: the model folder.
        index: its ``model_index.json``.
        dtype, device: of the encoders while they work.
        residence: ``keep`` on the device, wait on the ``cpu``, or ``free`` after each clip's texts.

    Attributes:
        encodings: encoder passes so far.
    """

    def __init__(
        self,
        folder: Path,
        index: dict[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        residence: Residence = "keep",
    ) -> None:
        self.folder = folder
        self.dtype = dtype
        self.device = device
        self.residence = residence
        self.encodings = 0
        parts = {
            name: entry[1]
            for name, entry in index.items()
            if name.startswith("text_encoder") and isinstance(entry, list) and entry[1]
        }
        self.t5_part = next((name for name, cls in parts.items() if cls in _T5), None)
        self.clip_parts = [name for name, cls in sorted(parts.items()) if cls in _CLIP]
        if self.t5_part is None:
            raise ConfigError(
                "The model has no T5 text encoder.", where=folder / "model_index.json", allowed=_T5
            )
        self._classes = parts
        self._modules: dict[str, Any] = {}
        self._tokenizers: dict[str, Any] = {}
        self._memory: OrderedDict[Any, Tensor] = OrderedDict()

    @property
    def tokenizer(self) -> Tokenizer:
        """T5's tokenizer."""
        assert self.t5_part is not None
        found: Tokenizer = self._tokenizer(self.t5_part)
        return found

    def states(self, ids: tuple[int, ...], pad_to: int | None = None) -> Tensor:
        """T5's last hidden states of one string.

        Args:
            ids: token ids, end token included.
            pad_to: encode behind padding *without* a mask, as the FLUX and SD3 pipelines do; all
                ``pad_to`` states are returned.

        Returns:
            ``(len(ids) or pad_to, channels)`` on the CPU.
        """
        part = self.t5_part
        assert part is not None
        padded = ids
        if pad_to is not None:
            padded = (*ids, *[self._tokenizer(part).pad_token_id or 0] * (pad_to - len(ids)))[:pad_to]

        def compute() -> Tensor:
            batch = torch.tensor([padded], device=self.device)
            mask = torch.ones_like(batch)
            return self._module(part)(input_ids=batch, attention_mask=mask).last_hidden_state[0]  # type: ignore[no-any-return]

        return self._remember((part, padded), compute)

    def pooled(self, text: str, output: str) -> Tensor:
        """The CLIP encoders' pooled vectors of a text, concatenated: ``(channels,)`` on the CPU."""
        if not self.clip_parts:
            raise ConfigError(
                "The model has no CLIP text encoder for a pooled vector.",
                where=self.folder,
                hint="Use backbone.pooled=zeros.",
            )

        def compute() -> Tensor:
            vectors = []
            for part in self.clip_parts:
                batch = self._tokenizer(part)(
                    text, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
                ).input_ids
                vectors.append(getattr(self._module(part)(batch.to(self.device)), output)[0])
            return torch.cat(vectors)

        return self._remember(("pooled", output, text), compute)

    def rest(self) -> None:
        """Take the encoders off the device, as ``residence`` says; called when a clip's texts are done."""
        if self.residence == "keep":
            return
        for module in self._modules.values():
            module.to("cpu")
        if self.residence == "free":
            self._modules.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _remember(self, key: Any, compute: Callable[[], Tensor]) -> Tensor:
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        with torch.inference_mode():
            value = compute().detach().cpu()
        self.encodings += 1
        self._memory[key] = value
        if len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)
        return value

    def _tokenizer(self, part: str) -> Any:
        if part not in self._tokenizers:
            place = self.folder / part.replace("text_encoder", "tokenizer")
            self._tokenizers[part] = load_tokenizer(place, "tiny_dit/tokenizer", local_files_only=True)
        return self._tokenizers[part]

    def _module(self, part: str) -> Any:
        if part not in self._modules:
            cls = getattr(import_module("transformers"), self._classes[part])
            module = load_module(cls, self.folder / part, self.dtype, self.device, local_files_only=True)
            self._modules[part] = module.eval().requires_grad_(False)
        return self._modules[part].to(self.device)
