"""What answers a revision's requests, as one hash that operator and gateways compute from the same objects.

An answer is known by it, not by its revision's name alone: a name may come back with other contents while answers of
the former ones are still on their way, or are rated. Other than contents.content_hash, which goes by what specs say, it
goes by the bytes as far as they are known: it is what a gateway asks for, and in the name of the cluster that answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tuneyard.api import names
from tuneyard.api.drill import Fault
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.planning.endpoints import engine_name
from tuneyard.planning.revisions import RevisionState


def served_contents(
    pool: str,
    engine: str | None,
    base_digest: str | None,
    fault: Fault | None,
    prompt: SystemPrompt | None = None,
) -> str:
    """Hash of a pool, what its engines are asked for (an adapter's digest is in that name), their base, and what
    happens on the way: a fault, a system prompt. Of an external revision: no pool, and the URL for the base.
    """
    spoiled = [] if fault is None else [json.dumps(fault.mark, sort_keys=True)]
    prompted = [] if prompt is None else [json.dumps(prompt.identity)]
    return names.short_hash(pool, engine or "", base_digest or "", *spoiled, *prompted)


def served_of(states: Iterable[RevisionState], fault: Fault | None) -> dict[str, str]:
    """By revision; `fault` is that of the deployment's rehearsal."""
    return {
        s.revision.name: served_contents(
            s.pool,
            engine_name(s.revision, s.adapter),
            s.revision.external.url if s.revision.external else s.base.pinned_digest if s.base else None,
            fault if fault and fault.revision == s.revision.name else None,
            s.adapter.spec.system_prompt if s.adapter else s.revision.system_prompt_of_its_own,
        )
        for s in states
    }
