"""A folder of id maps as truth, without images or expressions: what VOS evaluators take.

For scoring predictions of other code under the protocols whose unit is the object
(``davis-semi``, ``davis-unsup``, ``vosb``, ``trackeval``): two folders in, a table out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refseg_bench.config.schema import option
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import Damage, bad_name, png_names, read_text
from refseg_bench.errors import DataError, some
from refseg_bench.types import Clip, Expression, Target

#: Where the folders of the videos may lie below the root, likeliest first.
VIDEO_FOLDERS = (
    "Annotations/480p",
    "Annotations",
    "Annotations/Full-Resolution",
    "Annotations_unsupervised/480p",
    "Annotations_unsupervised",
    "Annotations_unsupervised/Full-Resolution",
    "480p",
    "",
)
#: Where lists of videos may lie (DAVIS' lists of 2016 name frames, not videos).
LIST_FOLDERS = ("", "ImageSets/2017", "ImageSets")
#: The split that means every video.
ALL = "all"


@dataclass
class IdMaps(Dataset):
    """``<root>/<video>/<frame>.png``, pixel value = object id; ``Annotations/`` above it is fine."""

    root: Path | None = option(None, transient=True)  #: the folder of the videos, or a DAVIS tree
    #: ``all``, or the name of a list of videos: ``<root>/<split>.txt`` or
    #: ``<root>/ImageSets/2017/<split>.txt``.
    split: str = ALL
    name: str = "id_maps"  #: name of the set
    #: Ids scored under unless the command says otherwise.
    protocols: list[str] = option(["vosb"], transient=True)

    _clips: list[Clip] | None = field(default=None, init=False, repr=False, compare=False)

    def clips(self) -> Sequence[Clip]:
        """One clip per folder that holds PNG files, sorted by name.

        Raises:
            DataError: there is no folder of maps, no list of that split, or a listed video has no maps.
        """
        if self._clips is None:
            self._clips = [self._clip(folder) for folder in self._folders()]
        return self._clips

    def expressions(self, clip: Clip) -> Sequence[Expression]:
        """None: objects have ids, not words."""
        return ()

    def target(self, clip: Clip, expression: Expression) -> Target | None:
        """Nothing to ask for, because there are no expressions."""
        return None

    def annotation_files(self, clip: Clip) -> Sequence[Path]:
        """The id map of every frame."""
        return clip.frame_paths

    def taken(self) -> str:
        """Which folder and list stand as the truth, and which others lie beside them."""
        top, *others = self._tops()
        number = len(self.clips())
        count = f"{number} video{'s' * (number != 1)}"
        lists = self._lists()
        if self.split != ALL:
            count += f" of {lists[self.split]}"
        elif lists:
            count += f" (--split takes those of a list: {', '.join(sorted(lists))})"
        beside = f"; also there, for --root: {', '.join(map(str, others))}" if others else ""
        return f"{top}, {count}{beside}"

    def _tops(self) -> list[Path]:
        """The folders that hold videos, the one taken first."""
        if self.root is None or not self.root.is_dir():
            raise DataError(
                "The folder of id maps is not there.", where=self.root, hint="Give it with --root."
            )
        tops = [top for top in (self.root / name for name in VIDEO_FOLDERS) if any(_videos(top))]
        if not tops:
            raise DataError(
                "No <video>/<frame>.png here.", where=self.root, hint="Check the path behind --root."
            )
        return tops

    def _lists(self) -> dict[str, Path]:
        """Split → its list of videos."""
        assert self.root is not None
        bases = [self.root]
        # <tree>/Annotations/480p, whose lists lie in <tree>/ImageSets.
        for folder in (self.root, *list(self.root.resolve().parents)[:1]):
            if folder.name.startswith("Annotations"):
                bases.append(folder.parent)
        folders = [base / name for base in bases for name in reversed(LIST_FOLDERS)]
        found = [p for folder in folders for p in sorted(folder.glob("*.txt"))]
        return {p.stem: p for p in found if p.is_file() and not p.name.startswith(".")}

    def _folders(self) -> list[Path]:
        videos = {folder.name: folder for folder in _videos(self._tops()[0])}
        lists = self._lists()
        if self.split == ALL:
            for folder in sorted(self._tops()[0].iterdir()):
                if folder.is_dir() and folder.name[0] != "." and not any(folder.iterdir()):
                    told = f"'{folder.name}' is empty: it is no video here."
                    self.tell(Damage("video without frames", told, folder, harmless=True))
            return list(videos.values())
        if self.split not in lists:
            raise DataError(
                f"There is no list of the split '{self.split}'.",
                where=self.root,
                allowed=[ALL, *sorted(lists)],
                hint=f"Put the videos' names into {self.split}.txt there, or choose another --split.",
            )
        path = lists[self.split]
        names = sorted(set(read_text(path).split()))
        absent = [name for name in names if name not in videos]
        if absent or not names:
            what = f"Videos of the list have no id maps: {some(absent)}."
            what = what if names else "The list names no video."
            hint = f"Put their maps into {self._tops()[0]}, or take their names off the list."
            raise DataError(what, where=path, hint=hint)
        return [videos[name] for name in names]

    def _clip(self, folder: Path) -> Clip:
        from refseg_bench.files.png import header

        files = tuple(sorted(_maps(folder)))
        height, width = header(files[0])
        return Clip(folder.name, files, tuple(f.stem for f in files), (height, width))


def _videos(top: Path) -> Iterator[Path]:
    """Folders that hold PNG files, sorted by name."""
    for folder in sorted(top.iterdir()) if top.is_dir() else ():
        if folder.is_dir() and any(_maps(folder)):
            if reason := bad_name(folder.name):
                raise Damage("unsafe name", f"The folder's name {reason}.", folder, hint="Rename it.")
            yield folder


def _maps(folder: Path) -> Iterator[Path]:
    """The PNG files of a folder; hidden ones (``._00000.png``) are no maps."""
    return (folder / f"{name}.png" for name in png_names(folder))
