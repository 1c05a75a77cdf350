"""Faults that destroy something, once each: a full disk, and partitions that are added under running workers.

Retention that overtakes the lag and topics that are made anew are in `tests/kafka/test_inputs_broker.py`.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Message, Producer
from confluent_kafka.cimpl import NewPartitions

from streams.embedded import ApacheKafka, apache_kafka, java_and_maven
from streams.kafka.partitioner import partition_of
from tests.chaos.traffic import outside_producer
from tests.kafka.brokers import SECONDS, ToSend, admin_client, create_topics, produce, wait_until
from tests.kafka.retail import RECOMMENDATIONS, consent, event, now_ms, purchases, retail_policy
from tests.kafka.worker import DRAINED, PARTITIONS, Deployment, deployed

pytestmark = pytest.mark.chaos
PEOPLE = [f"person-{number}" for number in range(40)]
GRANT = {RECOMMENDATIONS: "pseudonymous"}
SMALL = 16 << 20
"""Bytes that a file may have on the small disk; an empty index has 10 MiB already."""


@pytest.fixture
def kafka() -> Iterator[ApacheKafka]:
    """A broker of its own: it is hurt."""
    if reason := java_and_maven():
        pytest.skip(f"a broker to be hurt needs Java and Maven: {reason}")
    with apache_kafka() as broker:
        yield broker


@pytest.fixture
def shop(kafka: ApacheKafka, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(kafka.bootstrap, "destroyed", retail_policy("destroyed"), tmp_path) as deployment:
        produce(kafka.bootstrap, deployment.consents, [consent(who, 1, GRANT) for who in PEOPLE])
        yield deployment


def bought(who: str) -> ToSend:
    """An event of one person, now."""
    [line] = purchases(1, now_ms())
    return event(line | {"customer": who})


def published(shop: Deployment) -> list[tuple[int, int]]:
    """The raw records that recommendations were made of."""
    topic = shop.plan.purposes[RECOMMENDATIONS].topic
    return [shop.source_of(record) for record in shop.read(topic)]


def test_disk_that_is_full_loses_nothing_and_doubles_nothing(shop: Deployment, kafka: ApacheKafka) -> None:
    worker = shop.start()
    shop.wait_ready()
    whole = kafka._java
    kafka.stop(1)
    # A limit on the size of files does what a full disk does: a write fails in the middle.
    kafka._java = f"/bin/sh -c 'ulimit -f {SMALL // 512}; exec \"$@\"' sh {whole}"
    kafka.start(1)
    create_topics(kafka.bootstrap, {"filler": (1, 1, {})})
    full, sent = threading.Event(), list[tuple[int, int]]()

    def acknowledged(error: object, message: Message) -> None:
        assert error is None
        sent.append((message.partition() or 0, message.offset() or 0))

    def send() -> None:
        producer = outside_producer(kafka.bootstrap)
        while not full.wait(0.01):
            for who in PEOPLE[:5]:
                record = bought(who)
                producer.produce(shop.raw, key=record.key, value=record.value, on_delivery=acknowledged)
            producer.poll(0)
        assert producer.flush(DRAINED) == 0

    sender = threading.Thread(target=send)
    sender.start()
    try:
        filler = outside_producer(kafka.bootstrap)
        wait_until(lambda: fill(filler) or 1 not in kafka.pids, "the disk is full, and the node has ended", DRAINED)
        kafka._java = whole
        kafka.start(1)
    finally:
        full.set()
        sender.join()
    shop.wait_consumed()
    assert worker.running
    outputs = published(shop)
    assert len(outputs) == len(set(outputs)), "nothing twice"
    assert set(sent) == set(outputs), "nothing lost, and nothing else"
    for number in range(PARTITIONS):
        offsets = [offset for partition, offset in outputs if partition == number]
        assert offsets == sorted(offsets)


def fill(producer: Producer) -> bool:
    """Send a little more; always False."""
    if len(producer) < 20:
        producer.produce("filler", value=bytes(100_000))
    producer.poll(0.01)
    return False


def test_partitions_that_are_added_stop_the_workers(shop: Deployment, kafka: ApacheKafka) -> None:
    worker = shop.start()
    shop.wait_ready()
    produce(kafka.bootstrap, shop.raw, [bought(who) for who in PEOPLE])
    shop.wait_consumed()
    assert len(published(shop)) == len(PEOPLE)
    for topic in (shop.raw, shop.consents, shop.receipts, shop.quarantine, *shop.outputs):
        add_partitions(kafka.bootstrap, topic, 2 * PARTITIONS)
    wait_until(lambda: not worker.running, "the worker ends", DRAINED)
    assert worker.terminate() != 0
    assert f"there are more partitions now than the {PARTITIONS}" in worker.log
    # The key of every other person belongs elsewhere now, and their consent is not there: they are denied.
    moved = {who for who in PEOPLE if partition_of(who.encode(), 2 * PARTITIONS) >= PARTITIONS}
    assert 0 < len(moved) < len(PEOPLE)
    produce(kafka.bootstrap, shop.raw, [bought(who) for who in PEOPLE])
    shop.start()
    shop.wait_ready(partitions=2 * PARTITIONS)
    shop.wait_consumed()
    again = published(shop)[len(PEOPLE) :]
    assert len(again) == len(PEOPLE) - len(moved)
    assert all(partition < PARTITIONS for partition, _ in again)
    # Once they have said it where it belongs, it counts.
    produce(kafka.bootstrap, shop.consents, [consent(who, 2, GRANT) for who in sorted(moved)])
    produce(kafka.bootstrap, shop.raw, [bought(who) for who in sorted(moved)])
    shop.wait_consumed()
    assert len(published(shop)) == 2 * len(PEOPLE)


def add_partitions(bootstrap: str, topic: str, number: int) -> None:
    """Give a topic more partitions, and wait until they are led."""
    admin = admin_client(bootstrap)
    [future] = admin.create_partitions([NewPartitions(topic, number)]).values()
    future.result(SECONDS)

    def led() -> bool:
        try:
            known = admin.list_topics(topic, timeout=SECONDS).topics[topic].partitions
        except KafkaException:
            return False
        return len(known) == number and all(partition.leader >= 0 for partition in known.values())

    wait_until(led, f"{topic} has {number} partitions")
