"""Where the masks of a data set come from: checked run lengths, dictionaries of them, folders of PNGs.

Each source answers one question: the tracks of these objects in this clip. In a run-length
dictionary ``null`` says that the object does not show; where a PNG is missing, either the frame
was not annotated (ReasonVOS) or the copy is damaged (everywhere else).
"""

from __future__ import annotations

import contextlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refseg_bench.datasets.files import (
    Damage,
    Place,
    Tell,
    check_link,
    file_names,
    png_names,
    refuse,
    safe_join,
)
from refseg_bench.datasets.index import Entries, open_entries, open_store
from refseg_bench.datasets.pickles import pickled_items
from refseg_bench.errors import DataError
from refseg_bench.files import png
from refseg_bench.types import Clip, MaskTrack, encode_rle, rle_fault

Size = tuple[int, int]
#: Widest and highest that a mask or a video can be.
MOST_SIDE = 65535


# ── one mask in run lengths, measured before anything decodes it ─────────────


@lru_cache(maxsize=64)
def blank(size: Size) -> bytes:
    """The mask that says "absent"."""
    return encode_rle(np.zeros(size, np.uint8))


def checked_rle(entry: Any, size: Size | None, at: Place) -> tuple[bytes, Size] | None:
    """One RLE of a data file as compressed counts.

    Args:
        entry: ``{"size": [h, w], "counts": text or list of runs}``, as JSON gives it.
        size: the (height, width) it must have, or ``None`` for any.
        at: where it was read.

    Returns:
        Counts and size, or ``None`` after telling a problem.
    """
    if not isinstance(entry, Mapping) or "size" not in entry or "counts" not in entry:
        at.tell("malformed mask", "A mask must be an object with 'size' and 'counts', or null.")
        return None
    own = entry["size"]
    if not isinstance(own, list) or [type(n) is int and 0 < n <= MOST_SIDE for n in own] != [True, True]:
        at.tell("malformed mask", f"The mask's size {own!r} is no [height, width].")
        return None
    mine = (own[0], own[1])
    if size is not None and mine != size:
        at.tell("mask of another size", _sizes(mine, size))
        return None
    counts = entry["counts"]
    if isinstance(counts, str):
        # Only ASCII is in the alphabet; anything else fails the measurement below.
        counts = counts.encode("ascii", "replace")
    elif isinstance(counts, list):
        if not all(type(n) is int and n >= 0 for n in counts):
            at.tell("torn mask", "The mask's run lengths are not whole numbers from 0 up.")
            return None
        if sum(counts) != mine[0] * mine[1]:
            at.tell("torn mask", f"The mask's runs cover {sum(counts)} pixels of {mine[0] * mine[1]}.")
            return None
        counts = bytes(coco_mask.frPyObjects({"size": own, "counts": counts}, *mine)["counts"])
    if not isinstance(counts, bytes):
        at.tell("malformed mask", f"The mask's counts are {type(counts).__name__}.")
        return None
    reason = rle_fault(counts, mine)
    if reason is not None:
        at.tell("torn mask", f"The mask's run-length code is damaged: {reason}.")
        return None
    return counts, mine


def are_coordinates(values: Sequence[Any]) -> bool:
    """Whether all values are numbers that a polygon's corner can have."""
    return all(type(v) in (int, float) and abs(v) < 1e6 for v in values)


def misses(xs: Sequence[float], ys: Sequence[float], size: Size, at: Place) -> bool:
    """Whether a polygon lies outside of a picture of that (height, width); tells it if so.

    What seems to be drawn on another picture is told as well.
    """
    if max(xs) >= 0 and max(ys) >= 0 and min(xs) <= size[1] and min(ys) <= size[0]:
        reach = max(xs), max(ys)
        if reach[0] > 1.1 * size[1] + 2 or reach[1] > 1.1 * size[0] + 2 or max(reach) <= 1 < min(size):
            told = f"It reaches to x, y {reach[0]:g}, {reach[1]:g} in a picture of {size[1]} x {size[0]}."
            at.tell("polygon of another scale", told, harmless=True)
        return False
    told = f"The polygon lies outside of its picture of {size[0]} x {size[1]} pixels (height x width)."
    at.tell("malformed mask", told, "Use annotations and pictures of one release.")
    return True


def id_list(value: Any) -> list[str] | None:
    """Object ids (``"1"``, ``1``, ``[1, 2]``, ``["1"]``) as texts; -1 alone means nobody; ``None`` of all
    else.
    """
    items = value if isinstance(value, list) else [value]
    if not all(type(item) in (str, int) and str(item).strip() for item in items):
        return None
    found = [text for item in items if (text := str(item)) != "-1"]
    return None if 0 < len(found) < len(items) else found


def _sizes(mask: Sequence[int], size: Size) -> str:
    swapped = ": height and width are swapped" if tuple(mask[:2]) == size[::-1] else ""
    return f"The mask is {mask[0]} x {mask[1]}, its frame {size[0]} x {size[1]} (height x width){swapped}."


def checked_track(entries: Any, clip: Clip, at: Place) -> MaskTrack:
    """The masks of one object: one RLE, or null = absent, per frame; what is told as damaged is absent."""
    out = [blank(clip.size)] * len(clip)
    if not isinstance(entries, list):
        at.tell("malformed mask", "The masks of an object must be a list.")
        entries = ()
    elif len(entries) != len(clip):
        at.tell("mask count differs", f"The object has {len(entries)} masks, its video {len(clip)} frames.")
    for index, entry in enumerate(entries[: len(clip)]):
        if entry is not None and (found := checked_rle(entry, clip.size, at.at(f"[{index}]"))) is not None:
            out[index] = found[0]
    return MaskTrack(clip.size, tuple(out))


# ── sources of tracks ────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Wanted:
    """One object whose masks are asked for."""

    object_id: str  #: the object's name within its video
    anno_id: str  #: its name in a mask dictionary or among annotation folders


@dataclass
class MaskSource(ABC):
    """Gives the annotated tracks of a clip's objects.

    Those of the last clip are kept, because its expressions are read one after the other and share them.
    """

    path: Path  #: where they are
    #: How mask files read so far are stored, in words → number of files.
    encodings: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _clip: str | None = field(default=None, init=False, repr=False)
    _tracks: dict[Wanted, MaskTrack] = field(default_factory=dict, init=False, repr=False)

    def tracks(self, clip: Clip, wanted: Sequence[Wanted], tell: Tell) -> list[MaskTrack]:
        """One track per wanted object, in that order; what is damaged is left empty."""
        if self._clip != clip.id:
            self._clip, self._tracks = clip.id, {}
        for one in wanted:
            if one not in self._tracks:
                self._tracks[one] = self._track(clip, one, tell)
        return [self._tracks[one] for one in wanted]

    @abstractmethod
    def _track(self, clip: Clip, wanted: Wanted, tell: Tell) -> MaskTrack: ...

    def void(self, clip: Clip, tell: Tell) -> MaskTrack | None:
        """Pixels that are neither object nor background, where the source marks them."""
        return None

    @abstractmethod
    def size(self, video: str, names: Sequence[str], anno_ids: Iterable[str]) -> Size | None:
        """(height, width) of a video by the first mask that can be read; ``None`` if there is none."""


def open_mask_dict(path: Path, cache: Path) -> Entries:
    """A mask dictionary, JSON or pickle, indexed for reading one object at a time.

    Raises:
        Damage: missing or torn, or a pickle of anything else.
    """
    if path.suffix == ".json":
        return open_entries(path, cache)
    return open_store(
        (path,), path.name, cache, lambda: ((key, json.dumps(v).encode()) for key, v in pickled_items(path))
    )


@dataclass
class RunLengthMasks(MaskSource):
    """``{anno_id: [RLE or null per frame]}``."""

    entries: Entries

    def _track(self, clip: Clip, wanted: Wanted, tell: Tell) -> MaskTrack:
        try:
            entries = self.entries[wanted.anno_id]
        except Damage as damage:
            tell(damage)
            return MaskTrack.empty(clip.size, len(clip))
        return checked_track(entries, clip, Place(self.path, f"anno_id {wanted.anno_id}", tell))

    def size(self, video: str, names: Sequence[str], anno_ids: Iterable[str]) -> Size | None:
        """See :class:`MaskSource`."""
        for anno_id in anno_ids:
            with contextlib.suppress(Damage):
                entries = self.entries[anno_id]
                shown = (entry for entry in entries if entry) if isinstance(entries, list) else iter(())
                if found := checked_rle(next(shown, None), None, Place(self.path, anno_id)):
                    return found[1]
        return None


# ── folders of PNGs ──────────────────────────────────────────────────────────

_Pixels = TypeVar("_Pixels", bound=NDArray[Any])
_KINDS = {"missing": "missing mask", "torn": "torn mask", "unreadable": "unreadable file"}
#: What a picture's name has in it, be it in capitals, or of a file that is not all there.
_PICTURE = re.compile(r"\.(png|jpe?g|webp|bmp|tiff?)", re.IGNORECASE)


def read_labels(path: Path, tally: Counter[str] | None = None) -> NDArray[np.uint8]:
    """A label map: the palette *index* (or grey value) per pixel; ``tally`` counts how files are stored.

    Raises:
        Damage: missing, torn, or an image whose pixels are no labels.
    """
    return _read(png.read_labels, path, tally)


def read_binary(path: Path, tally: Counter[str] | None = None) -> NDArray[np.bool_]:
    """A mask as the tools read it (:func:`refseg_bench.files.png.read_mask`); any nonzero value of a
    file in which that reading sees nothing but one level, as the data sets define their masks.

    Raises:
        Damage: missing or torn, or a mask in an alpha channel.
    """

    def read(path: Path) -> tuple[NDArray[np.bool_], str]:
        try:
            mask, encoding = png.read_mask(path)
        except png.MaskFault as fault:
            if fault.kind != "flat":
                raise
            with contextlib.suppress(png.MaskFault):
                labels, encoding = png.read_labels(path)
                if not labels.all():
                    return labels != 0, f"{encoding}, all nonzero"
            raise
        if png.lossy(encoding):
            told = "The mask is stored with loss: the blur around its outline is no object."
            raise Damage("mask of another mode", told, path, hint="Use the masks of the release, as PNG.")
        return mask, encoding

    return _read(read, path, tally)


def _read(read: Callable[[Path], tuple[_Pixels, str]], path: Path, tally: Counter[str] | None) -> _Pixels:
    try:
        pixels, encoding = read(path)
    except png.MaskFault as fault:
        kind = _KINDS.get(fault.kind)
        hint = None if kind else fault.hint
        raise Damage(kind or "mask of another mode", fault.what, path, hint=hint) from fault
    if tally is not None:
        tally[encoding] += 1
    return pixels


@dataclass
class _Folders(MaskSource):
    """Folders of one PNG per frame."""

    home: Path  #: the data set's folder, which links must not leave
    follow_links: bool = field(default=False, kw_only=True)  #: read links that lead out of ``home``
    #: There is no PNG of frames that show nothing, and an object may show in none.
    sparse: bool = field(default=False, kw_only=True)

    def mask_name(self, clip: Clip, index: int, there: Collection[str]) -> str:
        """The name, without ending, of a frame's PNG; ``there`` are those of the folder."""
        return clip.frame_names[index]

    def _masks(
        self, folder: Path, clip: Clip, names: Sequence[str], tell: Tell
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Frame index and pixels of every readable mask."""
        if not check_link(folder, self.home, folder.parent, follow=self.follow_links, tell=tell):
            return
        wanted = set(names)
        for index in range(len(clip)):
            name = self.mask_name(clip, index, wanted)
            path = folder / f"{name}.png"
            if name not in wanted or (
                path.is_symlink()
                and not check_link(path, self.home, folder, follow=self.follow_links, tell=tell)
            ):
                continue
            try:
                pixels = self._read(path, self.encodings)
            except Damage as damage:
                tell(damage)
                continue
            if pixels.shape[:2] != clip.size:
                tell(Damage("mask of another size", _sizes(pixels.shape, clip.size), path))
                continue
            yield index, pixels

    def size(self, video: str, names: Sequence[str], anno_ids: Iterable[str]) -> Size | None:
        """See :class:`MaskSource`."""
        from refseg_bench.files.images import image_size

        for path in self.pngs(video, names, anno_ids):
            with contextlib.suppress(DataError):
                return image_size(path)
        return None

    def _tell_extra(self, folder: Path, present: Sequence[str], clip: Clip, tell: Tell) -> None:
        """Tell the masks of a folder that belong to no frame of the clip."""
        there = set(present)
        extra = there - {self.mask_name(clip, index, there) for index in range(len(clip))}
        # A frame without a PNG has no mask, or an empty one: a picture of another ending doesn't say that.
        others = [n for n in file_names(folder) if not n.endswith(".png") and n.split(".")[0] not in there]
        others = others if self.sparse and not there else [n for n in others if _PICTURE.search(n)]
        for name in [*others, *(f"{name}.png" for name in sorted(extra))]:
            told = f"'{name}' belongs to no frame of '{clip.id}', as '{clip.frame_names[0]}.png' would."
            tell(Damage("extra mask", told, folder / name))

    @abstractmethod
    def pngs(self, video: str, names: Sequence[str], anno_ids: Iterable[str]) -> Iterator[Path]:
        """Mask files of a video, any of which tells its size."""

    def _read(self, path: Path, tally: Counter[str]) -> NDArray[Any]:
        return read_binary(path, tally)


@dataclass
class LabelMapMasks(_Folders):
    """``<video>/<frame>.png`` with the object's id as pixel value, all objects in one map.

    All objects of a clip are read in one pass.
    """

    void_label: int | None = None  #: pixel value that belongs to nobody, or ``None``
    #: The object ids that a clip's expressions ask for; ``None`` = not known.
    asked: Callable[[Clip], Collection[str]] | None = field(default=None, kw_only=True)
    _last: tuple[str | None, dict[int, MaskTrack]] = field(default=(None, {}), init=False, repr=False)

    def _track(self, clip: Clip, wanted: Wanted, tell: Tell) -> MaskTrack:
        labels, label = self._labels(clip, tell), wanted.object_id
        at = Place(self.path / clip.id, f"object {label}", tell)
        if not label.isdecimal() or not 0 < int(label) < 256:
            told = f"The object id '{label}' is no pixel value of a label map."
            hint = "Use the masks and the expression file of one release."
            at.tell("bad object id", told, hint, allowed=["1 to 255"])
        elif int(label) in labels:
            return labels[int(label)]
        else:
            told = f"No frame of '{clip.id}' shows object {label}."
            # Objects are counted from 1: high values that nobody asks for are a map made for looking at.
            asked = self.asked(clip) if self.asked and self.sparse else ()
            shown = self.sparse and (min(labels, default=0) < 10 or any(str(i) in asked for i in labels))
            at.tell("object without a pixel", told, allowed=sorted(labels), harmless=shown)
        return MaskTrack.empty(clip.size, len(clip))

    def void(self, clip: Clip, tell: Tell) -> MaskTrack | None:
        """See :class:`MaskSource`."""
        return None if self.void_label is None else self._labels(clip, tell).get(self.void_label)

    def files(self, clip: Clip) -> list[Path | None]:
        """The map of every frame, ``None`` where it is missing."""
        folder = self.path / clip.id
        return [p if (p := folder / f"{name}.png").is_file() else None for name in clip.frame_names]

    def folder(self, clip: Clip) -> Path:
        """The folder of a clip's maps."""
        return safe_join(self.path, clip.id, Place(self.path, clip.id))

    def pngs(self, video: str, names: Sequence[str], anno_ids: Iterable[str]) -> Iterator[Path]:
        """The first frame's map."""
        yield from (self.path / video / f"{name}.png" for name in names[:1])

    def _labels(self, clip: Clip, tell: Tell) -> dict[int, MaskTrack]:
        """The track of every pixel value."""
        if self._last[0] != clip.id:
            rles: dict[int, list[bytes]] = {}
            some: list[NDArray[np.uint8]] = []
            folder, present = self.folder(clip), png_names(self.folder(clip))
            for index, labels in self._masks(
                folder, clip, present if self.sparse else clip.frame_names, tell
            ):
                if len(some) < 8 and tell is not refuse and labels.any():
                    some.append(labels)
                for label in np.unique(labels).tolist():
                    if label:
                        track = rles.setdefault(label, [blank(clip.size)] * len(clip))
                        track[index] = encode_rle(labels == label)
            if png.blended(some):
                told = f"The ids of '{clip.id}' change in steps, as in resized maps: some are blends."
                tell(Damage("blended ids", told, folder, harmless=True))
            if self.sparse or tell is not refuse:
                # A run has no harm of maps that nothing asks for.
                self._tell_extra(folder, present, clip, tell)
            self._last = clip.id, {k: MaskTrack(clip.size, tuple(rle)) for k, rle in rles.items()}
        return self._last[1]

    def _read(self, path: Path, tally: Counter[str]) -> NDArray[Any]:
        return read_labels(path, tally)


class ObjectFolders(_Folders):
    """``<anno_id>/<frame>.png``, one folder per object, any nonzero pixel = the object (ReasonVOS).

    A frame without a PNG was not annotated and is not scored: its mask is ``None``. Where
    PNGs are ``sparse``, it doesn't show the object (Long-RVOS): its mask is empty.
    """

    def pngs(self, video: str, names: Sequence[str], anno_ids: Iterable[str]) -> Iterator[Path]:
        """All masks of the objects."""
        for folder in (safe_join(self.path, i, Place(self.path, i)) for i in anno_ids):
            yield from (folder / f"{name}.png" for name in png_names(folder))

    def _track(self, clip: Clip, wanted: Wanted, tell: Tell) -> MaskTrack:
        anno_id = wanted.anno_id
        rles = [blank(clip.size) if self.sparse else None] * len(clip)
        folder = safe_join(self.path, anno_id, Place(self.path, anno_id))
        present = png_names(folder)
        if not present and not (self.sparse and file_names(folder)):
            what = f"mask folder '{anno_id}' "
            told = f"The {what}holds no PNG." if folder.is_dir() else f"The object's {what}is missing."
            tell(Damage("missing mask", told, folder, harmless=self.sparse and folder.is_dir()))
            return MaskTrack(clip.size, tuple(rles))
        self._tell_extra(folder, present, clip, tell)
        for index, mask in self._masks(folder, clip, present, tell):
            rles[index] = encode_rle(mask)
        return MaskTrack(clip.size, tuple(rles))
