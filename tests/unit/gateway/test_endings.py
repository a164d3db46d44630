"""Who reads the request log for judges and limits: from where on, how fast, and what happens where it is too much."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.contract.envoy import eventually
from tests.unit.gateway.test_usage import line
from tuneyard.gateway import endings, requestfiles
from tuneyard.gateway.endings import Endings, EndingsMetrics
from tuneyard.gateway.requestfiles import Place, RequestFiles
from tuneyard.systems.envoy import requestlog
from tuneyard.systems.envoy.requestlog import Line


class Ears:
    """What is heard, by the requests' ids; and an Envoy that opens its log anew."""

    def __init__(self, folder: Path, *, alone: bool = False) -> None:
        self.files, self.registry = RequestFiles(folder), CollectorRegistry()
        self.ids: list[str] = []
        metrics = EndingsMetrics(self.registry)
        self.endings = Endings(self.files, self.ended, metrics, reopen=self.reopen if alone else None)

    def ended(self, lines: Sequence[Line]) -> None:
        self.ids += [line.request_id for line in lines]

    async def reopen(self) -> None:
        self.files.current.touch()

    def wrote(self, *ids: str, half: bytes = b"") -> None:
        with self.files.current.open("ab") as log:
            log.write(b"".join(line(request_id=i) + b"\n" for i in ids) + half)


class Looks:
    """How often the newest file was asked for."""

    def __init__(self, files: RequestFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self._newest = 0, files.newest
        monkeypatch.setattr(files, "newest", self.newest)

    def newest(self) -> int:
        self.made += 1
        return self._newest()


async def test_it_begins_where_the_log_ends(tmp_path: Path) -> None:
    before = Ears(tmp_path)
    before.wrote("r0", "r1", half=line(request_id="r2")[:50])
    now = Ears(tmp_path)
    await now.endings.look()
    assert now.ids == []
    with now.files.current.open("ab") as log:
        log.write(line(request_id="r2")[50:] + b"\n")
    now.wrote("r3")
    await now.endings.look()
    assert now.ids == ["r2", "r3"]
    await before.endings.look()
    assert before.ids == ["r0", "r1", "r2", "r3"]


async def test_it_follows_files_that_are_renamed_and_passes_by_halves(tmp_path: Path) -> None:
    ears = Ears(tmp_path)
    for number in range(3):
        ears.wrote(f"a{number}", half=line()[:70])
        ears.wrote(f"b{number}", half=line()[:70])
        ears.files.rotate()
    ears.wrote("c")
    await ears.endings.look()
    assert ears.ids == ["a0", "b0", "a1", "b1", "a2", "b2", "c"]
    assert ears.endings.place == Place(3, ears.files.size())


@pytest.mark.lasting
async def test_other_things_get_half_of_the_time_however_much_is_told(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    ears, busy = Ears(tmp_path), 0.0

    def slow(_: Sequence[Line]) -> None:
        nonlocal busy
        began = loop.time()
        while loop.time() - began < 0.02:
            pass
        busy += loop.time() - began

    reader = Endings(ears.files, slow, EndingsMetrics(CollectorRegistry()))
    ears.wrote(*(f"r{n}" for n in range(10 * endings.AT_A_TIME)))
    began = loop.time()
    await reader.look()
    assert busy > 0.2
    assert busy < 0.6 * (loop.time() - began)


async def test_what_is_too_old_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(line(request_id="r00")) + 1
    monkeypatch.setattr(endings, "MOST_BEHIND", 20 * size)
    monkeypatch.setattr(endings, "_PIECE", 10 * size)
    ears = Ears(tmp_path)
    ears.wrote(*(f"r{n:02}" for n in range(50)))
    await ears.endings.look()
    assert ears.ids == [f"r{n:02}" for n in range(30, 50)]
    assert ears.registry.get_sample_value("tuneyard_gateway_endings_dropped_total") == 30


async def test_where_nobody_counts_it_keeps_the_files_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requestfiles, "ROTATE_BYTES", 500)
    monkeypatch.setattr(endings, "LOOK", 0.001)
    ears = Ears(tmp_path, alone=True)
    ears.endings.start()
    for number in range(20):
        ears.wrote(*(f"r{number}-{n}" for n in range(5)))
        await eventually(lambda n=number: len(ears.ids) == 5 * (n + 1), "they are heard of")  # type: ignore[misc]
    await eventually(lambda: len(list(tmp_path.iterdir())) <= 2, "files that were read go")
    await ears.endings.close()
    assert ears.files.newest() >= 10


async def test_a_folder_that_is_gone_is_told_once_and_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endings, "LOOK", 0.001)
    folder = tmp_path / "log"
    folder.mkdir()
    ears = Ears(folder)
    folder.rename(tmp_path / "away")
    ears.endings.start()
    looks = Looks(ears.files, monkeypatch)
    await eventually(lambda: "cannot be read" in caplog.text and looks.made > 3, "it is told, and looked at again")
    (tmp_path / "away").rename(folder)
    ears.wrote("r0")
    await eventually(lambda: ears.ids == ["r0"], "it goes on")
    await ears.endings.close()
    assert caplog.text.count("cannot be read") == 1


async def test_nothing_is_heard_twice_where_the_reading_ends_between_two_pieces(tmp_path: Path) -> None:
    ears = Ears(tmp_path)
    ears.wrote(*(f"r{number}" for number in range(3 * endings.AT_A_TIME)))
    reading = asyncio.create_task(ears.endings.look())
    await eventually(lambda: bool(ears.ids), "some are heard")
    reading.cancel()
    await ears.endings.close()
    assert ears.ids == [f"r{number}" for number in range(3 * endings.AT_A_TIME)]


async def test_what_a_listener_stumbles_over_stops_nobody(tmp_path: Path) -> None:
    ears, stumbles = Ears(tmp_path), [True]

    def ended(lines: Sequence[Line]) -> None:
        if stumbles:
            stumbles.clear()
            raise OverflowError("a number beyond counting")
        ears.ended(lines)

    hearing = Endings(ears.files, ended, EndingsMetrics(CollectorRegistry()))
    ears.wrote("r0")
    await hearing.look()
    ears.wrote("r1")
    await hearing.look()
    assert ears.ids == ["r1"]


@pytest.mark.parametrize("text", ["inf", "nan", "-3", "9e99", ""])
def test_counts_that_nobody_can_count_are_none(text: str) -> None:
    assert requestlog.number(text) == 0
    assert requestlog.number("12.0") == 12
