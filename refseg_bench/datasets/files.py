"""Reading a data set's small files, joining names from data, and telling what is wrong with either.

Every check of every reader hands its finding to a ``Tell``. A run passes :func:`refuse`, so the first
problem ends the reading with its error; ``refseg data verify`` collects them, so one pass finds them all.
There is no second set of checks. Names that come out of JSON, pickles or archives are strangers' input:
:func:`safe_join` is the only way from such a name to a path.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from refseg_bench.errors import DataError, printable
from refseg_bench.files import store_io
from refseg_bench.files.store_io import leads_out, look, open_regular

# ── what is wrong ────────────────────────────────────────────────────────────

UNPACK_AGAIN = "Unpack the data set again; `refseg data verify NAME` lists everything that is wrong."
_RESTORE = "Restore the original file."
_LAYOUT = "Restore the original file: this is not the format's layout."
_ONE_RELEASE = "Use the masks and the expression file of one release."
_COMPARE = "Fetch it again and compare its size or hash with the page it comes from."
_NOT_THIS = "Don't use this file; fetch it again from the data set's own page."

#: Kind of damage → what helps against it, where the place of damage knows nothing better; for all other
#: kinds it is :data:`UNPACK_AGAIN`.
HINTS = {
    **dict.fromkeys(("another file", "malformed line", "video without frames"), _RESTORE),
    **dict.fromkeys(("bad expression id", "bad object id", "bad size", "bad type"), _RESTORE),
    **dict.fromkeys(("mask count differs", "missing entry", "object without a pixel"), _ONE_RELEASE),
    **dict.fromkeys(("missing field", "wrong type"), _LAYOUT),
    **dict.fromkeys(("pickle with a callable", "torn pickle"), _NOT_THIS),
    **dict.fromkeys(("torn archive", "torn Parquet"), _COMPARE),
    "duplicate id": "Restore the original file: one of the two entries would be lost.",
    "empty expression": "Restore the original file, or take the entry out.",
    "extra mask": "Use the masks and the frames of one release, as PNG files of the frames' names.",
    "text in another encoding": "Restore the original file, or convert it to UTF-8.",
    "unreadable file": "Check its permissions, and that it is a plain file.",
    "unsafe archive": "Don't use this archive; fetch it again from the data set's own page.",
    "unsafe name": "Don't use this file: names in a data set are plain relative paths.",
}


class Damage(DataError):
    """One problem of a data set's files.

    Attributes:
        kind: a short name shared by problems of one sort ("missing frame"); reports group by it.
        file: the file or folder.
        place: where in it (``videos.a1b2.expressions.3``), or ``None`` for the whole.
        harmless: there is one way to read it all the same, and the loader takes it.
    """

    def __init__(
        self,
        kind: str,
        what: str,
        file: str | Path,
        place: str | None = None,
        hint: str | None = None,
        *,
        allowed: Iterable[object] | None = None,
        harmless: bool = False,
    ) -> None:
        self.harmless = harmless
        self.kind = kind
        self.file = str(file)
        self.place = place
        where = self.file if place is None else f"{self.file}: {place}"
        super().__init__(what, where=where, allowed=allowed, hint=hint or HINTS.get(kind, UNPACK_AGAIN))


Tell = Callable[[Damage], None]


def refuse(damage: Damage) -> None:
    """A run's way to be told: the first problem is the last."""
    if not damage.harmless:
        raise damage


_NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number", bool: "true or false"}


class Place(NamedTuple):
    """A place in a data file, with checks of what stands there."""

    file: Path  #: the file
    part: str | None = None  #: where in it; ``None`` = the whole
    told: Tell = refuse  #: receives what is wrong

    def at(self, part: str) -> Place:
        """A place within this one: a key, or an index in brackets.

        >>> Place(Path("meta.json"), "videos").at("a1b2").at("frames[3]").part
        'videos.a1b2.frames[3]'
        """
        joined = part if self.part is None else f"{self.part}{'' if part[0] == '[' else '.'}{part}"
        return Place(self.file, joined, self.told)

    def damage(self, kind: str, what: str, hint: str | None = None, **more: Any) -> Damage:
        """A problem of this place, to be raised; ``more`` as :class:`Damage` takes it."""
        return Damage(kind, what, self.file, self.part, hint, **more)

    def tell(self, kind: str, what: str, hint: str | None = None, **more: Any) -> None:
        """Tell a problem of this place."""
        self.told(self.damage(kind, what, hint, **more))

    def holds(self, value: Any, kind: type) -> bool:
        """Whether the value that stands here is of a kind of JSON value; tells it if not."""
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return True
        shown = repr(value)
        shown = shown if len(shown) < 60 else f"{shown[:57]}..."
        told = f"Expected {_NAMES.get(kind, kind.__name__)}, found {shown}."
        self.told(Damage("wrong type", told, self.file, self.part or "the file"))
        return False

    def field(self, record: Mapping[str, Any], key: str, kind: type) -> Any:
        """A field of the object that stands here; ``None`` after telling that it is missing or wrong."""
        if key not in record:
            told = f"The field '{key}' is missing."
            self.told(Damage("missing field", told, self.file, self.part or "the file"))
            return None
        return record[key] if self.at(key).holds(record[key], kind) else None

    def fields(self, record: Mapping[str, Any], **kinds: type) -> list[Any] | None:
        """Several fields of the object that stands here; ``None`` if one was told as damaged."""
        found = [self.field(record, key, kind) for key, kind in kinds.items()]
        return None if any(value is None for value in found) else found


# ── places ───────────────────────────────────────────────────────────────────


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
    """``PLACE-STATE`` in hex: where files are, and their sizes, times (of the inode, too) and inodes.

    Raises:
        Damage: one of them is missing.
    """
    places, states = [], []
    _collect(*paths)
    for path in paths:
        try:
            state = look(path)
        except OSError as error:
            raise missing_file(path) from error
        places.append(str(path.resolve()))
        states.append(" ".join(map(str, state)))
    return "-".join(
        hashlib.sha256("|".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        for texts in (places, states)
    )


def missing_file(path: Path) -> Damage:
    """The error of a file that should be there."""
    told = f"The file '{path.name}' is missing."
    return Damage("missing file", told, path, hint=rename_that_helps(path))


def rename_that_helps(*paths: Path) -> str | None:
    """The hint of missing files of which one is there under another spelling of its name; else ``None``."""
    from difflib import get_close_matches

    for path in paths:
        with contextlib.suppress(OSError):
            there = [n for n in os.listdir(path.parent) if Path(n).suffix.lower() == path.suffix.lower()]
            close = get_close_matches(path.name, there, 1, 0.7)
            if close and path.name not in there:
                return f"If {path.parent / close[0]} is that file, rename it to {path.name}."
    return None


def other_form(path: Path) -> str | None:
    """The hint of what is missing where its name is there in another Unicode form, as macOS packs it."""
    form = functools.partial(unicodedata.normalize, "NFC")
    with contextlib.suppress(OSError):
        if form(path.name) in map(form, os.listdir(path.parent)) and not path.name.isascii():
            return f"Rename it: '{path.name}' is there in another Unicode form (convmv -f utf8 -t utf8 --nfc)"
    return None


#: Longest name of one file or folder (less its ending), and of a path below a set's folder, in bytes.
_MOST_NAME, _MOST_PATH = 250, 2048
#: Names that need no closer look, which are nearly all.
_SOUND = re.compile(r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")


def bad_name(name: object) -> str | None:
    """Why a name from a data file can't be a relative path, or ``None`` if it can."""
    if not isinstance(name, str):
        return f"is {type(name).__name__}, not text"
    if len(name) <= _MOST_NAME and _SOUND.fullmatch(name):
        return None
    if not name.strip():
        return "is empty"
    if "\\" in name or printable(name) != name:
        return "holds a backslash, line break, control character, or bytes that are no UTF-8"
    if name.startswith("/"):
        return "is an absolute path"
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "leaves its folder or holds an empty part"
    if max(len(os.fsencode(part)) for part in parts) > _MOST_NAME or len(os.fsencode(name)) > _MOST_PATH:
        return "is longer than a disk can hold"
    return None


def safe_join(base: Path, name: object, at: Place) -> Path:
    """``base / name`` if the name, read at a place, stays below ``base``; slashes are allowed.

    Raises:
        Damage: the name is no text, empty, absolute or leads out of ``base``.
    """
    reason = bad_name(name)
    if reason is not None:
        raise at.damage("unsafe name", f"The name {name!r} {reason}.")
    return base / str(name)


#: Spaces and what a screen shows nothing of: controls, joiners, marks of direction, the byte order mark.
_UNSEEN = r"[\s\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]*"


def wordless(text: str) -> bool:
    """Whether a text shows nothing."""
    return re.fullmatch(_UNSEEN, text) is not None


def frame_key(name: str) -> tuple[tuple[str, int], ...]:
    """A frame name's parts, to sort by: ``frame_2`` before ``frame_10``, ``9999`` before ``10000``."""
    return tuple((text, int(digits or -1)) for text, digits in re.findall(r"([^0-9]*)([0-9]*)", name)[:-1])


def png_names(folder: Path) -> list[str]:
    """Names, without ending, of the PNG files of a folder, sorted; none if it isn't there."""
    return [name[:-4] for name in file_names(folder) if name.endswith(".png")]


def file_names(folder: Path) -> list[str]:
    """Names of what a folder holds, litter and hidden files left out, sorted; none if it isn't there.

    Raises:
        Damage: the folder can't be read: what isn't seen there is not absent.
    """
    try:
        return sorted(name for name in os.listdir(folder) if name[0] != "." and not is_litter(name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def is_litter(name: str) -> bool:
    """An archive's own root, and what macOS and Windows add to every archive."""
    parts = name.split("/")
    return (
        name in ("", ".")
        or "__MACOSX" in parts
        or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")
        or parts[-1].startswith("._")
    )


def check_link(path: Path, *homes: Path, follow: bool, tell: Tell) -> bool:
    """Whether a path may be read: where a symbolic link leads out of the data set, that is told.

    Links within ``homes``, the data set's folders, are fine, and so is one that *is* one of them (a frames
    folder kept on another disk). ``follow``: the user's permission to follow links to anywhere.
    """
    real = None if follow else leads_out(path, *homes)
    if real is None:
        return True
    told = f"'{path.name}' is a symbolic link to '{real}', outside of the data set."
    hint = "Put the files inside the data set, or, if you made the link: dataset.follow_links=true."
    tell(Damage("link out of the data set", told, path, hint=hint))
    return False


# ── reading ──────────────────────────────────────────────────────────────────

#: Most bytes of a file that is read whole. gRefCOCO's sentences, the largest, take a fifth.
MOST_BYTES = 1 << 30
#: A packed file that grows by more than this is a bomb: JSON of masks packs about 5 times.
MAX_GROWTH = 200
#: Growth is only judged above this size; small text packs well.
GROWTH_FROM = 64 << 20
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
    return Damage("unreadable file", told, path)


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
    problems: list[UnicodeDecodeError] = []
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            problems.append(error)
    place = problems[0].start
    told = f"Byte {place} ({problems[0].object[place]:#04x}) is not {' or '.join(encodings)}."
    raise Damage("text in another encoding", told, path, f"byte {place}")


class _RepeatedKey(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise _RepeatedKey(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return out


def parse_json(text: str, at: Place) -> Any:
    """JSON to plain values; a repeated key is an error, not a silent loss.

    Raises:
        Damage: torn or malformed text, a repeated key, or nesting that no data file has.
    """
    before = "" if at.part is None else f"{at.part}, "
    try:
        return store_io.parse_json(text, _unique)
    except _RepeatedKey as error:
        told = f"The key '{error}' stands twice in one object."
        raise Damage("duplicate id", told, at.file, f"{before}key '{error}'") from None
    except json.JSONDecodeError as error:
        told, hint = error.msg, None
        if error.msg == "Extra data" and text[error.pos - 1 : error.pos] == "\n":
            told = "something follows its end, as in JSON lines or several files in one"
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
