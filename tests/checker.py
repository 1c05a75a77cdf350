"""The checker: was every promise kept in this history? Linear in its length, and it shares no code with `streams`.

What it shows, by the kind of its findings:

    T1          handled under consents older than what was acknowledged before the event was sent
    T2          visible after a promise (a receipt, an answered fence), and computed without what was promised
    monotone    handled under older consents than an event before it in the same log
    output      not what the model makes of the event, under any state of the consents that is left
    lost        an acknowledged event that is not stored, or a handled one of which nothing came where something must
    twice       two outcomes, or two outputs of one event on one topic
    order       outputs of one partition that are not in the order of their raw records
    stray       a record that leads back to nothing, to another partition, or is on a topic that nobody named
    beyond      published, though the committed offset has not passed the event
    offset      a committed offset behind the end of its log; in a drained run, one before it
    quarantine  a quarantine record of a wrong form, or a range that holds what can be read
    receipt     a receipt of a wrong form, or one that goes back
    aborted     an aborted record that no state of the consents explains
    visible     a read_committed reader sees what the log does not hold
    consent     an acknowledged change of consent that the log does not hold
    canary      a token of a raw event where none may be
    more        so many findings in one log that the rest of it was not looked at

How T1 and T2 are decided. A *position* is an offset of a consent partition: everything below it has been applied. A
lane handles its events in the order of their offsets, each under one position, and positions never go back. So for one
log the question is: is there a sequence of positions, not decreasing, under which the model (`tests.model`) gives
exactly what was published, each not below what was acknowledged before its event was sent (T1), and not below what was
promised before its outputs became visible (T2)? The smallest position that fits each event is the best choice for all
that follow, so they are tried from there upwards. Only the person's own changes make a difference, and one that was
passed is never tried again: the work is linear.

The judging itself is in `tests.judge`; `tests.oracle` asks the model, `tests.timelines` folds the consents,
`tests.canaries` looks for what must not come out. Here a history is taken apart, and what belongs together is found.

Rules of these files:
- Findings hold coordinates, never a payload: they may be printed anywhere.
- Whatever a recorder leaves out (see `tests.history`) is not guessed at: an empty history has no findings, and power 0.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from typing import NamedTuple

from tests import canaries
from tests.history import History, Logs, Stored
from tests.judge import Facts, Finding, Judge, Log, Spot, Verdict, Where, Withdrawals
from tests.oracle import Names, Seals, oracle_of, read_quarantine, read_receipt, sealed_source
from tests.timelines import Bound, Timelines, owner_of, said_of

_SHOWN = 40
"""findings that are written out"""


class Violations(AssertionError):
    """What was broken. `findings` has all of it, the message the first ones."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        more = [f"and {len(findings) - _SHOWN} more"] if len(findings) > _SHOWN else []
        super().__init__("\n".join([f"{len(findings)} findings:", *map(str, findings[:_SHOWN]), *more]))

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of all findings."""
        return frozenset(finding.kind for finding in self.findings)


@dataclass
class Report:
    """What a history held, and how hard it tried."""

    counts: Counter[str] = field(default_factory=Counter)
    """events, outputs, published, suppressed, quarantined, rekeyed, consents, aborted, receipts, promises; `unjudged`:
    outputs of events that retention has taken"""
    power: Counter[str] = field(default_factory=Counter)
    """`soon`: events sent within 50 ms after an acknowledged withdrawal of their person, `soon_published` those of them
    that were published, `decisive` those that the older consent would have made something else of; `pinned`:
    events to which T1 has left one of several states; `promises_checked`: promises with outputs after them; and what
    the run counted itself"""

    def lines(self) -> list[str]:
        """Return the report as lines to print."""
        return [
            "held:  " + ", ".join(f"{count:,} {what}" for what, count in sorted(self.counts.items())),
            "power: " + ", ".join(f"{count:,} {what}" for what, count in sorted(self.power.items())),
        ]


def check(history: History, *, drained: bool = True, processes: int = 1) -> Report:
    """Check everything that a history promises; return what it held.

    `drained`: the run has waited until the workers had handled all there was. `processes`: more than one is worth it
    from some 100,000 events on.

    Raises:
        Violations: with everything that was found.
    """
    findings, report = examine(history, drained=drained, processes=processes)
    if findings:
        raise Violations(findings)
    return report


def examine(history: History, *, drained: bool = True, processes: int = 1) -> tuple[list[Finding], Report]:
    """Return what `check` finds, and the report all the same."""
    run = _Run(history, drained)
    run.run(processes)
    return run.findings, run.report


_jobs: list[Judge] = []
"""what forked processes work on: nothing of a history is copied to them"""


def _do(number: int) -> Verdict:
    return _jobs[number].judge()


def _judge_all(judges: list[Judge], processes: int) -> list[Verdict]:
    if processes == 1:
        return [judge.judge() for judge in judges]
    _jobs[:] = judges
    try:
        with get_context("fork").Pool(processes) as pool:
            return pool.map(_do, range(len(judges)), chunksize=1)
    finally:
        _jobs.clear()


class _Run:
    """One history, being checked."""

    def __init__(self, history: History, drained: bool) -> None:
        self.history = history
        self.report = Report(power=Counter(history.power))
        self.findings: list[Finding] = []
        self._drained = drained
        self._names = names = Names.of(history.policy)
        self._seals = Seals(history.secret, names.sources.values())
        self._keyed = {names.sources[source]: keyed for source, keyed in names.keyed.items()}
        self._logs: dict[Where, Log] = {}
        """by the topic that is read: raw ones and re-keyed ones"""
        self._origins: dict[tuple[str, int, int], Spot] = {}
        """by (raw topic, partition, offset): partition and offset on the re-keyed topic"""

    def run(self, processes: int) -> None:
        """Do everything."""
        aborted = self._aborted()
        self._open_logs()
        self._read_sent()
        self._trace(self.history.committed, aborted=False)
        self._trace(aborted, aborted=True)
        self._judge(processes)
        self._check_receipts()
        self._check_canaries()

    def _find(self, kind: str, text: str) -> None:
        self.findings.append(Finding(kind, text))

    def _aborted(self) -> Logs:
        """Return what only a read_uncommitted reader sees; all that is committed must be among what it sees."""
        aborted: Logs = {}
        committed, uncommitted = self.history.committed, self.history.uncommitted
        for where in committed.keys() | uncommitted.keys():
            here = "{}[{}]".format(*where)
            seen = {record.offset: record for record in committed.get(where, [])}
            left = []
            for record in uncommitted.get(where, []):
                same = seen.pop(record.offset, None)
                if same is None:
                    left.append(record)
                elif same is not record and (same[:4], list(same[4])) != (record[:4], list(record[4])):
                    self._find("visible", f"{here}@{record.offset}: not the record that the log holds")
            for offset in seen:
                self._find("visible", f"{here}@{offset}: seen as committed, but not in the log")
            if left:
                aborted[where] = left
                self.report.counts["aborted"] += len(left)
        for logs in (self.history.raw, committed, uncommitted):
            for (topic, number), records in logs.items():
                if any(later[0] <= one[0] for one, later in pairwise(records)):
                    self._find("visible", f"{topic}[{number}]: offsets do not increase")
        return aborted

    def _open_logs(self) -> None:
        history, names = self.history, self._names
        for source, raw in names.sources.items():
            self._open(source, raw, history.raw, rekeys=source in names.keyed)
            if source in names.keyed:
                self._open(source, names.keyed[source], history.committed, rekeys=False)
        for topic, number in history.raw.keys() - self._logs.keys():
            self._find("stray", f"{topic}[{number}]: events where nobody reads")

    def _open(self, source: str, topic: str, logs: Logs, *, rekeys: bool) -> None:
        history = self.history
        for number in range(history.partitions):
            where = topic, number
            records = logs.get(where, [])
            start = history.starts.get(where, records[0].offset if records else history.ends.get(where, 0))
            committed = max(0, history.offsets.get(where, 0))
            self._logs[where] = Log(source, topic, number, records, start, committed, rekeys)
            behind = records[-1].offset + 1 if records else start
            self.report.counts["events"] += len(records) if topic in self._names.sources.values() else 0
            end = history.ends.get(where, behind)
            if committed > end and (where in history.ends or topic not in self._keyed.values()):
                self._find("offset", f"{topic}[{number}]: committed {committed}, but the log ends at {end}")
            if self._drained and records and committed < behind:
                self._find("offset", f"{topic}[{number}]: committed {committed}, but there are records up to {behind}")

    def _read_sent(self) -> None:
        for sent in self.history.events:
            if sent.acknowledged is None or sent.offset is None:
                continue
            log = self._logs.get((sent.topic, sent.partition))
            if log is None:
                self._find("stray", f"{sent.topic}[{sent.partition}]@{sent.offset}: sent where nobody reads")
            else:
                log.sent[sent.offset] = sent

    # --- what leads back to which event ---

    def _trace(self, logs: Logs, *, aborted: bool) -> None:
        keyed = self._keyed.values()
        # Re-keyed events come first: outputs lead back to raw records, and through these to re-keyed ones.
        for topic, number in sorted(logs, key=lambda where: (where[0] not in keyed, where)):
            records = logs[topic, number]
            if topic in keyed:
                self._attribute(topic, number, records, self._rekeyed_from(topic, number, records, aborted), aborted)
            elif topic == self._names.quarantine:
                self._attribute(topic, number, records, self._quarantined_from(number, records), aborted)
            elif topic in self._names.purposes:
                self._attribute(topic, number, records, self._outputs_from(topic, records), aborted)
            elif topic != self._names.receipts:
                self._find("stray", f"{topic}[{number}]: a topic that the policy does not name")

    def _attribute(
        self, topic: str, number: int, records: Sequence[Stored], places: "Iterable[_Place | None]", aborted: bool
    ) -> None:
        """Note each record with the event it leads to, and look whether the events come in their order."""
        latest: dict[Where, int] = {}
        logs, keyed = self._logs, topic in self._keyed.values()
        for record, place in zip(records, places, strict=True):
            log = None if place is None else logs.get((place.topic, place.partition))
            if place is None or log is None or (log.partition != number and not keyed):
                self._find("stray", f"{topic}[{number}]@{record.offset}: leads back to nothing that is read here")
                continue
            offset = place.offset
            if aborted:
                if place.end is None:
                    log.aborted[offset].append((topic, number, record))
                continue
            where = log.topic, log.partition
            if offset < latest.get(where, -1):
                self._find("order", f"{topic}[{number}]@{record.offset}: {log.at(offset)} comes after a later event")
            latest[where] = offset
            if place.end is None:
                log.found[offset].append((topic, number, record))
            else:
                self._give_up(log, offset, place.end)

    def _rekeyed_from(
        self, topic: str, number: int, records: Sequence[Stored], aborted: bool
    ) -> "Iterator[_Place | None]":
        raw = next(raw for raw, keyed in self._keyed.items() if keyed == topic)
        for record in records:
            origin = _ORIGIN.fullmatch(dict(record.headers).get("celosia-origin") or b"")
            if origin is None:
                yield None
                continue
            place = _Place(raw, int(origin[1]), int(origin[2]))
            if not aborted:
                self._origins[place[:3]] = number, record.offset
                log = self._logs.get(place[:2])
                if log is not None and place.offset in log.sent:
                    self._logs[topic, number].sent[record.offset] = log.sent[place.offset]
            yield place

    def _outputs_from(self, topic: str, records: Sequence[Stored]) -> "Iterator[_Place | None]":
        opened = self._seals.open(self._names.purposes[topic], [sealed_source(record) for record in records])
        for place in opened:
            if place is None or place[0] not in self._keyed:
                yield place and _Place(*place)
            else:
                origin = self._origins.get(place)
                yield origin and _Place(self._keyed[place[0]], *origin)

    def _quarantined_from(self, number: int, records: Sequence[Stored]) -> "Iterator[_Place | None]":
        names = self._names
        for record in records:
            said = read_quarantine(record)
            if said is None:
                self._find("quarantine", f"{names.quarantine}[{number}]@{record.offset}: not a quarantine record")
                yield None
                continue
            if said["policy"] != names.stamp or not set(said.get("shape", ())) <= names.paths:
                self._find("quarantine", f"{names.quarantine}[{number}]@{record.offset}: holds other names")
            place, end = said["source"], said.get("to_offset")
            if end is not None and (said["reason"] not in _RANGES or said["key"] != "absent" or said["size"]):
                self._find("quarantine", f"{names.quarantine}[{number}]@{record.offset}: no record of a range")
            yield _Place(place["topic"], place["partition"], place["offset"], end)

    def _give_up(self, log: Log, first: int, end: int) -> None:
        """Note a range that nobody could read: nothing in it may be readable, or given up twice."""
        if end <= first or log.holds(first, end):
            self._find("quarantine", f"{log.at(first)}: given up to {end}, and it can be read")
        if log.given_up(first) or log.given_up(end - 1):
            self._find("twice", f"{log.at(first)}: given up to {end}, once more")
        else:
            log.give_up(first, end)

    # --- what the logs are judged by ---

    def _judge(self, processes: int) -> None:
        facts = self._facts()
        judges = [Judge(log, facts) for log in self._logs.values()]
        for verdict in _judge_all(judges, processes):
            self.findings += verdict.findings
            self.report.counts += verdict.counts
            self.report.power += verdict.power

    def _facts(self) -> Facts:
        history = self.history
        owners = [owner_of(number, history.partitions) for number in range(history.partitions)]
        consents = [history.consents.get(number, []) for number in range(history.partitions)]
        self.report.counts["consents"] += sum(map(len, consents))
        stored = {(number, record.offset): record for number, records in enumerate(consents) for record in records}
        told: list[list[tuple[float, int]]] = [[] for _ in consents]
        withdrawals: dict[bytes, list[tuple[float, Spot]]] = defaultdict(list)
        for change in history.changes:
            if change.acknowledged is None or change.offset is None:
                continue
            spot = change.partition, change.offset
            if spot not in stored:
                self._find("consent", f"{change.topic}[{spot[0]}]@{spot[1]}: acknowledged, and not stored")
                continue
            told[change.partition].append((change.acknowledged, change.offset + 1))
            key = stored[spot].key
            if change.withdrawal and key is not None:
                withdrawals[key].append((change.acknowledged, spot))
        return Facts(
            oracle_of(json.dumps(history.policy), history.secret, history.now),
            self._names,
            history.partitions,
            owners,
            [Timelines(consents[number], owned, history.remade.get(number, ())) for number, owned in enumerate(owners)],
            [Bound(said) for said in told],
            self._promises(),
            {key: Withdrawals(*zip(*sorted(said), strict=True)) for key, said in withdrawals.items()},
            self._gone(withdrawals, stored),
        )

    def _promises(self) -> dict[Where, Bound]:
        said: dict[Where, list[tuple[float, int]]] = defaultdict(list)
        for promise in self.history.promised:
            later = False
            for topic, stood in promise.stood.items():
                where = topic, promise.partition
                said[where].append((stood, promise.through))
                records = self.history.committed.get(where)
                later = later or bool(records and records[-1].offset >= stood)
            self.report.power["promises_checked"] += later
        self.report.counts["promises"] += len(self.history.promised)
        return {where: Bound(bounds) for where, bounds in said.items()}

    def _gone(
        self, withdrawals: Mapping[bytes, list[tuple[float, Spot]]], stored: Mapping[Spot, Stored]
    ) -> dict[bytes, float]:
        """Return, for each person who has taken everything back for ever, when that was acknowledged.

        For ever: nothing that allows anything was ever written with a higher version, on whatever partition. This
        knows nothing of positions, and of a topic that was made anew only what was written since.
        """
        allowed: dict[bytes, int] = {}
        for record in stored.values():
            said = None if record.key is None else said_of(record.key, record.value)
            if said is not None and record.key is not None and not said.takes_all_back:
                allowed[record.key] = max(said.version, allowed.get(record.key, -1))
        gone: dict[bytes, float] = {}
        for key, acknowledged in withdrawals.items():
            for time, (number, offset) in sorted(acknowledged):
                said = said_of(key, stored[number, offset].value)
                here = offset >= max(self.history.remade.get(number, ()), default=0)
                if here and said is not None and said.takes_all_back and said.version >= allowed.get(key, -1):
                    gone.setdefault(key, time)
        return gone

    # --- receipts and canaries ---

    def _check_receipts(self) -> None:
        topic = self._names.receipts
        for logs in (self.history.committed, self.history.uncommitted):
            for number in range(self.history.partitions):
                through, falls = 0, 0
                for record in logs.get((topic, number), []):
                    here = f"{topic}[{number}]@{record.offset}"
                    said = read_receipt(record, self._names, number)
                    if said is None:
                        self._find("receipt", f"{here}: not a receipt of this partition")
                        continue
                    if logs is self.history.committed:
                        self.report.counts["receipts"] += 1
                        falls += said < through
                        if said < through and falls > len(self.history.remade.get(number, ())):
                            self._find("receipt", f"{here}: through {said}, but {through} was said before")
                        through = said

    def _check_canaries(self) -> None:
        for where in canaries.found(self.history, frozenset(self._keyed.values())):
            self._find("canary", f"{where}: holds a canary")


class _Place(NamedTuple):
    """Where an event lies, or, with its `end`, a range of them."""

    topic: str
    partition: int
    offset: int
    end: int | None = None


_ORIGIN = re.compile(rb"([0-9]{1,9}):([0-9]{1,18})")
_RANGES = ("unreadable", "out_of_range")
