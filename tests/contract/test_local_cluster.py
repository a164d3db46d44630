"""The local cluster is a real Kubernetes: what the rest of the tests rest on, shown on a cluster of its own.

The cluster has a name of its own and is brought up and taken down here, so that one that somebody works with is left
alone. The tests share it, in the order of the file: the last one takes it down and looks at what is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from cluster import addons, gobuild, scratch_image
from cluster.errors import ClusterError
from cluster.kubectl import Kubectl
from cluster.local import components
from cluster.local.cluster import LocalCluster
from cluster.local.layout import NODE_ADDRESS, layout_of
from cluster.progress import Progress
from cluster.provider import Provider, open_provider

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

NAME = "contract"
PROBE = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      securityContext: {{runAsNonRoot: true, runAsUser: 65532}}
      containers:
        - name: probe
          image: {image}
          imagePullPolicy: Never
          args: [serve, ":8080"]
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{port: 80, targetPort: 8080}}]
"""
GPU_POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: probe
      image: {image}
      imagePullPolicy: Never
      args: [serve, ":8080"]
      resources: {{limits: {{nvidia.com/gpu: {gpus}}}}}
"""
# Run inside the cluster's network: prints the status that URL answers, with the token where there is one.
ASK_KUBELET = """
import ssl, sys, urllib.error, urllib.request
headers = {"Authorization": "Bearer " + sys.argv[2]} if sys.argv[2] else {}
request = urllib.request.Request(sys.argv[1], headers=headers)
try:
    print(urllib.request.urlopen(request, context=ssl._create_unverified_context()).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def eventually(what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def footprint() -> dict[str, set[str]]:
    """What there is on the machine that a cluster could leave behind."""
    roots = [Path(root) for root in ("/etc", "/opt", "/run", "/var/lib", "/var/log", "/usr/libexec")]
    paths = {str(path) for root in roots if root.is_dir() for path in (*root.glob("*"), *root.glob("*/*"))}
    cgroups = {str(path) for path in Path("/sys/fs/cgroup").glob("**/tuneyard*")}

    def lines(*argv: str) -> set[str]:
        return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines())

    return {
        # Shared memory of other programs, and apt's own business.
        "paths": {path for path in paths if not path.startswith(("/run/shm", "/var/lib/apt", "/var/lib/dpkg"))},
        "cgroups": cgroups,
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "network namespaces": lines("ip", "netns"),
        "packet rules": lines("nft", "list", "ruleset"),
        "links": {line.split(":")[1].strip() for line in lines("ip", "-oneline", "link")},
    }


def processes_in(namespace: str) -> list[str]:
    """Command lines of all processes whose network namespace is `namespace`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str((process / "ns/net").readlink()) == namespace:
                found.append((process / "cmdline").read_bytes().decode())
        except OSError:
            continue  # it ended while we looked
    return found


@pytest.fixture(scope="module")
def before() -> dict[str, set[str]]:
    provider = _provider()
    provider.down()
    return footprint()


def _provider() -> LocalCluster:
    os.environ["TUNEYARD_CLUSTER"] = NAME
    try:
        return LocalCluster(Progress())
    finally:
        del os.environ["TUNEYARD_CLUSTER"]


@pytest.fixture(scope="module")
def provider(before: dict[str, set[str]]) -> Iterator[LocalCluster]:
    """The cluster, up after `up` was killed in every stage of it."""
    provider = _provider()
    # Building is not what the time of `up` is about.
    gobuild.ensure(components.PROGRAMS, Progress())
    command = [sys.executable, "-m", "cluster", "up"]
    for seconds in (0.3, 0.5, 0.7, 0.9, 1.2, 2, 4):
        cut_short = subprocess.Popen(command, env={**os.environ, "TUNEYARD_CLUSTER": NAME}, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            cut_short.wait(seconds)
        cut_short.kill()
        cut_short.wait()
    provider.up()
    yield provider
    provider.down()


@pytest.fixture(scope="module")
def kubectl(provider: Provider) -> Kubectl:
    return Kubectl(gobuild.ensure(["kubectl"], Progress())["kubectl"], provider.kubeconfig())


@pytest.fixture(scope="module")
def image(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> str:
    program = gobuild.ensure(["probe-server"], Progress())["probe-server"]
    name = addons.image_name(program)
    archive = tmp_path_factory.mktemp("image") / "probe.tar"
    with archive.open("wb") as file:
        scratch_image.write_archive(file, name, program)
    provider.load_image(archive)
    return name


@pytest.fixture(scope="module")
def probes(kubectl: Kubectl, image: str) -> Kubectl:
    """Two Deployments, `one` with one pod and `two` with two, each behind a Service."""
    kubectl.apply(
        PROBE.format(name="one", replicas=1, image=image) + "---" + PROBE.format(name="two", replicas=2, image=image)
    )
    for name in ("one", "two"):
        kubectl.run("rollout", "status", f"deployment/{name}", "--timeout=60s")
    return kubectl


def fetch(address: str, path: str = "/") -> str:
    with urlopen(f"http://{address}{path}", timeout=10) as answer:
        return str(answer.read().decode().strip())


def test_everything_runs_and_a_second_up_reuses_it(provider: LocalCluster) -> None:
    first = provider.status()
    assert first.up, first
    started = time.monotonic()
    provider.up()
    assert time.monotonic() - started < 3
    assert provider.status() == first


def test_an_interrupted_up_leaves_no_second_copy_of_anything(provider: LocalCluster) -> None:
    anchor = next(part for part in provider.status().components if part.name == "namespaces").detail.split()[1]
    programs = [line.split("\0")[0] for line in processes_in(str(Path(f"/proc/{anchor}/ns/net").readlink()))]
    once = [str(gobuild.built(name)) for name in ("pause", "relay", "etcd", "kube-apiserver", "kubelet", "containerd")]
    assert [programs.count(program) for program in once] == [1] * len(once)


def test_images_have_the_ids_of_their_configuration(provider: LocalCluster, image: str) -> None:
    assert provider.images()[image].startswith("sha256:")


def test_an_archive_can_come_on_standard_input(provider: LocalCluster, tmp_path: Path) -> None:
    program = gobuild.ensure(["pause"], Progress())["pause"]
    archive = tmp_path / "image.tar"
    with archive.open("wb") as file:
        scratch_image.write_archive(file, "localhost/streamed:1", program)
    with archive.open("rb") as file:
        command = [sys.executable, "-m", "cluster", "load-image", "-"]
        subprocess.run(command, stdin=file, check=True, env={**os.environ, "TUNEYARD_CLUSTER": NAME})
    assert "localhost/streamed:1" in provider.images()


def test_what_is_no_archive_is_refused_with_its_name(provider: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "notes.tar").write_text("no image")
    with pytest.raises(ClusterError, match=r"cannot load notes\.tar"):
        provider.load_image(tmp_path / "notes.tar")
    with pytest.raises(ClusterError, match=r"no image archive"):
        provider.load_image(tmp_path / "absent.tar")


def test_a_pod_answers_through_its_service_to_the_machine_and_to_another_pod(
    provider: LocalCluster, probes: Kubectl
) -> None:
    one, two = provider.expose("default", "one", 80), provider.expose("default", "two", 80)
    assert one.startswith("127.0.0.1:")
    assert fetch(one).startswith("one-")
    assert fetch(one, "/fetch?url=http://two.default.svc.cluster.local").startswith("two-")
    # Both pods of `two` answer, and a pod reaches itself through its own Service.
    eventually("both pods of `two`", lambda: len({fetch(two) for _ in range(20)}) == 2)
    assert fetch(one, "/fetch?url=http://one").startswith("one-")
    assert provider.expose("default", "one", 80) == one


def test_expose_says_what_is_wrong(provider: LocalCluster, probes: Kubectl) -> None:
    with pytest.raises(ClusterError, match="has no port 81; it has 80"):
        provider.expose("default", "one", 81)
    with pytest.raises(ClusterError, match='services "absent" not found'):
        provider.expose("default", "absent", 80)


def test_the_relay_carries_many_short_connections(provider: LocalCluster, probes: Kubectl) -> None:
    address = provider.expose("default", "two", 80)
    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: fetch(address), range(2000)))
    assert all(answer.startswith("two-") for answer in answers)
    print(f"2000 connections in {time.monotonic() - started:.2f} s")


def test_names_are_looked_up_inside_and_unknown_ones_do_not_hang(provider: LocalCluster, probes: Kubectl) -> None:
    address = probes.get("service", "two")["spec"]["clusterIP"]
    assert probes.run("exec", "deploy/one", "--", "/probe-server", "lookup", "two").strip() == address
    assert (
        probes.run("exec", "deploy/one", "--", "/probe-server", "lookup", "kubernetes.default").strip() == "10.96.0.1"
    )
    started = time.monotonic()
    with pytest.raises(ClusterError, match="no such host"):
        probes.run("exec", "deploy/one", "--", "/probe-server", "lookup", "models.example.org")
    assert time.monotonic() - started < 3


def test_exec_and_logs(provider: LocalCluster, probes: Kubectl) -> None:
    fetch(provider.expose("default", "one", 80), "/seen")
    eventually("the request in the log", lambda: "GET /seen from" in probes.run("logs", "deploy/one"))
    answer = probes.run("exec", "deploy/two", "--", "/probe-server", "fetch", "http://one")
    assert answer.startswith("one-")


def test_gpus_are_scheduled_and_outlast_a_kubelet(provider: LocalCluster, kubectl: Kubectl, image: str) -> None:
    def allocatable() -> str:
        return str(kubectl.get("node", "node-1")["status"]["allocatable"].get("nvidia.com/gpu"))

    def phase(name: str) -> str:
        return str(kubectl.get("pod", name)["status"]["phase"])

    eventually("8 GPUs", lambda: allocatable() == "8")
    kubectl.apply("---".join(GPU_POD.format(name=f"gpu-{n}", gpus=n, image=image) for n in (2, 99)))
    eventually("a pod with 2 GPUs runs", lambda: phase("gpu-2") == "Running")
    eventually("the scheduler's word on 99", lambda: "conditions" in kubectl.get("pod", "gpu-99")["status"])
    assert phase("gpu-99") == "Pending"
    assert "Insufficient nvidia.com/gpu" in kubectl.get("pod", "gpu-99")["status"]["conditions"][0]["message"]
    provider.stop("kubelet")
    assert {part.name: part.state for part in provider.status().components}["kubelet"] == "stopped"
    provider.start("kubelet")
    kubectl.apply(GPU_POD.format(name="gpu-3", gpus=3, image=image))
    eventually("a pod with 3 GPUs runs under the new kubelet", lambda: phase("gpu-3") == "Running")
    kubectl.run("delete", "pod", "gpu-2", "gpu-3", "gpu-99", "--wait=true", "--timeout=60s")


def test_the_kubelet_lets_nobody_in_without_a_right(provider: LocalCluster, kubectl: Kubectl) -> None:
    def status(token: str) -> str:
        argv = [sys.executable, "-c", ASK_KUBELET, f"https://{NODE_ADDRESS}:10250/pods", token]
        return subprocess.run(provider.inside(argv), capture_output=True, text=True, check=True).stdout.strip()

    token = kubectl.run("create", "token", "default").strip()
    assert status("") == "401"
    assert status(token) == "403"


def test_admission_policies_and_pod_security_are_enforced(kubectl: Kubectl, image: str) -> None:
    kubectl.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: strict\n"
        "  labels: {pod-security.kubernetes.io/enforce: restricted}"
    )
    eventually("the default service account", lambda: bool(kubectl.run("get", "sa", "-n", "strict", "-o", "name")))
    with pytest.raises(ClusterError, match="violates PodSecurity"):
        kubectl.run("run", "root", "-n", "strict", f"--image={image}")
    kubectl.apply(
        json.dumps(
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": "no-forbidden"},
                "spec": {
                    "matchConstraints": {
                        "resourceRules": [
                            {
                                "apiGroups": [""],
                                "apiVersions": ["v1"],
                                "operations": ["CREATE"],
                                "resources": ["configmaps"],
                            }
                        ]
                    },
                    "validations": [
                        {"expression": "object.metadata.name != 'forbidden'", "message": "pick another name"}
                    ],
                },
            }
        )
    )
    kubectl.apply(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\n"
        "metadata: {name: no-forbidden}\nspec: {policyName: no-forbidden, validationActions: [Deny]}"
    )

    def refused() -> bool:
        try:
            kubectl.run("create", "configmap", "forbidden", "--dry-run=server")
        except ClusterError as error:
            return "pick another name" in str(error)
        return False

    eventually("the policy takes hold", refused)


def test_pods_serve_on_while_the_api_server_is_away(provider: LocalCluster, probes: Kubectl) -> None:
    address = provider.expose("default", "two", 80)
    provider.stop("apiserver")
    with pytest.raises(ClusterError):
        probes.run("get", "pods", "--request-timeout=2s")
    assert all(fetch(address).startswith("two-") for _ in range(20))
    assert not provider.status().up
    provider.start("apiserver")
    assert provider.status().up
    probes.run("rollout", "restart", "deployment/one")
    # The controllers come back with the client library's back-off, which an outage under load drives to its 30 s.
    probes.run("rollout", "status", "deployment/one", "--timeout=180s")


def test_up_starts_what_died_and_nothing_else(provider: LocalCluster, probes: Kubectl) -> None:
    before = {part.name: part.detail for part in provider.status().components}
    os.kill(int(before["scheduler"].split()[1]), signal.SIGKILL)
    eventually("the scheduler's death", lambda: not provider.status().up)
    provider.up()
    after = {part.name: part.detail for part in provider.status().components}
    assert [name for name in after if after[name] != before[name]] == ["scheduler"]


def test_up_after_the_machine_was_switched_off(provider: LocalCluster, probes: Kubectl) -> None:
    anchor = next(part for part in provider.status().components if part.name == "namespaces").detail.split()[1]
    os.kill(int(anchor), signal.SIGKILL)
    eventually("all end", lambda: all(part.state == "dead" for part in provider.status().components))
    provider.up()
    assert provider.status().up
    probes.run("rollout", "status", "deployment/one", "--timeout=180s")


def test_nothing_inside_has_a_way_out(provider: LocalCluster) -> None:
    route = subprocess.run(
        provider.inside(["ip", "route", "get", "192.0.2.1"]), capture_output=True, text=True, check=False
    )
    assert route.returncode != 0
    assert "unreachable" in route.stderr


def test_components_are_named_when_one_is_not_known(provider: LocalCluster) -> None:
    with pytest.raises(ClusterError, match="there are: etcd, containerd, apiserver"):
        provider.stop("mainframe")


def test_down_leaves_nothing_and_up_again_is_quick(
    provider: LocalCluster, probes: Kubectl, before: dict[str, set[str]]
) -> None:
    anchor = next(part for part in provider.status().components if part.name == "namespaces").detail.split()[1]
    namespace = str(Path(f"/proc/{anchor}/ns/net").readlink())
    assert len(processes_in(namespace)) > 8
    exposed = provider.expose("default", "one", 80)
    provider.down()
    assert processes_in(namespace) == []
    assert not layout_of(NAME).state.exists()
    left = {kind: now - before[kind] for kind, now in footprint().items()}
    assert left == {kind: set() for kind in left}
    with pytest.raises(OSError, match="refused"):
        fetch(exposed)
    with pytest.raises(ClusterError, match="is not up; bring it up with"):
        provider.kubeconfig()
    started = time.monotonic()
    provider.up()
    assert time.monotonic() - started < 60
    # Images outlast the cluster; pods of the one before do not.
    program = gobuild.ensure(["probe-server"], Progress())["probe-server"]
    assert addons.image_name(program) in provider.images()
    assert len(_containers(provider)) <= 4
    assert open_provider("local").name != NAME


def _containers(provider: LocalCluster) -> list[str]:
    ctr = gobuild.ensure(["ctr"], Progress())["ctr"]
    socket = layout_of(NAME).containerd_socket
    listed = subprocess.run(
        [str(ctr), f"--address={socket}", "--namespace=k8s.io", "containers", "list", "-q"],
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.split()
