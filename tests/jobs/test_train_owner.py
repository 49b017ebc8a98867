"""Workers that outlive a killed driver must not write into the folder of the next run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mme5core.ownership import OWNER, check_owner
from rayjobs.train.job import _absolute


def test_a_worker_goes_on_only_while_the_folder_is_its_own_runs(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text("first")
    check_owner(tmp_path, "first")
    (tmp_path / OWNER).write_text("second")
    with pytest.raises(RuntimeError, match="another run"):
        check_owner(tmp_path, "first")
    (tmp_path / OWNER).unlink()  # the next run has finished and cleared its work
    with pytest.raises(RuntimeError, match="another run"):
        check_owner(tmp_path, "first")


def test_checkpoints_named_by_a_relative_path_lie_where_the_job_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _absolute("kept/here") == str(tmp_path / "kept" / "here")
    assert _absolute("s3://bucket/run") == "s3://bucket/run" and _absolute(None) is None
