"""The course of the demo: a broker, the topics, a worker in this process, a shop that writes, an audit that reads.

This is also the example of how celosia is embedded. It takes `compile_plan`, `create_topics` and a `Member`, which
runs as one task of an event loop beside whatever else that loop has to do. All the rest here plays the world around.
"""

import asyncio
import itertools
import logging
import math
import signal
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from streams.consent import ConsentRecord
from streams.demo.audit import Audit, Change
from streams.demo.report import Report, report, totals
from streams.demo.screen import Display, Moment, choose_display
from streams.demo.shop import Act, People, Rungs, Tills
from streams.embedded import apache_kafka, embedded
from streams.errors import BrokerFailed, SettingsError
from streams.kafka.connections import ClientSettings
from streams.kafka.member import Member, wall_clock
from streams.kafka.port import PortError, describe
from streams.kafka.topics import create_topics
from streams.kafka.traffic import EventWriter, TopicReader
from streams.keys import MasterKey
from streams.outcome import Coordinates
from streams.plan import Plan, compile_plan
from streams.policy import load_policy

__all__ = ["RATE", "run_demo", "schemas_folder"]

RATE = 120.0
"""Events per second, unless told otherwise: few enough to be watched."""
_PARTITIONS = 4
_SECONDS_FOR_MACHINES = 30.0
_SECONDS_TO_DRAIN = 60.0
_TICK, _FRAME = 0.02, 0.25


class Broker(Protocol):
    """A broker that runs: where, what it is, and whether it has transactions."""

    @property
    def bootstrap(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def transactions(self) -> bool: ...


def run_demo(*, seconds: float | None = None, plain: bool = False, broker: str = "embedded", rate: float = RATE) -> int:
    """Run the demo and return the exit code: 0 only if everything adds up and every withdrawal held.

    Without `seconds` it runs until Ctrl-C on a terminal, and for half a minute elsewhere.

    Raises:
        CelosiaError: the broker did not start or does not answer, or the worker had to stop.
    """
    display = choose_display(plain)
    if seconds is None:
        seconds = _SECONDS_FOR_MACHINES if display.for_machines else math.inf
    policy = load_policy(schemas_folder() / "policies" / "retail.yaml")
    # A key that is gone when the demo ends: nobody will ever find the people behind its pseudonyms.
    plan = compile_plan(policy, MasterKey.random())
    # What the library says of a broker that is still starting is no news: it asks again, and what fails is raised.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with display, _started(broker, display) as running:
        try:
            result = asyncio.run(_Demo(plan, running, display, seconds, rate).run())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        display.summarize(result)
    return 0 if result.ok else 1


def schemas_folder() -> Path:
    """Return the folder `schemas`: in an installed package inside of it, in a clone beside it."""
    package = Path(__file__).parents[1]
    inside = package / "schemas"
    return inside if inside.is_dir() else package.with_name("schemas")


def _started(broker: str, display: Display) -> AbstractContextManager[Broker]:
    if broker == "embedded":
        return embedded()
    if broker == "kafka":
        display.say("starting Apache Kafka (the first time, Maven fetches it: 54 MB)", 0.0)
        return apache_kafka()
    raise SettingsError(f"--broker: wanted embedded or kafka, came {broker}; take one of these")


class _Demo:
    """One run: the worker and those around it, each a task of one event loop."""

    def __init__(self, plan: Plan, broker: Broker, display: Display, seconds: float, rate: float) -> None:
        self._plan = plan
        self._broker = broker
        self._display = display
        self._seconds = seconds
        self._rate = rate
        self._settings = _client_settings(broker)
        self._audit = Audit(plan)
        self._worker = Member(plan, self._settings, _PARTITIONS)
        self._closing = asyncio.Event()
        self._stage = "opening"
        self._began = 0.0
        self._frames: deque[tuple[float, int, int]] = deque(maxlen=round(1 / _FRAME) + 1)
        self._positions: dict[int, int] = {}

    async def run(self) -> Report:
        """Open the shop, keep it, close it, and count."""
        self._close_on_signals()
        self._begin("opening")
        self._display.open(self._title())
        await create_topics(self._broker.bootstrap, self._plan.policy, _PARTITIONS, replication=1)
        try:
            async with (
                EventWriter(self._settings, _PARTITIONS) as writer,
                TopicReader(self._settings, self._output_topics(), _PARTITIONS) as reader,
                asyncio.TaskGroup() as tasks,
            ):
                working = tasks.create_task(self._worker.run())
                watching = [tasks.create_task(self._read(reader)), tasks.create_task(self._draw())]
                shop = Shopkeeper(writer, self._plan, self._audit, self._say)
                await shop.open()
                while not self._worker.ready:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(_TICK)
                self._begin("running")
                self._say(f"the worker is ready: {len(self._worker.lanes)} lanes have passed their gates")
                await shop.keep(self._rate, self._seconds, self._closing)
                seconds, self._stage = self._elapsed(), "closing"
                drained = await self._drain(reader, working)
                for task in watching:
                    task.cancel()
        except ExceptionGroup as group:
            raise _first_of(group) from None
        return report(
            self._audit,
            totals(self._worker.metrics),
            broker=self._broker.name,
            exactly_once=self._broker.transactions,
            seconds=seconds,
            drained=drained,
        )

    async def _read(self, reader: TopicReader) -> None:
        """Read all that the worker publishes, as the services of the shop would, and give it to the audit."""
        while True:
            for received in await reader.read():
                for change in self._audit.received(received, _now()):
                    after = "nothing from here on" if change.is_withdrawal else "in force from here on"
                    about = ", ".join(change.allowed)
                    self._say(
                        f"{change.person}: receipt {change.receipt}, {change.receipt_ms} ms later: {about}: {after}"
                    )

    async def _draw(self) -> None:
        while True:
            self._display.draw(self._moment())
            await asyncio.sleep(_FRAME)

    def _moment(self) -> Moment:
        audit, counted = self._audit, totals(self._worker.metrics)
        self._frames.append((_now(), audit.sent_count, audit.outputs.total()))
        (then, sent, published), (now, *_) = self._frames[0], self._frames[-1]
        passed = max(_FRAME, now - then)
        rates = (audit.sent_count - sent) / passed, (audit.outputs.total() - published) / passed
        # By the positions of the last frame: what was committed then has been read by now.
        shown, self._positions = audit.handled(self._positions), counted.positions
        return Moment(self._elapsed(), self._seconds, self._stage, rates, counted, audit, shown)

    async def _drain(self, reader: TopicReader, working: asyncio.Task[None]) -> bool:
        """Wait until everything that went in is committed, and what came out of it was read; then end the worker."""
        raw = self._plan.sources[0].raw_topic

        async def all_is_out() -> bool:
            handled = sum(await reader.committed(raw))
            return handled == self._audit.sent_count and self._audit.pending == 0 and await reader.at_end()

        deadline = _now() + _SECONDS_TO_DRAIN
        while not (drained := await all_is_out()) and _now() < deadline:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_TICK)
        self._worker.stop()
        await working
        return drained

    def _begin(self, stage: str) -> None:
        self._stage, self._began = stage, _now()

    def _say(self, line: str) -> None:
        self._display.say(line, self._elapsed())

    def _elapsed(self) -> float:
        return _now() - self._began

    def _title(self) -> str:
        if self._broker.transactions:
            return f"{self._broker.name}: exactly once"
        return f"{self._broker.name}: at least once, it has no transactions"

    def _output_topics(self) -> list[str]:
        published = [purpose.topic for purpose in self._plan.purposes.values()]
        return [*published, self._plan.policy.topic("receipts"), self._plan.policy.topic("quarantine")]

    def _close_on_signals(self) -> None:
        """The first Ctrl-C closes the shop, the second one ends everything at once."""
        loop, this = asyncio.get_running_loop(), asyncio.current_task()

        def close() -> None:
            if self._closing.is_set() and this is not None:
                this.cancel()
            self._closing.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, close)


class Shopkeeper:
    """Everyone who writes: the tills, and the people who decide about their data."""

    def __init__(self, writer: EventWriter, plan: Plan, audit: Audit, say: Callable[[str], None]) -> None:
        self._writer = writer
        self._audit = audit
        self._say = say
        self._raw, self._consents = plan.sources[0].raw_topic, plan.policy.topic("consents")
        self._people = People(wall_clock())

    async def open(self) -> None:
        """Write the consents of all who were asked, and wait until each is acknowledged."""
        for record in self._people.asked():
            # One by one: Tansu's answer to ListOffsets, which the gate asks for, counts one record of the last batch.
            await self._write(record)

    async def keep(self, rate: float, seconds: float, closing: asyncio.Event) -> None:
        """Sell at this rate (events a second) for so long, and return when every event is acknowledged."""
        tills = Tills(max(4, min(24, round(rate / 10))))
        began, sold = _now(), 0
        async with asyncio.TaskGroup() as tasks:
            changing = tasks.create_task(self._change_minds(tills, min(5.0, seconds / 6)))
            while not closing.is_set() and _now() - began < seconds:
                for _ in range(min(500, int(rate * (_now() - began)) - sold)):
                    await self._sell(tills, tasks)
                    sold += 1
                await asyncio.sleep(_TICK)
            changing.cancel()

    async def _sell(self, tills: Tills, tasks: asyncio.TaskGroup) -> None:
        now = wall_clock()
        line = tills.scan(now)
        # What the person allows is noted before the event is sent: from here on rule 1 can only get stricter.
        sent = self._audit.sending(line)
        written = await self._writer.write(self._raw, line.key, line.value, now)

        async def acknowledge() -> None:
            self._audit.sent(sent, await written)

        tasks.create_task(acknowledge())

    async def _change_minds(self, tills: Tills, pause: float) -> None:
        """Let somebody at the tills change what they allow, every now and then; watch them from a little before."""
        ahead = min(1.0, pause / 3)
        self._audit.watched = self._people.ready_for(Act.WITHDRAW, tills.left())
        for act in itertools.cycle(Act):
            await asyncio.sleep(pause - ahead)
            while (person := self._people.ready_for(act, tills.left())) is None:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(_TICK)
            self._audit.watched = person
            await asyncio.sleep(ahead)
            record, allowed = self._people.change(person, act, wall_clock())
            place = await self._write(record, act, allowed)
            self._say(f"{person} {act}: {', '.join(allowed)}: acknowledged at {place}")

    async def _write(self, record: ConsentRecord, act: Act | None = None, allowed: Rungs | None = None) -> Coordinates:
        """Write a consent. It counts for all that is sent after its acknowledgement."""
        self._audit.consenting(record)
        subject, value = record.subject.encode(), msgspec.json.encode(record)
        written = await self._writer.write(self._consents, subject, value, wall_clock())
        place = await written
        change = None if act is None else Change(act, record.subject, allowed or {}, record.version, place, _now())
        self._audit.consented(record, place, change)
        return place


def _now() -> float:
    """Seconds of the event loop: what is measured here is measured with one clock, which never jumps."""
    return asyncio.get_running_loop().time()


def _client_settings(broker: Broker) -> ClientSettings:
    settings = ClientSettings(broker.bootstrap, "celosia-demo")
    if broker.transactions:
        return settings
    # Tansu makes a group wait for half its session time-out, and does not wake a fetch that waits for a record.
    return replace(settings, transactional=False, session_timeout=3_000, fetch_wait=50)


def _first_of(group: ExceptionGroup[Exception]) -> Exception:
    """What went wrong first, as one that the command line tells in one line."""
    error = group.exceptions[0]
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return BrokerFailed(f"the broker does not answer: {describe(error)}") if isinstance(error, PortError) else error
