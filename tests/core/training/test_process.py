"""How a process of a training run goes on, ends and fails: nothing is lost, and each ending is one line."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mme5core import Content, Encoder
from mme5core.ownership import OWNER
from mme5core.training import checkpoint, fit
from mme5core.training.ending import Ending, read_ending
from mme5core.training.process import train_process
from mme5core.training.process_run import TrainingRun
from mme5core.training.run_files import LOG, SUMMARY, stop_file
from mme5core.training.step_gradient import StepGradient
from tests.core.training.runs import NanGradients, finite, log_of, new_run, steps_with_checkpoint, train_in_group


@pytest.fixture
def small(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("qwen2_vl")


def ending_of(run: TrainingRun) -> Ending:
    ending = read_ending(run.work, run.owner)
    assert ending is not None and "\n" not in ending.reason
    return ending


def summary_of(run: TrainingRun) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run.work / SUMMARY).read_text())
    return summary


def at_step(number: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Act while that step, counted from 1, is computed."""
    backward = StepGradient.backward

    def acting(gradient: StepGradient, batch: Any, step: int) -> float:
        if step + 1 == number:
            act()
        return backward(gradient, batch, step)

    monkeypatch.setattr(StepGradient, "backward", acting)


def test_a_stop_saves_where_it_is_and_the_next_run_goes_on_there(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = new_run(small, tmp_path / "unbroken", num_steps=5)
    train_process(unbroken)
    run = new_run(small, tmp_path / "run", num_steps=5, save_every=100)
    at_step(3, stop_file(run.work, run.owner).touch, monkeypatch)
    train_process(run)
    assert ending_of(run) == Ending("stopped")
    assert steps_with_checkpoint(run) == [3] and not (run.folder / "model").exists()
    (run.work / OWNER).unlink()
    again = new_run(small, tmp_path / "run", num_steps=5)
    train_process(again)
    assert read_ending(again.work, again.owner) is None and summary_of(again)["first_step"] == 3
    assert [line["loss"] for line in log_of(again)] == pytest.approx([line["loss"] for line in log_of(unbroken)])


def test_a_failure_that_would_come_again_is_not_tried_again(small: Path, tmp_path: Path) -> None:
    run = new_run(small, tmp_path / "run", num_steps=2)
    Ending("failed", "as before").write(run.work, run.owner)
    train_process(run)
    assert ending_of(run).reason == "as before" and not (run.folder / LOG).exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O: (os error 28)")]
)
def test_a_full_disk_ends_all_in_one_line_and_nothing_is_lost(
    error: Exception, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: dict[str, torch.Tensor], file: Any) -> None:
        if "step-00000002" in str(file):
            raise error
        save_file(state, file)

    monkeypatch.setattr(checkpoint, "save_file", full)
    run = new_run(small, tmp_path / "run", num_steps=6)
    train_process(run)
    reason = f"no space left on the disk of {run.folder}/checkpoints: free some, then run it again"
    assert ending_of(run) == Ending("failed", reason)
    assert steps_with_checkpoint(run) == [1] and not (run.folder / "model").exists()
    assert not (run.folder / "checkpoints" / "step-00000002").exists()  # what it took of the disk is free again


def test_a_run_that_was_replaced_ends_and_leaves_the_other_alone(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(small, tmp_path / "run", num_steps=5)
    owner = json.loads((run.work / OWNER).read_text())
    at_step(2, lambda: (run.work / OWNER).write_text(json.dumps(owner | {"token": "other"})) and None, monkeypatch)
    train_process(run)
    assert ending_of(run) == Ending("failed", "another run of this folder has taken over")
    assert read_ending(run.work, "other") is None
    assert len(log_of(run)) == 1 and steps_with_checkpoint(run) in ([], [1])  # it may not have been whole yet


def test_a_step_whose_gradient_is_nan_changes_nothing_and_is_logged(small: Path, tmp_path: Path) -> None:
    run = new_run(small, tmp_path / "run", num_steps=4)
    with NanGradients(1, 3):
        train_process(run)
    lines = log_of(run)
    assert [line["is_skipped"] for line in lines] == [True, False, True, False]
    assert [line["grad_norm"] is None for line in lines] == [True, False, True, False]
    assert all(finite(run))
    state = load_file(run.folder / "checkpoints" / "step-00000004" / "state.safetensors")
    before = load_file(run.folder / "checkpoints" / "step-00000003" / "state.safetensors")
    assert int(state["num_updates"]) == 2 and int(before["num_updates"]) == 1
    # Adam's first update is its rate times the gradient's sign: as if the skipped step had not been.
    moments = [tensor for name, tensor in before.items() if name.startswith("exp_avg/") and "lora_B" in name]
    assert all(float(tensor.abs().max()) > 0 for tensor in moments)


def test_a_run_resumed_after_a_skipped_step_goes_on_as_the_unbroken_one(small: Path, tmp_path: Path) -> None:
    losses = {}
    for name, stops in (("unbroken", ()), ("resumed", (2,))):
        for num_steps in (*stops, 5):
            run = new_run(small, tmp_path / name, num_steps=num_steps, warmup_ratio=1.0 / num_steps)
            with NanGradients(1), pytest.MonkeyPatch.context() as patch:
                # The rate depends on the number of steps, which must not differ here.
                patch.setattr(fit, "learning_rate_at", lambda *_, **__: 1e-2)
                train_process(run)
            (run.work / OWNER).unlink()
            shutil.rmtree(run.folder / "model")
        losses[name] = [line["loss"] for line in log_of(run)]
    assert losses["resumed"] == pytest.approx(losses["unbroken"], rel=1e-5)


def test_gradients_that_stay_nan_end_the_run(small: Path, tmp_path: Path) -> None:
    run = new_run(small, tmp_path / "run", num_steps=30, num_epochs=9.0)
    with NanGradients(*range(3, 31)):
        train_process(run)
    ending = ending_of(run)
    assert ending.kind == "failed" and "8 steps in a row, to step 10, are NaN or infinite" in ending.reason
    assert not (run.folder / "model").exists()
    assert steps_with_checkpoint(run)[-1] == 9 and len(log_of(run)) == 9


def test_a_model_of_nan_is_never_written(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(small, tmp_path / "run", num_steps=2, save_every=9)
    step = fit._update

    def spoiled(engine: Any, temperatures: Any) -> Any:
        report = step(engine, temperatures)
        with torch.no_grad():
            next(p for p in engine.module.parameters() if p.requires_grad)[0] = float("inf")
        return report

    monkeypatch.setattr(fit, "_update", spoiled)
    monkeypatch.setattr(fit, "learning_rate_at", lambda *_, **__: 0.0)
    train_process(run)
    ending = ending_of(run)
    assert ending.kind == "failed" and ("NaN or infinite" in ending.reason or "the loss is" in ending.reason)
    assert not (run.folder / "model").exists() and not steps_with_checkpoint(run)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_step_with_nan_is_skipped_alike_on_every_stage(zero_stage: int, small: Path, tmp_path: Path) -> None:
    alone = new_run(small, tmp_path / "alone", num_steps=5)
    with NanGradients(1, 3):
        train_process(alone)
    run = new_run(small, tmp_path / "run", num_steps=5, zero_stage=zero_stage, keep_checkpoints=9)
    train_in_group(run, 1, 3)
    assert [line["is_skipped"] for line in log_of(run)] == [line["is_skipped"] for line in log_of(alone)]
    assert [line["loss"] for line in log_of(run)] == pytest.approx([line["loss"] for line in log_of(alone)], rel=1e-4)
    assert all(finite(run))
    for left_over in (run.folder / "model", *(run.folder / "checkpoints" / f"step-0000000{n}" for n in (4, 5))):
        shutil.rmtree(left_over)
    (run.work / "meet").unlink(missing_ok=True)
    train_in_group(run)
    assert [line["loss"] for line in log_of(run)] == pytest.approx([line["loss"] for line in log_of(alone)], rel=1e-4)


def test_a_base_with_nan_is_refused_when_it_is_loaded_by_the_tensor(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    name = next(key for key in weights if key.endswith("layers.1.self_attn.q_proj.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    said = r"language_model.layers.1.self_attn.q_proj.weight of the model at .*base.* is NaN or infinite"
    with pytest.raises(ValueError, match=said):
        Encoder.load(tmp_path / "base")
    run = new_run(tmp_path / "base", tmp_path / "run", num_steps=2)
    train_process(run)
    assert ending_of(run).kind == "refused" and "q_proj.weight of the model" in ending_of(run).reason


def test_a_second_stage_of_training_keeps_the_first(small: Path, tmp_path: Path) -> None:
    first = new_run(small, tmp_path / "first", num_steps=4)
    train_process(first)
    second = new_run(first.folder / "model", tmp_path / "second", num_steps=1, learning_rate=1e-9)
    train_process(second)
    contents = [Content("a cat 3"), Content("cat number 7")]
    base, one, two = (Encoder.load(f).embed(contents) for f in (small, first.folder / "model", second.folder / "model"))
    assert np.abs(two - one).max() < 1e-4 < 1e-3 < np.abs(one - base).max()


def test_the_log_is_cut_to_the_checkpoint_whatever_a_kill_has_left_of_it(small: Path, tmp_path: Path) -> None:
    run = new_run(small, tmp_path / "run", num_steps=4)
    train_process(run)
    shutil.rmtree(run.folder / "model")
    shutil.rmtree(run.folder / "checkpoints" / "step-00000004")
    text = (run.folder / LOG).read_bytes()
    (run.folder / LOG).write_bytes(text[:-40] + b"\n7\n\x00\x00\xff{}\n")
    train_process(run)
    assert [line["step"] for line in log_of(run)] == [1, 2, 3, 4] and (run.folder / "model").is_dir()


def test_a_rotten_checkpoint_is_passed_over_for_the_one_before_it(small: Path, tmp_path: Path) -> None:
    run = new_run(small, tmp_path / "run", num_steps=4)
    train_process(run)
    losses = [line["loss"] for line in log_of(run)]
    shutil.rmtree(run.folder / "model")
    rotten = run.folder / "checkpoints" / "step-00000004" / "state.safetensors"
    rotten.write_bytes(bytes(100) + rotten.read_bytes()[100:])
    train_process(run)
    summary = summary_of(run)
    assert summary["first_step"] == 3
    assert f"checkpoint {run.folder}/checkpoints/step-00000004 cannot be used" in summary["passed_over"][0]
    assert [line["loss"] for line in log_of(run)] == pytest.approx(losses) and (run.folder / "model").is_dir()
