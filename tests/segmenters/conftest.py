"""Small random models of the SAM family and a clip to run them on."""

from __future__ import annotations

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


@pytest.fixture(scope="session")
def sam2_package_files(sam2_folder, tmp_path_factory):
    """Release → (architecture YAML, checkpoint) with the very weights of ``sam2_folder``."""
    from transformers import Sam2VideoModel

    from tools import tiny_sam as tiny

    out = {}
    for release, folder in sam2_folder.items():
        place = tmp_path_factory.mktemp(f"sam2_{release}")
        (place / "tiny.yaml").write_text(ARCHITECTURE.format(newer=str(release == "sam2.1").lower()))
        state = tiny.package_state(Sam2VideoModel.from_pretrained(folder).state_dict())
        torch.save({"model": state}, place / "tiny.pt")
        out[release] = (place / "tiny.yaml", place / "tiny.pt")
    return out
