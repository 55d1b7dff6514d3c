"""Frames to model pixels, and choosing device and precision: shared by the SAM family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Precision = Literal["fp32", "bf16"]
Resampling = Literal["bicubic", "bilinear"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def square_pixels(
    frame_HWC: NDArray[np.uint8],
    image_size: int,
    resampling: Resampling,
    device: torch.device,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """A frame squashed to a square by PIL and normalised: float32 ``(1, 3, S, S)``.

    PIL's filters widen their support when shrinking, so both are antialiased.
    """
    method = Image.Resampling.BICUBIC if resampling == "bicubic" else Image.Resampling.BILINEAR
    resized = np.asarray(Image.fromarray(frame_HWC).resize((image_size, image_size), method))
    # Divided in float64, then rounded: as the official loader does.
    pixels_3SS = torch.from_numpy((resized / 255.0).astype(np.float32)).permute(2, 0, 1)
    shape = (3, 1, 1)
    pixels_3SS = (pixels_3SS - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    return pixels_3SS[None].contiguous().to(device)


def autocast_for(precision: Precision, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Makes the context of a model pass: none in fp32, autocast to bfloat16 in bf16."""
    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
