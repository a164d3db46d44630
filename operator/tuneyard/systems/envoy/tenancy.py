"""Keys of tenants, as Envoy has them: metadata of routes that nobody's request ever takes.

Rules:
- each key stands in one of SHARDS small route tables, chosen by its last bytes. The script `extract` sets x-model to
  the table's name, asks its route's metadata for the key, and goes on with the model's name. So a change of one key is
  one small table, like a change of a weight: Envoy's own filter for keys (api_key_auth) has them all in one
  configuration, and took 150 ms for a change at 10,000 keys, for each of which it writes two lines of log;
- beside the key stands what its tenant may call, so that no request looks anything up a second time;
- where tokens say whose a request is (tokens.py), tenants stand there too, each under its name behind NAME_MARK;
- a table is one text, a line per key: Lua is given a copy of all metadata, and forty entries cost 30 µs to copy;
- no name of a model begins with `~`: the tables are out of reach of clients, and what their route answers is an error.
The tables hold keys in the clear, as others hold those of engines: both are in Envoy and on its Unix sockets only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tuneyard.api import names
from tuneyard.planning.routes import ModelRoutes
from tuneyard.planning.tenants import NAME_MARK, SHORTEST_KEY, Caller
from tuneyard.systems.envoy.documents import EXTENSIONS, JSON_CONTENT, Json, error_text, script
from tuneyard.systems.envoy.priorities import flag, priority_switch
from tuneyard.systems.envoy.quotas import quota_script
from tuneyard.systems.envoy.tokens import Tokens, token_script
from tuneyard.systems.envoy.translate import LIST, ModelResources, list_resources

SHARDS = 512
_BY_LAST_BYTES = (1, 17, 37, 59)
"""What a key's last four bytes count: digits of whatever alphabet come to all tables alike."""
LIMITED = "!"
"""Behind a tenant's name, which cannot hold it."""
ALLOWED_HEADER = "x-tuneyard-allowed"
"""From `extract` to what answers the list of models: what the caller may see of it."""


def tenant_script(tokens: Tokens | None = None, *, priorities: bool = False) -> str:
    """What stands before the script `extract` where clients need keys, or `tokens`.

    `priorities`: full pools refuse who may wait.
    """
    weights = ", ".join(map(str, _BY_LAST_BYTES))
    limits = f"local GATE_TENANT, NAME_MARK = '{names.GATE_TENANT}', '{NAME_MARK}'\n"
    limits += (
        priority_switch(priorities)
        + f"local SHORTEST_KEY, SHARDS = {SHORTEST_KEY}, {SHARDS}\nlocal W1, W2, W3, W4 = {weights}\n"
    )
    return (
        limits
        + script("permits")
        + script("tenants")
        + quota_script()
        + (token_script(tokens) if tokens is not None else "")
    )


def shard_of(key: str) -> str:
    """The table that a key stands in."""
    last = key.encode()[-len(_BY_LAST_BYTES) :]
    return f"~{sum(w * byte for w, byte in zip(_BY_LAST_BYTES, last, strict=True)) % SHARDS}"


def caller_text(caller: Caller) -> str:
    """What a table says of a key: the tenant, and where it has a policy the models by name and those by pattern.

    Behind the tenant's name stands its priority, if it is not the usual one (priorities.py), and a mark where it has
    limits.
    """
    if caller.policy is None:
        return caller.tenant
    tenant = caller.tenant + flag(caller.policy.priority) + (LIMITED if caller.policy.limits else "")
    return f"{tenant} ,{','.join(caller.policy.exact)}, {','.join(caller.policy.globs)}"


def shard_resources(shard: str, callers: Mapping[str, str]) -> ModelResources:
    """One table; `callers` by key, as `caller_text` says them."""
    # no key holds a space, and nothing here a line break: a line begins with its key, whatever a client sends
    lines = "\n".join(f"{key} {text}" for key, text in sorted(callers.items()))
    route: Json = {
        "name": shard,
        "match": {"prefix": "/"},
        "metadata": {"filter_metadata": {"extract": {"keys": f"\n{lines}\n"}}},
        "direct_response": {"status": 500},
    }
    return ModelResources(
        scopes={
            shard: {"name": shard, "route_configuration_name": shard, "key": {"fragments": [{"string_key": shard}]}}
        },
        routes={
            shard: {"name": shard, "virtual_hosts": [{"name": shard, "domains": ["*"], "routes": [route]}]},
        },
    )


def tenants_list_resources(models: Iterable[ModelRoutes]) -> ModelResources:
    """The answer to GET /v1/models where each tenant sees only what it may call.

    A script answers instead of the route. What the route itself says is an error: a script that fails lists nothing.
    """
    resources = list_resources(models)
    configuration = resources.routes[LIST]
    route = configuration["virtual_hosts"][0]["routes"][0]
    listed = route["direct_response"]["body"]["inline_string"]
    text = error_text("The gateway could not process the request.", "server_error", "gateway_error")
    route["direct_response"] = {"status": 500, "body": {"inline_string": text}}
    route["response_headers_to_add"] = [JSON_CONTENT]
    route["typed_per_filter_config"] = {
        "rewrite": {
            "@type": EXTENSIONS + "filters.http.lua.v3.LuaPerRoute",
            "source_code": {"inline_string": script("permits") + script("tenants_list")},
            "filter_context": {"models": _lines(listed)},
        }
    }
    return resources


def _lines(listed: str) -> str:
    """A line for each model: its name, a space, and its entry in the list, which the script need not parse."""
    return "".join(f"{item['id']} {json.dumps(item)}\n" for item in json.loads(listed)["data"])


def gate_caller(model: str) -> str:
    """Whom the token of a model's gates stands for."""
    return f"{names.GATE_TENANT} ,{model}, "
