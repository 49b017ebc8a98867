"""The processes of a training run under Ray Train."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mme5core.errors import WorkFailed
from mme5core.processors import threads_per_process
from rayjobs.on_ray.resources import Placement

RAY_FOLDER = "ray"
LOOK_EVERY_S = 0.2


def run_processes(
    process: Callable[[int | None], None],
    work: Path,
    *,
    num_workers: int,
    placement: Placement,
    max_failures: int,
    look: Callable[[], None],
) -> None:
    """Run a function in every process of a torch process group, until all have returned.

    Ray Train runs in a thread of its own: in the main thread it would put its own handler on Ctrl-C, and hold back
    what handlers of signals raise until the training is over.

    Args:
        process: takes the number of threads to compute with; None: it computes on an accelerator.
        work: Ray Train's files go below it.
        look: called meanwhile, several times a second; what it raises ends the wait.

    Raises:
        WorkFailed, OSError: a process failed more often than `max_failures`; without Ray's wrapping.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # Ray Train would resume from what it remembers of an earlier run of this name; our checkpoints decide.
    shutil.rmtree(work / RAY_FOLDER, ignore_errors=True)
    resources = {"CPU": placement.cpus} | ({"GPU": placement.gpus} if placement.uses_gpu else {})
    trainer = TorchTrainer(
        partial(_in_process, process, placement.uses_gpu),
        torch_config=TorchConfig(backend="nccl" if placement.uses_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=placement.uses_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=RAY_FOLDER,
            storage_path=str(work),
            failure_config=FailureConfig(max_failures=max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
        ),
    )
    errors: list[Exception] = []

    def run() -> None:
        try:
            trainer.fit()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_EVERY_S)
        look()
    if errors:
        raise _cause(errors[0]) from None


def _in_process(process: Callable[[int | None], None], uses_gpu: bool) -> None:
    if uses_gpu:
        process(None)
        return
    from ray.train import get_context

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves a worker without GPUs all that it could see
    process(threads_per_process(get_context().get_local_world_size()))


def _cause(error: Exception) -> Exception:
    """What went wrong in a process."""
    failures = getattr(error, "worker_failures", None) or {}
    cause: BaseException = next(iter(failures.values()), error)
    while getattr(cause, "cause", None) is not None or cause.__cause__ is not None:
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause
    if isinstance(cause, OSError):
        return cause
    last = next((line for line in str(cause).strip().splitlines()[::-1] if line.strip()), type(cause).__name__)
    return WorkFailed(f"training failed: {last.strip()}")
