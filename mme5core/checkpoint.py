"""Training state on disk: trainable weights and Adam's moments in full, whatever the number of processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

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


class Moments(Protocol):
    """Where an engine keeps a parameter's float32 weight and Adam moments, whole or in shards.

    `kind` is "weight", "exp_avg" or "exp_avg_sq". Under ZeRO these are collective calls: every process must make
    the same ones.
    """

    def create(self, num_updates: int) -> None:
        """Make moments before the first update, so that stored ones can be put in their place.

        Args:
            num_updates: how many updates came before; Adam's bias correction depends on it.
        """
        ...

    def get(self, parameter: nn.Parameter, kind: str) -> Tensor: ...
    def put(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None: ...


class PlainMoments:
    """Those of one of torch's Adam optimizers."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def create(self, num_updates: int) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                moments = {name: torch.zeros_like(parameter) for name in MOMENTS}
                self._optimizer.state[parameter] = {"step": torch.tensor(float(num_updates))} | moments

    def get(self, parameter: nn.Parameter, kind: str) -> Tensor:
        value: Tensor = parameter if kind == "weight" else self._optimizer.state[parameter][kind]
        return value

    def put(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        self.get(parameter, kind).copy_(value)


def collect_state(module: nn.Module, moments: Moments) -> dict[str, Tensor]:
    """Weights and moments of every trainable parameter, by name."""
    state = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            for kind in ("weight", *MOMENTS):
                state[f"{kind}/{name}"] = moments.get(parameter, kind).detach().clone()
    return state


def restore_state(module: nn.Module, state: dict[str, Tensor], moments: Moments) -> None:
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
                moments.put(parameter, kind, state[f"{kind}/{name}"])


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / META).is_file())
