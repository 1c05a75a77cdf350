"""Records that cannot be read because of what is on the broker's disk: the other ones are not lost, the worker lives.

Good batches are written to a broker of our own; it is stopped, some of its bytes are replaced, it is started again, and
only then come the workers.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streams.embedded import ApacheKafka, apache_kafka, java_and_maven
from streams.kafka.partitioner import partition_of
from tests.inputs import BROKEN, CANARY, KEPT, NOTHING, OLD, PARTITIONS, Broken, event, granted, policy, said
from tests.kafka.batches import Entry, batch_of, produce_batch, split
from tests.kafka.brokers import ToSend, end_offsets, produce, read_all, wait_until
from tests.kafka.retail import now_ms
from tests.kafka.worker import Deployment, Worker

CONSENTS: dict[int, Broken | None] = {0: BROKEN[0], 1: BROKEN[6], 2: None, 3: BROKEN[2]}
"""What is done to partitions of a consent topic: an unknown codec, a bit turned over, nothing, gzip that is none."""


class Hurt(NamedTuple):
    """Deployments of which some bytes were replaced, by what they are."""

    events: Deployment
    old: Deployment
    consents: Deployment


def someone_on(partition: int, partitions: int, name: str = "ana") -> bytes:
    """Somebody whose partition this is."""
    names = (f"{name}-{CANARY}-{number}".encode() for number in range(999))
    return next(name for name in names if partition_of(name, partitions) == partition)


def events_of(who: bytes) -> list[list[Entry]]:
    """Three batches of two events."""
    return [[Entry(who, event(user_id=who.decode()), now_ms())] * 2 for _ in range(3)]


def consents_of(partition: int) -> list[list[Entry]]:
    """Three batches of two consent records: what Ana allows, that she does not any more, what Ben allows."""
    ana, ben = (someone_on(partition, PARTITIONS, name) for name in ("ana", "ben"))
    records = [granted(ana.decode()).value, said(2, NOTHING, ana.decode()), granted(ben.decode()).value]
    return [[Entry(key, value, now_ms())] * 2 for key, value in zip([ana, ana, ben], records, strict=True)]


def write(shop: Deployment, topic: str, partition: int, batches: list[list[Entry]]) -> None:
    """Write three batches, each as it is."""
    for number, batch in enumerate(batches):
        assert produce_batch(shop.bootstrap, topic, partition, batch_of(batch)) == (0, 2 * number)


def replace_second(kafka: ApacheKafka, topic: str, partition: int, broken: Broken, entries: list[Entry]) -> None:
    """Put other bytes in place of the second of three batches."""
    [segment] = kafka.log_dir(1).glob(f"{topic}-{partition}/*.log")
    first, second, third = split(segment.read_bytes())
    segment.write_bytes(first + broken.make(second, entries, 2) + third)


@pytest.fixture(scope="module")
def disk() -> Iterator[ApacheKafka]:
    """A broker of our own. It compacts as soon as it may."""
    if reason := java_and_maven():
        pytest.skip(reason)
    with apache_kafka(overrides={"log.cleaner.backoff.ms": "100"}) as kafka:
        yield kafka


@pytest.fixture(scope="module")
def hurt(disk: ApacheKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hurt]:
    changes: list[tuple[str, int, Broken, list[Entry]]] = []
    with ExitStack() as stack:

        def deployment(name: str, partitions: int) -> Deployment:
            home = tmp_path_factory.mktemp(name)
            shop = stack.enter_context(Deployment(disk.bootstrap, name, policy(f"{name}."), home))
            shop.create_topics(partitions)
            return shop

        hurt = Hurt(
            deployment("events", len(BROKEN)), deployment("old", PARTITIONS), deployment("consents", PARTITIONS)
        )
        for shop, table, partitions in ((hurt.events, BROKEN, len(BROKEN)), (hurt.old, OLD, PARTITIONS)):
            for number, broken in enumerate(table):
                who = someone_on(number, partitions)
                produce(shop.bootstrap, shop.consents, [ToSend(who, granted(who.decode()).value, partition=number)])
                write(shop, shop.raw, number, events_of(who))
                changes.append((shop.raw, number, broken, events_of(who)[1]))
        for shop, some in ((hurt.consents, CONSENTS), (hurt.old, {PARTITIONS - 1: OLD[1]})):
            for number, one in some.items():
                batches = consents_of(number)
                write(shop, shop.consents, number, batches)
                changes += [] if one is None else [(shop.consents, number, one, batches[1])]
        disk.stop(1)
        for topic, number, broken, entries in changes:
            replace_second(disk, topic, number, broken, entries)
        disk.start(1)
        yield hurt


class Outcomes(NamedTuple):
    """What became of the events of a deployment: by partition the offsets that were published, and the entries."""

    published: dict[int, list[int]]
    quarantined: dict[int, list[dict[str, Any]]]
    worker: Worker


def outcomes(shop: Deployment, worker: Worker) -> Outcomes:
    """Read what was published and what was not, and look for the canary everywhere."""
    records = [record for topic in (*shop.outputs, shop.quarantine, shop.receipts) for record in shop.read(topic)]
    assert not [record for record in records if CANARY.encode() in repr(record).encode()]
    assert CANARY not in worker.log + worker.page("/metrics")[1]
    published: dict[int, list[int]] = {}
    quarantined: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if record.topic in shop.outputs:
            partition, offset = shop.source_of(record)
            published.setdefault(partition, []).append(offset)
        elif record.topic == shop.quarantine:
            entry = json.loads(record.value or b"")
            quarantined.setdefault(entry["source"]["partition"], []).append(entry)
    return Outcomes(published, quarantined, worker)


def assert_outcome(came: Outcomes, number: int, broken: Broken) -> None:
    """Four good events are published, and of the two in the batch that was replaced comes what is expected."""
    assert came.published[number] == ([0, 1, 2, 3, 4, 5] if broken.expected == KEPT else [0, 1, 4, 5])
    entries = came.quarantined.get(number, [])
    if broken.expected == "unreadable":
        [entry] = entries
        assert (entry["reason"], entry["source"]["offset"], entry["to_offset"]) == ("unreadable", 2, 4)
    else:
        assert entries == []


@pytest.fixture(scope="module")
def broken_events(hurt: Hurt) -> Outcomes:
    worker = hurt.events.start()
    hurt.events.wait_consumed(hurt.events.raw, dict.fromkeys(range(len(BROKEN)), 6))
    return outcomes(hurt.events, worker)


@pytest.mark.parametrize("number", range(len(BROKEN)), ids=lambda number: BROKEN[number].name)
def test_a_broken_batch_leaves_a_record_and_loses_no_good_one(broken_events: Outcomes, number: int) -> None:
    assert_outcome(broken_events, number, BROKEN[number])


def test_the_worker_that_met_broken_batches_lives(broken_events: Outcomes) -> None:
    assert broken_events.worker.ready()
    metrics = broken_events.worker.metrics()
    assert {key[1]: value for key, value in metrics.items() if key[0] == "celosia_lane_position"} == {
        f"minimize-{number}": 6 for number in range(len(BROKEN))
    }


def test_what_cannot_be_read_is_counted(broken_events: Outcomes) -> None:
    unreadable = sum(broken.expected == "unreadable" for broken in BROKEN)
    assert broken_events.worker.reasons()["unreadable"] == 2 * unreadable
    assert broken_events.worker.outcomes()["published"] == 6 * len(BROKEN) - 2 * unreadable


def test_a_consent_that_cannot_be_read_holds_up_its_partition_and_no_other(hurt: Hurt) -> None:
    """Whose withdrawal it is cannot be told: everybody there waits, and the worker says so."""
    shop = hurt.consents
    worker = shop.start()
    bens = {number: someone_on(number, PARTITIONS, "ben") for number in CONSENTS}
    events = [ToSend(ben, event(user_id=ben.decode()), partition=number) for number, ben in bens.items()]
    produce(shop.bootstrap, shop.raw, events)
    wait_until(lambda: sum(worker.outcomes().values()) == 1 if worker.lanes() else False, "the other one is handled")
    lanes = worker.lanes()
    assert {number for number in CONSENTS if lanes[f"minimize-{number}"] != "running"} == {0, 1, 3}
    wait_until(lambda: worker.log.count("records cannot be read: everyone waits") >= 3, "it says so")
    assert not worker.ready()
    assert outcomes(shop, worker).published == {2: [0]}


def test_consents_that_were_compacted_leave_gaps_that_nobody_waits_for(disk: ApacheKafka, tmp_path: Path) -> None:
    with Deployment(disk.bootstrap, "compacted", policy("compacted."), tmp_path) as shop:
        shop.create_topics(1)
        for setting in ("min.cleanable.dirty.ratio=0.0", "segment.ms=100", "min.compaction.lag.ms=0"):
            shop.set_config(shop.consents, setting)
        ana, ben = CANARY.encode(), b"ben-" + CANARY.encode()
        grants = [ToSend(ana, granted(CANARY, version).value, partition=0) for version in range(1, 21)]
        bens = [ToSend(ben, granted(ben.decode(), version).value, partition=0) for version in (1, 2)]
        withdrawn = ToSend(ana, said(21, NOTHING, CANARY), partition=0)

        def compacted() -> bool:
            # Only what is not in the last segment is compacted, and a segment ends when the next record comes.
            produce(shop.bootstrap, shop.consents, [bens[1]])
            offsets = [record.offset for record in read_all(shop.bootstrap, shop.consents)]
            return offsets[0] > 0 and offsets != list(range(offsets[0], offsets[-1] + 1))

        produce(shop.bootstrap, shop.consents, [bens[0], *grants, withdrawn])
        wait_until(compacted, "there are gaps")
        assert end_offsets(shop.bootstrap, shop.consents)[0] > 23
        worker = shop.start()
        shop.wait_ready(partitions=1)
        events = [ToSend(who, event(user_id=who.decode()), partition=0) for who in (ana, ben)]
        produce(shop.bootstrap, shop.raw, events)
        shop.wait_consumed()
        assert outcomes(shop, worker).published == {0: [1]}
        assert worker.reasons() == {"not_allowed": 1}


def test_44_records_of_old_magic_are_handled_as_those_of_today_or_put_aside(hurt: Hurt) -> None:
    shop = hurt.old
    worker = shop.start()
    wanted = dict.fromkeys(range(len(OLD)), 6)
    wait_until(lambda: not worker.running or shop.committed(shop.raw) == wanted | {3: 0}, "the old ones are handled")
    assert worker.running, worker.log[-3000:]
    came = outcomes(shop, worker)
    for number, broken in enumerate(OLD):
        assert_outcome(came, number, broken)
    # A withdrawal in the old format counts, or holds up its partition: Ana's grant stood in the batch before.
    ana = someone_on(PARTITIONS - 1, PARTITIONS)
    produce(shop.bootstrap, shop.raw, [ToSend(ana, event(user_id=ana.decode()), partition=PARTITIONS - 1)])
    wait_until(lambda: worker.reasons()["not_allowed"] == 1 or not worker.ready(), "the withdrawal counts")
    assert PARTITIONS - 1 not in outcomes(shop, worker).published
