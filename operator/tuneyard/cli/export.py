"""`tuneyard export httproute NAME`: a ModelDeployment for a gateway of your own; `tuneyard export ollama FILE`: a
manifest's base and adapter as a Modelfile. Both read only, and write text.

Exit codes: 0 written, 1 when it cannot be said in such a form or the cluster or file cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tuneyard.api import names
from tuneyard.cli.httproute import Place, Wanted, to_gateway, to_pools
from tuneyard.cli.modelfile import modelfile_of
from tuneyard.cli.status import add_cluster_arguments
from tuneyard.cli.statusread import open_cluster, read_deployment, read_registry

_SERVICE = f"tuneyard-system/tuneyard-gateway:{names.GATEWAY_PORT}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard export`."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    words = "an HTTPRoute of the Gateway API, with the weights of this moment"
    route = kinds.add_parser("httproute", help=words, description=f"{words[0].upper()}{words[1:]}.")
    route.add_argument("name", metavar="NAME", help="a ModelDeployment")
    route.add_argument("-n", "--namespace", help="namespace (default: the one of the kubeconfig's context)")
    route.add_argument(
        "--parent",
        type=_gateway,
        action="append",
        required=True,
        metavar="[NAMESPACE/]GATEWAY",
        help="your Gateway, as often as there are some",
    )
    route.add_argument("--hostname", action="append", default=[], help="a host name that clients use; default: all")
    route.add_argument(
        "--model-header",
        default=names.MODEL_HEADER,
        metavar="HEADER",
        help=f"where requests say their model besides the body (default {names.MODEL_HEADER})",
    )
    route.add_argument(
        "--to",
        choices=("gateway", "pools"),
        default="gateway",
        help="Tuneyard's gateways, told the revision (default), or straight to the model pods' Services",
    )
    route.add_argument(
        "--gateway-service",
        type=_service,
        default=_SERVICE,
        metavar="NAMESPACE/NAME:PORT",
        help=f"the Service of Tuneyard's gateways (default {_SERVICE})",
    )
    add_cluster_arguments(route)
    words = "a Modelfile for Ollama, from a manifest with a BaseModel and, where one is to be used, a LoRAAdapter"
    ollama = kinds.add_parser("ollama", help=words, description=f"{words[0].upper()}{words[1:]}.")
    ollama.add_argument("file", metavar="FILE", type=Path, help="the manifest")
    ollama.add_argument("--adapter", metavar="NAME", help="the LoRAAdapter; default: the base alone")
    ollama.add_argument("--gguf", metavar="PATH", help="the base's GGUF file; default: what its source says")
    ollama.add_argument("--adapter-gguf", metavar="PATH", help="the adapter's GGUF file; default: beside its source")


def _gateway(text: str) -> Place:
    namespace, _, name = text.rpartition("/")
    if not name or "/" in namespace:
        raise argparse.ArgumentTypeError(f"{text} is not [NAMESPACE/]GATEWAY")
    return Place(namespace, name)


def _service(text: str) -> Place:
    place, _, port = text.rpartition(":")
    namespace, _, name = place.partition("/")
    if not namespace or not name or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not NAMESPACE/NAME:PORT")
    return Place(namespace, name, int(port))


def run(args: argparse.Namespace) -> int:
    """Print the route or the Modelfile; raises UserError where it would not do what it says."""
    if args.kind == "ollama":
        sys.stdout.write(modelfile_of(args.file, args.adapter, args.gguf, args.adapter_gguf))
        return 0
    cluster = open_cluster(args.kubeconfig, args.context)
    namespace = args.namespace or cluster.namespace
    deployment = read_deployment(cluster, namespace, args.name)
    parents = [p if p.namespace else Place(namespace, p.name) for p in args.parent]
    wanted = Wanted(parents, args.hostname, args.model_header)
    if args.to == "gateway":
        exported = to_gateway(deployment, wanted, args.gateway_service)
    else:
        adapters = read_registry(cluster, namespace).adapters
        exported = to_pools(deployment, wanted, adapters, args.gateway_service.namespace)
    sys.stdout.write(exported.text())
    sys.stderr.write("note: what this route cannot do stands in its first lines; its weights are those of now\n")
    return 0
