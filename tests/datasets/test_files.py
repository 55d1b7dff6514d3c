"""Names from data never leave their folder; JSON problems name their place."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg_bench.datasets.files import Damage, Place, bad_name, fingerprint, read_json, safe_join
from refseg_bench.datasets.meta_expressions import id_list

parts = st.sampled_from(["a", "..", ".", "", "b c", "ü", "…", "a\\..", "\0", "..."])


@pytest.mark.slow
@given(st.lists(parts, max_size=5).map("/".join) | st.text(max_size=8))
def test_a_joined_name_is_below_its_base(name):
    base = Path("/data/set")
    try:
        joined = safe_join(base, name, Place(Path("m.json"), "videos"))
    except Damage:
        assert bad_name(name) is not None
    else:
        normal = os.path.normpath(joined)
        assert normal.startswith("/data/set/")
        assert normal == str(joined)


@pytest.mark.parametrize(
    "name", [None, 3, ["a"], "", " ", "/etc", "..", "a/../b", "a//b", "./a", "a/", "a\\b", "a\nb"]
)
def test_what_is_no_name(name):
    with pytest.raises(Damage, match="name") as caught:
        safe_join(Path("x"), name, Place(Path("m.json"), "videos.3"))
    assert caught.value.where == "m.json: videos.3"


@pytest.mark.parametrize("name", ["00000", "UVO/all/2E4T5NCywcE", "_x_", "...", "a b", "é"])
def test_what_is_a_name(name):
    assert safe_join(Path("x"), name, Place(Path("m"))) == Path("x") / name


def test_ids_in_every_spelling():
    assert id_list("1") == ["1"]
    assert id_list(1) == ["1"]
    assert id_list([1, "2"]) == ["1", "2"]
    assert id_list([]) == []
    assert id_list([-1]) == []  # nobody
    for wrong in (None, 1.5, {"a": 1}, [None], [True], [" "], [[1]]):
        assert id_list(wrong) is None


def test_deeply_nested_json_is_told(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" * 100_000)
    with pytest.raises(Damage) as caught:
        read_json(path)
    assert caught.value.kind == "torn JSON"


def test_a_fingerprint_follows_place_size_time_and_inode(tmp_path):
    path = tmp_path / "a"
    path.write_text("x")
    first = fingerprint(path)
    assert fingerprint(path) == first
    os.utime(path, ns=(1, 1))
    assert fingerprint(path) != first
    with pytest.raises(Damage, match="missing"):
        fingerprint(tmp_path / "b")
