"""Deployments of celosia on a real broker: a policy, its topics and key, and worker processes to be hurt.

- A worker is a process of its own, started as an operator starts it, and ended by its process id.
- Whatever is waited for is a condition with a deadline. What a worker has done is asked of the broker, through a client
  that is not celosia's; what it says of itself comes from its page for operators.
"""

import asyncio
import itertools
import json
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import msgspec
import yaml
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from prometheus_client.parser import text_string_to_metric_families

from streams.embedded import _Process
from streams.kafka.topics import create_topics
from streams.kafka.work import Receipt
from streams.keys import MasterKey
from streams.outcome import Output
from streams.plan import Plan, compile_plan
from streams.policy import load_policy
from tests.kafka.brokers import SECONDS, Record, admin_client, end_offsets, read_all, wait_until

ROOT = Path(__file__).parents[2]
PARTITIONS = 4
DRAINED = 60.0
"""Seconds for workers to finish what is there, on a machine that does other things too."""

_COORDINATOR_IS_MOVING = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)


class Worker:
    """One worker process and what it says of itself. It is killed at the end of the deployment, if not before."""

    def __init__(self, command: list[str], env: Mapping[str, str], log: Path) -> None:
        self._process = _Process(command, log, env)
        self._page: str | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the worker has written, on either stream."""
        return self._process.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.exit_code() is None

    def page(self, path: str) -> tuple[int, str]:
        """Ask the worker's page for operators: the status and the body; status 0 where nobody answers."""
        if self._page is None:
            found = re.search(r"operators: (http://127\.0\.0\.1:\d+)/metrics", self.log)
            if found is None:
                return 0, ""
            self._page = found[1]
        try:
            with urllib.request.urlopen(self._page + path, timeout=5) as answer:  # noqa: S310 - loopback
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def lanes(self) -> dict[str, str]:
        """The worker's lanes and their states, empty as long as it does not answer."""
        status, body = self.page("/readyz")
        return json.loads(body)["lanes"] if status in (200, 503) else {}

    def ready(self) -> bool:
        """Whether the worker is in the group and every lane past its gate. Fails if the worker has ended."""
        assert self.running, f"the worker has ended with code {self._process.exit_code()}:\n{self.log[-3000:]}"
        return self.page("/readyz")[0] == 200

    def metrics(self) -> dict[tuple[str, ...], float]:
        """All samples: name and label values (in the order of the label names) to value."""
        status, body = self.page("/metrics")
        assert status == 200, f"/metrics answers {status}:\n{self.log[-3000:]}"
        return {
            (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }

    def outcomes(self) -> Counter[str]:
        """How many events the worker counts, by outcome (`published`, ..., and `rekeyed`)."""
        counts: Counter[str] = Counter()
        for (name, *labels), value in self.metrics().items():
            if name == "celosia_events_total":
                counts[labels[0]] += int(value)
        return counts

    def reasons(self) -> Counter[str]:
        """How many events the worker counts, by the reason of their outcome."""
        counts: Counter[str] = Counter()
        for (name, *labels), value in self.metrics().items():
            if name == "celosia_events_total" and labels[1]:
                counts[labels[1]] += int(value)
        return counts

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.end(grace=0)

    def pause(self) -> None:
        """SIGSTOP: it stands still with its connections open."""
        self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.signal(signal.SIGCONT)

    def ask_where(self) -> str:
        """SIGUSR1: what a worker that was started to tell where its tasks wait says within two seconds."""
        before = len(self.log)
        self._process.signal(signal.SIGUSR1)
        with suppress(AssertionError):
            wait_until(lambda: len(self.log) > before, "it says something", 2.0)
        return self.log[before:]

    def terminate(self, seconds: float = SECONDS) -> int:
        """SIGTERM, and wait until it has ended; the exit code."""
        self._process.signal(signal.SIGTERM)
        wait_until(lambda: not self.running, "the worker ends after SIGTERM", seconds)
        code = self._process.exit_code()
        self._process.end(grace=0)
        assert code is not None
        return code


class Deployment:
    """One policy on one broker, with its topics, key and group."""

    def __init__(self, bootstrap: str, group: str, policy: Mapping[str, Any], home: Path, replication: int = 1) -> None:
        self.bootstrap = bootstrap
        self.group = group
        self.home = home
        self.policy_file = home / "policy.yaml"
        self.policy_file.write_text(yaml.safe_dump(dict(policy), sort_keys=False))
        self.key_file = home / "key"
        if not self.key_file.exists():
            MasterKey.create(self.key_file)
        loaded = load_policy(self.policy_file)
        self.plan: Plan = compile_plan(loaded, MasterKey.of_file(self.key_file))
        self.replication = replication
        self.workers: list[Worker] = []
        self._numbers = itertools.count()  # Chaos starts workers from several threads.
        self._admin = admin_client(bootstrap)
        # Never subscribes, so it is no member of the group; read_committed: it waits for offsets that are pending.
        self._observer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": group, "isolation.level": "read_committed",
             "enable.auto.commit": False, "broker.address.family": "v4", "log_level": 0}
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
        self._observer.close()

    @property
    def consents(self) -> str:
        """Name of the consent topic."""
        return self.plan.policy.topic("consents")

    @property
    def receipts(self) -> str:
        """Name of the receipt topic."""
        return self.plan.policy.topic("receipts")

    @property
    def quarantine(self) -> str:
        """Name of the quarantine topic."""
        return self.plan.policy.topic("quarantine")

    @property
    def raw(self) -> str:
        """Name of the topic of the first source."""
        return self.plan.sources[0].raw_topic

    @property
    def outputs(self) -> list[str]:
        """Names of the topics of all purposes."""
        return sorted({purpose.topic for purpose in self.plan.purposes.values()})

    def create_topics(self, partitions: int = PARTITIONS) -> None:
        """Create what the policy needs, as `celosia topics --create` does, and wait until all have leaders."""
        made = asyncio.run(create_topics(self.bootstrap, self.plan.policy, partitions, self.replication))
        for topic in made:
            wait_until(lambda topic=topic: self._led(topic, partitions), f"{topic} has leaders")  # type: ignore[misc]

    def _led(self, topic: str, partitions: int) -> bool:
        known = self._admin.list_topics(timeout=SECONDS).topics.get(topic)
        return (
            known is not None
            and len(known.partitions) == partitions
            and all(partition.leader >= 0 for partition in known.partitions.values())
        )

    def environment(self, **settings: object) -> dict[str, str]:
        """The environment of a worker: nothing of ours but the path, and celosia's settings."""
        given = {
            "bootstrap": self.bootstrap,
            "policy": self.policy_file,
            "key_file": self.key_file,
            "group": self.group,
            "ops_port": 0,
            **settings,
        }
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        env["PYTHONPATH"] = str(ROOT)
        return env | {f"CELOSIA_{name.upper()}": str(value) for name, value in given.items()}

    def start(self, *, script: str | None = None, command: list[str] | None = None, **settings: object) -> Worker:
        """Start a worker; `script` is Python to be run before it in the same process: a mutant."""
        if command is None:
            command = [sys.executable, "-m", "streams", "run"]
            if script is not None:
                command = [sys.executable, "-c", f"{script}\n{_RUN}"]
        log = self.home / f"worker-{next(self._numbers)}.log"
        worker = Worker(command, self.environment(**settings), log)
        self.workers.append(worker)
        return worker

    def wait_ready(self, agents: Iterable[str] = ("minimize",), partitions: int = PARTITIONS) -> None:
        """Wait until every lane runs in exactly one of the workers that are alive."""
        wanted = sorted(f"{agent}-{number}" for agent in agents for number in range(partitions))

        def ready() -> bool:
            alive = [worker for worker in self.workers if worker.running]
            assert alive, "no worker runs:\n" + "\n".join(worker.log[-3000:] for worker in self.workers)
            return (
                all(worker.ready() for worker in alive)
                and sorted(lane for worker in alive for lane in worker.lanes()) == wanted
            )

        try:
            wait_until(ready, f"all of {wanted} run", DRAINED)
        except AssertionError as error:
            error.add_note("\n".join(worker.log[-3000:] for worker in self.workers))
            raise

    def committed(self, topic: str, partitions: int = PARTITIONS) -> dict[int, int]:
        """The group's committed offsets of a topic: 0 where there is none, -1 where nobody can say just now."""
        asked = [TopicPartition(topic, number) for number in range(partitions)]
        # Not by an admin client: where the coordinator is just loading, librdkafka 2.16 hands its answer on to a
        # consumer group that an admin client does not have, and ends the process.
        try:
            return {tp.partition: max(0, tp.offset) for tp in self._observer.committed(asked, timeout=SECONDS)}
        except KafkaException as error:
            if error.args[0].code() not in _COORDINATOR_IS_MOVING:
                raise
            return dict.fromkeys(range(partitions), -1)

    def wait_consumed(self, topic: str | None = None, ends: Mapping[int, int] | None = None) -> None:
        """Wait until the group has committed all of a topic: up to its end of now, or up to `ends`."""
        topic = topic or self.raw
        wanted = end_offsets(self.bootstrap, topic) if ends is None else ends

        def consumed() -> bool:
            committed = self.committed(topic, 1 + max(wanted))
            return all(committed[number] >= end for number, end in wanted.items())

        try:
            wait_until(consumed, f"{topic} consumed to {dict(wanted)}", DRAINED)
        except AssertionError as error:
            error.add_note(f"committed: {self.committed(topic)}")
            error.add_note("\n".join(worker.log[-3000:] for worker in self.workers))
            raise

    def wait_in_force(self) -> None:
        """Wait until receipts say that every consent record written so far is in force."""
        ends = {number: end for number, end in end_offsets(self.bootstrap, self.consents).items() if end}

        def in_force() -> bool:
            through = {number: receipt.through for number, receipt in self.last_receipts().items()}
            return all(through.get(number, -1) >= end for number, end in ends.items())

        wait_until(in_force, f"receipts through {ends}", DRAINED)

    def last_receipts(self) -> dict[int, Receipt]:
        """The newest receipt of each partition."""
        records = self.read(self.receipts)
        return {record.partition: msgspec.json.decode(record.value or b"", type=Receipt) for record in records}

    def set_config(self, topic: str, setting: str) -> None:
        """Change one setting of a topic, `name=value`, and wait until the broker says so."""
        name, _, value = setting.partition("=")
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        [future] = self._admin.incremental_alter_configs(
            [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])]
        ).values()
        future.result(SECONDS)

        def changed() -> bool:
            [answer] = self._admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
            return bool(answer.result(SECONDS)[name].value == value)

        wait_until(changed, f"{topic}: {setting}")

    def read(self, topic: str) -> list[Record]:
        """All committed records of a topic."""
        return read_all(self.bootstrap, topic, seconds=DRAINED)

    def source_of(self, record: Record) -> tuple[int, int]:
        """Partition and offset of the raw record that an output was made of: opens its sealed source."""
        headers = dict(record.headers)
        purpose, token = headers["celosia-purpose"], headers["celosia-source"]
        assert purpose is not None
        assert token is not None
        _, partition, offset = self.plan.purposes[purpose.decode()].seal.open(token, [self.raw])
        return partition, offset


@contextmanager
def deployed(
    bootstrap: str, group: str, policy: Mapping[str, Any], home: Path, replication: int = 1
) -> Iterator[Deployment]:
    """A deployment with its topics; its workers are gone at the end."""
    with Deployment(bootstrap, group, policy, home, replication) as deployment:
        deployment.create_topics()
        yield deployment


def as_published(
    output: Output, partition: int
) -> tuple[int, bytes | None, bytes, list[tuple[str, bytes]], int | None]:
    """An output of the core, to be compared with `as_read`."""
    return partition, output.key, output.value, output.headers, output.timestamp


def as_read(record: Record) -> tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]], int | None]:
    """A record as the broker has it, without its offset and topic."""
    return record.partition, record.key, record.value, record.headers, record.timestamp


_RUN = """
from streams.cli import main
main(["run"], prog_name="celosia")
"""
