"""Judged samples as UniME-V2 has them: judge export input=judged/ output=dataset/"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from mme5core.images import image_bytes
from mme5core.progress import Progress
from mme5core.sample_readers import count_samples, read_samples
from mme5core.sample_readers.files import sample_files
from mme5core.sample_readers.judged import to_row
from mme5core.synthesis.export import picture_path
from mme5core.types import Rejected, Sample
from rayjobs.command.outcome import Outcome
from rayjobs.folder.staged import exported, staged_folder
from rayjobs.judge.config import ExportConfig

DATA = "train_data_scores.json"


def run(config: ExportConfig) -> Outcome:
    """Write the data and the folder of its pictures, each once."""
    files = sample_files(config.input)
    total = sum(count_samples(file) for file in files)
    refused: list[Rejected] = []
    num_kept = 0
    with staged_folder(config.output) as staged, Progress("judge export", total, "samples") as progress:
        with (staged / DATA).open("w", encoding="utf-8") as data:
            data.write("[")
            samples = (sample for file in files for sample in read_samples(file, config.images))
            for sample in islice(samples, config.limit):
                line = sample if isinstance(sample, Rejected) else _line(sample, staged)
                if isinstance(line, Rejected):
                    refused.append(line)
                else:
                    data.write((",\n" if num_kept else "\n") + line)
                    num_kept += 1
                progress.update(num_kept + len(refused))
            data.write("\n]\n")
        return exported(staged, num_read=num_kept + len(refused), num_kept=num_kept, refused=refused)


def _line(sample: Sample, folder: Path) -> str | Rejected:
    paths = {}
    for content in (sample.query, sample.positive, *sample.negatives):
        for image in content.images:
            data = image_bytes(image)
            paths[id(image)] = picture_path(data)
            file = folder / paths[id(image)]
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
    try:
        return json.dumps(to_row(sample, paths), ensure_ascii=False)
    except ValueError as error:
        return Rejected(sample.id, "not_of_the_format", str(error))
