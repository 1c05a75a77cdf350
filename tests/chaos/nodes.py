"""What is done to the cluster, one thing after another: nodes that are killed, stopped, paused, slowed and cut off.

After each fault the nodes that are missing are started again, and the replicas have some time to catch up.
"""

import threading
from collections.abc import Callable

from tests.chaos.cluster import NODES
from tests.chaos.links import CLEAR, Fault
from tests.chaos.scene import Rotation, Scene
from tests.chaos.workers import Slot
from tests.kafka.worker import PARTITIONS

CAUGHT_UP = 20.0
"""Seconds for replicas to catch up before the next fault comes all the same: a cluster may be hurt again meanwhile."""


class Breaker:
    """Hurts the cluster, on a thread of its own."""

    def __init__(self, scene: Scene, slots: list[Slot], kinds: list[str]) -> None:
        self.scene = scene
        self.slots = slots
        self.chance = scene.chance("nodes")
        self.rotation = Rotation(kinds, self.chance)
        self.failure: BaseException | None = None
        self._later: list[str] = []
        self._thread = threading.Thread(target=self._run, name="nodes")
        self._thread.start()

    def join(self) -> None:
        """Wait until the last fault is over."""
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        scene = self.scene
        try:
            while not scene.wait(self.chance.uniform(1, 5)):
                kind = self._draw()
                scene.note(f"nodes: {kind}")
                FAULTS[kind](self)
                scene.count(kind)
                self._recover()
        except BaseException as error:
            self.failure = error
            scene.stopping.set()

    def _draw(self) -> str:
        """The next kind. A leader is cut off only where every worker has the gate that promises something then."""
        strict = all(slot.gate == "strict" for slot in self.slots) and self.scene.gate == "strict"
        if strict and self._later:
            return self._later.pop()
        kind = self.rotation.draw()
        while kind in NEEDS_STRICT and not strict:
            if kind not in self._later:
                self._later.append(kind)
            kind = self.rotation.draw()
        return kind

    def _recover(self) -> None:
        cluster = self.scene.cluster
        if missing := [node for node in NODES if node not in cluster.pids]:
            cluster.start(*missing)
        try:
            cluster.wait_whole(self.scene.topics, CAUGHT_UP)
        except AssertionError:
            self.scene.count("replicas that caught up late")

    def consent_leader(self) -> int:
        """The leader of one of the consent partitions."""
        return self.scene.cluster.leader_of(self.scene.shop.consents, self.chance.randrange(PARTITIONS))

    def raw_leader(self) -> int:
        """The leader of one of the partitions with events."""
        return self.scene.cluster.leader_of(self.scene.shop.raw, self.chance.randrange(PARTITIONS))

    def transaction_coordinator(self) -> int:
        """The coordinator of one of the lanes."""
        return self.scene.cluster.transaction_coordinator_of(
            self.scene.transactional_id(self.chance.randrange(PARTITIONS))
        )

    def group_coordinator(self) -> int:
        """The coordinator of the workers' group."""
        return self.scene.cluster.group_coordinator_of(self.scene.shop.group)

    def kill(self, node: int) -> None:
        """SIGKILL, and a while without it."""
        self.scene.count("SIGKILLs of nodes")
        self.scene.cluster.kill(node)
        self.scene.wait(self.chance.uniform(0, 4))

    def stop(self, node: int) -> None:
        """A clean end, and a while without it."""
        self.scene.count("clean stops of nodes")
        self.scene.cluster.stop(node)
        self.scene.wait(self.chance.uniform(0, 4))

    def kill_all(self) -> None:
        """SIGKILL for all of them."""
        for node in NODES:
            self.scene.count("SIGKILLs of nodes")
            self.scene.cluster.kill(node)

    def restart_all(self) -> None:
        """One after the other is stopped and started again."""
        for node in self.chance.sample(NODES, len(NODES)):
            self.stop(node)
            self._recover()

    def two_down(self) -> None:
        """Only one replica is left: less than min.insync.replicas, so nobody can write."""
        for node in self.chance.sample(NODES, 2):
            self.scene.count("SIGKILLs of nodes")
            self.scene.cluster.kill(node)
        self.scene.wait(self.chance.uniform(5, 10))

    def pause(self) -> None:
        """SIGSTOP, shorter or longer than the cluster waits for a node."""
        node = self.chance.choice([self.consent_leader(), self.raw_leader(), self.transaction_coordinator()])
        self.scene.count("SIGSTOPs of nodes")
        self.scene.cluster.pause(node)
        try:
            self.scene.wait(self.chance.choice([1.5, 5, 9]))
        finally:
            self.scene.cluster.resume(node)

    def slow(self) -> None:
        """Everything to and from one node takes long, for nodes and workers alike."""
        node, cluster = self.consent_leader(), self.scene.cluster
        links = cluster.links_between(node)
        links += [(f"worker-{number}", node) for number in range(cluster.workers)]
        cluster.links.set(links, self.chance.choice([Fault(delay=0.15), Fault(rate=50_000)]))
        try:
            self.scene.wait(self.chance.uniform(5, 9))
        finally:
            cluster.links.set(links, CLEAR)

    def isolate(self) -> None:
        """The leader of a consent partition loses its cluster, but not the workers; the others go on without it."""
        cluster = self.scene.cluster
        node = self.consent_leader()
        cluster.isolate(node)
        try:
            cluster.wait_led(self.scene.topics, other_than=node)
            self.scene.count("leaders that were replaced and did not know")
            self.scene.wait(self.chance.uniform(2, 8))
        finally:
            cluster.rejoin(node)


FAULTS: dict[str, Callable[[Breaker], None]] = {
    "leader of consents killed": lambda it: it.kill(it.consent_leader()),
    "leader of events killed": lambda it: it.kill(it.raw_leader()),
    "leader of consents stopped": lambda it: it.stop(it.consent_leader()),
    "leader of events stopped": lambda it: it.stop(it.raw_leader()),
    "transaction coordinator killed": lambda it: it.kill(it.transaction_coordinator()),
    "transaction coordinator stopped": lambda it: it.stop(it.transaction_coordinator()),
    "group coordinator killed": lambda it: it.kill(it.group_coordinator()),
    "group coordinator stopped": lambda it: it.stop(it.group_coordinator()),
    "all nodes killed": Breaker.kill_all,
    "all nodes restarted": Breaker.restart_all,
    "below min.insync.replicas": Breaker.two_down,
    "node paused": Breaker.pause,
    "node slow": Breaker.slow,
    "leader cut off from its cluster": Breaker.isolate,
}
NEEDS_STRICT = {"leader cut off from its cluster"}
SHORT = [
    "leader of consents killed",
    "transaction coordinator killed",
    "group coordinator stopped",
    "all nodes killed",
    "below min.insync.replicas",
    "node paused",
    "node slow",
    "leader cut off from its cluster",
]
"""One of each sort, for a short run."""
