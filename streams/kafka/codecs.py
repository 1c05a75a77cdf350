"""How compressed batches are unpacked, and how far.

97 KiB of zstd may hold 3 GiB, and Kafka takes them as they are. The library unpacks whatever there is, and the process
ends. Here nothing unpacks to more than `MOST`: such a batch counts as unreadable, like any that is broken.
"""

import zlib
from collections.abc import Callable

import cramjam
from aiokafka.record._crecords import default_records, legacy_records

__all__ = ["MOST", "Unpacked", "bound_what_is_unpacked", "gunzip", "unlz4", "unsnappy", "unzstd"]

MOST = 128 << 20
"""Bytes that one batch may unpack to: an event of 100 MiB is still put aside for its size, and by its coordinates."""

_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEADER = 16


class Unpacked(ValueError):
    """A batch unpacks to more than it may, or to nothing that makes sense."""


def gunzip(payload: bytes) -> bytes:
    """Unpack gzip (RFC 1952), of one member or several.

    >>> import gzip
    >>> gunzip(gzip.compress(b"ana") + gzip.compress(b" and ben"))
    b'ana and ben'

    Raises:
        Unpacked: it is more than `MOST`, or ends too early.
        zlib.error: it is no gzip.
    """
    parts, left = [], MOST
    while payload:
        member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        parts.append(member.decompress(payload, left + 1))
        left -= len(parts[-1])
        if left < 0 or not member.eof:
            raise Unpacked
        payload = member.unused_data.lstrip(b"\0")
    return b"".join(parts)


def unsnappy(payload: bytes) -> bytes:
    """Unpack snappy: one block, or the stream of blocks that snappy-java (xerial) writes.

    Raises:
        Unpacked: it is more than `MOST`, or its blocks are not where they should be.
        cramjam.DecompressionError: it is no snappy.
    """
    payload = bytes(payload)  # The library hands on a view.
    if not payload.startswith(_XERIAL) or len(payload) < _XERIAL_HEADER:
        return _block(payload, MOST)
    parts, left, at = [], MOST, _XERIAL_HEADER
    while at < len(payload):
        end = at + 4 + int.from_bytes(payload[at : at + 4])
        if end > len(payload):
            raise Unpacked
        parts.append(_block(payload[at + 4 : end], left))
        left -= len(parts[-1])
        at = end
    return b"".join(parts)


def _block(payload: bytes, most: int) -> bytes:
    if cramjam.snappy.decompress_raw_len(payload) > most:
        raise Unpacked
    return bytes(cramjam.snappy.decompress_raw(payload))


def unlz4(payload: bytes) -> bytes:
    """Unpack LZ4 frames. Raises cramjam.DecompressionError: it is no such frame, or more than `MOST`."""
    return _into(cramjam.lz4.decompress_into, payload)


def unzstd(payload: bytes) -> bytes:
    """Unpack Zstandard (RFC 8878). Raises cramjam.DecompressionError: it is none, or more than `MOST`."""
    return _into(cramjam.zstd.decompress_into, payload)


def _into(decompress_into: Callable[[bytes, bytearray], int], payload: bytes) -> bytes:
    # The size is rarely said, and not to be believed: a buffer that is too small is tried again with a larger one.
    size = min(MOST, max(1 << 16, 8 * len(payload)))
    while True:
        buffer = bytearray(size)
        try:
            return bytes(memoryview(buffer)[: decompress_into(payload, buffer)])
        except cramjam.DecompressionError:
            if size == MOST:
                raise
            size = min(MOST, 8 * size)


def bound_what_is_unpacked() -> None:
    """Make the library unpack by these functions, in the whole process."""
    for module in (default_records, legacy_records):
        for name, decode in _DECODERS.items():
            setattr(module, name, decode)


_DECODERS = {"gzip_decode": gunzip, "snappy_decode": unsnappy, "lz4_decode": unlz4, "zstd_decode": unzstd}
"""By the names under which the library looks for them. Older batches are never packed by zstd, so that is harmless."""
