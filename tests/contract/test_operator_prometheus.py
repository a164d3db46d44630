"""A rollout whose check a real Prometheus answers: the numbers that it has scraped hold, and roll back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.operator_process import Cluster, Object, operating
from tests.contract.promserver import PrometheusServer
from tests.contract.test_operator_analysis import JudgedScene
from tests.contract.test_operator_checks import CHECKED_SLOW, drift

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]


def test_the_numbers_of_a_real_prometheus_hold_and_roll_back(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    cluster = Cluster(operator_apiserver, "checks-real")
    series = f'drift{{namespace="{cluster.namespace}",deployment="m",revision="v2"}}'
    with PrometheusServer(tmp_path, {series: 0.125}) as server:
        settings: Object = {"prometheus": {"url": server.url}}
        with operating(operator_apiserver, tmp_path / "operator", settings=settings) as running:
            scene = JudgedScene(cluster, *running, weights=[])
            scene.begin(CHECKED_SLOW)
            scene.apply({"v1": 0, "v2": 100}, CHECKED_SLOW)
            scene.until(lambda r: drift(r).get("value") == "0.125", "a number")
            server.series[series] = 0.25
            rollout = scene.until(scene.rejects("v2"), "v2 is rejected", within=60)
            assert rollout["verdicts"][0]["evidence"] == "check drift: 0.25 is above max 0.2, 2 times in a row"
            cluster.delete("ModelDeployment", "m")
