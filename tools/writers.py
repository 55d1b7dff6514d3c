"""Write data sets in the public formats, as small as the readers need them.

The readers are tested against what these functions write, and the sample sets that ship with
the package are written by them.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_bench.errors import DataError
from refseg_bench.types import MaskTrack, union_rle


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
        names = _names(video)
        _frames(folder / "JPEGImages" / video.name, names, video.frames_THWC, jpeg_quality)
        first = counts["objects"]
        for offset, track in enumerate(video.objects):
            masks[str(first + offset)] = rle_dicts(track)
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


def write_mevis_v2_set(
    root: Path, split: str, videos: Sequence[VideoRecord], *, hidden: bool = False
) -> dict[str, int]:
    """Write clips as MeViS v2 has them: MeViS' layout, and ``audio`` beside every sentence.

    Args:
        root: folder of the data set; made if it is not there.
        split: name of the split's folder.
        videos: the clips; a sentence about no object has an absent target.
        hidden: leave out the masks and what names them, as in the splits that a server scores.

    Returns:
        As :func:`write_meta_expressions_set`.
    """
    spoken = [
        replace(
            video,
            expressions=[
                (text, objects, {"audio": f"{video.name}_{i}.wav", **extra})
                for i, (text, objects, extra) in enumerate(video.expressions)
            ],
        )
        for video in videos
    ]
    counts = write_meta_expressions_set(root, split, spoken)
    if hidden:
        (root / split / "mask_dict.json").unlink()
        path = root / split / "meta_expressions.json"
        meta = json.loads(path.read_text("utf-8"))
        for video in meta["videos"].values():
            for expression in video["expressions"].values():
                del expression["obj_id"], expression["anno_id"]
        _dump(path, meta)
    return counts


def _check(video: VideoRecord, names: Sequence[str]) -> None:
    length = len(video.frames_THWC)
    if len(names) != length or any(len(track) != length for track in video.objects):
        raise DataError(
            f"Clip '{video.name}' has {length} frames, {len(names)} frame names and tracks of "
            f"{sorted({len(track) for track in video.objects})} frames.",
            hint="Give one name and one mask (or None) per frame.",
        )
    for text, objects, _ in video.expressions:
        if any(not 0 <= o < len(video.objects) for o in objects):
            raise DataError(
                f"Expression '{text}' of clip '{video.name}' means objects {list(objects)}.",
                allowed=[f"0 to {len(video.objects) - 1}"],
                hint="Use indices into the clip's objects.",
            )


# ── the other video sets ─────────────────────────────────────────────────────

#: A few colours of the DAVIS palette; entry k is object k's colour. All 256 entries are written,
#: because Pillow packs the pixels of a shorter palette into fewer bits and would cut off 255.
_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128, 128, 0, 128, 0, 128, 128]


def write_label_map(path: Path, labels_HW: NDArray[np.uint8]) -> None:
    """Write a palette PNG whose pixel values are object ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels_HW, mode="P")
    image.putpalette((_PALETTE + [224] * 768)[:768])
    image.save(path)


def _frames(folder: Path, names: Sequence[str], frames_THWC: NDArray[np.uint8], quality: int = 90) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(names, frames_THWC, strict=True):
        Image.fromarray(frame).save(folder / f"{name}.jpg", quality=quality, optimize=True)


def _names(video: VideoRecord) -> list[str]:
    names = list(video.frame_names) or [f"{i:05d}" for i in range(len(video.frames_THWC))]
    _check(video, names)
    return names


def _label_maps(
    folder: Path, video: VideoRecord, void: MaskTrack | None = None, names: Sequence[str] = ()
) -> None:
    """All objects of a clip in one map per frame: object k is pixel value k + 1, void is 255."""
    for index, name in enumerate(names or _names(video)):
        labels = np.zeros(video.frames_THWC.shape[1:3], np.uint8)
        for number, track in enumerate(video.objects, start=1):
            mask = track.mask(index)
            if mask is not None:
                labels[mask] = number
        if void is not None and (outside := void.mask(index)) is not None:
            labels[outside] = 255
        write_label_map(folder / f"{name}.png", labels)


def _dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def rle_dicts(track: MaskTrack, *, as_bytes: bool = False) -> list[dict[str, Any] | None]:
    """A track as mask dictionaries hold it: one RLE per frame, ``None`` where nothing shows."""
    return [
        {"size": list(track.size), "counts": counts if as_bytes else counts.decode("ascii")}
        if counts is not None and area
        else None
        for counts, area in zip(track.rles, track.area(), strict=True)
    ]


def write_mask_pickle(path: Path, masks: Mapping[str, MaskTrack]) -> None:
    """``mask_dict.pkl`` as VISA writes it: protocol 2, counts as bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump({key: rle_dicts(track, as_bytes=True) for key, track in masks.items()}, file, protocol=2)


def running_mask_dict(videos: Sequence[VideoRecord]) -> dict[str, MaskTrack]:
    """Tracks numbered as the mask files without ``anno_id`` are: sorted videos, ids sorted as text."""
    out: dict[str, MaskTrack] = {}
    for video in sorted(videos, key=lambda v: v.name):
        for key in sorted(str(i) for i in range(len(video.expressions))):
            out[str(len(out))] = video.objects[video.expressions[int(key)][1][0]]
    return out


def write_ref_youtube_vos_set(
    root: Path, split: str, videos: Sequence[VideoRecord], *, masks: str = "Annotations"
) -> None:
    """Write clips in Ref-YouTube-VOS' layout; every expression means one object.

    Args:
        root: folder of the data set.
        split: ``train`` holds masks; ``valid`` and ``test`` hold the words only.
        videos: the clips.
        masks: ``Annotations`` (palette PNGs) or ``mask_dict.pkl`` for ``train``.
    """
    meta: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    for video in videos:
        names = _names(video)
        _frames(root / split / "JPEGImages" / video.name, names, video.frames_THWC)
        public = split == "train"
        meta[video.name] = {
            "expressions": {
                str(i): {"exp": text, **({"obj_id": str(targets[0] + 1)} if public else {}), **extra}
                for i, (text, targets, extra) in enumerate(video.expressions)
            },
            "frames": names,
        }
        objects[video.name] = {
            "objects": {
                str(number): {
                    "category": "object",
                    "frames": [n for n, area in zip(names, track.area(), strict=True) if area],
                }
                for number, track in enumerate(video.objects, start=1)
            }
        }
        if public and masks == "Annotations":
            _label_maps(root / split / "Annotations" / video.name, video)
    _dump(root / "meta_expressions" / split / "meta_expressions.json", {"videos": meta})
    if split == "train":
        _dump(root / split / "meta.json", {"videos": objects})
        if masks != "Annotations":
            write_mask_pickle(root / split / masks, running_mask_dict(videos))


def write_davis_source(
    root: Path, splits: Mapping[str, Sequence[VideoRecord]], *, void: MaskTrack | None = None
) -> None:
    """Write what Ref-DAVIS17 is made from: a ``DAVIS`` tree and the four text files.

    Args:
        root: gets ``DAVIS/`` and ``davis_text_annotations/``.
        splits: DAVIS' ``train`` and ``val``; each object of a clip is described by four
            expressions in a row, one per annotator.
        void: pixels of nobody, in every clip.
    """
    texts: list[list[str]] = [[], [], [], []]
    for split, videos in splits.items():
        for video in videos:
            names = _names(video)
            davis = root / "DAVIS"
            _frames(davis / "JPEGImages" / "480p" / video.name, names, video.frames_THWC)
            _label_maps(davis / "Annotations_unsupervised" / "480p" / video.name, video, void)
            for number, (text, targets, _) in enumerate(video.expressions):
                texts[number % 4].append(f'{video.name} {targets[0] + 1} "{text}"')
        listing = root / "DAVIS" / "ImageSets" / "2017" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{video.name}\n" for video in videos), encoding="utf-8")
    folder = root / "davis_text_annotations"
    folder.mkdir(parents=True, exist_ok=True)
    for (name, encoding), lines in zip(
        (
            ("annot1", "utf-8"),
            ("annot1_full_video", "utf-8"),
            ("annot2", "latin-1"),
            ("annot2_full_video", "latin-1"),
        ),
        texts,
        strict=True,
    ):
        (folder / f"Davis17_{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding=encoding)


def write_revos_set(
    root: Path,
    split: str,
    videos: Sequence[VideoRecord],
    *,
    frames: str = "JPEGImages",
    foreground: bool = True,
) -> None:
    """Write clips in ReVOS' layout; a clip's name may hold slashes, an expression has ``type_id``.

    Args:
        root: folder of the data set.
        split: ``train`` or ``valid``.
        videos: the clips; give ``type_id`` among an expression's extra keys (0 if it is missing).
        frames: folder of the videos; ``.`` for the copies without ``JPEGImages/``.
        foreground: write ``mask_dict_foreground.json`` too.
    """
    meta: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    grounds: dict[str, Any] = {}
    for number, video in enumerate(videos):
        names = _names(video)
        _frames(root / frames / video.name, names, video.frames_THWC)
        height, width = video.frames_THWC.shape[1:3]
        first = len(masks)
        for offset, track in enumerate(video.objects):
            masks[str(first + offset)] = rle_dicts(track)
        meta[video.name] = {
            "vid_id": number,
            "height": height,
            "width": width,
            "frames": names,
            "expressions": {
                str(i): {
                    "exp": text,
                    "obj_id": list(targets),
                    "anno_id": [first + t for t in targets],
                    "type_id": 0,
                    **extra,
                }
                for i, (text, targets, extra) in enumerate(video.expressions)
            },
        }
        unions = [
            union_rle([t.rles[i] or b"" for t in video.objects], (height, width)) for i in range(len(names))
        ]
        whole = MaskTrack((height, width), tuple(unions))
        grounds[video.name] = {
            "masks_rle": [{"size": [height, width], "counts": c.decode("ascii")} for c in unions],
            "foreground_ratio": [(area or 0) / (height * width) for area in whole.area()],
        }
    _dump(root / f"meta_expressions_{split}_.json", {"videos": meta})
    _dump(root / "mask_dict.json", masks)
    if foreground:
        _dump(root / "mask_dict_foreground.json", grounds)


def write_reasonvos_set(root: Path, videos: Sequence[VideoRecord], *, rewritten: bool = False) -> None:
    """Write clips in ReasonVOS' layout.

    Args:
        root: folder of the data set.
        videos: the clips; extra keys of an expression may set ``exp_id`` and ``is_sent``. A frame
            whose mask is ``None`` gets no PNG.
        rewritten: DecAF's form (``meta_expressions_v2.json``, ``mask_dict_v2.pkl``) instead of the
            official one; it needs ``exp_id`` to be unique in a clip.
    """
    meta: dict[str, Any] = {}
    masks: dict[str, MaskTrack] = {}
    for video in videos:
        names = _names(video)
        _frames(root / "JPEGImages" / video.name, names, video.frames_THWC)
        ids = [f"mose_{video.name}_{number}" for number in range(len(video.objects))]
        entries = [
            {"obj_id": str(targets[0]), "exp_id": i, "exp_text": text, "is_sent": 1, **extra}
            for i, (text, targets, extra) in enumerate(video.expressions)
        ]
        shaped: Any = entries
        if rewritten:
            shaped = {
                str(e["exp_id"]): {
                    "exp": e["exp_text"],
                    "obj_id": [e["obj_id"]],
                    "anno_id": [ids[int(e["obj_id"])]],
                    "is_sent": e["is_sent"],
                }
                for e in entries
            }
        meta[video.name] = {"source": "mose", "frames": names, "expressions": shaped}
        for anno_id, track in zip(ids, video.objects, strict=True):
            masks[anno_id] = track
            for name, mask in zip(names, track.masks(), strict=True):
                if mask is not None and not rewritten:
                    path = root / "Annotations" / anno_id / f"{name}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    _dump(root / ("meta_expressions_v2.json" if rewritten else "meta_expressions.json"), {"videos": meta})
    if rewritten:
        write_mask_pickle(root / "mask_dict_v2.pkl", masks)


def write_long_rvos_set(root: Path, split: str, videos: Sequence[VideoRecord]) -> None:
    """Write clips in Long-RVOS' layout; every expression means one object and has its ``type`` as extra key.

    An object gets a PNG (0/255) of the frames it shows in, and a folder though it shows in none.

    Args:
        root: folder of the data set.
        split: ``train``, ``valid`` or ``test``.
        videos: the clips; an expression's ``type`` is ``static`` if it has none.
    """
    meta: dict[str, Any] = {}
    for video in videos:
        names = _names(video)
        _frames(root / split / "JPEGImages" / video.name, names, video.frames_THWC)
        meta[video.name] = {
            "frames": names,
            "expressions": {
                str(i): {"exp": text, "obj_id": str(targets[0] + 1), "type": "static", **extra}
                for i, (text, targets, extra) in enumerate(video.expressions)
            },
        }
        for number, track in enumerate(video.objects, start=1):
            folder = root / split / "Annotations" / video.name / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            for name, mask in zip(names, track.masks(), strict=True):
                if mask is not None and mask.any():
                    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}.png")
    _dump(root / split / "meta_expressions.json", {"videos": meta})


def write_groundmore_set(root: Path, split: str, videos: Sequence[VideoRecord]) -> None:
    """Write clips in GroundMoRe's layout; a clip's name ends in its begin and end, ``_MMSS_MMSS``.

    Args:
        root: folder of the data set.
        split: part of the expression file's name.
        videos: the clips; an expression's extra keys are ``q_type``, ``action_start`` and ``action_end``.
    """
    meta: dict[str, Any] = {}
    for video in videos:
        maps = [f"frame_{i:06d}" for i in range(len(video.frames_THWC))]
        _frames(root / video.name / "images", list(video.frame_names) or maps, video.frames_THWC)
        _label_maps(root / video.name / "masks", video, names=maps)
        meta[video.name] = {
            "questions": {
                str(i): {
                    "question": text,
                    "answer": "it",
                    "obj_id": ", ".join(str(target + 1) for target in targets),
                    "q_type": "Causal",
                    **extra,
                }
                for i, (text, targets, extra) in enumerate(video.expressions)
            }
        }
    _dump(root / f"groundmore_{split}.json", {"videos": meta})


# ── ReasonSeg ────────────────────────────────────────────────────────────────


def write_reasonseg_image(
    root: Path,
    split: str,
    name: str,
    image_HWC: NDArray[np.uint8],
    texts: Sequence[str],
    shapes: Sequence[tuple[str, Sequence[Sequence[float]]]],
    *,
    is_sentence: bool = True,
    encoding: str = "utf-8",
) -> None:
    """Write one image of ReasonSeg.

    Args:
        root: folder of the splits.
        split: ``train``, ``val`` or ``test``.
        name: name of its two files.
        image_HWC: uint8 RGB.
        texts: the questions.
        shapes: ``(label, [[x, y], …])`` per polygon.
        is_sentence: long question (or short phrase).
        encoding: of the JSON; some files of the release are cp1252.
    """
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_HWC).save(folder / f"{name}.jpg", quality=90)
    record = {
        "text": list(texts),
        "is_sentence": is_sentence,
        "shapes": [
            {"label": label, "points": [list(p) for p in points], "shape_type": "polygon", "group_id": None}
            for label, points in shapes
        ],
    }
    (folder / f"{name}.json").write_text(json.dumps(record, ensure_ascii=False), encoding=encoding)


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
                    hint="Use indices into the image's segmentations.",
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


def write_refcoco_m_set(folder: Path, images: Sequence[ImageRecord], *, pictures: bool = True) -> None:
    """Write ``data/validation-*.parquet`` as RefCOCO-M has them, in two parts.

    Args:
        folder: of the snapshot.
        images: with their number; a ref's only object is its annotation, numbered as
            :func:`write_refcoco_set` numbers it, and its segmentation is drawn as run lengths.
        pictures: with the pictures' bytes.
    """
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    first = 1
    for number, record in enumerate(images):
        image_id = number + 1 if record.image_id is None else record.image_id
        size = record.image_HWC.shape[:2]
        buffer = io.BytesIO()
        Image.fromarray(record.image_HWC).save(buffer, "JPEG")
        samples = []
        for objects, sentences in record.refs:
            coded = coco_mask.frPyObjects(record.segmentations[objects[0]], *size)
            rle = coco_mask.merge(coded) if isinstance(coded, list) else coded
            samples.append(
                {
                    "id": first + objects[0],
                    "image_id": image_id,
                    "category": "object",
                    "sentences": list(sentences),
                    "bbox": [float(v) for v in coco_mask.toBbox(rle)],
                    "mask": {"counts": rle["counts"].decode("ascii"), "size": list(size)},
                }
            )
        first += len(record.segmentations)
        row = {"image_id": image_id, "file_name": record.file_name, "samples": samples}
        rows.append({"image": {"bytes": buffer.getvalue() if pictures else b"", "path": None}, **row})
    (folder / "data").mkdir(parents=True, exist_ok=True)
    half = len(rows) // 2 or len(rows)
    for part, some in enumerate((rows[:half], rows[half:])):
        if some:
            name = f"validation-{part:05d}-of-00002.parquet"
            pq.write_table(pa.Table.from_pylist(some), folder / "data" / name)


def _extent(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """COCO's ``area`` and ``bbox`` (x, y, width, height) of a segmentation."""
    rles = coco_mask.frPyObjects(segmentation, height, width)
    whole = coco_mask.merge(rles) if isinstance(rles, list) else rles
    return {"area": float(coco_mask.area(whole)), "bbox": [float(v) for v in coco_mask.toBbox(whole)]}
