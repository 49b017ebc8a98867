"""Training at the size of Llama-3.2-11B-Vision, random weights: python -m benchmarks.gpu_training [--small]

Two recipes on one accelerator, each as rows a second, peak memory and share of the accelerator's peak:
`ours` is LoRA on the language model, the tower once per picture, GradCache at a contrastive batch of 1,024; `mme5` is
the released recipe, a DoRA on both towers with dropout, two rows a pass.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import checkpoints, full_size
from benchmarks.training import NUM_WORDS
from mme5core.adapters import add_adapter
from mme5core.encoder import Encoder
from mme5core.training.contrastive import ContrastiveTask
from mme5core.training.fit import StepResult, fit
from mme5core.training.gradcache import PlainEngine
from mme5core.training.objective import Objective
from mme5core.training.sampling import BatchSampler
from mme5core.types import Content, Sample

# Forward and activation-gradient work of one picture row with 64 tokens, in units of 1e12 (counted on the real shape).
TOWER_TERAFLOPS, LANGUAGE_TERAFLOPS = 18.6, 2.4
RECIPES: dict[str, dict[str, Any]] = {
    "ours": {"batch_size": 1024, "chunk_rows": 16, "targets": "language", "dropout": 0.0, "use_dora": False},
    "mme5": {"batch_size": 16, "chunk_rows": 2, "targets": "mme5", "dropout": 0.1, "use_dora": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--small", action="store_true", help="a small model on whatever device: does it run at all")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    for name, recipe in RECIPES.items():
        print(
            json.dumps({"recipe": name} | measure(recipe, small=arguments.small, num_steps=arguments.steps)), flush=True
        )


def steps_of(recipe: dict[str, Any], *, small: bool, num_steps: int) -> tuple[Encoder, Iterator[StepResult]]:
    """The encoder and its steps; each step is taken when it is asked for."""
    encoder = _small() if small else full_size.mllama_11b()
    encoder.module.model = add_adapter(
        encoder.module.model,
        rank=8,
        alpha=64,
        dropout=recipe["dropout"],
        targets=recipe["targets"],
        train_embeddings=False,
        use_dora=recipe["use_dora"],
    )
    encoder.module.to(encoder.device)
    trainable = [parameter for parameter in encoder.module.parameters() if parameter.requires_grad]
    batch_size = recipe["batch_size"]
    samples = [_sample(number) for number in range(batch_size)]
    return encoder, fit(
        PlainEngine(encoder.module, torch.optim.AdamW(trainable), max_grad_norm=5.0),
        encoder,
        samples,
        BatchSampler(["T2I"] * batch_size, range(batch_size), batch_size=batch_size, seed=0),
        task=ContrastiveTask(encoder, Objective(0.02), 1),
        num_steps=num_steps,
        learning_rate=1e-5,
        warmup_ratio=0.0,
        grad_cache=True,
        chunk_rows=recipe["chunk_rows"],
        autocast="bfloat16",
    )


def measure(recipe: dict[str, Any], *, small: bool, num_steps: int) -> dict[str, Any]:
    batch_size = 16 if small else recipe["batch_size"]
    encoder, results = steps_of(recipe | {"batch_size": batch_size}, small=small, num_steps=1 + num_steps)
    next(results)  # warms up
    is_cuda = torch.cuda.is_available()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started = time.perf_counter()
    losses = [result.loss for result in results]
    if is_cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / num_steps
    pictures_per_s = 2 * batch_size / seconds
    # With a frozen tower: tower once, language forward twice and backward once; else everything forward twice, backward
    # by activations and by weights of the adapter alone.
    frozen = encoder.module.has_frozen_tower
    work = TOWER_TERAFLOPS * (1 if frozen else 3) + LANGUAGE_TERAFLOPS * 3
    return {
        "rows_per_s": round(batch_size / seconds, 2),
        "pictures_per_s": round(pictures_per_s, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if is_cuda else None,
        "share_of_peak": round(pictures_per_s * work * 1e12 / full_size.PEAK_FLOPS, 3)
        if is_cuda and not small
        else None,
        "loss": losses[-1],
        "trainable": sum(p.numel() for p in encoder.module.parameters() if p.requires_grad),
    }


def _small() -> Encoder:
    with tempfile.TemporaryDirectory() as folder:
        return Encoder.load(checkpoints.mllama_to_train(Path(folder) / "base"))


def _sample(number: int) -> Sample:
    return Sample(
        str(number),
        Content(checkpoints.words(NUM_WORDS, number)),
        _picture(number),
        (_picture(number + 5000),),
        "Find it:",
    )


def _picture(number: int) -> Content:
    coarse = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480)).save(buffer, "JPEG")
    return Content(image=buffer.getvalue())


if __name__ == "__main__":
    main()
