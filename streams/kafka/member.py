"""Membership in the consumer group, and the lanes of what is assigned to this worker.

Rules of this file:
- The consumer in the group reads nothing: it only says which partition numbers are ours. Lanes have consumers of
  their own.
- All lanes are stopped, their producers closed, before a revocation is acknowledged.
- The same partition number of every topic of an agent must be ours; anything else (another assignor in the group,
  partitions added to one topic) stops the worker: a lane must see all that one person's consent governs.
- A follower outlives the lane: if its partition stays with this worker, the consents need not be read again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from streams.errors import CelosiaError, TopicsError
from streams.kafka.agents import AGENTS, BoundAgent
from streams.kafka.client import AiokafkaConsents, AiokafkaLane, ClientSettings, Connections, translated
from streams.kafka.follower import Follower
from streams.kafka.lane import Lane, LaneSettings, LaneState, Work
from streams.kafka.partitioner import owner_of
from streams.metrics import Metrics
from streams.plan import Plan

__all__ = ["Member", "MetricsWatch", "wall_clock"]

log = logging.getLogger("celosia.member")


def wall_clock() -> int:
    """Milliseconds since 1970. Only ever used in the strict direction (see `streams.consent`)."""
    return time.time_ns() // 1_000_000


class MetricsWatch:
    """Counts what lanes report (a `Watch`)."""

    def __init__(self, metrics: Metrics, clock: Callable[[], int]) -> None:
        self.metrics = metrics
        self._clock = clock

    def state(self, lane: str, state: LaneState) -> None:
        """See `Watch`."""
        for other in LaneState:
            self.metrics.set("celosia_lane_state", lane, other.value, value=float(other is state))
        if state in (LaneState.RESTARTING, LaneState.FENCED):
            self.metrics.add("celosia_lane_restarts_total", lane, state.value)

    def gate(self, lane: str, seconds: float) -> None:
        """See `Watch`."""
        self.metrics.observe("celosia_gate_wait_seconds", lane.rpartition("-")[0], seconds=seconds)

    def committed(self, lane: str, work: Work, seconds: float, offsets: Mapping[str, int]) -> None:
        """See `Watch`."""
        self.metrics.observe("celosia_transaction_seconds", lane.rpartition("-")[0], seconds=seconds)
        for topic, offset in offsets.items():
            self.metrics.set("celosia_lane_position", lane, topic, value=offset)
        for (what, source, which, reason), count in work.tallies.items():
            if what == "output":
                self.metrics.add("celosia_outputs_total", source, which, amount=count)
            elif what == "refused":
                self.metrics.add("celosia_refusals_total", source, which, reason, amount=count)
            else:
                self.metrics.add("celosia_events_total", source, what, reason, amount=count)

    def receipt(self, lane: str, through: int, written: list[int]) -> None:
        """See `Watch`."""
        self.metrics.add("celosia_receipts_total", lane)
        now = self._clock()
        for ms in written[-1000:]:
            # Records from before this worker started say how old the topic is, not how fast it is followed.
            if 0 <= now - ms < 3_600_000:
                self.metrics.observe("celosia_consent_to_receipt_seconds", seconds=(now - ms) / 1000)


class Member:
    """One worker's part in the group: joins it, runs the lanes it is assigned, ends cleanly.

    `run` ends when `stop` is called, and raises `CelosiaError` for what an operator must put right.
    """

    def __init__(
        self,
        plan: Plan,
        settings: ClientSettings,
        partitions: int,
        *,
        lane_settings: LaneSettings | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self.plan = plan
        self.metrics = metrics or Metrics()
        self._settings = settings
        self._partitions = partitions
        self._consents = plan.policy.topic("consents")
        self._lane_settings = lane_settings or LaneSettings()
        self._clock = clock
        self._watch = MetricsWatch(self.metrics, clock)
        self._stopping = asyncio.Event()
        self._failed: CelosiaError | None = None
        self._lanes: dict[Lane, asyncio.Task[None]] = {}
        self._followers: dict[int, tuple[Follower, asyncio.Task[None]]] = {}
        self._agents = [agent for agent in AGENTS if agent.topics(plan)]
        self._connections: Connections | None = None
        self._assigned = False

    @property
    def lanes(self) -> list[Lane]:
        """The lanes of what is assigned now."""
        return list(self._lanes)

    @property
    def ready(self) -> bool:
        """Whether this worker is in the group and every lane has passed its gate."""
        return self._assigned and all(lane.ready for lane in self._lanes)

    def stop(self) -> None:
        """Ask the worker to finish and end."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until stopped.

        Raises:
            CelosiaError: the topics no longer fit, or the assignment is not one that lanes can work with.
            PortError: the broker could not be reached at start.
        """
        settings = self._settings
        member = AIOKafkaConsumer(
            **settings.common("member"),
            group_id=settings.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=settings.session_timeout,
            heartbeat_interval_ms=max(100, settings.session_timeout // 5),
            rebalance_timeout_ms=60_000,
            # The member never reads; whether lanes are alive is their own business.
            max_poll_interval_ms=(1 << 31) - 1,
        )
        connections = self._connections = Connections(settings, member)
        try:
            async with translated():
                await member.start()
            await connections.start()
            topics = sorted({topic for agent in self._agents for topic in agent.topics(self.plan)})
            member.subscribe(topics, listener=_Listener(self, member))
            while not self._stopping.is_set():
                await self._watch_over()
        finally:
            self._assigned = False
            await self._stop_lanes()
            await self._stop_followers(set())
            await connections.stop()
            await member.stop()
        if self._failed is not None:
            raise self._failed

    async def _watch_over(self) -> None:
        """Wait a second or for the end, look after lanes that died, and measure the lag."""
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([stop], timeout=1.0)
        finally:
            stop.cancel()
        if self._connections is not None and self._connections.partitions(self._consents) > self._partitions:
            self._fail(TopicsError([_GROWN % self._partitions]))
        for lane, task in list(self._lanes.items()):
            if task.done() and not task.cancelled() and task.exception() is not None:
                # A lane translates every failure of the broker; whatever else it raises is a bug. Stop, loudly.
                self._fail(CelosiaError(f"lane {lane.name} ended by {type(task.exception()).__name__}: this is a bug"))
        for partition, (follower, task) in self._followers.items():
            if task.done() and not task.cancelled():
                self._fail(CelosiaError(f"the follower of consents[{partition}] ended: this is a bug"))
            name = str(partition)
            self.metrics.set("celosia_consents_known", name, value=len(follower.consents))
            self.metrics.set("celosia_consents_blocked", name, value=float(follower.consents.blocked))
            self.metrics.add("celosia_consents_rejected_total", name, amount=follower.consents.take_rejected())
        for lane in self._lanes:
            for topic, lag in lane.lag().items():
                self.metrics.set("celosia_lane_lag", lane.name, topic, value=lag)

    def _fail(self, error: CelosiaError) -> None:
        log.error("%s", error)
        self._failed = self._failed or error
        self._stopping.set()

    async def assigned(self, partitions: set[TopicPartition]) -> None:
        """Start a lane for each partition number that is ours, on followers that we have or now start."""
        await self._stop_lanes()
        numbers: dict[str, set[int]] = {}
        for tp in partitions:
            numbers.setdefault(tp.topic, set()).add(tp.partition)
        work: list[tuple[BoundAgent, int]] = []
        for agent in self._agents:
            sets = {frozenset(numbers.get(topic, ())) for topic in agent.topics(self.plan)}
            if len(sets) != 1:
                self._fail(TopicsError([_UNEQUAL]))
                return
            work += [(agent, number) for number in sorted(next(iter(sets)))]
        gated = {number for agent, number in work if agent.gated}
        if gated and max(gated) >= self._partitions:
            self._fail(TopicsError([_GROWN % self._partitions]))
            return
        await self._stop_followers(gated)
        if self._connections is None:
            return
        for agent, number in work:
            follower = self._follower(number) if agent.gated else None
            port = AiokafkaLane(self._connections, agent.name, number, agent.topics(self.plan), self._consents)
            lane = Lane(
                agent.name,
                number,
                agent.function,
                port,
                follower,
                plan=self.plan,
                partitions=self._partitions,
                clock=self._clock,
                settings=self._lane_settings,
                watch=self._watch,
            )
            self._lanes[lane] = asyncio.ensure_future(lane.run())
        self._assigned = True
        log.info("assigned: %s", ", ".join(lane.name for lane in self._lanes) or "nothing")

    async def revoked(self) -> None:
        """Finish or abort all lanes before the group goes on without us."""
        self._assigned = False
        await self._stop_lanes()

    def _follower(self, partition: int) -> Follower:
        if partition not in self._followers:
            port = AiokafkaConsents(self._settings, self._consents, partition)
            follower = Follower(partition, port, owner_of(partition, self._partitions))
            self._followers[partition] = follower, asyncio.ensure_future(follower.run())
        return self._followers[partition][0]

    async def _stop_lanes(self) -> None:
        lanes, self._lanes = self._lanes, {}
        for lane in lanes:
            lane.stop()
        if lanes:
            _, late = await asyncio.wait(lanes.values(), timeout=10.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*lanes.values(), return_exceptions=True)
        for lane in lanes:
            for state in LaneState:
                self.metrics.forget("celosia_lane_state", lane.name, state.value)
            for topic in lane.lag():
                self.metrics.forget("celosia_lane_position", lane.name, topic)
                self.metrics.forget("celosia_lane_lag", lane.name, topic)

    async def _stop_followers(self, keep: set[int]) -> None:
        gone = [self._followers.pop(number) for number in list(self._followers) if number not in keep]
        for follower, task in gone:
            task.cancel()
            self.metrics.forget("celosia_consents_known", str(follower.partition))
            self.metrics.forget("celosia_consents_blocked", str(follower.partition))
        await asyncio.gather(*(task for _, task in gone), return_exceptions=True)


_UNEQUAL = (
    "one worker was assigned different partition numbers of the sources: their partition counts differ, or the group "
    "has a member with another assignor"
)
_GROWN = (
    "there are more partitions now than the %d that this worker was started with, so keys have moved: stop all workers "
    "and run celosia topics"
)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes rebalances on. The library logs and swallows what a listener raises, so nothing is raised here."""

    def __init__(self, owner: Member, member: AIOKafkaConsumer) -> None:
        self._owner = owner
        self._member = member

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        if revoked:
            await self._owner.revoked()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        # Paused before anything is awaited: the member is there for the group, lanes do the reading.
        self._member.pause(*assigned)
        try:
            await self._owner.assigned(assigned)
        except Exception as error:
            self._owner._fail(CelosiaError(f"the assignment could not be taken: {type(error).__name__}"))
            raise
