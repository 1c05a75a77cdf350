"""Membership in the consumer group: which partition numbers are this worker's.

Rules of this file:
- The consumer in the group reads nothing: it only says which partition numbers are ours. Lanes have consumers of
  their own.
- A revocation is acknowledged after all lanes have stopped; see `streams.kafka.lanes`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from streams.errors import CelosiaError, TopicsError
from streams.kafka.client import KafkaPorts
from streams.kafka.connections import ClientSettings, Connections, quietly, translated
from streams.kafka.lane import Lane
from streams.kafka.lanes import GROWN, Lanes
from streams.kafka.port import PortError, describe
from streams.kafka.steps import Stopped, unless
from streams.kafka.work import LaneSettings, LaneState, Work
from streams.metrics import Metrics
from streams.plan import Plan

__all__ = ["Member", "MetricsWatch", "wall_clock"]

log = logging.getLogger("celosia.member")


def wall_clock() -> int:
    """Milliseconds since 1970. Only ever used in the strict direction (see `streams.consent`)."""
    return time.time_ns() // 1_000_000


_CROWDS = {
    "crowd": "celosia_crowd_events_total",
    "window": "celosia_crowd_windows_total",
    "cells": "celosia_crowd_cells_total",
}


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
            elif what in _CROWDS:
                self.metrics.add(_CROWDS[what], source, which, amount=count)
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

    def look(self, lanes: Lanes, partitions: int) -> None:
        """Measure how far behind the lanes are, and how many consents are known."""
        for lane in lanes:
            for topic, lag in lane.lag().items():
                self.metrics.set("celosia_lane_lag", lane.name, topic, value=lag)
        followed = {str(follower.partition): follower.consents for follower in lanes.followers}
        for name, consents in followed.items():
            self.metrics.set("celosia_consents_known", name, value=len(consents))
            self.metrics.set("celosia_consents_blocked", name, value=float(consents.blocked))
            self.metrics.add("celosia_consents_rejected_total", name, amount=consents.take_rejected())
        for name in {str(number) for number in range(partitions)} - followed.keys():
            self.metrics.forget("celosia_consents_known", name)
            self.metrics.forget("celosia_consents_blocked", name)

    def forget(self, lane: Lane) -> None:
        """Show no more what is another worker's now."""
        for state in LaneState:
            self.metrics.forget("celosia_lane_state", lane.name, state.value)
        for topic in lane.lag():
            self.metrics.forget("celosia_lane_position", lane.name, topic)
            self.metrics.forget("celosia_lane_lag", lane.name, topic)


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
        self.metrics = metrics or Metrics()
        self._plan = plan
        self._settings = settings
        self._partitions = partitions
        self._lane_settings = lane_settings or LaneSettings()
        self._clock = clock
        self._watch = MetricsWatch(self.metrics, clock)
        self._stopping = asyncio.Event()
        self._failed: CelosiaError | None = None
        self._lanes: Lanes | None = None

    @property
    def lanes(self) -> list[Lane]:
        """The lanes of what is assigned now."""
        return [] if self._lanes is None else list(self._lanes)

    @property
    def ready(self) -> bool:
        """Whether this worker is in the group and every lane has passed its gate."""
        return self._lanes is not None and self._lanes.ready

    @property
    def stopping(self) -> bool:
        """Whether this worker ends: it takes no partitions any more."""
        return self._stopping.is_set()

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
        connections = Connections(settings, member)
        lanes = self._lanes = Lanes(
            self._plan,
            self._partitions,
            KafkaPorts(connections, self._plan),
            clock=self._clock,
            settings=self._lane_settings,
            watch=self._watch,
        )
        try:
            with suppress(Stopped):
                await unless(self._stopping, self._connect(member, connections))
            if not self._stopping.is_set():
                member.subscribe(lanes.topics, listener=_Listener(self, member, lanes))
            while not self._stopping.is_set():
                with suppress(Stopped):
                    await unless(self._stopping, asyncio.sleep(1.0))
                await self._watch_over(member, lanes, connections)
        finally:
            self._stopping.set()
            await self.revoke(lanes)
            # The member waits for answers of a coordinator that may be gone: not for longer than others wait for us.
            await asyncio.gather(lanes.close(), connections.stop(), quietly(member.stop()))
        if self._failed is not None:
            raise self._failed

    async def _connect(self, member: AIOKafkaConsumer, connections: Connections) -> None:
        async with translated():
            await member.start()
        await connections.start()

    async def _watch_over(self, member: AIOKafkaConsumer, lanes: Lanes, connections: Connections) -> None:
        """Look after lanes that died and after the membership, and measure the lag."""
        coordinator = member._coordinator
        try:
            async with translated():
                # An error of the group waits here until somebody asks for it, and the group waits with it. Who reads
                # asks; the member never reads.
                coordinator.check_errors()
        except PortError as error:
            log.warning("the group: %s", describe(error))
        try:
            if coordinator._coordination_task.done() and not self._stopping.is_set():
                raise CelosiaError("this worker has left the group for good: this is a bug")
            lanes.look()
            if connections.partitions(self._plan.policy.topic("consents")) > self._partitions:
                raise TopicsError([GROWN % self._partitions])
        except CelosiaError as error:
            self.fail(error)
        self._watch.look(lanes, self._partitions)

    def fail(self, error: CelosiaError) -> None:
        """End with this error, unless there was one before."""
        log.error("%s", error)
        self._failed = self._failed or error
        self._stopping.set()

    async def revoke(self, lanes: Lanes) -> None:
        """Stop all lanes, and show no more what another worker will show."""
        stopped = list(lanes)
        await lanes.revoke()
        for lane in stopped:
            self._watch.forget(lane)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes rebalances on. The library logs and swallows what a listener raises: the owner is told instead."""

    def __init__(self, owner: Member, member: AIOKafkaConsumer, lanes: Lanes) -> None:
        self._owner = owner
        self._member = member
        self._lanes = lanes

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        if revoked:
            await self._owner.revoke(self._lanes)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        # Paused before anything is awaited: the member is there for the group, lanes do the reading.
        self._member.pause(*assigned)
        if self._owner.stopping:
            return  # The group has made us wait longer than there was time.
        numbers: dict[str, set[int]] = {}
        for tp in assigned:
            numbers.setdefault(tp.topic, set()).add(tp.partition)
        try:
            await self._lanes.assign(numbers)
        except CelosiaError as error:
            self._owner.fail(error)
        except Exception as error:
            self._owner.fail(CelosiaError(f"the assignment could not be taken: {type(error).__name__}"))
            raise
