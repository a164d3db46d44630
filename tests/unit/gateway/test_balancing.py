"""What is known of a cluster by its name, however it chooses its pods."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.envoy import model, revision
from tuneyard.api.routing import Affinity, PrefixAffinity
from tuneyard.systems.envoy.translate import Served, cluster_name, served_by

WAYS = (None, Affinity(prefix=PrefixAffinity()), Affinity(header="x-session-id"), Affinity(header="x-other"))


def test_another_way_is_another_cluster_of_the_same_contents() -> None:
    one = revision("v1", 100, ["10.0.0.1:8080"])
    names = [cluster_name(replace(model("org/a.b", one), affinity=way), one) for way in WAYS]
    assert len(set(names)) == len(WAYS)
    assert {served_by(name) for name in names} == {Served("default/md-org-a.b", "v1", one.contents)}
    assert not any("." in name for name in names)
