"""Long-RVOS: clips of a minute, one folder of PNGs per object, expressions of three types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg_bench.config.schema import option
from refseg_bench.datasets.files import Place
from refseg_bench.datasets.masks import MaskSource, ObjectFolders
from refseg_bench.datasets.meta_expressions import MetaExpressions

#: ``type`` of an expression.
TYPES = ("static", "dynamic", "hybrid")


@dataclass
class LongRvos(MetaExpressions):
    """Long-RVOS. An expression means one object and has a ``type``: static, dynamic or hybrid.

    An object has no PNG of the frames that it doesn't show in.
    """

    name: str = "long_rvos"
    split: str = "valid"
    folders: list[str] = option(["long_rvos", "long_rvos_split"], transient=True)
    masks: list[str] = option(["{split}/Annotations"])
    hidden: list[str] = option([])
    protocols: list[str] = option(["long-rvos"], transient=True)
    every_frame_listed: bool = option(False, transient=True)

    def attributes(self, video: str, key: str, raw: Mapping[str, Any], at: Place) -> dict[str, Any] | None:
        """The common attributes; ``anno_ids`` are the objects' folders."""
        attrs = super().attributes(video, key, raw, at)
        if attrs is None or at.field(raw, "type", str) is None:
            return None
        if raw["type"] not in TYPES:
            at.at("type").tell("bad type", f"The expression's type is {raw['type']!r}.", allowed=TYPES)
            return None
        if "obj_ids" in attrs:
            attrs["anno_ids"] = [f"{video}/{number}" for number in attrs["obj_ids"]]
        return attrs

    def png_source(self, path: Path) -> MaskSource:
        """One folder per object below its video's."""
        return ObjectFolders(path, self.home, follow_links=self.follow_links, sparse=True)
