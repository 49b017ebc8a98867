"""Scores of vectors or of a model on a benchmark: evaluate benchmark=bench/ input=vectors/ output=scores/"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mme5core.durable import write_json
from mme5core.errors import InputError
from mme5core.evaluation.benchmark import Benchmark, holds_rankings, read_benchmark, read_rankings, read_vectors
from mme5core.evaluation.report import ScoreSet, html, table
from mme5core.evaluation.retrieval import score, score_rankings
from mme5core.hub import pinned
from mme5core.progress import Progress
from mme5core.types import Content, EvalQuery, Rejected
from rayjobs.command.outcome import Outcome
from rayjobs.evaluate.config import EvaluateConfig
from rayjobs.evaluate.inputs import evaluate_folder


def run(config: EvaluateConfig) -> Outcome:
    config = _with_pinned_models(config)
    with evaluate_folder(config) as folder:
        finished = folder.open()
        if finished:
            print(_stored_table(folder.path))
            return Outcome(finished["counters"], reason="already done")
        try:
            main_set, benchmark, refused = _score(config, "", config.input, config.model, config.benchmark)
            sets = [main_set]
            for name, also in config.also.items():
                model = also.model or (None if also.input else config.model)
                vectors = also.input or (None if also.model else config.input)
                sets.append(_score(config, name, vectors, model, also.benchmark or config.benchmark)[0])
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"cannot score: {error}") from None
        for score_set, name in zip(sets, ["", *config.also], strict=True):
            file = folder.path / (f"metrics-{name}.json" if name else "metrics.json")
            write_json(file, score_set.scores.as_json(model=score_set.model, benchmark=score_set.benchmark))
        contents = dict(zip(benchmark.candidate_ids, benchmark.contents, strict=True))
        title = config.title or f"{benchmark.name}: retrieval scores"
        page = html(title, sets, contents, num_examples=config.num_examples)
        temporary = folder.work / "report.html"
        temporary.write_text(page, encoding="utf-8")
        temporary.rename(folder.path / "report.html")
        shown = table(sets)
        (folder.path / "table.txt").write_text(shown + "\n", encoding="utf-8")
        print(shown)
        print(f"report: {folder.path / 'report.html'}")
        counters = folder.finish(
            unit="queries",
            num_read=len(benchmark.queries),
            num_kept=main_set.scores.num_queries,
            refused=folder.write_quarantine(refused),
            pending=0,
            extra_counters={"candidates": main_set.scores.num_candidates},
        )
        return Outcome(counters)


def _with_pinned_models(config: EvaluateConfig) -> EvaluateConfig:
    """Models of the hub at the commit that they have now: what is identified is what is loaded."""

    def pin(model: str | None) -> dict[str, str | None]:
        return {"model": pinned(model) if model else model}

    also = {name: one.model_copy(update=pin(one.model)) for name, one in config.also.items()}
    return config.model_copy(update=pin(config.model) | {"also": also})


def _stored_table(folder: Path) -> str:
    """The table of a finished run."""
    file = folder / "table.txt"
    return file.read_text(encoding="utf-8").rstrip() if file.is_file() else ""


def _score(
    config: EvaluateConfig, name: str, vectors: list[str] | None, model: str | None, benchmark_path: str
) -> tuple[ScoreSet, Benchmark, list[Rejected]]:
    benchmark = read_benchmark(Path(benchmark_path))
    if vectors and holds_rankings(vectors):
        scores, refused = score_rankings(benchmark, read_rankings(vectors, benchmark))
        described = _model_of(vectors) or ", ".join(vectors)
        return ScoreSet(name or "this ranking", described, benchmark.name, scores), benchmark, refused
    if vectors:
        wanted = [query.id for query in benchmark.queries] + benchmark.candidate_ids
        vector_of = read_vectors(vectors, wanted)
        described = _model_of(vectors) or ", ".join(vectors)
    else:
        assert model is not None
        vector_of = _embed(config, model, benchmark)
        described = model
    scores, refused = score(benchmark, vector_of)
    return ScoreSet(name or "this model", described, benchmark.name, scores), benchmark, refused


def _model_of(vectors: list[str]) -> str:
    manifest = Path(vectors[0]) / "_manifest.json"
    return str(json.loads(manifest.read_text())["config"].get("model", "")) if manifest.is_file() else ""


def _embed(config: EvaluateConfig, model: str, benchmark: Benchmark) -> dict[str, np.ndarray]:
    """The benchmark's vectors, here in this process; for larger ones there is embed-corpus."""
    from mme5core.encoder import Encoder

    encoder = Encoder.load(model)
    ids = [query.id for query in benchmark.queries] + benchmark.candidate_ids
    contents = [_content_of(query) for query in benchmark.queries] + benchmark.contents
    instructions: list[str | None] = [query.instruction for query in benchmark.queries]
    instructions += [config.image_instruction if c.images else None for c in benchmark.contents]
    vector_of: dict[str, np.ndarray] = {}
    window = 32 * config.max_batch_rows
    with Progress("evaluate: embedding", len(ids), "contents") as progress:
        for start in range(0, len(ids), window):
            chosen = slice(start, start + window)
            matrix = encoder.embed(contents[chosen], instructions[chosen], batch_size=config.max_batch_rows)
            vector_of |= dict(zip(ids[chosen], matrix, strict=True))
            progress.update(len(vector_of))
    return vector_of


def _content_of(query: EvalQuery) -> Content:
    if query.content is None:
        raise ValueError(f"query {query.id!r} has no text to embed")
    return query.content
