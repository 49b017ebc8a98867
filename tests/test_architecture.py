"""The rules of docs/architecture.md about who may import whom, read from the source of every module."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
JOBS = {"synth", "train", "embed_corpus", "evaluate", "demo"}
# From the top down; a module imports its own layer or a lower one, and never in a circle.
LAYERS = (
    {"training", "evaluation", "synthesis", "demo", "peers"},
    {"encoder", "adapters", "gradcache", "objective", "losses", "checkpoint", "sampling", "sample_table"},
    {"backbones", "batching", "readers", "sample_readers", "prompt_styles", "distributed"},
    {"images", "metrics", "schemas", "languages", "model_folder", "content_key", "vectors", "ahead"},
    {"types", "storage", "errors"},
)
HUGGING_FACE = (
    "mme5core.backbones",
    "mme5core.encoder",
    "mme5core.adapters",
    "mme5core.demo",
    "mme5core.model_folder",  # a configuration only, where config.json leaves the width to a default
    "rayjobs.demo",
)
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
WITHOUT_TORCH = """
import contextlib, importlib, io, sys
for name in {core!r}:
    importlib.import_module(name)
assert not {{"torch", "transformers", "peft", "ray"}} & sys.modules.keys(), sorted(sys.modules)
sys.argv = ["synth", "--help"]
from rayjobs import synth
with contextlib.redirect_stdout(io.StringIO()) as printed:
    try:
        synth.main()
    except SystemExit as ended:
        assert ended.code == 0, ended.code
assert "samples_per_image" in printed.getvalue()
assert not {{"torch", "transformers", "peft"}} & sys.modules.keys(), sorted(sys.modules)
print("without torch")
"""


@dataclass(frozen=True, slots=True)
class Source:
    """One of our modules: its dotted name and its syntax tree."""

    name: str
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """Dotted names of all that it imports, wherever in the file; of `from a import b` both a and a.b."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name} has a relative import in line {node.lineno}"
                yield node.module or ""
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def calls(self) -> Iterator[ast.Call]:
        yield from (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))


@cache
def sources() -> dict[str, Source]:
    found = {}
    for package in ("mme5core", "rayjobs"):
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = Source(name, ast.parse(file.read_text(encoding="utf-8"), str(file)))
    assert len(found) > 40
    return found


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def violations(imported: tuple[str, ...], importers: Iterator[Source]) -> set[tuple[str, str]]:
    """(importer, imported) for every import of one of the packages."""
    return {(s.name, name) for s in importers for name in s.imports() for package in imported if is_in(name, package)}


def part_of(name: str) -> str:
    """`mme5core.readers.table` is of the part `readers`."""
    return name.split(".")[1]


def edges() -> Iterator[tuple[str, str]]:
    """(importer, imported) among the modules of mme5core, but for its front door."""
    for source in sources().values():
        if is_in(source.name, "mme5core") and source.name != "mme5core":
            for name in source.imports():
                if name in sources() and is_in(name, "mme5core") and name not in ("mme5core", source.name):
                    yield source.name, name


def dotted(node: ast.expr) -> str:
    """`torch.load` for that expression; empty for what is no plain name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_the_core_imports_neither_ray_nor_the_jobs() -> None:
    core = (source for source in sources().values() if is_in(source.name, "mme5core"))
    assert violations(("ray", "rayjobs"), core) == set()


def test_no_job_imports_another() -> None:
    jobs = [sources()[f"rayjobs.{job}"] for job in sorted(JOBS)]
    for source in jobs:
        others = tuple(f"rayjobs.{job}" for job in sorted(JOBS) if f"rayjobs.{job}" != source.name)
        assert violations(others, iter([source])) == set()


def test_every_module_that_is_run_is_known_as_a_job() -> None:
    runnable = {s.name for s in sources().values() if any(dotted(call.func) == "cli.main" for call in s.calls())}
    assert runnable == {f"rayjobs.{job}" for job in JOBS}


def test_transformers_and_peft_stay_where_models_are_made() -> None:
    others = (s for s in sources().values() if not any(is_in(s.name, package) for package in HUGGING_FACE))
    assert violations(("transformers", "peft"), others) == set()


def test_sentence_transformers_stays_with_the_peers() -> None:
    assert (
        violations(("sentence_transformers",), (s for s in sources().values() if s.name != "mme5core.peers")) == set()
    )


def test_every_module_of_the_core_has_a_layer() -> None:
    parts = {part_of(name) for name in sources() if is_in(name, "mme5core") and name != "mme5core"}
    assert parts - set().union(*LAYERS) == set()


def test_imports_within_the_core_point_down() -> None:
    depth = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    found = set(edges())
    assert len(found) > 40
    assert {(a, b) for a, b in found if depth[part_of(b)] < depth[part_of(a)]} == set()


def test_parts_of_the_core_do_not_import_each_other_in_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for importer, imported in edges():
        if part_of(importer) != part_of(imported):
            below.setdefault(part_of(importer), set()).add(part_of(imported))

    def reach(part: str, path: tuple[str, ...]) -> None:
        assert part not in path, " -> ".join((*path, part))
        for lower in sorted(below.get(part, ())):
            reach(lower, (*path, part))

    for part in sorted(below):
        reach(part, ())


@pytest.mark.parametrize("name", ["eval", "exec", "compile", "__import__"])
def test_no_text_is_run_as_code(name: str) -> None:
    assert {s.name for s in sources().values() if any(dotted(call.func) == name for call in s.calls())} == set()


def test_nothing_is_pickled_and_no_remote_code_is_trusted() -> None:
    for source in sources().values():
        assert not {name.partition(".")[0] for name in source.imports()} & UNSAFE_MODULES, source.name
        for call in source.calls():
            where = f"{source.name}:{call.lineno}"
            keywords = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
            assert keywords.get("trust_remote_code") is not True, where
            assert keywords.get("allow_pickle") is not True, where
            assert dotted(call.func) != "torch.load" or keywords.get("weights_only") is True, where
            assert dotted(call.func) not in ("yaml.load", "yaml.unsafe_load"), where


def test_what_only_reads_plans_parses_or_scores_starts_without_torch() -> None:
    parts = ("readers", "sample_readers", "sample_table", "synthesis", "evaluation", "metrics")
    packages = tuple(f"mme5core.{part}" for part in parts)
    core = ["mme5core", *(name for name in sources() if any(is_in(name, package) for package in packages))]
    assert len(core) > 12
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(core=core)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.strip() == "without torch", ended.stderr[-2000:]
