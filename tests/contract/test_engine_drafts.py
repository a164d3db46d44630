"""The real vLLM with draft models: it starts with what the settings become, and says what it says without them.

Marked slow: every method is an engine of its own.
"""

from __future__ import annotations

import asyncio
import re
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from models.drafts import EAGLE, EAGLE3, build_drafts
from models.tiny import build_tiny
from tests.contract.engines import BASE, KEY, EngineProcess, adapters, own_engine
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.resolvedserving import Serving, resolved_serving
from tuneyard.planning.settingchecks import unsupported_setting
from tuneyard.planning.vllmflags import setting_flags
from tuneyard.systems.engines.vllm import Vllm

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

PROMPTS = ["a", "the quick brown fox", "Zebra, zebra, zebra: what now?"]
# rounded as little as can be: what is computed for several tokens at once must not tell from one after the other
BLOCK = {"engineVersion": "0.32", "engineBuild": "CPU", "dtype": "float32"}
DRAFTS = {"DraftModel": "base", "Eagle": EAGLE, "Eagle3": EAGLE3}


def serving(method: str | None) -> Serving:
    block: dict[str, Any] = dict(BLOCK)
    if method is not None:
        draft = {"volume": "drafts", "path": DRAFTS[method]}
        block["speculative"] = {"method": method, "tokens": 3, "draft": draft}
        # the build for CPUs ends with several requests at once where heads meet adapters (planning/enginepresets.py)
        block["lora"] = {"enabled": method == "DraftModel"}
    return resolved_serving(ServingSpec.from_dict(block))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pods have their artifact volumes; `drafts` is one."""
    folder = tmp_path_factory.mktemp("artifacts")
    (folder / "drafts").mkdir()
    (folder / "drafts" / "base").symlink_to(build_tiny() / "base")
    for head in (EAGLE, EAGLE3):
        (folder / "drafts" / head).symlink_to(build_drafts() / head)
    return folder


@contextmanager
def running(method: str | None, artifacts: Path) -> Iterator[EngineProcess]:
    wanted = serving(method)
    assert unsupported_setting(wanted, "") is None
    adapted = () if wanted.lora.on else ("--no-enable-lora",)
    engine = own_engine("vllm", *adapted, *setting_flags(wanted, str(artifacts)))
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()


def counted(engine: EngineProcess, what: str) -> float:
    found = re.search(rf"^vllm:spec_decode_num_{what}_total\S* ([0-9.e+]+)$", engine.asked("/metrics"), re.M)
    return 0.0 if found is None else float(found[1])


@pytest.fixture(scope="module")
def alone(artifacts: Path) -> list[str]:
    """What the base says without a draft."""
    with running(None, artifacts) as engine:
        return [engine.completed(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module", params=list(DRAFTS))
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(method: str, artifacts: Path, alone: list[str]) -> Iterator[EngineProcess]:
    """One after the other, when the one without a draft has ended: each takes memory."""
    assert alone
    with running(method, artifacts) as engine:
        yield engine


def test_the_base_says_what_it_says_alone(engine: EngineProcess, method: str, alone: list[str]) -> None:
    assert [engine.completed(prompt) for prompt in PROMPTS] == alone
    proposed, taken = counted(engine, "draft_tokens"), counted(engine, "accepted_tokens")
    assert proposed > 0
    if method == "DraftModel":
        assert taken == proposed, "the base is its own draft"
    else:
        assert taken < proposed, "heads propose the last letter once more, which the base hardly ever says"


async def test_of_requests_that_are_answered_in_the_same_steps_each_has_its_own(
    engine: EngineProcess, method: str, alone: list[str]
) -> None:
    models = [BASE]
    if serving(method).lora.on:
        models.append("adapter-a")
        async with Vllm(engine.url, KEY) as client:
            await client.load("adapter-a", str(adapters() / "adapter-a"))
        assert engine.completed(PROMPTS[0], "adapter-a") == "a" * 32
    together = [(prompt, model) for prompt in PROMPTS for model in models]
    found = await asyncio.gather(*(asyncio.to_thread(engine.completed, *question) for question in together))
    assert found == [text for said in alone for text in (said, "a" * 32)[: len(models)]]


@pytest.mark.parametrize("weighed", [{"logit_bias": {"97": 5}}, {"min_p": 0.1}])
def test_what_proposals_cannot_be_weighed_by_is_refused(engine: EngineProcess, weighed: dict[str, Any]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        engine.asked("/v1/completions", {"model": BASE, "prompt": "a", "max_tokens": 2, **weighed})
    refused.value.close()
    assert refused.value.code == 400
