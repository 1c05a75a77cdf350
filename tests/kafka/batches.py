"""Record batches byte by byte: what no producer would write, and the request that brings it to a broker.

* Layouts are those of Kafka's message format, version 2; older ones (magic 0 and 1) are built by aiokafka.
* A batch is made as the broker stores it, so that it can stand in a segment in place of one that was acknowledged.
"""

import gzip
import socket
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cramjam
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c, encode_varint

from tests.kafka.brokers import SECONDS

_LOG_OVERHEAD, _MAGIC, _CRC, _ATTRIBUTES, _RECORDS = 12, 16, 17, 21, 61


class Entry(NamedTuple):
    """One record of a batch that is made here."""

    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Sequence[tuple[str, bytes | None]] = ()


def batch_of(entries: Sequence[Entry], first: int = 0) -> bytes:
    """Make a batch of version 2, without compression and producer, whose first record has this offset."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 30)
    for number, (key, value, timestamp, headers) in enumerate(entries):
        assert builder.append(number, timestamp, key=key, value=value, headers=list(headers)) is not None
    return struct.pack(">q", first) + bytes(builder.build())[8:]


def legacy_of(entries: Sequence[Entry], magic: int, first: int = 0, codec: int = 0) -> bytes:
    """Make a message set of magic 0 or 1 (codec 1: gzip)."""
    builder = LegacyRecordBatchBuilder(magic, codec, 1 << 30)
    for number, (key, value, timestamp, _) in enumerate(entries):
        builder.append(number if codec else first + number, timestamp=timestamp, key=key, value=value)
    made = bytes(builder.build())
    # A compressed set has the offset of its last record.
    return struct.pack(">q", first + len(entries) - 1) + made[8:] if codec else made


def split(segment: bytes) -> list[bytes]:
    """Cut a segment into its batches."""
    batches = []
    while segment:
        end = _LOG_OVERHEAD + int.from_bytes(segment[8:12])
        batches.append(segment[:end])
        segment = segment[end:]
    return batches


def sealed(batch: bytes) -> bytes:
    """Set the length and the checksum of a batch of version 2 to what they must be."""
    length = struct.pack(">i", len(batch) - _LOG_OVERHEAD)
    checksum = struct.pack(">I", calc_crc32c(batch[_ATTRIBUTES:]))
    return batch[:8] + length + batch[_LOG_OVERHEAD:_CRC] + checksum + batch[_ATTRIBUTES:]


def with_codec(batch: bytes, codec: int, records: Callable[[bytes], bytes] = bytes) -> bytes:
    """Say that a batch is compressed with this codec; `records` turns the bytes of its records into others."""
    attributes = int.from_bytes(batch[_ATTRIBUTES : _ATTRIBUTES + 2]) & ~7 | codec
    head = batch[:_ATTRIBUTES] + attributes.to_bytes(2) + batch[_ATTRIBUTES + 2 : _RECORDS]
    return sealed(head + records(batch[_RECORDS:]))


def with_magic(batch: bytes, magic: int) -> bytes:
    """Say that a batch is of another version. The checksum does not cover it."""
    return batch[:_MAGIC] + bytes([magic]) + batch[_MAGIC + 1 :]


def turned_over(batch: bytes, index: int) -> bytes:
    """Turn one bit over, and nothing else."""
    broken = bytearray(batch)
    broken[index] ^= 1
    return bytes(broken)


def gzipped(data: bytes) -> bytes:
    """Compress as gzip does at its best."""
    return gzip.compress(data, 9)


def zstd_bomb(entry: Entry, mebibytes: int, copies: int) -> bytes:
    """Make a batch of copies of an entry with so much white space behind the value of each; nobody ever holds it."""
    compressor, blank = cramjam.zstd.Compressor(level=1), b" " * (1 << 20)
    key, value = entry.key or b"", entry.value or b""
    for number in range(copies):
        size = len(value) + (mebibytes << 20)
        head = b"".join([b"\0", _varint(0), _varint(number), _varint(len(key)), key, _varint(size), value])
        compressor.compress(_varint(len(head) + (mebibytes << 20) + 1) + head)
        for _ in range(mebibytes):
            compressor.compress(blank)
        compressor.compress(_varint(0))  # no headers
    records = bytes(compressor.finish())
    return with_codec(batch_of([Entry(key, b"", entry.timestamp)] * copies), 4, lambda _: records)


def _varint(number: int) -> bytes:
    written = bytearray()
    encode_varint(number, written.append)
    return bytes(written)


def produce_batch(bootstrap: str, topic: str, partition: int, batch: bytes) -> tuple[int, int]:
    """Send one batch as it is (Produce version 7, acks=all); the broker's error code, and the first offset."""
    name = topic.encode()
    body = struct.pack(">hhihhhi", 0, 7, 1, -1, -1, -1, int(SECONDS * 1000))
    body += struct.pack(">ih", 1, len(name)) + name + struct.pack(">iii", 1, partition, len(batch)) + batch
    host, port = bootstrap.split(",")[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=SECONDS) as broker:
        broker.sendall(struct.pack(">i", len(body)) + body)
        with broker.makefile("rb") as answers:
            answer = answers.read(int.from_bytes(answers.read(4)))
    error, offset = struct.unpack_from(">hq", answer, 4 + 4 + 2 + len(name) + 4 + 4)
    return error, offset
