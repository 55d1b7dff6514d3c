"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: images with sentences about annotated objects.

``refs(AUTHOR).p`` (a pickle of Python 2; gRefCOCO: ``grefs(unc).json``) says which sentences mean
which annotations, ``instances.json`` holds the annotations. One sample is one *sentence*. Both
files are joined once into a store with one entry per image, because ``instances.json`` has
hundreds of thousands of annotations and an image needs a handful.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from refseg_bench.config.schema import option
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import (
    bad_name,
    cache_root,
    check_link,
    find_base,
    missing_file,
    safe_join,
)
from refseg_bench.datasets.index import Entries, JsonStream, open_store, parse_entry
from refseg_bench.datasets.issues import Damage, Place, Report, refuse
from refseg_bench.datasets.masks import MOST_SIDE, Size, are_coordinates, blank, checked_rle
from refseg_bench.datasets.pickles import pickled_list
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.types import Clip, Expression, MaskTrack, Target, encode_rle, union_rle

_AUTHORS = ("unc", "google", "umd")
#: Folders of COCO's pictures. RefCOCO's are of train2014; COCO 2017 shares them out among both of its own.
COCO_FOLDERS = ("train2014", "train2017", "val2017")
#: A picture's name as COCO 2014 or 2017 spells it, with the running number that gRefCOCO adds.
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})(?:_\d+)?\.jpe?g", re.IGNORECASE)
_MIXED = "Use refs and instances.json of one release."


@dataclass
class RefCoco(Dataset):
    """An image set in RefCOCO's layout.

    Attributes:
        name: name of the set; ends in its split author.
        split: ``train``, ``val``, ``testA``, ``testB`` (unc), ``test`` (umd, google).
        root: the set's folder or the one above it; ``None`` = below ``$REFSEG_DATA`` or ``data``.
        cache: folder of the joined stores; ``None`` = ``$REFSEG_CACHE`` or ``cache``.
        folders: folder names of the set, looked for below ``root`` too.
        split_by: who made the splits. Splits of different authors share images: never mix them.
        text: ``sent`` (cleaned), ``sent_lower`` (as LISA), ``raw`` (as typed; LAVT, ReLA).
        refs: the sentence file; ``{split_by}`` stands for the author.
        images: folders of the images, relative to the set's folder.
        protocols: ids a run is scored under unless it says otherwise.
        follow_links: read symbolic links that lead out of ``root``.
    """

    name: str = "refcoco_unc"
    split: str = "val"
    root: Path | None = option(None, transient=True)
    cache: Path | None = option(None, transient=True)
    folders: list[str] = option(factory=lambda: ["refcoco", "refer_seg/refcoco"], transient=True)
    split_by: Literal["unc", "google", "umd"] = "unc"
    text: Literal["sent", "sent_lower", "raw"] = "sent"
    refs: list[str] = field(default_factory=lambda: ["refs({split_by}).p"])
    images: list[str] = field(
        default_factory=lambda: [
            "../images/mscoco/images/train2014",
            "../images/train2014",
            "images/mscoco/images/train2014",
            "images/train2014",
            "images",
            "../train2014",
        ]
    )
    protocols: list[str] = option(factory=lambda: ["refcoco-oiou"], transient=True)
    follow_links: bool = option(False, transient=True)

    _store: Entries | None = field(default=None, init=False, repr=False, compare=False)
    _last: tuple[str, dict[str, Any]] = field(default=("", {}), init=False, repr=False, compare=False)
    _clips: list[Clip] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        author = next((a for a in _AUTHORS if self.name.endswith(f"_{a}")), self.split_by)
        if author != self.split_by:
            raise ConfigError(
                f"dataset.split_by is '{self.split_by}', but the set's name '{self.name}' says '{author}'.",
                where="dataset",
                hint=f"Choose that author's set (dataset=NAME_{self.split_by}), or set dataset.name too.",
            )

    # ── the Dataset interface ────────────────────────────────────────────────

    def clips(self) -> Sequence[Clip]:
        """One clip per image, in the order in which the sentence file names them first.

        Raises:
            DataError: the set is not found, or its files are damaged.
        """
        if self._clips is None:
            rows, folder = self.rows(), self.image_folder()
            pictures = self.elsewhere(folder, [row[1] for row in rows])
            self._clips = [self.clip(row, folder, refuse, pictures) for row in rows]
        return self._clips

    def expressions(self, clip: Clip) -> Sequence[Expression]:
        """The sentences about an image.

        Raises:
            DataError: a sentence has no words.
        """
        return list(self._expressions(self._blob(clip.id)))

    def target(self, clip: Clip, expression: Expression, report: Report = refuse) -> Target:
        """The annotations a sentence means; none of them = nothing in the image is meant.

        Raises:
            DataError: an annotation is damaged; where ``report`` takes that, it is left empty.
        """
        annotations = self._blob(clip.id)["annotations"]
        file = self.files()[1]
        tracks: list[MaskTrack] = []
        layers: list[list[bytes]] = []
        ids = expression.attrs["anno_ids"]
        for anno_id in ids:
            at = Place(file, f"annotation {anno_id}", report)
            mask, *deeper = layers_of(annotations[anno_id]["segmentation"], clip.size, at)
            tracks.append(MaskTrack(clip.size, (mask,)))
            layers.append(deeper)
        # Layer by layer over the annotations: what is covered twice, three times …
        deeper_tracks = [
            MaskTrack(clip.size, (union_rle([c for c in layer if c is not None], clip.size),))
            for layer in zip_longest(*layers)
        ]
        twice = deeper_tracks[0] if deeper_tracks else None
        return Target(clip.size, 1, tuple(tracks), tuple(ids), overlap=twice, deeper=tuple(deeper_tracks[1:]))

    # ── parts ────────────────────────────────────────────────────────────────

    def base(self) -> Path:
        """The folder of ``refs`` and ``instances.json``.

        Raises:
            DataError: it is not found.
        """
        return find_base(self.name, self.root, self.folders, [self.fill(p) for p in self.refs], self.split)

    def fill(self, path: str) -> str:
        """A file name of this split author."""
        return path.replace("{split_by}", self.split_by)

    def files(self) -> tuple[Path, Path]:
        """The sentence file and the annotation file."""
        base = self.base()
        refs = next(path for p in self.refs if (path := base / self.fill(p)).exists())
        return refs, base / "instances.json"

    def image_folder(self) -> Path:
        """The first image folder that exists, else the first."""
        base = self.base()
        for folder in (base / name for name in self.images):
            if folder.is_dir() or (
                folder.name in COCO_FOLDERS and any((folder.parent / name).is_dir() for name in COCO_FOLDERS)
            ):
                return folder
        # A copy of the annotations alone is good for scoring: the sizes are in instances.json.
        return base / self.images[0]

    def elsewhere(self, folder: Path, names: Sequence[str] | None = None) -> dict[str, Path]:
        """Where pictures are whose names are spelled otherwise on this disk than in instances.json.

        COCO 2017 spells ``COCO_train2014_000000000009.jpg`` as ``000000000009.jpg`` and keeps a part
        of them in ``val2017``; an ending may be in capitals. One look at the first picture is enough
        where no such folder lies beside.

        Args:
            folder: the folder of the pictures.
            names: their names; ``None`` = whatever is there.

        Returns:
            Path by :func:`spelling`; empty where all are found under their own names.
        """
        others = [p for name in COCO_FOLDERS if (p := folder.parent / name) != folder and p.is_dir()]
        wanted: set[str] | None = None
        if names is not None:
            looked = names if others else names[:1]
            if all((folder / name).exists() for name in looked if bad_name(name) is None):
                return {}
            wanted = {spelling(name) for name in names}
        there: dict[str, Path] = {}
        for place in (folder, *others):
            with contextlib.suppress(OSError), os.scandir(place) as entries:
                for entry in entries:
                    key = spelling(entry.name)
                    if wanted is None or key in wanted:
                        there.setdefault(key, place / entry.name)
        return there

    def splits(self) -> list[str]:
        """The splits the sentence file speaks of; none if it can't be read.

        Raises:
            DataError: the set is not found.
        """
        refs, _ = self.files()
        with contextlib.suppress(Damage):
            return list(dict.fromkeys(ref["split"] for ref in checked_refs(refs, lambda _: None)))
        return []

    def rows(self) -> list[list[Any]]:
        """``[image_id, file_name, height, width]`` of the split's images."""
        store = self._opened()
        if f"table:{self.split}" not in store:
            raise DataError(
                f"'{self.name}' has no split '{self.split}'.",
                where=self.files()[0],
                allowed=sorted(self.splits()),
                hint="Set dataset.split; splits differ by author.",
            )
        rows: list[list[Any]] = store.get(f"table:{self.split}")
        return rows

    def clip(
        self,
        row: Sequence[Any],
        folder: Path,
        report: Report,
        pictures: Mapping[str, Path] = MappingProxyType({}),
    ) -> Clip:
        """The clip of one image; its file is only looked at by ``verify`` and when it is read."""
        image_id, file_name, height, width = row
        path = safe_join(folder, file_name, Place(self.files()[1], f"image {image_id}"))
        if pictures and not path.exists():
            path = pictures.get(spelling(file_name), path)
        if path.is_symlink():
            check_link(path, folder, path.parent, follow=self.follow_links, report=report)
        # Not turned by their headers: COCO's sizes and polygons are those of the stored pixels.
        return Clip(
            str(image_id),
            (path,),
            (Path(file_name).stem,),
            (height, width),
            {"image_id": image_id, "file_name": file_name},
        )

    def _opened(self) -> Entries:
        if self._store is None:
            refs, instances = self.files()
            if not instances.exists():
                raise missing_file(instances)
            self._store = open_store(
                (refs, instances),
                f"{self.name}-{refs.stem}",
                cache_root(self.cache),
                lambda: join(refs, instances, refuse),
            )
        return self._store

    def _expressions(self, blob: Mapping[str, Any]) -> Iterator[Expression]:
        for ref in blob["refs"]:
            shared = {k: v for k, v in ref.items() if k != "sentences"}
            for sentence in ref["sentences"]:
                sent = sentence["sent"] if sentence["sent"].strip() else sentence["raw"]
                text = {"sent": sent, "sent_lower": sent.lower(), "raw": sentence["raw"] or sent}[self.text]
                yield Expression(
                    str(sentence["sent_id"]), text, {**shared, **sentence, "split_by": self.split_by}
                )

    def _blob(self, image_id: str) -> dict[str, Any]:
        if self._last[0] != image_id:
            self._last = image_id, self._opened().get(f"image:{self.split}:{image_id}")
        return self._last[1]

    def survey(self, report: Report) -> Iterator[tuple[Clip | None, list[Expression]]]:
        """Read everything but the masks, with every problem told.

        Yields:
            Per image its clip (``None`` if it can't be made) and its readable sentences.
        """
        try:
            refs, instances = self.files()
            folder = self.image_folder()
            found = False
            pictures: dict[str, Path] | None = None
            for key, text in join(refs, instances, report):
                kind, split, image_id = (*key.split(":"), "")[:3]
                if kind != "image" or split != self.split:
                    continue
                found = True
                blob = json.loads(text)
                self._last = image_id, blob
                name = blob["image"][1]
                if pictures is None and not (folder / name).exists():
                    pictures = self.elsewhere(folder)
                yield self.clip(blob["image"], folder, report, pictures or {}), list(self._expressions(blob))
            if not found:
                report(Damage("missing split", f"There is no sentence of split '{self.split}'.", refs))
        except Damage as damage:
            report(damage)

    def check_targets(self, clip: Clip, expressions: Sequence[Expression], report: Report) -> None:
        """Read every annotation the sentences mean, each once."""
        seen: set[tuple[str, ...]] = set()
        for expression in expressions:
            ids = tuple(expression.attrs["anno_ids"])
            if ids not in seen:
                self.target(clip, expression, report)
            seen.add(ids)


# ── names of pictures ──


def coco_number(name: str) -> str | None:
    """The number of a COCO picture, however its name is spelled; ``None`` for other names."""
    found = _COCO_NAME.fullmatch(name)
    return found[1] if found else None


def spelling(name: str) -> str:
    """What all spellings of a picture's name share."""
    return coco_number(name) or name.rpartition(".")[0].lower()


# ── polygons and RLE ─────────────────────────────────────────────────────────


def layers_of(segmentation: Any, size: Size, at: Place) -> list[bytes]:
    """One COCO segmentation, by how many of its parts cover a pixel.

    Args:
        segmentation: polygons ``[[x, y, …], …]``, one RLE, or a list of RLEs (RefCLEF).
        size: (height, width) of the image.
        at: where it was read; a damaged part is reported and left out.

    Returns:
        Compressed counts of the pixels that one part or more covers (always), two or more (which LISA
        and LAVT count as background), three or more … (as far as any pixel is).
    """
    parts: list[bytes] = []
    pieces = [segmentation] if isinstance(segmentation, Mapping) else segmentation
    if not isinstance(pieces, list):
        at.tell("malformed mask", "The segmentation is no list of polygons and no RLE.")
        pieces = []
    elif not pieces:
        # As LISA reads it.
        at.tell("empty segmentation", "The segmentation has no part: its mask is empty.", harmless=True)
    sound = any(isinstance(piece, Mapping) or _is_polygon(piece) for piece in pieces)
    for index, piece in enumerate(pieces):
        here = at.at(f"segmentation[{index}]")
        if isinstance(piece, Mapping):
            found = checked_rle(piece, size, here)
            if found is not None:
                parts.append(found[0])
        elif _is_polygon(piece):
            parts.append(bytes(coco_mask.frPyObjects([[float(v) for v in piece]], *size)[0]["counts"]))
        elif sound and isinstance(piece, list) and len(piece) in (0, 2, 4) and are_coordinates(piece):
            # As detectron2 does: a point or a line has no area.
            told = "A polygon of fewer than three points is left out."
            here.tell("polygon without area", told, harmless=True)
        else:
            told = "A polygon must be at least three points as x, y numbers within 10^6."
            here.tell("malformed mask", told)
    if not parts:
        return [blank(size)]
    if len(parts) == 1:
        return parts
    boxes = [{"size": list(size), "counts": c} for c in parts]
    covered = np.asarray(coco_mask.decode(boxes)).sum(axis=2, dtype=np.int32)
    deeper = [encode_rle(covered >= n) for n in range(2, int(covered.max()) + 1)]
    return [union_rle(parts, size), *deeper]


def _is_polygon(piece: Any) -> bool:
    return isinstance(piece, list) and len(piece) >= 6 and len(piece) % 2 == 0 and are_coordinates(piece)


# ── joining the two files ────────────────────────────────────────────────────


def _raw_refs(path: Path) -> Iterator[Any]:
    """The items of the sentence file, pickle or JSON."""
    if path.suffix != ".json":
        yield from pickled_list(path)
        return
    with JsonStream(path) as stream:
        for number in stream.elements():
            yield parse_entry(stream.value()[1], Place(path, f"[{number}]"))
        stream.finish()


def checked_refs(path: Path, report: Report) -> Iterator[dict[str, Any]]:
    """The readable refs in one spelling.

    Yields:
        ``{ref_id, image_id, split, anno_ids, category_ids, no_target, sentences}``; ``ann_id`` and
        ``category_id`` may be numbers or lists (gRefCOCO), ``-1`` = nothing is meant.
    """
    seen: dict[Any, int] = {}
    for index, ref in enumerate(_raw_refs(path)):
        at = Place(path, f"[{index}]", report)
        if not at.holds(ref, dict):
            continue
        found = at.fields(ref, ref_id=int, image_id=int, split=str, sentences=list)
        anno_ids = _ids(ref, "ann_id", at)
        if found is None or anno_ids is None:
            continue
        ref_id, image_id, split, sentences = found
        if ref_id in seen:
            at.tell("duplicate id", f"ref_id {ref_id} stands at [{seen[ref_id]}] too.")
            continue
        seen[ref_id] = index
        categories = ref.get("category_id", [])
        yield {
            "ref_id": ref_id,
            "image_id": image_id,
            "split": split,
            "anno_ids": anno_ids,
            "obj_ids": anno_ids,
            "category_ids": categories if isinstance(categories, list) else [categories],
            "no_target": not anno_ids,
            "sentences": list(_sentences(sentences, at)),
        }


def _ids(ref: Mapping[str, Any], key: str, at: Place) -> list[str] | None:
    value = ref.get(key)
    items = value if isinstance(value, (list, tuple)) else [value]
    if not items or not all(isinstance(i, int) and not isinstance(i, bool) for i in items):
        told = f"'{key}' is {value!r}, not a number or a list of numbers."
        at.at(key).tell("bad object id", told, _MIXED)
        return None
    return [str(i) for i in items if i != -1]


def _sentences(raw: Sequence[Any], at: Place) -> Iterator[dict[str, Any]]:
    for number, sentence in enumerate(raw):
        here = at.at(f"sentences[{number}]")
        found = here.fields(sentence, sent_id=int, sent=str) if here.holds(sentence, dict) else None
        if found is None:
            continue
        sent_id, sent = found
        typed = sentence.get("raw")
        typed = typed if isinstance(typed, str) else sent
        # A few typed expressions are nothing but marks that the cleaning took away.
        if not sent.strip() and not typed.strip():
            here.at("sent").tell("empty expression", "The sentence has no words.")
            continue
        tokens = sentence.get("tokens")
        yield {
            "sent_id": sent_id,
            "sent": sent,
            "raw": typed,
            "tokens": tokens if isinstance(tokens, list) else sent.split(),
        }


def join(refs_file: Path, instances_file: Path, report: Report) -> Iterator[tuple[str, bytes]]:
    """Entries of the store: ``image:SPLIT:ID`` with refs and annotations, then ``table:SPLIT``.

    Raises:
        Damage: a torn file; anything smaller goes to ``report`` and is left out.
    """
    by_place: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for ref in checked_refs(refs_file, report):
        by_place.setdefault((ref.pop("split"), ref.pop("image_id")), []).append(ref)
    wanted = {anno_id for refs in by_place.values() for ref in refs for anno_id in ref["anno_ids"]}
    images, annotations = read_instances(instances_file, {image for _, image in by_place}, wanted, report)
    tables: dict[str, list[list[Any]]] = {}
    for (split, image_id), refs in by_place.items():
        if image_id not in images:
            at = Place(refs_file, f"ref {refs[0]['ref_id']}", report)
            at.tell("missing entry", f"Image {image_id} is not in instances.json.", _MIXED)
            continue
        kept = [ref for ref in refs if _complete(ref, image_id, annotations, refs_file, report)]
        _unique_sentences(kept, refs_file, report)
        mine = {a: annotations[a] for ref in kept for a in ref["anno_ids"]}
        row = [image_id, *images[image_id]]
        blob = b'{"image":%s,"refs":%s,"annotations":{%s}}' % (
            _json(row),
            _json(kept),
            b",".join(b'"%s":%s' % (a.encode(), text) for a, (_, text) in mine.items()),
        )
        tables.setdefault(split, []).append(row)
        yield f"image:{split}:{image_id}", blob
    for split, rows in tables.items():
        yield f"table:{split}", _json(rows)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _complete(
    ref: Mapping[str, Any],
    image_id: int,
    annotations: Mapping[str, tuple[int, bytes]],
    file: Path,
    report: Report,
) -> bool:
    for anno_id in ref["anno_ids"]:
        reason = None
        if anno_id not in annotations:
            reason = "is not in instances.json"
        elif annotations[anno_id][0] != image_id:
            reason = f"belongs to image {annotations[anno_id][0]}, not {image_id}"
        if reason is not None:
            at = Place(file, f"ref {ref['ref_id']}", report)
            at.tell("missing entry", f"Annotation {anno_id} {reason}.", _MIXED)
            return False
    return True


def _unique_sentences(refs: Sequence[dict[str, Any]], file: Path, report: Report) -> None:
    seen: set[int] = set()
    for ref in refs:
        for sentence in list(ref["sentences"]):
            if sentence["sent_id"] in seen:
                told = f"sent_id {sentence['sent_id']} stands twice for one image."
                report(Damage("duplicate id", told, file, f"ref {ref['ref_id']}"))
                ref["sentences"].remove(sentence)
            seen.add(sentence["sent_id"])


def read_instances(
    path: Path, images: set[int], annotations: set[str], report: Report
) -> tuple[dict[int, tuple[str, int, int]], dict[str, tuple[int, bytes]]]:
    """Walk through ``instances.json`` and keep what the sentences need.

    Returns:
        image id → (file name, height, width); annotation id → (image id, JSON text).
    """
    found_images: dict[int, tuple[str, int, int]] = {}
    found_annotations: dict[str, tuple[int, bytes]] = {}
    with JsonStream(path) as stream:
        for key in stream.members():
            if key not in ("images", "annotations"):
                stream.value()
                continue
            for number in stream.elements():
                at = Place(path, f"{key}[{number}]", report)
                _, text = stream.value()
                record = _record(text, at)
                if record is None:
                    continue
                if key == "images":
                    image = _image(record, at) if record["id"] in images else None
                    if image is not None:
                        found_images[record["id"]] = image
                elif (anno_id := str(record["id"])) in annotations:
                    if anno_id in found_annotations:
                        at.tell("duplicate id", f"Annotation {anno_id} stands twice.")
                    image_id = at.field(record, "image_id", int)
                    at.field(record, "segmentation", object)
                    if image_id is not None and "segmentation" in record:
                        found_annotations[anno_id] = (image_id, text)
        stream.finish()
    return found_images, found_annotations


def _record(text: bytes, at: Place) -> dict[str, Any] | None:
    try:
        record = parse_entry(text, at)
    except Damage as damage:
        at.report(damage)
        return None
    return record if at.holds(record, dict) and at.field(record, "id", int) is not None else None


def _image(record: Mapping[str, Any], at: Place) -> tuple[str, int, int] | None:
    found = at.fields(record, file_name=str, height=int, width=int)
    if found is None:
        return None
    name, height, width = found
    try:
        safe_join(Path(), name, at)
    except Damage as damage:
        at.report(damage)
        return None
    if not (0 < height <= MOST_SIDE and 0 < width <= MOST_SIDE):
        at.tell("malformed mask", f"The image is {height} x {width} pixels.")
        return None
    return name, height, width
