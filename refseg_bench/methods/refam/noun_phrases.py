"""The noun phrase an expression is about: spaCy's parse, or rules that need no model.

The rules read the expression from the left: leading function words and leading place phrases ("on
the left …") are skipped, then the phrase runs up to the first word that opens a modifier behind
the noun: a preposition, a relative pronoun, an auxiliary, a conjunction, "-ing" after a noun, "-ed"
before a preposition, or punctuation. The head is the last word of the phrase that is not a colour,
size, number or direction. They are made for referring expressions ("left man in a red shirt",
"top left microwave black"), not for English at large.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from refseg_bench.backbones.weights import Weights
from refseg_bench.errors import ConfigError, require
from refseg_bench.files.store_io import read_yaml
from refseg_bench.methods.spatial import DIRECTION_WORDS, word_set

log = logging.getLogger(__name__)

#: What ``auto`` looks for; it is never fetched.
DEFAULT_MODEL = "en_core_web_lg"

#: Lists of words by name, of the rules here and of the filters.
WORDS = read_yaml(Path(__file__).with_name("words.yaml"))
_DETERMINERS, _PREPOSITIONS, _OPENERS, _ING_NOUNS = (
    word_set(WORDS[name]) for name in ("determiners", "prepositions", "openers", "ing_nouns")
)
_PLACES, _MODIFIERS = (DIRECTION_WORDS | word_set(WORDS[name]) for name in ("places", "modifiers"))


@dataclass(frozen=True)
class Phrase:
    """A noun phrase by word index."""

    words: tuple[int, ...]  #: indices of its words
    head: int  #: index of its head noun
    parser: str  #: who found it


Parser = Callable[[Sequence[str]], Phrase | None]


def parse_by_rules(words: Sequence[str]) -> Phrase | None:
    """The root noun phrase of lower-cased words without outer punctuation; ``None`` for no words."""
    start = _beginning(words)
    if start is None:
        return None
    phrase: list[int] = []
    noun = False
    for index in range(start, len(words)):
        word = words[index]
        following = words[index + 1] if index + 1 < len(words) else ""
        if not word or word in _PREPOSITIONS or word in _OPENERS:
            break
        participle = word.endswith("ing") and word not in _ING_NOUNS
        if noun and (participle or (word.endswith("ed") and following in _PREPOSITIONS)):
            break
        if word in _DETERMINERS:
            if noun:
                break
            continue
        phrase.append(index)
        noun = noun or (word not in _MODIFIERS and not participle and not word.isdigit())
    if not phrase:
        return None
    nouns = [i for i in phrase if words[i] not in _MODIFIERS and not words[i].isdigit()]
    return Phrase(tuple(phrase), nouns[-1] if nouns else phrase[-1], "rules")


def _beginning(words: Sequence[str]) -> int | None:
    """Index of the first word of the phrase, behind function words and leading place phrases."""

    def skip(index: int) -> int:
        while index < len(words) and (words[index] in _DETERMINERS | _OPENERS or not words[index]):
            index += 1
        return index

    index = skip(0)
    while index < len(words) and words[index] in _PREPOSITIONS:
        after = skip(index + 1)
        place = after
        while place < len(words) and words[place] in _PLACES:
            place += 1
        # "on the left man": behind the place stands the noun; "on the left": the place is all there is.
        index = skip(place) if place < len(words) else after
        if place == after:
            break
    if index >= len(words):
        return next((i for i, w in enumerate(words) if w and w not in _DETERMINERS), None)
    return index


def spacy_parser(model: str) -> Parser:
    """A parser on an installed spaCy model.

    The phrase is the sentence root's noun chunk; if the root is no noun, the first chunk with a
    nominal subject, else the first chunk, else the first noun.

    Raises:
        ConfigError: spaCy or the model is not installed (nothing is ever fetched).
    """
    pipeline = _pipeline(model)

    def parse(words: Sequence[str]) -> Phrase | None:
        doc = pipeline(" ".join(words))
        starts, at = [], 0
        for word in words:
            starts.append(at)
            at += len(word) + 1

        def word_of(token: Any) -> int:
            return max(i for i, s in enumerate(starts) if s <= token.idx)

        chunks = list(doc.noun_chunks)
        root = next(iter(doc.sents)).root if len(doc) else None
        chosen = next((c for c in chunks if root is not None and c.root == root), None)
        chosen = chosen or next((c for c in chunks if "nsubj" in c.root.dep_), None)
        chosen = chosen or next(iter(chunks), None)
        if chosen is None:
            noun = next((t for t in doc if t.pos_ in ("NOUN", "PROPN")), None)
            return None if noun is None else Phrase((word_of(noun),), word_of(noun), f"spacy:{model}")
        return Phrase(tuple(sorted({word_of(t) for t in chosen})), word_of(chosen.root), f"spacy:{model}")

    return parse


@cache
def _pipeline(model: str) -> Any:
    require("spacy", f"The noun-phrase parser '{model}'")
    import spacy

    try:
        return spacy.load(model, exclude=["ner", "lemmatizer"])
    except OSError as error:
        raise ConfigError(
            f"The spaCy model '{model}' is not installed.",
            where="method.np.parser",
            allowed=["auto", "rules", "any installed spaCy model"],
            hint=f"python -m spacy download {model}, or use method.np.parser=rules",
        ) from error


def model_folder(name: str) -> Path | None:
    """The folder of the spaCy model that a parser of this name reads; ``None`` = it reads none."""
    if name == "rules" or find_spec("spacy") is None:
        return None
    model = DEFAULT_MODEL if name == "auto" else name
    found = find_spec(model) if model.isidentifier() else None
    if found is not None and found.origin is not None:
        return Path(found.origin).parent
    return Path(model) if Path(model).is_dir() else None


def needed(parser: str, **files: Path | None) -> tuple[Weights, ...]:
    """What a method reads beside its model: a parser's, where it has one, and files of its options."""
    files = {"parser": model_folder(parser), **files}
    if files["parser"] is None and parser not in ("auto", "rules"):
        _pipeline(parser)  # tells that it isn't installed
    return tuple(Weights(str(path), component=f"method.{n}") for n, path in files.items() if path is not None)


@cache
def noun_phrase_parser(name: str) -> Parser:
    """A parser by name.

    Args:
        name: ``rules``; the name of a spaCy model; or ``auto``: ``en_core_web_lg`` if it is installed,
            else the rules, with a warning. Every prediction's details say which one spoke.
    """
    if name == "auto":
        if model_folder(name) is not None:
            return spacy_parser(DEFAULT_MODEL)
        log.warning(
            "spaCy with %s is not installed: noun phrases come from the built-in rules.", DEFAULT_MODEL
        )
        return parse_by_rules
    return parse_by_rules if name == "rules" else spacy_parser(name)
