"""Withdraw consent, and return when it is in force: the fence on withdrawal.

    1 read    everything that was acknowledged about the partition's people, up to a barrier
    2 write   a record of a higher version, acknowledged by all; read it back: it must be what is in force. Where the
              newest record cannot be read, no version is known: one that denies without a version
    3 fence   start a producer with the transactional id of each lane that asks for consents: what these lanes had in
              flight is aborted, or was committed before. They take their partition back, read their batch again, and
              meet the withdrawal at the gate

So nothing that was computed under the older consent becomes visible after `withdraw` has returned, whether or not a
worker runs. It rests on transactions: workers with at-least-once cannot be fenced.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from streams.consent import Consent, write_consent, write_denial
from streams.errors import CelosiaError
from streams.kafka.agents import AGENTS
from streams.kafka.follower import Follower
from streams.kafka.lanes import Ports
from streams.kafka.partitioner import owner_of, partition_of
from streams.kafka.port import LanePort, PortError
from streams.plan import Plan

__all__ = ["WithdrawalPorts", "Withdrawn", "fence", "withdraw"]

_ATTEMPTS = 5


class WithdrawalPorts(Ports, Protocol):
    """Where a withdrawal reads and writes."""

    async def write_consent(self, partition: int, key: bytes, value: bytes) -> int:
        """Write a record to the consent topic, acknowledged by all, outside of transactions; returns its offset."""


class Withdrawn(NamedTuple):
    """A withdrawal that is in force: where its record lies, and its version, None if it denies without one."""

    partition: int
    offset: int
    version: int | None


async def fence(lanes: Sequence[LanePort]) -> None:
    """Fence lanes. When this returns, what they had in flight is aborted, or was committed before.

    Raises:
        PortError: they may be fenced or not.
    """
    for lane in lanes:
        try:
            await lane.init_transactions()
        finally:
            await lane.close_producer(abort=False)


async def withdraw(
    plan: Plan,
    partitions: int,
    ports: WithdrawalPorts,
    subjects: Iterable[str],
    purposes: Collection[str] | None = None,
    *,
    patience: float = 60.0,
) -> AsyncIterator[Withdrawn]:
    """Withdraw these purposes (None: all) for each subject; yields each withdrawal once it is in force.

    `partitions` is the number that the consent topic has. No read or write may take longer than `patience` seconds.

    Raises:
        PortError: the broker did not do it or did not say so. What was yielded before is in force.
        CelosiaError: somebody else goes on writing consents of the same person.
    """
    people: dict[int, list[str]] = {}
    for subject in dict.fromkeys(subjects):
        people.setdefault(partition_of(subject.encode(), partitions), []).append(subject)
    for number, some in sorted(people.items()):
        lanes = [ports.lane(agent, number) for agent in AGENTS if agent.gated and agent.topics(plan)]
        follower = Follower(number, ports.consents(number), owner_of(number, partitions))
        following = asyncio.ensure_future(follower.run())
        try:
            async with _within(patience):
                # A barrier and no end offset: a version that was not seen would outvote the withdrawal.
                await follower.reach((await lanes[0].write_barrier()).offset)
            done = []
            for subject in some:
                async with _within(patience):
                    done.append(await _write(follower, ports, subject, purposes))
            async with _within(patience):
                await fence(lanes)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            for lane in lanes:
                await lane.close()
        for withdrawn in done:
            yield withdrawn


async def _write(
    follower: Follower, ports: WithdrawalPorts, subject: str, purposes: Collection[str] | None
) -> Withdrawn:
    key = subject.encode()
    for _ in range(_ATTEMPTS):
        known = follower.consents.of(key) or Consent(0, {})
        left = {} if purposes is None else {name: it for name, it in known.grants.items() if name not in purposes}
        # INVARIANT (T1): compaction may have left nothing but a record that nobody can read, and with it no version.
        # A follower may know a higher one than any that is written here; what denies without a version denies there.
        record = write_consent(subject, Consent(known.version + 1, left)) if known.readable else write_denial(subject)
        offset = await ports.write_consent(follower.partition, key, record)
        await follower.reach(offset + 1)
        now = follower.consents.of(key)
        if now is not None and not any(purposes is None or name in purposes for name in now.grants):
            return Withdrawn(follower.partition, offset, now.version if now.readable else None)
    raise CelosiaError("somebody else goes on writing consents of this person; stop that, then withdraw again")


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise PortError("a step took too long") from error
