"""What happens in a run, drawn from one number: how many of everything, what clients do when, and which faults.

Swarm selection: each seed allows only some kinds of faults, in a strength of its own. A run with everything in it hides
more than it shows.
"""

from dataclasses import dataclass, field
from random import Random

from tests.simulation.clients import Change, Event
from tests.simulation.material import COUNTED, LEAVERS, PEOPLE

__all__ = ["FAULTS", "Fault", "Scenario", "scenario"]

STEPS = (
    "confirm", "init_transactions", "init_answer", "committed", "committed_answer", "seek", "read_batch", "end_offset",
    "end_offset_answer", "begin", "send", "send_answer", "send_offsets", "send_offsets_answer", "commit",
    "commit_answer", "closed", "read_consents", "rewind",
)  # fmt: skip
"""where a worker may be stopped, killed or asked to end"""

FAULTS = {
    "kill a worker": 4,
    "pause a worker": 4,
    "stop a worker": 3,
    "kill a worker at a step": 5,
    "pause a worker at a step": 8,
    "stop a worker at a step": 3,
    "kill a node": 4,
    "pause a node": 4,
    "isolate a node": 4,
    "cut a worker off": 4,
    "cut a worker off one way": 4,
    "cut the clients off": 2,
    "cut nodes off from each other": 3,
    "slow link": 3,
    "slow follower": 5,
    "late end of a transaction": 4,
    "slow markers": 3,
    "move a leader": 5,
    "move a coordinator": 4,
    "rebalance": 4,
    "compact": 4,
    "jump of a clock": 3,
    "below min.insync.replicas": 3,
    "reject a batch": 3,
    "retention": 1,
    "break a record": 1,
    "make consents anew": 1,
}
"""kinds of faults, and how often each is drawn compared with the others"""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when, what, how long, and which of those it may hit."""

    at: float
    kind: str
    seconds: float
    which: int
    step: str
    count: int


@dataclass(frozen=True)
class Scenario:
    """One run."""

    seed: int
    partitions: int
    workers: int
    rekeyed: bool
    strict: bool
    until: float
    """when the faults end"""
    spread: float
    """of latencies"""
    most: int
    lag: float
    """by how much followers are always late, in seconds"""
    events: list[Event] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    kinds: tuple[str, ...] = ()
    transaction_timeout: float = 5.0
    crowd: bool = False
    """whether people are counted too"""
    visits: list[Event] = field(default_factory=list)
    """events of those who are counted"""

    @property
    def in_order(self) -> bool:
        """Whether consents are written with rising versions only, as compaction asks for."""
        return "compact" in self.kinds


def scenario(seed: int) -> Scenario:
    """Draw the run with this number."""
    random = Random(f"scenario {seed}")
    strict = random.random() < 0.4
    until = random.uniform(2.0, 5.0)
    kinds = _kinds(random, strict)
    made = Scenario(
        seed,
        partitions=random.choice((1, 1, 2, 2, 3)),
        workers=random.choice((1, 2, 2, 3)),
        rekeyed=random.random() < 0.35,
        strict=strict,
        until=until,
        spread=random.choice((0.0005, 0.002, 0.008)),
        most=random.choice((2, 5, 1_000)),
        lag=random.choice((0.0, 0.0, 0.005, 0.02, 0.08)),
        kinds=kinds,
        transaction_timeout=Random(f"timeout {seed}").choice((0.6, 5.0, 5.0)),
        crowd=Random(f"crowd {seed}").random() < 0.12,
    )
    if made.crowd:
        made.visits.extend(_visits(Random(f"visits {seed}"), until))
    people = PEOPLE[: random.randint(2, len(PEOPLE))]
    made.changes.extend(_changes(random, people, until))
    made.events.extend(_events(random, people, until))
    made.faults.extend(_faults(random, kinds, until, strict))
    return made


def _kinds(random: Random, strict: bool) -> tuple[str, ...]:
    share = random.choice((0.0, 0.1, 0.2, 0.35))
    kinds = tuple(kind for kind, weight in FAULTS.items() if random.random() < share * (0.4 + weight / 5))
    # A leader that is cut off from its cluster goes on telling its old end: only the strict gate is made for it.
    return kinds if strict else tuple(kind for kind in kinds if kind != "isolate a node")


def _changes(random: Random, people: tuple[str, ...], until: float) -> list[Change]:
    kinds = ["withdraw"] * 8 + ["grant"] * 7 + ["withdraw and fence"] * 2
    kinds += ["command", "unreadable", "tombstone", "replay", "replay", "contradict", "elsewhere"]
    changes = [Change(0.02 + 0.01 * index, person, "grant") for index, person in enumerate(people)]
    numbers = iter(range(1000, 2000))
    for _ in range(random.randint(15, 30)):
        kind = random.choice(kinds)
        if random.random() < 0.002:
            kind = "block"
        follow = random.choice((0, 1, 1, 2, 3)) if kind != "grant" else random.choice((0, 0, 1))
        changes.append(
            Change(
                random.uniform(0.3, until),
                random.choice(people),
                kind,
                tuple(next(numbers) for _ in range(follow)),
                random.choice((0.0, 0.0, 0.0, 0.001, 0.01, 0.04)),
            )
        )
    return sorted(changes, key=lambda change: change.at)


def _events(random: Random, people: tuple[str, ...], until: float) -> list[Event]:
    times = []
    for _ in range(random.randint(6, 14)):
        # They come in bursts.
        start, count = random.uniform(0.1, until), random.randint(1, 8)
        times += [start + random.random() * 0.05 for _ in range(count)]
    return [Event(at, random.choice(people), number) for number, at in enumerate(sorted(times))]


def _visits(random: Random, until: float) -> list[Event]:
    """Events with an even number below 8, so that all come by one topic; most are of one page, and some of three."""
    people = (*COUNTED[: random.randint(8, len(COUNTED))], *LEAVERS)
    pages = random.choice(((0, 6), (0, 6, 0, 6, 0, 2), (0, 2, 4)))
    times = sorted(random.uniform(0.3, until) for _ in range(random.randint(30, 80)))
    return [Event(at, random.choice(people), 12 * number + random.choice(pages)) for number, at in enumerate(times)]


def _faults(random: Random, kinds: tuple[str, ...], until: float, strict: bool) -> list[Fault]:
    if not kinds:
        return []
    weights = [FAULTS[kind] for kind in kinds]
    count = random.choice((2, 4, 8, 14))
    faults: list[Fault] = []
    for kind in random.choices(kinds, weights, k=count):
        # About half, one and a half, and three session time-outs, or a moment.
        seconds = random.choice((0.05, 0.5, 1.5, 3.0)) * random.uniform(0.8, 1.2)
        if kind == "pause a node" and not strict:
            # A leader that was replaced while it stood still answers as one that is cut off, until it hears of it.
            seconds = min(seconds, 0.5)
        if kind in ("retention", "break a record", "make consents anew") and any(
            fault.kind == kind for fault in faults
        ):
            continue
        steps = random.choice(STEPS)
        faults.append(
            Fault(random.uniform(0.2, until), kind, seconds, random.randrange(1 << 16), steps, random.randint(1, 4))
        )
    return sorted(faults, key=lambda fault: fault.at)
