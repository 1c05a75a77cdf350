"""A policy compiled: what runs for each event.

Rules of this file:
- Everything that can be known before the first event is computed here, once; the hot path only looks up and calls.
- Compiling fails closed: a form, a rung or a purpose that cannot be compiled refuses the whole policy.
- Nothing stamped on an output is finer than what its fields tell about time: `expires_at` and the record's timestamp
  are cut to the precision that the policy publishes, a day where it publishes none.
- Nothing stamped on an anonymous output is about its person: no subject, and no version of their consent, because a
  rare number would be a name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from streams.consent import RUNGS, Rung
from streams.crowd.noise import Mechanism
from streams.crowd.rule import LEAST_K, UNIT, CrowdRule, Sum
from streams.crowd.rule import Noise as NoiseRule
from streams.errors import PolicyError
from streams.event import iso
from streams.keys import MasterKey, Pseudonyms, Seal
from streams.policy import Crowd, FieldRule, Policy, Purpose, Source
from streams.sources import SHAPES, DocumentReader, Getter
from streams.transforms import ABSENT, FORMS, Context, Form
from streams.transforms.plain import keep
from streams.transforms.time import floor_to_month

__all__ = [
    "MAX_OUTPUT_BYTES",
    "CrowdRecipe",
    "Layout",
    "Plan",
    "PurposePlan",
    "Recipe",
    "Service",
    "SourcePlan",
    "Stamp",
    "compile_plan",
    "crowd_rules",
    "form_in_force",
]

MAX_OUTPUT_BYTES = 900_000
"""The largest value of an output: what a topic with Kafka's default limit of 1 MiB takes, with room for headers."""

_DAY = 86_400_000


class Stamp(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """`_celosia` in an output: how it came about, and when it dies.

    `subject` says who the event is about: the pseudonym at `pseudonymous`, the customer's own id at `identified`.
    `consent` is the version of that person's consent. At `anonymous` there is neither: versions count changes of mind,
    so few people share a high one, and it would link their events with each other and across topics.
    """

    policy: str
    version: int
    purpose: str
    rung: str
    event: str
    consent: int | msgspec.UnsetType = msgspec.UNSET
    expires_at: str
    subject: str | msgspec.UnsetType = msgspec.UNSET


class Stamped(NamedTuple):
    """A stamp without its subject: as headers, and as JSON that lacks the closing brace."""

    headers: tuple[tuple[str, bytes], ...]
    json: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the values of a recipe go: those from `start` to `end` are leaves here, then come the groups below.

    `type` is compiled from the paths, like the reader's: there is no place in it for a field that nobody named, and
    what is ABSENT is left out as it is encoded.
    """

    type: type[msgspec.Struct]
    start: int
    end: int
    groups: "tuple[Layout, ...]"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one event type becomes an output for one purpose at one rung: the fields, their forms and their places."""

    rung: Rung
    paths: tuple[str, ...]
    fields: Getter
    forms: tuple[tuple[int, Form], ...]
    """index of a value and the form it is given; a value without one is kept as it is"""
    layout: Layout
    """where the values that the forms give, in the order of `paths`, stand in the output"""
    floor: Callable[[int], int]
    """cuts a time in ms to the precision that the fields tell"""
    stamp: Callable[[int, int], Stamped]
    """(cut time in ms, consent version) -> all of the stamp but the subject. No version is told at `anonymous`."""


@dataclass(frozen=True, slots=True)
class CrowdRecipe:
    """How one event type becomes a part of a cell: the values that make the cell, and those that are summed up."""

    rung: Rung
    rule: CrowdRule
    paths: tuple[str, ...]
    fields: Getter
    forms: tuple[tuple[int, Form], ...]
    """index of a value and the form it is given; a value without one is kept as it is"""
    event: str
    type_at: int | None
    """where among the values of the cell the event type stands; None: nowhere"""
    cells: int
    """how many of the values make the cell; the rest are summed up"""
    known: dict[tuple[Any, ...], bytes] = field(default_factory=dict, compare=False, repr=False)
    """cells by their values, where these are strings: a cache, which changes nothing"""


@dataclass(frozen=True, slots=True)
class PurposePlan:
    """What all event types share about a purpose."""

    name: str
    topic: str
    highest: Rung
    lifetime: int
    pseudonym: Pseudonyms
    seal: Seal
    crowd: CrowdRule | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """One event type serving one purpose. `recipes` is indexed by rung; None: no form at that rung."""

    purpose: PurposePlan
    recipes: tuple[Recipe | CrowdRecipe | None, ...]


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
        PolicyError: a form's parameters, or those of noise, make no sense.
        SettingsError: there is noise, and what makes it is not installed.
    """
    findings: list[str] = []
    purposes = {name: _purpose(name, purpose, master) for name, purpose in policy.purposes.items()}
    for name, purpose in purposes.items():
        if purpose.crowd is not None and purpose.crowd.noise is not None:
            try:
                Mechanism(purpose.crowd)
            except ValueError as error:
                findings.append(f"purposes.{name}.crowd.noise: {error}")
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
        sources.append(SourcePlan(name, topic, source.topic, rekey, reader, source.clock_skew, services, known))
    if findings:
        raise PolicyError(file, list(dict.fromkeys(findings)))
    return Plan(policy, master, tuple(sources), purposes)


def crowd_rules(plan: Plan) -> list[CrowdRule]:
    """Return the rules of all crowd purposes."""
    return [purpose.crowd for purpose in plan.purposes.values() if purpose.crowd is not None]


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
    rung, crowd = RUNGS[purpose.rung], None if purpose.crowd is None else _crowd_rule(name, purpose.crowd)
    return PurposePlan(name, purpose.topic, rung, purpose.lifetime, pseudonym, Seal(master, name), crowd)


def _crowd_rule(name: str, crowd: Crowd) -> CrowdRule:
    noise = crowd.noise
    return CrowdRule(
        purpose=name,
        k=max(crowd.k, LEAST_K),
        window=crowd.window,
        late=crowd.late,
        by=tuple(crowd.by),
        sums=tuple(Sum(path, round(low * UNIT), round(high * UNIT)) for path, (low, high) in crowd.sum.items()),
        most_per_person=crowd.most_per_person,
        most_events=crowd.most_events,
        most_cells=crowd.cells,
        hold=crowd.hold,
        noise=None if noise is None else NoiseRule(noise.epsilon, noise.delta, noise.per_day),
        top=crowd.top,
    )


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
    if purpose.crowd is not None:
        if not policy.counts(event, purpose.name):
            return None
        crowd = _crowd_recipe(purpose.crowd, event, rules, reader, context, findings)
        return Service(purpose, tuple(crowd if rung == Rung.CROWD else None for rung in Rung))
    recipes: list[Recipe | CrowdRecipe | None] = []
    for allowed in Rung:
        # An output that says who it is about is about a person, whatever its fields are: of a source that is not our
        # own dealing with the person, nothing above `anonymous` is made.
        rung = allowed if source.own else min(allowed, Rung.ANONYMOUS)
        chosen = {path: form for path, rule in rules.items() if (form := form_in_force(rule, rung)) is not None}
        if rung < Rung.ANONYMOUS or rung > purpose.highest or not chosen:
            recipes.append(None)
            continue
        forms = _forms(event, chosen, context, findings)
        if not findings:
            floor = _floor(None if source.time is None else rules.get(source.time), rung)
            recipes.append(_recipe(policy, purpose, event, rung, reader, forms, floor))
    return Service(purpose, tuple(recipes))


def _forms(event: str, chosen: Mapping[str, tuple[str, Any]], context: Context, findings: list[str]) -> dict[str, Form]:
    forms = {}
    for path, (name, parameters) in chosen.items():
        try:
            forms[path] = FORMS[name].make(parameters, context)
        except (ValueError, TypeError) as error:
            findings.append(f"events.{event}.{path}, as `{name}`: {error}")
    return forms


def _crowd_recipe(
    rule: CrowdRule,
    event: str,
    rules: dict[str, FieldRule],
    reader: DocumentReader,
    context: Context,
    findings: list[str],
) -> CrowdRecipe | None:
    paths = [path for path in rule.by if path != "type"]
    cells = len(paths)
    # A field that is not there adds nothing to its sum, and one that this event type does not have is never there.
    paths += [one.path for one in rule.sums]
    # Who says that a field makes cells says that it is kept: a cell tells it of many people at once.
    chosen = {
        path: form_in_force(rules[path], Rung.CROWD) or ("keep", None) if path in rules else ("drop", None)
        for path in paths
    }
    forms = _forms(event, chosen, context, findings)
    if findings:
        return None
    changes = tuple((paths.index(path), form) for path, form in forms.items() if form is not keep)
    type_at = rule.by.index("type") if "type" in rule.by else None
    return CrowdRecipe(Rung.CROWD, rule, tuple(paths), reader.getter(paths), changes, event, type_at, cells)


def _recipe(
    policy: Policy,
    purpose: PurposePlan,
    event: str,
    rung: Rung,
    reader: DocumentReader,
    forms: dict[str, Form],
    floor: Callable[[int], int],
) -> Recipe:
    paths: list[str] = []
    layout = _layout(list(forms), paths)
    rung_name = rung.name.lower()
    headers = (
        ("celosia-policy", f"{policy.policy}@{policy.version}".encode()),
        ("celosia-purpose", purpose.name.encode()),
        ("celosia-rung", rung_name.encode()),
    )

    @lru_cache(maxsize=1024)
    def stamp(cut: int, consent: int) -> Stamped:
        expires = iso(cut + purpose.lifetime)
        varying = [("celosia-expires-at", expires.encode())]
        stamp = Stamp(
            policy=policy.policy,
            version=policy.version,
            purpose=purpose.name,
            rung=rung_name,
            event=event,
            expires_at=expires,
        )
        # INVARIANT (anonymous is anonymous): what differs from person to person is told above it only.
        if rung > Rung.ANONYMOUS:
            stamp.consent = consent
            varying.insert(0, ("celosia-consent", str(consent).encode()))
        return Stamped((*headers, *varying), msgspec.json.encode(stamp)[:-1])

    changes = tuple((paths.index(path), form) for path, form in forms.items() if form is not keep)
    return Recipe(rung, tuple(paths), reader.getter(paths), changes, layout, floor, stamp)


def _layout(paths: list[str], ordered: list[str], prefix: str = "") -> Layout:
    """Lay out the groups that `paths` name, and append the full paths to `ordered` as their values will come."""
    below: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        below.setdefault(name, []).extend([rest] if rest else [])
    leaves = [name for name, rest in below.items() if not rest]
    names = leaves + [name for name, rest in below.items() if rest]
    start = len(ordered)
    ordered.extend(prefix + name for name in leaves)
    end = len(ordered)
    groups = tuple(_layout(below[name], ordered, f"{prefix}{name}.") for name in names[len(leaves) :])
    fields = [(f"f{index}", Any, ABSENT) for index in range(len(names))]
    rename = {f"f{index}": name for index, name in enumerate(names)}
    output = msgspec.defstruct("Output", fields, rename=rename, omit_defaults=True, gc=False)
    return Layout(output, start, end, groups)


def _floor(rule: FieldRule | None, rung: Rung) -> Callable[[int], int]:
    form = None if rule is None else form_in_force(rule, rung)
    if form is not None and form[0] == "keep":
        return lambda ms: ms
    told_here = FORMS[form[0]].precision if form is not None else 0
    precision = told_here or _DAY
    if rule is not None and not told_here:
        # A lower rung never tells more: where only higher ones tell the time, no finer than they do.
        above = [told for higher in Rung if higher > rung and (told := form_in_force(rule, higher)) is not None]
        precision = max([precision, *(FORMS[name].precision for name, _ in above)])
    return floor_to_month if precision > _DAY else lambda ms: ms // precision * precision
