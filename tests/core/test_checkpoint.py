"""Tests of checkpoints: whole or not there, the last ones kept, restored exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mme5core.checkpoint import STATE, PlainMoments, collect_state, load_latest, restore_state, save_checkpoint


def state(value: float) -> dict[str, Tensor]:
    return {"weight/a": torch.full((2, 3), value).T, "weight/b": torch.tensor([value], dtype=torch.bfloat16)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def trained(seed: int, num_steps: int) -> tuple[nn.Module, torch.optim.Adam]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    module[0].bias.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for step in range(num_steps):
        train_step(module, optimizer, step)
    return module, optimizer


def train_step(module: nn.Module, optimizer: torch.optim.Adam, step: int) -> None:
    optimizer.zero_grad()
    module(torch.tensor([[1.0, float(step), -1.0]])).square().sum().backward()
    optimizer.step()


def test_what_was_saved_is_loaded_with_its_step(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "checkpoints", 7, state(1.5), keep=1)
    loaded = load_latest(tmp_path / "checkpoints")
    assert loaded is not None
    assert (path.name, loaded[0]) == ("step-00000007", 7)
    torch.testing.assert_close(loaded[1], state(1.5), rtol=0, atol=0)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_last_ones_by_step_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (2, 9, 10, 100):
        save_checkpoint(tmp_path, step, state(step), keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (2, 9, 10, 100)[-keep:]]


def test_the_latest_is_that_of_the_largest_step(tmp_path: Path) -> None:
    for step in (100, 99):
        save_checkpoint(tmp_path, step, state(step), keep=3)
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded[0] == 100


def test_a_step_saved_again_replaces_the_first(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, 5, state(value), keep=2)
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded[1]["weight/b"].item() == 2.0
    assert names(tmp_path) == ["step-00000005"]


def test_a_half_written_checkpoint_is_ignored_and_written_over(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, state(1.0), keep=2)
    for name in (".step-00000006", "step-00000008"):
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE).write_bytes(b"half")
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded[0] == 5
    save_checkpoint(tmp_path, 6, state(2.0), keep=2)
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded[0] == 6
    torch.testing.assert_close(loaded[1], state(2.0), rtol=0, atol=0)
    assert ".step-00000006" not in names(tmp_path)


def test_where_there_is_none_there_is_none_to_load(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "gone") is None


def test_a_restored_run_goes_on_as_the_unbroken_one(tmp_path: Path) -> None:
    module, optimizer = trained(seed=0, num_steps=3)
    save_checkpoint(tmp_path, 3, collect_state(module, PlainMoments(optimizer)), keep=1)
    other, other_optimizer = trained(seed=0, num_steps=3)
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
            other_optimizer.state[parameter]["exp_avg"].zero_()
            other_optimizer.state[parameter]["exp_avg_sq"].zero_()
    loaded = load_latest(tmp_path)
    assert loaded is not None
    restore_state(other, loaded[1], PlainMoments(other_optimizer))
    train_step(module, optimizer, 3)
    train_step(other, other_optimizer, 3)
    torch.testing.assert_close(other.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_only_trainable_weights_are_collected_as_copies() -> None:
    module, optimizer = trained(seed=0, num_steps=1)
    found = collect_state(module, PlainMoments(optimizer))
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    assert set(found) == {f"{kind}/{name}" for kind in kinds for name in ("0.weight", "1.weight", "1.bias")}
    before = found["weight/1.bias"].clone()
    train_step(module, optimizer, 1)
    assert torch.equal(found["weight/1.bias"], before)


@pytest.mark.parametrize("change", ["weight/0.bias", "exp_avg/1.bias"])
def test_a_state_of_another_model_is_refused_by_the_odd_name(change: str) -> None:
    module, optimizer = trained(seed=0, num_steps=1)
    values = collect_state(module, PlainMoments(optimizer))
    if values.pop(change, None) is None:
        values[change] = torch.zeros(2)
    with pytest.raises(ValueError, match=f"another model: {change}"):
        restore_state(module, values, PlainMoments(optimizer))
