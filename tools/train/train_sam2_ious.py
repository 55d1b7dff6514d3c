"""Train the IoU head of ``tiny_sam2`` on: ``python tools/train/train_sam2_ious.py --out FOLDER``.

Everything else stays as it is: the masks on offer are the same, which of the three is taken may change. The
decoder's IoU tokens, of clicks and of tracked frames, are gathered once from training scenes, with the IoU of
the masks *as they are shown*: blank where the object is held for absent. Minutes of one CPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2VideoModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from refseg_bench.segmenters.sam2_hf import HfTrackerCore
from tools.train.common import WATCH_SEEDS, note_command, provenance, setup, train_seeds
from tools.train.train_sam2 import (
    LEAST,
    LENGTH,
    _ious,
    areas,
    draw,
    model_pixels,
    pick,
    rows_of,
    teach_tracking,
)

SHIPPED = Path(__file__).resolve().parents[2] / "refseg_bench" / "weights" / "tiny_sam2"


class Listening(HfTrackerCore):
    """The core that keeps, of passes with three masks, what the IoU head was given and what was shown."""

    def __init__(self, model: Sam2VideoModel) -> None:
        super().__init__(model, "bicubic")
        self.heard: list[tuple[Tensor, Tensor]] = []
        self._token = torch.empty(0)
        model.mask_decoder.iou_prediction_head.register_forward_hook(self._listen)

    def _listen(self, _: Any, given: tuple[Tensor, ...], __: Tensor) -> None:
        self._token = given[0].flatten(0, -2).clone()

    def predict(self, *given: Any, several: bool, **more: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the core's."""
        raw = super().predict(*given, several=several, **more)
        if several:
            self.heard.append((self._token, self.heads(*raw).logits_NKhw))
        return raw


@torch.inference_mode()
def gather(model: Sam2VideoModel, seeds: range, clicks: int) -> tuple[Tensor, Tensor]:
    """Tokens ``(N, C)`` and true IoUs ``(N, 3)`` of clicks, and in every other clip of a tracked object."""
    core, tokens, true = Listening(model), [], []
    for seed in seeds:
        clip = torch.from_numpy(draw(seed)).permute(0, 3, 1, 2)
        features, ids_THW = core.features(model_pixels(clip[:, :3])), clip[:, 3]
        shown = areas(ids_THW)
        shown[:, 0] = 0
        frame_N, object_N = (shown >= LEAST).nonzero()[torch.randperm(int((shown >= LEAST).sum()))[:clicks]].T
        masks_NHW = ids_THW[frame_N] == object_N[:, None, None]
        rows, points_NP2 = rows_of(features, frame_N), pick(masks_NHW, inner=False)[:, None]
        ones_NP = torch.ones(points_NP2.shape[:2], dtype=torch.int32)
        core.predict(core.first_look(rows, len(frame_N)), rows, (points_NP2, ones_NP), several=True)
        masks = [masks_NHW]
        if seed % 2:
            kind, start = ("mask", "box")[seed // 2 % 2], (0, LENGTH - 1, LENGTH // 2)[seed % 3]
            masks += [m for _, _, m in teach_tracking(core, features, ids_THW[None], 1, kind, start)[1:]]
        for (token, logits), masks_NHW in zip(core.heard, masks, strict=True):
            tokens.append(token)
            true.append(_ious(logits, masks_NHW))
        core.heard.clear()
    return torch.cat(tokens), torch.cat(true)


def train(head: torch.nn.Module, tokens_NC: Tensor, true_NK: Tensor, steps: int) -> None:
    """Least squares of the three masks' IoU: 512 rows a step, the rate falling to zero."""
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.03)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * (1 - step / steps)
        some = torch.randint(len(tokens_NC), (512,))
        loss = F.mse_loss(head(tokens_NC[some])[:, 1:], true_NK[some])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def main() -> None:
    """Gather, train, tell the correlation on watched scenes before and after, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the finished model")
    add("--weights", type=Path, default=SHIPPED, help="model folder to start from")
    add("--clips", type=int, default=1200)
    add("--clicks", type=int, default=24, help="of a clip")
    add("--steps", type=int, default=3000)
    add("--check-scenes", type=int, default=60)
    add("--seed", type=int, default=1, help="of the scenes, 0 to 5; the model's were 0")
    args = parser.parse_args()
    setup(args.seed)
    note_command(args.out, 0)
    model = Sam2VideoModel.from_pretrained(args.weights, dtype=torch.float32).eval()
    head = model.mask_decoder.iou_prediction_head
    watched = gather(model, range(WATCH_SEEDS, WATCH_SEEDS + args.check_scenes), args.clicks)
    first = train_seeds(args.seed)
    gathered = gather(model, range(first, first + args.clips), args.clicks)

    def told() -> float:
        with torch.inference_mode():
            pair = torch.stack([head(watched[0])[:, 1:].flatten(), watched[1].flatten()])
        return torch.corrcoef(pair)[0, 1].item()

    before = told()
    train(head, *gathered, args.steps)
    after = told()
    print(f"{len(gathered[0])} passes; watched scenes: IoUs correlate by {before:.3f}, now by {after:.3f}")
    model.half().save_pretrained(args.out)
    shutil.copy(args.weights / "config.json", args.out)  # only weights differ
    facts = {
        "script": "tools/train/train_sam2_ious.py",
        "arguments": {k: v for k, v in vars(args).items() if k not in ("out", "weights")},
        "watched": [round(before, 4), round(after, 4)],
        "data": f"shapes world, scene seeds {first} onwards, 8 frames each",
        "licence": "Apache-2.0",
        "trained_on_from": json.loads((args.weights / "provenance.json").read_text("utf-8")),
    }
    (args.out / "provenance.json").write_text(provenance(args.out, **facts))


if __name__ == "__main__":
    main()
