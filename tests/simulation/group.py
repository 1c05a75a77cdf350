"""The group coordinator: who is a member, which partitions each has, and the offsets that the group has committed.

Rules of this file:
- A member that was not heard of for `session` seconds is put out. Whenever somebody comes or goes, all others are told
  by their heartbeats to join again; when all have (or `patience` seconds are over), each is told what is its own.
- Joining and being told are one question here: what the range assignor would say, the coordinator says itself.
- Offsets of a transaction count when its marker is safe on this partition. They are told without looking at those that
  wait for one (aiokafka does not ask for stable offsets).
- An old coordinator that does not know better goes on to answer heartbeats, and tells offsets that are no more.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tests.simulation.cluster import Cluster, Node
from tests.simulation.log import Log
from tests.simulation.loop import Handle
from tests.simulation.network import Code, Request
from tests.simulation.partition import Stale

__all__ = ["Assignment", "GroupCoordinator"]

Offsets = Mapping[tuple[str, int], int]


class Assignment(NamedTuple):
    """What a member is told when it has joined."""

    generation: int
    partitions: tuple[int, ...]


class _Memory(NamedTuple):
    """What an old coordinator goes on to tell."""

    generation: int
    members: frozenset[str]
    offsets: Offsets


class GroupCoordinator:
    """The only group there is."""

    def __init__(self, cluster: Cluster, partitions: int) -> None:
        self.cluster = cluster
        self.partition = cluster.add("__consumer_offsets", 0)
        self.partition.on_leader = self._elected
        self.session = 1.0
        self.patience = 3.0
        self.generation = 0
        self.offsets: dict[tuple[str, int], int] = {}
        self.stale_tells_offsets = True
        self._numbers = range(partitions)
        self._heard: dict[str, float] = {}
        self._joining: dict[str, Request] = {}
        self._settled = True
        self._assigned: tuple[int, tuple[str, ...]] = (0, ())
        self._deadline: Handle | None = None
        self._loading = False
        self._term = 0
        self._applied = 0
        self._waiting: dict[int, list[Offsets]] = {}
        """offsets of transactions without a marker, by producer id"""

    # --- members -----------------------------------------------------------------------------------------------------

    def join(self, node: Node, request: Request, member: str) -> None:
        """JoinGroup and SyncGroup: answers an assignment once everybody has joined."""
        if not self._mine(node, request):
            return
        if member not in self._heard:
            self._heard[member] = self.cluster.clock.now
            self._watch(self._term, member)
        self._heard[member] = self.cluster.clock.now
        self._joining[member] = request
        self.rebalance()
        self._complete()

    def heartbeat(self, node: Node, request: Request, member: str, generation: int) -> None:
        """Answers None when all is well."""
        stale = self.partition.stale.get(node.number)
        if stale is not None:
            known = stale.memory
            fine = known is not None and member in known.members and generation == known.generation
            request.answer(None if fine else Code.UNKNOWN_MEMBER)
            return
        if not self._mine(node, request):
            return
        if member not in self._heard:
            request.answer(Code.UNKNOWN_MEMBER)
            return
        self._heard[member] = self.cluster.clock.now
        if generation != self.generation:
            request.answer(Code.UNKNOWN_MEMBER)
        else:
            request.answer(None if self._settled else Code.REBALANCE)

    def leave(self, node: Node, request: Request, member: str) -> None:
        """LeaveGroup."""
        if self._mine(node, request):
            request.answer(None)
            self._put_out(member)

    def rebalance(self) -> None:
        """Ask everybody to join again."""
        if self._settled:
            self._settled = False
            self.cluster.power["rebalances"] += 1
            self._deadline = self.cluster.clock.after(self.patience, self._late, self._term)

    def _complete(self) -> None:
        if self._settled or not self._heard or any(member not in self._joining for member in self._heard):
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self.generation += 1
        self._settled = True
        members = sorted(self._heard)
        self._assigned = self.generation, tuple(members)
        self.cluster.say("group", f"generation {self.generation}: {', '.join(members)}")
        joining, self._joining = self._joining, {}
        each, more = divmod(len(self._numbers), len(members))
        start = 0
        for index, member in enumerate(members):
            count = each + (index < more)
            joining[member].answer(Assignment(self.generation, tuple(self._numbers[start : start + count])))
            start += count

    def _late(self, term: int) -> None:
        """Those who did not join in time are out."""
        if term == self._term and not self._settled:
            for member in [member for member in self._heard if member not in self._joining]:
                self.cluster.power["evictions"] += 1
                del self._heard[member]
            self._complete()

    def _put_out(self, member: str) -> None:
        if self._heard.pop(member, None) is not None:
            self._joining.pop(member, None)
            self.rebalance()
            self._complete()

    def _watch(self, term: int, member: str) -> None:
        heard = self._heard.get(member)
        if term != self._term or heard is None:
            return
        cluster = self.cluster
        if member in self._joining:
            heard = cluster.clock.now
        if not cluster.runs(self.partition.leader):
            cluster.clock.after(self.session, self._watch, term, member)
        elif cluster.clock.now - heard >= self.session:
            cluster.power["evictions"] += 1
            cluster.say("group", f"{member} was not heard of and is put out")
            self._put_out(member)
        else:
            cluster.clock.at(heard + self.session + 1e-6, self._watch, term, member)

    # --- offsets -----------------------------------------------------------------------------------------------------

    def commit(self, node: Node, request: Request, offsets: Offsets, pid: int, epoch: int, verify: object) -> None:
        """TxnOffsetCommit: answered when the offsets are safe in the log; they count when the marker is."""
        if not self._mine(node, request):
            return
        partition = self.partition
        known = partition.log.producers.get(pid)
        refusal = Code.FENCED if known is not None and epoch < known[0] else None
        if refusal is None and pid not in partition.log.open and callable(verify):
            refusal = verify(pid, epoch, partition)
        if refusal is None and len(partition.isr) < partition.min_isr:
            refusal = Code.NOT_ENOUGH_REPLICAS
        if refusal is not None:
            request.answer(refusal)
            return
        partition.log.append([(-1, None, offsets, ())], pid, epoch, 0, transactional=True)
        partition.appended(lambda why: request.answer(why))

    def now(self) -> dict[tuple[str, int], int]:
        """What is committed, as nobody but the world itself can know."""
        self._apply(self.partition.log, self.partition.log.hw)
        return self.offsets

    def committed(self, node: Node, request: Request, wanted: list[tuple[str, int]]) -> None:
        """OffsetFetch: answers a dict of offsets, None where nothing was committed."""
        stale = self.partition.stale.get(node.number)
        if stale is not None and self.stale_tells_offsets:
            self.cluster.power["offsets told by a coordinator that was none"] += 1
            self.cluster.say("old group", f"tells {stale.memory.offsets} to {request.process.name}, true {self.now()}")
            request.answer({place: stale.memory.offsets.get(place) for place in wanted})
        elif self._mine(node, request):
            self._apply(self.partition.log, self.partition.log.hw)
            request.answer({place: self.offsets.get(place) for place in wanted})

    def _apply(self, log: Log, until: int) -> None:
        """Count what lies below an offset and was not counted yet."""
        entries = log.entries
        while self._applied < len(entries) and self._applied < until:
            entry = entries[self._applied]
            self._applied += 1
            if entry.control is None:
                self._waiting.setdefault(entry.span.pid if entry.span is not None else -1, []).append(entry.value)
                continue
            pid, commit = entry.control
            for offsets in self._waiting.pop(pid, ()):
                if commit:
                    self.offsets.update(offsets)

    # --- fail-over ---------------------------------------------------------------------------------------------------

    def _mine(self, node: Node, request: Request) -> bool:
        stale = self.partition.stale.get(node.number)
        if stale is not None:
            stale.waiters.append((1 << 62, lambda why: request.answer(why)))
            return False
        if self.partition.leader != node.number:
            request.answer(Code.NOT_LEADER)
            return False
        if self._loading:
            request.answer(Code.LOADING)
            return False
        return True

    def _elected(self, kept: Stale | None) -> None:
        if kept is not None and kept.memory is None:
            self._apply(kept.log, kept.log.hw)
            kept.memory = _Memory(self.generation, frozenset(self._heard), dict(self.offsets))
        self._term += 1
        self._loading = True
        for request in self._joining.values():
            request.answer(Code.NOT_LEADER)
        self._joining = {}
        self.cluster.power["group coordinator fail-overs"] += 1
        self.cluster.clock.after(0.005 + 0.05 * self.cluster.network.random(), self._load, self._term)

    def _load(self, term: int) -> None:
        """Read the log. Members are those of the last generation; each has a whole session to be heard of again."""
        if term != self._term:
            return
        self._loading = False
        self.offsets, self._waiting, self._applied = {}, {}, 0
        self._apply(self.partition.log, self.partition.log.end)
        self.generation, members = self._assigned
        self._settled = True
        self._heard = dict.fromkeys(members, self.cluster.clock.now)
        for member in members:
            self._watch(term, member)
