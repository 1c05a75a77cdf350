"""Links do to a connection what they say, and a linked cluster is cut where it is said to be cut."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from streams.embedded import BrokerFailed, _free_ports, java_and_maven
from tests.chaos.cluster import NODES, LinkedCluster, linked_cluster
from tests.chaos.links import CLEAR, CUT, END_TXN, HALF_OPEN, ONLY_ANSWERS, ONLY_REQUESTS, Fault, Links
from tests.chaos.observer import stable_offset
from tests.kafka.brokers import ToSend, create_topics, produce, read_all, wait_until

LINK = ("somebody", 1)


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self.got = b""
        self.ended = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection = self._server.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    self.got += data
                    connection.sendall(data)
            except OSError:
                pass
            self.ended += 1

    def close(self) -> None:
        """No more connections."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def port() -> int:
    return _free_ports(1)[0]


@pytest.fixture
def links(echo: Echo, port: int) -> Iterator[Links]:
    with Links({LINK: (port, echo.port)}) as some:
        yield some


def connected(port: int, seconds: float = 30.0) -> socket.socket:
    """A client."""
    return socket.create_connection(("127.0.0.1", port), timeout=seconds)


def request(key: int, size: int = 10) -> bytes:
    """A request as Kafka frames it."""
    return struct.pack(">ih", size, key) + bytes(size - 2)


def answer(client: socket.socket, length: int) -> bytes:
    """So many bytes."""
    got = b""
    while len(got) < length:
        data = client.recv(length - len(got))
        assert data, f"the connection ended after {got!r}"
        got += data
    return got


def silent(client: socket.socket) -> bool:
    """Whether nothing comes for a moment."""
    client.settimeout(0.3)
    try:
        return client.recv(1) is None
    except TimeoutError:
        return True
    finally:
        client.settimeout(30)


def test_whole_link_carries_everything(links: Links, port: int) -> None:
    with connected(port) as client:
        for size in (2, 3, 10, 100_000, 3_000_000):
            sent = request(0, size)
            threading.Thread(target=client.sendall, args=(sent,)).start()
            assert answer(client, len(sent)) == sent
    assert links.counts()["connections"] == 1


def test_cut_link_resets_and_refuses_and_keeps_its_port(links: Links, port: int) -> None:
    with connected(port) as client:
        client.sendall(request(0))
        answer(client, 14)
        links.set([LINK], CUT)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connected(port)
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))
    links.set([LINK], CLEAR)
    with connected(port) as client:
        client.sendall(request(0))
        answer(client, 14)
    assert links.counts()["reset"] == 2, "both ends of the one that was open"


def test_half_open_link_accepts_and_carries_nothing_until_it_is_whole(links: Links, port: int, echo: Echo) -> None:
    links.set([LINK], HALF_OPEN)
    with connected(port) as client:
        client.sendall(request(0))
        assert silent(client)
        assert echo.got == b""
        links.set([LINK], CLEAR)
        assert answer(client, 14) == request(0)


def test_one_way_links(links: Links, port: int, echo: Echo) -> None:
    with connected(port) as client:
        links.set([LINK], ONLY_REQUESTS)
        client.sendall(request(0))
        wait_until(lambda: echo.got == request(0), "the request has arrived")
        assert silent(client)
        links.set([LINK], ONLY_ANSWERS)
        client.sendall(request(1))
        assert answer(client, 14) == request(0)
        assert silent(client)
        assert echo.got == request(0)
        links.set([LINK], CLEAR)
        assert answer(client, 14) == request(1)


@pytest.mark.parametrize("fault", [Fault(delay=0.5), Fault(rate=10_000)])
def test_late_links_keep_the_order(links: Links, port: int, fault: Fault) -> None:
    sent = b"".join(request(key, 1_000) for key in range(10))
    links.set([LINK], fault)
    with connected(port) as client:
        client.sendall(sent)
        assert fault.rate or silent(client)
        assert answer(client, len(sent)) == sent


def test_held_request_arrives_late_even_if_its_client_has_gone(links: Links, port: int, echo: Echo) -> None:
    links.hold_next(END_TXN, 1.5)
    with connected(port) as client, connected(port) as other:
        client.sendall(request(0) + request(END_TXN) + request(1))
        assert answer(client, 14) == request(0)
        assert silent(client), "what comes after a held request waits behind it"
        other.sendall(request(END_TXN))
        assert answer(other, 14) == request(END_TXN), "only one is held, and other connections are not"
    assert echo.got == request(0) + request(END_TXN)
    wait_until(lambda: echo.got == request(0) + 2 * request(END_TXN) + request(1), "it arrived")
    wait_until(lambda: echo.ended == 2, "then the connections have ended")
    links.hold_next(END_TXN, 1.5)
    links.hold_next(END_TXN, 0)
    with connected(port) as client:
        client.sendall(request(END_TXN))
        assert answer(client, 14) == request(END_TXN), "it was taken back"
    counts = links.counts()
    assert (counts["held"], counts["late"]) == (1, 1)


def test_link_to_nobody_ends_its_connections(port: int) -> None:
    with Links({LINK: (port, _free_ports(1)[0])}), connected(port) as client, suppress(ConnectionResetError):
        assert client.recv(1) == b""


def test_port_that_is_taken_is_named(port: int, echo: Echo) -> None:
    with pytest.raises(BrokerFailed, match=rf"port {echo.port}: Address already in use; end its owner"):
        Links({LINK: (echo.port, port)})


@pytest.fixture(scope="module")
def cluster() -> Iterator[LinkedCluster]:
    if reason := java_and_maven():
        pytest.skip(f"three nodes need Java and Maven: {reason}")
    with linked_cluster(workers=1) as some:
        yield some


def test_isolated_leader_is_replaced_and_does_not_know(cluster: LinkedCluster) -> None:
    create_topics(cluster.bootstrap, {"apart": (3, 3, {})})
    one = [ToSend(value=b"before", partition=number) for number in range(3)]
    produce(cluster.outside, "apart", one)
    leader = cluster.leader_of("apart", 0)
    before = cluster.partitions("apart")[0]
    cluster.isolate(leader)
    try:
        cluster.wait_led(["apart"], other_than=leader)
        after = cluster.partitions("apart")[0]
        assert after.leader != leader
        assert after.epoch > before.epoch
        produce(cluster.outside, "apart", [ToSend(value=b"after", partition=number) for number in range(3)])
        # A worker still reaches the old leader, which believes that it leads, and knows nothing of the new record.
        assert stable_offset(cluster.ports[leader], "apart", 0, before.epoch) == 1
        assert stable_offset(cluster.ports[after.leader], "apart", 0, after.epoch) == 2
        assert stable_offset(cluster.ports[after.leader], "apart", 0, before.epoch) is None
        [(_, number)] = cluster.links_of(0, leader)
        with connected(int(cluster.bootstrap_of(0).split(",")[number - 1].rpartition(":")[2])) as client:
            client.sendall(struct.pack(">ihhih", 10, 18, 0, 7, -1))
            assert struct.unpack(">i", answer(client, 8)[4:]) == (7,)
    finally:
        cluster.heal()
    cluster.wait_whole(["apart"])
    assert {number: it.leader for number, it in cluster.partitions("apart").items()}.keys() == {0, 1, 2}
    values = sorted(record.value or b"" for record in read_all(cluster.bootstrap, "apart"))
    assert values == [b"after"] * 3 + [b"before"] * 3


def test_nodes_that_fall_and_rise_keep_what_was_acknowledged(cluster: LinkedCluster) -> None:
    create_topics(cluster.bootstrap, {"kept": (3, 3, {})})
    every = [ToSend(value=b"x", partition=number) for number in range(3)]
    for down in (cluster.kill, cluster.stop):
        node = cluster.leader_of("kept", 0)
        down(node)
        cluster.wait_led(["kept"], other_than=node)
        produce(cluster.outside, "kept", every)
        cluster.start(node)
        cluster.wait_whole(["kept"])
    for node in NODES:
        cluster.kill(node)
    cluster.start(*NODES)
    produce(cluster.outside, "kept", every)
    assert len(read_all(cluster.bootstrap, "kept")) == 9
    cluster.wait_whole(["kept"])


@pytest.mark.parametrize("name", ["celosia-minimize-0", "a", "ein längerer Name", "Z" * 60])
def test_coordinators_are_those_that_kafka_names(cluster: LinkedCluster, name: str) -> None:
    told: dict[int, int] = {}

    def known() -> bool:
        told.update({kind: coordinator_as_told(cluster.ports[1], name, kind) for kind in (0, 1)})
        return -1 not in told.values()

    wait_until(known, "Kafka has made its own topics")
    assert told == {0: cluster.group_coordinator_of(name), 1: cluster.transaction_coordinator_of(name)}


def coordinator_as_told(port: int, name: str, kind: int) -> int:
    """Ask a node (FindCoordinator, version 1) for the coordinator of a group (0) or a transactional id (1)."""
    key = name.encode()
    asked = struct.pack(f">hhihh{len(key)}sb", 10, 1, 0, -1, len(key), key, kind)
    with connected(port) as node:
        node.sendall(struct.pack(">i", len(asked)) + asked)
        told = answer(node, *struct.unpack(">i", answer(node, 4)))
    error, length = struct.unpack_from(">hh", told, 8)
    return -1 if error else int(struct.unpack_from(">i", told, 12 + max(0, length))[0])
