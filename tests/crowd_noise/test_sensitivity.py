"""By how much one person changes a window: what the noise is made for, measured on what `Counts` counts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.crowd.counts import Counts
from streams.crowd.noise import Statistic, statistics
from streams.crowd.rounds import Closed, Closing, Progress, Rounds, partials
from streams.crowd.rule import CrowdRule, Noise, Sum
from streams.crowd.window import Cell, Part
from streams.keys import MasterKey

RULE = CrowdRule("stock", 5, 100, 0, ("country",), most_events=2, noise=Noise(1.0, 1e-6, 1.0))
CELLS = [b'["%d"]' % number for number in range(6)]


class Event(NamedTuple):
    """One event of a person."""

    person: bytes
    cell: Cell
    sums: list[int]
    recorded: int


amounts = st.integers(-(10**20), 10**20) | st.integers(-20, 20)
ranges = st.tuples(amounts, amounts).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: sorted(pair))
rules = st.builds(
    lambda cells, events, most_cells, sums: replace(
        RULE,
        most_per_person=cells,
        most_events=events,
        most_cells=most_cells,
        sums=tuple(Sum("price", low, high) for low, high in sums),
    ),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([1, 2, 10_000]),
    st.lists(ranges, max_size=2),
)


def _events(people: list[bytes]) -> st.SearchStrategy[list[Event]]:
    sums = st.lists(amounts, min_size=2, max_size=2)
    event = st.builds(Event, st.sampled_from(people), st.sampled_from(CELLS), sums, st.integers(0, 99))
    return st.lists(event, max_size=15)


def _window(rule: CrowdRule, events: list[Event]) -> Mapping[Cell, Part]:
    counts = Counts([rule], MasterKey(bytes(32)))
    for event in events:
        counts.add("stock", event.person, event.cell, event.sums[: len(rule.sums)], event.recorded)
    parts = dict(counts.close("stock", 0, lambda subject, earliest: True)).get(0, {})
    assert parts is not None, "a window with noise was full"
    return parts


def _changes(rule: CrowdRule, one: Statistic, window: Mapping[Cell, Part], other: Mapping[Cell, Part]) -> list[int]:
    nobody = Part(0, 0, [0] * len(rule.sums))
    return [abs(one.steps(window.get(cell, nobody)) - one.steps(other.get(cell, nobody))) for cell in CELLS]


def _woven(others: list[Event], mine: list[Event], places: list[int]) -> list[Event]:
    woven = list(others)
    for place, event in zip(places, mine, strict=False):
        woven.insert(place % (len(woven) + 1), event)
    return woven


places = st.lists(st.integers(0, 30), min_size=15, max_size=15)


@given(rules, _events([b"ben", b"cem", b"dag"]), _events([b"ana"]), places)
def test_one_person_more_changes_each_statistic_by_at_most_what_is_declared(
    rule: CrowdRule, others: list[Event], mine: list[Event], places: list[int]
) -> None:
    without, with_ = _window(rule, others), _window(rule, _woven(others, mine, places))
    for one in statistics(rule):
        changes = _changes(rule, one, without, with_)
        assert max(changes) <= one.most
        assert sum(change > 0 for change in changes) <= rule.most_per_person
    assert len(with_.keys() ^ without.keys()) <= rule.most_per_person


@given(rules, _events([b"ben", b"cem"]), _events([b"ana"]), _events([b"ana"]), places)
def test_another_person_in_ones_place_changes_at_most_twice_as_much(
    rule: CrowdRule, others: list[Event], mine: list[Event], instead: list[Event], places: list[int]
) -> None:
    before, after = (_window(rule, _woven(others, some, places)) for some in (mine, instead))
    for one in statistics(rule):
        assert sum(_changes(rule, one, before, after)) <= 2 * one.most * rule.most_per_person


@pytest.mark.parametrize("bounds", [(-20, 10), (-5, 20), (0, 10**18), (-(10**18) - 1, 5), (1, 2)])
def test_the_worst_person_changes_as_much_as_is_declared(bounds: tuple[int, int]) -> None:
    rule = replace(RULE, most_per_person=3, most_events=4, sums=(Sum("price", *bounds),))
    furthest = max(bounds, key=abs)
    mine = [Event(b"ana", cell, [furthest], 0) for cell in CELLS for _ in range(9)]
    for one in statistics(rule):
        changes = _changes(rule, one, {}, _window(rule, mine))
        # Of a sum that is told in steps, one step can be lost by rounding.
        assert sum(changes) >= rule.most_per_person * (one.most - (one.step > 1))


def test_what_a_person_changes_is_declared_with_the_step_that_rounding_can_add() -> None:
    rule = replace(RULE, sums=(Sum("price", 0, 10**9 + 1),))
    ben, ana = Event(b"ben", CELLS[0], [1], 0), Event(b"ana", CELLS[0], [10**9 + 1], 0)
    *_, price = statistics(rule)
    # In steps of two, one is nothing yet, and 10^9 + 2 are half as many.
    assert price.step == 2
    assert max(_changes(rule, price, _window(rule, [ben]), _window(rule, [ben, ana]))) == price.most == 5 * 10**8 + 1


def test_the_shares_of_the_statistics_come_to_epsilon() -> None:
    for rule in (RULE, replace(RULE, most_events=1), replace(RULE, sums=(Sum("a", 0, 1), Sum("b", 0, 9)))):
        shares = [one.epsilon for one in statistics(rule)]
        assert 1 - 1e-6 < sum(shares) < 1
        assert shares[0] == pytest.approx(1 if len(shares) == 1 else 0.5)
        assert len(set(shares[1:])) <= 1


def test_one_person_keeps_no_cell_of_others_out() -> None:
    rule = replace(RULE, most_cells=1)
    others = [Event(b"%d" % number, CELLS[1], [], 0) for number in range(50)]
    without, with_ = _window(rule, others), _window(rule, [Event(b"ana", CELLS[0], [], 0), *others])
    (people, *_) = statistics(rule)
    assert max(_changes(rule, people, without, with_)) <= people.most


def test_one_person_keeps_no_cell_of_others_out_when_partitions_come_together() -> None:
    rule, key = replace(RULE, most_cells=1), MasterKey(bytes(32))
    ana, others = {CELLS[0]: Part(1, 1, [])}, {CELLS[1]: Part(50, 50, [])}
    rounds = Rounds([rule], 2, key)
    closings = [closing for partition in (0, 1) for closing in rounds.progress(Progress(partition, 100))]
    assert closings == [Closing("stock", 0)]
    records = [record for one, cells in enumerate((ana, others)) for record in partials(rule, one, 0, [(0, cells)])]
    assert [closed for record in records for closed in rounds.partial(record)] == [Closed(0, ana | others)]
