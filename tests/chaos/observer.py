"""What somebody sees who reads along: every consent that was ever written, and where readers stood at each receipt.

- Consents are read as they come, before compaction takes any away.
- A promise is noted in the moment a receipt is seen: the outputs of its partition are asked how far a read_committed
  reader could have read. Only the leader of the highest epoch is believed, and only if it still is that afterwards: one
  that has been replaced, without knowing it yet, would say too little, and accuse a worker falsely.
"""

import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from streams.kafka.work import Receipt
from tests.chaos.cluster import LinkedCluster, Partition
from tests.chaos.traffic import PERSON
from tests.history import Promised, Stored

GONE = Partition(-1, -1, ())
PAUSE = 0.4
"""Seconds between two looks at the same partition's outputs: what comes in between is one promise."""


def stored(message: Message) -> Stored:
    """A record as a history holds it."""
    key, value, headers = message.key(), message.value(), message.headers() or []
    assert not isinstance(key, str)
    assert not isinstance(value, str)
    return Stored(message.offset() or 0, message.timestamp()[1], key, value, headers)  # type: ignore[arg-type]


class Observer:
    """Reads along until it is told to stop."""

    def __init__(
        self, cluster: LinkedCluster, consents: str, receipts: str, outputs: list[str], partitions: int
    ) -> None:
        self.consents: dict[int, dict[int, Stored]] = {number: {} for number in range(partitions)}
        self.promised: list[Promised] = []
        self.counts: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._cluster = cluster
        self._consents, self._receipts, self._outputs = consents, receipts, outputs
        self._through = dict.fromkeys(range(partitions), 0)
        self._asked = dict.fromkeys(range(partitions), (0, 0.0))
        self._consumer = Consumer(
            {
                "bootstrap.servers": cluster.bootstrap,
                "broker.address.family": "v4",
                "group.id": "celosia-chaos-observer",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
                "socket.timeout.ms": 5_000,
                "reconnect.backoff.max.ms": 500,
                "topic.metadata.refresh.interval.ms": 3_000,
                "log_level": 0,
            }
        )
        self._consumer.assign(
            [
                TopicPartition(topic, number, OFFSET_BEGINNING)
                for topic in (consents, receipts)
                for number in range(partitions)
            ]
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer")

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._consumer.close()
        if self.failure is not None:
            raise self.failure

    def through(self, partition: int) -> int:
        """What the newest receipt of a partition says."""
        return self._through[partition]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for message in self._consumer.consume(500, timeout=0.05):
                    if message.error() is not None:
                        self.counts["errors of the observer"] += 1
                    elif message.topic() == self._consents:
                        self._note_consent(message)
                    else:
                        receipt = msgspec.json.decode(message.value() or b"", type=Receipt)
                        self._through[receipt.partition] = max(self._through[receipt.partition], receipt.through)
                for number, (through, at) in self._asked.items():
                    if self._through[number] > through and time.monotonic() > at + PAUSE:
                        self._promise(number)
        except BaseException as error:
            self.failure = error

    def _note_consent(self, message: Message) -> None:
        record = stored(message)
        # What lanes write here as a barrier is no consent.
        if record.key is not None and record.key.startswith(PERSON.encode()):
            self.consents[message.partition() or 0][record.offset] = record

    def _promise(self, partition: int) -> None:
        through = self._through[partition]
        self._asked[partition] = through, time.monotonic()
        before = self._cluster.known(self._outputs)
        stood = {topic: self._stood(topic, partition, before.get((topic, partition))) for topic in self._outputs}
        after = self._cluster.known(self._outputs)
        sure = {
            topic: offset
            for topic, offset in stood.items()
            if offset is not None and before[topic, partition].epoch == after.get((topic, partition), GONE).epoch
        }
        self.counts["receipts that nobody could vouch for"] += len(sure) < len(stood)
        if sure:
            self.promised.append(Promised(partition, through, sure))

    def _stood(self, topic: str, partition: int, known: Partition | None) -> int | None:
        if known is None or known.leader not in self._cluster.pids:
            return None
        return stable_offset(self._cluster.ports[known.leader], topic, partition, known.epoch)


def stable_offset(port: int, topic: str, partition: int, epoch: int) -> int | None:
    """Ask a leader how far a read_committed reader can read (ListOffsets, version 4); None if it does not say."""
    name = topic.encode()
    form = f">hhihibih{len(name)}siiiq"
    request = struct.pack(form, 2, 4, 0, -1, -1, 1, 1, len(name), name, 1, partition, epoch, -1)
    with suppress(OSError, struct.error), socket.create_connection(("127.0.0.1", port), timeout=2.0) as node:
        node.sendall(struct.pack(">i", len(request)) + request)
        with node.makefile("rb") as stream:
            answer = stream.read(struct.unpack(">i", stream.read(4))[0])
        # Correlation, throttling, one topic and its name, one partition; then what was asked for.
        error, _, offset, _ = struct.unpack_from(">hqqi", answer, 4 + 4 + 4 + 2 + len(name) + 4 + 4)
        return int(offset) if error == 0 else None
    return None
