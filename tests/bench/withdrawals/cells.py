"""The circumstances of the trials: one cell of the table each.

A fault that comes in between has people before it (their event follows at once), people who withdraw before it and
whose event comes after it, people during it, and people in the moment in which it ends.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import Event, Thread
from typing import NamedTuple

from streams.embedded import ApacheKafka
from streams.kafka.partitioner import partition_of
from tests.bench.withdrawals.clusters import leaders, wait_in_sync
from tests.bench.withdrawals.systems import Process, System
from tests.bench.withdrawals.trials import Trials, load
from tests.chaos.cluster import LinkedCluster
from tests.kafka.brokers import SECONDS, admin_client, wait_until
from tests.kafka.worker import DRAINED, PARTITIONS, Deployment, Worker

PACE = 0.02
LOAD = 2_000
STALL = 0.2
CUT = 3.0
"""Seconds for which a leader is cut off once another one leads."""


@dataclass
class Stage:
    """One system at work in one cell. `bootstrap` is where its processes find brokers, `session` in ms."""

    shop: Deployment
    system: System
    kafka: ApacheKafka | None = None
    session: int = 3_000
    bootstrap: str = ""
    happened: dict[str, int] = field(default_factory=dict)
    """What was done to it, and how often."""

    def start(self, instance: int = 0) -> Worker:
        """Start a process of the system."""
        return self.system.start(Process(self.shop, instance, self.bootstrap or self.shop.bootstrap, self.session))

    def alive(self) -> list[Worker]:
        """Its processes that run: at least one."""
        alive = [worker for worker in self.shop.workers if worker.running]
        assert alive, "its process has ended:\n" + self.shop.workers[-1].log[-3000:]
        return alive

    def note(self, what: str) -> None:
        """Count what was done."""
        self.happened[what] = self.happened.get(what, 0) + 1


Fault = Callable[[Stage], AbstractContextManager[None]]
Play = Callable[[Stage, Trials, list[str]], None]


def calm(stage: Stage, trials: Trials, people: list[str]) -> None:
    """Nothing happens."""
    trials.run(people, PACE)


def busy(stage: Stage, trials: Trials, people: list[str]) -> None:
    """Events of other people all the while."""
    with load(stage.shop, LOAD):
        trials.run(people, PACE)


def in_rounds(size: int, fault: Fault) -> Play:
    """A fault in the middle of every so many people."""

    def play(stage: Stage, trials: Trials, people: list[str]) -> None:
        for first in range(0, len(people), size):
            some = people[first : first + size]
            before, held, during, ending = (some[i::4] for i in range(4))
            trials.run(before, PACE)
            for who in held:
                trials.withdraw(who)
            trials.acknowledged(held)
            with fault(stage):
                for who in held:
                    trials.send(who)
                trials.run(during, PACE / 4)
            trials.run(ending, PACE)
            trials.settle()

    return play


@contextmanager
def killed(stage: Stage) -> Iterator[None]:
    """SIGKILL, and then the same process again."""
    worker = stage.alive()[-1]
    worker.kill()
    stage.note("kill -9")
    yield
    stage.start()


@contextmanager
def paused(stage: Stage) -> Iterator[None]:
    """SIGSTOP of one of two processes, for half a second or so long that the other takes over; then SIGCONT."""
    number = stage.happened.get("SIGSTOP", 0)
    workers = stage.alive()
    worker = workers[number // 2 % len(workers)]
    worker.pause()
    stage.note("SIGSTOP")
    try:
        yield
        time.sleep(0.5 if number % 2 == 0 else 1.5 * stage.session / 1000)  # This is the fault itself.
    finally:
        worker.resume()


@contextmanager
def replaced(stage: Stage) -> Iterator[None]:
    """A new process joins, and the old one is told to end and has ended."""
    old = stage.alive()[-1]
    stage.start(instance=len(stage.shop.workers))
    wait_members(stage.shop, 2)
    old.terminate()
    stage.note("replacement")
    yield


def rebalancing(stage: Stage, trials: Trials, people: list[str]) -> None:
    """A second process joins and leaves all the while."""
    stop, failures = Event(), list[BaseException]()

    def churn() -> None:
        try:
            for number in count(1):
                second = stage.start(instance=number)
                wait_members(stage.shop, 2)
                stage.note("joined")
                if stop.is_set():
                    return
                second.terminate()
                wait_members(stage.shop, 1)
                stage.note("left")
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=churn, name="churn")
    thread.start()
    try:
        trials.run(people, 8 * PACE)
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def coordinator_killed(stage: Stage) -> Iterator[None]:
    """SIGKILL of the node that decides about transactions; another one takes over."""
    assert stage.kafka is not None
    node = leaders(stage.shop.bootstrap, "__transaction_state")[0]
    stage.kafka.kill(node)
    stage.note("kill -9 of the coordinator")
    try:
        yield
    finally:
        stage.kafka.start(node)
    wait_in_sync(stage.shop.bootstrap)


def stalled(stage: Stage, trials: Trials, people: list[str]) -> None:
    """The leader of each withdrawal's partition stands still from its acknowledgement on, for 200 ms."""
    kafka = stage.kafka
    assert kafka is not None
    leading = leaders(stage.shop.bootstrap, stage.shop.consents)
    for who in people:
        node = leading[partition_of(who.encode(), PARTITIONS)]

        def stall(who: str, node: int = node) -> None:
            kafka.pause(node)
            trials.send(who)

        try:
            trials.withdraw(who, stall)
            trials.acknowledged([who])
            time.sleep(STALL)  # This is the fault itself.
        finally:
            kafka.resume(node)
        stage.note("stall")
        trials.settle()


def isolated(stage: Stage, trials: Trials, people: list[str]) -> None:
    """The leader of the consents is cut off from its cluster, but not from the system. Another takes over."""
    cluster = stage.kafka
    assert isinstance(cluster, LinkedCluster)
    shop, size = stage.shop, 25
    for first in range(0, len(people), size):
        node = cluster.leader_of(shop.consents, 0)
        cluster.isolate(node)
        try:
            cluster.wait_led([shop.consents], other_than=node)
            # Whoever writes consents has noticed: it asks a node that was not cut off.
            trials.connect(f"127.0.0.1:{cluster.ports[3]}")
            trials.run(people[first : first + size], PACE / 4)
            trials.flush()
            time.sleep(CUT)  # This is the fault itself.
        finally:
            cluster.heal()
        stage.note("isolation")
        cluster.wait_whole([shop.consents])
        trials.settle()


def members(shop: Deployment) -> int:
    """How many members the group has; 0 while it rebalances."""
    [asked] = admin_client(shop.bootstrap).describe_consumer_groups([shop.group], request_timeout=SECONDS).values()
    group = asked.result(SECONDS)
    return len(group.members) if group.state.name == "STABLE" else 0


def wait_members(shop: Deployment, wanted: int) -> None:
    """Wait until the group has so many members, and does not rebalance."""
    wait_until(lambda: members(shop) == wanted, f"{wanted} members of {shop.group}", DRAINED)


class Cell(NamedTuple):
    """One row of the table. `skew`: ms by which the consent service's clock is ahead; `processes` at the start."""

    title: str
    brokers: str
    play: Play
    skew: int = 0
    processes: int = 1
    strict: bool = False
    """Whether it needs the strict gate where there is one."""
    promised: bool = True


CELLS = {
    "idle": Cell("idle", "one", calm),
    "load": Cell("2,000 other events/s", "one", busy),
    "ahead-50ms": Cell("consent clock 50 ms ahead", "one", calm, skew=50),
    "behind-50ms": Cell("consent clock 50 ms behind", "one", calm, skew=-50),
    "ahead-10s": Cell("consent clock 10 s ahead", "one", calm, skew=10_000),
    "behind-10s": Cell("consent clock 10 s behind", "one", calm, skew=-10_000),
    "killed": Cell("process killed in between", "one", in_rounds(20, killed)),
    "paused": Cell("process stopped and resumed", "one", in_rounds(20, paused), processes=2),
    "replaced": Cell("process replaced in between", "one", in_rounds(20, replaced)),
    "rebalance": Cell("rebalance under way", "one", rebalancing),
    "apart": Cell("consent leader on another broker", "three", calm),
    "apart-load": Cell("the same, 2,000 other events/s", "three", busy),
    "coordinator": Cell("transaction coordinator failing over", "three", in_rounds(50, coordinator_killed)),
    "stalled": Cell("consent leader stalled 200 ms after its acknowledgement", "aside", stalled),
    "isolated": Cell("consent leader isolated (strict gate)", "linked", isolated, strict=True),
    "isolated-fast": Cell("the same, fast gate (not promised)", "linked", isolated, promised=False),
}


def published_after_withdrawal(stage: Stage, cell: Cell, count: int, seed: int = 1) -> tuple[int, Trials]:
    """Run so many trials; return how many events were published though their person had withdrawn before."""
    for instance in range(cell.processes):
        stage.start(instance)
    trials = Trials(stage.shop, cell.skew, seed)
    people = trials.people(count)
    cell.play(stage, trials, people)
    return trials.published(), trials
