"""Long-RVOS and GroundMoRe: their layouts, and which frames their truth shows in."""

import numpy as np
import pytest
from PIL import Image

from refseg_bench.datasets.files import Damage
from refseg_bench.datasets.groundmore import GroundMore
from refseg_bench.datasets.long_rvos import LongRvos
from refseg_bench.datasets.verify import verify
from tests.fakes import unlisted
from tools.writers import write_groundmore_set, write_label_map, write_long_rvos_set

from .conftest import boxes, union, video

TYPED = [("the first", [0], {"type": "dynamic"}), ("the second", [1], {"type": "hybrid"})]


def asked(start, end, **more):
    return {"action_start": start, "action_end": end, **more}


def hidden(masks, *frames):
    masks[list(frames)] = False
    return masks


def test_long_rvos_has_no_png_of_frames_without_the_object(tmp_path):
    objects = [hidden(boxes(4), 1, 2), hidden(boxes(4, 14), 0, 1, 2, 3)]
    write_long_rvos_set(tmp_path, "valid", [video("a", expressions=TYPED, objects=objects)])
    assert sorted(p.stem for p in (tmp_path / "valid/Annotations/a/1").iterdir()) == ["00000", "00003"]
    data = LongRvos(root=tmp_path)
    clip = data.clips()[0]
    first, never = data.expressions(clip)
    assert (first.attrs["type"], first.attrs["obj_ids"], never.attrs["type"]) == ("dynamic", ["1"], "hybrid")
    assert data.target(clip, first).objects[0].area() == [36, 0, 0, 36]
    assert not union(data.target(clip, never)).any()
    verdict = verify(data)
    assert verdict.ok
    assert len(verdict.notes) == 1
    assert "Annotations/a/2" in verdict.notes[0]


def test_a_folder_that_cannot_be_read_is_no_absent_object(tmp_path, monkeypatch):
    write_long_rvos_set(tmp_path, "valid", [video("a", expressions=TYPED)])
    data = LongRvos(root=tmp_path)
    clip = data.clips()[0]
    unlisted(monkeypatch, tmp_path / "valid/Annotations/a/1")
    with pytest.raises(Damage, match="can't be read"):
        data.target(clip, data.expressions(clip)[0])


def test_long_rvos_scores_without_its_frames(tmp_path):
    import shutil

    write_long_rvos_set(tmp_path, "valid", [video("a", expressions=TYPED)])
    shutil.rmtree(tmp_path / "valid/JPEGImages")
    data = LongRvos(root=tmp_path)
    assert data.clips()[0].size == (24, 32)
    assert np.array_equal(union(data.target(data.clips()[0], data.expressions(data.clips()[0])[0])), boxes(4))


def test_groundmore_is_empty_outside_of_the_action(tmp_path):
    # 6 frames a second: the clip begins at 1:10, so that its frames 0 to 17 are 1:10 to 1:13.
    words = [
        ("who jumps?", [0], asked("01:11", "01:12")),
        ("who stays?", [1], asked("00:01:10", "00:01:13", q_type="Descriptive")),
        ("who is seen in no frame?", [0], asked("01:11", "01:11", q_type="sequential")),
        ("who are the two?", [0, 1], asked("01:10", "01:11", q_type="Counterfactual")),
    ]
    names = [str(i) for i in range(18)]
    write_groundmore_set(tmp_path, "test", [video("vid_0110_0113", 18, words, names=names)])
    data = GroundMore(root=tmp_path)
    clip = data.clips()[0]
    assert clip.frame_names == tuple(str(i) for i in range(18))  # not 0, 1, 10, 11, …
    shown = {}
    for e in data.expressions(clip):
        shown[e.text] = [t for t, m in enumerate(union(data.target(clip, e))) if m.any()]
    assert shown == {
        "who jumps?": [6, 7, 8, 9, 10, 11],
        "who stays?": list(range(18)),
        "who is seen in no frame?": [],
        "who are the two?": [0, 1, 2, 3, 4, 5],
    }
    types = [e.attrs["type"] for e in data.expressions(clip)]
    assert types == ["Causal", "Descriptive", "Sequential", "Counterfactual"]
    both = data.target(clip, data.expressions(clip)[3])
    assert both.object_ids == ("1", "2")
    assert np.array_equal(union(both)[0], boxes(18)[0] | boxes(18, 14, 5)[0])
    verdict = verify(data)
    assert verdict.ok
    (note,) = verdict.notes
    assert note.endswith(
        "questions.2: No frame of 'vid_0110_0113' is in the action, frames 6 to 5 by clock=source."
    )


@pytest.mark.parametrize(
    ("options", "times", "expected"),
    [
        ({}, ("01:11", "01:12"), range(6, 12)),
        ({"action_end": "inclusive"}, ("01:11", "01:12"), range(6, 13)),
        ({"clock": "clip"}, ("00:01", "00:02"), range(6, 12)),
        ({"clock": "clip"}, (0.5, 2), range(3, 12)),
        ({"clock": "clip", "fps": 3.0}, (1, "2"), range(3, 6)),
    ],
)
def test_what_the_paper_leaves_open_is_an_option(tmp_path, options, times, expected):
    write_groundmore_set(tmp_path, "test", [video("vid_0110_0113", 18, [("who?", [0], asked(*times))])])
    data = GroundMore(root=tmp_path, **options)
    clip = data.clips()[0]
    masks = union(data.target(clip, data.expressions(clip)[0]))
    assert [t for t, mask in enumerate(masks) if mask.any()] == list(expected)
    assert all(f"{name}={value:g}" in data.taken() if name == "fps" else f"{name}={value}" in data.taken()
               for name, value in options.items())  # fmt: skip


def test_groundmore_maps_may_bear_their_frames_names_and_be_missing(tmp_path):
    names = [f"{i:05d}" for i in range(100, 106)]
    write_groundmore_set(tmp_path, "test", [video("vid", 6, [("who?", [0], asked("0", "1"))], names=names)])
    masks = tmp_path / "vid/masks"
    for index, name in enumerate(names[:4]):
        (masks / f"frame_{index:06d}.png").rename(masks / f"{name}.png")
    (masks / "frame_000005.png").unlink()
    data = GroundMore(root=tmp_path)
    clip = data.clips()[0]
    target = data.target(clip, data.expressions(clip)[0])
    assert target.objects[0].area() == [36, 36, 36, 36, 36, 0]
    (masks / "frame_000009.png").write_bytes((masks / "frame_000004.png").read_bytes())
    assert list(verify(data).kinds()) == ["extra mask"]


def test_groundmore_objects_may_bear_high_numbers_and_one_of_them_show_nowhere(tmp_path):
    words = [("who?", [0], asked("0", "1")), ("where?", [1], asked("0", "1"))]
    write_groundmore_set(tmp_path, "test", [video("vid", 6, words)])
    for file in (tmp_path / "vid" / "masks").iterdir():
        labels = np.asarray(Image.open(file))
        write_label_map(file, np.where(labels == 1, 12, 0).astype(np.uint8))
    meta = tmp_path / "groundmore_test.json"
    meta.write_text(meta.read_text().replace('"obj_id": "1"', '"obj_id": "12"'))
    data = GroundMore(root=tmp_path)
    (clip,) = data.clips()
    seen = [
        any(area for t in data.target(clip, e).objects for area in t.area()) for e in data.expressions(clip)
    ]
    assert seen == [True, False]
    assert verify(GroundMore(root=tmp_path)).ok


def test_groundmore_lies_in_other_folders_too(tmp_path):
    write_groundmore_set(tmp_path, "test", [video("vid", 6, [("who?", [0], asked("0", "1"))])])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "vid").rename(tmp_path / "annotations/vid")
    (tmp_path / "groundmore_test.json").rename(tmp_path / "test_v2.json")
    data = GroundMore(root=tmp_path)
    clip = data.clips()[0]
    assert len(clip) == 6
    assert union(data.target(clip, data.expressions(clip)[0])).any()
    (tmp_path / "annotations/vid/images").rename(tmp_path / "gone")
    with pytest.raises(Damage, match="has no frame"):
        GroundMore(root=tmp_path).clips()
