"""The laws of what is told: see the docstring of `streams.crowd.release`."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from streams.crowd import told_of
from streams.crowd.release import guarded, merged, release
from streams.crowd.rounds import Partial, Rounds, partials
from streams.crowd.rule import CrowdRule
from streams.crowd.window import Cell, Part
from streams.keys import MasterKey
from tests.crowd import model
from tests.crowd.deployment import cell_of
from tests.strategies import Draw

K = 5
scalars = st.one_of(
    st.sampled_from([True, 1, 1.0, "1", False, 0, 0.0, -0.0, "0", None, "null", "", "a", "b", "c"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    st.sampled_from(['","', "[]", '"', "\\", "\n", "\u2028", "\x00", "é", "é", "😀", '\\"', "],["]),
)
sizes = st.one_of(st.integers(1, 2 * K), st.sampled_from([1, K - 1, K, K + 1, 1000]))


@st.composite
def windows(draw: Draw, fields: int) -> dict[Cell, int]:
    """Draw people by cell, from few values of each field, so that cells share lines."""
    values = [draw(st.lists(scalars, min_size=1, max_size=4, unique_by=json.dumps)) for _ in range(fields)]
    cells = st.builds(cell_of, *map(st.sampled_from, values))
    return draw(st.dictionaries(cells, sizes, max_size=24))


def of_any_fields() -> st.SearchStrategy[tuple[int, dict[Cell, int]]]:
    return st.integers(1, 3).flatmap(lambda fields: st.tuples(st.just(fields), windows(fields)))


def rule(fields: int, k: int = K) -> CrowdRule:
    return CrowdRule("stock", k, window=100, late=0, by=tuple(f"field{number}" for number in range(fields)))


def parts(people: Mapping[Cell, int]) -> dict[Cell, Part]:
    return {cell: Part(count, 2 * count, []) for cell, count in people.items()}


@given(of_any_fields(), st.integers(5, 12))
def test_no_cell_below_k_is_told_and_what_is_told_is_told_unchanged(of: tuple[int, dict[Cell, int]], k: int) -> None:
    fields, people = of
    cells = release(rule(fields, k), parts(people)).cells
    assert cells.keys() <= model.threshold(people, k)
    assert cells == {cell: part for cell, part in parts(people).items() if cell in cells}


@settings(max_examples=300)
@given(of_any_fields())
def test_along_every_line_nothing_is_missing_or_enough_is_or_all_is(of: tuple[int, dict[Cell, int]]) -> None:
    fields, people = of
    told = release(rule(fields), parts(people)).cells
    event(f"{fields} fields, {'all' if len(told) == len(people) else 'some' if told else 'nothing'} told")
    assert not model.unguarded(people, told, K, people, fields)


@given(of_any_fields())
def test_the_guard_takes_nothing_where_the_threshold_took_nothing(of: tuple[int, dict[Cell, int]]) -> None:
    fields, people = of
    many = {cell: count + K for cell, count in people.items()}
    assert release(rule(fields), parts(many)) == (parts(many), 0)


@settings(max_examples=300)
@given(windows(1))
@example({cell_of("a"): 90, cell_of("b"): 7, cell_of("c"): 6, cell_of("d"): 1})
@example({cell_of("a"): 4, cell_of("b"): 5})
@example({cell_of("a"): 5, cell_of("b"): 5, cell_of("c"): 4})
@example({cell_of("a"): 2, cell_of("b"): 2, cell_of("c"): 9, cell_of("d"): 9})
def test_cells_of_one_field_are_those_that_the_reference_tells(people: dict[Cell, int]) -> None:
    assert set(release(rule(1), parts(people)).cells) == model.guarded_on_one_line(people, K)


@given(of_any_fields(), st.randoms(use_true_random=False))
def test_the_order_of_cells_does_not_matter(of: tuple[int, dict[Cell, int]], random: Any) -> None:
    fields, people = of
    order = list(people)
    random.shuffle(order)
    shuffled = {cell: people[cell] for cell in order}
    one, other = release(rule(fields), parts(people)), release(rule(fields), parts(shuffled))
    assert (one, list(one.cells)) == (other, list(other.cells))


@given(of_any_fields())
def test_to_guard_again_takes_nothing_more(of: tuple[int, dict[Cell, int]]) -> None:
    fields, people = of
    told = set(release(rule(fields), parts(people)).cells)
    assert guarded(rule(fields), {cell: count if cell in told else 1 for cell, count in people.items()}) <= told


@given(of_any_fields())
def test_what_is_said_of_missing_cells_is_a_multiple_of_k_and_never_too_much(of: tuple[int, dict[Cell, int]]) -> None:
    fields, people = of
    said = release(rule(fields), parts(people))
    missing = len(people) - len(said.cells)
    assert said.suppressed_at_least % K == 0
    assert missing - K < said.suppressed_at_least <= missing


@given(of_any_fields(), st.integers(1, 20))
def test_of_the_cells_that_may_be_told_only_the_largest_are(of: tuple[int, dict[Cell, int]], top: int) -> None:
    fields, people = of
    may = release(rule(fields), parts(people))
    said = told_of(replace(rule(fields), top=top), parts(people))
    assert said is not None
    assert said.cells == {cell: part for cell, part in may.cells.items() if cell in said.cells}
    assert len(said.cells) == min(top, len(may.cells))
    assert list(said.cells) == sorted(said.cells)
    left = [people[cell] for cell in may.cells if cell not in said.cells]
    assert all(part.people >= max(left, default=0) for part in said.cells.values())
    assert said.suppressed_at_least == may.suppressed_at_least


def test_true_and_one_and_one_point_zero_and_its_text_are_different_cells() -> None:
    people = {cell_of(value): count for value, count in ((True, 10), (1, 20), (1.0, 30), ("1", 40))}
    assert len(people) == 4
    cells = release(rule(1), parts(people)).cells
    assert {cell: part.people for cell, part in cells.items()} == people


@pytest.mark.parametrize(("one", "other"), list(permutations((True, 1, 1.0, "1"), 2)))
def test_true_and_one_and_one_point_zero_and_its_text_share_no_line(one: bool | float | str, other: Any) -> None:
    # What is alone in its row with a small cell goes. If `other` were in that row too, it would go instead.
    small, alone, elsewhere = cell_of(one, "x"), cell_of(one, "y"), cell_of(other, "y")
    people = {small: 4, alone: 90, elsewhere: 50, cell_of("another", "y"): 60}
    assert alone not in release(rule(2), parts(people)).cells


@given(of_any_fields(), st.data())
def test_cells_come_through_partials_and_state_as_they_are(
    of: tuple[int, dict[Cell, int]], data: st.DataObject
) -> None:
    fields, people = of
    halves = [data.draw(st.integers(0, count)) for count in people.values()]
    mine = {cell: Part(half, half, []) for (cell, _), half in zip(people.items(), halves, strict=True) if half}
    rest = {
        cell: Part(count - half, count - half, [])
        for (cell, count), half in zip(people.items(), halves, strict=True)
        if count > half
    }
    before = deepcopy([mine, rest])
    assert merged(iter([mine, rest])) == {cell: Part(count, count, []) for cell, count in people.items()}
    assert [mine, rest] == before
    counted = rule(fields)
    rounds = Rounds([counted], 1, MasterKey(bytes(32)))
    rounds.restore(
        iter([(b"asked stock", b"0"), (b"progress 0", b'{"type":"progress","partition":0,"watermark":100}')])
    )
    written = [msgspec.json.encode(one) for one in partials(counted, 0, 0, [(0, mine), (0, rest)])]
    over = [closed for one in written for closed in rounds.partial(msgspec.json.decode(one, type=Partial))]
    assert [closed.cells for closed in over] == ([merged(iter([mine, rest]))] if people else [])
