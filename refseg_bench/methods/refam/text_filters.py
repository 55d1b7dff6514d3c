"""Which tokens of an expression count: stop words, specials, sinks, noun phrases. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from refseg_bench.backbones.dit.text_tokens import MARK, TokenSet


def word_set(text: str) -> frozenset[str]:
    """The words of a text, for word lists kept readable."""
    return frozenset(text.split())


#: Words that place an object in the frame; none is an NLTK stop word.
DIRECTION_WORDS = word_set(
    "left leftmost right rightmost top topmost upper uppermost bottom bottommost lower lowermost "
    "middle center centre central"
)
_STRIPPED = '.,;:!?"“”()[]{}<>…-–—'


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
