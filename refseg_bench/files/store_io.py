"""Small files, read within bounds and written in one step; names that never leave their folder.

Every record, config and list that the package reads comes through here: only regular files are opened
(a FIFO would hang its reader), no more is read than a limit, nothing is nested deeper than a limit.
Nothing is written or deleted through a symbolic link that leads out of the folder it is meant for.
"""

from __future__ import annotations

import argparse
import binascii
import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import struct
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from refseg_bench.errors import StoreError, printable

T = TypeVar("T")

#: Most bytes of one record, config or list.
MOST_BYTES = 64 << 20
#: Deepest nesting of a JSON or YAML value.
MOST_DEPTH = 100
#: Most pixels of one picture or mask; larger ones are refused before memory is taken.
MOST_PIXELS = 1 << 26
#: What to do about a file that can't be read.
PUT_BACK = "Put the file back (a model's: fetch it again; a run's: or move its folder away) and try again."
#: A disk without room, or none left for this user.
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: A temporary file nobody can be asked about is litter after so many seconds.
_LITTER = 24 * 3600.0

_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp$")


# ── reading ──────────────────────────────────────────────────────────────────


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading, unless it is a folder, a FIFO, a socket or a device.

    Raises:
        OSError: missing, unreadable, or no regular file (``EINVAL``; ``EISDIR`` for a folder).
    """
    return os.fdopen(_open(path)[0], "rb")


def _open(path: Path) -> tuple[int, int]:
    """Descriptor and size of a regular file."""
    # A FIFO without a writer would block; O_NONBLOCK has no effect on regular files.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        told = os.fstat(handle)
        if stat.S_ISDIR(told.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(told.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
    except BaseException:
        os.close(handle)
        raise
    return handle, told.st_size


def read_bytes(path: Path, most: int = MOST_BYTES, first: int | None = None) -> bytes:
    """A file's content.

    ``first``: read only so many from its begin on, however large it is; a file of more than ``most`` is
    refused.

    Raises:
        OSError: as :func:`open_regular`, or larger (``EFBIG``).
    """
    handle, size = _open(path)
    left = most + 1 if first is None else first
    try:
        # One byte more than it should have, which mostly isn't there. It may grow, or tell no size.
        data = part = os.read(handle, min(left, size + 1))
        while part and len(data) < left and len(data) != size:
            data += (part := os.read(handle, min(left - len(data), max(len(data), 1 << 16))))
    finally:
        os.close(handle)
    if first is None and len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", str(path))
    return data


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """A UTF-8 file's text.

    Raises:
        StoreError: missing, no regular file, too large, or no UTF-8.
    """
    with reading(path, UnicodeDecodeError):
        return read_bytes(path, most).decode("utf-8-sig")


def too_deep(value: Any) -> bool:
    """Whether lists and mappings are nested more than :data:`MOST_DEPTH` deep.

    >>> too_deep([[{"a": []}]])
    False
    """
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            part
            for held in level
            if isinstance(held, (dict, list))
            for part in (held.values() if isinstance(held, dict) else held)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return False
    return True


#: An escaped surrogate: half of a character, or a half that lacks the other.
_HALF = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def parse_json(text: str, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None) -> Any:
    """JSON to plain values; ``pairs`` makes an object of its keys and values and may raise ``ValueError``.

    Raises:
        ValueError: malformed, nested too deeply, or with a half character, which no file can hold.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested without end") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode("ascii")
        raise ValueError(f"the half character {half} in a text") from None
    if too_deep(value):
        raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
    return value


def read_json(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        StoreError: missing, no regular file, too large, torn, too deep, or no object.
    """
    with reading(path, ValueError):
        value = parse_json(read_text(path, most))
    if not isinstance(value, dict):
        raise StoreError("The JSON file holds no object.", where=path, hint=PUT_BACK)
    return value


#: A number to Hydra, and a text to YAML.
_NUMBER = "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")


@cache
def _loader() -> Any:
    """What Hydra's files mean by a plain word: ``1e-4`` is a number, a date is a text."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, form) for tag, form in known if not tag.endswith(":timestamp")]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver(*_NUMBER)
    return Loader


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML that :func:`parse_yaml` reads back as they are: ``1e5`` as a text is quoted."""
    import yaml

    class Dumper(yaml.SafeDumper):  # the one in C refuses the half characters that an error has to tell
        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_implicit_resolver(*_NUMBER)
    return str(yaml.dump(dict(values), Dumper=Dumper, sort_keys=False, allow_unicode=True))


#: What most components' files say, and nothing else.
_CLASS_ALONE = re.compile(r"(?:#[ -~]*\n)*_target_: ([A-Za-z]\w*(?:\.[A-Za-z]\w*)+)\n", re.ASCII)


def parse_yaml(text: str) -> Any:
    """YAML to plain values, without aliases: a few of them multiply to any size.

    Raises:
        ValueError: malformed, nested too deeply, or with an alias.
    """
    if alone := _CLASS_ALONE.fullmatch(text):
        # The library takes as long to load as a hundred frames to score.
        return {"_target_": alone[1]}
    import yaml

    depth = 0
    try:
        # Looked through before anything is built: the builder recurses, in C too.
        for event in yaml.parse(text, _loader()):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it holds an alias (*name), which no file of this package needs")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
        return yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a small YAML mapping of plain values, without aliases.

    Raises:
        StoreError: missing, no regular file, too large, torn, too deep, or no mapping.
    """
    return _yaml_mapping(read_text(path), path)


def _yaml_mapping(text: str, path: Path) -> dict[str, Any]:
    with reading(path, ValueError):
        value = parse_yaml(text)
    if not isinstance(value, dict):
        raise StoreError("The YAML file holds no mapping.", where=path, hint=PUT_BACK)
    return {str(k): v for k, v in value.items()}


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file of up to 1 GiB, packed or unpacked, which holds a checksum of each.

    Raises:
        StoreError: missing, too large, torn or damaged, or with arrays of objects.
    """
    import zipfile

    most = 1 << 30
    torn = (ValueError, SyntaxError, EOFError, struct.error, zlib.error, TokenError)
    with (
        reading(path, *torn, zipfile.BadZipFile, NotImplementedError, RuntimeError),
        zipfile.ZipFile(io.BytesIO(read_bytes(path, most))) as archive,
    ):
        members = archive.infolist()
        if sum(member.file_size for member in members) > most:
            raise ValueError(f"it unpacks to more than {most} bytes")
        return {m.filename.removesuffix(".npy"): _npy(archive.read(m)) for m in members}


def _npy(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of an unknown version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    held = data[file.tell() :]
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(held):
        raise ValueError("an array of another size than it says")
    return np.frombuffer(held, dtype).reshape(shape, order="F" if fortran else "C")


# ── checksums ────────────────────────────────────────────────────────────────


def checksum(data: bytes) -> str:
    """16 hex digits of a file's or a record's content."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def look(path: Path) -> tuple[int, int, int, int]:
    """A file's size, times and inode: as long as they stay nobody wrote to it, and no copy has them all.

    Raises:
        OSError: it isn't there.
    """
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def content(path: Path, most: int = 1 << 33) -> bytes:
    """16 bytes that stand for a file (BLAKE2b of its bytes), read piece by piece.

    Raises:
        OSError: as :func:`open_regular`, or of more than ``most`` bytes (``EFBIG``), as no data set's is.
    """
    whole = hashlib.blake2b(digest_size=16)
    with open_regular(path) as handle:
        # As long as the disk says it is: a record from elsewhere may name any file.
        left = os.fstat(handle.fileno()).st_size
        if left > most:
            raise OSError(errno.EFBIG, f"larger than {most} bytes", str(path))
        while piece := handle.read(min(left, 1 << 20)):
            whole.update(piece)
            left -= len(piece)
    return whole.digest()


def _sum_of(record: Mapping[str, Any]) -> str:
    return checksum(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def sealed(record: Mapping[str, Any], indent: int | None = None) -> str:
    """A record as JSON, with the checksum of its values as the last of them; ends in a newline."""
    return json.dumps({**record, "check": _sum_of(record)}, indent=indent) + "\n"


def unsealed(value: Any, path: Path) -> dict[str, Any]:
    """The values of a record that :func:`sealed` made.

    Raises:
        StoreError: no object, or its values don't fit its checksum.
    """
    if not isinstance(value, dict):
        raise StoreError("The JSON holds no object.", where=path, hint=PUT_BACK)
    if value.pop("check", None) != _sum_of(value):
        raise changed(path)
    return value


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object that :func:`sealed` made.

    Raises:
        StoreError: as :func:`read_json`, or it doesn't fit its checksum.
    """
    return unsealed(read_json(path), path)


_CHECK = re.compile(r"(?m)^# check: ([0-9a-f]{16})\n\Z")


def sealed_text(text: str) -> str:
    """YAML with its checksum as a comment at the end; a ``StoreError`` if nobody could read it back."""
    for line in filter(_HALF.search, text.splitlines()):
        hint = "Rename the file or folder, or give a link to it whose name is UTF-8."
        raise StoreError("An option holds bytes that are no UTF-8.", where=line.strip(), hint=hint)
    return f"{text}# check: {checksum(text.encode())}\n"


def read_sealed_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping that :func:`sealed_text` made.

    Raises:
        StoreError: as :func:`read_yaml`, or it doesn't fit its checksum.
    """
    text = read_text(path)
    found = _CHECK.search(text)
    if found is None or checksum(text[: found.start()].encode()) != found[1]:
        raise changed(path)
    return _yaml_mapping(text, path)


_LEFT_OUT: set[str] = set()


def readable(paths: Iterable[Path], read: Callable[[Path], T]) -> Iterator[T]:
    """What ``read`` makes of the files; one that is damaged is left out, and said once on standard error."""
    for path in sorted(paths):
        try:
            yield read(path)
        except StoreError as error:
            told = printable(f"left out: {error.what} {error.where} — {error.hint or ''}")
            if told not in _LEFT_OUT:
                _LEFT_OUT.add(told)
                print(told, file=sys.stderr)


def changed(path: Path | str) -> StoreError:
    """What to say of content that doesn't fit its checksum."""
    return StoreError(
        "The content doesn't fit its checksum: it was damaged, or changed by hand.",
        where=path,
        hint="Put the file back, or move its folder away. Options are changed by `refseg run` with the "
        "same words and KEY=VALUE, not in a run's files.",
    )


def unreadable(path: Path, error: Exception) -> StoreError:
    """An error that came up when a file was read, told to the user."""
    told = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return StoreError(f"Can't read the file ({told or type(error).__name__}).", where=path, hint=PUT_BACK)


@contextlib.contextmanager
def reading(path: Path, *torn: type[Exception]) -> Iterator[None]:
    """Tell an ``OSError`` of the block, or one that means a torn file, as :func:`unreadable`."""
    kinds: tuple[type[Exception], ...] = (OSError, *torn)
    try:
        yield
    except kinds as error:
        raise unreadable(path, error) from error


# ── writing ──────────────────────────────────────────────────────────────────


def within(root: Path, path: Path) -> Path:
    """``path``, if nothing between it and ``root`` is a symbolic link that leads out of ``root``.

    To be asked before anything below a run folder is written or deleted: a folder from elsewhere may
    hold links to anywhere. ``root`` may be, or lie behind, a link itself; ``path`` needn't exist.

    Raises:
        StoreError: the path leads elsewhere.
    """
    real = leads_out(path, root)
    if real is None:
        return path
    raise StoreError(
        f"A symbolic link leads out of the folder, to '{real}'.",
        where=path,
        hint="Remove the link: nothing is written or deleted through it.",
    )


def leads_out(path: Path, *homes: Path) -> str | None:
    """Where a path really is, if symbolic links lead it out of all of these folders; else ``None``."""
    real = os.path.realpath(path)
    tops = [os.path.realpath(home) for home in homes]
    return None if any(real == top or real.startswith(top + os.sep) for top in tops) else real


def write_atomic(path: Path, text: str) -> None:
    """Replace a small file in one step: readers see the old or the new one, never a torn one."""
    with replacing(path) as handle:
        handle.write(text.encode("utf-8"))


def sync(handle: IO[Any]) -> None:
    """Wait until the disk has a file; over NFS a full disk is told here.

    Raises:
        OSError: it can't have it. A file system that knows no such thing is no error.
    """
    try:
        os.fsync(handle.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """An open file that takes the place of ``path`` when the block ends well; it can be read back.

    Its rights are what the umask leaves. A process that is killed meanwhile leaves a temporary file that
    :func:`sweep` removes. ``durable``: wait until the disk has it, so that it also outlives the machine; not
    for many small files that the next command makes again.
    """
    temporary = temporary_name(path)
    try:
        with open(
            os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "w+b"
        ) as handle:
            yield handle
            handle.flush()
            if durable:
                sync(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def output(path: Path) -> Iterator[IO[bytes]]:
    """An open file for what a user asked to have at ``path``: whole when the block ends well, else absent.

    What stands there and is no file of its own (a device, a pipe, a link) is written to, not replaced.
    The block must do nothing but write, for its ``OSError`` is told as one of the output.

    Raises:
        StoreError: it can't be written.
    """
    with writing(path):
        in_place = _in_place(path)
        if not in_place:
            sweep(path.parent)
        with path.open("wb") if in_place else replacing(path) as handle:
            yield handle


def check_output(path: Path) -> None:
    """Refuse a path that :func:`output` can't write, before long work is done for it.

    Raises:
        StoreError: no such folder, a folder itself, or no right or space to write there.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not _in_place(path):
            import tempfile

            # Leaves no name behind, even if the process dies here.
            with tempfile.TemporaryFile(dir=path.parent) as probe:
                probe.write(bytes(1))
        elif path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _in_place(path: Path) -> bool:
    return path.is_symlink() or (path.exists() and not path.is_file())


def files_in(place: Path, above: Collection[str] = ()) -> list[str]:
    """Names of the files below a folder and the folders it links to, in order; a link back is none.

    Hidden ones, as a download's own records, are left out. ``above``: real folders it is in.
    """
    real, found = os.path.realpath(place), list[str]()
    above = {*(above or map(str, Path(real).parents)), real}
    held = os.scandir(real) if os.access(real, os.R_OK | os.X_OK) else ()
    for entry in sorted(held, key=lambda entry: entry.name):
        if not entry.name.startswith(".") and entry.is_file():
            found.append(entry.name)
        elif not entry.name.startswith(".") and entry.is_dir() and os.path.realpath(entry.path) not in above:
            found += [f"{entry.name}/{name}" for name in files_in(Path(entry.path), above)]
    return found


def is_temporary(name: str) -> bool:
    """Whether a file name is one that :func:`replacing` gives while it writes."""
    return _TEMPORARY.match(name) is not None


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` for what this process makes; :func:`sweep` removes what a dead one has left."""
    return path.with_name(f".{path.name[:40]}.{_host()}.{os.getpid()}.{os.urandom(4).hex()}.tmp")


def sweep(*folders: Path) -> None:
    """Remove temporary files and folders that processes which are no more have left in these folders."""
    for folder in folders:
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                found = _TEMPORARY.match(entry.name)
                if found is not None:
                    with contextlib.suppress(OSError):
                        if not _ownerless(
                            found["host"], int(found["pid"]), entry.stat(follow_symlinks=False)
                        ):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            shutil.rmtree(entry.path, ignore_errors=True)
                        else:
                            os.unlink(entry.path)


def _ownerless(host: str, pid: int, state: os.stat_result) -> bool:
    if host == _host() and pid != os.getpid():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
    return time.time() - state.st_mtime > _LITTER


def _host() -> str:
    """Where a process id means something: a machine, and in it a container's own numbering."""
    name = os.uname().nodename.split(".")[0] or "host"
    with contextlib.suppress(OSError):
        return f"{name}-{os.stat('/proc/self/ns/pid').st_ino:x}"
    return name


_unwritten: set[str] = set()


def tell_unwritten(path: Path, error: OSError) -> None:
    """Log that a cache can't keep a file, once per process and kind of trouble: the work goes on without."""
    told = error.strerror or type(error).__name__
    if told not in _unwritten:
        _unwritten.add(told)
        import logging

        log = logging.getLogger(__name__)
        log.error("the cache can't be written (%s), so this work is done without it: %s", told, path)


def write_error(error: OSError, where: Path) -> StoreError:
    """An error of the file system, told to the user."""
    if error.errno in _FULL:
        return StoreError(
            f"The {'quota is used up' if error.errno == errno.EDQUOT else 'disk is full'}. "
            "Everything finished so far is kept.",
            where=where,
            hint="Free space, or write elsewhere; the same command then goes on where it stopped.",
        )
    if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        return StoreError(
            f"The disk fails ({error.strerror}). Everything finished so far is kept.",
            where=where,
            hint="When it works again, the same command goes on where it stopped.",
        )
    if error.errno == errno.ENOENT and not where.parent.is_dir():
        return StoreError("There is no such folder.", where=where.parent, hint=f"mkdir -p '{where.parent}'")
    return StoreError(
        f"Can't write ({error.strerror or error}).", where=where, hint="Check the path and its rights."
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell an ``OSError`` of the block as :func:`write_error`."""
    try:
        yield
    except OSError as error:
        raise write_error(error, path) from error


# ── names and values ─────────────────────────────────────────────────────────


def short_id(text: str, digits: int = 8) -> str:
    """The first hex digits of a text's SHA-256, to tell names apart by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def safe_name(text: str) -> str:
    """A file name for any id: percent-encoded, shortened with a hash where a file system can't hold it.

    >>> safe_name("clip/0")
    'clip%2F0'
    """
    name = quote(text, safe="@+=,")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) <= 200:
        return name
    return f"{name[:160]}~{short_id(text, 16)}"


def to_plain(value: Any) -> Any:
    """Any nesting of mappings, sequences and numpy values as JSON types."""
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return binascii.b2a_base64(value, newline=False).decode("ascii")
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Iterable):
        return [to_plain(v) for v in value]
    return str(value)


def without_nan(value: Any) -> Any:
    """JSON types with ``None`` for what is no finite number, which JSON lacks."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def put_json(path: Path | None, value: Any) -> None:
    """Write what ``--json`` asks for; ``None`` = nothing is asked for.

    Raises:
        StoreError: it can't be written.
    """
    if path is not None:
        with output(path) as handle:
            handle.write((json.dumps(without_nan(to_plain(value)), indent=1) + "\n").encode())


def count(least: int) -> Callable[[str], int]:
    """How an option's word is read as a whole number of at least ``least``."""

    def read(word: str) -> int:
        if not (word.isascii() and word.isdecimal() and len(word) < 10 and int(word) >= least):
            raise argparse.ArgumentTypeError(f"'{word}' is no whole number from {least} on")
        return int(word)

    return read


#: What any other ending says (``.tmp``, ``run-0.5``) is the user's own.
_KINDS = {
    ".json", ".csv", ".md", ".tex", ".txt", ".svg", ".png", ".jpg", ".pdf", ".mp4", ".html", ".zip", ".tar",
}  # fmt: skip


def written(*ends: str) -> Callable[[str], Path]:
    """How an option's word is read as a path to write: a file's, or a folder's without ``ends``."""

    def read(word: str) -> Path:
        if word == "-":
            raise argparse.ArgumentTypeError("'-' is no file: give a name")
        if Path(word).suffix.lower() in _KINDS.difference(ends) and (ends or not Path(word).is_dir()):
            wrong = f"ends in none of {', '.join(ends)}" if ends else "is a file's name, a folder's is wanted"
            raise argparse.ArgumentTypeError(f"'{word}' {wrong}")
        return Path(word)

    return read


def add_json(parser: Any, what: str, *also: str) -> None:
    """Declare the option ``--json`` of a command, and others of the same meaning."""
    parser.add_argument(
        *also, "--json", dest="json", type=written(".json"), metavar="OUT", help=f"write {what}"
    )
