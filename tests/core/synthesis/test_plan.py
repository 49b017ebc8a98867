"""Tests of the plan: reproducible draws, pictures by rank, weights in their share, holdouts never drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from mme5core.languages import LANGUAGES, language_weight
from mme5core.synthesis.plan import COMBINATIONS, Neighbour, PairRules, PlannedSample, PlanSettings, plan_image

NEIGHBOURS = {"p": [f"n{rank}" for rank in range(1, 16)]}
RETRIEVAL = {"retrieval": 1.0}
MANY = 400


def plans(
    image_id: str = "p",
    *,
    tasks: Mapping[str, float] = RETRIEVAL,
    combinations: Mapping[str, float] | None = None,
    num_negatives: int = 2,
    neighbours: Mapping[str, list[str]] = NEIGHBOURS,
    pairs: PairRules | None = None,
    samples_per_image: int = MANY,
    languages: list[str] | None = None,
    holdout: Mapping[str, frozenset[str]] | None = None,
    seed: int = 0,
) -> list[PlannedSample]:
    settings = PlanSettings(
        seed=seed,
        samples_per_image=samples_per_image,
        tasks=tasks,
        combinations=combinations or {},
        languages=languages,
        num_negatives=num_negatives,
        pairs=pairs or PairRules(),
        holdout=holdout or {},
    )
    return plan_image(image_id, settings, [Neighbour(name) for name in neighbours.get(image_id, [])])


def test_a_plan_is_a_function_of_seed_picture_and_index() -> None:
    assert plans() == plans()
    assert plans(samples_per_image=3) == plans()[:3]
    assert [plan.id for plan in plans(samples_per_image=3)] == ["p-0", "p-1", "p-2"]
    assert plans(seed=1) != plans()
    other = plans("q", neighbours={"q": NEIGHBOURS["p"]})
    assert [plan.modality_combination for plan in other] != [plan.modality_combination for plan in plans()]


def test_equal_settings_give_equal_plans_in_whatever_order_the_tasks_are_written() -> None:
    one, other = {"vqa": 1.0, "retrieval": 3.0}, {"retrieval": 3.0, "vqa": 1.0}
    assert PlanSettings(tasks=one) == PlanSettings(tasks=other)
    assert plans(tasks=one) == plans(tasks=other)


def test_every_combination_of_a_task_is_drawn_and_no_other() -> None:
    for task, combinations in COMBINATIONS.items():
        found = plans(tasks={task: 1.0})
        assert {plan.modality_combination for plan in found} == set(combinations)
        assert {plan.task for plan in found} == {task}


@pytest.mark.parametrize("num_negatives", [0, 1, 3])
def test_pictures_are_those_that_the_combination_shows(num_negatives: int) -> None:
    for plan in plans(num_negatives=num_negatives):
        has_document_picture = "I" in plan.document_modality
        assert (plan.query_image is not None) == ("I" in plan.query_modality)
        assert (plan.positive_image is not None) == has_document_picture
        assert len(plan.negative_images) == (num_negatives if has_document_picture else 0)
        assert plan.image_ids == tuple(
            image for image in (plan.query_image, plan.positive_image, *plan.negative_images) if image is not None
        )
        assert len(set(plan.image_ids)) == len(plan.image_ids)
        assert "p" in plan.image_ids


def test_the_planned_picture_is_the_positive_of_a_text_query() -> None:
    found = [plan for plan in plans() if plan.query_modality == "T"]
    assert {plan.positive_image for plan in found} == {"p"}


def test_positives_have_ranks_1_to_3_and_negatives_4_to_10() -> None:
    found = plans()
    positives = {plan.positive_image for plan in found if plan.query_image and plan.positive_image}
    assert positives == {"n1", "n2", "n3"}
    negatives = {image for plan in found for image in plan.negative_images}
    assert negatives == {f"n{rank}" for rank in range(4, 11)}


def test_too_few_far_neighbours_are_made_up_from_the_nearest_without_the_positive() -> None:
    found = plans(neighbours={"p": ["n1", "n2", "n3", "n4"]}, num_negatives=3)
    image_to_image = [plan for plan in found if plan.query_image and plan.positive_image]
    assert {frozenset((plan.positive_image, *plan.negative_images)) for plan in image_to_image} == {
        frozenset(("n1", "n2", "n3", "n4"))
    }


@pytest.mark.parametrize(
    ("num_neighbours", "possible"),
    [
        (1, {"I2T", "IT2T"}),
        (2, {"I2T", "IT2T", "T2I", "T2IT"}),
        (3, set(COMBINATIONS["retrieval"])),
    ],
)
def test_a_combination_is_drawn_only_where_similar_pictures_suffice(num_neighbours: int, possible: set[str]) -> None:
    found = plans(neighbours={"p": NEIGHBOURS["p"][:num_neighbours]}, num_negatives=2)
    assert {plan.modality_combination for plan in found} == possible


def test_a_picture_is_never_its_own_neighbour() -> None:
    found = plans(neighbours={"p": ["p", "n1", "n2", "n3"]}, num_negatives=2)
    assert all(plan.image_ids.count("p") == 1 for plan in found)


def test_a_neighbour_that_two_sources_name_is_one_picture() -> None:
    found = plans(neighbours={"p": [name for name in NEIGHBOURS["p"][:8] for _ in range(2)]}, num_negatives=3)
    assert all(len(set(plan.image_ids)) == len(plan.image_ids) for plan in found)


def test_tasks_are_drawn_by_weight_and_never_at_weight_0() -> None:
    counts = Counter(plan.task for plan in plans(tasks={"classification": 0, "vqa": 1, "retrieval": 3}))
    assert set(counts) == {"vqa", "retrieval"}
    # 0.75 of 400, within four standard deviations.
    assert abs(counts["retrieval"] - 300) < 4 * (MANY * 0.75 * 0.25) ** 0.5


def test_combinations_are_drawn_by_weight_within_their_task_and_only_those_that_are_named() -> None:
    counts = Counter(plan.modality_combination for plan in plans(combinations={"T2I": 6, "I2T": 2, "T2IT": 0}))
    assert set(counts) == {"T2I", "I2T"}
    assert abs(counts["T2I"] - MANY * 0.75) < 4 * (MANY * 0.75 * 0.25) ** 0.5
    # Named, and not possible without neighbours.
    assert plans(combinations={"T2I": 1}, neighbours={}) == []


def test_a_task_of_which_no_combination_is_named_keeps_all_of_its_own() -> None:
    found = plans(tasks={"classification": 1, "retrieval": 1}, combinations={"IT2I": 1})
    by_task = {
        task: {p.modality_combination for p in found if p.task == task} for task in ("classification", "retrieval")
    }
    assert by_task == {"classification": {"I2T", "IT2T"}, "retrieval": {"IT2I"}}


def test_languages_that_are_given_are_equally_likely() -> None:
    counts = Counter(plan.language for plan in plans(languages=["en", "yi"]))
    assert abs(counts["yi"] - MANY / 2) < 4 * (MANY / 4) ** 0.5


def test_all_languages_are_drawn_by_their_weights() -> None:
    counts = Counter(plan.language for plan in plans(samples_per_image=2000))
    share = language_weight("en") / sum(map(language_weight, LANGUAGES))
    assert abs(counts["en"] - 2000 * share) < 4 * (2000 * share * (1 - share)) ** 0.5
    assert len(counts) > 80


def test_what_is_held_out_for_any_picture_shown_is_not_drawn() -> None:
    found = plans(languages=["it", "es", "ru"], holdout={"p": frozenset(["it"]), "n5": frozenset(["es"])})
    with_n5 = [plan.language for plan in found if "n5" in plan.image_ids]
    assert set(with_n5) == {"ru"}
    assert {plan.language for plan in found} == {"es", "ru"}


@pytest.mark.parametrize("languages", [["en", "it"], ["it"], None])
def test_a_holdout_of_every_language_leaves_no_sample_in_one_of_them(languages: list[str] | None) -> None:
    held_out = frozenset(LANGUAGES)
    found = plans(languages=languages, holdout={"p": held_out}, samples_per_image=5)
    assert [plan.language for plan in found if plan.language in held_out] == []


def test_the_digest_covers_what_every_draw_depends_on() -> None:
    base = PlanSettings()
    changes = [{"seed": 1}, {"tasks": RETRIEVAL}, {"languages": ["it"]}, {"num_negatives": 2}]
    assert len({base.digest, *(replace(base, **change).digest for change in changes)}) == 5  # type: ignore[arg-type]
    assert replace(base, samples_per_image=9).digest == base.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"vqq": 1.0}}, "unknown task 'vqq'; known: classification, vqa, retrieval, fused"),
        ({"tasks": {}}, "sum > 0"),
        ({"tasks": {"vqa": 0.0}}, "sum > 0"),
        ({"tasks": {"vqa": 2.0, "retrieval": -1.0}}, "weights >= 0"),
        ({"combinations": {"I2T": 0, "IT2T": 0}}, "those of classification have no weight; tasks.classification=0"),
        ({"languages": ["it", "xx"]}, "unknown language 'xx'"),
        ({"languages": []}, "languages is empty"),
    ],
)
def test_settings_from_which_nothing_can_be_drawn_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanSettings(**changes)  # type: ignore[arg-type]


def union(*rows: tuple[str, float, str], pairs: PairRules, num_negatives: int = 1) -> list[PlannedSample]:
    settings = PlanSettings(samples_per_image=MANY, tasks=RETRIEVAL, num_negatives=num_negatives, pairs=pairs)
    return plan_image("p", settings, [Neighbour(*row) for row in rows])


def test_ranks_count_within_each_source_and_a_neighbour_counts_that_is_near_in_any() -> None:
    rows = [(f"{source}{n}", 1.0 - n / 10, source) for source in "ab" for n in range(1, 5)]
    found = union(*rows, pairs=PairRules(positive_ranks=(1, 1), negative_ranks=(3, 4)))
    both = [plan for plan in found if plan.query_image and plan.positive_image]
    assert {plan.positive_image for plan in both} == {"a1", "b1"}
    assert {image for plan in both for image in plan.negative_images} == {"a3", "a4", "b3", "b4"}


def test_bands_of_similarity_choose_positives_and_negatives() -> None:
    rows = [(f"n{n}", 1.0 - n / 20, "clip") for n in range(1, 16)]
    rules = PairRules((1, 15), (1, 15), positive_scores=(0.8, 0.92), negative_scores=(0.4, 0.7))
    found = union(*rows, pairs=rules)
    both = [plan for plan in found if plan.query_image and plan.positive_image]
    assert {plan.positive_image for plan in both} == {"n2", "n3", "n4"}
    assert {image for plan in both for image in plan.negative_images} == {f"n{n}" for n in range(6, 13)}
    # Where no neighbour is in the positives' band, nothing is drawn that needs one.
    nothing = union(*rows, pairs=PairRules(positive_scores=(0.99, None)))
    assert all(plan.positive_image in (None, "p") for plan in nothing)


def test_the_querys_own_picture_may_be_the_first_hard_negative() -> None:
    rows = [(f"n{n}", 0.5, "") for n in range(1, 11)]
    found = union(*rows, pairs=PairRules(query_as_negative=True), num_negatives=2)
    for plan in found:
        if plan.query_image and plan.positive_image:
            assert plan.negative_images[0] == "p" and len(plan.negative_images) == 2
            assert plan.image_ids == ("p", plan.positive_image, plan.negative_images[1])
        else:
            assert "p" not in plan.negative_images


@pytest.mark.parametrize("ranks", [(0, 3), (4, 3)])
def test_ranks_that_nothing_can_have_are_refused(ranks: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="positive_ranks"):
        PairRules(positive_ranks=ranks)


def test_every_sample_has_a_seed_of_its_own() -> None:
    found = plans()
    assert len({plan.seed for plan in found}) == len(found)
    assert all(0 <= plan.seed < 2**31 for plan in found)
