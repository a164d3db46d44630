"""From feedback on an answer to the record of it that leaves the cluster. Pure."""

from __future__ import annotations

from datetime import datetime

from tuneyard.api.feedback import FeedbackRecord
from tuneyard.planning.routes import ModelRoutes
from tuneyard.planning.timestamps import rfc3339


def feedback_record(
    routes: ModelRoutes,
    revision: str,
    contents: str,
    request_id: str,
    *,
    score: float,
    text: str | None,
    now: datetime,
) -> FeedbackRecord:
    """The record of feedback on an answer of a revision; raises ValidationError where score or text are out of bounds.

    A revision that is not routed any more, or has other contents than those that answered, keeps its name and has no
    adapter in the record.
    """
    route = next((r for r in routes.revisions if r.name == revision and r.contents == contents), None)
    adapter = route.adapter if route is not None else None
    return FeedbackRecord(
        time=rfc3339(now),
        request_id=request_id,
        model=routes.model,
        deployment=f"{routes.namespace}/{routes.deployment}",
        revision=revision,
        adapter=adapter,
        adapter_digest=route.digest if route is not None and adapter is not None else None,
        score=score,
        text=text or None,
    )
