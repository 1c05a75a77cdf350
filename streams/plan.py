"""A policy compiled: what runs for each event.

Rules of this file:
- Everything that can be known before the first event is computed here, once; the hot path only looks up and calls.
- Compiling fails closed: a form, a rung or a purpose that cannot be compiled refuses the whole policy.
- Nothing stamped on an output is finer than what its fields tell about time: `expires_at` and the record's timestamp
  are cut to the precision that the policy publishes, a day where it publishes none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streams.consent import RUNGS, Rung
from streams.errors import PolicyError
from streams.keys import MasterKey, Pseudonyms, Seal
from streams.policy import FieldRule, Policy, Purpose, Source
from streams.sources import SHAPES, DocumentReader, Getter
from streams.transforms import FORMS, Context, Form
from streams.transforms.time import floor_to_month

__all__ = ["MAX_OUTPUT_BYTES", "Plan", "PurposePlan", "Recipe", "Service", "SourcePlan", "compile_plan", "form_in_force"]

MAX_OUTPUT_BYTES = 900_000
"""The largest value of an output: what a topic with Kafka's default limit of 1 MiB takes, with room for headers."""

_DAY = 86_400_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one event type becomes an output for one purpose at one rung: the fields, their forms and their places."""

    rung: Rung
    fields: Getter
    steps: tuple[tuple[Form, tuple[str, ...], str], ...]
    """for each field its form, the names of the groups it stands in, and its own name"""
    floor: Callable[[int], int]
    """cuts a time in ms to the precision that the fields tell"""
    stamp: dict[str, Any]
    """the constant part of `_celosia`"""
    headers: tuple[tuple[str, bytes], ...]
    """the constant headers"""


@dataclass(frozen=True, slots=True)
class PurposePlan:
    """What all event types share about a purpose."""

    name: str
    topic: str
    highest: Rung
    lifetime: int
    pseudonym: Pseudonyms
    seal: Seal


@dataclass(frozen=True, slots=True)
class Service:
    """One event type serving one purpose. `recipes` is indexed by rung; None: no form at that rung."""

    purpose: PurposePlan
    recipes: tuple[Recipe | None, ...]


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """One source: how it is read and which services each event type has."""

    name: str
    topic: str
    """the topic that carries the subject as its key: the raw one, or the internal one after re-keying"""
    raw_topic: str
    rekey: bool
    reader: DocumentReader
    clock_skew: int
    services: dict[str, tuple[Service, ...]]
    known_paths: frozenset[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs. Made by `compile_plan`; immutable."""

    policy: Policy
    master: MasterKey
    sources: tuple[SourcePlan, ...]
    purposes: dict[str, PurposePlan]

    @property
    def name(self) -> str:
        """Policy and version, as they are stamped on outputs: `shop@3`."""
        return f"{self.policy.policy}@{self.policy.version}"


def compile_plan(policy: Policy, master: MasterKey, file: str = "policy") -> Plan:
    """Compile a checked policy.

    Raises:
        PolicyError: a form's parameters make no sense.
    """
    findings: list[str] = []
    purposes = {name: _purpose(name, purpose, master) for name, purpose in policy.purposes.items()}
    sources = []
    for name, source in policy.sources.items():
        fields = [path for named in policy.events.values() for path in named]
        reader = SHAPES[source.shape](source.paths, fields)
        services = {
            event: tuple(
                service
                for purpose in purposes.values()
                if (service := _service(policy, source, purpose, event, reader, master, findings)) is not None
            )
            for event in policy.events
        }
        known = frozenset({*fields, *(path for path in source.paths if path is not None)})
        rekey = source.key == "other"
        topic = policy.topic("rekeyed") + "." + name if rekey else source.topic
        sources.append(
            SourcePlan(name, topic, source.topic, rekey, reader, source.clock_skew, services, known)
        )
    if findings:
        raise PolicyError(file, list(dict.fromkeys(findings)))
    return Plan(policy, master, tuple(sources), purposes)


def form_in_force(rule: FieldRule, rung: Rung) -> tuple[str, Any] | None:
    """Return name and parameters of the form that a field has at a rung, None where it has none.

    A form holds for its rung and those above it; below the lowest one given, the field is dropped. A field without
    forms is kept as it is at `pseudonymous` and above.
    """
    if rule.as_ is None:
        return ("keep", None) if rung >= Rung.PSEUDONYMOUS else None
    given = [below for below in Rung if below <= rung and below.name.lower() in rule.as_]
    if not given:
        return None
    form = rule.as_[given[-1].name.lower()]  # type: ignore[index]
    return (form, None) if isinstance(form, str) else next(iter(form.items()))


def _purpose(name: str, purpose: Purpose, master: MasterKey) -> PurposePlan:
    pseudonym = Pseudonyms(master, name, purpose.rotate or _DAY)
    return PurposePlan(name, purpose.topic, RUNGS[purpose.rung], purpose.lifetime, pseudonym, Seal(master, name))


def _service(
    policy: Policy,
    source: Source,
    purpose: PurposePlan,
    event: str,
    reader: DocumentReader,
    master: MasterKey,
    findings: list[str],
) -> Service | None:
    rules = {path: rule for path, rule in policy.events[event].items() if policy.serves(rule, purpose.name)}
    if not rules:
        return None
    context = Context(purpose.name, policy.purposes[purpose.name].rotate or _DAY, master)
    recipes: list[Recipe | None] = []
    for rung in Rung:
        chosen = {path: form for path, rule in rules.items() if (form := form_in_force(rule, rung)) is not None}
        if rung < Rung.ANONYMOUS or rung > purpose.highest or not chosen:
            recipes.append(None)
            continue
        steps = []
        for path, (name, parameters) in chosen.items():
            try:
                form = FORMS[name].make(parameters, context)
            except (ValueError, TypeError) as error:
                findings.append(f"events.{event}.{path}, as `{name}`: {error}")
                continue
            *groups, leaf = path.split(".")
            steps.append((form, tuple(groups), leaf))
        floor = _floor(None if source.time is None else chosen.get(source.time))
        recipes.append(_recipe(policy, purpose, event, rung, reader.getter(chosen), tuple(steps), floor))
    return Service(purpose, tuple(recipes))


def _recipe(
    policy: Policy,
    purpose: PurposePlan,
    event: str,
    rung: Rung,
    fields: Getter,
    steps: tuple[tuple[Form, tuple[str, ...], str], ...],
    floor: Callable[[int], int],
) -> Recipe:
    rung_name = rung.name.lower()
    stamp = {
        "policy": policy.policy,
        "version": policy.version,
        "purpose": purpose.name,
        "rung": rung_name,
        "event": event,
    }
    headers = (
        ("celosia-policy", f"{policy.policy}@{policy.version}".encode()),
        ("celosia-purpose", purpose.name.encode()),
        ("celosia-rung", rung_name.encode()),
    )
    return Recipe(rung, fields, steps, floor, stamp, headers)


def _floor(form: tuple[str, Any] | None) -> Callable[[int], int]:
    if form is not None and form[0] == "keep":
        return lambda ms: ms
    precision = (FORMS[form[0]].precision if form is not None else 0) or _DAY
    return floor_to_month if precision > _DAY else lambda ms: ms // precision * precision
