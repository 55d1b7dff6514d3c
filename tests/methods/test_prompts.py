"""The prompts, character by character, and how they are filled."""

import hashlib

import pytest

from refseg_bench.errors import ConfigError
from refseg_bench.methods.decaf.prompts import (
    background_prompt,
    choice_prompt,
    object_name,
    object_prompt,
    sentence,
    template,
)

# length and first 16 hex digits of SHA-256 of the literals the official code holds
LITERALS = [
    ("object", "default", 283, "eec0241723af4f3d"),
    ("object", "v1", 98, "1e146668da909350"),
    ("object", "v2", 256, "5dba8bec42630ccd"),
    ("object", "v3", 151, "03d3401c61972499"),
    ("background", "default", 120, "a526322bb0dbf11c"),
    ("background", "v1", 94, "ab42675bbe2def04"),
    ("background", "v2", 105, "e82a781251abf588"),
    ("background", "v3", 174, "cc495767d5462466"),
    ("choice", "default", 533, "876a76a229d25680"),
    ("choice", "v1", 174, "2278a8280cf2c3f4"),
    ("choice", "v2", 280, "22f612341a6706c1"),
    ("choice", "v3", 206, "32c1328c50cdb174"),
]


@pytest.mark.parametrize(("kind", "version", "length", "digest"), LITERALS)
def test_literals(kind, version, length, digest):
    text = template(kind, version)
    assert len(text) == length
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_sentence_end():
    assert sentence("the left dog") == "the left dog."
    assert sentence("the left dog.") == "the left dog."
    assert sentence("Which one?") == "Which one?"
    assert sentence("wow!") == "wow!."
    assert sentence("dog ") == "dog ."  # untouched otherwise


def test_filling():
    assert object_prompt("{sent} \nx", "The LEFT dog") == "the left dog. \nx"
    assert background_prompt(template("background", "default"), "any", "dog").startswith(
        "Describe the background scene of the video, excluding any dog."
    )
    assert "'the left dog.'" in background_prompt(template("background", "v3"), "The left Dog", "dog")
    filled = choice_prompt("{ref_query}|{obj_cls_list}", "The Dog", [" Dog", "Cat \n", "A, b"])
    assert filled == "the dog.|dog,cat,a, b"
    assert object_name("  A Dog.\n") == "a dog."


def test_braces_in_an_expression_or_answer_are_text():
    assert object_prompt(template("object", "v1"), "the {x} sign").startswith("the {x} sign. \n")
    assert "excluding any {0}." in background_prompt(template("background", "default"), "a", "{0}")


def test_custom_text_and_unknown_version():
    assert template("object", "default", "where is {sent}") == "where is {sent}"
    with pytest.raises(ConfigError, match="can't be filled"):
        template("object", "default", "where is {obj_name}")
    with pytest.raises(ConfigError, match="no background prompt 'v9'"):
        template("background", "v9")
