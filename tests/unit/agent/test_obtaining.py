"""Credentials go where their owner lets them, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.hub import Hub, Repository
from tuneyard.agent.obtaining import Obtainer
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import HuggingFaceSource, SecretReference, Source
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials
from tuneyard.systems.artifacts.store import Store

FILES = {"config.json": b"{}", "model.safetensors": b"x" * 1000}


@pytest.mark.lasting
def test_a_token_goes_only_to_endpoints_that_its_secret_lists(tmp_path: Path) -> None:
    with Hub({"acme/base": Repository(FILES, token="hf_secret")}) as hub:
        hub_source = HuggingFaceSource(
            repo="acme/base",
            revision=hub.repositories["acme/base"].commit,
            endpoint=hub.url + "/",
            credentials=SecretReference(name="hub"),
        )
        source = Source(hugging_face=hub_source)

        def obtainer(*endpoints: str) -> Obtainer:
            given = Credentials("Secret hub", {"token": "hf_secret"}, frozenset(endpoints))
            return Obtainer(Store(tmp_path / "cache"), lambda _: given)

        for allowed in ((), ("https://elsewhere.example",)):
            with pytest.raises(ArtifactError) as caught:
                obtainer(*allowed).obtain(source, None, lambda _: None)
            assert caught.value.reason is Reason.CREDENTIALS_MISSING
            assert f"tuneyard.dev/endpoints={hub.url}" in str(caught.value)
            assert not hub.asked
        with obtainer(hub.url).obtain(source, None, lambda _: None) as held:
            assert sorted(p.name for p in held.path.iterdir()) == sorted(FILES)
