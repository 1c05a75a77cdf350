"""Topics: what a policy needs, and what is wrong with what there is."""

from typing import Any

import pytest

from streams.kafka.topics import TopicState, Wanted, find_faults, wanted_topics
from streams.policy import parse_policy

POLICY = parse_policy(b"""
policy: shop
version: 1
topics: {receipts: done}
sources:
  web: {topic: web.raw, own: true, subject: who, type: what}
  app: {topic: app.raw, own: true, subject: who, type: what, key: other}
purposes:
  ads: {benefit: Suggestions that fit you, topic: out.ads, rung: anonymous, lifetime: 7d}
  news: {benefit: News that fit you, topic: out.news, rung: anonymous, lifetime: 30d}
events:
  seen:
    page: {is: user.behavior, for: all, as: {anonymous: keep}}
""")
DAY = 86_400_000
COMPACT = {"cleanup.policy": "compact", "message.timestamp.type": "CreateTime"}
DELETE = {"cleanup.policy": "delete"}
FORGOTTEN = "without it a consent is forgotten after the retention"


def test_a_policy_needs_these_topics_and_the_consent_topic_comes_first() -> None:
    assert wanted_topics(POLICY) == [
        Wanted("shop.consents", "consents", COMPACT),
        Wanted("done", "receipts", {"cleanup.policy": "compact"}),
        Wanted("shop.quarantine", "quarantine", DELETE),
        Wanted("web.raw", "source web", DELETE),
        Wanted("app.raw", "source app", DELETE, equal=False),
        Wanted(
            "shop.rekeyed.app",
            "source app, re-keyed",
            DELETE | {"message.timestamp.type": "CreateTime", "retention.ms": str(DAY)},
        ),
        Wanted("out.ads", "purpose ads", DELETE | {"retention.ms": str(7 * DAY)}, lifetime=7 * DAY),
        Wanted("out.news", "purpose news", DELETE | {"retention.ms": str(30 * DAY)}, lifetime=30 * DAY),
    ]


def sound(partitions: int = 4, replication: int = 3) -> dict[str, TopicState]:
    """Return the topics as they should be."""
    return {
        topic.name: TopicState(
            partitions, replication, {**topic.config, "min.insync.replicas": str(min(2, replication))}
        )
        for topic in wanted_topics(POLICY)
    }


def faults(states: dict[str, TopicState], **options: Any) -> list[str]:
    return find_faults(wanted_topics(POLICY), states, **options)


def changed(name: str, partitions: int = 4, **config: str) -> dict[str, TopicState]:
    """Return the sound topics but for one; `a_b` in a setting's name stands for `a.b`."""
    states = sound()
    settings = {**(states[name].config or {}), **{key.replace("_", "."): value for key, value in config.items()}}
    return states | {name: TopicState(partitions, 3, settings)}


@pytest.mark.parametrize(("partitions", "replication"), [(4, 3), (1, 1), (12, 2)])
def test_with_sound_topics_nothing_is_wrong(partitions: int, replication: int) -> None:
    assert faults(sound(partitions, replication)) == []


def test_all_that_is_missing_is_told() -> None:
    told = faults({})
    assert len(told) == 8
    assert told[0] == "`shop.consents` (consents): it does not exist; create it: celosia topics --create"
    assert told[-1] == "`out.news` (purpose news): it does not exist; create it: celosia topics --create"


@pytest.mark.parametrize("name", ["done", "shop.quarantine", "web.raw", "shop.rekeyed.app", "out.ads"])
@pytest.mark.parametrize("partitions", [3, 5])
def test_events_must_lie_on_the_partition_of_their_consent(name: str, partitions: int) -> None:
    (told,) = faults(changed(name, partitions))
    assert told.startswith(f"`{name}` (")
    assert told.endswith(
        f": {partitions} partitions, wanted 4, as `shop.consents` has: a person's events must lie on the partition of "
        "their consent"
    )


def test_raw_events_that_are_keyed_anew_may_lie_on_any_number_of_partitions() -> None:
    assert faults(changed("app.raw", partitions=7)) == []


def test_partitions_are_not_compared_with_a_consent_topic_that_is_not_there() -> None:
    states = sound()
    del states["shop.consents"]
    assert len(faults(states)) == 1


@pytest.mark.parametrize(
    ("name", "config", "fault"),
    [
        (
            "shop.consents",
            {"cleanup_policy": "delete"},
            f"(consents): cleanup.policy is delete, wanted compact; {FORGOTTEN}",
        ),
        (
            "shop.consents",
            {"cleanup_policy": "compact,delete"},
            f"(consents): cleanup.policy is compact,delete, wanted compact; {FORGOTTEN}",
        ),
        (
            "done",
            {"cleanup_policy": "delete"},
            f"(receipts): cleanup.policy is delete, wanted compact; {FORGOTTEN}",
        ),
        (
            "web.raw",
            {"cleanup_policy": "compact"},
            "(source web): cleanup.policy is compact, wanted delete; compaction would remove events of the same key",
        ),
        (
            "shop.consents",
            {"message_timestamp_type": "LogAppendTime"},
            "(consents): message.timestamp.type is LogAppendTime, wanted CreateTime; rule 1 asks when the event was "
            "recorded, not when it was copied",
        ),
        (
            "shop.rekeyed.app",
            {"message_timestamp_type": "LogAppendTime"},
            "(source app, re-keyed): message.timestamp.type is LogAppendTime, wanted CreateTime; rule 1 asks when the "
            "event was recorded, not when it was copied",
        ),
        (
            "out.ads",
            {"retention_ms": "604800001"},
            "(purpose ads): retention.ms is 604800001 ms, wanted at most 604800000: its events expire then",
        ),
        (
            "out.ads",
            {"retention_ms": "-1"},
            "(purpose ads): retention.ms is unlimited, wanted at most 604800000: its events expire then",
        ),
        (
            "out.ads",
            {"min_insync_replicas": "1"},
            "(purpose ads): min.insync.replicas is 1 with replication 3, wanted 2: an acknowledged withdrawal would be "
            "lost with one broker",
        ),
        (
            "shop.consents",
            {"min_insync_replicas": "4"},
            "(consents): min.insync.replicas is 4 with replication 3: nothing can be written",
        ),
    ],
)
def test_each_thing_that_is_wrong_is_told_with_what_was_wanted_and_why(
    name: str, config: dict[str, str], fault: str
) -> None:
    assert faults(changed(name, 4, **config)) == [f"`{name}` {fault}"]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("web.raw", {"message_timestamp_type": "LogAppendTime"}),
        ("out.ads", {"retention_ms": "1"}),
        ("out.ads", {"retention_ms": "604800000"}),
        ("web.raw", {"retention_ms": "-1"}),
        ("done", {"retention_ms": "-1"}),
        ("web.raw", {"min_insync_replicas": "3"}),
    ],
)
def test_what_is_stricter_or_none_of_our_business_is_no_fault(name: str, config: dict[str, str]) -> None:
    assert faults(changed(name, 4, **config)) == []


def test_outputs_must_not_outlive_their_lifetime_by_compaction() -> None:
    (told,) = faults(changed("out.ads", cleanup_policy="compact", retention_ms="-1"))
    assert told.startswith("`out.ads` (purpose ads): cleanup.policy is compact, wanted delete")


def test_one_broker_alone_cannot_be_durable_and_need_not_say_so() -> None:
    states = sound(replication=1)
    assert faults(states) == []
    two = {
        name: TopicState(4, 2, {**(state.config or {}), "min.insync.replicas": "1"}) for name, state in states.items()
    }
    assert len(faults(two)) == 8
    assert faults(two, durable=False) == []
    one = states | {"web.raw": TopicState(4, 1, DELETE | {"min.insync.replicas": "2"})}
    assert faults(one, durable=False) == [
        "`web.raw` (source web): min.insync.replicas is 2 with replication 1: nothing can be written"
    ]


def test_a_broker_that_tells_no_settings_is_asked_for_partitions_only() -> None:
    states = {name: TopicState(state.partitions, 3, None) for name, state in sound().items()}
    assert faults(states) == []
    assert len(faults(states | {"web.raw": TopicState(3, 3, None)})) == 1


def test_several_faults_of_one_topic_are_several_lines() -> None:
    told = faults(changed("out.ads", partitions=3, cleanup_policy="compact", min_insync_replicas="1"))
    assert [line.partition(": ")[2].split()[0] for line in told] == ["3", "cleanup.policy", "min.insync.replicas"]
