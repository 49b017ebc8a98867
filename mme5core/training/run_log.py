"""The log of a run, a line a step, and its summary: written by the first process, read by the driver."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mme5core.durable import write_json
from mme5core.training.run_files import SUMMARY, whole_lines


def append_step(log: Path, result: Any) -> None:
    """Add the line of one step (`fit.StepResult`); a norm that is not finite is null."""
    line = asdict(result) | {"time": time.time()}
    if not math.isfinite(line["grad_norm"]):
        line["grad_norm"] = None
    with log.open("a") as lines:
        lines.write(json.dumps(line) + "\n")


def cut_log(log: Path, first_step: int) -> None:
    """Drop the lines of steps that will be done again, and one that a kill has cut."""
    log.parent.mkdir(parents=True, exist_ok=True)
    text = log.read_text(errors="replace") if log.is_file() else ""
    kept = [line for line in whole_lines(text) if line["step"] <= first_step]
    log.write_text("".join(json.dumps(line) + "\n" for line in kept))


def write_summary(work: Path, model: Any, *, first_step: int, passed_over: list[str]) -> None:
    """What trains, and where the run goes on.

    Args:
        first_step: how many steps earlier runs have done.
        passed_over: what is wrong with checkpoints that were newer, one line each.
    """
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    write_json(
        work / SUMMARY,
        {
            "adapted_layers": sorted({name.split(".lora_")[0] for name in trainable if ".lora_" in name}),
            "trained_weights": sorted(name for name in trainable if ".lora_" not in name),
            "trainable_parameters": sum(trainable.values()),
            "parameters": sum(p.numel() for p in model.parameters()),
            "first_step": first_step,
            "passed_over": passed_over,
        },
    )
