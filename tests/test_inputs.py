"""The inputs of the promises on the core: the table of `tests/inputs.py` through `process`, the oracle and real lanes.

What holds of all of them is checked of each: one outcome, no exception, the same outcome when it is processed again (by
callers however deep), one count, the offset committed once, nothing of the person in what is not published nor in what
is told about it, and the lane goes on to publish the next event. What no single event shows has tests of its own below.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from streams.consent import Consents
from streams.errors import SettingsError
from streams.event import RawEvent
from streams.kafka.agents import minimize
from streams.kafka.follower import Follower
from streams.kafka.lane import Lane
from streams.kafka.member import MetricsWatch
from streams.kafka.partitioner import owner_of
from streams.kafka.work import LaneSettings
from streams.keys import MasterKey, installation_key
from streams.metrics import Metrics
from streams.outcome import Outcome, Output
from streams.pipeline import Place, process
from streams.plan import Plan, compile_plan
from streams.policy import parse_policy
from streams.testing import MemoryBroker
from streams.transforms import FORMS
from tests.inputs import (
    BLOCKING,
    BROKEN,
    BROKER_ONLY,
    CANARY,
    CASES,
    COMPRESSED,
    KEPT,
    KEY,
    NEIGHBOURS,
    OLD,
    PARTITIONS,
    SHARED,
    SUBJECT,
    Case,
    Said,
    event,
    flat,
    granted,
    place_of,
    policy,
    said,
)
from tests.model import Event, History, moment, predict
from tests.strategies import NOW, SECRET, compiled, folded

EVERY = [*CASES, *BLOCKING]
EACH = pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compiled(policy())


@pytest.fixture(scope="module")
def consents() -> Consents:
    """What is known of the person whom the tests below are about."""
    return folded([(KEY, SHARED[0].value)])


def in_force(case: Case) -> Iterator[Said]:
    """The consent records that count for a case: those of its partition whose transactions were not aborted."""
    for record in (*SHARED, *case.said):
        if place_of(record.key, record.away) == case.partition and record.transaction != "aborted":
            yield record


def run(case: Case, plan: Plan, consents: Consents) -> Outcome:
    record = RawEvent(1042, case.timestamp, case.key, case.value, case.headers)
    return process(record, Place(plan.sources[0], case.partition), consents, plan, NOW)


def deeper(case: Case, plan: Plan, consents: Consents, frames: int) -> Outcome:
    """Process from a caller that stands deeper in the stack."""
    return deeper(case, plan, consents, frames - 1) if frames else run(case, plan, consents)


# --- the table through `process` --------------------------------------------------------------------------------------


@EACH
def test_each_input_has_its_outcome(case: Case, plan: Plan) -> None:
    consents = Consents(owner_of(case.partition, PARTITIONS))
    for record in in_force(case):
        consents.apply(record.key, record.value)
    outcome = run(case, plan, consents)
    assert deeper(case, plan, consents, 300) == outcome

    if isinstance(case.expected, dict):
        assert outcome.kind == "published"
        (output,) = outcome.outputs
        assert flat(json.loads(output.value)) == case.expected
        assert CANARY not in repr(output)
        return
    assert outcome.reason == case.expected
    assert SUBJECT not in repr(outcome)
    assert CANARY not in repr(outcome)
    if outcome.kind == "suppressed":
        assert outcome.outputs == ()
        return
    assert outcome.kind == "quarantined"
    (output,) = outcome.outputs
    assert (output.topic, output.key, output.headers, output.timestamp) == ("shop.quarantine", None, [], None)
    record_of = json.loads(output.value)
    assert record_of["source"] == {"topic": "shop.raw", "partition": case.partition, "offset": 1042}
    assert (record_of["reason"], record_of["policy"]) == (case.expected, "shop@1")
    assert record_of["size"] == len(case.value or b"")
    assert record_of["key"] == ("absent" if case.key is None else "present" if case.key else "empty")
    named = {"user_id", "type", "at", "id", "product", "price", "page.url", "email", ""}
    assert set(record_of.get("shape", {})) <= named


def test_the_oracle_agrees_on_all_of_them() -> None:
    for case in EVERY:
        if case.away:
            continue  # The oracle knows no partitions.
        history: History = [(record.key, record.value) for record in in_force(case)]
        prediction = predict(policy(), SECRET, Event(case.value, case.key, case.timestamp, "web"), history, NOW)
        if isinstance(case.expected, dict):
            assert [flat(output.value) for output in prediction.outputs] == [case.expected], case.name
        else:
            assert prediction.reason == case.expected, case.name


def test_every_number_of_the_list_is_here() -> None:
    of_the_table = {case.number for case in EVERY}
    of_a_disk = {int(broken.name.split()[0]) for broken in [*BROKEN, *OLD]}
    of_this_file = {int(name.split("_")[1]) for name in globals() if name.startswith("test_") and name[5].isdigit()}
    assert of_the_table | of_this_file == set(range(1, 45)) - BROKER_ONLY
    assert of_a_disk >= BROKER_ONLY
    names = [case.name for case in [*EVERY, *COMPRESSED]] + [broken.name for broken in [*BROKEN, *OLD]]
    assert len(set(names)) == len(names)


# --- the table through a lane -----------------------------------------------------------------------------------------


class Bench:
    """One lane of a partition on a broker in memory, with real metrics."""

    def __init__(self, plan: Plan, partition: int) -> None:
        self.plan = plan
        self.partition = partition
        self.broker = MemoryBroker(PARTITIONS)
        self.metrics = Metrics()
        self.watch = MetricsWatch(self.metrics, lambda: NOW)
        self._tasks: list[asyncio.Task[None]] = []

    async def write_consents(self, records: Iterable[Said]) -> None:
        """Write consent records, each to where it is said to lie, in transactions where they are in one."""
        for number, record in enumerate(records):
            at = place_of(record.key, record.away)
            if not record.transaction:
                self.broker.append("shop.consents", at, record.key, record.value, NOW)
                continue
            other = self.broker.lane(f"not-ours-{number}", [], "shop.consents", at)
            await other.init_transactions()
            await other.begin()
            await other.send({("shop.consents", at): [Output("", record.key, record.value or b"", [], NOW)]})
            if record.transaction == "committed":
                await other.commit()
            await other.close_producer(abort=True)

    def start(self) -> None:
        """Start the follower and the lane."""
        at = self.partition
        follower = Follower(at, self.broker.consents("shop.consents", at), owner_of(at, PARTITIONS))
        port, watch = self.broker.lane(f"lane-{at}", ["shop.raw"], "shop.consents", at), self.watch
        settings = LaneSettings(patience=10.0, deadline=5.0, pause=0.0)
        lane = Lane(
            minimize, at, port, follower,
            plan=self.plan, partitions=PARTITIONS, clock=lambda: NOW, settings=settings, watch=watch,
        )  # fmt: skip
        self._tasks += [asyncio.ensure_future(follower.run()), asyncio.ensure_future(lane.run())]

    async def handled(self, count: int) -> None:
        """Wait until the lane has committed and counted so many events; fail if it has ended."""
        raw = "shop.raw", self.partition
        async with asyncio.timeout(10):
            while self.broker.committed.get(raw, 0) < count or sum(self.counted().values()) < count:
                for task in self._tasks:
                    assert not task.done(), f"it has ended: {task.exception()!r}"
                await asyncio.sleep(0)

    def counted(self) -> dict[tuple[str, str], float]:
        """The events that are counted, by outcome and reason."""
        return {
            (sample.labels["outcome"], sample.labels["reason"]): sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "celosia_events_total" and sample.value
        }

    def everything(self) -> str:
        """All that anybody can read of what the lane did: topics with what was aborted too, and the metrics page."""
        logs = self.broker._logs
        written = [entry for (topic, _), log in logs.items() if topic not in INPUTS for entry in log.entries]
        return repr(written) + generate_latest(self.metrics.registry).decode()

    async def close(self) -> None:
        """End the lane."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


INPUTS = ("shop.raw", "shop.consents")


@pytest.fixture
async def bench(plan: Plan, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    made = Bench(plan, request.node.callspec.params["case"].partition)
    yield made
    await made.close()


@EACH
async def test_a_lane_gives_each_input_one_outcome_and_goes_on(
    case: Case, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    at, neighbour = bench.partition, NEIGHBOURS[bench.partition]
    await bench.write_consents([*SHARED, granted(neighbour), *case.said])
    bench.broker.append("shop.raw", at, case.key, case.value, case.timestamp, case.headers)
    bench.start()
    await bench.handled(1)
    published, quarantined = bench.broker.read("shop.ads", at), bench.broker.read("shop.quarantine", at)
    if isinstance(case.expected, dict):
        counted = {("published", ""): 1.0}
        assert [flat(json.loads(entry.value or b"")) for entry in published] == [case.expected]
        assert quarantined == []
    else:
        assert published == []
        assert [json.loads(entry.value or b"")["reason"] for entry in quarantined] in ([], [case.expected])
        counted = {("quarantined" if quarantined else "suppressed", case.expected): 1.0}
    assert bench.counted() == counted

    bench.broker.append("shop.raw", at, neighbour.encode(), event(user_id=neighbour), NOW)
    await bench.handled(2)
    assert bench.broker.committed == {("shop.raw", at): 2}
    if case.blocks:
        assert bench.counted() == {("suppressed", "partition_blocked"): 2}
    else:
        assert len(bench.broker.read("shop.ads", at)) == len(published) + 1
    assert sum(bench.counted().values()) == 2
    assert CANARY not in bench.everything()
    assert CANARY not in caplog.text


async def test_39_gaps_of_compaction_and_control_records_are_no_reason_to_wait(plan: Plan) -> None:
    """The consent partition ends with a control record, and begins and goes on with gaps."""
    at = place_of(KEY)
    bench = Bench(plan, at)
    older = [granted(SUBJECT, version) for version in range(1, 4)]
    last = granted(SUBJECT, 4)._replace(transaction="committed")
    await bench.write_consents([*older, granted(NEIGHBOURS[at]), *older, last])
    log = bench.broker.log("shop.consents", at)
    log.entries = [entry for entry in log.entries if entry.offset in (3, 7, 8)]
    bench.broker.append("shop.raw", at, KEY, event(), NOW)
    bench.start()
    await bench.handled(1)
    assert bench.counted() == {("published", ""): 1}
    await bench.close()


# --- what no single event shows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-04-01T00:00:01.999Z", "recorded_before_consent"),
        ("2026-04-01T00:00:02Z", None),
        ("2026-04-30T23:59:59.999Z", None),
        ("2026-05-01T00:00:00Z", "expired"),
    ],
)
def test_34_a_consent_holds_from_the_skew_after_since_to_the_moment_before_until(at: str, expected: str | None) -> None:
    skewed = policy()
    skewed["sources"]["web"]["clock_skew"] = "2s"
    grant = {"rung": "pseudonymous", "since": "2026-04-01T00:00:00Z", "until": "2026-05-01T00:00:00Z"}
    value = json.dumps({"subject": SUBJECT, "version": 1, "purposes": {"ads": grant}}).encode()
    now = moment(at)
    assert now is not None
    plan = compiled(skewed)
    outcome = process(RawEvent(0, now, KEY, event(at=at)), Place(plan.sources[0], 0), folded([(KEY, value)]), plan, now)
    assert outcome.reason == expected


def test_31_a_rung_below_anonymous_allows_no_event_whatever_forms_it_has() -> None:
    fields = {"product": {"is": "user.behavior", "for": "all", "as": {"crowd": "keep"}}}
    plan = compiled({**policy(), "events": {"viewed": fields}})
    for rung, expected in [("nothing", "not_allowed"), ("crowd", "rung_too_low"), ("anonymous", None)]:
        grant = said(1, f'"ads":{{"rung":"{rung}","since":"2020-01-01T00:00:00Z"}}', subject=SUBJECT)
        assert run(Case("", event(), ""), plan, folded([(KEY, grant)])).reason == expected


def test_37_a_consent_for_a_million_subjects(plan: Plan) -> None:
    consents = Consents()
    for number in range(1_000_000):
        consents.apply(b"u%d" % number, b'{"subject":"u%d","version":1,"purposes":{}}' % number)
    assert len(consents) == 1_000_000
    assert run(Case("", event(user_id="u999999"), "", b"u999999"), plan, consents).reason == "not_allowed"
    assert run(Case("", event(user_id="u1000000"), "", b"u1000000"), plan, consents).reason == "no_consent"


def raises(value: Any, _at: int) -> Any:
    raise RuntimeError(f"cannot take {value}")


def mutates(value: Any, _at: int) -> Any:
    if isinstance(value, dict):
        value["product"] = CANARY
    return "done"


MISBEHAVING: dict[str, tuple[Callable[[Any, int], Any], Any]] = {
    "raises": (raises, "transform_failed"),
    "nothing": (lambda value, _at: None, {"at": KEPT["at"]}),
    "its input": (lambda value, _at: value, {"at": KEPT["at"]}),
    "an array": (lambda value, _at: [value], {"at": KEPT["at"]}),
    "an object": (lambda value, _at: object(), {"at": KEPT["at"]}),
    "a number too long to write": (lambda value, _at: int("9" * 4300) * 10, "transform_failed"),
    "mutates": (mutates, {"at": KEPT["at"], "product": "done"}),
}


@pytest.mark.parametrize("name", MISBEHAVING)
def test_41_a_form_that_misbehaves(name: str, consents: Consents, monkeypatch: pytest.MonkeyPatch) -> None:
    form, expected = MISBEHAVING[name]
    monkeypatch.setitem(FORMS, "bad", replace(FORMS["drop"], name="bad", make=lambda _parameters, _context: form))
    bad = policy()
    bad["events"]["viewed"]["product"]["as"] = {"anonymous": "bad"}
    plan = compile_plan(parse_policy(json.dumps(bad).encode()), MasterKey(SECRET))
    outcome = run(Case("", event(product={"email": CANARY}), ""), plan, consents)
    if isinstance(expected, str):
        assert outcome.reason == expected
    else:
        assert flat(json.loads(outcome.outputs[0].value)) == expected
    assert CANARY not in repr(outcome)


def pseudonyms(plan: Plan, consents: Consents, *values: bytes) -> list[str]:
    """The pseudonym of each event's subject, in order."""
    outcomes = [run(Case("", value, ""), plan, consents) for value in values]
    return [json.loads(outcome.outputs[0].value)["_celosia"]["subject"] for outcome in outcomes]


def test_42_a_key_that_turns_in_mid_batch(plan: Plan, consents: Consents) -> None:
    """Events on both sides of a rotation have pseudonyms of their own epochs, in whichever order they come."""
    before, after = event(at="2026-04-08T23:59:59.999Z"), event(at="2026-05-09T00:00:00Z")
    subjects = pseudonyms(plan, consents, before, after, before, after)
    assert subjects[0] == subjects[2] != subjects[1] == subjects[3]
    assert subjects[0].split(".")[0] != subjects[1].split(".")[0]


def test_42_a_key_file_that_is_replaced_in_mid_batch_changes_nothing_that_runs(
    consents: Consents, tmp_path: Path
) -> None:
    file, parsed = tmp_path / "key", parse_policy(json.dumps(policy()).encode())
    MasterKey.create(file)
    plan = compile_plan(parsed, MasterKey.of_file(file))
    [first] = pseudonyms(plan, consents, event())
    file.unlink()
    MasterKey.create(file)
    # Another epoch in between: its key is derived anew, and not from what the file holds now.
    assert pseudonyms(plan, consents, event(at="2026-04-08T00:00:00Z"), event())[1] == first
    [anew] = pseudonyms(compile_plan(parsed, MasterKey.of_file(file)), consents, event())
    assert first.split(".")[0] != anew.split(".")[0]


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"00" * 31, b"no digits"])
def test_42_a_key_that_is_missing_or_none_stops_the_start(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "celosia" / "key"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if content is not None:
        file.parent.mkdir()
        file.touch(0o600)
        file.write_bytes(content)
    for named in (file, None):
        with pytest.raises(SettingsError, match="key"):
            installation_key(named, create=False)
    assert file.exists() == (content is not None)
