"""Prepared pictures, kept between the steps of a training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from mme5core.backbones.protocol import PictureInputs
from mme5core.encoder import Encoder
from mme5core.types import Content


class PictureCache:
    """Prepared pictures by key; the least recently used are dropped first.

    Args:
        max_bytes: most bytes of tensors to keep.
        num_threads: threads that decode pictures.
    """

    def __init__(self, encoder: Encoder, max_bytes: int, *, num_threads: int = 1) -> None:
        self._encoder, self._max_bytes, self._num_bytes = encoder, max_bytes, 0
        self._kept: OrderedDict[Hashable, PictureInputs] = OrderedDict()
        self._threads = ThreadPoolExecutor(max_workers=num_threads)

    def get(self, places: Mapping[Hashable, tuple[Content, int]]) -> dict[Hashable, PictureInputs]:
        """The pictures by key, in the model's dtype.

        Args:
            places: for each key, a content that shows the picture, and the picture's place in it.
        """
        missing = [key for key in places if key not in self._kept]
        prepared = dict(zip(missing, self._threads.map(self._prepare, map(places.__getitem__, missing)), strict=True))
        pictures = {}
        for key in places:
            if key in self._kept:
                self._kept.move_to_end(key)
                pictures[key] = self._kept[key]
            else:
                pictures[key] = self._kept[key] = prepared[key]
                self._num_bytes += num_bytes(prepared[key].values())
        while self._num_bytes > self._max_bytes and self._kept:
            _, dropped = self._kept.popitem(last=False)
            self._num_bytes -= num_bytes(dropped.values())
        return pictures

    def _prepare(self, content_and_place: tuple[Content, int]) -> PictureInputs:
        dtype = next(self._encoder.module.parameters()).dtype
        inputs = self._encoder.prepare_picture(*content_and_place)
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
