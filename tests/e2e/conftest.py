"""The stories' common ground: the system on a real cluster, with the quickstart applied and ready.

`python -m demo.session -- pytest tests/e2e` brings the cluster up; the stories share it and each leaves it as it was
found: two pods, base, v1 and v2, everything on v1.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.kubectl import ready
from demo.system import MODELS_NAMESPACE, ROOT, System, attach
from models.bad import expected_reasons, make_bad
from tests.e2e.building import able_to_build
from tests.e2e.world import MODEL, QUICKSTART, TrafficOn, World, deployment


@pytest.fixture(scope="session")
def system() -> System:
    return attach()


@pytest.fixture(scope="session")
def quickstart(system: System) -> System:
    """The first deployment, once a session."""
    for name in ("base.yaml", "adapters.yaml"):
        system.kubectl.apply(QUICKSTART / name, MODELS_NAMESPACE)
    system.kubectl.apply(deployment({"v1": 100}), MODELS_NAMESPACE)
    system.kubectl.wait_for("mdep", MODEL, ready, namespace=MODELS_NAMESPACE, timeout=900)
    return system


@pytest.fixture
def world(quickstart: System) -> Iterator[World]:
    """The quickstart, all on v1; put back afterwards, whatever a story did."""
    world = World(quickstart)
    world.settle()
    yield world
    world.settle()


@pytest.fixture
def builds(system: System) -> Iterator[System]:
    """The installation, able to build models and to serve them with llama.cpp."""
    with able_to_build(system) as found:
        yield found


@pytest.fixture(scope="session")
def bad_adapters(quickstart: System) -> dict[str, str]:
    """Broken adapters on the node's volume: folder under adapters/bad -> the reason that must be given."""
    folder = quickstart.provider.artifacts() / "adapters"
    if not (folder / "bad").exists():
        make_bad(ROOT / "examples" / "adapters" / "acme-support-v1", folder / "bad")
    for path in (folder / "bad").rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    reasons = expected_reasons()
    return {name: reasons[name] for name in ("nan", "alpha-zero", "rank-over-maximum", "truncated", "pickle-only")}


@pytest.fixture
def traffic(world: World) -> Iterator[TrafficOn]:
    """Continuous traffic, half of it streaming, while a story runs."""
    with world.traffic() as running:
        running.wait_for(5)
        yield running
