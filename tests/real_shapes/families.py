"""The model families of the shipped recipes, as their folders on the hub describe them.

`config` and `files` hold the published values. `small` is what CI lays over them: few layers and
narrow ones, so that a model has 20 to 80 million parameters. Everything that decides shapes of data
stays as published: vocabulary, special tokens, size of a patch, width of a head, tokens an image.
"""

from __future__ import annotations

from tests.real_shapes.folders import Family, Json
from tests.real_shapes.vocabularies import GEMMA3, LLAMA2, QWEN2_5, QWEN3, QWEN3_5

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5]
_VISION_MODEL = {"vision_tower.": "vision_tower.vision_model."}


def _picture_files(processor: str, picture: Json, **more: Json) -> dict[str, Json]:
    common = {"do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}
    common |= {"rescale_factor": 0.00392156862745098, "processor_class": processor}
    return {"preprocessor_config.json": {**common, **picture}, **more}


# InternVL3.5: Qwen3 behind InternViT-300M. The hub's config has no flag for tied embeddings on top.
_INTERNVL_VISION = {
    "attention_bias": True, "attention_dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1024,
    "image_size": [448, 448], "initializer_range": 0.02, "intermediate_size": 4096,
    "layer_norm_eps": 1e-06, "layer_scale_init_value": 0.1, "model_type": "internvl_vision",
    "norm_type": "layer_norm", "num_attention_heads": 16, "num_channels": 3,
    "num_hidden_layers": 24, "patch_size": [14, 14], "projection_dropout": 0.0,
    "use_absolute_position_embeddings": True, "use_mask_token": False, "use_mean_pooling": True,
    "use_qk_norm": False,
}  # fmt: skip
_INTERNVL_PICTURES = {
    "crop_size": None, "crop_to_patches": False, "do_center_crop": None, "do_convert_rgb": True,
    "image_mean": IMAGENET_MEAN, "image_processor_type": "GotOcr2ImageProcessorFast",
    "image_std": IMAGENET_STD, "max_patches": 12, "min_patches": 1,
    "size": {"height": 448, "width": 448},
}  # fmt: skip
_INTERNVL_VIDEOS = {
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "processor_class": "InternVLProcessor",
    "resample": 3, "size": {"height": 384, "width": 384},
    "video_processor_type": "InternVLVideoProcessor",
}  # fmt: skip


def _internvl(size: str, hidden: int, intermediate: int) -> Family:
    text = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": intermediate,
        "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "use_sliding_window": False, "vocab_size": 151936,
    }  # fmt: skip
    return Family(
        name=f"InternVL3_5-{size.upper()}-HF",
        recipe=f"internvl3.5-{size}",
        vocabulary=QWEN3,
        config={
            "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5,
            "image_seq_length": 256, "image_token_id": 151671, "model_type": "internvl",
            "projector_hidden_act": "gelu", "text_config": text, "torch_dtype": "bfloat16",
            "transformers_version": "4.55.0", "vision_config": _INTERNVL_VISION,
            "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
        },
        small={
            "text_config": {
                "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2,
                "num_hidden_layers": 2, "num_key_value_heads": 1,
            },
            "vision_config": {
                "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
                "num_hidden_layers": 2,
            },
        },
        files=_picture_files(
            "InternVLProcessor",
            _INTERNVL_PICTURES,
            **{
                "processor_config.json": {
                    "image_seq_length": 256, "processor_class": "InternVLProcessor",
                },
                "video_preprocessor_config.json": _INTERNVL_VIDEOS,
                "generation_config.json": {
                    "bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
                    "pad_token_id": 151643, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
                },
            },
        ),
        prefixes=("language_model.model.", "language_model.lm_head.", "vision_tower.",
                  "multi_modal_projector."),
        tokenizer={
            "added": ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>",
                      "<box>", "</box>", "<video>"],
            "extra_special_tokens": {
                "context_image_token": "<IMG_CONTEXT>", "end_image_token": "</img>",
                "start_image_token": "<img>", "video_token": "<video>",
            },
            "processor_class": "InternVLProcessor",
        },
    )  # fmt: skip


_QWEN_GENERATION = {
    "bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
    "pad_token_id": 151643, "repetition_penalty": 1.05, "temperature": 0.000001,
}  # fmt: skip

_QWEN3_VL_PICTURES = {
    "image_mean": HALF, "image_processor_type": "Qwen2VLImageProcessorFast", "image_std": HALF,
    "merge_size": 2, "patch_size": 16, "processor_class": "Qwen3VLProcessor",
    "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "temporal_patch_size": 2,
}  # fmt: skip

QWEN3_VL = Family(
    name="Qwen3-VL-8B-Instruct",
    recipe="qwen3-vl-8b",
    vocabulary=QWEN3,
    config={
        "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
            "dtype": "bfloat16", "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 12288,
            "max_position_embeddings": 262144, "model_type": "qwen3_vl_text",
            "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06, "rope_theta": 5000000, "use_cache": True, "vocab_size": 151936,
            "rope_scaling": {
                "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default",
            },
        },
        "tie_word_embeddings": False, "transformers_version": "4.57.0.dev0",
        "video_token_id": 151656,
        "vision_config": {
            "deepstack_visual_indexes": [8, 16, 24], "depth": 27,
            "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1152, "in_channels": 3,
            "initializer_range": 0.02, "intermediate_size": 4304, "model_type": "qwen3_vl",
            "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 4096,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        "vision_end_token_id": 151653, "vision_start_token_id": 151652,
    },
    small={
        "text_config": {
            "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2,
            "num_hidden_layers": 3, "num_key_value_heads": 1,
        },
        "vision_config": {
            "deepstack_visual_indexes": [0, 1, 2], "depth": 4, "hidden_size": 64,
            "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128,
        },
    },
    files={
        "preprocessor_config.json": _QWEN3_VL_PICTURES,
        "video_preprocessor_config.json": {
            **_QWEN3_VL_PICTURES,
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
        "generation_config.json": {
            **_QWEN_GENERATION, "repetition_penalty": 1.0, "temperature": 0.7, "top_k": 20,
            "top_p": 0.8,
        },
    },
    prefixes=("model.language_model.", "lm_head.", "model.visual."),
)  # fmt: skip

# Three of four layers have linear attention: a recurrent state in place of keys and values.
QWEN3_5_9B = Family(
    name="Qwen3.5-9B",
    recipe="qwen3.5-9b",
    vocabulary=QWEN3_5,
    config={
        "architectures": ["Qwen3_5ForConditionalGeneration"], "image_token_id": 248056,
        "model_type": "qwen3_5",
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True,
            "dtype": "bfloat16", "eos_token_id": 248044, "full_attention_interval": 4,
            "head_dim": 256, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
            "intermediate_size": 12288, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
            "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128,
            "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144,
            "model_type": "qwen3_5_text", "num_attention_heads": 16, "num_hidden_layers": 32,
            "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "use_cache": True,
            "vocab_size": 248320,
            "rope_parameters": {
                "mrope_interleaved": True, "mrope_section": [11, 11, 10],
                "partial_rotary_factor": 0.25, "rope_theta": 10000000, "rope_type": "default",
            },
        },
        "tie_word_embeddings": False, "transformers_version": "4.57.0.dev0",
        "video_token_id": 248057,
        "vision_config": {**QWEN3_VL.config["vision_config"], "model_type": "qwen3_5",
                          "deepstack_visual_indexes": []},
        "vision_end_token_id": 248054, "vision_start_token_id": 248053,
    },
    small={
        "text_config": {
            "hidden_size": 128, "intermediate_size": 256, "linear_num_key_heads": 1,
            "linear_num_value_heads": 2, "num_attention_heads": 2, "num_hidden_layers": 4,
            "num_key_value_heads": 1,
        },
        "vision_config": {
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
            "out_hidden_size": 128,
        },
    },
    files={**QWEN3_VL.files, "generation_config.json": {
        "bos_token_id": 248044, "do_sample": True, "eos_token_id": [248046, 248044],
        "pad_token_id": 248044, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
    }},
    prefixes=("model.language_model.", "lm_head.", "model.visual."),
)  # fmt: skip

QWEN2_5_VL = Family(
    name="Qwen2.5-VL-7B-Instruct",
    recipe="qwen2.5-vl-7b",
    vocabulary=QWEN2_5,
    config={
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653, "vision_token_id": 151654, "image_token_id": 151655,
        "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 3584,
        "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 128000,
        "max_window_layers": 28, "model_type": "qwen2_5_vl", "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420,
            "num_heads": 16, "in_chans": 3, "out_hidden_size": 3584, "patch_size": 14,
            "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 152064,
    },
    small={
        "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2,
        "num_hidden_layers": 2, "num_key_value_heads": 1,
        "vision_config": {
            "depth": 2, "fullatt_block_indexes": [1], "hidden_size": 64, "intermediate_size": 128,
            "num_heads": 2, "out_hidden_size": 256,
        },
    },
    files={
        "preprocessor_config.json": {
            "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
            "merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
        "generation_config.json": _QWEN_GENERATION,
    },
    prefixes=("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.", "visual."),
)  # fmt: skip

GEMMA3_4B = Family(
    name="gemma-3-4b-it",
    recipe="gemma3-4b",
    vocabulary=GEMMA3,
    config={
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
        "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
        "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": {
            "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
            "model_type": "siglip_vision_model", "num_attention_heads": 16,
            "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
        },
    },
    small={
        "text_config": {
            "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2,
            "num_hidden_layers": 2, "num_key_value_heads": 1, "sliding_window_pattern": 2,
        },
        "vision_config": {
            "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
            "num_hidden_layers": 2,
        },
    },
    files=_picture_files(
        "Gemma3Processor",
        {
            "do_convert_rgb": None, "do_pan_and_scan": None, "image_mean": HALF, "image_std": HALF,
            "image_processor_type": "Gemma3ImageProcessor", "image_seq_length": 256,
            "pan_and_scan_max_num_crops": None, "pan_and_scan_min_crop_size": None,
            "pan_and_scan_min_ratio_to_activate": None, "resample": 2,
            "size": {"height": 896, "width": 896},
        },
        **{
            "processor_config.json": {
                "image_seq_length": 256, "processor_class": "Gemma3Processor",
            },
            "generation_config.json": {
                "bos_token_id": 2, "cache_implementation": "hybrid", "do_sample": True,
                "eos_token_id": [1, 106], "pad_token_id": 0, "top_k": 64, "top_p": 0.95,
            },
        },
    ),
    prefixes=("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."),
    tied=True,
    older=_VISION_MODEL,
)  # fmt: skip

LLAVA = Family(
    name="llava-1.5-7b-hf",
    recipe="llava1.5-7b",
    vocabulary=LLAMA2,
    config={
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
        "image_token_index": 32000, "model_type": "llava", "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
            "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
            "num_hidden_layers": 32, "rms_norm_eps": 1e-05, "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": {
            "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
            "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24,
            "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
        },
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    },
    small={
        "text_config": {
            "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2,
            "num_hidden_layers": 2, "num_key_value_heads": 2,
        },
        "vision_config": {
            "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
            "num_hidden_layers": 2,
        },
    },
    files=_picture_files(
        "LlavaProcessor",
        {
            "crop_size": {"height": 336, "width": 336}, "do_center_crop": True,
            "do_convert_rgb": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336},
        },
        **{
            "processor_config.json": {
                "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14,
                "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default",
            },
            "generation_config.json": {
                "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32001,
            },
        },
    ),
    prefixes=("language_model.model.", "language_model.lm_head.", "vision_tower.vision_model.",
              "multi_modal_projector."),
    tokenizer={
        "added": ["<image>", "<pad>"], "pad_token": "<pad>", "processor_class": "LlavaProcessor",
    },
    older=_VISION_MODEL,
)  # fmt: skip

FAMILIES = (
    _internvl("8b", 4096, 12288),
    _internvl("4b", 2560, 9728),
    GEMMA3_4B,
    QWEN3_VL,
    QWEN3_5_9B,
    QWEN2_5_VL,
    LLAVA,
)
OTHER_WEIGHTS = {  # recipes whose model has the shapes of another recipe's
    "internvl3.5-8b-pretrained": "internvl3.5-8b",
    "internvl3.5-4b-pretrained": "internvl3.5-4b",
    "gemma3-4b-pt": "gemma3-4b",
}
RECIPES = {family.recipe: family for family in FAMILIES}
