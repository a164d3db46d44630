"""`tuneyard history NAME`: which revisions became stable and which were rejected, and when. Reads only."""

from __future__ import annotations

import argparse

from tuneyard.cli.output import answer
from tuneyard.cli.rolloutrender import render_history
from tuneyard.cli.rolloutview import history_view
from tuneyard.cli.status import add_cluster_arguments
from tuneyard.cli.statusread import open_cluster, read_deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard history`."""
    parser.add_argument("name", metavar="NAME", help="a ModelDeployment")
    parser.add_argument("-n", "--namespace", help="namespace (default: the one of the kubeconfig's context)")
    parser.add_argument("-o", "--output", choices=("json", "yaml"), help="for programs instead of people")
    add_cluster_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Show the history; raises UserError where there is no such ModelDeployment."""
    cluster = open_cluster(args.kubeconfig, args.context)
    view = history_view(read_deployment(cluster, args.namespace or cluster.namespace, args.name))
    answer(view, render_history, args.output)
    return 0
