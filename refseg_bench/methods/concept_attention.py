"""ConceptAttention: concepts as silent watchers of an image, compared at each place (arXiv 2502.04320).

The expression's concept competes with contrast concepts; each concept is its first T5 token in a
one-way text stream. ``space=output`` compares the attention's outputs, ``attention`` queries and
keys. The peak prompts the segmenter, as in RefAM; the publication itself has no segmenter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from refseg_bench.backbones.dit import DiT
from refseg_bench.backbones.dit.text import tokenise
from refseg_bench.backbones.weights import Weights
from refseg_bench.methods.base import AttentionMethod, highest, peak
from refseg_bench.methods.pointing import PointOptions, content_cells, resized, track_point, unit_range
from refseg_bench.methods.refam.noun_phrases import needed, noun_phrase_parser
from refseg_bench.methods.refam.token_maps import Ask, MissingCaption, PromptMode, TokenMapReader, prompt_of
from refseg_bench.segmenters.base import Segmenter
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack

CONTRAST = ("background", "sky", "grass", "floor", "wall", "tree", "road")


@dataclass
class ConceptAttention(AttentionMethod):
    """Referring segmentation by concept maps."""

    knows: ClassVar[str] = "which concept a diffusion transformer finds in each patch"
    cache_folder: ClassVar[str] = "concept_attention"
    weights_alone: ClassVar[bool] = True

    backbone: DiT
    segmenter: Segmenter
    space: Literal["output", "attention"] = "output"  #: compare attention outputs, or queries and keys
    #: The expression's head noun, or the whole expression.
    concept: Literal["head_noun", "expression"] = "head_noun"
    contrast: list[str] = field(default_factory=lambda: list(CONTRAST))  #: concepts that compete with it
    parser: str = "auto"  #: finds the head noun (see ``noun_phrases``)
    #: prompt_mode, captions, missing_caption: what the transformer is prompted with.
    prompt_mode: PromptMode = "caption"
    captions: Path | None = None
    missing_caption: MissingCaption = "error"

    def weights(self) -> tuple[Weights, ...]:
        """The spaCy model that finds the head noun, where one does, and the captions."""
        return needed(self.parser if self.concept == "head_noun" else "rules", captions=self.captions)

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """Ground all expressions of a clip on its first frame."""
        stream = self.backbone.variant(text_mode="concept_stream", pooled="zeros")
        asks = []
        for expression in expressions:
            words = expression.text.lower().split()
            phrase = noun_phrase_parser(self.parser)(words) if self.concept == "head_noun" else None
            concept = words[phrase.head] if phrase else expression.text
            tokens = tokenise(stream.tokenizer, concept, self.contrast).firsts()
            prompt = prompt_of(clip, expression, self.prompt_mode, self.captions, self.missing_caption)
            asks.append(Ask(tokens, prompt))
        found = TokenMapReader(stream, self.cache, clip, space=self.space).read(0, asks)
        with self.segmenter.open(clip) as session:
            for expression, ask, maps in zip(expressions, asks, found, strict=True):
                grid_hw = maps.maps_THW[0]
                content = stream.content_share(clip.size)
                heat_HW = resized(grid_hw, clip.size, "bilinear", content)
                # A constant map points at nothing, which is an answer.
                point = highest(content_cells(grid_hw, content)[None], [0]) and peak(heat_HW, 0)
                track = MaskTrack.empty(clip.size, len(clip))
                if point is not None:
                    track, _ = track_point(session, point, heat_HW, PointOptions())
                absent = True if point is None else None
                pictures = {"heat": unit_range(grid_hw)[None]}
                details: dict[str, Any] = {"concept": ask.tokens.expression, "contrast": self.contrast}
                yield Grounding(expression, track, point, absent, pictures, {"heat": (0,)}, details)
