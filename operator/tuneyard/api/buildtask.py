"""The documents that the operator and a build's Job exchange.

Rules:
- a build is named by its key: the hash of its steps, of its inputs' digests and of the toolset. The same key is the
  same result, wherever it was made: it is looked for at the output before anything is built, and so is the result of
  each step, which has a key of its own (`TaskStep.key`);
- below the output each result has a folder of its key. On a volume that is `<path>/<key>/`, in a bucket
  `<uri>/<key>/`, in a repository of a hub the tag `tuneyard-<key>`. It is complete when it holds RECORD (a
  `BuildResult` as JSON), which is written last; anything without it is nobody's and may be removed;
- the process writes a BuildReport on its own pod, as the annotation that agents have (names.ANNOTATION_ADAPTERS) and
  with their account: the admission policy lets it change nothing else. Who it is stands in POD_NAME, POD_NAMESPACE and
  POD_UID. When it ends, its container's termination message is the BuildResult, `shortened`: that one counts;
- the command is `tuneyard build run --task /etc/tuneyard-build/task/task.json --work /work --inputs /inputs`. The root
  file system is read-only, TMPDIR is below /work, HF_ENDPOINT the mirror that stands for the public hub, if there is one.
  /work is lost with the pod: what must outlive it is at the output, step by step;
- exit codes: 0 built or found; 1 failed, and the next attempt may succeed; 2 failed, and the same task fails again.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tuneyard.api.base import ApiModel
from tuneyard.api.build import BuildStep, StepKind
from tuneyard.api.buildoutput import BuildOutput
from tuneyard.api.schema import Digest, ObjectName, Text
from tuneyard.api.sources import Source

RECORD = "tuneyard-build.json"
"""Name of the file that says what made the files beside it; no part of their digest (digests.py)."""
KEY_PATTERN = r"^[0-9a-f]{32}$"
TERMINATION_LIMIT = 4096
"""Bytes of a termination message that the kubelet keeps."""

InputKind = Literal["BaseModel", "LoRAAdapter", "Calibration"]


class BuildInput(ApiModel):
    """What a step reads. `kind` and `name` are the step's own words for it: see `BuildTask.input`."""

    kind: InputKind
    name: Annotated[ObjectName, Field(description="Of the object; of calibration data the ConfigMap's, or s3.")]
    source: Annotated[Source | None, Field(description="None: of a ConfigMap, which is mounted.")] = None
    digest: Annotated[
        Digest | None,
        Field(
            description="Which its files must have; of a ConfigMap's text, sha256: and the SHA-256 of its bytes. None: the "
            "source is a commit, which cannot move; the process says the digest in its records."
        ),
    ] = None
    local_path: Annotated[
        str | None, Field(max_length=2048, description="Where it is mounted, a file or a folder; None: to be fetched.")
    ] = None


class TaskStep(ApiModel):
    """A step and the key of what it makes: the same key is the same result."""

    key: Annotated[str, Field(max_length=32, pattern=KEY_PATTERN)]
    step: BuildStep


class BuildTask(ApiModel):
    """What a Job is to do: /etc/tuneyard-build/task/task.json."""

    build: Annotated[str, Field(description="namespace/name of the BaseModel, for logs.")]
    key: Annotated[str, Field(max_length=32, pattern=KEY_PATTERN, description="That of the last step.")]
    steps: list[TaskStep]
    inputs: list[BuildInput]
    output: BuildOutput
    output_path: Annotated[
        str | None,
        Field(description="Where output.volume is mounted, its root; output.volume.path is below. None: no volume."),
    ] = None
    digest: Annotated[
        Digest | None, Field(description="spec.digest: what comes out must have it. None: whatever comes out.")
    ] = None

    def input(self, kind: InputKind, name: str) -> BuildInput | None:
        """The input that a step names."""
        return next((i for i in self.inputs if (i.kind, i.name) == (kind, name)), None)


class UsedInput(ApiModel):
    """An input as it was read."""

    kind: InputKind
    name: ObjectName
    digest: Digest


class StepRecord(ApiModel):
    """How one step was made."""

    kind: StepKind
    key: Annotated[str, Field(max_length=32, pattern=KEY_PATTERN)]
    digest: Annotated[Digest | None, Field(description="Of its result.")] = None
    seconds: float = 0.0
    found: Annotated[bool | None, Field(description="Whether it was there already, made by an earlier run.")] = None
    tools: Annotated[
        dict[str, Annotated[str, Field(max_length=64)]] | None,
        Field(max_length=16, description="Versions, by package."),
    ] = None
    seed: int | None = None
    checks: Annotated[
        dict[str, Annotated[str, Field(max_length=256)]] | None,
        Field(max_length=16, description="What was looked at before it was kept, and what was found."),
    ] = None


class BuildResult(ApiModel):
    """What a run came to, and the contents of RECORD. Either `error`, or all of the others."""

    key: Annotated[str, Field(max_length=32)]
    digest: Digest | None = None
    size_bytes: int | None = None
    commit: Annotated[str | None, Field(max_length=40, description="Of a hub: where the result is.")] = None
    steps: Annotated[list[StepRecord] | None, Field(max_length=4)] = None
    inputs: Annotated[list[UsedInput] | None, Field(max_length=64)] = None
    error: Annotated[Text | None, Field(description="One line for people; no secret.")] = None
    reason: Annotated[str | None, Field(max_length=63, description="The Reason of the error, where it has one.")] = None

    def shortened(self, limit: int = TERMINATION_LIMIT) -> str:
        """As JSON of at most `limit` bytes: what is said of steps and inputs goes first, then the error's end."""
        short = [step.model_copy(update={"checks": None, "tools": None}) for step in self.steps or []]
        for result in (self, self.model_copy(update={"steps": short or None}), _bare(self)):
            text = _json(result)
            if len(text.encode()) <= limit:
                return text
        return _json(_bare(self).model_copy(update={"error": (self.error or "")[: limit // 8] or None}))


def _bare(result: BuildResult) -> BuildResult:
    return result.model_copy(update={"steps": None, "inputs": None})


def _json(document: ApiModel) -> str:
    return document.model_dump_json(by_alias=True, exclude_none=True)


class BuildReport(ApiModel):
    """How far a run is, and what it came to: the annotation of its pod. Written when it differs, every 2 s at most."""

    step: Annotated[int, Field(ge=0, description="Which of the task's steps, from 0.")] = 0
    phase: Literal["Fetching", "Building", "Verifying", "Storing", "Ended"] = "Fetching"
    percent: Annotated[int | None, Field(ge=0, le=100, description="Of this phase, where that can be told.")] = None
    message: Annotated[str | None, Field(max_length=256, description="What it is at, in a few words.")] = None
    result: BuildResult | None = None
