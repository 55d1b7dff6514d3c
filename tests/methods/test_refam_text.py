"""The text side: T5 token layouts, filters, noun phrases, captions."""

import json

import pytest

from refseg_bench.backbones.dit.text import kind_of, tokenise
from refseg_bench.errors import ConfigError, DataError
from refseg_bench.methods.refam.filters import (
    NLTK_ENGLISH,
    content_tokens,
    intersect,
    kept_tokens,
    stop_words,
    surface_words,
    tokens_of_words,
)
from refseg_bench.methods.refam.noun_phrases import noun_phrase_parser, parse_by_rules
from refseg_bench.methods.refam.token_maps import caption_of
from refseg_bench.types import Clip
from tests.backbones import tiny_dits
from tests.fakes import set_back


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_dits.tokenizer()


TEASER = "A largest orange goldfish"


def test_teaser_without_magnets(tokenizer):
    tokens = tokenise(tokenizer, TEASER)
    assert tokens.pieces == ["▁", "a", "▁largest", "▁orange", "▁gold", "fish", "</s>"]
    assert tokens.strings[0][-1] == 1
    assert [t.word for t in tokens.tokens] == [0, 0, 1, 2, 3, 3, -1]
    # the figure's grey tokens: lone mark, stop word, end token; with the sink at 0
    assert kept_tokens(tokens, stop_words=NLTK_ENGLISH, dropped=(0,)) == (2, 3, 4, 5)
    # its "without magnets" average keeps the stop word "a"
    assert kept_tokens(tokens, stop_words=(), dropped=(0,)) == (1, 2, 3, 4, 5)


def test_teaser_with_magnets(tokenizer):
    tokens = tokenise(tokenizer, TEASER, ["_", "with", "a", "the", "pink"])
    assert tokens.pieces == [
        *["▁", "a", "▁largest", "▁orange", "▁gold", "fish", "</s>"],
        *["▁", "_", "</s>"], *["▁with", "</s>"], *["▁", "a", "</s>"], *["▁the", "</s>"], *["▁pink", "</s>"],
    ]  # fmt: skip
    assert len(tokens) == 19
    assert [i for i, t in enumerate(tokens.tokens) if t.kind == "end"] == [6, 9, 11, 14, 16, 18]
    assert kept_tokens(tokens, stop_words=NLTK_ENGLISH, dropped=(1, 16)) == (2, 3, 4, 5)
    assert tokens.expression_tokens == tuple(range(7))
    firsts = tokens.firsts()
    assert firsts.pieces == ["▁", "▁", "▁with", "▁", "▁the", "▁pink"]
    assert firsts.strings == tokens.strings


def test_emergence_layout_has_an_end_token_per_string(tokenizer):
    """Seven separately encoded magnets of lengths 3, 3, 3, 2, 2, 3, 3 behind seven expression tokens."""
    tokens = tokenise(tokenizer, "white cow with brown patches of", [".", ",", "_", "with", "the", "a", "'"])
    ends = [i for i, t in enumerate(tokens.tokens) if t.kind == "end"]
    assert ends == [6, 9, 12, 15, 17, 19, 22, 25]
    assert len(tokens) == 26


def test_joined_magnets_share_one_end_token(tokenizer):
    tokens = tokenise(tokenizer, TEASER, ["_", "with", "pink"], encoding="joined")
    assert tokens.pieces == [
        *["▁", "a", "▁largest", "▁orange", "▁gold", "fish"], *["▁", "_"], "▁with", "▁pink", "</s>",
    ]  # fmt: skip
    assert [t.string for t in tokens.tokens] == [0] * 6 + [1, 1, 2, 3, 3]
    assert len(tokens.strings) == 1
    assert not tokens.separable
    assert kept_tokens(tokens, stop_words=NLTK_ENGLISH) == (2, 3, 4, 5)


def test_no_padding_and_lower_case(tokenizer):
    upper = tokenise(tokenizer, "  A   CAT ", lowercase=True)
    assert upper == tokenise(tokenizer, "a cat")
    assert 0 not in [t.id for t in upper.tokens]
    assert tokenise(tokenizer, "A cat", lowercase=False).expression == "A cat"


def test_a_300_token_expression(tokenizer):
    long = " ".join(["cat"] * 300)
    whole = tokenise(tokenizer, long, ["with"], limit=512)
    assert len(whole) == 303
    assert whole.truncated == 0
    cut = tokenise(tokenizer, long, ["with"], limit=256)
    assert len(cut) == 256
    assert cut.truncated == 47
    assert cut.pieces[-4:] == ["▁cat", "</s>", "▁with", "</s>"]
    assert [len(s) for s in cut.strings] == [254, 2]
    with pytest.raises(DataError, match="303 tokens, the model takes 256"):
        tokenise(tokenizer, long, ["with"], limit=256, overlong="error")


def test_stop_words_only_keeps_all_words_but_specials_and_sinks(tokenizer):
    tokens = tokenise(tokenizer, "the a", ["with"])
    assert tokens.pieces[:4] == ["▁the", "▁", "a", "</s>"]
    assert kept_tokens(tokens, stop_words=NLTK_ENGLISH) == (0, 2)
    assert kept_tokens(tokens, stop_words=NLTK_ENGLISH, dropped=(0,)) == (2,)
    assert kept_tokens(tokens, stop_words=NLTK_ENGLISH, dropped=(0, 2)) == (0, 2)


def test_punctuation_only_falls_back_to_what_there_is(tokenizer):
    tokens = tokenise(tokenizer, ". ,")
    assert kept_tokens(tokens, stop_words=NLTK_ENGLISH) == (0, 1, 2, 3)


def test_contractions_and_punctuation(tokenizer):
    tokens = tokenise(tokenizer, "cat, don't top.")
    assert surface_words(tokens) == ["cat", "don't", "top"]
    kept = kept_tokens(tokens, stop_words=NLTK_ENGLISH)
    assert [tokens.pieces[i] for i in kept] == ["▁cat", "▁top"]
    assert kept_tokens(tokens, stop_words=NLTK_ENGLISH, drop_direction_words=True) == kept[:1]
    assert content_tokens(tokens, NLTK_ENGLISH) == kept


@pytest.mark.parametrize(
    ("piece", "kind"),
    [("▁", "space"), (",", "punctuation"), ("▁…", "punctuation"), ("▁a", "word"), ("7", "word")],
)
def test_kinds(piece, kind):
    assert kind_of(piece) == kind


def rewrite(path, text):
    """In place, as long as before and with its time of change, as ``rsync --inplace -t`` may do it."""
    before = path.stat()
    path.write_text(text)
    set_back(path, before)
    assert path.stat().st_size == before.st_size


def test_the_nltk_list_and_what_it_does_to_directions(tmp_path):
    assert len(NLTK_ENGLISH) == 179
    assert not {"left", "right", "top", "bottom", "middle"} & NLTK_ENGLISH
    assert {"above", "below", "under", "over", "up", "down", "between"} <= NLTK_ENGLISH
    own = tmp_path / "stop.txt"
    own.write_text("cat\n\nDog\n")
    assert stop_words(str(own)) == {"cat", "dog"}
    rewrite(own, "cow\n\nDog\n")
    assert stop_words(str(own)) == {"cow", "dog"}
    with pytest.raises(ConfigError, match="can't be read"):
        stop_words(str(tmp_path / "absent.txt"))
    own.write_text("\n")
    with pytest.raises(ConfigError, match="The stop list is empty"):
        stop_words(str(own))


@pytest.mark.parametrize(
    ("text", "chunk", "head"),
    [
        ("man in a red shirt", "man", "man"),
        ("the left guy in red", "left guy", "guy"),
        ("woman holding the umbrella", "woman", "woman"),
        ("a largest orange goldfish", "largest orange goldfish", "goldfish"),
        ("top left microwave black", "top left microwave black", "microwave"),
        ("on the left the man with a hat", "man", "man"),
        ("in the middle", "middle", "middle"),
        ("the striped one that moves left", "striped one", "one"),
        ("man dressed in black", "man", "man"),
        ("parked car next to the bus", "parked car", "car"),
        ("what is the thing that hides behind the other", "thing", "thing"),
        ("the", None, None),
        ("", None, None),
    ],
)
def test_noun_phrases_by_rules(text, chunk, head):
    words = text.split()
    phrase = parse_by_rules(words)
    if chunk is None:
        assert phrase is None
        return
    assert [words[i] for i in phrase.words] == chunk.split()
    assert words[phrase.head] == head
    assert phrase.parser == "rules"


def test_noun_phrase_meets_tokens(tokenizer):
    tokens = tokenise(tokenizer, "a gold fish on the left")
    phrase = parse_by_rules(surface_words(tokens))
    inside = tokens_of_words(tokens, phrase.words)
    assert intersect((2, 3, 5), inside) == (2, 3)
    assert intersect((5,), inside) == (5,), "an empty intersection leaves K as it is"


def test_absent_spacy_models_are_told_not_fetched(monkeypatch, caplog):
    noun_phrase_parser.cache_clear()
    monkeypatch.setattr("refseg_bench.methods.refam.noun_phrases.find_spec", lambda name: None)
    with caplog.at_level("WARNING"):
        assert noun_phrase_parser("auto") is parse_by_rules
    assert "built-in rules" in caplog.text
    with pytest.raises(ConfigError, match="spacy"):
        noun_phrase_parser("xx_no_such_model")
    noun_phrase_parser.cache_clear()


def a_clip(tmp_path, name="train_000042", **attrs):
    return Clip(name, (tmp_path / "COCO_train2014_000000000042.jpg",), ("0",), (4, 4), attrs)


def test_captions_of_both_forms(tmp_path):
    plain = tmp_path / "captions.json"
    plain.write_text(json.dumps({"train_000042": "a cat"}))
    assert caption_of(a_clip(tmp_path), plain) == "a cat"
    rewrite(plain, json.dumps({"train_000042": "a dog"}))
    assert caption_of(a_clip(tmp_path), plain) == "a dog"
    coco = tmp_path / "coco.json"
    rows = [
        {"id": 9, "image_id": 42, "caption": "late"},
        {"id": 3, "image_id": 42, "caption": " first\n one"},
    ]
    coco.write_text(json.dumps({"annotations": rows}))
    assert caption_of(a_clip(tmp_path, image_id=42), coco) == "first one"
    with pytest.raises(DataError, match="'train_000042' has no caption"):
        caption_of(a_clip(tmp_path), coco)
    broken = tmp_path / "broken.json"
    broken.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="no known form"):
        caption_of(a_clip(tmp_path), broken)
    broken2 = tmp_path / "torn.json"
    broken2.write_text('{"a": ')
    with pytest.raises(ConfigError, match="can't be read"):
        caption_of(a_clip(tmp_path), broken2)
