"""A part of a dataset, as ``limit`` describes it; itself a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from refseg_bench.errors import ConfigError
from refseg_bench.types import Clip, Dataset, Expression, Target, sample_id


@dataclass
class Limited:
    """The first clips, the first expressions of each, or named samples only.

    Attributes:
        inner: the whole dataset.
        clips_limit: the first N clips that have an expression left.
        expressions_limit: the first N expressions of each clip.
        samples: only these sample ids (applied before the counts); empty = all.
    """

    inner: Dataset
    clips_limit: int | None = None
    expressions_limit: int | None = None
    samples: Sequence[str] = ()
    _clips: list[Clip] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The whole dataset's name."""
        return self.inner.name

    @property
    def split(self) -> str:
        """The whole dataset's split."""
        return self.inner.split

    @property
    def protocols(self) -> Sequence[str]:
        """The whole dataset's protocols."""
        return self.inner.protocols

    def clips(self) -> Sequence[Clip]:
        """The clips that have an expression in the part.

        Raises:
            ConfigError: ``samples`` names one the split does not have.
        """
        if self._clips is None:
            clips = [clip for clip in self.inner.clips() if self.expressions(clip)]
            if self.samples:
                self._check_samples(clips)
            self._clips = clips[: self.clips_limit]
        return self._clips

    def expressions(self, clip: Clip) -> Sequence[Expression]:
        """The clip's expressions in the part."""
        expressions = self.inner.expressions(clip)
        if self.samples:
            chosen = set(self.samples)
            expressions = [e for e in expressions if sample_id(clip.id, e.id) in chosen]
        return expressions[: self.expressions_limit]

    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """The truth of a sample."""
        return self.inner.target(clip, expression)

    def _check_samples(self, clips: Sequence[Clip]) -> None:
        known = {sample_id(c.id, e.id) for c in clips for e in self.inner.expressions(c)}
        unknown = sorted(set(self.samples) - known)
        if unknown:
            raise ConfigError(
                f"limit.samples names samples the split does not have: {', '.join(unknown[:5])}",
                where=f"{self.name}, split {self.split}",
                hint="A sample's id is CLIP/EXPRESSION, as `refseg status` and the score tables spell it.",
            )
