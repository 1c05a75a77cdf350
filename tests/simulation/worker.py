"""A worker of the simulation: a place (its name, its links, its clock), and the process that is there now.

The lanes, followers and agents in it are the real ones. What is played here is the membership in the group, as
`streams.kafka.member` and aiokafka play it: heartbeats, joining again, revocation before it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from streams.errors import CelosiaError
from streams.kafka.lanes import Lanes
from streams.kafka.work import LaneSettings, LaneState, Work
from tests.simulation.group import Assignment
from tests.simulation.loop import Process
from tests.simulation.material import Shop
from tests.simulation.network import Code
from tests.simulation.ports import Broker, Membership, SimPorts

__all__ = ["Counting", "Trap", "Worker"]

HEARTBEAT = 0.2
AGAIN = (Code.NOT_LEADER, Code.LOADING, Code.REFUSED, Code.TIMED_OUT)


class Counting:
    """Counts what lanes report (a `Watch`)."""

    def __init__(self, power: "Counter[str]") -> None:
        self.power = power

    def state(self, lane: str, state: LaneState) -> None:
        """See `Watch`."""
        if state in (LaneState.PARKED, LaneState.FENCED, LaneState.RESTARTING):
            self.power[f"lanes {state.value}"] += 1

    def gate(self, lane: str, seconds: float) -> None:
        """See `Watch`."""
        self.power["gates passed"] += 1

    def committed(self, lane: str, work: Work, seconds: float, offsets: Mapping[str, int]) -> None:
        """See `Watch`."""
        self.power["transactions"] += 1

    def receipt(self, lane: str, through: int, written: list[int]) -> None:
        """See `Watch`."""
        self.power["receipts"] += 1


@dataclass
class Trap:
    """What happens to a process when one of its lanes takes a step for the `count`th time."""

    step: str
    count: int
    spring: Callable[["Worker"], None]


class Worker:
    """One place for a worker."""

    def __init__(self, broker: Broker, shop: Shop, index: int, partitions: int, settings: LaneSettings) -> None:
        self.name = f"w{index}"
        self.broker = broker
        self.process = Process(broker.cluster.clock, self.name)
        self.process.killed = True
        self.ports_type = SimPorts
        self.traps: list[Trap] = []
        self.skew = 0
        """by how much its clock is wrong, in milliseconds"""
        self.follower_lag = 0.0
        self.retired = False
        """nothing is started here any more"""
        self.bugs: list[str] = []
        self.trace: Callable[[str, str], None] | None = None
        self.most = 1_000
        """how many records a reader of its lanes takes at once"""
        self._shop = shop
        self._partitions = partitions
        self._settings = settings
        self._starts = 0
        self._ports: SimPorts | None = None
        self._stopping: asyncio.Event | None = None
        self._tick: asyncio.Event | None = None

    @property
    def up(self) -> bool:
        """Whether there is a process."""
        return not self.process.killed

    def start(self) -> None:
        """Start a process."""
        if not self.up and not self.retired:
            self._starts += 1
            self.process = Process(self.broker.cluster.clock, self.name)
            self._stopping = self._tick = None
            self.process.start(self._main())

    def stop(self) -> None:
        """SIGTERM."""
        if self._stopping is not None:
            self.process.enter(self._order)

    def _order(self) -> None:
        if self._stopping is not None and self._tick is not None:
            self._stopping.set()
            self._tick.set()

    def lag_follower(self, seconds: float) -> None:
        """Let the followers hear of consents so much later."""
        self.follower_lag = seconds
        if self._ports is not None:
            self._ports.follower_lag = seconds
            for reader in self._ports.consent_readers:
                reader.lag = seconds

    def _step(self, who: str, step: str) -> None:
        if self.trace is not None and not self.process.killed and step != "read_consents":
            self.trace(f"{self.name} {who}", step)
        for trap in self.traps:
            if trap.step == step:
                trap.count -= 1
                if trap.count == 0:
                    self.traps.remove(trap)
                    trap.spring(self)
                    return

    def _clock(self) -> int:
        return self.broker.clock_ms() + self.skew

    async def _main(self) -> None:
        self._stopping, self._tick = asyncio.Event(), asyncio.Event()
        ports = self._ports = self.ports_type(
            self.broker, self.process, self._shop.plan,
            Membership(f"{self.name}-{self._starts}"), self._step, self.follower_lag, self.most,
        )  # fmt: skip
        watch = Counting(self.broker.cluster.power)
        lanes = Lanes(self._shop.plan, self._partitions, ports, clock=self._clock, settings=self._settings, watch=watch)
        process = self.process
        try:
            while not self._stopping.is_set():
                await self._join(ports, lanes)
        except CelosiaError as error:
            self.bugs.append(f"{self.name}: {error}")
        finally:
            ports.membership.partitions = ()
            if not process.killed:
                await lanes.close()
                group = self.broker.group
                await ports.group.at_leader(group.partition, group.leave, ports.membership.member, again=AGAIN[:2])
                process.kill()

    async def _join(self, ports: SimPorts, lanes: Lanes) -> None:
        """Be a member for one generation."""
        group, membership = self.broker.group, ports.membership
        joining = asyncio.ensure_future(
            ports.group.at_leader(
                group.partition, group.join, membership.member, again=AGAIN, patience=group.patience + 2.0
            )
        )
        while not joining.done():
            await self._wait(HEARTBEAT, joining)
            if self._ordered:
                joining.cancel()
                return
        assignment = joining.result()
        if not isinstance(assignment, Assignment):
            raise CelosiaError(f"joining was answered by {assignment}")
        membership.generation, membership.partitions = assignment
        if self.trace is not None:
            self.trace(self.name, f"generation {assignment.generation} partitions {assignment.partitions}")
        await lanes.assign(dict.fromkeys(lanes.topics, assignment.partitions))
        while not self._ordered:
            lanes.look()
            await self._wait(HEARTBEAT)
            if not await self._beat(ports):
                break
        membership.partitions = ()
        revoking = asyncio.ensure_future(lanes.revoke())
        while not revoking.done():
            # The heart goes on beating while lanes finish.
            await self._wait(HEARTBEAT, revoking)
            if not revoking.done():
                await self._beat(ports)

    @property
    def _ordered(self) -> bool:
        return self._stopping is not None and self._stopping.is_set()

    async def _beat(self, ports: SimPorts) -> bool:
        """Send a heartbeat; False: join again."""
        group, membership = self.broker.group, ports.membership
        answer = await ports.group.at_leader(
            group.partition, group.heartbeat, membership.member, membership.generation, again=()
        )
        if answer is Code.UNKNOWN_MEMBER:
            self._starts += 1
            membership.member = f"{self.name}-{self._starts}"
        return answer not in (Code.UNKNOWN_MEMBER, Code.REBALANCE)

    async def _wait(self, seconds: float, task: "asyncio.Future[None] | None" = None) -> None:
        """Wait for a time, for a task, or for the order to end."""
        tick = self._tick
        if tick is None:
            return
        if not self._ordered:
            tick.clear()
        timer = self.process.call_later(seconds, tick.set)
        if task is not None:
            task.add_done_callback(lambda _done: tick.set())
        await tick.wait()
        timer.cancel()
