"""Which files an `input` means: a file, a folder, a glob, or a list of these."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path

from mme5core.model_folder import file_ends

SUFFIXES = (".tar", ".parquet", ".jsonl")
END_BYTES = 1 << 19


class InputError(ValueError):
    """An input that is not there or holds nothing to read; the message is one line for people."""


def find_shards(inputs: Sequence[str], *, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The files to read, sorted within each input, each once.

    In a folder, hidden files and those that start with "_" are passed over, and so is a Parquet that
    img2dataset wrote beside a tar: the tar's reader reads it.

    Raises:
        InputError: naming the input for which there is no file.
    """
    found: dict[Path, Path] = {}
    for text in inputs:
        matches = [Path(match) for match in sorted(glob.glob(text))] or [Path(text)]
        files: list[Path] = []
        for path in matches:
            if path.is_dir():
                files += [file for file in sorted(path.iterdir()) if _is_data(file, suffixes)]
            elif not path.exists():
                raise InputError(f"input {text!r}: no such file or folder")
            elif path.suffix in suffixes or len(matches) == 1:
                files.append(path)
        files = [file for file in files if not _is_beside_a_tar(file)] if ".tar" in suffixes else files
        if not files:
            raise InputError(f"input {text!r}: holds no {', '.join(suffixes)} file")
        for file in files:
            if file.suffix not in suffixes:
                raise InputError(f"input {str(file)!r}: not a {', '.join(suffixes)} file")
            # By its target each once; by its own name, as a link of the hub's cache points at a blob without suffix.
            found.setdefault(file.resolve(), file.absolute())
    if not found:
        raise InputError("no input given")
    return list(found.values())


def input_identity(shards: Sequence[Path]) -> str:
    """16 hex digits over the names, sizes and ends of the files; their folder may move.

    Of a file above 1 MB only both ends are read: a corpus must not be read once more to be named.
    """
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.name}:{shard.stat().st_size}\n".encode())
        digest.update(file_ends(shard, END_BYTES))
    return digest.hexdigest()[:16]


def _is_data(file: Path, suffixes: Sequence[str]) -> bool:
    return file.suffix in suffixes and file.is_file() and not file.name.startswith(("_", "."))


def _is_beside_a_tar(file: Path) -> bool:
    return file.suffix == ".parquet" and file.with_suffix(".tar").is_file()
