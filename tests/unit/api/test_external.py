"""What an external revision may say, and what of it is what it is."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tuneyard.api.external import ApiKeyReference, ExternalPricing, ExternalSpec
from tuneyard.api.modeldeployment import Revision
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.planning.contents import hash_of


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authority"),
    [
        ("https://api.openai.com/v1", "api.openai.com", 443, "/v1", "api.openai.com"),
        ("https://API.Example.com", "api.example.com", 443, "", "api.example.com"),
        ("https://api.example.com:443/a/b-c/v1", "api.example.com", 443, "/a/b-c/v1", "api.example.com"),
        ("https://10.1.2.3:8443/v1", "10.1.2.3", 8443, "/v1", "10.1.2.3:8443"),
        ("https://api:65535", "api", 65535, "", "api:65535"),
    ],
)
def test_urls(url: str, host: str, port: int, path: str, authority: str) -> None:
    found = ExternalSpec(url=url, model="m")
    assert (found.host, found.port, found.path, found.authority) == (host, port, path, authority)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://api.example/v1",
            "https://user@api.example/v1",
            "https://api.example/v1?key=1",
            "https://api.example/#a",
        ),
        *("https://api.example/v1/", "https:///v1", "https://api.example:0/v1", "https://api.example:65536/v1"),
        *("https://api.example/../v1", "https://api.example/a%2fb", "https://api.example//v1", "https://-a.example/v1"),
        *("https://[::1]/v1", "https://api.example/v1\n", "HTTPS://api.example/v1", "https://api_x.example/v1"),
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValidationError):
        ExternalSpec(url=url, model="m")


@pytest.mark.parametrize("model", ["", 'a"b', "a\\b", "a b", "ä", "-a", "a" * 254])
def test_what_is_no_model(model: str) -> None:
    """It is written into bodies as it is."""
    with pytest.raises(ValidationError):
        ExternalSpec(url="https://api.example/v1", model=model)


def test_whose_key_is_sent_and_what_it_costs_is_no_part_of_it() -> None:
    def hashed(**more: object) -> str | None:
        given = {"url": "https://api.example/v1", "model": "m", **more}
        return hash_of(Revision(name="r", external=ExternalSpec.model_validate(given)), None, None, None)

    pricing = ExternalPricing(input_per_million=1, output_per_million=2)
    same = [hashed(), hashed(credentials=ApiKeyReference(name="s")), hashed(pricing=pricing)]
    assert same[0] is not None and set(same) == {same[0]}
    others = [
        hashed(url="https://api.example/v2"),
        hashed(model="n"),
        hashed(systemPrompt=SystemPrompt(text="t")),
        hashed(systemPrompt=SystemPrompt(text="t", apply="Always")),
    ]
    assert len({same[0], *others}) == 5


@pytest.mark.parametrize(
    "change",
    [
        *({"inputPerMillion": -0.1}, {"outputPerMillion": float("inf")}, {"outputPerMillion": float("nan")}),
        *({"outputPerMillion": None}, {"inputPerMillion": 1_000_001}),
        *({"currency": "usd"}, {"currency": "$"}, {"currency": "EURO"}, {"currency": ""}),
    ],
)
def test_what_is_no_pricing(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ExternalPricing.model_validate({"inputPerMillion": 1, "outputPerMillion": 2, **change})


def test_an_external_revision_as_json() -> None:
    revision = Revision(name="r", external=ExternalSpec(url="https://api.example/v1", model="m"))
    assert revision.to_dict() == {"name": "r", "external": {"url": "https://api.example/v1", "model": "m"}}
