"""RefAM: where a diffusion transformer looks when it reads an expression (arXiv 2509.22650).

Per expression: its tokens and those of some stop words ("magnets") are read against one frame; the
kept tokens' maps are averaged; the peak, weighted by direction words, prompts the segmenter. What
attention is read is the backbone's business; the steps after it stand in ``filters``,
``noun_phrases``, ``spatial`` and ``pointing``. Most of the publication's settings are unknown:
`docs/refam.md` lists which default is settled and which is our reading.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from refseg_bench.backbones.attention_maps import TokenMaps
from refseg_bench.backbones.dit import DiT
from refseg_bench.backbones.dit.text import TokenSet, tokenise
from refseg_bench.backbones.weights import Weights
from refseg_bench.config.schema import option, refuse_outside
from refseg_bench.errors import ConfigError
from refseg_bench.methods.base import AttentionMethod, evenly, highest, peak
from refseg_bench.methods.pointing import (
    Aggregate,
    FloatHW,
    Multimask,
    PointOptions,
    Upsample,
    aggregate,
    content_cells,
    place,
    resized,
    threshold,
    track_point,
    unit_range,
)
from refseg_bench.methods.refam.filters import (
    Gas,
    act,
    content_tokens,
    find_sinks,
    intersect,
    kept_tokens,
    stop_words,
    surface_words,
    tokens_of_words,
)
from refseg_bench.methods.refam.noun_phrases import needed, noun_phrase_parser
from refseg_bench.methods.refam.token_maps import Ask, MissingCaption, PromptMode, TokenMapReader, prompt_of
from refseg_bench.methods.spatial import Axes, SpatialBias, biased, directions
from refseg_bench.segmenters.base import Segmenter, SegmenterSession
from refseg_bench.types import Clip, Expression, Grounding, HeatPoint, MaskTrack

MAGNETS: dict[str, tuple[str, ...]] = {
    "teaser": ("_", "with", "a", "the", "pink"),
    "page": (".", "a", "with"),
    "pipeline": ("with", "to", "pink"),
    "none": (),
}


@dataclass(frozen=True)
class NounPhraseFilter:
    """Which tokens the noun phrase lets through."""

    #: ``off``; ``root_chunk``: K ∩ root noun chunk; ``head_noun``: K ∩ its head; ``weighted``: weight ·
    #: sentence map + (1 − weight) · noun-chunk map.
    mode: Literal["off", "root_chunk", "head_noun", "weighted"] = "root_chunk"
    parser: str = "auto"  #: ``auto``, ``rules`` or the name of a spaCy model
    weight: float = 0.5  #: share of the sentence map


@dataclass(frozen=True)
class DirectionRule:
    """The spatial bias (see ``spatial.SpatialBias``)."""

    mode: Literal["off", "ramp", "half"] = "ramp"  #: ``off``, linear ``ramp`` or ``half`` plane
    axes: Axes = "both"  #: which direction words count
    floor: float = 0.0  #: least weight
    parse: bool = False  #: skip a direction word about another object


@dataclass(frozen=True, eq=False)
class Heat:
    """What one frame says of one expression."""

    frame: int  #: index into the clip
    maps: TokenMaps  #: the token maps as read
    grid_hw: FloatHW  #: the aggregated map on the model's grid, before the spatial bias
    point: HeatPoint | None  #: the peak after the bias; ``None`` where the map is constant
    full_HW: FloatHW  #: the map at the clip's size, before the bias
    details: Mapping[str, Any]  #: kept tokens, sinks, parser … as JSON


@dataclass
class RefAM(AttentionMethod):
    """Referring segmentation by attention magnets."""

    knows: ClassVar[str] = "where a diffusion transformer's attention to the words falls"
    cache_folder: ClassVar[str] = "refam"
    makes_maps: ClassVar[tuple[str, ...]] = (
        *("magnets", "magnet_encoding", "lowercase", "overlong", "prompt_mode", "captions"),
        *("missing_caption", "mask", "prompt_frame", "frame_candidates"),
    )
    #: The mean map of all the expression's tokens, no magnets, nothing filtered.
    raw_options: ClassVar[Mapping[str, Any]] = {
        "magnets": "none",
        "filter_stopwords": False,
        "gas.enabled": False,
        "np.mode": "off",
        "sb.mode": "off",
        "absent_below": None,
    }

    backbone: DiT  #: where attention is read
    segmenter: Segmenter | None = None  #: what turns the point into a mask; needed with ``mask: segmenter``
    #: Preset ``teaser``, ``page``, ``pipeline``, ``none``, or the words themselves.
    magnets: list[str] | str = "teaser"
    #: Each magnet by itself with its own end token, or all in one string.
    magnet_encoding: Literal["separate", "joined"] = "separate"
    lowercase: bool = True  #: lower-case the expression before tokenising
    #: Cut an expression that exceeds the model's text length, or fail its sample.
    overlong: Literal["truncate", "error"] = "truncate"
    prompt_mode: PromptMode = "caption"  #: what a concept stream is prompted with (no effect in prompt mode)
    captions: Path | None = None  #: JSON file of captions by clip or image id
    missing_caption: MissingCaption = "error"  #: fail the sample, or prompt with the expression or nothing
    stopwords: str = "nltk"  #: ``nltk``, ``spacy``, or a file with one word a line
    filter_stopwords: bool = True  #: drop stop words of the expression
    drop_direction_words: bool = False  #: drop "left", "top" … too
    gas: Gas = field(default_factory=Gas)  #: attention sinks
    np: NounPhraseFilter = field(default_factory=NounPhraseFilter)  #: noun-phrase filter
    sb: DirectionRule = field(default_factory=DirectionRule)  #: spatial bias
    aggregate: Aggregate = "mean"  #: of the kept tokens' maps; mean and sum have the same peak
    upsample: Upsample = "bilinear"  #: before the peak is looked for; ``none`` takes the best cell
    #: From the segmenter; ``threshold``: the map itself above ``threshold`` of its range (then every frame of
    #: a clip is read); ``none``: no masks, for point accuracy alone.
    mask: Literal["segmenter", "threshold", "none"] = "segmenter"
    threshold: float = 0.5  #: for ``mask=threshold``, in [0, 1]
    multimask: Multimask = "best_iou"  #: which of the segmenter's candidates (see ``pointing.PointOptions``)
    multimask_index: int = 2  #: for ``multimask=index``; 2 is SAM's whole object
    #: First frame (as published), or the frame of ``frame_candidates`` uniform ones whose peak is highest;
    #: that one propagates both ways.
    prompt_frame: Literal["first", "best_of_uniform_k"] = "first"
    frame_candidates: int = 5  #: how many frames compete
    bidirectional: bool = False  #: propagate backwards as well
    #: An expression whose peak is lower (in the map's own unit, after the spatial bias: with ``aggregate:
    #: mean`` a token's share of attention) is answered as absent; not in the paper, ``null`` = off.
    absent_below: float | None = option(None, newer=True)
    keep_token_maps: bool = option(False, transient=True)  #: hand every token's map to the report

    weights_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.mask == "segmenter" and self.segmenter is None:
            raise ConfigError(
                "method.mask=segmenter needs a segmenter.",
                where="method.mask",
                hint="Add segmenter=NAME, or do without one by method.mask=threshold or method.mask=none.",
            )
        refuse_outside(self, 0, 1, "threshold", "np.weight", "sb.floor")
        refuse_outside(self, 0, math.inf, "multimask_index")
        refuse_outside(self, 1, math.inf, "frame_candidates")
        if isinstance(self.magnets, str) and self.magnets not in MAGNETS:
            raise ConfigError(
                f"No magnet preset '{self.magnets}'.", where="method.magnets", allowed=[*MAGNETS, "[a list]"]
            )

    @property
    def uses_segmenter(self) -> bool:
        """Whether the segmenter makes the masks."""
        return self.mask == "segmenter"

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """Ground all expressions of a clip; their attention is read together."""
        started = time.perf_counter()
        heats = self.heats(clip, expressions)
        shared = (time.perf_counter() - started) / max(len(expressions), 1)
        segmenter = self.segmenter if self.mask == "segmenter" else None
        with nullcontext() if segmenter is None else segmenter.open(clip) as session:
            for expression, per_frame in zip(expressions, heats, strict=True):
                began = time.perf_counter()
                best = max(per_frame, key=lambda heat: -math.inf if heat.point is None else heat.point.value)
                # A constant map points at nothing, which is an answer; otherwise only a rule can tell.
                absent = True if best.point is None else None
                if best.point is not None and self.absent_below is not None:
                    absent = best.point.value < self.absent_below
                track, chosen = MaskTrack.empty(clip.size, len(clip)), None
                if not absent:
                    track, chosen = self._masks(clip, session, best, per_frame)
                yield Grounding(
                    expression,
                    track,
                    point=best.point,
                    no_target=absent,
                    maps=self._pictures(best),
                    map_frames={name: (best.frame,) for name in self._pictures(best)},
                    details={**best.details, "frame": best.frame, "candidate": chosen},
                    seconds={"attention": shared, "segment": time.perf_counter() - began},
                )

    def heats(self, clip: Clip, expressions: Sequence[Expression]) -> list[list[Heat]]:
        """The heat maps of each expression, one per frame read."""
        reader, asks = self._questions(clip, expressions)
        out: list[list[Heat]] = [[] for _ in expressions]
        for frame in self.reads(clip):
            found = reader.read(frame, asks)
            sinks = [find_sinks(maps, self.gas) for maps in found]
            if self.gas.action == "mask_logits" and (changed := [i for i, gone in enumerate(sinks) if gone]):
                # Read again, with each expression's sinks excluded from its softmax.
                again = reader.read(frame, [replace(asks[i], exclude=sinks[i]) for i in changed])
                for i, maps in zip(changed, again, strict=True):
                    found[i] = maps
            for index, (expression, ask, maps) in enumerate(zip(expressions, asks, found, strict=True)):
                out[index].append(self._heat(clip, frame, expression.text, ask.tokens, maps, sinks[index]))
        return out

    def capture(self, clip: Clip, expressions: Sequence[Expression]) -> None:
        """Fill the cache with the expressions' maps, for every run that makes something else of them."""
        reader, asks = self._questions(clip, expressions)
        for frame in self.reads(clip):
            reader.read(frame, asks)

    def cached(self, clip: Clip, texts: Sequence[str]) -> int:
        """How many of the texts need no forward pass, by the cache. Loads and fetches no weights."""
        if self.cache.root is None or not self.cache.root.is_dir():
            return 0  # and no tokenizer is needed to know
        asking = replace(self, backbone=replace(self.backbone, offline=True))
        asking.cache_root = self.cache_root
        reader, asks = asking._questions(clip, [Expression(str(i), text) for i, text in enumerate(texts)])
        frames = self.reads(clip)
        return sum(all(reader.known(frame, ask) for frame in frames) for ask in asks)

    def check(self) -> None:
        """Its packages and its stop list."""
        super().check()
        stop_words(self.stopwords)

    def weights(self) -> tuple[Weights, ...]:
        """The spaCy model that finds noun phrases, where one does, captions, and a stop list in a file."""
        parser = "rules" if self.np.mode == "off" else self.np.parser
        stop = Path(self.stopwords)
        return needed(parser, captions=self.captions, stopwords=stop if stop.is_file() else None)

    @property
    def magnet_words(self) -> tuple[str, ...]:
        """The magnets in order."""
        return MAGNETS[self.magnets] if isinstance(self.magnets, str) else tuple(self.magnets)

    def prompt(self, clip: Clip, expression: Expression) -> str:
        """What a concept stream is prompted with; in prompt mode the extraction tokens are the prompt."""
        if self.backbone.text_mode == "prompt":
            return ""
        return prompt_of(clip, expression, self.prompt_mode, self.captions, self.missing_caption)

    def reads(self, clip: Clip) -> list[int]:
        """The frames whose attention is read."""
        if self.mask == "threshold":
            return list(range(len(clip)))
        if self.prompt_frame == "first":
            return [0]
        return evenly(len(clip), self.frame_candidates)

    # ── from token maps to a point ──

    def _questions(self, clip: Clip, expressions: Sequence[Expression]) -> tuple[TokenMapReader, list[Ask]]:
        """A reader on the clip, and what it is asked: one set of tokens per expression."""
        reader = TokenMapReader(self.backbone, self.cache, clip)
        asks = [
            Ask(
                tokenise(
                    self.backbone.tokenizer,
                    expression.text,
                    self.magnet_words,
                    encoding=self.magnet_encoding,
                    lowercase=self.lowercase,
                    limit=self.backbone.max_text,
                    overlong=self.overlong,
                ),
                self.prompt(clip, expression),
            )
            for expression in expressions
        ]
        return reader, asks

    def _heat(
        self, clip: Clip, frame: int, text: str, tokens: TokenSet, maps: TokenMaps, sinks: tuple[int, ...]
    ) -> Heat:
        stop = stop_words(self.stopwords)
        content = content_tokens(tokens, stop)
        maps_TN, dropped = act(maps.maps_TN, sinks, content, self.gas.action)
        kept = kept_tokens(
            tokens,
            stop_words=stop if self.filter_stopwords else (),
            dropped=dropped,
            drop_direction_words=self.drop_direction_words,
        )
        kept, phrase_map, parser = self._noun_phrase(tokens, kept, maps_TN)
        flat_N = aggregate(maps_TN, kept, self.aggregate)
        if phrase_map is not None:
            flat_N = self.np.weight * flat_N + (1 - self.np.weight) * phrase_map
        grid_hw = np.asarray(flat_N.reshape(maps.grid), np.float32)
        content_share = self.backbone.content_share(clip.size)
        sought_hw = place(grid_hw, clip.size, self.upsample, content_share)
        sides: tuple[str, ...] = ()
        if self.sb.mode != "off":
            bias = SpatialBias(self.sb.floor, self.sb.axes, self.sb.parse, self.sb.mode == "half")
            sides = directions(text, axes=self.sb.axes, parse=self.sb.parse)
            sought_hw = biased(sought_hw, text, bias)
        point = self._peak(sought_hw, frame, grid_hw, content_share)
        full_HW = resized(grid_hw, clip.size, "bilinear", content_share)
        details = {
            "tokens": tokens.pieces,
            "kept": list(kept),
            "sinks": list(sinks),
            "directions": list(sides),
            "noun_phrase_parser": parser,
            "truncated_tokens": tokens.truncated,
        }
        return Heat(frame, maps, grid_hw, point, full_HW, details)

    def _peak(
        self, sought_hw: FloatHW, frame: int, grid_hw: FloatHW, content: tuple[float, float]
    ) -> HeatPoint | None:
        if highest(content_cells(grid_hw, content)[None], [frame]) is None or not sought_hw.any():
            return None
        if self.upsample == "none":
            # A cell's centre on the canvas, as a place on the image.
            row, column = np.unravel_index(int(np.argmax(sought_hw)), sought_hw.shape)
            y, x = (
                (i + 0.5) / n / share
                for i, n, share in zip((row, column), grid_hw.shape, content, strict=True)
            )
            return HeatPoint(frame, min(y, 1.0), min(x, 1.0), float(sought_hw[row, column]))
        return peak(sought_hw, frame)

    def _noun_phrase(
        self, tokens: TokenSet, kept: tuple[int, ...], maps_TN: Any
    ) -> tuple[tuple[int, ...], Any, str | None]:
        """The kept set after the filter, the noun chunk's own map (``weighted``), and the parser."""
        if self.np.mode == "off":
            return kept, None, None
        words = surface_words(tokens)
        phrase = noun_phrase_parser(self.np.parser)(words)
        if phrase is None:
            return kept, None, None
        chosen = (phrase.head,) if self.np.mode == "head_noun" else phrase.words
        inside = intersect(kept, tokens_of_words(tokens, chosen))
        if self.np.mode == "weighted":
            return kept, aggregate(maps_TN, inside, self.aggregate), phrase.parser
        return inside, None, phrase.parser

    # ── from the point to masks ──

    def _masks(
        self, clip: Clip, session: SegmenterSession | None, best: Heat, per_frame: Sequence[Heat]
    ) -> tuple[MaskTrack, int | None]:
        if self.mask == "none":
            return MaskTrack(clip.size, (None,) * len(clip)), None
        if session is None:
            masks = [threshold(heat.full_HW, self.threshold) for heat in per_frame]
            return MaskTrack.from_masks(masks, clip.size), None
        assert best.point is not None
        both = self.bidirectional or self.prompt_frame != "first"
        options = PointOptions(self.multimask, self.multimask_index, both)
        return track_point(session, best.point, best.full_HW, options)

    def _pictures(self, heat: Heat) -> dict[str, Any]:
        pictures = {"heat": unit_range(heat.grid_hw)[None]}
        if self.keep_token_maps:
            for index, (piece, map_hw) in enumerate(
                zip(heat.details["tokens"], heat.maps.maps_THW, strict=True)
            ):
                pictures[f"token {index:02d} {piece}"] = unit_range(map_hw)[None]
        return pictures
