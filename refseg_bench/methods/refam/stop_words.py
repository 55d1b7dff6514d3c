"""Stop words: the NLTK English list as data, spaCy's if installed, or a file of one's own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from refseg_bench.errors import ConfigError, require
from refseg_bench.methods.refam.text_filters import word_set

#: The 179 words of NLTK's English stop-word corpus (version with contractions, 2017–2024).
NLTK_ENGLISH = word_set(
    """
    i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he
    him his himself she she's her hers herself it it's its itself they them their theirs themselves what
    which who whom this that that'll these those am is are was were be been being have has had having do
    does did doing a an the and but if or because as until while of at by for with about against between
    into through during before after above below to from up down in out on off over under again further
    then once here there when where why how all any both each few more most other some such no nor not
    only own same so than too very s t can will just don don't should should've now d ll m o re ve y ain
    aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven haven't isn isn't
    ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't
    won won't wouldn wouldn't
    """
)


@cache
def stop_words(name: str) -> frozenset[str]:
    """A stop list by name or file.

    Args:
        name: ``nltk``, ``spacy``, or the path of a text file with one word a line.

    Raises:
        ConfigError: no such list, or the package is missing.
    """
    if name == "nltk":
        return NLTK_ENGLISH
    if name == "spacy":
        require("spacy", "The stop list 'spacy'")
        from spacy.lang.en.stop_words import STOP_WORDS

        return frozenset(STOP_WORDS)
    try:
        lines = Path(name).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The stop list can't be read ({type(error).__name__}).",
            where=name,
            allowed=["nltk", "spacy", "a text file with one word a line"],
        ) from error
    return frozenset(word.strip().lower() for word in lines if word.strip())
