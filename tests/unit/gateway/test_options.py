"""What a pod's environment says, and what makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneyard.gateway.options import options
from tuneyard.gateway.requestfiles import UNCOUNTED_BYTES, VOLUME_BYTES


def test_what_the_request_log_may_hold_is_not_envoys_for_requests() -> None:
    assert options({"TUNEYARD_ENVOY_MEMORY": str(1 << 30)}).memory == (1 << 30) - VOLUME_BYTES
    assert (
        options({"TUNEYARD_ENVOY_MEMORY": str(1 << 30), "TUNEYARD_USAGE": "false"}).memory
        == (1 << 30) - UNCOUNTED_BYTES
    )
    assert options({}).memory == 0, "nobody says how much there is"


def test_too_little_memory_is_told_and_not_divided() -> None:
    little = {"TUNEYARD_ENVOY_MEMORY": str(128 << 20)}
    with pytest.raises(ValueError, match=r"128 MiB of memory, and 96 .* give it 192 MiB or more .*envoyResources"):
        options(little)
    assert options(little | {"TUNEYARD_USAGE": "false"}).memory == 96 << 20


def test_the_request_log_is_where_envoy_is_told() -> None:
    assert options({"TUNEYARD_RUN_DIRECTORY": "/run/a"}).request_log == Path("/run/a/requests.log")
    told = options({"TUNEYARD_RUN_DIRECTORY": "/run/a", "TUNEYARD_LOG_DIRECTORY": "/run/b"})
    assert (told.request_log, told.log_folder, told.ads_socket) == (
        Path("/run/b/requests.log"),
        Path("/run/b"),
        Path("/run/a/ads.sock"),
    )


def test_the_access_log_is_of_all_unless_somebody_says_otherwise() -> None:
    assert [options({"TUNEYARD_ACCESS_LOG": told}).access_log for told in ("", "Errors")] == ["All", "Errors"]
    with pytest.raises(ValueError, match=r"one of All, Errors, None \(gateway\.accessLog\), not some"):
        options({"TUNEYARD_ACCESS_LOG": "some"})
