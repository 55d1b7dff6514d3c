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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from refseg_bench.backbones.base import HeadWeights, weighting
from refseg_bench.backbones.lazy_torch import Tensor, torch
from refseg_bench.errors import RefsegError

#: Scratch memory of one row block of scores, in bytes, by kind of device: what a CPU's cache likes, and
#: what keeps a GPU's kernels long and few (twice as much is taken, for scores and their softmax).
BLOCK_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}


@dataclass(frozen=True, eq=False)
class LayerQK:
    """Queries and keys of one layer and one sequence (or of one stretch of it), after RoPE."""

    q_HND: Tensor  #: queries; with an axis ``K`` before them where several prompts go together
    k_GND: Tensor  #: keys, not repeated over the query heads of a group
    scale: float  #: factor on the scores, usually ``D**-0.5``

    def __getitem__(self, place: Any) -> LayerQK:
        """Both tensors at an index of the axes that they share (all but heads and groups)."""
        return LayerQK(self.q_HND[place], self.k_GND[place], self.scale)


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
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The rollout row by the paper's formula, every matrix built. For small inputs and tests.

    Args:
        layers: the layers of the range, first to last.
        visual_N: True at visual tokens.
        mode: head weighting.
        residual: share ρ of the identity.
        dtype: of everything that is computed; by default float32.

    Returns:
        ``(N,)``: how much the last token draws on each token.
    """
    dtype = dtype or torch.float32
    return rolled_out((attention(layer, dtype) for layer in layers), visual_N, mode, residual)


def rolled_out(
    attention_HNN: Iterable[Tensor], visual_N: Tensor, mode: HeadWeights = "v_max", residual: float = 0.5
) -> Tensor:
    """:func:`dense_rollout` of attention matrices that are there already, first layer to last."""
    rolled: Tensor | None = None
    for probs_HNN in attention_HNN:
        heads = probs_HNN.shape[0]
        weights_H = head_weights(_peaks(probs_HNN, mode, visual_N).mean(-1), mode)
        mixed = torch.einsum("h,hij->ij", weights_H, probs_HNN) / heads
        mixed = (1.0 - residual) * mixed
        mixed.diagonal().add_(residual)
        rolled = mixed if rolled is None else mixed @ rolled
    if rolled is None:
        raise RefsegError("Rollout over no layer.", hint="Choose start_layer below end_layer.")
    return rolled[-1]


def last_row(prefix: LayerQK, tail: LayerQK, dtype: torch.dtype | None = None) -> Tensor:
    """Attention ``(H, P + T)`` of the last token of a prompt to all tokens, in float32 by default."""
    dtype = dtype or torch.float32
    keys_GND = torch.cat([prefix.k_GND, tail.k_GND], dim=1).to(dtype)
    query_H1D = tail.q_HND[:, -1:].to(dtype)
    keys_HND = keys_GND.repeat_interleave(len(query_H1D) // len(keys_GND), dim=0)
    return ((query_H1D @ keys_HND.mT)[:, 0] * tail.scale).softmax(-1)


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


def shared_rollout(
    prefix: Sequence[LayerQK],
    tails: Sequence[LayerQK],
    lengths: Sequence[int],
    visual_P: Tensor,
    mode: HeadWeights = "v_max",
    residual: float = 0.5,
    dtype: torch.dtype | None = None,
    block_bytes: int | None = None,
    together: bool | None = None,
) -> Tensor:
    """Rollout rows of K prompts that begin with one prefix (DecAF, spec of the row-vector form).

    With ``r = [r_P, r_T]`` of a prompt, both read before either is written::

        r_P ← ρ·r_P + (1-ρ)/H · Σ_h ŵ_h (r_Pᵀ A_PP,h + r_Tᵀ A_TP,h)
        r_T ← ρ·r_T + (1-ρ)/H · Σ_h ŵ_h  r_Tᵀ A_TT,h

    The scores of the prefix rows are computed once per layer for all K prompts, and in that one
    pass give both the head weights' statistic and ``rᵀA`` per head: ŵ is applied afterwards.

    Args:
        prefix: queries and keys of the prefix, layers first to last; P may be 0.
        tails: those of the prompts' own tokens, same layers: ``(K, H, T, D)`` and ``(K, G, T, D)``,
            padded at the end.
        lengths: tokens of each prompt, at least one.
        visual_P: True at the prefix's visual tokens; best on the CPU, where it is read.
        mode: head weighting.
        residual: share ρ of the identity.
        dtype: of everything that is computed; by default float32.
        block_bytes: scratch memory a block of score rows may take; see :data:`BLOCK_BYTES`.
        together: compute all prompts' own rows in one go, as is best on a GPU, where every kernel's
            launch costs; or one prompt after the other, unpadded. By default as the device likes it.

    Returns:
        Per prompt the row over its ``P + T`` tokens: ``(K, P + T)``, zero at padding.

    Raises:
        RefsegError: no layer, or ``v_max`` without a visual token.
    """
    if not prefix:
        raise RefsegError("Rollout over no layer.", hint="Choose start_layer below end_layer.")
    device, dtype = prefix[0].q_HND.device, dtype or torch.float32
    heads, size_P = prefix[0].q_HND.shape[:2]
    count, longest = len(lengths), max(lengths)
    runs = _peak_runs(visual_P, size_P + longest, mode)
    block_bytes = block_bytes or BLOCK_BYTES.get(device.type, BLOCK_BYTES["cpu"])
    if together is None:
        together = device.type == "cuda"
    groups = [slice(0, count)] if together else [slice(k, k + 1) for k in range(count)]

    ends_K1 = torch.tensor(lengths)[:, None]
    place_T = torch.arange(longest)
    row_KT = (place_T == ends_K1 - 1).to(device, dtype)
    own_KT = (place_T < ends_K1).to(device, dtype)
    tokens_K1 = (size_P + ends_K1).to(device, dtype)
    row_KP = torch.zeros(count, size_P, dtype=dtype, device=device)
    for index in reversed(range(len(prefix))):
        first, own = prefix[index], tails[index]
        keys_P = first.k_GND.to(dtype)
        # Before the last layer is taken off, the row lies on the prompts' own tokens alone.
        needed = index + 1 < len(prefix)
        sums_PH, pulled_HKP = _pull(
            first.q_HND[None], keys_P[None], 0, row_KP[None], first.scale, runs, block_bytes, needed=needed
        )
        new_KP = torch.empty_like(row_KP)
        for group in groups:
            size_T = max(lengths[group])
            ours = own[group, :, :size_T]
            keys_KN = torch.cat([keys_P.expand(len(ours.k_GND), -1, -1, -1), ours.k_GND.to(dtype)], dim=2)
            sums_KH, pulled_KH1N = _pull(
                ours.q_HND,
                keys_KN,
                size_P,
                row_KT[group, None, :size_T],
                own.scale,
                runs,
                block_bytes,
                own_KT[group, :size_T] if together else None,
            )
            weights_KH = head_weights((sums_PH + sums_KH) / tokens_K1[group], mode) * (
                (1.0 - residual) / heads
            )
            pulled_KN = torch.einsum("kh,khn->kn", weights_KH, pulled_KH1N[:, :, 0])
            pulled_KP = torch.einsum("kh,hkp->kp", weights_KH, pulled_HKP[0, :, group])
            new_KP[group] = residual * row_KP[group] + pulled_KN[:, :size_P] + pulled_KP
            row_KT[group, :size_T] = residual * row_KT[group, :size_T] + pulled_KN[:, size_P:]
        row_KP = new_KP
    return torch.cat([row_KP, row_KT], dim=1)


def _pull(
    q_BHRD: Tensor,
    k_BGLD: Tensor,
    offset: int,
    row_BKR: Tensor,
    scale: float,
    runs: Sequence[tuple[int, int]],
    block_bytes: int,
    counted_BR: Tensor | None = None,
    needed: bool = True,
) -> tuple[Tensor, Tensor]:
    """One pass over the attention of query rows ``offset … offset+R-1`` to keys ``0 … L-1``.

    Args:
        q_BHRD: queries of ``B`` sequences.
        k_BGLD: keys, in the type that is computed in.
        offset: how many keys come before the first query's own.
        row_BKR: K row vectors per sequence.
        scale: factor on the scores.
        runs: the keys whose largest attention counts.
        block_bytes: see :func:`shared_rollout`.
        counted_BR: 1 at rows that count in the sum, 0 at padding; ``None`` = all count.
        needed: False where the row vectors are known to be zero.

    Returns:
        ``(B, H)``: sum over the rows of the largest attention to the keys in ``runs``;
        ``(B, H, K, L)``: ``rᵀ A_h`` for each of the row vectors.
    """
    batch, heads, rows, depth = q_BHRD.shape
    groups, length = k_BGLD.shape[1:3]
    like: dict[str, Any] = {"dtype": k_BGLD.dtype, "device": k_BGLD.device}
    sums_BH = torch.zeros(batch, heads, **like)
    pulled_BHKL = torch.zeros(batch, heads, row_BKR.shape[1], length, **like)
    if rows == 0:
        return sums_BH, pulled_BHKL
    step = min(rows, max(1, block_bytes // (batch * heads * length * k_BGLD.element_size())))
    corner = torch.full((step, step), float("-inf"), **like).triu_(1)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        seen = offset + last
        q = q_BHRD[:, :, first:last].to(k_BGLD.dtype).reshape(batch * groups, -1, depth) * scale
        keys = k_BGLD[:, :, :seen].flatten(0, 1)
        scores = torch.bmm(q, keys.transpose(1, 2)).view(batch, heads, last - first, seen)
        scores[..., offset + first :] += corner[: last - first, : last - first]
        probs = torch.softmax(scores, -1)
        del scores
        peak_BHR = _peak_over(probs, runs)
        if peak_BHR is not None:
            if counted_BR is not None:
                peak_BHR = peak_BHR * counted_BR[:, None, first:last]
            sums_BH += peak_BHR.sum(-1)
        if needed:
            pulled_BHKL[..., :seen] += torch.matmul(row_BKR[:, None, :, first:last], probs)
    return sums_BH, pulled_BHKL


def _peak_over(probs_BHRL: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor | None:
    """Largest value of each row over the key runs (those the block can't see yet give nothing)."""
    best: Tensor | None = None
    for first, last in runs:
        if first >= probs_BHRL.shape[-1]:
            break
        peak = probs_BHRL[..., first:last].amax(-1)
        best = peak if best is None else torch.maximum(best, peak)
    return best


def _peak_runs(visual_P: Tensor, length: int, mode: HeadWeights) -> list[tuple[int, int]]:
    """The keys whose largest attention counts, as runs of neighbours."""
    name = weighting(mode)
    if name == "plain":
        return []
    if name == "max_all_keys":
        return [(0, length)]
    flags = torch.nn.functional.pad(visual_P.to("cpu", torch.int8), (1, 1))
    edges = (flags[1:] - flags[:-1]).nonzero().flatten().tolist()
    if not edges:
        raise no_visual_tokens()
    return [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)]
