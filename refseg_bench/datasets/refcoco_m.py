"""RefCOCO-M: the sentences and images of RefCOCO's UNC val split under tighter masks, in Parquet files.

A row is an image with its samples: annotations, each with a mask in run lengths and its sentences.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from refseg_bench.config.schema import option
from refseg_bench.datasets.files import Damage, Place, safe_join, wordless
from refseg_bench.datasets.masks import Size, checked_rle
from refseg_bench.datasets.pickles import parquet_rows
from refseg_bench.datasets.ref_davis17 import link_or_copy
from refseg_bench.datasets.refcoco import RefCoco


@dataclass
class RefCocoM(RefCoco):
    """RefCOCO-M. Its only split is ``val``; an expression's id is its annotation's and a number from 0.

    The pictures are in the Parquet files, from which ``refseg data prepare`` writes them to ``images``;
    COCO's own folder does as well.
    """

    name: str = "refcoco_m"
    folders: list[str] = option(["refcoco_m", "refcoco-m"], transient=True)
    refs: list[str] = option(["validation*.parquet", "data/validation*.parquet"])
    images: list[str] = option(
        ["images", "../images/mscoco/images/train2014", "../images/train2014", "../train2014"]
    )

    def layout(self) -> list[str]:
        """The Parquet files and the pictures' folders."""
        return [*self.refs, *self.images]

    def sources(self) -> list[Path]:
        """The Parquet files."""
        return next(files for pattern in self.refs if (files := sorted(self.home.glob(pattern))))

    def joined(self) -> Iterator[tuple[str, bytes]]:
        """Entries of the store, as RefCOCO's."""
        table: list[list[Any]] = []
        seen: set[int] = set()
        for file in self.sources():
            for number, row in enumerate(parquet_rows(file, ("image_id", "file_name", "samples"))):
                at = Place(file, f"row {number}", self.tell)
                found = at.fields(row, image_id=int, file_name=str, samples=list)
                if found is None:
                    continue
                image_id, name, samples = found
                if image_id in seen:
                    at.tell("duplicate id", f"Image {image_id} stands twice.")
                    continue
                seen.add(image_id)
                refs, annotations, size = _samples(samples, at)
                if size is None:
                    at.tell("missing field", f"Image {image_id} has no sample.")
                    continue
                table.append([image_id, name, *size])
                entry = {"refs": refs, "annotations": annotations}
                yield f"image:val:{image_id}", json.dumps(entry).encode()
        yield "table:val", json.dumps(table).encode()

    def convert(self, places: Sequence[Path], stage: Path, say: Callable[[str], None]) -> Path:
        """The Parquet files side by side, and their pictures as files."""
        made = stage / "made"
        found = [file for place in places for file in ([place], place.rglob("*"))[place.is_dir()]]
        files = {file.name: file for file in found if file.match("validation*.parquet")}
        if not files:
            hint = "Give the snapshot's folder, or its files data/validation-*.parquet."
            raise Damage("missing file", "Nothing given is validation*.parquet.", places[0], hint=hint)
        for name, file in sorted(files.items()):
            for number, row in enumerate(parquet_rows(file, ("file_name", "image"))):
                at = Place(file, f"row {number}")
                path = safe_join(made / "images", row["file_name"], at)
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = at.at("image").field(at.field(row, "image", dict), "bytes", str)
                try:
                    path.write_bytes(base64.b64decode(picture, validate=True))
                except ValueError:
                    at.at("image").tell("wrong type", "'bytes' holds text, no bytes.")
            link_or_copy(file, made / name)
            say(f"  unpacked the pictures of {name}")
        return made

    def _stored_splits(self) -> list[str]:
        return ["val"]

    @cached_property
    def _refs(self) -> Path:
        return self.sources()[0]

    @cached_property
    def _instances(self) -> Path:
        return self._refs


def _samples(samples: Sequence[Any], at: Place) -> tuple[list[dict[str, Any]], dict[str, Any], Size | None]:
    """The refs and annotations of an image as RefCOCO's store has them, and its size by the masks."""
    refs: list[dict[str, Any]] = []
    annotations: dict[str, Any] = {}
    size: Size | None = None
    for number, sample in enumerate(samples):
        here = at.at(f"samples[{number}]")
        found = here.fields(sample, id=int, sentences=list) if here.holds(sample, dict) else None
        if found is None:
            continue
        mask = checked_rle(sample.get("mask"), size, here.at("mask"))
        if mask is None:
            continue
        anno_id, size = str(found[0]), mask[1]
        if anno_id in annotations:
            here.tell("duplicate id", f"Annotation {anno_id} stands twice.")
            continue
        annotations[anno_id] = {"segmentation": {"size": list(size), "counts": mask[0].decode("ascii")}}
        refs.append(
            {
                "ref_id": found[0],
                "anno_ids": [anno_id],
                "obj_ids": [anno_id],
                "no_target": False,
                "category": sample.get("category"),
                "sentences": list(_sentences(anno_id, found[1], here)),
            }
        )
    return refs, annotations, size


def _sentences(anno_id: str, sentences: Sequence[Any], at: Place) -> Iterator[Mapping[str, Any]]:
    for number, text in enumerate(sentences):
        here = at.at(f"sentences[{number}]")
        if here.holds(text, str) and not wordless(text):
            yield {"sent_id": f"{anno_id}_{number}", "sent": text, "raw": text, "tokens": text.split()}
        elif isinstance(text, str):
            here.tell("empty expression", "The sentence has no words.")
