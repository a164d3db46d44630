"""`tuneyard usage DIR|URI`: tokens by tenant, deployment, revision or adapter, as gateways export them. Reads only."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from tuneyard.api.usage import UsageRecord
from tuneyard.cli.errors import UserError
from tuneyard.cli.output import answer
from tuneyard.cli.sources import parse_source
from tuneyard.cli.usagerender import render_usage
from tuneyard.planning.timestamps import parsed_time, rfc3339
from tuneyard.planning.usagereport import usage_view

_AGO = re.compile(r"(\d{1,5})([hd])")
_DAY = re.compile(r"(?:^|/)dt=(\d{4}-\d{2}-\d{2})/[^/]*\.jsonl$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard usage`."""
    add_source_arguments(parser)
    parser.add_argument("--since", metavar="TIME", help="requests since then: 24h, 7d, 2026-11-01, or a time (UTC)")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Where records are, what to sum them by, and how to show it."""
    parser.add_argument(
        "source",
        metavar="DIR|URI",
        help="where usage.export writes: s3://bucket/prefix/ (keys come from AWS_*), or a folder with a copy of it",
    )
    parser.add_argument(
        "--by",
        choices=("tenant", "deployment", "revision", "adapter"),
        default="deployment",
        help="what to sum by (default deployment)",
    )
    parser.add_argument("--endpoint", help="the S3 server (http:// or https://)")
    parser.add_argument("--region", help="the bucket's region")
    parser.add_argument("--anonymous", action="store_true", help="send no signature")
    parser.add_argument("-o", "--output", choices=("json", "yaml"), help="for programs instead of people")


def run(args: argparse.Namespace) -> int:
    """Show the sums; raises UserError where records cannot be read."""
    since = since_of(args.since, datetime.now(UTC)) if args.since else None
    view = usage_view(records_of(args, since), args.by, since)
    answer(view, render_usage, args.output)
    return 0


def since_of(text: str, now: datetime) -> str:
    """The time that `--since` names, RFC 3339 in UTC; raises UserError."""
    ago = _AGO.fullmatch(text)
    if ago:
        number = int(ago.group(1))
        return rfc3339(now - (timedelta(hours=number) if ago.group(2) == "h" else timedelta(days=number)))
    moment = parsed_time(text)
    if moment is None:
        raise UserError(f"--since {text} is no time: write 24h, 7d, 2026-11-01 or 2026-11-01T12:00:00Z", 2)
    return rfc3339(moment)


def records_of(args: argparse.Namespace, since: str | None) -> Iterator[UsageRecord]:
    """The records of the days since then; raises UserError where they cannot be read, or one is no record."""
    for where, line in _lines(args, since):
        try:
            yield UsageRecord.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"])) or "the line"
            raise UserError(f"{where} holds no record of usage: {place}: {problem['msg']}") from None


def _lines(args: argparse.Namespace, since: str | None) -> Iterator[tuple[str, bytes]]:
    # a request counts to the day on which it came, and its object too
    def wanted(key: str) -> bool:
        day = _DAY.search(key)
        return day is not None and (since is None or day.group(1) >= since[:10])

    bucket = args.source.startswith("s3://")
    objects = _of_bucket(args, wanted) if bucket else _of_folder(Path(args.source), wanted)
    for key, body in objects:
        for line in body.splitlines():
            yield key, line


def _of_folder(folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the one above dt=…, or s3://bucket/prefix/")
    for path in sorted(folder.rglob("*.jsonl")):
        if wanted(str(path)):
            yield str(path), path.read_bytes()


def _of_bucket(args: argparse.Namespace, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    from tuneyard.systems.artifacts.folder import ArtifactError  # noqa: PLC0415 -- a folder takes no boto3
    from tuneyard.systems.artifacts.s3reading import objects_under  # noqa: PLC0415

    source = parse_source(args.source, args.endpoint, args.region, args.anonymous).s3
    if source is None:
        raise UserError(f"{args.source} is no place in a bucket", 2)
    try:
        yield from objects_under(source, wanted)
    except ArtifactError as error:
        raise UserError(str(error)) from error
