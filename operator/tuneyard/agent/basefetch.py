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
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.store import Held, Store

_log = logging.getLogger(__name__)


def from_network(source: Source, obtainer: Obtainer, told: Told) -> Callable[[BaseWanted], Found]:
    """How `verify` finds a base that comes over the network."""

    def find(wanted: BaseWanted) -> Found:
        held = obtainer.obtain(source, wanted.digest, told)
        _link(wanted.path, held.path)
        return Found(held.path, held.digest, held.size_bytes)

    return find


def hold_base(store: Store, link: Path) -> Held | None:
    """Keep the base that the link leads to in the cache, for as long as this process lives.

    None, with a line in the log, where it is not there any more: the engine may have read it already, and an agent
    that ended for it would only take the adapters away.
    """
    try:
        held = store.find(f"sha256:{link.resolve().parent.name}")
    except ArtifactError as error:
        _log.error("the base in the cache cannot be held: %s", error)
        return None
    if held is None:
        _log.error("the base is not in the cache any more; the pod serves until its engine restarts")
    return held


def _link(link: Path, target: Path) -> None:
    scratch = link.with_name(f".{link.name}.new")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target)
    scratch.replace(link)
