"""The settings of a vision-language model that answers, in judges and rerankers."""

from __future__ import annotations

from typing import Literal

from mme5core.settings import Section, key


class ModelSettings(Section):
    model: str = key(
        "",
        "checkpoint, reranker, adapter folder or hub id of a vision-language model",
        names_input=True,
        path="existing",
    )
    adapter: str | None = key(None, "adapter folder to put on the model", names_input=True, path="existing")
    remote_code: bool = key(False, "run code that comes with the model; it can do anything that you can")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key("auto", "of the model; auto: the checkpoint's own")
    device: str = key("auto", "auto (GPUs where the cluster has any), cpu, cuda", rows=False)
    gpus_per_worker: float = key(1.0, "of each worker that uses GPUs; below 1 several share one", rows=False, gt=0)
    max_batch_rows: int = key(16, "pairs of one forward pass at most", rows=False, ge=1)
    max_batch_tokens: int = key(16_384, "pairs x longest prompt of one forward pass at most", rows=False, ge=1)
