"""Where a key lives: Kafka's default partitioner, murmur2, as Java's clients and aiokafka have it.

librdkafka's default is another one (CRC32). Consents and raw events must agree on this one (A3 of the promises).
"""

from collections.abc import Callable
from functools import lru_cache

from aiokafka.partitioner import murmur2

__all__ = ["owner_of", "partition_of"]


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that a key belongs on.

    >>> partition_of(b"17850", 4)
    3
    """
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def owner_of(partition: int, partitions: int) -> Callable[[bytes], bool]:
    """Return the test whether a key belongs on a partition."""
    return lambda key: partition_of(key, partitions) == partition
