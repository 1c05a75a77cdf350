"""How each kind of fault is done to the world, and undone."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.cluster import Node
from tests.simulation.partition import Partition
from tests.simulation.scenario import FAULTS, Fault
from tests.simulation.worker import Trap, Worker

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["do"]


def do(world: "World", fault: Fault) -> None:
    """Let a fault happen."""
    world.power[fault.kind] += 1
    world.say("fault", f"{fault.kind} {fault.which} for {fault.seconds:.2f} s at {fault.step}")
    _KINDS[fault.kind](world, fault)


def _worker(world: "World", fault: Fault) -> Worker:
    return world.workers[fault.which % len(world.workers)]


def _node(world: "World", fault: Fault) -> Node:
    return world.cluster.nodes[fault.which % 3]


def _kill_worker(world: "World", fault: Fault) -> None:
    _kill(world, _worker(world, fault), fault.seconds)


def _kill(world: "World", worker: Worker, seconds: float) -> None:
    if worker.up:
        world.power["workers killed"] += 1
        world.say(worker.name, "killed")
        worker.process.kill()
        world.clock.after(seconds, worker.start)


def _pause(world: "World", worker: Worker, seconds: float) -> None:
    if worker.up and not worker.process.stopped:
        world.power["workers paused"] += 1
        world.say(worker.name, f"paused for {seconds:.2f} s")
        worker.process.stop_for(seconds)


def _stop(world: "World", worker: Worker, seconds: float) -> None:
    if worker.up:
        world.power["workers stopped"] += 1
        world.say(worker.name, "asked to end")
        worker.stop()
        _start_again(world, worker, worker.process, seconds)


def _start_again(world: "World", worker: Worker, old: object, seconds: float) -> None:
    """Start a new process once the old one has ended."""
    if worker.process is not old:
        return
    if worker.up:
        world.clock.after(0.05, _start_again, world, worker, old, seconds)
    else:
        world.clock.after(seconds, worker.start)


def _at_step(what: Callable[["World", Worker, float], None]) -> Callable[["World", Fault], None]:
    def trap(world: "World", fault: Fault) -> None:
        def spring(worker: Worker) -> None:
            world.power[f"{fault.kind}: done"] += 1
            what(world, worker, fault.seconds)

        _worker(world, fault).traps.append(Trap(fault.step, fault.count, spring))

    return trap


def _kill_node(world: "World", fault: Fault) -> None:
    node = _node(world, fault)
    if not node.dead and _two_others(world, node):
        world.cluster.kill(node)
        world.clock.after(fault.seconds, world.cluster.restart, node)


def _pause_node(world: "World", fault: Fault) -> None:
    node = _node(world, fault)
    if not node.dead and not node.stopped and _two_others(world, node):
        world.cluster.stop(node)
        world.clock.after(fault.seconds, world.cluster.resume, node)


def _isolate_node(world: "World", fault: Fault) -> None:
    node = _node(world, fault)
    if not node.dead and not node.cut_off and _two_others(world, node):
        world.cluster.cut_off(node)
        world.clock.after(fault.seconds, world.cluster.rejoin, node)


def _two_others(world: "World", node: Node) -> bool:
    """Mostly one node at a time; now and then two, and everything stands still."""
    others = [other for other in world.cluster.nodes if other is not node]
    return all(world.cluster.knows(other.number) for other in others) or world.cluster.chance(0.15)


def _cut(world: "World", one: str, node: Node, fault: Fault, ways: int) -> None:
    holds = fault.which % 5 < 3
    links = [(one, node.name), (node.name, one)]
    for source, target in links if ways == 2 else links[fault.count % 2 :][:1]:
        world.network.cut(source, target, holds)
        world.clock.after(fault.seconds, world.network.heal, source, target)


def _cut_worker(world: "World", fault: Fault) -> None:
    _cut(world, _worker(world, fault).name, world.cluster.nodes[fault.count % 3], fault, 2)


def _cut_one_way(world: "World", fault: Fault) -> None:
    _cut(world, _worker(world, fault).name, world.cluster.nodes[fault.which // 7 % 3], fault, 1)


def _cut_clients(world: "World", fault: Fault) -> None:
    _cut(world, "clients", _node(world, fault), fault, 1 + fault.which // 3 % 2)


def _cut_nodes(world: "World", fault: Fault) -> None:
    one, other = _node(world, fault), world.cluster.nodes[(fault.which + 1 + fault.count % 2) % 3]
    _cut(world, one.name, other, fault, 2)
    world.cluster.refresh()
    world.clock.after(fault.seconds + 1e-6, world.cluster.refresh)


def _slow_link(world: "World", fault: Fault) -> None:
    worker, node = _worker(world, fault).name, world.cluster.nodes[fault.count % 3].name
    for source, target in ((worker, node), (node, worker)):
        world.network.slow(source, target, (0.02, 0.1, 0.3)[fault.which % 3])
        world.clock.after(fault.seconds, world.network.heal, source, target)


def _slow_follower(world: "World", fault: Fault) -> None:
    worker = _worker(world, fault)
    worker.lag_follower((0.02, 0.1, 0.4, 1.5)[fault.count % 4])
    world.clock.after(fault.seconds, worker.lag_follower, world.scenario.lag)


def _late_end(world: "World", fault: Fault) -> None:
    world.broker.slow_ends += 1 + fault.count % 2
    world.broker.slow_end = fault.seconds


def _slow_markers(world: "World", fault: Fault) -> None:
    for coordinator in world.broker.coordinators:
        coordinator.marker_delay = (0.02, 0.1, 0.4)[fault.count % 3]


def _move_leader(world: "World", fault: Fault) -> None:
    partitions = list(world.cluster.partitions.values())
    if fault.count % 2:
        # It matters most who leads the consents.
        partitions = [partition for partition in partitions if partition.topic == world.shop.consents]
    world.cluster.elect(partitions[fault.which % len(partitions)])


def _move_coordinator(world: "World", fault: Fault) -> None:
    internal = [world.broker.group.partition, *(coordinator.partition for coordinator in world.broker.coordinators)]
    world.cluster.elect(internal[fault.which % len(internal)])


def _rebalance(world: "World", fault: Fault) -> None:
    group = world.broker.group
    for index in range(fault.count):
        world.clock.after(0.1 * index, group.rebalance)


def _compact(world: "World", fault: Fault) -> None:
    for number in range(world.scenario.partitions):
        for topic in (
            world.shop.consents,
            *(topic for topic in world.shop.crowd if topic in ("sim.counting", "sim.rounds")),
        ):
            world.power["records compacted"] += world.broker.partition(topic, number).log.compact()


def _jump(world: "World", fault: Fault) -> None:
    worker = _worker(world, fault)
    worker.skew = (3_600_000, -3_600_000, 0)[fault.count % 3]


def _below_min_isr(world: "World", fault: Fault) -> None:
    partition = world.broker.partition(world.shop.consents, fault.which % world.scenario.partitions)
    _freeze(partition, True)
    world.clock.after(fault.seconds, _freeze, partition, False)


def _freeze(partition: Partition, frozen: bool) -> None:
    partition.frozen = frozen
    partition.refresh()


def _reject(world: "World", fault: Fault) -> None:
    world.cluster.rejects += 1


def _retention(world: "World", fault: Fault) -> None:
    partition = world.broker.partition(world.shop.raw[0], fault.which % world.scenario.partitions)
    before = partition.log.start
    partition.log.trim(partition.log.hw - fault.count % 3)
    world.power["records taken by retention"] += partition.log.start - before


def _break(world: "World", fault: Fault) -> None:
    """Break the next raw record on its way to the disk."""
    partition = world.broker.partition(world.shop.raw[0], fault.which % world.scenario.partitions)
    partition.breaks_next = True


def _make_anew(world: "World", fault: Fault) -> None:
    world.make_consents_anew()


_KINDS: dict[str, Callable[["World", Fault], None]] = {
    "kill a worker": _kill_worker,
    "pause a worker": lambda world, fault: _pause(world, _worker(world, fault), fault.seconds),
    "stop a worker": lambda world, fault: _stop(world, _worker(world, fault), fault.seconds),
    "kill a worker at a step": _at_step(_kill),
    "pause a worker at a step": _at_step(_pause),
    "stop a worker at a step": _at_step(_stop),
    "kill a node": _kill_node,
    "pause a node": _pause_node,
    "isolate a node": _isolate_node,
    "cut a worker off": _cut_worker,
    "cut a worker off one way": _cut_one_way,
    "cut the clients off": _cut_clients,
    "cut nodes off from each other": _cut_nodes,
    "slow link": _slow_link,
    "slow follower": _slow_follower,
    "late end of a transaction": _late_end,
    "slow markers": _slow_markers,
    "move a leader": _move_leader,
    "move a coordinator": _move_coordinator,
    "rebalance": _rebalance,
    "compact": _compact,
    "jump of a clock": _jump,
    "below min.insync.replicas": _below_min_isr,
    "reject a batch": _reject,
    "retention": _retention,
    "break a record": _break,
    "make consents anew": _make_anew,
}
assert set(_KINDS) == set(FAULTS)
