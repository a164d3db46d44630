"""When records are written, what happens while they cannot be, and that nothing grows; the bucket is a dictionary."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.contract.envoy import eventually
from tuneyard.api.feedback import FeedbackRecord
from tuneyard.api.reasons import Reason
from tuneyard.gateway import bucketwriting, feedbackexport
from tuneyard.gateway.buckettarget import bucket_target
from tuneyard.gateway.feedbackexport import FeedbackExport, FeedbackMetrics
from tuneyard.systems.artifacts.folder import ArtifactError


class Bucket:
    """Takes objects, or says what it was told to say."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.tries: list[str] = []
        self.opened = self.closed = 0
        self.refuses = ""
        self.loses_answers = 0
        self.hangs = threading.Event()
        self.hangs.set()

    def open(self) -> Bucket:
        self.opened += 1
        return self

    def close(self) -> None:
        self.closed += 1

    def put(self, name: str, body: bytes) -> None:
        self.tries.append(name)
        self.hangs.wait(30)
        if self.refuses:
            raise ArtifactError(Reason.ACCESS_DENIED, self.refuses)
        assert self.objects.setdefault(name, body) == body, "written over"
        if self.loses_answers:
            self.loses_answers -= 1
            raise ArtifactError(Reason.SOURCE_UNREACHABLE, "it broke off")

    @property
    def ids(self) -> list[str]:
        return [json.loads(line)["requestId"] for body in self.objects.values() for line in body.splitlines()]


def record(number: int, day: str = "2026-11-20", text: str | None = None) -> FeedbackRecord:
    return FeedbackRecord(
        time=f"{day}T10:00:00Z",
        request_id=f"r{number}",
        model="m",
        deployment="ns/m",
        revision="v1",
        score=-1,
        text=text,
    )


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucketwriting, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(bucketwriting, "LONGEST_DELAY", 0.002)


def exporting(bucket: Bucket) -> tuple[FeedbackExport, CollectorRegistry]:
    registry = CollectorRegistry()
    return FeedbackExport("gw-0", bucket.open, FeedbackMetrics(registry)), registry


def value(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(f"tuneyard_gateway_feedback_{name}")


async def test_a_thousand_are_written_at_once_and_fewer_wait(bucket: Bucket) -> None:
    export, registry = exporting(bucket)
    export.start()
    for number in range(1500):
        export.add(record(number))
    await eventually(lambda: value(registry, "exported_total") == 1500, "all that waited then")
    assert [len(body.splitlines()) for body in bucket.objects.values()] == [1000, 500]
    export.add(record(1500))
    await asyncio.sleep(0)
    assert value(registry, "waiting") == 1
    await export.close()
    assert bucket.ids == [f"r{n}" for n in range(1501)]
    assert value(registry, "waiting") == 0


async def test_what_waits_is_written_in_time(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedbackexport, "EVERY", 0.01)
    export, registry = exporting(bucket)
    export.start()
    export.add(record(0))
    await eventually(lambda: value(registry, "exported_total") == 1, "the record")
    export.add(record(1))
    await eventually(lambda: value(registry, "exported_total") == 2, "and the next")
    await export.close()
    assert len(bucket.objects) == 2, "nothing is written where there is nothing"


async def test_names_tell_day_gateway_start_and_number(bucket: Bucket) -> None:
    for _ in range(2):  # a process, and the one after it
        export, _ = exporting(bucket)
        for day in ("2026-11-20", "2026-11-20", "2026-11-21"):
            export.add(record(0, day))
        await export.close()
    shape = re.compile(r"dt=(2026-11-2[01])/gw-0-\d{8}T\d{6}Z[0-9a-f]{6}-([12])\.jsonl")
    told = [shape.fullmatch(name) for name in bucket.objects]
    assert [match and match.groups() for match in told] == [("2026-11-20", "1"), ("2026-11-21", "2")] * 2


async def test_a_refusal_is_repeated_under_the_same_key_and_said_once(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    export, registry = exporting(bucket)
    bucket.refuses = "may not write"
    export.start()
    with caplog.at_level(logging.INFO, "tuneyard"):
        for number in range(1000):
            export.add(record(number, text="my secret"))
        await eventually(lambda: len(bucket.tries) > 5, "tries")
        failing = value(registry, "failing_seconds")
        assert failing is not None
        assert failing > 0
        bucket.refuses = ""
        await eventually(lambda: value(registry, "exported_total") == 1000, "written in the end")
    assert len(set(bucket.tries)) == 1
    assert value(registry, "failing_seconds") == 0
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == [
        "feedback cannot be written, and is tried again",
        "feedback is written again",
    ]
    assert "my secret" not in caplog.text
    assert bucket.opened == bucket.closed + 1, "each failure reads the credentials again"
    await export.close()


async def test_a_lost_answer_leaves_each_record_once(bucket: Bucket) -> None:
    export, registry = exporting(bucket)
    bucket.loses_answers = 3
    export.add(record(0))
    await export.close()
    assert bucket.ids == ["r0"]
    assert value(registry, "exported_total") == 1


async def test_the_oldest_go_when_too_much_waits(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    export, registry = exporting(bucket)
    size = len(record(10).line())
    monkeypatch.setattr(feedbackexport, "MOST_BYTES", 5 * size)
    for number in range(10, 20):
        export.add(record(number))
    assert value(registry, "dropped_total") == 5
    await export.close()
    assert bucket.ids == [f"r{n}" for n in range(15, 20)]
    for number in range(20, 26):
        export.add(record(number))
    assert value(registry, "dropped_total") == 6, "what is written is not counted as waiting"


async def test_the_end_waits_no_longer_than_it_may(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    export, registry = exporting(bucket)
    bucket.hangs.clear()
    export.start()
    export.add(record(0))
    export.add(record(1))
    await export.close(within=0.05)
    bucket.hangs.set()
    assert value(registry, "dropped_total") == 2
    assert "2 feedback records were not written" in caplog.text


async def test_a_write_that_the_end_interrupts_is_the_same_write(bucket: Bucket) -> None:
    export, registry = exporting(bucket)
    bucket.hangs.clear()
    export.start()
    for number in range(1000):
        export.add(record(number))
    await eventually(lambda: len(bucket.tries) == 1, "a write under way")
    closing = asyncio.create_task(export.close())
    await asyncio.sleep(0)
    bucket.hangs.set()
    await closing
    assert len(bucket.objects) == 1
    assert len(bucket.ids) == value(registry, "exported_total") == 1000


def test_a_target_is_named_by_the_environment(tmp_path: Path) -> None:
    assert bucket_target({}, "FEEDBACK") is None
    named = {
        "TUNEYARD_FEEDBACK_URI": "s3://feedback/acme",
        "TUNEYARD_FEEDBACK_ENDPOINT": "http://127.0.0.1:1",
        "TUNEYARD_FEEDBACK_SECRET": "writer",
        "TUNEYARD_FEEDBACK_CREDENTIALS": str(tmp_path),
    }
    target = bucket_target(named, "FEEDBACK")
    assert target is not None
    assert (target.place.uri, target.place.endpoint, target.place.anonymous) == (
        "s3://feedback/acme",
        "http://127.0.0.1:1",
        None,
    )
    with pytest.raises(ValueError, match="uri"):
        bucket_target({"TUNEYARD_FEEDBACK_URI": "feedback/acme"}, "FEEDBACK")


@pytest.mark.parametrize("files", [{}, {"ca.crt": "x"}, {"AWS_ACCESS_KEY_ID": "x"}])
def test_a_secret_that_is_not_there_yet_is_never_the_pods_identity(tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    named = {
        "TUNEYARD_FEEDBACK_URI": "s3://feedback/",
        "TUNEYARD_FEEDBACK_SECRET": "writer",
        "TUNEYARD_FEEDBACK_CREDENTIALS": str(tmp_path),
    }
    target = bucket_target(named, "FEEDBACK")
    assert target is not None
    with pytest.raises(ArtifactError, match=r"Secret writer lacks .*AWS_SECRET_ACCESS_KEY"):
        target.open()
