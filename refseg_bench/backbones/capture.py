"""Reading queries and keys out of a running transformers model, without touching its output.

Attention functions are looked up by name in transformers' public registry. A *tap* registered under
its own name calls the stock kernel (SDPA or flash) and hands the post-RoPE queries and keys of the
wanted layers to whoever is recording; without a recorder it is the stock kernel. Nothing here knows
about model families.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from refseg_bench.backbones.lazy_torch import Tensor, nn, torch
from refseg_bench.backbones.rollout import LayerQK
from refseg_bench.errors import ConfigError, RefsegError

#: Kernels a tap can stand in front of.
KERNELS = ("sdpa", "flash_attention_2", "flash_attention_3")


class _Enough(Exception):
    """Raised inside a forward pass when the last wanted layer has been seen: control flow, no error."""


@dataclass
class PassCapture:
    """What one forward pass left behind."""

    layers: range  #: which layers to keep
    stop_at: int | None = None  #: end the pass in this layer's attention, before its output is computed
    #: Queries and keys per layer, as the attention function got them, ``(B, heads, tokens, D)``; keys of
    #: earlier passes in the cache are left out.
    kept: dict[int, LayerQK] = field(default_factory=dict)
    #: Kinds of attention (mask, window, causality) that were found causal.
    checked: list[tuple[Tensor | None, tuple[Any, ...]]] = field(default_factory=list)

    def found(self) -> list[LayerQK]:
        """What was kept of the wanted layers, first to last.

        Raises:
            RefsegError: a layer's attention did not pass the tap.
        """
        unseen = [layer for layer in self.layers if layer not in self.kept]
        if unseen:
            raise RefsegError(
                f"The attention of layer {unseen[0]} could not be captured: it ran on another kernel.",
                where="backbone.attention",
                allowed=KERNELS,
                hint="Run the model as loaded: no torch.compile, no kernels from the hub.",
            )
        return [self.kept[layer] for layer in self.layers]


_active: ContextVar[PassCapture | None] = ContextVar("refseg_attention_recorder", default=None)


@contextlib.contextmanager
def recording(layers: range, stop_at: int | None = None) -> Iterator[PassCapture]:
    """Record the given layers of forward passes in the block; a pass ended early is not an error."""
    recorder = PassCapture(layers, stop_at)
    token = _active.set(recorder)
    try:
        with contextlib.suppress(_Enough):
            yield recorder
    finally:
        _active.reset(token)


def tap_name(kernel: str) -> str:
    """The registered name of the tap before a kernel."""
    return f"refseg_{kernel.replace('flash_attention_', 'fa')}"


def install(model: Any, kernel: str) -> None:
    """Put the tap before the attention of a model's language part, which runs on one of :data:`KERNELS`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if kernel not in KERNELS:
        raise ConfigError(f"Attention can't be captured on the kernel '{kernel}'.", allowed=KERNELS)
    name = tap_name(kernel)
    AttentionInterface.register(name, _tap(ALL_ATTENTION_FUNCTIONS[kernel], kernel))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    model.set_attn_implementation({"text_config": name})


def _tap(stock: Callable[..., Any], kernel: str) -> Callable[..., Any]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        recorder = _active.get()
        if recorder is not None:
            _observe(recorder, module, query, key, attention_mask, {**kwargs, "kernel": kernel})
        return stock(_as_stock(module, kernel), query, key, value, attention_mask, **kwargs)

    return attend


def _observe(
    recorder: PassCapture,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        return
    # Layers of one model may differ (full and sliding attention in turn), and then so do their masks.
    window = kwargs.get("sliding_window")
    kind = (window, kwargs.get("is_causal", getattr(module, "is_causal", True)))
    if not any(mask is attention_mask and kind == seen for mask, seen in recorder.checked):
        refuse_non_causal(module, query, key, attention_mask, kwargs)
        recorder.checked.append((attention_mask, kind))
    if layer in recorder.layers:
        scaling = kwargs.get("scaling")
        recorder.kept[layer] = LayerQK(
            query,
            key[:, :, key.shape[2] - query.shape[2] :],
            float(query.shape[-1] ** -0.5 if scaling is None else scaling),
        )
    if layer == recorder.stop_at:
        raise _Enough


def refuse_non_causal(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    """Raise unless every token attends to itself and all earlier tokens, and to no later one.

    Rollout and the shared visual prefix both rest on it: a prefix-LM or a sliding window would give
    other maps without a sign.
    """
    rows, length = query.shape[2], key.shape[2]
    causal = kwargs.get("is_causal", getattr(module, "is_causal", True)) is not False
    reason = None
    if kwargs.get("sliding_window") is not None and int(kwargs["sliding_window"]) < length:
        reason = "uses a sliding window"
    elif rows == 1:
        pass
    elif attention_mask is None and not causal:
        reason = "is not causal"
    elif attention_mask is None and rows < length and kwargs.get("kernel") == "sdpa":
        reason = "hides the cache (without a mask, SDPA counts its rows from the first key)"
    elif attention_mask is not None and attention_mask.dim() == 4:
        seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask > -1.0
        past = torch.ones(rows, length, dtype=torch.bool, device=seen.device).tril(length - rows)
        if not torch.equal(seen[..., :rows, :length], past.expand_as(seen[..., :rows, :length])):
            reason = "is not causal over the whole prompt"
    if reason is not None:
        raise RefsegError(
            f"Attention in this language model {reason}, so its maps can't be rolled out or shared.",
            where=type(module).__name__,
            hint="Use a model with plain causal attention over visual tokens.",
        )


class _Over:
    """An object with some attributes of its own over another's."""

    def __init__(self, under: Any, **own: Any) -> None:
        self._under = under
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._under, name)


def _as_stock(module: nn.Module, kernel: str) -> Any:
    """The module, which tells flash kernels their own name instead of the tap's."""
    if kernel == "sdpa":
        return module
    return _Over(module, config=_Over(module.config, _attn_implementation=kernel))
