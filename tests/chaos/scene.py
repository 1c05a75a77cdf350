"""What all parts of a run share: the cluster, the deployment, chance, and what has been done so far."""

import random
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.cluster import LinkedCluster
from tests.kafka.worker import Deployment

SESSION = 4.0
"""Seconds after which the group gives up a worker that does not answer."""


class Rotation:
    """Kinds of faults in an order that chance decides, each once before any comes again."""

    def __init__(self, kinds: list[str], chance: random.Random) -> None:
        self._kinds = kinds
        self._chance = chance
        self._left: list[str] = []
        self._lock = threading.Lock()

    def draw(self) -> str:
        """The next kind."""
        with self._lock:
            if not self._left:
                self._left = self._chance.sample(self._kinds, len(self._kinds))
            return self._left.pop()


@dataclass
class Scene:
    """One run."""

    cluster: LinkedCluster
    shop: Deployment
    seed: int
    gate: str
    """`fast` or `strict`: what workers that start from now on are given"""
    mutant: str = ""
    """what every worker runs before it starts"""
    began: float = field(default_factory=time.monotonic)
    stopping: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    """how often each thing has really happened"""
    bugs: list[str] = field(default_factory=list)
    """workers that ended by themselves for no reason that an operator could put right"""
    done: list[str] = field(default_factory=list)
    """what was done, a line each"""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def topics(self) -> list[str]:
        """All topics of the deployment."""
        shop = self.shop
        return [shop.raw, shop.consents, shop.receipts, shop.quarantine, *shop.outputs]

    def chance(self, whose: str) -> random.Random:
        """A source of chance for one part of the run, the same for the same seed."""
        return random.Random(f"{self.seed}-{whose}")

    def note(self, text: str) -> None:
        """Write down what is done."""
        with self._lock:
            self.done.append(f"{time.monotonic() - self.began:7.1f} s: {text}")

    def count(self, what: str, times: int = 1) -> None:
        """Count what has happened."""
        with self._lock:
            self.counts[what] += times

    def ended_by_itself(self, who: str, last: str) -> None:
        """A worker has ended: with a line that says what it lacks, or by a bug."""
        self.count("workers that ended by themselves")
        self.note(f"{who} has ended: {last}")
        if not last.startswith("celosia: ") or "this is a bug" in last:
            self.bugs.append(f"{who}: {last}")

    def wait(self, seconds: float) -> bool:
        """Let time pass; True if the run ends."""
        return self.stopping.wait(seconds)

    def transactional_id(self, partition: int) -> str:
        """The id with which the lane of a partition writes."""
        return f"{self.shop.group}-minimize-{partition}"


def stands_still(pid: int) -> bool:
    """Whether a process was really stopped."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return state.strip().startswith("T")


def last_line(log: str) -> str:
    """The end of what a process has said."""
    lines = log.strip().splitlines()
    return lines[-1] if lines else "(nothing)"
