"""Policies: every finding, with its line and its exact words. What YAML itself can do is in test_policy_traps.py."""

from pathlib import Path

import pytest

from streams.categories import RED_LINES
from streams.check import warnings
from streams.errors import PolicyError
from streams.policy import load_policy, parse_policy

SOUND = """\
policy: shop
version: 1
sources:
  web:
    topic: raw
    own: true
    subject: who
    type: what
purposes:
  ads:
    benefit: Suggestions that fit you
    topic: out.ads
    rung: pseudonymous
    rotate: 30d
    lifetime: 30d
events:
  seen:
    page: {is: user.behavior.browsing_history, for: all}
    price: {is: user.behavior.purchase_history, for: [ads], as: {pseudonymous: {round: 10}}}
    mail: {is: user.contact.email, drop: not needed}
"""
FORMS = "keep, drop, round, bucket, hour, day, month, truncate_ip, url, pseudonym"
WANTED_DURATION = "wanted a duration as in 30s, 10m, 12h or 30d"
A_TOPIC = "wanted a topic's name: letters, digits, `.`, `_` and `-`, at most 249"
A_NAME = "wanted a name of small letters, digits and `_`, its parts joined by `.` or `-`"
RUNGS = "known: crowd, anonymous, pseudonymous, identified"


def findings(text: str) -> list[str]:
    try:
        parse_policy(text.encode(), "shop.yaml")
    except PolicyError as error:
        return error.findings
    return []


def with_(*changes: tuple[str, str]) -> str:
    """Return the sound policy with some parts of it changed; each part stands there once."""
    text = SOUND
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_the_sound_policy_is_sound() -> None:
    assert findings(SOUND) == []
    policy = parse_policy(SOUND.encode())
    assert (policy.policy, policy.version) == ("shop", 1)
    assert (policy.purposes["ads"].rotate, policy.purposes["ads"].lifetime) == (30 * 86_400_000, 30 * 86_400_000)
    assert warnings(policy) == []


# --- keys -------------------------------------------------------------------------------------------------------------

KNOWN_OF_SOURCE = "(known: topic, shape, own, subject, type, time, id, key, clock_skew)"


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        (
            "version: 1",
            "version: 1\npurpose: {}",
            "line 3, purpose: `purpose` is not known here; did you mean `purposes`? "
            "(known: policy, version, topics, sources, purposes, events)",
        ),
        (
            "type: what",
            "type: what\n    tipic: raw",
            f"line 9, sources.web.tipic: `tipic` is not known here; did you mean `topic`? {KNOWN_OF_SOURCE}",
        ),
        ("type: what", "type: what\n    zzz: 1", f"line 9, sources.web.zzz: `zzz` is not known here {KNOWN_OF_SOURCE}"),
        (
            "rotate: 30d",
            "rotate: 30d\n    crowds: {k: 20}",
            "line 15, purposes.ads.crowds: `crowds` is not known here; did you mean `crowd`? "
            "(known: benefit, topic, rung, lifetime, rotate, crowd)",
        ),
        (
            "drop: not needed",
            "dropped: not needed",
            "line 20, events.seen.mail.dropped: `dropped` is not known here; did you mean `drop`? "
            "(known: is, for, as, drop)",
        ),
        (
            "version: 1",
            "version: 1\ntopics: {receipt: r}",
            "line 3, topics.receipt: `receipt` is not known here; did you mean `receipts`? "
            "(known: consents, receipts, quarantine, rekeyed, counting, closings, partials, rounds)",
        ),
    ],
)
def test_a_key_that_is_not_known_is_refused_with_the_nearest_one_that_is(old: str, new: str, finding: str) -> None:
    assert findings(with_((old, new))) == [finding]


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("policy: shop\n", "line 1, policy: it is missing; add it"),
        ("version: 1\n", "line 1, version: it is missing; add it"),
        ("    topic: raw\n", "line 4, sources.web.topic: it is missing; add it"),
        ("    own: true\n", "line 4, sources.web.own: it is missing; add it"),
        ("    subject: who\n", "line 4, sources.web.subject: it is missing; add it"),
        ("    type: what\n", "line 4, sources.web.type: it is missing; add it"),
        ("    benefit: Suggestions that fit you\n", "line 10, purposes.ads.benefit: it is missing; add it"),
        ("    topic: out.ads\n", "line 10, purposes.ads.topic: it is missing; add it"),
        ("    rung: pseudonymous\n", "line 10, purposes.ads.rung: it is missing; add it"),
        ("    lifetime: 30d\n", "line 10, purposes.ads.lifetime: it is missing; add it"),
        (
            "    rotate: 30d\n",
            "line 10, purposes.ads.rotate: it is missing: say how long one pseudonym lasts, as in 30d",
        ),
        (" {is: user.contact.email, drop: not needed}", "line 20, events.seen.mail: wanted a mapping"),
    ],
)
def test_what_is_missing_is_told_at_the_place_where_it_belongs(line: str, finding: str) -> None:
    (told,) = findings(with_((line, "")))
    assert told == finding


def test_a_rung_without_pseudonyms_needs_no_rotation() -> None:
    anonymous = (("    rotate: 30d\n", ""), ("rung: pseudonymous", "rung: anonymous"))
    assert findings(with_(*anonymous)) == []


@pytest.mark.parametrize("part", ["sources", "purposes", "events"])
def test_an_empty_part_is_refused(part: str) -> None:
    after = {"sources": "purposes:", "purposes": "events:", "events": None}[part]
    begin = SOUND.index(f"{part}:\n")
    end = SOUND.index(after) if after else len(SOUND)
    text = f"{SOUND[:begin]}{part}: {{}}\n{SOUND[end:]}"
    line = SOUND[:begin].count("\n") + 1
    assert f"line {line}, {part}: dictionary should have at least 1 item after validation, not 0" in findings(text)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duration", ["30", "30 d", "1.5h", "-1d", "d", "1w", "30D", "1d12h", "''", "1000000d", "30d ", "[30d]", "null"]
)
def test_a_duration_is_a_number_and_a_unit(duration: str) -> None:
    quoted = f"'{duration}'" if " " in duration else duration
    assert findings(with_(("lifetime: 30d", f"lifetime: {quoted}"))) == [
        f"line 15, purposes.ads.lifetime: {WANTED_DURATION}"
    ]


@pytest.mark.parametrize(
    ("duration", "ms"), [("1000ms", 1000), ("1s", 1000), ("10m", 600_000), ("12h", 43_200_000), ("7d", 604_800_000)]
)
def test_durations_are_read_as_milliseconds(duration: str, ms: int) -> None:
    policy = parse_policy(with_(("lifetime: 30d", f"lifetime: {duration}")).encode())
    assert policy.purposes["ads"].lifetime == ms


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("lifetime: 30d", "lifetime: 999ms", "line 15, purposes.ads.lifetime: wanted at least 1s"),
        (
            "rotate: 30d",
            "rotate: 0d",
            "line 14, purposes.ads.rotate: it is missing: say how long one pseudonym lasts, as in 30d",
        ),
        ("rotate: 30d", "rotate: monthly", f"line 14, purposes.ads.rotate: {WANTED_DURATION}"),
        ("type: what", "type: what\n    clock_skew: 5", f"line 9, sources.web.clock_skew: {WANTED_DURATION}"),
        ("version: 1", "version: 0", "line 2, version: input should be greater than or equal to 1"),
        ("version: 1", "version: 1.0", "line 2, version: input should be a valid integer"),
        ("version: 1", "version: '1'", "line 2, version: input should be a valid integer"),
        ("version: 1", "version: true", "line 2, version: input should be a valid integer"),
        ("policy: shop", "policy: Shop", f"line 1, policy: {A_NAME}"),
        ("policy: shop", "policy: 7", "line 1, policy: input should be a valid string"),
        ("own: true", "own: 'true'", "line 6, sources.web.own: input should be a valid boolean"),
        ("own: true", "own: 1", "line 6, sources.web.own: input should be a valid boolean"),
        ("topic: raw", "topic: a b", f"line 5, sources.web.topic: {A_TOPIC}"),
        (
            "type: what",
            "type: what\n    shape: segmnt",
            "line 9, sources.web.shape: unknown word `segmnt` (known: plain)",
        ),
        ("type: what", "type: what\n    key: id", "line 9, sources.web.key: unknown word `id` (known: subject, other)"),
        (
            "rung: pseudonymous",
            "rung: nothing",
            f"line 13, purposes.ads.rung: unknown word `nothing` ({RUNGS})",
        ),
        (
            "benefit: Suggestions that fit you",
            "benefit: For ads.",
            "line 11, purposes.ads.benefit: string should have at least 10 characters",
        ),
        ("  ads:", "  Ads:", f"line 10, purposes.Ads: {A_NAME}"),
        (
            "for: [ads]",
            "for: ads",
            "line 19, events.seen.price.for: unknown word `ads` (known: all); line 19, events.seen.price.for: input "
            "should be a valid list",
        ),
        (
            "for: [ads]",
            "for: [ads, Ads]",
            f"line 19, events.seen.price.for: input should be 'all'; line 19, events.seen.price.for.1: {A_NAME}",
        ),
        (
            "{round: 10}",
            "10",
            "line 19, events.seen.price.as.pseudonymous: input should be a valid string; "
            "line 19, events.seen.price.as.pseudonymous: input should be a valid dictionary",
        ),
        (
            "as: {pseudonymous: {round: 10}}",
            "as: {nothing: keep}",
            f"line 19, events.seen.price.as.nothing: unknown word `nothing` ({RUNGS})",
        ),
        (
            "as: {pseudonymous: {round: 10}}",
            "as: [day]",
            "line 19, events.seen.price.as: input should be a valid dictionary",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(old: str, new: str, finding: str) -> None:
    assert "; ".join(findings(with_((old, new)))) == finding


@pytest.mark.parametrize("path", ["a..b", ".a", "a.", "a b", "''", "'a\"b'", "'a\\b'", '"a\\x01b"', "x" * 501])
def test_a_path_is_names_with_dots_between_them(path: str) -> None:
    """No white space, and nothing that JSON must write with a backslash."""
    (told,) = findings(with_(("    page:", f"    {path}:")))
    assert told.startswith("line 18, events.seen.")
    assert "wanted a dotted path" in told or "at most 500 characters" in told
    assert len(findings(with_(("subject: who", f"subject: {path}")))) == 1


def test_other_letters_are_names_too() -> None:
    assert findings(with_(("    page:", "    страница.naïve.a-b_c:"), ("type: what", "type: $what"))) == []


# --- topics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        (
            "topic: out.ads",
            "topic: raw",
            "line 12, purposes.ads.topic: topic `raw` is used by sources.web.topic already",
        ),
        (
            "topic: raw",
            "topic: shop.quarantine",
            "line 5, sources.web.topic: topic `shop.quarantine` is used by topics.quarantine already",
        ),
        (
            "version: 1",
            "version: 1\ntopics: {receipts: shop.consents}",
            "line 3, topics.receipts: topic `shop.consents` is used by topics.consents already",
        ),
        (
            "purposes:",
            "  app: {topic: raw, own: true, subject: who, type: what}\npurposes:",
            "line 9, sources.app.topic: topic `raw` is used by sources.web.topic already",
        ),
    ],
)
def test_a_topic_has_one_use(old: str, new: str, finding: str) -> None:
    assert findings(with_((old, new))) == [f"{finding}; each use needs a topic of its own"]


def test_our_own_topics_are_named_after_the_policy_unless_they_are_named() -> None:
    policy = parse_policy(with_(("version: 1", "version: 1\ntopics: {receipts: done}")).encode())
    assert [policy.topic("consents"), policy.topic("receipts")] == ["shop.consents", "done"]
    assert [policy.topic("quarantine"), policy.topic("rekeyed")] == ["shop.quarantine", "shop.rekeyed"]


# --- purposes, categories, forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("for: [ads]", "for: [adds]", "price.for: unknown purpose `adds`; did you mean `ads`?"),
        ("for: [ads]", "for: [ads, zzz]", "price.for: unknown purpose `zzz`"),
        (
            "is: user.behavior.purchase_history",
            "is: user.behavior.purchases",
            "price.is: unknown category `user.behavior.purchases`; did you mean `user.behavior.purchase_history`?",
        ),
        ("is: user.behavior.purchase_history", "is: price", "price.is: unknown category `price`"),
        (
            "{round: 10}",
            "{rond: 10}",
            f"price.as.pseudonymous: unknown form `rond`; did you mean `round`? (known: {FORMS})",
        ),
        ("{round: 10}", "redact", f"price.as.pseudonymous: unknown form `redact` (known: {FORMS})"),
        ("{round: 10}", "{hour: 1}", "price.as.pseudonymous: `hour` takes no parameters; write it without"),
        ("{round: 10}", "{round: 10, keep: 1}", "price.as.pseudonymous: wanted one form, as in {round: 10}"),
        ("{round: 10}", "{}", "price.as.pseudonymous: wanted one form, as in {round: 10}"),
        ("for: [ads], as", "as", "price: it has forms and no purpose; add `for`, or take `as` away"),
        (
            "as: {pseudonymous: {round: 10}}",
            "drop: not needed",
            "price: it is dropped and published; keep either `drop` or `for`",
        ),
    ],
)
def test_a_field_says_what_it_is_and_what_becomes_of_it(old: str, new: str, finding: str) -> None:
    assert findings(with_((old, new))) == [f"line 19, events.seen.{finding}"]


def test_the_subject_is_never_a_field_of_an_output() -> None:
    assert findings(with_(("    page:", "    who:"))) == [
        "line 18, events.seen.who.for: the subject is never a field of an output: the rung decides who an output says "
        "it is about"
    ]
    assert findings(SOUND + "    who: {is: user.unique_id}\n") == []


def test_the_stamp_has_its_place_to_itself() -> None:
    for path in ("_celosia", "_celosia.subject"):
        (told,) = findings(with_(("    page:", f"    {path}:")))
        assert told == (
            f"line 18, events.seen.{path}: `_celosia` is where the stamp of an output stands; name the field elsewhere"
        )


def test_a_path_is_a_field_everywhere_or_a_group_everywhere() -> None:
    elsewhere = SOUND + "  bought:\n    page.title: {is: user.behavior, for: all}\n"
    assert findings(elsewhere) == [
        "line 18, events.seen.page: it is a field here and a group in `page.title`; name only its leaves"
    ]
    assert findings(SOUND + "    pages.title: {is: user.behavior, for: all}\n") == []


def test_what_a_source_reads_as_a_value_is_no_group() -> None:
    assert findings(with_(("type: what", "type: what\n    time: price.at"))) == [
        "line 20, events.seen.price: it is a field here and a group in `price.at`; name only its leaves"
    ]
    assert findings(SOUND + "    what.kind: {is: user.behavior, for: all}\n") == [
        "line 8, sources.web.type: it is a field here and a group in `what.kind`; name another field"
    ]


# --- red lines --------------------------------------------------------------------------------------------------------

RED = [(line, category) for line, crossed in RED_LINES.items() for category in crossed]


@pytest.mark.parametrize(("line", "category"), RED, ids=[category for _, category in RED])
def test_no_category_beyond_a_red_line_serves_a_purpose(line: str, category: str) -> None:
    if category == "user.biometric.health":
        line = "biometric data and faces are never used to recognize people"
    crossed = with_(("is: user.behavior.purchase_history", f"is: {category}"))
    for rung in ("anonymous", "pseudonymous", "identified"):
        assert findings(crossed.replace("rung: pseudonymous", f"rung: {rung}")) == [
            f"line 19, events.seen.price.for: red line: `{category}` may serve no purpose above `crowd`: {line}"
        ]
    assert findings(with_(("is: user.contact.email", f"is: {category}"))) == [], "it may be named, and dropped"


def test_a_category_that_may_hold_a_red_one_is_refused_too() -> None:
    assert findings(with_(("is: user.behavior.purchase_history", "is: user.demographic"))) == [
        "line 19, events.seen.price.for: red line: `user.demographic` may serve no purpose above `crowd`: it may hold "
        "user.demographic.age_range; nobody is targeted by age; name the category below it"
    ]


@pytest.mark.parametrize("name", ["pricing", "pricing.personal"])
def test_nobody_gets_a_price_of_their_own(name: str) -> None:
    text = with_(("  ads:", f"  {name}:"), ("for: [ads]", f"for: [{name}]"))
    assert findings(text) == [
        f"line 13, purposes.{name}.rung: red line: nobody gets a price of their own; `pricing.*` may use `crowd` only"
    ]


def test_a_name_that_only_begins_like_pricing_is_another_purpose() -> None:
    assert findings(with_(("  ads:", "  pricing_errors:"), ("for: [ads]", "for: [pricing_errors]"))) == []


@pytest.mark.parametrize("name", ["ads", "pricing"])
def test_a_crowd_purpose_says_how_it_counts(name: str) -> None:
    text = with_(("  ads:", f"  {name}:"), ("for: [ads]", f"for: [{name}]"), ("rung: pseudonymous", "rung: crowd"))
    assert findings(text) == [
        f"line 10, purposes.{name}.crowd: it is missing: say how it counts, with k, window, by and most_per_person"
    ]


def test_nobody_is_followed_around() -> None:
    finding = (
        "line 6, sources.web.own: this source is not our own dealing with the person, and fields about a person are "
        "published: nobody is followed around; put its events into a policy whose fields are all `system.*`"
    )
    foreign = with_(("own: true", "own: false"))
    assert findings(foreign) == [finding]
    system = foreign.replace("user.behavior.browsing_history", "system.operations")
    assert findings(system) == [finding]
    assert findings(system.replace("user.behavior.purchase_history", "system.operations")) == []


# --- all at once ------------------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_told_at_once() -> None:
    text = with_(
        ("topic: out.ads", "topic: raw"),
        ("    rotate: 30d\n", ""),
        ("for: [ads]", "for: [adds]"),
        ("is: user.contact.email", "is: user.mail"),
        ("    page:", "    who:"),
    )
    assert [told.split(":")[0] for told in findings(text)] == [
        "line 10, purposes.ads.rotate",
        "line 12, purposes.ads.topic",
        "line 17, events.seen.who.for",
        "line 18, events.seen.price.for",
        "line 19, events.seen.mail.is",
    ]
    text = with_(("version: 1", "version: x"), ("own: true", "own: yess"), ("lifetime: 30d", "lifetime: x"))
    assert [told.split(":")[0] for told in findings(text)] == [
        "line 2, version",
        "line 6, sources.web.own",
        "line 15, purposes.ads.lifetime",
    ]


def test_a_message_names_the_file_and_lists_the_findings() -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(with_(("version: 1", "version: 0"), ("own: true", "own: 1")).encode(), "shop.yaml")
    assert str(error.value) == (
        "policy `shop.yaml` is refused:\n"
        "  line 2, version: input should be greater than or equal to 1\n"
        "  line 6, sources.web.own: input should be a valid boolean"
    )


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(SOUND)
    assert load_policy(file) == parse_policy(SOUND.encode())


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    for file, why in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(PolicyError) as error:
            load_policy(file)
        assert (error.value.file, error.value.findings) == (str(file), [f"it cannot be read: {why}"])


# --- warnings ---------------------------------------------------------------------------------------------------------

TWO = (
    "events:",
    "  news: {benefit: News that fit you, topic: out.news, rung: identified, rotate: 1d, lifetime: 1d}\nevents:",
)


def test_an_identifier_that_serves_two_purposes_links_them() -> None:
    order = "    order: {is: user.unique_id, for: all}\n"
    (told,) = warnings(parse_policy((with_(TWO) + order).encode()))
    assert told == (
        "events.seen.order: kept as it is for ads, news: who reads both can link their pseudonyms; "
        "serve one purpose, or give it the form `pseudonym`"
    )
    for sound in (order.replace("all}", "[ads]}"), order.replace("all}", "all, as: {pseudonymous: pseudonym}}")):
        assert warnings(parse_policy((with_(TWO) + sound).encode())) == []


def test_a_name_that_says_something_else_than_the_category_deserves_a_second_look() -> None:
    text = SOUND + "    age: {is: user.behavior, for: all}\n    birth_date: {is: user.behavior, drop: not needed}\n"
    assert warnings(parse_policy(text.encode())) == [
        "events.seen.age: it is named like `user.demographic.age_range` and classified `user.behavior`; look again"
    ]
