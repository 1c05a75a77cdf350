"""What a window with noise looks like, and which rules there is no noise for."""

import math
from dataclasses import replace

import pytest

from streams.crowd.noise import Mechanism, noisy
from streams.crowd.release import Released
from streams.crowd.rule import UNIT, CrowdRule, Noise, Sum
from streams.crowd.window import Cell, Part

pytest.importorskip("opendp", reason="OpenDP is not installed: pip install 'celosia[noise]'")

RULE = CrowdRule(
    "stock", 5, 100, 0, ("country",), (Sum("quantity", 0, 10 * UNIT),), most_events=3, noise=Noise(1.0, 1e-6, 1.0)
)


def _window(part: Part, cells: int = 2_000) -> dict[Cell, Part]:
    return {b'["\xc3\xa9","%d"]' % number: part for number in range(cells)}


def test_the_noise_has_no_bias_and_is_no_wider_than_it_must_be() -> None:
    exact = Part(1000, 2500, [4000 * UNIT])
    cells = _window(exact)
    told = noisy(RULE, cells).cells
    assert told.keys() == cells.keys()
    # Sensitivity over share: 1 / (1/2), 3 / (1/4) and 10 / (1/4).
    for scale, off in [
        (2, [one.people - exact.people for one in told.values()]),
        (12, [one.events - exact.events for one in told.values()]),
        (40 * UNIT, [one.sums[0] - exact.sums[0] for one in told.values()]),
    ]:
        # Seven standard errors: wrong once in 10^11 runs.
        assert abs(sum(off)) < 7 * math.sqrt(2 * len(off)) * scale
        assert sum(map(abs, off)) / len(off) == pytest.approx(scale, rel=7 / math.sqrt(len(off)) + 0.05)


def test_numbers_are_exact_integers() -> None:
    for part in noisy(RULE, _window(Part(1000, 2500, [4000 * UNIT]), 50)).cells.values():
        assert [type(number) for number in (part.people, part.events, *part.sums)] == [int, int, int]


def test_no_cell_is_told_below_k_even_if_delta_would_allow_it() -> None:
    rule = replace(RULE, k=1000, noise=Noise(0.1, 1e-3, 1.0))
    told = noisy(rule, _window(Part(990, 2500, [0]))).cells
    assert len(told) < 2000
    assert min(part.people for part in told.values()) == 1000


def test_nobody_is_told_to_have_no_event() -> None:
    told = noisy(replace(RULE, noise=Noise(0.05, 1e-3, 1.0)), _window(Part(1000, 1000, [0]))).cells.values()
    assert all(part.events >= part.people for part in told)
    assert any(part.events > part.people for part in told)


def test_events_are_people_where_one_counts() -> None:
    told = noisy(replace(RULE, most_events=1), _window(Part(1000, 1000, [0]))).cells.values()
    assert all(part.events == part.people for part in told)


def test_nothing_is_said_about_cells_that_are_not_told() -> None:
    assert noisy(RULE, {}) == Released({}, 0)
    # A cell of two is told with little more than delta.
    rule = replace(RULE, noise=Noise(1.0, 1e-11, 1.0))
    assert noisy(rule, _window(Part(2, 2, [0]), 3)) == Released({}, 0)


def test_cells_come_in_the_order_of_their_bytes() -> None:
    told = list(noisy(RULE, _window(Part(1000, 1000, [0]))).cells)
    assert told == sorted(told)


def test_the_widest_range_of_a_sum_is_told_in_steps_and_overflows_nothing() -> None:
    widest = 10**12 * UNIT
    rule = replace(RULE, sums=(Sum("price", -widest, widest),), noise=Noise(20.0, 1e-6, 20.0))
    people = 10**9
    told = noisy(rule, _window(Part(people, people, [widest * people]), 100)).cells.values()
    assert all(part.sums[0] % 10**9 == 0 for part in told)
    # The scale is a fifth of one person's part.
    assert all(abs(part.sums[0] - widest * people) < 20 * widest for part in told)
    assert len({part.sums[0] for part in told}) > 90


def test_a_rule_may_be_as_loose_and_as_strict_as_a_policy_can_make_it() -> None:
    for rule in (
        replace(RULE, most_per_person=1000, most_events=10**12, sums=(Sum("price", -(10**18), 10**18),) * 8),
        replace(RULE, noise=Noise(20.0, 1e-3, 20.0)),
        replace(RULE, noise=Noise(0.001, 1e-9, 20.0)),
    ):
        assert noisy(rule, _window(Part(2, 2, [0] * 8), 3)) == Released({}, 0)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (replace(RULE, noise=None), "no noise"),
        (replace(RULE, most_events=None), "most_events"),
        (replace(RULE, noise=Noise(1.0, 0.0, 1.0)), "is declared"),
        (replace(RULE, noise=Noise(1.0, 1e-300, 1.0)), "is declared"),
        (replace(RULE, noise=Noise(1e-15, 1e-6, 1.0)), "is declared"),
        (replace(RULE, noise=Noise(0.0, 1e-6, 1.0)), "OpenDP makes no noise"),
        (replace(RULE, noise=Noise(-1.0, 1e-6, 1.0)), "OpenDP makes no noise"),
        (replace(RULE, noise=Noise(math.nan, 1e-6, 1.0)), "OpenDP makes no noise"),
        (replace(RULE, noise=Noise(1.0, math.nan, 1.0)), "is declared"),
        (replace(RULE, noise=Noise(1e-320, 1e-6, 1.0)), "OpenDP makes no noise"),
    ],
)
def test_a_rule_that_there_is_no_noise_for_is_refused(rule: CrowdRule, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Mechanism(rule)
