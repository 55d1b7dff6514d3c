"""Predictions as one COCO file, for tools that show or post-process COCO (FiftyOne, CVAT …).

Each frame is an image, each mask an annotation with its compressed run lengths; the expression is the
annotation's ``expression``. COCO has no word for a sample without a prediction: those are left out and
named in ``info``, as are samples that were predicted on other data than the data set holds now.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg_bench.files.store_io import output
from refseg_bench.run.build import dataset_of, received
from refseg_bench.run.inputs import Present, stale, without
from refseg_bench.run.shards import plan
from refseg_bench.run.store import RunStore
from refseg_bench.types import sample_id


def to_coco(store: RunStore) -> dict[str, Any]:
    """The predictions of a run; frames where the answer is "absent" have no annotation."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    left_out: list[str] = []
    dataset = dataset_of(received(store))
    work = plan(dataset)
    differing = stale(store, work, Present(dataset))
    for clip, expressions in work:
        found = without(store.predictions(clip.id), clip, differing)
        first = len(images) + 1
        height, width = clip.size
        for index, (path, name) in enumerate(zip(clip.frame_paths, clip.frame_names, strict=True)):
            images.append(
                {
                    "id": first + index,
                    "file_name": str(path.absolute()),
                    "width": width,
                    "height": height,
                    "clip": clip.id,
                    "frame": name,
                }
            )
        for e in expressions:
            prediction = found.get(e.id)
            if prediction is None or prediction.track is None:
                left_out.append(sample_id(clip.id, e.id))
                continue
            for index, counts in enumerate(prediction.track.rles):
                if counts is None:
                    continue
                rle: Any = {"size": [height, width], "counts": counts}
                area = int(coco_mask.area(rle))
                if area:
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": first + index,
                            "category_id": 1,
                            "segmentation": {"size": [height, width], "counts": counts.decode("ascii")},
                            "bbox": np.asarray(coco_mask.toBbox(rle)).tolist(),
                            "area": area,
                            "iscrowd": 0,
                            "score": 1.0,
                            "sample": sample_id(clip.id, e.id),
                            "expression": e.text,
                        }
                    )
    return {
        "info": {"description": f"predictions of {store.root.name}", "without_prediction": left_out},
        "licenses": [],
        "categories": [{"id": 1, "name": "referred", "supercategory": ""}],
        "images": images,
        "annotations": annotations,
    }


def write_coco(store: RunStore, path: Path) -> None:
    """Write :func:`to_coco` to a file.

    Raises:
        StoreError: it can't be written.
    """
    text = json.dumps(to_coco(store), separators=(",", ":")) + "\n"
    with output(path) as handle:
        handle.write(text.encode())
