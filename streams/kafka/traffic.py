"""What stands on either side of a worker: those who write events and consents, and those who read what is published.

The worker needs none of it; the demo plays both sides with it.

Rules of this file:
- A record lies where murmur2 puts its key, and counts as written once all in-sync replicas have it (A1 of the
  promises): only then are partition and offset known.
- What is published is read with `read_committed` (A4): what an aborted transaction left behind is never seen.
"""

import itertools
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from streams.kafka.connections import ClientSettings, translated
from streams.kafka.partitioner import partition_of
from streams.outcome import Coordinates

__all__ = ["EventWriter", "Received", "TopicReader"]


class Received(NamedTuple):
    """A record as its reader gets it."""

    place: Coordinates
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]


class EventWriter:
    """Writes events and consents. All methods raise `PortError` where the broker does not do as asked."""

    def __init__(self, settings: ClientSettings, partitions: int) -> None:
        self._partitions = partitions
        self._turns = itertools.count()
        # Without idempotence a repeated request may write a record twice; brokers without transactions have neither.
        self._producer = AIOKafkaProducer(
            **settings.common("writer"), acks="all", enable_idempotence=settings.transactional, linger_ms=2
        )

    async def __aenter__(self) -> "EventWriter":
        async with translated():
            try:
                await self._producer.start()
            except BaseException:
                await self._producer.stop()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def write(self, topic: str, key: bytes | None, value: bytes, timestamp: int) -> Awaitable[Coordinates]:
        """Hand a record over; awaiting what is returned waits for its acknowledgement, and says where it lies.

        Records of one key keep the order in which they were handed over.

        A record without a key is about nobody known, and goes to each partition in turn.
        """
        partition = next(self._turns) % self._partitions if key is None else partition_of(key, self._partitions)
        async with translated():
            written = await self._producer.send(topic, value, key, partition, timestamp)
        return _acknowledged(written)


async def _acknowledged(written: Awaitable[Any]) -> Coordinates:
    async with translated():
        answer = await written
    return Coordinates(answer.topic, answer.partition, answer.offset)


class TopicReader:
    """Reads topics from their first record on, and knows how far a consumer group is with others."""

    def __init__(self, settings: ClientSettings, topics: Sequence[str], partitions: int) -> None:
        self._partitions = range(partitions)
        self._tps = [TopicPartition(topic, partition) for topic in topics for partition in self._partitions]
        options: dict[str, Any] = {"enable_auto_commit": False, "auto_offset_reset": "earliest"}
        self._reader = AIOKafkaConsumer(
            **settings.common("reader"),
            **options,
            isolation_level="read_committed",
            fetch_max_wait_ms=settings.fetch_wait,
        )
        # It has the group's name to ask what the group has committed, and never joins it. It is read_uncommitted
        # because the ends that it tells must be those of everything that was written.
        self._asker = AIOKafkaConsumer(**settings.common("asker"), **options, group_id=settings.group)

    async def __aenter__(self) -> "TopicReader":
        async with translated():
            try:
                await self._reader.start()
                await self._asker.start()
            except BaseException:
                await self._stop()
                raise
        self._reader.assign(self._tps)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await self._reader.stop()
        await self._asker.stop()

    async def read(self) -> list[Received]:
        """Wait for records, but not for ever: an empty list means that there were none."""
        async with translated():
            records = await self._reader.getmany(timeout_ms=200)
        return [
            Received(Coordinates(tp.topic, tp.partition, record.offset), record.key, record.value, dict(record.headers))
            for tp, batch in records.items()
            for record in batch
        ]

    async def at_end(self) -> bool:
        """Tell whether everything that was written before this question has been read."""
        async with translated():
            ends = await self._asker.end_offsets(self._tps)
            return all([await self._reader.position(tp) >= end for tp, end in ends.items()])

    async def committed(self, topic: str) -> list[int]:
        """Return, for each partition, up to which offset the group has committed: 0 where it has committed nothing."""
        async with translated():
            return [
                await self._asker.committed(TopicPartition(topic, partition)) or 0 for partition in self._partitions
            ]
