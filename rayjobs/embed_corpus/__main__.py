"""Vectors of any corpus in Parquet: embed-corpus --config mme5 input=corpus/ model=run/model output=vectors/"""

from __future__ import annotations

from typing import NoReturn

from rayjobs.command.job import Job, Verb
from rayjobs.command.main import main as run_command
from rayjobs.embed_corpus import job
from rayjobs.embed_corpus.config import EmbedCorpusConfig
from rayjobs.embed_corpus.preview import preview

JOB = Job("embed-corpus", {"": Verb(EmbedCorpusConfig, job.run, preview, needs_output=True)})


def main() -> NoReturn:
    run_command(JOB)


if __name__ == "__main__":
    main()
