"""What tokens cost, from how many pods are ready and whose tokens their engines generated.

As `tuneyard cost` counts it, for one price of a pod's hour: a base's pods are shared by the work of the tokens of those
who asked. Prices are typed in at the top of the page; numbers are in their currency. Hosted APIs cost what their
revisions' specs say now, where `tuneyard cost` takes the price of each request's time; those in another currency than
the one typed in are in no sum.
"""

from __future__ import annotations

from monitoring.dashboards.queries import ALL, DEPLOYMENTS, OF
from monitoring.grafana import Dashboard, Query, Row, Typed, Variable, panel
from tuneyard.planning.cost import Weights

_BASE = "namespace, base_model"
_TOKENS = "tuneyard_usage_tokens_total"
_WORK = f"tuneyard:work:rate1h{{{ALL}}}"
_READY = f"max by (namespace, base_model, pool) (tuneyard_pool_ready_replicas{{{ALL}}})"
_PODS = f"sum by ({_BASE}) ({_READY})"
_HOUR = f"$pod_hour * sum({_READY})"
"""What all pods cost in an hour."""


def _rate(kinds: str) -> str:
    return f'tuneyard:tokens:rate1h{{{ALL},kind=~"{kinds}"}}'


_BOTH = "prompt|completion"
"""Cached tokens are among the prompt's."""


def _by_adapter(kind: str) -> str:
    return f'sum by (namespace, base, adapter) (rate({_TOKENS}{{{ALL},kind="{kind}"}}[1h]))'


def _work_by_adapter() -> str:
    """Cached tokens were counted as read: what they cost less is taken off."""
    weights = Weights()
    off = weights.prompt - weights.cached
    prompt, cached, completion = map(_by_adapter, ("prompt", "cached", "completion"))
    read = f"({weights.prompt:g} * {prompt} - ({off:g} * {cached} or 0 * {prompt}))"
    work = f"{read} + {weights.completion:g} * {completion}"
    return f'label_replace({work}, "base_model", "$1", "base", "(.*)")'


def _shared(work: str, by: str) -> str:
    """What an hour costs by these labels, which the work has."""
    whole = f"/ on ({_BASE}) group_left sum by ({_BASE}) ({work}) * on ({_BASE}) group_left {_PODS}"
    return f"sum by ({by}) ($pod_hour * {work} {whole})"


_HOSTED = f"tuneyard:hosted_cost:rate1h{{{ALL}}}"
_PAID = f'tuneyard:hosted_cost:rate1h{{{ALL},currency="$currency"}}'
"""In the currency of the prices that are typed in."""


def _hour(by: str) -> str:
    """What an hour costs by these labels: the share of pools, and what hosted APIs are paid."""
    own, paid = _shared(_WORK, by), f"sum by ({by}) ({_PAID})"
    told = (f'label_replace({cost}, "of", "{of}", "", "")' for cost, of in ((own, "pools"), (paid, "apis")))
    return f"sum by ({by}) ({' or '.join(told)})"


def _per_million(cost: str, rate: str, by: str) -> str:
    return f"{cost} / on ({by}) (sum by ({by}) ({rate}) * 0.0036 > 0)"


_API = f"0.0036 * ($api_prompt * sum({_rate('prompt')}) + $api_completion * sum({_rate('completion')}))"
"""What the tokens of an hour would cost at the API."""
_NOW = f"3600 * sum({_rate(_BOTH)})"
_ADAPTER_TOKENS = f'rate({_TOKENS}{{{ALL},kind=~"{_BOTH}"}}[1h])'

COST = Dashboard(
    "cost",
    "Cost",
    "What tokens cost, over the last hour. Type in what a pod's hour costs, and an API's price of a million tokens.",
    (
        Variable("namespace", "label_values(tuneyard_pool_replicas, namespace)", several=True),
        Typed("pod_hour", "0.80", "A pod's hour"),
        Typed("currency", "USD", "Currency"),
        Typed("api_name", "a hosted fine-tune", "API"),
        Typed("api_prompt", "0.30", "API: 1M read"),
        Typed("api_completion", "1.20", "API: 1M generated"),
    ),
    (
        Row(
            "A million tokens",
            (
                panel(
                    "By deployment",
                    Query(_per_million(_hour(OF), _rate(_BOTH), OF), DEPLOYMENTS),
                    description="Read and generated ones, of pools and of APIs paid in that currency; with idle hours.",
                    width=12,
                ),
                panel(
                    "By adapter",
                    Query(
                        _per_million(
                            _shared(_work_by_adapter(), "namespace, adapter"), _ADAPTER_TOKENS, "namespace, adapter"
                        ),
                        "{{namespace}}/{{adapter}}",
                    ),
                    description="Without a name: the bases themselves.",
                    width=12,
                ),
            ),
        ),
        Row(
            "Whether it pays",
            (
                panel(
                    "An hour: shared pools, or a pool for each fine-tune",
                    Query(_HOUR, "shared pools"),
                    Query(
                        f"$pod_hour * count(sum by (namespace, adapter) (increase({_TOKENS}"
                        f'{{{ALL},adapter!="",kind="completion"}}[1h])) > 0)',
                        "a pool each",
                    ),
                    description="A pod for each fine-tune that was asked. Between the lines is what is saved.",
                    width=12,
                ),
                panel(
                    "Break-even: tokens an hour",
                    Query(_NOW, "now"),
                    Query(f"{_NOW} * {_HOUR} / ({_API} > 0)", "as dear as $api_name"),
                    description="In the mix of the last hour. Above the line the pools are the cheaper way.",
                    width=12,
                ),
            ),
        ),
        Row(
            "What it is made of",
            (
                panel("An hour by deployment", Query(_hour(OF), DEPLOYMENTS), stacked=True),
                panel(
                    "Hosted APIs: an hour by revision",
                    Query(_HOSTED, "{{deployment}} {{revision}}, {{currency}}"),
                    description="At the prices in spec.revisions[].external.pricing, in the currency of each.",
                    stacked=True,
                ),
                panel(
                    "The same tokens at the API",
                    Query(_HOUR, "pools"),
                    Query(_API, "$api_name"),
                    description="An hour.",
                ),
                panel(
                    "Pool hours of the last day",
                    Query(
                        "sum by (namespace, pool) (sum_over_time(max by (namespace, pool) "
                        f"(tuneyard_pool_ready_replicas{{{ALL}}})[1d:5m])) / 12",
                        "{{namespace}}/{{pool}}",
                    ),
                    description="Ready pods times hours: what `tuneyard cost` is told.",
                ),
            ),
        ),
    ),
)
