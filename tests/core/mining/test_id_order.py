"""The order of ids on disk is that of Python's sort, however few of them memory holds."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mme5core.mining.id_order import IdOrder

IDS = [f"{n:03d}/é{n % 7}" for n in range(200)] + ["", "a", "\U0001f600", "\uffee", "z" * 300, "A b"]


def order_of(ids: list[str], folder: Path, ids_in_memory: int, per_batch: int = 17) -> IdOrder:
    batches = (pa.chunked_array([ids[n : n + per_batch]]) for n in range(0, len(ids), per_batch))
    return IdOrder.write(batches, len(ids), folder / "ids", ids_in_memory=ids_in_memory)


@pytest.mark.parametrize("ids_in_memory", [10, 64, 1000])
def test_places_are_those_of_a_sort_and_ids_come_back(tmp_path: Path, ids_in_memory: int) -> None:
    ids = list(IDS)
    random.Random(0).shuffle(ids)
    order = order_of(ids, tmp_path, ids_in_memory)
    assert len(order) == len(ids)
    assert order.places(0, len(ids)).tolist() == [sorted(ids).index(name) for name in ids]
    assert order.places(5, 9).tolist() == order.places(0, len(ids))[5:9].tolist()
    wanted = np.array([3, 3, 205, 0, 100])
    assert order.ids(wanted).to_pylist() == [sorted(ids)[place] for place in wanted]
    assert order.ids(np.zeros(0, np.int64)).to_pylist() == []


@pytest.mark.parametrize("ids_in_memory", [10, 1000])
def test_an_id_that_occurs_twice_is_named(tmp_path: Path, ids_in_memory: int) -> None:
    with pytest.raises(ValueError, match=r"^a$"):
        order_of([*IDS, "a"], tmp_path, ids_in_memory)
