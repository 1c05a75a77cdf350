"""What is put to the trials: celosia, celosia without its gate, and peers that do the same work without one.

A system is a way to start one process of it. Processes of one deployment share a group; `instance` is the number of a
process, which one that comes back after a kill keeps. They are hurt by their process ids, all in the same way.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from streams.embedded import BrokerFailed
from tests.kafka.worker import Deployment, Worker

PEERS = Path(__file__).parents[1] / "peers"

NO_GATE = """
from streams.kafka.lane import Lane
async def no_gate(self, follower):
    return None
Lane._gate = no_gate
"""
SLOW_FOLLOWER = """
import asyncio
from streams.kafka.client import AiokafkaConsents
read_consents = AiokafkaConsents.read_consents
async def slow(self):
    batch = await read_consents(self)
    await asyncio.sleep(0.25)
    return batch
AiokafkaConsents.read_consents = slow
"""


class Process(NamedTuple):
    """How to start one process: its deployment, its number, where it finds brokers, its session time-out in ms."""

    shop: Deployment
    instance: int
    bootstrap: str
    session: int


class System(NamedTuple):
    """One column of the table, headed by its title."""

    title: str
    start: Callable[[Process], Worker]
    holds: bool | None = None
    """True: it may publish nothing. False: it must publish something, or the cell proves nothing. None: a peer."""


def _celosia(at: Process, script: str | None = None, gate: str = "fast") -> Worker:
    return at.shop.start(script=script, bootstrap=at.bootstrap, session_timeout_ms=at.session, gate=gate)


def _loop(at: Process) -> Worker:
    return at.shop.start(command=[sys.executable, "-m", "tests.bench.peers.loop", *_arguments(at)])


def _streams(at: Process, *options: str) -> Worker:
    jars, classes = streams_jars(), streams_classes()
    # Small, and with the compiler that warms up fast: there are two cores for brokers and all.
    command = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-cp", f"{classes}:{jars}/*", "Peer", *_arguments(at)]
    return at.shop.start(command=[*command, "--state-dir", str(at.shop.home / f"state-{at.instance}"), *options])


def _arguments(at: Process) -> list[str]:
    values = {
        "bootstrap": at.bootstrap,
        "group": at.shop.group,
        "raw": at.shop.raw,
        "consents": at.shop.consents,
        "out": at.shop.outputs[0],
        "key-file": at.shop.key_file,
        "session-timeout-ms": at.session,
        "instance": at.instance,
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


SYSTEMS = {
    "celosia": System("celosia", _celosia, holds=True),
    "celosia-strict": System("celosia, strict gate", lambda at: _celosia(at, gate="strict"), holds=True),
    "late": System("celosia, consents 250 ms late", lambda at: _celosia(at, SLOW_FOLLOWER), holds=True),
    "streams": System("Kafka Streams 4.1 exactly_once_v2", _streams),
    "streams-zero": System("the same, consents at time 0", lambda at: _streams(at, "--consent-time", "zero")),
    "streams-idle": System("the same, max.task.idle.ms=1000", lambda at: _streams(at, "--max-task-idle-ms", "1000")),
    "loop": System("hand-written loop, transactions", _loop),
    "control": System(
        "control: no gate, consents 250 ms late", lambda at: _celosia(at, NO_GATE + SLOW_FOLLOWER), holds=False
    ),
}


@cache
def streams_jars() -> Path:
    """The directory with Kafka Streams, from the cache of the user or else from Maven.

    Raises:
        BrokerFailed: Maven is not there, or does not do it.
    """
    pom = PEERS / "streams" / "pom.xml"
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "celosia", f"streams-{_digest(pom)}")
    if kept.is_dir():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="fetching-") as directory:
        jars = Path(directory, "jars")
        command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
        _run([*command, f"-DoutputDirectory={jars}"], "fetching Kafka Streams")
        # The first one wins: a directory that is not empty is not renamed over, and is as good as ours.
        with suppress(OSError):
            jars.rename(kept)
    return kept


@cache
def streams_classes() -> Path:
    """The directory with the compiled peer, beside its jars.

    Raises:
        BrokerFailed: there is no `javac`, or it does not do it.
    """
    jars, source = streams_jars(), PEERS / "streams" / "Peer.java"
    kept = jars.with_name(f"{jars.name}-peer-{_digest(source)}")
    if not kept.is_dir():
        with tempfile.TemporaryDirectory(dir=jars.parent, prefix="compiling-") as directory:
            classes = Path(directory, "classes")
            _run(["javac", "-d", str(classes), "-cp", f"{jars}/*", str(source)], "compiling the Kafka Streams peer")
            with suppress(OSError):
                classes.rename(kept)
    return kept


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _run(command: list[str], what: str) -> None:
    if shutil.which(command[0]) is None:
        raise BrokerFailed(f"{what}: `{command[0]}` is not on the PATH; install it, or leave its systems out")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        came = (done.stdout + done.stderr).decode(errors="replace")
        raise BrokerFailed(f"{what}: `{command[0]}` gave exit code {done.returncode}; see below\n{came[-2000:]}")
