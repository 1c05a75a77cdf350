"""Those outside: who writes events, and who changes consents and at once writes an event of the same person.

All of them write down what they did, and when, on the one clock there is.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from streams.errors import CelosiaError
from streams.kafka.agents import minimize
from streams.kafka.partitioner import partition_of
from streams.kafka.port import PortError
from streams.kafka.withdraw import fence, withdraw
from tests.history import Promised, Sent
from tests.simulation import material
from tests.simulation.client import Client, Writer
from tests.simulation.loop import Process
from tests.simulation.material import BASE, LEAVERS, PEOPLE, Shop
from tests.simulation.ports import Broker, SimPorts

__all__ = ["Change", "Clients", "Event"]

DELIVERY = 4.0
"""how long a client tries to write one record, in seconds"""


@dataclass(frozen=True, slots=True)
class Event:
    """An event to be written at a time."""

    at: float
    person: str
    number: int


@dataclass(frozen=True, slots=True)
class Change:
    """A change of consent at a time: what kind of, and the events that follow at once."""

    at: float
    person: str
    kind: str
    events: tuple[int, ...] = ()
    pause: float = 0.0


@dataclass
class Clients:
    """All of them, in one process."""

    broker: Broker
    shop: Shop
    partitions: int
    random: Random
    in_order: bool
    """consents of a person are written with rising versions only (the topic is compacted)"""
    acks_all: bool = True
    """how consents are written"""
    events: list[Sent] = field(default_factory=list)
    changes: list[Sent] = field(default_factory=list)
    written: list[tuple[Any, ...]] = field(default_factory=list)
    """the record of each change: timestamp, key, value, headers"""
    promised: list[Promised] = field(default_factory=list)
    trace: Any = None
    counted: list[str] = field(default_factory=list)
    """who is counted, and does not take it back"""
    writing: int = 0
    """how many scripts are not at their end yet"""

    def __post_init__(self) -> None:
        self.process = Process(self.broker.cluster.clock, "clients")
        self._ports = SimPorts(self.broker, self.process, self.shop.plan)
        self._versions: dict[str, int] = {}
        self._granted: dict[str, list[bytes]] = {}
        self._allowed: dict[str, dict[str, Any]] = {}
        self._uncertain: list[str] = []
        """whose last change may still arrive: in order means that they change nothing any more"""

    def start(
        self, events: Sequence[Event], changes: Sequence[Change], visits: Sequence[Event] = (), scripts: int = 2
    ) -> None:
        """Begin. Events are shared among some scripts; each person's changes are written one after the other."""
        if visits:
            self._begin(self._visit(visits))
        for index in range(scripts):
            self._begin(self._write_events(events[index::scripts]))
        for index in range(2):
            of = PEOPLE[index::2]
            self._begin(self._change_consents([change for change in changes if change.person in of]))

    def _begin(self, script: Any) -> None:
        self.writing += 1
        self.process.start(script).add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.writing -= 1
        if not task.cancelled():
            task.result()

    # --- events ------------------------------------------------------------------------------------------------------

    async def _write_events(self, events: Sequence[Event]) -> None:
        box = _Box(self, True)
        for event in events:
            await self._until(event.at)
            await self._event(box, event.person, event.number)

    async def _event(self, box: "_Box", person: str, number: int) -> None:
        topic = self.shop.raw[number % len(self.shop.raw)]
        key: bytes | None = person.encode()
        partition = partition_of(person.encode(), self.partitions)
        if topic not in ("raw.web",):
            # Whoever writes here knows nothing of persons.
            partition, key = number % self.partitions, b"hidden-key" if number % 2 else None
        elif number % 12 == 8 and number % 5 == 0:
            key = b"canary-somebody-else"
        stamp = BASE + 1000 * int(self.broker.cluster.clock.now)
        record = (stamp, key, material.event(person, number), material.raw_headers(number))
        self.events.append(await box.write(topic, partition, record))

    async def _visit(self, visits: Sequence[Event]) -> None:
        """Let people allow that they are counted, do things, and some of them take it back."""
        people = list(dict.fromkeys(visit.person for visit in visits))
        consents, events = _Box(self, self.acks_all), _Box(self, True)
        for person in people:
            sent = await self._change(consents, Change(0.0, person, "count"))
            if sent is not None and sent.acknowledged is not None:
                self.counted.append(person)
        for visit in visits:
            await self._until(visit.at)
            if visit.person in self.counted:
                await self._event(events, visit.person, visit.number)
        for person in [person for person in self.counted if person in LEAVERS]:
            self.counted.remove(person)
            sent = None
            while sent is None or sent.acknowledged is None:
                sent = await self._change(consents, Change(0.0, person, "leave"))

    # --- consents ----------------------------------------------------------------------------------------------------

    async def _change_consents(self, changes: Sequence[Change]) -> None:
        consents, events = _Box(self, self.acks_all), _Box(self, True)
        for change in changes:
            await self._until(change.at)
            if self.in_order and change.person in self._uncertain:
                continue
            sent = await self._change(consents, change)
            if change.pause:
                await asyncio.sleep(change.pause)
            for number in change.events:
                await self._event(events, change.person, number)
            if sent is not None and sent.acknowledged is not None and change.kind == "withdraw and fence":
                await self._fence(sent)

    async def _change(self, box: "_Box", change: Change) -> Sent | None:
        person = change.person
        partition = partition_of(person.encode(), self.partitions)
        if change.kind == "command":
            await self._command(person)
            return None
        value, taken = self._value(change)
        key = person.encode()
        if change.kind == "block":
            key = b"\xff"
        if change.kind == "elsewhere":
            partition = (partition + 1) % self.partitions
        record = self.broker.clock_ms(), key, value, ()
        sent = await box.write(self.shop.consents, partition, record)
        if sent.acknowledged is None:
            self._uncertain.append(person)
        if change.kind != "elsewhere" or self.partitions == 1:
            self.changes.append(sent._replace(withdrawal=taken))
            self.written.append(record)
        return sent

    def _value(self, change: Change) -> tuple[bytes | None, bool]:
        """Return what to write, and whether it takes back something."""
        person, kind = change.person, change.kind
        allowed = self._allowed.get(person, {})
        granted = self._granted.setdefault(person, [])
        if kind == "unreadable":
            return b'{"subject":"' + person.encode(), bool(allowed)
        if kind == "tombstone":
            return None, bool(allowed)
        if kind == "replay" and granted and not self.in_order:
            return granted[int(self.random.random() * len(granted))], False
        if kind == "contradict" and not self.in_order and person in self._versions:
            return material.consent(person, self._versions[person], material.grants(self.random)), False
        version = self._versions[person] = self._versions.get(person, 0) + 1
        if kind in ("count", "leave"):
            counts = {"counts": {"rung": "crowd", "since": "2026-03-01T00:00:00Z"}} if kind == "count" else {}
            return material.consent(person, version, counts), kind == "leave"
        if kind.startswith("withdraw"):
            kept = {name: grant for name, grant in allowed.items() if self.random.random() < 0.25}
            self._allowed[person] = kept
            return material.consent(person, version, kept), len(kept) < len(allowed)
        purposes = self._allowed[person] = material.grants(self.random)
        value = material.consent(person, version, purposes)
        granted.append(value)
        return value, False

    async def _fence(self, sent: Sent) -> None:
        """Tell the person only when nothing is in flight any more."""
        lanes = [self._ports.lane(minimize, sent.partition)]
        try:
            async with asyncio.timeout(DELIVERY):
                await fence(lanes)
        except (PortError, TimeoutError):
            self.broker.cluster.power["fences without an answer"] += 1
        else:
            self._promise(sent.partition, (sent.offset or 0) + 1)
        finally:
            for lane in lanes:
                await lane.close()

    async def _command(self, person: str) -> None:
        """What `celosia withdraw` does."""
        invoked = self.broker.cluster.clock.now
        took = bool(self._allowed.get(person))
        ports = _Withdrawals(self)
        try:
            # It asks for the version that is known, so a high one may be written that nobody hears of.
            async for partition, offset, version in withdraw(
                self.shop.plan, self.partitions, ports, [person], patience=DELIVERY
            ):
                self._versions[person] = max(version or 0, self._versions.get(person, 0))
                self._allowed[person] = {}
                now = self.broker.cluster.clock.now
                self.changes.append(Sent(self.shop.consents, partition, offset, invoked, now, took))
                self.written.append(ports.last)
                self._promise(partition, offset + 1)
        except (PortError, CelosiaError):
            self._versions[person] = self._versions.get(person, 0) + 8
            self._uncertain.append(person)
            self.broker.cluster.power["fences without an answer"] += 1

    def _promise(self, partition: int, through: int) -> None:
        self.broker.cluster.power["fences answered"] += 1
        self.promised.append(Promised(partition, through, self.stood(partition)))

    def stood(self, partition: int) -> dict[str, int]:
        """Return how far read_committed readers of the outputs may have come by now.

        Not of the quarantine, which all lanes write to: an open transaction of one hides what another has committed.
        """
        return {topic: self.broker.partition(topic, partition).visible for topic in self.shop.outputs}

    async def _until(self, at: float) -> None:
        delay = at - self.broker.cluster.clock.now
        if delay > 0:
            await asyncio.sleep(delay)


class _Withdrawals(SimPorts):
    """The ports of `celosia withdraw`."""

    def __init__(self, clients: Clients) -> None:
        super().__init__(clients.broker, clients.process, clients.shop.plan)
        self.last: tuple[Any, ...] = ()
        self._box = _Box(clients, clients.acks_all)

    async def write_consent(self, partition: int, key: bytes, value: bytes) -> int:
        """Write a consent record."""
        self.last = self.broker.clock_ms(), key, value, ()
        sent = await self._box.write(self.consent_topic, partition, self.last)
        if sent.offset is None:
            raise PortError("not acknowledged")
        return sent.offset


class _Box:
    """A producer that starts anew when it does not know any more what it has written."""

    def __init__(self, clients: Clients, acks_all: bool) -> None:
        self._clients = clients
        self._acks_all = acks_all
        self._writer: Writer | None = None

    async def write(self, topic: str, number: int, record: tuple[Any, ...]) -> Sent:
        """Write one record; without an acknowledgement it may be there or not."""
        clients = self._clients
        broker, clock = clients.broker, clients.broker.cluster.clock
        if self._writer is None:
            client = Client(clients.process, broker.cluster, broker.patience)
            self._writer = Writer(client, broker.cluster.new_pid(), 0, acks_all=self._acks_all)
        invoked = clock.now
        try:
            async with asyncio.timeout(DELIVERY):
                offset = await self._writer.write(broker.partition(topic, number), [record])
        except (PortError, TimeoutError):
            self._writer = None
            broker.cluster.power["writes without an answer"] += 1
            return Sent(topic, number, None, invoked, None)
        if clients.trace is not None:
            clients.trace("clients", f"acknowledged {topic}[{number}]@{offset}")
        return Sent(topic, number, offset, invoked, clock.now)
