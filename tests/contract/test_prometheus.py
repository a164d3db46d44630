"""The client of Prometheus, against a real one and the small server of the tests, and what only that does on demand."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.contract.apiserver import ROOT
from tests.contract.promserver import PrometheusServer
from tests.fakes.prometheus import Answered, FakePrometheus, number, refused, success
from tuneyard.planning.settings import PrometheusSettings
from tuneyard.systems.metrics.prometheus import LIMIT, NoNumberError, connected

SERIES = {
    'drift{revision="v1",tenant="secret-tenant"}': 0.125,
    'drift{revision="v2",tenant="secret-tenant"}': 0.25,
    'cost{revision="v1"}': -3,
}
BOTH = [
    {"metric": {"revision": "v1", "tenant": "secret-tenant"}, "value": [1.0, "0.125"]},
    {"metric": {"revision": "v2", "tenant": "secret-tenant"}, "value": [1.0, "0.25"]},
]
JOIN = "drift * on(tenant) drift"
CANNED: dict[str, Answered] = {
    'drift{revision="v2"}': number(0.25),
    "scalar(cost)": success("scalar", [1.0, "-3"]),
    "sum(drift) + 1": number(1.375),
    "drift": success("vector", BOTH),
    "vector(0) / vector(0)": number("NaN"),
    "vector(1) / vector(0)": number("+Inf"),
    "drift[1m]": success("matrix", []),
    '"text"': success("string", [1.0, "text"]),
    "sum(": refused(400, "bad_data", 'invalid parameter "query": 1:5: parse error: unclosed left parenthesis'),
    JOIN: refused(422, "execution", 'found duplicate series for the match group {tenant="secret-tenant"} on the right'),
}


def told(settings: PrometheusSettings, query: str, within: float = 10.0) -> float | str:
    """The number, or why there is none."""

    async def ask() -> float | str:
        async with connected(settings, within) as server:
            try:
                return await server.ask(query)
            except NoNumberError as error:
                return str(error)

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusSettings]:
    with PrometheusServer(tmp_path_factory.mktemp("prometheus"), SERIES) as server:
        yield PrometheusSettings(url=server.url)


@pytest.fixture
def fake() -> Iterator[FakePrometheus]:
    with FakePrometheus() as server:
        server.answers.update(CANNED)
        yield server


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.slow)])
def settings(request: pytest.FixtureRequest) -> PrometheusSettings:
    if request.param == "real":
        found: PrometheusSettings = request.getfixturevalue("real")
        return found
    return PrometheusSettings(url=request.getfixturevalue("fake").url)


@pytest.mark.parametrize(
    ("query", "value"), [('drift{revision="v2"}', 0.25), ("scalar(cost)", -3.0), ("sum(drift) + 1", 1.375)]
)
def test_a_scalar_or_one_element_is_a_number(settings: PrometheusSettings, query: str, value: float) -> None:
    assert told(settings, query) == value


def test_what_is_not_finite_is_told_as_it_is(settings: PrometheusSettings) -> None:
    undefined, infinite = told(settings, "vector(0) / vector(0)"), told(settings, "vector(1) / vector(0)")
    assert isinstance(undefined, float) and math.isnan(undefined)
    assert infinite == math.inf


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("nothing_of_that_name", "no series matches now"),
        ("drift", "gives 2 elements, and has to give one"),
        ("drift[1m]", "must be scalar or vector"),
        ('"text"', "must be scalar or vector"),
        ("sum(", "HTTP status 400: parse error: unclosed left parenthesis"),
        (JOIN, "HTTP status 422 (execution)"),
    ],
)
def test_everything_else_is_none_and_says_why_without_labels(
    settings: PrometheusSettings, query: str, words: str
) -> None:
    found = told(settings, query)
    assert isinstance(found, str) and words in found
    assert "secret-tenant" not in found


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answered(b"<html>", 502), "HTTP status 502"),
        (Answered(b"<html>"), "HTTP status 200"),
        (Answered(b"[" * 100_000), "HTTP status 200"),
        (Answered(b"[]"), "HTTP status 200"),
        (Answered(b'{"status": "success", "data": []}'), "not one of Prometheus' API"),
        (Answered(b'{"status": "success"}'), "not one of Prometheus' API"),
        (success("vector", "many"), "no series matches"),
        (success("vector", ["odd"]), "a histogram or a text"),
        (success("vector", [{"metric": {}, "histogram": [1, {}]}]), "a histogram or a text"),
        (success("vector", [{"metric": {}, "value": [1]}]), "a histogram or a text"),
        (success("scalar", {"a": 1}), "a histogram or a text"),
        (refused(400, "bad_data", 'label "secret-tenant" is too much'), "HTTP status 400 (bad_data)"),
        (refused(503, "secret-tenant", "parse error of secret-tenant"), "HTTP status 503"),
        (Answered(b"x" * (LIMIT + 1)), "longer than 1 MiB"),
        (Answered(b"", 307, {"Location": "http://secret-tenant/"}), "redirects (HTTP status 307)"),
    ],
)
def test_answers_that_are_none(fake: FakePrometheus, answer: Answered, words: str) -> None:
    fake.otherwise = answer
    found = told(PrometheusSettings(url=fake.url), "q")
    assert isinstance(found, str) and words in found
    assert "secret-tenant" not in found
    assert fake.asked == ["q"]


@pytest.mark.parametrize("partial", [True, False])
def test_a_part_of_a_cluster_gives_no_number(fake: FakePrometheus, partial: bool) -> None:
    data = {"resultType": "scalar", "result": [1.0, "0.4"]}
    # what warnings say may be a hint about the query only
    answer = {"status": "success", "isPartial": partial, "warnings": ["secret-tenant"], "data": data}
    fake.otherwise = Answered(json.dumps(answer).encode())
    found = told(PrometheusSettings(url=fake.url), "q")
    assert "the answer is partial" in str(found) if partial else found == 0.4
    (form,) = fake.forms
    assert (form["partial_response"], form["deny_partial_response"]) == ("false", "1"), "of Thanos, of VictoriaMetrics"


def test_a_server_behind_a_path(fake: FakePrometheus) -> None:
    assert "HTTP status 404" in str(told(PrometheusSettings(url=f"{fake.url}/prometheus/"), "q"))
    assert told(PrometheusSettings(url=f"{fake.url}/"), "sum(drift) + 1") == 1.375


def test_the_token_of_now_is_sent_and_stands_in_no_text(fake: FakePrometheus, tmp_path: Path) -> None:
    file = tmp_path / "token"
    settings = PrometheusSettings(url=fake.url, token_file=str(file))
    fake.token, fake.otherwise = "one-secret", number(1)

    async def story() -> list[float | str]:
        found: list[float | str] = []
        async with connected(settings) as server:
            for token in (None, "one-secret\n", "two-secret", "", "one\ntwo-secret", "geh\xe4im-secret", "one-secret"):
                if token is not None:
                    file.write_text(token)
                try:
                    found.append(await server.ask("q"))
                except NoNumberError as error:
                    found.append(str(error))
        return found

    missing, first, other, empty, lines, wide, last = asyncio.run(story())
    assert (first, last) == (1, 1)
    assert "cannot be read (No such file or directory): see prometheus.tokenSecret" in str(missing)
    assert "HTTP status 401: see prometheus.tokenSecret" in str(other)
    assert all("not one line of ASCII" in str(words) for words in (empty, lines, wide))
    assert not any("secret" in str(words).replace("tokenSecret", "") for words in (missing, other, empty, lines, wide))


def test_authorities_are_those_of_now(tmp_path: Path) -> None:
    certificate, key, authorities = tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=private"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    with FakePrometheus((certificate, key)) as server:
        server.otherwise = number(1)
        settings = PrometheusSettings(url=server.url, ca_file=str(authorities))
        assert "is not trusted" in str(told(PrometheusSettings(url=server.url), "q"))
        assert "cannot be read" in str(told(settings, "q"))
        authorities.write_text("nonsense")
        assert "holds no certificate" in str(told(settings, "q"))
        authorities.write_text(certificate.read_text())
        assert told(settings, "q") == 1


def test_one_that_takes_too_long_is_given_up(fake: FakePrometheus) -> None:
    go_on = threading.Event()
    fake.before = lambda _: go_on.wait(30)
    try:
        assert "has not answered within 0.3 s" in str(told(PrometheusSettings(url=fake.url), "q", within=0.3))
    finally:
        go_on.set()


def test_one_whose_answer_does_not_end_is_given_up_too(fake: FakePrometheus) -> None:
    fake.otherwise = Answered(number(1).body, missing=1)
    assert "has not answered within 0.3 s" in str(told(PrometheusSettings(url=fake.url), "q", within=0.3))


def test_one_that_is_not_there_is_told_by_what_to_set() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert "cannot be reached (ClientConnectorError): see prometheus.url" in str(
            told(PrometheusSettings(url=url), "q")
        )
    assert "see prometheus.url" in str(told(PrometheusSettings(url="http://[nonsense"), "q"))


@pytest.mark.slow
def test_the_alerts_of_the_reference_can_be_asked(real: PrometheusSettings) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    (block,) = page.split("```yaml\n")[1:]
    (alert,) = yaml.safe_load(block.split("```")[0])
    assert told(real, f"count({alert['expr']}) or vector(0)") == 0
