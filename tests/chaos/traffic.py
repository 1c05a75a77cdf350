"""What clients do in a run: people who change their minds, events about them, and what both were told.

- One thread sends everything. After a withdrawal has been acknowledged, events of that person are sent at once.
- A person's versions ascend. A grant holds since long ago and has no end: nothing begins or runs out during a run.
- An event says that it happened two hours ago. So whatever a worker's clock says, within an hour of ours, the output
  is the same, and the checker can compute it.
- Canaries: the customer's name, which only identified outputs may hold, and a token where the policy names nothing
  (values, names of members, headers), which may be nowhere at all.
- What is remembered of an event is three numbers, however many there are.
"""

import json
import random
import threading
import time
from array import array
from math import isnan, nan

from confluent_kafka import KafkaError, Message, Producer

from streams.event import iso
from tests.chaos.crowd import COUNTED, COUNTRIES, PLACES
from tests.history import Sent, Stored
from tests.kafka.retail import ASSORTMENT, ORDERS, RECOMMENDATIONS, consent, now_ms, purchases

LADDER = ["nothing", "crowd", "anonymous", "pseudonymous", "identified"]
PERSON, HIDDEN = "canary-person-", "hidden-canary-"
HAPPENED_AGO = 2 * 3_600_000
"""Milliseconds; more than a worker's clock is ever wrong."""
UNACKNOWLEDGED = 3_000
"""Events that may be under way; while there are more, no new ones are sent."""


def person(number: int) -> str:
    """The name of a customer."""
    return f"{PERSON}{number}"


def outside_producer(bootstrap: str) -> Producer:
    """A client as a careful shop has it: acknowledged by all, each record once, however long the cluster is away."""
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "broker.address.family": "v4",
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": 2,
            "message.timeout.ms": 900_000,
            "socket.timeout.ms": 8_000,
            "reconnect.backoff.max.ms": 500,
            "topic.metadata.refresh.interval.ms": 5_000,
            "log_level": 0,
        }
    )


class Changes:
    """Every change of consent: whose, which version, when it was sent and acknowledged, and whether it takes back."""

    def __init__(self) -> None:
        self.person, self.version = array("l"), array("l")
        self.invoked, self.acknowledged = array("d"), array("d")
        self.withdrawal = bytearray()
        self._number: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.person)

    def add(self, who: int, version: int, withdrawal: bool) -> int:
        """Note a change that is about to be sent; returns its number."""
        number = self._number[who, version] = len(self)
        self.person.append(who)
        self.version.append(version)
        self.withdrawal.append(withdrawal)
        self.acknowledged.append(nan)
        self.invoked.append(time.monotonic())
        return number

    def sent(self, topic: str, partition: int, offset: int, who: int, version: int) -> Sent:
        """The change with what is known of it, now that it was found in the log."""
        number = self._number[who, version]
        acknowledged = self.acknowledged[number]
        return Sent(
            topic,
            partition,
            None if isnan(acknowledged) else offset,
            self.invoked[number],
            None if isnan(acknowledged) else acknowledged,
            bool(self.withdrawal[number]),
        )


class Traffic:
    """Sends until it is told to stop; see the module. `invoked` and `acknowledged` are by number of event."""

    def __init__(self, bootstrap: str, raw: str, consents: str, people: int, seed: int) -> None:
        self.changes = Changes()
        self.invoked, self.acknowledged = array("d"), array("d")
        self.answered = 0
        """events and changes that were acknowledged"""
        self.poison = 0
        self.errors: list[str] = []
        self.rungs: list[dict[str, str]] = [{} for _ in range(people)]
        self.versions = array("l", [0] * people)
        self.speakers = people - min(COUNTED, people // 2)
        """how many change their minds"""
        self._raw, self._consents = raw, consents
        self._chance = random.Random(f"{seed}-traffic")
        self._to_raw, self._to_consents = outside_producer(bootstrap), outside_producer(bootstrap)
        [self._purchase] = purchases(1, 0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, rate: float, least: int) -> None:
        """Send so many events a second, and a change of consent for every tenth; `least` events before it stops."""
        self._thread = threading.Thread(target=self._run, args=(rate, least), name="traffic")
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """No more, once there are enough. Wait so long for what was not acknowledged yet: there must be nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(seconds)
            assert not self._thread.is_alive(), f"not in {seconds:.0f} s: all events are sent"
        left = self._to_consents.flush(seconds) + self._to_raw.flush(seconds)
        assert left == 0, f"{left} records were not acknowledged in {seconds:.0f} s"
        assert not self.errors, f"{len(self.errors)} records were refused: {self.errors[:3]}"

    def abandon(self) -> None:
        """Stop now, whatever is missing."""
        self._least = 0
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def let_everyone_speak(self) -> None:
        """A first version for everybody, before the run. The last ones are counted, and never change it."""
        for who in range(len(self.rungs)):
            self.change_consent(who, {COUNTRIES: "crowd"} if who >= self.speakers else None)
        assert self._to_consents.flush(60) == 0

    def _run(self, rate: float, least: int) -> None:
        self._least = least
        began, due, people = time.monotonic(), 0, len(self.rungs)
        while not self._stop.is_set() or len(self.invoked) < self._least:
            # What an outage has kept back is made up for, as fast as it is acknowledged.
            due = int(rate * (time.monotonic() - began)) + 1
            while len(self.invoked) < due and len(self._to_raw) < UNACKNOWLEDGED:
                # One in twenty is of those who are counted.
                one = self._chance.random() < 0.05
                self.send_event(
                    self._chance.randrange(self.speakers, people) if one else self._chance.randrange(people)
                )
                if len(self.invoked) % 10 == 0 and len(self._to_consents) < UNACKNOWLEDGED:
                    self.change_consent(self._chance.randrange(self.speakers))
                self._to_consents.poll(0)
            self._to_raw.poll(0)
            self._to_consents.poll(0.002)

    def change_consent(self, who: int, rungs: dict[str, str] | None = None) -> None:
        """One more version for this person, unless told otherwise by chance; every third takes back everything."""
        before = self.rungs[who]
        rungs = rungs or (
            {purpose: self._chance.choice(LADDER) for purpose in (RECOMMENDATIONS, ASSORTMENT, ORDERS)}
            if self._chance.random() < 0.7
            else {}
        )
        lowered = any(LADDER.index(rung) > LADDER.index(rungs.get(name, "nothing")) for name, rung in before.items())
        self.rungs[who] = rungs
        self.versions[who] += 1
        number = self.changes.add(who, self.versions[who], lowered)

        def acknowledged(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self.errors.append(f"a consent: {error.name()}")
                return
            self.changes.acknowledged[number] = time.monotonic()
            self.answered += 1
            if lowered:
                for _again in range(2):
                    self.send_event(who)

        record = consent(person(who), self.versions[who], rungs)
        self._to_consents.produce(self._consents, key=record.key, value=record.value, on_delivery=acknowledged)

    def send_event(self, who: int) -> None:
        """One event with canaries wherever nobody looks, or now and then one that cannot be read."""
        number, customer = len(self.invoked), person(who)
        hidden = f"{HIDDEN}{number}"
        document = self._purchase | {
            "event_id": f"e-{number}",
            "customer": customer,
            "occurred_at": iso(now_ms() - HAPPENED_AGO),
            "note": hidden,
            "seen": {hidden: [hidden]},
        }
        document["item"] = self._purchase["item"] | {"for": hidden}
        if counted := who >= self.speakers:
            document["country"] = self._chance.choice(PLACES)
        value: bytes | None = json.dumps(document).encode()
        if self._chance.random() < 0.003 and not counted:
            self.poison += 1
            value = self._chance.choice([value[:-1] if value else b"", b"\xff" + hidden.encode(), b"", None, b"[1]"])
        self.acknowledged.append(nan)
        headers: list[tuple[str, str | bytes | None]] = [("number", b"%d" % number), (hidden, hidden.encode())]

        def acknowledged(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self.errors.append(f"an event: {error.name()}")
                return
            self.acknowledged[number] = time.monotonic()
            self.answered += 1

        self.invoked.append(time.monotonic())
        while True:
            try:
                self._to_raw.produce(
                    self._raw, key=customer.encode(), value=value, headers=headers, on_delivery=acknowledged
                )
                return
            except BufferError:
                self._to_raw.poll(0.1)

    def sent(self, partition: int, offset: int, number: int) -> Sent:
        """An event with what is known of it, now that it was found in the log."""
        acknowledged = self.acknowledged[number]
        if isnan(acknowledged):
            return Sent(self._raw, partition, None, self.invoked[number], None)
        return Sent(self._raw, partition, offset, self.invoked[number], acknowledged)

    def changed(self, partition: int, record: Stored) -> Sent:
        """A change of consent with what is known of it, now that it was found in the log."""
        said = json.loads(record.value or b"")
        who = int(said["subject"].removeprefix(PERSON))
        return self.changes.sent(self._consents, partition, record.offset, who, said["version"])
