"""One source that trickles: its adapter waits for nobody's sake, and nobody for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.builders import SETTINGS, base_model, deployment, revision
from tests.unit.agent.states import after, plan
from tuneyard.api import names
from tuneyard.api.documents import PlannedAdapter
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source, Source
from tuneyard.planning.agent import Fetch, next_steps
from tuneyard.planning.agentstate import (
    BaseProven,
    Began,
    Ended,
    EngineSeen,
    Event,
    Failed,
    Fetched,
    Prepared,
    Slow,
    State,
)
from tuneyard.planning.podreport import pod_report
from tuneyard.planning.podspec import SERVED_MARK, pod_template
from tuneyard.planning.pools import pools_of
from tuneyard.planning.slowfetches import gives_way, is_wanted

NOW = 100.0
UP = (EngineSeen(frozenset({"base"})), BaseProven())


def remote(name: str, place: str = "") -> PlannedAdapter:
    return PlannedAdapter(name=name, source=Source(s3=S3Source(uri=f"s3://models/{place or name}/")))


def two_slow(*others: PlannedAdapter) -> State:
    """Two slow ones are coming, and these are wanted too."""
    events: list[Event] = [Began(("adapter", "s0")), Began(("adapter", "s1")), Slow("s0"), Slow("s1")]
    return after(plan(remote("s0"), remote("s1"), *others), *UP, *events, room=50)


def overdue(state: State) -> set[str]:
    report = pod_report(state)
    assert report is not None
    return {name for name, said in report.adapters.items() if said.overdue}


def test_slow_ones_go_on_while_nobody_waits() -> None:
    assert not gives_way(two_slow(), remote("s0"), NOW)


def test_a_slow_one_gives_way_to_one_that_waits_and_comes_after_it() -> None:
    state = two_slow(remote("new"))
    assert gives_way(state, remote("s0"), NOW)
    state = after(Ended(("adapter", "s0")), state=state)
    assert next_steps(state, NOW) == [Fetch(remote("new"))]
    state = after(Began(("adapter", "new")), state=state)
    assert not gives_way(state, remote("s1"), NOW), "it is being fetched"
    state = after(Ended(("adapter", "new")), Fetched("new", prepared("new")), state=state)
    assert Fetch(remote("s0")) in next_steps(state, NOW)


def prepared(name: str) -> Prepared:
    return Prepared(remote(name).source, f"sha256:{name}", f"{name}-1", 8, ("q_proj",), 1)


def test_who_is_not_slow_gives_way_to_nobody() -> None:
    state = after(plan(remote("quick"), remote("new")), *UP, Began(("adapter", "quick")))
    assert not gives_way(state, remote("quick"), NOW)


@pytest.mark.parametrize("others", [(), (remote("s0", "elsewhere"),)], ids=["gone", "another source"])
@pytest.mark.parametrize("fetched", ["s0", "quick"])
def test_what_the_plan_asks_for_no_more_ends_whether_it_is_slow_or_not(
    fetched: str, others: tuple[PlannedAdapter, ...]
) -> None:
    before = two_slow(remote("quick"))
    assert is_wanted(before, remote(fetched))
    state = after(plan(remote("s1"), *others), state=before)
    assert not is_wanted(state, remote(fetched))
    assert gives_way(state, remote(fetched), NOW), "nobody waits for it"
    assert not gives_way(state, remote("s1"), NOW)


def test_another_source_takes_the_place_of_the_one_before() -> None:
    state = after(plan(remote("s0", "elsewhere"), remote("s1")), state=two_slow())
    assert not gives_way(state, remote("s0", "elsewhere"), NOW)
    state = after(Ended(("adapter", "s0")), state=state)
    assert next_steps(state, NOW) == [Fetch(remote("s0", "elsewhere"))]


def test_before_there_is_a_plan_nothing_ends() -> None:
    assert not gives_way(after(), remote("s0"), NOW)


def test_one_that_has_failed_waits_for_its_time() -> None:
    state = after(Failed(remote("new"), Reason.SOURCE_UNREACHABLE, "away", NOW), state=two_slow(remote("new")))
    assert not gives_way(state, remote("s0"), NOW)
    assert gives_way(state, remote("s0"), NOW + 60)


def test_readiness_waits_for_those_that_are_not_slow() -> None:
    state = two_slow(remote("new"))
    assert overdue(state) == {"s0", "s1"}
    assert overdue(after(Fetched("s0", prepared("s0")), state=state)) == {"s1"}, "it is only to be loaded"
    elsewhere = after(plan(remote("s0"), remote("s1", "elsewhere")), state=state)
    assert overdue(elsewhere) == {"s0"}, "another source is another try"


ADAPTERS: dict[str, dict[str, Any]] = {
    "loaded": {"state": "Loaded"},
    "failed": {"state": "Failed"},
    "coming": {"state": "Loading"},
    "slow": {"state": "Loading", "overdue": True},
}


@pytest.mark.parametrize(
    ("report", "ready"),
    [
        ({"engine": "Starting"}, False),
        ({"engine": "Ready"}, True),
        ({"engine": "Ready", "awaitsShare": True}, False),
        ({"engine": "Ready", "adapters": ["loaded", "failed"]}, True),
        ({"engine": "Ready", "adapters": ["loaded", "coming"]}, False),
        ({"engine": "Ready", "adapters": ["loaded", "slow"]}, True),
        ({"engine": "Ready", "adapters": ["coming", "slow"]}, False),
    ],
)
def test_what_the_readiness_probe_makes_of_a_report(tmp_path: Path, report: dict[str, Any], ready: bool) -> None:
    """The script as it stands in the pod, with the report in place of the agent that gives it."""
    (pool,) = pools_of(base_model(), [deployment(revisions=[revision("v1")])])
    containers = pod_template(pool, base_model(), SETTINGS)["spec"]["initContainers"]
    (agent,) = (c for c in containers if c["name"] == "agent")
    *_, script = agent["readinessProbe"]["exec"]["command"]
    said = {**report, "adapters": {name: ADAPTERS[name] for name in report.get("adapters", [])}}
    mark = tmp_path / "served"
    address = f"http://127.0.0.1:{names.AGENT_PORT}/report"
    assert address in script
    script = script.replace(address, f"data:application/json,{quote(json.dumps(said))}")
    script = script.replace(SERVED_MARK, str(mark))
    found = subprocess.run([sys.executable, "-ISc", script], capture_output=True, check=False, timeout=30)
    assert (found.returncode == 0, mark.exists()) == (ready, ready), found.stderr
