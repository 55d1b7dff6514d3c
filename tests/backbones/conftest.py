import numpy as np
import pytest

from tests.backbones import tiny_dits


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory):
    """Family name → folder of a tiny random model, made once."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tiny_dits.save(family, tmp_path_factory.mktemp("models") / family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def make_dit(dit_folder):
    """Family name and options → a backbone at 64 × 96 pixels in float32."""
    from refseg_bench.backbones.dit import DiT

    def make(family, **options):
        adapter = {"sd35m": "sd3", "cogvideox2b": "cogvideox"}.get(family, family)
        given = {"height": 64, "width": 96, "dtype": "fp32", "layers": "all", "prompt_padding": "none"}
        given["pooled"] = "prompt" if family == "flux" else "zeros"
        return DiT(str(dit_folder(family)), adapter, **{**given, **options})

    return make


@pytest.fixture(scope="session")
def picture():
    return np.random.default_rng(5).integers(0, 256, (50, 70, 3), dtype=np.uint8)
