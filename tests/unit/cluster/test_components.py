"""Command lines and configurations of the components: what makes the cluster safe to test against."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cluster import gobuild
from cluster.errors import ClusterError
from cluster.local import components, pki, settings
from cluster.local.layout import Layout

LAYOUT = Layout(name="t", state=Path("/state/t"), content=Path("/content/t"))
PROGRAMS = {name: Path("/bin") / name for name in components.PROGRAMS}
ALL = components.components(LAYOUT, PROGRAMS)


def argv(name: str) -> tuple[str, ...]:
    return components.named(ALL, name).argv


def test_every_program_used_is_one_that_is_built() -> None:
    assert set(components.PROGRAMS) <= set(gobuild.BINARIES)
    assert {Path(part.argv[0]).name for part in ALL} <= set(components.PROGRAMS)


def test_the_api_server_authorises_and_etcd_lets_only_its_client_in() -> None:
    assert "--authorization-mode=Node,RBAC" in argv("apiserver")
    assert "--enable-admission-plugins=NodeRestriction" in argv("apiserver")
    assert "--client-cert-auth" in argv("etcd")
    assert f"--trusted-ca-file={LAYOUT.pki / 'etcd-ca.crt'}" in argv("etcd")
    assert not any("anonymous" in argument or "AlwaysAllow" in argument for argument in argv("apiserver"))


def test_the_kubelet_asks_the_api_server_who_may() -> None:
    kubelet = yaml.safe_load(settings.kubelet(LAYOUT))
    assert kubelet["authentication"]["anonymous"] == {"enabled": False}
    assert kubelet["authentication"]["webhook"] == {"enabled": True}
    assert kubelet["authorization"] == {"mode": "Webhook"}
    assert kubelet["readOnlyPort"] == 0
    # Images that were collected could not be had again.
    assert kubelet["imageGCHighThresholdPercent"] == 100
    assert kubelet["imageGCLowThresholdPercent"] < 100


def test_everything_a_component_names_in_its_folders_is_made() -> None:
    made = {LAYOUT.config / name for name in ("containerd.toml", "kubelet.yaml", "kube-proxy.yaml", "scheduler.yaml")}
    made |= {
        LAYOUT.config / f"{user}.kubeconfig" for user in ("controller-manager", "scheduler", "kubelet", "kube-proxy")
    }
    made |= {LAYOUT.pki / f"{name}.{kind}" for name in pki.AUTHORITIES for kind in ("crt", "key")}
    made |= {LAYOUT.pki / f"{certificate.name}.{kind}" for certificate in pki.CERTIFICATES for kind in ("crt", "key")}
    made.add(LAYOUT.pki / "service-accounts.key")
    named = {
        Path(argument.split("=", 1)[-1])
        for part in ALL
        for argument in part.argv[1:]
        if argument.split("=", 1)[-1].startswith(("/state/t/pki", "/state/t/config"))
    }
    assert named <= made
    assert {file for part in ALL for file in part.files} <= made


def test_a_fingerprint_changes_with_arguments_and_with_configuration() -> None:
    part = components.named(ALL, "containerd")
    contents = dict.fromkeys(part.files, "one")
    first = part.fingerprint(contents)
    assert part.fingerprint(contents) == first
    assert part.fingerprint(dict.fromkeys(part.files, "two")) != first
    assert components.Component(part.name, (*part.argv, "-v"), part.files).fingerprint(contents) != first


def test_an_unknown_component_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match="no component is called 'docker'; there are: etcd, containerd, apiserver"):
        components.named(ALL, "docker")


@pytest.mark.parametrize(("may_raise", "restricted"), [(True, "false"), (False, "true")])
def test_containerd_leaves_oom_scores_alone_where_the_kernel_refuses(may_raise: bool, restricted: str) -> None:
    assert f"restrict_oom_score_adj = {restricted}" in settings.containerd(LAYOUT, "localhost/pause:1", may_raise)


def test_pod_addresses_end_with_the_network_they_are_about() -> None:
    plugin = json.loads(settings.cni())["plugins"][0]
    assert plugin["type"] == "ptp"
    assert plugin["ipam"]["dataDir"].startswith("/run/")


def test_nothing_of_a_cluster_is_shared_with_another_but_covered_paths() -> None:
    other = Layout(name="u", state=Path("/state/u"), content=Path("/content/u"))
    assert not set(LAYOUT.folders) & set(other.folders)
    assert LAYOUT.cgroup != other.cgroup
