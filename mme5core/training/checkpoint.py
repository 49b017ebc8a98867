"""Training state on disk: trainable weights and Adam's moments in full, whatever the number of processes."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from pyarrow import fs
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mme5core.errors import first_line

STATE, META = "state.safetensors", "meta.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoints:
    """Folders `step-N` below a folder on disk or in an object store (s3://, gs://, ...), the last `keep` of them.

    A checkpoint counts once its `meta.json` is there, which is written last and names the state's size: object
    stores know no rename, and a kill may come at any time.

    Args:
        place: a folder, or an address such as s3://bucket/run.
        run: whose checkpoints they are; those of another run are refused.
        filesystem: in which `place` is a path; None: the one of the address.
        may_write: called before anything is changed and before a checkpoint counts; raises where it must not.

    Raises:
        ValueError: an address that cannot be opened.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        keep: int,
        run: str = "",
        filesystem: fs.FileSystem | None = None,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        address = str(place) if "://" in str(place) or filesystem is not None else str(Path(place).resolve())
        self._files: fs.FileSystem
        self._root: str
        try:
            self._files, self._root = (filesystem, address) if filesystem else fs.FileSystem.from_uri(address)
        except (OSError, ValueError) as error:
            raise ValueError(f"checkpoints at {place}: {first_line(error)}") from None
        self._place, self._keep, self._run, self._may_write = str(place), keep, run, may_write
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None

    def save(self, step: int, state: dict[str, Tensor]) -> None:
        """Write the state beside what goes on, after the one before it; an error comes with the next call.

        The tensors must not be changed any more: `collect_state` gives copies.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, step, {n: t.cpu().contiguous() for n, t in state.items()})

    def wait(self) -> None:
        """Until all that was saved is written.

        Raises:
            OSError: it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        """Step and state of the last whole checkpoint, or None."""
        steps = self.steps()
        return (steps[-1], self.load(steps[-1])) if steps else None

    def load(self, step: int) -> dict[str, Tensor]:
        """The state of a whole checkpoint."""
        path = self._path(step, STATE)
        if self._is_local:
            return load_file(path)
        with tempfile.TemporaryDirectory() as folder:
            copy = str(Path(folder) / STATE)
            fs.copy_files(path, copy, source_filesystem=self._files, destination_filesystem=fs.LocalFileSystem())
            return load_file(copy)

    def steps(self) -> list[int]:
        """Of the whole checkpoints, in their order.

        Raises:
            ValueError: one is of another run.
        """
        found = self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        numbers = [re.fullmatch(r"step-(\d{8,})", info.base_name) for info in found]
        return sorted(step for step in (int(number[1]) for number in numbers if number) if self._is_whole(step))

    def _write(self, step: int, state: dict[str, Tensor]) -> None:
        self._may_write()
        self._drop(step)  # what a kill has left of it
        self._files.create_dir(f"{self._root}/{_name(step)}")
        path = self._path(step, STATE)
        if self._is_local:
            save_file(state, path)
            size = Path(path).stat().st_size
        else:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / STATE
                save_file(state, str(copy))
                size = copy.stat().st_size
                fs.copy_files(
                    str(copy), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self._files
                )
        self._may_write()
        with self._files.open_output_stream(self._path(step, META)) as stream:
            stream.write(json.dumps({"step": step, "bytes": size, "run": self._run}).encode())
        for old in self.steps()[: -self._keep]:
            self._drop(old)

    def _is_whole(self, step: int) -> bool:
        path = self._path(step, META)
        (info,) = self._files.get_file_info([path])
        if info.type != fs.FileType.File:
            return False
        # An error of the store is no answer: taken for "not whole", training would begin anew and write over it.
        with self._files.open_input_stream(path) as stream:
            try:
                meta: dict[str, Any] = json.loads(stream.read())
            except ValueError:
                return False
        if meta.get("run") != self._run:
            raise ValueError(f"checkpoints at {self._place} are of another run, of other settings, data or model")
        (info,) = self._files.get_file_info([self._path(step, STATE)])
        return bool(info.size == meta.get("bytes"))

    def _drop(self, step: int) -> None:
        folder = f"{self._root}/{_name(step)}"
        (info,) = self._files.get_file_info([folder])
        if info.type == fs.FileType.Directory:
            # First what makes it count: cut off in between, it must not look whole.
            (meta,) = self._files.get_file_info([self._path(step, META)])
            if meta.type == fs.FileType.File:
                self._files.delete_file(self._path(step, META))
            self._files.delete_dir(folder)

    @property
    def _is_local(self) -> bool:
        return isinstance(self._files, fs.LocalFileSystem)

    def _path(self, step: int, name: str) -> str:
        return f"{self._root}/{_name(step)}/{name}"


def _name(step: int) -> str:
    return f"step-{step:08d}"


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


def collect_state(module: nn.Module, moments: Moments, *, keep: bool = True) -> dict[str, Tensor]:
    """Weights and moments of every trainable parameter, by name, copied off the device one by one.

    Args:
        keep: False for a process that only takes part in the gathering.
    """
    state = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            for kind in ("weight", *MOMENTS):
                value = moments.get(parameter, kind)
                if keep:
                    state[f"{kind}/{name}"] = value.detach().to("cpu", copy=True)
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
