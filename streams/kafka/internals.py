"""Where celosia reaches into aiokafka 0.14's own parts: two places, each with its reason. Hence the pinned range.

- A lost answer to EndTxn is retried by the library, and the late first request may end the *next* transaction
  (KAFKA-17754): here a lost answer is fatal to the producer.
- The consumer builds a `ConsumerRecord` of eleven fields for each record: here the raw record is handed on. And where a
  batch is broken it loses the records before it: here they are handed on first.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import CoordinationType
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.producer.sender import EndTxnHandler, Sender

from streams.kafka.port import Unreadable

__all__ = ["OneCommitProducer", "hand_on_raw_records"]


class _RawRecords(OrderedDict[TopicPartition, Any]):
    """The fetcher's buffer, which hands on the library's raw records instead of building a `ConsumerRecord` of each.

    That is 2 us of 13 per event. Only this consumer is touched; the records have offset, timestamp, key, value and
    headers, which is all that the pipeline asks for.
    """

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        if isinstance(result, FetchResult):
            fetched = result._partition_records
            fetched._consumer_record = _as_it_is
            fetched._records = _LastBatch(fetched._records)
            fetched._records_iterator = _readable(tp, fetched, fetched._unpack_records())
        super().__setitem__(tp, result)


def _as_it_is(_tp: TopicPartition, record: Any) -> Any:
    return record


class _LastBatch:
    """The library's record batches, one after the other, and the one that is being read."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self.current: Any = None

    def has_next(self) -> bool:
        return bool(self._batches.has_next())

    def next_batch(self) -> Any:
        self.current = self._batches.next_batch()
        return self.current


def _readable(tp: TopicPartition, fetched: Any, records: Iterator[Any]) -> Iterator[Any]:
    """Hand on the records before a broken batch; say that it is broken when it comes first.

    The library would raise at once, and the records before it, already taken out of its buffer, would be lost.
    """
    some = False
    try:
        for record in records:
            some = True
            yield record
    except Exception as error:
        if some:
            return
        batch = fetched._records.current
        # What a broken batch says of its own length is believed as far as it could be true.
        after = batch.next_offset if batch is not None else 0
        first = fetched.next_fetch_offset
        raise Unreadable(tp.topic, first, after if first < after <= first + _LONGEST else first + 1) from error


_LONGEST = 1_000_000


def hand_on_raw_records(consumer: AIOKafkaConsumer) -> None:
    """Make a consumer that was assigned its partitions return raw records from `getmany`."""
    consumer._fetcher._records = _RawRecords()


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
