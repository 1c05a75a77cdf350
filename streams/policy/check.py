"""What the types of a policy alone do not say: (path, what is wrong and what to do)."""

from collections.abc import Iterator
from typing import Any

from streams.categories import about_a_person, closest, known_categories, red_line
from streams.consent import RUNGS, Rung
from streams.policy.model import OWN_TOPICS, Crowd, FieldRule, Policy
from streams.policy.text import Path
from streams.sources import SHAPES
from streams.transforms import FORMS

__all__ = ["check_policy"]


def check_policy(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Yield everything that the types alone do not say: (path, what is wrong and what to do)."""
    yield from _check_purposes(policy)
    yield from _check_topics(policy)
    yield from _check_envelopes(policy)
    for name, source in policy.sources.items():
        if source.shape not in SHAPES:
            yield ("sources", name, "shape"), f"unknown shape `{source.shape}`{closest(source.shape, list(SHAPES))}"
        if not source.own and any(
            rule.for_ and about_a_person(rule.is_) for fields in policy.events.values() for rule in fields.values()
        ):
            yield (
                ("sources", name, "own"),
                "this source is not our own dealing with the person, and fields about a person are published: "
                "nobody is followed around; put its events into a policy whose fields are all `system.*`",
            )
    for event, fields in policy.events.items():
        yield from _check_groups(policy, event, fields)
        for path, rule in fields.items():
            for where, what in _check_field(policy, path, rule):
                yield ("events", event, path, *where), what


def _check_purposes(policy: Policy) -> Iterator[tuple[Path, str]]:
    for name, purpose in policy.purposes.items():
        at = ("purposes", name)
        if f"{name}.".startswith("pricing.") and purpose.rung != "crowd":
            yield (*at, "rung"), "red line: nobody gets a price of their own; `pricing.*` may use `crowd` only"
        if purpose.rung == "crowd" and purpose.crowd is None:
            yield (*at, "crowd"), "it is missing: say how it counts, with k, window, by and most_per_person"
        if RUNGS[purpose.rung] >= Rung.PSEUDONYMOUS and not purpose.rotate:
            yield (*at, "rotate"), "it is missing: say how long one pseudonym lasts, as in 30d"
        if purpose.lifetime < 1000:
            yield (*at, "lifetime"), "wanted at least 1s"
        if purpose.crowd is not None:
            yield from _check_crowd(policy, name, purpose.crowd)
    yield from _check_neighbours(policy)


def _check_crowd(policy: Policy, name: str, crowd: Crowd) -> Iterator[tuple[Path, str]]:
    at = ("purposes", name, "crowd")
    if policy.purposes[name].rung != "crowd":
        yield at, f"only a purpose whose rung is `crowd` counts crowds; this one's is `{policy.purposes[name].rung}`"
        return
    if crowd.window < 1000:
        yield (*at, "window"), "wanted at least 1s"
    if len(set(crowd.by)) < len(crowd.by):
        yield (*at, "by"), "a field is given twice"
    named = {path for fields in policy.events.values() for path, rule in fields.items() if policy.serves(rule, name)}
    for path in (*crowd.by, *crowd.sum):
        where = (*at, "by" if path in crowd.by else "sum")
        if path in crowd.sum and path in crowd.by:
            yield where, f"`{path}` is summed up and makes cells; keep one"
        elif path not in named and (path != "type" or path in crowd.sum):
            yield where, f"no event names `{path}` for {name}{closest(path, sorted(named))}"
    if not any(policy.counts(event, name) for event in policy.events):
        yield (*at, "by"), "no event type has all of these fields; name them there, `for` this purpose"
    for path, (low, high) in crowd.sum.items():
        if not low < high or max(abs(low), abs(high)) > 1e12:
            yield (*at, "sum", path), "wanted the least and the most that one person adds to a cell, as in [0, 100]"
    if crowd.noise is not None and crowd.noise.epsilon > crowd.noise.per_day:
        yield (*at, "noise", "per_day"), "one window costs more than a day may"
    if crowd.noise is not None and crowd.most_events is None:
        yield (*at, "most_events"), "it is missing: noise hides a person only if what one adds has a bound"


def _check_neighbours(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Two counts of the same people, of which one is finer, tell more than each: subtract one from the other."""
    plain = {name: one.crowd for name, one in policy.purposes.items() if one.crowd and not one.crowd.noise}
    for name, crowd in plain.items():
        for other, coarser in plain.items():
            shared = [event for event in policy.events if policy.counts(event, name) and policy.counts(event, other)]
            if name < other and shared and (set(crowd.by) <= set(coarser.by) or set(crowd.by) >= set(coarser.by)):
                sizes = "" if crowd.window == coarser.window else ", and in windows of another size"
                yield (
                    ("purposes", other, "crowd", "by"),
                    f"it counts the cells of `{name}` again{sizes}: who reads both can subtract one from the other; "
                    "take one away, or give one of them `noise`",
                )


def _check_topics(policy: Policy) -> Iterator[tuple[Path, str]]:
    taken: dict[str, str] = {}
    uses: list[tuple[Path, str]] = [(("topics", of), policy.topic(of)) for of in OWN_TOPICS]
    uses += [(("sources", name, "topic"), source.topic) for name, source in policy.sources.items()]
    uses += [
        (("sources", name, "key"), f"{policy.topic('rekeyed')}.{name}")
        for name, source in policy.sources.items()
        if source.key == "other"
    ]
    uses += [(("purposes", name, "topic"), purpose.topic) for name, purpose in policy.purposes.items()]
    for path, topic in uses:
        if topic in taken:
            yield path, f"topic `{topic}` is used by {taken[topic]} already; each use needs a topic of its own"
        taken[topic] = ".".join(path)


def _check_groups(policy: Policy, event: str, fields: dict[str, FieldRule]) -> Iterator[tuple[Path, str]]:
    # All event types of a source are read by one reader, so a path is a field everywhere or a group everywhere.
    leaves = {path for named in policy.events.values() for path in named}
    leaves |= {path for source in policy.sources.values() for path in source.paths if path is not None}
    for path in fields:
        if path.split(".")[0] == "_celosia":
            yield ("events", event, path), "`_celosia` is where the stamp of an output stands; name the field elsewhere"
        for leaf in leaves:
            if leaf.startswith(f"{path}."):
                yield ("events", event, path), f"it is a field here and a group in `{leaf}`; name only its leaves"
                break


def _check_envelopes(policy: Policy) -> Iterator[tuple[Path, str]]:
    for name, source in policy.sources.items():
        leaves = {path for named in policy.events.values() for path in named} | set(source.paths)
        for what, path in source.paths._asdict().items():
            for leaf in sorted(leaf for leaf in leaves if leaf and path and leaf.startswith(f"{path}.")):
                yield ("sources", name, what), f"it is a field here and a group in `{leaf}`; name another field"
                break


def _check_field(policy: Policy, path: str, rule: FieldRule) -> Iterator[tuple[Path, str]]:
    if rule.is_ not in known_categories():
        yield ("is",), f"unknown category `{rule.is_}`{closest(rule.is_, known_categories())}"
        return
    if rule.drop is not None and (rule.for_ is not None or rule.as_ is not None):
        yield (), "it is dropped and published; keep either `drop` or `for`"
    if rule.as_ is not None and rule.for_ is None:
        yield (), "it has forms and no purpose; add `for`, or take `as` away"
    for purpose in rule.for_ if isinstance(rule.for_, list) else []:
        if purpose not in policy.purposes:
            yield ("for",), f"unknown purpose `{purpose}`{closest(purpose, list(policy.purposes))}"
    named = policy.purposes.items()
    if rule.for_:
        line = red_line(rule.is_)
        if line is not None and any(one.rung != "crowd" and policy.serves(rule, name) for name, one in named):
            yield ("for",), f"red line: `{rule.is_}` may serve no purpose above `crowd`: {line}"
        if any(path == source.subject for source in policy.sources.values()):
            yield ("for",), "the subject is never a field of an output: the rung decides who an output says it is about"
    for rung, form in (rule.as_ or {}).items():
        if rung == "crowd" and form == "window":
            continue  # Said of every cell anyway.
        for what in _check_form(form):
            yield ("as", rung), what


def _check_form(form: str | dict[str, Any]) -> Iterator[str]:
    if isinstance(form, dict) and len(form) != 1:
        yield "wanted one form, as in {round: 10}"
        return
    name = form if isinstance(form, str) else next(iter(form))
    if name not in FORMS:
        yield f"unknown form `{name}`{closest(name, list(FORMS))} (known: {', '.join(FORMS)})"
    elif isinstance(form, dict) and FORMS[name].parameters is None:
        yield f"`{name}` takes no parameters; write it without"
