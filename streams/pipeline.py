"""One event from bytes to outcome. Start reading here.

    record -> read the envelope -> ask consent -> decide for each purpose -> build up the minimized event -> outcome
              (sources/)           (consent.py)   (decision.py)              (minimized.py, transforms/)    (outcome.py)

`process` is pure: bytes and a time in, values out; no I/O, no wall clock, no logging, no state of its own. The Kafka
worker, `celosia filter` and the tests all call it, and get the same bytes.
"""

from typing import Any, NamedTuple

import msgspec

from streams.consent import Consent, Consents, Refusal, Rung
from streams.decision import decide
from streams.event import Reason, Record, Rejected
from streams.minimized import minimize
from streams.outcome import Coordinates, Kind, Outcome, Output, QuarantineRecord, quarantined, shape_of, suppressed
from streams.plan import MAX_OUTPUT_BYTES, Plan, PurposePlan, Recipe, SourcePlan
from streams.sources import Envelope
from streams.transforms import ABSENT

__all__ = ["Place", "latest_at", "process", "quarantine", "recorded_at"]

_encode = msgspec.json.Encoder().encode
_PSEUDONYMOUS, _IDENTIFIED = int(Rung.PSEUDONYMOUS), int(Rung.IDENTIFIED)


class Place(NamedTuple):
    """Where a record was read: its source, partition and topic.

    `keyed` is False where the key is not the subject: for lines of a file, and before re-keying.
    """

    source: SourcePlan
    partition: int
    keyed: bool = True
    topic: str | None = None
    """None: the source's own"""


def process(record: Record, place: Place, consents: Consents, plan: Plan, now: int) -> Outcome:
    """Decide about one raw record and build what may be published of it. Never raises for what a record holds.

    `consents` are those of the record's partition, `now` is the time in milliseconds, passed in.
    """
    try:
        envelope = place.source.reader.read(record.value)
        if place.keyed and envelope.subject is not None and record.key != envelope.subject:
            raise Rejected(Reason.KEY_IS_NOT_SUBJECT)
        return _serve(record, envelope, place, consents, now)
    except Rejected as rejected:
        return quarantine(record, place, plan, rejected.reason)


def _serve(record: Record, envelope: Envelope, place: Place, consents: Consents, now: int) -> Outcome:
    # INVARIANT (default deny): whatever is not known ends in one of these returns.
    subject = envelope.subject
    if subject is None:
        return suppressed(Refusal.NO_SUBJECT)
    services = place.source.services.get(envelope.type)
    if not services:
        return suppressed(Refusal.EVENT_NOT_NAMED)
    if consents.blocked:
        return suppressed(Refusal.PARTITION_BLOCKED)
    consent = consents.of(subject)
    if consent is None:
        if not consents.owns(subject):
            raise Rejected(Reason.WRONG_PARTITION)
        return suppressed(Refusal.NO_CONSENT)
    recorded = recorded_at(record, envelope, now)
    latest = latest_at(record, envelope, now)
    outputs: list[Output] = []
    refusals: list[tuple[str, Refusal]] = []
    for service in services:
        recipe = decide(service, consent, recorded, latest, place.source.clock_skew)
        if isinstance(recipe, Refusal):
            refusals.append((service.purpose.name, recipe))
            continue
        body = minimize(envelope.document, recipe, recorded)
        if body is ABSENT:
            refusals.append((service.purpose.name, Refusal.NOTHING_LEFT))
            continue
        outputs.append(_output(record, place, subject, consent, service.purpose, recipe, body, recorded))
    if not outputs:
        # The furthest that any purpose came says most about why nothing passed.
        return suppressed(max((why for _, why in refusals), key=_PROGRESS.index), tuple(refusals))
    return Outcome(Kind.PUBLISHED, tuple(outputs), None, tuple(refusals))


_PROGRESS = list(Refusal)


def recorded_at(record: Record, envelope: Envelope, now: int) -> int:
    """Return when the event was recorded, in ms: the earliest of what Kafka, the event and the clock say.

    Earlier is stricter (a grant never reaches back), so no clock and no producer can widen a consent. A record without
    a timestamp (-1) counts as recorded before every consent.
    """
    recorded = record.timestamp
    if envelope.time is not None and envelope.time < recorded:
        recorded = envelope.time
    return min(now, recorded)


def latest_at(record: Record, envelope: Envelope, now: int) -> int:
    """Return what ends of consents are held against, in ms: the latest of what Kafka, the event and the clock say.

    Later is stricter there: a clock that is behind cannot revive a consent that Kafka or the event say had run out.
    """
    latest = max(now, record.timestamp)
    return latest if envelope.time is None else max(latest, envelope.time)


def _output(
    record: Record,
    place: Place,
    subject: bytes,
    consent: Consent,
    purpose: PurposePlan,
    recipe: Recipe,
    body: Any,
    recorded: int,
) -> Output:
    cut = recipe.floor(recorded)
    stamp = recipe.stamp(cut, consent.version)
    try:
        fields = _encode(body)
    except Exception:
        raise Rejected(Reason.TRANSFORM_FAILED) from None
    # The stamp is the same for many events, so it comes encoded; only the subject is added to it.
    if recipe.rung >= _IDENTIFIED:
        who = subject
        value = b'%b,"_celosia":%b,"subject":%b}}' % (fields[:-1], stamp.json, _encode(who.decode()))
    elif recipe.rung >= _PSEUDONYMOUS:
        who = purpose.pseudonym(subject, recorded)
        value = b'%b,"_celosia":%b,"subject":"%b"}}' % (fields[:-1], stamp.json, who)
    else:
        who = None
        value = b'%b,"_celosia":%b}}' % (fields[:-1], stamp.json)
    if len(value) > MAX_OUTPUT_BYTES:
        raise Rejected(Reason.TOO_LARGE)
    partition, offset = _raw_place(record, place) if place.source.rekey else (place.partition, record.offset)
    headers = [*stamp.headers, ("celosia-source", purpose.seal(place.source.raw_topic, partition, offset))]
    # A timestamp before 1970 is not one that Kafka takes.
    return Output(purpose.topic, who, value, headers, max(0, cut))


def quarantine(record: Record, place: Place, plan: Plan, reason: Reason) -> Outcome:
    """Return the outcome of a record that cannot be handled: a quarantine record of its shape and coordinates."""
    # How deep the parser goes depends on who called it, and records must not.
    readable = None if reason is Reason.TOO_DEEP else record.value
    shape, unnamed = shape_of(readable, place.source.known_paths)
    coordinates = Coordinates(place.topic or place.source.topic, place.partition, record.offset)
    key = "absent" if record.key is None else "present" if record.key else "empty"
    size = len(record.value or b"")
    quarantine = QuarantineRecord(coordinates, reason.value, plan.name, key, size, shape, unnamed)
    return quarantined(plan.policy.topic("quarantine"), quarantine, reason)


def _raw_place(record: Record, place: Place) -> tuple[int, int]:
    """Return partition and offset of the raw record: for a re-keyed one they stand in a header that we wrote."""
    for name, value in record.headers:
        if name == "celosia-origin" and value is not None:
            partition, _, offset = value.partition(b":")
            return int(partition), int(offset)
    return place.partition, record.offset
