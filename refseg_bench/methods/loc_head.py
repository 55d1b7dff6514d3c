"""Localization heads: a few attention heads of a language model show where it looks (arXiv 2503.06287).

The attention of a prompt's last token to a frame's tokens is read from a handful of heads, each map is
smoothed, and their sum gives a box for the segmenter. Which heads is found once per model (`find_heads`)
and belongs to the model's own YAML. What the released code leaves open is an option, marked "not stated".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.base import RolloutSettings
from refseg_bench.cache import Entry, fingerprint
from refseg_bench.config.schema import refuse_outside
from refseg_bench.errors import ConfigError
from refseg_bench.methods.heat import HeatMethod
from refseg_bench.methods.pointing import FloatHW
from refseg_bench.segmenters.base import middles
from refseg_bench.types import Clip, Expression, FloatTHW


@dataclass
class LocHead(HeatMethod):
    """The summed maps of a model's localization heads."""

    knows: ClassVar[str] = "where a few heads of a multimodal language model look"
    cache_folder: ClassVar[str] = "loc_head"
    read_with: ClassVar[tuple[str, ...]] = ("chosen",)

    #: (layer, head) pairs; by default those of the backbone's YAML.
    heads: list[list[int]] = field(default_factory=list)
    n_heads: int = 3  #: how many of them, from the first (3 in the paper, as others cite it)
    sigma: float = 1.0  #: Gaussian smoothing of each head's map, in cells; 0 = none (not stated)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside(self, 1, math.inf, "n_heads")
        refuse_outside(self, 0, 100, "sigma")

    @property
    def chosen(self) -> list[tuple[int, int]]:
        """The heads that are read.

        Raises:
            ConfigError: none is known, or they are no pairs of numbers of the model's layers.
        """
        if not self.heads:
            raise ConfigError(
                "No localization heads are known of this model.",
                where="method.heads",
                hint="`refseg heads backbone=NAME dataset=refcoco_unc dataset.split=train` finds them; put "
                "what it prints on the command line (backbone.loc_heads=…) or into the backbone's YAML.",
            )
        layers, known = self.backbone.layers(), [tuple(pair) for pair in self.heads]
        for pair in known:
            if len(pair) != 2 or not (0 <= pair[0] < layers and pair[1] >= 0):
                raise ConfigError(
                    f"{list(pair)} is no head of this model.",
                    where="method.heads",
                    allowed=[f"[layer, head], layer 0 … {layers - 1}"],
                )
        return [(layer, head) for layer, head in known][: self.n_heads]

    def read(self, clip: Clip, frames: Sequence[int], prompts: Sequence[str]) -> list[Entry]:
        """The maps of the heads on every frame ``(T, heads, h, w)``."""
        chosen = self.chosen
        first, last = min(layer for layer, _ in chosen), max(layer for layer, _ in chosen)
        rollout = RolloutSettings(start=first, end=last + 1)
        with self.backbone.open(clip.load(frames), self.visual_settings(), rollout) as model:
            seen = [model.heads(place, prompts, chosen) for place in range(len(frames))]
        return [{"maps": np.stack(maps)} for maps in zip(*seen, strict=True)]

    def heat(self, entry: Entry) -> FloatTHW:
        """The sum over the heads, each smoothed."""
        maps_TKhw = np.asarray(entry["maps"], np.float32)
        if self.sigma > 0:
            smooth = partial(cv2.GaussianBlur, ksize=(0, 0), sigmaX=self.sigma, borderType=cv2.BORDER_REFLECT)
            flat = maps_TKhw.reshape(-1, *maps_TKhw.shape[2:])
            maps_TKhw = np.stack([*map(smooth, flat)]).reshape(maps_TKhw.shape)
        return np.asarray(maps_TKhw.sum(axis=1), np.float32)

    def told(self, entry: Entry) -> dict[str, Any]:
        """The heads."""
        return {"heads": [list(pair) for pair in self.chosen]}


# ── which heads localize: the criteria of the released code ──────────────────

# Over pairs of picture and expression, each head is known by how much of the last token's attention goes to
# the picture (criterion 1) and by how concentrated that is (criterion 2). Axes: ``L`` layers, ``H`` heads.
# The two numbers of a head are means over the pairs (not stated).

FloatLH = NDArray[np.floating]
#: What counts of a map, less its mean, for criterion 2.
_ABOVE = 0.001
#: Which heads pass criterion 1: ``sum`` = those whose sum is at least the elbow's; ``flat_index`` = as the
#: released code has it, those whose number ``layer * H + head`` is at least the elbow head's.
Rule = Literal["sum", "flat_index"]


@dataclass(frozen=True)
class Head:
    """One head that passed criterion 1, by what was measured."""

    layer: int
    head: int
    sum: float  #: attention to the picture, 0 … 1
    entropy: float  #: of its places; less is more concentrated
    bottom: float  #: share of its mass in the picture's bottom row

    @property
    def flagged(self) -> bool:
        """Whether most of its mass lies in the bottom row, where sinks are (how much: not stated)."""
        return self.bottom > 0.5


def elbow(sums_N: FloatLH) -> int:
    """The index of the value at the elbow: sorted, it lies farthest from the chord between the ends.

    >>> import numpy as np
    >>> elbow(np.array([0.1, 0.9, 0.11, 0.2, 1.0, 0.12]))
    3
    """
    order = np.argsort(-sums_N, kind="stable")
    values, places = sums_N[order], np.arange(len(order))
    # Distance to the chord up to a factor; how the axes are scaled doesn't move the farthest.
    away = np.abs((values - values[0]) * (len(order) - 1) - places * (values[-1] - values[0]))
    return int(order[int(np.argmax(away))])


def passing(sums_LH: FloatLH, rule: Rule = "sum") -> NDArray[np.bool_]:
    """Criterion 1: which heads look at the picture.

    >>> import numpy as np
    >>> passing(np.array([[0.1, 0.9], [0.11, 0.2], [1.0, 0.12]])).tolist()
    [[False, True], [False, True], [True, False]]
    >>> passing(np.array([[0.1, 0.9], [0.11, 0.2], [1.0, 0.12]]), "flat_index").tolist()
    [[False, False], [False, True], [True, True]]
    """
    at = elbow(sums_LH.ravel())
    if rule == "sum":
        return np.asarray(sums_LH >= sums_LH.flat[at])
    return np.arange(sums_LH.size).reshape(sums_LH.shape) >= at


def spatial_entropy(map_hw: FloatHW) -> tuple[float, float]:
    """Criterion 2: the entropy of a map's places, and the share of their mass in the bottom row.

    Less its mean, cut at 0, cells above 0.001 form 8-connected places; each has its share of their mass.
    A map without any is the worst there is: as if every cell were a place of its own.

    >>> import numpy as np
    >>> one, two = np.zeros((5, 5), np.float32), np.zeros((5, 5), np.float32)
    >>> one[4, 2] = two[0, 0] = two[3, 3] = 1
    >>> spatial_entropy(one), round(spatial_entropy(two)[0], 4)
    ((0.0, 1.0), 0.6931)
    """
    above_hw = np.maximum(np.asarray(map_hw, np.float64) - float(map_hw.mean(dtype=np.float64)), 0)
    places, labels_hw = cv2.connectedComponents((above_hw > _ABOVE).astype(np.uint8), connectivity=8)
    if places == 1:
        return float(np.log(map_hw.size)), 0.0
    mass = np.bincount(labels_hw.ravel(), above_hw.ravel(), places)[1:]
    share = mass / mass.sum()
    bottom = float(above_hw[-1][labels_hw[-1] > 0].sum() / mass.sum())
    return float(abs((share * np.log(share)).sum())), bottom


def ranked(sums_LH: FloatLH, entropies_LH: FloatLH, bottoms_LH: FloatLH, rule: Rule = "sum") -> list[Head]:
    """The heads that pass criterion 1 by ascending entropy; those in the bottom row last.

    That flagged heads stand back is not stated.
    """
    found = [
        Head(*pair, *(float(values[pair]) for values in (sums_LH, entropies_LH, bottoms_LH)))
        for pair in ((int(layer), int(head)) for layer, head in np.argwhere(passing(sums_LH, rule)))
    ]
    return sorted(found, key=lambda one: (one.flagged, one.entropy))


def measured(
    method: LocHead, pairs: Iterable[tuple[Clip, Expression]]
) -> Iterator[tuple[FloatLH, FloatLH, FloatLH]]:
    """Per pair, of every head: its sum, entropy and bottom share. Kept in the method's cache.

    Of a clip its middle frame is taken.
    """
    model = method.backbone
    for clip, expression in pairs:
        (frame,) = middles(len(clip), 1)
        prompt, key = method.asked(expression.text), dict[str, Any]()

        def heads(prompts: list[str], clip: Clip = clip, frame: int = frame) -> list[Entry]:
            settings = RolloutSettings(start=0, end=0)
            with model.open(clip.load([frame]), method.visual_settings(), settings) as session:
                (maps_Khw,) = session.heads(0, prompts)
            both = np.array([spatial_entropy(map_hw) for map_hw in maps_Khw])
            found_3K = np.stack([maps_Khw.sum(axis=(1, 2), dtype=np.float64), *both.T])
            return [{"heads": found_3K.reshape(3, model.layers(), -1)}]

        if method.cache.root is not None:
            key = {
                "stage": "heads",
                "version": method.version,
                "model": model.identity(),
                "visual": vars(method.visual_settings()),
                "frame": fingerprint([clip.frame_paths[frame]], upright=clip.upright),
            }
        entry = method.cache.through(key, [prompt], heads)[prompt]
        sums_LH, entropies_LH, bottoms_LH = np.asarray(entry["heads"], np.float64)
        yield sums_LH, entropies_LH, bottoms_LH


def find_heads(method: LocHead, pairs: Iterable[tuple[Clip, Expression]], rule: Rule = "sum") -> list[Head]:
    """The heads of a model that localize, best first.

    Raises:
        ConfigError: there is no pair.
    """
    total, count = np.zeros(()), 0
    for found in measured(method, pairs):
        total, count = total + np.stack(found), count + 1
    if not count:
        raise ConfigError("There is no expression to look for.", where="dataset")
    sums_LH, entropies_LH, bottoms_LH = total / count
    return ranked(sums_LH, entropies_LH, bottoms_LH, rule)
