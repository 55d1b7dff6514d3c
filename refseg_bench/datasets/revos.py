"""ReVOS: video names with slashes, types of expressions, and the foreground of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refseg_bench.config.schema import option
from refseg_bench.datasets.files import cache_root
from refseg_bench.datasets.index import Entries, open_entries
from refseg_bench.datasets.issues import Place
from refseg_bench.datasets.masks import checked_track
from refseg_bench.datasets.meta_expressions import MetaExpressions
from refseg_bench.types import Clip, MaskTrack

#: ``type_id`` of an expression.
TYPES = ("referring", "reasoning", "absent")


@dataclass
class Revos(MetaExpressions):
    """ReVOS. Expressions carry ``type_id`` and ``type``: referring, reasoning or absent.

    Attributes:
        foreground_masks: union of all annotated instances per video, for the robustness score.
    """

    name: str = "revos"
    split: str = "valid"
    folders: list[str] = option(factory=lambda: ["ReVOS", "revos"], transient=True)
    meta: list[str] = field(
        default_factory=lambda: ["meta_expressions_{split}_.json", "meta_expressions_{split}__llamavid.json"]
    )
    frames: list[str] = field(default_factory=lambda: ["JPEGImages", "."])
    masks: list[str] = field(default_factory=lambda: ["mask_dict.json", "mask_dict.pkl"])
    hidden: list[str] = field(default_factory=list)
    protocols: list[str] = option(factory=lambda: ["revos-binary"], transient=True)
    every_frame_listed: bool = option(False, transient=True)
    foreground_masks: list[str] = field(default_factory=lambda: ["mask_dict_foreground.json"])

    def attributes(self, video: str, key: str, raw: Mapping[str, Any], at: Place) -> dict[str, Any] | None:
        """The common attributes with ``type`` in words."""
        attrs = super().attributes(video, key, raw, at)
        if attrs is None or "type_id" not in raw:
            return attrs
        type_id = raw["type_id"]
        if isinstance(type_id, bool) or not isinstance(type_id, int) or not 0 <= type_id < len(TYPES):
            allowed = [f"{number} ({name})" for number, name in enumerate(TYPES)]
            at.at("type_id").tell("bad type", f"The expression's type_id is {type_id!r}.", allowed=allowed)
            return None
        return {**attrs, "type": TYPES[type_id]}

    _foreground: Entries | None = field(default=None, init=False, repr=False, compare=False)

    def foreground(self, clip: Clip) -> MaskTrack | None:
        """Union of all annotated instances of a clip; ``None`` where the copy lacks the file.

        Raises:
            DataError: the clip has no entry, or its masks are damaged.
        """
        if self._foreground is None:
            base = self._loaded().base
            path = next((base / p for p in self.foreground_masks if (base / p).is_file()), None)
            if path is None:
                return None
            self._foreground = open_entries(path, cache_root(self.cache))
        at, entry = Place(self._foreground.file, f"video {clip.id}"), self._foreground.get(clip.id)
        at.holds(entry, dict)
        return checked_track(at.field(entry, "masks_rle", list), clip, at)
