"""Write data sets in the public formats, as small as the readers need them.

The readers are tested against what these functions write, and the sample sets that ship with
the package are written by them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refseg_bench.errors import DataError
from refseg_bench.types import MaskTrack


@dataclass(frozen=True)
class VideoRecord:
    """One clip to be written.

    Attributes:
        name: folder name of the clip (12 hex digits in MeViS).
        frames_THWC: uint8 RGB frames.
        objects: one visible-mask track per annotated object.
        expressions: ``(text, indices into objects, extra JSON keys)``; no index = target absent.
        frame_names: as in the JSON; ``00000``, ``00001`` … if empty.
    """

    name: str
    frames_THWC: NDArray[np.uint8]
    objects: Sequence[MaskTrack]
    expressions: Sequence[tuple[str, Sequence[int], Mapping[str, Any]]]
    frame_names: Sequence[str] = field(default_factory=tuple)


def write_meta_expressions_set(
    root: Path, split: str, videos: Iterable[VideoRecord], *, jpeg_quality: int = 90
) -> dict[str, int]:
    """Write clips in MeViS' layout: frames, ``meta_expressions.json`` and ``mask_dict.json``.

    Objects are numbered through the whole split (``anno_id``); a frame in which an object does
    not show is ``null`` in ``mask_dict.json``, as MeViS writes it. Keys given as extra in an
    expression stand beside ``exp``, ``obj_id`` and ``anno_id``.

    Args:
        root: folder of the data set; made if it is not there.
        split: name of the split's folder.
        videos: the clips.
        jpeg_quality: 1 to 95.

    Returns:
        How many ``videos``, ``frames``, ``objects`` and ``expressions`` were written.

    Raises:
        DataError: a track or frame list of another length than the clip, or an expression
            about an object that is not there.
    """
    folder = root / split
    meta: dict[str, Any] = {}
    masks: dict[str, list[dict[str, Any] | None]] = {}
    counts = {"videos": 0, "frames": 0, "objects": 0, "expressions": 0}
    for number, video in enumerate(videos):
        names = list(video.frame_names) or [f"{i:05d}" for i in range(len(video.frames_THWC))]
        _check(video, names)
        frame_folder = folder / "JPEGImages" / video.name
        frame_folder.mkdir(parents=True, exist_ok=True)
        for name, frame in zip(names, video.frames_THWC, strict=True):
            Image.fromarray(frame).save(frame_folder / f"{name}.jpg", quality=jpeg_quality, optimize=True)
        first = counts["objects"]
        for offset, track in enumerate(video.objects):
            masks[str(first + offset)] = [
                {"size": list(track.size), "counts": counts_.decode("ascii")}
                if counts_ is not None and area
                else None
                for counts_, area in zip(track.rles, track.area(), strict=True)
            ]
        meta[video.name] = {
            "vid_id": number,
            "frames": names,
            "expressions": {
                str(i): {"exp": text, "obj_id": list(objs), "anno_id": [first + o for o in objs], **extra}
                for i, (text, objs, extra) in enumerate(video.expressions)
            },
        }
        counts["videos"] += 1
        counts["frames"] += len(names)
        counts["objects"] += len(video.objects)
        counts["expressions"] += len(video.expressions)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta_expressions.json").write_text(
        json.dumps({"videos": meta}, indent=1) + "\n", encoding="utf-8"
    )
    (folder / "mask_dict.json").write_text(json.dumps(masks, separators=(",", ":")) + "\n", encoding="utf-8")
    return counts


def _check(video: VideoRecord, names: Sequence[str]) -> None:
    length = len(video.frames_THWC)
    if len(names) != length or any(len(track) != length for track in video.objects):
        raise DataError(
            f"Clip '{video.name}' has {length} frames, {len(names)} frame names and tracks of "
            f"{sorted({len(track) for track in video.objects})} frames.",
            cure="Give one name and one mask (or None) per frame.",
        )
    for text, objects, _ in video.expressions:
        if any(not 0 <= o < len(video.objects) for o in objects):
            raise DataError(
                f"Expression '{text}' of clip '{video.name}' means objects {list(objects)}.",
                allowed=[f"0 to {len(video.objects) - 1}"],
                cure="Use indices into the clip's objects.",
            )
