"""Workers that outlive a killed driver must not write into the folder of the next run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayjobs.train_files import OWNER, check_owner


def test_a_worker_goes_on_only_while_the_folder_is_its_own_runs(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text("first")
    check_owner(tmp_path, "first")
    (tmp_path / OWNER).write_text("second")
    with pytest.raises(RuntimeError, match="another run"):
        check_owner(tmp_path, "first")
    (tmp_path / OWNER).unlink()  # the next run has finished and cleared its work
    with pytest.raises(RuntimeError, match="another run"):
        check_owner(tmp_path, "first")
