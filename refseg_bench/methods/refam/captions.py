"""Image captions from a file, for transformers that are prompted with one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from refseg_bench.errors import ConfigError, DataError
from refseg_bench.types import Clip, Expression

PromptMode = Literal["caption", "expression", "empty"]
MissingCaption = Literal["error", "expression", "empty"]


@lru_cache(maxsize=2)
def read_captions(path: Path) -> Mapping[str, str]:
    """Captions by clip or image id.

    Two forms: a JSON object ``{id: caption}``, or COCO's ``captions_*.json``, of which the caption
    with the lowest id stands for its image.

    Raises:
        ConfigError: the file is missing or of neither form.
    """
    try:
        found: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The captions can't be read ({type(error).__name__}: {error}).",
            where=path,
            hint="Give method.captions a JSON object {id: caption}, or COCO's captions_train2014.json.",
        ) from error
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        rows = sorted(found["annotations"], key=lambda row: -int(row["id"]))
        return {str(row["image_id"]): " ".join(str(row["caption"]).split()) for row in rows}
    if isinstance(found, dict) and all(isinstance(text, str) for text in found.values()):
        return {str(key): text for key, text in found.items()}
    raise ConfigError(
        "The captions are of no known form.", where=path, allowed=["{id: caption}", "COCO captions"]
    )


def caption_of(clip: Clip, path: Path) -> str:
    """The caption of a clip, by its id, its COCO image id, or its frame's file name.

    Raises:
        DataError: there is none.
    """
    captions = read_captions(path)
    names = [clip.id, str(clip.attrs.get("image_id", "")), clip.frame_paths[0].stem, clip.frame_names[0]]
    for name in names:
        if name in captions:
            return captions[name]
    raise DataError(
        f"Clip '{clip.id}' has no caption.",
        where=path,
        hint="Add it, or use method.missing_caption=expression or empty.",
    )


def prompt_of(
    clip: Clip, expression: Expression, mode: PromptMode, captions: Path | None, missing: MissingCaption
) -> str:
    """What a transformer is prompted with.

    Args:
        clip: the sample's clip.
        expression: the sample's expression.
        mode: the clip's caption, the expression, or nothing.
        captions: the file of captions.
        missing: what to do for a clip without caption.

    Raises:
        ConfigError: captions are asked for and no file is given.
        DataError: the clip has no caption and ``missing`` is ``error``.
    """
    if mode != "caption":
        return expression.text if mode == "expression" else ""
    if captions is None:
        raise ConfigError(
            "The transformer is to be prompted with captions, and none are given.",
            where="method.captions",
            hint="Give a file, or use method.prompt_mode=expression or empty.",
        )
    try:
        return caption_of(clip, captions)
    except DataError:
        if missing == "error":
            raise
        return expression.text if missing == "expression" else ""
