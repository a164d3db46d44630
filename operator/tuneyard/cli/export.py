"""`tuneyard export`: a ModelDeployment for a gateway of your own, a manifest's base and adapter as a Modelfile for
Ollama, or a pool's scaling for an autoscaler of your own.

Reads only, and writes text. Exit codes: 0 written, 1 when it cannot be said so, or what it is made from cannot be read.
"""

from __future__ import annotations

import argparse
import sys

import yaml

from tuneyard.api import names
from tuneyard.cli.autoscalers import hpa, keda, limits, scaled_pools
from tuneyard.cli.httproute import Place, Wanted, to_gateway, to_pools
from tuneyard.cli.manifestread import read_manifests, text_of
from tuneyard.cli.modelfile import modelfile_of
from tuneyard.cli.status import add_cluster_arguments
from tuneyard.cli.statusread import open_cluster, read_deployment, read_registry

_PROMETHEUS = "http://prometheus-operated.monitoring.svc:9090"
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
    ollama.add_argument("file", metavar="FILE", help="the manifest; - for standard input")
    ollama.add_argument("--adapter", metavar="NAME", help="the LoRAAdapter; default: the base alone")
    ollama.add_argument("--gguf", metavar="PATH", help="the base's GGUF file; default: what its source says")
    ollama.add_argument("--adapter-gguf", metavar="PATH", help="the adapter's GGUF file; default: beside its source")
    for kind, what in (("hpa", "a HorizontalPodAutoscaler"), ("keda", "a KEDA ScaledObject")):
        words = f"{what} for each pool of a manifest with serving.autoscaling"
        scaler = kinds.add_parser(kind, help=words, description=f"{words[0].upper()}{words[1:]}.")
        scaler.add_argument(
            "file", metavar="FILE", help="BaseModels and ModelDeployments as YAML; - for standard input"
        )
        if kind == "keda":
            scaler.add_argument(
                "--prometheus",
                default=_PROMETHEUS,
                metavar="URL",
                help=f"where KEDA finds Prometheus (default {_PROMETHEUS})",
            )


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
    """Print what is asked for; raises UserError where it would not do what it says."""
    if args.kind == "ollama":
        text = modelfile_of(args.file, args.adapter, args.gguf, args.adapter_gguf)
        sys.stdout.write(text)
        if text.startswith("#"):
            sys.stderr.write(f"note: {text.partition(chr(10))[0].removeprefix('# ')}\n")
        return 0
    return _route(args) if args.kind == "httproute" else _scalers(args)


def _scalers(args: argparse.Namespace) -> int:
    pools, notes = scaled_pools(read_manifests([(args.file, text_of(args.file))]))
    objects = [hpa(pool) if args.kind == "hpa" else keda(pool, args.prometheus) for pool in pools]
    sys.stdout.write("".join(f"# {line}\n" for line in limits(pools)))
    sys.stdout.write(yaml.safe_dump_all(objects, sort_keys=False, width=100_000))
    sys.stderr.writelines(f"note: {note}\n" for note in notes)
    return 0


def _route(args: argparse.Namespace) -> int:
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
