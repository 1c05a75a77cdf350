"""The port on aiokafka, for one lane and one follower each.

Rules of this file (each a hazard of aiokafka 0.14, read in its source or met in a run):
- `commit_transaction` succeeds even if a batch of the transaction was rejected: every future is awaited.
- `auto_offset_reset="none"` everywhere, and explicit seeks: a position is decided, never guessed.
- A consumer per lane: the library fetches nothing more from a broker while any partition of the same consumer holds
  unread records, so one parked lane would hold up the others.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka_errors

from streams.consent import BARRIER
from streams.event import Record
from streams.kafka.connections import ClientSettings, Connections, quietly, translated
from streams.kafka.internals import OneCommitProducer, fill, hand_on_raw_records
from streams.kafka.port import Batch, ConsentBatch, Mark, PortError, Sends
from streams.kafka.topic_id import topic_id
from streams.kafka.work import BoundAgent
from streams.outcome import Output
from streams.plan import Plan

__all__ = ["AiokafkaConsents", "AiokafkaLane", "KafkaPorts"]


class AiokafkaConsents:
    """Reads one partition of the consent topic (a `ConsentPort`)."""

    def __init__(self, settings: ClientSettings, topic: str, partition: int) -> None:
        self._tp = TopicPartition(topic, partition)
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None

    async def rewind(self) -> Mark:
        """See the port."""
        async with translated():
            consumer = await self._started()
            # The id first: should the topic be made anew in between, the gate meets an id that is none of ours.
            known_as = await _topic_id(consumer, self._tp)
            first = (await consumer.beginning_offsets([self._tp]))[self._tp]
            consumer.seek(self._tp, first)
            return Mark(int(first), known_as)

    async def read_consents(self) -> ConsentBatch:
        """See the port."""
        async with translated():
            consumer = await self._started()
            records = await consumer.getmany(self._tp, timeout_ms=500)
            return ConsentBatch(records.get(self._tp, []), await consumer.position(self._tp))

    async def close(self) -> None:
        """See the port."""
        if self._consumer is not None:
            await quietly(self._consumer.stop())

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            self._consumer = await _reader(self._settings, f"consents-{self._tp.partition}", [self._tp])
        return self._consumer


class AiokafkaLane:
    """Reads and writes for one lane (a `LanePort`)."""

    def __init__(
        self,
        connections: Connections,
        name: str,
        partition: int,
        topics: list[str],
        consents: str,
        state: str | None = None,
    ) -> None:
        self._shared = connections
        self._settings = connections.settings
        self._name = f"{name}-{partition}"
        self._partition = partition
        self._tps = {topic: TopicPartition(topic, partition) for topic in topics}
        self._consent_tp = TopicPartition(consents, partition)
        self._state_tp = None if state is None else TopicPartition(state, partition)
        self._consumer: AIOKafkaConsumer | None = None
        self._producer: OneCommitProducer | None = None
        self._offsets: dict[TopicPartition, int] = {}
        self._next: dict[str, int] = {}

    async def confirm(self) -> bool:
        """See the port."""
        owned = self._shared.member.assignment()
        return all(tp in owned for tp in self._tps.values()) and await self._shared.confirm()

    async def init_transactions(self) -> None:
        """See the port. Without transactions (at-least-once) it starts a plain producer."""
        settings = self._settings
        options: dict[str, Any] = {"acks": "all", "max_batch_size": settings.batch_bytes}
        if settings.transactional:
            # INVARIANT (A5): static, so that whoever owns the partition next fences whoever had it before.
            options["transactional_id"] = f"{settings.group}-{self._name}"
            options["transaction_timeout_ms"] = settings.transaction_timeout
        producer = OneCommitProducer(
            **settings.common(f"lane-{self._name}"),
            **options,
            max_request_size=2 * settings.batch_bytes,
            compression_type=settings.compression,
            linger_ms=0,
        )
        async with translated():
            try:
                await producer.start()
            except BaseException:
                await quietly(producer.stop())
                raise
        self._producer = producer

    async def committed(self) -> dict[str, int | None]:
        """See the port."""
        async with translated():
            mine = [*self._tps.values(), *([] if self._state_tp is None else [self._state_tp])]
            offsets = await self._own_producer.committed(self._settings.group, mine)
            return {tp.topic: offsets[tp] for tp in mine}

    async def seek(self, offsets: Mapping[str, int | None]) -> None:
        """See the port."""
        async with translated():
            if self._consumer is None:
                self._consumer = await _reader(self._settings, f"lane-{self._name}", list(self._tps.values()))
            for topic, offset in offsets.items():
                start = await self.first_offset(topic) if offset is None else offset
                self._consumer.seek(self._tps[topic], start)
                self._next[topic] = start

    async def first_offset(self, topic: str) -> int:
        """See the port."""
        tp = self._tps[topic]
        async with translated():
            return int((await self._shared.gate.beginning_offsets([tp]))[tp])

    async def read_batch(self) -> list[Batch]:
        """See the port."""
        consumer = self._consumer
        if consumer is None:
            raise PortError("not started")
        async with translated():
            records = await consumer.getmany(timeout_ms=1_000)
            # All that came before is handled; the ends of transactions, which nobody commits, are no lag.
            self._next |= {topic: await consumer.position(tp) for topic, tp in self._tps.items() if tp not in records}
            return [Batch(tp.topic, batch, await consumer.position(tp)) for tp, batch in records.items() if batch]

    async def read_state(self, through: int) -> AsyncIterator[Sequence[Record]]:
        """See the port."""
        tp = self._state_tp
        if tp is None:
            return
        async with translated():
            consumer = await _reader(self._settings, f"state-{self._name}", [tp])
            try:
                position = (await consumer.beginning_offsets([tp]))[tp]
                end = max(through, (await consumer.end_offsets([tp]))[tp])
                consumer.seek(tp, position)
                while position < end:
                    yield (await consumer.getmany(tp, timeout_ms=500)).get(tp, [])
                    position = await consumer.position(tp)
            finally:
                await quietly(consumer.stop())

    def lag(self) -> dict[str, int]:
        """See the port."""
        if self._consumer is None:
            return {}
        ends = {topic: self._consumer.highwater(tp) for topic, tp in self._tps.items()}
        return {topic: max(0, ends[topic] - at) for topic, at in self._next.items() if ends[topic] is not None}

    async def end_offset(self) -> Mark:
        """See the port."""
        gate, tp = self._shared.gate, self._consent_tp
        async with translated():
            end = int((await gate.end_offsets([tp]))[tp])
            # Of the leader: it took the withdrawal, so it knows the topic that the withdrawal was written to.
            return Mark(end, await _topic_id(gate, tp))

    async def write_barrier(self) -> Mark:
        """See the port."""
        tp = self._consent_tp
        written = await self._shared.write(tp.topic, tp.partition, BARRIER, None)
        async with translated():
            # Asked after the write: if the topic was made anew in between, the gate meets an id that it does not know.
            return Mark(written + 1, await _topic_id(self._shared.gate, tp))

    async def begin(self) -> None:
        """See the port."""
        self._offsets = {}
        if self._settings.transactional:
            async with translated():
                await self._own_producer.begin_transaction()

    async def send(self, sends: Sends) -> dict[tuple[str, int], int]:
        """See the port."""
        async with translated():
            # At once: else a partition with two batches keeps the next one waiting until the first is written.
            ways = [self._send(*place, outputs) for place, outputs in sends.items() if outputs]
            ends = await asyncio.gather(*ways, return_exceptions=True)
            told: dict[tuple[str, int], int] = {}
            for end in ends:
                if isinstance(end, BaseException):
                    raise end
                place, offset = end
                told[place] = offset
        return told

    async def _send(self, topic: str, partition: int, outputs: Sequence[Output]) -> tuple[tuple[str, int], int]:
        """Write to one partition, in order; return it, and the offset after the last record."""
        producer, futures, done = self._own_producer, list[asyncio.Future[Any]](), 0
        while done < len(outputs):
            batch = producer.create_batch()
            last, done = done, fill(batch, outputs, done)
            futures.append(await producer.send_batch(batch, topic, partition=partition))
        # INVARIANT (exactly once): a commit does not fail for a rejected batch, so each one is asked for.
        *_, outcome = await asyncio.gather(*futures)
        return (topic, partition), int(outcome.offset) + done - last

    async def send_offsets(self, offsets: Mapping[str, int]) -> None:
        """See the port."""
        self._offsets = {TopicPartition(topic, self._partition): offset for topic, offset in offsets.items()}
        if self._settings.transactional:
            async with translated():
                await self._own_producer.send_offsets_to_transaction(self._offsets, self._settings.group)

    async def commit(self) -> None:
        """See the port. At least once: the offsets, after everything has been acknowledged."""
        async with translated():
            if self._settings.transactional:
                await self._own_producer.commit_transaction()
            elif self._offsets:
                await self._shared.member.commit(self._offsets)
        self._next |= {tp.topic: offset for tp, offset in self._offsets.items() if tp != self._state_tp}

    async def close_producer(self, abort: bool) -> None:
        """See the port."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        transaction = producer._txn_manager
        if abort and transaction is not None and transaction.is_in_transaction():
            await quietly(producer.abort_transaction(), 5.0)
        await quietly(producer.stop(), 5.0)

    async def close(self) -> None:
        """See the port."""
        await self.close_producer(abort=True)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await quietly(consumer.stop())

    @property
    def _own_producer(self) -> OneCommitProducer:
        if self._producer is None:
            raise PortError("no producer")
        return self._producer


class KafkaPorts:
    """Gives lanes and followers their connections (`streams.kafka.lanes.Ports`)."""

    def __init__(self, connections: Connections, plan: Plan) -> None:
        self._connections = connections
        self._plan = plan
        self._topic = plan.policy.topic("consents")

    def lane(self, agent: BoundAgent, partition: int) -> AiokafkaLane:
        """Return the port of one lane."""
        topics, state = agent.topics(self._plan), agent.state_topic(self._plan)
        return AiokafkaLane(self._connections, agent.name, partition, topics, self._topic, state)

    def consents(self, partition: int) -> AiokafkaConsents:
        """Return the port of one follower."""
        return AiokafkaConsents(self._connections.settings, self._topic, partition)

    async def write_consent(self, partition: int, key: bytes, value: bytes) -> int:
        """Write a consent record. See `streams.kafka.withdraw.ConsentWriter`."""
        return await self._connections.write(self._topic, partition, key, value)


async def _topic_id(consumer: AIOKafkaConsumer, tp: TopicPartition) -> bytes | None:
    client = consumer._client
    if client.cluster.partitions_for_topic(tp.topic) is None:
        await client._wait_on_metadata(tp.topic)
    leader = client.cluster.leader_for_partition(tp)
    if leader is None or leader < 0:
        raise kafka_errors.LeaderNotAvailableError(tp.topic)
    return await topic_id(client, leader, tp.topic)


async def _reader(settings: ClientSettings, name: str, tps: list[TopicPartition]) -> AIOKafkaConsumer:
    """Start a consumer of these partitions, without a group, that hands on raw records."""
    consumer = AIOKafkaConsumer(
        **settings.common(name),
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        max_partition_fetch_bytes=settings.fetch_bytes,
        fetch_max_bytes=4 * settings.fetch_bytes,
        fetch_max_wait_ms=settings.fetch_wait,
    )
    try:
        await consumer.start()
    except BaseException:
        await quietly(consumer.stop())
        raise
    consumer.assign(tps)
    hand_on_raw_records(consumer, settings.batch_records)
    return consumer
