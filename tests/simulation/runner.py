"""Runs many seeds, on all cores, and adds up what they did."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.simulation.scenario import scenario
from tests.simulation.world import run

__all__ = ["Totals", "cores", "run_some", "sweep"]

_CHUNK = 20


@dataclass
class Totals:
    """What some seeds did. `failed` is the first seed that failed."""

    seeds: int = 0
    seconds: float = 0.0
    """virtual"""
    power: "Counter[str]" = field(default_factory=Counter)
    failed: int | None = None
    failure: str = ""

    def add(self, more: "Totals") -> None:
        """Add those of seeds that come after these."""
        self.seeds += more.seeds
        self.seconds += more.seconds
        self.power += more.power
        if self.failed is None:
            self.failed, self.failure = more.failed, more.failure


def cores() -> int:
    """Return how many processes can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_some(seeds: range) -> Totals:
    """Run seeds one after the other, up to the first that fails."""
    totals = Totals()
    # What a run leaves behind is collected at once, between runs: it lives as long as the run anyway.
    enabled = gc.isenabled()
    gc.disable()
    try:
        for seed in seeds:
            result = run(scenario(seed))
            totals.add(Totals(1, result.seconds, result.power, seed if result.failure else None, result.failure or ""))
            if result.failure:
                break
    finally:
        gc.collect()
        if enabled:
            gc.enable()
    return totals


def sweep(first: int, count: int, processes: int) -> Iterator[Totals]:
    """Run `count` seeds from `first` on; yields what has come together so far, up to the first seed that fails."""
    totals = Totals()
    chunks = [range(start, min(start + _CHUNK, first + count)) for start in range(first, first + count, _CHUNK)]
    # Spawned, not forked: whoever calls this may have threads.
    with get_context("spawn").Pool(min(processes, len(chunks))) as pool:
        for done in pool.imap(run_some, chunks):
            totals.add(done)
            yield totals
            if totals.failed is not None:
                return
