"""`Encoder.embed` from JPEG and text to vectors, against the library's bare forward and against sentence-transformers.

Half texts, half pictures. The bare forward has its inputs prepared, sorted by length and resident. All sides give the
same vectors, which is checked first, in batches of as many rows, on one thread; decoding is everybody's own business.
"""

from __future__ import annotations

import importlib.util
import io
import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import checkpoints
from mme5core.backbones import mllama
from mme5core.encoder import Encoder
from mme5core.types import Content

BATCH_SIZE, ROUNDS, THREADS, MAX_TOKENS = 16, 8, 1, 4096
BestOf = Callable[[dict[str, Callable[[], object]], int], dict[str, float]]

Sizes = tuple[int, int]
# Name: family, rows, sides of the pictures in pixels. 160 x 120 fills one tile of 168, 190 x 140 two, 320 x 240 four.
CASES: dict[str, tuple[str, int, Callable[[random.Random], Sizes]]] = {
    "mllama_4_tiles": ("mllama", 64, lambda draw: (320, 240)),
    "mllama_1_tile": ("mllama", 64, lambda draw: (160, 120)),
    "mllama_1_2_4_tiles": ("mllama", 64, lambda draw: draw.choice([(160, 120), (190, 140), (320, 240)])),
    "qwen2_vl": ("qwen2_vl", 64, lambda draw: (draw.randrange(112, 672), draw.randrange(112, 672))),
    "qwen2_vl_small": ("qwen2_vl", 96, lambda draw: (draw.randrange(56, 224), draw.randrange(56, 224))),
    "qwen2_vl_small_with_texts": ("qwen2_vl", 96, lambda draw: (draw.randrange(56, 224), draw.randrange(56, 224))),
}
# As `mme5core` renders a content without instruction.
TEMPLATES = {
    "mllama": "{%- macro text(c) -%}{% if c is string %}{{ c }}{% else %}{% for p in c if p['type'] == 'text' %}"
    "{{ p['text'] }}{% endfor %}{% endif %}{%- endmacro -%}"
    "{%- for m in messages -%}{%- set c = m['content'] -%}"
    "{% if c is not string and c | selectattr('type', 'equalto', 'image') | list %}<|image|><|begin_of_text|>"
    "{% else %}<|begin_of_text|><|begin_of_text|>{% endif %}{{ text(c) }}{%- endfor -%}",
    "qwen2_vl": "{%- for m in messages -%}{%- set c = m['content'] -%}{% if c is string %}{{ c }}{% else %}"
    "{% for p in c %}{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}"
    "{% for p in c if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}{% endif %}{%- endfor -%}",
}


def contents(
    num_rows: int, size: Callable[[random.Random], Sizes], *, texts_beside_pictures: bool = False
) -> list[Content]:
    """Half texts of lognormal length, half pictures, in no order; or each picture with such a text."""
    draw = random.Random(0)
    texts = [
        Content(checkpoints.words(max(1, min(100, round(draw.lognormvariate(2.3, 0.9)))), seed))
        for seed in range(num_rows // 2)
    ]
    pictures = [
        Content(texts[number].text if texts_beside_pictures else None, jpeg(number, size(draw)))
        for number in range(num_rows // 2)
    ]
    rows = texts + pictures
    draw.shuffle(rows)
    return rows


def run(folder: Path, best_of: BestOf) -> dict[str, object]:
    """Ratios of best times; `library` is our path with the library's own attention in mllama's tower."""
    torch.set_num_threads(THREADS)  # the other core prepares, as it would beside an accelerator
    figures: dict[str, object] = {"dtype": "float32", "threads": THREADS, "batch_size": BATCH_SIZE}
    for name, (family, num_rows, size) in CASES.items():
        base = folder / family
        if not base.exists():
            getattr(checkpoints, family)(base)
        rows = contents(num_rows, size, texts_beside_pictures=name.endswith("with_texts"))
        figures[name] = {"n": num_rows} | compare(base, family, rows, best_of)
    torch.set_num_threads(2)
    return figures


def compare(base: Path, family: str, rows: list[Content], best_of: BestOf) -> dict[str, float]:
    encoder = Encoder.load(str(base), device="cpu", dtype="float32")
    encoder.max_tokens = MAX_TOKENS
    sides: dict[str, Callable[[], Any]] = {"bare": bare_forward(encoder, rows), "ours": partial(embed, encoder, rows)}
    if family == "mllama":
        sides["library"] = partial(_embed_with_library_attention, encoder, rows)
    peer = sentence_transformer(base, family)
    if peer is not None:
        sides["sentence_transformers"] = partial(_encode, peer, rows)
    vectors = {side: call() for side, call in sides.items()}
    for side, vector_ND in vectors.items():
        apart = float((1 - (vector_ND * vectors["bare"]).sum(axis=1)).max())
        # torchvision scales pictures of Qwen2-VL for the peer, with other roundings than Pillow.
        allowed = 1e-4 if side == "sentence_transformers" and family == "qwen2_vl" else 1e-5
        assert apart < allowed, f"{family}: {side} gives other vectors, 1 - cosine {apart}"
    best = best_of(sides, ROUNDS)
    return {f"{side}_over_bare": round(best[side] / best["bare"], 3) for side in sides if side != "bare"} | {
        f"speed_over_{side}": round(best[side] / best["ours"], 2) for side in sides if side == "sentence_transformers"
    }


def embed(encoder: Encoder, rows: list[Content]) -> np.ndarray:
    return encoder.embed(rows, batch_size=BATCH_SIZE, max_batch_tokens=1 << 20)


def _embed_with_library_attention(encoder: Encoder, rows: list[Content]) -> np.ndarray:
    split = mllama.unmasked_tiles
    mllama.unmasked_tiles = lambda vision_model: nullcontext()  # type: ignore[assignment]
    try:
        return embed(encoder, rows)
    finally:
        mllama.unmasked_tiles = split


def bare_forward(encoder: Encoder, rows: list[Content]) -> Callable[[], np.ndarray]:
    prepared = list(encoder.batches(rows, [None] * len(rows), max_batch_rows=BATCH_SIZE, max_batch_tokens=1 << 20))
    backbone: Any = encoder.backbone
    inputs = [backbone.float_pixels(batch.inputs) for batch in prepared]
    if hasattr(backbone, "extra_inputs"):
        inputs = [given | backbone.extra_inputs(given) for given in inputs]

    def bare() -> np.ndarray:
        result = np.empty((len(rows), encoder.dimension), dtype=np.float32)
        with torch.inference_mode():
            for batch, arguments in zip(prepared, inputs, strict=True):
                state = encoder.module.model(**arguments, use_cache=False).last_hidden_state
                last = batch.inputs["attention_mask"].sum(dim=1) - 1
                pooled = state[torch.arange(len(last)), last]
                result[batch.rows] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return result

    return bare


def _encode(peer: Any, rows: list[Content]) -> np.ndarray:
    vectors: np.ndarray = peer.encode(inputs_of(rows), batch_size=BATCH_SIZE, show_progress_bar=False)
    return vectors


def inputs_of(rows: list[Content]) -> list[Any]:
    """The rows as sentence-transformers takes them; pictures are decoded when it reads them."""
    found: list[Any] = []
    for row in rows:
        picture = None if row.image is None else Image.open(io.BytesIO(row.image))  # type: ignore[arg-type]
        found.append(row.text if picture is None else {"image": picture, "text": row.text} if row.text else picture)
    return found


def sentence_transformer(base: Path, family: str) -> Any:
    """The same checkpoint in that library, with our tokens; None without torchvision, which it wants for Qwen."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    if family == "qwen2_vl" and importlib.util.find_spec("torchvision") is None:
        return None
    (base / "chat_template.jinja").write_text(TEMPLATES[family])
    if family == "qwen2_vl":
        _save_qwen_processor(base)
    transformer = Transformer(str(base))
    transformer.max_seq_length = MAX_TOKENS
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")


def _save_qwen_processor(base: Path) -> None:
    from transformers import AutoTokenizer, Qwen2VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pixels = Qwen2VLImageProcessorPil.from_pretrained(base)
    video = Qwen2VLVideoProcessor(patch_size=14, merge_size=2, temporal_patch_size=2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    template = TEMPLATES["qwen2_vl"]
    Qwen2VLProcessor(pixels, tokenizer, video, chat_template=template).save_pretrained(base)


def jpeg(number: int, size: Sizes) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(buffer, "JPEG")
    return buffer.getvalue()
