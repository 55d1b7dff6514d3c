"""ReVOS: video names with slashes, types of expressions, and the foreground of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from refseg_bench.config.schema import option
from refseg_bench.datasets.files import Place, cache_root
from refseg_bench.datasets.index import Entries, open_entries
from refseg_bench.datasets.masks import checked_track
from refseg_bench.datasets.meta_expressions import MetaExpressions
from refseg_bench.types import Clip, MaskTrack

#: ``type_id`` of an expression.
TYPES = ("referring", "reasoning", "absent")


@dataclass
class Revos(MetaExpressions):
    """ReVOS. Expressions carry ``type_id`` and ``type``: referring, reasoning or absent."""

    name: str = "revos"
    split: str = "valid"
    folders: list[str] = option(["ReVOS", "revos"], transient=True)
    meta: list[str] = option(["meta_expressions_{split}_.json", "meta_expressions_{split}__llamavid.json"])
    frames: list[str] = option(["JPEGImages", "."])
    masks: list[str] = option(["mask_dict.json", "mask_dict.pkl"])
    hidden: list[str] = option([])
    protocols: list[str] = option(["revos-binary"], transient=True)
    every_frame_listed: bool = option(False, transient=True)
    #: Union of all annotated instances per video, for the robustness score.
    foreground_masks: list[str] = option(["mask_dict_foreground.json"])

    def attributes(self, video: str, key: str, raw: Mapping[str, Any], at: Place) -> dict[str, Any] | None:
        """The common attributes with ``type`` in words."""
        attrs = super().attributes(video, key, raw, at)
        if attrs is None or "type_id" not in raw:
            return attrs
        type_id = raw["type_id"]
        if type(type_id) is not int or not 0 <= type_id < len(TYPES):
            allowed = [f"{number} ({name})" for number, name in enumerate(TYPES)]
            at.at("type_id").tell("bad type", f"The expression's type_id is {type_id!r}.", allowed=allowed)
            return None
        return {**attrs, "type": TYPES[type_id]}

    def layout(self) -> list[str]:
        """The common files, and the foreground."""
        return [*super().layout(), *self.foreground_masks]

    def foreground(self, clip: Clip) -> MaskTrack | None:
        """Union of all annotated instances of a clip; ``None`` where the copy lacks the file."""
        entries = self._foreground
        if entries is None:
            return None
        at, entry = Place(entries.file, f"video {clip.id}"), entries[clip.id]
        at.holds(entry, dict)
        return checked_track(at.field(entry, "masks_rle", list), clip, at)

    @cached_property
    def _foreground(self) -> Entries | None:
        path = next((self.home / p for p in self.foreground_masks if (self.home / p).is_file()), None)
        return None if path is None else open_entries(path, cache_root(self.cache))
