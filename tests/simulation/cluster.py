"""Three nodes, the controller that watches them, and what each may be made to suffer.

Rules of this file:
- The controller is a quorum that never fails. A node that it has not heard of for `session` seconds loses its
  leaderships and its places among the in-sync replicas; a leader is chosen from these only (no unclean election), and
  where none is left, nobody leads until one is back.
- A node that is cut off from the other nodes, or stopped, does not know what the controller has done in the meantime:
  it goes on as before for those who can reach it, and learns a little later than it is reachable again.
"""

from collections import Counter
from collections.abc import Callable
from random import Random

from tests.simulation.loop import Clock
from tests.simulation.network import Code, Network, Request
from tests.simulation.partition import Partition

__all__ = ["Cluster", "Node"]


class Node:
    """One broker."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"n{number}"
        self.dead = False
        self.stopped = False
        self.cut_off = False
        """from the other nodes and the controller, not from clients"""
        self.fenced = False
        """by the controller: it may not lead"""
        self.view: dict[Partition, int] = {}
        """who led what when it was cut off"""
        self.age = 0
        """counts its troubles, so that the end of an old one does not end a new one"""
        self._inbox: list[Request] = []

    def receive(self, request: Request) -> None:
        """Serve a request, or keep it while stopped, or refuse it."""
        if self.dead:
            request.answer(Code.REFUSED)
        elif self.stopped:
            self._inbox.append(request)
        else:
            request.serve(self, request, *request.args)

    def take_inbox(self) -> None:
        """Serve, or refuse, what came while it was stopped."""
        inbox, self._inbox = self._inbox, []
        for request in inbox:
            self.receive(request)


class Cluster:
    """Nodes, partitions, and the controller."""

    def __init__(self, clock: Clock, network: Network, random: Random, power: "Counter[str]") -> None:
        self.clock = clock
        self.network = network
        self.random = random
        self.power = power
        self.nodes = [Node(0), Node(1), Node(2)]
        self.partitions: dict[tuple[str, int], Partition] = {}
        self.session = 0.7
        self.replica_lag = 0.4
        self.start_up = 0.3
        self.rejects = 0
        """how many batches the leaders will refuse for no good reason"""
        self.trace: Callable[[str, str], None] | None = None
        """told of what happens, if anybody wants to know"""
        self.calm = True
        """nothing is wrong with any node"""
        self._pids = 0

    def add(self, topic: str, number: int, min_isr: int = 2) -> Partition:
        """Make one partition."""
        leader = (len(self.partitions) * 7 + number) % 3
        partition = self.partitions[topic, number] = Partition(self, topic, number, leader, min_isr)
        return partition

    def new_pid(self) -> int:
        """Return a producer id that nobody had before."""
        self._pids += 1
        return self._pids

    def chance(self, probability: float) -> bool:
        """Let chance decide."""
        return self.random.random() < probability

    def say(self, who: str, what: str) -> None:
        """Note what happens."""
        if self.trace is not None:
            self.trace(who, what)

    # --- who reaches whom --------------------------------------------------------------------------------------------

    def runs(self, node: int) -> bool:
        """Tell whether a node is up and not stopped."""
        return not (self.nodes[node].dead or self.nodes[node].stopped)

    def knows(self, node: int) -> bool:
        """Tell whether a node and the controller hear of each other."""
        there = self.nodes[node]
        return not (there.dead or there.stopped or there.cut_off or there.fenced)

    def reach(self, one: int, other: int) -> bool:
        """Tell whether two nodes hear of each other."""
        if self.calm and not self.network.faults:
            return True
        a, b = self.nodes[one], self.nodes[other]
        if a.dead or b.dead or a.stopped or b.stopped:
            return False
        return one == other or (not a.cut_off and not b.cut_off and self.network.whole(a.name, b.name))

    def follows(self, node: int, partition: Partition) -> bool:
        """Tell whether a node can follow a partition's leader now."""
        return not partition.frozen and self.reach(node, partition.leader)

    def refresh(self) -> None:
        """Something between the nodes has changed."""
        self.calm = not any(node.dead or node.stopped or node.cut_off for node in self.nodes)
        for partition in self.partitions.values():
            partition.refresh()

    # --- what happens to nodes ---------------------------------------------------------------------------------------

    def kill(self, node: Node) -> None:
        """Kill -9: what waits at it is refused, what it leads is led by others after a while."""
        node.dead, node.stopped = True, False
        node.age += 1
        for partition in self.partitions.values():
            partition.stale.pop(node.number, None)
            if partition.leader == node.number:
                partition.drop(Code.REFUSED)
        node.take_inbox()
        self._lose(node)

    def restart(self, node: Node) -> None:
        """Start it again. It comes back as a follower."""
        if node.dead:
            node.age += 1
            self._fence(node, node.age)
            node.cut_off = False
            node.dead = False
            self.refresh()
            self.clock.after(self.start_up, self._welcome, node, node.age)

    def stop(self, node: Node) -> None:
        """SIGSTOP."""
        if not node.dead and not node.stopped:
            node.stopped = True
            self.calm = False
            node.view = {partition: partition.leader for partition in self.partitions.values()}
            node.age += 1
            self._lose(node)

    def resume(self, node: Node) -> None:
        """SIGCONT: it serves what has come, as what it was, and only then hears what has become of it."""
        if node.stopped:
            node.stopped = False
            node.age += 1
            self.refresh()
            node.take_inbox()
            self._back(node)

    def cut_off(self, node: Node) -> None:
        """Cut it off from its cluster, not from clients."""
        if not node.dead and not node.cut_off:
            node.cut_off = True
            node.view = {partition: partition.leader for partition in self.partitions.values()}
            node.age += 1
            self._lose(node)

    def rejoin(self, node: Node) -> None:
        """Let it back."""
        if node.cut_off:
            node.cut_off = False
            node.age += 1
            self._back(node)

    def _lose(self, node: Node) -> None:
        self.refresh()
        self.clock.after(self.session, self._fence, node, node.age)

    def _back(self, node: Node) -> None:
        if not node.dead and not node.stopped and not node.cut_off:
            self.clock.after(0.002 + 0.05 * self.network.random(), self._welcome, node, node.age)

    def _welcome(self, node: Node, age: int) -> None:
        if age != node.age:
            return
        node.fenced = False
        for partition in self.partitions.values():
            partition.learn(node.number)
            if partition.leader < 0 and node.number in partition.isr:
                partition.lead(node.number)
        self.refresh()

    def _fence(self, node: Node, age: int) -> None:
        if age != node.age or node.fenced:
            return
        node.fenced = True
        self.say("controller", f"gives up on {node.name}")
        for partition in self.partitions.values():
            if partition.leader == node.number:
                self.elect(partition)
            if node.number in partition.isr and len(partition.isr) > 1 and partition.leader != node.number:
                partition.isr = [other for other in partition.isr if other != node.number]
                partition.settle(partition.epoch)

    def elect(self, partition: Partition) -> None:
        """Choose another leader, from the in-sync replicas; nobody where there is none."""
        old = partition.leader
        able = [node for node in partition.isr if node != old and not self.nodes[node].fenced]
        if able:
            partition.lead(able[int(self.random.random() * len(able))])
        elif old >= 0 and self.nodes[old].fenced:
            partition.leave_behind()
            partition.leader = -1
            partition.drop(Code.NOT_LEADER)

    def leader_of(self, node: Node, request: Request, partition: Partition) -> None:
        """Serve metadata: who leads, as far as this node knows."""
        known = node.view if node.cut_off or node.number in partition.stale else None
        request.answer(partition.leader if known is None else known.get(partition, partition.leader))

    def heal(self) -> None:
        """Put everything right."""
        for source, target in list(self.network.faults):
            self.network.heal(source, target)
        for partition in self.partitions.values():
            partition.frozen = False
        for node in self.nodes:
            self.restart(node)
            self.rejoin(node)
            self.resume(node)
        self.refresh()
