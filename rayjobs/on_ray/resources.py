"""What each stage of each job asks of the cluster, in one table, and whether the cluster can give it.

Waiting for an autoscaler belongs into `place`: today a cluster that lacks what a stage needs is an error, never a
silent fall back to less.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from mme5core.errors import InputError

LEAST_ACTOR_CPUS = 0.01


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of worker: a task or an actor.

    Args:
        cpus: of each worker; an actor gets less where the cluster is small, since its feeding tasks need one.
        takes_gpus: whether its workers compute on GPUs where the job has any.
        memory_bytes: of each worker, for Ray's scheduler.
    """

    name: str
    cpus: float
    takes_gpus: bool = False
    memory_bytes: int = 0


BOOKKEEPING = Stage("bookkeeping", cpus=1.0)
"""Tasks that index, plan, join and write: `on_ray.tasks`."""
READ_CONTENTS = Stage("reading", cpus=1.0, memory_bytes=1 << 26)
"""Tasks that read the contents to embed. With memory of its own, Ray does not fuse them into the actors they feed."""
EMBED = Stage("embedding", cpus=1.0, takes_gpus=True)
"""Actors that hold an encoder."""
ASK = Stage("asking", cpus=0.5)
"""Actors that wait for a server's answers."""
JUDGE = Stage("judging", cpus=1.0, takes_gpus=True)
"""Actors that hold a judge."""
RERANK = Stage("reranking", cpus=1.0, takes_gpus=True)
"""Actors that hold a reranker."""
MINE = Stage("searching", cpus=1.0, takes_gpus=True)
"""Tasks that hold a block of queries and go through all candidates."""
TRAIN = Stage("training", cpus=1.0, takes_gpus=True)
"""Processes of a training run."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What each of a stage's workers asks Ray for."""

    cpus: float
    gpus: float

    @property
    def uses_gpu(self) -> bool:
        return self.gpus > 0


def place(stage: Stage, num_workers: int, *, gpus_per_worker: float = 0.0) -> Placement:
    """The resources of each of `num_workers` actors, so that all of them and one task that feeds them fit at once.

    Raises:
        InputError: GPUs are wanted and the cluster does not have them.
    """
    gpus = gpus_per_worker if stage.takes_gpus else 0.0
    num_gpus = cluster_gpus()
    if gpus * num_workers > num_gpus:
        raise InputError(
            f"num_workers={num_workers}: each worker needs {'a GPU' if gpus == 1 else f'{gpus:g} of a GPU'}, and the "
            f"cluster has {num_gpus:g}"
        )
    import ray

    # Actors that held every CPU would starve the tasks that feed them, and the job would hang.
    free = ray.cluster_resources().get("CPU", 1.0) - 1.0
    return Placement(max(LEAST_ACTOR_CPUS, min(stage.cpus, free / num_workers)), gpus)


def place_on(stage: Stage, num_workers: int, *, device: str, gpus_per_worker: float, job: str) -> Placement:
    """GPUs where the cluster has any, or `device` wants them; never the CPU without a line.

    Raises:
        InputError: the cluster has fewer GPUs than the workers need.
    """
    if device == "cpu":
        return place(stage, num_workers)
    if device == "auto" and not cluster_gpus():
        print(f"{job}: the cluster has no GPU: {stage.name} on CPUs (device=cuda would refuse)", file=sys.stderr)
        return place(stage, num_workers)
    return place(stage, num_workers, gpus_per_worker=gpus_per_worker)


def place_for(stage: Stage, num_workers: int, *, use_gpu: bool | None, job: str) -> Placement:
    """`place_on` for settings that say `use_gpu`: a GPU for each worker, none, or (None) as the cluster has."""
    if use_gpu is None:
        use_gpu = bool(cluster_gpus())
        if not use_gpu:
            print(f"{job}: the cluster has no GPU: {stage.name} on CPUs (use_gpu=true would refuse)", file=sys.stderr)
    return place(stage, num_workers, gpus_per_worker=1.0 if use_gpu else 0.0)


def cluster_gpus() -> float:
    import ray

    return float(ray.cluster_resources().get("GPU", 0.0))


def cluster_cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1.0)))


def workers_per_node(num_workers: int) -> int:
    """How many of a stage's workers share one node at most, spread over those that have CPUs."""
    import ray

    num_nodes = sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())
    return -(-num_workers // max(1, num_nodes))
