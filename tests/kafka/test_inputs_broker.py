"""Bad input through a real broker: one outcome each, the offset advances, nothing personal anywhere, the worker lives.

The table of `tests/inputs.py` goes through one worker, each record alone in its batch; each test then asks what became
of one of them. What can befall a whole topic (retention, deletion) has deployments of its own, and what can befall a
disk is in `test_inputs_disk.py`.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from streams.consent import Consents, Refusal
from streams.kafka.partitioner import owner_of, partition_of
from streams.keys import MasterKey
from tests.inputs import (
    BLOCKING,
    CANARY,
    CASES,
    COMPRESSED,
    KEPT,
    KEY,
    LIMIT,
    NEIGHBOURS,
    PARTITIONS,
    SHARED,
    Case,
    Said,
    event,
    flat,
    granted,
    place_of,
    policy,
)
from tests.kafka.batches import Entry, batch_of, produce_batch, zstd_bomb
from tests.kafka.brokers import (
    SECONDS,
    Broker,
    Record,
    ToSend,
    admin_client,
    delete_topics,
    end_offsets,
    produce,
    wait_until,
)
from tests.kafka.retail import RECOMMENDATIONS, consent, now_ms, purchases, retail_policy
from tests.kafka.retail import event as purchase
from tests.kafka.worker import Deployment, Worker, deployed

GRANTED = {RECOMMENDATIONS: "pseudonymous"}
Place = tuple[int, int]
P, S, Q = "published", "suppressed", "quarantined"


# --- the table --------------------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """One case that Kafka has taken, and where."""

    case: Case
    place: Place


def kind_of(expected: str | dict[str, Any]) -> str:
    """The outcome that a case expects."""
    return P if isinstance(expected, dict) else S if expected in set(Refusal) else Q


def write_consents(shop: Deployment, records: list[Said]) -> None:
    """Write consent records, in order; those in transactions come last in each case, so they come last of all."""
    plain = [said for said in records if not said.transaction]
    places = [ToSend(said.key, said.value, partition=place_of(said.key, said.away)) for said in plain]
    produce(shop.bootstrap, shop.consents, places)
    for how in ("committed", "aborted"):
        if some := [said for said in records if said.transaction == how]:
            producer = transactional(shop, how)
            producer.begin_transaction()
            for said in some:
                at = place_of(said.key, said.away)
                producer.produce(shop.consents, key=said.key, value=said.value, partition=at)
            producer.flush(SECONDS)
            (producer.commit_transaction if how == "committed" else producer.abort_transaction)(SECONDS)


def transactional(shop: Deployment, name: str) -> Producer:
    """A producer with transactions that is not ours."""
    producer = Producer(
        {
            "bootstrap.servers": shop.bootstrap,
            "broker.address.family": "v4",
            "transactional.id": f"{shop.group}-not-ours-{name}",
        }
    )
    producer.init_transactions(SECONDS)
    return producer


class Sender:
    """Sends records one by one, each alone in its batch."""

    def __init__(self, shop: Deployment) -> None:
        self._shop = shop
        self._producers: dict[str, Producer] = {}

    def send(self, case: Case) -> Place | KafkaError:
        """Send one event as it is; where it landed, or why Kafka does not take it."""
        if case.timestamp <= 0:  # librdkafka takes it for now.
            entry = Entry(case.key, case.value, case.timestamp, case.headers)
            error, offset = produce_batch(self._shop.bootstrap, self._shop.raw, case.partition, batch_of([entry]))
            return KafkaError(error) if error else (case.partition, offset)
        if case.codec not in self._producers:
            options = {"bootstrap.servers": self._shop.bootstrap, "broker.address.family": "v4", "linger.ms": 0}
            options |= {"message.max.bytes": 2 * LIMIT, "compression.type": case.codec, "log_level": 0}
            self._producers[case.codec] = Producer(options)
        producer, answers = self._producers[case.codec], list[Place | KafkaError]()

        def delivered(error: KafkaError | None, message: Message) -> None:
            answers.append(error or (message.partition() or 0, message.offset() or 0))

        producer.produce(
            self._shop.raw,
            key=case.key,
            value=case.value,
            headers=list(case.headers),
            partition=case.partition,
            timestamp=case.timestamp,
            on_delivery=delivered,
        )
        assert producer.flush(SECONDS) == 0
        [answer] = answers
        return answer


AFTER = [
    # A lane that ends with records that were aborted has nothing to commit: the offsets are seen to move behind them.
    Case(f"39 after events that were aborted, {number}", event(user_id=...), "no_subject", key=None, away=number)
    for number in range(PARTITIONS)
]
OTHERS = [
    Case(
        f"37 on another partition than a blocked one, {number}",
        event(user_id=who),
        KEPT,
        who.encode(),
        said=(granted(who),),
    )
    for number, who in NEIGHBOURS.items()
    if number not in {case.partition for case in BLOCKING if not case.refused}
]
TAKEN = [case for case in [*CASES, *COMPRESSED, *AFTER, *BLOCKING, *OTHERS] if not case.refused]


class Results(NamedTuple):
    """What came of all cases."""

    sent: dict[str, Sent]
    refused: dict[str, Place | KafkaError]
    published: dict[Place, list[Record]]
    quarantined: dict[Place, list[dict[str, Any]]]
    everything: list[bytes]
    shop: Deployment
    worker: Worker


def aborted_events(shop: Deployment) -> None:
    """Write records of a transaction that is aborted to each partition: they are no inputs."""
    producer = transactional(shop, "events")
    producer.begin_transaction()
    for number in range(PARTITIONS):
        producer.produce(shop.raw, key=KEY, value=event(), partition=number)
    producer.flush(SECONDS)
    producer.abort_transaction(SECONDS)


def collect(shop: Deployment) -> tuple[dict[Place, list[Record]], dict[Place, list[dict[str, Any]]], list[bytes]]:
    """Read all that was written: outputs and quarantine records by the places of their sources, and all of it."""
    published: dict[Place, list[Record]] = {}
    quarantined: dict[Place, list[dict[str, Any]]] = {}
    everything = []
    for topic in [*shop.outputs, shop.quarantine, shop.receipts]:
        for record in shop.read(topic):
            everything.append(b"%r %r %r" % (record.key, record.value, record.headers))
            if topic in shop.outputs:
                published.setdefault(shop.source_of(record), []).append(record)
            elif topic == shop.quarantine:
                entry = json.loads(record.value or b"")
                assert (record.key, record.headers) == (None, [])
                assert entry["source"]["topic"] == shop.raw
                quarantined.setdefault((entry["source"]["partition"], entry["source"]["offset"]), []).append(entry)
    return published, quarantined, everything


@pytest.fixture(scope="module")
def results(transactional_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    prefix, home = f"inputs-{time.time_ns():x}.", tmp_path_factory.mktemp("inputs")
    with deployed(transactional_broker.bootstrap, prefix.strip("."), policy(prefix), home) as shop:
        # The events are of whatever time they say, and one of a time that is far away.
        for setting in (f"max.message.bytes={LIMIT}", "retention.ms=-1", f"message.timestamp.after.max.ms={2**63 - 1}"):
            shop.set_config(shop.raw, setting)
        cases = [*CASES, *COMPRESSED, *AFTER]
        write_consents(shop, [*SHARED, *(said for case in cases for said in case.said)])
        worker = shop.start()
        shop.wait_ready()
        sender = Sender(shop)
        answers = {}
        for case in cases:
            if case is AFTER[0]:
                aborted_events(shop)
            answers[case.name] = case, sender.send(case)
        shop.wait_consumed()
        # What denies a whole partition comes last.
        blocking = [case for case in [*BLOCKING, *OTHERS] if not case.refused]
        write_consents(shop, [said for case in blocking for said in case.said])
        answers |= {case.name: (case, sender.send(case)) for case in blocking}
        shop.wait_consumed()
        sent = {name: Sent(case, at) for name, (case, at) in answers.items() if isinstance(at, tuple)}
        wait_until(lambda: sum(worker.outcomes().values()) >= len(sent), "all are counted")
        refused = {name: answer for name, (case, answer) in answers.items() if case.refused}
        yield Results(sent, refused, *collect(shop), shop, worker)


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_one_outcome(results: Results, case: Case) -> None:
    place = results.sent[case.name].place
    entries, records = results.quarantined.get(place, []), results.published.get(place, [])
    if kind_of(case.expected) == P:
        assert [flat(json.loads(record.value or b"")) for record in records] == [case.expected]
        assert entries == []
        return
    assert records == []
    assert [entry["reason"] for entry in entries] == ([case.expected] if kind_of(case.expected) == Q else [])
    for entry in entries:
        assert entry["size"] == len(case.value or b"")


def test_what_kafka_does_not_take_is_no_input(results: Results) -> None:
    errors = {name: answer.code() for name, answer in results.refused.items() if isinstance(answer, KafkaError)}
    assert errors == {"18 just above the limit": KafkaError.MSG_SIZE_TOO_LARGE}
    [keyless] = [case.said[-1] for case in BLOCKING if case.refused]
    with pytest.raises(AssertionError, match="INVALID_RECORD"):
        produce(results.shop.bootstrap, results.shop.consents, [ToSend(None, keyless.value, partition=0)])


def test_outcomes_add_up(results: Results) -> None:
    cases = [sent.case for sent in results.sent.values()]
    assert [case.name for case in cases] == [case.name for case in TAKEN]
    assert results.worker.outcomes() == Counter(kind_of(case.expected) for case in cases)
    assert results.worker.reasons() == Counter(case.expected for case in cases if isinstance(case.expected, str))
    for written, kind in ((results.published, P), (results.quarantined, Q)):
        assert {len(records) for records in written.values()} == {1}
        assert set(written) == {sent.place for sent in results.sent.values() if kind_of(sent.case.expected) == kind}


def test_offsets_advance_and_the_worker_lives(results: Results) -> None:
    assert results.shop.committed(results.shop.raw) == end_offsets(results.shop.bootstrap, results.shop.raw)
    assert results.worker.ready()
    assert "celosia_lane_restarts_total" not in {name for name, *_ in results.worker.metrics()}


def test_nothing_personal_leaves(results: Results) -> None:
    for record in results.everything:
        assert CANARY.encode() not in record
    assert CANARY not in results.worker.log
    for page in ("/metrics", "/healthz", "/readyz"):
        assert CANARY not in results.worker.page(page)[1]


def test_consents_that_cannot_count_are_counted(results: Results) -> None:
    known = {number: Consents(owner_of(number, PARTITIONS)) for number in range(PARTITIONS)}
    for said in [*SHARED, *(said for case in TAKEN for said in case.said)]:
        if said.transaction != "aborted":
            known[place_of(said.key, said.away)].apply(said.key, said.value)

    def rejected() -> dict[int, float]:
        metrics = results.worker.metrics().items()
        return {int(labels[0]): v for (name, *labels), v in metrics if name == "celosia_consents_rejected_total"}

    wait_until(lambda: rejected() == {number: some.rejected for number, some in known.items()}, "rejected are counted")
    blocked = {number for number, some in known.items() if some.blocked}
    metrics = results.worker.metrics().items()
    assert {int(k[1]) for k, v in metrics if k[0] == "celosia_consents_blocked" and v} == blocked == {0, 1}


# --- what can befall a whole topic ------------------------------------------------------------------------------------


@pytest.fixture
def shop(transactional_broker: Broker, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(transactional_broker.bootstrap, topic_prefix, retail_policy(topic_prefix), tmp_path) as deployment:
        yield deployment


def buy(shop: Deployment, who: str, count: int = 1) -> None:
    """Events of one person, now."""
    produce(shop.bootstrap, shop.raw, [purchase(line | {"customer": who}) for line in purchases(count, now_ms())])


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


def test_19_a_bomb_ends_no_worker_whose_memory_is_bounded(shop: Deployment) -> None:
    """3 GiB in 97 KiB, which Kafka takes as it is. The worker may have as much memory as a container has."""
    here = partition_of(b"ana", PARTITIONS)
    produce(shop.bootstrap, shop.consents, [consent("ana", 1, GRANTED)])
    limited = f"ulimit -v 3000000; exec {sys.executable} -m streams run"
    worker = shop.start(command=["/bin/sh", "-c", limited])
    shop.wait_ready()
    [bought] = [purchase(line | {"customer": "ana"}) for line in purchases(1, now_ms())]
    bomb = zstd_bomb(Entry(bought.key, bought.value, now_ms()), 512, 6)
    assert produce_batch(shop.bootstrap, shop.raw, here, bomb) == (0, 0)
    buy(shop, "ana")
    wait_until(
        lambda: not worker.running or shop.committed(shop.raw)[here] == 7, "the bomb is handled, and what follows"
    )
    assert worker.running, worker.log[-3000:]
    assert (here, 6) in published(shop)


def keys_published(shop: Deployment) -> list[str]:
    """The ids of the keys of all pseudonyms of recommendations, in order."""
    return [(record.key or b"").decode().split(".")[0] for record in shop.read(shop.outputs[0])]


def test_42_a_worker_without_its_key_refuses_to_start(shop: Deployment) -> None:
    shop.key_file.unlink()
    worker = shop.start()
    wait_until(lambda: not worker.running, "the worker refuses")
    assert worker.terminate() == 1
    [line] = [line for line in worker.log.splitlines() if "key file" in line]
    assert line.startswith("celosia: key file")
    assert "make one" in line
    assert "Traceback" not in worker.log
    assert not shop.key_file.exists()


def test_42_a_key_that_is_replaced_changes_nothing_that_runs(shop: Deployment) -> None:
    produce(shop.bootstrap, shop.consents, [consent("ana", 1, GRANTED)])
    first = shop.start()
    shop.wait_ready()
    buy(shop, "ana", 2)
    shop.wait_consumed()
    shop.key_file.unlink()
    MasterKey.create(shop.key_file)
    buy(shop, "ana", 2)
    shop.wait_consumed()
    assert len(set(keys_published(shop))) == 1
    assert first.terminate() == 0
    shop.start()
    shop.wait_ready()
    buy(shop, "ana", 2)
    shop.wait_consumed()
    before, after = keys_published(shop)[:4], keys_published(shop)[4:]
    assert len(after) == 2
    assert not set(before) & set(after)


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
