"""The whole path on a real corpus, on this machine's CPU: demo --config demo [output=runs/demo]"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from mme5core.progress import duration
from rayjobs.command.outcome import Outcome
from rayjobs.demo.base import make_base
from rayjobs.demo.config import DemoConfig
from rayjobs.demo.corpus import make_corpus
from rayjobs.demo.run_job import run_job
from rayjobs.demo.teacher import make_teacher


def run(config: DemoConfig) -> Outcome:
    root = Path(config.output)
    root.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    steps = {
        "corpus": lambda: make_corpus(config, root),
        "base": lambda: make_base(config, root),
        "synth": lambda: _synth(config, root),
        "train": lambda: _job("train", root, f"seed={config.seed}", f"num_workers={config.num_workers}"),
        "embed-corpus": lambda: _job("embed-corpus", root),
        "embed-corpus-base": lambda: _job("embed-corpus", root, f"model={root}/base", folder="embed-corpus-base"),
        "evaluate": lambda: _job("evaluate", root),
    }
    counters: dict[str, Any] = {}
    for number, (name, step) in enumerate(steps.items(), start=1):
        print(f"\n[{number}/{len(steps)}] {name}", file=sys.stderr, flush=True)
        step_started = time.monotonic()
        counters[name] = step()
        print(f"    {name}: {duration(time.monotonic() - step_started)}", file=sys.stderr, flush=True)
    scores = {
        name: json.loads((root / "evaluate" / file).read_text())["mean"]["recall@10"]
        for name, file in (("unseen", "metrics.json"), ("base", "metrics-base.json"), ("seen", "metrics-seen.json"))
    }
    print(
        f"\nRecall@10 on unseen pairs {scores['unseen']:.3f} (base {scores['base']:.3f}), on seen {scores['seen']:.3f}"
    )
    print(f"report: {root / 'evaluate' / 'report.html'}; took {duration(time.monotonic() - started)}")
    return Outcome({"recall@10": scores} | counters)


def _synth(config: DemoConfig, root: Path) -> dict[str, Any]:
    if (root / "synth" / "_SUCCESS").exists():
        return _job("synth", root, "teacher.base_url=http://127.0.0.1:9/v1", f"seed={config.seed}")
    with make_teacher(root) as teacher:
        print(f"demo teacher: {teacher.base_url}", file=sys.stderr)
        return _job("synth", root, f"teacher.base_url={teacher.base_url}", f"seed={config.seed}")


def _job(name: str, root: Path, *overrides: str, folder: str = "") -> dict[str, Any]:
    """Run one job as a user would, with the demo's recipe moved below `root`; returns its counters.

    Raises:
        WorkFailed: it ended with another code than 0.
    """
    return run_job([name, "--config", "demo", *_moved(name, root), f"output={root / (folder or name)}", *overrides])


def _moved(name: str, root: Path) -> list[str]:
    """The recipe's inputs below `root` instead of runs/demo."""
    return {
        "synth": [f"input={root}/corpus/*.tar", f"neighbours={root}/neighbours", f"holdout={root}/holdout.parquet"],
        "train": [f"input={root}/synth", f"model={root}/base"],
        "embed-corpus": [f"input=[{root}/corpus/*.tar, {root}/benchmark/queries]", f"model={root}/train/model"],
        "evaluate": [
            f"input={root}/embed-corpus",
            f"benchmark={root}/benchmark/unseen",
            f"also.base.input={root}/embed-corpus-base",
            f"also.seen.benchmark={root}/benchmark/seen",
        ],
    }[name]
