"""What a leader answers to those who write and read: produce, fetch, list offsets.

Rules of this file:
- Idempotent producers may send a batch twice: it is written once. A sequence number with a gap is refused.
- A batch of a transaction is taken only while the coordinator says that the transaction is open there.
- An old leader that does not know better (`Partition.stale`) answers from its own log. What is to be acknowledged by
  all, it takes and never acknowledges; what is to be acknowledged by itself only, it does.
- A new leader does not tell its end before its high watermark has reached the beginning of its time (KIP-207).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from streams.kafka.port import OffsetsGone, Unreadable
from tests.simulation.cluster import Node
from tests.simulation.log import Entry, Log
from tests.simulation.network import Code, Request
from tests.simulation.partition import Partition

__all__ = ["Fetched", "Produce", "fetch", "list_offset", "produce"]

MAX_WAIT = 0.5
"""how long a fetch may be held back, in seconds"""


class Produce(NamedTuple):
    """A batch to write. `records` are (timestamp, key, value, headers)."""

    records: Sequence[tuple[int, Any, Any, Sequence[tuple[str, bytes | None]]]]
    acks_all: bool = True
    pid: int = -1
    epoch: int = -1
    sequence: int = 0
    transactional: bool = False
    verified: Callable[[int, int, Partition], Code | None] | None = None
    """asks the transaction coordinator whether this producer has a transaction open on this partition"""


class Fetched(NamedTuple):
    """The answer to a fetch. `end` is the high watermark."""

    records: list[Entry]
    position: int
    end: int
    error: OffsetsGone | None = None


def checked(log: Log, batch: Produce) -> int | Code | None:
    """Look at a producer's numbers: an offset says that the batch is there already."""
    known = log.producers.get(batch.pid)
    if batch.pid < 0 or known is None:
        return None
    epoch, last, base = known
    if batch.epoch < epoch:
        return Code.FENCED
    if batch.epoch > epoch:
        return Code.OUT_OF_ORDER if batch.sequence else None
    if batch.sequence + len(batch.records) - 1 == last:
        return base
    return None if batch.sequence == last + 1 else Code.OUT_OF_ORDER


def produce(node: Node, request: Request, partition: Partition, batch: Produce) -> None:
    """Write a batch; answers the offset of its first record."""
    stale = partition.stale.get(node.number)
    if stale is not None:
        offset = stale.log.append(batch.records)
        if not batch.acks_all:
            partition.cluster.power["acknowledged by a leader that was none"] += 1
            request.answer(offset)
        else:
            stale.waiters.append((1 << 62, lambda why: request.answer(why)))
        return
    if partition.leader != node.number:
        request.answer(Code.NOT_LEADER)
        return
    log = partition.log
    known = checked(log, batch)
    if isinstance(known, Code):
        request.answer(known)
        return
    if batch.acks_all and len(partition.isr) < partition.min_isr:
        partition.cluster.power["not enough replicas"] += 1
        request.answer(Code.NOT_ENOUGH_REPLICAS)
        return
    if known is None:
        if batch.transactional and batch.verified is not None and batch.pid not in log.open:
            refusal = batch.verified(batch.pid, batch.epoch, partition)
            if refusal is not None:
                request.answer(refusal)
                return
        if partition.cluster.rejects > 0:
            partition.cluster.rejects -= 1
            partition.cluster.power["batches rejected"] += 1
            request.answer(Code.REJECTED)
            return
        known = log.append(batch.records, batch.pid, batch.epoch, batch.sequence, batch.transactional)
        if partition.breaks_next:
            partition.breaks_next, log.entries[-1].corrupt = False, True
            partition.cluster.power["records broken"] += 1
        partition.appended((lambda why: request.answer(known if why is None else why)) if batch.acks_all else None)
    elif batch.acks_all and log.hw < known + len(batch.records):
        partition.waiters.append(
            (known + len(batch.records), lambda why: request.answer(known if why is None else why))
        )
    else:
        request.answer(known)
        return
    if not batch.acks_all:
        request.answer(known)


def fetch(node: Node, request: Request, partition: Partition, position: int, most: int) -> None:
    """Answer what a read_committed reader may see from a position on; hold the question while there is nothing."""
    _fetch(node, request, partition, position, most, partition.cluster.clock.now + MAX_WAIT)


def _fetch(node: Node, request: Request, partition: Partition, position: int, most: int, until: float) -> None:
    stale = partition.stale.get(node.number)
    if stale is None and partition.leader != node.number:
        request.answer(Code.NOT_LEADER)
        return
    log = partition.log if stale is None else stale.log
    try:
        records, after = log.fetch(partition.topic, position, most)
    except OffsetsGone as gone:  # or Unreadable
        end = gone.after if isinstance(gone, Unreadable) else position
        request.answer(Fetched([], end, log.hw, gone))
        return
    clock = partition.cluster.clock
    if after != position or clock.now >= until:
        request.answer(Fetched(records, after, log.hw))
        return

    def again(waiting: Request) -> None:
        timer.cancelled_ = True
        _fetch(node, waiting, partition, position, most, until)

    def late() -> None:
        for watchers in (partition.watchers, *(stale.watchers for stale in partition.stale.values())):
            if entry in watchers:
                watchers.remove(entry)
                if node.dead:
                    request.answer(Code.REFUSED)
                elif not node.stopped:
                    request.answer(Fetched([], position, log.hw))

    entry = (request, again)
    timer = clock.at(until, late)
    (partition.watchers if stale is None else stale.watchers).append(entry)


def list_offset(node: Node, request: Request, partition: Partition, first: bool) -> None:
    """Answer the first offset, or the end as a read_uncommitted reader may see it; with the topic's id."""
    stale = partition.stale.get(node.number)
    if stale is not None:
        log = stale.log
        partition.cluster.power["ends told by a leader that was none"] += not first
    elif partition.leader != node.number:
        request.answer(Code.NOT_LEADER)
        return
    else:
        log = partition.log
        if not first and log.hw < log.epoch_start:
            partition.cluster.power["ends not available yet"] += 1
            request.answer(Code.OFFSET_NOT_AVAILABLE)
            return
    request.answer((log.start if first else log.hw, partition.topic_id))
