"""Ref-DAVIS17: the converted layout, and its making from DAVIS and four text files."""

import json
import os
import shutil

import numpy as np
import pytest

from refseg_bench.datasets.masks import read_labels
from refseg_bench.datasets.ref_davis17 import RefDavis17, convert, expressions, read_sentences
from refseg_bench.errors import DataError
from refseg_bench.types import MaskTrack
from tools.writers import running_mask_dict, write_davis_source, write_mask_pickle

from .conftest import SIZE, boxes, union, video

WORDS = [(f"{who} object {o}", [o], {}) for o in range(2) for who in ("a’s", "b’s", "señor's", "François'")]


def source(tmp_path, names=("classic-car", "dogs-scale"), void=None):
    write_davis_source(
        tmp_path,
        {"train": [video("bear", expressions=WORDS)], "val": [video(n, expressions=WORDS) for n in names]},
        void=void,
    )
    return tmp_path


def converted(tmp_path, **how):
    source(tmp_path / "src", **how)
    counts = convert(
        tmp_path / "src" / "DAVIS", tmp_path / "src" / "davis_text_annotations", tmp_path / "out"
    )
    assert counts == {"train": 1, "valid": 2}
    return RefDavis17(root=tmp_path / "out")


def test_exp_id_is_four_times_object_index_plus_annotator(tmp_path):
    data = converted(tmp_path)
    clip = data.clips()[0]
    found = data.expressions(clip)
    assert [e.id for e in found] == [str(i) for i in range(8)]
    assert [(e.attrs["object_index"], e.attrs["annotator"]) for e in found] == [
        (o, a) for o in range(2) for a in range(4)
    ]
    assert [e.text for e in found] == [text for text, _, _ in WORDS]
    assert [e.attrs["obj_ids"] for e in found] == [["1"]] * 4 + [["2"]] * 4


def test_objects_are_sorted_by_id_as_text():
    texts = [{"1": "one", "2": "two", "10": "ten"}] * 4
    assert [e["obj_id"] for e in expressions(texts).values()] == ["1"] * 4 + ["10"] * 4 + ["2"] * 4


def test_annot1_is_utf8_and_annot2_is_latin1(tmp_path):
    folder = source(tmp_path) / "davis_text_annotations"
    assert "François".encode("latin-1") in (folder / "Davis17_annot2_full_video.txt").read_bytes()
    assert (
        read_sentences(folder / "Davis17_annot2_full_video.txt", "latin-1")["bear"]["1"]
        == "François' object 0"
    )
    with pytest.raises(DataError, match="not utf-8"):
        read_sentences(folder / "Davis17_annot2_full_video.txt", "utf-8")


def test_latin1_bytes_do_not_break_lines(tmp_path):
    path = tmp_path / "Davis17_annot2.txt"
    path.write_bytes(b'bear 1 "a bear\x85 brown"\r\nbear 2 "it\x92s "big""\n')
    assert read_sentences(path, "latin-1") == {"bear": {"1": "a bear\x85 brown", "2": 'it\x92s "big"'}}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("clasic-car", "classic-car"), ("dog-scale", "dogs-scale"), ("motor-bike", "motorbike")],
)
def test_sequence_names_are_repaired(tmp_path, wrong, right):
    path = tmp_path / "Davis17_annot1.txt"
    path.write_text(f'{wrong} 1 "the thing"\n')
    assert read_sentences(path, "utf-8-sig") == {right: {"1": "the thing"}}


def test_misspelled_sequences_are_converted_whole(tmp_path):
    source(tmp_path / "src")
    folder = tmp_path / "src" / "davis_text_annotations"
    for path in folder.iterdir():
        path.write_bytes(
            path.read_bytes().replace(b"classic-car", b"clasic-car").replace(b"dogs-scale", b"dog-scale")
        )
    convert(tmp_path / "src" / "DAVIS", folder, tmp_path / "out")
    assert [c.id for c in RefDavis17(root=tmp_path / "out").clips()] == ["classic-car", "dogs-scale"]


def test_void_255_is_kept_apart_from_the_objects(tmp_path):
    outside = np.zeros((4, *SIZE), bool)
    outside[:, 20:, :] = True
    data = converted(tmp_path, void=MaskTrack.from_masks(list(outside), SIZE))
    clip = data.clips()[1]
    target = data.target(clip, data.expressions(clip)[4])
    assert np.array_equal(union(target), boxes(4, 14, 5))
    assert np.array_equal(np.stack(list(target.void.masks())), outside)
    maps = data.annotation_files(clip)
    assert [p.name for p in maps] == ["00000.png", "00001.png", "00002.png", "00003.png"]
    assert set(np.unique(read_labels(maps[3]))) == {0, 1, 2, 255}
    maps[1].unlink()
    assert data.annotation_files(clip)[1] is None


def test_mask_dict_pickle_is_numbered_by_sorted_sequence_and_text_sorted_ids(tmp_path):
    data = converted(tmp_path)
    shutil.rmtree(tmp_path / "out" / "valid" / "Annotations")
    many = [(f"x {i}", [i // 4], {}) for i in range(12)]
    clips = [
        video(n, expressions=many, objects=[boxes(4), boxes(4, 14, 5), boxes(4, 8, 20)])
        for n in ("dogs-scale", "classic-car")
    ]
    meta = {
        c.name: {
            "frames": ["00000", "00001", "00002", "00003"],
            "expressions": {
                str(i): {"exp": t, "obj_id": str(o[0] + 1)} for i, (t, o, _) in enumerate(c.expressions)
            },
        }
        for c in clips
    }
    (tmp_path / "out/meta_expressions/valid/meta_expressions.json").write_text(json.dumps({"videos": meta}))
    write_mask_pickle(tmp_path / "out" / "valid" / "mask_dict.pkl", running_mask_dict(clips))
    data = RefDavis17(root=tmp_path / "out")
    clip = data.clips()[0]
    numbers = {e.id: e.attrs["anno_ids"] for e in data.expressions(clip)}
    assert (clip.id, numbers["0"], numbers["10"], numbers["2"]) == ("dogs-scale", ["12"], ["14"], ["16"])
    for expression in data.expressions(clip):
        expected = [boxes(4), boxes(4, 14, 5), boxes(4, 8, 20)][int(expression.id) // 4]
        assert np.array_equal(union(data.target(clip, expression)), expected)
    assert data.target(clip, data.expressions(clip)[0]).void is None


def test_widths_may_differ_between_sequences(tmp_path):
    wide = (24, 40)
    odd = video(
        "classic-car", expressions=WORDS, size=wide, objects=[boxes(4, size=wide), boxes(4, 14, 5, size=wide)]
    )
    write_davis_source(
        tmp_path / "src",
        {"train": [video("bear", expressions=WORDS)], "val": [odd, video("drone", expressions=WORDS)]},
    )
    convert(tmp_path / "src" / "DAVIS", tmp_path / "src" / "davis_text_annotations", tmp_path / "out")
    assert [c.size for c in RefDavis17(root=tmp_path / "out").clips()] == [wide, SIZE]


def test_conversion_links_instead_of_copying_and_writes_meta(tmp_path):
    converted(tmp_path)
    frame = "valid/JPEGImages/classic-car/00000.jpg"
    assert os.stat(tmp_path / "out" / frame).st_nlink == 2
    meta = json.loads((tmp_path / "out/valid/meta.json").read_text())["videos"]["classic-car"]["objects"]
    assert meta["1"]["frames"] == ["00000", "00001", "00002", "00003"]


def test_conversion_says_which_text_lacks_a_sequence(tmp_path):
    source(tmp_path)
    path = tmp_path / "davis_text_annotations" / "Davis17_annot2.txt"
    path.write_text(
        "\n".join(line for line in path.read_text("latin-1").splitlines() if "dogs" not in line), "latin-1"
    )
    with pytest.raises(DataError, match=r"'dogs-scale' has no expression[\s\S]*Davis17_annot2.txt"):
        convert(tmp_path / "DAVIS", tmp_path / "davis_text_annotations", tmp_path / "out")
