"""A real Argo CD on loopback beside a real API server: its Redis, repository server, application controller and API
server as processes, and a Git repository in a folder.

Its own kinds have no schema here: who writes them is Argo CD and these tests. The scripts are those that users apply.
Everything lies in one folder and dies with the process that started it.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from gitops.configmap import OUTPUT
from tests.contract.apiserver import ApiServer
from tests.contract.argocdsettings import program
from tests.contract.dying import die_with_parent
from tests.contract.operator_process import eventually
from tests.contract.ports import free_port
from tuneyard.api import names
from tuneyard.systems.kube.client import MERGE, ApiError

Object = dict[str, Any]
NAMESPACE = "argocd"
TOKEN = "operator-3"
"""Whom the audit log names for Argo CD's writes."""
_GROUP = "argoproj.io"
_APPS = f"/apis/{_GROUP}/v1alpha1/namespaces/{NAMESPACE}/applications"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_ROLES = ("argocd", "argocd-repo-server", "argocd-application-controller", "argocd-server", "redis-server", "kustomize")
_PATIENCE = 60.0
_OVERLOOKED = 5.0


class Repository:
    """A Git repository whose working folder the tests write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def commit(self, files: Mapping[str, Object | Sequence[Object] | str], message: str = "change") -> str:
        """Write these files (objects as YAML documents) and commit; returns the revision."""
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            objects = [content] if isinstance(content, dict) else content
            path.write_text(content if isinstance(content, str) else yaml.safe_dump_all(objects, sort_keys=False))
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", message)
        return self._git("rev-parse", "HEAD")

    def revert(self) -> str:
        """Revert the last commit, as `git revert` does."""
        self._git("revert", "--no-edit", "HEAD")
        return self._git("rev-parse", "HEAD")

    def _git(self, *words: str) -> str:
        who = {f"GIT_{role}_{what}": text for role in ("AUTHOR", "COMMITTER") for what, text in _WHO.items()}
        environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        found = subprocess.run(
            ["git", *words], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr
        return found.stdout.strip()


_numbers = itertools.count()
_WHO = {"NAME": "tests", "EMAIL": "tests@localhost"}


class ArgoCd:
    """Argo CD for one API server; `with ArgoCd(server, folder) as argo:` starts and ends it."""

    def __init__(self, server: ApiServer, folder: Path, *, poll: int = 180) -> None:
        """`poll`: seconds between looks at Git that nobody asks for."""
        self.folder = folder
        self.repository = Repository(folder / "git")
        self._server = server
        self._poll = poll
        self._api = server.api()
        self._ports = {role: free_port() for role in ("redis", "repo", "server", "m1", "m2", "m3")}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._install()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes.clear()

    # -- applications --------------------------------------------------------------------------------------------------

    def create(
        self, name: str, namespace: str, path: str, *, options: Sequence[str] = (), policy: Object | None = None
    ) -> None:
        """An application for a folder of the repository; without `policy` it is synced by nobody."""
        spec: Object = {
            "project": "default",
            "source": {"repoURL": self.repository.url, "targetRevision": "main", "path": path},
            "destination": {"server": "https://kubernetes.default.svc", "namespace": namespace},
            "syncPolicy": {"syncOptions": list(options), **(policy or {})},
        }
        self.apply(
            {"apiVersion": f"{_GROUP}/v1alpha1", "kind": "Application", "metadata": {"name": name}, "spec": spec}
        )

    def apply(self, application: Object) -> None:
        """Create an Application as it stands in a file."""
        self._api.request("POST", _APPS, body=application)

    def get(self, name: str) -> Object:
        """The Application."""
        return self._api.request("GET", f"{_APPS}/{name}")

    def patch(self, name: str, body: Object) -> None:
        self._api.request("PATCH", f"{_APPS}/{name}", body=body, content_type=MERGE)

    def shown(self, name: str) -> tuple[str, str]:
        """What its page says: sync state and health."""
        status = self.get(name).get("status") or {}
        health, sync = status.get("health") or {}, status.get("sync") or {}
        return sync.get("status", ""), health.get("status", "")

    def refresh(self, name: str, how: str = "normal", revision: str | None = None) -> None:
        """Make it look at Git and the cluster now; returns when it has, with a `revision` when it has seen that one.

        What is asked for while it looks already may be dropped, or left standing until something else changes
        (argo-cd#28392), so it is asked again where nothing comes of it.
        """
        mark = f"{NAMESPACE}.{_GROUP}/refresh"

        def ask() -> float:
            for value in (None, how):
                self.patch(name, {"metadata": {"annotations": {mark: value}}})
            return time.monotonic()

        asked = ask()

        def looked() -> bool:
            nonlocal asked
            found = self.get(name)
            sees = ((found.get("status") or {}).get("sync") or {}).get("revision")
            if mark not in (found["metadata"].get("annotations") or {}) and revision in (None, sees):
                return True
            if time.monotonic() - asked > _OVERLOOKED:
                asked = ask()
            return False

        eventually(looked, self.said, _PATIENCE)

    def operation(self, name: str) -> Object:
        """The last operation and what came of it."""
        found: Object = (self.get(name).get("status") or {}).get("operationState") or {}
        return found

    def sync(self, name: str, *options: str, force: bool = False) -> Object:
        """Sync by hand, with `options` instead of the application's own; returns the operation when it has ended."""
        mark = [{"name": "test", "value": str(next(_numbers))}]
        strategy = {"syncStrategy": {"apply": {"force": force}}}
        sync = {"prune": True, **strategy, **({"syncOptions": list(options)} if options else {})}
        asked = 0.0

        def ended() -> Object | None:
            nonlocal asked
            found = self.get(name)
            last: Object = (found.get("status") or {}).get("operationState") or {}
            if (last.get("operation") or {}).get("info") == mark:
                return last if last.get("phase") in ("Succeeded", "Failed", "Error") else None
            # what is asked for just when another one ends is wiped with that one, or overlooked until it changes
            if found.get("operation") is None or time.monotonic() > asked + _OVERLOOKED:
                asked = time.monotonic()
                who = {"username": f"tests at {asked}"}
                self.patch(name, {"operation": {"initiatedBy": who, "info": mark, "sync": sync}})
            return None

        found: Object = eventually(ended, lambda: f"the sync ends: {self.operation(name)}", _PATIENCE)
        return found

    def run_action(self, name: str, namespace: str, resource: str, action: str) -> tuple[int, str]:
        """What its page's menu does with a ModelDeployment; returns the status and text of the answer."""
        body = {
            "name": name,
            "namespace": namespace,
            "resourceName": resource,
            "group": names.GROUP,
            "version": names.VERSION,
            "kind": "ModelDeployment",
            "action": action,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._ports['server']}/api/v1/applications/{name}/resource/actions/v2",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def said(self, characters: int = 3000) -> str:
        """The end of every log."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-characters:]}" for log in logs)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _install(self) -> None:
        kinds = ("Application", "AppProject", "ApplicationSet")
        for kind in kinds:
            self._kind(kind, f"{kind.lower()}s")
        eventually(lambda: all(self._established(f"{kind.lower()}s") for kind in kinds), "Argo CD's kinds")
        try:
            self._server.namespace(NAMESPACE)
        except ApiError as error:
            if not error.conflict:
                raise
        settings = yaml.safe_load(OUTPUT.read_text())
        part_of = {"labels": {"app.kubernetes.io/part-of": NAMESPACE}}
        own = {"timeout.reconciliation": f"{self._poll}s", "timeout.reconciliation.jitter": "0s"}
        secret = {"server.secretkey": "only-for-tests", "admin.passwordMtime": "2026-01-01T00:00:00Z"}
        core = f"/api/v1/namespaces/{NAMESPACE}"
        for plural, name, content in (
            ("configmaps", "argocd-cm", {"data": {**settings["data"], **own}}),
            ("configmaps", "argocd-cmd-params-cm", {"data": {}}),
            ("configmaps", "argocd-rbac-cm", {"data": {"policy.default": "role:admin"}}),
            ("secrets", "argocd-secret", {"stringData": secret}),
        ):
            self._api.request("POST", f"{core}/{plural}", body={"metadata": {"name": name, **part_of}, **content})
        everything = [{"group": "*", "kind": "*"}]
        spec = {"sourceRepos": ["*"], "destinations": [{"namespace": "*", "server": "*"}]}
        project = {"metadata": {"name": "default"}, "spec": {**spec, "clusterResourceWhitelist": everything}}
        where = _APPS.replace("applications", "appprojects")
        body = {"apiVersion": f"{_GROUP}/v1alpha1", "kind": "AppProject", **project}
        self._api.request("POST", where, body=body)

    def _kind(self, kind: str, plural: str) -> None:
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        spec = {
            "group": _GROUP,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "versions": [{"name": "v1alpha1", "served": True, "storage": True, "schema": schema}],
        }
        body = {"metadata": {"name": f"{plural}.{_GROUP}"}, "spec": spec}
        self._api.request("POST", _CRDS, body=body)

    def _established(self, plural: str) -> bool:
        found = self._api.request("GET", f"{_CRDS}/{plural}.{_GROUP}").get("status") or {}
        return any(c["type"] == "Established" and c["status"] == "True" for c in found.get("conditions") or ())

    def _start(self) -> None:
        folders = {n: self.folder / n for n in ("bin", "home", "tmp", "tls", "ssh", "plugins", "gpg", "keys")}
        for path in folders.values():
            path.mkdir(mode=0o700)
        for role in _ROLES:
            (folders["bin"] / role).symlink_to(program())
        # it stands in Argo CD's image; here no commit is signed
        wrapper = folders["bin"] / "git-verify-wrapper.sh"
        wrapper.write_text('#!/bin/sh\ngit verify-commit "$1" 2>&1 || true\n')
        wrapper.chmod(0o700)
        (folders["ssh"] / "ssh_known_hosts").touch()
        kubeconfig = str(self._server.kubeconfig(TOKEN))
        environment = {
            "PATH": f"{folders['bin']}:{os.environ['PATH']}",
            "HOME": str(folders["home"]),
            "TMPDIR": str(folders["tmp"]),
            "KUBECONFIG": kubeconfig,
            "HOSTNAME": "argocd-application-controller-0",
            "ARGOCD_FAKE_IN_CLUSTER": "true",
            "ARGOCD_GPG_ENABLED": "false",
            "ARGOCD_TLS_DATA_PATH": str(folders["tls"]),
            "ARGOCD_SSH_DATA_PATH": str(folders["ssh"]),
            "ARGOCD_GNUPGHOME": str(folders["gpg"]),
            "ARGOCD_GPG_DATA_PATH": str(folders["keys"]),
            "ARGOCD_PLUGINSOCKFILEPATH": str(folders["plugins"]),
        }
        ports = {role: f"127.0.0.1:{port}" for role, port in self._ports.items()}

        def spawn(role: str, *arguments: str) -> None:
            with (self.folder / f"{role}.log").open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        [str(folders["bin"] / role), *arguments],
                        env=environment,
                        cwd=self.folder,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        preexec_fn=die_with_parent,  # noqa: PLW1509 -- it calls nothing but the kernel
                    )
                )

        def metrics(port: str) -> tuple[str, str]:
            return "--metrics-port", str(self._ports[port])

        spawn("redis-server", "-address", ports["redis"])
        spawn(
            "argocd-repo-server",
            *("--address", "127.0.0.1", "--port", str(self._ports["repo"]), "--metrics-address", "127.0.0.1"),
            *(*metrics("m1"), "--redis", ports["redis"], "--disable-tls", "--client-ca-path="),
            *("--revision-cache-expiration", "1s"),
        )
        for role in ("redis", "repo"):
            self._wait_for(role)
        common = ["--kubeconfig", kubeconfig, "--namespace", NAMESPACE, "--redis", ports["redis"]]
        common += ["--repo-server", ports["repo"], "--repo-server-plaintext"]
        spawn(
            "argocd-application-controller",
            *(*common, *metrics("m2"), "--app-resync", str(self._poll), "--app-resync-jitter", "0"),
            *("--self-heal-timeout-seconds", "1", "--persist-resource-health"),
        )
        spawn(
            "argocd-server",
            *(*common, *metrics("m3"), "--metrics-address", "127.0.0.1", "--address", "127.0.0.1"),
            *("--port", str(self._ports["server"]), "--insecure", "--disable-auth"),
        )
        self._wait_for("m2")
        self._wait_for("server")

    def _wait_for(self, role: str) -> None:
        """Until it takes connections."""

        def listens() -> bool:
            dead = [p for p in self._processes if p.poll() is not None]
            assert not dead, f"{dead[0].args!r} ended: {self.said()}"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._ports[role])) == 0

        eventually(listens, lambda: f"{role} listens: {self.said()}", _PATIENCE)
