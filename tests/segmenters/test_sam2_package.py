"""Living beside Hydra, building the published architectures, and refusing wrong checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import refseg_bench
from refseg_bench.backbones.weights import ModelError
from refseg_bench.errors import ConfigError
from refseg_bench.segmenters import sam2
from refseg_bench.segmenters.base import Prompt
from refseg_bench.segmenters.sam2 import Sam2
from tests.launch.runs import HANGS

HYDRA = """
from refseg_bench.config.compose import compose
from hydra.core.global_hydra import GlobalHydra
from hydra import version

before = compose(["method=oracle_point"])[0].values
base = version.getbase()
assert not GlobalHydra.instance().is_initialized()
from refseg_bench.segmenters import sam2
sam2.import_sam2()
assert not GlobalHydra.instance().is_initialized()
assert version.getbase() == base, (version.getbase(), base)
model = sam2.build(sam2.architecture_file("sam2.1", "tiny"), image_size=256)
assert not GlobalHydra.instance().is_initialized()
after = compose(["method=oracle_point"])[0].values
assert after == before
print("ok", sum(p.numel() for p in model.parameters()))
"""

APP = """
import hydra
from hydra.core.global_hydra import GlobalHydra
from refseg_bench.segmenters import sam2

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    mine = GlobalHydra.instance().hydra
    model = sam2.build(sam2.architecture_file("sam2", "tiny"), image_size=256)
    assert GlobalHydra.instance().hydra is mine
    from hydra import version
    assert str(version.getbase()) == "1.3"
    print("ok")

sam2.import_sam2()  # before the app starts: a plain import would break it
main()
"""


def run(arguments, cwd):
    """A fresh interpreter that sees this checkout."""
    home = str(Path(refseg_bench.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=HANGS,
        env={**os.environ, "PYTHONPATH": home},
    )


@pytest.mark.slow
def test_composing_works_before_and_after(tmp_path):
    done = run(["-c", HYDRA], tmp_path)
    assert done.stdout.startswith("ok"), done.stderr
    assert int(done.stdout.split()[1]) == 38_962_498  # Hiera-tiny 2.1


@pytest.mark.slow
def test_inside_a_hydra_app(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    done = run(["app.py"], tmp_path)
    assert done.stdout.strip().endswith("ok"), done.stderr


@pytest.mark.parametrize("release", ["sam2", "sam2.1"])
@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_every_published_size_has_its_files(release, size):
    assert sam2.architecture_file(release, size).is_file()
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    config, checkpoint = HF_MODEL_ID_TO_FILENAMES[sam2.hub_repo(release, size)]
    assert str(sam2.architecture_file(release, size)).endswith(config)
    assert sam2.checkpoint_name(release, size) == checkpoint
    (weights,) = Sam2(release=release, size=size).weights()
    assert (weights.repo, weights.file) == (sam2.hub_repo(release, size), checkpoint)


def test_video_post_processing_is_switched_on(sam2_package_files):
    model = sam2.build(sam2_package_files["sam2"][0])
    assert model.binarize_mask_from_pts_for_mem_enc
    assert model.sam_mask_decoder.dynamic_multimask_via_stability
    assert model.sam_mask_decoder.dynamic_multimask_stability_thresh == 0.98
    assert not model.training


@pytest.mark.slow
def test_wrong_checkpoints_are_told(sam2_package_files, tmp_path, clip):
    architecture, checkpoint = sam2_package_files["sam2"]
    with pytest.raises(ModelError, match="not there"):
        Sam2(architecture=architecture, checkpoint=tmp_path / "no.pt").open(clip)
    with pytest.raises(ModelError, match="doesn't fit the architecture: 3 tensors missing"):
        Sam2(architecture=sam2_package_files["sam2.1"][0], checkpoint=checkpoint).open(clip)
    torn = tmp_path / "torn.pt"
    torn.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"torn\.pt is cut"):
        Sam2(architecture=architecture, checkpoint=torn).open(clip)
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["no_mem_embed"] = torch.zeros(1, 1, 3)
    torch.save(state, tmp_path / "shape.pt")
    with pytest.raises(ModelError, match="other shapes"):
        Sam2(architecture=architecture, checkpoint=tmp_path / "shape.pt").open(clip)
    # Of another size both differ: what is missing comes first, for the release may be wrong as well.
    del state["model"]["maskmem_tpos_enc"]
    torch.save(state, tmp_path / "size.pt")
    with pytest.raises(ModelError, match="doesn't fit the architecture: 1 tensors missing"):
        Sam2(architecture=architecture, checkpoint=tmp_path / "size.pt").open(clip)
    for name, content in {
        "list.pt": [1],
        "inner.pt": {"model": [1]},
        "numbers.pt": {1: torch.ones(1)},
    }.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ModelError, match="can't be read as tensors"):
            Sam2(architecture=architecture, checkpoint=tmp_path / name).open(clip)
    for name in ("junk.pt", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"junkjunkjunk")
        with pytest.raises(ModelError, match="can't be read as tensors|no safetensors file"):
            Sam2(architecture=architecture, checkpoint=tmp_path / name).open(clip)
    with pytest.raises(ConfigError, match="architecture file is missing"):
        Sam2(architecture=tmp_path / "no.yaml", checkpoint=checkpoint).open(clip)


def test_checkpoints_that_hold_code_are_refused(tmp_path, sam2_package_files, clip):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="can't be read as tensors"):
        Sam2(architecture=sam2_package_files["sam2"][0], checkpoint=tmp_path / "evil.pt").open(clip)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_safetensors_checkpoints_load_too(sam2_package_files, tmp_path, clip):
    from safetensors.torch import save_file

    architecture, checkpoint = sam2_package_files["sam2.1"]
    save_file(torch.load(checkpoint, weights_only=True)["model"], tmp_path / "tiny.safetensors")
    masks = []
    for path in (checkpoint, tmp_path / "tiny.safetensors"):
        with Sam2(architecture=architecture, checkpoint=path, device="cpu").open(clip) as session:
            masks.append(session.segment(0, [Prompt.click(0.3, 0.5)])[0].masks_KHW)
    assert (masks[0] == masks[1]).all()


def test_unknown_devices_are_told(sam2_package_files, clip):
    architecture, checkpoint = sam2_package_files["sam2"]
    for device in ("cuda:99", "toaster"):
        with pytest.raises(ConfigError, match="device"):
            Sam2(architecture=architecture, checkpoint=checkpoint, device=device).open(clip)
