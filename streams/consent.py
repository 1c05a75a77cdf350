"""What a person allows, and rule 1.

    An event may serve a purpose only if the person had allowed it when the event was recorded,
    and still allows it now. Nothing known, not readable, expired, contradictory: nothing passes.

Rules of this file:
- The *version* of a record decides, not the order of arrival; equal version and different content: the stricter.
- A record that cannot be read denies its subject until a higher version arrives. A null value (tombstone) is such a
  record: a withdrawal is a value, so that it survives compaction and cannot be mistaken for "never heard of".
- A key that cannot be read denies the whole partition: it might be anyone's withdrawal.
- Clocks decide only in the strict direction: a late clock can expire a consent early, no clock can revive one.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal, NamedTuple, cast

import msgspec

__all__ = [
    "BARRIER",
    "FOREVER",
    "RUNGS",
    "Consent",
    "ConsentRecord",
    "Consents",
    "Grant",
    "GrantRecord",
    "Refusal",
    "Rung",
    "rule_1",
    "stricter",
    "write_consent",
    "write_denial",
]

FOREVER = 1 << 63
"""A time in milliseconds that never comes, not even in Kafka: the `until` of a grant that has none."""


BARRIER = b"\0celosia-barrier"
"""The key of the records that the strict gate writes to the consent topic. They are nobody's and say nothing; their
values are null, so that compaction removes them. No consent can be given under this key."""


class Rung(IntEnum):
    """The ladder of forms. A higher rung says more about the person."""

    NOTHING = 0
    CROWD = 1
    ANONYMOUS = 2
    PSEUDONYMOUS = 3
    IDENTIFIED = 4


RUNGS = {rung.name.lower(): rung for rung in Rung}
"""The rungs by the names that policies and consent records use."""


class Refusal(StrEnum):
    """Why an event does not serve a purpose, from the least known to the most. The words stand in metrics."""

    NO_SUBJECT = "no_subject"
    """the event is about nobody whose consent could be asked"""
    EVENT_NOT_NAMED = "event_not_named"
    """the policy does not name this event type"""
    PARTITION_BLOCKED = "partition_blocked"
    """a consent record with an unreadable key: everyone on the partition is denied"""
    NO_CONSENT = "no_consent"
    """nothing is known about this person"""
    CONSENT_UNREADABLE = "consent_unreadable"
    """the person's newest consent record cannot be read"""
    NOT_ALLOWED = "not_allowed"
    """the person does not allow this purpose"""
    RECORDED_BEFORE_CONSENT = "recorded_before_consent"
    """the event was recorded before the person allowed the purpose: a grant never reaches back"""
    EXPIRED = "expired"
    """the consent has run out"""
    RUNG_TOO_LOW = "rung_too_low"
    """at the rung in force the policy has no form of this event"""
    NOTHING_LEFT = "nothing_left"
    """no field of the event had a value that the forms take"""


RungName = Literal["nothing", "crowd", "anonymous", "pseudonymous", "identified"]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class GrantRecord(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a consent record says about one purpose: the highest rung allowed, since when and until when."""

    rung: RungName
    since: Moment
    until: Moment | None = None


class ConsentRecord(msgspec.Struct, forbid_unknown_fields=True):
    """The value of a record on the consent topic. Its key is `subject` in UTF-8. What is not named is not allowed.

    An unknown field is refused rather than skipped: it may be a limit that this version cannot keep. Times go to the
    strict side of the millisecond, however fine they are written: `since` up, `until` down.
    """

    subject: Annotated[str, msgspec.Meta(min_length=1)]
    version: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    purposes: dict[str, GrantRecord]


class Grant(NamedTuple):
    """One purpose as the decision needs it: rung, and the half-open time from `since` to `until` in milliseconds."""

    rung: Rung
    since: int
    until: int


class Consent(NamedTuple):
    """What is in force for one person. `readable` is False for a person whose newest record cannot be read."""

    version: int
    grants: dict[str, Grant]
    readable: bool = True


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_decode = msgspec.json.Decoder(ConsentRecord).decode
_encode = msgspec.json.Encoder().encode


_FINE = re.compile(rb"\.[0-9]{7}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name is given twice")
    return names


def _exactly(text: str, *, up: bool) -> int:
    """Return a time in ms, digit by digit: the decoder rounds to microseconds, to either side.

    >>> _exactly("1970-01-01T00:00:01.0000000001Z", up=True), _exactly("1970-01-01T00:00:01.0019999999Z", up=False)
    (1001, 1001)
    """
    second, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789")
    digits = rest[: len(rest) - len(zone)]
    ms = (datetime.fromisoformat(second + zone) - _EPOCH) // _MILLISECOND + int(f"{digits:0<3}"[:3])
    return ms + 1 if up and digits[3:].strip("0") else ms


def read_consent(value: bytes) -> tuple[str, Consent]:
    """Read a consent record: the subject, and what is allowed.

    >>> subject, consent = read_consent(
    ...     b'{"subject":"ana","version":2,"purposes":{"ads":{"rung":"anonymous","since":"1970-01-01T00:00:01Z"}}}')
    >>> subject, consent.version, consent.grants["ads"].rung.name, consent.grants["ads"].since
    ('ana', 2, 'ANONYMOUS', 1000)

    Raises:
        ValueError: it cannot be read, in any way. Nothing of the record is in it.
    """
    found = None
    with suppress(msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
        found = _read(value)
    # Raised out here, so that no other error hangs on it: those of the decoders quote the record.
    if found is None:
        raise ValueError("not a consent record")
    return found


def _read(value: bytes) -> tuple[str, Consent]:
    record = _decode(value)
    names = 3
    strings = 1
    grants = {}
    for purpose, grant in record.purposes.items():
        until = FOREVER
        names += 3
        strings += 2
        if grant.until is not None:
            until = (grant.until - _EPOCH) // _MILLISECOND
            names += 1
            strings += 1
        # To the strict side of the millisecond: `since` up, `until` down.
        since = -((_EPOCH - grant.since) // _MILLISECOND)
        grants[purpose] = Grant(RUNGS[grant.rung], since, until)
    # Parsers let the last of two equal names win. Which of `"rung":"nothing","rung":"identified"` was meant is
    # not ours to guess. Counting quotation marks finds an extra name; only then is the exact question asked.
    if b"\\" in value or value.count(b'"') != 2 * (names + strings) or _FINE.search(value):
        given = json.loads(value, object_pairs_hook=_no_duplicates)["purposes"]
        for purpose, grant in record.purposes.items():
            since = _exactly(given[purpose]["since"], up=True)
            until = FOREVER if grant.until is None else _exactly(given[purpose]["until"], up=False)
            grants[purpose] = Grant(RUNGS[grant.rung], since, until)
    return record.subject, Consent(record.version, grants)


def _moment(ms: int) -> datetime:
    """Return a time that a record can hold, also where it is before the year 1 or after 9999 in UTC."""
    try:
        return _EPOCH + ms * _MILLISECOND
    except OverflowError:
        offset = timedelta(hours=23, minutes=59) * (1 if ms < 0 else -1)
        return (_EPOCH.replace(tzinfo=None) + (ms * _MILLISECOND + offset)).replace(tzinfo=timezone(offset))


def write_consent(subject: str, consent: Consent) -> bytes:
    """Return a consent as the value of a record, to be written under the key `subject` in UTF-8.

    >>> grant = Grant(Rung.ANONYMOUS, since=1000, until=FOREVER)
    >>> write_consent("ana", Consent(3, {"ads": grant}))
    b'{"subject":"ana","version":3,"purposes":{"ads":{"rung":"anonymous","since":"1970-01-01T00:00:01Z"}}}'
    """
    purposes = {}
    for purpose, (rung, since, until) in consent.grants.items():
        name = cast("RungName", rung.name.lower())
        ends = None if until == FOREVER else _moment(until)
        purposes[purpose] = GrantRecord(name, _moment(since), ends)
    return _encode(ConsentRecord(subject, consent.version, purposes))


def write_denial(subject: str) -> bytes:
    """Return a value that denies a person whatever was known of them: it has no version, so nobody can read it.

    What cannot be read denies until a higher version arrives than all that a follower knows. It is no tombstone, which
    compaction would remove before everybody has met it.

    >>> consents = Consents()
    >>> consents.apply(b"ana", b'{"subject":"ana","version":9,"purposes":{}}')
    >>> consents.apply(b"ana", write_denial("ana"))
    >>> consents.of(b"ana")
    Consent(version=9, grants={}, readable=False)
    """
    return _encode({"subject": subject, "purposes": {}})


def stricter(one: Consent, other: Consent) -> Consent:
    """Meet of two consents of one version: per purpose the lower rung, the later since, the earlier until.

    It is commutative, associative and idempotent, so the order in which contradictions arrive does not matter.
    """
    grants = {
        purpose: Grant(min(mine.rung, theirs.rung), max(mine.since, theirs.since), min(mine.until, theirs.until))
        for purpose, mine in one.grants.items()
        if (theirs := other.grants.get(purpose)) is not None
    }
    readable = one.readable and other.readable
    return Consent(max(one.version, other.version), grants if readable else {}, readable)


def _everything(_key: bytes) -> bool:
    return True


class Consents:
    """The consents of one partition: a fold over its records, oldest first.

    >>> consents = Consents()
    >>> consents.apply(b"ana", b'{"subject":"ana","version":1,"purposes":{}}')
    >>> consents.apply(b"ben", b"broken")
    >>> consents.of(b"ana").readable, consents.of(b"ben").readable, consents.of(b"eve")
    (True, False, None)

    `owns` tells whether a key belongs on this partition (A3 of the promises). A consent in the wrong partition is
    denied there, because the events it speaks of are elsewhere.
    """

    __slots__ = ("_states", "blocked", "of", "owns", "rejected")

    def __init__(self, owns: Callable[[bytes], bool] = _everything) -> None:
        self.owns = owns
        self.rejected = 0
        """records that could not be read, or were in the wrong partition"""
        self.blocked = False
        """a record with an unreadable key was met: nobody on this partition is served"""
        self._states: dict[bytes, Consent] = {}
        self.of: Callable[[bytes], Consent | None] = self._states.get
        """what is in force for the person with this key (the subject in UTF-8), None if nothing is known"""

    def __len__(self) -> int:
        return len(self._states)

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Fold one record in. Never raises: what cannot be read denies."""
        if key == BARRIER:
            return
        if key is None or not _is_utf8(key):
            # INVARIANT (fail closed): whose record this is cannot be told, so it may be anyone's withdrawal.
            self.blocked = True
            self.rejected += 1
            return
        known = self._states.get(key)
        try:
            subject, consent = read_consent(value or b"")
            if subject.encode() != key or not self.owns(key):
                raise ValueError("another subject, or another partition")
        except ValueError:
            # INVARIANT (fail closed): denied until a version higher than all that were read before arrives.
            self.rejected += 1
            self._states[key] = Consent(-1 if known is None else known.version, {}, readable=False)
            return
        if known is None or consent.version > known.version:
            self._states[key] = consent
        elif consent.version == known.version and consent != known:
            self._states[key] = stricter(known, consent)

    def take_rejected(self) -> int:
        """Return how many records were rejected since this was last asked."""
        count, self.rejected = self.rejected, 0
        return count

    def clear(self) -> None:
        """Forget everything: the topic is read anew from its beginning."""
        self._states.clear()
        self.blocked = False


def _is_utf8(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def rule_1(grant: Grant | None, recorded: int, now: int, skew: int) -> Rung | Refusal:
    """Rule 1 for one purpose: the rung that the person allowed when the event was recorded and still allows now.

    `recorded`, `now` and `skew` are milliseconds. `skew` is the declared distance between the clocks of those who
    record events and those who record consent; it is added to `since`.

    >>> grant = Grant(Rung.PSEUDONYMOUS, since=1000, until=5000)
    >>> [rule_1(grant, at, now=at, skew=0).name for at in (999, 1000, 4999, 5000)]
    ['RECORDED_BEFORE_CONSENT', 'PSEUDONYMOUS', 'PSEUDONYMOUS', 'EXPIRED']
    """
    # INVARIANT (default deny): every way out of here but the last is a refusal.
    if grant is None or not grant.rung:
        return Refusal.NOT_ALLOWED
    if recorded < grant.since + skew:
        return Refusal.RECORDED_BEFORE_CONSENT
    if grant.until <= recorded or grant.until <= now:
        return Refusal.EXPIRED
    return grant.rung
