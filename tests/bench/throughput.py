"""Throughput and latency of one worker beside a plain librdkafka copy, in one run.

    make bench                                      on Apache Kafka, which it starts (Java 17 and Maven)
    make bench ARGS="--bootstrap H:P"               on a broker that is there
    make bench ARGS="--peer 'CMD {bootstrap} {source} {sink} {events}'"   with a peer's command beside it

Each contender is a process of its own and handles the same events from the same topic, in turn, several times over.
The figures to quote are the ratios to the copy: the machine's own speed cancels out. A peer prints `first SECONDS` and
`last SECONDS` on the monotonic clock as `tests/bench/copy.py` does, and waits for a line on standard input to end.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from streams.embedded import apache_kafka
from streams.keys import MasterKey
from tests.bench.load import CROWDS, consents, crowd_policy, events, policy
from tests.command import Arguments

PARTITIONS = 4
_ADDRESS = re.compile(rb"operators: (http://[0-9.:]+)/metrics")


class Run(NamedTuple):
    """What one contender did in one round: events per second, CPU in us per event, peak memory in MiB."""

    rate: float
    cpu: float
    memory: float


def main() -> int:
    """Run the benchmark and print its table."""
    options = _options()
    with contextlib.ExitStack() as stack:
        bootstrap = options.bootstrap or stack.enter_context(apache_kafka()).bootstrap
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prefix = f"bench-{uuid4().hex[:8]}"
        bench = Bench(bootstrap, prefix, folder, options.events)
        bench.prepare()
        if not options.latency_only:
            contenders = {"copy": bench.copy, "celosia": bench.celosia}
            if options.strict:
                contenders["celosia, strict gate"] = lambda: bench.celosia("strict")
            if options.crowd:
                contenders |= {f"celosia, {crowd}": partial(bench.celosia_with_a_crowd, crowd) for crowd in CROWDS}
            if options.peer:
                contenders["peer"] = lambda: bench.process(shlex.split(options.peer))
            runs: dict[str, list[Run]] = {name: [] for name in contenders}
            for turn in range(options.rounds):
                for name, contender in contenders.items():
                    runs[name].append(contender())
                    print(f"round {turn + 1} {name}: {runs[name][-1].rate:,.0f} events/s", file=sys.stderr, flush=True)
            _print_table(runs)
        if options.latency:
            bench.print_latency(options.latency, options.rate)
    return 0


def _options() -> argparse.Namespace:
    parser = Arguments(prog="throughput", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bootstrap", help="a broker with transactions; without it Apache Kafka is started")
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strict", action="store_true", help="a worker with the strict gate beside it")
    parser.add_argument("--crowd", action="store_true", help="workers with a crowd purpose more beside it")
    parser.add_argument("--peer", help="command to run beside it; {bootstrap} {source} {sink} {events} are filled in")
    parser.add_argument("--latency", type=int, default=20, help="seconds of the latency run; 0 leaves it out")
    parser.add_argument("--latency-only", action="store_true")
    parser.add_argument("--rate", type=int, default=1_000, help="events per second of the latency run")
    return parser.parse_args()


def _print_table(runs: dict[str, list[Run]]) -> None:
    base = {field: statistics.median(getattr(run, field) for run in runs["copy"]) for field in Run._fields}
    print("\n| | events/s | ratio to copy | CPU us/event | CPU ratio | peak MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, rounds in runs.items():
        ratio = statistics.median(run.rate / copy.rate for run, copy in zip(rounds, runs["copy"], strict=True))
        rate, cpu, memory = (statistics.median(getattr(run, field) for run in rounds) for field in Run._fields)
        print(
            f"| {name} | {rate:,.0f} | {ratio:.2f} | {cpu:.1f} | {cpu / base['cpu']:.2f} | {memory:.0f} |", flush=True
        )


class Bench:
    """One benchmark: its topics, its load, and the ways to run over it."""

    def __init__(self, bootstrap: str, prefix: str, folder: Path, count: int) -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix
        self.folder = folder
        self.count = count
        self.source = f"{prefix}.raw"
        self.policy = folder / "policy.yaml"
        self.key = folder / "key"

    def prepare(self) -> None:
        """Create the topics and write consents and events."""
        self.policy.write_text(policy(self.prefix))
        MasterKey.create(self.key)
        week = {"retention.ms": str(7 * 86_400_000)}
        compact = {"cleanup.policy": "compact"}
        self._create(
            {self.source: {}, f"{self.prefix}.out": week, f"{self.prefix}.stock": week, f"{self.prefix}.quarantine": {}}
        )
        self._create({f"{self.prefix}.consents": compact, f"{self.prefix}.receipts": compact})
        producer = self._producer()
        for key, value in consents():
            producer.produce(f"{self.prefix}.consents", value, key)
        producer.flush()
        print(f"writing {self.count:,} events ...", file=sys.stderr, flush=True)
        size = 0
        for number, (key, value) in enumerate(events(self.count)):
            producer.produce(self.source, value, key)
            size += len(value)
            if number % 10_000 == 0:
                producer.poll(0)
        producer.flush()
        print(f"{size / self.count:.0f} bytes each", file=sys.stderr, flush=True)

    def copy(self) -> Run:
        """One round of the plain copy."""
        command = f"{shlex.quote(sys.executable)} -m tests.bench.copy {{bootstrap}} {{source}} {{sink}} {{events}}"
        return self.process(shlex.split(command))

    def process(self, command: list[str]) -> Run:
        """One round of a contender that follows the protocol of `copy.py`."""
        sink = f"{self.prefix}.sink-{uuid4().hex[:6]}"
        self._create({sink: {}})
        values = {"bootstrap": self.bootstrap, "source": self.source, "sink": sink, "events": str(self.count)}
        command = [part.format(**values) for part in command]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            first, cpu_before, last = 0.0, 0.0, 0.0
            for line in process.stdout:
                what, _, when = line.partition(" ")
                if what == "first":
                    first, cpu_before = float(when), _cpu_seconds(process.pid)
                elif what == "last":
                    last = float(when)
                    break
            cpu, memory = _cpu_seconds(process.pid) - cpu_before, _peak_mib(process.pid)
            process.stdin.write("\n")
            process.stdin.close()
        return Run(self.count / (last - first), cpu / self.count * 1e6, memory)

    def celosia_with_a_crowd(self, crowd: str) -> Run:
        """One round of a worker with a crowd purpose more, with topics of its own for what it has counted."""
        run = uuid4().hex[:6]
        file = self.folder / f"policy-{run}.yaml"
        file.write_text(crowd_policy(self.prefix, run, crowd))
        compact = {"cleanup.policy": "compact"}
        self._create({f"{self.prefix}.{of}-{run}": compact for of in ("counting", "rounds")})
        self._create({f"{self.prefix}.{of}-{run}": {} for of in ("closings", "partials")})
        return self.celosia(policy=file)

    def celosia(self, gate: str = "fast", policy: Path | None = None) -> Run:
        """One round of a worker in a group of its own, exactly once, from its first commit to its last."""
        group = f"bench-{uuid4().hex[:8]}"
        places = [TopicPartition(self.source, number) for number in range(PARTITIONS)]
        # Asked of the broker: the worker's own page would cost the worker time.
        watch = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group, "enable.auto.commit": False})
        with self._worker(group, gate, policy) as (process, _):
            began = done = 0
            first = cpu_before = 0.0
            while done < self.count:
                if process.poll() is not None:
                    raise RuntimeError((self.folder / "worker.log").read_text()[-2000:])
                done = sum(max(0, place.offset) for place in watch.committed(places, timeout=10))
                if not began and done:
                    began, first, cpu_before = done, time.monotonic(), _cpu_seconds(process.pid)
                time.sleep(0.02)
            last = time.monotonic()
            cpu, memory = _cpu_seconds(process.pid) - cpu_before, _peak_mib(process.pid)
        watch.close()
        return Run((done - began) / (last - first), cpu / (done - began) * 1e6, memory)

    def print_latency(self, seconds: int, rate: int) -> None:
        """Measure append to visible (read_committed) at a steady rate, and print p50 and p99."""
        group = f"bench-{uuid4().hex[:8]}"
        self._commit_at_end(group)
        sink = f"{self.prefix}.out"
        consumer = Consumer(
            {"bootstrap.servers": self.bootstrap, "group.id": f"read-{uuid4()}", "isolation.level": "read_committed",
             "fetch.wait.max.ms": 10, "enable.auto.commit": False}
        )  # fmt: skip
        delays: list[float] = []
        with self._worker(group) as (_, address):
            while not _ready(address):
                time.sleep(0.05)
            ends = [consumer.get_watermark_offsets(TopicPartition(sink, n))[1] for n in range(PARTITIONS)]
            consumer.assign([TopicPartition(sink, n, end) for n, end in enumerate(ends)])
            producer = self._producer(linger=1)
            sent: dict[str, float] = {}
            began = time.monotonic()
            load = events(seconds * rate, seed=11)
            number = 0
            while len(delays) < seconds * rate and time.monotonic() < began + seconds + 30:
                due = min(seconds * rate, int((time.monotonic() - began) * rate))
                while number < due:
                    key, value = next(load)
                    sent[json.loads(value)["event_id"]] = time.monotonic()
                    producer.produce(self.source, value, key)
                    number += 1
                producer.poll(0)
                for message in consumer.consume(500, timeout=0.002):
                    now = time.monotonic()
                    delays.append(now - sent.pop(json.loads(message.value() or b"")["event_id"]))
        consumer.close()
        delays.sort()
        p50, p99 = delays[len(delays) // 2] * 1000, delays[int(len(delays) * 0.99)] * 1000
        print(f"\nlatency, append to visible, {rate:,} events/s for {seconds} s: p50 {p50:.0f} ms, p99 {p99:.0f} ms "
              f"({len(delays):,} of {seconds * rate:,} seen)")  # fmt: skip

    @contextlib.contextmanager
    def _worker(
        self, group: str, gate: str = "fast", policy: Path | None = None
    ) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        command = [sys.executable, "-m", "streams", "run", "--bootstrap", self.bootstrap, "--policy",
                   str(policy or self.policy), "--key-file", str(self.key), "--group", group, "--gate", gate,
                   "--ops-port", "0"]  # fmt: skip
        log = self.folder / "worker.log"
        with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=os.environ) as process:
            try:
                yield process, _address(process, log)
            finally:
                process.terminate()

    def _commit_at_end(self, group: str) -> None:
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group, "enable.auto.commit": False})
        places = [TopicPartition(self.source, n) for n in range(PARTITIONS)]
        ends = [TopicPartition(self.source, p.partition, consumer.get_watermark_offsets(p)[1]) for p in places]
        consumer.commit(offsets=ends, asynchronous=False)
        consumer.close()

    def _producer(self, linger: int = 5) -> Producer:
        return Producer(
            {"bootstrap.servers": self.bootstrap, "acks": "all", "linger.ms": linger, "partitioner": "murmur2_random",
             "queue.buffering.max.messages": 2_000_000, "queue.buffering.max.kbytes": 1 << 20}
        )  # fmt: skip

    def _create(self, topics: dict[str, dict[str, str]]) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        new = [NewTopic(name, PARTITIONS, 1, config=config) for name, config in topics.items()]
        for future in admin.create_topics(new).values():
            future.result()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = _ADDRESS.search(log.read_bytes())
        if found:
            return found[1].decode()
        time.sleep(0.02)
    raise RuntimeError(log.read_text()[-2000:])


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own worker on loopback
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()


def _ready(address: str) -> bool:
    return bool(json.loads(_get(f"{address}/readyz"))["ready"])


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mib(pid: int) -> float:
    match = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) / 1024 if match else 0.0


if __name__ == "__main__":
    sys.exit(main())
