"""A plain folder of pictures, one row for each; the id of a row is the picture's path below the folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mme5core.images import BadImage, image_bytes
from mme5core.readers.corpus_row import CorpusRow, ReadOptions, refuse
from mme5core.readers.picture_places import Picture, RemotePicture, check_below
from mme5core.readers.shards import pictures_in
from mme5core.readers.texts import writable
from mme5core.storage import AnyPath
from mme5core.web import HostRule

_ESCAPE = re.compile(r"\\u(dc[89a-f][0-9a-f])")


def read(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """A row for each picture of the folder and its subfolders."""
    for path, file in pictures_in(shard):
        name = f"{options.label}/{path}" if options.label else path
        try:
            yield CorpusRow(writable(name), image=_picture_of(file, shard, options))
        except BadImage as error:
            yield refuse(name, error.reason, error.detail)


def read_picture(folder: AnyPath, name: str, options: ReadOptions) -> Picture:
    """One picture of the folder.

    Args:
        name: the id of its row.

    Raises:
        BadImage: it is gone, or lies elsewhere by now.
    """
    path = name.removeprefix(f"{options.label}/") if options.label else name
    file = folder / path
    if isinstance(file, Path) and not file.exists():
        # In an id, what of a name is no UTF-8 stands as escapes.
        file = folder / _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), path)
    return _picture_of(file, folder, options)


def _picture_of(file: AnyPath, folder: AnyPath, options: ReadOptions) -> Picture:
    if not isinstance(file, Path):
        picture = RemotePicture(file, HostRule(options.allow_hosts))
        return picture.read() if options.fetch else picture
    assert isinstance(folder, Path)
    check_below(file, folder, options.pictures)
    return image_bytes(file)
