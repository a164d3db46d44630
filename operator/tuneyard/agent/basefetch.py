"""The base of a pod over the network: into the cache, and under the path that the engine is told.

The path is a link, because the folder in the cache is named after the digest, which may be known only now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tuneyard.agent.obtaining import Obtainer, Told
from tuneyard.agent.verify import BaseWanted, Found
from tuneyard.api.sources import Source
from tuneyard.systems.artifacts.download import FetchStopped
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.store import Held

_log = logging.getLogger(__name__)


def from_network(source: Source, obtainer: Obtainer, told: Told) -> Callable[[BaseWanted], Found]:
    """How `verify` finds a base that comes over the network."""

    def find(wanted: BaseWanted) -> Found:
        held = obtainer.obtain(source, wanted.digest, told)
        _link(wanted.path, held.path)
        return Found(held.path, held.digest, held.size_bytes)

    return find


def hold_base(obtainer: Obtainer, source: Source | None, link: Path) -> Held | None:
    """Keep the base that the link leads to in the cache, for as long as this process lives.

    Between the process that fetched it and this one, nobody held it: where it has gone since (other pods needed the
    room, or its files were damaged) it is fetched again, because an init container does not run again. Otherwise the
    pod would never come back. None, with a line in the log, where that fails.
    """
    digest = f"sha256:{link.resolve().parent.name}"
    try:
        held = obtainer.store.find(digest)
        if held is None and source is not None:
            _log.error("the base is not in the cache any more and is fetched again")
            held = obtainer.obtain(source, digest, lambda _: None)
    except (ArtifactError, FetchStopped) as error:
        _log.error("the base in the cache cannot be held: %s", error)
        return None
    if held is None:
        _log.error("the base is not in the cache any more")
    return held


def _link(link: Path, target: Path) -> None:
    scratch = link.with_name(f".{link.name}.new")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target)
    scratch.replace(link)
