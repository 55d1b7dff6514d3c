"""Which tokens of an expression count: stop words, specials, noun phrases, and global attention sinks.

Stop words are the NLTK English list as data, spaCy's if installed, or a file of one's own. A sink is a
token on which all text and all image queries put disproportionate, nearly uniform attention (RefAM;
rule and calibration: `docs/refam.md`). Pure functions of tokens and their maps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refseg_bench.backbones.attention_maps import TokenMaps, sink_statistics
from refseg_bench.backbones.dit.text import MARK, TokenSet
from refseg_bench.backbones.weights import refuse_changed
from refseg_bench.errors import ConfigError, require
from refseg_bench.methods.refam.noun_phrases import WORDS
from refseg_bench.methods.spatial import DIRECTION_WORDS, word_set

Action = Literal["drop", "redistribute", "mask_logits", "keep_content"]

#: The 179 words of NLTK's English stop-word corpus.
NLTK_ENGLISH = word_set(WORDS["stop"])
_STRIPPED = '.,;:!?"“”()[]{}<>…-–—'


def stop_words(name: str) -> frozenset[str]:
    """A stop list: ``nltk``, ``spacy``, or that of a text file with one word a line.

    Raises:
        ConfigError: no such list, an empty one, or the package is missing.
    """
    if name == "nltk":
        return NLTK_ENGLISH
    if name == "spacy":
        require("spacy", "The stop list 'spacy'")
        from spacy.lang.en.stop_words import STOP_WORDS

        return frozenset(STOP_WORDS)
    try:
        refuse_changed(Path(name))
        lines = Path(name).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The stop list can't be read ({type(error).__name__}).",
            where=name or "method.stopwords",
            allowed=["nltk", "spacy", "a text file with one word a line"],
        ) from error
    if not (found := frozenset(word.strip().lower() for word in lines if word.strip())):
        hint = "To drop no word: method.stopwords=nltk method.filter_stopwords=false."
        raise ConfigError("The stop list is empty.", where=name, hint=hint)
    return found


def surface_words(tokens: TokenSet) -> list[str]:
    """The expression's words as its tokens count them, lower-cased, outer punctuation stripped.

    The text's own words where the tokenizer agrees about their number, else pieces put together.
    """
    indices = [t.word for t in tokens.tokens if t.string == 0 and t.word >= 0]
    count = max(indices, default=-1) + 1
    words = tokens.words
    if len(words) != count:
        words = [
            "".join(t.piece for t in tokens.tokens if t.string == 0 and t.word == w).replace(MARK, "")
            for w in range(count)
        ]
    return [word.lower().strip(_STRIPPED).strip("'").replace("’", "'") for word in words]


def content_tokens(tokens: TokenSet, stop_words: Collection[str]) -> tuple[int, ...]:
    """Expression tokens that belong to a word outside the stop list (no specials, no punctuation)."""
    words = surface_words(tokens)
    return tuple(
        i
        for i, token in enumerate(tokens.tokens)
        if token.string == 0 and token.kind == "word" and words[token.word] not in stop_words
    )


def kept_tokens(
    tokens: TokenSet,
    *,
    stop_words: Collection[str],
    dropped: Collection[int] = (),
    drop_direction_words: bool = False,
) -> tuple[int, ...]:
    """The kept set K: the expression's tokens less specials, punctuation, stop words and sinks.

    If nothing is left, all expression tokens but specials and sinks; if that is empty too, whatever
    the expression has, first without its end token (RefAM, arXiv 2509.22650).

    Args:
        tokens: the extraction tokens.
        stop_words: words to drop; empty to keep them.
        dropped: token indices to drop (sinks).
        drop_direction_words: also drop "left", "top" …
    """
    words = surface_words(tokens)
    gone = set(dropped)
    own = [(i, t) for i, t in enumerate(tokens.tokens) if t.string == 0]
    plain = [i for i, t in own if t.kind == "word"]
    unwanted = set(stop_words) | (DIRECTION_WORDS if drop_direction_words else set())
    kept = [i for i in plain if words[tokens.tokens[i].word] not in unwanted and i not in gone]
    for fallback in (
        [i for i in plain if i not in gone],
        plain,
        [i for i, t in own if t.kind != "end"],
        [i for i, _ in own],
    ):
        kept = kept or fallback
    return tuple(kept)


def tokens_of_words(tokens: TokenSet, words: Collection[int]) -> tuple[int, ...]:
    """Expression tokens of the given words (by index)."""
    return tuple(i for i, t in enumerate(tokens.tokens) if t.string == 0 and t.word in set(words))


def intersect(kept: Sequence[int], phrase: Collection[int]) -> tuple[int, ...]:
    """K ∩ phrase, or K unchanged where that is empty."""
    both = tuple(i for i in kept if i in set(phrase))
    return both or tuple(kept)


# ── sinks ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Gas:
    """The sink rule and its consequence."""

    enabled: bool = True  #: look for sinks at all
    #: ``drop``: sink tokens leave the kept set; ``redistribute``: and the other maps are divided by what the
    #: sinks leave at each location; ``mask_logits``: the same per layer and head, before averaging (reads
    #: attention a second time); ``keep_content``: like redistribute, but a sink that is a content word stays.
    action: Action = "drop"
    tau_text: float = 2.0  #: least text-side mass g, in multiples of a uniform share
    tau_image: float = 1.5  #: least image-side mass u, likewise
    cv_max: float = 0.2  #: greatest std / mean of the map
    #: Ask the rule in each layer and go by the majority, instead of once on the averages.
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
