"""Architectures of transformers, by kind, each as small as it goes: random weights, a random batch, no network.

transformers is imported when a model is built: to collect the tests takes none of its seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

Batch = dict[str, torch.Tensor]
Size = int | tuple[int, ...] | Callable[[], torch.Tensor]
"""Of one input: so many token ids, so many random numbers, or what makes it."""

ROWS, VOCABULARY, IMAGE = 2, 99, (3, 32, 32)
IMAGE_TOKEN = VOCABULARY - 1

SMALL: dict[str, int] = {
    # what is read
    "vocab_size": VOCABULARY, "max_position_embeddings": 64, "n_positions": 64, "max_source_positions": 64,
    "max_target_positions": 64, "image_size": 32, "patch_size": 8, "num_mel_bins": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    # how wide
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embedding_size": 32, "embedding_dim": 32,
    "projection_dim": 32, "intermediate_size": 64, "ffn_hidden_size": 64, "d_ff": 64, "d_inner": 64, "dff": 64,
    "ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "hidden_dim": 64,
    # how deep
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    # attention
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "d_head": 8, "q_lora_rank": 8,
    "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    # experts, states
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "state_size": 8, "chunk_size": 8,
}  # fmt: skip
"""What a configuration is given, of the numbers that it has."""


def _each(names: str, value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names.split(), value)


def _as_they_are(names: str) -> dict[str, dict[str, Any]]:
    return _each(names, {})


MIXER = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
}  # fmt: skip
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
EFFICIENTNET = {
    "kernel_sizes": [3, 5], "in_channels": [32, 16], "out_channels": [16, 32], "strides": [1, 2],
    "num_block_repeats": [1, 2], "expand_ratios": [1, 6], "width_coefficient": 0.25, "hidden_dim": 320,
}  # fmt: skip
PYRAMID = {
    "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4, 2],
    "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
}  # fmt: skip
WINDOWS = {"patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2}
WAVES = {
    "conv_dim": [8, 8, 8], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3], "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "mask_time_length": 2,
}  # fmt: skip
CODEC = {"num_filters": 4, "hidden_size": 16, "upsampling_ratios": [4, 2], "codebook_size": 16}
FORECAST = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2]}

KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "text encoders": {
        **_as_they_are("albert bert convbert deberta deberta-v2 distilbert dpr electra esm eurobert fnet ibert"),
        **_as_they_are("megatron-bert mobilebert modernbert mpnet nystromformer rembert roberta roformer squeezebert"),
        **_as_they_are("tapas xlnet"),
        "big_bird": {"block_size": 2, "num_random_blocks": 1},
        "canine": {"local_transformer_stride": 4, "num_hash_buckets": 64},
        "layoutlm": {"max_2d_position_embeddings": 32},
        "longformer": {"attention_window": 4},
        "luke": {"entity_vocab_size": 9, "entity_emb_size": 16},
        "markuplm": {"max_depth": 4, "max_xpath_tag_unit_embeddings": 20, "max_xpath_subs_unit_embeddings": 20,
                     "xpath_unit_hidden_size": 8, "tag_pad_id": 19, "subs_pad_id": 19},
        "xlm": {"emb_dim": 32, "n_words": VOCABULARY},
        "xmod": {"default_language": "en_XX"},
    },
    "decoders": {
        **_as_they_are("biogpt bloom cohere ctrl diffllama doge falcon gemma2 gemma3_text glm4 gpt2 gpt_bigcode"),
        **_as_they_are("gpt_neox granite imagegpt llama mistral mpt nanochat olmo2 openai-gpt opt persimmon phi phi3"),
        **_as_they_are("qwen3 stablelm starcoder2 xglm"),
        "codegen": {"rotary_dim": 4},
        "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
        "gptj": {"rotary_dim": 4},
    },
    "mixtures of experts": {
        **_as_they_are("ernie4_5_moe glm4_moe gpt_oss granitemoe jetmoe llama4_text minimax mixtral nllb-moe olmoe"),
        **_as_they_are("phimoe qwen2_moe qwen3_moe switch_transformers"),
        "deepseek_v2": {"first_k_dense_replace": 1},
        "deepseek_v3": {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4,
                        "head_dim": 4},
    },
    "state spaces and recurrence": {
        **_as_they_are("falcon_mamba mamba recurrent_gemma rwkv"),
        "bamba": {**MIXER, "attn_layer_indices": [1]},
        "falcon_h1": {**MIXER, "mamba_d_ssm": 64},
        "granitemoehybrid": {**MIXER, "layer_types": DELTA["layer_types"], "shared_intermediate_size": 32},
        "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
                  "mamba_d_state": 8, "mamba_dt_rank": 4},
        "lfm2": {"layer_types": ["conv", "full_attention"]},
        "mamba2": {"num_heads": 8, "n_groups": 2},
        "olmo_hybrid": DELTA,
        "qwen3_next": DELTA,
        "xlstm": {"num_blocks": 2},
        "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
                   "mamba_d_state": 8, "adapter_rank": 4, "num_key_value_heads": 4},
    },
    "encoder-decoders": {
        **_as_they_are("bart blenderbot m2m_100 marian mbart mt5 t5 umt5"),
        "bigbird_pegasus": {"block_size": 2, "num_random_blocks": 1},
        "fsmt": {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
        "led": {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 4},
        "longt5": {"local_radius": 3},
        "pegasus_x": {"num_global_tokens": 4, "block_size": 4},
        "prophetnet": {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 4,
                       "num_decoder_attention_heads": 4},
    },
    "vision transformers": {
        **_as_they_are("beit deit dinov2 dinov3_vit ijepa pixtral vit"),
        "cvt": {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
        "dpt": {"backbone_out_indices": [0, 0, 1, 1], "neck_hidden_sizes": [8, 8, 8, 8]},
        "hiera": {"embed_dim": 8, "image_size": [32, 32], "patch_size": [7, 7], "depths": [1, 1], "num_heads": [1, 2],
                  "num_query_pool": 1, "masked_unit_size": [2, 2], "masked_unit_attention": [True, False]},
        "levit": {"patch_size": 16, "hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2],
                  "depths": [1, 1, 1], "key_dim": [8, 8, 8], "image_size": 64},
        "mobilevit": {"patch_size": 2, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16]},
        "poolformer": {**PYRAMID, "padding": [2, 1]},
        "pvt": {**PYRAMID, "patch_sizes": [4, 2], "sequence_reduction_ratios": [2, 1]},
        "sam_vision_model": {"output_channels": 8, "mlp_dim": 64, "global_attn_indexes": [1], "window_size": 2},
        "segformer": {**PYRAMID, "sr_ratios": [2, 1]},
        "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 16]},
        "swin": WINDOWS,
        "swinv2": {**WINDOWS, "pretrained_window_sizes": [0, 0]},
        "timesformer": {"num_frames": 4},
        "videomae": {"num_frames": 4},
        "vit_mae": {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
                    "decoder_intermediate_size": 32},
        "vivit": {"num_frames": 4, "tubelet_size": [2, 8, 8]},
        "yolos": {"image_size": [32, 32], "num_detection_tokens": 4},
    },
    "convolutions": {
        "bit": {**RESNET, "num_groups": 2},
        "convnext": {"patch_size": 4, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
        "convnextv2": {"patch_size": 4, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
        "efficientnet": EFFICIENTNET,
        "focalnet": {"patch_size": 4, "embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                     "focal_levels": [2, 2], "focal_windows": [3, 3]},
        "mobilenet_v1": {"depth_multiplier": 0.125},
        "mobilenet_v2": {"depth_multiplier": 0.125},
        "regnet": {**RESNET, "groups_width": 4},
        "resnet": RESNET,
        "textnet": {"stem_out_channels": 8, "hidden_sizes": [8, 8, 8, 16, 16], "image_size": [32, 32]},
    },
    "audio": {
        **_as_they_are("moonshine parakeet_encoder whisper"),
        "audio-spectrogram-transformer": {"max_length": 32, "frequency_stride": 8, "time_stride": 8},
        "dac": {"encoder_hidden_size": 4, "downsampling_ratios": [2, 4], "decoder_hidden_size": 16, "n_codebooks": 2,
                "codebook_size": 16, "codebook_dim": 4, "upsampling_ratios": [4, 2], "hidden_size": 16},
        "encodec": {**CODEC, "codebook_dim": 16, "num_lstm_layers": 1},
        "mimi": {**CODEC, "codebook_dim": 8, "num_quantizers": 2, "vector_quantization_hidden_dimension": 8,
                 "upsample_groups": 4, "head_dim": 4, "sliding_window": 8},
        "hubert": WAVES,
        "sew": WAVES,
        "sew-d": WAVES,
        "speech_to_text": {"conv_channels": 16, "input_feat_per_channel": 16},
        "univnet": {"model_in_channels": 8, "model_hidden_channels": 8, "num_mel_bins": 8,
                    "kernel_predictor_num_blocks": 1, "kernel_predictor_hidden_channels": 8},
        "wav2vec2": WAVES,
        "wav2vec2-bert": {"feature_projection_input_dim": 16, "mask_time_length": 2, "conv_depthwise_kernel_size": 3},
        "wav2vec2-conformer": WAVES,
        "wavlm": WAVES,
    },
    "several modalities": {
        **_as_they_are("blip chinese_clip clip clipseg flava git owlvit siglip vilt"),
        "align": {"projection_dim": 8, "vision_config": EFFICIENTNET},
        "altclip": {"text_config": {"project_dim": 32}},
        "bridgetower": {"hidden_size": 64, "text_config": {"hidden_size": 64}, "vision_config": {"hidden_size": 64}},
        "clap": {"audio_config": {"spec_size": 32, "patch_size": 4, "depths": [1, 1], "num_attention_heads": [2, 4],
                                  "patch_embeds_hidden_size": 16, "window_size": 2}},
        "groupvit": {"vision_config": {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4]}},
        "llava": {"text_config": {"model_type": "llama"}, "vision_config": {"model_type": "clip_vision_model"},
                  "image_token_id": IMAGE_TOKEN},
        "lxmert": {"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 8},
        "paligemma": {"text_config": {"model_type": "gemma"}, "vision_config": {"model_type": "siglip_vision_model"},
                      "image_token_id": IMAGE_TOKEN},
        "perceiver": {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_self_attends_per_block": 1,
                      "num_self_attention_heads": 2, "num_cross_attention_heads": 2},
    },
    "time series": {
        **_as_they_are("patchtsmixer patchtst"),
        "autoformer": {**FORECAST, "label_length": 4},
        "decision_transformer": {"max_ep_len": VOCABULARY},
        "informer": FORECAST,
        "time_series_transformer": FORECAST,
    },
}  # fmt: skip
"""Kind -> name in transformers -> what its configuration is given beside ``SMALL``."""

NAMES = {name: given for kind in KINDS.values() for name, given in kind.items()}


def _with_image_tokens() -> torch.Tensor:
    ids = torch.arange(3, 3 + ROWS * 24).view(ROWS, 24)
    ids[:, 2:18] = IMAGE_TOKEN  # one for each of the 4 x 4 patches
    return ids


BY_MAIN_INPUT: dict[str, dict[str, Size]] = {
    "input_ids": {"input_ids": 16},
    "pixel_values": {"pixel_values": IMAGE},
    "input_values": {"input_values": (1600,)},
    "input_features": {"input_features": (16, 128)},
}
BOTH: dict[str, Size] = {"input_ids": 16, "pixel_values": IMAGE}
VIDEO: dict[str, Size] = {"pixel_values": (4, *IMAGE)}
SERIES: dict[str, Size] = {
    "past_values": (10,), "past_time_features": (10, 0), "past_observed_mask": lambda: torch.ones(ROWS, 10),
    "future_values": (4,), "future_time_features": (4, 0),
}  # fmt: skip
INPUTS: dict[str, dict[str, Size]] = {
    **_each("align altclip blip bridgetower chinese_clip clip clipseg flava git groupvit owlvit siglip vilt", BOTH),
    **_each("timesformer videomae vivit", VIDEO),
    **_each("autoformer informer time_series_transformer", SERIES),
    **_each("dac encodec mimi", {"input_values": (1, 160)}),
    **_each("llava paligemma", {"input_ids": _with_image_tokens, "pixel_values": IMAGE}),
    **_each("patchtsmixer patchtst", {"past_values": (32, 1)}),
    "audio-spectrogram-transformer": {"input_values": (32, 16)},
    "clap": {"input_ids": 16, "input_features": (1, 32, 16)},
    "decision_transformer": {"states": (4, 17), "actions": (4, 4), "rewards": (4, 1), "returns_to_go": (4, 1),
                             "timesteps": 4, "attention_mask": lambda: torch.ones(ROWS, 4)},
    "levit": {"pixel_values": (3, 64, 64)},
    "lxmert": {"input_ids": 16, "visual_feats": (5, 8), "visual_pos": (5, 4)},
    "moonshine": {"input_values": (1600,), "decoder_input_ids": 8},
    "parakeet_encoder": {"input_features": (32, 16)},
    "perceiver": {"inputs": (9, 16)},
    "speech_to_text": {"input_features": (32, 16), "decoder_input_ids": 8},
    "univnet": {"input_features": (16, 8), "noise_sequence": (16, 8)},
    "wav2vec2-bert": {"input_features": (20, 16)},
    "whisper": {"input_features": (16, 128), "decoder_input_ids": 8},
}  # fmt: skip
"""Where its main input alone is not enough, or has another size."""

UNKNOWN: dict[str, set[str]] = {
    "autoformer": {"aten._fft_r2c.default", "aten._fft_c2c.default", "aten._fft_c2r.default"},
    "fnet": {"aten._fft_c2c.default"},
    "olmo_hybrid": {"aten.linalg_solve_triangular.default"},
    "qwen3_next": {"aten.linalg_solve_triangular.default"},
}
"""Ops that no formula counts: both figures of MACs are unknown."""

KEPT: dict[str, Callable[[nn.Module], Iterable[torch.Tensor]]] = {
    # each recurrent layer keeps its last state, with a cache or without
    "recurrent_gemma": lambda model: [
        module.recurrent_states for module in model.modules() if hasattr(module, "recurrent_states")
    ],
}
"""What the model itself holds of what its forward made: alive when backward begins, though not for it."""


def build(name: str) -> tuple[nn.Module, Batch]:
    """A model in training and its batch; always the same ones, with the random state that the step begins with."""
    from transformers import CONFIG_MAPPING, AutoModel, set_seed

    set_seed(0)
    configuration = CONFIG_MAPPING[name]
    model = AutoModel.from_config(configuration(**_small(configuration, NAMES[name]))).train()
    sizes = INPUTS.get(name) or BY_MAIN_INPUT[model.main_input_name]
    if model.config.is_encoder_decoder and "input_ids" in sizes:
        sizes = {**sizes, "decoder_input_ids": 8}
    batch = {key: _input(size) for key, size in sizes.items()}
    set_seed(1)
    return model, batch


def _small(configuration: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a small configuration, and of those within it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    default = configuration().to_dict()
    found: dict[str, Any] = {"use_cache": False} if "use_cache" in default else {}  # a cache would stay alive
    found |= {key: size for key, size in SMALL.items() if isinstance(default.get(key, ""), int | None)}
    found |= given
    for key, part in configuration.sub_configs.items():
        own = given.get(key, {})
        if part is not AutoConfig:
            found[key] = _small(part, own)
        elif own:
            found[key] = own | _small(CONFIG_MAPPING[own["model_type"]], own)
    return found


def _input(size: Size) -> torch.Tensor:
    if isinstance(size, int):
        return torch.randint(3, IMAGE_TOKEN, (ROWS, size))
    return torch.randn(ROWS, *size) if isinstance(size, tuple) else size()
