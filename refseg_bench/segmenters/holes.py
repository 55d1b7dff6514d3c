"""Filling small holes in mask logits, as SAM 2 does after its decoder.

SAM 2's own implementation is a CUDA extension; where it was not compiled the step is skipped with
no more than a warning. The one here needs no extension and gives the same masks.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch

from refseg_bench.errors import ConfigError

HoleFilling = Literal["own", "extension", "off"]

#: Logit given to a filled pixel: foreground, and as unsure as can be.
FILLED = 0.1


def fill_holes(logits_N1hw: torch.Tensor, max_area: int) -> torch.Tensor:
    """Make background components of at most ``max_area`` pixels foreground.

    Components are 8-connected regions of logits ≤ 0; those at the border count too.

    Args:
        logits_N1hw: mask logits.
        max_area: largest hole in pixels of this resolution.

    Returns:
        Logits with holes set to 0.1; the very input where there is none.
    """
    background = (logits_N1hw <= 0).to(torch.uint8).cpu().numpy()
    holes = np.zeros(background.shape, np.bool_)
    for index in np.ndindex(*background.shape[:2]):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(background[index], connectivity=8)
        small = stats[:, cv2.CC_STAT_AREA] <= max_area
        small[0] = False  # label 0 is the mask itself
        if count > 1 and small.any():
            holes[index] = small[labels]
    if not holes.any():
        return logits_N1hw
    return torch.where(torch.from_numpy(holes).to(logits_N1hw.device), FILLED, logits_N1hw)


def fill_holes_with_extension(logits_N1hw: torch.Tensor, max_area: int) -> torch.Tensor:
    """The same by the compiled kernel of the ``sam2`` package (CUDA tensors only)."""
    from refseg_bench.segmenters.sam2_package import import_sam2

    import_sam2()
    from sam2.utils.misc import get_connected_components

    labels, areas = get_connected_components(logits_N1hw <= 0)
    return torch.where((labels > 0) & (areas <= max_area), FILLED, logits_N1hw)


def extension_available() -> bool:
    """Whether the ``sam2`` package is there with its compiled kernel."""
    from importlib.util import find_spec

    package = find_spec("sam2")
    if package is None or not package.submodule_search_locations:
        return False
    from pathlib import Path

    return any(
        next(Path(place).glob("_C*.so"), None) is not None for place in package.submodule_search_locations
    )


def require_extension() -> None:
    """Refuse to go on without the compiled kernel, instead of leaving the step out.

    Raises:
        ConfigError: it was not compiled.
    """
    if not extension_available():
        raise ConfigError(
            "fill_holes=extension needs the compiled kernel of the package 'sam2' (sam2/_C.so), "
            "which is not there.",
            allowed=("own", "off", "extension (with sam2 built against a CUDA toolkit)"),
            hint="Use segmenter.fill_holes=own: the same result without the kernel.",
        )


def report(mode: HoleFilling, max_area: int) -> dict[str, object]:
    """Which hole filling is in effect, for the environment record."""
    in_effect = {
        "own": "connected components by OpenCV, 8-connected",
        "extension": "sam2._C",
        "off": "none",
    }[mode]
    return {
        "fill_holes": mode,
        "in_effect": in_effect if mode != "extension" or extension_available() else "missing: sam2._C",
        "max_area": 0 if mode == "off" else max_area,
        "sam2_extension_compiled": extension_available(),
    }
