"""The manifest of an artifact in the cache: what it consists of, and when its bytes were last known to be right.

Versions of Tuneyard share caches, so the format outlives them: a reader keeps what it does not know, and refuses
another major version instead of guessing. The list of files is proven by the digest that the artifact is named by;
`checked` is only an observation: a file whose stamp is another one is hashed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tuneyard.api.digests import FileDigest, artifact_digest
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest
from tuneyard.systems.artifacts.storefolders import Stamp, checked

MANIFEST = "manifest.json"
MOST_MANIFEST = 64 << 20
_VERSION = "1.0"


class ManifestError(ValueError):
    """It is no manifest, or not of this artifact."""


@dataclass(frozen=True)
class Manifest:
    """What an artifact in the cache consists of."""

    digest: str
    size_bytes: int
    files: tuple[FileDigest, ...]
    made_at: float
    """Seconds since 1970."""
    hashed_at: float
    """When all of its bytes were hashed last, at least so long ago."""
    checked: Mapping[str, Stamp] = field(default_factory=dict)
    """By path: the stamp of the file that had the right bytes."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """What a newer version wrote."""

    def rechecked(self, stamps: Mapping[str, Stamp], hashed_at: float) -> Manifest:
        """The manifest after every file was found right; `hashed_at`: when that was begun."""
        return replace(self, checked=dict(stamps), hashed_at=hashed_at)

    def distrusted(self) -> Manifest:
        """The manifest of files that have to be hashed before anybody uses them."""
        return replace(self, checked={})


def manifest_of(found: FolderDigest, stamps: Mapping[str, Stamp], made_at: float) -> Manifest:
    """The manifest of files that were just fetched; ArtifactError where they are not what is said of them."""
    for file in found.files:
        checked(file.path)
    if artifact_digest(found.files) != found.digest or {f.path: f.size for f in found.files} != {
        path: stamp.size for path, stamp in stamps.items()
    }:
        raise ArtifactError(
            Reason.ARTIFACT_UNREADABLE, f"what was fetched of {found.digest} is not complete: it is fetched again"
        )
    return Manifest(found.digest, found.size_bytes, found.files, made_at, made_at, dict(stamps))


def read_manifest(text: str, digest: str) -> Manifest:
    """The manifest of the artifact `digest`; ManifestError, or ArtifactError (CacheUnusable) for a newer format."""
    try:
        raw = json.loads(text)
        major = str(raw.pop("version")).partition(".")[0]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(f"its manifest cannot be read: {error!r}") from error
    if major != _VERSION.partition(".")[0]:
        raise ArtifactError(
            Reason.CACHE_UNUSABLE,
            f"{digest} lies in the cache in format {major[:20]}, which this version cannot read: upgrade Tuneyard, or "
            "use another volume for the cache",
        )
    try:
        return _parsed(raw, digest)
    except (ArtifactError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"its manifest cannot be read: {error!r}") from error


def write_manifest(manifest: Manifest) -> str:
    """The manifest as text."""
    files = []
    for file in manifest.files:
        entry: dict[str, Any] = {"path": file.path, "size": file.size, "sha256": file.sha256}
        if stamp := manifest.checked.get(file.path):
            entry["checked"] = {"size": stamp.size, "mtimeNs": stamp.mtime_ns, "inode": stamp.inode}
        files.append(entry)
    known = {
        "version": _VERSION,
        "digest": manifest.digest,
        "sizeBytes": manifest.size_bytes,
        "madeAt": manifest.made_at,
        "hashedAt": manifest.hashed_at,
        "files": files,
    }
    return json.dumps({**manifest.unknown, **known}, separators=(",", ":"))


def _parsed(raw: dict[str, Any], digest: str) -> Manifest:
    files, stamps = [], {}
    for entry in raw.pop("files"):
        file = FileDigest(checked(entry["path"]), int(entry["size"]), str(entry["sha256"]))
        files.append(file)
        if stamp := entry.get("checked"):
            stamps[file.path] = Stamp(int(stamp["size"]), int(stamp["mtimeNs"]), int(stamp["inode"]))
    named, size, made_at = raw.pop("digest"), int(raw.pop("sizeBytes")), float(raw.pop("madeAt"))
    hashed_at = float(raw.pop("hashedAt", made_at))  # older versions did not write it
    if named != digest or artifact_digest(files) != digest:
        raise ValueError("it is of another artifact")
    return Manifest(digest, size, tuple(files), made_at, hashed_at, stamps, raw)
