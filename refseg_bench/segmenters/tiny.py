"""Small untrained models of the SAM family, for wiring, counters, memory and parity checks.

Their masks mean nothing. They have every part of the real ones, at a size a CPU runs in milliseconds.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

IMAGE_SIZE = 128


def scatter(model: Any, seed: int) -> Any:
    """Random weights large enough that masks, scores and presence vary (the libraries' are near 0)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.1 * noise)
            elif name.endswith("pred_obj_score_head.proj_out.bias"):
                tensor.fill_(0.5)  # most objects are there, some are not
            elif "embed.weight" in name or "token" in name or "positional_embedding" in name:
                tensor.copy_(noise)
            elif tensor.dim() > 1:
                tensor.copy_(noise / math.sqrt(tensor[0].numel()))
            else:
                tensor.copy_(0.1 * noise)
    return model.eval()


def sam2_config(release: str = "2.1", image_size: int = IMAGE_SIZE) -> Any:
    """A ``Sam2VideoConfig`` of 2.4 M parameters."""
    from transformers import Sam2VideoConfig

    top = image_size // 16
    width = 128
    newer = release == "2.1"
    return Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 16,
                "image_size": [image_size, image_size],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [16, 32, 64, 128],
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "window_size_per_stage": [8, 4, 8, 4],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[4 * top] * 2, [2 * top] * 2, [top] * 2],
            "fpn_hidden_size": width,
        },
        prompt_encoder_config={"hidden_size": width, "image_size": image_size},
        mask_decoder_config={"hidden_size": width},
        image_size=image_size,
        enable_occlusion_spatial_embedding=newer,
        enable_temporal_pos_encoding_for_object_pointers=newer,
        memory_attention_hidden_size=width,
        memory_attention_feed_forward_hidden_size=64,
        memory_attention_num_layers=2,
        memory_attention_rope_feat_sizes=[top, top],
        memory_encoder_hidden_size=width,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=4 * width,
    )


def write_sam2(folder: Path, *, release: str = "2.1", image_size: int = IMAGE_SIZE, seed: int = 4) -> Path:
    """Save a small random SAM 2 as a local model folder for ``segmenter=sam2_hf``.

    Returns:
        The folder.
    """
    from transformers import Sam2VideoModel

    model = scatter(Sam2VideoModel(sam2_config(release, image_size)), seed)
    # The port keeps the random position code twice; a trained checkpoint holds the same one in both.
    code = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(code)
    model.save_pretrained(folder)
    return folder
