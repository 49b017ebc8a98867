"""The demo's table with UniME-V2's rows: demo full [output=runs/demo] [seeds=[0,1,2]]

What is measured is text-to-picture retrieval on pairs of picture and language that no training has seen. All trainings
take the same samples, steps and seeds; they differ by their hard negatives and by the loss.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mme5core.durable import write_json
from mme5core.errors import WorkFailed
from rayjobs.command.outcome import Outcome
from rayjobs.demo import job as demo
from rayjobs.demo.config import DemoConfig, FullDemoConfig
from rayjobs.demo.run_job import run_job
from rayjobs.demo.teacher import make_teacher

SAMPLES, JUDGE, TABLE = "samples", "judge-model", "table.json"
# Student's t for 95 % by the number of seeds.
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
METRICS = ("recall@1", "recall@10", "mrr")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Args:
        name: of its folder.
        title: as the table has it.
        against: the row that it is compared with.
    """

    name: str
    title: str
    against: str = ""


ROWS = (
    Row("base", "base model"),
    Row("synthetic", "+ synthetic samples", "base"),
    Row("mined", "+ mined negatives", "synthetic"),
    Row("judged", "+ judged negatives", "mined"),
    Row("soft", "+ soft labels", "judged"),
    Row("distilled", "distilled from the reranker", "judged"),
    Row("reranked", "+ reranker, on the trained model's 20 nearest", "synthetic"),
    Row("oracle", "judged by the demo teacher (upper bound)", "mined"),
    Row("oracle-soft", "its soft labels (upper bound)", "oracle"),
)


def run(config: FullDemoConfig) -> Outcome:
    demo.run(DemoConfig(**{name: getattr(config, name) for name in DemoConfig.model_fields}))
    root = Path(config.output)
    full = root / "full"
    full.mkdir(exist_ok=True)
    scores: dict[str, list[dict[str, float]]] = {row.name: [] for row in ROWS}
    samples = _samples(root, full)
    judge: Path | None = None
    for seed in config.seeds:
        steps = _Steps(config, root, full, full / f"seed-{seed}", samples, seed)
        scores["base"].append(steps.evaluated("base", root / "base"))
        trained = steps.trained("synthetic", samples)
        scores["synthetic"].append(steps.evaluated("synthetic", trained))
        near = steps.mined(trained)
        if judge is None:
            judge = steps.judge()
        scores["mined"].append(steps.evaluated("mined", steps.trained("mined", steps.exported(near))))
        judged = steps.judged("judged", near, [f"judge.model={judge}"])
        for name, more in (("judged", ()), ("soft", _SOFT), ("distilled", _DISTILLED)):
            scores[name].append(steps.evaluated(name, steps.trained(name, judged, *more)))
        scores["reranked"].append(steps.reranked(trained, judge))
        oracle = steps.judged_by_teacher(near)
        for name, more in (("oracle", ()), ("oracle-soft", _SOFT)):
            scores[name].append(steps.evaluated(name, steps.trained(name, oracle, *more)))
    rows = list(table_rows(scores))
    write_json(full / TABLE, {"seeds": config.seeds, "num_steps": config.num_steps, "rows": rows, "scores": scores})
    print("\n" + "\n".join(table_lines(rows, len(config.seeds))))
    return Outcome({"rows": len(rows), "seeds": len(config.seeds)})


_SOFT = ("loss.kind=soft_label_kl", "loss.in_batch_weight=1")
_DISTILLED = ("loss.kind=distillation", "loss.in_batch_weight=1", "loss.symmetric=false")


@dataclass(frozen=True, slots=True)
class _Steps:
    """The jobs of one seed, each in a folder of its own that is left as it is when it is done."""

    config: FullDemoConfig
    root: Path
    full: Path
    folder: Path
    samples: Path
    seed: int

    def trained(self, name: str, samples: Path, *more: str) -> Path:
        """A model that starts from the base."""
        output = self.folder / f"train-{name}"
        self._job(
            "train",
            output,
            "--config",
            "demo",
            f"input={samples}",
            f"model={self.root / 'base'}",
            f"seed={self.seed}",
            f"num_workers={self.config.num_workers}",
            f"num_steps={self.config.num_steps}",
            f"num_negatives={self.config.num_negatives if name != 'synthetic' else 1}",
            *more,
        )
        return output / "model"

    def evaluated(self, name: str, model: Path) -> dict[str, float]:
        return self._scores(name, f"model={model}", "image_instruction=Represent the given image.")

    def mined(self, model: Path) -> Path:
        """The nearest positives of other samples, by a model."""
        for side, more in (("query", ()), ("target", ("instruction.I=Represent the given image.",))):
            arguments = [f"input={self.samples}", f"side={side}", f"model={model}", "batch_size=128", *more]
            self._job("embed-corpus", self.folder / side, *arguments)
        sets = [f"queries={self.folder / 'query'}", f"candidates={self.folder / 'target'}"]
        self._job("mine", self.folder / "mine", *sets, "top_k=5")
        return self.folder / "mine"

    def exported(self, near: Path) -> Path:
        output = self.folder / "mined-samples"
        if not output.exists():
            more = [f"samples={self.samples}", f"neighbours={near}", f"num_negatives={self.config.num_negatives}"]
            run_job(["mine", "export", *more, f"output={output}"])
        return output

    def judge(self) -> Path:
        """A small model that answers Yes or No, trained on the samples with far candidates.

        Of near ones it learns nothing in so few steps.
        """
        if (self.full / JUDGE / "_SUCCESS").exists():  # of whatever seed came first
            return self.full / JUDGE / "model"
        far = self.full / "far"
        sets = [f"queries={self.folder / 'query'}", f"candidates={self.folder / 'target'}"]
        self._job("mine", far, *sets, "top_k=5", "min_rank=300")
        samples = self.full / "far-samples"
        if not samples.exists():
            run_job(["mine", "export", f"samples={self.samples}", f"neighbours={far}", f"output={samples}"])
        arguments = [f"input={samples}", f"model={self.root / 'base'}"]
        arguments += [f"num_workers={self.config.num_workers}", f"num_steps={self.config.judge_steps}"]
        self._job("rerank train", self.full / JUDGE, *arguments, *_JUDGE_TRAINING)
        return self.full / JUDGE / "model"

    def judged(self, name: str, near: Path, judge: Sequence[str]) -> Path:
        output = self.folder / f"judge-{name}"
        select = [f"select.count={self.config.num_negatives}", "select.fill=published", "samples_per_file=1000"]
        arguments = [f"input={self.samples}", f"neighbours={near}", f"num_workers={self.config.num_workers}"]
        self._job("judge", output, *arguments, *judge, *select)
        return output

    def judged_by_teacher(self, near: Path) -> Path:
        with make_teacher(self.root) as teacher:
            judge = [f"judge.base_url={teacher.base_url}", "judge.model=demo-teacher", "judge.concurrency=64"]
            return self.judged("oracle", near, judge)

    def reranked(self, model: Path, judge: Path) -> dict[str, float]:
        """The benchmark's queries, the 20 nearest pictures of each in the judge's order."""
        benchmark = self.root / "benchmark" / "unseen"
        for part, more in (("queries", ()), ("candidates", ("instruction.I=Represent the given image.",))):
            arguments = [f"input={benchmark / part}.parquet", f"model={model}", "batch_size=128", *more]
            self._job("embed-corpus", self.folder / f"benchmark-{part}", *arguments)
        sets = [f"{part}={self.folder / f'benchmark-{part}'}" for part in ("queries", "candidates")]
        self._job("mine", self.folder / "benchmark-mine", *sets, "top_k=20")
        self._job(
            "rerank",
            self.folder / "rerank",
            f"input={benchmark / 'queries.parquet'}",
            f"candidates={benchmark / 'candidates.parquet'}",
            f"neighbours={self.folder / 'benchmark-mine'}",
            f"model={judge}",
            "top_k=20",
            f"num_workers={self.config.num_workers}",
        )
        return self._scores("reranked", f"input={self.folder / 'rerank'}")

    def _scores(self, name: str, *arguments: str) -> dict[str, float]:
        output = self.folder / f"evaluate-{name}"
        self._job("evaluate", output, *arguments, f"benchmark={self.root / 'benchmark' / 'unseen'}", "num_examples=0")
        mean: dict[str, float] = json.loads((output / "metrics.json").read_text())["mean"]
        return mean

    def _job(self, name: str, output: Path, *arguments: str) -> None:
        print(f"\n[seed {self.seed}] {output.relative_to(self.full)}", file=sys.stderr, flush=True)
        run_job([*name.split(), *arguments, f"output={output}"], shows=False)


_JUDGE_TRAINING = (
    "batch_size=128",
    "learning_rate=2e-3",
    "lora.rank=64",
    "lora.alpha=128",
    "lora.targets=all",
    "max_text_tokens=32",
    "list_negatives=0",
    "list_weight=0",
    "among=answers",
    "autocast=bfloat16",
)


def _samples(root: Path, full: Path) -> Path:
    """The demo's samples from text to picture."""
    folder = full / SAMPLES
    if not folder.exists():
        staged = full / f".{SAMPLES}"
        staged.mkdir(exist_ok=True)
        for file in sorted((root / "synth").glob("part-*.parquet")):
            rows = pq.read_table(file)
            pq.write_table(rows.filter(pc.equal(rows["modality_combination"], "T2I")), staged / file.name)
        staged.rename(folder)
    return folder


def table_rows(scores: dict[str, list[dict[str, float]]]) -> Iterator[dict[str, Any]]:
    """For each row the means over the seeds, and the gain over the row that it is compared with, by seed."""
    for row in ROWS:
        own = scores[row.name]
        if not own:
            raise WorkFailed(f"row {row.name!r} has no scores")
        means = {name: float(np.mean([of_seed[name] for of_seed in own])) for name in METRICS}
        line: dict[str, Any] = {"row": row.title, "against": row.against} | means
        if row.against:
            gains = [a["recall@10"] - b["recall@10"] for a, b in zip(own, scores[row.against], strict=True)]
            low, high = interval(gains)
            line |= {"gain": float(np.mean(gains)), "low": low, "high": high, "is_gain": low > 0}
        yield line


def interval(gains: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t; of one seed anything.

    >>> low, high = interval([0.01, 0.02, 0.03])
    >>> round(low, 4), round(high, 4)
    (-0.0048, 0.0448)
    """
    if len(gains) < 2:
        return -1.0, 1.0
    half = _T95.get(len(gains), 2.0) * float(np.std(gains, ddof=1)) / len(gains) ** 0.5
    return float(np.mean(gains)) - half, float(np.mean(gains)) + half


def table_lines(rows: Sequence[dict[str, Any]], num_seeds: int) -> Iterator[str]:
    width = max(len(row["row"]) for row in rows)
    yield f"{'':<{width}}  R@1    R@10   MRR    gain in R@10, 95 % interval over {num_seeds} seeds"
    for row in rows:
        cells = "  ".join(f"{row[name]:.3f}" for name in METRICS)
        gain = ""
        if row["against"]:
            verdict = "" if row["is_gain"] else ", none"
            gain = f"  {row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]{verdict}, against {row['against']}"
        yield f"{row['row']:<{width}}  {cells}{gain}"
