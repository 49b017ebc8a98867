"""Embedding against the loop of mmE5's own evaluation, its classes unmodified, on the same checkpoint and rows.

    python -m benchmarks.mme5_loop --mme5-repo PATH

Half texts, half pictures of one, two and four tiles; batches of as many rows, float32, one thread for the model on
either side. Then the same rows with as many doubles again. Memory, of texts of some 250 tokens and of pictures, is what
a process of its own adds to what it held after loading, at its peak.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import checkpoints, embedding
from benchmarks.run import best_of
from mme5core.content_key import content_key
from mme5core.encoder import Encoder
from mme5core.types import Content

PICTURE = "<|image_1|>\n"
ROUNDS = 5


def mme5_side(repo: Path, base: Path) -> Callable[[list[Content]], np.ndarray]:
    """Their model, collator and loader, put together as their eval.py does; texts and pictures each in a loader of
    their own, as a batch of both ends in an error there."""
    sys.path.insert(0, str(repo))
    from src.collator import LlamaEvalCollator
    from src.model import MMEBModel
    from torch.utils.data import DataLoader
    from transformers import AutoProcessor

    names = SimpleNamespace(
        model_name=str(base), checkpoint_path=None, model_backbone="mllama", lora=False, pooling="last", normalize=True
    )
    data = SimpleNamespace(max_len=embedding.MAX_TOKENS)
    processor = AutoProcessor.from_pretrained(base, backend="pil")
    processor.tokenizer.padding_side = "right"
    model = MMEBModel.load(names).eval().to(dtype=torch.float32)
    collate = LlamaEvalCollator(data_args=data, model_args=names, processor=processor)

    def embed(rows: list[Content]) -> np.ndarray:
        result = np.empty((len(rows), model.hidden_size), dtype=np.float32)
        for has_picture in (False, True):
            places = [place for place, row in enumerate(rows) if (row.image is not None) == has_picture]
            if not places:
                continue
            pairs = [(PICTURE + (rows[p].text or ""), _opened(rows[p])) for p in places]
            vectors = []
            with torch.no_grad():
                for batch in DataLoader(pairs, embedding.BATCH_SIZE, shuffle=False, collate_fn=collate):  # type: ignore[arg-type]
                    vectors.append(model(qry=batch)["qry_reps"].cpu().detach().float().numpy())
            result[places] = np.concatenate(vectors)
        return result

    return embed


def our_side(base: Path) -> Callable[[list[Content]], np.ndarray]:
    """What a window of the job does: each distinct content once."""
    encoder = Encoder.load(str(base), device="cpu", dtype="float32")
    encoder.max_tokens = embedding.MAX_TOKENS

    def embed(rows: list[Content]) -> np.ndarray:
        keys = [content_key(row.text, row.image, None) for row in rows]  # type: ignore[arg-type]
        _, first, place = np.unique(np.array(keys), return_index=True, return_inverse=True)
        vectors = embedding.embed(encoder, [rows[n] for n in first])
        return vectors[place]

    return embed


def _opened(row: Content) -> Image.Image | None:
    return None if row.image is None else Image.open(io.BytesIO(row.image)).convert("RGB")  # type: ignore[arg-type]


def added_bytes(side: str, kind: str, repo: Path, base: Path) -> int:
    """Peak memory of a process that embeds rows of a kind, over what it held when it was ready to."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return int(pool.apply(_added, (side, kind, str(repo), str(base))))


def _added(side: str, kind: str, repo: str, base: str) -> int:
    torch.set_num_threads(1)
    embed = mme5_side(Path(repo), Path(base)) if side == "theirs" else our_side(Path(base))
    if kind == "texts":
        rows = [Content(checkpoints.words(220, seed)) for seed in range(64)]
    else:
        rows = [row for row in _rows() if row.image is not None]
    embed(rows[:2])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: loading had a higher one
    held = _peak_bytes()
    embed(rows)
    return _peak_bytes() - held


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _rows() -> list[Content]:
    _, num_rows, size = embedding.CASES["mllama_1_2_4_tiles"]
    return embedding.contents(num_rows, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mme5-repo", type=Path, required=True)
    repo = parser.parse_args().mme5_repo.resolve()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as text:
        base = checkpoints.mllama(Path(text) / "mllama")
        _complete(base)
        ours, theirs, rows = our_side(base), mme5_side(repo, base), _rows()
        report: dict[str, Any] = {"n": len(rows), "dtype": "float32", "threads": 1}
        for name, asked in (("speed", rows), ("speed_where_half_are_doubles", rows + rows[::-1])):
            actual, expected = ours(asked), theirs(asked)
            apart = float((1 - (actual * expected).sum(axis=1)).max())
            assert apart < 1e-5, f"the two sides give other vectors, 1 - cosine {apart}"
            best = best_of({"ours": partial(ours, asked), "theirs": partial(theirs, asked)}, ROUNDS)
            report[name] = round(best["theirs"] / best["ours"], 2)
            print(f"{name}: {report[name]}", file=sys.stderr)
        for kind in ("texts", "pictures"):
            added = {side: added_bytes(side, kind, repo, base) for side in ("ours", "theirs")}
            report[f"added_mb_{kind}"] = {side: round(count / 1e6) for side, count in added.items()}
        print(json.dumps(report))


def _complete(base: Path) -> None:
    """Add a processor, which they load whole, and round the weights to bfloat16, which they load them in."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoImageProcessor, AutoTokenizer, MllamaProcessor

    pixels = AutoImageProcessor.from_pretrained(base, backend="pil")
    MllamaProcessor(pixels, AutoTokenizer.from_pretrained(base)).save_pretrained(base)
    weights = load_file(base / "model.safetensors")
    rounded = {name: weight.bfloat16().float() for name, weight in weights.items()}
    save_file(rounded, base / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
