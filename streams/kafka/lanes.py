"""The lanes and followers of the partition numbers that are this worker's.

Rules of this file:
- The same partition number of every topic of an agent must be ours; anything else (another assignor in the group,
  partitions added to one topic) is refused: a lane must see all that one person's consent governs.
- All lanes have stopped, their producers closed, when `revoke` returns.
- A follower outlives the lane: if its partition stays with this worker, the consents need not be read again.
- Neither faust nor aiokafka here: where lanes read and write is given by `Ports`.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol

from streams.errors import CelosiaError, TopicsError
from streams.kafka.agents import AGENTS
from streams.kafka.follower import Follower
from streams.kafka.lane import Lane
from streams.kafka.partitioner import owner_of
from streams.kafka.port import ConsentPort, LanePort
from streams.kafka.work import BoundAgent, LaneSettings, Watch
from streams.plan import Plan

__all__ = ["GROWN", "Lanes", "Ports"]

log = logging.getLogger("celosia.lanes")

_UNEQUAL = (
    "one worker was assigned different partition numbers of the sources: their partition counts differ, or the group "
    "has a member with another assignor"
)
GROWN = (
    "there are more partitions now than the %d that this worker was started with, so keys have moved: stop all workers "
    "and run celosia topics"
)
"""What to say when a topic has got more partitions; the number is how many it had."""


class Ports(Protocol):
    """Where the lanes of one worker read and write."""

    def lane(self, agent: BoundAgent, partition: int) -> LanePort:
        """Return the port of one lane."""

    def consents(self, partition: int) -> ConsentPort:
        """Return the port of one follower."""


class Lanes:
    """What runs in one worker: a lane per agent and partition number, a follower per partition of consents."""

    def __init__(
        self,
        plan: Plan,
        partitions: int,
        ports: Ports,
        *,
        clock: Callable[[], int],
        settings: LaneSettings,
        watch: Watch,
    ) -> None:
        self.agents = [agent for agent in AGENTS if agent.topics(plan)]
        """those that have something to read under this plan"""
        self._plan = plan
        self._partitions = partitions
        self._ports = ports
        self._clock = clock
        self._settings = settings
        self._watch = watch
        self._lanes: dict[Lane, asyncio.Task[None]] = {}
        self._followers: dict[int, tuple[Follower, asyncio.Task[None]]] = {}
        self._assigned = False

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes))

    @property
    def followers(self) -> list[Follower]:
        """The followers that run."""
        return [follower for follower, _ in self._followers.values()]

    @property
    def topics(self) -> list[str]:
        """All topics that an agent reads."""
        return sorted({topic for agent in self.agents for topic in agent.topics(self._plan)})

    @property
    def ready(self) -> bool:
        """Whether partitions were assigned and every lane has passed its gate."""
        return self._assigned and all(lane.ready for lane in self._lanes)

    async def assign(self, numbers: Mapping[str, Collection[int]]) -> None:
        """Start a lane for each partition number that is ours, on followers that we have or now start.

        `numbers` are the partitions by topic.

        Raises:
            TopicsError: lanes cannot work with this assignment.
        """
        await self.revoke()
        work: list[tuple[BoundAgent, int]] = []
        for agent in self.agents:
            sets = {frozenset(numbers.get(topic, ())) for topic in agent.topics(self._plan)}
            if len(sets) != 1:
                raise TopicsError([_UNEQUAL])
            work += [(agent, number) for number in sorted(next(iter(sets)))]
        gated = {number for agent, number in work if agent.gated}
        if gated and max(gated) >= self._partitions:
            raise TopicsError([GROWN % self._partitions])
        await self._stop_followers(keep=gated)
        for agent, number in work:
            lane = Lane(
                agent,
                number,
                self._ports.lane(agent, number),
                self._follower(number) if agent.gated else None,
                plan=self._plan,
                partitions=self._partitions,
                clock=self._clock,
                settings=self._settings,
                watch=self._watch,
            )
            self._lanes[lane] = asyncio.ensure_future(lane.run())
        self._assigned = True
        log.info("assigned: %s", ", ".join(lane.name for lane in self._lanes) or "nothing")

    async def revoke(self) -> None:
        """Finish or abort all lanes, and close their producers, before the group goes on without us."""
        self._assigned = False
        lanes, self._lanes = self._lanes, {}
        for lane in lanes:
            lane.stop()
        if lanes:
            _, late = await asyncio.wait(lanes.values(), timeout=10.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*lanes.values(), return_exceptions=True)

    async def close(self) -> None:
        """Stop everything."""
        await self.revoke()
        await self._stop_followers(keep=set())

    def look(self) -> None:
        """Look after those who died.

        Raises:
            CelosiaError: a lane or a follower has ended by itself.
        """
        for lane, task in self._lanes.items():
            if task.done() and not task.cancelled() and task.exception() is not None:
                # A lane translates every failure of the broker; whatever else it raises is a bug. Stop, loudly.
                raise CelosiaError(f"lane {lane.name} ended by {type(task.exception()).__name__}: this is a bug")
        for partition, (_, task) in self._followers.items():
            if task.done() and not task.cancelled():
                raise CelosiaError(f"the follower of consents[{partition}] ended: this is a bug")

    def _follower(self, partition: int) -> Follower:
        if partition not in self._followers:
            follower = Follower(partition, self._ports.consents(partition), owner_of(partition, self._partitions))
            self._followers[partition] = follower, asyncio.ensure_future(follower.run())
        return self._followers[partition][0]

    async def _stop_followers(self, keep: set[int]) -> None:
        gone = [self._followers.pop(number) for number in list(self._followers) if number not in keep]
        for _, task in gone:
            task.cancel()
        await asyncio.gather(*(task for _, task in gone), return_exceptions=True)
