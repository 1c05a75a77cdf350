"""Judges one log of events: is there a sequence of positions that explains what became of them?

The head of `tests.checker` says what is looked for, and why the smallest position that fits is the one to take.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.history import Sent, Stored
from tests.oracle import Names, Oracle, Outcome, Shown, published, read_quarantine, rekeyed
from tests.timelines import Bound, State, Timeline, Timelines

SOON = 0.05
"""Seconds after an acknowledged withdrawal in which an event is most likely to slip through."""
ENOUGH = 200
"""findings in one log after which it is not looked at any further"""
FOREVER = float("inf")

Where = tuple[str, int]
"""Topic and partition."""
Spot = tuple[int, int]
"""Partition and offset, where the topic goes without saying."""


class Finding(NamedTuple):
    """One promise that was broken."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.text} ({self.kind})"


Entries = list[tuple[str, int, Stored]]
"""What leads back to one event: topic, partition and record."""
Traces = dict[int, Entries]
"""The same for all events of a log, by their offset."""


@dataclass
class Log:
    """One partition of events that an agent reads, and what leads back to it."""

    source: str
    topic: str
    partition: int
    records: Sequence[Stored]
    start: int
    """what lies below may have been taken by retention"""
    committed: int
    rekeys: bool
    """read by `rekey`: the records are not keyed by their subject"""
    found: Traces = field(default_factory=lambda: defaultdict(list))
    aborted: Traces = field(default_factory=lambda: defaultdict(list))
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """offsets that were given up at once, because nobody could read them: first and end, in order"""
    sent: dict[int, Sent] = field(default_factory=dict)

    def at(self, offset: int) -> str:
        """Name one event."""
        return f"{self.topic}[{self.partition}]@{offset}"

    def given_up(self, offset: int) -> bool:
        """Tell whether an offset lies in a range that was given up."""
        index = bisect_right(self.ranges, offset, key=lambda span: span[0])
        return index > 0 and offset < self.ranges[index - 1][1]

    def give_up(self, first: int, end: int) -> None:
        """Note a range."""
        insort(self.ranges, (first, end))

    def holds(self, first: int, end: int) -> bool:
        """Tell whether there are records between two offsets that retention has not taken."""
        index = bisect_left(self.records, max(first, self.start), key=lambda record: record.offset)
        return index < len(self.records) and self.records[index].offset < end


@dataclass
class Facts:
    """What all logs are judged by."""

    oracle: Oracle
    names: Names
    partitions: int
    owners: list[Callable[[bytes], bool]]
    timelines: list[Timelines]
    acknowledged: list[Bound]
    """by partition, by time: the position that every later event must be handled under, at least"""
    promised: dict[Where, Bound]
    """by output topic and partition, by offset: the position that every later output must be computed under"""
    withdrawals: "dict[bytes, Withdrawals]"
    gone: dict[bytes, float]
    """by person: when a withdrawal was acknowledged after which nothing was ever allowed again"""


class Withdrawals(NamedTuple):
    """A person's withdrawals: when they were acknowledged, in this order, and the partition and offset of each."""

    times: tuple[float, ...]
    places: tuple[Spot, ...]


@dataclass
class Verdict:
    """What came of judging one log."""

    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    power: Counter[str] = field(default_factory=Counter)


class Judge:
    """Judges one log, event by event."""

    def __init__(self, log: Log, facts: Facts) -> None:
        self._log = log
        self._facts = facts
        self._verdict = Verdict()
        self._timelines = facts.timelines[log.partition]
        self._owned = facts.owners[log.partition]
        self._position = 0
        """the smallest under which the event before can have been handled"""

    def judge(self) -> Verdict:
        """Judge all of it."""
        log, verdict = self._log, self._verdict
        for record in log.records:
            offset = record.offset
            entries = log.found.pop(offset, [])
            attempts = log.aborted.pop(offset, [])
            actual = self._outcome(record, entries)
            if offset >= log.committed:
                if actual:
                    self._find("beyond", offset, f"published, but the committed offset is {log.committed}")
            elif log.ranges and log.given_up(offset):
                verdict.counts["quarantined"] += 1
                if actual:
                    self._find("twice", offset, "given up, and handled")
            elif log.rekeys:
                self._judge_rekeyed(record, actual)
            else:
                self._judge_event(record, entries, actual)
            if attempts:
                self._judge_aborted(record, attempts)
            if len(verdict.findings) >= ENOUGH:
                # Looking for an explanation of each takes time, and there is none to be had from more of them.
                self._find("more", offset, "this log is not looked at any further")
                return verdict
        self._judge_rest()
        return verdict

    def _find(self, kind: str, offset: int, text: str) -> None:
        self._verdict.findings.append(Finding(kind, f"{self._log.at(offset)}: {text}"))

    def _outcome(self, record: Stored, entries: Entries) -> Outcome:
        """Show what became of an event."""
        outcome: dict[str, Shown] = {}
        for topic, number, output in entries:
            if topic in outcome:
                self._find("twice", record.offset, f"once more at {topic}[{number}]@{output.offset}")
            else:
                outcome[topic] = self._show(record, topic, number, output)
        return outcome

    def _show(self, record: Stored, topic: str, number: int, output: Stored) -> Shown:
        if topic == self._facts.names.quarantine:
            said = read_quarantine(output) or {}
            return said.get("reason"), said.get("key"), said.get("size")
        return rekeyed(output, number, record) if self._log.rekeys else published(output)

    def _ask_rekeyed(self, record: Stored) -> Outcome:
        origin = b"%d:%d" % (self._log.partition, record.offset)
        return self._facts.oracle.ask_rekeyed(self._log.source, record, origin, self._facts.partitions)

    def _ask(self, record: Stored, state: State) -> Outcome:
        return self._facts.oracle.ask(self._log.source, record, state, self._owned)

    def _judge_rekeyed(self, record: Stored, actual: Outcome) -> None:
        if actual != (expected := self._ask_rekeyed(record)):
            self._differs(record, actual, expected)
        self._verdict.counts["quarantined" if self._facts.names.quarantine in actual else "rekeyed"] += bool(actual)

    def _judge_event(self, record: Stored, entries: Entries, actual: Outcome) -> None:
        """Find the smallest position under which the model gives what was published (see the head of this file)."""
        timeline = self._timelines.of(record.key)
        sent = self._log.sent.get(record.offset)
        told = self._told(sent)
        promised = self._promised(entries)
        least = max(self._position, told, promised)
        first = index = timeline.at(least)
        while index < len(timeline.states) and self._ask(record, timeline.states[index]) != actual:
            index += 1
        if index < len(timeline.states):
            self._position = least if index == first else timeline.positions[index - 1]
        else:
            self._explain(record, actual, timeline, told, promised)
        self._weigh(record, actual, timeline, sent, told)

    def _promised(self, entries: Entries) -> int:
        """Return the highest position that was promised before one of the records became visible."""
        bounds = self._facts.promised
        if not bounds:
            return 0
        nothing = Bound()
        return max((bounds.get((at[0], at[1]), nothing).up_to(at[2].offset) for at in entries), default=0)

    def _explain(self, record: Stored, actual: Outcome, timeline: Timeline, told: int, promised: int) -> None:
        """No position that is left fits: say what would have, or what is wrong with the outcome."""
        least = timeline.at(max(self._position, told, promised))
        # Nothing at all came of it: whether it was lost, or suppressed by older consents, cannot be told apart.
        for index in reversed(range(least if actual else 0)):
            if self._ask(record, timeline.states[index]) == actual:
                change = timeline.positions[index] - 1
                done = f"handled as if the consent at {change} were not there, but "
                if told > change:
                    self._find("T1", record.offset, f"{done}{told - 1} was acknowledged before the event was sent")
                elif promised > change:
                    self._find("T2", record.offset, f"{done}everything below {promised} was promised to be in force")
                else:
                    self._find("monotone", record.offset, f"{done}an event before it had seen {self._position - 1}")
                return
        self._differs(record, actual, self._ask(record, timeline.states[least]))

    def _differs(self, record: Stored, actual: Outcome, expected: Outcome) -> None:
        """Say in what an outcome is not the expected one."""
        missing, extra = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
        if missing and not actual:
            self._find("lost", record.offset, f"nothing became of it; expected on {', '.join(missing)}")
        elif missing or extra:
            self._find("output", record.offset, f"missing on {missing}, unexpected on {extra}")
        else:
            other = sorted(topic for topic in actual if actual[topic] != expected[topic])
            self._find("output", record.offset, f"not what the model says on {', '.join(other)}")

    def _weigh(self, record: Stored, actual: Outcome, timeline: Timeline, sent: Sent | None, told: int) -> None:
        """Count an event, and how sharp its test was; look once more for T1, in the simplest way there is."""
        facts, counts, power = self._facts, self._verdict.counts, self._verdict.power
        kind = "suppressed" if not actual else "quarantined" if facts.names.quarantine in actual else "published"
        counts[kind] += 1
        if kind == "published":
            counts["outputs"] += len(actual)
        if sent is None or record.key is None:
            return
        if kind == "published" and sent.invoked > facts.gone.get(record.key, FOREVER):
            self._find("T1", record.offset, "published, though its person had taken everything back for ever")
        if told and len(timeline.states) > 1 and timeline.at(told) == len(timeline.states) - 1:
            power["pinned"] += 1
        withdrawals = facts.withdrawals.get(record.key)
        newest = 0 if withdrawals is None else bisect_left(withdrawals.times, sent.invoked)
        if withdrawals is None or not newest or sent.invoked - withdrawals.times[newest - 1] > SOON:
            return
        power["soon"] += 1
        power["soon_published"] += kind == "published"
        partition, offset = withdrawals.places[newest - 1]
        if partition == self._log.partition:
            power["decisive"] += self._ask(record, timeline.states[timeline.at(offset)]) != actual

    def _judge_aborted(self, record: Stored, attempts: Entries) -> None:
        """Each aborted record is one that the event could have come to: nobody is shown more, even read_uncommitted."""
        outcomes = self._possible(record)
        known: list[Outcome] = []
        for topic, number, output in attempts:
            shown = self._show(record, topic, number, output)
            while all(outcome.get(topic) != shown for outcome in known):
                if (another := next(outcomes, None)) is None:
                    here = f"{topic}[{number}]@{output.offset}"
                    self._find("aborted", record.offset, f"{here} was aborted, and is not what the model says")
                    break
                known.append(another)

    def _possible(self, record: Stored) -> Iterator[Outcome]:
        """Yield what an event could come to, from what is most likely on: the states around the present one."""
        if self._log.rekeys:
            yield self._ask_rekeyed(record)
            return
        timeline = self._timelines.of(record.key)
        here = timeline.at(self._position)
        first = timeline.at(self._told(self._log.sent.get(record.offset)))
        yield from (self._ask(record, timeline.states[index]) for index in range(here, first - 1, -1))
        yield from (self._ask(record, state) for state in timeline.states[max(here + 1, first) :])

    def _told(self, sent: Sent | None) -> int:
        """Return the position that was acknowledged before an event was sent."""
        return 0 if sent is None else self._facts.acknowledged[self._log.partition].before(sent.invoked)

    def _judge_rest(self) -> None:
        """Look at what leads to events that are not there, and at acknowledged events that are not."""
        log = self._log
        for traces, aborted in ((log.found, False), (log.aborted, True)):
            for offset, entries in traces.items():
                topic, number, output = entries[0]
                if offset >= log.start:
                    self._find(
                        "stray", offset, f"{topic}[{number}]@{output.offset} leads to an event that is not there"
                    )
                elif not aborted:
                    self._verdict.counts["unjudged"] += 1
                    self._outcome(_TAKEN._replace(offset=offset), entries)
                    if log.given_up(offset):
                        self._find("twice", offset, "given up, and handled")
        stored = {record.offset for record in log.records} if log.sent else set()
        for offset in sorted(log.sent.keys() - stored):
            if offset >= log.start and not log.given_up(offset):
                self._find("lost", offset, "acknowledged, and not stored")


_TAKEN = Stored(0, 0, None, None)
"""stands for an event that retention has taken"""
