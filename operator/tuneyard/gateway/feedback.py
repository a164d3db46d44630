"""What users thought of answers: POST /v1/feedback, attached to the revision that answered.

Rules:
- an answer is known by its x-request-id, at the gateway process that it passed, for KEPT_SECONDS and as long as it is
  one of its last KEPT answers; ids that are too long to be anybody's are not kept;
- any gateway takes feedback: one that does not know an answer asks the others, over the port where the operator asks
  too. So nothing about the answer stands in the id: a client can forge none, and rates an answer once;
- to ask all of them costs something and needs no key, so that only so much feedback does it at a time (MOST_ASKING);
  beyond that, and where a gateway that may know the answer could not be asked, it is 503: ask again;
- what a process has forgotten by ending cannot be rated any more: 404, once its address is no longer known;
- Envoy tells of an answer a moment after it has ended (answers.py): who is that quick waits for PATIENCE;
- it is the revision's as long as that has the contents that answered; afterwards it is taken, and counts for nothing;
- where clients need keys, a tenant rates answers that it got, and no others: they are as unknown to it as none. Ids are
  its own too: another tenant's request with the same one takes nothing away;
- a score below 0 is bad. Requests that named their revision are taken and not judged: they are no random sample;
- the text is kept by nobody here: it leaves the cluster with the record (feedbackexport.py), where the chart says so.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum

import aiohttp
from aiohttp import web

from tuneyard.systems.envoy.answers import Answer, Outcome
from tuneyard.systems.envoy.bootstrap import ASKING_TENANT_HEADER
from tuneyard.systems.envoy.documents import error_text

KEPT = 100_000
KEPT_SECONDS = 3600.0
PATIENCE = 0.4
"""Seconds; longer than Envoy keeps an entry to itself."""
MAX_ID, MAX_TEXT = 200, 4096
MOST_ASKING = 64
"""How much feedback may at one time wait for Envoy or for the other gateways."""
RETRY_AFTER = "5"
"""Seconds; what Envoy says too where nothing takes a request."""
PEER_SECONDS = 1.5
ADDRESS_SECONDS = 3.0
"""For so long the other gateways' addresses hold; less than a cluster's DNS keeps them for itself."""
MOST_CONNECTIONS, MOST_CONNECTIONS_EACH = 64, 8
"""To the other gateways; one that hangs holds up the others by no more than its own."""

_log = logging.getLogger(__name__)


class Taken(IntEnum):
    """What became of feedback, as HTTP says it."""

    ACCEPTED = 202
    UNKNOWN = 404
    REPEATED = 409
    UNAVAILABLE = 503
    """Nobody who was asked knows it, and not everybody could be."""


@dataclass(frozen=True)
class Given:
    """One user's word."""

    request_id: str
    score: float
    text: str = field(default="", repr=False)
    tenant: str = ""

    @property
    def bad(self) -> bool:
        """Whether it counts against the revision."""
        return self.score < 0


Ask = Callable[[Given], Awaitable[Taken]]
"""What the other gateways say."""


def read(body: bytes) -> Given:
    """The feedback that a body holds; ValueError says what is wrong with it."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("The body is not valid JSON.") from None
    if not isinstance(said, dict):
        raise ValueError("The body must be a JSON object with request_id and score.")
    request_id, score, text = said.get("request_id"), said.get("score"), said.get("text", "")
    if not isinstance(request_id, str) or not request_id:
        raise ValueError("request_id must be the x-request-id of an answer.")
    if isinstance(score, bool) or not isinstance(score, int | float) or not -1 <= score <= 1:
        raise ValueError("score must be a number from -1 to 1.")
    if not isinstance(text, str) or len(text.encode()) > MAX_TEXT:
        raise ValueError(f"text must be a string of at most {MAX_TEXT} bytes.")
    return Given(request_id, float(score), text)


class Feedback:
    """The answers of one gateway process that may be rated."""

    def __init__(
        self, clock: Callable[[], float], rated: Callable[[Answer, Given], None], ask: Ask, *, kept: int = KEPT
    ) -> None:
        """`rated` gets an answer and what was said of it; `ask`: the other gateways."""
        self._clock, self._rated, self._ask, self._kept = clock, rated, ask, kept
        # a plain dict looks for its oldest entry past the places of all that went before it
        self._answers: OrderedDict[tuple[str, str], tuple[float, Answer | None]] = OrderedDict()
        """By tenant and request id, the oldest first: when it ended, and what it was; None: it has been rated."""
        self._asking = 0

    def answered(self, answers: Iterable[Answer]) -> None:
        """Requests have ended."""
        now = self._clock()
        for answer in answers:
            if answer.outcome in (Outcome.REFUSED, Outcome.CLIENT_ERROR) or not 0 < len(answer.request_id) <= MAX_ID:
                continue
            known = answer.tenant, answer.request_id
            self._answers.pop(known, None)
            # no more of it than a rating needs: there are many
            rest = Answer(
                answer.deployment, answer.revision, answer.outcome, 0.0, answer.prompt_tokens, answer.chosen,
                contents=answer.contents, tenant=answer.tenant,
            )  # fmt: skip
            self._answers[known] = (now, rest)
            if len(self._answers) > self._kept:
                self._answers.popitem(last=False)

    def take(self, given: Given) -> Taken:
        """Attach it to an answer of this process."""
        known = given.tenant, given.request_id
        ended, answer = self._answers.get(known, (-math.inf, None))
        if self._clock() - ended > KEPT_SECONDS:
            return Taken.UNKNOWN
        if answer is None:
            return Taken.REPEATED
        self._answers[known] = (ended, None)
        self._rated(answer, given)
        return Taken.ACCEPTED

    async def take_anywhere(self, given: Given) -> Taken:
        """Attach it to an answer of whichever gateway."""
        taken = self.take(given)
        if taken is not Taken.UNKNOWN:
            return taken
        if self._asking >= MOST_ASKING:
            return Taken.UNAVAILABLE
        self._asking += 1
        try:
            await asyncio.sleep(PATIENCE)
            taken = self.take(given)
            return taken if taken is not Taken.UNKNOWN else await self._ask(given)
        finally:
            self._asking -= 1


def join(app: web.Application, path: str, take: Ask, trusted: Callable[[web.Request], bool] = lambda _: True) -> None:
    """Take feedback there from whom is trusted; errors are in OpenAI's shape."""

    def refused(status: int, message: str, code: str, param: str | None = None) -> web.Response:
        text = error_text(message, "invalid_request_error", code, param)
        return web.Response(status=status, text=text, content_type="application/json")

    async def feedback(request: web.Request) -> web.Response:
        if not trusted(request):
            return refused(401, "The bearer token is missing or wrong.", "invalid_token")
        try:
            given = read(await request.read())
        except ValueError as error:
            return refused(400, str(error), "invalid_body")
        taken = await take(replace(given, tenant=request.headers.get(ASKING_TENANT_HEADER, "")))
        if taken is Taken.UNAVAILABLE:
            message = "Not every gateway could be asked for this answer: try again."
            text = error_text(message, "server_error", "unavailable")
            headers = {"retry-after": RETRY_AFTER}
            return web.Response(status=taken, text=text, headers=headers, content_type="application/json")
        if taken is Taken.UNKNOWN:
            message = "No answer with this request_id is known here: it is not one of the last hour's."
            return refused(taken, message, "request_not_found", "request_id")
        if taken is Taken.REPEATED:
            return refused(taken, "This answer has been rated already.", "already_rated", "request_id")
        return web.json_response({"object": "feedback", "request_id": given.request_id}, status=taken)

    app.router.add_post(path, feedback)


class Peers:
    """The other gateways, by a name that resolves to all of them (this one among them: it says again what it said)."""

    def __init__(self, name: str, token: str) -> None:
        """`name`: host:port, several with commas between them, empty where there are no others.

        `token` is what gateways prove themselves with.
        """
        self._names = [one for one in name.split(",") if one]
        self._headers = {"Authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None
        self._resolving = asyncio.Lock()
        self._found: list[str] | None = None
        """Their addresses, None where they could not be found."""
        self._until = -math.inf

    async def ask(self, given: Given) -> Taken:
        """Have the one that knows the answer take it."""
        if not self._names:
            return Taken.UNKNOWN
        addresses = await self.addresses()
        if addresses is None:
            return Taken.UNAVAILABLE
        said = await asyncio.gather(*(self._post(address, given) for address in addresses))
        known = [taken for taken in said if taken in (Taken.ACCEPTED, Taken.REPEATED)]
        return max(known, default=Taken.UNAVAILABLE if Taken.UNAVAILABLE in said else Taken.UNKNOWN)

    async def addresses(self) -> list[str] | None:
        """Those of all gateways, this one's among them, host:port; None where they cannot be found."""
        if not self._names:
            return []
        loop = asyncio.get_running_loop()
        async with self._resolving:
            if loop.time() >= self._until:
                self._found = await self._resolve()
                self._until = loop.time() + ADDRESS_SECONDS
            return self._found

    async def _resolve(self) -> list[str] | None:
        found = await asyncio.gather(*map(self._addresses_of, self._names))
        return sorted({a for addresses in found for a in addresses or ()}) if None not in found else None

    async def _addresses_of(self, name: str) -> list[str] | None:
        host, _, port = name.rpartition(":")
        try:
            async with asyncio.timeout(PEER_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(host, int(port or 0), type=socket.SOCK_STREAM)
        except OSError as error:
            why = str(error) or "no answer in time"
            _log.warning("the other gateways cannot be found under %s: %s", host, why)
            return None
        hosts = {str(address[0]) for _, _, _, _, address in found}
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]

    async def _post(self, address: str, given: Given) -> Taken:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=PEER_SECONDS),
                connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS, limit_per_host=MOST_CONNECTIONS_EACH),
            )
        body = {"request_id": given.request_id, "score": given.score, "text": given.text}
        try:
            headers = {**self._headers, ASKING_TENANT_HEADER: given.tenant}
            async with self._session.post(f"http://{address}/v1/feedback", json=body, headers=headers) as answer:
                return Taken(answer.status)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            # it may be there again in a moment; one that has ended loses its address soon
            return Taken.UNAVAILABLE

    async def close(self) -> None:
        """End the connections."""
        if self._session is not None:
            await self._session.close()
