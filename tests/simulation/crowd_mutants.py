"""Five mutants of the crowd gate: each takes away one thing that keeps a person out of sight, or a count right."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from streams.crowd.counts import Counts
from streams.crowd.release import Released, guarded
from streams.crowd.rounds import Closed, Rounds
from streams.crowd.rule import CrowdRule
from streams.crowd.window import Cell, Part
from streams.kafka.crowds import Counting
from tests.simulation.mutants import Mutant
from tests.simulation.scenario import Scenario, scenario

__all__ = ["CROWD_MUTANTS"]

Patch = pytest.MonkeyPatch


def _crowds() -> Iterator[Scenario]:
    return (one for one in map(scenario, itertools.count()) if one.crowd)


_init, _close, _seen, _over = Counts.__init__, Counts.close, Counting.seen, Rounds._over


def _unbounded(patch: Patch) -> None:
    def init(counts: Counts, rules: Any, master: Any) -> None:
        _init(counts, [replace(rule, most_per_person=1_000) for rule in rules], master)

    patch.setattr(Counts, "__init__", init)


def _events_for_people(patch: Patch) -> None:
    def release(rule: CrowdRule, cells: Mapping[Cell, Part]) -> Released:
        return Released(
            {cell: cells[cell] for cell in guarded(rule, {cell: of.events for cell, of in cells.items()})}, 0
        )

    patch.setattr("streams.crowd.exact", release)


def _released_again(patch: Patch) -> None:
    """Neither stage marks a window as done with."""

    def close(counts: Counts, *args: Any) -> list[Any]:
        kept = dict(counts._windows)
        windows = _close(counts, *args)
        counts._windows.update(kept)
        return windows

    def over(rounds: Rounds, *args: Any) -> Iterator[Closed]:
        rounds._over_through.clear()
        return _over(rounds, *args)

    patch.setattr(Counts, "close", close)
    patch.setattr(Rounds, "_over", over)


def _forgotten(patch: Patch) -> None:
    patch.setattr(Counting, "restore", lambda _counting, _records: iter(()))


def _ahead(patch: Patch) -> None:
    patch.setattr(Counting, "seen", lambda counting, topic, recorded: _seen(counting, topic, recorded + 20_000))


CROWD_MUTANTS = (
    Mutant("C1", "no bound on a person's cells", _unbounded, _crowds),
    Mutant("C2", "k over events, not people", _events_for_people, _crowds),
    Mutant("C3", "a window released again", _released_again, _crowds),
    Mutant("C4", "open windows not restored", _forgotten, _crowds),
    Mutant("C5", "watermark ahead of the events", _ahead, _crowds),
)
"""Those that the crowd gate's issue names."""
