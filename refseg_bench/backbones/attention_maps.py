"""From queries and keys to token maps, streamed: no joint attention matrix is ever held.

For every layer the tap shows, the logits between image and extraction tokens are computed a few
heads at a time, turned to probabilities in float32, added to accumulators and dropped. What stays
is one map per token (``A``), one token × token matrix (``B``) and three numbers per token and layer.

Axes: ``L`` layers, ``H`` heads, ``N`` image tokens (row-major over the grid), ``T`` extraction
tokens, ``D`` channels of a head. Formulas: `docs/refam.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.lazy_torch import Tensor, torch
from refseg_bench.errors import ConfigError, RefsegError

if TYPE_CHECKING:
    from refseg_bench.backbones.sdpa_tap import SdpaCall

HeadAgg = Literal["softmax_then_mean", "mean_logits_then_softmax", "joint_renorm"]
AttentionDirection = Literal["img2txt", "txt2img"]
SoftmaxAxis = Literal["tokens", "image", "joint"]
Space = Literal["attention", "output"]
FloatTN = NDArray[np.float32]
FloatTT = NDArray[np.float32]

PROMPT, HIDDEN, _IMAGE = -1, -2, -3

#: Logits held at once while a layer is read, in elements (float32: 16 MB).
CHUNK = 4_000_000


class AttentionError(RefsegError):
    """Attention can't be read from a model, or what was read is no attention."""


@dataclass(frozen=True)
class MapOptions:
    """How logits become maps."""

    #: Probabilities averaged over heads and layers; or logits averaged, then one softmax; or the joint
    #: softmax over all keys, its text slice averaged and re-normalised.
    head_agg: HeadAgg = "softmax_then_mean"
    #: Image queries over text keys, or text queries over image keys.
    direction: AttentionDirection = "img2txt"
    #: Over the extraction tokens at each location; over the locations of each token; or over all keys of the
    #: query (``joint``).
    softmax_axis: SoftmaxAxis = "tokens"
    heads: tuple[int, ...] | None = None  #: heads to read, or all
    #: query–key logits, or inner products of the attention's outputs (all heads as one).
    space: Space = "attention"

    def __post_init__(self) -> None:
        if self.softmax_axis == "joint" and self.head_agg == "mean_logits_then_softmax":
            raise ConfigError(
                "Averaged logits have no joint softmax: its denominator differs by head.",
                where="head_agg",
                allowed=["softmax_then_mean", "joint_renorm"],
            )
        if self.space == "output" and (self.needs_rest or self.direction == "txt2img"):
            raise ConfigError(
                "Outputs of the attention have no queries and keys.",
                where="space=output",
                hint="Use direction=img2txt, softmax_axis=tokens or image, and no joint_renorm.",
            )

    @property
    def needs_rest(self) -> bool:
        """True if the denominator counts keys outside the extraction tokens."""
        return self.softmax_axis == "joint" or self.head_agg == "joint_renorm"


@dataclass(frozen=True)
class SoftmaxTokens:
    """Which of a set's tokens take part in a softmax; one set may be read in several ways."""

    tokens: tuple[int, ...]  #: indices into the set
    exclude: tuple[int, ...] = ()  #: tokens whose logits count as −∞ (sinks), as indices into the set


@dataclass(frozen=True, eq=False)
class _LayerLogits:
    """The logits of one layer (or of some heads of it) for one set of tokens, scaled."""

    image_HNT: Tensor  #: image × token logits in the direction read
    #: query_HTD, key_HTD: the tokens' own queries (scaled) and keys, from which their logits among each other
    #: follow; ``None`` where text never attends (Wan).
    query_HTD: Tensor | None = None
    key_HTD: Tensor | None = None
    #: log-sum-exp over the image queries' other keys (image and prompt), if asked for.
    rest_HN: Tensor | None = None
    rest_HT: Tensor | None = None  #: log-sum-exp over the text queries' image keys, if asked for

    def text_HTT(self) -> Tensor | None:
        """Token (query) × token (key) logits."""
        if self.query_HTD is None or self.key_HTD is None:
            return None
        return self.query_HTD @ self.key_HTD.mT

    def select(self, tokens: Sequence[int]) -> _LayerLogits:
        """Some of the tokens, in the order given."""
        places = places_on(self.image_HNT.device, tuple(tokens))

        def of(tensor: Tensor | None, axis: int) -> Tensor | None:
            return None if tensor is None else tensor.index_select(axis, places)

        return _LayerLogits(
            self.image_HNT.index_select(2, places),
            of(self.query_HTD, 1),
            of(self.key_HTD, 1),
            self.rest_HN,
            of(self.rest_HT, 1),
        )


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """What attention says of a set of tokens, averaged over layers and heads."""

    maps_TN: FloatTN  #: ``A``, one map per token over the image tokens, row-major
    #: ``B``, row = query token, column = key token, rows sum to 1; ``None`` without text-to-text attention.
    text_TT: FloatTT | None
    #: Per layer and token: T × column mean of B (NaN without B), T × mean of the map, std / mean of the map.
    layer_stats_L3T: NDArray[np.float32]
    layers: tuple[int, ...]  #: the layers averaged
    grid: tuple[int, int]  #: (rows, columns) of the image tokens

    @property
    def maps_THW(self) -> NDArray[np.float32]:
        """The maps on their grid."""
        return self.maps_TN.reshape(-1, *self.grid)


class _MapReducer:
    """Accumulates logits into :class:`TokenMaps`. Memory: tokens × image tokens, and :data:`CHUNK`."""

    def __init__(self, options: MapOptions, reading: SoftmaxTokens) -> None:
        if not reading.tokens:
            raise AttentionError("A reading without tokens.")
        self.options, self.reading = options, reading
        self._image_TN: Tensor | None = None
        self._text_TT: Tensor | None = None
        self._layer_image_TN: Tensor | None = None
        self._layer_text_TT: Tensor | None = None
        self._heads = self._layer_heads = 0
        self._stats: list[NDArray[np.float32]] = []
        self._layers: list[int] = []
        self._pending: list[tuple[Tensor, Tensor | None]] = []

    def add_heads(self, chunk: _LayerLogits) -> None:
        """Add some heads of a layer; :meth:`end_layer` closes it."""
        part = chunk.select(self.reading.tokens)
        text_HTT = part.text_HTT()
        self._layer_image_TN = _plus(self._layer_image_TN, self._image(part, text_HTT).sum(0).mT)
        if text_HTT is not None:
            self._layer_text_TT = _plus(self._layer_text_TT, self._text(text_HTT, part.rest_HT).sum(0))
        self._layer_heads += part.image_HNT.shape[0]

    def end_layer(self, layer: int) -> None:
        """Fold the layer into the averages; its sink statistics are taken later, so that no layer waits."""
        image_TN, text_TT, heads = self._layer_image_TN, self._layer_text_TT, self._layer_heads
        assert image_TN is not None
        self._layers.append(layer)
        self._pending.append((image_TN / heads, None if text_TT is None else text_TT / heads))
        if len(self._pending) * image_TN.numel() > CHUNK:
            self._settle()
        self._image_TN = _plus(self._image_TN, image_TN)
        if text_TT is not None:
            self._text_TT = _plus(self._text_TT, text_TT)
        self._heads += heads
        self._layer_image_TN, self._layer_text_TT, self._layer_heads = None, None, 0

    def result(self, grid: tuple[int, int]) -> TokenMaps:
        """The averages so far."""
        if self._image_TN is None:
            raise AttentionError("No layer was read.")
        self._settle()
        image, text = self._finish(
            self._image_TN / self._heads, None if self._text_TT is None else self._text_TT / self._heads
        )
        return TokenMaps(
            image.cpu().numpy(),
            None if text is None else text.cpu().numpy(),
            np.stack(self._stats),
            tuple(self._layers),
            grid,
        )

    def _without_excluded(self, logits_HNT: Tensor) -> Tensor:
        tokens = self.reading.tokens
        places = tuple(tokens.index(t) for t in self.reading.exclude if t in tokens)
        if not places or len(places) == logits_HNT.shape[-1]:
            return logits_HNT
        return logits_HNT.index_fill(-1, places_on(logits_HNT.device, places), float("-inf"))

    def _image(self, part: _LayerLogits, text_HTT: Tensor | None) -> Tensor:
        """What of one layer's heads is averaged: probabilities, or the logits themselves."""
        options = self.options
        logits = part.image_HNT
        if options.head_agg == "mean_logits_then_softmax":
            return logits
        if not options.needs_rest:
            if options.softmax_axis == "image":
                return logits.softmax(-2)
            return self._without_excluded(logits).softmax(-1)
        logits = self._without_excluded(logits)
        if options.direction == "img2txt":
            assert part.rest_HN is not None
            total_HN1 = torch.logaddexp(part.rest_HN, logits.logsumexp(-1))[..., None]
            return (logits - total_HN1).exp()
        over_image_HT = logits.logsumexp(-2)
        assert text_HTT is not None
        total_H1T = torch.logaddexp(over_image_HT, text_HTT.logsumexp(-1))[:, None, :]
        return (logits - total_H1T).exp()

    def _text(self, text_HTT: Tensor, rest_HT: Tensor | None) -> Tensor:
        if self.options.head_agg == "mean_logits_then_softmax":
            return text_HTT
        if self.options.head_agg == "joint_renorm":
            assert rest_HT is not None
            return (text_HTT - torch.logaddexp(rest_HT, text_HTT.logsumexp(-1))[..., None]).exp()
        return text_HTT.softmax(-1)

    def _finish(self, image_TN: Tensor, text_TT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """From averages over heads (and layers) to maps."""
        options = self.options
        over_image = options.softmax_axis == "image"
        if options.head_agg == "mean_logits_then_softmax":
            if over_image:
                image_TN = image_TN.softmax(1)
            else:
                image_TN = self._without_excluded(image_TN.mT).softmax(-1).mT
            text_TT = None if text_TT is None else text_TT.softmax(-1)
        elif options.head_agg == "joint_renorm":
            if options.softmax_axis != "joint":
                image_TN = image_TN / image_TN.sum(1 if over_image else 0, keepdim=True).clamp_min(1e-30)
            text_TT = None if text_TT is None else text_TT / text_TT.sum(1, keepdim=True).clamp_min(1e-30)
        return image_TN, text_TT

    def _settle(self) -> None:
        """Fetch what is pending from the device."""
        for image_TN, text_TT in (self._finish(*layer) for layer in self._pending):
            text = None if text_TT is None else text_TT.cpu().numpy()
            self._stats.append(sink_statistics(image_TN.cpu().numpy(), text))
        self._pending.clear()


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more


@lru_cache(maxsize=1024)
def places_on(device: torch.device, places: tuple[int, ...]) -> Tensor:
    """Indices as a tensor on a device, sent there once: a list would be sent and waited for in each layer."""
    return torch.tensor(places, dtype=torch.long, device=device)


def sink_statistics(maps_TN: FloatTN, text_TT: FloatTT | None) -> NDArray[np.float32]:
    """The three numbers the sink rule looks at, per token.

    Maps are brought to a mean of 1/T first, so that the image-side mass means the same for every
    softmax (it is 1 for a token that gets its share).

    Returns:
        ``(3, T)``: text-side mass T · column mean of B (NaN without B), image-side mass T · mean of
        the map, and the map's std / mean.
    """
    count = len(maps_TN)
    mean_T = maps_TN.mean(1)
    total = float(mean_T.sum())
    mass_T = mean_T * (count / total) if total > 0 else np.ones(count)
    cv_T = maps_TN.std(1) / np.maximum(mean_T, 1e-30)
    text_T = np.full(count, np.nan) if text_TT is None else count * text_TT.mean(0)
    return np.stack([text_T, mass_T, cv_T]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Where the tokens of one forward pass stand in its attention."""

    image: slice  #: positions of the image tokens among the queries
    prompt: tuple[int, ...]  #: positions of the prompt tokens (empty in prompt mode)
    sets: tuple[tuple[int, ...], ...]  #: positions of each set's extraction tokens
    #: True where the keys are text alone (Wan): text positions then count among the keys and there are no
    #: text queries.
    cross: bool = False


@dataclass
class MapObserver:
    """The tap's observer: reads every wanted layer into the reducers of every set."""

    layout: TokenLayout  #: the token layout of the pass
    options: MapOptions  #: how to read
    readings: Sequence[Mapping[str, SoftmaxTokens]]  #: per set, name → reading
    _reducers: list[dict[str, _MapReducer]] = field(init=False)
    _finite: list[tuple[int, Tensor]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._reducers = [
            {name: _MapReducer(self.options, reading) for name, reading in readings.items()}
            for readings in self.readings
        ]

    def __call__(self, call: SdpaCall) -> None:
        """Read one layer; nothing waits for the device."""
        self._finite += [(call.layer, torch.isfinite(one).all()) for one in (call.query, call.key)]
        for reducers, positions in zip(self._reducers, self.layout.sets, strict=True):
            for chunk in self._chunks(call, positions):
                self._finite.append((call.layer, torch.isfinite(chunk.image_HNT).all()))
                for reducer in reducers.values():
                    reducer.add_heads(chunk)
            for reducer in reducers.values():
                reducer.end_layer(call.layer)

    def results(self, grid: tuple[int, int]) -> list[dict[str, TokenMaps]]:
        """Per set, name → maps.

        Raises:
            AttentionError: queries, keys or logits of a layer, which it names, are NaN or infinite.
        """
        finite = torch.stack([flag for _, flag in self._finite]).tolist() if self._finite else []
        if False in finite:
            raise AttentionError(
                f"Layer {self._finite[finite.index(False)][0]} gives NaN or infinite attention logits.",
                hint="Run the model in bf16 or fp32 (backbone.dtype): fp16 overflows in some of them.",
            )
        return [{name: r.result(grid) for name, r in reducers.items()} for reducers in self._reducers]

    def _chunks(self, call: SdpaCall, positions: tuple[int, ...]) -> Iterator[_LayerLogits]:
        if self.options.space == "output":
            out_LHD = call.output[0].transpose(0, 1)
            image_NC = out_LHD[self.layout.image].flatten(1).float()
            text_TC = out_LHD.index_select(0, places_on(out_LHD.device, positions)).flatten(1).float()
            yield _LayerLogits((image_NC @ text_TC.mT)[None])
            return
        query, key = call.query[0], call.key[0]
        heads = tuple(range(query.shape[0])) if self.options.heads is None else self.options.heads
        if max(heads) >= query.shape[0]:
            raise ConfigError(
                f"The model has no attention head {max(heads)}.", allowed=[f"0…{query.shape[0] - 1}"]
            )
        image = self.layout.image
        image_tokens = len(range(*image.indices(query.shape[1])))
        per_head = image_tokens * len(positions)
        step = max(1, CHUNK // max(per_head, 1))
        for start in range(0, len(heads), step):
            chosen = places_on(query.device, heads[start : start + step])
            query_H, key_H = (tensor.index_select(0, chosen).float() for tensor in (query, key))
            yield self._logits(query_H * call.scale, key_H, image, places_on(query.device, positions))

    def _logits(self, query: Tensor, key: Tensor, image: slice, positions: Tensor) -> _LayerLogits:
        """Logits of some heads; ``query`` is scaled already."""
        text_keys = key.index_select(1, positions)
        if self.layout.cross:
            if self.options.direction == "txt2img" or self.options.needs_rest:
                raise ConfigError(
                    "This model's text never queries the image and its image queries see text alone.",
                    where="direction, softmax_axis, head_agg",
                    hint="Use direction=img2txt, softmax_axis=tokens or image.",
                )
            return _LayerLogits(query @ text_keys.mT)
        text_queries = query.index_select(1, positions)
        if self.options.direction == "txt2img":
            logits = (text_queries @ key[:, image].mT).mT
        else:
            logits = query[:, image] @ text_keys.mT
        if not self.options.needs_rest:
            return _LayerLogits(logits, text_queries, text_keys)
        rest_HT = (text_queries @ key[:, image].mT).logsumexp(-1)
        if self.options.direction == "txt2img":
            return _LayerLogits(logits, text_queries, text_keys, None, rest_HT)
        prompt = key.index_select(1, places_on(key.device, self.layout.prompt))
        other = torch.cat([key[:, image], prompt], 1)
        step = max(1, CHUNK // other.shape[1])
        rest = [
            torch.cat([(block @ keys.mT).logsumexp(-1) for block in torch.split(queries, step)])
            for queries, keys in zip(query[:, image], other, strict=True)
        ]
        return _LayerLogits(logits, text_queries, text_keys, torch.stack(rest), rest_HT)


def one_way_mask(roles: Sequence[int], image: int, *, text_first: bool, cross: bool = False) -> Tensor:
    """The mask that lets extraction tokens watch without being seen (ConceptAttention, arXiv 2502.04320).

    Image and prompt tokens see image and prompt, as if nothing had been added. An extraction token
    sees the image and the extraction tokens of its own group. Hidden tokens are seen by nobody.

    Args:
        roles: per text token ``PROMPT``, ``HIDDEN`` or its group number (≥ 0).
        image: number of image tokens.
        text_first: the order of the joint attention.
        cross: True where keys are the text alone and queries the image alone.

    Returns:
        Boolean ``(queries, keys)``, True = may attend.
    """
    if cross:
        return (torch.tensor(list(roles)) == PROMPT).expand(image, -1)
    parts = [list(roles), [_IMAGE] * image]
    role = torch.tensor([*parts[not text_first], *parts[text_first]])
    query, key = role[:, None], role[None, :]
    allowed = torch.where(query >= 0, (key == _IMAGE) | (key == query), (key == _IMAGE) | (key == PROMPT))
    return allowed
