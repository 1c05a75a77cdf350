"""One run: a cluster, workers, clients and faults in virtual time, and the history that is left for the checker.

    result = run(scenario(17))          # the whole run; raises nothing
    result.failure                      # None, or what was violated

Time runs faster here than the settings of a real installation would have it: a session is a second.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from streams.consent import BARRIER
from streams.kafka.work import LaneSettings
from tests.checker import Violations, check
from tests.history import History, Promised, Sent, Stored
from tests.simulation import crowd, faults, material
from tests.simulation.clients import Clients
from tests.simulation.cluster import Cluster
from tests.simulation.group import GroupCoordinator
from tests.simulation.log import Entry, Log
from tests.simulation.loop import Clock, Deadlock, Process
from tests.simulation.network import Network
from tests.simulation.ports import Broker
from tests.simulation.scenario import Scenario
from tests.simulation.transactions import TransactionCoordinator
from tests.simulation.worker import Worker

__all__ = ["Result", "World", "run"]

PATIENCE = 90.0
"""within how many seconds after the last fault all events must have been handled"""


@dataclass
class Result:
    """What came of a run."""

    seed: int
    failure: str | None
    power: "Counter[str]"
    seconds: float
    """virtual"""
    trace: list[str] = field(default_factory=list)
    history: History | None = None


class World:
    """Everything in a run."""

    def __init__(self, scenario: Scenario, traced: bool = False) -> None:
        self.scenario = scenario
        self.shop = material.shop(scenario.rekeyed, scenario.crowd)
        self.power: Counter[str] = Counter()
        self.lines: list[str] = []
        self.failures: list[str] = []
        self.traced = traced
        self.clock = Clock()
        self.network = Network(self.clock, Random(f"network {scenario.seed}"))
        self.network.spread = scenario.spread
        self.cluster = Cluster(self.clock, self.network, Random(f"cluster {scenario.seed}"), self.power)
        coordinators = [TransactionCoordinator(self.cluster, number) for number in range(2)]
        group = GroupCoordinator(self.cluster, scenario.partitions)
        self.broker = Broker(self.cluster, group, coordinators, self.clock_ms, scenario.transaction_timeout)
        for topic in (*self.shop.raw, *self.shop.keyed, *self.shop.written, self.shop.consents, *self.shop.crowd):
            for number in range(scenario.partitions):
                self.cluster.add(topic, number)
        self.clients = Clients(
            self.broker, self.shop, scenario.partitions, Random(f"clients {scenario.seed}"), scenario.in_order
        )
        settings = LaneSettings(patience=2.0, deadline=2.5, pause=0.05, gate="strict" if scenario.strict else "fast")
        self.workers = [
            Worker(self.broker, self.shop, index, scenario.partitions, settings) for index in range(scenario.workers)
        ]
        for worker in self.workers:
            worker.most = scenario.most
            worker.lag_follower(scenario.lag)
        self.remade: dict[int, list[tuple[int, Log]]] = {}
        """by partition: the base of what came after, and the log that was deleted"""
        self._receipts_seen = [0] * scenario.partitions
        for number in range(scenario.partitions):
            self._watch_receipts(number)
        if traced:
            self.cluster.trace = self.clients.trace = self.say
            for worker in self.workers:
                worker.trace = self.say

    def clock_ms(self) -> int:
        """The wall clock of everybody whose clock is right."""
        return material.BASE + int(self.clock.now * 1000)

    def say(self, who: str, what: str) -> None:
        """Note what happens, if anybody wants to know."""
        if self.traced:
            self.lines.append(f"{self.clock.now:10.5f}  {who:<14} {what}")

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Let it happen. What goes wrong is in `failures`."""
        scenario = self.scenario
        for worker in self.workers:
            worker.start()
        self.clients.start(scenario.events, scenario.changes, scenario.visits)
        for fault in scenario.faults:
            self.clock.at(fault.at, faults.do, self, fault)
        self.clock.at(scenario.until, self._heal)
        try:
            self.clock.run()
        except Deadlock as deadlock:
            self.failures.append(str(deadlock))
        finally:
            self._bury()
        for process in [self.clients.process, *(worker.process for worker in self.workers)]:
            self.failures += [f"{process.name}: {failure}" for failure in process.failures]
        for worker in self.workers:
            self.failures += worker.bugs

    def _heal(self) -> None:
        """End all faults. What still has to happen of those that were begun does no harm."""
        self.say("world", "heals")
        for worker in self.workers:
            worker.traps.clear()
            worker.skew = 0
            worker.lag_follower(0.0)
            worker.process.resume()
        for coordinator in self.broker.coordinators:
            coordinator.marker_delay = 0.002
        self.broker.slow_ends = self.cluster.rejects = 0
        self.cluster.heal()
        self._look()

    def _look(self) -> None:
        """See whether all is done; if it takes too long, say what is not."""
        for worker in self.workers:
            if worker.bugs:
                self.clock.over = True
                return
            worker.traps.clear()
            if not worker.up and self.clock.now > self.scenario.until + 5.0:
                worker.start()
        left = self._left()
        if not left:
            self._end()
        elif self.clock.now > self.scenario.until + PATIENCE:
            self.failures.append("not done after " + f"{PATIENCE:.0f} s: " + "; ".join(left))
            self.clock.over = True
        else:
            self.clock.after(0.1, self._look)

    def _left(self) -> list[str]:
        """Return what is still to be done."""
        left = []
        if self.clients.writing:
            left.append(f"{self.clients.writing} clients write")
        committed = self.broker.group.now()
        for topic in (*self.shop.raw, *self.shop.keyed):
            for number in range(self.scenario.partitions):
                log = self.broker.partition(topic, number).log
                last = next((entry for entry in reversed(log.entries) if _is_data(entry)), None)
                if last is not None and (at := committed.get((topic, number), 0)) <= last.offset:
                    left.append(f"{topic}[{number}]: {at} of {last.offset + 1}")
        if not all(coordinator.settled for coordinator in self.broker.coordinators):
            left.append("a transaction is open")
        for place, partition in self.broker.cluster.partitions.items():
            if partition.log.stable() < partition.log.end:
                # A leader that is new has not heard from the others what they have.
                left.append(f"{place[0]}[{place[1]}]: seen up to {partition.log.stable()} of {partition.log.end}")
        for number in range(self.scenario.partitions):
            entries = self.broker.partition(self.shop.consents, number).log.entries
            changed = next((entry.offset for entry in reversed(entries) if entry.key != BARRIER), -1)
            receipts = self.broker.partition(self.shop.receipts, number).log.committed()
            through = _through(receipts[-1].value) if receipts else 0
            if not receipts or through <= changed:
                left.append(f"receipts[{number}]: {through} of {changed + 1}")
        return left or (crowd.left(self) if self.shop.crowd else [])

    def _end(self) -> None:
        """Ask all workers to end, and wait for them."""
        self.say("world", "is done")
        self._await_end(self.clock.now + 20.0)

    def _await_end(self, deadline: float) -> None:
        up = [worker.name for worker in self.workers if worker.up]
        for worker in self.workers:
            worker.stop()  # Some may have been started a moment ago.
        if not up and all(coordinator.settled for coordinator in self.broker.coordinators):
            self.clock.over = True
        elif self.clock.now > deadline:
            self.failures.append(f"did not end when asked to: {', '.join(up)}")
            self.clock.over = True
        else:
            self.clock.after(0.02, self._await_end, deadline)

    def _bury(self) -> None:
        """Leave no coroutine behind."""
        for worker in self.workers:
            worker.retired = True
        processes: list[Process] = [self.clients.process, *(worker.process for worker in self.workers)]
        for process in processes:
            process.kill()
        self.clock.run(self.clock.now + 0.001)
        for process in processes:
            left = [task for task in asyncio.all_tasks(process) if not task.done()]
            self.failures += [f"{process.name}: {len(left)} tasks cannot be ended"] if left else []

    # --- what it leaves ----------------------------------------------------------------------------------------------

    def _watch_receipts(self, number: int) -> None:
        partition = self.broker.partition(self.shop.receipts, number)

        def visible() -> None:
            seen, self._receipts_seen[number] = self._receipts_seen[number], partition.visible
            if number in self.remade:
                return  # Which topic an old receipt speaks of cannot be told.
            entries = [entry for entry in partition.log.committed() if entry.offset >= seen]
            if entries:
                stood = self.clients.stood(number)
                for entry in entries:
                    self.clients.promised.append(Promised(number, _through(entry.value), stood))

        partition.on_visible = visible

    def make_consents_anew(self) -> None:
        """Delete the consent topic and make it again."""
        for number in range(self.scenario.partitions):
            partition = self.broker.partition(self.shop.consents, number)
            done = self.remade.setdefault(number, [])
            base = (done[-1][0] if done else 0) + partition.log.end + 1
            done.append((base, partition.log))
            partition.make_anew()

    def history(self) -> History:
        """Return what is to be checked."""
        scenario, shop, clients = self.scenario, self.shop, self.clients
        history = History(shop.document, material.SECRET, scenario.partitions, material.LATEST)
        numbers = range(scenario.partitions)
        for topic in shop.raw:
            for number in numbers:
                log = self.broker.partition(topic, number).log
                history.raw[topic, number] = _stored([entry for entry in log.entries if not entry.corrupt])
                history.starts[topic, number] = log.start
                history.ends[topic, number] = log.end
        for topic in shop.keyed:
            for number in numbers:
                history.ends[topic, number] = self.broker.partition(topic, number).log.end
        for topic in (*shop.written, *shop.keyed):
            for number in numbers:
                log = self.broker.partition(topic, number).log
                history.committed[topic, number] = _stored(log.committed())
                history.uncommitted[topic, number] = _stored(
                    [entry for entry in log.entries if entry.control is None and entry.offset < log.hw]
                )
        for number in numbers:
            history.consents[number] = self._consents(number)
            if number in self.remade:
                history.remade[number] = [base for base, _ in self.remade[number]]
        history.offsets = dict(self.broker.group.now())
        history.events = clients.events
        history.changes = self._changes() if self.remade else clients.changes
        history.promised = clients.promised
        history.canaries = [person.encode() for person in material.PEOPLE]
        history.hidden = [b"hidden-one", b"hidden-two"]
        history.identified_topics = frozenset({"out.care"})
        history.power = self.power
        return history

    def _lives(self, number: int) -> list[tuple[int, Log]]:
        """Return the consent topic's lives: each with what its offsets count on from."""
        log = self.broker.partition(self.shop.consents, number).log
        done = self.remade.get(number, [])
        bases = [0, *(base for base, _ in done)]
        return list(zip(bases, [*(old for _, old in done), log], strict=True))

    def _consents(self, number: int) -> list[Stored]:
        stored = []
        for base, log in self._lives(number):
            entries = sorted([*log.entries, *log.compacted], key=lambda entry: entry.offset)
            stored += _stored([entry for entry in entries if entry.key != BARRIER and _is_data(entry)], base)
        return stored

    def _changes(self) -> list[Sent]:
        """Return the changes with their offsets counted on, by where their records are found."""
        changes = []
        for sent, record in zip(self.clients.changes, self.clients.written, strict=True):
            if sent.offset is None:
                changes.append(sent)
                continue
            for base, log in self._lives(sent.partition):
                changes += [
                    sent._replace(offset=base + entry.offset)
                    for entry in (*log.entries, *log.compacted)
                    if entry.offset == sent.offset and (entry.timestamp, entry.key, entry.value) == record[:3]
                ]
        return changes


def _is_data(entry: Entry) -> bool:
    return entry.control is None and (entry.span is None or not entry.span.aborted)


def _stored(entries: list[Entry], base: int = 0) -> list[Stored]:
    return [Stored(base + entry.offset, entry.timestamp, entry.key, entry.value, entry.headers) for entry in entries]


def _through(value: Any) -> int:
    """Read a receipt: `..."through":17,...`."""
    return int(value.partition(b'"through":')[2].partition(b",")[0])


def run(
    scenario: Scenario, traced: bool = False, change: Callable[[World], None] | None = None, keep: bool = False
) -> Result:
    """Run a scenario and check its history. `change`: what a test does to the world first; `keep`: keep the history."""
    world = World(scenario, traced)
    if change is not None:
        change(world)
    quiet = logging.getLogger("celosia")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL + 1)
    try:
        world.run()
    finally:
        quiet.setLevel(level)
    power = world.power
    failure = "; ".join(world.failures) or None
    history = None
    if failure is None or keep:
        history = world.history()
    if failure is None and history is not None:
        try:
            power = check(history).power
        except Violations as violations:
            failure = str(violations)
    if failure is None and world.shop.crowd:
        failure = "; ".join(crowd.findings(world, power)) or None
    return Result(scenario.seed, failure, power, world.clock.now, world.lines, history if keep else None)
