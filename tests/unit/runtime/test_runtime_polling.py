"""A poll goes on, whatever becomes of what it has heard."""

from __future__ import annotations

import logging
import threading
from typing import cast

import pytest
import urllib3

from tuneyard.api.documents import DemandReport
from tuneyard.runtime.polling import Poll


class Answer:
    status = 200

    def __init__(self, version: int) -> None:
        self.data = DemandReport(gateway="gateway-0", version=version).model_dump_json(by_alias=True).encode()


class Counting:
    """A gateway that has something new whenever it is asked."""

    def __init__(self) -> None:
        self.after: list[str] = []

    def request(self, _method: str, _url: str, *, fields: dict[str, str], headers: dict[str, str]) -> Answer:
        del headers
        self.after.append(fields["after"])
        return Answer(len(self.after))


def test_a_report_that_cannot_be_dealt_with_is_logged_and_the_next_one_is_heard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway, heard, again = Counting(), list[int](), threading.Event()

    def hear(report: DemandReport | None) -> None:
        assert report is not None
        heard.append(report.version)
        if report.version == 1:
            raise ValueError("a mark that nobody can read")
        poll.stop()
        again.set()

    http = cast(urllib3.PoolManager, gateway)
    poll = Poll(http, "http://gateway/v1/demand", {}, DemandReport.model_validate_json, hear)
    with caplog.at_level(logging.ERROR):
        poll.start()
        assert again.wait(10)
    assert (heard, gateway.after) == ([1, 2], ["-1", "1"])
    (said,) = caplog.records
    assert said.getMessage() == "what http://gateway/v1/demand answered could not be dealt with"
    assert "a mark that nobody can read" in caplog.text
