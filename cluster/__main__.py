"""`python -m cluster <command>`: the cluster's commands. Answers go to standard output, progress to standard error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import gobuild
from cluster.errors import ClusterError
from cluster.progress import Progress
from cluster.provider import Provider, Status, open_provider

if TYPE_CHECKING:
    from cluster.local.cluster import LocalCluster


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster", description="A Kubernetes to run Tuneyard on.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="build the programs (all, or those named), without starting anything")
    build.add_argument("names", nargs="*", metavar="NAME")
    commands.add_parser("bin", help="print a program's path, building it first when absent").add_argument("name")
    commands.add_parser("up", help="bring the cluster up; reuses what is built and up")
    commands.add_parser("down", help="remove the cluster and all it left, except caches")
    commands.add_parser("status", help="print what runs; exit 1 when not all does")
    load = commands.add_parser("load-image", help="load an image archive; - is standard input")
    load.add_argument("archive", type=Path)
    commands.add_parser("images", help="print image names and content ids")
    commands.add_parser("kubeconfig", help="print the path of an administrator's kubeconfig")
    expose = commands.add_parser("expose", help="print the loopback address that reaches a Service's port")
    expose.add_argument("namespace")
    expose.add_argument("service")
    expose.add_argument("port", type=int)
    for name, what in (("stop", "stop one component, for outage tests"), ("start", "start a stopped component")):
        commands.add_parser(name, help=f"{what} (local only)").add_argument("component")
    inside = commands.add_parser("exec", help="run a command in the cluster's network namespace (local only)")
    inside.add_argument("--all", action="store_true", help="also in its mount and process namespaces")
    inside.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD")
    return parser


def _local(provider: Provider) -> LocalCluster:
    from cluster.local.cluster import LocalCluster  # noqa: PLC0415 -- not needed with kind

    if not isinstance(provider, LocalCluster):
        raise ClusterError("this command works on the local provider only: CLUSTER=local")
    return provider


def _show(status: Status) -> int:
    lines = [f"cluster {status.name} is {'up' if status.up else 'not up'}"]
    lines += [f"  {part.name:24} {part.state:8} {part.detail}".rstrip() for part in status.components]
    lines += [f"  {where} is at {address}" for where, address in sorted(status.exposed.items())]
    print("\n".join(lines))
    return 0 if status.up else 1


def _exec(args: argparse.Namespace) -> int:
    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    if not argv:
        raise ClusterError("say what to run: python -m cluster exec -- CMD ARGS")
    command = _local(open_provider()).inside(argv, everything=args.all)
    os.execvp(command[0], command)


def _bin(args: argparse.Namespace) -> int:
    print(gobuild.ensure([args.name], Progress())[args.name])
    return 0


def _build(args: argparse.Namespace) -> int:
    for name, path in gobuild.ensure(args.names or gobuild.BINARIES, Progress()).items():
        print(f"{name} {path}")
    return 0


def _images(_: argparse.Namespace) -> int:
    for name, content in sorted(open_provider().images().items()):
        print(f"{name} {content}")
    return 0


def _answer(text: object) -> int:
    print(text)
    return 0


def _do(action: Callable[[], None]) -> int:
    action()
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "build": _build,
    "bin": _bin,
    "up": lambda _: _do(open_provider().up),
    "down": lambda _: _do(open_provider().down),
    "status": lambda _: _show(open_provider().status()),
    "load-image": lambda args: _do(partial(open_provider().load_image, args.archive)),
    "images": _images,
    "kubeconfig": lambda _: _answer(open_provider().kubeconfig()),
    "expose": lambda args: _answer(open_provider().expose(args.namespace, args.service, args.port)),
    "stop": lambda args: _do(partial(_local(open_provider()).stop, args.component)),
    "start": lambda args: _do(partial(_local(open_provider()).start, args.component)),
    "exec": _exec,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 for "no" or a failure, 2 for a wrong command line."""
    args = _parser().parse_args(argv)
    try:
        return COMMANDS[args.command](args)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
