"""`mine` refuses what does not fit before it starts, in one line that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mme5core.errors import InputError
from rayjobs.command.load import load_config as load_verb
from rayjobs.mine.config import MineConfig
from rayjobs.mine.job import run
from tests.core.mining.vectors_on_disk import write
from tests.jobs.every_job import every_job


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["rules=[mm-embed]"], "unknown rule 'mm-embed'; known: mme5, unime-v2"),
        (["rules=[nv-retriever]"], "rule 'nv-retriever' refers to each query's positive: positives= is needed"),
        (["relative_margin=0.1"], "positives= is needed"),
        (["relative_margin=0.1", "positives="], "positives= is needed"),
        (["min_score=nan"], "min_score must be a finite number, got nan"),
        (["pool=same"], "pool=same needs pool_column="),
        (["pool_column=dataset", "pool=same"], "queries: no column 'dataset', which pool_column names"),
        (["rules=[mme5]"], "rule 'mme5' begins at rank 70, and there are only 2 candidates of different contents"),
        (["min_rank=5", "max_rank=3"], "max_rank=3 is below min_rank=5"),
        (["positives=ONE"], "has no columns query_id and candidate_id or id and positive_id"),
        (["candidates=OTHER_MODEL"], "are vectors of different models"),
        (["candidates=NARROW"], "queries are vectors of width 8 and candidates of 4"),
        (["candidates=TWICE"], "candidates: two have the id 'a'"),
        (["candidates=NOTHING"], "no such file"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(more: list[str], message: str, tmp_path: Path) -> None:
    ones = np.ones((2, 8), np.float32)
    places = {
        "ONE": write(tmp_path / "q", ["a", "b"], ones, num_files=1, model="one"),
        "OTHER_MODEL": write(tmp_path / "o", ["a", "b"], ones, num_files=1, model="two"),
        "NARROW": write(tmp_path / "n", ["a", "b"], ones[:, :4], num_files=1),
        "TWICE": write(tmp_path / "t", ["a", "a"], ones, num_files=1),
        "NOTHING": str(tmp_path / "nothing"),
    }
    more = ["queries=ONE", "candidates=ONE", *more]
    for name, place in places.items():
        more = [argument.replace(f"={name}", f"={place}") for argument in more]
    config = load_verb(every_job()["mine"], "", None, [*more, f"output={tmp_path / 'out'}"])
    assert isinstance(config, MineConfig)
    with pytest.raises(InputError) as caught:
        run(config)  # before it starts Ray
    assert message in str(caught.value) and "\n" not in str(caught.value)
