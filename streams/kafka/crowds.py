"""Crowds at the Kafka edge: what one partition counts, and what one partition of stage two collects.

    event lane      counts, in the transaction of the batch        -> `counting` (its state), `partials` (progress)
    release lane    asks all partitions to close a window          -> `closings`, `rounds` (its state)
    event lane      after its gate: what the partition adds        -> `partials`
    release lane    the cells that may be told                     -> the purpose's topic

A purpose belongs to one partition of stage two, the one that its name is a key of: the guard must see whole windows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar, cast

import msgspec

from streams.aggregate import aggregates
from streams.crowd import told_of
from streams.crowd.counts import Added, Counts
from streams.crowd.rounds import Closed, Closing, Partial, Progress, Rounds, partials
from streams.crowd.sealed import Sealed
from streams.event import Reason, Record, Rejected
from streams.kafka.partitioner import partition_of
from streams.kafka.port import Batch
from streams.kafka.work import View, Work
from streams.outcome import Coordinates, Outcome, Output, QuarantineRecord, quarantined
from streams.pipeline import moments, still_allows
from streams.plan import Plan, SourcePlan, crowd_rules

__all__ = ["Collecting", "Counting"]

_encode = msgspec.json.Encoder().encode
T = TypeVar("T")
_AT_ONCE = 5
"""So many batches of changes are restored in a few ten milliseconds."""
_decode_closing = msgspec.json.Decoder(Closing).decode
_decode_answer = msgspec.json.Decoder(Partial | Progress).decode


class Counting:
    """Stage one of one partition: a `State` of the agent `minimize`."""

    def __init__(self, plan: Plan) -> None:
        self.counts = Counts(crowd_rules(plan), plan.master)
        self._seal = Sealed(plan.master)
        self._skew = max(source.clock_skew for source in plan.sources)
        self._watermarks: dict[str, int] = {}
        self._told: list[int] | None = None

    def restore(self, records: Sequence[tuple[bytes, bytes]]) -> Iterator[None]:
        """See `State`."""
        for start in range(0, len(records), _AT_ONCE):
            self.counts.restore(records[start : start + _AT_ONCE])
            yield

    def count(self, outcomes: Iterable[Outcome], topic: str, tallies: dict[tuple[str, ...], int]) -> Iterator[Outcome]:
        """Count what events of a topic add, one by one as they are handled. `tallies` is filled at the end."""
        add, counted, others, latest = self.counts.add, dict[str, int](), list[tuple[str, Added]](), -1
        for outcome in outcomes:
            for part in outcome[4]:
                purpose, _, _, _, recorded = part
                if recorded > latest:
                    latest = recorded
                if (added := add(*part)) is Added.COUNTED:
                    counted[purpose] = counted.get(purpose, 0) + 1
                else:
                    others.append((purpose, added))
            yield outcome
        if latest >= 0:
            self.seen(topic, latest)
        for purpose, count in counted.items():
            tallies["crowd", purpose, Added.COUNTED, ""] = count
        for (purpose, added), count in Counter(others).items():
            tallies["crowd", purpose, added, ""] = count

    def passed(self, source: SourcePlan, records: Sequence[Record], now: int) -> None:
        """Note when the last event of a batch that can be read was recorded.

        Of the others only those that are counted matter: to be behind closes a window later, and no more.
        """
        for record in reversed(records):
            with suppress(Rejected):
                envelope = source.reader.read(record.value)
                self.seen(source.topic, moments(record.timestamp, envelope.time, now)[0])
                return

    def seen(self, topic: str, recorded: int) -> None:
        """Note that an event of a topic was recorded at a time (ms)."""
        self._watermarks[topic] = max(recorded, self._watermarks.get(topic, recorded))

    def work(self, view: View) -> Work:
        """Return what the state topic must hold, and how far this partition is, if that closes a window."""
        policy = view.plan.policy
        for source in view.plan.sources:
            # Nobody writes there just now: the clock tells how far it is. A wrong one makes events late, no more.
            if view.lag.get(source.topic) == 0:
                self.seen(source.topic, view.now)
        sends: dict[tuple[str, int], list[Output]] = {}
        if state := [_record(policy.topic("counting"), key, value) for key, value in self.counts.take_changes()]:
            sends[policy.topic("counting"), view.partition] = state
        if len(self._watermarks) == len(view.plan.sources):
            watermark = min(self._watermarks.values())
            closable = [rule.closable(watermark) for rule in self.counts.rules.values()]
            if closable != self._told:
                self._told = closable
                said = Progress(view.partition, watermark)
                progress = _sealed(self._seal, policy.topic("partials"), b"%d" % view.partition, said)
                for partition in {partition_of(name.encode(), view.partitions) for name in self.counts.rules}:
                    sends[policy.topic("partials"), partition] = [progress]
        return Work(sends, {})

    def answer(self, batch: Batch, view: View) -> Work:
        """Return what this partition adds to windows that close: of those who allow it now."""
        work = Work({}, {})
        for closing in _ours(self._seal, _decode_closing, batch, view, work):
            if closing.purpose in self.counts.rules:
                self._close(closing, view, work)
            else:
                # Another policy counts for it, in force before or elsewhere by now. Without an answer its round and all
                # that follow would wait for ever.
                nothing = Partial(closing.purpose, view.partition, closing.through, 0, None, {}, True, "")
                self._say(nothing, view, work)
        return work

    def _close(self, closing: Closing, view: View, work: Work) -> None:
        purpose, through = closing.purpose, closing.through
        kept = view.plan.policy.topic("counting")
        state = [_record(kept, key, value) for key, value in self.counts.done(purpose, through)]
        work.sends.setdefault((kept, view.partition), []).extend(state)
        windows = self.counts.close(purpose, through, still_allows(view.consents, purpose, self._skew, view.now))
        for one in partials(self.counts.rules[purpose], view.partition, through, windows):
            self._say(one, view, work)

    def _say(self, one: Partial, view: View, work: Work) -> None:
        topic, key = view.plan.policy.topic("partials"), one.purpose.encode()
        place = topic, partition_of(key, view.partitions)
        work.sends.setdefault(place, []).append(_sealed(self._seal, topic, key, one))


class Collecting:
    """Stage two of one partition: a `State` of the agent `release`."""

    def __init__(self, plan: Plan, partition: int, partitions: int) -> None:
        mine = [rule for rule in crowd_rules(plan) if partition_of(rule.purpose.encode(), partitions) == partition]
        self.rounds = Rounds(mine, partitions, plan.master)
        self._seal = Sealed(plan.master)

    def restore(self, records: Sequence[tuple[bytes, bytes]]) -> Iterator[None]:
        """See `State`."""
        self.rounds.restore(records)
        yield

    def work(self, batch: Batch, view: View) -> Work:
        """Return what is to be closed and what is told, from what partitions say."""
        policy = view.plan.policy
        work = Work({}, {})
        closings: list[Closing] = []
        for said in _ours(self._seal, _decode_answer, batch, view, work):
            if isinstance(said, Progress):
                closings += self.rounds.progress(said, view.now)
                continue
            for one in self.rounds.partial(said, view.now):
                self._tell(said.purpose, one, view, work)
            closings += self.rounds.next_closings()
        for closing in closings:
            order = _sealed(self._seal, policy.topic("closings"), closing.purpose.encode(), closing)
            for partition in range(view.partitions):
                work.sends.setdefault((order.topic, partition), []).append(order)
        if state := [_record(policy.topic("rounds"), key, value) for key, value in self.rounds.take_changes()]:
            work.sends[policy.topic("rounds"), view.partition] = state
        return work

    def _tell(self, name: str, closed: Closed, view: View, work: Work) -> None:
        purpose = view.plan.purposes[name]
        released = None if purpose.crowd is None else told_of(purpose.crowd, closed.cells)
        if closed.cells is None or released is None:
            _tally(work, ("window", name, "dropped", ""), 1)
            return
        _tally(work, ("window", name, "released", ""), 1)
        _tally(work, ("cells", name, "told", ""), len(released.cells))
        _tally(work, ("cells", name, "suppressed", ""), len(closed.cells) - len(released.cells))
        for output in aggregates(view.plan, purpose, closed.window, released):
            partition = partition_of(output.key or b"", view.partitions)
            work.sends.setdefault((purpose.topic, partition), []).append(output)


def _tally(work: Work, what: tuple[str, ...], count: int) -> None:
    work.tallies[what] = work.tallies.get(what, 0) + count


def _ours(seal: Sealed, decode: Callable[[bytes], T], batch: Batch, view: View, work: Work) -> Iterator[T]:
    """Yield what the other stage says; leave a record of what it has not written."""
    for record in batch.records:
        try:
            said = decode(seal.open(record.value or b"", record.key or b""))
        except ValueError:
            _refuse(record, batch, view, work)
            continue
        yield said


def _refuse(record: Record, batch: Batch, view: View, work: Work) -> None:
    """Leave a record of what somebody else has written, and go on: nothing is lost by it."""
    topic = view.plan.policy.topic("quarantine")
    where = Coordinates(batch.topic, view.partition, record.offset)
    key = "absent" if record.key is None else "present" if record.key else "empty"
    quarantine = QuarantineRecord(where, Reason.NOT_OURS.value, view.plan.name, key, len(record.value or b""))
    outputs = quarantined(topic, quarantine, Reason.NOT_OURS).outputs
    work.sends.setdefault((topic, view.partition), []).extend(outputs)


def _sealed(seal: Sealed, topic: str, key: bytes, said: Progress | Closing | Partial) -> Output:
    return _record(topic, key, seal.close(_encode(said), key))


def _record(topic: str, key: bytes, value: bytes | None) -> Output:
    # A record without a value is a tombstone: the port writes it as one.
    return Output(topic, key, cast(bytes, value), [], None)
