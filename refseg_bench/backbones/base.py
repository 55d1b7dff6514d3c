"""What a method asks of a multimodal language model that grounds: a clip opened, attention read.

Interfaces and plain data only, free of torch, so that methods and tests need no model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeAlias

from refseg_bench.config.schema import Component
from refseg_bench.errors import ConfigError
from refseg_bench.types import FloatTHW, Uint8THWC

#: How the rollout weights heads, in two spellings of the same three ways:
#: ``v_max``: the mean over rows of the largest attention to a visual key;
#: ``rollout_max`` or ``max_all_keys``: to any key; ``rollout`` or ``plain``: all heads alike.
HeadWeights: TypeAlias = Literal["v_max", "rollout_max", "rollout", "max_all_keys", "plain"]
_SAME_AS: dict[str, str] = {"rollout": "plain", "rollout_max": "max_all_keys"}

#: What a prompt looks at: the sampled frames as one video, or one of them (its position in the sample).
Where = Literal["video"] | int


def weighting(name: HeadWeights) -> str:
    """The one spelling of a head weighting that cache keys and code use (that of Table 5a)."""
    return _SAME_AS.get(name, name)


def shared_pass(device: str, size: int) -> int:
    """How many of ``size`` prompts may go through a model together.

    On a CPU each goes alone, at most in all its frames at once: the last digits of a row's sums depend there
    on the rows computed with it, and a prediction must depend on its sample alone.

    >>> shared_pass("cpu", 8), shared_pass("cuda", 8)
    (1, 8)
    """
    return 1 if device == "cpu" else max(1, size)


def layer_range(start: int, end: int, n_layers: int) -> range:
    """Layers ``start ≤ l < end`` of a model. ``start`` -1 = the middle one, ``end`` ≤ 0 = all of the rest.

    Raises:
        ConfigError: the range is empty or leaves the model.
    """
    start = n_layers // 2 if start == -1 else start
    stop = n_layers if end <= 0 else end
    if not 0 <= start < stop <= n_layers:
        raise ConfigError(
            f"Layers {start}…{stop} are no range in a model of {n_layers} layers.",
            allowed=[f"0 <= start < end <= {n_layers}"],
            hint="Set method.start_layer and method.end_layer (-1 = last).",
        )
    return range(start, stop)


@dataclass(frozen=True)
class VisualSettings:
    """How frames become visual tokens. Part of every cache key."""

    video_tokens: int = 400  #: most tokens per frame of the video branch (Qwen families)
    frame_scale: int = 2  #: size of a frame's token grid over the video's, per axis (Qwen families)
    frame_tokens: int = -1  #: most tokens of a single frame instead of ``frame_scale``; -1 = off (Qwen)
    max_tiles: int = 12  #: most tiles of a single frame (InternVL)
    multiscale: bool = True  #: False gives single frames the video branch's resolution: scale 1, one tile


@dataclass(frozen=True)
class RolloutSettings:
    """Which attention is read and how it is rolled out. Part of every cache key."""

    mode: HeadWeights = "v_max"  #: head weighting, see :data:`HeadWeights`
    start: int = -1  #: first layer; -1 = the middle one
    end: int = -1  #: one past the last layer; ≤ 0 = all of the rest
    residual: float = 0.5  #: share of the identity in each layer
    precision: Literal["float32", "float64", "bfloat16"] = "float32"  #: of scores, products and the row
    dense: bool = False  #: build every matrix (small inputs only)


@dataclass(frozen=True, eq=False)
class PromptAttention:
    """What one prompt gave at one place."""

    #: Attention of the prompt's last token to each visual token, on the native grid (T = 1 for a frame),
    #: float32, raw scale.
    map_Thw: FloatTHW
    answer: str | None  #: the decoded answer, or ``None`` if none was asked for


@dataclass(frozen=True, eq=False)
class TokenActivations:
    """The tokens of a prompt and of its answer, before the picture and before each other.

    A token's score at a place is its logit there (the place's last hidden state through the output layer),
    cut at 0. Axis ``N``: all text tokens behind the visual block, in order.
    """

    maps_NThw: FloatTHW  #: each token's score at every visual token
    scores_NN: FloatTHW  #: each token's (column) score at every text token (row)
    ids: tuple[int, ...]  #: the token ids
    answer: slice  #: where the answer's own tokens are
    text: str  #: the decoded answer


@dataclass
class MLLMCounters:
    """What a model has done so far; goes into the run record."""

    passes: int = 0  #: of the language model, over whatever many prompts
    visual_prefixes: int = 0  #: visual blocks run through vision tower and language model
    prompts: int = 0  #: prompts run on top of a prefix (or alone)
    prompt_tokens: int = 0  #: their tokens, the prefix not counted
    generated_tokens: int = 0  #: tokens decoded
    seconds: dict[str, float] = field(default_factory=dict)  #: wall time by stage

    @property
    def calls(self) -> int:
        """Prefixes and prompts run: zero where everything came from the cache."""
        return self.visual_prefixes + self.prompts


class MLLMSession(ABC):
    """Sampled frames opened by a model."""

    @abstractmethod
    def read(self, where: Where, prompts: Sequence[str], *, answer: bool) -> list[PromptAttention]:
        """Attention (and answers) of several prompts that look at the same thing.

        Args:
            where: the video or one frame.
            prompts: texts put after the visual block.
            answer: decode each prompt's answer too; without it nothing is computed past the last
                layer that is read.
        """

    def read_places(
        self, places: Sequence[Where], prompts: Sequence[str], *, answer: bool
    ) -> list[list[PromptAttention]]:
        """What :meth:`read` gives at each of several places; a model may read some of them together."""
        return [self.read(where, prompts, answer=answer) for where in places]

    @abstractmethod
    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Answers to text-only prompts."""

    def heads(
        self, where: Where, prompts: Sequence[str], which: Sequence[tuple[int, int]] | None = None
    ) -> list[FloatTHW]:
        """Attention of each prompt's last token to the visual tokens, head by head, unmixed.

        Args:
            where: the video or one frame.
            prompts: texts put after the visual block.
            which: (layer, head) pairs inside the session's layers; by default all, layer by layer.

        Returns:
            Per prompt ``(heads * T, h, w)``, the T slices of a head together; each row of attention sums
            to at most 1 over its slices.

        Raises:
            ConfigError: the model tells no heads apart, or has no such head.
        """
        raise ConfigError(f"{type(self).__name__} tells no heads apart.", where="backbone")

    def activations(self, where: Where, prompts: Sequence[str]) -> list[TokenActivations]:
        """What every token of each prompt and of its answer has of the picture, by the output layer.

        Raises:
            ConfigError: the model's output layer can't be read.
        """
        raise ConfigError(f"{type(self).__name__} shows no output layer.", where="backbone")

    def close(self) -> None:  # noqa: B027
        """Free what the session holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Backbone(Component):
    """A model that methods read attention from."""

    kind: ClassVar[str] = "backbone"


class GroundingMLLM(Backbone):
    """A multimodal language model that can be asked where it looks."""

    counters: MLLMCounters

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything of the model that its outputs depend on, for cache keys. Loads no weights."""

    @abstractmethod
    def layers(self) -> int:
        """Number of language-model layers. Loads no weights."""

    @abstractmethod
    def open(self, frames_THWC: Uint8THWC, visual: VisualSettings, rollout: RolloutSettings) -> MLLMSession:
        """Start a session on the sampled frames of a clip."""
