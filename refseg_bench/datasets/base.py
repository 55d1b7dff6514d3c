"""What a data set is, and a part of one.

Not here: where data sets lie and what is known of them (``catalogue``), reading their formats.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from refseg_bench.config.component import Component
from refseg_bench.datasets.issues import Damage, Report
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.types import Clip, Expression, MaskTrack, Target, sample_id


class Dataset(Component):
    """Yields clips, their expressions and (where public) their targets.

    A data set is a dataclass with ``clips``, ``expressions`` and ``target``; the other methods are hooks.
    """

    kind: ClassVar[str] = "dataset"

    #: The data set's name.
    name: str
    #: The split's name.
    split: str
    #: The folder given for its files; ``None`` = it is looked for, or there are none.
    root: Path | None = None
    #: Ids of the protocols a run is scored under unless it says otherwise.
    protocols: Sequence[str] = ()
    #: True if a frame file that no clip lists is damage (``refseg data verify``).
    every_frame_listed: bool = False

    @abstractmethod
    def clips(self) -> Sequence[Clip]:
        """All clips of the split, in the order of the dataset's own files."""

    @abstractmethod
    def expressions(self, clip: Clip) -> Sequence[Expression]:
        """The expressions of a clip, in the order of the dataset's own files."""

    @abstractmethod
    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """The truth of a sample, or ``None`` where the masks are hidden on a server."""

    # ── hooks of scoring ─────────────────────────────────────────────────────

    def no_truth(self, clip: Clip, expression: Expression) -> tuple[str, str]:
        """Why a sample has no target, and what to do instead."""
        return (
            f"The masks of '{sample_id(clip.id, expression.id)}' are not public.",
            "`refseg submission RUN` (or --predictions) makes the zip for the evaluation server.",
        )

    def annotation_files(self, clip: Clip) -> Sequence[Path | None] | None:
        """One id-map PNG (or ``None``) per frame, as DAVIS stores them; ``None`` = the set has no id maps."""
        return None

    def foreground(self, clip: Clip) -> MaskTrack | None:
        """The union of all annotated instances of a clip; ``None`` = of the targets."""
        return None

    def encodings(self) -> Mapping[str, int]:
        """How the mask files read since the last call are stored (``"0/255"`` → files)."""
        return {}

    def taken(self) -> str | None:
        """Where the truth was found, if that was a choice."""
        return None

    # ── hooks of `refseg data` ───────────────────────────────────────────────

    def base(self) -> Path | None:
        """The folder its files lie in, wherever that was found; ``None`` = not known.

        Raises:
            DataError: it is not there.
        """
        return self.root

    def survey(self, report: Report) -> Iterator[tuple[Clip | None, list[Expression]]]:
        """The clips with their expressions, with all damage reported instead of the first raised.

        Yields:
            A clip (``None`` where it can't be made) and its expressions.
        """
        for clip in self.clips():
            try:
                expressions = list(self.expressions(clip))
            except DataError as error:
                report(_damaged(clip, error))
                continue
            yield clip, expressions

    def check_targets(self, clip: Clip, expressions: Sequence[Expression], report: Report) -> None:
        """Read the targets of a clip, with all damage reported."""
        for expression in expressions:
            try:
                self.target(clip, expression)
            except DataError as error:
                report(_damaged(clip, error))


def _damaged(clip: Clip, error: DataError) -> Damage:
    if isinstance(error, Damage):
        return error
    return Damage("damaged clip", error.what, error.where or clip.id, hint=error.hint)


@dataclass
class LimitedDataset(Dataset):
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
    name: str = field(init=False)
    split: str = field(init=False)
    protocols: Sequence[str] = field(init=False)
    _clips: list[Clip] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.name, self.split, self.protocols = self.inner.name, self.inner.split, self.inner.protocols

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

    @override
    def base(self) -> Path | None:
        return self.inner.base()

    @override
    def no_truth(self, clip: Clip, expression: Expression) -> tuple[str, str]:
        return self.inner.no_truth(clip, expression)

    @override
    def annotation_files(self, clip: Clip) -> Sequence[Path | None] | None:
        return self.inner.annotation_files(clip)

    @override
    def foreground(self, clip: Clip) -> MaskTrack | None:
        return self.inner.foreground(clip)

    @override
    def encodings(self) -> Mapping[str, int]:
        return self.inner.encodings()

    @override
    def taken(self) -> str | None:
        return self.inner.taken()

    def _check_samples(self, clips: Sequence[Clip]) -> None:
        known = {sample_id(c.id, e.id) for c in clips for e in self.inner.expressions(c)}
        unknown = sorted(set(self.samples) - known)
        if unknown:
            raise ConfigError(
                f"limit.samples names samples the split does not have: {', '.join(unknown[:5])}",
                where=f"{self.name}, split {self.split}",
                hint="A sample's id is CLIP/EXPRESSION, as `refseg status` and the score tables spell it.",
            )
