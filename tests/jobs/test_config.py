"""The configuration of a job: recipe, overrides, what is refused, and what the fingerprint covers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mme5core.errors import InputError
from mme5core.settings import Section, key
from rayjobs.command.config import JobConfig, fingerprint, resolve_paths, row_keys
from rayjobs.command.load import load_config as load_verb
from rayjobs.embed_corpus.config import EmbedCorpusConfig
from rayjobs.synth.config import SynthConfig
from rayjobs.train.config import TrainConfig
from tests.jobs.every_job import every_job

JOBS = every_job()
# The keys that a job cannot do without.
REQUIRED = {
    "synth": ["input=pictures"],
    "train": ["input=samples", "model=base"],
    "embed-corpus": ["input=corpus", "model=base"],
    "mine": ["queries=vectors", "candidates=vectors"],
    "judge": ["input=samples", "neighbours=near"],
    "rerank": ["input=queries", "neighbours=near"],
    "evaluate": ["benchmark=bench"],
    "demo": [],
}


def load_config(job: str, recipe: str | None, overrides: Sequence[str]) -> JobConfig:
    return load_verb(JOBS[job], "", recipe, overrides)


def load_synth(recipe: Path | None, *overrides: str) -> SynthConfig:
    config = load_config("synth", str(recipe) if recipe else None, overrides)
    assert isinstance(config, SynthConfig)
    return config


def load_train(*overrides: str) -> TrainConfig:
    config = load_config("train", None, [*REQUIRED["train"], *overrides])
    assert isinstance(config, TrainConfig)
    return config


def refusal(job: str, *overrides: str, recipe: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_config(job, str(recipe) if recipe else None, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def print_of(job: str, *overrides: str, **identities: str) -> str:
    return fingerprint(load_config(job, None, [*REQUIRED[job], *overrides]), **identities)


def test_a_job_reads_its_own_section_of_a_recipe(tmp_path: Path) -> None:
    text = "synth: {input: pictures, seed: 3}\nembed-corpus: {input: corpus, model: m, seed: 4, batch_size: 7}"
    recipe = write(tmp_path / "r.yaml", text)
    assert (load_synth(recipe).input, load_synth(recipe).seed) == (["pictures"], 3)
    embed = load_config("embed-corpus", str(recipe), [])
    assert isinstance(embed, EmbedCorpusConfig)
    assert (embed.input, embed.seed, embed.max_batch_rows) == (["corpus"], 4, 7)


def test_a_recipe_without_sections_is_the_jobs_own(tmp_path: Path) -> None:
    config = load_synth(write(tmp_path / "r.yaml", "input: [a, b]\nteacher: {model: m, concurrency: 4}"))
    assert (config.input, config.teacher.model, config.teacher.concurrency) == (["a", "b"], "m", 4)


def test_an_override_wins_over_the_recipe_and_leaves_its_neighbours(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "synth: {input: a, seed: 3, teacher: {model: m, concurrency: 4}}")
    config = load_synth(recipe, "teacher.model=other", "seed=5", "budget.calls=9")
    assert (config.teacher.model, config.teacher.concurrency) == ("other", 4)
    assert (config.seed, config.budget.calls, config.budget.usd) == (5, 9, None)


def test_overrides_read_lists_mappings_nulls_globs_and_1e_4() -> None:
    config = load_synth(None, "input=[x/*.tar, y]", "tasks={vqa: 2e0, retrieval: 1}", "languages=null", "limit=1e3")
    assert (config.input, config.tasks) == (["x/*.tar", "y"], {"vqa": 2.0, "retrieval": 1.0})
    assert (config.languages, config.limit) == (None, 1000)
    assert load_synth(None, "input=*.tar").input == ["*.tar"]
    assert load_train("learning_rate=1e-4", "lora.targets=[q_proj, v_proj]").learning_rate == 0.0001
    assert load_train("lora.targets=[q_proj, v_proj]").lora.targets == ["q_proj", "v_proj"]


def test_a_value_may_hold_an_equals_sign() -> None:
    assert load_synth(None, "input=a", "teacher.base_url=http://h/v1?x=1").teacher.base_url == "http://h/v1?x=1"


def test_norwegian_is_a_language_not_a_boolean(tmp_path: Path) -> None:
    assert load_synth(None, "input=a", "languages=[it, no]").languages == ["it", "no"]
    assert load_synth(write(tmp_path / "r.yaml", "input: a\nlanguages: [it, no]")).languages == ["it", "no"]


def test_a_folder_named_like_a_date_or_a_number_is_a_folder() -> None:
    assert load_synth(None, "input=a", "output=2024-01-31").output == "2024-01-31"
    assert load_synth(None, "input=2024", "output=7").output == "7"


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("sampels_per_image", "samples_per_image"), ("teacher.base_ulr", "teacher.base_url"), ("inptu", "input")],
)
def test_an_unknown_key_is_quoted_with_the_nearest_known_one(typed: str, nearest: str) -> None:
    message = refusal("synth", "input=a", f"{typed}=3")
    assert f"{typed!r}" in message and f"{nearest!r}" in message


def test_an_unknown_key_is_quoted_even_where_a_required_one_is_missing() -> None:
    # The usual way to miss a key is to misspell it.
    message = refusal("synth", "inptu=a")
    assert "'inptu'" in message and "'input'" in message


def test_a_key_in_an_unknown_section_is_quoted_as_typed() -> None:
    assert "'teachr.model'" in refusal("synth", "input=a", "teachr.model=m")


def test_an_unknown_key_far_from_all_is_answered_with_the_known_ones() -> None:
    message = refusal("synth", "input=a", "zzzzqqqq=3")
    assert "'zzzzqqqq'" in message and "samples_per_image" in message and "teacher.base_url" in message


def test_a_missing_required_key_is_named() -> None:
    assert "'input'" in refusal("synth")
    assert "'model'" in refusal("train", "input=a")
    assert "'benchmark'" in refusal("evaluate")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("samples_per_image=0", ["samples_per_image=0", "1"]),
        ("limit=many", ["limit='many'"]),
        ("input=[]", ["input=[]", "no input"]),
        ("teacher.timeout_s=-1", ["teacher.timeout_s=-1", "0"]),
    ],
)
def test_a_bad_value_is_quoted_with_its_key_and_the_rule(override: str, words: list[str]) -> None:
    message = refusal("synth", "input=a", override)
    assert all(word in message for word in words), message


def test_a_bad_value_of_a_key_with_alternatives_is_quoted_by_the_key_alone() -> None:
    assert refusal("train", *REQUIRED["train"], "lora.targets={a: 1}").startswith("lora.targets={'a': 1}:")


@pytest.mark.parametrize("override", ["seed", "=3", "seed.sub=3"])
def test_what_is_no_override_is_quoted(override: str) -> None:
    assert override.partition("=")[0] in refusal("synth", "input=a", "seed=1", override)


def test_a_recipe_that_is_not_there_is_quoted_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"'demmo'.*\bdemo\b"):
        load_config("synth", "demmo", [])


def test_a_recipe_for_other_jobs_or_with_a_misspelt_section_is_refused(tmp_path: Path) -> None:
    assert "'train'" in refusal("train", recipe=write(tmp_path / "other.yaml", "synth: {input: a}"))
    message = refusal("synth", recipe=write(tmp_path / "typo.yaml", "synth: {input: a}\ntrian: {input: a}"))
    assert "'trian'" in message and "'train'" in message


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"synth: [", b"synth: 5", b"\xff\xd8\xff\xe0 a picture"])
def test_a_recipe_that_holds_no_keys_is_a_bad_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        load_config("synth", str(tmp_path / "bad.yaml"), [])


@pytest.mark.parametrize("job", sorted(JOBS))
def test_the_demo_recipe_is_valid_for_every_job(job: str) -> None:
    assert load_config(job, "demo", []).output.startswith("runs/demo")


def test_resolving_makes_the_output_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_paths(JobConfig(output="a/b")).output == str(tmp_path / "a/b")


@pytest.mark.parametrize("job", sorted(JOBS))
def test_workers_and_place_do_not_change_the_fingerprint(job: str) -> None:
    assert print_of(job, "num_workers=4", "output=elsewhere") == print_of(job, "num_workers=8")


def test_a_key_that_was_renamed_works_under_both_names_and_leaves_the_fingerprint(tmp_path: Path) -> None:
    by_either = [load_synth(None, "input=a", f"teacher.{name}=99") for name in ("max_tokens", "max_answer_tokens")]
    assert [config.teacher.max_answer_tokens for config in by_either] == [99, 99]
    assert fingerprint(by_either[0]) == fingerprint(by_either[1])
    recipe = write(tmp_path / "r.yaml", "input: a\nteacher: {batch_size: 7}")
    assert load_synth(recipe).teacher.calls_per_batch == 7
    assert load_synth(recipe, "teacher.calls_per_batch=8").teacher.calls_per_batch == 8
    twice = write(tmp_path / "twice.yaml", "input: a\nteacher: {batch_size: 7, calls_per_batch: 8}")
    assert "'calls_per_batch' is set twice" in refusal("synth", recipe=twice)


@pytest.mark.parametrize(
    ("job", "overrides", "identities", "expected"),
    [
        ("synth", ["teacher.max_tokens=99"], {}, "2a0a900f149d52a1"),
        ("embed-corpus", ["batch_size=7", "instruction.I=x"], {"model": "m"}, "cb35bd284fbafe45"),
        ("train", ["lora.rank=4"], {"model": "m"}, "931dfc62bb4d6c9e"),
        ("evaluate", ["also.x.input=v"], {"benchmark": "b"}, "39100a3fdd2f3087"),
    ],
)
def test_a_folder_of_version_0_1_has_the_fingerprint_that_it_had(
    job: str, overrides: list[str], identities: dict[str, str], expected: str
) -> None:
    assert print_of(job, *overrides, input="same", **identities) == expected


def test_a_key_that_was_added_later_counts_only_where_it_is_set() -> None:
    class Later(JobConfig):
        strength: int = key(1, "New in this version.", added_later=True)

    assert fingerprint(Later(output="a")) == fingerprint(JobConfig(output="a"))
    assert fingerprint(Later(output="a", strength=2)) != fingerprint(JobConfig(output="a"))


def test_a_key_that_was_added_later_counts_in_a_table_of_sections_too_only_where_it_is_set() -> None:
    class Entry(Section):
        strength: int = key(1, "New in this version.", added_later=True)

    class Entries(JobConfig):
        entries: dict[str, Entry] = key({}, "Sections by name.")

    prints = {
        fingerprint(Entries(output="a", entries={"x": entry}))
        for entry in (Entry(), Entry(strength=1), Entry(strength=2))
    }
    assert len(prints) == 2
    assert row_keys(Entries(entries={"x": Entry()}))["entries"] == {"x": {}}


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run"])
def test_an_output_that_is_an_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="must be a folder that every node sees"):
        resolve_paths(JobConfig(output=address))


@pytest.mark.parametrize(("job", "verb", "more"), [("demo", "", []), ("synth", "gallery", ["input=a"])])
def test_an_output_may_lie_in_the_home_folder(
    job: str, verb: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_verb(JOBS[job], verb, None, [*more, "output=~/there"])
    assert resolve_paths(config).output == str(tmp_path / "there")


def test_checkpoints_named_by_a_relative_path_lie_where_the_job_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_paths(load_train("checkpoints=kept/here")).checkpoints == str(tmp_path / "kept" / "here")
    assert resolve_paths(load_train("checkpoints=s3://bucket/run")).checkpoints == "s3://bucket/run"
    assert resolve_paths(load_train()).checkpoints is None


def test_a_model_is_an_absolute_path_where_there_is_such_a_folder_and_else_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert resolve_paths(load_train("model=base")).model == str(tmp_path / "base")
    assert resolve_paths(load_train("model=owner/name")).model == "owner/name"


@pytest.mark.parametrize(
    "override",
    [
        "budget.calls=5",
        "budget.usd=0.5",
        "prices.prompt=3",
        "teacher.base_url=http://elsewhere/v1",
        "teacher.concurrency=3",
        "teacher.timeout_s=9",
        "teacher.max_attempts=2",
        "teacher.form=plain",
        "teacher.omit=[seed]",
        "input=moved",
    ],
)
def test_what_does_not_change_rows_does_not_change_the_fingerprint(override: str) -> None:
    assert print_of("synth", override, input="same") == print_of("synth", input="same")


def test_what_changes_rows_changes_the_fingerprint() -> None:
    changes = ["seed=1", "limit=5", "samples_per_image=2", "languages=[it]", "tasks={vqa: 1}", "num_negatives=2"]
    changes += ["teacher.model=m", "teacher.temperature=0.5", "teacher.max_tokens=99"]
    changes += ["teacher.extra={top_p: 0.9}", "teacher.max_picture_side=512", "min_criterion_score=2"]
    prints = [print_of("synth", change, input="same") for change in changes]
    prints += [print_of("synth", input="same"), print_of("synth", input="other")]
    assert len(set(prints)) == len(changes) + 2


def test_moving_what_further_scores_read_does_not_change_the_fingerprint() -> None:
    def of(path: str) -> str:
        return print_of("evaluate", f"also.base.input={path}/vectors", **{"input (base)": "same"})

    assert of("here") == of("there")


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("columns=url", r"write columns=\[url\]"),
        ("instruction=Find", "its keys are instruction.T, instruction.I, instruction.IT"),
        ("instruction.T=Q: ", r"read as YAML, so quote this one: 'instruction.T=\"...\"'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_how_to_write_it(override: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        load_config("embed-corpus", None, ["input=x", "model=m", override])


def test_a_weight_that_is_set_alone_leaves_the_others_as_they_are() -> None:
    config = load_config("synth", None, ["input=a", "tasks.vqa=0", "combinations.T2I=2", "teacher.model=m"])
    assert isinstance(config, SynthConfig)
    assert config.tasks == {"classification": 1.0, "vqa": 0.0, "retrieval": 2.0}
    assert config.combinations == {"T2I": 2.0} and config.teacher.model == "m"
    whole = load_config("synth", None, ["input=a", "tasks={vqa: 3}"])
    assert isinstance(whole, SynthConfig) and whole.tasks == {"vqa": 3.0}
    assert SynthConfig(input=["a"]).tasks == {"classification": 1.0, "vqa": 1.0, "retrieval": 2.0}


def test_a_mapping_without_a_space_behind_the_colon_is_explained() -> None:
    with pytest.raises(InputError, match=r"^tasks: 'vqa:0' has no value; YAML wants a space, as in \{vqa: 0\}$"):
        load_config("synth", None, ["input=a", "tasks={vqa:0}"])
