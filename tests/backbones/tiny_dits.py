"""Tiny random pipelines of every family, saved as diffusers saves them, and a T5-like tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch

torch.set_num_threads(1)

T5_WIDTH = 16
WORDS = [
    "a",
    ".",
    ",",
    "_",
    "largest",
    "orange",
    "gold",
    "with",
    "the",
    "to",
    "pink",
    "red",
    "blue",
    "white",
    "cow",
    "brown",
    "patches",
    "camel",
    "walking",
    "cat",
    "dog",
    "on",
    "left",
    "right",
    "top",
    "man",
    "in",
    "shirt",
    "of",
    "'",
    "don",
    "t",
]


def tokenizer():
    """SentencePiece-like: unigram pieces with word marks; end token 1, padding 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    single = [w for w in WORDS if len(w) > 1 and w != "t"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -3.0), ("fish", -4.0)]
    vocab += [("▁" + w, -5.0) for w in single]
    vocab += [(c, -6.0) for c in "abcdefghijklmnopqrstuvwxyz.,_'!0123456789A"]
    core = Tokenizer(models.Unigram(vocab, unk_id=2))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=128, d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


def clip(projection: bool):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=16, eos_token_id=1, pad_token_id=0, bos_token_id=2,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def image_vae(channels=4):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=channels, block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=1, layers_per_block=1, scaling_factor=0.5, shift_factor=0.1,
    )  # fmt: skip


def transformer(family: str):
    import diffusers

    if family == "flux":
        return diffusers.FluxTransformer2DModel(
            in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=T5_WIDTH, pooled_projection_dim=16, guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        )  # fmt: skip
    if family in ("sd3", "sd35m"):
        return diffusers.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=T5_WIDTH, caption_projection_dim=16,
            pooled_projection_dim=16, out_channels=4, pos_embed_max_size=16, qk_norm="rms_norm",
            dual_attention_layers=(0, 1) if family == "sd35m" else (),
        )  # fmt: skip
    if family == "mochi":
        model = diffusers.MochiTransformer3DModel(
            patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=3,
            pooled_projection_dim=16, in_channels=12, text_embed_dim=T5_WIDTH, time_embed_dim=4,
        )  # fmt: skip
        torch.nn.init.normal_(model.pos_frequencies, std=0.1)
        return model
    if family in ("cogvideox", "cogvideox2b"):
        return diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=4,
            text_embed_dim=T5_WIDTH, num_layers=2, sample_width=8, sample_height=8, sample_frames=9,
            patch_size=2, temporal_compression_ratio=4, max_text_seq_length=64,
            use_rotary_positional_embeddings=family == "cogvideox",
        )  # fmt: skip
    if family == "wan":
        return diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
            out_channels=16, text_dim=T5_WIDTH, freq_dim=16, ffn_dim=32, num_layers=2,
        )  # fmt: skip
    raise KeyError(family)


def vae(family: str):
    import diffusers

    if family == "mochi":
        return diffusers.AutoencoderKLMochi(
            latent_channels=12, out_channels=3, encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1),
        )  # fmt: skip
    if family.startswith("cogvideox"):
        return diffusers.AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        )  # fmt: skip
    if family == "wan":
        return diffusers.AutoencoderKLWan(
            base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            temperal_downsample=[False, True, True],
        )  # fmt: skip
    return image_vae()


SCHEDULERS = {
    "flux": {
        "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
        "max_image_seq_len": 4096, "shift": 3.0,
    },
    "sd3": {"shift": 3.0},
    "cogvideox": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
}  # fmt: skip


def save(family: str, folder: Path, seed: int = 0) -> Path:
    """A whole model folder of one family."""
    torch.manual_seed(seed)
    model = transformer(family)
    # Freshly made gates and norms are 0 or 1 in some families, which would make layers alike.
    for parameter in model.parameters():
        if parameter.abs().max() == 0 or (parameter == 1).all():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "transformer")
    image_encoder = vae(family)
    image_encoder.save_pretrained(folder / "vae")
    index = {
        "transformer": ["diffusers", type(model).__name__],
        "vae": ["diffusers", type(image_encoder).__name__],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    encoders = {"text_encoder": t5()}
    if family == "flux":
        encoders = {"text_encoder": clip(False), "text_encoder_2": t5()}
    for name, module in encoders.items():
        module.save_pretrained(folder / name)
        place = name.replace("text_encoder", "tokenizer")
        tokenizer().save_pretrained(folder / place)
        index[name] = ["transformers", type(module).__name__]
        index[place] = ["transformers", "PreTrainedTokenizerFast"]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(SCHEDULERS.get(family, SCHEDULERS.get(family[:3], {})))
    )
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
