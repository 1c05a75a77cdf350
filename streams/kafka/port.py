"""What a lane needs of a broker, and nothing more. Two implementations: aiokafka, and a broker in memory for tests.

Rules of this file:
- A lane port belongs to one lane: one partition number, the same of every topic that the lane reads.
- `Fenced` means that another owner has taken over; every other failure is a `PortError`, after which the lane starts
  again from what is committed. Nothing is ever retried on top of an unknown result.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from streams.event import Record
from streams.outcome import Output

__all__ = [
    "Batch",
    "ConsentBatch",
    "ConsentPort",
    "Fenced",
    "LanePort",
    "Mark",
    "OffsetsGone",
    "PortError",
    "Sends",
    "Unreadable",
    "describe",
]


class PortError(Exception):
    """The broker did not do what was asked, or did not say whether it has. The text names no payload."""


class Fenced(PortError):
    """A newer producer with the same transactional id exists: this lane has another owner."""


class OffsetsGone(PortError):
    """The position of a topic is outside of what the broker has: retention overtook the lag, or the topic is new."""

    def __init__(self, topic: str, position: int) -> None:
        self.topic = topic
        self.position = position
        super().__init__(f"{topic}: offset {position} is not there any more")


class Unreadable(OffsetsGone):
    """The batch of records at the position cannot be read: checksum, magic or compression. `after` is behind it."""

    def __init__(self, topic: str, position: int, after: int) -> None:
        super().__init__(topic, position)
        self.after = after


class Mark(NamedTuple):
    """An offset of the consent partition, and the id of the topic that it belongs to.

    A topic that was deleted and made anew has the same name, offsets that look familiar, and another id. None: the
    broker has no ids.
    """

    offset: int
    topic_id: bytes | None


class Batch(NamedTuple):
    """Records of one topic (the lane's partition of it), in order, and the offset at which reading goes on."""

    topic: str
    records: Sequence[Record]
    next_offset: int


class ConsentBatch(NamedTuple):
    """Records of the consent partition and the position after them: the offset of the next record, whatever it is."""

    records: Sequence[Record]
    position: int


Sends = Mapping[tuple[str, int], Sequence[Output]]
"""What to write: outputs by topic and partition."""


class ConsentPort(Protocol):
    """Reads one partition of the consent topic, read_committed, without a group."""

    async def rewind(self) -> Mark:
        """Go to the first offset that the broker has, and return it."""

    async def read_consents(self) -> ConsentBatch:
        """Wait for records, or for the position to move, but not for ever.

        Raises:
            OffsetsGone: the position is not there any more; call `rewind`.
            PortError: the broker cannot be reached; call again.
        """

    async def close(self) -> None:
        """Let go of all connections. Never raises."""


class LanePort(Protocol):
    """What one lane needs. All coroutines raise `PortError` on failure and `Fenced` where it says so."""

    async def confirm(self) -> bool:
        """Ask the group coordinator whether this worker still is a member and the lane still its own."""

    async def init_transactions(self) -> None:
        """Start a producer with the lane's static transactional id: fences every older one and ends its transaction."""

    async def committed(self) -> dict[str, int | None]:
        """Return the committed offset of each topic, None where nothing was committed yet.

        After `send_offsets` it is asked of the broker that has taken them.
        """

    async def seek(self, offsets: Mapping[str, int | None]) -> None:
        """Read on from these offsets; None: from the first one that the broker has."""

    async def first_offset(self, topic: str) -> int:
        """Return the first offset that the broker has of a topic."""

    async def read_batch(self) -> list[Batch]:
        """Wait for records, read_committed, but not for ever: an empty list means that there were none.

        Raises:
            OffsetsGone: the position is not there any more.
            Unreadable: what is there cannot be read.
        """

    def read_state(self, through: int) -> AsyncIterator[Sequence[Record]]:
        """Yield the records of the lane's state from the first to the end, which is not below the offset `through`.

        Read_committed, and asked after the fence: nobody writes there meanwhile. Raises PortError.
        """

    def lag(self) -> dict[str, int]:
        """Return, by topic, how many records lie between the committed offset and the end that was last seen."""

    async def end_offset(self) -> Mark:
        """Ask the consent partition's leader for its end offset, read_uncommitted: asked at each call, never cached."""

    async def write_barrier(self) -> Mark:
        """Write a record to the consent partition, acknowledged by all, outside of transactions; the offset after it.

        The strict gate's question. An end offset may come from a leader that is cut off from its cluster and does not
        know it; nothing is acknowledged there.
        """

    async def begin(self) -> None:
        """Begin a transaction."""

    async def send(self, sends: Sends) -> Mapping[tuple[str, int], int]:
        """Write all records and wait until every one is acknowledged; return the offsets after the last ones.

        Raises:
            Fenced: another owner has taken over.
        """

    async def send_offsets(self, offsets: Mapping[str, int]) -> None:
        """Add the offsets to the transaction. Raises Fenced as `send`."""

    async def commit(self) -> None:
        """Commit. A failure or time-out says nothing about the result: only `committed()` after a new start does."""

    async def close_producer(self, abort: bool) -> None:
        """Let go of the producer, after trying to abort what is open. Never raises."""

    async def close(self) -> None:
        """Let go of everything. Never raises."""


def describe(error: BaseException) -> str:
    """Return an error for a log line: its type and those of its causes, never its text, which may quote a record."""
    names: list[str] = []
    current: Any = error
    while current is not None and len(names) < 4:
        names.append(type(current).__name__)
        current = current.__cause__
    return " from ".join(names)
