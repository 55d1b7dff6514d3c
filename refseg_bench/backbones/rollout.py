"""Attention rollout from post-RoPE queries and keys: the algebra alone, no model.

The map of a prompt is the last row of ``B_{end-1} ··· B_start`` with ``B_l = (1-ρ)·Ā_l + ρ·I`` and
``Ā_l = (1/H) Σ_h ŵ_{l,h} A_{l,h}`` (DecAF, arXiv 2510.19592, §3.2; ρ = 0.5). Two ways to get it:

* :func:`dense_rollout` builds every matrix: the paper's formula, kept as the oracle.
* :func:`shared_rollout` pushes the one row that is read backwards through the layers. Products
  associate and ``B_l`` depends on ``A_l`` alone, so this is the same number; scores are recomputed
  in row blocks, and no N×N matrix ever exists. Several prompts on one visual prefix go together:
  the prefix part of a layer's attention is the same for all of them.

Axes: ``H`` query heads, ``G`` key/value heads, ``N`` tokens, ``P`` prefix, ``T`` text after it,
``K`` prompts, ``D`` head size. Not here: what is captured and when (``capture.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refseg_bench.backbones.base import HeadWeights, weighting
from refseg_bench.errors import RefsegError

#: Scratch memory of one row block of scores, in bytes.
BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True, eq=False)
class LayerQK:
    """Queries and keys of one layer and one sequence (or of one stretch of it), after RoPE.

    Attributes:
        q_HND: queries.
        k_GND: keys, not repeated over the query heads of a group.
        scale: factor on the scores, usually ``D**-0.5``.
    """

    q_HND: Tensor
    k_GND: Tensor
    scale: float

    def split(self, at: int) -> tuple[LayerQK, LayerQK]:
        """The stretch before token ``at`` and the one from it on."""
        return (
            LayerQK(self.q_HND[:, :at], self.k_GND[:, :at], self.scale),
            LayerQK(self.q_HND[:, at:], self.k_GND[:, at:], self.scale),
        )

    @property
    def nbytes(self) -> int:
        """Bytes held by the two tensors."""
        return sum(t.numel() * t.element_size() for t in (self.q_HND, self.k_GND))


# ── the oracle ───────────────────────────────────────────────────────────────


def attention(layer: LayerQK, dtype: torch.dtype) -> Tensor:
    """Causal softmax attention ``(H, N, N)`` of a layer, in ``dtype``."""
    q, k = layer.q_HND.to(dtype), layer.k_GND.to(dtype)
    k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
    scores = (q @ k.transpose(-1, -2)) * layer.scale
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill_(future, float("-inf")).softmax(-1)


def dense_rollout(
    layers: Sequence[LayerQK],
    visual_N: Tensor,
    mode: HeadWeights = "v_max",
    residual: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The rollout row by the paper's formula, every matrix built. For small inputs and tests.

    Args:
        layers: the layers of the range, first to last.
        visual_N: True at visual tokens.
        mode: head weighting.
        residual: share ρ of the identity.
        dtype: of everything that is computed.

    Returns:
        ``(N,)``: how much the last token draws on each token.
    """
    rolled: Tensor | None = None
    for layer in layers:
        probs_HNN = attention(layer, dtype)
        heads = probs_HNN.shape[0]
        weights_H = head_weights(_peaks(probs_HNN, mode, visual_N).mean(-1), mode)
        mixed = torch.einsum("h,hij->ij", weights_H.to(dtype), probs_HNN) / heads
        mixed = (1.0 - residual) * mixed
        mixed.diagonal().add_(residual)
        rolled = mixed if rolled is None else mixed @ rolled
    if rolled is None:
        raise RefsegError("Rollout over no layer.", hint="Choose start_layer below end_layer.")
    return rolled[-1]


def head_weights(mean_peak_H: Tensor, mode: HeadWeights) -> Tensor:
    """ŵ_h: each head's mean peak over the largest of all heads (1 for plain rollout)."""
    if weighting(mode) == "plain":
        return torch.ones_like(mean_peak_H)
    return mean_peak_H / mean_peak_H.amax(-1, keepdim=True)


def _peaks(probs_HRN: Tensor, mode: HeadWeights, visual_N: Tensor) -> Tensor:
    """m_{h,i}: the largest attention of each row to a visual key (or to any key)."""
    if weighting(mode) == "v_max":
        if not bool(visual_N.any()):
            raise no_visual_tokens()
        return probs_HRN[..., visual_N].amax(-1)
    return probs_HRN.amax(-1)


def no_visual_tokens() -> RefsegError:
    """The error for a prompt in which nothing is visual."""
    return RefsegError(
        "The prompt holds no visual tokens, so there is no attention map to read.",
        hint="Check that the processor's image or video token is the one in the model's config.",
    )


# ── row-vector form ──────────────────────────────────────────────────────────


def streamed_rollout(
    layers: Sequence[LayerQK],
    visual_N: Tensor,
    mode: HeadWeights = "v_max",
    residual: float = 0.5,
    dtype: torch.dtype = torch.float32,
    block_bytes: int = BLOCK_BYTES,
) -> Tensor:
    """The row of :func:`dense_rollout`, without any N×N matrix. Same arguments and result.

    Args:
        layers: see :func:`dense_rollout`.
        visual_N: see :func:`dense_rollout`.
        mode: see :func:`dense_rollout`.
        residual: see :func:`dense_rollout`.
        dtype: see :func:`dense_rollout`.
        block_bytes: scratch memory a block of score rows may take.
    """
    at = visual_N.shape[0] - 1
    halves = [layer.split(at) for layer in layers]
    return shared_rollout(
        [head for head, _ in halves],
        [[tail for _, tail in halves]],
        visual_N[:at],
        mode,
        residual,
        dtype,
        block_bytes,
        visual_tail=[visual_N[at:]],
    )[0]


def shared_rollout(
    prefix: Sequence[LayerQK],
    suffixes: Sequence[Sequence[LayerQK]],
    visual_P: Tensor,
    mode: HeadWeights = "v_max",
    residual: float = 0.5,
    dtype: torch.dtype = torch.float32,
    block_bytes: int = BLOCK_BYTES,
    visual_tail: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Rollout rows of K prompts that begin with one prefix (DecAF, spec of the row-vector form).

    With ``r = [r_P, r_T]`` of a prompt, both read before either is written::

        r_P ← ρ·r_P + (1-ρ)/H · Σ_h ŵ_h (r_Pᵀ A_PP,h + r_Tᵀ A_TP,h)
        r_T ← ρ·r_T + (1-ρ)/H · Σ_h ŵ_h  r_Tᵀ A_TT,h

    The scores of the prefix rows are computed once per layer for all K prompts, and in that one
    pass give both the head weights' statistic and ``rᵀA`` per head: ŵ is applied afterwards.

    Args:
        prefix: queries and keys of the prefix, layers first to last; P may be 0.
        suffixes: per prompt, queries and keys of its own tokens (at least one), same layers.
        visual_P: True at the prefix's visual tokens.
        mode: head weighting.
        residual: share ρ of the identity.
        dtype: of everything that is computed.
        block_bytes: scratch memory a block of score rows may take.
        visual_tail: True at visual tokens among a prompt's own ones; none by default.

    Returns:
        Per prompt the row over its ``P + T`` tokens.

    Raises:
        RefsegError: no layer, or ``v_max`` without a visual token.
    """
    if not prefix:
        raise RefsegError("Rollout over no layer.", hint="Choose start_layer below end_layer.")
    size_P = visual_P.shape[0]
    device = prefix[0].q_HND.device
    tails = [
        torch.zeros(layers[0].q_HND.shape[1], dtype=torch.bool, device=device)
        if visual_tail is None
        else visual_tail[index].to(device)
        for index, layers in enumerate(suffixes)
    ]
    visuals = [torch.cat([visual_P.to(device), tail]) for tail in tails]
    if weighting(mode) == "v_max" and not all(bool(visual.any()) for visual in visuals):
        raise no_visual_tokens()
    runs_P = _peak_runs(visual_P, mode)
    runs_N = [_peak_runs(visual, mode) for visual in visuals]

    row_P = torch.zeros(len(suffixes), size_P, dtype=dtype, device=device)
    rows_T = [torch.zeros(len(tail), dtype=dtype, device=device) for tail in tails]
    for row in rows_T:
        row[-1] = 1.0
    for index in reversed(range(len(prefix))):
        heads = prefix[index].q_HND.shape[0]
        keys_P = prefix[index].k_GND.to(dtype)
        sums_PH, pulled_HKP = _pull(
            prefix[index].q_HND, keys_P, 0, row_P, prefix[index].scale, runs_P, dtype, block_bytes
        )
        new_P = torch.empty_like(row_P)
        for k, layers in enumerate(suffixes):
            own = layers[index]
            keys_N = torch.cat([keys_P, own.k_GND.to(dtype)], dim=1)
            sums_TH, pulled_HN = _pull(
                own.q_HND, keys_N, size_P, rows_T[k][None], own.scale, runs_N[k], dtype, block_bytes
            )
            weights_H = head_weights((sums_PH + sums_TH) / keys_N.shape[1], mode) * ((1.0 - residual) / heads)
            pulled_N = torch.einsum("h,hn->n", weights_H, pulled_HN[:, 0])
            new_P[k] = (
                residual * row_P[k] + pulled_N[:size_P] + torch.einsum("h,hp->p", weights_H, pulled_HKP[:, k])
            )
            rows_T[k] = residual * rows_T[k] + pulled_N[size_P:]
        row_P = new_P
    return [torch.cat([row_P[k], row]) for k, row in enumerate(rows_T)]


def _pull(
    q_HRD: Tensor,
    k_GLD: Tensor,
    offset: int,
    row_KR: Tensor,
    scale: float,
    runs: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    block_bytes: int,
) -> tuple[Tensor, Tensor]:
    """One pass over the attention of query rows ``offset … offset+R-1`` to keys ``0 … L-1``.

    Returns:
        ``(H,)``: sum over the rows of the largest attention to the keys in ``runs``;
        ``(H, K, L)``: ``rᵀ A_h`` for each of the K row vectors.
    """
    heads, rows, depth = q_HRD.shape
    groups, length, _ = k_GLD.shape
    sums_H = torch.zeros(heads, dtype=dtype, device=q_HRD.device)
    pulled_HKL = torch.zeros(heads, row_KR.shape[0], length, dtype=dtype, device=q_HRD.device)
    if rows == 0:
        return sums_H, pulled_HKL
    step = max(1, block_bytes // (heads * length * torch.finfo(dtype).bits // 8))
    needed = bool(row_KR.any())
    for first in range(0, rows, step):
        last = min(first + step, rows)
        seen = offset + last
        q = q_HRD[:, first:last].to(dtype).reshape(groups, -1, depth) * scale
        scores = torch.bmm(q, k_GLD[:, :seen].transpose(1, 2)).view(heads, last - first, seen)
        corner = torch.full((last - first, last - first), float("-inf"), dtype=dtype, device=q.device)
        scores[..., offset + first :] += corner.triu_(1)
        probs = torch.softmax(scores, -1)
        del scores
        peak = _peak_over(probs, runs)
        if peak is not None:
            sums_H += peak.sum(-1)
        if needed:
            pulled_HKL[..., :seen] += torch.matmul(row_KR[:, first:last], probs)
    return sums_H, pulled_HKL


def _peak_over(probs_HRL: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor | None:
    """Largest value of each row over the key runs (those the block can't see yet give nothing)."""
    best: Tensor | None = None
    for first, last in runs:
        if first >= probs_HRL.shape[-1]:
            break
        peak = probs_HRL[..., first:last].amax(-1)
        best = peak if best is None else torch.maximum(best, peak)
    return best


def _peak_runs(visual_N: Tensor, mode: HeadWeights) -> list[tuple[int, int]]:
    """The keys whose largest attention counts, as runs of neighbours."""
    name = weighting(mode)
    if name == "plain" or visual_N.shape[0] == 0:
        return []
    if name == "max_all_keys":
        return [(0, visual_N.shape[0])]
    flags = torch.nn.functional.pad(visual_N.to("cpu", torch.int8), (1, 1))
    edges = (flags[1:] - flags[:-1]).nonzero().flatten().tolist()
    return [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)]
