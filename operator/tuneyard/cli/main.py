"""`tuneyard`, also installed as `kubectl-tuneyard`: one program, whose first word chooses the command.

Rules:
- only the chosen command's modules are imported, so that a model pod's first step does not wait for a Kubernetes
  client or an xDS server that it never uses;
- a user's mistake is one line on stderr and an exit code, never a traceback; the long-running processes keep theirs,
  because there a traceback is what a bug report needs;
- exit codes: 0 done (or ready), 1 not (ready, found, valid), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneyard import __version__
from tuneyard.cli.errors import UserError

DEFAULT_CONFIG = Path("/etc/tuneyard/config.yaml")
"""Where the chart mounts the settings of the operator and the gateways."""


@dataclass(frozen=True)
class Command:
    """One first word: its line of help, and how it gets its arguments and runs, both without importing it early."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _lazy(module: str, function: str) -> Callable[[Any], Any]:
    """A call of `module.function` that imports the module only when it is made."""

    def call(argument: Any) -> Any:
        return getattr(importlib.import_module(module), function)(argument)

    return call


def _config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"settings (default {DEFAULT_CONFIG})")


def _gateway_arguments(parser: argparse.ArgumentParser) -> None:
    _config_argument(parser)
    parser.add_argument(
        "--bootstrap-only",
        type=Path,
        metavar="FILE",
        help="write Envoy's bootstrap configuration to FILE and end",
    )


def _run_operator(args: argparse.Namespace) -> int:
    config = _existing(args.config)
    return int(importlib.import_module("tuneyard.handlers.main").run(config))


def _run_gateway(args: argparse.Namespace) -> int:
    config = _existing(args.config)
    if args.bootstrap_only is not None:
        return int(importlib.import_module("tuneyard.gateway.envoyfile").write_bootstrap(config, args.bootstrap_only))
    return int(importlib.import_module("tuneyard.gateway.main").run(config))


def _existing(config: Path) -> Path:
    if not config.is_file():
        raise UserError(f"the settings file {config} does not exist: name another one with --config")
    return config


COMMANDS = (
    Command(
        "status",
        "show model deployments: revisions, weights, adapters per pod, conditions, events",
        _lazy("tuneyard.cli.status", "add_arguments"),
        _lazy("tuneyard.cli.status", "run"),
    ),
    Command(
        "rollout",
        "show a rollout, or pause, resume, promote, abort or retry it",
        _lazy("tuneyard.cli.rollout", "add_arguments"),
        _lazy("tuneyard.cli.rollout", "run"),
    ),
    Command(
        "drill",
        "rehearse a rollback: a bad candidate beside what is stable, and how long until it is rolled back by itself",
        _lazy("tuneyard.cli.drill", "add_arguments"),
        _lazy("tuneyard.cli.drill", "run"),
    ),
    Command(
        "history",
        "show which revisions of a model deployment became stable and which were rejected",
        _lazy("tuneyard.cli.history", "add_arguments"),
        _lazy("tuneyard.cli.history", "run"),
    ),
    Command(
        "report",
        "show what gates have found of a model deployment's revisions: numbers, limits, plots, samples",
        _lazy("tuneyard.cli.report", "add_arguments"),
        _lazy("tuneyard.cli.report", "run"),
    ),
    Command(
        "lineage",
        "show what answers under a name and what it was made from: revisions, adapters, base, run, data, evaluations",
        _lazy("tuneyard.cli.lineage", "add_arguments"),
        _lazy("tuneyard.cli.lineage", "run"),
    ),
    Command(
        "usage",
        "show tokens by tenant, deployment, revision or adapter, from the records that gateways export",
        _lazy("tuneyard.cli.usage", "add_arguments"),
        _lazy("tuneyard.cli.usage", "run"),
    ),
    Command(
        "cost",
        "show what tokens have cost: of pools and hosted APIs, against a pool each and against other prices",
        _lazy("tuneyard.cli.cost", "add_arguments"),
        _lazy("tuneyard.cli.cost", "run"),
    ),
    Command(
        "tenants",
        "show who may call what: tenants, their keys (never values), their models, and what is wrong",
        _lazy("tuneyard.cli.tenants", "add_arguments"),
        _lazy("tuneyard.cli.tenants", "run"),
    ),
    Command(
        "import",
        "write a LoRAAdapter manifest with its lineage, from where the training was recorded",
        _lazy("tuneyard.cli.importing", "add_arguments"),
        _lazy("tuneyard.cli.importing", "run"),
    ),
    Command(
        "digest",
        "print the digest of an artifact (a folder, hf://… or s3://…), for spec.digest",
        _lazy("tuneyard.cli.digest", "add_arguments"),
        _lazy("tuneyard.cli.digest", "run"),
    ),
    Command(
        "pin",
        "write commits and digests into manifests, leaving the rest as it is",
        _lazy("tuneyard.cli.pin", "add_arguments"),
        _lazy("tuneyard.cli.pin", "run"),
    ),
    Command(
        "plan",
        "show the pools that manifests make, and the memory that these need, before anything is applied",
        _lazy("tuneyard.cli.plan", "add_arguments"),
        _lazy("tuneyard.cli.plan", "run"),
    ),
    Command(
        "export",
        "write a model deployment for a gateway of your own (an HTTPRoute)",
        _lazy("tuneyard.cli.export", "add_arguments"),
        _lazy("tuneyard.cli.export", "run"),
    ),
    Command("operator", "run the operator (in the cluster)", _config_argument, _run_operator),
    Command("gateway", "run the gateway process beside Envoy (in the cluster)", _gateway_arguments, _run_gateway),
    Command(
        "agent",
        "run or prepare the agent beside an engine (in a model pod)",
        _lazy("tuneyard.agent.main", "add_arguments"),
        _lazy("tuneyard.agent.main", "run"),
    ),
    Command(
        "gate",
        "run a gate of a rollout (in the pod of its Job)",
        _lazy("tuneyard.gate.main", "add_arguments"),
        _lazy("tuneyard.gate.main", "run"),
    ),
    Command(
        "build",
        "make a model out of others (in the pod of a Job)",
        _lazy("tuneyard.build.main", "add_arguments"),
        _lazy("tuneyard.build.main", "run"),
    ),
)


def program_name(executable: str) -> str:
    """How the user called this program: `tuneyard`, or `kubectl tuneyard` for the plugin."""
    return "kubectl tuneyard" if Path(executable).name.startswith("kubectl-tuneyard") else "tuneyard"


def chosen_command(arguments: Sequence[str]) -> Command | None:
    """The command that the first word which is no option names, if it names one."""
    word = next((a for a in arguments if not a.startswith("-")), None)
    return next((c for c in COMMANDS if c.name == word), None)


def build_parser(program: str, chosen: Command | None) -> argparse.ArgumentParser:
    """The parser with every command's help line, and with the arguments of the chosen one only."""
    parser = argparse.ArgumentParser(prog=program, description="Serve fine-tuned language models on Kubernetes.")
    parser.add_argument("--version", action="version", version=f"tuneyard {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        added = commands.add_parser(
            command.name, help=command.help, description=f"{command.help[0].upper()}{command.help[1:]}."
        )
        if command is chosen:
            command.add_arguments(added)
    return parser


def run(arguments: Sequence[str], program: str = "tuneyard") -> int:
    """Run one command; returns the exit code. Wrong usage raises SystemExit(2), as argparse does."""
    chosen = chosen_command(arguments)
    args = build_parser(program, chosen).parse_args(arguments)
    assert chosen is not None, "argparse refuses a command that is not in COMMANDS"  # noqa: S101
    try:
        return chosen.run(args)
    except UserError as error:
        sys.stderr.write(f"{program}: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `tuneyard status | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def main() -> None:
    """The entry point of both scripts."""
    sys.exit(run(sys.argv[1:], program_name(sys.argv[0])))
