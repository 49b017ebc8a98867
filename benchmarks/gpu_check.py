"""The library on an accelerator: equal vectors, falling loss. Needs no Ray: python -m benchmarks.gpu_check"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mme5core.adapters import add_adapter
from mme5core.demo.base_model import build_base
from mme5core.encoder import Encoder
from mme5core.training.contrastive import ContrastiveTask
from mme5core.training.fit import PlainEngine, fit
from mme5core.training.objective import Objective
from mme5core.training.sampling import BatchSampler
from mme5core.types import Content, Sample

NUM_SAMPLES, BATCH_SIZE, NUM_STEPS = 128, 32, 40


def samples() -> list[Sample]:
    """A text names each of 128 pictures of noise."""
    random = np.random.default_rng(0)
    samples = []
    for number in range(NUM_SAMPLES):
        pictures = [
            Content(image=Image.fromarray(random.integers(0, 255, (48, 48, 3), dtype=np.uint8))) for _ in range(2)
        ]
        text = Content(f"picture {number} of {'red' if number % 2 else 'blue'}")
        samples.append(Sample(str(number), text, pictures[0], (pictures[1],), "Find the picture:", "Represent it."))
    return samples


def main() -> None:
    assert torch.cuda.is_available(), "no accelerator here"
    data = samples()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        build_base(base, [sample.query.text or "" for sample in data] * 20)
        contents = [content for sample in data[:32] for content in (sample.query, sample.positive)]
        vectors = {device: Encoder.load(base, device=device).embed(contents) for device in ("cpu", "cuda")}
        half = Encoder.load(base, device="cuda", dtype="bfloat16").embed(contents)
        encoder = Encoder.load(base, device="cuda")
    encoder.module.model = add_adapter(
        encoder.module.model, rank=16, alpha=32, dropout=0.1, targets="all", train_embeddings=True
    )
    encoder.module.to("cuda")
    optimizer = torch.optim.AdamW([p for p in encoder.module.parameters() if p.requires_grad])
    steps = fit(
        PlainEngine(encoder.module, optimizer, max_grad_norm=5.0),
        encoder,
        data,
        BatchSampler(["T2I"] * len(data), range(len(data)), batch_size=BATCH_SIZE, seed=0),
        task=ContrastiveTask(encoder, Objective(0.05), 1),
        grad_cache=True,
        num_steps=NUM_STEPS,
        learning_rate=3e-3,
        warmup_ratio=0.1,
        autocast="bfloat16",
    )
    losses = [step.loss for step in steps]
    figures = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "largest_difference_float32": float(np.abs(vectors["cpu"] - vectors["cuda"]).max()),
        "least_cosine_bfloat16": float((vectors["cuda"] * half).sum(axis=1).min()),
        "first_loss": losses[0],
        "mean_of_last_4_losses": float(np.mean(losses[-4:])),
        "batch_size": BATCH_SIZE,
        "steps": NUM_STEPS,
    }
    print(json.dumps(figures, indent=2))
    assert figures["largest_difference_float32"] < 1e-3
    assert figures["mean_of_last_4_losses"] < losses[0]


if __name__ == "__main__":
    main()
