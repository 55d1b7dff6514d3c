"""Ref-YouTube-VOS: which of the listed videos are the valid split, and numbers for its mask file.

The published ``valid`` list holds all 507 videos that were once held out; the competition split
them into 202 valid and 305 test videos. Valid = the listed videos that are not test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg_bench.config.schema import option
from refseg_bench.datasets.files import Damage, Place, read_json, read_text
from refseg_bench.datasets.masks import RunLengthMasks, Wanted
from refseg_bench.datasets.meta_expressions import MetaExpressions
from refseg_bench.types import Expression

VALID_VIDEOS = 202


def running_numbers(videos: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Numbers of expressions in the ``mask_dict.pkl`` of VISA and its successors.

    The expression files of Ref-YouTube-VOS and Ref-DAVIS17 have no ``anno_id``: it is the running
    number over the sorted videos and, in each, the expression ids sorted *as text*
    ("0", "1", "10", "11", "2", …).
    """
    pairs = [(video, key) for video in sorted(videos) for key in sorted(_expression_ids(videos[video]))]
    return {pair: str(number) for number, pair in enumerate(pairs)}


def _expression_ids(record: Any) -> Sequence[str]:
    expressions = record.get("expressions") if isinstance(record, dict) else None
    return list(expressions) if isinstance(expressions, dict) else ()


@dataclass
class RunningNumbers(MetaExpressions):
    """A set in Ref-YouTube-VOS' layout: its mask dictionary is keyed by the expression's running number."""

    split: str = "valid"
    meta: list[str] = option(["meta_expressions/{split}/meta_expressions.json"])
    masks: list[str] = option(["{split}/Annotations", "{split}/mask_dict.pkl", "{split}/mask_dict.json"])

    _numbered = False  # any expression, by its running number

    def read_videos(self) -> dict[str, dict[str, Any]]:
        """The videos of the expression file; numbers are given before any are left out."""
        videos = super().read_videos()
        self._numbers = running_numbers(videos)
        return videos

    def attributes(self, video: str, key: str, raw: Mapping[str, Any], at: Place) -> dict[str, Any] | None:
        """The common attributes; ``anno_ids`` is the running number where the file has none."""
        attrs = super().attributes(video, key, raw, at)
        if attrs is not None and "obj_ids" in attrs and "anno_ids" not in attrs:
            attrs["anno_ids"] = [self._numbers[video, key]]
            self._numbered = True
        return attrs

    def wanted(self, expression: Expression) -> list[Wanted] | None:
        """The common objects; a dictionary of more masks than there are expressions has other numbers."""
        source = self._source
        if self._numbered and isinstance(source, RunLengthMasks) and len(source.entries) > len(self._numbers):
            told = (
                f"It has {len(source.entries)} entries, one per expression; the file, {len(self._numbers)}."
            )
            self.tell(Damage("mask count differs", told, source.path))
        return super().wanted(expression)


@dataclass
class RefYoutubeVos(RunningNumbers):
    """Ref-YouTube-VOS. Annotated frames are every 5th of the video, as listed; obj_id is text.

    ``valid`` keeps the 202 videos that are not in the test split. Which those are is read from the
    test expression file, or from a list of names; a ``valid`` file that holds no more than 202
    videos is taken as it is.
    """

    name: str = "ref_youtube_vos"
    folders: list[str] = option(["ref-youtube-vos", "refer-youtube-vos", "refytvos", "rvos"], transient=True)
    every_frame_listed: bool = option(False, transient=True)
    #: Test expression files, looked for in this order.
    test: list[str] = option(["meta_expressions/test/meta_expressions.json"])
    #: Lists of the valid videos (text, one a line, or a JSON list).
    valid_list: list[str] = option(
        [f"{place}valid_202.{end}" for place in ("meta_expressions/valid/", "") for end in ("txt", "json")]
    )

    def layout(self) -> list[str]:
        """The common files, and the test expression file."""
        return [*super().layout(), *self.test]

    def read_videos(self) -> dict[str, dict[str, Any]]:
        """The videos of the split.

        Raises:
            Damage: ``valid`` lists more than 202 videos and nothing says which are test, or what
                says so leaves another number.
        """
        videos = super().read_videos()
        if self.split != "valid":
            return videos
        valid = next((path for p in self.valid_list if (path := self.home / p).is_file()), None)
        test = next((path for p in self.test if (path := self.home / p).is_file()), None)
        if valid is not None:
            source, chosen = valid, _names(valid)
        elif test is not None:
            source, chosen = test, set(videos) - set(_videos(test))
        elif len(videos) > VALID_VIDEOS:
            raise Damage(
                "valid split unknown",
                f"The valid file lists {len(videos)} videos; only {VALID_VIDEOS} of them are valid.",
                self.file,
                "videos",
                f"Put the test expression file at {self.home / self.test[0]}, "
                f"or the {VALID_VIDEOS} names, one a line, at {self.home / self.valid_list[0]}.",
            )
        else:
            return videos
        kept = {video: record for video, record in videos.items() if video in chosen}
        if len(videos) > VALID_VIDEOS and len(kept) != VALID_VIDEOS:
            told = f"{source.name} leaves {len(kept)} of {len(videos)} videos, {VALID_VIDEOS} are valid."
            hint = "Use the test list of the same release as the valid file."
            raise Damage("valid split unknown", told, source, hint=hint)
        return kept


def _videos(path: Path) -> list[str]:
    whole = read_json(path)
    videos = whole.get("videos") if isinstance(whole, dict) else None
    if not isinstance(videos, dict):
        raise Damage("wrong type", "The file has no object 'videos'.", path, "the file")
    return list(videos)


def _names(path: Path) -> set[str]:
    if path.suffix != ".json":
        return {line.strip() for line in read_text(path).splitlines() if line.strip()}
    whole = read_json(path)
    if isinstance(whole, list) and all(isinstance(name, str) for name in whole):
        return set(whole)
    return set(_videos(path))
