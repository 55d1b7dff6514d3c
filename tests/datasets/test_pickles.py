"""Pickles are read without running anything, by a process that may die of them."""

import json
import os
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg_bench.datasets import pickles
from refseg_bench.datasets.files import Damage
from refseg_bench.datasets.pickles import pickled_items, pickled_list
from tools.writers import write_python2_pickle

keys = st.text(max_size=4) | st.integers(-(2**40), 2**40)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.tuples(inner)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("pickles") / "refs(unc).p"


def as_json(value):
    """What a value is after its way through JSON."""
    return json.loads(json.dumps(value, default=lambda v: v.decode("latin1")))


def load_pickle(path):
    """The only item of a pickled list."""
    (item,) = pickled_list(path)
    return item


# A process each: few examples are enough, the reading itself is Python's.
@settings(max_examples=15)
@given(st.lists(plain, max_size=3), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_of_every_protocol(path, value, protocol):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert list(pickled_list(path)) == as_json(value)


@settings(max_examples=15)
@given(st.dictionaries(keys, plain, max_size=6), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_the_entries_of_a_dictionary(path, value, protocol):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert list(pickled_items(path)) == [(str(k), as_json(v)) for k, v in value.items()]


def test_texts_of_python2(path):
    write_python2_pickle(path, {"0": [{"size": [2, 3], "counts": "06"}], "caf\xe9": None})
    assert list(pickled_items(path)) == [("0", [{"size": [2, 3], "counts": "06"}]), ("caf\xe9", None)]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "scalar", [np.int64(-7), np.uint8(255), np.float32(0.5), np.bool_(True), np.float64(1e300)]
)
def test_numpy_scalars_become_numbers(path, scalar, protocol):
    path.write_bytes(pickle.dumps([{"a": scalar}], protocol=protocol))
    found = load_pickle(path)["a"]
    assert found == scalar.item()
    assert type(found) is type(scalar.item())


def test_numpy_scalars_as_old_numpy_and_python2_named_them(path):
    data = pickle.dumps([np.int64(300)], protocol=2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    path.write_bytes(data)
    assert load_pickle(path) == 300


class _Evil:
    def __init__(self, function, *args):
        self.made = function, args

    def __reduce__(self):
        return self.made


def _touch(name):
    open(name, "w").close()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (__import__("os").system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "eval"),
        (getattr, (0, "real"), "getattr"),
        (bytearray, (10,), "bytearray"),
        (np.array, ([1],), "numpy.array"),
    ],
)
def test_anything_else_is_refused_by_name_and_not_run(path, tmp_path, function, args, name, protocol):
    witness = tmp_path / "witness"
    args = tuple(a.format(witness) if isinstance(a, str) else a for a in args)
    path.write_bytes(pickle.dumps([{"ref_id": 1, "x": _Evil(function, *args)}], protocol=protocol))
    with pytest.raises(Damage) as caught:
        load_pickle(path)
    assert caught.value.kind == "pickle with a callable"
    assert name in str(caught.value)
    assert "not run" in str(caught.value)
    assert not witness.exists()


def test_the_admitted_callables_admit_no_abuse(path):
    for function, args in [
        (np.dtype, ("O",)),
        (np.dtype, ([("a", "O")],)),
        (bytes, (10**12,)),
        (__import__("_codecs").encode, ("x", "rot13")),
    ]:
        path.write_bytes(pickle.dumps([_Evil(function, *args)], protocol=2))
        with pytest.raises(Damage, match="torn or damaged"):
            load_pickle(path)


@pytest.mark.parametrize(
    "made", ["numpy dtype", "numpy.core.multiarray scalar", "_codecs encode", "builtins bytes"]
)
def test_no_attribute_is_set_on_the_admitted_callables(path, made):
    name = "\n".join(made.split()).encode()
    path.write_bytes(b"\x80\x02}X\x01\x00\x00\x00kc" + name + b"\n}X\x01\x00\x00\x00aK\x01sbs.")
    with pytest.raises(Damage, match="no attribute"):
        list(pickled_items(path))


def test_objects_arrays_and_persistent_ids_are_refused(path):
    for value, name in [(np.arange(3), "_reconstruct"), (_Evil(_touch, "x"), "_touch"), (1j, "complex")]:
        path.write_bytes(pickle.dumps(value, protocol=2))
        with pytest.raises(Damage, match=name):
            load_pickle(path)
    path.write_bytes(b"Pwhatever\n.")
    with pytest.raises(Damage, match="persistent"):
        load_pickle(path)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.binary(max_size=40), st.sampled_from([b"", b"}(", b"]("]))
def test_arbitrary_bytes_end_in_damage_or_plain_data(path, data, before):
    path.write_bytes(b"\x80\x02" + before + data)
    told = "refs(unc).p"
    try:
        list(pickled_items(path))
    except Damage as damage:
        told = str(damage)
    assert "refs(unc).p" in told


@pytest.mark.slow
def test_every_truncation_is_told(path):
    data = pickle.dumps([{"ref_id": i, "sent": "words"} for i in range(2)], protocol=2)
    assert sum(1 for _ in pickletools.genops(data)) > 10
    for end in range(len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(Damage, match="torn"):
            list(pickled_list(path))


@pytest.mark.parametrize("value", [[1, 2], "text", None, ({},)])
def test_anything_but_a_dictionary_is_told(path, value):
    path.write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(Damage, match="no dictionary"):
        list(pickled_items(path))


@pytest.mark.parametrize("stored", [b"<html>", b"\x1f\x8b\x08", b"version https://git-lfs.github.com/spec"])
def test_what_was_saved_in_its_place_is_named(path, stored):
    path.write_bytes(stored)
    with pytest.raises(Damage, match="web page|gzip|LFS"):
        list(pickled_list(path))


#: Streams of plain data that no reader of plain data survives.
CRAFTED = {
    "tuples without end": b"]" + b")" + b"\x85" * 3_000_000 + b"a.",
    "lists without end": b"](" + b"]" * 300_000 + b"a" * 300_000 + b".",
    "a hash without end": b"]}" + b")" + b"\x85" * 3_000_000 + b"Nsa.",
    "a set of tuples without end": b"]c__builtin__\nfrozenset\n](" + b")" + b"\x85" * 3_000_000 + b"e\x85Ra.",
    "a hash that takes for ever": b"]})" + b"2\x86" * 50 + b"Nsa.",
    "a text that takes for ever": b"](K\x01" + b"2\x86" * 60 + b"e.",
    "a list in itself": b"]2a.",
    "a number of many digits": b"](\x8b" + (500_000).to_bytes(4, "little") + b"\x7f" * 500_000 + b"e.",
    "half a character": b"](X\x03\x00\x00\x00\xed\xa0\x80e.",
    "memory": b"](" + b"K\x00" + b"\x8e\xff\xff\xff\xff\x7f\x00\x00\x00" + b"e.",
    "no key at all": b"](}]Nsae.",
    "no frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f].",
    "a place far off in the memo": b"]r\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "for ever" in name else name for name in CRAFTED]
)
def test_crafted_streams_end_in_one_error(path, name, monkeypatch):
    # Ten seconds are allowed to a real file; a test needn't wait for them.
    monkeypatch.setattr(pickles, "__file__", str(path.with_name("quick.py")))
    text = Path(pickles.__spec__.origin).read_text()
    path.with_name("quick.py").write_text(text.replace("seconds = 10 +", "seconds = 2 +"))
    path.write_bytes(CRAFTED[name])
    with pytest.raises(Damage, match="torn or damaged|torn or malformed"):
        list(pickled_list(path))


def children():
    """Processes that this one has started, ended ones not waited for included."""
    return {pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


def test_a_reader_that_stops_leaves_no_process(path):
    path.write_bytes(pickle.dumps([["x" * 1000]] * 20_000, protocol=2))
    before = children()
    items = pickled_list(path)
    assert next(items) == ["x" * 1000]
    assert children() > before
    items.close()
    assert children() == before


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    path = tmp_path / "mask_dict.pkl"
    entry = [{"size": [480, 854], "counts": bytes([48 + i % 40]) * 1000} for i in range(50)]
    with path.open("wb") as out:
        pickle.dump(
            {str(i): [dict(e, counts=e["counts"] + b"%d" % i) for e in entry] for i in range(900)},
            out,
            protocol=2,
        )
    script = (
        "import sys; from pathlib import Path\n"
        "from refseg_bench.datasets.masks import open_mask_dict\n"
        # ru_maxrss of a child starts at its parent's peak; this mark starts at its own.
        "status = lambda: Path('/proc/self/status').read_text().splitlines()\n"
        "peak = lambda: next(int(x.split()[1]) for x in status() if x.startswith('VmHWM')) // 1024\n"
        "before = peak()\n"
        "entries = open_mask_dict(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "assert len(entries.get('899')) == 50\n"
        "print(peak() - before)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path / "cache"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(pickles.__file__).parents[2])},
    )  # fmt: skip
    assert path.stat().st_size > 42 << 20
    # Libraries and one entry, not the file.
    assert int(out.stdout) < 30
