"""The lane on a broker in memory: what it promises, with a fault at every step that it takes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from streams.kafka.agents import minimize
from streams.kafka.follower import Follower
from streams.kafka.lane import Lane
from streams.kafka.port import OffsetsGone, PortError, Unreadable
from streams.kafka.work import Gate, LaneSettings, LaneState, Work
from streams.keys import MasterKey
from streams.plan import Plan, compile_plan
from streams.policy import parse_policy
from streams.testing import Entry, MemoryBroker, MemoryLane

POLICY = b"""
policy: lane
version: 1
sources:
  web: {topic: raw, own: true, subject: who, type: what}
purposes:
  ads: {benefit: Something a person would want, topic: out, rung: pseudonymous, rotate: 1d, lifetime: 1d}
events:
  seen: {n: {is: system.operations, for: all}}
"""
NOW = 1_000_000
STEPS = ["confirm", "init_transactions", "committed", "seek", "gate", "begin", "send", "send_offsets", "commit"]
STEPS += ["commit_answer", "read_batch"]
"""where a lane can be hurt; `gate` stands for the question that its gate asks"""


@pytest.fixture
def plan() -> Plan:
    return compile_plan(parse_policy(POLICY), MasterKey(bytes(32)))


class Watching:
    """Remembers what lanes report."""

    def __init__(self) -> None:
        self.states: list[LaneState] = []
        self.receipts: list[int] = []

    def state(self, lane: str, state: LaneState) -> None:
        self.states.append(state)

    def gate(self, lane: str, seconds: float) -> None:
        assert seconds >= 0

    def committed(self, lane: str, work: Work, seconds: float, offsets: Mapping[str, int]) -> None:
        assert all(offset > 0 for offset in offsets.values())

    def receipt(self, lane: str, through: int, written: list[int]) -> None:
        self.receipts.append(through)


class Bench:
    """A broker, and lanes and followers on it, as tasks that end with the test."""

    def __init__(self, plan: Plan, gate: Gate) -> None:
        self.plan = plan
        self.gate = gate
        self.question = "write_barrier" if gate == "strict" else "end_offset"
        self.broker = MemoryBroker()
        self.watch = Watching()
        self.tasks: list[asyncio.Task[None]] = []
        self.ports: list[MemoryLane] = []
        self.followers: list[Follower] = []

    def step(self, name: str) -> str:
        return self.question if name == "gate" else name

    def start(self, patience: float = 10.0) -> Lane:
        follower = Follower(0, self.broker.consents("lane.consents", 0), lambda _key: True)
        port = self.broker.lane("lane-0", ["raw"], "lane.consents", 0)
        settings = LaneSettings(patience=patience, deadline=5.0, pause=0.0, gate=self.gate)
        lane = Lane(
            minimize, 0, port, follower,
            plan=self.plan, partitions=1, clock=lambda: NOW, settings=settings, watch=self.watch,
        )  # fmt: skip
        self.ports.append(port)
        self.followers.append(follower)
        self.tasks += [asyncio.ensure_future(follower.run()), asyncio.ensure_future(lane.run())]
        return lane

    def consent(self, who: str, version: int, rung: str = "pseudonymous") -> int:
        purposes = {"ads": {"rung": rung, "since": "1970-01-01T00:00:00Z"}} if rung != "nothing" else {}
        record = {"subject": who, "version": version, "purposes": purposes}
        return self.broker.append("lane.consents", 0, who.encode(), json.dumps(record).encode(), NOW)

    def event(self, who: str, n: int) -> int:
        value = json.dumps({"who": who, "what": "seen", "n": n}).encode()
        return self.broker.append("raw", 0, who.encode(), value, NOW)

    def outputs(self) -> list[int]:
        return [json.loads(entry.value or b"")["n"] for entry in self.broker.read("out", 0)]

    def receipts(self) -> list[int]:
        return [json.loads(entry.value or b"")["through"] for entry in self.broker.read("lane.receipts", 0)]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, woken by each change on the broker."""
        async with asyncio.timeout(10):
            while not condition():
                for task in self.tasks:
                    if task.done() and not task.cancelled():
                        task.result()
                await asyncio.sleep(0)

    async def all_handled(self) -> None:
        await self.until(lambda: self.broker.committed.get(("raw", 0), 0) == self.broker.log("raw", 0).end)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture(params=["fast", "strict"])
async def bench(plan: Plan, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    made = Bench(plan, request.param)
    yield made
    await made.close()


async def test_events_of_those_who_allow_it_pass_and_no_others(bench: Bench) -> None:
    bench.consent("ana", 1)
    for n in range(10):
        bench.event("ana" if n % 2 else "ben", n)
    bench.start()
    await bench.all_handled()
    assert bench.outputs() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("times", [1, 3])
async def test_a_failure_at_any_step_loses_nothing_and_doubles_nothing(bench: Bench, step: str, times: int) -> None:
    bench.consent("ana", 1)
    left = times

    async def fail(name: str, _partition: int) -> None:
        nonlocal left
        if name == bench.step(step) and left:
            left -= 1
            raise PortError("made by the test")

    bench.broker.hook = fail
    bench.start()
    for n in range(50):
        bench.event("ana", n)
        if n % 7 == 0:
            await asyncio.sleep(0)
    await bench.all_handled()
    sent = 50
    while left:
        bench.event("ana", sent)
        sent += 1
        await bench.all_handled()
        await asyncio.sleep(0)
    assert bench.outputs() == list(range(sent))


@pytest.mark.parametrize("step", STEPS)
async def test_a_lane_killed_at_any_step_is_taken_over_exactly_once(bench: Bench, step: str) -> None:
    bench.consent("ana", 1)
    reached = asyncio.Event()

    async def hang(name: str, _partition: int) -> None:
        if name == bench.step(step) and not reached.is_set():
            reached.set()
            await asyncio.Event().wait()  # Stopped for ever, as by SIGSTOP; what it had sent stays where it is.

    bench.broker.hook = hang
    bench.start()
    for n in range(20):
        bench.event("ana", n)
    await asyncio.wait_for(reached.wait(), 10)
    bench.start()  # The group has given the partition to another worker.
    await bench.all_handled()
    assert bench.outputs() == list(range(20))


async def test_a_paused_lane_that_wakes_up_publishes_nothing(bench: Bench) -> None:
    bench.consent("ana", 1)
    reached, wake = asyncio.Event(), asyncio.Event()

    async def pause(name: str, _partition: int) -> None:
        if name == "send" and bench.broker.committed and not reached.is_set():
            reached.set()
            await wake.wait()

    bench.event("ana", 0)
    zombie = bench.start()
    await bench.all_handled()
    bench.broker.hook = pause
    bench.event("ana", 1)
    await asyncio.wait_for(reached.wait(), 10)
    bench.ports[0].member = False
    bench.start()
    await bench.all_handled()
    withdrawal = bench.consent("ana", 2, "nothing")
    await bench.until(lambda: bench.receipts()[-1] > withdrawal)
    before = len(bench.broker.read("out", 0))
    epochs = dict(bench.broker.epochs)
    wake.set()
    await bench.until(lambda: zombie.state is LaneState.FENCED)
    zombie.stop()
    await bench.until(lambda: zombie.state is LaneState.STOPPED)
    assert bench.broker.epochs == epochs
    assert len(bench.broker.read("out", 0)) == before
    assert bench.outputs() == [0, 1]
    assert LaneState.FENCED in bench.watch.states


async def test_a_member_that_was_fenced_takes_its_lane_back(bench: Bench) -> None:
    # A worker that has lost its partition without knowing starts its producer once more: the owner must not give up.
    bench.consent("ana", 1)
    lane = bench.start()
    await bench.until(lambda: lane.ready)
    bench.broker.start_producer("lane-0")
    bench.event("ana", 0)
    await bench.all_handled()
    assert bench.outputs() == [0]
    assert lane.ready


async def test_the_gate_comes_after_the_batch(bench: Bench) -> None:
    # The withdrawal is written in the moment in which the batch has been read: the gate's question must see it.
    bench.consent("ana", 1)
    bench.event("ana", 0)
    lane = bench.start()
    await bench.all_handled()
    asked = 0

    async def withdraw_at_the_gate(name: str, _partition: int) -> None:
        nonlocal asked
        if name == bench.question:
            asked += 1
            if asked == 1:
                bench.consent("ana", 2, "nothing")

    bench.broker.hook = withdraw_at_the_gate
    bench.event("ana", 1)
    await bench.all_handled()
    assert asked >= 1
    assert bench.outputs() == [0]
    assert lane.ready


async def test_without_a_gate_the_withdrawal_would_be_missed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Mutant M1: shows that the test above can fail. The follower is slow, which no timing may turn into a leak.
    bench.consent("ana", 1)
    bench.event("ana", 0)
    bench.start()
    await bench.all_handled()
    slow = asyncio.Event()

    async def hold_back(name: str, _partition: int) -> None:
        if name == "read_consents":
            await slow.wait()

    async def no_gate(_lane: Lane, _follower: Follower) -> None:
        return None

    bench.broker.hook = hold_back
    bench.consent("ana", 2, "nothing")
    bench.consent("ben", 1)
    monkeypatch.setattr(Lane, "_gate", no_gate)
    bench.event("ana", 1)
    await bench.all_handled()
    assert bench.outputs() == [0, 1]
    slow.set()


async def test_a_gate_that_waits_parks_the_batch_and_never_lets_it_through(bench: Bench) -> None:
    bench.consent("ana", 1)
    lane = bench.start(patience=0.01)
    await bench.until(lambda: lane.ready)
    go_on = asyncio.Event()

    async def hold_back(name: str, _partition: int) -> None:
        if name == "read_consents":
            await go_on.wait()

    bench.broker.hook = hold_back
    bench.consent("ana", 2, "nothing")
    bench.consent("ben", 1)
    bench.event("ana", 0)
    await bench.until(lambda: lane.state is LaneState.PARKED)
    assert not lane.ready
    assert bench.outputs() == []
    go_on.set()
    await bench.all_handled()
    assert bench.outputs() == []
    await bench.until(lambda: lane.ready)


async def test_a_receipt_comes_after_everything_older_and_nothing_older_comes_after(bench: Bench) -> None:
    offsets = [bench.consent("ana", 1)]
    bench.start()
    for n in range(300):
        bench.event("ana", n)
        if n % 5 == 4:
            offsets.append(bench.consent("ana", len(offsets) + 1))
        await asyncio.sleep(0)
    await bench.all_handled()
    await bench.until(lambda: bench.receipts()[-1] > offsets[-1])
    # In commit order: once a receipt is out, no later output was made under a consent that a newer one below the
    # receipt's offset had replaced.
    ends = {e.transaction: i for i, e in enumerate(_in_commit_order(bench.broker))}
    receipts = {e.transaction: json.loads(e.value or b"")["through"] for e in bench.broker.read("lane.receipts", 0)}
    for entry in bench.broker.read("out", 0):
        consent = offsets[json.loads(entry.value or b"")["_celosia"]["consent"] - 1]
        earlier = [through for t, through in receipts.items() if ends[t] < ends[entry.transaction]]
        assert not [offset for offset in offsets if consent < offset < max(earlier, default=0)]
    assert bench.outputs() == list(range(300))


def _in_commit_order(broker: MemoryBroker) -> list[Entry]:
    # One lane, one transaction at a time: the transactions' numbers are the order in which they were committed.
    entries = [*broker.read("out", 0), *broker.read("lane.receipts", 0)]
    return sorted(entries, key=lambda entry: entry.transaction or 0)


async def test_an_idle_lane_gives_receipts_at_once(bench: Bench) -> None:
    lane = bench.start()
    await bench.until(lambda: lane.ready)
    for version in range(1, 4):
        offset = bench.consent("ana", version)
        await bench.until(lambda offset=offset: bool(bench.receipts()) and bench.receipts()[-1] == offset + 1)  # type: ignore[misc]
    assert bench.receipts() == sorted(bench.receipts())


async def test_consents_read_while_the_gate_asks_are_no_sign_of_another_topic(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    # The answer is on its way, and older than what the follower reads meanwhile: nothing is wrong with the topic.
    bench.consent("ana", 1)
    bench.event("ana", 0)
    bench.start()
    await bench.all_handled()

    async def overtaken(name: str, _partition: int) -> None:
        if name == "end_offset_answer":
            bench.consent("ana", bench.broker.log("lane.consents", 0).end + 1)
            await bench.followers[0].reach(bench.broker.log("lane.consents", 0).end)

    bench.broker.hook = overtaken
    bench.event("ana", 1)
    await bench.all_handled()
    assert bench.outputs() == [0, 1]
    assert "rebuilding" not in caplog.text


async def test_a_consent_topic_that_ends_too_early_denies_everyone_until_it_is_rebuilt(bench: Bench) -> None:
    bench.consent("ana", 1)
    bench.consent("ben", 1)
    bench.event("ana", 0)
    lane = bench.start()
    await bench.all_handled()
    bench.broker.recreate("lane.consents", 0)
    bench.event("ana", 1)
    await bench.all_handled()
    bench.consent("ana", 1)
    bench.event("ana", 2)
    await bench.all_handled()
    assert bench.outputs() == [0, 2]
    assert lane.ready


async def test_a_consent_topic_made_anew_is_noticed_when_it_has_grown_beyond_what_was_read(bench: Bench) -> None:
    bench.consent("ana", 1)
    bench.event("ana", 0)
    bench.start()
    await bench.all_handled()
    held = asyncio.Event()

    async def hold_back(name: str, _partition: int) -> None:
        if name == "read_consents":
            await held.wait()  # The follower looks away, as a paused worker does.

    bench.broker.hook = hold_back
    bench.broker.recreate("lane.consents", 0)
    bench.consent("ana", 2, "nothing")
    for n in range(9):
        bench.consent(f"other-{n}", 1)
    bench.event("ana", 1)
    held.set()
    await bench.all_handled()
    assert bench.outputs() == [0]


async def test_a_gate_whose_answer_was_about_a_topic_that_is_no_more_asks_again(bench: Bench) -> None:
    # The follower will never come as far as the old topic went: who waits for that waits for ever.
    bench.consent("ana", 1)
    lane = bench.start(patience=0.01)
    await bench.until(lambda: lane.ready)
    for version in range(2, 30):
        bench.consent("ana", version)
    gone = False

    async def make_anew(name: str, _partition: int) -> None:
        nonlocal gone
        if name == f"{bench.question}_answer" and not gone:
            gone = True
            bench.broker.recreate("lane.consents", 0)
            bench.followers[0].rebuild()
            bench.consent("ana", 1)

    bench.broker.hook = make_anew
    bench.event("ana", 0)
    await bench.all_handled()
    assert gone
    assert bench.outputs() == [0]


async def test_a_leader_that_has_less_than_was_read_takes_the_lane_not_back(bench: Bench) -> None:
    # One that is cut off from its cluster says so. Nothing is given up, and nothing handled again.
    bench.consent("ana", 1)
    for n in range(3):
        bench.event("ana", n)
    bench.start()
    await bench.all_handled()
    left = 3

    async def stale(name: str, _partition: int) -> None:
        nonlocal left
        if name == "read_batch" and left:
            left -= 1
            raise OffsetsGone("raw", 3)

    bench.broker.hook = stale
    bench.event("ana", 3)
    await bench.all_handled()
    assert left == 0
    assert bench.outputs() == [0, 1, 2, 3]
    assert bench.broker.read("lane.quarantine", 0) == []


async def test_a_raw_topic_made_anew_is_read_from_its_beginning(bench: Bench) -> None:
    bench.consent("ana", 1)
    for n in range(3):
        bench.event("ana", n)
    lane = bench.start()
    await bench.all_handled()
    bench.broker.recreate("raw", 0)
    bench.event("ana", 3)
    await bench.all_handled()
    assert bench.outputs() == [0, 1, 2, 3]
    await bench.until(lambda: lane.ready)


async def test_old_offsets_of_a_coordinator_that_is_none_are_found_out(bench: Bench) -> None:
    # It answers from memory; the one that takes the offsets of the first transaction knows better.
    bench.consent("ana", 1)
    for n in range(3):
        bench.event("ana", n)
    bench.start()
    await bench.all_handled()
    port, told = bench.ports[0], list[dict[str, int | None]]()
    asked = port.committed

    async def from_memory() -> dict[str, int | None]:
        told.append({"raw": 1} if not told else await asked())
        return told[-1]

    port.committed = from_memory  # type: ignore[method-assign]
    bench.broker.start_producer("lane-0")  # It has to start again.
    bench.event("ana", 3)
    await bench.all_handled()
    assert bench.outputs() == [0, 1, 2, 3]
    assert told[0] == {"raw": 1}


async def test_what_retention_took_is_recorded_and_the_lane_goes_on(bench: Bench) -> None:
    bench.consent("ana", 1)
    bench.event("ana", 0)
    lane = bench.start()
    await bench.all_handled()
    lane.stop()
    await bench.until(lambda: lane.state is LaneState.STOPPED)
    for n in range(1, 10):
        bench.event("ana", n)
    bench.broker.delete_before("raw", 0, 6)
    bench.start()
    await bench.all_handled()
    assert bench.outputs() == [0, 6, 7, 8, 9]
    [record] = [json.loads(entry.value or b"") for entry in bench.broker.read("lane.quarantine", 0)]
    assert record["reason"] == "out_of_range"
    assert record["source"] == {"topic": "raw", "partition": 0, "offset": 1}
    assert record["to_offset"] == 6


async def test_a_lane_that_lost_its_membership_does_not_touch_the_producer_until_it_is_a_member_again(
    bench: Bench,
) -> None:
    """A coordinator that takes over knows the group as it was written down: it may count in whom the old one put out.

    Then no rebalance comes, and a lane that had ended would never start again (seed 32349 of the simulation).
    """
    asked: list[str] = []

    async def note(name: str, _partition: int) -> None:
        asked.append(name)

    bench.broker.hook = note
    lane = bench.start()
    bench.ports[0].member = False
    await bench.until(lambda: asked.count("confirm") >= 3)
    assert lane.state is LaneState.FENCED
    assert bench.broker.epochs == {}
    bench.ports[0].member = True
    await bench.until(lambda: lane.ready)


async def test_stopping_in_mid_transaction_finishes_or_aborts_it(bench: Bench) -> None:
    bench.consent("ana", 1)
    for n in range(5):
        bench.event("ana", n)
    lane = bench.start()

    async def stop(name: str, _partition: int) -> None:
        if name == "send_offsets":
            lane.stop()

    bench.broker.hook = stop
    await bench.until(lambda: lane.state is LaneState.STOPPED)
    assert bench.outputs() in ([], list(range(5)))
    assert bool(bench.outputs()) == (("raw", 0) in bench.broker.committed)
    assert not bench.broker._open


async def test_a_commit_whose_answer_is_lost_is_not_repeated(bench: Bench) -> None:
    bench.consent("ana", 1)
    commits = 0

    async def lose_the_answer(name: str, _partition: int) -> None:
        nonlocal commits
        commits += name == "commit"
        if name == "commit_answer":
            bench.broker.hook = None
            raise PortError("no answer")

    lane = bench.start()
    await bench.until(lambda: lane.ready)
    bench.broker.hook = lose_the_answer
    bench.event("ana", 0)
    bench.event("ana", 1)
    await bench.all_handled()
    await bench.until(lambda: lane.ready)
    assert bench.outputs() == [0, 1]


async def test_a_broken_batch_is_tried_twice_then_recorded_and_passed_over(bench: Bench) -> None:
    bench.consent("ana", 1)
    lane = bench.start()
    await bench.until(lambda: lane.ready)
    tries = 0

    async def broken(name: str, _partition: int) -> None:
        nonlocal tries
        if name == "read_batch" and bench.ports[0]._positions["raw"] < 2 <= bench.broker.log("raw", 0).end:
            tries += 1
            raise Unreadable("raw", bench.ports[0]._positions["raw"], 2)

    bench.broker.hook = broken
    for n in range(4):
        bench.event("ana", n)
    await bench.all_handled()
    assert tries == 2
    assert bench.outputs() == [2, 3]
    [record] = [json.loads(entry.value or b"") for entry in bench.broker.read("lane.quarantine", 0)]
    assert (record["reason"], record["source"]["offset"], record["to_offset"]) == ("unreadable", 0, 2)


async def test_a_broken_consent_batch_lets_nobody_through(bench: Bench) -> None:
    bench.consent("ana", 1)

    async def broken(name: str, _partition: int) -> None:
        if name == "read_consents":
            raise Unreadable("lane.consents", 0, 1)

    bench.broker.hook = broken
    bench.event("ana", 0)
    lane = bench.start(patience=0.01)
    await bench.until(lambda: lane.state is LaneState.PARKED)
    assert bench.outputs() == []
