"""The keys of `synth` and of its verbs."""

from __future__ import annotations

from typing import Literal

from mme5core.asking.settings import BudgetSettings, PriceSettings, ServerSettings
from mme5core.corpus.picture_filters import FilterSettings
from mme5core.settings import Section, key, required
from mme5core.web import ALLOW_HOSTS
from rayjobs.command.config import InputJobConfig, JobConfig


class PairsConfig(Section):
    positive_ranks: tuple[int, int] = key((1, 3), "first and last rank among neighbours that may be the positive")
    negative_ranks: tuple[int, int] = key((4, 10), "first and last rank that may be a hard negative")
    positive_scores: tuple[float | None, float | None] = key(
        (None, None), "lowest and highest similarity of a positive (MegaPairs); null: any"
    )
    negative_scores: tuple[float | None, float | None] = key(
        (None, None), "lowest and highest similarity of a hard negative; null: any"
    )
    query_as_negative: bool = key(False, "the query's own picture is the first hard negative of a picture (MegaPairs)")


class SynthConfig(InputJobConfig):
    samples_per_image: int = key(1, "samples planned for each picture", ge=1)
    languages: list[str] | None = key(None, "language codes; null: all 93, high-resource ones more often")
    tasks: dict[str, float] = key(
        {"classification": 1.0, "vqa": 1.0, "retrieval": 2.0}, "share of each task, relative; only those named"
    )
    combinations: dict[str, float] = key(
        {}, "share of each modality combination within its task, relative; only those named, all where none of it is"
    )
    num_negatives: int = key(1, "hard negatives per sample", ge=1)
    min_self_evaluation: float | None = key(
        None, "lowest mean of the teacher's scores of its own draft, 1 to 5; null: any", ge=1, le=5
    )
    min_criterion_score: float | None = key(
        None,
        "lowest score of each criterion of that evaluation, 1 to 5; null: any",
        added_later=True,
        ge=1,
        le=5,
    )
    near_duplicate: float | None = key(
        0.9,
        "share of character trigrams from which two samples of the same pictures are one; null: keep all",
        gt=0,
        le=1,
    )
    filters: FilterSettings = key(FilterSettings(), "which pictures to use")
    pairs: PairsConfig = key(PairsConfig(), "which neighbours become positives and hard negatives")
    allow_hosts: list[str] | None = key(None, ALLOW_HOSTS, rows=False)
    unreachable: Literal["pending", "refuse"] = key(
        "pending", "pictures whose server does not answer: wait for the next run, or refuse them", rows=False
    )
    pictures: str | None = key(
        None, "folder or address that paths of pictures start from; null: the Parquet's", path="existing"
    )
    neighbours: str | None = key(
        None, "folder or file of similar pictures, for samples with a picture document", names_input=True
    )
    holdout: str | None = key(
        None, "Parquet of (image_id, language) pairs never to draw: a benchmark's", names_input=True
    )
    teacher: ServerSettings = key(ServerSettings(), "the MLLM that writes the samples")
    prices: PriceSettings = key(PriceSettings(), "what the teacher costs", rows=False)
    budget: BudgetSettings = key(BudgetSettings(), "what may be spent", rows=False)


class GalleryConfig(JobConfig):
    input: str = required("folder that synth wrote")
    output: str = key("", "HTML file to write; empty: beside the folder, INPUT-gallery.html", rows=False, path="local")
    num_samples: int = key(120, "samples shown, spread over tasks, modality combinations and languages", ge=0)
    num_refused: int = key(30, "refusals shown of each reason", ge=0)
    title: str = key("", "heading of the page; empty: the folder's name")


class ExportConfig(JobConfig):
    input: str = required("folder that synth wrote")
    layout: Literal["hub", "datasets"] = key(
        "datasets", "hub: mmE5's columns, a folder per task, pictures as files; datasets: our columns, pictures inside"
    )
    rows_per_file: int = key(20_000, "samples of one file", ge=1)
    title: str = key("", "heading of the card; empty: the folder's name")
