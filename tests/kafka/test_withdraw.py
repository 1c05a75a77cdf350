"""`celosia withdraw`: what it has said is in force, whoever runs, whatever was in flight, whatever was known."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.consent import Consents
from streams.kafka.withdraw import Withdrawn, withdraw
from streams.kafka.work import BoundAgent
from streams.keys import MasterKey
from streams.plan import compile_plan
from streams.policy import Policy
from streams.testing import MemoryBroker, MemoryConsents, MemoryLane
from tests.kafka.brokers import Broker, ToSend, produce, wait_until
from tests.kafka.retail import ORDERS, RECOMMENDATIONS, consent, event, now_ms, purchases, retail_policy
from tests.kafka.worker import Deployment, deployed

# The lane stands still before its first commit of outputs, with everything written and nothing visible.
HANGS_BEFORE_COMMIT = """
import asyncio, pathlib, sys
from streams.kafka.client import AiokafkaLane
send, commit = AiokafkaLane.send, AiokafkaLane.commit
async def noted(self, sends):
    self.published = any("recommendations" in topic for topic, _ in sends)
    await send(self, sends)
async def hanging(self):
    if self.published and not hasattr(AiokafkaLane, "hung"):
        AiokafkaLane.hung = True
        print("hangs before the commit", file=sys.stderr, flush=True)
        await asyncio.sleep(20)
    await commit(self)
AiokafkaLane.send, AiokafkaLane.commit = noted, hanging
"""


@pytest.fixture
def shop(transactional_broker: Broker, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(transactional_broker.bootstrap, topic_prefix, retail_policy(topic_prefix), tmp_path) as deployment:
        yield deployment


def run_withdraw(shop: Deployment, subjects: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streams", "withdraw", *more]
    return subprocess.run(command, input=subjects, env=shop.environment(), capture_output=True, text=True, timeout=90)


def bought(who: str) -> ToSend:
    [line] = purchases(1, now_ms())
    return event(line | {"customer": who})


def allow(shop: Deployment, *people: str) -> None:
    rungs = {RECOMMENDATIONS: "pseudonymous", ORDERS: "identified"}
    produce(shop.bootstrap, shop.consents, [consent(who, 3, rungs) for who in people])


def published(shop: Deployment, purpose: str) -> list[str]:
    """Whose events were published for a purpose."""
    raw = {(record.partition, record.offset): (record.key or b"").decode() for record in shop.read(shop.raw)}
    records = shop.read(shop.plan.purposes[purpose].topic)
    return [raw[shop.source_of(record)] for record in records]


def test_what_was_in_flight_never_becomes_visible(shop: Deployment) -> None:
    worker = shop.start(script=HANGS_BEFORE_COMMIT)
    shop.wait_ready()
    allow(shop, "ana")
    shop.wait_in_force()
    produce(shop.bootstrap, shop.raw, [bought("ana")])
    wait_until(lambda: "hangs before the commit" in worker.log, "the lane has written its outputs")
    done = run_withdraw(shop, "ana\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "version 4 is in force" in done.stdout
    assert "ana" not in done.stdout
    # The order went on in the meantime: the person read "done" while the worker still held its open transaction.
    shop.wait_consumed()
    assert published(shop, RECOMMENDATIONS) == published(shop, ORDERS) == []
    assert "fenced" in worker.log


def test_one_purpose_is_withdrawn_and_the_others_stay(shop: Deployment) -> None:
    shop.start()
    shop.wait_ready()
    allow(shop, "ana", "ben")
    done = run_withdraw(shop, "ana\n\nana\n", "--purpose", ORDERS)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    produce(shop.bootstrap, shop.raw, [bought("ana"), bought("ben")])
    shop.wait_consumed()
    assert sorted(published(shop, RECOMMENDATIONS)) == ["ana", "ben"]
    assert published(shop, ORDERS) == ["ben"]


def test_it_works_for_people_of_whom_nothing_is_known_and_without_a_worker(shop: Deployment) -> None:
    people = [f"person-{number}" for number in range(10)]
    done = run_withdraw(shop, "\n".join(people))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 10
    records = shop.read(shop.consents)
    assert {record.key for record in records if record.value} == {who.encode() for who in people}


@pytest.mark.parametrize(
    ("subjects", "more", "said"),
    [
        ("", (), "celosia: standard input names nobody; give one subject a line\n"),
        ("ana", ("--purpose", "adds"), "celosia: --purpose: policy retail@1 has no purpose `adds`"),
    ],
)
def test_bad_input_is_one_line(shop: Deployment, subjects: str, more: tuple[str, ...], said: str) -> None:
    done = run_withdraw(shop, subjects, *more)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


class Ports:
    """Where a withdrawal on a broker in memory reads and writes."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def lane(self, _agent: BoundAgent, partition: int) -> MemoryLane:
        return self._broker.lane("lane", ["raw"], "consents", partition)

    def consents(self, partition: int) -> MemoryConsents:
        return self._broker.consents("consents", partition)

    async def write_consent(self, partition: int, key: bytes, value: bytes) -> int:
        return self._broker.append("consents", partition, key, value)


async def test_a_record_that_cannot_be_read_hides_versions_that_others_know() -> None:
    # Found by the simulation (seed 65374): compaction left nothing of Ana but an unreadable record, so no version was
    # known, and version 0 was written. A follower that was behind still knew version 2 and held that for the newer one.
    broker = MemoryBroker()
    behind = Consents()
    behind.apply(b"ana", consent("ana", 2, {ORDERS: "identified"}).value)
    broker.append("consents", 0, b"ana", b"{")
    plan = compile_plan(Policy.model_validate(retail_policy("memory")), MasterKey(bytes(32)))
    done = [withdrawn async for withdrawn in withdraw(plan, 1, Ports(broker), ["ana"])]
    assert done == [Withdrawn(partition=0, offset=2, version=None)]
    [written] = [record for record in broker.read("consents", 0) if record.offset == 2]
    behind.apply(written.key, written.value)
    known = behind.of(b"ana")
    assert known is not None
    assert known.grants == {}
