"""The simulated cluster does what Kafka is known to do, also where that is unpleasant: logs, replicas, leaders."""

import pytest

from streams.kafka.port import OffsetsGone
from tests.simulation import broker as brokers
from tests.simulation.bench import CONSENTS, RAW, Bench, record, transaction
from tests.simulation.client import Client, Reader, Writer
from tests.simulation.loop import Process
from tests.simulation.network import Code
from tests.simulation.partition import Partition


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_record_acknowledged_by_the_leader_only_is_lost_when_another_takes_over(bench: Bench) -> None:
    partition = bench.partition(CONSENTS)
    partition.frozen = True
    assert bench.do(bench.writer(acks_all=False).write(partition, record(b"grant"))) == 0
    partition.frozen = False
    bench.cluster.kill(bench.leader(CONSENTS))
    bench.seconds(2.0)
    assert partition.log.end == 0
    assert bench.power["records truncated at fail-over"] == 1


def test_a_record_acknowledged_by_all_survives_its_leader(bench: Bench) -> None:
    partition = bench.partition(CONSENTS)
    bench.do(bench.writer().write(partition, record(b"grant")))
    old = bench.leader(CONSENTS)
    bench.cluster.kill(old)
    bench.seconds(2.0)
    assert partition.leader != old.number
    assert bench.seen(CONSENTS) == [b"grant"]


def test_readers_never_see_what_the_followers_do_not_have(bench: Bench) -> None:
    partition = bench.partition(CONSENTS)
    partition.frozen = True
    bench.do(bench.writer(acks_all=False).write(partition, record(b"grant")))
    reader = Reader(bench.client())
    reader.seek(partition, 0)
    assert bench.do(reader.take(0.3)) == []
    partition.frozen = False
    bench.cluster.refresh()
    [(_, fetched)] = bench.do(reader.take(1.0))
    assert [entry.value for entry in fetched.records] == [b"grant"]


def test_nobody_leads_while_no_replica_in_sync_is_there(bench: Bench) -> None:
    partition = bench.partition(CONSENTS)
    first = bench.leader(CONSENTS)
    others = [node for node in bench.cluster.nodes if node is not first]
    for node in others:
        bench.cluster.kill(node)
    bench.seconds(2.0)
    assert partition.isr == [first.number]
    bench.cluster.kill(first)
    bench.seconds(2.0)
    for node in others:
        bench.cluster.restart(node)
    bench.seconds(2.0)
    assert partition.leader == -1
    bench.cluster.restart(first)
    bench.seconds(2.0)
    assert (partition.leader, partition.isr) == (first.number, [0, 1, 2])


def test_with_too_few_replicas_in_sync_nothing_is_taken(bench: Bench) -> None:
    partition = bench.partition(CONSENTS)
    partition.frozen = True
    partition.refresh()
    bench.seconds(1.0)
    assert len(partition.isr) == 1
    node = bench.leader(CONSENTS)

    async def ask() -> object:
        return await bench.client().ask(node.number, brokers.produce, partition, brokers.Produce(record(b"x")))

    assert bench.do(ask()) is Code.NOT_ENOUGH_REPLICAS
    assert partition.log.end == 0


def test_a_batch_that_is_sent_twice_is_written_once(bench: Bench) -> None:
    partition = bench.partition(CONSENTS)
    node = partition.leader
    batch = brokers.Produce(record(b"x"), True, 7, 0, 0)

    async def ask() -> list[object]:
        client = bench.client()
        return [await client.ask(node, brokers.produce, partition, batch) for _ in range(2)]

    assert bench.do(ask()) == [0, 0]
    assert partition.log.end == 1


def test_compaction_leaves_gaps_and_positions_move_over_them(bench: Bench) -> None:
    partition, writer = bench.partition(CONSENTS), bench.writer()
    for value in (b"1", b"2", b"3"):
        bench.do(writer.write(partition, record(value, b"ana")))
    bench.do(writer.write(partition, record(b"4", b"ben")))
    assert partition.log.compact() == 2
    reader = Reader(bench.client())
    reader.seek(partition, 0)
    [(_, fetched)] = bench.do(reader.take(1.0))
    assert [(entry.offset, entry.value) for entry in fetched.records] == [(2, b"3"), (3, b"4")]
    assert fetched.position == 4


def test_a_position_that_retention_has_taken_is_told(bench: Bench) -> None:
    partition, writer = bench.partition(RAW), bench.writer()
    for _ in range(3):
        bench.do(writer.write(partition, record(b"event")))
    partition.log.trim(2)
    reader = Reader(bench.client())
    reader.seek(partition, 0)
    with pytest.raises(OffsetsGone):
        bench.do(reader.take(1.0))


# --- leaders that are none --------------------------------------------------------------------------------------------


def test_a_leader_that_is_cut_off_goes_on_to_tell_its_old_end_and_acknowledges_nothing(bench: Bench) -> None:
    partition, old = bench.partition(CONSENTS), bench.leader(CONSENTS)
    lane = bench.lane()
    bench.do(bench.writer().write(partition, record(b"grant")))
    assert bench.do(lane.end_offset()).offset == 1
    assert bench.do(lane.write_barrier()).offset == 2
    bench.cluster.cut_off(old)
    bench.seconds(1.0)
    assert partition.leader != old.number
    bench.do(Writer(_knowing(bench, partition), bench.cluster.new_pid(), 0).write(partition, record(b"withdrawal")))
    # Whoever has learned of the new leader knows better; the lane has not.
    assert bench.do(lane.end_offset()).offset == 2
    barrier = bench.process.start(lane.write_barrier())
    bench.seconds(1.0)
    assert not barrier.done()
    bench.cluster.rejoin(old)
    bench.seconds(2.0)
    assert barrier.result().offset == 4


def _knowing(bench: Bench, partition: Partition) -> Client:
    client = bench.client()
    client.led_by(partition, partition.leader)
    return client


def test_a_leader_that_is_cut_off_calls_a_position_gone_that_it_has_not_heard_of(bench: Bench) -> None:
    partition, old = bench.partition(RAW), bench.leader(RAW)
    bench.do(bench.writer().write(partition, record(b"event")))
    reader = Reader(bench.client())
    reader.client.led_by(partition, old.number)
    bench.cluster.cut_off(old)
    bench.seconds(1.0)
    newer = Writer(_knowing(bench, partition), bench.cluster.new_pid(), 0)
    for value in (b"another", b"one more"):
        bench.do(newer.write(partition, record(value)))
    reader.seek(partition, 3)
    with pytest.raises(OffsetsGone):
        bench.do(reader.take(1.0))


def test_a_new_leader_tells_no_end_before_it_knows_what_all_have(bench: Bench) -> None:
    partition = bench.partition(CONSENTS)
    bench.do(bench.writer().write(partition, record(b"withdrawal")))
    bench.cluster.elect(partition)
    partition.log.hw = 0  # It has not heard of the move.
    partition.frozen = True
    node = partition.leader

    async def ask() -> object:
        return await bench.client().ask(node, brokers.list_offset, partition, False)

    assert bench.do(ask()) is Code.OFFSET_NOT_AVAILABLE


def test_a_coordinator_that_is_cut_off_tells_offsets_that_are_no_more(bench: Bench) -> None:
    lane, group = bench.lane(), bench.broker.group
    bench.do(lane.init_transactions())
    bench.do(transaction(lane, b"one", 1))
    other = Process(bench.clock, "other")
    late = bench.lane(other)
    bench.seconds(1.0)
    assert bench.do(late.committed(), other) == {RAW: 1}
    bench.cluster.cut_off(bench.cluster.nodes[group.partition.leader])
    bench.seconds(2.0)
    bench.do(transaction(lane, b"two", 2))
    bench.seconds(1.0)
    assert group.now() == {(RAW, 0): 2}
    assert bench.do(late.committed(), other) == {RAW: 1}
