"""Keys and policies of tenants, from the API server to Envoy. Exists only where clients need keys, or tokens.

Rules:
- Secrets and ConfigMaps with the label tuneyard.dev/tenant are watched in the one namespace that is theirs, and no
  others: gateways may read all that is in it, and so nothing else should be;
- what a change touches goes to Envoy in the next turn of the event loop, together: a burst of Secrets costs one push;
- tokens of gates are keys too, of a tenant that nobody can be: a gate asks its model with auth on as without;
- nothing is sent before everything is known, from lists or from the snapshot: a key that is only not known yet would be
  taken from an Envoy that runs;
- the snapshot beside the world's holds keys, on the pod's memory-backed volume and for this user alone: without it an
  Envoy that starts while the API server is away would refuse everybody;
- a problem is logged when it comes and when it goes, by names of objects, and counted; no key is in a log or a metric.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from tuneyard.api.names import LABEL_TENANT
from tuneyard.gateway import snapshot
from tuneyard.gateway.metrics import Metrics
from tuneyard.gateway.publisher import Publisher
from tuneyard.gateway.watches import STALE
from tuneyard.planning.limits import Limits
from tuneyard.planning.routes import ModelRoutes
from tuneyard.planning.tenants import Found, Kind, Problem, Tenants
from tuneyard.systems.envoy.tenancy import caller_text, gate_caller, shard_of, shard_resources
from tuneyard.systems.envoy.tokens import Tokens
from tuneyard.systems.envoy.translate import GateToken
from tuneyard.systems.kube.client import Api, Object
from tuneyard.systems.kube.informers import Informer, on_loop
from tuneyard.systems.kube.watching import Change

_PLURALS: dict[Kind, str] = {"secret": "secrets", "policy": "configmaps"}
_METADATA = ("name", "namespace", "creationTimestamp")
_LOOK = 0.02
_TELL = 0.1
"""Seconds after a change until what is wrong is looked for."""

_log = logging.getLogger(__name__)


class TenantMetrics:
    """What Prometheus reads of tenants."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tenants = Gauge("tuneyard_gateway_tenants", "Tenants with keys or a policy.", registry=registry)
        self.keys = Gauge("tuneyard_gateway_tenant_keys", "Keys that stand for a tenant.", registry=registry)
        self.problems = Gauge(
            "tuneyard_gateway_tenant_problems", "What is wrong with tenants, by kind.", ["problem"], registry=registry
        )


class KeyTables:
    """Which tables Envoy has: what each key says, and which tables are to be sent."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, str]] = {}
        self._changed: set[str] = set()

    def set(self, key: str, text: str | None) -> None:
        """What Envoy is to be told of a key; None: nothing."""
        shard = shard_of(key)
        table = self._tables.setdefault(shard, {})
        if table.get(key) == text:
            return
        self._changed.add(shard)
        if text is None:
            del table[key]
        else:
            table[key] = text

    def changed(self) -> dict[str, dict[str, str]]:
        """The tables that are others since the last call; empty ones are to be withdrawn."""
        changed, self._changed = self._changed, set()
        return {shard: self._tables[shard] for shard in sorted(changed)}


class Tenancy:
    """Keeps Envoy's tables of keys at what Secrets and ConfigMaps say."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        publisher: Publisher,
        gate_token: GateToken,
        *,
        path: Path,
        metrics: Metrics,
        tokens: Tokens | None = None,
    ) -> None:
        """`namespace`: the tenants'; `path`: of the snapshot. Nothing is started yet; needs a running loop.

        `tokens`: those with which tenants may come; where keys are not taken beside them, no Secret is asked for.
        """
        self._publisher, self._gate_token, self._path = publisher, gate_token, path
        self._loop = asyncio.get_running_loop()
        self._by_token = tokens is not None
        self._tenants = Tenants(tokens=self._by_token)
        self._tables = KeyTables()
        self._touched: set[str] = set()
        self._gates: dict[str, tuple[str, str]] = {}
        """By model: the token of its gates, and what it stands for."""
        self._lines: dict[tuple[Kind, str], str] = {}
        self._problems: set[Found] = set()
        self._limited: dict[str, Limits] | None = None
        self._scheduled = False
        self._telling: asyncio.TimerHandle | None = None
        self._metrics = TenantMetrics(metrics.registry)
        self._writer = snapshot.SnapshotWriter(path, lambda: list(self._lines.values()), metrics)
        self.completed = asyncio.Event()
        """Set once both lists have come and are known here."""
        self._following: asyncio.Task[None] | None = None
        self._informers: dict[Kind, Informer] = {
            kind: Informer(
                api,
                f"/api/v1/namespaces/{namespace}/{plural}",
                on_loop(self._loop, functools.partial(self._change, kind)),
                label_selector=LABEL_TENANT,
                trim=_trim,
            )
            for kind, plural in _PLURALS.items()
            if kind == "policy" or tokens is None or tokens.keys_too
        }
        for kind, informer in self._informers.items():
            metrics.age(f"tenant-{_PLURALS[kind]}", informer.age)
        publisher.before_publish = self._flush

    def start(self) -> None:
        """Begin to watch, and to keep a snapshot as soon as there is something to keep."""
        for informer in self._informers.values():
            informer.start()
        self._following = self._loop.create_task(self._follow())

    async def stop(self) -> None:
        """End the watches."""
        for running in (self._following, self._telling):
            if running is not None:
                running.cancel()
        await asyncio.gather(*(asyncio.to_thread(i.stop) for i in self._informers.values()))

    def alive(self) -> bool:
        """False when one watch has been silent for too long although the other is not: a restart helps.

        Not of one that has never listed: a process that may not read one of the kinds would be restarted for ever.
        """
        ages = [informer.age() for informer in self._informers.values() if informer.synced]
        return not ages or max(ages) < STALE or min(ages) > STALE / 3

    def restore(self) -> bool:
        """Take what the process before knew; returns whether there was anything."""
        lines = snapshot.read(self._path)
        if lines is None:
            return False
        try:
            for line in lines:
                told = json.loads(line)
                if told["kind"] in self._informers:
                    self._put(told["kind"], told["object"])
        except (ValueError, KeyError, TypeError):
            # what is wrong would have to be said without saying what is in it
            _log.error("the snapshot of tenants cannot be read and is left aside")
            self._tenants, self._lines = Tenants(tokens=self._by_token), {}
            return False
        self._mark(())
        return True

    def limited(self) -> dict[str, Limits]:
        """The tenants that have limits, and theirs."""
        if self._limited is None:
            self._limited = self._tenants.limited()
        return self._limited

    # -- changes -------------------------------------------------------------------------------------------------

    def routed(self, model: str, routes: ModelRoutes | None) -> None:
        """A model's routes are others: it may have gates now, or none any more."""
        gated = routes is not None and routes.gated
        token = self._gate_token(routes.namespace, routes.deployment) if routes is not None and gated else None
        before = self._gates.pop(model, None)
        if before is not None:
            self._touched.add(before[0])
        if token is not None:
            self._gates[model] = (token, gate_caller(model))
            self._touched.add(token)

    async def _follow(self) -> None:
        """Take the first lists as they come."""
        waited = dict(self._informers)
        while waited:
            synced = [kind for kind, informer in waited.items() if informer.synced]
            # what the list told is in the loop's queue when `synced` is seen, and here a look later
            await asyncio.sleep(_LOOK)
            for kind in synced:
                listed = {item["metadata"]["name"] for item in waited.pop(kind).items()}
                for name in [name for one, name in self._lines if one == kind and name not in listed]:
                    del self._lines[kind, name]
                self._mark(self._tenants.forget_others(kind, listed))
        self.completed.set()
        # not before: half of it would be worth less than nothing to the process that comes after
        self._mark(())
        await self._writer.run()

    def _change(self, kind: Kind, change: Change, item: Object) -> None:
        if change != "DELETED":
            self._mark(self._put(kind, item))
            return
        name = item["metadata"]["name"]
        self._lines.pop((kind, name), None)
        self._mark(self._tenants.remove(kind, name))

    def _put(self, kind: Kind, item: Object) -> set[str]:
        name, touched = item["metadata"]["name"], self._tenants.put(kind, item)
        if kind == "secret" or self._tenants.readable(kind, name):
            self._lines[kind, name] = _line(kind, item)
        elif not self._tenants.holds(kind, name):
            self._lines.pop((kind, name), None)
        self._touched |= touched
        return touched

    def _mark(self, touched: Iterable[str]) -> None:
        self._limited = None
        self._touched.update(touched)
        self._writer.mark()
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._push)

    def _push(self) -> None:
        self._scheduled = False
        if self._publisher.opened:
            self._flush()
            self._publisher.ads.publish()
        if self._telling is None:
            # a policy that is applied a moment after its keys was never missing, and no change waits for log lines
            self._telling = self._loop.call_later(_TELL, self._tell)

    def _flush(self) -> None:
        """Give Envoy's server the tables that have changed; whoever calls publishes them."""
        if not self._touched:
            return
        touched, self._touched = self._touched, set()
        gates = dict(self._gates.values())
        for key in touched:
            caller = self._tenants.caller(key)
            self._tables.set(key, gates.get(key) or (caller_text(caller) if caller else None))
        for shard, callers in self._tables.changed().items():
            if callers:
                self._publisher.ads.put(shard, shard_resources(shard, callers))
            else:
                self._publisher.ads.drop(shard)

    # -- what is told --------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Log what is wrong and was not, and the other way round; count it. Of half a world nothing is said."""
        self._telling = None
        self._metrics.tenants.set(len(self._tenants.names()))
        self._metrics.keys.set(self._tenants.keys)
        if not self.completed.is_set():
            return
        problems = self._tenants.problems()
        found = set(problems)
        for one in sorted(found - self._problems):
            _log.warning("tenants: %s: %s%s", one.problem, _of(one), one.words)
        for one in sorted(self._problems - found):
            _log.info("tenants: not any more: %s: %s%s", one.problem, _of(one), one.words)
        self._problems = found
        for problem in Problem:
            self._metrics.problems.labels(problem).set(sum(one.problem == problem for one in problems))


def _of(one: Found) -> str:
    return f"tenant {one.tenant}: " if one.tenant else ""


def _trim(item: Object) -> None:
    """Annotations may hold a Secret's data once more (kubectl's last-applied-configuration)."""
    item["metadata"].pop("annotations", None)


def _line(kind: Kind, raw: Object) -> str:
    """What of an object is worth keeping, as one line."""
    metadata = raw["metadata"]
    kept = {f: metadata[f] for f in _METADATA if f in metadata}
    kept["labels"] = {LABEL_TENANT: (metadata.get("labels") or {}).get(LABEL_TENANT, "")}
    return json.dumps({"kind": kind, "object": {"metadata": kept, "data": raw.get("data") or {}}})
