"""The folder that a job writes: parts, quarantine, manifest, _SUCCESS, and what a resumed run needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.durable import write_json
from mme5core.errors import FAILED, InputError, WorkFailed
from mme5core.file_entries import describe, has_file
from mme5core.ownership import Owner, check_owner, is_locked_by_old_version, is_owned, is_owned_now
from mme5core.schemas import QUARANTINE
from mme5core.storage import without_credentials
from mme5core.types import Rejected
from rayjobs.command.config import JobConfig, fingerprint, row_keys
from rayjobs.command.outcome import Outcome
from rayjobs.folder.files import MANIFEST, QUARANTINE_FOLDER, SUCCESS, WORK
from rayjobs.folder.run import Run
from rayjobs.folder.versions import versions

ROWS_AT_ONCE = 1 << 16
LONGEST_DETAIL = 500  # characters in the quarantine
_COMMIT = re.compile(r"@[0-9a-f]{40}$")
"""What the identity of a model on the hub ends in; earlier versions left it out."""


def job_folder(
    job: str, config: JobConfig, identities: dict[str, str], files: Mapping[str, str] | None = None
) -> JobFolder:
    """The folder of a job with this configuration, which reads what has these identities."""
    run = Run(
        job, config.model_dump(), fingerprint(config, **identities), row_keys(config), identities, dict(files or {})
    )
    without_commits = {name: _COMMIT.sub("", identity) for name, identity in identities.items()}
    formerly = replace(run, identities=without_commits, fingerprint=fingerprint(config, **without_commits))
    return JobFolder(config.output, run, formerly=formerly if formerly != run else None)


class JobFolder:
    """One job's output. Everything in it appears by rename, and `_SUCCESS` last.

    Args:
        formerly: the run as earlier versions knew it, whose folders are gone on with as they are.
    """

    def __init__(self, path: str | os.PathLike[str], run: Run, *, formerly: Run | None = None) -> None:
        self.path = Path(path)
        self.run = run
        self._formerly = formerly
        self._owner: Owner | None = None

    def __enter__(self) -> JobFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def work(self) -> Path:
        return self.path / WORK

    @property
    def owner(self) -> str:
        """The token of this run, with which its workers learn whether another run has taken over."""
        assert self._owner is not None, "the folder is not open"
        return self._owner.token

    def open(self) -> dict[str, Any] | None:
        """Take the folder for this run, new or resumed. Returns the manifest if the job is already done.

        Raises:
            InputError: the folder belongs to another run, holds something else, or is being written.
        """
        started, manifest = self._earlier()
        if manifest and self._is_finished():
            return manifest
        if not (started or manifest) and (self.work / "run.json").is_file():
            shutil.rmtree(self.work)  # begun and refused at once: there is nothing to keep
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to output {str(self.path)!r}: {error.strerror}") from None
        self._owner = Owner.take(self.work)
        if is_locked_by_old_version(self.work):
            self.close()
            raise is_owned(self.work)
        if self._is_finished() and (self.path / MANIFEST).is_file():  # by another run, since we looked
            self.close()
            shutil.rmtree(self.work, ignore_errors=True)
            return self.open()
        if not started:
            write_json(self.work / "run.json", self.run.as_json())
        return None

    def close(self) -> None:
        """Let another run have the folder."""
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    def is_begun(self) -> bool:
        """Whether an earlier run has left something with which this one would go on.

        Raises:
            InputError: as `open`.
        """
        return any(self._earlier())

    def state(self) -> str:
        """A line that says what a run would meet in the folder; nothing is changed.

        Raises:
            InputError: as `open`.
        """
        started, manifest = self._earlier()
        if manifest and self._is_finished():
            return "finished already: a run would say so and do nothing"
        if not (started or manifest):
            return "new"
        if is_owned_now(self.work):
            raise is_owned(self.work)
        counters = manifest.get("counters")
        if not counters:
            return "begun by an earlier run, which was stopped: the same command goes on"
        refused = sum(counters["refused"].values())
        done = f"{counters['kept']:,} {manifest['unit']} kept, {refused:,} refused and {counters['pending']:,} pending"
        return f"begun by an earlier run, which left {done}: the same command goes on"

    def counters(self) -> dict[str, Any]:
        """Those of the manifest that an earlier run has left; empty where it left none."""
        return dict(_read_json(self.path / MANIFEST).get("counters", {}))

    def take_parts(self, files: Mapping[str, Path]) -> None:
        """Make these files, by the names that they are to have, the parts of the job; one may have its name already."""
        self.check_owner()
        for old in self.path.glob("part-*.parquet"):
            if old.name not in files:
                old.unlink()
        for name, file in sorted(files.items()):
            file.rename(self.path / name)

    def write_quarantine(self, refused: Iterable[Rejected]) -> Counter[str]:
        """Write every refused input with its reason, in the order given; returns the count of each reason."""
        self.check_owner()
        folder = self.path / QUARANTINE_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        counts: Counter[str] = Counter()
        rows = iter(refused)
        staged = self.work / "quarantine.parquet"
        with pq.ParquetWriter(staged, QUARANTINE, compression="zstd") as writer:
            while group := list(islice(rows, ROWS_AT_ONCE)):
                counts.update(row.reason for row in group)
                records = [
                    {"id": row.id, "reason": row.reason, "detail": _short(without_credentials(row.detail))}
                    for row in group
                ]
                writer.write_table(pa.Table.from_pylist(records, QUARANTINE))
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
        """Write the manifest, and `_SUCCESS` if something was kept and nothing is pending; returns the counters.

        Args:
            described: the entries (`describe`) of parts that need not be read again for it.

        Raises:
            AssertionError: the counters do not add up, or a part is not as it was described, which would mean that
                rows were lost.
            WorkFailed: another run has taken the folder over.
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
        is_finished = pending == 0 and (num_kept > 0 or num_read == 0)
        manifest = self.run.as_json() | {
            "finished": is_finished,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
            "unit": unit,
            "counters": counters,
            "files": [
                known.get(str(file.relative_to(self.path))) or describe(file, self.path) for file in self._files()
            ],
        }
        self.check_owner()
        write_json(self.path / MANIFEST, manifest | (details or {}))
        if is_finished:
            (self.path / SUCCESS).touch()
            self.close()
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

    def _earlier(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What an earlier run said of itself when it began, and its manifest; empty where there is nothing of one."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output {str(self.path)!r} is not a folder")
        manifest = _read_json(self.path / MANIFEST)
        started = _read_json(self.work / "run.json")
        if self._formerly is not None and (manifest or started).get("fingerprint") == self._formerly.fingerprint:
            self.run, self._formerly = self._formerly, None
        if started and not manifest and started.get("fingerprint") != self.run.fingerprint and self._is_unworked():
            started = {}
        if earlier := manifest or started:
            self._check_same(earlier)
        if manifest and self._is_finished():
            self._check_whole(manifest)
        elif not earlier and self.path.is_dir() and any(f.name != WORK for f in self.path.iterdir()):
            raise InputError(f"output {str(self.path)!r} is not empty and is not a run of {self.run.job}")
        return started, manifest

    def _is_finished(self) -> bool:
        return (self.path / SUCCESS).exists()

    def _check_same(self, earlier: dict[str, Any]) -> None:
        if earlier.get("job") != self.run.job:
            raise InputError(f"output {str(self.path)!r} belongs to the job {earlier.get('job')!r}")
        if earlier.get("fingerprint") == self.run.fingerprint:
            return
        differences = "; ".join(self.run.differences(earlier)) or "fingerprints differ"
        is_empty = (
            "counters" in earlier and not earlier["counters"]["kept"] and not any(self.work.glob("batches/*.json"))
        )
        raise InputError(
            f"output {str(self.path)!r} holds a run of another configuration ({differences}): choose another output"
            + (", or remove this one, in which nothing was kept" if is_empty else "")
        )

    def _check_whole(self, manifest: dict[str, Any]) -> None:
        """A finished folder has the files of its manifest, of their sizes.

        Raises:
            InputError: naming the first that is not as it was.
        """
        for entry in manifest.get("files", []):
            if not has_file(self.path, entry):
                what = "has changed" if (self.path / entry["name"]).is_file() else "is gone"
                raise InputError(
                    f"output {str(self.path)!r} was finished, and since then {entry['name']} {what}: put it back, or "
                    "remove the folder to make it anew"
                )

    def check_owner(self) -> None:
        """
        Raises:
            WorkFailed: another run has taken the folder over, or this one has released it.
        """
        if self._owner is None:
            raise WorkFailed(f"{self.path}: not open")
        check_owner(self.work, self._owner.token)

    def _is_unworked(self) -> bool:
        """Whether an earlier run has left nothing that took work: no row, no checkpoint, no model; and is over."""
        if any(entry.name not in (WORK, "log") for entry in self.path.iterdir()) or (self.path / "log").is_dir():
            return False
        if (
            any(self.work.glob("index/*.pictures"))
            or any(self.work.glob("rows/*.arrow"))
            or any(self.work.glob("batches/*.json"))
            or any(self.work.glob("parts/report-*.json"))
        ):
            return False
        if any(f.stat().st_size for f in self.work.glob("answers/*.answers")):
            return False
        return not (is_owned_now(self.work) or is_locked_by_old_version(self.work))


def nothing_kept(
    counters: Mapping[str, Any],
    output: str,
    *,
    detail: str = "",
    code: int = FAILED,
    what: str = "nothing was kept",
) -> Outcome:
    """How a job ends that has refused all that it read.

    Args:
        detail: of one of the refused.
    """
    refused = sorted(counters["refused"].items(), key=lambda entry: (-entry[1], entry[0]))
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in refused)
    example = f" ({_short(detail)})" if detail else ""
    return Outcome(dict(counters), code, f"{what}: {reasons}{example}; see {output}/{QUARANTINE_FOLDER}")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_DETAIL else f"{text[: LONGEST_DETAIL - 4]} ..."


def _read_json(file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    return record
