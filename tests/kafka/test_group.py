"""Membership: whatever becomes of the group and of the brokers, a worker works, or ends and says why."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kafka.brokers import Broker, wait_until
from tests.kafka.retail import retail_policy
from tests.kafka.worker import Deployment, deployed

ONCE_REFUSED = """
from aiokafka import errors
from aiokafka.consumer.group_coordinator import GroupCoordinator
true_group, times = GroupCoordinator.ensure_active_group, iter(range(1_000))
async def refused(self, *given):
    if next(times) == 0:
        raise errors.KafkaError("unexpected")
    return await true_group(self, *given)
GroupCoordinator.ensure_active_group = refused
"""
GONE = """
from aiokafka.consumer.group_coordinator import GroupCoordinator
async def gone(self):
    raise KeyError("a bug")
GroupCoordinator.ensure_coordinator_known = gone
"""
NEVER_LEAVES = """
import asyncio
from aiokafka.consumer.group_coordinator import GroupCoordinator
async def close(self):
    await asyncio.Event().wait()
GroupCoordinator.close = close
"""


@pytest.fixture
def shop(transactional_broker: Broker, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(transactional_broker.bootstrap, topic_prefix, retail_policy(topic_prefix), tmp_path) as deployment:
        yield deployment


def test_an_error_of_the_group_does_not_keep_a_worker_out_of_it(shop: Deployment) -> None:
    worker = shop.start(script=ONCE_REFUSED)
    shop.wait_ready()
    assert "celosia.member: the group: PortError from KafkaError" in worker.log
    assert worker.terminate() == 0


def test_a_worker_that_cannot_come_back_to_the_group_ends(shop: Deployment) -> None:
    worker = shop.start(script=GONE)
    wait_until(lambda: not worker.running, "the worker ends")
    assert worker.log.splitlines()[-1] == "celosia: this worker has left the group for good: this is a bug"
    assert worker.terminate() == 1


def test_a_group_that_cannot_be_left_does_not_keep_a_worker(shop: Deployment) -> None:
    worker = shop.start(script=NEVER_LEAVES)
    shop.wait_ready()
    assert worker.terminate() == 0


def test_a_worker_ends_while_it_waits_for_a_broker_that_never_answers(shop: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        worker = shop.start(bootstrap=f"127.0.0.1:{silent.getsockname()[1]}")
        with silent.accept()[0]:
            assert worker.terminate(20) in (0, -signal.SIGTERM)
    assert "Traceback" not in worker.log
