"""Ref-DAVIS17 in its converted layout; :mod:`~refseg_bench.datasets.davis_text` makes that layout.

Every object has four sentences: two people, each once from the first frame and once from the
full video. The expression id says which: ``id = 4 · (object's place in the video) + annotator``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refseg_bench.config.schema import knob
from refseg_bench.datasets.damage import Damage, Report
from refseg_bench.datasets.masks import LabelMapMasks, MaskSource
from refseg_bench.datasets.ref_youtube_vos import RunningNumbers

ANNOTATORS = 4
#: Pixel value of the unsupervised annotations that belongs to nobody.
VOID = 255


@dataclass
class RefDavis17(RunningNumbers):
    """Ref-DAVIS17: all four annotators, void pixels where the PNGs have them.

    The PNGs are preferred to ``mask_dict.pkl``, which has no void.
    """

    name: str = "ref_davis17"
    split: str = "valid"
    folders: list[str] = knob(
        factory=lambda: ["ref-davis", "ref_davis17", "davis17", "refdavis"], transient=True
    )
    meta: list[str] = field(default_factory=lambda: ["meta_expressions/{split}/meta_expressions.json"])
    frames: list[str] = field(default_factory=lambda: ["{split}/JPEGImages", "{split}"])
    masks: list[str] = field(
        default_factory=lambda: ["{split}/Annotations", "{split}/mask_dict.pkl", "{split}/mask_dict.json"]
    )
    hidden: list[str] = field(default_factory=list)
    protocols: list[str] = knob(factory=lambda: ["refdavis-anno"], transient=True)

    def attributes(
        self, video: str, key: str, raw: Mapping[str, Any], place: str, report: Report
    ) -> dict[str, Any] | None:
        """The common attributes, ``annotator`` (0 to 3) and ``object_index`` (from 0)."""
        attrs = super().attributes(video, key, raw, place, report)
        if attrs is None:
            return None
        if not key.isdecimal():
            report(
                Damage(
                    "bad expression id",
                    f"The expression id '{key}' is no number, so it names no annotator.",
                    file=self._loaded().file,
                    place=place,
                    cure="Convert the set again: `refseg data prepare ref_davis17 --from …`.",
                )
            )
            return None
        return {**attrs, "annotator": int(key) % ANNOTATORS, "object_index": int(key) // ANNOTATORS}

    def png_source(self, path: Path, base: Path) -> MaskSource:
        """Label maps with void."""
        return LabelMapMasks(path, base, void_label=VOID, follow_links=self.follow_links)
