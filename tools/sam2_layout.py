"""Write a SAM 2 of transformers in the layout of Meta's package: ``python tools/sam2_layout.py MODEL OUT``.

``OUT/architecture.yaml`` and ``OUT/model.safetensors`` are what ``segmenter=sam2`` takes as
``segmenter.architecture`` and ``segmenter.checkpoint``. Both give the same masks: the weights are the
same, but for zeros where the package fixes a width that the model makes less of.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: The decoder's feed-forward width, fixed in the package.
_MLP = 2048

#: Names in the transformers port → names in Meta's package, applied in order.
_RENAMES = [
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


def package_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``Sam2VideoModel`` under the names of Meta's package."""
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
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        out[name] = _widened(name, tensor)
    return out


def _widened(name: str, tensor: Tensor) -> Tensor:
    """A weight of the decoder's feed-forward layers with zeros up to the package's width, else a copy."""
    part = re.fullmatch(r"sam_mask_decoder\.transformer\.layers\.\d\.mlp\.layers\.([01])\.(\w+)", name)
    if part is None or part.groups() == ("1", "bias"):
        return tensor.clone()
    axis = int(part[1])  # the hidden units are the rows of the first layer, the columns of the second
    shape = list(tensor.shape)
    shape[axis] = _MLP - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def architecture(config: Any) -> dict[str, Any]:
    """The package's description of the model that a ``Sam2VideoConfig`` describes."""
    vision, hiera = config.vision_config, config.vision_config.backbone_config
    width, modeling = config.memory_attention_hidden_size, "sam2.modeling"
    newer = config.enable_occlusion_spatial_embedding

    def sine(features: int) -> dict[str, Any]:
        return {
            "_target_": f"{modeling}.position_encoding.PositionEmbeddingSine",
            "num_pos_feats": features,
            "normalize": True,
            "scale": None,
            "temperature": 10000,
        }

    attention = {
        "_target_": f"{modeling}.sam.transformer.RoPEAttention",
        "rope_theta": 10000.0,
        "feat_sizes": list(config.memory_attention_rope_feat_sizes),
        "embedding_dim": width,
        "num_heads": config.memory_attention_num_attention_heads,
        "downsample_rate": config.memory_attention_downsample_rate,
        "dropout": config.memory_attention_rope_dropout,
    }
    return {
        "_target_": f"{modeling}.sam2_base.SAM2Base",
        "image_encoder": {
            "_target_": f"{modeling}.backbones.image_encoder.ImageEncoder",
            # Levels beyond those that are used, coarsest first.
            "scalp": len(vision.backbone_channel_list) - vision.num_feature_levels,
            "trunk": {
                "_target_": f"{modeling}.backbones.hieradet.Hiera",
                "embed_dim": hiera.embed_dim_per_stage[0],
                "num_heads": hiera.num_attention_heads_per_stage[0],
                "stages": list(hiera.blocks_per_stage),
                "q_pool": hiera.num_query_pool_stages,
                "global_att_blocks": list(hiera.global_attention_blocks),
                "window_spec": list(hiera.window_size_per_stage),
                "window_pos_embed_bkg_spatial_size": list(hiera.window_positional_embedding_background_size),
            },
            "neck": {
                "_target_": f"{modeling}.backbones.image_encoder.FpnNeck",
                "position_encoding": sine(vision.fpn_hidden_size),
                "d_model": vision.fpn_hidden_size,
                "backbone_channel_list": list(vision.backbone_channel_list),
                "fpn_top_down_levels": list(vision.fpn_top_down_levels),
                "fpn_interp_model": "nearest",
            },
        },
        "memory_attention": {
            "_target_": f"{modeling}.memory_attention.MemoryAttention",
            "d_model": width,
            "pos_enc_at_input": True,
            "num_layers": config.memory_attention_num_layers,
            "layer": {
                "_target_": f"{modeling}.memory_attention.MemoryAttentionLayer",
                "activation": config.memory_attention_feed_forward_hidden_act,
                "dim_feedforward": config.memory_attention_feed_forward_hidden_size,
                "dropout": config.memory_attention_dropout,
                "pos_enc_at_attn": False,
                "d_model": width,
                "pos_enc_at_cross_attn_keys": True,
                "pos_enc_at_cross_attn_queries": False,
                "self_attention": attention,
                "cross_attention": {
                    **attention,
                    "rope_k_repeat": True,
                    "kv_in_dim": config.memory_encoder_output_channels,
                },
            },
        },
        "memory_encoder": {
            "_target_": f"{modeling}.memory_encoder.MemoryEncoder",
            "out_dim": config.memory_encoder_output_channels,
            "in_dim": config.memory_encoder_hidden_size,
            "position_encoding": sine(config.memory_encoder_output_channels),
            "mask_downsampler": {
                "_target_": f"{modeling}.memory_encoder.MaskDownSampler",
                "embed_dim": config.mask_downsampler_embed_dim,
                "kernel_size": config.mask_downsampler_kernel_size,
                "stride": config.mask_downsampler_stride,
                "padding": config.mask_downsampler_padding,
            },
            "fuser": {
                "_target_": f"{modeling}.memory_encoder.Fuser",
                "num_layers": config.memory_fuser_num_layers,
                "layer": {
                    "_target_": f"{modeling}.memory_encoder.CXBlock",
                    "dim": config.memory_fuser_embed_dim,
                    "kernel_size": config.memory_fuser_kernel_size,
                    "padding": config.memory_fuser_padding,
                    "layer_scale_init_value": config.memory_fuser_layer_scale_init_value,
                    "use_dwconv": True,
                },
            },
        },
        "num_maskmem": config.num_maskmem,
        "image_size": config.image_size,
        "max_obj_ptrs_in_encoder": config.max_object_pointers_in_encoder,
        "sigmoid_scale_for_mem_enc": config.sigmoid_scale_for_mem_enc,
        "sigmoid_bias_for_mem_enc": config.sigmoid_bias_for_mem_enc,
        "use_mask_input_as_output_without_sam": True,
        "directly_add_no_mem_embed": True,
        "no_obj_embed_spatial": newer,
        "use_high_res_features_in_sam": True,
        "multimask_output_in_sam": config.multimask_output_in_sam,
        "iou_prediction_use_sigmoid": True,
        "use_obj_ptrs_in_encoder": True,
        "add_tpos_enc_to_obj_ptrs": config.enable_temporal_pos_encoding_for_object_pointers,
        "proj_tpos_enc_in_obj_ptrs": config.enable_temporal_pos_encoding_for_object_pointers,
        "use_signed_tpos_enc_to_obj_ptrs": newer,
        "only_obj_ptrs_in_the_past_for_eval": True,
        "pred_obj_scores": True,
        "pred_obj_scores_mlp": True,
        "fixed_no_obj_ptr": True,
        "multimask_output_for_tracking": config.multimask_output_for_tracking,
        "use_multimask_token_for_obj_ptr": True,
        "multimask_min_pt_num": config.multimask_min_pt_num,
        "multimask_max_pt_num": config.multimask_max_pt_num,
        "use_mlp_for_obj_ptr_proj": True,
    }


def write(model: str | Path, out: Path) -> tuple[Path, Path]:
    """Convert a model folder of transformers.

    Returns:
        The architecture file and the checkpoint.
    """
    from omegaconf import OmegaConf
    from safetensors.torch import save_file
    from transformers import Sam2VideoModel

    loaded = Sam2VideoModel.from_pretrained(model, dtype=torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create({"model": architecture(loaded.config)}), out / "architecture.yaml")
    save_file(package_state(loaded.state_dict()), out / "model.safetensors")
    return out / "architecture.yaml", out / "model.safetensors"


def main() -> None:
    """Convert and say how to use what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model folder or hub id")
    parser.add_argument("out", type=Path, help="folder to write to")
    args = parser.parse_args()
    described, weights = write(args.model, args.out)
    print(f"segmenter=sam2 segmenter.architecture={described} segmenter.checkpoint={weights}")


if __name__ == "__main__":
    main()
