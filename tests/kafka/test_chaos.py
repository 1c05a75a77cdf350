"""Two workers, four partitions, and faults at random: nothing lost, nothing twice, order kept, nothing stale.

Everybody always allows recommendations; whether they allow an answer about their orders changes all the time. So every
event must be published to the first exactly once, its stamp says under which consent, and what else may have been
published of it follows from that consent. The checker reads with librdkafka and computes with `process` itself.
"""

import json
import os
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Message, Producer

from streams.consent import Consents
from streams.outcome import Kind, Output
from streams.pipeline import Place, process
from tests.kafka.brokers import SECONDS, Broker, Record
from tests.kafka.retail import ORDERS, RECOMMENDATIONS, consent, now_ms, purchases, raw_event, retail_policy
from tests.kafka.worker import Deployment, Worker, deployed

SESSION = 6.0
"""Seconds: the least that Kafka allows by default."""
PEOPLE = 200
CANARY = "CANARY"


def person(number: int) -> str:
    return f"{CANARY}-person-{number}"


class Traffic:
    """Sends events and consents, and remembers what was acknowledged when."""

    def __init__(self, shop: Deployment, seed: int) -> None:
        self.shop = shop
        self.poison = 0
        self.versions: dict[str, list[dict[str, str]]] = {person(n): [] for n in range(PEOPLE)}
        """by person: the rungs of each version, from 1"""
        self.acknowledged = dict.fromkeys(self.versions, 0)
        """by person: the highest version of which the broker has said that it is written"""
        self.least: dict[int, tuple[str, int]] = {}
        """by number of event: its person, and the highest version acknowledged before it was sent"""
        self.errors: list[object] = []
        self._chance = random.Random(seed)
        self._producer = Producer(
            {
                "bootstrap.servers": shop.bootstrap,
                "broker.address.family": "v4",
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "linger.ms": 5,
            }
        )

    def change_consent(self, who: str) -> None:
        """One more version for this person: recommendations always, the other purpose every other time or so."""
        rungs = {RECOMMENDATIONS: "pseudonymous"}
        rungs[ORDERS] = self._chance.choice(["pseudonymous", "nothing", "identified"])
        self.versions[who].append(rungs)
        version = len(self.versions[who])

        def written(error: object, _: Message) -> None:
            if error is not None:
                self.errors.append(error)
            self.acknowledged[who] = max(self.acknowledged[who], version)

        record = consent(who, version, rungs)
        self._producer.produce(self.shop.consents, key=record.key, value=record.value, on_delivery=written)

    def send_event(self, number: int) -> None:
        """One event with canaries wherever nobody looks, or now and then one that cannot be read."""
        who = person(self._chance.randrange(PEOPLE))
        [line] = purchases(1, now_ms())
        secret = f"{CANARY}-{number}"
        document = line | {"event_id": f"e-{number}", "customer": who, "note": secret, "seen": {secret: [secret]}}
        document["item"] = line["item"] | {"for": secret}
        value = json.dumps(document).encode()
        if self._chance.random() < 0.005:
            value, self.poison = value[:-1], self.poison + 1
        self.least[number] = who, self.acknowledged[who]
        headers: list[tuple[str, str | bytes | None]] = [("number", b"%d" % number), (secret, secret.encode())]
        self._producer.produce(self.shop.raw, key=who.encode(), value=value, headers=headers, on_delivery=self._sent)

    def _sent(self, error: object, _: Message) -> None:
        if error is not None:
            self.errors.append(error)

    def run(self, events: int, seconds: float) -> None:
        """Send so many events over so many seconds, and a change of consent for every tenth of them."""
        began, sent = time.monotonic(), 0
        while sent < events:
            due = min(events, int(events * (time.monotonic() - began) / seconds) + 1)
            for number in range(sent, due):
                self.send_event(number)
                if number % 10 == 0:
                    self.change_consent(self._chance.choice(list(self.versions)))
                self._producer.poll(0)
            sent = due
            self._producer.poll(0.01)

    def flush(self) -> None:
        """Wait until the broker has acknowledged everything."""
        assert self._producer.flush(SECONDS) == 0
        assert self.errors == []


class Faults:
    """Hurts one worker again and again until told to stop, then leaves it running."""

    def __init__(self, shop: Deployment, slot: int, seed: int, start: Callable[[], Worker]) -> None:
        self.done: list[str] = []
        self.failure: BaseException | None = None
        self._slot = slot
        self._chance = random.Random(f"{seed}-{slot}")
        self._start = start
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._worker = start()
        self._thread = threading.Thread(target=self._run, name=f"faults-{slot}")
        self._thread.start()

    def end(self) -> None:
        """No more faults."""
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._chance.uniform(1, SESSION)):
                fault = self._chance.choice(["kill", "pause", "pause", "terminate"])
                seconds = self._chance.uniform(0.3, 2 * SESSION) if fault == "pause" else 0.0
                self.done.append(f"{time.monotonic() - self._began:.1f} s: worker {self._slot}: {fault} {seconds:.1f}")
                if fault == "pause":
                    self._worker.pause()
                    self._stop.wait(seconds)
                    self._worker.resume()
                    continue
                if fault == "kill":
                    self._worker.kill()
                else:
                    code = self._worker.terminate()
                    # Before it has started a worker has nothing to finish, and the signal itself may end it.
                    assert code == 0 or (code == -signal.SIGTERM and " started" not in self._worker.log)
                self._worker = self._start()
        except BaseException as error:
            self.failure = error


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        pytest.param(30_000, 35.0, id="short"),
        pytest.param(300_000, 100.0, id="long", marks=[pytest.mark.chaos, pytest.mark.timeout(900)]),
    ],
)
def test_nothing_is_lost_or_doubled_while_workers_are_hurt(
    transactional_broker: Broker, topic_prefix: str, tmp_path: Path, events: int, seconds: float
) -> None:
    seed = int(os.environ.get("CELOSIA_SEED") or random.randrange(1 << 32))
    policy = retail_policy(topic_prefix)
    for purpose in policy["purposes"].values():  # No pseudonym, day or stamp may change during the run by itself.
        purpose["rotate"] = "3650d"
    with deployed(transactional_broker.bootstrap, topic_prefix, policy, tmp_path) as shop:
        traffic = Traffic(shop, seed)
        for who in traffic.versions:
            traffic.change_consent(who)
        traffic.flush()
        faults = [
            Faults(shop, slot, seed, lambda: shop.start(session_timeout_ms=int(SESSION * 1000))) for slot in range(2)
        ]
        try:
            try:
                traffic.run(events, seconds)
            finally:
                for some in faults:
                    some.end()
            traffic.flush()
            done = [fault for some in faults for fault in some.done]
            assert len(done) >= 4
            shop.wait_consumed()
            for worker in shop.workers:
                if worker.running:
                    assert worker.terminate() == 0
            check(shop, traffic)
        except BaseException as error:
            error.add_note(f"CELOSIA_SEED={seed}\n" + "\n".join(fault for some in faults for fault in some.done))
            raise
        print(
            f"seed {seed}, {events} events, faults:", *sorted(done, key=lambda line: float(line.split()[0])), sep="\n"
        )


def check(shop: Deployment, traffic: Traffic) -> None:
    """Every event exactly once, in order, as the core has it under a consent that was in force then or later."""
    raw = {(record.partition, record.offset): record for record in shop.read(shop.raw)}
    assert len(raw) == len(traffic.least)
    came = {topic: by_source(shop, topic) for topic in shop.outputs}
    recommendations = shop.plan.purposes[RECOMMENDATIONS].topic
    poison = 0
    folds = 0
    for place, record in raw.items():
        who, least = traffic.least[int(dict(record.headers)["number"] or b"")]
        published = came[recommendations].get(place)
        version = int(dict(published.headers)["celosia-consent"] or b"") if published is not None else least
        # T1: never an older consent than the newest that was acknowledged before the event was sent.
        assert least <= version <= len(traffic.versions[who]), f"{place}: stale, {version} after {least}"
        consents = Consents()
        grant = consent(who, version, traffic.versions[who][version - 1])
        consents.apply(grant.key, grant.value)
        outcome = process(
            raw_event(record), Place(shop.plan.sources[0], record.partition), consents, shop.plan, now_ms()
        )
        wanted: dict[str, Output] = {output.topic: output for output in outcome.outputs}
        if outcome.kind is Kind.QUARANTINED:
            poison += 1
            wanted = {}
        else:
            assert recommendations in wanted
        for topic in shop.outputs:
            record_there = came[topic].get(place)
            there = None if record_there is None else (record_there.key, record_there.value, record_there.headers)
            output = wanted.get(topic)
            assert there == (None if output is None else (output.key, output.value, output.headers)), (topic, place)
        folds += ORDERS in {shop_purpose(shop, topic) for topic in wanted}
    assert 0 < folds < len(raw), "the other purpose was allowed sometimes, and sometimes not"
    quarantined = [json.loads(record.value or b"")["source"] for record in shop.read(shop.quarantine)]
    places = [(source["partition"], source["offset"]) for source in quarantined]
    assert len(places) == len(set(places)) == poison == traffic.poison
    assert_no_canary(shop)


def shop_purpose(shop: Deployment, topic: str) -> str:
    return next(name for name, purpose in shop.plan.purposes.items() if purpose.topic == topic)


def by_source(shop: Deployment, topic: str) -> dict[tuple[int, int], Record]:
    """The outputs of a topic by the raw record they were made of: each once, and in the order of those."""
    records: dict[tuple[int, int], Record] = {}
    last: dict[int, int] = defaultdict(lambda: -1)
    for record in sorted(shop.read(topic), key=lambda record: (record.partition, record.offset)):
        place = shop.source_of(record)
        assert place not in records, f"{topic}: {place} was published twice"
        assert place[0] == record.partition
        assert place[1] > last[record.partition], f"{topic}: {place} is out of order"
        last[record.partition] = place[1]
        records[place] = record
    return records


def assert_no_canary(shop: Deployment) -> None:
    """What stands in raw fields, keys and headers is nowhere that it may not be."""
    identified = shop.plan.purposes[ORDERS].topic
    for topic in [*shop.outputs, shop.quarantine, shop.receipts]:
        for record in shop.read(topic):
            text = b"%r %r %r" % (record.key, record.value, record.headers)
            if topic == identified:  # Only the customer, and only where they are named.
                text = text.replace(f"{CANARY}-person".encode(), b"")
            assert CANARY.encode() not in text, f"{topic}[{record.partition}]@{record.offset}"
    for worker in shop.workers:
        assert CANARY not in worker.log
