"""Whether somebody was in a window at all: what is published of it says no more than noise allows."""

import pytest

from streams.aggregate import aggregates
from streams.crowd import told_of
from streams.crowd.counts import Counts
from streams.crowd.rounds import Progress, Rounds, partials
from streams.keys import MasterKey
from streams.outcome import Output
from streams.plan import compile_plan, crowd_rules
from streams.policy import parse_policy

pytest.importorskip("opendp", reason="OpenDP is not installed: pip install 'celosia[noise]'")

HOUR = 3_600_000
MASTER = MasterKey(bytes(32))
POLICY = b"""
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
    crowd:
      {k: 5, window: 1h, by: [kind], most_per_person: 1, most_events: 1,
       noise: {epsilon: 1.0, delta: 1.0e-12, per_day: 1.0}}
events:
  seen:
    kind: {is: user.behavior.browsing_history, for: [stock]}
"""
PLAN = compile_plan(parse_policy(POLICY), MASTER)


def _published(people: list[bytes]) -> list[Output]:
    """Return what is published of an hour in which these people looked at lamps."""
    rules = crowd_rules(PLAN)
    counts, rounds = Counts(rules, MASTER), Rounds(rules, 1, MASTER)
    for person in people:
        counts.add("stock", person, b'["lamps"]', [], 1)
    (closing,) = rounds.progress(Progress(0, HOUR))
    windows = counts.close("stock", closing.through, lambda subject, earliest: True)
    outputs: list[Output] = []
    for record in partials(rules[0], 0, closing.through, windows):
        for closed in rounds.partial(record):
            released = told_of(rules[0], closed.cells)
            if released is not None:
                outputs += aggregates(PLAN, PLAN.purposes["stock"], closed.window, released)
    return outputs


def test_a_cell_of_many_is_published() -> None:
    assert any(output.key == b'["lamps"]' for output in _published([b"%d" % number for number in range(1000)]))


def test_an_hour_of_one_person_looks_like_an_hour_of_nobody() -> None:
    assert _published([b"ana"]) == _published([])
