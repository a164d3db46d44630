"""The folder of a trained adapter: adapter_config.json, and what a trainer may have left beside it.

Rules:
- adapter_config.json is the authority on rank, alpha and modules: it is what engines load by;
- pickles (training_args.bin) are never read;
- what the folder holds on other things than the training (weights) is the digest's matter, not the record's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneyard.systems.trackers.modelcard import add_model_card
from tuneyard.systems.trackers.record import Record, Selection
from tuneyard.systems.trackers.server import TrackerError

ADAPTER_CONFIG = "adapter_config.json"
TRAINER_STATE = "trainer_state.json"
_CONFIG_FIELDS = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "layers_to_transform"),
    *("rank_pattern", "alpha_pattern", "init_lora_weights"),
)
_STATE_FIELDS = ("num_train_epochs", "max_steps", "train_batch_size")
_ARGUMENTS = ("training_args.json", "args.json", "hyperparameters.json")
_LIMIT = 64 * 1024 * 1024


def folder_record(folder: Path, selection: Selection) -> Record:
    """What an adapter's folder tells; raises TrackerError where it is none."""
    record = Record()
    config = _read(folder / ADAPTER_CONFIG)
    if config is None:
        raise TrackerError(f"{folder} is no adapter: it has no {ADAPTER_CONFIG}")
    add_adapter_config(record, config, selection)
    for name in _ARGUMENTS:
        record.add_parameters(_read(folder / name) or {}, selection)
    state = _read(folder / TRAINER_STATE) or _newest_state(folder)
    if state:
        add_trainer_state(record, state, selection)
    card = folder / "README.md"
    if card.is_file():
        try:
            text = card.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise TrackerError(f"{card} cannot be read: {error.strerror}") from None
        add_model_card(record, text, selection)
    return record


def add_adapter_config(record: Record, config: Mapping[str, Any], selection: Selection) -> None:
    """Add what adapter_config.json says; it wins over what is there."""
    told = {f: config[f] for f in _CONFIG_FIELDS if config.get(f) and (config[f] is not True or f.startswith("use_"))}
    before = record.lineage.hyperparameters
    record.lineage = record.lineage.model_copy(update={"hyperparameters": None})
    record.add_parameters(told, selection)
    record.add_parameters(before or {}, selection)
    parent = config.get("base_model_name_or_path")
    record.fill(parent=parent if isinstance(parent, str) else None)


def add_trainer_state(record: Record, state: Mapping[str, Any], selection: Selection) -> None:
    """Add what the Trainer's state says: how long it trained, and its last value of each metric."""
    record.add_parameters({f: state[f] for f in _STATE_FIELDS if state.get(f)}, selection)
    last: dict[str, Any] = {}
    history = state.get("log_history") or []
    entries = [e for e in history if isinstance(e, Mapping)] if isinstance(history, list) else []
    if not isinstance(history, list) or len(entries) < len(history):
        what = "holds entries that are no objects; they are" if entries else "is no list of objects, and is"
        record.notes.append(f"log_history of the trainer's state {what} left out")
    for entry in entries:
        last |= {k: v for k, v in entry.items() if not re.search(r"_(runtime|per_second)$", k)}
    for counter in ("epoch", "step"):
        last.pop(counter, None)
    record.add_metrics(last, selection)


def _newest_state(folder: Path) -> dict[str, Any] | None:
    """The state in the last checkpoint below the folder."""
    found = [(int(p.name[11:]), p) for p in folder.glob("checkpoint-*") if p.name[11:].isdecimal()]
    return _read(max(found)[1] / TRAINER_STATE) if found else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > _LIMIT:
            raise TrackerError(f"{path} is over {_LIMIT // 1024 // 1024} MiB")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TrackerError(f"{path} cannot be read: {error}") from None
    except RecursionError:
        raise TrackerError(f"{path} cannot be read: it is nested too deeply") from None
    if not isinstance(found, dict):
        raise TrackerError(f"{path} holds no JSON object")
    return found
