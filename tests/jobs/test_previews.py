"""--dry-run finds what can be known to be wrong without starting anything."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.asking.answer_log import ANSWERED, FAILED, AnswerWriter, Entry
from mme5core.asking.batch_record import BatchRecord, batch_folder
from mme5core.errors import InputError
from mme5core.schemas import NEIGHBOURS
from rayjobs.command.main import dry_run_text
from rayjobs.synth import preview
from rayjobs.synth.__main__ import JOB as SYNTH
from rayjobs.synth.config import SynthConfig
from rayjobs.synth.inputs import corpus_shards, synth_folder
from rayjobs.synth.preview import _neighbours_of
from rayjobs.train.__main__ import JOB as TRAIN
from rayjobs.train.config import TrainConfig
from tests.core.asking.server import NUM_PICTURES, write_pictures


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that passes for a model until it is loaded."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "mllama", "text_config": {"hidden_size": 8}}))
    for name in ("tokenizer.json", "preprocessor_config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def samples(folder: Path, count: int, **renamed: str) -> Path:
    content = {"text": "a", "image": None}
    row = {"id": "1", "query": content, "positive": content, "negatives": [content]}
    row |= {"instruction": "", "document_instruction": ""}
    named = {renamed.get(name, name): value for name, value in row.items()}
    pq.write_table(pa.Table.from_pylist([named] * count), folder / "samples.parquet")
    return folder / "samples.parquet"


def config(file: Path, model: Path, /, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"input": str(file), "model": str(model), "batch_size": 8} | changes)


def test_a_training_is_told_with_its_rows_and_steps(tmp_path: Path, model: Path) -> None:
    text = dry_run_text(TRAIN, "", config(samples(tmp_path, 40), model, num_epochs=2))
    assert "40 samples before any is refused; about 10 steps" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 64}, "batch_size=64 is larger than the data: 40 samples"),
        ({"num_workers": 9}, "batch_size=8 leaves some of num_workers=9 without a row"),
        ({"model": "/no/model"}, "no model at '/no/model'"),
        ({"loss": {"matryoshka_dims": [9]}}, "loss.matryoshka_dims: 9 does not fit vectors of width 8"),
    ],
)
def test_a_training_that_cannot_begin_is_refused(
    changes: dict[str, object], said: str, tmp_path: Path, model: Path
) -> None:
    with pytest.raises(InputError, match=said):
        dry_run_text(TRAIN, "", config(samples(tmp_path, 40), model, **changes))


def test_a_file_without_a_column_of_samples_is_named(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match=r"samples.parquet: no column 'positive'; it has id, query, pos, negatives"):
        dry_run_text(TRAIN, "", config(samples(tmp_path, 40, positive="pos"), model))


def synthesis(tmp_path: Path, **changes: object) -> SynthConfig:
    values = {"input": str(tmp_path / "pictures"), "output": str(tmp_path / "out"), "tasks": {"vqa": 1}} | changes
    return SynthConfig.model_validate(values | {"prices": {"prompt": 10.0, "completion": 50.0}})


def cost(text: str) -> tuple[int, float]:
    """Calls and money expected."""
    (line,) = [line for line in text.splitlines() if line.startswith("cost expected")]
    calls, money = re.findall(r"([\d,]+) calls.* about ([\d.,]+) USD", line)[0]
    return int(calls.replace(",", "")), float(money)


def test_a_synthesis_is_told_with_what_an_earlier_run_has_left_of_it(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    config = synthesis(tmp_path)
    text = dry_run_text(SYNTH, "", config)
    assert f"output {tmp_path}/out: new" in text and cost(text)[0] == NUM_PICTURES
    whole = cost(text)[1]
    assert not (tmp_path / "out").exists()

    folder = synth_folder(config, corpus_shards(config))
    folder.open()
    folder.close()  # the run is over
    begun = "begun by an earlier run, which was stopped: the same command goes on"
    assert f"output {tmp_path}/out: {begun}" in dry_run_text(SYNTH, "", config)
    assert cost(dry_run_text(SYNTH, "", config)) == (NUM_PICTURES, pytest.approx(whole))
    spent = {"calls": 31, "usd": 1.5}
    refused = Counter({"cut_off": 2})
    folder.open()
    folder.finish(unit="planned samples", num_read=40, num_kept=28, refused=refused, pending=10, extra_counters=spent)
    folder.close()
    text = dry_run_text(SYNTH, "", config)
    assert "which left 28 planned samples kept, 2 refused and 10 pending: the same command goes on" in text
    assert "an earlier run has spent 31 calls, 1.50 USD" in text
    assert cost(text) == (10, pytest.approx(whole / 4, abs=0.01))

    folder.open()
    folder.finish(unit="planned samples", num_read=40, num_kept=38, refused=refused, pending=0, extra_counters=spent)
    text = dry_run_text(SYNTH, "", config)
    assert "finished already: a run would say so and do nothing" in text and cost(text) == (0, 0.0)


def test_what_a_killed_run_has_paid_for_is_told_though_it_left_no_manifest(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    config = synthesis(tmp_path)
    guess = cost(dry_run_text(SYNTH, "", config))[1]
    folder = synth_folder(config, corpus_shards(config))
    folder.open()
    (folder.work / "plan").mkdir()
    (folder.work / "plan" / "plan.json").write_text(json.dumps({"starts": [0, 30, NUM_PICTURES]}))
    (folder.work / "answers").mkdir()
    for plan_file, numbers in enumerate((range(24), range(30, 36))):
        writer = AnswerWriter(folder.work / "answers", plan_file, "a")
        for number in numbers:
            writer.write(Entry(number, ANSWERED, 2, 2_000, 600, 0.05, "-", {}))
    writer.write(Entry(36, FAILED, 5, 0, 0, 0.0, "-", {}))
    folder.close()
    text = dry_run_text(SYNTH, "", config)
    assert "an earlier run has spent 65 calls, 1.50 USD; what follows is for what is left" in text
    # The rest is reckoned at what an answer has cost so far, not at the guess before there were any.
    assert cost(text) == (10, 0.5) and "by the mean of 30 answers so far" in text
    assert guess / NUM_PICTURES != pytest.approx(0.05, rel=0.03)


def test_what_is_with_the_server_in_batches_is_not_reckoned_again(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    config = synthesis(tmp_path)
    folder = synth_folder(config, corpus_shards(config))
    folder.open()
    (folder.work / "plan").mkdir()
    (folder.work / "plan" / "plan.json").write_text(json.dumps({"starts": [0, NUM_PICTURES]}))
    (folder.work / "answers").mkdir()
    AnswerWriter(folder.work / "answers", 0, "a").write(Entry(0, ANSWERED, 1, 9, 9, 0.0, "-", {}))
    BatchRecord(0, list(range(1, 31)), "http://x/v1", "plain").save(batch_folder(folder.work))
    folder.close()
    text = dry_run_text(SYNTH, "", config)
    assert "an earlier run has spent 1 calls, and 30 are with the server in batches" in text and cost(text)[0] == 9


def test_the_plan_of_another_configuration_is_not_reckoned_with(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    folder = synth_folder(synthesis(tmp_path), corpus_shards(synthesis(tmp_path)))
    folder.open()
    (folder.work / "plan").mkdir()
    (folder.work / "plan" / "plan.json").write_text(json.dumps({"starts": [0, NUM_PICTURES]}))
    folder.close()
    text = dry_run_text(SYNTH, "", synthesis(tmp_path, samples_per_image=4))
    assert ": new" in text and cost(text)[0] == 4 * NUM_PICTURES


def test_of_a_large_input_what_is_left_is_reckoned_from_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "pictures")
    monkeypatch.setattr(preview, "DRY_ROWS", 10)
    assert cost(dry_run_text(SYNTH, "", synthesis(tmp_path)))[0] == pytest.approx(NUM_PICTURES, abs=3)
    folder = synth_folder(synthesis(tmp_path), corpus_shards(synthesis(tmp_path)))
    folder.open()
    (folder.work / "plan").mkdir()
    (folder.work / "plan" / "plan.json").write_text(json.dumps({"starts": [0, NUM_PICTURES]}))
    (folder.work / "answers").mkdir()
    AnswerWriter(folder.work / "answers", 0, "a").write(Entry(0, ANSWERED, 1, 9, 9, 0.0, "-", {}))
    folder.close()
    assert cost(dry_run_text(SYNTH, "", synthesis(tmp_path)))[0] == NUM_PICTURES - 1


def test_a_budget_that_is_not_enough_is_told_beside_the_cost(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    whole = cost(dry_run_text(SYNTH, "", synthesis(tmp_path)))[1]
    for budget, said in (
        ({"usd": round(whole / 4, 3)}, "is enough for about 10 of these calls"),
        ({"usd": 0.0}, "budget.usd=0 is spent: a run would ask for nothing"),
        ({"calls": 7}, "budget.calls=7 is enough for about 7 of these calls"),
        ({"calls": 40, "usd": 99.0}, None),
    ):
        text = dry_run_text(SYNTH, "", synthesis(tmp_path, budget=budget))
        assert (said in text) if said else ("budget.calls=" not in text and "budget.usd=" not in text)


def test_a_setting_that_a_run_would_refuse_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "pictures")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "file").write_text("")
    for teacher, said in (
        ({}, "a run would refuse this: 'teacher.base_url' is required"),
        ({"base_url": "http://x/v1", "model": ""}, "a run would refuse this: 'teacher.model' is required"),
        ({"base_url": "http://me:secret@x/v1"}, "'teacher.base_url' holds a name or a password"),
        ({"base_url": "http://x/v1", "cache": str(tmp_path / "file")}, "is not a folder"),
        ({"base_url": "https://x/v1"}, "OPENAI_API_KEY is not set"),
    ):
        assert said in dry_run_text(SYNTH, "", synthesis(tmp_path, teacher={"model": "m"} | teacher))
    text = dry_run_text(SYNTH, "", synthesis(tmp_path, teacher={"model": "m", "base_url": "http://x/v1"}))
    assert "is not set" not in text and "would refuse" not in text


def test_samples_that_cannot_be_drawn_are_told(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    only = {"tasks": {"retrieval": 1, "vqa": 0, "classification": 0}, "combinations": {"T2I": 1}}
    with pytest.raises(InputError, match="not one sample can be planned: T2I need neighbours=, pictures"):
        dry_run_text(SYNTH, "", synthesis(tmp_path, **only))
    text = dry_run_text(SYNTH, "", synthesis(tmp_path, tasks={"retrieval": 1}))
    assert "without neighbours= there are no samples of I2I, IT2I, IT2IT, T2I, T2IT\n" in text
    half = {"tasks": {"retrieval": 1, "vqa": 1, "classification": 0}, "combinations": {"T2I": 1}}
    text = dry_run_text(SYNTH, "", synthesis(tmp_path, **half))
    assert f"{NUM_PICTURES - cost(text)[0]} samples are not planned: T2I need neighbours=" in text


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": pa.array([], pa.string()), "image": pa.array([], pa.binary())}), tmp_path / "x.parquet"
    )
    with pytest.raises(InputError, match=r"no rows in the input \(x.parquet\)"):
        dry_run_text(SYNTH, "", synthesis(tmp_path, input=str(tmp_path / "x.parquet")))


def test_neighbours_without_a_rank_come_last(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    pairs = [("00.png", f"{n:02d}.png", rank, 0.9, "a") for n, rank in ((1, None), (2, 2), (3, 1), (99, 1))]
    rows = [dict(zip(NEIGHBOURS.names, pair, strict=True)) for pair in pairs]
    pq.write_table(pa.Table.from_pylist(rows, NEIGHBOURS), tmp_path / "near.parquet")
    config = synthesis(tmp_path, neighbours=str(tmp_path / "near.parquet"))
    for is_all, expected in ((True, "03.png 02.png 01.png"), (False, "03.png 99.png 02.png 01.png")):
        found = _neighbours_of(config, [f"{n:02d}.png" for n in range(NUM_PICTURES)], is_all=is_all)
        assert [neighbour.id for neighbour in found.pop("00.png")] == expected.split() and not found


def test_a_dry_run_refuses_the_output_that_the_run_would_refuse(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    config = synthesis(tmp_path)
    folder = synth_folder(config, corpus_shards(config))
    folder.open()
    with pytest.raises(InputError, match="is being written by another run"):
        dry_run_text(SYNTH, "", config)
    folder.finish(unit="planned samples", num_read=1, num_kept=1, refused=Counter(), pending=0)
    with pytest.raises(InputError, match=r"holds a run of another configuration \(seed: 0 there, 1 here\)"):
        dry_run_text(SYNTH, "", synthesis(tmp_path, seed=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        dry_run_text(SYNTH, "", synthesis(tmp_path, output=str(tmp_path / "file")))
    with pytest.raises(InputError, match="is not empty"):
        dry_run_text(SYNTH, "", synthesis(tmp_path, output=str(tmp_path / "pictures")))


def test_a_training_is_told_with_its_output(tmp_path: Path, model: Path) -> None:
    text = dry_run_text(TRAIN, "", config(samples(tmp_path, 40), model, output=str(tmp_path / "out")))
    assert f"output {tmp_path}/out: new" in text
