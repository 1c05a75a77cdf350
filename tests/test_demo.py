"""The demo adds up, on both brokers; its audit sees what is wrong; its screen fits a small terminal."""

import io
import itertools
import json
import math
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import orjson
import pytest
from rich.console import Console

from streams.consent import ConsentRecord, Consents
from streams.demo.audit import Audit, Change, Sent
from streams.demo.report import Report, Totals, report
from streams.demo.run import schemas_folder
from streams.demo.screen import Moment, Screen
from streams.demo.shop import CREDIT, Act, People, Tills
from streams.embedded import java_and_maven
from streams.event import RawEvent
from streams.kafka.traffic import Received
from streams.keys import MasterKey
from streams.outcome import Coordinates
from streams.pipeline import Place as Source
from streams.pipeline import process
from streams.plan import compile_plan
from streams.policy import load_policy

NOW = 1_800_000_000_000
RECOMMENDATIONS = "personalization.recommendations"


@contextmanager
def demo(**options: Any) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process of its own, as a machine sees it."""
    code = f"import sys; from streams.demo import run_demo; sys.exit(run_demo(plain=True, **{options!r}))"
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def summary_of(out: str) -> dict[str, int]:
    """The sums as a person reads them."""
    found = re.findall(r"^ +(?:[=+] )?(in|published|suppressed|quarantined) +([\d,]+)", out, re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in found}


@pytest.mark.parametrize("broker", ["embedded", "kafka"])
def test_demo_adds_up_and_every_withdrawal_holds(broker: str) -> None:
    if broker == "kafka" and (reason := java_and_maven()):
        pytest.skip(reason)
    with demo(seconds=6, broker=broker) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.isascii()
    assert "\x1b" not in out
    assert CREDIT in out

    told = json.loads(out.splitlines()[-1])
    assert told["guarantee"] == ("exactly once" if broker == "kafka" else "at least once")
    assert told["ok"] is all(check["holds"] for check in told["checks"]) is True
    outcomes = {name: told[name] for name in ("published", "suppressed", "quarantined")}
    assert told["sent"] == sum(outcomes.values()) > 300
    assert all(outcomes.values())
    assert all(told["outputs"].values())
    assert told["published"] <= sum(told["outputs"].values()) <= 3 * told["published"]
    for name, reasons in told["reasons"].items():
        assert sum(reasons.values()) == told[name]
    assert set(told["reasons"]["quarantined"]) == {"malformed", "key_is_not_subject"}
    assert summary_of(out) == {"in": told["sent"]} | outcomes

    withdrawals = [change for change in told["changes"] if change["act"].startswith("withdraws")]
    assert sum(change["events_after_receipt"] for change in withdrawals) > 0
    assert sum(change["outputs_after_receipt"] for change in withdrawals) == 0
    assert "events after receipt published for the withdrawn purpose: 0" in out
    grants = [change for change in told["changes"] if change["act"] == "allows"]
    assert sum(change["outputs_after_receipt"] for change in grants) > 0
    for change in told["changes"]:
        assert change["too_much"] == 0
        assert change["receipt"].startswith("shop.receipts[")
        assert f"{change['person']} {change['act']}: " in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_that_is_interrupted_still_counts(number: signal.Signals) -> None:
    with demo(seconds=3600) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "published" in line and "published 0" not in line:
                process.send_signal(number)
                break
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["sent"] == summary_of(out)["in"] > 0


# The shop.


def test_same_shop_every_time_and_no_event_id_twice() -> None:
    def ids(count: int) -> list[str]:
        tills = Tills(12)
        lines = (tills.scan(NOW + number) for number in range(count))
        return [orjson.loads(line.value)["event_id"] for line in lines if not line.broken]

    two_laps = ids(2 * 5217)
    assert len(set(two_laps)) == len(two_laps) > 10_000
    assert ids(500) == two_laps[: len(ids(500))]


def test_lines_of_a_basket_come_in_their_order() -> None:
    tills, seen = Tills(12), Counter[tuple[str, str]]()
    for number in range(5217):
        line = tills.scan(NOW + number)
        if not line.broken:
            invoice, position, *lap = orjson.loads(line.value)["event_id"].split("-")
            assert int(position) > seen[invoice, str(lap)]
            seen[invoice, str(lap)] = int(position)


def test_people_choose_differently_and_change_once() -> None:
    people = People(NOW)
    asked = {record.subject: record for record in people.asked()}
    assert 100 < len(asked) < 206
    assert {len(record.purposes) for record in asked.values()} == {0, 1, 2, 3}
    changed = []
    for act in (Act.WITHDRAW, Act.LOWER, Act.WITHDRAW_ALL):
        person = people.ready_for(act, dict.fromkeys(asked, 20))
        assert person is not None
        record, allowed = people.change(person, act, NOW + 1000)
        assert record.version == asked[person].version + 1
        assert {name: record.purposes[name].rung for name in allowed} == allowed
        changed.append(person)
    assert len(set(changed)) == 3
    assert people.ready_for(Act.WITHDRAW, dict.fromkeys(changed, 20)) is None
    assert people.ready_for(Act.WITHDRAW, dict.fromkeys(asked, 1)) is None


# The audit. What the worker would publish comes from the same `process`; `Shop.known` is what the worker knows.


class Shop:
    """A shop without a broker: one partition, and a worker that may be told of consents too late."""

    def __init__(self) -> None:
        policy = load_policy(schemas_folder() / "policies" / "retail.yaml")
        self.plan = compile_plan(policy, MasterKey(bytes(32)))
        self.audit = Audit(self.plan)
        self.known = Consents()
        self.people = People(NOW - 1000)
        self.offsets = itertools.count()
        self.tills = Tills(1)
        for record in self.people.asked():
            self.write(record)
        self.receipt()

    def write(self, record: ConsentRecord, change: Change | None = None, told: bool = True) -> None:
        place = Coordinates("shop.consents", 0, next(self.offsets))
        if told:
            self.known.apply(record.subject.encode(), msgspec.json.encode(record))
        self.audit.consenting(record)
        self.audit.consented(record, place, change)

    def change(self, person: str, act: Act, told: bool = True) -> None:
        record, allowed = self.people.change(person, act, NOW)
        where = Coordinates("shop.consents", 0, -1)
        self.write(record, Change(act, person, allowed, record.version, where, 0.0), told)

    def receipt(self) -> list[Change]:
        value = b'{"topic":"shop.consents","partition":0,"through":%d,"policy":"retail@1"}' % next(self.offsets)
        return self.audit.received(self.record("shop.receipts", value), 0.02)

    def record(self, topic: str, value: bytes, headers: dict[str, bytes] | None = None) -> Received:
        return Received(Coordinates(topic, 0, next(self.offsets)), None, value, headers or {})

    def sell(self, acknowledged: bool = True) -> tuple[Sent, Coordinates, list[Received]]:
        """Send the next line of the first customer, and return what the worker makes of it."""
        line = self.tills.scan(NOW + next(self.offsets))
        sent, place = self.audit.sending(line), Coordinates("shop.purchases.raw", 0, next(self.offsets))
        if acknowledged:
            self.audit.sent(sent, place)
        raw = RawEvent(place.offset, NOW + 10_000, line.key, line.value)
        outcome = process(raw, Source(self.plan.sources[0], 0), self.known, self.plan, NOW + 20_000)
        return sent, place, [self.record(out.topic, out.value, dict(out.headers)) for out in outcome.outputs]

    def publish(self, records: Iterable[Received]) -> None:
        for record in records:
            self.audit.received(record, 0.0)

    def report(self, **counted: int) -> Report:
        totals = Totals(Counter(counted), Counter(), self.audit.outputs_by_topic(), {})
        return report(self.audit, totals, broker="none", exactly_once=True, seconds=1.0, drained=True)

    def failed(self, **counted: int) -> list[str]:
        """The claims that do not hold, without their numbers."""
        return [check.claim.partition(":")[0] for check in self.report(**counted).checks if not check.holds]


FIRST = "17850"  # The first customer of the sample, who allows everything.
WITHIN = "every output is within the newest consent"
AFTER = "events after receipt published for the withdrawn purpose"


def test_audit_is_content_with_a_withdrawal_that_holds() -> None:
    shop = Shop()
    shop.publish(shop.sell()[2])
    shop.change(FIRST, Act.WITHDRAW)
    [change] = shop.receipt()
    assert (change.person, change.receipt_ms) == (FIRST, 20)
    shop.publish(shop.sell()[2])
    assert (change.events, change.outputs, change.too_much) == (1, 0, 0)
    assert shop.audit.outputs == {RECOMMENDATIONS: 1, "shop.assortment": 2, "service.orders": 2}
    assert shop.failed(published=2) == []
    assert shop.report(published=2).ok


def test_audit_counts_what_happens_to_each_field() -> None:
    shop = Shop()
    shop.publish(shop.sell()[2])
    fields = shop.audit.fields
    assert fields["customer"] == {"coarsened": 1, "kept": 1, "removed": 1}
    assert fields["occurred_at"] == {"coarsened": 2, "kept": 1}
    assert fields["type"] == {"removed": 3}
    assert fields["item.stock_code"] == {"kept": 3}


def test_audit_sees_an_output_under_an_older_consent() -> None:
    shop = Shop()
    shop.change(FIRST, Act.WITHDRAW, told=False)
    shop.publish(shop.sell()[2])
    assert shop.failed(published=1) == [
        "every output leads back to its event",  # for the withdrawal is still without a receipt
        WITHIN,
        AFTER,
    ]
    assert shop.audit.changes[FIRST].too_much == 1


def test_audit_sees_an_output_after_the_receipt() -> None:
    shop = Shop()
    shop.change(FIRST, Act.WITHDRAW, told=False)
    shop.receipt()
    shop.publish(shop.sell()[2])
    assert shop.audit.after_withdrawals() == (1, 1)
    assert shop.failed(published=1) == [WITHIN, AFTER]


def test_audit_holds_an_anonymous_output_to_the_consents_of_its_person() -> None:
    shop = Shop()
    shop.change(FIRST, Act.WITHDRAW_ALL, told=False)
    shop.publish(record for record in shop.sell()[2] if record.place.topic == "shop.assortment")
    assert (shop.audit.published, shop.audit.stale, shop.audit.too_much) == (1, 1, 0)

    sent, place, records = Shop().sell()
    knows_no_consent = Audit(shop.plan)
    knows_no_consent.sent(sent, place)
    for record in records:
        if record.place.topic == "shop.assortment":
            knows_no_consent.received(record, 0.0)
    assert (knows_no_consent.published, knows_no_consent.too_much) == (1, 1)


def test_audit_sees_a_rung_that_is_not_allowed() -> None:
    shop = Shop()
    _, _, records = shop.sell()
    shop.publish(record._replace(value=record.value.replace(b'"pseudonymous"', b'"identified"')) for record in records)
    assert shop.failed(published=1) == [WITHIN]


def test_audit_sees_what_comes_twice_and_what_comes_from_nowhere() -> None:
    shop = Shop()
    _, _, records = shop.sell()
    shop.publish(records)
    shop.publish(records[:1])
    assert shop.failed(published=1) == ["nothing was published twice"]
    shop.publish([records[0]._replace(headers={})])
    shop.publish([records[0]._replace(headers={"celosia-source": b"0" * 32})])
    assert shop.audit.unexplained == 2


def test_output_may_be_read_before_its_event_is_acknowledged() -> None:
    shop = Shop()
    sent, place, records = shop.sell(acknowledged=False)
    shop.publish(records)
    assert shop.audit.pending == 1
    shop.audit.sent(sent, place)
    assert shop.failed(published=1) == []


def test_sums_that_differ_are_told() -> None:
    shop = Shop()
    shop.publish(shop.sell()[2])
    assert shop.failed() == ["in = published + suppressed + quarantined", "the topics hold what the worker has counted"]
    assert shop.failed(published=1, suppressed=1) == ["in = published + suppressed + quarantined"]
    shop.audit.quarantined += 1
    assert shop.failed(published=1) == [
        "the topics hold what the worker has counted",
        "quarantined is what was broken on purpose",
    ]


# The screen.


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 35), (200, 60)])
def test_screen_fits(width: int, height: int) -> None:
    shop = Shop()
    shop.audit.watched = FIRST
    sent, place, records = shop.sell()
    shop.publish(records)
    for act, person in zip(Act, (FIRST, "12583", "13047", "17809"), strict=False):
        shop.change(person, act)
    shop.receipt()
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    counted = Totals(Counter(published=1), Counter({("suppressed", "no_consent"): 1}), Counter(), {})
    shown = shop.audit.handled({0: place.offset + 1})
    assert shown is sent
    moment = Moment(3.2, math.inf, "running", (120.0, 200.0), counted, shop.audit, shown)
    lines = console.render_lines(Screen(console).picture(moment))
    texts = ["".join(segment.text for segment in line).rstrip() for line in lines]
    assert len(texts) == height
    assert max(map(len, texts)) <= width
    everything = "\n".join(texts)
    for wanted in ("120 events/s in", "withdraws", "0 published", f"one purchase of customer {FIRST}", "stock_code"):
        assert wanted in everything
    assert texts[-1].startswith("unit_price")
