"""Importing and building Meta's ``sam2`` package inside a program that uses Hydra itself.

The package initialises the global Hydra when it is imported, and its own builders compose their
config through that global. Here the import leaves Hydra as it was, and the model is built from the
package's YAML alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from refseg_bench.backbones.weights import ModelError
from refseg_bench.errors import ConfigError, require

Release = Literal["sam2", "sam2.1"]
ModelSize = Literal["tiny", "small", "base_plus", "large"]

_LETTER = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


def import_sam2() -> ModuleType:
    """Import ``sam2`` without leaving a trace in Hydra's global state.

    Raises:
        MissingExtra: the package is not installed.
    """
    if "sam2" in sys.modules:
        return sys.modules["sam2"]
    require("sam2", "The segmenter 'sam2'")
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton

    if GlobalHydra.instance().is_initialized():
        # The package then leaves the global alone.
        import sam2

        return sam2  # type: ignore[no-any-return]
    # Besides the global itself the package sets Hydra's compatibility version: restore everything.
    state = Singleton.get_state()
    try:
        import sam2
    finally:
        Singleton.set_state(state)
    return sam2  # type: ignore[no-any-return]


def architecture_file(release: Release, size: ModelSize) -> Path:
    """The package's YAML of a published model."""
    package = Path(str(import_sam2().__file__)).parent
    return package / "configs" / release / f"{release}_hiera_{_LETTER[size]}.yaml"


def hub_repo(release: Release, size: ModelSize) -> str:
    """The hub id of a published model."""
    return f"facebook/{release}-hiera-{size.replace('_', '-')}"


def checkpoint_name(release: Release, size: ModelSize) -> str:
    """The checkpoint's file name on the hub (and at Meta's download site)."""
    return f"{release}_hiera_{size}.pt"


def build(architecture: Path, image_size: int | None = None) -> Any:
    """An untrained model from a YAML of the package's form, with the video predictor's post-processing.

    Args:
        architecture: the YAML.
        image_size: overrides the YAML's.

    Returns:
        A ``SAM2Base`` in evaluation mode, on the CPU.

    Raises:
        ConfigError: no such file, or it has no ``model`` node.
    """
    import_sam2()
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if not architecture.is_file():
        raise ConfigError(
            "The SAM 2 architecture file is missing.",
            where=architecture,
            hint="Leave segmenter.architecture empty for the published models.",
        )
    node = OmegaConf.select(OmegaConf.load(architecture), "model")
    if node is None:
        raise ConfigError("The SAM 2 architecture file has no node 'model'.", where=architecture)
    # What the package's builder adds for video: a stable single mask or the best of three, and hard
    # masks of prompted frames in memory.
    OmegaConf.update(
        node,
        "sam_mask_decoder_extra_args",
        {
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
        force_add=True,
    )
    OmegaConf.update(node, "binarize_mask_from_pts_for_mem_enc", True, force_add=True)
    if image_size is not None:
        OmegaConf.update(node, "image_size", image_size, force_add=True)
    return instantiate(node, _recursive_=True).eval()


def load_checkpoint(model: Any, path: Path) -> None:
    """Load a ``.pt`` checkpoint (tensors only, no code runs) or a ``.safetensors`` file strictly.

    Raises:
        ModelError: unreadable, or keys missing or left over.
    """
    import pickle

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(
            "The checkpoint is missing.", where=path, hint="Correct segmenter.checkpoint."
        ) from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise ModelError(
            f"The checkpoint can't be read as tensors ({type(error).__name__}).",
            where=path,
            hint="Fetch it again; a file that holds code is refused on purpose.",
        ) from error
    state = state.get("model", state)
    missing, unexpected = _compare(model.state_dict().keys(), state.keys())
    if missing or unexpected:
        raise ModelError(
            f"The checkpoint doesn't fit the architecture: {len(missing)} tensors missing "
            f"({', '.join(missing[:2])} …), {len(unexpected)} unknown ({', '.join(unexpected[:2])} …).",
            where=path,
            hint="Set segmenter.release, segmenter.size or segmenter.architecture to what was trained.",
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            "The checkpoint's tensors have other shapes than the architecture's: "
            + str(error).splitlines()[-1].strip(),
            where=path,
            hint="Set segmenter.size to the size that was trained.",
        ) from error


def _compare(wanted: Any, given: Any) -> tuple[Sequence[str], Sequence[str]]:
    return sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
