"""One broker for all tests, found as `tests.kafka.brokers` says, started once and always ended."""

import re
import uuid
from collections.abc import Iterator

import pytest

from streams.embedded import ApacheKafka, apache_kafka, java_and_maven
from tests.kafka.brokers import Broker, find_broker


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A broker, of whichever kind is there."""
    with find_broker() as found:
        yield found


@pytest.fixture(scope="session")
def transactional_broker(broker: Broker) -> Broker:
    """A broker with transactions; the test is skipped on one that has none."""
    if not broker.transactions:
        pytest.skip(f"{broker.name} has no transactions that aiokafka can use")
    return broker


@pytest.fixture(scope="session")
def cluster() -> Iterator[ApacheKafka]:
    """Three nodes of Apache Kafka, to be killed and paused; whoever does so leaves all of them running."""
    if reason := java_and_maven():
        pytest.skip(f"three nodes need Java and Maven: {reason}")
    # A node that is gone or stands still is replaced after 3 s instead of 9.
    quick = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}
    with apache_kafka(nodes=3, overrides=quick) as kafka:
        yield kafka


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """A name for this run of this test, so that no two tests share a topic or a group."""
    readable = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40]
    return f"{readable}-{uuid.uuid4().hex[:8]}"
