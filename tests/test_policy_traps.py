"""What a file can do to its reader: YAML that is deep, that grows, that means something else than it looks like.

Each is refused with one message that says where, and none of them takes time, memory or the process.
"""

import time
from itertools import pairwise

import pytest

from streams.errors import PolicyError
from streams.keys import MasterKey
from streams.plan import compile_plan
from streams.policy import parse_policy

SOUND = """\
policy: shop
version: 1
sources:
  web: {topic: raw, own: true, subject: who, type: what}
purposes:
  ads: {benefit: Suggestions that fit, topic: out, rung: anonymous, lifetime: 30d}
events:
  viewed:
    item: {is: user.behavior, for: all, as: {anonymous: keep}}
"""
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefghi"))


def findings(text: str | bytes) -> list[str]:
    """Load and compile a policy and return what is said about it."""
    try:
        compile_plan(parse_policy(text if isinstance(text, bytes) else text.encode()), MasterKey(bytes(32)))
    except PolicyError as error:
        return error.findings
    return []


def with_(old: str, new: str) -> str:
    """Change one part of the sound policy."""
    assert SOUND.count(old) == 1
    return SOUND.replace(old, new)


def test_the_sound_policy_is_sound() -> None:
    assert findings(SOUND) == []


DEEP = "nested deeper than any policy"
LARGE = "aliases make it larger than any policy"


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("[" * 100_000, f"line 1, column 33: it is not YAML: {DEEP}"),
        ("a: " + "{a: " * 100_000, f"line 1, column 128: it is not YAML: {DEEP}"),
        ("- " * 100_000, f"line 1, column 65: it is not YAML: {DEEP}"),
        ("&a [*a]", f"line 1, column 1: it is not YAML: {LARGE}"),
        ("policy: &a {sources: *a}", f"line 1, column 9: it is not YAML: {LARGE}"),
        ("a: &a {b: 1}\nc: {<<: *a}", "line 2, column 5: it is not YAML: wanted a name as a key"),
        ("1: a", "line 1, column 1: it is not YAML: wanted a name as a key"),
        ("? [a]\n: b", "line 1, column 3: it is not YAML: wanted a name as a key"),
        ("yes: a", "line 1, column 1: it is not YAML: wanted a name as a key"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: it is not YAML: `a` is given twice"),
        ('a: {b: 1, "b": 2}', "line 1, column 11: it is not YAML: `b` is given twice"),
        ('a: {b: 1, "\\u0062": 2}', "line 1, column 11: it is not YAML: `b` is given twice"),
        (
            "a: !!python/object:os.system {}",
            "line 1, column 4: it is not YAML: tag `tag:yaml.org,2002:python/object:os.system` has no meaning here",
        ),
        ("a: !!set {b}", "line 1, column 4: it is not YAML: tag `tag:yaml.org,2002:set` has no meaning here"),
        ("a: 2026-99-99", "line 1, column 4: it is not YAML: the value cannot be read; put it in quotes"),
        ("a: " + "9" * 5000, "line 1, column 4: it is not YAML: the value cannot be read; put it in quotes"),
        ("a: 1\n---\nb: 2", "line 2, column 1: it is not YAML: but found another document"),
        ("\ta: 1", "line 1, column 1: it is not YAML: found character that cannot start any token"),
        ("*nobody", "line 1, column 1: it is not YAML: found undefined alias"),
        (b"policy: caf\xe9", "it is not YAML in UTF-8"),
        (b"policy: shop\x00", "it is not YAML in UTF-8"),
        (b"#" * ((1 << 20) + 1), "it is larger than 1048576 bytes, which no policy needs"),
        (b"", "wanted a mapping with policy, version, sources, purposes and events"),
        ("[]", "wanted a mapping with policy, version, sources, purposes and events"),
        ("shop", "wanted a mapping with policy, version, sources, purposes and events"),
    ],
)
def test_a_trap_is_refused_at_once_with_one_message(text: str | bytes, finding: str) -> None:
    began = time.perf_counter()
    assert findings(text) == [finding]
    assert time.perf_counter() - began < 5


def test_aliases_that_multiply_are_refused_at_once() -> None:
    """A thousand million letters in ten lines. Where it is noticed does not matter; that it is does."""
    began = time.perf_counter()
    (finding,) = findings(BOMB)
    assert finding.endswith(LARGE)
    assert time.perf_counter() - began < 5


def test_an_alias_may_say_the_same_twice() -> None:
    text = with_("  viewed:\n", "  viewed: &viewed\n") + "  bought: *viewed\n"
    assert findings(text) == []
    policy = parse_policy(text.encode())
    assert policy.events["bought"] == policy.events["viewed"]


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        (
            "what}",
            "who.kind}",
            "line 4, sources.web.subject: it is a field here and a group in `who.kind`; name another field",
        ),
        (
            "what}",
            "what, time: item.at}",
            "line 9, events.viewed.item: it is a field here and a group in `item.at`; name only its leaves",
        ),
        (
            "    item:",
            "    what.kind:",
            "line 4, sources.web.type: it is a field here and a group in `what.kind`; name another field",
        ),
        (
            "topic: out,",
            "topic: shop.consents,",
            "line 6, purposes.ads.topic: topic `shop.consents` is used by topics.consents already; "
            "each use needs a topic of its own",
        ),
        (
            "lifetime: 30d",
            "lifetime: \u0663\u0660d",
            "line 6, purposes.ads.lifetime: wanted a duration as in 30s, 10m, 12h or 30d",
        ),
        *(
            (
                "anonymous: keep",
                f"anonymous: {{truncate_ip: {bits}}}",
                "events.viewed.item, as `truncate_ip`: wanted the bits to keep, as in {truncate_ip: {v4: 24, v6: 48}}",
            )
            for bits in ("0", "''", "[]", "24", "{v5: 1}", "{v4: true}")
        ),
        *(
            (
                "anonymous: keep",
                f"anonymous: {{url: {names}}}",
                "events.viewed.item, as `url`: wanted the parameters to keep, as in {url: {keep_query: [utm_source]}}",
            )
            for names in ("0", "[]", "[utm_source]", "{keep_query: utm_source}", "{keep: []}")
        ),
    ],
)
def test_what_would_be_guessed_at_is_refused(old: str, new: str, finding: str) -> None:
    assert findings(with_(old, new)) == [finding]


def test_the_topic_of_re_keyed_events_is_nobody_elses() -> None:
    text = with_("what}", "what, key: other}").replace("topic: out,", "topic: shop.rekeyed.web,")
    assert findings(text) == [
        "line 6, purposes.ads.topic: topic `shop.rekeyed.web` is used by sources.web.key already; "
        "each use needs a topic of its own"
    ]
