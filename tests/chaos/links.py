"""Links: every connection between two parties of a run goes through one, and each link can have a fault of its own.

- A link is a port of 127.0.0.1 that leads to another one. `Links` starts one process that carries all links of a run,
  so that a busy test does not slow them; it ends when its standard input closes, however that comes about.
- What is held back is never lost and never reordered: a fault delays, stops or ends a connection, as a network does.
  What a client sent before it gave up arrives all the same, however late.
- A link that is cut keeps its port: it is bound, and nobody listens there.
- Requests are read just far enough to know their API key (the length, then the key), to hold one of them back.

>>> with Links({("worker", 1): (18001, 9092)}) as links:                                             # doctest: +SKIP
...     links.set([("worker", 1)], HALF_OPEN)
"""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from streams.errors import BrokerFailed

END_TXN = 26
"""The API key of Kafka's request to commit or abort."""

Link = tuple[str, int]
"""who connects, and the node it connects to"""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a link; nothing, as it stands. Requests go to the node, answers come from it."""

    cut: bool = False
    """connections are reset, new ones refused"""
    requests: bool = True
    """whether requests pass; if not they wait, and so does whoever sends too many of them"""
    answers: bool = True
    delay: float = 0.0
    """seconds that everything is under way, in each direction"""
    rate: int = 0
    """bytes a second, in each direction of each connection; 0: as many as there are"""


CLEAR = Fault()
CUT = Fault(cut=True)
HALF_OPEN = Fault(requests=False, answers=False)
"""connections are made and stay, and nothing passes"""
ONLY_REQUESTS = Fault(answers=False)
ONLY_ANSWERS = Fault(requests=False)


class Links:
    """All links of a run: by link, the port it listens on and the port it leads to.

    Raises:
        BrokerFailed: a port is taken, or the process that carries the links has ended.
    """

    def __init__(self, ports: Mapping[Link, tuple[int, int]], log: Path | None = None) -> None:
        self._numbers = {link: number for number, link in enumerate(ports)}
        self._asking = threading.Lock()
        with open(log or os.devnull, "ab") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.links"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )
        try:
            self._ask(list(ports.values()))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Link]:
        return iter(self._numbers)

    def set(self, links: Iterable[Link], fault: Fault) -> None:
        """Give links a fault, instead of the one they have. It is in force when this returns."""
        self._ask({"links": [self._numbers[link] for link in links], "fault": asdict(fault)})

    def hold_next(self, key: int, seconds: float) -> None:
        """Have the next request with this API key, on whichever link it comes, wait so long; with 0 seconds: no more.

        What follows it on its connection waits behind it. The faults of its link are as they are.
        """
        self._ask({"hold": key, "seconds": seconds})

    def counts(self) -> Counter[str]:
        """What has happened so far: connections, resets, held requests, late requests (of clients that had gone)."""
        return Counter(self._ask({}))

    def close(self) -> None:
        """End all links."""
        with suppress(OSError):
            self._process.communicate(timeout=5)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()

    def _ask(self, order: Any) -> Any:
        with self._asking:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            line = b""
            with suppress(OSError, ValueError):
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process has ended"}
        if "error" in answer:
            raise BrokerFailed(f"carrying the links: {answer['error']}; end its owner")
        return answer


# --- the process that carries them ------------------------------------------------------------------------------------

_MUCH = 1 << 20
"""Bytes under way in one direction of a connection, after which no more are taken from the sender."""


class _Frames:
    """Cuts a stream of requests into pieces, each of one request; says its API key with the piece it begins in."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    def cut(self, data: bytes) -> list[tuple[int | None, bytes]]:
        pieces: list[tuple[int | None, bytes]] = []
        while data:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                pieces.append((None, piece))
                continue
            wanted = 6 - len(self._head)
            self._head, data = self._head + data[:wanted], data[wanted:]
            if len(self._head) == 6:
                length, key = struct.unpack(">iH", self._head)
                self._left = max(0, length - 2)
                pieces.append((key, self._head))
                self._head = b""
        return pieces


class _Way:
    """One direction of one connection: what is under way, and when the first of it may arrive."""

    def __init__(self, relay: "_Relay", requests: bool) -> None:
        self.relay = relay
        self.requests = requests
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.ended = False
        self._frames = _Frames()
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._free = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._choked = False

    def take(self, data: bytes) -> None:
        fault, now = self.relay.fault, self.relay.loop.time()
        pieces = self._frames.cut(data) if self.requests else [(None, data)]
        for key, piece in pieces:
            if held := self.relay.holding.pop(key, 0.0) if key is not None else 0.0:
                self.relay.counts["held"] += 1
            self._under_way.append((now + fault.delay + held, piece))
        self._size += len(data)
        self.move()

    def choke(self, choked: bool) -> None:
        """The sink takes nothing more for now, or again."""
        self._choked = choked
        self.move()

    def end(self) -> None:
        """The source has ended; what is under way still arrives."""
        self.ended = True
        self.move()

    def move(self) -> None:
        """Let arrive what may arrive now, and come again when the next of it is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        fault, now = self.relay.fault, self.relay.loop.time()
        sink, passes = self.sink, fault.requests if self.requests else fault.answers
        if sink is None or sink.is_closing():
            return
        ready: list[bytes] = []
        while self._under_way and passes and not self._choked:
            due = max(self._under_way[0][0], self._free)
            if due > now:
                self._timer = self.relay.loop.call_at(due, self.move)
                break
            piece = self._under_way.popleft()[1]
            if fault.rate:
                # A tenth of a second's worth at once, so that few wake-ups are needed.
                piece, rest = piece[: 1 + fault.rate // 10], piece[1 + fault.rate // 10 :]
                if rest:
                    self._under_way.appendleft((due, rest))
                self._free = now + len(piece) / fault.rate
            ready.append(piece)
            self._size -= len(piece)
        if ready:
            sink.write(b"".join(ready))
            if self.requests and self.ended:
                self.relay.counts["late"] += 1
        if self.ended and not self._under_way and passes:
            sink.close()
        self._hold_off(self._size > _MUCH)

    def _hold_off(self, stop: bool) -> None:
        if self.source is not None and stop != self._stopped and not self.source.is_closing():
            self._stopped = stop
            (self.source.pause_reading if stop else self.source.resume_reading)()


class _End(asyncio.Protocol):
    """One end of a connection: what it sends goes into one way, what it receives comes out of the other."""

    def __init__(self, relay: "_Relay", out: _Way, into: _Way) -> None:
        self._relay, self._out, self._into = relay, out, into

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._out.source = self._into.sink = transport
        self._relay.ends.add(transport)
        self._into.move()

    def data_received(self, data: bytes) -> None:
        self._out.take(data)

    def eof_received(self) -> bool:
        self._out.end()
        return True

    def pause_writing(self) -> None:
        self._into.choke(True)

    def resume_writing(self) -> None:
        self._into.choke(False)

    def connection_lost(self, _: Exception | None) -> None:
        self._relay.ends.discard(self._transport)
        self._out.end()


class _Relay:
    """One link in the process that carries it."""

    def __init__(self, port: int, target: int, counts: Counter[str], holding: dict[int, float]) -> None:
        self.fault = CLEAR
        self.holding = holding
        self.loop = asyncio.get_running_loop()
        self.counts = counts
        self.ends: set[asyncio.Transport] = set()
        self._port, self._target = port, target
        self._socket = self._bound()
        self._server: asyncio.Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._ways: set[_Way] = set()

    def _bound(self) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", self._port))
        # Until it listens nobody else may have the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        return bound

    async def become(self, fault: Fault) -> None:
        self.fault = fault
        if fault.cut and self._server is not None:
            self._server.close()
            self._server, self._socket = None, self._bound()
            for end in list(self.ends):
                self.counts["reset"] += 1
                # No farewell: with this option a close is a reset.
                linger = struct.pack("ii", 1, 0)
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                end.abort()
        if not fault.cut and self._server is None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._server = await self.loop.create_server(self._accept, sock=self._socket, backlog=128)
        for way in list(self._ways):
            way.move()

    def _accept(self) -> _End:
        self.counts["connections"] += 1
        requests, answers = _Way(self, True), _Way(self, False)
        self._ways = {way for way in self._ways if self._alive(way)} | {requests, answers}
        task = self.loop.create_task(self._connect(requests, answers))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return _End(self, requests, answers)

    def _alive(self, way: _Way) -> bool:
        return way.source in self.ends or way.sink in self.ends

    async def _connect(self, requests: _Way, answers: _Way) -> None:
        try:
            await self.loop.create_connection(lambda: _End(self, answers, requests), "127.0.0.1", self._target)
        except OSError:
            if requests.source is not None:
                requests.source.abort()
            return
        if self.fault.cut and answers.source is not None:
            answers.source.abort()


async def _carry() -> None:
    loop, relays = asyncio.get_running_loop(), list[_Relay]()
    counts, holding = Counter[str](), dict[int, float]()  # Of all links together.
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if isinstance(order, list):
            for port, target in order:
                try:
                    relays.append(_Relay(port, target, counts, holding))
                    await relays[-1].become(CLEAR)
                except OSError as error:
                    answer = {"error": f"port {port}: {os.strerror(error.errno or 0)}"}
        elif "hold" in order:
            holding[order["hold"]] = order["seconds"]
        elif order:
            for number in order["links"]:
                await relays[number].become(Fault(**order["fault"]))
        else:
            answer = dict(counts)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us; we end when they do.
    asyncio.run(_carry())
