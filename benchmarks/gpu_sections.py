"""Measurements on one GPU, a JSON line each: python -m benchmarks.gpu_sections [--limit-s 430] [SECTION ...]

Needs no Ray. A section that would not fit into the time left is skipped; one that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import checkpoints, embedding, full_size, gpu_check, gpu_embedding, gpu_training
from mme5core.adapters import add_adapter
from mme5core.encoder import Encoder
from mme5core.training import deepspeed_engine
from mme5core.training.contrastive import ContrastiveTask
from mme5core.training.fit import fit
from mme5core.training.gradcache import PlainEngine
from mme5core.training.objective import Objective
from mme5core.training.sampling import BatchSampler

Figures = dict[str, Any]
NUM_KERNELS = 25


def zero_stages() -> Figures:
    """DeepSpeed over NCCL and dropout replayed by GradCache, against one plain pass with kept activations."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("nccl", rank=0, world_size=1)
    plain = _losses()
    difference = {}
    for stage in (1, 2, 3):
        losses = _losses(zero_stage=stage, grad_cache=True)
        difference[f"zero_{stage}"] = max(abs(a - b) / abs(b) for a, b in zip(losses, plain, strict=True))
    dist.destroy_process_group()
    return {"losses": plain, "largest_relative_difference": difference}


def qlora() -> Figures:
    """A base in nf4: ten steps of its adapter."""
    return {"losses": _losses(quantize="nf4", grad_cache=True, num_steps=10)}


def profile_mme5() -> Figures:
    """Where the time of a step of the published recipe goes, by kernels and by operators."""
    return _profile("mme5", batch_size=4)


def profile_ours() -> Figures:
    """The same of LoRA on the language model."""
    return _profile("ours", batch_size=48)


def pipeline() -> Figures:
    """Qwen2-VL-2B from JPEG files to Parquet in one process."""
    with tempfile.TemporaryDirectory() as folder:
        return gpu_embedding.pipeline(Path(folder), small=not torch.cuda.is_available(), num_threads=4)


def beside_sentence_transformers() -> Figures:
    """Rows a second of the same model here and in sentence-transformers, alternating; half texts, half pictures."""
    count = 1024
    rows = embedding.contents(count, lambda draw: (draw.randrange(224, 768), draw.randrange(224, 768)))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "qwen"
        encoder = full_size.qwen2_vl_2b()
        for part in (encoder.module.model, encoder.backbone.tokenizer, encoder.backbone.image_processor):
            part.save_pretrained(base)
        peer = embedding.sentence_transformer(base, "qwen2_vl").to("cuda", torch.bfloat16)

    def ours() -> None:
        for _ in encoder.stream(rows, [None] * count, max_batch_rows=32, max_batch_tokens=1 << 16, num_threads=4):
            pass

    def theirs() -> None:
        peer.encode(embedding.inputs_of(rows), batch_size=32, show_progress_bar=False)

    rates: dict[str, list[float]] = {"ours": [], "sentence_transformers": []}
    for _ in range(2):
        for name, run in (("ours", ours), ("sentence_transformers", theirs)):
            rates[name].append(round(count / gpu_embedding._seconds(run), 1))
    return {"rows": count, "batch_size": 32, "dtype": "bfloat16", "rows_per_s": rates}


SECTIONS: dict[str, tuple[Callable[[], Figures], int]] = {  # with the seconds that each needs
    "zero_stages": (zero_stages, 60),
    "qlora": (qlora, 30),
    "profile_mme5": (profile_mme5, 100),
    "beside_sentence_transformers": (beside_sentence_transformers, 70),
    "pipeline": (pipeline, 60),
    "profile_ours": (profile_ours, 70),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; none: all, in this order")
    parser.add_argument("--limit-s", type=float, default=430.0)
    parser.add_argument("--out", type=Path, help="a file that gets the lines too")
    arguments = parser.parse_args()
    began = time.monotonic()
    _print(arguments.out, _versions())
    for name in arguments.sections or SECTIONS:
        run, needs_s = SECTIONS[name]
        left_s = arguments.limit_s - (time.monotonic() - began)
        figures = _figures(run) if left_s > needs_s else {"skipped": f"{left_s:.0f} s left, {needs_s} needed"}
        _print(arguments.out, {"section": name} | figures)


def _figures(run: Callable[[], Figures]) -> Figures:
    began = time.monotonic()
    try:
        figures = run()
    except Exception as error:  # the other sections still run
        figures = {"error": f"{type(error).__name__}: {error}"[:600], "where": traceback.format_exc()[-1200:]}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return figures | {"took_s": round(time.monotonic() - began, 1)}


def _print(path: Path | None, figures: Figures) -> None:
    line = json.dumps(figures, default=str)
    print(line, flush=True)
    if path:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _versions() -> Figures:
    import peft
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def _losses(
    *, zero_stage: int | None = None, grad_cache: bool = False, quantize: str | None = None, num_steps: int = 4
) -> list[float]:
    samples = gpu_check.samples()[:64]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        base = checkpoints.mllama_to_train(Path(folder) / "base")
        encoder = Encoder.load(base, quantize=quantize)
    encoder.module.model = add_adapter(
        encoder.module.model,
        rank=8,
        alpha=16,
        dropout=0.2,
        targets="language" if quantize else "all",
        train_embeddings=False,
    )
    encoder.module.to(encoder.device)
    engine: Any
    if zero_stage is None:
        trainable = [parameter for parameter in encoder.module.parameters() if parameter.requires_grad]
        engine = PlainEngine(encoder.module, torch.optim.AdamW(trainable, weight_decay=0.0), max_grad_norm=5.0)
    else:
        engine = deepspeed_engine.build(
            encoder.module, zero_stage=zero_stage, max_grad_norm=5.0, weight_decay=0.0, persistence_threshold=0
        )
    steps = fit(
        engine,
        encoder,
        samples,
        BatchSampler(["T2I"] * 64, range(64), batch_size=32, seed=0),
        task=ContrastiveTask(encoder, Objective(0.05), 1),
        grad_cache=grad_cache,
        num_steps=num_steps,
        learning_rate=1e-3,
        warmup_ratio=0.1,
        chunk_rows=8,
        autocast="bfloat16" if quantize else "none",
    )
    return [step.loss for step in steps]


def _profile(recipe_name: str, *, batch_size: int) -> Figures:
    from torch.profiler import ProfilerActivity, profile

    is_cuda = torch.cuda.is_available()
    recipe = gpu_training.RECIPES[recipe_name] | {"batch_size": batch_size}
    _, steps = gpu_training.steps_of(recipe, small=not is_cuda, num_steps=3)
    next(steps)  # warms up
    began = time.perf_counter()
    next(steps)
    step_s = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda) as profiler:
        next(steps)
    events = profiler.key_averages()
    if not is_cuda:
        return {"step_s": round(step_s, 2), "kernels": _shares(events, "self_cpu_time_total")}
    return {
        "step_s": round(step_s, 2),
        "busy_s": round(sum(event.self_device_time_total for event in events) / 1e6, 2),
        "kernels": _shares([e for e in events if e.self_device_time_total], "self_device_time_total"),
        "host": _shares(events, "self_cpu_time_total"),
    }


def _shares(events: Any, key: str) -> list[tuple[str, float, int]]:
    """Name, share of the time in percent, and calls of the longest ones."""
    total = sum(getattr(event, key) for event in events) or 1
    longest = sorted(events, key=lambda event: -getattr(event, key))[:NUM_KERNELS]
    return [(event.key[:90], round(100 * getattr(event, key) / total, 1), event.count) for event in longest]


if __name__ == "__main__":
    main()
