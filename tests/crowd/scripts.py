"""Chance scripts of a deployment: who sends what when, how time passes, and what breaks. Played, they give outputs."""

from collections.abc import Iterable
from random import Random
from typing import NamedTuple

from streams.crowd.rule import CrowdRule, Sum
from streams.crowd.window import Cell
from tests.crowd.deployment import Deployment, cell_of

__all__ = [
    "END",
    "WINDOW",
    "Allow",
    "K",
    "Restart",
    "Script",
    "Send",
    "Step",
    "Time",
    "Withdraw",
    "in_order",
    "play",
    "script",
]

K = 5
WINDOW = 100
WINDOWS = 3
END = WINDOWS * WINDOW + 100
"""when all windows are over"""


class Send(NamedTuple):
    """An event."""

    person: str
    cell: Cell
    sums: tuple[int, ...]
    at: int


class Time(NamedTuple):
    """All partitions have read everything up to here."""

    watermark: int


class Withdraw(NamedTuple):
    """A person takes their consent back."""

    person: str


class Allow(NamedTuple):
    """A person allows it for events from here on."""

    person: str
    since: int


class Restart(NamedTuple):
    """Everything stops and starts again."""


Step = Send | Time | Withdraw | Allow | Restart


class Script(NamedTuple):
    """A rule, how many partitions there are, and what happens, in order."""

    rule: CrowdRule
    partitions: int
    steps: list[Step]
    people: list[str]
    cells: list[Cell]


def script(random: Random, most_per_person: int = 1, fields: int | None = None) -> Script:
    """Make a script in which some cells are large and some are small. Everybody allows it; nobody is late."""
    fields = fields or random.randint(1, 3)
    rule = CrowdRule(
        "stock",
        K,
        window=WINDOW,
        late=random.choice([0, 20]),
        by=tuple(f"field{number}" for number in range(fields)),
        sums=tuple(Sum(f"amount{number}", random.randint(-9, 0), random.randint(1, 9)) for number in range(2)),
        most_per_person=most_per_person,
        most_events=random.choice([None, 2]),
    )
    values = [[f"{number}{value}" for value in range(random.randint(2, 4))] for number in range(fields)]
    cells = sorted({cell_of(*(random.choice(of) for of in values)) for _ in range(random.randint(2, 8))})
    weights = [random.choice([1, 8, 20]) for _ in cells]
    people = [f"person{number}" for number in range(random.randint(10, 50))]
    sends = [
        send
        for person in people
        for home in random.choices(cells, weights)
        for window in range(WINDOWS)
        if random.random() < 0.8
        for send in _visit(random, rule, person, [home, *random.choices(cells, weights, k=most_per_person)], window)
    ]
    steps: list[Step] = [Allow(person, 0) for person in people]
    steps += in_order(rule, sends)
    for _ in range(random.randint(0, 2)):
        steps.insert(random.randrange(len(people), len(steps)), Restart())
    return Script(rule, random.randint(1, 3), steps, people, cells)


def in_order(rule: CrowdRule, sends: Iterable[Send]) -> list[Step]:
    """Put events in the order of their times, and let time pass as they come."""
    timed: list[tuple[int, int, Step]] = [(send.at, 1, send) for send in sends]
    passes = [rule.closes(window * WINDOW) for window in range(WINDOWS)]
    timed += [(watermark, 0, Time(watermark)) for watermark in [*passes, WINDOW // 2, END]]
    return [step for _, _, step in sorted(timed, key=lambda one: one[:2])]


def _visit(random: Random, rule: CrowdRule, person: str, cells: list[Cell], window: int) -> list[Send]:
    events = []
    for cell in cells[: 1 if random.random() < 0.5 else None]:
        for _ in range(random.choice([1, 1, 2, 3])):
            sums = tuple(random.choice([0, 1, -1, 5, 50, -50]) for _ in rule.sums)
            events.append(Send(person, cell, sums, window * WINDOW + random.randrange(WINDOW)))
    return events


def play(of: Script, steps: Iterable[Step] | None = None) -> Deployment:
    """Play all steps, or these."""
    deployment = Deployment(of.rule, of.partitions)
    for step in of.steps if steps is None else steps:
        match step:
            case Send(person, cell, sums, at):
                deployment.send(person, cell, list(sums), at)
            case Time(watermark):
                deployment.pass_time(watermark)
            case Withdraw(person):
                deployment.since.pop(person, None)
            case Allow(person, since):
                deployment.since[person] = since
            case Restart():
                deployment.restart()
    return deployment
