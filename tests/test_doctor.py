"""`refseg doctor` on the models that ship, and on untrained ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refseg_bench.backbones import weights
from refseg_bench.cli import main
from refseg_bench.config.components import nodes
from refseg_bench.errors import ConfigError

SMALL = ["--frames", "2", "--size", "60", "84", "--expressions", "1", "2"]


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    monkeypatch.setattr(weights, "untrained", False)


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


def test_two_segmenters_are_compared_and_a_failure_is_told(tmp_path, capsys):
    from tools.tiny_sam import write_sam2

    model = f"segmenter.model={write_sam2(tmp_path / 'sam2')}"
    out = tmp_path / "doctor.json"
    words = ["segmenter=sam2_hf", model, "segmenter=sam2_hf", model, "segmenter.precision=bf16"]
    assert (
        main(["doctor", *words, "segmenter=sam2_hf", "segmenter.model=./nowhere", *SMALL, "-o", str(out)])
        == 1
    )
    _, first, second, lost = json.loads(out.read_text()).values()
    assert not any(name.startswith("IoU") for name in first)
    assert 0 <= second["IoU of the track with the segmenter's before"] <= 1
    assert "nowhere" in lost["error"]


def test_components_are_told_in_order():
    found = list(nodes(["segmenter=sam2", "segmenter.size=tiny", "segmenter=sam2_hf", "segmenter.size=3"]))
    assert [(group, name, given) for _, group, name, given in found] == [
        ("segmenter", "sam2", {"size": "tiny"}),
        ("segmenter", "sam2_hf", {"size": 3}),
    ]
    for words, told in (
        (["segmenter.size=3"], "no segmenter is chosen"),
        (["sam2"], "not GROUP=NAME"),
        (["segmenter=sam2", "segmenter.size=["], r"'segmenter.size=\[' can't be read"),
    ):
        with pytest.raises(ConfigError, match=told):
            list(nodes(words))
