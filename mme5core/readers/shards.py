"""The files of an `input`: a file, a folder, a glob, an address in an object store, or a list of these."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from mme5core.errors import InputError, first_line
from mme5core.picture_formats import IMAGE_SUFFIXES
from mme5core.readers.texts import writable
from mme5core.storage import Address, AnyPath, entries, locate, num_bytes

SUFFIXES = (".tar", ".parquet", ".jsonl")
END_BYTES = 1 << 19
_OF_JOBS = ("_quarantine", "_work")
_BEIR = {"query": "queries.jsonl", "target": "corpus.jsonl"}


def find_shards(
    inputs: Sequence[str],
    *,
    suffixes: Sequence[str] = SUFFIXES,
    pictures: bool = False,
    note: Callable[[str], None] = lambda line: None,
    without: str | None = None,
) -> list[AnyPath]:
    """The files to read, sorted within each input, without repetition.

    A folder stands for the files in it and its subfolders, except those whose names start with "." or "_" (`note`
    names them), and Parquet files that img2dataset wrote beside a tar, which are read with the tar.

    Args:
        pictures: accept a folder of pictures without such files, at any depth, as one shard.
        note: called with one line about the other files of a folder, which are not read, and folders that are hidden.
        without: a folder to leave out: the job's output may lie below its input.

    Raises:
        InputError: an input has no files; the message names it.
    """
    shards: dict[AnyPath, AnyPath] = {}
    for text in inputs:
        try:
            files = _files(text, suffixes, pictures, note, os.path.realpath(without) if without else None)
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


def labels(shards: Sequence[AnyPath], inputs: Sequence[str] = ()) -> list[str]:
    """The place of each shard below its input, which its rows have in their ids: of a folder of pictures that is an
    input itself, empty.

    Shards of several inputs that have the same place are told apart by the ends of their inputs' paths.

    >>> labels([Path("/a/x.jsonl"), Path("/a/b/x.jsonl"), Path("/c/x.jsonl")], ["/a/*", "/c/*"])
    ['a/x.jsonl', 'b/x.jsonl', 'c/x.jsonl']
    >>> labels([Path("/laion/part0/00000.tar"), Path("/laion/part1/00000.tar")], ["/laion/part*"])
    ['part0/00000.tar', 'part1/00000.tar']

    Args:
        inputs: as the user has typed them; none: the shards' own folders.
    """
    roots = [_parts(root) for root in map(_root, inputs)]
    own = [_parts(shard) for shard in shards]
    ends = [_place(parts, roots) for parts in own]
    while groups := _same(own, ends):
        # One folder more of each: until no two are the same, or there are no more folders.
        for number in groups:
            ends[number] = min(len(own[number]), ends[number] + 1)
    return [writable("/".join(parts[len(parts) - length :])) for parts, length in zip(own, ends, strict=True)]


def _same(paths: Sequence[tuple[str, ...]], ends: Sequence[int]) -> list[int]:
    """The paths of which another has the same end, unless they are the same altogether."""
    by_end: dict[tuple[str, ...], list[int]] = {}
    for number, (parts, length) in enumerate(zip(paths, ends, strict=True)):
        by_end.setdefault(parts[len(parts) - length :], []).append(number)
    groups = (numbers for numbers in by_end.values() if len({paths[number] for number in numbers}) > 1)
    return [number for numbers in groups for number in numbers if ends[number] < len(paths[number])]


def _parts(path: AnyPath) -> tuple[str, ...]:
    text = path.path if isinstance(path, Address) else str(path.absolute())
    return tuple(part for part in text.split("/") if part)


def _place(parts: tuple[str, ...], roots: Sequence[tuple[str, ...]]) -> int:
    """How many of the last parts lie below the first root that a path is below."""
    root = next((root for root in roots if parts[: len(root)] == root), parts[:-1])
    return len(parts) - len(root)


def _root(text: str) -> AnyPath:
    """The folder that an input's files lie below: itself, or of a pattern or file the folder before it."""
    path = locate(text)
    if isinstance(path, Address):
        return path.parent if set("*[") & set(path.name) or path.suffix.lower() in SUFFIXES else path
    if path.is_dir():
        return path.absolute()
    parts = path.absolute().parts
    first = next((n for n, part in enumerate(parts) if set("*?[") & set(part)), len(parts) - 1)
    return Path(*parts[: min(first, len(parts) - 1)])


def input_files(shards: Sequence[AnyPath], inputs: Sequence[str] = ()) -> dict[str, str]:
    """16 hex digits for each file's label or name, hashed from its name, size and content; its folder may move.

    Of a file above 1 MB only both ends are hashed, to avoid reading the whole corpus; of a folder of pictures, names
    and sizes.
    """
    names = [label or writable(shard.name) for label, shard in zip(labels(shards, inputs), shards, strict=True)]
    with ThreadPoolExecutor(16) as threads:  # a request to an object store is slow
        digests = threads.map(lambda shard: hashlib.sha256(_identity_of(shard)).hexdigest()[:16], shards)
        return dict(zip(names, digests, strict=True))


def input_identity(files: Mapping[str, str]) -> str:
    """16 hex digits, hashed from the digests of `input_files` in their order."""
    return hashlib.sha256("".join(files.values()).encode()).hexdigest()[:16]


def _identity_of(shard: AnyPath) -> bytes:
    if shard.is_dir():
        names = "".join(f"{name}:{num_bytes(file)}\n" for name, file in pictures_in(shard))
        return names.encode("utf-8", "surrogateescape")  # a name may be no UTF-8
    size = num_bytes(shard)
    head = f"{shard.name}:{size}\n".encode("utf-8", "surrogateescape")
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
    for name, file in files_below(folder, hidden=(".",)):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            yield name, file


def files_below(
    folder: AnyPath,
    *,
    hidden: tuple[str, ...],
    without: str | None = None,
    on_hidden: Callable[[str], None] = lambda name: None,
) -> Iterator[tuple[str, AnyPath]]:
    """(path below the folder, file) of every regular file and link to one, in the order of their names.

    A link to a folder that lies below `folder` itself, or that contains it, is passed over: its files come by their own
    path, or not at all. Another one is followed once.

    Args:
        hidden: files and folders whose names begin so are left out.
        without: a folder that is left out.
        on_hidden: called with the path of each file and folder that is left out for its name.
    """
    top = os.path.realpath(folder) if isinstance(folder, Path) else ""
    followed: set[str] = set()

    def walk(here: AnyPath, before: str) -> Iterator[tuple[str, AnyPath]]:
        for entry in entries(here):
            if entry.name.startswith(hidden):
                on_hidden(f"{before}{entry.name}" + "/" * entry.is_dir())
                continue
            if entry.is_dir():
                if without is not None and os.path.realpath(str(entry)) == without:
                    continue
                if isinstance(entry, Path) and entry.is_symlink():
                    real = os.path.realpath(entry)
                    if _is_near(real, top) or real in followed:
                        continue
                    followed.add(real)
                yield from walk(entry, f"{before}{entry.name}/")
            elif entry.is_file():  # no pipe, no device, no link to nowhere
                yield f"{before}{entry.name}", entry

    yield from walk(folder, "")


def _is_near(folder: str, top: str) -> bool:
    """Whether a folder lies below another or contains it."""
    return f"{folder}/".startswith(f"{top}/") or f"{top}/".startswith(f"{folder}/")


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _files(
    text: str, suffixes: Sequence[str], pictures: bool, note: Callable[[str], None], without: str | None
) -> list[AnyPath]:
    path = locate(text)
    matches: list[AnyPath] = []
    if isinstance(path, Address):
        matches += path.matches()
    else:
        matches += [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path)))] or [path]
    files: list[AnyPath] = []
    passed_over: list[str] = []
    for match in matches:
        if match.is_dir():
            data, others = _data_in(match, suffixes, without)
            if not data and pictures and next(pictures_in(match), None):
                files.append(match)
                data, others = [match], [name for name in others if not _is_picture(name)]
            else:
                files += data
            if data and others:
                note(_others(text, others))
        elif not match.exists():
            raise InputError(f"input {text!r}: no such file or folder")
        elif not match.is_file():
            raise InputError(f"input {str(match)!r}: not a regular file")
        elif match.suffix.lower() in suffixes:
            files += [] if ".tar" in suffixes and _is_beside_a_tar(match) else [match]
        elif len(matches) == 1:
            raise InputError(f"input {str(match)!r}: not a {', '.join(suffixes)} file")
        else:
            passed_over.append(match.name)
    if files and passed_over:
        note(_others(text, passed_over))
    return files


def _others(text: str, names: list[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"input {text!r}: {len(names):,} other files are not read: {', '.join(names[:3])}{more}"


def _data_in(folder: AnyPath, suffixes: Sequence[str], without: str | None) -> tuple[list[AnyPath], list[str]]:
    """The files to read in a folder and its subfolders, and the names of the others."""
    data: list[tuple[str, AnyPath]] = []
    others: list[str] = []

    def note_hidden(name: str) -> None:
        if name.endswith("/") or PurePosixPath(name).suffix.lower() in (*suffixes, *IMAGE_SUFFIXES):
            others.extend([name] if PurePosixPath(name).name not in _OF_JOBS else [])

    for name, file in files_below(folder, hidden=(".", "_"), without=without, on_hidden=note_hidden):
        if file.suffix.lower() in suffixes:
            data.append((name, file))
        elif not name.endswith("_stats.json"):  # img2dataset's
            others.append(name)
    tars = {_stem(name) for name, file in data if file.suffix.lower() == ".tar"}
    return [file for name, file in data if not (_stem(name) in tars and file.suffix.lower() == ".parquet")], others


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _is_beside_a_tar(file: AnyPath) -> bool:
    return file.suffix == ".parquet" and file.with_suffix(".tar").is_file()
