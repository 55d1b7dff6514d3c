"""`refseg doctor` on the models that ship, and on untrained ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from refseg_bench.backbones import weights
from refseg_bench.backbones.base import Backbone
from refseg_bench.cli import main
from refseg_bench.config.compose import nodes
from refseg_bench.errors import ConfigError

SMALL = ["--frames", "2", "--size", "60", "84", "--expressions", "1", "2"]


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    monkeypatch.setattr(weights, "untrained", False)


@pytest.mark.slow
def test_what_ships_is_as_exact_as_it_claims(tmp_path, capsys):
    out = tmp_path / "doctor.json"
    assert main(["doctor", "backbone=tiny_mllm", "backbone=tiny_dit", *SMALL, "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    mllm, dit = found["backbone=tiny_mllm"], found["backbone=tiny_dit"]
    assert float(mllm["map in float32 from the plain float32 one, of its peak"]) < 1e-5
    assert mllm["2 expressions: prefixes run"] == 3
    assert dit["2 expressions: transformer passes"] == 2
    assert "torch" in found["environment"]["packages"]
    assert "backbone=tiny_dit\n" in capsys.readouterr().out


@pytest.mark.slow
def test_an_untrained_model_of_a_published_shape(tmp_path):
    shape = json.loads(Path("benchmarks/shapes/qwen2.5-vl-7b/config.json").read_text())
    shape |= {"hidden_size": 128, "intermediate_size": 64, "num_attention_heads": 1}
    shape |= {"num_key_value_heads": 1, "num_hidden_layers": 2, "vocab_size": 151660}
    shape["vision_config"] |= {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
    shape["vision_config"] |= {"out_hidden_size": 128, "fullatt_block_indexes": [0]}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    out = tmp_path / "doctor.json"
    words = ["backbone=qwen2_5_vl_7b", f"backbone.path={tmp_path}", "backbone.max_new_tokens=2"]
    assert main(["doctor", *words, "--random", *SMALL, "-o", str(out)]) == 0
    found = json.loads(out.read_text())[" ".join(words)]
    assert float(found["map in float32 from the plain float32 one, of its peak"]) < 1e-5
    assert 1e-5 < float(found["map in bfloat16 from the plain float32 one, of its peak"]) < 0.1


@pytest.mark.slow
def test_two_segmenters_are_compared_and_a_failure_is_told(tmp_path, capsys):
    from tools.tiny_sam import write_sam2

    model = f"segmenter.model={write_sam2(tmp_path / 'sam2')}"
    out = tmp_path / "doctor.json"
    words = ["segmenter=sam2_hf", model, "segmenter=sam2_hf", model, "segmenter.precision=bf16"]
    assert (
        main(["doctor", *words, "segmenter=sam2_hf", "segmenter.model=./nowhere", *SMALL, "-o", str(out)])
        == 2
    )
    _, first, second, lost = json.loads(out.read_text()).values()
    assert not any(name.startswith("IoU") for name in first)
    assert 0 <= second["IoU of the track with the segmenter's before"] <= 1
    assert "nowhere" in lost["error"]


@pytest.mark.slow
def test_an_untrained_model_may_keep_the_type_of_its_config(tmp_path):
    words = ["backbone=tiny_mllm", "backbone.dtype=auto", "backbone.max_new_tokens=2", "--random"]
    assert main(["doctor", *words, *SMALL]) == 0


@pytest.mark.slow
def test_segmenters_that_offer_different_numbers_of_masks_are_compared_by_their_tracks(tmp_path):
    out = tmp_path / "doctor.json"
    fewer = ["segmenter=grabcut", "segmenter.smoothing=[1, 4]", "segmenter.tolerances=[14, 40]"]
    assert main(["doctor", "segmenter=grabcut", *fewer, *SMALL, "-o", str(out)]) == 0
    _, _, second = json.loads(out.read_text()).values()
    assert "IoU of the track with the segmenter's before" in second
    assert "candidates' pixels that differ" not in second


@dataclass
class Unknown(Backbone):
    """A backbone that nobody knows how to measure."""


def test_what_cannot_be_measured_is_told(tmp_path, capsys):
    out = tmp_path / "doctor.json"
    assert main(["doctor", "backbone=tests.test_doctor.Unknown", *SMALL, "-o", str(out)]) == 2
    assert "Unknown can't be measured" in capsys.readouterr().out
    assert out.is_file()


def test_components_are_told_in_order():
    found = list(nodes(["segmenter=sam2", "segmenter.size=tiny", "segmenter=sam2_hf", "segmenter.size=3"]))
    assert [(group, name, given) for _, group, name, given in found] == [
        ("segmenter", "sam2", {"size": "tiny"}),
        ("segmenter", "sam2_hf", {"size": 3}),
    ]
    words = [
        "segmenter.size=tiny",
        "backbone=b",
        "segmenter=sam2",
        "segmenter.x=on",
        "segmenter=c",
        "backbone.y=1e-3",
    ]
    assert [(name, given) for _, _, name, given in nodes(words)] == [
        ("b", {"y": 0.001}),  # YAML would read a text
        ("sam2", {"size": "tiny", "x": "on"}),  # and here a yes
        ("c", {}),
    ]
    (read,) = nodes(["segmenter=sam2", "segmenter.a='x: y'", "segmenter.b=[1,a]", "segmenter.path=/a b/[c]"])
    assert read[3] == {"a": "x: y", "b": [1, "a"], "path": "/a b/[c]"}
    for words, told in (
        (["segmenter.size=3"], "no segmenter is chosen"),
        (["sam2"], "not GROUP=NAME"),
        (["segmenter=sam2", "segmenter.size=["], "Can't read the override"),
        (["segmenter=sam2", "segmenter.size=a,b"], "several values"),
    ):
        with pytest.raises(ConfigError, match=told):
            list(nodes(words))


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys):
    assert main(["doctor", "segmenter=grabcut", "-o", str(tmp_path / "none" / "doctor.json")]) == 2
    told = capsys.readouterr()
    assert "none" in told.err
    assert "segmenter=grabcut" not in told.out
    (tmp_path / "out" / "picture.png").mkdir(parents=True)
    clip = tmp_path / "clip.png"
    Image.new("RGB", (32, 32)).save(clip)
    assert main(["demo", str(clip), "a dog", "-o", str(tmp_path / "out")]) == 2
    assert "picture.png" in capsys.readouterr().err


def test_options_stand_anywhere(capsys):
    assert main(["models", "list", "segmenter.model=shipped:tiny_sam2", "segmenter=sam2_hf"]) == 0
    assert "tiny_sam2" in capsys.readouterr().out
    words = ["segmenter.seed=1", "--expressions", "1", "--frames", "2", "segmenter=grabcut"]
    assert main(["doctor", "--size", "60", "84", *words]) == 0
    assert "segmenter=grabcut segmenter.seed=1" in capsys.readouterr().out
