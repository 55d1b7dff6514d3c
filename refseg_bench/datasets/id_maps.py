"""A folder of id maps as truth, without images or expressions: what VOS evaluators take.

For scoring predictions of other code under the protocols whose unit is the object
(``davis-semi``, ``davis-unsup``, ``vosb``, ``trackeval``): two folders in, a table out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refseg_bench.errors import DataError
from refseg_bench.schema import knob
from refseg_bench.types import Clip, Expression, Target


@dataclass
class IdMaps:
    """``<root>/<video>/<frame>.png``, pixel value = object id (``Annotations/`` above it is fine).

    Attributes:
        root: the folder of the videos.
        split: only a label, unless ``<root>/<split>.txt`` lists the videos to score.
        name: name of the set.
        protocols: ids scored under unless the command says otherwise.
    """

    root: Path | None = knob(None, transient=True)
    split: str = "all"
    name: str = "id_maps"
    protocols: list[str] = knob(factory=lambda: ["vosb"], transient=True)

    _clips: list[Clip] | None = field(default=None, init=False, repr=False, compare=False)

    def clips(self) -> Sequence[Clip]:
        """One clip per folder that holds PNG files, sorted by name.

        Raises:
            DataError: there is no folder of maps.
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

    def _folders(self) -> list[Path]:
        if self.root is None or not self.root.is_dir():
            raise DataError(
                "The folder of id maps is not there.", where=self.root, cure="Give it with --root."
            )
        listed = self.root / f"{self.split}.txt"
        for top in (self.root / "Annotations" / "480p", self.root / "Annotations", self.root):
            folders = sorted(p for p in top.iterdir() if p.is_dir()) if top.is_dir() else []
            folders = [p for p in folders if any(p.glob("*.png"))]
            if listed.is_file():
                names = set(listed.read_text(encoding="utf-8").split())
                folders = [p for p in folders if p.name in names]
            if folders:
                return folders
        raise DataError("No <video>/<frame>.png here.", where=self.root, cure="Check the path behind --root.")

    def _clip(self, folder: Path) -> Clip:
        from refseg_bench.metrics.png import header

        files = tuple(sorted(folder.glob("*.png")))
        height, width, _, _ = header(files[0])
        return Clip(folder.name, files, tuple(f.stem for f in files), (height, width))
