"""Configs, manifests and cards: complete, and equal to the published tables."""

import dataclasses

import pytest

from refseg_bench.config import schema
from refseg_bench.config.components import find, names, open_dataset
from refseg_bench.datasets.verify import Manifest, manifest
from refseg_bench.env import resource
from refseg_bench.errors import ConfigError

SETS = [
    "grefcoco_unc", "groundmore", "long_rvos", "mevis", "mevis_v2", "reasonseg", "reasonvos", "ref_davis17",
    "ref_youtube_vos", "refcoco_google", "refcoco_m", "refcoco_plus_unc", "refcoco_unc", "refcocog_google",
    "refcocog_umd", "revos",
]  # fmt: skip

# The field's tables. A dagger in them (a figure from a paper) is "unchecked" in the manifest.
PUBLISHED = {
    ("ref_youtube_vos", "train"): {"videos": 3471, "expressions": 12913, "objects": 6388},
    ("ref_youtube_vos", "valid"): {"videos": 202, "expressions": 834},
    ("ref_youtube_vos", "test"): {"videos": 305},
    ("ref_davis17", "valid"): {"videos": 30, "objects": 61, "expressions": 244, "frames": 1999},
    ("ref_davis17", "train"): {"videos": 90 - 30, "objects": 205 - 61, "expressions": 820 - 244},
    ("mevis", "train"): {"videos": 1662, "expressions": 23051},
    ("mevis", "valid_u"): {"videos": 50, "expressions": 793},
    ("mevis", "valid"): {"videos": 140, "expressions": 2236},
    ("mevis", "test"): {"videos": 154, "expressions": 2490},
    ("mevis_v2", "train"): {"videos": 1662, "expressions": 27502},
    ("mevis_v2", "valid_u"): {"videos": 50, "expressions": 907},
    ("mevis_v2", "valid"): {"videos": 140, "expressions": 2523},
    ("mevis_v2", "test"): {"videos": 154},
    ("revos", "train"): {"videos": 626},
    ("revos", "valid"): {"videos": 416},
    ("reasonvos", "test"): {"videos": 91, "expressions": 458},
    ("refcoco_unc", "train"): {"refs": 42404, "images": 16994, "expressions": 120624},
    ("refcoco_unc", "val"): {"refs": 3811, "images": 1500, "expressions": 10834},
    ("refcoco_unc", "testA"): {"refs": 1975, "images": 750, "expressions": 5657},
    ("refcoco_unc", "testB"): {"refs": 1810, "images": 750, "expressions": 5095},
    ("refcoco_google", "train"): {"refs": 40000, "images": 19213},
    ("refcoco_google", "val"): {"refs": 5000, "images": 4559},
    ("refcoco_google", "test"): {"refs": 5000, "images": 4527},
    ("refcoco_plus_unc", "train"): {"refs": 42278, "images": 16992, "expressions": 120191},
    ("refcoco_plus_unc", "val"): {"refs": 3805, "images": 1500, "expressions": 10758},
    ("refcoco_plus_unc", "testA"): {"refs": 1975, "images": 750, "expressions": 5726},
    ("refcoco_plus_unc", "testB"): {"refs": 1798, "images": 750, "expressions": 4889},
    ("refcocog_umd", "train"): {"refs": 42226, "images": 21899, "expressions": 80512},
    ("refcocog_umd", "val"): {"refs": 2573, "images": 1300, "expressions": 4896},
    ("refcocog_umd", "test"): {"refs": 5023, "images": 2600, "expressions": 9602},
    ("refcocog_google", "train"): {"refs": 44822, "images": 24698, "expressions": 85474},
    ("refcocog_google", "val"): {"refs": 5000, "images": 4650, "expressions": 9536},
    ("refcoco_m", "val"): {"refs": 2080, "images": 1190, "expressions": 5598},
    ("reasonseg", "train"): {"images": 239},
    ("reasonseg", "val"): {"images": 200},
    ("reasonseg", "test"): {"images": 779},
}  # fmt: skip


def manifests() -> list[Manifest]:
    """The facts of all sets that have a card."""
    return [facts for name in names("dataset") if (facts := manifest(name)) is not None]


@pytest.mark.parametrize(("name", "split"), PUBLISHED)
def test_manifest_counts_equal_the_published_tables(name, split):
    assert dict(manifest(name).splits[split].counts) == PUBLISHED[name, split]


def test_totals_of_whole_releases():
    totals = {name: dict(manifest(name).total) for name in SETS}
    assert totals["ref_youtube_vos"] == {"videos": 3978, "expressions": 15009}
    assert totals["ref_davis17"] == {"videos": 90, "objects": 205, "expressions": 820}
    assert totals["mevis"] == {"videos": 2006, "expressions": 28570, "objects": 8171, "masks": 443000}
    assert totals["mevis_v2"] == {"videos": 2006, "expressions": 33072}
    assert totals["revos"]["videos"] == 1042
    assert (totals["revos"]["explicit"], totals["revos"]["implicit"]) == (20071, 14678)
    assert (totals["revos"]["absent"], totals["revos"]["absent_in_file"]) == (325, 337)
    assert totals["revos"]["expressions"] == 20071 + 14678 + 325
    assert totals["grefcoco_unc"] == {"expressions": 259859}


def test_figures_from_papers_are_marked():
    marked = {
        (m.name, split, key)
        for m in manifests()
        for split, facts in m.splits.items()
        for key in facts.unchecked
    }
    assert marked >= {
        ("ref_youtube_vos", "valid", "expressions"),
        ("ref_davis17", "valid", "frames"),
        ("revos", "valid", "videos"),
        ("reasonvos", "test", "videos"),
        ("reasonseg", "test", "images"),
        ("refcoco_plus_unc", "val", "expressions"),
    }
    assert ("mevis", "valid_u", "videos") not in marked


def test_papers_protocols_exist():
    for name in names("dataset"):
        facts = manifest(name)
        for protocol in (facts.protocols if facts else ()) or open_dataset(name).protocols:
            assert find("protocol", protocol) == protocol


def test_which_masks_are_public():
    public = {m.name: [s for s, facts in m.splits.items() if facts.public] for m in manifests()}
    assert public["ref_youtube_vos"] == ["train"]
    assert public["mevis"] == ["train", "valid_u"]
    assert public["ref_davis17"] == ["train", "valid"]
    assert public["revos"] == ["train", "valid"]


@pytest.mark.parametrize("name", SETS)
def test_every_set_has_a_card_with_its_parts(name):
    text = (resource("datasets") / name / "README.md").read_text(encoding="utf-8")
    for part in ("Licence", "Where from", "Layout", "Splits", "Cite"):
        assert f"**{part}" in text, part
    for split, facts in manifest(name).splits.items():
        assert split in text
        for count in facts.counts.values():
            assert f"{count:,}" in text


@pytest.mark.parametrize("name", names("dataset"))
def test_every_config_is_named_as_its_set(name):
    data = open_dataset(name)
    cls = type(data)
    assert data.name == name
    for option in ("root", "cache", "folders", "follow_links"):
        if option in schema.options(cls):
            assert schema.options(cls)[option].metadata["transient"], option
    assert not schema.options(cls)["split"].metadata.get("transient", False)
    if sum(1 for other in names("dataset") if type(open_dataset(other)) is cls) == 1:
        # A class of one set: its defaults are the config's.
        assert (
            dataclasses.replace(cls(), cache=None) == dataclasses.replace(data, cache=None)
            if "cache" in schema.options(cls)
            else cls() == data
        )


@pytest.mark.parametrize("name", SETS)
def test_hidden_splits_are_those_whose_masks_are_not_public(name):
    data = open_dataset(name)
    hidden = set(getattr(data, "hidden", ()))
    facts = manifest(name).splits
    assert {s for s, f in facts.items() if not f.public} <= hidden
    assert not hidden & {s for s, f in facts.items() if f.public}
    assert data.split in facts


def test_common_spellings_find_their_set():
    assert find("dataset", "RefCOCO+") == "refcoco_plus_unc"
    assert find("dataset", "Ref-YouTube-VOS") == "ref_youtube_vos"
    assert find("dataset", "Ref-DAVIS17") == "ref_davis17"
    assert find("dataset", "refcocog") == "refcocog_umd"
    assert find("dataset", "MeViS") == "mevis"
    with pytest.raises(ConfigError, match="No dataset 'coco'") as caught:
        find("dataset", "coco")
    assert "mevis" in caught.value.allowed
