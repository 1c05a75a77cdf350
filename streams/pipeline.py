"""One event from bytes to outcome. Start reading here.

    record -> read the envelope -> ask consent -> decide for each purpose -> build up the minimized event -> outcome
              (sources/)           (consent.py)   (decision.py)              (minimized.py, transforms/)    (outcome.py)

`process` is pure: bytes and a time in, values out; no I/O, no wall clock, no logging, no state of its own. The Kafka
worker, `celosia filter` and the tests all call it, and get the same bytes.
"""

from typing import Any, NamedTuple

import msgspec

from streams.consent import Consent, Consents, Refusal
from streams.decision import decide
from streams.event import Reason, Record, Rejected, iso
from streams.minimized import minimize
from streams.outcome import Coordinates, Kind, Outcome, Output, QuarantineRecord, quarantined, shape_of, suppressed
from streams.plan import MAX_OUTPUT_BYTES, Plan, PurposePlan, Recipe, SourcePlan
from streams.sources import Envelope

__all__ = ["Place", "process", "quarantine", "recorded_at"]

_encode = msgspec.json.Encoder().encode
_PSEUDONYMOUS, _IDENTIFIED = 3, 4


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
    outputs = []
    refusals = []
    for service in services:
        recipe = decide(service, consent, recorded, now, place.source.clock_skew)
        if isinstance(recipe, Refusal):
            refusals.append((service.purpose.name, recipe))
            continue
        body = minimize(envelope.document, recipe, recorded)
        if body is None:
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


def _output(
    record: Record,
    place: Place,
    subject: bytes,
    consent: Consent,
    purpose: PurposePlan,
    recipe: Recipe,
    body: dict[str, Any],
    recorded: int,
) -> Output:
    who = None
    if recipe.rung >= _IDENTIFIED:
        who = subject.decode()
    elif recipe.rung >= _PSEUDONYMOUS:
        who = purpose.pseudonym(subject, recorded)
    cut = recipe.floor(recorded)
    expires = iso(cut + purpose.lifetime)
    stamp = {**recipe.stamp, "consent": consent.version, "expires_at": expires}
    if who is not None:
        stamp["subject"] = who
    body["_celosia"] = stamp
    value = _encode(body)
    if len(value) > MAX_OUTPUT_BYTES:
        raise Rejected(Reason.TOO_LARGE)
    headers = [
        *recipe.headers,
        ("celosia-consent", b"%d" % consent.version),
        ("celosia-expires-at", expires.encode()),
        ("celosia-source", purpose.seal(place.source.raw_topic, *_raw_place(record, place))),
    ]
    # A timestamp before 1970 is not one that Kafka takes.
    return Output(purpose.topic, None if who is None else who.encode(), value, headers, max(0, cut))


def quarantine(record: Record, place: Place, plan: Plan, reason: Reason) -> Outcome:
    """Return the outcome of a record that cannot be handled: a quarantine record of its shape and coordinates."""
    shape, unnamed = shape_of(record.value, place.source.known_paths)
    coordinates = Coordinates(place.topic or place.source.topic, place.partition, record.offset)
    key = "absent" if record.key is None else "present" if record.key else "empty"
    size = len(record.value or b"")
    quarantine = QuarantineRecord(coordinates, reason.value, plan.name, key, size, shape, unnamed)
    return quarantined(plan.policy.topic("quarantine"), quarantine, reason)


def _raw_place(record: Record, place: Place) -> tuple[int, int]:
    """Return partition and offset of the raw record: for a re-keyed one they stand in a header that we wrote."""
    if place.source.rekey:
        for name, value in record.headers:
            if name == "celosia-origin" and value is not None:
                partition, _, offset = value.partition(b":")
                return int(partition), int(offset)
    return place.partition, record.offset
