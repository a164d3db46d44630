"""kubectl as a person uses it, for the demo, the stories and the benchmarks.

Waiting reads through one kept connection instead: a kubectl every few milliseconds would be most of the load of a small
machine, and its start would be in every figure.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from tuneyard.api.crds import KINDS
from tuneyard.api.names import GROUP, VERSION

_PLURALS = {kind.short: kind.plural for kind in KINDS}


class KubectlError(RuntimeError):
    """kubectl refused; the message is what it printed."""


@dataclass(eq=False)
class Kubectl:
    """One cluster, by its kubeconfig."""

    binary: Path
    kubeconfig: Path

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run it; returns stdout, raises KubectlError with stderr."""
        done = subprocess.run(
            [str(self.binary), "--kubeconfig", str(self.kubeconfig), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise KubectlError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def apply(self, manifest: str | Path, namespace: str = "default") -> str:
        """`kubectl apply -f` of a file, or of YAML text."""
        if isinstance(manifest, Path):
            return self("-n", namespace, "apply", "-f", str(manifest))
        return self("-n", namespace, "apply", "-f", "-", stdin=manifest)

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        """One object."""
        return dict(json.loads(self("-n", namespace, "get", kind, name, "-o", "json")))

    @cached_property
    def _objects(self) -> Any:
        return client.CustomObjectsApi(config.new_client_from_config(config_file=str(self.kubeconfig)))

    def _read(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        if kind not in _PLURALS:
            return self.get(kind, name, namespace)
        try:
            found = self._objects.get_namespaced_custom_object(
                GROUP, VERSION, namespace, _PLURALS[kind], name, _request_timeout=10
            )
        except (ApiException, HTTPError) as error:
            raise KubectlError(str(error)) from error
        return dict(found)

    def items(self, kind: str, namespace: str = "default", selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind in a namespace."""
        return list(json.loads(self("-n", namespace, "get", kind, "-l", selector, "-o", "json"))["items"])

    def merge(self, kind: str, name: str, patch: dict[str, Any], namespace: str = "default") -> str:
        """`kubectl patch --type=merge`."""
        return self("-n", namespace, "patch", kind, name, "--type=merge", "-p", json.dumps(patch))

    def delete_unused(self, kind: str, name: str, namespace: str = "default", timeout: float = 60) -> None:
        """Delete a BaseModel or LoRAAdapter as soon as nothing uses it any more: before that it is refused."""
        unused = self.wait_for(
            kind, name, lambda o: not (o.get("status") or {}).get("usedBy"), namespace=namespace, timeout=timeout
        )
        self("-n", namespace, "delete", kind, unused["metadata"]["name"], "--wait=false")

    def wait_for(
        self,
        kind: str,
        name: str,
        holds: Callable[[dict[str, Any]], bool],
        *,
        namespace: str = "default",
        timeout: float = 120,
        poll: float = 0.1,
    ) -> dict[str, Any]:
        """The object once the condition holds; TimeoutError with its status otherwise."""
        deadline = time.monotonic() + timeout
        last: dict[str, Any] = {}
        while True:
            try:
                last = self._read(kind, name, namespace)
                if holds(last):
                    return last
            except KubectlError as error:
                last = {"status": str(error)}
            if time.monotonic() > deadline:
                shown = json.dumps(last.get("status"), indent=1)[:3000]
                raise TimeoutError(f"{kind} {namespace}/{name} after {timeout:.0f} s: {shown}")
            time.sleep(poll)


def condition(obj: dict[str, Any], type_: str) -> str | None:
    """The status of a condition: True, False, Unknown, or None where it is not there."""
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((str(c["status"]) for c in conditions if c["type"] == type_), None)


def ready(obj: dict[str, Any]) -> bool:
    """Whether Ready is True for the generation that is there."""
    seen = (obj.get("status") or {}).get("observedGeneration")
    return condition(obj, "Ready") == "True" and seen == obj["metadata"]["generation"]
