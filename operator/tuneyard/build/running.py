"""A task from its inputs to its result: step by step, each kept under a key of its own.

Rules:
- what is there is not made again: the result is looked for at the output, then what the last step that can be found has
  made, there or in the work folder. So a run that was ended goes on at the step in which it was;
- whether the output can be written to is found out before anything is made, as far as it can be;
- a step's files have their key's name only when they are complete and were looked at; until then the folder is `.new`;
- one step's files lie in the work folder at a time, besides those of the inputs and of the step before.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuneyard.api.base import parsed
from tuneyard.api.buildtask import RECORD, BuildResult, BuildTask, StepRecord, TaskStep, UsedInput
from tuneyard.api.reasons import Reason
from tuneyard.build.errors import BuildError, StoppedError, of_artifact
from tuneyard.build.inputs import Inputs
from tuneyard.build.outputs import Output
from tuneyard.build.steps import work_of
from tuneyard.build.telling import Teller
from tuneyard.build.tooling import Heard
from tuneyard.systems.artifacts.download import FetchStopped
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of

_log = logging.getLogger(__name__)

_MOST_CHECKS, _MOST_TEXT = 16, 256


class RunsTools(Protocol):
    """What of tooling.Tools is used here."""

    def run(self, tool: str, settings: dict[str, Any], output: Path, heard: Heard) -> dict[str, Any]:
        """What a tool says of what it put into `output`; raises BuildError."""


@dataclass(frozen=True)
class Made:
    """What a step has made."""

    folder: Path
    record: BuildResult


class Run:
    """One run of one task. `run` is called once."""

    def __init__(  # noqa: PLR0917 -- the parts of a process, put together in one place
        self, task: BuildTask, work: Path, output: Output, inputs: Inputs, tools: RunsTools, teller: Teller
    ) -> None:
        self._task = task
        self._steps = work / "steps"
        self._output = output
        self._inputs = inputs
        self._tools = tools
        self._teller = teller

    def run(self) -> BuildResult:
        """The result, found or made; raises BuildError."""
        self._teller.tell("Fetching", "looking whether it is there already")
        with _told_as("build.output"):
            found = self._output.find(self._task.key)
        if found is not None:
            _log.info("the result is there already")
            return self._as_wanted(_marked_found(found))
        with _told_as("build.output"):
            self._output.try_writing(self._task.key)
        self._steps.mkdir(parents=True, exist_ok=True)
        for left in self._steps.glob(".*.new"):
            shutil.rmtree(left, ignore_errors=True)
        begin, made = self._resume()
        for number in range(begin, len(self._task.steps)):
            self._teller.step(number)
            before = made
            made = self._step(self._task.steps[number], before)
            last = number + 1 == len(self._task.steps)
            if last:
                self._as_wanted(made.record)
            if last or self._output.keeps_steps:
                made = self._kept(made)
            self._forget(before)
        assert made is not None  # noqa: S101 -- a task has a step
        if begin < len(self._task.steps):
            return made.record
        self._as_wanted(made.record)  # the attempt before ended while it stored this
        return self._kept(made).record

    def _resume(self) -> tuple[int, Made | None]:
        """The step to begin with, and what the one before has made."""
        for number in reversed(range(len(self._task.steps))):
            made = self._there(self._task.steps[number].key, last=number + 1 == len(self._task.steps))
            if made is not None:
                _log.info("step %d is there already", number + 1)
                return number + 1, made
        return 0, None

    def _there(self, key: str, *, last: bool) -> Made | None:
        folder = self._steps / key
        if folder.is_dir():
            record = parsed(BuildResult, (folder / RECORD).read_text())
            if record is not None and digest_of(folder).digest == record.digest:
                return Made(folder, _marked_found(record))
            shutil.rmtree(folder)
        if last or not self._output.keeps_steps:
            return None
        with _told_as("build.output"):
            found = self._output.bring(key, folder, self._telling("Fetching"))
        return None if found is None else Made(found[0], _marked_found(found[1]))

    def _step(self, step: TaskStep, before: Made | None) -> Made:
        began = time.monotonic()
        work = work_of(step, self._inputs, None if before is None else before.folder, self._telling("Fetching"))
        scratch = self._steps / f".{step.key}.new"
        scratch.mkdir()
        said = self._tools.run(work.tool, work.settings, scratch, self._telling("Building"))
        checked = self._tools.run("check", work.checking(scratch), scratch, self._telling("Verifying"))
        with _told_as("the result"):
            found = digest_of(scratch)
        record = StepRecord(
            kind=work.tool,
            key=step.key,
            digest=found.digest,
            seconds=round(time.monotonic() - began, 1),
            tools=said.get("tools"),
            seed=said.get("seed"),
            checks=_bounded({**said.get("checks", {}), **checked.get("checks", {})}),
        )
        steps = [*(before.record.steps or [] if before else []), record]
        inputs = _united(before.record.inputs or [] if before else [], work.used)
        result = BuildResult(key=step.key, digest=found.digest, size_bytes=found.size_bytes, steps=steps, inputs=inputs)
        self._seal(scratch, result)
        folder = self._steps / step.key
        scratch.rename(folder)
        return Made(folder, result)

    def _seal(self, folder: Path, result: BuildResult) -> None:
        (folder / RECORD).write_text(json.dumps(result.to_dict(), indent=2) + "\n")
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _kept(self, made: Made) -> Made:
        with _told_as("build.output"):
            return Made(made.folder, self._output.keep(made.folder, made.record, self._telling("Storing")))

    def _forget(self, before: Made | None) -> None:
        """Give back the room of what the next step was made of, if it is ours."""
        if before is not None and before.folder.parent == self._steps:
            shutil.rmtree(before.folder, ignore_errors=True)

    def _as_wanted(self, result: BuildResult) -> BuildResult:
        if self._task.digest is not None and result.digest != self._task.digest:
            raise BuildError(
                f"what was built has the digest {result.digest}, spec.digest wants {self._task.digest}: leave "
                "spec.digest out, or correct it",
                again=False,
                reason=Reason.DIGEST_MISMATCH.value,
            )
        return result

    def _telling(self, phase: str) -> Heard:
        return lambda message, percent: self._teller.tell(phase, message, percent)


@contextmanager
def _told_as(what: str) -> Iterator[None]:
    """Errors of files and places as errors of the build."""
    try:
        yield
    except ArtifactError as error:
        raise of_artifact(what, error) from error
    except FetchStopped:
        raise StoppedError from None


def _marked_found(result: BuildResult) -> BuildResult:
    steps = [step.model_copy(update={"found": True}) for step in result.steps or []]
    return result.model_copy(update={"steps": steps or None})


def _bounded(checks: dict[str, Any]) -> dict[str, str]:
    return {str(name): str(value)[:_MOST_TEXT] for name, value in list(checks.items())[:_MOST_CHECKS]}


def _united(before: list[UsedInput], used: list[UsedInput]) -> list[UsedInput]:
    return [*before, *(one for one in used if one not in before)]
