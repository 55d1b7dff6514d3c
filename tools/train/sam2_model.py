"""What ``tiny_sam2`` is made of: a ``Sam2VideoModel`` of transformers for 256 x 256 pixels."""

from __future__ import annotations

import torch
from transformers import Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video.configuration_sam2_video import (
    Sam2VideoMaskDecoderConfig,
    Sam2VideoPromptEncoderConfig,
)

IMAGE_SIZE = 256
_WIDTH = 128  # of decoder, memory attention and memory encoder
_STAGES = ((32, 1, 8), (64, 1, 8), (128, 3, 16))  # width, blocks and window of 64², 32² and 16² tokens

_SHARPNESS = 3.0  # of the decoder's attention between image and prompts in the beginning


def make_config() -> Sam2VideoConfig:
    """2.1 M parameters: three stages of Hiera, so that the coarsest tokens are 16 pixels wide as in SAM 2."""
    widths, blocks, windows = (list(column) for column in zip(*_STAGES, strict=True))
    grids = [IMAGE_SIZE // 4 >> stage for stage in range(len(_STAGES))]
    return Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": widths[0],
                "image_size": [IMAGE_SIZE, IMAGE_SIZE],
                "num_query_pool_stages": len(_STAGES) - 1,
                "blocks_per_stage": blocks,
                "embed_dim_per_stage": widths,
                "num_attention_heads_per_stage": [width // 32 for width in widths],
                "window_size_per_stage": windows,
                "global_attention_blocks": [],
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[grid, grid] for grid in grids],
            "fpn_hidden_size": _WIDTH,
            # All levels hear of the coarse ones: the mask is drawn on the finest.
            "fpn_top_down_levels": [0, 1],
        },
        # As objects: transformers 5.17 reads a dict of the decoder as the prompt encoder's.
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=_WIDTH, image_size=IMAGE_SIZE),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(hidden_size=_WIDTH, mlp_dim=512),
        image_size=IMAGE_SIZE,
        num_maskmem=4,
        memory_attention_hidden_size=_WIDTH,
        memory_attention_downsample_rate=2,
        memory_attention_feed_forward_hidden_size=256,
        memory_attention_num_layers=1,
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_attention_rope_feat_sizes=[grids[-1], grids[-1]],
        memory_encoder_hidden_size=_WIDTH,
        mask_downsampler_embed_dim=_WIDTH,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=_WIDTH,
        memory_fuser_intermediate_dim=4 * _WIDTH,
        memory_fuser_layer_scale_init_value=0.5,
    )


def make_model(seed: int) -> Sam2VideoModel:
    """The untrained model, with the layers' own initial weights: transformers' are for fine-tuning."""
    torch.manual_seed(seed)
    model = Sam2VideoModel(make_config())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(
                module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.Embedding
            ):
                module.reset_parameters()
        for name, module in model.mask_decoder.transformer.named_modules():
            if "_to_" in name and name.endswith(("_image", "_token")):
                # Like looks at like from the start, so that a click hears what is under it.
                module.q_proj.weight.mul_(_SHARPNESS)
                module.k_proj.weight.copy_(module.q_proj.weight)
        for name, parameter in model.named_parameters():
            if name.endswith(".scale"):
                parameter.fill_(model.config.memory_fuser_layer_scale_init_value)
            elif not parameter.any() and not name.endswith("bias"):
                torch.nn.init.trunc_normal_(parameter, std=0.02)
        # The code of places is fixed. Rounded, it is the same in every precision.
        code = model.shared_image_embedding.positional_embedding
        code.copy_(code.bfloat16())
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(code)
    return model
