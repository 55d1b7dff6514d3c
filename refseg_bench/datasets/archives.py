"""Unpack zip and tar archives of strangers: nothing leaves the folder, nothing fills the disk."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from refseg_bench.datasets.damage import Damage
from refseg_bench.datasets.files import bad_name

#: More files than any set of the field holds.
MAX_MEMBERS = 4_000_000
#: A packed file that grows by more than this is a bomb: JSON of masks packs about 5 times.
MAX_GROWTH = 200
#: Growth is only judged above this size; small text packs well.
GROWTH_FROM = 64 << 20
#: Left free on the disk.
SPARE = 256 << 20
_DONT = "Don't use this archive; fetch it again from the data set's own page."


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    folder: bool
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, into: Path) -> int:
    """Unpack an archive below a folder.

    Everything is checked before anything is written: names that lead out of the folder, links,
    devices, names given twice, encrypted files, and sizes that the disk can't hold or that no real
    archive has.

    Args:
        archive: ``.zip``, ``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.bz2`` or ``.tar.xz``.
        into: folder to unpack to; made if it isn't there.

    Returns:
        Number of files written.

    Raises:
        Damage: the archive is missing, torn, or unsafe.
    """
    if not archive.is_file():
        raise Damage(
            "missing file",
            "There is no such archive.",
            file=archive,
            cure="Give --from the path of the archive as it was downloaded.",
        )
    try:
        with _members(archive) as found:
            members = [m for m in found if not _is_litter(m.name)]
            _check(members, archive, into)
            written = 0
            for member in members:
                target = into / member.name
                if member.folder:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, target.open("xb") as out:
                    _copy(source, out, member, archive)
                written += 1
            return written
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise Damage(
            "torn archive",
            f"The archive is torn or damaged ({type(error).__name__}: {error}).",
            file=archive,
            cure="Fetch it again and compare its size or hash with the page it comes from.",
        ) from error


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield [_zipped(packed, info, archive) for info in packed.infolist()]
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as packed_tar:
            yield [_tarred(packed_tar, info, archive) for info in packed_tar]
    else:
        raise Damage(
            "torn archive",
            "The file is no zip and no tar archive.",
            file=archive,
            allowed=[".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"],
            cure="Fetch it again: a download page may have been saved in its place.",
        )


def _zipped(packed: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> _Member:
    # zipfile has already cut the name at a NUL; the name in the archive is what counts.
    name = info.orig_filename.replace("\\", "/") if "\\" in info.orig_filename else info.orig_filename
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe(archive, name, "is a link or a device")
    if info.flag_bits & 0x1:
        raise _unsafe(archive, name, "is encrypted")
    return _Member(_plain(name), info.file_size, info.is_dir(), lambda: packed.open(info))


def _tarred(packed: tarfile.TarFile, info: tarfile.TarInfo, archive: Path) -> _Member:
    if not (info.isreg() or info.isdir()):
        raise _unsafe(archive, info.name, "is a link or a device")

    def read() -> IO[bytes]:
        source = packed.extractfile(info)
        assert source is not None
        return source

    return _Member(_plain(info.name), info.size, info.isdir(), read)


def _plain(name: str) -> str:
    """A member's name without the leading ``./`` and trailing ``/`` that packers write."""
    while name.startswith("./"):
        name = name[2:]
    return name[:-1] if name.endswith("/") else name


def _is_litter(name: str) -> bool:
    """The tar's own root, and what macOS adds to every archive."""
    parts = name.split("/")
    return name in ("", ".") or "__MACOSX" in parts or parts[-1] in (".DS_Store", "Thumbs.db")


def _unsafe(archive: Path, name: str, reason: str) -> Damage:
    return Damage(
        "unsafe archive", f"The member {name!r} {reason}.", file=archive, place=f"member {name!r}", cure=_DONT
    )


def _check(members: list[_Member], archive: Path, into: Path) -> None:
    if len(members) > MAX_MEMBERS:
        raise Damage("unsafe archive", f"The archive holds {len(members)} files.", file=archive, cure=_DONT)
    seen: set[str] = set()
    for member in members:
        reason = bad_name(member.name)
        if reason is not None:
            raise _unsafe(archive, member.name, reason)
        if member.name in seen and not member.folder:
            raise _unsafe(archive, member.name, "stands twice")
        seen.add(member.name)
    total = sum(member.size for member in members)
    packed = max(1, archive.stat().st_size)
    if total > GROWTH_FROM and total > MAX_GROWTH * packed:
        raise Damage(
            "unsafe archive",
            f"{packed} bytes would grow to {total}: that is a bomb, not a data set.",
            file=archive,
            cure=_DONT,
        )
    into.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(into).free - SPARE
    if total > free:
        raise Damage(
            "disk too small",
            f"The archive unpacks to {total / 1e9:.1f} GB, {max(0, free) / 1e9:.1f} GB are free.",
            file=into,
            cure="Free some space, or unpack to another disk with --to.",
        )


def _copy(source: IO[bytes], out: IO[bytes], member: _Member, archive: Path) -> None:
    """Copy no more than the archive said, so that a lying size can't fill the disk."""
    left = member.size
    while piece := source.read(1 << 20):
        left -= len(piece)
        if left < 0:
            raise _unsafe(archive, member.name, "is longer than it says")
        out.write(piece)
    if left:
        raise Damage(
            "torn archive",
            f"The member {member.name!r} ends early.",
            file=archive,
            cure="Fetch it again.",
        )
