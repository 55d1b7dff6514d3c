"""Train ``tiny_sam2``: ``python tools/train/train_sam2.py --work FOLDER --out FOLDER [--device cuda]``.

A ``Sam2VideoModel`` of transformers (:mod:`tools.train.sam2_model`) learns the shapes world from nothing,
through the very code that prompts and tracks with it later (``refseg_bench/segmenters.sam2_hf.py``). One
run, in two parts of a budget of seconds:

1. pictures: one click → three masks of which the best is taught (least loss), a box, two clicks or a mask →
   one mask; the true IoU of every mask; clicks on the ground → "no object";
2. clips of 8 frames, forward and backward from a click, a box or a mask: memory, objects that hide, leave and
   come back, still with clicks on every frame.

Processes draw scenes ahead into a pool of clips that training samples from, with mirroring. A stopped run
goes on from its last checkpoint, and the folder ``--out`` holds a finished model after every minute.
The same command runs on a GPU (minutes) and on a CPU (hours: give a longer ``--seconds``).
"""

from __future__ import annotations

import argparse
import itertools
import mmap
import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import Sam2VideoModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from refseg_bench.segmenters.memory_tracking import Heads, Memory, Step
from refseg_bench.segmenters.sam2_hf import HfTrackerCore
from refseg_bench.segmenters.sam_base import IMAGENET_MEAN, IMAGENET_STD, Features
from tools.shapes_world import render, sample_scene
from tools.train.common import (
    SEEDS_PER_RUN,
    WATCH_SEEDS,
    Clock,
    Means,
    Watch,
    copy_of,
    follow,
    note_command,
    optimiser_of,
    provenance,
    random_world,
    rate,
    setup,
    train_seeds,
    update,
)
from tools.train.sam2_model import IMAGE_SIZE, make_model

LENGTH = 8  # frames of a clip
SIZE = (192, 256)  # of a frame, in pixels
LEAST = 24  # pixels of an object that is prompted; fewer than 5 count as neither there nor away
MOST = 8  # objects of a scene
_SLOTS = 32  # clips that a drawing process may be ahead
COLUMNS = [
    *("share", "fresh", "lr", "loss", "mask", "iou", "presence", "tracked"),
    *("click_iou", "iou_corr", "track_j"),
]


# ── clips, drawn ahead ───────────────────────────────────────────────────────


def draw(seed: int) -> NDArray[np.uint8]:
    """Frames and object numbers of a part of a scene: ``(8, 192, 256, 4)``, RGB and id (0 = ground)."""
    import cv2

    rng = np.random.default_rng([seed, 99])
    stride = int(rng.choice([1, 2, 2]))
    scene = sample_scene(seed, random_world(rng, int(rng.integers(16, 19))))
    start = int(rng.integers(scene.world.n_frames - stride * (LENGTH - 1)))
    footage = render(scene, range(start, start + stride * LENGTH, stride))
    frames = footage.frames_THWC
    if rng.random() < 0.5:  # data sets hold JPEGs
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(75, 96))]
        frames = np.stack([cv2.imdecode(cv2.imencode(".jpg", f, quality)[1], 1) for f in frames])
    return np.concatenate([frames, footage.ids_THW[..., None]], -1)


def _fill(slots: NDArray[np.uint8], own: range, seeds: range, free: Any, full: Any) -> None:
    """A drawing process: its seeds into its own slots, in turn, as they become free."""
    import cv2

    cv2.setNumThreads(0)
    parent = os.getppid()
    for number, seed in enumerate(seeds):
        while not free.acquire(timeout=5):
            if os.getppid() != parent:
                return
        slot = own[number % len(own)]
        slots[slot] = draw(seed)
        full.put(slot)


class Pool:
    """Clips on the device, the oldest replaced by what the processes have drawn meanwhile.

    Args:
        first_seed: of the scenes.
        workers: drawing processes; 0 draws in this one, a clip whenever :meth:`refresh` is called.
        clips: capacity.
        device: where the clips are.
    """

    def __init__(self, first_seed: int, workers: int, clips: int, device: torch.device) -> None:
        self.drawn = 0
        self._first, self._device = first_seed, device
        self._clips = torch.empty((clips, LENGTH, *SIZE, 4), dtype=torch.uint8, device="meta")
        self._workers: list[Any] = []
        if workers:
            fork = multiprocessing.get_context("fork")
            shape = (_SLOTS * workers, LENGTH, *SIZE, 4)
            self._slots: NDArray[np.uint8] = np.ndarray(shape, np.uint8, mmap.mmap(-1, int(np.prod(shape))))
            self._full = fork.SimpleQueue()
            self._free = [fork.Semaphore(_SLOTS) for _ in range(workers)]
            for number, free in enumerate(self._free):
                own = range(number * _SLOTS, (number + 1) * _SLOTS)
                seeds = range(first_seed + number, first_seed + SEEDS_PER_RUN, workers)
                task = (self._slots, own, seeds, free, self._full)
                self._workers.append(fork.Process(target=_fill, args=task, daemon=True))
                self._workers[-1].start()

    def refresh(self, least: int = 0, most: int = 16) -> None:
        """Take in what is drawn: until ``least`` clips were there, and ``most`` at once if that is done.

        Raises:
            RuntimeError: a drawing process failed.
        """
        if self._clips.is_meta:  # the device is first touched after the processes were forked
            self._clips = torch.empty_like(self._clips, device=self._device)
        for taken in itertools.count(1):
            if not self._workers:
                self._take(draw(self._first + self.drawn))
            else:
                while self._full.empty():
                    if self.drawn >= least:
                        return
                    if not all(worker.is_alive() for worker in self._workers):
                        raise RuntimeError("A process that draws clips failed; its traceback is above.")
                    time.sleep(0.01)
                slot = self._full.get()
                self._take(self._slots[slot])
                self._free[slot // _SLOTS].release()
            if self.drawn >= least and taken >= (most if self._workers else 1):
                return

    def _take(self, clip: NDArray[np.uint8]) -> None:
        self._clips[self.drawn % len(self._clips)] = torch.from_numpy(clip).to(self._device)
        self.drawn += 1

    def sample(self, clips: int, frames: int) -> tuple[Tensor, Tensor]:
        """Clips of the pool, mirrored at random: pixels ``(B, T, 3, 192, 256)`` in 0–255, ids ``(B, T, …)``.

        Fewer than all frames are drawn at random from a clip.
        """
        count = min(self.drawn, len(self._clips))
        rows_B1 = torch.randint(count, (clips, 1), device=self._device)
        if frames < LENGTH:
            order_BT = torch.rand(clips, LENGTH, device=self._device).argsort(1)[:, :frames]
        else:
            order_BT = torch.arange(LENGTH, device=self._device).expand(clips, -1)
        some = self._clips[rows_B1, order_BT].permute(0, 1, 4, 2, 3)
        for axis in (-1, -2):
            mirrored = torch.rand(clips, 1, 1, 1, 1, device=self._device) < 0.5
            some = torch.where(mirrored, some.flip(axis), some)
        return some[:, :, :3], some[:, :, 3]

    def close(self) -> None:
        """End the drawing processes."""
        for worker in self._workers:
            worker.terminate()


# ── from pixels to prompts ───────────────────────────────────────────────────


def model_pixels(frames_B3HW: Tensor) -> Tensor:
    """What the segmenter makes of frames (``sam_base.square_pixels``), on the device."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    squashed = F.interpolate(frames_B3HW.float(), size, mode="bicubic", antialias=True, align_corners=False)
    mean, std = (
        torch.tensor(v, device=frames_B3HW.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (squashed.round().clamp(0, 255) / 255 - mean) / std


def areas(ids_BHW: Tensor) -> Tensor:
    """Visible pixels of ground and objects: ``(B, 9)``."""
    flat_BL = ids_BHW.flatten(1).long()
    out = torch.zeros(len(flat_BL), MOST + 1, device=ids_BHW.device)
    return out.scatter_add_(1, flat_BL, torch.ones_like(flat_BL, dtype=out.dtype))


def pick(masks_NHW: Tensor, inner: bool = True) -> Tensor:
    """A pixel of every mask as model coordinates (x, y): ``(N, 2)``, half of them away from the border."""
    n, h, w = masks_NHW.shape
    chance = torch.rand(n, h * w, device=masks_NHW.device)
    if inner:
        core_NHW = masks_NHW
        for shift in (-4, 4):
            for axis in (1, 2):
                core_NHW = core_NHW & masks_NHW.roll(shift, axis)
        chance = chance + core_NHW.flatten(1) * (torch.rand(n, 1, device=chance.device) < 0.5)
    where = chance.masked_fill(~masks_NHW.flatten(1), -1).argmax(1)
    y, x = where.div(w, rounding_mode="floor"), where % w
    return torch.stack([(x + 0.5) / w, (y + 0.5) / h], 1) * IMAGE_SIZE


def boxes(masks_NHW: Tensor) -> Tensor:
    """The two corners of every mask, loosened by up to a tenth: ``(N, 2, 2)`` in model coordinates."""
    corners = []
    for axis in (1, 2):  # columns, then rows
        hit = masks_NHW.any(axis).float()
        length = hit.shape[1]
        first, last = hit.argmax(1), length - hit.flip(1).argmax(1)
        slack = (last - first) * 0.1
        jitter = torch.rand(len(hit), 2, device=hit.device) * 2 - 1
        low, high = first + slack * jitter[:, 0], last + slack * jitter[:, 1]
        corners.append(torch.stack([low, high], 1).clamp(0, length) / length * IMAGE_SIZE)
    return torch.stack(corners, 2)


def mask_prompts(masks_NHW: Tensor) -> Tensor:
    """0/1 masks at the model's image size, as the session makes them."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    shrunk = F.interpolate(
        masks_NHW[:, None].float(), size, mode="bilinear", antialias=True, align_corners=False
    )
    return (shrunk >= 0.5).float()


# ── what is taught ───────────────────────────────────────────────────────────


class Loss:
    """Sums of loss terms, each normalised by what it counts."""

    def __init__(self) -> None:
        self.terms: dict[str, list[Tensor]] = {"mask": [], "iou": [], "presence": []}

    def add(self, logits_NKhw: Tensor, ious_NK: Tensor, presence_N1: Tensor, masks_NHW: Tensor) -> None:
        """Take in one pass of the decoder; an empty mask means that the object isn't there."""
        logits_NKhw, ious_NK = logits_NKhw.float(), ious_NK.float()
        area_N = masks_NHW.flatten(1).sum(1)
        there_N, certain_N = area_N > 0, (area_N == 0) | (area_N >= 5)
        with torch.no_grad():
            drawn = F.interpolate(logits_NKhw, SIZE, mode="bilinear", align_corners=False) > 0
            both = (drawn & masks_NHW[:, None]).flatten(2).sum(2)
            true_NK = both / (drawn | masks_NHW[:, None]).flatten(2).sum(2).clamp(min=1)
            # The candidate that is taught: least loss, at the decoder's own resolution.
            soft = F.adaptive_avg_pool2d(masks_NHW[:, None].float(), logits_NKhw.shape[-2:]).expand_as(
                logits_NKhw
            )
            best_N = _mask_loss(logits_NKhw.flatten(0, 1), soft.flatten(0, 1)).view(true_NK.shape).argmin(1)
        rows_N = torch.arange(len(best_N), device=best_N.device)
        sharp = F.interpolate(
            logits_NKhw[rows_N, best_N][:, None], SIZE, mode="bilinear", align_corners=False
        )
        per_row = _mask_loss(sharp[:, 0], masks_NHW.float())
        self.terms["mask"].append((per_row * there_N).sum() / there_N.sum().clamp(min=1))
        self.terms["iou"].append(F.mse_loss(ious_NK, true_NK))
        presence = F.binary_cross_entropy_with_logits(
            presence_N1[:, 0].float(), there_N.float(), reduction="none"
        )
        self.terms["presence"].append((presence * certain_N).sum() / certain_N.sum().clamp(min=1))

    def total(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts for the log."""
        parts = {name: torch.stack(values).mean() for name, values in self.terms.items()}
        return parts["mask"] + 2 * parts["iou"] + 0.5 * parts["presence"], parts


def _mask_loss(logits_NHW: Tensor, masks_NHW: Tensor) -> Tensor:
    """Cross-entropy of pixels, weighted up, and Dice's loss: ``(N,)``."""
    pixels = F.binary_cross_entropy_with_logits(logits_NHW, masks_NHW, reduction="none").flatten(1).mean(1)
    chance, target = logits_NHW.sigmoid().flatten(1), masks_NHW.flatten(1)
    overlap = (2 * (chance * target).sum(1) + 1) / (chance.sum(1) + target.sum(1) + 1)
    return 10 * pixels + 1 - overlap


def rows_of(features: Features, rows_N: Tensor) -> Features:
    """The features of a batch of frames, a row per object."""
    return tuple(level[rows_N] for level in features)


def teach_prompts(
    core: HfTrackerCore, features: Features, ids_BHW: Tensor, loss: Loss, clicks: int, other: str
) -> None:
    """Clicks on objects, one on the ground, and another kind of prompt, on every frame."""
    shown = areas(ids_BHW)
    weights = (shown >= LEAST).float()
    weights[:, 0] = 0
    weights = weights + 1e-9  # a frame may be empty; then the target is, too
    chosen_BK = torch.multinomial(weights, clicks + 1, replacement=True)
    chosen_BK[:, 0] = 0
    masks_BKHW = ids_BHW[:, None] == chosen_BK[..., None, None]
    frames_N = torch.arange(len(ids_BHW), device=ids_BHW.device).repeat_interleave(clicks + 1)
    masks_NHW = masks_BKHW.flatten(0, 1)
    points_NP2 = pick(masks_NHW)[:, None]
    targets_NHW = masks_NHW & (chosen_BK.flatten() > 0)[:, None, None]
    some = rows_of(features, frames_N)
    ones_NP = torch.ones(points_NP2.shape[:2], dtype=torch.int32, device=points_NP2.device)
    top = core.first_look(some, len(frames_N))
    loss.add(*_shown(core.predict(top, some, (points_NP2, ones_NP), several=True)), targets_NHW)

    masks_NHW = masks_BKHW[:, 1]
    empty_N = ~masks_NHW.flatten(1).any(1)
    top = core.first_look(features, len(masks_NHW))
    if other == "mask":
        top = features[-1]  # as take_mask has it
        given: dict[str, Any] = {"masks_N1hw": core.model.mask_downsample(mask_prompts(masks_NHW))}
        points = None
    else:
        given = {}
        labels = {"box": (2, 3), "two": (1, 1), "not": (1, 0)}[other]
        if other == "box":
            points_NP2 = boxes(masks_NHW)
        else:
            second = masks_NHW if other == "two" else ~masks_NHW
            points_NP2 = torch.stack([pick(masks_NHW | empty_N[:, None, None]), pick(second)], 1)
        labels_NP = torch.tensor(labels, dtype=torch.int32, device=ids_BHW.device).expand(len(masks_NHW), -1)
        points = points_NP2, labels_NP
    loss.add(*_shown(core.predict(top, features, points, several=False, **given)), masks_NHW)


def _shown(raw: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return raw[0], raw[1], raw[3]


def teach_tracking(
    core: HfTrackerCore,
    features: Features,
    ids_BTHW: Tensor,
    objects: int,
    kind: str,
    start: int,
    loss: Loss | None = None,
) -> list[tuple[int, Tensor, Tensor]]:
    """Track objects of every clip from one frame to both ends, as ``TrackingSession`` does.

    Args:
        core: the model.
        features: of all frames, ``(B·T, …)``.
        ids_BTHW: object numbers.
        objects: per clip; those that are not always in full view come first.
        kind: of the prompt: ``click``, ``box`` or ``mask``.
        start: the prompted frame.
        loss: what to add to, if anything.

    Returns:
        Position, logits ``(N, 1, h, w)`` and true masks ``(N, H, W)`` of every frame.
    """
    clips, length = ids_BTHW.shape[:2]
    device = ids_BTHW.device
    shown_BTM = areas(ids_BTHW.flatten(0, 1)).view(clips, length, -1)
    least, most = shown_BTM.amin(1), shown_BTM.amax(1)
    weights = (shown_BTM[:, start] >= LEAST) * (1 + 3.0 * (least < 0.4 * most))
    weights[:, 0] = 0
    chosen_BN = torch.multinomial(weights + 1e-9, objects)
    usable_N = weights.gather(1, chosen_BN).flatten() > 0
    clip_N = torch.arange(clips, device=device).repeat_interleave(objects)[usable_N]
    object_N = chosen_BN.flatten()[usable_N]
    n = len(object_N)
    if n == 0:
        return []

    def seen(position: int) -> tuple[Features, Tensor]:
        masks = ids_BTHW[clip_N, position] == object_N[:, None, None]
        return rows_of(features, clip_N * length + position), masks

    def remember(some: Features, heads: Heads, *, from_prompt: bool) -> Step:
        size = (IMAGE_SIZE, IMAGE_SIZE)
        large = F.interpolate(heads.best_N1hw.float(), size=size, mode="bilinear", align_corners=False)
        memory = core.memorise(some, large, heads.presence_N1, from_prompt=from_prompt)
        return Step(heads.best_N1hw, memory.to(torch.bfloat16), heads.pointer_NC, heads.presence_N1)

    some, masks_NHW = seen(start)
    if kind == "mask":
        heads = core.take_mask(some, mask_prompts(masks_NHW))
    else:
        click = kind == "click"
        points_NP2 = pick(masks_NHW)[:, None] if click else boxes(masks_NHW)
        labels = torch.tensor((1,) if click else (2, 3), dtype=torch.int32, device=device).expand(n, -1)
        raw = core.predict(core.first_look(some, n), some, (points_NP2, labels), several=click)
        heads = core.heads(*raw)
        if loss is not None:
            loss.add(*_shown(raw), masks_NHW)
    memory = Memory(start, remember(some, heads, from_prompt=True))
    out = [(start, heads.best_N1hw, masks_NHW)]
    for positions, reverse in ((range(start + 1, length), False), (range(start - 1, -1, -1), True)):
        for position in positions:
            some, masks_NHW = seen(position)
            top = core.recall(some, n, memory, position, length, reverse=reverse)
            raw = core.predict(top, some, None, several=True)
            heads = core.heads(*raw)
            if loss is not None:
                loss.add(*_shown(raw), masks_NHW)
            memory.followed[position] = remember(some, heads, from_prompt=False)
            out.append((position, heads.best_N1hw, masks_NHW))
    return out


# ── what is watched ──────────────────────────────────────────────────────────


@torch.no_grad()
def figures(core: HfTrackerCore, clips_BTHWC: Tensor) -> dict[str, float]:
    """IoU of one click, correlation of predicted and true IoU, J of tracking from the middle both ways."""
    torch.manual_seed(0)  # the same clicks every time
    some = clips_BTHWC.permute(0, 1, 4, 2, 3)
    frames, ids = some[:, :, :3], some[:, :, 3]
    found, told, true, kept = [], [], [], []
    for first in range(0, len(frames), 8):
        part = slice(first, first + 8)
        features = core.features(model_pixels(frames[part].flatten(0, 1)))
        ids_BHW = ids[part].flatten(0, 1)
        shown = areas(ids_BHW)
        shown[:, 0] = 0
        frame_N, object_N = (shown >= LEAST).nonzero(as_tuple=True)
        masks_NHW = ids_BHW[frame_N] == object_N[:, None, None]
        rows = rows_of(features, frame_N)
        points_NP2 = pick(masks_NHW, inner=False)[:, None]
        labels = torch.ones(points_NP2.shape[:2], dtype=torch.int32, device=points_NP2.device)
        raw = core.predict(core.first_look(rows, len(frame_N)), rows, (points_NP2, labels), several=True)
        true_NK = _ious(core.heads(*raw).logits_NKhw, masks_NHW)
        ious_NK = raw[1].float()
        found.append(true_NK.gather(1, ious_NK.argmax(1, keepdim=True)).flatten())
        told.append(ious_NK.flatten())
        true.append(true_NK.flatten())
        for _, logits, masks in teach_tracking(core, features, ids[part], 3, "click", LENGTH // 2)[1:]:
            kept.append(_ious(logits, masks).flatten())
    pair = torch.stack([torch.cat(told), torch.cat(true)])
    return {
        "click_iou": torch.cat(found).mean().item(),
        "iou_corr": torch.corrcoef(pair)[0, 1].item(),
        "track_j": torch.cat(kept).mean().item() if kept else 0.0,
    }


def _ious(logits_NKhw: Tensor, masks_NHW: Tensor) -> Tensor:
    """Jaccard of drawn masks at the frames' size; 1 where both are empty."""
    drawn = F.interpolate(logits_NKhw.float(), SIZE, mode="bilinear", align_corners=False) > 0
    both = (drawn & masks_NHW[:, None]).flatten(2).sum(2)
    either = (drawn | masks_NHW[:, None]).flatten(2).sum(2)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


# ── training ─────────────────────────────────────────────────────────────────


def train(args: argparse.Namespace) -> None:
    """Train until the budget is spent; the average of the weights is watched and exported on the way."""
    device = torch.device(args.device)
    watch = Watch(args.work, COLUMNS)
    state = watch.resume() or {"step": 0, "drawn": 0}
    note_command(args.work, state["step"])
    pool = Pool(train_seeds(args.seed) + state["drawn"], args.workers, args.pool, device)
    model = make_model(args.seed)
    if args.weights:
        model.load_state_dict(Sam2VideoModel.from_pretrained(args.weights, dtype=torch.float32).state_dict())
    if device.type == "cpu":
        # Plain products: on a CPU the fused kernel's backward pass takes several times as long.
        model.set_attn_implementation("eager")
    model.to(device).train()
    average = copy_of(model)
    optimiser = optimiser_of(model, 0.02)
    if state["step"]:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
    core, shown = HfTrackerCore(model, "bicubic"), HfTrackerCore(average, "bicubic")
    clock, means = Clock(watch, args.steps, args.seconds), Means()
    watched = np.stack([draw(WATCH_SEEDS + seed) for seed in range(args.check_scenes)])
    pool.refresh(least=min(args.pool, max(1, args.workers) * _SLOTS // 2))
    random = np.random.default_rng([args.seed, state["step"]])
    torch.manual_seed(train_seeds(args.seed) + state["step"])

    share = clock.share(state["step"])
    for step in itertools.count(state["step"]):
        if share >= 1:
            break
        pool.refresh()
        lr = rate(share, args.lr, 0.03)
        moving = share >= args.pictures and random.random() < 0.8
        frames, ids_BTHW = pool.sample(*((args.clips, LENGTH) if moving else (args.batch // 2, 2)))
        ids_BHW = ids_BTHW.flatten(0, 1)
        still, other = Loss(), str(random.choice(["box", "two", "not", "mask"]))
        with torch.autocast(device.type, torch.bfloat16):
            features = core.features(model_pixels(frames.flatten(0, 1)))
            teach_prompts(core, features, ids_BHW, still, 1 if moving else args.clicks, other)
            loss, parts = still.total()
            if moving:
                tracked = Loss()
                # The ends more often than what lies between: the longest way to go.
                start = int(random.choice([0, 0, LENGTH - 1, LENGTH - 1, int(random.integers(LENGTH))]))
                kind = str(random.choice(["click", "mask", "mask", "box"]))
                teach_tracking(core, features, ids_BTHW, args.objects, kind, start, tracked)
                of_tracks, more = tracked.total()
                loss, parts = 0.5 * loss + of_tracks, {**parts, "tracked": more["mask"]}
        optimiser.zero_grad()
        loss.backward()
        update(optimiser, model, lr)
        follow(average, model, step, args.decay)
        means.add({"loss": loss, **parts})
        drawn = state["drawn"] + pool.drawn
        if (step + 1) % args.log_every == 0:
            watch.log(step + 1, share=share, fresh=drawn, lr=lr, **means.take())
        before, share = share, clock.share(step + 1)
        if int(share * args.checks) > int(before * args.checks):
            found = figures(shown, torch.from_numpy(watched).to(device))
            torch.manual_seed(train_seeds(args.seed) + step + 1)
            watch.log(step + 1, share=share, fresh=drawn, lr=lr, **means.take(), **found)
            if args.out:
                export(average, watch, step + 1, args)
            watch.save(
                step + 1,
                drawn=drawn,
                model=model.state_dict(),
                optimiser=optimiser.state_dict(),
                average=average.state_dict(),
            )
    pool.close()


def export(average: torch.nn.Module, watch: Watch, step: int, args: argparse.Namespace) -> None:
    """Write the averaged weights as a model folder of transformers, fp16, with log and provenance."""
    args.out.mkdir(parents=True, exist_ok=True)
    half = copy_of(average).cpu().half()
    half.save_pretrained(args.out)
    shutil.copy(args.work / "log.csv", args.out / "log.csv")
    facts = {
        "script": "tools/train/train_sam2.py",
        "arguments": {k: v for k, v in vars(args).items() if k not in ("work", "out")},
        "steps": step,
        "wall_s": round(watch.elapsed()),
        "data": f"shapes world, scene seeds {train_seeds(args.seed)} onwards, 8 frames each",
        "log": "docs/training/tiny_sam2.csv",
        "licence": "Apache-2.0",
    }
    (args.out / "provenance.json").write_text(provenance(args.work, **facts))


def main() -> None:
    """Train what is left to train; export with every check, and so at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for log and checkpoints")
    add("--out", type=Path, help="folder of the finished model, written with every check")
    add("--device", default="cpu")
    add("--steps", type=int, default=20_000)
    add("--seconds", type=float, help="train for so long instead, checks included")
    add("--batch", type=int, default=16, help="frames of a step on pictures")
    add("--clicks", type=int, default=3, help="on objects of a frame of such a step")
    add("--clips", type=int, default=2, help="clips of a step on clips")
    add("--objects", type=int, default=2, help="objects tracked in a clip")
    add("--pictures", type=float, default=0.4, help="share of the training without clips")
    add("--lr", type=float, default=2e-3)
    add("--workers", type=int, default=0, help="processes that draw clips ahead")
    add("--pool", type=int, default=256, help="clips kept to sample from")
    add("--decay", type=float, default=0.998, help="of the average of the weights")
    add("--weights", type=str, help="model folder to start from")
    add("--log-every", type=int, default=20, help="steps")
    add("--checks", type=int, default=10, help="checks on watched scenes, checkpoints and exports")
    add("--check-scenes", type=int, default=16)
    add("--seed", type=int, default=0, help="of weights and scenes, 0 to 5")
    args = parser.parse_args()
    setup(args.seed)
    if args.device != "cpu":
        torch.set_float32_matmul_precision("high")
    train(args)


if __name__ == "__main__":
    main()
