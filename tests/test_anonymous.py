"""The rival in `tests/bench/anonymous.py` is a fair one: its groups hold what k-anonymity says, within the delay."""

from itertools import product

import pytest

from streams.crowd.rule import UNIT
from streams.crowd.window import Part
from tests.bench.anonymous import HOUR, crowds, possible
from tests.bench.castle import Group, Purchase, Stream, keys, range_of, ranges_of

K = 5
DAY = 24 * HOUR
UK, FRANCE, JAPAN = "United Kingdom", "France", "Japan"
LAMP, LAMP_TOO, TRAY, BAG = "22001", "22002", "22950", "85099B"


def _stream() -> list[Purchase]:
    """Return two days: lamps that many buy, a bag that one person buys six times, some abroad; one comes too late."""
    said = [
        *((f"u{number}", UK, LAMP, 0, 1) for number in range(6)),
        *(("alone", UK, BAG, 1, 30) for _ in range(6)),
        *((f"t{number}", UK, TRAY, 2 + number, number + 1) for number in range(4)),
        ("f", FRANCE, LAMP_TOO, 7, 3),
        ("j", JAPAN, LAMP, 8, 60),
        *((f"u{number}", UK, LAMP_TOO, 26 + number // 3, 7) for number in range(6)),
        ("late", UK, LAMP, 200, 1),
    ]
    return [
        Purchase(number, person, country, code, f"2010-12-{1 + at // 24:02}T{at % 24:02}", at * HOUR, quantity, 1.5)
        for number, (person, country, code, at, quantity) in enumerate(said)
    ]


def _groups(delay: int, large: bool = False, diverse: bool = False) -> list[Group]:
    stream = Stream(K, delay, large, diverse)
    return [group for one in _stream() for group in stream.add(one)] + list(stream.due(float("inf")))


@pytest.mark.parametrize(("hours", "large", "diverse"), list(product((1, 6, 24, 72), (False, True), (False, True))))
def test_a_group_has_k_distinct_people_under_one_key_within_the_delay(hours: int, large: bool, diverse: bool) -> None:
    groups = _groups(hours * HOUR, large, diverse)
    assert sorted(one for group in groups for one in group.members) == _stream(), "each record leaves once"
    for group in groups:
        assert all(0 <= group.at - one.at <= hours * HOUR for one in group.members)
        if group.key is None:
            assert len(group.members) == 1
            continue
        assert len({one.person for one in group.members}) >= K
        assert all(group.key in keys(one) for one in group.members)
        assert not diverse or len(ranges_of(group.members)) > 1


def test_who_is_many_at_the_same_thing_is_told_in_full_and_who_is_alone_is_not() -> None:
    groups = {one.number: group.key for group in _groups(HOUR) for one in group.members}
    assert groups[0] == (UK, LAMP, "2010-12-01T00")
    assert {groups[number] for number in range(6, 12)} == {None}, "six purchases of one person are one person"
    merged = {one.number: group.key for group in _groups(3 * DAY) for one in group.members}
    assert merged[6] is not None
    assert merged[6][1] != BAG


def test_without_company_to_the_end_a_record_is_suppressed() -> None:
    last = _groups(DAY)[-1]
    assert (last.key, [one.person for one in last.members]) == (None, ["late"])


def test_large_groups_are_no_smaller() -> None:
    assert _groups(HOUR)[0].people == K
    assert _groups(HOUR, large=True)[0].people == 6


def test_a_crowd_names_what_k_people_bought_and_leaves_the_true_range_possible() -> None:
    found, held, _ = crowds(_stream(), K, DAY, ("product",))
    assert held == 13
    for one, what in zip(_stream(), found, strict=True):
        assert not what.ranges or range_of(one.quantity) in what.ranges
        # On the first day the guard suppresses the lamp as well: it hides what few people bought.
        assert what.named == (one.product == LAMP_TOO and one.at >= DAY)


@pytest.mark.parametrize(
    ("total", "events", "times", "ranges"),
    [
        (5, 5, 1, {0}),
        (6, 5, 1, {0, 1}),
        (8, 8, 1, {0}),
        (240, 5, 1, {4}),
        (239, 5, 1, {3, 4}),
        (60, 5, 1, set(range(5))),
    ],
)
def test_what_a_sum_leaves_possible(total: int, events: int, times: int, ranges: set[int]) -> None:
    assert possible(Part(5, events, [total * UNIT]), times) == ranges
