"""Contents and their prompts to the inputs of forward passes: checked, grouped into batches, decoded, collated."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TypeVar

from torch import Tensor

from mme5core.backbones import Backbone
from mme5core.backbones.protocol import Features, PictureInputs, PictureSize, cut_rows, without_pixels
from mme5core.batching import plan_batches
from mme5core.images import BadImage, image_hash, load_rgb, picture_size
from mme5core.types import Content

T = TypeVar("T")
TokenIds = Callable[[Sequence[str], Sequence[Sequence[PictureSize]]], list[list[int]]]
"""From prompts and the sizes of their pictures to the token ids of each."""
OnBad = Callable[[int, BadImage], None]
"""Called with the place of a content that cannot be embedded, and the reason."""


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """Inputs of one forward pass; `rows` are the places of its contents in the caller's list.

    Where rows share pictures, `pictures` are the distinct ones, `pictures_of` holds for each row the places of its
    pictures among them, and `inputs` hold no pixels.

    In training, `features` are the vision tower's output for each row's pictures if it was computed beforehand,
    `seed` makes the dropout of the pass repeatable, and `weight` is 0 for a pass that only keeps the collectives of
    this process in step with those of others.
    """

    rows: list[int]
    inputs: dict[str, Tensor]
    pictures: Sequence[PictureInputs] = ()
    pictures_of: Sequence[Sequence[int]] = ()
    features: Sequence[Sequence[Features]] | None = None
    seed: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class _Reading:
    """The contents of one call, and the places of those that cannot be embedded."""

    contents: Sequence[Content]
    on_bad: OnBad | None
    bad_rows: set[int] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)  # two pictures of one row may be decoded side by side

    def attempt(self, read: Callable[[Content], T], row: int) -> T | None:
        """`read` applied to the content of a row; None if it raises `BadImage`, which is reported once per row.

        Raises:
            ValueError: it raises `BadImage`, and there is no `on_bad`.
        """
        try:
            return read(self.contents[row])
        except BadImage as error:
            if self.on_bad is None:
                raise ValueError(f"content {row}: {error}") from None
            with self._lock:
                if row not in self.bad_rows:
                    self.bad_rows.add(row)
                    self.on_bad(row, error)
            return None


def prepare_batches(
    backbone: Backbone,
    contents: Sequence[Content],
    prompts: Sequence[str],
    *,
    max_tokens: int,
    max_batch_rows: int,
    max_batch_tokens: int,
    max_pictures: int | None = None,
    share_pictures: bool = False,
    num_threads: int = 1,
    on_bad: OnBad | None = None,
    on_cut: Callable[[int], None] | None = None,
    token_ids: TokenIds | None = None,
) -> Iterator[PreparedBatch]:
    """The forward passes for `contents`: one modality each, sorted by length, prepared one at a time.

    Args:
        prompts: of the contents, as `prompt_styles.render` makes them.
        max_tokens: most tokens of one prompt; longer ones are truncated.
        max_batch_rows, max_batch_tokens, max_pictures: limits of one pass; see `plan_batches`.
        share_pictures: run the vision tower once for a picture that several rows of a pass show. It has no effect
            where the family's tower is not known. False: `inputs` hold every row's pixels, as a trainable tower needs.
        num_threads: threads that decode pictures.
        on_bad: called for a picture that cannot be read, a text that contains the picture token, and a content of
            more pictures than the family takes; the row is left out. None: they raise.
        on_cut: called with the place of each content whose prompt is truncated.
        token_ids: in place of the backbone's own, which reads prompts as embedding does; nothing is truncated then.

    Raises:
        ValueError: a content that cannot be embedded, without `on_bad`.
    """
    reading, rows = _Reading(contents, on_bad), range(len(contents))
    share = share_pictures and backbone.knows_tower
    for row in rows:
        reading.attempt(partial(_check_prompt, backbone, prompts[row]), row)
    sizes = [reading.attempt(partial(sizes_of, backbone), row) for row in rows]
    keys = [_keys(backbone, reading, row, share=share) for row in rows]
    good = [row for row in rows if row not in reading.bad_rows]
    if not good:
        return
    key_of = {row: keys[row] or () for row in good}
    good_prompts, good_sizes = [prompts[row] for row in good], [sizes[row] or () for row in good]
    if token_ids is None:
        ids = _token_ids(backbone, good, good_prompts, good_sizes, max_tokens, on_cut)
    else:
        ids = token_ids(good_prompts, good_sizes)
    ids_of = dict(zip(good, ids, strict=True))
    plan = plan_batches(
        [len(ids_of[row]) for row in good],
        [batch_kind(backbone, contents[row]) for row in good],
        max_rows=max_batch_rows,
        max_batch_tokens=max_batch_tokens,
        pictures=[key_of[row] for row in good],
        max_pictures=max_pictures,
    )
    batches = [[good[place] for place in places] for places in plan]
    yield from _prepared(backbone, reading, batches, ids_of, key_of, share=share, num_threads=num_threads)


def _keys(backbone: Backbone, reading: _Reading, row: int, *, share: bool) -> tuple[Hashable, ...] | None:
    """Of a row's pictures; different for all of them where none is shared."""
    if share:
        return reading.attempt(partial(picture_keys, backbone), row)
    return tuple((row, place) for place in range(len(reading.contents[row].images)))


def _prepared(
    backbone: Backbone,
    reading: _Reading,
    batches: Sequence[Sequence[int]],
    ids_of: Mapping[int, list[int]],
    key_of: Mapping[int, Sequence[Hashable]],
    *,
    share: bool,
    num_threads: int,
) -> Iterator[PreparedBatch]:
    with ThreadPoolExecutor(num_threads) as threads:
        for rows in batches:
            pictures = _decode(backbone, reading, {row: key_of[row] for row in rows}, threads)
            chosen = [row for row in rows if row not in reading.bad_rows]
            if chosen:
                yield _batch(backbone, chosen, ids_of, [key_of[row] for row in chosen], pictures, share=share)


def _token_ids(
    backbone: Backbone,
    rows: Sequence[int],
    prompts: Sequence[str],
    sizes: Sequence[Sequence[PictureSize]],
    max_tokens: int,
    on_cut: Callable[[int], None] | None,
) -> list[list[int]]:
    ids = backbone.token_ids(prompts, sizes, max_tokens=max_tokens)
    if on_cut is not None:
        for place in cut_rows(backbone, prompts, sizes, ids, max_tokens=max_tokens):
            on_cut(rows[place])
    return ids


def batch_kind(backbone: Backbone, content: Content) -> int:
    """A number that is equal for contents that may share a batch; 0 without picture."""
    return min(1, len(content.images)) if backbone.mixes_picture_counts else len(content.images)


def sizes_of(backbone: Backbone, content: Content) -> tuple[PictureSize, ...]:
    """The sizes of a content's pictures, as far as its tokens depend on them.

    Raises:
        BadImage: a picture cannot be read, or the content has more than the family takes (`too_many_pictures`).
    """
    count, most = len(content.images), backbone.max_pictures
    if most is not None and count > most:
        raise BadImage("too_many_pictures", f"{count} pictures in one content; {backbone.family} takes {most}")
    if backbone.picture_side is not None:
        return ((backbone.picture_side, backbone.picture_side),) * count
    return tuple(picture_size(image) if backbone.needs_sizes else (1, 1) for image in content.images)


def prepare_picture(backbone: Backbone, content: Content, place: int = 0) -> PictureInputs:
    """The tensors of one of a content's pictures.

    Raises:
        BadImage: it cannot be read.
    """
    picture = load_rgb(content.images[place])
    if backbone.picture_side is not None:
        picture = picture.resize((backbone.picture_side, backbone.picture_side))
    return backbone.prepare_picture(picture, is_one_of_several=len(content.images) > 1)


def picture_keys(backbone: Backbone, content: Content) -> tuple[Hashable, ...]:
    """A key of each picture, equal for pictures that give the vision tower the same input.

    The key of a path is the path: its file is not read.

    Raises:
        BadImage: a picture in memory cannot be read.
    """
    is_coarse = backbone.reads_several_coarsely and len(content.images) > 1
    return tuple(
        ("path", os.fspath(image), is_coarse)
        if isinstance(image, str | os.PathLike)
        else ("content", image_hash(image), is_coarse)
        for image in content.images
    )


def _check_prompt(backbone: Backbone, prompt: str, content: Content) -> None:
    """Refuse a text or an instruction that the model would misread.

    Raises:
        BadImage: it contains the backbone's picture token, and the model would read it as a picture.
    """
    token = getattr(backbone, "image_token", None)
    if token and prompt.count(token) > backbone.image_prefix.count(token) * len(content.images):
        raise BadImage("picture_token_in_text", token)


def _decode(
    backbone: Backbone, reading: _Reading, keys: Mapping[int, Sequence[Hashable]], threads: ThreadPoolExecutor
) -> dict[Hashable, PictureInputs]:
    """The distinct pictures of some rows, by key; pictures of rows in `reading.bad_rows` may be missing.

    Args:
        keys: for each row, the keys of its pictures.
    """

    def prepared(row: int, place: int) -> PictureInputs | None:
        return reading.attempt(lambda content: prepare_picture(backbone, content, place), row)

    first: dict[Hashable, tuple[int, int]] = {}
    for row, of_row in keys.items():
        for place, key in enumerate(of_row):
            first.setdefault(key, (row, place))
    decoded = threads.map(lambda where: prepared(*where), first.values())
    pictures = {key: picture for key, picture in zip(first, decoded, strict=True) if picture is not None}
    for row, of_row in keys.items():
        for place, key in enumerate(of_row):
            if key not in pictures and row not in reading.bad_rows:
                again = prepared(row, place)  # to report every row that shows an unreadable picture
                if again is not None:
                    pictures[key] = again
    return pictures


def _batch(
    backbone: Backbone,
    rows: list[int],
    ids_of: Mapping[int, list[int]],
    keys: Sequence[Sequence[Hashable]],
    pictures: Mapping[Hashable, PictureInputs],
    *,
    share: bool,
) -> PreparedBatch:
    ids = [ids_of[row] for row in rows]
    if not keys[0]:
        return PreparedBatch(rows, backbone.collate(ids, None))
    if not share:
        return PreparedBatch(rows, backbone.collate(ids, [[pictures[key] for key in of_row] for of_row in keys]))
    distinct = list(dict.fromkeys(key for of_row in keys for key in of_row))
    places = {key: place for place, key in enumerate(distinct)}
    slim = {key: without_pixels(pictures[key]) for key in distinct}
    inputs = backbone.collate(ids, [[slim[key] for key in of_row] for of_row in keys])
    return PreparedBatch(
        rows,
        inputs,
        [pictures[key] for key in distinct],
        [[places[key] for key in of_row] for of_row in keys],
    )
