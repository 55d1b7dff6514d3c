"""Archives as they are published → the layout the loaders read, with the indices made."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg_bench.datasets.archives import unpack
from refseg_bench.datasets.catalogue import manifest, open_dataset
from refseg_bench.datasets.damage import Damage
from refseg_bench.datasets.davis_text import TEXTS, convert
from refseg_bench.datasets.files import data_root
from refseg_bench.errors import DataError

Say = Callable[[str], None]
#: How deep below an archive's top a set's own folder may lie.
_DEPTH = 4
_MASKS = "Annotations_unsupervised/480p"


@dataclass(frozen=True)
class Prepared:
    """What preparing made.

    Attributes:
        root: the set's folder.
        splits: splits that load now, with their number of clips.
    """

    root: Path
    splits: dict[str, int]


def prepare(name: str, sources: Sequence[Path], root: Path | None, say: Say = print) -> Prepared:
    """Unpack (and where needed convert) the archives of a set and make its indices.

    Nothing that is there already is overwritten; archives of further splits may be added later.

    Args:
        name: the set.
        sources: archives, or folders that hold them unpacked.
        root: the set's folder; ``None`` = ``$REFSEG_DATA/NAME`` or ``data/NAME``.
        say: receives progress, one line at a time.

    Raises:
        Damage: an archive is torn or unsafe, lacks the set, or would overwrite a file.
    """
    home = root or data_root() / name
    home.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that moving is renaming.
    stage = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".prepare-{name}-"))
    try:
        places: list[Path] = []
        for number, source in enumerate(sources):
            if source.is_dir():
                places.append(source)
                continue
            place = stage / str(number)
            say(f"unpacking {source}")
            say(f"  {unpack(source, place)} files")
            places.append(place)
        if name == "ref_davis17":
            _davis(places, home, stage, say)
        else:
            _arrange(name, places, home, stage, say)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return Prepared(home, _index(name, home, say))


def _davis(places: Sequence[Path], home: Path, stage: Path, say: Say) -> None:
    """Convert DAVIS and its texts; the archives may come in any number and order."""
    merged = stage / "merged"
    # The semantics archive may hold frames too, but not the masks that are needed.
    davis = _find(
        places, lambda d: all((d / part).is_dir() for part in ("JPEGImages/480p", _MASKS, "ImageSets"))
    )
    texts = _find(places, lambda d: (d / TEXTS[0][0]).is_file())
    if davis is None or texts is None:
        lacking = (
            "DAVIS-2017-Unsupervised-trainval-480p.zip" if davis is None else "davis_text_annotations.zip"
        )
        raise Damage(
            "missing file",
            f"Nothing given holds {f'JPEGImages/480p with {_MASKS}' if davis is None else TEXTS[0][0]}.",
            file=places[0] if places else home,
            cure=f"Add {lacking} to --from.",
        )
    semantics = _find(places, lambda d: (d / "davis_semantics.json").is_file())
    if semantics is not None and semantics != davis and not (davis / "davis_semantics.json").exists():
        # A folder of the user's own is not written to.
        if davis.is_relative_to(stage):
            shutil.copy2(semantics / "davis_semantics.json", davis / "davis_semantics.json")
        else:
            say("davis_semantics.json is not beside DAVIS: meta.json gets no categories")
    counts = convert(davis, texts, merged)
    say("converted " + ", ".join(f"{n} videos of {split}" for split, n in counts.items()))
    _move(merged, home)


def _arrange(name: str, places: Sequence[Path], home: Path, stage: Path, say: Say) -> None:
    """Move what was unpacked to where the loader looks; keep the layout below the set's own folder."""
    marks = landmarks(name)
    moved = 0
    for place in places:
        if not place.is_relative_to(stage):
            raise DataError(
                f"'{place}' is a folder: this set needs no conversion.",
                where=place,
                cure=f"Use it as it is with dataset.root={place}, or give the archives.",
            )
        base = _find([place], lambda d: any((d / mark).exists() for mark in marks))
        images = _find([place], lambda d: d.name == "train2014" and any(d.glob("COCO_*.jpg")))
        if images is not None and (base is None or not images.is_relative_to(base)):
            _move(images, home / "images" / "train2014")
            moved += 1
        if base is not None:
            say(f"  found {base.relative_to(place) if base != place else 'the set'}")
            _move(base, home)
            moved += 1
        elif images is None:
            # A part without a landmark (frames of one split alone) keeps its own layout.
            inner = [p for p in place.iterdir()]
            part = (
                inner[0]
                if len(inner) == 1 and inner[0].name.lower() in {f.lower() for f in _folders(name)}
                else place
            )
            _move(part, home)
            moved += 1
    if not moved:
        raise Damage(
            "missing file",
            f"None of the archives holds a file of '{name}'.",
            file=places[0] if places else home,
            allowed=marks,
            cure=f"See datasets/{name}/README.md for the archives' names.",
        )


def _folders(name: str) -> list[str]:
    folders: list[str] = list(open_dataset(name).folders)
    return [Path(folder).name for folder in folders]


def landmarks(name: str) -> list[str]:
    """Files (or folders) that show where a set begins, for all of its splits."""
    facts = manifest(name)
    splits = list(facts.splits) if facts is not None else []
    data = open_dataset(name)
    if hasattr(data, "refs"):
        return [data.fill(path) for path in data.refs] + ["instances.json"]
    if not hasattr(data, "meta"):
        return splits
    return [path.replace("{split}", split) for path in data.meta for split in splits or [data.split]]


def _find(places: Sequence[Path], fits: Callable[[Path], bool]) -> Path | None:
    """The first folder, nearest to the top first, that fits."""
    for place in places:
        for folder in _folders_below(place):
            if fits(folder):
                return folder
    return None


def _folders_below(top: Path) -> Iterator[Path]:
    level = [top]
    for _ in range(_DEPTH + 1):
        yield from level
        # Thousands of video folders lie side by side; what is looked for never lies in one of them.
        level = [
            child
            for folder in level
            if folder.name not in ("JPEGImages", "Annotations", "480p")
            for child in sorted(folder.iterdir())
            if child.is_dir() and not child.is_symlink()
        ]


def _move(source: Path, target: Path) -> None:
    """Merge a folder into another; an existing file is an error, and nothing has moved then."""
    for folder, _, files in os.walk(source):
        for file in files:
            place = target / Path(folder).relative_to(source) / file
            if place.exists():
                raise Damage(
                    "file exists",
                    "The file is there already.",
                    file=place,
                    cure="Prepare to another folder with --to, or take the old copy away first.",
                )
    for folder, folders, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        for inner in list(folders):
            if not (here / inner).exists():
                os.rename(Path(folder) / inner, here / inner)
                folders.remove(inner)
        for file in files:
            os.rename(Path(folder) / file, here / file)


def _index(name: str, home: Path, say: Say) -> dict[str, int]:
    """Open every split that is there, which makes the indices that the runs will use."""
    facts = manifest(name)
    ready: dict[str, int] = {}
    for split in facts.splits if facts is not None else [None]:
        data: Any = open_dataset(name, root=home, split=split)
        try:
            clips = data.clips()
        except DataError as error:
            if isinstance(error, Damage) and error.kind not in ("missing file",):
                say(f"{split}: {error.what} `refseg data verify {name} --split {split}` lists everything.")
            continue
        if clips and (expressions := data.expressions(clips[0])):
            data.target(clips[0], expressions[0])
        ready[str(split or data.split)] = len(clips)
    return ready
