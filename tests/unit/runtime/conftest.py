"""What tests of passes begin with."""

from __future__ import annotations

import pytest

from tests.contract.operator_process import BASE_SPEC
from tests.unit.runtime.stored import Scene, resource


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.see(resource("BaseModel", "base", BASE_SPEC))
    return scene
