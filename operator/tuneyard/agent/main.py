"""`tuneyard agent verify` and `tuneyard agent run`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from tuneyard.agent.fetching import Shelf, read_base
from tuneyard.agent.settings import Settings, SettingsError, settings_from
from tuneyard.agent.verify import BaseWanted, verify
from tuneyard.systems.artifacts.folder import ArtifactError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two commands of the agent."""
    commands = parser.add_subparsers(dest="agent_command", required=True)
    base = commands.add_parser("verify", help="check the base model's files and write the front's configuration")
    base.add_argument("--base-model", required=True, help="name of the BaseModel")
    base.add_argument("--path", required=True, type=Path, help="its folder, /artifacts/<volume>/<path>")
    base.add_argument("--tensor-parallel-size", type=int, default=1)
    base.add_argument("--digest", help="the pinned digest, sha256:<64 hex digits>")
    base.add_argument("--front-config", type=Path, help="where the front's Envoy configuration goes")
    base.add_argument("--termination-log", type=Path, default=Path("/dev/termination-log"), help=argparse.SUPPRESS)
    base.add_argument("--volumes", type=Path, default=Path("/artifacts"), help=argparse.SUPPRESS)
    commands.add_parser("run", help="load and prove adapters beside the engine; settings come from the environment")


def run(args: argparse.Namespace) -> int:
    """Run the command that was chosen; returns the exit code."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    if args.agent_command == "verify":
        wanted = BaseWanted(args.base_model, args.path, args.tensor_parallel_size, args.digest or None, args.volumes)
        return verify(wanted, args.front_config, args.termination_log)
    try:
        asyncio.run(_run(settings_from(os.environ)))
    except (SettingsError, ArtifactError) as error:
        logging.getLogger(__name__).error("%s", error)
        return 1
    return 0


async def _run(settings: Settings) -> None:
    """The agent until SIGTERM or SIGINT."""
    # imported here: `verify` needs no Kubernetes client, and a pod's first step should be quick
    from tuneyard.agent.plans import follow_plan  # noqa: PLC0415
    from tuneyard.agent.publishing import on_own_pod  # noqa: PLC0415
    from tuneyard.agent.running import running_agent  # noqa: PLC0415
    from tuneyard.systems.kube.client import connect  # noqa: PLC0415

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    base = await asyncio.to_thread(read_base, settings.base_path)
    shelf = Shelf(settings.volumes, settings.adapters, base, settings.max_rank)
    api = connect()
    async with running_agent(settings, shelf, on_own_pod(api, settings)) as agent:
        informer = follow_plan(api, settings, agent.knowledge)
        try:
            await stopping.wait()
        finally:
            await asyncio.to_thread(informer.stop)
