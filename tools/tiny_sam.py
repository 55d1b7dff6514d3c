"""Small untrained models of the SAM family, for wiring, counters, memory and parity checks.

Their masks mean nothing. They have every part of the real ones, at a size a CPU runs in milliseconds.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch

from tools.sam2_layout import package_state

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
        The folder; ``tracker`` and ``detector`` are its sub-folders, ``video`` is both in one, as published.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Sam3Config,
        Sam3Model,
        Sam3TrackerVideoConfig,
        Sam3TrackerVideoModel,
        Sam3VideoConfig,
        Sam3VideoModel,
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
    whole = Sam3VideoModel(
        Sam3VideoConfig(
            detector_config=detector.config.to_dict(),
            tracker_config=tracker.config.to_dict(),
            low_res_mask_size=4 * top,
            score_threshold_detection=0.1,
            new_det_thresh=0.1,
            hotstart_delay=3,
            hotstart_unmatch_thresh=3,
            hotstart_dup_thresh=3,
            fill_hole_area=2,
        )
    )
    scatter(whole, seed + 2)
    whole.save_pretrained(folder / "video")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder / "video"
    )
    return folder


def write_grounding_dino(folder: Path, *, seed: int = 0) -> Path:
    """Save a small random Grounding-DINO (detector, tokenizer, image processor) as a local model folder."""
    from transformers import (
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", "a", "red", "disc", "dog"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin",
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 8],
            "window_size": 4,
            "image_size": 64,
            "out_features": ["stage2", "stage3", "stage4"],
        },
        text_config={
            "model_type": "bert",
            "vocab_size": len(words),
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        num_queries=8,
        encoder_layers=1,
        encoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_layers=2,
        decoder_ffn_dim=64,
        decoder_attention_heads=4,
        d_model=64,
    )
    scatter(GroundingDinoForObjectDetection(config), seed).save_pretrained(folder)
    picture = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(picture, tokenizer).save_pretrained(folder)
    return folder


def write_clip(folder: Path, *, seed: int = 0) -> Path:
    """Save a small random CLIP (model, tokenizer, image processor) as a local model folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

    words = ["[UNK]", "[PAD]", "[EOS]", "a", "red", "disc", "dog"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    scatter(CLIPModel(config), seed).save_pretrained(folder)
    CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
        ),
    ).save_pretrained(folder)
    return folder
