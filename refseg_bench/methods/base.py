"""What a method is, and what methods share: the loop over expressions, clicks, from prompts to a track.

No grounding here: a method's own idea lives in its own module.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refseg_bench.cache import Cache, digest
from refseg_bench.config import schema
from refseg_bench.segmenters.base import Prompt, SegmenterSession
from refseg_bench.types import Clip, Expression, Grounding, HeatPoint, MaskTrack, Target


class Method(schema.Component):
    """Turns a clip and its expressions into groundings.

    A method is a dataclass with ``predict``; its fields named ``backbone`` and ``segmenter`` are handed in
    ready-made. The other methods are hooks.
    """

    kind: ClassVar[str] = "method"

    #: True for a bound: a method that doesn't try (all, nothing, the truth). No table takes it for the best.
    bound: ClassVar[bool] = False
    #: True if it is given the truth: before the first clip ``targets`` is set to the data set's ``target``.
    sees_targets: ClassVar[bool] = False
    targets: Callable[[Clip, Expression], Target | None] | None = None
    #: What it answers from, in a line of a table; empty = nobody has said.
    knows: ClassVar[str] = ""
    #: Options (dotted) and values under which its raw attention answers; empty = it has no such row.
    raw_options: ClassVar[Mapping[str, Any]] = {}
    #: What to add to the command so that it may answer "absent", where it can but doesn't by default.
    absence_rule: ClassVar[str] = ""

    @abstractmethod
    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """Yield one :class:`Grounding` per expression, in any order, each as soon as it exists.

        A clip comes with all of its open expressions, because that is where work is shared.
        """

    @property
    def uses_segmenter(self) -> bool:
        """Whether it opens the segmenter it is handed, under its present options."""
        return True

    def reads(self, clip: Clip) -> Sequence[int]:
        """Frames of a clip that it looks at first: on a GPU they are decoded during the clip before."""
        return ()

    @classmethod
    def capture_digest(cls, values: Mapping[str, Any]) -> str | None:
        """Names what :meth:`capture` stores under a frozen config; ``None`` = there is nothing to share.

        Runs of one submission with equal digests over the same samples share one capture.
        """
        return None

    def capture(self, clip: Clip, expressions: Sequence[Expression]) -> None:
        """Fill the cache that ``predict`` reads, and predict nothing."""

    def cached(self, clip: Clip, texts: Sequence[str]) -> int | None:
        """How many of the texts need no model call, by the cache; ``None`` = no cache. Loads no weights."""
        return None


class AttentionMethod(Method):
    """A method that reads attention of its backbone through a cache on disk."""

    #: Folder of the cache below ``cache_root``.
    cache_folder: ClassVar[str]
    #: Options that the cached maps depend on, where :meth:`capture` makes them; others act on finished maps.
    makes_maps: ClassVar[tuple[str, ...]] = ()
    #: Read and write the cache.
    use_cache: bool = True

    @cached_property
    def cache(self) -> Cache:
        """Where attention is kept, apart for other code; without a folder nothing is remembered."""
        root = self.cache_root if self.use_cache else None
        makers: Iterable[schema.Component] = filter(None, (self, schema.parts(self).get("backbone")))
        code = "".join(schema.code(type(part)) for part in makers)
        return Cache(None if root is None else root / self.cache_folder / code)

    @classmethod
    def capture_digest(cls, values: Mapping[str, Any]) -> str | None:
        """Names what :meth:`capture` caches under a frozen config: model and options the maps depend on."""
        if not cls.makes_maps:
            return None
        method, backbone = values["method"], values["backbone"]
        lasting = schema.lasting(schema.locate(str(backbone[schema.TARGET]), "backbone"), backbone)
        made = {name: method[name] for name in cls.makes_maps}
        # A run that keeps no cache has nothing to share.
        apart = None if method.get("use_cache", True) else dict(method)
        return digest({"backbone": lasting, "method": made, "apart": apart})

    def report(self) -> Mapping[str, Any]:
        """How often the cache had what was asked for: sweeps on a warm cache make no model call."""
        return {"cache_hits": self.cache.hits, "cache_misses": self.cache.misses}


@dataclass
class PerExpression(Method):
    """A method with nothing to share between the expressions of a clip.

    A method that shares work (frame features, a model's visual prefix) writes its own ``predict``.
    """

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """One grounding per expression, in the order given."""
        for expression in expressions:
            yield self.ground(clip, expression)

    @abstractmethod
    def ground(self, clip: Clip, expression: Expression) -> Grounding:
        """Answer one expression."""


def click(point: HeatPoint) -> Prompt:
    """One positive point prompt where a method would click."""
    return Prompt.click(point.x, point.y)


def track_prompts(session: SegmenterSession, frame: int, prompts: Sequence[Prompt]) -> MaskTrack:
    """The union of the prompted objects over the clip.

    A clip of one frame takes each prompt's candidate with the highest predicted IoU; a video leaves the
    choice to the segmenter's own tracking and propagates both ways from the prompted frame. No prompt gives
    an empty track.
    """
    clip = session.clip
    if not prompts:
        return MaskTrack.empty(clip.size, len(clip))
    if len(clip) == 1:
        found: Iterable[tuple[int, NDArray[np.bool_]]] = [
            (0, np.stack([candidates.best()[0] for candidates in session.segment(0, prompts)]))
        ]
    else:
        found = session.propagate(frame, prompts, direction="both")
    unions = ((index, np.asarray(masks_NHW.any(axis=0))) for index, masks_NHW in found)
    return MaskTrack.gather(unions, clip.size, [None] * len(clip))


def evenly(length: int, count: int) -> list[int]:
    """At most ``count`` places from 0 to ``length`` - 1, evenly spaced, both ends among them.

    >>> evenly(9, 4), evenly(3, 5)
    ([0, 3, 5, 8], [0, 1, 2])
    """
    return [int(place) for place in np.linspace(0, length - 1, min(count, length)).round()]


def highest(heat_THW: NDArray[np.floating], frames: Sequence[int]) -> HeatPoint | None:
    """The peak of a map per frame, or ``None`` where they are constant: such a map points nowhere."""
    if heat_THW.max() == heat_THW.min():
        return None
    first = int(np.argmax(heat_THW.max(axis=(1, 2))))
    return peak(heat_THW[first], frames[first])


def peak(heat_HW: NDArray[np.floating], frame: int) -> HeatPoint:
    """The highest cell of one map (the first in row-major order on ties), as a relative point."""
    height, width = heat_HW.shape
    row, column = divmod(int(np.argmax(heat_HW)), width)
    return HeatPoint(frame, (row + 0.5) / height, (column + 0.5) / width, float(heat_HW[row, column]))
