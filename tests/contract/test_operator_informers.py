"""Informers against a server that misbehaves on command."""

from __future__ import annotations

import asyncio
import http.server
import itertools
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes.client.configuration import Configuration

from tests.contract.operator_process import eventually
from tuneyard.systems.kube import informers, watching
from tuneyard.systems.kube.client import Api
from tuneyard.systems.kube.informers import Informer, on_loop

Object = dict[str, Any]
PATH = "/apis/example.dev/v1/things"


def thing(name: str, revision: int, **metadata: Any) -> Object:
    return {
        "apiVersion": "example.dev/v1",
        "kind": "Thing",
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": str(revision), "uid": name, **metadata},
    }


def event(kind: str, item: Object) -> Object:
    return {"type": kind, "object": item}


def bookmark(revision: int) -> Object:
    return event("BOOKMARK", {"kind": "Thing", "metadata": {"resourceVersion": str(revision)}})


def error(code: int, reason: str) -> Object:
    return event("ERROR", {"kind": "Status", "code": code, "reason": reason, "message": reason})


class Server:
    """Lists `items` at `revision`; each watch takes the next of `watches`, and without one it stays silent."""

    def __init__(self) -> None:
        self.items: list[Object] = []
        self.revision = 1
        self.list_status: list[int] = []
        self.watches: list[int | list[Object]] = []
        self.lists = 0
        self.requests: list[tuple[float, dict[str, str], str]] = []
        self._pushed = threading.Condition()
        self._pushes: list[Object] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def push(self, *events: Object) -> None:
        """Send these on the watch that is open."""
        with self._pushed:
            self._pushes.extend(events)
            self._pushed.notify_all()

    def watched_from(self) -> list[str]:
        return [query["resourceVersion"] for _, query, _ in self.requests if "watch" in query]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:  # noqa: C901 -- it counts the methods as branches
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = dict(urllib.parse.parse_qsl(urllib.parse.urlparse(self.path).query))
                server.requests.append((time.monotonic(), query, self.headers["Accept"]))
                if "watch" in query:
                    self._watch()
                else:
                    self._list()

            def _json(self, status: int, body: Object) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _list(self) -> None:
                server.lists += 1
                status = server.list_status.pop(0) if server.list_status else 200
                if status != 200:
                    self._json(status, {"kind": "Status", "reason": "Scripted", "message": "as told"})
                    return
                bare = [{"metadata": i["metadata"]} for i in server.items]
                meta = {"resourceVersion": str(server.revision)}
                self._json(200, {"kind": "ThingList", "apiVersion": "example.dev/v1", "metadata": meta, "items": bare})

            def _watch(self) -> None:
                script: int | list[Object] = server.watches.pop(0) if server.watches else []
                if isinstance(script, int):
                    self._json(script, {"kind": "Status", "reason": "Scripted", "message": "as told"})
                    return
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for told in script:
                    self._chunk(told)
                if any(told["type"] == "ERROR" for told in script):
                    self.wfile.write(b"0\r\n\r\n")
                    return
                self._follow()

            def _follow(self) -> None:
                while True:
                    with server._pushed:
                        server._pushed.wait_for(lambda: server._pushes, timeout=30)
                        told, server._pushes = server._pushes, []
                    for each in told:
                        self._chunk(each)

            def _chunk(self, told: Object) -> None:
                data = json.dumps(told).encode() + b"\n"
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler


class Told:
    """What an informer told."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    def __call__(self, change: str, item: Object) -> None:
        self.changes.append((change, item["metadata"]["name"]))


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def follow(server: Server, told: Told) -> Iterator[Callable[..., Informer]]:
    started: list[Informer] = []

    def start(**options: Any) -> Informer:
        informer = Informer(Api(Configuration(host=server.url)), PATH, told, **options)
        started.append(informer)
        informer.start()
        assert informer.wait_synced(10)
        return informer

    yield start
    for informer in started:
        informer.stop()


Follow = Callable[..., Informer]


def test_it_lists_then_follows(server: Server, told: Told, follow: Follow) -> None:
    server.items = [thing("a", 1, managedFields=[{"much": "text"}])]
    informer = follow()
    assert (told.changes, informer.age() < 5) == ([("ADDED", "a")], True)
    server.push(event("ADDED", thing("b", 2)), event("MODIFIED", thing("a", 3)), event("DELETED", thing("b", 4)))
    eventually(lambda: len(told.changes) == 4, "the events", 10)
    assert told.changes[1:] == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
    assert [i["metadata"]["name"] for i in informer.items()] == ["a"]
    found = informer.get("ns", "a")
    assert found and found["kind"] == "Thing" and "managedFields" not in found["metadata"]


def test_of_managed_fields_only_what_is_asked_for_is_kept(server: Server, follow: Follow) -> None:
    ours, other = {"manager": "us", "fieldsV1": {}}, {"manager": "them", "fieldsV1": {"much": "text"}}
    server.items = [thing("a", 1, managedFields=[other, ours])]
    found = follow(keeps=lambda entry: entry["manager"] == "us").get("ns", "a")
    assert found and found["metadata"]["managedFields"] == [ours]


def test_what_the_server_is_asked(server: Server, follow: Follow) -> None:
    follow(label_selector="a=b", field_selector="metadata.name=x", metadata_only=True)
    eventually(lambda: len(server.requests) == 2, "a list and a watch", 10)
    (_, listed, list_accept), (_, watched, watch_accept) = server.requests
    assert listed == {"labelSelector": "a=b", "fieldSelector": "metadata.name=x"}
    assert {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": "1"}.items() <= watched.items()
    assert 40 <= int(watched["timeoutSeconds"]) <= 50
    assert "as=PartialObjectMetadataList;" in list_accept
    assert "as=PartialObjectMetadata;" in watch_accept


def test_a_watch_that_ends_is_resumed_from_the_last_bookmark(server: Server, told: Told, follow: Follow) -> None:
    server.items = [thing("a", 1)]
    server.watches = [[bookmark(7), error(500, "leader changed")], [event("ADDED", thing("b", 8))]]
    follow()
    eventually(lambda: ("ADDED", "b") in told.changes, "the next event", 10)
    assert (server.lists, server.watched_from()) == (1, ["1", "7"])


def test_what_was_deleted_or_changed_while_away_is_told_once_the_copy_shows_it(
    server: Server, told: Told, follow: Follow
) -> None:
    server.items = [thing("gone", 1), thing("same", 2), thing("changed", 3)]
    server.revision = 3
    informer = follow()
    shown: list[Object | None] = []
    informer.listen(lambda change, item: shown.append(informer.get("ns", item["metadata"]["name"])))
    told.changes.clear()
    server.items, server.revision = [thing("same", 2), thing("changed", 9), thing("new", 10)], 10
    server.watches = [[error(410, "Expired")]]
    server.push(error(410, "Expired"))
    eventually(lambda: len(told.changes) >= 3, "the differences", 10)
    assert sorted(told.changes) == [("ADDED", "new"), ("DELETED", "gone"), ("MODIFIED", "changed")]
    versions = [item and item["metadata"]["resourceVersion"] for item in shown]
    assert sorted(versions, key=str) == ["10", "9", None]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_after_a_refusal_that_may_hide_changes_it_lists_again(
    server: Server, told: Told, follow: Follow, status: int
) -> None:
    server.watches = [status]
    follow()
    eventually(lambda: server.lists == 2, "another list", 10)
    server.push(event("ADDED", thing("b", 2)))
    eventually(lambda: ("ADDED", "b") in told.changes, "it follows on", 10)


def test_after_three_refusals_it_lists_again(server: Server, follow: Follow) -> None:
    server.watches = [500, 503, 504]
    follow()
    eventually(lambda: server.lists == 2, "another list", 15)
    assert len(server.watched_from()) >= 3


def test_a_server_that_forgot_its_future_is_noticed(server: Server, told: Told, follow: Follow) -> None:
    server.items, server.revision = [thing("later", 90)], 90
    follow()
    server.items, server.revision = [thing("a", 3)], 5
    server.push(bookmark(5))
    eventually(lambda: ("DELETED", "later") in told.changes, "what etcd has forgotten goes", 10)
    assert ("ADDED", "a") in told.changes


def test_lists_that_fail_are_repeated_with_pauses_until_they_work(server: Server, follow: Follow) -> None:
    server.list_status = [500, 403, 404, 429]
    follow()
    times = [at for at, query, _ in server.requests if "watch" not in query]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(pauses) == 4
    assert all(pause >= floor for pause, floor in zip(pauses, (0.2, 0.4, 0.8, 1.6), strict=True))


def test_a_watch_that_always_ends_at_once_is_not_retried_in_a_hurry(server: Server, follow: Follow) -> None:
    server.watches = [[error(500, "broken")] for _ in range(50)]
    began = time.monotonic()
    follow()
    while time.monotonic() - began < 4:
        time.sleep(0.05)
    assert len(server.requests) <= 12


def test_a_refused_connection_is_not_retried_in_a_hurry_and_logged_once(
    server: Server, told: Told, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    informer = follow()
    caplog.set_level("INFO", "tuneyard")
    attempts = 0
    opened = informer._api._open

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal attempts
        attempts += 1
        return opened(*args, **kwargs)

    informer._api._open = count  # type: ignore[method-assign]
    server.close()
    server.push(error(500, "the last word"))
    began = time.monotonic()
    while time.monotonic() - began < 4:
        time.sleep(0.05)
    assert 2 <= attempts <= 12
    assert len([r for r in caplog.records if "cannot follow" in r.message]) == 1
    assert informer.age() > 2


def test_silence_is_noticed_and_the_watch_resumed(
    server: Server, told: Told, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the real figures are 45 s and 15 s
    monkeypatch.setattr(informers, "_WATCH_SECONDS", 0.5)
    monkeypatch.setattr(informers, "_SILENCE", 0.5)
    follow()
    eventually(lambda: len(server.watched_from()) >= 2, "another watch", 10)
    assert server.lists == 1
    assert 45 * 1.1 + 15 + 5 <= 75


def test_a_full_list_comes_now_and_then_in_case_an_event_was_lost(
    server: Server, told: Told, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_RELIST_SECONDS", 0.5)
    server.items = [thing("a", 1)]
    follow()
    server.items = [thing("a", 1), thing("lost", 2)]
    time.sleep(0.7)
    server.push(error(500, "the end of this watch"))
    eventually(lambda: told.changes == [("ADDED", "a"), ("ADDED", "lost")], "what was lost, and nothing else", 10)


def test_a_listener_that_fails_does_not_stop_the_others(server: Server, told: Told) -> None:
    def broken(change: str, item: Object) -> None:
        raise ValueError(item["metadata"]["name"])

    informer = Informer(Api(Configuration(host=server.url)), PATH, broken)
    informer.listen(told)
    informer.start()
    try:
        assert informer.wait_synced(10)
        server.push(event("ADDED", thing("a", 2)), event("ADDED", thing("b", 3)))
        eventually(lambda: len(told.changes) == 2, "both", 10)
    finally:
        informer.stop()


def test_it_stops_soon_while_a_watch_is_silent_and_while_nobody_answers(server: Server, follow: Follow) -> None:
    informer = follow()
    began = time.monotonic()
    informer.stop()
    away = Informer(Api(Configuration(host="http://127.0.0.1:1")), PATH)
    away.start()
    assert not away.wait_synced(0.3)
    assert away.age() == float("inf")
    away.stop()
    assert time.monotonic() - began < 6


async def test_changes_reach_an_asyncio_loop(server: Server) -> None:
    server.items = [thing("a", 1)]
    changes: asyncio.Queue[tuple[str, str, bool]] = asyncio.Queue()
    home = threading.get_ident()

    def note(change: str, item: Object) -> None:
        changes.put_nowait((change, item["metadata"]["name"], threading.get_ident() == home))

    informer = Informer(Api(Configuration(host=server.url)), PATH, on_loop(asyncio.get_running_loop(), note))
    informer.start()
    try:
        assert await asyncio.wait_for(changes.get(), 10) == ("ADDED", "a", True)
    finally:
        await asyncio.to_thread(informer.stop)
