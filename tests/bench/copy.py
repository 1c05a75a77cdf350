"""The yardstick: a plain copy of one topic to another with librdkafka, the practical limit of Python on Kafka.

Usage: python -m tests.bench.copy BOOTSTRAP SOURCE SINK EVENTS
Prints `first SECONDS` as it begins to fetch, `last SECONDS` when all are acknowledged, on the monotonic clock.
"""

import sys
import time
from uuid import uuid4

from confluent_kafka import Consumer, Producer, TopicPartition


def main(bootstrap: str, source: str, sink: str, events: int) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"copy-{uuid4()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 4 << 20,
            "queued.max.messages.kbytes": 64 << 10,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
        }
    )
    partitions = consumer.list_topics(source, timeout=10).topics[source].partitions
    # From here: what is fetched ahead before the first batch is handed out is part of the work.
    print(f"first {time.monotonic()}", flush=True)
    consumer.assign([TopicPartition(source, number, 0) for number in partitions])
    copied = 0
    while copied < events:
        messages = consumer.consume(1_000, timeout=1.0)
        for message in messages:
            # A copy keeps what a record is: key, value, partition, timestamp and headers.
            producer.produce(
                sink,
                message.value(),
                message.key(),
                message.partition() or 0,
                timestamp=message.timestamp()[1],
                headers=message.headers(),
            )
        copied += len(messages)
        producer.poll(0)
    producer.flush()
    print(f"last {time.monotonic()}", flush=True)
    sys.stdin.readline()
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
