"""collect: feedback of one deployment, each with the conversation that it is about.

Rules:
- Tuneyard keeps no prompts and no answers, so feedback alone teaches nothing. The application logged the conversation
  under the answer's x-request-id; what it did not log, or has deleted since, is left out;
- an answer that got feedback more than once counts with the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from closedloop.files import Json, StepError, lines_of

_NEEDED = ("time", "requestId", "deployment", "score")


def feedback_lines(place: str, endpoint: str | None = None, region: str | None = None, since: str = "") -> list[Json]:
    """The records in a folder or under s3://BUCKET/PREFIX, from the day `since` (YYYY-MM-DD) on; raises StepError."""
    objects = _of_bucket(place, endpoint, region, since) if place.startswith("s3://") else _of_folder(place, since)
    return [record for name, content in objects for record in lines_of(content, name)]


def _is_recent(key: str, since: str) -> bool:
    """By the folder `dt=YYYY-MM-DD` in the key; what has none is taken."""
    days = [part.removeprefix("dt=") for part in key.split("/") if part.startswith("dt=")]
    return not days or days[-1] >= since


def _of_folder(place: str, since: str) -> Iterator[tuple[str, bytes]]:
    root = Path(place)
    if not root.is_dir():
        raise StepError(f"{place} is no folder: name one with the exported objects, or s3://BUCKET/PREFIX")
    for path in sorted(root.rglob("*.jsonl")):
        if _is_recent(path.relative_to(root).as_posix(), since):
            yield str(path), path.read_bytes()


def _of_bucket(place: str, endpoint: str | None, region: str | None, since: str) -> Iterator[tuple[str, bytes]]:
    import boto3  # noqa: PLC0415 -- not for folders
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    config = Config(s3={"addressing_style": "path"}) if endpoint else Config()
    client: Any = boto3.client("s3", endpoint_url=endpoint, region_name=region or "us-east-1", config=config)
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for key in (entry["Key"] for entry in page.get("Contents", [])):
                if key.endswith(".jsonl") and _is_recent(key, since):
                    yield f"s3://{bucket}/{key}", client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except (BotoCoreError, ClientError) as error:
        raise StepError(f"{place} cannot be read: {type(error).__name__}: {error}") from None
    finally:
        client.close()


def joined(feedback: Iterable[Json], conversations: Iterable[Json], deployment: str) -> tuple[list[Json], Json]:
    """What is known of each answer that got feedback, oldest first, and counts. `deployment`: namespace/name.

    A conversation is {requestId, messages: [{role, content}…], answer}, and `correction` where somebody wrote one.
    """
    latest: dict[str, Json] = {}
    of_others = 0
    for record in sorted(feedback, key=lambda r: str(r.get("time"))):
        missing = [name for name in _NEEDED if name not in record]
        if missing:
            raise StepError(f"a feedback record lacks {', '.join(missing)}: is it what Tuneyard exported?")
        if record["deployment"] != deployment:
            of_others += 1
            continue
        latest[record["requestId"]] = record
    known = {c["requestId"]: c for c in conversations if c.get("requestId") in latest}
    found = [
        {
            "requestId": request,
            "time": record["time"],
            "score": record["score"],
            "revision": record.get("revision"),
            "adapter": record.get("adapter"),
            "text": record.get("text"),
            "messages": known[request].get("messages"),
            "answer": known[request].get("answer"),
            "correction": known[request].get("correction"),
        }
        for request, record in latest.items()
        if request in known
    ]
    counts = {"feedback": len(latest), "ofOtherDeployments": of_others, "notInTheLog": len(latest) - len(found)}
    return found, {**counts, "collected": len(found)}
