"""ReasonVOS: expressions in a list whose ids may repeat, one mask folder per object.

Two forms are in use: the official one, and DecAF's rewriting of it to the common JSON shape. The
official form is read through the same renumbering, so that both give the same expression ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg_bench.config.schema import option
from refseg_bench.datasets.files import Place, bad_name
from refseg_bench.datasets.masks import MaskSource, ObjectFolders
from refseg_bench.datasets.meta_expressions import MetaExpressions


def renumber(expressions: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Give every expression of a video its own id, as DecAF does.

    The list is walked in order. An expression whose id is taken pushes the earlier holder out,
    which at once moves to the largest present id plus one; it can be pushed out again there.

    Args:
        expressions: entries with ``exp_id``, a whole number (or its text).

    Returns:
        Entries by their new id, in the order in which they were stored last.
    """
    out: dict[str, Mapping[str, Any]] = {}
    for entry in expressions:
        key = str(entry["exp_id"])
        earlier = out.pop(key, None)
        out[key] = entry
        if earlier is not None:
            out[str(max(int(k) for k in out) + 1)] = earlier
    return out


@dataclass
class ReasonVos(MetaExpressions):
    """ReasonVOS, in the official form or DecAF's. It has one split, ``test``.

    In both, an expression has ``is_sent`` (sentence or phrase); in the official form also its
    own ``exp_id`` and ``key``, the official tool's name of the sample. Frames without a PNG
    of the object are not annotated and not scored.
    """

    name: str = "reasonvos"
    split: str = "test"
    folders: list[str] = option(["ReasonVOS", "reasonvos"], transient=True)
    meta: list[str] = option(["meta_expressions.json", "meta_expressions_v2.json"])
    frames: list[str] = option(["JPEGImages", "."])
    masks: list[str] = option(["Annotations", "mask_dict_v2.pkl", "mask_dict.pkl", "mask_dict.json"])
    hidden: list[str] = option([])
    protocols: list[str] = option(["reasonvos"], transient=True)
    every_frame_listed: bool = option(False, transient=True)

    def read_videos(self) -> dict[str, dict[str, Any]]:
        """The videos in the common shape, whichever form the file has."""
        return {
            video: self._common(video, record, self.place("videos", video))
            if isinstance(record, dict) and isinstance(record.get("expressions"), list)
            else record
            for video, record in super().read_videos().items()
        }

    def _common(self, video: str, record: Mapping[str, Any], at: Place) -> dict[str, Any]:
        source = at.field(record, "source", str)
        readable: list[dict[str, Any]] = []
        for index, raw in enumerate(record["expressions"]):
            here = at.at(f"expressions[{index}]")
            if not here.holds(raw, dict):
                continue
            if not str(raw.get("exp_id", "")).isdecimal():
                told = f"'exp_id' is {raw.get('exp_id')!r}, not a whole number."
                hint = "Restore the original file (fixed on 27 December 2024)."
                here.at("exp_id").tell("bad expression id", told, hint)
                continue
            text = here.field(raw, "exp_text", str)
            if text is None:
                continue
            object_id = str(raw.get("obj_id", ""))
            anno_id = f"{source}_{video}_{object_id}"
            if not object_id or "/" in object_id or bad_name(anno_id) is not None:
                told = f"'obj_id' is {raw.get('obj_id')!r}, which names no mask folder."
                here.at("obj_id").tell("bad object id", told)
                continue
            extra = {k: v for k, v in raw.items() if k not in ("exp_text", "obj_id")}
            # The official tool's name of the sample, to find it in that tool's results.
            extra["key"] = f"{anno_id}_{raw['exp_id']}"
            readable.append({**extra, "exp": text, "obj_id": [object_id], "anno_id": [anno_id]})
        return {**record, "expressions": renumber(readable)}

    def png_source(self, path: Path) -> MaskSource:
        """One folder per object."""
        return ObjectFolders(path, self.home, follow_links=self.follow_links)
