"""Results in a repository of a hub: one commit each, found again by the tag `tuneyard-<key>`.

Rules:
- a commit appears whole or not at all; it holds the result's files and no other model's. The tag comes after it, so
  that a tag is a whole result, unless somebody moves it: what it names is compared with its record by bytes. Where a
  process ended between the two, the next one makes the same commit again;
- documents that people keep beside a model (README.md, LICENSE) stay;
- the token goes to the endpoint that the Secret allows, and nowhere else; addresses that the hub signs go into no text;
- what steps before the last have made is not kept here: a repository has one model.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError

from tuneyard.api.base import parsed
from tuneyard.api.buildoutput import OutputRepository
from tuneyard.api.buildtask import RECORD, BuildResult
from tuneyard.api.digests import matters_for_serving
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import HuggingFaceSource
from tuneyard.build.inputs import Read
from tuneyard.build.outputs import Told, patiently
from tuneyard.systems.artifacts.download import digest_of_remote
from tuneyard.systems.artifacts.folder import ArtifactError, list_files
from tuneyard.systems.artifacts.hub import DEFAULT_ENDPOINT, HubRemote
from tuneyard.systems.artifacts.remote import (
    CONNECT_SECONDS,
    READ_SECONDS,
    Credentials,
    UnreachableError,
    authority_of,
    given_for,
)

_log = logging.getLogger(__name__)


class HubOutput:
    """One repository."""

    keeps_steps = False

    def __init__(self, output: OutputRepository, read: Read, stopped: threading.Event) -> None:
        self._output = output
        self._read = read
        self._stopped = stopped

    def find(self, key: str) -> BuildResult | None:
        """The record at the key's tag, beside files whose bytes are those of it, with the commit that this is."""
        with closing(self._remote(f"tuneyard-{key}")) as remote:
            try:
                commit = patiently(lambda: remote.commit, self._stopped)
            except ArtifactError as error:
                if error.reason is Reason.ARTIFACT_NOT_FOUND and self._exists():
                    return None
                raise
        with self._api() as api, self._errors("read"):
            text = _fetched(api, self._output, commit)
        record = parsed(BuildResult, text)
        if record is None:
            return None
        with closing(self._remote(commit)) as remote:
            # of large files the hub says the SHA-256: only small ones are read
            digest = digest_of_remote(remote, stopped=self._stopped).digest
        return record.model_copy(update={"commit": commit}) if digest == record.digest else None

    def try_writing(self, key: str) -> None:
        """Nothing: no endpoint of a hub says whether a token may write to a repository, but for one that writes."""

    def bring(self, key: str, target: Path, told: Told) -> tuple[Path, BuildResult] | None:
        """Never asked: it keeps no steps."""
        raise NotImplementedError

    def keep(self, folder: Path, result: BuildResult, told: Told) -> BuildResult:
        """One commit of all files, then its tag; what another build has put there meanwhile stays, if it is whole."""
        found = self.find(result.key)
        if found is not None:
            return found
        told("uploading", None)
        commit = patiently(lambda: self._commit(folder, result.key), self._stopped)
        return result.model_copy(update={"commit": commit})

    def _commit(self, folder: Path, key: str) -> str:
        names = [*list_files(folder), RECORD]
        with self._api() as api, self._errors("write"):
            # where another build commits while this one uploads, the hub refuses it, and it looks anew at what is there
            head = api.repo_info(self._output.repo, revision="main").sha
            listed = api.list_repo_files(self._output.repo, revision=head)
            there = [name for name in listed if matters_for_serving(name)]
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names
            ]
            operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(set(there) - set(names))]
            done = api.create_commit(
                self._output.repo, operations, commit_message=f"Built by Tuneyard: {key}", parent_commit=head
            )
            _tag(api, self._output.repo, f"tuneyard-{key}", str(done.oid))
            return str(done.oid)

    def _exists(self) -> bool:
        """Whether the repository is there: a tag that is not has the same answer."""
        with closing(self._remote("main")) as remote:
            patiently(lambda: remote.commit, self._stopped)
        return True

    def _given(self) -> Credentials:
        return given_for(self._output.credentials.name, self._output.endpoint, self._read)

    def _remote(self, revision: str) -> HubRemote:
        source = HuggingFaceSource.from_dict({**self._output.to_dict(), "revision": revision})
        return HubRemote(source, self._given())

    @contextmanager
    def _api(self) -> Iterator[HfApi]:
        """huggingface_hub's client with this repository's token and authority; this process writes to no other hub."""
        given = self._given()
        [token] = given.need("token")
        set_client_factory(_clients(given))
        # files are sent as files: the other protocol has a client of its own, without our authority and time limits
        constants.HF_HUB_DISABLE_XET = True
        endpoint = self._output.endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        yield HfApi(endpoint=endpoint.rstrip("/"), token=token)

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        repo = self._output.repo
        try:
            yield
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                text = f"the token of Secret {self._output.credentials.name} may not {verb} {repo} ({status}): use one "
                raise ArtifactError(Reason.ACCESS_DENIED, f"{text}with the right to write") from None
            if status == 404:
                text = f"the repository {repo} is not there: make it, or correct build.output.huggingFace.repo"
                raise ArtifactError(Reason.ARTIFACT_NOT_FOUND, text) from None
            raise UnreachableError(f"the hub answers {status} when asked to {verb} {repo}") from None
        except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:  # the latter two: of a file's upload
            raise UnreachableError(f"the hub cannot be asked to {verb} {repo}: {type(error).__name__}") from None


def _clients(given: Credentials) -> Callable[[], httpx2.Client]:
    private = authority_of(given)

    def make() -> httpx2.Client:
        context = httpx2.create_ssl_context(trust_env=False)
        if private is not None:
            context.load_verify_locations(cadata=private)
        timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, write=None)
        return httpx2.Client(verify=context, timeout=timeout, follow_redirects=True)

    return make


def _tag(api: HfApi, repo: str, tag: str, commit: str) -> None:
    """Let the tag name this commit, also where it names another: that was looked at, and is not whole."""
    try:
        api.create_tag(repo, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        api.delete_tag(repo, tag=tag)
        api.create_tag(repo, tag=tag, revision=commit)


def _fetched(api: HfApi, output: OutputRepository, commit: str) -> str | None:
    """The record's text at a commit."""
    from huggingface_hub.utils import get_session, hf_raise_for_status  # noqa: PLC0415 -- after the client is chosen

    url = f"{api.endpoint}/{output.repo}/resolve/{commit}/{RECORD}"
    answer = get_session().get(url, headers={"authorization": f"Bearer {api.token}"})
    if answer.status_code == 404:
        return None
    hf_raise_for_status(answer)
    return str(answer.text)
