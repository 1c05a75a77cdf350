"""Attacks on what is told: ten thousand scripts in which an attacker looks for a person, and the holes that are known.

The attacker sees every output of a deployment: the cells, their people, events and sums, `suppressed_at_least`, and
when each window is told. They know every event of everybody but the target; they bring people of their own, who do,
allow and withdraw what they like, in any window, early or late; and they know the totals that the docstring of
`streams.crowd.release` speaks of: of each line and of the whole window.

What "finds nothing" means is said at each attack, and checked against sets of people, which the program never makes
for a release. Counting is all that is promised here: whoever brings j people of their own into a cell is told of it
where there are k - j others, and whoever knows all others of a cell that is told reads the rest from it. A purpose
to which that matters has `noise`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import product
from random import Random

import pytest

from streams.crowd.counts import Added
from streams.crowd.release import Released, release
from streams.crowd.rule import CrowdRule, Sum
from streams.crowd.window import Cell, Part
from tests.crowd import model
from tests.crowd.deployment import Deployment, cell_of, told
from tests.crowd.scripts import (
    END,
    WINDOW,
    WINDOWS,
    Allow,
    K,
    Restart,
    Send,
    Step,
    Time,
    Withdraw,
    in_order,
    play,
    script,
)

TRIALS = 2_000
"""of each of the five attacks"""
People = dict[int, dict[Cell, set[str]]]
"""Who is in which cell of which window."""


def who(steps: Iterable[Step], rule: CrowdRule, without: Collection[str] = ()) -> People:
    """Find out who is in which cell, from events that are not late and of people who allow them."""
    cells: dict[tuple[int, str], list[Cell]] = {}
    for step in steps:
        if isinstance(step, Send) and step.person not in without:
            mine = cells.setdefault((step.at // WINDOW * WINDOW, step.person), [])
            if step.cell not in mine and len(mine) < rule.most_per_person:
                mine.append(step.cell)
    people: People = {}
    for (window, person), mine in cells.items():
        for cell in mine:
            people.setdefault(window, {}).setdefault(cell, set()).add(person)
    return people


def singled_out(rule: CrowdRule, people: Mapping[Cell, set[str]], released: Released) -> str | None:
    """Say what fewer than k people can be found by: a cell, a total less what is told of it, or the number of cells."""
    for cell, part in released.cells.items():
        if part.people != len(people[cell]) or part.people < K:
            return f"{cell!r} is told of {part.people} people, and is of {len(people[cell])}"
    for line in model.lines(people, len(rule.by)):
        missing = [people[cell] for cell in line if cell not in released.cells]
        if missing and len(missing) < len(line) and len(set().union(*missing)) < K:
            return f"{len(missing)} cells of {len(set().union(*missing))} people are missing from a line that is told"
    gone = [people[cell] for cell in people if cell not in released.cells]
    if released.suppressed_at_least and len(set().union(*gone)) < K:
        return f"{released.suppressed_at_least} cells are said to be missing, of {len(set().union(*gone))} people"
    return None


def differencing_by_one_person(random: Random, most_per_person: int = 1) -> str | None:
    """The attacker subtracts what is told from totals, and has a person more come to windows that were told.

    Finds nothing: every cell that is told is of k people, counted apart; along each line and over the whole window, the
    cells that are missing are of nobody, of k people apart or more, or all that there are; some are said to be missing
    only where k people are; and no window is told again, or in another way, whoever comes to it, whatever time passes
    and however often everything is restarted.
    """
    of = script(random, most_per_person)
    withdrawn = set(random.sample(of.people, random.randint(0, 3)))
    steps = list(of.steps)
    steps[len(of.people) : len(of.people)] = [Withdraw(person) for person in withdrawn]
    deployment, people = play(of, steps), who(steps, of.rule, without=withdrawn)
    before = told(deployment)
    if set(before) != set(people):
        return f"told are {sorted(before)}, there are {sorted(people)}"
    for window, cells in people.items():
        found = singled_out(of.rule, cells, deployment.released[window])
        if found is not None:
            return f"window {window}: {found}"
    for number in range(random.randint(1, 3)):
        deployment.since[f"attacker{number}"] = 0
        deployment.send(f"attacker{number}", random.choice(of.cells), [0, 0], random.randrange(END))
        if random.random() < 0.3:
            deployment.restart()
        deployment.pass_time(END + number * WINDOW)
    after = {window: one for window, one in told(deployment).items() if window in before}
    return None if after == before else "a window was told in another way"


def differencing_by_withdrawal(random: Random) -> str | None:
    """The target, or a person of the attacker's, is in the crowd, withdraws, and perhaps allows it again.

    Finds nothing: all that is told of windows that were not closed is what it were if the person had never been there;
    what they do after they have allowed it again counts in windows that they had not been in before. What was told
    before stays as it is, and nothing more is told of it.
    """
    of = script(random)
    target = random.choice(of.people)
    at = random.randrange(len(of.people), len(of.steps) + 1)
    closed = max((step.watermark for step in of.steps[:at] if isinstance(step, Time)), default=-1)
    before, after = of.steps[:at], of.steps[at:]
    now = max((step.at for step in before if isinstance(step, Send)), default=0)
    # A grant does not reach back: it is of now or later.
    back = random.choice([None, now + 1, random.randint(now + 1, END)])
    mine = {step.at // WINDOW for step in before if isinstance(step, Send) and step.person == target}
    again: list[Step] = [] if back is None else [Allow(target, back)]
    withdrawing = [*before, Withdraw(target), *again, *after]

    def never_there(step: Step, early: bool) -> bool:
        if not isinstance(step, Send) or step.person != target:
            return True
        if of.rule.closes(step.at // WINDOW * WINDOW) <= closed:
            return early
        return not early and back is not None and step.at >= back and step.at // WINDOW not in mine

    absent = [step for step in before if never_there(step, early=True)]
    # Where nothing is left of what was before, `back` says from when on they are there.
    absent += [Withdraw(target), *again, *(step for step in after if never_there(step, early=False))]
    one, other = play(of, withdrawing), play(of, absent)
    return None if told(one) == told(other) else f"{told(one)}, without {target} {told(other)}"


def differencing_by_late_event(random: Random) -> str | None:
    """Events come for windows that were closed: of the target, of people that were there, of new ones, once or often.

    Finds nothing: each of them is late, and nothing that was told or will be told, of that window or another one,
    depends on them, not even after restarts.
    """
    of = script(random)
    late: list[Step] = []
    closed: list[int] = []
    strangers = [f"attacker{number}" for number in range(3)]
    for step in [*(Allow(stranger, 0) for stranger in strangers), *of.steps]:
        late.append(step)
        if isinstance(step, Time):
            closed = [number for number in range(WINDOWS) if of.rule.closes(number * WINDOW) <= step.watermark]
        while closed and random.random() < 0.3:
            person = random.choice([*of.people, *strangers])
            at = random.choice(closed) * WINDOW + random.randrange(WINDOW)
            late.append(Send(person, random.choice(of.cells), (7, 7), at))
            if random.random() < 0.1:
                late.append(Restart())
    one, other = play(of, late), play(of)
    for number in closed:
        if one.send(of.people[0], of.cells[0], [7, 7], number * WINDOW) is not Added.LATE:
            return f"an event was counted in window {number}, which was over"
    return None if told(one) == told(other) else f"{told(one)}, without late events {told(other)}"


def differencing_by_neighbouring_windows(random: Random) -> str | None:
    """The attacker puts anything into the other windows, and takes anything out of them: events, people, cells.

    Finds nothing: what is told of a window is the same byte for byte whatever is in all others, so that they say
    nothing of it; and no event is in two windows: of all windows together no more events are told than there were.
    """
    of, another = script(random), script(random)
    window = random.randrange(WINDOWS)
    start = window * WINDOW
    here = [step for step in of.steps if isinstance(step, Send) and step.at // WINDOW == window]
    cells = [*of.cells, *(cell_of(*(f"new{number}" for _ in of.rule.by)) for number in range(3))]
    there = [
        Send(step.person, random.choice(cells), (random.randint(-99, 99), 0), step.at)
        for step in another.steps
        if isinstance(step, Send) and step.at // WINDOW != window
    ]
    allowing = [Allow(person, 0) for person in {*of.people, *another.people}]
    changed = [*allowing, *in_order(of.rule, [*here, *there])]
    for _ in range(random.randint(0, 2)):
        changed.insert(random.randrange(len(allowing), len(changed)), Restart())
    one, other = play(of), play(of, changed)
    events = sum(part.events for released in other.released.values() for part in released.cells.values())
    if events > len(here) + len(there):
        return f"{events} events are told of {len(here) + len(there)}"
    same = told(one).get(start) == told(other).get(start)
    return None if same else f"{told(one).get(start)!r}, with others {told(other).get(start)!r}"


def singling_out_through_sums(random: Random) -> str | None:
    """The target's amounts and how often they do a thing take any value, in the cells that they are in anyway.

    Finds nothing: which cells are told, of how many people, and what is said to be missing does not depend on them; a
    sum moves by no more than the declared range, the events (if bounded) by no more than the bound, in no more cells
    than one person may be in, and none where the target is not; each sum lies in the range of that many people; and
    what a total leaves when the told sums are subtracted is of k people apart, or of nobody.
    """
    of = script(random)
    target, rule = random.choice(of.people), of.rule
    loud: list[Step] = []
    for step in of.steps:
        if isinstance(step, Send) and step.person == target:
            extreme = tuple(random.choice([0, 1, 10**9, -(10**9)]) for _ in step.sums)
            loud += [Send(target, step.cell, extreme, step.at)] * random.randint(1, 4)
        else:
            loud.append(step)
    one, other, people = play(of), play(of, loud), who(of.steps, rule)
    for window, cells in people.items():
        quiet, noisy = one.released[window], other.released[window]
        same = quiet.cells.keys() == noisy.cells.keys() and quiet.suppressed_at_least == noisy.suppressed_at_least
        found = singled_out(rule, cells, noisy)
        if not same or found is not None:
            return found or f"window {window}: other cells are told"
        for cell, part in quiet.cells.items():
            found = _moved(rule, part, noisy.cells[cell], target in cells[cell])
            if found is not None:
                return f"window {window}, {cell!r}: {found}"
    return None


def _moved(rule: CrowdRule, quiet: Part, loud: Part, there: bool) -> str | None:
    if quiet.people != loud.people or (not there and quiet != loud):
        return f"{quiet} became {loud}"
    if rule.most_events is not None and abs(quiet.events - loud.events) >= rule.most_events:
        return f"{quiet.events} events became {loud.events}"
    for declared, less, more in zip(rule.sums, quiet.sums, loud.sums, strict=True):
        if abs(less - more) > declared.high - declared.low:
            return f"a sum of {less} became {more}"
        if not loud.people * declared.low <= more <= loud.people * declared.high:
            return f"a sum of {more} is not one of {loud.people} people"
    return None


ATTACKS: list[Callable[[Random], str | None]] = [
    differencing_by_one_person,
    differencing_by_withdrawal,
    differencing_by_late_event,
    differencing_by_neighbouring_windows,
    singling_out_through_sums,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_finds_nothing(attack: Callable[[Random], str | None]) -> None:
    for seed in range(TRIALS):
        found = attack(Random(seed))
        assert found is None, f"{attack.__name__}, seed {seed}: {found}"


# --- what attacks did find --------------------------------------------------------------------------------------------


def people_of(counts: Mapping[Cell, int]) -> dict[Cell, Part]:
    return {cell: Part(count, count, []) for cell, count in counts.items()}


def of_fields(fields: int) -> CrowdRule:
    return CrowdRule("stock", K, window=WINDOW, late=0, by=tuple(f"field{number}" for number in range(fields)))


@pytest.mark.parametrize("most_per_person", [3, 5])
def test_differencing_finds_nobody_where_people_are_in_several_cells(most_per_person: int) -> None:
    for seed in range(100):
        found = differencing_by_one_person(Random(seed), most_per_person)
        assert found is None, f"seed {seed}: {found}"


def test_one_person_in_k_cells_is_not_the_difference_of_a_total_and_what_is_told() -> None:
    rule = CrowdRule(
        "stock", K, window=WINDOW, late=0, by=("item",), sums=(Sum("price", 0, 1000),), most_per_person=K
    )  # fmt: skip
    deployment = Deployment(rule, partitions=1)
    crowd = [f"person{number}" for number in range(40)]
    deployment.since = dict.fromkeys(["target", *crowd], 0)
    sends = [(person, cell_of("lamps"), 10) for person in crowd]
    sends += [("target", cell_of(f"rarity{number}"), 100 + number) for number in range(K)]
    for person, cell, price in sends:
        deployment.send(person, cell, [price], 1)
    deployment.pass_time(WINDOW)
    total = sum(price for _, _, price in sends)
    left = total - sum(part.sums[0] for part in deployment.released[0].cells.values())
    assert left in (0, total), f"what the target spent, {left}, is the total less what is told"
    assert deployment.released[0].suppressed_at_least == 0


def test_no_small_cell_follows_from_the_totals_of_two_fields() -> None:
    small = {(0, 0): 3, (0, 1): 3, (1, 0): 3, (1, 1): 3, (2, 2): 3, (2, 3): 3, (3, 2): 3, (3, 3): 3, (0, 2): 1}
    people = {cell_of(*at): small.get(at, 100) for at in product(range(4), range(4))}
    released = release(of_fields(2), people_of(people))
    # Rows 0 and 1 lack 13 people, columns 0 and 1 lack 12 of them: in row 0, column 2, there is 1.
    found = model.derived(people, released.cells, list(model.lines(people, 2)))
    assert not {cell: people[cell] for cell in found if people[cell] < K}


def test_no_small_cell_follows_from_totals_in_chance_tables() -> None:
    for seed in range(100):
        random = Random(seed)
        sizes = [random.randint(1, 4) if random.random() < 0.1 else random.randint(K, 60) for _ in range(36)]
        people = {cell_of(*at): size for at, size in zip(product(range(6), range(6)), sizes, strict=True)}
        released = release(of_fields(2), people_of(people))
        found = model.derived(people, released.cells, list(model.lines(people, 2)))
        assert not {cell: people[cell] for cell in found if people[cell] < K}, f"seed {seed}"


def test_no_small_cell_is_the_difference_of_a_total_over_two_of_three_fields() -> None:
    people = {cell_of("UK", "lamps", "web"): 100, cell_of("UK", "mugs", "shop"): 1, cell_of("DE", "bags", "post"): 4}
    released = release(of_fields(3), people_of(people))
    in_uk = {cell: count for cell, count in people.items() if cell.startswith(b'["UK"')}
    missing = sum(in_uk.values()) - sum(people[cell] for cell in released.cells)
    assert missing == 0 or missing >= K or not released.cells, f"of {sum(in_uk.values())} in UK, {missing} is missing"


def test_a_window_that_all_have_left_looks_like_one_in_which_nobody_was() -> None:
    outputs = []
    for there in (True, False):
        deployment = Deployment(of_fields(1), partitions=2)
        deployment.since = {"target": 0}
        if there:
            assert deployment.send("target", cell_of("rarity"), [], 1) is Added.COUNTED
        del deployment.since["target"]
        deployment.pass_time(WINDOW)
        outputs.append(told(deployment))
    assert outputs[0] == outputs[1]


def with_a_rarity(most_cells: int, place: int | None, withdrawn: bool) -> Deployment:
    """Play two windows of a crowd with lamps; in the first, the target comes with a rarity before so many others."""
    rule = CrowdRule("stock", K, window=WINDOW, late=0, by=("item",), most_cells=most_cells)
    deployment = Deployment(rule, partitions=1)
    crowd = [f"person{number}" for number in range(2 * K)]
    deployment.since = dict.fromkeys(["target", *crowd], 0)
    sends = [(person, cell_of("lamps"), at) for at in (2, WINDOW) for person in crowd]
    if place is not None:
        sends.insert(place, ("target", cell_of("rarity"), 1))
    for person, cell, at in sends:
        deployment.send(person, cell, [], at)
        deployment.restart()
    if withdrawn:
        del deployment.since["target"]
    deployment.pass_time(2 * WINDOW)
    return deployment


@pytest.mark.parametrize("place", [0, K, 2 * K])
def test_a_full_window_tells_neither_which_cells_came_first_nor_who_has_withdrawn(place: int) -> None:
    absent = with_a_rarity(1, None, withdrawn=False)
    for withdrawn in (True, False):
        full = with_a_rarity(1, place, withdrawn)
        # What one person can do is to fill it; a withdrawal does not take that back, and shows in nothing.
        assert full.closed[0] is None
        assert told(full) == {WINDOW: told(absent)[WINDOW]}


@pytest.mark.parametrize("place", [0, K, 2 * K])
def test_withdrawal_leaves_nothing_though_the_window_had_all_cells_that_it_may(place: int) -> None:
    there, absent = (told(with_a_rarity(2, at, withdrawn=True)) for at in (place, None))
    assert there == absent
    assert set(there) == {0, WINDOW}
    assert told(with_a_rarity(2, place, withdrawn=False)) != absent
