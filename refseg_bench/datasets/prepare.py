"""Archives as they are published → the layout the loaders read, with the indices made."""

from __future__ import annotations

import errno
import filecmp
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg_bench.config.components import open_dataset
from refseg_bench.datasets.archives import check_archive, unpack
from refseg_bench.datasets.catalogue import manifest
from refseg_bench.datasets.files import data_root
from refseg_bench.datasets.issues import Damage
from refseg_bench.datasets.ref_davis17 import MASKS, TEXTS, convert
from refseg_bench.datasets.refcoco import COCO_FOLDERS, coco_number
from refseg_bench.errors import DataError
from refseg_bench.files.store_io import replacing, sweep, temporary_name, write_error

Say = Callable[[str], None]
#: How deep below an archive's top a set's own folder may lie.
_DEPTH = 6


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

    No file that is there already is overwritten: one with the same bytes is left as it is, so that a call
    that was cut off can be given again. Archives of further splits, or further parts of one folder, may
    be added later.

    Args:
        name: the set.
        sources: archives, or folders that hold them unpacked.
        root: the set's folder; ``None`` = ``$REFSEG_DATA/NAME`` or ``data/NAME``.
        say: receives progress, one line at a time.

    Raises:
        Damage: an archive is torn or unsafe, lacks the set, or would overwrite another file.
        StoreError: the disk is full or can't be written.
    """
    home = root or data_root() / name
    if not hasattr(open_dataset(name), "folders"):
        raise DataError(
            f"'{name}' comes in no archives of its own.", where=name, hint="Use its folder as it is, as root."
        )
    for source in sources:
        if source.is_dir():
            if name != "ref_davis17":
                raise _is_folder(source)
        else:
            check_archive(source)
    made = None
    try:
        made = (
            next((p for p in (home, *home.parents) if p.parent.exists()), None) if not home.exists() else None
        )
        home.mkdir(parents=True, exist_ok=True)
        sweep(home)
        # Within the target, so that moving is renaming, also where that is a disk or a link to one.
        stage = temporary_name(home / "prepare")
        stage.mkdir()
        try:
            _fill(name, sources, home, stage, say)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            # What failed before anything was moved leaves nothing behind.
            for folder in (home, *home.parents) if made is not None else ():
                if any(folder.iterdir()):
                    break
                folder.rmdir()
                if folder == made:
                    break
    except OSError as error:
        raise write_error(error, home) from error
    return Prepared(home, _index(name, home, say))


def _is_folder(source: Path) -> DataError:
    told = f"'{source}' is a folder: this set needs no conversion."
    hint = f"Use it as it is with dataset.root={source}, or give the archives."
    packed = sorted(p.name for p in source.iterdir() if p.suffix in (".zip", ".tar", ".gz", ".tgz", ".xz"))
    if packed:
        told = f"'{source}' is a folder of archives."
        hint = f"Name the archives themselves: --from {source}/{packed[0]} … (or {source}/*)."
    return DataError(told, where=source, hint=hint)


def _fill(name: str, sources: Sequence[Path], home: Path, stage: Path, say: Say) -> None:
    places: list[Path] = []
    for number, source in enumerate(sources):
        if source.is_dir():
            places.append(source)
            continue
        place = stage / str(number)
        say(f"unpacking {source}")
        place.mkdir()
        say(f"  {unpack(source, place)} files")
        places.append(place)
    if name == "ref_davis17":
        _davis(places, home, stage, say)
    else:
        _arrange(name, sources, places, home, say)


def _davis(places: Sequence[Path], home: Path, stage: Path, say: Say) -> None:
    """Convert DAVIS and its texts; the archives may come in any number and order."""
    merged = stage / "merged"
    # The semantics archive may hold frames too, but not the masks that are needed.
    needed = ("JPEGImages/480p", MASKS, "ImageSets")
    davis = _find(places, lambda d: all((d / part).is_dir() for part in needed))
    if davis is None:
        # The parts of one folder, packed apart.
        together = stage / "DAVIS"
        together.mkdir()
        for place in places:
            part = _find([place], lambda d: any((d / p).is_dir() for p in needed))
            if part is not None and part.is_relative_to(stage):
                _move(part, together)
        davis = _find([together], lambda d: all((d / part).is_dir() for part in needed))
    texts = _find(places, lambda d: (d / TEXTS[0][0]).is_file())
    if davis is None or texts is None:
        lacking, archive = f"JPEGImages/480p with {MASKS}", "DAVIS-2017-Unsupervised-trainval-480p.zip"
        if davis is not None:
            lacking, archive = TEXTS[0][0], "davis_text_annotations.zip"
        place, hint = places[0] if places else home, f"Add {archive} to --from."
        raise Damage("missing file", f"Nothing given holds {lacking}.", place, hint=hint)
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


def _arrange(name: str, sources: Sequence[Path], places: Sequence[Path], home: Path, say: Say) -> None:
    """Move what was unpacked to where the loader looks; keep the layout below the set's own folder."""
    marks, parts = layout(name)
    # Archives may share a folder: some hold its frames alone.
    bases = [
        _find([place], lambda d: any((d / mark).exists() for mark in marks))
        or _find([place], lambda d: any((d / part).exists() for part in parts if part != "."))
        for place in places
    ]
    names = {part.lower() for folder in open_dataset(name).folders for part in Path(folder).parts}
    names |= {n.lower() for p, b in zip(places, bases, strict=True) if b for n in b.relative_to(p).parts}
    for number, (source, place) in enumerate(zip(sources, places, strict=True)):
        if bases[number] is None:
            bases[number] = _inner(place, names)
            known = "." in parts or _find([place], _holds_coco_images) is not None
            if bases[number] == place and not known:
                raise Damage(
                    "missing file",
                    f"The archive holds nothing of '{name}', but {', '.join(sorted(os.listdir(place))[:5])}.",
                    source,
                    hint=f"See datasets/{name}/README.md for the archives' names and what is in them.",
                    allowed=[*marks, *(part for part in parts if part not in marks)][:12],
                )
    for place, base in zip(places, bases, strict=True):
        while (images := _find([place], _holds_coco_images)) is not None:
            _move(images, home / "images" / images.name)
            shutil.rmtree(images)
            # What is empty now is no layout of its own.
            while images.parent != place and not any(images.parent.iterdir()):
                images = images.parent
                images.rmdir()
        assert base is not None
        if base != place:
            say(f"  found {base.relative_to(place)}")
        _move(base, home)


def _inner(place: Path, names: set[str]) -> Path:
    """The folder below those that bear the set's own name and nothing else lies beside."""
    while True:
        inside = list(place.iterdir())
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() not in names:
            return place
        place = inside[0]


def _holds_coco_images(folder: Path) -> bool:
    return folder.name in COCO_FOLDERS and any(
        coco_number(entry.name) for entry in itertools.islice(os.scandir(folder), 100)
    )


def layout(name: str) -> tuple[list[str], list[str]]:
    """Files or folders that a set begins with, and all paths that its loader reads there; of all splits."""
    data, facts = open_dataset(name), manifest(name)
    splits = list(facts.splits) if facts is not None else [data.split]

    def filled(paths: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(path.replace("{split}", split) for path in paths for split in splits))

    if hasattr(data, "refs"):
        marks = [*(data.fill(path) for path in data.refs), "instances.json"]
    else:
        marks = filled(getattr(data, "meta", ["{split}"]))
    options = ("frames", "masks", "test", "foreground_masks", "meta", "images")
    parts = [path for option in options for path in getattr(data, option, ()) if not path.startswith("..")]
    # A folder of the layout alone (`meta_expressions`) is a part too.
    return marks, filled([*parts, *(path.split("/")[0] for path in parts)] or ["{split}"])


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
    """Merge a folder into another; another file in a file's place is an error, and nothing has moved then."""
    same: set[Path] = set()
    for folder, _, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        if here.exists() and not here.is_dir():
            raise _exists(here)
        for file in files:
            place = here / file
            if os.path.lexists(place):
                if not place.is_file() or not filecmp.cmp(Path(folder) / file, place, shallow=False):
                    raise _exists(place)
                same.add(place)
    for folder, folders, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        for inner in list(folders):
            if not (here / inner).exists():
                _rename(Path(folder) / inner, here / inner)
                if not (Path(folder) / inner).exists():
                    folders.remove(inner)
        for file in files:
            if here / file not in same:
                _rename(Path(folder) / file, here / file)


def _rename(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A folder of the set lies on another disk; its files come one by one.
        if source.is_file():
            with source.open("rb") as file, replacing(target) as out:
                shutil.copyfileobj(file, out)


def _exists(place: Path) -> Damage:
    hint = "Prepare to another folder with --to, or take the old copy away first."
    return Damage("file exists", "Another file is there already.", place, hint=hint)


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
