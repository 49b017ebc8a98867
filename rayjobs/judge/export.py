"""Judged samples as UniME-V2 has them: judge export input=judged/ output=dataset/"""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import islice
from pathlib import Path

from mme5core.errors import InputError
from mme5core.images import image_bytes
from mme5core.picture_formats import suffix_of
from mme5core.progress import Progress
from mme5core.sample_readers import count_samples, read_samples
from mme5core.sample_readers.files import sample_files
from mme5core.sample_readers.judged import to_row
from mme5core.types import Rejected, Sample
from rayjobs.command.outcome import BAD_INPUT, Outcome
from rayjobs.judge.config import ExportConfig

DATA, PICTURES = "train_data_scores.json", "images"


def run(config: ExportConfig) -> Outcome:
    """Write the data and the folder of its pictures, each once; the output appears whole or not at all."""
    if not config.output:
        raise InputError("'output' is required: the folder to write")
    output = Path(config.output)
    if output.exists():
        raise InputError(f"output {config.output!r} is there already: choose another, or remove it")
    files = sample_files(config.input)
    total = sum(count_samples(file) for file in files)
    staged = output.with_name(f".{output.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    (staged / PICTURES).mkdir(parents=True)
    refused: list[Rejected] = []
    num_kept = 0
    with Progress("judge export", total, "samples") as progress, (staged / DATA).open("w", encoding="utf-8") as data:
        data.write("[")
        for file in files:
            left = None if config.limit is None else config.limit - num_kept - len(refused)
            for sample in islice(read_samples(file, config.images), left):
                line = sample if isinstance(sample, Rejected) else _line(sample, staged)
                if isinstance(line, Rejected):
                    refused.append(line)
                else:
                    data.write((",\n" if num_kept else "\n") + line)
                    num_kept += 1
                progress.update(num_kept + len(refused))
        data.write("\n]\n")
    counts: dict[str, int] = {}
    for rejected in refused:
        counts[rejected.reason] = counts.get(rejected.reason, 0) + 1
    counters = {"read": num_kept + len(refused), "kept": num_kept, "refused": counts, "pending": 0}
    if not num_kept:
        shutil.rmtree(staged)
        first = f": the first, {refused[0].id}: {refused[0].detail}" if refused else ""
        return Outcome(counters, BAD_INPUT, f"nothing to export{first}")
    staged.rename(output)
    reason = "done"
    if refused:
        reason += f"; {len(refused):,} samples are left out, the first {refused[0].id}: {refused[0].detail}"
    return Outcome(counters, reason=reason)


def _line(sample: Sample, folder: Path) -> str | Rejected:
    paths = {}
    for content in (sample.query, sample.positive, *sample.negatives):
        for image in content.images:
            data = image_bytes(image)
            name = f"{PICTURES}/{hashlib.sha256(data).hexdigest()[:32]}{suffix_of(data)}"
            if not (folder / name).exists():
                (folder / name).write_bytes(data)
            paths[id(image)] = name
    try:
        return json.dumps(to_row(sample, paths), ensure_ascii=False)
    except ValueError as error:
        return Rejected(sample.id, "not_of_the_format", str(error))
