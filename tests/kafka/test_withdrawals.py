"""T1 and T2 on real brokers: after an acknowledged withdrawal nothing passes, and after its receipt nothing follows.

A trial is one person: granted, shown to be published, then withdrawn with acks=all, and the moment the broker has
acknowledged it an event of theirs is sent. Trials run beside each other; each person has one. The same trials without
the gate must let events through, or they would prove nothing.
"""

import os
import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import OFFSET_END, Consumer, Message, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from streams.embedded import ApacheKafka
from streams.kafka.lane import Receipt
from tests.kafka.brokers import SECONDS, Broker, ToSend, admin_client, produce
from tests.kafka.retail import RECOMMENDATIONS, consent, event, now_ms, purchases, retail_policy
from tests.kafka.worker import DRAINED, PARTITIONS, Deployment, deployed

TRIALS = int(os.environ.get("CELOSIA_TRIALS", "120"))
LONG_TRIALS = 500

NO_GATE = """
from streams.kafka.lane import Lane
async def no_gate(self, follower):
    return None
Lane._gate = no_gate
"""
SLOW_FOLLOWER = """
import asyncio
from streams.kafka.client import AiokafkaConsents
read_consents = AiokafkaConsents.read_consents
async def slow(self):
    batch = await read_consents(self)
    await asyncio.sleep(0.25)
    return batch
AiokafkaConsents.read_consents = slow
"""
both = pytest.mark.parametrize("trials", [TRIALS, pytest.param(LONG_TRIALS, marks=pytest.mark.chaos)])


def client(bootstrap: str, linger: int = 0) -> Producer:
    """A producer as a consent service would have it: acks=all, murmur2, nothing is held back."""
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "broker.address.family": "v4",
            "acks": "all",
            "partitioner": "murmur2",
            "linger.ms": linger,
        }
    )


def bought(customer: str) -> ToSend:
    """An event of one person, now."""
    [line] = purchases(1, now_ms())
    return event(line | {"customer": customer})


@contextmanager
def load(shop: Deployment, per_second: int, people: list[str]) -> Iterator[None]:
    """Events of these people all the while."""
    stop = threading.Event()
    failures: list[object] = []

    def delivered(error: object, _: Message) -> None:
        if error is not None:
            failures.append(error)

    def send() -> None:
        # In batches, and no more than the broker takes: a queue here would be no load there.
        producer, chance = client(shop.bootstrap, linger=5), random.Random(3)
        while not stop.wait(0.01):
            for _ in range(per_second // 100 if len(producer) < per_second else 0):
                key, value, *_ = bought(chance.choice(people))
                producer.produce(shop.raw, key=key, value=value, on_delivery=delivered)
            producer.poll(0)
        failures.extend(["unacknowledged"] * producer.flush(SECONDS))

    thread = threading.Thread(target=send, name="load")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures


def send_one_each(shop: Deployment, people: list[str]) -> set[tuple[int, int]]:
    """One event of each person, consumed when this returns: partitions and offsets."""
    producer, places = client(shop.bootstrap), set()

    def sent(error: object, message: Message) -> None:
        assert error is None
        places.add((message.partition() or 0, message.offset() or 0))

    for who in people:
        key, value, *_ = bought(who)
        producer.produce(shop.raw, key=key, value=value, on_delivery=sent)
    assert producer.flush(SECONDS) == 0
    assert len(places) == len(people)
    shop.wait_consumed(shop.raw, ends_of(places))
    return places


def ends_of(places: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The offset after the last place of each partition."""
    ends: dict[int, int] = {}
    for partition, offset in places:
        ends[partition] = max(ends.get(partition, 0), offset + 1)
    return ends


def published_after_withdrawal(shop: Deployment, trials: int, pace: float, seed: int = 1) -> int:
    """Run the trials; return how many events were published though their person had withdrawn before."""
    people = [f"person-{seed}-{number}" for number in range(trials)]
    grants = [consent(who, 1, {RECOMMENDATIONS: "pseudonymous"}) for who in [*people, "somebody"]]
    produce(shop.bootstrap, shop.consents, grants)
    shop.wait_in_force()
    before = send_one_each(shop, people)
    published = {shop.source_of(record) for record in shop.read(shop.outputs[0])}
    assert before <= published, "granted, and published before the withdrawal"

    consents, events, chance = client(shop.bootstrap), client(shop.bootstrap), random.Random(seed)
    after: dict[tuple[int, int], bytes] = {}
    errors: list[object] = []

    def sent(error: object, message: Message) -> None:
        if error is not None:
            errors.append(error)
        after[message.partition() or 0, message.offset() or 0] = bytes(message.key() or b"")

    def acknowledged(error: object, message: Message) -> None:
        if error is not None:
            errors.append(error)
        key, value, *_ = bought(bytes(message.key() or b"").decode())
        events.produce(shop.raw, key=key, value=value, on_delivery=sent)
        events.poll(0)

    for who in people:
        record = consent(who, 2)
        consents.produce(shop.consents, key=record.key, value=record.value, on_delivery=acknowledged)
        until = time.monotonic() + chance.uniform(0, 2 * pace)
        while (left := until - time.monotonic()) > 0:  # The pace of the trials; acknowledgements come in here.
            consents.poll(left)
    assert consents.flush(SECONDS) == 0
    assert events.flush(SECONDS) == 0
    assert not errors
    assert sorted(after.values()) == sorted(who.encode() for who in people)
    shop.wait_consumed(shop.raw, ends_of(after))
    return sum(shop.source_of(record) in after for record in shop.read(shop.outputs[0]))


@pytest.fixture
def shop(transactional_broker: Broker, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(transactional_broker.bootstrap, topic_prefix, one_purpose(topic_prefix), tmp_path) as deployment:
        yield deployment


@pytest.fixture
def apart(cluster: ApacheKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    """Three brokers, each record on all of them: consents are led by another one than the events of their partition."""
    with Deployment(cluster.bootstrap, topic_prefix, one_purpose(topic_prefix), tmp_path, 3) as deployment:
        nodes = [1, 2, 3]
        durable = {"min.insync.replicas": "2"}
        topics = {
            deployment.raw: (0, durable),
            deployment.consents: (1, durable | {"cleanup.policy": "compact"}),
        }
        admin = admin_client(cluster.bootstrap)
        new = [
            NewTopic(
                topic,
                num_partitions=PARTITIONS,
                replica_assignment=[
                    [nodes[(number + first + i) % 3] for i in range(3)] for number in range(PARTITIONS)
                ],
                config=config,
            )
            for topic, (first, config) in topics.items()
        ]
        for future in admin.create_topics(new).values():
            future.result(SECONDS)
        deployment.create_topics()
        known = admin.list_topics(timeout=SECONDS).topics
        for number in range(PARTITIONS):
            leaders = {known[topic].partitions[number].leader for topic in topics}
            assert len(leaders) == 2
        yield deployment


def one_purpose(prefix: str) -> dict[str, object]:
    """The shop's policy with recommendations alone, so that there is one topic to look at."""
    policy = retail_policy(prefix)
    policy["purposes"] = {name: it for name, it in policy["purposes"].items() if name.startswith("personalization")}
    for fields in policy["events"].values():
        for rule in fields.values():
            if isinstance(rule.get("for"), list):
                rule["for"] = [name for name in rule["for"] if name in policy["purposes"]]
                if not rule["for"]:
                    del rule["for"]
                    rule.pop("as", None)
                    rule["drop"] = "not here"
    return policy


@both
def test_withdrawal_holds_on_an_idle_broker(shop: Deployment, trials: int) -> None:
    shop.start()
    shop.wait_ready()
    assert published_after_withdrawal(shop, trials, pace=0.02) == 0


@both
def test_withdrawal_holds_under_load(shop: Deployment, trials: int) -> None:
    shop.start()
    shop.wait_ready()
    with load(shop, 3_000, ["somebody", *(f"other-{n}" for n in range(100))]):
        assert published_after_withdrawal(shop, trials, pace=0.02) == 0


@both
def test_withdrawal_holds_where_consents_come_late(shop: Deployment, trials: int) -> None:
    worker = shop.start(script=SLOW_FOLLOWER)
    shop.wait_ready()
    assert published_after_withdrawal(shop, trials, pace=0.01) == 0
    assert worker.metrics()["celosia_gate_wait_seconds_sum", "minimize"] > 1.0, "the gate had to wait"


def test_without_the_gate_it_does_not_hold(shop: Deployment) -> None:
    shop.start(script=NO_GATE + SLOW_FOLLOWER)
    shop.wait_ready()
    assert published_after_withdrawal(shop, 100, pace=0.01) > 0


@both
def test_withdrawal_holds_on_three_brokers_with_leaders_apart(apart: Deployment, trials: int) -> None:
    apart.start()
    apart.wait_ready()
    assert published_after_withdrawal(apart, trials, pace=0.02) == 0
    with load(apart, 2_000, ["somebody", *(f"other-{n}" for n in range(100))]):
        assert published_after_withdrawal(apart, trials, pace=0.02, seed=2) == 0


def test_without_the_gate_it_does_not_hold_on_three_brokers(apart: Deployment) -> None:
    apart.start(script=NO_GATE + SLOW_FOLLOWER)
    apart.wait_ready()
    assert published_after_withdrawal(apart, 100, pace=0.01) > 0


def test_nothing_of_an_older_consent_follows_a_receipt(shop: Deployment) -> None:
    """T2. Asked of the broker in the moment a receipt is seen: where do readers of the outputs stand?"""
    shop.start()
    shop.wait_ready()
    people = [f"person-{number}" for number in range(60)]
    grants = [consent(who, 1, {RECOMMENDATIONS: "pseudonymous"}) for who in people]
    produce(shop.bootstrap, shop.consents, grants)
    shop.wait_in_force()
    send_one_each(shop, people)

    config = {
        "bootstrap.servers": shop.bootstrap,
        "group.id": f"{shop.group}-watch",
        "isolation.level": "read_committed",
    }
    watch = Consumer({**config, "fetch.wait.max.ms": 10})
    output = shop.outputs[0]
    withdrawn: dict[tuple[int, int], str] = {}
    visible: dict[str, tuple[int, int]] = {}
    """by person: the output partition, and where its readers stood when the receipt was seen"""

    def look(seconds: float) -> None:
        for message in watch.consume(100, timeout=seconds):
            assert message.error() is None
            receipt = msgspec.json.decode(message.value() or b"", type=Receipt)
            stood = watch.get_watermark_offsets(TopicPartition(output, receipt.partition), timeout=SECONDS)
            assert stood is not None
            for (partition, offset), who in withdrawn.items():
                if partition == receipt.partition and offset < receipt.through and who not in visible:
                    visible[who] = partition, stood[1]

    def acknowledged(error: object, message: Message) -> None:
        assert error is None
        withdrawn[message.partition() or 0, message.offset() or 0] = bytes(message.key() or b"").decode()

    try:
        watch.assign([TopicPartition(shop.receipts, number, OFFSET_END) for number in range(PARTITIONS)])
        watch.consume(1, timeout=0.1)
        consents = client(shop.bootstrap)
        with load(shop, 3_000, people):
            for who in people:
                record = consent(who, 2)
                consents.produce(shop.consents, key=record.key, value=record.value, on_delivery=acknowledged)
                assert consents.flush(SECONDS) == 0
                look(0.05)
            deadline = time.monotonic() + DRAINED
            while len(visible) < len(people):
                assert time.monotonic() < deadline, f"no receipts for {set(people) - set(visible)}"
                look(0.05)
            ended = now_ms()
            shop.wait_consumed()
        shop.wait_consumed()
    finally:
        watch.close()

    raw = {(record.partition, record.offset): record for record in shop.read(shop.raw)}
    late, before = [], dict.fromkeys(people, 0)
    for out in shop.read(output):
        who = (raw[shop.source_of(out)].key or b"").decode()
        before[who] += 1
        if out.offset >= visible[who][1]:
            late.append((who, out.partition, out.offset))
    assert late == []
    assert min(before.values()) > 0, "everyone was published before"
    still = {(record.key or b"").decode() for record in raw.values() if (record.timestamp or 0) > ended}
    assert still == set(people), "everyone's events went on after the last receipt"
