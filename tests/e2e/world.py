"""What the stories do to the system and what they look at, in their own words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import yaml
from openai import OpenAI

from cluster import gobuild
from cluster.local.cluster import LocalCluster
from cluster.local.layout import layout_of
from cluster.progress import Progress
from cluster.provider import open_provider
from demo.kubectl import KubectlError, condition, ready
from demo.system import MODELS_NAMESPACE, NAMESPACE, ROOT, System
from tests.traffic import Load, TrafficThread, traffic_in_thread
from tuneyard.api import names

MODEL = "acme-support"
QUICKSTART = ROOT / "examples" / "quickstart"
POOL_PODS = "tuneyard.dev/pool=smollm2"
TrafficOn = TrafficThread
SHORT = {
    # A system message of our own: the model's template would put a longer one there.
    "messages": [{"role": "system", "content": "Hi."}, {"role": "user", "content": "Who are you?"}],
    "max_tokens": 3,
}


def ours(kind: str, name: str, **spec: object) -> str:
    """The manifest of one of our kinds."""
    return yaml.safe_dump(
        {"apiVersion": "tuneyard.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    )


def deployment(
    weights: Mapping[str, int],
    adapters: Mapping[str, str] | None = None,
    name: str = MODEL,
    base: str = "smollm2",
    rollout: Mapping[str, Any] | None = None,
) -> str:
    """The quickstart's ModelDeployment with these weights, and further revisions (name -> adapter)."""
    known: dict[str, str | None] = {"base": None, "v1": "acme-support-v1", "v2": "acme-support-v2", **(adapters or {})}
    revisions = [{"name": r, "baseModel": base, **({"adapter": a} if a else {})} for r, a in known.items()]
    more = {"rollout": dict(rollout)} if rollout else {}
    return ours(
        "ModelDeployment",
        name,
        revisions=revisions,
        traffic=[{"revision": r, "weight": w} for r, w in weights.items()],
        routing={"allowRevisionHeader": True},
        **more,
    )


def adapter(name: str, folder: str, digest: str | None = None, base: str = "smollm2") -> str:
    """A LoRAAdapter whose files are in a folder of the node's artifacts."""
    spec: dict[str, Any] = {"baseModel": base, "source": {"volume": {"name": "artifacts", "path": folder}}}
    if digest:
        spec["digest"] = digest
    return ours("LoRAAdapter", name, **spec)


class World:
    """The system with the quickstart on it."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.kubectl = system.kubectl

    def settle(self) -> None:
        """Back to where every story begins: nothing of a rollout is remembered, or the next would take no steps."""
        if self._record():
            self._forget()
        self.kubectl.merge("bmodel", "smollm2", {"spec": {"serving": {"replicas": 2}}}, MODELS_NAMESPACE)
        self.apply(deployment({"v1": 100}))
        self.wait_for(lambda d: ready(d) and rows(d).get("v1", {}).get("readyEndpoints") == 2, timeout=400)

    def _forget(self) -> None:
        """The deployment away, with what outlives it: who was stable, verdicts, evidence, gates' results."""
        self.kubectl("-n", MODELS_NAMESPACE, "delete", "mdep", MODEL, "--ignore-not-found")
        # The operator notes on the record since when it is unused; it would bring back one that is deleted before.
        wait_until(lambda: names.ANNOTATION_UNUSED_SINCE in self._record(), 60, "the record is known to be unused")
        kept = [names.rollout_record(MODEL), names.rollout_evidence(MODEL), names.gate_reports(MODEL)]
        self.kubectl("-n", MODELS_NAMESPACE, "delete", "configmap", *kept, "--ignore-not-found")

    def record(self) -> dict[str, Any]:
        """What of the deployment's rollouts outlives it; empty when there is nothing."""
        found = self._record()
        return dict(json.loads(json.loads(found)["data"]["record.json"])) if found else {}

    def events(self, reason: str) -> list[str]:
        """What was told of the model by events with this reason, in this life of it."""
        uid = self.kubectl.get("mdep", MODEL, MODELS_NAMESPACE)["metadata"]["uid"]
        found = self.kubectl.items("events.events.k8s.io", MODELS_NAMESPACE)
        return [e.get("note", "") for e in found if e["reason"] == reason and e["regarding"].get("uid") == uid]

    def _record(self) -> str:
        """What of the deployment's rollouts outlives it, as JSON; empty when there is nothing."""
        record = ("configmap", names.rollout_record(MODEL), "--ignore-not-found", "-o", "json")
        return self.kubectl("-n", MODELS_NAMESPACE, "get", *record).strip()

    def apply(self, manifest: str) -> None:
        self.kubectl.apply(manifest, MODELS_NAMESPACE)

    def wait_for(self, holds: Callable[[dict[str, Any]], bool], timeout: float = 60) -> dict[str, Any]:
        """The ModelDeployment once the condition holds."""
        return self.kubectl.wait_for("mdep", MODEL, holds, namespace=MODELS_NAMESPACE, timeout=timeout)

    def served(self, weights: Mapping[str, int], timeout: float = 60) -> dict[str, Any]:
        """Wait until every gateway has confirmed these effective weights."""
        return self.wait_for(
            lambda d: all(
                rows(d).get(r, {}).get("weight") == w and rows(d)[r].get("verified") for r, w in weights.items()
            ),
            timeout,
        )

    def traffic(self, **changes: Any) -> AbstractContextManager[TrafficThread]:
        """Continuous traffic to the model: 0.8 short requests a second, half of them streaming.

        Half a core or more on an engine's CPU kernels for LoRA, which need 0.1 to 0.3 s for a token: what is seen is to
        be the fault and not a queue, also while other engines start on the same two cores.
        """
        load = {"rate": 0.8, "max_open": 40, "max_seconds": 900.0, "body": SHORT, **changes}
        return traffic_in_thread(self.system.gateway, Load([MODEL], **load))

    def tuneyard(self, command: str, *options: str) -> Any:
        """What the command line says of the model, as JSON; a command may be of several words."""
        done = subprocess.run(
            [sys.executable, "-m", "tuneyard", *command.split(), MODEL, "-n", MODELS_NAMESPACE, "-o", "json", *options],
            env={
                **os.environ,
                "KUBECONFIG": str(self.system.provider.kubeconfig()),
                "PYTHONPATH": str(ROOT / "operator"),
            },
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def model_pods(self) -> list[dict[str, Any]]:
        pods = self.kubectl.items("pods", MODELS_NAMESPACE, POOL_PODS)
        return [p for p in pods if not p["metadata"].get("deletionTimestamp")]

    def own_pods(self, component: str) -> list[dict[str, Any]]:
        """Pods of the operator or the gateways."""
        return self.kubectl.items("pods", NAMESPACE, f"app.kubernetes.io/component={component}")

    def execute(self, pod: str, container: str, *command: str, namespace: str = MODELS_NAMESPACE) -> str:
        return self.kubectl("-n", namespace, "exec", pod, "-c", container, "--", *command)

    def end_container(self, pod: str, container: str, namespace: str = MODELS_NAMESPACE) -> None:
        """End the container's first process with SIGKILL, from the node (nobody inside may signal it)."""
        status = self.kubectl.get("pod", pod, namespace)["status"]
        known = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
        identity = next(c["containerID"] for c in known if c["name"] == container).split("://")[1]
        end_container(identity)

    def restarts(self, pod: str, container: str, namespace: str = MODELS_NAMESPACE) -> int:
        status = self.kubectl.get("pod", pod, namespace)["status"]
        known = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
        return int(next(c["restartCount"] for c in known if c["name"] == container))

    def refused(self, manifest: str) -> str:
        """What the API server answers to a manifest it must refuse."""
        try:
            self.kubectl.apply(manifest, MODELS_NAMESPACE)
        except KubectlError as error:
            return str(error)
        raise AssertionError(f"accepted:\n{manifest}")


def local_cluster() -> LocalCluster:
    """The provider, where a story must reach below Kubernetes."""
    provider = open_provider()
    assert isinstance(provider, LocalCluster), "faults below Kubernetes are made on the local provider only"
    return provider


def end_container(identity: str) -> None:
    """SIGKILL to a container's first process, by its containerd id."""
    provider = local_cluster()
    ctr = str(gobuild.ensure(["ctr"], Progress())["ctr"])
    socket = str(layout_of(provider.name).containerd_socket)
    command = [ctr, "-a", socket, "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", identity]
    subprocess.run(provider.inside(command, everything=True), check=True, capture_output=True)


def answer(world: World, model: str, revision: str, question: str = "hello", tokens: int = 8) -> str:
    """What a revision says through the gateway."""
    client = OpenAI(base_url=f"{world.system.gateway}/v1", api_key="any", max_retries=0, timeout=120)
    said = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=tokens,
        temperature=0,
        extra_headers={"x-revision": revision},
    )
    return str(said.choices[0].message.content)


def remove(world: World, name: str, base: str, *adapters: str) -> None:
    """A deployment, its adapters (NAME-ADAPTER) and its base away."""
    world.kubectl("-n", MODELS_NAMESPACE, "delete", "mdep", name, "--ignore-not-found")
    for adapter in adapters:
        world.kubectl.delete_unused("lora", f"{name}-{adapter}", MODELS_NAMESPACE)
    world.kubectl.delete_unused("bmodel", base, MODELS_NAMESPACE)


def rows(obj: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """status.traffic by revision."""
    return {t["revision"]: t for t in (obj.get("status") or {}).get("traffic", [])}


def reason_of(obj: dict[str, Any], type_: str) -> str | None:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((str(c["reason"]) for c in conditions if c["type"] == type_), None)


def wait_until(holds: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll a condition that is no single object's."""
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:.0f} s: {what}")
        time.sleep(0.1)


__all__ = [
    "MODEL",
    "QUICKSTART",
    "TrafficOn",
    "World",
    "adapter",
    "condition",
    "deployment",
    "reason_of",
    "rows",
    "wait_until",
]
