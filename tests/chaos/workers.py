"""What is done to workers: three that are hurt again and again, and a guest that comes and goes.

- A slot has a worker at all times, unless a fault has just taken it away. One that ends by itself (no broker could be
  reached as it started) is started again, as a supervisor would.
- A fault puts right what it has done, but for what is still under way: a held request arrives when it is due.
"""

import random
import signal
import threading
import time
from collections.abc import Callable

from confluent_kafka import KafkaException, Producer

from tests.chaos.cluster import NODES
from tests.chaos.links import CLEAR, CUT, END_TXN, HALF_OPEN, ONLY_ANSWERS, ONLY_REQUESTS, Fault
from tests.chaos.scene import SESSION, Rotation, Scene, last_line, stands_still
from tests.kafka.brokers import wait_until
from tests.kafka.worker import PARTITIONS, Worker

SLOTS = 3
GUEST = SLOTS
"""The links of the guest."""
ENDED = 120.0
"""Seconds for a worker to end after SIGTERM, also where it reaches nobody."""
BACK_AGAIN = 3.0
"""Seconds after which a worker that has ended by itself is started again."""
LATE = 33.0
"""Seconds that EndTxn is held: a lane gives up after 30."""
HELD = (6.0, LATE, LATE)

# The clock is an hour ahead or behind for 3 s, right for 3 s, and so on.
WRONG_CLOCK = """
import time
true_time = time.time_ns
def jumping_time():
    return true_time() + (0, {jump}, 0, -{jump})[int(time.monotonic() / 3) % 4]
time.time_ns = jumping_time
"""
HOUR = 3_600_000_000_000

# On SIGUSR1 the worker says where each of its tasks waits: names of files and functions, and lines, nothing else.
TELLS_WHERE = """
import asyncio, signal, sys
def where(*_):
    for task in asyncio.all_tasks(asyncio.get_event_loop()):
        print("task", task.get_name(), file=sys.stderr)
        at = task.get_coro()
        while at is not None:
            frame = getattr(at, "cr_frame", None) or getattr(at, "gi_frame", None) or getattr(at, "ag_frame", None)
            code = frame and frame.f_code
            print("   ", code and f"{code.co_filename}:{frame.f_lineno} {code.co_name}" or type(at), file=sys.stderr)
            at = getattr(at, "cr_await", None) or getattr(at, "gi_yieldfrom", None) or getattr(at, "ag_await", None)
signal.signal(signal.SIGUSR1, where)
"""


class Slot:
    """One worker and what is done to it, on a thread of its own."""

    def __init__(self, scene: Scene, number: int, rotation: Rotation) -> None:
        self.scene = scene
        self.number = number
        self.chance = scene.chance(f"slot-{number}")
        self.failure: BaseException | None = None
        self.rotation = rotation
        self.gate = scene.gate
        self.worker = self.start()
        self._thread = threading.Thread(target=self._run, name=f"slot-{number}")
        self._thread.start()

    def start(self, script: str = "") -> Worker:
        """Start a worker with the gate that is wanted now."""
        self.gate = self.scene.gate
        self.scene.count("starts of workers")
        self.worker = start_worker(self.scene, self.number, self.chance, script)
        return self.worker

    def join(self) -> None:
        """Wait until the last fault is over."""
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        scene = self.scene
        try:
            while not scene.wait(self.chance.uniform(0.5, 3.0)):
                if not self.worker.running:
                    scene.ended_by_itself(f"worker {self.number}", last_line(self.worker.log))
                    scene.wait(BACK_AGAIN)
                    self.start()
                elif self.gate != scene.gate:
                    end_worker(scene, self.worker)
                    self.start()
                else:
                    kind = self.rotation.draw()
                    scene.note(f"worker {self.number}: {kind}")
                    FAULTS[kind](self)
                    scene.count(kind)
        except BaseException as error:
            self.failure = error
            scene.stopping.set()

    def linked_badly(self, fault: Fault, least: float, most: float, nodes: int = 1) -> None:
        """The links to some nodes have a fault for a while."""
        some = self.chance.sample(NODES, nodes)
        links = [link for node in some for link in self.scene.cluster.links_of(self.number, node)]
        self.scene.cluster.links.set(links, fault)
        self.scene.wait(self.chance.uniform(least, most))
        self.scene.cluster.links.set(links, CLEAR)

    def pause(self, sessions: float) -> None:
        """SIGSTOP for so many session time-outs."""
        worker = self.worker
        worker.pause()
        if stands_still(worker.pid):
            self.scene.count("SIGSTOPs of workers")
        self.scene.wait(sessions * SESSION)
        worker.resume()

    def kill(self) -> None:
        """SIGKILL; another one comes at once."""
        self.worker.kill()
        self.start()

    def terminate(self) -> None:
        """SIGTERM; another one comes at once."""
        end_worker(self.scene, self.worker)
        self.start()

    def wrong_clock(self) -> None:
        """Another worker comes, whose clock jumps by an hour, back and forth."""
        self.worker.kill()
        self.start(WRONG_CLOCK.format(jump=HOUR))

    def hold_commits(self) -> None:
        """The next request to end a transaction, whoever sends it, arrives late.

        This goes on as soon as there was one: the lane waits, or gives up, while others are hurt.
        """
        links = self.scene.cluster.links
        held = links.counts()["held"]
        links.hold_next(END_TXN, self.chance.choice(HELD))
        while links.counts()["held"] == held:
            if self.scene.wait(0.05):
                links.hold_next(END_TXN, 0)
                return
        self.scene.count("EndTxn that waited")

    def fence(self) -> None:
        """A second deployment with the same id: a stranger takes a lane's transactional id, and leaves it open."""
        partition = self.chance.randrange(PARTITIONS)
        stranger = Producer(
            {
                "bootstrap.servers": self.scene.cluster.outside,
                "broker.address.family": "v4",
                "transactional.id": self.scene.transactional_id(partition),
                "transaction.timeout.ms": 10_000,
                "log_level": 0,
            }
        )
        try:
            stranger.init_transactions(10)
            self.scene.count("lanes fenced by a stranger")
        except KafkaException:
            return  # No coordinator just now: somebody is busy with the brokers.


FAULTS: dict[str, Callable[[Slot], None]] = {
    "worker paused for half a session": lambda slot: slot.pause(0.5),
    "worker paused for one and a half": lambda slot: slot.pause(1.5),
    "worker paused for three sessions": lambda slot: slot.pause(3),
    "worker killed": Slot.kill,
    "worker terminated": Slot.terminate,
    "worker with a clock that jumps an hour": Slot.wrong_clock,
    "EndTxn held": Slot.hold_commits,
    "lane fenced from elsewhere": Slot.fence,
    "worker cut off from a broker": lambda slot: slot.linked_badly(CUT, 2, 8),
    "worker cut off from all brokers": lambda slot: slot.linked_badly(CUT, 1, 6, len(NODES)),
    "link half open": lambda slot: slot.linked_badly(HALF_OPEN, 2, 9),
    "only requests pass": lambda slot: slot.linked_badly(ONLY_REQUESTS, 2, 9),
    "only answers pass": lambda slot: slot.linked_badly(ONLY_ANSWERS, 2, 9),
    "links delayed": lambda slot: slot.linked_badly(Fault(delay=slot.chance.uniform(0.02, 0.4)), 3, 8, len(NODES)),
    "link slow": lambda slot: slot.linked_badly(Fault(rate=20_000), 3, 8),
}
PAUSES = [kind for kind in FAULTS if "paused" in kind]
OFTEN = [*FAULTS, *PAUSES]
"""Pauses come twice as often as the rest."""
REALLY = ["EndTxn that waited", "lanes fenced by a stranger", "workers added and removed", "key missing at start"]
"""What comes of some faults only if somebody was at work, or is no fault of a slot."""


class Guest:
    """Workers that are added and removed, about every ten seconds; and now and then one without its key."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._chance = scene.chance("guest")
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="guest")
        self._thread.start()

    def join(self) -> None:
        """Wait until it is gone."""
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        scene, visits = self._scene, 0
        try:
            self._without_key()
            while not scene.wait(self._chance.uniform(8, 12)):
                visits += 1
                if visits % 10 == 0:
                    self._without_key()
                    continue
                scene.note("a guest comes")
                worker = start_worker(scene, GUEST, self._chance)
                scene.wait(self._chance.uniform(8, 12))
                if visits % 2:
                    end_worker(scene, worker)
                else:
                    worker.kill()
                scene.note("the guest is gone")
                scene.count("workers added and removed")
        except BaseException as error:
            self.failure = error
            scene.stopping.set()

    def _without_key(self) -> None:
        """A worker whose key is missing does not start."""
        scene = self._scene
        scene.note("a worker without its key")
        worker = scene.shop.start(bootstrap=scene.cluster.bootstrap, key_file=scene.shop.home / "no-such-key")
        wait_until(lambda: not worker.running, "a worker without its key gives up", ENDED)
        code = worker.terminate()
        assert code != 0, "a worker without its key ended as if all were well"
        assert "no-such-key" in worker.log, f"a worker without its key says: {worker.log}"
        assert "assigned:" not in worker.log
        scene.count("key missing at start")


def start_worker(scene: Scene, links: int, chance: random.Random, script: str = "") -> Worker:
    """Start a worker behind some links. Some end their transactions late, some soon, so that pauses outlast them."""
    return scene.shop.start(
        script=TELLS_WHERE + scene.mutant + script,
        bootstrap=scene.cluster.bootstrap_of(links),
        gate=scene.gate,
        session_timeout_ms=int(SESSION * 1000),
        transaction_timeout_ms=chance.choice([10_000, 60_000]),
    )


def end_worker(scene: Scene, worker: Worker) -> None:
    """SIGTERM: it ends in good order."""
    began = time.monotonic()
    try:
        code = worker.terminate(ENDED)
    except AssertionError as error:
        told = worker.ask_where()
        error.add_note(f"worker {worker.pid} waits here:\n{told}")
        raise
    scene.count("ended in good order" if code == 0 else "ended while it started")
    # Before it has started a worker has nothing to finish, and the signal itself may end it. Or it had just ended with
    # a line that says what it lacks: no broker could be reached.
    unready = code == -signal.SIGTERM and " started" not in worker.log
    assert code == 0 or unready or last_line(worker.log).startswith("celosia: "), (
        f"SIGTERM, and after {time.monotonic() - began:.1f} s code {code}: {worker.log[-2000:]}"
    )
