"""What is committed, and when nothing is; on a real Git repository, with an adapter that was not trained here."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from closedloop.files import StepError, sha256, write_json
from closedloop.proposing import Proposal, propose
from demo import closedloop as demo
from models.artifact import digest
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource

BASE_DIGEST = "sha256:71526461003810a5520c2e7b53b1697325a056d5c74fd0005034fc96e4ec52f2"


def git(repo: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(repo), *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return demo.repository(tmp_path / "repo")


@pytest.fixture
def gitops(tmp_path: Path) -> Path:
    """A repository that is laid out as examples/gitops."""
    folder = tmp_path / "gitops"
    shutil.copytree(demo.ROOT / "examples" / "gitops", folder)
    return demo.committed(folder)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(demo.ROOT / "examples" / "adapters" / "acme-support-v2", run / "adapter")
    (run / "train.jsonl").write_bytes(b'{"answer": "a"}\n')
    found = digest(run / "adapter")
    training = {
        "base": demo.BASE_NAME,
        "baseDigest": BASE_DIGEST,
        "digest": found,
        "hyperparameters": {"epochs": 12, "learning_rate": 0.003, "rank": 8},
        "trainedAt": "2026-11-20T12:00:00Z",
        "datasetHash": sha256(b'{"answer": "a"}\n'),
    }
    write_json(run / "training.json", training)
    evaluation = {
        "digest": found,
        "better": True,
        "rules": [{"holds": True, "what": "9 questions held out"}],
        "heldout": {"base": 0.1, "current": 0.5, "candidate": 0.9},
        "regression": {"base": 0.1, "current": 1.0, "candidate": 0.99},
        "heldoutHash": sha256(b"h"),
        "regressionHash": sha256(b"r"),
        "evaluatedAt": "2026-11-20T13:00:00Z",
    }
    write_json(run / "evaluation.json", evaluation)
    return run


def proposal(run: Path, repo: Path, **change: Any) -> Proposal:
    given: dict[str, Any] = {
        "file": "models/acme-support.yaml",
        "deployment": "acme-support",
        "base_model": "smollm2",
        "name": "acme-support-v4",
        "revision": "v4",
        "source": "s3://models/acme-support/v4/",
        "run_url": "https://ci.example.com/runs/7",
        **change,
    }
    return Proposal(run, repo, **given)


def change(path: Path, **values: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


def test_a_commit_on_a_branch_and_nothing_else(run: Path, repo: Path) -> None:
    (repo / "models" / "acme-support.yaml").write_text("somebody works here\n")
    assert propose(proposal(run, repo)) == "propose/acme-support-v4"
    assert git(repo, "status", "--porcelain") == " M models/acme-support.yaml\n"
    assert git(repo, "branch", "--show-current") == "main\n"
    assert git(repo, "worktree", "list").count("\n") == 1
    branch = "propose/acme-support-v4"
    assert git(repo, "diff", "--name-only", "main", branch).split() == [
        "models/acme-support-v4.yaml",
        "models/acme-support.yaml",
        "models/kustomization.yaml",
    ]
    told = git(repo, "log", "-1", "--format=%B", branch)
    assert told.startswith("acme-support: try acme-support-v4 on 1 % of the traffic\n")
    assert "held out 0.90 (current 0.50, base 0.10), regression 0.99 (current 1.00)" in told
    assert "- 9 questions held out" in told


def test_the_adapter_has_its_lineage_and_no_parent(run: Path, repo: Path) -> None:
    propose(proposal(run, repo))
    text = git(repo, "show", "propose/acme-support-v4:models/acme-support-v4.yaml")
    adapter = LoRAAdapterResource.from_dict(yaml.safe_load(text))
    assert adapter.spec.to_dict() == {
        "baseModel": "smollm2",
        "source": {"s3": {"uri": "s3://models/acme-support/v4/"}},
        "digest": digest(run / "adapter"),
        "lineage": {
            "version": "v4",
            "datasetHash": sha256(b'{"answer": "a"}\n'),
            "hyperparameters": {"epochs": "12", "learning_rate": "0.003", "rank": "8"},
            "run": "https://ci.example.com/runs/7",
            "trainedAt": "2026-11-20T12:00:00Z",
            "evals": [
                {
                    "name": "held_out",
                    "score": 0.9,
                    "dataset": sha256(b"h"),
                    "evaluatedAt": "2026-11-20T13:00:00Z",
                },
                {
                    "name": "regression",
                    "score": 0.99,
                    "dataset": sha256(b"r"),
                    "evaluatedAt": "2026-11-20T13:00:00Z",
                },
                {"name": "better_than_current", "passed": True, "evaluatedAt": "2026-11-20T13:00:00Z"},
            ],
        },
    }


def test_the_deployment_gives_it_one_percent(run: Path, repo: Path) -> None:
    propose(proposal(run, repo))
    text = git(repo, "show", "propose/acme-support-v4:models/acme-support.yaml")
    assert "# since May" in text
    spec = ModelDeploymentResource.from_dict(yaml.safe_load(text)).spec
    assert {t.revision: t.weight for t in spec.traffic} == {"v1": 99, "v4": 1}
    assert [(r.name, r.adapter) for r in spec.revisions] == [("v1", "acme-support-v1"), ("v4", "acme-support-v4")]


def test_nothing_where_it_is_not_better(run: Path, repo: Path) -> None:
    change(run / "evaluation.json", better=False)
    assert propose(proposal(run, repo)) is None
    assert git(repo, "branch", "--list").split() == ["*", "main"]


@pytest.mark.parametrize(
    ("spoil", "given", "said"),
    [
        (lambda run: (run / "adapter" / "adapter_config.json").write_text("{}"), {}, "not the one that was evaluated"),
        (lambda run: (run / "train.jsonl").write_text("{}\n"), {}, "not what the adapter was trained on"),
        (lambda run: (run / "evaluation.json").unlink(), {}, "run `evaluate` first"),
        (lambda run: change(run / "training.json", baseDigest=sha256(b"x")), {}, "train from the base that is served"),
        (None, {"file": "models/nothing.yaml"}, "cannot be read in the repository's HEAD"),
        (None, {"deployment": "other"}, "no ModelDeployment other"),
        (None, {"revision": "v1"}, "a revision v1 already"),
        (None, {"name": "acme-support-v1"}, "models/acme-support-v1.yaml exists already"),
        (None, {"source": "v4"}, "is no source"),
        (None, {"traffic_file": "models/nothing.yaml"}, "cannot be read in the repository's HEAD"),
        (None, {"traffic_file": "models/base.yaml"}, "no ModelDeployment acme-support"),
        (None, {"adapter_folder": "nowhere"}, "no folder nowhere"),
    ],
)
def test_refused_and_no_branch_is_left(run: Path, repo: Path, spoil: Any, given: dict[str, Any], said: str) -> None:
    if spoil:
        spoil(run)
    with pytest.raises(StepError, match=said):
        propose(proposal(run, repo, **given))
    assert git(repo, "branch", "--list").split() == ["*", "main"]
    assert git(repo, "worktree", "list").count("\n") == 1


def test_proposed_once(run: Path, repo: Path) -> None:
    propose(proposal(run, repo))
    with pytest.raises(StepError, match="exists already"):
        propose(proposal(run, repo))


LAYOUT = {"file": "deployments/acme-support.yaml", "adapter_folder": "adapters"}


@pytest.mark.parametrize("environment", ["production", "staging"])
@pytest.mark.lasting
def test_where_environments_have_their_traffic_the_revision_is_listed_once_and_one_environment_tries_it(
    run: Path, gitops: Path, environment: str
) -> None:
    traffic = f"environments/{environment}/traffic.yaml"
    propose(proposal(run, gitops, **LAYOUT, traffic_file=traffic))
    heaviest = "v1" if environment == "production" else "v2"
    files = git(gitops, "diff", "--name-only", "main", "propose/acme-support-v4").split()
    assert files == [
        "adapters/acme-support-v4.yaml",
        "adapters/kustomization.yaml",
        "deployments/acme-support.yaml",
        traffic,
    ]
    edits = git(gitops, "diff", "--unified=0", "main", "propose/acme-support-v4", "--", *files[1:]).splitlines()
    assert [line for line in edits if line[0] in "+-" and line[:3] not in ("+++", "---")] == [
        "+  - acme-support-v4.yaml",
        "+    - {name: v4, baseModel: smollm2, adapter: acme-support-v4}",
        f"-    - {{revision: {heaviest}, weight: 100}}",
        f"+    - {{revision: {heaviest}, weight: 99}}",
        "+    - {revision: v4, weight: 1}",
    ]


def test_a_part_without_traffic_says_where_that_is_to_be_looked_for(run: Path, gitops: Path) -> None:
    with pytest.raises(StepError, match=r"no spec\.traffic in this file.*--traffic-file"):
        propose(proposal(run, gitops, **LAYOUT))
    with pytest.raises(StepError, match=r"no spec\.revisions in this file"):
        swapped = {"file": "environments/staging/traffic.yaml", "traffic_file": "deployments/acme-support.yaml"}
        propose(proposal(run, gitops, **swapped))
    assert git(gitops, "branch", "--list").split() == ["*", "main"]


def served_with(repo: Path, run: Path, prompt: dict[str, str] | None) -> None:
    """The repository's v3 is what the candidate was held against, with this system prompt."""
    path = repo / "models" / "acme-support-v3.yaml"
    spec: dict[str, Any] = {
        "baseModel": "smollm2",
        "source": {"s3": {"uri": "s3://models/v3/"}},
        "digest": sha256(b"v3"),
    }
    if prompt:
        spec["systemPrompt"] = prompt
    path.write_text(yaml.safe_dump({"kind": "LoRAAdapter", "metadata": {"name": "acme-support-v3"}, "spec": spec}))
    git(repo, "add", "--all")
    git(repo, "commit", "--quiet", "-m", "v3")
    change(run / "evaluation.json", currentDigest=sha256(b"v3"))


def test_it_is_served_with_the_prompt_that_it_was_trained_under(run: Path, repo: Path) -> None:
    served_with(repo, run, {"text": "You are Acme's agent."})
    change(run / "training.json", systemPrompt={"text": "You are Acme's agent.", "apply": "IfAbsent"})
    propose(proposal(run, repo))
    text = git(repo, "show", "propose/acme-support-v4:models/acme-support-v4.yaml")
    prompt = LoRAAdapterResource.from_dict(yaml.safe_load(text)).spec.system_prompt
    assert prompt is not None
    assert prompt.text == "You are Acme's agent."


@pytest.mark.parametrize(
    "trained", [None, {"text": "You are a pirate."}, {"text": "You are Acme's.", "apply": "Always"}]
)
def test_another_prompt_than_the_served_one_is_refused(run: Path, repo: Path, trained: dict[str, str] | None) -> None:
    served_with(repo, run, {"text": "You are Acme's."})
    change(run / "training.json", systemPrompt=trained)
    with pytest.raises(StepError, match="acme-support-v3 has another systemPrompt"):
        propose(proposal(run, repo))
    assert propose(proposal(run, repo, other_prompt=True)) == "propose/acme-support-v4"
