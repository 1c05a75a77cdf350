"""Creates the topics that a policy needs, and checks those that are there.

Each check is a condition of a promise; each finding says what was wanted, what came, and what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from streams.errors import BrokerFailed, TopicsError
from streams.policy import OwnTopic, Policy

__all__ = ["TopicState", "Wanted", "ask_states", "check_topics", "create_topics", "find_faults", "wanted_topics"]

_DAY = 86_400_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """One topic as the policy needs it. `equal`: it must have as many partitions as the consent topic."""

    name: str
    use: str
    config: Mapping[str, str]
    equal: bool = True
    lifetime: int | None = None
    """for outputs: the lifetime in ms that its retention must not exceed"""


@dataclass(frozen=True, slots=True)
class TopicState:
    """One topic as the broker has it. `config` is None where the broker does not tell."""

    partitions: int
    replication: int
    config: Mapping[str, str] | None


def wanted_topics(policy: Policy) -> list[Wanted]:
    """Return all topics that a policy reads or writes, the consent topic first."""
    compact = {"cleanup.policy": "compact"}
    wanted = [
        Wanted(policy.topic("consents"), "consents", compact | {"message.timestamp.type": "CreateTime"}),
        Wanted(policy.topic("receipts"), "receipts", compact),
        Wanted(policy.topic("quarantine"), "quarantine", {"cleanup.policy": "delete"}),
    ]
    for name, source in policy.sources.items():
        if source.key == "other":
            wanted.append(Wanted(source.topic, f"source {name}", {"cleanup.policy": "delete"}, equal=False))
            # CreateTime: the time at which an event was recorded travels with it, and must not become a later one.
            internal = {"cleanup.policy": "delete", "message.timestamp.type": "CreateTime", "retention.ms": str(_DAY)}
            wanted.append(Wanted(f"{policy.topic('rekeyed')}.{name}", f"source {name}, re-keyed", internal))
        else:
            wanted.append(Wanted(source.topic, f"source {name}", {"cleanup.policy": "delete"}))
    if any(purpose.crowd is not None for purpose in policy.purposes.values()):
        wanted += [Wanted(policy.topic(of), use, compact) for of, use in _CROWD_STATES]
        # What is said in a round is of no use once it was read; a lane that is behind for longer drops its windows.
        passing = {"cleanup.policy": "delete", "retention.ms": str(7 * _DAY)}
        wanted += [Wanted(policy.topic(of), use, passing) for of, use in _CROWD_ROUNDS]
    for name, purpose in policy.purposes.items():
        config = {"cleanup.policy": "delete", "retention.ms": str(purpose.lifetime)}
        wanted.append(Wanted(purpose.topic, f"purpose {name}", config, lifetime=purpose.lifetime))
    return wanted


_CROWD_STATES: tuple[tuple[OwnTopic, str], ...] = (
    ("counting", "open windows of crowds"),
    ("rounds", "windows of crowds that are being closed"),
)
_CROWD_ROUNDS: tuple[tuple[OwnTopic, str], ...] = (
    ("closings", "orders to close windows of crowds"),
    ("partials", "what partitions add to crowds"),
)


def find_faults(wanted: list[Wanted], states: Mapping[str, TopicState], *, durable: bool = True) -> list[str]:
    """Return one line for each thing that is wrong; empty: all is well. Pure: states in, findings out.

    `durable` asks for min.insync.replicas of 2 where the replication allows it (assumption A1 of the promises).

    >>> find_faults([Wanted("c", "consents", {"cleanup.policy": "compact"})],
    ...             {"c": TopicState(4, 1, {"cleanup.policy": "delete"})})[0]
    '`c` (consents): cleanup.policy is delete, wanted compact; without it a consent is forgotten after the retention'
    """
    faults = []
    consents = states.get(wanted[0].name)
    for topic in wanted:
        state = states.get(topic.name)
        where = f"`{topic.name}` ({topic.use})"
        if state is None:
            faults.append(f"{where}: it does not exist; create it: celosia topics --create")
            continue
        if topic.equal and consents is not None and state.partitions != consents.partitions:
            faults.append(
                f"{where}: {state.partitions} partitions, wanted {consents.partitions}, as `{wanted[0].name}` has: a "
                "person's events must lie on the partition of their consent"
            )
        if state.config is not None:
            faults += [f"{where}: {fault}" for fault in _config_faults(topic, state, state.config, durable)]
    return faults


_WHY = {
    "cleanup.policy": {
        "compact": "without it a consent is forgotten after the retention",
        "delete": "compaction would remove events of the same key",
    },
    "message.timestamp.type": {"CreateTime": "rule 1 asks when the event was recorded, not when it was copied"},
}


def _config_faults(topic: Wanted, state: TopicState, config: Mapping[str, str], durable: bool) -> list[str]:
    faults = []
    for name, why in _WHY.items():
        wanted, came = topic.config.get(name), config.get(name)
        if wanted is not None and came is not None and came != wanted:
            faults.append(f"{name} is {came}, wanted {wanted}; {why[wanted]}")
    if topic.lifetime is not None and config.get("cleanup.policy", "delete") == "delete":
        retention = int(config.get("retention.ms", topic.lifetime))
        if retention < 0 or retention > topic.lifetime:
            came_in_words = "unlimited" if retention < 0 else f"{retention} ms"
            faults.append(f"retention.ms is {came_in_words}, wanted at most {topic.lifetime}: its events expire then")
    replicas = int(config.get("min.insync.replicas", "1"))
    if durable and state.replication > 1 and replicas < 2:
        faults.append(
            f"min.insync.replicas is {replicas} with replication {state.replication}, wanted 2: an acknowledged "
            "withdrawal would be lost with one broker"
        )
    if replicas > state.replication:
        faults.append(f"min.insync.replicas is {replicas} with replication {state.replication}: nothing can be written")
    return faults


async def read_states(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, TopicState]:
    """Ask the broker for partitions, replication and settings of those topics that exist."""
    # Naming a topic in the question creates it, with the broker's defaults, where brokers may create topics.
    there = set(await admin.list_topics())
    states = {}
    for topic in await admin.describe_topics([name for name in names if name in there]):
        if topic["error_code"] == 0 and topic["partitions"]:
            partitions = topic["partitions"]
            states[topic["topic"]] = (len(partitions), min(len(partition["replicas"]) for partition in partitions))
    configs: dict[str, dict[str, str]] = {}
    if states:
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in states]
        for answer in await admin.describe_configs(resources):
            for error_code, _message, _kind, name, entries, *_rest in answer.resources:
                if error_code == 0:
                    configs[name] = {entry[0]: entry[1] for entry in entries}
    return {name: TopicState(*counts, configs.get(name) or None) for name, counts in states.items()}


async def check_topics(bootstrap: str, policy: Policy) -> dict[str, TopicState]:
    """Ask the broker and return the states.

    Raises:
        BrokerFailed: it does not answer.
        TopicsError: with one line for each thing wrong.
    """
    states = await ask_states(bootstrap, policy)
    faults = find_faults(wanted_topics(policy), states)
    if faults:
        raise TopicsError(faults)
    return states


async def ask_states(bootstrap: str, policy: Policy) -> dict[str, TopicState]:
    """Ask the broker for the topics of a policy that exist, whatever is wrong with them.

    Raises:
        BrokerFailed: it does not answer.
    """
    async with _Admin(bootstrap) as admin:
        return await read_states(admin, [topic.name for topic in wanted_topics(policy)])


async def create_topics(bootstrap: str, policy: Policy, partitions: int, replication: int) -> list[str]:
    """Create the topics that are missing, and return their names.

    Raises:
        BrokerFailed: the broker does not answer, or refuses.
    """
    durable = {"min.insync.replicas": str(min(2, replication))} if replication > 1 else {}
    wanted = {topic.name: topic for topic in wanted_topics(policy)}
    async with _Admin(bootstrap) as admin:
        there = await read_states(admin, list(wanted))
        missing = [
            NewTopic(name, partitions, replication, topic_configs={**topic.config, **durable})
            for name, topic in wanted.items()
            if name not in there
        ]
        if missing:
            answer = await admin.create_topics(missing)
            for name, error_code, *_rest in answer.topic_errors:
                error = kafka_errors.for_code(error_code)
                if error not in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):
                    raise BrokerFailed(f"topic `{name}` could not be created: {error.__name__}")
    return [topic.name for topic in missing]


class _Admin:
    """An admin client that says in one line that the broker cannot be reached."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._client: Any = None

    async def __aenter__(self) -> AIOKafkaAdminClient:
        self._client = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap, client_id="celosia-topics")
        try:
            await self._client.start()
        except (kafka_errors.KafkaError, OSError) as error:
            await self._client.close()
            raise BrokerFailed(
                f"no Kafka broker answers at {self._bootstrap} ({type(error).__name__}); check --bootstrap"
            ) from None
        return self._client

    async def __aexit__(self, _type: Any, error: Any, _traceback: Any) -> None:
        await self._client.close()
        if isinstance(error, kafka_errors.KafkaError):
            raise BrokerFailed(f"the broker at {self._bootstrap} refused: {type(error).__name__}") from None
