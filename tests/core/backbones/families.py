"""Small checkpoints of every family, written as a hub download would look: real classes, random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mme5core.demo.base_model import open_cross_attention

TEXTS = ["a cat", "a dog on a red sofa, asleep", "un gatto", "собака", "猫", "Represent the given image.", "x"] * 9
WIDTH = 64
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.12,
}
CLIP_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "initializer_range": 0.12,
}
SIGLIP_VISION = CLIP_VISION | {"model_type": "siglip_vision_model"}
CLIP_PIXELS: dict[str, Any] = {
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "do_convert_rgb": True,
}
PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def make_tokenizer(*special: str, bos: bool = True) -> tf.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<pad>", *special]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="right"
    )


def mllama(folder: Path) -> None:
    """Of four tiles; the demo's has one."""
    tokenizer = make_tokenizer("<|image|>")
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)]
    )
    vision = {key: value for key, value in CLIP_VISION.items() if key not in ("model_type", "num_attention_heads")} | {
        "attention_heads": 4,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "vision_output_dim": 96,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [1],
    }
    text = TEXT | {"vocab_size": len(tokenizer), "num_hidden_layers": 4, "cross_attention_layers": [1, 3]}
    text |= {"pad_token_id": tokenizer.pad_token_id, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    config = tf.MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<|image|>")
    )
    model = tf.MllamaForConditionalGeneration(config)
    pixels = tf.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4, do_resize=True, do_pad=True)
    _save(folder, model, tokenizer, pixels)


QWEN_VISION = {"num_heads": 4, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_VISION_2_5 = QWEN_VISION | {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": WIDTH}


def qwen2_vl(folder: Path) -> None:
    vision = QWEN_VISION | {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "mlp_ratio": 2}
    _qwen(folder, tf.Qwen2VLConfig, tf.Qwen2VLForConditionalGeneration, vision, [2, 3, 3])


def qwen2_5_vl(folder: Path) -> None:
    vision = QWEN_VISION_2_5 | {"depth": 2, "window_size": 32, "fullatt_block_indexes": [1]}
    _qwen(folder, tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration, vision, [2, 3, 3])


def qwen3_vl(folder: Path) -> None:
    vision = QWEN_VISION_2_5 | {"depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    _qwen(folder, tf.Qwen3VLConfig, tf.Qwen3VLForConditionalGeneration, vision, [3, 3, 2])


def _qwen(folder: Path, config_class: Any, model_class: Any, vision: dict[str, Any], section: list[int]) -> None:
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = make_tokenizer(*marks, bos=False)
    ids = [tokenizer.convert_tokens_to_ids(mark) for mark in marks]
    text = TEXT | {
        "vocab_size": len(tokenizer),
        "head_dim": WIDTH // 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = config_class(
        text_config=text,
        vision_config=vision | {"initializer_range": 0.12},
        vision_start_token_id=ids[0],
        vision_end_token_id=ids[1],
        image_token_id=ids[2],
        video_token_id=ids[3],
    )
    pixels = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 80 * 80}
    )
    _save(folder, model_class(config), tokenizer, pixels)


def llava_next(folder: Path) -> None:
    tokenizer = make_tokenizer("<image>")
    config = tf.LlavaNextConfig(
        text_config=TEXT
        | {"model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        vision_config=CLIP_VISION,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    pixels = tf.LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **CLIP_PIXELS)
    _save(folder, tf.LlavaNextForConditionalGeneration(config), tokenizer, pixels)


def llava_onevision(folder: Path) -> None:
    tokenizer = make_tokenizer("<image>", "<video>", bos=False)
    pinpoints = [[28 * rows, 28 * columns] for rows in range(1, 4) for columns in range(1, 4)]
    config = tf.LlavaOnevisionConfig(
        text_config=TEXT
        | {"model_type": "qwen2", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        vision_config=SIGLIP_VISION | {"vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_2",  # so that larger pictures are scaled down, as above 9 tiles in the release
    )
    pixels = tf.LlavaOnevisionImageProcessor(image_grid_pinpoints=pinpoints, size={"height": 28, "width": 28})
    _save(folder, tf.LlavaOnevisionForConditionalGeneration(config), tokenizer, pixels)


def llava(folder: Path) -> None:
    tokenizer = make_tokenizer("<image>")
    config = tf.LlavaConfig(
        text_config=TEXT
        | {"model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        vision_config=CLIP_VISION,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    pixels = tf.CLIPImageProcessor(**CLIP_PIXELS)
    model = tf.LlavaForConditionalGeneration(config)
    _save(folder, model, tokenizer, pixels)
    tf.LlavaProcessor(
        pixels, tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)


def idefics3(folder: Path) -> None:
    marks = ("<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>")
    grid = tuple(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4))
    tokenizer = make_tokenizer(*marks, *grid)
    config = tf.Idefics3Config(
        text_config=TEXT
        | {"model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        vision_config={key: value for key, value in CLIP_VISION.items() if key != "model_type"} | {"patch_size": 7},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    pixels = tf.Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    _save(folder, tf.Idefics3ForConditionalGeneration(config), tokenizer, pixels)
    tf.Idefics3Processor(pixels, tokenizer, image_seq_len=4).save_pretrained(folder)


def clip(folder: Path) -> None:
    tokenizer = make_tokenizer()
    text = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    config = tf.CLIPConfig(
        text_config=text
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 24,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config=CLIP_VISION,
        projection_dim=40,
    )
    _save(folder, tf.CLIPModel(config), _ending(tokenizer), tf.CLIPImageProcessor(**CLIP_PIXELS))


def siglip(folder: Path) -> None:
    tokenizer = make_tokenizer(bos=False)
    text = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    config = tf.SiglipConfig(
        text_config=text | {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "projection_size": 48},
        vision_config={key: value for key, value in SIGLIP_VISION.items() if key != "model_type"},
    )
    pixels = tf.SiglipImageProcessor(size={"height": 28, "width": 28})
    _save(folder, tf.SiglipModel(config), _ending(tokenizer), pixels)


def vision_text_dual_encoder(folder: Path) -> None:
    """As jina-clip-v2 and its like: a multilingual text encoder beside a ViT."""
    tokenizer = make_tokenizer()
    text = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(
        tf.CLIPVisionConfig(**CLIP_VISION),
        tf.XLMRobertaConfig(**text | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}),
        projection_dim=40,
    )
    _save(folder, tf.VisionTextDualEncoderModel(config), _ending(tokenizer), tf.CLIPImageProcessor(**CLIP_PIXELS))


def _ending(tokenizer: tf.PreTrainedTokenizerFast) -> tf.PreTrainedTokenizerFast:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.model_max_length = 24
    return tokenizer


def _save(folder: Path, model: Any, tokenizer: Any, pixels: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and parameter.ndim > 1:
                parameter.normal_(std=0.12)
    open_cross_attention(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels.save_pretrained(folder)


VLMS: dict[str, Callable[[Path], None]] = {
    "mllama": mllama,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "llava": llava,
    "idefics3": idefics3,
}
DUAL: dict[str, Callable[[Path], None]] = {
    "clip": clip,
    "siglip": siglip,
    "vision_text_dual_encoder": vision_text_dual_encoder,
}
FAMILIES = VLMS | DUAL
UNKNOWN = ("llava", "idefics3")
"""Families of which no file of the package knows the name; nobody knows what their tower gives."""


def build(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    FAMILIES[family](folder)
    return folder
