"""Small random models of the SAM family and a clip to run them on."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from refseg_bench.types import Clip

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory):
    """A clip of a coloured disc that drifts over noise."""

    def make(length=6, size=(60, 90), seed=0, suffix=".png"):
        rng = np.random.default_rng(seed)
        folder = tmp_path_factory.mktemp("clip")
        ground = rng.integers(0, 120, (*size, 3))
        y, x = np.mgrid[: size[0], : size[1]]
        paths = []
        for t in range(length):
            frame = ground.copy()
            disc = (y - size[0] / 2) ** 2 + (x - 20 - 8 * t) ** 2 < 14**2
            frame[disc] = (230, 60 + 10 * t, 40)
            path = folder / f"{t:05d}{suffix}"
            Image.fromarray(frame.astype(np.uint8)).save(path, quality=95)
            paths.append(path)
        return Clip("disc", tuple(paths), tuple(p.stem for p in paths), size)

    return make


@pytest.fixture(scope="session")
def clip(make_clip):
    return make_clip()


@pytest.fixture(scope="session")
def sam2_folder(tmp_path_factory):
    """Release → folder of a small random model for transformers."""
    from tools import tiny_sam as tiny

    return {
        release: tiny.write_sam2(tmp_path_factory.mktemp(f"sam2_hf_{release}"), release=release, seed=seed)
        for release, seed in (("sam2", 3), ("sam2.1", 4))
    }


# ── the same weights for Meta's package ──────────────────────────────────────

ARCHITECTURE = """
model:
  _target_: sam2.modeling.sam2_base.SAM2Base
  image_encoder:
    _target_: sam2.modeling.backbones.image_encoder.ImageEncoder
    scalp: 1
    trunk: {{_target_: sam2.modeling.backbones.hieradet.Hiera, embed_dim: 16, num_heads: 1,
             stages: [1, 1, 2, 1], global_att_blocks: [3], window_spec: [8, 4, 8, 4],
             window_pos_embed_bkg_spatial_size: [7, 7]}}
    neck:
      _target_: sam2.modeling.backbones.image_encoder.FpnNeck
      position_encoding: {{_target_: sam2.modeling.position_encoding.PositionEmbeddingSine,
                           num_pos_feats: 128, normalize: true, scale: null, temperature: 10000}}
      d_model: 128
      backbone_channel_list: [128, 64, 32, 16]
      fpn_top_down_levels: [2, 3]
      fpn_interp_model: nearest
  memory_attention:
    _target_: sam2.modeling.memory_attention.MemoryAttention
    d_model: 128
    pos_enc_at_input: true
    num_layers: 2
    layer:
      _target_: sam2.modeling.memory_attention.MemoryAttentionLayer
      activation: relu
      dim_feedforward: 64
      dropout: 0.1
      pos_enc_at_attn: false
      d_model: 128
      pos_enc_at_cross_attn_keys: true
      pos_enc_at_cross_attn_queries: false
      self_attention: {{_target_: sam2.modeling.sam.transformer.RoPEAttention, rope_theta: 10000.0,
                        feat_sizes: [8, 8], embedding_dim: 128, num_heads: 1, downsample_rate: 1,
                        dropout: 0.1}}
      cross_attention: {{_target_: sam2.modeling.sam.transformer.RoPEAttention, rope_theta: 10000.0,
                         feat_sizes: [8, 8], rope_k_repeat: true, embedding_dim: 128, num_heads: 1,
                         downsample_rate: 1, dropout: 0.1, kv_in_dim: 64}}
  memory_encoder:
    _target_: sam2.modeling.memory_encoder.MemoryEncoder
    out_dim: 64
    in_dim: 128
    position_encoding: {{_target_: sam2.modeling.position_encoding.PositionEmbeddingSine,
                         num_pos_feats: 64, normalize: true, scale: null, temperature: 10000}}
    mask_downsampler: {{_target_: sam2.modeling.memory_encoder.MaskDownSampler, embed_dim: 128,
                        kernel_size: 3, stride: 2, padding: 1}}
    fuser:
      _target_: sam2.modeling.memory_encoder.Fuser
      num_layers: 2
      layer: {{_target_: sam2.modeling.memory_encoder.CXBlock, dim: 128, kernel_size: 7, padding: 3,
               layer_scale_init_value: 1.0e-6, use_dwconv: true}}
  num_maskmem: 7
  image_size: 128
  sigmoid_scale_for_mem_enc: 20.0
  sigmoid_bias_for_mem_enc: -10.0
  use_mask_input_as_output_without_sam: true
  directly_add_no_mem_embed: true
  no_obj_embed_spatial: {newer}
  use_high_res_features_in_sam: true
  multimask_output_in_sam: true
  iou_prediction_use_sigmoid: true
  use_obj_ptrs_in_encoder: true
  add_tpos_enc_to_obj_ptrs: {newer}
  proj_tpos_enc_in_obj_ptrs: {newer}
  use_signed_tpos_enc_to_obj_ptrs: {newer}
  only_obj_ptrs_in_the_past_for_eval: true
  pred_obj_scores: true
  pred_obj_scores_mlp: true
  fixed_no_obj_ptr: true
  multimask_output_for_tracking: true
  use_multimask_token_for_obj_ptr: true
  multimask_min_pt_num: 0
  multimask_max_pt_num: 1
  use_mlp_for_obj_ptr_proj: true
"""

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


@pytest.fixture(scope="session")
def sam2_package_files(sam2_folder, tmp_path_factory):
    """Release → (architecture YAML, checkpoint) with the very weights of ``sam2_folder``."""
    from transformers import Sam2VideoModel

    out = {}
    for release, folder in sam2_folder.items():
        place = tmp_path_factory.mktemp(f"sam2_{release}")
        (place / "tiny.yaml").write_text(ARCHITECTURE.format(newer=str(release == "sam2.1").lower()))
        state = package_state(Sam2VideoModel.from_pretrained(folder).state_dict())
        torch.save({"model": state}, place / "tiny.pt")
        out[release] = (place / "tiny.yaml", place / "tiny.pt")
    return out
