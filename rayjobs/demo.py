"""The whole path on a real corpus, on this machine's CPU: demo --config demo [output=runs/demo]"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.demo import benchmark
from mme5core.demo.annotations import MissingData, find_font, load_emoji
from mme5core.demo.corpus import Corpus, Picture, write_corpus
from mme5core.images import load_rgb
from mme5core.readers import read_rows
from mme5core.schemas import CANDIDATES, HOLDOUT, NEIGHBOURS, QUERIES
from mme5core.types import Rejected
from rayjobs import cli
from rayjobs.config import DemoConfig, fingerprint, row_keys
from rayjobs.output import JobFolder, Run, write_json
from rayjobs.progress import Progress, duration

PICTURES = "pictures.parquet"
BASE_SOURCES = ("annotations.py", "corpus.py", "benchmark.py", "captions.py", "instructions.py", "base_model.py")
ENTRIES = pa.schema(
    [
        ("key", pa.string()),
        ("subgroup", pa.string()),
        ("names", pa.string()),
        ("keywords", pa.string()),
    ]
)


def run(config: DemoConfig) -> cli.Outcome:
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
    return cli.Outcome({"recall@10": scores} | counters)


def make_corpus(config: DemoConfig, root: Path) -> dict[str, Any]:
    """The corpus, its neighbours, what is held out of training, and the benchmark."""
    try:
        font, emoji = find_font(), load_emoji()
    except MissingData as error:
        raise cli.JobFailed(str(error)) from None
    # Drawn by a font of this machine: another version of it draws other pictures.
    identities = {"font": _digest([font]), "annotations": _digest_text([json.dumps(asdict(e)) for e in emoji])}
    folder = JobFolder(
        root / "corpus",
        Run("corpus", {"output": str(root)}, fingerprint(config, **identities), row_keys(config), identities),
    )
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
    refused = [row.refused for shard in sorted(folder.path.glob("*.tar")) for row in read_rows(shard) if row.refused]
    return folder.finish(
        unit="image rows offered",
        num_read=corpus.num_read,
        num_kept=len(corpus.pictures),
        refused=folder.write_quarantine(list[Rejected](refused)),
        pending=0,
    )


def make_base(config: DemoConfig, root: Path) -> dict[str, Any]:
    """The small pretrained model: from the cache, or trained now and put there."""
    sources = Path(benchmark.__file__).parent
    manifest = json.loads((root / "corpus" / "_manifest.json").read_text())
    digest = _digest_text(
        [manifest["fingerprint"], str(config.base_steps), str(config.base_batch_size)]
        + [(sources / name).read_text() for name in BASE_SOURCES]
    )
    cached, base = Path(config.cache).expanduser() / f"base-{digest}", root / "base"
    if not (base / "config.json").is_file() or (base / "digest").read_text() != digest:
        if cached.is_dir():
            print(f"base: from {cached}", file=sys.stderr)
        else:
            _train_base(config, root, cached)
        shutil.rmtree(base, ignore_errors=True)
        staged = root / ".base"
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(cached, staged)
        (staged / "digest").write_text(digest)
        staged.rename(base)
    else:
        print("base: already done", file=sys.stderr)
    log: dict[str, Any] = json.loads((base / "training.json").read_text())
    return log


def _train_base(config: DemoConfig, root: Path, cached: Path) -> None:
    import torch
    from transformers import logging as transformers_logging

    from mme5core.demo.base_model import MAX_TOKENS, build_base, train_base
    from mme5core.demo.captions import Captions
    from mme5core.encoder import Encoder
    from mme5core.types import Content

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which transformers imports, warns on stdout
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pictures = _read_pictures(root)
    captions = Captions(pictures)
    staged = cached.with_name(f".{cached.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    print("base: training the tokenizer", file=sys.stderr, flush=True)
    build_base(staged, captions.tokenizer_texts(), seed=config.seed)
    encoder = Encoder.load(staged, device="cpu", attention="eager")
    encoder.max_tokens = MAX_TOKENS
    data = {row.id: row.image for row in _rows(root)}
    prepared = [encoder.prepare_picture(Content(image=data[picture.key])) for picture in pictures]
    losses = []
    with Progress("base", config.base_steps, "steps") as progress:
        for step in train_base(
            encoder,
            prepared,
            captions,
            num_steps=config.base_steps,
            batch_size=config.base_batch_size,
            seed=config.seed,
        ):
            losses.append(step.loss)
            progress.update(step.step, f"loss {step.loss:.2f}")
    save_base(encoder, staged)
    write_json(
        staged / "training.json",
        {
            "steps": config.base_steps,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "threads": torch.get_num_threads(),
        },
    )
    staged.rename(cached)


def save_base(encoder: Any, folder: Path) -> None:
    """Put trained weights into the checkpoint that they came from, head and all."""
    from transformers import AutoModelForImageTextToText

    whole = AutoModelForImageTextToText.from_pretrained(folder)
    whole.model.load_state_dict(encoder.module.model.state_dict())
    whole.save_pretrained(folder)


def make_teacher(root: Path, *, port: int = 0) -> Any:
    """The demo teacher over this corpus; it does not know the names that the benchmark holds out."""
    from mme5core.demo.teacher import DemoTeacher, Entry, Knowledge

    data = {row.id: row.image for row in _rows(root)}
    entries = [
        Entry(row["key"], row["subgroup"], json.loads(row["names"]), json.loads(row["keywords"]))
        for row in pq.read_table(root / PICTURES).to_pylist()
    ]
    return DemoTeacher(Knowledge(entries, [load_rgb(data[entry.key]) for entry in entries]), port=port)


def serve_teacher(config: DemoConfig) -> cli.Outcome:
    """`demo teacher`: serve the demo teacher until stopped."""
    root = Path(config.output)
    if not (root / PICTURES).is_file():
        raise cli.JobFailed(f"no demo corpus at {root}: run 'demo' first")
    with make_teacher(root, port=config.teacher_port) as teacher:
        print(f"demo teacher: teacher.base_url={teacher.base_url} teacher.model=demo-teacher", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        return cli.Outcome({"requests": teacher.served.requests}, reason="stopped")


def _synth(config: DemoConfig, root: Path) -> dict[str, Any]:
    if (root / "synth" / "_SUCCESS").exists():
        return _job("synth", root, "teacher.base_url=http://127.0.0.1:9/v1", f"seed={config.seed}")
    with make_teacher(root) as teacher:
        print(f"demo teacher: {teacher.base_url}", file=sys.stderr)
        return _job("synth", root, f"teacher.base_url={teacher.base_url}", f"seed={config.seed}")


def _job(name: str, root: Path, *overrides: str, folder: str = "") -> dict[str, Any]:
    """Run one job as a user would, with the demo's recipe moved below `root`; returns its counters.

    Raises:
        JobFailed: it ended with another code than 0.
    """
    command = [sys.executable, "-m", f"rayjobs.{name.replace('-', '_')}", "--config", "demo"]
    command += [*_moved(name, root), f"output={root / (folder or name)}", *overrides]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if not line.startswith('{"job"'):
                    print(line, end="", flush=True)
        except BaseException:
            # Ray's own processes end with the job's, and the job must end before we do.
            process.terminate()
            process.wait()
            raise
    summary = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if process.returncode != 0:
        raise cli.JobFailed(f"{name} ended with code {process.returncode}: {summary.get('reason', 'no reason given')}")
    print(f"{name}: {summary['reason']}, {json.dumps(summary['counters'])}", file=sys.stderr)
    counters: dict[str, Any] = summary["counters"]
    return counters


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


def _read_pictures(root: Path) -> list[Picture]:
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


def _rows(root: Path) -> Iterator[Any]:
    for shard in sorted((root / "corpus").glob("*.tar")):
        yield from (row for row in read_rows(shard) if row.refused is None)


def _write(file: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    pq.write_table(pa.Table.from_pylist(rows, schema), temporary)
    temporary.rename(file)


def _json_without(values: dict[str, Any], dropped: frozenset[str]) -> str:
    return json.dumps({code: value for code, value in values.items() if code not in dropped}, ensure_ascii=False)


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _digest_text(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def main() -> None:
    cli.main("demo", {"": run, "teacher": serve_teacher})


if __name__ == "__main__":
    main()
