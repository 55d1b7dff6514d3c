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
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from refseg_bench.config.schema import option
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import (
    Damage,
    Place,
    Tell,
    bad_name,
    cache_root,
    check_link,
    refuse,
    safe_join,
    wordless,
)
from refseg_bench.datasets.index import Entries, JsonStream, in_memory, open_store, parse_entry
from refseg_bench.datasets.masks import MOST_SIDE, Size, are_coordinates, blank, checked_rle, id_list, misses
from refseg_bench.datasets.pickles import pickled_list
from refseg_bench.errors import ConfigError
from refseg_bench.types import Clip, Expression, MaskTrack, Target, encode_rle, union_rle

_AUTHORS = ("unc", "google", "umd")
#: Folders of COCO's pictures. RefCOCO's are of train2014; COCO 2017 shares them out among both of its own.
COCO_FOLDERS = ("train2014", "train2017", "val2017")
#: A picture's name as COCO 2014 or 2017 spells it, with the running number that gRefCOCO adds.
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})(?:_\d+)?\.jpe?g", re.IGNORECASE)
_MIXED = "Use refs and instances.json of one release."


@dataclass
class RefCoco(Dataset):
    """An image set in RefCOCO's layout."""

    name: str = "refcoco_unc"  #: name of the set; ends in its split author
    split: str = "val"  #: ``train``, ``val``, ``testA``, ``testB`` (unc), ``test`` (umd, google)
    #: The set's folder or the one above it; ``None`` = it is looked for.
    root: Path | None = option(None, transient=True)
    #: Folder of the joined stores; ``None`` = ``$REFSEG_CACHE`` or ``cache``.
    cache: Path | None = option(None, transient=True)
    #: Folder names of the set, looked for below ``root`` too.
    folders: list[str] = option(["refcoco", "refer_seg/refcoco"], transient=True)
    #: Who made the splits. Splits of different authors share images: never mix them.
    split_by: Literal["unc", "google", "umd"] = "unc"
    #: ``sent`` (cleaned), ``sent_lower`` (as LISA), ``raw`` (as typed; LAVT, ReLA).
    text: Literal["sent", "sent_lower", "raw"] = "sent"
    #: The sentence file; ``{split_by}`` stands for the author.
    refs: list[str] = option(["refs({split_by}).p"])
    #: Folders of the images, relative to the set's folder.
    images: list[str] = option(
        [
            "../images/mscoco/images/train2014",
            "../images/train2014",
            "images/mscoco/images/train2014",
            "images/train2014",
            "images",
            "../train2014",
        ]
    )
    #: Ids a run is scored under unless it says otherwise.
    protocols: list[str] = option(["refcoco-oiou"], transient=True)
    follow_links: bool = option(False, transient=True)  #: read symbolic links that lead out of ``root``

    #: What was read last, because the sentences about an image are read one after the other.
    _image: tuple[str, dict[str, Any]] = field(default=("", {}), init=False, repr=False, compare=False)
    _target: tuple[Any, Target | None] = field(default=(None, None), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        author = next((a for a in _AUTHORS if self.name.endswith(f"_{a}")), self.split_by)
        if author != self.split_by:
            raise ConfigError(
                f"dataset.split_by is '{self.split_by}', but the set's name '{self.name}' says '{author}'.",
                where="dataset",
                hint=f"Choose that author's set (dataset=NAME_{self.split_by}), or set dataset.name too.",
            )

    def clips(self) -> Sequence[Clip]:
        """One clip per image, in the order in which the sentence file names them first."""
        return self._clips

    def expressions(self, clip: Clip) -> list[Expression]:
        """The sentences about an image."""
        out: list[Expression] = []
        for ref in self._entry(clip)["refs"]:
            shared = {k: v for k, v in ref.items() if k != "sentences"}
            for sentence in ref["sentences"]:
                sent = sentence["raw"] if wordless(sentence["sent"]) else sentence["sent"]
                text = {"sent": sent, "sent_lower": sent.lower(), "raw": sentence["raw"] or sent}[self.text]
                attrs = {**shared, **sentence, "split_by": self.split_by}
                out.append(Expression(str(sentence["sent_id"]), text, attrs))
        return out

    def truth_files(self, clip: Clip) -> Sequence[Path]:
        """None: all is in the annotation files."""
        return ()

    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """The annotations a sentence means; none of them = nothing in the image is meant."""
        key = clip.id, tuple(expression.attrs["anno_ids"])
        if self._target[0] != key:
            self._target = key, self._read_target(clip, key[1])
        return self._target[1]

    def _read_target(self, clip: Clip, ids: tuple[str, ...]) -> Target:
        annotations = self._entry(clip)["annotations"]
        tracks: list[MaskTrack] = []
        layers: list[list[bytes]] = []
        for anno_id in ids:
            at = Place(self._instances, f"annotation {anno_id}", self.tell)
            mask, *deeper = layers_of(annotations[anno_id]["segmentation"], clip.size, at)
            _check_box(annotations[anno_id].get("bbox"), mask, clip.size, at)
            tracks.append(MaskTrack(clip.size, (mask,)))
            layers.append(deeper)
        # Layer by layer over the annotations: what is covered twice, three times …
        over = [
            MaskTrack(clip.size, (union_rle([c for c in layer if c is not None], clip.size),))
            for layer in zip_longest(*layers)
        ]
        return Target(
            clip.size, 1, tuple(tracks), ids, overlap=over[0] if over else None, deeper=tuple(over[1:])
        )

    def pair_key(self, clip: Clip, expression: Expression) -> Hashable:
        """Image, annotations and words: what a sentence keeps under other masks of the same images."""
        attrs = expression.attrs
        words = re.sub(r"[\W_]", "", attrs["sent"].lower())
        return clip.attrs["image_id"], *sorted(attrs["anno_ids"]), words

    # ── where things are ─────────────────────────────────────────────────────

    def landmarks(self) -> list[str]:
        """The sentence file."""
        return [path.replace("{split_by}", self.split_by) for path in self.refs]

    def layout(self) -> list[str]:
        """The sentence file, the annotation file and the pictures' folders."""
        return [*self.landmarks(), "instances.json", *self.images]

    def splits(self, known: Sequence[str]) -> list[str]:
        """Those of the known splits the sentence file speaks of; none if it can't be read."""
        stored = self._stored_splits()
        return [split for split in known if split in stored]

    def _stored_splits(self) -> list[str]:
        with contextlib.suppress(Damage):
            return sorted({ref["split"] for ref in checked_refs(self._refs, lambda _: None)})
        return []

    @cached_property
    def _refs(self) -> Path:
        """The sentence file."""
        return next(path for p in self.landmarks() if (path := self.home / p).exists())

    @cached_property
    def _instances(self) -> Path:
        return self.home / "instances.json"

    @cached_property
    def _pictures(self) -> Path:
        """The first image folder that exists, else the first."""
        for folder in (self.home / name for name in self.images):
            if folder.is_dir() or (
                folder.name in COCO_FOLDERS and any((folder.parent / name).is_dir() for name in COCO_FOLDERS)
            ):
                return folder
        # A copy of the annotations alone is good for scoring: the sizes are in instances.json.
        return self.home / self.images[0]

    # ── reading ──────────────────────────────────────────────────────────────

    def sources(self) -> list[Path]:
        """The files that :meth:`joined` joins, the one to name in errors first."""
        return [self._refs, self._instances]

    def joined(self) -> Iterator[tuple[str, bytes]]:
        """Entries of the store, see :func:`join`."""
        return join(self._refs, self._instances, self.tell)

    @cached_property
    def _store(self) -> Entries:
        sources = self.sources()
        if self.tell is not refuse:
            # What leaves damaged entries out must not be found by a run.
            return in_memory(sources[0], self.joined())
        label = f"{self.name}-{sources[0].stem}"
        return open_store(sources, label, cache_root(self.cache), self.joined)

    @cached_property
    def _clips(self) -> list[Clip]:
        if f"table:{self.split}" not in self._store:
            raise Damage(
                "missing split",
                f"'{self.name}' has no split '{self.split}'.",
                self._refs,
                hint="Set dataset.split; splits differ by author.",
                allowed=self._stored_splits(),
            )
        rows = self._store[f"table:{self.split}"]
        elsewhere = self._elsewhere([row[1] for row in rows])
        return [self._clip(row, elsewhere) for row in rows]

    def _clip(self, row: Sequence[Any], elsewhere: Mapping[str, Path]) -> Clip:
        """The clip of one image; its file is only looked at by ``verify`` and when it is read."""
        image_id, file_name, height, width = row
        path = safe_join(self._pictures, file_name, Place(self._instances, f"image {image_id}"))
        if elsewhere and not path.exists():
            path = elsewhere.get(spelling(file_name), path)
        if path.is_symlink():
            check_link(path, self._pictures, path.parent, follow=self.follow_links, tell=self.tell)
        # Not turned by their headers: COCO's sizes and polygons are those of the stored pixels.
        attrs = {"image_id": image_id, "file_name": file_name}
        return Clip(str(image_id), (path,), (Path(file_name).stem,), (height, width), attrs)

    def _elsewhere(self, names: Sequence[str]) -> dict[str, Path]:
        """By :func:`spelling`, where pictures are whose names are otherwise here than in instances.json.

        COCO 2017 spells ``COCO_train2014_000000000009.jpg`` as ``000000000009.jpg`` and keeps a part
        of them in ``val2017``; an ending may be in capitals. One look at the first picture is enough
        where no such folder lies beside.
        """
        folder = self._pictures
        others = [p for name in COCO_FOLDERS if (p := folder.parent / name) != folder and p.is_dir()]
        looked = names if others or self.tell is not refuse else names[:1]
        if all((folder / name).exists() for name in looked if bad_name(name) is None):
            return {}
        wanted = {spelling(name) for name in names}
        there: dict[str, Path] = {}
        for place in (folder, *others):
            with contextlib.suppress(OSError), os.scandir(place) as entries:
                for entry in entries:
                    if (key := spelling(entry.name)) in wanted:
                        there.setdefault(key, place / entry.name)
        return there

    def _entry(self, clip: Clip) -> dict[str, Any]:
        if self._image[0] != clip.id:
            self._image = clip.id, self._store[f"image:{self.split}:{clip.id}"]
        return self._image[1]


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
        at: where it was read; a damaged part is told and left out.

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
            if not misses(piece[::2], piece[1::2], size, here):
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
    boxes = [{"size": list(size), "counts": c} for c in parts]
    if not coco_mask.area(boxes).any():
        at.tell("object without a pixel", "No part covers a pixel: the mask is empty.", harmless=True)
    if len(parts) == 1:
        return parts
    covered = np.asarray(coco_mask.decode(boxes)).sum(axis=2, dtype=np.int32)
    deeper = [encode_rle(covered >= n) for n in range(2, int(covered.max()) + 1)]
    return [union_rle(parts, size), *deeper]


def _check_box(box: Any, mask: bytes, size: Size, at: Place) -> None:
    """Tell a mask that lies elsewhere than its annotation's box says: of another scale, x and y swapped."""
    if not (isinstance(box, list) and len(box) == 4 and are_coordinates(box)):
        return
    x, y, width, height = coco_mask.toBbox({"size": list(size), "counts": mask}).tolist()
    ends = zip((x, y, x + width, y + height), (*box[:2], box[0] + box[2], box[1] + box[3]), strict=True)
    if width and any(abs(one - other) > 3 + 0.02 * max(size) for one, other in ends):
        told = f"Its 'bbox' is {box}, its mask lies in {[x, y, width, height]} (x, y, width, height)."
        at.tell("mask beside its box", told, harmless=True)


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


def checked_refs(path: Path, tell: Tell) -> Iterator[dict[str, Any]]:
    """The readable refs in one spelling.

    Yields:
        ``{ref_id, image_id, split, anno_ids, category_ids, no_target, sentences}``; ``ann_id`` and
        ``category_id`` may be numbers or lists (gRefCOCO), ``-1`` = nothing is meant.
    """
    seen: dict[Any, int] = {}
    for index, ref in enumerate(_raw_refs(path)):
        at = Place(path, f"[{index}]", tell)
        if not at.holds(ref, dict):
            continue
        found = at.fields(ref, ref_id=int, image_id=int, split=str, sentences=list)
        if found is not None and not found[-1]:
            at.at("sentences").tell("empty expression", "The ref has no sentence.")
        anno_ids = id_list(ref.get("ann_id"))
        if anno_ids is None or ref["ann_id"] == []:
            told = f"'ann_id' is {ref.get('ann_id')!r}, not an id or a list of ids, of which -1 stands alone."
            at.at("ann_id").tell("bad object id", told, _MIXED)
            continue
        if found is None:
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
        if wordless(sent) and wordless(typed):
            here.at("sent").tell("empty expression", "The sentence has no words.")
            continue
        tokens = sentence.get("tokens")
        yield {
            "sent_id": sent_id,
            "sent": sent,
            "raw": typed,
            "tokens": tokens if isinstance(tokens, list) else sent.split(),
        }


def join(refs_file: Path, instances_file: Path, tell: Tell) -> Iterator[tuple[str, bytes]]:
    """Entries of the store: ``image:SPLIT:ID`` with refs and annotations, then ``table:SPLIT``.

    Raises:
        Damage: a torn file; anything smaller is told and left out.
    """
    by_place: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for ref in checked_refs(refs_file, tell):
        by_place.setdefault((ref.pop("split"), ref.pop("image_id")), []).append(ref)
    wanted = {anno_id for refs in by_place.values() for ref in refs for anno_id in ref["anno_ids"]}
    images, annotations = read_instances(instances_file, {image for _, image in by_place}, wanted, tell)
    tables: dict[str, list[list[Any]]] = {}
    for (split, image_id), refs in by_place.items():
        place = Place(refs_file, f"ref {refs[0]['ref_id']}", tell)
        if image_id not in images:
            place.tell("missing entry", f"Image {image_id} is not in instances.json.", _MIXED)
            continue
        kept: list[dict[str, Any]] = []
        seen: set[int] = set()
        for ref in refs:
            at = Place(refs_file, f"ref {ref['ref_id']}", tell)
            if any(_lacks(annotations.get(anno_id), anno_id, image_id, at) for anno_id in ref["anno_ids"]):
                continue
            kept.append({**ref, "sentences": list(_unique(ref["sentences"], seen, at))})
        mine = {a: annotations[a] for ref in kept for a in ref["anno_ids"]}
        texts = b",".join(b'"%s":%s' % (a.encode(), text) for a, (_, text) in mine.items())
        yield f"image:{split}:{image_id}", b'{"refs":%s,"annotations":{%s}}' % (_json(kept), texts)
        tables.setdefault(split, []).append([image_id, *images[image_id]])
    for split, rows in tables.items():
        yield f"table:{split}", _json(rows)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _lacks(annotation: tuple[int, bytes] | None, anno_id: str, image_id: int, at: Place) -> bool:
    if annotation is not None and annotation[0] == image_id:
        return False
    reason = (
        "is not in instances.json"
        if annotation is None
        else f"belongs to image {annotation[0]}, not {image_id}"
    )
    at.tell("missing entry", f"Annotation {anno_id} {reason}.", _MIXED)
    return True


def _unique(sentences: Sequence[dict[str, Any]], seen: set[int], at: Place) -> Iterator[dict[str, Any]]:
    for sentence in sentences:
        sent_id = sentence["sent_id"]
        if sent_id in seen:
            at.tell("duplicate id", f"sent_id {sent_id} stands twice for one image.")
        else:
            seen.add(sent_id)
            yield sentence


def read_instances(
    path: Path, images: set[int], annotations: set[str], tell: Tell
) -> tuple[dict[int, tuple[str, int, int]], dict[str, tuple[int, bytes]]]:
    """What the sentences need of ``instances.json``: image id → (file name, height, width); annotation id →
    (image id, JSON text).
    """
    found_images: dict[int, tuple[str, int, int]] = {}
    found_annotations: dict[str, tuple[int, bytes]] = {}
    with JsonStream(path) as stream:
        for key in stream.members():
            if key not in ("images", "annotations"):
                stream.value()
                continue
            for number in stream.elements():
                at = Place(path, f"{key}[{number}]", tell)
                text = stream.value()[1]
                try:
                    record = parse_entry(text, at)
                    if not at.holds(record, dict) or at.field(record, "id", int) is None:
                        continue
                    if key == "images":
                        image = _image(record, at) if record["id"] in images else None
                        if image is not None and found_images.setdefault(record["id"], image) != image:
                            told = f"Image {record['id']} stands twice, with another name or size."
                            at.tell("duplicate id", told)
                    elif (anno_id := str(record["id"])) in annotations:
                        if anno_id in found_annotations:
                            at.tell("duplicate id", f"Annotation {anno_id} stands twice.")
                        image_id = at.field(record, "image_id", int)
                        at.field(record, "segmentation", object)
                        if image_id is not None and "segmentation" in record:
                            found_annotations[anno_id] = image_id, text
                except Damage as damage:
                    tell(damage)
        stream.finish()
    return found_images, found_annotations


def _image(record: Mapping[str, Any], at: Place) -> tuple[str, int, int] | None:
    found = at.fields(record, file_name=str, height=int, width=int)
    if found is None:
        return None
    name, height, width = found
    safe_join(Path(), name, at)
    if not (0 < height <= MOST_SIDE and 0 < width <= MOST_SIDE):
        at.tell("malformed mask", f"The image is {height} x {width} pixels.")
        return None
    return name, height, width
