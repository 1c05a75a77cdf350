"""What an event adds to a crowd, and who is asked again when a window closes."""

import json
from typing import Any

import pytest
import yaml

from streams import MasterKey, RawEvent, compile_plan
from streams.consent import Consents, Refusal
from streams.crowd.rule import LONGEST_CELL
from streams.event import Reason
from streams.outcome import Contribution, Kind, Outcome
from streams.pipeline import Place, process, still_allows
from streams.plan import Plan
from streams.policy import parse_policy

NOW = 1_764_547_200_000
CROWD = {
    "window": "1h",
    "late": "10m",
    "k": 20,
    "most_per_person": 5,
    "by": ["item.kind", "type", "item.size"],
    "sum": {"item.price": [0, 100], "item.count": [0, 9]},
}
UNIT = 1_000_000


def plan_of(size: Any = "keep", **changes: Any) -> Plan:
    """The policy with some of what it says about the crowd changed, and with a form for the size."""
    field = {"is": "user.behavior.browsing_history", "for": ["stock"], "as": {"crowd": "keep"}}
    stock = {"benefit": "Enough on the shelf", "topic": "stock", "rung": "crowd", "lifetime": "1d"}
    policy = {
        "policy": "shop",
        "version": 1,
        "sources": {"web": {"topic": "raw", "own": True, "subject": "who", "type": "what"}},
        "purposes": {"stock": stock | {"crowd": CROWD | changes}},
        "events": {
            "seen": {
                "item.kind": field,
                "item.size": field | {"as": {"crowd": size}},
                "item.price": field,
                "item.count": field | {"as": {"crowd": {"round": 1}}},
            }
        },
    }
    return compile_plan(parse_policy(yaml.safe_dump(policy, sort_keys=False).encode()), MasterKey(bytes(32)))


def counted(plan: Plan, item: Any, consents: Consents | None = None) -> Outcome:
    event = RawEvent(0, NOW, b"ana", json.dumps({"who": "ana", "what": "seen", "item": item}).encode())
    return process(event, Place(plan.sources[0], 0), consents or allowing(), plan, NOW)


def allowing(rung: str = "crowd", since: str = "2020-01-01T00:00:00Z", until: str | None = None) -> Consents:
    consents = Consents()
    grant = {"rung": rung, "since": since} | ({"until": until} if until else {})
    record = {"subject": "ana", "version": 1, "purposes": {"stock": grant}}
    consents.apply(b"ana", json.dumps(record).encode())
    return consents


ITEM = {"kind": "lamp", "size": 7, "price": 2.5, "count": 3}


def test_an_event_adds_its_cell_and_its_parts() -> None:
    outcome = counted(plan_of(), ITEM)
    part = Contribution("stock", b"ana", b'["lamp","seen",7]', [2_500_000, 3 * UNIT], NOW)
    assert outcome == Outcome(Kind.COUNTED, (), None, (), (part,))
    assert "ana" not in repr(outcome.crowd)


def test_what_is_equal_in_python_is_no_equal_cell() -> None:
    plan = plan_of(by=["item.kind"])
    kinds = ["1", 1, 1.0, True, "true", 0, False, "", "lamp", "lamp"]
    cells = [counted(plan, ITEM | {"kind": kind}).crowd[0].cell for kind in kinds + kinds]
    assert (
        cells[:10]
        == [b'["1"]', b"[1]", b"[1.0]", b"[true]", b'["true"]', b"[0]", b"[false]", b'[""]'] + [b'["lamp"]'] * 2
    )
    assert cells[10:] == cells[:10], "the same when they were seen before"


@pytest.mark.parametrize("at", ["kind", "size"])
@pytest.mark.parametrize("value", [None, {}, {"deep": 1}, [], ["lamp"]])
def test_a_value_that_is_missing_or_no_scalar_makes_no_cell(at: str, value: Any) -> None:
    for _ in range(2):
        outcome = counted(plan_of(), ITEM | {at: value})
        assert (outcome.kind, outcome.reason, outcome.crowd) == (Kind.SUPPRESSED, Refusal.NOTHING_LEFT, ())
    assert counted(plan_of(), {name: one for name, one in ITEM.items() if name != at}).crowd == ()


@pytest.mark.parametrize(
    ("price", "part"),
    [
        (0.1, 100_000),
        (-3, -3 * UNIT),
        ("7", 0),
        (None, 0),
        (True, 0),
        ({}, 0),
        ([1], 0),
        (1e308, 2**62),
        (10**400, 2**62),
    ],
)
def test_a_part_that_is_no_number_adds_nothing(price: Any, part: int) -> None:
    assert counted(plan_of(), ITEM | {"price": price}).crowd[0].sums == [part, 3 * UNIT]


def test_forms_come_before_the_cell_and_the_sum() -> None:
    plan = plan_of(size={"round": 10})
    [part] = counted(plan, ITEM | {"size": 27, "count": 2.6}).crowd
    assert (part.cell, part.sums) == (b'["lamp","seen",30]', [2_500_000, 3 * UNIT])


def test_a_form_that_breaks_sets_the_event_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    [service] = plan.sources[0].services["seen"]
    recipe = next(recipe for recipe in service.recipes if recipe is not None)

    def broken(_value: Any, _at: int) -> Any:
        raise ZeroDivisionError("ana@example.org")

    object.__setattr__(recipe, "forms", ((0, broken),))
    outcome = counted(plan, ITEM)
    assert (outcome.kind, outcome.reason) == (Kind.QUARANTINED, Reason.TRANSFORM_FAILED)
    assert b"ana@" not in outcome.outputs[0].value


def test_ever_new_cells_are_told_apart_and_not_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.minimized._REMEMBERED", 3)
    plan = plan_of(by=["item.kind"])
    cells = [counted(plan, ITEM | {"kind": f"{number}"}).crowd[0].cell for number in [*range(5), *range(5)]]
    assert cells == [b'["%d"]' % number for number in [*range(5), *range(5)]]
    [service] = plan.sources[0].services["seen"]
    known = next(recipe for recipe in service.recipes if recipe is not None).known  # type: ignore[union-attr]
    assert len(known) == 3


def allows(consents: Consents, earliest: int = NOW, now: int = NOW, skew: int = 0) -> bool:
    return still_allows(consents, "stock", skew, now)(b"ana", earliest)


def test_who_still_allows_is_asked_with_their_oldest_event() -> None:
    assert allows(allowing())
    assert allows(allowing("identified"))
    assert not still_allows(allowing(), "other", 0, NOW)(b"ana", NOW)
    assert not still_allows(allowing(), "stock", 0, NOW)(b"ben", NOW)
    since, until = "2025-12-01T00:00:00Z", "2025-12-01T00:00:01Z"
    assert allows(allowing(since=since), NOW)
    assert not allows(allowing(since=since), NOW - 1)
    assert not allows(allowing(since=since), NOW, skew=1)
    assert allows(allowing(until=until), NOW, NOW + 999)
    assert not allows(allowing(until=until), NOW, NOW + 1000)
    assert not allows(allowing("none"))


def test_who_cannot_be_asked_does_not_allow() -> None:
    unreadable = allowing()
    unreadable.apply(b"ana", b"{")
    assert not allows(unreadable)
    blocked = allowing()
    blocked.apply(None, b"{}")
    assert blocked.blocked
    assert not allows(blocked)


@pytest.mark.parametrize("letters", [LONGEST_CELL, 100_000])
def test_a_cell_as_long_as_a_text_sets_the_event_aside(letters: int) -> None:
    plan = plan_of(by=["item.kind"])
    assert len(counted(plan, ITEM | {"kind": "a" * (LONGEST_CELL - 4)}).crowd[0].cell) == LONGEST_CELL
    outcome = counted(plan, ITEM | {"kind": "a" * letters})
    assert (outcome.kind, outcome.reason, outcome.crowd) == (Kind.QUARANTINED, Reason.TOO_LARGE, ())
