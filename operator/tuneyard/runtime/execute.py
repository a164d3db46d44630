"""Executes plans: their actions in order, and nothing that a plan does not say.

Every write first asks whether this process still leads: one that was paused and woke up after its lease ran out must
not write what it decided before (`NotLeadingError`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tuneyard.api.reasons import Reason
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Action, Annotate, Apply, Delete, Event
from tuneyard.runtime.applied import Applied
from tuneyard.runtime.metrics import Metrics
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import Api, ApiError, Object
from tuneyard.systems.kube.events import Events, Told


class NotLeadingError(Exception):
    """Another replica leads, or nobody knows: nothing may be written."""


class RefusedError(Exception):
    """The API server will not have a child as it is planned; `problem` says so for people, without any of its data."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Executor:
    """Writes to one API server while `leads()`."""

    def __init__(self, api: Api, events: Events, applied: Applied, metrics: Metrics, leads: Callable[[], bool]) -> None:
        self._api = api
        self._events = events
        self._applied = applied
        self._metrics = metrics
        self._leads = leads

    def execute(self, actions: Iterable[Action]) -> None:
        """Run the actions in their order, up to the first that fails.

        Raises RefusedError where trying again alone does not help, else ApiError; NotLeadingError.
        """
        for action in actions:
            if not self._leads():
                raise NotLeadingError
            try:
                self._execute(action)
            except ApiError as error:
                problem = refusal(action, error)
                if problem is None:
                    raise
                raise RefusedError(problem) from error

    def write_status(self, observed: Object, status: Mapping[str, object]) -> Object:
        """Write the whole status; returns the object as stored. Raises ApiError or NotLeadingError."""
        if not self._leads():
            raise NotLeadingError
        stored = objects.apply_status(self._api, observed, status)
        self._metrics.writes.labels(observed["kind"], "status").inc()
        return stored

    def tell(self, events: Iterable[Event]) -> None:
        """Tell events; never fails."""
        for event in events:
            about = event.about
            regarding = (
                ("apiVersion", about.api_version),
                ("kind", about.kind),
                ("namespace", about.namespace),
                ("name", about.name),
                ("uid", about.uid),
            )
            self._events.tell(Told(event.type, event.reason.value, event.message, regarding))

    def _execute(self, action: Action) -> None:
        match action:
            case Apply(wanted):
                self._applied.applied(objects.apply(self._api, wanted))
                self._metrics.writes.labels(wanted["kind"], "apply").inc()
            case Annotate():
                objects.annotate(
                    self._api,
                    action.api_version,
                    action.kind,
                    action.namespace,
                    action.name,
                    uid=action.uid,
                    annotations=action.annotations,
                )
                self._metrics.writes.labels(action.kind, "annotate").inc()
            case Delete(api_version, kind_name, namespace, name, uid, version):
                objects.delete(self._api, api_version, kind_name, namespace, name, uid=uid, resource_version=version)
                self._applied.deleted(kind_name, namespace, name)
                self._metrics.writes.labels(kind_name, "delete").inc()


def refusal(action: Action, error: ApiError) -> Problem | None:
    """Why the API server refused for good (400, 403, 422) what a plan wanted; None for what may pass by itself."""
    if not isinstance(action, Apply) or error.status not in (400, 403, 422):
        return None
    kind, name = action.object["kind"], action.object["metadata"]["name"]
    words = error.reason if kind == "Secret" else error.message
    return Problem(Reason.INVALID_SPEC, f"the API server refuses {kind} {name}: {words}"[:1000])
