"""A small mllama built from its config and trained on pictures and names: a stand-in for a pretrained VLM."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)

from mme5core.backbones.protocol import PictureInputs
from mme5core.demo.captions import Captions
from mme5core.encoder import Encoder, in_row_order
from mme5core.encoder.prepare import PreparedBatch
from mme5core.types import Content

BOS, EOS, PAD, IMAGE = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|image|>"
VOCAB_SIZE = 8192
MAX_TOKENS = 32
CHUNK_ROWS = 128  # rows of one forward pass, sorted by length
TILE_SIZE, PATCH_SIZE = 48, 16
WARMUP_SHARE = 0.1
MUON_RATE, ADAM_RATE = 0.01, 8e-3
INITIALIZER_RANGE = 0.08  # 1 / sqrt(width): the released 0.02 suits a width of 4096


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    num_steps: int
    loss: float


def build_base(
    folder: Path,
    texts: Sequence[str],
    *,
    seed: int = 0,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
) -> None:
    """Write an untrained checkpoint with tokenizer and image processor, in the layout of a hub download.

    Args:
        texts: training texts of the tokenizer.
        vision, text: settings that replace the demo's in the two parts of the configuration.
    """
    tokenizer = train_tokenizer(texts)
    config = _config(tokenizer, vision or {}, text or {})
    side = (vision or {}).get("image_size", TILE_SIZE)
    image_processor = MllamaImageProcessor(
        size={"height": side, "width": side},
        max_image_tiles=(vision or {}).get("max_num_tiles", 1),
        do_resize=True,
        do_pad=True,
    )
    torch.manual_seed(seed)
    model = MllamaForConditionalGeneration(config)
    open_cross_attention(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    MllamaProcessor(image_processor, tokenizer).save_pretrained(folder)


def open_cross_attention(model: torch.nn.Module, gate: float = 0.5) -> None:
    """Set the cross-attention gates: they are initialised to 0, with which pictures have no effect."""
    for name, parameter in model.named_parameters():
        if name.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate")) or name.endswith(
            (".gate_attn", ".gate_ffn", "gated_positional_embedding.gate")
        ):
            torch.nn.init.constant_(parameter, gate)
        elif name.endswith("tile_positional_embedding.gate"):
            torch.nn.init.constant_(parameter, 0.0)


def train_base(
    encoder: Encoder,
    pictures: Sequence[PictureInputs],
    captions: Captions,
    *,
    num_steps: int,
    batch_size: int,
    captions_per_picture: int = 2,
    learning_rate: float = ADAM_RATE,
    temperature: float = 0.05,
    seed: int = 0,
) -> Iterator[Progress]:
    """Contrastive training of all weights, in place, between pictures and captions in both directions.

    Args:
        captions: captions of the same pictures, in the same order.
        batch_size: pictures in one step; each has `captions_per_picture` captions.
    """
    random_ = random.Random(seed)
    torch.manual_seed(seed)
    module = encoder.module.train()
    masters = _MasterWeights(module, learning_rate=learning_rate, num_steps=num_steps)
    batch_size = min(batch_size, len(pictures))
    for step in range(num_steps):
        chosen = random_.sample(range(len(pictures)), batch_size)
        image_inputs = _picture_batches(encoder, [pictures[index] for index in chosen])
        drawn = [captions.draw(index, random_) for _ in range(captions_per_picture) for index in chosen]
        text_inputs = encoder.batches(
            [Content(text) for text in drawn],
            [None] * len(drawn),
            max_batch_rows=CHUNK_ROWS,
            max_batch_tokens=1 << 30,
        )
        image_BD = _embed(module, image_inputs)
        text_CBD = _embed(module, list(text_inputs)).view(captions_per_picture, batch_size, -1)
        loss = _symmetric_loss(image_BD, text_CBD, temperature)
        module.zero_grad(set_to_none=True)
        loss.backward()
        masters.update()
        yield Progress(step + 1, num_steps, loss.item())
    module.to(torch.float32).eval()
    masters.copy_to_module()


class _MasterWeights:
    """float32 copies of a module's weights; the optimizers update them, and the module computes in bfloat16."""

    def __init__(self, module: torch.nn.Module, *, learning_rate: float, num_steps: int) -> None:
        self._module = module
        self._weights = {name: weight.detach().clone().requires_grad_() for name, weight in module.named_parameters()}
        module.to(torch.bfloat16)
        self._optimizers = _optimizers(self._weights, learning_rate)
        self._schedules = [
            torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=[group["lr"] for group in optimizer.param_groups],
                total_steps=num_steps,
                pct_start=WARMUP_SHARE,
                cycle_momentum=False,
            )
            for optimizer in self._optimizers
        ]

    def update(self) -> None:
        """One step of the optimizers by the module's gradients; the module gets the new weights."""
        for name, parameter in self._module.named_parameters():
            self._weights[name].grad = None if parameter.grad is None else parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.copy_to_module()

    def copy_to_module(self) -> None:
        with torch.no_grad():
            for name, parameter in self._module.named_parameters():
                parameter.copy_(self._weights[name])


def _picture_batches(encoder: Encoder, pictures: Sequence[PictureInputs]) -> list[PreparedBatch]:
    (token_ids,) = encoder.token_ids([Content(image=b"")], [None])
    batches = []
    for start in range(0, len(pictures), CHUNK_ROWS):
        rows = list(range(start, min(start + CHUNK_ROWS, len(pictures))))
        inputs = encoder.backbone.collate([token_ids] * len(rows), [[pictures[row]] for row in rows])
        batches.append(PreparedBatch(rows, inputs))
    return batches


def _embed(module: torch.nn.Module, batches: list[PreparedBatch]) -> Tensor:
    return in_row_order(batches, module(batches))


def _optimizers(masters: dict[str, Tensor], learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, norms and gates.

    In the few hundred steps of the demo, Muon learns about twice as fast per step as AdamW alone.
    """
    matrices = {
        name: p for name, p in masters.items() if p.ndim == 2 and ".layers." in name and "embedding" not in name
    }
    others = [p for name, p in masters.items() if name not in matrices]
    return [
        torch.optim.Muon(
            list(matrices.values()),
            lr=MUON_RATE,
            momentum=0.95,
            weight_decay=0.01,
        ),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98)),
    ]


def _symmetric_loss(image_BD: Tensor, text_CBD: Tensor, temperature: float) -> Tensor:
    """InfoNCE in both directions between pictures and captions, and between different captions of the same pictures."""
    views_VBD = torch.cat([image_BD[None], text_CBD])
    target_B = torch.arange(len(image_BD), device=image_BD.device)
    losses = [
        F.cross_entropy(views_VBD[v] @ views_VBD[w].T / temperature, target_B)
        for v in range(len(views_VBD))
        for w in range(len(views_VBD))
        if v != w
    ]
    return torch.stack(losses).mean()


def _config(tokenizer: PreTrainedTokenizerFast, vision: Mapping[str, Any], text: Mapping[str, Any]) -> MllamaConfig:
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_global_layers": 1,
        "attention_heads": 4,
        "vision_output_dim": 256,
        "image_size": TILE_SIZE,
        "patch_size": PATCH_SIZE,
        "max_num_tiles": 1,
        "intermediate_layers_indices": [1],
        "supported_aspect_ratios": [[1, 1]],
        "initializer_range": INITIALIZER_RANGE,
    } | dict(vision)
    text = {
        "vocab_size": len(tokenizer) - 1,  # the picture token comes after the vocabulary, as in the released models
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "cross_attention_layers": [1, 3],
        "max_position_embeddings": 512,
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    } | dict(text)
    return MllamaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=int(tokenizer.convert_tokens_to_ids(IMAGE)),  # type: ignore[arg-type]
    )


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the special tokens of Llama-3.2-Vision."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([IMAGE])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="right"
    )
