"""The raw sentence to a segmenter that takes words: the floor that every agent must beat.

With SAM 3 it is a concept segmenter's own reading of a sentence; with Grounding-DINO and SAM 2 the open
pair of everyday use. No language model rewrites anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from refseg_bench.methods.base import Method
from refseg_bench.segmenters.base import Segmenter
from refseg_bench.types import Clip, Expression, Grounding, MaskTrack


@dataclass
class Phrase(Method):
    """Every instance that the segmenter finds for the expression's words, tracked; their union answers."""

    segmenter: Segmenter  #: one that takes words

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """One grounding per expression, in the order given."""
        with self.segmenter.open(clip) as session:
            for expression in expressions:
                found = session.find(expression.text)
                track = MaskTrack.union([instance.track for instance in found], clip.size, len(clip))
                scores = [round(instance.score, 4) for instance in found]
                yield Grounding(expression, track, no_target=not found, details={"scores": scores})
