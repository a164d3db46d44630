"""Asks a tracking server over HTTP, with the standard library alone.

Rules:
- credentials go only to the server that they are for: they are kept out of URLs, texts and errors, and not sent on when
  an answer leads to another host (a hub's files lie on others, which need none);
- an answer is read up to a limit, and a server that does not answer ends in words, not in waiting.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

_SECONDS = 30
_LIMIT = 32 * 1024 * 1024


class TrackerError(Exception):
    """Something cannot be read; the text says what, why and what to do. `missing`: it is not there."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True)
class Server:
    """A server and who asks. `url` has no slash at its end; `login` says which variables hold credentials."""

    url: str
    login: str
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def at(cls, url: str, login: str, authorization: str | None = None) -> Server:
        """The server that a URL names; a user and password in the URL become credentials, and leave the URL."""
        try:
            parts = urllib.parse.urlsplit(url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            known = False
        if not known:
            raise TrackerError("the server's address must begin with http:// or https:// and name a host")
        user, found, host = parts.netloc.rpartition("@")
        if found and authorization is None:
            name, _, password = user.partition(":")
            authorization = basic(urllib.parse.unquote(name), urllib.parse.unquote(password))
        return cls(f"{parts.scheme}://{host}{parts.path.rstrip('/')}", login, authorization)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """The body of an answer; raises TrackerError."""
        asked = f"?{urllib.parse.urlencode(query)}" if query else ""
        return self._ask(urllib.request.Request(f"{self.url}{path}{asked}"))  # noqa: S310 -- `at` allows http alone

    def json(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """The same, as JSON."""
        return self._parsed(self.get(path, query))

    def post(self, path: str, body: object) -> Any:
        """The JSON with which the server answers this JSON."""
        headers = {"Content-Type": "application/json"}
        data = json.dumps(body).encode()
        return self._parsed(self._ask(urllib.request.Request(f"{self.url}{path}", data, headers)))  # noqa: S310

    def _ask(self, request: urllib.request.Request) -> bytes:
        if self.authorization:
            # the kind of header that urllib does not repeat to where it is redirected
            request.add_unredirected_header("Authorization", self.authorization)
        where = urllib.parse.urlsplit(request.full_url)._replace(query="").geturl()
        try:
            with urllib.request.build_opener(_SameHost()).open(request, timeout=_SECONDS) as answer:
                body: bytes = answer.read(_LIMIT + 1)
        except urllib.error.HTTPError as error:
            raise self._refused(error, where) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise TrackerError(f"{where} cannot be reached: {reason}") from None
        except ValueError:
            # its text would show the header
            raise TrackerError(f"the credentials for {where} hold a line break or what else no header can") from None
        if len(body) > _LIMIT:
            raise TrackerError(f"{where} answers with more than {_LIMIT // 1024 // 1024} MiB: is it the right address?")
        return body

    def _refused(self, error: urllib.error.HTTPError, where: str) -> TrackerError:
        with error:
            if error.code in (401, 403):
                how = "does not accept the credentials" if self.authorization else "asks for credentials"
                return TrackerError(f"{where} {how} ({error.code}): set {self.login}")
            if error.code == 404:
                return TrackerError(f"{where} does not exist (404)", missing=True)
            return TrackerError(f"{where} answers {error.code}: {_words(error.read(4096))}", missing=error.code == 400)

    def _parsed(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError:
            raise TrackerError(f"{self.url} does not answer in JSON: is it the right address?") from None


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Credentials go along to another path of the same server, and nowhere else."""

    def redirect_request(  # noqa: PLR0917 -- the standard library's own
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        again = super().redirect_request(req, fp, code, msg, headers, newurl)
        if again is not None and urllib.parse.urlsplit(newurl)[:2] == urllib.parse.urlsplit(req.full_url)[:2]:
            for name, value in req.unredirected_hdrs.items():
                if name == "Authorization":
                    again.add_unredirected_header(name, value)
        return again


def basic(user: str, password: str) -> str:
    """The header of HTTP's basic authentication."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _words(body: bytes) -> str:
    """What an error's body says, on one line."""
    text = body.decode(errors="replace")
    try:
        told = json.loads(text)
        text = str(told.get("message") or told.get("error") or text) if isinstance(told, dict) else text
    except ValueError:
        pass
    return " ".join(text.split())[:300] or "nothing"
