"""Measure the tiny models on held-out scenes: ``python tools/train/evaluate.py decaf|refam|sam2 [--n 500]``.

The scenes' seeds (``common.TEST_SEEDS`` onwards) were used neither for training nor for any choice. The
methods run through their own classes with their own defaults; their variants differ from them in the
named options only. What is printed, and written as JSON with ``--json``:

* point accuracy: share of expressions whose peak lies on the target in the peak's frame,
* J of the coarse masks of the sampled frames (DecAF),
* J of one click, and of tracking from one frame to both ends of the clip, apart for objects that hide or
  leave; predicted against true IoU; how much of the ground a click calls an object (SAM 2),
* the chance of a random pick among the objects of the scene,
* differences between variants, paired by expression, with 95 % intervals from resampling scenes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from refseg_bench.datasets.meta_expressions import MetaExpressions
from refseg_bench.scoring.stats import Bootstrap, difference, intervals
from refseg_bench.types import Clip, Expression, HeatPoint, MaskTrack, Target
from tools.shapes_world import World, describe, render, sample_scene
from tools.train.common import TEST_SEEDS, WATCH_SEEDS, setup
from tools.writers import VideoRecord, write_meta_expressions_set

#: Expressions of each kind in a scene, as far as it has them. Absent targets have no point to hit.
PER_SCENE = {
    "decaf": {"appearance": 2, "motion": 2, "multi": 1},
    "refam": {"appearance": 4, "multi": 1},
}
Row = dict[str, Any]


def world_of(seed: int, frames: int | None) -> World:
    """A scene's world: clips of 16 to 18 frames, or so many from the middle of them."""
    whole = 16 + seed % 3
    return World(n_frames=frames or whole, path_frames=whole, difficulty=float(seed % 7 + 2) / 10)


def held_out(root: Path, what: str, n: int, first_seed: int, frames: int | None) -> MetaExpressions:
    """Write scenes with ``n`` expressions in all and open them."""

    def records() -> Iterator[VideoRecord]:
        seed, left = first_seed, n
        while left > 0:
            world = world_of(seed, frames)
            scene = sample_scene(seed, world)
            seed += 1
            footage = render(scene)
            quota = dict(PER_SCENE[what])
            chosen = []
            for u in describe(scene, footage):
                shown = what == "decaf" or all(
                    footage.seen_TN[0, i] > 0.5 * footage.full_N[i] for i in u.targets
                )
                if quota.get(u.kind, 0) > 0 and shown and not (what == "refam" and u.dynamic):
                    quota[u.kind] -= 1
                    chosen.append((u.text, u.targets, {"type": u.kind, "objects": len(scene.things)}))
            chosen = chosen[:left]
            if chosen:
                left -= len(chosen)
                tracks = [
                    MaskTrack.from_masks(footage.masks_THW(i), world.size) for i in range(len(scene.things))
                ]
                yield VideoRecord(f"{scene.seed:012x}", footage.frames_THWC, tracks, chosen)

    write_meta_expressions_set(root, "valid_u", records(), jpeg_quality=92)
    return MetaExpressions(
        name="held-out",
        split="valid_u",
        root=root,
        cache=root / "cache",
        folders=[],
        meta=["{split}/meta_expressions.json"],
        frames=["{split}/JPEGImages"],
        masks=["{split}/mask_dict.json"],
        hidden=[],
        videos=[],
        protocols=["rvos-expr"],
    )


def on_target(point: HeatPoint, target: Target) -> bool:
    """Whether the peak lies on the target in the peak's frame."""
    mask_HW = target.union().mask(point.frame)
    if mask_HW is None:
        return False
    h, w = target.size
    return bool(mask_HW[min(h - 1, int(point.y * h)), min(w - 1, int(point.x * w))])


def base_row(clip: Clip, expression: Expression, target: Target) -> Row:
    """What does not depend on a method."""
    objects = int(expression.attrs["objects"])
    return {
        "scene": clip.id,
        "kind": expression.attrs["type"],
        "text": expression.text,
        "chance": len(target.objects) / objects,
    }


# ── DecAF ────────────────────────────────────────────────────────────────────


def decaf_rows(model: str, dataset: MetaExpressions) -> Iterator[Row]:
    """Every variant from one reading of attention per clip."""
    from refseg_bench.backbones.mllm import MLLM
    from refseg_bench.methods.decaf import DecAF
    from refseg_bench.methods.decaf.fusion import Fusion, coarse_masks, highest, sample_frames

    backbone = MLLM(path=model, dtype="float32", max_new_tokens=8, device="cpu", memory_budget_gb=2.0)
    method = DecAF(backbone=backbone, mask="attention", video_tokens=48, use_cache=False)
    plain = {"contrast": "obj_only", "video_kernel": 1, "frame_kernel": 1}
    variants = {
        "raw video rollout": Fusion(branch="video", **plain),
        "raw frame rollout": Fusion(branch="frame", **plain),
        "raw fused": Fusion(branch="both", **plain),
        "contrast, video": Fusion(branch="video"),
        "contrast, frame": Fusion(branch="frame"),
        "DecAF": Fusion(),
    }
    for clip in dataset.clips():
        expressions = dataset.expressions(clip)
        frames = sample_frames(len(clip), method.n_frames)
        read = method.attend(clip, frames, [e.text for e in expressions])
        for expression in expressions:
            target = dataset.target(clip, expression)
            assert target is not None
            union = target.union()
            row = base_row(clip, expression, target)
            row["answer"], row["answers"] = (
                read[expression.text].object_word,
                list(read[expression.text].answers),
            )
            for name, fusion in variants.items():
                volume = replace(method, fusion=fusion).volume(read[expression.text], expression.text)
                point = highest(volume, frames)
                row[f"point/{name}"] = bool(point is not None and on_target(point, target))
                scores = []
                for frame, mask_HW in zip(frames, coarse_masks(volume, clip.size), strict=True):
                    true = union.mask(frame)
                    true_HW = np.zeros(clip.size, bool) if true is None else true
                    scores.append(jaccard(mask_HW, true_HW))
                row[f"J/{name}"] = float(np.mean(scores))
            yield row


# ── RefAM ────────────────────────────────────────────────────────────────────


def refam_rows(model: str, dataset: MetaExpressions, sigma: float) -> Iterator[Row]:
    """Points on the first frame."""
    from refseg_bench.backbones.dit import DiT
    from refseg_bench.methods.refam import DirectionRule, Gas, NounPhraseFilter, RefAM
    from refseg_bench.segmenters.grabcut import GrabCut

    backbone = DiT(
        path=model,
        family="sd3",
        height=96,
        width=128,
        sigma=sigma,
        text_mode="prompt",
        pooled="zeros",
        prompt_padding="none",
        dtype="fp32",
        device="cpu",
    )
    calm = {"np": NounPhraseFilter(mode="off"), "sb": DirectionRule(mode="off")}
    off = Gas(enabled=False)
    make = {
        "unfiltered mean": {"magnets": "none", "filter_stopwords": False, "gas": off, **calm},
        "stop words filtered": {"magnets": "none", "gas": off, **calm},
        "magnets, unfiltered": {"filter_stopwords": False, "gas": off, **calm},
        "magnets, filtered": {"gas": off, **calm},
        "magnets, filtered, no sinks": {**calm},
        "RefAM": {},
    }
    methods = {name: RefAM(backbone=backbone, segmenter=GrabCut(), **own) for name, own in make.items()}
    for clip in dataset.clips():
        expressions = dataset.expressions(clip)
        heats = {name: method.heats(clip, expressions) for name, method in methods.items()}
        for index, expression in enumerate(expressions):
            target = dataset.target(clip, expression)
            assert target is not None
            row = base_row(clip, expression, target)
            for name in methods:
                row[f"point/{name}"] = on_target(heats[name][index][0].point, target)
            yield row


# ── SAM 2 ────────────────────────────────────────────────────────────────────


def sam2_rows(model: str, n: int, first_seed: int, folder: Path, frames: int | None) -> Iterator[Row]:
    """A click on every object where it is best seen, tracked both ways; a click on the ground beside it.

    A click lands on a random visible pixel. An object's kind is ``hides`` if it is out of sight in some frame
    (its visible part under 5 pixels) or mostly covered or outside (under 40 % of its most), else ``stays``.
    """
    from refseg_bench.segmenters.base import Prompt
    from refseg_bench.segmenters.sam2_hf import Sam2Hf

    segmenter = Sam2Hf(model=model, device="cpu")
    seed, left = first_seed, n
    while left > 0:
        rng = np.random.default_rng([seed, 5])
        world = world_of(seed, frames)
        scene = sample_scene(seed, world)
        footage = render(scene)
        paths = [folder / f"{seed}_{t:02d}.jpg" for t in range(world.n_frames)]
        for path, frame_HWC in zip(paths, footage.frames_THWC, strict=True):
            Image.fromarray(frame_HWC).save(path, quality=92)
        clip = Clip(str(seed), tuple(paths), tuple(p.stem for p in paths), world.size)
        seed += 1

        def click(mask_HW: np.ndarray, rng: np.random.Generator = rng) -> Prompt:
            y, x = rng.choice(np.argwhere(mask_HW))
            return Prompt.click((x + 0.5) / mask_HW.shape[1], (y + 0.5) / mask_HW.shape[0])

        with segmenter.open(clip) as session:
            for thing in range(len(scene.things)):
                seen_T = footage.seen_TN[:, thing]
                frame = int(rng.choice(np.flatnonzero(seen_T > 0.8 * seen_T.max())))
                if seen_T[frame] < 50 or left == 0:
                    continue
                left -= 1
                masks_THW = footage.masks_THW(thing)
                prompt, ground = click(masks_THW[frame]), click(footage.ids_THW[frame] == 0)
                found, empty = session.segment(frame, [prompt, ground])
                true = [jaccard(found.mask(k), masks_THW[frame]) for k in range(len(found))]
                # Any part of any object may be clicked: not only one that is seen well.
                other = int(rng.choice(np.flatnonzero(seen_T >= 24)))
                (part,) = session.segment(other, [click(masks_THW[other])])
                tracked = dict(session.propagate(frame, [prompt]))
                per_frame = [jaccard(tracked[t][0], masks_THW[t]) for t in range(len(clip)) if t != frame]
                hides = seen_T.min() < max(5, 0.4 * seen_T.max())
                yield {
                    "scene": clip.id,
                    "kind": "hides" if hides else "stays",
                    "J/one click": jaccard(part.best()[0], masks_THW[other]),
                    "J/one click, best seen": true[int(np.argmax(found.ious_K))],
                    "J/tracked both ways": float(np.mean(per_frame)),
                    "J/ground clicks that give nothing": float(not empty.best()[0].any()),
                    "told": [float(v) for v in found.ious_K],
                    "true": true,
                }


def jaccard(mask_HW: np.ndarray, true_HW: np.ndarray) -> float:
    """Intersection over union; 1 where both are empty."""
    joint = np.logical_or(mask_HW, true_HW).sum()
    return 1.0 if joint == 0 else float(np.logical_and(mask_HW, true_HW).sum() / joint)


# ── figures ──────────────────────────────────────────────────────────────────


def mean_of(column: str) -> Any:
    """The mean of a column as the statistics functions want it."""
    return lambda sums: {column: sums["x"] / sums["n"]}


def terms(rows: list[Row], column: str) -> dict[str, np.ndarray]:
    """Summands of a mean."""
    return {"x": np.array([float(r[column]) for r in rows]), "n": np.ones(len(rows))}


def table(rows: list[Row]) -> list[Row]:
    """Mean and interval of every column, over all expressions and by kind."""
    out = []
    columns = [c for c in rows[0] if c == "chance" or c.startswith(("point/", "J/"))]
    for kind in ("all", *dict.fromkeys(r["kind"] for r in rows)):
        some = [r for r in rows if kind in ("all", r["kind"])]
        for column in columns:
            found = intervals(terms(some, column), [r["scene"] for r in some], mean_of(column), Bootstrap())[
                column
            ]
            out.append(
                {
                    "kind": kind,
                    "figure": column,
                    "value": found.value,
                    "low": found.low,
                    "high": found.high,
                    "n": len(some),
                }
            )
    return out


def claims(rows: list[Row], pairs: Mapping[str, tuple[str, str, str]]) -> list[Row]:
    """Paired differences: second minus first, on the kind asked for."""
    out = []
    for name, (kind, first, second) in pairs.items():
        some = [r for r in rows if kind in ("all", r["kind"])]
        if not some:
            continue
        d = difference(
            terms(some, first), terms(some, second), [r["scene"] for r in some], mean_of("d"), Bootstrap()
        )["d"]
        out.append(
            {
                "claim": name,
                "kind": kind,
                "difference": d.value,
                "low": d.low,
                "high": d.high,
                "p": d.p,
                "n": d.units,
                "holds": d.low > 0,
            }
        )
    return out


DECAF_CLAIMS = {
    f"{second} over {first} ({metric})": (kind, f"{metric}/{first}", f"{metric}/{second}")
    for kind, first, second in (
        ("all", "raw video rollout", "DecAF"),
        ("all", "raw frame rollout", "DecAF"),
        ("all", "raw fused", "DecAF"),
        ("motion", "contrast, video", "DecAF"),
        ("motion", "contrast, frame", "DecAF"),
    )
    for metric in ("point", "J")
}
REFAM_CLAIMS = {
    f"{second} over {first}": ("all", f"point/{first}", f"point/{second}")
    for first, second in (
        ("unfiltered mean", "stop words filtered"),
        ("magnets, unfiltered", "magnets, filtered"),
        ("magnets, filtered", "magnets, filtered, no sinks"),
        ("unfiltered mean", "magnets, filtered, no sinks"),
        ("stop words filtered", "magnets, filtered"),
        ("unfiltered mean", "RefAM"),
    )
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["decaf", "refam", "sam2"])
    parser.add_argument("--n", type=int, default=500, help="expressions, or objects (sam2)")
    parser.add_argument("--frames", type=int, help="of a clip (16 to 18 where not given)")
    parser.add_argument("--model", help="model folder; the shipped one by default")
    parser.add_argument("--sigma", type=float, default=0.1, help="noise level (refam)")
    parser.add_argument(
        "--watch", action="store_true", help="scenes for choosing settings, not the held-out ones"
    )
    parser.add_argument("--json", type=Path, help="write figures and rows here")
    args = parser.parse_args()
    setup(0)
    with tempfile.TemporaryDirectory() as folder:
        first = WATCH_SEEDS + 100_000 if args.watch else TEST_SEEDS
        if args.what == "sam2":
            rows = list(
                sam2_rows(args.model or "shipped:tiny_sam2", args.n, first, Path(folder), args.frames)
            )
        else:
            dataset = held_out(Path(folder), args.what, args.n, first, args.frames)
            if args.what == "decaf":
                rows = list(decaf_rows(args.model or "shipped:tiny_mllm", dataset))
            else:
                rows = list(refam_rows(args.model or "shipped:tiny_dit", dataset, args.sigma))
    figures = table(rows)
    compared = claims(rows, {"decaf": DECAF_CLAIMS, "refam": REFAM_CLAIMS, "sam2": {}}[args.what])
    if args.what == "sam2":
        told, true = (np.concatenate([row[column] for row in rows]) for column in ("told", "true"))
        of_best = [(max(row["told"]), row["J/one click, best seen"]) for row in rows]
        correlations = [np.corrcoef(told, true)[0, 1], np.corrcoef(np.transpose(of_best))[0, 1]]
        print(
            "predicted and true IoU correlate by {:.3f}, those of best candidates by {:.3f}".format(
                *correlations
            )
        )
    for f in figures:
        print(
            f"{f['kind']:<11} {f['figure']:<36} {f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}] n={f['n']}"
        )
    for c in compared:
        verdict = "holds" if c["holds"] else "does not hold"
        print(
            f"{c['claim']} on {c['kind']}: {c['difference']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}] "
            f"p={c['p']:.4f}: {verdict}"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"table": figures, "claims": compared}, indent=1) + "\n")


if __name__ == "__main__":
    main()
