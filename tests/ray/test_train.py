"""`train` as a user runs it: two workers, one worker, killed in between."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from mme5core import Content, Encoder
from tests.ray.conftest import World, adds_up, command, kill_when, run_job, train_args, wait_for

pytestmark = pytest.mark.ray
NUM_STEPS = 12


@pytest.fixture(scope="module")
def two_workers(samples: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("train") / "two"
    ended = run_job("train", *train_args(samples, base, output), f"num_steps={NUM_STEPS}", "num_workers=2")
    assert ended.code == 0, ended.stderr
    return output


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log" / "metrics.jsonl").read_text().splitlines()]


def test_the_folder_holds_a_model_that_loads_without_further_argument(two_workers: Path, base: Path) -> None:
    counters = adds_up(two_workers)
    assert counters["pending"] == 0 and counters["steps"] == NUM_STEPS
    contents = [Content(text="un gato"), Content(text="a dog")]
    trained = Encoder.load(two_workers / "model").embed(contents)
    untrained = Encoder.load(base).embed(contents)
    assert np.allclose(np.linalg.norm(trained, axis=1), 1, atol=1e-5)
    assert np.abs(trained - untrained).max() > 1e-3


@pytest.mark.slow
def test_one_worker_gives_the_losses_of_two(two_workers: Path, samples: Path, base: Path, tmp_path: Path) -> None:
    ended = run_job("train", *train_args(samples, base, tmp_path / "one"), f"num_steps={NUM_STEPS}", "num_workers=1")
    assert ended.code == 0, ended.stderr
    assert losses(tmp_path / "one") == pytest.approx(losses(two_workers), rel=1e-4)


@pytest.mark.parametrize(
    "driver_only",
    [
        pytest.param(False, id="the whole cluster", marks=pytest.mark.slow),
        pytest.param(True, id="the driver alone", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_with_the_losses_of_an_unbroken_one(
    driver_only: bool, two_workers: Path, samples: Path, base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    args = [*train_args(samples, base, output), f"num_steps={NUM_STEPS}", "num_workers=2"]

    def ready() -> bool:
        return (output / "checkpoints" / "step-00000004" / "meta.json").exists()

    kill_when("train", *args, ready=ready, driver_only=driver_only)
    if not driver_only:
        assert len(losses(output)) < NUM_STEPS and not (output / "model").exists()
    ended = run_job("train", *args)
    assert ended.code == 0, ended.stderr
    assert losses(output) == pytest.approx(losses(two_workers), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["one of two, between checkpoints", "both, while one is written"])
def test_a_killed_worker_is_replaced_and_the_losses_are_those_of_an_unbroken_run(
    moment: str, two_workers: Path, samples: Path, base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    args = [*train_args(samples, base, output), f"num_steps={NUM_STEPS}", "num_workers=2"]

    def is_half_written() -> bool:
        """The newest checkpoint is begun and does not count yet (an old one without its meta is being dropped)."""
        steps = sorted((output / "checkpoints").glob("step-*"))
        return bool(steps) and not (steps[-1] / "meta.json").exists()

    def workers() -> list[psutil.Process]:
        found = []
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # gone by now
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    with subprocess.Popen(
        command("train", *args), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            wait_for(process, lambda: len(workers()) == 2)
            first = workers()
            if moment.startswith("both"):
                wait_for(process, lambda: (output / "checkpoints" / "step-00000002" / "meta.json").exists(), every_s=0)
                wait_for(process, is_half_written, every_s=0)
                for worker in first:
                    worker.kill()
                assert is_half_written()
            else:
                wait_for(process, lambda: (output / "checkpoints" / "step-00000002" / "meta.json").exists())
                first[-1].kill()
            assert len(losses(output)) < NUM_STEPS
            wait_for(process, lambda: len(workers()) == 2 and not set(workers()) & set(first))
            printed, _ = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 0, printed
    assert losses(output) == pytest.approx(losses(two_workers), abs=1e-6)


@pytest.mark.slow
def test_a_killed_run_resumes_on_another_number_of_workers_and_another_zero_stage(
    two_workers: Path, samples: Path, base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "moved"
    args = [*train_args(samples, base, output), f"num_steps={NUM_STEPS}", f"checkpoints=file://{tmp_path}/kept"]

    def ready() -> bool:
        return (tmp_path / "kept" / "step-00000004" / "meta.json").exists()

    kill_when("train", *args, "num_workers=2", "zero_stage=3", "grad_cache=true", ready=ready)
    ended = run_job("train", *args, "num_workers=1", "zero_stage=0")
    assert ended.code == 0, ended.stderr
    assert losses(output) == pytest.approx(losses(two_workers), rel=1e-4)
    contents = [Content(text="un gato"), Content(text="a dog")]
    vectors = [Encoder.load(folder / "model").embed(contents) for folder in (output, two_workers)]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_every_zero_stage_gives_the_losses_and_the_model_of_the_others(
    zero_stage: int, two_workers: Path, samples: Path, base: Path, tmp_path: Path
) -> None:
    ended = run_job(
        "train",
        *train_args(samples, base, tmp_path / "out"),
        f"num_steps={NUM_STEPS}",
        "num_workers=2",
        f"zero_stage={zero_stage}",
    )
    assert ended.code == 0, ended.stderr
    assert losses(tmp_path / "out") == pytest.approx(losses(two_workers), rel=1e-4)
    contents = [Content(text="un gato"), Content(text="a dog")]
    vectors = [Encoder.load(folder / "model").embed(contents) for folder in (tmp_path / "out", two_workers)]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-3


@pytest.mark.slow
def test_full_fine_tuning_with_every_option_of_the_loss_gives_a_model_that_loads(
    samples: Path, base: Path, tmp_path: Path
) -> None:
    ended = run_job(
        "train",
        *train_args(samples, base, tmp_path / "out"),
        "num_steps=4",
        "num_workers=3",  # divides neither the batch nor its chunks
        "zero_stage=3",
        "lora.method=none",
        "loss={symmetric: true, hardness: 9, margin: 0.1, matryoshka_dims: [32, 128], learn_temperature: true}",
        "negatives=all",
    )
    assert ended.code == 0, ended.stderr
    assert "train, in" in ended.stderr and "tensors:" in ended.stderr
    assert np.isfinite(Encoder.load(tmp_path / "out" / "model").embed([Content(text="a dog")])).all()
    last = json.loads((tmp_path / "out" / "log" / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last["temperatures"]) == {"classification", "retrieval", "vqa"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        pytest.param("lora.targets=[nope]", "match no linear layer; known: language", marks=pytest.mark.slow),
        ("batch_size=100000", "batch_size=100000 is larger than the data"),
        ("loss.matryoshka_dims=[4096]", "4096 does not fit vectors of width 128"),
        ("loss.kind=soft_label_kl", "no_scores"),
        ("weights=[1, 2]", "2 numbers for 1 entries of input"),
        pytest.param("lora.quantize=nf4", "needs a GPU and the package bitsandbytes", marks=pytest.mark.slow),
        pytest.param("checkpoints=nosuch://b/run", "checkpoints at nosuch://b/run", marks=pytest.mark.slow),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line_before_the_first_step(
    override: str, words: str, samples: Path, base: Path, tmp_path: Path
) -> None:
    ended = run_job("train", *train_args(samples, base, tmp_path / "out"), "num_steps=2", override)
    assert ended.code == 2, ended.stderr
    assert words in ended.summary["reason"]
    assert "Traceback" not in ended.stderr and not (tmp_path / "out" / "log" / "metrics.jsonl").exists()


def test_samples_with_too_few_negatives_are_refused_by_name(samples: Path, base: Path, tmp_path: Path) -> None:
    ended = run_job("train", *train_args(samples, base, tmp_path / "out"), "num_negatives=2")
    assert ended.code == 2
    assert "no samples left" in ended.summary["reason"] and "too_few_negatives" in ended.summary["reason"]


def test_a_file_that_holds_no_samples_is_one_line(world: World, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "vectors.parquet"
    pq.write_table(pq.read_table(world.root / "holdout.parquet"), file)
    ended = run_job("train", f"input={file}", f"model={base}", f"output={tmp_path / 'out'}")
    assert ended.code == 2
    assert "no column 'id'" in ended.summary["reason"] and str(file) in ended.summary["reason"]
