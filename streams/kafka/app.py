"""The Faust application: supervision, signals, command line. Lanes carry the data (see `streams.kafka.lane`).

Faust's own consumption is switched off (`enable_kafka = False`): it costs 77 us an event, commits past work in flight
and cannot restart the agents of a partition that was revoked. What it is good at stays: one application object,
services that start and stop in order, `faust -A streams.kafka.worker worker` for those who run everything so.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from typing import Any

import faust
import mode
import uvloop
from faust.app.base import BootStrategy

from streams.errors import CelosiaError
from streams.kafka.connections import ClientSettings
from streams.kafka.member import Member
from streams.kafka.ops import OpsPage
from streams.kafka.port import PortError, describe
from streams.kafka.topics import check_topics
from streams.kafka.work import LaneSettings
from streams.keys import installation_key
from streams.plan import Plan, compile_plan
from streams.policy import load_policy
from streams.settings import Settings

__all__ = ["CelosiaApp", "LanesService", "make_app", "run_worker"]

log = logging.getLogger("celosia.app")


class _LanesOnly(BootStrategy):
    """Faust's boot order without its consumer, producer and web server."""

    enable_kafka = False
    enable_web = False


class LanesService(mode.Service):
    """Runs the worker inside the application, and stops the application when the worker ends."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        super().__init__()
        self.failed: CelosiaError | None = None
        self._plan = plan
        self._settings = settings
        self._member: Member | None = None
        self._task: asyncio.Task[None] | None = None
        self._page: OpsPage | None = None

    async def on_start(self) -> None:
        """Check the topics, then join the group. What is wrong ends the application with its message."""
        settings, policy = self._settings, self._plan.policy
        try:
            states = await check_topics(settings.bootstrap, policy)
            client = ClientSettings(
                bootstrap=settings.bootstrap,
                group=settings.group or f"celosia-{policy.policy}",
                transactional=settings.guarantee == "exactly-once",
                transaction_timeout=settings.transaction_timeout_ms,
                session_timeout=settings.session_timeout_ms,
                batch_records=settings.batch_records,
                compression=settings.compression,
            )
            partitions = states[policy.topic("consents")].partitions
            self._member = Member(self._plan, client, partitions, lane_settings=LaneSettings(gate=settings.gate))
            self._page = OpsPage(self._member, settings.ops_host, settings.ops_port)
            await self._page.maybe_start()
        except CelosiaError as error:
            self._end(error)
            return
        self._task = asyncio.ensure_future(self._member.run())
        self._task.add_done_callback(self._ended)

    async def on_stop(self) -> None:
        """Let the lanes finish, then stop listening."""
        if self._member is not None and self._task is not None:
            self._member.stop()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._page is not None:
            await self._page.stop()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, CelosiaError):
            self._end(error)
        elif isinstance(error, PortError):
            self._end(CelosiaError(f"the broker at {self._settings.bootstrap} does not answer: {describe(error)}"))
        elif error is not None:
            self._end(CelosiaError(f"the worker ended by {describe(error)}: this is a bug"))

    def _end(self, error: CelosiaError) -> None:
        self.failed = error
        signal.raise_signal(signal.SIGTERM)


class CelosiaApp(faust.App):
    """A Faust application with celosia's lanes as a service."""

    BootStrategy = _LanesOnly

    def __init__(self, plan: Plan, settings: Settings, **options: Any) -> None:
        super().__init__(
            settings.group or f"celosia-{plan.policy.policy}",
            broker=f"aiokafka://{settings.bootstrap.split(',')[0]}",
            web_enabled=False,
            **options,
        )
        self.lanes = LanesService(plan, settings)

    async def on_started_init_extra_services(self) -> None:
        """Start the lanes once Faust itself is up."""
        await super().on_started_init_extra_services()
        await self.add_runtime_dependency(self.lanes)


def make_app(settings: Settings) -> CelosiaApp:
    """Make the application for a policy.

    Raises:
        CelosiaError: the policy, a setting or the key is not right.
    """
    policy = load_policy(settings.policy)
    return CelosiaApp(compile_plan(policy, installation_key(settings.key_file), str(settings.policy)), settings)


def run_worker(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; returns the exit code.

    Raises:
        CelosiaError: it could not start, or had to stop.
    """
    _log_to_stderr(settings.log_level)
    # A batch makes thousands of objects that live until it is sent and are in no cycle: the collector would walk all
    # of them again and again, at a third of the worker's time.
    gc.set_threshold(100_000, 20, 20)
    uvloop.install()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_say_what_kind)
    asyncio.set_event_loop(loop)
    app = make_app(settings)
    if settings.guarantee == "at-least-once":
        log.warning(
            "AT LEAST ONCE: after a failure events may be published twice, and receipts prove nothing; use this only "
            "with brokers that have no transactions"
        )
    worker = _FaustWorker(app, redirect_stdouts=False, override_logging=False, loop=loop)
    with contextlib.suppress(SystemExit):
        worker.execute_from_commandline()
    if app.lanes.failed is not None:
        raise app.lanes.failed
    return 0


def _say_what_kind(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say what kind of error nobody has waited for. asyncio itself would print its text, and callbacks' arguments."""
    error = context.get("exception")
    log.warning("something failed that nobody waited for: %s", "no error" if error is None else describe(error))


def _log_to_stderr(level: str) -> None:
    """One line per change of state. The libraries say what they must: their DEBUG logs print values of records."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level.upper(), format=form, stream=sys.stderr)
    for library in ("aiokafka", "faust", "mode", "aiohttp", "asyncio", "streams"):
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))


class _FaustWorker(faust.Worker):
    """Faust's worker without its spinner and emoji on standard output."""

    def _on_startup_end_spinner(self) -> None:
        log.info("started")

    def _on_sigint(self) -> None:
        self._schedule_shutdown(signal.SIGINT)

    def _enter_debugger(self) -> None:
        """Never: what a debugger shows of a running worker is personal data."""
