"""`tuneyard drill NAME`: put a bad candidate beside what is stable, and measure until it is rolled back by itself.

It works on an object of its own (drillplan.py), sends its own requests, a bounded number of them, and removes the
object (drillend.py). Exit codes: 0 the candidate was rolled back; 1 it was not, the rehearsal could not be made, or
something of it stays; 130 somebody ended it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import secrets
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Group, RenderableType
from rich.text import Text

from tuneyard.api import names
from tuneyard.api.analysis import milliseconds
from tuneyard.api.conditions import find, is_true
from tuneyard.api.drill import MOST_DELAY_MS, Fault
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.rollout import Verdict
from tuneyard.api.schema import seconds
from tuneyard.cli.drillend import ended_like_ctrl_c, removed
from tuneyard.cli.drillplan import (
    CANDIDATE,
    STABLE,
    Answer,
    Result,
    drill_name,
    drill_object,
    drilled,
    result,
    traffic,
)
from tuneyard.cli.errors import UserError
from tuneyard.cli.output import console_for, machine_readable, show
from tuneyard.cli.status import add_cluster_arguments
from tuneyard.cli.statusread import Cluster, explained, open_cluster, read_deployment
from tuneyard.cli.statusrender import table
from tuneyard.systems.kube.client import MERGE, ApiError
from tuneyard.systems.kube.objects import path

API_KEY = "TUNEYARD_API_KEY"
_READY_SECONDS = 180.0
_BASELINE_SECONDS = 5.0
"""How long stable is seen alone before the candidate begins."""
_AFTERWARDS_SECONDS = 2.0
"""How long requests go on after the verdict: what still comes to the candidate counts."""
_BESIDE_SECONDS = 600.0
"""More than all that comes before and after `--within` takes: then a rehearsal that is still there was left behind."""
_POLL_SECONDS = 0.1
_MOST_OPEN = 100
_PROMPT = "Say hello."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard drill`."""
    parser.add_argument("name", metavar="NAME", help="a ModelDeployment in mode Progressive with spec.rollout.analysis")
    parser.add_argument("-n", "--namespace", help="namespace (default: the one of the kubeconfig's context)")
    parser.add_argument("--gateway", metavar="URL", help="where requests go (default: the URL in the status)")
    parser.add_argument(
        "--api-key",
        type=Path,
        metavar="FILE",
        help="a file with the key that requests carry (default: TUNEYARD_API_KEY in the environment)",
    )
    parser.add_argument("--errors", type=int, metavar="PERCENT", help="of the candidate's answers (default 100)")
    parser.add_argument("--delay", metavar="TIME", help="instead: how much later its answers come, for example 5s")
    parser.add_argument(
        "--weight", type=int, default=10, metavar="PERCENT", help="of the requests it gets (default 10)"
    )
    parser.add_argument("--rate", type=float, default=10.0, metavar="N", help="requests per second (default 10)")
    parser.add_argument("--within", default="10m", metavar="TIME", help="give up after (default 10m)")
    parser.add_argument("--own-pods", action="store_true", help="also where the deployment has pods of its own")
    parser.add_argument("-o", "--output", choices=("json", "yaml"), help="for programs instead of people")
    add_cluster_arguments(parser)


@dataclass(frozen=True)
class _Drill:
    """What is rehearsed, and how."""

    cluster: Cluster
    namespace: str
    name: str
    """Of the rehearsal's object."""
    model: str
    url: str
    key: str | None = field(repr=False)
    fault: Fault
    weight: int
    rate: float
    within: float
    answers: list[Answer] = field(default_factory=list)

    def read(self) -> ModelDeploymentResource:
        return read_deployment(self.cluster, self.namespace, self.name)

    def request(self, method: str, name: str = "", **more: Any) -> None:
        where = path(names.API_VERSION, "ModelDeployment", self.namespace, name)
        try:
            self.cluster.api.request(method, where, **more)
        except ApiError as error:
            if error.status == 403:
                raise UserError(f"a rehearsal makes a ModelDeployment of its own: {error.message}") from error
            if error.status == 409:
                raise UserError(
                    f"{self.name} is there already: another rehearsal runs, or was left behind. Remove it with "
                    f"kubectl delete modeldeployment {self.name} -n {self.namespace}"
                ) from error
            raise explained(error, "modeldeployments", self.cluster.api.host) from error


def run(args: argparse.Namespace) -> int:
    """Rehearse and print what was measured."""
    within = _seconds(args.within)
    fault = fault_from(args).model_copy(update={"lasts_seconds": math.ceil(within + _BESIDE_SECONDS)})
    if not (1 <= args.weight <= 50 and 0 < args.rate <= 200):
        raise UserError("--weight is from 1 to 50 percent, and --rate above 0, 200 a second at most")
    cluster = open_cluster(args.kubeconfig, args.context)
    namespace = args.namespace or cluster.namespace
    deployment = read_deployment(cluster, namespace, args.name)
    revision = drilled(deployment, own_pods=args.own_pods)
    url = args.gateway or (deployment.status.url or "").removesuffix("/v1")
    if not url:
        raise UserError("the status names no URL of the gateway: give it with --gateway")
    token = secrets.token_hex(6)
    made = drill_object(deployment, revision, fault, weight=args.weight, token=token)
    drill = _Drill(
        cluster=cluster,
        namespace=namespace,
        name=drill_name(args.name),
        model=made["spec"]["modelName"],
        url=url.rstrip("/"),
        key=key_from(args.api_key),
        fault=fault,
        weight=args.weight,
        rate=args.rate,
        within=within,
    )
    with ended_like_ctrl_c(), removed(cluster.api, namespace, drill.name, token):
        drill.request("POST", body=made)
        found = asyncio.run(_rehearse(drill))
        if args.output:
            sys.stdout.write(machine_readable(found, args.output))
        else:
            show(console_for(sys.stdout), render(found))
    return 0 if found.rolled_back else 1


def fault_from(args: argparse.Namespace) -> Fault:
    """The fault that the arguments name; raises UserError for one that is none."""
    errors = 100 if args.errors is None and args.delay is None else args.errors or 0
    try:
        delay = milliseconds(args.delay) if args.delay else 0
    except ValueError as error:
        raise UserError(f"--delay: {error}") from error
    if not 0 <= errors <= 100 or delay > MOST_DELAY_MS or not (errors or delay):
        raise UserError("a fault is --errors from 1 to 100 percent, or --delay of 1m at most")
    return Fault(revision=CANDIDATE, errors=errors, delay_ms=delay)


def _seconds(text: str) -> float:
    try:
        return float(seconds(text))
    except ValueError as error:
        raise UserError(f"--within: {error}") from error


def key_from(file: Path | None) -> str | None:
    """The key that requests carry: the file's, else the environment's."""
    if file is None:
        return os.environ.get(API_KEY) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"--api-key: {file} cannot be read: {error.strerror}") from error


async def _rehearse(drill: _Drill) -> Result:
    sys.stderr.write(f"{drill.name}: waits until it is ready\n")
    await _until_ready(drill)
    headers = {"authorization": f"Bearer {drill.key}"} if drill.key else {}
    stop = asyncio.Event()
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=120)) as session:
        sending = asyncio.create_task(_send(drill, session, stop))
        try:
            await _hears(drill, sending)
            await asyncio.sleep(_BASELINE_SECONDS)  # what stable is like is part of the evidence
            sys.stderr.write(f"the candidate begins at {drill.weight} %, {_words(drill.fault)}\n")
            body = {"spec": {"traffic": traffic(100)}}
            await asyncio.to_thread(drill.request, "PATCH", drill.name, body=body, content_type=MERGE)
            verdict = await _until_rejected(drill)
            decided = time.monotonic() if verdict else None
            await asyncio.sleep(
                _AFTERWARDS_SECONDS if verdict else 0
            )  # who is still sent to the candidate is seen here
        except BaseException:
            # whoever ends it (a job that is cancelled) gives it seconds until it is killed: nobody waits for answers
            sending.cancel()
            raise
        finally:
            stop.set()
            await asyncio.gather(sending, return_exceptions=True)
    return result(drill.answers, drill.fault, drill.weight, verdict, decided)


async def _until_ready(drill: _Drill) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        found = (await asyncio.to_thread(drill.read)).status
        if found.rollout and found.rollout.stable == STABLE and is_true(found.conditions, "Ready"):
            return
        if time.monotonic() > deadline:
            ready = find(found.conditions, "Ready")
            said = ready.message if ready else "the operator says nothing of it"
            raise UserError(f"{drill.name} is not ready within {_READY_SECONDS:.0f} s: {said}")
        await asyncio.sleep(_POLL_SECONDS)


async def _hears(drill: _Drill, sending: asyncio.Task[None]) -> None:
    """Until stable answers; raises UserError with what is answered instead."""
    deadline = time.monotonic() + 30
    while not any(a.status == 200 for a in drill.answers):
        if sending.done():
            sending.result()
        if time.monotonic() > deadline:
            last = drill.answers[-1].status if drill.answers else 0
            told = f"answers with status {last}" if last else "does not answer"
            raise UserError(f"{drill.url} {told}: is it the gateway? Choose it with --gateway (and --api-key)")
        await asyncio.sleep(_POLL_SECONDS)


async def _until_rejected(drill: _Drill) -> Verdict | None:
    deadline = time.monotonic() + drill.within
    while time.monotonic() < deadline:
        rollout = (await asyncio.to_thread(drill.read)).status.rollout
        found = next((v for v in (rollout.verdicts if rollout else None) or () if v.revision == CANDIDATE), None)
        if found is not None:
            return found
        await asyncio.sleep(_POLL_SECONDS)
    return None


async def _send(drill: _Drill, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
    """Requests at a steady rate until `stop`; every other one streams."""
    opened: set[asyncio.Task[None]] = set()
    began, number = time.monotonic(), 0
    try:
        while not stop.is_set():
            if len(opened) < _MOST_OPEN:
                task = asyncio.create_task(_ask(drill, session, stream=number % 2 == 1))
                opened.add(task)
                task.add_done_callback(opened.discard)
            number += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, began + number / drill.rate - time.monotonic()))
        if opened:
            await asyncio.wait(opened)
    except asyncio.CancelledError:
        for task in tuple(opened):
            task.cancel()
        raise


async def _ask(drill: _Drill, session: aiohttp.ClientSession, *, stream: bool) -> None:
    body = {
        "model": drill.model,
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": 16,
        "stream": stream,
    }
    sent = time.monotonic()
    status, revision = 0, None
    try:
        async with session.post(f"{drill.url}/v1/chat/completions", json=body) as answer:
            status, revision = answer.status, answer.headers.get(names.REVISION_HEADER)
            await answer.read()
    except (aiohttp.ClientError, TimeoutError):
        status = 0
    drill.answers.append(Answer(sent, time.monotonic(), status, revision))


def _words(fault: Fault) -> str:
    parts = [f"{fault.errors} % of its answers are errors"] if fault.errors else []
    parts += [f"its answers come {fault.delay_ms} ms later"] if fault.delay_ms else []
    return " and ".join(parts)


def render(found: Result) -> RenderableType:
    """The result as a table for a terminal."""
    rows = table("WHAT", "MEASURED")
    rows.add_row("first spoiled answer to verdict", _time(found.seconds_to_detect))
    rows.add_row("first spoiled answer to last request given to it", _time(found.seconds_to_roll_back))
    rows.add_row("spoiled answers", f"{found.spoiled} of {found.requests} (all of the rehearsal's own)")
    rows.add_row("the candidate's weight", f"{found.weight} %")
    if found.rolled_back:
        head = Text("rolled back by itself", style="green")
        return Group(head, rows, Text(f"{found.reason}: {found.evidence}"))
    return Group(Text("not rolled back in this time", style="red"), rows)


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
