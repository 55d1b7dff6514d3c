"""The cache: exact round trips, misses that must miss, and writers that race or die."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save

from refseg_bench.cache import Cache, canonical, digest, fingerprint
from refseg_bench.errors import RefsegError
from refseg_bench.files import store_io

KEY = {"stage": "demo", "version": 1, "model": {"id": "a/b", "revision": "main"}, "frames": (0, 3, 7)}


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    st.text(max_size=30),
)
def test_round_trip_keeps_bits_dtype_and_shape(tmp_path_factory, array, text):
    cache = Cache(tmp_path_factory.mktemp("c"))
    cache.put(KEY, {"a": array, "answer": text, "again": array.T})
    found = cache.get(KEY)
    assert found is not None
    for name, expected in (("a", array), ("again", array.T)):
        assert found[name].dtype == expected.dtype
        assert found[name].shape == expected.shape
        assert found[name].tobytes() == np.ascontiguousarray(expected).tobytes()
    assert found["answer"] == text


def test_counters_and_contains(tmp_path):
    cache = Cache(tmp_path)
    assert cache.get(KEY) is None
    cache.put(KEY, {"x": np.arange(3)})
    assert KEY in cache
    assert cache.get(KEY) is not None
    assert (cache.hits, cache.misses) == (1, 1)


@pytest.mark.parametrize(
    "other",
    [
        KEY | {"version": 2},
        KEY | {"model": {"id": "a/b", "revision": "abc"}},
        KEY | {"frames": (0, 3)},
        KEY | {"frames": (0, 7, 3)},
        KEY | {"extra": None},
        KEY | {"version": 1.0},
    ],
)
def test_any_change_of_the_key_misses(tmp_path, other):
    cache = Cache(tmp_path)
    cache.put(KEY, {"x": np.arange(3)})
    assert cache.get(other) is None


def test_equal_keys_have_one_address():
    same = {
        "version": np.int64(1),
        "frames": [0, 3, 7],
        "model": {"revision": "main", "id": "a/b"},
        "stage": "demo",
    }
    assert digest(same) == digest(KEY)
    assert canonical({"p": Path("a") / "b"}) == '{"p":"a/b"}'


@pytest.mark.parametrize("bad", [{"x": {1, 2}}, {"x": np.arange(2)}, {"x": object()}])
def test_what_json_cannot_name_is_no_key(bad):
    with pytest.raises(TypeError):
        digest(bad)


def test_nan_is_no_key():
    with pytest.raises(ValueError, match="JSON"):
        digest({"x": float("nan")})


def test_no_root_remembers_nothing():
    cache = Cache(None)
    cache.put(KEY, {"x": np.arange(3)})
    assert cache.get(KEY) is None
    assert KEY not in cache
    assert cache.misses == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "answer", "brace", "[]", "no words"])
def test_a_damaged_file_is_a_miss_and_is_replaced(tmp_path, damage):
    cache = Cache(tmp_path)
    value = np.arange(100, dtype=np.float32)
    cache.put(KEY, {"x": value, "said": "dog"})
    path = cache.path(KEY)
    blob = bytearray(path.read_bytes())
    if damage in ("answer", "brace"):
        # One letter of another word, or of no JSON, in the header.
        before, after = {"answer": (b"dog", b"dig"), "brace": (b'"texts":"{', b'"texts":"?')}[damage]
        assert before in blob
        path.write_bytes(blob.replace(before, after))
    elif damage == "cut":
        path.write_bytes(blob[:-7])
    elif damage == "flip":
        blob[-5] ^= 0xFF
        path.write_bytes(blob)
    elif damage in ("[]", "no words"):
        # Of another hand: it fits its digest of arrays, and is no entry.
        with safe_open(path, "np") as file:
            kept = {name: file.metadata()[name] for name in ("key", "check")}
        path.write_bytes(save({"x": value}, metadata=kept | ({"texts": damage} if damage == "[]" else {})))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.write_text("not a tensor")
    assert cache.get(KEY) is None
    cache.put(KEY, {"x": value})
    assert np.array_equal(cache.get(KEY)["x"], value)


def test_a_pipe_in_the_cache_hangs_nobody(tmp_path):
    cache = Cache(tmp_path)
    cache.put(KEY, {"x": np.arange(3)})
    cache.path(KEY).unlink()
    os.mkfifo(cache.path(KEY))
    assert cache.get(KEY) is None


def test_an_entry_of_another_key_is_not_believed(tmp_path):
    cache = Cache(tmp_path)
    cache.put(KEY, {"x": np.arange(3)})
    other = KEY | {"version": 9}
    cache.path(other).parent.mkdir(parents=True, exist_ok=True)
    os.replace(cache.path(KEY), cache.path(other))
    assert cache.get(other) is None


def _write_many(root: str, worker: int) -> int:
    cache = Cache(Path(root))
    seen_torn = 0
    for step in range(40):
        key = {"stage": "race", "n": step % 5}
        cache.put(key, {"x": np.full(2000, step % 5, np.float32), "who": "anyone"})
        found = cache.get(key)
        if found is None or not (found["x"] == step % 5).all():
            seen_torn += 1
    return seen_torn


@pytest.mark.slow
def test_concurrent_writers_never_show_a_torn_entry(tmp_path):
    context = multiprocessing.get_context("spawn")  # other tests' threads hold no lock in it
    with context.Pool(4) as pool:
        torn = pool.starmap(_write_many, [(str(tmp_path), worker) for worker in range(4)])
    assert torn == [0, 0, 0, 0]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_told_once_and_costs_nothing_else(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(store_io, "_unwritten", set())
    blocked = tmp_path / "file"
    blocked.write_text("")
    cache = Cache(blocked)
    for number in range(3):
        cache.put(KEY | {"n": number}, {"x": np.arange(3)})
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    assert "cache can't be written (Not a directory)" in caplog.text
    assert cache.get(KEY) is None


def test_what_a_killed_writer_left_is_swept(tmp_path):
    first = Cache(tmp_path)
    first.put(KEY, {"x": np.arange(3)})
    left = subprocess.run(
        [sys.executable, "-c", "import os, sys; from pathlib import Path\n"
         "from refseg_bench.files.store_io import replacing\n"
         "with replacing(Path(sys.argv[1])) as handle: handle.write(b'x'); handle.flush(); os._exit(9)",
         str(first.path(KEY))], check=False)  # fmt: skip
    assert left.returncode == 9
    assert len(list(tmp_path.rglob("*.tmp"))) == 1
    Cache(tmp_path).put(KEY | {"n": 1}, {"x": np.arange(3)})
    assert not list(tmp_path.rglob("*.tmp"))
    assert first.get(KEY) is not None


def test_fingerprint_follows_content_and_order(tmp_path):
    for name, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / name).write_text(text)
    a, b, c = (tmp_path / name for name in "abc")
    assert fingerprint([a, b]) == fingerprint([c, b])
    assert fingerprint([a, b]) != fingerprint([b, a])
    assert fingerprint([a, b]) != fingerprint([a])
    with pytest.raises(RefsegError, match="can't be read"):
        fingerprint([tmp_path / "missing"])
