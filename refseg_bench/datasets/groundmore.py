"""GroundMoRe: questions about a motion, whose answer shows only while its action lasts."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal

from refseg_bench.config.schema import option
from refseg_bench.datasets.files import Damage, Place, file_names, frame_key, png_names, safe_join
from refseg_bench.datasets.masks import LabelMapMasks, MaskSource, blank
from refseg_bench.datasets.meta_expressions import PICTURES, MetaExpressions
from refseg_bench.types import Clip, Expression, Target

#: ``q_type`` of a question.
TYPES = ("Causal", "Sequential", "Counterfactual", "Descriptive")
#: The end of a clip's name: from and to which minute and second of its source it was cut.
_CUT = re.compile(r"([0-9]{2})([0-9]{2})_[0-9]{4}$")
_TIME = re.compile(r"(?:(?:([0-9]{1,4}):)?([0-9]{1,4}):)?([0-9]{1,6}(?:\.[0-9]{1,6})?)")


class _Maps(LabelMapMasks):
    """``<video>/masks/frame_<index>.png``, or as the frame is named; none where no object shows."""

    def folder(self, clip: Clip) -> Path:
        return super().folder(clip) / "masks"

    def mask_name(self, clip: Clip, index: int, there: Collection[str]) -> str:
        name = f"frame_{index:06d}"
        return name if name in there else clip.frame_names[index]


@dataclass
class GroundMore(MetaExpressions):
    """GroundMoRe. An expression is a question, with a ``type``; an object is a value of its video's id maps.

    The truth is empty outside of the question's action. How its times are to be read is told by the authors'
    script alone, so that it is an option here; what is in force stands beside every score.
    """

    entries: ClassVar[str] = "questions"
    words: ClassVar[str] = "question"
    unsettled: ClassVar[tuple[str, ...]] = ("clock", "action_end", "fps")

    name: str = "groundmore"
    split: str = "test"
    folders: list[str] = option(["groundmore", "GroundMoRe"], transient=True)
    meta: list[str] = option(["groundmore_{split}.json", "{split}_v2.json"])
    frames: list[str] = option(["groundmore_videos", "annotations", "."])
    masks: list[str] = option(["groundmore_videos", "annotations", "."])
    hidden: list[str] = option([])
    protocols: list[str] = option(["groundmore"], transient=True)
    every_frame_listed: bool = option(False, transient=True)
    #: ``source`` = times count from the begin of the video that the clip was cut from, at the minute and
    #: second in the clip's name (0 if there are none), ``clip`` = from the begin of the clip.
    clock: Literal["source", "clip"] = "source"
    #: ``exclusive`` = the action's last frame is the one before its end, as in the authors' script;
    #: ``inclusive`` = the frame at its end.
    action_end: Literal["exclusive", "inclusive"] = "exclusive"
    fps: float = 6.0  #: frames per second

    def attributes(self, video: str, key: str, raw: Mapping[str, Any], at: Place) -> dict[str, Any] | None:
        """The fields as they are, ``type``, and ``action``: first and last frame of the action."""
        listed = raw.get("obj_id")
        ids = [part.strip() for part in listed.split(",")] if isinstance(listed, str) else listed
        attrs = super().attributes(video, key, {**raw, "obj_id": ids}, at)
        kind = at.field(raw, "q_type", str)
        times = [self._second(raw.get(name), at.at(name)) for name in ("action_start", "action_end")]
        if attrs is None or kind is None or None in times:
            return None
        if kind.capitalize() not in TYPES:
            at.at("q_type").tell("bad type", f"The question's q_type is {kind!r}.", allowed=TYPES)
            return None
        cut = _CUT.search(video) if self.clock == "source" else None
        begin = 60 * int(cut[1]) + int(cut[2]) if cut else 0
        first, last = (round((second - begin) * self.fps) for second in times if second is not None)
        return {
            **attrs,
            "type": kind.capitalize(),
            "action": [first, last - (self.action_end == "exclusive")],
        }

    def _second(self, value: Any, at: Place) -> float | None:
        found = _TIME.fullmatch(str(value)) if type(value) in (str, int, float) else None
        if found is None or (":" in str(value) and float(found[3]) >= 60):
            at.tell("bad time", f"The time is {value!r}.", allowed=["mm:ss", "hh:mm:ss", "seconds"])
            return None
        hours, minutes, seconds = found.groups(default="0")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)

    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """The objects of a question while its action lasts.

        Raises:
            DataError: the masks are damaged.
        """
        target = super().target(clip, expression)
        if target is None:
            return None
        first, last = expression.attrs["action"]
        if max(first, 0) > min(last, len(clip) - 1):
            # Told, not refused: an answer of nothing is right then, also where the clock was misread.
            at = self.place("videos", clip.id, self.entries, expression.id)
            told = (
                f"No frame of '{clip.id}' is in the action, frames {first} to {last} by clock={self.clock}."
            )
            at.tell("action outside", told, harmless=True)
        outside = blank(clip.size)
        objects = [
            replace(o, rles=tuple(c if first <= t <= last else outside for t, c in enumerate(o.rles)))
            for o in target.objects
        ]
        return replace(target, objects=tuple(objects))

    def taken(self) -> str:
        """How the actions' times are read."""
        return f"within each action: clock={self.clock}, action_end={self.action_end}, fps={self.fps:g}"

    def annotation_files(self, clip: Clip) -> None:
        """None: the maps say nothing of the actions."""

    def truth_files(self, clip: Clip) -> list[Path | None]:
        """The maps that are there; the actions are in the expression file."""
        source = self._source
        folder = source.folder(clip) if isinstance(source, LabelMapMasks) else None
        return [] if folder is None else [folder / f"{name}.png" for name in png_names(folder)]

    def png_source(self, path: Path) -> MaskSource:
        """One id map per frame, beside the frames."""
        place = self._frames_folder() or path
        return _Maps(place, self.home, follow_links=self.follow_links, sparse=True, asked=self._asked)

    def _asked(self, clip: Clip) -> list[str]:
        return [str(one) for e in self.expressions(clip) for one in e.attrs.get("obj_ids", ())]

    def frames_of(self, video: str) -> str:
        """A folder within the video's."""
        return f"{video}/images"

    def frame_names(self, video: str, record: Mapping[str, Any], at: Place) -> list[str] | None:
        """The pictures that are there, in their order: no file lists them."""
        folder = safe_join(self._frames_folder() or self.home, self.frames_of(video), at)
        found = {stem for stem, end in map(os.path.splitext, file_names(folder)) if end in PICTURES}
        if not found:
            self.tell(Damage("missing video", f"Video '{video}' has no frame.", folder))
        names = sorted(found, key=frame_key)
        # The maps are found by a frame's place among all.
        steps: list[int] = []
        for one, other in pairwise(names):
            moved = [
                (a, b) for a, b in zip_longest(frame_key(one), frame_key(other), fillvalue=("", -1)) if a != b
            ]
            if [a == b for (a, _), (b, _) in moved] != [True]:
                hint = "Take away what is none of its frames, such as a second copy."
                told = f"'{one}' and '{other}' are not named as frames of one video."
                self.tell(Damage("extra frame", told, folder, hint=hint))
                return names
            steps += [b[1] - a[1] for a, b in moved]
            if steps[-1] != steps[0]:
                told = f"'{one}' and '{other}' are {steps[-1]} apart, the first two frames {steps[0]}."
                self.tell(Damage("missing frame", told, folder))
                return names
        return names
