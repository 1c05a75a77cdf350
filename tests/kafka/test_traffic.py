"""Both sides of a worker, as the demo plays them; and topics on a broker that creates whatever it is asked about."""

import asyncio

from confluent_kafka import Producer

from streams.demo import schemas_folder
from streams.embedded import embedded
from streams.kafka.connections import ClientSettings
from streams.kafka.topics import ask_states, create_topics, wanted_topics
from streams.kafka.traffic import EventWriter, TopicReader
from streams.policy import load_policy
from tests.kafka import brokers
from tests.kafka.brokers import Broker


async def test_asking_for_topics_does_not_create_them() -> None:
    policy = load_policy(schemas_folder() / "policies" / "retail.yaml")
    with embedded() as tansu:
        assert await ask_states(tansu.bootstrap, policy) == {}
        created = await create_topics(tansu.bootstrap, policy, partitions=4, replication=1)
        assert created == [topic.name for topic in wanted_topics(policy)]
        config = (await ask_states(tansu.bootstrap, policy))["shop.consents"].config
        assert config is not None
        assert config["cleanup.policy"] == "compact"


async def test_what_is_written_is_read_where_its_key_belongs(broker: Broker, topic_prefix: str) -> None:
    topic = f"{topic_prefix}.raw"
    brokers.create_topics(broker.bootstrap, {topic: (4, 1, {})})
    settings = ClientSettings(broker.bootstrap, topic_prefix, transactional=broker.transactions)
    async with EventWriter(settings, 4) as writer, TopicReader(settings, [topic], 4) as reader:
        waiting = [await writer.write(topic, b"17850", b"%d" % number, 1000) for number in range(3)]
        places = await asyncio.gather(*waiting)
        assert [str(place) for place in places] == [f"{topic}[3]@{offset}" for offset in range(3)]
        nobody = [await (await writer.write(topic, None, b"", 1000)) for _ in range(4)]
        assert {place.partition for place in nobody} == {0, 1, 2, 3}
        assert await reader.committed(topic) == [0, 0, 0, 0]
        read = []
        while not await reader.at_end():
            read += await reader.read()
    assert [record.value for record in read if record.key == b"17850"] == [b"0", b"1", b"2"]
    assert len(read) == 7


async def test_reader_does_not_see_what_was_aborted(transactional_broker: Broker, topic_prefix: str) -> None:
    brokers.create_topics(transactional_broker.bootstrap, {topic_prefix: (1, 1, {})})
    producer = Producer({"bootstrap.servers": transactional_broker.bootstrap, "transactional.id": topic_prefix})
    producer.init_transactions(30)
    for value, end in ((b"dropped", producer.abort_transaction), (b"kept", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic_prefix, value)
        producer.flush(30)
        end(30)
    settings = ClientSettings(transactional_broker.bootstrap, topic_prefix)
    async with TopicReader(settings, [topic_prefix], 1) as reader:
        read = []
        while not await reader.at_end():
            read += await reader.read()
    assert [record.value for record in read] == [b"kept"]
