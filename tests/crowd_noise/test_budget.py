"""What noise may cost one person in a day: never more, whatever fails and whenever it is restarted."""

import sys
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.crowd.counts import Added, Counts
from streams.crowd.rule import CrowdRule, Noise
from streams.crowd.window import Part
from streams.keys import MasterKey

HOUR, DAY = 3_600_000, 86_400_000
MASTER = MasterKey(bytes(32))
RULE = CrowdRule("stock", 5, HOUR, 0, ("country",), most_events=1, noise=Noise(0.1, 1e-6, 0.3))
Log = list[tuple[bytes, bytes | None]]


def _add(counts: Counts, recorded: int, subject: bytes = b"ana", purpose: str = "stock") -> Added:
    return counts.add(purpose, subject, b'["UK"]', [], recorded)


def _close(counts: Counts, through: int, purpose: str = "stock") -> Log:
    log = list(counts.done(purpose, through))
    counts.close(purpose, through, lambda subject, earliest: True)
    return log


def _compacted(log: Log) -> Log:
    return [(key, value) for key, value in dict(log).items() if value is not None]


def _restored(log: Log, rule: CrowdRule = RULE) -> Counts:
    counts = Counts([rule], MASTER)
    counts.restore(log)
    return counts


def test_a_person_is_in_as_many_windows_of_a_day_as_the_budget_pays() -> None:
    counts = Counts([RULE], MASTER)
    assert [_add(counts, hour * HOUR) for hour in range(4)] == [Added.COUNTED] * 3 + [Added.BUDGET_IS_SPENT]
    assert _add(counts, 2 * HOUR + 1) is Added.COUNTED, "a window is paid for once"
    assert _add(counts, 3 * HOUR, b"ben") is Added.COUNTED, "each person has a budget of their own"
    assert _add(counts, DAY) is Added.COUNTED, "each day has one"
    assert _add(counts, -1) is Added.COUNTED, "the day before, too"


def test_a_refused_event_leaves_nothing() -> None:
    counts = Counts([replace(RULE, noise=Noise(1.0, 1e-6, 0.5))], MASTER)
    assert _add(counts, 0) is Added.BUDGET_IS_SPENT
    assert not counts.open("stock")
    assert not list(counts.take_changes())


def test_an_event_that_is_refused_for_another_reason_costs_nothing() -> None:
    counts = Counts([RULE], MASTER)
    _close(counts, 3 * HOUR)
    assert [_add(counts, hour * HOUR) for hour in range(4)] == [Added.LATE] * 4
    for hour in range(4, 7):
        assert _add(counts, hour * HOUR) is Added.COUNTED
        further = [counts.add("stock", b"ana", b'["%d"]' % number, [], hour * HOUR) for number in range(9)]
        assert further == [Added.PERSON_IS_FULL] * 9
    assert _add(counts, 7 * HOUR) is Added.BUDGET_IS_SPENT


def test_a_window_with_noise_is_never_full() -> None:
    counts = Counts([replace(RULE, most_cells=1)], MASTER)
    for number in range(9):
        assert counts.add("stock", b"ben%d" % number, b'["%d"]' % number, [], 0) is Added.COUNTED
    assert _add(counts, 0) is Added.COUNTED
    (_, parts), = counts.close("stock", 0, lambda subject, earliest: True)  # fmt: skip
    assert parts == {b'["UK"]': Part(1, 1, []), **{b'["%d"]' % number: Part(1, 1, []) for number in range(9)}}


def test_purposes_have_budgets_of_their_own_and_those_without_noise_have_none() -> None:
    counts = Counts([RULE, replace(RULE, purpose="other"), replace(RULE, purpose="plain", noise=None)], MASTER)
    for purpose, paid in (("stock", 3), ("other", 3), ("plain", 24)):
        answers = [_add(counts, hour * HOUR, purpose=purpose) for hour in range(24)]
        assert answers.count(Added.COUNTED) == paid, purpose


def test_closing_a_window_pays_nothing_back_and_neither_does_a_restart() -> None:
    counts, log = Counts([RULE], MASTER), Log()
    for hour in range(3):
        assert _add(counts, hour * HOUR) is Added.COUNTED
        log += counts.take_changes()
        log += _close(counts, hour * HOUR)
        counts = _restored(log)
    for some in (log, _compacted(log)):
        assert _add(_restored(some), 3 * HOUR) is Added.BUDGET_IS_SPENT
        assert _add(_restored(some), 3 * HOUR, b"ben") is Added.COUNTED


def test_who_withdrew_has_spent_it_all_the_same() -> None:
    counts = Counts([RULE], MASTER)
    for hour in range(3):
        _add(counts, hour * HOUR)
    assert [parts for _, parts in counts.close("stock", 2 * HOUR, lambda subject, earliest: False)] == [{}] * 3
    assert _add(counts, 3 * HOUR) is Added.BUDGET_IS_SPENT


def test_nothing_is_kept_of_a_day_that_is_over() -> None:
    counts, log = Counts([RULE], MASTER), Log()
    for hour in range(24):
        for person in range(1200):
            _add(counts, hour * HOUR, b"%d" % (person + 100 * hour))
        log += counts.take_changes()
        log += _close(counts, hour * HOUR)
        assert any(b"spent" in key for key, _ in _compacted(log)) == (hour < 23)
    assert _compacted(log) == [(b"stock closed", b"%d" % DAY)]
    assert [key for key, _ in _close(counts, 30 * HOUR)] == [b"stock closed"], "it is cleaned up once"


def test_nobody_is_remembered_when_the_day_is_over() -> None:
    counts, subject = Counts([RULE], MASTER), bytes(bytearray(b"ana of the first day"))
    before = sys.getrefcount(subject)
    _add(counts, 0, subject)
    _close(counts, 22 * HOUR)
    assert sys.getrefcount(subject) > before
    _close(counts, 23 * HOUR)
    assert sys.getrefcount(subject) == before


def test_the_end_of_a_day_for_one_purpose_is_not_that_of_another() -> None:
    rules = [RULE, replace(RULE, purpose="other", noise=Noise(0.3, 1e-6, 0.3))]
    counts = Counts(rules, MASTER)
    _add(counts, 0, purpose="other")
    log = list(counts.take_changes())
    log += _close(counts, 0, "other")
    log += _close(counts, 23 * HOUR, "stock")
    restored = Counts(rules, MASTER)
    restored.restore(_compacted(log))
    for some in (counts, restored):
        assert _add(some, HOUR, purpose="other") is Added.BUDGET_IS_SPENT


def test_what_was_spent_can_be_read_by_nobody_else() -> None:
    counts, subject = Counts([RULE], MASTER), b"somebody@example.com"
    assert _add(counts, 0, subject) is Added.COUNTED
    log = _close(counts, 0)
    assert any(b"spent" in key for key, _ in log)
    assert not any(subject in key or subject in (value or b"") for key, value in log)
    with pytest.raises(ValueError, match="another key"):
        Counts([RULE], MasterKey(bytes(31) + b"1")).restore(log)


def test_a_record_of_what_was_spent_fits_into_kafka() -> None:
    counts = Counts([RULE], MASTER)
    for person in range(3000):
        _add(counts, 0, b"%01024d" % person)
    log = _close(counts, 0)
    assert max(len(value or b"") for _, value in log) < 1_000_000
    counts = _restored(log, replace(RULE, noise=Noise(0.1, 1e-6, 0.1)))
    assert all(_add(counts, HOUR, b"%01024d" % person) is Added.BUDGET_IS_SPENT for person in range(3000))


def test_a_policy_that_costs_less_from_now_on_pays_nothing_back() -> None:
    counts = Counts([replace(RULE, noise=Noise(0.3, 1e-6, 0.3))], MASTER)
    _add(counts, 0)
    log = _close(counts, 0)
    assert _add(_restored(log), HOUR) is Added.BUDGET_IS_SPENT


@pytest.mark.parametrize("before", [None, Noise(0.01, 1e-6, 0.3)])
def test_windows_that_are_open_when_noise_begins_to_cost_more_cost_no_more_than_a_day_may(before: Noise | None) -> None:
    counts = Counts([replace(RULE, noise=before)], MASTER)
    assert [_add(counts, hour * HOUR) for hour in range(9)] == [Added.COUNTED] * 9
    after = _restored(list(counts.take_changes()))
    windows = after.close("stock", 23 * HOUR, lambda subject, earliest: True)
    assert len([start for start, parts in windows if parts]) <= 3


def test_what_was_spent_is_cleaned_up_when_a_purpose_has_no_noise_any_more() -> None:
    counts = Counts([RULE], MASTER)
    _add(counts, 0)
    log = _close(counts, 0)
    counts = _restored(log, replace(RULE, noise=None))
    assert [_add(counts, hour * HOUR) for hour in range(1, 9)] == [Added.COUNTED] * 8
    assert not any(b"spent" in key for key, _ in _compacted(log + _close(counts, 23 * HOUR)))


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([0.1, 0.01, 0.7, 1.1, 1e-5]))
@example(123, 1, 1e-6)
@example(201, 1, 0.01)
def test_numbers_are_taken_as_they_are_written(cost: int, windows: int, unit: float) -> None:
    epsilon, daily = float(f"{cost * unit:.6g}"), float(f"{cost * unit * windows:.6g}")
    counts = Counts([replace(RULE, window=60_000, noise=Noise(epsilon, 1e-6, daily))], MASTER)
    answers = [_add(counts, minute * 60_000) for minute in range(40)]
    assert answers == [Added.COUNTED] * windows + [Added.BUDGET_IS_SPENT] * (40 - windows)


@pytest.mark.parametrize("window", [7 * HOUR, DAY, 3 * DAY])
def test_a_window_costs_the_day_on_which_it_begins(window: int) -> None:
    counts = Counts([replace(RULE, window=window, noise=Noise(0.1, 1e-6, 0.1))], MASTER)
    paid: dict[int, set[int]] = {}
    for recorded in range(0, 12 * DAY, HOUR):
        start = recorded // window * window
        answer, mine = _add(counts, recorded), paid.setdefault(start // DAY, set())
        assert (answer is Added.COUNTED) == (not mine or start in mine)
        mine.add(start)
        if answer is Added.BUDGET_IS_SPENT:
            mine.remove(start)


class Days(RuleBasedStateMachine):
    """Events, closings, crashes and compaction in any order, beside a list of who was counted in which window."""

    @initialize(window=st.sampled_from([6 * HOUR, 10 * HOUR]), windows=st.integers(1, 3))
    def begin(self, window: int, windows: int) -> None:
        self.rule = replace(RULE, window=window, noise=Noise(0.1, 1e-6, 0.1 * windows + 0.05))
        self.windows = windows
        self.log: Log = []
        self.counts = Counts([self.rule], MASTER)
        self.closed = -window
        self.paid: set[tuple[bytes, int]] = set()
        self.committed = deepcopy(self.paid)

    @rule(subject=st.sampled_from([b"ana", b"ben"]), hour=st.integers(0, 71))
    def event(self, subject: bytes, hour: int) -> None:
        start = hour * HOUR // self.rule.window * self.rule.window
        same_day = {at for name, at in self.paid if name == subject and at // DAY == start // DAY}
        wanted = Added.COUNTED if start in same_day or len(same_day) < self.windows else Added.BUDGET_IS_SPENT
        wanted = Added.LATE if start <= self.closed else wanted
        assert _add(self.counts, hour * HOUR, subject) is wanted
        if wanted is Added.COUNTED:
            self.paid.add((subject, start))

    @rule()
    def commit(self) -> None:
        self.log += self.counts.take_changes()
        self.committed = set(self.paid)

    @rule(further=st.integers(1, 6))
    def close(self, further: int) -> None:
        self.commit()
        self.closed += further * self.rule.window
        self.log += _close(self.counts, self.closed)

    @rule()
    def crash(self) -> None:
        self.paid = set(self.committed)
        self.counts = _restored(self.log, self.rule)

    @rule()
    def compact(self) -> None:
        self.log = _compacted(self.log)

    @invariant()
    def nobody_is_in_more_windows_than_are_paid_for(self) -> None:
        days = [(subject, start // DAY) for subject, start in self.paid]
        assert all(days.count(day) <= self.windows for day in days)

    @invariant()
    def days_that_are_over_are_gone(self) -> None:
        kept = {int(key.split(b" ")[2]) for key, _ in _compacted(self.log) if b" spent " in key}
        assert all(max(range(0, (day + 1) * DAY, self.rule.window)) > self.closed for day in kept)


Days.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestDays = Days.TestCase
