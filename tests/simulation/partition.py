"""One partition: its leader, how the leader's log reaches the other replicas, and who waits for that.

Rules of this file:
- The log of the present leader is the partition's. Of a follower it is only remembered when it has (or will have) what
  the leader appended: enough to know what is left when it takes over.
- The high watermark moves when every in-sync replica has a record, and not below `min_isr` of them.
- A leader that has lost its place without knowing it (cut off, or stopped) keeps its log, and whoever waits there waits
  on, until it learns better.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.log import Log
from tests.simulation.network import Code, Request

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

__all__ = ["Partition", "Stale"]

NEVER = float("inf")
Waiter = tuple[int, Callable[[Code | None], object]]
"""An end of the log, and what to call when the high watermark has reached it (None), or never will (why)."""


class Stale:
    """What an old leader that does not know better holds."""

    def __init__(self, log: Log, waiters: list[Waiter], watchers: list[tuple[Request, Any]], memory: Any) -> None:
        self.log = log
        self.waiters = waiters
        self.watchers = watchers
        self.memory = memory
        """what a coordinator on it remembers"""


class Partition:
    """One partition of a topic with three replicas."""

    def __init__(self, cluster: "Cluster", topic: str, number: int, leader: int, min_isr: int = 2) -> None:
        self.cluster = cluster
        self.topic = topic
        self.number = number
        self.topic_id = b"id-1"
        self.leader = leader
        """the node that leads by the controller's word; -1: nobody"""
        self.owner = leader
        """the node whose replica `log` is"""
        self.epoch = 0
        self.isr = [0, 1, 2]
        self.min_isr = min_isr
        self.log = Log()
        self.visible = 0
        """the highest last stable offset that any reader can have seen"""
        self.breaks_next = False
        """the next record is written so that nobody can read it"""
        self.frozen = False
        """its followers do not follow (a disk that is full, a thread that died)"""
        self.stale: dict[int, Stale] = {}
        self.waiters: list[Waiter] = []
        self.watchers: list[tuple[Request, Any]] = []
        """requests that wait until a reader may see more, and how they are served"""
        self.on_leader: Callable[[Any], object] | None = None
        """called when a node has become the leader; with what the old one keeps, if it does not know"""
        self.on_visible: Callable[[], object] | None = None
        self._known_hw = 0
        self._last = [0.0, 0.0, 0.0]
        self._tail: deque[tuple[int, list[float]]] = deque()
        self._shrinking = False

    # --- replication -------------------------------------------------------------------------------------------------

    def appended(self, then: Callable[[Code | None], object] | None = None) -> None:
        """Replicate what was appended to the leader's log; `then` is told when all in-sync replicas have it."""
        cluster, leader = self.cluster, self.leader
        now = cluster.clock.now
        arrivals = [now, now, now]
        ready = now
        last, latency = self._last, cluster.network.latency
        calm = cluster.calm and not self.frozen and not cluster.network.faults
        for node in (0, 1, 2):
            if node != leader:
                if calm or cluster.follows(node, self):
                    arrival = now + latency()
                    if arrival < last[node]:
                        arrival = last[node]
                    last[node] = arrivals[node] = arrival
                else:
                    arrivals[node] = arrival = NEVER
                if arrival > ready and node in self.isr:
                    ready = arrival
        end = self.log.end
        self._tail.append((end, arrivals))
        if then is not None:
            self.waiters.append((end, then))
        if ready < NEVER:
            cluster.clock.at(ready + cluster.network.latency(), self.settle, self.epoch)
        else:
            self._shrink_later()

    def settle(self, epoch: int) -> None:
        """Move the high watermark to where it may be now."""
        cluster, log = self.cluster, self.log
        if epoch != self.epoch or self.leader < 0 or len(self.isr) < self.min_isr or not cluster.runs(self.leader):
            return
        now = cluster.clock.now
        tail, hw = self._tail, log.hw
        while tail:
            end, arrivals = tail[0]
            for node in self.isr:
                if arrivals[node] > now:
                    break
            else:
                hw = end
                tail.popleft()
                continue
            break
        if hw > log.hw:
            self._known_hw, log.hw = log.hw, hw
            self._moved()

    def _moved(self) -> None:
        hw = self.log.hw
        stable = self.log.stable()
        if self.waiters:
            done = [waiter for waiter in self.waiters if waiter[0] <= hw]
            if done:
                self.waiters = [waiter for waiter in self.waiters if waiter[0] > hw]
                for _, then in done:
                    then(None)
        if stable > self.visible:
            self.visible = stable
            if self.on_visible is not None:
                self.on_visible()
        if self.watchers:
            watchers, self.watchers = self.watchers, []
            for request, serve in watchers:
                serve(request)

    def refresh(self) -> None:
        """Look anew at who follows: something on the way between nodes has changed."""
        cluster = self.cluster
        if self.leader < 0 or not cluster.runs(self.leader):
            return
        now = cluster.clock.now
        for node in (0, 1, 2):
            if node == self.leader:
                continue
            if not cluster.follows(node, self):
                # What was on its way does not arrive.
                for _, arrivals in self._tail:
                    if arrivals[node] > now:
                        arrivals[node] = NEVER
                self._shrink_later()
            else:
                arrival = now + cluster.network.latency()
                for _, arrivals in self._tail:
                    if arrivals[node] == NEVER:
                        arrivals[node] = self._last[node] = arrival
                if node not in self.isr:
                    cluster.clock.at(arrival + cluster.network.latency(), self._join, node, self.epoch)
                cluster.clock.at(arrival + cluster.network.latency(), self.settle, self.epoch)
        self._settle_later()

    def _settle_later(self) -> None:
        """Look again when all that is on its way to followers has arrived."""
        clock = self.cluster.clock
        late = max((time for _, arrivals in self._tail for time in arrivals if time < NEVER), default=0.0)
        if late > clock.now:
            clock.at(late + self.cluster.network.latency(), self.settle, self.epoch)

    def _join(self, node: int, epoch: int) -> None:
        """A follower that has caught up is in sync again, if the leader can say so to the controller."""
        cluster = self.cluster
        if epoch == self.epoch and node not in self.isr and self.leader >= 0 and cluster.follows(node, self):
            if cluster.knows(self.leader) and cluster.knows(node):
                self.isr = sorted([*self.isr, node])
                self.settle(epoch)
                # From now on all wait for it, also for what is on its way to it.
                self._settle_later()
            else:
                cluster.clock.after(0.05, self._join, node, epoch)

    def _shrink_later(self) -> None:
        if not self._shrinking:
            self._shrinking = True
            self.cluster.clock.after(self.cluster.replica_lag, self._shrink, self.epoch)

    def _shrink(self, epoch: int) -> None:
        """Put out of sync who does not follow, if the leader can say so to the controller."""
        self._shrinking = False
        cluster = self.cluster
        if epoch != self.epoch or self.leader < 0 or not cluster.knows(self.leader):
            if self.leader >= 0:
                self._shrink_later()
            return
        isr = [node for node in self.isr if node == self.leader or cluster.follows(node, self)]
        if isr != self.isr:
            self.isr = isr
            cluster.power["in-sync replicas lost"] += 1
            cluster.say(f"n{self.leader}", f"has only {isr} in sync on {self.topic}[{self.number}]")
            self.settle(epoch)

    # --- leadership --------------------------------------------------------------------------------------------------

    def lead(self, node: int) -> None:
        """Make a node of the in-sync replicas the leader. What it does not have is lost."""
        cluster, old = self.cluster, self.owner
        now = cluster.clock.now
        kept = None
        has = [self._has(other) for other in (0, 1, 2)]
        if node != old:
            end = has[node]
            if end < self.log.end:
                cluster.power["records truncated at fail-over"] += self.log.end - end
            log = self.log.until(end)
            if cluster.chance(0.5):
                # It has not heard of the last move of the high watermark.
                log.hw = min(log.hw, max(self._known_hw, log.start))
            kept = self.leave_behind()
            self.log = log
        self.learn(node)
        self.drop(Code.NOT_LEADER)
        self.leader = self.owner = node
        self.epoch += 1
        self._shrinking = False
        log = self.log
        log.epoch_start = log.end
        self._known_hw = log.hw
        self._tail.clear()
        self._last = [now, now, now]
        # What the others have in common with it, they keep; the rest they cut off and fetch.
        for end in sorted({log.end, *(there for there in has if log.hw < there < log.end)}):
            if end > log.hw:
                self._tail.append((end, [now if there >= end else NEVER for there in has]))
        cluster.power["leader changes"] += 1
        cluster.say(f"n{node}", f"leads {self.topic}[{self.number}] from {log.end} on")
        # The others hear of it, and ask it for records; only then does it know what they have.
        heard = 0.1 * cluster.network.random()
        cluster.clock.after(heard, self.refresh)
        cluster.clock.after(heard, self.settle, self.epoch)
        if self.on_leader is not None:
            self.on_leader(kept)

    def _has(self, node: int) -> int:
        """Return up to where a replica has the log."""
        if node == self.owner:
            return self.log.end
        end = self.log.hw
        for tail_end, arrivals in self._tail:
            if arrivals[node] > self.cluster.clock.now:
                break
            end = max(end, tail_end)
        return end

    def leave_behind(self) -> Stale | None:
        """If the old leader cannot know that it is none any more, let it keep what it has."""
        cluster, old = self.cluster, self.owner
        if old not in self.stale and not cluster.nodes[old].dead and not cluster.knows(old):
            self.stale[old] = Stale(self.log, self.waiters, self.watchers, None)
            self.waiters, self.watchers = [], []
        return self.stale.get(old)

    def drop(self, why: Code) -> None:
        """Tell everybody who waits that it will not come."""
        waiters, self.waiters = self.waiters, []
        watchers, self.watchers = self.watchers, []
        for _, then in waiters:
            then(why)
        for request, _ in watchers:
            request.answer(why)

    def learn(self, node: int) -> None:
        """An old leader learns that it is none."""
        stale = self.stale.pop(node, None)
        if stale is not None:
            self.cluster.power["stale leaders"] += 1
            for _, then in stale.waiters:
                then(Code.NOT_LEADER)
            for request, _ in stale.watchers:
                request.answer(Code.NOT_LEADER)

    def make_anew(self) -> None:
        """Delete the topic and make it again: empty, with another id."""
        self.drop(Code.NOT_LEADER)
        self.stale.clear()
        self.topic_id += b"'"
        self.log = Log()
        self.epoch += 1
        self._tail.clear()
        self._known_hw = 0
        self.visible = 0
