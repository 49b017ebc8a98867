"""Training state on disk: whole trainable weights and Adam moments, whatever the number of processes."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mme5core.errors import first_line

STATE, META = "state.safetensors", "meta.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest checkpoint that is whole: its step, 0 for none, and its state.

    Args:
        passed_over: what is wrong with newer ones, one line each.
    """

    step: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)


class Checkpoints:
    """Folders `step-N` below a folder on disk or in an object store (s3://, gs://, ...), of which the last `keep` stay.

    A checkpoint is complete once its `meta.json` exists, which is written last and states the size of the state and its
    CRC-32: object stores have no rename, and the process may be killed at any time.

    Args:
        place: a folder, or an address such as s3://bucket/run.
        run: an identity of the run; checkpoints of another run are refused.
        filesystem: the file system in which `place` is a path; None: that of the address.
        may_write: called before anything is changed and before a checkpoint is completed; raises to prevent it.

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
        self._rotten: set[int] = set()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None

    def save(self, step: int, state: dict[str, Tensor]) -> None:
        """Start writing the state in a thread, once the previous one is written; the next call raises its errors.

        The tensors must not change meanwhile: `collect_state` returns copies.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, step, {n: t.cpu().contiguous() for n, t in state.items()})

    def wait(self) -> None:
        """Wait until the last saved state is written.

        Raises:
            OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load(self, step: int) -> dict[str, Tensor]:
        """The state of a complete checkpoint.

        Raises:
            ValueError: it is not what was written, though of its size.
            OSError: the store cannot be read.
        """
        path = self._path(step, STATE)
        if self._is_local:
            return self._checked(Path(path), step)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / STATE
            fs.copy_files(path, str(copy), source_filesystem=self._files, destination_filesystem=fs.LocalFileSystem())
            return self._checked(copy, step)

    def newest(self) -> Newest:
        """The newest checkpoint whose state can be read; those that are newer and rotten are passed over.

        Raises:
            ValueError: one is of another run.
            OSError: the store cannot be read.
        """
        problems: list[str] = []
        for step in self.steps()[::-1]:
            try:
                return Newest(step, self.load(step), problems)
            except ValueError as error:
                self._rotten.add(step)
                problems.append(str(error))
        return Newest(passed_over=problems)

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending.

        Raises:
            ValueError: one is of another run.
        """
        folders = self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        numbers = [re.fullmatch(r"step-(\d{8,})", info.base_name) for info in folders]
        return sorted(step for step in (int(number[1]) for number in numbers if number) if self._is_complete(step))

    def _write(self, step: int, state: dict[str, Tensor]) -> None:
        try:
            self._write_whole(step, state)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                self._drop(step)  # a full disk has use for its place
            raise

    def _write_whole(self, step: int, state: dict[str, Tensor]) -> None:
        self._may_write()
        self._drop(step)  # remains of a killed write
        self._files.create_dir(f"{self._root}/{_name(step)}")
        path = self._path(step, STATE)
        if self._is_local:
            save_file(state, path)
            size, crc = Path(path).stat().st_size, _crc32(Path(path))
        else:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / STATE
                save_file(state, str(copy))
                size, crc = copy.stat().st_size, _crc32(copy)
                fs.copy_files(
                    str(copy), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self._files
                )
        self._may_write()
        with self._files.open_output_stream(self._path(step, META)) as stream:
            stream.write(json.dumps({"step": step, "bytes": size, "crc32": crc, "run": self._run}).encode())
        self._rotten.discard(step)
        whole = [other for other in self.steps() if other not in self._rotten]
        for old in (*whole[: -self._keep], *self._rotten):
            self._drop(old)
        self._rotten.clear()

    def _checked(self, file: Path, step: int) -> dict[str, Tensor]:
        """The state in `file`, a checkpoint's or a copy of it."""
        place = f"checkpoint {self._place}/{_name(step)}"
        expected = self._meta(step).get("crc32")  # earlier versions stored none
        if expected is not None and _crc32(file) != expected:
            raise ValueError(f"{place} cannot be used: its {STATE} is not what was written")
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{place} cannot be used: {STATE} is damaged ({first_line(error)})") from None

    def _meta(self, step: int) -> dict[str, Any]:
        """What `meta.json` says; empty where it is missing or half written."""
        path = self._path(step, META)
        (info,) = self._files.get_file_info([path])
        if info.type != fs.FileType.File:
            return {}
        # Errors of the store are raised: if they counted as "incomplete", training would start again and overwrite it.
        with self._files.open_input_stream(path) as stream:
            try:
                meta: dict[str, Any] = json.loads(stream.read())
            except ValueError:
                return {}
        return meta

    def _is_complete(self, step: int) -> bool:
        meta = self._meta(step)
        if not meta:
            return False
        if meta.get("run") != self._run:
            raise ValueError(f"checkpoints at {self._place} are of another run, with other settings, data or model")
        (info,) = self._files.get_file_info([self._path(step, STATE)])
        return bool(info.size == meta.get("bytes"))

    def _drop(self, step: int) -> None:
        folder = f"{self._root}/{_name(step)}"
        (info,) = self._files.get_file_info([folder])
        if info.type == fs.FileType.Directory:
            # `meta.json` goes first: if the process is killed in between, the rest must not look complete.
            (meta,) = self._files.get_file_info([self._path(step, META)])
            if meta.type == fs.FileType.File:
                self._files.delete_file(self._path(step, META))
            self._files.delete_dir(folder)

    @property
    def place(self) -> str:
        """Where they are, as it was given."""
        return self._place

    @property
    def _is_local(self) -> bool:
        return isinstance(self._files, fs.LocalFileSystem)

    def _path(self, step: int, name: str) -> str:
        return f"{self._root}/{_name(step)}/{name}"


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _crc32(file: Path) -> int:
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


class Moments(Protocol):
    """Access to a parameter's float32 weight and Adam moments in an engine, whole or sharded.

    `kind` is "weight", "exp_avg" or "exp_avg_sq". Under ZeRO these are collective calls: every process must make
    the same ones.
    """

    def create(self, num_updates: int) -> None:
        """Create the moments before the first update, so that stored ones can be copied into them.

        Args:
            num_updates: number of earlier updates; Adam's bias correction depends on it.
        """
        ...

    def get(self, parameter: nn.Parameter, kind: str) -> Tensor: ...
    def put(self, parameter: nn.Parameter, kind: str, tensor: Tensor) -> None: ...


class PlainMoments:
    """Weights and moments of one of torch's Adam optimizers."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def create(self, num_updates: int) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                moments = {name: torch.zeros_like(parameter) for name in MOMENTS}
                self._optimizer.state[parameter] = {"step": torch.tensor(float(num_updates))} | moments

    def get(self, parameter: nn.Parameter, kind: str) -> Tensor:
        tensor: Tensor = parameter if kind == "weight" else self._optimizer.state[parameter][kind]
        return tensor

    def put(self, parameter: nn.Parameter, kind: str, tensor: Tensor) -> None:
        self.get(parameter, kind).copy_(tensor)


def collect_state(module: nn.Module, moments: Moments, *, keep: bool = True) -> dict[str, Tensor]:
    """Weights and moments of every trainable parameter by name, copied to host memory one by one.

    Args:
        keep: False on a process that only takes part in the collective calls.
    """
    state = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            for kind in ("weight", *MOMENTS):
                tensor = moments.get(parameter, kind)
                if keep:
                    state[f"{kind}/{name}"] = tensor.detach().to("cpu", copy=True)
    return state


def restore_state(module: nn.Module, state: dict[str, Tensor], moments: Moments) -> None:
    """Copy a state from `collect_state` into the parameters and the optimizer.

    Raises:
        ValueError: the state is that of a model with other trainable weights.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    expected = {f"{kind}/{name}" for name in trainable for kind in ("weight", *MOMENTS)}
    if expected != set(state):
        odd = sorted(expected ^ set(state))[0]
        raise ValueError(f"the checkpoint is of another model: {odd} is in only one of the two")
    with torch.no_grad():
        for name, parameter in trainable.items():
            for kind in ("weight", *MOMENTS):
                moments.put(parameter, kind, state[f"{kind}/{name}"])
