"""What `corpus.scan`, `corpus.contents` and `synthesis.neighbour_pairs` do with keys, done by DuckDB instead.

Only `benchmarks.out_of_core` uses it: to compare the two in time, memory, disk and lines.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from mme5core.corpus.contents import Contents, _number
from mme5core.corpus.index import DUPLICATES
from mme5core.corpus.out_of_core import new_array, save_array

ROWS_AT_ONCE = 1 << 17

# The number of each usable row, its shard and its key; `key::UUID` because DuckDB keeps 16 bytes of BLOB on the heap.
_ROWS = """
    SELECT start + file_row_number AS row, file_index AS shard, {column} AS key
    FROM read_parquet(getvariable('files'), file_row_number = true) JOIN shards USING (file_index)
    WHERE {name} IS NOT NULL
"""
_FIRSTS = "SELECT key, min(row) AS first, min(shard) AS shard FROM usable GROUP BY key"
_OF_ROWS = {
    "group": """
        SELECT row, content FROM usable
        JOIN (SELECT key, row_number() OVER (ORDER BY first) - 1 AS content FROM firsts) USING (key)
    """,
    "window": """
        SELECT row, dense_rank() OVER (ORDER BY first) - 1 AS content
        FROM (SELECT row, min(row) OVER (PARTITION BY key) AS first FROM usable)
    """,
}
_DUPLICATES = {
    "group": """
        SELECT row FROM usable
        JOIN (SELECT key, min(row) AS first FROM usable GROUP BY key HAVING count(*) > 1) USING (key)
        WHERE row > first ORDER BY row
    """,
    "window": """
        SELECT row FROM usable QUALIFY row_number() OVER (PARTITION BY key ORDER BY row) > 1 ORDER BY row
    """,
}
_PAIRS = """
    SELECT q.row AS query, p.rank, p.source, p.score, p.{candidate} AS id, c.row AS row
    FROM read_parquet(getvariable('pairs')) p
    JOIN usable q ON p.{query} = q.key
    JOIN usable c ON p.{candidate} = c.key
    WHERE q.row != c.row
"""
_STEPS = {
    "keys": "SELECT key, row FROM usable",
    "halves": """
        SELECT q.row AS query, p.rank, p.source, p.score, p.{candidate} AS id
        FROM read_parquet(getvariable('pairs')) p JOIN keys q ON p.{query} = q.key
    """,
    "found": "SELECT h.*, c.row AS row FROM halves h JOIN keys c ON h.id = c.key WHERE h.query != c.row",
}
"""The same, one operation at a time: a memory limit is for all operations of a query together."""


@contextlib.contextmanager
def opened(
    index: Path, starts: np.ndarray, temp: Path, *, memory_limit: str, threads: int, ordered: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB over the index's files; `temp` holds what its memory does not, and is gone afterwards.

    Args:
        starts: [shards + 1], the numbers of each shard's first row.
        ordered: keep rows that no ORDER BY orders in the order of the files.
    """
    shutil.rmtree(temp, ignore_errors=True)  # of a run that was killed
    numbers = [shard for shard in range(len(starts) - 1) if starts[shard + 1] > starts[shard]]
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory_limit,
        "threads": threads,
        "temp_directory": str(temp),
        "preserve_insertion_order": ordered,
    }
    with duckdb.connect(config=config) as connection:
        connection.execute("SET enable_progress_bar = false")  # it is written to stdout, a pipe too
        connection.execute("SET VARIABLE files = $1", [[str(index / f"{number:06d}.parquet") for number in numbers]])
        shards = pa.table({"file_index": np.arange(len(numbers)).astype(np.uint64), "start": starts[numbers]})
        connection.register("shards", shards)
        yield connection
    shutil.rmtree(temp, ignore_errors=True)


def number_contents(
    connection: duckdb.DuckDBPyConnection, index: Path, shard_starts: np.ndarray, folder: Path, *, how: str
) -> Contents:
    """`corpus.contents.number_contents`; `how` is "group", "window", "first", or "ordered".

    "ordered": DuckDB sorts the result. "first": it finds the first of equal rows, and our own pass numbers them.
    """
    _create_usable(connection, "key", index)
    if how == "first":
        return _number_in_numpy(connection, shard_starts, folder)
    # A table of its own, so that the numbers and the starts come of one grouping.
    connection.execute(f"CREATE TEMP TABLE firsts AS {_FIRSTS}")
    of_rows = new_array(folder / "contents", int(shard_starts[-1]))
    of_rows[:] = -1
    if how == "ordered":
        copy = folder / "contents.parquet"
        connection.execute(f"COPY ({_OF_ROWS['group']} ORDER BY row) TO '{copy}' (FORMAT parquet)")
        rows = connection.sql(f"SELECT row, content FROM read_parquet('{copy}')")
    else:
        rows = connection.sql(_OF_ROWS[how])
    for batch in rows.to_arrow_reader(ROWS_AT_ONCE):
        of_rows[batch.column("row").to_numpy()] = batch.column("content").to_numpy()
    of_rows.flush()
    counts = connection.sql("SELECT shard, count(*) AS n FROM firsts GROUP BY shard").to_arrow_table()
    return _saved(counts, shard_starts, folder)


def _number_in_numpy(connection: duckdb.DuckDBPyConnection, shard_starts: np.ndarray, folder: Path) -> Contents:
    mapped = new_array(folder / "first_of_content", int(shard_starts[-1]))
    first = mapped[: int(shard_starts[-1])]
    first[:] = -1
    rows = connection.sql(
        "SELECT row, first FROM usable JOIN (SELECT key, min(row) AS first FROM usable GROUP BY key) USING (key)"
    )
    for batch in rows.to_arrow_reader(ROWS_AT_ONCE):
        first[batch.column("row").to_numpy()] = batch.column("first").to_numpy()
    save_array(folder / "contents.npy", _number(first, shard_starts, folder / "contents"))
    (folder / "first_of_content").unlink()
    return Contents(folder / "contents", np.load(folder / "contents.npy"))


def _saved(counts: pa.Table, shard_starts: np.ndarray, folder: Path) -> Contents:
    starts = np.zeros(len(shard_starts), np.int64)
    filled = np.flatnonzero(np.diff(shard_starts))  # file_index counts the shards that have rows
    starts[1 + filled[counts["shard"].to_numpy()]] = counts["n"].to_numpy()
    save_array(folder / "contents.npy", np.cumsum(starts))
    return Contents(folder / "contents", np.load(folder / "contents.npy"))


def find_duplicates(connection: duckdb.DuckDBPyConnection, index: Path, *, how: str) -> None:
    """`corpus.scan.find_duplicates`; `how` is "group" or "window"."""
    _create_usable(connection, "id_key", None)
    # Not execute(): without preserve_insertion_order, what 2.0.0 gives to Arrow is out of order in spite of ORDER BY.
    save_array(index / DUPLICATES, connection.sql(_DUPLICATES[how]).to_arrow_table()["row"].to_numpy())


def join_pairs(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], index: Path, out: Path, *, key: str, how: str
) -> None:
    """`synthesis.neighbour_pairs.join_pairs` as one file; `key`: the index's column that the pairs name, id or id_key.

    `how` is "query" or, each as a table of its own, "steps", both by query, rank and source; or "unordered".
    """
    _create_usable(connection, key, index)
    connection.execute("SET VARIABLE pairs = $1", [[str(file) for file in files]])
    side = "id" if key == "id" else "key"
    names = {"query": f"query_{side}", "candidate": f"candidate_{side}"}
    query = _PAIRS.format(**names)
    if how == "steps":
        for table, query in _STEPS.items():
            connection.execute(f"CREATE TEMP TABLE {table} AS {query.format(**names)}")
        connection.execute("DROP TABLE keys; DROP TABLE halves")
        query = "SELECT * FROM found"
    order = "" if how == "unordered" else "ORDER BY query, rank, source"
    connection.execute(f"COPY ({query} {order}) TO '{out}' (FORMAT parquet)")


def _create_usable(connection: duckdb.DuckDBPyConnection, name: str, index: Path | None) -> None:
    """The view `usable`; `index` names the folder of the duplicates to leave out."""
    # The pairs' keys stay as they are: what joins must be of one type.
    rows = _ROWS.format(name="id_key" if name == "id" else name, column=_column(name, is_joined=index is not None))
    if index is not None:
        connection.register("duplicates", pa.table({"row": np.load(index / DUPLICATES)}))
        rows = f"SELECT * FROM ({rows}) ANTI JOIN duplicates USING (row)"
    connection.execute(f"CREATE TEMP VIEW usable AS {rows}")


def _column(name: str, *, is_joined: bool) -> str:
    return name if name == "id" or (name == "id_key" and is_joined) else f"{name}::UUID"
