"""Small random checkpoints in which head, tower and attention weigh what they weigh in the real models."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import transformers as tf
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mme5core.demo.base_model import build_base

WORDS = ["red", "heart", "faccina", "gatto", "солнце", "猫", "flag", "house", "on", "a", "sofa", "behind", "camera"]
TILES = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]


def words(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def mllama(folder: Path, *, max_tiles: int = 4) -> Path:
    """Of Llama-3.2-11B-Vision: nine tenths of the work on a picture row of 64 tokens in the tower, and as many patches
    to its width (6,432 to 1,280), so that attention weighs the same; the head costs 7 % of the rest per token."""
    canvas = {"max_num_tiles": max_tiles, "supported_aspect_ratios": TILES if max_tiles > 1 else [[1, 1]]}
    return _mllama(folder, _vision(128, 8) | canvas, _text(128, 448, 10, [3, 8]))


def mllama_to_train(folder: Path) -> Path:
    """Twice as wide, as training sees shorter rows: nine tenths of a picture row with its text in the tower again."""
    return _mllama(folder, _vision(256, 12), _text(256, 768, 8, [2, 6]))


def _mllama(folder: Path, vision: dict[str, Any], text: dict[str, Any]) -> Path:
    build_base(folder, [words(12, seed) for seed in range(3000)], vision=vision, text=text)
    return folder


def _vision(width: int, num_layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": num_layers,
        "num_global_layers": 2,
        "attention_heads": 8,
        "vision_output_dim": 2 * width,
        "image_size": 168,
        "patch_size": 14,
        "intermediate_layers_indices": [3],
    }


def _text(width: int, intermediate: int, num_layers: int, cross_layers: list[int]) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "cross_attention_layers": cross_layers,
    }


def qwen2_vl(folder: Path) -> Path:
    """Of Qwen2-VL-2B: two thirds of the work on a picture of 256 tokens in the tower; the head 15 % per token."""
    from tests.core.backbones.families import make_tokenizer

    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = make_tokenizer(*marks, bos=False)
    ids = [tokenizer.convert_tokens_to_ids(mark) for mark in marks]
    text: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1500,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "depth": 4,
        "embed_dim": 128,
        "hidden_size": 128,
        "num_heads": 4,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = tf.Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=ids[0],
        vision_end_token_id=ids[1],
        image_token_id=ids[2],
        video_token_id=ids[3],
    )
    tf.Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 56 * 56, "longest_edge": 896 * 896}
    ).save_pretrained(folder)
    return folder
