"""The cluster files: `cluster.yaml` by Ray's own schema, and `ray job submit` as the README says it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mme5core.demo.teacher import DemoTeacher
from tests.ray.conftest import World, adds_up, kill_with_children, synth_args

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
AGENT_PORT = 52365  # Ray's default


@pytest.mark.parametrize("file", ["cluster.yaml", "cluster/gcp.yaml", "cluster/local.yaml"])
def test_cluster_files_are_valid_by_rays_own_schema(file: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / file).read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="surprise"):
        validate_config(prepare_config(config | {"surprise": 1}))


def test_cluster_files_pin_the_versions_of_the_constraints() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert pinned["ray"].startswith("2.60.")
    for file in ("cluster.yaml", "cluster/gcp.yaml", "cluster/local.yaml"):
        text = (ROOT / file).read_text()
        assert "--constraint" in text and "nightly" not in "".join(yaml.safe_load(text)["setup_commands"])
    assert f"rayproject/ray:{pinned['ray']}-" in (ROOT / "cluster" / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`ray start --head` on free ports with a token of its own; stopped by its own processes, not by `ray stop`.

    The port on which agents listen by default is taken, as beside another head: without one of its own no job could be
    submitted ("No available agent").
    """
    gcs, dashboard, client, agent = (free_port() for _ in range(4))
    taken = socket.socket()
    with contextlib.suppress(OSError):  # by another head
        taken.bind(("", AGENT_PORT))
        taken.listen()
    home = tmp_path_factory.mktemp("home")
    # Short: Ray's sockets lie below it.
    temp = Path("/tmp") / f"mme5-ray-{os.getpid()}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2, "HOME": str(home)}
    env["PATH"] = f"{RAY.parent}:{env['PATH']}"  # as in an activated environment
    process = subprocess.Popen(
        [
            RAY, "start", "--head", f"--port={gcs}", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            "--num-cpus=2", f"--temp-dir={temp}", "--include-dashboard=true",
            "--block", "--disable-usage-stats",
        ],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(dashboard)
        yield env
    finally:
        taken.close()
        kill_with_children(process)  # told to end, Ray takes half a minute
        shutil.rmtree(temp, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens on port {port} after {timeout_s} s")


def submit(env: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--working-dir", ".", "--runtime-env", "cluster/runtime_env.yaml", "--"]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run([*command, *entrypoint], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
        # The head answers before its agent does.
        if "No available agent" not in done.stderr + done.stdout or time.monotonic() > deadline:
            return done
        time.sleep(2.0)


def test_a_submitted_job_runs_from_a_clone_and_ends_with_its_summary(
    cluster: dict[str, str], world: World, teacher: DemoTeacher, tmp_path: Path
) -> None:
    done = submit(cluster, "synth", *synth_args(world, teacher, tmp_path / "out"), "limit=6")
    assert done.returncode == 0, done.stdout + done.stderr
    summaries = [line for line in done.stdout.splitlines() if line.startswith('{"job"')]
    assert json.loads(summaries[-1])["code"] == 0
    assert adds_up(tmp_path / "out")["read"] == 6


def test_a_submitted_job_with_a_bad_setting_fails_with_its_one_line(cluster: dict[str, str]) -> None:
    done = submit(cluster, "synth", "--config", "demo", "sampels_per_image=3")
    assert done.returncode == 1
    assert "'sampels_per_image'; did you mean 'samples_per_image'" in done.stdout


def test_without_the_token_a_submission_is_refused(cluster: dict[str, str]) -> None:
    env = {k: v for k, v in cluster.items() if k not in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")} | {
        "RAY_AUTH_MODE": "disabled"
    }
    done = submit(env, "synth", "--help")
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr or "authentication" in (done.stdout + done.stderr).lower()
