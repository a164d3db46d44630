"""propose: a commit with a new LoRAAdapter and a revision of 1 %, on a branch of the repository with the manifests.

Rules:
- only what evaluate called better, and only what it looked at: the digests must be those of now;
- the base that was trained from is the one that the manifests pin;
- the user's checkout is not touched: the commit is made in a worktree that goes again. Nothing is pushed: people read
  what a machine proposes, by the pull request;
- it is served with the system prompt that it was trained under, which is the one of the adapter that it was held
  against, unless somebody says that it is to be another;
- lineage says what it was made from, and has no parent: it was trained from the base.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from closedloop.files import Json, StepError, read_json, sha256
from closedloop.manifestedit import with_listed, with_resource, with_revision, with_share
from tuneyard.api.loraadapter import LoRAAdapterSpec
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.cli.manifest import adapter_manifest
from tuneyard.cli.sourcetext import parsed_source
from tuneyard.systems.artifacts.folder import digest_of

PERCENT = 1


@dataclass(frozen=True)
class Proposal:
    """What is to be proposed, and where."""

    run: Path
    repo: Path
    file: str
    """The manifest with the ModelDeployment's revisions, relative to the repository."""
    deployment: str
    base_model: str
    """The BaseModel's name."""
    name: str
    """The new LoRAAdapter's."""
    revision: str
    source: str
    """Where pods read the files: s3://…, hf://… or volume:…"""
    traffic_file: str | None = None
    """The one with its traffic, where that is another, such as an environment's patch."""
    adapter_folder: str | None = None
    """Where the adapter's manifest comes; None: beside `file`."""
    dataset: str | None = None
    """Where the dataset is kept."""
    other_prompt: bool = False
    """Whether its system prompt may be another than that of the adapter which it was held against."""
    run_url: str | None = None
    code_commit: str | None = None


def propose(wanted: Proposal) -> str | None:
    """The branch with the commit; None where the candidate is not better. Raises StepError."""
    found = read_json(wanted.run / "evaluation.json", "evaluate")
    if not found["better"]:
        return None
    training = read_json(wanted.run / "training.json", "train")
    digest = digest_of(wanted.run / "adapter").digest
    if digest != found["digest"] or digest != training["digest"]:
        raise StepError("the adapter is not the one that was evaluated: run `evaluate` again")
    dataset = (wanted.run / "train.jsonl").read_bytes()
    if sha256(dataset) != training["datasetHash"]:
        raise StepError("train.jsonl is not what the adapter was trained on: run `train` again")
    manifest = adapter_manifest(
        wanted.name, _spec(wanted, found, training, digest), None, f"Proposed by closedloop: {_sentence(found)}"
    )
    branch = f"propose/{wanted.name}"
    if _git(wanted.repo, "branch", "--list", branch).strip():
        raise StepError(f"the branch {branch} exists already: merge or delete it, or choose another --name")
    with tempfile.TemporaryDirectory(prefix="closedloop-") as scratch:
        tree = Path(scratch) / "tree"
        _git(wanted.repo, "worktree", "add", "--quiet", "-b", branch, str(tree), "HEAD")
        try:
            _same_prompt(wanted, tree, found.get("currentDigest"), training.get("systemPrompt"))
            _write(wanted, tree, manifest, training["baseDigest"])
            _git(tree, "add", "--all")
            _git(tree, "commit", "--quiet", "-m", _message(wanted, found))
        except BaseException:
            _git(wanted.repo, "worktree", "remove", "--force", str(tree))
            _git(wanted.repo, "branch", "-D", branch)
            raise
        _git(wanted.repo, "worktree", "remove", "--force", str(tree))
    return branch


def _spec(wanted: Proposal, found: Json, training: Json, digest: str) -> LoRAAdapterSpec:
    scored = {"evaluatedAt": found["evaluatedAt"]}
    lineage = {
        "version": wanted.revision,
        "dataset": wanted.dataset,
        "datasetHash": training["datasetHash"],
        "hyperparameters": {name: str(value) for name, value in training["hyperparameters"].items()},
        "run": wanted.run_url,
        "commit": wanted.code_commit,
        "trainedAt": training["trainedAt"],
        "evals": [
            {"name": "held_out", "score": found["heldout"]["candidate"], "dataset": found["heldoutHash"], **scored},
            {
                "name": "regression",
                "score": found["regression"]["candidate"],
                "dataset": found["regressionHash"],
                **scored,
            },
            {"name": "better_than_current", "passed": True, **scored},
        ],
    }
    try:
        return LoRAAdapterSpec.from_dict(
            {
                "baseModel": wanted.base_model,
                "source": parsed_source(wanted.source).to_dict(),
                "digest": digest,
                **({"systemPrompt": training["systemPrompt"]} if training.get("systemPrompt") else {}),
                "lineage": {key: value for key, value in lineage.items() if value is not None},
            }
        )
    except (ValidationError, ValueError) as error:
        raise StepError(f"the adapter cannot be described: {error}") from None


def _write(wanted: Proposal, tree: Path, manifest: str, base_digest: str) -> None:
    text = _read(tree, wanted.file)
    pinned = _pinned_base(tree, wanted.base_model)
    if pinned not in (None, base_digest):
        raise StepError(
            f"BaseModel {wanted.base_model} is pinned to {pinned}, the adapter was trained from {base_digest}: train "
            "from the base that is served"
        )
    revision = {"name": wanted.revision, "baseModel": wanted.base_model, "adapter": wanted.name}
    if wanted.traffic_file in (None, wanted.file):
        changed = {wanted.file: with_revision(text, wanted.deployment, revision, PERCENT)}
    else:
        share = _read(tree, wanted.traffic_file)
        changed = {
            wanted.file: with_listed(text, wanted.deployment, revision),
            wanted.traffic_file: with_share(share, wanted.deployment, wanted.revision, PERCENT),
        }
    _validate(changed.values(), wanted.deployment)
    for file, new in changed.items():
        (tree / file).write_bytes(new.encode())
    folder = (tree / wanted.file).parent if wanted.adapter_folder is None else tree / wanted.adapter_folder
    if not folder.is_dir():
        raise StepError(f"there is no folder {wanted.adapter_folder} in the repository's HEAD")
    own = folder / f"{wanted.name}.yaml"
    if own.exists():
        raise StepError(f"{own.relative_to(tree)} exists already: choose another --name")
    own.write_text(manifest)
    kustomization = folder / "kustomization.yaml"
    if kustomization.exists():
        kustomization.write_bytes(with_resource(kustomization.read_bytes().decode(), own.name).encode())


def _read(tree: Path, file: str) -> str:
    try:
        return (tree / file).read_bytes().decode()
    except OSError as error:
        raise StepError(f"{file} cannot be read in the repository's HEAD: {error.strerror}") from None


def _validate(texts: Iterable[str], deployment: str) -> None:
    """The ModelDeployment must be one when its parts are put together."""
    spec: Json = {}
    for text in texts:
        for document in yaml.safe_load_all(text):
            if (
                isinstance(document, dict)
                and document.get("kind") == "ModelDeployment"
                and document["metadata"].get("name") == deployment
            ):
                spec |= document["spec"]
    ModelDeploymentResource.from_dict({"metadata": {"name": deployment}, "spec": spec})


def _same_prompt(wanted: Proposal, tree: Path, served: str | None, trained: Json | None) -> None:
    """Raises StepError where the adapter that was held against has another system prompt in the repository."""
    for manifest in () if wanted.other_prompt or served is None else _manifests(tree, "LoRAAdapter"):
        spec = manifest.get("spec", {})
        if spec.get("digest") == served and _prompt_words(spec.get("systemPrompt")) != _prompt_words(trained):
            raise StepError(
                f"LoRAAdapter {manifest['metadata']['name']} has another systemPrompt than this adapter was trained "
                "under: train with --system-prompt (and --always), or propose with --other-prompt"
            )


def _prompt_words(prompt: Json | None) -> list[str] | None:
    return None if prompt is None else SystemPrompt.from_dict(prompt).identity


def _pinned_base(tree: Path, name: str) -> str | None:
    """The digest that a manifest of the repository pins the BaseModel to."""
    for manifest in _manifests(tree, "BaseModel"):
        if manifest.get("metadata", {}).get("name") == name:
            digest: str | None = manifest.get("spec", {}).get("digest")
            return digest
    return None


def _manifests(tree: Path, kind: str) -> Iterator[Json]:
    """All of one kind in the repository."""
    for path in sorted(tree.rglob("*.yaml")):
        try:
            documents: list[Any] = list(yaml.safe_load_all(path.read_text()))
        except (yaml.YAMLError, UnicodeDecodeError):
            continue  # such as a chart's templates
        yield from (d for d in documents if isinstance(d, dict) and d.get("kind") == kind)


def _sentence(found: Json) -> str:
    held, kept = found["heldout"], found["regression"]
    return (
        f"held out {held['candidate']:.2f} (current {held['current']:.2f}, base {held['base']:.2f}), "
        f"regression {kept['candidate']:.2f} (current {kept['current']:.2f})"
    )


def _message(wanted: Proposal, found: Json) -> str:
    rules = "\n".join(f"- {rule['what']}" for rule in found["rules"])
    return (
        f"{wanted.deployment}: try {wanted.name} on {PERCENT} % of the traffic\n\n"
        f"Trained from the base on users' corrections. {_sentence(found)}.\n\n{rules}\n"
    )


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepError(f"git {arguments[0]} failed in {folder}: {done.stderr.strip()}")
    return done.stdout
