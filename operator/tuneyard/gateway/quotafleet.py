"""The gateways of an installation among themselves, where tenants have limits: who is there, and what they tell.

Rules:
- every gateway tells every other one each EVERY seconds what has changed in its own shares (planning/quotas.py), and
  who owns a tenant besides at once, when it asks for more. Both are one message, POST /v1/quotas on the port where the
  operator asks too, with the token that only gateways and operator can derive: clients cannot reach it;
- an owner's answer says what it knows of the account, so that whoever has just asked can go on in its place;
- who answers is there. Who refuses the connection has ended: the next one owns its tenants, at once. Who says nothing
  is silent: it may serve on, somewhere, with its part of the limits;
- gateways go by their address, and one finds out which is its own by the run that answers there;
- a gateway that has just begun owns nothing before it has heard what all others know.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import aiohttp
from aiohttp import web

from tuneyard.planning.limits import Kind, Limits
from tuneyard.planning.quotas import Ask, Away, Grant, Ledger, Row, owner_of

PATH = "/v1/quotas"
EVERY = 0.5
PATIENCE = 1.0
"""Seconds until a gateway counts as silent: one that is only busy must not."""
LEASE = 5.0
"""Seconds after which requests of a run that nobody hears of count as ended."""
_GONE = (errno.ECONNREFUSED, errno.ECONNRESET)

Json = dict[str, Any]
_log = logging.getLogger(__name__)


class State(Enum):
    """What is known of an address."""

    UNKNOWN = "unknown"
    HERE = "here"
    """This process itself."""
    HEARD = "heard"
    GONE = "gone"
    SILENT = "silent"


@dataclass
class _Batch:
    """What the next message to a gateway asks for."""

    asks: list[Ask] = field(default_factory=list)
    taken: bool | None = None
    """Whether it was answered; None: it has not been sent yet."""


@dataclass
class _Peer:
    """One address."""

    state: State = State.UNKNOWN
    run: str = ""
    owns: bool = False
    """It knows enough to own tenants."""
    acknowledged: int = 0
    """Up to which change it has this gateway's shares."""
    next: _Batch = field(default_factory=_Batch)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Fleet:
    """The gateways, as this process sees them."""

    def __init__(
        self,
        ledger: Ledger,
        limits: Callable[[], Mapping[str, Limits]],
        addresses: Callable[[], Awaitable[list[str] | None]],
        token: str,
        wall: Callable[[], float],
    ) -> None:
        """`limits`: of all tenants that have some; `addresses` of all gateways, `wall`: unix time."""
        self.ledger, self._limits, self._addresses, self._wall = ledger, limits, addresses, wall
        self._headers = {"Authorization": f"Bearer {token}"}
        self._peers: dict[str, _Peer] = {}
        self._heard_at: dict[str, float] = {}
        self._clock = asyncio.get_running_loop().time
        self._seq = 0
        self._session: aiohttp.ClientSession | None = None
        self.knows = False
        """Whether this gateway has heard what the others know, and so may own tenants."""

    # -- who is there ----------------------------------------------------------------------------------------------

    def away(self) -> Away:
        """How many are heard, this one among them, and who is silent."""
        peers = self._peers.items()
        silent = frozenset(p.run or address for address, p in peers if p.state is State.SILENT)
        return Away(1 + sum(p.state is State.HEARD for _, p in peers), silent)

    def owner(self, tenant: str) -> str | None:
        """The address of a tenant's owner; None: this process."""
        owning = [a for a, p in self._peers.items() if p.state is State.HEARD and p.owns]
        here = self._here
        if (self.knows and here) or not owning:
            owning.append(here)
        found = owner_of(tenant, owning)
        return None if found == here else found

    @property
    def _here(self) -> str:
        return next((a for a, p in self._peers.items() if p.state is State.HERE), "")

    @property
    def settled(self) -> bool:
        """Whether it knows its own address, and that whoever it hears may own tenants."""
        own = all(peer.owns for peer in self._peers.values() if peer.state is State.HEARD)
        return own and self.knows and (bool(self._here) or not self._peers)

    async def look(self) -> None:
        """Tell everybody what is new, hear who is there, and forget requests of those that are not."""
        found = await self._addresses()
        if found is not None:
            self._peers = {address: self._peers.get(address) or _Peer() for address in found}
        others = [address for address, peer in self._peers.items() if peer.state is not State.HERE]
        await asyncio.gather(*(self._exchange(address) for address in others))
        now = self._clock()
        for run in self.ledger.slots_of() - {self.ledger.me}:
            if now - self._heard_at.setdefault(run, now) >= LEASE:
                self.ledger.forget_slots([run])
                del self._heard_at[run]

    # -- asking ----------------------------------------------------------------------------------------------------

    async def ask(self, tenant: str, asks: Iterable[Ask]) -> None:
        """Have the tenant's owner give what is asked, if so much is left; where it has ended, the next one."""
        wanted = list(asks)
        for _ in range(len(self._peers) + 1):
            address = self.owner(tenant)
            if address is None:
                break
            if await self._exchange(address, wanted):
                return
        now, ledger = self._wall(), self.ledger
        ledger.granted(ledger.grant(ledger.me, wanted, self._limits(), self.away(), now), now)

    async def tell(self, tenant: str) -> None:
        """Tell a tenant's owner what has changed."""
        address = self.owner(tenant)
        if address is not None:
            await self._exchange(address)

    async def tell_all(self) -> None:
        """Tell everybody what has changed, before this process ends."""
        heard = [address for address, peer in self._peers.items() if peer.state is State.HEARD]
        await asyncio.gather(*(self._exchange(address) for address in heard))

    async def _exchange(self, address: str, asks: Iterable[Ask] = ()) -> bool:
        """Tell and ask one gateway; returns whether it took that. What comes while one message is on its way shares
        the next one, so that a gateway hears them in their order.
        """
        peer = self._peers.get(address)
        if peer is None:
            return False
        batch = peer.next
        batch.asks.extend(asks)
        async with peer.lock:
            if batch.taken is None:
                peer.next = _Batch()
                batch.taken = await self._send(address, peer, batch.asks)
        return batch.taken

    async def _send(self, address: str, peer: _Peer, asks: list[Ask]) -> bool:
        self._seq += 1
        ledger, run, since, changes = self.ledger, peer.run, peer.acknowledged, self.ledger.changes
        rows, everything = ledger.own_rows(since), not self.knows
        message = {
            "run": ledger.me,
            "at": self._here,
            "seq": self._seq,
            "owns": self.knows,
            "rows": rows,
            "asks": asks,
            "all": everything,
        }
        try:
            answer = await self._post(address, message)
            self._answered(peer, answer)
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
            self._lost(address, peer, error)
            return False
        if peer.state is not State.HEARD or answer["taken"] is not True:
            return False
        # one that has begun anew has heard only what was new to the one before
        peer.acknowledged = changes if since == 0 or run == peer.run else 0
        return True

    async def _post(self, address: str, message: Json) -> Json:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE))
        async with self._session.post(f"http://{address}{PATH}", json=message, headers=self._headers) as response:
            if response.status != 200:
                raise ValueError(f"it answered {response.status}")
            found: Json = await response.json()
            return found

    def _answered(self, peer: _Peer, answer: Json) -> None:
        now = self._wall()
        if answer["run"] == self.ledger.me:
            peer.state = State.HERE
            return
        self._hear(peer, str(answer["run"]), owns=bool(answer["owns"]))
        self.ledger.learn(map(_row, answer["rows"]), now)
        self.ledger.granted(
            (Grant(t, Kind(k), int(p), int(a), int(left)) for t, k, p, a, left in answer["grants"]), now
        )

    def _hear(self, peer: _Peer, run: str, *, owns: bool) -> None:
        if peer.run != run:
            peer.run, peer.acknowledged = run, 0
        peer.state, peer.owns = State.HEARD, owns
        self._heard_at[run] = self._clock()

    def _lost(self, address: str, peer: _Peer, error: Exception) -> None:
        # a connection that is kept breaks where its process ends, and only the next one is refused
        number = getattr(error, "errno", None)
        ended = number in _GONE or isinstance(error, aiohttp.ServerDisconnectedError)
        state = State.GONE if ended else State.SILENT
        if peer.state is not state:
            words = "has ended" if ended else f"says nothing ({str(error) or type(error).__name__})"
            _log.warning("quotas: the gateway at %s %s", address, words)
        peer.state = state

    # -- being asked -----------------------------------------------------------------------------------------------

    def take(self, message: Json) -> Json:
        """Answer another gateway; ValueError, KeyError or TypeError where it says nothing that makes sense."""
        now, run, ledger = self._wall(), str(message["run"]), self.ledger
        rows, asks = [_row(row) for row in message["rows"]], [_ask(ask) for ask in message["asks"]]
        if run == ledger.me:
            return {"run": run, "taken": False, "owns": self.knows, "rows": [], "grants": []}
        taken = ledger.hear(run, int(message["seq"]), rows, now)
        self._heard_at[run] = self._clock()
        peer = self._peers.get(str(message["at"]))
        if peer is not None and taken:  # who has just begun says so by himself
            self._hear(peer, run, owns=bool(message["owns"]))
        grants = ledger.grant(run, asks, self._limits(), self.away(), now) if taken else []
        told = ledger.rows() if message["all"] else ledger.rows_of(asks, now)
        return {"run": ledger.me, "taken": taken, "owns": self.knows, "rows": told, "grants": grants}

    async def close(self) -> None:
        """End the connections."""
        if self._session is not None:
            await self._session.close()


def _row(told: Any) -> Row:
    run, tenant, kind, period, used, allowed = told
    return Row(str(run), str(tenant), Kind(kind), int(period), int(used), int(allowed))


def _ask(told: Any) -> Ask:
    tenant, kind, period, need, want = told
    return Ask(str(tenant), Kind(kind), int(period), int(need), int(want))


def join(fleet: Fleet, app: web.Application, trusted: Callable[[web.Request], bool]) -> None:
    """Answer POST /v1/quotas."""

    async def told(request: web.Request) -> web.Response:
        if not trusted(request):
            return web.json_response({"error": "the bearer token is missing or wrong"}, status=401)
        try:
            return web.json_response(fleet.take(await request.json()))
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": "this is no message of a gateway"}, status=400)

    app.router.add_post(PATH, told)
