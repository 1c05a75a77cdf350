"""Is a window as private as declared? Neighbouring windows are told many times, and what is told is compared.

Each cell has noise of its own, so many cells of one call are as many trials. A mechanism with half the noise is given
to the same test, which must find it: otherwise the test would show nothing.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from operator import add
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.crowd.noise import Mechanism
from streams.crowd.rule import CrowdRule, Noise, Sum
from streams.crowd.window import Cell, Part
from tests.crowd_noise.bounds import breaks, least

pytest.importorskip("opendp", reason="OpenDP is not installed: pip install 'celosia[noise]'")

TRIALS = 30_000
AT_ONCE = 10_000
Group = list[Part]
"""The cells of one trial."""
Told = list[Part | None]

PEOPLE = CrowdRule("stock", 5, 100, 0, ("country",), most_events=1, noise=Noise(1.0, 1e-6, 1.0))
ALL = replace(PEOPLE, most_events=3, sums=(Sum("quantity", -10_000_000, 4_000_000), Sum("price", 0, 7 * 10**15)))


class Neighbours(NamedTuple):
    """Two windows that differ by one person, the worst one, and what is likelier told of the one with the person."""

    rule: CrowdRule
    without: Callable[[Mechanism], Group]
    person: Part
    likely: Callable[[Group, Told], bool]


def _many(cells: int, sums: list[int]) -> Callable[[Mechanism], Group]:
    return lambda mechanism: [Part(1000, 9000, sums) for _ in range(cells)]


def _as_with(rule: CrowdRule, person: Part) -> Callable[[Group, Told], bool]:
    """Tell whether each number of each cell lies where the person takes it, or beyond."""

    def beyond(told: int, exact: int, more: int) -> bool:
        return told >= exact + more if more > 0 else told <= exact + more

    def likely(group: Group, told: Told) -> bool:
        return all(
            one is not None
            and beyond(one.people, exact.people, 1)
            and (rule.most_events == 1 or beyond(one.events, exact.events, person.events))
            and all(map(beyond, one.sums, exact.sums, person.sums))
            for exact, one in zip(group, told, strict=True)
        )

    return likely


def _case(rule: CrowdRule, sums: list[int], person: Part) -> Neighbours:
    return Neighbours(rule, _many(rule.most_per_person, sums), person, _as_with(rule, person))


CASES = {
    "people": _case(PEOPLE, [], Part(1, 1, [])),
    "people of three cells": _case(replace(PEOPLE, most_per_person=3), [], Part(1, 1, [])),
    "everything": _case(ALL, [0, 10**19], Part(1, 3, [-10_000_000, 7 * 10**15])),
    "a sum of two cells": _case(
        replace(ALL, most_events=1, most_per_person=2, sums=ALL.sums[:1]), [0], Part(1, 1, [-10_000_000])
    ),
    "a cell at the threshold": Neighbours(
        PEOPLE,
        lambda mechanism: [Part(mechanism.threshold - 1, 0, [])],
        Part(1, 1, []),
        lambda group, told: None not in told,
    ),
}


def _plus(group: Group, person: Part) -> Group:
    return [
        Part(one.people + person.people, one.events + person.events, list(map(add, one.sums, person.sums)))
        for one in group
    ]


def _hits(mechanism: Mechanism, group: Group, event: Callable[[Told], bool], trials: int = TRIALS) -> int:
    hits = 0
    for first in range(0, trials, AT_ONCE):
        names = [
            [b"[%d,%d]" % (trial, cell) for cell in range(len(group))]
            for trial in range(first, min(first + AT_ONCE, trials))
        ]
        window: dict[Cell, Part] = {name: part for some in names for name, part in zip(some, group, strict=True)}
        told = mechanism.release(window).cells
        hits += sum(event([told.get(name) for name in some]) for some in names)
    return hits


def _broken(case: Neighbours, mechanism: Mechanism) -> bool:
    group, noise = case.without(mechanism), case.rule.noise
    assert noise is not None
    likely = _hits(mechanism, _plus(group, case.person), lambda told: case.likely(group, told))
    unlikely = _hits(mechanism, group, lambda told: case.likely(group, told))
    return breaks(noise.epsilon, noise.delta, likely, unlikely, TRIALS)


@pytest.mark.parametrize("name", CASES)
def test_one_person_changes_no_chance_by_more_than_epsilon(name: str) -> None:
    assert not _broken(CASES[name], Mechanism(CASES[name].rule))


@pytest.mark.parametrize("name", CASES)
def test_half_the_noise_would_be_found(name: str) -> None:
    case = CASES[name]
    assert case.rule.noise is not None
    half = Mechanism(replace(case.rule, noise=replace(case.rule.noise, epsilon=2 * case.rule.noise.epsilon)))
    assert _broken(case, half)


ALONE = {
    "one cell": replace(PEOPLE, noise=Noise(2.0, 3e-4, 2.0)),
    "three cells": replace(PEOPLE, most_per_person=3, noise=Noise(6.0, 9e-4, 6.0)),
}


def _told_alone(rule: CrowdRule, mechanism: Mechanism) -> float:
    trials = 60_000
    group = [Part(1, 1, []) for _ in range(rule.most_per_person)]
    return least(_hits(mechanism, group, lambda told: any(one is not None for one in told), trials), trials)


@pytest.mark.parametrize("name", ALONE)
def test_a_cell_of_one_person_is_told_at_most_with_probability_delta(name: str) -> None:
    noise = ALONE[name].noise
    assert noise is not None
    assert _told_alone(ALONE[name], Mechanism(ALONE[name])) <= noise.delta


@pytest.mark.parametrize("name", ALONE)
def test_a_threshold_that_is_lower_by_one_would_be_found(name: str) -> None:
    # As OpenDP 0.16 would have it, whose delta leaves out the threshold itself: opendp #2922.
    noise, mechanism = ALONE[name].noise, Mechanism(ALONE[name])
    assert noise is not None
    mechanism.threshold -= 1
    assert _told_alone(ALONE[name], mechanism) > noise.delta


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.01, 20),
    st.floats(1e-10, 1e-3),
    st.integers(1, 50),
    st.integers(5, 200),
    st.integers(1, 3),
    st.booleans(),
)
def test_the_threshold_is_the_least_that_delta_and_k_allow(
    epsilon: float, delta: float, cells: int, k: int, most_events: int, sums: bool
) -> None:
    rule = replace(PEOPLE, k=k, most_per_person=cells, most_events=most_events, noise=Noise(epsilon, delta, epsilon))
    mechanism = Mechanism(replace(rule, sums=ALL.sums) if sums else rule)
    # Discrete Laplace noise, whose distribution is known: worked out without OpenDP.
    rate = epsilon * (0.5 if sums or most_events > 1 else 1) / cells

    def alone(threshold: int) -> float:
        told = math.exp(-rate * (threshold - 1)) / (1 + math.exp(-rate))
        return -math.expm1(cells * math.log1p(-told))

    assert mechanism.threshold >= k
    assert alone(mechanism.threshold) <= delta * (1 + 1e-6)
    assert mechanism.threshold == k or alone(mechanism.threshold - 1) > delta * (1 - 1e-3)
    assert mechanism.loss[0] <= epsilon
    assert mechanism.loss[0] == pytest.approx(epsilon)
    assert mechanism.loss[1] <= delta
