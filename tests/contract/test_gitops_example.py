"""examples/gitops as kustomize and a real API server take it, and what a promotion changes in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.contract.apiserver import ROOT, ApiServer

pytestmark = pytest.mark.apiserver
EXAMPLE = ROOT / "examples" / "gitops"


def applied(server: ApiServer, folder: Path) -> dict[str, str]:
    """Object -> what applying did with it."""
    done = server.kubectl("apply", "--validate=strict", "-k", str(folder))
    assert done.returncode == 0, done.stderr
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_an_environment_is_built_and_taken(apiserver: ApiServer, environment: str) -> None:
    apiserver.namespace(f"models-{environment}")
    done = applied(apiserver, EXAMPLE / "environments" / environment)
    assert set(done.values()) == {"created"}
    assert len(done) == 4


def test_a_promotion_is_one_file_and_changes_one_object(apiserver: ApiServer, tmp_path: Path) -> None:
    """The pull request copies staging's traffic.yaml; adapters and revisions are there already."""
    copied = tmp_path / "repository"
    shutil.copytree(EXAMPLE, copied)
    production = copied / "environments" / "production"
    settings = production / "kustomization.yaml"
    settings.write_text(settings.read_text().replace("models-production", "promotion"))
    apiserver.namespace("promotion")
    applied(apiserver, production)
    shutil.copy(copied / "environments" / "staging" / "traffic.yaml", production)
    changed = [name for name, what in applied(apiserver, production).items() if what != "unchanged"]
    assert changed == ["modeldeployment.tuneyard.dev/acme-support"]
    spec = apiserver.kubectl("get", "mdep", "acme-support", "-n", "promotion", "-o", "jsonpath={.spec.traffic}").stdout
    assert spec == '[{"revision":"v1","weight":0},{"revision":"v2","weight":100}]'
