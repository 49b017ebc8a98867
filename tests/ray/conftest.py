"""A corpus of a few dozen emoji, an untrained base model and a demo teacher, shared by the jobs' tests."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.demo import benchmark
from mme5core.demo.annotations import find_font, load_emoji
from mme5core.demo.corpus import Corpus, write_corpus
from mme5core.demo.teacher import DemoTeacher, Entry, Faults, Knowledge
from mme5core.images import load_rgb
from mme5core.readers import read_rows
from mme5core.schemas import CANDIDATES, HOLDOUT, NEIGHBOURS, QUERIES

NUM_EMOJI = 48
TOKEN = secrets.token_hex(32)  # one for all clusters: Ray reads it once in a process


@dataclass(frozen=True)
class World:
    """What the jobs read."""

    root: Path
    corpus: Corpus
    images: dict[str, bytes]

    @property
    def tars(self) -> str:
        return f"{self.root}/corpus/*.tar"


@dataclass(frozen=True)
class Ended:
    """How a job ended: its summary line, and all that it printed."""

    code: int
    summary: dict[str, Any]
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    faces_and_animals = [e for e in load_emoji() if e.subgroup.startswith(("face-", "animal-"))][:NUM_EMOJI]
    for item in write_corpus(root / "corpus", faces_and_animals, find_font()):
        if isinstance(item, Corpus):
            corpus = item
    images = {
        row.id: row.image for tar in sorted((root / "corpus").glob("*.tar")) for row in read_rows(tar) if row.image
    }
    _write(root / "neighbours" / "part-0.parquet", benchmark.neighbours(corpus.pictures), NEIGHBOURS)
    _write(root / "holdout.parquet", benchmark.holdout_rows(corpus.pictures), HOLDOUT)
    _write(root / "bench" / "queries.parquet", benchmark.queries(corpus.pictures, "unseen"), QUERIES)
    candidates = [
        {"id": p.key, "text": None, "image": {"bytes": images[p.key], "path": p.key}}
        for p in benchmark.candidates(corpus.pictures)
    ]
    _write(root / "bench" / "candidates.parquet", candidates, CANDIDATES)
    return World(root, corpus, images)


@pytest.fixture(scope="session")
def base(world: World) -> Path:
    from mme5core.demo.base_model import build_base
    from mme5core.demo.captions import Captions

    folder = world.root / "base"
    build_base(folder, Captions(world.corpus.pictures).tokenizer_texts())
    return folder


@pytest.fixture(scope="session")
def knowledge(world: World) -> Knowledge:
    entries = []
    for picture in world.corpus.pictures:
        held_out = benchmark.held_out_languages(picture)
        entries.append(
            Entry(
                picture.key,
                picture.emoji.subgroup,
                {code: name for code, name in picture.emoji.names.items() if code not in held_out},
                {code: list(words) for code, words in picture.emoji.keywords.items() if code not in held_out},
            )
        )
    return Knowledge(entries, [load_rgb(world.images[entry.key]) for entry in entries])


@pytest.fixture
def teacher(knowledge: Knowledge) -> Iterator[DemoTeacher]:
    with DemoTeacher(knowledge, Faults()) as server:
        yield server


@pytest.fixture(scope="session")
def samples(world: World, knowledge: Knowledge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `synth` folder."""
    output = tmp_path_factory.mktemp("samples") / "synth"
    with DemoTeacher(knowledge) as server:
        ended = run_job("synth", *synth_args(world, server, output), "samples_per_image=3")
    assert ended.code == 0, ended.stderr
    return output


@pytest.fixture(scope="session")
def near(samples: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nearest positives of each sample's query."""
    folder = tmp_path_factory.mktemp("near")
    for side in ("query", "target"):
        ended = run_job("embed-corpus", f"input={samples}", f"side={side}", f"model={base}", f"output={folder / side}")
        assert ended.code == 0, ended.stderr
    sets = [f"queries={folder}/query", f"candidates={folder}/target"]
    ended = run_job("mine", *sets, f"output={folder}/near", "top_k=6")
    assert ended.code == 0, ended.stderr
    return folder / "near"


def synth_args(world: World, teacher: DemoTeacher, output: Path) -> list[str]:
    return [
        f"input={world.tars}",
        f"output={output}",
        f"neighbours={world.root}/neighbours",
        f"holdout={world.root}/holdout.parquet",
        f"teacher.base_url={teacher.base_url}",
        "teacher.model=demo-teacher",
    ]


def train_args(samples: Path, base: Path, output: Path) -> list[str]:
    return [
        f"input={samples}",
        f"model={base}",
        f"output={output}",
        "batch_size=16",
        "learning_rate=1e-3",
        "temperature=0.05",
        "max_tokens=32",
        "save_every=2",
        "lora.rank=4",
        "lora.alpha=8",
        "lora.targets=all",
    ]


def command(job: str, *args: str) -> list[str]:
    return [sys.executable, "-m", f"rayjobs.{job.replace('-', '_')}", *args]


def run_job(
    job: str, *args: str, env: dict[str, str] | None = None, timeout_s: float = 240, before: Sequence[str] = ()
) -> Ended:
    """Run a job as a user would, to its end; `before` is a command that runs it."""
    done = subprocess.run(
        [*before, *command(job, *args)], capture_output=True, text=True, timeout=timeout_s, env=os.environ | (env or {})
    )
    lines = done.stdout.strip().splitlines()
    summary = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Ended(done.returncode, summary, done.stdout, done.stderr)


def kill_when(
    job: str,
    *args: str,
    ready: Callable[[], bool],
    timeout_s: float = 180,
    driver_only: bool = False,
    every_s: float = 0.05,
) -> None:
    """Start a job and SIGKILL it, with Ray and its workers or alone, once `ready`; fails if it ends before."""
    with subprocess.Popen(
        command(job, *args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        wait_for(process, ready, timeout_s=timeout_s, every_s=every_s)
        if driver_only:
            process.kill()
            process.wait()
        else:
            kill_with_children(process)


def kill_with_children(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a process and all that it has started."""
    kill_tree(process.pid)
    process.wait(timeout=60)


def kill_tree(pid: int) -> None:
    found = psutil.Process(pid)
    for process in [found, *found.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # a child may end with its parent
            process.kill()


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A cluster of a head and another node, both on this machine."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": 200 << 20})
    cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
    cluster.wait_for_nodes()
    try:
        yield cluster
    finally:
        cluster.shutdown()


def other_raylet(cluster: Any) -> int:
    """The process of the node that is not the head."""
    (node,) = cluster.worker_nodes
    return int(next(process.process.pid for process in node.all_processes["raylet"]))


def workers_of(pid: int, name: str) -> list[psutil.Process]:
    """Processes of Ray below a process whose title has `name`."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(child.cmdline()):
                found.append(child)
    return found


def wait_for(
    process: subprocess.Popen[Any], ready: Callable[[], bool], *, timeout_s: float = 180, every_s: float = 0.05
) -> None:
    """Until `ready`; fails if the process ends before."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert process.poll() is None, f"the job ended with {process.returncode} before its time"
        assert time.monotonic() < deadline, f"not ready in {timeout_s} s"
        time.sleep(every_s)


def adds_up(folder: Path) -> dict[str, Any]:
    """The counters of a finished folder, after checking them against what lies on disk."""
    manifest = json.loads((folder / "_manifest.json").read_text())
    counters: dict[str, Any] = manifest["counters"]
    assert counters["read"] == counters["kept"] + sum(counters["refused"].values()) + counters["pending"]
    quarantine = pq.read_table(folder / "_quarantine").to_pylist()
    assert len(quarantine) == sum(counters["refused"].values())
    return counters


def read_parts(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(file).to_pylist()]


def _write(file: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), file)
