"""Bad input through a real broker: one outcome each, the offset advances, nothing personal anywhere, the worker lives.

All single records go through one worker at once; each test then asks what became of one of them. What can befall a
whole topic (retention, deletion, a broken disk) has a deployment of its own.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from streams.embedded import apache_kafka, java_and_maven
from streams.kafka.partitioner import partition_of
from tests.kafka.brokers import SECONDS, Broker, Record, admin_client, delete_topics, end_offsets, produce, wait_until
from tests.kafka.retail import ASSORTMENT, RECOMMENDATIONS, consent, event, now_ms, purchases, retail_policy
from tests.kafka.worker import PARTITIONS, Deployment, Worker, deployed

CANARY = "CANARY"
LIMIT = 12 << 20
"""max.message.bytes of the raw topic of these tests"""
GRANTED = {RECOMMENDATIONS: "pseudonymous"}


class Sent(NamedTuple):
    """One input: what was sent, where it landed, and what is to become of it."""

    name: str
    outcome: str
    reason: str | None
    partition: int
    offset: int
    size: int


class Case(NamedTuple):
    """One input to send, and what is to become of it."""

    outcome: str
    reason: str | None
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int | None = None
    options: tuple[tuple[str, Any], ...] = ()


def line(**fields: Any) -> dict[str, Any]:
    [document] = purchases(1, now_ms() - 1000)
    return document | {"customer": f"{CANARY}-ana"} | fields


def value(**fields: Any) -> bytes:
    return json.dumps(line(**fields)).encode()


ANA = f"{CANARY}-ana".encode()
P, S, Q = "published", "suppressed", "quarantined"
OTHER_PARTITION = (partition_of(ANA, PARTITIONS) + 1) % PARTITIONS
HUGE = {"stock_code": "x" * (10 << 20)}
TWICE = [(CANARY, None), (CANARY, b"1"), (CANARY, b"1"), ("celosia-source", CANARY.encode())]
CASES: dict[str, Case] = {
    "an ordinary event": Case(P, None, ANA, value()),
    "no value": Case(Q, "no_value", ANA, None),
    "empty value": Case(Q, "no_value", ANA, b""),
    "no key": Case(Q, "key_is_not_subject", None, value(), partition=1),
    "empty key": Case(Q, "key_is_not_subject", b"", value()),
    "another's key": Case(Q, "key_is_not_subject", b"CANARY-ben", value()),
    "key of invalid UTF-8": Case(Q, "key_is_not_subject", b"CANARY\xff\xfe", value()),
    "key of 500 KiB": Case(Q, "key_is_not_subject", b"CANARY" * 85_000, value()),
    "another partition": Case(Q, "wrong_partition", b"CANARY-cat", value(customer="CANARY-cat"),
                              partition=(partition_of(b"CANARY-cat", PARTITIONS) + 1) % PARTITIONS),
    "nobody": Case(S, "no_subject", None, value(customer=None), partition=2),
    "nobody known": Case(S, "no_consent", b"CANARY-eve", value(customer="CANARY-eve")),
    "event not named": Case(S, "event_not_named", ANA, value(type="CANARY-viewed")),
    "value of invalid UTF-8": Case(Q, "malformed", ANA, value(country="x").replace(b'"x"', b'"CANARY\xff"')),
    "overlong UTF-8": Case(Q, "malformed", ANA, value(country="x").replace(b'"x"', b'"\xc0\xaf"')),
    "byte order mark": Case(Q, "malformed", ANA, b"\xef\xbb\xbf" + value()),
    "cut": Case(Q, "malformed", ANA, value()[:-1]),
    "two documents": Case(Q, "malformed", ANA, value() + value()),
    "subject twice": Case(Q, "duplicate_name", ANA, value()[:-1] + b', "customer": "CANARY-ben"}'),
    "subject twice, escaped": Case(Q, "duplicate_name", ANA, value()[:-1] + b', "\\u0063ustomer": "CANARY-ben"}'),
    "not a number": Case(Q, "malformed", ANA, value(x="y").replace(b'"y"', b"NaN")),
    "an array": Case(Q, "not_an_object", ANA, b'["CANARY"]'),
    "item is no group": Case(Q, "wrong_shape", ANA, value(item="CANARY")),
    "subject is an object": Case(Q, "bad_subject", ANA, value(customer={"CANARY": 1})),
    "no type": Case(Q, "bad_type", ANA, value(type=None)),
    "time without an offset": Case(Q, "bad_time", ANA, value(occurred_at="2026-01-01T00:00:00")),
    "a depth of 100,000": Case(Q, "too_deep", ANA, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "200,000 keys": Case(P, None, ANA, value(x={f"{CANARY}{n}": n for n in range(200_000)})),
    "a string of 10 MiB": Case(P, None, ANA, value(note=CANARY + "x" * (10 << 20))),
    "just below the limit": Case(P, None, ANA, value(note="x" * (LIMIT - 1500))),
    "a field of 10 MiB that is published": Case(Q, "too_large", ANA, value(item=line()["item"] | HUGE)),
    "headers twice and null": Case(P, None, ANA, value(), TWICE),
    "5,000 headers": Case(P, None, ANA, value(), [(f"CANARY-{n}", b"CANARY") for n in range(5_000)]),
    "gzip": Case(P, None, ANA, value(), options=(("compression.type", "gzip"),)),
    "snappy": Case(P, None, ANA, value(), options=(("compression.type", "snappy"),)),
    "lz4": Case(P, None, ANA, value(), options=(("compression.type", "lz4"),)),
    "zstd": Case(P, None, ANA, value(), options=(("compression.type", "zstd"),)),
    "10 MiB in 10 KiB": Case(P, None, ANA, value(note="x" * (10 << 20)), options=(("compression.type", "gzip"),)),
    "in the far future": Case(P, None, ANA, value(occurred_at="9999-12-31T23:59:59Z")),
    "before the consent": Case(S, "recorded_before_consent", ANA, value(occurred_at="1999-12-31T23:59:59Z")),
    "negative time": Case(S, "recorded_before_consent", ANA, value(occurred_at=-1)),
    # Consents that cannot count.
    "tombstone": Case(S, "consent_unreadable", b"CANARY-tom", value(customer="CANARY-tom")),
    "undecodable": Case(S, "consent_unreadable", b"CANARY-und", value(customer="CANARY-und")),
    "undecodable, then a newer one": Case(P, None, b"CANARY-new", value(customer="CANARY-new")),
    "another's record": Case(S, "consent_unreadable", b"CANARY-oth", value(customer="CANARY-oth")),
    "a grant that was aborted": Case(S, "no_consent", b"CANARY-abo", value(customer="CANARY-abo")),
    "equal versions that disagree": Case(S, "not_allowed", b"CANARY-equ", value(customer="CANARY-equ")),
    "an old grant after the withdrawal": Case(S, "not_allowed", b"CANARY-old", value(customer="CANARY-old")),
    "expired": Case(S, "expired", b"CANARY-exp", value(customer="CANARY-exp")),
    "unknown purpose": Case(S, "not_allowed", b"CANARY-unk", value(customer="CANARY-unk")),
    "unknown rung": Case(S, "consent_unreadable", b"CANARY-run", value(customer="CANARY-run")),
}  # fmt: skip


def bad_consents(shop: Deployment) -> None:
    """The consents that the cases speak of."""
    granted = {who: consent(f"{CANARY}-{who}", 5, GRANTED) for who in ("ana", "cat", "tom", "und", "new", "equ", "old")}
    records = [
        *granted.values(),
        granted["tom"]._replace(value=None),
        granted["und"]._replace(value=b"\xff"),
        granted["new"]._replace(value=b"{"),
        consent(f"{CANARY}-new", 6, GRANTED),
        consent(f"{CANARY}-equ", 5, {ASSORTMENT: "anonymous"}),
        consent(f"{CANARY}-ana", 9, GRANTED)._replace(key=b"CANARY-oth"),
        consent(f"{CANARY}-old", 6),
        granted["old"],
        consent(f"{CANARY}-exp", 1, GRANTED, until=now_ms() - 500),
        consent(f"{CANARY}-unk", 1, {"nobody.knows": "identified"}),
        consent(f"{CANARY}-run", 1, {RECOMMENDATIONS: "everything"}),
    ]
    produce(shop.bootstrap, shop.consents, records)
    aborted = transactional(shop)
    aborted.begin_transaction()
    grant = consent(f"{CANARY}-abo", 1, GRANTED)
    aborted.produce(shop.consents, key=grant.key, value=grant.value)
    aborted.flush(SECONDS)
    aborted.abort_transaction(SECONDS)


def transactional(shop: Deployment) -> Producer:
    """A producer with transactions that is not ours."""
    producer = Producer(
        {
            "bootstrap.servers": shop.bootstrap,
            "broker.address.family": "v4",
            "transactional.id": f"{shop.group}-not-ours",
            "partitioner": "murmur2",
        }
    )
    producer.init_transactions(SECONDS)
    return producer


def send(shop: Deployment, name: str, case: Case) -> Sent:
    """Send one input, alone in its batch."""
    producer = Producer(
        {
            "bootstrap.servers": shop.bootstrap,
            "broker.address.family": "v4",
            "message.max.bytes": 2 * LIMIT,
            "partitioner": "murmur2",
            **dict(case.options),
        }
    )
    placed: list[Message] = []

    def delivered(error: Any, message: Message) -> None:
        assert error is None, f"{name}: {error}"
        placed.append(message)

    given = {} if case.partition is None else {"partition": case.partition}
    producer.produce(
        shop.raw,
        key=case.key,
        value=case.value,
        headers=list(case.headers),
        on_delivery=delivered,
        **given,  # type: ignore[arg-type]
    )
    assert producer.flush(SECONDS) == 0
    [message] = placed
    return Sent(
        name, case.outcome, case.reason, message.partition() or 0, message.offset() or 0, len(case.value or b"")
    )


class Results(NamedTuple):
    """What came of all inputs."""

    sent: dict[str, Sent]
    published: dict[tuple[int, int], list[Record]]
    quarantined: dict[tuple[int, int], list[dict[str, Any]]]
    outcomes: Counter[str]
    reasons: Counter[str]
    everything: list[bytes]
    shop: Deployment
    worker: Worker


@pytest.fixture(scope="module")
def results(transactional_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    prefix, home = f"inputs-{time.time_ns():x}", tmp_path_factory.mktemp("inputs")
    with deployed(transactional_broker.bootstrap, prefix, retail_policy(prefix), home) as shop:
        shop.set_config(shop.raw, f"max.message.bytes={LIMIT}")
        bad_consents(shop)
        worker = shop.start()
        shop.wait_ready()
        sent = {name: send(shop, name, case) for name, case in CASES.items()}
        # Records of a transaction that was aborted are no inputs; those after it are.
        aborted = transactional(shop)
        aborted.begin_transaction()
        for number in range(PARTITIONS):
            aborted.produce(shop.raw, key=ANA, value=value(), partition=number)
        aborted.flush(SECONDS)
        aborted.abort_transaction(SECONDS)
        for number in range(PARTITIONS):
            last = Case(S, "no_subject", None, value(customer=None), partition=number)
            sent[f"after an aborted transaction, {number}"] = send(shop, "last", last)
        shop.wait_consumed(shop.raw, {s.partition: s.offset + 1 for s in sent.values() if s.name == "last"})
        published: dict[tuple[int, int], list[Record]] = {}
        quarantined: dict[tuple[int, int], list[dict[str, Any]]] = {}
        everything = []
        for topic in [*shop.outputs, shop.quarantine, shop.receipts]:
            for record in shop.read(topic):
                everything.append(b"%r %r %r" % (record.key, record.value, record.headers))
                if topic in shop.outputs:
                    published.setdefault(shop.source_of(record), []).append(record)
                elif topic == shop.quarantine:
                    entry = json.loads(record.value or b"")
                    assert (record.key, record.headers) == (None, [])
                    quarantined.setdefault((entry["source"]["partition"], entry["source"]["offset"]), []).append(entry)
        wait_until(lambda: sum(worker.outcomes().values()) >= len(sent), "all are counted")
        yield Results(sent, published, quarantined, worker.outcomes(), worker.reasons(), everything, shop, worker)


@pytest.mark.parametrize("name", CASES)
def test_one_outcome(results: Results, name: str) -> None:
    sent = results.sent[name]
    place = sent.partition, sent.offset
    entries = results.quarantined.get(place, [])
    records = results.published.get(place, [])
    assert [entry["reason"] for entry in entries] == ([sent.reason] if sent.outcome == Q else [])
    assert len(records) == (1 if sent.outcome == P else 0)
    for entry in entries:
        assert entry["source"]["topic"] == results.shop.raw
        assert entry["size"] == sent.size


def test_outcomes_add_up(results: Results) -> None:
    assert results.outcomes == Counter(sent.outcome for sent in results.sent.values())
    assert results.reasons == Counter(sent.reason for sent in results.sent.values() if sent.reason)
    assert len(results.published) + len(results.quarantined) == results.outcomes[P] + results.outcomes[Q]


def test_offsets_advance_and_the_worker_lives(results: Results) -> None:
    assert results.shop.committed(results.shop.raw) == end_offsets(results.shop.bootstrap, results.shop.raw)
    assert results.worker.ready()
    restarts = {k: v for k, v in results.worker.metrics().items() if k[0] == "celosia_lane_restarts_total"}
    assert restarts == {}


def test_nothing_personal_leaves(results: Results) -> None:
    for record in results.everything:
        assert CANARY.encode() not in record
    assert CANARY not in results.worker.log
    assert CANARY not in results.worker.page("/metrics")[1]
    rejected = sum(v for (name, *_), v in results.worker.metrics().items() if name == "celosia_consents_rejected_total")
    assert rejected == 5


@pytest.fixture
def shop(transactional_broker: Broker, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(transactional_broker.bootstrap, topic_prefix, retail_policy(topic_prefix), tmp_path) as deployment:
        yield deployment


def buy(shop: Deployment, who: str, count: int = 1) -> None:
    """Events of one person, now."""
    produce(shop.bootstrap, shop.raw, [event(line | {"customer": who}) for line in purchases(count, now_ms())])


def published(shop: Deployment) -> list[tuple[int, int]]:
    """The sources of all recommendations, in order."""
    return [shop.source_of(record) for record in shop.read(shop.outputs[0])]


def delete_before(shop: Deployment, topic: str, partition: int, offset: int) -> None:
    """Do what retention does."""
    admin = admin_client(shop.bootstrap)

    def deleted() -> bool:
        [future] = admin.delete_records([TopicPartition(topic, partition, offset)]).values()
        try:
            return bool(future.result(SECONDS).low_watermark == offset)
        except KafkaException as error:  # A changed policy takes a moment.
            if error.args[0].code() == KafkaError.POLICY_VIOLATION:
                return False
            raise

    wait_until(deleted, f"{topic}[{partition}] begins at {offset}")


def test_consent_with_an_unreadable_key_denies_its_partition(shop: Deployment) -> None:
    ben = elsewhere("ana")
    produce(shop.bootstrap, shop.consents, [consent("ana", 1, GRANTED), consent(ben, 1, GRANTED)])
    worker = shop.start()
    shop.wait_ready()
    blocked = partition_of(b"ana", PARTITIONS)
    produce(shop.bootstrap, shop.consents, [consent("x", 1)._replace(key=b"\xff", partition=blocked)])
    buy(shop, "ana")
    buy(shop, ben)
    shop.wait_consumed()
    assert [partition for partition, _ in published(shop)] == [partition_of(ben.encode(), PARTITIONS)]
    assert worker.reasons() == {"partition_blocked": 1}


def test_consent_in_the_wrong_partition_is_denied_there(shop: Deployment) -> None:
    here = partition_of(b"ana", PARTITIONS)
    worker = shop.start()
    shop.wait_ready()
    wrong = (here + 1) % PARTITIONS
    produce(shop.bootstrap, shop.consents, [consent("ana", 1, GRANTED)._replace(partition=wrong)])
    shop.wait_in_force()
    [bought] = purchases(1, now_ms())
    produce(
        shop.bootstrap, shop.raw, [event(bought | {"customer": "ana"}, partition=number) for number in (here, wrong)]
    )
    shop.wait_consumed()
    assert published(shop) == []
    assert sum(worker.outcomes().values()) == 2
    assert worker.outcomes()["published"] == 0


def test_retention_that_overtakes_the_lag_leaves_a_record(shop: Deployment) -> None:
    here = partition_of(b"ana", PARTITIONS)
    produce(shop.bootstrap, shop.consents, [consent("ana", 1, GRANTED)])
    # Nothing committed yet: what is gone was never promised, and reading begins where the records begin.
    buy(shop, "ana", 50)
    delete_before(shop, shop.raw, here, 10)
    first = shop.start()
    shop.wait_ready()
    shop.wait_consumed()
    assert published(shop) == [(here, offset) for offset in range(10, 50)]
    assert shop.read(shop.quarantine) == []
    assert first.terminate() == 0
    buy(shop, "ana", 50)
    delete_before(shop, shop.raw, here, 75)
    second = shop.start()
    shop.wait_ready()
    shop.wait_consumed()
    assert published(shop) == [(here, offset) for offset in [*range(10, 50), *range(75, 100)]]
    [record] = shop.read(shop.quarantine)
    entry = json.loads(record.value or b"")
    assert (entry["reason"], entry["source"], entry["to_offset"]) == (
        "out_of_range",
        {"topic": shop.raw, "partition": here, "offset": 50},
        75,
    )
    assert second.ready()


def test_consents_that_were_deleted_are_not_forgotten_while_the_worker_runs(shop: Deployment) -> None:
    """delete_records takes away what is behind the follower: what it has read stays in force, and the gate passes."""
    here = partition_of(b"ana", PARTITIONS)
    produce(shop.bootstrap, shop.consents, [consent("ana", 1, GRANTED)])
    first = shop.start()
    shop.wait_ready()
    # Kafka deletes from a compacted topic only where its operator has changed the policy.
    shop.set_config(shop.consents, "cleanup.policy=compact,delete")
    delete_before(shop, shop.consents, here, 1)
    shop.set_config(shop.consents, "cleanup.policy=compact")
    buy(shop, "ana")
    shop.wait_consumed()
    assert published(shop) == [(here, 0)]
    assert first.terminate() == 0
    # A worker that starts anew cannot know it any more.
    second = shop.start()
    shop.wait_ready()
    buy(shop, "ana")
    shop.wait_consumed()
    assert published(shop) == [(here, 0)]
    assert second.reasons() == {"no_consent": 1}


def test_consent_topic_made_anew_denies_until_it_is_filled(shop: Deployment) -> None:
    here = partition_of(b"ana", PARTITIONS)
    produce(shop.bootstrap, shop.consents, [consent("ana", version, GRANTED) for version in range(1, 6)])
    worker = shop.start()
    shop.wait_ready()
    buy(shop, "ana")
    shop.wait_consumed()
    assert published(shop) == [(here, 0)]
    delete_topics(shop.bootstrap, [shop.consents])
    shop.create_topics()
    buy(shop, "ana")
    shop.wait_consumed()
    assert published(shop) == [(here, 0)]
    produce(shop.bootstrap, shop.consents, [consent("ana", 1, GRANTED)])
    shop.wait_in_force()
    buy(shop, "ana")
    shop.wait_consumed()
    assert published(shop) == [(here, 0), (here, 2)]
    assert worker.running


def test_corrupt_batch_on_disk_leaves_a_record_and_loses_no_good_one(topic_prefix: str, tmp_path: Path) -> None:
    if reason := java_and_maven():
        pytest.skip(reason)
    with (
        apache_kafka() as kafka,
        deployed(kafka.bootstrap, topic_prefix, retail_policy(topic_prefix), tmp_path) as shop,
    ):
        here = partition_of(b"ana", PARTITIONS)
        produce(shop.bootstrap, shop.consents, [consent("ana", 1, GRANTED)])
        for _ in range(3):  # Three batches of two: the second one breaks.
            buy(shop, "ana", 2)
        kafka.stop(1)
        [segment] = kafka.log_dir(1).glob(f"{shop.raw}-{here}/*.log")
        data = bytearray(segment.read_bytes())
        second = 12 + int.from_bytes(data[8:12])
        third = second + 12 + int.from_bytes(data[second + 8 : second + 12])
        data[third - 20] ^= 1
        segment.write_bytes(data)
        kafka.start(1)
        worker = shop.start()
        shop.wait_consumed(shop.raw, {here: 6})
        assert published(shop) == [(here, offset) for offset in (0, 1, 4, 5)]
        [record] = shop.read(shop.quarantine)
        entry = json.loads(record.value or b"")
        source = {"topic": shop.raw, "partition": here, "offset": 2}
        assert (entry["reason"], entry["source"], entry["to_offset"]) == ("unreadable", source, 4)
        assert worker.ready()


def elsewhere(who: str) -> str:
    """Somebody whose partition is another one."""
    partition = partition_of(who.encode(), PARTITIONS)
    return next(f"ben-{n}" for n in range(99) if partition_of(f"ben-{n}".encode(), PARTITIONS) != partition)


def test_consent_topic_made_anew_and_filled_while_nobody_looks(shop: Deployment) -> None:
    """The new topic is longer than the old one was before the worker looks again: its end says nothing."""
    here = partition_of(b"ana", PARTITIONS)
    produce(shop.bootstrap, shop.consents, [consent("ana", version, GRANTED) for version in range(1, 4)])
    worker = shop.start()
    shop.wait_ready()
    buy(shop, "ana")
    shop.wait_consumed()
    assert published(shop) == [(here, 0)]
    worker.pause()
    delete_topics(shop.bootstrap, [shop.consents])
    shop.create_topics()
    others = [consent(f"other-{n}", 1)._replace(partition=here) for n in range(9)]
    produce(shop.bootstrap, shop.consents, [consent("ana", 4), *others])
    buy(shop, "ana")
    worker.resume()
    shop.wait_consumed()
    assert published(shop) == [(here, 0)]
