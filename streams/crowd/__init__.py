"""The crowd gate: what many people did, counted so that nobody can be found in it. Reading order:

    rule      what a policy says about one crowd purpose, compiled
    sealed    what is kept and sent, encrypted
    window    one open window of one partition
    counts    stage one: what the people of one partition add to the cells of open windows, each within their bounds
    release   which cells of a window may be told: the threshold, and the guard against subtraction
    noise     the same with differential privacy
    rounds    stage two: when a window closes, and that it is released once

Everything here is a pure fold over records: bytes and times in, values out. `streams/kafka/agents.py` puts stage one
into the transaction of the event lane, and runs stage two as a lane of its own.
"""

from collections.abc import Mapping

from streams.crowd.noise import noisy
from streams.crowd.release import Released
from streams.crowd.release import release as exact
from streams.crowd.rule import CrowdRule
from streams.crowd.window import Cell, Part

__all__ = ["told_of"]


def told_of(rule: CrowdRule, cells: Mapping[Cell, Part] | None) -> Released | None:
    """Return what may be told of one window: exact, or with noise. Call it once a window; noise has a price each time.

    None for a window that was dropped, of which nothing is told.

    >>> told_of(CrowdRule("stock", 5, window=100, late=0, by=("country",)), {b'["UK"]': Part(7, 9, [])})
    Released(cells={b'["UK"]': Part(people=7, events=9, sums=[])}, suppressed_at_least=0)

    Raises:
        SettingsError: there is noise, and OpenDP is not installed.
    """
    if cells is None:
        return None
    released = exact(rule, cells) if rule.noise is None else noisy(rule, cells)
    if rule.top is None:
        return released
    largest = sorted(released.cells, key=lambda cell: (-released.cells[cell].people, cell))[: rule.top]
    return released._replace(cells={cell: released.cells[cell] for cell in sorted(largest)})
