"""The commands that need no broker: check, explain, filter, key, trace."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streams.cli.options import READABLE, READABLE_OR_STDIN, key_file_option, policy_option
from streams.errors import SettingsError

if TYPE_CHECKING:
    from streams.lines import Line
    from streams.plan import Plan

__all__ = ["check", "compile_unpublished", "explain", "filter_", "key", "known_purpose", "trace"]

_source = click.option(
    "--source", metavar="NAME", help="Where the events come from, if the policy has several sources."
)


def _moment(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    from streams.event import milliseconds

    try:
        return None if value is None else milliseconds(value)
    except ValueError:
        raise click.BadParameter("wanted RFC 3339 with an offset, as in 2026-03-01T09:30:00Z") from None


def _clock() -> int:
    import time

    return time.time_ns() // 1_000_000


def compile_unpublished(file: Path) -> "Plan":
    """Compile a policy with a key that nothing is ever published under."""
    from streams.keys import MasterKey
    from streams.plan import compile_plan
    from streams.policy import load_policy

    return compile_plan(load_policy(file), MasterKey.random(), str(file))


@click.command()
@click.argument("file", type=READABLE)
@click.option(
    "--sample",
    type=READABLE_OR_STDIN,
    metavar="EVENTS",
    help="Events, one a line: what is in them that the policy does not name?",
)
@_source
@click.option("--strict", is_flag=True, help="Fail if the sample holds a field that the policy does not name.")
def check(file: Path, sample: Path | None, source: str | None, strict: bool) -> None:
    """Check the policy in FILE, and say what it does.

    With --sample, also tell what the events hold that the policy does not name. No value of an event is shown.
    """
    from streams.check import describe, survey, warnings
    from streams.files import choose_source
    from streams.lines import open_input, read_lines

    plan = compile_unpublished(file)
    _print(describe(plan))
    found = warnings(plan.policy)
    if found:
        _print(["", "worth a second look:", *(f"  {line}" for line in found)])
    if sample is None:
        return
    chosen = choose_source(plan, source)
    with open_input(_or_stdin(sample)) as (stream, _):
        seen = survey(read_lines(stream, str(sample)), plan, chosen)
    _print(["", *seen.lines(chosen, plan.policy)])
    if strict and not seen.types:
        raise SettingsError(f"the sample holds no event of a type that policy {plan.name} names, so it shows nothing")
    if strict and seen.unnamed:
        raise SettingsError(
            f"{len(seen.unnamed)} fields of the sample are not named by policy {plan.name}; name each with its "
            "category, and `drop` it where nobody needs it"
        )


@click.command()
@policy_option
@click.option("--event", type=READABLE_OR_STDIN, required=True, help="One event as JSON (-: standard input).")
@click.option("--consents", type=READABLE, help="Consent records, one a line.")
@click.option("--consent", type=READABLE, help="One consent record.")
@click.option("--purpose", metavar="NAME", help="Only this purpose.")
@click.option("--at", metavar="TIME", callback=_moment, help="The time of the decision (RFC 3339); now, unless given.")
@_source
def explain(
    policy: Path,
    event: Path,
    consents: Path | None,
    consent: Path | None,
    purpose: str | None,
    at: int | None,
    source: str | None,
) -> None:
    """Say what happens to each field of one event.

    And by which rule of the policy. No value of the event is shown. Without consent, nothing passes.
    """
    if consents is not None and consent is not None:
        raise click.UsageError("give either --consents or --consent")
    from streams.explain import explain as explained
    from streams.explain import render
    from streams.files import choose_source, file_place, line_event
    from streams.lines import FileConsents, read_consents, read_document

    plan = compile_unpublished(policy)
    known_purpose(plan, purpose)
    place = file_place(plan, choose_source(plan, source))
    folded = FileConsents() if consents is None else read_consents(consents)
    if consent is not None:
        folded.apply(read_document(consent))
    now = _clock() if at is None else at
    document = line_event(read_document(_or_stdin(event)), 0, now)
    _print(render(explained(plan, place, document, folded.consents, now), purpose))


@click.command("filter")
@policy_option
@click.option("--consents", type=READABLE, required=True, help="Consent records, one a line, oldest first.")
@click.option("--events", type=READABLE_OR_STDIN, required=True, help="Events, one a line (-: standard input).")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder of the results."
)
@key_file_option
@_source
@click.option("--now", metavar="TIME", callback=_moment, help="Decide as of this time (RFC 3339); now, unless given.")
@click.option("--csv", is_flag=True, help="Write the cells of crowd purposes as tables, not as JSON.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def filter_(policy: Path, consents: Path, events: Path, out: Path, **options: Any) -> None:
    """Filter events from a file into one file for each topic.

    A summary is printed as JSON. Files that end in .gz are unpacked on the way.
    """
    import json

    from streams.files import OutputFiles, choose_source, file_place, filter_lines, output_names
    from streams.keys import installation_key
    from streams.lines import open_input, read_consents, read_lines
    from streams.plan import compile_plan
    from streams.policy import load_policy

    checked = load_policy(policy)
    plan = compile_plan(checked, installation_key(options["key_file"]), str(policy))
    place = file_place(plan, choose_source(plan, options["source"]))
    names = output_names(plan, csv=options["csv"])
    folded = read_consents(consents)
    if folded.blocked_by is not None:
        message = (
            f"`{consents}`, line {folded.blocked_by}: neither the record nor its subject can be read: nobody is served"
        )
        click.echo(f"celosia: {message}", err=True)
    now = options["now"]
    clock = _clock if now is None else lambda: now
    with (
        open_input(_or_stdin(events)) as (stream, position),
        OutputFiles(out, names, replace=options["force"]) as files,
        _progress(events, position) as watched,
    ):
        lines = watched(read_lines(stream, str(events)))
        summary = filter_lines(plan, place, folded.consents, lines, files, clock, csv=options["csv"])
    counts = {"policy": plan.name, "source": place.source.name, **summary.as_dict(), "consents": folded.as_dict()}
    click.echo(json.dumps(counts, indent=2))


@contextmanager
def _progress(
    events: Path, position: Callable[[], int] | None
) -> "Iterator[Callable[[Iterable[Line]], Iterable[Line]]]":
    """Show how far the reading of a file is, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda lines: lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} bytes, {task.fields[events]:,} events"),
        TimeElapsedColumn(),
    )
    unknown = (TextColumn("{task.fields[events]:,} events"), TimeElapsedColumn())
    with Progress(*(unknown if position is None else columns), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None if position is None else events.stat().st_size, events=0)

        def watched(lines: "Iterable[Line]") -> "Iterator[Line]":
            for number, line in enumerate(lines):
                if number % 1000 == 0:
                    bar.update(task, completed=0 if position is None else position(), events=number)
                yield line

        yield watched


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def key(file: Path) -> None:
    """Make the key of pseudonyms, in FILE.

    A key that is there already is kept.
    """
    from streams.keys import MasterKey

    if file.exists():
        MasterKey.of_file(file)
        click.echo(f"{file} holds a key already; it is kept")
    else:
        MasterKey.create(file)
        click.echo(f"{file} holds a new key; keep it secret, and keep it: without it the pseudonyms change")


@click.command()
@click.argument("token")
@policy_option
@click.option("--purpose", metavar="NAME", required=True, help="The purpose of the output that the token is from.")
@key_file_option
def trace(token: str, policy: Path, purpose: str, key_file: Path | None) -> None:
    """Tell where the raw record of an output lies.

    TOKEN is the output's header `celosia-source`; topic, partition and offset are printed.
    """
    from streams.keys import installation_key
    from streams.plan import compile_plan
    from streams.policy import load_policy

    checked = load_policy(policy)
    plan = compile_plan(checked, installation_key(key_file, create=False), str(policy))
    known_purpose(plan, purpose)
    topics = [source.raw_topic for source in plan.sources]
    topic, partition, offset = plan.purposes[purpose].seal.open(token.encode(errors="replace"), topics)
    click.echo(f"{topic} partition {partition} offset {offset}")


def known_purpose(plan: "Plan", purpose: str | None) -> None:
    """Raise SettingsError for a purpose that the policy does not have."""
    if purpose is not None and purpose not in plan.purposes:
        from streams.categories import closest

        known = list(plan.purposes)
        raise SettingsError(
            f"--purpose: policy {plan.name} has no purpose `{purpose}`{closest(purpose, known)} "
            f"(known: {', '.join(known)})"
        )


def _or_stdin(file: Path) -> Path | None:
    return None if str(file) == "-" else file


def _print(lines: Iterable[str]) -> None:
    click.echo("\n".join(lines))
