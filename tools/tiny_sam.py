"""Small untrained models of the SAM family, for wiring, counters, memory and parity checks.

Their masks mean nothing. They have every part of the real ones, at a size a CPU runs in milliseconds.
"""

from __future__ import annotations

import copy
import math
import re
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


def sam2_config(release: str = "sam2.1", image_size: int = IMAGE_SIZE) -> Any:
    """A ``Sam2VideoConfig`` of 2.4 M parameters."""
    from transformers import Sam2VideoConfig

    top = image_size // 16
    width = 128
    newer = release == "sam2.1"
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


def write_sam2(folder: Path, *, release: str = "sam2.1", image_size: int = IMAGE_SIZE, seed: int = 4) -> Path:
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


#: Names in the transformers port → names in Meta's package, applied in order.
RENAMES = [
    (r"^no_memory_embedding", "no_mem_embed"),
    (r"^no_memory_positional_encoding", "no_mem_pos_enc"),
    (r"^memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    (r"^no_object_pointer", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    (r"^temporal_positional_encoding_projection_layer", "obj_ptr_tpos_proj"),
    (r"^object_pointer_proj", "obj_ptr_proj"),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"(trunk\.blocks\.\d+\.)layer_norm", r"\1norm"),
    (r"(trunk\.blocks\.\d+\.mlp\.)proj_in", r"\1layers.0"),
    (r"(trunk\.blocks\.\d+\.mlp\.)proj_out", r"\1layers.1"),
    (
        r"^prompt_encoder\.shared_embedding\.positional_embedding",
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.mask_embed\.conv1", "sam_prompt_encoder.mask_downscaling.0"),
    (r"^prompt_encoder\.mask_embed\.layer_norm1", "sam_prompt_encoder.mask_downscaling.1"),
    (r"^prompt_encoder\.mask_embed\.conv2", "sam_prompt_encoder.mask_downscaling.3"),
    (r"^prompt_encoder\.mask_embed\.layer_norm2", "sam_prompt_encoder.mask_downscaling.4"),
    (r"^prompt_encoder\.mask_embed\.conv3", "sam_prompt_encoder.mask_downscaling.6"),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"(sam_mask_decoder\.transformer\.layers\.\d\.mlp\.)proj_in", r"\1layers.0"),
    (r"(sam_mask_decoder\.transformer\.layers\.\d\.mlp\.)proj_out", r"\1layers.1"),
    (r"(sam_mask_decoder\.transformer\.layers\.\d\.)layer_norm", r"\1norm"),
    (r"(sam_mask_decoder.*|memory_attention.*)o_proj", r"\1out_proj"),
    (r"sam_mask_decoder\.upscale_conv1", "sam_mask_decoder.output_upscaling.0"),
    (r"sam_mask_decoder\.upscale_layer_norm", "sam_mask_decoder.output_upscaling.1"),
    (r"sam_mask_decoder\.upscale_conv2", "sam_mask_decoder.output_upscaling.3"),
    (
        r"((?:output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)\.)layers\.0",
        r"\1layers.1",
    ),
    (
        r"((?:output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)\.)proj_in",
        r"\1layers.0",
    ),
    (
        r"((?:output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)\.)proj_out",
        r"\1layers.2",
    ),
    (r"(memory_attention\.layers\.\d\.)layer_norm", r"\1norm"),
    (r"^memory_attention\.layer_norm", "memory_attention.norm"),
    (r"memory_encoder\.mask_downsampler\.final_conv", "memory_encoder.mask_downsampler.encoder.12"),
    (r"memory_encoder\.feature_projection", "memory_encoder.pix_feat_proj"),
    (r"memory_encoder\.projection", "memory_encoder.out_proj"),
    (r"memory_encoder\.memory_fuser", "memory_encoder.fuser"),
    (r"(fuser\.layers\.\d\.)depthwise_conv", r"\1dwconv"),
    (r"(fuser\.layers\.\d\.)layer_norm", r"\1norm"),
    (r"(fuser\.layers\.\d\.)pointwise_conv", r"\1pwconv"),
    (r"(fuser\.layers\.\d\.)scale", r"\1gamma"),
]


def package_state(state):
    """A state dict of the port under the names of Meta's package."""
    out = {}
    for name, tensor in state.items():
        if name == "shared_image_embedding.positional_embedding":
            continue  # a second copy of the prompt encoder's
        if name == "prompt_encoder.point_embed.weight":
            for row in range(4):
                out[f"sam_prompt_encoder.point_embeddings.{row}.weight"] = tensor[row : row + 1].clone()
            continue
        layer = re.match(r"memory_encoder\.mask_downsampler\.layers\.(\d)\.(conv|layer_norm)\.(\w+)", name)
        if layer:
            position = 3 * int(layer[1]) + (layer[2] == "layer_norm")
            out[f"memory_encoder.mask_downsampler.encoder.{position}.{layer[3]}"] = tensor.clone()
            continue
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor.clone()
    return out


def write_large_sam2(folder: Path) -> None:
    """Save SAM 2.1 large, untrained, for both ports: ``folder/hf`` and ``folder/sam2.1_hiera_large.pt``."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    config = Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 144,
                "blocks_per_stage": [2, 6, 36, 4],
                "embed_dim_per_stage": [144, 288, 576, 1152],
                "num_attention_heads_per_stage": [2, 4, 8, 16],
                "window_size_per_stage": [8, 4, 16, 8],
                "global_attention_blocks": [23, 33, 43],
                "window_positional_embedding_background_size": [7, 7],
            },
            "backbone_channel_list": [1152, 576, 288, 144],
        },
        enable_occlusion_spatial_embedding=True,
        enable_temporal_pos_encoding_for_object_pointers=True,
    )
    model = scatter(Sam2VideoModel(config), 4)
    code = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(code)
    model.save_pretrained(folder / "hf")
    torch.save({"model": package_state(model.state_dict())}, folder / "sam2.1_hiera_large.pt")


def write_sam1(folder: Path, *, seed: int = 0) -> Path:
    """Save a small random SAM as a local model folder for ``segmenter=sam1``."""
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
            "mlp_dim": 64,
        },
        prompt_encoder_config={
            "hidden_size": 32,
            "image_size": IMAGE_SIZE,
            "image_embedding_size": IMAGE_SIZE // 16,
        },
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "iou_head_hidden_dim": 32,
            "num_attention_heads": 4,
        },
    )
    scatter(SamModel(config), seed).save_pretrained(folder)
    return folder


def write_sam3(folder: Path, *, seed: int = 0) -> Path:
    """Save small random parts of SAM 3 (tracker, concept detector, tokenizer) as local model folders.

    Returns:
        The folder; ``tracker`` and ``detector`` are its sub-folders.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Sam3Config,
        Sam3Model,
        Sam3TrackerVideoConfig,
        Sam3TrackerVideoModel,
    )

    size, patch, width = 112, 14, 128
    top = size // patch
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": size,
            "patch_size": patch,
            "pretrain_image_size": size,
            "window_size": 4,
            "global_attn_indexes": [1],
        },
        "fpn_hidden_size": width,
        "backbone_feature_sizes": [[4 * top] * 2, [2 * top] * 2, [top] * 2],
    }
    tracker = Sam3TrackerVideoModel(
        Sam3TrackerVideoConfig(
            vision_config=copy.deepcopy(vision),  # the config classes take entries out of it
            prompt_encoder_config={"hidden_size": width, "image_size": size, "patch_size": patch},
            mask_decoder_config={"hidden_size": width},
            memory_attention_hidden_size=width,
            memory_attention_feed_forward_hidden_size=64,
            memory_attention_num_layers=2,
            memory_attention_rope_feat_sizes=[top, top],
            memory_encoder_hidden_size=width,
            mask_downsampler_embed_dim=width,
            memory_fuser_embed_dim=width,
            memory_fuser_intermediate_dim=4 * width,
            image_size=size,
        )
    )
    scatter(tracker, seed)
    code = tracker.shared_image_embedding.positional_embedding
    tracker.prompt_encoder.shared_embedding.positional_embedding.copy_(code)
    tracker.save_pretrained(folder / "tracker")

    words = ["[UNK]", "[PAD]", "[BOS]", "[EOS]", "a", "red", "disc", "dog"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder / "detector"
    )
    small = {"hidden_size": width, "intermediate_size": 64, "num_layers": 1, "num_attention_heads": 4}
    detector = Sam3Model(
        Sam3Config(
            vision_config=copy.deepcopy(vision),
            text_config={
                "model_type": "clip_text_model",
                "vocab_size": len(words),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 32,
                "projection_dim": 32,
                "pad_token_id": 1,
                "bos_token_id": 2,
                "eos_token_id": 3,
            },
            geometry_encoder_config=small,
            detr_encoder_config=small,
            detr_decoder_config={**small, "num_queries": 6},
            mask_decoder_config={"hidden_size": width, "num_attention_heads": 4, "num_upsampling_stages": 2},
        )
    )
    scatter(detector, seed + 1)
    detector.save_pretrained(folder / "detector")
    return folder
