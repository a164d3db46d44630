"""The whole system on a cluster: images, models, chart. The demo, the stories and the benchmarks stand on it.

Every step is safe to repeat: what is built, loaded or installed already is reused, so an interrupted run resumes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster import gobuild, images, paths
from cluster.errors import ClusterError
from cluster.local import preflight
from cluster.local.cluster import LocalCluster
from cluster.progress import Progress
from cluster.provider import Provider, open_provider
from demo.kubectl import Kubectl
from demo.progress import say, working
from models.artifact import digest

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = "tuneyard-system"
MODELS_NAMESPACE = "models"
RELEASE = "tuneyard"
NODE_ARTIFACTS = str(paths.NODE_ARTIFACTS)
"""Where the node's pods find the demo's artifacts; the only host path that the demo's installation lets them read."""
MEMORY = 11 << 30
"""Bytes: two engines of 3.2 GiB, for the demo's last step another of 4.6 GiB less what is shared, and the cluster."""
DISK = 30 << 30
"""Bytes that a first run takes at most: compiled programs, packages, image layers, and the node's copy of them."""
IMAGES = ("tuneyard", "envoy", "vllm-cpu")

CPU_ENGINE_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # an engine of one rank computes in its own process: a third less to start, and none that waits busily for another
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@dataclass(frozen=True)
class System:
    """A running installation."""

    provider: Provider
    kubectl: Kubectl
    gateway: str
    """http://127.0.0.1:port of the gateway Service."""


def _program(name: str) -> Path:
    """A program that the cluster's pinned modules build."""
    return gobuild.ensure([name], Progress())[name]


def _model(*arguments: str) -> Path:
    """Make one artifact by the models package; returns its folder."""
    done = subprocess.run(
        [sys.executable, "-m", "models", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(done.stdout.strip().splitlines()[-1])


def _place(source: Path, target: Path) -> None:
    """Have a copy of a folder; files are readable by the pods' user."""
    if target.exists() and digest(target) == digest(source):
        return
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    for path in (partial, *partial.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def place_artifacts(provider: Provider) -> None:
    """Put bases and adapters where the node's pods find them."""
    folder = provider.artifacts()
    with working("models (a real SmolLM2-135M, a tiny random one, the adapters of examples/)"):
        (folder / "adapters").mkdir(parents=True, exist_ok=True)
        _place(_model("smollm2"), folder / "smollm2-135m-instruct")
        tiny = _model("tiny")
        _place(tiny / "base", folder / "tiny-llama")
        for name in ("adapter-a", "adapter-b"):
            _place(tiny / name, folder / "adapters" / f"tiny-{name}")
        for adapter in sorted((ROOT / "examples" / "adapters").iterdir()):
            if adapter.is_dir():
                _place(adapter, folder / "adapters" / adapter.name)


def load_images(provider: Provider) -> dict[str, str]:
    """Build and load the images that are missing; returns name -> reference."""
    references = {}
    for name in IMAGES:
        with working(f"image {name}"):
            references[name] = images.load(provider, images.build(name))
    return references


def helm_values(references: dict[str, str]) -> dict[str, object]:
    """The chart's values for a cluster without registry and without GPU."""
    return {
        "images": {
            "tuneyard": {"ref": references["tuneyard"]},
            "envoy": {"ref": references["envoy"]},
            "vllm": {"ref": references["vllm-cpu"]},
        },
        "imagePullPolicy": "Never",
        "engineEnv": CPU_ENGINE_ENV,
        "allowedHostPathPrefixes": [NODE_ARTIFACTS],
        "allowedCacheHostPaths": [str(paths.NODE_CACHE)],
    }


def helm(provider: Provider) -> list[str]:
    """The command that helm begins with here, for the release's namespace."""
    return [str(_program("helm")), "--kubeconfig", str(provider.kubeconfig()), "--namespace", NAMESPACE]


def _free_release(command: list[str]) -> None:
    """Undo what an interrupted helm left: a release that is pending for ever refuses every further upgrade."""
    told = subprocess.run([*command, "status", RELEASE, "-o", "json"], capture_output=True, text=True, check=False)
    status = json.loads(told.stdout)["info"]["status"] if told.returncode == 0 else ""
    if status == "pending-install":
        subprocess.run([*command, "uninstall", RELEASE, "--wait"], check=True, stdout=subprocess.DEVNULL)
    elif status.startswith("pending"):
        subprocess.run([*command, "rollback", RELEASE], check=True, stdout=subprocess.DEVNULL)


def install(provider: Provider, kubectl: Kubectl, references: dict[str, str]) -> None:
    """Install or upgrade the chart, and make the namespace for models (hostPath needs the level privileged)."""
    values = ROOT / "build" / "demo" / "values.yaml"
    values.parent.mkdir(parents=True, exist_ok=True)
    values.write_text(json.dumps(helm_values(references), indent=2))
    command = helm(provider)
    chart = str(ROOT / "charts" / "tuneyard")
    with working("Tuneyard (helm upgrade --install)"):
        _free_release(command)
        command += ["upgrade", "--install", RELEASE, chart, "--create-namespace", "--values", str(values)]
        done = subprocess.run([*command, "--wait", "--timeout", "3m"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"helm could not install the chart: {done.stderr.strip()}")
        kubectl.apply(
            f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {MODELS_NAMESPACE}, labels: "
            "{pod-security.kubernetes.io/enforce: privileged}}}"
        )


def wait_until_answering(url: str, timeout: float = 60) -> None:
    """Until the gateway lists its models."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the gateway at {url} does not answer: {error}") from error
        time.sleep(0.2)


def attach(provider: Provider | None = None) -> System:
    """An installation that is up already."""
    provider = provider or open_provider()
    kubectl = Kubectl(_program("kubectl"), provider.kubeconfig())
    address = provider.expose(NAMESPACE, "tuneyard-gateway", 8080)
    return System(provider, kubectl, f"http://{address}")


def bring_up() -> System:
    """From whatever is there to a running installation."""
    provider = open_provider()
    if isinstance(provider, LocalCluster):
        # Before the builds, which use some of these programs, begin beside the cluster's own.
        preflight.check(Progress())
        if not provider.status().up:
            preflight.require_memory(MEMORY, "Tuneyard with two small models")
        if not any((paths.cache_root() / "layers").glob("*")):
            preflight.require_disk(DISK, "the first run, which builds everything,")
    with ThreadPoolExecutor(max_workers=2) as pool:
        # Downloads and archives of the images overlap with the compiler's work on the cluster.
        building = pool.submit(lambda: [images.build(name) for name in IMAGES])
        placing = pool.submit(place_artifacts, provider)
        with working(f"Kubernetes ({provider.name})"):
            provider.up()
        building.result()
        placing.result()
    kubectl = Kubectl(_program("kubectl"), provider.kubeconfig())
    install(provider, kubectl, load_images(provider))
    system = attach(provider)
    wait_until_answering(system.gateway)
    say(f"    gateway: {system.gateway}/v1")
    return system
