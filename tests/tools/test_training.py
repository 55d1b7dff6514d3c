"""The training scripts run, resume and export; accuracy is not asserted here (docs/tiny-models.md has it)."""

from __future__ import annotations

import csv
import itertools
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.quick import needs

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, needs("transformers", "diffusers")]


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


SMALL = ["--check-scenes", "1", "--checks", "2", "--log-every", "1000", "--batch", "2", "--uses", "2"]


def test_mllm_trains_resumes_and_loads(tmp_path, run, monkeypatch):
    from tools.train import mllm_data, train_mllm

    forms = (("look",), ("pair", "image"), ("choice", "clip", "long"))
    stages = tuple(zip((0.2, 0.5, 2.0), forms, strict=True))  # every form is met in six steps
    monkeypatch.setattr(mllm_data, "STAGES", stages)
    small = [*SMALL, "--corpus-scenes", "3"]
    work, out = tmp_path / "work", tmp_path / "model"
    run(train_mllm, "--work", str(work), "--steps", "3", *small)
    run(train_mllm, "--work", str(work), "--steps", "6", "--out", str(out), *small)
    assert steps_of(work / "log.csv") == [2, 3, 6]
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

    work, out = tmp_path / "work", tmp_path / "model"
    run(train_dit, "--work", str(work), "--steps", "2", *SMALL)
    run(train_dit, "--work", str(work), "--steps", "4", "--out", str(out), *SMALL)
    assert steps_of(work / "log.csv") == [1, 2, 4]
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
    from tools.train import mllm_data, scenes
    from tools.train import train_mllm as t

    torch.manual_seed(0)
    tokenizer = t.make_tokenizer(t.corpus(3))
    model = t.make_model(tokenizer).eval()
    processor = t.make_processor(tokenizer)
    packer = mllm_data.Packer(tokenizer)
    shot = scenes.random_shot(5, 16)
    for form, kind in (("clip", "video"), ("image", "image")):
        example, _ = mllm_data.example(np.random.default_rng(5), shot, form)
        example.questions = [*example.questions[:2], example.questions[-1]]
        packed = packer.pack([example, example], answer=False)
        packed = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in packed.items()}
        with torch.no_grad():
            last = t.run(model, packed).last_BLD[1]
        pixels = example.frames.transpose(0, 2, 3, 1)
        for number, question in enumerate(example.questions):
            turn = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": question.text}]}]
            text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            visual = {"videos": [pixels]} if kind == "video" else {"images": [pixels[0]]}
            inputs = processor(text=[text], return_tensors="pt", **visual)
            with torch.no_grad():
                alone = model(**inputs).logits[0, -1]
                together = model.lm_head(last[packed["last_BK"][1, number]])
            assert torch.allclose(alone, together, atol=1e-5), (form, number)


def test_a_turned_clip_is_a_true_clip():
    """Where the turned paths say that an object is, the turned picture shows it."""
    from tools.shapes_world import describe
    from tools.train import scenes

    shot = scenes.random_shot(11, 16)
    said = {u.text for u in describe(shot.scene, shot.footage)}
    back = shot.turned(True, True, True).turned(True, True, True)
    assert {u.text for u in describe(back.scene, back.footage)} == said
    turned = shot.turned(True, False, True)
    for k, thing in enumerate(turned.scene.things):
        for row, index in enumerate(turned.footage.indices):
            mask = turned.footage.ids_THW[row] == k + 1
            if mask.sum() == turned.footage.full_N[k]:
                y, x = np.argwhere(mask).mean(0)
                near = np.abs(thing.centre_T2[index] - (y, x)).max()
                assert near < 0.5 * thing.radius
    again = scenes.shares(turned.footage.ids_THW, len(turned.scene.things))
    assert np.abs(turned.shares_TSRC - again).max() < 0.2  # every second pixel is counted, not the same ones


def test_a_step_with_infinite_gradients_changes_nothing():
    from tools.train.common import optimiser_of, update

    layer = torch.nn.Linear(3, 3)
    optimiser = optimiser_of(layer, 0.05)
    for factor, moves in ((1.0, True), (float("inf"), False), (float("nan"), False), (1.0, True)):
        before = layer.weight.detach().clone()
        optimiser.zero_grad()
        (layer(torch.ones(2, 3)).sum() * factor).backward()
        update(optimiser, layer, 0.1)
        assert layer.weight.equal(before) is not moves


def test_a_feed_gives_the_batches_its_processes_make():
    from tools.train.feed import Feed

    def make(number: int, share: float) -> dict:
        if number == 5:
            raise ValueError("spoilt")
        return {"number": np.full(2, number), "form": "pair"}

    feed = Feed(make, torch.device("cpu"), workers=2)
    seen: list[int] = []
    with pytest.raises(RuntimeError, match="spoilt"):
        seen.extend(int(feed.next(0.0)["number"][0]) for _ in itertools.count())
    assert set(seen) >= {1, 3}
    feed.close()


def test_every_prompt_survives_the_tokenizer():
    from tools.train import mllm_model as m

    tokenizer = m.make_tokenizer(["the red striped one."])
    for text in (*m.OBJECT, *m.BACKGROUND, *m.CHOICE):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_sam2_trains_resumes_and_loads(tmp_path, run):
    from refseg_bench.segmenters.base import Prompt
    from refseg_bench.segmenters.sam2_hf import Sam2Hf
    from refseg_bench.types import Clip
    from tools.train import train_sam2

    small = ["--check-scenes", "1", "--checks", "2", "--log-every", "1000", "--batch", "2", "--clips", "1"]
    small += ["--pool", "2", "--objects", "1", "--pictures", "0.5"]
    work, out = tmp_path / "work", tmp_path / "model"
    run(train_sam2, "--work", str(work), "--steps", "2", *small)
    run(train_sam2, "--work", str(work), "--steps", "4", "--out", str(out), "--workers", "1", *small)
    assert steps_of(work / "log.csv") == [1, 2, 4]
    Image.fromarray(np.zeros((192, 256, 3), np.uint8)).save(tmp_path / "0.png")
    clip = Clip("dark", (tmp_path / "0.png",) * 3, ("0", "1", "2"), (192, 256))
    with Sam2Hf(model=str(out), device="cpu").open(clip) as session:
        (found,) = session.segment(1, [Prompt.click(0.5, 0.5)])
        assert found.masks_KHW.shape == (3, 192, 256)
        assert [frame for frame, _ in session.propagate(1, [Prompt.click(0.5, 0.5)])] == [1, 2, 0]


def test_the_iou_head_is_trained_on_and_nothing_else(tmp_path, run):
    from safetensors.torch import load_file

    from tools.train import train_sam2_ious

    small = ["--clips", "2", "--clicks", "2", "--check-scenes", "1", "--steps", "2"]
    run(train_sam2_ious, "--out", str(tmp_path), *small)
    then, now = (load_file(folder / "model.safetensors") for folder in (train_sam2_ious.SHIPPED, tmp_path))
    changed = {name for name in now if not torch.equal(now[name], then[name])}
    assert changed
    assert all(".iou_prediction_head." in name for name in changed)
    assert now.keys() == then.keys()


def test_a_pool_gives_the_clips_that_were_drawn():
    """Whoever draws: pixels and object numbers of one frame stay together, also mirrored."""
    from tools.train.train_sam2 import Pool, draw

    for workers in (0, 2):
        pool = Pool(3_000_000, workers, 2, torch.device("cpu"))
        pool.refresh(least=2)
        frames, ids = pool.sample(4, 2)
        pool.close()
        drawn = np.concatenate([draw(3_000_000 + seed) for seed in range(64 if workers else 2)])
        known = {part.tobytes() for f in drawn for part in (f, f[::-1], f[:, ::-1], f[::-1, ::-1])}
        sampled = torch.cat([frames, ids[:, :, None]], 2).flatten(0, 1).permute(0, 2, 3, 1)
        assert all(frame.contiguous().numpy().tobytes() in known for frame in sampled)


def test_a_process_that_is_killed_is_told_instead_of_waited_for():
    from tools.train.feed import Feed

    def make(number: int, share: float) -> dict[str, np.ndarray]:
        if number >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": np.zeros(1)}

    feed = Feed(make, torch.device("cpu"), workers=2, replays=1)
    with pytest.raises(RuntimeError, match=r"killed \(exit code -9\)"):
        [feed.next(0.0) for _ in range(100)]
    feed.close()
