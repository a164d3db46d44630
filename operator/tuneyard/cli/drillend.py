"""How a rehearsal ends: its object goes, also when somebody ends the command, and else it is said what stays.

Rules:
- SIGTERM and SIGHUP (a cancelled job, a closed terminal) end it as Ctrl-C does. After SIGKILL the object stays; what
  becomes of it then: planning/rehearsal.py;
- only what this rehearsal has made is removed, known by its token: another one's stands under the same name;
- an API server that does not answer is asked again for some seconds; whatever stays, the exit code is not 0.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

from tuneyard.api import names
from tuneyard.cli.errors import UserError
from tuneyard.systems.kube.client import Api, ApiError
from tuneyard.systems.kube.objects import delete, path

ATTEMPTS, PAUSE_SECONDS = 8, 2.0
_TIMEOUT = (5.0, 15.0)
_POINTLESS = (401, 403)
"""The same answer would come again."""


@contextlib.contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, the way SIGINT does at that moment."""

    def end(_number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)  # asyncio has one of its own while it runs
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    heard = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]  # nohup
    before = {s: signal.signal(s, end) for s in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def removed(api: Api, namespace: str, name: str, token: str) -> Iterator[None]:
    """The object goes at the end, however that comes; raises UserError where it stays."""
    try:
        yield
    except BaseException:
        stays = _stays(api, namespace, name, token)
        if stays:
            sys.stderr.write(f"{stays}\n")
        raise
    stays = _stays(api, namespace, name, token)
    if stays:
        raise UserError(stays)


def _stays(api: Api, namespace: str, name: str, token: str) -> str | None:
    """What is to be said of an object that could not be removed."""
    why = "interrupted"
    try:
        why = _remove(api, namespace, name, token)
    except KeyboardInterrupt:
        sys.stderr.write(_words(namespace, name, why) + "\n")
        raise
    return _words(namespace, name, why) if why else None


def _words(namespace: str, name: str, why: str) -> str:
    return (
        f"{name} could not be removed ({why}) and may still be there: "
        f"kubectl delete modeldeployment {name} -n {namespace}"
    )


def _remove(api: Api, namespace: str, name: str, token: str) -> str:
    """Remove what was made with this token; why that failed, empty: it is gone."""
    where = path(names.API_VERSION, "ModelDeployment", namespace, name)
    why = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            found = api.request("GET", where, timeout=_TIMEOUT)
            if (found["spec"].get("rollout") or {}).get("retryToken") == token:
                uid = found["metadata"]["uid"]
                delete(api, names.API_VERSION, "ModelDeployment", namespace, name, uid=uid)
            return ""
        except ApiError as error:
            if error.not_found:
                return ""
            why = error.message or str(error)
            if error.status in _POINTLESS:
                break
    return why
