"""`tuneyard gateway`: the process beside Envoy.

Its life: read the snapshot of the process before it, if there is one; watch the API; feed Envoy as soon as enough is
known; keep a snapshot. While the API server is away it goes on with what it knows, and so does one that starts then:
after PATIENCE seconds without complete lists it feeds Envoy from the snapshot. Not before, because an Envoy that runs
already may know more than a snapshot does.
On SIGTERM it says that it is not ready, waits until nobody sends new requests here, lets Envoy finish its streams,
counts what is left, lets Prometheus look once more where no record has the tokens, writes the feedback and the usage
that wait, and ends; the chart's grace period has room for all of that. As the main container of the pod, with Envoy as
native sidecar, it thereby decides how long Envoy lives. Where the pod stays and only this process is replaced, Envoy
goes on, and the next process has it take requests again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import uvloop
from aiohttp import web

from tuneyard.api import names
from tuneyard.gateway import mirrorserver, quotafleet, quotarefusals, snapshot
from tuneyard.gateway.answermetrics import AnswerMetrics
from tuneyard.gateway.certificate import Certificate
from tuneyard.gateway.demand import Demand
from tuneyard.gateway.endings import Endings, EndingsMetrics
from tuneyard.gateway.engineloads import EngineLoads
from tuneyard.gateway.envoyadmin import EnvoyAdmin
from tuneyard.gateway.evidence import Evidence
from tuneyard.gateway.externalkeys import ExternalKeys
from tuneyard.gateway.feedback import Feedback, Given, Peers, join
from tuneyard.gateway.feedbackexport import FeedbackExport, FeedbackMetrics
from tuneyard.gateway.holding import Holding, serve
from tuneyard.gateway.looks import Looks
from tuneyard.gateway.metrics import Metrics
from tuneyard.gateway.mirroring import Mirroring
from tuneyard.gateway.mirrormetrics import MirrorMetrics
from tuneyard.gateway.options import Options, options
from tuneyard.gateway.pressure import POOLS_PATH, Pressure, PressureMetrics
from tuneyard.gateway.publisher import Publisher
from tuneyard.gateway.quotafleet import Fleet
from tuneyard.gateway.quotamonths import Months
from tuneyard.gateway.quotas import Quotas, quotas_of
from tuneyard.gateway.requestfiles import RequestFiles
from tuneyard.gateway.server import application
from tuneyard.gateway.shadow import Pods
from tuneyard.gateway.signingkeys import SigningKeys
from tuneyard.gateway.tenancy import Tenancy
from tuneyard.gateway.usage import STATE, Usage, UsageMetrics
from tuneyard.gateway.usageexport import STATE as EXPORT_STATE
from tuneyard.gateway.usageexport import UsageExport, UsageExportMetrics
from tuneyard.gateway.watches import Watches
from tuneyard.gateway.world import World
from tuneyard.planning.feedbackrecords import feedback_record
from tuneyard.planning.podcertificates import authority
from tuneyard.planning.quotas import Ledger
from tuneyard.planning.settings import Settings
from tuneyard.systems.envoy.answers import Answer, answers_of
from tuneyard.systems.envoy.bootstrap import FEEDBACK_PATH
from tuneyard.systems.envoy.listening import listening_socket
from tuneyard.systems.envoy.loads import Load, LoadReports
from tuneyard.systems.envoy.quotas import spent_of
from tuneyard.systems.envoy.requestlog import Line
from tuneyard.systems.envoy.tenancy import tenants_list_resources
from tuneyard.systems.envoy.translate import list_resources
from tuneyard.systems.kube.client import Api, connect
from tuneyard.systems.kube.settings import ConfigurationError, load_settings, read_master

PATIENCE = 2.0
"""Seconds that complete lists are waited for where there is a snapshot."""

_log = logging.getLogger(__name__)


class Gateway:
    """One gateway process."""

    def __init__(self, api: Api, settings: Settings, master: bytes, given: Options) -> None:
        """Nothing is started yet; needs a running event loop."""
        self._given = given
        self.metrics = Metrics()
        self.world = World()
        self.publisher = Publisher(
            given.name,
            self.world,
            partial(names.engine_key, master),
            self.metrics,
            partial(names.gate_token, master),
            listing=tenants_list_resources if given.keys else list_resources,
            authority=authority(master),
            tls_expected=settings.pod_tls,
            authorities=given.external_authorities,
        )
        self.external = self._keys_of_apis(api)
        self.tenancy: Tenancy | None = None
        if given.keys:
            self.tenancy = Tenancy(
                api,
                given.tenants_namespace or names.tenants_namespace(settings.tuneyard_namespace),
                self.publisher,
                partial(names.gate_token, master),
                path=given.tenants_snapshot,
                metrics=self.metrics,
                tokens=None if given.tokens is None else given.tokens.accepted,
            )
        self.demand = Demand(given.name, lambda: self.publisher.routed)
        loop = asyncio.get_running_loop()
        clock = loop.time
        self._loads = LoadReports(lambda: self.demand.begin(clock()), lambda loads: self._loaded(clock(), loads))
        self.answer_metrics = AnswerMetrics()
        self.evidence = Evidence(
            given.name,
            f"{given.name}-{secrets.token_hex(4)}",
            clock,
            loop.call_later,
            lambda: self.publisher.ads.connected,
        )
        self._token = names.observe_token(master)
        self._peers = Peers(given.peers, self._token)
        self.pressure = self._pressing()
        self.engine_loads = self._asking_engines(authority(master))
        self.feedback = Feedback(clock, self._rated, self._peers.ask)
        self.holding = Holding(
            self.publisher.routes, self.publisher.ads.in_force, self.demand.waiting, given.hold, self.metrics
        )
        self._pods = Pods(authority=authority(master))
        self.mirroring = Mirroring(
            given.name,
            self.publisher.routes,
            partial(names.engine_key, master),
            self._pods.ask,
            MirrorMetrics(self.metrics.registry),
        )
        self.publisher.on_change = self._rerouted
        self._writer = snapshot.SnapshotWriter(given.snapshot, self.world.lines, self.metrics)
        self.watches = Watches(
            api, self.world, self._touched, namespaces=settings.watch_namespaces, metrics=self.metrics
        )
        self.envoy = EnvoyAdmin(str(given.admin_socket))
        self._show()
        self._export: FeedbackExport | None = None
        if given.feedback is not None:
            self._export = FeedbackExport(given.name, given.feedback.open, FeedbackMetrics(self.metrics.registry))
        self.usage, self._usage_export, self._endings = self._reading(RequestFiles(given.log_folder))
        self.quotas = self._limiting(api, settings.tuneyard_namespace)
        self._looks = Looks(clock)
        self._certificate: Certificate | None = None
        if given.tls is not None:
            self._certificate = Certificate(
                self.envoy.certificates,
                time.time,
                self.metrics.registry,
                folder=given.tls.certificate,
                secret=given.tls.secret,
            )
        self._leaving = self._resumed = self._was_ready = False

    def _show(self) -> None:
        """What metrics look up when they are asked for."""
        self.metrics.connected.set_function(lambda: float(self.publisher.ads.connected))
        self.metrics.models.set_function(lambda: float(self.publisher.models))
        self.metrics.held.set_function(lambda: float(self.holding.held))

    def _pressing(self) -> Pressure | None:
        """What knows how full pools are, where that decides something."""
        limits = self._given.priorities
        if limits is None:
            return None
        metrics = PressureMetrics(self.metrics.registry)
        return Pressure(self._given.name, limits, self._peers.addresses, self._token, metrics)

    def _asking_engines(self, authority_of_pods: str) -> EngineLoads:
        """What reads engines, which is told with what is asked."""
        clock = asyncio.get_running_loop().time
        loads = EngineLoads(self._peers.addresses, self.demand.read, clock, authority_of_pods)
        self.demand.reading(loads.loads)
        return loads

    def _reading(self, files: RequestFiles) -> tuple[Usage | None, UsageExport | None, Endings]:
        """Who reads the request log: what counts tokens and writes them away, where that is wanted; everybody else."""
        given, registry, reopen = self._given, self.metrics.registry, self.envoy.reopen_logs
        if not given.usage:
            return None, None, Endings(files, self._ended, EndingsMetrics(registry), reopen=reopen)
        folder = given.log_folder
        usage = Usage(given.name, files, folder / STATE, reopen, UsageMetrics(registry))
        endings = Endings(files, self._ended, EndingsMetrics(registry))
        usage.others.append(lambda: endings.place)
        if given.usage_export is None:
            return usage, None, endings
        metrics = UsageExportMetrics(registry)
        export = UsageExport(given.name, files, folder / EXPORT_STATE, given.usage_export.open, metrics)
        usage.others.append(lambda: export.place)
        return usage, export, endings

    def _limiting(self, api: Api, namespace: str) -> Quotas | None:
        """What keeps tenants within their limits, where clients need keys."""
        if self.tenancy is None:
            return None
        given, limits = self._given, self.tenancy.limited
        fleet = Fleet(
            Ledger(f"{given.name}-{secrets.token_hex(4)}"), limits, self._peers.addresses, self._token, time.time
        )
        return quotas_of(fleet, limits, given.directory, Months(api, namespace), self.metrics.registry)

    def _keys_of_apis(self, api: Api) -> ExternalKeys:
        """What there is for external revisions."""
        mark, reading = self.publisher.mark, self.world.reading
        keys = ExternalKeys(
            api, self._given.external_snapshot, self.metrics, lambda secret: mark(reading(secret)), lambda m: mark((m,))
        )
        self.world.accesses = keys.access
        return keys

    def _touched(self, models: set[str]) -> None:
        self.external.follow(self.world.secrets())
        self.publisher.mark(models)
        self._writer.mark()

    def _rerouted(self, model: str) -> None:
        routes = self.publisher.routes(model)
        self.evidence.routed(model, routes)
        self.answer_metrics.routed(model, routes)
        self.holding.changed(model)
        self.mirroring.changed(model)
        self.external.routed(model, routes)
        for each in (self.tenancy, self.pressure, self.engine_loads):
            if each is not None:
                each.routed(model, routes)

    def _loaded(self, now: float, loads: Mapping[str, Load]) -> None:
        self.demand.reported(now, loads)
        if self.pressure is not None:
            self.pressure.reported(loads)

    def _ended(self, lines: Sequence[Line]) -> None:
        spent = spent_of(lines) if self.quotas is not None else None
        if self.quotas is not None and spent:
            self.quotas.ended(spent)
        answers = answers_of(lines)
        self.evidence.answered(answers)
        self.answer_metrics.answered(answers)
        self.feedback.answered(answers)
        self.demand.answered(answers)

    def _rated(self, answer: Answer, given: Given) -> None:
        self.evidence.rated(answer, given.bad)
        self.answer_metrics.rated(answer, given.bad)
        if self._export is None:
            return
        routes = self.publisher.model_of(answer.deployment)
        if routes is not None:
            self._export.add(
                feedback_record(
                    routes,
                    answer.revision,
                    answer.contents,
                    given.request_id,
                    score=given.score,
                    text=given.text or None,
                    now=datetime.now(UTC),
                )
            )

    @property
    def ready(self) -> bool:
        """Whether clients may be sent here: Envoy has once worked with all it was sent, is connected, not draining.

        And where clients speak TLS: it has a certificate.
        """
        self._was_ready = self._was_ready or self.publisher.ads.settled
        if self._certificate is not None and not self._certificate.ready:
            return False
        return self._was_ready and self._resumed and self.publisher.ads.connected and not self._leaving

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping` is set and the streams have finished."""
        restored = self._restore()
        await self.publisher.ads.start(self._given.ads_socket, self._loads.join)
        holding = await serve(self.holding, self._given.holding_socket, *self._asked_beside())
        mirror = await mirrorserver.serve(self.mirroring, self._given.mirror_socket)
        for each in (self._endings, self._export, self.usage, self._usage_export, self.pressure, self.engine_loads):
            if each is not None:
                each.start()
        self.watches.start()
        if self.tenancy is not None:
            self.tenancy.start()
        feeding, resuming = asyncio.create_task(self._open(restored)), asyncio.create_task(self._resume())
        looking = None if self._certificate is None else asyncio.create_task(self._certificate.run())
        server = await self._serve()
        try:
            await stopping.wait()
            resuming.cancel()
            await self._leave()
        finally:
            feeding.cancel()
            resuming.cancel()
            if looking is not None:
                looking.cancel()
            await self._count_all()
            await self._endings.close()
            await server.cleanup()
            writing = (self._export, self._usage_export, self.pressure, self.engine_loads, self.quotas)
            await asyncio.gather(*(each.close() for each in writing if each is not None))
            await holding.cleanup()
            await self._peers.close()
            await mirror.cleanup()
            await self.mirroring.stop()
            await self._pods.close()
            await self.watches.stop()
            await self.external.stop()
            if self.tenancy is not None:
                await self.tenancy.stop()
            await self.publisher.ads.stop()

    def _asked_beside(self) -> list[Callable[[web.Application], None]]:
        """What Envoy asks over the socket of requests that are held, besides."""
        asked: list[Callable[[web.Application], None]] = [
            partial(join, path=FEEDBACK_PATH, take=self.feedback.take_anywhere)
        ]
        if self._given.tokens is not None and self._given.tokens.jwks is not None:
            asked.append(SigningKeys(self._given.tokens.jwks, self.metrics.registry).join)
        if self.pressure is not None:
            asked.append(self.pressure.join)
        if self.quotas is not None:
            asked.append(partial(quotarefusals.join, self.quotas.admit))
        return asked

    def _restore(self) -> bool:
        """Take what the process before knew; returns whether there was anything."""
        lines = snapshot.read(self._given.snapshot)
        if lines is None:
            return False
        try:
            models = self.world.restore(lines, asyncio.get_running_loop().time())
        except (ValueError, KeyError, TypeError) as error:
            _log.error("the snapshot cannot be read and is left aside: %s", error)
            return False
        self.external.restore()
        self.external.follow(self.world.secrets())
        _log.info("restored %d models from the snapshot", len(models))
        return self.tenancy is None or self.tenancy.restore()

    async def _open(self, restored: bool) -> None:
        """Feed Envoy as soon as enough is known; from then on there is something worth keeping."""
        try:
            async with asyncio.timeout(PATIENCE if restored else None):
                await self.watches.completed.wait()
                if self.tenancy is not None:
                    await self.tenancy.completed.wait()
        except TimeoutError:
            _log.warning("the API server does not tell everything; serving from the snapshot")
        await self.external.first_look(PATIENCE)
        self.publisher.open()
        self.external.feeding()
        self.external.start()
        self._writer.mark()
        _log.info("serving %d models", self.publisher.models)
        await self._writer.run()

    async def _resume(self) -> None:
        await self.envoy.resume()
        self._resumed = True

    async def _serve(self) -> web.AppRunner:
        app = application(
            {
                "/v1/applied": self.publisher.report_after,
                "/v1/demand": self.demand.report_after,
                "/v1/evidence": self.evidence.report_after,
                "/v1/mirror": self.mirroring.report_after,
                **({} if self.pressure is None else {POOLS_PATH: self.pressure.report_after}),
            },
            self.feedback,
            self._token,
            alive=lambda: self.watches.alive() and (self.tenancy is None or self.tenancy.alive()),
            ready=lambda: self.ready,
            metrics=self.metrics,
            answers=self.answer_metrics,
            evidence=self.evidence.report,
            envoy=self.envoy,
            looks=self._looks,
            usage=self.usage.page if self.usage is not None else str,
            quotas=None if self.quotas is None else partial(quotafleet.join, self.quotas.fleet),
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, listening_socket(self._given.listen, self._given.observe_port)).start()
        if self.quotas is not None:
            self.quotas.start()  # it finds itself among the others by asking here
        return runner

    async def _count_all(self) -> None:
        """The last tokens; where no record has them, the page must be looked at once more."""
        if self.usage is not None:
            await self.usage.close()
            _log.info("tokens are counted")
            if self._usage_export is None and self._leaving:
                await self._looks.another()

    async def _leave(self) -> None:
        """Let the streams finish before Envoy goes."""
        self._leaving = True
        _log.info("leaving: not ready any more")
        await asyncio.sleep(self._given.drain_delay)
        done = await self.envoy.drain(self._given.drain_seconds)
        _log.info("streams %s", "have finished" if done else "did not finish in time")


async def _main(settings: Settings, master: bytes, given: Options) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await Gateway(connect(), settings, master, given).run(stopping)


def run(config: Path) -> int:
    """Run the gateway process with the settings of that file; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("tuneyard").setLevel(logging.INFO)
    try:
        settings, master, given = load_settings(config), read_master(), options(os.environ)
    except (ConfigurationError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    uvloop.run(_main(settings, master, given))
    # threads that wait for the network must not keep a process alive whose Envoy has finished
    sys.stderr.flush()
    os._exit(0)
