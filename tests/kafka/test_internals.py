"""Where we reach into aiokafka: on its own classes, with record batches that its own builder made."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import CoordinationType
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from streams.embedded import ApacheKafka
from streams.event import RawEvent
from streams.kafka.client import AiokafkaLane
from streams.kafka.connections import translated
from streams.kafka.internals import Batches, OneCommitProducer, _Buffer, fill, hand_on_raw_records
from streams.kafka.port import PortError, Unreadable
from streams.outcome import Output

TP = TopicPartition("raw", 0)


class Assignment:
    """What a fetch result asks of the consumer's assignment."""

    active = True

    def __init__(self, position: int) -> None:
        self.position = position
        self.paused = False

    def state_value(self, _tp: TopicPartition) -> "Assignment":
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


def batch(first: int, values: list[bytes]) -> bytearray:
    """One record batch whose first offset is `first`."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    for index, value in enumerate(values):
        builder.append(index, 1_000, key=b"k", value=value, headers=[])
    data = bytearray(builder.build())
    data[:8] = first.to_bytes(8, "big")  # The offset stands before what the checksum covers.
    return data


def broken(data: bytearray) -> bytearray:
    """The same batch with a bit turned over in its last record."""
    data[-3] ^= 1
    return data


def fetched(position: int, *batches: bytearray, most: int = 1_000) -> tuple[Any, Assignment]:
    """An answer as the fetcher puts it into its buffer, and the assignment behind it."""
    assignment = Assignment(position)
    records = PartitionRecords(TP, Batches(b"".join(batches)), [], position, None, None, True, READ_COMMITTED)
    buffer = _Buffer(most)
    buffer[TP] = FetchResult(TP, assignment=assignment, partition_records=records, backoff=0)
    return buffer[TP], assignment


def test_records_are_handed_on_as_they_are() -> None:
    result, assignment = fetched(5, batch(5, [b"a", b"b"]), batch(7, [b"c"]))
    found = result.getall()
    assert [(record.offset, record.key, record.value, record.timestamp) for record in found] == [
        (5, b"k", b"a", 1_000),
        (6, b"k", b"b", 1_000),
        (7, b"k", b"c", 1_000),
    ]
    assert assignment.position == 8
    assert not result.has_more()


def test_a_batch_that_begins_before_the_position_is_cut() -> None:
    result, _ = fetched(6, batch(5, [b"a", b"b", b"c"]))
    assert [record.value for record in result.getall()] == [b"b", b"c"]


def test_a_transaction_takes_whole_batches_and_the_next_one_goes_on() -> None:
    result, assignment = fetched(0, batch(0, [b"a", b"b"]), batch(2, [b"c"]), batch(3, [b"d"]), most=3)
    assert [record.value for record in result.getall()] == [b"a", b"b", b"c"]
    assert assignment.position == 3
    assert result.has_more()
    assert [record.value for record in result.getall()] == [b"d"]


def test_what_comes_before_a_broken_batch_is_not_lost() -> None:
    result, assignment = fetched(0, batch(0, [b"a"]), broken(batch(1, [b"b", b"c"])), batch(3, [b"d"]))
    assert [record.value for record in result.getall()] == [b"a"]
    assert assignment.position == 1
    assert not result.has_more()  # So the fetcher asks again, from the broken batch on.


def test_a_broken_batch_that_comes_first_says_where_it_ends() -> None:
    result, assignment = fetched(1, broken(batch(1, [b"b", b"c"])), batch(3, [b"d"]))
    with pytest.raises(Unreadable) as raised:
        result.getall()
    assert (raised.value.topic, raised.value.position, raised.value.after) == ("raw", 1, 3)
    assert assignment.position == 1


def test_an_answer_that_was_read_is_free_without_the_garbage_collector() -> None:
    # Megabytes each: when they waited for the collector, a worker grew by 65 MB for each 100,000 events.
    result, _ = fetched(0, batch(0, [b"a"]))
    answer = weakref.ref(result._partition_records)
    gc.collect()
    gc.disable()
    try:
        assert len(result.getall()) == 1
        assert answer() is None
        whole = weakref.ref(result)
        del result
        assert whole() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_broker_is_asked_for_nothing_while_records_of_it_are_unread(seconds: float) -> None:
    # With the library's 0.1 s a lane of two topics stood still for `fetch_wait` whenever one of them was quiet.
    busy, quiet = TopicPartition("busy", 0), TopicPartition("quiet", 0)
    state = SimpleNamespace(has_valid_position=True, paused=False, position=0)
    assignment = SimpleNamespace(tps=[busy, quiet], state_value=lambda _tp: state)
    own = dict.fromkeys(("fetch_max_wait_ms", "fetch_min_bytes", "fetch_max_bytes", "max_partition_fetch_bytes"), 0)
    some = SimpleNamespace(_in_flight=set(), _fetcher_timeout=0.2, _isolation_level=1, _client_rack=None)
    some.__dict__.update({f"_{name}": value for name, value in own.items()}, _select_read_replica=lambda _tp: 1)
    hand_on_raw_records(SimpleNamespace(_fetcher=some), 10)
    assert len(Fetcher._get_actions_per_node(some, assignment)[0]) == 1, "both are asked for, in one request"
    unread, _ = fetched(0, batch(0, [b"a"]))
    unread._backoff = some._prefetch_backoff
    unread._created -= seconds
    some._records[busy] = unread
    assert Fetcher._get_actions_per_node(some, assignment)[0] == []


def test_a_batch_is_filled_until_it_is_full() -> None:
    class Batch:
        def __init__(self) -> None:
            self._builder = DefaultRecordBatchBuilder(2, 0, True, -1, -1, 0, 300)
            self._relative_offset = 0

    outputs = [Output("out", b"k", bytes(100), [("h", b"v")], 5) for _ in range(5)]
    sizes = []
    done = 0
    while done < len(outputs):
        one = Batch()
        before, done = done, fill(one, outputs, done)
        assert one._relative_offset == done - before > 0
        sizes.append(done - before)
    assert sum(sizes) == 5
    assert len(sizes) > 1


class Closed:
    """What uvloop does with a write to a connection that is closed."""

    def write(self, _data: bytes) -> None:
        raise RuntimeError("unable to perform operation; the handler is closed")

    def close(self) -> None: ...


async def test_a_write_to_a_connection_that_is_closed_is_an_error_of_the_connection() -> None:
    connection = AIOKafkaConnection("127.0.0.1", 1)
    connection._writer = Closed()
    request = HeartbeatRequest("group", 1, "member")
    connection._versions = {request.API_KEY: (0, 1)}
    with pytest.raises(kafka_errors.KafkaConnectionError):
        connection.send(request)
    assert not connection.connected()


class Coordinator:
    """A coordinator that answers the question for committed offsets as it is told."""

    def __init__(self, topics: list[Any], error_code: int) -> None:
        self.answer = SimpleNamespace(topics=topics, error_code=error_code)

    async def coordinator_lookup(self, *_: object) -> int:
        return 1

    async def send(self, *_: object, **__: object) -> SimpleNamespace:
        return self.answer


HELD = ("raw", [(0, 17, "", 0)])
NONE = ("raw", [(0, -1, "", 0)])


async def committed(topics: list[Any], error_code: int = 0) -> dict[TopicPartition, int | None]:
    """Ask through a producer, without transactions, that has no connections."""
    producer = object.__new__(OneCommitProducer)
    producer._txn_manager, producer._closed = None, True
    producer.client = Coordinator(topics, error_code)
    return await producer.committed("group", [TP])


async def test_what_is_committed_is_told() -> None:
    assert await committed([HELD]) == {TP: 17}
    assert await committed([NONE]) == {TP: None}


@pytest.mark.parametrize(
    ("topics", "error_code"),
    [
        pytest.param([], 16, id="not the coordinator"),
        pytest.param([], 14, id="is loading"),
        pytest.param([], 15, id="not available"),
        pytest.param([HELD], 16, id="an error beside offsets"),
        pytest.param([("raw", [(0, -1, "", 3)])], 0, id="unknown topic"),
        pytest.param([("raw", [(0, -1, "", 88)])], 0, id="a transaction is not over"),
        pytest.param([], 0, id="nothing about what was asked"),
        pytest.param([("other", [(0, 1, "", 0)])], 0, id="about something else"),
    ],
)
async def test_a_coordinator_that_cannot_say_is_not_taken_for_one_that_says_nothing_is_committed(
    topics: list[Any], error_code: int
) -> None:
    # aiokafka's own `committed` returns None for the first three, the fifth and the last two.
    with pytest.raises(kafka_errors.KafkaError):
        await committed(topics, error_code)


NOT_YET = (
    kafka_errors.GroupCoordinatorNotAvailableError,
    kafka_errors.GroupLoadInProgressError,
    kafka_errors.NotCoordinatorForGroupError,
)


async def patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until the cluster has made the topic that coordinators need, and has loaded it."""
    while True:
        try:
            return await ask()
        except NOT_YET:
            await asyncio.sleep(0.1)


async def test_a_broker_that_is_not_the_coordinator_says_so(cluster: ApacheKafka, topic_prefix: str) -> None:
    tp = TopicPartition("__consumer_offsets", 0)
    async with OneCommitProducer(bootstrap_servers=cluster.bootstrap, retry_backoff_ms=20) as producer:
        lookup = producer.client.coordinator_lookup
        right = await patiently(lambda: lookup(CoordinationType.GROUP, topic_prefix))
        assert await patiently(lambda: producer.committed(topic_prefix, [tp])) == {tp: None}
        for node in {1, 2, 3} - {right}:
            producer.client.coordinator_lookup = lambda *_, node=node: asyncio.sleep(0, node)
            with pytest.raises(kafka_errors.NotCoordinatorForGroupError):
                await producer.committed(topic_prefix, [tp])


@pytest.mark.parametrize("name", sorted(kafka_errors.__all__))
async def test_whatever_the_library_raises_is_an_error_of_the_port(name: str) -> None:
    # Two of its errors are no `KafkaError`: one of these, after a coordinator was killed, ended the whole worker.
    error = getattr(kafka_errors, name)
    if not (isinstance(error, type) and issubclass(error, Exception)) or name == "OffsetOutOfRangeError":
        return
    with pytest.raises(PortError) as raised:
        async with translated():
            raise error
    assert raised.value.args == (error.__name__,)


async def test_errors_that_nobody_waits_for_are_told_by_their_kind(caplog: pytest.LogCaptureFixture) -> None:
    from streams.kafka.app import _say_what_kind  # It loads Faust, which nothing else here needs.

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_say_what_kind)
    try:
        loop.call_soon(int, "CANARY")
        failed = loop.create_future()
        failed.set_exception(ValueError("CANARY"))
        del failed
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert caplog.text.count("something failed that nobody waited for: ValueError") == 2
    assert "CANARY" not in caplog.text


def test_what_nobody_hands_on_is_no_lag_beside_a_topic_that_is_never_quiet() -> None:
    # Else the clock never says of the quiet topic how far it is, and no window of a crowd closes.
    busy, quiet = TopicPartition("busy", 0), TopicPartition("quiet", 0)

    class Consumer:
        """Has one record of `busy` at each read, and has passed a transaction of ten in `quiet`, which was aborted."""

        def __init__(self) -> None:
            self.positions = {busy: 0, quiet: 10}

        async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[RawEvent]]:
            self.positions[busy] += 1
            return {busy: [RawEvent(self.positions[busy] - 1, 0, b"k", b"v")]}

        async def position(self, tp: TopicPartition) -> int:
            return self.positions[tp]

        def highwater(self, tp: TopicPartition) -> int:
            return self.positions[tp]

    async def commit(_offsets: object) -> None:
        pass

    async def two_batches() -> dict[str, int]:
        settings: Any = SimpleNamespace(transactional=False)
        shared: Any = SimpleNamespace(settings=settings, member=SimpleNamespace(commit=commit))
        lane = AiokafkaLane(shared, "minimize", 0, ["busy", "quiet"], "consents")
        lane._consumer, lane._next = Consumer(), {"busy": 0, "quiet": 0}
        for _ in range(2):
            [batch] = await lane.read_batch()
            await lane.send_offsets({batch.topic: batch.next_offset})
            await lane.commit()
        return lane.lag()

    assert asyncio.run(two_batches()) == {"busy": 0, "quiet": 0}
