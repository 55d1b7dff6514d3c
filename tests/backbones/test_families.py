"""Token grids, pixels and layouts of the families, against the published table and the processors."""

import numpy as np
import pytest
import torch
import transformers as t
from hypothesis import given
from hypothesis import strategies as st
from packaging import version

from refseg_bench.backbones.base import RolloutSettings, VisualSettings
from refseg_bench.backbones.mllm import pixels
from refseg_bench.backbones.mllm.families import Visual, family_of
from refseg_bench.errors import ConfigError, DataError
from tests.tiny_mllm import FAMILIES, backbone, build, clip_frames, tokenizer

#: height, width: Qwen video h, w, tokens of 16 frames; Qwen frame; InternVL columns, rows, grid;
#: LLaVA-OneVision canvas in pixels, grid.
GRIDS = [
    ((480, 854), (14, 26), 2912, (28, 52), (2, 1), (16, 32), (768, 1152), (46, 81)),
    ((480, 910), (14, 27), 3024, (28, 54), (2, 1), (16, 32), (768, 1152), (42, 81)),
    ((480, 640), (17, 23), 3128, (34, 46), (4, 3), (48, 64), (768, 768), (40, 54)),
    ((360, 640), (13, 23), 2392, (26, 46), (2, 1), (16, 32), (384, 768), (27, 48)),
    ((720, 1280), (14, 26), 2912, (28, 52), (4, 2), (32, 64), (768, 1536), (54, 96)),
    ((1080, 1920), (14, 26), 2912, (28, 52), (4, 2), (32, 64), (1152, 1920), (60, 108)),
]


@pytest.fixture(scope="module")
def real():
    """Adapters around the families' configs at their published sizes."""
    configs = {
        "qwen2_vl": t.Qwen2VLConfig(),
        # The published checkpoints say 2; the class says 4.
        "qwen2_5_vl": t.Qwen2_5_VLConfig(vision_config={"tokens_per_second": 2}),
        "internvl": t.InternVLConfig(),
        "llava_onevision": t.LlavaOnevisionConfig(),
    }
    return {name: family_of(config, {}) for name, config in configs.items()}


@pytest.mark.parametrize("row", GRIDS, ids=lambda row: f"{row[0][0]}x{row[0][1]}")
def test_grid_table(real, row):
    size, qwen_video, tokens, qwen_frame, tiling, internvl, canvas, llava = row
    visual = VisualSettings()
    for name in ("qwen2_vl", "qwen2_5_vl"):
        grid = real[name].video_grid(size, 16, visual)
        assert grid == (8, *qwen_video)
        assert np.prod(grid) == tokens
        assert real[name].frame_grid(size, visual) == qwen_frame
    family = real["internvl"]
    assert family.video_grid(size, 16, visual) == (16, 16, 16)
    assert family.tiles(size, visual) == (tiling[1], tiling[0])
    assert family.frame_grid(size, visual) == internvl
    family = real["llava_onevision"]
    assert family.video_grid(size, 16, visual) == (16, 14, 14)
    assert family.canvas(size, visual) == canvas
    assert family.frame_grid(size, visual) == llava


def test_single_scale_and_token_cap(real):
    size = (480, 854)
    off = VisualSettings(multiscale=False)
    assert real["qwen2_vl"].frame_grid(size, off) == (14, 26)
    assert real["internvl"].frame_grid(size, off) == (16, 16)
    assert real["llava_onevision"].canvas(size, off) == (384, 384)
    assert real["llava_onevision"].frame_grid(size, off) == (15, 27)
    capped = real["qwen2_vl"].frame_grid(size, VisualSettings(frame_tokens=768))
    assert capped[0] * capped[1] <= 768
    assert capped != (28, 52)
    assert real["qwen2_vl"].video_grid(size, 5, VisualSettings(video_tokens=768))[0] == 3


@given(st.integers(20, 2200), st.integers(20, 2200), st.sampled_from([28, 32]), st.sampled_from([400, 768]))
def test_smart_resize_is_transformers(height, width, factor, tokens):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    low, high = 4 * factor**2, tokens * factor**2
    if round(height / factor) and round(width / factor):
        assert pixels.smart_resize(height, width, factor, low, high) == smart_resize(
            height, width, factor, low, high
        )


def test_elongated_frames_are_refused():
    with pytest.raises(DataError, match="too elongated"):
        pixels.smart_resize(10, 2001, 28, 3136, 10**6)


@given(st.integers(50, 2200), st.integers(50, 2200), st.sampled_from([1, 6, 12]))
def test_tiling_is_transformers(height, width, most):
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    assert pixels.tiling((height, width), (448, 448), most) == get_optimal_tiled_canvas(
        (height, width), (448, 448), 1, most
    )


@given(st.integers(50, 2200), st.integers(50, 2200))
def test_canvas_and_unpadding_are_transformers(height, width):
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image

    options = [(384 * r, 384 * c) for r in range(1, 7) for c in range(1, 7)]
    canvas = pixels.best_canvas((height, width), options)
    assert canvas == select_best_resolution((height, width), options)
    grid = (canvas[0] // 384 * 27, canvas[1] // 384 * 27)
    rows, columns = pixels.unpadded((height, width), grid)
    expected = unpad_image(torch.zeros(1, *grid), (height, width)).shape[1:]
    assert (rows.stop - rows.start, columns.stop - columns.start) == tuple(expected)


def test_tiles_come_apart_and_together_again():
    image = torch.arange(3 * 6 * 8, dtype=torch.float32).view(3, 6, 8)
    tiles = pixels.cut_tiles(image, 3, 2)
    assert tiles.shape == (6, 3, 2, 4)
    assert torch.equal(tiles[3], image[:, 2:4, 4:8])
    square = pixels.cut_tiles(torch.arange(24.0).view(1, 4, 6), 2, 3)[:, 0]
    joined = pixels.join_tiles(square.reshape(-1).numpy(), 2, 3, 2)
    np.testing.assert_array_equal(joined, np.arange(24.0).reshape(4, 6))


def test_qwen_pixels_are_the_processors():
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    family = family_of(t.Qwen2VLConfig(), {})
    visual = VisualSettings(video_tokens=12)
    frames = clip_frames(5, (100, 150))
    made = family.frame(frames[0], visual)
    high, wide = family.frame_size((100, 150), visual)
    small = pixels.resize_pil(frames[0], (high, wide))
    size = {"shortest_edge": 28 * 28, "longest_edge": 10**8}
    for processor in (Qwen2VLImageProcessorPil(size=size), Qwen2VLImageProcessor(size=size)):
        expected = processor(images=[small], return_tensors="pt")
        assert torch.equal(expected["image_grid_thw"], made.inputs["image_grid_thw"])
        torch.testing.assert_close(made.inputs["pixel_values"], expected["pixel_values"], atol=3e-6, rtol=0)
    clip = family.video(frames, visual)
    squeezed = np.stack([pixels.resize_pil(f, family.video_size((100, 150), visual)) for f in frames])
    expected = Qwen2VLVideoProcessor(size=size)(
        videos=[np.concatenate([squeezed, squeezed[-1:]])], return_tensors="pt", do_sample_frames=False
    )
    assert torch.equal(expected["video_grid_thw"], clip.inputs["video_grid_thw"])
    torch.testing.assert_close(
        clip.inputs["pixel_values_videos"], expected["pixel_values_videos"], atol=3e-6, rtol=0
    )


def test_internvl_pixels_are_the_processors_less_the_thumbnail():
    from transformers import GotOcr2ImageProcessor

    family = family_of(t.InternVLConfig(), {})
    frame = clip_frames(1, (300, 700))[0]
    made = family.frame(frame, VisualSettings())
    processor = GotOcr2ImageProcessor(
        size={"height": 448, "width": 448},
        image_mean=list(family.mean()),
        image_std=list(family.std()),
        crop_to_patches=True,
    )
    expected = processor(images=[frame], return_tensors="pt")["pixel_values"]
    assert len(made.inputs["pixel_values"]) == len(expected) - 1 == made.tiles[0] * made.tiles[1]
    torch.testing.assert_close(made.inputs["pixel_values"], expected[:-1], atol=3e-6, rtol=0)


def test_llava_pixels_are_the_processors_less_the_base_image():
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    family = family_of(t.LlavaOnevisionConfig(), {})
    frame = clip_frames(1, (301, 433))[0]
    made = family.frame(frame, VisualSettings())
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 384, "width": 384},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        image_grid_pinpoints=family.config.image_grid_pinpoints,
    )
    expected = processor(images=[frame], return_tensors="pt")["pixel_values"][0]
    assert len(made.inputs["pixel_values"]) == len(expected) - 1
    torch.testing.assert_close(made.inputs["pixel_values"], expected[1:], atol=3e-6, rtol=0)


def text_of(head, tail, names):
    shown = "".join(p if isinstance(p, str) else f"<{names[p[0]]}*{p[1]}>" for p in head)
    return shown + tail[0] + "TEXT" + tail[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_layouts(name):
    model = build(name)
    family = family_of(model.config, {})
    config = model.config
    names = {getattr(config, "video_token_id", None): "V", config.image_token_id: "I"}
    visual = VisualSettings(video_tokens=12)
    frames = clip_frames(3)
    video, frame = family.video(frames, visual), family.frame(frames[0], visual)
    end = "<|im_end|>\n<|im_start|>assistant\n"
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    if name in ("qwen2_vl", "qwen2_5_vl"):
        expected = f"{default}<|vision_start|><V*16><|vision_end|>TEXT{end}"
        single = f"{default}<|vision_start|><I*32><|vision_end|>TEXT{end}"
        alone = f"{default}TEXT{end}"
    elif name == "qwen3_vl":
        user = "<|im_start|>user\n"
        expected = (
            f"{user}<0.5 seconds><|vision_start|><V*8><|vision_end|><2.5 seconds><|vision_start|><V*8>"
            f"<|vision_end|>TEXT{end}"
        )
        single, alone = f"{user}<|vision_start|><I*32><|vision_end|>TEXT{end}", f"{user}TEXT{end}"
    elif name == "internvl":
        system = (
            "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位"
            "联合开发的多模态大语言模型。<|im_end|>\n<|im_start|>user\n"
        )
        expected = (
            f"{system}Frame1: <img><I*4></img>\nFrame2: <img><I*4></img>\nFrame3: <img><I*4></img>\nTEXT{end}"
        )
        single, alone = f"{system}<img><I*48></img>\nTEXT{end}", f"{system}TEXT{end}"
    else:
        system = "<|im_start|>system \nYou are a helpful assistant.<|im_end|><|im_start|>user "
        end = "<|im_end|><|im_start|>assistant\n"
        expected, single = f"{system}<V*12>\nTEXT{end}", f"{system}<I*24>\nTEXT{end}"
        alone = f"{system}\nTEXT{end}"
    assert text_of(video.head, video.tail, names) == expected
    assert text_of(frame.head, frame.tail, names) == single
    assert "TEXT".join(family.text_only()) == alone


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_tokenise_like_the_whole_prompt(name):
    from refseg_bench.backbones.mllm import _Loaded

    family = family_of(build(name).config, {})
    loaded = _Loaded(None, tokenizer(), family, None)
    block = family.video(clip_frames(3), VisualSettings(video_tokens=12))
    text = "the dog's tail. \nWhich (e.g., 'cat')? "
    pieces = loaded.pieces(block.head) + loaded.tokens(block.tail[0] + text + block.tail[1])
    names = tokenizer().convert_ids_to_tokens(range(len(tokenizer())))
    whole = "".join(p if isinstance(p, str) else names[p[0]] * p[1] for p in block.head)
    assert pieces == loaded.tokens(whole + block.tail[0] + text + block.tail[1])


def test_checkpoint_statistics_win():
    family = family_of(t.Qwen2VLConfig(), {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]})
    assert family.mean() == (0.1, 0.2, 0.3)
    assert family.std() == (1, 1, 1)


def test_an_unknown_type_is_told():
    with pytest.raises(ConfigError, match="type 'paligemma'") as told:
        family_of(t.PaliGemmaConfig(), {})
    assert "qwen2_5_vl" in str(told.value)


#: Family, temporal cells, rows, columns, start of the block → time of the last cell, first position after.
#: By hand from the rule of transformers 4.52.1; the lines below the middle have more time than space.
POSITIONS = [
    ("qwen2_vl", 8, 15, 27, 4, 7, 4 + 27),
    ("qwen2_vl", 8, 7, 8, 4, 7, 4 + 8),
    ("qwen2_5_vl", 8, 15, 27, 4, 14, 4 + 27),
    ("qwen2_5_vl", 8, 13, 15, 4, 14, 4 + 15),
    ("qwen2_vl", 8, 6, 7, 4, 7, 4 + 8),
    ("qwen2_vl", 16, 7, 9, 4, 15, 4 + 16),
    ("qwen2_5_vl", 8, 7, 9, 4, 14, 4 + 15),
    ("qwen2_5_vl", 16, 15, 27, 4, 30, 4 + 31),
    ("qwen2_5_vl", 90, 7, 9, 4, 178, 4 + 179),
]


@pytest.mark.parametrize(("name", "cells", "rows", "columns", "start", "last", "after"), POSITIONS)
def test_video_positions_are_those_the_models_were_trained_with(
    real, name, cells, rows, columns, start, last, after
):
    family = real[name]
    token = int(family.config.video_token_id)
    ids = torch.tensor([[7] * start + [token] * (cells * rows * columns)])
    visual = Visual({}, (), ("", ""), token, (cells, rows, columns))
    positions, first = family.head_positions(None, ids, visual)
    assert positions.shape == (3, 1, ids.shape[1])
    assert positions[:, 0, :start].tolist() == [list(range(start))] * 3
    assert positions[:, 0, start].tolist() == [start] * 3
    assert positions[:, 0, -1].tolist() == [start + last, start + rows - 1, start + columns - 1]
    assert first == after


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("where", ["video", 1])
def test_positions_are_the_installed_ones_where_the_rules_agree(name, where):
    """More space than time: every version of transformers numbers alike (2.5 where the rate is handed in)."""
    model = build(name)
    family = family_of(model.config, {})
    frames, settings = clip_frames(5, (120, 168)), VisualSettings()
    visual = family.video(frames, settings) if where == "video" else family.frame(frames[where], settings)
    made = backbone(name).loaded()
    ids = torch.tensor([made.pieces(visual.head)])
    fixed = family.head_positions(model, ids, visual)
    family.positions = "transformers"
    installed = family.head_positions(model, ids, visual)
    assert torch.equal(fixed[0], installed[0])
    assert fixed[1] == installed[1]


def test_the_rule_of_positions_reaches_the_map_and_its_key():
    """Small frames, long time: where the rules part, the option moves the map, and the cache knows."""
    frames = clip_frames(16, (28, 42))
    maps, keys = [], []
    for rule in ("fixed", "transformers"):
        made = backbone("qwen2_5_vl", positions=rule)
        with made.open(frames, VisualSettings(), RolloutSettings()) as session:
            maps.append(session.read("video", ["where?"], answer=False)[0].map_Thw)
        keys.append(made.identity())
    assert keys[0] != keys[1]
    # Up to 5.2 transformers had the rule that is fixed here.
    assert np.array_equal(*maps) == (version.parse(t.__version__) < version.parse("5.3"))


def test_llava_video_pixels_are_the_processors():
    family = family_of(t.LlavaOnevisionConfig(), {})
    frames = clip_frames(3, (120, 200))
    half = [0.5, 0.5, 0.5]
    processor = t.LlavaOnevisionVideoProcessor(
        size={"height": 384, "width": 384}, image_mean=half, image_std=half
    )
    expected = processor(videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt")
    found = family.video(frames, VisualSettings()).inputs["pixel_values"]
    torch.testing.assert_close(found, expected["pixel_values_videos"][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_are_prepared_where_the_model_is(name):
    """All that follows the resizing runs on the device alone: a meta tensor meets no other."""
    frames, visual = clip_frames(3), VisualSettings(video_tokens=12)
    here = backbone(name).loaded().family
    there = family_of(here.config, {})
    there.device = "meta"
    for block, other in zip(
        *((f.video(frames, visual), f.frame(frames[1], visual)) for f in (here, there)), strict=True
    ):
        (key,) = (key for key in block.inputs if key.startswith("pixel_values"))
        assert other.inputs[key].device.type == "meta"
        assert other.inputs[key].shape == block.inputs[key].shape
        assert other.inputs[key].dtype == torch.float32
