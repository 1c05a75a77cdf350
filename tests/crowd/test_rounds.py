"""The laws of stage two: each window is over once, when all partitions have passed it, whatever is repeated or lost."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations

import msgspec
import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams.crowd import told_of
from streams.crowd.rounds import Closed, Closing, Partial, Progress, Rounds, partials
from streams.crowd.rule import CrowdRule, Sum
from streams.crowd.window import Cell, Part
from streams.keys import MasterKey
from tests.crowd.deployment import cell_of
from tests.crowd.logs import Log, compacted

CELLS = [cell_of("UK"), cell_of("DE"), cell_of('a "quoted", [place]\n')]
MASTER = MasterKey(bytes(32))
PURPOSES = {
    "stock": CrowdRule("stock", 5, window=10, late=5, by=("place",), most_cells=2, hold=40),
    "trend": CrowdRule("trend", 5, window=20, late=0, by=("place",), most_cells=1, hold=1_000_000),
}
Told = dict[str, Part]


class Lane:
    """One partition of stage one as stage two sees it: how far it is, what its people add, what it has answered."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.watermark = -1
        self.windows: dict[tuple[str, int], dict[Cell, int]] = {}
        self.closed = dict.fromkeys(PURPOSES, -1_000)
        self.queue: list[Progress | Partial] = []
        """what it has written and stage two has not read"""

    def answer(self, closing: Closing) -> None:
        """Write what the windows come to, a record for each cell or for a full window, and then that this was all."""
        number, shape = 0, PURPOSES[closing.purpose].shape()
        for (purpose, window), cells in sorted(self.windows.items()):
            if purpose == closing.purpose and self.closed[purpose] < window <= closing.through:
                chunks: list[Told | None] = [{cell.decode(): Part(many, many, [])} for cell, many in cells.items()]
                for chunk in chunks if len(cells) <= PURPOSES[purpose].most_cells else [None]:
                    self.queue.append(
                        Partial(purpose, self.partition, closing.through, number, window, chunk, False, shape)
                    )
                    number += 1
        self.closed[closing.purpose] = closing.through
        self.queue.append(Partial(closing.purpose, self.partition, closing.through, number, None, {}, True, shape))


class StageTwo(RuleBasedStateMachine):
    """Stage two among lanes whose records it reads in any order, one transaction each, some of them twice."""

    @initialize(partitions=st.integers(1, 4))
    def it_begins(self, partitions: int) -> None:
        self.lanes = [Lane(number) for number in range(partitions)]
        self.log: Log = []
        self.since: list[tuple[int, int]] = []
        self.read: list[Progress | Partial] = []
        self.passed: dict[int, int] = {}
        self.clock = 0
        self.asked: dict[str, int] = {}
        self.answered: dict[str, set[int]] = {name: set(range(partitions)) for name in PURPOSES}
        self.over: set[tuple[str, int]] = set()
        self.restart()

    def restart(self) -> None:
        self.rounds = Rounds(list(PURPOSES.values()), len(self.lanes), MASTER)
        self.rounds.restore(iter(self.log))
        """each time of the clock at which it has heard that a lane is further, and how far; a restart forgets it"""

    def transaction(self, record: Progress | Partial) -> None:
        """Take a record, and commit what it changed together with what it led to."""
        over: list[Closed] = []
        closings: list[Closing] = []
        if isinstance(record, Progress):
            closings += self.rounds.progress(record, self.clock)
            if record.watermark > self.passed.get(record.partition, -1_000):
                self.passed[record.partition] = record.watermark
                self.since.append((self.clock, record.watermark))
        else:
            over += self.rounds.partial(record, self.clock)
            # Not only after a window: a round may end without one, and more may have become closable meanwhile.
            closings += self.rounds.next_closings()
            if record.last and record.through == self.asked[record.purpose]:
                self.answered[record.purpose].add(record.partition)
        self.log += self.rounds.take_changes()
        for closed in over:
            assert isinstance(record, Partial)
            self.note(record.purpose, closed)
        for closing in closings:
            self.ask(closing)

    def ask(self, closing: Closing) -> None:
        """Check a closing: all partitions have passed its end and `late`, all have answered the last one."""
        rule = PURPOSES[closing.purpose]
        assert len(self.passed) == len(self.lanes)
        assert min(self.passed.values()) >= closing.through + rule.window + rule.late
        assert closing.through > self.asked.get(closing.purpose, closing.through - 1)
        assert len(self.answered[closing.purpose]) == len(self.lanes), "a round began while another one was under way"
        self.asked[closing.purpose], self.answered[closing.purpose] = closing.through, set()
        for lane in self.lanes:
            lane.answer(closing)

    def note(self, purpose: str, closed: Closed) -> None:
        """Check a window that is over against what all lanes hold of it."""
        assert (purpose, closed.window) not in self.over, "a window was told a second time"
        rule = PURPOSES[purpose]
        closes = closed.window + rule.window + rule.late
        assert min(self.passed.values()) >= closes
        assert len(self.answered[purpose]) == len(self.lanes), "a window was told before all partitions had answered"
        cells = self.everybody(purpose, closed.window)
        # What a lane holds is in these cells: if it is full, they are too many as well.
        full = len(cells) > rule.most_cells
        waited = self.clock - min((at for at, watermark in self.since if watermark >= closes), default=self.clock)
        event("full" if full else "waited too long" if waited > rule.hold else "told")
        if full or waited > rule.hold:
            assert closed.cells is None
        else:
            assert closed.cells is not None
            assert {cell: part.people for cell, part in closed.cells.items()} == cells
        self.over.add((purpose, closed.window))

    def everybody(self, purpose: str, window: int) -> dict[Cell, int]:
        cells: dict[Cell, int] = {}
        for lane in self.lanes:
            for cell, people in lane.windows.get((purpose, window), {}).items():
                cells[cell] = cells.get(cell, 0) + people
        return cells

    @rule(
        data=st.data(),
        purpose=st.sampled_from(sorted(PURPOSES)),
        cell=st.sampled_from(CELLS),
        at=st.integers(0, 30) | st.integers(0, 200),
    )
    def a_lane_counts_people(self, data: st.DataObject, purpose: str, cell: Cell, at: int) -> None:
        lane = data.draw(st.sampled_from(self.lanes))
        window = at - at % PURPOSES[purpose].window
        if window > lane.closed[purpose]:
            cells = lane.windows.setdefault((purpose, window), {})
            cells[cell] = cells.get(cell, 0) + data.draw(st.integers(1, 9))

    @rule(data=st.data(), step=st.one_of(st.integers(1, 15), st.integers(1, 120)))
    def a_lane_goes_on(self, data: st.DataObject, step: int) -> None:
        lane = data.draw(st.sampled_from(self.lanes))
        lane.watermark += step
        lane.queue.append(Progress(lane.partition, lane.watermark))

    @rule(step=st.one_of(st.integers(1, 15), st.sampled_from([40, 41])))
    def time_passes(self, step: int) -> None:
        self.clock += step

    def next_of(self, data: st.DataObject) -> Progress | Partial:
        lane = data.draw(st.sampled_from([lane for lane in self.lanes if lane.queue]))
        return lane.queue.pop(0)

    @precondition(lambda self: any(lane.queue for lane in self.lanes))
    @rule(data=st.data(), how_many=st.integers(1, 6))
    def it_reads(self, data: st.DataObject, how_many: int) -> None:
        for _ in range(how_many):
            if any(lane.queue for lane in self.lanes):
                record = self.next_of(data)
                self.transaction(record)
                self.read.append(record)

    @precondition(lambda self: any(lane.queue for lane in self.lanes))
    @rule(data=st.data())
    def it_dies_before_it_commits(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from([lane for lane in self.lanes if lane.queue]))
        record = lane.queue[0]
        if isinstance(record, Progress):
            list(self.rounds.progress(record, self.clock))
        else:
            list(self.rounds.partial(record, self.clock))
        self.restart()

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def it_reads_something_again(self, data: st.DataObject) -> None:
        record = data.draw(st.sampled_from(self.read))
        # What is repeated of an answer that is still being given: see the test of that below.
        being_given = isinstance(record, Partial) and record.through == self.asked[record.purpose]
        if not being_given or (isinstance(record, Partial) and record.partition in self.answered[record.purpose]):
            self.transaction(record)

    @rule(data=st.data(), tombstones=st.booleans())
    def it_is_restarted(self, data: st.DataObject, tombstones: bool) -> None:
        self.log = compacted(self.log, data.draw(st.integers(0, len(self.log))), tombstones)
        self.restart()

    @invariant()
    def between_rounds_nothing_of_an_answer_is_kept(self) -> None:
        for name, answered in self.answered.items():
            if len(answered) == len(self.lanes):
                left = compacted(self.log, len(self.log), tombstones=True)
                assert not [key for key, _ in left if key.startswith(b"partial " + name.encode())]

    def teardown(self) -> None:
        """In the end all lanes pass everything, and each window that held anybody is over."""
        if not hasattr(self, "lanes"):
            return
        end = max(lane.watermark for lane in self.lanes) + 1_000
        for lane in self.lanes:
            lane.queue.append(Progress(lane.partition, end))
        while any(lane.queue for lane in self.lanes):
            for lane in self.lanes:
                if lane.queue:
                    self.transaction(lane.queue.pop(0))
        assert self.over == {window for lane in self.lanes for window in lane.windows}


TestStageTwo = StageTwo.TestCase
TestStageTwo.settings = settings(stateful_step_count=50, max_examples=200)


def in_a_round(partitions: int = 2) -> Rounds:
    """Return a stage two that has asked for the windows of `stock` up to 0."""
    rounds = Rounds([PURPOSES["stock"]], partitions, MASTER)
    for partition in range(partitions):
        asked = list(rounds.progress(Progress(partition, 15)))
    assert asked == [Closing("stock", 0)]
    return rounds


def answer(partition: int, through: int = 0, people: int = 3) -> list[Partial]:
    cells = {CELLS[0].decode(): Part(people, people, [])}
    return [
        Partial("stock", partition, through, 0, 0, cells, False, PURPOSES["stock"].shape()),
        Partial("stock", partition, through, 1, None, {}, True, PURPOSES["stock"].shape()),
    ]


def all_over(rounds: Rounds, records: Iterable[Partial]) -> list[tuple[int, int]]:
    """Return windows that are over, and the people told of the one cell."""
    over = [closed for record in records for closed in rounds.partial(record)]
    return [(closed.window, sum(part.people for part in (closed.cells or {}).values())) for closed in over]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_whoever_answers_last_the_window_is_told_once(order: tuple[int, ...]) -> None:
    records = [record for partition in order for record in answer(partition)]
    assert all_over(in_a_round(3), [*records, *records]) == [(0, 9)]


def test_an_answer_that_comes_again_while_others_are_awaited_counts_once() -> None:
    assert all_over(in_a_round(), [*answer(0), *answer(0), *answer(1)]) == [(0, 6)]


def test_an_old_word_of_how_far_a_partition_is_does_not_take_it_back() -> None:
    rounds = Rounds([PURPOSES["stock"]], 2, MASTER)
    for watermark in (15, 3):
        assert not list(rounds.progress(Progress(0, watermark)))
    assert list(rounds.progress(Progress(1, 15))) == [Closing("stock", 0)]


@pytest.mark.parametrize("through", [-10, 10, 1000])
def test_answers_to_another_closing_count_for_nothing(through: int) -> None:
    records = [*answer(0, through, people=70), *answer(0), *answer(1, through, people=70), *answer(1)]
    assert all_over(in_a_round(), records) == [(0, 6)]


def test_an_answer_that_nobody_asked_for_counts_for_nothing() -> None:
    rounds = Rounds([PURPOSES["stock"]], 1, MASTER)
    assert all_over(rounds, answer(0)) == []
    assert list(rounds.progress(Progress(0, 15))) == [Closing("stock", 0)]
    assert all_over(rounds, answer(0)) == [(0, 3)]


@pytest.mark.parametrize("repeated", [[0, 0, 1], [0, 0, 0, 1]])
def test_a_part_of_an_answer_that_comes_twice_is_counted_once(repeated: list[int]) -> None:
    mine = answer(0)
    assert all_over(in_a_round(), [*(mine[place] for place in repeated), *answer(1)]) == [(0, 6)]


def test_a_window_that_was_told_is_not_told_again_though_a_partition_answers_it_twice() -> None:
    rounds = in_a_round()
    assert all_over(rounds, [*answer(0), *answer(1)]) == [(0, 6)]
    assert [closing for partition in (0, 1) for closing in rounds.progress(Progress(partition, 25))]
    assert all_over(rounds, [*answer(0, through=10), *answer(1, through=10)]) == []


@pytest.mark.parametrize(("behind", "people"), [(40, 6), (41, 0)])
def test_a_window_that_waited_longer_than_hold_is_dropped(behind: int, people: int) -> None:
    rounds = in_a_round()
    over = [closed for record in (*answer(0), *answer(1)) for closed in rounds.partial(record, now=behind)]
    assert [closed.window for closed in over] == [0]
    assert (over[0].cells is None) == (people == 0)


@pytest.mark.parametrize(("behind", "told"), [(40, [0]), (41, [])])
def test_a_restart_does_not_make_a_window_wait_anew(behind: int, told: list[int]) -> None:
    before = Rounds([PURPOSES["stock"]], 2, MASTER)
    assert not list(before.progress(Progress(0, 15), 0))
    after = Rounds([PURPOSES["stock"]], 2, MASTER)
    after.restore(before.take_changes())
    assert list(after.progress(Progress(1, 15), behind)) == [Closing("stock", 0)]
    over = [closed for record in (*answer(0), *answer(1)) for closed in after.partial(record, behind)]
    assert [closed.window for closed in over if closed.cells is not None] == told


@pytest.mark.parametrize(("behind", "told"), [(40, [0, 10]), (41, [10]), (70, [10]), (71, [])])
def test_a_window_waits_from_when_the_first_partition_has_passed_it(behind: int, told: list[int]) -> None:
    rounds = Rounds([PURPOSES["stock"]], 3, MASTER)
    for partition, watermark, clock in ((0, 15, 0), (0, 25, 30), (1, 25, behind)):
        assert not list(rounds.progress(Progress(partition, watermark), clock))
    assert list(rounds.progress(Progress(2, 25), behind)) == [Closing("stock", 10)]
    windows = [(start, {CELLS[0]: Part(3, 3, [])}) for start in (0, 10)]
    records = [record for one in range(3) for record in partials(PURPOSES["stock"], one, 10, windows)]
    over = [closed for record in records for closed in rounds.partial(record, behind)]
    assert [closed.window for closed in over] == [0, 10]
    assert [closed.window for closed in over if closed.cells is not None] == told


def test_a_window_before_a_time_in_which_nothing_happens_is_told() -> None:
    rounds = Rounds([PURPOSES["stock"]], 2, MASTER)
    over: list[Closed] = []
    asked: list[int] = []
    # Both lanes read an event of before the weekend, and the next one after it, long after `hold`.
    for clock, watermark in ((9, 9), (100, 100)):
        for partition in (0, 1):
            for closing in rounds.progress(Progress(partition, watermark), clock):
                asked.append(closing.through)
                windows = [(0, {CELLS[0]: Part(3, 3, [])})] if closing.through >= 0 else []
                for one in (0, 1):
                    for record in partials(PURPOSES["stock"], one, closing.through, windows):
                        over += rounds.partial(record, clock)
    assert asked == [-10, 80]
    assert [(closed.window, closed.cells is not None) for closed in over] == [(0, True)]


def test_no_window_is_closed_while_a_partition_has_said_nothing() -> None:
    rounds = Rounds(list(PURPOSES.values()), 3, MASTER)
    assert not list(rounds.progress(Progress(0, 10**9)))
    assert not list(rounds.progress(Progress(1, 10**9)))
    assert {closing.purpose for closing in rounds.progress(Progress(2, 30))} == set(PURPOSES)


def test_a_round_of_a_purpose_that_is_gone_does_no_harm() -> None:
    before = in_a_round()
    over = [closed for record in answer(0) for closed in before.partial(record)]
    after = Rounds([PURPOSES["trend"]], 2, MASTER)
    after.restore(iter(list(before.take_changes())))
    over += [closed for record in answer(1) for closed in after.partial(record)]
    assert over == []


NARROW = CrowdRule("stock", 5, window=10, late=5, by=("place",), sums=(Sum("price", 0, 9),))


@pytest.mark.parametrize(
    "other",
    [
        replace(NARROW, by=("item",)),
        replace(NARROW, by=("place", "item")),
        replace(NARROW, sums=(Sum("quantity", 0, 9),)),
        replace(NARROW, sums=(*NARROW.sums, Sum("quantity", 0, 9))),
    ],
)
def test_a_round_in_which_a_policy_comes_to_count_otherwise_ends_and_mixes_nothing(other: CrowdRule) -> None:
    before = Rounds([NARROW], 2, MASTER)
    assert [closing for one in (0, 1) for closing in before.progress(Progress(one, 15))] == [Closing("stock", 0)]
    for record in partials(NARROW, 0, 0, [(0, {CELLS[0]: Part(9, 9, [9]), CELLS[1]: Part(9, 9, [9])})]):
        assert not list(before.partial(record))
    after = Rounds([other], 2, MASTER)
    after.restore(before.take_changes())
    cell, part = cell_of(*["UK"] * len(other.by)), Part(7, 7, [7] * len(other.sums))
    over = [closed for record in partials(other, 1, 0, [(0, {cell: part})]) for closed in after.partial(record)]
    for closed in over:
        released = told_of(other, closed.cells)
        assert released is None or released.cells in ({}, {cell: part})
    assert [closing for one in (0, 1) for closing in after.progress(Progress(one, 25))] == [Closing("stock", 10)]


def test_records_are_read_back_as_they_were_written() -> None:
    kinds = Progress | Closing | Partial
    for record in (Progress(3, 77), Closing("stock", -10), *answer(1)):
        assert msgspec.json.decode(msgspec.json.encode(record), type=kinds) == record
