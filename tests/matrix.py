"""The tests of library and jobs in other environments: make test-matrix [MATRIX="torchvision lowest newest"]

Each environment is a layer over `.venv`: a virtual environment that sees all of its packages and holds others in front.
torch stays what it is in `.venv` unless TORCH=1 is set: another version of it is gigabytes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ROOT / "build" / "matrix"
# Ray and our own files agree on one version; see `TORCH` above.
FIXED = {"ray"} | (set() if os.environ.get("TORCH") else {"torch"})
TESTS = ("tests/core", "tests/jobs")


def bounds() -> dict[str, str]:
    """The lower bound of each package that `pyproject.toml` names, as `major.minor`."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lowest = {}
    for text in dependencies:
        match = re.match(r"([\w-]+)(?:\[.*?\])?>=([\d.]+)", text)
        if match and match[1] not in FIXED:
            lowest[match[1]] = match[2] if "." in match[2] else f"{match[2]}.0"
    return lowest


def lowest() -> list[str]:
    return [f"{name}=={bound}.*" for name, bound in bounds().items()]


def newest() -> list[str]:
    return ["--upgrade", *bounds()]


def torchvision() -> list[str]:
    """The version that belongs to the torch of `.venv`: torch 2.13 has torchvision 0.28."""
    torch = subprocess.run(
        [sys.executable, "-c", "from importlib.metadata import version; print(version('torch'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return ["--no-deps", f"torchvision==0.{int(torch.split('.')[1]) + 15}.*"]


ENVIRONMENTS: dict[str, Callable[[], list[str]]] = {"torchvision": torchvision, "lowest": lowest, "newest": newest}


def layer(name: str) -> Path:
    """The Python of a layer with its packages; made anew."""
    folder = LAYERS / name
    venv.create(folder, clear=True, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    below = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *ENVIRONMENTS[name]()], check=True)
    return python


def run(name: str) -> str:
    """Runs the tests; the summary's line."""
    try:
        python, begun = layer(name), time.monotonic()
    except subprocess.CalledProcessError:
        return f"{name}: FAILED, its packages cannot be installed together"
    ended = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    (LAYERS / f"{name}.log").write_text(ended.stdout + ended.stderr)
    failed = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    result = "passed" if ended.returncode == 0 else f"FAILED, see {LAYERS / name}.log"
    return "\n".join([f"{name}: {result}, {time.monotonic() - begun:.0f} s", *failed])


def main() -> None:
    names = sys.argv[1:] or list(ENVIRONMENTS)
    if unknown := set(names) - set(ENVIRONMENTS):
        sys.exit(f"unknown environment {sorted(unknown)[0]!r}; known: {', '.join(ENVIRONMENTS)}")
    summaries = []
    for name in names:
        summaries.append(run(name))
        print(summaries[-1], flush=True)
    sys.exit(any("FAILED" in summary for summary in summaries))


if __name__ == "__main__":
    main()
