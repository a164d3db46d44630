"""A pod of a shared pool with sources that trickle: the other adapters come, and the pod is ready with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.tiny import build_tiny
from tests.contract.agents import AgentRig, loaded
from tests.contract.engines import EngineProcess, own_engine
from tests.fakes.hub import Hub, Repository
from tuneyard.agent import obtaining, pacing, performing
from tuneyard.agent.obtaining import Obtainer
from tuneyard.api.documents import PlannedAdapter, PodReport
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import HuggingFaceSource, Source
from tuneyard.systems.artifacts import floor
from tuneyard.systems.artifacts.remote import Credentials
from tuneyard.systems.artifacts.store import Store

SLOW = ("slow-0", "slow-1", "slow-2")


@pytest.fixture
def engine() -> Iterator[EngineProcess]:
    engine = own_engine("fake")
    engine.start()
    yield engine
    engine.kill()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {p.name: p.read_bytes() for p in (build_tiny() / "adapter-a").iterdir()}
    with Hub({f"acme/{name}": Repository(files) for name in (*SLOW, "quick")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.faults.trickles = {f"{name}/adapter_model.safetensors": 1.0 for name in SLOW}
        yield hub


def nobody(name: str) -> Credentials:
    raise AssertionError(f"nobody needs {name}")


def planned(hub: Hub, name: str) -> PlannedAdapter:
    revision = hub.repositories[f"acme/{name}"].commit
    return PlannedAdapter(
        name=name, source=Source(hugging_face=HuggingFaceSource(repo=f"acme/{name}", revision=revision))
    )


def awaited(report: PodReport) -> set[str]:
    """The adapters that the pod's readiness waits for."""
    return {name for name, said in report.adapters.items() if said.state == "Loading" and not said.overdue}


async def test_others_do_not_wait_for_sources_that_trickle(
    hub: Hub, engine: EngineProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performing, "SLOW_AFTER", 0.5)
    async with AgentRig(engine, tmp_path / "pod", obtainer=Obtainer(Store(tmp_path / "cache"), nobody)) as rig:
        rig.plan(planned(hub, "slow-0"), planned(hub, "slow-1"))
        await rig.until(lambda r: r.engine == "Ready" and not awaited(r), "readiness waits for none of them", within=30)
        rig.plan(*(planned(hub, name) for name in (*SLOW, "quick")))
        await rig.until(lambda r: loaded(r) == {"quick"}, "it has not waited for their end", within=30)
        await rig.until(lambda r: not awaited(r), "nor does the pod", within=30)
        hub.faults.trickles = {}
        await rig.until_loaded("quick", *SLOW, within=60)
        assert not [said for said in rig.report.adapters.values() if said.overdue]


async def test_how_far_they_are_is_published_now_and_then(
    hub: Hub, engine: EngineProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtaining, "_TOLD_SECONDS", 0.01)
    monkeypatch.setattr(pacing, "TICK_SECONDS", 0.5)
    hub.faults.trickles = {"adapter_model.safetensors": 0.3}
    async with AgentRig(engine, tmp_path / "pod", obtainer=Obtainer(Store(tmp_path / "cache"), nobody)) as rig:
        rig.plan(planned(hub, "slow-0"), planned(hub, "slow-1"))
        await rig.until_loaded("slow-0", "slow-1", within=60)
        at = [
            (when, {n: said.transfer.done_bytes for n, said in report.adapters.items() if said.transfer})
            for when, report in rig.published
        ]
        told = [(when, done) for when, done in at if done]
        assert 3 <= len(told) <= 12, "of some hundred ticks"
        assert max(len(done) for _, done in told) == 2
        assert [done["slow-0"] for _, done in told if "slow-0" in done] == sorted(
            done["slow-0"] for _, done in told if "slow-0" in done
        )


async def test_a_source_that_is_given_up_is_gone_on_from(
    hub: Hub, engine: EngineProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "WINDOW_SECONDS", 0.5)
    async with AgentRig(engine, tmp_path / "pod", obtainer=Obtainer(Store(tmp_path / "cache"), nobody)) as rig:
        rig.plan(planned(hub, "slow-0"))
        report = await rig.until(lambda r: r.adapters["slow-0"].state == "Failed", "it is told", within=30)
        said = report.adapters["slow-0"]
        assert said.reason == Reason.SOURCE_UNREACHABLE
        assert "at least 64 KiB/s are needed" in str(said.message)
        hub.faults.trickles = {}
        await rig.until_loaded("slow-0", within=60)
        size = sum(len(c) for c in hub.repositories["acme/slow-0"].files.values())
        assert hub.sent < size + 20_000, "all of it came once, but for what was on its way"
