"""Streams the contents that have no vector yet through a pool of encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mme5core.corpus.contents import Contents
from mme5core.corpus.index import Index
from mme5core.corpus.unembedded import EmbeddingKey, ReadUnembedded
from mme5core.corpus.vector_log import VectorPlaces
from mme5core.durable import wait_until_seen
from mme5core.embedding_settings import EmbeddingSettings
from mme5core.errors import InputError, WorkFailed
from mme5core.readers import ReadOptions
from rayjobs.embedding.actors import EmbedActor, LoadEncoder, ReadWindows
from rayjobs.on_ray.resources import (
    EMBED,
    Placement,
    cluster_cpus,
    place_on,
    workers_per_node,
)
from rayjobs.on_ray.streams import ActorPool, stream

WINDOWS_PER_TASK, TASKS_PER_CPU = 8, 4


def placement_for(settings: EmbeddingSettings, num_workers: int, *, job: str) -> Placement:
    """GPUs where the cluster has any, or the settings want them; never the CPU without a line.

    Raises:
        InputError: the cluster has fewer GPUs than the workers need.
    """
    return place_on(EMBED, num_workers, device=settings.device, gpus_per_worker=settings.gpus_per_worker, job=job)


def embed_contents(
    index: Index,
    contents: Contents,
    places: VectorPlaces,
    settings: EmbeddingSettings,
    options: ReadOptions,
    placement: Placement,
    *,
    labels: Sequence[str],
    num_workers: int,
    load: LoadEncoder,
    check_owner: Callable[[], None],
    refuses_unreachable: bool = False,
) -> Iterator[None]:
    """Embed the first row of every distinct content that is not done; `places` grows, and each step is yielded.

    Args:
        labels: of the shards, as they were scanned.
        check_owner: raises where another run owns the folder by now.
        refuses_unreachable: refuse pictures whose server does not answer, rather than leave them to the next run.

    Raises:
        InputError: the model cannot be loaded.
        WorkFailed: contents cannot be embedded, or the folder has another owner.
    """
    items = [
        {"shard": shard, "path": str(path), "label": labels[shard]}
        for shard, path in enumerate(index.shards)
        if (places.places[contents.starts[shard] : contents.starts[shard + 1]] < 0).any()
    ]
    if not items:
        return
    read = ReadUnembedded(
        index.folder,
        index.starts,
        contents,
        places.write_done(),
        EmbeddingKey(settings.instruction),
        settings.window_rows,
        options,
        refuses_unreachable,
    )
    # A task reads several small shards, so that their rows share windows.
    num_windows = -(-(len(contents) - places.num_done) // settings.window_rows)
    num_tasks = max(num_windows // WINDOWS_PER_TASK, TASKS_PER_CPU * cluster_cpus())
    log, per_node = places.log, workers_per_node(num_workers)
    arguments = (load, settings, log.folder, log.dimension, placement.uses_gpu, per_node)
    pool = ActorPool(EmbedActor, arguments, num_workers, placement)
    for row in stream(items, pool, read=ReadWindows(read), num_tasks=num_tasks):
        if row["unloadable"]:
            raise InputError(row["unloadable"])
        if row["failure"]:
            raise WorkFailed(row["failure"])
        file = places.log.folder / row["file"]
        wait_until_seen(file.is_file, places.log.folder)
        check_owner()
        places.add(row["file"])
        yield
