"""Tests of checkpoints: whole or not there, the last ones kept, restored exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs
from torch import Tensor, nn

from mme5core.training.checkpoint import META, STATE, Checkpoints, PlainMoments, collect_state, restore_state
from tests.stores import below


def latest(checkpoints: Checkpoints) -> tuple[int, dict[str, torch.Tensor]] | None:
    """Step and state of the last complete checkpoint."""
    steps = checkpoints.steps()
    return (steps[-1], checkpoints.load(steps[-1])) if steps else None


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


def saved(checkpoints: Checkpoints, step: int, value: float) -> None:
    checkpoints.save(step, state(value))
    checkpoints.wait()


@pytest.fixture(params=["a folder", "an address", "a store that is not this disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "a folder":
        return {"place": tmp_path / "checkpoints"}
    if request.param == "an address":
        return {"place": f"file://{tmp_path}/checkpoints"}
    return {"place": "checkpoints", "filesystem": fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())}


def test_what_was_saved_is_loaded_with_its_step(tmp_path: Path, place: dict[str, Any]) -> None:
    saved(Checkpoints(**place, keep=1), 7, 1.5)
    loaded = latest(Checkpoints(**place, keep=1))
    assert names(tmp_path / "checkpoints") == ["step-00000007"]
    assert loaded is not None and loaded[0] == 7
    torch.testing.assert_close(loaded[1], state(1.5), rtol=0, atol=0)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_last_ones_by_step_are_kept(tmp_path: Path, keep: int, place: dict[str, Any]) -> None:
    checkpoints = Checkpoints(**place, keep=keep)
    for step in (2, 9, 10, 100):
        saved(checkpoints, step, step)
    kept = (2, 9, 10, 100)[-keep:]
    assert names(tmp_path / "checkpoints") == [f"step-{step:08d}" for step in kept]
    assert checkpoints.steps() == list(kept)


def test_a_step_saved_again_replaces_the_first(tmp_path: Path, place: dict[str, Any]) -> None:
    for value in (1.0, 2.0):
        saved(Checkpoints(**place, keep=2), 5, value)
    loaded = latest(Checkpoints(**place, keep=2))
    assert loaded is not None and loaded[1]["weight/b"].item() == 2.0
    assert names(tmp_path / "checkpoints") == ["step-00000005"]


@pytest.mark.parametrize("left", ["no meta", "half a meta", "half a state"])
def test_what_a_kill_left_half_written_is_ignored_and_written_over(
    left: str, tmp_path: Path, place: dict[str, Any]
) -> None:
    saved(Checkpoints(**place, keep=2), 5, 1.0)
    saved(Checkpoints(**place, keep=2), 8, 2.0)
    broken = tmp_path / "checkpoints" / "step-00000008"
    if left == "no meta":
        (broken / META).unlink()
    elif left == "half a meta":
        (broken / META).write_text((broken / META).read_text()[:-5])
    else:
        (broken / STATE).write_bytes((broken / STATE).read_bytes()[:-1])
    checkpoints = Checkpoints(**place, keep=2)
    loaded = latest(checkpoints)
    assert loaded is not None and loaded[0] == 5
    saved(checkpoints, 8, 3.0)
    loaded = latest(checkpoints)
    assert loaded is not None and loaded[0] == 8 and loaded[1]["weight/b"].item() == 3.0


@pytest.mark.parametrize("damage", ["in the header", "in a tensor", "in a tensor, of a version without a checksum"])
def test_one_that_is_rotten_at_its_old_size_is_passed_over_by_name_and_replaced(
    damage: str, tmp_path: Path, place: dict[str, Any]
) -> None:
    for step in (3, 5, 8):
        saved(Checkpoints(**place, keep=3), step, float(step))
    for step in (5, 8):
        file = tmp_path / "checkpoints" / f"step-{step:08d}" / STATE
        content = bytearray(file.read_bytes())
        content[: 9 if "header" in damage else 0] = bytes(9 if "header" in damage else 0)
        content[-1] ^= 1
        file.write_bytes(content)
        if damage.endswith("checksum"):
            meta = json.loads((file.parent / META).read_text())
            del meta["crc32"]
            (file.parent / META).write_text(json.dumps(meta))
    checkpoints = Checkpoints(**place, keep=1)
    newest = checkpoints.newest()
    if damage.endswith("checksum"):
        assert newest.step == 8 and not newest.passed_over  # a tensor's bits tell nothing
        return
    assert newest.step == 3 and newest.state["weight/b"].item() == 3.0
    assert ["step-00000008" in line for line in newest.passed_over] == [True, False]
    saved(checkpoints, 4, 4.0)
    assert names(tmp_path / "checkpoints") == ["step-00000004"]  # one rotten of a higher step does not count as newer
    assert Checkpoints(**place, keep=1).newest().step == 4


def test_where_all_are_rotten_there_is_none(tmp_path: Path) -> None:
    saved(Checkpoints(tmp_path, keep=1), 2, 1.0)
    (tmp_path / "step-00000002" / STATE).write_bytes(bytes((tmp_path / "step-00000002" / STATE).stat().st_size))
    newest = Checkpoints(tmp_path, keep=1).newest()
    assert newest.step == 0 and not newest.state and len(newest.passed_over) == 1
    assert Checkpoints(tmp_path / "none", keep=1).newest().step == 0


def test_where_there_is_none_there_is_none_to_load(tmp_path: Path) -> None:
    assert latest(Checkpoints(tmp_path, keep=1)) is None
    assert latest(Checkpoints(tmp_path / "gone", keep=1)) is None


def test_an_error_of_the_writer_comes_with_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    checkpoints = Checkpoints(tmp_path / "file", keep=1)
    checkpoints.save(1, state(1.0))
    with pytest.raises(OSError, match="file"):
        checkpoints.save(2, state(2.0))


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    saved(Checkpoints(tmp_path, keep=1, run="one"), 1, 1.0)
    with pytest.raises(ValueError, match="are of another run"):
        latest(Checkpoints(tmp_path, keep=1, run="two"))


def test_an_object_store_keeps_them_as_a_disk_does(bucket: str) -> None:
    place = below(bucket, "run")
    checkpoints = Checkpoints(place, keep=2)
    for step in (1, 2, 3):
        saved(checkpoints, step, float(step))
    files, path = fs.FileSystem.from_uri(place)
    files.delete_file(f"{path}/step-00000003/{META}")
    assert Checkpoints(place, keep=2).steps() == [2]
    saved(Checkpoints(place, keep=2), 3, 3.5)
    newest = latest(Checkpoints(place, keep=2))
    assert newest is not None and newest[0] == 3
    torch.testing.assert_close(newest[1], state(3.5), rtol=0, atol=0)


def test_a_writer_that_has_lost_its_right_changes_nothing_and_says_so(tmp_path: Path) -> None:
    allowed = [True] * 2 + [True, False]  # asked before a checkpoint is begun and before it counts

    def may_write() -> None:
        if not allowed.pop(0):
            raise RuntimeError("another run has taken over")

    checkpoints = Checkpoints(tmp_path, keep=1, may_write=may_write)
    saved(checkpoints, 1, 1.0)
    with pytest.raises(RuntimeError, match="another run has taken over"):
        saved(checkpoints, 2, 2.0)
    assert Checkpoints(tmp_path, keep=1).steps() == [1]


def test_an_address_that_cannot_be_opened_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpoints at nosuch://bucket/run"):
        Checkpoints("nosuch://bucket/run", keep=1)


def test_a_restored_run_goes_on_as_the_unbroken_one(tmp_path: Path) -> None:
    module, optimizer = trained(seed=0, num_steps=3)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, collect_state(module, PlainMoments(optimizer)))
    checkpoints.wait()
    other, other_optimizer = trained(seed=0, num_steps=3)
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
            other_optimizer.state[parameter]["exp_avg"].zero_()
            other_optimizer.state[parameter]["exp_avg_sq"].zero_()
    loaded = latest(checkpoints)
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
