"""Three nodes of Apache Kafka whose every connection can be cut, slowed or held: each with a link of its own.

    with linked_cluster(workers=2) as cluster:
        create_topics(cluster.bootstrap, {"notes": (4, 3, {})})       # direct, past all links: for checkers
        producer = Producer({"bootstrap.servers": cluster.outside})   # for the world outside: consents, events, readers
        worker = deployment.start(bootstrap=cluster.bootstrap_of(0))  # worker 0, through its own links
        cluster.links.set(cluster.links_of(0, node=2), CUT)           # worker 0 and node 2 lose each other
        cluster.clear()                                               # all links of workers are whole again
        leader = cluster.leader_of("notes", 0)
        cluster.isolate(leader)                                       # from nodes and the outside, not from workers
        cluster.wait_led(["notes"], other_than=leader)                # the others have noticed, and go on without it
        cluster.heal()
        cluster.wait_whole(["notes"])                                 # every replica is in sync again

- Node j reaches node i through the link ("node-j", i), as a broker, and through ("quorum-j", i), as a controller;
  worker k reaches node i through ("worker-k", i), everyone else through ("outside", i). Kafka has no notion of this:
  every node has a listener for each who
  may come, advertised at the port of that link, and each node asks the others for the listener with its own name.
  (Which is why `inter.broker.listener.name` and `controller.listener.names` differ from node to node.)
- Replication 3, min.insync.replicas 2, no unclean election. A node that is gone is replaced after some 5 s.
- Who leads what is asked of all nodes that run, directly; the answer with the highest epoch counts, because a node that
  is cut off still believes what it knew before.
"""

import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from streams.embedded import ApacheKafka, _demand_free, _free_ports, apache_kafka_as
from tests.chaos.links import CLEAR, CUT, HALF_OPEN, Fault, Link, Links
from tests.kafka.brokers import wait_until

NODES = (1, 2, 3)
SETTINGS = {
    # A node that is gone or stands still is replaced after some 5 s instead of 9; sooner would be too soon on a machine
    # that does other things too.
    "broker.session.timeout.ms": "5000",
    "broker.heartbeat.interval.ms": "500",
    "controller.quorum.fetch.timeout.ms": "4000",
    "controller.quorum.election.timeout.ms": "2000",
    "replica.lag.time.max.ms": "6000",
    # Where nothing comes back, nodes try elsewhere after some seconds and not after half a minute.
    "controller.socket.timeout.ms": "4000",
    "replica.socket.timeout.ms": "4000",
    "request.timeout.ms": "6000",
    # What workers leave behind is ended soon, and they may have short sessions.
    "group.min.session.timeout.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # A dozen listeners, each with threads of its own, on a small machine.
    "num.network.threads": "1",
    "num.io.threads": "4",
    "background.threads": "2",
    "log.cleaner.dedupe.buffer.size": "8388608",
}
HEALED = 120.0
"""Seconds for all replicas to be in sync again, on a machine that does other things too."""


class Partition(NamedTuple):
    """Who leads a partition, since which epoch, and who is in sync with the leader. Leader -1: nobody."""

    leader: int
    epoch: int
    in_sync: tuple[int, ...]


class LinkedCluster(ApacheKafka):
    """See the module. `kill`, `stop`, `pause`, `resume` and `start` are those of `ApacheKafka`."""

    # On a small machine, where nodes are started all the time: little memory, and no long warming up.
    java = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

    def __init__(self, jars: Path, home: Path, nodes: int, overrides: Mapping[str, str], workers: int) -> None:
        super().__init__(jars, home, nodes, overrides)
        self.workers = workers
        self._paused = set[int]()
        comers = ["outside", *(f"worker-{number}" for number in range(workers))]
        comers += [f"{kind}-{node}" for kind in ("node", "quorum") for node in NODES]
        routes = [(who, node) for who in comers for node in NODES]
        free = iter(_free_ports(2 * len(routes)))
        self._routes: dict[Link, tuple[int, int]] = {route: (next(free), next(free)) for route in routes}
        for node in NODES:
            with self.log_dir(node).with_name("server.properties").open("a") as lines:
                lines.writelines(f"{key}={value}\n" for key, value in self._properties(node, comers).items())
        self.links = Links(self._routes, log=home / "links.log")

    def _properties(self, node: int, comers: Iterable[str]) -> dict[str, str]:
        """What differs from the other nodes: the names and addresses by which they and the workers know each other."""
        listen, advertised = {"PLAINTEXT": self.ports[node]}, {"PLAINTEXT": self.ports[node]}
        for who in comers:
            link, port = self._routes[who, node]
            name = who.replace("-", "").upper()
            listen[name] = port
            advertised[name] = port if who in (f"node-{node}", f"quorum-{node}") else link
        controllers = sorted((f"QUORUM{other}" for other in NODES), key=lambda name: name != f"QUORUM{node}")
        voters = {other: self._routes[f"quorum-{node}", other][other == node] for other in NODES}
        return {
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in listen.items()),
            "advertised.listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in advertised.items()),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in listen),
            "inter.broker.listener.name": f"NODE{node}",
            "controller.listener.names": ",".join(controllers),
            "controller.quorum.voters": ",".join(f"{other}@127.0.0.1:{port}" for other, port in voters.items()),
        }

    def start(self, *nodes: int) -> None:
        """See `ApacheKafka`."""
        for (_, node), (_, port) in self._routes.items():
            if node in nodes:
                _demand_free(port, self._tried)
        super().start(*nodes)

    def end(self) -> None:
        """End all nodes and links."""
        try:
            super().end()
        finally:
            self.links.close()

    def pause(self, node: int) -> None:
        """See `ApacheKafka`."""
        self._paused.add(node)
        super().pause(node)

    def resume(self, node: int) -> None:
        """See `ApacheKafka`."""
        super().resume(node)
        self._paused.discard(node)

    @property
    def outside(self) -> str:
        """The bootstrap servers for clients that are no workers: the near ends of their links."""
        return self._near("outside")

    def bootstrap_of(self, worker: int) -> str:
        """The bootstrap servers of a worker: the near ends of its links."""
        return self._near(f"worker-{worker}")

    def _near(self, who: str) -> str:
        return ",".join(f"127.0.0.1:{self._routes[who, node][0]}" for node in NODES)

    def links_of(self, worker: int, node: int | None = None) -> list[Link]:
        """The link from a worker to a node, or to all."""
        return [(f"worker-{worker}", other) for other in NODES if node in (other, None)]

    def links_between(self, node: int) -> list[Link]:
        """The links of a node to and from the other nodes."""
        return [
            (f"{kind}-{here}", there)
            for kind in ("node", "quorum")
            for here in NODES
            for there in NODES
            if here != there and node in (here, there)
        ]

    def isolate(self, node: int, fault: Fault = HALF_OPEN) -> None:
        """Cut a node off from the other nodes, in both directions, and from the outside; workers still reach it."""
        self.links.set(self.links_between(node), fault)
        self.links.set([("outside", node)], CUT)

    def rejoin(self, node: int) -> None:
        """The node has its cluster and the outside again."""
        self.links.set([*self.links_between(node), ("outside", node)], CLEAR)

    def heal(self) -> None:
        """All links are whole again, between nodes and to workers."""
        self.links.set(self.links, CLEAR)

    def clear(self) -> None:
        """All links of workers are whole again; what is cut between nodes stays cut."""
        self.links.set([link for link in self.links if link[0].startswith("worker")], CLEAR)

    def known(self, topics: Collection[str]) -> dict[tuple[str, int], Partition]:
        """What is known of topics' partitions, by those who know best; nothing where nobody answers."""
        known: dict[tuple[str, int], Partition] = {}
        for node in self.pids:
            if node in self._paused:
                continue
            for place, partition in _known_at(self.ports[node], topics).items():
                if place not in known or partition.epoch > known[place].epoch:
                    known[place] = partition
                elif partition.epoch == known[place].epoch and node == partition.leader:
                    known[place] = partition  # Who is in sync changes within an epoch: the leader knows first.
        return known

    def partitions(self, topic: str) -> dict[int, Partition]:
        """What is known of one topic's partitions."""
        return {number: partition for (_, number), partition in self.known([topic]).items()}

    def leader_of(self, topic: str, partition: int) -> int:
        """The node that leads a partition; waits until there is one."""
        return self._wait_led(topic, partition).leader

    def transaction_coordinator_of(self, transactional_id: str) -> int:
        """The node that decides about the transactions of an id."""
        return self.leader_of("__transaction_state", _slot(transactional_id))

    def group_coordinator_of(self, group: str) -> int:
        """The node that a consumer group is led by."""
        return self.leader_of("__consumer_offsets", _slot(group))

    def _wait_led(self, topic: str, partition: int) -> Partition:
        found: list[Partition] = []

        def led() -> bool:
            known = self.partitions(topic).get(partition)
            found[:] = [known] if known is not None and known.leader in self.pids else []
            return bool(found)

        wait_until(led, f"{topic}[{partition}] has a leader", HEALED)
        return found[0]

    def wait_led(self, topics: Collection[str], other_than: int) -> None:
        """Wait until another node than this one leads every partition of these topics."""

        def led() -> bool:
            known = self.known(topics).values()
            return bool(known) and all(partition.leader not in (-1, other_than) for partition in known)

        wait_until(led, f"{list(topics)} are led by others than node {other_than}", HEALED)

    def wait_whole(self, topics: Collection[str], seconds: float = HEALED) -> None:
        """Wait until every partition of these topics has a leader and all its replicas in sync."""

        def whole() -> bool:
            known = self.known(topics).values()
            return bool(known) and all(it.leader != -1 and len(it.in_sync) == len(NODES) for it in known)

        wait_until(whole, f"all replicas of {list(topics)} are in sync", seconds)


@contextmanager
def linked_cluster(workers: int = 3, overrides: Mapping[str, str] | None = None) -> Iterator[LinkedCluster]:
    """Start three linked nodes, and end them and all links after the ``with``.

    Raises:
        BrokerFailed: a node does not start, or a port is taken.
    """
    kind = partial(LinkedCluster, workers=workers)
    with apache_kafka_as(kind, None, len(NODES), {**SETTINGS, **(overrides or {})}) as cluster:
        yield cluster


def _slot(name: str) -> int:
    """Which of the four partitions of Kafka's own topics knows of a name: Java's hash of it, without its sign."""
    slot = 0
    for letter in name:
        slot = (31 * slot + ord(letter)) & 0xFFFFFFFF
    return (slot & 0x7FFFFFFF) % 4


def _known_at(port: int, topics: Collection[str]) -> dict[tuple[str, int], Partition]:
    """Ask one node (Metadata, version 7); nothing if it does not answer, or does not know a topic."""
    names = b"".join(struct.pack(">h", len(name)) + name for name in map(str.encode, topics))
    request = struct.pack(">hhihi", 3, 7, 0, -1, len(topics)) + names + b"\0"
    with suppress(OSError, struct.error), socket.create_connection(("127.0.0.1", port), timeout=2.0) as node:
        node.sendall(struct.pack(">i", len(request)) + request)
        with node.makefile("rb") as stream:
            return _read_metadata(stream.read(struct.unpack(">i", stream.read(4))[0]))
    return {}


def _read_metadata(answer: bytes) -> dict[tuple[str, int], Partition]:
    at = 0

    def take(form: str) -> int:
        nonlocal at
        [value] = struct.unpack_from(f">{form}", answer, at)
        at += struct.calcsize(f">{form}")
        return int(value)

    def take_text() -> str:
        nonlocal at
        length = max(0, take("h"))
        at += length
        return answer[at - length : at].decode()

    def take_nodes() -> tuple[int, ...]:
        return tuple(take("i") for _ in range(take("i")))

    def skip(*what: str) -> None:
        for each in what:
            _ = take_text() if each == "text" else take(each)

    skip("i", "i")  # correlation, throttling
    for _ in range(take("i")):
        skip("i", "text", "i", "text")  # node, host, port, rack
    skip("text", "i")  # cluster, controller
    known: dict[tuple[str, int], Partition] = {}
    for _ in range(take("i")):
        skip("h")
        topic = take_text()
        skip("b")
        for _ in range(take("i")):
            skip("h")
            number, leader, epoch = take("i"), take("i"), take("i")
            take_nodes()
            known[topic, number] = Partition(leader, epoch, take_nodes())
            take_nodes()
    return known
