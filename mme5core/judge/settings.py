"""The settings of a judge and of what follows from its scores."""

from __future__ import annotations

from typing import Literal

from mme5core.settings import Section, key


class JudgeSettings(Section):
    model: str = key(
        "", "checkpoint, adapter folder or hub id of a vision-language model", names_input=True, path="existing"
    )
    adapter: str | None = key(None, "adapter folder to put on the model", names_input=True, path="existing")
    remote_code: bool = key(False, "run code that comes with the model; it can do anything that you can")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key("auto", "of the model; auto: the checkpoint's own")
    device: str = key("auto", "auto (GPUs where the cluster has any), cpu, cuda", rows=False)
    gpus_per_worker: float = key(1.0, "of each worker that uses GPUs; below 1 several share one", rows=False, gt=0)
    max_batch_rows: int = key(16, "pairs of one forward pass at most", rows=False, ge=1)
    max_batch_tokens: int = key(16_384, "pairs x longest prompt of one forward pass at most", rows=False, ge=1)


class SelectionSettings(Section):
    """Which judged candidates become hard negatives; the defaults are UniME-V2's numbers."""

    beta: float = key(0.01, "candidates that score above the positive's score less this are left out", ge=0)
    step: int = key(5, "interval of the cyclic choice among the survivors", ge=1)
    count: int = key(10, "hard negatives of a sample", ge=1)
    fill: Literal["fewer", "published"] = key(
        "fewer",
        "where fewer survive: take fewer; published: repeat them, and where none survives draw at random with score 1",
    )
    min_positive_score: float | None = key(
        None, "refuse samples whose positive scores lower: 0.5 refuses those judged wrong; null: none", ge=0, le=1
    )
