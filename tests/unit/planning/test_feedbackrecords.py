from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tuneyard.planning.feedbackrecords import feedback_record
from tuneyard.planning.routes import ModelRoutes, RevisionRoute

DIGEST = f"sha256:{'a' * 64}"
NOW = datetime(2026, 11, 20, 10, 0, 0, tzinfo=UTC)
ROUTES = ModelRoutes(
    model="support",
    namespace="models",
    deployment="acme-support",
    uid="u",
    generation=3,
    created=0,
    revisions=(
        RevisionRoute("v1", "pool", "engine", 99, adapter="acme-v1", digest=DIGEST),
        RevisionRoute("base", "pool", "engine", 1, digest=DIGEST),
    ),
)
CONTENTS = ROUTES.revisions[0].contents


@pytest.mark.parametrize(
    ("revision", "contents", "adapter"),
    [
        ("v1", CONTENTS, {"adapter": "acme-v1", "adapterDigest": DIGEST}),
        ("v1", "what v1 was before", {}),
        ("base", CONTENTS, {}),
        ("gone", CONTENTS, {}),
    ],
)
def test_who_answered(revision: str, contents: str, adapter: dict[str, str]) -> None:
    assert feedback_record(ROUTES, revision, contents, "r1", score=-0.5, text="no", now=NOW).to_dict() == {
        "time": "2026-11-20T10:00:00Z",
        "requestId": "r1",
        "model": "support",
        "deployment": "models/acme-support",
        "revision": revision,
        "score": -0.5,
        "text": "no",
        **adapter,
    }


def test_no_text_is_none() -> None:
    assert "text" not in feedback_record(ROUTES, "v1", CONTENTS, "r1", score=1, text="", now=NOW).to_dict()
