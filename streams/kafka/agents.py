"""The agents: what one transaction shall hold, from a batch of raw records.

A reader who knows Faust finds agents here. An agent is a function over a batch; the decorator `agent` binds it to its
topics, as `@app.agent` does, and the application runs one lane of it per partition (`streams.kafka.lane`). What an
agent returns is committed with the offsets of its batch, or not at all.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

from streams.consent import Refusal
from streams.event import Rejected
from streams.kafka.crowds import Collecting, Counting
from streams.kafka.partitioner import partition_of
from streams.kafka.port import Batch
from streams.kafka.work import Agent, BoundAgent, View, Work
from streams.outcome import Outcome, Output, suppressed
from streams.pipeline import Place, bind, quarantine
from streams.plan import Plan, SourcePlan, crowd_rules

__all__ = ["AGENTS", "agent", "minimize", "rekey", "release"]


def agent(topics: Callable[[Plan], list[str]], *, gated: bool, **options: Any) -> Callable[[Agent], BoundAgent]:
    """Bind a function to its topics; `options` are those of `BoundAgent`."""
    return lambda function: BoundAgent(function.__name__, function, topics, gated, **options)


def _minimized_topics(plan: Plan) -> list[str]:
    closings = [plan.policy.topic("closings")] if crowd_rules(plan) else []
    return sorted([source.topic for source in plan.sources] + closings)


def _rekeyed_topics(plan: Plan) -> list[str]:
    return sorted(source.raw_topic for source in plan.sources if source.rekey)


def _kept_in(of: Literal["counting", "rounds"]) -> Callable[[Plan], str | None]:
    return lambda plan: plan.policy.topic(of) if crowd_rules(plan) else None


def _nothing_comes(view: View) -> Work:
    return Work({}, {}) if view.state is None else view.state.work(view)


@agent(
    _minimized_topics,
    gated=True,
    state_topic=_kept_in("counting"),
    state=lambda plan, _partition, _partitions: Counting(plan),
    idle=_nothing_comes,
)
def minimize(batch: Batch, view: View) -> Work:
    """Decide about each event, publish what is left of it, and count what may be told of many people only."""
    counting: Counting | None = view.state
    if counting is not None and batch.topic == view.plan.policy.topic("closings"):
        return counting.answer(batch, view)
    source = next(source for source in view.plan.sources if source.topic == batch.topic)
    process = bind(Place(source, view.partition), view.consents, view.plan, view.now)
    outcomes: Iterable[Outcome] = map(process, batch.records)
    tallies = dict[tuple[str, ...], int]()
    if counting is not None:
        outcomes = counting.count(outcomes, batch.topic, tallies)
    work = _work(source, view.partition, outcomes)
    work.tallies.update(tallies)
    if counting is not None:
        counting.passed(source, batch.records, view.now)
        work.sends.update(counting.work(view).sends)
    return work


@agent(_rekeyed_topics, gated=False)
def rekey(batch: Batch, view: View) -> Work:
    """Key events by their subject, onto the partition where the subject's consent lies, and leave them as they are."""
    source = next(source for source in view.plan.sources if source.rekey and source.raw_topic == batch.topic)
    place = Place(source, view.partition, keyed=False, topic=source.raw_topic)
    outcomes = []
    keyed: dict[tuple[str, int], list[Output]] = {}
    for record in batch.records:
        try:
            subject = source.reader.read(record.value).subject
        except Rejected as rejected:
            outcomes.append(quarantine(record, place, view.plan, rejected.reason))
            continue
        if subject is None:
            outcomes.append(suppressed(Refusal.NO_SUBJECT))
            continue
        # The raw coordinates travel along, so that what is published leads back to the raw record; nothing else of
        # the raw headers does. The timestamp stays that of the raw record: rule 1 asks when it was recorded.
        origin = ("celosia-origin", b"%d:%d" % (view.partition, record.offset))
        output = Output(source.topic, subject, record.value or b"", [origin], record.timestamp)
        keyed.setdefault((source.topic, partition_of(subject, view.partitions)), []).append(output)
    work = _work(source, view.partition, outcomes)
    work.sends.update(keyed)
    work.tallies[("rekeyed", source.name, "", "")] = sum(map(len, keyed.values()))
    return work


def _work(source: SourcePlan, partition: int, outcomes: Iterable[Outcome]) -> Work:
    """Sort the outputs of a batch by where they go, and count what became of its events."""
    # One by one as they come: what a thousand outcomes have held is in no cache any more.
    kinds: dict[tuple[str, str | None], int] = {}
    tallies: dict[tuple[str, ...], int] = {}
    by_topic: dict[str, list[Output]] = {}
    for kind, outputs, reason, refusals, _ in outcomes:
        what = kind, reason
        kinds[what] = kinds.get(what, 0) + 1
        for output in outputs:
            topic = output[0]
            if topic in by_topic:
                by_topic[topic].append(output)
            else:
                by_topic[topic] = [output]
        for purpose, refusal in refusals:
            refused = "refused", source.name, purpose, refusal
            tallies[refused] = tallies.get(refused, 0) + 1
    for (became, why), count in kinds.items():
        tallies[became, source.name, "", why or ""] = count
    for purpose in {service.purpose.topic for services in source.services.values() for service in services}:
        tallies["output", source.name, purpose, ""] = len(by_topic.get(purpose, ()))
    return Work({(topic, partition): outputs for topic, outputs in by_topic.items()}, tallies)


def _partials_topics(plan: Plan) -> list[str]:
    return [plan.policy.topic("partials")] if crowd_rules(plan) else []


@agent(_partials_topics, gated=False, state_topic=_kept_in("rounds"), state=Collecting)
def release(batch: Batch, view: View) -> Work:
    """Close windows of crowds when all partitions have passed them, and tell the cells that may be told."""
    collecting: Collecting = view.state
    return collecting.work(batch, view)


AGENTS = (rekey, minimize, release)
"""All agents, in the order in which an event meets them."""
