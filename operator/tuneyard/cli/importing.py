"""`tuneyard import mlflow|wandb|huggingface|dir`: a LoRAAdapter's manifest with lineage, from where it was recorded.

The manifest goes to stdout or into a file, what was left out or could not be found to stderr. Nothing is applied:
lineage is immutable afterwards, so somebody reads it first. Credentials come from the trackers' own variables.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from tuneyard.api.loraadapter import LoRAAdapterSpec
from tuneyard.api.sources import COMMIT_PATTERN, SecretReference, Source
from tuneyard.cli.errors import UserError
from tuneyard.cli.manifest import adapter_manifest
from tuneyard.cli.sourcetext import FORMS, parsed_source
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of
from tuneyard.systems.trackers import huggingface, mlflow, wandb
from tuneyard.systems.trackers.adapterfolder import folder_record
from tuneyard.systems.trackers.record import EVALUATIONS, Record, Selection
from tuneyard.systems.trackers.server import Server, TrackerError, basic

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_OBJECT_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_NAMESPACE = re.compile(rf"(?=.{{1,63}}\Z){_LABEL}")
_VERSION = re.compile(r"-(v?[0-9][0-9.]*)$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard import`."""
    kinds = parser.add_subparsers(dest="tracker", metavar="FROM", required=True)
    for name, (words, arguments, _) in _TRACKERS.items():
        tracker = kinds.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        arguments(tracker)
        _common_arguments(tracker, needs_source=name in ("wandb", "dir"))


def _common_arguments(parser: argparse.ArgumentParser, *, needs_source: bool) -> None:
    parser.add_argument("--name", required=True, help="name of the LoRAAdapter, with its version: acme-support-v3")
    parser.add_argument("--base-model", required=True, metavar="NAME", help="the BaseModel that it is for")
    known = "" if needs_source else "; default: where the files were found"
    parser.add_argument(
        "--source", required=needs_source, metavar="SOURCE", help=f"where pods read the files: {FORMS}{known}"
    )
    parser.add_argument("--credentials", metavar="SECRET", help="Secret with which pods read the source")
    parser.add_argument("--digest", help="the files' digest, as `tuneyard digest` prints it")
    parser.add_argument("--version", help="lineage.version (default: what --name ends in, such as v3)")
    parser.add_argument("--dataset-hash", metavar="HASH", help="lineage.datasetHash, in place of the tracker's")
    parser.add_argument(
        "--eval",
        action="append",
        metavar="PATTERN",
        help=f"metrics that are evaluations, by name; may be repeated (default: {', '.join(EVALUATIONS)})",
    )
    parser.add_argument("--param", action="append", metavar="PATTERN", help="hyperparameters to keep (default: all)")
    parser.add_argument("-n", "--namespace", help="namespace to write into the manifest (default: none)")
    parser.add_argument("-f", "--file", type=Path, help="write to this file instead of stdout; it must not exist")


def run(args: argparse.Namespace) -> int:
    """Write the manifest; raises UserError where there is nothing to write one from."""
    _check_names(args)
    selection = Selection(tuple(args.eval or EVALUATIONS), tuple(args.param or ("*",)))
    try:
        record: Record = _TRACKERS[args.tracker][2](args, selection)
    except TrackerError as error:
        raise UserError(str(error)) from error
    except RecursionError:  # of JSON, of YAML, or of a look at what they hold
        raise UserError("what was recorded is nested too deeply to be read") from None
    text = adapter_manifest(args.name, _spec(args, record), args.namespace, _comment(args))
    for note in record.notes:
        sys.stderr.write(f"note: {note}\n")
    if args.file is None:
        sys.stdout.write(text)
        return 0
    try:
        with args.file.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{args.file} exists already: remove it or choose another name") from None
    except OSError as error:
        raise UserError(f"{args.file} cannot be written: {error.strerror}") from error
    return 0


def _check_names(args: argparse.Namespace) -> None:
    """The API server refuses an object of another name, and nothing could ever be found under one."""
    for option in ("name", "base_model", "credentials", "namespace"):
        given, is_namespace = getattr(args, option), option == "namespace"
        if given is not None and not (_NAMESPACE if is_namespace else _OBJECT_NAME).fullmatch(given):
            letters = (
                "lower-case letters, digits and - only" if is_namespace else "lower-case letters, digits, - and . only"
            )
            raise UserError(
                f"--{option.replace('_', '-')} {given}: {letters}, each part with a letter or digit at either end, as "
                "for every object"
            )


def _comment(args: argparse.Namespace) -> str:
    return (
        f"Written by `tuneyard import {args.tracker}`. Read it before it is applied: lineage is immutable afterwards,\n"
        "but for evals, to which entries may be added."
    )


def _spec(args: argparse.Namespace, record: Record) -> LoRAAdapterSpec:
    version = args.version or next(iter(_VERSION.findall(args.name)), None)
    record.fill(version=version, dataset_hash=args.dataset_hash)
    word = args.source or record.source
    if word is None:
        raise UserError(f"nothing says where pods find the files: name them with --source ({FORMS})")
    try:
        source = _with_access(parsed_source(word), args.credentials, _hub(os.environ))
        spec = LoRAAdapterSpec(base_model=args.base_model, source=source, digest=args.digest, lineage=record.lineage)
        checked = LoRAAdapterSpec.from_dict(spec.to_dict())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None
    except ValueError as error:
        raise UserError(f"--source: {error}") from None
    hub = checked.source.hugging_face
    if hub is not None and not re.match(COMMIT_PATTERN, hub.revision) and checked.digest is None:
        raise UserError(f"--source {word}: branches and tags move: name a commit (40 hex digits), or give --digest")
    return checked


def _with_access(source: Source, secret: str | None, hub: str) -> Source:
    """The source, read with a Secret and from the mirror that the environment names."""
    reference = SecretReference(name=secret) if secret else None
    if source.s3 is not None:
        return Source(s3=source.s3.model_copy(update={"credentials": reference}))
    if source.hugging_face is not None:
        endpoint = None if hub == huggingface.DEFAULT_URL else hub
        changes = {"credentials": reference, "endpoint": endpoint}
        return Source(hugging_face=source.hugging_face.model_copy(update=changes))
    if reference is not None:
        raise ValueError("a volume is read without --credentials")
    return source


def _hub(environment: Mapping[str, str]) -> str:
    return (environment.get("HF_ENDPOINT") or huggingface.DEFAULT_URL).rstrip("/")


# -- the trackers --------------------------------------------------------------------------------------------------


def _mlflow_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_ID", help="id of the run")
    parser.add_argument("--tracking-uri", metavar="URL", help="the tracking server (default: $MLFLOW_TRACKING_URI)")


def _from_mlflow(args: argparse.Namespace, selection: Selection) -> Record:
    url = args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not url:
        raise UserError("name the tracking server with --tracking-uri, or set MLFLOW_TRACKING_URI")
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    login = basic(user, password) if user and password else f"Bearer {token}" if token else None
    return mlflow.mlflow_record(Server.at(url, mlflow.LOGIN, login), args.run, selection)


def _wandb_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="ENTITY/PROJECT/RUN, the run's web address, or its folder wandb/run-…"
    )
    parser.add_argument(
        "--base-url", metavar="URL", help=f"the server (default: $WANDB_BASE_URL or {wandb.DEFAULT_URL})"
    )


def _from_wandb(args: argparse.Namespace, selection: Selection) -> Record:
    if Path(args.run).is_dir():
        return wandb.wandb_folder_record(Path(args.run), selection)
    key = os.environ.get("WANDB_API_KEY")
    url = args.base_url or os.environ.get("WANDB_BASE_URL") or wandb.DEFAULT_URL
    server = Server.at(url, wandb.LOGIN, basic("api", key) if key else None)
    return wandb.wandb_record(server, args.run, selection)


def _huggingface_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", metavar="REPO[@REVISION]", help="the repository; a branch or tag becomes its commit")


def _from_huggingface(args: argparse.Namespace, selection: Selection) -> Record:
    repo, _, revision = args.repo.partition("@")
    token = os.environ.get("HF_TOKEN")
    server = Server.at(_hub(os.environ), huggingface.LOGIN, f"Bearer {token}" if token else None)
    return huggingface.huggingface_record(server, repo, revision or "main", selection)


def _dir_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="the adapter's folder, as it is copied to the source")


def _from_dir(args: argparse.Namespace, selection: Selection) -> Record:
    record = folder_record(args.folder, selection)
    try:
        args.digest = args.digest or digest_of(args.folder).digest
    except ArtifactError as error:
        raise UserError(f"{args.folder} is no artifact ({error.reason.value}): {error}") from error
    return record


_Arguments = Callable[[argparse.ArgumentParser], None]
_TRACKERS: Mapping[str, tuple[str, _Arguments, Callable[[argparse.Namespace, Selection], Record]]] = {
    "mlflow": ("from a run of an MLflow tracking server", _mlflow_arguments, _from_mlflow),
    "wandb": ("from a Weights & Biases run, or the folder that its client wrote", _wandb_arguments, _from_wandb),
    "huggingface": (
        "from an adapter on the Hugging Face Hub and its model card",
        _huggingface_arguments,
        _from_huggingface,
    ),
    "dir": ("from an adapter's folder; its digest goes into the manifest", _dir_arguments, _from_dir),
}
"""Word -> its help, its own arguments, and how it makes a record of them."""
