"""External revisions through the real Envoy: what a hosted API gets, what it never gets, and who is believed."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.certificates import Authority
from tests.contract.collector import Collector
from tests.contract.envoy import Rig, eventually, model, revision
from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.contract.test_gateway_keys import CALLERS, KEY, bearer, put_keys
from tests.contract.test_gateway_routing import assert_openai_error
from tests.fakes.hosted import BASE_PATH, Hosted
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Traffic
from tuneyard.api.external import ExternalPricing, ExternalSpec
from tuneyard.gateway.usage import TOKENS
from tuneyard.planning.external import Access, external_route
from tuneyard.planning.limits import Kind
from tuneyard.planning.plan import Redacted
from tuneyard.planning.routes import ModelRoutes
from tuneyard.planning.settings import TracingSettings
from tuneyard.planning.tenants import Caller, Policy
from tuneyard.systems.envoy.answers import Answer, Outcome, answers_of
from tuneyard.systems.envoy.quotas import UNASKED, Spent, spent_of
from tuneyard.systems.envoy.requestlog import Line
from tuneyard.systems.envoy.usage import usage_record
from tuneyard.systems.kube.client import MERGE, Api

pytestmark = pytest.mark.envoy

OURS, MODEL = "sk-hosted-1", "ft:small:acme::abc123"


def server_side(authority: Authority, name: str = "api") -> ssl.SSLContext:
    issued = authority.issue(name)
    folder = authority.path.parent
    (folder / f"{name}.pem").write_bytes(issued["tls.crt"] + issued["tls.key"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem")
    return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "world")


@pytest.fixture
async def api(authority: Authority) -> AsyncIterator[Hosted]:
    async with Hosted("api", tls=server_side(authority)) as running:
        yield running


def routes(
    name: str, url: str, *, key: str | None = OURS, pricing: ExternalPricing | None = None, **more: Any
) -> ModelRoutes:
    external = external_route(
        ExternalSpec(url=url, model=MODEL, pricing=pricing), Access(Redacted(key) if key else None)
    )
    hosted = replace(revision("hosted", 100, engine=MODEL, pool=""), external=external, **more)
    return model(name, hosted)


async def test_what_goes_out_and_what_does_not(tmp_path: Path, authority: Authority, api: Hosted) -> None:
    rig = Rig(tmp_path, keys=True, authorities=str(authority.path), count_usage=True)
    body = b'{ "model":"chat",\t"messages":[{"role":"user","content":"\\u00e4 \xc3\xa4"}], "seed": 1.50}'
    told = {
        "x-user-id": "u-1", "cookie": "session=1", "x-api-key": KEY, "forwarded": "for=1.2.3.4",
        "traceparent": "00-1-1-01",
        "x-forwarded-for": "1.2.3.4", "proxy-authorization": "Basic abc", "x-stainless-os": "Linux",
        "openai-beta": "x=1", "accept-encoding": "gzip", "x-request-id": "req-1",
        "openai-organization": "org-of-the-client",
    }  # fmt: skip
    async with rig:
        put_keys(rig, CALLERS)
        await rig.serve(routes("chat", api.url))
        status, headers, answer = await rig.post(
            body, headers=bearer(KEY) | told, path="/v1/chat/completions?api_key=sk-clients"
        )
        assert (status, json.loads(answer)["model"]) == (200, MODEL), answer
        sent = api.received[-1]
        assert sent.path == f"{BASE_PATH}/chat/completions"
        assert sent.body == body.replace(b'"chat"', json.dumps(MODEL).encode())
        assert sent.headers == {
            "host": f"localhost:{api.port}", "authorization": f"Bearer {OURS}", "content-type": "application/json",
            "content-length": str(len(sent.body)), "accept": "*/*", "user-agent": sent.headers["user-agent"],
            "openai-beta": "x=1", "x-request-id": "req-1", "tuneyard-hop": "1",
        }  # fmt: skip
        assert (headers["x-revision"], headers["x-request-id"]) == ("hosted", "req-1")
        stream = {"model": "chat", "messages": [], "stream": True, "chunks": 5}
        status, _, text = await rig.post(stream, headers=bearer(KEY))
        assert status == 200 and b"[DONE]" in text and b"usage" not in text
        (line,) = [line for line in await rig.envoy.logged(2) if not line["chunks"]]
        assert (line["out"], line["pod"]) == ("acme chat /v1/chat/completions", f"localhost:{api.port}")
        lines = await rig.lines(2)
        assert OURS not in rig.envoy.access_log.read_text() + rig.envoy.log.read_text() + rig.requests.read_text()
        assert await rig.envoy.stat("http.gateway.lua.rewrite.errors") == 0
    assert {(a.tenant, a.outcome, a.revision) for a in answers_of(lines)} == {("acme", Outcome.OK, "hosted")}
    records = [usage_record(line, "g") for line in lines]
    assert [(r.tenant, r.model, r.prompt_tokens, r.completion_tokens, r.estimated) for r in records if r] == [
        ("acme", "chat", 11, 3, False),
        ("acme", "chat", 7, 5, False),  # the API was asked for the numbers of a stream, too
    ]


async def test_what_is_known_of_a_request_whose_headers_have_gone(
    tmp_path: Path, authority: Authority, api: Hosted
) -> None:
    """Whose it was, for limits; what deadline it had, for the judge; and its trace, which ends here."""
    answers: list[Answer] = []
    spent: list[Spent] = []

    def heard(lines: Sequence[Line]) -> None:
        answers.extend(answers_of(lines))
        spent.extend(spent_of(lines))

    limited = Caller("acme", Policy(("*",), limits={Kind.TOKENS: 100}))
    async with (
        Collector() as collector,
        Rig(
            tmp_path,
            keys=True,
            authorities=str(authority.path),
            heard=heard,
            traces=TracingSettings(otlp_endpoint=collector.endpoint, sampling=100),
        ) as rig,
    ):
        put_keys(rig, {KEY: limited})
        await rig.serve(routes("chat", api.url))
        traced = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "ours=1"}
        assert (await rig.post({"model": "chat"}, headers=bearer(KEY) | traced))[0] == 200
        sent = api.received[-1].headers
        assert not {"traceparent", "tracestate", "baggage"} & sent.keys(), sent
        hurried = bearer(KEY) | {"grpc-timeout": "300m"}
        assert (await rig.post({"model": "chat", "first": 5}, headers=hurried))[0] == 504
        await eventually(lambda: len(answers) == len(spent) == 2, "both are told of")
    assert [a.outcome for a in answers] == [Outcome.OK, Outcome.CLIENT_LEFT]
    assert [(s.tenant, s.mark) for s in spent] == [("acme", UNASKED)] * 2
    assert [s.tokens > 0 for s in spent] == [True, True], "what a client does not wait for was asked all the same"


async def test_a_request_keeps_the_price_of_its_time(tmp_path: Path, authority: Authority, api: Hosted) -> None:
    cheap = ExternalPricing(input_per_million=0.3, cached_input_per_million=0.15, output_per_million=1.2)
    dear = ExternalPricing(input_per_million=3, output_per_million=12.5, currency="EUR")
    async with Rig(tmp_path, authorities=str(authority.path), count_usage=True) as rig:
        await rig.serve(routes("chat", api.url, pricing=cheap))
        assert (await rig.post({"model": "chat"}))[0] == 200
        # one that is under way while the price changes
        stream = {"model": "chat", "messages": [], "stream": True, "chunks": 2000, "delay": 0.05}
        running = asyncio.create_task(rig.post(stream))
        await eventually(lambda: len(api.received) == 2, "it has gone out")
        await rig.serve(routes("chat", api.url, pricing=dear))
        assert (await rig.post({"model": "chat"}))[0] == 200
        running.cancel()  # its client leaves
        await asyncio.gather(running, return_exceptions=True)
        await rig.lines(3)
        await rig.serve(routes("chat", api.url))
        assert (await rig.post({"model": "chat"}))[0] == 200
        lines = await rig.lines(4)
        assert await rig.envoy.stat("http.gateway.lua.rewrite.errors") == 0
    records = [usage_record(line, "g") for line in lines]
    assert [(r.price, r.estimated) for r in records if r] == [
        (cheap, False), (dear, False), (cheap, True), (None, False),
    ]  # fmt: skip
    assert {(r.external, r.pool) for r in records if r} == {(f"localhost:{api.port}", None)}


async def test_an_api_without_a_key_gets_no_clients_key(tmp_path: Path, authority: Authority) -> None:
    async with Hosted("open", tls=server_side(authority), keys={""}) as api:
        async with Rig(tmp_path, authorities=str(authority.path)) as rig:
            await rig.serve(routes("chat", api.url, key=None))
            assert (await rig.post({"model": "chat"}, headers=bearer("sk-clients")))[0] == 200
        assert api.shown == [""]


async def test_refusals_of_the_api(tmp_path: Path, authority: Authority, api: Hosted) -> None:
    async with Rig(tmp_path, authorities=str(authority.path)) as rig:
        await rig.serve(routes("chat", api.url))
        api.limited = True
        for _ in range(20):
            status, headers, answer = await rig.post({"model": "chat"})
            assert (status, headers["retry-after"]) == (429, "7")
            assert not {"set-cookie", "x-ratelimit-remaining-tokens"} & headers.keys() and b"Rate limit" in answer
        api.limited = False
        assert (await rig.post({"model": "chat"}))[0] == 200, "nothing was ejected"
        api.keys = {"sk-another"}
        status, headers, answer = await rig.post({"model": "chat"})
        assert status == 502 and OURS.encode() not in answer and "www-authenticate" not in headers
        assert_openai_error(answer, code="external_credentials", kind="server_error")
        api.keys = {OURS}
        api.mode = "error"
        status, _, answer = await rig.post({"model": "chat"})
        assert (status, b"an error of the engine" in answer) == (500, True)
        answers = answers_of(await rig.lines(23))
        assert await rig.envoy.stat("http.gateway.lua.answer.errors") == 0
    assert [a.outcome for a in answers] == [Outcome.ERROR] * 20 + [Outcome.OK] + [Outcome.ERROR] * 2


async def test_who_is_believed(tmp_path: Path, authority: Authority, api: Hosted) -> None:
    """Before a certificate of a known authority names the host, not a byte is sent."""
    (tmp_path / "others").mkdir()
    others = Authority(tmp_path / "others", "others")
    async with (
        Hosted("impostor", tls=server_side(others)) as impostor,
        Hosted("renamed", tls=server_side(authority), host="127.0.0.2") as renamed,
        Rig(tmp_path, authorities=str(authority.path)) as rig,
    ):
        await rig.serve(
            routes("good", api.url),
            routes("by-address", api.url.replace("localhost", "127.0.0.1")),
            routes("impostor", impostor.url),
            # the certificate is of localhost and 127.0.0.1
            routes("renamed", renamed.url.replace("localhost", "127.0.0.2")),
        )
        assert (await rig.post({"model": "good"}))[0] == 200
        assert (await rig.post({"model": "by-address"}))[0] == 200
        for name in ("impostor", "renamed"):
            status, _, answer = await rig.post({"model": name})
            assert status == 503, name
            assert_openai_error(answer, code="unavailable", kind="server_error")
    assert not impostor.shown and not renamed.shown and len(api.shown) == 2


# -- the gateway process ---------------------------------------------------------------------------------------------


def make_secret(api: Api, namespace: str, name: str, key: str) -> None:
    body = {"metadata": {"name": name}, "data": {"apiKey": base64.b64encode(f"{key}\n".encode()).decode()}}
    api.request("POST", f"/api/v1/namespaces/{namespace}/secrets", body=body)


def change_secret(api: Api, namespace: str, name: str, key: str) -> None:
    body = {"data": {"apiKey": base64.b64encode(key.encode()).decode()}}
    api.request("PATCH", f"/api/v1/namespaces/{namespace}/secrets/{name}", body=body, content_type=MERGE)


def hosted_revision(api: Hosted, **more: Any) -> dict[str, Any]:
    external = {"url": api.url, "model": MODEL, "credentials": {"name": "hosted-api"}, **more}
    return {"name": "hosted", "external": external}


def make_deployment(team: Team, revisions: Sequence[dict[str, Any]], traffic: dict[str, int], **spec: Any) -> None:
    targets = [{"revision": r, "weight": w} for r, w in traffic.items()]
    team.create_deployment("chat", {"revisions": list(revisions), "traffic": targets, **spec})


async def test_a_silent_dns_server_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.settimeout(10)
        rig = Rig(tmp_path)
        rig.envoy.resolver(silent.getsockname()[1])
        async with rig, Upstream("own") as own:
            # Envoy starts with both: it may wait for neither
            await rig.serve(
                routes("chat", "https://api.example.com/v1"), model("mine", revision("v1", 100, [own.address]))
            )
            status, _, _ = await rig.post({"model": "mine", "messages": []})
            assert status == 200
            assert silent.recv(512), "the host's name was asked for"
            async with asyncio.timeout(30):
                status, headers, answer = await rig.post({"model": "chat", "messages": []})
            assert (status, headers["content-type"]) == (503, "application/json")
            assert json.loads(answer)["error"]["type"] == "server_error"
            status, _, _ = await rig.post({"model": "mine", "messages": []})
            assert status == 200


@pytest.mark.apiserver
async def test_from_hosted_to_own_and_back_under_traffic(
    apiserver: ApiServer, team: Team, tmp_path: Path, authority: Authority, api: Hosted
) -> None:
    gateway = GatewayProcess(
        apiserver,
        tmp_path,
        settings={"watchNamespaces": [team.namespace]},
        environment={"TUNEYARD_EXTERNAL_CA": str(authority.path)},
    )
    deployment = f"{team.namespace}/chat"
    async with Upstream("pod-a") as pod, gateway:
        team.make_pod(pod)
        make_secret(team.api, team.namespace, "hosted-api", OURS)
        own = {"name": "own", "baseModel": team.base}
        make_deployment(team, [hosted_revision(api), own], {"hosted": 100})
        await gateway.applies(deployment, {"hosted": 100, "own": 0})
        load = Load(["chat"], rate=40, headers=bearer("sk-of-a-client"))
        async with Traffic(gateway.url, load) as traffic:
            for hosted in (90, 50, 0, 50, 100):
                team.set_traffic("chat", hosted=hosted, own=100 - hosted)
                await gateway.applies(deployment, {"hosted": hosted, "own": 100 - hosted})
                await asyncio.sleep(0.5)
            api.keys = {OURS, "sk-hosted-2"}  # as APIs let keys overlap
            change_secret(team.api, team.namespace, "hosted-api", "sk-hosted-2")
            await eventually(lambda: "Bearer sk-hosted-2" in api.shown[-5:], "the new key is in force", within=9)
            await eventually(lambda: set(api.shown[-20:]) == {"Bearer sk-hosted-2"}, "and no other")
            api.keys = {"sk-hosted-2"}
            seen = len(api.shown)
            await eventually(lambda: len(api.shown) > seen + 10, "requests go on")
        summary = traffic.summary()
        assert (summary.failed, summary.cut, summary.ok) == (0, 0, summary.requests), summary
        assert set(summary.by_revision) == {"hosted", "own"}
        assert set(api.shown) == {f"Bearer {OURS}", "Bearer sk-hosted-2"}, "no client's key was ever sent"

        async def counted() -> bool:
            lines = (await gateway.page()).splitlines()
            return any(line.startswith(f"{TOKENS}{{") and 'revision="hosted"' in line for line in lines)

        await becomes(counted, True, "tokens of hosted answers are counted")
        kept = gateway.folder / "external.jsonl"
        await eventually(lambda: "sk-hosted-2" in kept.read_text(), "the key is kept")
        assert kept.stat().st_mode & 0o077 == 0
        # another process, which the API server tells nothing, and another Envoy
        gateway.kill()
        gateway.rig.envoy.stop()
        gateway._environment["KUBECONFIG"] = str(apiserver.kubeconfig("nobody"))
        gateway.start()
        gateway.rig.envoy.start()
        await gateway.applies(deployment, {"hosted": 100, "own": 0})
        assert await gateway.answered_by("chat") == MODEL
        assert "sk-hosted" not in gateway.log.read_text() + (gateway.folder / "world.jsonl").read_text()


@pytest.mark.apiserver
async def test_a_secret_that_gateways_may_not_read(
    apiserver: ApiServer, team: Team, tmp_path: Path, authority: Authority, api: Hosted
) -> None:
    """What may be read is `get` of the Secrets that are listed, and that is enough."""
    token = gateway_token(apiserver, team.namespace)
    gateway = GatewayProcess(
        apiserver,
        tmp_path,
        settings={"watchNamespaces": [team.namespace]},
        token=token,
        environment={"TUNEYARD_EXTERNAL_CA": str(authority.path)},
    )
    deployment = f"{team.namespace}/chat"
    async with gateway:
        make_deployment(team, [hosted_revision(api)], {"hosted": 100})
        make_secret(team.api, team.namespace, "hosted-api", OURS)
        await gateway.ready()
        report = await gateway.serves(deployment, lambda found: bool(found.lacking))
        told = report.deployments[deployment]
        assert told.weights == {"hosted": 0}
        assert told.lacking["hosted"] == (
            f"Secret {team.namespace}/hosted-api may not be read by the gateways: list it in gateway.externalSecrets "
            "of the chart"
        )
        await gateway.rig.envoy.ready()
        assert (await gateway.rig.post({"model": "chat"}))[0] == 503
        grant(team.api, team.namespace, "hosted-api")
        await gateway.applies(deployment, {"hosted": 100})
        assert await gateway.answered_by("chat") == MODEL
        team.api.request("DELETE", f"/api/v1/namespaces/{team.namespace}/secrets/hosted-api")
        report = await gateway.serves(deployment, lambda found: bool(found.lacking), within=30.0)
        assert report.deployments[deployment].lacking["hosted"].endswith("does not exist")

        async def refused() -> int:
            return (await gateway.rig.post({"model": "chat"}))[0]

        await becomes(refused, 503, "a key that was taken away is sent no more")
    assert set(api.shown) == {f"Bearer {OURS}"}


def gateway_token(server: ApiServer, namespace: str) -> str:
    """Of an account with the rights that gateways have before anybody lists a Secret."""
    api, rbac = server.api(), "/apis/rbac.authorization.k8s.io/v1"
    api.request(
        "POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", body={"metadata": {"name": "tuneyard-gateway"}}
    )
    rules = [
        {
            "apiGroups": ["tuneyard.dev"],
            "resources": ["basemodels", "loraadapters", "modeldeployments"],
            "verbs": ["get", "list", "watch"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    ]
    role = {"metadata": {"name": "gateway"}, "rules": rules}
    api.request("POST", f"{rbac}/namespaces/{namespace}/roles", body=role)
    bind(api, namespace, "gateway")
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/tuneyard-gateway/token"
    return str(api.request("POST", path, body={"spec": {}})["status"]["token"])


def grant(api: Api, namespace: str, secret: str) -> None:
    rules = [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret], "verbs": ["get"]}]
    body = {"metadata": {"name": "secrets"}, "rules": rules}
    api.request("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles", body=body)
    bind(api, namespace, "secrets")


def bind(api: Api, namespace: str, role: str) -> None:
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role}
    subject = {"kind": "ServiceAccount", "name": "tuneyard-gateway", "namespace": namespace}
    body = {"metadata": {"name": role}, "roleRef": reference, "subjects": [subject]}
    api.request("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings", body=body)
