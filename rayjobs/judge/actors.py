"""The actor that holds a judge: items of blocks in, reports on their parts out."""

from __future__ import annotations

import json
import os

import pyarrow as pa

from mme5core.errors import first_line
from mme5core.judge.judged_parts import JudgeBlock
from mme5core.judge.settings import JudgeSettings
from mme5core.processors import threads_per_process
from mme5core.sample_table import SampleTable


class JudgeActor:
    """
    Args:
        uses_gpu: whether Ray has given the actor a GPU.
        workers_here: actors that share its node, for the threads of each.
    """

    def __init__(self, block: JudgeBlock, settings: JudgeSettings, uses_gpu: bool, workers_here: int) -> None:
        if not uses_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves an actor without GPUs all that it could see
        import torch

        from mme5core.judge import Judge

        if not uses_gpu:
            torch.set_num_threads(threads_per_process(workers_here))
        self._block, self._problem = block, ""
        try:
            self._table = SampleTable(block.samples)
            self._judge = Judge.load(
                settings.model,
                "auto" if uses_gpu else "cpu",
                settings.dtype,
                adapter=settings.adapter,
                remote_code=settings.remote_code,
            )
        except Exception as error:  # raised here, it would come out as Ray's tracebacks
            self._problem = f"cannot load judge {settings.model!r}: {first_line(error)}"

    def __call__(self, batch: pa.Table) -> dict[str, list[str]]:
        if self._problem:
            return {"report": [""], "unloadable": [self._problem], "failure": [""]}
        try:
            report = self._block.work(json.loads(batch["item"][0].as_py()), self._judge, self._table)
            return {"report": [json.dumps(report)], "unloadable": [""], "failure": [""]}
        except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
            return {"report": [""], "unloadable": [""], "failure": [f"cannot judge: {first_line(error)}"]}
