"""The eighteen mutants: each takes away one thing that a promise rests on, and the simulation must notice.

They are switches of the tests alone: each is a patch of the program, of the simulated client, or of what those outside
do, and none can be reached from the product. A mutant is hunted through the same seeds that the ordinary run uses, or
through a scenario that is made for it; on what kills it, the program itself must pass.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

import pytest

from streams.consent import FOREVER, Consent, Consents, Grant, Rung, read_consent
from streams.event import RawEvent, Record
from streams.kafka.follower import Follower
from streams.kafka.lane import Lane
from streams.kafka.port import Batch, ConsentBatch, PortError, Sends
from streams.kafka.work import LaneState
from streams.outcome import Outcome, Output
from streams.pipeline import bind
from tests.simulation import clients, material
from tests.simulation.client import EVEN_IF_SILENT
from tests.simulation.clients import Change, Event
from tests.simulation.log import Log
from tests.simulation.ports import SimConsents, SimLane, SimPorts
from tests.simulation.scenario import Fault, Scenario, scenario
from tests.simulation.world import World, run

__all__ = ["MUTANTS", "Kill", "Mutant", "hunt"]

Patch = pytest.MonkeyPatch
Change_ = Callable[[World], None]


class Mutant(NamedTuple):
    """One mutant: what it is, how it is switched on, and where it is hunted.

    `always` is done to the world with and without the mutant, `change` with it only.
    """

    name: str
    what: str
    switch: Callable[[Patch], None] = lambda _patch: None
    where: Callable[[], Iterator[Scenario]] = lambda: map(scenario, itertools.count())
    change: Change_ | None = None
    always: Change_ | None = None


class Kill(NamedTuple):
    """Which seed killed a mutant, after how many, and what was found first."""

    seed: int
    tried: int
    found: str


def hunt(mutant: Mutant, most: int = 400) -> Kill | None:
    """Run a mutant until it is noticed; None if it was not in so many runs. The program itself must pass there."""
    for tried, one in enumerate(itertools.islice(mutant.where(), most), 1):
        with pytest.MonkeyPatch.context() as patch:
            mutant.switch(patch)
            failure = run(one, change=_both(mutant.always, mutant.change)).failure
        if failure is not None:
            clean = replace(one, strict=True) if "isolate a node" in one.kinds else one
            assert run(clean, change=mutant.always).failure is None, f"seed {one.seed} fails without {mutant.name} too"
            found = next((line for line in failure.splitlines() if " findings:" not in line), failure)
            return Kill(one.seed, tried, found)
    return None


def _both(one: Change_ | None, other: Change_ | None) -> Change_:
    def change(world: World) -> None:
        for some in (one, other):
            if some is not None:
                some(world)

    return change


def _having(*kinds: str, partitions: int = 1) -> Callable[[], Iterator[Scenario]]:
    """The seeds in which one of some kinds of faults may happen, with so many partitions or more."""

    def where() -> Iterator[Scenario]:
        for one in map(scenario, itertools.count()):
            if one.partitions >= partitions and (not kinds or set(kinds) & set(one.kinds)):
                yield one

    return where


# --- the gate ---------------------------------------------------------------------------------------------------------

_gate, _commit, _init = Lane._gate, Lane._commit, SimLane.__init__


async def _no_gate(_lane: Lane, _follower: Follower) -> None:
    return None


async def _gate_after(lane: Lane, batches: list[Batch]) -> None:
    """Handle a batch at once, and ask before the next is read."""
    await lane._commit(lane._process(batches), {batch.topic: batch.next_offset for batch in batches})
    if lane._follower is not None:
        await _gate(lane, lane._follower)


async def _shared_gate(lane: Lane, follower: Follower) -> None:
    asked = lane.__dict__["asked"] = lane.__dict__.get("asked", 0) + 1
    if asked % 3 == 1:
        await _gate(lane, follower)


async def _impatient_gate(lane: Lane, follower: Follower) -> None:
    try:
        async with asyncio.timeout(0.1):
            await _gate(lane, follower)
    except TimeoutError:
        lane._become(LaneState.RUNNING)


def _last_record_counts(patch: Patch) -> None:
    read = SimConsents.read_consents

    async def read_consents(port: SimConsents) -> ConsentBatch:
        records, position = await read(port)
        before = port.__dict__.get("before", 0)
        port.__dict__["before"] = after = records[-1].offset + 1 if records else before
        return ConsentBatch(records, min(after, position))

    patch.setattr(SimConsents, "read_consents", read_consents)


def _consent_in_a_transaction(world: World) -> None:
    """Somebody writes a consent in a transaction: the log ends with a marker, which is no record."""
    value = material.consent("canary-zoe", 1, {})

    async def write() -> None:
        ports = SimPorts(world.broker, world.clients.process, world.shop.plan)
        lane = SimLane(ports, "intake", 0, [world.shop.consents])
        while True:
            try:
                await lane.init_transactions()
                await lane.begin()
                await lane.send({(world.shop.consents, 0): [Output("", b"canary-zoe", value, [], None)]})
                await lane.commit()
                return
            except PortError:
                await lane.close_producer(abort=True)

    world.clock.at(world.scenario.until + 1.0, lambda: world.clients._begin(write()))


# --- the transaction --------------------------------------------------------------------------------------------------


def _random_ids(patch: Patch) -> None:
    numbers = itertools.count()

    def transactional_id(lane: SimLane) -> str:
        return f"celosia-{lane.name}-{lane.__dict__.setdefault('chance', next(numbers))}"

    patch.setattr(SimLane, "transactional_id", transactional_id)


async def _ask_before_the_fence(lane: Lane) -> None:
    committed = await lane._within(lane._port.committed())
    await lane._within(lane._port.init_transactions())
    await lane._within(lane._port.seek(committed))
    if lane._follower is not None:
        await lane._gate(lane._follower)
    lane._become(LaneState.RUNNING)


async def _send_and_forget(port: SimLane, sends: Sends) -> None:
    port.ports.step(port.name, "send")
    await port.start_sending(sends)
    port.ports.step(port.name, "send_answer")


async def _late_receipt(lane: Lane, work: Any, offsets: Any) -> None:
    """Let consents come in between the batch and its receipt, which then speaks for what the batch has not seen."""
    if offsets:
        await asyncio.sleep(0.03)
    await _commit(lane, work, offsets)


def _commit_twice(patch: Patch) -> None:
    def init(port: SimLane, *args: Any) -> None:
        _init(port, *args)
        port.end_again = EVEN_IF_SILENT

    patch.setattr(SimLane, "__init__", init)


def _busy_and_late() -> Iterator[Scenario]:
    """One transaction after the other on slow links, while ends of transactions come later than a client waits."""
    who = material.PEOPLE[0]
    for seed in itertools.count():
        random = Random(f"late {seed}")
        faults = [Fault(0.5, "slow link", 9.0, node, "", node) for node in range(3)]
        faults += [Fault(1.0 + at, "late end of a transaction", random.uniform(1.6, 2.4), 0, "", 0) for at in range(4)]
        events = [Event(0.5 + number / 40, who, number) for number in range(240)]
        yield Scenario(seed, 1, 1, False, False, 8.0, 0.002, 2, 0.0, events, [Change(0.02, who, "grant")], faults)


# --- consents ---------------------------------------------------------------------------------------------------------


def _acks_of_the_leader(world: World) -> None:
    world.clients.acks_all = False


def _every_other_by_crc32(patch: Patch) -> None:
    """Two services write consents; one has librdkafka's default partitioner."""
    write, numbers = clients._Box.write, itertools.count()

    async def by_crc32(box: Any, topic: str, number: int, record: tuple[Any, ...]) -> Any:
        world = box._clients
        if topic == world.shop.consents and next(numbers) % 2:
            number = crc32(record[1]) % world.partitions
        return await write(box, topic, number, record)

    patch.setattr(clients._Box, "write", by_crc32)


def _last_offset_wins(patch: Patch) -> None:
    apply = Consents.apply

    def last(consents: Consents, key: bytes | None, value: bytes | None) -> None:
        if key is not None:
            consents._states.pop(key, None)
        apply(consents, key, value)

    patch.setattr(Consents, "apply", last)


def _skip_undecodable(patch: Patch) -> None:
    apply = Consents.apply

    def skip(consents: Consents, key: bytes | None, value: bytes | None) -> None:
        try:
            read_consent(value or b"")
        except ValueError:
            return
        apply(consents, key, value)

    patch.setattr(Consents, "apply", skip)


def _allow_the_unknown(patch: Patch) -> None:
    init = Consents.__init__

    def generous(consents: Consents, *args: Any) -> None:
        init(consents, *args)
        allowed = Consent(0, {name: Grant(Rung.IDENTIFIED, 0, FOREVER) for name in ("ads", "stats", "care")})
        states = consents._states
        consents.of = lambda key: states.get(key, allowed)

    patch.setattr(Consents, "__init__", generous)


def _tombstones() -> Iterator[Scenario]:
    """Withdrawn, compacted, started anew, and then an old grant comes once more."""
    who, other = material.PEOPLE[0], material.PEOPLE[1]
    for seed in itertools.count():
        changes = [
            Change(0.02, who, "grant"),
            Change(0.5, who, "withdraw"),
            Change(0.6, other, "grant"),
            Change(1.6, who, "replay"),
            Change(1.7, other, "grant"),
        ]
        faults = [Fault(1.0, "compact", 0.0, 0, "", 1), Fault(1.2, "kill a worker", 0.05, 0, "", 1)]
        events = [Event(2.0 + number / 100, who, number) for number in range(4)]
        yield Scenario(seed, 1, 1, False, False, 3.0, 0.0005, 1_000, 0.0, events, changes, faults)


def _withdraw_by_tombstone(patch: Patch) -> None:
    value, compact = clients.Clients._value, Log.compact

    def tombstone(some: clients.Clients, change: Change) -> tuple[bytes | None, bool]:
        said, takes = value(some, change)
        return (None, True) if change.kind == "withdraw" else (said, takes)

    def compact_away(log: Log) -> int:
        gone = compact(log)
        tombstones = [entry for entry in log.entries if entry.value is None and entry.control is None]
        log.entries = [entry for entry in log.entries if entry not in tombstones]
        log.compacted += tombstones
        return gone + len(tombstones)

    patch.setattr(clients.Clients, "_value", tombstone)
    patch.setattr(Log, "compact", compact_away)


# --- what is published ------------------------------------------------------------------------------------------------


def _raw_keys(patch: Patch) -> None:
    def leaky(*args: Any) -> Callable[[Record | RawEvent], Outcome]:
        process = bind(*args)

        def with_key(record: Any) -> Outcome:
            outcome = process(record)
            outputs = tuple(output._replace(key=output.key and record.key) for output in outcome.outputs)
            return outcome._replace(outputs=outputs)

        return with_key

    patch.setattr("streams.kafka.agents.bind", leaky)


def _isolated_with_the_fast_gate() -> Iterator[Scenario]:
    return (replace(one, strict=False) for one in _having("isolate a node")())


MUTANTS = (
    Mutant("M1", "no gate", lambda patch: patch.setattr(Lane, "_gate", _no_gate)),
    Mutant("M2", "gate before the read", lambda patch: patch.setattr(Lane, "_handle", _gate_after)),
    Mutant("M3", "gate shared with an earlier batch", lambda patch: patch.setattr(Lane, "_gate", _shared_gate)),
    Mutant("M4", "consents with acks=1", where=_having("kill a node", "isolate a node"), change=_acks_of_the_leader),
    Mutant("M5", "gate waits on last record", _last_record_counts, always=_consent_in_a_transaction),
    Mutant("M6", "random transactional.id", _random_ids),
    Mutant("M7", "committed offset before fence", lambda patch: patch.setattr(Lane, "_start", _ask_before_the_fence)),
    Mutant(
        "M8", "send futures not awaited", lambda patch: patch.setattr(SimLane, "send", _send_and_forget),
        _having("reject a batch"),
    ),
    Mutant("M9", "receipt while a batch is in flight", lambda patch: patch.setattr(Lane, "_commit", _late_receipt)),
    Mutant("M10", "withdrawal as tombstone", _withdraw_by_tombstone, _tombstones),
    Mutant("M11", "last offset wins", _last_offset_wins),
    Mutant(
        "M12", "gate time-out lets through", lambda patch: patch.setattr(Lane, "_gate", _impatient_gate),
        _having("slow follower"),
    ),
    Mutant("M13", "CRC32 partitioner on consents", _every_other_by_crc32, _having(partitions=2)),
    Mutant("M14", "undecodable consent skipped", _skip_undecodable),
    Mutant("M15", "EndTxn retried", _commit_twice, _busy_and_late),
    Mutant("M16", "end offset of an isolated leader", where=_isolated_with_the_fast_gate),
    Mutant("M17", "allow for unknown", _allow_the_unknown),
    Mutant("M18", "raw key copied to output", _raw_keys),
)  # fmt: skip
"""The list of the guarantees, in its order."""
