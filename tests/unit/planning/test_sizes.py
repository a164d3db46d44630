"""Bytes in words."""

from __future__ import annotations

import pytest

from tuneyard.api.documents import Transfer
from tuneyard.planning.sizes import size_for_people, slowest, transfer_for_people


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3_670_016, "3.5 MiB"), (2**52, "4096.0 TiB")]
)
def test_sizes_for_people(size, text):
    assert size_for_people(size) == text


@pytest.mark.parametrize(
    ("transfer", "text"),
    [
        (
            Transfer(done_bytes=512, total_bytes=2048, bytes_per_second=1 << 20),
            "fetching: 25 % of 2.0 KiB at 1.0 MiB/s",
        ),
        (Transfer(done_bytes=0, total_bytes=2048), "fetching: 0 % of 2.0 KiB"),
        (Transfer(done_bytes=0, total_bytes=0), "fetching: 100 % of 0 B"),
        (Transfer(done_bytes=9, total_bytes=3, bytes_per_second=-1), "fetching: 100 % of 3 B"),
    ],
)
def test_a_transfer_in_words(transfer, text):
    assert transfer_for_people(transfer) == text


def test_the_slowest_counts_by_its_share():
    half, tenth = Transfer(done_bytes=1, total_bytes=2), Transfer(done_bytes=100, total_bytes=1000)
    assert slowest([None, half, tenth, Transfer(done_bytes=0, total_bytes=0)]) == tenth
    assert slowest([None]) is None
