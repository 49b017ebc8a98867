"""An export's folder appears whole or not at all, and says what it lacks."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mme5core.errors import InputError
from mme5core.types import Rejected
from rayjobs.folder.staged import exported, staged_folder

REASONS = ["too_few", "no_candidate", "too_few"]
REFUSED = [Rejected(name, reason, "1 of 2") for name, reason in zip("abc", REASONS, strict=True)]


def test_a_whole_export_appears_with_its_quarantine(tmp_path: Path) -> None:
    with staged_folder(str(tmp_path / "out")) as staged:
        (staged / "data").write_text("x")
        assert not (tmp_path / "out").exists()
        outcome = exported(staged, num_read=5, num_kept=2, refused=REFUSED)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert pq.read_table(tmp_path / "out" / "_quarantine")["reason"].to_pylist() == REASONS
    assert outcome.counters == {"read": 5, "kept": 2, "refused": {"too_few": 2, "no_candidate": 1}, "pending": 0}
    assert "3 samples are left out: too_few 2, no_candidate 1; the first, a: 1 of 2" in outcome.reason


@pytest.mark.parametrize("refused", [REFUSED, []])
def test_an_export_of_nothing_leaves_no_folder(refused: list[Rejected], tmp_path: Path) -> None:
    with staged_folder(str(tmp_path / "out")) as staged:
        outcome = exported(staged, num_read=3, num_kept=0, refused=refused)
    assert outcome.code == 2 and "nothing to export" in outcome.reason and not list(tmp_path.iterdir())


def test_what_is_raised_leaves_no_folder_and_an_output_that_is_there_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), staged_folder(str(tmp_path / "out")) as staged:
        (staged / "half").write_text("x")
        raise OSError("full")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="is there already"), staged_folder(str(tmp_path / "out")):
        pass
    with pytest.raises(InputError, match="'output' is required"), staged_folder(""):
        pass
    assert (tmp_path / "out").is_dir()
