"""The demo's base model: a small mllama trained for a few minutes, kept between demos."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from mme5core.demo import benchmark
from mme5core.durable import write_json
from mme5core.progress import Progress
from rayjobs.demo.config import DemoConfig
from rayjobs.demo.corpus import digest_of_texts, read_pictures, usable_rows

BASE_SOURCES = ("annotations.py", "corpus.py", "benchmark.py", "captions.py", "instructions.py", "base_model.py")


def make_base(config: DemoConfig, root: Path) -> dict[str, Any]:
    """The small pretrained model: from the cache, or trained now and put there."""
    sources = Path(benchmark.__file__).parent
    manifest = json.loads((root / "corpus" / "_manifest.json").read_text())
    digest = digest_of_texts(
        [manifest["fingerprint"], str(config.base_steps), str(config.base_batch_size)]
        + [(sources / name).read_text() for name in BASE_SOURCES]
    )
    cached, base = Path(config.cache).expanduser() / f"base-{digest}", root / "base"
    if not (base / "config.json").is_file() or (base / "digest").read_text() != digest:
        if cached.is_dir():
            print(f"base: from {cached}", file=sys.stderr)
        else:
            _train_base(config, root, cached)
        shutil.rmtree(base, ignore_errors=True)
        staged = root / ".base"
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(cached, staged)
        (staged / "digest").write_text(digest)
        staged.rename(base)
    else:
        print("base: already done", file=sys.stderr)
    log: dict[str, Any] = json.loads((base / "training.json").read_text())
    return log


def _train_base(config: DemoConfig, root: Path, cached: Path) -> None:
    import torch
    from transformers import logging as transformers_logging

    from mme5core.demo.base_model import MAX_TOKENS, build_base, train_base
    from mme5core.demo.captions import Captions
    from mme5core.encoder import Encoder
    from mme5core.types import Content

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which transformers imports, warns on stdout
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pictures = read_pictures(root)
    captions = Captions(pictures)
    staged = cached.with_name(f".{cached.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    print("base: training the tokenizer", file=sys.stderr, flush=True)
    build_base(staged, captions.tokenizer_texts(), seed=config.seed)
    encoder = Encoder.load(staged, device="cpu", attention="eager")
    encoder.max_tokens = MAX_TOKENS
    data = {row.id: row.image for row in usable_rows(root)}
    prepared = [encoder.prepare_picture(Content(image=data[picture.key])) for picture in pictures]
    losses = []
    with Progress("base", config.base_steps, "steps") as progress:
        for step in train_base(
            encoder,
            prepared,
            captions,
            num_steps=config.base_steps,
            batch_size=config.base_batch_size,
            seed=config.seed,
        ):
            losses.append(step.loss)
            progress.update(step.step, f"loss {step.loss:.2f}")
    save_base(encoder, staged)
    write_json(
        staged / "training.json",
        {
            "steps": config.base_steps,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "threads": torch.get_num_threads(),
        },
    )
    staged.rename(cached)


def save_base(encoder: Any, folder: Path) -> None:
    """Put trained weights into the checkpoint that they came from, head and all."""
    from transformers import AutoModelForImageTextToText

    whole = AutoModelForImageTextToText.from_pretrained(folder)
    whole.model.load_state_dict(encoder.module.model.state_dict())
    whole.save_pretrained(folder)
