"""What became of one input: published, counted, suppressed or quarantined. Exactly one of them, for every input.

Rules of this file:
- Suppressed is the ordinary answer where consent or policy say no; it leaves no record, only a count.
- Quarantined is for what could not be handled. Its record says where the raw record lies, why, and its *shape*: types,
  and names only where the policy knows them (a map key can be a person). Never a value, never the key.
"""

from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from streams.consent import Refusal
from streams.event import Reason

__all__ = [
    "Contribution",
    "Coordinates",
    "Kind",
    "Outcome",
    "Output",
    "QuarantineRecord",
    "quarantined",
    "shape_of",
    "suppressed",
]


class Kind(StrEnum):
    """The things that can become of an input."""

    PUBLISHED = "published"
    COUNTED = "counted"
    """it adds to crowds, and nothing of it is published by itself"""
    SUPPRESSED = "suppressed"
    QUARANTINED = "quarantined"


class Output(NamedTuple):
    """One record to publish.

    `headers` is a list because the Kafka client takes nothing else. `timestamp` is in milliseconds; None: the time at
    which it is written.
    """

    topic: str
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]
    timestamp: int | None


class Contribution(NamedTuple):
    """What one event adds to a crowd purpose: a cell, parts of sums in millionths, and when it was recorded (ms)."""

    purpose: str
    subject: bytes
    cell: bytes
    sums: list[int]
    recorded: int

    def __repr__(self) -> str:
        return f"Contribution(purpose={self.purpose!r})"  # Never the person, nor what they did.


class Outcome(NamedTuple):
    """What became of one input. `refusals` says, for each purpose it does not serve, why."""

    kind: Kind
    outputs: tuple[Output, ...]
    reason: Refusal | Reason | None = None
    refusals: tuple[tuple[str, Refusal], ...] = ()
    crowd: tuple[Contribution, ...] = ()


class Coordinates(msgspec.Struct, frozen=True):
    """Where a raw record lies."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class QuarantineRecord(msgspec.Struct, omit_defaults=True):
    """The value of a record on the quarantine topic; it has no key."""

    source: Coordinates
    reason: str
    policy: str
    key: str
    """absent, empty or present"""
    size: int
    """length of the raw value in bytes"""
    shape: dict[str, str] = {}
    """type at each path that the policy names"""
    unnamed: int = 0
    """how many members the top level has that the policy does not name"""
    to_offset: int | None = None
    """for a range of offsets that are gone or unreadable: the first offset after it"""


_encode = msgspec.json.Encoder().encode
_TYPES = {dict: "object", list: "array", str: "string", int: "number", float: "number", bool: "boolean"}


def suppressed(reason: Refusal, refusals: tuple[tuple[str, Refusal], ...] = ()) -> Outcome:
    """Nothing is published: consent or policy say no."""
    return Outcome(Kind.SUPPRESSED, (), reason, refusals)


def quarantined(
    topic: str,
    record: QuarantineRecord,
    reason: Reason,
) -> Outcome:
    """Nothing personal is published; a record without personal data goes to the quarantine topic."""
    return Outcome(Kind.QUARANTINED, (Output(topic, None, _encode(record), [], None),), reason)


def shape_of(value: bytes | None, known: frozenset[str]) -> tuple[dict[str, str], int]:
    """Return the types at the paths that the policy knows, and how many top-level members it does not.

    >>> shape_of(b'{"type": 3, "ana@example.org": {}}', frozenset({"type", "id"}))
    ({'type': 'number'}, 1)
    >>> shape_of(b'{"type": 3', frozenset({"type"}))
    ({}, 0)
    """
    try:
        document = msgspec.json.decode(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # the decoder raises the second for names
        return {}, 0
    if type(document) is not dict:
        return {"": _TYPES.get(type(document), "null")}, 0
    shape = {}
    for path in sorted(known):
        here: Any = document
        for name in path.split("."):
            here = here.get(name, _MISSING) if type(here) is dict else _MISSING
        if here is not _MISSING:
            shape[path] = _TYPES.get(type(here), "null")
    named = {path.split(".")[0] for path in known}
    return shape, sum(name not in named for name in document)


_MISSING = object()
