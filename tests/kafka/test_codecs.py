"""Compressed batches: what the library unpacks is unpacked, and no more than a worker can hold."""

import gzip
import zlib
from collections.abc import Callable

import cramjam
import pytest
from aiokafka import codec
from aiokafka.record._crecords import default_records, legacy_records

from streams.kafka import codecs
from streams.kafka.codecs import Unpacked, gunzip, unlz4, unsnappy, unzstd

Code = Callable[[bytes], bytes]


def in_one_block(data: bytes) -> bytes:
    """Snappy without the frames of snappy-java."""
    return bytes(codec.snappy_encode(data, xerial_compatible=False))


CODES: list[tuple[Code, Code]] = [
    (gzip.compress, gunzip),
    (codec.snappy_encode, unsnappy),
    (in_one_block, unsnappy),
    (codec.lz4_encode, unlz4),
    (codec.zstd_encode, unzstd),
]
REFUSED = (Unpacked, zlib.error, cramjam.DecompressionError)
HARD = bytes(number * number // 7 % 251 for number in range(70_000))


@pytest.mark.parametrize(("pack", "unpack"), CODES)
@pytest.mark.parametrize("data", [b"", b"a", HARD, bytes(3_000_000)])
def test_what_was_packed_is_unpacked(pack: Code, unpack: Code, data: bytes) -> None:
    assert unpack(pack(data)) == data
    assert unpack(memoryview(pack(data))) == data  # type: ignore[arg-type]


@pytest.mark.parametrize(("pack", "unpack"), CODES)
def test_up_to_a_size(pack: Code, unpack: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "MOST", 100_000)
    assert unpack(pack(bytes(100_000))) == bytes(100_000)
    with pytest.raises(REFUSED):
        unpack(pack(bytes(100_001)))


@pytest.mark.parametrize(("pack", "unpack"), CODES)
def test_what_is_cut_off_or_something_else_is_refused(pack: Code, unpack: Code) -> None:
    for data in (pack(HARD)[:-9], pack(HARD)[:20], HARD):
        with pytest.raises(REFUSED):
            unpack(data)


@pytest.mark.parametrize("size", [-4, -5, 1 << 30, 9])
def test_blocks_of_snappy_that_lead_nowhere_are_refused(size: int) -> None:
    # The library reads the size as one with a sign: -4 leads to the same block again, for ever.
    with pytest.raises(ValueError):  # noqa: PT011 - without a text, as it could quote
        unsnappy(codec.snappy_encode(b"")[:16] + size.to_bytes(4, signed=True) + b"abcd")


def test_the_library_unpacks_so() -> None:
    codecs.bound_what_is_unpacked()
    for module in (default_records, legacy_records):
        assert module.gzip_decode is gunzip
    assert default_records.zstd_decode is unzstd
