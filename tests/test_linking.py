"""What two consumers can find out together: whose events they hold, and that these are the same person's.

With plain coordinates in the headers each event leads from one pseudonym to the other. Sealed ones lead nowhere. Where
there is no pseudonym, a number that is a person's own would do as well: so none is told.
"""

import json

from streams.consent import Consents
from streams.event import RawEvent
from streams.keys import MasterKey
from streams.outcome import Output
from streams.pipeline import Place, process
from streams.plan import compile_plan
from streams.policy import parse_policy

POLICY = b"""
policy: linking
version: 1
sources:
  web: {topic: raw, own: true, subject: who, type: what, time: at}
purposes:
  one: {benefit: Something a person would want, topic: one, rung: pseudonymous, rotate: 30d, lifetime: 30d}
  two: {benefit: Another thing a person would want, topic: two, rung: pseudonymous, rotate: 30d, lifetime: 30d}
events:
  seen:
    at: {is: user.behavior, for: all, as: {pseudonymous: day}}
    page: {is: user.behavior.browsing_history, for: all, as: {anonymous: keep}}
"""
PEOPLE = 50
DAY = 86_400_000


def _outputs(rung: str = "pseudonymous") -> tuple[list[Output], list[Output]]:
    """Return what is published for each purpose. Everyone's consent has another version."""
    plan = compile_plan(parse_policy(POLICY), MasterKey(bytes(32)))
    consents = Consents()
    grant = {"rung": rung, "since": "1970-01-01T00:00:00Z"}
    for person in range(PEOPLE):
        said = {"subject": f"p{person}", "version": person, "purposes": {"one": grant, "two": grant}}
        consents.apply(f"p{person}".encode(), json.dumps(said).encode())
    one: list[Output] = []
    two: list[Output] = []
    for offset in range(1000):
        who = f"p{offset * 7 % PEOPLE}"
        event = {"who": who, "what": "seen", "at": DAY + offset * 60_000, "page": f"/p/{offset % 3}"}
        record = RawEvent(offset, DAY + offset * 60_000, who.encode(), json.dumps(event).encode())
        for output in process(record, Place(plan.sources[0], 0), consents, plan, 3 * DAY).outputs:
            (one if output.topic == "one" else two).append(output)
    return one, two


def _linked(one: list[Output], two: list[Output], header: str) -> int:
    """Return how many pseudonyms of `one` lead to one pseudonym of `two` by equal values of a header."""
    there = {dict(output.headers)[header]: output.key for output in two}
    found: dict[bytes | None, set[bytes | None]] = {}
    for output in one:
        value = dict(output.headers)[header]
        if value in there:
            found.setdefault(output.key, set()).add(there[value])
    return sum(len(others) == 1 for others in found.values())


def test_sealed_sources_link_nobody() -> None:
    one, two = _outputs()
    assert len(one) == len(two) == 1000
    assert _linked(one, two, "celosia-source") == 0


def test_plain_sources_would_link_everybody() -> None:
    plain_one, plain_two = (
        [output._replace(headers=[("source", b"raw:0:%d" % offset)]) for offset, output in enumerate(outputs)]
        for outputs in _outputs()
    )
    assert _linked(plain_one, plain_two, "source") == PEOPLE


def test_no_key_header_or_stamp_is_shared_between_two_purposes_but_for_the_policy_and_the_time() -> None:
    one, two = _outputs()
    for name in ("celosia-source", "celosia-purpose"):
        assert not {dict(o.headers)[name] for o in one} & {dict(o.headers)[name] for o in two}
    assert not {output.key for output in one} & {output.key for output in two}


def test_nothing_stamped_is_finer_than_the_time_that_the_policy_publishes() -> None:
    # The policy publishes the day. An expiry or a timestamp to the millisecond would tell the moment all the same.
    for outputs in _outputs():
        assert {output.timestamp for output in outputs} == {DAY}
        assert {json.loads(output.value)["_celosia"]["expires_at"] for output in outputs} == {"1970-02-01T00:00:00Z"}


def _all_but_fields(output: Output) -> tuple[object, ...]:
    """Return what stands around the fields of an output, the sealed source left out."""
    headers = [(name, value) for name, value in output.headers if name != "celosia-source"]
    return output.topic, output.key, json.dumps(json.loads(output.value)["_celosia"]), tuple(headers), output.timestamp


def test_anonymous_outputs_differ_in_nothing_but_their_fields() -> None:
    for outputs in _outputs("anonymous"):
        assert len(outputs) == 1000
        assert len(set(map(_all_but_fields, outputs))) == 1
        # A source that came twice would link too.
        assert len({dict(output.headers)["celosia-source"] for output in outputs}) == 1000


def test_consent_versions_would_tell_everybody_apart() -> None:
    for outputs in _outputs("pseudonymous"):
        assert len({dict(output.headers)["celosia-consent"] for output in outputs}) == PEOPLE
