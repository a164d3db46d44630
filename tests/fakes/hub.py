"""A hub as huggingface_hub's clients ask one: revisions, paged trees, files by redirect to a store on another port.

Rules:
- Large files (`*.safetensors`) have a SHA-256 in the tree and are answered with a redirect to the store, which takes
  ranges and knows no token: one that is sent there is a leak, and remembered.
- A fault is set on the hub and used up by the requests that meet it.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 50
_PIECE = 1 << 16


@dataclass
class Repository:
    """One repository with a single commit."""

    files: dict[str, bytes]
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    branches: dict[str, str] = field(default_factory=dict)
    """Other names of the commit; `main` always is one."""
    token: str | None = None
    """Who may read it; None: everybody."""
    gated: bool = False
    """Its token's owner has not accepted the terms."""


@dataclass
class Faults:
    """What goes wrong, each as often as it says."""

    statuses: list[int] = field(default_factory=list)
    """Answers to the next requests, in place of right ones."""
    retry_after: int | None = None
    cuts: list[int] = field(default_factory=list)
    """The next answers of file contents end after so many bytes, as if the network broke."""
    wrong: dict[str, bytes] = field(default_factory=dict)
    """Contents that are sent in place of the listed ones."""
    stall: threading.Event | None = None
    """While it is not set, file contents do not go on after their first piece."""
    trickles: dict[str, float] = field(default_factory=dict)
    """Seconds before each 1,000 bytes of contents, by the end of the path."""
    endless_pages: bool = False
    """Behind the last page of a tree there is another one, with nothing that counts."""
    foreign_pages: bool = False
    """Further pages of a tree are said to be on another server, as a mirror does that passes on what it got."""


class Hub:
    """The two servers; `with Hub({"acme/support": Repository(...)}) as hub:`."""

    def __init__(self, repositories: dict[str, Repository], tls: tuple[Path, Path] | None = None) -> None:
        """`tls`: certificate and key."""
        self.repositories = repositories
        self.faults = Faults()
        self.asked: Counter[str] = Counter()
        """Requests by path, without query."""
        self.sent = 0
        """Bytes of file contents."""
        self.leaks: list[str] = []
        self._lock = threading.Lock()
        self._hub = _server(_HubHandler, self)
        self._store = _server(_StoreHandler, self)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*tls)
            for server in (self._hub, self._store):
                server.socket = context.wrap_socket(server.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._hub.server_address[1]}"

    @property
    def store_url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._store.server_address[1]}"

    def __enter__(self) -> Self:
        for server in (self._hub, self._store):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self._hub, self._store):
            server.shutdown()
            server.server_close()

    def next_fault(self) -> int | None:
        with self._lock:
            return self.faults.statuses.pop(0) if self.faults.statuses else None

    def next_cut(self) -> int | None:
        with self._lock:
            return self.faults.cuts.pop(0) if self.faults.cuts else None

    def count(self, path: str, sent: int = 0) -> None:
        with self._lock:
            if path:
                self.asked[path] += 1
            self.sent += sent


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go in the middle of an answer are part of the tests."""


def _server(handler: type[BaseHTTPRequestHandler], hub: Hub) -> _Server:
    server = _Server(("127.0.0.1", 0), handler)
    server.hub = hub
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        hub = self.server.hub
        hub.count(path)
        status = hub.next_fault()
        if status is not None:
            more = {"Retry-After": str(hub.faults.retry_after)} if hub.faults.retry_after is not None else {}
            return self.whole(status, b"{}", more)
        return self.answer(hub, path)

    def answer(self, hub: Hub, path: str) -> None:
        raise NotImplementedError

    def whole(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def ranged(self, hub: Hub, content: bytes, headers: dict[str, str]) -> None:
        begin, end = 0, len(content)
        self.send_response(206 if (asked := self.headers.get("range")) else 200)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1, end)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        cut = hub.next_cut()
        stop = end if cut is None else min(end, begin + cut)
        pause = next((s for path, s in hub.faults.trickles.items() if urlsplit(self.path).path.endswith(path)), None)
        size = _PIECE if pause is None else 1000
        for at in range(begin, stop, size):
            piece = content[at : min(at + size, stop)]
            if pause is not None:
                time.sleep(pause)  # the slow server itself, which the test is about; nobody waits for anything here
            self.wfile.write(piece)
            hub.count("", len(piece))
            if hub.faults.stall is not None:
                hub.faults.stall.wait(20)
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


class _HubHandler(_Handler):
    def answer(self, hub: Hub, path: str) -> None:
        api = path.startswith("/api/models/")
        raw = urlsplit(self.path).path.removeprefix("/api/models/").removeprefix("/")
        parts = [unquote(part) for part in raw.split("/")]  # a branch's name may hold a slash
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = hub.repositories.get(name)
        token = self.headers.get("authorization", "").removeprefix("Bearer ") or None
        known = {r.token for r in hub.repositories.values()} - {None}
        if token is not None and token not in known:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.token not in (None, token)):
            return self.refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if repository.gated and not api:
            return self.refuse(403, "GatedRepo", f"Access to model {name} is restricted.")
        kind, revision = rest[0], rest[1]
        commit = {"main": repository.commit, **repository.branches}.get(revision, revision)
        if commit != repository.commit and commit not in repository.branches.values():
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if kind == "revision":
            return self.whole(200, json.dumps({"id": name, "sha": commit}).encode())
        if kind == "tree":
            return self.tree(hub, repository, path)
        return self.file(hub, repository, name, "/".join(rest[2:]))

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.whole(status, json.dumps({"error": message}).encode(), headers)

    def tree(self, hub: Hub, repository: Repository, path: str) -> None:
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        names = sorted(repository.files)
        entries: list[dict[str, Any]] = []
        for name in names[start : start + PAGE]:
            content = repository.files[name]
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob(content)}
            if is_large(name):
                entry["lfs"] = {
                    "oid": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 134,
                }
            entries.append(entry)
        folders = sorted({n.split("/")[0] for n in names if "/" in n})
        if start == 0:
            entries += [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in folders]
        more = {}
        if start + PAGE < len(names) or hub.faults.endless_pages:
            server = hub.store_url if hub.faults.foreign_pages else hub.url
            more["Link"] = f'<{server}{path}?recursive=true&expand=false&cursor={start + PAGE}>; rel="next"'
        self.whole(200, json.dumps(entries).encode(), more)

    def file(self, hub: Hub, repository: Repository, name: str, path: str) -> None:
        content = repository.files.get(path)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": repository.commit}
        if is_large(path):
            headers["Location"] = f"{hub.store_url}/{name}/{path}?X-Amz-Signature=signed-address"
            return self.whole(302, b"", headers)
        return self.ranged(hub, hub.faults.wrong.get(path, content), {**headers, "ETag": f'"{blob(content)}"'})


class _StoreHandler(_Handler):
    def answer(self, hub: Hub, path: str) -> None:
        if self.headers.get("authorization"):
            hub.leaks.append(path)
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:])
        content = hub.repositories["/".join(parts[:2])].files[name]
        self.ranged(hub, hub.faults.wrong.get(name, content), {"ETag": '"of-the-store"'})
