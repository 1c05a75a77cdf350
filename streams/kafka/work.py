"""What a lane and its agent say to each other, and what a lane tells those who watch it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

import msgspec

from streams.consent import Consents
from streams.kafka.port import Batch
from streams.outcome import Output
from streams.plan import Plan

__all__ = ["Agent", "BoundAgent", "Gate", "LaneSettings", "LaneState", "Receipt", "State", "View", "Watch", "Work"]

Gate = Literal["fast", "strict"]


class LaneState(StrEnum):
    """What a lane is doing, for operators."""

    STARTING = "starting"
    GATE = "first gate"
    RUNNING = "running"
    PARKED = "parked at the gate"
    RESTARTING = "restarting"
    FENCED = "fenced"
    STOPPED = "stopped"


class Receipt(msgspec.Struct):
    """The value of a record on the receipt topic; its key is the lane's partition.

    Once it is visible (read_committed), every consent change of `topic`[`partition`] below the offset `through` is in
    force: no output computed without it becomes visible after. It names nobody: who wrote a consent knows its offset.
    """

    topic: str
    partition: int
    through: int
    policy: str


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """Seconds, and which gate. No promise rests on a time: they only bound how long a failure stays unnoticed."""

    patience: float = 10.0
    """after this long at the gate the lane says that it is parked"""
    deadline: float = 30.0
    """after this long a step of a transaction counts as failed"""
    pause: float = 0.1
    """wait before the first restart; doubles up to 5 s"""
    gate: Gate = "fast"
    """`fast` asks the consent partition's leader for its end; `strict` writes a barrier and reads up to it"""


@dataclass(slots=True)
class Work:
    """What one transaction shall hold, from one batch: outputs by topic and partition, and what to count."""

    sends: dict[tuple[str, int], list[Output]]
    tallies: dict[tuple[str, ...], int]


class Watch(Protocol):
    """What a lane tells those who watch it. Never a payload."""

    def state(self, lane: str, state: LaneState) -> None:
        """The lane's state has changed."""

    def gate(self, lane: str, seconds: float) -> None:
        """The gate was passed after so long."""

    def committed(self, lane: str, work: Work, seconds: float, offsets: Mapping[str, int]) -> None:
        """A transaction was committed; it took so long, from begin to the commit's answer."""

    def receipt(self, lane: str, through: int, written: list[int]) -> None:
        """A receipt was committed for consent records with these Kafka timestamps (ms)."""


@dataclass(frozen=True, slots=True)
class View:
    """What an agent sees besides its batch. `partitions` is how many partitions consents and raw topics have."""

    plan: Plan
    partition: int
    partitions: int
    consents: Consents
    now: int
    state: Any = None
    """the agent's own (see `State`)"""
    lag: Mapping[str, int] = field(default_factory=dict)
    """records that are waiting, by topic, as far as is known"""


Agent = Callable[[Batch, View], Work]
"""Turns a batch of a lane's partition into work. No await, no I/O."""


class State(Protocol):
    """What an agent knows from earlier batches, kept in a compacted topic and written in the lane's transactions."""

    def restore(self, records: Sequence[tuple[bytes, bytes]]) -> Iterator[None]:
        """Take the newest value of each key of the lane's partition, in order; yield now and then, to let others work.

        Raises:
            ValueError: they cannot be read.
        """


@dataclass(frozen=True, slots=True)
class BoundAgent:
    """An agent with the topics it reads under a plan, and whether consents govern it (then each batch is gated)."""

    name: str
    function: Agent
    topics: Callable[[Plan], list[str]]
    gated: bool
    state_topic: Callable[[Plan], str | None] = lambda _plan: None
    """where its state is kept; None: it has none under this plan"""
    state: Callable[[Plan, int, int], State] | None = None
    """makes its state, empty, for a partition of so many"""
    idle: Callable[[View], Work] | None = None
    """what to do now and then, while nothing comes"""
