"""Streams through Ray Data: items, by reading tasks or not, into a pool of actors, whose rows come as they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mme5core.tasks import Item
from rayjobs.on_ray.resources import READ_CONTENTS, Placement


@dataclass(frozen=True, slots=True)
class ActorPool:
    """Actors that live for the whole stream, spread over the nodes.

    Args:
        actor: a class; its instances take a table of one row and give columns.
        arguments: of its constructor. Ray keeps copies of them in its statistics: no secrets.
        calls_at_once: of one actor, where its `__call__` is async.
    """

    actor: type
    arguments: tuple[Any, ...]
    num_workers: int
    placement: Placement
    calls_at_once: int | None = None


def stream(
    items: Sequence[Item],
    pool: ActorPool,
    *,
    read: Callable[[pa.Table], Iterator[pa.Table]] | None = None,
    num_tasks: int,
) -> Iterator[dict[str, Any]]:
    """The rows that the actors give, in any order.

    Args:
        read: run in tasks of their own before the actors, each on its share of the items; every table that it yields
            is one call of an actor. None: an item is.
        num_tasks: into how many shares the items are dealt.
    """
    import ray.data

    # So that Ray neither joins what tasks yield nor cuts it: each table is a block.
    ray.data.DataContext.get_current().target_max_block_size = 1
    dataset: Any = ray.data.from_items(list(items), override_num_blocks=min(num_tasks, len(items)))
    if read is not None:
        dataset = dataset.map_batches(
            read,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=READ_CONTENTS.cpus,
            memory=READ_CONTENTS.memory_bytes,
        )
    concurrency: dict[str, Any] = (
        {} if pool.calls_at_once is None else {"max_concurrent_calls_per_actor": pool.calls_at_once}
    )
    dataset = dataset.map_batches(
        pool.actor,
        fn_constructor_args=pool.arguments,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=pool.num_workers, **concurrency),
        num_cpus=pool.placement.cpus,
        num_gpus=pool.placement.gpus,
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from table.to_pylist()
