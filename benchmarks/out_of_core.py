"""Whether DuckDB should do what our code does with keys on disk: equal contents, equal ids, the neighbours' join.

    python -m benchmarks.out_of_core [--quick] [--folder /big/disk]

Both sides read the same index, and both results are compared with what the index was made of. The sides take turns,
each run in a process of its own, whose time and processor time are counted without its imports. Memory is the peak of
that process, imports and mapped files included (`peak_mb`), and without mapped files (`anonymous_mb`); the disk is what
its folder holds at most, beside the index and the pairs. Needs `pip install duckdb`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.keyed_index import NUM_SHARDS, PAIRS_PER_ROW, SAME_CONTENT, SAME_ID, prepare, starts_of, sum_of
from mme5core.corpus.contents import number_contents
from mme5core.corpus.index import DUPLICATES, Index
from mme5core.corpus.out_of_core import KeyTable, keys_of, write_table
from mme5core.corpus.scan import find_duplicates
from mme5core.synthesis.neighbour_pairs import _ORDER, ROWS_PER_RUN, join_pairs
from mme5core.tasks import run_here
from rayjobs.folder.versions import versions

NUM_ROWS = 10_000_000
RESULTS = Path(__file__).parent / "results"
ROUNDS, POLL_S = 3, 0.02
THREADS = 2
SIDES = {
    "duplicates": ["window 512MB", "window 1GB"],
    "contents": ["group 512MB", "group 1GB", "first 512MB"],
    "join_keys": ["steps 512MB", "steps 1GB"],
    "join_ids": ["steps 512MB", "steps 1GB"],
}
ONCE = {
    "duplicates": ["window 256MB", "group 512MB", "group 1GB"],
    "contents": ["first 256MB", "group 256MB", "window 256MB", "window 512MB", "window 1GB", "ordered 1GB"],
    "join_keys": ["query 512MB", "query 1GB", "query 512MB, 1 thread", "steps 256MB", "unordered 512MB"],
}
"""DuckDB's ways of a task, with their memory limits: those that take turns with ours, and those run once beside it."""

Work = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Side:
    """One way to do a task: ours, or DuckDB's with a memory limit and a query."""

    name: str
    memory_limit: str = ""
    how: str = ""
    threads: int = THREADS

    @classmethod
    def of(cls, name: str) -> Side:
        """DuckDB's, from its name: "window 512MB", "query 512MB, 1 thread"."""
        how, memory_limit = name.partition(",")[0].split()
        return cls(name, memory_limit, how, 1 if name.endswith("1 thread") else THREADS)


def open_index(folder: Path, num_rows: int) -> Index:
    return Index([Path(f"/corpus/{n:05d}.tar") for n in range(NUM_SHARDS)], folder, starts_of(num_rows), num_rows)


def ours(task: str, run: Path, work: Path, num_rows: int) -> Work:
    """The task as a job does it, in one process and one thread."""
    index = open_index(run / "index", num_rows)
    if task == "contents":
        return lambda: void(number_contents(index, run))
    if task == "duplicates":
        return lambda: find_duplicates(index.folder, index.starts)

    def usable_keys() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows, table in index.tables(["id_key"], usable=True):
            yield rows, keys_of(table["id_key"])

    def join() -> None:
        keys = KeyTable.write(usable_keys(), num_rows, run / "keys")
        if task == "join_ids":
            join_pairs(sorted((work / "pairs_id").iterdir()), keys, run / "pairs", run_here)
        else:
            join_by_key(sorted((work / "pairs_key").iterdir()), keys, run / "pairs")

    return join


def join_by_key(files: Sequence[Path], keys: KeyTable, folder: Path) -> None:
    """`join_pairs` of pairs that hold keys, so that no id is hashed."""
    folder.mkdir()
    waiting: list[pa.Table] = []
    num_runs = 0

    def write_run() -> None:
        nonlocal num_runs
        write_table(pa.concat_tables(waiting).sort_by(_ORDER), folder / f"{num_runs:06d}.arrow")
        waiting.clear()
        num_runs += 1

    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(1 << 16):
            query, row = (keys.rows_of(keys_of(batch.column(f"{side}_key"))) for side in ("query", "candidate"))
            places = np.flatnonzero((query >= 0) & (row >= 0) & (query != row))
            chosen = pa.table(batch).take(pa.array(places))
            columns = {name: chosen[name] for name in ("rank", "source", "score")} | {"id": chosen["candidate_key"]}
            waiting.append(pa.table({"query": query[places], **columns, "row": row[places]}))
            if sum(map(len, waiting)) >= ROWS_PER_RUN:
                write_run()
    if waiting:
        write_run()


def void(_: object) -> None:
    """For a result that lies in files."""


def in_duckdb(task: str, side: Side, run: Path, work: Path, num_rows: int) -> Work:
    """The task as DuckDB does it."""
    from benchmarks import duckdb_contents

    folder, starts = run / "index", starts_of(num_rows)

    def do() -> None:
        with duckdb_contents.opened(
            folder, starts, run / "duckdb", memory_limit=side.memory_limit, threads=side.threads
        ) as connection:
            if task == "contents":
                duckdb_contents.number_contents(connection, folder, starts, run, how=side.how)
            elif task == "duplicates":
                duckdb_contents.find_duplicates(connection, folder, how=side.how)
            else:
                key = "id" if task == "join_ids" else "id_key"
                files = sorted((work / f"pairs_{key.removeprefix('id_')}").iterdir())
                out = run / "pairs.parquet"
                duckdb_contents.join_pairs(connection, files, folder, out, key=key, how=side.how)

    return do


def check(task: str, run: Path, work: Path, *, ordered: bool = True) -> None:
    """That the result is the expected one, to the row.

    Raises:
        AssertionError: it is not.
    """
    if task == "duplicates":
        assert np.array_equal(np.load(run / "index" / DUPLICATES), np.load(work / "expected-duplicates.npy"))
    elif task == "contents":
        assert np.array_equal(np.load(run / "contents.npy"), np.load(work / "expected-starts.npy"))
        assert np.array_equal(np.fromfile(run / "contents", np.int64), np.load(work / "expected-contents.npy"))
    else:
        count, total = 0, 0
        for query, row, rank in _pairs_of(run):
            count, total = count + len(query), total + sum_of(query, row, rank)
            assert not ordered or (np.diff(query * 16 + rank) >= 0).all()
        assert [count, total % 2**64] == json.loads((work / "expected-pairs.json").read_text())


def _pairs_of(run: Path) -> Iterator[tuple[np.ndarray, ...]]:
    names = ["query", "row", "rank"]
    if (run / "pairs.parquet").is_file():
        for batch in pq.ParquetFile(run / "pairs.parquet").iter_batches(1 << 20, columns=names):
            yield tuple(batch.column(name).to_numpy() for name in names)
        return
    for file in sorted((run / "pairs").iterdir()):
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        yield tuple(table[name].to_numpy() for name in names)


def in_process(task: str, side: Side, run: Path, work: Path, num_rows: int, results: Any) -> None:
    """Tells "ready", then the figures of the task without the imports."""
    if side.memory_limit:
        import duckdb  # noqa: F401
    do = in_duckdb(task, side, run, work, num_rows) if side.memory_limit else ours(task, run, work, num_rows)
    before_mb = memory_mb("self", "VmRSS")
    results.put("ready")
    started, cpu = time.perf_counter(), time.process_time()
    try:
        do()
    except Exception as error:
        results.put({"failed": str(error).splitlines()[0][:200]})
        return
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    figures = {"wall_s": round(seconds, 2), "cpu_s": round(cpu, 2), "peak_mb": memory_mb("self", "VmHWM")}
    results.put(figures | {"imports_mb": before_mb})


def memory_mb(process: int | str, name: str) -> int:
    """MiB of a process: VmRSS, VmHWM (its peak, with the mapped files) or RssAnon (without them); 0 if it is gone."""
    try:
        match = re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0
    return int(match[1]) >> 10 if match else 0


def new_run(work: Path, task: str) -> Path:
    """A folder with the index in it; the duplicates too, where the task comes after them."""
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    (run / "index").mkdir(parents=True)
    for file in (work / "index").iterdir():
        (run / "index" / file.name).hardlink_to(file)
    if task != "duplicates":
        shutil.copy(work / "expected-duplicates.npy", run / "index" / DUPLICATES)
    return run


def measure(task: str, side: Side, work: Path, num_rows: int) -> dict[str, Any]:
    """One run, checked; `disk_mb` is its peak of files beside what it was given, `result_mb` what is left."""
    run = new_run(work, task)
    given = files_mb(run)
    process, results = start(task, side, run, work, num_rows)
    peak, anonymous_mb = given, 0
    while results.empty() and process.is_alive():
        peak, anonymous_mb = max(peak, files_mb(run)), max(anonymous_mb, memory_mb(process.pid, "RssAnon"))
        time.sleep(POLL_S)
    figures: dict[str, Any] = results.get(timeout=30)
    process.join()
    if "failed" not in figures:
        check(task, run, work, ordered=side.how != "unordered")
        figures |= {"anonymous_mb": anonymous_mb}
        figures |= {"disk_mb": round(peak - given), "result_mb": round(files_mb(run) - given)}
    return figures


def start(task: str, side: Side, run: Path, work: Path, num_rows: int) -> tuple[Any, Any]:
    """The process, when its imports are done, and the queue in which it tells its figures."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=in_process, args=(task, side, run, work, num_rows, results))
    process.start()
    assert results.get() == "ready"
    return process, results


def files_mb(folder: Path) -> float:
    """MiB of disk that the files of a folder take."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks
            except FileNotFoundError:
                continue
    return total * 512 / 2**20


def after_a_kill(side: Side, work: Path, num_rows: int, after_s: float) -> dict[str, Any]:
    """SIGKILL in the middle of numbering contents, then the same again in the same folder.

    `left` are the files that lie there after the kill, `never_cleaned` those after the second run that are no result.
    """
    run = new_run(work, "contents")
    given, files_given = files_mb(run), names_below(run)
    process, _ = start("contents", side, run, work, num_rows)
    time.sleep(after_s)
    was_alive = process.is_alive()
    process.kill()
    process.join()
    left, left_mb = names_below(run) - files_given, files_mb(run) - given
    process, results = start("contents", side, run, work, num_rows)
    figures = results.get()
    process.join()
    check("contents", run, work)
    return {
        "killed_after_s": round(after_s, 1),
        "was_running": was_alive,
        "left_files": len(left),
        "left_mb": round(left_mb),
        "second_run_s": figures["wall_s"],
        "never_cleaned": sorted(names_below(run) - files_given - {"contents", "contents.npy"}),
    }


def names_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure; a side that failed has none."""
    if any("failed" in run for run in runs):
        return {"failed": next(run["failed"] for run in runs if "failed" in run)}
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def compare(task: str, sides: Sequence[Side], work: Path, num_rows: int, rounds: int) -> dict[str, Any]:
    """Each side's runs and medians, and the medians over ours, which is the first."""
    runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            if any("failed" in run for run in runs[side.name]):
                continue  # it will fail again
            runs[side.name].append(measure(task, side, work, num_rows))
            print(f"{task} {side.name}: {json.dumps(runs[side.name][-1])}", flush=True)
    middle = {name: medians(records) for name, records in runs.items()}
    base = middle[sides[0].name]
    ratios = {
        name: {
            what: round(median[what] / base[what], 2)
            for what in ("wall_s", "cpu_s", "peak_mb", "disk_mb")
            if base[what]
        }
        for name, median in list(middle.items())[1:]
        if "failed" not in median
    }
    return {"runs": runs, "medians": middle, "over_ours": ratios}


def import_seconds(statement: str) -> float:
    """The best of five in new processes, less an empty one."""

    def best(code: str) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code)
            times.append(time.perf_counter() - started)
        return min(times)

    return round(best(statement) - best("pass"), 3)


def package_mb(name: str) -> float:
    files = [Path(str(file.locate())) for file in metadata.files(name) or []]
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 2**20, 1)


def report(work: Path, num_rows: int, rounds: int) -> dict[str, Any]:
    prepare(work, num_rows)
    tasks = {
        task: compare(task, [Side("ours"), *map(Side.of, sides)], work, num_rows, rounds)
        for task, sides in SIDES.items()
    }
    once = {
        task: compare(task, [Side("ours"), *map(Side.of, sides)], work, num_rows, 1)["runs"]
        for task, sides in ONCE.items()
    }
    middle = tasks["contents"]["medians"]
    killed = {
        name: after_a_kill(Side.of(name) if name != "ours" else Side(name), work, num_rows, middle[name]["wall_s"] / 2)
        for name in ("ours", SIDES["contents"][0], SIDES["contents"][1])
    }
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
        "versions": versions() | {name: metadata.version(name) for name in ("numpy", "duckdb")},
        "n": num_rows,
        "pairs": PAIRS_PER_ROW * num_rows,
        "shards": NUM_SHARDS,
        "share_of_rows_with_an_earlier_content": SAME_CONTENT,
        "share_of_rows_with_an_earlier_id": SAME_ID,
        "index_mb": round(files_mb(work / "index")),
        "pairs_mb": {key: round(files_mb(work / f"pairs_{key}")) for key in ("id", "key")},
        "threads": {"ours": 1, "duckdb": THREADS},
        "tasks": tasks,
        "once": once,
        "after_sigkill": killed,
        "duckdb_installed_mb": package_mb("duckdb"),
        "import_s": {
            "duckdb": import_seconds("import duckdb"),
            "rayjobs.external": import_seconds("import rayjobs.external"),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one round, no file of results")
    parser.add_argument("--folder", type=Path, help="where to work; needs about 5 GB")
    arguments = parser.parse_args()
    num_rows, rounds = (NUM_ROWS // 10, 1) if arguments.quick else (NUM_ROWS, ROUNDS)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = report(Path(folder), num_rows, rounds)
    if arguments.quick:
        print(json.dumps({task: median["over_ours"] for task, median in figures["tasks"].items()}))
    else:
        file = RESULTS / f"{figures['date']}-out-of-core.json"
        file.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"written to {file}", file=sys.stderr)


if __name__ == "__main__":
    main()
