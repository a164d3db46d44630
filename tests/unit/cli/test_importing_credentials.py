"""`tuneyard import` and credentials among what was recorded: none gets into a manifest, and nothing else is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneyard.cli.main import run
from tuneyard.systems.trackers import mlflow, wandb
from tuneyard.systems.trackers.record import Measured, Record, Selection

ADAPTER = Path(__file__).resolve().parents[3] / "examples" / "adapters" / "acme-support-v3"
HEX = "0123456789abcdef0123456789abcdef01234567"
HUB = f"hf_{'aB3' * 11}"
AWS = "AKIAIOSFODNN7EXAMPLE"
ALL = Selection()


def kept(found: dict[str, Any]) -> dict[str, str]:
    record = Record()
    record.add_parameters(found, ALL)
    return record.lineage.hyperparameters or {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hub_token", "plain-words-also"),
        ("push_to_hub_token", HUB),
        ("hubToken", HEX),
        ("token", "x"),
        ("use_auth_token", HEX),
        ("env.HF_TOKEN", "x"),
        ("api_tokens", "a, b"),
        ("aws_session_token", "IQoJb3JpZ2luX2Vj"),
        ("wandb_api_key", HEX),
        ("WANDB_APIKEY", HEX),
        ("openai.key", "x"),
        ("aws_access_key_id", "x"),
        ("storage_account_key", "x"),
        ("client_secret", "x"),
        ("tokenizer_secret", "x"),
        ("db.password", "12345"),
        ("db_passwd", "x"),
        ("google_credentials", '{"a": 1}'),
        ("mlflow.authorization", "Basic bWU6eA=="),
        ("connection_string", "Server=x;Pwd=y"),
        ("note", f"pushed with {HUB}"),
        ("key_id", AWS),
        ("endpoint", "https://me:s3cr3t@models.example/v1"),
        ("data", "https://s3.example/x?X-Amz-Expires=60&X-Amz-Signature=00ff"),
        ("data", "https://a.blob.example/x?sv=2024&sig=abc%3D"),
        ("command", f"train.py --lr 1 --wandb_key={HEX}"),
        ("command", "train.py --hub_token plain-words-also"),
        ("command", "WANDB_API_KEY=plain-words-also train.py"),
        ("header", "Bearer abcdefghijklmnop"),
        ("ssh", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl"),
        ("judge", f"sk-proj-{'a1B2' * 8}"),
        ("repo", f"ghp_{'a1B2' * 9}"),
        ("jwt", f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{'x' * 43}"),
        ("callbacks", [{"name": "hub", "hub_token": "x"}]),
        ("report_to", ["wandb", HUB]),
        ("nested", {"deep": {"password": "x"}}),
    ],
)
def test_what_looks_like_a_credential_is_left_out(name: str, value: Any) -> None:
    assert kept({name: value, "lr": "1"}) == {"lr": "1"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 512),
        ("max_new_tokens", "512"),
        ("num_input_tokens_seen", 0.5),
        ("pad_token_id", 2),
        ("eos_token", "<|im_end|>"),
        ("unk_token", "[UNK]"),
        ("pad_token", "x"),
        ("response_token_ids", [1, 2]),
        ("additional_special_tokens", ["<a>", "<b>"]),
        ("tokenizer_name", "acme/tokenizer"),
        ("tokenizer", "acme/tokens-and-secrets"),
        ("token_type", "word"),
        ("use_auth_token", "False"),
        ("num_key_value_heads", 8),
        ("text_key", "prompt"),
        ("keywords", "a"),
        ("stop", "eos_token=<|im_end|> max_tokens=20480000"),
        ("deepspeed", {"zero_optimization": {"stage": 2}}),
        ("base", "https://hub.example/acme/model@v1?download=true"),
        ("commit", HEX),
        ("script", "sk-learn/hf_trainer.py"),
        ("assistant", "task-oriented-and-rather-long-name-of-a-run"),
        ("target_modules", ["q_proj", "v_proj"]),
    ],
)
def test_what_only_sounds_like_one_stays(name: str, value: Any) -> None:
    assert list(kept({name: value})) == [name]


def test_the_placeholder_of_the_trainer_is_no_loss() -> None:
    record = Record()
    record.add_parameters({"hub_token": "<HUB_TOKEN>", "lr": 1}, ALL)
    assert (record.lineage.hyperparameters, record.notes) == ({"lr": "1"}, [])


def test_the_note_names_them_and_shows_none() -> None:
    record = Record()
    record.add_parameters({"wandb_api_key": HEX, "hub_token": HUB, "lr": 1}, ALL)
    assert record.notes == [
        "what looks like a credential is left out: hub_token, wandb_api_key (it stands in the record, for all who "
        "may read that: replace it if it is real)"
    ]


def test_other_fields_are_looked_at_too() -> None:
    record = Record()
    record.fill(dataset=f"hub:{HUB}", parent="https://me:pw@hub.example/base", commit=HEX)
    record.add_evaluations([Measured("loss", 1, "s3://me:pw@x/y"), Measured(HUB, 1)])
    assert record.lineage.to_dict() == {"commit": HEX, "evals": [{"name": "loss", "score": 1}]}
    assert [note.split(": ")[1].split(" (")[0] for note in record.notes] == [
        "dataset, parent",
        "the dataset of loss, an evaluation",
    ]


def test_a_folder_that_a_trainer_left_them_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(ADAPTER, folder)
    arguments = {"hub_token": HUB, "wandb_api_key": HEX, "learning_rate": 2e-4, "max_tokens": 512}
    (folder / "training_args.json").write_text(json.dumps(arguments))
    source = ["--source", "volume:models/acme"]
    assert run(["import", "dir", str(folder), "--name", "acme-v3", "--base-model", "llama", *source]) == 0
    text, said = capsys.readouterr()
    assert HUB not in text + said
    assert HEX not in text + said
    told = yaml.safe_load(text)["spec"]["lineage"]["hyperparameters"]
    assert (told["learning_rate"], told["max_tokens"]) == ("0.0002", "512")
    assert "hub_token, wandb_api_key" in said


def test_trackers_of_all_kinds_go_the_same_way() -> None:
    params = [{"key": "hub_token", "value": HUB}, {"key": "lr", "value": "1"}]
    from_mlflow = mlflow.record_of({"info": {"run_id": "1"}, "data": {"params": params}}, "https://x.example", ALL)
    config = json.dumps({"args": {"value": {"hub_token": HUB}}, "lr": {"value": 1}})
    from_wandb = wandb.record_of({"config": config}, "https://x.example/run", ALL)
    for record in (from_mlflow, from_wandb):
        assert record.lineage.hyperparameters == {"lr": "1"}
        assert HUB not in repr(record)
