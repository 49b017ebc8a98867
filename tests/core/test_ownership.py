"""One run per folder: who may take it, when, and how a run that lost it learns so."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mme5core import ownership
from mme5core.errors import InputError, WorkFailed
from mme5core.ownership import (
    OWNER,
    Holder,
    Owner,
    check_owner,
    is_locked_by_old_version,
    is_owned_now,
    read_holder,
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "_work"
    folder.mkdir(parents=True)
    return folder


def put(work: Path, holder: Holder, *, silent_s: float = 0.0) -> None:
    (work / OWNER).write_text(json.dumps(asdict(holder)))
    beat = (work / OWNER).stat().st_mtime - silent_s
    os.utime(work / OWNER, (beat, beat))


def elsewhere(**changes: object) -> Holder:
    return replace(Holder.this_process(), machine="another one", host="far", **changes)  # type: ignore[arg-type]


def test_a_folder_has_one_owner_until_it_is_released(work: Path) -> None:
    owner = Owner.take(work)
    check_owner(work, owner.token)
    assert is_owned_now(work)
    with pytest.raises(InputError, match=r"out' is being written by another run"):
        Owner.take(work)
    owner.release()
    assert not is_owned_now(work) and list(work.iterdir()) == []
    Owner.take(work).release()


def test_a_process_that_was_killed_on_this_machine_is_replaced_at_once(work: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from mme5core.ownership import Owner\n"
        "Owner.take(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(work)], check=False)
    killed = read_holder(work)
    assert killed is not None and not is_owned_now(work)
    owner = Owner.take(work, silent_s=60.0)
    with pytest.raises(WorkFailed, match="another run of this folder has taken over"):
        check_owner(work, killed.token)
    owner.release()


def test_a_number_that_another_process_has_by_now_is_no_sign_of_life(work: Path) -> None:
    put(work, replace(Holder.this_process(), started="1"))
    Owner.take(work, silent_s=60.0).release()


def test_an_owner_on_another_machine_is_replaced_once_it_is_silent_for_long(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(work, elsewhere(), silent_s=100.0)
    assert not is_owned_now(work)
    Owner.take(work, silent_s=50.0).release()
    assert capsys.readouterr().err == ""
    put(work, elsewhere())
    Owner.take(work, silent_s=0.3).release()
    assert "a run on far may be alive; waiting" in capsys.readouterr().err


def test_an_owner_on_another_machine_whose_heart_beats_keeps_the_folder(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(work, elsewhere(), silent_s=20.0)
    assert is_owned_now(work)
    monkeypatch.setattr(ownership.time, "sleep", lambda _: os.utime(work / OWNER))
    with pytest.raises(InputError, match="being written by another run"):
        Owner.take(work, silent_s=30.0)


def test_the_heart_beats(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_S", 0.02)
    owner = Owner.take(work)
    os.utime(work / OWNER, (1, 1))
    for _ in range(200):
        if (work / OWNER).stat().st_mtime > 1:
            break
        ownership.time.sleep(0.02)
    assert (work / OWNER).stat().st_mtime > 1
    owner.release()


def test_a_run_that_was_replaced_neither_beats_for_the_next_nor_releases_it(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "BEAT_S", 0.02)
    owner = Owner.take(work)
    other = elsewhere(token="other")
    put(work, other, silent_s=100.0)
    beat = (work / OWNER).stat().st_mtime
    ownership.time.sleep(0.2)
    owner.release()
    assert read_holder(work) == other and (work / OWNER).stat().st_mtime == beat
    with pytest.raises(WorkFailed):
        check_owner(work, owner.token)


def test_a_token_that_a_full_disk_cut_off_is_no_owner_for_ever(work: Path) -> None:
    (work / OWNER).write_text('{"token": "ab')
    os.utime(work / OWNER, (1, 1))
    Owner.take(work).release()


def test_a_worker_stops_where_the_work_folder_is_gone(work: Path) -> None:
    owner = Owner.take(work)
    (work / OWNER).unlink()
    with pytest.raises(WorkFailed):
        check_owner(work, owner.token)
    owner.release()


def test_where_a_process_of_this_machine_cannot_be_looked_at_its_heartbeat_decides(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_started", lambda pid: None)  # no /proc, or one without other users' processes
    put(work, Holder.this_process())
    assert is_owned_now(work)
    monkeypatch.setattr(ownership.time, "sleep", lambda _: os.utime(work / OWNER))
    with pytest.raises(InputError, match="being written by another run"):
        Owner.take(work)
    put(work, Holder.this_process(), silent_s=100.0)
    Owner.take(work).release()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    put(work, replace(Holder.this_process(), pid=dead.pid))
    Owner.take(work, silent_s=60.0).release()


def test_the_heartbeat_of_a_run_that_waited_begins_when_it_takes_the_folder(work: Path) -> None:
    put(work, elsewhere())
    owner = Owner.take(work, silent_s=1.5)
    token_written = (work / OWNER).stat().st_mtime
    assert ownership.time.time() - token_written < 1.0
    owner.release()


def test_a_run_of_the_first_version_that_holds_its_lock_is_seen(work: Path) -> None:
    assert not is_locked_by_old_version(work)
    (work / "lock").touch()
    assert not is_locked_by_old_version(work)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_locked_by_old_version(work)
