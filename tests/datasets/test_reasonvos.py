"""Every quirk of ReasonVOS' two layouts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refseg_bench.datasets.reasonvos import ReasonVos, renumber
from tools.writers import write_reasonvos_set

from .conftest import boxes, union, video

WORDS = [
    ("which one leads", [0], {"exp_id": 0, "is_sent": 1}),
    ("the follower", [1], {"exp_id": 0, "is_sent": 0}),
    ("the last", [1], {"exp_id": 1, "is_sent": 0}),
]


def test_expressions_are_a_list_whose_ids_repeat(tmp_path):
    write_reasonvos_set(tmp_path / "ReasonVOS", [video("v1", expressions=WORDS)])
    data = ReasonVos(root=tmp_path)
    clip = data.clips()[0]
    found = {e.id: e for e in data.expressions(clip)}
    # "0" is taken by the second; the first moves to 1, where the third pushes it on to 2.
    assert {k: e.text for k, e in found.items()} == {
        "0": "the follower",
        "1": "the last",
        "2": "which one leads",
    }
    moved = found["2"]
    assert (moved.attrs["exp_id"], moved.attrs["is_sent"]) == (0, 1)
    assert (moved.attrs["obj_ids"], moved.attrs["anno_ids"]) == (["0"], ["mose_v1_0"])
    assert clip.attrs["source"] == "mose"


def test_renumbering_by_hand():
    entries = [{"exp_id": i, "n": n} for n, i in enumerate([3, 3, 4, 3])]
    # 3:a | b pushes a to 4 | c pushes a from 4 to 5 | d pushes b from 3 to 6
    assert {k: e["n"] for k, e in renumber(entries).items()} == {"5": 0, "6": 1, "4": 2, "3": 3}


@given(st.lists(st.integers(0, 6), max_size=12))
def test_renumbering_loses_nothing_and_the_latest_keeps_its_id(ids):
    out = renumber([{"exp_id": i, "n": n} for n, i in enumerate(ids)])
    assert sorted(e["n"] for e in out.values()) == list(range(len(ids)))
    if ids:
        assert out[str(ids[-1])]["n"] == len(ids) - 1


def test_obj_id_may_be_any_token(tmp_path):
    write_reasonvos_set(tmp_path, [video("v1", expressions=WORDS)])
    (tmp_path / "Annotations/mose_v1_0").rename(tmp_path / "Annotations/mose_v1_blue-car.2")
    path = tmp_path / "meta_expressions.json"
    path.write_text(path.read_text().replace('"obj_id": "0"', '"obj_id": "blue-car.2"'))
    data = ReasonVos(root=tmp_path)
    clip = data.clips()[0]
    expression = next(e for e in data.expressions(clip) if e.attrs["obj_ids"] == ["blue-car.2"])
    assert np.array_equal(union(data.target(clip, expression)), boxes(4))


def test_frames_without_a_png_are_not_annotated_and_black_pngs_are_absent(tmp_path):
    masks = boxes(4)
    masks[2] = False
    write_reasonvos_set(tmp_path, [video("v1", expressions=WORDS[:1], objects=[masks])])
    (tmp_path / "Annotations/mose_v1_0/00001.png").unlink()
    data = ReasonVos(root=tmp_path)
    clip = data.clips()[0]
    assert data.target(clip, data.expressions(clip)[0]).objects[0].area() == [36, None, 0, 36]


def test_decafs_rewriting_gives_the_same_targets(tmp_path):
    unique = [(text, objects, {**extra, "exp_id": i}) for i, (text, objects, extra) in enumerate(WORDS)]
    for folder, rewritten in (("official", False), ("decaf", True)):
        write_reasonvos_set(tmp_path / folder, [video("v1", expressions=unique)], rewritten=rewritten)
    official, decaf = (ReasonVos(root=tmp_path / f) for f in ("official", "decaf"))
    clip, same = official.clips()[0], decaf.clips()[0]
    for a, b in zip(official.expressions(clip), decaf.expressions(same), strict=True):
        assert (a.id, a.text, a.attrs["anno_ids"], a.attrs["is_sent"]) == (
            b.id,
            b.text,
            b.attrs["anno_ids"],
            b.attrs["is_sent"],
        )
        assert np.array_equal(union(official.target(clip, a)), union(decaf.target(same, b)))


def test_masks_of_every_png_mode_are_read_as_nonzero(tmp_path):
    from PIL import Image

    write_reasonvos_set(tmp_path, [video("v1", expressions=WORDS[:1])])
    folder = tmp_path / "Annotations/mose_v1_0"
    grey = [Image.open(folder / f"{i:05d}.png").copy() for i in range(4)]
    grey[0].convert("1").save(folder / "00000.png")
    grey[1].convert("RGB").save(folder / "00001.png")
    Image.fromarray(boxes(4)[2].astype(np.uint8) * 38).save(folder / "00002.png")
    palette = Image.fromarray(boxes(4)[3].astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 0])  # entry 1 is black: by luminance it would vanish
    palette.save(folder / "00003.png")
    data = ReasonVos(root=tmp_path)
    clip = data.clips()[0]
    assert np.array_equal(union(data.target(clip, data.expressions(clip)[0])), boxes(4))
