"""Contents and their prompts to the inputs of forward passes: sorted, grouped, decoded, ahead of the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import Tensor

from mme5core.backbones import Backbone
from mme5core.backbones.protocol import Features, PictureInputs, PictureSize, without_pixels
from mme5core.batching import plan_batches
from mme5core.images import BadImage, image_hash, load_rgb, picture_size
from mme5core.types import Content

T = TypeVar("T")
OnBad = Callable[[int, BadImage], None]
"""Told the place of a content whose picture cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """Inputs of one forward pass, and which rows of the caller's list they are.

    Rows may share pictures: `pictures` are the distinct ones, `picture_of` tells each row's, and `inputs` then hold no
    pixels.

    In training also: the tower's features of the rows' pictures where they were made before, the seed of the pass's
    randomness, so that it can be repeated, and a weight of 0 for a pass that only keeps step with other processes.
    """

    rows: list[int]
    inputs: dict[str, Tensor]
    pictures: Sequence[PictureInputs] = ()
    picture_of: Sequence[int] = ()
    features: Sequence[Features] | None = None
    seed: int | None = None
    weight: float = 1.0


def prepare_batches(
    backbone: Backbone,
    contents: Sequence[Content],
    prompts: Sequence[str],
    *,
    max_tokens: int,
    batch_size: int,
    max_batch_tokens: int,
    max_pictures: int | None = None,
    share_pictures: bool = False,
    num_threads: int = 1,
    on_bad: OnBad | None = None,
) -> Iterator[PreparedBatch]:
    """The forward passes for `contents`: one modality each, sorted by length, prepared one at a time.

    Args:
        prompts: of the contents, as `prompt_styles.render` makes them.
        max_tokens: of one prompt; what is longer is cut.
        batch_size, max_batch_tokens, max_pictures: of one pass at most; see `plan_batches`.
        share_pictures: the tower shall read a picture that several rows have once, where the family's tower is known;
            else every row brings its pixels, as a tower that trains needs them.
        num_threads: that decode pictures.
        on_bad: told of pictures that cannot be read, and of texts that hold the token for a picture; their rows are
            left out. None: they raise.

    Raises:
        ValueError: a bad picture, where nobody is told of it.
    """
    bad: set[int] = set()

    def tried(read: Callable[[Content], T], row: int) -> T | None:
        try:
            return read(contents[row])
        except BadImage as error:
            if on_bad is None:
                raise ValueError(f"content {row}: {error}") from None
            if row not in bad:
                bad.add(row)
                on_bad(row, error)
            return None

    for row in range(len(contents)):
        tried(partial(_check_text, backbone), row)
    sizes = [tried(lambda content: size_of(backbone, content), row) for row in range(len(contents))]
    keys: list[Hashable] = [*range(len(contents))]
    if share_pictures and backbone.knows_tower:
        keys = [tried(_picture_key, row) for row in range(len(contents))]
    good = [row for row in range(len(contents)) if row not in bad]
    if not good:
        return
    ids = backbone.token_ids([prompts[row] for row in good], [sizes[row] for row in good], max_tokens=max_tokens)
    token_ids = dict(zip(good, ids, strict=True))
    plan = plan_batches(
        [len(token_ids[row]) for row in good],
        [contents[row].image is not None for row in good],
        max_rows=batch_size,
        max_tokens=max_batch_tokens,
        pictures=[keys[row] for row in good],
        max_pictures=max_pictures,
    )
    with ThreadPoolExecutor(num_threads) as threads:
        for places in plan:
            rows = [good[place] for place in places]
            if contents[rows[0]].image is None:
                yield PreparedBatch(rows, backbone.collate([token_ids[row] for row in rows], None))
                continue
            first = {keys[row]: row for row in reversed(rows)}
            decoded = threads.map(lambda row: tried(lambda content: _prepare(backbone, content), row), first.values())
            pictures = {key: picture for key, picture in zip(first, decoded, strict=True) if picture is not None}
            for row in rows:
                if keys[row] not in pictures and row not in bad:
                    tried(lambda content: _prepare(backbone, content), row)  # its picture is bad in every row
            rows = [row for row in rows if row not in bad]
            if rows:
                yield _with_pictures(backbone, rows, token_ids, keys, pictures, share=share_pictures)


def size_of(backbone: Backbone, content: Content) -> PictureSize | None:
    """The size of a content's picture, as far as its tokens depend on it; None without a picture.

    Raises:
        BadImage: it cannot be read.
    """
    if content.image is None:
        return None
    return picture_size(content.image) if backbone.needs_sizes else (1, 1)


def _check_text(backbone: Backbone, content: Content) -> None:
    """
    Raises:
        BadImage: the text holds what stands for a picture in the backbone's prompts, and would be read as one.
    """
    token = getattr(backbone, "image_token", None)
    if token and content.text and token in content.text:
        raise BadImage("picture_token_in_text", token)


def _prepare(backbone: Backbone, content: Content) -> PictureInputs:
    return backbone.prepare_picture(load_rgb(content.image))


def _picture_key(content: Content) -> Hashable:
    """Equal for contents that show the same picture; a path stands for its file, which is not read for this."""
    if content.image is None or isinstance(content.image, str | os.PathLike):
        return None if content.image is None else ("path", os.fspath(content.image))
    return image_hash(content.image)


def _with_pictures(
    backbone: Backbone,
    rows: list[int],
    token_ids: dict[int, list[int]],
    keys: Sequence[Hashable],
    pictures: dict[Hashable, PictureInputs],
    *,
    share: bool,
) -> PreparedBatch:
    ids = [token_ids[row] for row in rows]
    if not (share and backbone.knows_tower):
        return PreparedBatch(rows, backbone.collate(ids, [pictures[keys[row]] for row in rows]))
    slim = {key: without_pixels(picture) for key, picture in pictures.items()}
    places = {key: place for place, key in enumerate(pictures)}
    inputs = backbone.collate(ids, [slim[keys[row]] for row in rows])
    return PreparedBatch(rows, inputs, [*pictures.values()], [places[keys[row]] for row in rows])
