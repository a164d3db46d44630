"""From users' feedback to a proposal in Git, step by step; each reads and writes the folder of one run.

    python -m closedloop collect RUN --feedback s3://BUCKET/PREFIX --log FILE --deployment NAMESPACE/NAME
    python -m closedloop select RUN --previous FILE
    python -m closedloop train RUN --base DIR --base-name NAME
    python -m closedloop evaluate RUN --base DIR --current DIR --regression FILE
    python -m closedloop propose RUN --repo DIR --file FILE --deployment NAME --base-model NAME --name NAME …

Exit status: 0 done, 1 it failed, 3 not this time (too few corrections, or not better).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from closedloop import judging
from closedloop.collecting import feedback_lines, joined
from closedloop.files import Json, StepError, as_lines, lines_of, read_json, read_lines, sha256, write_json
from closedloop.selecting import select
from closedloop.training import Hyperparameters, train
from tuneyard.api.systemprompt import SystemPrompt

NOT_THIS_TIME = 3


def _collect(options: argparse.Namespace) -> int:
    run: Path = options.run
    run.mkdir(parents=True, exist_ok=True)
    feedback = feedback_lines(options.feedback, options.endpoint, options.region, options.since)
    found, counts = joined(feedback, read_lines(options.log), options.deployment)
    (run / "collected.jsonl").write_bytes(as_lines(found))
    _say("collect", **counts)
    return 0


def _select(options: argparse.Namespace) -> int:
    run: Path = options.run
    previous = read_lines(options.previous) if options.previous else []
    found = select(read_lines(run / "collected.jsonl"), previous, options.held_out)
    train_lines, heldout_lines = as_lines(found.train), as_lines(found.heldout)
    (run / "train.jsonl").write_bytes(train_lines)
    (run / "heldout.jsonl").write_bytes(heldout_lines)
    write_json(run / "selection.json", {**found.counts, "datasetHash": sha256(train_lines)})
    _say("select", **found.counts)
    if found.counts["corrections"] < options.least or len(found.heldout) < judging.MIN_HELD_OUT:
        print(
            f"select: too little to learn from and to judge by: wait for {options.least} corrections, "
            f"{judging.MIN_HELD_OUT} of them held out"
        )
        return NOT_THIS_TIME
    return 0


def _train(options: argparse.Namespace) -> int:
    run: Path = options.run
    path = run / "train.jsonl"
    content = path.read_bytes()
    given = Hyperparameters(**{field.name: getattr(options, field.name) for field in fields(Hyperparameters)})
    examples = list(lines_of(content, str(path)))
    out, prompt = run / "adapter", _prompt(options)
    record = train(options.base, options.base_name, examples, out, given, prompt=prompt)
    write_json(run / "training.json", {**record, "datasetHash": sha256(content)})
    _say("train", examples=record["examples"], loss=record["loss"], digest=record["digest"])
    return 0


def _prompt(options: argparse.Namespace) -> Json | None:
    """The system prompt of the command line, as a LoRAAdapter has it."""
    if options.system_prompt is None:
        if options.always:
            raise StepError("--always is about a system prompt: give its file by --system-prompt")
        return None
    try:
        text: str = options.system_prompt.read_text().rstrip("\n")
        prompt: Json = SystemPrompt.from_dict({"text": text, "apply": "Always" if options.always else None}).to_dict()
    except (ValidationError, UnicodeDecodeError) as error:
        raise StepError(f"{options.system_prompt} is no system prompt: {error}") from None
    return prompt


def _evaluate(options: argparse.Namespace) -> int:
    from closedloop.evaluating import evaluate, still_right  # noqa: PLC0415 -- not before it is needed
    from tuneyard.systems.artifacts.folder import digest_of  # noqa: PLC0415

    run: Path = options.run
    training = read_json(run / "training.json", "train")
    base_digest = digest_of(options.base).digest
    if base_digest != training["baseDigest"]:
        raise StepError(f"{options.base} is not the base that the adapter was trained from: {training['baseDigest']}")
    heldout, taught = read_lines(run / "heldout.jsonl"), read_lines(run / "train.jsonl")
    corrected = [*heldout, *(e for e in taught if e["from"] != "previous")]
    regression = still_right(read_lines(options.regression), corrected)
    adapters = (options.current, run / "adapter")
    prompt = training.get("systemPrompt")
    found = evaluate(options.base, adapters, heldout, regression, longest=options.longest, prompt=prompt)
    told = {
        "digest": digest_of(run / "adapter").digest,
        "currentDigest": digest_of(options.current).digest,
        "heldoutHash": sha256(as_lines(heldout)),
        "regressionHash": sha256(as_lines(regression)),
        "evaluatedAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    write_json(run / "evaluation.json", {**told, **found})
    for rule in found["rules"]:
        print(f"evaluate: {'holds' if rule['holds'] else 'FAILS'}: {rule['what']}")
    print(f"evaluate: {'better' if found['better'] else 'not better'}")
    return 0


def _propose(options: argparse.Namespace) -> int:
    from closedloop.proposing import Proposal, propose  # noqa: PLC0415 -- it needs what train does not have

    given = {field.name: getattr(options, field.name) for field in fields(Proposal)}
    branch = propose(Proposal(**given))
    if branch is None:
        print("propose: the candidate is not better: nothing is proposed (evaluation.json says why)")
        return NOT_THIS_TIME
    print(f"propose: {branch} in {options.repo}: push it and open a pull request")
    return 0


def _say(step: str, **told: object) -> None:
    print(f"{step}: " + ", ".join(f"{name} {value}" for name, value in told.items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m closedloop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def step(name: str, words: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=words, description=words)
        added.add_argument("run", type=Path, help="folder of this run")
        added.set_defaults(step=run)
        return added

    collect = step("collect", "join exported feedback with the application's log", _collect)
    collect.add_argument("--feedback", required=True, help="s3://BUCKET/PREFIX, or a folder")
    collect.add_argument("--endpoint", help="S3 server, where it is not Amazon's")
    collect.add_argument("--region")
    collect.add_argument("--since", default="", metavar="YYYY-MM-DD", help="first day (default: all)")
    collect.add_argument("--log", type=Path, required=True, help="the application's conversations, JSON lines")
    collect.add_argument("--deployment", required=True, metavar="NAMESPACE/NAME")

    chosen = step("select", "choose what is learnt and what is kept out", _select)
    chosen.add_argument("--previous", type=Path, help="train.jsonl of the current adapter")
    chosen.add_argument("--held-out", type=float, default=0.25, help="share of the corrections (default 0.25)")
    chosen.add_argument("--least", type=int, default=20, help="corrections below which nothing is done (default 20)")

    trained = step("train", "train a LoRA from the base", _train)
    trained.add_argument("--base", type=Path, required=True, help="folder of the base")
    trained.add_argument("--base-name", required=True, help="what the base is called in adapter_config.json")
    trained.add_argument("--system-prompt", type=Path, metavar="FILE", help="what the adapter is trained under")
    trained.add_argument("--always", action="store_true", help="in place of clients' own instructions: apply: Always")
    for field in fields(Hyperparameters):
        default = field.default
        trained.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(default), default=default, help=f"default {default}"
        )

    evaluated = step("evaluate", "hold the candidate against base and current adapter", _evaluate)
    evaluated.add_argument("--base", type=Path, required=True, help="folder of the base")
    evaluated.add_argument("--current", type=Path, required=True, help="folder of the adapter that is served now")
    evaluated.add_argument("--regression", type=Path, required=True, help="answers that must stay, JSON lines")
    evaluated.add_argument("--longest", type=int, default=256, help="tokens of an answer (default 256)")

    proposed = step("propose", "commit the adapter and a revision of 1 % on a branch", _propose)
    for name, words in (
        ("deployment", "the ModelDeployment"),
        ("base-model", "the BaseModel"),
        ("name", "of the new LoRAAdapter, such as acme-support-v4"),
        ("revision", "name of the new revision, such as v4"),
        ("source", "where pods read the adapter: s3://…, hf://REPO@COMMIT or volume:NAME/PATH"),
        ("file", "the manifest with the ModelDeployment's revisions, relative to the repository"),
    ):
        proposed.add_argument(f"--{name}", required=True, help=words)
    proposed.add_argument("--repo", type=Path, required=True, help="a clone of the repository with the manifests")
    proposed.add_argument("--traffic-file", help="the one with its traffic, where that is another, such as a patch")
    proposed.add_argument("--adapter-folder", help="where the adapter's manifest comes (default: beside --file)")
    proposed.add_argument(
        "--other-prompt", action="store_true", help="its system prompt may be another than the served adapter's"
    )
    proposed.add_argument("--dataset", help="lineage.dataset: where train.jsonl is kept")
    proposed.add_argument("--run-url", help="lineage.run: where this run is recorded")
    proposed.add_argument("--code-commit", help="lineage.commit: commit of this pipeline")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run one step; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.step(options)
    except (StepError, OSError) as error:
        sys.stderr.write(f"{options.command}: {error}\n")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
