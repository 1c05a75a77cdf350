"""Run the withdrawal table and print it. See `tests.bench.withdrawals`.

Exit codes: 0; 1 where a promised withdrawal did not hold, a control let nothing through, or a cell could not be run;
2 where what was asked for makes no sense, or the brokers do not start.
"""

import argparse
import os
import platform
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from confluent_kafka import KafkaException

from streams.embedded import ApacheKafka, BrokerFailed
from tests.bench.withdrawals import latency
from tests.bench.withdrawals.cells import CELLS, LOAD, Stage, published_after_withdrawal
from tests.bench.withdrawals.clusters import cluster_of, deployed_on
from tests.bench.withdrawals.systems import SYSTEMS, System, streams_classes
from tests.chaos.cluster import LinkedCluster
from tests.command import Arguments

ORDINARY = ["celosia", "streams", "loop", "control"]
GATES = {"fast": "celosia", "strict": "celosia-strict"}


def main() -> int:
    """Run what was asked for, print the tables, and say whether all held."""
    options = _options()
    interrupted: list[int] = []

    def interrupt(number: int, _: object) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # Either way, everything that was started is ended.
        signal.signal(number, interrupt)
    table = Table(options.systems, options.trials)
    try:
        if any(name.startswith("streams") for name in options.systems):
            streams_classes()
        for kind in dict.fromkeys(CELLS[name].brokers for name in options.cells):
            with cluster_of(kind) as kafka:
                for name in options.cells:
                    if CELLS[name].brokers == kind:
                        table.run(name, kafka)
        if options.latency:
            with cluster_of("one") as kafka:
                table.measure(options.latency, kafka)
    except BrokerFailed as error:
        _say(f"withdrawals: {str(error).splitlines()[0]}")
        return 2
    except (KeyboardInterrupt, SystemError):
        if not interrupted:  # What is raised while a callback of confluent-kafka runs comes out as a SystemError.
            raise
        return 128 + interrupted[0]
    table.print()
    return 1 if table.faults else 0


def _options() -> argparse.Namespace:
    parser = Arguments(prog="withdrawals", description="Who keeps an acknowledged withdrawal?")
    cells, systems = ",".join(CELLS), ",".join(ORDINARY)
    parser.add_argument("--trials", type=_count(1), default=500, help="in each cell (500)")
    parser.add_argument("--cells", type=_names(CELLS), default=list(CELLS), help=f"some of {cells}")
    parser.add_argument(
        "--systems", type=_names(SYSTEMS), default=ORDINARY, help=f"some of {','.join(SYSTEMS)} ({systems})"
    )
    parser.add_argument(
        "--latency", type=_count(0), default=500, help="events and receipts to be timed; 0 leaves it out"
    )
    return parser.parse_args()


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"there is no {', '.join(unknown) or 'name'}; choose of {', '.join(known)}"
            )
        return names

    return parse


def _count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return parse


class Table:
    """What was found: published events by cell and system, and times."""

    def __init__(self, systems: list[str], trials: int) -> None:
        self.faults: list[str] = []
        """What makes the run fail."""
        self._systems = systems
        self._trials = trials
        self._figures: dict[str, dict[str, str]] = {}
        """by cell and system"""
        self._times: list[str] = []
        self._brokers: set[str] = set()

    def run(self, name: str, kafka: ApacheKafka) -> None:
        """Run one cell for every system."""
        cell = CELLS[name]
        row = self._figures[name] = {}
        for key in self._systems:
            if not cell.promised and key != "celosia":
                continue
            system = SYSTEMS["celosia-strict" if cell.strict and key == "celosia" else key]
            began = time.monotonic()
            with self._attempt(f"{name}, {key}", kafka, system, cell.brokers) as stage:
                row[key] = "failed"
                published, trials = published_after_withdrawal(stage, cell, self._trials)
                row[key] = str(published)
                if cell.promised:
                    self._judge(name, system, published)
                done = "".join(f", {count} x {what}" for what, count in stage.happened.items())
                late, seconds = statistics.median(trials.lateness) * 1000, time.monotonic() - began
                _say(f"{name}, {key}: {published} of {self._trials} in {seconds:.0f} s; events were sent {late:.2f} ms "
                     f"after the acknowledgement{done}")  # fmt: skip

    def _judge(self, name: str, system: System, published: int) -> None:
        if system.holds is True and published:
            self.faults.append(f"{name}: {system.title} published {published} events after their withdrawal")
        if system.holds is False and not published:
            self.faults.append(f"{name}: the control published nothing either, so the cell proves nothing")

    def measure(self, count: int, kafka: ApacheKafka) -> None:
        """Time events of every system, and receipts of celosia with both gates."""
        for system in (SYSTEMS[key] for key in self._systems):
            if system.holds is not False:
                what = f"event sent to visible: {system.title}, idle"
                with self._attempt(what, kafka, system) as stage:
                    self._time(what, latency.of_events(stage, count))
        for gate, key in GATES.items() if "celosia" in self._systems else ():
            for load in (0, LOAD):
                beside = f"{load:,} other events/s" if load else "idle"
                what = f"withdrawal acknowledged to receipt visible: {gate} gate, {beside}"
                with self._attempt(what, kafka, SYSTEMS[key]) as stage:
                    self._time(what, latency.of_receipts(stage, count, load))

    def _time(self, what: str, times: list[float]) -> None:
        p50, p99 = latency.quantile(times, 0.5), latency.quantile(times, 0.99)
        self._times.append(f"| {what} | {p50:.0f} | {p99:.0f} |")
        _say(f"{what}: p50 {p50:.0f} ms, p99 {p99:.0f} ms")

    def print(self) -> None:
        """Print all tables as Markdown."""
        command = " ".join(["make withdrawals", *([f'ARGS="{shlex.join(sys.argv[1:])}"'] if sys.argv[1:] else [])])
        print(f"\n{' and '.join(sorted(self._brokers))}; {os.cpu_count()} cores, CPython {platform.python_version()}, "
              f"{datetime.now(UTC):%Y-%m-%d}: `{command}`\n")  # fmt: skip
        if self._figures:
            titles = [SYSTEMS[key].title for key in self._systems]
            print(f"| published of {self._trials}, though withdrawn before | {' | '.join(titles)} |")
            print(f"| --- |{' ---: |' * len(titles)}")
            for name, row in self._figures.items():
                print(f"| {CELLS[name].title} | {' | '.join(row.get(key, '-') for key in self._systems)} |")
        if self._times:
            print("\n| ms | p50 | p99 |\n| --- | ---: | ---: |", *self._times, sep="\n")
        for fault in self.faults:
            print(f"\n{fault}")

    @contextmanager
    def _attempt(self, what: str, kafka: ApacheKafka, system: System, kind: str = "one") -> Iterator[Stage]:
        """A stage for one figure. What goes wrong on it is said, and the run goes on."""
        self._brokers.add(kafka.name)
        prefix = f"withdrawals-{uuid4().hex[:8]}"
        bootstrap = kafka.bootstrap_of(0) if isinstance(kafka, LinkedCluster) else kafka.bootstrap
        try:
            with (
                tempfile.TemporaryDirectory(prefix="celosia-withdrawals-") as home,
                deployed_on(kind, kafka.bootstrap, prefix, Path(home)) as shop,
            ):
                yield Stage(shop, system, kafka, bootstrap=bootstrap)
        except (AssertionError, KafkaException) as error:
            self.faults.append(f"{what}: {error}")
            _say("\n".join([f"{what}: could not be run: {error}", *getattr(error, "__notes__", ())]))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
