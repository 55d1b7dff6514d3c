"""Unpack zip and tar archives of strangers: nothing leaves the folder, nothing fills the disk."""

from __future__ import annotations

import errno
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from refseg_bench.datasets.files import bad_name, found_instead, is_litter
from refseg_bench.datasets.issues import Damage
from refseg_bench.files.store_io import open_regular

#: More files than any set of the field holds.
MAX_MEMBERS = 4_000_000
#: A packed file that grows by more than this is a bomb: JSON of masks packs about 5 times.
MAX_GROWTH = 200
#: Growth is only judged above this size; small text packs well.
GROWTH_FROM = 64 << 20
#: Left free on the disk.
SPARE = 256 << 20
#: Most bytes of a tar's headers for one member: long names and attributes.
_MOST_HEADER = 1 << 20
_PACK_AGAIN = "and give dataset.root the folder, or pack it as .zip or .tar."
#: What Python's readers unpack; anything else is told by name.
_METHODS = {0: "stored", 8: "deflate", 12: "bzip2", 14: "LZMA"}
_OTHER_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES encryption"}
#: What a damaged archive makes the readers raise.
_TORN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    # A damaged header is any number, in any encoding.
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
    open: Callable[[], IO[bytes]]


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
    """Unpack an archive below a folder.

    Everything is checked before anything is written: names that lead out of the folder or are too
    long, links, devices, names given twice or to a file and a folder, encrypted files, unknown
    methods, and sizes that the disk can't hold or that no real archive has.

    Args:
        archive: ``.zip``, ``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.bz2`` or ``.tar.xz``.
        into: folder to unpack to; made if it isn't there.

    Returns:
        Number of files written.

    Raises:
        Damage: the archive is missing, torn, or unsafe.
        OSError: the disk can't be written.
    """
    check_archive(archive)
    with _damage_told(archive), _members(archive) as found:
        members = _checked(found, archive)
        _check_space(members, into)
        written = 0
        for member in members:
            target = into / member.name
            if member.folder:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                out = target.open("xb")
            except FileExistsError:
                raise _unsafe(archive, member.name, "stands twice (this disk ignores case)") from None
            with out, member.open() as source:
                _copy(source, out, member, archive)
            written += 1
        return written


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
    return Damage(
        "torn archive", f"The archive is torn or damaged ({type(error).__name__}: {error}).", archive
    )


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
    elif re.fullmatch(r"(\.z\d\d|\.\d{2,3}|\.[a-z]{2}|\.part\w*)", archive.suffix):
        hint = "If it is one piece of a split archive, join the pieces first: cat NAME.* > NAME."
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
    name = info.orig_filename.replace("\\", "/") if "\\" in info.orig_filename else info.orig_filename
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
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
    free = shutil.disk_usage(into).free - SPARE
    if total > free:
        told = f"The archive unpacks to {total / 1e9:.1f} GB, {max(0, free) / 1e9:.1f} GB are free."
        hint = "Free some space, or unpack to another disk with --to."
        raise Damage("disk too small", told, into, hint=hint)


def _copy(source: IO[bytes], out: IO[bytes], member: _Member, archive: Path) -> None:
    """Copy no more than the archive said, so that a lying size can't fill the disk."""
    left = member.size
    while piece := source.read(1 << 20):
        left -= len(piece)
        if left < 0:
            raise _unsafe(archive, member.name, "is longer than it says")
        out.write(piece)
    if left:
        raise Damage("torn archive", f"The member {_shown(member.name)} ends early.", archive)
