"""Pickles are read without running anything."""

import pickle
import pickletools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg_bench.datasets.damage import Damage
from refseg_bench.datasets.pickles import load_pickle

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


@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_of_every_protocol(path, value, protocol):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert load_pickle(path) == value


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "scalar", [np.int64(-7), np.uint8(255), np.float32(0.5), np.bool_(True), np.float64(1e300)]
)
def test_numpy_scalars_become_numbers(path, scalar, protocol):
    path.write_bytes(pickle.dumps({"a": scalar}, protocol=protocol))
    found = load_pickle(path)["a"]
    assert found == scalar.item()
    assert type(found) is type(scalar.item())


def test_numpy_scalars_as_old_numpy_and_python2_named_them(path):
    data = pickle.dumps(np.int64(300), protocol=2).replace(
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
        path.write_bytes(pickle.dumps(_Evil(function, *args), protocol=2))
        with pytest.raises(Damage, match="torn or damaged"):
            load_pickle(path)


def test_objects_arrays_and_persistent_ids_are_refused(path):
    for value, name in [(np.arange(3), "_reconstruct"), (_Evil(_touch, "x"), "_touch"), (1j, "complex")]:
        path.write_bytes(pickle.dumps(value, protocol=2))
        with pytest.raises(Damage, match=name):
            load_pickle(path)
    path.write_bytes(b"Pwhatever\n.")
    with pytest.raises(Damage, match="persistent"):
        load_pickle(path)


@given(st.binary(max_size=40))
def test_arbitrary_bytes_end_in_damage_or_plain_data(path, data):
    path.write_bytes(b"\x80\x02" + data)
    told = "refs(unc).p"
    try:
        load_pickle(path)
    except Damage as damage:
        told = str(damage)
    assert "refs(unc).p" in told


def test_every_truncation_is_told(path):
    data = pickle.dumps([{"ref_id": i, "sent": "words"} for i in range(3)], protocol=2)
    assert sum(1 for _ in pickletools.genops(data)) > 10
    for end in range(len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(Damage, match="torn"):
            load_pickle(path)
