"""What happened in a run, as those outside of celosia saw it: what a simulation and a real run write down, and what
`tests.checker` reads.

- Times are seconds of one clock, the same for everything in a history: virtual in a simulation, monotonic otherwise.
- A history holds what clients did and what the brokers hold at the end, nothing of what a worker says of itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Stored(NamedTuple):
    """A record as a broker holds it. `timestamp` is in milliseconds."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class Sent(NamedTuple):
    """One write of a client: an event, or a change of consent.

    `acknowledged` and `offset` are None when no answer came: the record may be there or not. `withdrawal`: it takes
    back something that was allowed.
    """

    topic: str
    partition: int
    offset: int | None
    invoked: float
    acknowledged: float | None
    withdrawal: bool = False


class Promised(NamedTuple):
    """The moment in which somebody was told that all consents of a partition below `through` are in force.

    Told by a receipt that became visible, or by a fence that was answered. `stood` says, by output topic, at which
    offset of this partition a read_committed reader stood then: what has a lower offset was visible already.
    """

    partition: int
    through: int
    stood: Mapping[str, int]


Logs = dict[tuple[str, int], list[Stored]]
"""Records by topic and partition, in the order of their offsets."""


@dataclass
class History:
    """One run, from outside."""

    policy: dict[str, Any]
    """the policy as a document, as `tests.model.predict` takes it"""
    secret: bytes
    """the master key"""
    partitions: int
    now: int
    """a time (ms) of the run: no consent of the run may begin to hold or run out around it"""
    raw: Logs = field(default_factory=dict)
    """the events, by topic and partition; what retention has taken may be missing"""
    consents: dict[int, list[Stored]] = field(default_factory=dict)
    """all that was ever written to the consent topic, compacted away or not, without markers; by partition"""
    committed: Logs = field(default_factory=dict)
    """outputs, quarantine and receipts, as a read_committed reader sees them at the end"""
    uncommitted: Logs = field(default_factory=dict)
    """the same topics, with what was aborted"""
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    """the offsets that the workers' group has committed at the end"""
    events: list[Sent] = field(default_factory=list)
    changes: list[Sent] = field(default_factory=list)
    promised: list[Promised] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """logs, metrics pages and whatever else was written, by what it is: searched for canaries"""
    canaries: Sequence[bytes] = ()
    """tokens planted in raw events; each may stand in the outputs of `identified_topics` only"""
    identified_topics: frozenset[str] = frozenset()
    power: Counter[str] = field(default_factory=Counter)
    """how often each fault really happened, as the run counted it"""
