"""A peer: what a competent developer writes by hand. Consume, look consent up in a dict, minimize, produce, commit.

    python -m tests.bench.peers.loop --bootstrap H:P --group G --raw T --consents T --out T --instance 0 --key-file F

Exactly once: one transaction per batch, the events' offsets in it, fenced by the group's generation (KIP-447). Events
wait while the consents of their partition are read from the beginning; within a batch consents come first. It asks
nobody whether it has seen all consents that there are: that is what the table is about.
"""

import argparse
import hashlib
import hmac
import signal
import sys
import time
from datetime import datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, Producer, TopicPartition

PURPOSE = "personalization.recommendations"
SECONDS = 30.0

_stopping = False


def main() -> int:
    """Run until SIGTERM; after a failure start anew from what is committed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("bootstrap", "group", "raw", "consents", "out", "instance"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--key-file", type=Path, required=True)
    parser.add_argument("--session-timeout-ms", type=int, default=45_000)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    while not _stopping:
        loop = Loop(options)
        try:
            loop.run()
        except KafkaException as error:
            print(f"again after {error}", flush=True)
            time.sleep(0.1)
        finally:
            loop.consumer.close()
    return 0


class Loop:
    """One life of the loop: a consumer, a producer, and everyone's consent."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.raw, self.consents_topic, self.out = options.raw, options.consents, options.out
        self.secret = options.key_file.read_bytes()
        self.consents: dict[bytes, dict[str, Any]] = {}
        self.unread: dict[int, int | None] = {}
        """by partition: the offset up to which consents are still to be read before events may come"""
        brokers = {"bootstrap.servers": options.bootstrap, "broker.address.family": "v4"}
        self.consumer = Consumer(
            {
                **brokers,
                "group.id": options.group,
                "session.timeout.ms": options.session_timeout_ms,
                "heartbeat.interval.ms": options.session_timeout_ms // 3,
                "partition.assignment.strategy": "range",  # The same numbers of both topics to the same member.
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        self.producer = Producer(
            {
                **brokers,
                "transactional.id": f"{options.group}-{options.instance}",
                "transaction.timeout.ms": 10_000,
                "partitioner": "murmur2_random",
                "linger.ms": 0,
            }
        )

    def run(self) -> None:
        """Handle batches until told to stop."""
        self.producer.init_transactions(SECONDS)
        self.consumer.subscribe([self.raw, self.consents_topic], on_assign=self.assigned)
        while not _stopping:
            events: list[Message] = []
            for message in self.consumer.consume(500, timeout=0.05):
                if (error := message.error()) is not None:
                    raise KafkaException(error)
                if message.topic() == self.raw:
                    events.append(message)
                else:
                    self.learn(message)
            if events:
                self.handle(events)
            self.admit()

    def assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Read consents from the beginning, and let events wait until that is done."""
        self.unread = {place.partition: None for place in partitions if place.topic == self.consents_topic}
        for place in partitions:
            if place.topic == self.consents_topic:
                place.offset = OFFSET_BEGINNING
        consumer.assign(partitions)
        consumer.pause([place for place in partitions if place.topic == self.raw])

    def admit(self) -> None:
        """Let events come of those partitions of which all consents are read that there were at the beginning."""
        for partition, end in list(self.unread.items()):
            consents = TopicPartition(self.consents_topic, partition)
            if end is None:
                _, end = self.consumer.get_watermark_offsets(consents, timeout=SECONDS)
                self.unread[partition] = end
            [at] = self.consumer.position([consents])
            if at.offset >= end or not end:
                del self.unread[partition]
                self.consumer.resume([TopicPartition(self.raw, partition)])

    def learn(self, message: Message) -> None:
        """Take in one consent record. The higher version wins."""
        key, value = bytes(message.key() or b""), bytes(message.value() or b"")
        consent = orjson.loads(value)
        if consent["version"] >= self.consents.get(key, {"version": 0})["version"]:
            self.consents[key] = consent

    def handle(self, events: list[Message]) -> None:
        """One transaction: what may be published of a batch, and the offsets after it."""
        ends: dict[int, int] = {}
        self.producer.begin_transaction()
        for message in events:
            ends[message.partition() or 0] = (message.offset() or 0) + 1
            published = self.minimized(bytes(message.key() or b""), bytes(message.value() or b""))
            if published is not None:
                self.producer.produce(self.out, key=published[0], value=published[1])
        offsets = [TopicPartition(self.raw, partition, end) for partition, end in ends.items()]
        self.producer.send_offsets_to_transaction(offsets, self.consumer.consumer_group_metadata(), SECONDS)
        self.producer.commit_transaction(SECONDS)

    def minimized(self, key: bytes, value: bytes) -> tuple[str, bytes] | None:
        """What is published of one event, or None: drop, pseudonym, coarsen."""
        event = orjson.loads(value)
        grant = self.consents.get(key, {"purposes": {}})["purposes"].get(PURPOSE)
        when = datetime.fromisoformat(event["occurred_at"])
        if grant is None or grant["rung"] != "pseudonymous" or when < datetime.fromisoformat(grant["since"]):
            return None
        pseudonym = hmac.new(self.secret, key, hashlib.sha256).hexdigest()
        bought = event["properties"]
        document = {
            "event_id": event["event_id"],
            "occurred_at": when.replace(minute=0, second=0, microsecond=0).isoformat(),
            "subject": pseudonym,
            "properties": {
                "product_id": bought["product_id"],
                "category": bought["category"],
                "price": round(bought["price"] / 10) * 10,
            },
            "context": {"ip": str(ip_network((event["context"]["ip"], 24), strict=False).network_address)},
        }
        return pseudonym, orjson.dumps(document)


def _stop(*_: object) -> None:
    global _stopping
    _stopping = True


if __name__ == "__main__":
    sys.exit(main())
