"""The audit: what came out, held against what went in. It believes the topics, and holds the worker's count to them.

Each output carries the sealed coordinates of its raw event. The audit has the key, so of each output it knows which
event it is from, and which consent of that person was acknowledged when the event was sent. So it can count:

    stale        outputs computed under an older consent than that one
    too much     outputs for a purpose, or at a rung, that the consent they name does not allow
    again        outputs of one event for one purpose that came more than once
    unexplained  whatever leads back to nothing that was sent

An anonymous output names no consent. It is held to all that the person of its event has written: some consent must
allow it, and the newest of these must not be older than the one acknowledged.

Rules of this file: no I/O and no clock; each of these counts is zero, or the demo fails.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from streams.consent import RUNGS, ConsentRecord, Rung
from streams.demo.shop import Act, Line, Rungs
from streams.errors import SettingsError
from streams.kafka.traffic import Received
from streams.kafka.work import Receipt
from streams.outcome import Coordinates, QuarantineRecord
from streams.plan import Plan, PurposePlan

__all__ = ["Audit", "Change", "Sent", "value_at"]

_REMEMBERED = 50_000
"""Raw events kept to explain outputs by: far more than are ever on their way."""

_NOWHERE = Coordinates("", -1, -1)


@dataclass(slots=True)
class Sent:
    """A raw event, what was known of its person's consent when it was sent, and what was published of it."""

    line: Line
    acknowledged: int
    """version of the newest consent that the broker had acknowledged"""
    in_force: int
    """version of the newest consent whose receipt was visible"""
    place: Coordinates = _NOWHERE
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """by purpose"""
    quarantined: bool = False


@dataclass(slots=True)
class Change:
    """A change of consent while the shop was open, and what followed it."""

    act: Act
    person: str
    allowed: Rungs
    """what it allows for the purposes that it is about"""
    version: int
    place: Coordinates
    written: float
    """when it was acknowledged, in seconds"""
    receipt: Coordinates | None = None
    receipt_seen: float = 0.0
    events: int = 0
    """events of this person that were sent after the receipt was visible"""
    outputs: int = 0
    """what was published of these, for the purposes that the change is about"""
    too_much: int = 0
    """what was published of all events sent after the acknowledgement, above what the change allows"""

    @property
    def is_withdrawal(self) -> bool:
        """Whether it is about purposes that are not allowed any more."""
        return self.act in (Act.WITHDRAW, Act.WITHDRAW_ALL)

    @property
    def receipt_ms(self) -> int | None:
        """Milliseconds from the acknowledgement to the receipt."""
        return None if self.receipt is None else round(1000 * (self.receipt_seen - self.written))


class Audit:
    """Everything that went in and came out, and what is wrong with it."""

    def __init__(self, plan: Plan) -> None:
        self.sent_count = self.broken = self.published = self.quarantined = 0
        self.outputs: Counter[str] = Counter(dict.fromkeys(plan.purposes, 0))
        """by purpose, without what came again"""
        self.fields: dict[str, Counter[str]] = {path: Counter() for path in plan.policy.events["purchase"]}
        """of what was published: how often each field was kept, coarsened or removed"""
        self.changes: dict[str, Change] = {}
        """by person: each has one at most"""
        self.watched: str | None = None
        """the person whose events are shown one by one"""
        self.again = self.stale = self.too_much = self.unexplained = 0
        self._purposes = {purpose.topic: purpose for purpose in plan.purposes.values()}
        self._raw_topics = [source.raw_topic for source in plan.sources]
        self._subject = next(iter(plan.policy.sources.values())).subject
        self._receipts, self._quarantine = plan.policy.topic("receipts"), plan.policy.topic("quarantine")
        self._allowed: dict[str, dict[int, dict[str, Rung]]] = {}
        """by person and version of their consent: the rung of each purpose"""
        self._acknowledged: dict[str, int] = {}
        self._in_force: dict[str, int] = {}
        self._without_receipt: list[tuple[Coordinates, str, int]] = []
        self._receipts_seen: dict[int, tuple[int, Coordinates, float]] = {}
        """by partition: through which offset consents are in force, the receipt that says so, when it was seen"""
        self._sent: OrderedDict[Coordinates, Sent] = OrderedDict()
        self._early: dict[Coordinates, list[Received]] = {}
        self._recent: deque[Sent] = deque(maxlen=100)
        self._shown: Sent | None = None

    @property
    def pending(self) -> int:
        """Consents without a visible receipt, and outputs whose event has not been acknowledged."""
        return len(self._without_receipt) + len(self._early)

    def after_withdrawals(self) -> tuple[int, int]:
        """Return how many events came in after the receipts of withdrawals, and how many outputs for these purposes."""
        withdrawals = [change for change in self.changes.values() if change.is_withdrawal]
        return sum(change.events for change in withdrawals), sum(change.outputs for change in withdrawals)

    def outputs_by_topic(self) -> Counter[str]:
        """Return the outputs by topic, as the worker counts them."""
        return Counter({topic: self.outputs[purpose.name] for topic, purpose in self._purposes.items()})

    def consenting(self, record: ConsentRecord) -> None:
        """A consent is about to be written. Outputs may name it before its acknowledgement is here."""
        self._allowed.setdefault(record.subject, {})[record.version] = {
            purpose: RUNGS[grant.rung] for purpose, grant in record.purposes.items()
        }

    def consented(self, record: ConsentRecord, place: Coordinates, change: Change | None = None) -> None:
        """A consent was acknowledged: it counts for every event that is sent from here on."""
        self._acknowledged[record.subject] = record.version
        self._without_receipt.append((place, record.subject, record.version))
        if change is not None:
            self.changes[change.person] = change
        self._settle()

    def sending(self, line: Line) -> Sent:
        """An event is about to be sent."""
        person = line.person or ""
        return Sent(line, self._acknowledged.get(person, 0), self._in_force.get(person, 0))

    def sent(self, sent: Sent, place: Coordinates) -> None:
        """An event was acknowledged."""
        sent.place = place
        self.sent_count += 1
        self.broken += sent.line.broken
        self._sent[place] = sent
        if len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)
        if sent.line.person == self.watched and not sent.line.broken:
            self._recent.append(sent)
        if (change := self.changes.get(sent.line.person or "")) is not None:
            change.events += sent.in_force >= change.version
        # What came of it may have been read before its acknowledgement was.
        for received in self._early.pop(place, ()):
            self.received(received, 0.0)

    def received(self, received: Received, now: float) -> list[Change]:
        """A record of one of the worker's topics was read. Return the changes that it is a receipt of."""
        if received.place.topic == self._receipts:
            receipt = msgspec.json.decode(received.value, type=Receipt)
            self._receipts_seen[receipt.partition] = receipt.through, received.place, now
            return self._settle()
        if received.place.topic == self._quarantine:
            source = msgspec.json.decode(received.value, type=QuarantineRecord).source
            if (sent := self._find(source, received)) is not None:
                self.again += sent.quarantined
                self.quarantined += not sent.quarantined
                self.unexplained += not sent.line.broken
                sent.quarantined = True
        else:
            self._output(received, self._purposes[received.place.topic])
        return []

    def handled(self, positions: Mapping[int, int]) -> Sent | None:
        """Return the last event of the watched person below these committed offsets; the one before until there is."""
        for sent in reversed(self._recent):
            if sent.line.person == self.watched and sent.place.offset < positions.get(sent.place.partition, 0):
                self._shown = sent
                break
        return self._shown

    def _settle(self) -> list[Change]:
        """Find the consents that are in force by the receipts seen so far; return the changes among them."""
        waiting, settled = [], []
        for place, person, version in self._without_receipt:
            through, receipt, seen = self._receipts_seen.get(place.partition, (0, place, 0.0))
            if place.offset >= through:
                waiting.append((place, person, version))
                continue
            self._in_force[person] = version
            if (change := self.changes.get(person)) is not None and change.version == version:
                change.receipt, change.receipt_seen = receipt, max(seen, change.written)
                settled.append(change)
        self._without_receipt = waiting
        return settled

    def _output(self, received: Received, purpose: PurposePlan) -> None:
        try:
            source = Coordinates(*purpose.seal.open(received.headers["celosia-source"], self._raw_topics))
        except (SettingsError, KeyError):
            self.unexplained += 1
            return
        sent = self._find(source, received)
        if sent is None:
            return
        if purpose.name in sent.outputs:
            self.again += 1
            return
        document = orjson.loads(received.value)
        self.published += not sent.outputs
        self.outputs[purpose.name] += 1
        sent.outputs[purpose.name] = document
        self._judge(sent, purpose.name, document["_celosia"])
        self._compare(orjson.loads(sent.line.value), document)

    def _find(self, source: Coordinates, received: Received) -> Sent | None:
        sent = self._sent.get(source)
        if sent is None:
            self._early.setdefault(source, []).append(received)
        return sent

    def _judge(self, sent: Sent, purpose: str, stamp: dict[str, Any]) -> None:
        rung, known = RUNGS[stamp["rung"]], self._allowed.get(sent.line.person or "", {})
        allowing = [version for version, rungs in known.items() if rung <= rungs.get(purpose, Rung.NOTHING)]
        version = max(allowing, default=sent.acknowledged) if rung is Rung.ANONYMOUS else stamp.get("consent", -1)
        self.stale += version < sent.acknowledged
        self.too_much += sent.line.broken or version not in allowing
        change = self.changes.get(sent.line.person or "")
        if change is not None and purpose in change.allowed:
            change.outputs += sent.in_force >= change.version
            change.too_much += sent.acknowledged >= change.version and rung > RUNGS[change.allowed[purpose]]

    def _compare(self, raw: dict[str, Any], document: dict[str, Any]) -> None:
        for path, counts in self.fields.items():
            before, after = value_at(raw, path), self.published_value(document, path)
            counts["removed" if after is None else "kept" if after == before else "coarsened"] += 1

    def published_value(self, document: dict[str, Any] | None, path: str) -> Any:
        """Return what an output holds of a field: of the subject what its stamp calls the person, None for nothing."""
        if document is None:
            return None
        return document["_celosia"].get("subject") if path == self._subject else value_at(document, path)


def value_at(document: dict[str, Any], path: str) -> Any:
    """Return the value at a dotted path, None where there is none."""
    here: Any = document
    for name in path.split("."):
        here = here.get(name) if isinstance(here, dict) else None
    return here
