"""`tuneyard plan FILE...`: the pools that manifests make, and the memory that these need, before anything is applied.

It asks no cluster. Of a base in a folder, a hub or a bucket it reads config.json and the headers of the weights.
Exit codes: 0 every pool could start, 1 one is refused, or a manifest cannot be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import yaml
from pydantic import ValidationError

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.sources import Source
from tuneyard.cli.errors import UserError
from tuneyard.cli.manifestread import Manifests, read_manifests, text_of
from tuneyard.cli.output import answer
from tuneyard.cli.planrender import rendered
from tuneyard.cli.planview import SizeRead, caches_of, plan_view
from tuneyard.cli.sources import is_remote, parse_source, remote_from_environment
from tuneyard.planning.quantities import whole
from tuneyard.planning.settings import Settings
from tuneyard.systems.artifacts.basefiles import BaseRead, read_folder, read_remote
from tuneyard.systems.artifacts.folder import ArtifactError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard plan`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="manifests; - reads from stdin")
    parser.add_argument(
        "--model",
        type=_model,
        action="append",
        default=[],
        metavar="NAME=DIR|URI",
        help="where the files of a BaseModel are: a folder, hf://owner/repo@revision or s3://bucket/prefix/ (default: "
        "the source, where that is on the network)",
    )
    parser.add_argument(
        "--gpu-memory", metavar="SIZE", help="of one GPU, for example 80Gi, where a pool does not say it"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the operator's configuration, as the chart writes it"
    )
    parser.add_argument("--offline", action="store_true", help="read nothing over the network")
    parser.add_argument("--anonymous", action="store_true", help="send no token and no signature")
    parser.add_argument("-o", "--output", choices=("json", "yaml"), help="for programs")


def _model(text: str) -> tuple[str, str]:
    name, _, place = text.partition("=")
    if not name or not place:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=DIR or NAME=URI")
    return name, place


def run(args: argparse.Namespace) -> int:
    """Print the pools; raises UserError."""
    found = read_manifests((name, text_of(name)) for name in args.files)
    places = dict(args.model)
    unknown = sorted(places.keys() - {b.metadata.name for b in found.bases})
    if unknown:
        raise UserError(f"--model names {', '.join(unknown)}, which is no BaseModel of the manifests", 2)
    sizes = {b.metadata.key: _size(b, places.get(b.metadata.name), args) for b in found.bases}
    view = plan_view(found.bases, found.deployments, sizes, _settings(args, found))
    answer(view, rendered, args.output)
    return 0 if view.sound else 1


def _settings(args: argparse.Namespace, found: Manifests) -> Settings:
    """The operator's, or those of a chart that allows every folder: what it allows, nobody has said."""
    if args.config is None:
        caches = caches_of(found.bases, found.deployments)
        settings = Settings(allowed_host_path_prefixes=["/"], allowed_cache_host_paths=caches)
    else:
        try:
            settings = Settings.model_validate(yaml.safe_load(text_of(str(args.config))) or {})
        except (yaml.YAMLError, ValidationError) as error:
            raise UserError(f"{args.config} is no configuration of the operator: {error}") from error
    if args.gpu_memory is None:
        return settings
    if not whole(args.gpu_memory):
        raise UserError(f"--gpu-memory {args.gpu_memory} is not a size such as 80Gi", 2)
    return settings.model_copy(update={"gpu_memory": args.gpu_memory})


def _size(base: BaseModelResource, place: str | None, args: argparse.Namespace) -> SizeRead:
    """What a base's files say; a place that was named must be readable, a manifest's source need not be."""
    name, source = base.metadata.name, base.spec.source
    hint = f"give --model {name}=DIR"
    if place is not None and not is_remote(place):
        if not Path(place).is_dir():
            raise UserError(f"--model {name}: {place} is no folder", 2)
        return _named(place, lambda: read_folder(Path(place)))
    if place is None and source.build is not None:
        return SizeRead(unread=f"not known before the base is built: {hint} once there is such a model")
    if place is None and not source.is_remote:
        return SizeRead(unread=f"not known, for the base is not on the network: {hint}")
    if args.offline:
        return SizeRead(unread=f"not known without the network: {hint}")
    if place is not None:
        named = parse_source(place, anonymous=args.anonymous)
        return _named(place, lambda: _of_remote(named, args.anonymous, of_a_file=False))
    try:
        return _told(_of_remote(source, args.anonymous, of_a_file=True))
    except ArtifactError as error:
        return SizeRead(unread=f"not known ({error.reason.value}): {error}; or {hint}")


def _of_remote(source: Source, anonymous: bool, *, of_a_file: bool) -> BaseRead:
    with closing(remote_from_environment(source, anonymous, of_a_file=of_a_file)) as remote:
        return read_remote(remote)


def _named(place: str, read: Callable[[], BaseRead]) -> SizeRead:
    try:
        return _told(read())
    except ArtifactError as error:
        raise UserError(f"{place} ({error.reason.value}): {error}") from error


def _told(read: BaseRead) -> SizeRead:
    unread = "not estimated, for the base is GGUF" if read.weights == "gguf" else ""
    return SizeRead(read.size, unread, config=read.config, weights=read.weights)
