"""`tuneyard agent verify`, `tuneyard agent run`, `tuneyard agent hold` and `tuneyard agent keep`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from tuneyard.agent.basefiles import gguf_base_of
from tuneyard.agent.enginetold import engine_from
from tuneyard.agent.fetching import Shelf, read_base
from tuneyard.agent.settings import KeepSettings, Settings, SettingsError, keep_settings_from, settings_from
from tuneyard.agent.verify import BaseWanted, Find, Found, verify
from tuneyard.api.memorydemand import MemoryDemand
from tuneyard.api.sources import Source
from tuneyard.planning.podparts import KEPT_MARK
from tuneyard.systems.artifacts.folder import ArtifactError

_TERMINATED = 128 + signal.SIGTERM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The agent's commands."""
    commands = parser.add_subparsers(dest="agent_command", required=True)
    base = commands.add_parser("verify", help="check the base model's files and write the front's configuration")
    base.add_argument("--base-model", required=True, help="name of the BaseModel")
    base.add_argument("--path", required=True, type=Path, help="its folder, /artifacts/<volume>/<path>")
    base.add_argument("--tensor-parallel-size", type=int, default=1)
    base.add_argument("--digest", help="the pinned digest, sha256:<64 hex digits>")
    base.add_argument("--front-config", type=Path, help="where the front's Envoy configuration goes")
    base.add_argument("--termination-log", type=Path, default=Path("/dev/termination-log"), help=argparse.SUPPRESS)
    base.add_argument("--front-certificate", default="", help="folder of the front's certificate: it takes TLS too")
    base.add_argument("--memory", help="what decides how much GPU memory the pool needs, as JSON")
    base.add_argument("--source", help="where the base comes from over the network, as JSON")
    base.add_argument("--cache", type=Path, default=Path("/cache"), help=argparse.SUPPRESS)
    base.add_argument("--volumes", type=Path, default=Path("/artifacts"), help=argparse.SUPPRESS)
    commands.add_parser("run", help="load and prove adapters beside the engine; settings come from the environment")
    hold = commands.add_parser("hold", help="hold the base in the cache, in a pod that has engine ranks and no agent")
    hold.add_argument("--path", required=True, type=Path, help="the link to its folder")
    hold.add_argument("--source", required=True, help="where the base comes from over the network, as JSON")
    hold.add_argument("--cache", type=Path, default=Path("/cache"), help=argparse.SUPPRESS)
    keep = commands.add_parser("keep", help="keep a plan's base and adapters in the node's cache; settings as for run")
    keep.add_argument("--cache", type=Path, default=Path("/cache"), help=argparse.SUPPRESS)
    keep.add_argument("--mark", type=Path, default=Path(KEPT_MARK), help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the command that was chosen; returns the exit code."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    if args.agent_command == "verify":
        memory = MemoryDemand.from_dict(json.loads(args.memory)) if args.memory else None
        wanted = BaseWanted(
            args.base_model,
            args.path,
            args.tensor_parallel_size,
            args.digest or None,
            volumes=args.volumes,
            memory=memory,
            engine=engine_from(os.environ),
        )
        # The first process of a container is not ended by a signal that it does not handle: a pod that is deleted while
        # its base comes would keep its GPUs for the whole grace period. What has come stays, locks are the kernel's.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(_TERMINATED))
        find = _from_network(args) if args.source else None
        return verify(wanted, args.front_config, args.termination_log, find, args.front_certificate)
    try:
        if args.agent_command == "keep":
            asyncio.run(_keep(keep_settings_from(os.environ, args.cache, args.mark)))
        elif args.agent_command == "hold":
            asyncio.run(_hold(args))
        else:
            asyncio.run(_run(settings_from(os.environ)))
    except (SettingsError, ArtifactError) as error:
        logging.getLogger(__name__).error("%s", error)
        return 1
    return 0


def _from_network(args: argparse.Namespace) -> Find:
    """How the base comes over the network; tells others on the pod's annotation how far it is."""
    # imported here: a base on a volume needs neither a Kubernetes client nor those of hubs and object stores
    from tuneyard.agent.basefetch import from_network  # noqa: PLC0415
    from tuneyard.agent.obtaining import Obtainer  # noqa: PLC0415
    from tuneyard.agent.publishing import telling_of_base  # noqa: PLC0415
    from tuneyard.agent.settings import cache_limit, identity_from  # noqa: PLC0415
    from tuneyard.systems.artifacts.store import Store  # noqa: PLC0415
    from tuneyard.systems.kube.client import connect  # noqa: PLC0415
    from tuneyard.systems.kube.credentials import read_credentials  # noqa: PLC0415

    def find(wanted: BaseWanted) -> Found:
        api, pod = connect(), identity_from(os.environ)
        obtainer = Obtainer(
            Store(args.cache, cache_limit(os.environ)), lambda name: read_credentials(api, pod.namespace, name)
        )
        source = Source.from_dict(json.loads(args.source))
        return from_network(source, obtainer, telling_of_base(api, pod, wanted.name))(wanted)

    return find


async def _run(settings: Settings) -> None:
    """The agent until SIGTERM or SIGINT."""
    # imported here: `verify` needs no Kubernetes client, and a pod's first step should be quick
    from tuneyard.agent.basefetch import hold_base  # noqa: PLC0415
    from tuneyard.agent.obtaining import Obtainer  # noqa: PLC0415
    from tuneyard.agent.plans import follow_plan  # noqa: PLC0415
    from tuneyard.agent.publishing import on_own_pod  # noqa: PLC0415
    from tuneyard.agent.running import running_agent  # noqa: PLC0415
    from tuneyard.agent.snapshot import SNAPSHOT  # noqa: PLC0415
    from tuneyard.systems.artifacts.store import Store  # noqa: PLC0415
    from tuneyard.systems.kube.client import connect  # noqa: PLC0415
    from tuneyard.systems.kube.credentials import read_credentials  # noqa: PLC0415

    stopped = threading.Event()
    stopping = _told_to_stop(stopped)
    api = connect()
    obtainer = Obtainer(
        await asyncio.to_thread(Store, settings.cache, settings.cache_limit),
        lambda name: read_credentials(api, settings.namespace, name),
        stopped,
    )
    held = None
    # a process that ended has left its snapshot in the pod; without one the pod is new
    begins = settings.shared_adapters and not (settings.run / SNAPSHOT).exists()
    if settings.base_path.is_symlink():
        held = await asyncio.to_thread(hold_base, obtainer, settings.base_source, settings.base_path)
    base = await asyncio.to_thread(read_base, settings.base_path, custom=settings.engine.name == "custom")
    gguf = await asyncio.to_thread(gguf_base_of, settings.base_path)
    origin = settings.base_source.hugging_face if settings.base_source else None
    repo = origin.repo if origin else None
    shelf = Shelf(settings.volumes, settings.adapters, base, settings.max_rank, obtainer, repo, gguf)
    if begins:
        await asyncio.to_thread(shelf.empty)
    async with running_agent(settings, shelf, on_own_pod(api, settings)) as agent:
        informer = follow_plan(api, settings, agent.knowledge)
        try:
            await stopping.wait()
        finally:
            stopped.set()
            await asyncio.to_thread(informer.stop)
    if held is not None:
        held.release()


async def _hold(args: argparse.Namespace) -> None:
    """Hold the base until SIGTERM or SIGINT."""
    from tuneyard.agent.basefetch import hold_base  # noqa: PLC0415
    from tuneyard.agent.obtaining import Obtainer  # noqa: PLC0415
    from tuneyard.agent.settings import cache_limit, identity_from  # noqa: PLC0415
    from tuneyard.systems.artifacts.store import Store  # noqa: PLC0415
    from tuneyard.systems.kube.client import connect  # noqa: PLC0415
    from tuneyard.systems.kube.credentials import read_credentials  # noqa: PLC0415

    stopped = threading.Event()
    stopping = _told_to_stop(stopped)
    api, pod = connect(), identity_from(os.environ)
    store = await asyncio.to_thread(Store, args.cache, cache_limit(os.environ))
    obtainer = Obtainer(store, lambda name: read_credentials(api, pod.namespace, name), stopped)
    held = await asyncio.to_thread(hold_base, obtainer, Source.from_dict(json.loads(args.source)), args.path)
    await stopping.wait()
    if held is not None:
        held.release()


async def _keep(settings: KeepSettings) -> None:
    """Keep a node's cache until SIGTERM or SIGINT, or a bug in it."""
    from tuneyard.agent.keeping import Keeper  # noqa: PLC0415
    from tuneyard.agent.obtaining import Obtainer  # noqa: PLC0415
    from tuneyard.agent.plans import follow_prewarm_plan  # noqa: PLC0415
    from tuneyard.agent.publishing import telling_of_cache  # noqa: PLC0415
    from tuneyard.systems.artifacts.store import Store  # noqa: PLC0415
    from tuneyard.systems.kube.client import connect  # noqa: PLC0415
    from tuneyard.systems.kube.credentials import read_credentials  # noqa: PLC0415

    stopping = _told_to_stop()
    api = connect()
    obtainer = Obtainer(
        await asyncio.to_thread(Store, settings.cache, settings.cache_limit),
        lambda name: read_credentials(api, settings.namespace, name),
    )
    keeper = Keeper(obtainer, telling_of_cache(api, settings), settings.mark)
    informer = follow_prewarm_plan(api, settings.namespace, settings.plan, keeper.follow)
    work = asyncio.create_task(asyncio.to_thread(keeper.run))
    ending = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((work, ending), return_when=asyncio.FIRST_COMPLETED)
    finally:
        keeper.stop()
        await asyncio.to_thread(informer.stop)
        ending.cancel()
        await work


def _told_to_stop(stopped: threading.Event | None = None) -> asyncio.Event:
    """Set by SIGTERM or SIGINT, and with it `stopped`, which threads look at."""
    stopping = asyncio.Event()

    def stop() -> None:
        stopping.set()
        if stopped is not None:
            stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return stopping
