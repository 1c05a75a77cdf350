"""One run: a cluster, workers, clients and faults; then everything is put right, drained, read and checked.

The checker is asked partition by partition: nothing of a run crosses partitions, and a quarter needs less memory.
"""

import pickle
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from confluent_kafka import KafkaException

from tests.chaos.cluster import NODES, linked_cluster
from tests.chaos.crowd import AHEAD, COUNTRIES, Crowd, complete, counting
from tests.chaos.nodes import FAULTS as NODE_FAULTS
from tests.chaos.nodes import NEEDS_STRICT, SHORT, Breaker
from tests.chaos.observer import Observer
from tests.chaos.reading import read_log
from tests.chaos.scene import Rotation, Scene
from tests.chaos.traffic import HIDDEN, PERSON, Traffic, person
from tests.chaos.workers import FAULTS, OFTEN, REALLY, SLOTS, Guest, Slot, end_worker
from tests.checker import Report, Violations, check
from tests.history import History
from tests.kafka.brokers import end_offsets, wait_until
from tests.kafka.retail import ORDERS, now_ms, retail_policy
from tests.kafka.worker import PARTITIONS, Deployment

GROUP = "chaos"
LONGEST = 300.0
"""Seconds of faults, if there are not enough of them before; twice what was ordered, if that is longer."""
PROMISES = 20
"""Receipts while all is hurt, at the least: on a busy machine faults come faster than anything can happen between."""
DRAINED = 180.0
"""Seconds for workers to finish, besides those that their lag takes at the least speed that is expected."""
LEAST_SPEED = 500.0
"""Events a second, of all workers together."""


@dataclass(frozen=True)
class Order:
    """What a run shall be."""

    seconds: float = 180.0
    """of faults; longer if `events` were not sent by then, or not all that is wanted has happened"""
    events: int = 0
    """at the least; 0: as many as at 300 a second"""
    seed: int = 0
    people: int = 2_000
    gates: tuple[str, ...] = ("fast", "strict")
    """workers are given one after the other, each for an equal part of the time"""
    short: bool = False
    """one fault of each sort on nodes, not all kinds"""
    mutant: str = ""
    """Python that every worker runs before it starts: what breaks it"""

    @property
    def node_faults(self) -> list[str]:
        """The kinds of faults that nodes have."""
        kinds = SHORT if self.short else list(NODE_FAULTS)
        return [kind for kind in kinds if kind not in NEEDS_STRICT or "strict" in self.gates]

    @property
    def wanted(self) -> list[str]:
        """What shall really have happened, once at the least."""
        apart = ["leaders that were replaced and did not know"] if NEEDS_STRICT & set(self.node_faults) else []
        return [*FAULTS, *self.node_faults, *REALLY, *apart]

    @property
    def rate(self) -> float:
        """Events a second."""
        return (self.events or 300 * self.seconds) / self.seconds


@dataclass
class Result:
    """What a run has shown."""

    order: Order
    counts: Counter[str]
    done: list[str]
    report: Report
    seconds: float
    """from the first event to the last"""

    def lines(self) -> list[str]:
        """The report, as lines to print."""
        events = self.report.counts["events"]
        return [
            *self.report.lines(),
            "done:  " + ", ".join(f"{count:,} {what}" for what, count in sorted(self.counts.items())),
            f"{events:,} events in {self.seconds:.0f} s: {events / self.seconds:,.0f} a second; seed {self.order.seed}",
        ]


def run(order: Order, say: Callable[[str], None] = print) -> Result:
    """Do it.

    Raises:
        Violations: a promise was broken. A note says where the evidence lies.
        AssertionError: something did not come to its end.
        BrokerFailed: a node does not start.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celosia-chaos-")))
        cluster = stack.enter_context(linked_cluster(workers=SLOTS + 1))
        say(f"{cluster.name}, {SLOTS} workers and a guest, seed {order.seed}")
        policy = retail_policy(GROUP)
        for purpose in policy["purposes"].values():  # No pseudonym may change during the run by itself.
            purpose["rotate"] = "3650d"
        counting(policy, GROUP)
        shop = stack.enter_context(Deployment(cluster.bootstrap, GROUP, policy, home, replication=len(NODES)))
        shop.create_topics()
        # So that compaction really happens, but not before the observer has read.
        for setting in ("segment.ms=60000", "min.cleanable.dirty.ratio=0.1", "min.compaction.lag.ms=120000"):
            shop.set_config(shop.consents, setting)
        scene = Scene(cluster, shop, order.seed, order.gates[0], order.mutant)
        try:
            return _run(order, scene, policy, say)
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                error.add_note(f"seed {order.seed}; the logs and what was done: {_keep(scene)}")
            raise


def _run(order: Order, scene: Scene, policy: dict[str, object], say: Callable[[str], None]) -> Result:
    shop, cluster = scene.shop, scene.cluster
    traffic = Traffic(cluster.outside, shop.raw, shop.consents, order.people, order.seed)
    observer = Observer(cluster, shop.consents, shop.receipts, _outputs(shop), PARTITIONS)
    observer.start()
    try:
        traffic.let_everyone_speak()
        with _hurt(order, scene):
            began = time.monotonic()
            traffic.start(order.rate, order.events)
            _watch(order, scene, traffic, observer, say)
            say("faults end; everything is put right")
        cluster.heal()
        traffic.stop(DRAINED)
        seconds = time.monotonic() - began
        _drain(scene, traffic, observer, say)
    finally:
        scene.stopping.set()
        traffic.abandon()
        observer.stop()
    for worker in shop.workers:
        if worker.running:
            end_worker(scene, worker)
    _close_windows(scene, traffic)
    _count_logs(scene)
    scene.counts.update(observer.counts)
    scene.counts.update({f"links: {what}": count for what, count in cluster.links.counts().items()})
    result = Result(order, scene.counts, scene.done, _check(scene, policy, traffic, observer, say), seconds)
    assert not scene.bugs, "\n".join([*result.lines(), f"{len(scene.bugs)} workers ended by bugs:", *scene.bugs[:20]])
    return result


@contextmanager
def _hurt(order: Order, scene: Scene) -> Iterator[None]:
    """Workers run and faults come, until this ends."""
    kinds = Rotation(OFTEN, scene.chance("workers"))
    slots: list[Slot] = []
    with ExitStack() as joins:  # All of them, also if one raises.
        try:
            for number in range(SLOTS):
                slots.append(Slot(scene, number, kinds))
                joins.callback(slots[-1].join)
            guest = Guest(scene)
            joins.callback(guest.join)
            breaker = Breaker(scene, slots, order.node_faults)
            joins.callback(breaker.join)
            yield
        finally:
            scene.stopping.set()


def _watch(
    order: Order,
    scene: Scene,
    traffic: Traffic,
    observer: Observer,
    say: Callable[[str], None],
) -> None:
    """Let it happen, changing the gate on the way, until there was enough of everything."""
    began, said = time.monotonic(), time.monotonic()
    longest = max(2 * order.seconds, LONGEST)
    while not scene.wait(0.5):
        elapsed = time.monotonic() - began
        scene.gate = order.gates[min(int(len(order.gates) * elapsed / order.seconds), len(order.gates) - 1)]
        if time.monotonic() - said >= (30 if order.seconds > 600 else 10):
            said = time.monotonic()
            say(_progress(scene, traffic, observer, elapsed))
        missing = [what for what in order.wanted if not scene.counts[what]]
        enough = not missing and len(traffic.invoked) >= order.events and len(observer.promised) >= PROMISES
        if elapsed >= order.seconds and (enough or elapsed >= longest):
            return


def _progress(scene: Scene, traffic: Traffic, observer: Observer, elapsed: float) -> str:
    sent, count = len(traffic.invoked), scene.counts
    running = sum(worker.running for worker in scene.shop.workers)
    return (
        f"{elapsed:5.0f} s: {sent:,} events, {len(traffic.changes):,} changes, "
        f"{sent + len(traffic.changes) - traffic.answered:,} unanswered; {len(observer.promised):,} promises; "
        f"{running} workers, {len(scene.cluster.pids)} nodes; {len(scene.done)} faults, "
        f"{count['SIGSTOPs of workers']} SIGSTOPs of workers; gate {scene.gate}"
    )


def _drain(scene: Scene, traffic: Traffic, observer: Observer, say: Callable[[str], None]) -> None:
    """Wait until the group has committed all there is, and every consent has its receipt."""
    shop, began = scene.shop, time.monotonic()
    scene.cluster.wait_whole(scene.topics)
    # Whoever could not start while brokers were away starts now.
    missing = SLOTS - sum(worker.running for worker in shop.workers)
    for number in range(missing):
        shop.start(bootstrap=scene.cluster.bootstrap_of(number), gate=scene.gate)
    ends = end_offsets(shop.bootstrap, shop.raw, "read_uncommitted")
    consents = {number: max(records, default=-1) + 1 for number, records in observer.consents.items()}
    seconds = DRAINED + len(traffic.invoked) / LEAST_SPEED
    state: dict[str, object] = {}

    def drained() -> bool:
        try:
            state["committed"] = committed = shop.committed(shop.raw)
        except KafkaException:
            return False
        state["through"] = through = {number: observer.through(number) for number in consents}
        return all(committed[number] >= end for number, end in ends.items()) and all(
            through[number] >= end for number, end in consents.items()
        )

    try:
        wait_until(drained, f"everything is handled: events to {ends}, receipts through {consents}", seconds)
    except AssertionError as error:
        error.add_note(f"at the end: {state}; workers: {[worker.lanes() for worker in shop.workers if worker.running]}")
        raise
    say(f"drained in {time.monotonic() - began:.0f} s")


def _outputs(shop: Deployment) -> list[str]:
    """The topics of purposes that get events."""
    return [topic for topic in shop.outputs if topic != shop.plan.purposes[COUNTRIES].topic]


def _close_windows(scene: Scene, traffic: Traffic) -> None:
    """Have all windows of crowds released, and hold what is told against the raw log."""
    shop = scene.shop
    crowd = Crowd(person(who).encode() for who in range(traffic.speakers, len(traffic.rungs)))
    for number in range(PARTITIONS):
        crowd.read(read_log(shop.bootstrap, shop.raw, number))
    topic = shop.plan.purposes[COUNTRIES].topic
    scene.count("windows of crowds", len(crowd.windows))
    scene.count("windows of crowds released before the end", len(complete(shop.read(topic))))
    wanted = {window for window, *_ in crowd.wanted()}
    last = shop.start(script=AHEAD, gate=scene.gate)
    try:
        wait_until(lambda: complete(shop.read(topic)) >= wanted, "all windows are released", DRAINED)
    except AssertionError as error:
        error.add_note(f"missing: {sorted(wanted - complete(shop.read(topic)))}; {last.log[-2000:]}")
        raise
    end_worker(scene, last)
    found = crowd.findings(shop.read(topic))
    scene.count("cells of crowds told", len(crowd.wanted()))
    assert not found, f"{len(found)} findings about crowds:\n" + "\n".join(found[:20])


def _count_logs(scene: Scene) -> None:
    """What workers say of themselves: how often they were fenced, started again and reassigned."""
    for worker in scene.shop.workers:
        log = worker.log
        scene.count("lanes fenced", log.count(": fenced"))
        scene.count("lanes started again", log.count(": restarting"))
        scene.count("lanes parked at the gate", log.count(": parked at the gate"))
        scene.count("assignments", log.count("assigned: "))


def _check(
    scene: Scene, policy: dict[str, object], traffic: Traffic, observer: Observer, say: Callable[[str], None]
) -> Report:
    """Read everything that is left, one partition after the other, and have it checked."""
    shop, whole, found = scene.shop, Report(), list[Violations]()
    committed = shop.committed(shop.raw)
    now, seen = now_ms(), bytearray(len(traffic.invoked))
    for number in range(PARTITIONS):
        began = time.monotonic()
        history = _history(scene, policy, traffic, observer, number, now)
        history.offsets = {(shop.raw, number): committed[number]}
        for event in history.raw[shop.raw, number]:
            seen[number_of(event.headers)] += 1
        if number == 0:
            history.texts = {f"log of worker {index}": worker.log for index, worker in enumerate(shop.workers)}
        try:
            report = check(history)
        except Violations as violations:
            found.append(violations)
            kept = Path(tempfile.mkdtemp(prefix="celosia-chaos-history-"), f"partition-{number}.pickle")
            kept.write_bytes(pickle.dumps(history))
            violations.add_note(f"the history of partition {number}: {kept}")
            say(f"partition {number}: {violations}\n" + "\n".join(violations.__notes__))
        else:
            whole.counts += report.counts
            whole.power += report.power
            took = time.monotonic() - began
            say(f"partition {number}: {report.counts['events']:,} events, all as promised (checked in {took:.0f} s)")
    if found:
        raise found[0]
    lost = [event for event, at in enumerate(traffic.acknowledged) if not isnan(at) and not seen[event]]
    assert not lost, f"{len(lost)} events were acknowledged, and the cluster has lost them: {lost[:10]}"
    written = sum(map(len, observer.consents.values()))
    told = sum(not isnan(at) for at in traffic.changes.acknowledged)
    assert written >= told, f"{told} changes of consent were acknowledged, and only {written} were ever seen"
    return whole


def number_of(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """The number of an event: the first of its headers."""
    return int(headers[0][1] or b"")


def _history(
    scene: Scene, policy: dict[str, object], traffic: Traffic, observer: Observer, number: int, now: int
) -> History:
    """Everything about one partition."""
    shop = scene.shop
    raw = read_log(shop.bootstrap, shop.raw, number)
    consents = observer.consents[number]
    topics = [*_outputs(shop), shop.quarantine, shop.receipts]
    committed = {(topic, number): read_log(shop.bootstrap, topic, number) for topic in topics}
    return History(
        policy=policy,
        secret=bytes.fromhex(shop.key_file.read_text().strip()),
        partitions=PARTITIONS,
        now=now,
        raw={(shop.raw, number): raw},
        consents={number: [consents[offset] for offset in sorted(consents)]},
        committed=committed,
        uncommitted={
            (topic, number): read_log(shop.bootstrap, topic, number, committed[topic, number]) for topic in topics
        },
        events=[traffic.sent(number, event.offset, number_of(event.headers)) for event in raw],
        changes=[traffic.changed(number, record) for record in consents.values()],
        promised=[promise for promise in observer.promised if promise.partition == number],
        canaries=[f"{PERSON}{who}".encode() for who in range(2)],
        hidden=[f"{HIDDEN}{event}".encode() for event in range(2)],
        identified_topics=frozenset({shop.plan.purposes[ORDERS].topic}),
    )


def _keep(scene: Scene) -> Path:
    """Copy the logs to where they outlast the run."""
    kept = Path(tempfile.mkdtemp(prefix="celosia-chaos-evidence-"))
    (kept / "done.txt").write_text("\n".join(scene.done))
    for log in scene.shop.home.glob("*.log"):
        shutil.copy(log, kept)
    for node in NODES:
        log = scene.cluster.log_dir(node).with_name("server.log")
        if log.exists():
            shutil.copy(log, kept / f"node-{node}.log")
    return kept
