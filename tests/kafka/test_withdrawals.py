"""T1 and T2 on real brokers: after an acknowledged withdrawal nothing passes, and after its receipt nothing follows.

Trials and cells are those of `tests.bench.withdrawals`; `make withdrawals` runs all of them, with more trials and with
peers. In each cell the same trials without the gate must let events through, or they would prove nothing.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import OFFSET_END, Consumer, Message, TopicPartition

from streams.embedded import ApacheKafka
from streams.kafka.work import Receipt
from tests.bench.withdrawals.cells import CELLS, LOAD, Stage, published_after_withdrawal
from tests.bench.withdrawals.clusters import deployed_on
from tests.bench.withdrawals.systems import SYSTEMS
from tests.bench.withdrawals.trials import Trials, client, consent, load
from tests.kafka.brokers import SECONDS, Broker
from tests.kafka.retail import now_ms
from tests.kafka.worker import DRAINED, PARTITIONS, ROOT

SESSION = 6_000
"""Milliseconds: the least that Kafka allows by default."""
FEW = 30
"""Trials for the control, which lets through nearly all."""


@pytest.fixture
def stage(transactional_broker: Broker, topic_prefix: str, tmp_path: Path) -> Iterator[Stage]:
    with deployed_on("one", transactional_broker.bootstrap, topic_prefix, tmp_path) as shop:
        yield Stage(shop, SYSTEMS["celosia"], session=SESSION)


@pytest.mark.parametrize(("cell", "trials"), [("idle", 120), ("load", 120), ("replaced", 40)])
def test_withdrawal_holds(stage: Stage, cell: str, trials: int) -> None:
    assert published_after_withdrawal(stage, CELLS[cell], trials)[0] == 0


@pytest.mark.parametrize("cell", ["idle", "load", "replaced"])
def test_without_the_gate_it_does_not_hold(stage: Stage, cell: str) -> None:
    stage.system = SYSTEMS["control"]
    assert published_after_withdrawal(stage, CELLS[cell], FEW)[0] > 0


def test_withdrawal_holds_where_consents_come_late(stage: Stage) -> None:
    stage.system = SYSTEMS["late"]
    assert published_after_withdrawal(stage, CELLS["idle"], 120)[0] == 0
    [worker] = stage.alive()
    assert worker.metrics()["celosia_gate_wait_seconds_sum", "minimize"] > 1.0, "the gate had to wait"


@pytest.mark.parametrize(("cell", "trials"), [("apart", 120), ("stalled", 15)])
@pytest.mark.parametrize("system", ["celosia", "control"])
def test_withdrawal_holds_on_three_brokers(
    cluster: ApacheKafka, topic_prefix: str, tmp_path: Path, system: str, cell: str, trials: int
) -> None:
    """Consents are led by another broker than the events of their partition. Not without the gate."""
    with deployed_on(CELLS[cell].brokers, cluster.bootstrap, topic_prefix, tmp_path) as shop:
        stage = Stage(shop, SYSTEMS[system], cluster, session=SESSION)
        published, _ = published_after_withdrawal(
            stage, CELLS[cell], trials if system == "celosia" else min(trials, FEW)
        )
    assert (published > 0) == (system == "control"), f"{published} published"


def test_nothing_of_an_older_consent_follows_a_receipt(stage: Stage) -> None:
    """T2. Asked of the broker in the moment a receipt is seen: where do readers of the outputs stand?"""
    shop = stage.shop
    stage.start()
    people = Trials(shop).people(60)

    config = {
        "bootstrap.servers": shop.bootstrap,
        "group.id": f"{shop.group}-watch",
        "isolation.level": "read_committed",
    }
    watch = Consumer({**config, "fetch.wait.max.ms": 10})
    output = shop.outputs[0]
    withdrawn: dict[tuple[int, int], str] = {}
    visible: dict[str, tuple[int, int]] = {}
    """by person: the output partition, and where its readers stood when the receipt was seen"""

    def look(seconds: float) -> None:
        for message in watch.consume(100, timeout=seconds):
            assert message.error() is None
            receipt = msgspec.json.decode(message.value() or b"", type=Receipt)
            stood = watch.get_watermark_offsets(TopicPartition(output, receipt.partition), timeout=SECONDS)
            assert stood is not None
            for (partition, offset), who in withdrawn.items():
                if partition == receipt.partition and offset < receipt.through and who not in visible:
                    visible[who] = partition, stood[1]

    def acknowledged(error: object, message: Message) -> None:
        assert error is None
        withdrawn[message.partition() or 0, message.offset() or 0] = bytes(message.key() or b"").decode()

    try:
        watch.assign([TopicPartition(shop.receipts, number, OFFSET_END) for number in range(PARTITIONS)])
        watch.consume(1, timeout=0.1)
        consents = client(shop.bootstrap)
        with load(shop, LOAD, people):
            for who in people:
                consents.produce(shop.consents, key=who, value=consent(who, 2, None), on_delivery=acknowledged)
                assert consents.flush(SECONDS) == 0
                look(0.05)
            deadline = time.monotonic() + DRAINED
            while len(visible) < len(people):
                assert time.monotonic() < deadline, f"no receipts for {set(people) - set(visible)}"
                look(0.05)
            ended = now_ms()
            shop.wait_consumed()
        shop.wait_consumed()
    finally:
        watch.close()

    raw = {(record.partition, record.offset): record for record in shop.read(shop.raw)}
    late, before = [], dict.fromkeys(people, 0)
    for out in shop.read(output):
        who = (raw[shop.source_of(out)].key or b"").decode()
        before[who] += 1
        if out.offset >= visible[who][1]:
            late.append((who, out.partition, out.offset))
    assert late == []
    assert min(before.values()) > 0, "everyone was published before"
    still = {(record.key or b"").decode() for record in raw.values() if (record.timestamp or 0) > ended}
    assert still == set(people), "everyone's events went on after the last receipt"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cells", "idle,sunny"], "there is no sunny; choose of idle, load"),
        (["--systems", ","], "there is no name; choose of celosia"),
        (["--trials", "0"], "'0' is no whole number from 1 on"),
        (["--latency", "few"], "'few' is no whole number from 0 on"),
        (["--systems", "celosia"], "starting Apache Kafka: `java -version`"),
        (["--systems", "streams"], "is not on the PATH"),
    ],
)
def test_the_table_says_in_one_line_what_it_cannot_do(tmp_path: Path, arguments: list[str], says: str) -> None:
    nothing = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "tests.bench.withdrawals", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=nothing, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("withdrawals: ")
    assert says in line
