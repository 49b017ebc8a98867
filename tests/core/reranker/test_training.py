"""A reranker's training: the loss by plain autograd, places of positives, a model that learns and is stored."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import distributed, multiprocessing

from mme5core import Content, Encoder
from mme5core.encoder.prepare import prepare_picture, sizes_of
from mme5core.judge.answering import AnsweringModel
from mme5core.model_folder import ENCODER_FILE
from mme5core.ownership import Owner
from mme5core.reranker import Reranker
from mme5core.reranker.answer_task import AnswerTask, by_score
from mme5core.reranker.settings import RerankerTraining
from mme5core.reranker.training import load_reranker
from mme5core.sample_table import SampleTable, map_samples
from mme5core.training.process import train_process
from mme5core.training.process_run import TrainingRun
from mme5core.training.run_files import LOG, SAMPLES_FILE
from mme5core.types import Sample
from tests.core.training.exactness import samples
from tests.core.training.runs import text_samples

Checkpoint = Callable[[str], Path]


def task_of(folder: Path, **settings: Any) -> tuple[AnswerTask, AnsweringModel]:
    model = AnsweringModel.load(folder, device="cpu", dtype="float32")
    usual: dict[str, Any] = {"list_negatives": 2, "pair_weight": 1.0, "list_weight": 1.0, "among": "vocabulary"}
    usual |= {"batch_size": 4, "seed": 0}
    return AnswerTask(model, **(usual | settings)), model


def new_run(base: Path, folder: Path, *, num_steps: int, **settings: Any) -> TrainingRun:
    work = folder / "_work"
    work.mkdir(parents=True, exist_ok=True)
    pq.write_table(text_samples(), work / "samples.parquet")
    list(map_samples({"input[0]": [work / "samples.parquet"]}, work / SAMPLES_FILE, num_negatives=9, limit=None,
                     least_negatives=1))  # fmt: skip
    small: dict[str, Any] = {"batch_size": 8, "zero_stage": 0, "save_every": 1, "learning_rate": 3e-3}
    settings = small | {"lora": {"rank": 4}} | settings
    config = RerankerTraining(model=str(base), **settings)
    return TrainingRun(config, folder, work, Owner.take(work).token, "run", num_steps)


@pytest.mark.parametrize("combination", ["T2T", "IT2I"])
@pytest.mark.parametrize("among", ["vocabulary", "answers"])
def test_the_loss_is_that_of_each_prompt_alone(combination: str, among: str, checkpoint: Checkpoint) -> None:
    task, model = task_of(checkpoint("qwen2_vl"), pair_weight=0.5, list_weight=2.0, among=among)
    batch = samples(combination)[:4]
    rows = task.rows(batch, step=3)
    states, loss = [], 0.0
    tokens = model.prompts.answer_token_ids(["Yes", "No", "(1)", "(2)", "(3)"])
    for place, sample in enumerate(batch):
        hardest = sample.negatives[int(np.argmax(sample.scores[1:]))]
        number = (3 * 4 + place) % 3
        for candidate, answer in ((sample.positive, tokens[0][0]), (hardest, tokens[1][0])):
            state = state_of(model, (sample.query, candidate), sample.instruction)
            states.append(state)
            loss -= 0.5 * log_share(model, state, answer, [tokens[0][0], tokens[1][0]], among)
        list_ids = rows.token_ids[3 * place + 2]
        assert list_ids[-1] == tokens[2][0]  # the bracket, which all answers share, is given
        content = rows.contents[3 * place + 2]
        state = forward(model, [list_ids], [content])
        states.append(state)
        loss -= 2.0 * log_share(model, state, tokens[2 + number][1], [own[1] for own in tokens[2:]], among)
    state_ND = torch.cat(states)
    whole = rows.share(state_ND, slice(0, 4))
    assert whole.item() == pytest.approx(loss / 4, rel=1e-5)
    parts = sum(rows.share(state_ND, part).item() for part in (slice(0, 1), slice(1, 1), slice(1, 4)))
    assert parts == pytest.approx(whole.item(), rel=1e-6)


def log_share(model: AnsweringModel, state: torch.Tensor, token: int, answers: list[int], among: str) -> float:
    logits = model.logits(state)[0].double().detach()
    allowed = list(range(len(logits))) if among == "vocabulary" else answers
    return float(logits[allowed].log_softmax(dim=0)[allowed.index(token)])


def forward(model: AnsweringModel, token_ids: list[list[int]], contents: list[Content]) -> torch.Tensor:
    pictures = [[prepare_picture(model.backbone, c, n) for n in range(len(c.images))] for c in contents]
    inputs = model.module.on_device(model.backbone.collate(token_ids, pictures if pictures[0] else None))
    with torch.no_grad():
        return model.backbone.pooled(model.module.model, inputs).float()


def state_of(model: AnsweringModel, pair: tuple[Content, Content], instruction: str | None) -> Any:
    prompt = model.prompts.pair(*pair, instruction)
    content = Content(prompt, images=(*pair[0].images, *pair[1].images))
    ids = model.prompts.token_ids([prompt], [sizes_of(model.backbone, content)])
    return forward(model, ids, [content])


def test_every_place_is_right_equally_often_and_negatives_are_shuffled(checkpoint: Checkpoint) -> None:
    task, _ = task_of(checkpoint("qwen2_vl"), pair_weight=0.0)
    sample = Sample("a", Content("q"), Content("POSITIVE"), (Content("low"), Content("HIGH"), Content("middle")), None,
                    None, scores=(0.9, 0.1, 0.8, 0.5))  # fmt: skip
    places, seconds = Counter[int](), Counter[str]()
    for step in range(6):
        rows = task.rows([replace(sample, id=str(place)) for place in range(4)], step)
        for content in rows.contents:
            lines = (content.text or "").splitlines()
            labelled = [line.split(" ", 1)[1] for line in lines if line.startswith("(")]
            assert sorted(labelled) == ["HIGH", "POSITIVE", "middle"]
            places[labelled.index("POSITIVE")] += 1
            seconds[next(label for label in labelled if label != "POSITIVE")] += 1
    assert places == {0: 8, 1: 8, 2: 8}
    assert min(seconds.values()) > 4
    assert task.rows([sample], 0).token_ids == task.rows([sample], 0).token_ids


def test_negatives_without_scores_keep_their_order() -> None:
    sample = Sample("a", Content("q"), Content("p"), (Content("x"), Content("y")), None, None)
    assert [content.text for content in by_score(sample)] == ["x", "y"]


def test_a_reranker_learns_and_is_stored_and_goes_on_from_a_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint("qwen2_vl")
    run = new_run(base, tmp_path / "run", num_steps=36, list_negatives=1, max_text_tokens=50, save_every=6)
    train_process(run, load=load_reranker)
    losses = [json.loads(line)["loss"] for line in (run.folder / LOG).read_text().splitlines()]
    assert len(losses) == 36 and losses[-1] < 0.5 * losses[0]
    model = run.folder / "model"
    settings = json.loads((model / ENCODER_FILE).read_text())
    assert settings["kind"] == "reranker" and settings["max_text_tokens"] == 50
    table = SampleTable(run.work / SAMPLES_FILE)
    for method in ("pointwise", "listwise"):
        reranker = Reranker.load(model, device="cpu", dtype="float32", method=method)  # type: ignore[arg-type]
        right = [
            reranker.scores(s.query, [s.negatives[0], s.positive], s.instruction).argmax() == 1
            for s in (table[row] for row in range(8))
        ]
        assert sum(right) >= 7, (method, right)
    with pytest.raises(ValueError, match="is a reranker, which embeds nothing"):
        Encoder.load(model)

    for file in (run.folder / "checkpoints").glob("step-*36"):
        shutil.rmtree(file)
    shutil.rmtree(model)
    train_process(run, load=load_reranker)  # from step 30
    resumed = [json.loads(line)["loss"] for line in (run.folder / LOG).read_text().splitlines()]
    np.testing.assert_allclose(resumed, losses, rtol=1e-5)


def _in_group(rank: int, run: TrainingRun, size: int, out: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{run.work}/meet", rank=rank, world_size=size)
    train_process(run, load=load_reranker)
    distributed.destroy_process_group()


def test_two_processes_train_as_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    losses = []
    for size in (1, 2):
        run = new_run(checkpoint("qwen2_vl"), tmp_path / str(size), num_steps=3, list_negatives=1, chunk_rows=4)
        multiprocessing.spawn(_in_group, args=(run, size, tmp_path), nprocs=size)
        losses.append([json.loads(line)["loss"] for line in (run.folder / LOG).read_text().splitlines()])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
