"""`tuneyard status` as a user runs it: a process, a kubeconfig, a real API server, with and without a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ADMIN_TOKEN, ROOT, ApiServer
from tests.contract.chart import NAMESPACE, install, rendered, token
from tests.contract.operator_process import Cluster, eventually
from tests.unit.cli import world
from tuneyard.systems.kube import objects

pytestmark = pytest.mark.apiserver

_PLAIN = {"COLUMNS", "NO_COLOR", "FORCE_COLOR", "KUBECONFIG", "TERM"}


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in _PLAIN}
    return {**kept, "PYTHONPATH": str(ROOT / "operator"), "PYTHONUTF8": "1", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tuneyard", "status", *arguments]


@pytest.fixture(scope="module")
def cluster(apiserver: ApiServer) -> Cluster:
    """The canary of the unit tests, as objects of a namespace."""
    cluster = Cluster(apiserver, "status")
    for item in (world.base(), world.adapter(world.V1), world.adapter(world.V2)):
        put(cluster, type(item).__name__.removesuffix("Resource"), item)
    put(cluster, "ModelDeployment", world.deployment())
    pod = world.pod("smollm2-pool-5d8c7b9f4-aaaaa", world.report(world.FAILED))
    labels, annotations = pod["metadata"]["labels"], pod["metadata"]["annotations"]
    body = {
        "metadata": {"name": pod["metadata"]["name"], "labels": labels, "annotations": annotations},
        "spec": {"containers": [{"name": "engine", "image": "x"}]},
    }
    cluster.api.request("POST", "/api/v1/namespaces/status/pods", body=body)
    return cluster


def put(cluster: Cluster, kind: str, item: Any) -> None:
    """Apply spec and status; the status is of the generation that is there."""
    spec, status = item.to_dict()["spec"], item.to_dict()["status"]
    stored = cluster.apply(kind, item.metadata.name, spec)
    objects.apply_status(cluster.api, stored, {**status, "observedGeneration": stored["metadata"]["generation"]})


def status(
    cluster: Cluster, *arguments: str, as_user: str = ADMIN_TOKEN, **more: str
) -> subprocess.CompletedProcess[str]:
    config = str(cluster.server.kubeconfig(as_user))
    return subprocess.run(
        command(*arguments),
        env=environment(KUBECONFIG=config, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_deployment_that_is_not_ready_is_1_and_says_why_first(cluster: Cluster) -> None:
    done = status(cluster, "acme-support", "-n", "status")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("status/acme-support  Not ready (NoReadyEndpoint)")
    assert any("acme-support-v2 Failed RankTooHigh: rank 64" in line for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in done.stdout, "no colour without a terminal"


def test_one_that_is_ready_is_0(cluster: Cluster) -> None:
    put(cluster, "ModelDeployment", world.deployment(ready=True))
    try:
        done = status(cluster, "acme-support", "-n", "status")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "  Ready  " in done.stdout.splitlines()[0]
    finally:
        put(cluster, "ModelDeployment", world.deployment())


def test_without_a_name_everything_is_there(cluster: Cluster) -> None:
    done = status(cluster, "-A")
    assert done.returncode == 1
    for name in ("status/acme-support", "status/smollm2", "status/acme-support-v1", "smollm2 2/2"):
        assert name in done.stdout
    empty = status(cluster, "-n", "default")
    assert empty.returncode == 0
    assert empty.stdout == "nothing of Tuneyard in namespace default\n"


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_output_for_programs(output: str, cluster: Cluster) -> None:
    done = status(cluster, "acme-support", "-n", "status", "-o", output)
    assert done.returncode == 1
    if output == "json":
        view = json.loads(done.stdout)
        assert view["ready"] is False
        assert view["revisions"][1]["specWeight"] == 10
        assert view["pods"][0]["adapters"][1]["reason"] == "RankTooHigh"
    else:
        assert "specWeight: 10" in done.stdout


def test_a_name_that_is_not_there_is_named_with_those_that_are(cluster: Cluster) -> None:
    done = status(cluster, "acme", "-n", "status")
    assert done.returncode == 1
    there = "there are: acme-support (-n chooses another namespace)"
    assert done.stderr == f"tuneyard: no ModelDeployment 'acme' in namespace status; {there}\n"


def test_who_may_not_list_pods_or_events_sees_the_rest(cluster: Cluster) -> None:
    accounts = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    install(cluster.server, [space, *(o for o in rendered() if o["kind"] in accounts)])
    own = token(cluster.api, NAMESPACE, "tuneyard-gateway")
    done = status(cluster, "acme-support", "-n", "status", as_user=own)
    assert done.returncode == 1
    assert "Not ready (NoReadyEndpoint)" in done.stdout
    assert "left out, pods: " in done.stdout
    assert "left out, events: " in done.stdout


@pytest.mark.parametrize(
    "config",
    [
        None,
        "apiVersion: v1\nkind: Config\nclusters: []\nusers: []\ncontexts: []\n",
        "{: not yaml",
        "[a, list]",
        "apiVersion: v1\nkind: Config\nclusters: []\nusers: []\ncontexts: [{name: x}]\ncurrent-context: x\n",
    ],
)
def test_without_a_usable_kubeconfig_it_says_what_to_set(config: str | None, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    if config is not None:
        path.write_text(config)
    home = {"KUBECONFIG": str(path), "HOME": str(tmp_path)}
    done = subprocess.run(command(), env=environment(**home), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert re.match(r"tuneyard: no usable kubeconfig \(.+\): ", done.stderr)
    assert done.stderr.count("\n") == 1


def test_an_api_server_that_is_away_is_one_line(cluster: Cluster) -> None:
    config = cluster.server.kubeconfig(host="https://127.0.0.1:1")
    done = subprocess.run(
        command("-A", "--kubeconfig", str(config)),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "https://127.0.0.1:1 cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1


def listening(arguments: list[str]) -> list[str]:
    """The command, listening to Ctrl-C also where these tests run in the background, which ignores it."""
    return ["env", "--default-signal=INT", *arguments]


def test_following_into_a_pipe_tells_changes_as_lines(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    config = str(cluster.server.kubeconfig())
    with path.open("wb") as lines:
        process = subprocess.Popen(
            listening(command("acme-support", "-n", "status", "-w")), env=environment(KUBECONFIG=config), stdout=lines
        )
    try:
        eventually(lambda: "not ready (NoReadyEndpoint)" in path.read_text(), "the first lines", within=30)
        put(cluster, "ModelDeployment", world.deployment(ready=True))
        eventually(lambda: "revision v2 gets 0 -> 10 % (spec 10 %)" in path.read_text(), "the change", within=30)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
        put(cluster, "ModelDeployment", world.deployment())


class Terminal:
    """A process on a terminal of its own; what it shows is collected."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.execvpe("env", listening(arguments), environment)
        self.shown = ""
        os.set_blocking(self._file, False)

    def read(self) -> str:
        """Everything that it has shown so far."""
        try:
            while data := os.read(self._file, 65536):
                self.shown += data.decode(errors="replace")
        except (BlockingIOError, OSError):
            pass
        return self.shown

    def end(self) -> int:
        """Ctrl-C; returns the exit code."""
        os.kill(self.pid, signal.SIGINT)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.read()
            pid, ended = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self._file)
                return os.waitstatus_to_exitcode(ended)
            time.sleep(0.05)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("it does not end on Ctrl-C")


@pytest.fixture
def terminals(cluster: Cluster) -> Iterator[Any]:
    def start(*arguments: str, **more: str) -> Terminal:
        config = str(cluster.server.kubeconfig())
        return Terminal(command(*arguments), environment(KUBECONFIG=config, TERM="xterm-256color", **more))

    yield start


def test_following_on_a_terminal_redraws_in_place_and_ends_on_ctrl_c(cluster: Cluster, terminals: Any) -> None:
    terminal = terminals("acme-support", "-n", "status", "-w")
    eventually(lambda: "Not ready" in terminal.read(), "the first view", within=30)
    put(cluster, "ModelDeployment", world.deployment(ready=True))
    try:
        eventually(lambda: "Completed" in terminal.read(), "the new view", within=30)
        assert "\x1b[1A" in terminal.shown, "it goes up instead of scrolling"
        assert "\x1b[32m" in terminal.shown, "ready is green"
        assert terminal.end() == 130
    finally:
        put(cluster, "ModelDeployment", world.deployment())


def test_no_color_is_respected_on_a_terminal(terminals: Any) -> None:
    terminal = terminals("acme-support", "-n", "status", NO_COLOR="1")
    eventually(lambda: "Conditions" in terminal.read(), "the view", within=30)
    assert "\x1b[3" not in terminal.shown
