import cv2
import numpy as np
import pytest
from PIL import Image

from refseg_bench.errors import ConfigError, DataError
from refseg_bench.segmenters.base import Prompt
from refseg_bench.segmenters.grabcut import GrabCut
from refseg_bench.types import Clip

SIZE = (90, 120)


def film(folder, n_frames=6, size=SIZE, hidden=()):
    """A red disc drifting right and a yellow/black striped box standing still, on grey noise."""
    rng = np.random.default_rng(1)
    ground = cv2.GaussianBlur(rng.normal(130, 40, size).astype(np.float32), (0, 0), 2.5)
    ground = np.repeat(np.clip(ground, 0, 255)[..., None], 3, -1)
    rows, columns = np.indices(size)
    folder.mkdir(parents=True)
    truth, paths = np.zeros((2, n_frames, *size), bool), []
    for t in range(n_frames):
        frame = ground.copy()
        truth[1, t, 55:80, 70:100] = True
        stripes = (columns // 5) % 2 == 0
        frame[truth[1, t] & stripes], frame[truth[1, t] & ~stripes] = (240, 220, 40), (20, 20, 20)
        if t not in hidden:
            truth[0, t] = (rows - 30) ** 2 + (columns - 25 - 6 * t) ** 2 <= 14**2
            frame[truth[0, t]] = (205, 35, 40)
        paths.append(folder / f"{t:05d}.png")
        Image.fromarray(frame.astype(np.uint8)).save(paths[-1])
    return Clip(folder.name, tuple(paths), tuple(p.stem for p in paths), size), truth


def iou(one, other):
    union = (one | other).sum()
    return 1.0 if union == 0 else (one & other).sum() / union


DISC = Prompt(points=((25.5 / 120, 30.5 / 90),), labels=(1,))
BOX = Prompt(box=(66 / 120, 51 / 90, 104 / 120, 84 / 90))


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    return film(tmp_path_factory.mktemp("grabcut") / "drift")


def test_points_boxes_and_masks_find_the_object(drifting):
    clip, truth = drifting
    rough = np.zeros(SIZE, bool)
    rough[20:40, 14:36] = True
    with GrabCut().open(clip) as session:
        disc, box, mask = session.segment(0, [DISC, BOX, Prompt(mask=rough)])
    assert len(disc.ious_K) == 3
    assert iou(disc.best()[0], truth[0, 0]) > 0.85
    assert iou(box.best()[0], truth[1, 0]) > 0.8
    np.testing.assert_array_equal(mask.masks_KHW[0], rough)
    assert iou(mask.masks_KHW[1], truth[0, 0]) > iou(rough, truth[0, 0])
    for candidates in (disc, box, mask):
        assert candidates.masks_KHW.shape[1:] == SIZE
        assert ((candidates.ious_K >= 0) & (candidates.ious_K <= 1)).all()


def test_the_believed_iou_ranks_good_masks_over_leaks(drifting):
    clip, _ = drifting
    ground = Prompt(points=((0.02, 0.98),), labels=(1,))
    with GrabCut().open(clip) as session:
        on, off = session.segment(0, [DISC, ground])
        (single,) = session.segment(0, [DISC], multimask=False)
    assert on.best()[1] > off.best()[1] + 0.1
    assert len(single.ious_K) == 1
    np.testing.assert_array_equal(single.best()[0], on.best()[0])


def test_negative_points_take_away(tmp_path):
    frame = np.full((1, 60, 100, 3), 120, np.uint8)
    frame[0, 20:40, 10:45] = (205, 35, 40)
    frame[0, 20:40, 45:80] = (195, 55, 50)
    folder = tmp_path / "two"
    folder.mkdir()
    Image.fromarray(frame[0]).save(folder / "0.png")
    clip = Clip("two", (folder / "0.png",), ("0",), (60, 100))
    with GrabCut(smoothing=(0.5,), tolerances=(60.0,)).open(clip) as session:
        (whole,) = session.segment(0, [Prompt(points=((0.2, 0.5),), labels=(1,))])
        (part,) = session.segment(0, [Prompt(points=((0.2, 0.5), (0.7, 0.5)), labels=(1, 0))])
    assert whole.masks_KHW[0][30, 70]
    assert not part.masks_KHW[0][30, 70]
    assert part.masks_KHW[0][30, 20]


def test_objects_are_tracked_each_on_its_own_and_frames_read_once(drifting):
    clip, truth = drifting
    segmenter = GrabCut()
    with segmenter.open(clip) as session:
        both = dict(session.propagate(2, [Prompt(mask=truth[0, 2]), Prompt(mask=truth[1, 2])]))
        assert session.counters.frame_encodings == len(clip)
        alone = dict(session.propagate(2, [Prompt(mask=truth[1, 2])]))
        list(session.propagate(0, [DISC]))
        assert session.counters.frame_encodings == len(clip)
        assert session.counters.seconds["flow"] > 0
    assert sorted(both) == list(range(len(clip)))
    for t, masks in both.items():
        assert masks.shape == (2, *SIZE)
        assert masks.dtype == bool
        assert iou(masks[0], truth[0, t]) > 0.8, t
        assert iou(masks[1], truth[1, t]) > 0.8, t
        np.testing.assert_array_equal(masks[1], alone[t][0])


def test_directions_and_subsets_of_frames(drifting):
    clip, truth = drifting
    prompt = [Prompt(mask=truth[0, 2])]
    with GrabCut().open(clip) as session:
        assert [t for t, _ in session.propagate(2, prompt, direction="forward")] == [2, 3, 4, 5]
        assert [t for t, _ in session.propagate(2, prompt, direction="backward")] == [2, 1, 0]
        assert [t for t, _ in session.propagate(2, prompt)] == [2, 3, 4, 5, 1, 0]
        assert [t for t, _ in session.propagate(2, prompt, frames=[0, 2, 5])] == [2, 5, 0]
        with pytest.raises(DataError, match="prompted frame 2"):
            list(session.propagate(2, prompt, frames=[0, 1]))


def test_a_hidden_object_is_absent_and_found_again(tmp_path):
    clip, truth = film(tmp_path / "hide", n_frames=8, hidden=(3, 4))
    with GrabCut().open(clip) as session:
        masks = {t: m[0] for t, m in session.propagate(0, [Prompt(mask=truth[0, 0])])}
    assert [bool(masks[t].any()) for t in range(8)] == [True, True, True, False, False, True, True, True]
    assert iou(masks[7], truth[0, 7]) > 0.7


def test_nothing_stays_nothing(drifting):
    clip, _ = drifting
    with GrabCut().open(clip) as session:
        for _, masks in session.propagate(0, [Prompt(mask=np.zeros(SIZE, bool))]):
            assert not masks.any()


def test_results_depend_on_nothing_but_the_prompt(drifting):
    clip, _ = drifting
    with GrabCut().open(clip) as session:
        first = session.segment(0, [DISC, BOX])
    cv2.setRNGSeed(12345)
    with GrabCut().open(clip) as session:
        session.segment(3, [BOX])
        again = [session.segment(0, [prompt])[0] for prompt in (BOX, DISC)][::-1]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.masks_KHW, other.masks_KHW)
        np.testing.assert_array_equal(one.ious_K, other.ious_K)


def test_large_frames_are_worked_small_and_answered_large(tmp_path):
    clip, truth = film(tmp_path / "large", n_frames=2, size=(270, 360))
    with GrabCut(working_size=120).open(clip) as session:
        assert session.shape == (90, 120)
        for t, masks in session.propagate(0, [Prompt(mask=truth[0, 0])]):
            assert masks.shape == (1, 270, 360)
            assert iou(masks[0], truth[0, t]) > 0.7


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (20, 2)])
def test_the_smallest_pictures_are_no_error(tmp_path, size):
    path = tmp_path / "0.png"
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    clip = Clip("tiny", (path, path), ("0", "1"), size)
    with GrabCut().open(clip) as session:
        for prompt in (Prompt(points=((0.5, 0.5),), labels=(1,)), Prompt(box=(0.0, 0.0, 1.0, 1.0))):
            assert session.segment(0, [prompt])[0].masks_KHW.shape[1:] == size
            assert len(list(session.propagate(0, [prompt]))) == 2


def test_bad_prompts_and_options_are_refused(drifting):
    clip, _ = drifting
    with GrabCut().open(clip) as session:
        with pytest.raises(DataError, match="empty"):
            session.segment(0, [Prompt()])
        with pytest.raises(DataError, match="mask prompt is"):
            session.segment(0, [Prompt(mask=np.ones((3, 3), bool))])
        with pytest.raises(ConfigError, match="no text prompt"):
            list(session.propagate(0, [Prompt(text="a cat")]))
    with pytest.raises(ConfigError, match="tolerances"):
        GrabCut(tolerances=(1.0,))
    with pytest.raises(ConfigError, match="working_size"):
        GrabCut(working_size=4)


def test_a_missing_frame_is_told_by_name(drifting, tmp_path):
    clip = Clip("gone", (tmp_path / "nowhere.png",), ("0",), SIZE)
    with GrabCut().open(clip) as session, pytest.raises(DataError, match=r"nowhere\.png"):
        session.segment(0, [DISC])
