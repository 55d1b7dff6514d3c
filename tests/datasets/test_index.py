"""Walking through large JSON files, and the indices that spare the walk."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg_bench.datasets import index
from refseg_bench.datasets.files import Damage
from refseg_bench.datasets.index import JsonStream, open_entries
from refseg_bench.files import store_io
from tests.fakes import set_back
from tests.launch.runs import HANGS

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
keys = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=6)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@given(
    st.dictionaries(keys, plain, max_size=5),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_entries_equal_json_at_any_buffer_size(scratch, whole, chunk, indent, ascii_only, mark):
    path = scratch / "x.json"
    path.write_bytes(
        mark + json.dumps(whole, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    )
    usual = index._CHUNK
    index._CHUNK = chunk
    try:
        entries = open_entries(path, scratch / "cache")
    finally:
        index._CHUNK = usual
    assert list(entries) == list(whole)
    for key, value in whole.items():
        assert json.loads(entries.raw(key)) == value


@given(st.binary(max_size=24))
def test_arbitrary_bytes_end_in_damage_or_in_what_json_says(scratch, data):
    path = scratch / "any.json"
    path.write_bytes(b'{"a": ' + data)
    told, found = "", None
    try:
        entries = open_entries(path, scratch / "cache")
        found = {key: entries.get(key) for key in entries}
    except Damage as damage:
        told = str(damage)
    if found is None:
        assert "any.json" in told
    else:
        assert found == json.loads((b'{"a": ' + data).decode())


def test_run_length_text_full_of_brackets_and_backslashes(tmp_path):
    whole = {"7": [{"size": [3, 4], "counts": '\\[]{}",:"'}, None], "8": [None]}
    path = tmp_path / "mask_dict.json"
    path.write_text(json.dumps(whole))
    entries = open_entries(path, tmp_path / "cache")
    assert {k: entries.get(k) for k in entries} == whole
    assert len(entries) == 2
    assert "7" in entries


def test_elements_of_a_list_are_walked_one_by_one(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text('{"info": {"a": [1]}, "images": [{"id": 1}, {"id": 2}], "none": []}')
    with JsonStream(path) as stream:
        found = []
        for key in stream.members():
            if key == "info":
                stream.value()
            else:
                found += [(key, number, stream.value()[1]) for number in stream.elements()]
        stream.finish()
    assert found == [("images", 0, b'{"id": 1}'), ("images", 1, b'{"id": 2}')]


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2', '{"a": 1} x', '{"a" 1}', "[1]", "", '{"a": 1,}', '{"a": tru', '{"a"']
)
def test_torn_files_name_the_byte(tmp_path, text):
    path = tmp_path / "mask_dict.json"
    path.write_text(text)
    with pytest.raises(Damage, match="mask_dict.json: byte") as caught:
        open_entries(path, tmp_path / "cache")
    assert caught.value.kind == "torn JSON"


@pytest.fixture
def large(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "SMALL", 0)
    path = tmp_path / "mask_dict.json"
    path.write_text(json.dumps({str(i): [i] * 20 for i in range(300)}))
    return path


def walks(monkeypatch):
    calls = []
    usual = index.object_places
    monkeypatch.setattr(index, "object_places", lambda path: (calls.append(path), usual(path))[1])
    return calls


def test_a_file_is_walked_once(large, tmp_path, monkeypatch):
    calls = walks(monkeypatch)
    for _ in range(3):
        assert open_entries(large, tmp_path / "cache").get("299") == [299] * 20
    assert len(calls) == 1


@pytest.mark.parametrize("in_place", [False, True])
def test_a_changed_file_is_walked_again(large, tmp_path, monkeypatch, in_place):
    calls = walks(monkeypatch)
    open_entries(large, tmp_path / "cache")
    before, other = large.stat(), tmp_path / "other.json"
    other.write_text(json.dumps({str(i): [(i + 1) % 300] * 20 for i in range(300)}))
    # The same time of change; another inode, or the same.
    set_back(other, before)
    if in_place:
        shutil.copy2(other, large)
        other.unlink()
    else:
        os.replace(other, large)
    assert open_entries(large, tmp_path / "cache").get("0") == [1] * 20
    assert len(calls) == 2
    assert len(list((tmp_path / "cache" / "index").iterdir())) == 1  # the old index is gone


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"not an index"])
def test_a_torn_index_is_made_again(large, tmp_path, monkeypatch, content):
    open_entries(large, tmp_path / "cache")
    (index,) = (tmp_path / "cache" / "index").iterdir()
    index.write_bytes(content)
    assert open_entries(large, tmp_path / "cache").get("5") == [5] * 20


def test_an_entry_that_is_not_what_it_was_is_told(large, tmp_path):
    """Of a file that was changed meanwhile, and of a damaged one that was made of others."""
    derived = index.open_store(
        [large], "joined", tmp_path / "cache", lambda: iter([("a", b"[10]"), ("b", b"[11]")])
    )
    for entries, path, key, hint in (
        (open_entries(large, tmp_path / "cache"), large, "5", "fetch it again"),
        (derived, derived.path, "b", "made again"),
    ):
        assert json.loads(entries.raw(key))
        path.write_bytes(path.read_bytes().replace(b"[5, 5", b"[5, 6").replace(b"[11", b"[12"))
        with pytest.raises(Damage, match="not what it was") as caught:
            entries.raw(key)
        assert (caught.value.kind, caught.value.file) == ("changed file", str(path))
        assert hint in str(caught.value)


def test_a_read_only_cache_stops_nobody(large, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(store_io, "_unwritten", set())
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert open_entries(large, tmp_path / "cache").get("5") == [5] * 20
    assert "cache can't be written" in caplog.text


def _open(path, cache, barrier, results):
    index.SMALL = 0
    barrier.wait()
    results.put(open_entries(Path(path), Path(cache)).get("123"))


@pytest.mark.slow
def test_processes_may_build_the_same_index_at_once(large, tmp_path):
    context = multiprocessing.get_context("spawn")  # other tests' threads hold no lock in it
    barrier, results = context.Barrier(4), context.Queue()
    workers = [
        context.Process(target=_open, args=(large, tmp_path / "cache", barrier, results)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=HANGS) for _ in workers] == [[123] * 20] * 4
    for worker in workers:
        worker.join()
    assert [p.suffix for p in (tmp_path / "cache" / "index").iterdir()] == [".index"]


@pytest.mark.slow
def test_memory_stays_flat_while_a_file_is_walked(tmp_path):
    """A file of 60 MB is walked and read within 40 MB above what the libraries take."""
    path = tmp_path / "mask_dict.json"
    entry = json.dumps([{"size": [480, 854], "counts": "x" * 1000}] * 100)
    with path.open("w") as out:
        for number in range(600):
            out.write(("{" if number == 0 else ", ") + f'"{number}": {entry}')
        out.write("}")
    script = (
        "import sys; from pathlib import Path\n"
        "from refseg_bench.datasets.index import open_entries\n"
        # ru_maxrss of a child starts at its parent's peak; this mark starts at its own.
        "status = lambda: Path('/proc/self/status').read_text().splitlines()\n"
        "peak = lambda: next(int(x.split()[1]) for x in status() if x.startswith('VmHWM')) // 1024\n"
        "before = peak()\n"
        "entries = open_entries(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "assert len(entries.get('599')) == 100\n"
        "print(peak() - before)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path / "cache"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(index.__file__).parents[2])},
    )  # fmt: skip
    assert int(out.stdout) < 40
