"""Times as they stand in Kubernetes objects: RFC 3339, UTC, whole seconds. `now` is always an argument."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def rfc3339(moment: datetime) -> str:
    """An aware moment as text, for example 2026-01-31T12:00:00Z; fractions of a second are cut."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parsed_time(text: str | None) -> datetime | None:
    """The moment that an RFC 3339 text names, or None where it names none."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def remaining(since: datetime, grace: float, now: datetime) -> float:
    """Seconds of the grace period that are left; 0 or less: it is over. A start in the future counts as now."""
    return (min(since, now) + timedelta(seconds=grace) - now).total_seconds()
