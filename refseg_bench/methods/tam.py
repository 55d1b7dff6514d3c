"""TAM, token activation maps: what a language model's answer sees of a picture, less what its context sees
(arXiv 2506.23270).

A token's map is its own logit at every visual token. Earlier tokens light the same places, so their maps are
taken off; what is left is brought to a range with the token's scores in the text, and smoothed by rank. The
paper explains models; that the maps of an answer's tokens stand for an expression, and how they prompt a
segmenter, is not stated there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.base import RolloutSettings, TokenActivations
from refseg_bench.cache import Entry
from refseg_bench.methods.heat import HeatMethod
from refseg_bench.methods.pointing import FloatHW
from refseg_bench.types import Clip, FloatTHW

#: Keeps a weighted mean defined where no earlier token has any score.
_TINY = 1e-12


@dataclass
class TokenActivationMaps(HeatMethod):
    """The mean map of the tokens of the model's answer (which tokens: not stated)."""

    knows: ClassVar[str] = "what a multimodal language model's answer sees, less what its context sees"
    cache_folder: ClassVar[str] = "tam"
    read_with: ClassVar[tuple[str, ...]] = ()

    #: Asks for the name of what is meant (not stated).
    question: str = 'What in the picture is meant by "{sent}"? Answer with a single word.'

    def read(self, clip: Clip, frames: Sequence[int], prompts: Sequence[str]) -> list[Entry]:
        """The answer's map on every frame ``(T, h, w)``, and the answers."""
        with self.backbone.open(clip.load(frames), self.visual_settings(), RolloutSettings()) as model:
            seen = [model.activations(place, prompts) for place in range(len(frames))]
        return [
            {
                "maps": np.stack([answer_map(one) for one in per_frame]),
                "answers": json.dumps([one.text for one in per_frame]),
            }
            for per_frame in zip(*seen, strict=True)
        ]

    def heat(self, entry: Entry) -> FloatTHW:
        """As it was read."""
        return np.asarray(entry["maps"], np.float32)

    def told(self, entry: Entry) -> dict[str, Any]:
        """The answers, frame by frame."""
        return {"answers": json.loads(str(entry["answers"]))}


def answer_map(seen: TokenActivations) -> FloatHW:
    """The mean of the maps ``(h, w)`` of an answer's tokens; 0 of an answer without any."""
    maps_Nhw = seen.maps_NThw.reshape(len(seen.ids), *seen.maps_NThw.shape[-2:])
    tokens = range(len(seen.ids))[seen.answer]
    if not tokens:
        return np.zeros(maps_Nhw.shape[1:], np.float32)
    found = [token_map(maps_Nhw, seen.scores_NN, seen.ids, one) for one in tokens]
    return np.asarray(np.stack(found).mean(axis=0), np.float32)


def token_map(
    maps_Nhw: NDArray[np.float32], scores_NN: NDArray[np.float32], ids: Sequence[int], token: int
) -> FloatHW:
    """The activation map of one token, in [0, 1].

    Args:
        maps_Nhw: score of every text token at every visual token.
        scores_NN: of every text token (column) at every text token (row).
        ids: the tokens; those like this one take nothing off.
        token: which.
    """
    own_hw = maps_Nhw[token].astype(np.float64)
    text_M = scores_NN[:token, token].astype(np.float64)
    other = np.array([one != ids[token] for one in ids[:token]], bool)
    weights_M = text_M * other
    context_hw = np.einsum(
        "m,mhw->hw", weights_M / (weights_M.sum() + _TINY), maps_Nhw[:token].astype(np.float64)
    )
    # The factor at which the context's map comes closest to the token's own.
    factor = float((own_hw * context_hw).sum() / ((context_hw * context_hw).sum() + _TINY))
    left_hw = own_hw - factor * context_hw
    # What float32 can't tell from 0 is none of the token's own, or rounding would point somewhere.
    left_hw[left_hw < 1e-6 * own_hw.max()] = 0.0
    together = np.concatenate([left_hw.ravel(), text_M])
    low, high = together.min(), together.max()
    if high <= low:
        return np.zeros(own_hw.shape, np.float32)
    return rank_gaussian((left_hw - low) / (high - low)).astype(np.float32)


def rank_gaussian(map_hw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each cell's 3 x 3 neighbours by rank, weighted by a Gaussian around the median's rank.

    Its sigma is their deviation over their mean: where they are alike the median stands, where one of them
    sticks out the ranks are mixed. The border is reflected. Cells among zeros are 0.

    >>> import numpy as np
    >>> lone = np.zeros((5, 5))
    >>> lone[2, 2] = 1.0
    >>> bool(rank_gaussian(lone).max() < 0.3), rank_gaussian(np.full((3, 3), 0.5)).tolist()[0]
    (True, [0.5, 0.5, 0.5])
    """
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(map_hw, 1, "reflect"), (3, 3))
    ranked_hw9 = np.sort(windows.reshape(*map_hw.shape, 9), axis=-1)
    mean_hw, deviation_hw = ranked_hw9.mean(axis=-1), ranked_hw9.std(axis=-1)
    sigma_hw1 = (deviation_hw / np.maximum(mean_hw, _TINY))[..., None]
    offset_9 = np.arange(9) - 4.0
    weights = np.where(
        sigma_hw1 > 0, np.exp(-(offset_9**2) / (2 * np.maximum(sigma_hw1, 1e-6) ** 2)), offset_9 == 0
    )
    mixed_hw = (ranked_hw9 * weights).sum(axis=-1) / weights.sum(axis=-1)
    return np.where(mean_hw > 0, mixed_hw, 0.0)
