"""What is attended to, in which order and how often, with a scripted model instead of a real one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refseg_bench.errors import ConfigError, DataError
from refseg_bench.segmenters.base import Prompt, shared_by_rows
from refseg_bench.segmenters.memory_tracking import Heads, Memory, Step, TrackingSession
from refseg_bench.segmenters.sam2_hf import Sam2Hf
from tests.fakes import set_back

SIZE = 16  # the model's image size
SLOTS, POINTERS = 3, 4


class ScriptedCore:
    """Shows a square whose side tells the frame, and writes down everything it is asked."""

    image_size = SIZE
    device = torch.device("cpu")
    reach = max(SLOTS, POINTERS)

    def __init__(self):
        self.encoded = []
        self.decoded = []  # (batch, points per prompt, several)
        self.recalls = []  # (position, reverse, spatial slots → positions, pointer distances)
        self.memorised = []
        self.names = {}

    def encode(self, frame_HWC):
        frame = int(frame_HWC[0, 0, 0])
        self.encoded.append(frame)
        return (torch.full((1, 1, 4, 4), float(frame)),)

    def wants_several(self, n_points):
        return n_points <= 1

    def first_look(self, features, n):
        return features[0].expand(n, -1, -1, -1)

    def recall(self, features, n, memory, position, length, *, reverse):
        sign = -1 if reverse else 1
        spatial = [
            (slot, memory.start if slot == 0 else position - sign * slot)
            for slot, _ in memory.spatial(position, reverse=reverse, slots=SLOTS)
        ]
        for _, step in memory.spatial(position, reverse=reverse, slots=SLOTS):
            assert step.memory_NChw.dtype == torch.bfloat16
        pointers = [
            distance
            for distance, _ in memory.pointers(position, reverse=reverse, length=length, limit=POINTERS)
        ]
        self.recalls.append((position, reverse, spatial, pointers, n, sorted(memory.followed)))
        return features[0].expand(n, -1, -1, -1)

    def decode(self, top_NChw, features, points, *, several):
        n = len(top_NChw)
        self.decoded.append((n, 0 if points is None else points[0].shape[1], several))
        k = 3 if several else 1
        logits = torch.full((n, k, 4, 4), -1.0)
        if points is not None:
            # The clicked quarter cell tells the objects apart.
            for row, point in enumerate(points[0][:, -1]):
                x, y = (point / 4).long().clamp(0, 3).tolist()
                logits[row, :, y, x] = 1.0
        else:
            logits[:, :, : int(top_NChw[0, 0, 0, 0]) % 4 + 1] = 1.0
        ious = torch.linspace(0.2, 0.8, k).expand(n, k)
        return Heads(logits, ious, logits[:, -1:], torch.zeros(n, 2), torch.ones(n, 1))

    def take_mask(self, features, masks_N1SS):
        n = len(masks_N1SS)
        logits = torch.nn.functional.max_pool2d(masks_N1SS, 4) * 20 - 10
        return Heads(logits, torch.ones(n, 1), logits, torch.zeros(n, 2), torch.ones(n, 1))

    def memorise(self, features, logits_N1SS, presence_N1, *, from_prompt):
        self.memorised.append((len(logits_N1SS), from_prompt))
        return torch.zeros(len(logits_N1SS), 1, 4, 4)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A clip whose pixels hold the frame number."""
    from PIL import Image

    from refseg_bench.types import Clip

    folder = tmp_path_factory.mktemp("numbered")
    paths = []
    for t in range(14):
        path = folder / f"{t:05d}.png"
        Image.fromarray(np.full((16, 32, 3), t, np.uint8)).save(path)
        paths.append(path)
    return Clip("numbered", tuple(paths), tuple(p.stem for p in paths), (16, 32))


def session(clip, core=None, **options):
    core = core or ScriptedCore()
    return TrackingSession(clip, core, Sam2Hf(**{"fill_holes": "off"} | options)), core


def test_forward_then_backward_without_a_reset(numbered):
    opened, core = session(numbered)
    visited = [frame for frame, _ in opened.propagate(4, [Prompt.click(0.1, 0.1)], frames=range(8))]
    assert visited == [4, 5, 6, 7, 3, 2, 1, 0]
    assert [r[0] for r in core.recalls] == [5, 6, 7, 3, 2, 1, 0]
    assert [r[1] for r in core.recalls] == [False] * 3 + [True] * 4
    # Position 6: the prompted frame in slot 0, then farthest to nearest; 4 itself only in slot 0.
    assert core.recalls[1][2] == [(0, 4), (1, 5)]
    assert core.recalls[2][2] == [(0, 4), (2, 5), (1, 6)]
    # Backward from 3: frame 5 was written by the forward pass and is attended to.
    assert core.recalls[3][2] == [(0, 4), (2, 5)]
    assert core.recalls[4][2] == [(0, 4), (1, 3)]
    # Pointers: the prompted frame's distance, then the neighbours already passed.
    assert core.recalls[2][3] == [3, 1, 2]
    assert core.recalls[3][3] == [1, 2, 3]
    # Nothing attends to 7 and 0.
    assert core.memorised == [(1, True)] + [(1, False)] * 5


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_way_only(numbered, direction):
    opened, core = session(numbered)
    visited = [f for f, _ in opened.propagate(4, [Prompt.click(0.1, 0.1)], direction=direction)]
    assert visited == (list(range(4, 14)) if direction == "forward" else [4, 3, 2, 1, 0])
    assert {r[1] for r in core.recalls} == {direction == "backward"}


def test_first_frame_may_be_tracked_backward(numbered):
    opened, _ = session(numbered)
    assert [f for f, _ in opened.propagate(0, [Prompt.click(0.1, 0.1)], direction="backward")] == [0]


def test_forgetting_changes_nothing_that_is_attended_to(numbered, monkeypatch):
    def run():
        opened, core = session(numbered)
        list(opened.propagate(6, [Prompt.click(0.1, 0.1)]))
        return core.recalls

    forgetful = run()
    monkeypatch.setattr(Memory, "forget", lambda self, position, **_: None)
    full = run()
    assert [r[:5] for r in forgetful] == [r[:5] for r in full]
    assert max(len(r[5]) for r in full) == 13 - 1
    assert max(len(r[5]) for r in forgetful) <= 2 * ScriptedCore.reach + 1


def test_memory_doesnt_grow_with_the_clip():
    step = Step(*(torch.zeros(1, 1, 1, 1),) * 4)
    memory = Memory(500, step)
    for position in [*range(501, 1000), *range(499, -1, -1)]:
        memory.followed[position] = step
        memory.forget(position, reverse=position < 500, reach=16)
        assert len(memory.followed) <= 2 * 16 + 1


def test_subset_of_frames_is_the_video(numbered):
    opened, core = session(numbered)
    visited = [f for f, _ in opened.propagate(9, [Prompt.click(0.1, 0.1)], frames=(0, 3, 9, 12))]
    assert visited == [9, 12, 3, 0]
    assert core.encoded == [9, 12, 3, 0]
    assert [r[0] for r in core.recalls] == [3, 1, 0]  # positions among the four, not frame numbers
    assert core.recalls[1][3] == [1, 2]  # distances among the four


def test_features_are_computed_once_whatever_happens(numbered):
    opened, core = session(numbered)
    key_frames = (0, 3, 9, 12)
    for expression in range(20):
        for frame in key_frames:
            opened.segment(frame, [Prompt.click(0.1 * k + 0.05, 0.5) for k in range(1 + expression % 3)])
            list(opened.propagate(frame, [Prompt.click(0.2, 0.5)], frames=key_frames))
    assert sorted(core.encoded) == sorted(key_frames)
    list(opened.propagate(3, [Prompt.click(0.2, 0.5)]))
    assert sorted(core.encoded) == list(range(14))
    assert opened.counters.frame_encodings == 14
    assert opened.counters.recomputed_frames == 0


def test_beyond_the_budget_frames_are_recomputed_and_results_stay(numbered):
    unlimited, _ = session(numbered)
    feature_bytes = 4 * 4 * 4
    limited, _ = session(numbered, feature_host_mb=5 * feature_bytes / 1e6)
    for x in (0.2, 0.7):
        prompts = [Prompt.click(x, 0.5)]
        want = dict(unlimited.propagate(7, prompts))
        got = dict(limited.propagate(7, prompts))
        assert all(np.array_equal(got[f], want[f]) for f in want)
    assert limited.features.megabytes == pytest.approx(5 * feature_bytes / 1e6)
    # Frames 7 … 11 were met first and stay; the other nine are encoded on both passes.
    assert limited.counters.frame_encodings == 14 + 9
    assert limited.counters.recomputed_frames == 9
    assert unlimited.counters.frame_encodings == 14
    limited.close()
    assert limited.features.megabytes == 0


def test_objects_of_one_kind_share_a_pass_and_come_back_in_order(numbered):
    opened, core = session(numbered)
    mask = np.zeros(numbered.size, bool)
    mask[:, 16:] = True
    prompts = [
        Prompt.click(0.1, 0.1),
        Prompt(mask=mask),
        Prompt(points=((0.1, 0.1), (0.6, 0.9)), labels=(0, 1)),
        Prompt.click(0.9, 0.1),
        Prompt(box=(0.0, 0.0, 0.3, 0.9)),
    ]
    got = opened.segment(2, prompts)
    # Prompts of one kind together; the mask needs no decoder of its own.
    assert core.decoded == [(2, 1, True), (1, 2, True), (1, 2, True)]
    assert opened.counters.decoder_calls == 4
    assert [len(c) for c in got] == [3, 1, 3, 3, 3]
    corner = [c.best()[0][0, [0, -1]].tolist() for c in got]
    assert corner[0] == [True, False]
    assert corner[3] == [False, True]
    assert np.array_equal(got[1].best()[0], mask)
    assert got[2].best()[0][15, 20]
    assert got[0].best()[1] == pytest.approx(0.8)
    assert got[0].masks_KHW.shape == (3, 16, 32)

    first = dict(opened.propagate(2, prompts, frames=(2, 3)))[2]
    assert np.array_equal(first[1], mask)
    assert first[0, 0, 0]
    assert not first[0, 0, -1]
    assert first[3, 0, -1]


def test_batches_are_bounded(numbered):
    opened, core = session(numbered, batch_size=4)
    prompts = [Prompt.click(0.05 + 0.1 * k, 0.5) for k in range(10)]
    assert len(opened.segment(0, prompts)) == 10
    assert [n for n, *_ in core.decoded] == [4, 4, 2]
    masks = dict(opened.propagate(0, prompts, frames=(0, 1)))
    assert masks[1].shape == (10, 16, 32)
    assert [r[4] for r in core.recalls] == [4, 4, 2]


@pytest.mark.parametrize(
    ("prompts", "error", "words"),
    [
        ([], DataError, "without a prompt"),
        ([Prompt()], DataError, "empty"),
        ([Prompt(text="a dog")], ConfigError, "takes no text prompt"),
        ([Prompt(points=((0.1, 0.2),))], DataError, "have 0 labels"),
        ([Prompt(points=((0.1, 0.2),), labels=(2,))], DataError, "labels are"),
        ([Prompt.click(1.2, 0.5)], DataError, "outside the frame"),
        ([Prompt(box=(0.5, 0.5, 0.5, 0.9))], DataError, "no box inside"),
        ([Prompt(mask=np.zeros((2, 2), bool))], DataError, "mask prompt is"),
        ([Prompt(mask=np.zeros((16, 32), bool), box=(0, 0, 1, 1))], DataError, "stands alone"),
    ],
)
def test_bad_prompts_are_told_before_the_model_runs(numbered, prompts, error, words):
    opened, core = session(numbered)
    for call in (opened.segment, opened.propagate):
        with pytest.raises(error, match=words):
            call(0, prompts)
    assert core.encoded == []


def test_bad_frames_are_told(numbered):
    opened, core = session(numbered)
    click = [Prompt.click(0.5, 0.5)]
    with pytest.raises(DataError, match="not among the frames"):
        opened.propagate(5, click, frames=(1, 2))
    with pytest.raises(DataError, match="no ascending subset"):
        opened.propagate(1, click, frames=(2, 1))
    with pytest.raises(DataError, match="no ascending subset"):
        opened.propagate(1, click, frames=(1, 99))
    with pytest.raises(DataError, match="not among the frames"):
        opened.segment(14, click)
    with pytest.raises(DataError, match="Direction"):
        opened.propagate(1, click, direction="sideways")
    assert core.encoded == []


def test_what_was_tracked_or_encoded_is_not_again(numbered):
    """Rows of one command ask the same of the same frames; what they get is the same."""
    options = Sam2Hf(fill_holes="off")
    options.seen = {}
    core = ScriptedCore()
    prompts = [Prompt.click(0.2, 0.5), Prompt.click(0.9, 0.5)]
    with TrackingSession(numbered, core, options) as first:
        want = {frame: masks.copy() for frame, masks in first.propagate(7, prompts)}
        for masks in dict(first.propagate(7, prompts)).values():
            masks[:] = True
    steps = len(core.decoded)
    with TrackingSession(numbered, core, options) as second:
        got = dict(second.propagate(7, prompts))
        assert got.keys() == want.keys()
        assert all(np.array_equal(got[frame], want[frame]) for frame in want)
        assert len(core.decoded) == steps
        other = dict(second.propagate(7, prompts[::-1]))
        assert len(core.decoded) > steps, "another order is another batch"
        assert all(np.array_equal(other[frame], want[frame][::-1]) for frame in want)
    assert len(core.encoded) == second.counters.frame_encodings + 14 == 14


def test_a_track_that_was_left_early_is_not_taken_for_whole(numbered):
    opened, _ = session(numbered)
    next(iter(opened.propagate(7, [Prompt.click(0.2, 0.5)])))
    assert len(dict(opened.propagate(7, [Prompt.click(0.2, 0.5)]))) == len(numbered)


def test_frames_that_were_replaced_are_encoded_again(numbered, tmp_path):
    import shutil
    from dataclasses import replace

    paths = tuple(shutil.copy(path, tmp_path / path.name) for path in numbered.frame_paths)
    clip = replace(numbered, frame_paths=tuple(tmp_path / path.name for path in numbered.frame_paths))
    options, core = Sam2Hf(fill_holes="off"), ScriptedCore()
    options.seen = {}
    state = paths[3].stat()
    for _ in range(2):
        with TrackingSession(clip, core, options) as opened:
            opened.segment(3, [Prompt.click(0.2, 0.5)])
        # Its time is set back, as a copying tool does.
        set_back(paths[3], state)
        state = paths[3].stat()
    assert core.encoded == [3, 3]


def test_what_closed_sessions_leave_is_bounded(numbered, monkeypatch):
    from dataclasses import replace

    options, core = Sam2Hf(fill_holes="off"), ScriptedCore()
    options.seen = {}
    monkeypatch.setattr("refseg_bench.segmenters.memory_tracking._SEEN_MB", 2.5 * 64e-6)
    for name in "abc":
        with TrackingSession(replace(numbered, id=name), core, options) as opened:
            opened.segment(3, [Prompt.click(0.2, 0.5)])
    assert [key[0] for key in options.seen] == ["b", "c"]


@pytest.mark.parametrize(("model", "loads"), [("facebook/sam2.1-hiera-tiny", 1), ("./mine", 2)])
def test_the_next_row_takes_the_loaded_model(numbered, monkeypatch, model, loads):
    """But for a user's folder, which may hold another one by then; and not outside of a command's rows."""
    cores = []
    monkeypatch.setattr(Sam2Hf, "_load", lambda self: cores.append(ScriptedCore()) or cores[-1])

    def row(**options):
        with Sam2Hf(model=model, fill_holes="off", **options).open(numbered) as opened:
            opened.segment(3, [Prompt.click(0.2, 0.5)])

    with shared_by_rows():
        row()
        row()
        assert len(cores) == loads
        assert [len(core.encoded) for core in cores] == [1] * loads
        row(precision="bf16")
        row()
        assert len(cores) == loads + 2
    row()
    row()
    assert len(cores) == loads + 4


def test_a_model_of_the_hub_that_moved_is_loaded_again(numbered, monkeypatch):
    told, cores = ["one"], []
    monkeypatch.setattr(Sam2Hf, "_load", lambda self: cores.append(ScriptedCore()) or cores[-1])
    monkeypatch.setattr("refseg_bench.segmenters.memory_tracking.content", lambda needed, cache: told[-1])
    with shared_by_rows():
        for now, loads in (("one", 1), ("one", 1), ("two", 2), ("two", 2)):
            told.append(now)
            with Sam2Hf(model="facebook/sam2.1-hiera-tiny", fill_holes="off").open(numbered) as opened:
                opened.segment(3, [Prompt.click(0.2, 0.5)])
            assert len(cores) == loads


def test_a_track_without_room_is_not_gathered(numbered, monkeypatch):
    """A clip of any length is tracked in flat memory."""
    packed = []
    pack = np.packbits
    monkeypatch.setattr(np, "packbits", lambda bits: packed.append(bits.size) or pack(bits))
    height, width = numbered.size
    monkeypatch.setattr("refseg_bench.segmenters.memory_tracking._TRACKS_MB", 3.5e-6 * height * width / 8)
    opened, _ = session(numbered)
    for _ in range(2):
        assert len(dict(opened.propagate(0, [Prompt.click(0.2, 0.5)]))) == len(numbered) > 6
    assert not packed
    assert not opened._seen.tracks


def test_a_track_is_kept_with_its_last_frame_whether_or_not_more_is_asked_for(numbered):
    opened, core = session(numbered)
    for frames in (3, len(numbered)):
        for _ in zip(range(frames), opened.propagate(5, [Prompt.click(0.2, 0.5)]), strict=False):
            pass
    steps = (3 - 1) + (len(numbered) - 1)
    assert len(core.recalls) == steps
    assert len(dict(opened.propagate(5, [Prompt.click(0.2, 0.5)]))) == len(numbered)
    assert len(core.recalls) == steps
