"""What trains: an adapter on the layers that are meant, or the model's own weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from PIL import Image

from mme5core import Content, Encoder
from mme5core.adapters import MME5, add_adapter, resolve_targets, train_weights, weights_at_rest
from tests.core.backbones.families import build
from tests.core.contents import mixed, picture


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    root = tmp_path_factory.mktemp("adapters")

    def loaded(family: str) -> Any:
        folder = root / family
        return Encoder.load(folder if folder.is_dir() else build(family, folder), device="cpu").module.model

    return loaded


def endings(names: list[str]) -> set[str]:
    return {name.split(".")[-1] for name in names}


@pytest.mark.parametrize("family", ["mllama", "qwen2_vl", "qwen3_vl", "llava_next", "clip"])
def test_the_towers_are_meant_by_name_and_do_not_overlap(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    language, vision, every = (resolve_targets(model, name) for name in ("language", "vision", "all"))
    assert language and vision and sorted(language + vision) == sorted(every)
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    # What joins the towers belongs to neither.
    assert {name for name in linears - set(every) if "projector" not in name and "projection" not in name} == set()


def test_mme5s_endings_mean_another_adapter_on_another_family(model_of: Callable[[str], Any]) -> None:
    on_mllama = resolve_targets(model_of("mllama"), "mme5")
    assert endings([name for name in on_mllama if "language_model" in name]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "down_proj"
    }  # fmt: skip
    assert endings([name for name in on_mllama if "vision_model" in name]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert on_mllama == resolve_targets(model_of("mllama"), MME5)
    assert not [name for name in resolve_targets(model_of("qwen2_vl"), "mme5") if "visual" in name]


def test_a_pattern_is_found_in_the_full_name(model_of: Callable[[str], Any]) -> None:
    found = resolve_targets(model_of("mllama"), r"language_model\.layers\.0\..*(q|v)_proj$")
    assert len(found) == 2 and all("layers.0." in name for name in found)
    assert endings(resolve_targets(model_of("mllama"), ["gate_proj", "fc1"])) == {"gate_proj", "fc1"}


@pytest.mark.parametrize("targets", ["langage", ["nope"], "layers.77"])
def test_targets_that_match_nothing_are_refused_with_what_there_is(
    targets: Any, model_of: Callable[[str], Any]
) -> None:
    with pytest.raises(ValueError, match=r"match no linear layer; known: language, vision, all, mme5, .*down_proj"):
        resolve_targets(model_of("mllama"), targets)
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        resolve_targets(model_of("mllama"), "(")


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"rank_stabilised": True}])
def test_every_kind_of_adapter_travels_and_merges_to_the_same_vectors(
    kind: dict[str, bool], tmp_path: Path, base: Path
) -> None:
    encoder = Encoder.load(base, device="cpu")
    encoder.module.model = add_adapter(
        encoder.module.model, rank=4, alpha=8, dropout=0.1, targets="all", train_embeddings=False, **kind
    )
    with torch.no_grad():
        for name, parameter in encoder.module.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or "magnitude" in name):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    contents = [Content("a cat"), Content("a dog on a red sofa")]
    encoder.module.eval()
    expected = encoder.embed(contents)
    encoder.save(tmp_path / "model")
    assert abs(Encoder.load(base).embed(contents) - expected).max() > 1e-3
    assert abs(Encoder.load(tmp_path / "model").embed(contents) - expected).max() < 1e-5


def test_the_rank_stabilised_scale_is_alpha_over_the_root_of_the_rank(model_of: Callable[[str], Any]) -> None:
    for rank_stabilised, scale in ((False, 8 / 4), (True, 8 / 4**0.5)):
        model = add_adapter(
            model_of("mllama"), rank=4, alpha=8, dropout=0.0, targets=["q_proj"], train_embeddings=False,
            rank_stabilised=rank_stabilised,
        )  # fmt: skip
        scales = {m.scaling["default"] for m in model.modules() if isinstance(getattr(m, "scaling", None), dict)}
        assert scales == {scale}


def test_full_fine_tuning_trains_what_is_meant_and_is_saved_whole(base: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(base, device="cpu")
    model = encoder.module.model
    every = train_weights(model, targets="all", train_embeddings=False)
    assert every == [name for name, _ in model.named_parameters()]
    language = train_weights(model, targets="language", train_embeddings=False)
    assert language and all("language_model" in name for name in language)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == language
    some = train_weights(model, targets=["q_proj"], train_embeddings=True)
    assert {name.split(".")[-2] for name in some} == {"q_proj", "embed_tokens"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    expected = encoder.embed([Content("a cat")])
    encoder.save(tmp_path / "model", include_base=True)
    assert abs(Encoder.load(tmp_path / "model").embed([Content("a cat")]) - expected).max() < 1e-6


def test_what_trains_is_float32_on_a_model_of_bfloat16(base: Path) -> None:
    encoder = Encoder.load(base, device="cpu", dtype="bfloat16")
    encoder.module.model = add_adapter(
        encoder.module.model, rank=4, alpha=8, dropout=0.0, targets="language", train_embeddings=True
    )
    kinds = {(p.requires_grad, p.dtype) for p in encoder.module.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert encoder.embed([Content("a cat")]).shape == (1, encoder.dimension)


def test_a_whole_model_of_an_unknown_family_is_saved_with_its_processor(tmp_path: Path) -> None:
    encoder = Encoder.load(build("llava", tmp_path / "base"), device="cpu")
    content = Content("a cat", Image.new("RGB", (40, 30), "red"))
    encoder.save(tmp_path / "saved", include_base=True)
    assert abs(Encoder.load(tmp_path / "saved").embed([content]) - encoder.embed([content])).max() < 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dora_gives_the_vectors_and_the_gradients_of_pefts_own(dropout: float, base: Path) -> None:
    found = {}
    for ours in (True, False):
        torch.manual_seed(0)
        encoder = Encoder.load(base, device="cpu", attention="eager")
        model = encoder.module.model = add_adapter(
            encoder.module.model, rank=4, alpha=8, dropout=dropout, targets="all", train_embeddings=False, use_dora=True
        )
        if not ours:
            for module in model.modules():
                if isinstance(module, LoraLayer):
                    module.lora_variant["default"] = DoraLinearVariant()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "magnitude" in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        encoder.module.train()
        batches = [*encoder.batches(mixed(), [None] * 11, max_batch_rows=4, max_batch_tokens=999)]
        sums = 0.0
        with weights_at_rest(model):
            for seed, batch in enumerate(batches):
                torch.manual_seed(seed)
                vector_BD = encoder.module.embed_batch(batch)
                (vector_BD * torch.linspace(-1, 1, encoder.dimension)).sum().backward()
                sums += float(vector_BD.abs().sum())
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        found[ours] = sums, gradients
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-6)
    for name, gradient in found[False][1].items():
        scale = float(gradient.abs().max())
        assert float((found[True][1][name] - gradient).abs().max()) < 1e-4 * scale, name


def test_a_fresh_dora_leaves_a_model_of_bfloat16_as_it_is(base: Path) -> None:
    encoder = Encoder.load(base, device="cpu", dtype="bfloat16")
    contents = [Content("a cat"), Content("a dog on a red sofa")]
    before = encoder.embed(contents)
    encoder.module.model = add_adapter(
        encoder.module.model, rank=4, alpha=8, dropout=0.0, targets="all", train_embeddings=False, use_dora=True
    )
    encoder.module.eval()
    assert np.abs(encoder.embed(contents) - before).max() < 1e-6


@pytest.mark.parametrize("family", ["mllama", "qwen2_vl"])
def test_with_checkpointing_every_layer_of_both_towers_runs_again(family: str, tmp_path: Path) -> None:
    encoder = Encoder.load(build(family, tmp_path), device="cpu", attention="eager")
    encoder.checkpoint_activations()
    encoder.module.train()
    runs: dict[str, int] = {}
    for name, module in encoder.module.model.named_modules():
        if name.endswith("attn"):
            module.register_forward_hook(lambda *_, name=name: runs.__setitem__(name, runs.get(name, 0) + 1))
    (batch,) = encoder.batches([Content("a cat", picture(0))], [None], max_batch_rows=1, max_batch_tokens=9999)
    encoder.module([batch])[:, 0].sum().backward()
    assert {"vision", "language"} <= {"vision" if "vis" in name else "language" for name in runs}
    assert set(runs.values()) == {2}


def test_row_lengths_are_kept_only_while_the_weights_rest(base: Path) -> None:
    encoder = Encoder.load(base, device="cpu")
    model = encoder.module.model = add_adapter(
        encoder.module.model, rank=4, alpha=8, dropout=0.0, targets="all", train_embeddings=False, use_dora=True
    )

    def grown(rest: bool) -> float:
        before = encoder.embed([Content("a cat")])
        with weights_at_rest(model) if rest else nullcontext():
            encoder.embed([Content("a cat")])
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.add_(0.1)
            inside = encoder.embed([Content("a cat")])
        after = encoder.embed([Content("a cat")])
        assert np.abs(after - before).max() > 1e-3
        return float(np.abs(inside - after).max())

    assert grown(rest=False) == 0
    assert grown(rest=True) > 1e-4


def test_dropout_on_the_low_rank_part_leaves_the_base_alone(base: Path) -> None:
    vectors = {}
    for dropout_on in ("input", "low_rank"):
        encoder = Encoder.load(base, device="cpu")
        # lora_B is 0: nothing but the base layer's own input can be dropped.
        encoder.module.model = add_adapter(
            encoder.module.model, rank=4, alpha=8, dropout=0.5, targets="all", train_embeddings=False, use_dora=True,
            dropout_on=dropout_on,
        )  # fmt: skip
        with torch.no_grad():
            for name, parameter in encoder.module.named_parameters():
                if "magnitude" in name:
                    parameter.mul_(1.2)
        encoder.module.train()
        vectors[dropout_on] = [encoder.embed([Content("a cat")]) for _ in range(2)]
    assert np.array_equal(*vectors["low_rank"])
    assert not np.array_equal(*vectors["input"])
    with pytest.raises(ValueError, match="unknown dropout_on 'x'; known: input, low_rank"):
        add_adapter(
            encoder.module.model, rank=4, alpha=8, dropout=0.5, targets="all", train_embeddings=False, dropout_on="x"
        )


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("mllama", "language_model.embed_tokens"),
        ("idefics3", "text_model.embed_tokens"),
        ("clip", "text_model.embeddings.token_embedding"),
        ("siglip", "text_model.embeddings.token_embedding"),
        ("vision_text_dual_encoder", "text_model.embeddings.word_embeddings"),
    ],
)
def test_token_embeddings_train_whatever_a_family_calls_them(
    family: str, name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    base = checkpoint(family)
    encoder = Encoder.load(base, device="cpu", dtype="bfloat16")
    assert train_weights(encoder.module.model, targets=["q_proj", "query"], train_embeddings=True).count(
        f"{name}.weight"
    ) == 1  # fmt: skip
    encoder = Encoder.load(base, device="cpu", dtype="bfloat16")
    model = encoder.module.model = add_adapter(
        encoder.module.model, rank=2, alpha=4, dropout=0.0, targets="language", train_embeddings=True
    )
    trainable = {key: p for key, p in model.named_parameters() if p.requires_grad and ".lora_" not in key}
    (weight,) = trainable.values()
    assert next(iter(trainable)).endswith(f"{name}.modules_to_save.default.weight") and weight.dtype == torch.float32
    (batch,) = encoder.batches([Content("a cat")], [None], max_batch_rows=1, max_batch_tokens=99)
    encoder.module([batch])[:, 0].sum().backward()
    assert weight.grad is not None and float(weight.grad.abs().max()) > 0
    before = encoder.embed([Content("a cat")])
    with torch.no_grad():
        weight.mul_(-1)
    encoder.module.eval()
    expected = encoder.embed([Content("a cat")])
    assert np.abs(expected - before).max() > 1e-3
    encoder.save(tmp_path / "model")
    assert np.abs(Encoder.load(tmp_path / "model").embed([Content("a cat")]) - expected).max() < 1e-2  # bfloat16


def test_train_embeddings_of_a_model_without_known_ones_is_refused() -> None:
    with pytest.raises(ValueError, match="train_embeddings: Sequential has no token embeddings"):
        train_weights(torch.nn.Sequential(torch.nn.Linear(2, 2)), targets="all", train_embeddings=True)


def test_a_row_of_length_0_trains_with_dora_as_with_lora(base: Path) -> None:
    rows = {}
    for use_dora in (True, False):
        torch.manual_seed(0)
        encoder = Encoder.load(base, device="cpu")
        layer = encoder.module.model.get_submodule("language_model.layers.0.mlp.up_proj")
        layer.weight.data[1] = 0
        model = encoder.module.model = add_adapter(
            encoder.module.model, rank=2, alpha=4, dropout=0.0, targets=["language_model.layers.0.mlp.up_proj"],
            train_embeddings=False, use_dora=use_dora,
        )  # fmt: skip
        trainable = [p for key, p in model.named_parameters() if p.requires_grad and "magnitude" not in key]
        optimizer = torch.optim.SGD(trainable, lr=1.0)
        (weight,) = [p for key, p in model.named_parameters() if "lora_B" in key]
        (batch,) = encoder.batches([Content("a cat")], [None], max_batch_rows=1, max_batch_tokens=99)
        for step in range(3):
            with weights_at_rest(model):
                encoder.module([batch])[:, 0].sum().backward()
            assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
            optimizer.step()
            optimizer.zero_grad()
            if step == 0:
                rows[use_dora] = weight[1].detach().clone()
        assert np.isfinite(encoder.embed([Content("a cat")])).all()
    assert float(rows[False].abs().max()) > 0
    torch.testing.assert_close(rows[True], rows[False])
