"""Both stages of the crowd gate as lanes on a broker in memory: exact, with a fault at every step that they take."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from streams.event import iso
from streams.kafka.agents import minimize, release
from streams.kafka.follower import Follower
from streams.kafka.lane import Lane
from streams.kafka.partitioner import owner_of, partition_of
from streams.kafka.port import PortError
from streams.kafka.work import BoundAgent, LaneSettings, LaneState
from streams.keys import MasterKey
from streams.plan import compile_plan
from streams.policy import parse_policy
from streams.testing import MemoryBroker
from tests.kafka.test_lane import Watching

POLICY = b"""
policy: hall
version: 1
sources:
  web: {topic: raw, own: true, subject: who, type: what}
purposes:
  stock:
    benefit: Something a person would want
    topic: out
    rung: crowd
    lifetime: 1d
    crowd: {k: 5, window: 1h, by: [place], most_per_person: 1, sum: {n: [0, 10]}}
events:
  seen:
    place: {is: system.operations, for: [stock]}
    n: {is: system.operations, for: [stock]}
"""
PARTITIONS = 2
HOUR = 3_600_000
NOW = 100 * HOUR
PEOPLE = [f"person-{number}" for number in range(40)]
STEPS = ["confirm", "init_transactions", "committed", "read_state", "seek", "end_offset", "begin", "send"]
STEPS += ["send_offsets", "commit", "commit_answer", "read_batch"]

WORKER = ContextVar("WORKER", default=0)


class Hall:
    """A broker with two partitions, and both stages of each as tasks that end with the test."""

    def __init__(self) -> None:
        self.plan = compile_plan(parse_policy(POLICY), MasterKey(bytes(32)))
        self.broker = MemoryBroker(PARTITIONS)
        self.watch = Watching()
        self.lanes: list[asyncio.Task[None]] = []
        self.now = NOW

    def start(self) -> None:
        for partition in range(PARTITIONS):
            follower = Follower(
                partition, self.broker.consents("hall.consents", partition), owner_of(partition, PARTITIONS)
            )
            self.lanes.append(asyncio.ensure_future(follower.run()))
            self._lane(minimize, partition, follower)
            self._lane(release, partition, None)

    def _lane(self, agent: BoundAgent, partition: int, follower: Follower | None) -> None:
        port = self.broker.lane(
            f"{agent.name}-{partition}",
            agent.topics(self.plan),
            "hall.consents",
            partition,
            agent.state_topic(self.plan),
        )
        port.most = 7
        lane = Lane(
            agent, partition, port, follower,
            plan=self.plan, partitions=PARTITIONS, clock=lambda: self.now, settings=LaneSettings(pause=0.0),
            watch=self.watch,
        )  # fmt: skip
        self.lanes.append(asyncio.ensure_future(lane.run()))

    async def end(self) -> None:
        for task in self.lanes:
            task.cancel()
        await asyncio.gather(*self.lanes, return_exceptions=True)
        self.lanes.clear()

    def consent(self, who: str, version: int, rung: str | None = "crowd") -> None:
        purposes = {} if rung is None else {"stock": {"rung": rung, "since": iso(0)}}
        record = {"subject": who, "version": version, "purposes": purposes}
        partition = partition_of(who.encode(), PARTITIONS)
        self.broker.append("hall.consents", partition, who.encode(), json.dumps(record).encode(), 0)

    def event(self, who: str, place: str, n: int, at: int) -> None:
        value = json.dumps({"who": who, "what": "seen", "place": place, "n": n}).encode()
        self.broker.append("raw", partition_of(who.encode(), PARTITIONS), who.encode(), value, at)

    def past(self, at: int) -> None:
        """Let every partition see an event of nobody from later on."""
        for partition in range(PARTITIONS):
            self.broker.append("raw", partition, None, b'{"what": "seen"}', at)

    def told(self) -> Counter[tuple[str, str, int, int, int]]:
        """The cells that are told: window, place, people, events, sum."""
        return Counter(
            (said["window"]["from"], said["cell"]["place"], said["people"], said["events"], said["sums"]["n"]["sum"])
            for said in self._outputs()
            if "cell" in said
        )

    def complete(self) -> list[str]:
        """The windows that are said to be complete, in order."""
        return sorted(said["window"]["from"] for said in self._outputs() if "cell" not in said)

    def _outputs(self) -> list[dict[str, Any]]:
        entries = [entry for partition in range(PARTITIONS) for entry in self.broker.read("out", partition)]
        return [json.loads(entry.value or b"") for entry in entries]

    async def until_complete(self, windows: int) -> None:
        await self.until(lambda: len(self.complete()) >= windows)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, woken by each change on the broker."""
        async with asyncio.timeout(20):
            while not condition():
                for task in self.lanes:
                    if task.done() and not task.cancelled():
                        task.result()
                await asyncio.sleep(0)


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    made = Hall()
    yield made
    await made.end()


def two_windows(hall: Hall) -> Counter[tuple[str, str, int, int, int]]:
    """Let 40 people be in three places within two hours; return what is to be told of it, counted here."""
    told: Counter[tuple[str, str, int, int, int]] = Counter()
    for who in PEOPLE:
        hall.consent(who, 1)
    for hour in (0, 1):
        for number, who in enumerate(PEOPLE):
            place = "north" if number < 20 else "south" if number < 34 else "cellar" if number < 37 else "attic"
            hall.event(who, place, 1, hour * HOUR + number)
            hall.event(who, place, 2, hour * HOUR + number)
        told[iso(hour * HOUR), "north", 20, 40, 60] += 1
        told[iso(hour * HOUR), "south", 14, 28, 42] += 1
    hall.past(2 * HOUR)
    return told


async def test_cells_of_many_people_are_told_once_and_those_of_few_are_not(hall: Hall) -> None:
    told = two_windows(hall)
    hall.start()
    await hall.until_complete(2)
    assert hall.told() == told
    assert hall.complete() == [iso(0), iso(HOUR)]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("step", STEPS)
async def test_a_failure_at_any_step_counts_nothing_twice_and_loses_nothing(hall: Hall, step: str, times: int) -> None:
    told = two_windows(hall)
    taken: Counter[int] = Counter()

    async def fail(name: str, partition: int) -> None:
        if name == step:
            taken[partition] += 1
            if taken[partition] % 3 == 1 and taken[partition] < 3 * times:
                raise PortError("a fault")

    hall.broker.hook = fail
    hall.start()
    await hall.until_complete(2)
    assert hall.told() == told
    assert hall.complete() == [iso(0), iso(HOUR)]
    assert sum(taken.values()) > times


@pytest.mark.parametrize("after", [1, 4, 9])
@pytest.mark.parametrize("step", STEPS)
async def test_lanes_killed_at_any_step_are_taken_over_exactly_once(hall: Hall, step: str, after: int) -> None:
    told = two_windows(hall)
    left, killed = after, asyncio.Event()

    async def kill(name: str, _partition: int) -> None:
        # As by SIGSTOP for all lanes that run: what they had sent stays where it is.
        nonlocal left
        left -= name == step
        if left == 0:
            killed.set()
        if killed.is_set() and WORKER.get() == 1:
            await asyncio.Event().wait()

    hall.broker.hook = kill
    WORKER.set(1)
    hall.start()
    await hall.until(lambda: killed.is_set() or len(hall.complete()) == 2)
    killed.set()
    WORKER.set(2)
    hall.start()
    await hall.until_complete(2)
    assert hall.told() == told
    assert hall.complete() == [iso(0), iso(HOUR)]


async def test_who_takes_it_back_before_the_closing_is_in_no_window(hall: Hall) -> None:
    for who in PEOPLE[:12]:
        hall.consent(who, 1)
        hall.event(who, "north", 1, 0)
    hall.start()
    committed = hall.broker.committed
    await hall.until(lambda: sum(committed.get(("raw", partition), 0) for partition in range(PARTITIONS)) == 12)
    for who in PEOPLE[:4]:
        hall.consent(who, 2, None)
    hall.past(HOUR)
    await hall.until_complete(1)
    assert hall.told() == {(iso(0), "north", 8, 8, 8): 1}


async def test_bad_events_are_bounded_and_tell_nothing(hall: Hall) -> None:
    told = two_windows(hall)
    # Somebody who is everywhere adds to one cell of a window, and nobody else is there.
    for number in range(3_000):
        hall.event("person-39", f"place-{number}", 1, 2)
    # Numbers that are none, or that no sum holds, add no more than one person may (here: from 0 to 10).
    strange = ["1e308", "-1e308", '"NaN"', "true", "null", "[1]", "{}", "99999999999999999999999999", "-0.0"]
    for who, n in zip([f"person-{number}" for number in range(9)], strange, strict=True):
        value = b'{"who":"%b","what":"seen","place":"north","n":%b}' % (who.encode(), n.encode())
        hall.broker.append("raw", partition_of(who.encode(), PARTITIONS), who.encode(), value, 3)
    for nonsense in (b"NaN", b"Infinity", b"1e400", b"1" * 5_000):
        hall.broker.append(
            "raw", 0, b"person-0", b'{"who":"person-0","what":"seen","place":"north","n":%b}' % nonsense, 3
        )
    # A place that is no scalar makes no cell; a time of the year 9999 is now.
    hall.broker.append("raw", 0, b"person-1", b'{"who":"person-1","what":"seen","place":{"a":1},"n":1}', 3)
    hall.event("person-2", "moon", 1, 253_402_300_799_000)
    hall.past(2 * HOUR)
    hall.start()
    await hall.until_complete(2)
    places = {place for _, place, *_ in hall.told()}
    assert places == {"north", "south"}
    [(*_, events, most)] = [cell for cell in hall.told() if cell[:2] == (iso(0), "north")]
    [(*_, before, least)] = [cell for cell in told if cell[:2] == (iso(0), "north")]
    assert before <= events <= before + len(strange) + 4
    assert least <= most <= 20 * 10
    assert hall.told().keys() >= {cell for cell in told if cell[0] == iso(HOUR) or cell[1] == "south"}


async def test_what_somebody_else_writes_between_the_stages_is_recorded_and_passed_over(hall: Hall) -> None:
    forged = b'{"type":"closing","purpose":"stock","through":0}'
    for topic in ("hall.closings", "hall.partials"):
        for partition in range(PARTITIONS):
            for key, value in ((b"stock", forged), (None, None), (b"\xff", b"\0" * 40), (b"0", b"")):
                hall.broker.append(topic, partition, key, value)
    told = two_windows(hall)
    hall.start()
    await hall.until_complete(2)
    assert hall.told() == told
    found = [
        json.loads(entry.value or b"") for at in range(PARTITIONS) for entry in hall.broker.read("hall.quarantine", at)
    ]
    foreign = [(one["source"]["topic"], one["source"]["offset"]) for one in found if one["reason"] == "not_ours"]
    assert sorted(foreign) == sorted(
        (topic, offset)
        for topic in ("hall.closings", "hall.partials")
        for offset in range(4)
        for _ in range(PARTITIONS)
    )


@pytest.mark.parametrize("topic", ["hall.counting", "hall.rounds"])
async def test_a_state_that_cannot_be_read_stops_the_lane_and_nothing_is_told(hall: Hall, topic: str) -> None:
    two_windows(hall)
    for partition in range(PARTITIONS):
        hall.broker.append(topic, partition, b"somebody else", b"writes here")
    hall.start()
    await hall.until(lambda: hall.watch.states.count(LaneState.RESTARTING) > 10)
    assert hall.told() == {}
    assert hall.complete() == []
