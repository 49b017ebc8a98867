"""What stages ask of a cluster: a GPU each or a fraction, never the CPU in silence, threads by the node."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mme5core.embedding_settings import EmbeddingSettings
from mme5core.errors import InputError
from mme5core.processors import num_cpus_here, threads_per_process
from rayjobs.embedding import placement_for
from rayjobs.on_ray.resources import ASK, EMBED, TRAIN, Placement, place, workers_per_node
from tests.ray.conftest import TOKEN

pytestmark = pytest.mark.ray

Outcome = tuple[float, float] | str


def outcome(work: Callable[[], Placement]) -> Outcome:
    try:
        placement = work()
    except InputError as error:
        return str(error)
    return round(placement.cpus, 2), placement.gpus


def settings(**changes: Any) -> EmbeddingSettings:
    return EmbeddingSettings(model="m", **changes)


def on_gpus() -> list[Outcome]:
    """A cluster of four CPUs and two GPUs, which Ray takes our word for."""
    return [
        outcome(lambda: place(EMBED, 2, gpus_per_worker=1.0)),
        outcome(lambda: place(EMBED, 3, gpus_per_worker=1.0)),
        outcome(lambda: place(EMBED, 4, gpus_per_worker=0.5)),
        outcome(lambda: place(TRAIN, 3, gpus_per_worker=1.0)),
        outcome(lambda: place(ASK, 2, gpus_per_worker=1.0)),
        outcome(lambda: placement_for(settings(), 2, job="embed-corpus")),
        outcome(lambda: placement_for(settings(), 3, job="embed-corpus")),
        outcome(lambda: placement_for(settings(gpus_per_worker=0.5), 4, job="embed-corpus")),
        outcome(lambda: placement_for(settings(device="cpu"), 3, job="embed-corpus")),
    ]


def without_gpus() -> list[Outcome]:
    return [
        outcome(lambda: placement_for(settings(), 1, job="embed-corpus")),
        outcome(lambda: placement_for(settings(device="cuda"), 1, job="embed-corpus")),
        outcome(lambda: place(EMBED, 30)),
    ]


def in_cluster(num_gpus: int, queue: Any, file: Path) -> None:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=num_gpus, include_dashboard=False, object_store_memory=200 << 20)
    with file.open("w") as stderr:
        os.dup2(stderr.fileno(), 2)
        queue.put(on_gpus() if num_gpus else without_gpus())
    ray.shutdown()


def outcomes(num_gpus: int, file: Path) -> tuple[list[Outcome], str]:
    """In a process of its own, as Ray reads its token once in one; and what it printed on stderr."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=in_cluster, args=(num_gpus, queue, file))
    process.start()
    result = queue.get(timeout=120)
    process.join(timeout=60)
    return result, file.read_text()


def test_each_worker_has_a_gpu_or_a_set_fraction_and_what_the_cluster_lacks_is_refused(tmp_path: Path) -> None:
    lacks = "num_workers=3: each worker needs a GPU, and the cluster has 2"
    results, stderr = outcomes(2, tmp_path / "stderr")
    assert results == [
        (1.0, 1.0),
        lacks,
        (0.75, 0.5),
        lacks,
        (0.5, 0.0),
        (1.0, 1.0),
        lacks,
        (0.75, 0.5),
        (1.0, 0.0),
    ]
    assert "embedding on CPUs" not in stderr


def test_a_cluster_without_gpus_computes_on_cpus_and_says_so_unless_gpus_are_asked_for(tmp_path: Path) -> None:
    results, stderr = outcomes(0, tmp_path / "stderr")
    assert results == [(1.0, 0.0), "num_workers=1: each worker needs a GPU, and the cluster has 0", (0.1, 0.0)]
    assert stderr.count("embed-corpus: the cluster has no GPU: embedding on CPUs (device=cuda would refuse)") == 1


def test_workers_are_spread_over_the_nodes_that_have_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    nodes = [{"Alive": True, "Resources": {"CPU": 16.0}} for _ in range(4)]
    nodes += [{"Alive": True, "Resources": {"memory": 1.0}}, {"Alive": False, "Resources": {"CPU": 16.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert [workers_per_node(n) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


def test_threads_are_shared_out_among_the_processes_of_a_machine() -> None:
    cpus = num_cpus_here()
    assert [threads_per_process(n) for n in (1, cpus, 10 * cpus)] == [cpus, 1, 1]
