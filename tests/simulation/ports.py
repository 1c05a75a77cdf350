"""The ports of lanes and followers on the simulated cluster (`streams.kafka.lanes.Ports`).

Each step of a lane is told to the process's `Steps` before it is taken, and after its answer: there a process can be
stopped, killed or asked to end in the middle of what it does.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streams.consent import BARRIER
from streams.kafka.port import Batch, ConsentBatch, Mark, PortError, Sends
from streams.kafka.work import BoundAgent
from streams.plan import Plan
from tests.simulation import broker
from tests.simulation.client import AGAIN, EVEN_IF_SILENT, Client, Reader, Writer, raise_for
from tests.simulation.cluster import Cluster
from tests.simulation.group import GroupCoordinator
from tests.simulation.loop import Process
from tests.simulation.network import Code
from tests.simulation.partition import Partition
from tests.simulation.transactions import TransactionCoordinator

__all__ = ["Broker", "Membership", "SimConsents", "SimLane", "SimPorts"]


@dataclass
class Broker:
    """The whole of the simulated Kafka, as its clients see it."""

    cluster: Cluster
    group: GroupCoordinator
    coordinators: list[TransactionCoordinator]
    clock_ms: Callable[[], int]
    transaction_timeout: float = 5.0
    patience: float = 1.5
    """how long clients wait for an answer, in seconds"""
    slow_ends: int = 0
    """how many ends of transactions are yet to be delayed, and by how much (seconds)"""
    slow_end: float = 0.0

    def partition(self, topic: str, number: int) -> Partition:
        """Return a partition."""
        return self.cluster.partitions[topic, number]

    def coordinator(self, name: str) -> TransactionCoordinator:
        """Return the coordinator of a transactional id."""
        return self.coordinators[sum(name.encode()) % len(self.coordinators)]


@dataclass
class Membership:
    """What a worker knows of its membership in the group."""

    member: str = ""
    generation: int = -1
    partitions: tuple[int, ...] = ()


@dataclass
class SimPorts:
    """Gives the lanes of one worker their ports."""

    broker: Broker
    process: Process
    plan: Plan
    membership: Membership = field(default_factory=Membership)
    step: Callable[[str, str], None] = lambda _who, _step: None
    """told of each step: whose, and which"""
    follower_lag: float = 0.0
    most: int = 1_000
    consent_readers: list[Reader] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate = Client(self.process, self.broker.cluster, self.broker.patience)
        self.group = Client(self.process, self.broker.cluster, self.broker.patience)
        self.consent_topic = self.plan.policy.topic("consents")

    def client(self) -> Client:
        """Return a client with connections of its own."""
        return Client(self.process, self.broker.cluster, self.broker.patience)

    def lane(self, agent: BoundAgent, partition: int) -> "SimLane":
        """See `Ports`."""
        return SimLane(self, agent.name, partition, agent.topics(self.plan), agent.state_topic(self.plan))

    def consents(self, partition: int) -> "SimConsents":
        """See `Ports`."""
        return SimConsents(self, partition)


class SimConsents:
    """Reads one partition of the consent topic (a `ConsentPort`)."""

    def __init__(self, ports: SimPorts, number: int) -> None:
        self._ports = ports
        self._partition = ports.broker.partition(ports.consent_topic, number)
        self._client = ports.client()
        self._reader: Reader | None = None

    async def rewind(self) -> Mark:
        """See the port."""
        self._ports.step(f"consents-{self._partition.number}", "rewind")
        answer = await self._client.at_leader(self._partition, broker.list_offset, self._partition, True)
        raise_for(answer)
        first, topic_id = answer
        if self._reader is None:
            self._reader = Reader(self._client)
            self._ports.consent_readers.append(self._reader)
        self._reader.lag = self._ports.follower_lag
        self._reader.seek(self._partition, first)
        return Mark(first, topic_id)

    async def read_consents(self) -> ConsentBatch:
        """See the port."""
        reader = self._reader
        if reader is None:
            raise PortError("not started")
        reader.lag = self._ports.follower_lag
        taken = await reader.take(0.5)
        self._ports.step(f"consents-{self._partition.number}", "read_consents")
        records = []
        for _, fetched in taken:
            records += fetched.records
        position = reader.end(self._partition)
        return ConsentBatch(records, -1 if position is None else position)

    async def close(self) -> None:
        """See the port."""
        if self._reader is not None:
            self._reader.close()


class SimLane:
    """Reads and writes for one lane (a `LanePort`), as aiokafka does it with a producer that commits once."""

    def __init__(self, ports: SimPorts, name: str, number: int, topics: list[str], state: str | None = None) -> None:
        self.state = state
        self.ports = ports
        self.broker = ports.broker
        self.number = number
        self.name = f"{name}-{number}"
        self.topics = topics
        self.client = ports.client()
        self.coordinator = self.broker.coordinator(self.transactional_id())
        self.end_again: tuple[Code, ...] = AGAIN[:2] + AGAIN[5:]
        """after which answers the end of a transaction is asked for again: those that say that nothing was done"""
        self._consents = self.broker.partition(ports.consent_topic, number)
        self._partitions = {topic: self.broker.partition(topic, number) for topic in topics}
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        self._barriers: Writer | None = None
        self._added: set[Partition] = set()
        self._open = False
        self._batches: list[asyncio.Task[int]] = []

    def transactional_id(self) -> str:
        """Static, so that whoever owns the partition next fences whoever had it before."""
        return f"celosia-{self.name}"

    # --- reading -----------------------------------------------------------------------------------------------------

    async def confirm(self) -> bool:
        """See the port."""
        self.ports.step(self.name, "confirm")
        membership, group = self.ports.membership, self.broker.group
        if self.number not in membership.partitions:
            return False
        answer = await self.ports.group.at_leader(
            group.partition, group.heartbeat, membership.member, membership.generation, again=(Code.NOT_LEADER,)
        )
        if answer is Code.UNKNOWN_MEMBER:
            return False
        if answer is None or answer is Code.REBALANCE:
            return True
        raise PortError(str(answer))

    async def committed(self) -> dict[str, int | None]:
        """See the port."""
        self.ports.step(self.name, "committed")
        group = self.broker.group
        topics = [*self.topics, *([] if self.state is None else [self.state])]
        wanted = [(topic, self.number) for topic in topics]
        answer = await self.client.at_leader(group.partition, group.committed, wanted, again=EVEN_IF_SILENT)
        raise_for(answer)
        self.ports.step(self.name, "committed_answer")
        return {topic: answer[topic, self.number] for topic in topics}

    async def seek(self, offsets: Mapping[str, int | None]) -> None:
        """See the port."""
        self.ports.step(self.name, "seek")
        if self._reader is None:
            self._reader = Reader(self.client, self.ports.most)
        for topic, offset in offsets.items():
            start = await self.first_offset(topic) if offset is None else offset
            self._reader.seek(self._partitions[topic], start)

    async def first_offset(self, topic: str) -> int:
        """See the port."""
        partition = self._partitions[topic]
        answer = await self.ports.gate.at_leader(partition, broker.list_offset, partition, True, again=EVEN_IF_SILENT)
        raise_for(answer)
        return int(answer[0])

    async def read_batch(self) -> list[Batch]:
        """See the port."""
        reader = self._reader
        if reader is None:
            raise PortError("not started")
        taken = await reader.take(1.0)
        self.ports.step(self.name, "read_batch")
        return [
            Batch(partition.topic, fetched.records, fetched.position) for partition, fetched in taken if fetched.records
        ]

    def lag(self) -> dict[str, int]:
        """See the port."""
        reader = self._reader
        if reader is None:
            return {}
        positions = {topic: reader.end(partition) or 0 for topic, partition in self._partitions.items()}
        return {
            topic: max(0, reader.seen[partition] - positions[topic])
            for topic, partition in self._partitions.items()
            if partition in reader.seen
        }

    # --- the gate ----------------------------------------------------------------------------------------------------

    async def end_offset(self) -> Mark:
        """See the port."""
        self.ports.step(self.name, "end_offset")
        answer = await self.ports.gate.at_leader(self._consents, broker.list_offset, self._consents, False)
        raise_for(answer)
        self.ports.step(self.name, "end_offset_answer")
        return Mark(*answer)

    async def write_barrier(self) -> Mark:
        """See the port."""
        self.ports.step(self.name, "end_offset")
        if self._barriers is None:
            self._barriers = Writer(self.ports.client(), self.broker.cluster.new_pid(), 0)
        try:
            offset = await self._barriers.write(self._consents, [(self.broker.clock_ms(), BARRIER, None, ())])
        except BaseException:
            self._barriers = None  # Where it has written, nobody knows.
            raise
        answer = await self.ports.gate.at_leader(self._consents, broker.list_offset, self._consents, True)
        raise_for(answer)
        self.ports.step(self.name, "end_offset_answer")
        return Mark(offset + 1, answer[1])

    # --- the transaction ---------------------------------------------------------------------------------------------

    async def init_transactions(self) -> None:
        """See the port."""
        self.ports.step(self.name, "init_transactions")
        answer = await self._ask(self.coordinator.init, self.broker.transaction_timeout)
        raise_for(answer)
        pid, epoch = answer
        self._writer = Writer(self.client, pid, epoch, self.coordinator.verified(self.transactional_id()))
        self._added, self._open = set(), False
        self.ports.step(self.name, "init_answer")

    async def begin(self) -> None:
        """See the port."""
        self.ports.step(self.name, "begin")
        if self._open or self._writer is None:
            raise PortError("a transaction is open already, or there is no producer")
        self._added, self._open, self._batches = set(), True, []

    async def send(self, sends: Sends) -> dict[tuple[str, int], int]:
        """See the port."""
        self.ports.step(self.name, "send")
        ends: dict[tuple[str, int], int] = {}
        places = [place for place, outputs in sends.items() if outputs]
        for place, task in zip(places, await self.start_sending(sends), strict=False):
            first = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(first, BaseException):
                raise first
            ends[place] = first + len(sends[place])
        self.ports.step(self.name, "send_answer")
        return ends

    async def read_state(self, through: int) -> AsyncIterator[Sequence[Any]]:
        """See the port."""
        if self.state is None:
            return
        self.ports.step(self.name, "read_state")
        partition, reader = self.broker.partition(self.state, self.number), Reader(self.client)
        try:
            answers = [
                await self.client.at_leader(partition, broker.list_offset, partition, first, again=EVEN_IF_SILENT)
                for first in (True, False)
            ]
            for answer in answers:
                raise_for(answer)
            first, end = answers[0][0], max(through, answers[1][0])
            reader.seek(partition, first)
            while (reader.end(partition) or first) < end:
                for _, fetched in await reader.take(0.5):
                    yield fetched.records
        finally:
            reader.close()

    async def start_sending(self, sends: Sends) -> "list[asyncio.Task[int]]":
        """Send, without asking what became of it."""
        writer = self._own_writer
        partitions = {self.broker.partition(*place): outputs for place, outputs in sends.items() if outputs}
        await self._add([partition for partition in partitions if partition not in self._added])
        now = self.broker.clock_ms()
        for partition, outputs in partitions.items():
            records = [
                (now if output.timestamp is None else output.timestamp, output.key, output.value, output.headers)
                for output in outputs
            ]
            self._batches.append(asyncio.ensure_future(writer.write(partition, records, transactional=True)))
        return self._batches

    async def send_offsets(self, offsets: Mapping[str, int]) -> None:
        """See the port."""
        self.ports.step(self.name, "send_offsets")
        writer, group = self._own_writer, self.broker.group
        await self._add([group.partition])
        places = {(topic, self.number): offset for topic, offset in offsets.items()}
        answer = await self.client.at_leader(
            group.partition, group.commit, places, writer.pid, writer.epoch,
            self.coordinator.verified(self.transactional_id()), again=EVEN_IF_SILENT,
        )  # fmt: skip
        raise_for(answer)
        self.ports.step(self.name, "send_offsets_answer")

    async def commit(self) -> None:
        """See the port. It waits for all batches, and does not ask what became of them; it asks for the end once."""
        self.ports.step(self.name, "commit")
        self._open = False  # What becomes of it now, nobody here decides: it is not aborted later.
        await asyncio.gather(*self._batches, return_exceptions=True)
        if self._added:
            raise_for(await self._end(commit=True, again=self.end_again))
        self.ports.step(self.name, "commit_answer")

    async def close_producer(self, abort: bool) -> None:
        """See the port."""
        writer = self._writer
        for task in self._batches:
            task.cancel()
        if writer is not None and not self.ports.process.killed:
            if abort and self._open and self._added:
                try:
                    async with asyncio.timeout(self.broker.patience):
                        await self._end(commit=False, again=AGAIN)
                except TimeoutError:
                    pass
            self.ports.step(self.name, "closed")
        self._writer, self._open = None, False

    async def close(self) -> None:
        """See the port."""
        await self.close_producer(abort=True)
        if self._reader is not None:
            self._reader.close()

    async def _end(self, commit: bool, again: tuple[Code, ...]) -> Any:
        writer = self._own_writer
        if self.broker.slow_ends:
            # On its way for longer than the client waits; nothing that follows on this connection overtakes it.
            self.broker.slow_ends -= 1
            self.broker.cluster.power["ends of transactions delayed"] += 1
            self.client.hold_up(self.coordinator.partition, self.broker.slow_end)
        return await self._ask(self.coordinator.end, writer.pid, writer.epoch, commit, again=again)

    async def _add(self, partitions: list[Partition]) -> None:
        writer = self._own_writer
        if partitions:
            self._added.update(partitions)
            raise_for(await self._ask(self.coordinator.add, writer.pid, writer.epoch, partitions))

    async def _ask(self, serve: Callable[..., object], *args: Any, again: tuple[Code, ...] = EVEN_IF_SILENT) -> Any:
        return await self.client.at_leader(
            self.coordinator.partition, serve, self.transactional_id(), *args, again=again
        )

    @property
    def _own_writer(self) -> Writer:
        if self._writer is None:
            raise PortError("no producer")
        return self._writer
