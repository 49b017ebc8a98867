"""The demo's corpus on disk: pictures, neighbours, held-out pairs, benchmark, and what the teacher knows."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.demo import benchmark
from mme5core.demo.annotations import MissingData, find_font, load_emoji
from mme5core.demo.corpus import Corpus, Picture, write_corpus
from mme5core.errors import WorkFailed
from mme5core.progress import Progress
from mme5core.readers import CorpusRow, read_rows
from mme5core.schemas import CANDIDATES, HOLDOUT, NEIGHBOURS, QUERIES
from rayjobs.command.config import fingerprint, row_keys
from rayjobs.demo.config import DemoConfig
from rayjobs.folder import JobFolder, Run

PICTURES = "pictures.parquet"
ENTRIES = pa.schema(
    [
        ("key", pa.string()),
        ("subgroup", pa.string()),
        ("names", pa.string()),
        ("keywords", pa.string()),
    ]
)


def make_corpus(config: DemoConfig, root: Path) -> dict[str, Any]:
    """The corpus, its neighbours, what is held out of training, and the benchmark."""
    try:
        font, emoji = find_font(), load_emoji()
    except MissingData as error:
        raise WorkFailed(str(error)) from None
    # Drawn by a font of this machine: another version of it draws other pictures.
    identities = {
        "font": _digest_of_files([font]),
        "annotations": digest_of_texts([json.dumps(asdict(e)) for e in emoji]),
    }
    output = JobFolder(
        root / "corpus",
        Run("corpus", {"output": str(root)}, fingerprint(config, **identities), row_keys(config), identities),
    )
    with output as folder:
        finished = folder.open()
        if finished:
            print("corpus: already done", file=sys.stderr)
            return dict(finished["counters"])
        staged = folder.work / "tars"
        shutil.rmtree(staged, ignore_errors=True)
        with Progress("corpus: drawing", 0, "rows") as progress:
            for item in write_corpus(staged, emoji, font):
                if isinstance(item, Corpus):
                    corpus = item
                else:
                    progress.update(item)
        _write_side_files(root, corpus.pictures, staged)
        for file in sorted(staged.iterdir()):
            file.rename(folder.path / file.name)
        staged.rmdir()
        rows = (row for shard in sorted(folder.path.glob("*.tar")) for row in read_rows(shard))
        return folder.finish(
            unit="image rows offered",
            num_read=corpus.num_read,
            num_kept=len(corpus.pictures),
            refused=folder.write_quarantine(row.refused for row in rows if row.refused),
            pending=0,
        )


def _write_side_files(root: Path, pictures: list[Picture], tars: Path) -> None:
    """What belongs to the corpus without being in it: neighbours, holdout, benchmark, the teacher's knowledge."""
    _write(root / "neighbours" / "part-00000.parquet", benchmark.neighbours(pictures), NEIGHBOURS)
    _write(root / "holdout.parquet", benchmark.holdout_rows(pictures), HOLDOUT)
    data = {row.id: row.image for tar in sorted(tars.glob("*.tar")) for row in read_rows(tar)}
    candidates = [
        {"id": picture.key, "text": None, "image": {"bytes": data[picture.key], "path": picture.key}}
        for picture in benchmark.candidates(pictures)
    ]
    for split in get_args(benchmark.Split):
        queries = benchmark.queries(pictures, split)
        _write(root / "benchmark" / split / "queries.parquet", queries, QUERIES)
        _write(root / "benchmark" / split / "candidates.parquet", candidates, CANDIDATES)
        _write(root / "benchmark" / "queries" / f"{split}.parquet", queries, QUERIES)
    rows = []
    for picture in pictures:
        held_out = benchmark.held_out_languages(picture)
        rows.append(
            {
                "key": picture.key,
                "subgroup": picture.emoji.subgroup,
                "names": _json_without(picture.emoji.names, held_out),
                "keywords": _json_without(picture.emoji.keywords, held_out),
            }
        )
    _write(root / PICTURES, rows, ENTRIES)


def read_pictures(root: Path) -> list[Picture]:
    """The corpus's pictures with their emoji, in the order of their keys."""
    keys = set(pq.read_table(root / PICTURES, columns=["key"])["key"].to_pylist())
    by_id = {emoji.id: emoji for emoji in load_emoji()}
    pictures = []
    for sidecar in sorted((root / "corpus").glob("*.parquet")):
        for row in pq.read_table(sidecar, columns=["key", "url", "sha256"]).to_pylist():
            if row["key"] in keys:
                emoji_id = row["url"].rsplit("/", 1)[1].removesuffix(".jpg")
                pictures.append(Picture(row["key"], by_id[emoji_id], row["sha256"]))
    return pictures


def usable_rows(root: Path) -> Iterator[CorpusRow]:
    for shard in sorted((root / "corpus").glob("*.tar")):
        yield from (row for row in read_rows(shard) if row.refused is None)


def _write(file: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    pq.write_table(pa.Table.from_pylist(rows, schema), temporary)
    temporary.rename(file)


def _json_without(texts: dict[str, Any], dropped: frozenset[str]) -> str:
    return json.dumps({code: text for code, text in texts.items() if code not in dropped}, ensure_ascii=False)


def _digest_of_files(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def digest_of_texts(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
