"""The agents: what one transaction shall hold, from a batch of raw records.

A reader who knows Faust finds agents here. An agent is a function over a batch; the decorator `agent` binds it to its
topics, as `@app.agent` does, and the application runs one lane of it per partition (`streams.kafka.lane`). What an
agent returns is committed with the offsets of its batch, or not at all.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from streams.consent import Refusal
from streams.event import Rejected
from streams.kafka.lane import Agent, View, Work
from streams.kafka.partitioner import partition_of
from streams.kafka.port import Batch
from streams.outcome import Outcome, Output, suppressed
from streams.pipeline import Place, bind, quarantine
from streams.plan import Plan, SourcePlan

__all__ = ["AGENTS", "BoundAgent", "agent", "minimize", "rekey"]


@dataclass(frozen=True, slots=True)
class BoundAgent:
    """An agent with the topics it reads under a plan, and whether consents govern it (then each batch is gated)."""

    name: str
    function: Agent
    topics: Callable[[Plan], list[str]]
    gated: bool


def agent(topics: Callable[[Plan], list[str]], *, gated: bool) -> Callable[[Agent], BoundAgent]:
    """Bind a function to its topics."""
    return lambda function: BoundAgent(function.__name__, function, topics, gated)


def _minimized_topics(plan: Plan) -> list[str]:
    return sorted(source.topic for source in plan.sources)


def _rekeyed_topics(plan: Plan) -> list[str]:
    return sorted(source.raw_topic for source in plan.sources if source.rekey)


@agent(_minimized_topics, gated=True)
def minimize(batch: Batch, view: View) -> Work:
    """Decide about each event and publish what is left of it."""
    source = next(source for source in view.plan.sources if source.topic == batch.topic)
    place = Place(source, view.partition)
    process = bind(place, view.consents, view.plan, view.now)
    return _work(source, view.partition, [process(record) for record in batch.records])


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


def _work(source: SourcePlan, partition: int, outcomes: list[Outcome]) -> Work:
    """Sort the outputs of a batch by where they go, and count what became of its events."""
    tallies: Counter[tuple[str, ...]] = Counter()
    for (kind, reason), count in Counter([(kind, reason) for kind, _, reason, _, _ in outcomes]).items():
        tallies[(kind, source.name, "", reason or "")] = count
    by_topic: dict[str, list[Output]] = {}
    for _, outputs, _, refusals, _ in outcomes:
        for output in outputs:
            topic = output[0]
            if topic in by_topic:
                by_topic[topic].append(output)
            else:
                by_topic[topic] = [output]
        for purpose, refusal in refusals:
            tallies[("refused", source.name, purpose, refusal)] += 1
    for purpose in {service.purpose.topic for services in source.services.values() for service in services}:
        tallies[("output", source.name, purpose, "")] = len(by_topic.get(purpose, ()))
    return Work({(topic, partition): outputs for topic, outputs in by_topic.items()}, tallies)


AGENTS = (rekey, minimize)
"""All agents, in the order in which an event meets them."""
