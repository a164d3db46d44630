"""Repositories of the Hugging Face Hub and its mirrors: addresses and errors by huggingface_hub.

Rules:
- A branch or tag becomes a commit once; everything after that is asked for by commit.
- Only the credentials that were given are sent, and never to another host: no token of the environment or of a home
  folder, no telemetry. huggingface_hub's own calls share one client of the whole process, whose certificates cannot
  differ between two sources; therefore the few requests go through a client of our own.
- Files are read from the source each time, never through the cache that huggingface_hub keeps below $HOME.
- The addresses that the hub redirects to are signed: no address goes into an error.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status

from tuneyard import __version__
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import COMMIT_PATTERN, HuggingFaceSource
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import (
    CA,
    CONNECT_SECONDS,
    MOST_PAGES,
    READ_SECONDS,
    Credentials,
    RemoteFile,
    UnreachableError,
    authority_of,
    changed,
    listed,
    too_many_pages,
)

DEFAULT_ENDPOINT = "https://huggingface.co"
_MOST_RETRY_AFTER = 300.0


class HubRemote:
    """One repository at one revision."""

    def __init__(self, source: HuggingFaceSource, credentials: Credentials | None) -> None:
        self._source = source
        self._credentials = credentials
        self._token: str | None = None
        if credentials is not None and ("token" in credentials.data or CA not in credentials.data):
            [self._token] = credentials.need("token")
        self._endpoint = (source.endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self._commit = source.revision if re.match(COMMIT_PATTERN, source.revision) else None
        self._resolving = threading.Lock()
        headers = {"user-agent": f"tuneyard/{__version__}", "accept-encoding": "identity"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        self._client = httpx2.Client(
            headers=headers,
            verify=_authorities(credentials),
            timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=True,
            limits=httpx2.Limits(max_connections=64, max_keepalive_connections=32),
        )

    @property
    def identity(self) -> str:
        """Whose token is sent."""
        if self._token is None or self._credentials is None:
            return "anonymous"
        return f"the token of {self._credentials.origin}"

    @property
    def commit(self) -> str:
        """The commit that the source's revision is; asked for once. Raises ArtifactError."""
        with self._resolving:
            if self._commit is None:
                path = (
                    f"{self._endpoint}/api/models/{self._source.repo}/revision/{quote(self._source.revision, safe='')}"
                )
                answer, _ = self._json(path)
                with self._understood():
                    found = str(answer.get("sha", ""))
                if not re.match(COMMIT_PATTERN, found):
                    raise UnreachableError(f"{self._endpoint} gave no commit for {self.what}: is it a hub?")
                self._commit = found
            return self._commit

    def fingerprint(self) -> str:
        """Server, repository and commit."""
        return f"{self._endpoint} {self._source.repo}@{self.commit}"

    def files(self) -> list[RemoteFile]:
        """The files of the commit, with the SHA-256 of those that the hub keeps as large files."""
        return listed(self.what, self._tree())

    def read(self, file: RemoteFile, begin: int, end: int) -> Generator[bytes, None, None]:
        """A range of one file, wherever the hub sends us for it."""
        url = hf_hub_url(self._source.repo, file.path, revision=self.commit, endpoint=self._endpoint)
        with self._errors(file.path), self._client.stream("GET", url, headers=_range(begin, end)) as answer:
            if answer.status_code >= 400:
                answer.read()  # the error's text is in the body
                if answer.status_code in (412, 416):
                    raise changed(file)
            hf_raise_for_status(answer)
            first = (*answer.history, answer)[0]
            if first.headers.get("x-repo-commit", self.commit) != self.commit:
                raise changed(file)
            yield from _ranged(answer, file, begin, end)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def what(self) -> str:
        """The place, for messages."""
        return f"{self._source.repo} at {self._source.revision}"

    def _tree(self) -> Iterator[RemoteFile]:
        tree = f"{self._endpoint}/api/models/{self._source.repo}/tree/{self.commit}"
        query: str | None = "recursive=true&expand=false"
        pages = 0
        while query is not None:
            pages += 1
            if pages > MOST_PAGES:
                raise too_many_pages(self.what)
            entries, following = self._json(f"{tree}?{query}")
            # a mirror may pass on the addresses of what it mirrors, and the token is not for that
            query = None if following is None else urlsplit(following).query
            with self._understood():
                found = [_file(entry) for entry in entries if entry.get("type") == "file"]
            yield from found

    def _json(self, url: str) -> tuple[Any, str | None]:
        """The answer's JSON, and the address of the next page where there is one."""
        with self._errors(self.what):
            answer = self._client.get(url)
            hf_raise_for_status(answer)
            following = answer.links.get("next", {}).get("url")
            try:
                return answer.json(), following
            except (ValueError, RecursionError):
                raise self._no_hub() from None

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Make an ArtifactError of what an answer lacks: a proxy's page with status 200 may be any JSON."""
        try:
            yield
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise self._no_hub() from None

    def _no_hub(self) -> UnreachableError:
        return UnreachableError(f"{self._endpoint} does not answer as a hub does ({self.what}): is it a hub?")

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Make ArtifactErrors of whatever goes wrong; `what` was asked for."""
        try:
            yield
        except HfHubHTTPError as error:
            raise self._refused(what, error) from None  # the error holds signed addresses
        except (httpx2.TransportError, httpx2.StreamError, httpx2.TooManyRedirects) as error:
            if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError) or (
                "CERTIFICATE_VERIFY_FAILED" in str(error)
            ):
                text = (
                    f"the certificate of {self._endpoint} is not trusted: put its authority into ca.crt of the Secret"
                )
                raise ArtifactError(Reason.SOURCE_UNREACHABLE, text) from None
            why = type(error).__name__ if "//" in str(error) or not str(error) else str(error)
            raise UnreachableError(f"{self._endpoint} cannot be read ({what}): {why}") from None
        except RuntimeError as error:  # the client was closed
            raise UnreachableError(f"{self._endpoint} is no longer asked: {error}") from None

    def _refused(self, what: str, error: HfHubHTTPError) -> ArtifactError:
        status = error.response.status_code
        repo = self._source.repo
        if isinstance(error, GatedRepoError):
            text = f"{repo} is gated and {self.identity} may not read it: accept its terms, or use a token that may"
            return ArtifactError(Reason.ACCESS_DENIED, text)
        if status in (401, 403) or isinstance(error, DisabledRepoError):
            text = (
                f"{self._endpoint} refuses {self.identity} ({status}) for {repo}: it is private or does not exist, or "
            )
            text += "the token is wrong or has expired; correct the Secret or source.huggingFace.repo"
            return ArtifactError(Reason.ACCESS_DENIED, text)
        if isinstance(error, RevisionNotFoundError):
            text = f"{repo} has no revision {self._source.revision}: correct source.huggingFace.revision"
            return ArtifactError(Reason.ARTIFACT_NOT_FOUND, text)
        if isinstance(error, EntryNotFoundError):
            return ArtifactError(Reason.ARTIFACT_NOT_FOUND, f"{repo} has no file {what}: list the repository again")
        if status == 404:
            text = f"{repo} is not on {self._endpoint}, or {self.identity} may not see it: correct source.huggingFace"
            return ArtifactError(Reason.ARTIFACT_NOT_FOUND, text)
        if status in (408, 429) or status >= 500:
            return UnreachableError(f"{self._endpoint} answers {status} ({what})", _retry_after(error.response))
        return ArtifactError(Reason.SOURCE_UNREACHABLE, f"{self._endpoint} answers {status} ({what}): is it a hub?")


def _authorities(credentials: Credentials | None) -> ssl.SSLContext:
    """The public authorities, and the one of the Secret: a private mirror may redirect to a public store."""
    context = httpx2.create_ssl_context(trust_env=False)
    private = authority_of(credentials)
    if private is not None:
        context.load_verify_locations(cadata=private)
    return context


def _file(entry: dict[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs") or {}
    path, blob = str(entry["path"]), str(entry["oid"])
    if lfs:
        sha256 = str(lfs["oid"]).removeprefix("sha256:")
        return RemoteFile(path, _size(lfs), sha256, sha256)
    return RemoteFile(path, _size(entry), None, blob, blob if re.match(COMMIT_PATTERN, blob) else None)


def _size(entry: dict[str, Any]) -> int:
    size = int(entry["size"])
    if size < 0:
        raise ValueError(size)
    return size


def _range(begin: int, end: int) -> dict[str, str]:
    return {"range": f"bytes={begin}-{end - 1}"}


def _ranged(answer: httpx2.Response, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
    """The body's pieces, also of a server that ignores ranges and sends the whole file."""
    skip = begin if answer.status_code == 200 else 0
    if answer.status_code == 200:
        size = answer.headers.get("content-length", str(file.size))
        if size != str(file.size):
            raise changed(file)
    elif answer.headers.get("content-range") != f"bytes {begin}-{end - 1}/{file.size}":
        raise changed(file)
    left = end - begin
    # pieces as they come: a piece that were still being filled would be lost with its connection
    for whole in answer.iter_raw():
        piece = whole[skip:] if skip else whole
        skip = max(0, skip - len(whole))
        if answer.status_code == 200:
            piece = piece[:left]
        if piece:
            left -= len(piece)
            yield piece
        if answer.status_code == 200 and not left:
            return


def _retry_after(answer: httpx2.Response) -> float | None:
    said = answer.headers.get("retry-after", "")
    return min(float(said), _MOST_RETRY_AFTER) if said.isdigit() else None
