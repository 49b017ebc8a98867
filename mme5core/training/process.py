"""One process of a training run: loads, resumes, trains, saves."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mme5core.distributed import on_any_process, rank, sum_over_processes
from mme5core.encoder import Encoder
from mme5core.ownership import check_owner
from mme5core.training import deepspeed_engine
from mme5core.training.checkpoint import Moments, Newest, collect_state, restore_state
from mme5core.training.ending import LASTING, Ending, lasting, read_ending
from mme5core.training.fit import StepResult, fit
from mme5core.training.loaded import Loaded, build_engine, device_here, is_full, load
from mme5core.training.process_run import TrainingRun
from mme5core.training.run_files import LOG, make_sampler, stop_file
from mme5core.training.run_log import append_step, cut_log, write_summary

UPDATES = "num_updates"
"""In a checkpoint: how many of its steps changed the weights. Earlier versions skipped none and left it out."""


def train_process(
    run: TrainingRun, *, load: Callable[[TrainingRun], Loaded] = load, num_threads: int | None = None
) -> None:
    """The whole life of one process. What a second try cannot mend ends it in one line for all of them (`Ending`).

    Args:
        load: makes of the run's settings what is trained.
        num_threads: of a process that computes on the CPU; None: torch's choice.

    Raises:
        Exception: what a second try may mend.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    if read_ending(run.work, run.owner) is not None:  # of the try before this one
        return
    problem = None
    try:
        loaded = load(run)
    except ValueError as error:
        problem = Ending("refused", (str(error).strip().splitlines() or [type(error).__name__])[-1])
        problem.write(run.work, run.owner)
    # The others would wait for one that has left.
    (is_refused,) = on_any_process(problem is not None, device=device_here())
    if is_refused:
        return
    try:
        _train(run, loaded)
    except torch.OutOfMemoryError:
        reason = "out of memory on the accelerator: lower chunk_rows or chunk_tokens, or set grad_cache=true"
        Ending("failed", reason).write(run.work, run.owner)
        raise
    except FloatingPointError as error:  # on all processes alike
        Ending("failed", str(error)).write(run.work, run.owner)
        with contextlib.suppress(*LASTING):
            loaded.checkpoints.wait()


def _train(run: TrainingRun, loaded: Loaded) -> None:
    """
    Raises:
        FloatingPointError: on all processes alike, the training has diverged.
    """
    engine, moments = build_engine(loaded.encoder.module, run.settings)
    first_step, num_updates = _resume(run, loaded, moments)
    writer = _Writer(run, loaded, moments, first_step, num_updates)
    if writer.ends(is_stop_asked=_is_stop_asked(run)):
        return
    for result in _steps(run, loaded, engine, first_step):
        writer.log(result)
        if writer.ends(is_stop_asked=_is_stop_asked(run)):
            return
    writer.wait()
    if not writer.ends(is_stop_asked=False):
        writer.save_model()


class _Writer:
    """What a process writes, and whether all go on: the first writes for all, all take part in gathering."""

    def __init__(self, run: TrainingRun, loaded: Loaded, moments: Moments, first_step: int, num_updates: int) -> None:
        self._run, self._loaded, self._moments = run, loaded, moments
        self._step = self._saved_step = first_step
        self._num_updates = num_updates
        self._problem: Ending | None = None

    def log(self, result: StepResult) -> None:
        """Note a step, and save a checkpoint if one is due."""
        self._step = result.step
        self._num_updates += not result.is_skipped
        with self._noting(str(self._run.folder)):
            check_owner(self._run.work, self._run.owner)
            if rank() == 0:
                append_step(self._run.folder / LOG, result)
        if result.step % self._run.settings.save_every == 0 or result.step == self._run.num_steps:
            self._save()

    def ends(self, *, is_stop_asked: bool) -> bool:
        """Whether all processes are to end: one has failed, or they were asked to and have saved where they are."""
        has_failed, is_stopped = on_any_process(self._problem is not None, is_stop_asked, device=device_here())
        if is_stopped and not has_failed:
            if self._step > self._saved_step:
                self._save()
            self.wait()
            (has_failed,) = on_any_process(self._problem is not None, device=device_here())
            if not has_failed and rank() == 0:
                Ending("stopped").write(self._run.work, self._run.owner)
        if self._problem is not None:
            self._problem.write(self._run.work, self._run.owner)
        return has_failed or is_stopped

    def wait(self) -> None:
        """Wait for the checkpoint that is being written."""
        with self._noting(self._loaded.checkpoints.place):
            self._loaded.checkpoints.wait()

    def save_model(self) -> None:
        encoder, is_whole = self._loaded.encoder, is_full(self._run.settings)
        with deepspeed_engine.gathered(encoder.module, frozen_too=is_whole):
            if rank() == 0:
                with self._noting(str(self._run.folder)):
                    _save_model(self._run, encoder, is_whole=is_whole)
                if self._problem is not None:
                    self._problem.write(self._run.work, self._run.owner)

    def _save(self) -> None:
        self._saved_step = self._step
        state = collect_state(self._loaded.encoder.module, self._moments, keep=rank() == 0)
        if self._loaded.temperatures is not None:
            state |= self._loaded.temperatures.tensors()
        if rank() == 0:
            state[UPDATES] = torch.tensor(self._num_updates)
            with self._noting(self._loaded.checkpoints.place):
                _check_finite(state, f"after step {self._step}")
                self._loaded.checkpoints.save(self._step, state)

    @contextlib.contextmanager
    def _noting(self, place: str) -> Iterator[None]:
        """Within it the first failure that a second try cannot mend is noted; others are raised."""
        try:
            yield
        except LASTING as error:
            problem = lasting(error, place=place)
            if problem is None:
                raise
            self._problem = self._problem or problem


def _resume(run: TrainingRun, loaded: Loaded, moments: Moments) -> tuple[int, int]:
    """Restore the newest whole checkpoint, if there is one; returns its step, 0 for none, and the updates so far."""
    # The first process looks, so that all go on from the same.
    newest = loaded.checkpoints.newest() if rank() == 0 else Newest()
    step = torch.tensor([float(newest.step)], device=device_here(), dtype=torch.float64)
    first_step = int(sum_over_processes(step).item())
    state = newest.state
    if first_step and not state:
        state = loaded.checkpoints.load(first_step)
    num_updates = int(state.pop(UPDATES, torch.tensor(first_step)))
    moments.create(num_updates)
    if first_step:
        if loaded.temperatures is not None:
            loaded.temperatures.load_tensors(state, num_updates=num_updates)
        restore_state(loaded.encoder.module, state, moments)
    if rank() == 0:
        cut_log(run.folder / LOG, first_step)
        write_summary(run.work, loaded.encoder.module.model, first_step=first_step, passed_over=newest.passed_over)
    return first_step, num_updates


def _is_stop_asked(run: TrainingRun) -> bool:
    return rank() == 0 and stop_file(run.work, run.owner).exists()


def _save_model(run: TrainingRun, encoder: Encoder, *, is_whole: bool) -> None:
    """
    Raises:
        FloatingPointError: a weight is NaN or infinite.
    """
    _check_finite({n: p for n, p in encoder.module.named_parameters() if p.requires_grad}, "at the end")
    staged = run.folder / f".model-{run.owner}"  # as deep as `model`: it names its base by a relative path too
    shutil.rmtree(staged, ignore_errors=True)
    encoder.save(staged, include_base=is_whole)
    check_owner(run.work, run.owner)
    staged.rename(run.folder / "model")


def _check_finite(tensors: dict[str, Tensor], when: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FloatingPointError(f"{name} is NaN or infinite {when}: lower learning_rate or use float32")


def _steps(run: TrainingRun, loaded: Loaded, engine: Any, first_step: int) -> Iterator[StepResult]:
    settings = run.settings
    return fit(
        engine,
        loaded.encoder,
        loaded.samples,  # type: ignore[arg-type]
        make_sampler(loaded.samples, settings),
        task=loaded.task,
        temperatures=loaded.temperatures,
        num_steps=run.num_steps,
        first_step=first_step,
        learning_rate=settings.learning_rate,
        warmup_ratio=settings.warmup_ratio,
        grad_cache=settings.grad_cache,
        tower_once=settings.tower_once,
        chunk_rows=settings.chunk_rows,
        max_chunk_tokens=settings.chunk_tokens,
        seed=settings.seed,
        autocast=settings.autocast,
        picture_cache_bytes=settings.picture_cache_mb << 20,
        device_features_bytes=settings.tower_features_mb << 20,
        num_threads=settings.picture_threads,
    )
