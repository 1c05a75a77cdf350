"""What happened in a run, as those outside of celosia saw it: what a simulation and a real run write down, and what
`tests.checker` reads.

- Times are seconds of one clock, the same for everything in a history: virtual in a simulation, monotonic otherwise.
  Of two things at the same time nobody knows which came first: a simulation that wants its checker sharp lets its
  clock move a little with every call.
- A history holds what clients did and what the brokers hold at the end, nothing of what a worker says of itself.
- All records of a log are in the order of their offsets, and no offset is there twice.
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
    back something that was allowed. A consent that was sent to the wrong partition on purpose (A3 broken) does not
    belong in `History.changes`: the promise does not hold for it.
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
    """a time (ms) of the run, not before the timestamp of any event; no consent may run out while the run lasts. The
    checker is fastest where it is the same for many histories of one policy"""
    raw: Logs = field(default_factory=dict)
    """the events, by topic and partition; what retention has taken may be missing"""
    consents: dict[int, list[Stored]] = field(default_factory=dict)
    """all that was ever written to the consent topic, compacted away or not, without markers and without what was
    aborted; by partition. Where the topic was made anew: see `remade`"""
    committed: Logs = field(default_factory=dict)
    """outputs, quarantine, receipts and re-keyed events, as a read_committed reader sees them at the end"""
    uncommitted: Logs = field(default_factory=dict)
    """the same topics, with what was aborted; read after `committed`"""
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    """the offsets that the workers' group has committed at the end"""
    events: list[Sent] = field(default_factory=list)
    changes: list[Sent] = field(default_factory=list)
    promised: list[Promised] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """logs, metrics pages and whatever else was written, by what it is: searched for canaries"""
    canaries: Sequence[bytes] = ()
    """tokens planted in raw events: values, keys, headers. All begin with the same six bytes or more, which stand
    nowhere else in the run, in capitals or not: this beginning is what is looked for. They may stand in keys and values
    of `identified_topics` only, and there only where the model says so"""
    hidden: Sequence[bytes] = ()
    """tokens planted where the policy names nothing (unnamed fields, headers), with a beginning of their own: these
    stand in no output at all, whatever the model says"""
    identified_topics: frozenset[str] = frozenset()
    power: Counter[str] = field(default_factory=Counter)
    """how often each fault really happened, as the run counted it"""
    starts: dict[tuple[str, int], int] = field(default_factory=dict)
    """by raw topic and partition: the first offset that retention has left; default: the first of `raw`. Records below
    it may be listed or not, and what became of those that are not is not looked at"""
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    """by raw or re-keyed topic and partition: the end of the log; default: behind its last record. Needed where a log
    ends with control records"""
    remade: dict[int, list[int]] = field(default_factory=dict)
    """by partition: where the consent topic was deleted and made anew, or truncated. Offsets in `consents`, `changes`
    and `promised` then count on: a record of the new topic has its own offset plus a base, which stands here and is the
    end of all that was before plus one. From it on nothing is known but what the new topic says; what is left of a
    truncated one is listed once more, as records of the new one. Receipts are as the brokers have them"""
