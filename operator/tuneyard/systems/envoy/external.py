"""The part of external revisions that Envoy does: their clusters, and what is done to requests on their way out.

Rules:
- Envoy looks the host up by itself, and takes new connections where the name leads then (LOGICAL_DNS: such hosts stand
  behind many addresses that come and go, and running streams must not end with theirs). No assignment is sent. A DNS
  server that says nothing must not keep a starting Envoy from serving all other models: its start waits for none;
- TLS from 1.2 on, the certificate must be of an authority that is trusted and name the host: before that not a byte is
  sent. Who is trusted is one file of the gateway's pod, the system's bundle unless the chart says otherwise;
- a host that refuses (429) or fails is never ejected: there is no other one, and others' requests may still do;
- which headers go out is a list (lua/external.lua): whatever else a client or this gateway has set stays here. One of
  our own stays on: HOP_HEADER, without which an external revision that leads back to a gateway would be a loop. Those
  of traces Envoy sets after all scripts, so that the cluster takes them away (_TRACES): a trace ends here;
- the key stands in routes, as those of pools do: in Envoy's memory, on its Unix sockets, and nowhere else.
"""

from __future__ import annotations

from functools import lru_cache

from tuneyard.api.external import ExternalPricing
from tuneyard.planning.external import ExternalRoute
from tuneyard.systems.envoy.accesslogs import METADATA
from tuneyard.systems.envoy.documents import Json, extension, set_header
from tuneyard.systems.envoy.outside import believed

TELLTALES = (
    *("set-cookie", "openai-organization", "openai-project", "strict-transport-security", "alt-svc"),
    *(f"x-ratelimit-{said}-{of}" for said in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
"""Of answers: they speak of the account, or to browsers, and are meant for nobody behind a gateway. Its limits
would look like the tenant's own."""


_TRACES = ("traceparent", "tracestate")


def untraced() -> list[Json]:
    """What the cluster does to requests as they are sent."""
    removals = [{"remove": header} for header in _TRACES]
    return [
        extension(
            "untraced", "filters.http.header_mutation.v3.HeaderMutation", mutations={"request_mutations": removals}
        ),
        extension("envoy.filters.http.upstream_codec", "filters.http.upstream_codec.v3.UpstreamCodec"),
    ]


def external_cluster(name: str, external: ExternalRoute, authorities: str) -> Json:
    """What of an external revision's cluster is not as in those of pods; `authorities`: a file of Envoy's pod."""
    address = {"socket_address": {"address": external.host, "port_value": external.port}}
    told = {"filter_metadata": {METADATA: {"pod": external.authority}}}
    endpoint = {"endpoint": {"address": address, "hostname": external.host}, "metadata": told}
    return {
        "type": "LOGICAL_DNS",
        "connect_timeout": "5s",
        "dns_lookup_family": "ALL",
        "respect_dns_ttl": True,
        "wait_for_warm_on_init": False,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "transport_socket": believed(external.host, authorities),
    }


def sent_out(external: ExternalRoute) -> dict[str, str]:
    """What `rewrite` is told of where requests go: it keeps back what is not to be sent, and sets path and host."""
    priced = {"price": price_text(external.pricing)} if external.pricing is not None else {}
    return {"out": external.authority, "path": external.path, **priced}


def price_text(pricing: ExternalPricing) -> str:
    """Prices as the request log has them: of input, of cached input and of output, and the currency."""
    prices = pricing.input_per_million, pricing.cached_input_per_million, pricing.output_per_million
    return " ".join([*("-" if price is None else repr(price) for price in prices), pricing.currency or "-"])


@lru_cache(maxsize=1_000)
def price_of(text: str) -> ExternalPricing:
    """What `price_text` wrote; ValueError where it is something else."""
    fresh, cached, output, currency = text.split(" ")
    return ExternalPricing(
        input_per_million=float(fresh),
        cached_input_per_million=None if cached == "-" else float(cached),
        output_per_million=float(output),
        currency=None if currency == "-" else currency,
    )


def credentials(external: ExternalRoute) -> list[Json]:
    """The headers that say who asks; none where the API needs no key."""
    key = external.access.key
    # a percent sign would begin one of Envoy's own commands
    return [set_header("authorization", "Bearer " + key.replace("%", "%%"))] if key else []
