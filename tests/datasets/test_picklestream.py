"""The walk through a pickled dictionary gives what the usual reader gives."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg_bench.datasets import picklestream
from refseg_bench.datasets.damage import Damage
from refseg_bench.datasets.pickles import load_pickle
from refseg_bench.datasets.picklestream import pickled_items
from refseg_bench.datasets.writers import write_python2_pickle

from .test_pickles import _Evil, plain

keys = st.text(max_size=4) | st.integers(-(2**40), 2**40)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("pickles") / "mask_dict.pkl"


@given(st.dictionaries(keys, plain, max_size=6), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_equals_the_usual_reader(path, value, protocol):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert list(pickled_items(path)) == list(value.items())


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_a_dictionary_of_many_batches(path, protocol):
    shared = {"size": [2, 3], "counts": b"1" * 80}
    value = {
        str(i): [{"size": [2, 3], "counts": bytes([i % 250]) * 90}, None, shared, np.int64(i)]
        for i in range(2500)
    }
    value["5"] = [None] * 2500  # a list of several batches
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert list(pickled_items(path)) == list(load_pickle(path).items())


@pytest.mark.parametrize(
    "value", [{"0": ["x"], "": None}, {"0": [b"x"], "1": [[]]}, {"0": [["a"]], "1": {"b": ["c"]}}]
)
def test_a_text_alone_in_a_list_is_no_key(path, value):
    for protocol in (1, 2, 4):
        path.write_bytes(pickle.dumps(value, protocol=protocol))
        assert list(pickled_items(path)) == list(value.items())


def test_texts_of_python2(path):
    write_python2_pickle(path, {"0": [{"size": [2, 3], "counts": "06"}], "caf\xe9": None})
    assert list(pickled_items(path)) == [("0", [{"size": [2, 3], "counts": "06"}]), ("caf\xe9", None)]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_callables_are_refused_by_name_and_not_run(path, tmp_path, protocol):
    witness = tmp_path / "witness"
    value = {"0": [], "1": _Evil(eval, f"open('{witness}', 'w')")}
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(Damage, match="eval") as caught:
        list(pickled_items(path))
    assert caught.value.kind == "pickle with a callable"
    assert not witness.exists()


@pytest.mark.parametrize("value", [[1, 2], "text", None, ({},)])
def test_anything_but_a_dictionary_is_told(path, value):
    path.write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(Damage, match="no dictionary"):
        list(pickled_items(path))


def test_every_truncation_is_told(path):
    data = pickle.dumps({str(i): [{"size": [2, 3], "counts": b"06"}] for i in range(3)}, protocol=2)
    for end in range(len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(Damage, match="torn"):
            list(pickled_items(path))


@given(st.binary(max_size=40))
def test_arbitrary_bytes_end_in_damage_or_plain_data(path, data):
    path.write_bytes(b"\x80\x02}(" + data)
    told = "mask_dict.pkl"
    try:
        list(pickled_items(path))
    except Damage as damage:
        told = str(damage)
    assert "mask_dict.pkl" in told


def test_memory_stays_flat(tmp_path):
    path = tmp_path / "mask_dict.pkl"
    entry = [{"size": [480, 854], "counts": bytes([48 + i % 40]) * 1000} for i in range(50)]
    with path.open("wb") as out:
        pickle.dump(
            {str(i): [dict(e, counts=e["counts"] + b"%d" % i) for e in entry] for i in range(1800)},
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
        "assert len(entries.get('1799')) == 50\n"
        "print(peak() - before)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path / "cache"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(picklestream.__file__).parents[2])},
    )  # fmt: skip
    assert path.stat().st_size > 85 << 20
    # Libraries and one entry, not the file.
    assert int(out.stdout) < 75
