"""minimize(): the fields of an output, built up from nothing."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from streams.consent import Rung
from streams.event import Reason, Rejected
from streams.keys import MasterKey
from streams.minimized import minimize
from streams.plan import compile_plan
from streams.policy import parse_policy
from streams.transforms import ABSENT

POLICY = b"""
policy: shop
version: 1
sources:
  web: {topic: raw, own: true, subject: who, type: what}
purposes:
  hints: {benefit: Suggestions that fit you, topic: out.hints, rung: pseudonymous, rotate: 30d, lifetime: 30d}
events:
  seen:
    page: {is: system.operations, for: all, as: {anonymous: keep}}
    item.price: {is: system.operations, for: all, as: {anonymous: {round: 10}}}
    item.shelf.row: {is: system.operations, for: all, as: {anonymous: keep}}
    item.shelf.bay: {is: system.operations, for: all, as: {anonymous: keep}}
"""
SOURCE = compile_plan(parse_policy(POLICY), MasterKey(bytes(32))).sources[0]


def recipe() -> Any:
    (service,) = SOURCE.services["seen"]
    found = service.recipes[Rung.ANONYMOUS]
    assert found is not None
    return found


def document(**members: Any) -> Any:
    value = {"who": "ana", "what": "seen"} | members
    return SOURCE.reader.read(json.dumps(value).encode()).document


def fields(built: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(built))


def test_what_is_named_is_there_in_its_form_and_nothing_else() -> None:
    raw = document(page="/lamp", email="ana@example.org", item={"price": 14, "note": "x", "shelf": {"row": 2, "x": 1}})
    assert fields(minimize(raw, recipe(), 0)) == {"page": "/lamp", "item": {"price": 10, "shelf": {"row": 2}}}


def test_the_document_is_left_as_it_was() -> None:
    raw = document(page="/lamp", item={"price": 14, "shelf": {"row": 2}})
    before = repr(raw)
    minimize(raw, recipe(), 0)
    assert repr(raw) == before


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"page": "/lamp"}, {"page": "/lamp"}),
        ({"item": {"shelf": {"bay": 0}}}, {"item": {"shelf": {"bay": 0}}}),
        ({"item": {"price": 14}}, {"item": {"price": 10}}),
        ({"page": False}, {"page": False}),
        ({"page": ""}, {"page": ""}),
        ({"page": None, "item": {"shelf": {"row": 1, "bay": 2}}}, {"item": {"shelf": {"row": 1, "bay": 2}}}),
    ],
)
def test_a_group_without_a_value_is_left_out(members: dict[str, Any], expected: dict[str, Any]) -> None:
    assert fields(minimize(document(**members), recipe(), 0)) == expected


@pytest.mark.parametrize(
    "members",
    [{}, {"page": None}, {"page": ["/lamp"]}, {"page": {"a": 1}}, {"item": {"price": "14"}}, {"item": {"shelf": None}}],
)
def test_where_no_value_is_left_there_is_nothing(members: dict[str, Any]) -> None:
    assert minimize(document(**members), recipe(), 0) is ABSENT


@pytest.mark.parametrize("returned", [{"email": "ana"}, ["ana"], ("ana",), b"ana", object(), 1j])
def test_a_form_that_returns_no_scalar_gives_nothing(returned: Any) -> None:
    odd = replace(recipe(), forms=((0, lambda _value, _at: returned),))
    assert fields(minimize(document(page="/lamp", item={"price": 14}), odd, 0)) == {"item": {"price": 14}}


def test_a_form_is_given_its_value_and_the_time_recorded() -> None:
    index = recipe().paths.index("item.price")
    spied = replace(recipe(), forms=((index, lambda value, at: f"{value} at {at}"),))
    assert fields(minimize(document(page="/lamp", item={"price": 14}), spied, 77)) == {
        "page": "/lamp",
        "item": {"price": "14 at 77"},
    }


def test_a_form_that_raises_rejects_the_event_and_says_nothing_of_its_value() -> None:
    def broken(value: Any, _at: int) -> Any:
        raise ValueError(value)

    with pytest.raises(Rejected) as error:
        minimize(document(page="/lamp"), replace(recipe(), forms=((0, broken),)), 0)
    assert error.value.reason is Reason.TRANSFORM_FAILED
    assert error.value.__suppress_context__
    assert "/lamp" not in str(error.value)
