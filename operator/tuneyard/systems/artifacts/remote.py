"""Artifacts that come over the network: what every kind of source offers to those who list, hash or fetch it.

Rules:
- A secret is in Credentials and nowhere else: identities, errors and fingerprints are made of names.
- What is read is what was listed: a remote refuses bytes of another version of a file than the listed one.
- Paths are input of strangers. One that could leave a folder, or be two things at once, refuses the whole artifact.
- Errors are ArtifactError with a Reason. UnreachableError, the one kind that may pass, is for whoever asks to repeat:
  remotes repeat nothing themselves, so that waiting is counted, and ended, in one place.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tuneyard.api import names
from tuneyard.api.digests import PICKLES, matters_for_serving
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import Source
from tuneyard.systems.artifacts.folder import ArtifactError

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""Without a byte for so long a connection counts as broken."""
CA = "ca.crt"
"""The key of a Secret that holds a private authority's certificates."""
MOST_FILES = 100_000
"""A listing is held in memory, and a bucket may have millions of objects."""
MOST_PAGES = 2000
"""Of a listing: MOST_FILES at 50 a page. A page need not hold a file that counts, and may always name another one."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a remote artifact, as listed."""

    path: str
    size: int
    sha256: str | None
    """Hex, where the source knows it of the whole file."""
    version: str
    """What changes when the bytes do: a Git object, an ETag."""
    git_blob: str | None = None
    """The file's Git object id, which is a checksum of its bytes, where the source has no SHA-256 of it."""


class UnreachableError(ArtifactError):
    """The source does not answer, or broke off: worth repeating, `after` so many seconds where it said so."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(Reason.SOURCE_UNREACHABLE, message)
        self.after = after


@dataclass(frozen=True)
class Credentials:
    """What a Secret (or an environment) holds, and how to speak of it; never shown."""

    origin: str
    """For messages: `Secret hub-token`, `the environment`."""
    data: Mapping[str, str] = field(repr=False)
    endpoints: frozenset[str] = frozenset()
    """Servers, besides a source's own, that a token in it may be sent to."""

    @classmethod
    def of_secret(cls, name: str, data: Mapping[str, bytes]) -> Credentials:
        """The decoded data of a Secret; raises ArtifactError where a value is no text."""
        try:
            return cls(f"Secret {name}", {key: value.decode().strip() for key, value in data.items()})
        except UnicodeDecodeError:  # the error would show the value
            raise ArtifactError(
                Reason.CREDENTIALS_MISSING, f"Secret {name} has a value that is no text: make it again from its files"
            ) from None

    def need(self, *keys: str) -> list[str]:
        """The values of these keys; raises ArtifactError that names all which are missing, empty or no header's."""
        missing = [key for key in keys if not self.data.get(key)]
        if missing:
            raise ArtifactError(
                Reason.CREDENTIALS_MISSING, f"{self.origin} lacks {' and '.join(missing)}: add what is missing"
            )
        # HTTP clients refuse these too, in words that show the value
        unfit = [key for key in keys if not (self.data[key].isascii() and self.data[key].isprintable())]
        if unfit:
            raise ArtifactError(
                Reason.CREDENTIALS_MISSING,
                f"{' and '.join(unfit)} of {self.origin} holds a line break or what else no header can: put the bare "
                "value there",
            )
        return [self.data[key] for key in keys]


def given_for(name: str, endpoint: str | None, read: Callable[[str], Credentials]) -> Credentials:
    """The credentials in a Secret, if a token in it may go to that endpoint of a hub; raises ArtifactError.

    A hub is sent the token itself, and who names the Secret names the server too. `endpoint` None: the hub's own.
    """
    given = read(name)
    if endpoint is not None and endpoint.rstrip("/") not in given.endpoints:
        raise ArtifactError(
            Reason.CREDENTIALS_MISSING,
            f"{given.origin} is not meant for {endpoint}: whoever owns it says so by kubectl annotate secret "
            f"{name} {names.ANNOTATION_ENDPOINTS}={endpoint.rstrip('/')}",
        )
    return given


class Remote(Protocol):
    """A remote artifact. Calls come from several threads at once."""

    @property
    def identity(self) -> str:
        """Who asks, for messages: `anonymous`, `the token of Secret hub-token`. Never a secret."""

    @property
    def what(self) -> str:
        """The place, for messages: `acme/support at main`, `s3://models/support/`."""

    @property
    def commit(self) -> str | None:
        """What a hub's revision is, asked for once; None for sources without commits. Raises ArtifactError."""

    def fingerprint(self) -> str:
        """Stable text of what exactly is asked for; together with the listing it says which bytes come."""

    def files(self) -> list[RemoteFile]:
        """The files that matter for serving, sorted by path, at least one; raises ArtifactError."""

    def read(self, file: RemoteFile, begin: int, end: int) -> Generator[bytes, None, None]:
        """The bytes from `begin` up to `end`, in pieces; raises ArtifactError, also when the file has changed."""

    def close(self) -> None:
        """Give connections back; reads that still run end with an error."""


def remote_of(source: Source, credentials: Credentials | None) -> Remote:
    """The remote of a source; raises ArtifactError where the source names a Secret and `credentials` is None.

    Nothing is asked over the network yet.
    """
    if source.credentials is not None and credentials is None:
        raise ArtifactError(
            Reason.CREDENTIALS_MISSING,
            f"Secret {source.credentials} does not exist in this namespace: create it, no restart is needed",
        )
    if source.hugging_face is not None:
        from tuneyard.systems.artifacts.hub import HubRemote  # noqa: PLC0415 -- it needs what is above

        return HubRemote(source.hugging_face, credentials)
    if source.s3 is not None:
        from tuneyard.systems.artifacts.s3 import S3Remote  # noqa: PLC0415 -- the same, and no hub takes boto3

        return S3Remote(source.s3, credentials)
    raise ValueError("a volume is not remote")


def listing_key(remote: Remote, files: Iterable[RemoteFile]) -> str:
    """A name (32 hex digits) for exactly these versions of these files of this source."""
    state = hashlib.sha256(remote.fingerprint().encode())
    for file in sorted(files, key=lambda f: f.path):
        state.update(f"\0{file.path}\0{file.size}\0{file.version}".encode())
    return state.hexdigest()[:32]


def listed(what: str, found: Iterable[RemoteFile], pickle: str | None = None) -> list[RemoteFile]:
    """A listing as `Remote.files` returns it: only what matters, sorted, safe. `what` names it in errors.

    `pickle` is one that lies beside the files, where who lists has left it out already.
    """
    files: list[RemoteFile] = []
    for file in found:
        if not matters_for_serving(file.path):
            pickle = pickle or pickle_beside(file.path)
            continue
        if not _is_safe(file.path):
            raise ArtifactError(
                Reason.UNSAFE_PATH, f"{what} holds {file.path!r}, which is no path inside a folder: rename or remove it"
            )
        files.append(file)
        if len(files) > MOST_FILES:
            raise too_many(what)
    if pickle is not None and not any(_is_weights(file.path) for file in files):
        raise ArtifactError(
            Reason.NOT_SAFETENSORS,
            f"{what} holds no weights but {pickle}, which is a pickle and can run code when it is read: save the model "
            "or adapter with safe_serialization=True",
        )
    if not files:
        raise ArtifactError(Reason.ARTIFACT_NOT_FOUND, f"{what} holds no files: correct the source, or copy them there")
    _refuse_two_at_one_path(what, {file.path for file in files}, len(files))
    return sorted(files, key=lambda f: f.path)


def pickle_beside(path: str) -> str | None:
    """The path, if it is of a pickle in the artifact's own folder; what lies deeper is of trainers and checkpoints."""
    return path if path.endswith(PICKLES) and "/" not in path else None


def too_many(what: str) -> ArtifactError:
    """The error of a listing that is longer than any artifact's."""
    return ArtifactError(
        Reason.ARTIFACT_UNREADABLE, f"{what} holds more than {MOST_FILES} files: name the artifact's own folder"
    )


def too_many_pages(what: str) -> ArtifactError:
    """The error of a listing that goes on and on."""
    return ArtifactError(
        Reason.ARTIFACT_UNREADABLE,
        f"the listing of {what} has more than {MOST_PAGES} pages: name the artifact's own folder or repository, or ask "
        "another server if this one repeats itself",
    )


def changed(file: RemoteFile) -> ArtifactError:
    """The error of a file that is no longer what was listed."""
    return ArtifactError(
        Reason.ARTIFACT_UNREADABLE,
        f"{file.path} has changed since it was listed: upload changed files under a new prefix or commit",
    )


def authority_of(credentials: Credentials | None) -> str | None:
    """The certificates of a private authority in PEM form, None for none; raises ArtifactError if they are not."""
    if credentials is None or CA not in credentials.data:
        return None
    try:
        ssl.create_default_context(cadata=credentials.data[CA])
    except (ssl.SSLError, ValueError):
        text = f"{CA} of {credentials.origin} is no certificate in PEM form: put the authority's file there"
        raise ArtifactError(Reason.CREDENTIALS_MISSING, text) from None
    return credentials.data[CA] + "\n"


def _is_weights(path: str) -> bool:
    return path.endswith((".safetensors", ".gguf")) and "/" not in path


def _is_safe(path: str) -> bool:
    parts = path.split("/")
    return not any(
        part in ("", ".", "..") or len(part.encode(errors="replace")) > 255 or not part.isprintable() or "\\" in part
        for part in parts
    )


def _refuse_two_at_one_path(what: str, paths: set[str], count: int) -> None:
    """A name that is both a file and a folder (S3 allows it), or a file twice, cannot be written."""
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder:
            if folder in paths:
                raise ArtifactError(Reason.UNSAFE_PATH, f"{what} has {folder} as a file and as a folder: remove one")
            folder = folder.rpartition("/")[0]
    if len(paths) != count:
        raise ArtifactError(Reason.UNSAFE_PATH, f"{what} lists a file twice: list it again, or report it to the source")
