"""`tuneyard lineage NAME`: what answers under a name, and what that was made from. Reads only.

Exit codes: 0 when there is such an object, 1 when not or when the cluster cannot be read.
"""

from __future__ import annotations

import argparse
import sys

from tuneyard.cli.errors import UserError
from tuneyard.cli.lineagerender import UNFOLDED, render_lineage
from tuneyard.cli.lineageview import KIND_WORDS, SHORT, Kind, found_kinds, lineage_view
from tuneyard.cli.output import console_for, machine_readable, show
from tuneyard.cli.status import add_cluster_arguments
from tuneyard.cli.statusread import open_cluster, read_registry
from tuneyard.cli.statusview import Read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard lineage`."""
    parser.add_argument(
        "name", metavar="NAME", help="a ModelDeployment, LoRAAdapter or BaseModel; mdep/NAME, lora/NAME, bmodel/NAME"
    )
    parser.add_argument("-n", "--namespace", help="namespace (default: the one of the kubeconfig's context)")
    parser.add_argument("-o", "--output", choices=("json", "yaml"), help="for programs instead of people")
    add_cluster_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Show the chains through an object; raises UserError where there is none of that name."""
    word, slash, name = args.name.rpartition("/")
    if slash and word.lower() not in KIND_WORDS:
        raise UserError(f"{word} is no kind: write mdep/{name}, lora/{name} or bmodel/{name}", exit_code=2)
    cluster = open_cluster(args.kubeconfig, args.context)
    namespace = args.namespace or cluster.namespace
    read = read_registry(cluster, namespace)
    view = lineage_view(chosen_kind(name, KIND_WORDS.get(word.lower()), namespace, read), name, read)
    if args.output:
        sys.stdout.write(machine_readable(view, args.output))
    else:
        console = console_for(sys.stdout)
        tree = render_lineage(view, console.width)
        console.width = UNFOLDED
        show(console, tree)
    return 0


def chosen_kind(name: str, wanted: Kind | None, namespace: str, read: Read) -> Kind:
    """Which object is meant; raises UserError where none is, or where it is not clear."""
    found = [kind for kind in found_kinds(name, read) if wanted in (None, kind)]
    if len(found) == 1:
        return found[0]
    if found:
        ways = " or ".join(f"{SHORT[kind]}/{name}" for kind in found)
        raise UserError(f"{' and '.join(found)} are named {name}: write {ways}")
    what = wanted or "ModelDeployment, LoRAAdapter or BaseModel"
    raise UserError(f"no {what} {name!r} in namespace {namespace}: `tuneyard status` lists what there is")
