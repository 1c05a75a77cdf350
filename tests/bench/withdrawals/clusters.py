"""The brokers that trials happen on, and where the partitions of a deployment lie on them.

`one`     a single node
`three`   three nodes, replication 3; consents are led by another node than the events of their partition
`aside`   the same three, and everything but the consents lies on the two nodes that do not lead the consents of the
          same number: such a leader may stand still, and the events flow on
`linked`  three nodes with links that can be cut; consents are on all, led by the first or the second, everything else
          on the third alone: a leader of consents may be cut off, and nothing else notices
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka.cimpl import NewTopic

from streams.embedded import ApacheKafka, apache_kafka
from streams.kafka.topics import wanted_topics
from tests.bench.withdrawals.trials import one_purpose
from tests.chaos.cluster import linked_cluster
from tests.kafka.brokers import SECONDS, admin_client, wait_until
from tests.kafka.worker import PARTITIONS, Deployment

QUICK = {
    # Workers that are gone are replaced soon.
    "group.min.session.timeout.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # Leaders stay where they are put, until they are hurt; one partition, so there is one transaction coordinator.
    "auto.leader.rebalance.enable": "false",
    "transaction.state.log.num.partitions": "1",
    # A node that is gone is replaced after 3 s instead of 9.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}
HOME_ALONE = {
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
}
HEALED = 120.0
Replicas = Callable[[str, int], list[int]]
"""By the use of a topic (`consents`, ...) and the number of a partition: the nodes it lies on, its leader first."""


@contextmanager
def cluster_of(kind: str) -> Iterator[ApacheKafka]:
    """Start the nodes of one kind, and end them.

    Raises:
        BrokerFailed: they do not start.
    """
    if kind == "linked":
        with linked_cluster(workers=1, overrides=QUICK | HOME_ALONE) as cluster:
            for topic in ("__consumer_offsets", "__transaction_state"):
                _place(cluster.bootstrap, topic, [[3]], {"cleanup.policy": "compact"})
            yield cluster
        return
    with apache_kafka(nodes=1 if kind == "one" else 3, overrides=QUICK) as kafka:
        yield kafka


def _three(use: str, number: int) -> list[int]:
    first = number + (use != "consents")
    return [(first + i) % 3 + 1 for i in range(3)]


def _aside(use: str, number: int) -> list[int]:
    return _three(use, number) if use == "consents" else _three(use, number)[:2]


def _linked(use: str, number: int) -> list[int]:
    return [1, 2, 3] if use == "consents" else [3]


LAYOUTS: dict[str, Replicas] = {"three": _three, "aside": _aside, "linked": _linked}


@contextmanager
def deployed_on(kind: str, bootstrap: str, prefix: str, home: Path) -> Iterator[Deployment]:
    """A deployment of the trials' policy with its topics; its processes are gone at the end."""
    with Deployment(bootstrap, prefix, one_purpose(prefix), home, 1 if kind == "one" else 3) as shop:
        if kind in LAYOUTS:
            wanted = {topic.name: topic for topic in wanted_topics(shop.plan.policy)}
            for topic in wanted.values():
                assignment = [LAYOUTS[kind](topic.use, number) for number in range(PARTITIONS)]
                _place(bootstrap, topic.name, assignment, topic.config)
        else:
            shop.create_topics()
        yield shop


def _place(bootstrap: str, topic: str, assignment: list[list[int]], config: Mapping[str, str]) -> None:
    """Create a topic with its partitions on these nodes, and wait until the first of each leads."""
    durable = {"min.insync.replicas": str(min(2, len(assignment[0])))}
    new = NewTopic(topic, num_partitions=len(assignment), replica_assignment=assignment, config={**config, **durable})
    [future] = admin_client(bootstrap).create_topics([new], operation_timeout=SECONDS).values()
    future.result(SECONDS)
    wanted = dict(enumerate(nodes[0] for nodes in assignment))
    wait_until(lambda: leaders(bootstrap, topic) == wanted, f"{topic} is led by {wanted}", HEALED)


def leaders(bootstrap: str, topic: str) -> dict[int, int]:
    """The leading node of each partition, -1 where there is none."""
    known = admin_client(bootstrap).list_topics(topic, timeout=SECONDS).topics[topic]
    return {number: partition.leader for number, partition in known.partitions.items()}


def wait_in_sync(bootstrap: str) -> None:
    """Wait until every partition has a leader and all its replicas in sync."""

    def whole() -> bool:
        topics = admin_client(bootstrap).list_topics(timeout=SECONDS).topics.values()
        partitions = [partition for topic in topics for partition in topic.partitions.values()]
        return all(len(it.isrs) == len(it.replicas) and it.leader != -1 for it in partitions)

    wait_until(whole, "all replicas are in sync", HEALED)
