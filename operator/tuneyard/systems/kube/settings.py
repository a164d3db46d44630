"""What the chart mounts into the operator and the gateways: the settings file and the master secret."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import ValidationError

from tuneyard.planning.settings import Settings

MASTER_FILE = "TUNEYARD_MASTER_FILE"
"""Environment variable: path of the file that holds the master secret."""
_SHORTEST_MASTER = 16


class ConfigurationError(Exception):
    """The process cannot start; the message says what to change."""


def load_settings(path: Path) -> Settings:
    """The settings in a YAML file; an empty file means all defaults. Raises ConfigurationError."""
    try:
        data = yaml.safe_load(path.read_text())
        return Settings.from_dict(data or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigurationError(f"cannot read the settings in {path}: {error}") from error


def read_master() -> bytes:
    """The master secret, without white space around it, so that a file with a last newline gives the same keys.

    Raises ConfigurationError, which never shows it.
    """
    path = os.environ.get(MASTER_FILE)
    if not path:
        raise ConfigurationError(f"set {MASTER_FILE} to the file with the master secret")
    try:
        master = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"cannot read the master secret: {error.strerror} ({path})") from error
    if len(master) < _SHORTEST_MASTER:
        raise ConfigurationError(f"the master secret in {path} is shorter than {_SHORTEST_MASTER} bytes")
    return master
