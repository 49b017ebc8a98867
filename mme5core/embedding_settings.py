"""The settings of an encoder at work: which model, and how many rows it takes at once."""

from __future__ import annotations

from typing import Literal

from mme5core.settings import Section, key, required


class InstructionSettings(Section):
    T: str | None = key(None, "for rows of text that bring none")
    I: str | None = key(None, "for rows of one picture that bring none")
    IT: str | None = key(None, "for rows of text and picture that bring none")


class ReadingSettings(Section):
    """How a model reads pictures; stored with it."""

    picture_side: int | None = key(
        None,
        "pictures are made squares of so many pixels a side; null: as stored with the model, or as its processor does",
        added_later=True,
        ge=1,
    )
    positions: Literal["own", "in_a_row"] | None = key(
        None,
        "in_a_row: a number for each token, those of pictures too (Qwen); null: as stored with the model, else its own",
        added_later=True,
    )


class EmbeddingSettings(ReadingSettings):
    model: str = required(
        "checkpoint, train's model folder, adapter folder, or hub id", names_input=True, path="existing"
    )
    library: Literal["mme5", "sentence-transformers"] = key(
        "mme5", "what runs the model; sentence-transformers: any model of that library, for comparison"
    )
    adapter: str | None = key(None, "adapter folder to put on the model", names_input=True, path="existing")
    prompt_style: str | None = key(None, "how contents become prompts; null: the one stored with the model")
    max_tokens: int | None = key(None, "of one prompt; what is longer is cut; null: as stored with the model", ge=1)
    remote_code: bool = key(False, "run code that comes with the model; it can do anything that you can")
    instruction: InstructionSettings = key(InstructionSettings(), "instructions by modality")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key("auto", "of the model; auto: the checkpoint's own")
    device: str = key("auto", "auto (GPUs where the cluster has any), cpu, cuda", rows=False)
    gpus_per_worker: float = key(1.0, "of each worker that uses GPUs; below 1 several share one", rows=False, gt=0)
    max_batch_rows: int = key(32, "rows of one forward pass at most", rows=False, ge=1, formerly="batch_size")
    max_batch_tokens: int = key(16_384, "rows x longest row of one forward pass at most", rows=False, ge=1)
    max_batch_pictures: int | None = key(
        None, "distinct pictures of one forward pass at most; null: as many as rows", rows=False, ge=1
    )
    picture_threads: int = key(1, "threads of each worker that decode pictures beside the model", rows=False, ge=1)
    window_rows: int = key(1024, "rows sorted by length together", rows=False, ge=1)
