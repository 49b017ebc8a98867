"""The folder that a job writes: what is in it, whose it is, and what a killed run leaves."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.errors import InputError, WorkFailed
from mme5core.file_entries import describe
from mme5core.ownership import OWNER, Owner
from mme5core.parts import part_name
from mme5core.schemas import QUARANTINE
from mme5core.tables import of_size
from mme5core.types import Rejected
from rayjobs.folder import JobFolder, Run, job_folder, nothing_kept
from rayjobs.train.config import TrainConfig

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.int64())])


def folder_of(path: Path, *, job: str = "synth", seed: int = 0, source: str = "aaaa") -> JobFolder:
    keys = {"seed": seed, "limit": None}
    return JobFolder(path, Run(job, {"seed": seed, "output": str(path)}, f"{seed}-{source}", keys, {"input": source}))


def tables(*sizes: int) -> Iterator[pa.Table]:
    """Rows 0, 1, 2, ... in tables of these sizes."""
    start = 0
    for size in sizes:
        numbers = list(range(start, start + size))
        yield pa.table({"id": [f"r{n}" for n in numbers], "value": numbers}, schema=SCHEMA)
        start += size


def write_parts(folder: JobFolder, tables: Iterable[pa.Table], schema: pa.Schema, *, rows_per_file: int) -> int:
    """All rows as parts, by the way that jobs take: files in the work folder, then `take_parts`."""
    staged = folder.work / "staged"
    staged.mkdir(exist_ok=True)
    files = {}
    for number, table in enumerate(of_size((table.cast(schema) for table in tables), rows_per_file, schema)):
        files[part_name(number)] = staged / f"{number}.parquet"
        pq.write_table(table, files[part_name(number)])
    folder.take_parts(files)
    return sum(pq.read_metadata(folder.path / name).num_rows for name in files)


def finish(folder: JobFolder, *, num_kept: int, refused: Counter[str] | None = None, pending: int = 0) -> Any:
    refused = refused or Counter()
    num_read = num_kept + sum(refused.values()) + pending
    return folder.finish(unit="rows", num_read=num_read, num_kept=num_kept, refused=refused, pending=pending)


def manifest_of(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / "_manifest.json").read_text())
    return manifest


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((3, 4, 3), [4, 4, 2]), ((11,), [4, 4, 3]), ((4, 4), [4, 4]), ((1, 0, 2), [3]), ((0,), [0]), ((), [0])],
)
def test_parts_have_the_size_asked_for_and_the_rows_in_their_order(
    tmp_path: Path, sizes: tuple[int, ...], expected: list[int]
) -> None:
    folder = folder_of(tmp_path / "out")
    folder.open()
    assert write_parts(folder, tables(*sizes), SCHEMA, rows_per_file=4) == sum(sizes)
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert [part.name for part in parts] == [f"part-{n:05d}.parquet" for n in range(len(expected))]
    assert [pq.read_metadata(part).num_rows for part in parts] == expected
    read = pa.concat_tables([pq.read_table(part) for part in parts])
    assert read.schema.equals(SCHEMA)
    assert read["value"].to_pylist() == list(range(sum(sizes)))


def test_parts_of_an_earlier_try_are_replaced(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.open()
    write_parts(folder, tables(9), SCHEMA, rows_per_file=2)
    write_parts(folder, tables(5), SCHEMA, rows_per_file=4)
    parts = sorted((tmp_path / "out").glob("part-*"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [4, 1]


def test_the_quarantine_holds_every_refused_input_and_is_counted_by_reason(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.open()
    refused = [Rejected("c", "broken"), Rejected("a", "broken", "cut off"), Rejected("b", "empty"), Rejected("a", "x")]
    assert folder.write_quarantine(refused) == {"broken": 2, "empty": 1, "x": 1}
    table = pq.read_table(tmp_path / "out" / "_quarantine")
    assert table.schema.equals(QUARANTINE)
    assert [(row["id"], row["reason"], row["detail"]) for row in table.to_pylist()] == [
        ("c", "broken", ""),
        ("a", "broken", "cut off"),
        ("b", "empty", ""),
        ("a", "x", ""),
    ]


def test_an_empty_quarantine_is_an_empty_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.open()
    assert folder.write_quarantine([]) == {}
    assert pq.read_table(tmp_path / "out" / "_quarantine").num_rows == 0


def test_the_manifest_says_what_lies_there(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out", seed=3)
    assert folder.open() is None
    num_kept = write_parts(folder, tables(5), SCHEMA, rows_per_file=3)
    refused = folder.write_quarantine([Rejected("z", "empty"), Rejected("y", "broken")])
    counters = finish(folder, num_kept=num_kept, refused=refused)
    manifest = manifest_of(tmp_path / "out")
    assert counters == manifest["counters"]
    assert counters == {"read": 7, "kept": 5, "refused": {"broken": 1, "empty": 1}, "pending": 0}
    assert (manifest["job"], manifest["unit"], manifest["fingerprint"]) == ("synth", "rows", "3-aaaa")
    assert manifest["config"]["seed"] == 3 and manifest["versions"]["pyarrow"] == pa.__version__
    rows = {"part-00000.parquet": 3, "part-00001.parquet": 2, "_quarantine/part-00000.parquet": 2}
    assert {file["name"]: file["rows"] for file in manifest["files"]} == rows
    for file in manifest["files"]:
        data = (tmp_path / "out" / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(("num_read", "pending"), [(6, 0), (8, 0), (7, 1)])
def test_counters_that_do_not_add_up_are_not_written(tmp_path: Path, num_read: int, pending: int) -> None:
    folder = folder_of(tmp_path / "out")
    folder.open()
    with pytest.raises(AssertionError, match="add up"):
        folder.finish(unit="rows", num_read=num_read, num_kept=5, refused=Counter(empty=2), pending=pending)
    assert not (tmp_path / "out" / "_manifest.json").exists()
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_success_comes_only_when_nothing_is_pending_and_then_the_work_is_gone(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "out")
    first.open()
    write_parts(first, tables(2), SCHEMA, rows_per_file=9)
    finish(first, num_kept=2, pending=1)
    assert not (tmp_path / "out" / "_SUCCESS").exists() and manifest_of(tmp_path / "out")["finished"] is False
    assert first.work.is_dir()
    first.close()
    second = folder_of(tmp_path / "out")
    assert second.open() is None
    write_parts(second, tables(3), SCHEMA, rows_per_file=9)
    finish(second, num_kept=3)
    assert (tmp_path / "out" / "_SUCCESS").exists() and manifest_of(tmp_path / "out")["finished"] is True
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["_SUCCESS", "_manifest.json", "part-00000.parquet"]


def test_a_run_that_keeps_nothing_leaves_manifest_and_quarantine_and_is_not_done(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.open()
    counts = folder.write_quarantine([Rejected("a", "empty_row", "x" * 2000), Rejected("b", "empty_row")])
    counters = finish(folder, num_kept=0, refused=counts)
    assert not (tmp_path / "out" / "_SUCCESS").exists() and not manifest_of(tmp_path / "out")["finished"]
    (quarantine,) = (tmp_path / "out" / "_quarantine").glob("*.parquet")
    details = pq.read_table(quarantine)["detail"].to_pylist()
    assert len(details[0]) == 500 and details[0].endswith("x ...") and details[1] == ""
    outcome = nothing_kept(counters, "out", detail="y" * 2000)
    assert outcome.code == 1 and outcome.reason.startswith("nothing was kept: empty_row 2 (yyy")
    assert len(outcome.reason) < 600 and outcome.reason.endswith("see out/_quarantine")
    folder.close()
    again = folder_of(tmp_path / "out")
    assert again.open() is None  # the same command looks again
    again.close()


def test_a_done_folder_opened_again_gives_its_manifest_and_stays_as_it_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.open()
    write_parts(folder, tables(2), SCHEMA, rows_per_file=9)
    finish(folder, num_kept=2)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    assert folder_of(tmp_path / "out").open() == manifest_of(tmp_path / "out")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    "work", [None, "rows/a.arrow", "parts/report-00000.json", "batches/a.json", "index/a.pictures"]
)
def test_a_run_of_another_configuration_is_refused_naming_what_differs(tmp_path: Path, work: str | None) -> None:
    first = folder_of(tmp_path / "out", seed=3)
    first.open()
    if work is None:
        finish(first, num_kept=0)
    else:
        (first.work / work).parent.mkdir()
        (first.work / work).touch()
    first.close()
    with pytest.raises(InputError) as caught:
        folder_of(tmp_path / "out", seed=4).open()
    assert "seed: 3 there, 4 here" in str(caught.value) and "limit" not in str(caught.value)
    with pytest.raises(InputError, match="input: 'aaaa' there, 'bbbb' here"):
        folder_of(tmp_path / "out", seed=3, source="bbbb").open()
    with pytest.raises(InputError, match="'synth'"):
        folder_of(tmp_path / "out", seed=3, job="train").open()


def test_a_run_that_was_refused_at_once_leaves_its_folder_to_the_corrected_one(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "out", seed=3)
    first.open()
    with pytest.raises(InputError, match="seed: 3 there, 4 here"):
        folder_of(tmp_path / "out", seed=4).open()  # it may still be at work
    first.close()
    second = folder_of(tmp_path / "out", seed=4)
    assert second.open() is None
    assert json.loads((second.work / "run.json").read_text())["keys"]["seed"] == 4


@pytest.mark.parametrize("foreign", ["holiday.jpg", "part-00000.parquet", "_SUCCESS"])
def test_a_folder_with_files_of_another_kind_is_refused_and_left_alone(tmp_path: Path, foreign: str) -> None:
    # Spark and Hadoop leave a _SUCCESS of their own.
    out = tmp_path / "out"
    out.mkdir()
    (out / foreign).write_text("not ours")
    with pytest.raises(InputError, match="not empty"):
        folder_of(out).open()
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [(foreign, "not ours")]


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="not a folder"):
        folder_of(tmp_path / "out").open()
    with pytest.raises(InputError, match="below"):
        folder_of(tmp_path / "out" / "below").open()


def test_an_empty_folder_that_exists_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert folder_of(tmp_path / "out").open() is None


def test_a_second_run_at_the_same_time_is_refused(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "out")
    first.open()
    for look in (JobFolder.open, JobFolder.state):
        with pytest.raises(InputError, match="is being written by another run"):
            look(folder_of(tmp_path / "out"))
    first.close()
    assert "which was stopped" in folder_of(tmp_path / "out").state()
    assert folder_of(tmp_path / "out").open() is None


def test_a_killed_run_leaves_a_folder_that_the_same_run_goes_on_with(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from rayjobs.folder import JobFolder, Run\n"
        f"path = Path({str(tmp_path / 'out')!r})\n"
        "folder = JobFolder(path, Run('synth', {}, '0-aaaa', {'seed': 0, 'limit': None}, {'input': 'aaaa'}))\n"
        "folder.open(); (folder.work / 'rows').mkdir(); (path / 'part-00007.parquet').touch()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == -9
    again = folder_of(tmp_path / "out")
    assert again.open() is None and (again.work / "rows").is_dir()
    write_parts(again, tables(3), SCHEMA, rows_per_file=9)
    finish(again, num_kept=3)
    assert [file["name"] for file in manifest_of(tmp_path / "out")["files"]] == ["part-00000.parquet"]


def test_a_changed_input_is_refused_with_the_files_that_changed(tmp_path: Path) -> None:
    def with_files(**files: str) -> JobFolder:
        print_ = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        run = Run("synth", {}, print_, {}, {"input": print_[:4]}, files)
        return JobFolder(tmp_path / "out", run)

    first = with_files(a="1", b="2", c="3")
    first.open()
    (first.work / "rows").mkdir()
    (first.work / "rows" / "x.arrow").touch()
    first.close()
    for now, said in (
        (
            {"a": "1", "b": "9", "d": "4", "e": "4", "f": "4", "g": "4"},
            "changed in the input: b; new in the input: d, e, f and 1 more; gone in the input: c",
        ),
        ({"b": "2", "a": "1", "c": "3"}, "the input's files are in another order"),
    ):
        with pytest.raises(InputError, match=said):
            with_files(**now).open()


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_a_finished_folder_that_has_lost_a_part_is_not_done(tmp_path: Path, harm: str) -> None:
    def folder() -> JobFolder:
        return JobFolder(tmp_path / "out", Run("synth", {}, "f", {}, {}))

    first = folder()
    first.open()
    schema = pa.schema([("id", pa.string())])
    write_parts(first, [pa.table({"id": ["a", "b", "c"]})], schema, rows_per_file=2)
    first.finish(unit="rows", num_read=3, num_kept=3, refused=Counter(), pending=0)
    assert folder().open()
    part = tmp_path / "out" / "part-00001.parquet"
    if harm == "gone":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes() + b" ")
    with pytest.raises(InputError, match=rf"part-00001.parquet (is|has) {harm}"):
        folder().open()


def test_a_part_that_is_not_as_it_was_described_does_not_pass(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.open()
    write_parts(folder, tables(3), SCHEMA, rows_per_file=9)
    entry = describe(folder.path / "part-00000.parquet", folder.path)
    counts: dict[str, Any] = {"unit": "rows", "num_read": 3, "num_kept": 3, "refused": Counter(), "pending": 0}
    for changed in ({"bytes": entry["bytes"] + 1}, {"name": "part-00001.parquet"}):
        with pytest.raises(AssertionError, match=r"not as they were written: part-0000\d.parquet"):
            folder.finish(**counts, described=[entry | changed])
    assert not (folder.path / "_SUCCESS").exists() and folder.work.is_dir()
    folder.finish(**counts, described=[entry])
    assert manifest_of(folder.path)["files"] == [entry]


def test_a_folder_that_another_run_finishes_just_now_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take, late = Owner.take, folder_of(tmp_path / "out")

    def take_after_the_other(work: Path) -> Owner:
        monkeypatch.setattr(Owner, "take", take)
        first = folder_of(tmp_path / "out")
        first.open()
        write_parts(first, tables(3), SCHEMA, rows_per_file=9)
        finish(first, num_kept=3)
        work.mkdir(exist_ok=True)
        return take(work)

    monkeypatch.setattr(Owner, "take", take_after_the_other)
    found = late.open()
    assert found and found["counters"]["kept"] == 3 and not late.work.exists()


@pytest.mark.parametrize("num_kept", [0, 3])
def test_a_folder_of_another_configuration_in_which_nothing_was_kept_may_go(num_kept: int, tmp_path: Path) -> None:
    first = folder_of(tmp_path / "out")
    first.open()
    finish(first, num_kept=num_kept, pending=2)
    with pytest.raises(InputError, match="choose another output") as error:
        folder_of(tmp_path / "out", seed=1).open()
    assert str(error.value).endswith("in which nothing was kept") == (num_kept == 0)
    (first.work / "batches").mkdir()
    (first.work / "batches" / "000000-a.json").touch()  # paid for, and with the server
    with pytest.raises(InputError, match=r"choose another output$"):
        folder_of(tmp_path / "out", seed=1).open()


def test_a_job_that_fails_lets_go_of_its_folder_in_the_same_process(tmp_path: Path) -> None:
    with pytest.raises(OSError), folder_of(tmp_path / "out") as first:
        first.open()
        raise OSError
    with pytest.raises(WorkFailed):
        first.write_quarantine([])
    with folder_of(tmp_path / "out") as again:
        assert again.open() is None


def test_a_run_that_was_replaced_writes_no_quarantine(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.open()
    owner = json.loads((folder.work / OWNER).read_text())
    (folder.work / OWNER).write_text(json.dumps(owner | {"token": "another"}))
    with pytest.raises(WorkFailed, match="another run of this folder has taken over"):
        folder.write_quarantine([Rejected("a", "broken_image")])
    assert not (tmp_path / "out" / "_quarantine").exists()


def test_a_folder_that_a_run_of_the_first_version_is_writing_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.work.mkdir(parents=True)
    with (folder.work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being written by another run"):
            folder.open()
    assert folder.open() is None


def test_a_folder_begun_before_commits_were_known_is_gone_on_with_as_it_is(tmp_path: Path) -> None:
    def folder(model: str) -> JobFolder:
        config = TrainConfig(input=["samples"], model="owner/name", output=str(tmp_path / "run"))
        return job_folder("train", config, {"input": "aaaa", "model": model})

    with folder("owner/name") as begun:
        begun.open()
        earlier = begun.run.fingerprint
        (tmp_path / "run" / "checkpoints").mkdir()
    with folder(f"owner/name@{'a' * 40}") as resumed:
        resumed.open()
        assert resumed.run.fingerprint == earlier and resumed.run.identities["model"] == "owner/name"
    with pytest.raises(InputError, match="another configuration"):
        folder(f"owner/other@{'a' * 40}").open()


def test_a_folder_of_another_commit_is_refused_with_both(tmp_path: Path) -> None:
    def folder(commit: str) -> JobFolder:
        config = TrainConfig(input=["samples"], model="owner/name", output=str(tmp_path / "run"))
        return job_folder("train", config, {"model": f"owner/name@{commit * 40}"})

    with folder("a") as begun:
        begun.open()
        (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(InputError, match=f"model: 'owner/name@{'a' * 40}' there, 'owner/name@{'b' * 40}' here"):
        folder("b").open()
