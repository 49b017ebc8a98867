"""The local judge against bare prefills: python -m benchmarks.judging [--full-size]

`over_bare`: the time of `Judge.scores` over that of bare batched forward passes on the same prompts, prepared and
resident; one candidate a query, so that nothing is shared. `sharing_gain`: ten candidates a query with a long query of
text and picture, each pair by itself over the shared prefix. Both sides in turn, best times; equal scores are checked.
--full-size: Qwen2-VL-2B with random weights in bfloat16, on a GPU; else a small one in float32 on two threads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import checkpoints, embedding, full_size
from benchmarks.run import best_of
from mme5core.judge import Judge
from mme5core.judge.answering import AnsweringModel
from mme5core.judge.local import yes_share
from mme5core.types import Content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--full-size", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(measure(full=arguments.full_size)), flush=True)


def measure(*, full: bool) -> dict[str, Any]:
    torch.set_num_threads(2)
    judge = _full_size() if full else _small()
    size, num_words = ((512, 384), 60) if full else ((112, 84), 30)
    figures: dict[str, Any] = {
        "model": "Qwen2-VL-2B" if full else "small qwen2_vl",
        "device": torch.cuda.get_device_name() if full else "cpu, 2 threads",
        "dtype": str(next(judge.module.parameters()).dtype),
        "torch": torch.__version__,
    }
    num_pairs, batch_size = (256, 32) if full else (48, 16)
    pairs = [
        (Content(checkpoints.words(num_words, n), embedding.jpeg(n, size)), Content(checkpoints.words(8, 500 + n)))
        for n in range(num_pairs)
    ]
    groups = [list(range(num_pairs))]
    shown = [Content("pair", images=(*query.images, *candidate.images)) for query, candidate in pairs]
    prompts = [judge._prompts.pair(query, candidate, None) for query, candidate in pairs]
    limits = {"max_batch_rows": batch_size, "max_batch_tokens": 1 << 16}
    prepared = list(judge._batches(groups, shown, prompts, limits, None))
    last: dict[str, np.ndarray] = {"bare": np.zeros(num_pairs, np.float32)}

    def bare() -> None:
        for batch in prepared:
            last["bare"][batch.rows] = yes_share(judge.log_odds_of(batch))

    def job() -> None:
        last["job"] = judge.scores(pairs, batch_size=batch_size, max_batch_tokens=1 << 16)

    best = best_of({"bare": bare, "job": job}, rounds=3)
    assert np.abs(last["bare"] - last["job"]).max() < (2e-2 if full else 1e-5)
    figures |= {"pairs": num_pairs, "pairs_per_s": round(num_pairs / best["job"], 1)}
    figures["over_bare"] = round(best["job"] / best["bare"], 3)
    return figures | _sharing(judge, size, 20 if full else 4, num_words, full=full)


def _sharing(judge: Judge, size: tuple[int, int], num_queries: int, num_words: int, *, full: bool) -> dict[str, Any]:
    queries = [Content(checkpoints.words(3 * num_words, n), embedding.jpeg(n, size)) for n in range(num_queries)]
    candidates = [Content(checkpoints.words(8, 900 + n)) for n in range(10)]
    together = [(query, candidate) for query in queries for candidate in candidates]
    # Equal contents, but each pair with a query of its own: nothing is known to be shared.
    apart = [(Content(query.text, images=query.images), candidate) for query, candidate in together]
    last: dict[str, np.ndarray] = {}

    def shared() -> None:
        last["shared"] = judge.scores(together, batch_size=10, max_batch_tokens=1 << 16)

    def each() -> None:
        scores = []
        for place in range(0, len(apart), 10):
            scores.append(judge.scores(apart[place : place + 10], batch_size=10, max_batch_tokens=1 << 16))
        last["each"] = np.concatenate(scores)

    from mme5core.encoder import shared_prefix

    def each_whole() -> None:
        least = shared_prefix.LEAST_TOKENS
        shared_prefix.LEAST_TOKENS = 1 << 30  # no prefix pays
        each()
        shared_prefix.LEAST_TOKENS = least

    best = best_of({"shared": shared, "each": each_whole}, rounds=3)
    difference = float(np.abs(last["shared"] - last["each"]).max())
    assert difference < (2e-2 if full else 1e-5), difference
    return {
        "shared_queries": num_queries,
        "sharing_gain": round(best["each"] / best["shared"], 2),
        "shared_pairs_per_s": round(len(together) / best["shared"], 1),
        "largest_difference": difference,
    }


def _small() -> Judge:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.qwen2_vl(Path(folder) / "base")
        return Judge.load(Path(folder) / "base", device="cpu", dtype="float32")


def _full_size() -> Judge:
    encoder = full_size.qwen2_vl_2b()
    width = encoder.dimension
    head = nn.Linear(width, encoder.module.model.config.get_text_config().vocab_size, bias=False)
    return Judge(AnsweringModel(encoder.module.model, head.to("cuda", torch.bfloat16), encoder.backbone))


if __name__ == "__main__":
    main()
