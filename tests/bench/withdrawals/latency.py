"""How long it takes: an event from sending to visible, a withdrawal from its acknowledgement to its visible receipt.

Both are seen as a reader sees them, read_committed. One at a time, with a pause of random length in between.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from confluent_kafka import Consumer, Message, TopicPartition

from tests.bench.withdrawals.cells import Stage
from tests.bench.withdrawals.trials import Trials, client, consent, load
from tests.kafka.brokers import SECONDS, wait_until
from tests.kafka.worker import PARTITIONS

PAUSE = (0.02, 0.1)
Seen = Callable[[Message], None]


def of_events(stage: Stage, count: int) -> list[float]:
    """Seconds from sending to visible of so many events, sorted, with nothing else going on."""
    stage.start()
    trials, chance = Trials(stage.shop), random.Random(1)
    people = trials.people(20)
    sent: dict[str, float] = {}
    visible: dict[str, float] = {}

    def seen(message: Message) -> None:
        visible.setdefault(json.loads(message.value() or b"")["event_id"], time.monotonic())

    with watching(stage.shop.bootstrap, stage.shop.outputs[0], seen):
        for _ in range(count):
            now = time.monotonic()
            sent[trials.send(chance.choice(people))] = now
            time.sleep(chance.uniform(*PAUSE))
        wait_until(lambda: sent.keys() <= visible.keys(), f"{count} events are published", SECONDS)
    return sorted(visible[name] - began for name, began in sent.items())


def of_receipts(stage: Stage, count: int, per_second: int) -> list[float]:
    """Seconds from acknowledged to a visible receipt of so many withdrawals, sorted, beside so many other events."""
    stage.start()
    trials, chance, producer = Trials(stage.shop), random.Random(2), client(stage.shop.bootstrap)
    trials.people(20)
    acknowledged: dict[tuple[int, int], float] = {}
    receipts: list[tuple[int, int, float]] = []
    errors: list[object] = []

    def seen(message: Message) -> None:
        receipt = json.loads(message.value() or b"")
        receipts.append((receipt["partition"], receipt["through"], time.monotonic()))

    def written(error: object, message: Message) -> None:
        if error is not None:
            errors.append(error)
        acknowledged[message.partition() or 0, message.offset() or 0] = time.monotonic()

    def through(number: int) -> int:
        return max((through for partition, through, _ in list(receipts) if partition == number), default=0)

    def all_in_force() -> bool:
        return all(offset < through(number) for number, offset in acknowledged)

    with watching(stage.shop.bootstrap, stage.shop.receipts, seen), load(stage.shop, per_second):
        for number in range(count):
            who = f"withdrawing-{number}"
            producer.produce(stage.shop.consents, key=who, value=consent(who, 2, None), on_delivery=written)
            until = time.monotonic() + chance.uniform(*PAUSE)
            while (left := until - time.monotonic()) > 0:
                producer.poll(left)
        assert producer.flush(SECONDS) == 0
        assert not errors, errors[:3]
        wait_until(all_in_force, f"{count} withdrawals have their receipts", SECONDS)
    return sorted(
        min(at for partition, through, at in receipts if partition == number and offset < through) - began
        for (number, offset), began in acknowledged.items()
    )


@contextmanager
def watching(bootstrap: str, topic: str, seen: Seen) -> Iterator[None]:
    """Hand on each committed record of a topic that comes from now on, in the moment in which a reader has it."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "broker.address.family": "v4",
            "group.id": f"watching-{topic}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if (message := consumer.poll(0.1)) is not None and message.error() is None:
                seen(message)

    places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    for place in places:
        ends = consumer.get_watermark_offsets(place, timeout=SECONDS)
        assert ends is not None
        place.offset = ends[1]
    consumer.assign(places)
    thread = threading.Thread(target=watch, name="watching")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        consumer.close()


def quantile(sorted_values: list[float], part: float) -> float:
    """In milliseconds."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * part))] * 1000
