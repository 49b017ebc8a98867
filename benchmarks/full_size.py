"""Models of the real sizes with random weights in bfloat16, made on the accelerator: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MllamaConfig, MllamaImageProcessor, MllamaModel, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks import checkpoints
from mme5core.backbones.mllama import Mllama
from mme5core.backbones.qwen2_vl import Qwen2VL
from mme5core.demo.base_model import open_cross_attention, train_tokenizer
from mme5core.encoder import Encoder

PEAK_FLOPS = 989e12  # H200, bfloat16, dense


def mllama_11b() -> Encoder:
    """Llama-3.2-11B-Vision."""
    tokenizer = train_tokenizer([checkpoints.words(12, seed) for seed in range(3000)])
    config = MllamaConfig(pad_token_id=tokenizer.pad_token_id)  # the library's defaults are the 11B
    config.vision_config.image_size = 560
    model = _made(MllamaModel, config)
    open_cross_attention(model)
    pixels = MllamaImageProcessor(size={"height": 560, "width": 560}, max_image_tiles=4, do_resize=True, do_pad=True)
    return Encoder(model, Mllama(tokenizer, pixels, config))


def qwen2_vl_2b() -> Encoder:
    """Qwen2-VL-2B."""
    from tests.core.backbones.families import make_tokenizer

    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = make_tokenizer(*marks, bos=False)
    ids = [tokenizer.convert_tokens_to_ids(mark) for mark in marks]
    text = {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
        vision_start_token_id=ids[0],
        vision_end_token_id=ids[1],
        image_token_id=ids[2],
        video_token_id=ids[3],
    )
    pixels = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28})
    return Encoder(_made(Qwen2VLModel, config), Qwen2VL(tokenizer, pixels, config))


def _made(model_class: Any, config: Any) -> Any:
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = model_class._from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    return model.eval()
