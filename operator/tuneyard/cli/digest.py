"""`tuneyard digest DIR|URI`: the digest of an artifact, for `spec.digest`. It is what agents compute in the pods.

The digest goes to stdout, and nothing else; progress goes to stderr, and only to a terminal.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from tuneyard.cli.errors import UserError
from tuneyard.cli.sources import is_remote, parse_source, remote_from_environment
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest, digest_of, list_files
from tuneyard.systems.artifacts.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard digest`."""
    parser.add_argument(
        "source",
        metavar="DIR|URI",
        help="the folder with the model's or the adapter's files, hf://owner/repo@revision, or s3://bucket/prefix/ "
        "(tokens and keys come from HF_TOKEN and AWS_*)",
    )
    parser.add_argument("--files", action="store_true", help="print the lines that are hashed, too: sha256, size, path")
    parser.add_argument("--endpoint", help="the hub's mirror or the S3 server (http:// or https://)")
    parser.add_argument("--region", help="the bucket's region")
    parser.add_argument("--anonymous", action="store_true", help="send no token and no signature")


def run(args: argparse.Namespace) -> int:
    """Print the digest; raises UserError with the reason where there is none."""
    from tuneyard.cli.bars import shown  # noqa: PLC0415 -- help does not wait for rich

    try:
        with shown(args.source) as progress:
            found = _of_remote(args, progress) if is_remote(args.source) else _of_folder(Path(args.source), progress)
    except ArtifactError as error:
        raise UserError(f"{args.source} is no artifact ({error.reason.value}): {error}") from error
    if args.files:
        for file in found.files:
            print(f"{file.sha256}  {file.size}  {file.path}")
    print(found.digest)
    return 0


def _of_folder(folder: Path, progress: Progress) -> FolderDigest:
    if not folder.is_dir():
        what = "is a file: name the folder it lies in" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}")
    progress.begin(sum((folder / path).stat().st_size for path in list_files(folder) if (folder / path).exists()))
    return digest_of(folder, on_bytes=progress.came)


def _of_remote(args: argparse.Namespace, progress: Progress) -> FolderDigest:
    # Imported late: a folder's digest takes neither boto3 nor a hub's client.
    from tuneyard.systems.artifacts.download import digest_of_remote  # noqa: PLC0415

    source = parse_source(args.source, args.endpoint, args.region, args.anonymous)
    with closing(remote_from_environment(source, args.anonymous)) as remote:
        return digest_of_remote(remote, progress=progress)
