"""`tuneyard gate`: one run of one gate, in the pod of its Job.

Rules:
- whatever comes of it stands in the report, the pod's termination message; the exit code is 0 unless the program itself
  is broken. Whether a gate is passed is not decided here;
- what people have to mend (prompts that are missing or cannot be read, a judge that does not answer) is said in one
  sentence, and is never a reason for or against the candidate.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import time
from pathlib import Path

from pydantic import ValidationError

from tuneyard.api.gatereports import MESSAGE_BYTES, GateReport, GateTask
from tuneyard.api.gates import DEFAULT_PROMPTS_KEY, JUDGE_KEY, JUDGE_URL, Evaluation, Gate, Judge
from tuneyard.gate import benchmark, evaluation
from tuneyard.gate.asking import Asker, MisroutedError, session
from tuneyard.gate.judge import Grader, JudgeError
from tuneyard.gate.prompts import Prompt, PromptsError, parsed
from tuneyard.planning.gatejobs import FOLDER, PROMPTS_FILE, TASK_FILE, TOKEN

TERMINATION_MESSAGE = Path("/dev/termination-log")
_WORD_LIMIT = 600


class CannotRunError(Exception):
    """Why the gate cannot measure, in words for people."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard gate`."""
    parser.add_argument("--folder", type=Path, default=Path(FOLDER), help="what the gate is told (mounted)")
    parser.add_argument("--report", type=Path, default=TERMINATION_MESSAGE, help="file for the report")


def run(args: argparse.Namespace) -> int:
    """Run the gate and leave its report."""
    began = time.monotonic()
    try:
        report = asyncio.run(_run(args.folder))
    except (CannotRunError, PromptsError, JudgeError, MisroutedError, benchmark.UnreachableError) as error:
        report = GateReport(cannot_run=str(error)[:_WORD_LIMIT])
    report = report.model_copy(update={"seconds": round(time.monotonic() - began, 1)})
    text = fitting(report)
    args.report.write_text(text)
    sys.stdout.write(text + "\n")
    return 0


def fitting(report: GateReport) -> str:
    """The report as JSON, with as many of its samples as fit."""
    while True:
        text = json.dumps(report.to_dict(), separators=(",", ":"), ensure_ascii=False)
        if len(text.encode()) <= MESSAGE_BYTES or not report.samples:
            return text
        report = report.model_copy(update={"samples": report.samples[:-1]})


async def _run(folder: Path) -> GateReport:
    task = _task(folder)
    gate = Gate.from_dict(dict(task.gate))
    token = (folder / "token" / TOKEN).read_text().strip()
    rivals = {"candidate": task.candidate, "stable": task.stable}
    load = gate.benchmark.concurrency if gate.benchmark else None
    async with session(load or benchmark.CONCURRENCY) as client:
        asker = Asker(client, task.gateway, task.model, token, task.job)
        if gate.benchmark is not None:
            return await benchmark.run(asker, gate.benchmark, **rivals)
        if gate.evaluation is None:
            raise CannotRunError("the gate is of a kind that this version does not know")
        prompts, digest = _prompts(folder, gate.evaluation)
        judge = gate.evaluation.judge
        grader = Grader(client, judge, _judge_key(folder, judge)) if judge else None
        return await evaluation.run(asker, gate.evaluation, prompts, grader, digest=digest, **rivals)


def _task(folder: Path) -> GateTask:
    try:
        return GateTask.model_validate_json((folder / "task" / TASK_FILE).read_text())
    except ValidationError as error:
        raise CannotRunError(f"{TASK_FILE} is of another version: {error.error_count()} errors") from None


def _prompts(folder: Path, gate: Evaluation) -> tuple[list[Prompt], str]:
    """The prompts, and the digest of their text."""
    where = f"ConfigMap {gate.prompts.config_map}, key {gate.prompts.key or DEFAULT_PROMPTS_KEY}"
    path = folder / "prompts" / PROMPTS_FILE
    if not path.exists():
        raise CannotRunError(f"{where} does not exist: create it, with a JSON object a line")
    try:
        text = path.read_text()
        return parsed(text), f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    except (PromptsError, UnicodeDecodeError) as error:
        raise CannotRunError(f"{where}: {error}") from None


def _judge_key(folder: Path, judge: Judge) -> str | None:
    """The judge's API key, if a Secret is named; only for an address that the Secret allows."""
    if judge.secret is None:
        return None
    key, url = folder / "judge" / JUDGE_KEY, folder / "judge" / JUDGE_URL
    if not key.exists():
        raise CannotRunError(f"Secret {judge.secret} does not exist or has no key {JUDGE_KEY}")
    allowed = url.read_text().strip().rstrip("/") if url.exists() else None
    if allowed and judge.url.rstrip("/") != allowed and not judge.url.startswith(allowed + "/"):
        raise CannotRunError(
            f"Secret {judge.secret} allows its key to be sent to {allowed} only, and not to {judge.url}"
        )
    return key.read_text().strip()
