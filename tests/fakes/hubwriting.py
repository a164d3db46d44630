"""A hub that takes uploads as huggingface_hub makes them: which files are large, their bytes, one commit, a tag.

One repository. Its commits stay readable by their id, branches and tags by their name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class WritableHub:
    """`with WritableHub("acme/models", "hf_token") as hub:`."""

    repo: str
    token: str
    commits: dict[str, Files] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Branches and tags."""
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256."""
    failing: list[str] = field(default_factory=list)
    """Parts of paths: a request with one of them in its path is answered 503, once."""

    def __post_init__(self) -> None:
        self.commits["0" * 40] = {"README.md": b"by hand", "old.safetensors": b"old"}
        self.names["main"] = "0" * 40
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def files(self, revision: str) -> Files | None:
        return self.commits.get(self.names.get(revision, revision))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: WritableHub

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        if path is None:
            return
        api = f"/api/models/{self.hub.repo}/"
        if path.startswith(api):
            kind, _, revision = path.removeprefix(api).partition("/")
            files = self.hub.files(revision)
            if files is None:
                self._refuse("RevisionNotFound")
            elif kind == "revision":
                self._json({"id": self.hub.repo, "sha": self.hub.names.get(revision, revision)})
            else:
                self._json([_entry(name, content) for name, content in sorted(files.items())])
            return
        revision, _, name = path.removeprefix(f"/{self.hub.repo}/resolve/").partition("/")
        content = (self.hub.files(revision) or {}).get(name)
        if content is None:
            self._refuse("EntryNotFound")
        else:
            self._send(200, content)

    def do_POST(self) -> None:
        path = self._path()
        if path is None:
            return
        text = self._body()
        if path.endswith("/objects/batch"):
            self._json({"objects": [self._upload(o) for o in json.loads(text)["objects"]], "transfer": "basic"})
        elif "/preupload/" in path:
            modes = [_mode(file["path"]) for file in json.loads(text)["files"]]
            self._json({"files": modes})
        elif "/commit/" in path:
            self._commit([json.loads(line) for line in text.splitlines() if line])
        elif "/tag/" in path:
            tag = json.loads(text)["tag"]
            if tag in self.hub.names:
                self._send(409, b"{}")
                return
            self.hub.names[tag] = path.rpartition("/")[2]
            self._json({})
        else:
            self._refuse("")

    def do_DELETE(self) -> None:
        path = self._path()
        if path is not None:
            del self.hub.names[path.rpartition("/")[2]]
            self._json({})

    def do_PUT(self) -> None:
        content = self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.stored[oid] = content
        self._send(200, b"")

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.hub.stored:
            return wanted  # nothing is to be done
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/store/{wanted['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        parent = next((line["value"].get("parentCommit") for line in lines if line["key"] == "header"), None)
        if parent not in (None, self.hub.names["main"]):
            self._send(412, b"{}", {"X-Error-Message": "A commit has happened since. Please refresh and try again."})
            return
        files = dict(self.hub.files("main") or {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = f"{len(self.hub.commits):040x}"
        self.hub.commits[commit] = files
        self.hub.names["main"] = commit
        url = f"{self.hub.url}/{self.hub.repo}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _path(self) -> str | None:
        """The path of a request that may go on, else None and an answer."""
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._body()
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return None
        fault = next((part for part in self.hub.failing if part in path), None)
        if fault is not None:
            self.hub.failing.remove(fault)
            self._body()
            self._send(503, b"{}")
            return None
        return path

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _refuse(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code} if code else {})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}


def _entry(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
    if name.endswith(".safetensors"):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry
