"""`synth` against a bare loop over the `openai` client: the same calls to the same demo teacher, told to take 200 ms.

    python -m benchmarks.synthesis

128 calls in flight. Ideal is N x latency / calls in flight; the job's rate is that between a tenth and nine tenths of
its answers, as its start-up is the same for any N. Then memory, what faults cost in calls, and what becomes of wrong
drafts.
"""

from __future__ import annotations

import asyncio
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import openai
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.asking.request import Sampling
from mme5core.demo.annotations import find_font, load_emoji
from mme5core.demo.corpus import Corpus, write_corpus
from mme5core.demo.teacher import MODEL, DemoTeacher, Entry, Faults, Knowledge
from mme5core.images import load_rgb
from mme5core.readers import read_rows
from mme5core.synthesis.plan import PlanSettings, plan_image
from mme5core.synthesis.question import build_request
from rayjobs.folder.versions import versions

LATENCY_S, IN_FLIGHT, NUM_WORKERS = 0.2, 128, 2
NUM_CALLS, NUM_PICTURES = 6_000, 1_200


def serve(corpus: Path, faults: Faults, ready: Any) -> None:
    """The teacher, in a process of its own; tells its address, and then what it has served whenever it is asked."""
    entries, pictures = [], []
    by_key = {row.id: row.image for tar in sorted(corpus.glob("*.tar")) for row in read_rows(tar) if row.image}
    known = json.loads((corpus / "known.json").read_text())
    for key, (subgroup, names, keywords) in known.items():
        entries.append(Entry(key, subgroup, names, keywords))
        pictures.append(load_rgb(by_key[key]))
    with DemoTeacher(Knowledge(entries, pictures), faults) as server:
        ready.send(server.base_url)
        while ready.recv():
            ready.send((server.served.requests, sum(server.served.answered.values())))


class Server:
    """The demo teacher beside us."""

    def __init__(self, corpus: Path, faults: Faults) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(corpus, faults, theirs), daemon=True)
        self._process.start()
        self.base_url: str = self._pipe.recv()

    @property
    def served(self) -> tuple[int, int]:
        """Requests, and answers with 200."""
        self._pipe.send(True)
        counts: tuple[int, int] = self._pipe.recv()
        return counts

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def write_pictures(folder: Path, count: int) -> None:
    """A corpus of emoji, and beside it what a teacher must know of them."""
    for item in write_corpus(folder, load_emoji()[:count], find_font()):
        if isinstance(item, Corpus):
            corpus = item
    known = {
        p.key: (p.emoji.subgroup, p.emoji.names, {k: list(v) for k, v in p.emoji.keywords.items()})
        for p in corpus.pictures
    }
    (folder / "known.json").write_text(json.dumps(known))


def bare_loop(base_url: str, corpus: Path) -> float:
    """Calls per second of the client alone: requests of one picture each, built before."""
    rows = [row for tar in sorted(corpus.glob("*.tar")) for row in read_rows(tar) if row.image][:200]
    settings = PlanSettings(samples_per_image=1, tasks={"vqa": 1.0}, languages=["en"])
    requests = [
        build_request(plan, {row.id: row.image or b""}, num_negatives=1).body(MODEL, Sampling())
        for row in rows
        for plan in plan_image(row.id, settings)
    ]

    async def run() -> float:
        client = openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(number: int) -> None:
            async with slots:
                await client.chat.completions.create(**requests[number % len(requests)] | {"seed": number})

        await asyncio.gather(*(one(n) for n in range(IN_FLIGHT)))  # connections are made
        started = time.perf_counter()
        await asyncio.gather(*(one(n) for n in range(NUM_CALLS // 2)))
        elapsed_s = time.perf_counter() - started
        await client.close()
        return NUM_CALLS / 2 / elapsed_s

    return asyncio.run(run())


def job(args: list[str], output: Path, *, with_memory: bool = False) -> tuple[dict[str, Any], float, int]:
    """(summary, answers per second between the first tenth and the last, peak of the sum of PSS in bytes)."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    seen: list[tuple[float, int]] = []
    peak = 0
    command = [sys.executable, "-m", "rayjobs.synth", *args, f"output={output}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)

    def watch() -> None:
        nonlocal peak
        read: dict[Path, tuple[int, int]] = {}  # bytes and lines: what is there now is not read again
        while process.poll() is None:
            for file in output.glob("_work/answers/*.answers"):
                offset, lines = read.get(file, (0, 0))
                with file.open("rb") as stream:
                    stream.seek(offset)
                    new = stream.read()
                read[file] = offset + len(new), lines + new.count(b"\n")
            count = sum(lines for _, lines in read.values())
            if count and (not seen or count != seen[-1][1]):
                seen.append((time.perf_counter(), count))
            if with_memory:
                peak = max(peak, _pss(process.pid))
            time.sleep(2.0 if with_memory else 0.25)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    summary = json.loads(out.splitlines()[-1])
    assert summary["code"] == 0, summary
    last = seen[-1][1]
    middle = [(when, count) for when, count in seen if 0.1 * last <= count <= 0.9 * last]
    if len(middle) < 2:
        return summary, float("nan"), peak
    (start_s, first), (end_s, final) = middle[0], middle[-1]
    return summary, (final - first) / (end_s - start_s), peak


def _pss(pid: int) -> int:
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, FileNotFoundError):
            continue
    return total


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root / "corpus", NUM_PICTURES)
        common = [
            f"input={root}/corpus/*.tar",
            f"teacher.model={MODEL}",
            f"teacher.concurrency={IN_FLIGHT // NUM_WORKERS}",
            f"num_workers={NUM_WORKERS}",
            "languages=[en]",
            "tasks={vqa: 1}",
        ]
        figures: dict[str, Any] = {"in_flight": IN_FLIGHT, "latency_s": LATENCY_S, "versions": versions()}
        with Server(root / "corpus", Faults(delay_s=LATENCY_S)) as server:
            bare = [bare_loop(server.base_url, root / "corpus")]
            per_image = NUM_CALLS // NUM_PICTURES
            args = [*common, f"teacher.base_url={server.base_url}", f"samples_per_image={per_image}"]
            summary, rate, _ = job(args, root / "speed")
            bare.append(bare_loop(server.base_url, root / "corpus"))
            figures["speed"] = {
                "calls": summary["counters"]["calls"],
                "over_bare_loop": round(rate / max(bare), 3),
                "over_ideal": round(rate * LATENCY_S / IN_FLIGHT, 3),
                "bare_over_ideal": round(max(bare) * LATENCY_S / IN_FLIGHT, 3),
            }
            print(json.dumps(figures), flush=True)
        figures["memory"] = memory(root, common)
        print(json.dumps(figures["memory"]), flush=True)
        figures["faults"] = faults(root, common)
        figures["self_evaluation"] = self_evaluation(root, common)
        print(json.dumps(figures), flush=True)


def memory(root: Path, common: list[str]) -> list[dict[str, Any]]:
    """Peak of the job as the input grows sixteenfold, and as the samples of the same pictures do."""
    write_copies(root / "corpus", root / "copies", 16)
    figures = []
    with Server(root / "corpus", Faults()) as server:
        for name, per_image in (("corpus", 1), ("copies", 1), ("corpus", 16)):
            args = [*common, f"input={root}/{name}/*.tar"]
            args += [f"teacher.base_url={server.base_url}", f"samples_per_image={per_image}"]
            summary, _, peak = job(args, root / f"memory-{name}{per_image}", with_memory=True)
            counters = summary["counters"]
            samples = counters["read"] - counters["refused"].get("failed_to_download", 0)
            figures.append({"pictures": samples // per_image, "samples": samples, "peak_mb": peak >> 20})
    return figures


def write_copies(corpus: Path, folder: Path, count: int) -> None:
    """Every picture so many times, each time with other bytes behind its own: more pictures, which look the same."""
    folder.mkdir()
    for tar in sorted(corpus.glob("*.tar")):
        rows = [(row.id, row.image) for row in read_rows(tar) if row.image]
        for copy in range(count):
            with tarfile.open(folder / f"{copy:02d}-{tar.name}", "w") as out:
                for image_id, data in rows:
                    member = tarfile.TarInfo(f"{copy:02d}{image_id}.{'png' if data[1:4] == b'PNG' else 'jpg'}")
                    member.size = len(data) + 1
                    out.addfile(member, io.BytesIO(data + bytes([copy])))


def faults(root: Path, common: list[str]) -> dict[str, Any]:
    """10 % 429, 5 % 500, 3 % cut off, 2 % malformed: what each input comes to, and the calls that it took."""
    with Server(root / "corpus", Faults(rate_429=0.1, rate_500=0.05, rate_cut_off=0.03, rate_malformed=0.02)) as server:
        summary, _, _ = job([*common, f"teacher.base_url={server.base_url}"], root / "faults")
        requests, _ = server.served
    counters = summary["counters"]
    planned = counters["read"] - counters["refused"].get("failed_to_download", 0)
    assert counters["pending"] == 0
    return {
        "inputs": planned,
        "kept": counters["kept"],
        "refused": counters["refused"],
        "calls_per_input": round(requests / planned, 3),
    }


def self_evaluation(root: Path, common: list[str]) -> dict[str, Any]:
    """A teacher wrong at 0.4 in its drafts and at 0.1 in its revisions: the share of wrong samples that come out."""
    draft, revision = 0.4, 0.1
    with Server(root / "corpus", Faults(rate_wrong_draft=draft, rate_wrong_revision=revision)) as server:
        job([*common, f"teacher.base_url={server.base_url}"], root / "wrong")
    table = pa.concat_tables(pq.read_table(file) for file in (root / "wrong").glob("part-*.parquet"))
    rows = table.select(["query", "positive", "raw"]).to_pylist()
    wrong = sum((row["positive"]["text"] or "").startswith("wrong ") for row in rows)
    wrong_drafts = sum(json.loads(row["raw"])["draft"]["positive"].startswith("wrong ") for row in rows)
    error = 1.96 * (revision * (1 - revision) / len(rows)) ** 0.5
    return {
        "n": len(rows),
        "wrong_drafts": round(wrong_drafts / len(rows), 3),
        "wrong_kept": round(wrong / len(rows), 3),
        "expected": [round(revision - error, 3), round(revision + error, 3)],
    }


if __name__ == "__main__":
    main()
