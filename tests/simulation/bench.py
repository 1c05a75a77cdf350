"""A small cluster to ask things of, for the tests of the simulation itself."""

from collections import Counter
from collections.abc import Awaitable, Coroutine
from random import Random
from typing import Any, TypeVar

from streams.kafka.agents import minimize
from streams.kafka.port import PortError
from streams.outcome import Output
from tests.simulation.client import Client, Writer
from tests.simulation.cluster import Cluster, Node
from tests.simulation.group import GroupCoordinator
from tests.simulation.loop import Clock, Process
from tests.simulation.material import shop
from tests.simulation.network import Network
from tests.simulation.partition import Partition
from tests.simulation.ports import Broker, SimLane, SimPorts
from tests.simulation.transactions import TransactionCoordinator

__all__ = ["CONSENTS", "OUT", "RAW", "Bench", "output", "record", "refused", "transaction"]

T = TypeVar("T")
RAW, OUT, CONSENTS = "raw.web", "out.ads", "sim.consents"


class Bench:
    """A cluster with one partition of each topic, and processes to ask it from."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.power: Counter[str] = Counter()
        self.network = Network(self.clock, Random("network"))
        self.cluster = Cluster(self.clock, self.network, Random("cluster"), self.power)
        coordinators = [TransactionCoordinator(self.cluster, 0)]
        group = GroupCoordinator(self.cluster, 1)
        self.broker = Broker(self.cluster, group, coordinators, lambda: int(self.clock.now * 1000))
        self.shop = shop(False)
        for topic in (*self.shop.raw, *self.shop.written, CONSENTS):
            self.cluster.add(topic, 0)
        self.process = Process(self.clock, "client")

    def ports(self, process: Process | None = None) -> SimPorts:
        return SimPorts(self.broker, process or self.process, self.shop.plan)

    def lane(self, process: Process | None = None) -> SimLane:
        return self.ports(process).lane(minimize, 0)

    def client(self, process: Process | None = None) -> Client:
        return Client(process or self.process, self.cluster, 1.5)

    def writer(self, acks_all: bool = True) -> Writer:
        return Writer(self.client(), self.cluster.new_pid(), 0, acks_all=acks_all)

    def partition(self, topic: str) -> Partition:
        return self.cluster.partitions[topic, 0]

    def leader(self, topic: str) -> Node:
        return self.cluster.nodes[self.partition(topic).leader]

    def do(self, what: Coroutine[Any, Any, T], process: Process | None = None) -> T:
        """Run a coroutine to its end."""
        task = (process or self.process).start(what)
        task.add_done_callback(lambda _done: setattr(self.clock, "over", True))
        self.clock.run()
        return task.result()  # type: ignore[no-any-return]

    def seconds(self, count: float) -> None:
        """Let time pass."""
        self.clock.run(self.clock.now + count)

    def seen(self, topic: str) -> list[bytes]:
        return [entry.value for entry in self.partition(topic).log.committed()]


def record(value: bytes, key: bytes | None = None) -> list[Any]:
    return [(0, key, value, ())]


def output(value: bytes) -> dict[tuple[str, int], list[Output]]:
    return {(OUT, 0): [Output(OUT, None, value, [], 0)]}


async def transaction(lane: SimLane, value: bytes, offset: int | None = None) -> None:
    await lane.begin()
    await lane.send(output(value))
    if offset is not None:
        await lane.send_offsets({RAW: offset})
    await lane.commit()


async def refused(what: Awaitable[object]) -> type[BaseException]:
    """Return what it was refused with."""
    try:
        await what
    except PortError as error:
        return type(error)
    raise AssertionError("it was not refused")
