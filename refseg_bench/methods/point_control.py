"""The control row of a table: another method's point, the same segmenter as everybody else.

Methods differ in where they point and in what they make of it. This keeps the first and fixes the
second: whatever the source's own masks are, its peak becomes one positive click.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from refseg_bench.config import schema
from refseg_bench.errors import RefsegError
from refseg_bench.methods.base import Method, click, track_prompts
from refseg_bench.segmenters.base import Segmenter
from refseg_bench.types import Clip, Expression, Grounding


@dataclass
class PointControl(Method):
    """One click at the source's peak."""

    source: Method  #: the method that points, as a config node: what the config layer checks and completes
    segmenter: Segmenter  #: handed to the source, and used for the click
    backbone: Any = None  #: handed to the source

    def predict(self, clip: Clip, expressions: Sequence[Expression]) -> Iterator[Grounding]:
        """The source's groundings, each with its track replaced by the click's.

        Raises:
            RefsegError: the source has no heat map to take a point from.
        """
        with self.segmenter.open(clip) as session:
            for found in self.inner.predict(clip, expressions):
                point = found.point
                if point is None and not found.no_target:
                    raise RefsegError(
                        f"{type(self.inner).__name__} gives no point for '{found.expression.text}'.",
                        hint="Take a source that makes heat maps.",
                    )
                # A source that finds nothing to point at has said so.
                frame, clicks = (0, []) if point is None else (point.frame, [click(point)])
                track = track_prompts(session, frame, clicks)
                yield replace(found, track=track, no_target=None if clicks else True)

    @cached_property
    def inner(self) -> Method:
        """The source, made at its first use."""
        node = cast(Mapping[str, Any], self.source)
        ready = {"backbone": self.backbone, "segmenter": self.segmenter}
        inner: Method = schema.build(node, "method.source", "method", **ready)
        inner.cache_root = self.cache_root
        return inner

    def weights(self) -> Sequence[Any] | None:
        """The source's own."""
        return self.inner.weights()

    def report(self) -> dict[str, Any]:
        """The source's own record."""
        return dict(self.inner.report())
