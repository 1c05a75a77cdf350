"""Asks a broker for the id of a topic (KIP-516): a topic that was deleted and made anew has another one.

aiokafka 0.14 knows the metadata request up to version 5, and ids begin with version 10: this is version 12 out of the
library's own building blocks, with the fields of Kafka's `MetadataRequest.json` and `MetadataResponse.json`.
"""

from io import BytesIO
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

__all__ = ["topic_id"]


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


_BROKER = Schema(
    ("node_id", Int32), ("host", CompactString()), ("port", Int32), ("rack", CompactString()), ("tags", TaggedFields)
)
_PARTITION = Schema(
    ("error_code", Int16),
    ("partition", Int32),
    ("leader", Int32),
    ("leader_epoch", Int32),
    ("replicas", CompactArray(Int32)),
    ("isr", CompactArray(Int32)),
    ("offline_replicas", CompactArray(Int32)),
    ("tags", TaggedFields),
)
_TOPIC = Schema(
    ("error_code", Int16),
    ("name", CompactString()),
    ("topic_id", _Uuid),
    ("is_internal", Boolean),
    ("partitions", CompactArray(_PARTITION)),
    ("authorized_operations", Int32),
    ("tags", TaggedFields),
)


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(_BROKER)),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        ("topics", CompactArray(_TOPIC)),
        ("tags", TaggedFields),
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(Schema(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields)))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicIdRequest(Request[_MetadataRequest]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_MetadataRequest]) -> Any:
        return request_struct_class([(bytes(16), self._topic, {})], False, False, {})


async def topic_id(client: Any, node: int, topic: str) -> bytes | None:
    """Return the id that a broker knows a topic by; None where the broker has no ids.

    Raises:
        KafkaError: the broker does not answer, or does not know the topic.
    """
    try:
        answer = await client.send(node, _TopicIdRequest(topic))
    except (RuntimeError, kafka_errors.IncompatibleBrokerVersion):  # an older broker: the library has no version for it
        return None
    error_code, _, found, *_ = answer.topics[0]
    if error_code:
        raise kafka_errors.for_code(error_code)(topic)
    return bytes(found)
