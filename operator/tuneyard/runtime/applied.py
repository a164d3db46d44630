"""What this process has applied, as far as watching the objects does not tell.

Rules:
- the operator may write Secrets but not read or watch them: one that was applied counts as there for `SECRET_SECONDS`,
  and for `MISSED_SECONDS` while a pod of its pool cannot start because something it names is missing;
- an apply makes an object as whole as it can be: what its answer says of who owns which field is never a reason to
  apply it again, or a field that the API server gives to nobody would be applied in every pass;
- only metadata is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from tuneyard.api import names
from tuneyard.planning.observations import ChildObservation, child_observation
from tuneyard.systems.kube.client import Object

SECRET = ("v1", "Secret")
SECRET_SECONDS = 600.0
"""Should somebody have changed or deleted a Secret, it is put right after this long at the latest."""
MISSED_SECONDS = 10.0

_Child = tuple[str, str, str]
"""(kind, namespace, name)."""


class Applied:
    """Answers to applies; safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._secrets: dict[_Child, tuple[float, ChildObservation]] = {}
        self._owned: dict[_Child, str | None] = {}

    def applied(self, stored: Object) -> None:
        """Remember the API server's answer to an apply; the data in it is not looked at."""
        child = child_observation({key: stored[key] for key in ("apiVersion", "kind", "metadata")})
        with self._lock:
            if (child.api_version, child.kind) == SECRET:
                # nobody sees its versions and owners: neither may decide anything
                unseen = replace(child, resource_version="", owned=None)
                self._secrets[_key(child)] = (self._clock(), unseen)
            else:
                self._owned[_key(child)] = child.owned

    def deleted(self, kind: str, namespace: str, name: str) -> None:
        """Forget one."""
        with self._lock:
            self._secrets.pop((kind, namespace, name), None)
            self._owned.pop((kind, namespace, name), None)

    def seen(self, child: ChildObservation) -> ChildObservation:
        """The child without its owned fields where it is as this process's last apply left it."""
        with self._lock:
            same = child.owned is not None and self._owned.get(_key(child)) == child.owned
        return replace(child, owned=None) if same else child

    def secret_beside(self, child: ChildObservation, *, missed: bool) -> ChildObservation:
        """The key Secret of the pool of this child: as applied, or as one that may be there in any form.

        `missed`: a pod waits for something that it names.
        """
        name = names.pool_key_secret(child.pool)
        with self._lock:
            at, found = self._secrets.get(("Secret", child.namespace, name), (float("-inf"), None))
        if found is not None and self._clock() - at < (MISSED_SECONDS if missed else SECRET_SECONDS):
            return found
        return ChildObservation(
            api_version="v1",
            kind="Secret",
            namespace=child.namespace,
            name=name,
            uid="",
            pool=child.pool,
            base_model=child.base_model,
            deployment=child.deployment,
        )


def _key(child: ChildObservation) -> _Child:
    return child.kind, child.namespace, child.name
