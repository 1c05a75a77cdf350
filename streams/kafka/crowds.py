"""Crowds at the Kafka edge: what one partition counts, and what one partition of stage two collects.

    event lane      counts, in the transaction of the batch        -> `counting` (its state), `partials` (progress)
    release lane    asks all partitions to close a window          -> `closings`, `rounds` (its state)
    event lane      after its gate: what the partition adds        -> `partials`
    release lane    the cells that may be told                     -> the purpose's topic

A purpose belongs to one partition of stage two, the one that its name is a key of: the guard must see whole windows.
"""

from collections import Counter
from collections.abc import Iterable
from typing import cast

import msgspec

from streams.aggregate import aggregates
from streams.crowd import told_of
from streams.crowd.counts import Counts, StateRecord
from streams.crowd.rounds import Closed, Closing, Partial, Progress, Rounds, partials
from streams.crowd.sealed import Sealed
from streams.kafka.partitioner import partition_of
from streams.kafka.port import Batch
from streams.kafka.work import View, Work
from streams.outcome import Contribution, Output
from streams.pipeline import still_allows
from streams.plan import Plan, crowd_rules

__all__ = ["Collecting", "Counting"]

_encode = msgspec.json.Encoder().encode
_decode_closing = msgspec.json.Decoder(Closing).decode
_decode_answer = msgspec.json.Decoder(Partial | Progress).decode


class Counting:
    """Stage one of one partition: a `State` of the agent `minimize`."""

    def __init__(self, plan: Plan) -> None:
        self.counts = Counts(crowd_rules(plan), plan.master)
        self._sealed = Sealed(plan.master)
        self._skew = max(source.clock_skew for source in plan.sources)
        self._watermarks: dict[str, int] = {}
        self._told: list[int] | None = None

    def restore(self, records: Iterable[StateRecord]) -> None:
        """See `State`."""
        self.counts.restore(records)

    def count(self, contributions: Iterable[Contribution]) -> Counter[tuple[str, ...]]:
        """Count events; return what to tally."""
        add = self.counts.add
        return Counter(("crowd", one.purpose, add(*one), "") for one in contributions)

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
                key = b"%d" % view.partition
                told = self._sealed.close(_encode(Progress(view.partition, watermark)), key)
                progress = _record(policy.topic("partials"), key, told)
                for partition in {partition_of(name.encode(), view.partitions) for name in self.counts.rules}:
                    sends[policy.topic("partials"), partition] = [progress]
        return Work(sends, {})

    def answer(self, batch: Batch, view: View) -> Work:
        """Return what this partition adds to windows that close: of those who allow it now."""
        policy = view.plan.policy
        sends: dict[tuple[str, int], list[Output]] = {}
        for record in batch.records:
            closing = _decode_closing(record.value or b"")
            if closing.purpose not in self.counts.rules:
                continue  # Of a policy that was in force before.
            state = list(self.counts.done(closing.purpose, closing.through))
            sends.setdefault((policy.topic("counting"), view.partition), []).extend(
                _record(policy.topic("counting"), key, value) for key, value in state
            )
            allows = still_allows(view.consents, closing.purpose, self._skew, view.now)
            windows = self.counts.close(closing.purpose, closing.through, allows)
            key = closing.purpose.encode()
            place = policy.topic("partials"), partition_of(key, view.partitions)
            for one in partials(closing.purpose, view.partition, closing.through, windows):
                sends.setdefault(place, []).append(_record(place[0], key, self._sealed.close(_encode(one), key)))
        return Work(sends, {})


class Collecting:
    """Stage two of one partition: a `State` of the agent `release`."""

    def __init__(self, plan: Plan, partition: int, partitions: int) -> None:
        mine = [rule for rule in crowd_rules(plan) if partition_of(rule.purpose.encode(), partitions) == partition]
        self.rounds = Rounds(mine, partitions, plan.master)
        self._sealed = Sealed(plan.master)

    def restore(self, records: Iterable[StateRecord]) -> None:
        """See `State`."""
        self.rounds.restore(iter(records))

    def work(self, batch: Batch, view: View) -> Work:
        """Return what is to be closed and what is told, from what partitions say."""
        policy, plan = view.plan.policy, view.plan
        sends: dict[tuple[str, int], list[Output]] = {}
        tallies: Counter[tuple[str, ...]] = Counter()
        closings: list[Closing] = []
        for record in batch.records:
            said = _decode_answer(self._sealed.open(record.value or b"", record.key or b""))
            if isinstance(said, Progress):
                closings += self.rounds.progress(said, view.now)
                continue
            for one in self.rounds.partial(said, view.now):
                self._tell(plan, said.purpose, one, view.partitions, sends, tallies)
            closings += self.rounds.next_closings()
        for closing in closings:
            order = _record(policy.topic("closings"), closing.purpose.encode(), _encode(closing))
            for partition in range(view.partitions):
                sends.setdefault((policy.topic("closings"), partition), []).append(order)
        if state := [_record(policy.topic("rounds"), key, value) for key, value in self.rounds.take_changes()]:
            sends[policy.topic("rounds"), view.partition] = state
        return Work(sends, dict(tallies))

    def _tell(
        self,
        plan: Plan,
        name: str,
        closed: Closed,
        partitions: int,
        sends: dict[tuple[str, int], list[Output]],
        tallies: Counter[tuple[str, ...]],
    ) -> None:
        purpose = plan.purposes[name]
        released = None if purpose.crowd is None else told_of(purpose.crowd, closed.cells)
        if closed.cells is None or released is None:
            tallies["window", name, "dropped", ""] += 1
            return
        tallies["window", name, "released", ""] += 1
        tallies["cells", name, "told", ""] += len(released.cells)
        tallies["cells", name, "suppressed", ""] += len(closed.cells) - len(released.cells)
        for output in aggregates(plan, purpose, closed.window, released):
            partition = partition_of(output.key or b"", partitions)
            sends.setdefault((purpose.topic, partition), []).append(output)


def _record(topic: str, key: bytes, value: bytes | None) -> Output:
    # A record without a value is a tombstone: the port writes it as one.
    return Output(topic, key, cast(bytes, value), [], None)
