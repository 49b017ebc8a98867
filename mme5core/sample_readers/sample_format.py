"""The definition of a training format: its columns, and the conversion of a row to a sample."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mme5core.images import BadImage
from mme5core.storage import AnyPath, locate
from mme5core.types import ImageRef, Sample

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """The folder of pictures that rows give by path."""

    root: AnyPath

    @classmethod
    def at(cls, images: str | os.PathLike[str] | None) -> PictureFolder | None:
        return None if images is None else cls(locate(os.fspath(images)))

    def picture(self, path: str) -> ImageRef:
        """The whole path of a picture; it is checked to exist, but not decoded.

        Raises:
            BadImage: `missing_image`, or `outside_images` for a path out of the folder.
        """
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts or "://" in path:
            raise BadImage("outside_images", path)
        file = self.root / path
        try:
            is_there = file.is_file()
        except (OSError, ValueError):  # ValueError: a NUL in the path
            is_there = False
        if not is_there:
            raise BadImage("missing_image", path)
        return str(file)


@dataclass(frozen=True, slots=True)
class SampleFormat:
    """One format of training samples.

    Args:
        required: columns that identify the format.
        optional: columns that are read if a file has them.
        to_sample: converts a row. It raises `BadImage` for a missing picture, and `ValueError` for a row that cannot be
            a sample. The row's "id" is never empty, whether or not the format has such a column.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    to_sample: Callable[[Row, PictureFolder | None], Sample]
