"""Archives of strangers that would leave a traceback, hang, or fill memory or disk."""

import bz2
import contextlib
import gzip
import io
import random
import tarfile
import warnings
import zipfile

import pytest

from refseg_bench.datasets.files import Damage
from refseg_bench.datasets.prepare import unpack


def make_zip(path, *names, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            out.writestr(name, b"x" * 64)


def make_tar(path, *members, mode="w"):
    with tarfile.open(path, mode) as out:
        for name, fields in members:
            info = tarfile.TarInfo(name)
            info.size = fields.pop("length", 1)
            for key, value in fields.items():
                setattr(info, key, value)
            out.addfile(info, io.BytesIO(b"x" * info.size))


def packed_with(method):
    """A zip whose only member claims a method."""

    def make(path):
        make_zip(path, "mevis/a")
        data = bytearray(path.read_bytes())
        for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            place = data.index(mark) + at
            data[place : place + 2] = method.to_bytes(2, "little")
        path.write_bytes(data)

    return make


def header(kind, size):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def huge_name(path):
    with gzip.open(path, "wb", 1) as out:
        out.write(header(tarfile.GNUTYPE_LONGNAME, 1_500_000_000))
        for _ in range(100):
            out.write(b"\0" * (1 << 20))


def huge_member(path):
    with gzip.open(path, "wb", 1) as out:
        out.write(header(tarfile.REGTYPE, 1 << 40))
        for _ in range(100):
            out.write(b"\0" * (1 << 20))


def name_upon_name(path):
    piece = header(tarfile.GNUTYPE_LONGNAME, 2) + b"x\0".ljust(512, b"\0")
    path.write_bytes(piece * 5000)


def torn_bzip2(path):
    random.seed(0)
    with tarfile.open(path, "w:bz2") as out:
        info = tarfile.TarInfo("mevis/a")
        data = random.randbytes(3_000_000)
        info.size = len(data)
        out.addfile(info, io.BytesIO(data))
    data = bytearray(path.read_bytes())
    data[1_500_000:1_500_050] = b"\0" * 50
    path.write_bytes(data)


HOSTILE = {
    "file and folder": (lambda p: make_zip(p, "a/b", "a"), "unsafe archive", "file and a folder"),
    "folder and file": (lambda p: make_zip(p, "a/", "a"), "unsafe archive", "file and a folder"),
    "tar file and folder": (
        lambda p: make_tar(p, ("a", {}), ("a/b", {})),
        "unsafe archive",
        "file and a folder",
    ),
    "long name": (lambda p: make_zip(p, "a/" + "b" * 300), "unsafe archive", "longer than a disk"),
    "long path": (lambda p: make_zip(p, "/".join(["b" * 100] * 30)), "unsafe archive", "longer than a disk"),
    "long name in bytes": (lambda p: make_zip(p, "ü" * 200), "unsafe archive", "longer than a disk"),
    "escape sequence": (lambda p: make_zip(p, "a/\x1b[2J"), "unsafe archive", "control"),
    "Deflate64": (packed_with(9), "unknown packing", "Deflate64"),
    "Zstandard": (packed_with(93), "unknown packing", "Zstandard"),
    "unknown method": (packed_with(77), "unknown packing", "method 77"),
    "huge header": (huge_name, "unsafe archive", "1500000000 bytes"),
    "huge member": (huge_member, "unsafe archive", "bomb"),
    "headers upon headers": (name_upon_name, "torn archive", "RecursionError"),
    "sparse": (lambda p: make_tar(p, ("a", {"type": tarfile.GNUTYPE_SPARSE})), "unsafe archive", "sparse"),
    "sparse by attribute": (
        lambda p: make_tar(p, ("a", {"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}})),
        "unsafe archive",
        "sparse",
    ),
    "torn bzip2": (torn_bzip2, "torn archive", "Invalid data"),
    "bzip2 of no tar": (lambda p: p.write_bytes(bz2.compress(b"x" * 9999)), "torn archive", "no tar"),
    "gzip of no tar": (lambda p: p.write_bytes(gzip.compress(b"x" * 9999)), "torn archive", "no tar"),
    "RAR": (lambda p: p.write_bytes(b"Rar!\x1a\x07\x01\0" + bytes(99)), "torn archive", "RAR"),
    "7z": (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(99)), "torn archive", "7z"),
    "empty": (lambda p: p.write_bytes(b""), "torn archive", "no zip and no tar"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_told(tmp_path, kind):
    make, expected, words = HOSTILE[kind]
    path = tmp_path / "set.zip"
    make(path)
    with pytest.raises(Damage, match=words) as caught:
        unpack(path, tmp_path / "into")
    assert caught.value.kind == expected
    assert caught.value.hint
    assert not any(p.is_file() and p.stat().st_size for p in (tmp_path / "into").rglob("*")) or (
        expected == "torn archive"
    )


def test_pieces_of_a_split_archive_are_told_how_they_are_joined(tmp_path):
    whole = tmp_path / "set.zip"
    make_zip(whole, *(f"v/{n}" for n in range(50)))
    data = whole.read_bytes()
    for name, part in (("set.zip.001", data[:900]), ("set.zip.002", data[900:]), ("set.ab", data[900:1800])):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(Damage) as caught:
            unpack(tmp_path / name, tmp_path / f"into-{name}")
        assert "cat NAME.*" in str(caught.value.hint)
    # As `zip -s` leaves them: the last piece says which it is, the others begin with a mark.
    end = data.rindex(b"PK\5\6")
    whole.write_bytes(data[900:end] + b"PK\5\6\1\0" + data[end + 6 :])
    (tmp_path / "set.z01").write_bytes(b"PK\7\x08" + data[:900])
    for name in ("set.zip", "set.z01"):
        with pytest.raises(Damage) as caught:
            unpack(tmp_path / name, tmp_path / f"into-{name}")
        assert "zip -s 0 set.zip --out set-whole.zip" in str(caught.value.hint)
    torn = tmp_path / "set.gz"
    torn.write_bytes(gzip.compress(b"x" * 9999)[:50])
    with pytest.raises(Damage) as caught:
        unpack(torn, tmp_path / "into")
    assert "cat" not in str(caught.value.hint)


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
    make_zip(tmp_path / "inner.zip", "elsewhere")
    with tarfile.open(tmp_path / "set.tar", "w") as out:
        out.add(tmp_path / "inner.zip", "a/inner.zip")
    assert unpack(tmp_path / "set.tar", tmp_path / "into") == 1
    assert (tmp_path / "into/a/inner.zip").is_file()


def test_names_that_differ_in_case_and_what_systems_add(tmp_path):
    make_zip(tmp_path / "set.zip", "v/A", "v/a", "v/._a", "__MACOSX/v/._A", "v/.DS_Store")
    assert unpack(tmp_path / "set.zip", tmp_path / "into") == 2
    assert sorted(p.name for p in (tmp_path / "into/v").iterdir()) == ["A", "a"]


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_flipped_bytes_never_end_in_a_traceback(tmp_path, suffix):
    rng = random.Random(suffix)
    path = tmp_path / f"set.{suffix}"
    if suffix == "zip":
        make_zip(path, "a/b", "a/ü", "c", method=zipfile.ZIP_DEFLATED)
    else:
        make_tar(
            path,
            *((name, {"length": 700}) for name in ("a/b", "a/" + "x" * 150, "c")),
            mode=f"w:{suffix.removeprefix('tar').lstrip('.')}",
        )
    whole = path.read_bytes()
    for turn in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(1, len(data))))])
        with contextlib.suppress(Damage):
            unpack(path, tmp_path / str(turn))
