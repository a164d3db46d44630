"""Records in a bucket: what objects are called, and that each is there once whenever the process ends."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.contract.envoy import eventually
from tests.unit.gateway.test_feedbackexport import Bucket
from tests.unit.gateway.test_usage import line
from tuneyard.gateway import bucketwriting, usageexport
from tuneyard.gateway.keptstate import KeptState
from tuneyard.gateway.requestfiles import Place, RequestFiles
from tuneyard.gateway.usageexport import STATE, UsageExport, UsageExportMetrics


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucketwriting, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(bucketwriting, "LONGEST_DELAY", 0.002)
    monkeypatch.setattr(usageexport, "_LOOK", 0.01)


def exporting(folder: Path, bucket: Bucket) -> tuple[UsageExport, CollectorRegistry]:
    registry = CollectorRegistry()
    metrics = UsageExportMetrics(registry)
    return UsageExport("gw-0", RequestFiles(folder), folder / STATE, bucket.open, metrics), registry


def wrote(folder: Path, *ids: str, day: str = "2026-11-20") -> None:
    """Envoy has."""
    with (folder / "requests.log").open("ab") as log:
        log.writelines(line(request_id=i, time=f"{day}T10:00:00.000Z") + b"\n" for i in ids)


async def test_objects_are_called_after_their_stretch(tmp_path: Path, bucket: Bucket) -> None:
    wrote(tmp_path, "r0", "r1")
    wrote(tmp_path, "r2", day="2026-11-21")
    export, _ = exporting(tmp_path, bucket)
    await export.close()
    assert bucket.ids == ["r0", "r1", "r2"]
    shape = re.compile(r"dt=(2026-11-2[01])/gw-0-\d{8}T\d{6}Z[0-9a-f]{6}-0-(\d+)\.jsonl")
    told = [match.groups() for name in bucket.objects if (match := shape.fullmatch(name))]
    begins = len(line(request_id="r0", time="2026-11-20T10:00:00.000Z")) * 2 + 2
    assert told == [("2026-11-20", "0"), ("2026-11-21", str(begins))]
    run = next(iter(bucket.objects)).split("gw-0-")[1].split("-")[0]
    records = [json.loads(line) for body in bucket.objects.values() for line in body.splitlines()]
    assert [r["id"] for r in records] == [f"{run}-0-{begins // 2 * n}" for n in range(3)]


async def test_a_thousand_leave_at_once_and_fewer_wait(tmp_path: Path, bucket: Bucket) -> None:
    wrote(tmp_path, *(f"r{n}" for n in range(1500)))
    export, registry = exporting(tmp_path, bucket)
    export.start()
    await eventually(lambda: len(bucket.objects) == 1, "the first thousand")
    await asyncio.sleep(0.05)
    assert len(bucket.ids) == 1000
    await export.close()
    assert bucket.ids == [f"r{n}" for n in range(1500)]
    assert registry.get_sample_value("tuneyard_gateway_usage_exported_total") == 1500


async def test_a_write_that_was_under_way_is_repeated_as_it_was(tmp_path: Path, bucket: Bucket) -> None:
    """Killed after the object has arrived and before that was written down; more lines have come meanwhile."""
    wrote(tmp_path, "r0", "r1")
    export, _ = exporting(tmp_path, bucket)
    bucket.loses_answers = 1_000_000
    writing = asyncio.create_task(export.write_all())
    await eventually(lambda: len(bucket.tries) > 1, "it was written, and nobody knows")
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    wrote(tmp_path, "r2")
    bucket.loses_answers = 0
    again, _ = exporting(tmp_path, bucket)
    await again.close()
    assert bucket.ids == ["r0", "r1", "r2"]
    assert len(bucket.objects) == 2
    once_more, _ = exporting(tmp_path, bucket)
    await once_more.close()
    assert len(bucket.objects) == 2


async def test_renamed_files_are_read_to_their_end(tmp_path: Path, bucket: Bucket) -> None:
    files = RequestFiles(tmp_path)
    for number in range(3):
        wrote(tmp_path, f"r{number}")
        files.rotate()
    wrote(tmp_path, "r3")
    export, _ = exporting(tmp_path, bucket)
    await export.close()
    assert bucket.ids == ["r0", "r1", "r2", "r3"]
    assert export.place.number == 3


async def test_what_was_removed_is_counted(tmp_path: Path, bucket: Bucket) -> None:
    files = RequestFiles(tmp_path)
    for number in range(3):
        wrote(tmp_path, f"r{number}")
        files.rotate()
    wrote(tmp_path, "r3")
    export, registry = exporting(tmp_path, bucket)
    files.remove_before(Place(2))
    await export.close()
    assert bucket.ids == ["r2", "r3"]
    assert registry.get_sample_value("tuneyard_gateway_usage_dropped_files_total") == 2


async def test_a_bucket_that_is_away_ends_no_process_late(
    tmp_path: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    wrote(tmp_path, "my-secret-id")
    bucket.refuses = "may not write"
    export, registry = exporting(tmp_path, bucket)
    await export.close(within=0.05)
    assert "usage cannot be written, and is tried again: may not write" in caplog.text
    assert "my-secret-id" not in caplog.text
    assert (registry.get_sample_value("tuneyard_gateway_usage_failing_seconds") or 0) > 0
    assert "bytes of usage were not exported" in caplog.text
    assert KeptState(tmp_path / STATE, 0).read()["until"] is not None
