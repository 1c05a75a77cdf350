"""How a test finds its broker, and what it asks of it through a client that is not celosia's (librdkafka)."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError as AioKafkaError
from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from streams.embedded import BrokerFailed, apache_kafka, embedded, java_and_maven

SECONDS = 60.0
IMAGE = "apache/kafka:4.1.0"


class Broker(NamedTuple):
    """What a test needs to know of the broker it talks to, whoever started it."""

    bootstrap: str
    name: str
    transactions: bool


class Record(NamedTuple):
    """One record as the broker holds it. `timestamp` is milliseconds, or None if the record has none."""

    topic: str
    partition: int
    offset: int
    timestamp: int | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class ToSend(NamedTuple):
    """One record for `produce`. Without a partition the partitioner chooses it by the key."""

    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int = -1
    timestamp: int = 0


@contextmanager
def find_broker() -> Iterator[Broker]:
    """The first that is there: `CELOSIA_BOOTSTRAP`, Docker, Java with Maven, the embedded one."""
    if bootstrap := os.environ.get("CELOSIA_BOOTSTRAP"):
        yield Broker(bootstrap, f"the broker at {bootstrap} (CELOSIA_BOOTSTRAP)", _has_transactions(bootstrap))
    elif docker_missing() is None:
        with docker_kafka() as broker:
            yield broker
    elif java_and_maven() is None:
        with apache_kafka() as kafka:
            yield Broker(kafka.bootstrap, kafka.name, kafka.transactions)
    else:
        with embedded() as tansu:
            yield Broker(tansu.bootstrap, tansu.name, tansu.transactions)


def docker_missing() -> str | None:
    """None if a Docker engine answers, or else the reason why not, in one line."""
    from testcontainers.core.docker_client import DockerClient, get_docker_host

    host = get_docker_host() or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        # Asked here first: Docker's own client leaves a socket open when nobody answers, and warnings are errors.
        if host.startswith("unix://"):
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect(host.removeprefix("unix://"))
        client = DockerClient(timeout=5).client
        try:
            client.ping()
        finally:
            client.close()
    except Exception as error:
        return f"no Docker engine answers ({type(error).__name__})"
    return None


@contextmanager
def docker_kafka() -> Iterator[Broker]:
    """Apache Kafka in a container, reached through one port of 127.0.0.1."""
    from testcontainers.core.container import DockerContainer

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    container = DockerContainer(IMAGE)
    # `with_bind_ports` knows no address and would listen on all of them.
    container.ports = {"9092/tcp": ("127.0.0.1", port)}  # type: ignore[dict-item]
    settings = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_NUM_PARTITIONS": "4",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "4",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "4",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    }
    for name, value in settings.items():
        container.with_env(name, value)
    with container:
        bootstrap, deadline = f"127.0.0.1:{port}", time.monotonic() + 90
        while not _answers(bootstrap):
            if time.monotonic() > deadline:
                out, err = container.get_logs()
                tail = (out + err).decode(errors="replace")[-2000:]
                raise BrokerFailed(f"starting {IMAGE} with Docker: no answer in 90 s; see its log below\n{tail}")
        yield Broker(bootstrap, f"{IMAGE} (Docker)", True)


def create_topics(bootstrap: str, topics: Mapping[str, tuple[int, int, Mapping[str, str]]]) -> None:
    """Create topics (number of partitions, number of replicas, settings) and wait until all have leaders."""
    admin = admin_client(bootstrap)
    wanted = [
        NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=dict(config))
        for name, (partitions, replicas, config) in topics.items()
    ]
    for future in admin.create_topics(wanted, operation_timeout=SECONDS).values():
        future.result(SECONDS)

    def led() -> bool:
        known = admin.list_topics(timeout=SECONDS).topics
        return all(
            name in known
            and len(known[name].partitions) == partitions
            and all(partition.leader >= 0 for partition in known[name].partitions.values())
            for name, (partitions, _, _) in topics.items()
        )

    wait_until(led, f"{list(topics)} have leaders")


def delete_topics(bootstrap: str, names: Iterable[str]) -> None:
    """Delete topics and wait until no broker lists them."""
    admin, names = admin_client(bootstrap), list(names)
    for future in admin.delete_topics(names, operation_timeout=SECONDS).values():
        future.result(SECONDS)
    wait_until(lambda: not set(names) & set(admin.list_topics(timeout=SECONDS).topics), f"{names} are gone")


def produce(
    bootstrap: str,
    topic: str,
    records: Iterable[ToSend],
    acks: str = "all",
    partitioner: str = "murmur2_random",
) -> None:
    """Send records, and return when all are acknowledged. The partitioner is Java's, unless another is named.

    With acks=all each record is there once, whatever was sent again (an idempotent producer).
    """
    producer = Producer(
        {
            **_client(bootstrap),
            "acks": acks,
            "enable.idempotence": acks == "all",
            "partitioner": partitioner,
            "linger.ms": 5,
            # A node that stands still is given up while there is time for another one.
            "socket.timeout.ms": 5_000,
        }
    )
    errors: list[Any] = []

    def delivered(error: Any, _: Message) -> None:
        if error is not None:
            errors.append(error)

    for record in records:
        while True:
            try:
                producer.produce(topic, on_delivery=delivered, **{**record._asdict(), "headers": list(record.headers)})
                break
            except BufferError:  # The queue is full; it empties while we wait here for acknowledgements.
                producer.poll(0.1)
    unsent = producer.flush(SECONDS)
    if errors or unsent:
        raise AssertionError(f"{topic}: {unsent} records unacknowledged, {len(errors)} refused {errors[:3]}")


def end_offsets(bootstrap: str, topic: str, isolation: str = "read_committed") -> dict[int, int]:
    """The offset after the last record of each partition that a reader of this isolation can reach.

    The answer comes from a fetch. The one that Tansu gives to ListOffsets counts only the first record of the last
    batch.
    """
    consumer, ends = _consumer(bootstrap, isolation), dict[int, int]()
    try:
        partitions = _partitions(consumer, topic)
        about = [TopicPartition(topic, partition, _last(consumer, topic, partition)) for partition in partitions]
        consumer.assign(about)
        deadline = time.monotonic() + SECONDS
        while len(ends) < len(about):
            assert time.monotonic() < deadline, f"{topic}: no ends in {SECONDS:.0f} s, only {ends}"
            for message in consumer.consume(1000, timeout=0.05):
                if _at_end(message):
                    ends[message.partition() or 0] = message.offset() or 0
        return ends
    finally:
        consumer.close()


def read_all(
    bootstrap: str,
    topic: str,
    isolation: str = "read_committed",
    until: Callable[[list[Record]], bool] | None = None,
    seconds: float = SECONDS,
) -> list[Record]:
    """All records of a topic: up to the end offsets of now, or until the condition holds on what was read."""
    left = end_offsets(bootstrap, topic, isolation)
    consumer = _consumer(bootstrap, isolation)
    try:
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in left])
        records: list[Record] = []
        deadline = time.monotonic() + seconds
        while not until(records) if until else left:
            if time.monotonic() > deadline:
                missing = "the condition does not hold" if until else f"not at the ends {left}"
                raise AssertionError(f"{topic}: {len(records)} records in {seconds:.0f} s, and {missing}")
            for message in consumer.consume(1000, timeout=0.05):
                if not (ended := _at_end(message)):
                    records.append(_record(message))
                # The end may be a marker of a transaction or an aborted record, which are never handed out: then
                # only the note that the end was reached comes with its offset.
                partition, offset = message.partition() or 0, message.offset() or 0
                if offset + (not ended) >= left.get(partition, 0):
                    left.pop(partition, None)
        return records
    finally:
        consumer.close()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Ask again and again until the condition holds; fail, saying what was waited for, when time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.02)


def _client(bootstrap: str) -> dict[str, Any]:
    # The brokers of tests come and go: do not wait a minute for the answer of one that is paused.
    return {
        "bootstrap.servers": bootstrap,
        "broker.address.family": "v4",
        "reconnect.backoff.max.ms": 500,
        "socket.timeout.ms": 5000,
        # Brokers end before their clients do; what is said of that would come after the runner's last line.
        "log_level": 0,
    }


@cache
def admin_client(bootstrap: str) -> AdminClient:
    """The admin client for a broker: one, that lives as long as the tests.

    One that is let go while its background thread hands on an answer is destroyed by that very thread, which ends the
    process (confluentinc/confluent-kafka-python, pull requests 2129 and 2131).
    """
    return AdminClient(_client(bootstrap))


def _consumer(bootstrap: str, isolation: str) -> Consumer:
    return Consumer(
        {
            **_client(bootstrap),
            "group.id": "celosia-tests-independent-reader",
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
        }
    )


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    found = consumer.list_topics(topic, timeout=SECONDS).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)
    return sorted(found.partitions)


def _last(consumer: Consumer, topic: str, partition: int) -> int:
    ends = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=SECONDS)
    assert ends is not None, f"{topic}[{partition}]: no answer to ListOffsets in {SECONDS:.0f} s"
    return ends[1]


def _at_end(message: Message) -> bool:
    """Whether this is the note that the end of the partition was reached; other errors are raised."""
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    return error is not None


def _record(message: Message) -> Record:
    kind, timestamp = message.timestamp()
    headers = message.headers() or []
    assert isinstance(headers, list)
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        timestamp=None if kind == TIMESTAMP_NOT_AVAILABLE else timestamp,
        key=_bytes(message.key()),
        value=_bytes(message.value()),
        headers=[(name, _bytes(value)) for name, value in headers],
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _answers(bootstrap: str) -> bool:
    try:
        return bool(admin_client(bootstrap).list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def _has_transactions(bootstrap: str) -> bool:
    """Whether aiokafka, the client that celosia uses, gets a transactional producer from this broker."""

    async def ask() -> bool:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id="celosia-tests-probe")
        try:
            await asyncio.wait_for(producer.start(), 15)
        except (AioKafkaError, TimeoutError):
            return False
        finally:
            await producer.stop()
        return True

    return asyncio.run(ask())
