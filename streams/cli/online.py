"""The commands that talk to a broker: topics, run, withdraw, demo."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streams.cli.options import bootstrap_option, group_option, key_file_option, option, policy_option
from streams.errors import SettingsError

if TYPE_CHECKING:
    from streams.plan import Plan

__all__ = ["demo", "run", "topics", "withdraw"]


@click.command()
@bootstrap_option
@policy_option
@click.option("--create", is_flag=True, help="Create those that are missing.")
@click.option("--partitions", type=click.IntRange(1), default=4, show_default=True, help="Partitions of new topics.")
@click.option("--replication", type=click.IntRange(1), default=1, show_default=True, help="Copies of new topics.")
def topics(bootstrap: str, policy: Path, create: bool, partitions: int, replication: int) -> None:
    """Check the topics on the broker, or create them."""
    import asyncio

    from streams.policy import load_policy

    checked = load_policy(policy)  # A policy that is refused is refused before the broker's client is loaded.
    from streams.errors import TopicsError
    from streams.kafka.topics import ask_states, create_topics, find_faults, wanted_topics

    if create:
        asyncio.run(create_topics(bootstrap, checked, partitions, replication))
    states = asyncio.run(ask_states(bootstrap, checked))
    wanted = wanted_topics(checked)
    wide = max(len(topic.name) for topic in wanted)
    for topic in wanted:
        state = states.get(topic.name)
        there = f"{state.partitions:>4} x {state.replication}" if state else "   missing"
        click.echo(f"{topic.name:{wide}}  {there}  {topic.use}")
    if faults := find_faults(wanted, states):
        raise TopicsError(faults)


@click.command()
@bootstrap_option
@policy_option
@option(
    "--guarantee",
    "At-least-once is for brokers without transactions.  [default: exactly-once]",
    type=click.Choice(["exactly-once", "at-least-once"]),
)
@key_file_option
@option(
    "--gate",
    "How a lane asks for consents; strict: even a leader that is cut off from its cluster cannot mislead it.  "
    "[default: fast]",
    type=click.Choice(["fast", "strict"]),
)
@group_option
@option("--ops-host", "Where the page for operators listens.  [default: 127.0.0.1]")
@option("--ops-port", "0: any free port.  [default: 6066]", type=click.IntRange(0, 65535))
@option("--log-level", "[default: info]", type=click.Choice(["debug", "info", "warning", "error"]))
def run(**options: Any) -> None:
    """Run a worker. Several of them share the work.

    Each option can also be given in the environment: CELOSIA_BOOTSTRAP, CELOSIA_POLICY, and so on.
    """
    from streams.kafka.app import run_worker
    from streams.settings import read_settings

    click.get_current_context().exit(run_worker(read_settings(**options)))


@click.command()
@bootstrap_option
@policy_option
@click.option("--purpose", "purposes", metavar="NAME", multiple=True, help="Only this one (can be repeated).")
@group_option
def withdraw(bootstrap: str, policy: Path, purposes: tuple[str, ...], group: str | None) -> None:
    """Withdraw the consent of people, and say when that is in force.

    The people are read from standard input, one subject a line: an argument would be in the list of processes.
    A line is printed for each once nothing that was computed under the older consent can become visible any more.
    """
    import asyncio

    from streams.cli.offline import compile_unpublished, known_purpose

    plan = compile_unpublished(policy)
    for purpose in purposes:
        known_purpose(plan, purpose)
    if sys.stdin.isatty():
        click.echo("One subject a line; Ctrl-D ends.", err=True)
    asyncio.run(_withdraw(bootstrap, plan, group, _subjects(), purposes))


def _subjects() -> list[str]:
    try:
        lines = sys.stdin.buffer.read().decode().split("\n")
    except UnicodeDecodeError:
        raise SettingsError("standard input is not UTF-8; give one subject a line") from None
    subjects = [line.removesuffix("\r") for line in lines]
    if not any(subjects):
        raise SettingsError("standard input names nobody; give one subject a line")
    return [subject for subject in subjects if subject]


async def _withdraw(
    bootstrap: str, plan: "Plan", group: str | None, subjects: list[str], purposes: tuple[str, ...]
) -> None:
    from streams.errors import CelosiaError
    from streams.kafka.client import KafkaPorts
    from streams.kafka.connections import ClientSettings, Connections
    from streams.kafka.port import PortError, describe
    from streams.kafka.topics import check_topics
    from streams.kafka.withdraw import withdraw

    states = await check_topics(bootstrap, plan.policy)
    connections = Connections(ClientSettings(bootstrap, group or f"celosia-{plan.policy.policy}"))
    consents = plan.policy.topic("consents")
    done = 0
    try:
        await connections.start()
        ports = KafkaPorts(connections, plan)
        async for withdrawn in withdraw(plan, states[consents].partitions, ports, subjects, purposes or None):
            done += 1
            place = f"{consents} partition {withdrawn.partition} offset {withdrawn.offset}"
            record = "a denial" if withdrawn.version is None else f"version {withdrawn.version}"
            click.echo(f"{place}: {record} is in force")
    except PortError as error:
        raise CelosiaError(
            f"the broker at {bootstrap} did not confirm it ({describe(error)}): {done} of {len(set(subjects))} are in "
            "force; withdraw again, which does no harm"
        ) from None
    finally:
        await connections.stop()


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(min=1), help="How long.  [default: until Ctrl-C; without a terminal, 30 s]"
)
@click.option("--plain", is_flag=True, help="Lines instead of a live picture, for machines.")
@click.option(
    "--broker",
    type=click.Choice(["embedded", "kafka"]),
    default="embedded",
    show_default=True,
    help="Kafka needs Java 17 and Maven.",
)
@click.option("--events-per-second", "rate", type=click.FloatRange(min=1), help="How busy the shop is.")
def demo(**options: Any) -> None:
    """Watch real purchases being filtered while consents change.

    It brings a broker of its own.
    """
    from streams.demo import run_demo

    click.get_current_context().exit(run_demo(**_given(options)))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
