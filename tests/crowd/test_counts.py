"""The laws of stage one: however it is interleaved and restarted, it counts what the slow reference counts."""

import math
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams.crowd.counts import Added, Counts
from streams.crowd.rounds import partials
from streams.crowd.rule import MOST_BYTES, UNIT, CrowdRule, Sum, fixed
from streams.crowd.window import Cell, Part
from streams.keys import MasterKey
from tests.crowd import model
from tests.crowd.deployment import MASTER, cell_of
from tests.crowd.logs import Log, compacted
from tests.strategies import Draw

PEOPLE = ["ana.of.the.canaries", "ben.of.the.canaries", "zoë.of.the.canaries", "7777777777777", "dan.of.the.canaries"]
PLACES = ["canary.islands", "canary.wharf", "canary.row", "canary.brook"]
CELLS = [cell_of(place) for place in PLACES]
WINDOW = 100
times = st.one_of(st.integers(0, 2 * WINDOW), st.integers(-WINDOW, 5 * WINDOW))
amounts = st.one_of(st.integers(-30, 30), st.sampled_from([0, 2**63 - 1, -(2**63)]))


@st.composite
def rules(draw: Draw, purpose: str = "stock") -> CrowdRule:
    """Draw a rule whose bounds are near enough to be met."""
    ranges = draw(st.lists(st.tuples(st.integers(-20, 5), st.integers(6, 20)), max_size=2))
    return CrowdRule(
        purpose,
        5,
        window=draw(st.sampled_from([WINDOW, WINDOW // 3])),
        late=0,
        by=("place",),
        sums=tuple(Sum(f"field{number}", low, high) for number, (low, high) in enumerate(ranges)),
        most_per_person=draw(st.integers(1, 3)),
        most_events=draw(st.none() | st.integers(1, 3)),
        most_cells=draw(st.integers(1, 5)),
    )


def everybody(subject: bytes, earliest: int) -> bool:
    return True


def one_rule(**changed: Any) -> CrowdRule:
    return CrowdRule("stock", 5, **{"window": WINDOW, "late": 0, "by": ("place",), **changed})


class OnePartition(RuleBasedStateMachine):
    """A partition with two purposes against the reference. What is committed survives; everything else may be lost."""

    @initialize(one=rules("stock"), other=rules("trend-2"))
    def it_begins(self, one: CrowdRule, other: CrowdRule) -> None:
        self.of = {"stock": one, "trend-2": other}
        self.counts = Counts(self.of.values(), MASTER)
        self.models = {name: model.Partition(rule) for name, rule in self.of.items()}
        self.since = dict.fromkeys(PEOPLE, -WINDOW)
        self.log: Log = []
        self.committed = {name: one.copy() for name, one in self.models.items()}

    def commit(self) -> None:
        self.log += self.counts.take_changes()
        self.committed = {name: one.copy() for name, one in self.models.items()}

    @rule(
        purpose=st.sampled_from(["stock", "trend-2"]),
        person=st.sampled_from(PEOPLE),
        cell=st.sampled_from(CELLS),
        recorded=times,
        data=st.data(),
    )
    def somebody_does_something(
        self, purpose: str, person: str, cell: Cell, recorded: int, data: st.DataObject
    ) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            sums = [data.draw(amounts) for _ in self.of[purpose].sums]
            added = self.counts.add(purpose, person.encode(), cell, list(sums), recorded)
            assert added == self.models[purpose].add(model.Event(person, cell, sums, recorded))

    @rule(person=st.sampled_from(PEOPLE))
    def somebody_withdraws(self, person: str) -> None:
        self.since.pop(person, None)

    @rule(person=st.sampled_from(PEOPLE), since=times)
    def somebody_allows_it_from_now_on(self, person: str, since: int) -> None:
        self.since[person] = since

    @rule(purpose=st.sampled_from(["stock", "trend-2"]), through=times, commit_before=st.booleans())
    def windows_are_closed(self, purpose: str, through: int, commit_before: bool) -> None:
        closed = self.models[purpose].closed
        through = self.of[purpose].window_of(through)
        through = through if closed is None else max(through, closed)
        if commit_before:
            self.commit()
        self.log += self.counts.done(purpose, through)
        over = self.counts.close(purpose, through, self.allows)
        expected = self.models[purpose].close(through, self.since)
        assert over == [
            (start, None if cells is None else {cell: Part(*told) for cell, told in cells.items()})
            for start, cells in expected
        ]
        self.commit()

    def allows(self, subject: bytes, earliest: int) -> bool:
        return self.since.get(subject.decode(), earliest + 1) <= earliest

    @rule()
    def a_batch_is_committed(self) -> None:
        self.commit()

    @rule(data=st.data())
    def it_is_restarted(self, data: st.DataObject) -> None:
        self.models = {name: one.copy() for name, one in self.committed.items()}
        self.counts = Counts(self.of.values(), MASTER)
        self.counts.restore(self.log)

    @precondition(lambda self: self.log)
    @rule(data=st.data(), tombstones=st.booleans())
    def the_topic_is_compacted(self, data: st.DataObject, tombstones: bool) -> None:
        self.log = compacted(self.log, data.draw(st.integers(0, len(self.log))), tombstones)

    @invariant()
    def the_same_windows_are_open(self) -> None:
        for name, one in self.models.items():
            assert self.counts.open(name) == one.open()

    @invariant()
    def the_log_names_nobody_and_nothing(self) -> None:
        written = b"".join(key + (value or b"") for key, value in self.log)
        assert not any(secret.encode() in written for secret in PEOPLE + PLACES)


TestOnePartition = OnePartition.TestCase
TestOnePartition.settings = settings(stateful_step_count=40, max_examples=100)


# --- what is kept is whole, ours, and unreadable ----------------------------------------------------------------------


def a_log(people: list[str] = PEOPLE) -> Log:
    """Return the state of two batches in two windows."""
    counts = Counts([one_rule()], MASTER)
    for recorded in (1, WINDOW + 1):
        for person in people:
            counts.add("stock", person.encode(), CELLS[0], [], recorded)
    log = list(counts.take_changes())
    counts.add("stock", people[0].encode(), CELLS[0], [], 2)
    return log + list(counts.take_changes())


def test_the_state_of_another_installation_is_refused() -> None:
    counts = Counts([one_rule()], MasterKey(bytes(32)))
    with pytest.raises(ValueError, match="another key"):
        counts.restore(a_log())


def test_a_record_is_refused_under_the_key_of_another() -> None:
    (one, _), (_, other), *_ = a_log()
    with pytest.raises(ValueError, match="another key"):
        Counts([one_rule()], MASTER).restore([(one, other)])


@given(st.data())
def test_a_record_of_which_a_bit_has_changed_is_refused(data: st.DataObject) -> None:
    key, value = a_log()[0]
    assert value is not None
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    spoilt = bytes(byte ^ (1 << bit % 8 if place == bit // 8 else 0) for place, byte in enumerate(value))
    with pytest.raises(ValueError, match="another key"):
        Counts([one_rule()], MASTER).restore([(key, spoilt)])


def test_the_error_about_a_record_says_nothing_of_what_is_in_it() -> None:
    with pytest.raises(ValueError, match="another key") as caught:
        Counts([one_rule()], MasterKey(bytes(32))).restore(a_log())
    assert not any(secret in repr(caught.value) for secret in PEOPLE + PLACES)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("restarted", [False, True])
def test_nothing_of_a_closed_window_is_left_in_the_compacted_topic(restarted: bool) -> None:
    counts = Counts([one_rule()], MASTER)
    for recorded in (1, WINDOW + 1):
        counts.add("stock", b"ana", CELLS[0], [], recorded)
    log = list(counts.take_changes())
    if restarted:
        counts = Counts([one_rule()], MASTER)
        counts.restore(log)
    log += counts.done("stock", WINDOW)
    assert len(counts.close("stock", WINDOW, everybody)) == 2
    assert compacted(log, len(log), tombstones=True) == [(b"stock closed", b"%d" % (2 * WINDOW))]


def test_state_of_a_purpose_that_is_gone_does_no_harm() -> None:
    counts = Counts([CrowdRule("other", 5, window=WINDOW, late=0, by=("place",))], MASTER)
    counts.restore(a_log())
    assert counts.open("stock") == counts.open("other") == []


def test_what_was_closed_stays_closed_though_an_older_closing_comes_again() -> None:
    counts = Counts([one_rule()], MASTER)
    log: Log = []
    for through in (2 * WINDOW, WINDOW):
        log += counts.done("stock", through)
        assert not counts.close("stock", through, everybody)
    assert counts.add("stock", b"ana", CELLS[0], [], 2 * WINDOW) is Added.LATE
    after = Counts([one_rule()], MASTER)
    after.restore(log)
    assert after.add("stock", b"ana", CELLS[0], [], 2 * WINDOW) is Added.LATE


@pytest.mark.parametrize("number", [10**14, -(10**14), 10**30, 1e300, -1e300])
def test_any_finite_number_of_an_event_can_be_kept(number: float) -> None:
    counts = Counts([one_rule(sums=(Sum("price", 0, 10 * UNIT),))], MASTER)
    part = fixed(number)
    assert part is not None
    assert counts.add("stock", b"ana", CELLS[0], [part], 1) is Added.COUNTED
    log = list(counts.take_changes())
    after = Counts([one_rule(sums=(Sum("price", 0, 10 * UNIT),))], MASTER)
    after.restore(log)
    assert after.close("stock", 0, everybody) == [(0, {CELLS[0]: Part(1, 1, [10 * UNIT if number > 0 else 0])})]


def test_windows_that_are_open_when_a_policy_gets_another_sum_can_still_be_closed() -> None:
    counts = Counts([one_rule(sums=(Sum("quantity", 0, 10),))], MASTER)
    counts.add("stock", b"ana", CELLS[0], [3], 1)
    after = Counts([one_rule(sums=(Sum("quantity", 0, 10), Sum("price", 0, 10)))], MASTER)
    log = list(counts.take_changes())
    after.restore(log)
    log += after.done("stock", 0)
    assert after.close("stock", 0, everybody) == []
    assert compacted(log, len(log), tombstones=True) == [(b"stock closed", b"%d" % WINDOW)]


def test_a_time_that_was_told_is_not_told_again_when_a_policy_gets_shorter_windows() -> None:
    counts = Counts([one_rule(window=1000)], MASTER)
    log = list(counts.done("stock", 0))
    assert not counts.close("stock", 0, everybody)
    after = Counts([one_rule(window=100)], MASTER)
    after.restore(log)
    assert after.add("stock", b"ana", CELLS[0], [], 500) is Added.LATE


def test_what_is_counted_after_a_restart_stands_beside_what_was_counted_before() -> None:
    log: Log = []
    for number in range(3):
        counts = Counts([one_rule(most_per_person=3)], MASTER)
        counts.restore(log)
        counts.add("stock", b"ana", cell_of(number), [], 1)
        log = compacted([*log, *counts.take_changes()], len(log) + 1, tombstones=True)
    after = Counts([one_rule(most_per_person=3)], MASTER)
    after.restore(log)
    assert after.close("stock", 0, everybody) == [(0, {cell_of(number): Part(1, 1, []) for number in range(3)})]


@pytest.mark.parametrize("cells", [CELLS[:2], [CELLS[0], CELLS[0]]])
@pytest.mark.parametrize("order", [[10, 60], [60, 10]])
def test_one_event_older_than_the_grant_takes_its_person_out_of_all_cells_of_the_window(
    order: list[int], cells: list[Cell]
) -> None:
    counts = Counts([one_rule(most_per_person=2)], MASTER)
    for cell, recorded in zip(cells, order, strict=True):
        counts.add("stock", b"ana", cell, [], recorded)
    counts.add("stock", b"ana", CELLS[0], [], WINDOW + 10)
    over = counts.close("stock", WINDOW, lambda subject, earliest: earliest >= 50)
    assert over == [(0, {}), (WINDOW, {CELLS[0]: Part(1, 1, [])})]


# --- bounds -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 20))
def test_ten_thousand_cells_of_one_person_are_as_many_as_one_may_have(most: int) -> None:
    counts = Counts([one_rule(most_per_person=most)], MASTER)
    added = [counts.add("stock", b"ana", cell_of(number), [], 1) for number in range(10_000)]
    assert added == [Added.COUNTED] * most + [Added.PERSON_IS_FULL] * (10_000 - most)
    assert counts.add("stock", b"ana", cell_of(0), [], 1) is Added.COUNTED
    (_, parts), = counts.close("stock", 0, everybody)  # fmt: skip
    assert parts == {cell_of(number): Part(1, 2 if number == 0 else 1, []) for number in range(most)}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_window_that_gets_more_cells_than_it_may_is_dropped_whole(restarted: bool) -> None:
    counts = Counts([one_rule(most_cells=10)], MASTER)
    added = [counts.add("stock", b"%d" % number, cell_of(number), [], 1) for number in range(1000)]
    assert added == [Added.COUNTED] * 10 + [Added.WINDOW_IS_FULL] * 990
    log = list(counts.take_changes())
    if restarted:
        counts = Counts([one_rule(most_cells=10)], MASTER)
        counts.restore(log)
    # Else who is counted still would tell which cells came first.
    for person, cell in ((b"late comer", 9), (b"0", 0)):
        assert counts.add("stock", person, cell_of(cell), [], 1) is Added.WINDOW_IS_FULL
    assert counts.add("stock", b"late comer", cell_of(0), [], WINDOW) is Added.COUNTED
    log += [*counts.take_changes(), *counts.done("stock", WINDOW)]
    assert counts.close("stock", WINDOW, everybody) == [(0, None), (WINDOW, {cell_of(0): Part(1, 1, [])})]
    assert compacted(log, len(log), tombstones=True) == [(b"stock closed", b"%d" % (2 * WINDOW))]


def test_nobody_is_remembered_when_a_window_is_full() -> None:
    counts, subject = Counts([one_rule(most_cells=1)], MASTER), bytes(bytearray(b"ana of the canaries"))
    before = sys.getrefcount(subject)
    assert counts.add("stock", subject, CELLS[0], [], 1) is Added.COUNTED
    list(counts.take_changes())
    assert sys.getrefcount(subject) > before
    assert counts.add("stock", b"ben", CELLS[1], [], 1) is Added.WINDOW_IS_FULL
    assert sys.getrefcount(subject) == before


def test_as_many_cells_as_a_window_may_have_do_not_fill_it() -> None:
    counts = Counts([one_rule(most_cells=10)], MASTER)
    added = [counts.add("stock", b"%d" % number, cell_of(number % 10), [], 1) for number in range(1000)]
    assert added == [Added.COUNTED] * 1000
    expected = {cell_of(number): Part(100, 100, []) for number in range(10)}
    assert counts.close("stock", 0, everybody) == [(0, expected)]


def test_who_adds_to_as_many_cells_as_they_may_fills_no_window() -> None:
    counts = Counts([one_rule(most_cells=1)], MASTER)
    added = [counts.add("stock", b"ana", cell, [], 1) for cell in CELLS]
    assert added == [Added.COUNTED] + [Added.PERSON_IS_FULL] * 3
    assert counts.close("stock", 0, everybody) == [(0, {CELLS[0]: Part(1, 1, [])})]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8), st.integers(-50, 0), st.integers(1, 50))
def test_what_one_person_adds_to_a_sum_is_clamped_once_over_all_events(parts: list[int], low: int, high: int) -> None:
    counts = Counts([one_rule(sums=(Sum("price", low, high),))], MASTER)
    for part in parts:
        counts.add("stock", b"ana", CELLS[0], [part], 1)
    (_, told), = counts.close("stock", 0, everybody)  # fmt: skip
    assert told == {CELLS[0]: Part(1, len(parts), [min(max(sum(parts), low), high)])}


@pytest.mark.parametrize(("most", "told"), [(None, 10), (1, 1), (3, 3), (10, 10), (11, 10)])
def test_no_more_events_of_a_person_count_in_a_cell_than_may(most: int | None, told: int) -> None:
    counts = Counts([one_rule(most_events=most)], MASTER)
    for _ in range(10):
        counts.add("stock", b"ana", CELLS[0], [], 1)
    counts.add("stock", b"ben", CELLS[0], [], 1)
    assert counts.close("stock", 0, everybody) == [(0, {CELLS[0]: Part(2, told + 1, [])})]


# --- fixed-point ------------------------------------------------------------------------------------------------------


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.floats(-5e12, 5e12)))
@example(2.55)
@example(1e12)
@example(-1_000_000_000_000.5)
@example(2**62)
@example(4_611_686_018_427.387)
@example(4_611_686_018_428)
@example(-4_611_686_018_428)
@example(10**400)
@example(1.7976931348623157e308)
@example(999_999_999_999_999.9)
@example(5e-324)
@example(-0.0)
def test_a_finite_number_is_itself_in_millionths_or_the_farthest_that_64_bits_hold(number: float) -> None:
    part = fixed(number)
    assert type(part) is int
    exact = min(max(Fraction(number) * UNIT, -Fraction(2**62)), Fraction(2**62))
    # One rounding of the product, to 53 bits, and one to the whole millionth.
    slack = abs(exact) / 2**53 + Fraction(1, 2) if type(number) is float else Fraction(0)
    if type(number) is float and abs(number) >= 10**12:
        # No policy may declare a range that reaches further: whole ones do.
        slack = Fraction(UNIT)
    assert abs(part - exact) <= slack


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
@example(999_999_999_999_999.9, 1e15)
def test_a_larger_number_is_never_a_smaller_part(one: float, other: float) -> None:
    assume(one <= other)
    less, more = fixed(one), fixed(other)
    assert less is not None
    assert more is not None
    assert less <= more


@pytest.mark.parametrize(
    "nothing", [math.nan, math.inf, -math.inf, True, False, "7", "", b"7", None, [], {}, Decimal(7)]
)
def test_what_is_no_finite_number_adds_nothing(nothing: Any) -> None:
    assert fixed(nothing) is None


@pytest.mark.parametrize(
    ("people", "subject", "cell", "most"),
    [(4_000, 1_000, 20, 10_000), (4_000, 300, 20, 10_000), (40, 10, 9_000, 100), (30_000, 16, 20, 1)],
)
def test_what_one_batch_adds_comes_in_records_that_a_broker_takes(
    people: int, subject: int, cell: int, most: int
) -> None:
    rule = one_rule(most_per_person=4, most_cells=1_000, sums=(Sum("price", 0, 10),))
    counts = Counts([rule], MASTER)
    for number in range(people):
        for copy in range(4):
            place = b'["%0*d"]' % (cell, (number * 4 + copy) % most % 800)
            assert counts.add("stock", b"%0*d" % (subject, number), place, [7], 1) is Added.COUNTED
    log = list(counts.take_changes())
    assert len(log) > 1
    assert max(len(key) + len(value or b"") for key, value in log) <= MOST_BYTES + 200
    after = Counts([rule], MASTER)
    after.restore(log)
    tombstones = {key for key, value in after.done("stock", 0) if value is None}
    assert tombstones == {key for key, _ in log} == {key for key, value in counts.done("stock", 0) if value is None}
    assert after.close("stock", 0, everybody) == counts.close("stock", 0, everybody)


def test_what_many_long_cells_come_to_is_said_in_records_that_a_broker_takes() -> None:
    rule = one_rule(most_cells=100_000, sums=(Sum("price", 0, 10),))
    cells = {cell_of(f'"{number:0300}"\x01'): Part(number, number, [-number]) for number in range(5_000)}
    said = list(partials(rule, 0, 0, [(0, cells), (WINDOW, None), (2 * WINDOW, {}), (3 * WINDOW, cells)]))
    assert max(len(msgspec.json.encode(one)) for one in said) <= MOST_BYTES + 500
    assert [one.number for one in said] == list(range(len(said)))
    for window in (0, 3 * WINDOW):
        told = [
            (cell.encode(), part) for one in said if one.window == window for cell, part in (one.cells or {}).items()
        ]
        assert dict(told) == cells
        assert len(told) == len(cells)
    assert [one.cells for one in said if one.window == WINDOW] == [None]
    assert [one.last for one in said] == [False] * (len(said) - 1) + [True]
