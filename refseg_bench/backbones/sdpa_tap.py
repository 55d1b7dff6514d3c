"""See every scaled-dot-product attention of an unmodified model, without changing what it returns.

The tap is a ``torch.overrides.TorchFunctionMode``: while it is active, each call of
``F.scaled_dot_product_attention`` shows its queries and keys to an observer and then runs as it
would have. It can also add an attention mask, and end the forward pass after the last layer
anybody wants. A kernel that bypasses that function (flash, cudnn, sage, xformers back ends,
``torch.compile``) would go unseen, so the calls are counted against a schedule and a difference is
an error. What to compute from q and k stands in :mod:`refseg_bench.backbones.attention_maps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch.overrides import TorchFunctionMode

from refseg_bench.backbones.attention_maps import AttentionError
from refseg_bench.backbones.lazy_torch import F, Tensor, nn, torch

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SdpaCall:
    """One attention call as the model makes it."""

    layer: int  #: layer number by the family's schedule
    #: query, key: ``(batch, heads, tokens, channels)``, after the model's own norms and rotation.
    query: Tensor
    key: Tensor
    output: Tensor  #: what the call returned, same layout as ``query``
    scale: float  #: factor on ⟨q, k⟩


class _Enough(Exception):
    """Raised inside the model after the last wanted layer."""


class SdpaTap(TorchFunctionMode):
    """Watch the attention calls of one forward pass.

    Args:
        schedule: layer number of each call in the model's order; ``None`` = a call nobody reads
            (caption pool, image-only second attention, self-attention beside a cross-attention).
        wanted: layers to show to the observer; the pass ends after the last of them.
        observe: receives each wanted call.
        mask: boolean ``(queries, keys)``, True = may attend, added to every scheduled call.
        like: a query whose keys most queries share. On an accelerator those are attended without a mask,
            the others apart from them: kernels that are fast take no dense mask.
        early_exit: end the pass after the last wanted layer.
    """

    def __init__(
        self,
        schedule: Sequence[int | None],
        wanted: Sequence[int],
        observe: Callable[[SdpaCall], None],
        *,
        mask: Tensor | None = None,
        like: int | None = None,
        early_exit: bool = True,
    ) -> None:
        super().__init__()
        self.schedule = tuple(schedule)
        self.wanted = frozenset(wanted)
        missing = sorted(self.wanted - set(self.schedule))
        if missing or not self.wanted:
            raise AttentionError(
                f"The model has no attention layer {missing[0]}." if missing else "No layer is wanted.",
                allowed=sorted({layer for layer in self.schedule if layer is not None}),
            )
        self.observe = observe
        self.mask = mask
        apart = mask is not None and like is not None and mask.device.type != "cpu"
        self.parts = parts_of(mask, like) if apart else None  # type: ignore[arg-type]
        self.calls = 0
        last = max(i for i, layer in enumerate(self.schedule) if layer in self.wanted)
        self.expected = last + 1 if early_exit else len(self.schedule)
        self.early_exit = early_exit

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function; if it is the attention, count it and show it."""
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        if self.calls >= len(self.schedule):
            raise self._miscounted(self.calls + 1)
        layer = self.schedule[self.calls]
        self.calls += 1
        if layer is not None and self.mask is not None:
            args, kwargs = _with_mask(args, kwargs, self.mask)
            if self.parts is not None and kwargs["attn_mask"] is self.mask:
                func = partial(_in_parts, func, self.parts)
        output = func(*args, **kwargs)
        if layer in self.wanted and layer is not None:
            query = args[0] if args else kwargs["query"]
            key = args[1] if len(args) > 1 else kwargs["key"]
            scale = kwargs.get("scale")
            self.observe(
                SdpaCall(layer, query, key, output, query.shape[-1] ** -0.5 if scale is None else scale)
            )
            if self.early_exit and self.calls == self.expected:
                raise _Enough
        return output

    def run(self, forward: Callable[[], T]) -> T | None:
        """Run a forward pass under the tap; what it returned, or ``None`` where the pass ended early.

        Raises:
            AttentionError: the number of calls is not the schedule's.
        """
        self.calls = 0
        result: T | None = None
        try:
            with self:
                result = forward()
        except _Enough:
            pass
        if self.calls != self.expected:
            raise self._miscounted(self.calls)
        return result

    def _miscounted(self, seen: int) -> AttentionError:
        return AttentionError(
            f"{seen} attention calls passed F.scaled_dot_product_attention, {self.expected} were expected.",
            hint="Use diffusers' default attention back end ('native') and no torch.compile: other kernels "
            "bypass that function. If the model itself is newer than its adapter, correct the schedule.",
        )


def _with_mask(
    args: tuple[Any, ...], kwargs: dict[str, Any], mask: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call's arguments with our mask joined to the one the model gave (if any)."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    query, key, value = (kwargs.pop(name) for name in names[:3])
    if mask.shape != (query.shape[-2], key.shape[-2]):
        raise AttentionError(
            f"The attention is {query.shape[-2]} × {key.shape[-2]} tokens, the mask "
            f"{mask.shape[0]} × {mask.shape[1]}.",
            hint="The family's adapter mistakes the model's token layout; correct it.",
        )
    given = kwargs.pop("attn_mask", None)
    mask = mask.to(query.device)
    if given is None:
        joined = mask
    elif given.dtype == torch.bool:
        joined = given & mask
    else:
        joined = given.masked_fill(~mask, float("-inf"))
    return (query, key, value), {**kwargs, "attn_mask": joined}


def parts_of(mask: Tensor, like: int) -> tuple[Tensor, ...]:
    """The keys that a query sees, the queries that see just these, the others, and the way back from both."""
    same = (mask == mask[like]).all(1)
    rows, rest = same.nonzero()[:, 0], (~same).nonzero()[:, 0]
    return mask[like].nonzero()[:, 0], rows, rest, torch.cat([rows, rest]).argsort()


def _in_parts(
    func: Any, parts: tuple[Tensor, ...], query: Tensor, key: Tensor, value: Tensor, **given: Any
) -> Tensor:
    """The same as ``func`` with the mask that the parts are of."""
    mask, (keys, rows, rest, back) = given.pop("attn_mask"), parts
    seen = (tensor.index_select(-2, keys) for tensor in (key, value))
    plain: Tensor = func(query.index_select(-2, rows), *seen, **given)
    if not len(rest):
        return plain
    other = func(query.index_select(-2, rest), key, value, attn_mask=mask.index_select(0, rest), **given)
    return torch.cat([plain, other], -2).index_select(-2, back)


def refuse_bypass(model: nn.Module) -> None:
    """Refuse a model whose attention would not pass the tap, before any time is spent.

    Raises:
        AttentionError: the model is compiled, or one of its attentions chose another back end.
    """
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise AttentionError(
                "The model is compiled: its attention can't be read.",
                where=name or type(model).__name__,
                hint="Load it without torch.compile.",
            )
        backend = getattr(getattr(module, "processor", None), "_attention_backend", None)
        backend = getattr(backend, "value", backend)
        if backend is not None and backend != "native":
            raise AttentionError(
                f"The attention back end '{backend}' bypasses the tap.",
                where=name,
                allowed=["native"],
                hint="Leave diffusers' attention back end alone (no set_attention_backend).",
            )
