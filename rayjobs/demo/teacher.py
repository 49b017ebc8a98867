"""The demo teacher over the demo's corpus, and the verb that serves it: demo teacher [output=runs/demo]"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pyarrow.parquet as pq

from mme5core.demo.teacher import DemoTeacher, Entry, Knowledge
from mme5core.errors import WorkFailed
from mme5core.images import load_rgb
from rayjobs.command.outcome import Outcome
from rayjobs.demo.config import DemoConfig
from rayjobs.demo.corpus import PICTURES, usable_rows


def make_teacher(root: Path, *, port: int = 0) -> DemoTeacher:
    """The demo teacher over this corpus; it does not know the names that the benchmark holds out."""
    data = {row.id: row.image for row in usable_rows(root)}
    entries = [
        Entry(row["key"], row["subgroup"], json.loads(row["names"]), json.loads(row["keywords"]))
        for row in pq.read_table(root / PICTURES).to_pylist()
    ]
    return DemoTeacher(Knowledge(entries, [load_rgb(data[entry.key]) for entry in entries]), port=port)


def serve_teacher(config: DemoConfig) -> Outcome:
    """`demo teacher`: serve the demo teacher until stopped."""
    root = Path(config.output)
    if not (root / PICTURES).is_file():
        raise WorkFailed(f"no demo corpus at {root}: run 'demo' first")
    with make_teacher(root, port=config.teacher_port) as teacher:
        print(f"demo teacher: teacher.base_url={teacher.base_url} teacher.model=demo-teacher", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        return Outcome({"requests": teacher.served.requests}, reason="stopped")
