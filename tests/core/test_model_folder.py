"""Tests of what a model folder is known to be before anything is loaded from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mme5core.model_folder import (
    ADAPTER_FILE,
    ENCODER_FILE,
    SAMPLE_BYTES,
    base_reference,
    check_model_files,
    find_base,
    has_adapter,
    model_identity,
    model_width,
    read_settings,
)

FILES: dict[str, str] = {
    "config.json": '{"text_config": {"hidden_size": 64}, "hidden_size": 7}',
    "tokenizer.json": "{}",
    "preprocessor_config.json": "{}",
    "model.safetensors": "weights",
}


def base_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def adapter_at(folder: Path, settings: dict[str, Any], *, base_in_adapter: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / ENCODER_FILE).write_text(json.dumps({"prompt_style": "mme5"} | settings))
    (folder / ADAPTER_FILE).write_text(json.dumps({"r": 8, "base_model_name_or_path": base_in_adapter}))
    (folder / "adapter_model.safetensors").write_text("adapter")
    return folder


def test_a_model_of_its_own_is_its_base(tmp_path: Path) -> None:
    base = base_at(tmp_path / "base")
    assert find_base(base) == str(base)
    assert not has_adapter(base)
    assert read_settings(base) == {}
    assert find_base("owner/name") == "owner/name"


def test_an_adapter_finds_its_base_after_both_have_moved(tmp_path: Path) -> None:
    base, folder = base_at(tmp_path / "here" / "base"), tmp_path / "here" / "run" / "model"
    adapter_at(folder, base_reference(str(base), folder))
    assert Path(find_base(folder)).resolve() == base
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / "run" / "model"
    assert Path(find_base(moved)).resolve() == tmp_path / "there" / "base"
    check_model_files(moved)


def test_an_adapter_that_moved_alone_finds_its_base_where_it_was(tmp_path: Path) -> None:
    base, folder = base_at(tmp_path / "base"), tmp_path / "model"
    adapter_at(folder, base_reference(str(base), folder))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    folder.rename(tmp_path / "deep" / "er" / "model")
    assert find_base(tmp_path / "deep" / "er" / "model") == str(base)


def test_another_base_in_the_same_place_and_a_lost_one_are_refused(tmp_path: Path) -> None:
    base, folder = base_at(tmp_path / "base"), tmp_path / "model"
    adapter_at(folder, base_reference(str(base), folder))
    (base / "model.safetensors").write_text("weightz")
    with pytest.raises(ValueError, match="is not the one"):
        find_base(folder)
    shutil.rmtree(base)
    with pytest.raises(ValueError, match="no longer there"):
        find_base(folder)


def test_a_base_on_the_hub_is_named_by_its_id(tmp_path: Path) -> None:
    assert base_reference("owner/name", tmp_path) == {"base": "owner/name"}
    assert find_base(adapter_at(tmp_path / "model", {"base": "owner/name"})) == "owner/name"


def test_an_adapter_without_our_settings_names_its_base_itself(tmp_path: Path) -> None:
    assert find_base(adapter_at(tmp_path / "peft", {}, base_in_adapter="owner/name")) == "owner/name"
    with pytest.raises(ValueError, match="names no base model"):
        find_base(adapter_at(tmp_path / "none", {}))


def test_settings_that_are_not_json_are_refused_by_file(tmp_path: Path) -> None:
    (tmp_path / ENCODER_FILE).write_text("{half")
    with pytest.raises(ValueError, match=f"{ENCODER_FILE}: not JSON"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("preprocessor_config.json", "no image processor"),
        ("model.safetensors", "no weights"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_that_part(tmp_path: Path, missing: str, message: str) -> None:
    base = base_at(tmp_path / "base")
    check_model_files(base)
    (base / missing).unlink()
    with pytest.raises(ValueError, match=message):
        check_model_files(base)


def test_an_adapter_without_weights_is_refused(tmp_path: Path) -> None:
    base, folder = base_at(tmp_path / "base"), tmp_path / "model"
    adapter_at(folder, base_reference(str(base), folder))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="the adapter has no weights"):
        check_model_files(folder)


@pytest.mark.parametrize("path", ["/no/such", "./no", "~/no", "name", "a/b/c"])
def test_a_path_to_nothing_is_no_hub_id(path: str) -> None:
    with pytest.raises(ValueError, match="not a folder, and not a hub id"):
        check_model_files(path)
    check_model_files("owner/name")


def test_the_width_is_that_of_the_text_model(tmp_path: Path) -> None:
    base = base_at(tmp_path / "base")
    assert model_width(adapter_at(tmp_path / "model", base_reference(str(base), tmp_path / "model"))) == 64
    (base / "config.json").write_text('{"hidden_size": 7}')
    assert model_width(base) == 7
    assert model_width("owner/name") is None


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_identity_changes_with_every_file_that_decides(tmp_path: Path, name: str) -> None:
    base = base_at(tmp_path / "base")
    before = model_identity(base)
    (base / name).write_text(FILES[name][::-1])
    assert model_identity(base) != before


def test_the_identity_is_neither_in_the_place_nor_in_notes_beside_it(tmp_path: Path) -> None:
    base = base_at(tmp_path / "base")
    before = model_identity(base)
    (base / "README.md").write_text("a model")
    assert model_identity(base.rename(tmp_path / "moved")) == before
    assert model_identity("owner/name") == "owner/name"


def test_where_the_base_lies_is_no_part_of_an_adapters_identity(tmp_path: Path) -> None:
    folders = [
        adapter_at(tmp_path / str(number), {"base": f"/{number}", "base_relative": f"../{number}"} | more)
        for number, more in enumerate([{}, {}, {"prompt_style": "e5v"}, {"base_identity": "0f"}])
    ]
    one, moved, other_style, other_base = map(model_identity, folders)
    assert one == moved
    assert len({one, other_style, other_base}) == 3


@pytest.mark.parametrize("place", [0, 2 * SAMPLE_BYTES + 100])
def test_of_a_large_file_both_ends_count(tmp_path: Path, place: int) -> None:
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as stream:
        stream.truncate(2 * SAMPLE_BYTES + 101)
    before = model_identity(tmp_path)
    with weights.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"x")
    assert model_identity(tmp_path) != before
