import pytest

from refseg_bench.methods.lexical.words import Query, parse


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("the red striped one", Query(colours=("red",), textures=("striped",))),
        ("the red one with stripes", Query(colours=("red",), textures=("striped",))),
        ("the grey or gray thing", Query(colours=("grey", "grey"))),
        ("the red one without dots", Query(colours=("red",), not_textures=("dotted",))),
        ("the one that is not blue", Query(not_colours=("blue",))),
        ("the biggest coin", Query(size=1)),
        ("a small checkered box", Query(textures=("checked",), size=-1)),
        ("the topmost object", Query(sides=("top",))),
        ("the yellow thing on the right", Query(colours=("yellow",), sides=("right",))),
        ("the one that moves left", Query(heading="left")),
        ("the object moving to the right", Query(heading="right")),
        ("the ball going upwards", Query(heading="up")),
        ("the object that does not move", Query(heading="still")),
        ("the shape that stays in place", Query(heading="still")),
        ("all plain things", Query(textures=("plain",), plural=True)),
        ("the two red ones", Query(colours=("red",), plural=True, number=2)),
        ("the thing that leaves and comes back", Query(event="returns")),
        ("the thing that hides behind the other", Query(event="hidden")),
        ("the one that covers something else", Query(event="covers")),
        ("the one that disappears", Query(event="leaves")),
        ("the one that comes into view", Query(event="enters")),
        ("the only one of another colour", Query(odd="colour")),
        ("the one whose pattern no other has", Query(odd="texture")),
        (
            "the thing to the left of the blue dotted one",
            Query(relation=("left", Query(colours=("blue",), textures=("dotted",)))),
        ),
        ("the red one below the star", Query(colours=("red",), relation=("bottom", Query()))),
        ("something nobody has words for", Query()),
    ],
)
def test_what_is_read(text, query):
    assert parse(text) == (query,)


def test_and_joins_noun_phrases_but_not_verbs():
    both = parse("the purple striped one and the green one")
    assert both == (Query(colours=("purple",), textures=("striped",)), Query(colours=("green",)))
    assert len(parse("the one that leaves and comes back")) == 1


@pytest.mark.parametrize(
    ("text", "queries"),
    [
        ("", ()),
        ("?!", ()),
        ("日本語", ()),
        ("<script>alert(1)</script>", (Query(),)),
        ("the " * 2000, (Query(),)),
        ("the red " * 2000, (Query(colours=("red",) * 2000),)),
    ],
)
def test_odd_texts_are_no_error(text, queries):
    assert parse(text) == queries
