"""Small files: bounded reads, one-step writes, names and links that stay inside."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from refseg_bench.config.components import names
from refseg_bench.errors import StoreError
from refseg_bench.files import store_io
from refseg_bench.files.store_io import (
    MOST_DEPTH,
    check_output,
    files_in,
    open_regular,
    output,
    parse_yaml,
    printable,
    read_json,
    read_yaml,
    replacing,
    short_id,
    sweep,
    to_yaml,
    too_deep,
    within,
    write_atomic,
)


def test_a_link_back_is_no_folder(tmp_path: Path) -> None:
    top, other = tmp_path / "top", tmp_path / "other"
    for name in ("top/a/x", "top/a.b", "top/.git/x", "other/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, target in (("latest", "."), ("up", ".."), ("one", other), ("two", other), ("none", "gone")):
        (top / name).symlink_to(target)
    (other / "back").symlink_to(top)
    assert files_in(top) == ["a/x", "a.b", "one/y", "two/y"]
    assert files_in(tmp_path / "gone") == []


def test_the_search_path_goes_round_no_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("_target_: my.Own\n")
    (tmp_path / "method" / "latest").symlink_to(".")
    monkeypatch.setenv("REFSEG_SEARCHPATH", str(tmp_path))
    assert [name for name in names("method") if "mine" in name] == ["mine"]


def test_fifos_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="regular|directory"):
            open_regular(path)
    with pytest.raises(StoreError, match="no regular file"):
        read_json(tmp_path / "pipe")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"a": 1',
        '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"a": ' + "[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1) + "}",
        "\x00",
    ],
)
def test_damaged_json_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(StoreError, match="a.json"):
        read_json(tmp_path / "a.json")


def test_bytes_that_are_no_text_and_files_too_large_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(StoreError, match="utf-8"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": "' + "x" * 100 + '"}')
    with pytest.raises(StoreError, match="larger than 50 bytes"):
        read_json(tmp_path / "a.json", most=50)


@pytest.mark.parametrize(("depth", "deep"), [(100, False), (101, True)])
def test_depth_counts_lists_and_objects_alike(depth: int, deep: bool) -> None:
    value: object = {}
    for level in range(depth - 1):
        value = {"[[": value} if level % 2 else ["]", value]
    assert too_deep(value) == deep


@pytest.mark.parametrize(
    "text", ["a: &x 1\nb: *x\n", "- 1\n", "a: [", "a: !!python/object:os.system 1\n", "\x1b"]
)
def test_hostile_yaml_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(StoreError, match="a.yaml"):
        read_yaml(tmp_path / "a.yaml")


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    out.mkdir()
    (run / "away").symlink_to(out)
    (run / "own").symlink_to(run / "scores")
    (tmp_path / "alias").symlink_to(run)
    assert within(run, run / "own" / "x.json") == run / "own" / "x.json"
    assert within(tmp_path / "alias", tmp_path / "alias" / "x")
    for path in (run / "away", run / "away" / "x.json", run / ".." / "out"):
        with pytest.raises(StoreError, match="symbolic link|leads out"):
            within(run, path)


def test_rights_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_what_a_dead_process_left_is_swept_and_a_living_one_s_is_kept(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from refseg_bench.files.store_io import replacing\n"
        "with replacing(Path(sys.argv[1])) as f:\n    f.write(b'x'); f.flush(); os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "b.json"):
        sweep(tmp_path, tmp_path / "nowhere")
        assert len(list(tmp_path.iterdir())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]


def test_escapes_become_visible() -> None:
    assert printable("a\x1b[31m\u202eb\r\n") == "a\\x1b[31m\\u202eb\\r\\n"


def test_an_output_is_checked_before_and_appears_whole(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "a.md", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(StoreError, match="folder|directory|too long"):
            check_output(path)
        with pytest.raises(StoreError, match="folder|directory|too long"), output(path) as handle:
            handle.write(b"x")
    check_output(tmp_path / "a.md")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.md").write_text("old")
    with pytest.raises(TypeError), output(tmp_path / "a.md") as handle:
        handle.writelines([b"new", "no bytes"])  # type: ignore[list-item]
    assert (tmp_path / "a.md").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.md"]


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.ENOSPC, True)])
def test_a_file_system_without_fsync_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="space") if fails else contextlib.nullcontext():
        store_io.write_atomic(tmp_path / "x", "text")
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if fails else ["text"])


def test_devices_pipes_and_links_are_written_to_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for path in (Path("/dev/null"), tmp_path / "link"):
        check_output(path)
        with output(path) as handle:
            handle.write(b"x")
    assert Path("/dev/null").is_char_device()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_bytes() == b"x"


def test_a_temporary_file_of_another_container_is_left_alone(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    inside = tmp_path / f".a.json.{store_io._host()}.{gone.pid}.01234567.tmp"
    other = tmp_path / f".a.json.{os.uname().nodename.split('.')[0]}-abc.{gone.pid}.01234567.tmp"
    for path in (inside, other):
        path.touch()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [other]
    os.utime(other, (0, 0))
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_path_in_another_encoding_has_a_name() -> None:
    assert short_id(os.fsdecode(b"/runs/\xff")) != short_id("/runs/?")


@pytest.mark.parametrize(
    "value",
    [
        *("1e5", "-1E5", "1.5", ".5e3", "2001-01-01", "on", "0o7", "1_0", "~", "12:30", "", " a ", "a: b #"),
        *("a\nb", "ü\x85\u2028 日", "/x/${a}", "word " * 60, "'\"", 1e-7, 1e22, -0.0, None, True, [], {}),
    ],
)
def test_what_is_written_as_yaml_is_read_as_it_was(value: object) -> None:
    shared = [value]
    held = {"a": value, "b": [value, {"c": shared}], "d": shared}  # aliases are not read
    found = parse_yaml(to_yaml(held))
    assert repr(found) == repr(held)
