"""What a Kafka client does in a process: it finds leaders, asks again, and keeps the numbers of idempotent producers.

Rules of this file (aiokafka's ways, as far as a lane can notice them):
- "Not me" and "not now" are asked again after a pause, for as long as the caller waits. What was not answered in time
  is asked again only where asking twice does no harm; the end of a transaction is not.
- A batch of a transaction that was refused does not make the commit fail: who sends must look at each batch.
- A reader fetches ahead: what is read may have been there for a while. It says nothing of leaders that it cannot find.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from streams.kafka.port import Fenced, PortError
from tests.simulation import broker
from tests.simulation.broker import Fetched, Produce
from tests.simulation.cluster import Cluster
from tests.simulation.loop import Process
from tests.simulation.network import Code, Connection, Request
from tests.simulation.partition import Partition

__all__ = ["Client", "Reader", "Writer"]

BACKOFF = 0.02
AGAIN = (
    Code.NOT_LEADER,
    Code.LOADING,
    Code.REFUSED,
    Code.NOT_ENOUGH_REPLICAS,
    Code.OFFSET_NOT_AVAILABLE,
    Code.CONCURRENT,
)
LOST = (Code.NOT_LEADER, Code.REFUSED, Code.TIMED_OUT)


class Client:
    """The connections of one client in one process."""

    def __init__(self, process: Process, cluster: Cluster, patience: float) -> None:
        self.process = process
        self.cluster = cluster
        self.patience = patience
        """how long it waits for an answer, in seconds"""
        self._connections = [Connection(), Connection(), Connection()]
        self._leaders: dict[Partition, int] = {}

    def ask(
        self, node: int, serve: Callable[..., object], *args: Any, patience: float | None = None
    ) -> "asyncio.Future[Any]":
        """Send one request."""
        cluster, connection = self.cluster, self._connections[node]
        patience = self.patience if patience is None else patience
        return Request(cluster.network, self.process, cluster.nodes[node], connection, serve, args, patience).future

    def leader(self, partition: Partition) -> int:
        """Return the node that it believes to lead; -1 where it does not know."""
        known = self._leaders.get(partition)
        if known is None:
            # Learned when it was started, from any node: while all is well, they all say the same.
            well = self.cluster.calm and not partition.stale
            known = self._leaders[partition] = partition.leader if well else -1
        return known

    def lost(self, partition: Partition, node: int) -> None:
        """Forget a leader that is none, or does not answer; what comes next uses a new connection."""
        self._connections[node] = Connection()
        self._leaders[partition] = -1

    def hold_up(self, partition: Partition, seconds: float) -> None:
        """Let the next message to a leader, and all after it on the same connection, arrive so much later."""
        node = self.leader(partition)
        if node >= 0:
            self._connections[node].there = self.cluster.clock.now + seconds

    def led_by(self, partition: Partition, node: int) -> None:
        """Believe that a node leads."""
        self._leaders[partition] = node

    async def look_up(self, partition: Partition) -> int:
        """Ask some node who leads."""
        node = int(self.cluster.network.random() * 3)
        answer = await self.ask(node, self.cluster.leader_of, partition)
        if isinstance(answer, Code):
            self._connections[node] = Connection()
            return -1
        self._leaders[partition] = answer
        return int(answer)

    async def at_leader(
        self,
        partition: Partition,
        serve: Callable[..., object],
        *args: Any,
        again: Sequence[Code] = AGAIN,
        patience: float | None = None,
    ) -> Any:
        """Ask the leader until it says something that is not `again`. Silence (`TIMED_OUT`) is an answer, too."""
        while True:
            node = self.leader(partition)
            if node < 0:
                node = await self.look_up(partition)
            answer: Any = Code.NOT_LEADER
            if node >= 0:
                answer = await self.ask(node, serve, *args, patience=patience)
                if answer in LOST:
                    self.lost(partition, node)
            if not isinstance(answer, Code) or answer not in again:
                return answer
            await asyncio.sleep(BACKOFF)


EVEN_IF_SILENT = (*AGAIN, Code.TIMED_OUT)


class Writer:
    """An idempotent producer: one batch at a time on each partition, in order, sent again until it is answered."""

    def __init__(self, client: Client, pid: int, epoch: int, verified: Any = None, acks_all: bool = True) -> None:
        self.client = client
        self.pid = pid
        self.epoch = epoch
        self.acks_all = acks_all
        self._verified = verified
        self._sequences: dict[Partition, int] = {}

    async def write(self, partition: Partition, records: Sequence[Any], transactional: bool = False) -> int:
        """Write one batch; returns its first offset.

        Raises:
            Fenced: another producer has taken over.
            PortError: it was refused.
        """
        sequence = self._sequences.get(partition, 0)
        self._sequences[partition] = sequence + len(records)
        batch = Produce(records, self.acks_all, self.pid, self.epoch, sequence, transactional, self._verified)
        answer = await self.client.at_leader(partition, broker.produce, partition, batch, again=EVEN_IF_SILENT)
        if isinstance(answer, int):
            return answer
        raise_for(answer)
        raise PortError(str(answer))


def raise_for(answer: Any) -> None:
    """Raise what a code means, if it is one."""
    if answer in (Code.FENCED, Code.OUT_OF_ORDER):
        raise Fenced(str(answer))
    if isinstance(answer, Code):
        raise PortError(str(answer))


class Reader:
    """Fetches partitions ahead, each on its own, and hands on what it has."""

    def __init__(self, client: Client, most: int = 1_000) -> None:
        self.client = client
        self.most = most
        self.lag = 0.0
        """by how much what arrives is late, in seconds: a reader that cannot keep up"""
        self._positions: dict[Partition, int] = {}
        self.seen: dict[Partition, int] = {}
        """how far each partition goes, as far as is known"""
        self._ready: deque[tuple[Partition, Fetched]] = deque()
        self._fetching: dict[Partition, int] = {}
        self._round = 0
        self._arrived = asyncio.Event()
        self._closed = False

    def seek(self, partition: Partition, position: int) -> None:
        """Read on from here; what was fetched of this partition is forgotten."""
        self._positions[partition] = position
        self._ready = deque(item for item in self._ready if item[0] is not partition)
        self._fetch(partition)

    def end(self, partition: Partition) -> int | None:
        """Return the position."""
        return self._positions.get(partition)

    async def take(self, seconds: float) -> list[tuple[Partition, Fetched]]:
        """Return what has been fetched; wait for it, but not longer than this.

        Raises:
            OffsetsGone: a position is not there, or cannot be read. Seek.
        """
        if not self._ready:
            self._arrived.clear()
            timer = self.client.process.call_later(seconds, self._arrived.set)
            try:
                await self._arrived.wait()
            finally:
                timer.cancel()
        taken: list[tuple[Partition, Fetched]] = []
        while self._ready:
            partition, fetched = self._ready[0]
            if fetched.error is not None:
                if not taken:
                    # It is met once; what came of other partitions is still there for the next call.
                    self._ready.popleft()
                    raise fetched.error
                break
            self._ready.popleft()
            taken.append((partition, fetched))
            self._positions[partition] = fetched.position
            self._fetch(partition)
        return taken

    def close(self) -> None:
        """Stop fetching."""
        self._closed = True

    def _fetch(self, partition: Partition) -> None:
        self._round += 1
        self._fetching[partition] = self._round
        self._ask(partition, self._round)

    def _ask(self, partition: Partition, number: int) -> None:
        if self._closed or self._fetching.get(partition) != number:
            return
        client = self.client
        node = client.leader(partition)
        if node < 0:
            node = int(client.cluster.network.random() * 3)
            asked = client.ask(node, client.cluster.leader_of, partition)
            asked.add_done_callback(lambda done: self._found(partition, number, done.result()))
            return
        asked = client.ask(node, broker.fetch, partition, self._positions[partition], self.most)
        asked.add_done_callback(lambda done: self._came(partition, number, node, done.result()))

    def _found(self, partition: Partition, number: int, leader: Any) -> None:
        if not isinstance(leader, Code) and leader >= 0:
            self.client.led_by(partition, int(leader))
            self._ask(partition, number)
        else:
            self.client.process.call_later(BACKOFF, self._ask, partition, number)

    def _came(self, partition: Partition, number: int, node: int, answer: Any) -> None:
        if self._closed or self._fetching.get(partition) != number:
            return
        if isinstance(answer, Code):
            self.client.lost(partition, node)
            self.client.process.call_later(BACKOFF, self._ask, partition, number)
        elif self.lag:
            self.client.process.call_later(self.lag, self._have, partition, number, answer)
        else:
            self._have(partition, number, answer)

    def _have(self, partition: Partition, number: int, answer: Fetched) -> None:
        if self._closed or self._fetching.get(partition) != number:
            return
        self.seen[partition] = answer.end
        if answer.error is None and not answer.records and answer.position == self._positions[partition]:
            self._ask(partition, number)
            return
        self._ready.append((partition, answer))
        self._arrived.set()
