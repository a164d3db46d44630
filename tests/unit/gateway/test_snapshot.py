from __future__ import annotations

import asyncio
from pathlib import Path

from tests.contract.envoy import eventually
from tuneyard.gateway import snapshot
from tuneyard.gateway.metrics import Metrics


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "world.jsonl"
    assert snapshot.read(path) is None
    snapshot.write(path, ['{"a": 1}', '{"b": 2}'])
    assert snapshot.read(path) == ['{"a": 1}', '{"b": 2}']
    assert path.stat().st_mode & 0o777 == 0o600
    snapshot.write(path, [])
    assert snapshot.read(path) == []


def test_another_versions_snapshot_is_none(tmp_path: Path) -> None:
    path = tmp_path / "world.jsonl"
    for text in ("", "{}\n", '{"tuneyard-gateway-snapshot": 2}\n{}\n'):
        path.write_text(text)
        assert snapshot.read(path) is None
    path.write_bytes(b"\xff\xfe")
    assert snapshot.read(path) is None


async def test_it_is_written_when_something_changed(tmp_path: Path) -> None:
    lines: list[str] = []
    metrics = Metrics()
    writer = snapshot.SnapshotWriter(tmp_path / "world.jsonl", lambda: list(lines), metrics)
    task = asyncio.create_task(writer.run())
    lines.append("{}")
    writer.mark()
    await eventually(lambda: metrics.snapshots._value.get() == 1, "a snapshot")
    task.cancel()
    assert snapshot.read(tmp_path / "world.jsonl") == ["{}"]


async def test_a_full_volume_is_counted_and_survived(tmp_path: Path) -> None:
    metrics = Metrics()
    writer = snapshot.SnapshotWriter(tmp_path / "nowhere" / "world.jsonl", list, metrics)
    task = asyncio.create_task(writer.run())
    writer.mark()
    await eventually(lambda: metrics.snapshot_failures._value.get() == 1, "the failure is counted")
    assert not task.done()
    task.cancel()
