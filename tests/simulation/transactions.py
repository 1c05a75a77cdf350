"""The transaction coordinator: one for each partition of its log, on that partition's leader.

    empty -> ongoing -> prepare commit | prepare abort -> (markers written everywhere) -> complete -> ongoing ...

Rules of this file (Kafka's, transaction version 1):
- A state counts once it is in the log of all in-sync replicas; then, not before, it is answered, and markers go out.
- Markers are written later, one partition at a time, again and again until each is safe. Until then whoever asks for
  this transactional id hears `CONCURRENT`.
- Starting a producer raises the epoch: it fences every older one, and first ends what that one left open. So does a
  transaction that takes too long.
- All transactions of one producer have the same epoch: a late end of one can end the next (KAFKA-17754).
- A new leader reads the states from its log, and goes on with the markers that were not confirmed. It waits until all
  in-sync replicas have what it read. Kafka's does not (it loads up to the log's end, apache/kafka#2849): if yet another
  one takes over that has less, a transaction that was acted upon is forgotten, and what was in flight in it becomes
  visible with the next one of the same producer (seed 97120). That is Kafka's to mend; the README says so.
"""

from collections.abc import Callable
from typing import NamedTuple

from tests.simulation.cluster import Cluster, Node
from tests.simulation.network import Code, Request
from tests.simulation.partition import Partition, Stale

__all__ = ["State", "TransactionCoordinator"]

EMPTY, ONGOING, PREPARE_COMMIT, PREPARE_ABORT = "empty", "ongoing", "prepare commit", "prepare abort"
COMPLETE_COMMIT, COMPLETE_ABORT = "complete commit", "complete abort"


class State(NamedTuple):
    """What the log says of a transactional id."""

    pid: int
    epoch: int
    what: str
    partitions: tuple[Partition, ...]
    timeout: float
    started: float


class TransactionCoordinator:
    """The states of some transactional ids."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.partition = cluster.add("__transaction_state", number)
        self.partition.on_leader = self._elected
        self.marker_delay = 0.002
        """up to how long a marker waits before it is sent, in seconds"""
        self._states: dict[str, State] = {}
        self._pending: dict[str, bool] = {}
        self._left: dict[str, list[Partition]] = {}
        self._loading = False
        self._term = 0

    # --- what clients ask --------------------------------------------------------------------------------------------

    def init(self, node: Node, request: Request, name: str, timeout: float) -> None:
        """InitProducerId: answers (producer id, epoch)."""
        if not self._mine(node, request):
            return
        state = self._states.get(name)
        if self._pending.get(name) or (state is not None and state.what in (PREPARE_COMMIT, PREPARE_ABORT)):
            request.answer(Code.CONCURRENT)
        elif state is None:
            pid = self.cluster.new_pid()
            self._write(name, State(pid, 0, EMPTY, (), timeout, 0.0), self._answer(request, (pid, 0)))
        elif state.what == ONGOING:
            self.cluster.power["open transactions fenced"] += 1
            self._abort(name, state)
            request.answer(Code.CONCURRENT)
        else:
            self.cluster.power["producers fenced"] += 1
            new = State(state.pid, state.epoch + 1, EMPTY, (), timeout, 0.0)
            self._write(name, new, self._answer(request, (new.pid, new.epoch)))

    def add(self, node: Node, request: Request, name: str, pid: int, epoch: int, more: list[Partition]) -> None:
        """AddPartitionsToTxn and AddOffsetsToTxn: the transaction opens with the first."""
        state = self._checked(node, request, name, pid, epoch)
        if state is None:
            return
        if state.what in (PREPARE_COMMIT, PREPARE_ABORT):
            request.answer(Code.CONCURRENT)
            return
        now = self.cluster.clock.now
        known = state.partitions if state.what == ONGOING else ()
        added = [partition for partition in more if partition not in known]
        if not added:
            request.answer(None)
            return
        started = state.started if state.what == ONGOING else now
        new = State(pid, epoch, ONGOING, (*known, *added), state.timeout, started)
        self._write(name, new, self._answer(request, None))
        if state.what != ONGOING:
            self.cluster.clock.after(state.timeout, self._expire, self._term, name, started)

    def end(self, node: Node, request: Request, name: str, pid: int, epoch: int, commit: bool) -> None:
        """EndTxn: answered when the decision is safe, before the markers are written."""
        state = self._checked(node, request, name, pid, epoch)
        if state is None:
            return
        if state.what == ONGOING:
            what = PREPARE_COMMIT if commit else PREPARE_ABORT
            self._write(name, state._replace(what=what), self._answer(request, None), lambda: self._mark(name))
        elif state.what == (COMPLETE_COMMIT if commit else COMPLETE_ABORT):
            request.answer(None)
        elif state.what == (PREPARE_COMMIT if commit else PREPARE_ABORT):
            request.answer(Code.CONCURRENT)
        else:
            request.answer(Code.INVALID_STATE)

    def verified(self, name: str) -> Callable[[int, int, Partition], Code | None]:
        """Return what a leader asks before it takes the first batch of a transaction."""

        def verify(pid: int, epoch: int, partition: Partition) -> Code | None:
            state = self._states.get(name)
            if self._loading or self.partition.leader < 0 or not self.cluster.runs(self.partition.leader):
                return Code.NOT_ENOUGH_REPLICAS
            if not self.cluster.reach(self.partition.leader, partition.leader):
                return Code.NOT_ENOUGH_REPLICAS
            if state is None or state.pid != pid or state.what != ONGOING or partition not in state.partitions:
                return Code.INVALID_STATE
            return None if state.epoch == epoch else Code.FENCED

        return verify

    @property
    def settled(self) -> bool:
        """Whether no transaction is open or waits for its markers."""
        done = (EMPTY, COMPLETE_COMMIT, COMPLETE_ABORT)
        return not self._loading and all(state.what in done for state in self._states.values())

    # --- states ------------------------------------------------------------------------------------------------------

    def _mine(self, node: Node, request: Request) -> bool:
        if node.number in self.partition.stale:
            # It can write nothing to its log, so it answers nothing until it learns that it is none.
            self.partition.stale[node.number].waiters.append((1 << 62, lambda why: request.answer(why)))
            return False
        if self.partition.leader != node.number:
            request.answer(Code.NOT_LEADER)
            return False
        if self._loading:
            request.answer(Code.LOADING)
            return False
        return True

    def _checked(self, node: Node, request: Request, name: str, pid: int, epoch: int) -> State | None:
        if not self._mine(node, request):
            return None
        state = self._states.get(name)
        if state is None or state.pid != pid or epoch != state.epoch:
            request.answer(Code.FENCED)
        elif self._pending.get(name):
            request.answer(Code.CONCURRENT)
        else:
            return state
        return None

    def _answer(self, request: Request, value: object) -> Callable[[Code | None], object]:
        return lambda why: request.answer(value if why is None else why)

    def _write(
        self,
        name: str,
        state: State,
        answer: Callable[[Code | None], object] | None = None,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Make a state safe; then it is in force."""
        if len(self.partition.isr) < self.partition.min_isr:
            if answer is not None:
                answer(Code.LOADING)  # Nothing was done, and nothing will be: who asked may ask again.
            else:
                # The coordinator's own business is tried again, if it still is what it was.
                before = self._states.get(name)
                self.cluster.clock.after(0.1, self._again, self._term, name, before, state, then)
            return
        self._pending[name] = True
        term = self._term

        def safe(why: Code | None) -> None:
            if why is None and term == self._term:
                self._pending[name] = False
                self._states[name] = state
                if then is not None:
                    then()
            if answer is not None:
                answer(why)

        self.partition.log.append([(-1, name, state, ())])
        self.partition.appended(safe)

    def _again(
        self, term: int, name: str, before: State | None, state: State, then: Callable[[], object] | None
    ) -> None:
        if term == self._term and not self._pending.get(name) and self._states.get(name) is before:
            self._write(name, state, None, then)

    def _abort(self, name: str, state: State) -> None:
        new = state._replace(what=PREPARE_ABORT, epoch=state.epoch + 1)
        self._write(name, new, None, lambda: self._mark(name))

    def _expire(self, term: int, name: str, started: float) -> None:
        state = self._states.get(name)
        if term != self._term or state is None or state.what != ONGOING or state.started != started:
            return
        if not self.cluster.runs(self.partition.leader) or self._pending.get(name):
            self.cluster.clock.after(0.1, self._expire, term, name, started)
            return
        self.cluster.power["transactions timed out"] += 1
        self.cluster.say("coordinator", f"{name}: the transaction took too long")
        self._abort(name, state)

    # --- markers -----------------------------------------------------------------------------------------------------

    def _mark(self, name: str) -> None:
        state = self._states[name]
        self._left[name] = list(state.partitions)
        self.cluster.power["aborts" if state.what == PREPARE_ABORT else "commits"] += 1
        self.cluster.say("coordinator", f"{name}: {state.what}")
        if not state.partitions:
            self._marked(self._term, name, None)
        for partition in state.partitions:
            delay = self.marker_delay * self.cluster.network.random()
            self.cluster.clock.after(delay, self._send_marker, self._term, name, partition)

    def _send_marker(self, term: int, name: str, partition: Partition) -> None:
        if term != self._term or partition not in self._left.get(name, ()):
            return
        cluster, here = self.cluster, self.partition.leader
        if here >= 0 and partition.leader >= 0 and cluster.reach(here, partition.leader):
            latency = 0.0 if here == partition.leader else cluster.network.latency()
            cluster.clock.after(latency, self._put_marker, term, name, partition, partition.epoch)
        cluster.clock.after(0.3, self._send_marker, term, name, partition)

    def _put_marker(self, term: int, name: str, partition: Partition, epoch: int) -> None:
        cluster = self.cluster
        if term != self._term or partition.epoch != epoch or partition.leader < 0:
            return
        if not cluster.reach(self.partition.leader, partition.leader) or len(partition.isr) < partition.min_isr:
            return
        if partition not in self._left[name]:
            return
        state = self._states[name]
        partition.log.mark(state.pid, state.epoch, state.what == PREPARE_COMMIT)
        partition.appended(lambda why: self._marked(term, name, partition) if why is None else None)

    def _marked(self, term: int, name: str, partition: Partition | None) -> None:
        """A marker is safe. After the last one the transaction is complete."""
        if term != self._term:
            return
        left = self._left.get(name, [])
        if partition is not None:
            if partition not in left:
                return
            left.remove(partition)
        if not left:
            state = self._states[name]
            what = COMPLETE_COMMIT if state.what == PREPARE_COMMIT else COMPLETE_ABORT
            self._write(name, state._replace(what=what, partitions=()))

    # --- fail-over ---------------------------------------------------------------------------------------------------

    def _elected(self, _kept: Stale | None) -> None:
        self._term += 1
        self._loading = True
        self._states, self._pending, self._left = {}, {}, {}
        self.cluster.power["transaction coordinator fail-overs"] += 1
        self.cluster.clock.after(0.005 + 0.05 * self.cluster.network.random(), self._load, self._term)

    def _load(self, term: int) -> None:
        if term != self._term:
            return
        if self.partition.log.hw < self.partition.log.end:
            self.cluster.clock.after(0.01, self._load, term)
            return
        self._loading = False
        for entry in self.partition.log.entries:
            self._states[entry.key] = entry.value
        for name, state in self._states.items():
            if state.what in (PREPARE_COMMIT, PREPARE_ABORT):
                self._mark(name)
            elif state.what == ONGOING:
                self.cluster.clock.after(state.timeout, self._expire, term, name, state.started)
