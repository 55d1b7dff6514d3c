"""ReasonSeg: one JSON per image with questions and hand-drawn polygons, some of them "ignore"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.config.schema import option
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import Damage, Place, bad_name, check_link, read_json, wordless
from refseg_bench.datasets.masks import Size, are_coordinates, misses
from refseg_bench.errors import DataError
from refseg_bench.files.images import image_size
from refseg_bench.types import Clip, Expression, MaskTrack, Target

IGNORE = 255


def raster(points: Sequence[Sequence[float]], canvas_HW: NDArray[np.uint8], value: int) -> None:
    """Paint one polygon as LISA does: closed outline of one pixel, then the filling.

    Coordinates (``[[x, y], …]``) are cut to whole numbers towards zero; the lines follow OpenCV's rules.
    """
    import cv2

    corners = np.array([points], dtype=np.float64).astype(np.int32)
    cv2.polylines(canvas_HW, [*corners], True, value, 1)
    cv2.fillPoly(canvas_HW, [*corners], value)


def label_map(shapes: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask of an image: 1 = target, 255 = ignore, 0 = background.

    Polygons are painted by raster area, largest first, so that small ones stay visible; of equal
    areas the one listed later is painted first, as sorting upwards and reversing does. A label
    that *contains* "ignore" paints 255; one that *is* "flag" is no polygon of the image.

    Args:
        shapes: ``{"label": str, "points": [[x, y], …]}`` each.
        size: (height, width) of the image.
    """
    kept = [s for s in shapes if s["label"].lower() != "flag"]
    areas = []
    for shape in kept:
        canvas = np.zeros(size, np.uint8)
        raster(shape["points"], canvas, 1)
        areas.append(int(np.count_nonzero(canvas)))
    out = np.zeros(size, np.uint8)
    for index in np.argsort(np.array(areas, np.int64), kind="stable")[::-1].tolist():
        shape = kept[index]
        raster(shape["points"], out, IGNORE if "ignore" in shape["label"].lower() else 1)
    return out


@dataclass
class ReasonSeg(Dataset):
    """ReasonSeg. A clip is one image, its expressions are the ``text`` entries of its JSON."""

    name: str = "reasonseg"  #: name of the set
    split: str = "val"  #: ``train``, ``val`` or ``test``
    root: Path | None = option(None, transient=True)  #: the set's folder; ``None`` = it is looked for
    #: Folder names its archives unpack to, looked for below ``root`` too.
    folders: list[str] = option(["ReasonSeg", "reason_seg/ReasonSeg", "reason_seg"], transient=True)
    #: ``first`` = ``text[0]`` only, which is what LISA evaluates; ``all``.
    texts: Literal["first", "all"] = "first"
    #: Ids a run is scored under unless it says otherwise.
    protocols: list[str] = option(["reasonseg-lisa"], transient=True)
    follow_links: bool = option(False, transient=True)  #: read symbolic links that lead out of ``root``

    _last: tuple[str, dict[str, Any]] = field(default=("", {}), init=False, repr=False, compare=False)

    def clips(self) -> Sequence[Clip]:
        """One clip per image, sorted by name; none may lack its JSON, or the reverse."""
        files = sorted(p for p in self._folder.iterdir() if p.name[0] != ".")
        images: dict[str, Path] = {}
        for path in files:
            if path.suffix.lower() not in (".jpg", ".jpeg"):
                continue
            if reason := bad_name(path.name):
                told = f"The image's name {reason}."
                self.tell(Damage("unsafe name", told, path, hint="Rename it and its JSON."))
            if (other := images.setdefault(path.stem, path)) != path:
                told = f"The images '{other.name}' and '{path.name}' share one JSON."
                hint = "Take away the one that the JSON isn't of, or rename it with a JSON of its own."
                self.tell(Damage("duplicate id", told, path, hint=hint))
        jsons = {p.stem for p in files if p.suffix == ".json"}
        for name in sorted(set(images) - jsons):
            told = f"Image '{images[name].name}' has no JSON."
            self.tell(Damage("missing file", told, self._folder / f"{name}.json"))
        for name in sorted(jsons - set(images)):
            told = f"'{name}.json' has no image."
            self.tell(Damage("missing frame", told, self._folder / f"{name}.jpg"))
        if not images and not jsons:
            told = f"The split's folder '{self.split}' holds no image."
            self.tell(Damage("missing file", told, self._folder))
        clips: list[Clip] = []
        for name, path in images.items():
            homes = self.home, self._folder
            if name not in jsons or (
                path.is_symlink() and not check_link(path, *homes, follow=self.follow_links, tell=self.tell)
            ):
                continue
            try:
                # Annotators saw, and LISA's tool (OpenCV) reads, the picture as its header turns it.
                clips.append(Clip(name, (path,), (name,), image_size(path, upright=True), upright=True))
            except DataError as error:
                self.tell(Damage("unreadable frame", error.what, path))
        return clips

    def expressions(self, clip: Clip) -> list[Expression]:
        """The texts of an image, with ``is_sentence`` (long) or not (short)."""
        at, record = self._record(clip)
        found = at.fields(record, text=list, is_sentence=bool)
        if found is None:
            return []
        texts, sentence = found
        if not texts:
            at.at("text").tell("empty expression", "The image has no text.")
        out: list[Expression] = []
        for index, text in enumerate(texts[:1] if self.texts == "first" else texts):
            here = at.at(f"text[{index}]")
            if not here.holds(text, str):
                continue
            if wordless(text):
                here.tell("empty expression", "The text has no words.")
                continue
            attrs = {"is_sentence": sentence, "type": "long" if sentence else "short", "text_index": index}
            out.append(Expression(str(index), text, attrs))
        return out

    def target(self, clip: Clip, expression: Expression) -> Target:
        """What the polygons cover, the same for all texts; no polygon = an empty target."""
        at, record = self._record(clip)
        shapes = at.field(record, "shapes", list)
        drawn_on = record.get("imageHeight"), record.get("imageWidth")
        if None not in drawn_on and drawn_on not in (clip.size, clip.size[::-1]):
            told = (
                f"Its polygons were drawn on {drawn_on} pixels, the picture is {clip.size} (height, width)."
            )
            at.tell("frame of another size", told, harmless=True)
        readable = [s for i, s in enumerate(shapes or []) if _is_shape(s, clip.size, at.at(f"shapes[{i}]"))]
        labels = label_map(readable, clip.size)
        drawn = any("ignore" not in s["label"].lower() and s["label"].lower() != "flag" for s in readable)
        objects = (MaskTrack.from_masks([labels == 1], clip.size),) if drawn else ()
        void = labels == IGNORE
        return Target(
            clip.size,
            1,
            objects,
            ("target",) * len(objects),
            void=MaskTrack.from_masks([void], clip.size) if void.any() else None,
        )

    def truth_files(self, clip: Clip) -> list[Path | None]:
        """The image's JSON."""
        return [self._folder / f"{clip.id}.json"]

    def landmarks(self) -> list[str]:
        """The split's folder."""
        return ["{split}/"]

    @property
    def _folder(self) -> Path:
        return self.home / self.split

    def _record(self, clip: Clip) -> tuple[Place, dict[str, Any]]:
        file = self._folder / f"{clip.id}.json"
        if self._last[0] != clip.id:
            # Some files of the release were saved on Windows.
            record = read_json(file, ("utf-8-sig", "cp1252"))
            Place(file).holds(record, dict)
            self._last = clip.id, record
        return Place(file, told=self.tell), self._last[1]


def _is_shape(shape: Any, size: Size, at: Place) -> bool:
    found = at.fields(shape, label=str, points=list) if at.holds(shape, dict) else None
    if found is None:
        return False
    label, points = found
    if label.lower() == "flag":
        return True
    if points and all(isinstance(p, list) and len(p) == 2 and are_coordinates(p) for p in points):
        kind = shape.get("shape_type") or "polygon"
        if kind != "polygon" or len(points) < 3:
            told = f"A {kind} of {len(points)} points is taken for a polygon of these corners, as LISA does."
            at.tell("shape that is no polygon", told, harmless=True)
        return not misses([x for x, _ in points], [y for _, y in points], size, at)
    at.at("points").tell("malformed mask", "A polygon must be a list of [x, y] numbers within 10^6.")
    return False
