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
from functools import partial
from typing import Any

from refseg_bench.backbones.base import HeadWeights, weighting
from refseg_bench.backbones.lazy_torch import Tensor, nn, torch
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
    prefixes: Sequence[Sequence[LayerQK]],
    tails: Sequence[Sequence[LayerQK]],
    lengths: Sequence[Sequence[int]],
    visual_P: Tensor,
    mode: HeadWeights = "v_max",
    residual: float = 0.5,
    dtype: torch.dtype | None = None,
    block_bytes: int | None = None,
) -> Tensor:
    """Rollout rows of K prompts on each of B prefixes (DecAF, spec of the row-vector form).

    With ``r = [r_P, r_T]`` of a prompt, both read before either is written::

        r_P ← ρ·r_P + (1-ρ)/H · Σ_h ŵ_h (r_Pᵀ A_PP,h + r_Tᵀ A_TP,h)
        r_T ← ρ·r_T + (1-ρ)/H · Σ_h ŵ_h  r_Tᵀ A_TT,h

    The scores of the prefix rows are computed once per layer for all K prompts, and in that one
    pass give both the head weights' statistic and ``rᵀA`` per head: ŵ is applied afterwards. All else
    is computed pass by pass, so that a row's bits depend on the prompts of its own pass alone.

    Args:
        prefixes: of each, queries and keys, layers first to last; all of one size P, which may be 0.
        tails: of each pass, those of its prompts' own tokens, same layers: ``(B·k, H, T, D)`` and
            ``(B·k, G, T, D)``, all k prompts on the first prefix first, padded at the end.
        lengths: of each pass, the tokens of its k prompts, at least one.
        visual_P: True at the prefixes' visual tokens; best on the CPU, where it is read.
        mode: head weighting.
        residual: share ρ of the identity.
        dtype: of everything that is computed; by default float32.
        block_bytes: scratch memory a block of score rows may take; see :data:`BLOCK_BYTES`.

    Returns:
        Per prefix and prompt the row over its ``P + T`` tokens: ``(B, K, P + T)``, zero at padding.

    Raises:
        RefsegError: no layer, or ``v_max`` without a visual token.
    """
    if not prefixes[0]:
        raise RefsegError("Rollout over no layer.", hint="Choose start_layer below end_layer.")
    device, dtype = prefixes[0][0].q_HND.device, dtype or torch.float32
    (heads, size_P), count_B = prefixes[0][0].q_HND.shape[:2], len(prefixes)
    longest = max(map(max, lengths))
    runs = _peak_runs(visual_P, size_P + longest, mode)
    block_bytes = block_bytes or BLOCK_BYTES.get(device.type, BLOCK_BYTES["cpu"])

    rows_BkP, rows_RT, owns_RT, tokens_R1 = [], [], [], []
    for ends in lengths:
        ends_R1 = torch.tensor(ends).repeat(count_B)[:, None]
        place_T = torch.arange(max(ends))
        rows_BkP.append(torch.zeros(count_B, len(ends), size_P, dtype=dtype, device=device))
        rows_RT.append((place_T == ends_R1 - 1).to(device, dtype))
        owns_RT.append((place_T < ends_R1).to(device, dtype) if min(ends) < max(ends) else None)
        tokens_R1.append((size_P + ends_R1).to(device, dtype))
    for index in reversed(range(len(prefixes[0]))):
        pull = partial(_pull, scale=prefixes[0][index].scale, runs=runs, block_bytes=block_bytes)
        q_BHPD = torch.stack([prefix[index].q_HND for prefix in prefixes])
        k_BGPD = torch.stack([prefix[index].k_GND for prefix in prefixes]).to(dtype)
        # Before the last layer is taken off, the rows lie on the prompts' own tokens alone.
        sums_BH, pulled = pull(q_BHPD, k_BGPD, 0, rows_BkP, needed=index + 1 < len(prefixes[0]))
        for part, own in enumerate(tail[index] for tail in tails):
            size = len(lengths[part])
            k_RGPD = k_BGPD[:, None].expand(-1, size, -1, -1, -1).flatten(0, 1)
            keys_RN = torch.cat([k_RGPD, own.k_GND.to(dtype)], dim=2)
            rows_R1T, counted_RT = rows_RT[part][:, None], owns_RT[part]
            own_RH, (pulled_RH1N,) = pull(own.q_HND, keys_RN, size_P, [rows_R1T], counted_BR=counted_RT)
            sums_RH = sums_BH.repeat_interleave(size, 0) + own_RH
            weights_RH = head_weights(sums_RH / tokens_R1[part], mode) * ((1.0 - residual) / heads)
            pulled_RN = torch.einsum("rh,rhn->rn", weights_RH, pulled_RH1N[:, :, 0])
            pulled_RHP = pulled[part].transpose(1, 2).flatten(0, 1)
            pulled_RP = torch.einsum("rh,rhp->rp", weights_RH, pulled_RHP) + pulled_RN[:, :size_P]
            rows_BkP[part] = residual * rows_BkP[part] + pulled_RP.view_as(rows_BkP[part])
            rows_RT[part] = residual * rows_RT[part] + pulled_RN[:, size_P:]
    padded = [nn.functional.pad(row_RT, (0, longest - row_RT.shape[1])) for row_RT in rows_RT]
    rows_BkT = [row_RT.view(count_B, -1, longest) for row_RT in padded]
    return torch.cat([torch.cat(rows_BkP, 1), torch.cat(rows_BkT, 1)], dim=2)


def _pull(
    q_BHRD: Tensor,
    k_BGLD: Tensor,
    offset: int,
    rows_BKR: Sequence[Tensor],
    scale: float,
    runs: Sequence[tuple[int, int]],
    block_bytes: int,
    counted_BR: Tensor | None = None,
    needed: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """One pass over the attention of query rows ``offset … offset+R-1`` to keys ``0 … L-1``.

    Args:
        q_BHRD: queries of ``B`` sequences.
        k_BGLD: keys, in the type that is computed in.
        offset: how many keys come before the first query's own.
        rows_BKR: row vectors per sequence, in parts whose products don't touch each other.
        scale: factor on the scores.
        runs: the keys whose largest attention counts.
        block_bytes: see :func:`shared_rollout`.
        counted_BR: 1 at rows that count in the sum, 0 at padding; ``None`` = all count.
        needed: False where the row vectors are known to be zero.

    Returns:
        ``(B, H)``: sum over the rows of the largest attention to the keys in ``runs``;
        of each part ``(B, H, K, L)``: ``rᵀ A_h`` for each of its row vectors.
    """
    batch, heads, rows, depth = q_BHRD.shape
    groups, length = k_BGLD.shape[1:3]
    like: dict[str, Any] = {"dtype": k_BGLD.dtype, "device": k_BGLD.device}
    sums_BH = torch.zeros(batch, heads, **like)
    pulled = [torch.zeros(batch, heads, row_BKR.shape[1], length, **like) for row_BKR in rows_BKR]
    if rows == 0:
        return sums_BH, pulled
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
        for row_BKR, pulled_BHKL in zip(rows_BKR, pulled, strict=True):
            if needed:
                pulled_BHKL[..., :seen] += torch.matmul(row_BKR[:, None, :, first:last], probs)
    return sums_BH, pulled


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
