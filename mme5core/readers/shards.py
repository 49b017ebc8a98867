"""Which files an `input` means: a file, a folder, a glob, an address in an object store, or a list of these."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mme5core.images import IMAGE_SUFFIXES
from mme5core.storage import Address, AnyPath, entries, locate, num_bytes

SUFFIXES = (".tar", ".parquet", ".jsonl")
END_BYTES = 1 << 19


class InputError(ValueError):
    """An input that is not there or holds nothing to read; the message is one line for people."""


def find_shards(inputs: Sequence[str], *, suffixes: Sequence[str] = SUFFIXES, pictures: bool = False) -> list[AnyPath]:
    """The files to read, sorted within each input, each once.

    In a folder, hidden files and those that start with "_" are passed over, and so is a Parquet that
    img2dataset wrote beside a tar: the tar's reader reads it.

    Args:
        pictures: a folder without such files may be one of pictures, at any depth, and is one shard.

    Raises:
        InputError: naming the input for which there is no file.
    """
    found: dict[AnyPath, AnyPath] = {}
    for text in inputs:
        try:
            files = _files(text, suffixes, pictures)
        except OSError as error:
            raise InputError(f"input {text!r}: {str(error).splitlines()[0]}") from None
        if not files:
            also = " and no picture" if pictures else ""
            raise InputError(f"input {text!r}: holds no {', '.join(suffixes)} file{also}")
        for file in files:
            # By its target each once; by its own name, as a link of the hub's cache points at a blob without suffix.
            found.setdefault(file.resolve(), file.absolute())
    if not found:
        raise InputError("no input given")
    return list(found.values())


def input_identity(shards: Sequence[AnyPath]) -> str:
    """16 hex digits over the names, sizes and ends of the files; their folder may move.

    Of a file above 1 MB only both ends are read: a corpus must not be read once more to be named. Of a folder of
    pictures names and sizes count.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(16) as threads:  # a store takes its time for each
        for part in threads.map(_identity_of, shards):
            digest.update(part)
    return digest.hexdigest()[:16]


def _identity_of(shard: AnyPath) -> bytes:
    if shard.is_dir():
        return "".join(f"{name}:{num_bytes(file)}\n" for name, file in pictures_in(shard)).encode()
    size = num_bytes(shard)
    head = f"{shard.name}:{size}\n".encode()
    with shard.open("rb") as stream:
        if size <= 2 * END_BYTES:
            return head + stream.read()
        head += str(size).encode() + stream.read(END_BYTES)
        stream.seek(size - END_BYTES)
        return head + stream.read()


def shard_bytes(shard: AnyPath) -> int:
    """Size of a file, or of all pictures of a folder."""
    return sum(num_bytes(file) for _, file in pictures_in(shard)) if shard.is_dir() else num_bytes(shard)


def pictures_in(folder: AnyPath) -> Iterator[tuple[str, AnyPath]]:
    """The picture files of a folder and of those below it, with their paths relative to it, in the order of these."""
    for entry in entries(folder):
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir():
            yield from ((f"{entry.name}/{name}", file) for name, file in pictures_in(entry))
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            yield entry.name, entry


def _files(text: str, suffixes: Sequence[str], pictures: bool) -> list[AnyPath]:
    path = locate(text)
    matches: list[AnyPath] = []
    if isinstance(path, Address):
        matches += path.matches()
    else:
        matches += [Path(match) for match in sorted(glob.glob(str(path)))] or [path]
    files: list[AnyPath] = []
    for match in matches:
        if match.is_dir():
            data = _without_sidecars([file for file in entries(match) if _is_data(file, suffixes)], suffixes)
            files += data or ([match] if pictures and next(pictures_in(match), None) else [])
        elif not match.exists():
            raise InputError(f"input {text!r}: no such file or folder")
        elif match.suffix in suffixes:
            files += [] if ".tar" in suffixes and _is_beside_a_tar(match) else [match]
        elif len(matches) == 1:
            raise InputError(f"input {str(match)!r}: not a {', '.join(suffixes)} file")
    return files


def _is_data(file: AnyPath, suffixes: Sequence[str]) -> bool:
    return file.suffix in suffixes and file.is_file() and not file.name.startswith(("_", "."))


def _without_sidecars(files: list[AnyPath], suffixes: Sequence[str]) -> list[AnyPath]:
    tars = {file.name for file in files if file.suffix == ".tar"} if ".tar" in suffixes else set()
    return [file for file in files if file.suffix != ".parquet" or file.with_suffix(".tar").name not in tars]


def _is_beside_a_tar(file: AnyPath) -> bool:
    return file.suffix == ".parquet" and file.with_suffix(".tar").is_file()
