"""The simulated coordinator does what Kafka's is known to do, and processes stop, go on and die as real ones do."""

import asyncio
from collections.abc import Callable

import pytest

from streams.kafka.port import Fenced, PortError
from tests.simulation import broker as brokers
from tests.simulation.bench import OUT, RAW, Bench, output, record, refused, transaction
from tests.simulation.loop import Deadlock
from tests.simulation.network import Code


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- transactions -----------------------------------------------------------------------------------------------------


def test_what_was_aborted_is_never_seen_and_markers_take_offsets(bench: Bench) -> None:
    lane = bench.lane()
    bench.do(lane.init_transactions())

    async def aborted() -> None:
        await lane.begin()
        await lane.send(output(b"aborted"))
        await lane.close_producer(abort=True)

    bench.do(aborted())
    bench.do(lane.init_transactions())
    bench.do(transaction(lane, b"kept"))
    bench.seconds(1.0)
    assert bench.seen(OUT) == [b"kept"]
    assert bench.partition(OUT).log.end == 4


def test_an_open_transaction_hides_what_comes_after_it(bench: Bench) -> None:
    lane, partition = bench.lane(), bench.partition(OUT)

    async def half() -> None:
        await lane.init_transactions()
        await lane.begin()
        await lane.send(output(b"open"))

    bench.do(half())
    bench.do(bench.writer().write(partition, record(b"after")))
    assert (partition.log.hw, partition.log.stable(), bench.seen(OUT)) == (2, 0, [])
    bench.do(lane.commit())
    bench.seconds(1.0)
    assert bench.seen(OUT) == [b"open", b"after"]


def test_starting_a_producer_fences_the_older_one_and_aborts_what_it_had_open(bench: Bench) -> None:
    lane, other = bench.lane(), bench.lane()

    async def meet() -> type[BaseException]:
        await lane.init_transactions()
        await lane.begin()
        await lane.send(output(b"zombie"))
        await other.init_transactions()
        await transaction(other, b"owner")
        return await refused(lane.commit())

    assert bench.do(meet()) is Fenced
    bench.seconds(1.0)
    assert bench.seen(OUT) == [b"owner"]


def test_offsets_count_when_their_transaction_is_committed(bench: Bench) -> None:
    lane = bench.lane()

    async def half() -> None:
        await lane.init_transactions()
        await lane.begin()
        await lane.send(output(b"one"))
        await lane.send_offsets({RAW: 5})

    bench.do(half())
    assert bench.do(lane.committed()) == {RAW: None}
    bench.do(lane.commit())
    bench.seconds(1.0)
    assert bench.do(lane.committed()) == {RAW: 5}


def test_a_late_end_of_a_transaction_ends_the_next_one(bench: Bench) -> None:
    """KAFKA-17754, and why the lane asks for an end only once and then starts a producer of a new epoch."""
    lane, coordinator = bench.lane(), bench.broker.coordinators[0]
    name = lane.transactional_id()

    async def begun() -> tuple[int, int]:
        await lane.init_transactions()
        await transaction(lane, b"first")
        await lane.begin()
        await lane.send(output(b"second, not finished"))
        assert lane._writer is not None
        return lane._writer.pid, lane._writer.epoch

    pid, epoch = bench.do(begun())

    async def late() -> object:
        client = bench.client()
        return await client.at_leader(coordinator.partition, coordinator.end, name, pid, epoch, True)

    assert bench.do(late()) is None
    bench.seconds(1.0)
    assert bench.seen(OUT) == [b"first", b"second, not finished"]


def test_an_end_that_was_refused_is_not_made_up_for_later(bench: Bench) -> None:
    """The coordinator said that nothing was done: who asked asks again, and what follows is another transaction."""
    lane, coordinator = bench.lane(), bench.broker.coordinators[0]
    bench.do(lane.init_transactions())

    async def begun(value: bytes) -> None:
        await lane.begin()
        await lane.send(output(value))

    bench.do(begun(b"first"))
    coordinator.partition.min_isr = 4
    bench.clock.after(0.05, setattr, coordinator.partition, "min_isr", 2)
    bench.do(lane.commit())
    bench.do(begun(b"second, not finished"))
    bench.seconds(1.0)
    assert bench.seen(OUT) == [b"first"]


def test_a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced(bench: Bench) -> None:
    lane = bench.lane()

    async def half() -> None:
        await lane.init_transactions()
        await lane.begin()
        await lane.send(output(b"slow"))

    bench.do(half())
    bench.seconds(bench.broker.transaction_timeout + 1.0)
    assert bench.do(refused(lane.commit())) is Fenced
    assert bench.seen(OUT) == []


def test_a_transaction_that_was_committed_meanwhile_is_not_aborted_for_taking_too_long(bench: Bench) -> None:
    lane, coordinator = bench.lane(), bench.broker.coordinators[0]

    async def begun() -> None:
        await lane.init_transactions()
        await lane.begin()
        await lane.send(output(b"late"))

    bench.do(begun())
    coordinator.partition.min_isr = 4
    # It takes too long at a moment at which that cannot be written down; a moment later it is committed.
    bench.seconds(bench.broker.transaction_timeout + 0.05)
    coordinator.partition.min_isr = 2
    coordinator.marker_delay = 0.5
    bench.do(lane.commit())
    bench.seconds(2.0)
    assert bench.seen(OUT) == [b"late"]
    assert coordinator.settled


def test_a_decision_outlives_its_coordinator(bench: Bench) -> None:
    lane, coordinator = bench.lane(), bench.broker.coordinators[0]
    coordinator.marker_delay = 5.0
    bench.do(lane.init_transactions())
    bench.do(transaction(lane, b"decided"))
    assert bench.seen(OUT) == []
    bench.cluster.kill(bench.cluster.nodes[coordinator.partition.leader])
    coordinator.marker_delay = 0.0
    bench.seconds(3.0)
    assert bench.seen(OUT) == [b"decided"]
    assert coordinator.settled


def test_a_coordinator_does_nothing_with_what_the_next_one_may_not_have(bench: Bench) -> None:
    lane, coordinator = bench.lane(), bench.broker.coordinators[0]
    partition = coordinator.partition
    bench.do(lane.init_transactions())
    last = next(
        node for node in bench.cluster.nodes if node.number not in (partition.leader, (partition.leader + 1) % 3)
    )
    bench.cluster.stop(last)
    bench.process.start(transaction(lane, b"late"))
    bench.seconds(0.2)
    assert partition.log.hw < partition.log.end
    # The next leader has the state too, but not yet all who are in sync.
    partition.lead((partition.leader + 1) % 3)
    read, waited = partition.log.end, 0
    while partition.log.hw < read:
        assert coordinator._loading
        bench.seconds(0.01)
        waited += 1
    assert waited > 10
    bench.cluster.resume(last)
    bench.seconds(5.0)
    assert bench.seen(OUT) == [b"late"]


def test_a_commit_does_not_fail_for_a_batch_that_was_refused(bench: Bench) -> None:
    """As aiokafka has it: the lane's port asks each batch."""
    lane = bench.lane()
    bench.cluster.rejects = 1

    async def careless() -> None:
        await lane.init_transactions()
        await lane.begin()
        await lane.start_sending(output(b"refused"))
        await lane.send_offsets({RAW: 1})
        await lane.commit()

    bench.do(careless())
    bench.seconds(1.0)
    assert (bench.seen(OUT), bench.broker.group.now()) == ([], {(RAW, 0): 1})
    bench.cluster.rejects = 1
    lane = bench.lane()

    async def careful() -> type[BaseException]:
        await lane.init_transactions()
        return await refused(transaction(lane, b"refused", 2))

    assert bench.do(careful()) is PortError


# --- processes and links ----------------------------------------------------------------------------------------------


def test_a_stopped_process_goes_on_where_it_was_with_what_has_come_in_the_meantime(bench: Bench) -> None:
    said: list[tuple[str, float]] = []

    async def ticks() -> None:
        for _ in range(3):
            await asyncio.sleep(1.0)
            said.append(("tick", round(bench.clock.now, 3)))

    bench.process.start(ticks())
    bench.clock.at(1.5, bench.process.stop_for, 5.0)
    bench.seconds(20.0)
    assert said == [("tick", 1.0), ("tick", 6.5), ("tick", 7.5)]


def test_what_a_process_was_about_to_send_when_it_was_stopped_leaves_when_it_goes_on(bench: Bench) -> None:
    lane, partition = bench.lane(), bench.partition(OUT)
    stops: list[Callable[[], None]] = [lambda: bench.process.stop_for(3.0)]

    def step(_who: str, name: str) -> None:
        if name == "commit" and stops:
            stops.pop()()

    lane.ports.step = step
    bench.do(lane.init_transactions())
    task = bench.process.start(transaction(lane, b"late"))
    bench.seconds(2.0)
    assert not task.done()
    assert (partition.log.end, partition.log.stable()) == (1, 0)
    bench.seconds(2.0)
    assert bench.seen(OUT) == [b"late"]


def test_nothing_of_a_killed_process_reaches_anybody(bench: Bench) -> None:
    lane, partition = bench.lane(), bench.partition(OUT)

    async def careful() -> None:
        try:
            await lane.init_transactions()
            await lane.begin()
            await lane.send(output(b"half"))
            await asyncio.sleep(100.0)
        finally:
            await lane.close_producer(abort=True)

    task = bench.process.start(careful())
    bench.clock.at(1.0, bench.process.kill)
    bench.seconds(2.0)
    assert task.cancelled()
    assert partition.log.stable() == 0  # Not aborted: the coordinator has not heard of it.


@pytest.mark.parametrize("holds", [True, False])
def test_what_is_sent_over_a_cut_link_arrives_late_or_never(bench: Bench, holds: bool) -> None:
    partition, node = bench.partition(RAW), bench.leader(RAW)
    bench.network.cut("client", node.name, holds)
    task = bench.process.start(
        bench.client().at_leader(partition, brokers.produce, partition, brokers.Produce(record(b"x")))
    )
    bench.seconds(2.0)
    assert task.result() is Code.TIMED_OUT
    assert partition.log.end == 0
    bench.network.heal("client", node.name)
    bench.seconds(1.0)
    assert partition.log.end == holds


def test_a_run_in_which_nothing_can_happen_any_more_fails(bench: Bench) -> None:
    bench.process.start(asyncio.Event.wait(asyncio.Event()))
    with pytest.raises(Deadlock):
        bench.clock.run()
