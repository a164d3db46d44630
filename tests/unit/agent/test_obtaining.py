"""What comes over the network is what was listed, whatever changes meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tuneyard.agent.obtaining import Obtainer
from tuneyard.api.digests import FileDigest, artifact_digest
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source, Source
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials, RemoteFile, changed
from tuneyard.systems.artifacts.store import Store

SOURCE = Source(s3=S3Source(uri="s3://models/v1/"))


class Prefix:
    """One object under a prefix, and what happens to it after it was listed."""

    identity = "anonymous"
    commit = None

    def __init__(self, content: bytes, after_listing: Callable[[Prefix], None] = lambda _: None) -> None:
        self.content = content
        self._after_listing = after_listing

    @property
    def version(self) -> str:
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()

    def fingerprint(self) -> str:
        return "s3://models/v1/"

    def files(self) -> list[RemoteFile]:
        found = [RemoteFile("config.json", len(self.content), None, self.version)]
        self._after_listing(self)
        return found

    def read(self, file: RemoteFile, begin: int, end: int) -> Generator[bytes, None, None]:
        if file.version != self.version:
            raise changed(file)
        yield self.content[begin:end]

    def close(self) -> None:
        """Nothing is open."""


def obtained(monkeypatch: pytest.MonkeyPatch, cache: Path, remote: Prefix) -> str:
    """The digest of what a pod without a pinned one gets."""
    monkeypatch.setattr("tuneyard.agent.obtaining.remote_of", lambda _source, _given: remote)
    obtainer = Obtainer(Store(cache), lambda name: Credentials(name, {}))
    with obtainer.obtain(SOURCE, None, lambda _: None) as held:
        return held.digest


def test_an_upload_in_the_middle_of_a_fetch_is_not_taken_for_what_was_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the cache would give the new bytes whenever the old ones are listed again."""

    def uploaded(prefix: Prefix) -> None:
        prefix.content = b'{"r": 16}'

    with pytest.raises(ArtifactError, match="has changed since it was listed") as caught:
        obtained(monkeypatch, tmp_path, Prefix(b'{"r": 8}', uploaded))
    assert caught.value.reason is Reason.ARTIFACT_UNREADABLE
    for content in (b'{"r": 8}', b'{"r": 16}'):
        wanted = artifact_digest([FileDigest("config.json", len(content), hashlib.sha256(content).hexdigest())])
        assert obtained(monkeypatch, tmp_path, Prefix(content)) == wanted
