"""A task from inputs to result with tools that only write files: what is made, found, kept, and gone on with."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuneyard.api.buildtask import RECORD, BuildReport, BuildResult, BuildTask
from tuneyard.build.errors import BuildError, StoppedError
from tuneyard.build.inputs import Inputs
from tuneyard.build.outputs import output_of
from tuneyard.build.running import Run
from tuneyard.build.telling import Teller
from tuneyard.systems.artifacts.folder import digest_of
from tuneyard.systems.artifacts.remote import Credentials

MERGED, QUANTIZED = "a" * 32, "b" * 32
TEXTS = '{"prompt": "Hello"}\n'
Json = dict[str, Any]


class Tools:
    """Each tool writes what it was given; `broken` fails, once."""

    def __init__(self, broken: str = "") -> None:
        self.ran: list[str] = []
        self.broken = broken
        self.error: BuildError = BuildError("it broke", again=True)

    def run(self, tool: str, settings: Json, output: Path, heard: Any) -> Json:
        heard(f"at {tool}", 50.0)
        self.ran.append(tool)
        if tool == self.broken:
            self.broken = ""
            raise self.error
        if tool == "check":
            return {"checks": {"tensors": "1", "reference": settings["reference"] or "none"}}
        names = sorted(key for key in settings if key != "name")
        (output / "config.json").write_text(json.dumps({"by": tool, "of": names}))
        return {"tools": {tool: "1.0"}, "seed": 7, "checks": {"made": "yes"}}


class World:
    """A task over a base, an adapter and texts on mounted folders, and a volume for the output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stopped = threading.Event()
        self.said: list[BuildReport] = []
        for name in ("base", "adapter"):
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps({"name": name}))
        (folder / "prompts.jsonl").write_text(TEXTS)
        self.volume = folder / "volume"

    def input(self, kind: str, name: str, digest: str | None = None) -> Json:
        path = self.folder / ("prompts.jsonl" if kind == "Calibration" else name)
        found = digest_of(path).digest if path.is_dir() else f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        return {"kind": kind, "name": name, "digest": digest or found, "localPath": str(path)}

    def task(self, **changes: Any) -> BuildTask:
        steps = [
            {"key": MERGED, "step": {"merge": {"baseModel": "base", "adapter": "adapter"}}},
            {"key": QUANTIZED, "step": {"quantize": {"scheme": "AWQ", "calibration": {"configMap": "texts"}}}},
        ]
        kinds = (("BaseModel", "base"), ("LoRAAdapter", "adapter"), ("Calibration", "texts"))
        inputs = [self.input(kind, name) for kind, name in kinds]
        given = {
            "build": "default/support",
            "key": QUANTIZED,
            "steps": steps,
            "inputs": inputs,
            "output": {"volume": {"claimName": "models", "path": "built"}},
            "outputPath": str(self.volume),
        }
        return BuildTask.from_dict({**given, **changes})

    def run(self, tools: Tools, task: BuildTask | None = None, work: str = "work") -> BuildResult:
        task = task or self.task()
        (self.folder / work).mkdir(exist_ok=True)
        with Teller(self.said.append, seconds=0.001) as teller:
            output = output_of(task, no_secrets, self.stopped)
            inputs = Inputs(task, self.folder / work, no_secrets, self.stopped)
            return Run(task, self.folder / work, output, inputs, tools, teller).run()

    def kept(self, key: str) -> Path:
        return self.volume / "built" / key


def no_secrets(name: str) -> Credentials:
    raise AssertionError(name)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield World(tmp_path)


def test_a_chain_is_made_checked_and_kept_step_by_step(world: World) -> None:
    tools = Tools()
    result = world.run(tools)
    assert tools.ran == ["merge", "check", "quantize", "check"]
    assert [(s.kind, s.key, s.tools, s.seed, s.found) for s in result.steps or []] == [
        ("merge", MERGED, {"merge": "1.0"}, 7, None),
        ("quantize", QUANTIZED, {"quantize": "1.0"}, 7, None),
    ]
    assert [(i.kind, i.name) for i in result.inputs or []] == [
        ("BaseModel", "base"),
        ("LoRAAdapter", "adapter"),
        ("Calibration", "texts"),
    ]
    kept = world.kept(QUANTIZED)
    assert result.digest == digest_of(kept).digest
    assert BuildResult.model_validate_json((kept / RECORD).read_text()) == result
    assert sorted(p.name for p in (world.volume / "built").iterdir()) == [MERGED, QUANTIZED]
    assert world.said[-1].step == 1
    # only a step that must not change what the model says is held against what it was made of
    assert [(s.checks or {})["reference"] != "none" for s in result.steps or []] == [False, True]


def test_the_settings_of_a_tool_have_their_defaults(world: World) -> None:
    world.run(Tools())
    made = json.loads((world.kept(QUANTIZED) / "config.json").read_text())
    of = ["calibration", "groupSize", "maxLength", "model", "samples", "scheme", "tensorParallelSize"]
    assert made == {"by": "quantize", "of": of}


def test_texts_that_a_scheme_does_not_look_at_are_not_asked_for(world: World) -> None:
    """An object from before the API refused them names some, and its task holds no such input."""
    step = {"quantize": {"scheme": "INT8", "baseModel": "base", "calibration": {"configMap": "gone"}}}
    task = world.task(steps=[{"key": QUANTIZED, "step": step}], inputs=[world.input("BaseModel", "base")])
    result = world.run(Tools(), task)
    assert (result.error, [i.kind for i in result.inputs or []]) == (None, ["BaseModel"])


def test_a_result_that_is_there_is_found(world: World) -> None:
    first = world.run(Tools())
    tools = Tools()
    again = world.run(tools, work="other")
    assert tools.ran == []
    assert (again.digest, [s.found for s in again.steps or []]) == (first.digest, [True, True])


def test_a_damaged_result_is_made_again(world: World) -> None:
    first = world.run(Tools())
    damaged = world.kept(QUANTIZED) / "config.json"
    damaged.chmod(0o644)
    damaged.write_text("other bytes")
    tools = Tools()
    assert world.run(tools, work="other").digest == first.digest
    assert tools.ran == ["quantize", "check"]
    assert digest_of(world.kept(QUANTIZED)).digest == first.digest


@pytest.mark.parametrize("work", ["work", "other"])
def test_the_next_attempt_goes_on_at_the_step_that_failed(world: World, work: str) -> None:
    with pytest.raises(BuildError, match="it broke"):
        world.run(Tools(broken="quantize"))
    assert not world.kept(QUANTIZED).exists()
    tools = Tools()
    result = world.run(tools, work=work)
    assert tools.ran == ["quantize", "check"]
    assert [s.found for s in result.steps or []] == [True, None]


def test_nothing_half_made_is_kept_when_the_pod_is_to_end(world: World) -> None:
    tools = Tools(broken="check")
    tools.error = StoppedError()
    with pytest.raises(StoppedError):
        world.run(tools)
    assert list((world.volume / "built").iterdir()) == []
    assert world.run(Tools()).digest


def test_no_tool_runs_where_nothing_can_be_kept(world: World) -> None:
    world.volume.write_text("a file where the volume should be")
    tools = Tools()
    with pytest.raises(BuildError, match=f"build.output: {QUANTIZED} cannot be written") as raised:
        world.run(tools)
    assert tools.ran == []
    assert (raised.value.again, raised.value.reason) == (True, "ArtifactUnreadable")


def test_what_was_made_and_not_stored_is_stored_by_the_next_attempt(world: World) -> None:
    task = world.task(output={"volume": {"claimName": "models", "path": "built"}})
    lock = world.volume / "built" / f".{MERGED}.lock"
    lock.mkdir(parents=True)
    with pytest.raises(BuildError, match=r"build\.output"):
        world.run(Tools(), task)
    lock.rmdir()
    with pytest.raises(BuildError, match=r"spec\.digest wants"):
        world.run(Tools(), world.task(digest="sha256:" + "0" * 64))
    assert world.run(Tools(), task).digest == digest_of(world.kept(QUANTIZED)).digest


def test_copying_ends_when_the_pod_is_to_end(world: World) -> None:
    world.stopped.set()
    with pytest.raises(StoppedError):
        world.run(Tools())
    assert not world.kept(MERGED).exists()
    world.stopped.clear()
    world.run(Tools())
    # the first step's files were still in the work folder
    assert sorted(p.name for p in (world.volume / "built").iterdir()) == [QUANTIZED]


def test_an_input_of_other_bytes_is_refused_for_good(world: World) -> None:
    wrong = world.input("BaseModel", "base", "sha256:" + "0" * 64)
    rest = [i for i in world.task().to_dict()["inputs"] if i["kind"] != "BaseModel"]
    with pytest.raises(BuildError, match="BaseModel base is not what the build was asked for") as raised:
        world.run(Tools(), world.task(inputs=[wrong, *rest]))
    assert (raised.value.again, raised.value.reason) == (False, "DigestMismatch")


def test_an_input_that_is_not_there_may_come(world: World) -> None:
    missing = {**world.input("BaseModel", "base"), "localPath": str(world.folder / "away")}
    rest = [i for i in world.task().to_dict()["inputs"] if i["kind"] != "BaseModel"]
    with pytest.raises(BuildError, match="away is not there") as raised:
        world.run(Tools(), world.task(inputs=[missing, *rest]))
    assert (raised.value.again, raised.value.reason) == (True, "ArtifactNotFound")


def test_what_comes_out_has_to_be_what_the_spec_says(world: World) -> None:
    with pytest.raises(BuildError, match=r"spec\.digest wants") as raised:
        world.run(Tools(), world.task(digest="sha256:" + "0" * 64))
    assert raised.value.again is False
    assert not world.kept(QUANTIZED).exists()


def test_two_builds_of_one_key_keep_one_result(world: World) -> None:
    results: list[BuildResult] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(world.run(Tools(), work=f"work-{n}"))) for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({r.digest for r in results}) == 1
    assert len(results) == 2
    assert sorted(p.name for p in (world.volume / "built").iterdir()) == [MERGED, QUANTIZED]
