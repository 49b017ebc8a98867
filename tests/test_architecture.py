"""The rules of docs/architecture.md about structure, read from the source of every module."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
JOBS = ("synth", "train", "embed_corpus", "mine", "judge", "rerank", "evaluate", "demo")
# From the top down; a module imports its own layer or a lower one.
CORE_LAYERS = (
    {"training", "evaluation", "synthesis", "mining", "reranker", "demo"},
    {"judge"},
    {"asking", "corpus", "encoder", "adapters", "losses", "peers", "sample_table"},
    {"backbones", "batching", "parts", "sample_readers", "tables", "prompt_styles", "distributed"},
    {"readers", "metrics", "schemas", "model_folder", "content_key", "vectors", "file_entries"},
    {"hub", "images", "picture_formats", "languages", "ahead", "embedding_settings", "model_settings", "ownership"},
    {"types", "storage", "web", "durable", "progress", "tasks", "settings", "processors", "errors"},
)
JOB_LAYERS = (
    set(JOBS),
    {"training"},
    {"asking", "embedding", "mapped_samples", "model_parts", "preview_lines"},
    {"folder", "on_ray"},
    {"command"},
)
HUGGING_FACE = (
    "mme5core.backbones",
    "mme5core.encoder",
    "mme5core.judge",
    "mme5core.adapters",
    "mme5core.training",
    "mme5core.demo",
    "mme5core.model_folder",  # a configuration only, where config.json leaves the width to a default
    "rayjobs.demo",
)
JOB_FILES = {"__init__", "__main__", "config", "job", "preview"}
DUMPS_SETTINGS = {  # where settings leave the program as text, or become a type of the same fields
    "mme5core.settings",
    "rayjobs.command.main",
    "rayjobs.folder.folder",
    "rayjobs.synth.inputs",
}
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
NAMES_THAT_SAY_NOTHING = {"found", "told", "value", "values"}
MOST_LINES = 60
WITHOUT_TORCH = """
import contextlib, importlib, io, sys
for name in {core!r}:
    importlib.import_module(name)
assert not {{"torch", "transformers", "peft", "ray"}} & sys.modules.keys(), sorted(sys.modules)
for job in {jobs!r}:
    sys.argv = [job, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            importlib.import_module(f"rayjobs.{{job}}.__main__").main()
        except SystemExit as ended:
            assert ended.code == 0, ended.code
    assert "num_workers" in printed.getvalue()
    assert not {{"torch", "transformers", "peft", "ray"}} & sys.modules.keys(), (job, sorted(sys.modules))
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

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        yield from (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@cache
def sources() -> dict[str, Source]:
    by_name = {}
    for package in ("mme5core", "rayjobs"):
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            by_name[name] = Source(name, ast.parse(file.read_text(encoding="utf-8"), str(file)))
    assert len(by_name) > 150
    return by_name


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def violations(imported: tuple[str, ...], importers: Iterator[Source]) -> set[tuple[str, str]]:
    """(importer, imported) for every import of one of the packages."""
    return {(s.name, name) for s in importers for name in s.imports() for package in imported if is_in(name, package)}


@cache
def edges() -> frozenset[tuple[str, str]]:
    """(importer, imported) among our modules; those inside functions count."""
    return frozenset(
        (source.name, name)
        for source in sources().values()
        for name in source.imports()
        if name in sources() and name != source.name
    )


def part_of(name: str) -> str:
    """`mme5core.readers.table` is of the part `readers`."""
    return name.split(".")[1]


def upward(package: str, layers: tuple[set[str], ...]) -> set[tuple[str, str]]:
    """Imports within a package of what lies in a higher layer."""
    depth = {part: number for number, layer in enumerate(layers) for part in layer}
    inside = {(a, b) for a, b in edges() if all(name.startswith(f"{package}.") for name in (a, b))}
    assert len(inside) > 40
    return {(a, b) for a, b in inside if depth[part_of(b)] < depth[part_of(a)]}


def dotted(node: ast.expr) -> str:
    """`torch.load` for that expression; empty for what is no plain name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_the_core_imports_neither_ray_nor_the_jobs() -> None:
    core = (source for source in sources().values() if is_in(source.name, "mme5core"))
    assert violations(("ray", "rayjobs"), core) == set()


def test_ray_is_imported_in_one_package_alone() -> None:
    others = (source for source in sources().values() if not is_in(source.name, "rayjobs.on_ray"))
    assert violations(("ray",), others) == set()


def test_no_import_closes_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for importer, imported in edges():
        # A package's front door gathers its modules, and none of them may come in through it.
        below.setdefault(importer, set()).add(imported)
    done: set[str] = set()

    def reach(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for lower in sorted(below.get(name, ())):
                reach(lower, (*path, name))
            done.add(name)

    for name in sorted(below):
        reach(name, ())


@pytest.mark.parametrize(("package", "layers"), [("mme5core", CORE_LAYERS), ("rayjobs", JOB_LAYERS)])
def test_every_module_has_a_layer_and_imports_point_down(package: str, layers: tuple[set[str], ...]) -> None:
    parts = {part_of(name) for name in sources() if name.startswith(f"{package}.")}
    assert parts - set().union(*layers) == set() and set().union(*layers) - parts == set()
    assert upward(package, layers) == set()


def test_no_job_imports_another() -> None:
    for job in JOBS:
        own = (source for source in sources().values() if is_in(source.name, f"rayjobs.{job}"))
        others = tuple(f"rayjobs.{other}" for other in JOBS if other != job)
        assert violations(others, own) == set()


def test_every_job_has_the_same_files_and_its_console_script() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {job.replace("_", "-"): f"rayjobs.{job}.__main__:main" for job in JOBS}
    for script in scripts:
        # What `ray job submit` finds on the PATH of the runtime environment.
        assert os.access(ROOT / "cluster" / "bin" / script, os.X_OK), script
    for job in JOBS:
        files = {file.stem for file in (ROOT / "rayjobs" / job).glob("*.py")}
        assert JOB_FILES - files <= ({"preview"} if job == "demo" else set()), job
    runnable = {s.name for s in sources().values() if s.name.endswith(".__main__")}
    assert runnable == {f"rayjobs.{job}.__main__" for job in JOBS}


def test_no_setting_is_looked_up_by_a_string() -> None:
    for source in sources().values():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant | ast.JoinedStr):
                name = dotted(node.value).rpartition(".")[2].lower()
                is_setting = name.endswith(("config", "recipe", "teacher", "server", "loss", "lora"))
                assert not is_setting or not isinstance(getattr(node.slice, "value", ""), str), (
                    f"{source.name}:{node.lineno} looks up {ast.unparse(node)}"
                )
        for call in source.calls():
            where = f"{source.name}:{call.lineno}"
            if isinstance(call.func, ast.Attribute) and call.func.attr == "model_dump":
                assert source.name in DUMPS_SETTINGS, f"{where} makes a dictionary of settings"
            if dotted(call.func) == "getattr" and isinstance(call.args[1], ast.Constant):
                assert dotted(call.args[0]) not in ("config", "settings"), f"{where} asks for {ast.unparse(call)}"


def test_transformers_and_peft_stay_where_models_are_made() -> None:
    others = (s for s in sources().values() if not any(is_in(s.name, package) for package in HUGGING_FACE))
    assert violations(("transformers", "peft"), others) == set()


def test_sentence_transformers_stays_with_the_peers() -> None:
    others = (s for s in sources().values() if s.name != "mme5core.peers")
    assert violations(("sentence_transformers",), others) == set()


def test_names_say_what_they_hold() -> None:
    for source in sources().values():
        for node in ast.walk(source.tree):
            name = node.arg if isinstance(node, ast.arg) else None
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            where = f"{source.name}:{getattr(node, 'lineno', 0)}"
            assert name not in NAMES_THAT_SAY_NOTHING, f"{where}: {name!r} says nothing of what it holds"


def test_functions_are_short() -> None:
    for source in sources().values():
        for function in source.functions():
            num_lines = (function.end_lineno or 0) - function.lineno + 1
            name = f"{source.name}.{function.name}"
            assert num_lines <= MOST_LINES, f"{name} has {num_lines} lines"


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
    packages = ("readers", "sample_readers", "synthesis", "asking", "corpus", "evaluation", "metrics", "settings")
    core = ["mme5core", *(n for n in sources() if any(is_in(n, f"mme5core.{package}") for package in packages))]
    assert len(core) > 60
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(core=core, jobs=JOBS)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.strip() == "without torch", ended.stderr[-2000:]
