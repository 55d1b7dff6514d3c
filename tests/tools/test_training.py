"""The training scripts run, resume and export; accuracy is not asserted here (docs/tiny-models.md has it)."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow


@pytest.fixture
def run(monkeypatch):
    """Run a training script's ``main`` in this process, as its command line would."""

    def call(module, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        module.main()

    return call


def steps_of(log: Path) -> list[int]:
    with log.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_mllm_trains_resumes_and_loads(tmp_path, run):
    from tools.train import train_mllm

    small = ["--check-scenes", "1", "--corpus-scenes", "3", "--check-every", "1", "--vision-steps", "50"]
    work, out = tmp_path / "work", tmp_path / "model"
    run(train_mllm, "--work", str(work), "--steps", "1", *small)
    run(train_mllm, "--work", str(work), "--steps", "2", "--out", str(out), *small)
    assert steps_of(work / "log.csv") == [0, 1, 2]
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(out)
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the red one."}]}]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[np.zeros((192, 256, 3), np.uint8)], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 24, 32]]
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1


def test_dit_trains_resumes_and_loads(tmp_path, run):
    from tools.train import train_dit

    small = ["--check-scenes", "1", "--check-every", "1", "--batch", "2"]
    work, out = tmp_path / "work", tmp_path / "model"
    run(train_dit, "--work", str(work), "--steps", "1", *small)
    run(train_dit, "--work", str(work), "--steps", "2", "--out", str(out), *small)
    assert steps_of(work / "log.csv") == [1, 2]
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import AutoTokenizer, T5EncoderModel

    assert SD3Transformer2DModel.from_pretrained(out / "transformer").config.num_layers == 4
    assert AutoencoderKL.from_pretrained(out / "vae").config.latent_channels == 3
    states = T5EncoderModel.from_pretrained(out / "text_encoder")
    pieces = AutoTokenizer.from_pretrained(out / "tokenizer")
    tokens = pieces.convert_ids_to_tokens(pieces("the red striped one with a blue zebra").input_ids)
    assert tokens[:4] == ["▁the", "▁red", "▁striped", "▁one"]
    assert tokens[-1] == "</s>"
    assert "<unk>" not in tokens
    assert states.config.d_model == 128


def test_packed_questions_are_what_single_sequences_compute():
    """Several questions behind one visual prefix give the logits that the stock model gives each alone."""
    from transformers import AttentionInterface

    from tools.train import train_mllm as t

    AttentionInterface.register("plain", t.plain_attention)
    torch.manual_seed(0)
    tokenizer = t.make_tokenizer(t.corpus(3))
    model = t.make_model(tokenizer).eval()
    processor = t.make_processor(tokenizer)
    packer = t.Packer(tokenizer)
    for form, kind in (("clip", "video"), ("image", "image")):
        example, _ = t.example(5, form)
        example.questions = [*example.questions[:2], example.questions[-1]]
        packed = packer.pack([example], answer=False)
        model.set_attn_implementation({"text_config": "plain", "vision_config": "plain"})
        with torch.no_grad():
            last, _, _ = t.run(model, packed, hidden=False)
        model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
        pixels = (example.frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for number, question in enumerate(example.questions):
            turn = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": question.text}]}]
            text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            visual = {"videos": [pixels]} if kind == "video" else {"images": [pixels[0]]}
            inputs = processor(text=[text], return_tensors="pt", **visual)
            with torch.no_grad():
                alone = model(**inputs).logits[0, -1]
                together = model.lm_head(last[0, packed.last_BK[0, number]])
            assert torch.allclose(alone, together, atol=2e-4), (kind, number)


def test_every_prompt_survives_the_tokenizer():
    from tools.train import mllm_model as m

    tokenizer = m.make_tokenizer(["the red striped one."])
    for text in (*m.OBJECT, *m.BACKGROUND, *m.CHOICE):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
