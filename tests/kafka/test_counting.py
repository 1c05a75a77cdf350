"""What one partition says to stage two, where it is behind, or counts under another policy."""

import msgspec
import pytest

from streams.consent import Consents
from streams.crowd.rounds import Closing, Partial, Progress, Rounds
from streams.crowd.sealed import Sealed
from streams.event import RawEvent
from streams.kafka.agents import minimize
from streams.kafka.crowds import Counting
from streams.kafka.port import Batch
from streams.kafka.work import View
from streams.keys import MasterKey
from streams.plan import Plan, compile_plan, crowd_rules
from streams.policy import parse_policy

MASTER = MasterKey(bytes(32))
HOUR = 3_600_000
NOW = 100 * HOUR


def plan_of(*purposes: str) -> Plan:
    """A policy where each purpose counts its own field."""
    stated = "".join(
        f"  {name}: {{benefit: Something a person would want, topic: out.{name}, rung: crowd, lifetime: 1d, "
        f"crowd: {{k: 5, window: 1h, by: [{name}], most_per_person: 1}}}}\n"
        for name in purposes
    )
    fields = "".join(f"    {name}: {{is: system.operations, for: [{name}]}}\n" for name in purposes)
    source = "sources:\n  web: {topic: raw, own: true, subject: who, type: what, time: at}\n"
    seen = f"events:\n  seen:\n    at: {{is: system.operations, drop: not needed}}\n{fields}"
    return compile_plan(parse_policy(f"policy: hall\nversion: 1\n{source}purposes:\n{stated}{seen}".encode()), MASTER)


def view_of(plan: Plan, partition: int, counting: Counting, consents: Consents | None = None) -> View:
    return View(plan, partition, 2, consents or Consents(), NOW, counting, {"raw": 1})


def said(plan: Plan, partition: int, closing: Closing) -> list[Partial]:
    """What a partition answers to a closing."""
    seal, topic, key = Sealed(MASTER), plan.policy.topic("closings"), closing.purpose.encode()
    order = RawEvent(0, NOW, key, seal.close(msgspec.json.encode(closing), key))
    counting = Counting(plan)
    sends = counting.answer(Batch(topic, [order], 1), view_of(plan, partition, counting)).sends
    return [
        msgspec.json.decode(seal.open(output.value, output.key or b""), type=Partial)
        for (to, _), outputs in sends.items()
        for output in outputs
        if to == plan.policy.topic("partials")
    ]


def test_a_round_goes_on_though_a_partition_is_still_under_a_policy_without_the_purpose() -> None:
    old, new = plan_of("place"), plan_of("place", "shop")
    rounds = Rounds(crowd_rules(new), 2, MASTER)
    asked = [closing for one in (0, 1) for closing in rounds.progress(Progress(one, NOW))]
    assert {closing.purpose for closing in asked} == {"place", "shop"}
    for closing in asked:
        for partition, plan in enumerate((new, old)):
            for one in said(plan, partition, closing):
                assert list(rounds.partial(one)) == []
    later = [closing for one in (0, 1) for closing in rounds.progress(Progress(one, NOW + HOUR))]
    assert {closing.purpose for closing in later} == {"place", "shop"}, "one round waits for ever"


@pytest.mark.parametrize("hours", [[5, 1], [1, 5], [5], [1, 5, 2]])
def test_a_partition_is_as_far_as_what_it_has_counted(hours: list[int]) -> None:
    plan, consents = plan_of("place"), Consents()
    consents.apply(
        b"ana",
        b'{"subject":"ana","version":1,"purposes":{"place":{"rung":"crowd","since":"1970-01-01T00:00:00Z"}}}',
    )
    counting = Counting(plan)
    values = [b'{"who":"ana","what":"seen","place":"x","at":%d}' % (hour * HOUR) for hour in hours]
    records = [RawEvent(number, NOW, b"ana", value) for number, value in enumerate(values)]
    work = minimize.function(Batch("raw", records, len(records)), view_of(plan, 0, counting, consents))
    [output] = [one for (to, _), some in work.sends.items() for one in some if to == plan.policy.topic("partials")]
    opened = Sealed(MASTER).open(output.value, output.key or b"")
    assert msgspec.json.decode(opened, type=Progress) == Progress(0, max(hours) * HOUR)
