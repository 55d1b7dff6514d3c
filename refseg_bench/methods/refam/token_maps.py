"""Token maps of a clip's expressions, through the cache: what is known costs no forward pass.

An entry holds what a set of tokens came to. Where the strings of an expression don't see each other,
the maps without magnets are kept beside those with them. Which expressions are asked together never
changes an entry beyond rounding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refseg_bench.backbones.attention_maps import SoftmaxTokens, TokenMaps
from refseg_bench.backbones.dit import DiT, LatentImage, TokenRequest
from refseg_bench.backbones.dit.text import TokenSet
from refseg_bench.backbones.weights import refuse_changed
from refseg_bench.cache import Cache, Entry, Value, fingerprint
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.files.store_io import look
from refseg_bench.types import Clip, Expression

PromptMode = Literal["caption", "expression", "empty"]
MissingCaption = Literal["error", "expression", "empty"]


@dataclass(frozen=True)
class Ask:
    """One expression's tokens, to be read against one frame."""

    tokens: TokenSet  #: the extraction tokens
    prompt: str  #: what the transformer is prompted with (ignored in prompt mode)
    exclude: tuple[int, ...] = ()  #: tokens whose logits count as −∞

    @property
    def reading(self) -> SoftmaxTokens:
        """All tokens, less the excluded."""
        return SoftmaxTokens(tuple(range(len(self.tokens))), self.exclude)


@dataclass
class TokenMapReader:
    """Reads token maps of one clip."""

    backbone: DiT  #: the transformer
    cache: Cache  #: where entries are kept
    clip: Clip  #: whose frames are read
    #: query–key attention, or inner products of the attention's outputs.
    space: Literal["attention", "output"] = "attention"
    _scenes: dict[int, LatentImage] = field(default_factory=dict, init=False)
    _frames: dict[int, str] = field(default_factory=dict, init=False)

    def read(self, frame: int, asks: Sequence[Ask]) -> list[TokenMaps]:
        """The maps of every ask, in order.

        Raises:
            RefsegError: the frame can't be read, or attention can't.
        """
        entries = [self.cache.get(self._key(frame, ask)) for ask in asks]
        found = {i: _unpack_maps(entry) for i, entry in enumerate(entries) if entry is not None}
        missing = [i for i in range(len(asks)) if i not in found]
        if missing:
            queries = [self._query(asks[i]) for i in missing]
            answers = self.backbone.attend(self.scene(frame), queries, self.backbone.options(self.space))
            for i, answer in zip(missing, answers, strict=True):
                found[i] = answer["asked"]
                self.cache.put(self._key(frame, asks[i]), _pack_maps(found[i]))
                if "expression" in answer:
                    bare = Ask(asks[i].tokens.alone(0), asks[i].prompt)
                    self.cache.put(self._key(frame, bare), _pack_maps(answer["expression"]))
        return [found[i] for i in range(len(asks))]

    def known(self, frame: int, ask: Ask) -> bool:
        """Whether an ask needs no forward pass, by the cache alone."""
        return self._key(frame, ask) in self.cache

    def scene(self, frame: int) -> LatentImage:
        """A frame's latents, encoded at most once."""
        if frame not in self._scenes:
            self._scenes[frame] = self.backbone.open(self.clip.load([frame])[0])
        return self._scenes[frame]

    def _query(self, ask: Ask) -> TokenRequest:
        readings = {"asked": ask.reading}
        apart = ask.tokens.separable and self.backbone.magnets_independent
        if ask.tokens.magnets and not ask.exclude and apart:
            readings["expression"] = SoftmaxTokens(ask.tokens.expression_tokens)
        return TokenRequest(ask.tokens, ask.prompt, readings)

    def _key(self, frame: int, ask: Ask) -> dict[str, Any]:
        if frame not in self._frames:
            path, upright = self.clip.frame_paths[frame], self.clip.upright
            self._frames[frame] = fingerprint([path], upright=upright)
        return {
            "kind": "token maps",
            "backbone": {**self.backbone.identity(), "space": self.space},
            "frame": self._frames[frame],
            "strings": ask.tokens.strings,
            "first_only": ask.tokens.first_only,
            "prompt": ask.prompt if self.backbone.text_mode == "concept_stream" else None,
            "pooled": self.backbone.pooled_text(ask.tokens, ask.prompt),
            "exclude": ask.exclude,
        }


def _pack_maps(maps: TokenMaps) -> dict[str, Value]:
    entry: dict[str, Value] = {
        "maps": maps.maps_TN,
        "stats": maps.layer_stats_L3T,
        "layers": np.asarray(maps.layers),
        "grid": np.asarray(maps.grid),
    }
    return entry if maps.text_TT is None else {**entry, "text": maps.text_TT}


def _unpack_maps(entry: Entry) -> TokenMaps:
    a: Mapping[str, Any] = entry
    rows, columns = a["grid"].tolist()
    return TokenMaps(a["maps"], a.get("text"), a["stats"], tuple(a["layers"].tolist()), (rows, columns))


# ── what a transformer is prompted with ─────────────────────────────────────


def read_captions(path: Path) -> Mapping[str, str]:
    """Captions by clip or image id.

    Two forms: a JSON object ``{id: caption}``, or COCO's ``captions_*.json``, of which the caption
    with the lowest id stands for its image.

    Raises:
        ConfigError: the file is missing or of neither form.
    """
    try:
        refuse_changed(path)
        return _captions(path, look(path))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The captions can't be read ({type(error).__name__}: {error}).",
            where=path,
            hint="Give method.captions a JSON object {id: caption}, or COCO's captions_train2014.json.",
        ) from error


@lru_cache(maxsize=2)
def _captions(path: Path, state: tuple[int, ...]) -> Mapping[str, str]:
    found: Any = json.loads(path.read_text("utf-8"))
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
        if captions.get(name, "").strip():
            return captions[name]
    raise DataError(
        f"Clip '{clip.id}' has no caption.",
        where=path,
        hint="Add it, or use method.missing_caption=expression or empty.",
    )


def prompt_of(
    clip: Clip, expression: Expression, mode: PromptMode, captions: Path | None, missing: MissingCaption
) -> str:
    """What a transformer is prompted with: the clip's caption, the expression, or nothing.

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
