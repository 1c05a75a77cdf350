"""One trial is one person: granted, shown to be published, then withdrawn with acks=all; and in the moment in which the
broker has acknowledged that, an event of theirs is sent. If that event is published the withdrawal did not hold.

Outputs carry the id of their event, so the same reader serves every system. Whether a system is through with an event
is asked of the broker: all of them commit the offsets of their group.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import yaml
from confluent_kafka import Message, Producer

from streams.event import iso
from tests.bench.load import events as bench_events
from tests.bench.load import policy
from tests.kafka.brokers import SECONDS
from tests.kafka.retail import now_ms
from tests.kafka.worker import DRAINED, Deployment

PURPOSE = "personalization.recommendations"
OTHERS = [f"other-{number}" for number in range(100)]
"""People who never withdraw, for load."""
Then = Callable[[str], None]


def one_purpose(prefix: str) -> dict[str, Any]:
    """The policy of the trials, that of the benchmarks: one purpose, so there is one topic to look at."""
    loaded: dict[str, Any] = yaml.safe_load(policy(prefix))
    return loaded


def client(bootstrap: str, linger: int = 0) -> Producer:
    """A producer as a consent service would have it: acks=all, murmur2, nothing is held back."""
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "broker.address.family": "v4",
            "acks": "all",
            "enable.idempotence": True,  # What is sent again while a leader moves is there once.
            "partitioner": "murmur2",
            "linger.ms": linger,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
    )


@cache
def _document() -> dict[str, Any]:
    [(_, value)] = bench_events(1)
    loaded: dict[str, Any] = json.loads(value)
    return loaded


def event(who: str, event_id: str) -> bytes:
    """An event of one person, now."""
    return json.dumps(_document() | {"event_id": event_id, "subject_id": who, "occurred_at": iso(now_ms())}).encode()


def consent(who: str, version: int, since: int | None) -> bytes:
    """A consent record: the purpose allowed since a moment (ms), or not at all."""
    grants = {} if since is None else {PURPOSE: {"rung": "pseudonymous", "since": iso(since)}}
    return json.dumps({"subject": who, "version": version, "purposes": grants}).encode()


class Trials:
    """The people of one deployment: what was sent of them, and what the broker has said about it.

    `skew` (ms) is by how much the clock of the consent service is ahead: it dates grants and consent records.
    """

    def __init__(self, shop: Deployment, skew: int = 0, seed: int = 1) -> None:
        self.shop = shop
        self.chance = random.Random(seed)
        self.lateness: list[float] = []
        """Seconds from the acknowledgement of each withdrawal to the sending of the event after it."""
        self._seed = seed
        self._skew = skew
        self.connect(shop.bootstrap)
        self._after: set[str] = set()
        """ids of the events of people who had withdrawn before"""
        self._acknowledged: dict[str, float] = {}
        self._ends: dict[int, int] = {}
        self._sent = 0
        self._errors: list[object] = []

    def connect(self, bootstrap: str) -> None:
        """Send through these brokers from now on."""
        self._consents, self._events = client(bootstrap), client(bootstrap)

    def people(self, count: int) -> list[str]:
        """So many people, granted, and each shown to be published."""
        people = [f"person-{self._seed}-{number}" for number in range(count)]
        for who in [*people, *OTHERS]:
            self._write(who, 1, now_ms() + self._skew)
        self._settled(self._consents)
        missing, deadline = set(people), time.monotonic() + DRAINED + abs(self._skew) / 1000
        while missing:
            if time.monotonic() > deadline:
                logs = "\n".join(worker.log[-3000:] for worker in self.shop.workers)
                raise AssertionError(f"{len(missing)} people are granted and not published\n{logs}")
            probes = {self.send(who): who for who in sorted(missing)}
            self.settle()
            missing -= {probes[it] for it in self._published() if it in probes}
        return people

    def withdraw(self, who: str, then: Then | None = None) -> None:
        """Write a withdrawal; `then` is called in the moment of its acknowledgement."""

        def acknowledged() -> None:
            self._acknowledged[who] = time.monotonic()
            if then is not None:
                then(who)

        self._write(who, 2, None, acknowledged)

    def send(self, who: str) -> str:
        """Send an event of this person, and return its id."""
        self._sent += 1
        name = f"event-{self._seed}-{self._sent}"
        if who in self._acknowledged:
            self._after.add(name)
            self.lateness.append(time.monotonic() - self._acknowledged[who])
        self._events.produce(self.shop.raw, key=who, value=event(who, name), on_delivery=self._delivered)
        self._events.poll(0)
        return name

    def send_after(self, who: str) -> None:
        """`send`, to be handed to `withdraw`."""
        self.send(who)

    def run(self, people: Iterable[str], pace: float) -> None:
        """Trials beside each other, one every `pace` seconds on average."""
        for who in people:
            self.withdraw(who, self.send_after)
            until = time.monotonic() + self.chance.uniform(0, 2 * pace)
            while (left := until - time.monotonic()) > 0:  # Acknowledgements come in here.
                self._consents.poll(left)

    def acknowledged(self, people: Sequence[str]) -> None:
        """Wait until the withdrawals of all these people are acknowledged."""
        deadline = time.monotonic() + SECONDS
        while not all(who in self._acknowledged for who in people):
            assert time.monotonic() < deadline, f"withdrawals are not acknowledged; {self._errors[:3]}"
            self._consents.poll(0.01)

    def flush(self) -> None:
        """Wait until everything is acknowledged."""
        self._settled(self._consents)
        self._settled(self._events)

    def settle(self) -> None:
        """Wait until everything is acknowledged, and the system is through with all events of ours."""
        self.flush()
        self.shop.wait_consumed(self.shop.raw, self._ends)

    def published(self) -> int:
        """How many events were published though their person had withdrawn before, once all is settled."""
        self.settle()
        return len(self._after & self._published())

    def _published(self) -> set[str]:
        return {json.loads(record.value or b"")["event_id"] for record in self.shop.read(self.shop.outputs[0])}

    def _write(self, who: str, version: int, since: int | None, then: Callable[[], None] | None = None) -> None:
        def delivered(error: object, _: Message) -> None:
            if error is not None:
                self._errors.append(error)
            elif then is not None:
                then()

        value = consent(who, version, since)
        stamp = now_ms() + self._skew
        self._consents.produce(self.shop.consents, key=who, value=value, timestamp=stamp, on_delivery=delivered)

    def _delivered(self, error: object, message: Message) -> None:
        if error is not None:
            self._errors.append(error)
        partition, offset = message.partition() or 0, message.offset() or 0
        self._ends[partition] = max(self._ends.get(partition, 0), offset + 1)

    def _settled(self, producer: Producer) -> None:
        assert producer.flush(2 * SECONDS) == 0, "records are not acknowledged"
        assert not self._errors, self._errors[:3]


@contextmanager
def load(shop: Deployment, per_second: int, people: Sequence[str] = OTHERS) -> Iterator[None]:
    """Events of these people all the while."""
    stop = threading.Event()
    failures: list[object] = []

    def delivered(error: object, _: Message) -> None:
        if error is not None:
            failures.append(error)

    def send() -> None:
        # In batches, and no more than the broker takes: a queue here would be no load there.
        producer, chance, began, sent = client(shop.bootstrap, linger=5), random.Random(3), time.monotonic(), 0
        while not stop.wait(0.01):
            due = int((time.monotonic() - began) * per_second)
            while sent < due:
                sent += 1
                if len(producer) < per_second:
                    who = chance.choice(people)
                    producer.produce(shop.raw, key=who, value=event(who, f"other-{sent}"), on_delivery=delivered)
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
