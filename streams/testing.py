"""A broker in memory behind the lane's port, for tests: of celosia, and of what is built on it.

It keeps what the promises rest on: partitions with offsets, transactions with control records, aborted data that a
read_committed reader skips, static transactional ids that fence, committed offsets that move with a transaction, and a
last stable offset. It has no clock and never sleeps: readers wait for a change.

Whoever tests can step in at each call of a lane: `broker.hook = ...` is awaited with the name of the step and the
partition before it is taken, and may raise `PortError`, or wait.

    >>> import asyncio
    >>> from streams.outcome import Output
    >>> async def example() -> list[bytes]:
    ...     broker = MemoryBroker(partitions=1)
    ...     lane = broker.lane("lane-0", ["raw"], "consents", 0)
    ...     await lane.init_transactions()
    ...     await lane.begin()
    ...     await lane.send({("out", 0): [Output("out", None, b"kept", [], None)]})
    ...     unseen = broker.read("out", 0)
    ...     await lane.commit()
    ...     return [len(unseen), *(entry.value for entry in broker.read("out", 0))]
    >>> asyncio.run(example())
    [0, b'kept']
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from streams.consent import BARRIER
from streams.kafka.port import Batch, ConsentBatch, Fenced, Mark, OffsetsGone, PortError, Sends

__all__ = ["Entry", "MemoryBroker", "MemoryConsents", "MemoryLane"]

Hook = Callable[[str, int], Awaitable[None]]


class Entry(NamedTuple):
    """One record in a partition's log. A control record has neither key nor value and is never handed out."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    transaction: int | None = None
    control: bool = False


@dataclass(slots=True)
class _Log:
    entries: list[Entry] = field(default_factory=list)
    start: int = 0
    end: int = 0
    topic_id: bytes = b"first"


@dataclass(slots=True)
class _Transaction:
    number: int
    open: bool = True
    aborted: bool = False
    touched: set[tuple[str, int]] = field(default_factory=set)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)


class MemoryBroker:
    """Topics with the same number of partitions, created as they are used."""

    def __init__(self, partitions: int = 1) -> None:
        self.partitions = partitions
        self.committed: dict[tuple[str, int], int] = {}
        self.hook: Hook | None = None
        self.epochs: dict[str, int] = {}
        """by transactional id: how often it was started, so how often it fenced somebody"""
        self._logs: dict[tuple[str, int], _Log] = {}
        self._transactions: list[_Transaction] = []
        self._open: dict[str, _Transaction] = {}
        self._changed = asyncio.Event()

    def log(self, topic: str, partition: int) -> _Log:
        """Return a partition's log, with everything in it."""
        return self._logs.setdefault((topic, partition), _Log())

    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        timestamp: int = 0,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> int:
        """Write one record outside of transactions, acknowledged; returns its offset."""
        return self._write(topic, partition, key, value, timestamp, headers, None)

    def read(self, topic: str, partition: int) -> list[Entry]:
        """Return what a read_committed reader sees of a partition from its beginning."""
        log = self.log(topic, partition)
        stable = self._stable(topic, partition)
        return [entry for entry in log.entries if entry.offset < stable and self._visible(entry)]

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Let retention take everything below an offset."""
        log = self.log(topic, partition)
        log.entries = [entry for entry in log.entries if entry.offset >= offset]
        log.start = offset
        self._change()

    def recreate(self, topic: str, partition: int) -> None:
        """Delete a topic's partition and make it anew, empty; as Kafka does, forget what was committed of it."""
        self.committed.pop((topic, partition), None)
        self._logs[topic, partition] = _Log(topic_id=self.log(topic, partition).topic_id + b"'")
        self._change()

    def lane(
        self, name: str, topics: list[str], consents: str, partition: int, state: str | None = None
    ) -> "MemoryLane":
        """Return a port for one lane; `name` is its transactional id."""
        return MemoryLane(self, name, topics, consents, partition, state)

    def consents(self, topic: str, partition: int) -> "MemoryConsents":
        """Return a port for one follower."""
        return MemoryConsents(self, topic, partition)

    def start_producer(self, name: str) -> int:
        """Start a transactional id: end its open transaction, fence its older owners, return the new epoch."""
        if name in self._open:
            self._end(self._open.pop(name), commit=False)
        self.epochs[name] = self.epochs.get(name, 0) + 1
        return self.epochs[name]

    async def step(self, name: str, partition: int) -> None:
        """Let the test step in, then give others a turn."""
        if self.hook is not None:
            await self.hook(name, partition)
        await asyncio.sleep(0)

    async def changed(self) -> None:
        """Wait until something was written or ended."""
        await self._changed.wait()

    def _change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _write(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        timestamp: int,
        headers: Sequence[tuple[str, bytes | None]],
        transaction: _Transaction | None,
        control: bool = False,
    ) -> int:
        log = self.log(topic, partition)
        number = None if transaction is None else transaction.number
        log.entries.append(Entry(log.end, timestamp, key, value, headers, number, control))
        log.end += 1
        self._change()
        return log.end - 1

    def _begin(self, name: str) -> _Transaction:
        transaction = self._open[name] = _Transaction(len(self._transactions))
        self._transactions.append(transaction)
        return transaction

    def _end(self, transaction: _Transaction, commit: bool) -> None:
        transaction.open = False
        transaction.aborted = not commit
        if commit:
            self.committed.update(transaction.offsets)
        for topic, partition in sorted(transaction.touched):
            self._write(topic, partition, None, None, 0, (), transaction, control=True)
        self._change()

    def _stable(self, topic: str, partition: int) -> int:
        log = self.log(topic, partition)
        undecided = (
            entry.offset
            for entry in log.entries
            if entry.transaction is not None and self._transactions[entry.transaction].open
        )
        return min(undecided, default=log.end)

    def _visible(self, entry: Entry) -> bool:
        if entry.control:
            return False
        return entry.transaction is None or not self._transactions[entry.transaction].aborted

    def fetch(self, topic: str, partition: int, position: int, most: int) -> tuple[list[Entry], int]:
        """Return committed records from a position on, and the position after them.

        Raises:
            OffsetsGone: the position is outside of the log.
        """
        log = self.log(topic, partition)
        if not log.start <= position <= log.end:
            raise OffsetsGone(topic, position)
        found: list[Entry] = []
        stable = self._stable(topic, partition)
        for entry in log.entries:
            if position <= entry.offset < stable and len(found) < most:
                position = entry.offset + 1
                if self._visible(entry):
                    found.append(entry)
        return found, max(position, min(stable, position))


class MemoryConsents:
    """A `ConsentPort` on a broker in memory."""

    def __init__(self, broker: MemoryBroker, topic: str, partition: int) -> None:
        self._broker = broker
        self._topic = topic
        self._partition = partition
        self._position = 0

    async def rewind(self) -> Mark:
        """See the port."""
        await self._broker.step("rewind", self._partition)
        log = self._broker.log(self._topic, self._partition)
        self._position = log.start
        return Mark(log.start, log.topic_id)

    async def read_consents(self) -> ConsentBatch:
        """See the port."""
        while True:
            await self._broker.step("read_consents", self._partition)
            records, position = self._broker.fetch(self._topic, self._partition, self._position, 1_000)
            if position != self._position:
                self._position = position
                return ConsentBatch(records, position)
            await self._broker.changed()

    async def close(self) -> None:
        """See the port."""


class MemoryLane:
    """A `LanePort` on a broker in memory. `member` says what the group coordinator would say of this worker."""

    def __init__(
        self,
        broker: MemoryBroker,
        name: str,
        topics: list[str],
        consents: str,
        partition: int,
        state: str | None = None,
    ) -> None:
        self.member = True
        self.most = 1_000
        self._broker = broker
        self._name = name
        self._topics = topics
        self._consents = consents
        self._state = state
        self._partition = partition
        self._positions: dict[str, int] = {}
        self._epoch = 0
        self._transaction: _Transaction | None = None

    async def confirm(self) -> bool:
        """See the port."""
        await self._broker.step("confirm", self._partition)
        return self.member

    async def init_transactions(self) -> None:
        """See the port."""
        await self._broker.step("init_transactions", self._partition)
        self._epoch = self._broker.start_producer(self._name)

    async def committed(self) -> dict[str, int | None]:
        """See the port."""
        await self._broker.step("committed", self._partition)
        topics = [*self._topics, *([] if self._state is None else [self._state])]
        return {topic: self._broker.committed.get((topic, self._partition)) for topic in topics}

    async def seek(self, offsets: Mapping[str, int | None]) -> None:
        """See the port."""
        await self._broker.step("seek", self._partition)
        for topic, offset in offsets.items():
            self._positions[topic] = self._broker.log(topic, self._partition).start if offset is None else offset

    async def first_offset(self, topic: str) -> int:
        """See the port."""
        await self._broker.step("first_offset", self._partition)
        return self._broker.log(topic, self._partition).start

    async def read_batch(self) -> list[Batch]:
        """See the port."""
        while True:
            await self._broker.step("read_batch", self._partition)
            batches = []
            for topic in self._topics:
                records, position = self._broker.fetch(topic, self._partition, self._positions[topic], self.most)
                self._positions[topic] = position
                if records:
                    batches.append(Batch(topic, records, position))
            if batches:
                return batches
            await self._broker.changed()

    async def read_state(self, through: int) -> AsyncIterator[Sequence[Entry]]:
        """See the port."""
        await self._broker.step("read_state", self._partition)
        if self._state is not None:
            yield self._broker.read(self._state, self._partition)

    def lag(self) -> dict[str, int]:
        """See the port."""
        return {
            topic: self._broker.log(topic, self._partition).end
            - self._broker.committed.get((topic, self._partition), 0)
            for topic in self._topics
        }

    async def end_offset(self) -> Mark:
        """See the port. The step `end_offset` comes before the question, `end_offset_answer` before the answer."""
        await self._broker.step("end_offset", self._partition)
        log = self._broker.log(self._consents, self._partition)
        answer = Mark(log.end, log.topic_id)
        await self._broker.step("end_offset_answer", self._partition)
        return answer

    async def write_barrier(self) -> Mark:
        """See the port."""
        await self._broker.step("write_barrier", self._partition)
        written = self._broker.append(self._consents, self._partition, BARRIER, None)
        answer = Mark(written + 1, self._broker.log(self._consents, self._partition).topic_id)
        await self._broker.step("write_barrier_answer", self._partition)
        return answer

    async def begin(self) -> None:
        """See the port."""
        await self._broker.step("begin", self._partition)
        self._check_epoch()
        self._transaction = self._broker._begin(self._name)

    async def send(self, sends: Sends) -> dict[tuple[str, int], int]:
        """See the port."""
        await self._broker.step("send", self._partition)
        transaction = self._open_transaction()
        ends: dict[tuple[str, int], int] = {}
        for (topic, partition), outputs in sends.items():
            transaction.touched.add((topic, partition))
            for output in outputs:
                given = output.key, output.value, output.timestamp or 0, output.headers
                ends[topic, partition] = self._broker._write(topic, partition, *given, transaction) + 1
        return ends

    async def send_offsets(self, offsets: Mapping[str, int]) -> None:
        """See the port."""
        await self._broker.step("send_offsets", self._partition)
        transaction = self._open_transaction()
        transaction.offsets.update({(topic, self._partition): offset for topic, offset in offsets.items()})

    async def commit(self) -> None:
        """See the port. The step `commit` comes before it takes effect, `commit_answer` before it is answered."""
        await self._broker.step("commit", self._partition)
        transaction = self._open_transaction()
        del self._broker._open[self._name]
        self._broker._end(transaction, commit=True)
        self._transaction = None
        await self._broker.step("commit_answer", self._partition)

    async def close_producer(self, abort: bool) -> None:
        """See the port."""
        transaction, self._transaction = self._transaction, None
        mine = self._broker.epochs.get(self._name) == self._epoch
        if abort and mine and transaction is not None and self._broker._open.get(self._name) is transaction:
            del self._broker._open[self._name]
            self._broker._end(transaction, commit=False)

    async def close(self) -> None:
        """See the port."""
        await self.close_producer(abort=True)

    def _check_epoch(self) -> None:
        if self._broker.epochs.get(self._name) != self._epoch:
            raise Fenced("a newer producer has this transactional id")

    def _open_transaction(self) -> _Transaction:
        self._check_epoch()
        if self._transaction is None:
            raise PortError("no transaction is open")
        return self._transaction
