"""Where the masks of a video set come from: run-length dictionaries or folders of PNGs.

Each source answers one question: the tracks of these objects in this clip. In a run-length
dictionary ``null`` says that the object does not show; where a PNG is missing, either the frame
was not annotated (ReasonVOS) or the copy is damaged (everywhere else).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from refseg_bench.datasets.damage import UNPACK_AGAIN, Damage, Report, refuse
from refseg_bench.datasets.files import check_link, safe_join
from refseg_bench.datasets.offsets import Entries, open_entries, open_store
from refseg_bench.datasets.pickles import pickled_items
from refseg_bench.datasets.rle import Size, blank, checked_rle, checked_track
from refseg_bench.files import png
from refseg_bench.types import Clip, MaskTrack, encode_rle


@dataclass(frozen=True)
class Wanted:
    """One object whose masks are asked for.

    Attributes:
        object_id: the object's name within its video.
        anno_id: its name in a mask dictionary or among annotation folders.
    """

    object_id: str
    anno_id: str


class MaskSource(Protocol):
    """Gives the annotated tracks of a clip's objects.

    Attributes:
        path: where they are.
        encodings: how mask files read so far are stored, in words → number of files.
    """

    path: Path
    encodings: Counter[str]

    def tracks(self, clip: Clip, wanted: Sequence[Wanted], report: Report = refuse) -> list[MaskTrack]:
        """One track per wanted object, in that order."""

    def void(self, clip: Clip, report: Report = refuse) -> MaskTrack | None:
        """Pixels that are neither object nor background, where the source marks them."""


# ── run-length dictionaries ──────────────────────────────────────────────────


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
class RunLengthMasks:
    """``{anno_id: [RLE or null per frame]}``.

    The objects of the last clip are kept, because its expressions share them.
    """

    path: Path
    entries: Entries
    encodings: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _clip: str | None = field(default=None, init=False, repr=False)
    _tracks: dict[str, MaskTrack] = field(default_factory=dict, init=False, repr=False)

    def tracks(self, clip: Clip, wanted: Sequence[Wanted], report: Report = refuse) -> list[MaskTrack]:
        """See :class:`MaskSource`."""
        if self._clip != clip.id:
            self._clip, self._tracks = clip.id, {}
        for one in wanted:
            if one.anno_id not in self._tracks:
                self._tracks[one.anno_id] = self._track(clip, one.anno_id, report)
        return [self._tracks[one.anno_id] for one in wanted]

    def _track(self, clip: Clip, anno_id: str, report: Report) -> MaskTrack:
        try:
            entries = self.entries.get(anno_id)
        except Damage as damage:
            report(damage)
            return MaskTrack.empty(clip.size, len(clip))
        place = f"anno_id {anno_id}"
        rles = checked_track(entries, clip.size, len(clip), file=self.path, place=place, report=report)
        return MaskTrack(clip.size, rles)

    def size(self, anno_id: str) -> Size | None:
        """(height, width) of an object's first mask; ``None`` if it never shows or can't be read."""
        with contextlib.suppress(Damage):
            for entry in self.entries.get(anno_id) or ():
                if entry is not None:
                    found = checked_rle(entry, None, file=self.path, place=f"anno_id {anno_id}")
                    return found[1] if found else None
        return None

    def void(self, clip: Clip, report: Report = refuse) -> MaskTrack | None:
        """These dictionaries hold no void."""
        return None


# ── folders of PNGs ──────────────────────────────────────────────────────────


def read_labels(path: Path, tally: Counter[str] | None = None) -> NDArray[np.uint8]:
    """A label map: the palette *index* (or grey value) per pixel.

    Args:
        path: the file.
        tally: counts how files are stored.

    Raises:
        Damage: missing, torn, or an image whose pixels are no labels.
    """
    with _told(path):
        labels, encoding = png.read_labels(path)
    if tally is not None:
        tally[encoding] += 1
    return labels


def read_binary(path: Path, tally: Counter[str] | None = None) -> NDArray[np.bool_]:
    """A mask as the tools read it (:func:`refseg_bench.files.png.read_mask`); any nonzero value of a
    file in which that reading sees nothing but one level, as the data sets define their masks.

    Args:
        path: the file.
        tally: counts how files are stored.

    Raises:
        Damage: missing or torn, or a mask in an alpha channel.
    """
    with _told(path):
        try:
            mask, encoding = png.read_mask(path)
        except png.MaskFault as fault:
            if fault.kind != "flat":
                raise
            labels, encoding = png.read_labels(path)
            mask, encoding = labels != 0, f"{encoding}, all nonzero"
    if tally is not None:
        tally[encoding] += 1
    return mask


_KINDS = {"missing": "missing mask", "torn": "torn mask"}


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except png.MaskFault as fault:
        kind = _KINDS.get(fault.kind)
        cure = UNPACK_AGAIN if kind or not fault.cure else fault.cure
        raise Damage(kind or "mask of another mode", fault.what, file=path, cure=cure) from fault


@dataclass
class LabelMapMasks:
    """``<video>/<frame>.png`` with the object's id as pixel value, all objects in one map.

    All objects of a clip are read in one pass and kept until another clip is asked for, because
    a clip's expressions are read one after the other.

    Attributes:
        path: folder of the videos.
        home: the data set's folder, which links must not leave.
        void_label: pixel value that belongs to nobody, or ``None``.
        follow_links: read links that lead out of ``home``.
    """

    path: Path
    home: Path
    void_label: int | None = None
    follow_links: bool = False
    encodings: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _clip: str | None = field(default=None, init=False, repr=False)
    _labels: dict[int, MaskTrack] = field(default_factory=dict, init=False, repr=False)

    def tracks(self, clip: Clip, wanted: Sequence[Wanted], report: Report = refuse) -> list[MaskTrack]:
        """See :class:`MaskSource`. An object whose id no frame holds is absent in all of them."""
        self._read(clip, report)
        absent = MaskTrack.empty(clip.size, len(clip))
        out: list[MaskTrack] = []
        for one in wanted:
            if not one.object_id.isdecimal() or not 0 < int(one.object_id) < 256:
                report(
                    Damage(
                        "bad object id",
                        f"The object id '{one.object_id}' is no pixel value of a label map.",
                        file=self.path / clip.id,
                        place=f"object {one.object_id}",
                        allowed=["1 to 255"],
                        cure="Use the masks and the expression file of one release.",
                    )
                )
                out.append(absent)
                continue
            track = self._labels.get(int(one.object_id))
            if track is None:
                report(
                    Damage(
                        "object without a pixel",
                        f"No frame of '{clip.id}' shows object {one.object_id}.",
                        file=self.path / clip.id,
                        place=f"object {one.object_id}",
                        allowed=sorted(self._labels),
                        cure="Use the masks and the expression file of one release.",
                    )
                )
            out.append(track or absent)
        return out

    def void(self, clip: Clip, report: Report = refuse) -> MaskTrack | None:
        """See :class:`MaskSource`."""
        if self.void_label is None:
            return None
        self._read(clip, report)
        return self._labels.get(self.void_label)

    def files(self, clip: Clip) -> list[Path | None]:
        """The map of every frame, ``None`` where it is missing."""
        folder = self.path / clip.id
        return [p if (p := folder / f"{name}.png").is_file() else None for name in clip.frame_names]

    def extra(self, clip: Clip) -> list[Path]:
        """Maps that belong to no frame of the clip."""
        known = set(clip.frame_names)
        folder = self.path / clip.id
        return sorted(p for p in folder.glob("*.png") if p.stem not in known and p.name[0] != ".")

    def _read(self, clip: Clip, report: Report) -> None:
        if self._clip == clip.id:
            return
        self._clip = None
        rles: dict[int, list[bytes]] = {}
        folder = safe_join(self.path, clip.id, file=self.path, place=clip.id)
        read = partial(read_labels, tally=self.encodings)
        for index, labels in frame_masks(folder, clip, read, self.home, self.follow_links, report):
            for label in np.unique(labels).tolist():
                if label:
                    track = rles.setdefault(label, [blank(clip.size)] * len(clip))
                    track[index] = encode_rle(labels == label)
        self._labels = {label: MaskTrack(clip.size, tuple(track)) for label, track in rles.items()}
        if report is refuse:
            self._clip = clip.id


def other_size(path: Path, found: tuple[int, ...], size: tuple[int, int]) -> Damage:
    """The error of a mask that doesn't fit its frame."""
    return Damage(
        "mask of another size",
        f"The mask is {found[0]} x {found[1]}, its frame {size[0]} x {size[1]} (height x width).",
        file=path,
    )


def frame_masks(
    folder: Path,
    clip: Clip,
    read: Callable[[Path], NDArray[np.uint8] | NDArray[np.bool_]],
    home: Path,
    follow_links: bool,
    report: Report,
) -> Iterator[tuple[int, NDArray[np.uint8] | NDArray[np.bool_]]]:
    """Index and pixels of every readable mask of a clip; damaged ones go to ``report``."""
    if not check_link(folder, home, folder.parent, follow=follow_links, report=report):
        return
    for index, name in enumerate(clip.frame_names):
        path = folder / f"{name}.png"
        if path.is_symlink() and not check_link(path, home, folder, follow=follow_links, report=report):
            continue
        try:
            pixels = read(path)
        except Damage as damage:
            report(damage)
            continue
        if pixels.shape[:2] != clip.size:
            report(other_size(path, pixels.shape, clip.size))
            continue
        yield index, pixels


@dataclass
class ObjectFolders:
    """``<anno_id>/<frame>.png``, one folder per object, any nonzero pixel = the object (ReasonVOS).

    A frame without a PNG was not annotated and is not scored: its mask is ``None``.

    Attributes:
        path: folder of the objects.
        home: the data set's folder, which links must not leave.
        follow_links: read links that lead out of ``home``.
    """

    path: Path
    home: Path
    follow_links: bool = False
    encodings: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    def tracks(self, clip: Clip, wanted: Sequence[Wanted], report: Report = refuse) -> list[MaskTrack]:
        """See :class:`MaskSource`."""
        return [self._track(clip, one, report) for one in wanted]

    def void(self, clip: Clip, report: Report = refuse) -> MaskTrack | None:
        """These folders hold no void."""
        return None

    def _track(self, clip: Clip, one: Wanted, report: Report) -> MaskTrack:
        rles: list[bytes | None] = [None] * len(clip)
        folder = safe_join(self.path, one.anno_id, file=self.path, place=one.anno_id)
        if not folder.is_dir():
            report(
                Damage("missing mask", f"The object's mask folder '{one.anno_id}' is missing.", file=folder)
            )
            return MaskTrack(clip.size, tuple(rles))
        names = (entry.name for entry in os.scandir(folder))
        present = {name[:-4] for name in names if name.endswith(".png") and name[0] != "."}
        for name in sorted(present - set(clip.frame_names)):
            report(
                Damage(
                    "extra mask",
                    f"The mask '{name}.png' belongs to no frame of video '{clip.id}'.",
                    file=folder / f"{name}.png",
                    cure=UNPACK_AGAIN,
                )
            )
        if not present:
            report(Damage("missing mask", f"The mask folder '{one.anno_id}' holds no PNG.", file=folder))
        annotated = Clip(
            clip.id,
            tuple(p for p, n in zip(clip.frame_paths, clip.frame_names, strict=True) if n in present),
            tuple(n for n in clip.frame_names if n in present),
            clip.size,
        )
        places = {name: index for index, name in enumerate(clip.frame_names)}
        read = partial(read_binary, tally=self.encodings)
        for index, mask in frame_masks(folder, annotated, read, self.home, self.follow_links, report):
            rles[places[annotated.frame_names[index]]] = encode_rle(mask)
        return MaskTrack(clip.size, tuple(rles))
