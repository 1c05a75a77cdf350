"""Reads a partition from its first record to its end, after a run."""

import time
from collections.abc import Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from tests.chaos.observer import stored
from tests.history import Stored

PATIENCE = 60.0
"""Seconds without a record, or the end."""


def read_log(bootstrap: str, topic: str, partition: int, known: Sequence[Stored] | None = None) -> list[Stored]:
    """All that a read_committed reader sees; with what that one has seen, all that a read_uncommitted one sees.

    What both see is the same object, so that it is held once.
    """
    same = {record.offset: record for record in known or ()}
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "broker.address.family": "v4",
            "group.id": "celosia-chaos-reader",
            "isolation.level": "read_committed" if known is None else "read_uncommitted",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
            "log_level": 0,
        }
    )
    records: list[Stored] = []
    try:
        reader.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
        heard = time.monotonic()
        while True:
            for message in reader.consume(5_000, timeout=0.2):
                heard = time.monotonic()
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    return records
                if error is not None:
                    raise KafkaException(error)
                record = stored(message)
                records.append(same[record.offset] if same.get(record.offset) == record else record)
            assert time.monotonic() < heard + PATIENCE, f"{topic}[{partition}]: nothing comes, and no end"
    finally:
        reader.close()
