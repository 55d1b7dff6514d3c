"""Write data sets in the public formats, as small as the readers need them.

The readers are tested against what these functions write, and the sample sets that ship with
the package are written by them.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

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


# ── RefCOCO family ───────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ImageRecord:
    """One image to be written.

    Attributes:
        file_name: name of its file.
        image_HWC: uint8 RGB.
        segmentations: one per annotated object: polygons ``[[x, y, …], …]`` or an RLE.
        refs: ``(indices into segmentations, sentences)``; no index = nothing is meant (gRefCOCO).
        split: the split its refs belong to.
        image_id: COCO id; numbered if omitted.
        jpeg: the encoded file, written as it is instead of encoding ``image_HWC``.
    """

    file_name: str
    image_HWC: NDArray[np.uint8]
    segmentations: Sequence[Any]
    refs: Sequence[tuple[Sequence[int], Sequence[str]]]
    split: str = "val"
    image_id: int | None = None
    jpeg: bytes | None = None


class _Python2Pickler(pickle._Pickler):
    """Protocol 2 as Python 2 wrote it: texts are byte strings, to be read as Latin-1."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    write: Callable[[bytes], None]
    memoize: Callable[[object], None]

    def _save_text(self, text: str) -> None:
        raw = text.encode("latin1")
        self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)
        self.memoize(text)

    dispatch[str] = _save_text


def write_python2_pickle(path: Path, value: Any) -> None:
    """Pickle plain data as Python 2 did (protocol 2, byte strings in Latin-1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        _Python2Pickler(file, protocol=2).dump(value)


def write_refcoco_set(
    root: Path,
    images: Iterable[ImageRecord],
    *,
    split_by: str = "unc",
    generalised: bool = False,
    image_folder: str = "images",
    jpeg_quality: int = 92,
) -> dict[str, int]:
    """Write images in RefCOCO's layout: ``refs(AUTHOR).p``, ``instances.json`` and the files.

    Args:
        root: folder of the data set; made if it is not there.
        images: the images.
        split_by: who made the splits, part of the file name.
        generalised: gRefCOCO's spelling: ``grefs(AUTHOR).json``, lists of ids, ``[-1]`` = no target.
        image_folder: where the files go, relative to ``root``.
        jpeg_quality: 1 to 95.

    Returns:
        How many ``images``, ``annotations``, ``refs`` and ``sentences`` were written.

    Raises:
        DataError: a ref about an object that is not there.
    """
    refs: list[dict[str, Any]] = []
    instances: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    instances["categories"].append({"id": 1, "name": "object", "supercategory": "object"})
    counts = {"images": 0, "annotations": 0, "refs": 0, "sentences": 0}
    for number, record in enumerate(images):
        image_id = number + 1 if record.image_id is None else record.image_id
        height, width = record.image_HWC.shape[:2]
        path = root / image_folder / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        if record.jpeg is not None:
            path.write_bytes(record.jpeg)
        else:
            Image.fromarray(record.image_HWC).save(path, quality=jpeg_quality, optimize=True)
        instances["images"].append(
            {"id": image_id, "file_name": record.file_name, "height": height, "width": width}
        )
        first = counts["annotations"] + 1
        for offset, segmentation in enumerate(record.segmentations):
            instances["annotations"].append(
                {
                    "id": first + offset,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": 0,
                    **_extent(segmentation, height, width),
                    "segmentation": segmentation,
                }
            )
        for objects, sentences in record.refs:
            if any(not 0 <= o < len(record.segmentations) for o in objects):
                raise DataError(
                    f"A ref of image '{record.file_name}' means objects {list(objects)}.",
                    allowed=[f"0 to {len(record.segmentations) - 1}"],
                    cure="Use indices into the image's segmentations.",
                )
            ids = [first + o for o in objects] or [-1]
            sent_ids = [counts["sentences"] + i for i in range(len(sentences))]
            refs.append(
                {
                    "ref_id": counts["refs"],
                    "ann_id": ids if generalised else ids[0],
                    "category_id": [1 if i > 0 else -1 for i in ids] if generalised else 1,
                    "image_id": image_id,
                    "split": record.split,
                    "file_name": record.file_name,
                    "sent_ids": sent_ids,
                    "sentences": [
                        {"sent_id": i, "sent": text.lower(), "raw": text, "tokens": text.lower().split()}
                        for i, text in zip(sent_ids, sentences, strict=True)
                    ],
                    **({"no_target": not objects, "exist": bool(objects)} if generalised else {}),
                }
            )
            counts["refs"] += 1
            counts["sentences"] += len(sentences)
        counts["images"] += 1
        counts["annotations"] += len(record.segmentations)
    root.mkdir(parents=True, exist_ok=True)
    if generalised:
        (root / f"grefs({split_by}).json").write_text(json.dumps(refs) + "\n", encoding="utf-8")
    else:
        write_python2_pickle(root / f"refs({split_by}).p", refs)
    (root / "instances.json").write_text(
        json.dumps(instances, separators=(",", ":")) + "\n", encoding="utf-8"
    )
    return counts


def _extent(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """COCO's ``area`` and ``bbox`` (x, y, width, height) of a segmentation."""
    rles = coco_mask.frPyObjects(segmentation, height, width)
    whole = coco_mask.merge(rles) if isinstance(rles, list) else rles
    return {"area": float(coco_mask.area(whole)), "bbox": [float(v) for v in coco_mask.toBbox(whole)]}
