"""Write the ``shapes`` sample set, or another of its make:
``python -m tools.make_shapes [--root datasets/shapes] [--clips 12] [--first-seed 9400000]``.

The clips and their expressions come from :mod:`tools.shapes_world` at fixed
seeds; running this again gives the same masks and the same JSON. Seeds from 9,000,000 on belong
to shipped sets, so that models trained on smaller seeds have never seen it.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from pathlib import Path

from refseg_bench.types import MaskTrack
from tools.shapes_world import (
    Footage,
    Scene,
    Utterance,
    World,
    describe,
    render,
    sample_scene,
)
from tools.writers import VideoRecord, write_meta_expressions_set

FIRST_SEED = 9_400_000
SPLIT = "valid_u"
N_CLIPS = 12
N_FRAMES = 8  # with more, or more clips, the default run takes over a minute: docs/tiny-models.md
PATH_FRAMES = 16  # of the clips that the tiny models were trained on: objects move as far between two frames
PER_CLIP = 5
QUOTA = {"motion": 12, "reasoning": 8, "relation": 8, "multi": 8, "absent": 5, "appearance": 13}


def build(n_clips: int = N_CLIPS, first_seed: int = FIRST_SEED) -> list[VideoRecord]:
    """Make the clips of the shipped set, or others with the same share of each kind, in order."""
    left = Counter({kind: round(n * n_clips / N_CLIPS) for kind, n in QUOTA.items()})
    records: list[VideoRecord] = []
    seed, tries = first_seed, 0
    while len(records) < n_clips:
        index, tries = len(records), tries + 1
        picky = tries < 30  # then any clip will do
        difficulty = 0.25 + 0.5 * index / max(1, n_clips - 1)
        world = World(n_frames=N_FRAMES, difficulty=difficulty, objects=(3, 5), path_frames=PATH_FRAMES)
        scene = sample_scene(seed, world)
        footage = render(scene)
        utterances = describe(scene, footage)
        chosen = choose(utterances, left, clips_left=n_clips - index)
        seed += 1
        over = any(left[kind] < count for kind, count in Counter(u.kind for u in chosen).items())
        if (picky and over) or not interesting(
            chosen, hiding=picky and index % 3 == 0, event=picky and index % 3 == 1
        ):
            continue
        tries = 0
        left.subtract(u.kind for u in chosen)
        records.append(record(scene, footage, chosen))
    return records


def choose(utterances: list[Utterance], left: Counter[str], clips_left: int) -> list[Utterance]:
    """Expressions for one clip: the kinds that are furthest behind first, no kind more than twice."""
    want = min(PER_CLIP, -(-left.total() // clips_left))
    chosen: list[Utterance] = []
    debt = left.copy()
    while len(chosen) < want and debt:
        kind = max(debt, key=lambda k: debt[k])
        taken = sum(u.kind == kind for u in chosen)
        meant = {u.targets for u in chosen}
        options = [u for u in utterances if u.kind == kind and u not in chosen]
        # what happens in time before what a still shows, new targets first; the sort is stable
        options.sort(
            key=lambda u: (kind == "reasoning" and not u.dynamic, "hid" not in u.text, u.targets in meant)
        )
        if not options or taken >= 2:
            del debt[kind]
            continue
        chosen.append(options[0])
        debt[kind] -= 2 + debt[kind] // 3
    return chosen


def interesting(chosen: list[Utterance], *, hiding: bool, event: bool) -> bool:
    """Whether a clip asks for more than looks.

    With ``hiding`` one expression must be about an object behind another, with ``event`` about
    anything that only time shows.
    """
    if len(chosen) < 3 or not any(u.kind in ("motion", "reasoning") for u in chosen):
        return False
    told = [u.text for u in chosen if u.kind == "reasoning" and u.dynamic]
    hides = any(word in text for text in told for word in ("hid", "covers"))
    return hides if hiding else bool(told) or not event


def record(scene: Scene, footage: Footage, chosen: list[Utterance]) -> VideoRecord:
    """Put a clip together with the masks of all its objects."""
    name = hashlib.sha256(f"shapes/{scene.seed}".encode()).hexdigest()[:12]
    tracks = [MaskTrack.from_masks(footage.masks_THW(i), scene.world.size) for i in range(len(scene.things))]
    expressions = [(u.text, u.targets, {"type": u.kind}) for u in chosen]
    return VideoRecord(name, footage.frames_THWC, tracks, expressions)


def main() -> None:
    """Write the set and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("datasets/shapes"), help="folder to write to")
    parser.add_argument("--clips", type=int, default=N_CLIPS, help="how many")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the scenes that are tried")
    args = parser.parse_args()
    root, records = args.root, build(args.clips, args.first_seed)
    counts = write_meta_expressions_set(root, SPLIT, records, jpeg_quality=84)
    kinds = Counter(str(extra["type"]) for r in records for _, _, extra in r.expressions)
    size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    print(f"{root}: {counts}, {dict(kinds)}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
