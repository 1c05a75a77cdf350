"""Messages between processes and nodes: how long they take, and when they do not arrive.

Rules of this file:
- Messages on one connection keep their order; a client that has waited in vain opens a new one, and what it had sent
  on the old one may still arrive.
- A link has two directions, each with a fault of its own: cut (what is sent is lost, or arrives when the link is
  whole again, as TCP does), or slow.
- A node that is down refuses; a node that is stopped takes what is sent when it is continued.
"""

from asyncio import Future
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Any, Protocol

from tests.simulation.loop import Clock, Process

__all__ = ["Code", "Connection", "Host", "LinkFault", "Network", "Request"]


class Code(StrEnum):
    """What a broker answers where there is no result, and what a client sees where there is no answer."""

    TIMED_OUT = "timed out"
    REFUSED = "refused"
    NOT_LEADER = "not leader"
    LOADING = "loading"
    NOT_ENOUGH_REPLICAS = "not enough replicas"
    OFFSET_NOT_AVAILABLE = "offset not available"
    OUT_OF_RANGE = "out of range"
    CONCURRENT = "concurrent transactions"
    FENCED = "fenced"
    INVALID_STATE = "invalid transaction state"
    OUT_OF_ORDER = "out of order sequence"
    REJECTED = "rejected"
    UNKNOWN_MEMBER = "unknown member"
    REBALANCE = "rebalance in progress"


class Host(Protocol):
    """What a message is sent to: a node of the cluster."""

    name: str

    def receive(self, request: "Request") -> None:
        """Take a request."""


class Connection:
    """What keeps messages between a client and a node in order."""

    __slots__ = ("back", "there")

    def __init__(self) -> None:
        self.there = 0.0
        self.back = 0.0


@dataclass(slots=True)
class LinkFault:
    """What is wrong with one direction of a link. `delay` is in seconds."""

    cut: bool = False
    holds: bool = False
    """what is sent while it is cut arrives when it is whole again"""
    delay: float = 0.0
    held: list[tuple[Callable[..., object], Any]] = field(default_factory=list)


class Network:
    """All links."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self.clock = clock
        self.random = random.random
        self.base = 0.0002
        self.spread = 0.001
        self.faults: dict[tuple[str, str], LinkFault] = {}
        self.lost = 0

    def latency(self) -> float:
        """How long a message takes: mostly short, seldom ten times that."""
        chance = self.random()
        return self.base + self.spread * (chance if chance < 0.97 else 10 * chance)

    def whole(self, one: str, other: str) -> bool:
        """Tell whether messages between two can pass in both directions."""
        if not self.faults:
            return True
        there, back = self.faults.get((one, other)), self.faults.get((other, one))
        return not (there and there.cut) and not (back and back.cut)

    def carry(self, source: str, target: str, earliest: float, arrive: Callable[..., object], *args: Any) -> float:
        """Bring one message there, not before a time; returns when it arrives."""
        chance = self.random()
        when = self.clock.now + self.base + self.spread * (chance if chance < 0.97 else 10 * chance)
        if self.faults:
            fault = self.faults.get((source, target))
            if fault is not None:
                if fault.cut:
                    if fault.holds:
                        fault.held.append((arrive, args))
                    else:
                        self.lost += 1
                    return earliest
                when += fault.delay
        when = max(when, earliest + 1e-9)
        self.clock.at(when, arrive, *args)
        return when

    def cut(self, source: str, target: str, holds: bool) -> None:
        """Cut one direction."""
        self.faults.setdefault((source, target), LinkFault()).cut = True
        self.faults[source, target].holds = holds

    def slow(self, source: str, target: str, delay: float) -> None:
        """Make one direction slow."""
        self.faults.setdefault((source, target), LinkFault()).delay = delay

    def heal(self, source: str, target: str) -> None:
        """Make one direction whole. What it holds back arrives, in order."""
        fault = self.faults.pop((source, target), None)
        earliest = 0.0
        for arrive, args in fault.held if fault is not None else ():
            earliest = self.carry(source, target, earliest, arrive, *args)


class Request:
    """One request of a client, from when it leaves until its answer is there."""

    __slots__ = ("args", "connection", "future", "network", "node", "process", "serve", "timer")

    def __init__(
        self,
        network: Network,
        process: Process,
        node: Host,
        connection: Connection,
        serve: Callable[..., object],
        args: Any,
        patience: float,
    ) -> None:
        self.network = network
        self.process = process
        self.node = node
        self.connection = connection
        self.serve = serve
        self.args = args
        self.future: Future[Any] = process.create_future()
        self.timer = process.call_later(patience, self._settle, Code.TIMED_OUT)
        if process.stopped or process.killed:
            process.leave(self._leave)
        else:
            self._leave()

    def _leave(self) -> None:
        node, connection = self.node, self.connection
        connection.there = self.network.carry(self.process.name, node.name, connection.there, node.receive, self)

    def answer(self, value: Any) -> None:
        """Answer it, from the node."""
        process, connection = self.process, self.connection
        connection.back = self.network.carry(self.node.name, process.name, connection.back, self._arrive, value)

    def _arrive(self, value: Any) -> None:
        process = self.process
        if process.stopped or process.killed:
            process.enter(self._settle, value)
        else:
            self._settle(value)

    def _settle(self, value: Any) -> None:
        self.timer.cancelled_ = True
        if not self.future.done():
            self.future.set_result(value)
