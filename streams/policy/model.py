"""A policy as it is written: the models. Unknown keys and values of the wrong type are refused."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from streams.crowd.rule import LEAST_K
from streams.sources import Paths

__all__ = [
    "NAME",
    "OWN_TOPICS",
    "PATH",
    "TOPIC",
    "Crowd",
    "FieldRule",
    "Noise",
    "OwnTopic",
    "Policy",
    "Purpose",
    "Source",
    "Topics",
]

_DURATION = re.compile(r"([0-9]{1,6})(ms|s|m|h|d)")
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def _duration(value: Any) -> int:
    match = _DURATION.fullmatch(value) if type(value) is str else None
    if match is None:
        raise ValueError("wanted a duration as in 30s, 10m, 12h or 30d")
    return int(match[1]) * _UNITS[match[2]]


OwnTopic = Literal["consents", "receipts", "quarantine", "rekeyed", "counting", "closings", "partials", "rounds"]
OWN_TOPICS: tuple[OwnTopic, ...] = get_args(OwnTopic)
Duration = Annotated[
    int,
    BeforeValidator(_duration, json_schema_input_type=Annotated[str, Field(pattern=f"^{_DURATION.pattern}$")]),
]
"""Milliseconds, written as 500ms, 30s, 10m, 12h or 30d."""
TOPIC = r"^[a-zA-Z0-9._-]{1,249}$"
# Not what JSON must write with a backslash: the decoder compares names as they stand in the bytes.
PATH = r'^[^.\s"\\\x00-\x1f]+(\.[^.\s"\\\x00-\x1f]+)*$'
NAME = r"^[a-z0-9_]+([.-][a-z0-9_]+)*$"
Topic = Annotated[str, Field(pattern=TOPIC)]
Path_ = Annotated[str, Field(pattern=PATH, max_length=500)]
Name = Annotated[str, Field(pattern=NAME, max_length=100)]
RungKey = Literal["crowd", "anonymous", "pseudonymous", "identified"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Source(_Model):
    """Where raw events come from, and where their subject, type, time and id stand (dotted paths)."""

    topic: Topic
    shape: Literal["plain"] = "plain"
    own: bool
    """our own dealings with the person; `false` can feed nothing that is about a person"""
    subject: Path_
    type: Path_
    time: Path_ | None = None
    """RFC 3339 with an offset, or integer milliseconds; without it Kafka's timestamp counts"""
    id: Path_ | None = None
    key: Literal["subject", "other"] = "subject"
    """`other`: the records' key is not the subject; they are keyed anew on an internal topic first"""
    clock_skew: Duration = 0
    """the most by which the clocks of this source and of those who record consent may differ"""

    @property
    def paths(self) -> Paths:
        """The paths of the envelope."""
        return Paths(self.subject, self.type, self.time, self.id)


class Noise(_Model):
    """Differential privacy for what a crowd purpose tells."""

    epsilon: Annotated[float, Field(gt=0, le=20, allow_inf_nan=False)]
    """what one window costs each person in it"""
    delta: Annotated[float, Field(gt=0, le=1e-3)]
    """the chance that a cell of few people is told because of the noise"""
    per_day: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """the most that one person may spend in a day (UTC)"""


class Crowd(_Model):
    """How a purpose at the rung `crowd` counts: cells of people, told only where they are many."""

    k: Annotated[int, Field(ge=LEAST_K, le=1_000_000)]
    """the fewest distinct people of a cell that is told"""
    window: Duration
    late: Duration = 0
    """how long after its end a window still takes events"""
    by: Annotated[list[Path_], Field(min_length=1, max_length=5)]
    """the fields whose values make a cell; `type` is the event type"""
    sum: dict[Path_, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}
    """fields that are summed up, each with the range in which one person's part of a cell lies"""
    most_per_person: Annotated[int, Field(ge=1, le=1000)]
    """the most cells of a window that one person adds to: the first ones count"""
    most_events: Annotated[int, Field(ge=1)] | None = None
    """the most events of one person that count in a cell; without it all do"""
    cells: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    """the most cells that an open window may have; events of further ones are refused, and counted"""
    hold: Duration = 86_400_000
    """how long a window waits for partitions that are behind, before it is dropped"""
    top: Annotated[int, Field(ge=1)] | None = None
    """tell only so many of the cells with the most people"""
    noise: Noise | None = None


class Purpose(_Model):
    """A named use. Nobody's events serve it unless they allow it."""

    benefit: Annotated[str, Field(min_length=10)]
    """what the person gets from it, in plain words; shown where they decide"""
    topic: Topic
    rung: RungKey
    """the highest rung that this purpose may ever use"""
    lifetime: Duration
    """stamped on each output as expires_at, and checked against the topic's retention"""
    rotate: Duration | None = None
    """how long one pseudonym lasts; needed at `pseudonymous` and above"""
    crowd: Crowd | None = None
    """how it counts; needed at `crowd`, and nowhere else"""


class FieldRule(_Model):
    """What a field is, which purposes it serves, and in which form at which rung."""

    is_: Annotated[str, Field(alias="is")]
    for_: Annotated[Literal["all"] | list[Name] | None, Field(alias="for")] = None
    as_: Annotated[dict[RungKey, str | dict[str, Any]] | None, Field(alias="as")] = None
    drop: str | None = None
    """why this field goes nowhere: it shows that somebody thought of it"""


class Topics(_Model):
    """Names of the topics that are ours; each defaults to the policy's name and its own (`shop.consents`)."""

    consents: Topic | None = None
    receipts: Topic | None = None
    quarantine: Topic | None = None
    rekeyed: Topic | None = None
    counting: Topic | None = None
    """what the lanes know of open windows of crowds, encrypted"""
    closings: Topic | None = None
    """orders to close windows"""
    partials: Topic | None = None
    """what partitions add to windows that close, and how far they are"""
    rounds: Topic | None = None
    """what is known of windows that are being closed"""


class Policy(_Model):
    """A policy file as it is written. `load_policy` reads and checks one."""

    policy: Name
    version: Annotated[int, Field(ge=1)]
    topics: Topics = Topics()
    sources: Annotated[dict[Name, Source], Field(min_length=1)]
    purposes: Annotated[dict[Name, Purpose], Field(min_length=1)]
    events: Annotated[dict[str, dict[Path_, FieldRule]], Field(min_length=1)]

    def topic(self, of: OwnTopic) -> str:
        """Return the name of one of our own topics."""
        return getattr(self.topics, of) or f"{self.policy}.{of}"

    def serves(self, rule: FieldRule, purpose: str) -> bool:
        """Tell whether a field may reach a purpose at all."""
        return rule.for_ == "all" or (isinstance(rule.for_, list) and purpose in rule.for_)

    def counts(self, event: str, purpose: str) -> bool:
        """Tell whether events of a type make cells of a crowd purpose: all fields of `by` must serve it."""
        crowd, fields = self.purposes[purpose].crowd, self.events[event]
        if crowd is None or not any(self.serves(rule, purpose) for rule in fields.values()):
            return False
        return all(path == "type" or (path in fields and self.serves(fields[path], purpose)) for path in crowd.by)
