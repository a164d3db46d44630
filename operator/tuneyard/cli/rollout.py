"""`tuneyard rollout status|pause|resume|promote|abort|retry NAME`: look at a rollout, or tell it what to do.

Rules:
- a command is one annotation; the operator carries it out or refuses it, and its answer is what is printed. So the
  program knows no more of rollouts than `kubectl annotate` does, and needs no right but to patch the ModelDeployment;
- without REVISION the one is meant that the status names now, and it is sent along: had another one taken its place
  meanwhile, the operator refuses.
Exit codes: 0 done, 1 refused or not answered.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from tuneyard.api import names
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.rollout import LastCommand, RolloutStatus
from tuneyard.cli.errors import UserError
from tuneyard.cli.output import console_for, machine_readable, show
from tuneyard.cli.rolloutrender import render_rollout
from tuneyard.cli.rolloutview import RolloutView, evidence_line, rollout_view
from tuneyard.cli.status import add_cluster_arguments, follow, readings
from tuneyard.cli.statusread import Cluster, explained, open_cluster, read_deployment
from tuneyard.systems.kube.client import MERGE, ApiError
from tuneyard.systems.kube.objects import path

ACTIONS = {
    "pause": "take no further step",
    "resume": "take steps again, after `rollout pause`",
    "promote": "give the candidate its spec weight now; while it bakes, make it stable",
    "abort": "reject the candidate: its weight goes to 0 at once, and stays there",
    "retry": "drop the verdict on a rejected revision, which begins again at the first step",
}
ANSWER_SECONDS = 15.0
_POLL_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard rollout`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    status = actions.add_parser("status", help="where it stands", description="Where the rollout stands.")
    _name(status)
    how = status.add_mutually_exclusive_group()
    how.add_argument("-w", "--watch", action="store_true", help="follow live; lines of changes where no terminal is")
    how.add_argument("-o", "--output", choices=("json", "yaml"), help="for programs instead of people")
    for action, words in ACTIONS.items():
        added = actions.add_parser(action, help=words, description=f"{words[0].upper()}{words[1:]}.")
        _name(added)
        added.add_argument("revision", nargs="?", metavar="REVISION", help="default: the one that the status names")


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a ModelDeployment")
    parser.add_argument("-n", "--namespace", help="namespace (default: the one of the kubeconfig's context)")
    add_cluster_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Show the rollout, or send the command and print the answer."""
    cluster = open_cluster(args.kubeconfig, args.context)
    namespace = args.namespace or cluster.namespace
    if args.action == "status":
        return _status(args, lambda: rollout_view(read_deployment(cluster, namespace, args.name), datetime.now(UTC)))
    deployment = read_deployment(cluster, namespace, args.name)
    answer = ask(cluster, deployment, args.action, args.revision or meant(deployment, args.action))
    sys.stdout.write(f"{answer.message}\n" if answer.accepted else "")
    if not answer.accepted:
        raise UserError(f"refused: {answer.message}")
    return 0


def _status(args: argparse.Namespace, read: Callable[[], RolloutView]) -> int:
    console = console_for(sys.stdout)
    if args.output:
        sys.stdout.write(machine_readable(read(), args.output))
    elif not args.watch:
        show(console, render_rollout(read()))
    elif console.is_terminal:
        return follow(read, render_rollout, console)
    else:
        _follow_as_lines(read)
    return 0


def _follow_as_lines(read: Callable[[], RolloutView]) -> None:
    told = ""
    for view, problem in readings(read):
        line = problem if view is None else evidence_line(view)
        if line != told:
            sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S} {line}\n")
            sys.stdout.flush()
        told = line


def meant(deployment: ModelDeploymentResource, action: str) -> str | None:
    """The revision that a command is about when none is named."""
    rollout = deployment.status.rollout or RolloutStatus()
    if action != "retry":
        return rollout.candidate
    return rollout.verdicts[0].revision if rollout.verdicts else rollout.candidate


def new_command(deployment: ModelDeploymentResource, action: str, revision: str | None) -> dict[str, str]:
    """What the annotation says; it is about what has the name now, and not about what takes it before it is read."""
    rollout = deployment.status.rollout or RolloutStatus()
    about = {"revision": revision, "contentHash": (rollout.contents or {}).get(revision or "")}
    return {"id": secrets.token_hex(6), "action": action, **{key: value for key, value in about.items() if value}}


def ask(cluster: Cluster, deployment: ModelDeploymentResource, action: str, revision: str | None) -> LastCommand:
    """Send a command and wait for its answer; raises UserError where none comes."""
    namespace, name = deployment.metadata.key
    command = new_command(deployment, action, revision)
    body = {"metadata": {"annotations": {names.ANNOTATION_COMMAND: json.dumps(command)}}}
    where = path(names.API_VERSION, "ModelDeployment", namespace, name)
    try:
        cluster.api.request("PATCH", where, body=body, content_type=MERGE)
    except ApiError as error:
        if error.status == 403:
            raise UserError(f"you may not patch ModelDeployments in {namespace}: {error.message}") from error
        raise explained(error, "modeldeployments", cluster.api.host) from error
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        told = read_deployment(cluster, namespace, name).status.rollout
        if told is not None and told.last_command is not None and told.last_command.id == command["id"]:
            return told.last_command
        time.sleep(_POLL_SECONDS)
    raise UserError(
        f"the operator has not answered within {ANSWER_SECONDS:.0f} s: is it running? The command stays in the "
        f"annotation {names.ANNOTATION_COMMAND} and is carried out when it is"
    )
