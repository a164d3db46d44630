"""Names are deterministic, short enough for Kubernetes, and differ where the things differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneyard.api import names

label = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,250}[a-z0-9])?", fullmatch=True)


@given(label, st.one_of(st.none(), label), st.one_of(st.none(), label))
@pytest.mark.lasting
def test_children_of_a_pool_fit_kubernetes(base, deployment, revision):
    pool = names.pool_name(base, deployment, revision if deployment else None)
    for name in (pool, names.pool_deployment(pool), names.pool_plan(pool), names.pool_key_secret(pool)):
        assert len(name) <= 63
        assert name[-1].isalnum()


@given(label, label)
@pytest.mark.lasting
def test_pools_of_two_deployments_differ(first, second):
    assert (names.pool_name("b", first) == names.pool_name("b", second)) == (first == second)
    assert names.pool_name("b", first) != names.pool_name("b")


def test_engine_name_carries_the_digest():
    assert names.engine_adapter_name("a", "sha256:" + "ab" * 32) == "a-abababababab"


def test_engine_keys_differ_by_pool_and_namespace():
    keys = {names.engine_key(b"m", ns, pool) for ns in ("x", "y") for pool in ("p", "q")}
    assert len(keys) == 4
    assert names.engine_key(b"m", "x", "p") in keys
