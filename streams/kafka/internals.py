"""Where celosia reaches into aiokafka 0.14's own parts, each with its reason. Hence the pinned range of versions.

- A lost answer to EndTxn is retried by the library, and the late first request may end the *next* transaction
  (KAFKA-17754): here a lost answer is fatal to the producer.
- The consumer builds a `ConsumerRecord` of eleven fields for each record, through three frames of Python, and loses the
  records before a broken batch: here raw records are taken batch by batch. That is 3 us of 20 per event.
- A coordinator that cannot answer for a group says so once, beside an empty list of offsets; the library reads the list
  only, and takes it that nothing was ever committed. And a consumer and a producer each find the coordinator for
  themselves: here committed offsets are asked of the one that takes the producer's, and an error is one.
- The batches of one answer are all read as being of the first one's magic, and unpacked to whatever they hold: here
  each is read as what it is, and holds what `streams.kafka.codecs` allows.
- uvloop raises RuntimeError for a write to a connection that is closed already. The library expects OSError there, and
  its membership in the group ended by it, for good: here it is an error of the connection.
- After 0.1 s with unread records the consumer asks the same broker for its other partitions alone. Nothing comes there,
  so the broker holds the answer back for `fetch_wait`, and nobody asks for more of the busy one meanwhile: here it
  waits until what it has is taken, but not longer than ten seconds.
- `BatchBuilder.append` is called once for each record: here the builder below it is.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult
from aiokafka.producer.sender import EndTxnHandler, Sender
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.record.memory_records import MemoryRecords

from streams.event import RawEvent
from streams.kafka.codecs import bound_what_is_unpacked
from streams.kafka.port import Unreadable
from streams.outcome import Output

__all__ = ["Batches", "OneCommitProducer", "fill", "hand_on_raw_records"]

_OFFSET, _LOG_OVERHEAD = 8, 12


_send = AIOKafkaConnection.send


def _send_or_close(self: Any, request: Any, expect_response: bool = True) -> Any:
    try:
        return _send(self, request, expect_response)
    except RuntimeError as error:
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise kafka_errors.KafkaConnectionError("the connection is closed") from error


AIOKafkaConnection.send = _send_or_close


class Batches:
    """The record batches in the answer to a fetch, one after another, as aiokafka's `MemoryRecords` yields them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def size_in_bytes(self) -> int:
        """Return the size of the answer."""
        return len(self._data)

    def has_next(self) -> bool:
        """Tell whether there is another whole batch: the last one of an answer may be cut off."""
        return len(self._data) - self._at >= max(_LOG_OVERHEAD, self._size())

    def next_batch(self) -> Any:
        """Return the next batch.

        Raises:
            CorruptRecordException: it is shorter than any batch.
        """
        size = self._size()
        batch = MemoryRecords(self._data[self._at : self._at + size]).next_batch() if size > _LOG_OVERHEAD else None
        if batch is None:
            raise kafka_errors.CorruptRecordException
        self._at += size
        return batch

    def _size(self) -> int:
        length = self._data[self._at + _OFFSET : self._at + _LOG_OVERHEAD]
        return _LOG_OVERHEAD + int.from_bytes(length, signed=True)


class _Buffer(OrderedDict[TopicPartition, Any]):
    """The fetcher's buffer of answers. What `getmany` takes from them is taken by `_RawRecords` instead."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        if isinstance(result, FetchResult):
            result.getall = _RawRecords(tp, result, self._most).take
            # The library's own iterator is not used, and holds the whole answer in a cycle until it has run to its end.
            result._partition_records._records_iterator = None
        super().__setitem__(tp, result)


class _RawRecords:
    """Takes the raw records out of the answer to one fetch, batch by batch.

    They have offset, timestamp, key, value and headers, which is all that the pipeline asks for. Transactions, control
    batches and the gaps of compaction are handled as `PartitionRecords._unpack_records` does, by its own parts.
    """

    def __init__(self, tp: TopicPartition, result: Any, most: int) -> None:
        self._tp = tp
        self._result = result
        self._most = most

    def take(self, _max_records: None = None) -> list[Any]:
        """Return the records of whole batches until there are as many as one transaction takes.

        Raises:
            Unreadable: the first batch is broken. (The library would also lose what came before a broken batch.)
        """
        result = self._result
        if not result.check_assignment(self._tp) or not result.has_more():
            return []
        fetched = result._partition_records
        found: list[Any] = []
        while fetched._records.has_next() and len(found) < self._most:
            batch = None
            try:
                batch = fetched._records.next_batch()
                found += self._readable(fetched, batch)
            except Exception as error:
                if found:
                    self._finish()  # So that it is fetched again from the broken batch on.
                    return found
                raise self._unreadable(fetched.next_fetch_offset, batch) from error
            fetched.next_fetch_offset = batch.next_offset
        if fetched._records.has_next():
            result._update_position()
        else:
            self._finish()
        return found

    def _finish(self) -> None:
        result = self._result
        result._update_position()
        result._partition_records = None
        # The answer and this object hold each other: without this, megabytes wait for the garbage collector.
        del result.getall

    def _readable(self, fetched: Any, batch: Any) -> list[Any]:
        first = fetched.next_fetch_offset
        # Where it begins is not under the checksum: never back, or its records would be taken twice.
        if batch.next_offset <= first or (fetched._check_crcs and not batch.validate_crc()):
            raise kafka_errors.CorruptRecordException
        if fetched._isolation_level == READ_COMMITTED and batch.producer_id is not None:
            fetched._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and fetched._contains_abort_marker(batch):
                fetched._aborted_producers.discard(batch.producer_id)
            if batch.is_transactional and batch.producer_id in fetched._aborted_producers:
                return []
        if batch.is_control_batch:
            return []
        records: list[Any] = list(batch)
        if batch.producer_id is None:  # Of old magic. Version 0 has no times.
            records = [RawEvent(r.offset, -1 if r.timestamp is None else r.timestamp, r.key, r.value) for r in records]
        # The first batch may begin before what was asked for.
        return records if not records or records[0].offset >= first else [r for r in records if r.offset >= first]

    def _unreadable(self, first: int, batch: Any) -> Unreadable:
        # What a broken batch says of its own length is believed as far as it could be true.
        after = -1 if batch is None else batch.next_offset
        return Unreadable(self._tp.topic, first, after if first < after <= first + _LONGEST else first + 1)


_LONGEST = 1_000_000
_UNREAD = 10.0
"""Seconds."""


def hand_on_raw_records(consumer: AIOKafkaConsumer, most: int) -> None:
    """Make a consumer that was assigned its partitions return raw records from `getmany`, about `most` a partition.

    How batches are found and unpacked changes with it for the whole process.
    """
    fetcher.MemoryRecords = Batches
    bound_what_is_unpacked()
    consumer._fetcher._records = _Buffer(most)
    consumer._fetcher._prefetch_backoff = _UNREAD


def fill(batch: Any, outputs: Sequence[Output], start: int) -> int:
    """Append outputs to an empty record batch from `start` on; returns the index of the first that has no room.

    The library's own `append` asks four questions of each record that have one answer for all of ours.
    """
    append = batch._builder.append
    index = start
    for index in range(start, len(outputs)):
        _, key, value, headers, timestamp = outputs[index]
        if append(index - start, timestamp, key=key, value=value, headers=headers) is None:
            break
    else:
        index += 1
    batch._relative_offset = index - start
    return index


class _EndTxnOnce(EndTxnHandler):  # type: ignore[misc]
    """Ends a transaction, and never asks twice after an answer was lost."""

    async def do(self, node_id: int) -> bool:
        try:
            answer = await self._sender.client.send(node_id, self.create_request(), group=self.group)
        except kafka_errors.KafkaError as error:
            raise kafka_errors.KafkaError("the answer to EndTxn was lost") from error
        # An answer that says "not now" says also that nothing was done: that may be asked again.
        backoff = self.handle_response(answer)
        if backoff is not None:
            await asyncio.sleep(backoff)
        return backoff is None


class _Sender(Sender):  # type: ignore[misc]
    async def _do_txn_commit(self, commit_result: Any) -> None:
        await self._message_accumulator.flush_for_commit()
        transaction = self._txn_manager
        if transaction.is_empty_transaction():
            transaction.complete_transaction()
            return
        node_id = await self._find_coordinator(CoordinationType.TRANSACTION, transaction.transactional_id)
        await _EndTxnOnce(self, commit_result).do(node_id)


class OneCommitProducer(AIOKafkaProducer):  # type: ignore[misc]
    """A transactional producer that asks for the end of a transaction once.

    After a lost answer it is of no use any more: every call raises.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        sender: Any = self._sender
        self._sender: Any = _Sender(
            self.client,
            acks=sender._acks,
            txn_manager=self._txn_manager,
            retry_backoff_ms=options["retry_backoff_ms"],
            message_accumulator=self._message_accumulator,
            request_timeout_ms=self._request_timeout_ms,
        )

    async def committed(self, group: str, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int | None]:
        """Ask for the committed offsets of a group; None where there is none.

        Asked of the coordinator that takes the offsets of this producer's transactions, and asked once.

        Raises:
            KafkaError: it does not say, or it is none.
        """
        if self._txn_manager is None:
            node = await self.client.coordinator_lookup(CoordinationType.GROUP, group)
        else:
            node = await self._sender._find_coordinator(CoordinationType.GROUP, group)
        request = OffsetFetchRequest(group, [(tp.topic, [tp.partition]) for tp in tps])
        answer = await self.client.send(node, request, group=ConnectionGroup.COORDINATION)
        if group_error := getattr(answer, "error_code", 0):  # since version 2
            raise kafka_errors.for_code(group_error)()
        offsets: dict[TopicPartition, int | None] = {}
        for topic, partitions in answer.topics:
            for partition, offset, _, error_code in partitions:
                if error_code:
                    raise kafka_errors.for_code(error_code)(topic)
                offsets[TopicPartition(topic, partition)] = None if offset < 0 else int(offset)
        if offsets.keys() != set(tps):
            raise kafka_errors.KafkaError("the answer is not to what was asked")
        return offsets
