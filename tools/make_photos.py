"""Write the ``photos`` sample set: ``python -m tools.make_photos [--root datasets/photos]``.

Photographs from scikit-image's wheel (only those whose licence lets anyone copy them; nothing is
downloaded), hand-drawn polygons and sentences from ``polygons.json``; the result has RefCOCO's
layout. ``--overlay DIR`` draws the outlines over the pictures, for looking.
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from refseg_bench.errors import DataError, MissingExtra
from tools.writers import ImageRecord, write_refcoco_set

QUALITY = 88
_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 160, 255), (255, 255, 0))


def drawings(root: Path) -> list[dict[str, Any]]:
    """The pictures with their objects: ``polygons.json``."""
    return list(json.loads((root / "polygons.json").read_text(encoding="utf-8")))


def picture(drawing: dict[str, Any]) -> np.ndarray:
    """The photograph a drawing belongs to, RGB, as scikit-image ships it.

    Raises:
        MissingExtra: scikit-image is not installed.
        DataError: its picture has another size than the one that was drawn on.
    """
    package, _, inner = str(drawing["source"]).partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtra("Making the photos set", "scikit-image", "dev")
    path = Path(spec.origin).parent / inner
    image = np.asarray(Image.open(path).convert("RGB"))
    if list(image.shape[:2]) != drawing["size"]:
        raise DataError(
            f"The picture is {image.shape[:2]}, the polygons were drawn at {tuple(drawing['size'])}.",
            where=path,
            hint="Install the release of scikit-image named in datasets/photos/README.md.",
        )
    return image


def record(drawing: dict[str, Any]) -> ImageRecord:
    """One image for the writer: every object is a ref with its sentences."""
    objects = drawing["objects"]
    return ImageRecord(
        file_name=f"{drawing['image']}.jpg",
        image_HWC=picture(drawing),
        segmentations=[each["polygons"] for each in objects],
        refs=[((index,), each["sentences"]) for index, each in enumerate(objects)],
        split="val",
    )


def overlay(drawing: dict[str, Any], scale: int = 2) -> Image.Image:
    """The picture, enlarged, with the outlines of its objects."""
    image = Image.fromarray(picture(drawing))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    for index, each in enumerate(drawing["objects"]):
        for polygon in each["polygons"]:
            corners = [(scale * x, scale * y) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
            pen.line([*corners, corners[0]], fill=_COLOURS[index % len(_COLOURS)], width=2)
    return image


def main() -> None:
    """Write the set and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("datasets/photos"), help="folder to write to")
    parser.add_argument("--polygons", type=Path, help="folder of polygons.json (default: the root)")
    parser.add_argument("--overlay", type=Path, help="draw the outlines into this folder instead")
    options = parser.parse_args()
    drawn = drawings(options.polygons or options.root)
    if options.overlay is not None:
        options.overlay.mkdir(parents=True, exist_ok=True)
        for drawing in drawn:
            overlay(drawing).save(options.overlay / f"{drawing['image']}.png")
        return
    counts = write_refcoco_set(options.root, [record(drawing) for drawing in drawn], jpeg_quality=QUALITY)
    size = sum(path.stat().st_size for path in options.root.rglob("*") if path.is_file())
    print(f"{options.root}: {counts}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
