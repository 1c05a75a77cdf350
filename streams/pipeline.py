"""One event from bytes to outcome. Start reading here.

    record -> read the envelope -> ask consent -> decide for each purpose -> build up the minimized event -> outcome
              (sources/)           (consent.py)   (decision.py)              (minimized.py, transforms/)    (outcome.py)

`process` is pure: bytes and a time in, values out; no I/O, no wall clock, no logging, no state of its own. The Kafka
worker, `celosia filter` and the tests all call it, and get the same bytes.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from streams.consent import Consent, Consents, Refusal, Rung, rule_1
from streams.decision import decide
from streams.event import Reason, Record, Rejected
from streams.minimized import cell_of, minimize
from streams.outcome import (
    Contribution,
    Coordinates,
    Kind,
    Outcome,
    Output,
    QuarantineRecord,
    quarantined,
    shape_of,
    suppressed,
)
from streams.plan import MAX_OUTPUT_BYTES, CrowdRecipe, Plan, PurposePlan, Recipe, Service, SourcePlan
from streams.sources import Envelope
from streams.transforms import ABSENT

__all__ = ["Place", "bind", "moments", "process", "quarantine", "still_allows"]

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
    return bind(place, consents, plan, now)(record)


def bind(place: Place, consents: Consents, plan: Plan, now: int) -> Callable[[Record], Outcome]:
    """Return `process` with all but the record given: what the records of a batch share is looked up once."""
    source, keyed = place.source, place.keyed
    read, services_of, consent_of = source.reader.read, source.services.get, consents.of

    def process_one(record: Record) -> Outcome:
        try:
            envelope = read(record.value)
            subject = envelope.subject
            # INVARIANT (default deny): whatever is not known ends in one of these returns.
            if subject is None:
                return suppressed(Refusal.NO_SUBJECT)
            if keyed and record.key != subject:
                raise Rejected(Reason.KEY_IS_NOT_SUBJECT)
            services = services_of(envelope.type)
            if not services:
                return suppressed(Refusal.EVENT_NOT_NAMED)
            if consents.blocked:
                return suppressed(Refusal.PARTITION_BLOCKED)
            consent = consent_of(subject)
            if consent is None:
                if not consents.owns(subject):
                    raise Rejected(Reason.WRONG_PARTITION)
                return suppressed(Refusal.NO_CONSENT)
            return _serve(record, envelope, subject, services, consent, place, now)
        except Rejected as rejected:
            return quarantine(record, place, plan, rejected.reason)

    return process_one


def _serve(
    record: Record,
    envelope: Envelope,
    subject: bytes,
    services: tuple[Service, ...],
    consent: Consent,
    place: Place,
    now: int,
) -> Outcome:
    recorded, latest = moments(record.timestamp, envelope.time, now)
    source = place.source
    outputs: list[Output] = []
    refusals: list[tuple[str, Refusal]] = []
    crowd: tuple[Contribution, ...] = ()
    for service in services:
        recipe = decide(service, consent, recorded, latest, source.clock_skew)
        if isinstance(recipe, Refusal):
            refusals.append((service.purpose.name, recipe))
            continue
        if isinstance(recipe, CrowdRecipe):
            counted = cell_of(envelope.document, recipe, recorded)
            if counted is None:
                refusals.append((service.purpose.name, Refusal.NOTHING_LEFT))
            else:
                crowd += (Contribution(service.purpose.name, subject, *counted, recorded),)
            continue
        body = minimize(envelope.document, recipe, recorded)
        if body is ABSENT:
            refusals.append((service.purpose.name, Refusal.NOTHING_LEFT))
            continue
        partition, offset = _raw_place(record, place) if source.rekey else (place.partition, record.offset)
        sealed = service.purpose.seal(source.raw_topic, partition, offset)
        outputs.append(_output(service.purpose, recipe, body, subject, consent.version, recorded, sealed))
    if crowd:
        return Outcome(_PUBLISHED if outputs else _COUNTED, tuple(outputs), None, tuple(refusals), crowd)
    if not outputs:
        # The furthest that any purpose came says most about why nothing passed.
        return suppressed(max((why for _, why in refusals), key=_PROGRESS.index), tuple(refusals))
    return Outcome(_PUBLISHED, tuple(outputs), None, tuple(refusals))


_PROGRESS = list(Refusal)
_PUBLISHED, _COUNTED = Kind.PUBLISHED, Kind.COUNTED


def moments(timestamp: int, time: int | None, now: int) -> tuple[int, int]:
    """Return when an event was recorded, and what the ends of consents are held against, both in ms.

    `timestamp` is Kafka's, `time` what the event itself says, `now` the clock's. Recorded is the earliest of them: a
    grant never reaches back, so no clock and no producer can widen a consent, and a record without a timestamp (-1)
    was recorded before every consent. The latest of them is held against `until`: a clock that is behind cannot revive
    a consent that Kafka or the event say had run out.

    >>> moments(1000, 900, 5000), moments(-1, None, 5000), moments(9000, None, 5000)
    ((900, 5000), (-1, 5000), (5000, 9000))
    """
    earliest = now if now < timestamp else timestamp
    latest = now if now > timestamp else timestamp
    if time is not None:
        if time < earliest:
            earliest = time
        elif time > latest:
            latest = time
    return earliest, latest


def still_allows(consents: Consents, purpose: str, skew: int, now: int) -> Callable[[bytes, int], bool]:
    """Return the question whether a person allows a crowd purpose now, for events recorded as early as a time (ms).

    It is asked when a window closes: who has taken the consent back meanwhile is not counted.
    """

    def allows(subject: bytes, earliest: int) -> bool:
        # INVARIANT (fail closed): nothing known, nothing readable, a blocked partition: not counted.
        consent = None if consents.blocked else consents.of(subject)
        if consent is None or not consent.readable:
            return False
        allowed = rule_1(consent.grants.get(purpose), earliest, now, skew)
        return not isinstance(allowed, Refusal) and allowed >= Rung.CROWD

    return allows


def _output(
    purpose: PurposePlan, recipe: Recipe, body: Any, subject: bytes, version: int, recorded: int, sealed: bytes
) -> Output:
    cut = recipe.floor(recorded)
    stamp = recipe.stamp(cut, version)
    try:
        fields = _encode(body)
    except Exception:
        raise Rejected(Reason.TRANSFORM_FAILED) from None
    # The stamp is the same for many events, so it comes encoded; only the subject is added to it.
    who: bytes | None = None
    if recipe.rung >= _IDENTIFIED:
        who = subject
        value = b'%b,"_celosia":%b,"subject":%b}}' % (fields[:-1], stamp.json, _encode(who.decode()))
    elif recipe.rung >= _PSEUDONYMOUS:
        who = purpose.pseudonym(subject, recorded)
        value = b'%b,"_celosia":%b,"subject":"%b"}}' % (fields[:-1], stamp.json, who)
    else:
        value = b'%b,"_celosia":%b}}' % (fields[:-1], stamp.json)
    if len(value) > MAX_OUTPUT_BYTES:
        raise Rejected(Reason.TOO_LARGE)
    # A timestamp before 1970 is not one that Kafka takes.
    return Output(purpose.topic, who, value, [*stamp.headers, ("celosia-source", sealed)], cut if cut > 0 else 0)


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
        # Whoever else can write to our topic may write anything: `process` does not raise for what a record holds.
        if name == "celosia-origin" and (origin := _ORIGIN.fullmatch(value or b"")):
            return int(origin[1]), int(origin[2])
    return place.partition, record.offset


_ORIGIN = re.compile(rb"([0-9]{1,9}):([0-9]{1,18})")
