"""Shadow traffic on real engines: the candidate answers copies, users get stable's answers only, and lose none."""

from __future__ import annotations

import pytest
import yaml

from demo.system import NAMESPACE
from tests.e2e.world import MODEL, deployment, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

_READ_METRICS = (
    "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9443/metrics', timeout=10).read().decode())"
)


def with_mirror(percent: int) -> str:
    spec = yaml.safe_load(deployment({"v1": 100}))
    spec["spec"]["mirror"] = {"revision": "v2", "percent": percent, "maxConcurrent": 2}
    return yaml.safe_dump(spec)


def pairs(world) -> float:
    """Requests that both revisions have answered, at all gateways."""
    pages = [
        world.execute(pod["metadata"]["name"], "gateway", "python3", "-c", _READ_METRICS, namespace=NAMESPACE)
        for pod in world.own_pods("gateway")
    ]
    lines = [line for page in pages for line in page.splitlines() if line.startswith("tuneyard_mirror_pairs_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if f'deployment="{MODEL}"' in line)


def test_a_candidate_answers_copies_and_no_user(world, traffic):
    world.apply(with_mirror(100))
    seen = world.wait_for(lambda d: (d["status"].get("mirror") or {}).get("percent") == 100)
    assert seen["status"]["mirror"]["revision"] == "v2"
    wait_until(lambda: pairs(world) >= 5, 180, "five requests were answered by both")
    told = traffic.summary()
    assert told.failed == told.cut == 0, told
    assert set(told.by_revision) == {"v1"}

    world.apply(deployment({"v1": 100}))
    world.wait_for(lambda d: "mirror" not in d["status"])
    wait_until(lambda: pairs(world) == 0, 30, "series of a mirror that is gone are gone")
    traffic.wait_for(4)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told
