"""One raw event as Kafka holds it, and the ways in which it can be unfit.

Rules of this file:
- `RawEvent` is what the pipeline takes; anything with these five attributes will do (the Kafka client's own records
  are handed on as they are, which saves two microseconds each).
- `Rejected` carries a `Reason` and nothing else: no payload, no key, no message of a parser that quotes its input.
- Times are integers, milliseconds since 1970-01-01T00:00:00Z, as in Kafka.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple, Protocol

__all__ = ["RawEvent", "Reason", "Record", "Rejected", "iso", "milliseconds"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# RFC 3339, section 5.6, without leap seconds. `fromisoformat` alone takes much more, and more with each Python.
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})"
)


class Record(Protocol):
    """What the pipeline needs of a record. `timestamp` is in milliseconds, -1 where the record has none."""

    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...  # noqa: D102


class RawEvent(NamedTuple):
    """A raw event outside Kafka: a line of a file, or of a test.

    >>> RawEvent(offset=0, timestamp=1764547200000, key=b"ana", value=b"{}")
    RawEvent(offset=0, 2 bytes)
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()

    def __repr__(self) -> str:
        # INVARIANT (discretion): what a debugger or a log prints of a raw event holds nothing of the person.
        size = "no value" if self.value is None else f"{len(self.value)} bytes"
        return f"RawEvent(offset={self.offset}, {size})"


class Reason(StrEnum):
    """Why an input is quarantined. The words stand in quarantine records and in metrics."""

    NO_VALUE = "no_value"
    """a tombstone or an empty value on an event topic"""
    MALFORMED = "malformed"
    """not one JSON document in UTF-8 (RFC 8259)"""
    TOO_DEEP = "too_deep"
    """nested deeper than 128 objects and arrays"""
    NOT_AN_OBJECT = "not_an_object"
    """the document is not a JSON object"""
    WRONG_SHAPE = "wrong_shape"
    """a group that the policy names is not an object"""
    DUPLICATE_NAME = "duplicate_name"
    """subject or type is given twice: parsers disagree about which one counts"""
    BAD_SUBJECT = "bad_subject"
    """the subject is not a string or integer of 1 to 1,024 bytes"""
    BAD_TYPE = "bad_type"
    """the event type is missing or not a string"""
    BAD_TIME = "bad_time"
    """the time is missing or neither RFC 3339 with an offset nor integer milliseconds"""
    KEY_IS_NOT_SUBJECT = "key_is_not_subject"
    """the record's key is not the subject, so its partition may not be where the person's consent is"""
    WRONG_PARTITION = "wrong_partition"
    """the key belongs on another partition: the producer does not use murmur2"""
    TOO_LARGE = "too_large"
    """the minimized event, or the cell that it counts in, is larger than it may be"""
    TRANSFORM_FAILED = "transform_failed"
    """a form raised: nothing of the event is published"""
    UNREADABLE = "unreadable"
    """the broker's bytes are no record: checksum, magic or compression"""
    OUT_OF_RANGE = "out_of_range"
    """the offsets are gone: retention was faster than the worker, or the topic was made anew"""
    NOT_OURS = "not_ours"
    """a record on one of celosia's own topics that celosia has not written, or not with this key"""


class Rejected(Exception):
    """Raised by readers, caught by `process`: this input cannot be handled, for this reason."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(reason.value)


def milliseconds(value: object) -> int:
    """Return the time that an event gives, in milliseconds.

    Takes RFC 3339 with an offset (`2026-03-01T09:30:00Z`), or an integer, which is milliseconds already.

    >>> milliseconds("1970-01-01T00:00:01.5Z"), milliseconds(1500)
    (1500, 1500)

    Raises:
        ValueError: anything else. A time without an offset is not a moment, and is not guessed at.
    """
    if type(value) is str:
        return _parse(value)
    if type(value) is int and abs(value) < 1 << 62:
        return value
    raise ValueError("not a time")


@lru_cache(maxsize=1024)  # An event's time is asked for twice: for the envelope, and by the form of the field.
def _parse(text: str) -> int:
    if not _RFC3339.fullmatch(text):
        raise ValueError("not RFC 3339 with an offset from UTC")
    since = datetime.fromisoformat(text) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


@lru_cache(maxsize=4096)
def iso(ms: int) -> str:
    """Write milliseconds as RFC 3339 in UTC, without a fraction where there is none.

    >>> iso(1500), iso(60_000)
    ('1970-01-01T00:00:01.500Z', '1970-01-01T00:01:00Z')

    Times after the year 9999 are written as its last millisecond: they stand in stamps, where they mean *far away*.
    Times before the year 1 are written as its first.
    """
    try:
        moment = _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        moment = datetime.max.replace(tzinfo=UTC) if ms > 0 else datetime.min.replace(tzinfo=UTC)
    text = moment.replace(tzinfo=None).isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text + "Z"
