"""How the clients of one worker connect, what its lanes share, and what the library's errors become.

Rules of this file:
- Errors are translated by type; their texts are not passed on.
- The gate's questions have a connection of their own: behind a busy fetch they would wait for 300 ms.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.protocol.group import HeartbeatRequest

from streams.kafka.port import Fenced, OffsetsGone, PortError

__all__ = ["ClientSettings", "Connections", "quietly", "translated"]

_FENCED = (
    kafka_errors.ProducerFenced,
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.InvalidProducerIdMapping,
    kafka_errors.OutOfOrderSequenceNumber,
)
_OTHERS = (
    OSError,
    TimeoutError,
    # How the library checks the states of a transaction, and of itself: these two are no `KafkaError`.
    AssertionError,
    kafka_errors.IllegalOperation,
    kafka_errors.ConsumerStoppedError,
    # Broken bytes.
    ValueError,
)
_MEMBER = (kafka_errors.NoError, kafka_errors.RebalanceInProgressError)
_NO_MEMBER = (kafka_errors.IllegalGenerationError, kafka_errors.UnknownMemberIdError)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How the clients of one worker connect. Times are in milliseconds, sizes in bytes."""

    bootstrap: str
    group: str
    transactional: bool = True
    transaction_timeout: int = 60_000
    session_timeout: int = 10_000
    fetch_bytes: int = 2 << 20
    """the most that is fetched of a partition at once"""
    batch_records: int = 4_000
    """about how many records of a topic one transaction takes at the most; whole batches are taken"""
    batch_bytes: int = 1_000_000
    """the most bytes of one produced record batch; the broker's limit is 1,048,588 unless it was changed"""
    compression: str | None = None
    fetch_wait: int = 500
    """how long a broker may hold back an empty answer; less only where a new record does not wake it (Tansu)"""

    def common(self, name: str) -> dict[str, Any]:
        """Return what all clients share."""
        return {"bootstrap_servers": self.bootstrap, "client_id": f"{self.group}-{name}", "retry_backoff_ms": 20}


class Connections:
    """What the lanes of one worker share: the consumer in the group, a client for the gate alone, a consent writer."""

    def __init__(self, settings: ClientSettings, member: AIOKafkaConsumer | None = None) -> None:
        self.settings = settings
        self._member = member
        self._writer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        # Its metadata is young enough to notice soon that partitions were added.
        self.gate = AIOKafkaConsumer(**settings.common("gate"), enable_auto_commit=False, metadata_max_age_ms=5_000)

    async def start(self) -> None:
        """Connect. Raises PortError."""
        async with translated():
            await self.gate.start()

    async def stop(self) -> None:
        """Disconnect. Never raises."""
        clients = [self.gate] if self._writer is None else [self.gate, self._writer]
        await asyncio.gather(*(quietly(client.stop()) for client in clients))

    @property
    def member(self) -> AIOKafkaConsumer:
        """The consumer in the group. Raises PortError where there is none."""
        if self._member is None:
            raise PortError("not a member of the group")
        return self._member

    async def write(self, topic: str, partition: int, key: bytes, value: bytes | None) -> int:
        """Write a record to the consent topic, outside of transactions, acknowledged by all; returns its offset.

        It may be there more than once, which is harmless: versions decide.

        Raises:
            PortError: it was not acknowledged. It may be there nevertheless.
        """
        async with translated():
            writer = await self._started_writer()
            written = await writer.send_and_wait(topic, value, key=key, partition=partition)
        if written.offset < 0:
            raise PortError("the broker did not say where it wrote")
        return int(written.offset)

    async def _started_writer(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._writer is None:
                # A short time-out: who waits for this asks anew, and a leader that is cut off never answers.
                writer = AIOKafkaProducer(**self.settings.common("consents"), acks="all", request_timeout_ms=10_000)
                try:
                    await writer.start()
                except BaseException:
                    await quietly(writer.stop())
                    raise
                self._writer = writer
        return self._writer

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has, as of some seconds ago; 0 where that is not known."""
        return len(self.gate.partitions_for_topic(topic) or ())

    async def confirm(self) -> bool:
        """Ask the group coordinator whether this worker is a member of the current generation.

        Raises:
            PortError: it did not say.
        """
        coordinator = self.member._coordinator
        async with translated():
            request = HeartbeatRequest(coordinator.group_id, coordinator.generation, coordinator.member_id)
            answer = kafka_errors.for_code((await coordinator._send_req(request)).error_code)
        if answer in _MEMBER:
            return True
        if answer in _NO_MEMBER:
            return False
        raise PortError(answer.__name__)


@contextlib.asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn the library's errors into the port's. Their texts may quote a record and are left behind."""
    try:
        yield
    except PortError:
        raise
    except kafka_errors.OffsetOutOfRangeError as error:
        [(tp, position)] = list(error.args[0].items())[:1]
        raise OffsetsGone(tp.topic, position) from None
    except kafka_errors.KafkaError as error:
        fenced = isinstance(error, _FENCED) or isinstance(error.__cause__, _FENCED)
        raise (Fenced if fenced else PortError)(type(error).__name__) from error
    except _OTHERS as error:
        raise PortError(type(error).__name__) from error


async def quietly(step: Any, seconds: float = 10.0) -> None:
    """Let go of something: whatever it raises, nothing depends on it any more."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(seconds):
            await step
