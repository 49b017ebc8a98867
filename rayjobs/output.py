"""The folder that a job writes: parts, quarantine, manifest, _SUCCESS, and what a resumed run needs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.schemas import QUARANTINE
from mme5core.storage import without_credentials
from mme5core.types import Rejected
from rayjobs.config import ConfigError, JobConfig, fingerprint, row_keys
from rayjobs.external import sort_tables

MANIFEST, SUCCESS, WORK, QUARANTINE_FOLDER = "_manifest.json", "_SUCCESS", "_work", "_quarantine"
ROWS_AT_ONCE = 1 << 16
MAX_FILES_KEPT = 10_000
VERSIONED = ("mme5", "ray", "torch", "transformers", "peft", "deepspeed", "pyarrow", "pillow", "openai")


@dataclass(frozen=True, slots=True)
class Run:
    """What a run is: the job, its effective configuration, and what it reads.

    `fingerprint` covers what changes rows; `keys` are those settings, and `files` the identities of the input's files
    by name, kept to say what differs.
    """

    job: str
    config: dict[str, Any]
    fingerprint: str
    keys: dict[str, Any]
    identities: dict[str, str]
    files: Mapping[str, str] = field(default_factory=dict)


def job_folder(
    job: str, config: JobConfig, identities: dict[str, str], files: Mapping[str, str] | None = None
) -> JobFolder:
    """The folder of a job with this configuration, which reads what has these identities."""
    print_ = fingerprint(config, **identities)
    return JobFolder(
        config.output, Run(job, config.model_dump(), print_, row_keys(config), identities, dict(files or {}))
    )


class JobFolder:
    """One job's output. Everything in it appears by rename, and `_SUCCESS` last."""

    def __init__(self, path: str | os.PathLike[str], run: Run) -> None:
        self.path = Path(path)
        self.run = run
        self._lock: IO[str] | None = None

    @property
    def work(self) -> Path:
        return self.path / WORK

    def open(self) -> dict[str, Any] | None:
        """Take the folder for this run, new or resumed. Returns the manifest if the job is already done.

        Raises:
            ConfigError: the folder belongs to another run, holds something else, or is being written.
        """
        started, manifest = self._earlier()
        if manifest and self._is_finished():
            return manifest
        if not (started or manifest) and (self.work / "run.json").is_file():
            shutil.rmtree(self.work)  # begun and refused at once: there is nothing to keep
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to output {str(self.path)!r}: {error.strerror}") from None
        self._take_lock()
        if self._is_finished() and (self.path / MANIFEST).is_file():  # by another run, since we looked
            shutil.rmtree(self.work, ignore_errors=True)
            self._lock = None
            return self.open()
        if not started:
            write_json(self.work / "run.json", self._identity())
        return None

    def is_begun(self) -> bool:
        """Whether an earlier run has left something with which this one would go on.

        Raises:
            ConfigError: as `open`.
        """
        return any(self._earlier())

    def look(self) -> str:
        """A line that says what a run would find in the folder; nothing is changed.

        Raises:
            ConfigError: as `open`.
        """
        started, manifest = self._earlier()
        if manifest and self._is_finished():
            return "finished already: a run would say so and do nothing"
        if not (started or manifest):
            return "new"
        if self._is_locked():
            raise self._is_being_written()
        counters = manifest.get("counters")
        if not counters:
            return "begun by an earlier run, which was stopped: the same command goes on"
        refused = sum(counters["refused"].values())
        done = f"{counters['kept']:,} {manifest['unit']} kept, {refused:,} refused and {counters['pending']:,} pending"
        return f"begun by an earlier run, which left {done}: the same command goes on"

    def counters(self) -> dict[str, Any]:
        """Those of the manifest that an earlier run has left; empty where it left none."""
        return dict(self._read_json(self.path / MANIFEST).get("counters", {}))

    def _earlier(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What an earlier run said of itself when it began, and its manifest; empty where there is nothing of one."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output {str(self.path)!r} is not a folder")
        manifest = self._read_json(self.path / MANIFEST)
        started = self._read_json(self.work / "run.json")
        if started and not manifest and started.get("fingerprint") != self.run.fingerprint and self._is_unworked():
            started = {}
        if earlier := manifest or started:
            self._check_same(earlier)
        if manifest and self._is_finished():
            self._check_whole(manifest)
        elif not earlier and self.path.is_dir() and any(f.name != WORK for f in self.path.iterdir()):
            raise ConfigError(f"output {str(self.path)!r} is not empty and is not a run of {self.run.job}")
        return started, manifest

    def _is_finished(self) -> bool:
        return (self.path / SUCCESS).exists()

    def write_parts(self, tables: Iterable[pa.Table], schema: pa.Schema, *, rows_per_file: int) -> int:
        """Write all rows as part-00000.parquet, ...; returns how many. Parts of an earlier try are replaced."""
        staged = self.stage()
        num_rows = 0
        for index, table in enumerate(of_size((table.cast(schema) for table in tables), rows_per_file, schema)):
            pq.write_table(table, staged / part_name(index), compression="zstd")
            num_rows += table.num_rows
        self.take_parts(parts_in(staged))
        return num_rows

    def take_parts(self, files: Mapping[str, Path]) -> None:
        """Make these files, by the names that they are to have, the parts of the job; one may have it already."""
        for old in self.path.glob("part-*.parquet"):
            if old.name not in files:
                old.unlink()
        for name, file in sorted(files.items()):
            file.rename(self.path / name)

    def write_quarantine(self, refused: Iterable[Rejected]) -> Counter[str]:
        """Write every refused input with its reason; returns the count of each reason."""
        folder = self.path / QUARANTINE_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        counts: Counter[str] = Counter()

        def tables() -> Iterator[pa.Table]:
            rows = ({"id": r.id, "reason": r.reason, "detail": without_credentials(r.detail)} for r in refused)
            while group := list(islice(rows, ROWS_AT_ONCE)):
                counts.update(row["reason"] for row in group)
                yield pa.Table.from_pylist(group, QUARANTINE)

        staged = self.work / "quarantine.parquet"
        with pq.ParquetWriter(staged, QUARANTINE, compression="zstd") as writer:
            for table in sort_tables(tables(), self.work / "quarantine", by=("id", "reason")):
                writer.write_table(table)
        staged.rename(folder / "part-00000.parquet")
        return counts

    def finish(
        self,
        *,
        unit: str,
        num_read: int,
        num_kept: int,
        refused: Counter[str],
        pending: int,
        extra_counters: dict[str, Any] | None = None,
        details: dict[str, Any] | None = None,
        described: Iterable[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        """Write the manifest, and `_SUCCESS` if nothing is pending; returns the counters.

        Args:
            described: the entries (`describe`) of parts that need not be read again for it.

        Raises:
            AssertionError: the counters do not add up, or a part is not as it was described, which would mean that
                rows were lost.
        """
        counters: dict[str, Any] = {
            "read": num_read,
            "kept": num_kept,
            "refused": dict(sorted(refused.items())),
            "pending": pending,
        } | (extra_counters or {})
        if num_read != num_kept + sum(refused.values()) + pending:
            raise AssertionError(f"rows do not add up: {counters}")
        known = {entry["name"]: entry for entry in described}
        if changed := [name for name, entry in known.items() if not has_file(self.path, entry)]:
            raise AssertionError(f"not as they were written: {', '.join(changed[:3])}")
        manifest = self._identity() | {
            "finished": pending == 0,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
            "unit": unit,
            "counters": counters,
            "files": [
                known.get(str(file.relative_to(self.path))) or describe(file, self.path) for file in self._files()
            ],
        }
        write_json(self.path / MANIFEST, manifest | (details or {}))
        if pending == 0:
            (self.path / SUCCESS).touch()
            # What is left of the work is only needed to resume, and nothing is left to resume.
            shutil.rmtree(self.work, ignore_errors=True)
        return counters

    def _files(self) -> list[Path]:
        skipped = {MANIFEST, SUCCESS, WORK, "checkpoints", "log"}
        return [
            file
            for file in sorted(self.path.rglob("*"))
            if file.is_file() and file.relative_to(self.path).parts[0] not in skipped
        ]

    def _identity(self) -> dict[str, Any]:
        return {
            "job": self.run.job,
            "fingerprint": self.run.fingerprint,
            "identities": self.run.identities,
            "input_files": dict(self.run.files) if len(self.run.files) <= MAX_FILES_KEPT else {},
            "keys": json.loads(json.dumps(self.run.keys, default=str)),
            "config": json.loads(without_credentials(json.dumps(self.run.config, default=str))),
        }

    def _check_same(self, earlier: dict[str, Any]) -> None:
        if earlier.get("job") != self.run.job:
            raise ConfigError(f"output {str(self.path)!r} belongs to the job {earlier.get('job')!r}")
        if earlier.get("fingerprint") == self.run.fingerprint:
            return
        now = self._identity()
        differing = [
            f"{key}: {earlier[group].get(key)!r} there, {now[group].get(key)!r} here"
            for group in ("identities", "keys")
            for key in sorted(now[group].keys() | earlier.get(group, {}).keys())
            if earlier.get(group, {}).get(key) != now[group].get(key)
        ]
        differing += _changes(earlier.get("input_files", {}), now["input_files"])
        is_empty = (
            "counters" in earlier and not earlier["counters"]["kept"] and not any(self.work.glob("batches/*.json"))
        )
        raise ConfigError(
            f"output {str(self.path)!r} holds a run of another configuration "
            f"({'; '.join(differing) or 'fingerprints differ'}): choose another output"
            + (", or remove this one, in which nothing was kept" if is_empty else "")
        )

    def _check_whole(self, manifest: dict[str, Any]) -> None:
        """A finished folder has the files of its manifest, of their sizes.

        Raises:
            ConfigError: naming the first that is not as it was.
        """
        for entry in manifest.get("files", []):
            if not has_file(self.path, entry):
                what = "has changed" if (self.path / entry["name"]).is_file() else "is gone"
                raise ConfigError(
                    f"output {str(self.path)!r} was finished, and since then {entry['name']} {what}: put it back, or "
                    "remove the folder to make it anew"
                )

    def _is_unworked(self) -> bool:
        """Whether an earlier run has left nothing that took work: no row, no checkpoint, no model; and is over."""
        if any(entry.name not in (WORK, "log") for entry in self.path.iterdir()) or (self.path / "log").is_dir():
            return False
        if any(self.work.glob("rows/*.arrow")) or any(self.work.glob("batches/*.json")):
            return False
        if any(f.stat().st_size for f in self.work.glob("answers/*.answers")):
            return False
        return self._is_locked() is False

    def _is_locked(self) -> bool | None:
        """Whether another run is writing the folder; None: that cannot be known."""
        try:
            with (self.work / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError) as error:
            return isinstance(error, BlockingIOError)
        except OSError:  # a file system without locks
            return None
        return False

    def _is_being_written(self) -> ConfigError:
        return ConfigError(f"output {str(self.path)!r} is being written by another run")

    def _take_lock(self) -> None:
        # Held by the process: gone with it however it ends, so that a killed run leaves nothing to clean up.
        self._lock = (self.work / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._is_being_written() from None
        except OSError:
            pass  # a file system without locks

    def stage(self) -> Path:
        staged = self.work / "staged"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        return staged

    @staticmethod
    def _read_json(file: Path) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, json.JSONDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read ({error})") from None
        return value


def _changes(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What a person would say of two sets of files, three of each kind at most."""
    if not earlier or not now or list(earlier.items()) == list(now.items()):
        return []
    kinds = {
        "changed": [name for name in now if name in earlier and now[name] != earlier[name]],
        "new": [name for name in now if name not in earlier],
        "gone": [name for name in earlier if name not in now],
    }
    found = [
        f"{kind} in the input: {', '.join(names[:3])}" + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
        for kind, names in kinds.items()
        if names
    ]
    return found or ["the input's files are in another order"]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that rows depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(file: Path, root: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file, and its rows if it has rows."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    entry: dict[str, Any] = {
        "name": str(file.relative_to(root)),
        "bytes": file.stat().st_size,
        "sha256": digest.hexdigest(),
    }
    if file.suffix == ".parquet":
        entry["rows"] = pq.read_metadata(file).num_rows
    return entry


def parts_in(folder: Path) -> dict[str, Path]:
    """The parts in a folder by their names."""
    return {file.name: file for file in folder.glob("part-*.parquet")}


def has_file(root: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file that was described (`describe`) is below `root`, of its size."""
    try:
        return (root / entry["name"]).stat().st_size == int(entry["bytes"])
    except FileNotFoundError:
        return False


def sync_file(file: Path) -> None:
    """Wait until a file is on the disk, or with the server of a shared one."""
    sync(os.open(file, os.O_RDONLY))


def sync(descriptor: int) -> None:
    """`sync_file` of an open file; closes the descriptor."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(file: Path, value: Any) -> None:
    """Write by rename: a reader sees the old file or the new one."""
    # Named by chance: processes of two machines may have one number.
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with temporary.open("w") as stream:
        stream.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def of_size(tables: Iterable[pa.Table], rows: int, schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` each (the last may have fewer); one empty table if there are none."""
    waiting = [schema.empty_table()]
    num_waiting = num_given = 0
    for table in tables:
        waiting.append(table)
        num_waiting += table.num_rows
        while num_waiting >= rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, rows).combine_chunks()
            num_given += 1
            waiting = [whole.slice(rows)]
            num_waiting -= rows
    if num_waiting or not num_given:
        yield pa.concat_tables(waiting).combine_chunks()
