"""Real purchases through real workers: every event has exactly one outcome, and the bytes are those of the core."""

import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from confluent_kafka.cimpl import NewPartitions

from streams.embedded import ApacheKafka
from streams.kafka.work import Receipt
from streams.outcome import Kind
from tests.kafka.brokers import Broker, admin_client, delete_topics, end_offsets, produce, wait_until
from tests.kafka.retail import (
    ASSORTMENT,
    ORDERS,
    RECOMMENDATIONS,
    consent,
    customers,
    event,
    expected,
    now_ms,
    purchases,
    retail_policy,
)
from tests.kafka.worker import PARTITIONS, ROOT, Deployment, as_published, as_read, deployed

EVENTS = 5_217


def give_consents(deployment: Deployment) -> None:
    """Each third of the customers allows something else; some allow nothing, some are never heard of."""
    records = []
    for number, customer in enumerate(customers()):
        if number % 3 == 0:
            records.append(consent(customer, 1, {RECOMMENDATIONS: "pseudonymous"}))
        elif number % 3 == 1:
            records.append(consent(customer, 4, {ASSORTMENT: "anonymous", ORDERS: "identified"}))
        elif number % 6 == 2:
            records.append(consent(customer, 2))
    produce(deployment.bootstrap, deployment.consents, records)


def send_purchases(deployment: Deployment, count: int = EVENTS, first: int | None = None) -> None:
    """Purchases of the sample as they would arrive now, and two records that are no purchases."""
    first = now_ms() - count if first is None else first
    events = [event(line, timestamp=first + number) for number, line in enumerate(purchases(count - 2, first))]
    broken = [
        event({"customer": "17850"}, timestamp=first),
        event({"customer": "17850", "type": "x"})._replace(value=b"{"),
    ]
    produce(deployment.bootstrap, deployment.raw, [*events[:100], *broken, *events[100:]])


def assert_one_outcome_each(deployment: Deployment) -> Counter[str]:
    """Compare all that was published with what the core makes of all that was sent; the count of outcomes."""
    raw = deployment.read(deployment.raw)
    outcomes = expected(deployment.plan, raw, deployment.read(deployment.consents), PARTITIONS, now_ms())
    for topic in [*deployment.outputs, deployment.quarantine]:
        records = deployment.read(topic)
        for number in range(PARTITIONS):
            wanted = [
                as_published(output, number)
                for (partition, _), outcome in sorted(outcomes.items())
                if partition == number
                for output in outcome.outputs
                if output.topic == topic
            ]
            # Exactly once and in order: the whole partition, record by record, headers and timestamps included.
            came = [as_read(record) for record in records if record.partition == number]
            if topic == deployment.quarantine:  # They have no time of their own.
                wanted = [(*parts[:4], None) for parts in wanted]
                came = [(*parts[:4], None) for parts in came]
            assert came == wanted, f"{topic}[{number}]: {len(came)} records, wanted {len(wanted)}"
    return Counter(outcome.kind.value for outcome in outcomes.values())


@pytest.fixture
def shop(transactional_broker: Broker, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(transactional_broker.bootstrap, topic_prefix, retail_policy(topic_prefix), tmp_path) as deployment:
        yield deployment


def test_two_workers_give_every_event_exactly_one_outcome(shop: Deployment) -> None:
    give_consents(shop)
    workers = [shop.start(), shop.start()]
    shop.wait_ready()
    assert all(len(worker.lanes()) == PARTITIONS // 2 for worker in workers)
    send_purchases(shop)
    shop.wait_consumed()

    counts = assert_one_outcome_each(shop)
    assert sum(counts.values()) == EVENTS
    assert {kind for kind, count in counts.items() if count} == set(Kind) - {Kind.COUNTED}  # No purpose counts crowds.
    counted: Counter[str] = sum((worker.outcomes() for worker in workers), Counter())
    assert counted == counts

    # Each output leads back to its raw record, for who holds the key: once, in order.
    raw = {(record.partition, record.offset): record for record in shop.read(shop.raw)}
    for topic in shop.outputs:
        sources = [shop.source_of(record) for record in shop.read(topic)]
        assert len(set(sources)) == len(sources) > 0
        for number in range(PARTITIONS):
            offsets = [offset for partition, offset in sources if partition == number]
            assert offsets == sorted(offsets)
        assert set(sources) <= set(raw)
    # Their metrics say it too: all is read, nothing waits.
    for worker in workers:
        wait_until(
            lambda worker=worker: (
                not any(v for (name, *_), v in worker.metrics().items() if name == "celosia_lane_lag")
            ),  # type: ignore[misc]
            "no lag",
        )
        assert worker.terminate() == 0


def test_receipts_say_how_far_consents_are_in_force(shop: Deployment) -> None:
    give_consents(shop)
    shop.start()
    shop.wait_ready()
    ends = end_offsets(shop.bootstrap, shop.consents)

    def receipts() -> dict[int, list[Receipt]]:
        by_partition: dict[int, list[Receipt]] = {}
        for record in shop.read(shop.receipts):
            assert record.value is not None
            assert record.key == b"%d" % record.partition
            receipt = msgspec.json.decode(record.value, type=Receipt)
            assert (receipt.topic, receipt.partition, receipt.policy) == (shop.consents, record.partition, "retail@1")
            by_partition.setdefault(record.partition, []).append(receipt)
        return by_partition

    def through(ends: dict[int, int]) -> bool:
        return {number: some[-1].through for number, some in receipts().items()} == ends

    wait_until(lambda: through(ends), f"receipts through {ends}")
    # An idle lane gives a receipt for one withdrawal at once; the others have nothing to say.
    before = {number: len(some) for number, some in receipts().items()}
    produce(shop.bootstrap, shop.consents, [consent("17850", 9)])
    later = end_offsets(shop.bootstrap, shop.consents)
    [changed] = [number for number in ends if later[number] != ends[number]]
    wait_until(lambda: through(later), f"receipts through {later}")
    after = {number: len(some) for number, some in receipts().items()}
    assert after == before | {changed: before[changed] + 1}
    for some in receipts().values():
        assert [receipt.through for receipt in some] == sorted({receipt.through for receipt in some})


def test_graceful_end_and_successor_leave_no_gap(shop: Deployment) -> None:
    give_consents(shop)
    first = shop.start()
    shop.wait_ready()
    start = now_ms() - EVENTS
    send_purchases(shop, first=start)
    wait_until(lambda: sum(shop.committed(shop.raw).values()) > 0, "some events have been handled")
    assert first.terminate() == 0
    assert "Traceback" not in first.log
    second = shop.start()
    shop.wait_ready()
    send_purchases(shop, 500, first=start + EVENTS)
    shop.wait_consumed()
    assert sum(assert_one_outcome_each(shop).values()) == EVENTS + 500
    assert second.terminate() == 0


def test_raw_topic_made_anew_is_read_from_its_beginning(shop: Deployment) -> None:
    # Kafka forgets what a group had committed of a topic that is deleted: that is what the lane goes by.
    give_consents(shop)
    worker = shop.start()
    shop.wait_ready()
    send_purchases(shop)
    shop.wait_consumed()
    before = {topic: len(shop.read(topic)) for topic in shop.outputs}
    delete_topics(shop.bootstrap, [shop.raw])
    shop.create_topics()
    send_purchases(shop)
    shop.wait_consumed()
    assert {topic: len(shop.read(topic)) for topic in shop.outputs} == {topic: 2 * n for topic, n in before.items()}
    assert worker.running


def test_at_least_once_publishes_the_same_bytes_and_says_so(shop: Deployment) -> None:
    give_consents(shop)
    worker = shop.start(guarantee="at-least-once")
    shop.wait_ready()
    send_purchases(shop, 1000)
    shop.wait_consumed()
    assert_one_outcome_each(shop)
    assert "AT LEAST ONCE" in worker.log


def test_events_whose_key_is_not_the_subject_are_keyed_anew(
    transactional_broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    policy = retail_policy(topic_prefix, key="other")
    with deployed(transactional_broker.bootstrap, topic_prefix, policy, tmp_path) as shop:
        give_consents(shop)
        workers = [shop.start(), shop.start()]
        shop.wait_ready(["minimize", "rekey"])
        first, count = now_ms() - 2000, 2000
        raw = [
            event(line, timestamp=first + number)._replace(
                key=f"invoice-{line['invoice']}".encode(), headers=[("h", b"x")]
            )
            for number, line in enumerate(purchases(count, first))
        ]
        produce(shop.bootstrap, shop.raw, [*raw, raw[0]._replace(value=b"{")])
        shop.wait_consumed()
        keyed_topic = shop.plan.sources[0].topic
        keyed = shop.read(keyed_topic)
        shop.wait_consumed(keyed_topic, {r.partition: r.offset + 1 for r in keyed})

        sent = {(record.partition, record.offset): record for record in shop.read(shop.raw)}
        origins = []
        for record in keyed:
            [(name, origin)] = record.headers
            assert name == "celosia-origin"
            assert origin is not None
            partition, offset = map(int, origin.split(b":"))
            origins.append((partition, offset))
            assert (record.value, record.timestamp) == (
                sent[partition, offset].value,
                sent[partition, offset].timestamp,
            )
        nobody = sum(line["customer"] is None for line in purchases(count, first))
        assert len(set(origins)) == len(origins) == count - nobody

        # What is published is what the core makes of the internal topic, and leads back to the raw one.
        outcomes = expected(shop.plan, keyed, shop.read(shop.consents), PARTITIONS, now_ms())
        published = 0
        for topic in shop.outputs:
            wanted = [
                as_published(o, p) for (p, _), out in sorted(outcomes.items()) for o in out.outputs if o.topic == topic
            ]
            records = sorted(shop.read(topic), key=lambda record: (record.partition, record.offset))
            assert [as_read(record) for record in records] == wanted
            sources = [shop.source_of(record) for record in records]
            assert len(set(sources)) == len(sources) > 0
            assert set(sources) <= set(origins)
            published += len(sources)
        assert published > 0

        counts: Counter[str] = sum((worker.outcomes() for worker in workers), Counter())
        kinds = Counter(outcome.kind.value for outcome in outcomes.values())
        assert counts["rekeyed"] == len(keyed)
        assert counts["published"] == kinds["published"]
        assert counts["suppressed"] == kinds["suppressed"] + nobody
        assert counts["quarantined"] == 1
        assert counts["published"] + counts["suppressed"] + counts["quarantined"] == count + 1
        [broken] = shop.read(shop.quarantine)
        assert broken.value is not None
        record = msgspec.json.decode(broken.value)
        assert record["source"]["topic"] == shop.raw
        assert sent[record["source"]["partition"], record["source"]["offset"]].value == b"{"


def celosia(*arguments: str | Path, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    command = [sys.executable, "-m", "streams", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | (env or {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_filter_writes_the_bytes_that_the_worker_publishes(shop: Deployment, tmp_path: Path) -> None:
    give_consents(shop)
    shop.start()
    shop.wait_ready()
    send_purchases(shop, 1000)
    shop.wait_consumed()
    raw = shop.read(shop.raw)
    # The file has the worker's inputs in the order of its partitions, so that it can be read against its outputs.
    values = [record.value or b"" for record in raw]
    (tmp_path / "events.ndjson").write_bytes(b"".join(value + b"\n" for value in values))
    (tmp_path / "consents.ndjson").write_bytes(b"".join((r.value or b"") + b"\n" for r in shop.read(shop.consents)))
    arguments: list[str | Path] = [
        "--policy",
        shop.policy_file,
        "--consents",
        tmp_path / "consents.ndjson",
        "--out",
        tmp_path / "out",
    ]
    done = celosia("filter", *arguments, "--events", tmp_path / "events.ndjson", "--key-file", shop.key_file)
    assert done.returncode == 0, done.stderr
    for topic in shop.outputs:
        wanted = {shop.source_of(record): record.value for record in shop.read(topic)}
        lines = (tmp_path / "out" / f"{topic}.ndjson").read_bytes().splitlines()
        in_order = [
            wanted[record.partition, record.offset] for record in raw if (record.partition, record.offset) in wanted
        ]
        assert lines == in_order
        assert len(lines) > 0


def faults(shop: Deployment) -> list[str]:
    """What `celosia topics` says is wrong, one line each."""
    done = celosia("topics", env=shop.environment())
    if done.returncode == 0:
        return []
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[1:]


@pytest.mark.parametrize(
    ("topic", "fault", "wanted"),
    [
        ("quarantine", "missing", "it does not exist; create it: celosia topics --create"),
        ("raw", "partitions", "5 partitions, wanted 4, as"),
        ("consents", "cleanup.policy=delete", "cleanup.policy is delete, wanted compact"),
        ("raw", "cleanup.policy=compact", "cleanup.policy is compact, wanted delete"),
        ("output", "retention.ms=-1", "retention.ms is unlimited, wanted at most"),
        ("output", "retention.ms=99999999999", "retention.ms is 99999999999 ms, wanted at most"),
        ("consents", "min.insync.replicas=2", "min.insync.replicas is 2 with replication 1: nothing can be written"),
    ],
)
def test_topics_that_do_not_fit_are_named(shop: Deployment, topic: str, fault: str, wanted: str) -> None:
    name = {"raw": shop.raw, "consents": shop.consents, "quarantine": shop.quarantine, "output": shop.outputs[0]}[topic]
    assert faults(shop) == []
    spoil(shop, name, fault)
    [line] = faults(shop)
    assert f"`{name}`" in line
    assert wanted in line
    # The worker refuses for the same reason.
    done = celosia("run", env=shop.environment())
    assert (done.returncode, wanted in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def spoil(shop: Deployment, topic: str, fault: str) -> None:
    """Make one thing wrong with a topic."""
    admin = admin_client(shop.bootstrap)
    if fault == "missing":
        delete_topics(shop.bootstrap, [topic])
    elif fault == "partitions":
        for future in admin.create_partitions([NewPartitions(topic, PARTITIONS + 1)]).values():
            future.result(30)
        wait_until(lambda: len(admin.list_topics(topic, 10).topics[topic].partitions) > PARTITIONS, "there are more")
    else:
        shop.set_config(topic, fault)


def test_one_replica_in_sync_is_too_few_on_a_cluster(cluster: ApacheKafka, topic_prefix: str, tmp_path: Path) -> None:
    with deployed(cluster.bootstrap, topic_prefix, retail_policy(topic_prefix), tmp_path, replication=3) as shop:
        assert faults(shop) == []
        shop.set_config(shop.consents, "min.insync.replicas=1")
        [line] = faults(shop)
        assert f"`{shop.consents}`" in line
        assert "min.insync.replicas is 1 with replication 3, wanted 2" in line


def test_topics_creates_what_is_missing(transactional_broker: Broker, topic_prefix: str, tmp_path: Path) -> None:
    with Deployment(transactional_broker.bootstrap, topic_prefix, retail_policy(topic_prefix), tmp_path) as shop:
        assert len(faults(shop)) == 4 + len(shop.outputs)
        done = celosia("topics", "--create", "--partitions", "3", env=shop.environment())
        assert done.returncode == 0, done.stderr
        assert faults(shop) == []
        assert set(end_offsets(shop.bootstrap, shop.raw)) == {0, 1, 2}


def test_faust_command_starts_the_same_worker(shop: Deployment) -> None:
    give_consents(shop)
    faust = Path(sys.executable).with_name("faust")
    worker = shop.start(command=[str(faust), "-A", "streams.kafka.worker", "worker", "-l", "info"])
    shop.wait_ready()
    send_purchases(shop, 300)
    shop.wait_consumed()
    assert_one_outcome_each(shop)
    assert worker.terminate() == 0


def test_worker_refuses_an_unreachable_broker(shop: Deployment) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        refused(
            shop,
            rf"no Kafka broker answers at 127\.0\.0\.1:{port} \(\w+\); check --bootstrap",
            bootstrap=f"127.0.0.1:{port}",
        )


def test_worker_refuses_a_policy_that_is_wrong(shop: Deployment) -> None:
    policy: dict[str, Any] = yaml.safe_load(shop.policy_file.read_text())
    policy["purposes"][RECOMMENDATIONS]["benifit"] = policy["purposes"][RECOMMENDATIONS].pop("benefit")
    shop.policy_file.write_text(yaml.safe_dump(policy, sort_keys=False))
    refused(shop, r"policy `.*policy\.yaml` is refused:")


def test_worker_refuses_a_missing_policy_and_key(shop: Deployment, tmp_path: Path) -> None:
    refused(shop, r"'--policy': File '.*nowhere\.yaml' does not exist", 2, policy=tmp_path / "nowhere.yaml")
    refused(shop, r"key file `.*nokey`: FileNotFoundError; make one: celosia key", key_file=tmp_path / "nokey")
    shop.key_file.chmod(0o644)
    refused(shop, r"key file `.*key` may be read by others")


def test_worker_refuses_settings_that_are_wrong(shop: Deployment) -> None:
    refused(shop, r"'--guarantee': 'perhaps-once' is not one of", 2, guarantee="perhaps-once")
    refused(shop, r"--session-timeout-ms \(or CELOSIA_SESSION_TIMEOUT_MS\)", session_timeout_ms="5")
    refused(shop, r"--bootstrap \(or CELOSIA_BOOTSTRAP\)", bootstrap="nonsense")


def test_worker_refuses_a_port_that_is_taken(shop: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        refused(shop, rf"--ops-port: 127\.0\.0\.1:{port} cannot be had", ops_port=port)


def refused(shop: Deployment, wanted: str, code: int = 1, **settings: object) -> None:
    """The worker ends with this code (2: wrong usage) and says why, without a traceback."""
    done = celosia("run", env=shop.environment(**settings))
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(wanted, done.stderr), done.stderr
