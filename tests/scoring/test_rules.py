"""Every rule in which evaluators differ, on cases small enough for hand calculation."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_bench.config.components import aliases, make, names, open_protocol
from refseg_bench.datasets.base import Dataset, LimitedDataset
from refseg_bench.errors import ConfigError, ScoreError
from refseg_bench.scoring.counts import resized_rle
from refseg_bench.scoring.labels import GreyMasks, encoding_of, merged_labels
from refseg_bench.scoring.protocols.image import encoded_sum
from refseg_bench.scoring.protocols.revos import accuracy, robustness
from refseg_bench.scoring.protocols.rvos import percent
from refseg_bench.scoring.results import explained, lines_of
from refseg_bench.scoring.score import Options, score
from refseg_bench.scoring.sources import IncompleteError
from refseg_bench.scoring.stats import Bootstrap
from refseg_bench.types import (
    Clip,
    Expression,
    HeatPoint,
    MaskTrack,
    Prediction,
    Target,
    decode_rle,
    encode_rle,
)
from tests.scoring.worlds import Guesses, LookupSource, World, answer, track

ONE = Options(jobs=1, bootstrap=Bootstrap(0))


def shape_of(rows):
    """(frames, height, width) from the first truth or answer."""
    for _, objects, guess in rows:
        for made in (*objects, guess):
            made = made.track if isinstance(made, Prediction) else made
            if isinstance(made, MaskTrack):
                return (len(made), *made.size)
            if made is not None:
                return np.asarray(made).shape
    raise AssertionError("no masks")


class Hand(Dataset):
    """A dataset and a source spelled out in a test: (expression attrs, objects, prediction) rows."""

    name, split = "hand", "test"

    def __init__(self, rows, *, names=None, attrs=None, void=None, overlap=None, foreground=None):
        length, *size = shape_of(rows)
        names = names or tuple(f"{t:05d}" for t in range(length))
        self.clip = Clip("v", tuple(names), tuple(names), tuple(size), attrs or {})
        self.rows = []
        for index, (facts, objects, guess) in enumerate(rows):
            ids = tuple(str(i + 1) for i in range(len(objects)))
            target = Target(
                tuple(size),
                length,
                tuple(o if isinstance(o, MaskTrack) else track(np.asarray(o, bool)) for o in objects),
                ids,
                None if void is None else track(np.asarray(void, bool)),
                None if overlap is None else track(np.asarray(overlap, bool)),
            )
            self.rows.append((Expression(str(index), "x", facts), target, guess))
        if foreground is not None:
            self.foreground = lambda clip: track(np.asarray(foreground, bool))

    def clips(self):
        return [self.clip]

    def expressions(self, clip):
        return [e for e, _, _ in self.rows]

    def target(self, clip, expression):
        return next(t for e, t, _ in self.rows if e is expression)

    def __call__(self, clip_id):
        out = {}
        for e, _, guess in self.rows:
            if isinstance(guess, Prediction):
                out[e.id] = dataclasses.replace(guess, sample=f"v/{e.id}", clip="v", expression=e.id)
            elif guess is not None:
                made = guess if isinstance(guess, MaskTrack) else track(np.asarray(guess, bool))
                out[e.id] = answer(self.clip, e, made)
        return out

    def scored(self, protocol, **options):
        one = dataclasses.replace(ONE, **options)
        return score(self, [LookupSource(self)], [open_protocol(protocol)], one)[0]

    def metrics(self, protocol, **options):
        return {k: v.value for k, v in self.scored(protocol, **options).result.metrics.items()}


def box(top, left, bottom, right, size=(10, 12)):
    out = np.zeros(size, bool)
    out[top:bottom, left:right] = True
    return out


def tall(*masks):
    return np.stack(masks)


A, B, NONE = box(1, 1, 5, 5), box(1, 3, 5, 7), box(0, 0, 0, 0)


# ── expression protocols ─────────────────────────────────────────────────────


def test_union_of_objects_and_empty_frames():
    hand = Hand([({}, [tall(A, NONE), tall(B, NONE)], tall(A | B, NONE))])
    assert hand.metrics("rvos-expr") == {"J&F": 1, "J": 1, "F": 1}


def test_an_unannotated_frame_counts_as_empty_except_where_the_truth_decides():
    coded = MaskTrack(A.shape, (encode_rle(A), None))
    hand = Hand([({}, [coded], tall(A, A))])
    assert hand.metrics("rvos-expr")["J"] == 0.5
    assert hand.metrics("decaf")["J"] == 50
    assert hand.metrics("reasonvos")["J"] == 1


def test_j_by_hand():
    hand = Hand([({}, [tall(A)], tall(B))])
    assert hand.metrics("rvos-expr")["J"] == 8 / 24


MISSING = {
    # protocol: J over (perfect, expression missing) and over a clip without any prediction
    "rvos-expr": (1.0, 0.0),
    "mevis": (1.0, 0.0),
    "mevis-vlisa": (1.0, None),
    "mevis-visa": (100.0, 0.0),
    "refdavis-visa": (100.0, 0.0),
    "decaf": (50.0, 0.0),
    "reasonvos": (1.0, None),
    "expression": ("error", "error"),
    "mevis-v2": ("error", "error"),
    "sa2va-mevis": ("error", "error"),
    "sa2va-refdavis": ("error", "error"),
    "sa2va-revos": ("error", "error"),
    "refcoco-oiou": ("error", "error"),
    "refcoco-lisa": ("error", "error"),
}


@pytest.mark.parametrize("protocol", MISSING)
def test_what_is_missing(protocol):
    some, none = MISSING[protocol]
    for expected, hand in (
        (some, Hand([({}, [tall(A)], tall(A)), ({}, [tall(A)], None)])),
        (none, Hand([({}, [tall(A)], None)])),
    ):
        if expected == "error":
            with pytest.raises(IncompleteError):
                hand.scored(protocol)
            continue
        got = hand.scored(protocol)
        if expected is None:
            assert got.result.n == 0
        else:
            assert got.result.metrics["J"].value == expected
        assert got.result.missing == 1


@pytest.mark.parametrize(("protocol", "j"), [("rvos-expr", 1), ("decaf", 50), ("decaf-coarse", 100)])
def test_a_missing_frame(protocol, j):
    gap = MaskTrack(A.shape, (encode_rle(A), None))
    hand = Hand([({}, [tall(A, A)], tall(A, A)), ({}, [tall(A, A)], gap)])
    assert hand.metrics(protocol)["J"] == j


def v2_rows():
    """(target, answer), two frames each; J = F everywhere."""

    def flagged(masks, flag):
        return Prediction("", "", "", track(masks), no_target=flag)

    return [
        ({}, [tall(A, A)], tall(A, A)),  # 1
        ({}, [tall(A, NONE)], tall(A, A)),  # present once: 0.5
        ({}, [tall(A, A)], tall(NONE, NONE)),  # empty by accident: 0, an error of T-acc
        (
            {},
            [tall(A, A)],
            flagged(tall(A, A), True),
        ),  # flagged, so its masks don't count: 0, an error of T-acc
        ({}, [tall(A, A)], flagged(tall(A, A), False)),  # 1
        ({}, [], tall(NONE, NONE)),  # 1, known as absent
        ({}, [], flagged(tall(A, A), True)),  # 1, known as absent
        ({}, [], tall(NONE, A)),  # 0.5, an error of N-acc
        ({}, [tall(NONE, NONE)], tall(A, A)),  # an object that never shows: 0, an error of N-acc
    ]


def test_mevis_v2_by_hand():
    hand = Hand(v2_rows())
    over = {"all": 5 / 9, "targets": 2.5 / 5}
    for spec, chosen in (("mevis-v2", "all"), ("mevis-v2:jf_over=targets", "targets")):
        got = hand.metrics(spec)
        assert got["N-acc"] == 2 / 4
        assert got["T-acc"] == pytest.approx(3 / 5, abs=1e-12)
        for name in ("J", "F", "J&F"):
            assert got[name] == pytest.approx(over[chosen], abs=1e-12)
        for name, value in over.items():
            assert got[f"J&F/{name}"] == pytest.approx(value, abs=1e-12)
        assert got["Final"] == pytest.approx((over[chosen] + 2 / 4 + 3 / 5) / 3, abs=1e-12)
    # The tools that see masks take the flagged ones as they are.
    assert hand.metrics("rvos-expr")["J"] == pytest.approx(5 / 9, abs=1e-12)  # + 1 for row 3, - 1 for row 6


def test_mevis_v2_where_a_kind_of_target_lacks():
    rows = v2_rows()
    present, absent = Hand(rows[:5]).scored("mevis-v2"), Hand([*rows[5:]]).scored("mevis-v2")
    assert present.result.metrics["T-acc"].value == 3 / 5
    assert present.protocol.no_value(present.table.values, present.table.attrs) == dict.fromkeys(
        ("N-acc", "Final"), "there is no unit of absent targets"
    )
    assert absent.result.metrics["N-acc"].value == 2 / 4
    assert absent.protocol.no_value(absent.table.values, absent.table.attrs) == dict.fromkeys(
        ("T-acc", "Final", "J&F/targets"), "there is no unit of targets"
    )
    for hand, value in ((Hand([({}, [], tall(NONE))]), 1), (Hand([({}, [], tall(A))]), 0)):
        assert hand.metrics("mevis-v2")["N-acc"] == value


def test_answers_are_counted_and_told_apart():
    got = Hand(v2_rows()).scored("rvos-expr")
    assert got.notes["answers"] == {"absent": 2, "empty": 2, "masks": 5}
    assert got.table.attrs["answer"] == [
        "masks", "masks", "empty", "absent", "masks", "empty", "absent", "masks", "masks"
    ]  # fmt: skip
    assert "  answers: 5 masks, 2 empty, 2 absent" in lines_of(got, set())
    (masks_only,) = (Hand(v2_rows()[:1]).scored("rvos-expr"),)
    assert masks_only.notes["answers"] == {"masks": 1}
    assert not any("answers" in line for line in lines_of(masks_only, set()))


def test_coarse_masks_count_only_predicted_frames():
    gap = MaskTrack(A.shape, (None, encode_rle(B)))
    got = Hand([({}, [tall(A, A)], gap)]).scored("decaf-coarse")
    assert got.table.attrs["frames_counted"] == [1]
    assert got.result.metrics["J"].value == 33.33


def test_another_size_is_zero_or_dropped():
    wrong = track(np.ones((1, 4, 4), bool))
    rows = [({}, [tall(A)], tall(A)), ({}, [tall(A)], wrong)]
    assert Hand(rows).metrics("decaf")["J"] == 50
    got = Hand(rows).scored("rvos-expr")
    assert (got.result.n, got.result.failed) == (1, 1)


def test_decaf_rounds_before_averaging_and_visa_only_prints_rounded():
    third, seventh = tall(B), tall(box(1, 1, 2, 2))
    hand = Hand([({}, [tall(A)], third), ({}, [tall(A)], seventh)])
    exact = [8 / 24, 1 / 16]
    assert hand.metrics("decaf")["J"] == (33.33 + 6.25) / 2
    visa, plain = hand.scored("mevis-visa"), hand.metrics("rvos-expr")
    assert visa.result.metrics["J"].value == pytest.approx(50 * sum(exact), abs=1e-12)
    for name in ("F", "J&F"):
        assert 0 < plain[name] < 1
        assert visa.result.metrics[name].value == pytest.approx(100 * plain[name], abs=1e-12)
    assert visa.result.details["printed"]["J"] == round(50 * sum(exact), 2)


def test_decaf_jf_columns():
    """The unit's J&F is rounded from unrounded J and F; the table's comes from the columns."""
    world = World()
    got = score(
        world, [LookupSource(Guesses(world))], [open_protocol("decaf"), open_protocol("rvos-expr")], ONE
    )
    rounded, plain = got
    jf = plain.table.values["J&F"]
    assert rounded.table.values["J&F"].tolist() == [percent(x) for x in jf]
    metrics = rounded.result.metrics
    assert metrics["J&F"].value == (metrics["J"].value + metrics["F"].value) / 2


def test_rounding_is_numpys():
    assert percent(0.02675) == float(np.round(np.float64(2.675), 2))


# ── ReVOS ────────────────────────────────────────────────────────────────────


def test_accuracy_and_robustness_depend_on_the_encoding():
    truth = A.astype(np.uint8)
    guess = B.astype(np.uint8)
    wrong = int((guess & ~A).sum())
    assert accuracy(truth, guess) == (A == B).mean()
    assert accuracy(truth, guess * np.uint8(255)) == (~A & ~B).mean()
    assert robustness(truth, guess, 32) == 1 - wrong / (32 + 1e-6)
    assert robustness(truth, guess * np.uint8(255), 32) == 0
    # g = 2 wraps to 255: one pixel weighs 255 with 0/1 files and 1 with 0/255 files.
    double = np.full((1, 1), 2, np.uint8)
    assert robustness(double, np.ones((1, 1), np.uint8), 1000) == pytest.approx(1 - 255 / 1000, abs=1e-8)
    assert robustness(double, np.full((1, 1), 255, np.uint8), 1000) == pytest.approx(1 - 1 / 1000, abs=1e-8)


def revos(foreground=None):
    return Hand(
        [
            ({"type_id": 0}, [tall(A)], tall(A)),
            ({"type_id": 0}, [tall(A)], tall(B)),
            ({"type_id": 1}, [tall(A), tall(B)], tall(A | B)),
            ({"type_id": 2}, [], tall(B)),
        ],
        foreground=foreground,
    )


def test_revos_columns_by_hand():
    whole = tall(box(0, 0, 10, 12))
    got = revos(whole).metrics("revos-binary")
    j0 = (100 + 33.33) / 2
    assert got["J/referring"] == j0
    assert got["J/reasoning"] == 100
    assert got["J"] == (j0 + 100) / 2
    assert got["J&F/referring"] == (got["J/referring"] + got["F/referring"]) / 2
    assert got["J&F"] == (got["J&F/referring"] + got["J&F/reasoning"]) / 2
    assert got["A/referring"] == (100 + percent((A == B).mean())) / 2
    assert got["R/referring"] == (100 + percent(1 - 8 / (120 + 1e-6))) / 2
    assert got["R/absent"] == percent(1 - 16 / (120 + 1e-6))


def test_coarse_masks_on_revos_average_by_type():
    """As DecAF's tool does; the mean over all expressions is another number."""
    gap = MaskTrack(A.shape, (None, encode_rle(B)))
    rows = [({"type_id": k}, [tall(A, A)], made) for k, made in ((0, tall(A, A)), (0, tall(A, A)), (1, gap))]
    hand = Hand([*rows, ({"type_id": 2}, [], tall(B, B))])
    got = hand.metrics("revos-coarse")
    assert (got["J/referring"], got["J/reasoning"], got["J"]) == (100, 33.33, (100 + 33.33) / 2)
    assert hand.metrics("decaf-coarse")["J"] == (100 + 100 + 33.33 + 0) / 4


@pytest.mark.parametrize(("kind", "fits"), [(0, True), (1, True), (2, False)])
def test_revos_takes_what_is_referring_or_reasoning(kind, fits):
    told = open_protocol("revos-binary").unfit(Hand([({"type_id": kind}, [tall(A)], tall(A))]))
    assert (told is None) == fits


def test_revos_raw_grey():
    """0/255 files, and a target of two overlapping objects whose sum wraps."""
    whole = tall(box(0, 0, 10, 12))
    got = revos(whole).scored("revos-visa")
    assert got.protocol.name == "revos-visa@1"
    assert got.notes == {"encoding": "0/255", "foreground": "the dataset's", "answers": {"masks": 4}}
    a = got.table.values["A"].tolist()
    assert a[:2] == [percent((~A).mean()), percent((~A & ~B).mean())]
    # Overlap of A and B: g = 2, p = 255 gives 1 per pixel in 8 bits.
    assert got.table.values["R"][2] == percent(1 - 8 / (120 + 1e-6))
    small = revos(whole).scored("revos-visa:encoding=0/1")
    assert small.table.values["A"].tolist()[:2] == [100, percent((A == B).mean())]
    assert small.table.values["R"][2] == 0


def test_revos_leaves_out_what_has_no_type_and_says_so():
    """It would be among the units of a mean that it has no part in."""
    hand = Hand([
        ({"type_id": 0}, [tall(A)], tall(A)), ({"type_id": 1}, [tall(A)], tall(A)), ({}, [tall(A)], tall(B)),
    ])  # fmt: skip
    got = hand.scored("revos-binary")
    assert (got.result.n, got.result.expected, got.result.metrics["J"].value) == (2, 2, 100)
    assert got.coverage.left_out == {"v/2": "it has no type_id, by which the columns average"}


def test_revos_without_a_foreground_file_says_so():
    got = revos().scored("revos-binary")
    assert got.notes["foreground"] == "union of the targets"
    assert got.table.values["R"][1] == percent(1 - 8 / (24 + 1e-6))


def test_revos_error_is_zero_in_all_four():
    hand = Hand([({"type_id": 0}, [tall(A)], None), ({"type_id": 1}, [tall(A)], tall(A))])
    got = hand.metrics("revos-visa")
    assert [got[f"{m}/referring"] for m in "JFAR"] == [0, 0, 0, 0]
    assert got["J"] == 50


def test_grey_is_what_opencv_reads(tmp_path):
    palette = Image.fromarray(A.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    palette.save(tmp_path / "p.png")
    Image.fromarray(A).save(tmp_path / "b.png")
    Image.fromarray(A.astype(np.uint8) * 255).save(tmp_path / "l.png")
    for name, value in (("p", 38), ("b", 255), ("l", 255)):
        grey = GreyMasks(MaskTrack.empty(A.shape, 1), (tmp_path / f"{name}.png",))
        assert (grey.frame(0) == cv2.imread(str(tmp_path / f"{name}.png"), cv2.IMREAD_GRAYSCALE)).all()
        assert grey.frame(0).max() == value
    assert grey.encoding() == "0/255"
    assert encoding_of({0, 38}) == "grey 38"
    # A threshold is itself background; what is above keeps its level.
    Image.fromarray(np.array([[0, 127], [128, 255]], np.uint8)).save(tmp_path / "t.png")
    above = GreyMasks(MaskTrack.empty((2, 2), 1), (tmp_path / "t.png",), above=127)
    assert above.frame(0).tolist() == [[0, 0], [128, 255]]


# ── images ───────────────────────────────────────────────────────────────────


def images(protocol, rows, **more):
    return Hand(rows, **more).metrics(protocol)


def test_image_averages_by_hand():
    rows = [({}, [tall(A)], tall(A)), ({}, [tall(A)], tall(B)), ({}, [], tall(NONE)), ({}, [], tall(B))]
    inter, union = 16 + 8, 16 + 24 + 0 + 16
    iou = [1, 8 / 24, 0, 0]
    got = images("refcoco-oiou", rows)
    assert got["oIoU"] == inter / union
    assert got["mIoU"] == pytest.approx(np.mean(iou), abs=1e-15)
    assert got["Pr@0.5"] == got["Pr@0.9"] == 0.25
    lisa = images("refcoco-lisa", rows)
    summands = [16 / (16 + 1e-5), 8 / (24 + 1e-5), 1, 0]
    assert lisa["gIoU"] == pytest.approx(sum(summands) / (4 + 1e-5), abs=1e-15)
    assert lisa["cIoU"] == inter / (union + 1e-10)
    assert images("refcoco-sa2va", rows)["gIoU"] == pytest.approx(sum(summands) / 4, abs=1e-15)
    cris = images("refcoco-cris", rows)
    assert cris["mIoU"] == pytest.approx(np.mean([16 / (16 + 1e-6), 8 / (24 + 1e-6), 0, 0]), abs=1e-15)


def test_an_image_is_explained_by_its_counts():
    got = Hand([({}, [tall(A)], tall(B))]).scored("refcoco-lavt", detail=True)
    assert "00000  I 8  U 24" in explained(got, "v/0")


def test_precision_at_exactly_the_threshold():
    half = box(1, 1, 5, 3)
    rows = [({}, [tall(A)], tall(half))]
    assert images("refcoco-lavt", rows)["Pr@0.5"] == 1
    assert images("refcoco-cris", rows)["Pr@0.5"] == 0


def test_doubly_covered_pixels():
    rows = [({}, [tall(A | B)], tall(A | B))]
    both = tall(A & B)
    assert images("refcoco-oiou", rows, overlap=both)["oIoU"] == 1
    for protocol in ("refcoco-lavt", "refcoco-lisa"):
        metrics = images(protocol, rows, overlap=both)
        assert metrics.get("oIoU", metrics.get("cIoU")) == pytest.approx(16 / 24, abs=1e-9)


def test_cris_compares_with_thresholds_in_float32():
    """0.9 is 0.89999998 there and 0.6 is 0.60000002."""
    whole = np.ones((1, 28, 20), bool)
    at_90, at_60 = np.arange(560) < 504, np.arange(560) < 336
    for guess, passed in ((at_90, 0.9), (at_60, 0.5)):
        got = images("refcoco-cris", [({}, [whole], guess.reshape(1, 28, 20))])
        assert [x for x in (0.5, 0.6, 0.7, 0.8, 0.9) if got[f"Pr@{x}"]][-1] == passed
    assert images("refcoco-oiou", [({}, [whole], at_60.reshape(1, 28, 20))])["Pr@0.6"] == 1


def test_sa2va_sends_the_sum_of_parts_through_encode():
    """A new run at every change of value: from a step between 1 and 2 on, a column is inverted."""
    size = (6, 4)
    first, second, third = (box(*at, size) for at in ((0, 1, 4, 3), (2, 1, 4, 3), (3, 1, 4, 2)))
    union, double, triple = first | second, first & second, first & second & third
    for deeper in ((), (triple,)):
        covered = union.astype(np.uint8) + double + sum(deeper, np.zeros(size, np.uint8))
        seen = decode_rle(coco_mask.encode(np.asfortranarray(covered))["counts"], size)
        made = encoded_sum(encode_rle(union), [track(tall(m)) for m in (double, *deeper)], size)
        assert (decode_rle(made, size) == seen).all()
        assert not (seen == union).all()
        assert not (seen == (union & ~double)).all()
    rows = [({}, [tall(union)], tall(union))]
    corrupt = decode_rle(encoded_sum(encode_rle(union), [track(tall(double))], size), size)
    got = images("refcoco-sa2va", rows, overlap=tall(double))
    assert got["cIoU"] == pytest.approx((corrupt & union).sum() / (corrupt | union).sum(), abs=1e-9)
    assert images("refcoco-sa2va", rows)["cIoU"] == pytest.approx(1, abs=1e-9)


def test_void_is_left_out_of_both():
    rows = [({}, [tall(A)], tall(B))]
    got = images("reasonseg-lisa", rows, void=tall(box(0, 5, 10, 12)))
    assert got["cIoU"] == pytest.approx(8 / 16, abs=1e-9)


def test_reasonseg_scores_the_first_text_only():
    rows = [({"text_index": 0}, [tall(A)], tall(A)), ({"text_index": 1}, [tall(A)], None)]
    got = Hand(rows).scored("reasonseg-lisa")
    assert (got.result.n, got.result.expected, got.result.missing) == (1, 1, 0)


def test_sa2va_skips_a_miss_in_ciou_but_not_in_giou():
    got = images("refcoco-sa2va", [({}, [tall(A)], tall(A)), ({}, [tall(B)], None)])
    assert got["gIoU"] == pytest.approx(0.5, abs=1e-6)
    assert got["cIoU"] == pytest.approx(1, abs=1e-9)


def test_lavt_at_480_resizes_as_pillow_does():
    rng = np.random.default_rng(0)
    masks = rng.random((2, 37, 61)) < 0.5
    rows = [({}, [masks[:1]], masks[1:])]
    a, b = (
        np.array(Image.fromarray(m.astype(np.uint8)).resize((480, 480), Image.Resampling.NEAREST)) > 0
        for m in masks
    )
    assert images("refcoco-lavt:resolution=480", rows)["oIoU"] == (a & b).sum() / (a | b).sum()
    assert resized_rle(encode_rle(masks[0]), masks[0].shape, (480, 480)) == encode_rle(a)


def gres_rows():
    def guess(mask, flag):
        return Prediction("", "", "", track(tall(mask)), no_target=flag)

    return [
        ({"no_target": True}, [], guess(B, True)),  # TP
        ({"no_target": True}, [], guess(B, False)),  # FN
        ({"no_target": False}, [tall(A)], guess(A, False)),  # TN
        ({"no_target": False}, [tall(A)], guess(B, None)),  # TN
        ({"no_target": False}, [tall(A)], guess(A, True)),  # FP
        ({"no_target": False}, [tall(A)], guess(box(1, 1, 5, 4), False)),  # TN, IoU 0.75
    ]


def test_gres_by_hand():
    got = images("grefcoco-gres", gres_rows())
    iou = [1, 0, 1, 8 / 24, 0, 0.75]
    assert got["gIoU"] == pytest.approx(100 * sum(iou) / 6, abs=1e-12)
    assert got["cIoU"] == pytest.approx(100 * (16 + 8 + 12) / (16 + 16 + 24 + 16 + 16), abs=1e-12)
    assert got["N-acc"] == 0.5
    assert got["T-acc"] == 0.75
    assert [got[f"Pr@{x}"] for x in (0.7, 0.8, 0.9)] == [50, 25, 25]


def test_gres_keeps_raw_counts_per_sample():
    table = Hand(gres_rows()).scored("grefcoco-gres").table
    assert table.values["I"].tolist() == [0, 0, 16, 8, 16, 12]
    assert table.values["U"].tolist() == [16, 16, 16, 24, 16, 16]


def test_gres_without_no_target_samples_has_no_accuracies():
    got = images("grefcoco-gres", gres_rows()[2:4])
    assert (got["N-acc"], got["T-acc"]) == (0, 0)


def test_gres_empty_mask_as_flag():
    rows = [({"no_target": True}, [], tall(NONE)), ({"no_target": False}, [tall(A)], tall(A))]
    assert images("grefcoco-gres", rows)["N-acc"] == 0
    assert images("grefcoco-gres:flag=empty", rows)["N-acc"] == 1


def test_pointing():
    def guess(y, x, frame=0):
        return Prediction("", "", "", track(tall(NONE, NONE)), point=HeatPoint(frame, y, x))

    truth = [tall(A, NONE)]
    rows = [({}, truth, guess(0.15, 0.15)), ({}, truth, guess(0.95, 0.95)), ({}, truth, guess(1.0, 1.0))]
    assert images("pointing", rows)["PA"] == pytest.approx(1 / 3)
    # Frames without a mask don't matter.
    hit = guess(0.15, 0.15)
    sparse = dataclasses.replace(hit, track=MaskTrack(hit.track.size, (None,) * len(hit.track)))
    assert images("pointing", [({}, truth, sparse)])["PA"] == 1
    # Held against its own frame, where the target is absent.
    assert images("pointing", [({}, truth, guess(0.15, 0.15, frame=1))])["PA"] == 0
    flagged = dataclasses.replace(guess(0.15, 0.15), point=None, no_target=True)
    assert images("pointing", [({}, truth, guess(0.15, 0.15)), ({}, truth, flagged)])["PA"] == 0.5
    with pytest.raises(ScoreError, match="no heat-map peak"):
        images("pointing", [({}, truth, tall(A, A))])
    # Pixels would be held against the last row, and what is below 0 against the other end.
    for y, x in ((12, 0.5), (0.5, -0.1), (0.5, math.nan)):
        with pytest.raises(ValueError, match="no point in"):
            guess(y, x)


# ── four annotators ──────────────────────────────────────────────────────────


def annotators(guesses):
    """Two objects, four annotators; ``guesses[a][object]`` is a stack of masks."""
    objects = [tall(A, A), tall(box(6, 6, 9, 11), box(6, 6, 9, 11))]
    rows = []
    for k, masks in enumerate(objects):
        for a in range(4):
            facts = {"annotator": a, "obj_ids": [str(k + 1)]}
            rows.append((facts, [masks], guesses[a][k]))
    hand = Hand(rows)
    for index, (e, target, guess) in enumerate(hand.rows):
        named = dataclasses.replace(target, object_ids=(e.attrs["obj_ids"][0],))
        hand.rows[index] = (e, named, guess)
    return hand, objects


def test_refdavis_anno_is_the_mean_of_four():
    _, (a, b) = annotators([[None, None]] * 4)
    half = tall(A, NONE)
    hand, _ = annotators([[a, b], [b, a], [half, b], [np.zeros_like(a), b]])
    got = hand.scored("refdavis-anno")
    # Swapped masks are matched; a missing half costs a quarter; an empty answer half of the set.
    assert got.result.metrics["J"].value == pytest.approx(np.mean([1, 1, 0.75, 0.5]), abs=1e-15)
    assert got.table.units[:2] == ["anno_0/v/1", "anno_0/v/2"]
    assert got.table.clusters == ["v"] * 8


def test_an_object_has_no_facts_of_the_expression_of_its_number():
    hand = Hand(
        [({"obj_ids": ["1"]}, [tall(A)], tall(A)), ({"obj_ids": ["2"]}, [tall(B & ~A)], tall(B & ~A))]
    )
    hand.rows[1] = (hand.rows[1][0], dataclasses.replace(hand.rows[1][1], object_ids=("2",)), hand.rows[1][2])
    got = hand.scored("davis-unsup").table
    assert got.units == ["v/1", "v/2"]
    assert not got.attrs.keys() & {"objects", "size", "answer"}


def test_objects_are_not_scored_on_some_of_the_expressions():
    """Those of the others would count as not found; whole clips may be left out."""
    hand = Hand([({"obj_ids": ["1"]}, [tall(A)], tall(A)), ({"obj_ids": ["1"]}, [tall(A)], tall(A))])
    for options in ({"expressions_limit": 1}, {"samples": ["v/1"]}):
        why = open_protocol("davis-unsup").unfit(LimitedDataset(hand, **options))
        assert why is not None
        assert "some of their expressions" in why
    assert open_protocol("davis-unsup").unfit(LimitedDataset(hand, 1, 2)) is None


def test_the_first_of_two_masks_wins_a_pixel():
    overlap = tall(A | B, A | B)
    hand, _ = annotators([[overlap, tall(B, B)]] * 4)
    found = {e.id: p for e, p in ((e, hand("v")[e.id]) for e, _, _ in hand.rows)}
    maps = merged_labels(hand.clip, hand.expressions(hand.clip), found)
    assert sorted(maps) == ["anno_0", "anno_1", "anno_2", "anno_3"]
    assert (maps["anno_2"].frame(0) == np.where(A | B, 1, 0)).all()


def test_one_set_of_maps_is_no_four_annotators():
    hand = Hand([({"obj_ids": ["1"]}, [tall(A)], tall(A))])
    with pytest.raises(ScoreError, match="anno_0"):
        hand.scored("refdavis-anno")
    assert hand.metrics("davis-unsup")["J"] == 1


def test_objects_with_several_expressions_cannot_be_merged():
    hand = Hand([({"obj_ids": ["1"]}, [tall(A)], tall(A)), ({"obj_ids": ["1"]}, [tall(A)], tall(A))])
    with pytest.raises(ScoreError, match="several expressions"):
        hand.scored("davis-unsup")


# ── the catalogue ────────────────────────────────────────────────────────────


def test_every_protocol_is_documented_and_named():
    found = [make("protocol", name) for name in names("protocol")]
    called = [p.id for p in found] + [a for p in found for a in aliases("protocol", p.id)]
    assert len(set(called)) == len(called)
    for protocol in found:
        assert protocol.__doc__
        assert protocol.imitates
        assert open_protocol(protocol.name).id == protocol.id


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("refcoco-lavt", "refcoco-lavt@1"),
        ("refcoco-lavt:resolution=480", "refcoco-lavt@1:resolution=480"),
        ("refcoco-lavt:resolution=null", "refcoco-lavt@1"),
        ("grefcoco-gres@1:flag=empty:resolution=32", "grefcoco-gres@1:resolution=32:flag=empty"),
        ("vosb:all_frames=true", "vosb@1:all_frames=true"),
        ("mevis-v2:jf_over=targets", "mevis-v2@1:jf_over=targets"),
    ],
)
def test_the_full_name_holds_the_options(spec, name):
    assert open_protocol(spec).full_name == name
    assert open_protocol(name) == open_protocol(spec)


def test_a_result_is_named_with_its_options():
    got = Hand([({}, [tall(A)], tall(A))]).scored("refcoco-lavt:resolution=20")
    assert got.result.protocol == "refcoco-lavt@1:resolution=20"


def test_every_yaml_is_named_as_its_protocol():
    for name in names("protocol"):
        assert make("protocol", name).id == name


def test_the_docs_are_current():
    from pathlib import Path

    from tools.make_tables import page

    path = Path(__file__).resolve().parents[2] / "docs" / "protocols.md"
    text = path.read_text(encoding="utf-8")
    assert page(text) == text, "make tables"


@pytest.mark.parametrize(
    ("alias", "id_"),
    [("mevis", "rvos-expr"), ("revos.legacy255", "revos-visa"),
     ("ytvos", "rvos-expr"),
     ("davis17.annotators", "refdavis-anno"), ("ref_image.ciou", "refcoco-oiou"),
     ("ref_image.giou_lisa", "refcoco-lisa"), ("rvos-expr@1", "rvos-expr")],
)  # fmt: skip
def test_aliases(alias, id_):
    assert open_protocol(alias).id == id_


@pytest.mark.parametrize(
    "spec", ["nonsense", "rvos-expr@7", "vosb:all_frames", "vosb:colour=1", "../vosb", "", "revos"]
)
def test_unknown_protocols_are_told(spec):
    with pytest.raises(ConfigError):
        open_protocol(spec)
