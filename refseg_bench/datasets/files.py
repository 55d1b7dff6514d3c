"""Where data sets are, reading their small files, and joining names from data.

Errors name file and place. Names that come out of JSON, pickles or archives are strangers' input:
:func:`safe_join` is the only way from such a name to a path.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from refseg_bench.datasets.issues import Damage, Place, Report, refuse
from refseg_bench.errors import DataError
from refseg_bench.files import store_io
from refseg_bench.files.resources import resource
from refseg_bench.files.store_io import leads_out, open_regular, printable


def data_root() -> Path:
    """Where data sets are looked for by default: ``$REFSEG_DATA``, else ``data``."""
    return Path(os.environ.get("REFSEG_DATA") or "data")


def cache_root(configured: Path | None = None) -> Path:
    """Where indices are kept: the configured folder, else ``$REFSEG_CACHE``, else ``cache``."""
    return configured or Path(os.environ.get("REFSEG_CACHE") or "cache")


#: Sets that :func:`files_read` fills.
_collecting: list[set[Path]] = []


@contextlib.contextmanager
def files_read() -> Iterator[set[Path]]:
    """Collect the data files (not frames and masks) that are opened inside, or known by an index."""
    found: set[Path] = set()
    _collecting.append(found)
    try:
        yield found
    finally:
        _collecting[:] = [other for other in _collecting if other is not found]


def _collect(*paths: Path) -> None:
    for found in _collecting:
        found.update(paths)


def fingerprint(*paths: Path) -> str:
    """``PLACE-STATE`` in hex: where files are, and their sizes, modification times and inodes.

    Raises:
        Damage: one of them is missing.
    """
    places, states = [], []
    _collect(*paths)
    for path in paths:
        try:
            state = path.stat()
        except OSError as error:
            raise missing_file(path) from error
        places.append(str(path.resolve()))
        states.append(f"{state.st_size} {state.st_mtime_ns} {state.st_ino}")
    return "-".join(
        hashlib.sha256("|".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        for texts in (places, states)
    )


def missing_file(path: Path) -> Damage:
    """The error of a file that should be there."""
    told = f"The file '{path.name}' is missing."
    return Damage("missing file", told, path, hint=rename_that_helps(path))


def rename_that_helps(path: Path) -> str | None:
    """The hint of a missing file whose name is spelled otherwise on this disk, if one is."""
    with contextlib.suppress(OSError):
        there = [name for name in os.listdir(path.parent) if Path(name).suffix.lower() == path.suffix.lower()]
        close = difflib.get_close_matches(path.name, there, 1, 0.7)
        if close:
            return f"If {path.parent / close[0]} is that file, rename it to {path.name}."
    return None


#: Longest name of one file or folder (less its ending), and of a path below a set's folder, in bytes.
_MOST_NAME, _MOST_PATH = 250, 2048


def bad_name(name: object) -> str | None:
    """Why a name from a data file can't be a relative path, or ``None`` if it can."""
    if not isinstance(name, str):
        return f"is {type(name).__name__}, not text"
    if not name.strip():
        return "is empty"
    if "\\" in name or printable(name) != name:
        return "holds a backslash, line break or control character"
    if name.startswith("/"):
        return "is an absolute path"
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "leaves its folder or holds an empty part"
    # A letter has at most four bytes, so most names need no count.
    if len(name) * 4 > _MOST_NAME and (
        max(len(os.fsencode(part)) for part in parts) > _MOST_NAME or len(os.fsencode(name)) > _MOST_PATH
    ):
        return "is longer than a disk can hold"
    return None


def safe_join(base: Path, name: object, at: Place) -> Path:
    """``base / name`` if the name stays below ``base``.

    Args:
        base: trusted folder.
        name: a name read from a file; slashes are allowed, ``..`` is not.
        at: where it was read.

    Raises:
        Damage: the name is no text, empty, absolute or leads out of ``base``.
    """
    reason = bad_name(name)
    if reason is not None:
        raise at.damage("unsafe name", f"The name {name!r} {reason}.")
    return base / str(name)


def is_litter(name: str) -> bool:
    """An archive's own root, and what macOS and Windows add to every archive."""
    parts = name.split("/")
    return (
        name in ("", ".")
        or "__MACOSX" in parts
        or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")
        or parts[-1].startswith("._")
    )


def check_link(path: Path, *homes: Path, follow: bool, report: Report = refuse) -> bool:
    """Refuse a symbolic link that leads out of the data set.

    Args:
        path: file or folder that may be, or lie behind, a link.
        homes: the data set's folders; links within them are fine, and so is a link that *is* one of
            them (a frames folder kept on another disk).
        follow: the user's permission to follow links to anywhere.
        report: receives the problem.

    Returns:
        True if the path may be read.
    """
    real = None if follow else leads_out(path, *homes)
    if real is None:
        return True
    told = f"'{path.name}' is a symbolic link to '{real}', outside of the data set."
    hint = "Put the files inside the data set, or, if you made the link: dataset.follow_links=true."
    report(Damage("link out of the data set", told, path, hint=hint))
    return False


#: Most bytes of a file that is read whole. gRefCOCO's sentences, the largest, take a fifth.
MOST_BYTES = 1 << 30
#: First bytes of what is found in place of a data file.
_INSTEAD = (
    (b"\x1f\x8b", "packed with gzip", "Unpack it: gunzip."),
    (b"PK\x03\x04", "a zip archive", "Unpack it."),
    (b"Rar!", "a RAR archive", "Unpack it with the program that made it."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it with the program that made it."),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard", "Unpack it: zstd -d."),
    (b"<", "a web page", "Fetch the file itself: a download page was saved in its place."),
    (b"version https://git-lfs", "a pointer of Git LFS", "Fetch the file itself: git lfs pull."),
    (b"\xff\xfe", "text in UTF-16", "Convert it to UTF-8."),
    (b"\xfe\xff", "text in UTF-16", "Convert it to UTF-8."),
)


def found_instead(head: bytes) -> tuple[str, str] | None:
    """What a file holds in place of data, by its first bytes, and what helps; ``None`` if not known."""
    return next((entry[1:] for entry in _INSTEAD if head.lstrip().startswith(entry[0])), None)


def open_data(path: Path) -> IO[bytes]:
    """Open a data file, if it is a regular one and nothing else was saved in its place.

    Raises:
        Damage: missing, unreadable, no regular file, or something else by its first bytes.
    """
    try:
        file = open_regular(path)
        instead = found_instead(file.read(32))
        file.seek(0)
    except OSError as error:
        raise unreadable(path, error) from error
    if instead is not None:
        file.close()
        raise Damage("another file", f"The file is {instead[0]}.", path, hint=instead[1])
    _collect(path)
    return file


def unreadable(path: Path, error: OSError) -> Damage:
    """The error of a file that can't be read."""
    if isinstance(error, FileNotFoundError):
        return missing_file(path)
    told = f"The file can't be read ({error.strerror or error})."
    return Damage("unreadable file", told, path, hint="Check its permissions, and that it is a plain file.")


def read_text(path: Path, encodings: tuple[str, ...] = ("utf-8-sig",)) -> str:
    """A file's text in the first encoding that fits.

    Raises:
        Damage: missing, no regular file, too large, or in none of the encodings.
    """
    with open_data(path) as file:
        try:
            data = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise unreadable(path, error) from error
    if len(data) > MOST_BYTES:
        raise Damage("another file", f"The file is larger than {MOST_BYTES >> 20} MB.", path)
    problem: UnicodeDecodeError | None = None
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            problem = problem or error
    assert problem is not None
    place = f"byte {problem.start}"
    told = f"Byte {problem.start} ({problem.object[problem.start]:#04x}) is not {' or '.join(encodings)}."
    raise Damage("text in another encoding", told, path, place)


class _Repeated(ValueError):
    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(key)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        raise _Repeated(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return out


def parse_json(text: str, at: Place) -> Any:
    """JSON to plain values; a repeated key is an error, not a silent loss.

    Raises:
        Damage: torn or malformed text, a repeated key, or nesting that no data file has.
    """
    before = "" if at.part is None else f"{at.part}, "
    try:
        return store_io.parse_json(text, _unique)
    except _Repeated as error:
        told = f"The key '{error.key}' stands twice in one object."
        raise Damage("duplicate id", told, at.file, f"{before}key '{error.key}'") from None
    except json.JSONDecodeError as error:
        told, hint = error.msg, None
        if error.msg == "Extra data" and text[error.pos - 1 : error.pos] == "\n":
            told = "more than one value, as in JSON lines"
            hint = "Make it one JSON value, as the original is."
        where = f"{before}line {error.lineno}, column {error.colno}"
        raise Damage("torn JSON", f"The JSON is torn or malformed: {told}.", at.file, where, hint) from error
    except ValueError as error:
        raise at.damage("torn JSON", f"The JSON is torn or malformed: {error}.") from error


def read_json(path: Path, encodings: tuple[str, ...] = ("utf-8-sig",)) -> Any:
    """Read a JSON file whole (for files of a few MB; large ones go through ``index``).

    Raises:
        Damage: missing, not in the encoding, torn, or with a repeated key.
    """
    return parse_json(read_text(path, encodings), Place(path))


# ── where data sets are ──────────────────────────────────────────────────────


def find_base(
    name: str, root: Path | None, folders: Sequence[str], landmarks: Sequence[str], split: str
) -> Path:
    """The folder a data set lies in: the first that holds one of its landmark files.

    Args:
        name: the data set's name, also a folder tried.
        root: what the user gave; ``None`` looks in ``$REFSEG_DATA`` (or ``data``) and then among
            the samples that ship with the package.
        folders: names its archives unpack to, tried in any case and with any of ``-``, ``_`` and space.
        landmarks: relative paths of which one must be there; ``{split}`` stands for the split.
        split: the split.

    Raises:
        DataError: it isn't there, or not with that split; says where it is, if it is near.
    """
    filled = [landmark.replace("{split}", split) for landmark in landmarks]
    for base in _bases(name, root, folders):
        if any(os.path.exists(base / landmark) for landmark in filled):
            return base
    splits = _splits_there(name, root, folders, landmarks)
    if splits:
        raise DataError(
            f"'{name}' has no split '{split}' here.",
            where=root or name,
            allowed=splits,
            hint="Set dataset.split (`refseg score`: --split) to one of them.",
        )
    raise _not_found(name, root, filled)


def _bases(name: str, root: Path | None, folders: Sequence[str]) -> Iterator[Path]:
    for place in [root] if root is not None else [data_root(), resource("datasets")]:
        homes = [place] if root is not None else list(_spelled(place, name))
        yield from homes
        for home in dict.fromkeys((*homes, place)):
            for folder in folders:
                yield from _spelled(home, folder)


def _spelled(place: Path, folder: str) -> Iterator[Path]:
    """The folder as it is named, and as others write such a name."""
    yield place / folder
    plain = _plainly(folder)
    with contextlib.suppress(OSError):
        for entry in sorted(os.listdir(place)):
            if entry != folder and _plainly(entry) == plain:
                yield place / entry


def _plainly(name: str) -> str:
    return re.sub("[-_ ]", "", name.lower())


def _splits_there(name: str, root: Path | None, folders: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The splits a data set has on this disk, by its landmarks with ``{split}`` in a split's place."""
    found = set()
    for base in _bases(name, root, folders):
        for pattern in patterns:
            head, mark, tail = pattern.partition("{split}")
            if mark and "{" not in head + tail and os.path.isdir(base):
                full = re.compile(re.escape(head) + r"([^/]+)" + re.escape(tail))
                names = (path.relative_to(base).as_posix() for path in base.glob(f"{head}*{tail}"))
                found |= {match[1] for match in map(full.fullmatch, names) if match}
    return sorted(found)


def _not_found(name: str, root: Path | None, landmarks: Sequence[str]) -> DataError:
    place = root or data_root() / name
    inside: list[str] = []
    try:
        inside = sorted(name for name in os.listdir(place) if not name.startswith("."))
        holds = f" The folder holds {', '.join(inside[:8]) + (' …' if len(inside) > 8 else '') or 'nothing'}."
    except FileNotFoundError:
        holds = " There is no such folder." if root is not None else ""
    except OSError as error:
        holds = f" It can't be read as a folder ({error.strerror})."
    hint = (
        f"Get it as datasets/{name}/README.md says, then set dataset.root=FOLDER (`refseg score`: "
        "--root FOLDER) or put it under $REFSEG_DATA; `refseg data list` shows what is found where."
    )
    near = [place / one for one in inside[:1000]] + [place.parent, place.parent.parent]
    for folder in near:
        if any(os.path.exists(folder / landmark) for landmark in landmarks):
            hint = f"It lies in {folder}: set {shlex.quote(f'dataset.root={folder}')} (elsewhere: --root)."
            break
    else:
        hint = next(filter(None, (rename_that_helps(place / landmark) for landmark in landmarks)), hint)
    return DataError(
        f"The data set '{name}' is not here: none of its files {', '.join(landmarks)} exists.{holds}",
        where=place,
        hint=hint,
    )
