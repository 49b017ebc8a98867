"""Training state on disk: trainable weights and Adam's moments in full, whatever the number of processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STATE, META = "state.safetensors", "meta.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(folder: Path, step: int, state: dict[str, Tensor], *, keep: int) -> Path:
    """Write `step-N` below `folder` by rename, whole or not at all, and drop all but the last `keep`."""
    final = folder / f"step-{step:08d}"
    staged = folder / f".{final.name}"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, str(staged / STATE))
    (staged / META).write_text(json.dumps({"step": step}))
    shutil.rmtree(final, ignore_errors=True)
    staged.rename(final)
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_latest(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """Step and state of the last whole checkpoint below `folder`, or None."""
    for checkpoint in reversed(_checkpoints(folder)):
        meta: dict[str, Any] = json.loads((checkpoint / META).read_text())
        return int(meta["step"]), load_file(str(checkpoint / STATE))
    return None


def collect_state(module: nn.Module, moment_of: Any) -> dict[str, Tensor]:
    """Weights and moments of every trainable parameter, by name.

    Args:
        moment_of: (parameter, "exp_avg" or "exp_avg_sq" or "weight") to the full tensor. Under ZeRO this is a
            collective call, so that every process must collect.
    """
    state = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            for kind in ("weight", *MOMENTS):
                state[f"{kind}/{name}"] = moment_of(parameter, kind).detach().clone()
    return state


def restore_state(module: nn.Module, state: dict[str, Tensor], set_moment: Any) -> None:
    """Put a collected state back.

    Raises:
        ValueError: the state is of a model with other trainable weights.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    expected = {f"{kind}/{name}" for name in trainable for kind in ("weight", *MOMENTS)}
    if expected != set(state):
        odd = sorted(expected ^ set(state))[0]
        raise ValueError(f"the checkpoint is of another model: {odd} is on one side only")
    with torch.no_grad():
        for name, parameter in trainable.items():
            for kind in ("weight", *MOMENTS):
                set_moment(parameter, kind, state[f"{kind}/{name}"])


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / META).is_file())
