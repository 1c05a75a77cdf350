"""The brokers that celosia starts by itself do what tests and the demo rest on."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from confluent_kafka import Producer

from streams.embedded import ApacheKafka, BrokerFailed, apache_kafka, embedded, java_and_maven
from tests.kafka.brokers import (
    Broker,
    ToSend,
    create_topics,
    delete_topics,
    end_offsets,
    produce,
    read_all,
    wait_until,
)


def alive(pid: int) -> bool:
    """Whether a process of this id runs; one that has ended and that nobody has asked about does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return state.strip()[:1] not in ("", "Z")


@pytest.fixture
def occupied() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as owner:
        yield owner.getsockname()[1]


async def test_embedded_broker_carries_records_and_is_gone_afterwards() -> None:
    with embedded() as tansu:
        assert tansu.name == "Tansu 0.6.0 (embedded)"
        assert not tansu.transactions
        create_topics(tansu.bootstrap, {"notes": (2, 1, {})})
        first, second = TopicPartition("notes", 0), TopicPartition("notes", 1)

        producer = AIOKafkaProducer(bootstrap_servers=tansu.bootstrap, acks="all")
        await producer.start()
        try:
            for number in range(3):
                await producer.send_and_wait(
                    "notes", b"%d" % number, key=b"k", partition=1, headers=[("h", b"\0")], timestamp_ms=1234
                )
        finally:
            await producer.stop()

        consumer = AIOKafkaConsumer(
            "notes",
            bootstrap_servers=tansu.bootstrap,
            group_id="readers",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=20,
        )
        await consumer.start()
        try:
            assert await consumer.end_offsets([first, second]) == {first: 0, second: 3}
            got = [await consumer.getone() for _ in range(3)]
            assert [(m.value, m.offset, m.timestamp) for m in got] == [(b"%d" % n, n, 1234) for n in range(3)]
            assert got[0].headers == (("h", b"\0"),)
            assert await consumer.committed(second) is None
            await consumer.commit({second: 2})
            assert await consumer.committed(second) == 2
        finally:
            await consumer.stop()
    assert not alive(tansu.pid)


def test_embedded_broker_dies_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = "import streams.embedded as e, time\nwith e.embedded() as b: print(b.pid, flush=True); time.sleep(600)"
    # Nobody is left to remove the directory of the broker: pytest does.
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert alive(pid)
        owner.kill()
    wait_until(lambda: not alive(pid), "the guard has ended the broker")


def test_port_that_is_taken_gives_one_clear_error(occupied: int) -> None:
    with (
        pytest.raises(BrokerFailed, match=rf"port {occupied}: Address already in use; end its owner"),
        embedded(occupied),
    ):
        pass


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("exit 3", "returned non-zero exit status 3"),
        ("echo 'openjdk version \"11.0.2\"' >&2", "does not say 17 or newer"),
        ("echo 'openjdk version \"1.8.0_402\"' >&2", "does not say 17 or newer"),
        (None, "No such file or directory: 'java'"),
    ],
)
def test_broken_java_gives_one_clear_error(
    script: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        java = tmp_path / "java"
        java.write_text(f"#!/bin/sh\n{script}\n")
        java.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert wanted in str(java_and_maven())
    with pytest.raises(BrokerFailed, match="starting Apache Kafka: `java -version`") as failed, apache_kafka():
        pass
    assert wanted in str(failed.value)
    assert "\n" not in str(failed.value)


def test_broken_setting_shows_the_log_of_the_broker() -> None:
    if reason := java_and_maven():
        pytest.skip(reason)
    with (
        pytest.raises(BrokerFailed, match=r"it ended with code 1; see its log below\n(.*\n)*.*Invalid value banana"),
        apache_kafka(overrides={"num.partitions": "banana"}),
    ):
        pass


def test_apache_kafka_commits_a_transaction_and_is_gone_afterwards() -> None:
    if reason := java_and_maven():
        pytest.skip(reason)
    with apache_kafka() as kafka:
        assert kafka.transactions
        pids = kafka.pids
        create_topics(kafka.bootstrap, {"notes": (1, 1, {})})
        producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": "writer"})
        producer.init_transactions(30)
        for value, end in ((b"dropped", producer.abort_transaction), (b"kept", producer.commit_transaction)):
            producer.begin_transaction()
            producer.produce("notes", value)
            producer.flush(30)
            end(30)
        # Two records and two markers: each isolation sees the end, only one sees what was dropped.
        assert end_offsets(kafka.bootstrap, "notes") == {0: 4}
        assert [r.value for r in read_all(kafka.bootstrap, "notes")] == [b"kept"]
        everything = read_all(kafka.bootstrap, "notes", isolation="read_uncommitted")
        assert [r.value for r in everything] == [b"dropped", b"kept"]
        assert kafka.log_dir(1).joinpath("notes-0").is_dir()
    assert not any(alive(pid) for pid in pids.values())
    assert not kafka.log_dir(1).exists()


def test_independent_client_reads_back_what_it_sent(broker: Broker, topic_prefix: str) -> None:
    topic = f"{topic_prefix}.notes"
    create_topics(broker.bootstrap, {topic: (3, 1, {"cleanup.policy": "compact"})})
    sent = [ToSend(b"k%d" % n, b"v%d" % n, [("h", b"1"), ("none", None)], n % 2, 1000 + n) for n in range(10)]
    produce(broker.bootstrap, topic, [*sent, ToSend(b"k1", None, partition=1)])
    got = sorted(read_all(broker.bootstrap, topic), key=lambda r: (r.timestamp or 0, r.partition))
    assert [(r.key, r.value, r.headers, r.partition, r.timestamp) for r in got[:10]] == [tuple(s) for s in sent]
    assert (got[10].key, got[10].value, got[10].headers) == (b"k1", None, [])
    assert end_offsets(broker.bootstrap, topic) == {0: 5, 1: 6, 2: 0}
    assert len(read_all(broker.bootstrap, topic, until=lambda read: len(read) >= 4)) >= 4
    delete_topics(broker.bootstrap, [topic])


def test_transactional_broker_has_transactions(transactional_broker: Broker) -> None:
    assert transactional_broker.transactions


def test_cluster_lives_on_while_a_node_is_killed_stopped_or_paused(cluster: ApacheKafka, topic_prefix: str) -> None:
    create_topics(cluster.bootstrap, {topic_prefix: (3, 3, {})})
    node = 2
    for down, up in ((cluster.kill, cluster.start), (cluster.stop, cluster.start), (cluster.pause, cluster.resume)):
        down(node)
        try:
            produce(cluster.bootstrap, topic_prefix, [ToSend(value=b"x", partition=p) for p in range(3)])
        finally:
            up(node)  # Others use the cluster after us.
    assert len(cluster.pids) == 3
    assert len(read_all(cluster.bootstrap, topic_prefix)) == 9
