"""What a policy may say about crowds, and what is refused: each finding with its place and what to do."""

from typing import Any

import pytest
import yaml

from streams.consent import Rung
from streams.crowd.rule import LEAST_K, CrowdRule, Noise, Sum
from streams.errors import PolicyError
from streams.keys import MasterKey
from streams.plan import CrowdRecipe, compile_plan, crowd_rules
from streams.policy import parse_policy

POLICY = """
policy: shop
version: 1
sources:
  web: {topic: raw, own: true, subject: who, type: what}
purposes:
  stock:
    benefit: The shop stocks what people look for
    topic: stock
    rung: crowd
    lifetime: 365d
    crowd: {k: 20, window: 1h, late: 10m, by: [type, item.kind], sum: {item.price: [0, 100]}, most_per_person: 5}
events:
  seen:
    item.kind: {is: user.behavior.browsing_history, for: [stock]}
    item.price: {is: user.behavior.purchase_history, for: [stock], as: {crowd: {round: 10}}}
    mail: {is: user.contact.email, drop: not needed}
  asked:
    text: {is: user.content, drop: not needed}
"""


def with_(path: str, value: Any, text: str = POLICY) -> str:
    """The policy with one value set; `None` takes it away."""
    document = yaml.safe_load(text)
    here = document
    *above, last = path.split("/")
    for name in above:
        here = here.setdefault(name, {})
    if value is None:
        del here[last]
    else:
        here[last] = value
    return yaml.safe_dump(document, sort_keys=False)


def findings(text: str) -> list[str]:
    """What is wrong, without the lines."""
    try:
        parse_policy(text.encode())
    except PolicyError as error:
        return [finding.partition(", ")[2] for finding in error.findings]
    return []


CROWD = "purposes/stock/crowd"
AT = "purposes.stock.crowd"
SECOND = {
    "benefit": "The shop plans its shelves",
    "topic": "shelves",
    "rung": "crowd",
    "lifetime": "30d",
    "crowd": {"k": 20, "window": "24h", "by": ["type"], "most_per_person": 1},
}


def test_it_is_compiled() -> None:
    plan = compile_plan(parse_policy(POLICY.encode()), MasterKey(bytes(32)))
    assert crowd_rules(plan) == [
        CrowdRule(
            purpose="stock",
            k=20,
            window=3_600_000,
            late=600_000,
            by=("type", "item.kind"),
            sums=(Sum("item.price", 0, 100_000_000),),
            most_per_person=5,
        )
    ]
    [seen] = plan.sources[0].services["seen"]
    assert [type(recipe) for recipe in seen.recipes] == [type(None), CrowdRecipe, *[type(None)] * 3]
    recipe = seen.recipes[Rung.CROWD]
    assert isinstance(recipe, CrowdRecipe)
    assert (recipe.paths, recipe.event, recipe.type_at, recipe.cells) == (("item.kind", "item.price"), "seen", 0, 1)
    assert plan.sources[0].services["asked"] == ()


def test_everything_can_be_said() -> None:
    more = {
        "most_events": 9,
        "cells": 50,
        "hold": "1h",
        "top": 3,
        "noise": {"epsilon": 1.0, "delta": 1e-6, "per_day": 4},
    }
    text = POLICY
    for name, value in more.items():
        text = with_(f"{CROWD}/{name}", value, text)
    [rule] = crowd_rules(compile_plan(parse_policy(text.encode()), MasterKey(bytes(32))))
    assert (rule.most_events, rule.most_cells, rule.hold, rule.top) == (9, 50, 3_600_000, 3)
    assert rule.noise == Noise(1.0, 1e-6, 4.0)


@pytest.mark.parametrize(
    ("path", "value", "finding"),
    [
        (f"{CROWD}/k", LEAST_K - 1, f"{AT}.k: input should be greater than or equal to 5"),
        (f"{CROWD}/k", None, f"{AT}.k: it is missing; add it"),
        (f"{CROWD}/window", None, f"{AT}.window: it is missing; add it"),
        (f"{CROWD}/window", "10ms", f"{AT}.window: wanted at least 1s"),
        (
            f"{CROWD}/by",
            ["type", "item.kidn"],
            f"{AT}.by: no event names `item.kidn` for stock; did you mean `item.k",
        ),
        (f"{CROWD}/by", ["type", "mail"], f"{AT}.by: no event names `mail` for stock"),
        (f"{CROWD}/by", ["type", "type"], f"{AT}.by: a field is given twice"),
        (
            f"{CROWD}/by",
            ["type", "item.kind", "item.price"],
            f"{AT}.by: `item.price` is summed up and makes cells",
        ),
        (f"{CROWD}/sum", {"item.cost": [0, 1]}, f"{AT}.sum: no event names `item.cost` for stock"),
        (
            f"{CROWD}/sum",
            {"item.price": [5, 5]},
            f"{AT}.sum.item.price: wanted the least and the most that one person adds to a cell, as in [0, 100]",
        ),
        (f"{CROWD}/widnow", "1h", f"{AT}.widnow: `widnow` is not known here; did you mean `window`?"),
        (f"{CROWD}/noise", {"epsilon": 2, "delta": 1e-6, "per_day": 1}, f"{AT}.noise.per_day: one window costs more"),
        (
            f"{CROWD}/noise",
            {"epsilon": 2, "delta": 1e-6, "per_day": 9},
            f"{AT}.most_events: it is missing: noise",
        ),
        (f"{CROWD}/noise", {"epsilon": 0, "delta": 1e-6, "per_day": 9}, f"{AT}.noise.epsilon: input should be greater"),
        (f"{CROWD}/noise", {"epsilon": 1, "delta": 1e-6, "daily": 9}, f"{AT}.noise.per_day: it is missing; add it"),
        ("purposes/stock/rung", "anonymous", f"{AT}: only a purpose whose rung is `crowd` counts crowds"),
    ],
)
def test_what_makes_no_sense_is_refused(path: str, value: Any, finding: str) -> None:
    assert findings(with_(path, value))[0].startswith(finding)


def test_sensitive_fields_may_be_counted_and_nothing_else() -> None:
    sensitive = {"is": "user.demographic.gender", "for": ["stock"]}
    text = with_("events/seen/gender", sensitive, with_(f"{CROWD}/by", ["gender"]))
    assert findings(text) == []
    ads = {"benefit": "Advertisements that fit you", "topic": "ads", "rung": "anonymous", "lifetime": "1d"}
    both = with_("events/seen/gender", sensitive | {"for": "all"}, with_("purposes/ads", ads, text))
    assert findings(both)[0].startswith("events.seen.gender.for: red line: `user.demographic.gender`")


@pytest.mark.parametrize("by", [["type"], ["type", "item.kind"]])
@pytest.mark.parametrize("window", ["1h", "24h"])
def test_the_same_people_are_not_counted_twice_without_noise(by: list[str], window: str) -> None:
    second = SECOND | {"crowd": SECOND["crowd"] | {"by": by, "window": window}}  # type: ignore[operator]
    text = with_("purposes/shelves", second)
    text = with_("events/seen/item.kind/for", "all", text)
    [finding] = findings(text)
    sizes = "" if window == "1h" else ", and in windows of another size"
    assert finding.startswith(f"purposes.stock.crowd.by: it counts the cells of `shelves` again{sizes}: ")
    noisy = with_("purposes/shelves/crowd/noise", {"epsilon": 1, "delta": 1e-6, "per_day": 9}, text)
    assert findings(with_("purposes/shelves/crowd/most_events", 5, noisy)) == []


def test_counts_of_different_fields_may_stand_beside_each_other() -> None:
    second = SECOND | {"crowd": SECOND["crowd"] | {"by": ["item.maker"]}}  # type: ignore[operator]
    maker = {"is": "user.behavior.browsing_history", "for": ["shelves"]}
    text = with_("events/seen/item.maker", maker, with_("purposes/shelves", second))
    assert findings(text) == []


def test_the_time_of_an_event_is_said_of_its_window() -> None:
    time = {"is": "user.behavior", "for": "all", "as": {"crowd": "window"}}
    assert findings(with_("events/seen/at", time)) == []
    assert findings(with_("events/seen/at", time | {"as": {"anonymous": "window"}})) != []
