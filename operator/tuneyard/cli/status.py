"""`tuneyard status [NAME]`: what is served, from the user's kubeconfig. Reads only.

Exit codes: 0 when the ModelDeployment is ready (without NAME: when all are), 1 when not, when it does not exist or the
cluster cannot be read. `-w` follows until interrupted; a failed reading is a remark there and not the end.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from tuneyard.cli.errors import UserError
from tuneyard.cli.output import console_for, machine_readable, show
from tuneyard.cli.statuschanges import changes
from tuneyard.cli.statusread import Cluster, open_cluster, read_all, read_one
from tuneyard.cli.statusrender import Look, render_deployment, render_overview
from tuneyard.cli.statusview import DeploymentView, Overview, deployment_view, overview

WATCH_SECONDS = 1.0
View = DeploymentView | Overview
Shown = TypeVar("Shown")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard status`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a ModelDeployment; none: all, with bases and adapters")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-n", "--namespace", help="namespace (default: the one of the kubeconfig's context)")
    where.add_argument("-A", "--all-namespaces", action="store_true", help="all namespaces")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-w", "--watch", action="store_true", help="follow live; lines of changes where no terminal is")
    how.add_argument("-o", "--output", choices=("json", "yaml"), help="for programs instead of people")
    add_cluster_arguments(parser)


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Which cluster, for every command that reads one."""
    parser.add_argument("--kubeconfig", type=_file, help="kubeconfig file (default: $KUBECONFIG or ~/.kube/config)")
    parser.add_argument("--context", help="context of the kubeconfig (default: its current one)")


def _file(text: str) -> str:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return text


def run(args: argparse.Namespace) -> int:
    """Show what there is; returns the exit code."""
    if args.name and args.all_namespaces:
        raise UserError("a NAME is in one namespace: use -n instead of -A", exit_code=2)
    cluster = open_cluster(args.kubeconfig, args.context)
    namespace = None if args.all_namespaces else args.namespace or cluster.namespace

    def read() -> View:
        now = datetime.now(UTC)
        if args.name:
            found = read_one(cluster, namespace or cluster.namespace, args.name)
            return deployment_view(found.deployments[0], found, now)
        return overview(read_all(cluster, namespace), now)

    console = console_for(sys.stdout)

    def render(view: View) -> RenderableType:
        return Group(_rendered(view, namespace, console), *_remarks(cluster))

    if args.watch:
        return follow(read, render, console) if console.is_terminal else _follow_as_lines(read)
    view = read()
    if args.output:
        sys.stdout.write(machine_readable(view, args.output))
    else:
        show(console, render(view))
    return 0 if is_ready(view) else 1


def is_ready(view: View) -> bool:
    """Whether the exit code is 0. An overview of nothing is."""
    return view.ready if isinstance(view, DeploymentView) else all(d.ready for d in view.deployments)


def _rendered(view: View, namespace: str | None, console: Console) -> RenderableType:
    look = Look(console.width, plain=not console.encoding.startswith("utf"), bars=console.is_terminal)
    if isinstance(view, DeploymentView):
        return render_deployment(view, look)
    if not (view.deployments or view.base_models or view.adapters):
        return Text(f"nothing of Tuneyard in {f'namespace {namespace}' if namespace else 'any namespace'}")
    return render_overview(view, look, everywhere=namespace is None)


def _remarks(cluster: Cluster) -> list[Text]:
    return [Text(f"\nleft out, {what}: {why}", style="yellow") for what, why in sorted(cluster.remarks.items())]


def readings(read: Callable[[], Shown]) -> Iterator[tuple[Shown | None, str]]:
    """(view, "") or (None, what went wrong), once a second for ever; the first failure is the user's to see at once."""
    yield read(), ""
    while True:
        time.sleep(WATCH_SECONDS)
        try:
            yield read(), ""
        except UserError as error:
            yield None, str(error)


def follow(read: Callable[[], Shown], render: Callable[[Shown], RenderableType], console: Console) -> int:
    """Show on a terminal what is read, once a second, until it is interrupted."""
    last: Shown | None = None
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for view, problem in readings(read):
            last = view or last
            shown = [render(last)] if last else []
            live.update(Group(*shown, Text(problem, style="red")), refresh=True)
    return 0


def _follow_as_lines(read: Callable[[], View]) -> int:
    before: Overview | None = None
    told = ""
    for view, problem in readings(read):
        lines = [problem] if problem and problem != told else []
        told = problem
        if view is not None:
            after = (
                Overview(deployments=[view], base_models=[], adapters=[]) if isinstance(view, DeploymentView) else view
            )
            lines += changes(before, after)
            before = after
        for line in lines:
            sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S} {line}\n")
        sys.stdout.flush()
    return 0
