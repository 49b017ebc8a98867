"""The gradient of a batch is that of one forward pass over it: in chunks, with a cache, on several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mme5core import Encoder
from mme5core.adapters import add_adapter
from mme5core.backbones.protocol import Features
from mme5core.losses import info_nce
from mme5core.training import step_gradient
from mme5core.training.contrastive import contents_of
from mme5core.training.objective import Objective
from tests.core.training.exactness import (
    NUM_NEGATIVES,
    NUM_ROWS,
    Found,
    Setting,
    largest_difference,
    samples,
    step,
    steps_on,
)

OBJECTIVES = {
    "own": Objective(0.05),
    "all": Objective(0.05, negatives="all"),
    "symmetric, hardness": Objective(0.05, symmetric=True, hardness=9.0),
    "margin": Objective(0.05, margin=("absolute", 0.02), negatives="all"),
    "matryoshka": Objective(0.05, matryoshka_dims=(16, 128)),
    "soft labels": Objective(0.05, kind="soft_label_kl"),
    "soft labels and the batch": Objective(
        0.05, kind="soft_label_kl", divergence="jensen_shannon", in_batch_weight=0.5, negatives="all"
    ),
}


def settings(base: Path) -> list[Setting]:
    """Every loss with and without a cache, and every way of computing one of them."""
    found = [
        Setting(str(base), objective, grad_cache=cache, learn_temperature=name == "own")
        for name, objective in OBJECTIVES.items()
        for cache in (False, True)
    ]
    for combination in ("T2I", "IT2IT"):
        for targets in ("all", "language"):
            for cache in (False, True):
                # By 3, 12 texts and 36 pictures make even numbers of chunks: those of one process.
                dropout = Setting(str(base), OBJECTIVES["own"], combination, dropout=0.3, chunk_rows=3)
                found.append(replace(dropout, grad_cache=cache, targets=targets))
    dora = Setting(str(base), OBJECTIVES["own"], dropout=0.3, chunk_rows=3, lora={"use_dora": True})
    found += [dora, replace(dora, grad_cache=True)]
    # Contents of one to three pictures: on mllama each number has chunks of its own.
    several = Setting(str(base), OBJECTIVES["own"], most_pictures=3)
    found += [several, replace(several, grad_cache=True, targets="language")]
    # Where only the vision tower trains, a text gives no gradient; in a batch of texts nothing does.
    for combination, num_steps in (("T2I", 1), ("T2I+T2T", 4)):
        for cache in (False, True):
            vision = Setting(str(base), OBJECTIVES["own"], combination, targets="vision", num_steps=num_steps)
            found.append(replace(vision, grad_cache=cache))
    return found


@pytest.fixture(scope="module")
def on_two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Found]]:
    return steps_on(2, settings(base), tmp_path_factory.mktemp("two") / "processes")


def test_two_processes_give_the_loss_and_the_gradient_of_one(base: Path, on_two: list[list[Found]]) -> None:
    for setting, found in zip(settings(base), on_two, strict=True):
        alone = step(setting)
        for process in found:
            assert largest_difference(process, alone) < 1e-5, setting
            assert process.temperatures == pytest.approx(alone.temperatures, rel=1e-5)
            assert process.num_reductions == setting.num_steps
        if setting.num_steps > 1:
            continue  # the last step may be one of texts
        assert max(float(g.abs().max()) for g in alone.gradients.values()) > 1e-3


def test_a_cache_gives_the_gradient_of_none_also_with_dropout(base: Path) -> None:
    for setting in settings(base):
        if not setting.grad_cache:
            direct, cached = step(setting), step(replace(setting, grad_cache=True))
            assert largest_difference(cached, direct) < 1e-5, setting


def test_dropout_matters_and_follows_the_chunk(base: Path) -> None:
    with_dropout = Setting(str(base), OBJECTIVES["own"], dropout=0.3)
    once, again, without = step(with_dropout), step(with_dropout), step(replace(with_dropout, dropout=0.0))
    assert largest_difference(again, once) == 0
    assert largest_difference(without, once) > 1e-2
    other_chunks = step(replace(with_dropout, chunk_rows=6))
    assert largest_difference(other_chunks, once) > 1e-2


def test_recomputed_activations_and_features_in_host_memory_change_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    to_host = step_gradient._in_host_memory

    def counted(features: Sequence[Features]) -> list[Features]:
        copies = to_host(features)
        for (old,), (new,) in zip(features, copies, strict=True):
            assert torch.equal(old, new) and old.data_ptr() != new.data_ptr()
            moved.append(new.data_ptr())
            old.fill_(float("nan"))  # nothing may read it any more
        return copies

    monkeypatch.setattr(step_gradient, "_in_host_memory", counted)
    expected = step(Setting(str(base), OBJECTIVES["own"], dropout=0.3, targets="language"))
    for grad_cache in (False, True):
        sparing = Setting(
            str(base), OBJECTIVES["own"], dropout=0.3, targets="language", grad_cache=grad_cache,
            activation_checkpointing=True, device_features_bytes=0,
        )  # fmt: skip
        moved.clear()
        assert largest_difference(step(sparing), expected) < 1e-6
        assert moved and len(moved) == len(set(moved))  # every picture of the step, once


def plain_autograd(setting: Setting) -> Found:
    """Loss and gradient of the batch by one graph over one forward pass a content, with every negative a column."""
    torch.manual_seed(0)
    encoder = Encoder.load(setting.base, device="cpu", dtype="float32", attention="eager")
    encoder.module.model = add_adapter(
        encoder.module.model, rank=4, alpha=8, dropout=0.0, targets=setting.targets, train_embeddings=False
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    contents, instructions = contents_of(samples(setting.combination, setting.most_pictures), NUM_NEGATIVES)
    vectors = [
        next(encoder.batches([content], [instruction], max_batch_rows=1, max_batch_tokens=9999))
        for content, instruction in zip(contents, instructions, strict=True)
    ]
    vector_ND = torch.cat([encoder.module([batch]) for batch in vectors])
    query_BD, positive_BD = vector_ND[:NUM_ROWS], vector_ND[NUM_ROWS : 2 * NUM_ROWS]
    negative_BKD = vector_ND[2 * NUM_ROWS :].view(NUM_ROWS, NUM_NEGATIVES, -1)
    # The same documents are masked by their vectors: nothing here has seen an id.
    same = (F.normalize(positive_BD, dim=-1) @ F.normalize(negative_BKD.flatten(0, 1), dim=-1).T) > 1 - 1e-6
    ids = torch.arange(NUM_ROWS)
    negative_ids = torch.where(same.any(dim=0), same.float().argmax(dim=0), -1).view(NUM_ROWS, NUM_NEGATIVES)
    loss = info_nce(
        query_BD, positive_BD, negative_BKD, temperature=0.05, negatives="all", positive_ids=ids,
        negative_ids=negative_ids,
    )  # fmt: skip
    loss.backward()
    assert bool(same.any())
    gradients = {
        n: torch.zeros_like(p) if p.grad is None else p.grad
        for n, p in encoder.module.named_parameters()
        if p.requires_grad
    }
    return Found([loss.item()], gradients, {}, 0)


@pytest.mark.parametrize("targets", ["all", "language"])
def test_the_gradient_is_that_of_plain_autograd_over_the_whole_batch(base: Path, targets: str) -> None:
    setting = Setting(str(base), OBJECTIVES["all"], targets=targets, grad_cache=True)
    assert largest_difference(step(setting), plain_autograd(setting)) < 1e-5


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama", "llava_onevision"])
@pytest.mark.parametrize("targets", ["all", "language"])
def test_contents_of_several_pictures_train_by_the_gradient_of_plain_autograd(
    family: str, targets: str, checkpoint: Callable[[str], Path]
) -> None:
    one = Setting(str(checkpoint(family)), OBJECTIVES["all"], targets=targets, grad_cache=True)
    several = replace(one, most_pictures=3)
    expected = plain_autograd(several)
    assert largest_difference(step(several), expected) < 1e-5
    assert largest_difference(step(one), expected) > 1e-2  # the further pictures matter


def test_the_tower_runs_once_for_each_distinct_picture_of_a_step(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mllama.modeling_mllama import MllamaVisionModel

    rows = 0
    forward = MllamaVisionModel.forward

    def counting(self: MllamaVisionModel, pixel_values: torch.Tensor, *args: object, **kwargs: object) -> object:
        nonlocal rows
        rows += len(pixel_values)
        return forward(self, pixel_values, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(MllamaVisionModel, "forward", counting)
    counted = {}
    found = {}
    for targets, once in (("language", True), ("language", False), ("all", True)):
        rows = 0
        found[targets, once] = step(
            Setting(str(base), OBJECTIVES["own"], targets=targets, tower_once=once, grad_cache=True)
        )
        counted[targets, once] = rows
    num_rows = NUM_ROWS * (2 + NUM_NEGATIVES)
    # 7 pictures in 48 rows; with a cache every row is embedded twice, and a tower that trains must be too.
    assert counted == {("language", True): 7, ("language", False): 2 * num_rows, ("all", True): 2 * num_rows}
    assert largest_difference(found["language", False], found["language", True]) < 1e-5
