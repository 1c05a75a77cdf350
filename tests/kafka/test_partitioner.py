"""The partitioner agrees with Kafka's own."""

import pytest
from aiokafka.partitioner import DefaultPartitioner, murmur2
from hypothesis import given
from hypothesis import strategies as st

from streams.kafka.partitioner import owner_of, partition_of

# org.apache.kafka.common.utils.UtilsTest, testMurmur2 (Apache-2.0)
MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "java"), MURMUR2.items())
def test_the_hash_is_that_of_java(key: bytes, java: int) -> None:
    assert murmur2(key) & 0xFFFFFFFF == java & 0xFFFFFFFF


@pytest.mark.parametrize("partitions", [1, 2, 3, 4, 7, 12, 1000])
@pytest.mark.parametrize(("key", "java"), MURMUR2.items())
def test_a_key_lives_where_javas_producer_puts_it(key: bytes, java: int, partitions: int) -> None:
    # BuiltInPartitioner.partitionForKey: toPositive(murmur2(key)) % partitions, and toPositive takes the sign bit away.
    assert partition_of(key, partitions) == (java & 0x7FFFFFFF) % partitions


@given(key=st.binary(), partitions=st.integers(1, 100))
def test_our_own_client_puts_it_there_too(key: bytes, partitions: int) -> None:
    every = list(range(partitions))
    assert partition_of(key, partitions) == DefaultPartitioner()(key, every, every)


@given(key=st.binary(), partitions=st.integers(1, 20))
def test_each_key_has_one_owner(key: bytes, partitions: int) -> None:
    owners = [partition for partition in range(partitions) if owner_of(partition, partitions)(key)]
    assert owners == [partition_of(key, partitions)]
