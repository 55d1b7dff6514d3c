"""The backbone component: offload, schedules, latents and estimates."""

import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from refseg_bench.backbones.attention_maps import SoftmaxTokens
from refseg_bench.backbones.dit import TokenRequest
from refseg_bench.backbones.dit.families import FAMILIES, family, pack
from refseg_bench.backbones.dit.text import tokenise
from refseg_bench.backbones.weights import ModelError
from refseg_bench.errors import ConfigError, DataError
from tests.backbones import tiny_dits
from tests.quick import quick_first
from tests.test_elsewhere import THERE, Above, Play


def read(dit, picture):
    tokens = tokenise(dit.tokenizer, "a gold fish", ["with"])
    query = TokenRequest(tokens, "cat", {"all": SoftmaxTokens(tuple(range(len(tokens))))})
    return dit.attend(dit.open(picture), [query])[0]["all"].maps_TN


@pytest.mark.slow
def test_a_damaged_file_of_a_checkpoint_is_told_with_what_helps(make_dit, tmp_path):
    dit = make_dit("sd3")
    broken = shutil.copytree(dit.path, tmp_path / "sd3")
    (broken / "model_index.json").write_text('{"transformer": [')
    with pytest.raises(ModelError, match="model_index.json") as caught:
        _ = replace(dit, path=str(broken)).tokenizer
    assert "a model's: fetch it again" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("name", quick_first(["flux", "sd3", "mochi", "cogvideox", "wan"]))
def test_on_another_device_nothing_is_mixed_and_no_layer_waits(name, make_dit, picture, monkeypatch):
    dit = make_dit(name, device="cpu")
    here, loaded, waits = read(dit, picture), dit._load(), []
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # see Play
    monkeypatch.setattr(torch, "autocast", lambda *kind, **options: nullcontext())  # as Mochi's rope is
    with Play() as play, Above(play):
        for module in (loaded.transformer, loaded.vae, *loaded.text._modules.values()):
            module.to(THERE)
        loaded.device = loaded.text.device = THERE
        loaded.text._memory.clear()
        loaded.transformer.register_forward_pre_hook(lambda *given: waits.append(-play.waits))
        loaded.transformer.register_forward_hook(lambda *given: waits.append(play.waits), always_call=True)
        there = read(dit, picture)
    np.testing.assert_allclose(there, here, atol=1e-6)
    # diffusers itself looks for Mochi's valid text tokens in every layer.
    assert sum(waits) == (len(dit.wanted()) if name == "mochi" else 0)


def test_prompts_are_padded_as_the_checkpoints_pipeline_does():
    for guided, length in ((True, 512), (False, 256)):
        assert family("flux").pad_to(SimpleNamespace(config={"guidance_embeds": guided})) == length
    assert family("sd3").pad_to(SimpleNamespace(config={})) == 256


@pytest.mark.parametrize("name", quick_first(["sd3", "mochi"]))
def test_streaming_blocks_through_the_device_changes_nothing(name, make_dit, picture):
    plain = read(make_dit(name), picture)
    streamed = make_dit(name, offload="blocks")
    np.testing.assert_array_equal(read(streamed, picture), plain)
    np.testing.assert_array_equal(read(streamed, picture), plain)


def test_published_grids():
    """64 × 64 for images, 30 × 53 for Mochi."""
    flux, mochi = tiny_dits.transformer("flux"), tiny_dits.transformer("mochi")
    sd3 = tiny_dits.transformer("sd3")
    assert family("flux").grid(torch.zeros(1, 16, 128, 128), flux) == (64, 64)
    assert family("sd3").grid(torch.zeros(1, 16, 128, 128), sd3) == (64, 64)
    assert family("mochi").grid(torch.zeros(1, 12, 1, 60, 106), mochi) == (30, 53)
    assert family("mochi").size == (480, 848)
    assert family("flux").size == (1024, 1024)


def test_flux_packs_as_its_pipeline_does():
    from diffusers import FluxPipeline

    latents = torch.randn(1, 4, 6, 10)
    expected = FluxPipeline._pack_latents(latents, 1, 4, 6, 10)
    assert torch.equal(pack(latents), expected)


def test_noise_levels():
    z, e = torch.ones(2), torch.full((2,), 3.0)
    assert family("flux").noised(z, e, 0.25, {}).tolist() == [1.5, 1.5]
    alpha = family("cogvideox").noised(torch.ones(1), torch.zeros(1), 0.5, {}) ** 2
    beta = family("cogvideox").noised(torch.zeros(1), torch.ones(1), 0.5, {}) ** 2
    assert float(alpha + beta) == pytest.approx(1, abs=1e-6)


def test_schedule_shifts():
    dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    shifted = family("flux").shifted(0.5, 4096, dynamic)
    assert shifted == pytest.approx(math.exp(1.15) / (math.exp(1.15) + 1))
    assert round(shifted, 2) == 0.76
    assert family("sd3").shifted(0.5, 4096, {"shift": 3.0}) == pytest.approx(0.75)
    assert family("flux").shifted(0.5, 4096, {"shift": 1.0}) == 0.5
    assert family("flux").shifted(0.0, 4096, dynamic) == 0.0


def test_latents_are_scaled_as_the_pipelines_do(make_dit, picture):
    dit = make_dit("sd3")
    scene = dit.open(picture)
    vae = dit._load().vae
    pixels, _ = dit._canvas(picture)
    raw = vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(scene.latents, (raw - 0.1) * 0.5)
    mochi = make_dit("mochi")
    scene = mochi.open(picture)
    vae = mochi._load().vae
    raw = vae.encode(mochi._canvas(picture)[0][:, :, None]).latent_dist.mode()
    mean = torch.tensor(vae.config.latents_mean).view(1, 12, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, 12, 1, 1, 1)
    torch.testing.assert_close(scene.latents, (raw - mean) / std * vae.config.scaling_factor)


def test_mochis_timestep_runs_backwards(make_dit, picture, monkeypatch):
    dit = make_dit("mochi", sigma=0.3)
    seen = []
    transformer = dit._load().transformer
    original = transformer.forward
    monkeypatch.setattr(transformer, "forward", lambda **k: (seen.append(k["timestep"]), original(**k))[1])
    read(dit, picture)
    assert seen[0].tolist() == [pytest.approx(700)]


def test_images_must_be_rgb(make_dit):
    with pytest.raises(DataError, match="height × width × 3"):
        make_dit("sd3").open(np.zeros((4, 4), np.uint8))


def test_families_by_name_and_path():
    assert set(FAMILIES) == {"flux", "sd3", "mochi", "cogvideox", "wan"}
    found = family("refseg_bench.backbones.dit.families.Flux")
    assert found.name == "flux"
    with pytest.raises(ConfigError, match="No family 'unet'"):
        family("unet")


def test_half_precision_runs_and_is_close(make_dit, picture):
    full, half = read(make_dit("sd3"), picture), read(make_dit("sd3", dtype="bf16"), picture)
    np.testing.assert_allclose(half.sum(0), 1, atol=1e-5)
    assert np.abs(half - full).max() < 0.05
