"""Global attention sinks: finding them, and what to do with them. Pure functions of token maps.

A sink is a token on which all text and all image queries put disproportionate, nearly uniform
attention (RefAM; rule and calibration: `docs/refam.md`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.attention_maps import TokenMaps, sink_statistics

Action = Literal["drop", "redistribute", "mask_logits", "keep_content"]


@dataclass(frozen=True)
class Gas:
    """The sink rule and its consequence.

    Attributes:
        enabled: look for sinks at all.
        action: ``drop``: sink tokens leave the kept set; ``redistribute``: and the other maps are
            divided by what the sinks leave at each location; ``mask_logits``: the same per layer and
            head, before averaging (reads attention a second time); ``keep_content``: like
            redistribute, but a sink that is a content word stays.
        tau_text: least text-side mass g, in multiples of a uniform share.
        tau_image: least image-side mass u, likewise.
        cv_max: greatest std / mean of the map.
        per_layer: ask the rule in each layer and go by the majority, instead of once on the averages.
    """

    enabled: bool = True
    action: Action = "drop"
    tau_text: float = 2.0
    tau_image: float = 1.5
    cv_max: float = 0.2
    per_layer: bool = False


def find_sinks(maps: TokenMaps, rule: Gas) -> tuple[int, ...]:
    """Tokens with g ≥ tau_text, u ≥ tau_image and v ≤ cv_max; never all of them.

    Without text-to-text attention (Wan) the image side decides alone.
    """
    if not rule.enabled:
        return ()
    if rule.per_layer:
        votes = np.stack([_rule(layer_3T, rule) for layer_3T in maps.layer_stats_L3T])
        flagged = votes.mean(0) > 0.5
        masses = maps.layer_stats_L3T[:, 1].mean(0)
    else:
        statistics = sink_statistics(maps.maps_TN, maps.text_TT)
        flagged, masses = _rule(statistics, rule), statistics[1]
    if flagged.all():
        flagged[int(np.argmin(masses))] = False
    return tuple(int(i) for i in np.flatnonzero(flagged))


def _rule(statistics_3T: NDArray[np.floating], rule: Gas) -> NDArray[np.bool_]:
    g, u, v = statistics_3T
    return np.asarray((np.isnan(g) | (g >= rule.tau_text)) & (u >= rule.tau_image) & (v <= rule.cv_max))


def redistribute(maps_TN: NDArray[np.float32], sinks: Collection[int]) -> NDArray[np.float32]:
    """A'[i,p] = A[i,p] / (1 − Σ_g A[g,p]) for tokens that are no sinks; sinks get 0.

    This is the softmax with the sinks' logits at −∞ where the maps are one head's softmax over tokens.
    """
    gone = sorted(sinks)
    if not gone:
        return maps_TN
    left_N = np.maximum(1 - maps_TN[gone].sum(0), np.finfo(np.float32).tiny)
    out: NDArray[np.float32] = (maps_TN / left_N).astype(np.float32)
    out[gone] = 0
    return out


def act(
    maps_TN: NDArray[np.float32], sinks: Collection[int], content: Collection[int], action: Action
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Apply an action to maps already averaged.

    Args:
        maps_TN: the token maps; for ``mask_logits`` those read with the sinks excluded.
        sinks: the tokens found.
        content: tokens of content words.
        action: see :class:`Gas`.

    Returns:
        The maps, and the tokens that must leave the kept set.
    """
    gone = tuple(sorted(sinks))
    if action == "redistribute":
        return redistribute(maps_TN, gone), gone
    if action == "keep_content":
        gone = tuple(i for i in gone if i not in set(content))
        return redistribute(maps_TN, gone), gone
    return maps_TN, gone
