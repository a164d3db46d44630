"""examples/gitops as kustomize and a real API server take it, and what a promotion changes in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from closedloop.manifestedit import with_listed, with_share
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


def test_what_the_closed_loop_proposes_is_taken(apiserver: ApiServer, tmp_path: Path) -> None:
    """The revision comes into one file, its weight into an environment's patch."""
    copied = tmp_path / "repository"
    shutil.copytree(EXAMPLE, copied)
    production, listed = copied / "environments" / "production", copied / "deployments" / "acme-support.yaml"
    settings, traffic = production / "kustomization.yaml", production / "traffic.yaml"
    settings.write_text(settings.read_text().replace("models-production", "proposal"))
    revision = {"name": "v3", "baseModel": "smollm2", "adapter": "acme-support-v2"}
    listed.write_text(with_listed(listed.read_text(), "acme-support", revision))
    traffic.write_text(with_share(traffic.read_text(), "acme-support", "v3", 1))
    apiserver.namespace("proposal")
    applied(apiserver, production)
    spec = apiserver.kubectl("get", "mdep", "acme-support", "-n", "proposal", "-o", "jsonpath={.spec.traffic}").stdout
    assert json.loads(spec) == [
        {"revision": "v1", "weight": 99},
        {"revision": "v2", "weight": 0},
        {"revision": "v3", "weight": 1},
    ]
