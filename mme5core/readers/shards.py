"""The files of an `input`: a file, a folder, a glob, an address in an object store, or a list of these."""

from __future__ import annotations

import glob
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mme5core.errors import InputError, first_line
from mme5core.images import IMAGE_SUFFIXES
from mme5core.storage import Address, AnyPath, entries, locate, num_bytes

SUFFIXES = (".tar", ".parquet", ".jsonl")
END_BYTES = 1 << 19
_BEIR = {"query": "queries.jsonl", "target": "corpus.jsonl"}


def find_shards(
    inputs: Sequence[str],
    *,
    suffixes: Sequence[str] = SUFFIXES,
    pictures: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> list[AnyPath]:
    """The files to read, sorted within each input, without repetition.

    A folder stands for the files in it and its subfolders, except those whose names start with "." or "_", and
    Parquet files that img2dataset wrote beside a tar, which are read with the tar.

    Args:
        pictures: accept a folder of pictures without such files, at any depth, as one shard.
        note: called with one line about the other files of a folder, which are not read.

    Raises:
        InputError: an input has no files; the message names it.
    """
    shards: dict[AnyPath, AnyPath] = {}
    for text in inputs:
        try:
            files = _files(text, suffixes, pictures, note)
        except OSError as error:
            raise InputError(f"input {text!r}: {first_line(error)}") from None
        if not files:
            also = " and no picture" if pictures else ""
            raise InputError(f"input {text!r}: holds no {', '.join(suffixes)} file{also}")
        for file in files:
            # Compared by the targets of links, but returned by name: the hub's cache links to blobs without suffix.
            shards.setdefault(file.resolve(), file.absolute())
    if not shards:
        raise InputError("no input given")
    return list(shards.values())


def of_one_side(shards: Sequence[AnyPath], side: str) -> list[AnyPath]:
    """The shards without BEIR's file of the other side; side "both" keeps both files and prints a line about it."""
    names: dict[str, set[str]] = {}
    for shard in shards:
        names.setdefault(str(shard.parent), set()).add(shard.name)
    pairs = {folder for folder, in_folder in names.items() if in_folder >= set(_BEIR.values())}
    if pairs and side == "both":
        print(
            f"{min(pairs)}: corpus.jsonl and queries.jsonl are read as one corpus; side=target or side=query takes one",
            file=sys.stderr,
        )
    unwanted = set(_BEIR.values()) - {_BEIR.get(side)} if side != "both" else set()
    return [shard for shard in shards if str(shard.parent) not in pairs or shard.name not in unwanted]


def labels(shards: Sequence[AnyPath]) -> list[str]:
    """A label for each shard that is unique among them: empty if its name is, else the end of its path.

    >>> labels([Path("a/x.jsonl"), Path("b/x.jsonl"), Path("b/y.jsonl")])
    ['a/x.jsonl', 'b/x.jsonl', '']
    """
    parts = [str(shard).split("?")[0].rstrip("/").split("/") for shard in shards]
    by_name: dict[str, list[list[str]]] = {}
    for own in parts:
        by_name.setdefault(own[-1], []).append(own)
    unique = []
    for own in parts:
        twins = by_name[own[-1]]
        length = 1
        while len(twins) > 1 and sum(other[-length:] == own[-length:] for other in twins) > 1 and length < len(own):
            length += 1
        unique.append("" if len(twins) == 1 else "/".join(own[-length:]))
    # Ids of pictures are paths below their folder: with several folders, the folder's name must precede them.
    folders = [shard.is_dir() for shard in shards]
    if sum(folders) > 1:
        unique = [
            label or (shard.name if folder else "")
            for label, shard, folder in zip(unique, shards, folders, strict=True)
        ]
    return unique


def input_files(shards: Sequence[AnyPath]) -> dict[str, str]:
    """16 hex digits for each file's label or name, hashed from its name, size and content; its folder may move.

    Of a file above 1 MB only both ends are hashed, to avoid reading the whole corpus; of a folder of pictures, names
    and sizes.
    """
    names = [label or shard.name for label, shard in zip(labels(shards), shards, strict=True)]
    with ThreadPoolExecutor(16) as threads:  # a request to an object store is slow
        digests = threads.map(lambda shard: hashlib.sha256(_identity_of(shard)).hexdigest()[:16], shards)
        return dict(zip(names, digests, strict=True))


def input_identity(files: Mapping[str, str]) -> str:
    """16 hex digits, hashed from the digests of `input_files` in their order."""
    return hashlib.sha256("".join(files.values()).encode()).hexdigest()[:16]


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
    """(path below the folder, file) of every picture in a folder and its subfolders, in the order of their names."""
    for entry in entries(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from ((f"{entry.name}/{name}", file) for name, file in pictures_in(entry))
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            yield entry.name, entry


def _files(text: str, suffixes: Sequence[str], pictures: bool, note: Callable[[str], None]) -> list[AnyPath]:
    path = locate(text)
    matches: list[AnyPath] = []
    if isinstance(path, Address):
        matches += path.matches()
    else:
        matches += [Path(match) for match in sorted(glob.glob(str(path)))] or [path]
    files: list[AnyPath] = []
    for match in matches:
        if match.is_dir():
            data, others = _data_in(match, suffixes)
            if not data and pictures and next(pictures_in(match), None):
                files.append(match)
                continue
            files += data
            if data and others:
                note(
                    f"input {text!r}: {len(others):,} other files are not read: {', '.join(others[:3])}"
                    + (", ..." if len(others) > 3 else "")
                )
        elif not match.exists():
            raise InputError(f"input {text!r}: no such file or folder")
        elif match.suffix.lower() in suffixes:
            files += [] if ".tar" in suffixes and _is_beside_a_tar(match) else [match]
        elif len(matches) == 1:
            raise InputError(f"input {str(match)!r}: not a {', '.join(suffixes)} file")
    return files


def _data_in(folder: AnyPath, suffixes: Sequence[str]) -> tuple[list[AnyPath], list[str]]:
    """The files to read in a folder and its subfolders, and the names of the others."""
    data: list[AnyPath] = []
    others: list[str] = []
    here = [entry for entry in entries(folder) if not entry.name.startswith((".", "_"))]
    tars = {entry.name for entry in here if entry.suffix == ".tar"} if ".tar" in suffixes else set()
    for entry in here:
        if entry.is_dir():
            below, more = _data_in(entry, suffixes)
            data += below
            others += [f"{entry.name}/{name}" for name in more]
        elif entry.suffix.lower() not in suffixes:
            others += [] if entry.name.endswith("_stats.json") else [entry.name]  # img2dataset's
        elif entry.suffix != ".parquet" or entry.with_suffix(".tar").name not in tars:
            data.append(entry)
    return data, others


def _is_beside_a_tar(file: AnyPath) -> bool:
    return file.suffix == ".parquet" and file.with_suffix(".tar").is_file()
