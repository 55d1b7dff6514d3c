"""Archives as they are published → the layout the loaders read, with the indices made.

Archives are strangers': nothing leaves the folder, nothing fills the disk.
"""

from __future__ import annotations

import errno
import filecmp
import itertools
import lzma
import os
import re
import shlex
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from refseg_bench.config.components import open_dataset
from refseg_bench.datasets.base import Dataset
from refseg_bench.datasets.files import (
    GROWTH_FROM,
    MAX_GROWTH,
    Damage,
    bad_name,
    data_root,
    found_instead,
    is_litter,
)
from refseg_bench.datasets.refcoco import COCO_FOLDERS, coco_number
from refseg_bench.datasets.verify import manifest
from refseg_bench.errors import DataError, some
from refseg_bench.files.store_io import open_regular, replacing, sweep, temporary_name, write_error

Say = Callable[[str], None]
#: How deep below an archive's top a set's own folder may lie.
_DEPTH = 6


def prepare(
    name: str, sources: Sequence[Path], root: Path | None, say: Say = print
) -> tuple[Path, dict[str, int]]:
    """Unpack (and where needed convert) the archives of a set and make its indices; its folder, and the
    splits that load now with their number of clips.

    No file that is there already is overwritten: one with the same bytes is left as it is, so that a call
    that was cut off can be given again. Archives of further splits, or further parts of one folder, may be
    added later. Sources are archives, or folders that hold them unpacked; without a ``root`` it is
    ``$REFSEG_DATA/NAME`` or ``data/NAME``.

    Raises:
        Damage: an archive is torn or unsafe, lacks the set, or would overwrite another file.
        StoreError: the disk is full or can't be written.
    """
    data: Dataset = open_dataset(name)
    if not data.landmarks():
        raise DataError(
            f"'{name}' comes in no archives of its own.", where=name, hint="Use its folder as it is, as root."
        )
    for source in sources:
        if not source.is_dir():
            check_archive(source)
        elif type(data).convert is Dataset.convert:
            raise _is_folder(source)
    facts = manifest(name)
    splits = list(facts.splits) if facts is not None else [data.split]
    home = root or data_root() / name
    try:
        with _stage(home) as stage:
            places = [_unpacked(source, stage / str(n), say) for n, source in enumerate(sources)]
            made = data.convert(places, stage, say)
            if made is not None:
                move(made, home)
            else:
                _arrange(data, splits, sources, places, home, say)
    except OSError as error:
        raise write_error(error, home) from error
    return home, _index(name, splits, home, say)


@contextmanager
def _stage(home: Path) -> Iterator[Path]:
    """A folder to unpack to. What fails before anything was moved leaves nothing behind."""
    above = (home, *home.parents)
    made = [p for p in above if not p.exists()]
    home.mkdir(parents=True, exist_ok=True)
    sweep(home)
    # Within the target, so that moving is renaming, also where that is a disk or a link to one.
    stage = temporary_name(home / "prepare")
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def _is_folder(source: Path) -> DataError:
    told = f"'{source}' is a folder: this set needs no conversion."
    hint = f"Use it as it is with dataset.root={source}, or give the archives."
    packed = sorted(p.name for p in source.iterdir() if p.suffix in (".zip", ".tar", ".gz", ".tgz", ".xz"))
    if packed:
        told = f"'{source}' is a folder of archives."
        hint = f"Name the archives themselves: --from {source}/{packed[0]} … (or {source}/*)."
    return DataError(told, where=source, hint=hint)


def _unpacked(source: Path, place: Path, say: Say) -> Path:
    # A Parquet file is no archive: it is a part of what is published, as a folder is.
    if source.is_dir() or source.suffix == ".parquet":
        return source
    say(f"unpacking {source}")
    say(f"  {unpack(source, place)} files")
    return place


def _arrange(
    data: Dataset,
    splits: Sequence[str],
    sources: Sequence[Path],
    places: Sequence[Path],
    home: Path,
    say: Say,
) -> None:
    """Move what was unpacked to where the loader looks; keep the layout below the set's own folder."""

    def filled(paths: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(p.replace("{split}", s).rstrip("/") for p in paths for s in splits))

    marks = filled(data.landmarks())
    parts = [path for path in data.layout() if not path.startswith("..")]
    # A folder of the layout alone (`meta_expressions`) is a part too.
    parts = filled([*parts, *(path.split("/")[0] for path in parts)])
    # Archives may share a folder: some hold its frames alone. One of a family (`refer_seg`) may hold several.
    own = [Path(folder).name.lower() for folder in data.folders]
    bases = [
        find([place], *marks, all_of=False, named=own) or find([place], *set(parts) - {"."}, all_of=False)
        for place in places
    ]
    names = {part.lower() for folder in data.folders for part in Path(folder).parts}
    names |= {n.lower() for p, b in zip(places, bases, strict=True) if b for n in b.relative_to(p).parts}
    for source, place, found in zip(sources, places, bases, strict=True):
        base = found or _inner(place, names)
        if found is None and base == place and "." not in parts and _coco_images(place) is None:
            inside = sorted(os.listdir(place))
            named = (path.relative_to(place).as_posix() for path in sorted(place.rglob("*")))
            packed = [name for name in named if re.search(r"\.(zip|tar|tgz|gz|bz2|xz)$", name, re.IGNORECASE)]
            hint = f"See datasets/{data.name}/README.md for the archives' names and what is in them."
            if packed:
                hint = f"Unpack it, and give --from the archives in it: {some(packed)}."
            raise Damage(
                "missing file",
                f"The archive holds nothing of '{data.name}', but {some(inside)}.",
                source,
                hint=hint,
                allowed=list(dict.fromkeys([*marks, *parts]))[:12],
            )
    for place, found in zip(places, bases, strict=True):
        base = found or _inner(place, names)
        while (images := _coco_images(place)) is not None:
            move(images, home / "images" / images.name)
            shutil.rmtree(images)
            # What is empty now is no layout of its own.
            while images.parent != place and not any(images.parent.iterdir()):
                images = images.parent
                images.rmdir()
        if base != place:
            say(f"  found {base.relative_to(place)}")
        for other in (f for f in _folders_below(place) if not f.is_relative_to(base)):
            alike = other.name.lower() in own or base.name.lower() not in own
            if alike and any((other / mark).exists() for mark in marks):
                say(f"  not taken: {other.relative_to(place)}, which holds the set, too")
        move(base, home)


def _inner(place: Path, names: set[str]) -> Path:
    """The folder below those that bear the set's own name and nothing else lies beside."""
    while True:
        inside = list(place.iterdir())
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() not in names:
            return place
        place = inside[0]


def _coco_images(place: Path) -> Path | None:
    """A folder of COCO's pictures."""
    for folder in _folders_below(place):
        if folder.name in COCO_FOLDERS and any(
            coco_number(entry.name) for entry in itertools.islice(os.scandir(folder), 100)
        ):
            return folder
    return None


def find(places: Sequence[Path], *paths: str, all_of: bool = True, named: Sequence[str] = ()) -> Path | None:
    """The folder below these that holds all (or one) of the paths: one so named, else nearest to the top."""
    folders = [folder for place in places for folder in _folders_below(place)]
    enough = all if all_of else any
    held = [folder for folder in folders if enough((folder / path).exists() for path in paths)]
    return next((f for f in held if f.name.lower() in named), next(iter(held), None))


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


def move(source: Path, target: Path) -> None:
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


def _index(name: str, splits: Sequence[str], home: Path, say: Say) -> dict[str, int]:
    """Open every split that is there, which makes the indices that the runs will use."""
    ready: dict[str, int] = {}
    for split in splits:
        data: Dataset = open_dataset(name, root=home, split=split)
        try:
            clips = data.clips()
        except DataError as error:
            if isinstance(error, Damage) and error.kind not in ("missing file", "missing split"):
                say(f"{split}: {error.what} `refseg data verify {name} --split {split}` lists everything.")
            continue
        if clips and (expressions := data.expressions(clips[0])):
            data.target(clips[0], expressions[0])
        ready[split] = len(clips)
    return ready


# ── unpacking ────────────────────────────────────────────────────────────────

#: More files than any set of the field holds.
MAX_MEMBERS = 4_000_000
#: Left free on the disk.
SPARE = 256 << 20
#: Most bytes of a tar's headers for one member: long names and attributes.
_MOST_HEADER = 1 << 20
_PACK_AGAIN = "and give dataset.root the folder, or pack it as .zip or .tar."
#: What Python's readers unpack; anything else is told by name.
_METHODS = {0: "stored", 8: "deflate", 12: "bzip2", 14: "LZMA"}
_OTHER_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES encryption"}
#: What a damaged archive makes the readers raise: a damaged header is any number, in any encoding.
_TORN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,
    OverflowError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    folder: bool
    open: Callable[[], IO[bytes] | None]


def check_archive(archive: Path) -> None:
    """Refuse what is no file at all, before other archives are unpacked.

    Raises:
        Damage: missing, unreadable, or no regular file.
    """
    try:
        open_regular(archive).close()
    except OSError as error:
        there = os.path.lexists(archive)
        told = f"The archive can't be read ({error.strerror})." if there else "There is no such archive."
        hint = "Give --from the path of the archive as it was downloaded."
        raise Damage("unreadable file" if there else "missing file", told, archive, hint=hint) from error


def unpack(archive: Path, into: Path) -> int:
    """Unpack an archive below a folder; returns the number of files written.

    Everything is checked before anything is written: names that lead out of the folder or are too
    long, links, devices, names given twice or to a file and a folder, encrypted files, unknown
    methods, and sizes that the disk can't hold or that no real archive has.

    Args:
        archive: ``.zip``, ``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.bz2`` or ``.tar.xz``.
        into: folder to unpack to; made if it isn't there.

    Raises:
        Damage: the archive is missing, torn, or unsafe.
        OSError: the disk can't be written.
    """
    check_archive(archive)
    with _damage_told(archive), _members(archive) as found:
        members = _checked(found, archive)
        _check_space(members, into)
        for member in members:
            target = into / member.name
            (target if member.folder else target.parent).mkdir(parents=True, exist_ok=True)
            if not member.folder:
                _write(member, target, archive)
    return sum(not member.folder for member in members)


def _write(member: _Member, target: Path, archive: Path) -> None:
    try:
        out = target.open("xb")
    except FileExistsError:
        raise _unsafe(archive, member.name, "stands twice (this disk ignores case)") from None
    # Both readers give no more than the archive said, so that a lying size can't fill the disk.
    with out, member.open() as source:  # type: ignore[union-attr]
        shutil.copyfileobj(source, out, 1 << 20)
        if out.tell() != member.size:
            raise Damage("torn archive", f"The member {_shown(member.name)} ends early.", archive)


@contextmanager
def _damage_told(archive: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # The unpackers' own have no number (a bad gzip or bzip2 stream). A seek to before the file's
        # begin (EINVAL) is what a lying header asks for.
        if error.errno in (None, errno.EINVAL):
            raise _torn(archive, error) from error
        raise
    except _Oversized as error:
        raise _unsafe(archive, "a member", str(error)) from error
    except _TORN as error:
        raise _torn(archive, error) from error


def _torn(archive: Path, error: Exception) -> Damage:
    told = f"The archive is torn or damaged ({type(error).__name__}: {error})."
    return Damage("torn archive", told, archive, hint=_pieces(archive))


def _pieces(archive: Path) -> str | None:
    """What joins the pieces of a split archive, if this looks like one of them."""
    with open_regular(archive) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16) - 22))
        _, end, record = file.read().rpartition(b"PK\5\6")
    last = int.from_bytes(record[:2], "little") if end else 0  # of the pieces; zip64 has it elsewhere
    if re.fullmatch(r"\.z\d\d+", archive.suffix) or 0 < last < 0xFFFF:
        names = [shlex.quote(f"{archive.stem}{more}.zip") for more in ("", "-whole")]
        join = f"zip -s 0 {names[0]} --out {names[1]}"
        return f"It is a piece of a split zip, which cat doesn't join. Beside the other pieces: {join}"
    if re.fullmatch(r"\.\d{2,3}|\.(?!gz|xz)[a-z]{2}|\.part\w*", archive.suffix):
        return "If it is one piece of a split archive, join the pieces first: cat NAME.* > NAME."
    return None


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    with open_regular(archive) as file:
        head = file.read(32)
    if not head.startswith(b"PK"):
        try:
            packed_tar = tarfile.open(archive, tarinfo=_BoundedTarInfo)  # noqa: SIM115
        except tarfile.ReadError:
            # A program that unpacks itself is a zip behind other bytes.
            if not zipfile.is_zipfile(archive):
                raise _no_archive(archive, head) from None
        else:
            with packed_tar:
                yield (_tarred(packed_tar, info, archive) for info in packed_tar)
            return
    with zipfile.ZipFile(archive) as packed:
        yield (_zipped(packed, info, archive) for info in packed.infolist())


def _no_archive(archive: Path, head: bytes) -> Damage:
    told, hint = found_instead(head) or (
        "no zip and no tar archive",
        "Fetch it again: a download page may have been saved in its place.",
    )
    if hint.startswith("Unpack"):
        told, hint = f"{told}, and no tar in it can be read here", f"{hint.rstrip('.')}, {_PACK_AGAIN}"
    hint = _pieces(archive) or hint
    allowed = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]
    return Damage("torn archive", f"The file is {told}.", archive, hint=hint, allowed=allowed)


_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Oversized(tarfile.TarError):
    """A header that would be read whole, without bound."""


class _BoundedTarInfo(tarfile.TarInfo):
    """Headers of a bounded size: ``tarfile`` reads long names and attributes whole, however long."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        # Called for every header before what belongs to it is read.
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _Oversized("is a sparse file")
        if self.type in _EXTENSIONS and not 0 <= self.size <= _MOST_HEADER:
            raise _Oversized(f"has a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise _Oversized("is a sparse file")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10


def _zipped(packed: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> _Member:
    # zipfile has already cut the name at a NUL; the name in the archive is what counts.
    name = info.orig_filename.replace("\\", "/")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe(archive, name, "is a link or a device")
    if info.flag_bits & 0x1:
        raise _unsafe(archive, name, "is encrypted")
    if info.compress_type not in _METHODS:
        method = _OTHER_METHODS.get(info.compress_type, f"method {info.compress_type}")
        raise Damage(
            "unknown packing",
            f"The member {_shown(name)} is packed with {method}, which can't be unpacked here.",
            archive,
            f"member {_shown(name)}",
            f"Unpack it with the program that made it, {_PACK_AGAIN}",
            allowed=_METHODS.values(),
        )
    return _Member(_plain(name), info.file_size, info.is_dir(), lambda: packed.open(info))


def _tarred(packed: tarfile.TarFile, info: tarfile.TarInfo, archive: Path) -> _Member:
    if not (info.isreg() or info.isdir()):
        raise _unsafe(archive, info.name, "is a link or a device")
    return _Member(_plain(info.name), info.size, info.isdir(), lambda: packed.extractfile(info))


def _plain(name: str) -> str:
    """A member's name without the leading ``./`` and trailing ``/`` that packers write."""
    while name.startswith("./"):
        name = name[2:]
    return name.removesuffix("/")


def _unsafe(archive: Path, name: str, reason: str) -> Damage:
    shown = _shown(name)
    return Damage("unsafe archive", f"The member {shown} {reason}.", archive, f"member {shown}")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def _checked(found: Iterator[_Member], archive: Path) -> list[_Member]:
    """All members, each looked at before the next is asked for: a packed tar is unpacked to list it."""
    members: list[_Member] = []
    files: set[str] = set()
    folders: set[str] = set()
    packed = max(1, archive.stat().st_size)
    total = 0
    for number, member in enumerate(found, start=1):
        total += member.size + 512
        if number > MAX_MEMBERS:
            raise Damage("unsafe archive", f"The archive holds more than {MAX_MEMBERS} files.", archive)
        if member.size < 0:
            raise _unsafe(archive, member.name, "has a negative size")
        if total > GROWTH_FROM and total > MAX_GROWTH * packed:
            told = f"{packed} bytes would grow to {total} or more: that is a bomb, not a data set."
            raise Damage("unsafe archive", told, archive)
        if is_litter(member.name):
            continue
        reason = bad_name(member.name)
        if reason is not None:
            raise _unsafe(archive, member.name, reason)
        if member.name in files:
            raise _unsafe(archive, member.name, "stands twice")
        folders.update(member.name[: at.start()] for at in re.finditer("/", member.name))
        (folders if member.folder else files).add(member.name)
        members.append(member)
    both = files & folders
    if both:
        raise _unsafe(archive, min(both), "is a file and a folder at once")
    return members


def _check_space(members: list[_Member], into: Path) -> None:
    total = sum(member.size for member in members)
    into.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(into).free
    if total > free - SPARE:
        told = f"The archive unpacks to {total / 1e6:,.0f} MB; {free / 1e6:,.0f} MB are free"
        told += f", of which {SPARE / 1e6:.0f} are to stay so."
        hint = "Free some space, or unpack to another disk with --to."
        raise Damage("disk too small", told, into, hint=hint)
