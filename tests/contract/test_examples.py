"""A real API server takes every example as a person would apply it, in the order of the story, and refuses none."""

from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer

pytestmark = pytest.mark.apiserver

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICKSTART = (
    "base",
    "adapters",
    "deployment-90-10",
    "deployment-50-50",
    "deployment-v3",
    "deployment-rollback",
    "deployment-by-steps",
    "deployment-with-analysis",
    "deployment-with-checks",
    "deployment-with-mirror",
)


def apply(server: ApiServer, namespace: str, path: Path) -> str:
    done = server.kubectl("apply", "-n", namespace, "--validate=strict", "-f", str(path))
    assert done.returncode == 0, f"{path}: {done.stderr}"
    return done.stdout


def test_the_quickstart_in_its_order(apiserver: ApiServer) -> None:
    namespace = apiserver.namespace("examples-quickstart")
    said = [apply(apiserver, namespace, EXAMPLES / "quickstart" / f"{name}.yaml") for name in QUICKSTART]
    deployment = "modeldeployment.tuneyard.dev/acme-support"
    assert [line for text in said for line in text.splitlines() if line.startswith(deployment)] == [
        f"{deployment} created",
        *[f"{deployment} configured"] * 7,
    ]


def test_from_hosted_to_own_and_back(apiserver: ApiServer) -> None:
    namespace = apiserver.namespace("examples-hosted-to-own")
    files = ("1-hosted", "models", "2-own", "3-back")
    said = [apply(apiserver, namespace, EXAMPLES / "hosted-to-own" / f"{name}.yaml") for name in files]
    verbs = [text.splitlines()[-1].rpartition(" ")[2] for text in said]
    assert verbs == ["created", "created", "configured", "configured"]


@pytest.mark.parametrize(
    "folder",
    [
        *(
            "tensor-parallel",
            "persistent-volume",
            "gpu",
            "engine-settings",
            "multi-node",
            "own-pods",
            "remote-sources",
            "idle-adapters",
            "ten-tenants",
            "scale-to-zero",
            "autoscaling",
            "gates",
            "drift",
            "routing",
            "system-prompt",
            "engines",
            "build",
        ),
        "tenants",
    ],
)
def test_a_folder_at_once(apiserver: ApiServer, folder: str) -> None:
    namespace = apiserver.namespace(f"examples-{folder}")
    lines = apply(apiserver, namespace, EXAMPLES / folder).splitlines()
    assert lines
    assert all(line.endswith(" created") for line in lines)
